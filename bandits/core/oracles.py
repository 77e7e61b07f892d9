"""Owns the preference oracles: Bradley-Terry-Luce and the deliberate departures from it that serve as controls.

Knows nothing of learners.  An oracle turns true rewards into the probability that the first item wins; the uniform
number that decides is an argument, so two strategies that ask the same duel get the same answer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import softplus

from bandits.core.errors import InputError
from bandits.core.registry import Registry


def slope(margin: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return ``σ'(margin) = σ(margin) σ(-margin)``: the Fisher information of one answer about its margin."""
    return torch.sigmoid(margin) * torch.sigmoid(-margin)


def kappa(largest_margin: float) -> float:
    """Return ``κ = σ'(Δmax)``, the smallest slope of the link on ``|Δ| <= Δmax`` (at most 1/4)."""
    return 1.0 / (2.0 + 2.0 * math.cosh(largest_margin))


def loss(margin: Float[Tensor, "*r k"], first_won: Bool[Tensor, "*r k"]) -> Float[Tensor, "*r"]:
    """Return ``-Σ log σ(o Δ)``, ``o = ±1`` the answer: the DPO loss, a sum over duels, in nats."""
    return softplus(torch.where(first_won, -margin, margin)).sum(-1)


class Oracle(ABC):
    """Answers duels from true rewards; abstract."""

    @abstractmethod
    def probability(
        self, margin: Float[Tensor, "*r k"], places: tuple[Int64[Tensor, "*r k"], Int64[Tensor, "*r k"]], responses: int
    ) -> Float[Tensor, "*r k"]:
        """Return ``P(first wins)`` from true margins and the two items' places among their prompt's responses."""


@dataclass(frozen=True)
class BTL(Oracle):
    """``P(first wins) = σ(Δ / temperature)``: the assumption of the theory at temperature 1."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"oracle temperature must be positive, got {self.temperature}")

    def probability(self, margin: Tensor, places: tuple[Tensor, Tensor], responses: int) -> Tensor:
        """Return ``σ(Δ / temperature)``."""
        return torch.sigmoid(margin / self.temperature)


@dataclass(frozen=True)
class Flipped(Oracle):
    """BTL answers, each turned round with the given probability (1 = always): not BTL for the true reward."""

    flip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip probability must lie in [0, 1], got {self.flip}")

    def probability(self, margin: Tensor, places: tuple[Tensor, Tensor], responses: int) -> Tensor:
        """Return ``(1 - flip) σ(Δ) + flip σ(-Δ)``."""
        win = torch.sigmoid(margin)
        return (1 - self.flip) * win + self.flip * (1 - win)


@dataclass(frozen=True)
class Probit(Oracle):
    """``P(first wins) = Φ(scale · Δ)``: Thurstone's normal link in place of the logistic one.

    At scale 0.6 it is close to ``σ(Δ)`` for small margins; larger scales are a strong misspecification.
    """

    scale: float = 2.0

    def probability(self, margin: Tensor, places: tuple[Tensor, Tensor], responses: int) -> Tensor:
        """Return ``Φ(scale Δ)``."""
        return torch.special.ndtr(self.scale * margin)


@dataclass(frozen=True)
class Intransitive(Oracle):
    """BTL plus a cycle: each response beats its next neighbour (mod ``responses``) by ``strength`` log-odds more.

    With three or more responses no reward function has these preferences.
    """

    strength: float = 2.0

    def probability(self, margin: Tensor, places: tuple[Tensor, Tensor], responses: int) -> Tensor:
        """Return ``σ(Δ + strength · c)``, ``c = sin(2π (place2 - place1) / responses)`` (antisymmetric)."""
        turn = (places[1] - places[0]) * (2 * math.pi / responses)
        return torch.sigmoid(margin + self.strength * torch.sin(turn.to(margin.dtype)))


@dataclass(frozen=True)
class Noiseless(Oracle):
    """The better item always wins (ties: even odds); the limit of BTL at temperature 0."""

    def probability(self, margin: Tensor, places: tuple[Tensor, Tensor], responses: int) -> Tensor:
        """Return 1, 1/2 or 0 by the sign of ``Δ``."""
        return (1 + torch.sign(margin)) / 2


def _check(oracle: object) -> None:
    """Raise ``InputError`` for what is no oracle."""
    if not isinstance(oracle, Oracle):
        raise InputError(f"an oracle is an object of a class that inherits from Oracle, got {oracle!r}")


ORACLES = Registry[Oracle]("oracle", _check)
"""All oracles by name; ``ORACLES.register`` adds one."""

for _name, _oracle in {
    "btl": BTL(),
    "btl-hot": BTL(temperature=4.0),
    "btl-cold": BTL(temperature=0.25),
    "flipped": Flipped(),
    "flipped-20%": Flipped(0.2),
    "probit": Probit(),
    "intransitive": Intransitive(),
    "noiseless": Noiseless(),
}.items():
    ORACLES.register(_name, _oracle)
