"""Owns the ground truths of the simulator: reward functions of known form.  Knows nothing of tables or learners.

Inputs have norm about ``√d``; a truth sees the unit-scale ``u = x/√d``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bandits.core.errors import InputError
from bandits.core.given import alike
from bandits.core.registry import Registry
from bandits.core.rng import Key
from bandits.sim.networks import MLP, Weights


class GroundTruth(ABC):
    """A random reward function; the key decides which one each replicate gets; abstract."""

    norm: float | None = None  # ‖θ* - θ0‖ in the learner's tangent space, where it is known exactly

    @abstractmethod
    def __call__(self, x: Float[Tensor, "*r n d"], key: Key) -> Float[Tensor, "*r n"]:
        """Return the reward of every row, in log-odds."""

    def beside(self, network: MLP, initial: Weights) -> GroundTruth:
        """Return this truth for a learner with the given network and θ0; most truths do not ask."""
        return self


def rewards_of(truth: GroundTruth, x: Float[Tensor, "*r n d"], key: Key) -> Float[Tensor, "*r n"]:
    """Return the reward of every row; ``InputError``, naming the truth, for what are no finite numbers, one a row."""
    name = f"the truth {type(truth).__name__}"
    rewards = alike(truth(x, key), name, x[..., 0])
    if not bool(rewards.isfinite().all()):
        raise InputError(f"{name} gives rewards that are NaN or infinite")
    return rewards


def _direction(dim: int, key: Key) -> Float[Tensor, "*r d 1"]:
    """Draw a unit vector ``a`` uniformly on the sphere."""
    a = key.fold_in("direction").normal(dim, 1)
    return a / torch.linalg.vector_norm(a, dim=-2, keepdim=True)


def _unit(x: Float[Tensor, "*r n d"], key: Key) -> Float[Tensor, "*r n"]:
    """Return ``uᵀa``, ``u = x/√d``, ``a`` a random unit vector."""
    return (x @ _direction(x.shape[-1], key)).squeeze(-1) / math.sqrt(x.shape[-1])


@dataclass(frozen=True)
class Linear(GroundTruth):
    """``r = uᵀa``: the truth that the linear rivals assume."""

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        """Return ``uᵀa``."""
        return _unit(x, key)


@dataclass(frozen=True)
class Square(GroundTruth):
    """``r = 10 (uᵀa)²``: the first truth of Neural Dueling Bandits (arXiv 2407.17112)."""

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        """Return ``10 (uᵀa)²``."""
        return 10 * _unit(x, key).square()


@dataclass(frozen=True)
class Cosine(GroundTruth):
    """``r = cos(3 uᵀa)``: the second truth of Neural Dueling Bandits."""

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        """Return ``cos(3 uᵀa)``."""
        return torch.cos(3 * _unit(x, key))


@dataclass(frozen=True)
class Teacher(GroundTruth):
    """``r = f(x; θ')``: an MLP with tanh units and weights of its own; realisable by no learner here."""

    width: int = 32
    depth: int = 3

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        """Return the teacher's output."""
        network = MLP(x.shape[-1], self.width, self.depth, "tanh")
        return network.value(network.initial(key.fold_in("teacher")), x)


@dataclass(frozen=True)
class TangentTeacher(GroundTruth):
    """``r = ⟨∇f(x; θ0), θ* - θ0⟩``: lies in the learner's own tangent (NTK) space, with ``‖θ* - θ0‖ = norm`` exactly.

    ``θ* - θ0 = Σ_i α_i ∇f(z_i; θ0)`` over random anchors ``z_i``, scaled so that ``αᵀ H α = norm²``.
    """

    norm: float = 1.0
    anchors: int = 16
    network: MLP | None = None
    weights: Weights = ()

    def beside(self, network: MLP, initial: Weights) -> TangentTeacher:
        """Return the truth in the tangent space of this network at θ0."""
        return replace(self, network=network, weights=initial)

    def __call__(self, x: Tensor, key: Key) -> Tensor:
        """Return the reward; cost: one Gram block of ``n`` rows against the anchors."""
        if self.network is None:
            raise InputError("a tangent teacher lies beside a learner's network; say which by beside(network, initial)")
        z = key.fold_in("anchors").normal(self.anchors, x.shape[-1])
        z = z * (math.sqrt(x.shape[-1]) / torch.linalg.vector_norm(z, dim=-1, keepdim=True))
        alpha = key.fold_in("alpha").normal(self.anchors, 1)
        _, anchors = self.network.value_and_gradient(self.weights, z)
        squared = (alpha.mT @ anchors.inner(anchors) @ alpha).squeeze(-1)
        alpha = alpha.squeeze(-1) * (self.norm / squared.sqrt())
        rewards = []
        for chunk in x.split(4096, dim=-2):
            _, rows = self.network.value_and_gradient(self.weights, chunk)
            rewards.append((rows.inner(anchors) @ alpha.unsqueeze(-1)).squeeze(-1))
        return torch.cat(rewards, -1)


def _check(truth: object) -> None:
    """Raise ``InputError`` for what is no ground truth."""
    if not isinstance(truth, GroundTruth):
        raise InputError(f"a ground truth is an object of a class that inherits from GroundTruth, got {truth!r}")


TRUTHS = Registry[GroundTruth]("ground truth", _check)
"""All ground truths by name; ``TRUTHS.register`` adds one."""

for _name, _truth in {
    "linear": Linear(),
    "square": Square(),
    "cosine": Cosine(),
    "mlp": Teacher(),
    "ntk": TangentTeacher(),
}.items():
    TRUTHS.register(_name, _truth)
