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
from bandits.core.rows import Rows


@dataclass(frozen=True)
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


def interpolation_norm(rows: Rows, rewards: Float[Tensor, "*r n"], responses: int) -> Float[Tensor, "*r"]:
    """Return the smallest ``B``: the norm of the least ``θ - θ0`` with the true reward *differences* on these items.

    ``B² = dᵀ G⁻¹ d`` over the duels of every response against its prompt's first one, ``G`` their Gram matrix.  It is
    at most NDB's ``√(rᵀ H⁻¹ r)``, since adding ``c(x)`` to the reward changes nothing.  Raises ``InputError`` if ``G``
    is singular (two items coincide, or the network has too few parameters to tell the items apart).
    """
    count = rows.count
    others = torch.arange(count, device=rewards.device)
    others = others[others % responses != 0]
    duels = Duels(others, others - others % responses).expand(*rewards.shape[:-1])
    pairs = rows.differences(duels)
    difference = duels.difference(rewards).unsqueeze(-1)
    factor, failed = torch.linalg.cholesky_ex(pairs.inner(pairs))
    if bool((failed > 0).any()):
        raise InputError(
            "bound: the items' Gram matrix is singular; two items coincide or the network has too few parameters for "
            f"{count} items: widen it or show fewer items"
        )
    white = torch.linalg.solve_triangular(factor, difference, upper=False)
    return white.squeeze(-1).square().sum(-1).sqrt()
