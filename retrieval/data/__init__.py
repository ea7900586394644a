"""From the Arrow cache to batches: clips, (clip, caption) pairs, collation.

Loaded when its names are first used: data_prep takes the schema and needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cache": ["Cache", "ClipSplit", "as_float", "open_cache"],
        "joined": ["JoinedSplit"],
        "moments": ["MomentQuery"],
        "pairs": [
            "EpochBatches",
            "PairDataset",
            "check_batch_size",
            "collate_clips",
            "collate_pairs",
            "make_clip_loader",
            "make_loader",
            "num_steps_per_epoch",
            "shared_memory_warnings",
            "usable_workers",
        ],
    },
)
