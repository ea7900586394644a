"""`build_model(config)` makes the DualEncoder that training, evaluation and search see."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from retrieval.base.errors import UserError
from retrieval.config import AudioEncoderConfig, Config, LossConfig
from retrieval.config.text import flatten
from retrieval.losses import LEARNABLE, arguments_of, check_loss
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.dual_encoder import POOLINGS, DualEncoder
from retrieval.models.text import text_architecture, text_readout
from retrieval.models.tokenizer import load_tokenizer

__all__ = [
    "DualEncoder",
    "bound_memory",
    "build_model",
    "build_model_without_weights",
    "warnings_of",
]

# Settings that change outputs but no weight shapes.
SETTINGS_WITHOUT_SHAPES = (
    *("audio_encoder.name", "audio_encoder.num_heads", "text_encoder.num_attention_heads"),
    *("text_readout", "pooling.num_heads", "pooling.readout"),
)


def build_model(config: Config) -> DualEncoder:
    """The model of `config` with its pretrained weights, or those of train.init_from. Raises
    UserError for absent or unfitting weights.
    """
    text = config.text_encoder
    model = DualEncoder(**_architecture(config, allow_known=False))
    model.text_encoder.tokenizer = load_tokenizer(
        text.name, model.text_encoder.model.config.vocab_size
    )
    if config.train.init_from is not None:
        _start_from(model, config.train.init_from)
    else:
        if config.audio_encoder.checkpoint is not None:
            model.audio_encoder.load_official(config.audio_encoder.checkpoint)
        if text.pretrained:
            model.text_encoder.load_pretrained(text.name)
    for part in _frozen_parts(config):
        model.freeze(part)
    bound_memory(model, config)
    return model


def bound_memory(model: DualEncoder, config: Config) -> None:
    """Set the pooling's settings that a saved model does not hold, since they change no score."""
    for name in model.pooling.runtime_settings:
        setattr(model.pooling, name, getattr(config.pooling, name))


def build_model_without_weights(config: Config) -> DualEncoder:
    """Names and shapes only, on the meta device: for --dry-run. Works without weights, tokenizer
    and, for known names, the hub.
    """
    architecture = _architecture(config, allow_known=True)
    with torch.device("meta"):
        model = DualEncoder(**architecture)
    for part in _frozen_parts(config):
        model.freeze(part)
    return model


def _frozen_parts(config: Config) -> list[str]:
    return [part for part in ("audio_encoder", "text_encoder") if getattr(config, part).frozen]


def _start_from(model: DualEncoder, folder: str) -> None:
    """The weights of another model of one architecture; what the loss learns starts anew where the
    other has none.
    """
    if Path(folder).is_file():
        raise UserError(
            f"train.init_from={folder} is a file, not a model folder; one of salsa becomes a folder"
            " by retrieval.models.pretrained.load_salsa_checkpoint(FILE).save_pretrained(FOLDER)"
        )
    other = DualEncoder.from_pretrained(folder)
    state, own = other.state_dict(), model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    wrong = [
        key
        for key in own
        if shapes.get(key) != tuple(own[key].shape) and not key.startswith("loss_parameters.")
    ]
    wrong += [key for key in state if key not in own and not key.startswith("loss_parameters.")]
    found = (
        f"{len(wrong)} weights do not fit, first {wrong[0]}"
        if wrong
        else _other_function(other.architecture, model.architecture)
    )
    if found:
        raise UserError(
            f"train.init_from={folder} is of another architecture than this configuration: {found};"
            " take audio_encoder, text_encoder, pooling and dim from its config.yaml"
        )
    # a temperature that is not learnt is a setting
    kept = {"temperature"} if not model.temperature.requires_grad else set()
    model.load_state_dict(
        own | {key: value for key, value in state.items() if key in own and key not in kept}
    )


def _other_function(other: dict[str, Any], own: dict[str, Any]) -> str | None:
    """What no shape of a weight says and scores depend on, where two architectures differ in it."""
    other, own = flatten(other), flatten(own)
    for name in SETTINGS_WITHOUT_SHAPES:
        pair = other.get(name), own.get(name)
        if None not in pair and pair[0] != pair[1]:
            return f"its {name} is {pair[0]}, not {pair[1]}"
    return None


def warnings_of(config: Config) -> list[str]:
    """What a configuration asks for in vain, a line each: settings that nothing reads, and frozen
    parts that have learnt nothing.
    """
    pooling, loss = config.pooling, config.loss
    used = {"name", "temperature", "learnable_temperature"}
    used |= (
        {"teachers", "supervised", "distill_weight", "loss_weight"}
        if loss.name == "distillation"
        else set()
    )
    for name in _used_losses(loss):
        used |= set(arguments_of(name))
        used |= {"sentence_encoder"} if "caption_similarity" in arguments_of(name) else set()
    vain = [
        f"loss.{key} has no effect with loss.name={loss.name}"
        for key in sorted(loss.model_fields_set - used)
    ]
    kind = POOLINGS[pooling.name]
    used = {"name", *_accepted(kind, pooling.model_dump()), *kind.runtime_settings}
    vain += [
        f"pooling.{key} has no effect with pooling.name={pooling.name}"
        for key in sorted(pooling.model_fields_set - used)
    ]
    if config.train.init_from is None:
        random = {
            "audio_encoder": config.audio_encoder.checkpoint is None,
            "text_encoder": not config.text_encoder.pretrained,
        }
        vain += [
            f"{part} is frozen with random weights, so that it says nothing of its input"
            for part in _frozen_parts(config)
            if random[part]
        ]
    return vain


def _architecture(config: Config, allow_known: bool) -> dict:
    audio, text = config.audio_encoder, config.text_encoder
    if audio.name not in AUDIO_ENCODERS:
        raise UserError(
            f"audio_encoder.name={audio.name!r} is unknown; there is: {', '.join(AUDIO_ENCODERS)}"
        )
    if config.pooling.name not in POOLINGS:
        raise UserError(
            f"pooling.name={config.pooling.name!r} is unknown; there is: {', '.join(POOLINGS)}"
        )
    for setting, name in (
        ("loss.name", config.loss.name),
        ("loss.supervised", config.loss.supervised),
    ):
        check_loss(name, setting)
    return {
        "audio_encoder": {"name": audio.name} | _audio_arguments(audio),
        "text_encoder": text_architecture(text.name, text.dropout, allow_known),
        # No shape depends on it, and finding it out runs a layer of the model.
        "text_readout": text.readout or ("first" if allow_known else text_readout(text.name)),
        "pooling": (
            {"name": config.pooling.name}
            | _accepted(POOLINGS[config.pooling.name], config.pooling.model_dump())
        ),
        "dim": config.dim,
        "sample_rate": config.data.sample_rate,
        "clip_seconds": config.data.max_seconds,
        "window_seconds": audio.window_seconds,
        "hop_seconds": audio.hop_seconds,
        "max_tokens": text.max_tokens,
        "temperature": config.loss.temperature,
        "learnable_temperature": config.loss.learnable_temperature,
        "loss_parameters": _loss_parameters(config.loss),
    }


def _audio_arguments(settings: AudioEncoderConfig) -> dict:
    """What the YAML says of the encoder itself. Raises UserError for a setting that the encoder
    does not have.
    """
    encoder = AUDIO_ENCODERS[settings.name]
    general = ("name", "checkpoint", "frozen", "window_seconds", "hop_seconds")
    own = {
        key: value
        for key, value in settings.model_dump(exclude=set(general)).items()
        if value is not None
    }
    if unknown := own.keys() - _accepted(encoder, own).keys():
        takes = ", ".join(
            name
            for name in inspect.signature(encoder).parameters
            if name in AudioEncoderConfig.model_fields
        )
        raise UserError(
            f"audio_encoder.{min(unknown)} is no setting of {settings.name}, which has:"
            f" {takes or 'none'}"
        )
    return encoder.constructor_arguments(settings.checkpoint, own)


def _accepted(function: Callable, arguments: dict) -> dict:
    return {
        name: value
        for name, value in arguments.items()
        if name in inspect.signature(function).parameters
    }


def _loss_parameters(settings: LossConfig) -> dict[str, float]:
    return {
        name: getattr(settings, name)
        for name in LEARNABLE
        if any(name in arguments_of(loss) for loss in _used_losses(settings))
    }


def _used_losses(settings: LossConfig) -> list[str]:
    return [settings.name] + (
        [settings.supervised] if settings.name == "distillation" and settings.loss_weight else []
    )
