"""Reading PyTorch Lightning checkpoints of anybody without running anything in them, and without Lightning.

`read_lightning(path)` gives the weights by name, still in the file, and the hyper-parameters. The pickle in the file is read with a
stand-in for every class and function that it names, so that it does not matter whether they are installed, or what they would do.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from retrieval.errors import UserError, one_line

WRAPPERS = ("_orig_mod", "module")  # torch.compile and DistributedDataParallel put these into names
STORAGES = {"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32"}
STORAGES |= {"Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
RUNS_PROGRAMS = ("os", "posix", "nt", "subprocess")
RUNS_CODE = ("eval", "exec", "compile", "__import__")


class _Inert(dict):
    """Stands in for all classes and functions that a file names: runs nothing, and keeps the items or attributes it is given as items."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)

    def extend(self, items: list) -> None:
        """Items of a list are not kept."""

    append = extend
    __hash__ = object.__hash__  # may be the key of a dict


class StoredTensor(NamedTuple):
    """A tensor that is still in the file: the arguments of torch's _rebuild_tensor_v2. storage: dtype and name of the record."""

    storage: tuple[torch.dtype, str]
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool = False
    hooks: Any = None
    metadata: Any = None

    def __setstate__(self, state: Any) -> None:
        """Nothing: a pickle could set attributes, also of the class."""

    def read(self, archive: zipfile.ZipFile) -> torch.Tensor:
        dtype, record = self.storage
        return torch.frombuffer(bytearray(archive.read(record)), dtype=dtype).as_strided(self.shape, self.stride, self.offset)


class _InertUnpickler(pickle.Unpickler):
    """Of what torch.save writes: tensors become StoredTensor, plain containers themselves, everything else _Inert."""

    def __init__(self, archive: zipfile.ZipFile, record: str):
        super().__init__(archive.open(record))
        self.folder = record.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.removesuffix("Storage") in STORAGES:
            return getattr(torch, STORAGES[name.removesuffix("Storage")])
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return StoredTensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _data_of_parameter
        if module in RUNS_PROGRAMS or (module in ("builtins", "__builtin__") and name in RUNS_CODE):
            # Its stand-in would run nothing either, but the user should know what the file is.
            raise UserError(f"it would call {module}.{name}, which no checkpoint needs; nothing of it was run, and nobody should load it")
        return _Inert

    def persistent_load(self, identity: tuple) -> tuple[torch.dtype, str]:
        _, dtype, key, _, _ = identity
        return dtype, f"{self.folder}data/{key}"


def _data_of_parameter(data: StoredTensor, *_: Any) -> StoredTensor:
    return data


def read_lightning(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Weights by name, without WRAPPERS, and hyper-parameters as `_flat` gives them. Raises UserError."""
    remedy = "expected a PyTorch Lightning .ckpt; copy or download it again"
    if not path.is_file():
        raise UserError(f"checkpoint {path} is no file; {remedy}")
    try:
        with zipfile.ZipFile(path) as archive:
            record = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "data.pkl")
            checkpoint = _InertUnpickler(archive, record).load()
        state = checkpoint["state_dict"]
        weights = {_plain_name(key): tensor._replace(shape=torch.Size(tensor.shape)) for key, tensor in state.items()}
    except UserError as error:
        raise UserError(f"checkpoint {path} is refused: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'checkpoint {path} has no "state_dict" of weights by name ({one_line(error)}); {remedy}') from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"checkpoint {path} is truncated or no file of torch.save ({one_line(error)}); {remedy}") from None
    if len(weights) < len(state):
        raise UserError(f"checkpoint {path} has weights twice, once with {' or '.join(WRAPPERS)} in their names; {remedy}")
    return weights, _flat(checkpoint.get("hyper_parameters"))


def _plain_name(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _flat(parameters: Any) -> dict[str, Any]:
    """Numbers by their path (`sentence_features.use_first_token`), and at any depth by their last name, the outermost of each.

    Names with an underscore in front are wrappers (omegaconf).
    """
    found: dict[str, Any] = {}
    queue, seen = [((), parameters)], set()
    for path, value in queue:  # which grows
        if isinstance(value, (bool, int, float)):
            for name in {".".join(path), *path[-1:]}:
                found.setdefault(name, value)
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            inside = [(key, item) for key, item in value.items() if isinstance(key, str) and key not in ("_parent", "_metadata")]
            queue += [(path if key.startswith("_") else (*path, key), item) for key, item in inside]
    return found
