"""Owns the design matrix ``V = ridge·I + Σ φφᵀ`` of the answered duels: widths, conditioning, information.

Only inner products of rows are used; no ``P x P`` matrix is formed.  With ``S`` answered duels,
``Φ`` their features and ``K = ΦΦᵀ = L Lᵀ - ridge·I``,

    ridge · ⟨φ, φ'⟩_{V⁻¹} = ⟨φ, φ'⟩ - ⟨L⁻¹Φφ, L⁻¹Φφ'⟩          (Woodbury)
    log det(V / ridge)    = 2 Σ log L_ss - S log ridge            (Sylvester)

Knows nothing of where rows come from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.duels import gather
from bandits.errors import InputError
from bandits.features import Dense, Rows


@dataclass(frozen=True)
class Conditioned:
    """Rows as seen through ``V⁻¹``: ``ridge·⟨φ_i, φ_j⟩_{V⁻¹} = ⟨φ_i, φ_j⟩ - ⟨c_i, c_j⟩``.

    ``projections`` holds the ``c``'s as columns, ``(*r, S, n)``.
    """

    rows: Rows
    projections: Float[Tensor, "*r s n"]
    ridge: float

    @property
    def remainders(self) -> Float[Tensor, "*r n"]:
        """``ridge · ‖φ‖²_{V⁻¹}``."""
        return (self.rows.squares() - self.projections.square().sum(-2)).clamp(min=0)

    @property
    def widths(self) -> Float[Tensor, "*r n"]:
        """``‖φ‖_{V⁻¹}``; zero for a duel of identical items, never above ``‖φ‖/√ridge``."""
        return (self.remainders / self.ridge).sqrt()

    def take(self, index: Int64[Tensor, "*r k"]) -> Conditioned:
        """Return the rows at these positions, replicate by replicate."""
        kept = torch.take_along_dim(self.projections, index.unsqueeze(-2), -1)
        return Conditioned(self.rows.take(index), kept, self.ridge)

    def column(self, pick: Int64[Tensor, "*r"]) -> Float[Tensor, "*r n"]:
        """Return ``ridge·⟨φ_i, φ_pick⟩_{V⁻¹}`` for all ``i``, one pick per replicate."""
        row = self.rows.take(pick.unsqueeze(-1))
        chosen = torch.take_along_dim(self.projections, pick[..., None, None], -1)
        return (self.rows.inner(row) - self.projections.mT @ chosen).squeeze(-1)


class Design(ABC):
    """``V`` of the duels answered so far; abstract.  ``append`` grows it in place."""

    ridge: float

    def __init__(self, ridge: float) -> None:
        if not (ridge > 0 and math.isfinite(ridge)):
            raise InputError(f"design: the ridge must be positive and finite, got {ridge}")
        self.ridge = ridge

    def append(self, rows: Rows) -> None:
        """Add ``Σ φφᵀ`` of these rows to ``V``."""
        self.extend(self.condition(rows))

    @abstractmethod
    def extend(self, seen: Conditioned) -> None:
        """Add ``Σ φφᵀ`` of rows that were conditioned on this very ``V``: half the work where that was done anyway."""

    @abstractmethod
    def condition(self, rows: Rows) -> Conditioned:
        """Return the rows as seen through ``V⁻¹``."""

    @abstractmethod
    def information(self) -> Float[Tensor, "*r"] | float:
        """Return ``log det(V / ridge)`` in nats: 0 before the first answer, never decreasing."""

    def widths(self, rows: Rows) -> Float[Tensor, "*r n"]:
        """Return ``‖φ‖_{V⁻¹}`` of the rows."""
        return self.condition(rows).widths


class GramDesign(Design):
    """The dual form: keeps the answered rows and the Cholesky factor ``L`` of ``K + ridge·I``.

    Any rows will do.  Conditioning ``n`` rows costs one Gram block and ``O(S² n)``; appending ``b`` rows ``O(S² b)``.
    """

    def __init__(self, ridge: float) -> None:
        """Begin with no answered duel."""
        super().__init__(ridge)
        self.past: Rows | None = None
        self._factor: Tensor | None = None

    def extend(self, seen: Conditioned) -> None:
        """Extend ``L`` by a block row: ``[L 0; Cᵀ chol(K_bb + ridge - CᵀC)]``."""
        rows, c = seen.rows, seen.projections
        gram = rows.inner(rows)
        own = gram + self.ridge * torch.eye(rows.count, dtype=gram.dtype, device=gram.device)
        corner = torch.linalg.cholesky(own - c.mT @ c)
        if self.past is None or self._factor is None:
            self.past, self._factor = rows, corner
            return
        top = torch.cat([self._factor, torch.zeros_like(c)], -1)
        self._factor = torch.cat([top, torch.cat([c.mT, corner], -1)], -2)
        self.past = self.past.join(rows)

    def _project(self, rows: Rows) -> Tensor:
        assert self.past is not None
        assert self._factor is not None
        return torch.linalg.solve_triangular(self._factor, self.past.inner(rows), upper=False)

    def condition(self, rows: Rows) -> Conditioned:
        """Return the rows as seen through ``V⁻¹``."""
        if self.past is None:
            squares = rows.squares()
            return Conditioned(rows, squares.new_zeros((*squares.shape[:-1], 0, rows.count)), self.ridge)
        return Conditioned(rows, self._project(rows), self.ridge)

    def information(self) -> Tensor | float:
        """Return ``log det(V / ridge)``."""
        if self._factor is None:
            return 0.0
        diagonal = self._factor.diagonal(dim1=-2, dim2=-1)
        return (2 * diagonal.log() - math.log(self.ridge)).sum(-1)


class WhitenedDesign(Design):
    """The row form for dense rows: keeps ``W = L⁻¹Φ``, so that ``L⁻¹Φφ = Wφ`` is one matrix product.

    Appending and conditioning cost ``O(S d)`` a row, linear in ``S``: for many small rounds (a regret experiment).
    """

    def __init__(self, ridge: float) -> None:
        """Begin with no answered duel."""
        super().__init__(ridge)
        self._buffer: Tensor | None = None
        self._count = 0
        self._information: Tensor | float = 0.0

    def extend(self, seen: Conditioned) -> None:
        """Orthogonalise the new rows against ``W`` (block Gram-Schmidt under the ridge)."""
        rows, values, c = seen.rows, seen.rows.dense().values, seen.projections
        gram = values @ values.mT - c.mT @ c
        corner = torch.linalg.cholesky(gram + self.ridge * torch.eye(rows.count, dtype=gram.dtype, device=gram.device))
        new = values if self._buffer is None else values - c.mT @ self._buffer[..., : self._count, :]
        new = torch.linalg.solve_triangular(corner, new, upper=False)
        end = self._count + rows.count
        if self._buffer is None or end > self._buffer.shape[-2]:
            grown = new.new_empty((*new.shape[:-2], max(64, 2 * end), new.shape[-1]))
            if self._buffer is not None:
                grown[..., : self._count, :] = self._buffer[..., : self._count, :]
            self._buffer = grown
        self._buffer[..., self._count : end, :] = new
        self._count = end
        gain = (2 * corner.diagonal(dim1=-2, dim2=-1).log() - math.log(self.ridge)).sum(-1)
        self._information = self._information + gain

    def condition(self, rows: Rows) -> Conditioned:
        """Return the rows as seen through ``V⁻¹``."""
        values = rows.dense().values
        if self._buffer is None:
            return Conditioned(rows, values.new_zeros((*values.shape[:-2], 0, rows.count)), self.ridge)
        return Conditioned(rows, self._buffer[..., : self._count, :] @ values.mT, self.ridge)

    def information(self) -> Tensor | float:
        """Return ``log det(V / ridge)``."""
        return self._information


class DiagonalDesign(Design):
    """``diag(V)`` in place of ``V``: the shortcut of public NeuralUCB code, kept as a control.  Dense rows only."""

    def __init__(self, ridge: float) -> None:
        """Begin with no answered duel."""
        super().__init__(ridge)
        self._diagonal: Tensor | None = None

    def extend(self, seen: Conditioned) -> None:
        """Add the squares of the rows, whose scaling is undone."""
        added = seen.rows.dense().values.square().sum(-2)
        if self._diagonal is None:
            self._diagonal = self.ridge + added
        else:
            self._diagonal = self._diagonal * (1 + added / self.ridge)

    def condition(self, rows: Rows) -> Conditioned:
        """Return the rows scaled by ``(ridge / diag V)^{1/2}``, coordinate by coordinate."""
        values = rows.dense().values
        if self._diagonal is not None:
            values = values * (self.ridge / self._diagonal).sqrt().unsqueeze(-2)
        return Conditioned(Dense(values), values.new_zeros((*values.shape[:-2], 0, rows.count)), self.ridge)

    def information(self) -> Tensor | float:
        """Return ``log det(diag(V) / ridge)``."""
        return 0.0 if self._diagonal is None else (self._diagonal / self.ridge).log().sum(-1)


class FixedDesign(GramDesign):
    """``V = ridge·I`` whatever was answered: widths are ``‖φ‖/√ridge``, the control without a memory."""

    def extend(self, seen: Conditioned) -> None:
        """Forget the rows."""


def greedy(
    pool: Conditioned,
    count: int,
    available: Bool[Tensor, "*r n"],
    ties: Float[Tensor, "*r n"],
    update: bool = True,
) -> Int64[Tensor, "*r count"]:
    """Pick ``count`` rows, each time ``argmax ‖φ‖_{V⁻¹}``, then ``V ← V + φφᵀ`` at once (unless not ``update``).

    This is greedy maximisation of ``log det V`` (D-optimality), done as a pivoted Cholesky factorisation of the
    conditioned Gram matrix: with ``w = column/√(ridge + remainder)`` every remainder drops by ``w²``.
    Cost ``O(count · n · (d + S + count))``.  Equal widths are decided by the larger tie number.
    """
    remainder = pool.remainders
    taken = ~available
    picks: list[Tensor] = []
    factor = remainder.new_empty((*remainder.shape, count))
    for step in range(count):
        pick = best(remainder, ~taken, ties)
        picks.append(pick)
        taken = taken.scatter(-1, pick.unsqueeze(-1), True)
        if not update or step == count - 1:
            continue
        earlier, index = factor[..., :step], pick.unsqueeze(-1)
        column = pool.column(pick) - (earlier @ gather(earlier, index).mT).squeeze(-1)
        factor[..., step] = column / (pool.ridge + remainder.gather(-1, index)).sqrt()
        remainder = (remainder - factor[..., step].square()).clamp(min=0)
    return torch.stack(picks, -1)


def best(
    scores: Float[Tensor, "*r n"], available: Bool[Tensor, "*r n"], ties: Float[Tensor, "*r n"]
) -> Int64[Tensor, "*r"]:
    """Return the available position of the highest score; equal scores are decided by the larger tie number."""
    scores = torch.where(available, scores, -torch.inf)
    top = scores == scores.max(-1, keepdim=True).values
    return torch.where(top & available, ties, -1.0).argmax(-1)
