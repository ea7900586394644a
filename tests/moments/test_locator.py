"""Moments of recordings: streamed in pieces, against all excerpts encoded one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.transformer_pooling import TransformerPooling
from retrieval.moments.locator import SAME_CUT, Locator
from retrieval.moments.running import averaged, summed
from retrieval.moments.spans import LEAST_SHARE, MOST_MOMENTS, iou, maximum_sum
from tests.models.test_dual_encoder import CAPTIONS, DIM, RATE, clip, make_model, text_folder  # noqa: F401

HEAD = {"hidden": 8, "kernel": 3, "step_seconds": 0.12}


@pytest.fixture(scope="module")
def tap(text_folder):  # noqa: F811
    """Clips of 3 s of 3 windows; excerpts of 3 s, one every second."""
    return make_model(text_folder, moment_head=HEAD)


def pieces(samples: np.ndarray, *lengths: int):
    start = 0
    while start < len(samples):
        for length in lengths:
            yield samples[start : start + length]
            start += length


def reference(locator: Locator, model: DualEncoder, samples: np.ndarray) -> np.ndarray:
    """Curves (N, T): each excerpt encoded by itself, sums and counts in a loop."""
    texts = model.encode_text(CAPTIONS)
    length, hop = locator.excerpt_samples, locator.hop_samples
    starts = [0]
    while starts[-1] + length < len(samples):
        starts.append(starts[-1] + hop)
    sums: dict[int, list[np.ndarray]] = {}
    for start in starts:
        part = torch.from_numpy(samples[start : start + length])[None]
        frames, mask = model.frame_vectors(part, torch.tensor([part.shape[1]]))
        if locator.method == "head":
            curve = model.moment_logits(texts, frames, mask)
        else:
            curve = model.pooling.contributions(texts, frames, mask)[:, 0] * mask.sum()
        for place in range(int(mask.sum())):
            sums.setdefault(round(start / locator.samples_per_frame) + place, []).append(
                curve[:, place].numpy()
            )
    assert sorted(sums) == list(range(len(sums)))
    return np.stack([np.mean(sums[place], axis=0) for place in range(len(sums))], axis=1)


@torch.no_grad()
@pytest.mark.parametrize("method", ["head", "contribution"])
@pytest.mark.parametrize("seconds", [0.004, 0.9, 3.0, 3.5, 4.0, 7.33, 11.0])
def test_a_stream_gives_the_curves_of_its_excerpts(tap, method, seconds):
    samples = clip(seconds).numpy()
    locator, texts = Locator(tap, method), tap.encode_text(CAPTIONS)
    expected = reference(locator, tap, samples)
    if method == "head":
        expected = 1 / (1 + np.exp(-expected))
    for lengths in ([len(samples)], [777], [8_000], [5, 24_000, 13]):
        found = locator.locate(texts, locator.hear(pieces(samples, *lengths)))
        assert found.curves.shape == expected.shape
        assert np.allclose(found.curves, expected, atol=2e-5)
        assert found.seconds == len(samples) / RATE
        for moments in found.moments:
            assert 1 <= len(moments) <= MOST_MOMENTS
            assert [own.score for own in moments] == sorted(
                (own.score for own in moments), reverse=True
            )
            for own in moments:
                assert 0 <= own.start < own.end <= found.seconds


@torch.no_grad()
def test_windows_are_encoded_once(tap, monkeypatch):
    heard = []
    encode = tap.audio_encoder.forward
    monkeypatch.setattr(
        tap.audio_encoder, "forward", lambda x, *rest: heard.append(len(x)) or encode(x, *rest)
    )
    locator = Locator(tap, "head")
    excerpts = list(locator.hear([clip(20.5).numpy()]))
    assert sum(heard) == 21 and len(excerpts) == 19
    assert [own.start for own in excerpts] == [place * RATE for place in range(19)]
    assert excerpts[-1].stop == 20.5 * RATE


@torch.no_grad()
@pytest.mark.parametrize(
    "windows",
    [{"window_seconds": 3.0, "hop_seconds": 3.0}, {"window_seconds": 1.0, "hop_seconds": 0.5}],
)
def test_one_window_per_excerpt_and_windows_that_overlap(text_folder, windows):  # noqa: F811
    model = make_model(text_folder, moment_head=HEAD, **windows)
    locator, texts = Locator(model), model.encode_text(CAPTIONS)
    assert not locator.shares_windows
    assert locator.hop_samples == 37 * 320  # about half, whole frames
    samples = clip(8.2).numpy()
    found = locator.locate(texts, locator.hear([samples]))
    assert found.curves.shape == (len(CAPTIONS), int(np.ceil(8.2 * 25)))
    assert np.isfinite(found.curves).all()


@torch.no_grad()
def test_a_short_clip_s_first_moment_is_the_maximum_sum_of_its_contributions(tap):
    samples = clip(2.4).numpy()
    locator, texts = Locator(tap, "contribution"), tap.encode_text(CAPTIONS)
    found = locator.locate(texts, locator.hear([samples]))
    frames, mask = tap.encode_audio(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    contributions = tap.pooling.contributions(texts, frames, mask)[:, 0, mask[0]].numpy()
    scores = tap.score(texts, frames, mask)[:, 0]
    for curve, score, moments in zip(contributions, scores, found.moments, strict=True):
        first, stop, _ = maximum_sum(curve - curve.mean())
        assert moments[0].start == pytest.approx(first * 0.04)
        assert moments[0].end == pytest.approx(min(stop * 0.04, 2.4))
        assert moments[0].score == pytest.approx(float(score), abs=1e-5)
        least = score * LEAST_SHARE if score > 0 else score / LEAST_SHARE
        assert all(own.score >= float(least) - 1e-6 for own in moments)


@torch.no_grad()
def test_moments_of_two_excerpts_are_not_answered_twice(tap):
    locator, texts = Locator(tap, "contribution"), tap.encode_text(CAPTIONS)
    for moments in locator.locate(texts, locator.hear([clip(12.0).numpy()])).moments:
        for place, own in enumerate(moments):
            assert all(iou(own, other) < 0.5 for other in moments[:place])


def test_what_a_model_cannot_do(text_folder, tap):  # noqa: F811
    plain = make_model(text_folder)
    assert Locator(plain).method == "contribution" and Locator(tap).method == "head"
    for model, method, name in (
        (plain, "head", "moment head"),
        (plain, "runs", "runs"),
        (plain, "other", "other"),
    ):
        with pytest.raises(UserError, match=name):
            Locator(model, method)
    pooled = make_model(text_folder)
    pooled.pooling = TransformerPooling(DIM, 75, num_heads=4)
    with pytest.raises(UserError, match="TransformerPooling"):
        Locator(pooled)
    with pytest.raises(UserError, match="no samples"):
        list(Locator(tap).hear([np.zeros(0, np.float32)]))


def test_alternatives_are_other_cuts_after_the_answers(tap):
    times = np.arange(250) * 0.04
    curve = 0.9 * np.exp(-((times - 3) ** 2)) + 0.6 * np.exp(-((times - 8) ** 2 / 0.1))
    few = Locator(tap, "head").stretches(curve, 10 * RATE, 0.5)
    more = Locator(tap, "head", alternatives=True).stretches(curve, 10 * RATE, 0.5)
    # half of the highest value: exp(-x^2) reaches it at sqrt(ln 2)
    assert few[0].start == pytest.approx(3 - np.sqrt(np.log(2)), abs=0.05)
    assert few[0].end == pytest.approx(3 + np.sqrt(np.log(2)), abs=0.05)
    assert len(few) == 1 and few[0].score == pytest.approx(0.9, abs=1e-3)
    assert more[: len(few)] == few and len(few) < len(more) <= MOST_MOMENTS
    assert [own.score for own in more] == sorted((own.score for own in more), reverse=True)
    for place, own in enumerate(more):
        assert all(iou(own, other) < SAME_CUT for other in more[:place])
    assert more[1].start < 8 < more[1].end  # the second sound comes before other cuts


def test_places_are_averaged():
    places, values = np.array([4, 5, 5, 7, 5]), np.array([[1.0, 2, 4, 8, 0]], np.float32)
    first, sums, counts = summed(places, values)
    assert first == 4 and counts.tolist() == [1, 3, 0, 1]
    assert averaged(sums, counts).tolist() == [[1.0, 2.0, 2.0, 8.0]]


def test_a_head_survives_saving(tap, tmp_path: Path):
    tap.moment_head.threshold.fill_(0.31)
    tap.save_pretrained(tmp_path / "model")
    loaded = DualEncoder.from_pretrained(tmp_path / "model")
    assert loaded.moment_head.threshold.item() == pytest.approx(0.31)
    samples, texts = clip(4.2).numpy(), tap.encode_text(CAPTIONS).detach()
    both = [
        Locator(model).locate(texts, Locator(model).hear([samples])).curves
        for model in (tap, loaded)
    ]
    assert np.array_equal(*both)
