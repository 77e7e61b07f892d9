"""Owns the choice of a batch: greedy D-optimal or V-optimal (trace) picks from the posterior of a pool."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.core.design import Posterior, factorised
from bandits.core.duels import gather


def greedy(
    pool: Posterior, count: int, available: Bool[Tensor, "*r n"], ties: Float[Tensor, "*r n"], update: bool = True
) -> Int64[Tensor, "*r count"]:
    """Pick ``count`` rows, each time ``argmax ‖φ‖_{V⁻¹}``, then ``V ← V + φφᵀ`` at once (unless not ``update``).

    What is added is what the posterior's metric keeps: all of ``φφᵀ``, its diagonal, or (``identity``) nothing.
    For the full metric this is greedy maximisation of ``log det V`` (D-optimality), done as a pivoted Cholesky
    factorisation of the conditioned Gram matrix: with ``w = column/√(ridge + residual)`` every residual falls by
    ``w²``.
    Cost ``O(count · n · (d + S + count))``; one large pool costs less, see :func:`_front`.  Equal widths are decided by
    the larger tie number.
    """
    residual = pool.residuals
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


def greedy_trace(
    pool: Posterior,
    target: Posterior,
    count: int,
    available: Bool[Tensor, "*r n"],
    ties: Float[Tensor, "*r n"],
    weights: Float[Tensor, "*r m"] | None = None,
) -> tuple[Int64[Tensor, "*r count"], Float[Tensor, "*r count"]]:
    """Pick ``count`` rows, each the one that most lowers ``Σ_f weight_f ‖f‖²_{V⁻¹}`` over target rows ``f``.

    By Sherman and Morrison adding ``φ`` to ``V`` lowers that sum by ``Σ_f weight_f ⟨f, φ⟩²_{V⁻¹} / (1 + ‖φ‖²_{V⁻¹})``:
    greedy V-optimality, or, with ``Σ_f weight_f f fᵀ = I``, the A-optimality ``tr(I V⁻¹)`` of arXiv 2606.19607.
    Returns the picks and how much each lowers the sum.  Both posteriors must be of one ``V``, whose metric is full.

    One block of inner products ``G`` between pool and target, ``O(n m (d + S))``, is formed once.  A pick then costs
    one pass over it: with ``G_t = G - A Bᵀ`` after ``t`` picks, the squares of its rows change by a product of ``G``
    with one vector.  If the target is the pool itself, a pick touches no row again.
    """
    block, residual, ridge = pool.inner(target), pool.residuals, pool.ridge
    weigh = torch.ones_like(block[..., 0, :]) if weights is None else weights
    squares = (block.square() @ weigh.unsqueeze(-1)).squeeze(-1)
    ours = residual.new_zeros((*residual.shape, count))
    theirs = ours if target is pool else weigh.new_zeros((*weigh.shape, count))
    picks: list[Tensor] = []
    lowered: list[Tensor] = []
    for step in range(count):
        values = squares / (ridge + residual)
        pick = best(values, available, ties)
        index = pick.unsqueeze(-1)
        picks.append(pick)
        lowered.append(values.gather(-1, index).squeeze(-1) / ridge)
        if step == count - 1:
            break
        available = available.scatter(-1, index, False)
        scale = (ridge + residual.gather(-1, index)).sqrt()
        mine = gather(ours[..., :step], index).mT
        theirs[..., step] = (gather(block, index).mT - theirs[..., :step] @ mine).squeeze(-1) / scale
        if target is not pool:
            ours[..., step] = (pool.column(pick) - (ours[..., :step] @ mine).squeeze(-1)) / scale
        mine, facing = ours[..., step], theirs[..., step]
        weighed = (weigh * facing).unsqueeze(-1)
        along = block @ weighed - ours[..., :step] @ (theirs[..., :step].mT @ weighed)
        squares = squares - 2 * mine * along.squeeze(-1) + mine.square() * (facing.unsqueeze(-2) @ weighed).squeeze(-1)
        squares = squares.clamp(min=0)
        residual = (residual - mine.square()).clamp(min=0)
    return torch.stack(picks, -1), torch.stack(lowered, -1)


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
