"""Vectors of a split as one Parquet file, for pandas, datasets or a vector database.

One row per clip, then one row per caption:

    kind        "audio" or "caption"
    clip_id     of the clip, or of the clip that the caption was written for
    file_name   of that clip
    caption     null for a clip
    vector      float32 (D,)
    frames      with `frames`: a clip's frames, a list of (D,); null for a caption

Vectors are compared as the file's metadata `similarity` says: by cosine, or for PE-Audio by dot
product. With mean, average or transformer pooling that is the model's score. With TAP
the vector of a clip is TAP's output for equal attention to all frames, as in the first stage of
retrieval.search.two_stage: it finds candidates, and model.score(text, frames, mask) ranks them.
Pretrained models (pooling average): dot products are their scores; CLAP's vectors have length 1.

Letters: B clips, T frames, N captions, D = dim.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from retrieval.base.errors import UserError
from retrieval.base.files import atomic_writer
from retrieval.base.progress import bar
from retrieval.data import ClipSplit, make_clip_loader
from retrieval.models.dual_encoder import DualEncoder, check_finite, eval_mode

GROUP_ROWS = 1024  # rows of a row group without frames
GROUP_NUMBERS = 2**24  # float32 numbers of a row group with frames: 64 MiB in memory


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
    """Write the vectors of a split, row group by row group.

    Args:
        model: On any device.
        split: Its clips are read up to model.clip_seconds.
        path: The file; it is there whole or not at all.
        metadata: Written to the file's schema, beside facts about model and split.
        frames: Also write the frames of each clip.
        audio_batch_size: Clips encoded at once.
        text_batch_size: Captions encoded at once.
        num_workers: Loader processes.

    Returns:
        The number of rows.

    Raises:
        UserError: Vectors are not finite, the disk is full, or the pooling keeps no frames.
    """
    if frames and not model.pooling.keeps_frames:
        raise UserError(
            "--frames is for models with TAP: this one makes a single vector of a clip, which is in"
            " the file anyway"
        )
    check_finite(model, "the model", "export")
    dim = model.dim
    facts = {
        "split": split.name,
        "split_fingerprint": split.fingerprint(),
        "dim": dim,
        "pooling": model.architecture["pooling"]["name"],
        "sample_rate": model.sample_rate,
        "clip_seconds": model.clip_seconds,
        "similarity": model.pooling.similarity,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    text, vector = pyarrow.string(), pyarrow.list_(pyarrow.float32(), dim)
    fields = [("kind", text), ("clip_id", text), ("file_name", text), ("caption", text)]
    fields += [("vector", vector)] + [("frames", pyarrow.list_(vector))] * frames
    schema = pyarrow.schema(fields).with_metadata(
        metadata | {name: str(value) for name, value in facts.items()}
    )
    num_rows = len(split) + sum(map(len, split.captions))
    with (
        eval_mode(model),
        torch.no_grad(),
        bar(total=num_rows, desc=f"embedding {split.name}", unit="row") as progress,
        atomic_writer(path) as file,
        # file is a text file, file.buffer takes its bytes
        pyarrow.parquet.ParquetWriter(file.buffer, schema) as writer,
    ):
        clips = _audio_rows(model, split, frames, audio_batch_size, num_workers)
        captions = _caption_rows(model, split, frames, text_batch_size)
        for rows in chain(clips, captions):
            writer.write_table(pyarrow.table(rows, schema=schema))
            progress.update(len(rows["vector"]))
    return num_rows


def num_bytes(model: DualEncoder, split: ClipSplit, frames: bool) -> int:
    """Return the bytes of the vectors of `split` before Parquet compresses them."""
    num_vectors = len(split) + sum(map(len, split.captions))
    if frames:
        num_samples = torch.from_numpy(split.num_samples)
        num_vectors += int(model.windows.num_valid_frames(num_samples).sum())
    return 4 * model.dim * num_vectors


def _audio_rows(
    model: DualEncoder, split: ClipSplit, frames: bool, batch_size: int, num_workers: int
) -> Iterator[dict[str, pyarrow.Array]]:
    """Yield columns of row groups of clips, in the order of the split."""
    device, first = next(model.parameters()).device, 0
    loader = make_clip_loader(
        split, range(len(split)), model.windows.clip_samples, batch_size, num_workers
    )
    vectors: list[Tensor] = []  # (b, D) each
    sequences: list[Tensor] = []  # (t, D) each, of a clip's valid frames
    for waveform, lengths in loader:
        # (b, T, D), (b, T)
        encoded, mask = model.encode_audio(waveform.to(device, non_blocking=True), lengths)
        vectors.append(_vectors_of(model, model.pooling.clip_vectors(encoded, mask), "clips"))
        if frames:
            sequences += [clip[valid].cpu() for clip, valid in zip(encoded, mask, strict=True)]
        num_clips = sum(map(len, vectors))
        num_numbers = sum(map(Tensor.numel, sequences))
        is_last = first + num_clips == len(split)
        if is_last or num_clips >= GROUP_ROWS or num_numbers >= GROUP_NUMBERS:
            clips, captions = range(first, first + num_clips), [None] * num_clips
            kept = sequences if frames else None
            yield _columns("audio", split, clips, captions, torch.cat(vectors), kept)
            first, vectors, sequences = first + num_clips, [], []


def _caption_rows(
    model: DualEncoder, split: ClipSplit, frames: bool, batch_size: int
) -> Iterator[dict[str, pyarrow.Array]]:
    """Yield columns of row groups of captions, clip by clip."""
    pairs = [
        (clip, caption) for clip, captions in enumerate(split.captions) for caption in captions
    ]
    for first in range(0, len(pairs), GROUP_ROWS):
        clips, captions = zip(*pairs[first : first + GROUP_ROWS], strict=True)
        parts = [
            model.encode_text(list(captions[start : start + batch_size]))
            for start in range(0, len(captions), batch_size)
        ]
        vectors = _vectors_of(model, torch.cat(parts), "captions")
        sequences = [None] * len(captions) if frames else None
        yield _columns("caption", split, clips, captions, vectors, sequences)


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
        # None: no list, not an empty one
        starts = [None if count is None else end for count, end in zip(counts, ends, strict=False)]
        offsets = pyarrow.array([*starts, ends[-1]], pyarrow.int32())
        columns["frames"] = pyarrow.ListArray.from_arrays(offsets, values)
    return columns


def _vectors(vectors: Tensor) -> pyarrow.Array:
    """Turn (n, D) into n lists of D numbers, without a Python object a number."""
    numbers = pyarrow.array(vectors.flatten().numpy())
    return pyarrow.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])


def _vectors_of(model: DualEncoder, vectors: Tensor, what: str) -> Tensor:
    """Return finite vectors (n, D) of `what` on the CPU, as they are compared."""
    if model.pooling.pools_projected:
        vectors = model.pooling.directions(vectors)
    vectors = vectors.float().cpu()
    if not bool(vectors.isfinite().all()):
        raise UserError(
            f"vectors of {what} are not finite (NaN or infinite): the weights overflow; export an"
            " earlier checkpoint"
        )
    return vectors
