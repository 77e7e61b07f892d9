"""Owns rows of gradients and their inner products; knows nothing of networks, designs or strategies.

The design matrix needs inner products only.  :class:`Dense` rows hold gradients explicitly (small networks, projected
language-model gradients).  :class:`Factored` rows hold an MLP's gradients layer by layer as outer products, so that
``n x n'`` inner products cost ``O(n n' (fan_in + fan_out))`` per layer and no gradient is ever formed.
:class:`PairRows` are duels of factored items.  All carry any number of leading replicate dimensions.  Rows too many for
memory are in :mod:`bandits.core.stored`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.duels import Duels, gather


class Rows(ABC):
    """``n`` vectors of a common space, known by their inner products; abstract."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many rows."""

    @abstractmethod
    def inner(self, other: Self) -> Float[Tensor, "*r n k"]:
        """Return all inner products with the rows of another set of the same kind."""

    @abstractmethod
    def squares(self) -> Float[Tensor, "*r n"]:
        """Return the squared norms."""

    @abstractmethod
    def take(self, index: Int64[Tensor, "*r k"]) -> Self:
        """Return the rows at these positions, replicate by replicate."""

    @abstractmethod
    def join(self, other: Self) -> Self:
        """Return these rows followed by the others."""

    @abstractmethod
    def scaled(self, weights: Float[Tensor, "*r n"]) -> Self:
        """Return the rows, each times its weight."""

    @abstractmethod
    def dense(self) -> Dense:
        """Return the rows explicitly."""

    @abstractmethod
    def finite(self) -> bool:
        """Whether every number in the rows is finite."""

    def normalised(self) -> Self:
        """Return the rows at unit norm; a zero row stays zero."""
        norms = self.squares().sqrt()
        return self.scaled(torch.where(norms > 0, 1 / norms, 0.0))


class ItemRows(Rows):
    """Rows of items, whose differences are those of duels; abstract."""

    @abstractmethod
    def differences(self, duels: Duels) -> Rows:
        """Return ``row[first] - row[second]``: of item gradients, these are the duels' features φ."""


AT_ONCE = 2**22  # numbers of duels' inner products beside the result, while it is made
MANY, STRIPE = 1024, 256
"""From so many rows on, their Gram matrix is made by stripes of so many: the half above the diagonal comes for free."""


def _gram(values: Float[Tensor, "*r n d"]) -> Float[Tensor, "*r n n"]:
    """Return ``A Aᵀ`` from what lies below its diagonal; the rest is that turned over."""
    count = values.shape[-2]
    out = values.new_empty((*values.shape[:-1], count))
    for start in range(0, count, STRIPE):
        stop = min(count, start + STRIPE)
        out[..., start:stop, :stop] = values[..., start:stop, :] @ values[..., :stop, :].mT
        out[..., :start, start:stop] = out[..., start:stop, :start].mT
    return out


@dataclass(frozen=True, eq=False)
class Dense(ItemRows):
    """Explicit rows, ``(*r, n, d)``."""

    values: Float[Tensor, "*r n d"]

    @property
    def count(self) -> int:
        """How many rows."""
        return self.values.shape[-2]

    def inner(self, other: Rows) -> Tensor:
        """Return ``A Bᵀ``; cost ``O(n n' d)``, little over half of it for many rows with themselves."""
        if not isinstance(other, Dense):
            return other.inner(self).mT
        if other.values is self.values and self.count >= MANY:
            return _gram(self.values)
        return self.values @ other.values.mT

    def squares(self) -> Tensor:
        """Return the squared norms, without a table of squares."""
        return torch.linalg.vector_norm(self.values, dim=-1).square()

    def take(self, index: Tensor) -> Dense:
        """Return the rows at these positions."""
        return Dense(gather(self.values, index))

    def join(self, other: Dense) -> Dense:
        """Return these rows followed by the others."""
        return Dense(torch.cat([self.values, other.values], -2))

    def scaled(self, weights: Tensor) -> Dense:
        """Return the rows, each times its weight."""
        return Dense(self.values * weights.unsqueeze(-1))

    def differences(self, duels: Duels) -> Dense:
        """Return ``row[first] - row[second]``."""
        return Dense(gather(self.values, duels.first) - gather(self.values, duels.second))

    def dense(self) -> Dense:
        """Return the rows themselves."""
        return self

    def finite(self) -> bool:
        """Whether every number is finite; their sum tells, unless it overflows."""
        return bool(self.values.sum().isfinite()) or bool(self.values.isfinite().all())


@dataclass(frozen=True, eq=False)
class Factored(ItemRows):
    """Rows ``vec(left_1 right_1ᵀ) ⊕ vec(left_2 right_2ᵀ) ⊕ …``: an MLP's gradients, one outer product per layer.

    ``left`` holds back-propagated signals ``(*r, n, fan_out)``, ``right`` activations ``(*r, n, fan_in)``, whose inner
    products multiply: ``⟨row_i, row_j⟩ = Σ_l ⟨left_i, left_j⟩ ⟨right_i, right_j⟩``.
    """

    left: tuple[Float[Tensor, "*r n _"], ...]
    right: tuple[Float[Tensor, "*r n _"], ...]

    @property
    def count(self) -> int:
        """How many rows."""
        return self.left[0].shape[-2]

    def inner(self, other: Factored) -> Tensor:
        """Return the Gram matrix; cost ``O(n n' Σ (fan_in + fan_out))``."""
        total = (self.left[0] @ other.left[0].mT).mul_(self.right[0] @ other.right[0].mT)
        for a, b, c, d in zip(self.left[1:], self.right[1:], other.left[1:], other.right[1:], strict=True):
            total += (a @ c.mT).mul_(b @ d.mT)
        return total

    def squares(self) -> Tensor:
        """Return the squared norms."""
        parts = [a.square().sum(-1) * b.square().sum(-1) for a, b in zip(self.left, self.right, strict=True)]
        return torch.stack(parts).sum(0)

    def take(self, index: Tensor) -> Factored:
        """Return the rows at these positions."""
        return Factored(tuple(gather(a, index) for a in self.left), tuple(gather(b, index) for b in self.right))

    def join(self, other: Factored) -> Factored:
        """Return these rows followed by the others."""
        return Factored(
            tuple(torch.cat([a, c], -2) for a, c in zip(self.left, other.left, strict=True)),
            tuple(torch.cat([b, d], -2) for b, d in zip(self.right, other.right, strict=True)),
        )

    def scaled(self, weights: Tensor) -> Factored:
        """Return the rows, each times its weight."""
        return Factored(tuple(a * weights.unsqueeze(-1) for a in self.left), self.right)

    def differences(self, duels: Duels) -> PairRows:
        """Return the duels' rows, kept as pairs of items."""
        return PairRows(self, duels)

    def dense(self) -> Dense:
        """Return the gradients explicitly: ``P`` numbers a row."""
        blocks = [(a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2) for a, b in zip(self.left, self.right, strict=True)]
        return Dense(torch.cat(blocks, -1))

    def finite(self) -> bool:
        """Whether every number is finite."""
        return all(bool(part.isfinite().all()) for part in (*self.left, *self.right))

    def times(self, blocks: tuple[Float[Tensor, "*r _ _"], ...]) -> Float[Tensor, "*r n"]:
        """Return each row's inner product with a parameter vector, given as its weight matrices (``J v``)."""
        parts = [((a @ v) * b).sum(-1) for a, b, v in zip(self.left, self.right, blocks, strict=True)]
        return torch.stack(parts).sum(0)

    def combined(self, weights: Float[Tensor, "*r n"]) -> tuple[Float[Tensor, "*r _ _"], ...]:
        """Return ``Σ weight_i row_i`` as weight matrices (``Jᵀ w``)."""
        scale = weights.unsqueeze(-1)
        narrow = [a.shape[-1] <= b.shape[-1] for a, b in zip(self.left, self.right, strict=True)]
        left = tuple(a * scale if yes else a for a, yes in zip(self.left, narrow, strict=True))
        right = tuple(b if yes else b * scale for b, yes in zip(self.right, narrow, strict=True))
        return Factored(left, right).total()

    def total(self) -> tuple[Float[Tensor, "*r _ _"], ...]:
        """Return ``Σ row_i`` as weight matrices."""
        return tuple(
            a.mT @ b if a.shape[-1] <= b.shape[-1] else (b.mT @ a).mT
            for a, b in zip(self.left, self.right, strict=True)
        )


_Sides = tuple[Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]  # a layer's φ, or (a, b, c, d) with φ = abᵀ - cdᵀ
CHUNK = 2**18  # numbers of a Gram block that are worked on at once: they stay in the processor's cache


def _sides_inner(ours: list[_Sides], theirs: list[_Sides] | None = None) -> Float[Tensor, "*r n k"]:
    """Return ``Σ_l ⟨a bᵀ - c dᵀ, a' b'ᵀ - c' d'ᵀ⟩``, a few rows at a time; without ``theirs`` by symmetry."""
    *lead, count, _ = ours[0][0].shape
    width = count if theirs is None else theirs[0][0].shape[-2]
    total = ours[0][0].new_zeros((*lead, count, width))
    step = max(1, CHUNK * count // max(1, total.numel()))
    for start in range(0, count, step):
        end = min(start + step, count)
        columns = slice(end if theirs is None else width)
        rows = total[..., start:end, columns]
        for mine, other in zip(ours, ours if theirs is None else theirs, strict=True):
            part = [side[..., start:end, :] for side in mine]
            facing = [side[..., columns, :].mT for side in other]
            if len(part) == 1:
                rows += part[0] @ facing[0]
                continue
            for i, j, sign in ((0, 0, 1), (0, 2, -1), (2, 0, -1), (2, 2, 1)):
                rows.addcmul_(part[i] @ facing[j], part[i + 1] @ facing[j + 1], value=sign)
        if theirs is None:
            total[..., :start, start:end] = rows[..., :start].mT
    return total


@dataclass(frozen=True, eq=False)
class Pairs(Rows):
    """Rows ``weight · (item[first] - item[second])`` that are kept as pairs of items; abstract."""

    items: ItemRows
    duels: Duels
    weights: Float[Tensor, "*r n"] | None = None

    @property
    def count(self) -> int:
        """How many rows."""
        return self.duels.count

    def _weighted(self, gram: Tensor, dim: int) -> Tensor:
        return gram if self.weights is None else gram * self.weights.unsqueeze(-1 if dim == -2 else -2)

    def along(self, gram: Tensor, dim: int) -> Tensor:
        """Turn the item axis ``dim`` (-2 or -1) of a matrix of inner products into this set's duel axis."""
        if gram.dim() == 2:
            pairs = gram.index_select(dim, self.duels.first)
            step = max(1, AT_ONCE // self.count)
            for own, items in zip(pairs.split(step, -3 - dim), gram.split(step, -3 - dim), strict=True):
                own.sub_(items.index_select(dim, self.duels.second))
            return self._weighted(pairs, dim)
        first, second = (side.unsqueeze(-1 if dim == -2 else -2) for side in (self.duels.first, self.duels.second))
        gram = torch.take_along_dim(gram, first, dim) - torch.take_along_dim(gram, second, dim)
        return self._weighted(gram, dim)


@dataclass(frozen=True, eq=False)
class PairRows(Pairs):
    """Rows ``weight · (item[first] - item[second])`` of factored items, never formed."""

    items: Factored

    def inner(self, other: PairRows | Factored) -> Tensor:
        """Return all inner products with other duels or items.

        Those of duels come from their items', ``D G D'ᵀ``, if duels share items, else side by side.
        """
        if isinstance(other, Factored):
            return self.along(self.items.inner(other), -2)
        if self.items.count * other.items.count < 4 * self.count * other.count:
            return other.along(self.along(self.items.inner(other.items), -2), -1)
        gram = _sides_inner(self._sides(), None if other is self else other._sides())
        return other._weighted(self._weighted(gram, -2), -1)

    def _sides(self) -> list[_Sides]:
        """Return each layer's factors of the two sides, or their difference where forming it takes fewer numbers."""
        first, second = self.items.take(self.duels.first), self.items.take(self.duels.second)
        sides: list[_Sides] = []
        for a, b, c, d in zip(first.left, first.right, second.left, second.right, strict=True):
            if a.shape[-1] * b.shape[-1] <= 4 * (a.shape[-1] + b.shape[-1]):
                formed = a.unsqueeze(-1) * b.unsqueeze(-2) - c.unsqueeze(-1) * d.unsqueeze(-2)
                sides.append((formed.flatten(-2),))
            else:
                sides.append((a, b, c, d))
        return sides

    def squares(self) -> Tensor:
        """Return ``weight² (‖a‖² - 2⟨a, b⟩ + ‖b‖²)`` by the factors of the two sides."""
        total = self.duels.first.new_zeros((), dtype=self.items.left[0].dtype)
        for left, right in zip(self.items.left, self.items.right, strict=True):
            a, b = gather(left, self.duels.first), gather(left, self.duels.second)
            c, d = gather(right, self.duels.first), gather(right, self.duels.second)
            # ‖a cᵀ - b dᵀ‖² as ‖(a - b) cᵀ + b (c - d)ᵀ‖²: no cancellation where the two items are close.
            u, v = a - b, c - d
            cross = (u * b).sum(-1) * (c * v).sum(-1)
            total = total + u.square().sum(-1) * c.square().sum(-1) + 2 * cross
            total = total + b.square().sum(-1) * v.square().sum(-1)
        total = total.clamp(min=0)
        return total if self.weights is None else total * self.weights.square()

    def take(self, index: Tensor) -> PairRows:
        """Return the duels at these positions, with only the items that they name."""
        duels = self.duels.take(index)
        both = torch.cat([duels.first, duels.second], -1)
        place = torch.arange(duels.count, device=both.device).expand(duels.first.shape)
        weights = None if self.weights is None else self.weights.gather(-1, index)
        return PairRows(self.items.take(both), Duels(place, place + duels.count), weights)

    def join(self, other: PairRows) -> PairRows:
        """Return these duels followed by the others."""
        duels = self.duels.join(other.duels.shifted(self.items.count))
        if self.weights is None and other.weights is None:
            return PairRows(self.items.join(other.items), duels)
        sides = [
            side.weights if side.weights is not None else side.squares().new_ones(side.duels.first.shape)
            for side in (self, other)
        ]
        return PairRows(self.items.join(other.items), duels, torch.cat(sides, -1))

    def scaled(self, weights: Tensor) -> PairRows:
        """Return the rows, each times its weight."""
        return PairRows(self.items, self.duels, weights if self.weights is None else self.weights * weights)

    def dense(self) -> Dense:
        """Return the rows explicitly."""
        rows = self.items.dense().differences(self.duels)
        return rows if self.weights is None else rows.scaled(self.weights)

    def finite(self) -> bool:
        """Whether every number is finite."""
        return self.items.finite() and (self.weights is None or bool(self.weights.isfinite().all()))
