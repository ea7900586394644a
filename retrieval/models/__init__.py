"""`build_model(config)` makes the DualEncoder that training, evaluation and search see."""

import torch

from retrieval.config import Config
from retrieval.errors import UserError
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.text import load_tokenizer, text_architecture

__all__ = ["DualEncoder", "build_model", "build_model_without_weights"]


def build_model(config: Config) -> DualEncoder:
    """The model of `config` with its pretrained weights. Raises UserError for absent or unfitting weights."""
    text = config.text_encoder
    model = DualEncoder(**_architecture(config, allow_known=False))
    model.text_encoder.tokenizer = load_tokenizer(text.name, model.text_encoder.model.config.vocab_size)
    if config.audio_encoder.checkpoint is not None:
        model.audio_encoder.load_official(config.audio_encoder.checkpoint)
    if text.pretrained:
        model.text_encoder.load_pretrained(text.name)
    return model


def build_model_without_weights(config: Config) -> DualEncoder:
    """Names and shapes only, on the meta device: for --dry-run. Works without weights, tokenizer and, for known names, the hub."""
    architecture = _architecture(config, allow_known=True)
    with torch.device("meta"):
        return DualEncoder(**architecture)


def _architecture(config: Config, allow_known: bool) -> dict:
    audio, text = config.audio_encoder, config.text_encoder
    if audio.name not in AUDIO_ENCODERS:
        raise UserError(f"audio_encoder.name={audio.name!r} is unknown; there is: {', '.join(AUDIO_ENCODERS)}")
    return {
        "audio_encoder": audio.model_dump(include={"name", "embed_dim", "depth", "num_heads"}),
        "text_encoder": text_architecture(text.name, text.dropout, allow_known),
        "pooling": config.pooling.model_dump(),
        "dim": config.dim,
        "sample_rate": config.data.sample_rate,
        "clip_seconds": config.data.max_seconds,
        "window_seconds": audio.window_seconds,
        "hop_seconds": audio.hop_seconds,
        "max_tokens": text.max_tokens,
        "temperature": config.loss.temperature,
        "learnable_temperature": config.loss.learnable_temperature,
    }
