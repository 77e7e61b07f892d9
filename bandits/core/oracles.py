"""Owns the preference oracles: Bradley-Terry-Luce, Davidson's ties, and departures from them that serve as controls.

Knows nothing of learners.  An oracle turns true rewards into the probabilities that the first item wins and that the
duel is a tie; the uniform number that decides is an argument, so two strategies that ask the same duel get the same
answer.  An answer is an *outcome*: the share of the duel won by the first item, 1, 0, or 1/2 for a tie.

Ties are Davidson's (1970): ``P(first) : P(tie) : P(second) = e^{Δ/2} : ν : e^{-Δ/2}``.  ``ν = 0`` is BTL.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import softplus

from bandits.core.errors import InputError
from bandits.core.given import alike
from bandits.core.registry import Registry


def tie_weight(rate: float) -> float:
    """Return Davidson's ``ν = 2 rate / (1 - rate)``: ``rate`` of the duels of equal items are ties."""
    if not 0 <= rate < 1:
        raise InputError(f"the share of ties must lie in [0, 1), got {rate}")
    return 2 * rate / (1 - rate)


def expected(margin: Float[Tensor, ...], ties: float = 0.0) -> Float[Tensor, ...]:
    """Return the expected outcome ``P(first) + P(tie)/2`` at a margin, ``ties`` Davidson's ν; ``σ(Δ)`` at ν = 0."""
    if ties == 0:
        return torch.sigmoid(margin)
    # sinh(Δ/2) / (2 cosh(Δ/2) + ν), both divided by e^{|Δ|/2}
    small = torch.exp(-margin.abs() / 2)
    return 0.5 + 0.5 * margin.sign() * (1 - small.square()) / (1 + small.square() + ties * small)


def slope(margin: Float[Tensor, ...], ties: float = 0.0) -> Float[Tensor, ...]:
    """Return the Fisher information of one answer about its margin; ``σ'(Δ) = σ(Δ) σ(-Δ)`` without ties.

    It is the variance of the outcome and the derivative of its mean: ``(1 + ν/2 cosh(Δ/2)) / (2 cosh(Δ/2) + ν)²``.
    """
    if ties == 0:
        return torch.sigmoid(margin) * torch.sigmoid(-margin)
    small = torch.exp(-margin.abs() / 2)
    squared = small.square()
    return (squared + ties / 4 * small * (1 + squared)) / (1 + squared + ties * small).square()


def kappa(largest_margin: float, ties: float = 0.0) -> float:
    """Return ``κ``, the smallest slope of the link on ``|Δ| <= Δmax``: ``σ'(Δmax)`` without ties (at most 1/4).

    With ties the slope rises before it falls where ν > 4, so the smaller of its values at 0 and Δmax counts.
    """
    if ties == 0:
        return 1.0 / (2.0 + 2.0 * math.cosh(largest_margin))
    ends = slope(torch.tensor([0.0, largest_margin], dtype=torch.float64), ties)
    return float(ends.min())


def loss(margin: Float[Tensor, "*r k"], outcome: Float[Tensor, "*r k"], ties: float = 0.0) -> Float[Tensor, "*r"]:
    """Return ``Σ log(2 cosh(Δ/2) + ν) - (outcome - 1/2) Δ``: the negative log-likelihood, a sum over duels, in nats.

    At ``ties = ν = 0`` it is the DPO loss ``-Σ log σ(o Δ)``, ``o = ±1`` the answer, and a tie counts as half of either
    answer.  What does not depend on the margins, ``-log ν`` a tie, is left out.
    """
    tie = torch.where(outcome == 0.5, margin / 2, 0.0)
    if ties == 0:
        return (softplus(torch.where(outcome < 0.5, margin, -margin)) + tie).sum(-1)
    size = margin.abs()
    return (size / 2 + torch.log1p(torch.exp(-size) + ties * torch.exp(-size / 2)) - (outcome - 0.5) * margin).sum(-1)


class Oracle(ABC):
    """Answers duels from true rewards; abstract."""

    ties: float = 0.0
    """Davidson's ν, of the model that answers are drawn from: what a learner that knows it is told"""

    @abstractmethod
    def probability(
        self, margin: Float[Tensor, "*r k"], places: tuple[Int64[Tensor, "*r k"], Int64[Tensor, "*r k"]], responses: int
    ) -> Float[Tensor, "*r k"]:
        """Return ``P(first wins)`` from true margins and the two items' places among their prompt's responses."""

    def tie(self, margin: Float[Tensor, "*r k"]) -> Float[Tensor, "*r k"]:
        """Return ``P(tie)``; no ties unless an oracle says otherwise."""
        return torch.zeros_like(margin)


ROUNDING = 1e-6
"""By how much probabilities may leave [0, 1]; some are worked out in single precision."""


def chances(
    oracle: Oracle, margin: Float[Tensor, "*r k"], places: tuple[Int64[Tensor, "*r k"], Int64[Tensor, "*r k"]], k: int
) -> tuple[Float[Tensor, "*r k"], Float[Tensor, "*r k"]]:
    """Return ``P(first wins)`` and ``P(tie)`` of duels among ``k`` responses a prompt.

    Raises ``InputError``, naming the oracle, for what are no probabilities, one a duel.
    """
    name = f"oracle {type(oracle).__name__}"
    win = alike(oracle.probability(margin, places, k), f"{name}: probability", margin)
    tie = alike(oracle.tie(margin), f"{name}: tie", margin)
    fair = (win >= -ROUNDING) & (tie >= -ROUNDING) & (win + tie <= 1 + ROUNDING)  # of NaN, nothing is
    if not bool(fair.all()):
        at, first, draw = (float(values[~fair][0]) for values in (margin, win, tie))
        raise InputError(
            f"{name}: P(first wins) = {first:g} and P(tie) = {draw:g} at margin {at:.3g}; probabilities lie in [0, 1], "
            "and so does their sum"
        )
    return win, tie


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
class Davidson(Oracle):
    """BTL with ties as a third answer, of which a share ``flip`` of all answers is turned round.

    ``P(first) : P(tie) : P(second) = e^{Δ/2} : ν : e^{-Δ/2}``, with ``rate = ν/(2 + ν)`` the share of ties between
    items of equal reward (Davidson 1970).
    """

    rate: float = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        _ = self.ties  # raises InputError outside [0, 1)
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip probability must lie in [0, 1], got {self.flip}")

    @property
    def ties(self) -> float:  # type: ignore[override]  # a constant of the other oracles
        """Return ν."""
        return tie_weight(self.rate)

    def probability(self, margin: Tensor, places: tuple[Tensor, Tensor], responses: int) -> Tensor:
        """Return ``(1 - flip) P(first) + flip P(second)``."""
        small = torch.exp(-margin.abs() / 2)
        total = 1 + small.square() + self.ties * small
        better, worse = 1 / total, small.square() / total
        win = torch.where(margin >= 0, better, worse)
        return (1 - self.flip) * win + self.flip * torch.where(margin >= 0, worse, better)

    def tie(self, margin: Tensor) -> Tensor:
        """Return ``ν / (2 cosh(Δ/2) + ν)``."""
        small = torch.exp(-margin.abs() / 2)
        return self.ties * small / (1 + small.square() + self.ties * small)


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
        turn = (places[1] - places[0]).to(margin.dtype) * (2 * math.pi / responses)
        return torch.sigmoid(margin + self.strength * torch.sin(turn))


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
    ties = oracle.ties
    if isinstance(ties, bool) or not isinstance(ties, Real) or not 0 <= ties < math.inf:
        raise InputError(f"its ties are Davidson's ν, a number of at least 0, got {ties!r}")


ORACLES = Registry[Oracle]("oracle", _check)
"""All oracles by name; ``ORACLES.register`` adds one."""

for _name, _oracle in {
    "btl": BTL(),
    "btl-hot": BTL(temperature=4.0),
    "btl-cold": BTL(temperature=0.25),
    "btl-ties": Davidson(0.3),
    "flipped": Flipped(),
    "flipped-20%": Flipped(0.2),
    "probit": Probit(),
    "intransitive": Intransitive(),
    "noiseless": Noiseless(),
}.items():
    ORACLES.register(_name, _oracle)
