"""The one place where random draws begin."""

import hashlib

import numpy as np


def derive_seed(seed: int, *keys: str | int) -> int:
    """A 31-bit seed for the draw that `keys` name, for example (stage, epoch, step).

    The same seed and keys give the same number on every machine; different keys give unrelated ones, so an
    interrupted run that starts again at (epoch, step) draws what it would have drawn.
    """
    text = "/".join(str(key) for key in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") & 0x7FFFFFFF


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """NumPy's generator for the draw that `keys` name."""
    return np.random.default_rng(derive_seed(seed, *keys))
