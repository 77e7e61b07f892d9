"""Owns the design matrix ``V = ridge·I + Σ φφᵀ`` of the answered duels: widths, posterior, information.

:meth:`Design.of` chooses among five forms.  All but the primal one use inner products of rows only; no ``P x P`` matrix
is formed.  With ``S`` answered duels,
``Φ`` their features and ``K = ΦΦᵀ = L Lᵀ - ridge·I``,

    ridge · ⟨φ, φ'⟩_{V⁻¹} = ⟨φ, φ'⟩ - ⟨L⁻¹Φφ, L⁻¹Φφ'⟩          (Woodbury)
    log det(V / ridge)    = 2 Σ log L_ss - S log ridge            (Sylvester)

Knows nothing of where rows come from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.errors import InputError
from bandits.core.rows import Dense, Pairs, Rows

Metric = Literal["full", "diagonal", "identity"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Rows as seen through ``V⁻¹``: ``ridge·⟨φ_i, φ_j⟩_{V⁻¹} = ⟨φ_i, φ_j⟩ - ⟨c_i, c_j⟩``.

    ``projections`` holds the ``c``'s as columns, ``(*r, S, n)``; there are none where the rows are those of
    ``√ridge V^{-½}φ``.  ``metric`` says what becomes of ``V`` when a row is added: all of it, its diagonal, nothing.
    """

    rows: Rows
    projections: Float[Tensor, "*r s n"]
    ridge: float
    metric: Metric = "full"

    @cached_property
    def residuals(self) -> Float[Tensor, "*r n"]:
        """``ridge · ‖φ‖²_{V⁻¹}``."""
        return (self.rows.squares() - self.projections.square().sum(-2)).clamp(min=0)

    @cached_property
    def widths(self) -> Float[Tensor, "*r n"]:
        """``‖φ‖_{V⁻¹}``; zero for a duel of identical items, never above ``‖φ‖/√ridge``."""
        return (self.residuals / self.ridge).sqrt()

    def take(self, index: Int64[Tensor, "*r k"]) -> Posterior:
        """Return the rows at these positions, replicate by replicate."""
        kept = torch.take_along_dim(self.projections, index.unsqueeze(-2), -1)
        return Posterior(self.rows.take(index), kept, self.ridge, self.metric)

    def inner(self, other: Posterior) -> Float[Tensor, "*r n m"]:
        """Return ``ridge·⟨φ_i, φ'_j⟩_{V⁻¹}`` with all rows of another posterior of the same ``V``."""
        seen = Dense(self.projections.mT)
        return self.rows.inner(other.rows) - seen.inner(seen if other is self else Dense(other.projections.mT))

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

    @staticmethod
    def of(rows: Rows, ridge: float, metric: Metric = "full", many: bool = False) -> Design:
        """Return the empty design that suits such rows.

        ``many`` says that rows will be conditioned and extended a few at a time, very often: dense rows are then kept
        whitened, or, if they have at most ``FEW`` coordinates, as ``V`` itself.
        """
        match metric:
            case "identity":
                return IdentityDesign(ridge)
            case "diagonal":
                return DiagonalDesign(ridge)
            case "full" if many and isinstance(rows, Dense):
                return PrimalDesign(ridge) if rows.values.shape[-1] <= FEW else WhitenedDesign(ridge)
            case "full":
                return GramDesign(ridge)

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
        if isinstance(rows, Pairs) and rows.items.count < rows.count:  # duels share items: look at those
            return Posterior(rows, rows.along(self._project(rows.items), -1), self.ridge)
        return Posterior(rows, self._project(rows), self.ridge)

    @abstractmethod
    def _project(self, rows: Rows) -> Float[Tensor, "*r s n"]:
        """Return ``L⁻¹Φφ`` of the rows, as columns."""


def factorised(matrix: Float[Tensor, "*r b b"], ridge: float) -> Float[Tensor, "*r b b"]:
    """Return the Cholesky factor of a part of ``V``, to which the ridge is already added; refuse one that has none."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool((failed > 0).any()) or not bool(matrix.isfinite().all()):
        largest = float(matrix.diagonal(dim1=-2, dim2=-1).max())
        raise InputError(
            f"design: beside features of squared norm {largest:.3g} a ridge of {ridge:g} is lost in rounding; raise it "
            "(--ridge, or --regularisation, of which the default ridge is a multiple)"
        )
    return factor


FEW = 64  # coordinates up to which V itself is kept: its factor is renewed in O(p³), whatever was answered
PANEL = 128  # answered rows that are kept together when they come one by one


@dataclass(frozen=True, eq=False)
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
        corner = factorised(own - left @ left.mT, self.ridge)
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
        eye = torch.eye(rows.count, dtype=gram.dtype, device=gram.device)
        corner = factorised(gram + self.ridge * eye, self.ridge)
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


class PrimalDesign(Design):
    """The primal form for dense rows of few coordinates ``p``: keeps ``V`` as its Cholesky factor ``L``, ``p x p``.

    Conditioning costs ``O(p²)`` a row and appending ``O(p³)``, however much was answered.  Rows may have weights.
    """

    def __init__(self, ridge: float) -> None:
        """Begin with no answered duel."""
        super().__init__(ridge)
        self._factor: Tensor | None = None

    @classmethod
    def weighted(cls, rows: Dense, weights: Float[Tensor, "*r n"], ridge: float) -> PrimalDesign:
        """Return ``ridge·I + Σ weight φφᵀ`` (counts, or counts times slopes)."""
        design = cls(ridge)
        matrix = rows.values.mT @ (rows.values * weights.unsqueeze(-1))
        matrix.diagonal(dim1=-2, dim2=-1).add_(ridge)
        design._factor = factorised(matrix, ridge)
        return design

    @property
    def factor(self) -> Float[Tensor, "*r p p"]:
        """The Cholesky factor of ``V``; there must have been rows."""
        assert self._factor is not None
        return self._factor

    def extend(self, seen: Posterior) -> None:
        """Turn ``L`` into ``L chol(I + Σ ψψᵀ / ridge)``, ``ψ = √ridge L⁻¹φ`` the rows as they were seen."""
        rows = seen.rows.dense().values
        matrix = rows.mT @ rows / self.ridge
        matrix.diagonal(dim1=-2, dim2=-1).add_(1.0)
        gain = factorised(matrix, self.ridge)
        self._factor = gain * math.sqrt(self.ridge) if self._factor is None else self._factor @ gain

    def condition(self, rows: Rows) -> Posterior:
        """Return the rows as ``√ridge L⁻¹φ``."""
        values = rows.dense().values
        if self._factor is not None:
            values = math.sqrt(self.ridge) * torch.linalg.solve_triangular(self.factor, values.mT, upper=False).mT
        return Posterior(Dense(values), values.new_zeros((*values.shape[:-2], 0, rows.count)), self.ridge)

    def information(self) -> Tensor | float:
        """Return ``log det(V / ridge)``."""
        if self._factor is None:
            return 0.0
        return (2 * self.factor.diagonal(dim1=-2, dim2=-1).log() - math.log(self.ridge)).sum(-1)


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
        none = values.new_zeros((*values.shape[:-2], 0, rows.count))
        return Posterior(Dense(values), none, self.ridge, "diagonal")

    def information(self) -> Tensor | float:
        """Return ``log det(diag(V) / ridge)``."""
        return 0.0 if self._diagonal is None else (self._diagonal / self.ridge).log().sum(-1)


class IdentityDesign(Design):
    """``V = ridge·I`` whatever was answered: widths are ``‖φ‖/√ridge``, the control without a memory."""

    def extend(self, seen: Posterior) -> None:
        """Forget the rows."""

    def condition(self, rows: Rows) -> Posterior:
        """Return the rows as they are."""
        squares = rows.squares()
        return Posterior(rows, squares.new_zeros((*squares.shape[:-1], 0, rows.count)), self.ridge, "identity")

    def information(self) -> float:
        """Return 0."""
        return 0.0
