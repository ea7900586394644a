"""Audio encoders of the Hugging Face hub give the numbers of transformers, in time order.

The models are small and saved in the hub's layout. Letters: W windows, S samples, T frames.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models.audio.huggingface import HuggingFaceAudioEncoder, huggingface_arguments
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from tests.pretrained_models import CLAP_AUDIO as CLAP
from tests.pretrained_models import SMALL

AST = transformers.ASTConfig(hidden_size=16, max_length=128, num_mel_bins=32, **SMALL)
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_mel_bins": 20,
}
WHISPER |= {
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_source_positions": 100,
    "vocab_size": 50,
    "encoder_layerdrop": 0.5,
}
WHISPER |= {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "dropout": 0.0,
}
CONV = {
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [20, 16],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
}
CONV |= {
    "num_conv_pos_embedding_groups": 2,
    "hidden_size": 16,
    "layerdrop": 0.5,
    "mask_time_prob": 0.5,
    **SMALL,
}


def clap_extractor(fusion: bool) -> transformers.ClapFeatureExtractor:
    truncation = "fusion" if fusion else "rand_trunc"
    return transformers.ClapFeatureExtractor(
        feature_size=16, sampling_rate=16_000, hop_length=128, max_length_s=1, truncation=truncation
    )


def whole_clap() -> transformers.ClapModel:
    text = {"vocab_size": 50, "hidden_size": 16, **SMALL}
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=text, audio_config=CLAP, projection_dim=8)
    )


FAMILIES = {
    "ast": (
        lambda: transformers.ASTModel(AST),
        lambda: transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128),
    ),
    "clap": (whole_clap, lambda: clap_extractor(False)),
    "clap_audio": (
        lambda: transformers.ClapAudioModel(transformers.ClapAudioConfig(**CLAP)),
        lambda: clap_extractor(False),
    ),
    "clap_fused": (
        lambda: transformers.ClapAudioModel(
            transformers.ClapAudioConfig(**CLAP, enable_fusion=True, fusion_type="aff_2d")
        ),
        lambda: clap_extractor(True),
    ),
    "whisper": (
        lambda: transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)),
        lambda: transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2),
    ),
    "wavlm": (
        lambda: transformers.WavLMModel(transformers.WavLMConfig(**CONV)),
        lambda: transformers.Wav2Vec2FeatureExtractor(do_normalize=True),
    ),
    "hubert": (
        lambda: transformers.HubertModel(transformers.HubertConfig(**CONV)),
        lambda: transformers.Wav2Vec2FeatureExtractor(do_normalize=False),
    ),
    "wav2vec2": (
        lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**CONV)),
        transformers.Wav2Vec2FeatureExtractor,
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
RATE = 16_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Model and feature extractor of each family as on the hub."""
    root = tmp_path_factory.mktemp("hub")
    for family, (model, extractor) in FAMILIES.items():
        torch.manual_seed(0)
        model().save_pretrained(root / family)
        extractor().save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


def load(folder: Path) -> HuggingFaceAudioEncoder:
    encoder = HuggingFaceAudioEncoder(**huggingface_arguments(str(folder)))
    encoder.load_official(folder)
    return encoder.eval()


def sounds(num_samples: int = RATE, num_windows: int = 2) -> torch.Tensor:
    time = torch.arange(num_samples) / RATE
    return torch.stack(
        [0.3 * torch.sin(2 * torch.pi * 300 * (1 + w + time) * time) for w in range(num_windows)]
    )


def transformers_own(family: str, folder: Path, waveform: torch.Tensor) -> torch.Tensor:
    """(W, T, F) by transformers' classes alone; written out for each model."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(
        [window.numpy() for window in waveform], sampling_rate=RATE, return_tensors="pt"
    )
    with torch.no_grad():
        if family == "ast":
            hidden = (
                transformers.ASTModel.from_pretrained(folder)
                .eval()(inputs["input_values"])
                .last_hidden_state[:, 2:]
            )
            return torch.stack([hidden[:, row * 12 : row * 12 + 12] for row in range(2)]).mean(
                dim=0
            )  # two rows of twelve patches
        if family == "whisper":
            return (
                transformers.WhisperModel.from_pretrained(folder)
                .eval()
                .encoder(inputs["input_features"])
                .last_hidden_state
            )
        if family == "clap":
            model = transformers.ClapModel.from_pretrained(folder).eval().audio_model
        elif family.startswith("clap"):
            model = transformers.ClapAudioModel.from_pretrained(folder).eval()
        else:
            return (
                transformers.AutoModel.from_pretrained(folder)
                .eval()(inputs["input_values"])
                .last_hidden_state
            )
        longer = torch.zeros(len(waveform), 1, dtype=torch.bool)
        return (
            model(inputs["input_features"], is_longer=longer)
            .last_hidden_state.mean(dim=2)
            .transpose(1, 2)
        )


@every_family
@pytest.mark.parametrize("num_samples", [RATE, 7_000])
def test_frames_are_those_of_transformers(folders, family, num_samples):
    """The shorter window also where the extractor pads, CLAP's by repetition."""
    encoder = load(folders[family])
    waveform = sounds(num_samples)
    expected = transformers_own(family, folders[family], waveform)
    with torch.no_grad():
        found = encoder(waveform)
    assert found.shape == (2, encoder.num_frames(num_samples), encoder.feature_dim)
    assert (found - expected[:, : found.shape[1]]).abs().max() < 1e-4
    # negative control: another sound
    assert (found[0] - expected[1, : found.shape[1]]).abs().max() > 1e-2


@every_family
def test_features_are_those_of_the_extractor(folders, family):
    encoder, waveform = load(folders[family]), sounds(7_000)
    inputs = transformers.AutoFeatureExtractor.from_pretrained(folders[family])(
        [each.numpy() for each in waveform], sampling_rate=RATE
    )
    expected = torch.from_numpy(
        np.stack(inputs["input_features" if "input_features" in inputs else "input_values"])
    ).float()
    if family.startswith("clap"):
        expected = expected[:, 0].transpose(1, 2)
    if family == "ast":
        expected = expected.transpose(1, 2)
    found = encoder.log_mel(waveform) if encoder.num_mel_bins else encoder._features(waveform)
    assert (found - expected[..., : found.shape[-1]]).abs().max() < 1e-3
    # negative control: another window
    assert (found - expected[..., : found.shape[-1]].flip(0)).abs().max() > 1e-1
    rest = expected[..., found.shape[-1] + 4 :]  # after the last columns that overlap with sound
    # nothing but padding was cut off
    assert rest.numel() == 0 or family.startswith("clap") or rest.std(dim=-1).max() < 1e-3


@every_family
@pytest.mark.parametrize("num_samples", [600, 3_000, 7_919, 12_345, RATE])
def test_number_of_frames_is_what_comes_out(folders, family, num_samples):
    encoder = load(folders[family])
    with torch.no_grad():
        assert encoder(sounds(num_samples, 1)).shape[1] == encoder.num_frames(num_samples)


@pytest.mark.parametrize(
    "config, extractor, num_frames",
    [
        (
            transformers.ASTConfig(),
            transformers.ASTFeatureExtractor(),
            {0.5: 5, 10.0: 100, 10.2: 101},
        ),
        (transformers.ClapAudioConfig(), transformers.ClapFeatureExtractor(), {1.0: 4, 10.0: 32}),
        (
            transformers.WhisperConfig(max_source_positions=1500),
            transformers.WhisperFeatureExtractor(),
            {1.0: 50, 10.0: 500, 30.0: 1500},
        ),
        (
            transformers.WavLMConfig(),
            transformers.Wav2Vec2FeatureExtractor(),
            {0.025: 1, 1.0: 49, 10.0: 499},
        ),
    ],
    ids=["ast", "clap", "whisper", "wavlm"],
)
def test_frames_at_full_size(config, extractor, num_frames):
    with torch.device("meta"):
        encoder = HuggingFaceAudioEncoder(config.to_dict(), extractor.to_dict())
    assert {
        seconds: encoder.num_frames(round(seconds * encoder.sample_rate)) for seconds in num_frames
    } == num_frames


@every_family
def test_frames_are_in_time_order(folders, family):
    """A noise that comes later makes later frames stand out.

    From what they are for most places of the noise, not from silence: models that normalise over
    time move all frames with any noise.
    """
    encoder = load(folders[family])
    silence = 0.001 * torch.from_numpy(
        np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    )
    burst = 0.5 * torch.from_numpy(
        np.random.default_rng(1).standard_normal(RATE // 10).astype(np.float32)
    )
    waveform = silence.repeat(9, 1)
    for place, window in enumerate(waveform):
        start = RATE // 20 + place * RATE // 10
        window[start : start + len(burst)] += burst
    with torch.no_grad():
        frames = encoder(waveform)  # (9, T, F)
    weight = (frames - frames.median(dim=0).values).norm(dim=-1) ** 4  # (9, T)

    def centres(weight: torch.Tensor) -> torch.Tensor:
        return (weight * torch.linspace(0, 1, weight.shape[1])).sum(dim=1) / weight.sum(dim=1)

    assert (centres(weight).diff() > 0).all(), centres(weight)
    # negative control: the second half of the frames first
    halves = torch.cat(weight.tensor_split(2, dim=1)[::-1], dim=1)
    assert not (centres(halves).diff() > 0).all()


@every_family
def test_every_trained_parameter_gets_a_gradient_and_nothing_is_random(folders, family):
    encoder = load(folders[family]).train()
    encoder(sounds()).square().mean().backward()
    assert [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ] == []
    assert (
        not hasattr(encoder.config, "apply_spec_augment") or not encoder.config.apply_spec_augment
    )
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(3 * sounds())
    # no running statistics move
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@every_family
def test_spectrograms_and_their_augmentation(folders, family):
    encoder, waveform = load(folders[family]), sounds()
    log_mel = encoder.log_mel(waveform)
    assert (
        log_mel.dim() == 3
        and log_mel.dtype == torch.float32
        and log_mel.shape[1] == (encoder.num_mel_bins or 64)
    )
    if encoder.num_mel_bins:
        with torch.no_grad():
            assert not torch.equal(encoder(waveform), encoder(waveform, lambda mel: mel.flip(1)))
            assert torch.equal(encoder(waveform), encoder(waveform, lambda mel: mel))
            seen = []
            encoder(waveform[:, :4_000], lambda mel: seen.append(mel) or mel)
            assert (
                torch.equal(seen[0], encoder.log_mel(waveform[:, :4_000]))
                and 20 <= seen[0].shape[2] <= 32
            )  # 0.25 s, without padding


@every_family
def test_the_spectrogram_of_a_clip_longer_than_a_window_shows_all_of_it(folders, family):
    """For pictures. The sound ends in the last fifth, after the first window of all models."""
    encoder, waveform = load(folders[family]), sounds(5 * RATE, 1)
    waveform[:, 4 * RATE :] = 0
    level = encoder.log_mel(waveform)[0].mean(dim=0)  # (C,)
    sound, silence = level[: int(0.78 * len(level))], level[int(0.82 * len(level)) :]
    assert sound.min() > silence.max()


@every_family
def test_bf16_and_the_meta_device(folders, family):
    # as config.json keeps them
    arguments = json.loads(json.dumps(huggingface_arguments(str(folders[family]))))
    with torch.device("meta"):
        empty = HuggingFaceAudioEncoder(**arguments)
    encoder = load(folders[family])
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in encoder.state_dict().items()
    }
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (encoder(sounds()).float() - encoder(sounds())).abs().max() < 1


@every_family
@pytest.mark.parametrize("num_samples", [10, 700 * RATE])
def test_windows_that_do_not_fit_are_refused(folders, family, num_samples):
    with pytest.raises(UserError, match="does not fit .* set audio_encoder.window_seconds"):
        HuggingFaceAudioEncoder(**huggingface_arguments(str(folders[family]))).num_frames(
            num_samples
        )


# --- within a model ---


@pytest.mark.parametrize("family", ["ast", "clap", "whisper", "wavlm"])
def test_a_model_with_it_is_saved_and_loaded(folders, family, tiny, tmp_path):
    settings = ["audio_encoder={name: huggingface}", f"audio_encoder.checkpoint={folders[family]}"]
    settings += ["audio_encoder.window_seconds=1", "audio_encoder.hop_seconds=1"]
    torch.manual_seed(0)
    model = build_model(load_config(tiny / "tiny.yaml", settings)).eval()
    model.save_pretrained(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    again = DualEncoder.from_pretrained(tmp_path / "moved")  # without the hub's folder
    waveform, lengths = sounds(2 * RATE), torch.tensor([2 * RATE, 20_000])
    with torch.no_grad():
        scores = [
            each.score(
                each.encode_text(["a low tone", "a high tone"]),
                *each.encode_audio(waveform, lengths),
            )
            for each in (model, again)
        ]
    assert torch.equal(*scores)


def test_a_setting_that_it_does_not_have_and_no_checkpoint(folders, tiny):
    settings = [
        "audio_encoder={name: huggingface}",
        "audio_encoder.window_seconds=1",
        "audio_encoder.hop_seconds=1",
    ]
    with pytest.raises(UserError, match="audio_encoder.checkpoint must name a hub model or folder"):
        build_model(load_config(tiny / "tiny.yaml", settings))
    settings += [f"audio_encoder.checkpoint={folders['ast']}", "audio_encoder.depth=3"]
    with pytest.raises(UserError, match="audio_encoder.depth is not a setting of huggingface"):
        build_model(load_config(tiny / "tiny.yaml", settings))


# --- folders that do not fit ---


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def test_an_absent_folder(tmp_path):
    with pytest.raises(UserError, match="absent does not exist; set audio_encoder.checkpoint"):
        huggingface_arguments(str(tmp_path / "absent"))


def test_a_folder_without_feature_extractor(folders, tmp_path):
    folder = copy_of(folders["ast"], tmp_path / "ast")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        UserError, match="cannot be loaded .* it needs config.json, preprocessor_config.json"
    ):
        huggingface_arguments(str(folder))


def test_a_text_model(tiny):
    with pytest.raises(
        UserError,
        match=(
            "is a roberta; audio_encoder.name=huggingface knows: audio-spectrogram-transformer,"
            " clap"
        ),
    ):
        huggingface_arguments(str(tiny / "text_encoder"))


@every_family
@pytest.mark.parametrize("damage", ["truncated", "missing", "absent"])
def test_damaged_weights_change_nothing(folders, family, damage, tmp_path):
    folder = copy_of(folders[family], tmp_path / family)
    encoder = load(folder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    path = folder / "model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "absent":
        path.unlink()
    else:
        state = load_file(path)
        name = next(
            name
            for name in state
            if ("audio" in name or "encoder" in name)
            and "decoder" not in name
            and "text" not in name
        )
        save_file(
            {key: value for key, value in state.items() if key != name},
            path,
            metadata={"format": "pt"},
        )
    with pytest.raises(
        UserError, match=r"cannot be loaded|lacks [\w.]+ of this \S+; download it again"
    ):
        encoder.load_official(folder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


CLAP_AUDIO = transformers.ClapAudioConfig(**CLAP, projection_dim=8)
LAYOUTS = {
    "ast": lambda: transformers.ASTForAudioClassification(AST),
    "clap": lambda: transformers.ClapAudioModelWithProjection(CLAP_AUDIO),
    "whisper": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**WHISPER)
    ),
    "wavlm": lambda: transformers.WavLMForXVector(transformers.WavLMConfig(**CONV)),
    "hubert": lambda: transformers.HubertForCTC(transformers.HubertConfig(**CONV)),
    "wav2vec2": lambda: transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(**CONV, add_adapter=True)
    ),
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_weights_below_a_head_are_found(family, tmp_path):
    """Official checkpoints have the head of their task; an adapter would reduce the frames."""
    model = LAYOUTS[family]()
    model.save_pretrained(tmp_path)
    FAMILIES[family][1]().save_pretrained(tmp_path)
    encoder = load(tmp_path)
    saved = [value for value in model.state_dict().values() if value.dtype == torch.float32]
    for name, parameter in encoder.named_parameters():
        assert any(torch.equal(parameter, value) for value in saved), name
    with torch.no_grad():
        assert encoder(sounds()).shape[1] == encoder.num_frames(RATE)


@pytest.mark.parametrize(
    "family, extractor, match",
    [
        (
            "ast",
            transformers.Wav2Vec2FeatureExtractor(),
            "feature_extractor_type Wav2Vec2FeatureExtractor",
        ),
        ("wavlm", transformers.ASTFeatureExtractor(), "feature_extractor_type ASTFeatureExtractor"),
        (
            "ast",
            transformers.ASTFeatureExtractor(num_mel_bins=64, max_length=128),
            "num_mel_bins 64",
        ),
        (
            "ast",
            transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=256),
            "max_length 256",
        ),
        (
            "clap",
            transformers.ClapFeatureExtractor(feature_size=16, hop_length=128),
            "columns 3751",
        ),
        (
            "whisper",
            transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=3),
            "columns 300",
        ),
        ("whisper", transformers.WhisperFeatureExtractor(chunk_length=2), "feature_size 80"),
    ],
)
def test_an_extractor_of_another_model(folders, family, extractor, match, tmp_path):
    folder = copy_of(folders[family], tmp_path / family)
    extractor.save_pretrained(folder)
    with pytest.raises(
        UserError,
        match=(
            rf"preprocessor_config.json \({match}\) does not fit .*; copy both from the same model"
        ),
    ):
        HuggingFaceAudioEncoder(**huggingface_arguments(str(folder)))


@pytest.mark.parametrize(
    "setting, match",
    [("num_hidden_layers", "which this wavlm has not"), ("intermediate_size", "of another size")],
)
def test_weights_of_another_size_change_nothing(folders, setting, match, tmp_path):
    """Deeper ones too, whose first layers would fit."""
    transformers.WavLMModel(
        transformers.WavLMConfig(**CONV | {setting: 3 if setting == "num_hidden_layers" else 48})
    ).save_pretrained(tmp_path)
    encoder = load(folders["wavlm"])
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(UserError, match=match):
        encoder.load_official(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
