"""Every setting: its default, type, unit and bound, once.

A YAML file holds only what differs from these defaults; `section.key=value` on the command line wins over both.
The defaults are the thesis's baseline (README, "Results"). Nothing here knows about models: builders unpack a Config.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval.errors import UserError


class Section(BaseModel):
    """Frozen group of settings; an unknown key is an error, and so is a boolean where a number is expected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_absent(cls, values: Any) -> Any:
        return {} if values is None else values  # a section whose lines are all commented out

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_not_numbers(cls, values: Any) -> Any:
        # YAML 1.1 reads `yes`, `on`, `no`, `off` as booleans, and pydantic would take True for 1.
        if isinstance(values, dict):
            for key, value in values.items():
                field = cls.model_fields.get(key)
                if isinstance(value, bool) and field is not None and field.annotation is not bool:
                    if key == "mixed_precision" and value is False:
                        values = {**values, key: "no"}
                    else:
                        raise ValueError(f"{key} is read as the boolean {value}: put the value in quotes, or give a number")
        return values


class DataConfig(Section):
    cache: str = Field("data/clotho_v2/cache", description="folder of the Arrow cache, written by data_prep/build_*.py")
    sample_rate: int = Field(32_000, ge=8_000, le=192_000, description="Hz; must be the cache's")
    max_seconds: float = Field(30.0, gt=0, le=600, description="s; longer clips are cut (training: random place, evaluation: start)")
    num_workers: int = Field(4, ge=0, le=128, description="loader processes, at most one a core; 0 loads in the training process")


class AudioEncoderConfig(Section):
    name: str = Field("atst_frame", description="a key of retrieval.models.audio.AUDIO_ENCODERS")
    checkpoint: str | None = Field(None, description="official weight file; none starts from random weights")
    embed_dim: int = Field(768, ge=1, description="size of a frame feature")
    depth: int = Field(12, ge=1, description="number of transformer blocks")
    num_heads: int = Field(12, ge=1, description="attention heads; must divide embed_dim")
    window_seconds: float = Field(10.0, gt=0, description="s; the encoder sees one window at a time")
    hop_seconds: float = Field(10.0, ge=0.01, description="s between the starts of two windows, at most window_seconds")

    @model_validator(mode="after")
    def _heads_divide_embed_dim(self) -> "AudioEncoderConfig":
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        return self

    @model_validator(mode="after")
    def _windows_leave_no_gap(self) -> "AudioEncoderConfig":
        if self.hop_seconds > self.window_seconds:
            raise ValueError(f"hop_seconds {self.hop_seconds} is above window_seconds {self.window_seconds}: the sound between would not be heard")
        return self


class TextEncoderConfig(Section):
    name: str = Field("roberta-large", description="Hugging Face hub name, or a folder with config.json and tokenizer")
    pretrained: bool = Field(True, description="false: the architecture of `name` with random weights")
    dropout: float = Field(0.2, ge=0, lt=1, description="hidden and attention dropout")
    max_tokens: int = Field(32, ge=3, description="longer captions are cut")


class PoolingConfig(Section):
    name: Literal["mean", "tap"] = Field("mean", description="mean of the valid frames, or text-aware attention pooling")
    attention_dim: int = Field(2048, ge=1, description="TAP: size of query, key and value")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="TAP: dropout on the attention weights")
    output_dropout: float = Field(0.0, ge=0, lt=1, description="TAP: dropout on the pooled vector")
    init: Literal["default", "identity"] = Field("default", description="TAP: PyTorch's initialisation, or identity")


class LossConfig(Section):
    name: str = Field("nt_xent", description="a key of retrieval.losses.LOSSES")
    temperature: float = Field(0.05, gt=0, le=10, description="cosines are divided by it")
    learnable_temperature: bool = Field(False, description="trained in the audio projection's parameter group")


class LearningRates(Section):
    audio_encoder: float = Field(2e-5, ge=0, le=1)
    text_encoder: float = Field(2e-5, ge=0, le=1)
    audio_projection: float = Field(2e-5, ge=0, le=1, description="also the learnable temperature's")
    text_projection: float = Field(2e-5, ge=0, le=1)
    pooling: float = Field(2e-5, ge=0, le=1, description="TAP")


class ScheduleConfig(Section):
    shape: Literal["cosine", "linear", "step"] = Field("cosine", description="how the learning rate falls after the warm-up")
    warmup_epochs: float = Field(1.0, ge=0, description="linear from 0")
    rampdown_start: float = Field(1.0, ge=0, description="epoch at which cosine or linear begins to fall")
    rampdown_stop: float = Field(15.0, gt=0, description="epoch from which the learning rate is min_lr")
    min_lr: float = Field(1e-7, ge=0, le=1)
    step_epochs: float = Field(5.0, gt=0, description="step: epochs between two falls, counted from epoch 0")
    step_factor: float = Field(0.5, gt=0, le=1, description="step: factor at each fall")

    @model_validator(mode="after")
    def _stop_after_start(self) -> "ScheduleConfig":
        if self.rampdown_stop <= self.rampdown_start:
            raise ValueError(f"rampdown_stop {self.rampdown_stop} must be above rampdown_start {self.rampdown_start}")
        return self


class OptimizerConfig(Section):
    lr: LearningRates = LearningRates()
    schedule: ScheduleConfig = ScheduleConfig()
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(None, gt=0, description="clip the norm of all gradients to this; none: no clipping")


class TrainConfig(Section):
    output: str = Field("", description="run folder; default: runs/<name of the YAML file>")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(16, ge=2, description="(clip, caption) pairs a step, over all processes together")
    max_steps: int | None = Field(None, ge=1, description="stop after so many optimizer steps; for smoke runs")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the GPU has it, fp16 on older GPUs, no on CPU"
    )
    save_every_steps: int = Field(500, ge=1, description="steps between two resumable states within an epoch")
    log_every_steps: int = Field(10, ge=1, description="steps between two points in TensorBoard")


class EvaluationConfig(Section):
    audio_batch_size: int = Field(16, ge=1, description="clips encoded at once")
    text_batch_size: int = Field(256, ge=1, description="captions encoded at once, and rows of a score block")
    num_pictures: int = Field(4, ge=0, description="caption-clip pairs drawn in TensorBoard after each validation")


class Config(Section):
    seed: int = Field(123, ge=0, lt=2**32)
    dim: int = Field(1024, ge=1, description="size of the shared space")
    data: DataConfig = DataConfig()
    audio_encoder: AudioEncoderConfig = AudioEncoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    pooling: PoolingConfig = PoolingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Defaults <- YAML file <- overrides such as `optimizer.lr.audio_encoder=4e-6`.

    Raises UserError, one line, that names the file or override, the setting and the nearest valid name.
    """
    path = Path(path)
    try:
        settings = read_yaml(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist; the experiments are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise UserError(f"config {path} must be a mapping of sections, found {type(settings).__name__}")
    for override in overrides:
        _apply_override(settings, override)
    if settings.get("train") is None:
        settings["train"] = {}
    if isinstance(settings["train"], dict):
        settings["train"]["output"] = settings["train"].get("output") or f"runs/{path.stem}"
    return parse_config(settings, source=f"config {path}")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that occurs twice is an error: PyYAML would let the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Raises yaml.YAMLError, and ValueError for a date that does not exist."""
    return yaml.load(text, Loader=_Loader)


def parse_config(settings: dict[str, Any], source: str) -> Config:
    """Validate nested `settings`; `source` names their origin in the UserError."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_explain(e) for e in error.errors())) from None


def config_differences(old: Config, new: Config) -> list[str]:
    """`section.key: old -> new` for every setting that differs."""
    before, after = flatten(old.model_dump()), flatten(new.model_dump())
    return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of `section.key` names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _apply_override(settings: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"override {override!r} is not of the form section.key=value, for example train.epochs=5")
    try:
        value = read_yaml(text) if text else ""
    except (yaml.YAMLError, ValueError):
        value = text
    *sections, key = name.split(".")
    for section in sections:
        if settings.get(section) is None:
            settings[section] = {}
        settings = settings[section]
        if not isinstance(settings, dict):
            raise UserError(f"override {override!r}: {section} is a setting, not a section")
    settings[key] = value


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        return f"{name} is not a setting; " + _suggest(location)
    if error["type"] == "model_type":
        return f"{name}={error['input']!r}: {name} is a section with settings of its own, not a value"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{name}: {message}"
    return f"{name}={error['input']!r}: {message[0].lower()}{message[1:]}"


def _suggest(location: list[str]) -> str:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    parent = ".".join(location[:-1])
    matches = difflib.get_close_matches(location[-1], section.model_fields, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {'.'.join([*location[:-1], matches[0]])}?"
    everywhere = difflib.get_close_matches(location[-1], _all_names(), n=1, cutoff=0.75)
    full = _all_names()[everywhere[0]] if everywhere else None
    return f"did you mean {full}?" if full else f"{parent or 'the top level'} holds: {', '.join(section.model_fields)}"


def _all_names() -> dict[str, str]:
    return {name.split(".")[-1]: name for name in reversed(list(flatten(Config().model_dump())))}
