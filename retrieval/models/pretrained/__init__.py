"""Models and checkpoints of other projects. Loaded when their names are first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "lightning": ["read_lightning"],
        "load": ["exact_name", "load_pretrained", "local_checkpoint"],
        "salsa": ["load_salsa_checkpoint"],
    },
)
