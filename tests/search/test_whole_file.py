"""The curve of a sentence over a whole file of an index, against a Locator that hears the file."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.moments.locator import Locator
from retrieval.search import AudioIndex
from tests.models.test_dual_encoder import RATE, clip, make_model, text_folder  # noqa: F401
from tests.pretrained_models import RATE as CLAP_RATE
from tests.pretrained_models import make

QUERY = "someone plays a rising note"
HEAD = {"hidden": 8, "kernel": 3, "step_seconds": 0.12}


def indexed(model: DualEncoder, folder: Path, seconds: float, **settings) -> tuple:
    """An index of one file, with excerpts every second as a Locator has, and the file's samples."""
    model.save_pretrained(folder / "model")
    samples = clip(seconds).numpy()
    (folder / "sounds").mkdir()
    soundfile.write(folder / "sounds/long.wav", samples, RATE, subtype="FLOAT")
    soundfile.write(folder / "sounds/other.wav", clip(2.0, "other"), RATE, subtype="FLOAT")
    index = AudioIndex.build(
        folder / "sounds", folder / "model", folder / "index", hop_seconds=1.0, **settings
    )
    return index, samples


@torch.no_grad()
@pytest.mark.parametrize(
    "pooling, head, method", [("tap", HEAD, "head"), ("tap", None, None), ("mean", None, None)]
)
@pytest.mark.parametrize("seconds", [2.3, 9.0])
def test_the_curve_is_that_of_hearing_the_file(
    text_folder,  # noqa: F811
    tmp_path,
    pooling,
    head,
    method,
    seconds,
):
    model = make_model(text_folder, pooling, moment_head=head)
    index, samples = indexed(model, tmp_path, seconds)
    found = index.locate(QUERY, "long.wav")
    locator = Locator(model, method)
    expected = locator.locate(model.encode_text([QUERY]), locator.hear([samples]))
    assert found.seconds == expected.seconds and found.frame_seconds == pytest.approx(0.04)
    assert found.curves.shape == expected.curves.shape == (1, round(seconds * 25 + 0.49))
    spread = np.ptp(expected.curves)
    np.testing.assert_allclose(found.curves, expected.curves, atol=0.02 * spread)  # half precision
    other = index.locate("tone", "long.wav")
    assert np.abs(other.curves - expected.curves).max() > 0.02 * spread  # negative control
    np.testing.assert_allclose(found.moments[0][0], expected.moments[0][0], atol=0.05)
    for start, end, score in found.moments[0]:
        assert 0 <= start < end <= seconds and np.isfinite(score)
    # the answer's own stretches lie in the whole file too
    hit = next(hit for hit in index.search(QUERY) if hit.file == "long.wav")
    if seconds < 3 or head is None:
        best = max(found.moments[0], key=lambda own: own.score)
        np.testing.assert_allclose(hit.moments[0], best, atol=0.02)


def test_without_frames_it_is_the_score_of_excerpts(text_folder, tmp_path):  # noqa: F811
    index, _ = indexed(make_model(text_folder, "mean"), tmp_path, 6.0, frames="none")
    found = index.locate(QUERY, "long.wav")
    assert found.frame_seconds == 1.0 and found.curves.shape == (1, 6)
    hits = [hit for hit in index.search(QUERY, 20) if hit.file == "long.wav"]
    assert found.moments[0][0] == pytest.approx((hits[0].start, hits[0].end, hits[0].score))
    for number, own in enumerate(found.moments[0]):
        assert all(own.end <= a.start or a.end <= own.start for a in found.moments[0][:number])


def test_clap_has_the_mean_score_of_the_excerpts_at_each_place(tmp_path):
    make("clap", tmp_path / "clap")
    (tmp_path / "sounds").mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(33 * CLAP_RATE)
    noise *= 1 + (np.arange(len(noise)) > 15 * CLAP_RATE)
    soundfile.write(tmp_path / "sounds/noise.wav", noise, CLAP_RATE)
    index = AudioIndex.build(tmp_path / "sounds", tmp_path / "clap", tmp_path / "index")
    found = index.locate("A dog barks", "noise.wav")
    assert found.frame_seconds == 5.0 and found.curves.shape == (1, 7)
    assert np.isfinite(found.curves).all() and np.ptp(found.curves) > 0


def test_files_and_queries_that_are_none(text_folder, tmp_path):  # noqa: F811
    index, _ = indexed(make_model(text_folder), tmp_path, 2.0)
    with pytest.raises(UserError, match="gone.wav"):
        index.locate(QUERY, "gone.wav")
    with pytest.raises(UserError, match="no words"):
        index.locate("?", "long.wav")
