"""Poolings: from the frames of a clip to scores against texts, by mean or attention (TAP).

Letters: N texts, B audios, T frames, D = dim, D_p = attention_dim; n and b are the parts of N and B
in a block.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from retrieval.base.errors import UserError


def cosine(text: Tensor, pooled: Tensor) -> Tensor:
    """Return the cosines (N, B) of texts and clips, in float32 at least; 0 for a vector of zeros.

    Args:
        text: (N, D).
        pooled: One vector per clip (B, D), or one per pair (B, N, D).
    """
    with torch.autocast(text.device.type, enabled=False):
        text, pooled = _at_least_float32(text), _at_least_float32(pooled)
        dots = torch.einsum("nd,bd->nb" if pooled.dim() == 2 else "nd,bnd->nb", text, pooled)
        text_norm = torch.linalg.vector_norm(text, dim=-1).clamp_min(1e-12)  # (N,)
        pooled_norm = torch.linalg.vector_norm(pooled, dim=-1).clamp_min(1e-12)  # (B,) or (B, N)
        return dots / (text_norm[:, None] * (pooled_norm if pooled.dim() == 2 else pooled_norm.T))


class Pooling(nn.Module):
    """Interface of a pooling; POOLINGS in retrieval/models/dual_encoder.py lists them by name.

    The arguments of its constructor are settings (retrieval.config.PoolingConfig), found by name,
    and any of `dim` (size of the shared space), `feature_dim` (size of an audio encoder's frame)
    and `max_frames` (frames of a clip of full length).

    Without `keeps_frames` the pooling is `forward(frames (B, T, F), mask (B, T))` to (B, F):
    applied before the audio projection (F = feature_dim), or after it with `pools_projected`
    (F = dim). With `keeps_frames` it compares each text with all projected frames. Search and ONNX
    graphs then compute scores from `norm` and `folded_maps`.
    """

    keeps_frames = False  # whether a score needs all frames of a clip, and not one vector
    pools_projected = False  # whether frames are pooled after the audio projection
    similarity = "cosine"  # of texts and clips in `score`: "cosine", or "dot" product
    # s, of an index's excerpts: one vector for a longer excerpt would hide short sounds
    longest_excerpt = float("inf")
    num_evidence = 1  # numbers that `evidence` gives for a text and a frame
    compares_frames = True  # whether `contributions` says where in a clip a text is heard
    runtime_settings: tuple[str, ...] = ()  # settings that change no weight and no score
    # Numbers held for the (text, audio) pairs of one block of scores: 16 MiB in float32. Larger
    # blocks leave the cache: a clip of 550 frames and 5,225 texts took 0.131 s in blocks of 1,300
    # texts, 0.142 s in blocks of 2,600, on one core.
    block_elements = 2**22

    def score(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Return cosines (N, B) of text (N, D) with frames (B, T, D), of which mask is valid.

        T is 1 without `keeps_frames`: the clip's one projected vector.
        """
        if frames.shape[1] != 1:
            raise ValueError(
                f"this pooling scores one vector per clip, found frames {tuple(frames.shape)}; pool"
                " and project them first"
            )
        return cosine(text, frames[:, 0])

    def directions(self, vectors: Tensor) -> Tensor:
        """Return texts or clip vectors (..., D) whose dot products are cosines or scores."""
        return functional.normalize(vectors, dim=-1, eps=1e-12)

    def clip_vectors(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Return one vector per clip, (B, D), that stands for it without a text."""
        return frames[:, 0]

    def attention(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor | None:
        """Return the weights (N, B, T) of each text on the frames; None if it gives none."""
        return None

    def contributions(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Return the part of each frame in the scores, float32 (N, B, T); 0 for padding.

        By default the similarities of text and frames: the score of a clip that is one frame long.

        Args:
            text: (N, D), of encode_text.
            frames: (B, T, D), all frames in the shared space, of DualEncoder.frame_vectors.
            mask: bool (B, T), True = valid.
        """
        return self.evidence(text, self.keys(frames), mask)[..., 0]

    def keys(self, frames: Tensor) -> Tensor:
        """Return frames (..., D) in the form that an index keeps, and that a moment head reads."""
        return frames

    def evidence(self, text: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Return num_evidence numbers for each text and frame, float32 (N, B, T, num_evidence).

        A moment head reads them. Here it is one, the similarity.

        Args:
            text: (N, D), of encode_text; or (B, N, D), texts of its own for each clip.
            keys: (B, T, D), of `keys`.
            mask: bool (B, T), True = valid; padding gives zeros.
        """
        with torch.autocast(text.device.type, enabled=False):
            text = self.directions(_at_least_float32(text))
            keys = self.directions(_at_least_float32(keys))
            similarity = _products(text, keys)
            return similarity.masked_fill(~mask, 0.0).unsqueeze(-1)

    def folded_maps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the linear maps from which search and ONNX graphs compute scores.

        With W_q, b_q, W_v, b_v, and `norm` for a text, the frames and the pooled vector:
        weights = softmax(norm(frames) (W_q norm(text) + b_q)), over the valid frames,
        score = cos(text, norm(W_v (sum of weights norm(frames)) + b_v)).

        Returns:
            W_q (D, D), b_q (D,), W_v (D, D), b_v (D,).

        Raises:
            UserError: This pooling computes its scores in another way.
        """
        raise UserError(
            f"a model with {type(self).__name__} can be trained and evaluated, but neither searched"
            " nor exported: it has no folded_maps"
        )

    def check_searchable(self) -> None:
        """Raise UserError if search and ONNX graphs cannot compute the scores of this pooling."""
        if self.keeps_frames:
            self.folded_maps()


class MeanPooling(Pooling):
    """Average of the valid frames."""

    def __init__(self, **kwargs: Any):
        super().__init__()  # kwargs: TAP's settings, in models of the first versions

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Average frames (B, T, F) under mask bool (B, T) to (B, F), in float32 at least.

        A clip without a valid frame gives zeros.
        """
        with torch.autocast(frames.device.type, enabled=False):
            return _average(_at_least_float32(frames), mask)


class AveragePooling(Pooling):
    """Average of the projected vectors of a clip's windows or frames, as pretrained models need it.

    Their projections are not linear, so it matters that the average comes after them.

    Args:
        similarity: "cosine" averages vectors of length 1, and scores are cosines (CLAP). "dot"
            averages them as they are, and scores are dot products (PE-Audio).

    Raises:
        UserError: The similarity is unknown.
    """

    pools_projected = True
    longest_excerpt = 10.0

    def __init__(self, similarity: str = "cosine"):
        super().__init__()
        if similarity not in ("cosine", "dot"):
            raise UserError(f"pooling.similarity must be cosine or dot, found {similarity!r}")
        self.similarity = similarity

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Average projected frames (B, T, D) under mask bool (B, T) to (B, D), in float32."""
        with torch.autocast(frames.device.type, enabled=False):
            frames = self.directions(_at_least_float32(frames))
            return _average(frames, mask)

    def score(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        if self.similarity == "cosine":
            return super().score(text, frames, mask)
        with torch.autocast(text.device.type, enabled=False):
            return _at_least_float32(text) @ _at_least_float32(frames[:, 0]).T

    def directions(self, vectors: Tensor) -> Tensor:
        return vectors if self.similarity == "dot" else super().directions(vectors)


class TextAwareAttentionPooling(Pooling):
    """Text-aware attention pooling (TAP): each text weighs the frames of each audio.

        Q = LN(text) W_q + b_q     K = LN(frames) W_k + b_k     V = LN(frames) W_v + b_v
        z = LN(softmax(Q K^T / sqrt(D_p)) V W_o + b_o)          score = cos(text, z)

    It is computed folded, which gives the same numbers. The key bias adds the same number to the
    logits of all frames, so the softmax drops it, and the logits are
    (Q W_k^T / sqrt(D_p)) LN(frames)^T. V W_o is one D-vector per frame, made once per audio. A pair
    then costs 2 T D multiplications instead of 2 T D_p + D_p D. V W_o includes b_v, while b_o is
    added later: after dropout, weights need not sum to 1.

    Padding frames get no weight. An audio without a valid frame gets finite scores without meaning:
    to refuse it, the host would have to wait for the GPU at every call.

    Source: Xin, Yang, Zou: ICASSP 2023, section 2.2.

    Args:
        dim: D, size of the shared space.
        attention_dim: D_p, size of query, key and value.
        attention_dropout: Dropout on the attention weights, in training only.
        output_dropout: Dropout on z, in training only.
        init: "default" is PyTorch's initialisation. "identity" starts as an average of the frames
            weighted by their similarity with the text, as X-Pool does.

    Raises:
        UserError: init is "identity" and attention_dim is below dim.
    """

    keeps_frames = True
    num_evidence = 5
    runtime_settings = ("block_elements",)

    def __init__(
        self,
        dim: int,
        attention_dim: int,
        attention_dropout: float = 0.0,
        output_dropout: float = 0.0,
        init: str = "default",
    ):
        super().__init__()
        self.query = nn.Linear(dim, attention_dim)
        self.key = nn.Linear(dim, attention_dim)
        self.value = nn.Linear(dim, attention_dim)
        self.output = nn.Linear(attention_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.attention_dropout = attention_dropout
        self.output_dropout = output_dropout
        if init not in ("default", "identity"):
            raise UserError(f'init must be "default" or "identity", found {init!r}')
        if init == "default":
            return
        if attention_dim < dim:
            raise UserError(
                f"pooling.init=identity needs pooling.attention_dim >= dim, found {attention_dim} <"
                f" {dim}; raise it, or use pooling.init=default"
            )
        eye = torch.eye(dim)
        with torch.no_grad():
            for linear in (self.query, self.key, self.value, self.output):
                linear.bias.zero_()
            # Beyond the identity, query and value keep random rows, key and output are zero: no
            # effect at the start, but gradients.
            self.query.weight[:dim] = eye
            self.value.weight[:dim] = eye
            self.key.weight.zero_()[:dim] = eye
            self.output.weight.zero_()[:, :dim] = eye

    def forward(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Pool each audio for each text.

        Args:
            text: (N, D), not normalised.
            frames: (B, T, D).
            mask: bool (B, T), True = valid.

        Returns:
            Pooled audio (N, B, D), one vector per pair.
        """
        keys, values = self._keys_and_values(frames, self._value_maps(frames))
        return self._pool(self.folded_queries(text), keys, values, mask).transpose(0, 1)

    def score(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Return the cosine (N, B) of each text with the audio pooled for it; see `forward`.

        It never holds (N, B, D). A block holds about `block_elements` numbers: for one audio's
        valid frames and part of the texts, or, with gradients, for all audios and part of the
        texts. The backward pass computes each block again, so memory is bounded in training too.
        """
        queries, value_maps = self.folded_queries(text), self._value_maps(frames)
        if torch.is_grad_enabled():
            # One block of audios: the backward pass needs their keys and values anyway.
            keys, values = self._keys_and_values(frames, value_maps)
            return self._score_audios(text, queries, keys, values, mask)
        # Without gradients audio by audio: padding costs nothing, and no mask is needed. The host
        # waits for a GPU in nonzero() and tolist(), once for all audios.
        valid = mask.nonzero()  # (valid frames of all audios, 2)
        counts = mask.sum(dim=1).tolist()
        # Keys of several audios at once: the frames of a short one would keep no processor busy.
        num_audios = max(1, self.block_elements // (2 * frames.shape[1] * frames.shape[2]))
        parts = [counts[first : first + num_audios] for first in range(0, len(counts), num_audios)]
        columns = []
        for part, index in zip(parts, valid.split([sum(part) for part in parts])):
            # (valid frames of the part, D)
            keys, values = self._keys_and_values(frames[index[:, 0], index[:, 1]], value_maps)
            for key, value in zip(keys.split(part), values.split(part)):
                columns.append(self._score_audios(text, queries, key[None], value[None], None))
        return torch.cat(columns, dim=1)

    def _score_audios(
        self, text: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Score text and queries (N, D) against keys and values (b, T, D): (N, b)."""
        num_audios, num_frames, dim = keys.shape
        # A pair holds T logits and T weights, or D sums and their norm.
        num_texts = max(1, self.block_elements // (2 * num_audios * (num_frames + dim)))
        recompute = torch.is_grad_enabled() and num_texts < len(text)
        rows = []
        for text_part, queries_part in zip(text.split(num_texts), queries.split(num_texts)):
            block = (text_part, queries_part, keys, values, mask)
            if recompute:
                rows.append(checkpoint(self._score_block, *block, use_reentrant=False))
            else:
                rows.append(self._score_block(*block))
        return torch.cat(rows)

    def attention(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Return the weights (N, B, T) of each text on the frames, without dropout.

        They are float32 at least; rows sum to 1. Arguments as in `forward`.
        """
        queries, keys = self.folded_queries(text), self.norm(frames)
        return self._attention_weights(queries, keys, mask).transpose(0, 1)

    def contributions(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Return attention times the cosine of the text and the frame's own output, (N, B, T).

        A frame's own output is z with all weight on that frame. The sum over frames is not the
        score: z has a norm, which is not linear.
        """
        return self.evidence(text, self.keys(frames), mask)[..., 4] / mask.sum(dim=1)[:, None]

    def keys(self, frames: Tensor) -> Tensor:
        return self.norm(frames)

    def evidence(self, text: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Return, for each text and frame, float32 (N, B, T, 5), zeros for padding.

        0: cosine of text and key. 1: cosine of text and the frame's own output. 2: logit.
        3: log(weight * T). 4: weight * T * number 1. T counts valid frames.
        """
        similarity = super().evidence(text, keys, mask)  # (N, B, T, 1)
        queries = self.folded_queries(text)
        values = _apply(self._value_maps(keys), keys) + self.output.bias
        own = super().evidence(text, self.norm(values), mask)[..., 0]  # (N, B, T)
        with torch.autocast(text.device.type, enabled=False):
            logits = _products(_at_least_float32(queries), _at_least_float32(keys))
            lowest = torch.finfo(logits.dtype).min
            log_weights = logits.masked_fill(~mask, lowest).log_softmax(dim=-1)
            log_weights = log_weights + mask.sum(dim=1)[:, None].log()
            log_weights = log_weights.masked_fill(~mask, 0.0)
            numbers = torch.stack(
                [own, logits, log_weights, log_weights.exp() * own], dim=-1
            ).masked_fill(~mask[..., None], 0.0)
        return torch.cat([similarity, numbers], dim=-1)

    def clip_vectors(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Return the output (B, D) of equal weights for the valid frames: the first search stage.

        The maps are linear, so the average frame goes through them. The average of the frames
        themselves gives somewhat worse candidates on the sample's evaluation split, and equally
        good ones on its validation split (benchmarks/two_stage.py).
        """
        weights = mask / mask.sum(dim=1, keepdim=True)  # (B, T)
        average = torch.einsum("bt,btd->bd", weights.to(frames.dtype), self.norm(frames))
        return self.norm(self.output(self.value(average)))

    def folded_queries(self, text: Tensor) -> Tensor:
        """Return the queries (N, D) whose products with normalised frames are the logits."""
        maps = _compose(self.query, self.key.weight.T, num_rows=len(text))
        queries = _apply(maps, self.norm(text)) / math.sqrt(self.key.out_features)
        # The key bias has a gradient, of zero: without one DistributedDataParallel waits for it.
        return queries + 0.0 * self.key.bias.sum()

    def folded_maps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the maps of Pooling.folded_maps, for a trained model.

        b_v is the bias of value and output together, since weights sum to 1.
        """
        query_map, query_bias = _product(self.query, self.key.weight.T)
        value_map, value_bias = _product(self.value, self.output.weight)
        scale = self.key.out_features**-0.5
        return scale * query_map, scale * query_bias, value_map, value_bias + self.output.bias

    def _value_maps(self, frames: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        return _compose(self.value, self.output.weight, num_rows=frames.shape[0] * frames.shape[1])

    def _keys_and_values(
        self, frames: Tensor, value_maps: list[tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor]:
        """Return the normalised frames and their values V W_o, both (b, T, D)."""
        keys = self.norm(frames)
        return keys, _apply(value_maps, keys)

    def _attention_weights(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Return (b, n, T) of queries (n, D) and keys (b, T, D); mask None: all are valid."""
        logits = _at_least_float32(queries.expand(len(keys), -1, -1) @ keys.transpose(1, 2))
        if mask is not None:
            logits.masked_fill_(~mask[:, None], torch.finfo(logits.dtype).min)
        return logits.softmax(dim=-1)

    def _pool(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return (b, n, D) of queries (n, D), keys and values (b, T, D), mask (b, T)."""
        weights = self._attention_weights(queries, keys, mask)
        weights = functional.dropout(weights, self.attention_dropout, self.training)
        pooled = self.norm(torch.baddbmm(self.output.bias, weights.to(values.dtype), values))
        return functional.dropout(pooled, self.output_dropout, self.training)

    def _score_block(
        self, text: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        return cosine(text, self._pool(queries, keys, values, mask))  # (n, b)


def _compose(first: nn.Linear, weight: Tensor, num_rows: int) -> list[tuple[Tensor, Tensor | None]]:
    """Return `first` and then `weight` as two maps, or their product if that is cheaper.

    num_rows: number of vectors that the maps are applied to.
    """
    hidden, size_in, size_out = first.out_features, first.in_features, weight.shape[0]
    if num_rows * hidden * (size_in + size_out) <= size_in * size_out * (num_rows + hidden):
        return [(first.weight, first.bias), (weight, None)]
    return [_product(first, weight)]


def _product(first: nn.Linear, weight: Tensor) -> tuple[Tensor, Tensor]:
    return weight @ first.weight, weight @ first.bias


def _apply(maps: list[tuple[Tensor, Tensor | None]], x: Tensor) -> Tensor:
    for weight, bias in maps:
        x = functional.linear(x, weight, bias)
    return x


def _products(text: Tensor, keys: Tensor) -> Tensor:
    """Return the dot products (N, B, T) of text (N, D) or (B, N, D) with keys (B, T, D)."""
    return torch.einsum("nd,btd->nbt" if text.dim() == 2 else "bnd,btd->nbt", text, keys)


def _average(frames: Tensor, mask: Tensor) -> Tensor:
    """Average frames (B, T, F) under mask bool (B, T) to (B, F); zeros where none is valid."""
    valid = mask.to(frames.dtype)  # (B, T)
    weights = valid / valid.sum(dim=1, keepdim=True).clamp_min(1.0)
    return torch.einsum("bt,btf->bf", weights, frames)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
