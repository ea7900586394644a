"""Every setting: its default, type, unit and bound, once.

A YAML file holds only settings that differ from these defaults. `section.key=value` on the command
line wins over both. The defaults are the thesis's baseline (README, "Results"). Nothing here knows
about models: builders unpack a Config.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from retrieval.base.errors import UserError, expand_home
from retrieval.config.text import apply_override, explain, flatten, read_yaml_file

# A path or a hub name. A leading `~` is expanded at once, so that config.yaml means the same for
# every user.
UserPath = Annotated[str, AfterValidator(expand_home)]

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


def _tracker_names(value: Any) -> Any:
    """Accept one name, several, or none; each counts once."""
    if value is None or value == "none":
        return []
    names = value if isinstance(value, list) else [value]
    return [name for place, name in enumerate(names) if name not in names[:place]]


class Section(BaseModel):
    """Frozen group of settings. Unknown keys, and booleans in place of numbers, are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_absent(cls, values: Any) -> Any:
        return {} if values is None else values  # a section whose lines are all commented out

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_not_numbers(cls, values: Any) -> Any:
        # YAML 1.1 reads `yes`, `on`, `no`, `off` as booleans, and pydantic would take True for 1.
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        for key in [key for key in values if key in fields and isinstance(values[key], bool)]:
            kind = fields[key].annotation
            if bool in (kind, *get_args(kind)):
                continue
            if key != "mixed_precision" or values[key]:
                raise ValueError(
                    f"{key} is read as the boolean {values[key]}: put the value in quotes, or give"
                    " a number"
                )
            values = {**values, key: "no"}
        return values


class DataConfig(Section):
    """Sources of sounds and captions."""

    cache: UserPath = Field(
        "data/clotho_v2/cache",
        description="folder of the Arrow cache, written by data_prep/build_*.py",
    )
    sample_rate: int = Field(32_000, ge=8_000, le=192_000, description="Hz; must be the cache's")
    max_seconds: float = Field(
        30.0,
        gt=0,
        le=600,
        description="s; longer clips are cut (training: random place, evaluation: start)",
    )
    frame_cache: UserPath | None = Field(
        None,
        description=(
            "folder of the cached outputs of frozen encoders, one per clip (its start) or caption"
        ),
    )
    num_workers: int = Field(
        4,
        ge=0,
        le=128,
        description="loader processes, at most one per core; 0 loads in the training process",
    )


class AugmentationConfig(Section):
    """Random changes of sounds in training. All are off by default."""

    probability: float = Field(
        0.5, ge=0, le=1, description="probability of each change of the waveform, for each clip"
    )
    gain_db: float = Field(0.0, ge=0, le=60, description="dB; louder or softer by up to this")
    noise_snr_db: float | None = Field(
        None,
        ge=-20,
        le=100,
        description="dB; white noise at a signal-to-noise ratio from this to 30 dB above",
    )
    shift_seconds: float = Field(0.0, ge=0, description="s; the clip is rotated by up to this")
    pitch_semitones: float = Field(0.0, ge=0, le=24, description="semitones up or down, at most")
    stretch: float = Field(0.0, ge=0, lt=0.9, description="faster or slower by up to this fraction")
    mask_mels: int = Field(0, ge=0, description="mel bands that SpecAugment hides at most")
    mask_columns: int = Field(
        0, ge=0, description="spectrogram columns that SpecAugment hides at most in a window"
    )
    warp_mels: float = Field(
        0.0, ge=0, le=0.5, description="frequency axis bent by up to this fraction of its length"
    )
    mix_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of mixing a clip with another one, captions joined",
    )

    @property
    def waveform(self) -> dict[str, Any]:
        """Settings that change waveforms."""
        level = {"probability", "gain_db", "noise_snr_db"}
        return self.model_dump(include=level | {"shift_seconds", "pitch_semitones", "stretch"})

    @property
    def mel(self) -> dict[str, Any]:
        """Settings that change spectrograms."""
        return self.model_dump(include={"mask_mels", "mask_columns", "warp_mels"})


class LoraConfig(Section):
    """Low-rank adapters beside the layers of an encoder, whose own weights stay (package peft)."""

    rank: int = Field(16, ge=1, description="rank of the change of a layer's weights")
    alpha: int = Field(32, ge=1, description="the change is multiplied by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="on the input of an adapter")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description=(
            "last parts of the names of the layers, or all-linear; none: the attention's query and"
            " value"
        ),
    )
    save: Literal["merged", "adapter"] = Field(
        "merged",
        description=(
            "best and last: ordinary models, or adapters that need the encoder's own weights again"
        ),
    )


LORA = "no LoRA by default; {}, or settings of it: the encoder's own weights stay, adapters learn"


class AudioEncoderConfig(Section):
    """Settings of the audio encoder; those that the named encoder does not have must stay none."""

    # Read by name; all others are arguments of the encoder's constructor.
    of_all: ClassVar = frozenset(
        {"name", "checkpoint", "frozen", "lora", "window_seconds", "hop_seconds"}
    )

    name: str = Field("atst_frame", description="a key of retrieval.models.audio.AUDIO_ENCODERS")
    checkpoint: UserPath | None = Field(
        None,
        description=(
            "official weight file (huggingface: hub name or folder); none starts from random"
            " weights"
        ),
    )
    frozen: bool = Field(
        False, description="keep the weights: eval mode, no gradient, no optimizer state"
    )
    lora: LoraConfig | None = Field(None, description=LORA)
    window_seconds: float = Field(
        10.0, gt=0, description="s; the encoder sees one window at a time"
    )
    hop_seconds: float = Field(
        10.0, ge=0.01, description="s between the starts of two windows, at most window_seconds"
    )
    readout: Literal["frames", "pooled"] | None = Field(
        None,
        description="huggingface: frames, or the vector that CLAP or PE-Audio give a whole window",
    )
    embed_dim: int | None = Field(None, ge=1, description="ATST, PaSST: size of a frame feature")
    depth: int | None = Field(None, ge=1, description="ATST, PaSST: number of transformer blocks")
    num_heads: int | None = Field(
        None, ge=1, description="ATST, PaSST: attention heads; must divide embed_dim"
    )
    width: float | None = Field(None, gt=0, le=8, description="EfficientAT: width multiplier")
    sequence: bool | None = Field(
        None, description="PaSST, EfficientAT: frames, or one vector per window"
    )
    patchout_time: int | None = Field(
        None, ge=0, description="PaSST: columns of patches dropped in training"
    )
    patchout_frequency: int | None = Field(
        None, ge=0, description="PaSST: rows of patches dropped in training"
    )
    mel_jitter: bool | None = Field(
        None, description="PaSST, EfficientAT: draw the mel bank's borders anew in training"
    )

    @model_validator(mode="after")
    def _frozen_or_lora(self) -> "AudioEncoderConfig":
        _check_frozen_or_lora(self)
        return self

    @model_validator(mode="after")
    def _heads_divide_embed_dim(self) -> "AudioEncoderConfig":
        if self.embed_dim and self.num_heads and self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        return self

    @model_validator(mode="after")
    def _windows_leave_no_gap(self) -> "AudioEncoderConfig":
        if self.hop_seconds > self.window_seconds:
            raise ValueError(
                f"hop_seconds {self.hop_seconds} is above window_seconds {self.window_seconds}: the"
                " sound between would not be heard"
            )
        return self


class TextEncoderConfig(Section):
    """Settings of the text encoder, a Hugging Face model."""

    name: UserPath = Field(
        "roberta-large",
        description="Hugging Face hub name, or a folder with config.json and tokenizer",
    )
    pretrained: bool = Field(
        True, description="false: the architecture of `name` with random weights"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="hidden and attention dropout")
    max_tokens: int = Field(32, ge=3, description="longer captions are cut")
    readout: Literal["first", "mean", "last", "pooled"] | None = Field(
        None,
        description=(
            "token 0, mean, last token, or the model's own pooler; none: as the model was trained"
        ),
    )
    as_written: bool = Field(
        False, description="keep the captions' capitals and punctuation, as CLAP and PE-Audio do"
    )
    frozen: bool = Field(
        False, description="keep the weights: eval mode, no gradient, no optimizer state"
    )
    lora: LoraConfig | None = Field(None, description=LORA)

    @model_validator(mode="after")
    def _frozen_or_lora(self) -> "TextEncoderConfig":
        _check_frozen_or_lora(self)
        return self


def _check_frozen_or_lora(encoder: AudioEncoderConfig | TextEncoderConfig) -> None:
    if encoder.frozen and encoder.lora is not None:
        raise ValueError(
            "frozen=true and lora exclude each other: LoRA keeps the encoder's own weights, too;"
            " leave frozen out, or lora"
        )


class ProjectionConfig(Section):
    """Projections of both encoders' outputs into the shared space."""

    name: str = Field("linear", description="a key of retrieval.models.projection.PROJECTIONS")
    activation: str = Field("relu", description="mlp: between its two linear maps")


class PoolingConfig(Section):
    """Pooling of the frames of a clip to one vector for each text."""

    name: str = Field("mean", description="a key of retrieval.models.dual_encoder.POOLINGS")
    similarity: Literal["cosine", "dot"] = Field(
        "cosine", description="average: scores are cosines, or dot products as in PE-Audio"
    )
    attention_dim: int = Field(2048, ge=1, description="TAP: size of query, key and value")
    attention_dropout: float = Field(
        0.1, ge=0, lt=1, description="TAP: dropout on the attention weights"
    )
    output_dropout: float = Field(0.0, ge=0, lt=1, description="TAP: dropout on the pooled vector")
    init: Literal["default", "identity"] = Field(
        "default", description="TAP: PyTorch's initialisation, or identity"
    )
    block_elements: int = Field(
        2**22,
        ge=1,
        description=(
            "TAP: numbers held for one block of (text, audio) pairs while scoring; bounds memory"
        ),
    )
    num_layers: int = Field(1, ge=1, description="transformer: number of layers")
    num_heads: int = Field(
        8, ge=1, description="transformer: attention heads; must divide the size of a frame feature"
    )
    readout: Literal["first", "mean"] = Field(
        "first", description="transformer: the learned token, or the mean of the frames"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="transformer: dropout within the layers")


class MomentHeadConfig(Section):
    """The moment head, and its training: when in a clip a text is heard (docs/moments.md)."""

    of_model: ClassVar = frozenset({"hidden", "kernel", "step_seconds", "dropout"})

    hidden: int = Field(64, ge=1, le=4096, description="size of a step within the head")
    kernel: int = Field(9, ge=1, le=99, description="steps that a convolution sees; odd")
    step_seconds: float = Field(
        0.16, gt=0, le=60, description="s; frames are averaged to steps of this length"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="after each convolution")
    dice_weight: float = Field(
        0.5, ge=0, description="weight of the dice loss beside the binary cross-entropy"
    )
    negatives: float = Field(
        0.25, ge=0, lt=1, description="share of the pairs that ask for a query of another clip"
    )


class LossConfig(Section):
    """The function of the scores that training minimises, and its settings."""

    # Read by name; all others are arguments of a loss, or give one of its targets.
    of_all: ClassVar = frozenset({"name", "temperature", "learnable_temperature"})

    name: str = Field("nt_xent", description="a key of retrieval.losses.LOSSES")
    temperature: float = Field(0.05, gt=0, le=10, description="cosines are divided by it")
    learnable_temperature: bool = Field(
        False,
        description=(
            "trained in the audio projection's parameter group; starts from train.init_from's"
        ),
    )
    margin: float = Field(1.0, gt=0, description="triplet: in units of cosine / temperature")
    omega: float = Field(10.0, ge=0, description="pmr: sharpness of the prior, on cosines")
    prior_axis: Literal["cross", "same"] = Field(
        "cross",
        description="pmr: the prior of the other direction, as in dual softmax, or of the same",
    )
    scale: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="sigmoid: start of t; logits are cosine / temperature * exp(t) + bias",
    )
    bias: float = Field(-10.0, description="sigmoid: start of the bias")
    sentence_encoder: UserPath = Field(
        "sentence-transformers/all-mpnet-base-v2",
        description="listnet: hub name or folder; compares captions",
    )
    teachers: list[UserPath] = Field(
        [],
        description=(
            "distillation: folders that evaluate.py --split development --save-scores wrote"
        ),
    )
    supervised: str = Field(
        "nt_xent", description="distillation: the loss that is added with loss_weight"
    )
    loss_weight: float = Field(0.0, ge=0, description="distillation: weight of the supervised loss")
    distill_weight: float = Field(
        1.0, ge=0, description="distillation: weight of the distillation loss"
    )

    @model_validator(mode="after")
    def _teachers_differ(self) -> "LossConfig":
        if len({Path(teacher).resolve() for teacher in self.teachers}) < len(self.teachers):
            raise ValueError(
                "teachers names a folder twice; their scores are averaged, so name each once"
            )
        return self

    @model_validator(mode="after")
    def _distillation_has_teachers(self) -> "LossConfig":
        if self.name == "distillation" and not self.teachers:
            raise ValueError(
                "distillation needs teachers: list the folders that evaluate.py --split development"
                " --save-scores wrote"
            )
        if self.supervised == "distillation":
            raise ValueError(
                "supervised is the loss beside the distillation, so not distillation itself"
            )
        if self.teachers and self.name != "distillation":
            raise ValueError(
                f"teachers have no effect with {self.name}; set loss.name=distillation"
            )
        if self.name == "distillation" and not self.loss_weight + self.distill_weight:
            raise ValueError("loss_weight and distill_weight are both 0: nothing would be learnt")
        return self


class LearningRates(Section):
    """Base learning rate of each parameter group."""

    audio_encoder: float = Field(2e-5, ge=0, le=1)
    text_encoder: float = Field(2e-5, ge=0, le=1)
    audio_projection: float = Field(
        2e-5, ge=0, le=1, description="also the learnable temperature's"
    )
    text_projection: float = Field(2e-5, ge=0, le=1)
    pooling: float = Field(2e-5, ge=0, le=1, description="TAP, transformer")
    loss: float = Field(
        1e-1, ge=0, le=1, description="learnable scale and bias of the sigmoid loss"
    )
    moment_head: float = Field(1e-3, ge=0, le=1)


class ScheduleConfig(Section):
    """Course of the learning rates over the epochs."""

    shape: Literal["cosine", "linear", "step"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    warmup_epochs: float = Field(1.0, ge=0, description="linear from 0")
    rampdown_start: float = Field(
        1.0, ge=0, description="epoch at which cosine or linear begins to fall"
    )
    rampdown_stop: float = Field(
        15.0, gt=0, description="epoch from which the learning rate is min_lr"
    )
    min_lr: float = Field(1e-7, ge=0, le=1)
    step_epochs: float = Field(
        5.0, gt=0, description="step: epochs between two falls, counted from epoch 0"
    )
    step_factor: float = Field(0.5, gt=0, le=1, description="step: factor at each fall")

    @model_validator(mode="after")
    def _stop_after_start(self) -> "ScheduleConfig":
        if self.rampdown_stop <= self.rampdown_start:
            raise ValueError(
                f"rampdown_stop {self.rampdown_stop} must be above rampdown_start"
                f" {self.rampdown_start}"
            )
        return self


class OptimizerConfig(Section):
    """Settings of AdamW."""

    lr: LearningRates = LearningRates()
    schedule: ScheduleConfig = ScheduleConfig()
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(
        None, gt=0, description="clip the norm of all gradients to this; none: no clipping"
    )


class TrainConfig(Section):
    """Course of a run: folders, batches, precision, states."""

    output: UserPath = Field("", description="run folder; default: runs/<name of the YAML file>")
    init_from: UserPath | None = Field(
        None,
        description=(
            "checkpoint of any kind whose weights a run starts from: a model folder, a CLAP or"
            " PE-Audio of the hub, a .ckpt of salsa"
        ),
    )
    caches: list[UserPath] = Field(
        [],
        description=(
            "train on the development splits of these; data.cache then gives validation and"
            " evaluation only"
        ),
    )
    cache_weights: list[float] = Field(
        [], description="how often an epoch goes through the pairs of each cache; none: once"
    )
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(
        16, ge=2, description="(clip, caption) pairs per step, over all processes together"
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description=(
            "pairs that a process encodes at once, all negatives kept; none: its whole share"
        ),
    )
    activation_checkpointing: bool = Field(
        False, description="compute the encoders' blocks again in the backward pass, to save memory"
    )
    compile: bool = Field(
        False,
        description=(
            "torch.compile for the encoders' blocks: a minute or more at the start, faster steps"
        ),
    )
    max_steps: int | None = Field(
        None, ge=1, description="stop after so many optimizer steps; for smoke runs"
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the GPU has it, fp16 on older GPUs, no on CPU"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description=(
            "stop after so many epochs without a better validation mAP@10 (moments: R1@0.7); none:"
            " train all epochs"
        ),
    )
    validate_first: bool = Field(
        False,
        description="validate before the first step too, as epoch 0, which may become the best",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "validate and save an exponential moving average of the trained weights, such as"
            " 0.999; none: the weights themselves"
        ),
    )
    save_every_steps: int = Field(
        500, ge=1, description="steps between two resumable states within an epoch"
    )
    log_every_steps: int = Field(10, ge=1, description="steps between two points of a curve")
    tracker: Annotated[list[TrackerName], BeforeValidator(_tracker_names)] = Field(
        ["tensorboard"],
        description="where curves and metrics go: one of these names, a list of them, or none",
    )

    @model_validator(mode="after")
    def _one_way_to_compute_again(self) -> "TrainConfig":
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "compile and activation_checkpointing exclude each other (PyTorch 2.11 cannot have"
                " both); switch one off"
            )
        return self

    @model_validator(mode="after")
    def _a_weight_for_each_cache(self) -> "TrainConfig":
        if len({Path(cache).resolve() for cache in self.caches}) < len(self.caches):
            raise ValueError(
                "caches names one twice, whose clips would be their own negatives; give it a weight"
                " in cache_weights"
            )
        if self.cache_weights and len(self.cache_weights) != len(self.caches):
            raise ValueError(
                f"cache_weights has {len(self.cache_weights)} numbers for {len(self.caches)}"
                " caches; give one each"
            )
        if any(weight <= 0 for weight in self.cache_weights):
            raise ValueError(
                "cache_weights must be above 0; leave a cache out of train.caches instead"
            )
        return self


class EvaluationConfig(Section):
    """Sizes of validation and evaluation."""

    audio_batch_size: int = Field(16, ge=1, description="clips encoded at once")
    text_batch_size: int = Field(256, ge=1, description="captions encoded at once")
    bf16_validation: bool = Field(
        False,
        description=(
            "compute validation scores in bf16: faster on processors with fast bf16 products;"
            " scores differ by up to 0.001. Final scores and evaluate.py stay in float32"
        ),
    )
    num_pictures: int = Field(
        4,
        ge=0,
        description="caption-clip pairs drawn for TensorBoard and wandb after each validation",
    )


class Config(Section):
    """All settings of a run."""

    seed: int = Field(123, ge=0, lt=2**32)
    dim: int = Field(1024, ge=1, description="size of the shared space")
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    audio_encoder: AudioEncoderConfig = AudioEncoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    projection: ProjectionConfig = ProjectionConfig()
    pooling: PoolingConfig = PoolingConfig()
    moment_head: MomentHeadConfig | None = Field(
        None,
        description=(
            "none: the run learns retrieval; {}, or settings of it: the run learns moments from the"
            " cache's times"
        ),
    )
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _times_stay_true(self) -> "Config":
        if self.moment_head is None:
            return self
        moving = ("shift_seconds", "stretch", "mix_probability")
        for name in moving:
            if getattr(self.augmentation, name):
                raise ValueError(
                    f"augmentation.{name} moves sounds away from their times, which moment_head"
                    f" learns; set augmentation.{name}=0"
                )
        return self

    @model_validator(mode="after")
    def _cached_frames_do_not_change(self) -> "Config":
        if self.data.frame_cache is None:
            return self
        if self.audio_encoder.lora is not None:
            raise ValueError(
                "data.frame_cache holds the frames of an encoder that does not learn, and"
                " audio_encoder.lora lets it learn; leave one of them out"
            )
        if not self.audio_encoder.frozen:
            raise ValueError(
                "data.frame_cache holds the frames of an encoder that does not learn; set"
                " audio_encoder.frozen=true, or no frame_cache"
            )
        neutral = AugmentationConfig(probability=self.augmentation.probability)
        if self.augmentation != neutral:
            raise ValueError(
                "data.frame_cache holds the frames of unchanged sounds; switch augmentation off, or"
                " set no frame_cache"
            )
        return self


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read the settings of a run: defaults, then the YAML file, then overrides.

    Args:
        path: YAML file with the settings that differ from the defaults.
        overrides: Settings that win over both, such as `optimizer.lr.audio_encoder=4e-6`.

    Returns:
        The frozen settings. `train.output` is `runs/<name of the file>` unless it is set.

    Raises:
        UserError: One line that names the file or override, the setting and the nearest valid name.
    """
    path = Path(path)
    try:
        settings = read_yaml_file(path, f"config {path}") or {}
    except FileNotFoundError:
        raise UserError(f"config {path} does not exist; the experiments are in configs/") from None
    if not isinstance(settings, dict):
        raise UserError(
            f"config {path} must be a mapping of sections, found {type(settings).__name__}"
        )
    for override in overrides:
        apply_override(settings, override)
    if settings.get("train") is None:
        settings["train"] = {}
    if isinstance(settings["train"], dict):
        settings["train"]["output"] = settings["train"].get("output") or f"runs/{path.stem}"
    return parse_config(settings, source=f"config {path}")


def parse_config(settings: dict[str, Any], source: str) -> Config:
    """Validate nested `settings`; `source` names their origin in the UserError."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error.errors(), Config)}") from None


def read_config(run: Path) -> Config:
    """Read RUN/config.yaml, which holds every setting of a run.

    Args:
        run: The run folder.

    Raises:
        UserError: The file is absent, cannot be read, or holds no valid settings.
    """
    path = run / "config.yaml"
    try:
        settings = read_yaml_file(path, str(path))
        if not settings:
            raise UserError(f"{path} cannot be read (it holds no settings)")
    except (UserError, FileNotFoundError) as error:
        raise UserError(
            f"{error}; it is written when a run starts: put back its copy, or train again"
        ) from None
    return parse_config(settings, source=str(path))


def config_differences(old: Config, new: Config) -> list[str]:
    """Return a line `section.key: old -> new` for every setting that differs."""
    before, after = flatten(old.model_dump()), flatten(new.model_dump())
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in before | after  # an optional section has its settings only where it is set
        if before.get(key) != after.get(key)
    ]
