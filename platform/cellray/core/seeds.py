"""Seeds: every random choice is a pure function of the run's seed and of what it is for."""

import hashlib

import numpy as np


def seed_of(*words: int | str) -> int:
    """Hash words into a seed in [0, 2**63).

    The same words give the same seed on any machine; ``seed_of(7, "plan", 2)`` has nothing in
    common with ``seed_of(7, "plan", 3)``.
    """
    text = "\x1f".join(f"{type(word).__name__}:{word}" for word in words)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*words: int | str) -> np.random.Generator:
    """Give a NumPy generator seeded by `seed_of` these words."""
    return np.random.default_rng(seed_of(*words))
