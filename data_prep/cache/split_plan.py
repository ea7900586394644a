"""Plan of a split: its clips and those left out; the check of losses, and the final report."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from data_prep.cache.moments import Tally
from data_prep.cache.shards import Clip
from retrieval.base.errors import UserError
from retrieval.data.schema import MOMENTS

MAX_LISTED = 20  # skipped files printed; all of them are in cache.json


@dataclass(frozen=True)
class Skipped:
    """A clip or file that is left out."""

    split: str
    file_name: str
    reason: str


@dataclass
class SplitPlan:
    """Result of a corpus reader for one split."""

    name: str
    clips: list[Clip]
    lost: list[Skipped] = field(default_factory=list)  # clips without usable file or captions
    unused: list[Skipped] = field(default_factory=list)  # audio files without captions
    excluded: list[Skipped] = field(default_factory=list)  # test clips of other corpora
    notes: list[str] = field(default_factory=list)  # printed after the build
    num_streamed: int = 0  # clips of a streamed corpus (stream.py), which `clips` does not hold


def check_losses(plans: list[SplitPlan], skipped: list[dict[str, str]], max_lost: float) -> None:
    """Raise UserError if more than the fraction `max_lost` of a split is lost.

    `skipped` are the clips that the decoder refused.
    """
    for plan in plans:
        lost = [asdict(item) for item in plan.lost]
        lost += [item for item in skipped if item["split"] == plan.name]
        num_expected = len(plan.clips) + plan.num_streamed + len(plan.lost)
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
    """Return the error message for a split without a clip."""
    message = f"split {plan.name}: no clip is left"
    if lost:
        message = f"split {plan.name}: none of its {len(lost)} clips is usable"
        message += f"; first {_describe(lost[0])}"
    if plan.excluded:
        message += f"; {len(plan.excluded)} are excluded, since other corpora test with them"
    return message


def count_reasons(skipped: list[Skipped]) -> dict[str, int]:
    """Count the clips of each reason."""
    return dict(Counter(item.reason for item in skipped))


def print_report(info: dict[str, Any], plans: list[SplitPlan]) -> None:
    """Print a table of splits, then the left-out clips and the reasons.

    `info` is the content of cache.json.
    """
    row = "{:<14}{:>8}{:>9}{:>10}{:>7}{:>8}{:>17}"
    print(row.format("split", "clips", "hours", "captions", "lost", "unused", "clipped samples"))
    columns = ("num_captions", "num_lost", "num_unused", "num_clipped_samples")
    for plan in plans:
        split = info["splits"][plan.name]
        numbers = [split["num_clips"], f"{split['hours']:.2f}", *(split[name] for name in columns)]
        print(row.format(plan.name, *numbers))
    tallies = {plan.name: Tally() for plan in plans}
    for name, tally in tallies.items():
        if moments := info["splits"][name].get(MOMENTS):
            tally.merge(moments)
            print(f"moments of {name}: {tally.summary()}")
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
        for note in tallies[plan.name].notes():
            print(f"note: {plan.name}: {note}")
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
