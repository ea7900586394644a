"""Validate the events of the page: only values that its own fields can hold reach Gradio's queue.

Gradio opens every path and URL in an event, at any depth. Here fields accept text and numbers only,
so Gradio never gets a file object.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Container
from typing import Any

import gradio as gr

from retrieval.search import AudioIndex
from retrieval.search.page.clients import Refused

UPLOAD_FIELD = "upload-reference"  # elem_id of the field with the reference of the upload
FOLDER_FIELD = "folder"  # elem_id of the field with a folder of the index
MAX_MARKS = 500
MAX_NUMBER = 1e9  # of seconds
SESSION_HASH = re.compile(r"[A-Za-z0-9_-]{1,64}")
KEYS = {"data", "event_data", "fn_index", "trigger_id", "session_hash"}

Rule = Callable[[Any], bool]


class Events:
    """Events that a browser may post for a page.

    Args:
        page: Gradio's complete Blocks.
        index: Names the files and folders that an event may name.
    """

    def __init__(self, page: gr.Blocks, index: AudioIndex):
        self.file_of, folders = index.file, frozenset(index.folders)
        self.rules: dict[int, list[Rule]] = {}
        self.uploads: dict[int, list[bool]] = {}  # whether a field holds the reference of an upload
        self.checks: dict[int, Callable[[Any], None]] = {}  # of event_data
        for number, function in page.fns.items():
            if function.fn is None:
                continue
            self.rules[number] = [rule_of(block, folders) for block in function.inputs]
            self.uploads[number] = [block.elem_id == UPLOAD_FIELD for block in function.inputs]
            parameters = inspect.signature(function.fn).parameters.values()
            if any(parameter.annotation is gr.EventData for parameter in parameters):
                checks = {"like": self._check_hit, "judged": self._check_judged}
                self.checks[number] = checks[function.fn.__name__]

    def read(self, body: bytes) -> tuple[dict[str, Any], list[str]]:
        """Parse and check the body of an event.

        Returns:
            The event, and the references of the uploads that it names.

        Raises:
            Refused: The page itself would never send this body.
        """
        event = parse(body)
        if not isinstance(event, dict) or not set(event) <= KEYS:
            raise Refused(400, f"an event is an object with the keys {', '.join(sorted(KEYS))}")
        number, data = event.get("fn_index"), event.get("data")
        session_hash, trigger = event.get("session_hash"), event.get("trigger_id")
        if type(number) is not int or number not in self.rules:
            raise Refused(404, "the page has no such event")
        if not isinstance(session_hash, str) or not SESSION_HASH.fullmatch(session_hash):
            raise Refused(400, "session_hash must be letters and digits")
        if trigger is not None and (type(trigger) is not int or not 0 <= trigger < 2**31):
            raise Refused(400, "trigger_id must be a number")
        rules = self.rules[number]
        if not isinstance(data, list) or len(data) != len(rules):
            raise Refused(422, f"this event has {len(rules)} arguments")
        for place, (rule, value) in enumerate(zip(rules, data, strict=True)):
            if not rule(value):
                raise Refused(
                    422, f"argument {place} is not a value that this field of the page can hold"
                )
        hit = event.get("event_data")
        if number in self.checks:
            self.checks[number](hit)
        elif isinstance(hit, str):
            hit = None  # a change of a text field sends its text along: Gradio needs none of it
        elif hit is not None:
            raise Refused(422, "event_data does not belong to this event")
        clean = {
            "data": data,
            "event_data": hit,
            "fn_index": number,
            "trigger_id": trigger,
            "session_hash": session_hash,
        }
        fields = zip(data, self.uploads[number], strict=True)
        return clean, [value for value, is_upload in fields if is_upload and value]

    def _check_hit(self, hit: Any) -> None:
        """Check the excerpt that answers should be like."""
        if not isinstance(hit, dict) or set(hit) != {"file", "start", "end"}:
            raise Refused(422, "event_data must have the keys file, start, end")
        if hit["start"] is None or hit["end"] is None:
            raise Refused(422, "start and end of event_data must be seconds")
        self._check_span(hit)

    def _check_judged(self, judged: Any) -> None:
        """Check answers that were marked, or the name of a detector."""
        if not isinstance(judged, dict) or set(judged) != {"query", "marks", "name", "detector"}:
            raise Refused(422, "event_data must have the keys query, marks, name, detector")
        marks = judged["marks"]
        texts = (judged[key] for key in ("query", "name", "detector"))
        if not all(isinstance(text, str) for text in texts):
            raise Refused(422, "query, name and detector of event_data must be text")
        if not isinstance(marks, list) or len(marks) > MAX_MARKS:
            raise Refused(422, f"at most {MAX_MARKS} answers can be marked")
        for mark in marks:
            if not isinstance(mark, dict) or set(mark) != {"file", "start", "end", "right"}:
                raise Refused(422, "a mark must have the keys file, start, end, right")
            if type(mark["right"]) is not bool:
                raise Refused(422, "right of a mark must be true or false")
            self._check_span(mark)

    def _check_span(self, span: dict[str, Any]) -> None:
        """Check file, start and end; a mark may have no times."""
        file = self.file_of(span["file"]) if isinstance(span["file"], str) else None
        if file is None:
            raise Refused(404, "event_data names no recording of this index")
        start, end = span["start"], span["end"]
        if not all(time is None or is_number(time) and time >= 0 for time in (start, end)):
            raise Refused(422, "start and end of event_data must be seconds")
        if start is not None and end is not None and start >= end:
            raise Refused(422, "start and end of event_data must be seconds")
        if start is not None and start >= file.seconds:
            raise Refused(422, "start lies beyond the end of the recording")


def parse(body: bytes) -> Any:
    """Parse strict JSON: no NaN, no infinities, limited depth. Raises Refused."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER and math.isfinite(value)


def rule_of(block: Any, folders: Container[str]) -> Rule:
    """Return the check for values of a component. Raises TypeError for an unknown kind."""
    if isinstance(block, gr.Textbox):
        return lambda value: isinstance(value, str)
    if isinstance(block, gr.Slider):
        return lambda value: (
            is_number(value) and block.minimum <= value <= block.maximum and value == int(value)
        )
    if isinstance(block, gr.Number):
        return lambda value: value is None or is_number(value)
    if block.elem_id == FOLDER_FIELD:  # it may show some of the folders only

        def is_folder(value: Any) -> bool:
            if isinstance(value, str) and value and value not in folders:
                raise Refused(422, "the index has no such folder")
            return isinstance(value, str)

        return is_folder
    if isinstance(block, gr.Dropdown):
        choices = {choice for _, choice in block.choices}
        return lambda value: isinstance(value, str) and value in choices
    raise TypeError(
        f"an event of the page takes a {type(block).__name__}: add a rule for it in rule_of"
    )
