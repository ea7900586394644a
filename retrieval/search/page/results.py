"""Answers as HTML. Names of files and sentences may come from anyone, so everything is escaped
here.
"""

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
    return f'<ol class="hits">{"".join(card(rank, hit, index) for rank, hit in enumerate(hits, 1))}</ol>'


def located(file: str, index: AudioIndex) -> Path:
    """Return the path of a file of the index.

    Raises UserError, without folders of this machine, for a missing file and for any file outside
    the index.
    """
    try:
        return index.path_of(file)
    except UserError:
        raise UserError(
            f"{file!r} is no recording of this index, or no longer there: bring the index up to"
            " date and start the page again"
        ) from None


def card(rank: int, hit: Hit, index: AudioIndex) -> str:
    """A hit with its player and picture, or with the reason why there is none."""
    folder, _, name = hit.file.rpartition("/")
    folder = f'<span class="folder">{escape(folder)}/</span>' if folder else ""
    heading = (
        f'<header><span class="rank" aria-hidden="true">{rank}</span><h2'
        f' title="{escape(hit.file)}">{folder}{escape(name)}</h2><span class="score" title="cosine'
        f' similarity">{hit.score:.3f}</span></header>'
    )
    try:
        located(hit.file, index)
        body = timeline(hit, name) + facts(hit) + player(hit, name)
    except UserError as error:
        body = message(str(error), "error")
    data = f'data-file="{escape(hit.file)}" data-start="{hit.start:.3f}" data-end="{hit.end:.3f}"'
    return (
        f'<li class="hit" {data}><article aria-label="{rank}:'
        f' {escape(name)}">{heading}{body}</article></li>'
    )


def timeline(hit: Hit, name: str) -> str:
    """Return an excerpt from left to right: spectrogram, attention, and its strongest stretch. A
    click or an arrow key moves the player.
    """
    length = hit.end - hit.start
    source = escape(
        "picture?"
        + urlencode({"file": hit.file, "start": f"{hit.start:.3f}", "end": f"{hit.end:.3f}"})
    )
    span = f"{hit.start:.1f} to {hit.end:.1f} s"
    picture = (
        f'<img src="{source}" alt="Spectrogram of {escape(name)}, {span}" loading="lazy"'
        ' draggable="false">'
    )
    curve = band = ""
    if hit.attention is not None:
        curve = attention_svg(hit)
        left, width = (
            100 * (hit.attended_from - hit.start) / length,
            100 * (hit.attended_to - hit.attended_from) / length,
        )
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
    """Draw the weights over time, their highest at the top; frame t is centred at (t + 0.5)
    frame_seconds of the excerpt.
    """
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
    parts = []
    if hit.attention is not None:
        times = hit.attention.max() * len(hit.attention)
        listened = f"listened to {hit.attended_from:.1f}–{hit.attended_to:.1f} s"
        title = "Play from there: the shortest stretch with half of the attention"
        parts.append(
            f'<button type="button" class="heard" data-from="{hit.attended_from:.3f}"'
            f' title="{title}">{listened}</button>'
        )
        parts.append(
            f'<span title="highest weight against that of mean pooling">peak {times:.1f} × the'
            " mean</span>"
        )
    whole = hit.start == 0 and hit.end >= hit.seconds - 0.05
    parts.append(
        f"<span>{f'whole file, {hit.seconds:.1f} s' if whole else f'{hit.start:.1f}–{hit.end:.1f} s of {hit.seconds:.1f} s'}</span>"
    )
    return f'<div class="facts">{"".join(parts)}</div>'


def player(hit: Hit, name: str) -> str:
    source = escape("recording?" + urlencode({"file": hit.file})) + (
        f"#t={hit.start:.3f}" if hit.start else ""
    )
    return (
        f'<div class="play"><audio controls preload="metadata" src="{source}" aria-label="Play'
        f' {escape(name)}"></audio><button type="button" class="like" aria-label="More like'
        f' {escape(name)}">More like this</button></div>'
    )


def score_table(sentences: list[str], scores: list[float]) -> str:
    """Sentences with their scores, best first; the bars compare them with the highest."""
    ranked = sorted(zip(scores, sentences, strict=True), reverse=True)
    top = max(ranked[0][0], 1e-9)
    rows = "".join(
        f'<tr><td class="sentence">{escape(sentence)}</td><td class="bar"><span'
        f' style="width:{max(0.0, 100 * score / top):.1f}%"></span></td><td>{score:.3f}</td></tr>'
        for score, sentence in ranked
    )
    head = (
        '<tr><th scope="col">sentence</th><th scope="col"><span class="hidden">bar</span></th><th'
        ' scope="col">score</th></tr>'
    )
    return f'<table class="scores"><thead>{head}</thead><tbody>{rows}</tbody></table>'
