"""Small models for tests of LoRA: text encoders as transformers saves them, an ATST checkpoint."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers.processors import TemplateProcessing
from torch import nn

from retrieval.config import Config, load_config
from retrieval.models.audio.atst import AtstFrame
from retrieval.models.dual_encoder import DualEncoder
from tests.models.test_text_encoders import (
    BYTES,
    bert_tokenizer,
    numbered,
    old_pooling,
    write_sentence_files,
)


def qwen3_tokenizer() -> Any:
    """Qwen3-Embedding's kind: bytes, and the end of text is appended by the tokenizer itself."""
    end = "<|endoftext|>"
    tokenizer = hf.Qwen2Tokenizer(numbered([*BYTES, end]), [], eos_token=end, pad_token=end)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return tokenizer


def qwen3(size: int) -> Any:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, **heads}
    config = hf.Qwen3Config(
        vocab_size=size, max_position_embeddings=64, tie_word_embeddings=True, **shape
    )
    return hf.Qwen3ForCausalLM(config)


def modernbert(size: int) -> Any:
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "intermediate_size": 32}
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    config = hf.ModernBertConfig(
        vocab_size=size,
        max_position_embeddings=64,
        num_attention_heads=2,
        bos_token_id=2,
        eos_token_id=3,
        **shape,
        **special,
    )
    return hf.ModernBertForMaskedLM(config)


KINDS = {"qwen3": (qwen3_tokenizer, qwen3), "modernbert": (bert_tokenizer, modernbert)}


def save_text_encoder(folder: Path, kind: str) -> Path:
    """Tokenizer, config.json and random weights of a scale that tells captions apart."""
    make_tokenizer, make_model = KINDS[kind]
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = make_model(len(tokenizer))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    if kind == "qwen3":  # Qwen3-Embedding is a sentence-transformers model
        write_sentence_files(folder, old_pooling("lasttoken"))
    return folder


def save_atst(path: Path) -> Path:
    """A checkpoint in an official layout, of the size that tiny.yaml has."""
    torch.manual_seed(1)
    state = AtstFrame(embed_dim=32, depth=1, num_heads=2).state_dict()
    torch.save({"state_dict": {f"encoder.encoder.{key}": state[key] for key in state}}, path)
    return path


def save_bases(root: Path) -> Path:
    """Write qwen3/, modernbert/ and atst.ckpt into `root`, and return it."""
    for kind in ("qwen3", "modernbert"):
        save_text_encoder(root / kind, kind)
    save_atst(root / "atst.ckpt")
    return root


def config_of(tiny: Path, *overrides: str) -> Config:
    """tiny.yaml without dropout."""
    no_dropout = ["text_encoder.dropout=0", "pooling.attention_dropout=0"]
    return load_config(tiny / "tiny.yaml", [*no_dropout, *overrides])


def change_adapters(model: nn.Module, seed: int = 3) -> None:
    """Give B, which starts at 0, other values."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.3)


def sounds(num_samples: int = 32_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Three tones (3, S) of other pitches and lengths."""
    time = torch.arange(num_samples) / 16_000
    waveform = torch.stack([0.3 * torch.sin(1000 * note * time) for note in (1, 2, 5)])
    return waveform, torch.tensor([num_samples, num_samples // 2, num_samples // 3])


CAPTIONS = ["a steady low tone", "someone plays a shrill note", "rain", "..."]


@torch.no_grad()
def scores_of(model: DualEncoder) -> torch.Tensor:
    """Scores (4, 3) of a model in eval mode; its mode is put back."""
    was_training = model.training
    model.eval()
    frames, mask = model.encode_audio(*sounds())
    scores = model.score(model.encode_text(CAPTIONS), frames, mask)
    model.train(was_training)
    return scores
