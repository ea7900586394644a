"""Save and load the weights of a model as one safetensors file, including tensors that share
memory.

safetensors does not support shared memory. A tensor with several names (tied weights) is written
under the first one, and the metadata list the other names, as in safetensors.torch.save_model.
Every other tensor is written whole, even a part of a larger storage, such as the window of
torchaudio's spectrograms, where save_model fails.
"""

from collections import defaultdict
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
    """Write the parameters and persistent buffers of `model` to `path`. Raises UserError for a
    tensor that cannot be saved.
    """
    state = model.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            found = (
                "on the meta device"
                if isinstance(tensor, torch.Tensor) and tensor.is_meta
                else f"a {getattr(tensor, 'layout', type(tensor))}"
            )
            raise UserError(
                f"weight {name} is {found}, not a dense tensor, and cannot be saved; make it one,"
                " or a buffer with persistent=False"
            )
    first_names = _first_names(state)
    written, storages = {}, set()
    for name in sorted(set(first_names.values())):
        tensor = state[name]
        storage = tensor.untyped_storage()
        fills_storage = (
            tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        )
        is_alone = storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        written[name] = (
            tensor
            if fills_storage and is_alone
            else tensor.clone(memory_format=torch.contiguous_format)
        )
    left_out = {name: first for name, first in first_names.items() if name != first}
    save_file(written, path, {"format": "pt", **left_out})
    follow_umask(path)


def read_weights(model: nn.Module, path: Path) -> None:
    """Load weights that `write_weights`, safetensors' save_model or Accelerate wrote into `model`.

    Raises RuntimeError for missing or additional weights and other shapes, and the errors of
    safetensors for a damaged file.
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
    model.load_state_dict(state)


def own_memory(model: nn.Module) -> None:
    """Copy every expanded buffer (stride 0) to its own memory: loading and broadcasting need one
    element for each value.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if any(
                stride == 0 and size > 1
                for stride, size in zip(buffer.stride(), buffer.shape, strict=True)
            ):
                setattr(module, name, buffer.contiguous())


def _first_names(state: dict[str, torch.Tensor]) -> dict[str, str]:
    """Map each name to the first name, in alphabetical order, of the same tensor."""
    firsts: dict[Any, str] = {}
    return {name: firsts.setdefault(_identity(name, state[name]), name) for name in sorted(state)}


def _identity(name: str, tensor: torch.Tensor) -> Any:
    if tensor.is_meta or not tensor.numel():
        return name
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
