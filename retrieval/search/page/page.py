"""The page: its fields, buttons and answers. Every mistake becomes one line on the page.

The model answers one query at a time; others wait in Gradio's queue. Fields hold text and numbers
only: events name an upload by its reference (clients.py), so Gradio never gets a path.
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from retrieval.base.errors import UserError, counted, printable
from retrieval.search import AudioIndex, Hit
from retrieval.search.cluster.address import StoreError
from retrieval.search.facets import Facet
from retrieval.search.feedback.detectors import Detector, Mark
from retrieval.search.filters import Filters
from retrieval.search.metadata import as_written, near_names
from retrieval.search.page.audio import read_excerpt
from retrieval.search.page.clients import MAX_UPLOAD_MIB, Clients
from retrieval.search.page.events import FOLDER_FIELD, UPLOAD_FIELD
from retrieval.search.page.link import GIVE_LINK, Link, link_to, read_link, unused_line
from retrieval.search.page.results import cards, located, message, score_table
from retrieval.search.queries import short

EXAMPLES = (
    "a clock ticks quietly",
    "someone types on a keyboard",
    "a carpenter saws wood",
    "an ambulance siren wails",
    "rain pours down",
)
MAX_SENTENCES = 200
MAX_ANSWERS = 50
MAX_COLUMNS = 20  # of metadata, with a field each
MAX_DETECTORS = 200  # saved from the page
MAX_FOLDERS = 200  # in the list of folders; others are typed
MAX_WAITING = 64  # questions in the queue
MAX_SESSIONS = 256  # with their last answers, which Gradio keeps

FOLDER = Path(__file__).parent
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")
SCRIPT = (FOLDER / "results.js").read_text(encoding="utf-8")
HEAD = '<meta name="color-scheme" content="light dark">'
# fonts of the reader's machine: none is fetched
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="lg",
    font=FONT,
    font_mono=["ui-monospace", "monospace"],
).set(
    # contrast of at least 4.5, as WCAG AA asks
    body_text_color_subdued="*neutral_600",
    input_placeholder_color="*neutral_500",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)

UNREACHABLE = (
    "the index cannot be reached now: ask again in a while; the log of the command that started the"
    " page has the reason"
)
logger = logging.getLogger(__name__)


def make_page(index: AudioIndex, clients: Clients) -> gr.Blocks:
    """Return the page as Gradio's Blocks, not yet served."""
    answers = Answers(index, clients)
    in_browser = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(title="Search recordings", analytics_enabled=False) as page:
        gr.HTML(heading(index), elem_id="heading")
        with gr.Tabs():
            with gr.Tab("With words"):
                with gr.Row(elem_id="ask", equal_height=True):
                    label, one_line = "What do you want to hear?", {"lines": 1, "max_lines": 1}
                    query = gr.Textbox(label=label, placeholder=EXAMPLES[0], scale=5, **one_line)
                    search = gr.Button(
                        "Search", variant="primary", scale=1, min_width=120, elem_id="search"
                    )
                with gr.Row(elem_id="examples"):
                    small = {"size": "sm", "variant": "secondary", "min_width": 0}
                    examples = [gr.Button(example, **small) for example in EXAMPLES]
                gr.HTML('<div id="detectors"></div>', elem_id="detector-list")
            with gr.Tab("With a sound"):
                with gr.Row():
                    label = f"Your recording (at most {MAX_UPLOAD_MIB} MiB)"
                    clip = gr.File(label=label, height=190, elem_id="clip")
                    upload = gr.Textbox(visible="hidden", elem_id=UPLOAD_FIELD)
                    with gr.Column(elem_id="about-clip"):
                        label = "What else do you want to hear? (may be empty)"
                        beside = gr.Textbox(label=label, placeholder=EXAMPLES[-1], **one_line)
                        label = "Sentences to compare it with, one per line"
                        shown = "\n".join(EXAMPLES[:3])
                        sentences = gr.Textbox(label=label, placeholder=shown, lines=3, max_lines=8)
                        with gr.Row():
                            by_sound = gr.Button(
                                "Find similar recordings", variant="primary", elem_id="by-sound"
                            )
                            score = gr.Button("Score the sentences", elem_id="score")
        with gr.Accordion("Filters and more", open=False, elem_id="filters") as more:
            small, any_value = {"min_width": 140}, {"placeholder": "any", "min_width": 140}
            with gr.Row():
                folder = folder_field(index)
                shortest = gr.Number(0, label="Shortest file, s", **small)
                longest = gr.Number(None, label="Longest file, s", **any_value)
                k = gr.Slider(1, MAX_ANSWERS, value=10, step=1, label="Results", **small)
            with gr.Row():
                label = "Not to be heard"
                without = gr.Textbox("", label=label, placeholder="a sentence", **one_line, **small)
                lowest = gr.Number(None, label="Lowest score", **any_value)
                columns = [column_field(facet) for facet in answers.columns]
        status = gr.HTML(answers.greeting(), elem_id="status")
        results = gr.HTML("", elem_id="results", js_on_load=SCRIPT, apply_default_css=False)

        filters = [folder, shortest, longest, k, without, lowest, *columns]
        outputs = [status, results]
        one_at_a_time = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "api_visibility": "private",
            "show_progress": "minimal",
        }
        asked = [query.submit, search.click]
        gr.on(asked, answers.words, [query, *filters], outputs, **one_at_a_time)
        # A link fills a hidden field, whose change asks: no link, no question.
        linked = gr.Textbox(visible="hidden", elem_id="linked-query")
        usual = json.dumps([field.value for field in filters])
        script = GIVE_LINK.replace("USUAL", usual)
        page.load(None, None, [query, linked, *filters], js=script, **in_browser)
        filled, once = [*outputs, *filters, more], {"show_progress_on": outputs}
        linked.change(answers.linked, linked, filled, **once, **one_at_a_time)
        for button in examples:
            asked = button.click(None, button, query, js="(text) => text", **in_browser)
            asked.then(answers.words, [query, *filters], outputs, **one_at_a_time)
        # In the browser, so that no event carries a file. At the click: an event of the file field
        # comes later than its row, and a click at once would find no recording.
        reference = "(file) => file ? file.path : ''"
        asked = by_sound.click(None, clip, upload, js=reference, **in_browser)
        asked.then(answers.sound, [upload, beside, *filters], outputs, **one_at_a_time)
        asked = score.click(None, clip, upload, js=reference, **in_browser)
        asked.then(answers.scores, [upload, sentences], outputs, **one_at_a_time)
        results.click(answers.like, filters, outputs, **one_at_a_time)
        results.submit(answers.judged, filters, outputs, **one_at_a_time)
    page.state_session_capacity = MAX_SESSIONS
    page.queue(max_size=MAX_WAITING)
    page._queue.ANALYTICS_MAX_EVENTS = 1  # Gradio's statistics; no route shows them
    return page


def folder_field(index: AudioIndex) -> gr.Dropdown:
    """Return the list of folders. Of many, it has the upper ones; names of others can be typed."""
    folders = all_folders = index.folders
    if len(folders) > MAX_FOLDERS:
        depths = [name.count("/") for name in folders]
        counts = np.cumsum(np.bincount(depths))  # folders down to each depth
        depth = max(0, int((counts <= MAX_FOLDERS).sum()) - 1)
        upper = (name for name, own in zip(folders, depths, strict=True) if own <= depth)
        folders = list(islice(upper, MAX_FOLDERS))
    return gr.Dropdown(
        [("all folders", ""), *((name, name) for name in folders)],
        value="",
        label="Folder" if folders == all_folders else "Folder, or type one",
        allow_custom_value=True,
        elem_id=FOLDER_FIELD,
        min_width=140,
        visible=bool(all_folders),
    )


def column_field(facet: Facet) -> gr.Dropdown | gr.Textbox:
    """Return the field of a column of metadata: a list of its values, or a text if it has many.

    A text has the value "", since below a closed heading the browser sends null for none.
    """
    if facet.kind == "number":
        span = "none"
        if facet.lowest is not None:
            span = f"{as_written(facet.lowest)}..{as_written(facet.highest)}"
        return gr.Textbox(
            "", label=facet.column, placeholder=span, lines=1, max_lines=1, min_width=140
        )
    if not is_list(facet):
        shown = str(facet.values[0][0]) if facet.values else ""
        return gr.Textbox(
            "", label=facet.column, placeholder=shown, lines=1, max_lines=1, min_width=140
        )
    values = [(f"{value} ({number:,})", value) for value, number in facet.values]
    return gr.Dropdown([("any", ""), *values], value="", label=facet.column, min_width=140)


def is_list(facet: Facet) -> bool:
    """Whether the field of a column is a list of its values."""
    return facet.kind == "text" and facet.num_values <= len(facet.values)


def longest_excerpt(index: AudioIndex) -> float:
    """Return the length of the index's excerpts in seconds, plus one for rounding."""
    return index.excerpt_seconds + 1


def heading(index: AudioIndex) -> str:
    minutes = index.seconds / 60
    length = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    about = f"{counted(index.num_files, 'recording')}, {length}, in {index.folder.name}"
    if index.unreadable:
        about += f"; {counted(len(index.unreadable), 'file')} could not be read"
    names = escape("\n".join(f"{file}: {reason}" for file, reason in index.unreadable[:20]))
    return f'<h1>Search recordings</h1><p title="{names}">{escape(about)}</p>'


def answered(function: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
    """Turn errors into a status line without results."""

    @wraps(function)
    def method(self: "Answers", *arguments) -> tuple[str, str]:
        try:
            if not self.index.num_files:
                raise UserError(
                    f"the index holds no recordings: put some into {self.index.folder.name} and"
                    " index it again"
                )
            return function(self, *arguments)
        except StoreError as error:
            logger.error("%s", error)
            reason = UNREACHABLE
        except UserError as error:
            known = (self.index.folder, self.index.place.folder, self.clients.folder)
            reason = without_folders(str(error), *known)
        except Exception:
            logger.exception("the page could not answer")
            reason = (
                "the page could not answer: the log of the command that started the page has"
                " the reason"
            )
        return message(reason, "error"), ""

    return method


class Answers:
    """Handlers of the page's buttons; each returns status and results as HTML."""

    def __init__(self, index: AudioIndex, clients: Clients):
        self.index, self.clients = index, clients
        columns = index.facets().columns
        self.columns = columns[:MAX_COLUMNS]
        self.without_field = {facet.column for facet in columns[MAX_COLUMNS:]}
        self.folders = frozenset(index.folders)

    def greeting(self) -> str:
        if not self.index.num_files:
            return message(
                f"The index holds no recordings: put some into {self.index.folder.name} and index"
                " it again.",
                "error",
            )
        return message("Type a sentence and press Enter, or try one of the examples.")

    @answered
    def words(self, query: str, *fields: Any) -> tuple[str, str]:
        """Answer a sentence; fields: those below the question, as for `_wanted`."""
        return self._sentence(query, self._wanted(*fields))

    def _sentence(self, query: str, wanted: "Wanted") -> tuple[str, str]:
        answer = {"sentence": query, "link": link_to(q=query, **wanted.link)}
        if not wanted.without:
            notes, answer["can_mark"] = self._notes(query), True
            return self._found(query, lambda: self._search(query, wanted), notes, **answer)
        shown, notes = f"{query} - {wanted.without}", self._notes(query, wanted.without)
        search = partial(self._search, query, wanted, without=wanted.without)
        return self._found(shown, search, notes, **answer)

    def linked(self, link: str) -> tuple[Any, ...]:
        """Answer a link.

        Returns:
            Status and results, the values of the fields below the question, and whether these are
            shown. A field that cannot hold its value is left empty.
        """
        given = read_link(link, MAX_ANSWERS)
        has_query = bool(given.fields["q"].strip())
        status, results = self._linked(given) if has_query else (self.greeting(), "")
        if line := unused_line(given.unused):
            status += message(line)
        fields, where = given.fields, given.where
        folder = within(fields["within"])
        values = []
        for facet in self.columns:
            value = where.get(facet.column, "")
            can_hold = not is_list(facet) or value in (own for own, _ in facet.values)
            values.append(value if can_hold else "")
        return (
            *(status, results, folder if folder in self.folders else "", fields["min_seconds"]),
            *(fields["max_seconds"], fields["k"], fields["without"], fields["min_score"]),
            *(*values, gr.Accordion(open=given.has_more)),
        )

    @answered
    def _linked(self, link: Link) -> tuple[str, str]:
        given = dict(link.fields)
        query, folder = given.pop("q"), within(given.pop("within"))
        if folder and folder not in self.folders:
            near = near_names(folder, self.folders, "folders")
            raise UserError(f"the index has no folder {printable(short(folder))!r}{near}")
        if hidden := self.without_field.intersection(link.where):
            raise UserError(
                f"the page has no field for the column {hidden.pop()!r}: it has those of the first"
                f" {MAX_COLUMNS} columns"
            )
        return self._sentence(query, wanted_of(folder, **given, where=link.where))

    @answered
    def sound(self, reference: str, beside: str, *fields: Any) -> tuple[str, str]:
        """Find recordings like an upload, and a sentence together with it."""
        path, wanted = self._upload(reference), self._wanted(*fields)
        sentence, query = beside.strip() or None, f"like {path.name}"
        if not sentence and not wanted.without:
            search = self.index.search_audio
            return self._found(
                query, lambda: search(path, wanted.k, **wanted.filters), lambda: query
            )
        asked = {"audio": path} | ({"without": wanted.without} if wanted.without else {})
        given = [own for own in (sentence, wanted.without) if own]
        query += f" and {sentence!r}" if sentence else ""
        notes = self._notes(*given)
        return self._found(
            query,
            lambda: self._search(sentence, wanted, **asked),
            lambda: "; ".join(filter(None, [query, notes()])),
        )

    @answered
    def like(self, hit: gr.EventData, *fields: Any) -> tuple[str, str]:
        """Find recordings like the excerpt of a hit, without that excerpt."""
        start, end, wanted = float(hit.start), float(hit.end), self._wanted(*fields)
        excerpt = read_stretch(self.index, hit.file, start, end)

        def others() -> list[Hit]:
            found = self.index.search_audio(excerpt, wanted.k + 1, **wanted.filters)
            overlaps = [
                own.file == hit.file and own.start < end and start < own.end for own in found
            ]
            return [own for own, same in zip(found, overlaps, strict=True) if not same][: wanted.k]

        query = f"like {hit.file}, {start:.1f} to {end:.1f}\u00a0s"
        return self._found(query, others, lambda: query)

    @answered
    def judged(self, judged: gr.EventData, *fields: Any) -> tuple[str, str]:
        """Rank by answers that were marked, save this ranking, or rank by a saved one."""
        wanted, detectors = self._wanted(*fields), self.index.detectors
        note = None
        if judged.detector:
            detector = detectors.load(judged.detector)
            note = f"by the detector {judged.detector!r}, for {detector.query!r}"
            note += "; scores are probabilities"
        elif not judged.marks:
            return self._sentence(judged.query, wanted)
        else:
            detector = self.index.refine(judged.query, [Mark(**mark) for mark in judged.marks])
            note = "scores are probabilities, learned from your marks"
        if judged.name:
            if len(detectors.names()) >= MAX_DETECTORS:
                raise UserError(f"the index has {MAX_DETECTORS} detectors: delete one first")
            detector = detectors.save(detector, judged.name, overwrite=False)
            note = f"saved as the detector {judged.name!r}"
        # The link opens the answers to the sentence: marks are not in it, and other fields that a
        # detector does not use.
        link = wanted.link | {"without": "", "min_score": None}
        return self._found(
            detector.query,
            lambda: self._search(detector, wanted),
            lambda: note,
            sentence=detector.query,
            link=link_to(q=detector.query, **link),
            detector=detector,
            can_mark=True,
        )

    def _wanted(
        self,
        folder: str,
        shortest: float | None,
        longest: float | None,
        k: int,
        without: str,
        lowest: float | None,
        *values: str,
    ) -> "Wanted":
        """Read the fields below the question; values: of the columns. Raises UserError."""
        given = {
            facet.column: value.strip()
            for facet, value in zip(self.columns, values, strict=True)
            if value.strip()
        }
        return wanted_of(folder, shortest, longest, k, without, lowest, given)

    def _search(self, query: str | Detector | None, wanted: "Wanted", **parts: Any) -> list[Hit]:
        limits = {"min_score": wanted.lowest} if wanted.lowest is not None else {}
        return self.index.search(query, wanted.k, **parts, **limits, **wanted.filters)

    def _notes(self, *sentences: str) -> Callable[[], str | None]:
        return lambda: "; ".join(filter(None, map(self.index.notes, sentences))) or None

    @answered
    def scores(self, reference: str, sentences: str) -> tuple[str, str]:
        path = self._upload(reference)
        lines = [line.strip() for line in sentences.splitlines() if line.strip()]
        if not lines:
            raise UserError("there is no sentence to compare with: write one per line")
        if len(lines) > MAX_SENTENCES:
            raise UserError(
                f"at most {MAX_SENTENCES} sentences can be scored at once, found {len(lines)}"
            )
        table = score_table(lines, self.index.score_audio(path, lines))
        return message(f"{path.name} against {counted(len(lines), 'sentence')}"), table

    def _upload(self, reference: str) -> Path:
        """Return the path of the upload. Raises UserError if there is none, or if it is empty."""
        if not reference:
            raise UserError("there is no recording yet: upload one first")
        upload = self.clients.uploaded(reference)
        if not upload.size:
            raise UserError(f"{upload.name} is empty: upload another recording")
        return upload.path

    def _found(
        self,
        query: str,
        search: Callable[[], list[Hit]],
        note: Callable[[], str | None],
        **answer: Any,
    ) -> tuple[str, str]:
        """Answer with the cards of `search`, and with `note`, which is called after it.

        Args:
            query: As it is shown.
            search: Finds the answers.
            note: Adds to the status line.
            **answer: More about the answers, see `cards`.
        """
        begin = time.perf_counter()
        hits = search()
        took = f"{1000 * (time.perf_counter() - begin):.0f}\u00a0ms"
        if not hits:
            raise UserError("no recording matches the filters: widen them")
        files, in_all = len({hit.file for hit in hits}), counted(self.index.num_files, "recording")
        text = f"{counted(len(hits), 'answer')} in {files} of {in_all}, {took}"
        if not any(hit.is_match for hit in hits):
            detector = answer.get("detector")
            reason = "Nothing matches"
            if detector is not None:
                reason = f"Nothing reaches the detector's threshold of {detector.threshold:.3f}"
            text = f"{reason}. The nearest: {text}"
        found = cards(query, hits, self.index, **answer)
        return message("; ".join(filter(None, [text, note()]))), found


@dataclass(frozen=True)
class Wanted:
    """What the fields below the question say.

    Attributes:
        k: Number of answers.
        filters: Filters of AudioIndex.search.
        without: A sentence that should not be heard, or "".
        lowest: Lowest score, or None.
        link: Fields of the link to the query, but for its sentence.
    """

    k: int
    filters: dict[str, Any]
    without: str
    lowest: float | None
    link: dict[str, Any]


def wanted_of(
    folder: str,
    min_seconds: float | None,
    max_seconds: float | None,
    k: int,
    without: str,
    min_score: float | None,
    where: dict[str, str],
) -> Wanted:
    """Read the fields below the question; where: values by column. Raises UserError."""
    limits = filters(folder, min_seconds, max_seconds) | ({"where": where} if where else {})
    link = {"within": folder, "min_seconds": min_seconds or 0.0, "max_seconds": max_seconds}
    link |= {"k": k, "without": without.strip(), "min_score": min_score, "where": where}
    return Wanted(k, limits, without.strip(), min_score, link)


def within(folder: str) -> str:
    """Return the name of a folder as the index has it: without slashes at its end."""
    return Filters(within=folder).folder


def read_stretch(index: AudioIndex, file: str, start: float, end: float) -> tuple[np.ndarray, int]:
    """Read a part of a recording, at most as long as an excerpt; see read_excerpt.

    Raises UserError.
    """
    if not 0 <= start < end <= start + longest_excerpt(index):
        raise UserError(
            f"start and end of a sound must be seconds, at most {longest_excerpt(index):.0f} apart"
        )
    return read_excerpt(located(file, index), start, end)


def filters(folder: str, shortest: float | None, longest: float | None) -> dict[str, str | float]:
    """Return the filters of AudioIndex.search. Raises UserError."""
    least, most = shortest or 0.0, math.inf if longest is None else longest
    if least > most:
        raise UserError(
            f"no file is longer than {least:g} s and shorter than {most:g} s: change the filters"
        )
    return {"min_seconds": least, "max_seconds": most, "within": folder}


def without_folders(text: str, *known: Path) -> str:
    """Remove the folders of this machine from the file names in a message for the browser.

    Args:
        text: The message.
        known: Folders to remove even if their names contain spaces.
    """
    for folder in known:
        # also the folder of an upload
        text = re.sub(re.escape(f"{folder.resolve()}/") + "([0-9a-f]{32}/)?", "", text)
    return re.sub(r"(?<![\w/.])/(?:[^/\s'\"]+/)+", "", text)
