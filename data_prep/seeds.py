"""Random numbers that depend on a key only, not on earlier draws."""

import numpy as np


def generator(*key: int) -> np.random.Generator:
    """Return a generator whose numbers depend on `key` only, such as (seed, split, index)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
