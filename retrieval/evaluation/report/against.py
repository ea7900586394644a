"""The run that a report compares with: a checkpoint to score, or stored results.

Results (metrics.json and ranks.csv in one folder) take no time, and may come from several
checkpoints or from a cache of another sample rate. They must be of the same queries and clips.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line
from retrieval.base.files import read_json
from retrieval.data import ClipSplit
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import all_ranks, first_columns
from retrieval.evaluation.outputs import METRICS, RANKS, RankTable, read_ranks
from retrieval.evaluation.result import EvaluationResult
from retrieval.evaluation.score_matrix import Scorer, cache_rate
from retrieval.models.pretrained import load_pretrained


@dataclass(frozen=True)
class OtherRun:
    """Answers of another run to the same queries."""

    name: str
    ranks: list[np.ndarray]  # N, of each query's right clips, ascending
    first: list[str]  # N, the file name that was returned first


@dataclass(frozen=True)
class StoredResults:
    """Contents of metrics.json and ranks.csv; None: an older version did not write it."""

    split: str | None
    num_clips: int
    sample_rate: int | None  # Hz
    fingerprint: str | None
    table: RankTable


class Against:
    """The other run. Call `check` before scoring, `score` on every process, then `other_run`.

    Args:
        path: Folder of results, model folder or .ckpt, tried in this order.
        text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: roberta-large.
        batch_sizes: `audio_batch_size` and `text_batch_size` of a checkpoint; None: as in its run.

    Raises:
        UserError: The checkpoint does not load, or the results cannot be read.
    """

    def __init__(
        self,
        path: Path,
        text_encoder: Path | None,
        batch_sizes: dict[str, int | None] | None = None,
    ):
        self.path, self.text_encoder, self.batch_sizes = path, text_encoder, batch_sizes or {}
        check_readable(path, "--against")
        has_results = all((path / name).is_file() for name in (METRICS, RANKS))
        self.results = _read_results(path) if has_results else None
        self.sample_rate = None if has_results else cache_rate(load_pretrained(path, text_encoder))
        self.scores = None  # float32 (N, B), after `score`

    def check(
        self,
        scorer: Scorer,
        split: ClipSplit,
        captions: Sequence[str],
        relevant: Sequence[Sequence[int]] | None,
    ) -> None:
        """Raise UserError if the two runs cannot be compared query by query.

        Args:
            scorer: This run.
            split: The clips that it scores.
            captions: N queries.
            relevant: For each query the columns of its right clips; None: the captions' own clips.
        """
        if self.results is None:
            if self.sample_rate not in (None, scorer.cache.sample_rate):
                raise UserError(
                    f"--against {self.path} needs {self.sample_rate} Hz, and the cache is sampled"
                    f" at {scorer.cache.sample_rate} Hz: score it on a cache of its own, with"
                    f" evaluate.py --checkpoint {self.path} --cache DIR --output RESULTS, and give"
                    " --against RESULTS"
                )
            return
        theirs, table = self.results, self.results.table
        num_right = [len(ranks) for ranks in table.ranks]
        if relevant is not None:
            expected = [
                (caption, len(set(columns)))
                for caption, columns in zip(captions, relevant, strict=True)
            ]
            found = list(zip(table.queries, num_right, strict=True))
        else:
            num_columns = Counter(split.clip_ids)
            clips = zip(split.clip_ids, split.file_names, split.captions, strict=True)
            expected = [
                (caption, num_columns[clip_id], name)
                for clip_id, name, texts in clips
                for caption in texts
            ]
            # Of several right clips any may stand highest: their names are not compared.
            names = [
                clip if number == 1 else name
                for clip, number, (*_, name) in zip(table.clips, num_right, expected, strict=False)
            ]
            found = list(zip(table.queries, num_right, names, strict=False))
        same_clips = theirs.num_clips == len(split) and (
            theirs.sample_rate != split.sample_rate or theirs.fingerprint == split.fingerprint()
        )
        if not same_clips or len(table.queries) != len(expected) or found != expected:
            differing = (
                one[0] for one, other in zip(found, expected, strict=False) if one != other
            )
            first = next(differing, None)
            differs = f"; the first that differs is {first[:60]!r}" if first is not None else ""
            raise UserError(
                f"--against {self.path} holds results of other clips or queries:"
                f" {len(table.queries)} queries and {theirs.num_clips} clips of split"
                f" {theirs.split!r}, and this run scores {len(expected)} and {len(split)} of"
                f" {split.name!r}{differs}; give results on the same split of the same corpus"
            )

    def score(self, scorer: Scorer, captions: list[str], split: ClipSplit) -> None:
        """Score a checkpoint with the cache and precision of `scorer`; skip stored results."""
        if self.results is None:
            other = Scorer(
                [self.path],
                scorer.cache.path,
                self.text_encoder,
                scorer.accelerator.mixed_precision,
                **self.batch_sizes,
            )
            scorer.accelerator.print(f"scoring {self.path} to compare with")
            self.scores = other.matrix(captions, split)

    def other_run(self, result: EvaluationResult) -> OtherRun:
        """Return the other run's answers to the queries of `result`."""
        if self.results is not None:
            table = self.results.table
            return OtherRun(str(self.path), table.ranks, table.first)
        scores = self.scores.numpy()
        first = [
            result.file_names[first_columns(row, right, 1)[0]]
            for row, right in zip(scores, result.relevant, strict=True)
        ]
        return OtherRun(str(self.path), all_ranks(scores, result.relevant), first)


def _read_results(folder: Path) -> StoredResults:
    """Read metrics.json and ranks.csv. Raises UserError."""
    try:
        metrics = read_json(folder / METRICS)
        results = StoredResults(
            metrics.get("split"),
            int(metrics["num_clips"]),
            metrics.get("sample_rate"),
            metrics.get("fingerprint"),
            read_ranks(folder / RANKS),
        )
        for ranks in results.table.ranks:
            if ranks[0] < 1 or ranks[-1] > results.num_clips or (np.diff(ranks) <= 0).any():
                raise ValueError(f"ranks that are not 1 to {results.num_clips}, ascending")
    except (OSError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(
            f"--against {folder}: its results cannot be read ({one_line(error)}); write them again"
            " with evaluate.py --output"
        ) from None
    return results
