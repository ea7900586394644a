"""Search in two stages: FAISS picks candidates for each text, TAP scores only these.

TAP looks at every frame of a clip for every text, 2 T D multiplications per pair. The first stage
compares the text with one vector per clip: TAP's output if every frame had the same weight. The
second computes the scores of `model.score` for the candidates, clip by clip. With all clips as
candidates that is the full score matrix, sorted. Poolings that ignore the text need the first stage
only.
Measured in benchmarks/two_stage.py.

Letters: N texts, B clips, T frames of a clip, D = dim, K candidates; n texts of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.models.dual_encoder import check_not_nan
from retrieval.models.pooling import Pooling
from retrieval.search.hits import FrameCurves
from retrieval.search.local.clips import unit
from retrieval.search.store import ClipStore

MOST_SIZES_KEPT = 2**23  # frames, of 8 bytes


@dataclass(frozen=True)
class OutputSizes:
    """Two numbers of each frame for TAP's contributions; they do not depend on the text.

    They are the standard deviation of the frame's value, and the length of TAP's output if this
    frame has all the weight. They take D D multiplications a frame, so an index stores them.

    Attributes:
        norm: Of a pooling with keeps_frames.
        value_map: W_v (D, D) of its folded_maps.
        value_bias: b_v (D,).
    """

    norm: nn.LayerNorm
    value_map: Tensor
    value_bias: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, pooling: Pooling) -> "OutputSizes":
        return cls(pooling.norm, *pooling.folded_maps()[2:])

    @torch.no_grad()
    def __call__(self, keys: Tensor) -> Tensor:
        """Return float32 (T, 2), on the CPU, of frames after the norm, (T, D) of any float type."""
        values = functional.linear(keys.to(self.value_map), self.value_map, self.value_bias)
        deviations = (values.var(dim=1, correction=0) + self.norm.eps).sqrt()  # (T,)
        lengths = torch.linalg.vector_norm(self.norm(values), dim=1).clamp_min(1e-12)  # (T,)
        return torch.stack([deviations, lengths], dim=1).cpu()


class TwoStage:
    """Scores texts against indexed clips.

    Args:
        pooling: The pooling of the model that encoded the clips. Its weights are multiplied here,
            once: later changes of them have no effect.
        clips: The clips to search in.

    Raises:
        ValueError: The pooling looks at frames, and the clips have none.
    """

    @torch.no_grad()
    def __init__(self, pooling: Pooling, clips: ClipStore):
        self.pooling, self.clips = pooling, clips
        if pooling.keeps_frames and not clips.has_frames:
            raise ValueError("TAP needs clips with frames; encode the clips with this model")
        if pooling.keeps_frames:
            *self._query_map, value_map, value_bias = pooling.folded_maps()
            self._value_map = value_map, value_bias  # (D, D), (D,), as _query_map
            # Frames of the clip at hand: new memory for each clip would cost more than its product.
            self._buffer = value_map.new_empty(0, len(value_map))
            self._output_sizes = OutputSizes(pooling.norm, value_map, value_bias)
            self._sizes: dict[int, Tensor] = {}  # (T, 2) by clip, see _sizes_of
            self._num_sizes = 0  # frames in it

    def scores(
        self, text: Tensor, num_candidates: int, selection: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Score texts against their best clips by the first stage.

        Args:
            text: float32 (N, D), of encode_text.
            num_candidates: K, 1 or more; all clips if there are not as many.
            selection: Clips that may be found, in the form of `clips`; None: all.

        Returns:
            Clips int64 (N, K) and their scores float32 (N, K) on the CPU, best first; of equal
            scores the clip of the lower number first.

        Raises:
            UserError: A score is NaN.
        """
        vectors = self.pooling.directions(text).cpu().numpy()
        found = self.clips.nearest(vectors, num_candidates, selection)
        clips, scores = map(torch.from_numpy, found)
        if self.pooling.keeps_frames and clips.numel():
            scores = self.rescore(text, clips.to(text.device)).cpu()
        clips, order = clips.sort(dim=1)
        scores = scores.gather(1, order)
        order = scores.argsort(dim=1, descending=True, stable=True)
        return clips.gather(1, order), scores.gather(1, order)

    def alike(
        self, vectors: np.ndarray, num_candidates: int, selection: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the clips with the highest cosines to clip vectors float32 (N, D).

        Dot products of two clips would favour long vectors; cosines do not. Arguments, results and
        errors are those of `scores`, but clips of equal cosines come in any order.
        """
        needs_cosines = self.pooling.similarity != "cosine"  # else all vectors have length 1
        return self.clips.nearest(unit(vectors), num_candidates, selection, needs_cosines)

    @torch.no_grad()
    def rescore(self, text: Tensor, candidates: Tensor) -> Tensor:
        """Return TAP's scores float32 (N, K) of candidates int64 (N, K) for texts float32 (N, D).

        Clip by clip: a clip's frames are read once, and none is padded. Raises UserError for NaN.
        """
        directions = self.pooling.directions(text)  # (N, D)
        # (N K,), those of one clip side by side
        clips, pairs = candidates.flatten().sort(stable=True)
        clips, counts = clips.unique_consecutive(return_counts=True)
        rows = pairs.div(candidates.shape[1], rounding_mode="floor")  # (N K,)
        # Values are linear in the frames, so the weights may average frames or values: map
        # whichever are fewer, the frames or the averages.
        num_frames = self.clips.num_frames(clips.cpu().numpy()).sum()
        self.clips.prefetch(clips.tolist())
        map_frames = num_frames < len(pairs)
        scores, first = torch.empty(len(pairs), device=text.device), 0  # (N K,)
        for averages in self._averages(
            self._queries(text), clips.tolist(), rows.split(counts.tolist()), map_frames
        ):
            last = first + len(averages)
            mapped = averages if map_frames else functional.linear(averages, *self._value_map)
            pooled = self.pooling.directions(self.pooling.norm(mapped))  # (n, D)
            scores[pairs[first:last]] = torch.linalg.vecdot(directions[rows[first:last]], pooled)
            first = last
        check_not_nan(scores)
        return scores.view_as(candidates)

    def _averages(
        self, queries: Tensor, clips: list[int], rows_of_clips: Sequence[Tensor], map_frames: bool
    ) -> Iterator[Tensor]:
        """Average each clip's frames, or their values, with the weights of its rows of the queries.

        Yields blocks (n, D) of many clips or of a part of one.
        """
        waiting, num_waiting, dim = [], 0, queries.shape[1]
        for clip, rows in zip(clips, rows_of_clips, strict=True):
            keys = self._keys(clip)  # (T, D)
            values = functional.linear(keys, *self._value_map) if map_frames else keys
            for part in rows.split(max(1, self.pooling.block_elements // (len(keys) + 2 * dim))):
                if len(part) == 1:  # as below, in half the time
                    weights = torch.mv(keys, queries[int(part)]).softmax(dim=0)
                    waiting.append(torch.mv(values.T, weights)[None])  # (1, D)
                else:
                    waiting.append((queries[part] @ keys.T).softmax(dim=1) @ values)  # (n, D)
                num_waiting += len(part)
                if num_waiting * 2 * dim >= self.pooling.block_elements:
                    yield torch.cat(waiting)
                    waiting, num_waiting = [], 0
        if waiting:
            yield torch.cat(waiting)

    @torch.no_grad()
    def pooled(self, text: Tensor, clips: Sequence[int]) -> np.ndarray:
        """Return TAP's outputs of K clips for one text float32 (D,), as float32 (K, D).

        Their products with pooling.directions(text) are the text's scores.
        """
        if not len(clips):
            return np.zeros((0, len(text)), np.float32)
        (query,) = self._queries(text.to(self._value_map[0].device)[None])  # (D,)
        self.clips.prefetch(clips)
        averages = []
        for clip in clips:
            keys = self._keys(clip)  # (T, D)
            averages.append((keys @ query).softmax(dim=0) @ keys)
        mapped = functional.linear(torch.stack(averages), *self._value_map)
        return self.pooling.directions(self.pooling.norm(mapped)).cpu().numpy()

    @torch.no_grad()
    def heard(self, text: Tensor, clips: Sequence[int]) -> list[FrameCurves | None]:
        """Return numbers of a text float32 (D,) for the frames of each clip; None without frames.

        Contributions are those of Pooling.contributions. Probabilities are not computed here.
        """
        if not self.clips.has_frames:
            return [None] * len(clips)
        self.clips.prefetch(clips)
        if not self.pooling.keeps_frames:
            return [FrameCurves(self._contributions(text, clip), None) for clip in clips]
        (query,) = self._queries(text[None])  # (D,)
        # The cosine of text and output = LN(value), of deviation s and length l, is
        # (direction (scale (value - mean) / s + bias)) / l. But for s and l, which do not depend on
        # the text, it is linear in the key.
        norm, (value_map, value_bias) = self.pooling.norm, self._value_map
        direction = self.pooling.directions(text)  # (D,)
        scaled = direction * norm.weight
        scaled = scaled - scaled.mean()  # takes the mean from the value
        of_key, constant, shift = scaled @ value_map, scaled @ value_bias, direction @ norm.bias
        found = []
        for clip in clips:
            keys = self._keys(clip)  # (T, D)
            weights = (keys @ query).softmax(dim=0)  # (T,)
            deviations, lengths = self._sizes_of(clip, keys).to(keys.device).unbind(dim=1)
            cosines = ((keys @ of_key + constant) / deviations + shift) / lengths  # (T,)
            found.append(FrameCurves((weights * cosines).cpu().numpy(), weights.cpu().numpy()))
        return found

    @torch.no_grad()
    def attention(self, text: Tensor, clips: Sequence[int]) -> list[np.ndarray | None]:
        """Return the weights float32 (T,) of a text float32 (D,) in each clip; None without TAP."""
        if not self.pooling.keeps_frames:
            return [None] * len(clips)
        (query,) = self._queries(text[None])  # (D,)
        return [(self._keys(clip) @ query).softmax(dim=0).cpu().numpy() for clip in clips]

    def _sizes_of(self, clip: int, keys: Tensor) -> Tensor:
        """Return the output sizes (T, 2) of a clip: from the index, or computed and remembered."""
        known = self.clips.sizes(clip)
        if known is None and clip not in self._sizes:
            if self._num_sizes > MOST_SIZES_KEPT:
                self._sizes.clear()
                self._num_sizes = 0
            self._sizes[clip] = self._output_sizes(keys)
            self._num_sizes += len(keys)
        return self._sizes[clip] if known is None else known

    def _contributions(self, text: Tensor, clip: int) -> np.ndarray:
        """Return the contributions (T,) of a clip's frames, for poolings without attention."""
        frames = self.clips.frames(clip).to(text.device).float()[None]  # (1, T, D)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=text.device)
        return self.pooling.contributions(text[None], frames, mask)[0, 0].cpu().numpy()

    def _queries(self, text: Tensor) -> Tensor:
        """Return pooling.folded_queries (N, D), through one matrix in place of two."""
        return functional.linear(self.pooling.norm(text), *self._query_map)

    def _keys(self, clip: int) -> Tensor:
        """Return a clip's frames as float32 (T, D), in memory that the next call may reuse."""
        frames = self.clips.frames(clip)
        if frames.dtype == torch.float32 and frames.device == self._buffer.device:
            return frames
        if len(self._buffer) < len(frames):
            self._buffer = self._buffer.new_empty(frames.shape)
        return self._buffer[: len(frames)].copy_(frames)
