"""Description of a run without weights: settings, parameters, steps, an estimate of memory."""

from pathlib import Path

import yaml

from retrieval.base.checkpoints import hub_name
from retrieval.base.errors import UserError, one_line
from retrieval.base.launch import choose_precision
from retrieval.base.matrix_products import fastest_product
from retrieval.config import Config
from retrieval.data import EpochBatches, check_batch_size, num_steps_per_epoch
from retrieval.models.build import build_model_without_weights, warnings_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.training.optim import parameter_groups
from retrieval.training.services import check_packages
from retrieval.training.splits import open_splits
from retrieval.training.step_memory import step_memory

CLOTHO_PAIRS = 19_195  # 3,839 development clips, five captions each
GIB = 2**30
PRODUCT_SIZE = 1024


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
    lines.append(_memory(config, model))
    lines += _bf16_on_cpu(config)
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


def _memory(config: Config, model: DualEncoder) -> str:
    """Estimate the memory of one process; `model` cannot be used afterwards."""
    import torch

    is_auto = config.train.mixed_precision == "auto"
    # fp16 may be planned where there is no GPU
    precision = choose_precision("auto") if is_auto else config.train.mixed_precision
    bits = f"{'32' if precision == 'no' else '16'} bit{' on this machine' if is_auto else ''}"
    size = f"at batch {config.train.batch_size} ({bits})"
    on_gpu = torch.cuda.is_available() or precision != "no"
    try:
        memory = step_memory(config, model, precision, on_gpu=on_gpu)
    except Exception as error:  # an encoder from another package may need values
        return f"memory {size}: unknown, this model cannot run without weights ({one_line(error)})"
    kept = "weights, their average" if config.train.ema_decay is not None else "weights"
    return (
        f"memory, estimated, one process: {memory.peak / GIB:.1f} GiB {size}, of it"
        f" {memory.kept / GIB:.1f} GiB {kept} and AdamW,"
        f" {(memory.peak - memory.kept) / GIB:.1f} GiB activations and gradients;"
        " the measured peak is the curve train/memory_gib"
    )


def _bf16_on_cpu(config: Config) -> list[str]:
    """Measure whether this CPU is faster in bf16; empty with a GPU or a chosen precision."""
    import torch

    if torch.cuda.is_available() or config.train.mixed_precision not in ("auto", "no"):
        return []
    bf16, float32 = (
        fastest_product(dtype, PRODUCT_SIZE, repeats=5) for dtype in (torch.bfloat16, torch.float32)
    )
    ratio = bf16 / float32
    advice = "train.mixed_precision=bf16 uses it" if ratio > 1 else "stay with float32"
    return [f"bf16 matrix products on this CPU: {ratio:.1f} times as fast as float32; {advice}"]
