"""The other run of a report: a checkpoint that is scored on the same clips, or the results that
evaluate.py wrote of one.

Results (metrics.json and ranks.csv in one folder) cost nothing, and may come from an ensemble or
from a cache of another sample rate. They are refused where they are not those of the same queries
and clips.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line
from retrieval.base.json_files import read_json
from retrieval.data import ClipSplit
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import all_ranks
from retrieval.evaluation.outputs import METRICS, RANKS
from retrieval.evaluation.result import EvaluationResult, first_columns
from retrieval.evaluation.score_matrix import Scorer
from retrieval.models.pretrained import load_pretrained


@dataclass(frozen=True)
class OtherRun:
    """What another run made of the same queries."""

    name: str
    ranks: list[np.ndarray]  # N, of each query's right clips, ascending
    first: list[str]  # N, the file name that was returned first


class Against:
    """`path` is a folder of results, a model folder or a .ckpt, in this order. Raises UserError for
    one that does not load.

    `check` before anything is scored, `score` on every process, `other_run` at the end.
    """

    def __init__(self, path: Path, text_encoder: Path | None):
        self.path, self.text_encoder = path, text_encoder
        check_readable(path, "--against")
        self.results = (
            _read_results(path)
            if all((path / name).is_file() for name in (METRICS, RANKS))
            else None
        )
        self.sample_rate = None if self.results else load_pretrained(path, text_encoder).sample_rate
        self.scores = None  # float32 (N, B), once scored

    def check(
        self,
        scorer: Scorer,
        split: ClipSplit,
        captions: Sequence[str],
        relevant: Sequence[Sequence[int]] | None,
    ) -> None:
        """Raises UserError where it cannot be compared, query by query, with what is to be scored;
        relevant None: a caption's own clip is right.
        """
        if self.results is None:
            if self.sample_rate != scorer.cache.sample_rate:
                raise UserError(
                    f"--against {self.path} needs {self.sample_rate} Hz, and the cache is sampled"
                    f" at {scorer.cache.sample_rate} Hz: score it on a cache of its own, with"
                    f" evaluate.py --checkpoint {self.path} --cache DIR --output RESULTS, and give"
                    " --against RESULTS"
                )
            return
        about, rows = self.results
        if relevant is None:
            num_columns = Counter(split.clip_ids)
            expected = [
                (caption, num_columns[clip_id], name)
                for clip_id, name, texts in zip(
                    split.clip_ids, split.file_names, split.captions, strict=True
                )
                for caption in texts
            ]
            found = [
                (row["query"], len(row["ranks"]), row["clip"] if len(row["ranks"]) == 1 else name)
                for row, (*_, name) in zip(rows, expected)
            ]
        else:
            expected = [
                (caption, len(set(columns)))
                for caption, columns in zip(captions, relevant, strict=True)
            ]
            found = [(row["query"], len(row["ranks"])) for row in rows]
        same_lengths = (
            about.get("sample_rate") != split.sample_rate
            or about.get("fingerprint") == split.fingerprint()
        )
        if (
            len(rows) != len(expected)
            or found != expected
            or about.get("num_clips") != len(split)
            or not same_lengths
        ):
            first = next(
                (row["query"] for row, one, other in zip(rows, found, expected) if one != other),
                None,
            )
            differs = f"; the first that differs is {first[:60]!r}" if first is not None else ""
            raise UserError(
                f"--against {self.path} holds results of other clips or queries: {len(rows)}"
                f" queries and {about.get('num_clips')} clips of split {about.get('split')!r}, to"
                f" be scored are {len(expected)} and {len(split)} of {split.name!r}{differs}; give"
                " results on the same split of the same corpus"
            )

    def score(
        self, scorer: Scorer, captions: list[str], split: ClipSplit, **batch_sizes: int | None
    ) -> None:
        """With the cache and the precision of `scorer`; nothing is done where there are results."""
        if self.results is None:
            precision = scorer.accelerator.mixed_precision  # one process has one
            other = Scorer(
                [self.path],
                scorer.cache.path,
                self.text_encoder,
                mixed_precision=precision,
                **batch_sizes,
            )
            scorer.accelerator.print(f"scoring {self.path} to compare with")
            self.scores = other.matrix(captions, split)

    def other_run(self, result: EvaluationResult) -> OtherRun:
        """For the queries of `result`."""
        if self.results is not None:
            rows = self.results[1]
            return OtherRun(
                str(self.path), [row["ranks"] for row in rows], [row["first"] for row in rows]
            )
        scores = self.scores.numpy()
        first = [
            first_columns(row, right, 1)[0]
            for row, right in zip(scores, result.relevant, strict=True)
        ]
        return OtherRun(
            str(self.path),
            all_ranks(scores, result.relevant),
            [result.file_names[clip] for clip in first],
        )


def _read_results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """metrics.json, and of ranks.csv query, clip, first and ranks. Raises UserError."""
    try:
        about = read_json(folder / METRICS)
        with open(folder / RANKS, encoding="utf-8", newline="") as file:
            rows = [
                {
                    "query": row["query"],
                    "clip": row["clip"],
                    "first": row["top_1"],
                    "ranks": np.array([int(rank) for rank in row["ranks"].split()]),
                }
                for row in csv.DictReader(file)
            ]
        if not isinstance(about, dict) or not rows or not all(len(row["ranks"]) for row in rows):
            raise ValueError("no queries, or one without a rank")
        num_clips = int(about["num_clips"])
        if not all(
            row["ranks"][0] >= 1
            and row["ranks"][-1] <= num_clips
            and (np.diff(row["ranks"]) > 0).all()
            for row in rows
        ):
            raise ValueError(f"ranks that are not 1 to {num_clips}, ascending")
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        AttributeError,
        csv.Error,
    ) as error:
        raise UserError(
            f"--against {folder}: its results cannot be read ({one_line(error)}); write them again"
            " with evaluate.py --output"
        ) from None
    return about, rows
