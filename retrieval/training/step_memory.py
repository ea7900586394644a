"""Estimate the memory of a training step, without weights and without a GPU.

The modules of the step run forwards and backwards on fake tensors (torch._subclasses.fake_tensor),
which have shapes, types and lifetimes, but no values. The estimate adds up the bytes of all tensors
that exist at the same time, rounded as the CUDA allocator rounds them. It does not include memory
that a kernel allocates for itself.

Letters: B pairs, M windows with sound of all clips, S samples, T frames, L tokens, D dimensions,
F = feature_dim.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retrieval.config import Config
from retrieval.models.dual_encoder import DualEncoder

ALIGNMENT = 512  # bytes: the CUDA allocator rounds up to multiples of it
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Computed in float32 under autocast on a GPU, but not on a CPU; those that occur in these models.
FLOAT32_ON_GPU = (
    *((functional, name) for name in ("layer_norm", "group_norm", "softmax", "log_softmax")),
    *((owner, name) for owner in (torch, torch.Tensor) for name in ("softmax", "sum", "pow")),
)


@dataclass(frozen=True)
class StepMemory:
    """Memory of one process, in bytes.

    Args:
        kept: Weights, their average and AdamW's moments, which stay between steps.
        activations: Peak of everything else before the first gradient of a weight.
        peak: Peak of everything in a step.
    """

    kept: int
    activations: int
    peak: int


def step_memory(
    config: Config,
    model: DualEncoder,
    precision: str,
    *,
    on_gpu: bool,
    num_windows: int | None = None,
    num_tokens: int | None = None,
) -> StepMemory:
    """Count the memory of a training step after the first one.

    Args:
        config: Settings of the run.
        model: Of build_model_without_weights; it cannot be used afterwards.
        precision: `no`, `bf16` or `fp16`.
        on_gpu: Count the tensors that CUDA's kernels keep (fused attention, types of autocast).
        num_windows: M, windows of the batch to encode; None: every clip has the full length.
        num_tokens: L, tokens of the longest caption; None: text_encoder.max_tokens.

    Raises:
        Exception: A module reads values of tensors, as one from another package may.
    """
    if config.train.activation_checkpointing:
        model.checkpoint_activations()
    batch = config.train.batch_size
    whole = batch * model.windows.num_windows
    sizes = _Sizes(num_windows or whole, num_tokens or config.text_encoder.max_tokens)
    with (
        FakeTensorMode(),
        mock.patch.object(torch.compiler, "is_exporting", lambda: True),  # no loops, no NumPy
        # called by checkpoints; fake tensors have no values
        mock.patch.object(torch, "get_rng_state", lambda: None),
        mock.patch.object(torch, "set_rng_state", lambda _state: None),
        mock.patch.object(torch, "randint", _lowest(torch.randint)),
        _Live() as live,
        _kernels_of_cuda() if on_gpu else nullcontext(),
    ):
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        model.train()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        live.own(trained)
        num_copies = 2 + (config.train.ema_decay is not None)  # AdamW's moments, the average
        copies = [torch.empty_like(weight) for weight in trained for _ in range(num_copies)]
        kept = live.now
        autocast = _autocast(precision)
        size = min(config.train.micro_batch_size or batch, batch)
        if size == batch:
            text, frames, mask = _encoded(config, model, batch, sizes, autocast)
            _score(model, text, frames, mask, autocast).backward()
        else:
            _parts(config, model, size, sizes, autocast)
        del copies
    return StepMemory(kept, live.peak_without_gradients - kept, live.peak)


@dataclass(frozen=True)
class _Sizes:
    num_windows: int
    num_tokens: int

    def of_part(self, size: int, batch: int) -> "_Sizes":
        return _Sizes(-(-self.num_windows * size // batch), self.num_tokens)


def _parts(
    config: Config,
    model: DualEncoder,
    size: int,
    sizes: _Sizes,
    autocast: Callable[[], AbstractContextManager],
) -> None:
    """Run the step of retrieval.training.micro_batches, with two of its parts.

    More parts would not raise the peak: from the second on, all gradients exist already.
    """
    batch = config.train.batch_size
    part = sizes.of_part(size, batch)
    with torch.no_grad():
        text, frames, mask = _encoded(config, model, size, part, autocast)
    text, frames, mask = (
        torch.empty(batch, *values.shape[1:], dtype=values.dtype) for values in (text, frames, mask)
    )
    text.requires_grad_()
    frames.requires_grad_()
    _score(model, text, frames, mask, autocast).backward()
    for _ in range(2):
        outputs = _encoded(config, model, size, part, autocast)[:2]
        gradients = [text.grad[:size], frames.grad[:size]]
        learnt = [place for place, output in enumerate(outputs) if output.requires_grad]
        if not learnt:
            return
        torch.autograd.backward(
            [outputs[place] for place in learnt], [gradients[place] for place in learnt]
        )
        del outputs


def _encoded(
    config: Config,
    model: DualEncoder,
    batch: int,
    sizes: _Sizes,
    autocast: Callable[[], AbstractContextManager],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return texts (B, D), frames (B, T, D) and mask (B, T), as DualEncoder.forward does."""
    with autocast():
        features = _audio_features(config, model, batch, sizes.num_windows)  # (B, T, F)
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
        if config.moment_head is not None:
            frames = model.audio_projection(features)
        else:
            frames, mask = model._pool_and_project(features, mask)
        del features
        if config.data.frame_cache is not None and config.text_encoder.frozen:
            encoded = torch.empty(batch, model.text_encoder.feature_dim)
        else:
            tokens = torch.zeros(batch, sizes.num_tokens, dtype=torch.int64)
            encoded = model.text_encoder.encode_tokens(tokens, torch.ones_like(tokens))
        text = model.text_projection(encoded)
    return text.float(), frames.float(), mask  # as Accelerate converts outputs


def _audio_features(config: Config, model: DualEncoder, batch: int, num_windows: int) -> Tensor:
    """Return features (B, T, F), of a frame cache or of the encoder."""
    grid, encoder = model.windows, model.audio_encoder
    if config.data.frame_cache is not None:
        return torch.empty(batch, grid.num_frames, encoder.feature_dim)
    num_samples = model._resampled(grid.window_samples)
    windows = torch.empty(num_windows, num_samples)
    if encoder.takes_lengths:
        encoded = encoder(windows, None, torch.full((num_windows,), num_samples))
    else:
        encoded = encoder(windows)  # (M, T of a window, F)
    num_frames, of_windows = encoded.shape[1], batch * grid.num_windows
    features = encoded.new_zeros(of_windows, *encoded.shape[1:])
    features = features.index_copy(0, torch.zeros(num_windows, dtype=torch.int64), encoded)
    return features.view(batch, grid.num_windows * num_frames, encoder.feature_dim)


def _lowest(randint: Callable) -> Callable:
    """Replace torch.randint for single numbers, which augmentation draws, by the lowest number."""

    def called(*bounds_and_size: Any, **kwargs: Any) -> Any:
        *bounds, size = bounds_and_size
        if size != ():
            return randint(*bounds_and_size, **kwargs)
        return SimpleNamespace(item=lambda: bounds[0] if len(bounds) == 2 else 0)

    return called


def _score(
    model: DualEncoder,
    text: Tensor,
    frames: Tensor,
    mask: Tensor,
    autocast: Callable[[], AbstractContextManager],
) -> Tensor:
    """Return a scalar with the graph of the scores; the loss itself would add little."""
    with autocast():
        compare = model.score if model.moment_head is None else model.moment_logits
        return compare(text, frames, mask).float().sum()


def _autocast(precision: str) -> Callable[[], AbstractContextManager]:
    if precision == "no":
        return nullcontext
    return lambda: torch.autocast("cpu", dtype=DTYPES[precision])


class _Live(TorchDispatchMode):
    """Counts the bytes of all existing storages, each of them once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.peak_without_gradients = 0
        self._bytes: dict[int, int] = {}  # by the storage's address
        self._weights: list[Tensor] = []

    def own(self, weights: list[Tensor]) -> None:
        """Set the weights whose first gradient ends `peak_without_gradients`."""
        self._weights = weights

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._bytes:
            return
        self._bytes[address] = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        weakref.finalize(storage, self._remove, address)
        self.now += self._bytes[address]
        if self.now > self.peak:
            self.peak = self.now
            if all(weight.grad is None for weight in self._weights):
                self.peak_without_gradients = self.now

    def _remove(self, address: int) -> None:
        self.now -= self._bytes.pop(address)


@contextmanager
def _kernels_of_cuda() -> Iterator[None]:
    """Let functions of the CPU keep the same tensors for the backward pass as CUDA's kernels.

    It replaces functions of PyTorch. A TorchFunctionMode would not work: it is off in backward
    passes, where checkpointed blocks run again.
    """
    with ExitStack() as stack:

        def replace(owner: Any, name: str, function: Callable) -> None:
            stack.enter_context(mock.patch.object(owner, name, function))

        replace(functional, "scaled_dot_product_attention", _fused_attention)
        for owner, name in FLOAT32_ON_GPU:
            replace(owner, name, _in_float32(getattr(owner, name)))
        yield


def _in_float32(function: Callable) -> Callable:
    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args = [value.float() if _is_half(value) else value for value in args]
        return function(*args, **kwargs)

    return called


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Call FlashAttention, or with a mask or float32 the memory-efficient kernel.

    Both keep queries, keys, values, outputs and one number a row. Shapes are (sequences, heads,
    length, size of a head).
    """
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (x.to(dtype) for x in (query, key, value))
    if attn_mask is None and query.dtype != torch.float32:
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        return operator(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    needs_graph = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    return operator(query, key, value, attn_mask, needs_graph, dropout_p, is_causal, scale=scale)[0]
