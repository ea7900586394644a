"""Answers as HTML; everything is escaped, since file names and sentences may come from anyone."""

import contextlib
import csv
import io
import json
import zipfile
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from itertools import groupby
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from retrieval.base.errors import UserError
from retrieval.evaluation.attention import attention_curve
from retrieval.moments.export import by_file, csv_table, json_table, label_files
from retrieval.moments.locator import Located
from retrieval.moments.spans import Moment
from retrieval.search import AudioIndex, Hit
from retrieval.search.feedback.detectors import MARK_COLUMNS, Detector
from retrieval.search.hits import stretches_of
from retrieval.search.metadata import fields_as_written

LABELS = {"audacity": "Audacity", "raven": "Raven"}  # formats of labels, and their names
CURVE_POINTS = 1000  # of the curve over a whole file


def message(text: str, kind: str = "note") -> str:
    """One line for the reader; kind: note or error."""
    return f'<p class="message {kind}">{escape(text)}</p>'


def cards(
    query: str,
    hits: list[Hit],
    index: AudioIndex,
    sentence: str | None = None,
    link: str = "",
    detector: Detector | None = None,
    can_mark: bool = False,
) -> str:
    """Return the answers to a query as a list of cards, after links that save all stretches.

    Args:
        query: As it is shown.
        hits: Its answers.
        index: Their index.
        sentence: To be heard, for the curve over a whole file; None if `query` names a sound.
        link: To the query, or "".
        detector: Learned from answers that were marked, if any were.
        can_mark: Whether answers can be marked.
    """
    marks = detector.marks if detector else ()
    found = stretches_of(query, hits)
    links = [
        saved(csv_table(found).encode(), "text/csv", "stretches.csv", "CSV"),
        saved(json_table(found).encode(), "application/json", "stretches.json", "JSON"),
    ]
    for kind, name in LABELS.items():
        labels = zipped(labels_of(kind, query, hits, index))
        links.append(saved(labels, "application/zip", f"{kind}.zip", f"{name} labels"))
    if link:
        link = f'<a class="save query-link" href="{escape(link)}">Link to this query</a>'
    right = {(mark.file, mark.start, mark.end): mark.right for mark in marks} if can_mark else None
    lists, line = "", False
    for is_match, own in groupby(hits, lambda hit: hit.is_match):
        if not is_match and not line:
            subtracts = any(hit.judged_score is not None for hit in hits)
            lists, line = lists + unmatched(index, detector, subtracts), True
        kind = "similarity" if detector is None else "probability"
        items = "".join(card(query, hit, index, sentence, right, kind) for hit in own)
        lists += f'<ol class="hits">{items}</ol>'
    content = [mark.model_dump() for mark in marks]
    data = f'data-query="{escape(sentence or "")}" data-marks="{escape(json.dumps(content))}"'
    return (
        '<div class="save-all"><details class="saving"><summary>Save all answers</summary>'
        f"{' '.join(links)}</details>{link}</div>"
        f'{learned(detector) if detector else ""}<div class="answers" {data}>{lists}</div>'
    )


def unmatched(index: AudioIndex, detector: Detector | None, subtracts: bool = False) -> str:
    """Return the line above the answers that do not match.

    subtracts: scores are lowered by a sentence that is not to be heard; matches are not.
    """
    if detector is not None:
        return (
            '<p class="line">Below this line: answers that score less than the detector\'s own'
            f" threshold of {detector.threshold:.3f}</p>"
        )
    score = index.unrelated_score
    reached = "" if score is None else f" ({score:.3f})"
    if subtracts:
        reached += ", judged without the sound that is not to be heard"
    return (
        '<p class="line">Below this line: answers that score no more than sentences about something'
        f" else reach in this index{reached}</p>"
    )


def learned(detector: Detector) -> str:
    """Return the line that tells of marks, and saves what was learned from them."""
    table, right = io.StringIO(newline=""), detector.num_right
    wrong = len(detector.marks) - right
    rows = [(mark.file, mark.start, mark.end, int(mark.right)) for mark in detector.marks]
    csv.writer(table).writerows([MARK_COLUMNS, *rows])
    name = (
        '<label class="hidden" for="detector-name">Name of the detector</label>'
        '<input id="detector-name" maxlength="80" placeholder="a name" autocomplete="off">'
        '<button type="button" class="keep">Save as detector</button>'
    )
    if detector.name:
        name = f"<span>Saved as the detector {escape(detector.name)}.</span>"
    return (
        f'<div class="learned"><span>Learned from {right} right and'
        f" {wrong} wrong answer{'s' * (wrong != 1)}.</span>{name}"
        '<button type="button" class="forget">Forget the marks</button>'
        f"{saved(table.getvalue().encode(), 'text/csv', 'marks.csv', 'Marks')}</div>"
    )


def labels_of(kind: str, query: str, hits: list[Hit], index: AudioIndex) -> dict[Path, str]:
    """Return the label files of answers: relative paths and contents; kind: one of LABELS.

    Raven's tables need a look at the recordings: those that cannot be read have none.
    """
    files = {}
    for own in by_file(stretches_of(query, hits)).values():
        with contextlib.suppress(UserError):
            files |= label_files(kind, own, lambda name: located(name, index))
    return files


def zipped(files: dict[Path, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for path, text in files.items():
            # Windows takes \ for a border of folders
            file.writestr(path.as_posix().replace("\\", "_"), text)
    return content.getvalue()


def saved(content: bytes, kind: str, name: str, text: str) -> str:
    """Return a link that saves `content`; the link itself holds the content."""
    data = f"data:{kind};base64,{b64encode(content).decode()}"
    return f'<a class="save" download="{escape(name)}" href="{data}">{escape(text)}</a>'


def located(file: str, index: AudioIndex) -> Path:
    """Return the path of a file of the index.

    Raises:
        UserError: The file is missing or not in the index; the message names no folder.
    """
    try:
        return index.path_of(file)
    except UserError:
        raise UserError(
            f"{file!r} is not a recording of this index, or no longer there: bring the index up to"
            " date and start the page again"
        ) from None


def card(
    query: str,
    hit: Hit,
    index: AudioIndex,
    sentence: str | None,
    right: Mapping[tuple[str, float | None, float | None], bool] | None,
    kind: str,
) -> str:
    """Return a hit with its player and picture, or with the reason why there are none.

    Args:
        query: As it is shown.
        hit: The answer.
        index: Its index.
        sentence: To be heard; None for a sound.
        right: Marks by file, start and end of an excerpt; None: it cannot be marked.
        kind: Of its score: similarity or probability.
    """
    folder, _, name = hit.file.rpartition("/")
    folder = f'<span class="folder">{escape(folder)}/</span>' if folder else ""
    heading = (
        f'<header><span class="rank" aria-hidden="true">{hit.rank}</span>'
        f'<h2 title="{escape(hit.file)}">{folder}{escape(name)}</h2>'
        f'<span class="score" title="{kind}">{hit.score:.3f}</span></header>'
    )
    try:
        located(hit.file, index)
        buttons = ""
        if right is not None:
            buttons = judging(name, right.get((hit.file, hit.start, hit.end)))
        body = timeline(hit, name) + facts(query, hit, name, index) + player(hit, name, buttons)
        if hit.end - hit.start < hit.seconds - 0.05:
            body += whole_button(sentence or "", hit, name)
    except UserError as error:
        body = message(str(error), "error")
    data = f'data-file="{escape(hit.file)}" data-start="{hit.start!r}" data-end="{hit.end!r}"'
    label = f"{hit.rank}: {escape(name)}"
    return f'<li class="hit" {data}><article aria-label="{label}">{heading}{body}</article></li>'


def judging(name: str, right: bool | None) -> str:
    """Return the buttons that mark an answer; right: how it is marked, or None."""
    buttons = ""
    for value, sign, title in ((True, "✓", "Right"), (False, "✗", "Wrong")):
        buttons += (
            f'<button type="button" class="mark" data-right="{str(value).lower()}"'
            f' aria-pressed="{str(right is value).lower()}" title="{title} answer: rank by it"'
            f' aria-label="{title}: {escape(name)}">{sign}</button>'
        )
    return buttons


def timeline(hit: Hit, name: str) -> str:
    """Return spectrogram, attention and stretches of an excerpt, from left to right.

    A click or an arrow key moves the player; a click on a stretch plays it, as its button does.
    """
    length = hit.end - hit.start
    query = {"file": hit.file, "start": f"{hit.start:.3f}", "end": f"{hit.end:.3f}"}
    source = escape(f"picture?{urlencode(query)}")
    span = f"{hit.start:.1f} to {hit.end:.1f} s"
    picture = (
        f'<img src="{source}" alt="Spectrogram of {escape(name)}, {span}" loading="lazy"'
        ' draggable="false">'
    )
    curve = attention_svg(hit) if hit.attention is not None else ""
    bands = ""
    for moment in hit.moments if hit.is_located else ():
        left = 100 * (moment.start - hit.start) / length
        width = 100 * (moment.end - moment.start) / length
        bands += (
            f'<span class="band" {times(moment)} title="Play this stretch"'
            f' style="left:{left:.2f}%;width:{width:.2f}%"></span>'
        )
    ticks = "".join(f"<span>{time:.1f} s</span>" for time in np.linspace(hit.start, hit.end, 5))
    slider = (
        f'role="slider" tabindex="0" aria-label="Place in {escape(name)}"'
        f' aria-valuemin="{hit.start:.1f}" aria-valuemax="{hit.end:.1f}"'
        f' aria-valuenow="{hit.start:.1f}" aria-valuetext="{hit.start:.1f} s"'
    )
    drawn = f'{picture}{curve}{bands}<span class="playhead"></span>'
    bar = f'<div class="timeline" {slider}>{drawn}</div>'
    return f'{bar}<div class="axis" aria-hidden="true">{ticks}</div>'


def attention_svg(hit: Hit) -> str:
    """Draw the weights over time, the highest at the top; for their times see `Hit`."""
    levels, sizes = attention_curve(hit.attention)
    heights = (100 - 94 * levels / levels.max()).tolist()
    times = (np.cumsum(sizes) - sizes / 2) * hit.frame_seconds  # of the groups' centres
    places = (1000 * times / (hit.end - hit.start)).clip(0, 1000)
    points = [(0.0, heights[0]), *zip(places, heights, strict=True), (1000.0, heights[-1])]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        '<svg class="attention" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img"'
        f' aria-label="Attention over time"><polygon points="0,100 {line} 1000,100"/><polyline'
        f' points="{line}"/></svg>'
    )


def times(moment: Moment) -> str:
    return f'data-from="{moment.start:.3f}" data-to="{moment.end:.3f}"'


def facts(query: str, hit: Hit, name: str, index: AudioIndex) -> str:
    """Return a button for each stretch, peak of the attention, the excerpt's place, and links."""
    heard = ""
    for number, moment in enumerate(hit.moments if hit.is_located else (), 1):
        span = f"{moment.start:.1f} to {moment.end:.1f} s of {name}"
        heard += (
            f'<button type="button" class="heard" {times(moment)} title="score {moment.score:.3f}"'
            f' aria-label="Play {escape(span)}: stretch {number} of {len(hit.moments)}">'
            f"{'' if heard else 'heard at '}{moment.start:.1f}–{moment.end:.1f} s</button>"
        )
    if hit.attention is not None:
        peak = hit.attention.max() * len(hit.attention)
        heard += (
            '<span title="highest weight against that of mean pooling">'
            f"peak {peak:.1f} × the mean</span>"
        )
    values = "".join(
        f"<span>{escape(column)}: {escape(str(value))}</span>"
        for column, value in fields_as_written(hit.metadata).items()
    )
    if hit.copies:
        word = "copy" if len(hit.copies) == 1 else "copies"
        names = escape("\n".join(hit.copies))
        values += f'<span class="copies" title="{names}">and {len(hit.copies)} {word}</span>'
    place = f"{hit.start:.1f}–{hit.end:.1f} s of {hit.seconds:.1f} s"
    if hit.start == 0 and hit.end >= hit.seconds - 0.05:
        place = f"whole file, {hit.seconds:.1f} s"
    saves = saving(query, hit, name, index)
    return f'<div class="facts">{heard}<span>{place}</span>{values}{saves}</div>'


def whole_button(query: str, hit: Hit, name: str) -> str:
    """Return the button that shows the whole file below the card; results.js requests the view."""
    source = escape(f"whole?{urlencode({'file': hit.file, 'query': query})}")
    return (
        f'<button type="button" class="show-whole" data-source="{source}" aria-expanded="false"'
        f' aria-label="Show the whole of {escape(name)}">Whole file</button>'
    )


def whole_view(file: str, seconds: float, found: Located | None) -> str:
    """Return spectrogram, curve and stretches of a whole file, from left to right.

    found: of AudioIndex.locate; None: the spectrogram only.
    """
    name = file.rpartition("/")[2]
    source = escape(f"overview?{urlencode({'file': file})}")
    picture = f'<img src="{source}" alt="Spectrogram of {escape(name)}" draggable="false">'
    curve = bands = ""
    if found is not None:
        curve = curve_svg(found.curves[0], found.frame_seconds / seconds)
        for moment in found.moments[0]:
            left = 100 * moment.start / seconds
            width = 100 * (moment.end - moment.start) / seconds
            bands += (
                f'<span class="band" {times(moment)} title="{clock(moment.start)} to'
                f' {clock(moment.end)}, score {moment.score:.3f}: play"'
                f' style="left:{left:.3f}%;width:max({width:.3f}%, 4px)"></span>'
            )
    ticks = "".join(f"<span>{clock(time)}</span>" for time in np.linspace(0, seconds, 5))
    slider = (
        f'role="slider" tabindex="0" aria-label="Place in the whole of {escape(name)}"'
        f' aria-valuemin="0" aria-valuemax="{seconds:.1f}" aria-valuenow="0"'
        f' aria-valuetext="{clock(0)}"'
    )
    drawn = f'{picture}{curve}{bands}<span class="playhead"></span>'
    return (
        f'<div class="whole" data-start="0" data-end="{seconds:.3f}"><div class="timeline"'
        f' {slider}>{drawn}</div><div class="axis" aria-hidden="true">{ticks}</div></div>'
    )


def curve_svg(curve: np.ndarray, frame: float) -> str:
    """Draw a curve (T,), its highest value at the top, its lowest at the bottom.

    frame: length of a frame as a share of the picture. Of many frames the highest ones are drawn.
    """
    size = -(-len(curve) // CURVE_POINTS)
    padded = np.pad(curve, (0, -len(curve) % size), mode="edge").reshape(-1, size).max(axis=1)
    low, span = float(padded.min()), float(np.ptp(padded)) or 1.0
    heights = (100 - 94 * (padded - low) / span).tolist()
    places = (1000 * frame * size * (np.arange(len(padded)) + 0.5)).clip(0, 1000).tolist()
    points = [(0.0, heights[0]), *zip(places, heights, strict=True), (1000.0, heights[-1])]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        '<svg class="attention" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img"'
        f' aria-label="Where the sentence is heard, over time"><polygon points="0,100 {line}'
        f' 1000,100"/><polyline points="{line}"/></svg>'
    )


def clock(seconds: float) -> str:
    """Format seconds as 7.3 s, 2:07 or 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def player(hit: Hit, name: str, buttons: str) -> str:
    """Return the player of a recording, followed by `buttons` and its own."""
    start = f"#t={hit.start:.3f}" if hit.start else ""
    source = escape(f"recording?{urlencode({'file': hit.file})}") + start
    return (
        f'<div class="play"><audio controls preload="metadata" src="{source}"'
        f' aria-label="Play {escape(name)}"></audio>{buttons}<button type="button" class="like"'
        f' aria-label="More like {escape(name)}">More like this</button></div>'
    )


def saving(query: str, hit: Hit, name: str, index: AudioIndex) -> str:
    """Return links that save a hit's stretches, as sound and as labels, and its recording."""
    links = ""
    for moment in hit.moments:
        span = f"{moment.start:.3f}", f"{moment.end:.3f}"
        part = urlencode({"file": hit.file, "start": span[0], "end": span[1]})
        text = f"WAV {moment.start:.1f}–{moment.end:.1f} s"
        links += f'<a class="save" download href="clip?{escape(part)}">{text}</a> '
    for kind, format_name in LABELS.items():
        for path, labels in labels_of(kind, query, [hit], index).items():
            links += saved(labels.encode(), "text/plain", path.name, f"{format_name} labels") + " "
    source = escape(f"download?{urlencode({'file': hit.file})}")
    links += f'<a class="save" download href="{source}">Whole recording</a>'
    label = f'aria-label="Save stretches of {escape(name)}"'
    return f'<details class="saving"><summary {label}>Save</summary>{links}</details>'


def score_table(sentences: list[str], scores: list[float]) -> str:
    """Return sentences with scores, best first, and with bars relative to the highest."""
    ranked = sorted(zip(scores, sentences, strict=True), reverse=True)
    top = max(ranked[0][0], 1e-9)
    rows = "".join(
        f'<tr><td class="sentence">{escape(sentence)}</td><td class="bar"><span'
        f' style="width:{max(0.0, 100 * score / top):.1f}%"></span></td><td>{score:.3f}</td></tr>'
        for score, sentence in ranked
    )
    head = (
        '<tr><th scope="col">sentence</th><th scope="col"><span class="hidden">bar</span></th>'
        '<th scope="col">score</th></tr>'
    )
    return f'<table class="scores"><thead>{head}</thead><tbody>{rows}</tbody></table>'
