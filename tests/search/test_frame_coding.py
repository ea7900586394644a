"""Codings and averages of frames against loops, and in an index."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.search import AudioIndex
from retrieval.search.frame_coding import FRAME_TYPES, Averaging
from tests.conftest import SAMPLE_RATE, tone


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


# --- in an index ---

QUERY = "A steady low tone."


@pytest.fixture(scope="module", params=["tap", "mean"])
def model(request, tiny, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    overrides = [f"pooling.name={request.param}"]
    built = build_model(load_config(tiny / "tiny.yaml", overrides)).eval()
    with torch.no_grad():
        built.audio_projection.weight.mul_(4)  # frames that differ from each other
    path = tmp_path_factory.mktemp("models") / request.param
    built.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", tone(number, 0, 1.0 + number, rng), SAMPLE_RATE)
    return folder


def frames_of(index: AudioIndex) -> list[np.ndarray]:
    return [index.store.frames(clip).float().numpy() for clip in range(len(index.store))]


@pytest.fixture(scope="module")
def plain(model, sounds, tmp_path_factory) -> AudioIndex:
    return AudioIndex.build(sounds, model, tmp_path_factory.mktemp("plain") / "index")


def test_an_index_in_int8_answers_as_one_in_float16(model, sounds, plain, tmp_path):
    index = AudioIndex.build(sounds, model, tmp_path / "index", frames="int8")
    for own, other in zip(frames_of(index), frames_of(plain)):
        assert own.shape == other.shape
        step = np.abs(other).max(axis=1, keepdims=True) / 127
        assert (np.abs(own - other) <= 0.51 * step + 1e-3 * np.abs(other)).all()
        assert (own != other).any()
    for hit, other in zip(index.search(QUERY), plain.search(QUERY)):
        assert (hit.file, hit.start, hit.end) == (other.file, other.start, other.end)
        assert hit.score == pytest.approx(other.score, abs=0.01)
    rows = sum(len(own) for own in frames_of(plain))
    assert (tmp_path / "index/frames-0.i8").stat().st_size == rows * (index.model.dim + 4)


@pytest.mark.parametrize("frames", ["float16", "int8"])
def test_averages_stand_at_the_times_of_their_frames(model, sounds, plain, tmp_path, frames):
    grid = plain.model.windows
    rate = 0.4 * grid.frames_per_window / (grid.window_samples / SAMPLE_RATE)
    path = tmp_path / "index"
    index = AudioIndex.build(sounds, model, path, frames=frames, frames_per_second=rate)
    size = 0
    for own, other in zip(frames_of(index), frames_of(plain)):
        assert own.shape == other.shape
        per_window = round(0.4 * grid.frames_per_window)
        groups: dict[int, list[int]] = {}
        for frame in range(len(other)):
            window, place = divmod(frame, grid.frames_per_window)
            group = window * per_window + place * per_window // grid.frames_per_window
            groups.setdefault(group, []).append(frame)
        size += len(groups)
        for members in groups.values():
            slow = other[members].mean(axis=0)
            np.testing.assert_allclose(own[members], [slow] * len(members), atol=0.03)
    row = {"float16": 2 * index.model.dim, "int8": index.model.dim + 4}[frames]
    assert (path / f"frames-0.{FRAME_TYPES[frames].ending}").stat().st_size == size * row
    for hit, other in zip(index.search(QUERY), plain.search(QUERY)):
        assert (hit.file, hit.frame_seconds) == (other.file, other.frame_seconds)
        assert all(hit.start <= own.start < own.end <= hit.end for own in hit.moments)
    assert index.locate(QUERY, "3.wav").curves.shape == plain.locate(QUERY, "3.wav").curves.shape


def test_an_index_keeps_its_coding(model, sounds, tmp_path):
    own, path = Path(shutil.copytree(sounds, tmp_path / "own")), tmp_path / "index"
    settings = {"frames": "int8", "frames_per_second": 5.0}
    first = AudioIndex.build(own, model, path, **settings)
    assert first.store.meta.averaging.averages_per_window > 0
    for name in ("0.wav", "1.wav", "3.wav"):
        (own / name).unlink()  # most rows are dead: the live ones are copied as they are
    soundfile.write(own / "new.wav", tone(2, 0, 1.0, np.random.default_rng(1)), SAMPLE_RATE)
    index = AudioIndex.build(own, None, path)
    assert index.store.meta.generation == 1
    assert index.store.meta.coding == first.store.meta.coding
    for old, new in zip(first.store.clips_of("2.wav"), index.store.clips_of("2.wav"), strict=True):
        assert (first.store.frames(old) == index.store.frames(new)).all()
    for wrong, culprit in (
        ({"frames": "float16"}, "--frames int8"),
        ({"frames_per_second": 2.0}, "--frames-per-second 5"),
        ({"frames_per_second": 1e6}, "--frames-per-second"),
    ):
        with pytest.raises(UserError, match=culprit):
            AudioIndex.build(own, None, path, **wrong)
    before = path / "frames-1.i8"
    before.write_bytes(before.read_bytes()[:-1])
    with pytest.raises(UserError, match="frames-1.i8"):
        AudioIndex.open(path)


def test_a_rate_needs_frames(model, sounds, tmp_path):
    culprit = {"tap": "--frames none", "mean": "--frames-per-second"}[model.name]
    with pytest.raises(UserError, match=culprit):
        AudioIndex.build(sounds, model, tmp_path / "a", frames="none", frames_per_second=5)
    assert not (tmp_path / "a").exists()
