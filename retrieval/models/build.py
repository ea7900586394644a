"""Build the DualEncoder that a configuration describes."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from retrieval.base.checkpoints import hub_name, is_own_folder
from retrieval.base.errors import UserError
from retrieval.config import AudioEncoderConfig, Config, LossConfig
from retrieval.config.text import flatten
from retrieval.losses import LEARNABLE, arguments_of, check_loss, settings_of
from retrieval.models.audio import AUDIO_ENCODERS
from retrieval.models.dual_encoder import POOLINGS, DualEncoder
from retrieval.models.lora import PARTS, add_lora
from retrieval.models.pretrained.load import load_pretrained, local_checkpoint
from retrieval.models.projection import PROJECTIONS
from retrieval.models.text import load_tokenizer, text_architecture, text_readout

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
    *("text_readout", "text_as_written", "projection.activation"),
    *("pooling.num_heads", "pooling.readout", "pooling.similarity"),
)


def build_model(config: Config) -> DualEncoder:
    """Build the model of `config` with its pretrained weights, or with those of train.init_from.

    Args:
        config: Of retrieval.config.load_config.

    Returns:
        The model in training mode, on the CPU, with its tokenizer and frozen parts.

    Raises:
        UserError: Weights are absent or do not fit, or settings do not fit together.
    """
    config = _with_revisions(config)
    text = config.text_encoder
    model = DualEncoder(**_architecture(config, allow_known=False))
    model.text_encoder.tokenizer = load_tokenizer(
        text.name, model.text_encoder.model.config.vocab_size
    )
    if config.train.init_from is not None:
        _start_from(model, config)
    else:
        if config.audio_encoder.checkpoint is not None:
            model.audio_encoder.load_official(config.audio_encoder.checkpoint)
        if text.pretrained:
            model.text_encoder.load_pretrained(text.name)
    _choose_trained(model, config)
    bound_memory(model, config)
    return model


def _with_revisions(config: Config) -> Config:
    """Replace encoder names of the form user/name@revision by the folders of their downloads."""

    def place(name: str | None) -> str | None:
        found = hub_name(name) if name else None
        return str(local_checkpoint(name)) if found and found.revision else name

    audio, text = config.audio_encoder, config.text_encoder
    return config.model_copy(
        update={
            "audio_encoder": audio.model_copy(update={"checkpoint": place(audio.checkpoint)}),
            "text_encoder": text.model_copy(update={"name": place(text.name)}),
        }
    )


def bound_memory(model: DualEncoder, config: Config) -> None:
    """Set the pooling's settings that a saved model does not hold, since they change no score."""
    for name in model.pooling.runtime_settings:
        setattr(model.pooling, name, getattr(config.pooling, name))


def build_model_without_weights(config: Config) -> DualEncoder:
    """Build names and shapes only, on the meta device: for --dry-run.

    It works without weights and tokenizer and, for known names, without the hub. A train.init_from
    on this machine is compared with the configuration.
    """
    architecture = _architecture(config, allow_known=True)
    with torch.device("meta"):
        model = DualEncoder(**architecture)
    if config.train.init_from is not None and Path(config.train.init_from).exists():
        _model_to_start_from(model, config)
    with torch.device("meta"):
        _choose_trained(model, config, has_weights=False)
    return model


def _choose_trained(model: DualEncoder, config: Config, has_weights: bool = True) -> None:
    """Freeze the frozen encoders, and add the adapters of those with LoRA.

    has_weights: False for a model on the meta device.
    """
    for part in PARTS:
        if getattr(config, part).frozen:
            model.freeze(part)
        lora = getattr(config, part).lora
        if lora is not None:
            settings = lora.model_dump(exclude={"save"})
            base = _base_of(config, part) if lora.save == "adapter" else None
            settings["base"] = base if has_weights else None
            model.adapters[part] = add_lora(getattr(model, part), part, **settings)
    if config.moment_head is not None:
        # the loss of moments uses neither of them
        model.temperature.requires_grad_(False)
        model.loss_parameters.requires_grad_(False)
        if config.audio_encoder.frozen and config.text_encoder.frozen:
            # only the head learns: retrieval by this model stays as it is, to the bit
            for part in ("audio_projection", "text_projection", "pooling"):
                model.freeze(part)


def _base_of(config: Config, part: str) -> tuple[str, str]:
    """Return name and kind of retrieval.models.lora.Base, which a saved adapter is loaded beside.

    Raises:
        UserError: The encoder starts from random weights, which cannot be loaded again.
    """
    if config.train.init_from is not None:
        return config.train.init_from, "model"
    name = config.audio_encoder.checkpoint
    if part == "text_encoder":
        name = config.text_encoder.name if config.text_encoder.pretrained else None
    if name is None:
        raise UserError(
            f"{part}.lora.save=adapter: the encoder starts from random weights, which are not saved"
            " with an adapter; set its pretrained weights, or save=merged"
        )
    return name, "encoder"


def _start_from(model: DualEncoder, config: Config) -> None:
    """Load the weights of train.init_from. Raises UserError if they do not fit."""
    other = _model_to_start_from(model, config)
    state, own = other.state_dict(), model.state_dict()
    # Keep this run's own temperature unless it is learnt; one learnt for another pooling does not
    # fit its scores.
    if not model.temperature.requires_grad or type(model.pooling) is not type(other.pooling):
        del state["temperature"]
    model.load_state_dict(own | {key: value for key, value in state.items() if key in own})


def _model_to_start_from(model: DualEncoder, config: Config) -> DualEncoder:
    """Return the model of train.init_from.

    Parameters of the loss and a moment head may be missing there or here, and a pooling without
    weights (average, mean) may be replaced by another. Raises UserError if the architecture differs
    otherwise.
    """
    other = load_pretrained(config.train.init_from, config.text_encoder.name)
    state, own = other.state_dict(), model.state_dict()
    is_new_pooling = not other.pooling.state_dict()
    # parts that one of the two may lack
    optional = ("loss_parameters.", "moment_head.", *(["pooling."] if is_new_pooling else []))
    wrong = [
        key
        for key in own | state
        if key in own and key in state
        if own[key].shape != state[key].shape
    ]
    wrong += [key for key in own.keys() ^ state.keys() if not key.startswith(optional)]
    found = [f"{len(wrong)} weights do not fit, first {wrong[0]}"] if wrong else []
    theirs, ours = flatten(other.architecture), flatten(model.architecture)
    found += [
        f"its {name} is {theirs[name]}, not {ours[name]}"
        for name in SETTINGS_WITHOUT_SHAPES
        if None not in (theirs.get(name), ours.get(name)) and theirs[name] != ours[name]
    ]
    readouts = [flat.get("audio_encoder.readout") or "frames" for flat in (theirs, ours)]
    if readouts[0] != readouts[1] and type(model.pooling) is type(other.pooling):
        found.append(f"its audio_encoder.readout is {readouts[0]}, not {readouts[1]}")
    if found:
        raise UserError(
            f"train.init_from={config.train.init_from} is of another architecture than this"
            f" configuration: {found[0]}; {_settings_of(other, config)}"
        )
    return other


def _settings_of(model: DualEncoder, config: Config) -> str:
    """Return advice for a configuration that does not fit `model`."""
    place = Path(config.train.init_from)
    is_pretrained = "readout" in model.architecture["audio_encoder"]
    if not is_pretrained or place.is_file() or is_own_folder(place):
        return (
            "take audio_encoder, text_encoder, projection, pooling and dim from the config.yaml of"
            " its run, or the config.json of its folder"
        )
    built, start = model.architecture, config.train.init_from
    needed = {
        "audio_encoder.name": "huggingface",
        "audio_encoder.checkpoint": start,
        "audio_encoder.readout": built["audio_encoder"]["readout"],
        "text_encoder.name": start,
        "text_encoder.readout": built["text_readout"],
        "text_encoder.as_written": True,
        "projection.name": built["projection"]["name"],
        "dim": built["dim"],
    }
    if config.pooling.name == built["pooling"]["name"]:
        needed["pooling.similarity"] = built["pooling"]["similarity"]
    given = flatten(config.model_dump())
    wrong = [f"{name}={value}" for name, value in needed.items() if given[name] != value]
    return f"set {' '.join(wrong)}" if wrong else "name one model in all three settings"


def warnings_of(config: Config) -> list[str]:
    """Return a line for each setting without effect and each frozen part with random weights."""
    pooling, loss = config.pooling, config.loss
    used = LossConfig.of_all.union(*map(settings_of, _used_losses(loss)))
    found = [
        f"loss.{key} has no effect with loss.name={loss.name}"
        for key in sorted(loss.model_fields_set - used)
    ]
    kind = POOLINGS[pooling.name]
    used = {"name", *_accepted(kind, pooling.model_dump()), *kind.runtime_settings}
    found += [
        f"pooling.{key} has no effect with pooling.name={pooling.name}"
        for key in sorted(pooling.model_fields_set - used)
    ]
    projection = config.projection
    taken = _accepted(PROJECTIONS[projection.name], projection.model_dump())
    found += [
        f"projection.{key} has no effect with projection.name={projection.name}"
        for key in sorted(projection.model_fields_set - {"name"})
        if key not in taken
    ]
    if kind.keeps_frames and config.audio_encoder.readout == "pooled":
        found.append(
            f"pooling.name={pooling.name} sees equal copies of one vector per window with"
            " audio_encoder.readout=pooled; set it to frames"
        )
    if config.train.init_from is None:
        is_random = {
            "audio_encoder": config.audio_encoder.checkpoint is None,
            "text_encoder": not config.text_encoder.pretrained,
        }
        found += [
            f"{part} is frozen with random weights, so its output is useless"
            for part in PARTS
            if getattr(config, part).frozen and is_random[part]
        ]
        found += [
            f"{part}.lora adapts random weights, which stay as they are"
            for part in PARTS
            if getattr(config, part).lora is not None and is_random[part]
        ]
    return found


def _architecture(config: Config, allow_known: bool) -> dict[str, Any]:
    """Return the arguments of DualEncoder. Raises UserError for unknown names and settings.

    allow_known: use retrieval.models.text.KNOWN_ARCHITECTURES if the hub is out of reach.
    """
    audio, text, pooling, loss = (
        config.audio_encoder,
        config.text_encoder,
        config.pooling,
        config.loss,
    )
    head = config.moment_head
    for setting, name, known in (
        ("audio_encoder.name", audio.name, AUDIO_ENCODERS),
        ("pooling.name", pooling.name, POOLINGS),
        ("projection.name", config.projection.name, PROJECTIONS),
    ):
        if name not in known:
            raise UserError(f"{setting}={name!r} is unknown; there is: {', '.join(known)}")
    check_loss(loss.name, "loss.name")
    check_loss(loss.supervised, "loss.supervised")
    learnable = [
        name for name in LEARNABLE if any(name in arguments_of(used) for used in _used_losses(loss))
    ]
    return {
        "audio_encoder": {"name": audio.name} | _audio_arguments(audio),
        "text_encoder": text_architecture(text.name, text.dropout, allow_known),
        # No shape depends on the readout, and finding it out runs a layer of the model.
        "text_as_written": text.as_written,
        "text_readout": text.readout or ("first" if allow_known else text_readout(text.name)),
        "pooling": {"name": pooling.name} | _accepted(POOLINGS[pooling.name], pooling.model_dump()),
        "projection": {"name": config.projection.name}
        | _accepted(PROJECTIONS[config.projection.name], config.projection.model_dump()),
        "dim": config.dim,
        "sample_rate": config.data.sample_rate,
        "clip_seconds": config.data.max_seconds,
        "window_seconds": audio.window_seconds,
        "hop_seconds": audio.hop_seconds,
        "max_tokens": text.max_tokens,
        "temperature": loss.temperature,
        "learnable_temperature": loss.learnable_temperature,
        "loss_parameters": {name: getattr(loss, name) for name in learnable},
        "moment_head": None if head is None else head.model_dump(include=set(head.of_model)),
    }


def _audio_arguments(settings: AudioEncoderConfig) -> dict[str, Any]:
    """Return the arguments of the encoder. Raises UserError for a setting that it does not have."""
    encoder = AUDIO_ENCODERS[settings.name]
    own = {
        key: value
        for key, value in settings.model_dump(exclude=set(settings.of_all)).items()
        if value is not None
    }
    if unknown := own.keys() - _accepted(encoder, own).keys():
        takes = [
            name
            for name in inspect.signature(encoder).parameters
            if name in AudioEncoderConfig.model_fields
        ]
        raise UserError(
            f"audio_encoder.{min(unknown)} is not a setting of {settings.name}, which has:"
            f" {', '.join(takes) or 'none'}"
        )
    return encoder.constructor_arguments(settings.checkpoint, own)


def _accepted(function: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that `function` has by name."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def _used_losses(settings: LossConfig) -> list[str]:
    if settings.name == "distillation" and settings.loss_weight:
        return [settings.name, settings.supervised]
    return [settings.name]
