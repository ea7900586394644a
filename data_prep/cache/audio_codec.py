"""Encode one audio file as the bytes of the cache's `audio` column: mono, resampled, 16 bit.

Another process decodes all formats of retrieval.base.sound, block by block: memory is the size of
the 16-bit result. Float samples become round(32768 x), so a 16-bit file at the cache's rate is kept
bit for bit. A clip that is cut is not read further: the first minute of a recording of ten hours
costs a minute.

MP3 is written with LAME's best variable bit rate (V0) and its gapless header, from which a decoder
knows delay and padding: it returns as many samples as were written, none of them shifted.
"""

import io
from dataclasses import dataclass

import numpy as np
import soundfile

from retrieval.base.decoder_process import mono_blocks
from retrieval.base.sound import SoundFacts, UnreadableSound
from retrieval.data.schema import FLAC, MP3, PCM

MAX_SAMPLES = 1 << 30  # 2 GB of 16 bit in memory: 9 hours at 32 kHz
RATES_OF_CODEC = {
    MP3: (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
}  # Hz; the others take any
OPTIONS_OF_CODEC = {
    FLAC: {"format": "FLAC", "subtype": "PCM_16"},
    MP3: {
        "format": "MP3",
        "subtype": "MPEG_LAYER_III",
        "compression_level": 0.0,
        "bitrate_mode": "VARIABLE",
    },
}


@dataclass(frozen=True)
class EncodedClip:
    audio: bytes
    num_samples: int  # at the cache's sample rate
    num_clipped: int  # samples beyond [-1, 1], brought back to it
    is_cut: bool  # the file is longer than max_seconds
    took_one_channel: bool  # its channels cancel each other: the first one is kept


def encode_clip(
    path: str, sample_rate: int, codec: str, max_seconds: float | None = None
) -> EncodedClip:
    """Decode a file to mono and encode it for the cache.

    Args:
        path: The file.
        sample_rate: Hz of the cache.
        codec: One of retrieval.data.schema.CODECS.
        max_seconds: Where a longer file is cut.

    Raises:
        UnreadableSound: The file is damaged, no sound, or too long.
    """
    facts, blocks, num_samples, num_clipped = SoundFacts(), [], 0, 0
    try:
        for block in mono_blocks(path, sample_rate, max_seconds, facts, quality="VHQ"):
            samples, num_beyond = _as_int16(block)
            blocks.append(samples)
            num_clipped += num_beyond
            num_samples += len(samples)
            if num_samples > MAX_SAMPLES:
                raise UnreadableSound(
                    f"is longer than {MAX_SAMPLES / sample_rate / 3600:.1f} h, too long for a clip:"
                    " cut it with --max-seconds"
                )
    except OSError as error:
        raise UnreadableSound(f"cannot be read: {error.strerror}") from None
    audio = encode(np.concatenate(blocks), sample_rate, codec)
    return EncodedClip(audio, num_samples, num_clipped, facts.is_cut, facts.took_one_channel)


def encode_samples(samples: np.ndarray, sample_rate: int, codec: str) -> EncodedClip:
    """Encode float32 samples (S,) at the cache's rate with one of retrieval.data.schema.CODECS."""
    samples, num_clipped = _as_int16(samples)
    audio = encode(samples, sample_rate, codec)
    return EncodedClip(audio, len(samples), num_clipped, is_cut=False, took_one_channel=False)


def _as_int16(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Return float samples (S,) as int16, and the number of those beyond [-1, 1]."""
    scaled = np.rint(samples * np.float32(32768))
    # +1.0 itself is full scale and one step above int16: not worth counting
    num_clipped = int(np.count_nonzero(np.abs(scaled) > 32768))
    return np.clip(scaled, -32768, 32767).astype(np.int16), num_clipped


def encode(samples: np.ndarray, sample_rate: int, codec: str) -> bytes:
    """Encode int16 samples (S,) with one of retrieval.data.schema.CODECS."""
    if codec == PCM:
        return samples.astype("<i2", copy=False).tobytes()
    target = io.BytesIO()
    soundfile.write(target, samples, sample_rate, **OPTIONS_OF_CODEC[codec])
    num_readable = soundfile.info(io.BytesIO(target.getvalue())).frames
    assert num_readable == samples.size, f"{codec}: {num_readable} of {samples.size} samples"
    return target.getvalue()
