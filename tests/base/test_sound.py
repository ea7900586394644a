"""Files of other programs are read to their end, cut ones are refused, no header costs memory.

`tests/base/sounds` holds files of other programs; its README says which. The others are written
here by FFmpeg's encoders (PyAV) and libsndfile.
"""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from retrieval.base import sound, sound_kinds
from retrieval.base.sound import (
    SoundFacts,
    SoundReader,
    TruncatedSound,
    UnreadableSound,
    mono_blocks,
)
from retrieval.base.sound_files import find_audio
from tests.conftest import ROOT
from tests.corpora import truncate, write_by_ffmpeg

SOUNDS = Path(__file__).parent / "sounds"
RATE = 16_000
RNG = np.random.default_rng(0)


def chirp(seconds: float = 2.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Sweep from 200 to 1500 Hz in a little noise, float32 (S, C)."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 650 * time / seconds) * time)
    return (wave[:, None] + RNG.normal(0, 0.003, (len(time), channels))).astype(np.float32)


def read(path: Path, rate: int = RATE, **options) -> np.ndarray:
    return np.concatenate(list(mono_blocks(path, rate, **options)))


def read_all(path: Path) -> np.ndarray:
    """Float32 (S, C)."""
    with SoundReader(path) as reader:
        return np.concatenate([*reader.blocks(5_000), np.zeros((0, reader.channels), np.float32)])


def likeness(found: np.ndarray, expected: np.ndarray, max_delay: int = 0) -> float:
    """Cosine similarity of two sounds (S,), of the best of the delays up to `max_delay` samples."""
    size = 1 << (len(found) + len(expected)).bit_length()
    products = np.fft.irfft(np.fft.rfft(found, size) * np.fft.rfft(expected, size).conj(), size)
    best = max(products[: max_delay + 1].max(), products[-max_delay - 1 :].max())
    return float(best / np.sqrt((found**2).sum() * (expected**2).sum()))


def error_of(path: Path) -> str:
    with pytest.raises(UnreadableSound) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) not in message
    return message


# ---- everything is read to its end


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("cover_art.mp3", 266_112 / 44_100), ("piped.mp3", 1_324_800 / 44_100), ("piped.flac", 6.0)],
)
def test_a_length_that_is_open_or_estimated_is_no_evidence(name, seconds):
    with SoundReader(SOUNDS / name) as reader:
        assert (
            sum(len(block) for block in reader.blocks(5_000))
            == reader.num_frames
            == round(seconds * reader.sample_rate)
        )
    assert abs(len(read(SOUNDS / name)) - seconds * RATE) <= 1


# File name, FFmpeg's encoder and muxer, the rate, and the samples that encoder and container may
# add: padding, delay.
FFMPEG = [
    ("a.m4a", "aac", "ipod", 44_100, 2048),
    ("a.m4b", "aac", "ipod", 44_100, 2048),
    ("a.mp4", "aac", "mp4", 48_000, 2048),
    ("a.mov", "pcm_s16le", "mov", 44_100, 0),
    ("alac.m4a", "alac", "ipod", 44_100, 0),
    ("a.3gp", "libopencore_amrnb", "3gp", 8_000, 400),
    ("a.aac", "aac", "adts", 44_100, 2048),
    ("a.amr", "libopencore_amrnb", "amr", 8_000, 400),
    ("a.ac3", "ac3", "ac3", 48_000, 2048),
    ("a.eac3", "eac3", "eac3", 48_000, 2048),
    ("a.wma", "wmav2", "asf", 44_100, 4096),
    ("a.webm", "libopus", "webm", 48_000, 960),
    ("a.mka", "flac", "matroska", 44_100, 0),
    ("a.mkv", "pcm_s16le", "matroska", 44_100, 0),
    ("a.avi", "mp2", "avi", 44_100, 1152 * 2),
    ("a.mp2", "mp2", "mp2", 44_100, 1152 * 2),
    ("a.ts", "mp2", "mpegts", 44_100, 1152 * 2),
    ("a.wv", "wavpack", "wv", 44_100, 0),
    ("a.tta", "tta", "tta", 44_100, 0),
    ("flac.oga", "flac", "ogg", 44_100, 0),
    ("adpcm.wav", "adpcm_yamaha", "wav", 44_100, 2048),
    ("mp3.wav", "libmp3lame", "wav", 44_100, 1152 * 3),
    ("a.voc", "pcm_u8", "voc", 8_000, 0),
    ("a.sox", "pcm_s32le", "sox", 44_100, 0),
    ("a.flv", "libmp3lame", "flv", 44_100, 1152 * 3),
    ("a.rm", "ac3", "rm", 44_100, 2048),
]
# a part of such a file is a whole one
WITHOUT_LENGTH = {"a.aac", "a.amr", "a.ac3", "a.eac3", "a.mp2", "a.ts"}


@pytest.mark.parametrize(
    ("name", "codec", "container", "rate", "added"), FFMPEG, ids=[row[0] for row in FFMPEG]
)
def test_what_ffmpeg_writes(tmp_path, name, codec, container, rate, added):
    wave = chirp(3.0, rate)
    path = write_by_ffmpeg(tmp_path / name, wave, rate, codec, container)
    with SoundReader(path) as reader:
        assert (reader.sample_rate, type(reader._source).__name__) == (rate, "_Ffmpeg")
        lost = 2048 if codec == "wmav2" else 1  # FFmpeg's encoder keeps the last frame to itself
        assert len(wave) - lost <= reader.num_frames <= len(wave) + added
        whole = np.concatenate(list(reader.blocks(5_000)))
        assert len(whole) == reader.num_frames
        # The delay of an encoder whose container does not tell it is part of the sound.
        assert likeness(whole[:, 0], wave[:, 0], max_delay=2_200) > 0.93
        for first in (
            len(whole) - 500,
            0,
            2 * rate,
            rate // 2,
            *RNG.integers(0, len(whole), 3).tolist(),
        ):
            reader.seek(first)
            np.testing.assert_allclose(
                reader.read(500), whole[first : first + 500], atol=0.03
            )  # AAC and AC-3 fill in noise of their own
    assert abs(len(read(path)) - len(whole) * RATE / rate) <= 2
    truncate(path)
    if name in WITHOUT_LENGTH:
        assert 0.3 < len(read(path)) / (len(whole) * RATE / rate) < 0.7
    else:
        with pytest.raises(UnreadableSound):
            read(path)


SNDFILE = [
    *(
        ("WAV", subtype)
        for subtype in (
            "PCM_U8",
            "PCM_16",
            "PCM_24",
            "PCM_32",
            "FLOAT",
            "DOUBLE",
            "ULAW",
            "IMA_ADPCM",
            "MS_ADPCM",
            "GSM610",
        )
    ),
    *(
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("WAV", "G721_32"),
        ("WAV", "NMS_ADPCM_24"),
        ("W64", "PCM_16"),
        ("W64", "GSM610"),
    ),
    *(
        ("AIFF", "PCM_16"),
        ("AIFF", "ALAW"),
        ("AIFF", "DWVW_16"),
        ("AU", "PCM_16"),
        ("AU", "G723_24"),
        ("CAF", "PCM_16"),
        ("CAF", "ALAC_16"),
    ),
    *(
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("NIST", "PCM_16"),
        ("IRCAM", "PCM_16"),
    ),
]


@pytest.mark.parametrize(("container", "subtype"), SNDFILE)
def test_what_libsndfile_writes(tmp_path, container, subtype):
    wave = chirp(4.0)[:, 0]
    path = tmp_path / "of no ending"
    soundfile.write(path, wave, RATE, format=container, subtype=subtype)
    with SoundReader(path) as reader:
        whole = np.concatenate(list(reader.blocks(5_000)))
        assert (
            len(wave) <= len(whole) == reader.num_frames <= len(wave) + 1024
            and likeness(whole[:, 0], wave) > 0.9
        )
        for first in (len(whole) - 300, 10, *RNG.integers(0, len(whole), 12).tolist()):
            reader.seek(first)
            np.testing.assert_allclose(reader.read(300), whole[first : first + 300], atol=1e-5)
    assert np.array_equal(read(path), whole[:, 0])
    if container != "IRCAM":  # whose header tells no length
        truncate(path)
        with pytest.raises(UnreadableSound):
            read(path)


def test_vorbis_places_are_exact_everywhere(tmp_path):
    """libvorbis misses places near the end, and some of those ahead of where it stands."""
    path = tmp_path / "a.ogg"
    wave = 0.2 * RNG.standard_normal(400_000)
    with soundfile.SoundFile(path, "w", RATE, 1, format="OGG", subtype="VORBIS") as file:
        for start in range(0, len(wave), 50_000):
            file.write(wave[start : start + 50_000])
    whole = read_all(path)
    with SoundReader(path) as reader:
        for first in [*RNG.integers(0, len(whole), 40).tolist(), *range(390_000, 400_000, 1_111)]:
            reader.seek(first)
            assert np.array_equal(reader.read(200), whole[first : first + 200])


def test_a_chained_ogg_is_all_of_its_links(tmp_path):
    parts = []
    for number, rate in enumerate((44_100, 44_100, RATE)):
        soundfile.write(tmp_path / f"{number}.ogg", chirp(1.0, rate)[:, 0], rate)
        parts.append((tmp_path / f"{number}.ogg").read_bytes())
    (tmp_path / "same.ogg").write_bytes(parts[0] + parts[1])
    whole = read_all(tmp_path / "same.ogg")
    assert np.array_equal(
        whole, np.concatenate([read_all(tmp_path / "0.ogg"), read_all(tmp_path / "1.ogg")])
    )
    with SoundReader(tmp_path / "same.ogg") as reader:
        assert reader.num_frames == len(whole) == 88_200
        for first in (50_000, 100, 44_000):
            reader.seek(first)
            assert np.array_equal(reader.read(500), whole[first : first + 500])
    (tmp_path / "other.ogg").write_bytes(parts[0] + parts[2])  # of another rate
    assert abs(len(read(tmp_path / "other.ogg")) - 2 * RATE) <= 2
    (tmp_path / "cut.ogg").write_bytes((parts[0] + parts[1])[:-1000])
    assert "truncated" in error_of(tmp_path / "cut.ogg")


@pytest.mark.parametrize(("codec", "container"), [("flac", "ogg"), ("libopus", "webm")])
def test_places_in_files_that_were_joined(tmp_path, codec, container):
    """Times restart in the second file: a jump to one of them must not land in the first."""
    parts = [
        write_by_ffmpeg(tmp_path / str(n), chirp(6.0) * [1, -0.3][n], RATE, codec, container)
        for n in range(2)
    ]
    path = tmp_path / "both"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    whole = read_all(path)
    with SoundReader(path) as reader:
        assert len(whole) > 11.9 * reader.sample_rate
        for place in [4.5, 2.5, 3.5, *RNG.permutation(np.arange(0.3, 11.5, 0.5))]:
            first = round(place * reader.sample_rate)
            reader.seek(first)
            assert np.abs(reader.read(2_000) - whole[first : first + 2_000]).max() < 2e-3, place


def test_places_in_a_speex_file_that_was_broken_off():
    whole = read_all(SOUNDS / "broken_off.spx")
    with SoundReader(SOUNDS / "broken_off.spx") as reader:
        for first in RNG.integers(0, len(whole), 40):
            reader.seek(int(first))
            found = reader.read(len(whole))
            assert len(found) == len(whole) - first and np.abs(found - whole[first:]).max() < 2e-3


@pytest.mark.parametrize(
    ("codec", "container"), [("tta", "tta"), ("wavpack", "wv"), ("ac3", "ac3"), ("flac", "flac")]
)
def test_an_id3_tag_before_other_kinds(tmp_path, codec, container):
    """Programs that tag MP3 files put the same tag before others."""
    rate = 48_000
    path = write_by_ffmpeg(tmp_path / "a", chirp(1.0, rate), rate, codec, container)
    expected = read_all(path)
    path.write_bytes(id3v2(5_000).replace(b"\xff\xfb\x90\0", bytes(4)) + path.read_bytes())
    assert np.array_equal(read_all(path), expected)


def test_aac_that_begins_within_a_frame(tmp_path):
    """So do recordings of a radio stream."""
    path = write_by_ffmpeg(tmp_path / "a.aac", chirp(5.0), RATE, "aac", "adts")
    num_frames = len(read_all(path))
    path.write_bytes(path.read_bytes()[100:])
    assert num_frames - 2 * 1024 <= len(read_all(path)) < num_frames


def test_streams_that_change_their_rate_go_on_at_the_first_one(tmp_path):
    first = write_by_ffmpeg(
        tmp_path / "a.aac", chirp(1.0, 44_100, channels=2), 44_100, "aac", "adts"
    )
    second = write_by_ffmpeg(tmp_path / "b.aac", chirp(1.0, 22_050), 22_050, "aac", "adts")
    (tmp_path / "both.aac").write_bytes(first.read_bytes() + second.read_bytes())
    with SoundReader(tmp_path / "both.aac") as reader:
        found = sum(len(block) for block in reader.blocks(5_000))
        assert (reader.sample_rate, reader.channels) == (44_100, 2) and found == reader.num_frames
        assert abs(found - (len(read_all(first)) + 2 * len(read_all(second)))) < 50


def test_sound_among_pictures_and_other_sound(tmp_path):
    """A film with a picture track and two sound tracks: the first sound is read."""
    import av

    with av.open(str(tmp_path / "film.mkv"), "w") as target:
        video = target.add_stream("mpeg4", rate=10)
        video.width = video.height = 64
        tracks = [target.add_stream("pcm_s16le", rate=RATE) for _ in range(2)]
        for track in tracks:
            track.layout = "mono"
        for number in range(10):
            target.mux(
                video.encode(
                    av.VideoFrame.from_ndarray(
                        np.full((64, 64, 3), 20 * number, np.uint8), format="rgb24"
                    )
                )
            )
            for track, level in zip(tracks, (3_000, -9_000), strict=True):
                frame = av.AudioFrame.from_ndarray(
                    np.full((1, RATE // 10), level, np.int16), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts = RATE, number * RATE // 10
                target.mux(track.encode(frame))
        target.mux(video.encode(None))
    assert np.array_equal(read(tmp_path / "film.mkv"), np.full(RATE, 3_000 / 32_768, np.float32))
    with av.open(str(tmp_path / "silent.mkv"), "w") as target:
        video = target.add_stream("mpeg4", rate=10)
        video.width = video.height = 64
        target.mux(
            video.encode(
                av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            )
        )
        target.mux(video.encode(None))
    assert "without sound" in error_of(tmp_path / "silent.mkv")


# ---- MP3


def id3v2(size: int) -> bytes:
    return (
        b"ID3\x03\0\0"
        + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
        + b"\xff\xfb\x90\0"
        + bytes(size - 4)
    )


def ape_tag(size: int) -> bytes:
    return RNG.bytes(size) + b"APETAGEX" + struct.pack("<IIII", 2000, size + 32, 1, 0) + bytes(8)


MP3_AROUND = {
    "plain": lambda mp3: mp3,
    "picture first": lambda mp3: id3v2(100_000) + mp3,
    "two tags first": lambda mp3: id3v2(3_000) + id3v2(20_000) + mp3,
    "tag last": lambda mp3: mp3 + b"TAG" + bytes(125),
    "picture last": lambda mp3: mp3 + ape_tag(50_000),
    "tags all over": lambda mp3: id3v2(5_000) + mp3 + ape_tag(30_000) + b"TAG" + bytes(125),
    "noise first": lambda mp3: RNG.bytes(3_000) + mp3,
    "noise last": lambda mp3: mp3 + RNG.bytes(3_000),
    "zeros last": lambda mp3: mp3 + bytes(5_000),
}


@pytest.mark.parametrize("around", MP3_AROUND)
@pytest.mark.parametrize("xing", ["1", "0"])
def test_mp3_with_anything_around_it(tmp_path, around, xing, capfd):
    wave = np.concatenate(
        [np.zeros((RATE, 1), np.float32), chirp(5.0)]
    )  # libsndfile's estimate rests on the first frames, which are small
    path = write_by_ffmpeg(
        tmp_path / "a.mp3", wave, RATE, "libmp3lame", "mp3", write_xing=xing, id3v2_version="0"
    )
    expected = read_all(path)
    assert len(wave) <= len(expected) <= len(wave) + (0 if xing == "1" else 2 * 1152)
    path.write_bytes(MP3_AROUND[around](path.read_bytes()))
    found = read_all(path)
    assert len(found) == len(expected) and np.abs(found - expected).max() < 1e-4
    assert capfd.readouterr().err == ""


def test_mp3_files_that_were_joined(tmp_path):
    """The Xing frame of the first one counts its own frames only."""
    for name, seconds in (("a", 2.0), ("b", 3.0)):
        write_by_ffmpeg(tmp_path / f"{name}.mp3", chirp(seconds), RATE, "libmp3lame", "mp3")
    (tmp_path / "both.mp3").write_bytes(
        (tmp_path / "a.mp3").read_bytes() + (tmp_path / "b.mp3").read_bytes()
    )
    assert 5.0 <= len(read(tmp_path / "both.mp3")) / RATE < 5.3
    first, second = ((tmp_path / f"{name}.mp3").read_bytes() for name in "ab")
    (tmp_path / "picture.mp3").write_bytes(first + b"TAG" + bytes(125) + id3v2(100_000) + second)
    assert 5.0 <= len(read(tmp_path / "picture.mp3")) / RATE < 5.3


def test_noise_in_the_middle_of_an_mp3_costs_a_moment(tmp_path):
    path = write_by_ffmpeg(
        tmp_path / "a.mp3", chirp(5.0), RATE, "libmp3lame", "mp3", write_xing="0"
    )
    content = path.read_bytes()
    path.write_bytes(content[:10_000] + RNG.bytes(2_000) + content[10_000:])
    assert 4.7 < len(read(path)) / RATE < 5.3


# ---- headers that are a little wrong, open, or absurd


def wav(data: bytes, **changed) -> bytes:
    form = {
        "form": b"RIFF",
        "tag": 1,
        "channels": 1,
        "rate": RATE,
        "width": 2,
        "length": len(data),
        "before": b"",
        "after": b"",
    } | changed
    fmt = struct.pack(
        "<4sIHHIIHH",
        b"fmt ",
        16,
        form["tag"],
        form["channels"],
        form["rate"],
        form["rate"] * form["width"],
        form["width"],
        16,
    )
    body = (
        b"WAVE"
        + form["before"]
        + fmt
        + struct.pack("<4sI", b"data", form["length"])
        + data
        + form["after"]
    )
    return form["form"] + struct.pack("<I", form.get("riff", len(body))) + body


PCM = np.round(10_000 * np.sin(np.arange(RATE) / 10)).astype("<i2").tobytes()
DS64 = struct.pack("<4sIQQQI", b"ds64", 28, 2 * RATE + 72, 2 * RATE, RATE, 0)
GOOD_WAVS = {
    "one byte too many": wav(PCM, length=2 * RATE + 1),
    "a header too many": wav(PCM, length=2 * RATE + 44),
    "a kilobyte too many": wav(PCM, length=2 * RATE + 1000),
    "open length": wav(PCM, length=0xFFFFFFFF),
    "open length of sox": wav(PCM, length=0x7FFFF024, riff=0x7FFFF048),
    "never closed": wav(PCM, length=0, riff=0),
    "chunk after": wav(PCM, after=b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + bytes(18)),
    "noise after": wav(PCM, after=RNG.bytes(777)),
    "odd chunk before": wav(PCM, before=b"LIST" + struct.pack("<I", 5) + b"hello\0"),
    "RF64": wav(PCM, form=b"RF64", riff=0xFFFFFFFF, before=DS64, length=0xFFFFFFFF),
    "BW64": wav(PCM, form=b"BW64", riff=0xFFFFFFFF, before=DS64, length=0xFFFFFFFF),
}


@pytest.mark.parametrize("name", GOOD_WAVS)
def test_wav_headers_that_are_not_quite_right(tmp_path, name):
    (tmp_path / "a.wav").write_bytes(GOOD_WAVS[name])
    assert np.array_equal(read(tmp_path / "a.wav"), np.frombuffer(PCM, "<i2") / np.float32(32768))


@pytest.mark.parametrize("length", [0, 1_000, 2 * RATE - 4])
def test_a_wav_whose_length_has_wrapped(tmp_path, monkeypatch, length):
    """Recorders without RF64 write the lower 32 bits of the length.

    Here it is 12 bits: a test of 4 GB takes long.
    """
    monkeypatch.setattr(sound_kinds, "WRAPPED", 1 << 12)
    path = tmp_path / "a.wav"
    path.write_bytes(wav(PCM + PCM, length=length))
    assert np.array_equal(read(path), np.frombuffer(PCM + PCM, "<i2") / np.float32(32768))
    with SoundReader(path) as reader:
        reader.seek(RATE + 100)
        assert np.array_equal(
            reader.read(50)[:, 0], np.frombuffer(PCM, "<i2")[100:150] / np.float32(32768)
        )


def test_a_real_wav_of_more_than_4_gb_is_read_beyond_its_header(tmp_path):
    path, size = tmp_path / "a.wav", 2**32 + 2 * RATE
    path.write_bytes(wav(PCM, length=size % 2**32))
    os.truncate(path, size + 44)  # a file with a hole takes no room
    with SoundReader(path) as reader:
        assert reader.announced_frames is None and reader.read(RATE).any()
        reader.seek(RATE + 10_000)
        assert len(reader.read(1_000)) == 1_000


def test_an_ogg_of_nothing_but_beginnings_takes_no_time(tmp_path):
    page = b"OggS\0\2" + bytes(20) + b"\0"
    (tmp_path / "a.ogg").write_bytes(page * 40_000)
    with open(tmp_path / "a.ogg", "rb") as file:
        assert len(sound_kinds.ogg_links(file)[0].codecs) == sound_kinds.MOST_STREAMS
    error_of(tmp_path / "a.ogg")


BAD_WAVS = {
    "half is gone": (wav(PCM[:RATE], length=2 * RATE), "truncated"),
    "two kilobytes are gone": (wav(PCM[:-2000], length=2 * RATE), "truncated"),
    "all is gone": (wav(b"", length=2 * RATE), "truncated"),
    "half of an RF64 is gone": (
        wav(PCM[:RATE], form=b"RF64", before=DS64, length=0xFFFFFFFF),
        "truncated",
    ),
    "no samples": (wav(b""), "no samples"),
    "no samples, but a chunk": (
        wav(b"", after=b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + bytes(18)),
        "no samples",
    ),
    "1 Hz": (wav(PCM, rate=1), "1 Hz"),
    "999 Hz": (wav(PCM, rate=999), "999 Hz"),
    "769 kHz": (wav(PCM, rate=769_000), "769000 Hz"),
    "0 Hz": (wav(PCM, rate=0), "cannot be decoded"),
    "65 channels": (wav(PCM, channels=65, width=130), "65 channels"),
    "no channels": (wav(PCM, channels=0), "cannot be decoded"),
    "no such coding": (wav(PCM, tag=0x4242), "cannot be decoded"),
    "nothing": (b"", "0 bytes"),
    "a page": (b"<!DOCTYPE html><html><title>404</title></html>", "web page"),
    "noise": (RNG.bytes(70_000), "is not a sound file"),
    "a playlist": (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:1/a.ts\n",
        "playlist",
    ),
}


@pytest.mark.parametrize("name", BAD_WAVS)
def test_bad_files_are_one_line(tmp_path, name, capfd):
    content, expected = BAD_WAVS[name]
    for file_name in ("a.wav", "a.mp3", "a.m4a"):
        (tmp_path / file_name).write_bytes(content)
        assert expected in error_of(tmp_path / file_name)
    assert capfd.readouterr().err == ""


def test_a_length_that_is_open_in_other_containers(tmp_path):
    samples = np.frombuffer(PCM, "<i2").astype(">i2").tobytes()
    caf = (
        b"caff\0\1\0\0"
        + struct.pack(">4sQd4sIIIII", b"desc", 32, RATE, b"lpcm", 0, 2, 1, 1, 16)
        + struct.pack(">4sqI", b"data", -1, 0)
    )
    for name, head in (
        ("a.au", b".snd" + struct.pack(">IIIII", 24, 0xFFFFFFFF, 3, RATE, 1)),
        ("a.caf", caf),
    ):
        (tmp_path / name).write_bytes(head + samples)
        assert np.array_equal(read(tmp_path / name), np.frombuffer(PCM, "<i2") / np.float32(32768))
    wave = chirp(1.0)
    # as a browser records them: neither length nor index
    for name, codec in (("a.webm", "libopus"), ("a.mka", "aac")):
        path = write_by_ffmpeg(tmp_path / name, wave, 48_000, codec, "matroska", live="1")
        assert len(read_all(path)) >= len(wave)
        path.write_bytes(path.read_bytes() + RNG.bytes(500))
        assert len(read_all(path)) >= len(wave)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "truncated" in error_of(path)


def test_few_samples(tmp_path):
    for size in (1, 2, 3):
        soundfile.write(tmp_path / "a.wav", np.full(size, 0.5), RATE)
        assert np.array_equal(read(tmp_path / "a.wav"), np.full(size, 0.5, np.float32))
        soundfile.write(tmp_path / "a.flac", np.full(size, 0.5), RATE)
        assert len(read(tmp_path / "a.flac", rate=48_000)) == 3 * size


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a file" in error_of(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(UnreadableSound):
        read(tmp_path / "folder.wav")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.wav")


def test_blocks_are_bounded_in_their_output(tmp_path):
    soundfile.write(tmp_path / "slow.wav", np.zeros(20_000), 1_000)
    blocks = list(mono_blocks(tmp_path / "slow.wav", 192_000))
    assert (
        max(map(len, blocks)) <= sound.MAX_BLOCK_SAMPLES and sum(map(len, blocks)) == 20_000 * 192
    )
    soundfile.write(tmp_path / "wide.wav", np.zeros((20_000, 64)), RATE)
    with SoundReader(tmp_path / "wide.wav") as reader:
        assert max(block.size for block in reader.blocks(1 << 30)) <= sound.MAX_BLOCK_SAMPLES


def test_neither_decoder_prints(tmp_path):
    """In a process of its own, because a library writes to file descriptor 2, not to sys.stderr."""
    write_by_ffmpeg(tmp_path / "a.m4a", chirp(2.0), RATE, "aac", "ipod", movflags="faststart")
    write_by_ffmpeg(tmp_path / "b.mp3", chirp(2.0), RATE, "libmp3lame", "mp3")
    for name in ("a.m4a", "b.mp3"):
        content = bytearray((tmp_path / name).read_bytes())
        (tmp_path / f"half {name}").write_bytes(content[: len(content) // 2])
        if name == "a.m4a":
            content[len(content) // 2 : len(content) // 2 + 2_000] = RNG.bytes(2_000)
            (tmp_path / f"damaged {name}").write_bytes(content)
    (tmp_path / "junk.mp3").write_text("no sound at all " * 1000)
    script = (
        "import sys\nfrom pathlib import Path\nfrom retrieval.base.sound import UnreadableSound,"
        " mono_blocks\nfor path in sorted(Path(sys.argv[1]).iterdir()):\n    try:\n       "
        " list(mono_blocks(path, 16000))\n    except UnreadableSound:\n        pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# ---- channels that cancel, and clips that are cut


def took_one(path: Path, **options) -> tuple[bool, np.ndarray]:
    facts = SoundFacts()
    samples = read(path, facts=facts, **options)
    return facts.took_one_channel, samples


def test_channels_that_cancel_leave_the_first_one(tmp_path, monkeypatch):
    left = chirp(5.0)[:, 0]
    hiss = RNG.normal(0, 1e-4, (len(left), 2))  # of the recorder: it does not cancel
    pause = np.where(np.arange(len(left)) < 2 * RATE, 0, left)
    path = tmp_path / "a.wav"
    for first in (left, pause):
        soundfile.write(path, np.stack([first, -first], axis=1) + hiss, RATE, subtype="FLOAT")
        results = []
        for block in (1 << 17, 777):
            monkeypatch.setattr(sound, "BLOCK_FRAMES", block)
            one, samples = took_one(path)
            assert one and np.abs(samples - first).max() < 1e-3
            results.append(samples)
        assert np.array_equal(*results)
    # a second of hiss: nothing sounds that could cancel
    cut, samples = took_one(path, max_seconds=1.0)
    assert not cut and len(samples) == RATE
    soundfile.write(path, np.stack([left, np.where(pause == 0, left, -left)], axis=1), RATE)
    one, samples = took_one(path)  # two seconds of it do not cancel: one file, one way
    assert not one and np.abs(samples[: 2 * RATE] - left[: 2 * RATE]).max() < 1e-3


def test_channels_that_cancel_in_a_file_that_does_not_fit(tmp_path, monkeypatch):
    # what is held while channels are judged
    monkeypatch.setattr(sound, "MAX_BLOCK_SAMPLES", 10_000)
    left = chirp(3.0)[:, 0]
    soundfile.write(tmp_path / "a.flac", np.stack([left, -left], axis=1), RATE)
    one, samples = took_one(tmp_path / "a.flac")
    assert one and np.abs(samples - left).max() < 1e-3
    soundfile.write(tmp_path / "silent.flac", np.zeros((3 * RATE, 2)), RATE)
    one, samples = took_one(tmp_path / "silent.flac")
    assert not one and len(samples) == 3 * RATE


@pytest.mark.parametrize("channels", [2, 3])
def test_the_mean_of_channels_is_numpys_to_the_bit(tmp_path, channels):
    wave = np.random.default_rng(channels).uniform(-1, 1, (RATE, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    one, samples = took_one(tmp_path / "a.wav")
    assert not one and np.array_equal(samples, wave.mean(axis=1))


def test_many_channels_of_which_one_sounds_are_averaged(tmp_path):
    wave = np.zeros((RATE, 8), np.float32)
    wave[:, 5] = chirp(1.0)[:, 0]
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    one, samples = took_one(tmp_path / "a.wav")
    assert not one and np.abs(samples - wave.mean(axis=1)).max() < 1e-7


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [("a.mp3", "libmp3lame", "mp3"), ("a.m4a", "aac", "ipod"), ("a.mka", "flac", "matroska")],
)
def test_a_cut_is_the_beginning_of_the_whole(tmp_path, name, codec, container):
    path = write_by_ffmpeg(tmp_path / name, chirp(4.0, 44_100, 2), 44_100, codec, container)
    whole = read(path)
    facts = SoundFacts()
    cut = read(path, max_seconds=1.5, facts=facts)
    assert facts.is_cut and len(cut) == 1.5 * RATE and np.abs(cut - whole[: len(cut)]).max() < 1e-4
    facts = SoundFacts()
    assert np.array_equal(read(path, max_seconds=100, facts=facts), whole) and not facts.is_cut


# ---- what a file is, and which files are found


def test_files_are_found_by_their_ending_and_by_their_first_bytes(tmp_path):
    for name in ("a.wav", "below/b.dat", "below/without", "c.WAVE", ".hidden.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(100), RATE, format="WAV")
    write_by_ffmpeg(tmp_path / "d.bin", chirp(0.5), RATE, "aac", "ipod")
    write_by_ffmpeg(tmp_path / "e.download", chirp(0.5), RATE, "libmp3lame", "mp3")
    for name, text in (
        ("f.txt", "The free world"),
        ("g.txt", "MAC address"),
        ("h.jpg", "\x00\x00\x00\x18ftypheic"),
        ("i", ""),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "junk.mp3").write_text("no sound")  # listed where it is read
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_text("{}")
    soundfile.write(tmp_path / "cache" / "clip.wav", np.zeros(100), RATE)
    found = find_audio(tmp_path, follow_links=False)
    names = [path.relative_to(tmp_path).as_posix() for path in found.paths]
    assert names == [
        "a.wav",
        "c.WAVE",
        "d.bin",
        "e.download",
        "junk.mp3",
        "below/b.dat",
        "below/without",
    ]
    assert found.passed_over == {".txt": 2, ".jpg": 1, "": 2} and "2 .txt" in str(found)
    assert all(
        ending == ending.lower() and ending.startswith(".") for ending in sound_kinds.AUDIO_ENDINGS
    )
    assert len(set(sound_kinds.AUDIO_ENDINGS)) == len(sound_kinds.AUDIO_ENDINGS)


TEXTS = (
    "Запись сделана в лесу около озера, вечером, после дождя. ",
    "ההקלטה נעשתה ביער ליד האגם בערב אחרי הגשם נשמעות ציפורים ",
    "تم التسجيل في الغابة بالقرب من البحيرة في المساء بعد المطر ",
    "Hello, these are notes of today's birds.\r\n",
    "[section]\nkey=1\n",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_no_sound(text):
    """Short UTF-8 of other scripts looks like GSM, and the mark of UTF-16 like an MPEG frame."""
    from io import BytesIO

    for coding in ("utf-8", "utf-8-sig", "utf-16", "cp1251", "koi8-r"):
        content = (20 * text).encode(coding, "replace")
        for size in (20, 66, 70, 91, 92, 99, 120, 200, 500, 2_000):
            for start in range(0, 40, 2) if coding != "utf-16" else (0,):
                assert sound_kinds.kind_of_open(BytesIO(content[start : start + size])) is None, (
                    coding,
                    start,
                    size,
                )


def test_noise_is_no_sound():
    """No signature is so short that noise has it often."""
    from io import BytesIO

    kinds = [sound_kinds.kind_of_open(BytesIO(RNG.bytes(5_000))) for _ in range(300)]
    assert sum(kind is not None for kind in kinds) <= 1


@pytest.mark.parametrize("excess", [1, 44, 1000])
def test_negative_control_more_than_a_few_bytes(tmp_path, excess):
    (tmp_path / "a.wav").write_bytes(wav(PCM[: len(PCM) // 2], length=len(PCM) + excess))
    with pytest.raises(TruncatedSound):
        read(tmp_path / "a.wav")
