"""A run that learns moments: its loss, its validation and its pictures.

Letters: n pairs of this process, N of all processes together, T frames.
"""

from typing import TYPE_CHECKING, Any

import torch

from retrieval.base.exchange import gather_columns
from retrieval.data.moment_pairs import frame_labels
from retrieval.losses.moments import moment_loss
from retrieval.models.dual_encoder import DualEncoder
from retrieval.moments.locator import Locator
from retrieval.moments.split import SplitMoments, located_clips, score_moments

if TYPE_CHECKING:
    from retrieval.training.setup import Run

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))  # that validation tries


def moment_batch_loss(
    run: "Run",
    batch: dict[str, Any],
    text: torch.Tensor,
    frames: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Return the mean loss over the pairs of all processes, the same scalar on each.

    Args:
        run: The run, for its model and settings.
        batch: windows float32 (n, W, 2) of this process's part of the batch.
        text: (n, D), encodings of its queries.
        frames: (n, T, D), encodings of its clips.
        mask: bool (n, T), True = valid frame.
    """
    model = run.model
    with run.accelerator.autocast():
        logits = model.moment_logits(text, frames, mask)  # (n, T)
    centres = torch.from_numpy(model.windows.frame_centres(frames.shape[1]) / model.sample_rate)
    windows = batch["windows"].double()
    labels = frame_labels(windows, centres, model.frame_seconds).to(logits.device)  # (n, T)
    weight = run.config.moment_head.dice_weight
    losses = moment_loss(logits, labels, mask, dice_weight=weight)  # (n,)
    return gather_columns(losses[None]).mean()


def evaluate_moments(run: "Run", model: DualEncoder, split: Any, tune: bool) -> SplitMoments:
    """Locate all queries of a split; every process returns the result.

    Args:
        run: The run.
        model: With a moment head.
        split: Clips with moments.
        tune: Choose the head's threshold on this split, by R1@0.7 and then mIoU.
    """
    locator = Locator(model, "head", run.accelerator.autocast, alternatives=True)
    found = located_clips(locator, split)
    best: SplitMoments | None = None
    threshold = model.moment_head.threshold
    for tried in THRESHOLDS if tune else (threshold.item(),):
        moments = [
            (
                first,
                [
                    locator.stretches(curve, round(located.seconds * model.sample_rate), tried)
                    for curve in located.curves
                ],
            )
            for first, located in found
        ]
        result = score_moments(split, moments, run.accelerator.device)
        if best is None or _order(result) > _order(best):
            best = result
            threshold.fill_(tried)
    return best


def _order(result: SplitMoments) -> tuple[float, float]:
    return result.main[result.best_by], result.main["mIoU"]
