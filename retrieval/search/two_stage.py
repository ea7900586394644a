"""Search in two stages: a score that costs one product a clip picks candidates for each text, and
TAP scores those alone.

TAP looks at every frame of a clip for every text, 2 T D multiplications a pair. The first stage
compares the text with one vector a clip, made once: what TAP gives when it listens to all frames
alike. The second scores the pairs that are left, clip by clip, with the numbers that `model.score`
has for them; where all clips are candidates it is the full score matrix, sorted. Measured in
benchmarks/two_stage.py.

Letters: N texts, B clips, T frames of a clip, D = dim, K candidates; n texts of a block.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.data import ClipSplit, make_clip_loader
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.inference import Autocast, eval_mode
from retrieval.models.pooling import TextAwareAttentionPooling, cosine, first_stage_vectors

# First-stage scores held at once: 16 MiB in float32, and three times that to pick candidates from
# them.
FIRST_STAGE_ELEMENTS = 2**22


@dataclass(frozen=True)
class ClipIndex:
    """What is kept of encoded clips. Raises ValueError for parts that do not fit together. Tensors
    may be memory maps.
    """

    normalised = False  # whether the frames have been through TAP's norm

    vectors: Tensor  # float32 (B, D), one a clip, for the first stage
    # (all valid frames, clip after clip, D), any float type; None where the pooling does not look
    # at the text
    frames: Tensor | None = None
    starts: Tensor | None = None  # int64 (B + 1,): clip b has the frames starts[b] to starts[b + 1]

    def __post_init__(self) -> None:
        if (self.frames is None) != (self.starts is None):
            raise ValueError("frames and starts belong together: give both or none")
        if self.frames is None:
            return
        fits = (
            len(self.starts) == len(self) + 1
            and self.starts[0] == 0
            and self.starts[-1] == len(self.frames)
        )
        if not fits or bool((self.starts.diff() < 1).any()):
            raise ValueError(
                f"starts must rise from 0 to the {len(self.frames)} frames in {len(self)} clips of"
                " one frame at least"
            )

    def __len__(self) -> int:
        return len(self.vectors)

    def clip_frames(self, clip: int) -> Tensor:
        """(T, D), without a copy."""
        return self.frames[self.starts[clip] : self.starts[clip + 1]]


def encode_index(
    model: DualEncoder,
    split: ClipSplit,
    *,
    audio_batch_size: int = 16,
    num_workers: int = 0,
    autocast: Autocast = nullcontext,
    dtype: torch.dtype = torch.float32,
) -> ClipIndex:
    """Encode every clip of a split once, into CPU memory: T D numbers of `dtype` a clip for TAP,
    else D numbers.

    Clips longer than model.clip_seconds: their first clip_seconds. float16 halves the memory, and
    moves scores by its rounding.
    """
    device, is_tap = (
        next(model.parameters()).device,
        isinstance(model.pooling, TextAwareAttentionPooling),
    )
    max_samples, dim = model.windows.clip_samples, model.audio_projection.out_features
    num_frames = model.windows.num_valid_frames(
        torch.from_numpy(np.minimum(split.num_samples, max_samples))
    )  # (B,)
    # (B + 1,)
    starts = torch.cat([num_frames.new_zeros(1), num_frames.cumsum(0)]) if is_tap else None
    frames = torch.empty(int(starts[-1]), dim, dtype=dtype) if is_tap else None  # (all frames, D)
    vectors = torch.empty(len(split), dim)  # (B, D)
    first, first_frame = 0, 0
    with eval_mode(model), torch.no_grad():
        for waveform, lengths in make_clip_loader(
            split, range(len(split)), max_samples, audio_batch_size, num_workers
        ):
            with autocast():
                # (b, T, D), (b, T)
                encoded, mask = model.encode_audio(waveform.to(device, non_blocking=True), lengths)
            encoded = encoded.float()
            vectors[first : first + len(encoded)] = first_stage_vectors(
                model.pooling, encoded, mask
            ).cpu()
            first += len(encoded)
            if is_tap:
                valid = encoded[mask]  # (frames of these clips, D)
                frames[first_frame : first_frame + len(valid)] = valid.cpu()
                first_frame += len(valid)
    return ClipIndex(vectors, frames, starts)


class TwoStage:
    """Scores texts against an index with the pooling of the model that made it. TAP's matrices are
    multiplied once, here.
    """

    @torch.no_grad()
    def __init__(self, pooling: nn.Module, index: ClipIndex):
        self.pooling, self.index = pooling, index
        self.is_tap = isinstance(pooling, TextAwareAttentionPooling)
        if self.is_tap != (index.frames is not None):
            raise ValueError(
                "TAP needs an index with frames, the other poolings one without; encode the clips"
                " with this model"
            )
        if self.is_tap:
            *self.query_map, value_map, value_bias = pooling.folded_maps()
            self.value_map = value_map, value_bias  # (D, D), (D,), as query_map
            # a new one for every clip would cost more than its product
            self._buffer = value_map.new_empty(0, len(value_map))

    @torch.no_grad()
    def scores(self, text: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
        """The best `num_candidates` clips by the first stage for each text (N, D): clips int64 (N,
        K) and scores float32 (N, K), best first.

        Of equal scores the clip of the lower number comes first, in both stages. Raises ValueError
        for no texts and K out of range, UserError for NaN. Held are N K numbers and blocks.
        """
        if text.dim() != 2 or not len(text) or text.shape[1] != self.index.vectors.shape[1]:
            raise ValueError(
                f"text must be (N, {self.index.vectors.shape[1]}) with N of 1 or more, found"
                f" {tuple(text.shape)}"
            )
        if not 1 <= num_candidates <= len(self.index):
            raise ValueError(
                f"num_candidates must be 1 to {len(self.index)}, the number of clips, found"
                f" {num_candidates}"
            )
        text = text.float()
        candidates, scores = self._first_stage(text, num_candidates)
        if self.is_tap:
            scores = self.rescore(text, candidates)
        order = scores.argsort(dim=1, descending=True, stable=True)  # candidates ascend
        return candidates.gather(1, order), scores.gather(1, order)

    def _first_stage(self, text: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
        """Clips (N, K), ascending, and their first-stage scores (N, K)."""
        vectors = self.index.vectors.to(text.device)  # (B, D)
        candidates, kept_scores = [], []
        for part in text.split(max(1, FIRST_STAGE_ELEMENTS // len(vectors))):
            scores = cosine(part, vectors)  # (n, B)
            _check_not_nan(scores)
            last = scores.topk(num_candidates, dim=1).values[:, -1:]  # (n, 1)
            # topk takes any of the clips that tie for the last place, and not the same ones on
            # every device.
            above, level = scores > last, scores == last
            kept = above | level & (
                level.cumsum(dim=1) <= num_candidates - above.sum(dim=1, keepdim=True)
            )  # (n, B), K a row
            candidates.append(kept.nonzero()[:, 1].view(len(part), num_candidates))
            kept_scores.append(scores[kept].view(len(part), num_candidates))
        return torch.cat(candidates), torch.cat(kept_scores)

    @torch.no_grad()
    def rescore(self, text: Tensor, candidates: Tensor) -> Tensor:
        """TAP's scores float32 (N, K) of the candidates int64 (N, K) for the texts float32 (N, D).
        Raises UserError for NaN.

        Clip by clip: a clip's frames are read and normalised once, and none is padded.
        """
        queries = self._queries(text)  # (N, D)
        # (N, D), of which a score is the product with a pooled clip of length 1
        directions = functional.normalize(text, eps=1e-12)
        # (N K,), those of one clip side by side
        clips, pairs = candidates.flatten().sort(stable=True)
        clips, counts = clips.unique_consecutive(return_counts=True)
        rows = pairs.div(candidates.shape[1], rounding_mode="floor")  # (N K,)
        scores, first = torch.empty(len(pairs), device=text.device), 0  # (N K,)
        for pooled in self._pooled(queries, clips.tolist(), rows.split(counts.tolist())):
            last = first + len(pooled)
            pooled = functional.normalize(self.pooling.norm(pooled), eps=1e-12)
            scores[pairs[first:last]] = torch.linalg.vecdot(directions[rows[first:last]], pooled)
            first = last
        _check_not_nan(scores)
        return scores.view_as(candidates)

    def _pooled(
        self, queries: Tensor, clips: list[int], rows_of_clips: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Each clip pooled for its rows of the queries (N, D), in blocks (n, D) that hold many
        clips or a part of one; before TAP's last norm.
        """
        # Values are linear in the frames: what the weights average may be the frames or their
        # values, whichever are fewer.
        num_frames = sum(len(self.index.clip_frames(clip)) for clip in clips)
        map_frames = num_frames < sum(map(len, rows_of_clips))
        waiting, num_waiting, dim = [], 0, queries.shape[1]
        for clip, rows in zip(clips, rows_of_clips):
            keys = self._keys(clip)  # (T, D)
            values = functional.linear(keys, *self.value_map) if map_frames else keys
            for part in rows.split(max(1, self.pooling.block_elements // (len(keys) + 2 * dim))):
                waiting.append((queries[part] @ keys.T).softmax(dim=1) @ values)  # (n, D)
                num_waiting += len(part)
                if num_waiting * 2 * dim >= self.pooling.block_elements:
                    yield self._mapped(waiting, map_frames)
                    waiting, num_waiting = [], 0
        if waiting:
            yield self._mapped(waiting, map_frames)

    def _mapped(self, averages: list[Tensor], is_mapped: bool) -> Tensor:
        joined = torch.cat(averages)
        # one product for many clips
        return joined if is_mapped else functional.linear(joined, *self.value_map)

    @torch.no_grad()
    def attention(self, text: Tensor, clips: Sequence[int]) -> list[Tensor]:
        """Of each clip the weights float32 (T,) that the text float32 (D,) gives to its frames;
        they sum to 1.
        """
        (query,) = self._queries(text[None])  # (D,)
        return [(self._keys(clip) @ query).softmax(dim=0) for clip in clips]

    def _queries(self, text: Tensor) -> Tensor:
        """pooling.folded_queries (N, D), through one matrix in place of two."""
        return functional.linear(self.pooling.norm(text), *self.query_map)

    def _keys(self, clip: int) -> Tensor:
        """Normalised frames float32 (T, D), in memory that the next clip takes."""
        frames = self.index.clip_frames(clip)
        if self._buffer.shape[0] < len(frames):
            self._buffer = self._buffer.new_empty(len(frames), frames.shape[1])
        keys = self._buffer[: len(frames)].copy_(frames)
        return keys if self.index.normalised else self.pooling.norm(keys)


def _check_not_nan(scores: Tensor) -> None:
    num_nan = int(scores.isnan().sum())
    if num_nan:
        raise UserError(
            f"{num_nan} of {scores.numel()} scores are NaN: the weights, or what was encoded with"
            " them, are not finite; take an earlier checkpoint, another precision of the encoders"
            " or float32 frames"
        )
