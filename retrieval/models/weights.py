"""Save and load the weights of a model as one safetensors file, also tensors that share memory.

safetensors does not support shared memory. A tensor with several names (tied weights) is written
under the first one, and the metadata list the other names, as in safetensors.torch.save_model.
Every other tensor is written whole, even a part of a larger storage, such as the window of
torchaudio's spectrograms, where save_model fails.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from retrieval.base.access import follow_umask
from retrieval.base.errors import UserError


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters and persistent buffers of `model` to `path`; see write_state."""
    write_state(model.state_dict(), path)


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write a state dict to `path`.

    Raises:
        UserError: A tensor cannot be saved.
    """
    for name, tensor in state.items():
        found = None
        if not isinstance(tensor, torch.Tensor):
            found = f"a {type(tensor)}"
        elif tensor.is_meta:
            found = "on the meta device"
        elif tensor.layout != torch.strided:
            found = f"a {tensor.layout}"
        if found:
            raise UserError(
                f"weight {name} is {found}, not a dense tensor, and cannot be saved; make it one,"
                " or a buffer with persistent=False"
            )
    first_names = _first_names(state)
    written, storages = {}, set()
    for name in sorted(set(first_names.values())):
        tensor = state[name]
        storage = tensor.untyped_storage()
        fills_storage = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        if not fills_storage or storage.data_ptr() in storages:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(storage.data_ptr())
        written[name] = tensor
    left_out = {name: first for name, first in first_names.items() if name != first}
    save_file(written, path, {"format": "pt", **left_out})
    follow_umask(path)


def read_weights(model: nn.Module, path: Path, apart: Collection[str] = ()) -> None:
    """Load weights that `write_weights`, safetensors' save_model or Accelerate wrote into `model`.

    Args:
        model: Its weights change.
        path: Of the file.
        apart: Parts of the model that the file does not hold; they stay as they are.

    Raises:
        RuntimeError: Weights are missing or additional, or have other shapes.
        Exception: Of safetensors, for a damaged file.
    """
    state = load_file(path)
    # of DistributedDataParallel, in states of earlier versions
    consume_prefix_in_state_dict_if_present(state, "module.")
    with safe_open(path, "pt") as file:
        left_out = file.metadata() or {}
    own = model.state_dict()
    # Accelerate's files do not list the names that it leaves out: use the model's own ties.
    groups: dict[str, list[str]] = defaultdict(list)
    for name, first in _first_names(own).items():
        groups[first].append(name)
    for names in groups.values():
        for name in names:
            kept = [left_out.get(name), *names]
            if name not in state and (
                source := next((other for other in kept if other in state), None)
            ):
                state[name] = state[source]
    model.load_state_dict(
        state | {name: tensor for name, tensor in own.items() if name.split(".")[0] in apart}
    )


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of a module's weights with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def own_memory(model: nn.Module) -> None:
    """Copy each expanded buffer (stride 0) to its own memory: loading and broadcasting need it."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            axes = zip(buffer.stride(), buffer.shape, strict=True)
            if any(stride == 0 and size > 1 for stride, size in axes):
                setattr(module, name, buffer.contiguous())


def _first_names(state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Map each name to the first name, in alphabetical order, of the same tensor."""
    firsts: dict[Any, str] = {}
    names = {}
    for name in sorted(state):
        tensor, identity = state[name], name
        if not tensor.is_meta and tensor.numel():
            layout = tensor.dtype, tensor.shape, tensor.stride()
            identity = tensor.device, tensor.data_ptr(), *layout
        names[name] = firsts.setdefault(identity, name)
    return names
