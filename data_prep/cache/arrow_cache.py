"""Build the Arrow cache from the plans of a corpus reader.

A cache is a `datasets.DatasetDict.save_to_disk` folder with one row per clip
(retrieval/data/schema.py), plus `cache.json`, which names schema, codec, sample rate, sources and
skipped files. All work is done in `<output>.partial`; the finished folder is renamed at the end, so
a half-built cache is never mistaken for a whole one. An interrupted build goes on from its finished
shards.

    <output>.partial/cache/<split>/data-*.arrow     becomes <output>
    <output>.partial/reports/                       a JSON file for each finished shard (shards.py)
"""

import importlib.metadata
import json
import math
import shlex
import shutil
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.cache.audio_codec import RATES_OF_CODEC
from data_prep.cache.moments import Tally
from data_prep.cache.shards import (
    COUNTS,
    ShardJob,
    cache_schema,
    finished_report,
    run_jobs,
    shard_digest,
)
from data_prep.cache.split_plan import SplitPlan, check_losses, count_reasons, none_usable
from retrieval.base.errors import UserError
from retrieval.base.files import FINISHED_PARTS_ARE_KEPT, atomic_path, disk_errors, read_json
from retrieval.base.folders import swap_folder
from retrieval.base.locks import LOCK, locked
from retrieval.data.schema import MOMENTS, SCHEMA

# Up to 16 shards a split load without a progress bar of their own; at most 256 clips (360 MB of
# Clotho) are lost by an interruption.
MIN_SHARD_CLIPS, MAX_SHARD_CLIPS, TARGET_SHARDS = 8, 256, 16


@dataclass(frozen=True)
class CacheSettings:
    """Settings of a cache, as cache.json names them."""

    corpus: str
    codec: str  # one of retrieval.data.schema.CODECS
    sample_rate: int  # Hz
    max_seconds: float | None = None  # longer clips are cut
    schema: int = SCHEMA

    def content(self) -> dict[str, Any]:
        """Return the settings for cache.json and the digests, without unset ones.

        Caches of earlier versions have no unset settings either.
        """
        return {key: value for key, value in asdict(self).items() if value is not None}


def build_cache(
    output: Path,
    settings: CacheSettings,
    plans: list[SplitPlan],
    num_proc: int,
    max_lost: float,
    overwrite: bool,
) -> dict[str, Any]:
    """Build `output`, or find it finished with the same settings and sources.

    Args:
        output: Folder of the cache.
        settings: How to build it.
        plans: Clips of each split.
        num_proc: Number of worker processes.
        max_lost: Largest fraction of a split that may be lost.
        overwrite: Replace a cache of other settings or sources.

    Returns:
        The content of cache.json.

    Raises:
        UserError: `output` is something else, too many clips are lost, or the disk fails.
    """
    check_rate_of_codec(settings)
    jobs, sources = _plan_jobs(output, settings, plans)
    existing = finished_cache(output, settings, sources, plans, overwrite)
    if existing is not None:
        return existing
    check_losses(plans, [], max_lost)
    partial = partial_folder(output)
    with disk_errors(partial, FINISHED_PARTS_ARE_KEPT), locked(partial / LOCK):
        reports = _write_shards(partial, jobs, num_proc)
        skipped = [item for report in reports for item in report["skipped"]]
        check_losses(plans, skipped, max_lost)
        shards = [
            (job.split, job.arrow_path, report) for job, report in zip(jobs, reports, strict=True)
        ]
        columns, has_moments = list(jobs[0].clips[0].metadata), jobs[0].has_moments
        info = lay_out(partial, settings, plans, shards, columns, sources, has_moments)
        swap_folder(partial / "cache", output)
        shutil.rmtree(partial)
    return info


def check_rate_of_codec(settings: CacheSettings) -> None:
    """Raise UserError if the codec does not know the sample rate."""
    rates = RATES_OF_CODEC.get(settings.codec)
    if rates and settings.sample_rate not in rates:
        raise UserError(
            f"codec {settings.codec} knows no {settings.sample_rate} Hz: use --sample-rate"
            f" {', '.join(map(str, rates))}, or --codec flac"
        )


def finished_cache(
    output: Path,
    settings: CacheSettings,
    sources: dict[str, str],
    plans: list[SplitPlan],
    overwrite: bool,
) -> dict[str, Any] | None:
    """Return cache.json of a cache that is built already; None if it must be built.

    Raises UserError if `output` is something else, or another cache and not to be overwritten.
    """
    existing = _existing_cache(output)
    if existing is None or overwrite:
        return None
    if differences := _differences(existing, settings, sources, plans):
        raise UserError(
            f"{output} exists, but {'; '.join(differences)}: add --overwrite, or choose another"
            " --output"
        )
    print(f"{output} is already built with these settings; nothing to do")
    return existing


def partial_folder(output: Path) -> Path:
    """Return the folder in which a cache is built."""
    return output.with_name(f"{output.name}.partial")


def _plan_jobs(
    output: Path, settings: CacheSettings, plans: list[SplitPlan]
) -> tuple[list[ShardJob], dict[str, str]]:
    """Divide the clips into shards; return these and a digest of each split's sources.

    Shards do not depend on --num-proc: an interrupted build can go on with another one.
    """
    jobs, sources = [], {}
    all_clips = [clip for plan in plans for clip in plan.clips]
    assert len({clip.clip_id for clip in all_clips}) == len(all_clips), "a clip_id occurs twice"
    assert len({tuple(clip.metadata) for clip in all_clips}) <= 1, "metadata columns differ"
    has_moments = any(clip.moments for clip in all_clips)  # in one split: the column is in all
    for plan in plans:
        if not plan.clips:
            raise UserError(none_usable(plan, [asdict(item) for item in plan.lost]))
        qids = [query.qid for clip in plan.clips for query in clip.moments]
        assert len(set(qids)) == len(qids), "a qid occurs twice"
        size = math.ceil(len(plan.clips) / TARGET_SHARDS)
        size = min(MAX_SHARD_CLIPS, max(MIN_SHARD_CLIPS, size))
        num_shards = math.ceil(len(plan.clips) / size)
        source = sha256()
        for index in range(num_shards):
            clips = tuple(plan.clips[index * size : (index + 1) * size])
            digest = shard_digest(clips, settings.content(), has_moments)
            source.update(digest.encode())
            name = f"{index:05d}-of-{num_shards:05d}"
            arrow_path = partial_folder(output) / "cache" / plan.name / f"data-{name}.arrow"
            report_path = partial_folder(output) / "reports" / f"{plan.name}-{name}.json"
            how = settings.codec, settings.sample_rate, settings.max_seconds
            files = arrow_path, report_path
            jobs.append(ShardJob(plan.name, clips, *how, *files, digest, has_moments=has_moments))
        sources[plan.name] = source.hexdigest()[:16]
    return jobs, sources


def _existing_cache(output: Path) -> dict[str, Any] | None:
    """Return cache.json of a finished cache, empty if damaged; None if nothing is in the way."""
    if not output.exists() or output.is_dir() and not any(output.iterdir()):
        return None
    if not (output / "cache.json").is_file():
        raise UserError(
            f"{output} exists and is not a finished cache: move it away, or choose another --output"
        )
    try:
        info = read_json(output / "cache.json")
    except ValueError:
        return {}
    try:
        is_whole = isinstance(info["splits"], dict) and all(
            isinstance(item["split"], str) and isinstance(item["file_name"], str)
            for item in info["skipped"]
        )
    except (KeyError, TypeError):
        is_whole = False
    return info if is_whole else {}


def _differences(
    existing: dict[str, Any],
    settings: CacheSettings,
    sources: dict[str, str],
    plans: list[SplitPlan],
) -> list[str]:
    """Describe how an existing cache differs from the wanted one."""
    if not existing:
        return ["its cache.json is damaged"]
    differences = [
        f"its {key} is {existing.get(key)}, not {value}"
        for key, value in asdict(settings).items()
        if existing.get(key) != value
    ]
    for split, source in sources.items():
        built = existing["splits"].get(split)
        if built is None:
            differences.append(f"it has no split {split}")
        # the digest depends on the settings too
        elif not differences and built.get("source") != source:
            differences.append(f"the files or captions of {split} have changed since it was built")
    if not differences:
        known = Counter((item["split"], item["file_name"]) for item in existing["skipped"])
        lost = Counter((plan.name, item.file_name) for plan in plans for item in plan.lost)
        if new := list((lost - known).elements()):
            differences.append(
                f"{len(new)} clips are lost that were not when it was built, first {new[0][1]!r}"
            )
    return differences


def _write_shards(partial: Path, jobs: list[ShardJob], num_proc: int) -> list[dict[str, Any]]:
    """Write the shards that are not finished; return the reports in the order of `jobs`."""
    reports = {job.report_path: report for job in jobs if (report := finished_report(job))}
    finished = [job for job in jobs if job.report_path in reports]
    keep = {path for job in finished for path in (job.report_path, job.arrow_path)}
    for path in partial.rglob("*"):
        if path.is_file() and path not in keep and path != partial / LOCK:
            path.unlink()
    if finished:
        print(
            f"going on with an interrupted build: {len(finished)} of {len(jobs)} shards are ready"
        )
    todo = [job for job in jobs if job.report_path not in reports]
    reports.update(zip([job.report_path for job in todo], run_jobs(todo, num_proc), strict=True))
    return [reports[job.report_path] for job in jobs]


def lay_out(
    partial: Path,
    settings: CacheSettings,
    plans: list[SplitPlan],
    shards: list[tuple[str, Path, dict[str, Any]]],
    metadata_columns: list[str],
    sources: dict[str, str],
    has_moments: bool = False,
) -> dict[str, Any]:
    """Check the shards, and write the JSON files around them, cache.json last.

    dataset_info.json and state.json are those of `Dataset.save_to_disk`, which would pass the audio
    through memory again.

    Args:
        partial: The folder that holds `cache`.
        settings: How it was built.
        plans: Clips that are left out of each split.
        shards: Split, Arrow file and report of each shard, in the order of the rows.
        metadata_columns: The corpus's own columns.
        sources: Digest of each split's sources.
        has_moments: Whether the shards have the column `moments`.

    Returns:
        The content of cache.json.
    """
    import datasets  # here: it takes a second, and an error message should not wait for that

    features = datasets.Features.from_arrow_schema(cache_schema(metadata_columns, has_moments))
    splits, skipped = {}, [asdict(item) for plan in plans for item in plan.lost + plan.unused]
    for plan in plans:
        done = [(path, report) for split, path, report in shards if split == plan.name]
        for path, report in done:
            # one shard at a time: a map of the whole cache costs 64 kB of page cache a clip
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                num_rows = sum(batch.num_rows for batch in stream)
            assert num_rows == report["num_clips"], f"{path} holds {num_rows} rows"
        folder = partial / "cache" / plan.name
        datasets.DatasetInfo(features=features).write_to_directory(str(folder))
        names = [path.name for path, report in done if report["num_clips"]]
        state = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": sources[plan.name],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": plan.name,
        }
        _write_json(folder / "state.json", state)
        newly_skipped = [item for _, report in done for item in report["skipped"]]
        skipped += newly_skipped
        total = {key: sum(report[key] for _, report in done) for key in COUNTS}
        splits[plan.name] = {
            "hours": round(total.pop("num_samples") / settings.sample_rate / 3600, 6),
            **total,
            "num_lost": len(plan.lost) + len(newly_skipped),
            "num_unused": len(plan.unused),
            "num_excluded": count_reasons(plan.excluded),
            "source": sources[plan.name],
        }
        if has_moments:
            tally = Tally()
            for _, report in done:
                tally.merge(report[MOMENTS])
            splits[plan.name][MOMENTS] = tally.content()
    _write_json(partial / "cache" / "dataset_dict.json", {"splits": list(splits)})
    libraries = ("datasets", "pyarrow", "numpy", "soundfile", "av", "soxr")
    info = {
        **settings.content(),
        "command": shlex.join(sys.argv),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "library_versions": {name: importlib.metadata.version(name) for name in libraries},
        "splits": splits,
        "skipped": skipped,
        "excluded": [asdict(item) for plan in plans for item in plan.excluded],
    }
    _write_json(partial / "cache" / "cache.json", info)
    return info


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
