"""data_prep/cache/audio_codec.py and its counterpart, ClipSplit.read: to the sample.

The plain cases (PCM, FLAC, resampling, damaged files) stand in test_build_clotho.py and
test_data.py.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.cache import audio_codec
from retrieval.base import sound
from retrieval.base.errors import UserError
from retrieval.data import ClipSplit, open_cache
from tests.conftest import SAMPLE_RATE, write_rows

# of a noise with which the negative control of seeking in MP3 shows more than 0.01
RNG = np.random.default_rng(2)


def gated_noise(seconds: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Noise, 1 s of every 3 s, float64 (S,).

    At a variable bit rate the frames after a silence lean on bits of earlier ones.
    """
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return np.where(time % 3 < 2, 0.0, 0.2 * RNG.standard_normal(time.size))


def chirp(num_samples: int) -> np.ndarray:
    """Sweep from 200 to 2000 Hz, int16 (S,)."""
    time = np.arange(num_samples) / SAMPLE_RATE
    seconds = max(num_samples / SAMPLE_RATE, 1e-3)
    return np.round(12_000 * np.sin(2 * np.pi * (200 * time + 900 * time**2 / seconds))).astype(
        np.int16
    )


def encode(samples: np.ndarray, codec: str, folder: Path) -> bytes:
    soundfile.write(folder / "clip.wav", samples, SAMPLE_RATE, subtype="PCM_16")
    return audio_codec.encode_clip(str(folder / "clip.wav"), SAMPLE_RATE, codec).audio


def split_of(folder: Path, audio: list[bytes], num_samples: list[int], codec: str) -> ClipSplit:
    rows = [
        {
            "clip_id": f"development/{i}",
            "file_name": f"{i}.wav",
            "audio": audio[i],
            "num_samples": num_samples[i],
            "captions": ["A sound."],
        }
        for i in range(len(audio))
    ]
    write_rows(folder / "cache", {"development": rows}, codec=codec)
    return open_cache(folder / "cache", SAMPLE_RATE).split("development")


# ---- MP3


def test_mp3_gives_back_every_sample_where_it_was(tmp_path):
    sizes = [1, 575, 576, 577, 1151, 1152, 1153, 20_000, 48_017]
    chirps = [chirp(size) for size in sizes]
    encoded = [encode(samples, "mp3", tmp_path) for samples in chirps]
    clips = split_of(tmp_path, encoded, sizes, "mp3")
    for index, samples in enumerate(chirps):
        found = clips.read(index)
        assert found.dtype == np.float32 and len(found) == sizes[index]
        if len(samples) > 5_000:
            error = found - samples / 32768
            shifted = found[1:] - samples[:-1] / 32768  # one sample late would be seen
            assert np.abs(error).max() < 0.03 < 0.2 < np.abs(shifted).max()


@pytest.mark.parametrize("sample_rate", audio_codec.RATES_OF_CODEC["mp3"])
def test_every_rate_of_mp3_keeps_the_number_of_samples(sample_rate):
    samples = np.round(gated_noise(3.3, sample_rate) * 32767).astype(np.int16)
    audio = audio_codec.encode(samples, sample_rate, "mp3")
    decoded, rate = soundfile.read(io.BytesIO(audio))
    assert (rate, len(decoded)) == (sample_rate, len(samples)) and len(audio) < samples.nbytes / 3


def test_a_part_of_an_mp3_clip_equals_the_whole_exactly(tmp_path):
    samples = np.round(gated_noise(12.0) * 32767).astype(np.int16)
    audio = encode(samples, "mp3", tmp_path)
    clips = split_of(tmp_path, [audio], [len(samples)], "mp3")
    whole = clips.read(0)
    worst_of_seeking = 0.0
    drawn = RNG.integers(0, len(samples), (20, 2)).tolist()
    for start, stop in [
        (0, 1_000),
        (17, 17),
        (100_000, 150_000),
        (101_234, None),
        (40_001, 300_000),
        *drawn,
    ]:
        assert np.array_equal(clips.read(0, start, stop), whole[start:stop])
        sought = soundfile.read(io.BytesIO(audio), start=start, stop=stop, dtype="float32")[0]
        if sought.size:
            worst_of_seeking = max(
                worst_of_seeking, float(np.abs(sought - whole[start:stop]).max())
            )
    # the negative control: a decoder that starts within the clip gives other samples
    assert worst_of_seeking > 0.01


def test_mp3_that_overshoots_full_scale_is_brought_back(tmp_path):
    samples = np.clip(20_000 * RNG.standard_normal(32_000), -32768, 32767).astype(np.int16)
    audio = encode(samples, "mp3", tmp_path)
    assert np.abs(soundfile.read(io.BytesIO(audio))[0]).max() > 1.05
    assert np.abs(split_of(tmp_path, [audio], [len(samples)], "mp3").read(0)).max() == 1


def test_an_mp3_file_is_decoded_as_if_in_one_piece(tmp_path, monkeypatch):
    path = tmp_path / "source.mp3"
    soundfile.write(
        path,
        gated_noise(12.0),
        SAMPLE_RATE,
        format="MP3",
        bitrate_mode="VARIABLE",
        compression_level=0.5,
    )
    expected = np.clip(soundfile.read(path, dtype="float32")[0] * np.float32(32768), -32768, 32767)
    monkeypatch.setattr(sound, "BLOCK_FRAMES", 10_000)
    # in this process, where the size of a block can be set
    monkeypatch.setattr(audio_codec, "mono_blocks", sound.mono_blocks)
    found = audio_codec.encode_clip(str(path), SAMPLE_RATE, "pcm_s16le")
    assert (
        found.num_samples == 12 * SAMPLE_RATE
        and np.abs(np.frombuffer(found.audio, "<i2") - expected).max() < 0.51
    )  # rounded
    # the negative control seeks between blocks
    blocks = np.concatenate(list(soundfile.blocks(path, 10_000, dtype="float32")))
    assert np.abs(32768 * blocks - expected).max() > 300


def test_a_cut_off_mp3_file_is_not_used(tmp_path):
    path = tmp_path / "source.mp3"
    soundfile.write(path, gated_noise(12.0), SAMPLE_RATE, format="MP3")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(audio_codec.UnreadableSound, match="truncated"):
        audio_codec.encode_clip(str(path), SAMPLE_RATE, "pcm_s16le")


# ---- clips that are cut


@pytest.mark.parametrize("source_rate", [SAMPLE_RATE, 44_100])
def test_a_cut_clip_is_the_beginning_of_the_whole_one(tmp_path, source_rate):
    path = str(tmp_path / "long.wav")
    soundfile.write(path, gated_noise(9.0, source_rate), source_rate)
    whole = audio_codec.encode_clip(path, SAMPLE_RATE, "pcm_s16le")
    cut = audio_codec.encode_clip(path, SAMPLE_RATE, "pcm_s16le", max_seconds=2.5)
    assert cut.is_cut and not whole.is_cut and cut.num_samples == 2.5 * SAMPLE_RATE
    difference = np.frombuffer(whole.audio, "<i2")[: cut.num_samples].astype(int) - np.frombuffer(
        cut.audio, "<i2"
    )
    assert np.abs(difference).max() <= 1  # a step of 16 bits
    same = audio_codec.encode_clip(path, SAMPLE_RATE, "pcm_s16le", max_seconds=9.0)
    assert not same.is_cut and same.audio == whole.audio


def test_nothing_beyond_the_cut_is_read(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, RNG.uniform(-0.5, 0.5, 60 * SAMPLE_RATE), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(audio_codec.UnreadableSound):
        audio_codec.encode_clip(str(path), SAMPLE_RATE, "flac")
    assert (
        audio_codec.encode_clip(str(path), SAMPLE_RATE, "flac", max_seconds=5.0).num_samples
        == 5 * SAMPLE_RATE
    )


# ---- damaged bytes in a cache


@pytest.mark.parametrize("codec", ["pcm_s16le", "flac", "mp3"])
@pytest.mark.parametrize("damage", ["cut", "empty", "zeros"])
def test_damaged_audio_in_a_cache_is_one_line(tmp_path, codec, damage):
    samples = chirp(60_000)
    audio = encode(samples, codec, tmp_path)
    if codec == "pcm_s16le" and damage == "zeros":
        pytest.skip("silence is good PCM")
    broken = {"cut": audio[: len(audio) // 2 + 1], "empty": b"", "zeros": bytes(len(audio))}[damage]
    clips = split_of(tmp_path, [audio, broken], [60_000, 60_000], codec)
    assert len(clips.read(0)) == 60_000
    with pytest.raises(UserError) as caught:
        clips.read(1)
    message = str(caught.value)
    assert (
        "clip '1.wav' in split 'development'" in message
        and "is damaged" in message
        and "--overwrite" in message
    )
    assert f"cache {tmp_path / 'cache'}" in message and "\n" not in message


@pytest.mark.parametrize("sample_rate", [0, -1, "32000", None, 32000.5])
def test_a_sample_rate_that_is_none(tmp_path, sample_rate):
    row = {
        "clip_id": "development/0",
        "file_name": "0.wav",
        "audio": b"\0\0",
        "num_samples": 1,
        "captions": ["A sound."],
    }
    write_rows(tmp_path / "cache", {"development": [row]}, sample_rate=sample_rate)
    with pytest.raises(UserError, match="cache.json cannot be understood .*sample_rate is"):
        open_cache(tmp_path / "cache")
