"""Owns random linear maps of gradients, block by block, that preserve inner products in expectation.

A *block* is one weight matrix, whose gradients may be given as matrices or flat.  One key gives one map, for all rounds
and replicates.  Knows nothing of networks or language models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.core.rows import Dense

Shapes = Sequence[tuple[int, int]]
SJLT_NONZEROS = 4


class Sketch(ABC):
    """A linear map ``R^dim -> R^size`` of vectors that come in blocks; abstract."""

    size: int

    @abstractmethod
    def add(self, out: Tensor, block: int, values: Tensor) -> None:
        """Add the images of one block's vectors to the rows of ``out``, ``(*r, n, size)``."""

    def __call__(self, rows: Dense) -> Dense:
        """Project rows that are one block."""
        out = rows.values.new_zeros((*rows.values.shape[:-1], self.size))
        self.add(out, 0, rows.values)
        return Dense(out)


@dataclass(frozen=True, eq=False)
class CountSketch(Sketch):
    """Sparse Johnson-Lindenstrauss transform: each coordinate goes, with a random sign, to ``nonzeros`` buckets.

    ``S = s^{-1/2} Σ_{j<s} (signed bucket map j)``; ``E⟨Sa, Sb⟩ = ⟨a, b⟩`` and, for ``s = 1``, the variance is at most
    ``(‖a‖²‖b‖² + ⟨a, b⟩²) / size`` (Charikar et al. 2002; Kane and Nelson 2014).  Cost ``O(n dim s)``.
    """

    bucket: Int64[Tensor, "s dim"]
    sign: Float[Tensor, "s dim"]
    size: int

    @classmethod
    def draw(cls, dim: int, size: int, key: Key, nonzeros: int = 1) -> CountSketch:
        """Draw the map; the key must have no replicates (one map serves all rounds and replicates)."""
        if size < 1 or not 1 <= nonzeros <= size:
            raise InputError(f"a sketch needs 1 <= nonzeros <= size, got size {size} and nonzeros {nonzeros}")
        uniform = key.uniform(2, nonzeros, dim)
        bucket = (uniform[0] * size).long().clamp(max=size - 1)
        return cls(bucket, torch.where(uniform[1] < 0.5, -1.0, 1.0).to(key.dtype) / nonzeros**0.5, size)

    def to(self, device: str, dtype: torch.dtype) -> CountSketch:
        """Return the map on a device, its signs in a precision."""
        return CountSketch(self.bucket.to(device), self.sign.to(device, dtype), self.size)

    def split(self, sizes: Sequence[int]) -> Blocks:
        """Return the same map of vectors that come in blocks of these sizes."""
        parts = zip(self.bucket.split(list(sizes), -1), self.sign.split(list(sizes), -1), strict=True)
        return Blocks(tuple(CountSketch(bucket, sign, self.size) for bucket, sign in parts), self.size)

    def add(self, out: Tensor, block: int, values: Tensor) -> None:
        """Scatter the coordinates, signed, into their buckets."""
        for bucket, sign in zip(self.bucket, self.sign, strict=True):
            out.index_add_(-1, bucket, values * sign.to(values.dtype))


@dataclass(frozen=True, eq=False)
class ShiftSketch(Sketch):
    """Count-sketch whose buckets are cyclic shifts: coordinate ``i`` goes to ``(i + shift[i // size]) mod size``.

    Signs are independent and two coordinates meet with probability at most ``1/size`` (never within a stretch of
    ``size``), which is all that the mean and the variance bound of :class:`CountSketch` rest on.  But whole stretches
    are added, and nothing is scattered: about the cost of reading the rows once.
    """

    shift: Int64[Tensor, " stretches"]
    sign: Float[Tensor, " dim"]
    size: int

    @classmethod
    def draw(cls, dim: int, size: int, key: Key) -> ShiftSketch:
        """Draw the map; the key must have no replicates."""
        if size < 1:
            raise InputError(f"a sketch needs size >= 1, got {size}")
        shift = (key.fold_in("shift").uniform(-(-dim // size)) * size).long().clamp(max=size - 1)
        sign = torch.where(key.fold_in("sign").uniform(dim) < 0.5, -1.0, 1.0).to(key.dtype)
        return cls(shift, sign, size)

    def add(self, out: Tensor, block: int, values: Tensor) -> None:
        """Add the coordinates, stretch by stretch, each in two parts that do not wrap round."""
        sign = self.sign.to(values.dtype)
        for start, shift in zip(range(0, values.shape[-1], self.size), self.shift.tolist(), strict=True):
            wrap, end = min(start + self.size - shift, values.shape[-1]), min(start + self.size, values.shape[-1])
            out[..., shift : shift + wrap - start].addcmul_(values[..., start:wrap], sign[start:wrap])
            out[..., : end - wrap].addcmul_(values[..., wrap:end], sign[wrap:end])


@dataclass(frozen=True, eq=False)
class Rademacher(Sketch):
    """Dense random signs over ``sqrt(size)``: the projection of TRAK and LESS, correctly scaled."""

    matrix: Float[Tensor, "dim size"]

    @property
    def size(self) -> int:  # type: ignore[override]
        """How many numbers a sketch has."""
        return self.matrix.shape[-1]

    @classmethod
    def draw(cls, dim: int, size: int, key: Key) -> Rademacher:
        """Draw the map; memory ``dim x size`` numbers."""
        if size < 1:
            raise InputError(f"a sketch needs size >= 1, got {size}")
        return cls(torch.where(key.uniform(dim, size) < 0.5, -1.0, 1.0).to(key.dtype) / size**0.5)

    def add(self, out: Tensor, block: int, values: Tensor) -> None:
        """Multiply by the signs; cost ``O(n dim size)``."""
        out += values @ self.matrix.to(values.dtype)


@dataclass(eq=False)
class Blocks(Sketch):
    """A sketch of its own for every block, all added up."""

    parts: tuple[Sketch, ...]
    size: int

    def add(self, out: Tensor, block: int, values: Tensor) -> None:
        """Add the images of one block's matrices."""
        self.parts[block].add(out, 0, values.flatten(1))


class Coordinates(Sketch):
    """No sketch: the coordinates themselves, block after block."""

    def __init__(self, shapes: Shapes) -> None:
        sizes = [a * b for a, b in shapes]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.size = sum(sizes)

    def add(self, out: Tensor, block: int, values: Tensor) -> None:
        """Write the coordinates to their place."""
        start, flat = self._starts[block], values.flatten(1)
        out[:, start : start + flat.shape[-1]] += flat


class RedrawnSigns(Sketch):
    """:class:`Rademacher` of every block, drawn again whenever it is reached, for signs that do not fit in memory.

    For reference, not for speed.
    """

    def __init__(self, shapes: Shapes, size: int, key: Key) -> None:
        self.size, self._sizes, self._key = size, [a * b for a, b in shapes], key

    def add(self, out: Tensor, block: int, values: Tensor) -> None:
        """Multiply by this block's signs."""
        signs = Rademacher.draw(self._sizes[block], self.size, self._key.fold_in("matrix", block)).matrix
        out += values.flatten(1) @ signs.to(out.device, out.dtype)


class WideSide(Sketch):
    """The wide side of each matrix by random signs, LoRA's rank side kept: ``Σ G S`` over matrices (``GᵀS`` for B).

    ``S`` has ``size / rank`` columns of independent signs over ``√(size/rank)`` for every matrix, so inner products
    between different matrices vanish in expectation.  Cost a row: ``O(P · size / rank)``.
    """

    def __init__(self, shapes: Shapes, size: int, rank: int, key: Key, device: str) -> None:
        if size % rank:
            raise InputError(f"a factored sketch needs a size divisible by LoRA's rank {rank}, got {size}")
        self.size, self._rank = size, rank
        self._signs = [
            Rademacher.draw(max(shape), size // rank, key.fold_in("matrix", i)).matrix.to(device, torch.float32)
            for i, shape in enumerate(shapes)
        ]

    def add(self, out: Tensor, block: int, values: Tensor) -> None:
        """Project the wide side; the rank side comes first."""
        wide = values if values.shape[1] == self._rank else values.mT
        out += (wide @ self._signs[block]).flatten(1)


def _shifts(shapes: Shapes, size: int, rank: int, key: Key, device: str) -> Sketch:
    draws = (ShiftSketch.draw(a * b, size, key.fold_in("matrix", i)) for i, (a, b) in enumerate(shapes))
    return Blocks(tuple(replace(part, sign=part.sign.to(device, torch.float32)) for part in draws), size)


def _counts(shapes: Shapes, size: int, key: Key, device: str, nonzeros: int) -> Sketch:
    sizes = [a * b for a, b in shapes]
    return CountSketch.draw(sum(sizes), size, key, nonzeros).to(device, torch.float32).split(sizes)


Kind = Literal["none", "shift", "count", "sjlt", "rademacher", "factored"]
SKETCHES: dict[Kind, Callable[[Shapes, int, int, Key, str], Sketch]] = {
    "none": lambda shapes, size, rank, key, device: Coordinates(shapes),
    "shift": _shifts,
    "count": lambda shapes, size, rank, key, device: _counts(shapes, size, key, device, 1),
    "sjlt": lambda shapes, size, rank, key, device: _counts(shapes, size, key, device, SJLT_NONZEROS),
    "rademacher": lambda shapes, size, rank, key, device: RedrawnSigns(shapes, size, key),
    "factored": WideSide,
}
"""Sketches of LoRA's gradients by name, from the matrices' shapes (outputs, inputs), the size, LoRA's rank, the key and
the device; in single precision."""
