"""The page of a report: page.html filled in by Jinja, which escapes all text, with style and script
inside.

A policy in the page forbids the network and every script but the page's own, so that what a caption
holds cannot run or load anything. Long captions are cut and long lists bounded here; report.json
has them whole.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from retrieval.evaluation.ranks import DIRECTIONS
from retrieval.evaluation.report.media import Media

FOLDER = Path(__file__).parent
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; base-uri"
    " 'none'; form-action 'none'"
)
MAX_CHARACTERS = 400  # of a caption
MAX_ROWS = 20_000  # queries of the table, about 5 MB
ROWS_WITHOUT_SCRIPT = 50
MAX_PAIRS, MAX_KEYWORDS = 100, 200


def render(figures: dict[str, Any], media: Media) -> str:
    """HTML of the figures that `writing.collect` gives. Nothing in it depends on another file."""
    rows = _sorted_queries(figures)
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "cut": cut,
        "percent": percent,
        "signed": signed,
        "count": "{:,}".format,
        "minus": minus,
    }
    template = environment.from_string((FOLDER / "page.html").read_text(encoding="utf-8"))
    return template.render(
        figures,
        media=media,
        directions=DIRECTIONS,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"{POLICY}; script-src 'sha256-{digest}'",
        last_rank=_last_rank(figures["rank_histogram"]),
        table=_table(rows[:MAX_ROWS], figures["against"] is not None),
        first_rows=_first_rows(rows, figures["against"] is not None),
        max_rows=MAX_ROWS,
        max_pairs=MAX_PAIRS,
        max_keywords=MAX_KEYWORDS,
    )


def cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def signed(fraction: float) -> str:
    return minus(f"{100 * fraction:+.2f}")


def minus(number: str) -> str:
    """With the sign that is as wide as a plus."""
    return number.replace("-", "−")


def _last_rank(histogram: dict[str, Any]) -> int:
    """Bars up to the last one that has a query."""
    return 1 + max(
        bar
        for direction in DIRECTIONS
        for bar, count in enumerate(histogram[direction]["counts"])
        if count
    )


def _sorted_queries(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """By the ranks won against the other run, most first, or else the lowest rank first."""
    if figures["against"] is not None:
        return sorted(figures["queries"], key=lambda row: (-row["won"], row["rank"]))
    return sorted(figures["queries"], key=lambda row: -row["rank"])


def _first_rows(rows: list[dict[str, Any]], has_other: bool) -> list[dict[str, Any]]:
    """What is listed where no script runs; of two runs both ends."""
    if not has_other or len(rows) <= ROWS_WITHOUT_SCRIPT:
        return rows[:ROWS_WITHOUT_SCRIPT]
    return rows[: ROWS_WITHOUT_SCRIPT // 2] + rows[-ROWS_WITHOUT_SCRIPT // 2 :]


def _table(rows: list[dict[str, Any]], has_other: bool) -> dict[str, Any]:
    """The rows as the script reads them; file names once."""
    names: dict[str, int] = {}
    columns = ["rank", "other_rank", "won"] if has_other else ["rank"]
    cells = [
        [
            cut(row["query"]),
            *(names.setdefault(cut(row[name]), len(names)) for name in ("clip", "first")),
            *(row[column] for column in columns),
        ]
        for row in rows
    ]
    return {"names": list(names), "rows": cells}
