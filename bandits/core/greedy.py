"""Owns the choice of a batch: greedy D-optimal or V-optimal (trace) picks from the posterior of a pool."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.core.design import Posterior, factorised
from bandits.core.duels import gather

Score = Callable[[Float[Tensor, "*r n"], Bool[Tensor, "*r n"]], Tensor]
"""What a row is worth, from ``ridge·‖φ‖²_{V⁻¹}`` and from which rows are gone."""


def greedy(
    pool: Posterior,
    count: int,
    available: Bool[Tensor, "*r n"],
    ties: Float[Tensor, "*r n"],
    update: bool = True,
    score: Score | None = None,
) -> Int64[Tensor, "*r count"]:
    """Pick ``count`` rows, each time ``argmax ‖φ‖_{V⁻¹}``, then ``V ← V + φφᵀ`` at once (unless not ``update``).

    What is added is what the posterior's metric keeps: all of ``φφᵀ``, its diagonal, or (``identity``) nothing.
    For the full metric this is greedy maximisation of ``log det V`` (D-optimality), done as a pivoted Cholesky
    factorisation of the conditioned Gram matrix: with ``w = column/√(ridge + residual)`` every residual falls by
    ``w²``.
    Cost ``O(count · n · (d + S + count))``; one large pool costs less, see :func:`_front`.  Equal widths are decided by
    the larger tie number.  ``score`` puts another worth in the width's place, with the same ``V`` (full metric only).
    """
    residual = pool.residuals
    if score is not None:
        return _steps(pool, residual, count, available, ties, update, score=score)[0]
    if not update or pool.metric == "identity":
        return _steps(pool, residual, count, available, ties, False)[0]
    if pool.metric == "diagonal":
        return _diagonal(pool, count, available, ties)
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


class Facing:
    """The inner products ``G`` of a pool's rows with target rows, under a ``V`` that grows by picks from the pool.

    ``G`` is formed once, ``O(n m (d + S))``; after ``t`` picks it is ``G - A Bᵀ`` with ``t`` columns, so a pick costs
    one product of ``G`` with a vector, and, if the target is not the pool itself, one pass over the pool's rows.  Both
    posteriors must be of one ``V``, whose metric is full.  All inner products are ``ridge`` times those in ``V⁻¹``.
    """

    def __init__(self, pool: Posterior, target: Posterior, count: int, weights: Float[Tensor, "*r m"] | None) -> None:
        """Begin with the posteriors' ``V``; at most ``count`` rows will be added, ``weights`` are the target rows'."""
        self.pool, self.ridge, self.residual = pool, pool.ridge, pool.residuals
        self._block = pool.inner(target)
        self._weights = torch.ones_like(self._block[..., 0, :]) if weights is None else weights
        self.squares = (self._block.square() @ self._weights.unsqueeze(-1)).squeeze(-1)
        """``Σ_f weight_f ⟨φ, f⟩²`` of every row of the pool"""
        self._ours = self.residual.new_zeros((*self.residual.shape, count))
        self._same = target is pool
        self._theirs = self._ours if self._same else self.residual.new_zeros((*self._weights.shape, count))
        self._added = 0

    def times(self, vector: Float[Tensor, "*r m"]) -> Float[Tensor, "*r n"]:
        """Return ``G`` times a vector over the target."""
        column, t = vector.unsqueeze(-1), self._added
        return (self._block @ column - self._ours[..., :t] @ (self._theirs[..., :t].mT @ column)).squeeze(-1)

    def row(self, pick: Int64[Tensor, "*r"]) -> Float[Tensor, "*r m"]:
        """Return the inner products of one row of the pool with the target."""
        index, t = pick.unsqueeze(-1), self._added
        return (gather(self._block, index).mT - self._theirs[..., :t] @ gather(self._ours[..., :t], index).mT).squeeze(
            -1
        )

    def column(self, pick: Int64[Tensor, "*r"]) -> Float[Tensor, "*r n"]:
        """Return the inner products of one row of the pool with the whole pool."""
        if self._same:
            return self.row(pick)
        index, t = pick.unsqueeze(-1), self._added
        return self.pool.column(pick) - (self._ours[..., :t] @ gather(self._ours[..., :t], index).mT).squeeze(-1)

    def add(self, pick: Int64[Tensor, "*r"]) -> None:
        """Let ``V ← V + φφᵀ`` with one row of the pool."""
        scale = (self.ridge + self.residual.gather(-1, pick.unsqueeze(-1))).sqrt()
        theirs = self.row(pick) / scale
        ours = theirs if self._same else self.column(pick) / scale
        weighed = self._weights * theirs
        shared = (theirs * weighed).sum(-1, keepdim=True)
        self.squares = (self.squares - 2 * ours * self.times(weighed) + ours.square() * shared).clamp(min=0)
        self.residual = (self.residual - ours.square()).clamp(min=0)
        self._ours[..., self._added], self._theirs[..., self._added] = ours, theirs
        self._added += 1

    @property
    def lowered(self) -> Float[Tensor, "*r n"]:
        """By how much each row of the pool, added to ``V``, would lower ``Σ_f weight_f ‖f‖²_{V⁻¹}``.

        ``Σ_f weight_f ⟨f, φ⟩²_{V⁻¹} / (1 + ‖φ‖²_{V⁻¹})``, by Sherman and Morrison.
        """
        return self.squares / (self.ridge + self.residual) / self.ridge


def greedy_trace(
    pool: Posterior,
    target: Posterior,
    count: int,
    available: Bool[Tensor, "*r n"],
    ties: Float[Tensor, "*r n"],
    weights: Float[Tensor, "*r m"] | None = None,
) -> tuple[Int64[Tensor, "*r count"], Float[Tensor, "*r count"]]:
    """Pick ``count`` rows, each the one that most lowers ``Σ_f weight_f ‖f‖²_{V⁻¹}`` over target rows ``f``.

    Greedy V-optimality; with ``M = Σ_f weight_f f fᵀ`` it is the trace ``tr(M V⁻¹)`` of arXiv 2606.19607, lowered one
    duel at a time.  Returns the picks and how much each lowers the sum.  Cost: see :class:`Facing`.
    """
    facing = Facing(pool, target, count, weights)
    picks: list[Tensor] = []
    lowered: list[Tensor] = []
    for step in range(count):
        values = facing.lowered
        picks.append(best(values, available, ties))
        index = picks[-1].unsqueeze(-1)
        lowered.append(values.gather(-1, index).squeeze(-1))
        if step < count - 1:
            available = available.scatter(-1, index, False)
            facing.add(picks[-1])
    return torch.stack(picks, -1), torch.stack(lowered, -1)


def gains(pool: Posterior, picks: Int64[Tensor, "*r count"]) -> tuple[Float[Tensor, "*r n"], Float[Tensor, "*r count"]]:
    """Return what every row alone would add to ``log det V`` in nats, and what each pick added after those before it.

    ``V`` is what the metric keeps of it: ``log(1 + ‖φ‖²_{V⁻¹})``; with the diagonal ``Σ_k log(1 + φ_k²/V_kk)``; with
    the identity the first of these for the picks, too, since none of them changes ``V``.
    """
    alone = torch.log1p(pool.residuals / pool.ridge)
    chosen = pool.take(picks)
    match pool.metric:
        case "identity":
            return alone, alone.gather(-1, picks)
        case "diagonal":
            added = chosen.rows.dense().values.square() / pool.ridge
            grown = torch.log1p(added.cumsum(-2)).sum(-1)
            alone = torch.log1p(pool.rows.dense().values.square() / pool.ridge).sum(-1)
            return alone, grown.diff(dim=-1, prepend=torch.zeros_like(grown[..., :1]))
        case "full":
            own = chosen.inner(chosen)
            own.diagonal(dim1=-2, dim2=-1).add_(pool.ridge)
            steps = factorised(own, pool.ridge).diagonal(dim1=-2, dim2=-1)
            return alone, 2 * steps.log() - math.log(pool.ridge)


def _diagonal(
    pool: Posterior, count: int, available: Bool[Tensor, "*r n"], ties: Float[Tensor, "*r n"]
) -> Int64[Tensor, "*r count"]:
    """Pick with ``diag V`` alone growing: rows ``ψ`` scaled by its root see it as ``ridge (1 + Σ ψ²/ridge)``."""
    squares = pool.rows.dense().values.square()
    grown = torch.ones_like(squares[..., 0, :])
    picks: list[Tensor] = []
    for _ in range(count):
        picks.append(best((squares @ (1 / grown).unsqueeze(-1)).squeeze(-1), available, ties))
        index = picks[-1].unsqueeze(-1)
        available = available.scatter(-1, index, False)
        grown = grown + gather(squares, index).squeeze(-2) / pool.ridge
    return torch.stack(picks, -1)


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
    """Pick as many of the ``count`` rows as can be known from the ``size`` rows of largest residual; at least one.

    Residuals only fall (``log det`` is submodular: Minoux 1978), so while the best row of this front exceeds the
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
    return torch.linalg.solve_triangular(factorised(pivot, pool.ridge), columns.mT, upper=False).mT


def _steps(
    pool: Posterior,
    residual: Float[Tensor, "*r n"],
    count: int,
    available: Bool[Tensor, "*r n"],
    ties: Float[Tensor, "*r n"],
    update: bool,
    known: Float[Tensor, "*r n k"] | None = None,
    score: Score | None = None,
) -> tuple[Int64[Tensor, "*r count"], Float[Tensor, "*r count"]]:
    """Pick step by step; return the picks and their residuals when picked.  ``known`` are earlier picks' columns."""
    taken = ~available
    picks, values = [], []
    start = 0 if known is None else known.shape[-1]
    factor = residual.new_empty((*residual.shape, start + count))
    if known is not None:
        factor[..., :start] = known
    for step in range(start, start + count):
        pick = best(residual if score is None else score(residual, taken), ~taken, ties)
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
