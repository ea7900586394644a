"""Sound and pictures of the clips that a report shows, as data URIs: each clip once.

Sound is MP3 of variable rate (about 40 kbit/s at 16 kHz), which all browsers play; the spectrogram
is a PNG of at most 480 columns; the attention is a line over time. Together they stay below
MAX_BYTES: later clips are left out, and the page says so.

Letters: T frames.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image

from retrieval.base.progress import bar
from retrieval.data import ClipSplit
from retrieval.evaluation.attention import attention_curve, listen
from retrieval.evaluation.score_matrix import Scorer

MAX_BYTES = 24 * 2**20  # of all data URIs of a page
# Hz; higher sample rates are reduced to the last
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000)
MP3_COMPRESSION = 0.5  # of 0 to 1
MAX_COLUMNS = 480  # of a spectrogram


@dataclass(frozen=True)
class Curve:
    """Attention over the part of a clip that the model hears, as an SVG path.

    Its box is num_points x 100.
    """

    path: str
    num_points: int
    uniform: float  # y of an equal share
    peak: float  # highest weight, 1 is an equal share


@dataclass
class ClipMedia:
    """Media of a clip; None: left out."""

    seconds: float  # that the model hears
    picture: str | None = None
    sound: str | None = None
    curves: dict[int, Curve] = field(default_factory=dict)  # by query


@dataclass
class Media:
    """Media of all clips that a report shows."""

    clips: dict[int, ClipMedia]
    attention_of: str | None  # the checkpoint whose attention is drawn; None: none of them has any
    num_left_out: int  # clips without their sound or picture for lack of room


def gather_media(
    scorer: Scorer, split: ClipSplit, captions: Sequence[str], shown: dict[int, list[int]]
) -> Media:
    """Make the sounds, spectrograms and attention curves of clips.

    The first of several checkpoints that has attention draws it.

    Args:
        scorer: The checkpoints.
        split: The scored clips.
        captions: N queries.
        shown: Clip -> queries that it is shown for, in the order of the page.
    """
    if not shown:
        return Media({}, None, 0)
    attention_of = None
    for checkpoint in scorer.checkpoints:
        model = None  # frees it before the next one is loaded
        model = scorer.load(checkpoint)
        if model.pooling.keeps_frames:
            attention_of = str(checkpoint)
            break
    if attention_of is None and len(scorer.checkpoints) > 1:
        model = None
        model = scorer.load(scorer.checkpoints[0])
    model.to(scorer.accelerator.device)
    clips, num_bytes, num_left_out = {}, 0, 0
    with bar(total=len(shown), desc="sounds and pictures", unit="clip", leave=False) as progress:
        for clip, queries in shown.items():
            samples = split.read(clip, 0, round(model.clip_seconds * model.sample_rate))
            texts = [captions[query] for query in queries]
            log_mel, weights, seconds = listen(model, torch.from_numpy(samples), texts)
            media = clips[clip] = ClipMedia(seconds)
            if weights is not None:
                media.curves = dict(zip(queries, map(attention_path, weights), strict=True))
            picture, sound = spectrogram_uri(log_mel), sound_uri(samples, split.sample_rate)
            for name, uri in (("picture", picture), ("sound", sound)):
                if num_bytes + len(uri) <= MAX_BYTES:
                    setattr(media, name, uri)
                    num_bytes += len(uri)
            num_left_out += media.picture is None or media.sound is None
            progress.update()
    return Media(clips, attention_of, num_left_out)


def attention_path(weights: np.ndarray) -> Curve:
    """Draw weights (T,), which share the time evenly and sum to 1, as steps."""
    levels, _ = attention_curve(weights)
    top = max(2.0, 1.08 * float(levels.max()))
    heights = (100 * (1 - levels / top)).tolist()
    steps = " ".join(f"V{height:.1f}H{place}" for place, height in enumerate(heights, 1))
    return Curve(f"M0,100 {steps} V100Z", len(levels), 100 * (1 - 1 / top), float(levels.max()))


def spectrogram_uri(log_mel: np.ndarray) -> str:
    """Draw a log-mel spectrogram (mels, columns) as PNG, low bands at the bottom."""
    # digital silence would take up most of the colours
    low, high = np.percentile(log_mel, [5, 99.8])
    columns = np.array_split(log_mel, min(log_mel.shape[1], MAX_COLUMNS), axis=1)
    levels = np.stack([column.mean(axis=1) for column in columns], axis=1)
    shades = np.clip((levels - low) / max(high - low, 1e-6), 0, 1)[::-1]
    image = Image.fromarray(np.round(63 * shades).astype(np.uint8), mode="P")
    palette = 255 * matplotlib.colormaps["magma"](np.linspace(0, 1, 64))[:, :3]
    image.putpalette(palette.astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def sound_uri(samples: np.ndarray, sample_rate: int) -> str:
    """Encode float32 (S,) in [-1, 1] as MP3."""
    rate = next((rate for rate in MP3_RATES if rate >= sample_rate), MP3_RATES[-1])
    if rate != sample_rate:
        waveform = torch.from_numpy(samples)
        samples = torchaudio.functional.resample(waveform, sample_rate, rate).numpy()
    file = io.BytesIO()
    settings = {"bitrate_mode": "VARIABLE", "compression_level": MP3_COMPRESSION}
    soundfile.write(file, samples, rate, format="MP3", **settings)
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
