"""Owns the seeding of libraries that draw from global generators."""

from __future__ import annotations

import random  # noqa: TID251 (only to put its state back after libraries that draw from it)
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from bandits.core.rng import Key


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Seed the global generators for a library that draws from them, and put them back as they were."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 (libraries draw from it)
    seed = int(key.generators()[0].integers(2**31))
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
