"""What a configuration would do, without weights: settings, parameters of each group, steps, an
estimate of memory.
"""

from pathlib import Path

import yaml

from retrieval.base.errors import UserError
from retrieval.base.launch import choose_precision
from retrieval.config import Config
from retrieval.data import EpochBatches, check_batch_size, num_steps_per_epoch
from retrieval.models.build import build_model_without_weights, warnings_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.training.optim import parameter_groups
from retrieval.training.splits import open_splits

CLOTHO_PAIRS = 19_195  # 3,839 development clips, five captions each
GIB = 2**30


def describe(config: Config) -> str:
    """The text that `train.py --dry-run` prints. Raises the UserError that the run itself would end
    in, as far as no weights are needed.
    """
    model = build_model_without_weights(config)
    groups = parameter_groups(model, config.optimizer.lr.model_dump())
    lines = [
        yaml.safe_dump(config.model_dump(), sort_keys=False),
        f"{'group':<18} {'parameters':>13} {'learning rate':>14}",
    ]
    total = 0
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        total += count
        lines.append(f"{group['name']:<18} {count:>13,} {group['base_lr']:>14.1e}")
    num_fixed = sum(parameter.numel() for parameter in model.parameters()) - total
    total += num_fixed
    lines += [f"{'fixed':<18} {num_fixed:>13,}"] if num_fixed else []
    lines += [f"{'all':<18} {total:>13,}", "", _steps(config), _memory(config, model, total)]
    lines += [f"warning: {warning}" for warning in warnings_of(config)]
    lines += [f"missing: {file}" for file in missing_files(config)]
    return "\n".join(lines)


def _steps(config: Config) -> str:
    caches = config.train.caches or [config.data.cache]
    try:
        sizes, source = open_splits(config).sizes, ", ".join(caches)
    except UserError as error:
        if len(caches) > 1:
            return f"steps per epoch: not known before the caches are there: {error}"
        num_pairs, source = CLOTHO_PAIRS, f"Clotho, since here: {error}"
    else:
        num_pairs = EpochBatches(
            sizes, config.train.batch_size, config.seed, weights=config.train.cache_weights
        ).num_pairs
        check_batch_size(num_pairs, config.train.batch_size)
    steps = num_steps_per_epoch(num_pairs, config.train.batch_size)
    total = min(steps * config.train.epochs, config.train.max_steps or steps * config.train.epochs)
    return f"steps per epoch: {steps:,}, in all {total:,} ({num_pairs:,} pairs of {source})"


def missing_files(config: Config) -> list[str]:
    """`setting: path` of what the run would read and what is not there; hub names are not looked
    up.
    """
    paths = {
        "data.cache": [config.data.cache],
        "train.caches": config.train.caches,
        "loss.teachers": config.loss.teachers,
    }
    if config.train.init_from is not None:
        paths["train.init_from"] = [config.train.init_from]
    elif config.audio_encoder.name != "huggingface" and config.audio_encoder.checkpoint is not None:
        paths["audio_encoder.checkpoint"] = [config.audio_encoder.checkpoint]
    return [
        f"{setting}: {path}"
        for setting, found in paths.items()
        for path in found
        if not Path(path).exists()
    ]


def _memory(config: Config, model: DualEncoder, num_parameters: int) -> str:
    """Weights, gradients and Adam's two moments exactly; activations by the usual count of what a
    block keeps for backward.

    34 bytes a token, channel and block at 16 bits with fused attention (Korthikanti et al., 2022,
    arXiv 2205.05198), twice that at 32 bits; with train.activation_checkpointing a block's input
    alone (2 and 4 bytes), and one block whole.
    """
    num_trained = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    fixed = num_parameters * 4 + num_trained * 4 * 3
    is_auto = config.train.mixed_precision == "auto"
    # fp16 may be planned where there is no GPU
    precision = choose_precision("auto") if is_auto else config.train.mixed_precision
    per_channel = 68 if precision == "no" else 34
    text, batch, num_frames = (
        model.text_encoder.model.config,
        config.train.batch_size,
        model.windows.num_frames,
    )
    blocks = model.audio_encoder.repeated_blocks()
    parts = [
        (
            model.tokens_per_clip * model.audio_encoder.feature_dim,
            len(blocks) * (not config.audio_encoder.frozen),
        ),
        (
            config.text_encoder.max_tokens * text.hidden_size,
            text.num_hidden_layers * (not config.text_encoder.frozen),
        ),
    ]
    if config.train.activation_checkpointing:
        per_pair = sum(
            channels * (per_channel // 17 * depth + per_channel * bool(depth))
            for channels, depth in parts
        )
    else:
        per_pair = sum(channels * per_channel * depth for channels, depth in parts)
    activations = min(batch, config.train.micro_batch_size or batch) * per_pair
    activations += batch * num_frames * config.dim * 4 * (4 if model.pooling.keeps_frames else 1)
    unknown = (
        ""
        if blocks or config.audio_encoder.frozen
        else f", those of {config.audio_encoder.name} not counted,"
    )
    bits = f"{'32' if per_channel == 68 else '16'} bit{' on this machine' if is_auto else ''}"
    return (
        f"memory, estimated, one process: {fixed / GIB:.1f} GiB weights, gradients and AdamW "
        f"+ about {activations / GIB:.1f} GiB activations{unknown} "
        f"at batch {batch} ({bits}); the measured peak is train/memory_gib in TensorBoard"
    )
