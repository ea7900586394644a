"""Progress of long work: a bar on a terminal, a line now and then in a log file.

with bar(total=len(clips), desc="embedding", unit="clip") as progress:
    for clip in clips:
        ...
        progress.update()

embedding: 1,200/5,000 clips, 40.2 clips/s, 1 min 35 s left
"""

import os
import sys
from typing import TextIO

from tqdm import tqdm

SECONDS_UNSEEN = 3.0  # work that is done sooner shows nothing
SECONDS_BETWEEN_LINES = 30.0
BAR = (
    "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining},"
    " {rate_noinv_fmt}{postfix}]"
)

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Hide the bars that are made from now on: the option --quiet."""
    global _quiet
    _quiet = quiet


def silence_transformers() -> None:
    """Hide messages and bars of transformers: the commands show their own."""
    import transformers  # here, because it takes seconds to import

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def bar(
    *,
    total: int | None = None,
    desc: str,
    unit: str,
    initial: int = 0,
    scale: bool = False,
    leave: bool = True,
    disable: bool = False,
) -> tqdm:
    """Make a tqdm bar. Of several processes only the first shows it.

    Args:
        total: Number of units; None if unknown.
        desc: Name of the work.
        unit: Name of a unit, in the singular.
        initial: Number of units that were done before.
        scale: Count bytes, with prefixes (MB) and without a plural.
        leave: Keep the full bar on the terminal when the work is done.
        disable: Show nothing.
    """
    hidden = disable or _quiet or os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0"
    options = {
        "total": total,
        "desc": desc,
        "initial": initial,
        "unit_scale": scale,
        "unit": unit if scale else f" {unit}s",
        "delay": SECONDS_UNSEEN,
    }
    if hidden:
        options["disable"] = True  # if absent, the user's TQDM_DISABLE decides
    # a container's terminal may have 0 columns: tqdm would draw nothing
    if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
        return tqdm(**options, leave=leave, dynamic_ncols=True, bar_format=BAR if total else None)
    return _Lines(**options, leave=False, mininterval=SECONDS_BETWEEN_LINES, miniters=1)


class _Lines(tqdm):
    """Whole lines in place of a bar that is drawn over itself."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None and self.n != self.total:  # close() writes the last line
            self._write(done=False)

    @classmethod
    def write(
        cls, s: str, file: TextIO | None = None, end: str = "\n", nolock: bool = False
    ) -> None:
        print(s, file=file, end=end)  # without a bar below it to redraw

    def close(self) -> None:
        if not self.disable and self.format_dict["elapsed"] >= self.delay:
            self._write(done=True)
        super().close()

    def _write(self, done: bool) -> None:
        state = self.format_dict
        n, total, elapsed = state["n"], state["total"], state["elapsed"]
        average = (n - state["initial"]) / elapsed if elapsed else 0.0
        rate = average if done else state["rate"] or average
        count = self._amount(n)
        if total is not None and not (done and n == total):
            count += f"/{self._amount(total)}"
        parts = [f"{self.desc.removesuffix(': ')}: {count}{self.unit}"]
        if done:
            parts[0] += f" in {duration(elapsed)}"
        if rate:
            parts.append(f"{self._amount(rate)}{self.unit}/s")
            if not done and total is not None:
                parts.append(f"{duration((total - n) / rate)} left")
        self.fp.write(", ".join(parts + [state["postfix"]] * bool(state["postfix"])) + "\n")
        self.fp.flush()

    def _amount(self, number: float) -> str:
        if self.unit_scale:
            return self.format_sizeof(number, divisor=self.unit_divisor)
        if isinstance(number, int):
            return f"{number:,}"
        return f"{number:,.1f}" if number >= 10 else f"{number:.2g}"


def duration(seconds: float) -> str:
    """Return a duration in words: 12 s, 1 min 35 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
