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

from bandits.core.duels import gather
from bandits.core.errors import InputError
from bandits.core.rows import Dense, Differences, Rows


@dataclass(frozen=True)
class Posterior:
    """Rows as seen through ``V⁻¹``: ``ridge·⟨φ_i, φ_j⟩_{V⁻¹} = ⟨φ_i, φ_j⟩ - ⟨c_i, c_j⟩``.

    ``projections`` holds the ``c``'s as columns, ``(*r, S, n)``.
    """

    rows: Rows
    projections: Float[Tensor, "*r s n"]
    ridge: float

    @property
    def residuals(self) -> Float[Tensor, "*r n"]:
        """``ridge · ‖φ‖²_{V⁻¹}``."""
        return (self.rows.squares() - self.projections.square().sum(-2)).clamp(min=0)

    @property
    def widths(self) -> Float[Tensor, "*r n"]:
        """``‖φ‖_{V⁻¹}``; zero for a duel of identical items, never above ``‖φ‖/√ridge``."""
        return (self.residuals / self.ridge).sqrt()

    def take(self, index: Int64[Tensor, "*r k"]) -> Posterior:
        """Return the rows at these positions, replicate by replicate."""
        kept = torch.take_along_dim(self.projections, index.unsqueeze(-2), -1)
        return Posterior(self.rows.take(index), kept, self.ridge)

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
    def extend(self, seen: Posterior) -> None:
        """Add ``Σ φφᵀ`` of rows that were conditioned on this very ``V``: half the work where that was done anyway."""

    @abstractmethod
    def condition(self, rows: Rows) -> Posterior:
        """Return the rows as seen through ``V⁻¹``."""

    @abstractmethod
    def information(self) -> Float[Tensor, "*r"] | float:
        """Return ``log det(V / ridge)`` in nats: 0 before the first answer, never decreasing."""

    def widths(self, rows: Rows) -> Float[Tensor, "*r n"]:
        """Return ``‖φ‖_{V⁻¹}`` of the rows."""
        return self.condition(rows).widths


class _FactorDesign(Design):
    """A design that can apply ``L⁻¹``; abstract."""

    def condition(self, rows: Rows) -> Posterior:
        """Return the rows as seen through ``V⁻¹``."""
        if isinstance(rows, Differences) and rows.items.count < rows.count:  # duels share items: look at those
            return Posterior(rows, rows.along(self._project(rows.items), -1), self.ridge)
        return Posterior(rows, self._project(rows), self.ridge)

    @abstractmethod
    def _project(self, rows: Rows) -> Float[Tensor, "*r s n"]:
        """Return ``L⁻¹Φφ`` of the rows, as columns."""


PANEL = 128  # answered rows that are kept together when they come one by one


@dataclass(frozen=True)
class _Panel:
    """Answered rows that lie side by side: ``(left corner)`` are their rows of ``L``."""

    rows: Rows
    left: Float[Tensor, "*r p before"]
    corner: Float[Tensor, "*r p p"]


class GramDesign(_FactorDesign):
    """The dual form: keeps the answered rows and the Cholesky factor ``L`` of ``K + ridge·I``, in panels of rows.

    Any rows will do.  Conditioning ``n`` rows costs one Gram block and ``O(S² n)``; appending ``b`` rows that were
    conditioned before copies one panel: many small appends read ``L`` once each and never move it.
    """

    def __init__(self, ridge: float) -> None:
        """Begin with no answered duel."""
        super().__init__(ridge)
        self._panels: list[_Panel] = []

    def extend(self, seen: Posterior) -> None:
        """Extend ``L`` by a block row: ``[L 0; Cᵀ chol(K_bb + ridge - CᵀC)]``."""
        rows, left = seen.rows, seen.projections.mT
        gram = rows.inner(rows)
        own = gram + self.ridge * torch.eye(rows.count, dtype=gram.dtype, device=gram.device)
        corner = torch.linalg.cholesky(own - left @ left.mT)
        last = self._panels[-1] if self._panels else None
        if last is None or last.rows.count + rows.count > PANEL:
            self._panels.append(_Panel(rows, left.contiguous(), corner))
            return
        left, beside = left.split([last.left.shape[-1], last.rows.count], -1)
        top = torch.cat([last.corner, torch.zeros_like(beside).mT], -1)
        corner = torch.cat([top, torch.cat([beside, corner], -1)], -2)
        self._panels[-1] = _Panel(last.rows.join(rows), torch.cat([last.left, left], -2), corner)

    def _project(self, rows: Rows) -> Tensor:
        """Return ``L⁻¹Φφ`` of the rows by forward substitution, panel by panel."""
        if not self._panels:
            squares = rows.squares()
            return squares.new_zeros((*squares.shape[:-1], 0, rows.count))
        first, *others = self._panels
        found = torch.linalg.solve_triangular(first.corner, first.rows.inner(rows), upper=False)
        for panel in others:
            # This order of the product is the faster one for few rows.
            own = panel.rows.inner(rows) - (found.mT @ panel.left.mT).mT
            found = torch.cat([found, torch.linalg.solve_triangular(panel.corner, own, upper=False)], -2)
        return found

    def information(self) -> Tensor | float:
        """Return ``log det(V / ridge)``."""
        if not self._panels:
            return 0.0
        diagonal = torch.cat([panel.corner.diagonal(dim1=-2, dim2=-1) for panel in self._panels], -1)
        return (2 * diagonal.log() - math.log(self.ridge)).sum(-1)


class WhitenedDesign(_FactorDesign):
    """The row form for dense rows: keeps ``W = L⁻¹Φ``, so that ``L⁻¹Φφ = Wφ`` is one matrix product.

    Appending and conditioning cost ``O(S d)`` a row, linear in ``S``: for many answers in few dimensions.
    """

    def __init__(self, ridge: float) -> None:
        """Begin with no answered duel."""
        super().__init__(ridge)
        self._buffer: Tensor | None = None
        self._count = 0
        self._information: Tensor | float = 0.0

    def extend(self, seen: Posterior) -> None:
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

    def _project(self, rows: Rows) -> Tensor:
        """Return ``Wφ`` of the rows, as columns."""
        values = rows.dense().values
        if self._buffer is None:
            return values.new_zeros((*values.shape[:-2], 0, rows.count))
        return (values @ self._buffer[..., : self._count, :].mT).mT  # this order is the faster one for few rows

    def information(self) -> Tensor | float:
        """Return ``log det(V / ridge)``."""
        return self._information


class DiagonalDesign(Design):
    """``diag(V)`` in place of ``V``: the shortcut of public NeuralUCB code, kept as a control.  Dense rows only."""

    def __init__(self, ridge: float) -> None:
        """Begin with no answered duel."""
        super().__init__(ridge)
        self._diagonal: Tensor | None = None

    def extend(self, seen: Posterior) -> None:
        """Add the squares of the rows, whose scaling is undone."""
        added = seen.rows.dense().values.square().sum(-2)
        if self._diagonal is None:
            self._diagonal = self.ridge + added
        else:
            self._diagonal = self._diagonal * (1 + added / self.ridge)

    def condition(self, rows: Rows) -> Posterior:
        """Return the rows scaled by ``(ridge / diag V)^{1/2}``, coordinate by coordinate."""
        values = rows.dense().values
        if self._diagonal is not None:
            values = values * (self.ridge / self._diagonal).sqrt().unsqueeze(-2)
        return Posterior(Dense(values), values.new_zeros((*values.shape[:-2], 0, rows.count)), self.ridge)

    def information(self) -> Tensor | float:
        """Return ``log det(diag(V) / ridge)``."""
        return 0.0 if self._diagonal is None else (self._diagonal / self.ridge).log().sum(-1)


class FixedDesign(GramDesign):
    """``V = ridge·I`` whatever was answered: widths are ``‖φ‖/√ridge``, the control without a memory."""

    def extend(self, seen: Posterior) -> None:
        """Forget the rows."""


def greedy(
    pool: Posterior, count: int, available: Bool[Tensor, "*r n"], ties: Float[Tensor, "*r n"], update: bool = True
) -> Int64[Tensor, "*r count"]:
    """Pick ``count`` rows, each time ``argmax ‖φ‖_{V⁻¹}``, then ``V ← V + φφᵀ`` at once (unless not ``update``).

    This is greedy maximisation of ``log det V`` (D-optimality), done as a pivoted Cholesky factorisation of the
    conditioned Gram matrix: with ``w = column/√(ridge + residual)`` every residual drops by ``w²``.
    Cost ``O(count · n · (d + S + count))``; one large pool costs less, see :func:`_front`.  Equal widths are decided by
    the larger tie number.
    """
    residual = pool.residuals
    if not update:
        return _steps(pool, residual, count, available, ties, update)[0]
    front = max(8 * count, residual.shape[-1] // 32)
    picked = torch.empty((*residual.shape[:-1], 0), dtype=torch.int64, device=residual.device)
    factor = residual.new_empty((*residual.shape, 0))
    available = available.clone()
    while residual.dim() == 1 and 4 * front < len(residual):
        picks = _front(pool, residual, factor, front, count - len(picked), available, ties)
        picked = torch.cat([picked, picks])
        if len(picked) == count:
            return picked
        available[picks] = False
        factor = torch.cat([factor, _block(pool, picks, factor)], -1)
        residual = (residual - factor[:, -len(picks) :].square().sum(-1)).clamp(min=0)
        if len(picks) < PATIENCE:
            front *= 2
    rest = _steps(pool, residual, count - picked.shape[-1], available, ties, update, factor)[0]
    return torch.cat([picked, rest], -1)


PATIENCE = 6  # picks that a front must last, or it is made larger: a new one costs about two passes over the pool


def _front(
    pool: Posterior,
    residual: Float[Tensor, " n"],
    factor: Float[Tensor, "n k"],
    size: int,
    count: int,
    available: Bool[Tensor, " n"],
    ties: Float[Tensor, " n"],
) -> Int64[Tensor, " picks"]:
    """Pick as many of the ``count`` rows as can be told from the ``size`` rows of largest residual; at least one.

    Remainders only fall (``log det`` is submodular: Minoux 1978), so while the best row of this front exceeds the
    largest residual outside it, it is the best of all, and the other rows need no pass.
    """
    first = best(residual, available, ties)
    order = torch.where(available, residual, -torch.inf)
    order[first] = torch.inf
    top = order.topk(size + 1)
    members, outside = top.indices[:size], top.values[size]
    part = Posterior(pool.rows.take(members), pool.projections[:, members], pool.ridge)
    picks, values = _steps(part, residual[members], count, available[members], ties[members], True, factor[members])
    # The first is the best of all rows, by its tie number too; a later one must exceed what lies outside.
    lasts = int((values[1:] > outside).long().cumprod(0).sum()) + 1
    return members[picks[:lasts]]


def _block(pool: Posterior, picks: Int64[Tensor, " k"], factor: Float[Tensor, "n t"]) -> Float[Tensor, "n k"]:
    """Return the next columns of the pivoted Cholesky factor for all rows, by one pass over them."""
    columns = pool.rows.inner(pool.rows.take(picks)) - pool.projections.mT @ pool.projections[:, picks]
    columns = columns - factor @ factor[picks].mT
    pivot = columns[picks]
    pivot.diagonal().add_(pool.ridge)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(pivot), columns.mT, upper=False).mT


def _steps(
    pool: Posterior,
    residual: Float[Tensor, "*r n"],
    count: int,
    available: Bool[Tensor, "*r n"],
    ties: Float[Tensor, "*r n"],
    update: bool,
    known: Float[Tensor, "*r n k"] | None = None,
) -> tuple[Int64[Tensor, "*r count"], Float[Tensor, "*r count"]]:
    """Pick step by step; return the picks and their residuals when picked.  ``known`` are earlier picks' columns."""
    taken = ~available
    picks, values = [], []
    start = 0 if known is None else known.shape[-1]
    factor = residual.new_empty((*residual.shape, start + count))
    if known is not None:
        factor[..., :start] = known
    for step in range(start, start + count):
        pick = best(residual, ~taken, ties)
        index = pick.unsqueeze(-1)
        picks.append(pick)
        values.append(residual.gather(-1, index).squeeze(-1))
        taken = taken.scatter(-1, index, True)
        if not update or step == start + count - 1:
            continue
        earlier = factor[..., :step]
        column = pool.column(pick) - (earlier @ gather(earlier, index).mT).squeeze(-1)
        factor[..., step] = column / (pool.ridge + residual.gather(-1, index)).sqrt()
        residual = (residual - factor[..., step].square()).clamp(min=0)
    return torch.stack(picks, -1), torch.stack(values, -1)


def best(
    scores: Float[Tensor, "*r n"], available: Bool[Tensor, "*r n"], ties: Float[Tensor, "*r n"]
) -> Int64[Tensor, "*r"]:
    """Return the available position of the highest score; equal scores are decided by the larger tie number."""
    scores = torch.where(available, scores, -torch.inf)
    top = scores == scores.max(-1, keepdim=True).values
    return torch.where(top & available, ties, -1.0).argmax(-1)
