"""Answers as HTML; everything is escaped, since file names and sentences may come from anyone."""

from html import escape
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from retrieval.base.errors import UserError
from retrieval.evaluation.attention import attention_curve
from retrieval.search import AudioIndex, Hit


def message(text: str, kind: str = "note") -> str:
    """One line for the reader; kind: note or error."""
    return f'<p class="message {kind}">{escape(text)}</p>'


def cards(hits: list[Hit], index: AudioIndex) -> str:
    items = "".join(card(rank, hit, index) for rank, hit in enumerate(hits, 1))
    return f'<ol class="hits">{items}</ol>'


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


def card(rank: int, hit: Hit, index: AudioIndex) -> str:
    """Return a hit with its player and picture, or with the reason why there are none."""
    folder, _, name = hit.file.rpartition("/")
    folder = f'<span class="folder">{escape(folder)}/</span>' if folder else ""
    heading = (
        f'<header><span class="rank" aria-hidden="true">{rank}</span>'
        f'<h2 title="{escape(hit.file)}">{folder}{escape(name)}</h2>'
        f'<span class="score" title="similarity">{hit.score:.3f}</span></header>'
    )
    try:
        located(hit.file, index)
        body = timeline(hit, name) + facts(hit) + player(hit, name)
    except UserError as error:
        body = message(str(error), "error")
    data = f'data-file="{escape(hit.file)}" data-start="{hit.start:.3f}" data-end="{hit.end:.3f}"'
    label = f"{rank}: {escape(name)}"
    return f'<li class="hit" {data}><article aria-label="{label}">{heading}{body}</article></li>'


def timeline(hit: Hit, name: str) -> str:
    """Return spectrogram, attention and strongest stretch of an excerpt, from left to right.

    A click or an arrow key moves the player.
    """
    length = hit.end - hit.start
    query = {"file": hit.file, "start": f"{hit.start:.3f}", "end": f"{hit.end:.3f}"}
    source = escape(f"picture?{urlencode(query)}")
    span = f"{hit.start:.1f} to {hit.end:.1f} s"
    picture = (
        f'<img src="{source}" alt="Spectrogram of {escape(name)}, {span}" loading="lazy"'
        ' draggable="false">'
    )
    curve = band = ""
    if hit.attention is not None:
        curve = attention_svg(hit)
        left = 100 * (hit.attended_from - hit.start) / length
        width = 100 * (hit.attended_to - hit.attended_from) / length
        band = f'<span class="band" style="left:{left:.2f}%;width:{width:.2f}%"></span>'
    ticks = "".join(f"<span>{time:.1f} s</span>" for time in np.linspace(hit.start, hit.end, 5))
    slider = (
        f'role="slider" tabindex="0" aria-label="Place in {escape(name)}"'
        f' aria-valuemin="{hit.start:.1f}" aria-valuemax="{hit.end:.1f}"'
        f' aria-valuenow="{hit.start:.1f}" aria-valuetext="{hit.start:.1f} s"'
    )
    bar = (
        f'<div class="timeline" {slider}>{picture}{curve}{band}<span class="playhead"></span></div>'
    )
    return f'{bar}<div class="axis" aria-hidden="true">{ticks}</div>'


def attention_svg(hit: Hit) -> str:
    """Draw the weights over time, the highest at the top; for their times see `Hit`."""
    levels, sizes = attention_curve(hit.attention)
    heights = (100 - 94 * levels / levels.max()).tolist()
    times = (np.cumsum(sizes) - sizes / 2) * hit.frame_seconds  # of the groups' centres
    places = (1000 * times / (hit.end - hit.start)).clip(0, 1000)
    points = [(0.0, heights[0]), *zip(places, heights, strict=True), (1000.0, heights[-1])]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    label = (
        f"Attention over time, most of it from {hit.attended_from:.1f} to {hit.attended_to:.1f} s"
    )
    return (
        '<svg class="attention" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img"'
        f' aria-label="{label}"><polygon points="0,100 {line} 1000,100"/><polyline'
        f' points="{line}"/></svg>'
    )


def facts(hit: Hit) -> str:
    """Return attended place, peak of the attention, and place of the excerpt in its file."""
    heard = ""
    if hit.attention is not None:
        times = hit.attention.max() * len(hit.attention)
        heard = (
            f'<button type="button" class="heard" data-from="{hit.attended_from:.3f}"'
            ' title="Play from there: the shortest stretch with half of the attention">'
            f"listened to {hit.attended_from:.1f}–{hit.attended_to:.1f} s</button>"
            '<span title="highest weight against that of mean pooling">'
            f"peak {times:.1f} × the mean</span>"
        )
    place = f"{hit.start:.1f}–{hit.end:.1f} s of {hit.seconds:.1f} s"
    if hit.start == 0 and hit.end >= hit.seconds - 0.05:
        place = f"whole file, {hit.seconds:.1f} s"
    return f'<div class="facts">{heard}<span>{place}</span></div>'


def player(hit: Hit, name: str) -> str:
    start = f"#t={hit.start:.3f}" if hit.start else ""
    source = escape(f"recording?{urlencode({'file': hit.file})}") + start
    return (
        f'<div class="play"><audio controls preload="metadata" src="{source}"'
        f' aria-label="Play {escape(name)}"></audio><button type="button" class="like"'
        f' aria-label="More like {escape(name)}">More like this</button></div>'
    )


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
