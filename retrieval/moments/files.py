"""Files of moments, one JSON object a line, as lighthouse and the DCASE 2026 baseline have them.

truth        {"qid": "a_1", "query": "A dog barks", "duration": 60, "vid": "a",
              "relevant_windows": [[3, 5], [20, 24]]}
predictions  {"qid": "a_1", "query": "A dog barks", "vid": "a",
              "pred_relevant_windows": [[3.2, 5.1, 0.98], [40.0, 42.5, 0.61]]}
             without scores, [[3.2, 5.1], [40.0, 42.5]], the order is the rank. This is how the
             DCASE 2026 baseline writes a submission; the lines are otherwise the same.
queries      {"qid": "a_1", "query": "A dog barks", "duration": 60, "vid": "a"}, as the blind set of
             DCASE 2026; truth is read as well

Times are seconds from the beginning of the recording. A qid may be a text or a whole number. Other
keys are ignored: lighthouse writes more of them for other corpora.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.base.errors import UserError, one_line
from retrieval.base.files import atomic_writer, is_unicode
from retrieval.moments.spans import Moment

PREDICTED, TRUE = "pred_relevant_windows", "relevant_windows"
DECIMALS = 4  # of times and scores in files, as lighthouse writes them
CASTELLA_SECONDS = 300.0  # its recordings are cut there
NUM_NAMED = 3  # queries in an error


@dataclass(frozen=True)
class Answer:
    """The moments that were found for a query.

    Attributes:
        qid: Name of the query.
        query: The sentence, "" if the file has none.
        vid: Name of the recording, "" if the file has none.
        duration: Seconds of the recording; None if the file does not say.
        moments: Best first. Those of a file are in the file's order, which metrics read: R1 takes
            the first one, whatever its score.
    """

    qid: str
    query: str
    vid: str
    duration: float | None
    moments: list[Moment]


@dataclass(frozen=True)
class Truth:
    """The true windows of a query, as in its file: also those that the metrics drop.

    Attributes:
        qid: Name of the query.
        query: The sentence, "" if the file has none.
        vid: Name of the recording, "" if the file has none.
        duration: Seconds of the recording; None if the file does not say.
        windows: (start, end) in seconds, in the file's order; may overlap.
    """

    qid: str
    query: str
    vid: str
    duration: float | None
    windows: list[tuple[float, float]]


@dataclass(frozen=True)
class Query:
    """A query without its answer.

    Attributes:
        qid: Its name.
        query: The sentence.
        vid: Name of the recording.
    """

    qid: str
    query: str
    vid: str


def read_queries(path: Path) -> list[Query]:
    """Read queries, of a file of queries or of truth.

    Raises:
        UserError: The file cannot be read, or a line is wrong: the message has its number.
    """
    queries = []
    for place, qid, line in _queries(path):
        query, vid, _ = _about(line, place, qid)
        if not query.strip() or not vid:
            raise UserError(
                f"{place}: query {qid!r} needs a text 'query' and the name of its recording 'vid'"
            )
        if not is_unicode(query):  # no tokenizer takes it
            raise UserError(f"{place}: query {qid!r} has half a character in {_short(query)}")
        queries.append(Query(qid, query, vid))
    return queries


def read_truth(path: Path) -> list[Truth]:
    """Read true windows. A window without length is kept; the metrics drop it.

    Raises:
        UserError: The file cannot be read, or a line is wrong: the message has its number.
    """
    truths = []
    for place, qid, line in _queries(path, TRUE, PREDICTED):
        windows = [_window(window, 2, f"{place}: {TRUE} of query {qid!r}") for window in line[TRUE]]
        if early := [window for window in windows if window[0] < 0]:
            raise UserError(
                f"{place}: query {qid!r} has the true window {list(early[0])}, which starts before"
                " the recording: expected seconds from its beginning"
            )
        truths.append(Truth(qid, *_about(line, place, qid), [(s, e) for s, e in windows]))
    return truths


def read_predictions(path: Path) -> list[Answer]:
    """Read predictions, in the order of the file. Nothing is cut to the recording.

    Without scores the order is the rank: the scores then are 1, 1/2, 1/3, ...

    Raises:
        UserError: The file cannot be read, or a line is wrong: the message has its number. Also if
            some windows have a score and others have none.
    """
    answers, has_scores = [], None
    for place, qid, line in _queries(path, PREDICTED, TRUE):
        moments = []
        for rank, window in enumerate(line[PREDICTED], 1):
            if has_scores is None and isinstance(window, list):
                has_scores = len(window) == 3
            what = f"{place}: {PREDICTED} of query {qid!r}"
            start, end, *score = _window(window, 3 if has_scores else 2, what)
            moments.append(Moment(start, end, score[0] if score else 1 / rank))
        answers.append(Answer(qid, *_about(line, place, qid), moments))
    return answers


def write_predictions(path: Path, answers: Iterable[Answer], with_scores: bool = True) -> None:
    """Write predictions, a line for each query, sorted by falling score.

    R1 reads the order of the list and mAP the scores: so both have the same first moment.

    Args:
        path: File to write.
        answers: Of each query; one without a moment gets an empty list.
        with_scores: False: the order is the rank, as in submissions of the DCASE 2026 baseline.

    Raises:
        UserError: The disk is full or read-only.
    """
    with atomic_writer(path) as file:
        for answer in answers:
            ordered = sorted(answer.moments, key=lambda moment: -moment.score)
            windows = [list(moment) if with_scores else list(moment[:2]) for moment in ordered]
            line = {"qid": answer.qid, "query": answer.query, "vid": answer.vid, PREDICTED: windows}
            file.write(json.dumps(line, allow_nan=False) + "\n")


def rounded(moments: Sequence[Moment]) -> list[Moment]:
    """Sort by falling score and round to four decimals, as lighthouse does."""
    ordered = sorted(moments, key=lambda moment: -moment.score)
    return [Moment(*(round(float(value), DECIMALS) for value in moment)) for moment in ordered]


def castella_rounding(moments: Sequence[Moment]) -> list[Moment]:
    """Cut and round as lighthouse does for CASTELLA, before scoring and before submission.

    As `rounded`; then times are cut to 0 to 300 s (not to the recording) and rounded to whole
    seconds, half to even. A moment may become one without length, which can never be right.
    """
    return [
        Moment(_whole_seconds(moment.start), _whole_seconds(moment.end), moment.score)
        for moment in rounded(moments)
    ]


def _whole_seconds(time: float) -> float:
    return float(round(min(max(time, 0.0), CASTELLA_SECONDS)))


def check_same_queries(
    answers: Sequence[Answer], truths: Sequence[Truth], predictions_path: Path, truth_path: Path
) -> None:
    """Raise UserError if one of the two files has a query that the other lacks."""
    answered, asked = {one.qid for one in answers}, {one.qid for one in truths}
    missing = [one.qid for one in truths if one.qid not in answered]
    unknown = [one.qid for one in answers if one.qid not in asked]
    problems = []
    if missing:
        problems.append(
            f"{predictions_path} lacks {len(missing)} of the {len(truths)} queries of {truth_path}:"
            f" {_named(missing)} (a query without an answer has an empty list)"
        )
    if unknown:
        problems.append(
            f"{predictions_path} has {len(unknown)} queries that {truth_path} lacks:"
            f" {_named(unknown)}"
        )
    if problems:
        raise UserError("; ".join(problems) + "; give two files of the same queries")


def _named(qids: Sequence[str]) -> str:
    more = ", ..." if len(qids) > NUM_NAMED else ""
    return ", ".join(repr(qid)[:60] for qid in qids[:NUM_NAMED]) + more


# --- lines ---


def _queries(
    path: Path, key: str | None = None, other_key: str = ""
) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """Yield the place ("FILE, line 3"), the qid and the object of each line of a file.

    Lines of white space are passed over.

    Args:
        path: The file.
        key: Key of the windows, which are checked to be a list; None: the file needs none.
        other_key: Key of the windows in the other kind of file.

    Raises:
        UserError: See read_truth.
    """
    lines: dict[str, int] = {}  # line of each qid
    for number, text in enumerate(_text(path).split("\n"), 1):
        if not text.strip():
            continue
        place = f"{path}, line {number}"
        line = _parsed(text, place)
        if key and key not in line and other_key in line:
            raise UserError(
                f"{place} has {other_key!r} and not {key!r}: the first file is the predictions, the"
                " second one the truth"
            )
        for name in ("qid", key):
            if name and name not in line:
                raise UserError(
                    f"{place} has no {name!r}, found: {', '.join(map(repr, line)) or 'nothing'}"
                )
        qid = line["qid"]
        if isinstance(qid, bool) or not isinstance(qid, str | int) or qid == "":
            raise UserError(f"{place}: qid must be a text or a whole number, found {_short(qid)}")
        qid = str(qid)
        if qid in lines:
            raise UserError(f"{place}: query {qid!r} is in line {lines[qid]} already")
        lines[qid] = number
        if key and not isinstance(line[key], list):
            raise UserError(
                f"{place}: {key} of query {qid!r} must be a list of windows, found"
                f" {_short(line[key])}"
            )
        yield place, qid, line
    if not lines:
        raise UserError(f"{path} has no queries: expected a JSON object on each line")


def _text(path: Path) -> str:
    """Return the text of a file. Raises UserError if it cannot be read or is not UTF-8."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise UserError(f"{path} is {kind}: give a file with a JSON object on each line")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check that path") from None
    if content[:2] == b"\x1f\x8b":
        raise UserError(f"{path} is compressed by gzip: unpack it first (gunzip -k)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {number} is not UTF-8 text: save it as UTF-8") from None


def _parsed(text: str, place: str) -> dict[str, Any]:
    """Parse the JSON object of a line. Raises UserError, also for NaN and for a key twice."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number that JSON has")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} twice")
        return dict(pairs)

    try:
        line = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError:
        raise UserError(f"{place} is nested too deep: expected a JSON object") from None
    except ValueError as error:
        qid = _qid_of_broken(text)
        raise UserError(f"{place}{qid} is not valid JSON ({one_line(error)})") from None
    if not isinstance(line, dict):
        raise UserError(f"{place}: expected a JSON object on each line, found {_short(line)}")
    return line


def _qid_of_broken(text: str) -> str:
    """Name the query of a line that strict JSON refuses, if Python's own parser can read it."""
    try:
        return f" (query {str(json.loads(text)['qid'])!r})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _window(window: Any, length: int, what: str) -> tuple[float, ...]:
    """Check start, end and score of a window. Raises UserError."""
    form = "[start, end, score]" if length == 3 else "[start, end]"
    if not isinstance(window, list) or len(window) != length:
        raise UserError(f"{what} has {_short(window)}, expected {form}, as the first of the file")
    numbers = tuple(map(_number, window))
    if None in numbers:
        raise UserError(f"{what} has {_short(window)}, expected finite numbers {form}")
    if numbers[1] < numbers[0]:
        raise UserError(f"{what} has {_short(window)}, which ends before it starts")
    return numbers


def _about(line: dict[str, Any], place: str, qid: str) -> tuple[str, str, float | None]:
    """Return query, vid and duration of a line, where it has them. Raises UserError."""
    texts = []
    for key in ("query", "vid"):
        value = line.get(key, "")
        if not isinstance(value, str):
            raise UserError(
                f"{place}: {key} of query {qid!r} must be a text, found {_short(value)}"
            )
        texts.append(value)
    duration = None
    if line.get("duration") is not None:
        duration = _number(line["duration"])
        if duration is None or duration <= 0:
            raise UserError(
                f"{place}: duration of query {qid!r} must be seconds above 0, found"
                f" {_short(line['duration'])}"
            )
    return texts[0], texts[1], duration


def _number(value: Any) -> float | None:
    """Return a finite number of a file as float, None for anything else, such as true."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _short(value: Any) -> str:
    """Show a value of a file in an error, at most some 60 characters of it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
