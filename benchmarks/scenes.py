"""Captions that name one event of a scene with several: they need TAP most."""

import json
from pathlib import Path

from retrieval.base.errors import UserError, one_line

MIN_EVENTS = 3


def single_event_captions(scenes: Path, split: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Return (onset, end) in s of the one event that a (file name, caption) names.

    `scenes` is the scenes.json of the sample corpus. Raises UserError.
    """
    try:
        clips = json.loads(scenes.read_text(encoding="utf-8"))["clips"]
        spans = {}
        for clip in clips:
            if clip["split"] == split and len(clip["events"]) >= MIN_EVENTS:
                for caption in clip["captions"]:
                    if len(caption["events"]) == 1:
                        event = clip["events"][caption["events"][0]]
                        spans[clip["file_name"], caption["text"]] = (
                            event["onset"],
                            event["onset"] + event["duration"],
                        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"--scenes {scenes} cannot be read ({one_line(error)}); it is the scenes.json of"
            " data_prep/make_sample_corpus.py"
        ) from None
    if not spans:
        raise UserError(
            f"--scenes {scenes} has no caption of split {split!r} that names one event of"
            f" {MIN_EVENTS} or more"
        )
    return spans
