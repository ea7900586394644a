"""What is known of how a model was made, for about.json and the model card in its folder
(models/card.py).
"""

import shlex
from collections import Counter
from pathlib import PurePath
from typing import Any

from retrieval.base.errors import UserError
from retrieval.config import Config
from retrieval.data import Cache, ClipSplit, open_cache


def of_training(config: Config, git_commit: str | None, need_data: bool = True) -> dict[str, Any]:
    """Data, settings and commit of a training. Raises UserError for caches that are absent or
    damaged, unless the data may stay unknown.
    """
    try:
        data = training_data(config)
    except UserError:
        if need_data:
            raise
        data = []
    return described(config, data, git_commit)


def described(config: Config, data: list[dict[str, Any]], git_commit: str | None) -> dict[str, Any]:
    """data: `describe_split` of what the model is trained and scored on."""
    return {
        "data": data,
        "settings": _without_folders(config.model_dump()),
        "git_commit": git_commit,
    }


def training_data(config: Config) -> list[dict[str, Any]]:
    """What a model of `config` is trained and scored on, split by split."""
    cache = open_cache(config.data.cache)
    sources = [open_cache(path) for path in config.train.caches] or [cache]
    scored = [name for name in ("validation", "evaluation") if name in cache.split_names]
    opened = [(source, "development") for source in sources] + [(cache, name) for name in scored]
    return [describe_split(cache, cache.split(name)) for cache, name in opened]


def describe_split(cache: Cache, split: ClipSplit) -> dict[str, Any]:
    """Of a split of an opened cache: corpus, counts, fingerprint, licences of the clips, and the
    command that built it.
    """
    licenses = split.column("license")
    return {
        "corpus": str(cache.info.get("corpus", "unknown")),
        "split": split.name,
        "num_clips": len(split),
        "num_captions": sum(map(len, split.captions)),
        "hours": round(float(split.num_samples.sum()) / cache.sample_rate / 3600, 3),
        "sample_rate": cache.sample_rate,
        "fingerprint": split.fingerprint(),
        "licenses": (
            None if licenses is None else dict(Counter(license or "" for license in licenses))
        ),
        "command": _command(cache.info.get("command")),
    }


def _command(command: Any) -> str | None:
    if not isinstance(command, str):
        return None
    try:
        return shlex.join(_without_folders(shlex.split(command)))
    except ValueError:  # an odd quotation mark
        return None


def _without_folders(value: Any) -> Any:
    """The same with `.../name` in place of paths that tell the folders of its maker, also after
    `--option=`: a model is passed on.
    """
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    option, equals, path = value.rpartition("=") if value.startswith("-") else ("", "", value)
    tells = PurePath(path).is_absolute() or ".." in PurePath(path).parts or path.startswith("~")
    return f"{option}{equals}.../{PurePath(path).name}" if tells else value
