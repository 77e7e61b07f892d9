"""Owns randomness: a value that is passed as an argument, never a global state.

A :class:`Key` is a seed and a path of keys.  It has no state: asking twice gives the same numbers, a child of another
key gives independent ones.  A run that was killed in round 17 therefore needs nothing restored to draw round 18.
Every replicate draws from a stream of its own, so replicate 3 sees the same numbers alone or among 64 others.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Key:
    """Random numbers as a pure function of (seed, path, replicate), by numpy's ``SeedSequence``.

    ``replicates=None`` draws without a leading dimension (the language model); a tuple of replicate numbers draws a
    leading dimension of that length.
    """

    seed: int
    replicates: tuple[int, ...] | None = None
    path: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    def fold_in(self, *path: str | int) -> Key:
        """Return an independent source: same seed, longer path (names count by their CRC-32)."""
        numbers = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path)
        return replace(self, path=(*self.path, *numbers))

    def only(self, replicate: int) -> Key:
        """Return the source of one replicate alone, with a leading dimension of 1."""
        if self.replicates is None:
            raise ValueError("this key has no replicates to choose from")
        return replace(self, replicates=(self.replicates[replicate],))

    def generators(self) -> list[np.random.Generator]:
        """Return one fresh numpy generator per replicate (one in all, if there are no replicates)."""
        tails = [()] if self.replicates is None else [(replicate,) for replicate in self.replicates]
        return [np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(*self.path, *t))) for t in tails]

    def torch_generator(self) -> torch.Generator:
        """Return a fresh torch generator on the device, for libraries that take nothing else."""
        word = np.random.SeedSequence(self.seed, spawn_key=self.path).generate_state(1, np.uint64)[0]
        return torch.Generator(self.device).manual_seed(int(word >> np.uint64(1)))

    def _stack(self, draws: list[np.ndarray]) -> Tensor:
        table = draws[0] if self.replicates is None else np.stack(draws)
        return torch.as_tensor(table, dtype=self.dtype, device=self.device)

    def uniform(self, *shape: int) -> Float[Tensor, ...]:
        """Draw uniforms on [0, 1), shape ``(replicates, *shape)``."""
        return self._stack([generator.random(shape) for generator in self.generators()])

    def normal(self, *shape: int) -> Float[Tensor, ...]:
        """Draw standard normals, shape ``(replicates, *shape)``."""
        return self._stack([generator.standard_normal(shape) for generator in self.generators()])
