"""Which model made an index. A model folder is known by the content of its files, wherever it lies;
hashed once, then told by size and time.
"""

from pathlib import Path
from typing import Any

import torch

from retrieval.base.errors import UserError
from retrieval.base.files import sha256_of
from retrieval.evaluation.outputs import check_checkpoints
from retrieval.models.dual_encoder import DualEncoder

PARTS = ("config.json", "model.safetensors", "tokenizer")


def load_model_folder(folder: Path) -> DualEncoder:
    """On the GPU where there is one. Raises UserError."""
    check_checkpoints([folder])
    if not folder.is_dir():
        raise UserError(
            f"--checkpoint {folder} is a file; give a model folder, such as runs/tap/best"
        )
    model = DualEncoder.from_pretrained(folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def model_identity(folder: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """`path`, and size, time and sha256 of each file that the model consists of. What is as old and
    large as in `known` is not read again.
    """
    digests = (
        {(name, *stat): sha256 for name, (*stat, sha256) in known["files"].items()} if known else {}
    )
    files = {}
    for name in _names(folder):
        stat = _stat(folder / name)
        files[name] = [*stat, digests.get((name, *stat)) or sha256_of(folder / name)]
    return {"path": str(folder.resolve()), "files": files}


def check_same_model(index: Path, identity: dict[str, Any], folder: Path) -> None:
    """Raises UserError where the model in `folder` is not the one that `identity` was taken of."""
    if contents_of(model_identity(folder, identity)) != contents_of(identity):
        raise _another_model(index, folder)


def check_as_before(path: Path, before: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises UserError where an index of model and hop `before` is to be continued with others."""
    if contents_of(before["model"]) != contents_of(about["model"]):
        raise _another_model(path, about["model"]["path"])
    if before["hop_seconds"] != about["hop_seconds"]:
        raise UserError(
            f"index {path} was made with --hop-seconds {before['hop_seconds']:g}, not"
            f" {about['hop_seconds']:g}; add --overwrite"
        )


def contents_of(identity: dict[str, Any]) -> dict[str, str]:
    """sha256 of each file."""
    return {name: sha256 for name, (*_, sha256) in identity["files"].items()}


def _another_model(index: Path, folder: Path | str) -> UserError:
    return UserError(
        f"index {index} was made with another model than {folder} holds now; search with that model"
        " (--checkpoint DIR), or make the index again: python -m retrieval.search index FOLDER"
        f" --checkpoint {folder} --index {index} --overwrite"
    )


def _names(folder: Path) -> list[str]:
    files = [
        path
        for part in PARTS
        for path in (
            [folder / part] if (folder / part).is_file() else sorted((folder / part).rglob("*"))
        )
    ]
    return [path.relative_to(folder).as_posix() for path in files if path.is_file()]


def _stat(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
