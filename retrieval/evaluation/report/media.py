"""Sound and pictures of the clips that a report shows, as data URIs: each clip once, however often
it occurs.

Sound is MP3 of variable rate (about 40 kbit/s at 16 kHz), which all browsers play; the spectrogram
is a PNG of at most 480 columns; TAP's attention is a line over time. Together they stay below
MAX_BYTES: what comes after is left out, and the page says so.

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
from retrieval.evaluation.attention import listen
from retrieval.evaluation.score_matrix import Scorer
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import load_pretrained

MAX_BYTES = 24 * 2**20  # of all data URIs of a page
# Hz; what is sampled higher goes to the last
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000)
MP3_COMPRESSION = 0.5  # of 0 to 1
MAX_COLUMNS, MAX_POINTS = 480, 240  # of a spectrogram, of an attention curve


@dataclass(frozen=True)
class Curve:
    """Attention over the heard part of a clip, as an SVG path in a box of num_points x 100."""

    path: str
    num_points: int
    uniform: float  # y of an equal share
    peak: float  # highest weight, 1 is an equal share


@dataclass
class ClipMedia:
    """What a page embeds of a clip; None was left out."""

    seconds: float  # that the model hears
    picture: str | None = None
    sound: str | None = None
    curves: dict[int, Curve] = field(default_factory=dict)  # by query


@dataclass
class Media:
    """Of all clips that a report shows."""

    clips: dict[int, ClipMedia]
    attention_of: str | None  # the checkpoint whose attention is drawn; None: none of them has any
    num_left_out: int  # clips without their sound or picture for lack of room


def gather_media(
    scorer: Scorer, split: ClipSplit, captions: Sequence[str], shown: dict[int, list[int]]
) -> Media:
    """shown: clip -> the queries that it is shown for; the first clips have the room. Of several
    checkpoints the first with attention draws it.
    """
    if not shown:
        return Media({}, None, 0)
    model, attention_of = _drawing_model(scorer)
    clips, num_bytes, num_left_out = {}, 0, 0
    with bar(total=len(shown), desc="sounds and pictures", unit="clip", leave=False) as progress:
        for clip, queries in shown.items():
            samples = split.read(clip, 0, round(model.clip_seconds * model.sample_rate))
            log_mel, weights, seconds = listen(
                model, torch.from_numpy(samples), [captions[query] for query in queries]
            )
            media = clips[clip] = ClipMedia(seconds)
            if weights is not None:
                media.curves = {
                    query: attention_curve(row) for query, row in zip(queries, weights, strict=True)
                }
            for name, uri in (
                ("picture", spectrogram_uri(log_mel)),
                ("sound", sound_uri(samples, split.sample_rate)),
            ):
                if num_bytes + len(uri) <= MAX_BYTES:
                    setattr(media, name, uri)
                    num_bytes += len(uri)
            num_left_out += media.picture is None or media.sound is None
            progress.update()
    return Media(clips, attention_of, num_left_out)


def _drawing_model(scorer: Scorer) -> tuple[DualEncoder, str | None]:
    """The first checkpoint with attention, or else the first one; one is in memory at a time."""
    for checkpoint in scorer.checkpoints:
        model = load_pretrained(checkpoint, scorer.text_encoder)
        if model.pooling.keeps_frames:
            return model.to(scorer.accelerator.device), str(checkpoint)
    if len(scorer.checkpoints) > 1:
        model = None  # leaves the memory before the next one is loaded
        model = load_pretrained(scorer.checkpoints[0], scorer.text_encoder)
    return model.to(scorer.accelerator.device), None


def attention_curve(weights: np.ndarray) -> Curve:
    """weights (T,) that share the time evenly and sum to 1; more than MAX_POINTS are averaged."""
    relative = np.array(
        [
            part.mean()
            for part in np.array_split(weights * len(weights), min(len(weights), MAX_POINTS))
        ]
    )
    top = max(2.0, 1.08 * float(relative.max()))
    heights = 100 * (1 - relative / top)
    steps = " ".join(f"V{height:.1f}H{place}" for place, height in enumerate(heights.tolist(), 1))
    return Curve(
        f"M0,100 {steps} V100Z",
        len(relative),
        100 * (1 - 1 / top),
        float(weights.max() * len(weights)),
    )


def spectrogram_uri(log_mel: np.ndarray) -> str:
    """PNG of a log-mel spectrogram (mels, columns), low bands at the bottom."""
    # digital silence would take up most of the colours
    low, high = np.percentile(log_mel, [5, 99.8])
    columns = np.array_split(log_mel, min(log_mel.shape[1], MAX_COLUMNS), axis=1)
    levels = np.stack([column.mean(axis=1) for column in columns], axis=1)
    shades = np.clip((levels - low) / max(high - low, 1e-6), 0, 1)[::-1]
    image = Image.fromarray(np.round(63 * shades).astype(np.uint8), mode="P")
    image.putpalette(
        (255 * matplotlib.colormaps["magma"](np.linspace(0, 1, 64))[:, :3])
        .astype(np.uint8)
        .tobytes()
    )
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return _data_uri("image/png", file.getvalue())


def sound_uri(samples: np.ndarray, sample_rate: int) -> str:
    """MP3 of float32 (S,) in [-1, 1]."""
    rate = next((rate for rate in MP3_RATES if rate >= sample_rate), MP3_RATES[-1])
    if rate != sample_rate:
        samples = torchaudio.functional.resample(
            torch.from_numpy(samples), sample_rate, rate
        ).numpy()
    file = io.BytesIO()
    soundfile.write(
        file,
        samples,
        rate,
        format="MP3",
        bitrate_mode="VARIABLE",
        compression_level=MP3_COMPRESSION,
    )
    return _data_uri("audio/mpeg", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
