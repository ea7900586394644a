"""retrieval/base/sound.py: files that other programs wrote are read whole, files that were cut are refused, none costs more than its size.

`tests/sounds` holds files of other programs; its README says which. The others are written here by FFmpeg (PyAV) and libsndfile.
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from retrieval.base.sound import SoundFacts, SoundReader, TruncatedSound, UnreadableSound, mono_blocks

SOUNDS = Path(__file__).parent / "sounds"
RATE = 16_000


def read(path: Path, **options) -> np.ndarray:
    return np.concatenate(list(mono_blocks(path, RATE, **options)))


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("cover_art.mp3", 266_112 / 44_100), ("piped.mp3", 1_324_800 / 44_100), ("piped.flac", 6.0)],
)
def test_a_length_that_is_open_or_estimated_is_no_evidence(name, seconds):
    with SoundReader(SOUNDS / name) as reader:
        assert sum(len(block) for block in reader.blocks(5_000)) == reader.num_frames == round(seconds * reader.sample_rate)
    assert abs(len(read(SOUNDS / name)) - seconds * RATE) <= 1


@pytest.mark.parametrize("excess", [1, 44, 1000])
def test_a_wav_header_may_be_off_by_a_few_bytes(tmp_path, excess):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones(RATE) / 2, RATE)
    content = bytearray(path.read_bytes())
    content[40:44] = (2 * RATE + excess).to_bytes(4, "little")
    path.write_bytes(content)
    assert len(read(path)) == RATE
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(TruncatedSound):
        read(path)


def test_channels_that_cancel_leave_the_first_one(tmp_path):
    time = np.arange(5 * RATE) / RATE
    left = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left], axis=1), RATE)
    facts = SoundFacts()
    assert np.abs(read(tmp_path / "a.wav", facts=facts) - left).max() < 1e-3 and facts.took_one_channel
    soundfile.write(tmp_path / "b.wav", np.stack([left, np.where(time < 1, left, -left)], axis=1), RATE)
    facts = SoundFacts()
    assert np.abs(read(tmp_path / "b.wav", facts=facts)[: RATE // 2] - left[: RATE // 2]).max() < 1e-3 and not facts.took_one_channel


def test_a_rate_that_no_recording_has(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(60_000), 1)
    with pytest.raises(UnreadableSound, match="1 Hz"):
        read(tmp_path / "a.wav")
