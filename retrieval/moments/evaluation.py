"""Queries and result files of `evaluate.py --moments`."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from retrieval.base.errors import UserError
from retrieval.base.files import atomic_writer
from retrieval.base.sound_files import without_ending
from retrieval.data import ClipSplit, MomentQuery
from retrieval.evaluation.metrics.audio_moment_retrieval.scoring import NAMES
from retrieval.evaluation.outputs import MOMENTS, MOMENTS_TABLE, ScoringRecord, provenance
from retrieval.evaluation.relevance import quoted
from retrieval.moments.files import Answer, Query, Truth
from retrieval.moments.result import MomentResult, score_answers
from retrieval.moments.spans import Moment

HEADER = ("qid", "query", "file_name", "seconds", "windows", "start", "end", "score", "iou")
HEADER += ("ap", "ap@0.5", "ap@0.75", "predictions")


def check_has_moments(split: ClipSplit) -> None:
    """Raise UserError if no clip of a split has queries with times."""
    if not split.has_moments:
        raise UserError(
            f"split {split.name!r} has {len(split)} clips and no queries with times: build the"
            " cache with times (docs/corpora.md), or choose another --split"
        )


def match_queries(queries: Sequence[Query], split: ClipSplit) -> list[list[MomentQuery]]:
    """Return the queries of each clip: `vid` is the file name, with or without folder and ending.

    Accents may be written as characters of their own (NFD); those of a cache are not.

    Raises:
        UserError: The split lacks a recording, or has two of that name.
    """
    clips: dict[str, set[int]] = {}
    queries = [replace(query, vid=normalize("NFC", query.vid)) for query in queries]
    for clip, file_name in enumerate(map(partial(normalize, "NFC"), split.file_names)):
        for name in (file_name, PurePosixPath(file_name).name):
            clips.setdefault(name, set()).add(clip)
            clips.setdefault(without_ending(name), set()).add(clip)
    vids = dict.fromkeys(query.vid for query in queries)
    if unknown := [vid for vid in vids if vid not in clips]:
        raise UserError(
            f"split {split.name!r} lacks {len(unknown)} of the {len(vids)} recordings that the"
            f" queries name: {quoted(unknown)}; a vid is the file name without its ending"
        )
    if ambiguous := [vid for vid in vids if len(clips[vid]) > 1]:
        raise UserError(
            f"split {split.name!r} has several recordings for {quoted(ambiguous)}: rename all but"
            " one"
        )
    asked: list[list[MomentQuery]] = [[] for _ in split.file_names]
    for query in queries:
        asked[min(clips[query.vid])].append(MomentQuery(query.qid, query.query, ()))
    return asked


def as_asked(answers: Sequence[Answer], queries: Sequence[Query]) -> list[Answer]:
    """Put answers into the order of their queries, with the queries' names of recordings."""
    by_qid = {answer.qid: answer for answer in answers}
    return [replace(by_qid[query.qid], vid=query.vid) for query in queries]


def clips_of(split: ClipSplit) -> list[int]:
    """Return the number of each query's clip."""
    return [clip for clip, queries in enumerate(split.moments) for _ in queries]


def whole_recordings(truths: Sequence[Truth]) -> MomentResult:
    """Score the answer that needs no model: each recording as a whole."""
    answers = [
        Answer(one.qid, one.query, one.vid, one.duration, [Moment(0.0, one.duration, 1.0)])
        for one in truths
    ]
    return score_answers(answers, truths)


def write_moments(
    folder: Path,
    result: MomentResult,
    split: ClipSplit,
    record: ScoringRecord,
    about: dict[str, Any],
) -> None:
    """Write moments.json, metrics and origin, and moments.csv, a row for each query.

    Args:
        folder: Made if absent.
        result: Of all queries of `split`.
        split: The clips.
        record: Origin of the answers.
        about: Settings of the answers, such as their method.

    Raises:
        UserError: The disk is full or read-only.
    """
    content = {
        "metrics": result.metrics,
        "whole_recording": whole_recordings(result.truths).metrics,
        **record.to_json(),
        **about,
        "split": split.name,
        "num_clips": len({truth.vid for truth in result.truths}),
        "num_queries": len(result.truths),
        "num_windows": sum(len(truth.windows) for truth in result.truths),
        **provenance(),
    }
    with atomic_writer(folder / MOMENTS) as file, atomic_writer(folder / MOMENTS_TABLE) as table:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        writer = csv.writer(table)
        writer.writerow(HEADER)
        writer.writerows(_rows(result, split))
    print(f"written: {folder / MOMENTS}, {folder / MOMENTS_TABLE}")


def _rows(result: MomentResult, split: ClipSplit) -> Iterator[list[Any]]:
    columns = dict(zip(NAMES, result.columns.T))
    clips = clips_of(split)
    for number, (answer, truth) in enumerate(zip(result.answers, result.truths)):
        first = [f"{value:.4f}" for value in answer.moments[0]] if answer.moments else [""] * 3
        windows = " ".join(f"{start:.4f}-{end:.4f}" for start, end in truth.windows)
        values = [columns[name][number] for name in ("mIoU", "mAP", "mAP@0.5", "mAP@0.75")]
        yield [
            *(truth.qid, truth.query, split.file_names[clips[number]]),
            *(f"{truth.duration:.4f}", windows, *first),
            *(f"{value:.6f}" for value in values),
            len(answer.moments),
        ]
