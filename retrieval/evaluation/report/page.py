"""Fill in page.html with Jinja, which escapes all text, and write it with its figures; style and
script are embedded.

A policy in the page forbids the network and every script but the page's own, so that no caption can
run or load anything. Long captions are cut and long lists shortened here, but not in
report.json.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from retrieval.base.files import atomic_writer
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import DIRECTIONS
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
    """Return the HTML of the figures of `writing.collect`; it depends on no other file."""
    has_other = figures["against"] is not None
    # most ranks won against the other run first; without one, the worst rank first
    if has_other:
        rows = sorted(figures["queries"], key=lambda row: (-row["won"], row["rank"]))
    else:
        rows = sorted(figures["queries"], key=lambda row: -row["rank"])
    # shown without JavaScript; with two runs, both ends of the list
    first_rows = rows[:ROWS_WITHOUT_SCRIPT]
    if has_other and len(rows) > ROWS_WITHOUT_SCRIPT:
        first_rows = rows[: ROWS_WITHOUT_SCRIPT // 2] + rows[-ROWS_WITHOUT_SCRIPT // 2 :]
    # Bars up to the last one that has a query.
    counts = [figures["rank_histogram"][direction]["counts"] for direction in DIRECTIONS]
    last_rank = 1 + max(bar for bars in counts for bar, count in enumerate(bars) if count)
    return fill(
        FOLDER / "page.html",
        **figures,
        media=media,
        directions=DIRECTIONS,
        last_rank=last_rank,
        table=_table(rows[:MAX_ROWS], has_other),
        first_rows=first_rows,
        max_rows=MAX_ROWS,
        max_pairs=MAX_PAIRS,
        max_keywords=MAX_KEYWORDS,
    )


def fill(template: Path, **values: Any) -> str:
    """Fill in a template, which has `style`, `script` and `policy` of all report pages.

    Args:
        template: HTML for Jinja.
        **values: Its variables.
    """
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
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        values,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"{POLICY}; script-src 'sha256-{digest}'",
    )


def write_page(page: Path, html: str, figures: Path, content: Any) -> None:
    """Write a page and, as JSON beside it, its figures, and say so.

    Raises:
        UserError: The disk is full or read-only.
    """
    with atomic_writer(page) as file, atomic_writer(figures) as numbers:
        file.write(html)
        json.dump(content, numbers, indent=1, ensure_ascii=False)
        numbers.write("\n")
    print(f"written: {page} ({len(html.encode()) / 2**20:.1f} MiB), {figures}")


def _table(rows: list[dict[str, Any]], has_other: bool) -> dict[str, Any]:
    """Pack the rows for page.js, with each file name once."""
    names: dict[str, int] = {}
    columns = ["rank", "other_rank", "won"] if has_other else ["rank"]
    cells = []
    for row in rows:
        clips = [names.setdefault(cut(row[name]), len(names)) for name in ("clip", "first")]
        cells.append([cut(row["query"]), *clips, *(row[column] for column in columns)])
    return {"names": list(names), "rows": cells}


def cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def signed(fraction: float) -> str:
    return minus(f"{100 * fraction:+.2f}")


def minus(number: str) -> str:
    """Use the minus sign that is as wide as a plus."""
    return number.replace("-", "−")
