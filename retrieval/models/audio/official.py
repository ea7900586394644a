"""Read official weight files of audio encoders, and load them only if all weights fit."""

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError

CONTAINERS = ("state_dict", "model")  # keys of the weights; many files have them at the top


def read_official(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file's "state_dict" or "model", or of the file itself, by name.

    Only tensors, plain containers and argparse.Namespace are unpickled.

    Raises:
        UserError: The file is absent or damaged, holds other objects, or no tensors.
    """
    path, remedy = Path(path), "download the official checkpoint again"
    check_readable(path, "audio weights")
    if path.is_dir():
        raise UserError(
            f"audio weights {path} is a folder, expected a file; set audio_encoder.checkpoint to"
            " the checkpoint file itself"
        )
    if not path.is_file():
        raise UserError(
            f"audio weights {path} do not exist; set audio_encoder.checkpoint to an official"
            " checkpoint (docs/clotho.md lists them)"
        )
    try:
        # Lightning puts the hyperparameters of the training into the file
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
            keep = (
                f"torch.save({{'state_dict': torch.load('{path}',"
                " weights_only=False)['state_dict']}, 'weights.ckpt')"
            )
            raise UserError(
                f"{path} holds a Python object ({unsafe[1]}), which could run code and is not"
                " loaded; if you trust the file, keep only its "
                f'weights: python -c "import torch; {keep}"'
            ) from None
        raise UserError(
            f"{path} is truncated or no PyTorch checkpoint ({type(error).__name__}); {remedy}"
        ) from None
    if not isinstance(checkpoint, dict):
        checkpoint = {}
    state = next(
        (checkpoint[name] for name in CONTAINERS if isinstance(checkpoint.get(name), dict)),
        checkpoint,
    )
    tensors = {
        key: value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(
            f'{path} has no "state_dict", no "model" and no tensors by name, as an official'
            f" checkpoint has; {remedy}"
        )
    return tensors


def load_strictly(
    module: nn.Module, state: dict[str, Tensor], path: str | Path, size: str, remedy: str
) -> None:
    """Load `state` into `module` if all names and shapes agree; otherwise change nothing.

    Args:
        module: Of an encoder.
        state: Tensors by the names of the module.
        path: File that they come from, for the message.
        size: Description of the module, such as "ATST-Frame with embed_dim 768, depth 12".
        remedy: Which setting or file to change.

    Raises:
        UserError: Weights are missing, additional or of another shape.
    """
    own = module.state_dict()
    if missing := [key for key in own if key not in state]:
        raise UserError(f"{path} lacks {first_names(missing)} of {size}; {remedy}")
    if extra := [key for key in state if key not in own]:
        raise UserError(f"{path} has {first_names(extra)}, which {size} has not; {remedy}")
    differing = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if state[key].shape != own[key].shape
    ]
    if differing:
        raise UserError(
            f"{path} is of another size than {size}: {first_names(differing)}; {remedy}"
        )
    module.load_state_dict(state)


def first_names(names: list[str]) -> str:
    """Return the first three names and the number of all, for a message."""
    return ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")
