"""Read files of torch.save without running any code in them.

A pickle is a program that names classes and functions and calls them, and Python's Unpickler does
so. This module follows its instructions on plain data: a name stays a name (`Named`), a call
becomes a record of the call (`Built`), a tensor becomes the place of its numbers in the file
(`StoredTensor`). It imports nothing, calls nothing, and hashes texts only. So the installed classes
do not matter.

Both containers are read: the zip archive that torch.save writes, and the one before PyTorch 1.6.
"""

import io
import os
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from retrieval.base.errors import UserError

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
ZIP_MAGIC, LEGACY_MAGIC = b"PK\x03\x04", 0x1950A86A20F9469CFC6C
RUNS_PROGRAMS = ("os", "posix", "nt", "subprocess")
RUNS_CODE = ("eval", "exec", "compile", "__import__")
# Tied weights share their numbers, so that weights may need more memory than the file has bytes.
MOST_SHARING = 4  # times the size of the file; above it the file is refused
MOST_INSTRUCTIONS = 64_000_000  # bytes of a pickle; a model with optimizer has below one million


class Named(NamedTuple):
    """Name of a class or function in a file. It is never imported."""

    module: str
    name: str


class Built:
    """Record of an object in a file: a call of `maker` with `arguments`, `items` and `states`.

    Nothing is called.
    """

    __slots__ = ("maker", "arguments", "items", "states")

    def __init__(self, maker: Any, arguments: tuple, items: dict | None = None):
        self.maker, self.arguments, self.items, self.states = maker, arguments, items or {}, []

    def parts(self) -> Iterator[Any]:
        """Yield the content of the object: its items, attributes, and the maker's arguments.

        Numbers and texts are included only as the single argument (an enum's value). Among several
        arguments their meaning depends on the class: a numpy array begins with the version of its
        format.
        """
        yield self.items
        for state in self.states:  # attributes, or (attributes, slots), or any other object
            yield from _containers(state if isinstance(state, tuple) else (state,))
        yield from self.arguments if len(self.arguments) == 1 else _containers(self.arguments)


def _containers(values: tuple) -> Iterator[Any]:
    return (value for value in values if isinstance(value, (dict, Built)))


@dataclass(eq=False)
class Storage:
    """A block of numbers in a file.

    It is a record of the archive, or, in the old container, `num_bytes` bytes from offset `first`.
    """

    dtype: torch.dtype
    record: str
    first: int = 0
    num_bytes: int = 0


class StoredTensor(NamedTuple):
    """A tensor whose numbers are still in the file; `offset` and `stride` count elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def read_content(path: Path) -> Any:
    """Return the object in a file of torch.save.

    It has a StoredTensor for each tensor and a Built for objects of other classes.

    Raises:
        OSError: The file cannot be opened or read.
        UserError: The file names a function that runs programs or code.
        Exception: Of any kind, for a file that is damaged or none of torch.save.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                record = next((name for name in names if name.endswith("/data.pkl")), "data.pkl")
                folder = record.removesuffix("data.pkl")
                order = f"{folder}byteorder"
                if order in names and _record(archive, order) != b"little":
                    raise ValueError("it was written on a big-endian machine")
                return _follow(io.BytesIO(_record(archive, record)), {}, f"{folder}data/")
        file.seek(0)
        return _content_of_old_container(file)


def _content_of_old_container(file: BinaryIO) -> Any:
    if file.peek(1)[:1] != b"\x80":
        raise ValueError("it begins neither as a zip archive nor as a pickle")
    if _follow(file, {}) != LEGACY_MAGIC:
        raise ValueError("it is a pickle, but not of torch.save")
    _protocol, system = _follow(file, {}), _follow(file, {})
    if not system["little_endian"]:
        raise ValueError("it was written on a big-endian machine")
    storages: dict[str, Storage] = {}
    content = _follow(file, storages)
    for key in _follow(file, {}):
        storage = storages[_text(key)]
        storage.num_bytes = int.from_bytes(file.read(8), "little") * storage.dtype.itemsize
        storage.first = file.tell()
        file.seek(storage.num_bytes, os.SEEK_CUR)
    return content


def read_tensors(path: Path, stored: dict[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """Read the tensors `stored` from their file, on the CPU, each with its own memory.

    Raises:
        OSError: The file cannot be opened or read.
        Exception: Of any kind, for damaged numbers, and for tensors that need far more memory than
            the file.
    """
    tensors: dict[str, torch.Tensor] = {}
    with open(path, "rb") as file:
        needed = sum(tensor.num_bytes for tensor in stored.values())
        available = os.fstat(file.fileno()).st_size
        if needed > MOST_SHARING * available:
            raise ValueError(
                f"its tensors would take {needed / 1e6:,.1f} MB, the file has"
                f" {available / 1e6:,.1f} MB"
            )
        archive = zipfile.ZipFile(file) if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC else None
        for storage in {id(tensor.storage): tensor.storage for tensor in stored.values()}.values():
            if archive is None:
                file.seek(storage.first)
                numbers = file.read(storage.num_bytes)
            else:
                numbers = _record(archive, storage.record)
            tensors |= {
                name: _tensor(tensor, numbers)
                for name, tensor in stored.items()
                if tensor.storage is storage
            }
    return {name: tensors[name] for name in stored}


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a record.

    Compressed ones are refused: torch.save writes none, and a small file could fill the memory.
    """
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} in it is compressed, which torch.save does not do")
    return archive.read(name)


def _tensor(stored: StoredTensor, numbers: bytes) -> torch.Tensor:
    if stored.num_bytes > len(numbers):
        raise EOFError(
            f"a tensor of shape {list(stored.shape)} has {len(numbers)} bytes in the file"
        )
    if not stored.num_bytes:
        return torch.empty(stored.shape, dtype=stored.dtype)
    values = torch.frombuffer(bytearray(numbers), dtype=stored.dtype)
    # as_strided checks that all numbers lie inside
    return values.as_strided(stored.shape, stored.stride, stored.offset).clone()


# --- the instructions of a pickle ---

PUSH_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# A set becomes a list: hashing its items could take forever.
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NUMPY_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def _follow(file: BinaryIO, storages: dict[str, Storage], folder: str = "") -> Any:
    """Follow one pickle from the position of `file` to its end.

    Args:
        file: Open file.
        storages: Filled with the storages that the pickle names, by key.
        folder: Folder of their records in the archive.

    Returns:
        The object in the pickle.

    Raises:
        Exception: Of any kind, for a damaged pickle, and for an instruction that torch.save does
            not write.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, Any] = {}
    first = file.tell()

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    for instruction, argument, position in pickletools.genops(file):
        if position - first > MOST_INSTRUCTIONS:
            raise ValueError(f"its pickle is longer than {MOST_INSTRUCTIONS / 1e6:.0f} MB")
        name = instruction.name
        if name in PUSH_ARGUMENT:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            items = since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = since_mark()
            stack.append({})
            _set_items(stack[-1], items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = since_mark()
            _set_items(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item])
        elif name in ("APPENDS", "ADDITEMS"):
            items = since_mark()
            _extend(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(_named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            stack.append(_named(module, last))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, maker = stack.pop(), stack.pop()
            stack.append(_build(maker, arguments))
        elif name == "NEWOBJ_EX":
            named, arguments, maker = stack.pop(), stack.pop(), stack.pop()
            if not isinstance(arguments, tuple) or not isinstance(named, dict):
                raise TypeError(
                    f"the arguments of a call in it are a {type(arguments).__name__} and a"
                    f" {type(named).__name__}"
                )
            stack.append(Built(maker, arguments, named))
        elif name == "INST":
            arguments = since_mark()
            stack.append(Built(_named(*argument.split(" ", 1)), tuple(arguments)))
        elif name == "OBJ":
            maker, *arguments = since_mark()
            stack.append(Built(maker, tuple(arguments)))
        elif name == "BUILD":
            state = stack.pop()
            # other attributes, such as the versions of a state dict, are not needed
            if isinstance(stack[-1], Built):
                stack[-1].states.append(state)
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), storages, folder))
        elif name == "POP":
            stack.pop() if stack else since_mark()
        elif name == "POP_MARK":
            since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the instruction {name}, which torch.save does not write")
    raise EOFError("the pickle in it does not end")


def _set_items(target: Any, items: list[Any]) -> None:
    """Keep the items with a text as key: hashing other keys could take forever."""
    items_of = target.items if isinstance(target, Built) else target
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str):
            items_of[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Built):
        raise TypeError(f"it adds items to a {type(target).__name__}")


def _text(value: Any) -> str:
    """Return `value` if it is a text; the error does not print others, which may be endless."""
    if not isinstance(value, str):
        raise TypeError(f"it uses a {type(value).__name__} as a name")
    return value


def _named(module: Any, name: Any) -> Named:
    named = Named(_text(module), _text(name))
    if named.module in RUNS_PROGRAMS or (
        named.module in ("builtins", "__builtin__") and named.name in RUNS_CODE
    ):
        # It would not run here, but the user should know.
        raise UserError(
            f"it would call {module}.{name}, which no checkpoint needs; nothing was run: do not"
            " load it with other programs"
        )
    return named


def _build(maker: Any, arguments: Any) -> Any:
    """Return a StoredTensor for a tensor, a plain container, or a Built for everything else."""
    if not isinstance(arguments, tuple):
        raise TypeError(f"the arguments of a call in it are a {type(arguments).__name__}")
    match maker:
        case Named("torch._utils", "_rebuild_tensor_v2") if any(arguments[6:]):
            return Built(maker, arguments)  # its numbers are to be negated or conjugated
        case Named("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"):
            return _stored_tensor(*arguments[:4])
        # dtypes without their own kind of storage
        case Named("torch._utils", "_rebuild_tensor_v3"):
            named = arguments[6]
            dtype = getattr(torch, named.name, None) if named.module == "torch" else None
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"a tensor in it has the dtype {named.module}.{named.name}")
            return _stored_tensor(*arguments[:4], dtype=dtype)
        case Named("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"):
            return arguments[0]
        # a tensor with attributes, or of a subclass
        case Named("torch._tensor", "_rebuild_from_type_v2"):
            return _build(arguments[0], arguments[2])
        case Named("torch", "Size"):
            return tuple(arguments[0])
        case Named("collections", "OrderedDict"):
            content: dict[str, Any] = {}
            _set_items(
                content, [part for pair in (arguments[0] if arguments else ()) for part in pair]
            )
            return content
        case Named("_codecs", "encode") if isinstance(arguments[0], str):
            return arguments[0].encode("latin-1")
        case Named("numpy.core.multiarray" | "numpy._core.multiarray", "scalar"):
            return _numpy_number(*arguments)
    return Built(maker, arguments)


def _storage(identity: Any, storages: dict[str, Storage], folder: str) -> Any:
    match identity:
        case ("storage", Named(_, kind), str(key), *rest) if kind in DTYPES:
            if len(rest) > 2 and rest[2] is not None:
                raise ValueError(
                    "it holds views of storages, as torch.save wrote them before PyTorch 1.0"
                )
            return storages.setdefault(key, Storage(DTYPES[kind], f"{folder}{key}"))
    return Built(None, ())  # source code of modules, in the old container


def _stored_tensor(
    storage: Storage, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None = None
) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    are_possible = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    if not are_possible or len(shape) != len(stride):
        raise ValueError("a tensor in it has an impossible shape")
    return StoredTensor(storage, dtype or storage.dtype, offset, torch.Size(shape), tuple(stride))


def _numpy_number(dtype: Any, content: Any) -> Any:
    """Return the number of a numpy scalar, whose dtype is a Built; else a Built."""
    if isinstance(dtype, Built) and dtype.arguments and isinstance(content, bytes):
        kind = dtype.arguments[0]
        states = [state for state in dtype.states if isinstance(state, tuple)]
        order = ">" if any(state[1:2] == (">",) for state in states) else "<"
        if kind in NUMPY_NUMBERS and len(content) == int(kind[1]):
            return np.frombuffer(content, order + kind)[0].item()
    return Built(None, (dtype, content))
