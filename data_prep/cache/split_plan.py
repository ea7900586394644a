"""What a corpus reader found: the clips of a split and what is left out of it; how much may be
lost, and the report after a build.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from data_prep.cache.shards import Clip
from retrieval.base.errors import UserError

MAX_LISTED = 20  # skipped files printed; all of them are in cache.json


@dataclass(frozen=True)
class Skipped:
    split: str
    file_name: str
    reason: str


@dataclass
class SplitPlan:
    """What a corpus reader found for one split."""

    name: str
    clips: list[Clip]
    lost: list[Skipped] = field(default_factory=list)  # clips that should be there and are not
    unused: list[Skipped] = field(default_factory=list)  # audio files that no caption belongs to
    # clips left out on purpose: they are another corpus's test clips
    excluded: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # printed after the build


def check_losses(plans: list[SplitPlan], skipped: list[dict[str, str]], max_lost: float) -> None:
    """Raises UserError when more than the fraction `max_lost` of a split is lost, to its reader or
    (`skipped`) to the decoder.
    """
    for plan in plans:
        lost = [asdict(item) for item in plan.lost] + [
            item for item in skipped if item["split"] == plan.name
        ]
        num_expected = len(plan.clips) + len(plan.lost)
        if len(lost) == num_expected:
            raise UserError(none_usable(plan, lost))
        if len(lost) > max_lost * num_expected:
            _print_skipped(lost)
            raise UserError(
                f"split {plan.name}: {len(lost)} of {num_expected} clips are lost, at most"
                f" {100 * max_lost:g}% may be; first {_describe(lost[0])}; repair or fetch them"
                " again, or accept the loss with --allow-missing"
            )


def none_usable(plan: SplitPlan, lost: list[dict[str, str]]) -> str:
    """Text of the error for a split without a clip."""
    excluded = (
        f"{len(plan.excluded)} are excluded, since other corpora test with them"
        if plan.excluded
        else ""
    )
    if not lost:
        return f"split {plan.name}: no clip is left" + (f"; {excluded}" if excluded else "")
    return (
        f"split {plan.name}: none of its {len(lost)} clips is usable; first {_describe(lost[0])}"
        + (f"; {excluded}" if excluded else "")
    )


def count_reasons(skipped: list[Skipped]) -> dict[str, int]:
    """How many were left out for which reason."""
    return dict(Counter(item.reason for item in skipped))


def print_report(info: dict[str, Any], plans: list[SplitPlan]) -> None:
    """Table of splits, then what was left out and why. `info` is the content of cache.json."""
    print(
        f"{'split':<14}{'clips':>8}{'hours':>9}{'captions':>10}{'lost':>7}{'unused':>8}{'clipped samples':>17}"
    )
    for plan in plans:
        split = info["splits"][plan.name]
        print(
            f"{plan.name:<14}{split['num_clips']:>8}{split['hours']:>9.2f}{split['num_captions']:>10}"
            f"{split['num_lost']:>7}{split['num_unused']:>8}{split['num_clipped_samples']:>17}"
        )
    names = [plan.name for plan in plans]
    _print_skipped([item for item in info["skipped"] if item["split"] in names])
    for plan in plans:
        for reason, number in count_reasons(plan.excluded).items():
            print(f"excluded from {plan.name}: {number} clips, {reason}")
        split = info["splits"][plan.name]  # caches of earlier versions lack some numbers
        if split.get("num_cut_clips"):
            print(
                f"note: {plan.name}: {split['num_cut_clips']} clips were longer than"
                f" {info['max_seconds']:g} s and are cut"
            )
        if split.get("num_one_channel_clips"):
            print(
                f"note: {plan.name}: the channels of {split['num_one_channel_clips']} clips cancel"
                " each other; their first channel is kept"
            )
        for note in plan.notes:
            print(f"note: {note}")


def _print_skipped(skipped: list[dict[str, str]]) -> None:
    if skipped:
        print(f"left out ({len(skipped)}):")
    for item in skipped[:MAX_LISTED]:
        print(f"  {item['split']}/{item['file_name']}: {item['reason']}")
    if len(skipped) > MAX_LISTED:
        print(f"  ... and {len(skipped) - MAX_LISTED} more")


def _describe(item: dict[str, str]) -> str:
    return f"{item['file_name']!r}: {item['reason']}"
