"""CLAP and PE-Audio as checkpoints: vectors and scores are those of transformers.

Letters: B clips, N captions, S samples, D = dim.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel, PeAudioVideoConfig

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import load_pretrained
from tests.pretrained_models import FAMILIES, RATE, make

CAPTIONS = ["A dog barks loudly, and then Rain falls.", "rain", "the wind blows and a cat"]
SHORT = (RATE, RATE - 1, 9_001, 3_111, 640, 500, 1)  # samples, at most 1 s


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, tuple[Path, object, object]]:
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        made[family] = folder, *make(family, folder)
    return made


def sound(num_samples: int) -> torch.Tensor:
    """Noise in bursts, float32 (S,)."""
    random = np.random.default_rng(num_samples)
    envelope = 0.1 + 0.4 * (np.arange(num_samples) % 5_000 < 2_000)
    return torch.from_numpy((envelope * random.standard_normal(num_samples)).astype(np.float32))


@torch.no_grad()
def original_audio(family: str, model, processor, clip: torch.Tensor) -> torch.Tensor:
    """Vector (D,) of one clip by transformers, which for CLAP is at most a window long."""
    inputs = processor.feature_extractor([clip.numpy()], sampling_rate=RATE, return_tensors="pt")
    if family.startswith("clap"):
        # with fusion the extractor marks one clip of a batch at random as longer than a window
        inputs["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)
        return model.get_audio_features(**inputs).pooler_output[0]
    vectors = model.get_audio_embeds(**inputs)[0]
    return vectors.mean(dim=0) if family == "pe_a_frame" else vectors


@torch.no_grad()
def original_text(family: str, model, processor, captions: list[str]) -> torch.Tensor:
    inputs = processor.tokenizer(captions, padding=True, return_tensors="pt")
    if family.startswith("clap"):
        return model.get_text_features(**inputs).pooler_output
    # get_text_audio_embeds of transformers 5.24 reads hidden states that it does not ask for
    return model.text_audio_head(model.text_model(**inputs).last_hidden_state[:, 0])


@torch.no_grad()
def original_logits(family: str, model, processor, captions: list[str], clip) -> torch.Tensor:
    """Logits (N,) of one clip by the forward of transformers, averaged over a model's frames."""
    inputs = processor.feature_extractor([clip.numpy()], sampling_rate=RATE, return_tensors="pt")
    if "is_longer" in inputs:
        inputs["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)
    tokens = processor.tokenizer(captions, padding=True, return_tensors="pt")
    output = model(**tokens, **inputs)
    if family.startswith("clap"):
        return output.logits_per_text[:, 0]
    logits = output.logits_audio_text[0]  # (N,), or (N, T)
    return logits.mean(dim=1) if family == "pe_a_frame" else logits


@torch.no_grad()
def ours(model: DualEncoder, clips: list[torch.Tensor]) -> torch.Tensor:
    """Vectors (B, D) of clips in one batch, of length 1 for cosines."""
    lengths = torch.tensor([len(clip) for clip in clips])
    frames, mask = model.encode_audio(pad_sequence(clips, batch_first=True), lengths)
    assert frames.shape[1] == 1 and mask.all()
    return model.pooling.directions(frames[:, 0])


@pytest.mark.parametrize("family", FAMILIES)
class TestSameNumbers:
    @pytest.fixture
    def parts(self, folders, family):
        folder, original, processor = folders[family]
        return load_pretrained(folder), original, processor

    def test_audio_alone_and_in_a_batch(self, parts, family):
        model, original, processor = parts
        clips = [sound(num_samples) for num_samples in SHORT] + [torch.zeros(8_000)]
        expected = torch.stack(
            [original_audio(family, original, processor, clip) for clip in clips]
        )
        assert expected.std(dim=0).mean() > 0.01  # clips differ
        torch.testing.assert_close(ours(model, clips), expected, atol=1e-5, rtol=0)
        alone = torch.cat([ours(model, [clip]) for clip in clips])
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)

    def test_text_as_written(self, parts, family):
        model, original, processor = parts
        expected = original_text(family, original, processor, CAPTIONS)
        with torch.no_grad():
            text = model.encode_text(CAPTIONS)
            lower = model.encode_text([caption.lower() for caption in CAPTIONS])
        text = model.pooling.directions(text)
        torch.testing.assert_close(text, expected, atol=1e-5, rtol=0)
        assert (lower[0] - text[0]).abs().max() > 1e-3  # capitals are heard

    def test_scores_are_those_of_its_own_forward(self, parts, family):
        model, original, processor = parts
        clips = [sound(num_samples) for num_samples in (RATE, RATE - 640, RATE // 2)]
        expected = torch.stack(
            [original_logits(family, original, processor, CAPTIONS, clip) for clip in clips], dim=1
        )  # (N, B)
        lengths = torch.tensor([len(clip) for clip in clips])
        with torch.no_grad():
            frames, mask = model.encode_audio(pad_sequence(clips, batch_first=True), lengths)
            logits = model.score(model.encode_text(CAPTIONS), frames, mask) / model.temperature
        if family.startswith("pe_"):
            logits = logits + model.loss_parameters["bias"]
        # scores to 1e-5: the logits are scores times the scale
        tolerance = 1e-5 / model.temperature.item()
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)

    def test_long_clips(self, parts, family):
        model, original, processor = parts
        longest = 60 if family in ("clap", "pe_a_frame") else 7
        for seconds in (2.5, longest):
            clip = sound(round(seconds * RATE))
            if family.startswith("clap"):
                windows = clip.split(RATE)
                weights = torch.tensor([len(window) / RATE for window in windows])
                vectors = torch.stack(
                    [original_audio(family, original, processor, own) for own in windows]
                )
                expected = functional.normalize((weights[:, None] * vectors).sum(dim=0), dim=0)
            else:
                expected = original_audio(family, original, processor, clip)
            torch.testing.assert_close(ours(model, [clip])[0], expected, atol=1e-5, rtol=0)

    def test_saved_and_loaded_as_a_model_folder(self, parts, family, tmp_path):
        model, _, _ = parts
        model.save_pretrained(tmp_path / "own")
        again = DualEncoder.from_pretrained(tmp_path / "own")
        clips = [sound(num_samples) for num_samples in (40_000, 9_001)]
        assert torch.equal(ours(again, clips), ours(model, clips))
        with torch.no_grad():
            assert torch.equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
        assert "average" in (tmp_path / "own" / "README.md").read_text()

    @pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
    def test_at_another_rate_the_sound_is_resampled(self, parts, family, rate):
        model, original, processor = parts
        model.hear_at(rate)
        assert model.architecture["sample_rate"] == rate
        clips = [sound(round(seconds * rate)) for seconds in (0.9, 0.33)]
        resampled = [torchaudio.functional.resample(clip, rate, RATE) for clip in clips]
        expected = torch.stack(
            [original_audio(family, original, processor, clip) for clip in resampled]
        )
        torch.testing.assert_close(ours(model, clips), expected, atol=1e-5, rtol=0)


def test_the_audio_and_text_parts_of_an_audio_visual_model(folders, tmp_path):
    """The file has one text model for all parts, and video; checked against PeAudioVideoModel."""
    folder, original, processor = folders["pe_audio"]
    config = original.config
    video = {"audio_config": config.audio_config.to_dict()}
    PeAudioVideoConfig(
        text_config=config.text_config.to_dict(), audio_video_config=video
    ).save_pretrained(tmp_path)
    state = {
        key if key.startswith("text_model.") else f"audio_model.{key}": value
        for key, value in original.state_dict().items()
    }
    state["video_model.video_head.proj.weight"] = torch.zeros(2, 2)
    state["audio_video_logit_scale"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    processor.save_pretrained(tmp_path)
    clips = [sound(9_001), sound(3_111)]
    model, expected = load_pretrained(tmp_path), load_pretrained(folder)
    assert torch.equal(ours(model, clips), ours(expected, clips))
    with torch.no_grad():
        assert torch.equal(model.encode_text(CAPTIONS), expected.encode_text(CAPTIONS))


def test_files_of_older_transformers(folders, tmp_path):
    """As laion/larger_clap_general: weights as a pickle of tensors, with buffers of then."""
    folder, original, processor = folders["clap"]
    original.config.save_pretrained(tmp_path)
    processor.feature_extractor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").exists()
    processor.tokenizer.save_pretrained(tmp_path)
    old = {"text_model.embeddings.position_ids": torch.arange(514)[None]}
    torch.save(original.state_dict() | old, tmp_path / "pytorch_model.bin")
    model, expected = load_pretrained(tmp_path), load_pretrained(folder)
    assert torch.equal(ours(model, [sound(9_001)]), ours(expected, [sound(9_001)]))


def test_a_pickle_with_code_is_not_run(folders, tmp_path):
    folder = copy_of(folders, tmp_path)
    (folder / "model.safetensors").unlink()

    class Harmful:
        def __reduce__(self):
            return Path(tmp_path / "ran").touch, ()

    torch.save({"weight": Harmful()}, folder / "pytorch_model.bin")
    refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_a_short_rest_of_a_long_clip_hardly_counts(folders):
    model = load_pretrained(folders["clap"][0])
    clip = sound(RATE)
    rest = torch.cat([clip, sound(RATE // 50)])  # 20 ms
    assert torch.equal(ours(model, [rest]), ours(model, [clip]))


def test_negative_control_other_weights_give_other_numbers(folders):
    folder, original, processor = folders["clap"]
    model = load_pretrained(folder)
    with torch.no_grad():
        model.audio_projection.linear2.bias += 0.1
    clip = sound(RATE)
    expected = original_audio("clap", original, processor, clip)
    assert (ours(model, [clip])[0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["clap", "pe_a_frame"])
def test_gradients_reach_all_weights_that_can_learn(folders, family):
    model = load_pretrained(folders[family][0]).train()
    lengths = torch.tensor([RATE, 9_000])
    frames, mask = model.encode_audio(pad_sequence([sound(int(n)) for n in lengths], True), lengths)
    model.score(model.encode_text(CAPTIONS), frames, mask).square().sum().backward()
    learns = {n for n, own in model.named_parameters() if own.requires_grad and own.grad is None}
    assert {name for name in learns if not name.startswith("loss_parameters")} == set()
    assert not any("dac_encoder" in n for n, p in model.named_parameters() if p.requires_grad)


# --- what is refused ---


def copy_of(folders, tmp_path: Path, family: str = "clap") -> Path:
    return Path(shutil.copytree(folders[family][0], tmp_path / "copy"))


def refusal(checkpoint: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(checkpoint)
    message = str(caught.value)
    assert "\n" not in message and str(checkpoint) in message
    return message


def test_a_model_that_is_no_audio_text_model(tmp_path):
    config = BertConfig(hidden_size=8, vocab_size=20, **{"num_hidden_layers": 1})
    config.num_attention_heads = 2
    BertModel(config).save_pretrained(tmp_path / "bert")
    assert "is a bert" in refusal(tmp_path / "bert")


def test_one_half_of_a_model(folders, tmp_path):
    folders["clap"][1].text_model.save_pretrained(tmp_path / "text")
    assert "one half" in refusal(tmp_path / "text")


def test_weights_of_one_half(folders, tmp_path):
    folder = copy_of(folders, tmp_path)
    state = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in state.items() if not key.startswith("text_")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert "lacks" in refusal(folder) and "text_" in refusal(folder)


@pytest.mark.parametrize("family", ["clap", "pe_audio"])
@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("tokenizer.json", "tokenizer"),
        ("processor_config.json", "processor"),
        ("model.safetensors", "safetensors"),
    ],
)
def test_a_missing_file(folders, tmp_path, family, file, named):
    folder = copy_of(folders, tmp_path, family)
    (folder / file).unlink()
    assert named in refusal(folder)


def test_damaged_weights(folders, tmp_path):
    folder = copy_of(folders, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])
    assert "does not load" in refusal(folder)


def test_code_of_its_own(folders, tmp_path):
    folder = copy_of(folders, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "msclap", "auto_map": {"AutoModel": "modeling.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    assert "code of its own" in refusal(folder)


def test_preprocessor_of_another_model(folders, tmp_path):
    folder = copy_of(folders, tmp_path)
    shutil.copy(folders["pe_audio"][0] / "processor_config.json", folder)
    assert "preprocessor" in refusal(folder)


def edited(folder: Path, file: str, change) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def test_sizes_that_no_weights_have_are_refused_before_they_take_memory(folders, tmp_path):
    folder = copy_of(folders, tmp_path)
    edited(folder, "config.json", lambda c: c["text_config"].update(num_hidden_layers=10**7))
    assert "1e+07 layers" in refusal(folder)


@pytest.mark.parametrize("name", ["sampling_rate", "hop_length"])
@pytest.mark.parametrize("family", ["clap", "pe_audio"])
def test_impossible_numbers_in_the_preprocessor(folders, tmp_path, family, name):
    folder = copy_of(folders, tmp_path, family)
    content = json.loads((folder / "processor_config.json").read_text())
    for value in (0, -16_000, "16k", None):
        content["feature_extractor"][name] = value
        (folder / "processor_config.json").write_text(json.dumps(content))
        refusal(folder)


def test_a_weight_of_another_shape_is_named(folders, tmp_path):
    folder = copy_of(folders, tmp_path)
    state = load_file(folder / "model.safetensors")
    state["audio_projection.linear2.bias"] = torch.zeros(9)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    message = refusal(folder)
    assert "audio_projection.linear2.bias" in message and "[9]" in message and "[8]" in message


@pytest.mark.parametrize("weight", ["audio_projection.linear2.bias", "logit_scale_t"])
def test_weights_that_are_not_finite(folders, tmp_path, weight):
    folder = copy_of(folders, tmp_path)
    state = load_file(folder / "model.safetensors")
    state[weight] = torch.full_like(state[weight], torch.nan)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert "not finite" in refusal(folder)


def test_a_file_of_a_model_folder_is_answered_by_the_folder(folders):
    assert "give the folder" in refusal(folders["clap"][0] / "model.safetensors")


def test_no_name_at_all():
    with pytest.raises(UserError, match="no name"):
        load_pretrained("")


def test_a_short_pe_audio_hears_shorter_clips(folders, tmp_path):
    folder = copy_of(folders, tmp_path, "pe_a_frame")
    edited(folder, "config.json", lambda c: c["audio_config"].update(max_position_embeddings=100))
    assert load_pretrained(folder).clip_seconds == 4.0  # 100 frames of 40 ms


def test_paths_and_hub_names_that_are_absent(monkeypatch, tmp_path):
    monkeypatch.setattr("retrieval.models.pretrained.load.hub_answers", lambda: False)
    assert "out of reach" in refusal("someone/nothing")
    assert "does not exist" in refusal(tmp_path / "nothing")
