"""Frozen encoders and the frame cache: the same numbers, encoded once, whole or absent."""

import json
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from retrieval.base.errors import UserError
from retrieval.config import load_config, read_config
from retrieval.data import PairDataset, collate_pairs, open_cache
from retrieval.evaluation.score_matrix import similarity_matrix
from retrieval.models import frame_cache
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.text import TextEncoder
from retrieval.training import loop
from tests.conftest import PATIENCE, write_cache

SETTINGS = {"batch_size": 3, "num_workers": 0}
FROZEN = ["audio_encoder.frozen=true", "evaluation.num_pictures=0"]


@pytest.fixture
def model(tiny) -> DualEncoder:
    torch.manual_seed(0)
    return build_model(load_config(tiny / "tiny.yaml", FROZEN)).eval()


@pytest.fixture
def split(tiny):
    return open_cache(tiny / "cache").split("development")


def test_frames_are_those_of_the_encoder(model, split, tmp_path):
    frames = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    longest = 2 * 16_000
    for clip in range(len(split)):
        waveform = torch.from_numpy(split.read(clip)[:longest])[None]
        features, mask = model.audio_features(waveform, torch.tensor([waveform.shape[1]]))
        expected = features[mask].detach().numpy()
        found = frames.read(clip)
        assert (
            found.shape == expected.shape == (frames.num_samples[clip], 32)
            and found.dtype == np.float32
        )
        # half precision on disk
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.array_equal(frames.read(2, 1, 3), frames.read(2)[1:3])
    assert frames.captions == split.captions and frames.fingerprint() == split.fingerprint()


@pytest.mark.parametrize("pooling", ["tap", "mean"])
def test_scores_from_frames_are_those_from_sounds(tiny, split, tmp_path, pooling):
    model = build_model(
        load_config(tiny / "tiny.yaml", [*FROZEN, f"pooling.name={pooling}"])
    ).eval()
    frames = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    captions = [captions[0] for captions in split.captions]
    expected, found = (
        similarity_matrix(model, captions, source, audio_batch_size=4) for source in (split, frames)
    )
    assert (found - expected).abs().max() < 1e-3
    assert (found - expected.flip(1)).abs().max() > 1e-2  # negative control: other clips


def test_a_batch_of_frames_has_a_key_of_its_own(model, split, tmp_path):
    frames = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    of_sounds, of_frames = (
        collate_pairs([PairDataset(source, 32_000, seed=0)[0, index] for index in range(3)])
        for source in (split, frames)
    )
    assert of_sounds.keys() ^ of_frames.keys() == {"waveform", "frames"}
    assert of_frames["frames"].dim() == 3 and of_sounds["waveform"].dim() == 2
    with torch.no_grad():
        _, encoded, mask = model(of_frames)
    expected, expected_mask = model.encode_frames(of_frames["frames"], of_frames["lengths"])
    assert torch.equal(encoded, expected) and torch.equal(mask, expected_mask)


def test_a_finished_cache_is_read_and_not_made_again(model, split, tmp_path, monkeypatch):
    first = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    monkeypatch.setattr(DualEncoder, "audio_features", lambda *_: pytest.fail("encoded again"))
    again = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    assert again.path == first.path and np.array_equal(again.read(5), first.read(5))


@pytest.mark.parametrize(
    "change", ["weights", "settings", "windows", "precision", "split", "sounds", "captions"]
)
def test_what_the_frames_depend_on_is_another_cache(tiny, split, tmp_path, change):
    """And what they do not depend on is the same one: captions."""

    def build(*overrides: str) -> DualEncoder:
        torch.manual_seed(0)
        return build_model(load_config(tiny / "tiny.yaml", [*FROZEN, *overrides])).eval()

    def folder(model: DualEncoder, split, accelerator: Accelerator = None) -> str:
        return frame_cache.cached_frames(
            model, split, tmp_path, accelerator or Accelerator(), **SETTINGS
        ).path.parent.name

    first = folder(build(), split)
    if change == "weights":
        other = build()
        with torch.no_grad():
            other.audio_encoder.norm_frame.bias[0] += 1
        second = folder(other, split)
    elif change in ("settings", "windows"):  # both leave every weight as it is
        overrides = (
            ["audio_encoder.num_heads=4"]
            if change == "settings"
            else ["audio_encoder.hop_seconds=0.5"]
        )
        second = folder(build(*overrides), split)
    elif change == "precision":
        AcceleratorState._reset_state(reset_partial_state=True)
        second = folder(build(), split, Accelerator(mixed_precision="bf16"))
    elif change == "captions":
        split.captions[0] = ["Another caption."]
        second = folder(build(), split)
    else:
        name = "validation" if change == "split" else "development"
        cache = (
            tiny / "cache"
            if change == "split"
            else write_cache(tmp_path / "other", {"development": 12}, loudness=0.5)
        )
        second = folder(build(), open_cache(cache).split(name))
    assert (first == second) == (change == "captions")


def test_of_two_runs_at_once_one_encodes_and_the_other_waits(model, split, tmp_path, monkeypatch):
    original, calls = DualEncoder.audio_features, []

    def slow(self, waveform, lengths):
        calls.append(len(lengths))
        time.sleep(0.1)
        return original(self, waveform, lengths)

    monkeypatch.setattr(DualEncoder, "audio_features", slow)
    accelerator = Accelerator()
    with ThreadPoolExecutor() as pool:
        futures = [
            pool.submit(frame_cache.cached_frames, model, split, tmp_path, accelerator, **SETTINGS)
            for _ in range(2)
        ]
        first, second = (future.result(PATIENCE) for future in futures)
    assert calls == [3, 3, 3, 3] and np.array_equal(first.read(4), second.read(4))


@pytest.mark.parametrize("damage", ["cut", "other", "absent"])
def test_a_damaged_file_is_one_line(model, split, tmp_path, damage):
    path = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS).path
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "other":
        np.save(path, np.zeros((3, 32), np.float16))
    else:
        path.unlink()
    with pytest.raises(
        UserError,
        match=r"frames.npy is damaged \(.*\); delete .*, and its content is encoded again",
    ):
        frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)


@pytest.mark.parametrize("damage", ["empty note", "wrong note", "no array", "cut array"])
def test_a_damaged_interrupted_build_starts_anew(model, split, tmp_path, damage):
    whole = frame_cache.cached_frames(model, split, tmp_path / "whole", Accelerator(), **SETTINGS)
    partial = tmp_path / f"{whole.path.parent.name}.partial"
    partial.mkdir()
    (partial / "num_done").write_text({"empty note": "", "wrong note": "-3"}.get(damage, "6"))
    if damage != "no array":
        (partial / "frames.npy").write_bytes(
            whole.path.read_bytes()[: 500 if damage == "cut array" else None]
        )
    found = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    assert found.path.read_bytes() == whole.path.read_bytes() and not partial.exists()


def test_an_interrupted_build_goes_on(model, split, tmp_path, monkeypatch):
    whole = frame_cache.cached_frames(model, split, tmp_path / "whole", Accelerator(), **SETTINGS)
    original, calls = DualEncoder.audio_features, []

    def breaks_at_third_batch(self, waveform, lengths):
        calls.append(len(lengths))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, waveform, lengths)

    monkeypatch.setattr(DualEncoder, "audio_features", breaks_at_third_batch)
    with pytest.raises(KeyboardInterrupt):
        frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    assert [path.name for path in tmp_path.glob("development-*")] == [
        f"{whole.path.parent.name}.partial"
    ]
    found = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    assert calls == [3, 3, 3, 3, 3]  # twelve clips, of which the third batch was asked for twice
    assert found.path.read_bytes() == whole.path.read_bytes()


def test_a_full_disk_is_told_before_anything_is_written(model, split, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000)
    )
    with pytest.raises(
        UserError, match="takes 0.0 GiB, .* has 0.0 GiB left; set data.frame_cache to another disk"
    ):
        frame_cache.cached_frames(model, split, tmp_path / "frames", Accelerator(), **SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["posix_fallocate", "replace"])
def test_a_disk_that_gets_full_is_one_line_and_what_is_encoded_is_kept(
    model, split, tmp_path, monkeypatch, place
):
    calls = []

    def full(*_):
        calls.append(1)
        if len(calls) == (1 if place == "posix_fallocate" else 3):
            raise OSError(28, "No space left on device")
        return original(*_)

    original = getattr(os, place)
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="cannot be written .No space left on device.; make room"),
    ):
        patch.setattr(os, place, full)
        frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    (partial,) = tmp_path.glob("*.partial")
    assert place == "posix_fallocate" or (partial / "num_done").read_text() == "6"
    assert (
        frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS).read(11).any()
    )


def test_frames_travel_to_loader_processes_as_a_path(model, split, tmp_path):
    frames = frame_cache.cached_frames(model, split, tmp_path, Accelerator(), **SETTINGS)
    blob = pickle.dumps(frames)
    assert len(blob) < 20_000 and np.array_equal(pickle.loads(blob).read(3), frames.read(3))


def all_captions(split) -> list[str]:
    return [caption for captions in split.captions for caption in captions]


@pytest.mark.parametrize("batch_size", [3, 100])
def test_caption_features_are_those_of_the_text_encoder(model, split, tmp_path, batch_size):
    captions = all_captions(split)
    features = frame_cache.cached_captions(
        model, captions, tmp_path, Accelerator(), batch_size=batch_size
    )
    asked = [captions[place] for place in (7, 2, 7)]
    with torch.no_grad():
        expected = model.text_encoder(asked)
    assert (
        (features(asked) - expected).abs().max()
        < 1e-5
        < (features(asked[:1]) - expected[1:2]).abs().max()
    )
    assert captions[3] in features and "A new caption." not in features


def test_a_model_takes_captions_it_knows_from_disk_and_reads_the_others(
    model, split, tmp_path, monkeypatch
):
    captions = all_captions(split)
    expected = model.encode_text([*captions[:3], "low tone"]).detach()
    model.caption_features = frame_cache.cached_captions(
        model, captions, tmp_path, Accelerator(), batch_size=4
    )
    assert (model.encode_text([*captions[:3], "low tone"]) - expected).abs().max() < 1e-5
    monkeypatch.setattr(
        type(model.text_encoder), "forward", lambda *_: pytest.fail("the text encoder ran")
    )
    assert (model.encode_text(captions[:3]) - expected[:3]).abs().max() < 1e-5


def test_other_captions_or_another_text_encoder_are_another_cache(model, split, tmp_path):
    captions = all_captions(split)

    def folders() -> set[str]:
        frame_cache.cached_captions(model, captions, tmp_path, Accelerator(), batch_size=4)
        return {path.name for path in tmp_path.iterdir()}

    assert len(folders()) == len(folders()) == 1
    captions = captions[:-1]
    assert len(folders()) == 2
    model.text_encoder.max_tokens = 4
    assert len(folders()) == 3
    model.text_encoder.readout = "mean"
    assert len(folders()) == 4
    with torch.no_grad():
        next(model.text_encoder.parameters()).add_(1)
    assert len(folders()) == 5


# --- in training ---


def train(tiny: Path, output: Path, *overrides: str) -> dict[str, torch.Tensor]:
    loop.train(
        load_config(
            tiny / "tiny.yaml", [f"train.output={output}", "train.epochs=1", *FROZEN, *overrides]
        )
    )
    return load_file(output / "last" / "model.safetensors")


def test_training_on_frames_is_training_on_sounds(tiny, tmp_path, monkeypatch):
    """No dropout: the encoder's own random numbers would be others."""
    plain = ["text_encoder.dropout=0", "pooling.attention_dropout=0", "data.max_seconds=3"]
    from_sounds = train(tiny, tmp_path / "sounds", *plain)
    from_frames = train(tiny, tmp_path / "frames", *plain, f"data.frame_cache={tmp_path}/cache")
    assert {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()} == {
        "development",
        "validation",
        "evaluation",
    }
    for name, value in from_sounds.items():
        assert (from_frames[name] - value).abs().max() < 2e-3, name
    monkeypatch.setattr(DualEncoder, "audio_features", lambda *_: pytest.fail("the encoder ran"))
    train(tiny, tmp_path / "again", *plain, f"data.frame_cache={tmp_path}/cache")


def test_with_both_encoders_frozen_neither_runs_in_training(tiny, tmp_path, monkeypatch):
    frozen = ["text_encoder.frozen=true", "pooling.attention_dropout=0", "data.max_seconds=3"]
    from_sounds = train(tiny, tmp_path / "sounds", *frozen)
    from_disk = train(tiny, tmp_path / "disk", *frozen, f"data.frame_cache={tmp_path}/cache")
    assert {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()} == {
        "captions",
        "development",
        "validation",
        "evaluation",
    }
    for name, value in from_sounds.items():
        assert (from_disk[name] - value).abs().max() < 2e-3, name
    scores = [
        json.loads((tmp_path / name / "metrics.json").read_text())["last"]["text_to_audio"][
            "mAP@10"
        ]
        for name in ("sounds", "disk")
    ]
    assert abs(scores[0] - scores[1]) < 0.02
    monkeypatch.setattr(
        DualEncoder, "audio_features", lambda *_: pytest.fail("the audio encoder ran")
    )
    monkeypatch.setattr(TextEncoder, "forward", lambda *_: pytest.fail("the text encoder ran"))
    train(tiny, tmp_path / "again", *frozen, f"data.frame_cache={tmp_path}/cache")


def test_frozen_parts_keep_their_weights_and_have_no_optimizer_state(tiny, tmp_path):
    overrides = ["text_encoder.frozen=true", "train.save_every_steps=2", "train.max_steps=3"]
    config = load_config(tiny / "tiny.yaml", [f"train.output={tmp_path}/run", *FROZEN, *overrides])
    loop.train(config)
    torch.manual_seed(config.seed)
    start = build_model(config).state_dict()
    after = load_file(tmp_path / "run" / "last" / "model.safetensors")
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], start[name])}
    assert changed == {"audio_projection", "text_projection", "pooling"}


def test_frozen_parts_stay_in_eval_mode_in_training(model):
    model.train()
    modes = {name.split(".")[0]: module.training for name, module in model.named_modules() if name}
    assert not modes["audio_encoder"] and modes["text_encoder"] and modes["pooling"]
    assert not any(parameter.requires_grad for parameter in model.audio_encoder.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.frame_cache=x"], "set audio_encoder.frozen=true, or no frame_cache"),
        (
            ["data.frame_cache=x", "audio_encoder.frozen=true", "augmentation.gain_db=3"],
            "switch augmentation off, or set no frame_cache",
        ),
    ],
)
def test_frames_that_would_change_are_refused(tiny, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(tiny / "tiny.yaml", overrides)


# --- a start from another run ---


def test_a_run_starts_from_the_weights_of_another(tiny, tmp_path):
    first = train(tiny, tmp_path / "first")
    second = train(
        tiny,
        tmp_path / "second",
        f"train.init_from={tmp_path}/first/last",
        *[f"optimizer.lr.{part}=0" for part in LR],
    )
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert read_config(tmp_path / "second").train.init_from == f"{tmp_path}/first/last"


def test_a_start_of_another_architecture_is_refused(tiny, tmp_path):
    train(tiny, tmp_path / "first", "train.max_steps=1")
    with pytest.raises(
        UserError,
        match=(
            r"train.init_from=.*first/last is of another architecture than this configuration: \d+"
            r" weights do not fit"
        ),
    ):
        train(tiny, tmp_path / "second", f"train.init_from={tmp_path}/first/last", "dim=48")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("audio_encoder.num_heads=4", "its audio_encoder.num_heads is 2, not 4"),
        ("text_encoder.readout=mean", "its text_readout is first, not mean"),
    ],
)
def test_a_start_whose_weights_fit_and_mean_another_thing_is_refused(
    tiny, tmp_path, override, message
):
    build_model(load_config(tiny / "tiny.yaml")).save_pretrained(tmp_path / "first")
    with pytest.raises(UserError, match=message):
        build_model(
            load_config(tiny / "tiny.yaml", [f"train.init_from={tmp_path}/first", override])
        )


def test_a_learnt_temperature_is_started_from_and_a_set_one_is_not(tiny, tmp_path):
    first = build_model(load_config(tiny / "tiny.yaml", ["loss.learnable_temperature=true"]))
    first.temperature.data.fill_(0.123)
    first.save_pretrained(tmp_path / "first")
    start = f"train.init_from={tmp_path}/first"
    for learnable, expected in (("true", 0.123), ("false", 0.05)):
        model = build_model(
            load_config(tiny / "tiny.yaml", [start, f"loss.learnable_temperature={learnable}"])
        )
        assert model.temperature.item() == pytest.approx(expected)


def test_a_damaged_file_to_start_from_is_refused(tiny, tmp_path):
    (tmp_path / "salsa.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match="salsa.ckpt is truncated or no file of torch.save"):
        build_model(load_config(tiny / "tiny.yaml", [f"train.init_from={tmp_path}/salsa.ckpt"]))


LR = ("audio_encoder", "text_encoder", "audio_projection", "text_projection", "pooling")
