"""Codings and averages of frames against loops."""

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.search.frame_coding import FRAME_TYPES, Averaging


def some_frames(num_frames: int = 37, dim: int = 12) -> np.ndarray:
    rng = np.random.default_rng(1)
    scales = 10 ** rng.uniform(-6, 4, (num_frames, 1))
    return (scales * rng.standard_normal((num_frames, dim))).astype(np.float32)


def through(name: str, frames: np.ndarray) -> np.ndarray:
    """Encode frames, write and read their bytes, and decode them."""
    kind = FRAME_TYPES[name]
    written = kind.encode(frames).tobytes()
    row = kind.row(frames.shape[1])
    assert len(written) == len(frames) * row.itemsize
    return kind.decode(np.frombuffer(bytearray(written), row).reshape(-1, *row.shape)).numpy()


def test_int8_is_off_by_half_a_step_at_most():
    frames = some_frames()
    decoded = through("int8", frames)
    steps = np.abs(frames).max(axis=1, keepdims=True) / 127
    errors = np.abs(decoded - frames) / steps
    assert errors.max() <= 0.5 + 1e-4
    assert errors.max() > 0.4  # it is a coding: values are rounded
    for frame, coded in zip(frames, decoded):  # the slow way
        step = np.float32(np.abs(frame).max() / np.float32(127))
        np.testing.assert_allclose(coded, [round(own / step) * step for own in frame], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-38, 3e38])
def test_int8_of_frames_at_the_ends_of_the_range(value):
    frames = np.full((2, 4), value, np.float32)
    decoded = through("int8", frames)
    assert np.isfinite(decoded).all()
    np.testing.assert_allclose(decoded, frames, rtol=1e-2, atol=1.5e-36)


def test_float16_is_what_indexes_hold():
    frames = some_frames() / 1e3
    np.testing.assert_array_equal(through("float16", frames), frames.astype(np.float16))


@pytest.mark.parametrize(("per_window", "averages"), [(10, 5), (10, 3), (7, 1), (250, 63), (5, 4)])
def test_averages_are_those_of_a_loop(per_window, averages):
    averaging = Averaging(
        frames_per_second=1.0, frames_per_window=per_window, averages_per_window=averages
    )
    for num_frames in (1, 2, per_window - 1, per_window, per_window + 1, 3 * per_window - 2):
        frames = torch.from_numpy(some_frames(num_frames))
        groups: dict[tuple[int, int], list[int]] = {}  # by window and place
        for frame in range(num_frames):
            window, place = divmod(frame, per_window)
            groups.setdefault((window, place * averages // per_window), []).append(frame)
        slow = torch.stack([frames[own].double().mean(dim=0) for own in groups.values()])
        fast = averaging.average(frames)
        assert averaging.num_averages(num_frames) == len(slow)
        assert averaging.num_averages(np.array([num_frames])).tolist() == [len(slow)]
        np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-6)
        spread = averaging.spread(fast, num_frames)
        for own, average in zip(groups.values(), fast):
            assert (spread[own] == average).all()
        full = [
            len(own) for (window, _), own in groups.items() if window < num_frames // per_window
        ]
        assert not full or max(full) - min(full) <= 1


def test_a_rate_becomes_averages_of_a_window():
    assert Averaging.of(25, 250, 10.0) is None
    averaging = Averaging.of(6.3, 250, 10.0)
    assert averaging.averages_per_window == 63
    assert Averaging.of(0.01, 250, 10.0).averages_per_window == 1
    for rate in (0, -1, 26, float("nan"), float("inf")):
        with pytest.raises(UserError, match="25 frames a second"):
            Averaging.of(rate, 250, 10.0)
