"""Find the moments of one file that sentences describe, without an index.

    from retrieval.search import find_moments

    found = find_moments("meeting.wav", ["a phone rings", "applause"], "runs/tap/best")
    for moment in found.moments[0]:
        print(f"{moment.start:.1f}-{moment.end:.1f} s  {moment.score:.3f}")

The file is read as a stream and may be of any length. Only the curves grow with it (1 MB an hour
and sentence, at 25 frames a second). Letters: N sentences, T frames, D = dim.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.base.decoder_process import mono_blocks, read_frames
from retrieval.base.errors import UserError
from retrieval.base.launch import make_accelerator
from retrieval.base.progress import bar
from retrieval.base.sound import UnreadableSound
from retrieval.models.dual_encoder import DualEncoder
from retrieval.moments.locator import RUN_PROBABILITY, Located, Locator
from retrieval.moments.spans import MOST_MOMENTS
from retrieval.search.hits import Hit
from retrieval.search.model_identity import load_model
from retrieval.search.queries import check_query, short
from retrieval.search.sound import check_finite


@dataclass(frozen=True)
class FoundInFile(Located):
    """Where sentences are heard in a file; see Located.

    Attributes:
        queries: The N sentences.
        method: head, contribution or runs.
        is_silent: True if all samples are zero; the answers then mean nothing.
    """

    queries: tuple[str, ...]
    method: str
    is_silent: bool

    def hits(self, name: str) -> list[list[Hit]]:
        """Return the answers of each sentence in the form of an index's, one for each moment.

        name: of the file.
        """
        return [
            [
                Hit(
                    rank,
                    moment.score,
                    name,
                    moment.start,
                    moment.end,
                    (moment,),
                    self.seconds,
                    None,
                    moment.end - moment.start,
                )
                for rank, moment in enumerate(own, 1)
            ]
            for own in self.moments
        ]

    def notes(self) -> Iterator[str]:
        """Yield warnings about the answers."""
        if self.is_silent:
            yield "all samples of the file are zero: the answers mean nothing"
        elif self.method == "runs":
            for query, moments in zip(self.queries, self.moments, strict=True):
                if moments[0].score <= RUN_PROBABILITY:
                    yield (
                        f"{short(query)!r}: no frame has a probability above {RUN_PROBABILITY}; the"
                        " answer is the most probable place"
                    )


def find_moments(
    file: str | Path,
    queries: Sequence[str],
    model: DualEncoder | str | Path,
    *,
    method: str | None = None,
    k: int = MOST_MOMENTS,
    text_encoder: str | Path | None = None,
    mixed_precision: str = "auto",
) -> FoundInFile:
    """Find the moments of a file that each of several sentences describes.

    Args:
        file: A sound file of any format that an index takes, and of any length.
        queries: At least one sentence.
        model: A model, or a checkpoint of any kind that load_pretrained takes.
        method: head, contribution or runs, see Locator; None: the first of head, runs and
            contribution that the model has.
        k: Largest number of moments of a sentence.
        text_encoder: Tokenizer of a .ckpt, a folder or hub name; None: roberta-large.
        mixed_precision: Of the encoder: auto, no, bf16 or fp16.

    Returns:
        Moments and curves of each sentence.

    Raises:
        UserError: The file cannot be read to its end, the model cannot find moments, or knows no
            word of a sentence.
    """
    if isinstance(queries, str) or not queries:
        raise UserError("queries must be a list of one sentence or more")
    if k < 1:
        raise UserError(f"k must be at least 1, found {k}")
    file = Path(file)
    seconds = announced_seconds(file)  # before the model is loaded
    if not isinstance(model, DualEncoder):
        model = load_model(model, text_encoder)
    model = model.eval()
    autocast = make_accelerator(mixed_precision, several=False).autocast
    locator = Locator(model, method, autocast, most=k)
    for query in queries:
        check_query(query, model.text_encoder)
    stream = _Stream(file, model.sample_rate, seconds)
    located = locator.locate(locator.encode_text(queries), locator.hear(stream.blocks()))
    return FoundInFile(
        **vars(located), queries=tuple(queries), method=locator.method, is_silent=not stream.peak
    )


def announced_seconds(file: Path) -> float | None:
    """Return the length in the header of a file, if it says one. Raises UserError."""
    with _explained(file):
        _, info = read_frames(file, 0, 0)
    return None if info.num_frames is None else info.num_frames / info.sample_rate


class _explained:
    """Turns a decoder's errors into a UserError; `heard`: seconds read before the error."""

    def __init__(self, file: Path):
        self.file, self.heard = file, 0.0

    def __enter__(self) -> "_explained":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{self.file} does not exist") from None
        if isinstance(error, IsADirectoryError) or (error and os.path.isdir(self.file)):
            raise UserError(
                f"{self.file} is a folder; give a file, or index the folder: python -m"
                " retrieval.search index"
            ) from None
        if isinstance(error, OSError):
            raise UserError(f"{self.file} cannot be read: {error.strerror}") from None
        if isinstance(error, UnreadableSound):
            place = f", {self.heard:.1f} s from its beginning" if self.heard else ""
            raise UserError(f"{self.file} {error}{place}; repair or convert it") from None


class _Stream:
    """The samples of a file, with a progress bar.

    Attributes:
        peak: Largest absolute value so far.
    """

    def __init__(self, file: Path, sample_rate: int, seconds: float | None):
        self.file, self.sample_rate, self.seconds = file, sample_rate, seconds
        self.peak = 0.0

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks float32 (S,) at the rate of the model. Raises UserError."""
        total = None if self.seconds is None else round(self.seconds)
        num_samples = 0
        with (
            _explained(self.file) as explained,
            bar(total=total, desc="listening", unit="second") as progress,
        ):
            for block in mono_blocks(self.file, self.sample_rate):
                check_finite(block)
                self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))
                yield block
                num_samples += len(block)
                explained.heard = num_samples / self.sample_rate
                progress.update(int(explained.heard) - progress.n)
