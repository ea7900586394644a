"""The commands `mark` and `detectors` of retrieval.search: learn, list and delete detectors."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval.base.errors import UserError, counted, printable
from retrieval.search.feedback.detectors import Detector, Detectors, Mark, read_marks, write_marks
from retrieval.search.place import Place, place_of

if TYPE_CHECKING:
    from retrieval.moments.export import Stretch
    from retrieval.search.index import AudioIndex

TO_JUDGE = 5  # answers that are named for the next marks
# 12.5, 1:02.5, 1:02:03.4, and two of them
TIME = r"(?:\d+:){0,2}\d+(?:\.\d+)?"
TIMES = re.compile(f"({TIME})(?:-({TIME}))?")


def folder_of(arguments: argparse.Namespace) -> Detectors:
    """Return the detectors of --detectors, or of the index."""
    return Detectors(arguments.detectors or _place(arguments).folder / "detectors")


def _place(arguments: argparse.Namespace) -> Place:
    return place_of(arguments.index, frames_store=arguments.frames_store)


def list_detectors(arguments: argparse.Namespace) -> int:
    """Print the detectors, one per line, or delete one."""
    saved = folder_of(arguments)
    if not arguments.detectors and _place(arguments).read_meta() is None:
        raise UserError(f"there is no index {arguments.index}: give its place, or --detectors")
    if arguments.delete:
        saved.delete(arguments.delete)
        print(f"deleted: {saved.path(arguments.delete)}")
        return 0
    if not saved.names():
        print(f"no detectors in {saved.folder}")
    for name in saved.names():
        print(described(saved.load(name)))
    return 0


def mark(arguments: argparse.Namespace, index: "AudioIndex") -> int:
    """Learn a detector from new marks and its earlier ones, and save it."""
    saved, name = folder_of(arguments), arguments.name
    is_new = arguments.overwrite or not saved.path(name).is_file()
    before = None if is_new else saved.load(name)
    given = _given_marks(arguments, index)
    query = _query(arguments, before)
    if before is None and not given:
        raise UserError(
            f"{name!r} is a new detector, which needs marks: --right FILE --wrong FILE, or --marks"
            " FILE.csv"
        )
    if before is not None:
        before.check_model(index.store.meta.model, index.path)
        known = [own for own in before.marks if index.file(own.file)]
        if num_gone := len(before.marks) - len(known):
            print(
                f"note: dropped {counted(num_gone, 'mark')} of files that this index does not have",
                file=sys.stderr,
            )
        given = known + given
    detector = index.refine(query, given)
    if given or is_new:
        detector = saved.save(detector, name)
    print(described(detector))
    if detector.num_right in (0, len(detector.marks)):
        kind, other = ("right", "wrong") if detector.num_right else ("wrong", "right")
        print(f"note: all marks are {kind}; some {other} ones make it better", file=sys.stderr)
    if arguments.labels:
        print(f"written: {_export(detector, index, arguments)}")
    seen = {(own.file.file, own.start) for own in map(index.excerpt_of, detector.marks)}
    likely = index.search(detector, TO_JUDGE + len(seen))
    for hit in [hit for hit in likely if (hit.file, hit.start) not in seen][:TO_JUDGE]:
        is_whole = hit.start == 0 and hit.end >= hit.seconds
        place = hit.file if is_whole else f"{hit.file}@{hit.start:g}"
        print(f"judge next: {hit.score:6.3f}  {printable(place)}")
    return 0


def described(detector: Detector) -> str:
    num_wrong = len(detector.marks) - detector.num_right
    return (
        f"{detector.name}: {detector.query!r}, {detector.num_right} right, {num_wrong} wrong;"
        f" detects from probability {detector.threshold:.3f}"
    )


def _query(arguments: argparse.Namespace, before: Detector | None) -> str:
    if before is None and not arguments.query:
        raise UserError(f"{arguments.name!r} is a new detector: say what it is for, --query TEXT")
    if before is not None and arguments.query not in (None, before.query):
        raise UserError(
            f"detector {arguments.name!r} is for {before.query!r}, not {arguments.query!r}: leave"
            " out --query to add marks, or give another name or --overwrite"
        )
    return arguments.query or before.query


def _given_marks(arguments: argparse.Namespace, index: "AudioIndex") -> list[Mark]:
    marks = read_marks(arguments.marks) if arguments.marks else []
    for right, texts in ((True, arguments.right), (False, arguments.wrong)):
        marks += [parse_mark(text, right, index) for text in texts]
    places = {mark.right: {str(own) for own in marks if own.right == mark.right} for mark in marks}
    if len(places) == 2 and (both := sorted(places[True] & places[False])):
        raise UserError(f"{both[0]} is marked right and wrong: give one of them")
    return marks


def parse_mark(text: str, right: bool, index: "AudioIndex") -> Mark:
    """Read FILE, FILE@START or FILE@START-END; times as 12.5 or 1:02.5.

    FILE is a name in the index, a path into its folder, or a base name that one file has. Raises
    UserError if the index does not have it.
    """
    if (whole := _name(text, index)) is not None:
        return Mark(file=whole, right=right)
    file, at, times = text.rpartition("@")
    name, found = _name(file, index) if at else None, TIMES.fullmatch(times)
    if name is None:
        raise UserError(f"{text!r} is not a file of index {index.path}, so it cannot be marked")
    if found is None:
        raise UserError(f"{text!r}: {times!r} is no time; expected seconds, such as {name}@12.5")
    start, end = (None if time is None else _seconds(time) for time in found.groups())
    return Mark(file=name, start=start, end=end, right=right)


def _name(text: str, index: "AudioIndex") -> str | None:
    if index.file(text):
        return text
    for path in (Path(text).absolute(), Path(text).resolve()):
        if path.is_relative_to(index.folder):
            name = path.relative_to(index.folder).as_posix()
            if index.file(name):
                return name
    named = [own.file for own in index.files if own.file.rpartition("/")[2] == text]
    if len(named) > 1:
        raise UserError(
            f"several files of the index are called {text!r}, such as {named[0]} and {named[1]}:"
            " give the whole name"
        )
    return named[0] if named else None


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _export(detector: Detector, index: "AudioIndex", arguments: argparse.Namespace) -> Path:
    """Write the marks to --output; return it."""
    if arguments.labels == "csv":
        excerpts = map(index.excerpt_of, detector.marks)
        marks = [
            Mark(file=own.file, start=excerpt.start, end=excerpt.end, right=own.right)
            if own.end is None
            else own
            for own, excerpt in zip(detector.marks, excerpts, strict=True)
        ]
        write_marks(arguments.output, marks)
    else:
        from retrieval.moments.export import write_labels

        stretches = stretches_of_marks(detector, index)
        write_labels(arguments.labels, arguments.output, stretches, index.path_of)
    return arguments.output


def stretches_of_marks(detector: Detector, index: "AudioIndex") -> "Sequence[Stretch]":
    """Return the marks as stretches to be exported; wrong ones are labelled "not NAME", score 0."""
    from retrieval.moments.export import Stretch
    from retrieval.moments.spans import Moment

    name, found = detector.name or detector.query, []
    for rank, own in enumerate(detector.marks, 1):
        excerpt = index.excerpt_of(own)
        times = (excerpt.start, excerpt.end) if own.end is None else (own.start, own.end)
        label = name if own.right else f"not {name}"
        moment = Moment(*times, float(own.right))
        found.append(Stretch(label, own.file, excerpt.file.seconds, rank, moment, own.right))
    return found
