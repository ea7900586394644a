"""The model that made an index, known by the content of its files."""

from pathlib import Path

import torch
from pydantic import BaseModel

from retrieval.base.checkpoints import weight_files
from retrieval.base.errors import UserError
from retrieval.base.files import sha256_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import load_pretrained, local_checkpoint

TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")
TOKENIZER += ("*.model",)
# beside the weights; of a folder of this project the first two and tokenizer/
PARTS = ("config.json", "adapters", "*processor_config.json", *TOKENIZER)


class ModelIdentity(BaseModel):
    """Last place of a model, and size in bytes, mtime in ns and sha256 of its files.

    Attributes:
        path: Its folder or file; of a model of the hub user/name@commit.
        files: By name.
        text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: roberta-large.
    """

    path: str
    files: dict[str, tuple[int, int, str]]
    text_encoder: str | None = None

    @classmethod
    def of(
        cls,
        checkpoint: str | Path,
        text_encoder: str | Path | None = None,
        known: "ModelIdentity | None" = None,
    ) -> "ModelIdentity":
        """Identify a checkpoint; files with the size and time in `known` are not read.

        Args:
            checkpoint: As exact_name returns it.
            text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: roberta-large.
            known: An earlier identity.

        Raises:
            UserError: There is no such checkpoint.
        """
        place = local_checkpoint(checkpoint)
        if not place.is_file():
            weights = {path.name: path for path in weight_files(place) if path.parent == place}
            paths = weights | _named(place, PARTS)
            return cls(path=str(checkpoint), files=_digested(paths, known))
        paths = {"checkpoint": place}
        if text_encoder and Path(text_encoder).is_dir():
            text_encoder = Path(text_encoder).resolve()
            tokenizer = _named(text_encoder, TOKENIZER)
            paths |= {f"text_encoder/{name}": path for name, path in tokenizer.items()}
        return cls(
            path=str(checkpoint),
            files=_digested(paths, known),
            text_encoder=str(text_encoder) if text_encoder else None,
        )

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of each file."""
        return {name: sha256 for name, (*_, sha256) in self.files.items()}

    def check_same(self, other: "ModelIdentity", index: object) -> None:
        """Raise UserError if `other` is not this model, which made the index."""
        if self.digests != other.digests:
            raise UserError(
                f"index {index} was made with another model than {other.path} holds now; search"
                " with that model (--checkpoint DIR), or make the index again: python -m"
                f" retrieval.search index FOLDER --checkpoint {other.path} --index {index}"
                " --overwrite"
            )


def _named(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of a folder that match, and those of sub-folders that do, by name."""
    matching = [path for pattern in patterns for path in folder.glob(pattern)]
    paths = [path for part in matching for path in (part, *part.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def _digested(
    paths: dict[str, Path], known: ModelIdentity | None
) -> dict[str, tuple[int, int, str]]:
    """Return size, mtime and sha256 of files."""
    files = {}
    for name, path in paths.items():
        status = path.stat()
        before = known.files.get(name, (None, None, "")) if known else (None, None, "")
        is_known = before[:2] == (status.st_size, status.st_mtime_ns)
        sha256 = before[2] if is_known else sha256_of(path)
        files[name] = (status.st_size, status.st_mtime_ns, sha256)
    return files


def load_model(checkpoint: str | Path, text_encoder: str | Path | None = None) -> DualEncoder:
    """Load a checkpoint of any kind, on the GPU if there is one. Raises UserError."""
    model = load_pretrained(checkpoint, text_encoder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
