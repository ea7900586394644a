"""Training items for moments: (clip, query) pairs with the windows in which the query is heard.

Items depend only on (seed, epoch, item), as those of PairDataset. Letters: S samples, T frames of F
numbers, B items of a batch, W windows.
"""

from typing import Any

import numpy as np
import torch

from retrieval.base.errors import UserError
from retrieval.data.cache import ClipSplit, as_float
from retrieval.data.joined import JoinedSplit
from retrieval.data.moments import Window
from retrieval.data.pairs import Augment, collate_pairs


class MomentDataset(torch.utils.data.Dataset):
    """All (clip, query) pairs of a split, clip by clip; the index of an item is (epoch, number).

    Args:
        split: Clips with moments, or frames of a frame cache.
        max_samples: Longer clips are cut to this at a random place that holds a part of a window
            of the query.
        seed: Of crops, negatives and augmentation.
        sample_rate: Of the clips, in Hz.
        negatives: Share of the items that ask for a query of another clip, heard nowhere.
        augment: Changes a waveform (S,) by a generator's draws, and keeps its times.

    Raises:
        UserError: `negatives` is above 0, and a clip has the queries of all clips.
    """

    mix_probability = 0.0

    def __init__(
        self,
        split: ClipSplit | JoinedSplit,
        max_samples: int,
        seed: int,
        sample_rate: int,
        negatives: float,
        augment: Augment | None = None,
    ):
        self.split, self.max_samples, self.seed = split, max_samples, seed
        self.sample_rate, self.negatives, self.augment = sample_rate, negatives, augment
        self.pairs = [
            (clip, number)
            for clip, queries in enumerate(split.moments)
            for number in range(len(queries))
        ]
        # texts that are true of a clip: its queries and its captions
        self._own = [
            {query.query for query in queries}.union(captions)
            for queries, captions in zip(split.moments, split.captions, strict=True)
        ]
        texts = {query.query for queries in split.moments for query in queries}
        if negatives and any(
            texts <= own for own, queries in zip(self._own, split.moments, strict=True) if queries
        ):
            raise UserError(
                "moment_head.negatives asks for queries of other clips, and a clip of the"
                " development split has the queries of all; set moment_head.negatives=0"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch; see `collate_moments`."""
        return collate_moments(items)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """Return the item of PairDataset, and "windows", in s from the beginning of its audio."""
        epoch, index = item
        rng = np.random.default_rng([self.seed, epoch, index])
        clip, number = self.pairs[index]
        query = self.split.moments[clip][number]
        text, windows = query.query, query.windows
        if rng.random() < self.negatives:
            text, windows = self._foreign_text(clip, rng), ()
        start = self._start(clip, windows, rng)
        audio = self.split.read_stored(clip, start, start + self.max_samples)
        seconds = start / self.sample_rate
        if self.augment is not None:
            audio = self.augment(as_float(audio), rng)[: self.max_samples]
        name = "frames" if self.split.holds_frames else "waveform"
        shifted = [(begin - seconds, end - seconds) for begin, end in windows]
        return {name: audio, "caption": text, "clip": clip, "pair": index, "windows": shifted}

    def _foreign_text(self, clip: int, rng: np.random.Generator) -> str:
        """Draw a query that is none of the clip's own."""
        while True:
            other, number = self.pairs[int(rng.integers(len(self)))]
            text = self.split.moments[other][number].query
            if text not in self._own[clip]:
                return text

    def _start(self, clip: int, windows: tuple[Window, ...], rng: np.random.Generator) -> int:
        """Draw the first sample of a cut; it holds a random place of a random window."""
        spare = int(self.split.num_samples[clip]) - self.max_samples
        if spare <= 0:
            return 0
        if not windows:
            return int(rng.integers(spare + 1))
        place = int(rng.uniform(*windows[int(rng.integers(len(windows)))]) * self.sample_rate)
        first = min(max(0, place - self.max_samples + 1), spare)
        return int(rng.integers(first, min(place, spare) + 1))


def collate_moments(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return collate_pairs of the items, and "windows" float32 (B, W, 2) in s, W of 1 or more.

    An item with fewer windows than others is padded with windows of no length, (0, 0).
    """
    most = max(1, *(len(item["windows"]) for item in items))
    windows = np.zeros((len(items), most, 2), np.float32)
    for row, item in zip(windows, items, strict=True):
        row[: len(item["windows"])] = np.asarray(item["windows"], np.float32).reshape(-1, 2)
    return collate_pairs(items) | {"windows": torch.from_numpy(windows)}


def frame_labels(
    windows: torch.Tensor, centres: torch.Tensor, frame_seconds: float
) -> torch.Tensor:
    """Mark the frames in which a query is heard.

    A frame is marked if its centre lies in [start, end) of a window, or if the middle of a window
    lies in the frame. So each window marks a frame, however short it is.

    Args:
        windows: float (B, W, 2) in s; windows of no length are padding.
        centres: float (T,) in s.
        frame_seconds: Length of a frame in s.

    Returns:
        float32 (B, T), 1 where the query is heard.
    """
    starts, ends = windows[..., :1], windows[..., 1:]  # (B, W, 1)
    middles = (starts + ends) / 2
    inside = (centres >= starts) & (centres < ends)  # (B, W, T)
    half = frame_seconds / 2
    around = (middles >= centres - half) & (middles < centres + half) & (ends > starts)
    return (inside | around).any(dim=1).float()
