"""Description of a run without weights: settings, parameters, steps, an estimate of memory."""

from pathlib import Path

import yaml

from retrieval.base.checkpoints import hub_name
from retrieval.base.errors import UserError
from retrieval.base.launch import choose_precision
from retrieval.config import Config
from retrieval.data import EpochBatches, check_batch_size, num_steps_per_epoch
from retrieval.models.build import build_model_without_weights, warnings_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.training.optim import parameter_groups
from retrieval.training.services import check_packages
from retrieval.training.splits import open_splits

CLOTHO_PAIRS = 19_195  # 3,839 development clips, five captions each
GIB = 2**30


def describe(config: Config) -> str:
    """Return the text that `train.py --dry-run` prints.

    Raises:
        UserError: The run itself would end in this error, as far as no weights are needed for it.
    """
    check_packages(config.train.tracker)
    model = build_model_without_weights(config)
    lines = [
        yaml.safe_dump(config.model_dump(), sort_keys=False),
        f"{'group':<18} {'parameters':>13} {'learning rate':>14}",
    ]
    num_trained = 0
    for group in parameter_groups(model, config.optimizer.lr.model_dump()):
        count = sum(parameter.numel() for parameter in group["params"])
        num_trained += count
        lines.append(f"{group['name']:<18} {count:>13,} {group['base_lr']:>14.1e}")
    total = sum(parameter.numel() for parameter in model.parameters())
    if num_fixed := total - num_trained:
        lines.append(f"{'fixed':<18} {num_fixed:>13,}")
    lines += [f"{'all':<18} {total:>13,}", "", _steps(config)]
    lines.append(_memory(config, model, total, num_trained))
    lines += [f"warning: {warning}" for warning in warnings_of(config)]
    lines += [f"missing: {file}" for file in missing_files(config)]
    return "\n".join(lines)


def _steps(config: Config) -> str:
    settings = config.train
    caches = settings.caches or [config.data.cache]
    try:
        sizes, source = open_splits(config).sizes, ", ".join(caches)
    except UserError as error:
        if len(caches) > 1:
            return f"steps per epoch: not known before the caches are there: {error}"
        num_pairs, source = CLOTHO_PAIRS, f"Clotho; your cache cannot be used: {error}"
    else:
        weights = settings.cache_weights
        num_pairs = EpochBatches(sizes, settings.batch_size, config.seed, weights=weights).num_pairs
        check_batch_size(num_pairs, settings.batch_size)
    steps = num_steps_per_epoch(num_pairs, settings.batch_size)
    total = min(steps * settings.epochs, settings.max_steps or steps * settings.epochs)
    return f"steps per epoch: {steps:,}, in all {total:,} ({num_pairs:,} pairs of {source})"


def missing_files(config: Config) -> list[str]:
    """List the files that the run would read and that are missing, as `setting: path`.

    Names on the Hugging Face hub are not looked up.
    """
    paths = {
        "data.cache": [config.data.cache],
        "train.caches": config.train.caches,
        "loss.teachers": config.loss.teachers,
    }
    if config.train.init_from is not None:
        if not hub_name(config.train.init_from):
            paths["train.init_from"] = [config.train.init_from]
    elif config.audio_encoder.name != "huggingface" and config.audio_encoder.checkpoint is not None:
        paths["audio_encoder.checkpoint"] = [config.audio_encoder.checkpoint]
    pairs = [(setting, path) for setting, values in paths.items() for path in values]
    return [f"{setting}: {path}" for setting, path in pairs if not Path(path).exists()]


def _memory(config: Config, model: DualEncoder, num_parameters: int, num_trained: int) -> str:
    """Estimate the memory of one process.

    Weights, their average, gradients and Adam's two moments are exact. Activations: a block keeps
    34 bytes per token and channel at 16 bits with fused attention (Korthikanti et al., 2022, arXiv
    2205.05198), twice that at 32 bits. With train.activation_checkpointing it keeps its input (2
    and 4 bytes), and one block at a time keeps all. With LoRA it is an upper bound: a frozen layer
    needs no input of its own for a gradient.
    """
    has_average = config.train.ema_decay is not None
    fixed = num_parameters * 4 + num_trained * 4 * (3 + has_average)
    held = "weights, their average, gradients" if has_average else "weights, gradients"
    is_auto = config.train.mixed_precision == "auto"
    # fp16 may be planned where there is no GPU
    precision = choose_precision("auto") if is_auto else config.train.mixed_precision
    per_channel = 68 if precision == "no" else 34
    batch = config.train.batch_size
    text = model.text_encoder.model.config
    blocks = model.audio_encoder.repeated_blocks()
    # numbers that a layer of each encoder puts out for one pair; layers that keep activations
    audio_row = model.tokens_per_clip * model.audio_encoder.feature_dim
    text_row = config.text_encoder.max_tokens * text.hidden_size
    audio_depth = 0 if config.audio_encoder.frozen else len(blocks)
    text_depth = 0 if config.text_encoder.frozen else text.num_hidden_layers
    per_pair = 0
    for row, depth in ((audio_row, audio_depth), (text_row, text_depth)):
        if config.train.activation_checkpointing:
            per_pair += row * (per_channel // 17 * depth + per_channel * bool(depth))
        else:
            per_pair += row * per_channel * depth
    activations = min(batch, config.train.micro_batch_size or batch) * per_pair
    frames = batch * model.windows.num_frames * config.dim * 4
    activations += frames * (4 if model.pooling.keeps_frames else 1)
    unknown = ""
    if not blocks and not config.audio_encoder.frozen:
        unknown = f", those of {config.audio_encoder.name} not counted,"
    bits = f"{'32' if per_channel == 68 else '16'} bit{' on this machine' if is_auto else ''}"
    return (
        f"memory, estimated, one process: {fixed / GIB:.1f} GiB {held} and AdamW "
        f"+ about {activations / GIB:.1f} GiB activations{unknown} "
        f"at batch {batch} ({bits}); the measured peak is the curve train/memory_gib"
    )
