"""The model as training, evaluation and search see it: windows, masks, scores, saving and loading.

Letters: B clips, S samples, W windows, T frames, N captions, D = dim.
"""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models import hub
from retrieval.models.audio import AtstFrame
from retrieval.models.build import build_model, build_model_without_weights
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.record import ScoreRecord, TrainingRecord
from retrieval.models.text import load_tokenizer, text_architecture
from tests.conftest import write_text_encoder
from tests.golden import formulas

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CAPTIONS = ["a steady low tone", "someone plays a rising note", "tone", "a pulsing high note"]
DIM = 48
RATE = 8_000  # Hz of the waveforms; half of ATST's, so that each window is resampled
CASES = {"S": {"scale": 0.02}, "Q": {"scale": 0.15, "ln_scale": 0.1}}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> str:
    return str(write_text_encoder(tmp_path_factory.mktemp("text_encoder")))


def make_model(
    text_folder: str, pooling: str = "tap", std: float = 0.15, **changes: Any
) -> DualEncoder:
    """Clips of up to 3 s, windows of 1 s: 25 frames each. In eval mode, random weights."""
    torch.manual_seed(0)
    arguments = {
        "audio_encoder": {"name": "atst_frame", "embed_dim": DIM, "depth": 2, "num_heads": 4},
        "text_encoder": text_architecture(text_folder, 0.1),
        "pooling": {
            "name": pooling,
            "attention_dim": 64,
            "attention_dropout": 0.1,
            "output_dropout": 0.0,
            "init": "default",
        },
        "dim": DIM,
        "sample_rate": RATE,
        "clip_seconds": 3.0,
        "window_seconds": 1.0,
        "hop_seconds": 1.0,
        "max_tokens": 32,
        "temperature": 0.05,
    }
    model = DualEncoder(**arguments | changes).eval()
    model.text_encoder.tokenizer = load_tokenizer(text_folder)
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh transformer hardly hears what it is given
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    return model


@pytest.fixture(scope="module")
def tap(text_folder: str) -> DualEncoder:
    return make_model(text_folder)


@pytest.fixture(scope="module")
def mean(text_folder: str) -> DualEncoder:
    return make_model(text_folder, "mean")


def clip(seconds: float, name: str = "clip") -> torch.Tensor:
    return torch.from_numpy(
        formulas.waveform(RATE, seconds, f0=200 + 50 * len(name), f1=3_000, name=name)
    )  # (S,)


def batch(*clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S) zero-padded, (B,)"""
    return torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True), torch.tensor(
        [len(waveform) for waveform in clips]
    )


def pairs(*clips: torch.Tensor, captions: list[str] | None = None) -> dict:
    """A batch as of collate_pairs."""
    waveform, lengths = batch(*clips)
    return {"waveform": waveform, "lengths": lengths, "captions": captions or CAPTIONS}


CLIPS = [clip(3.0, "a"), clip(0.9, "bb"), clip(1.0, "ccc"), clip(1.04, "dddd"), clip(0.01, "eeeee")]
NUM_VALID = [75, 23, 25, 26, 1]  # ceil(seconds / 3 * 75)


def error_of(function, *arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


# --- audio: golden numbers ---


def golden_model(text_folder: str, case: str) -> DualEncoder:
    """The reference's small encoder, with a projection that changes nothing."""
    model = make_model(
        text_folder, sample_rate=32_000, clip_seconds=10.0, window_seconds=10.0, hop_seconds=10.0
    )
    shapes = json.loads((GOLDEN / "atst_base_state_dict.json").read_text())["small_test_config"][
        "state_dict"
    ]
    weights = formulas.params(shapes, case, is_norm=lambda key: "norm" in key, **CASES[case])
    model.audio_encoder.load_state_dict(
        {key: torch.from_numpy(value) for key, value in weights.items()}
    )
    torch.nn.init.eye_(model.audio_projection.weight)
    torch.nn.init.zeros_(model.audio_projection.bias)
    return model


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_frames_of_a_32_khz_clip_equal_the_reference(text_folder: str, case: str):
    waveform = torch.from_numpy(formulas.waveform(32_000))[None]
    frames, mask = golden_model(text_folder, case).encode_audio(waveform, torch.tensor([320_000]))
    assert frames.shape == (1, 250, DIM) and mask.all()
    golden = np.load(GOLDEN / "atst_frame.npz")
    assert np.abs(frames[:, ::5].numpy() - golden[f"{case}_wrapper_out"][0]).max() < 1e-5
    other = "Q" if case == "S" else "S"
    # negative control
    assert np.abs(frames[:, ::5].numpy() - golden[f"{other}_wrapper_out"][0]).max() > 1e-2


@torch.no_grad()
def test_the_encoder_gets_the_reference_s_16_khz_samples(text_folder: str):
    model, seen = golden_model(text_folder, "S"), []
    model.audio_encoder.forward = lambda windows, augment: (
        seen.append(windows) or torch.zeros(len(windows), 250, DIM)
    )
    model.encode_audio(torch.from_numpy(formulas.waveform(32_000))[None], torch.tensor([320_000]))
    golden, found = np.load(GOLDEN / "resample.npz"), seen[0].numpy()
    assert found.shape == tuple(golden["out_shape"])
    assert np.abs(found[0, :2000] - golden["out_head"]).max() < 1e-6
    assert np.abs(found[0, ::50] - golden["out_every50"]).max() < 1e-6
    assert np.abs(found[0, -200:] - golden["out_tail"]).max() < 1e-6


@torch.no_grad()
def test_mask_of_the_published_size(text_folder: str, monkeypatch):
    monkeypatch.setattr("torchaudio.functional.resample", lambda windows, *_rates: windows)
    golden = np.load(GOLDEN / "window.npz")
    fits = golden["mask750.samples"] <= 960_000
    lengths, valid = (
        torch.from_numpy(golden["mask750.samples"][fits]),
        torch.from_numpy(golden["mask750.valid"][fits]),
    )
    model = make_model(
        text_folder, sample_rate=32_000, clip_seconds=30.0, window_seconds=10.0, hop_seconds=10.0
    )
    model.audio_encoder.forward = lambda windows, augment: torch.ones(len(windows), 250, DIM)
    _, mask = model.encode_audio(torch.zeros(len(lengths), 960_000), lengths)
    assert mask.shape == (len(lengths), 750) and mask.dtype == torch.bool
    assert torch.equal(mask.sum(dim=1), valid)
    assert torch.equal(mask, torch.arange(750) < valid[:, None])  # the first ones


# --- audio: windows without a valid frame, batches ---


def encode_every_window(model: DualEncoder, waveform: torch.Tensor) -> torch.Tensor:
    """Slow reference: each window of one full-length clip (S,) by itself, to (T, D) unprojected."""
    padded = torch.zeros(3 * RATE)
    padded[: len(waveform)] = waveform
    encoded = []
    for first in range(0, len(padded), RATE):
        window = padded[first : first + RATE][None]
        encoded.append(
            model.audio_encoder(
                torchaudio.functional.resample(window, RATE, AtstFrame.sample_rate)
            )[0]
        )
    return torch.cat(encoded)  # (T, feature_dim)


@torch.no_grad()
def test_windows_without_a_valid_frame_are_not_encoded_and_change_nothing(tap: DualEncoder):
    num_encoded = []
    with tap.audio_encoder.register_forward_pre_hook(
        lambda _module, inputs: num_encoded.append(len(inputs[0]))
    ):
        frames, mask = tap.encode_audio(*batch(*CLIPS))
    assert num_encoded == [3 + 1 + 1 + 2 + 1]
    slow = torch.stack(
        [tap.audio_projection(encode_every_window(tap, waveform)) for waveform in CLIPS]
    )  # (B, T, D)
    slow_mask = torch.arange(75) < torch.tensor(NUM_VALID)[:, None]
    assert torch.equal(mask, slow_mask)
    assert (frames - slow)[mask].abs().max() < 1e-4
    # negative control: what was skipped is not what would have been there
    assert (frames - slow)[~mask].abs().max() > 1e-2
    text = tap.encode_text(CAPTIONS)
    assert (tap.score(text, frames, mask) - tap.score(text, slow, slow_mask)).abs().max() < 1e-5


@torch.no_grad()
def test_pcm_is_heard_as_the_floats_it_stands_for(tap: DualEncoder):
    waveform, lengths = batch(*CLIPS)
    pcm = (waveform * 32768).round().clamp(-32768, 32767).to(torch.int16)
    frames, mask = tap.encode_audio(pcm, lengths)
    assert torch.equal(frames, tap.encode_audio(pcm.float() / 32768, lengths)[0]) and torch.equal(
        mask, tap.encode_audio(waveform, lengths)[1]
    )


@pytest.mark.parametrize("pooling", ["tap", "mean"])
@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(pooling: str, request):
    model = request.getfixturevalue(pooling)
    text = model.encode_text(CAPTIONS)
    together, mask = model.encode_audio(*batch(*CLIPS))
    scores = model.score(text, together, mask)
    for index, waveform in enumerate(CLIPS):
        alone, own_mask = model.encode_audio(*batch(waveform))
        num_valid = int(own_mask.sum())
        assert int(mask[index].sum()) == num_valid
        assert (together[index, :num_valid] - alone[0, :num_valid]).abs().max() < 1e-4
        assert (scores[:, index] - model.score(text, alone, own_mask)[:, 0]).abs().max() < 1e-5


@torch.no_grad()
def test_samples_after_the_clip_s_end_are_not_looked_at_by_other_windows(tap: DualEncoder):
    """More padding in a batch, because of a longer neighbour, is the same as less."""
    waveform, lengths = batch(CLIPS[2])
    longer = torch.nn.functional.pad(waveform, (0, RATE))
    frames, mask = tap.encode_audio(waveform, lengths)
    again, same_mask = tap.encode_audio(longer, lengths)
    assert torch.equal(frames, again) and torch.equal(mask, same_mask)


@torch.no_grad()
def test_mean_pooling_averages_the_valid_frames_and_then_projects(mean: DualEncoder):
    found, mask = mean.encode_audio(*batch(*CLIPS))
    assert found.shape == (5, 1, DIM) and mask.shape == (5, 1) and mask.all()
    for index, (waveform, num_valid) in enumerate(zip(CLIPS, NUM_VALID, strict=True)):
        features = encode_every_window(mean, waveform)
        slow = mean.audio_projection(sum(features[:num_valid]) / num_valid)
        assert (found[index, 0] - slow).abs().max() < 1e-4
        if num_valid < 75:
            assert (
                found[index, 0] - mean.audio_projection(features.mean(dim=0))
            ).abs().max() > 1e-3  # negative control


@torch.no_grad()
def test_overlapping_windows(text_folder: str):
    model = make_model(text_folder, hop_seconds=0.5)
    frames, mask = model.encode_audio(*batch(CLIPS[0], CLIPS[3]))
    assert model.windows.num_windows == 5 and frames.shape == (2, 125, DIM)
    assert mask.sum(dim=1).tolist() == [125, 44]  # ceil(1.04 / 3 * 125)


@pytest.mark.parametrize("lengths", [[0, 100], [100, 3 * RATE + 1], [-1, 5]])
def test_empty_and_too_long_clips_are_refused(tap: DualEncoder, lengths: list[int]):
    with pytest.raises(
        ValueError, match=rf"lengths must be 1 to {3 * RATE} samples \(3.0 s\), found"
    ):
        tap.encode_audio(torch.zeros(2, 3 * RATE + 1), torch.tensor(lengths))


# --- scores ---


@pytest.mark.parametrize("pooling", ["tap", "mean"])
@torch.no_grad()
def test_rows_are_texts_and_columns_are_audios(pooling: str, request):
    model = request.getfixturevalue(pooling)
    text, frames, mask = model(pairs(*CLIPS[:3]))
    assert text.shape == (4, DIM)
    scores = model.score(text, frames, mask)
    assert scores.shape == (4, 3) and scores.dtype == torch.float32
    assert scores.abs().max() <= 1 + 1e-6 and scores.std() > 1e-3
    for row, caption in enumerate(CAPTIONS):
        for column, waveform in enumerate(CLIPS[:3]):
            one = model.score(model.encode_text([caption]), *model.encode_audio(*batch(waveform)))
            assert (scores[row, column] - one.item()).abs() < 1e-5


@torch.no_grad()
def test_attention_is_given_by_tap_alone(tap: DualEncoder, mean: DualEncoder):
    text, frames, mask = tap(pairs(*CLIPS))
    weights = tap.attention(text, frames, mask)
    assert weights.shape == (4, 5, 75)
    assert (weights.sum(dim=2) - 1).abs().max() < 1e-5 and not weights.transpose(0, 1)[
        ~mask.unsqueeze(1).expand(-1, 4, -1)
    ].any()
    assert mean.attention(*mean(pairs(*CLIPS))[:1], frames, mask) is None


@pytest.mark.parametrize("pooling", ["tap", "mean"])
@torch.no_grad()
def test_bfloat16_autocast_stays_close(pooling: str, request):
    model = request.getfixturevalue(pooling)
    text, frames, mask = model(pairs(*CLIPS))
    exact = model.score(text, frames, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text_16, frames_16, _ = model(pairs(*CLIPS))
        scores = model.score(text_16, frames_16, mask)
    assert text_16.dtype == frames_16.dtype == torch.bfloat16 and scores.dtype == torch.float32
    assert 1e-4 < (frames_16 - frames)[mask].norm() / frames[mask].norm() < 0.02
    assert 1e-5 < (scores - exact).abs().max() < 0.01


@torch.no_grad()
def test_resampling_is_float32_under_autocast(tap: DualEncoder):
    """In bfloat16 the quiet bins of the log-mel would be noise: 15 % of the frames' norm."""
    seen = []
    with tap.audio_encoder.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    ):
        tap.encode_audio(*batch(*CLIPS))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tap.encode_audio(*batch(*CLIPS))
    assert seen[1].dtype == torch.float32 and torch.equal(*seen)


def test_every_trainable_parameter_gets_a_gradient(text_folder: str):
    """DistributedDataParallel would wait for one that does not."""
    model = make_model(text_folder, learnable_temperature=True).train()
    text, frames, mask = model(pairs(*CLIPS[:2], captions=CAPTIONS[:2]))
    (model.score(text, frames, mask) / model.temperature).square().sum().backward()
    assert [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ] == []


@pytest.mark.parametrize("learnable", [True, False])
def test_temperature(text_folder: str, learnable: bool):
    temperature = make_model(
        text_folder, temperature=0.07, learnable_temperature=learnable
    ).temperature
    assert temperature.item() == pytest.approx(0.07) and temperature.requires_grad is learnable


# --- saving and loading ---


@pytest.mark.parametrize("pooling", ["tap", "mean"])
@torch.no_grad()
def test_a_saved_model_comes_back_bit_for_bit(text_folder: str, tmp_path: Path, pooling: str):
    model = make_model(text_folder, pooling, temperature=0.0625, learnable_temperature=True)
    model.save_pretrained(tmp_path / "best")
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer",
    ]
    loaded = DualEncoder.from_pretrained(tmp_path / "best")
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert list(before) == list(after) and all(
        torch.equal(before[key], after[key]) for key in before
    )
    assert loaded.temperature.item() == 0.0625 and loaded.temperature.requires_grad
    assert loaded.text_encoder.tokenizer.get_vocab() == model.text_encoder.tokenizer.get_vocab()
    assert (loaded.sample_rate, loaded.clip_seconds, loaded.windows) == (
        model.sample_rate,
        model.clip_seconds,
        model.windows,
    )
    found, expected = loaded(pairs(*CLIPS)), model(pairs(*CLIPS))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(loaded.score(*found), model.score(*expected))


def test_a_loaded_model_can_be_saved_again(text_folder: str, tmp_path: Path):
    make_model(text_folder).save_pretrained(tmp_path / "first")
    DualEncoder.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_training_mode_and_dropout_come_back_with_train(text_folder: str, tmp_path: Path):
    make_model(text_folder).save_pretrained(tmp_path)
    loaded = DualEncoder.from_pretrained(tmp_path).train()
    assert loaded.pooling.attention_dropout == 0.1
    assert not torch.equal(loaded.encode_text(CAPTIONS), loaded.encode_text(CAPTIONS))


def test_model_card(text_folder: str, tmp_path: Path):
    model = make_model(text_folder)
    scores = ScoreRecord(epoch=3, metrics={"text_to_audio": {"mAP@10": 0.4242}})
    model.record = TrainingRecord(validation=scores)
    model.save_pretrained(tmp_path / "scored")
    card = (tmp_path / "scored" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "- text-to-audio-retrieval" in card
    assert (
        "after epoch 3:" in card
        and "| validation | text to audio | 42.42 |" in card
        and "Not evaluated." not in card
    )
    assert "audio encoder `atst_frame`, text encoder `roberta`, pooling `tap`" in card
    assert "DualEncoder.from_pretrained" in card and "{{" not in card
    assert DualEncoder.from_pretrained(tmp_path / "scored").record.validation == scores
    make_model(text_folder).save_pretrained(tmp_path / "fresh")
    assert "Not evaluated." in (tmp_path / "fresh" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def saved(text_folder: str, tmp_path: Path) -> Path:
    make_model(text_folder).save_pretrained(tmp_path / "run" / "best")
    return tmp_path / "run" / "best"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_folder_that_lacks_a_file(saved: Path, name: str):
    (saved / name).unlink()
    assert error_of(DualEncoder.from_pretrained, saved).startswith(
        f"checkpoint {saved} has no {name}; "
    )


def test_the_run_folder_in_place_of_the_model_folder(saved: Path):
    run = saved.parent
    assert (
        error_of(DualEncoder.from_pretrained, run)
        == f"checkpoint {run} has no config.json; did you mean {run}/best?"
    )


def test_a_truncated_weight_file(saved: Path):
    weights = saved / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    message = error_of(DualEncoder.from_pretrained, saved)
    assert (
        message.startswith(f"checkpoint {saved} does not load (SafetensorError")
        and "damaged or of another architecture" in message
    )


def test_a_config_that_is_no_json(saved: Path):
    (saved / "config.json").write_text('{"dim": ')
    assert error_of(DualEncoder.from_pretrained, saved).startswith(
        f"{saved / 'config.json'} cannot be read ("
    )


def test_a_model_of_another_project(saved: Path):
    BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(saved)
    message = (
        f"checkpoint {saved} is of another architecture: its config.json has no audio_encoder,"
        " pooling, text_encoder"
    )
    assert error_of(DualEncoder.from_pretrained, saved) == message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dim": 40}, "size mismatch"),
        (
            {"audio_encoder": {"name": "atst_frame", "embed_dim": DIM, "depth": 3, "num_heads": 4}},
            "Missing key",
        ),
        ({"audio_encoder": {"name": "passt_xl"}}, "passt"),
        ({"audio_encoder": {"name": "atst_frame", "layers": 3}}, "layers"),
        ({"pooling": {"name": "mean"}}, "Unexpected key"),
        ({"max_tokens": None, "dim": "wide"}, "TypeError"),
    ],
)
def test_weights_that_do_not_fit_the_config(saved: Path, change: dict[str, Any], named: str):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    message = error_of(DualEncoder.from_pretrained, saved)
    assert message.startswith(f"checkpoint {saved} does not load (") and named in message


def test_weights_that_are_partly_there(saved: Path):
    weights = load_file(saved / "model.safetensors")
    del weights["text_projection.bias"]
    save_file(weights, saved / "model.safetensors")
    assert "text_projection.bias" in error_of(DualEncoder.from_pretrained, saved)


@pytest.fixture
def no_hub(monkeypatch):
    """The hub refuses every connection, at once."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:9")
    hub.hub_answers.cache_clear()
    yield
    hub.hub_answers.cache_clear()


@pytest.mark.parametrize("name", ["nobody/no-such-model", "runs/absent/best", "absent"])
def test_neither_a_folder_nor_on_the_hub(no_hub, name: str, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    message = error_of(DualEncoder.from_pretrained, name)
    assert pauses == []  # huggingface_hub alone pauses between its tries, 23 s a file
    assert message.startswith(
        f"checkpoint {name} is not a folder here and the Hugging Face hub did not give it (it is"
        " out of reach"
    )


# --- from a configuration ---


def save_weights(folder: Path, text_folder: str) -> tuple[AtstFrame, RobertaModel]:
    """`audio.ckpt` in the official layout and a folder `text` with weights."""
    audio = AtstFrame(embed_dim=32, depth=1, num_heads=2)
    torch.save(
        {
            "state_dict": {
                f"encoder.encoder.{key}": value for key, value in audio.state_dict().items()
            }
        },
        folder / "audio.ckpt",
    )
    text = RobertaModel(RobertaConfig.from_pretrained(text_folder))
    load_tokenizer(text_folder).save_pretrained(folder / "text")
    text.save_pretrained(folder / "text")
    return audio, text


@torch.no_grad()
def test_build_model_loads_pretrained_weights(tiny: Path, tmp_path: Path):
    audio, text = save_weights(tmp_path, str(tiny / "text_encoder"))
    overrides = [
        f"audio_encoder.checkpoint={tmp_path}/audio.ckpt",
        f"text_encoder.name={tmp_path}/text",
        "text_encoder.pretrained=true",
    ]
    model = build_model(load_config(tiny / "tiny.yaml", overrides))
    found = model.audio_encoder.state_dict()
    assert all(torch.equal(found[key], value) for key, value in audio.state_dict().items())
    found = model.text_encoder.model.state_dict()
    assert all(
        torch.equal(found[key], value)
        for key, value in text.state_dict().items()
        if not key.startswith("pooler")
    )
    assert model.encode_text(["tone"]).shape == (1, 32)


def test_a_window_longer_than_a_clip_is_cut_to_the_clip(text_folder: str):
    cut, fitting = (
        make_model(text_folder, clip_seconds=1.0, window_seconds=seconds).windows
        for seconds in (4.0, 1.0)
    )
    assert cut == fitting and (cut.num_windows, cut.window_samples, cut.num_frames) == (1, RATE, 25)


def test_build_model_unpacks_the_configuration(tiny: Path):
    config = load_config(
        tiny / "tiny.yaml",
        ["loss.temperature=0.1", "loss.learnable_temperature=yes", "text_encoder.max_tokens=7"],
    )
    model = build_model(config)
    assert (model.sample_rate, model.clip_seconds, model.text_encoder.max_tokens) == (
        config.data.sample_rate,
        config.data.max_seconds,
        7,
    )
    assert model.pooling.query.out_features == config.pooling.attention_dim
    assert model.pooling.attention_dropout == config.pooling.attention_dropout
    assert model.temperature.item() == pytest.approx(0.1) and model.temperature.requires_grad
    assert torch.equal(model.pooling.query.weight[:32], torch.eye(32))  # init: identity


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("audio_encoder.name=atst", "audio_encoder.name='atst' is unknown; there is: atst_frame"),
        ("pooling.name=nope", "pooling.name='nope' is unknown; there is: mean, tap"),
        (
            "pooling.attention_dim=16",
            "pooling.init=identity needs pooling.attention_dim >= dim, found 16 < 32",
        ),
        ("audio_encoder.checkpoint=absent.ckpt", "audio weights absent.ckpt do not exist"),
        ("audio_encoder.window_seconds=20", "a window of"),
        (
            "text_encoder.pretrained=true",
            "it needs config.json, tokenizer files and model.safetensors",
        ),
    ],
)
def test_build_model_names_what_does_not_fit(tiny: Path, override: str, named: str):
    assert named in error_of(
        build_model, load_config(tiny / "tiny.yaml", [override, "data.max_seconds=20"])
    )


def test_a_model_without_weights_allocates_nothing(no_hub):
    """The largest experiment, 1.8 GB of parameters, as names and shapes; counts of the recipe."""
    model = build_model_without_weights(load_config(CONFIGS / "tap.yaml"))
    assert all(parameter.is_meta for parameter in model.parameters())
    # mel filter bank
    assert sum(buffer.numel() for buffer in model.buffers() if not buffer.is_meta) < 100_000
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_children()
    }
    assert counts["audio_encoder"] == 85_419_264
    assert (
        counts["audio_projection"] == 768 * 1024 + 1024
        and counts["text_projection"] == 1024 * 1024 + 1024
    )
    assert counts["pooling"] == 3 * (1024 * 2048 + 2048) + 2048 * 1024 + 1024 + 2 * 1024
    assert model.windows.num_frames == 750


@pytest.mark.parametrize(
    "change",
    [
        {"hop_seconds": 1e-9},
        {"hop_seconds": -1.0},
        {"clip_seconds": 1e30},
        {"max_tokens": 0},
        {"dim": 10**10},
        {"text_encoder": {"num_hidden_layers": 10**9}},
        {"text_encoder": {"vocab_size": 10**11}},
        {"audio_encoder": {"depth": 10**9}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_config_that_claims_what_cannot_be_is_one_line_and_no_model_is_made(
    tmp_path: Path, text_folder: str, change: dict
):
    """A foreign config.json of 5 kB could fill the memory, or fail at the first clip."""
    make_model(text_folder).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    changed = {
        name: config[name] | value if isinstance(value, dict) else value
        for name, value in change.items()
    }
    path.write_text(json.dumps(config | changed))
    resource_limits = resource.getrlimit(resource.RLIMIT_AS)
    # or a failure would end the machine
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource_limits[1]))
    try:
        with pytest.raises(UserError) as caught:
            DualEncoder.from_pretrained(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, resource_limits)
    assert "\n" not in str(caught.value)
    assert not any(word in str(caught.value) for word in ("allocate", "MemoryError"))
