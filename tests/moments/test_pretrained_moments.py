"""Moments by pretrained models: PE-A-Frame as the original finds them, and CLAP in windows.

Letters: N captions, S samples, T frames.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import load_pretrained
from retrieval.moments.locator import Locator
from tests.models.pretrained.test_pretrained_models import sound
from tests.models.test_dual_encoder import make_model, text_folder  # noqa: F401
from tests.pretrained_models import RATE, make

CAPTIONS = ["A dog barks loudly, and then Rain falls.", "rain", "the wind blows and a cat"]
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "finetune_pe_frame_tap.yaml"
FRAME = 640  # samples, 40 ms


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, tuple]:
    made = {}
    for family in ("pe_a_frame", "pe_audio", "clap"):
        folder = tmp_path_factory.mktemp(family)
        model, processor = make(family, folder)
        if family == "pe_a_frame":  # probabilities on both sides of 0.3
            logits = original_logits(model, processor, sound(3 * RATE))
            scale = 2.0 / logits.std().item()
            model.text_audio_logit_scale.data *= scale
            model.text_audio_logit_bias.data.fill_(-1.0 - scale * logits.mean().item())
            model.save_pretrained(folder)
        made[family] = folder, model, processor
    return made


@pytest.fixture(scope="module")
def pe_frame(folders) -> DualEncoder:
    return load_pretrained(folders["pe_a_frame"][0])


@torch.no_grad()
def original_logits(model, processor, clip: torch.Tensor) -> torch.Tensor:
    """logits_audio_text (N, T) of one clip (S,), by transformers' PeAudioFrameLevelModel."""
    inputs = processor.feature_extractor([clip.numpy()], sampling_rate=RATE, return_tensors="pt")
    tokens = processor.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    return model(**tokens, **inputs).logits_audio_text[0]


def original_spans(logits: torch.Tensor) -> list[tuple[float, float]]:
    """Maximal runs of sigmoid > 0.3 of one caption (T,); frame t is [t, t + 1] * 0.04 s."""
    spans, begin = [], None
    for frame, logit in enumerate([*logits.tolist(), -100.0]):
        is_above = 1 / (1 + np.exp(-logit)) > 0.3
        if is_above and begin is None:
            begin = frame
        elif not is_above and begin is not None:
            spans.append((begin * 0.04, frame * 0.04))
            begin = None
    return spans


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [1, 640, 9_001, 7 * RATE, 30 * RATE - 17])
def test_pe_a_frame_finds_the_spans_of_the_original(folders, pe_frame, num_samples):
    _, original, processor = folders["pe_a_frame"]
    clip = sound(num_samples)
    logits = original_logits(original, processor, clip)
    locator = Locator(pe_frame, most=10**6)
    assert locator.method == "runs"  # without being asked
    found = locator.locate(pe_frame.encode_text(CAPTIONS), locator.hear([clip.numpy()]))
    assert found.frame_seconds == 0.04 and found.curves.shape == logits.shape
    np.testing.assert_allclose(found.curves, logits.sigmoid().numpy(), atol=1e-5)
    num_spans = 0
    for curve, own, moments in zip(found.curves, logits, found.moments, strict=True):
        spans = original_spans(own)
        if not spans:
            assert len(moments) == 1 and moments[0].score <= 0.3
            continue
        num_spans += len(spans)
        expected = [(start, min(end, num_samples / RATE)) for start, end in spans]
        assert np.allclose(sorted(moment[:2] for moment in moments), expected)
        for start, end, score in moments:
            mean = curve[round(start / 0.04) : int(np.ceil(end / 0.04 - 1e-6))].mean()
            assert score == pytest.approx(mean, abs=1e-6)
        assert [own.score for own in moments] == sorted((m.score for m in moments), reverse=True)
    if num_samples > RATE:
        assert num_spans > 10
        # negative control: without scale or bias there are other runs
        assert (
            np.abs(
                found.curves - (logits - pe_frame.loss_parameters["bias"]).sigmoid().numpy()
            ).max()
            > 0.1
        )
        assert original_spans(logits[0]) != original_spans(logits[0].flip(0))


@torch.no_grad()
def test_a_long_file_is_excerpts_whose_logits_are_averaged(folders, tmp_path):
    """Excerpts of 12 s (the published models: 60 s) that overlap by 5 s, each by the original."""
    folder, original, processor = folders["pe_a_frame"]
    shutil.copytree(folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["max_position_embeddings"] = 300
    (tmp_path / "short/config.json").write_text(json.dumps(config))
    model, clip = load_pretrained(tmp_path / "short"), sound(round(29.5 * RATE))
    assert model.clip_seconds == 12
    locator = Locator(model)
    found = locator.locate(model.encode_text(CAPTIONS), locator.hear(clip.split(RATE)))
    sums, counts = np.zeros((len(CAPTIONS), 738)), np.zeros(738)
    for start in (0, 7, 14, 21):
        part = clip[start * RATE : (start + 12) * RATE]
        logits = original_logits(original, processor, part).numpy()
        sums[:, 25 * start : 25 * start + logits.shape[1]] += logits
        counts[25 * start : 25 * start + logits.shape[1]] += 1
    assert counts.min() == 1 and counts.max() == 2
    np.testing.assert_allclose(found.curves, 1 / (1 + np.exp(-sums / counts)), atol=1e-5)


@torch.no_grad()
def test_without_a_run_the_best_frame_s_surroundings_are_answered(folders, pe_frame, monkeypatch):
    monkeypatch.setitem(
        pe_frame.loss_parameters, "bias", torch.nn.Parameter(pe_frame.loss_parameters["bias"] - 12)
    )
    locator, clip = Locator(pe_frame), sound(4 * RATE)
    found = locator.locate(pe_frame.encode_text(CAPTIONS), locator.hear([clip.numpy()]))
    assert found.curves.max() < 0.3
    for curve, (moment,) in zip(found.curves, found.moments, strict=True):
        first, stop = round(moment.start * 25), round(moment.end * 25)
        best = curve.argmax()
        assert first <= best < stop and (curve[first:stop] > curve[best] / 2).all()
        assert first == 0 or curve[first - 1] <= curve[best] / 2
        assert stop == len(curve) or curve[stop] <= curve[best] / 2
        assert moment.score == pytest.approx(curve[first:stop].mean())


def test_only_frames_with_probabilities_have_runs(folders, text_folder):  # noqa: F811
    sigmoid = make_model(text_folder, loss_parameters={"bias": -10.0})
    models = [load_pretrained(folders[family][0]) for family in ("clap", "pe_audio")]
    for model in (sigmoid, *models):
        assert Locator(model).method == "contribution"
        with pytest.raises(UserError, match="runs"):
            Locator(model, "runs")


@torch.no_grad()
def test_contributions_of_pe_a_frame_are_stretches_scored_by_their_mean(pe_frame):
    locator, clip = Locator(pe_frame, "contribution"), sound(20 * RATE)
    found = locator.locate(text := pe_frame.encode_text(CAPTIONS), locator.hear([clip.numpy()]))
    frames, _ = pe_frame.frame_vectors(clip[None], torch.tensor([len(clip)]))
    np.testing.assert_allclose(found.curves, (text @ frames[0].T).numpy(), atol=1e-4)
    for curve, moments in zip(found.curves, found.moments, strict=True):
        for start, end, score in moments:
            assert score == pytest.approx(
                curve[round(25 * start) : round(25 * end)].mean(), abs=1e-4
            )
            assert score > curve.mean()


@torch.no_grad()
@pytest.mark.parametrize(
    "family, window, seconds",
    [("clap", 1.0, seconds) for seconds in (0.3, 1.0, 5.8)]
    + [("pe_audio", 10.0, seconds) for seconds in (0.3, 10.0, 27.3)],
)
def test_one_vector_a_window_is_heard_every_half_window(folders, family, window, seconds):
    model, clip = load_pretrained(folders[family][0]), sound(round(seconds * RATE))
    locator, text = Locator(model), model.encode_text(CAPTIONS)
    assert locator.method == "contribution" and locator.frame_seconds == window / 2
    found = locator.locate(text, locator.hear(clip.split(5_000)))
    size, half = round(window * RATE), round(window * RATE / 2)
    heard: dict[int, list[np.ndarray]] = {}
    for start in range(0, max(1, len(clip) - half), half):
        part = clip[start : start + size]
        vector = model.encode_audio(part[None], torch.tensor([len(part)]))[0][0, 0]
        scores = (model.pooling.directions(text) @ model.pooling.directions(vector)).numpy()
        for place in range(start // half, (start + len(part) - 1) // half + 1):
            heard.setdefault(place, []).append(scores)
    expected = np.stack([np.mean(heard[place], axis=0) for place in range(len(heard))], axis=1)
    np.testing.assert_allclose(found.curves, expected, atol=2e-5)
    for curve, moments in zip(found.curves, found.moments, strict=True):
        assert moments
        for start, end, score in moments:
            first, stop = round(start / window * 2), int(np.ceil(end / window * 2 - 1e-6))
            assert score == pytest.approx(curve[first:stop].mean(), abs=1e-5)
            assert start % (window / 2) == 0 and end <= seconds
    if seconds <= window:  # the model's own score of the clip, and the whole of it
        frames, mask = model.encode_audio(clip[None], torch.tensor([len(clip)]))
        scores = model.score(text, frames, mask)[:, 0]
        for score, moments in zip(scores, found.moments, strict=True):
            assert moments == [(0.0, seconds, pytest.approx(score.item(), abs=2e-5))]


@torch.no_grad()
def test_mean_pooling_s_curve_is_the_cosine_of_each_frame(text_folder):  # noqa: F811
    model = make_model(text_folder, "mean")
    locator, text = Locator(model), model.encode_text(CAPTIONS)
    clip = sound(round(2.6 * model.sample_rate))  # shorter and longer excerpts on one scale
    found = locator.locate(text, locator.hear([clip.numpy()]))
    frames, mask = model.frame_vectors(clip[None], torch.tensor([len(clip)]))
    cosines = torch.nn.functional.cosine_similarity(text[:, None], frames[0, mask[0]][None], dim=2)
    np.testing.assert_allclose(found.curves, cosines.numpy(), atol=1e-5)
    long = locator.locate(text, locator.hear([np.tile(clip.numpy(), 4)]))
    assert np.abs(long.curves).max() <= 1 + 1e-5


@pytest.mark.parametrize("pooling", ["tap", "average"])
@pytest.mark.parametrize("has_head", [True, False])
def test_pe_a_frame_below_tap_and_the_moment_head(folders, pooling, has_head):
    folder = folders["pe_a_frame"][0]
    names = ("audio_encoder.checkpoint", "text_encoder.name", "train.init_from")
    settings = [*(f"{name}={folder}" for name in names), "dim=16", "pooling.attention_dim=16"]
    settings += ["data.max_seconds=2", "audio_encoder.window_seconds=2"]
    settings += ["audio_encoder.hop_seconds=2", f"data.sample_rate={RATE}"]
    built = build_model(load_config(CONFIG, settings))
    changes = {"moment_head": {"hidden": 8, "kernel": 3}} if has_head else {}
    if pooling == "average":
        changes["pooling"] = {"name": "average", "similarity": "dot"}
    model = DualEncoder(**built.architecture | changes)
    missing = model.load_state_dict(
        {k: v for k, v in built.state_dict().items() if pooling == "tap" or "pooling" not in k},
        strict=False,
    )
    assert {key.partition(".")[0] for key in missing.missing_keys} <= {"moment_head", "pooling"}
    model.text_encoder.tokenizer = built.text_encoder.tokenizer
    model.freeze("audio_encoder")
    model.freeze("text_encoder")
    waveform, lengths = torch.stack([sound(2 * RATE)] * 2), torch.tensor([2 * RATE, RATE])
    text = model.encode_text(CAPTIONS[:2])
    if has_head:
        frames, mask = model.frame_vectors(waveform, lengths)
        model.moment_logits(text, frames, mask)[mask].sum().backward()
        learns = ("moment_head", "audio_projection", "text_projection")
    else:
        frames, mask = model.encode_audio(waveform, lengths)
        model.score(text, frames, mask).square().sum().backward()
        learns = ("audio_projection", "text_projection") + (pooling == "tap") * ("pooling",)
    moved = {
        n.partition(".")[0]
        for n, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert moved >= set(learns)
    assert not moved & {"audio_encoder", "text_encoder"}
    locator, clip = Locator(model), sound(round(5.1 * RATE))
    # contrastive training leaves no bias, and so no probabilities
    assert locator.method == ("head" if has_head else "contribution")
    found = locator.locate(text.detach(), locator.hear([clip.numpy()]))
    assert found.curves.shape == (2, 128) and np.isfinite(found.curves).all()
    assert all(moments for moments in found.moments)
