"""The record of an index: its origin, how it was made, and how much of it is valid."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from retrieval.base.errors import UserError, one_line
from retrieval.search.frame_coding import Averaging, FrameCoding
from retrieval.search.local.approximate import Facts
from retrieval.search.model_identity import ModelIdentity

SCHEMA = 1
# fields of IndexMeta that an index may lack: that of an older version, or None
NEWER = {"reader", "frame_type", "averaging", "approximate", "unrelated_score", "sizes"}


class Sizes(BaseModel):
    """Which rows of the file of output sizes (storage.py) are valid.

    Older versions do not know the file: they add frames without sizes, and leave the file out when
    they copy an index. So its rows count only in this generation, and only up to `num_rows`.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    generation: NonNegativeInt
    num_rows: NonNegativeInt


class IndexMeta(BaseModel):
    """Table `meta` of an index: its origin, and the number of rows and frames that are valid."""

    model_config = ConfigDict(strict=True)

    folder: str
    model: ModelIdentity
    hop_seconds: float
    clip_seconds: float  # longest excerpt
    dim: NonNegativeInt
    has_frames: bool
    complete: bool = False  # False: the last update was interrupted
    reader: int | None = None  # READER_VERSION of the last complete update
    generation: NonNegativeInt = 0
    num_rows: NonNegativeInt = 0
    num_frames: NonNegativeInt = 0  # rows of the file of frames
    frame_type: Literal["float16", "int8"] = "float16"
    averaging: Averaging | None = None  # of frames; None: all are kept
    approximate: Facts | None = None  # of a large index
    unrelated_score: float | None = None  # see calibration.py; None: not measured
    sizes: Sizes | None = None  # None: not stored

    @property
    def num_sizes(self) -> int:
        """Number of valid rows in the file of output sizes; they belong to the first frames."""
        is_own = self.sizes is not None and self.sizes.generation == self.generation
        return min(self.sizes.num_rows, self.num_frames) if is_own else 0

    @property
    def coding(self) -> FrameCoding:
        """Form of the frames on disk, if there are any."""
        return FrameCoding(self.frame_type, self.dim, self.averaging)

    @property
    def _frames(self) -> str:
        """The setting --frames."""
        return self.frame_type if self.has_frames else "none"

    def check_as_before(self, before: "IndexMeta", index: object) -> None:
        """Raise UserError if an index made as `before` cannot be continued as this says."""
        before.model.check_same(self.model, index)
        if before.clip_seconds != self.clip_seconds:
            raise UserError(
                f"index {index} was made with --excerpt-seconds {before.clip_seconds:g}, not"
                f" {self.clip_seconds:g}; add --overwrite"
            )
        if before.hop_seconds != self.hop_seconds:
            raise UserError(
                f"index {index} was made with --hop-seconds {before.hop_seconds:g}, not"
                f" {self.hop_seconds:g}; add --overwrite"
            )
        if before._frames != self._frames:
            raise UserError(
                f"index {index} was made with --frames {before._frames}, not {self._frames}; add"
                " --overwrite"
            )
        if before.averaging != self.averaging:
            made_with, wanted = (
                f"--frames-per-second {own.frames_per_second:g}" if own else "all frames"
                for own in (before.averaging, self.averaging)
            )
            raise UserError(
                f"index {index} was made with {made_with}, not {wanted}; add --overwrite"
            )


def damaged(folder: object, reason: str) -> UserError:
    return UserError(
        f"index {folder} is damaged ({reason}); make it again: python -m retrieval.search index"
        f" FOLDER --index {folder} --overwrite"
    )


def folder_gone(folder: Path, index: object) -> UserError:
    return UserError(
        f"folder {folder} of index {index} is gone; if it was moved, give its new place, and"
        " nothing is encoded again: python -m retrieval.search index ITS_NEW_PLACE"
        f" --index {index}"
    )


def parse_meta(values: dict[str, str], index: object) -> IndexMeta:
    """Read the rows of `meta`, whose values are JSON; `index` names the index in messages.

    Raises UserError if they are damaged or of another version.
    """
    try:
        schema = json.loads(values.pop("schema"))
        if schema == SCHEMA:
            pairs = ", ".join(f"{json.dumps(key)}: {value}" for key, value in values.items())
            meta = IndexMeta.model_validate_json(f"{{{pairs}}}")
            missing = IndexMeta.model_fields.keys() - values.keys() - NEWER
            if missing:
                raise ValueError(f"no {', '.join(sorted(missing))}")
            return meta
    except ValidationError as error:
        names = {".".join(map(str, wrong["loc"])) for wrong in error.errors()}
        raise damaged(index, f"wrong {', '.join(sorted(names))}") from None
    except (TypeError, ValueError, KeyError) as error:
        raise damaged(index, one_line(error)) from None
    raise UserError(
        f"index {index} is of version {schema}, this program reads version {SCHEMA}; make it"
        " again with --overwrite"
    )


def meta_rows(meta: IndexMeta) -> list[tuple[str, str]]:
    """Return the rows of the table `meta`, as parse_meta reads them."""
    values = {"schema": SCHEMA} | meta.model_dump(mode="json", exclude_none=True)
    return [(key, json.dumps(value)) for key, value in values.items()]
