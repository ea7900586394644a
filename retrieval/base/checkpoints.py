"""Kinds of checkpoints, and their names on the Hugging Face hub. Loads no torch."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError
from retrieval.base.files import read_json

NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


class HubName(NamedTuple):
    """user/name on the hub, and a branch, tag or commit; None: the main branch."""

    name: str
    revision: str | None


def hub_name(checkpoint: str | Path) -> HubName | None:
    """Return the hub name that `checkpoint` may be; None if it exists here or is no such name."""
    found = NAME.fullmatch(Path(checkpoint).as_posix())
    if found is None or Path(checkpoint).exists():
        return None
    return HubName(found["name"], found["revision"])


def check_checkpoint(checkpoint: str | Path) -> None:
    """Raise UserError for a checkpoint that is unreadable, or absent and no hub name."""
    if not str(checkpoint).strip():
        raise UserError("the checkpoint has no name: give a model folder, or user/name on the hub")
    check_readable(checkpoint, "checkpoint")
    if not Path(checkpoint).exists() and hub_name(checkpoint) is None:
        raise UserError(
            f"checkpoint {checkpoint} does not exist; train.py writes RUN/best and RUN/last, and a"
            " model of the Hugging Face hub is called user/name or user/name@revision"
        )


def foreign_config(folder: Path) -> dict[str, Any] | None:
    """Return config.json of a model folder that this project did not write; None for any other."""
    try:
        content = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    is_own = not isinstance(content, dict) or "pooling" in content
    return None if is_own or not {"model_type", "auto_map"} & content.keys() else content


def is_own_folder(checkpoint: str | Path) -> bool:
    """Return True for a folder that train.py or save_pretrained may have written."""
    return Path(checkpoint).is_dir() and foreign_config(Path(checkpoint)) is None


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a model folder; pickles only without safetensors."""
    whole = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return whole + sorted((folder / "adapters").rglob("*.safetensors"))
