"""Owns the linearised problem in exact coordinates, and its fits with sufficient statistics.

On a finite table the linearised learner ``h(z) = ⟨∇f(z; θ0), θ - θ0⟩`` only ever sees the span of the duels' features
φ.  An orthonormal basis of that span has ``p = prompts (responses - 1)`` members, so every duel is a vector of ``p``
numbers with exactly the inner products of the ``P`` numbers of its gradient; ``V`` is ``p x p``; and the answers enter
through two counts per duel, however often it is asked.  Knows nothing of claims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from bandits.core.bounds import base_duels, gram_factor
from bandits.core.duels import Duels
from bandits.core.errors import InputError, unknown
from bandits.core.oracles import slope
from bandits.core.rng import Key
from bandits.core.rows import Dense, ItemRows
from bandits.core.solvers import newton
from bandits.sim.networks import MLP, Activation
from bandits.sim.problem import Problem
from bandits.sim.truths import TRUTHS


@dataclass(frozen=True)
class Setting:
    """A table of items, a network and a truth on it."""

    prompts: int = 3
    responses: int = 3
    dim: int = 5
    width: int = 32
    depth: int = 3
    activation: Activation = "softplus"
    truth: str = "mlp"
    largest: float = 1.0
    """Δmax: the largest true reward difference, attained"""

    def __post_init__(self) -> None:
        if self.truth not in (*TRUTHS, "aligned"):
            raise unknown("ground truth", self.truth, (*TRUTHS, "aligned"))
        if self.prompts < 1 or self.responses < 2:
            raise InputError(f"a table needs prompts and two responses, got {self.prompts} x {self.responses}")
        if not self.largest > 0:
            raise InputError(f"the largest reward difference must be positive, got {self.largest}")
        _ = self.network

    @property
    def network(self) -> MLP:
        """The learner's network."""
        return MLP(self.dim, self.width, self.depth, self.activation)

    @property
    def duels(self) -> Duels:
        """All pairs within a prompt."""
        return Duels.within(self.prompts, self.responses)

    @property
    def count(self) -> int:
        """How many duels there are, without making them."""
        return self.prompts * (self.responses * (self.responses - 1) // 2)


@dataclass(frozen=True, eq=False)
class TangentWorld:
    """Duels as vectors, the true parameter, and where θ0 lies.

    ``features`` are φ, ``theta`` is the least ``θ* - θ0`` with the true reward differences on the table, ``start`` the
    projection of θ0 itself on the span (needed only to decay to the wrong place).
    """

    features: Float[Tensor, "r n p"]
    theta: Float[Tensor, "r p"]
    start: Float[Tensor, "r p"]
    duels: Duels
    responses: int

    @property
    def margins(self) -> Float[Tensor, "r n"]:
        """The true reward differences, in log-odds."""
        return times(self.features, self.theta)

    @property
    def norm(self) -> Float[Tensor, r]:
        """``B = ‖θ* - θ0‖``."""
        return torch.linalg.vector_norm(self.theta, dim=-1)

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """The two items' places among their prompt's responses."""
        return self.duels.first % self.responses, self.duels.second % self.responses

    @classmethod
    def of(cls, setting: Setting, key: Key) -> TangentWorld:
        """Draw a table, a network and a truth, one per replicate.

        The truth ``aligned`` is ``θ* - θ0 ∝`` the feature of the first duel: the truth of least norm for its size.
        """
        network = setting.network
        initial = network.initial(key.fold_in("network"))
        name = "linear" if setting.truth == "aligned" else setting.truth
        problem = Problem(
            TRUTHS[name].beside(network, initial),
            key.fold_in("world", name),
            setting.prompts,
            setting.responses,
            setting.dim,
            bound=setting.largest / 2,
        )
        points, rewards = problem.everything()
        rows = network.value_and_gradient(initial, points.x)[1]
        items = coordinates(rows, setting.responses)
        duels = setting.duels.expand(rewards.shape[0])
        features = Dense(items.values).differences(duels).values
        theta = interpolate(items, rewards, setting.responses)
        if setting.truth == "aligned":
            theta = features[..., 0, :]
        margins = times(features, theta)
        theta = theta * (setting.largest / margins.abs().amax(-1, keepdim=True))
        return cls(
            features, theta, interpolate(items, rows.times(initial), setting.responses), duels, setting.responses
        )


def times(features: Float[Tensor, "*r n p"], vector: Float[Tensor, "*r p"]) -> Float[Tensor, "*r n"]:
    """Return ``Φ v``."""
    return (features @ vector.unsqueeze(-1)).squeeze(-1)


def coordinates(rows: ItemRows, responses: int) -> Dense:
    """Return every item's gradient, less its prompt's first one, in an orthonormal basis of the duels' span.

    ``G = L Lᵀ`` is the Gram matrix of the duels of every response against its prompt's first; row ``i`` of ``L`` is
    duel ``i``.  Raises ``InputError`` if ``G`` is singular, naming two items that coincide where there are such.
    """
    factor = gram_factor(rows, responses)
    values = factor.new_zeros((*factor.shape[:-2], rows.count, factor.shape[-1]))
    others = torch.arange(rows.count, device=factor.device)
    values[..., others[others % responses != 0], :] = factor
    return Dense(values)


def interpolate(items: Dense, rewards: Float[Tensor, "r n"], responses: int) -> Float[Tensor, "r p"]:
    """Return the least θ with ``⟨item_i - item_first, θ⟩ = reward_i - reward_first`` for every item: ``L⁻¹ d``."""
    base = base_duels(items, responses)
    factor, difference = items.differences(base).values, base.difference(rewards).unsqueeze(-1)
    return torch.linalg.solve_triangular(factor, difference, upper=False).squeeze(-1)


@dataclass(frozen=True)
class Logistic:
    """The link ``σ`` with its primitive and slope."""

    def value(self, margin: Tensor) -> Tensor:
        """Return ``σ(m)``."""
        return torch.sigmoid(margin)

    def primitive(self, margin: Tensor) -> Tensor:
        """Return ``∫σ = log(1 + eᵐ)``."""
        return softplus(margin)

    def slope(self, margin: Tensor) -> Tensor:
        """Return ``σ'(m)``."""
        return slope(margin)


@dataclass(frozen=True)
class ExtendedLink:
    """``σ`` on ``|m| <= limit``, continued beyond it by straight lines of slope ``κ = σ'(limit)``.

    The link of a generalised linear model that agrees with Bradley-Terry-Luce wherever ``|Δ| <= limit``, but whose
    slope is at least κ *everywhere*: no fitted difference can leave the region where κ holds (docs/theory.md, 2.2).
    Its primitive is continued by the matching parabola, so the loss stays convex and once continuously differentiable.
    """

    limit: float

    def value(self, margin: Tensor) -> Tensor:
        """Return the continued link; outside [0, 1] far from 0, which a mean may not be but a loss's slope may."""
        inside = margin.clamp(-self.limit, self.limit)
        return torch.sigmoid(inside) + slope(inside) * (margin - inside)

    def primitive(self, margin: Tensor) -> Tensor:
        """Return its integral."""
        inside = margin.clamp(-self.limit, self.limit)
        beyond = margin - inside
        return softplus(inside) + torch.sigmoid(inside) * beyond + slope(inside) * beyond.square() / 2

    def slope(self, margin: Tensor) -> Tensor:
        """Return its derivative, ``σ'(clip(m))``."""
        return slope(margin.clamp(-self.limit, self.limit))


Link = Logistic | ExtendedLink


@dataclass(frozen=True, eq=False)
class Counts:
    """Sufficient statistics of the answers: how often each duel was asked, and how often its first item won."""

    asked: Float[Tensor, "*r n"]
    won: Float[Tensor, "*r n"]

    def add(self, picks: Tensor, outcome: Tensor) -> Counts:
        """Return the counts with more answers."""
        one = torch.ones_like(picks, dtype=self.asked.dtype)
        return Counts(self.asked.scatter_add(-1, picks, one), self.won.scatter_add(-1, picks, outcome))

    @property
    def total(self) -> Tensor:
        """Answers so far."""
        return self.asked.sum(-1)


def log_likelihood(margin: Float[Tensor, "*r n"], counts: Counts, link: Link) -> Float[Tensor, "*r"]:
    """Return ``ℓ = Σ asked · (share won · m - ∫link(m))``, in nats; for the logistic link the BTL log-likelihood."""
    return (counts.won * margin - counts.asked * link.primitive(margin)).sum(-1)


def fit(
    features: Float[Tensor, "*r n p"],
    counts: Counts,
    regularisation: Float[Tensor, "*r"],
    link: Link,
    start: Float[Tensor, "*r p"],
    centre: Float[Tensor, "*r p"] | None = None,
    tolerance: float = 1e-9,
    iterations: int = 60,
) -> tuple[Float[Tensor, "*r p"], Float[Tensor, "*r"]]:
    """Return the minimiser of ``-ℓ(θ) + (λ/2)‖θ - centre‖²`` and ``‖∇‖`` there relative to ``1 + ‖∇‖`` at the centre.

    Newton's method from ``start`` with halved steps where the loss would rise.
    """
    lam = regularisation.unsqueeze(-1)
    centre = torch.zeros_like(start) if centre is None else centre

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        margin = times(features, theta)
        return regularisation / 2 * (theta - centre).square().sum(-1) - log_likelihood(margin, counts, link), margin

    def gradient(theta: Tensor, margin: Tensor) -> Tensor:
        residual = counts.asked * link.value(margin) - counts.won
        return times(features.mT, residual) + lam * (theta - centre)

    scale = 1 + torch.linalg.vector_norm(gradient(centre, times(features, centre)), dim=-1)

    def derivatives(theta: Tensor, margin: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        pull = gradient(theta, margin)

        def step() -> Tensor:
            hessian = features.mT @ (features * (counts.asked * link.slope(margin)).unsqueeze(-1))
            hessian.diagonal(dim1=-2, dim2=-1).add_(lam)
            return -torch.cholesky_solve(pull.unsqueeze(-1), torch.linalg.cholesky(hessian)).squeeze(-1)

        return pull, torch.linalg.vector_norm(pull, dim=-1) / scale, step

    theta, size, _ = newton(objective, derivatives, start, tolerance, iterations)
    return theta, size
