"""Windows, valid frames and joined features against golden numbers of the reference.

They are of 30 s at 4 Hz. Letters: B clips, S samples, W windows, T frames, F feature size.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.models.pooling import MeanPooling
from retrieval.models.windows import WindowGrid

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "window.npz")
RATE = 4  # Hz of the golden clips
# seconds of window and hop; the reference leaves the last 4 s of the last one unheard
CASES = [(10, 10), (10, 5), (5, 5), (10, 8)]
NUM_WINDOWS = {(10, 8): 3}  # of the reference, where we have one more


def grid_of(window_seconds: int, hop_seconds: int) -> WindowGrid:
    return WindowGrid(
        clip_samples=30 * RATE,
        window_samples=window_seconds * RATE,
        hop_samples=hop_seconds * RATE,
        frames_per_window=4,
    )


def clips() -> torch.Tensor:
    return torch.from_numpy(GOLDEN["x"])  # (2, 120)


def fake_encoder(windows: torch.Tensor) -> torch.Tensor:
    """Minimum, maximum, mean of each quarter, and negated: (B, W, S) to (B, W, 2, 4 frames, 3)."""
    quarters = windows.unflatten(2, (4, -1))
    features = torch.stack([quarters.amin(3), quarters.amax(3), quarters.mean(3)], dim=-1)
    return torch.stack([features, -features], dim=2)


@pytest.mark.parametrize(("window", "hop"), CASES)
def test_split_equals_the_reference(window: int, hop: int):
    grid = grid_of(window, hop)
    golden = GOLDEN[f"seg{window}_hop{hop}.split"]  # (B * W, S), clip by clip
    found = grid.split(clips(), NUM_WINDOWS.get((window, hop), grid.num_windows))
    assert found.shape == (2, len(golden) // 2, window * RATE)
    assert np.array_equal(found.flatten(0, 1).numpy(), golden)


@pytest.mark.parametrize(("window", "hop"), CASES)
def test_frames_of_all_windows_are_joined_in_order_of_time(window: int, hop: int):
    grid = grid_of(window, hop)
    num_windows = NUM_WINDOWS.get((window, hop), grid.num_windows)
    encoded = fake_encoder(grid.split(clips(), num_windows))  # (B, W, 2, 4, 3)
    joined = encoded.transpose(1, 2).flatten(2, 3)  # (B, 2, T, 3)
    golden = GOLDEN[f"seg{window}_hop{hop}.merged"]
    assert 4 * num_windows == golden.shape[2] and grid.num_frames - golden.shape[2] == 4 * (
        (window, hop) in NUM_WINDOWS
    )
    assert np.array_equal(joined.numpy(), golden)


def test_negative_control_another_hop_is_another_split():
    grid = grid_of(10, 10)
    assert not np.array_equal(
        grid.split(clips(), 3)[:, 1].numpy(), GOLDEN["seg10_hop8.split"].reshape(2, 3, -1)[:, 1]
    )


def test_a_clip_as_long_as_the_window_is_one_window():
    golden = GOLDEN["short.split"]  # (2, 30), returned by the reference as it came in
    grid = WindowGrid(clip_samples=30, window_samples=30, hop_samples=40, frames_per_window=4)
    assert grid.num_windows == 1
    assert np.array_equal(grid.split(clips()[:, :30], 1)[:, 0].numpy(), golden)


def test_a_partial_window_is_padded_with_zeros_at_the_end():
    padded = grid_of(10, 10).split(torch.arange(1.0, 91.0)[None], 3).flatten()  # (120,)
    assert np.array_equal(padded.numpy(), GOLDEN["fixed.pad_out"])


def test_samples_beyond_the_windows_asked_for_are_left_out():
    found = grid_of(10, 10).split(clips(), 2)
    assert np.array_equal(found.flatten(1).numpy(), GOLDEN["x"][:, :80])


@pytest.mark.parametrize(
    ("window", "hop", "num_windows"),
    [(10, 8, 4), (20, 20, 2), (7, 7, 5), (7, 3, 9), (30, 30, 1), (10, 10, 3)],
)
def test_no_sample_of_a_clip_is_left_unheard(window: int, hop: int, num_windows: int):
    grid = grid_of(window, hop)
    assert grid.num_windows == num_windows
    found = grid.split(torch.arange(1, 121)[None], num_windows)
    assert set(found.flatten().tolist()) - {0} == set(range(1, 121))
    valid = grid.num_valid_frames(torch.tensor([1, 120]))
    assert valid[0] == 1 and valid[1] > 4 * (num_windows - 1)  # the last window has a valid frame


def test_valid_frames_of_a_grid_beyond_the_clip_are_those_of_sound():
    """30 s in windows of 20 s: of a clip of 20 s all of the first window is valid."""
    grid = grid_of(20, 20)
    assert grid.num_valid_frames(torch.tensor([5, 20, 25, 30]) * RATE).tolist() == [1, 4, 5, 6]


def test_number_of_valid_frames_of_the_published_size():
    grid = WindowGrid(
        clip_samples=960_000, window_samples=320_000, hop_samples=320_000, frames_per_window=250
    )
    assert grid.num_frames == 750
    assert np.array_equal(
        grid.num_valid_frames(torch.from_numpy(GOLDEN["mask750.samples"])).numpy(),
        GOLDEN["mask750.valid"],
    )


def test_valid_frames_equal_a_slow_count():
    """Against exact integers, at every length: floats would sometimes be one frame off."""
    grid = grid_of(10, 5)
    for num_samples in range(1, 121):
        slow = next(count for count in range(21) if count * 120 >= num_samples * 20)
        assert grid.num_valid_frames(torch.tensor([num_samples])).item() == slow


def test_mask_and_pooled_features_equal_the_reference():
    # (8, 15), (8, 15, 6)
    mask, features = GOLDEN["fa.mask"].astype(bool), GOLDEN["fa.tap_features"]
    grid = WindowGrid(
        clip_samples=150_000, window_samples=150_000, hop_samples=150_000, frames_per_window=15
    )
    lengths = torch.from_numpy(np.round(GOLDEN["fa.audio_length"] * 150_000).astype(np.int64))
    valid = grid.num_valid_frames(lengths)
    assert np.array_equal((torch.arange(15) < valid[:, None]).numpy(), mask)
    pooled = MeanPooling()(torch.from_numpy(features), torch.from_numpy(mask))
    assert np.abs(pooled.numpy() - GOLDEN["fa.mean_features"][:, 0]).max() < 1e-6
