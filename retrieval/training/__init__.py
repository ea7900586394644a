"""The training loop and its parts. Loaded when its names are first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"loop": ["train", "train_step"]}
)
