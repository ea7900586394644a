"""What a configuration would do, without weights: settings, parameters of each group, steps, an estimate of memory."""

import yaml

from retrieval.config import Config
from retrieval.data import check_batch_size, num_steps_per_epoch, open_cache
from retrieval.errors import UserError
from retrieval.losses import check_loss
from retrieval.models import DualEncoder, build_model_without_weights
from retrieval.optim import parameter_groups

CLOTHO_PAIRS = 19_195  # 3,839 development clips, five captions each
GIB = 2**30


def describe(config: Config) -> str:
    """The text that `train.py --dry-run` prints. Raises the UserError that the run itself would end in, as far as no weights are needed."""
    check_loss(config.loss.name)
    model = build_model_without_weights(config)
    groups = parameter_groups(model, config.optimizer.lr.model_dump())
    lines = [yaml.safe_dump(config.model_dump(), sort_keys=False), f"{'group':<18} {'parameters':>13} {'learning rate':>14}"]
    total = 0
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        total += count
        lines.append(f"{group['name']:<18} {count:>13,} {group['base_lr']:>14.1e}")
    lines += [f"{'all':<18} {total:>13,}", "", _steps(config), _memory(config, model, total)]
    return "\n".join(lines)


def _steps(config: Config) -> str:
    try:
        split = open_cache(config.data.cache, config.data.sample_rate).split("development")
        num_pairs, source = sum(map(len, split.captions)), config.data.cache
    except UserError as error:
        num_pairs, source = CLOTHO_PAIRS, f"Clotho, since here: {error}"
    else:
        check_batch_size(num_pairs, config.train.batch_size)
    steps = num_steps_per_epoch(num_pairs, config.train.batch_size)
    total = min(steps * config.train.epochs, config.train.max_steps or steps * config.train.epochs)
    return f"steps per epoch: {steps:,}, in all {total:,} ({num_pairs:,} pairs of {source})"


def _memory(config: Config, model: DualEncoder, num_parameters: int) -> str:
    """Weights, gradients and Adam's two moments exactly; activations by the usual count of what a block keeps for backward.

    34 bytes a token, channel and block at 16 bits with fused attention (Korthikanti et al., 2022, arXiv 2205.05198), twice that at 32 bits.
    """
    fixed = num_parameters * 4 * 4
    per_channel = 68 if config.train.mixed_precision == "no" else 34
    audio, text, batch = config.audio_encoder, model.text_encoder.model.config, config.train.batch_size
    num_frames = model.windows.num_frames
    activations = batch * num_frames * audio.embed_dim * audio.depth * per_channel
    activations += batch * config.text_encoder.max_tokens * text.hidden_size * text.num_hidden_layers * per_channel
    activations += batch * num_frames * config.dim * 4 * (4 if config.pooling.name == "tap" else 1)
    return (
        f"memory, estimated, one process: {fixed / GIB:.1f} GiB weights, gradients and AdamW + about {activations / GIB:.1f} GiB activations "
        f"at batch {batch} ({'32' if per_channel == 68 else '16'} bit); the measured peak is train/memory_gib in TensorBoard"
    )
