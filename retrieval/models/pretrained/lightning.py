"""Read PyTorch Lightning checkpoints without Lightning, and without running code in them."""

from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

from retrieval.base.access import check_readable
from retrieval.base.errors import UserError, one_line
from retrieval.models.pretrained.tensor_files import Built, StoredTensor, read_content

# Parts of names that torch.compile, DDP, FSDP and activation checkpointing add.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
# Limits against hostile files; real hyper-parameters have a few levels and a few hundred values.
MOST_LEVELS, MOST_LETTERS, MOST_VALUES = 20, 200, 10_000  # letters: of a path of names
# of one dict or object, so that a vocabulary does not use up the limit for later settings
MOST_ITEMS = 1_000


def read_lightning(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Read weights and hyper-parameters of a checkpoint.

    Args:
        path: The .ckpt file.

    Returns:
        Weights by name, without WRAPPERS; read_tensors of tensor_files.py reads their numbers.
        Hyper-parameters by path and by every suffix of it, from objects of any class.

    Raises:
        UserError: The file is absent, not readable, damaged or no checkpoint, or would run programs
            in other readers.
    """
    remedy = "expected a PyTorch Lightning .ckpt; copy or download it again"
    check_readable(path, "checkpoint")
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file; {remedy}")
    try:
        content = read_content(path)
    except UserError as error:
        raise UserError(f"checkpoint {path} is refused: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(
            f"checkpoint {path} is truncated or no file of torch.save ({one_line(error)}); {remedy}"
        ) from None
    checkpoint = content.items if isinstance(content, Built) else content
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    state = state.items if isinstance(state, Built) else state
    if not isinstance(state, dict):
        raise UserError(f'checkpoint {path} has no "state_dict" of weights by name; {remedy}')
    # Extra states of modules (get_extra_state) may be any object.
    kept = {key: value for key, value in state.items() if not key.endswith("_extra_state")}
    if others := [key for key, value in kept.items() if not isinstance(value, StoredTensor)]:
        raise UserError(
            f'checkpoint {path} has a "state_dict" in which {others[0]} is not a tensor of numbers;'
            f" {remedy}"
        )
    weights = {
        ".".join(part for part in key.split(".") if part not in WRAPPERS): tensor
        for key, tensor in kept.items()
    }
    if len(weights) < len(kept):
        raise UserError(
            f"checkpoint {path} has weights twice, once with {' or '.join(WRAPPERS)} in their"
            f" names; {remedy}"
        )
    return weights, _flat([checkpoint.get(name) for name in HYPER_PARAMETERS])


def _flat(sources: list[Any]) -> dict[str, Any]:
    """Return numbers and texts by path and by every suffix of it.

    Such as `sentence_features.use_first_token` and `use_first_token`. The outermost of equal names
    is kept. Objects are searched in items, attributes and arguments (sacred passes a dict to its
    read-only dicts). Names that begin with an underscore are wrappers (omegaconf) and not in the
    path.
    """
    found: dict[str, Any] = {}
    queue = deque(((), source) for source in sources)
    room = MOST_VALUES  # counted before queuing: a file can repeat one large object many times
    while queue:
        path, value = queue.popleft()
        is_number = isinstance(value, int) and value.bit_length() < 64
        if is_number or isinstance(value, (float, str)):
            for start in range(len(path)):
                found.setdefault(".".join(path[start:]), value)
        elif isinstance(value, (dict, Built)):
            parts = value.items() if isinstance(value, dict) else (("_", p) for p in value.parts())
            parts = ((name, part) for name, part in parts if name not in ("_parent", "_metadata"))
            for name, part in islice(parts, min(room, MOST_ITEMS)):
                room -= 1
                below = path if name.startswith("_") else (*path, name)
                if len(below) <= MOST_LEVELS and sum(map(len, below)) <= MOST_LETTERS:
                    queue.append((below, part))
    return found
