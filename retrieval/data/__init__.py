"""From the Arrow cache to batches: clips, (clip, caption) pairs, collation."""

from retrieval.data.cache import Cache, ClipSplit, as_float, open_cache
from retrieval.data.joined import JoinedSplit
from retrieval.data.pairs import (
    EpochBatches,
    PairDataset,
    check_batch_size,
    collate_clips,
    collate_pairs,
    make_clip_loader,
    make_loader,
    num_steps_per_epoch,
    shared_memory_warnings,
    usable_workers,
)

__all__ = [
    "Cache",
    "ClipSplit",
    "EpochBatches",
    "JoinedSplit",
    "PairDataset",
    "as_float",
    "check_batch_size",
    "collate_clips",
    "collate_pairs",
    "make_clip_loader",
    "make_loader",
    "num_steps_per_epoch",
    "open_cache",
    "shared_memory_warnings",
    "usable_workers",
]
