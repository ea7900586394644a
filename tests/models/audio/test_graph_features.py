"""Features in PyTorch for ONNX graphs against the extractors of transformers, and PE-Audio's codec.

Letters: W windows, S samples, M mel bands, C columns.
"""

import numpy as np
import pytest
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from retrieval.models.audio.graph_features import (
    ast_features,
    clap_features,
    pe_audio_features,
    whisper_features,
)
from retrieval.models.audio.huggingface import _ClipwiseEmbedder, _MaskedGroupNorm
from tests.pretrained_models import PE_AUDIO, RATE

LENGTHS = (RATE, RATE - 1, 9_001, 5_333, 640, 17, 2, 1)  # samples


def windows(*lengths: int) -> torch.Tensor:
    """Sounds (W, S), zeros after their ends: noise, a loud tone without noise, and silence."""
    rng, sounds = np.random.default_rng(0), []
    for number, length in enumerate(lengths):
        sound = 0.1 * rng.standard_normal(length)
        if number % 3 == 1:  # its bands far from 1 kHz are below the floor of -100 dB
            sound = 0.9 * np.sin(2 * np.pi * 1_000 / RATE * np.arange(length))
        sounds.append(torch.from_numpy(sound).float() * (number % 4 != 3))
    return pad_sequence(sounds, batch_first=True)


def cut(sounds: torch.Tensor, lengths: tuple[int, ...]) -> list[np.ndarray]:
    return [sound[:length].numpy() for sound, length in zip(sounds, lengths, strict=True)]


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_clap(truncation: str, padding: str):
    """In dB. They differ by at most 2e-5: the extractor rounds its spectrum to complex64."""
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=128,
        max_length_s=1,
        frequency_max=8_000,
        truncation=truncation,
        padding=padding,
    )
    sounds = windows(*LENGTHS)
    given = extractor(cut(sounds, LENGTHS), sampling_rate=RATE, return_tensors="pt")
    expected = given["input_features"][:, 0].transpose(1, 2).float()
    found = clap_features(sounds, torch.tensor(LENGTHS), extractor)
    assert expected.max() > 0 and expected.min() == -100
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    # negative control: in float32 a tone's noise covers silent bands, by decibels
    power = torch.stft(
        sounds[1], 1024, 128, window=torch.hann_window(1024), return_complex=True
    ).abs()
    bank = extractor.mel_filters if truncation == "fusion" else extractor.mel_filters_slaney
    single = torch.from_numpy(bank.T).float() @ power.square()
    if padding == "pad" and truncation == "fusion":
        levels = 10 * single.clamp_min(1e-10).log10()
        assert (levels - expected[1]).abs().max() > 0.1


def test_whisper():
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2)
    sounds = windows(RATE, RATE, RATE, RATE)
    given = extractor(cut(sounds, (RATE,) * 4), sampling_rate=RATE, return_tensors="pt")
    found = whisper_features(sounds, extractor)
    torch.testing.assert_close(found, given["input_features"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_ast(do_normalize: bool):
    extractor = transformers.ASTFeatureExtractor(
        num_mel_bins=32, max_length=128, do_normalize=do_normalize
    )
    sounds = windows(RATE, RATE, RATE, RATE)
    given = extractor(cut(sounds, (RATE,) * 4), sampling_rate=RATE, return_tensors="pt")
    found = ast_features(sounds, extractor)
    expected = given["input_values"].transpose(1, 2).float()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_pe_audio_reflects_a_window_as_often_as_it_takes():
    extractor = transformers.PeAudioFeatureExtractor(sampling_rate=RATE, hop_length=640)
    lengths = (1_281, 1_280, 640, 639, 300, 3, 2, 1)
    sounds = windows(*lengths)
    given = extractor(cut(sounds, lengths), sampling_rate=RATE, return_tensors="pt")
    found = pe_audio_features(sounds, torch.tensor(lengths), 640)
    assert torch.equal(found, given["input_values"])


@torch.no_grad()
def test_the_codec_of_a_batch_gives_the_codes_of_each_window():
    torch.manual_seed(0)
    config = transformers.PeAudioConfig(audio_config=dict(PE_AUDIO)).audio_config
    embedder = _ClipwiseEmbedder(config).double()  # sums in another order: 2e-13 in place of 6e-4
    for parameter in embedder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    num_frames = torch.tensor([25, 13, 2, 1])
    sounds = windows(*(640 * num_frames).tolist())[:, None].double()  # (W, 1, S)
    samples = torch.arange(sounds.shape[2]) < 640 * num_frames[:, None]
    expected, mask = embedder(sounds, samples)
    found = embedder.data_proj(embedder._masked_codes(sounds, num_frames))
    assert expected[mask].std() > 0.1
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-10, rtol=0)
    # negative control: without the mask the ends of shorter windows differ
    unmasked = embedder.data_proj(embedder._masked_codes(sounds, torch.full((4,), 25)))
    assert (unmasked[mask] - expected[mask]).abs().max() > 1e-3


def test_the_norm_of_pe_audio_under_a_mask():
    torch.manual_seed(0)
    block = transformers.models.pe_audio.modeling_pe_audio.PeAudioMaskedGroupNorm(1, 24)
    block.weight.data.normal_(), block.bias.data.normal_()
    own = _MaskedGroupNorm(1, 24, block.eps)
    own.load_state_dict(block.state_dict())
    hidden, mask = torch.randn(3, 24, 9), torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    mask = mask[:, None].expand_as(hidden)
    torch.testing.assert_close(own(hidden, mask), block(hidden, mask), atol=1e-5, rtol=0)
