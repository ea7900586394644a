"""Frames of an index in fewer bytes: float16 or int8, all of them or averages of neighbours.

Both codings, and averages, are applied to the frames that an index holds: after TAP's norm, for
other poolings by pooling.directions. A search decodes rows to as many frames as the model made, so
the rest of the search is the same for every coding.

Letters: T frames of an excerpt, M rows of them on disk (averages, or T), D = dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from retrieval.base.errors import UserError

LARGEST = 127  # of int8; -128 is not used, so that the range is symmetric


@dataclass(frozen=True)
class FrameType:
    """Format of frames on disk.

    Attributes:
        ending: Of the file's name.
        row: Returns the numpy type of a row, one frame of D numbers.
        encode: Frames of any float type (M, D) to rows (M,) or (M, D).
        decode: Rows to a float tensor (M, D); without a copy where it can.
    """

    ending: str
    row: Callable[[int], np.dtype]
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], torch.Tensor]


def _row_of_int8(dim: int) -> np.dtype:
    return np.dtype([("scale", "<f4"), ("values", "i1", (dim,))])


def _encode_int8(frames: np.ndarray) -> np.ndarray:
    """Round to 127 steps up and down from 0, as long as the frame's largest number needs them.

    The step is kept in float32: 4 bytes of D + 4, and no frame is too small or too large for it.
    """
    frames = frames.astype(np.float32, copy=False)
    rows = np.zeros(len(frames), _row_of_int8(frames.shape[1]))
    scale = np.abs(frames).max(axis=1) / np.float32(LARGEST)  # (M,)
    # Below it a step would be 0, or its inverse infinite: such a frame becomes zeros.
    scale[scale < np.finfo(np.float32).tiny] = 0
    rows["scale"] = scale
    steps = frames / np.where(scale > 0, scale, 1)[:, None]
    rows["values"] = np.where(scale[:, None] > 0, np.rint(steps), 0).clip(-LARGEST, LARGEST)
    return rows


def _decode_int8(rows: np.ndarray) -> torch.Tensor:
    scale = torch.from_numpy(rows["scale"].astype(np.float32))
    # two steps: with mixed types a product is ten times as slow
    return torch.from_numpy(rows["values"]).to(torch.float32).mul_(scale[:, None])


FRAME_TYPES = {
    "float16": FrameType(
        "f16",
        lambda dim: np.dtype((np.float16, (dim,))),
        lambda frames: frames.astype(np.float16, copy=False),
        torch.from_numpy,
    ),
    "int8": FrameType("i8", _row_of_int8, _encode_int8, _decode_int8),
}


class Averaging(BaseModel):
    """Averages of neighbouring frames, at about the requested rate.

    A window of F frames becomes A groups, of sizes that differ by one at most. A group never
    crosses the border of a window: windows may overlap or leave gaps. In an excerpt's last window
    only its valid frames count.

    Attributes:
        frames_per_second: Requested rate.
        frames_per_window: F.
        averages_per_window: A, below F.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    frames_per_second: PositiveFloat
    frames_per_window: PositiveInt
    averages_per_window: PositiveInt

    @classmethod
    def of(
        cls, frames_per_second: float, frames_per_window: int, window_seconds: float
    ) -> "Averaging | None":
        """Return the averaging for a rate; None if it keeps every frame.

        Raises:
            UserError: The rate is not above 0, or above that of the model.
        """
        own = frames_per_window / window_seconds
        if not 0 < frames_per_second <= own * (1 + 1e-6):
            raise UserError(
                f"--frames-per-second {frames_per_second:g}: this model has {own:g} frames a"
                " second; give fewer, above 0"
            )
        averages = max(1, round(frames_per_second * window_seconds))
        if averages >= frames_per_window:
            return None
        return cls(
            frames_per_second=float(frames_per_second),
            frames_per_window=frames_per_window,
            averages_per_window=averages,
        )

    def num_averages(self, num_frames: np.ndarray | int) -> np.ndarray | int:
        """Return M of excerpts of T frames."""
        windows, rest = num_frames // self.frames_per_window, num_frames % self.frames_per_window
        started = (rest - 1) * self.averages_per_window // self.frames_per_window + 1
        return windows * self.averages_per_window + started

    def groups(self, num_frames: int) -> np.ndarray:
        """Return the number of each frame's group, int64 (T,)."""
        windows, places = np.divmod(np.arange(num_frames), self.frames_per_window)
        within = places * self.averages_per_window // self.frames_per_window
        return windows * self.averages_per_window + within

    def average(self, frames: torch.Tensor) -> torch.Tensor:
        """Average the groups of an excerpt: frames float32 (T, D) to (M, D)."""
        groups = torch.from_numpy(self.groups(len(frames))).to(frames.device)
        sums = frames.new_zeros(self.num_averages(len(frames)), frames.shape[1])
        return sums.index_add_(0, groups, frames) / groups.bincount()[:, None]

    def spread(self, averages: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Give each of T frames its group's average: (M, D) to (T, D).

        So attention counts a group as often as it has frames, and times stay those of frames.
        """
        return averages[torch.from_numpy(self.groups(num_frames))]


@dataclass(frozen=True)
class FrameCoding:
    """Converts the frames of excerpts to rows on disk, and back.

    Attributes:
        frame_type: One of FRAME_TYPES.
        dim: D.
        averaging: Averages to keep; None: all frames.
    """

    frame_type: str
    dim: int
    averaging: Averaging | None = None

    @property
    def ending(self) -> str:
        """Ending of the name of a file of rows."""
        return FRAME_TYPES[self.frame_type].ending

    @property
    def row(self) -> np.dtype:
        """Numpy type of a row; an array of M rows in float16 has shape (M, D)."""
        return FRAME_TYPES[self.frame_type].row(self.dim)

    def num_rows(self, num_frames: np.ndarray | int) -> np.ndarray | int:
        """Return M of excerpts of T frames."""
        return num_frames if self.averaging is None else self.averaging.num_averages(num_frames)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Encode an excerpt: frames of any float type (T, D) to M rows.

        Raises:
            UserError: A number is beyond the range of float16.
        """
        frames = np.ascontiguousarray(frames)
        if self.averaging is not None:
            frames = self.averaging.average(torch.from_numpy(frames).float()).numpy()
        rows = FRAME_TYPES[self.frame_type].encode(frames)
        if self.frame_type == "float16" and not np.isfinite(rows).all():
            raise UserError(
                "the model gives frames beyond the range of float16; take --frames int8 or none"
            )
        return rows

    def decode(self, rows: np.ndarray, num_frames: int) -> torch.Tensor:
        """Decode an excerpt: M rows to T frames (T, D) of any float type."""
        return self.spread(self.decode_rows(rows), num_frames)

    def decode_rows(self, rows: np.ndarray) -> torch.Tensor:
        """Decode M rows to (M, D) of any float type."""
        return FRAME_TYPES[self.frame_type].decode(rows)

    def spread(self, numbers: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Repeat the numbers of each row for all its frames: (M, N) to (T, N)."""
        return numbers if self.averaging is None else self.averaging.spread(numbers, num_frames)
