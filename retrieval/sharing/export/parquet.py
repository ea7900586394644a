"""The vectors of a split as one Parquet file, a row a clip and then a row a caption, for pandas,
datasets or a vector database.

    kind        "audio" or "caption"
    clip_id     of the clip, or of the clip that the caption was written for
    file_name   of that clip
    caption     null for a clip
    vector      float32 (D,)
    frames      with `frames`: a clip's frames, a list of (D,); null for a caption

Vectors are compared by cosine. With mean or transformer pooling that is the model's score. With TAP
the vector of a clip is what TAP gives when it listens to all frames alike, the first stage of
retrieval.search.two_stage: it finds candidates, and model.score(text, frames, mask) ranks them.

Letters: B clips, T frames, N captions, D = dim.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from retrieval.base.errors import UserError
from retrieval.base.files import atomic_writer
from retrieval.base.progress import bar
from retrieval.data import ClipSplit, make_clip_loader
from retrieval.models.dual_encoder import DualEncoder, check_finite
from retrieval.models.inference import eval_mode

GROUP_ROWS = 1024  # rows of a row group without frames
GROUP_NUMBERS = 2**24  # float32 numbers of a row group with frames, 64 MiB: what is held at once


def export_parquet(
    model: DualEncoder,
    split: ClipSplit,
    path: Path,
    metadata: dict[str, str],
    *,
    frames: bool = False,
    audio_batch_size: int = 16,
    text_batch_size: int = 256,
    num_workers: int = 0,
) -> int:
    """Write `path`, row group by row group, and return the number of rows; it is there whole or not
    at all.

    The file's schema holds `metadata` and what is known of model and split. Clips longer than
    model.clip_seconds: their first clip_seconds. Raises UserError for vectors that are not finite,
    a full disk, and for `frames` of a pooling that keeps none.
    """
    if frames and not model.pooling.keeps_frames:
        raise UserError(
            "--frames is for models with TAP: this one makes a single vector of a clip, which is in"
            " the file anyway"
        )
    check_finite(model, "the model", "export")
    dim = model.audio_projection.out_features
    schema = _schema(dim, frames).with_metadata(metadata | _metadata(model, split, dim))
    num_rows = len(split) + sum(map(len, split.captions))
    with (
        eval_mode(model),
        torch.no_grad(),
        bar(total=num_rows, desc=f"embedding {split.name}", unit="row") as progress,
        atomic_writer(path) as file,
        # the bytes beneath the text file
        pyarrow.parquet.ParquetWriter(file.buffer, schema) as writer,
    ):
        for rows in _audio_rows(model, split, frames, audio_batch_size, num_workers):
            writer.write_table(pyarrow.table(rows, schema=schema))
            progress.update(len(rows["vector"]))
        for rows in _caption_rows(model, split, frames, text_batch_size):
            writer.write_table(pyarrow.table(rows, schema=schema))
            progress.update(len(rows["vector"]))
    return num_rows


def num_bytes(model: DualEncoder, split: ClipSplit, frames: bool) -> int:
    """What the vectors of `split` take, before Parquet compresses them."""
    num_vectors = len(split) + sum(map(len, split.captions))
    if frames:
        num_vectors += int(
            model.windows.num_valid_frames(torch.from_numpy(split.num_samples)).sum()
        )
    return 4 * model.audio_projection.out_features * num_vectors


def _schema(dim: int, frames: bool) -> pyarrow.Schema:
    vector = pyarrow.list_(pyarrow.float32(), dim)
    fields = [(name, pyarrow.string()) for name in ("kind", "clip_id", "file_name", "caption")] + [
        ("vector", vector)
    ]
    return pyarrow.schema(fields + ([("frames", pyarrow.list_(vector))] if frames else []))


def _metadata(model: DualEncoder, split: ClipSplit, dim: int) -> dict[str, str]:
    about = {
        "split": split.name,
        "split_fingerprint": split.fingerprint(),
        "dim": dim,
        "pooling": model.architecture["pooling"]["name"],
        "sample_rate": model.sample_rate,
        "clip_seconds": model.clip_seconds,
        "compare_by": "cosine",
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    return {name: str(value) for name, value in about.items()}


def _audio_rows(
    model: DualEncoder, split: ClipSplit, frames: bool, batch_size: int, num_workers: int
) -> Iterator[dict[str, pyarrow.Array]]:
    """Columns of the rows of some clips, in the order of the split."""
    device, first = next(model.parameters()).device, 0
    vectors: list[Tensor] = []  # (b, D) each
    sequences: list[Tensor] = []  # (t, D) each, of a clip's valid frames
    for waveform, lengths in make_clip_loader(
        split, range(len(split)), model.windows.clip_samples, batch_size, num_workers
    ):
        # (b, T, D), (b, T)
        encoded, mask = model.encode_audio(waveform.to(device, non_blocking=True), lengths)
        vectors.append(_finite(model.pooling.clip_vectors(encoded, mask), "clips"))
        if frames:
            sequences += [clip[valid].cpu() for clip, valid in zip(encoded, mask, strict=True)]
        num_clips = sum(map(len, vectors))
        is_last = first + num_clips == len(split)
        if is_last or num_clips >= GROUP_ROWS or sum(map(Tensor.numel, sequences)) >= GROUP_NUMBERS:
            clips = range(first, first + num_clips)
            yield _columns(
                "audio",
                split,
                clips,
                [None] * num_clips,
                torch.cat(vectors),
                sequences if frames else None,
            )
            first, vectors, sequences = first + num_clips, [], []


def _caption_rows(
    model: DualEncoder, split: ClipSplit, frames: bool, batch_size: int
) -> Iterator[dict[str, pyarrow.Array]]:
    """Columns of the rows of some captions, clip by clip."""
    pairs = [
        (clip, caption) for clip, captions in enumerate(split.captions) for caption in captions
    ]
    for first in range(0, len(pairs), GROUP_ROWS):
        clips, captions = zip(*pairs[first : first + GROUP_ROWS], strict=True)
        parts = [
            model.encode_text(list(captions[start : start + batch_size]))
            for start in range(0, len(captions), batch_size)
        ]
        yield _columns(
            "caption",
            split,
            clips,
            captions,
            _finite(torch.cat(parts), "captions"),
            [None] * len(captions) if frames else None,
        )


def _columns(
    kind: str,
    split: ClipSplit,
    clips: Sequence[int],
    captions: Sequence[str | None],
    vectors: Tensor,
    sequences: Sequence[Tensor | None] | None,
) -> dict[str, pyarrow.Array]:
    columns = {
        "kind": pyarrow.array([kind] * len(clips)),
        "clip_id": pyarrow.array([split.clip_ids[clip] for clip in clips]),
        "file_name": pyarrow.array([split.file_names[clip] for clip in clips]),
        "caption": pyarrow.array(captions, pyarrow.string()),
        "vector": _vectors(vectors),
    }
    if sequences is not None:
        flat = [sequence for sequence in sequences if sequence is not None]
        counts = [None if sequence is None else len(sequence) for sequence in sequences]
        values = _vectors(torch.cat(flat) if flat else vectors[:0])
        ends = torch.tensor([0] + [count or 0 for count in counts]).cumsum(0).tolist()
        offsets = [None if count is None else start for count, start in zip(counts, ends)] + [
            ends[-1]
        ]  # None: no list, not an empty one
        columns["frames"] = pyarrow.ListArray.from_arrays(
            pyarrow.array(offsets, pyarrow.int32()), values
        )
    return columns


def _vectors(vectors: Tensor) -> pyarrow.Array:
    """(n, D) as n lists of D numbers, without a Python object a number."""
    return pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(vectors.flatten().numpy()), vectors.shape[1]
    )


def _finite(vectors: Tensor, what: str) -> Tensor:
    vectors = vectors.float().cpu()
    if not bool(vectors.isfinite().all()):
        raise UserError(
            f"vectors of {what} are not finite (NaN or infinite): the weights overflow; export an"
            " earlier checkpoint"
        )
    return vectors
