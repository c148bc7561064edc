"""Random numbers that depend on seed, epoch and image alone, so that any worker may draw them.

In:  seed, epoch, index.
Out: a seed for them; the state of python's, numpy's and torch's generators.
Elsewhere: what is drawn (distill.data.augment), the state that last.pth holds (distill.training.state).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def hash_seed(seed: int, epoch: int, index: int) -> int:
    """A 63-bit number that differs for every (seed, epoch, index); the same on every machine."""
    words = np.random.SeedSequence(
        [seed & 0xFFFFFFFF, epoch & 0xFFFFFFFF, index & 0xFFFFFFFF]
    ).generate_state(2)
    return int(words[0]) | int(words[1] & 0x7FFFFFFF) << 32


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch: timm's and torchvision's transforms draw from all three."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def own_random_state() -> Iterator[None]:
    """Put the three generators back afterwards, so that reading images does not change the training's own
    draws.
    """
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.set_rng_state(saved[2])
