"""One audio file -> the bytes of the cache's `audio` column: mono, resampled, 16 bit.

Another process decodes all formats of retrieval.base.sound, block by block, so memory is the size
of the 16-bit result. Damaged files raise UnreadableSound with the reason. Float samples become
round(32768 x), so a 16-bit file at the cache's rate is kept bit for bit. A clip that is cut is not
read further: the first minute of a recording of ten hours costs a minute.

MP3 is written with LAME's best variable bit rate (V0) and its gapless header, from which a decoder
knows delay and padding: it gives back as many samples as went in, none of them shifted.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile

from retrieval.base.decoder_process import mono_blocks
from retrieval.base.sound import SoundFacts, UnreadableSound
from retrieval.data.schema import FLAC, MP3, PCM

MAX_SAMPLES = 1 << 30  # 2 GB of 16 bit in memory: 9 hours at 32 kHz


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
    """Decode `path` to mono at `sample_rate` (Hz), cut after `max_seconds`, and encode with
    `codec`, a key of CODECS. Raises UnreadableSound.
    """
    facts, blocks, num_samples, num_clipped = SoundFacts(), [], 0, 0
    try:
        for block in mono_blocks(path, sample_rate, max_seconds, facts, quality="VHQ"):
            samples, clipped = _quantise(block)
            blocks.append(samples)
            num_samples += len(samples)
            num_clipped += clipped
            if num_samples > MAX_SAMPLES:
                raise UnreadableSound(
                    f"is longer than {MAX_SAMPLES / sample_rate / 3600:.1f} h, too long for a clip:"
                    " cut it with --max-seconds"
                )
    except OSError as error:
        raise UnreadableSound(f"cannot be read: {error.strerror}") from None
    samples = np.concatenate(blocks)  # (S,)
    return EncodedClip(
        CODECS[codec](samples, sample_rate),
        samples.size,
        num_clipped,
        facts.is_cut,
        facts.took_one_channel,
    )


def _quantise(samples: np.ndarray) -> tuple[np.ndarray, int]:
    scaled = np.rint(samples * np.float32(32768))
    # +1.0 itself is full scale and one step above int16: not worth counting.
    num_clipped = int(np.count_nonzero(np.abs(scaled) > 32768))
    return np.clip(scaled, -32768, 32767).astype(np.int16), num_clipped


def _to_pcm(samples: np.ndarray, sample_rate: int) -> bytes:
    return samples.astype("<i2", copy=False).tobytes()


def _to_flac(samples: np.ndarray, sample_rate: int) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return target.getvalue()


def _to_mp3(samples: np.ndarray, sample_rate: int) -> bytes:
    target = io.BytesIO()
    best = {"compression_level": 0.0, "bitrate_mode": "VARIABLE"}
    soundfile.write(target, samples, sample_rate, format="MP3", subtype="MPEG_LAYER_III", **best)
    num_readable = soundfile.info(io.BytesIO(target.getvalue())).frames
    assert num_readable == samples.size, (
        f"{samples.size} samples written as MP3, {num_readable} announced"
    )
    return target.getvalue()


CODECS: dict[str, Callable[[np.ndarray, int], bytes]] = {
    PCM: _to_pcm,
    FLAC: _to_flac,
    MP3: _to_mp3,
}
RATES_OF_CODEC = {
    MP3: (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
}  # Hz; the others take any
