"""Parallel, resumable writing of Arrow shard files, a few hundred clips each.

A shard is one Arrow IPC stream with one record batch a clip, so that a process holds one clip at a
time. It is written under another name, synced and renamed; then a small JSON report is written the
same way. A report whose digest fits (settings, captions, and size and time of every source file)
marks a shard that a later run need not write again.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data_prep.cache.audio_codec import EncodedClip, encode_clip, encode_samples
from data_prep.cache.moments import MOMENTS_TYPE, Tally, as_row, clean
from retrieval.base.errors import UserError
from retrieval.base.files import atomic_path, read_json
from retrieval.base.processes import end_with_parent
from retrieval.base.progress import bar
from retrieval.base.sound import UnreadableSound
from retrieval.data.moments import MomentQuery
from retrieval.data.schema import AUDIO, CAPTIONS, CLIP_ID, FILE_NAME, MOMENTS, NUM_SAMPLES

# numbers in the report of a shard; cache.json holds their sums
COUNTS = (
    "num_clips",
    "num_captions",
    "num_samples",
    "num_clipped_samples",
    "num_cut_clips",
    "num_one_channel_clips",
)


class MadeSound(Protocol):
    """A sound that a builder makes in place of a file. It travels to a worker: keep it small."""

    def samples(self) -> np.ndarray:
        """Return float32 (S,) in [-1, 1] at the cache's sample rate."""

    def digest(self) -> list[Any]:
        """Return everything that decides the samples, as JSON."""


@dataclass(frozen=True)
class Clip:
    """One row of the cache, before its audio is read."""

    clip_id: str  # unique in the cache
    file_name: str
    path: str
    captions: tuple[str, ...]
    metadata: dict[str, str]  # column -> value, the same columns for every clip of a cache
    moments: tuple[MomentQuery, ...] = ()  # windows in any order; cleaned when the sound is read
    made: MadeSound | None = None  # takes the place of the file at `path`, which is then empty


@dataclass(frozen=True)
class ShardJob:
    """A shard to write."""

    split: str
    clips: tuple[Clip, ...]
    codec: str
    sample_rate: int
    max_seconds: float | None  # longer clips are cut
    arrow_path: Path
    report_path: Path
    digest: str
    journal: dict[str, Any] | None = None  # of a streamed corpus, kept in the report (stream.py)
    has_moments: bool = False  # write the column `moments`


def shard_digest(
    clips: tuple[Clip, ...], settings: dict[str, Any], has_moments: bool = False
) -> str:
    """Return a digest of settings, captions, metadata, and size and time of the source files.

    A made sound gives its own digest. Moments count if the shard has their column.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for clip in clips:
        row = [clip.clip_id, clip.file_name, clip.captions, clip.metadata]
        if clip.made is None:
            status = os.stat(clip.path)
            row += [status.st_size, status.st_mtime_ns]
        else:
            row += clip.made.digest()
        row += [as_row(clip.moments)] if has_moments else []
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def finished_report(job: ShardJob) -> dict[str, Any] | None:
    """Return the report of an earlier run if its shard can be used as it is."""
    try:
        report = read_json(job.report_path)
        is_whole = report["num_bytes"] == job.arrow_path.stat().st_size
        is_same = report["digest"] == job.digest and report.keys() >= set(COUNTS)
    except (OSError, ValueError, KeyError):
        return None
    return report if is_whole and is_same else None


def cache_schema(metadata_columns: list[str], has_moments: bool = False) -> pa.Schema:
    return pa.schema(
        [
            (CLIP_ID, pa.string()),
            (FILE_NAME, pa.string()),
            (AUDIO, pa.large_binary()),
            (NUM_SAMPLES, pa.int64()),
            (CAPTIONS, pa.list_(pa.string())),
            *((column, pa.string()) for column in metadata_columns),
            *([(MOMENTS, MOMENTS_TYPE)] if has_moments else []),
        ]
    )


def write_shard(job: ShardJob, on_clip: Callable[[], None]) -> dict[str, Any]:
    """Write a shard and its report; call `on_clip` after each clip.

    The report lists unusable clips.
    """
    report = {"digest": job.digest, **dict.fromkeys(COUNTS, 0), "skipped": []}
    schema = cache_schema(list(job.clips[0].metadata), job.has_moments)
    tally = Tally()
    with (
        atomic_path(job.arrow_path) as temporary,
        open(temporary, "wb") as sink,
        pa.ipc.new_stream(sink, schema) as stream,
    ):
        for clip in job.clips:
            try:
                encoded = _encoded(clip, job)
            except UnreadableSound as reason:
                item = {"split": job.split, "file_name": clip.file_name, "reason": str(reason)}
                report["skipped"].append(item)
            else:
                row = {
                    CLIP_ID: clip.clip_id,
                    FILE_NAME: clip.file_name,
                    AUDIO: encoded.audio,
                    NUM_SAMPLES: encoded.num_samples,
                    CAPTIONS: list(clip.captions),
                    **clip.metadata,
                }
                if job.has_moments:
                    seconds = encoded.num_samples / job.sample_rate
                    moments, repairs = clean(clip.moments, seconds)
                    row[MOMENTS] = as_row(moments)
                    tally.add(clip.file_name, moments, repairs)
                stream.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))
                report["num_clips"] += 1
                report["num_captions"] += len(clip.captions)
                report["num_samples"] += encoded.num_samples
                report["num_clipped_samples"] += encoded.num_clipped
                report["num_cut_clips"] += encoded.is_cut
                report["num_one_channel_clips"] += encoded.took_one_channel
            on_clip()
    if job.has_moments:
        report[MOMENTS] = tally.content()
    report["num_bytes"] = job.arrow_path.stat().st_size
    if job.journal is not None:
        report["journal"] = job.journal
    with atomic_path(job.report_path) as temporary:
        temporary.write_text(json.dumps(report), encoding="utf-8")
    return report


def _encoded(clip: Clip, job: ShardJob) -> EncodedClip:
    """Read or make the sound of a clip. Raises UnreadableSound."""
    if clip.made is None:
        return encode_clip(clip.path, job.sample_rate, job.codec, job.max_seconds)
    return encode_samples(clip.made.samples(), job.sample_rate, job.codec)


def run_jobs(jobs: list[ShardJob], num_proc: int) -> list[dict[str, Any]]:
    """Write all shards in `num_proc` processes; return the reports in the order of `jobs`."""
    reports: dict[Path, dict[str, Any]] = {}
    num_clips = sum(len(job.clips) for job in jobs)
    num_proc = max(1, min(num_proc, len(jobs)))
    for job, report in run_stream(iter(jobs), num_proc, num_clips):
        reports[job.report_path] = report
    return [reports[job.report_path] for job in jobs]


def run_stream(
    jobs: Iterator[ShardJob], num_proc: int, num_clips: int | None = None
) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    """Write shards that are still being made: at most `num_proc` + 1 are taken from `jobs` ahead.

    If a worker is killed, the unfinished shards are repeated with half as many processes. If `jobs`
    raises an error, the shards that were taken are finished first.

    Args:
        jobs: The shards.
        num_proc: Number of worker processes; 1 works in this process.
        num_clips: Number of clips, for the progress; None if unknown.

    Yields:
        Each shard with its report, in the order in which they are finished.
    """
    taken: dict[Path, ShardJob] = {}  # not finished yet

    def remaining() -> Iterator[ShardJob]:
        yield from list(taken.values())
        for job in jobs:
            taken[job.report_path] = job
            yield job

    with bar(total=num_clips, desc="building", unit="clip") as progress:
        if num_proc == 1:
            for job in jobs:
                yield job, write_shard(job, progress.update)
            return
        num_ready = 0
        while True:
            try:
                for job, report in _run_pool(remaining(), num_proc, num_ready, progress):
                    del taken[job.report_path]
                    num_ready += len(job.clips)
                    yield job, report
                return
            except BrokenProcessPool:
                for job in list(taken.values()):
                    if report := finished_report(job):
                        del taken[job.report_path]
                        num_ready += len(job.clips)
                        yield job, report
                if num_proc == 1:
                    clips = next(remaining()).clips
                    raise UserError(
                        "the worker process was killed, perhaps for lack of memory, at the clips"
                        f" {clips[0].file_name} to {clips[-1].file_name}: run the same command"
                        " again; finished parts are kept"
                    ) from None
                num_proc = max(1, num_proc // 2)
                paths = [
                    path for job in taken.values() for path in (job.arrow_path, job.report_path)
                ]
                for path in paths:
                    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
                        leftover.unlink()
                progress.write(
                    "note: a worker process was killed, perhaps for lack of memory; continuing"
                    f" with {num_proc} process(es), finished parts are kept",
                    file=sys.stderr,
                )


def _run_pool(
    jobs: Iterator[ShardJob], num_proc: int, num_ready: int, progress: tqdm
) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    """Yield each shard with its report; `num_ready` clips were done before.

    The first failure of a shard ends all. Raises BrokenProcessPool if a worker dies.
    """
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads hangs
    counter, stop = context.Value("q", num_ready), context.Event()
    executor = ProcessPoolExecutor(num_proc, context, _start_worker, (counter, stop))
    pending: dict[Future, ShardJob] = {}
    failure: Exception | None = None  # of `jobs`
    is_end = False
    try:
        while pending or not is_end:
            while not is_end and len(pending) <= num_proc:
                try:
                    job = next(jobs, None)
                except Exception as error:
                    job, failure = None, error
                if job is None:
                    is_end = True
                else:
                    pending[_submit(executor, job)] = job
            done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            progress.update(counter.value - progress.n)
            for future in done:
                yield pending.pop(future), future.result()
        if failure is not None:
            raise failure
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _submit(executor: ProcessPoolExecutor, job: ShardJob) -> Future:
    """Submit a shard; a worker that starts for it ignores Ctrl-C, which the parent handles."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return executor.submit(_work, job)
    finally:
        signal.signal(signal.SIGINT, previous)


class _Stopped(Exception):
    """Another shard failed, or the build was interrupted."""


def _start_worker(counter: Any, stop: Any) -> None:
    global _counter, _stop
    _counter, _stop = counter, stop
    end_with_parent()


def _work(job: ShardJob) -> dict[str, Any]:
    def count_clip() -> None:
        if _stop.is_set():
            raise _Stopped
        with _counter.get_lock():
            _counter.value += 1

    return write_shard(job, count_clip)
