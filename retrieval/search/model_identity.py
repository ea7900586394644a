"""Which model made an index. A model folder is known by the content of its files, wherever it lies; hashed once, then told by size and time."""

from pathlib import Path
from typing import Any

from retrieval.errors import UserError
from retrieval.files import sha256_of

PARTS = ("config.json", "model.safetensors", "tokenizer")


def model_identity(folder: Path) -> dict[str, Any]:
    """`path`, and size, time and sha256 of each file that the model consists of."""
    return {"path": str(folder.resolve()), "files": {name: [*_stat(folder / name), sha256_of(folder / name)] for name in _names(folder)}}


def check_same_model(index: Path, identity: dict[str, Any], folder: Path) -> None:
    """Raises UserError where the model in `folder` is not the one that `identity` was taken of."""
    known = identity["files"]
    same = set(_names(folder)) == set(known) and all(
        [*_stat(folder / name)] == [size, time] or (_stat(folder / name)[0] == size and sha256_of(folder / name) == sha256)
        for name, (size, time, sha256) in known.items()
    )
    if not same:
        raise UserError(
            f"index {index} was made with another model than {folder} holds now; search with that model (--checkpoint DIR), "
            f"or make the index again: python -m retrieval.search index FOLDER --checkpoint {folder} --index {index} --overwrite"
        )


def _names(folder: Path) -> list[str]:
    files = [path for part in PARTS for path in ([folder / part] if (folder / part).is_file() else sorted((folder / part).rglob("*")))]
    return [path.relative_to(folder).as_posix() for path in files if path.is_file()]


def _stat(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
