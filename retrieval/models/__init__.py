"""From a batch to frames, texts and scores. Loaded when its names are first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["bound_memory", "build_model", "build_model_without_weights", "warnings_of"],
        "dual_encoder": ["DualEncoder"],
    },
)
