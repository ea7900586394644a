"""How a model was made: data, settings, commit and results. about.json in a model folder holds it.

The model card (card.py) is written from it, and calls missing facts unknown.
"""

import shlex
from collections import Counter
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.base.errors import UserError
from retrieval.base.files import read_json

if TYPE_CHECKING:  # loading a model needs no cache
    from retrieval.data import Cache, ClipSplit

ABOUT = "about.json"


class _Record(BaseModel):
    # Fields of a later version are kept when the file is written again.
    model_config = ConfigDict(frozen=True, extra="allow")


class SplitRecord(_Record):
    """A split that the model was trained or scored on."""

    corpus: str
    split: str
    num_clips: int
    num_captions: int
    hours: float | None = None
    sample_rate: int | None = None  # Hz
    fingerprint: str
    licenses: dict[str, int] | None = None  # clips of each licence
    command: str | None = None  # that built the cache

    @classmethod
    def of(cls, cache: "Cache", split: "ClipSplit") -> "SplitRecord":
        """Describe `split` of the opened `cache`."""
        licenses = split.column("license")
        command = cache.info.get("command")
        try:
            words = without_folders(shlex.split(command)) if isinstance(command, str) else None
        except ValueError:  # an odd quotation mark
            words = None
        return cls(
            corpus=str(cache.info.get("corpus", "unknown")),
            split=split.name,
            num_clips=len(split),
            num_captions=sum(map(len, split.captions)),
            hours=round(float(split.num_samples.sum()) / cache.sample_rate / 3600, 3),
            sample_rate=cache.sample_rate,
            fingerprint=split.fingerprint(),
            licenses=None if licenses is None else Counter(name or "" for name in licenses),
            command=None if words is None else shlex.join(words),
        )


class ScoreRecord(_Record):
    """Metrics of the model on one split, as fractions: {"text_to_audio": {"R@1": 0.2}}."""

    epoch: int | None = None  # counted from 1
    metrics: dict[str, dict[str, float]] = {}


class TrainingRecord(_Record):
    """How a model was made, as far as it is known."""

    data: list[SplitRecord] = []
    settings: dict[str, Any] = {}
    git_commit: str | None = None
    converted_from: str | None = None  # checkpoint of another kind; it was not trained further
    validation: ScoreRecord | None = None
    evaluation: ScoreRecord | None = None
    license: str | None = None  # of the model
    card_sha256: str | None = None  # of the model card that was written with this record

    def updated(self, **fields: Any) -> "TrainingRecord":
        """Copy with other values in `fields`."""
        return self.model_copy(update=fields)

    @property
    def scores(self) -> dict[str, ScoreRecord]:
        """Scores by split, of the splits that were scored."""
        both = {"validation": self.validation, "evaluation": self.evaluation}
        return {split: scores for split, scores in both.items() if scores is not None}


def read_record(folder: Path) -> TrainingRecord:
    """Read about.json of a model folder; models of earlier versions have none.

    Raises:
        UserError: It cannot be read.
    """
    path = folder / ABOUT
    try:
        return TrainingRecord.model_validate(read_json(path))
    except FileNotFoundError:
        return TrainingRecord()
    except (OSError, ValueError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
        raise UserError(
            f"{path} cannot be read ({reason}); copy it again, or delete it: the model loads"
            " without it"
        ) from None


def without_folders(value: Any) -> Any:
    """Replace folders in paths by `...`, in nested lists and dicts and also after `--option=`.

    A model is passed on, and absolute paths would tell about the machine of its maker.
    """
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    option, equals, path = value.rpartition("=") if value.startswith("-") else ("", "", value)
    tells = PurePath(path).is_absolute() or ".." in PurePath(path).parts or path.startswith("~")
    return f"{option}{equals}.../{PurePath(path).name}" if tells else value
