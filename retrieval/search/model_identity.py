"""The model that made an index: a folder that is known by the content of its files."""

from pathlib import Path

import torch
from pydantic import BaseModel

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError
from retrieval.base.files import sha256_of
from retrieval.models.dual_encoder import DualEncoder

PARTS = ("config.json", "model.safetensors", "tokenizer", "adapters")


class ModelIdentity(BaseModel):
    """Last place of a model folder, and size in bytes, mtime in ns and sha256 of its files."""

    path: str
    files: dict[str, tuple[int, int, str]]

    @classmethod
    def of_folder(cls, folder: Path, known: "ModelIdentity | None" = None) -> "ModelIdentity":
        """Identify the model in `folder`; files with the size and time in `known` are not read."""
        known_files = known.files if known else {}
        files = {}
        for part in PARTS:
            for path in [folder / part, *sorted((folder / part).rglob("*"))]:
                if not path.is_file():
                    continue
                name, status = path.relative_to(folder).as_posix(), path.stat()
                before = known_files.get(name, (None, None, ""))
                is_known = before[:2] == (status.st_size, status.st_mtime_ns)
                sha256 = before[2] if is_known else sha256_of(path)
                files[name] = (status.st_size, status.st_mtime_ns, sha256)
        return cls(path=str(folder.resolve()), files=files)

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of each file."""
        return {name: sha256 for name, (*_, sha256) in self.files.items()}

    def check_same(self, other: "ModelIdentity", index: Path) -> None:
        """Raise UserError if `other` is not this model, which made the index."""
        if self.digests != other.digests:
            raise UserError(
                f"index {index} was made with another model than {other.path} holds now; search"
                " with that model (--checkpoint DIR), or make the index again: python -m"
                f" retrieval.search index FOLDER --checkpoint {other.path} --index {index}"
                " --overwrite"
            )


def load_model_folder(folder: Path) -> DualEncoder:
    """Load a model on the GPU if there is one. Raises UserError."""
    check_readable(folder, "checkpoint")
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"--checkpoint {folder} {found}; give a model folder: train.py writes RUN/best, and a"
            " model of the Hugging Face hub is fetched by: hf download NAME --local-dir DIR"
        )
    model = DualEncoder.from_pretrained(folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
