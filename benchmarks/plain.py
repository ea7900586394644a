"""The plain way to compute scores, on the model's own modules: the baseline of benchmarks.

The recipe's ancestor computes in this way: it pads every clip to full length and resamples it with
its padding, encodes all windows, also those with padding only, and forms attention's softmax
matrices and TAP's (N, B, D) vectors. Numbers agree with retrieval.models up to rounding, because
windows are cut before they are resampled, as there; this is the same work.

Letters: B clips, S samples, W windows of a clip, N texts, T frames, D = dim, D_p = attention_dim.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from retrieval.models.audio.atst import AtstFrame, Attention
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pooling import TextAwareAttentionPooling
from retrieval.models.windows import resample


def encode_audio(model: DualEncoder, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Encode waveform (B, S) to frames (B, T, D) and mask (B, T).

    The whole grid of windows is encoded, whatever the lengths (B,).
    """
    grid, encoder = model.windows, model.audio_encoder
    waveform = functional.pad(waveform, (0, grid.clip_samples - waveform.shape[1]))
    # (B W, window_samples)
    windows = waveform.unfold(1, grid.window_samples, grid.hop_samples).flatten(0, 1)
    windows = resample(windows, model.sample_rate, encoder.sample_rate)
    # (B, T, feature_dim)
    features = _atst(encoder, windows).view(len(waveform), grid.num_frames, -1)
    mask = torch.arange(grid.num_frames) < grid.num_valid_frames(lengths.cpu())[:, None]  # (B, T)
    return model.audio_projection(features), mask.to(waveform.device)


def _atst(encoder: AtstFrame, windows: Tensor) -> Tensor:
    x = encoder.patch_embed(encoder._log_mel(windows))  # all windows at once
    x = x + encoder.pos_embed[:, 1 : x.shape[1] + 1]
    for block in encoder.blocks:
        x = x + _attend(block.attn, block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    return encoder.norm_frame(x)


def _attend(attention: Attention, x: Tensor) -> Tensor:
    query, key, value = (
        attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    )  # each (B W, heads, T, size)
    # (B W, heads, T, T)
    weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return attention.proj((weights @ value).transpose(1, 2).flatten(2))


def encode_text(model: DualEncoder, captions: list[str]) -> Tensor:
    """Encode N captions to (N, D)."""
    with _softmax_matrices(model):
        return model.text_projection(model.text_encoder(captions))


@contextmanager
def _softmax_matrices(model: DualEncoder) -> Iterator[None]:
    """Use transformers' own plain attention, "eager", instead of the fused kernels."""
    text = model.text_encoder.model
    usual = text.config._attn_implementation
    text.set_attn_implementation("eager")
    try:
        yield
    finally:
        text.set_attn_implementation(usual)


def mean_score(text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Score text (N, D) against the average of the valid frames of (B, T, D), mask (B, T)."""
    average = (frames * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)  # (B, D)
    return functional.cosine_similarity(text[:, None], average, dim=-1)


def score(pooling: TextAwareAttentionPooling, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Score text (N, D) and frames (B, T, D), mask (B, T), by the paper's formula: (N, B)."""
    query = pooling.query(pooling.norm(text))  # (N, D_p)
    normed = pooling.norm(frames)
    key, value = pooling.key(normed), pooling.value(normed)  # each (B, T, D_p)
    logits = torch.einsum("np,btp->nbt", query, key) / math.sqrt(key.shape[-1])
    weights = logits.masked_fill(~mask, -math.inf).softmax(dim=-1)  # (N, B, T)
    weights = functional.dropout(weights, pooling.attention_dropout, pooling.training)
    pooled = pooling.norm(
        pooling.output(torch.einsum("nbt,btp->nbp", weights.to(value.dtype), value))
    )  # (N, B, D)
    pooled = functional.dropout(pooled, pooling.output_dropout, pooling.training)
    return functional.cosine_similarity(text[:, None], pooled, dim=-1)
