"""Owns the right-hand sides of the reward-difference bounds, term by term.

``V`` has the ridge ``ρ = λ/κ``; ``information`` is the realised ``log det(V/ρ)``, which the proofs use and which is
never above the effective dimension ``d̃``; ``norm`` is ``B``, the distance ``‖θ* - θ0‖`` of some ``θ*`` whose linearised
reward differences are the true ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.rows import ItemRows


@dataclass(frozen=True, eq=False)
class Radius:
    """What multiplies ``‖φ‖_{V⁻¹}`` in a bound: noise term + prior term + extra."""

    noise: Float[Tensor, "*r"]
    prior: Float[Tensor, "*r"]
    extra: float = 0.0

    @property
    def total(self) -> Float[Tensor, "*r"]:
        """The sum of the terms."""
        return self.noise + self.prior + self.extra


def check_delta(delta: float) -> None:
    """Raise ``InputError`` unless δ is a probability strictly between 0 and 1."""
    if not 0 < delta < 1:
        raise InputError(f"bound: δ must lie strictly between 0 and 1, got {delta}")


def proposition(
    information: Float[Tensor, "*r"], norm: Float[Tensor, "*r"], kappa: float, regularisation: float, delta: float
) -> Radius:
    """Return ``γ = (1/κ) √(information + 2 log 1/δ) + B √(λ/κ) + 1``: Proposition 1, constants of arXiv 2407.17112.

    The bound is ``γ ‖φ‖_{V⁻¹} + 2ε`` with an unspecified ``ε`` that the testbed measures as the linearisation error.
    """
    check_delta(delta)
    noise = (information + 2 * math.log(1 / delta)).sqrt() / kappa
    return Radius(noise, norm * math.sqrt(regularisation / kappa), 1.0)


def linearised(
    information: Float[Tensor, "*r"],
    norm: Float[Tensor, "*r"],
    kappa: Float[Tensor, "*r"] | float,
    ridge: float,
    regularisation: float,
    delta: float,
) -> Radius:
    """Return the exact multiplier for the linearised learner: no ε and no +1 (derivation in docs/theory.md).

    ``(1/κ') (½ √(information + 2 log 1/δ) + λ B/√ρ)`` with any fixed ridge ``ρ`` and any ``κ'`` such that
    ``Σ a_s φφᵀ + λI ⪰ κ' V``, ``a_s`` the mean slopes between true and fitted margins; so ``κ' ≤ min(a_s, λ/ρ)`` may be
    read off the data.  With ``ρ = λ/κ`` and ``κ' = κ`` it is ``(1/2κ) √(·) + B √(λ/κ)``.
    """
    check_delta(delta)
    kappa = torch.as_tensor(kappa, dtype=norm.dtype, device=norm.device)
    noise = (information + 2 * math.log(1 / delta)).sqrt() / (2 * kappa)
    return Radius(noise, regularisation * norm / (math.sqrt(ridge) * kappa))


PIVOT = 1e-12  # share of a duel's ‖φ‖² that must lie outside the span of those before it: less is rounding


def base_duels(rows: ItemRows, responses: int) -> Duels:
    """Return the duels of every response against its prompt's first one, in every replicate: they span all duels."""
    squares = rows.squares()
    others = torch.arange(rows.count, device=squares.device)
    others = others[others % responses != 0]
    return Duels(others, others - others % responses).expand(*squares.shape[:-1])


def gram_factor(rows: ItemRows, responses: int) -> Float[Tensor, "*r k k"]:
    """Return the Cholesky factor of the Gram matrix ``G`` of the base duels of these items.

    Raises ``InputError`` if ``G`` is singular, naming two items that coincide where there are such: then no ``θ`` need
    have the true reward differences on these items, and ``B`` is not available.
    """
    pairs = rows.differences(base_duels(rows, responses))
    gram = pairs.inner(pairs)
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square() / gram.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300)
    if bool((failed > 0).any()) or float(pivots.min()) < PIVOT:
        raise InputError(f"the items' Gram matrix is singular: {_coinciding(rows, responses)}")
    return factor


def _coinciding(rows: ItemRows, responses: int) -> str:
    """Name the two items whose gradients are nearest, if they are equal up to rounding."""
    gram = rows.inner(rows)
    squares = gram.diagonal(dim1=-2, dim2=-1)
    distance = squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * gram
    distance = distance / squares.amax(-1)[..., None, None].clamp(min=1e-300)
    distance = distance.flatten(0, -3).amin(0) if distance.dim() > 2 else distance
    distance.fill_diagonal_(torch.inf)
    i, j = divmod(int(distance.argmin()), rows.count)
    if float(distance.min()) > 1e-10:
        return (
            f"no two items coincide, so the network has too few parameters for {rows.count} items; widen it or show "
            "fewer items"
        )
    where = " and ".join(f"{k} (prompt {k // responses}, response {k % responses})" for k in (i, j))
    return f"items {where} coincide; drop one of them"


def interpolation_norm(rows: ItemRows, rewards: Float[Tensor, "*r n"], responses: int) -> Float[Tensor, "*r"]:
    """Return the smallest ``B``: the norm of the least ``θ - θ0`` with the true reward *differences* on these items.

    ``B² = dᵀ G⁻¹ d`` with the differences ``d`` of the base duels and their Gram matrix ``G``.  It is at most NDB's
    ``√(rᵀ H⁻¹ r)``, since adding ``c(x)`` to the reward changes nothing.  Raises ``InputError`` as ``gram_factor``.
    """
    difference = base_duels(rows, responses).difference(rewards).unsqueeze(-1)
    white = torch.linalg.solve_triangular(gram_factor(rows, responses), difference, upper=False)
    return torch.linalg.vector_norm(white.squeeze(-1), dim=-1)
