"""Owns the choice of duels: the pool, the strategies and ``select``.  Sees numbers only: no model, arena or plot.

A strategy is a frozen dataclass that is its own configuration.  Most are one method, ``scores``: the duels of highest
score are asked, equal scores decided at random.  ``space`` says in which space and with which ``V`` it measures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.core.design import Posterior, greedy
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.rng import Key


@dataclass(frozen=True)
class FeatureSpace:
    """In which space a strategy measures, and with which design matrix; every field is a switch.

    - ``layer``: gradients of ``all`` parameters, or of the ``last`` layer only (the embedding at θ0: APO, ADPO).
    - ``gradients``: at the ``current`` θ with the past recomputed (ActiveDPO), at the ``initial`` θ0 (Neural Dueling
      Bandits), or ``stale``: past rows stay as they were when asked (unanalysed, but common in code).
    - ``normalise``: ``none``; each ``response``'s gradient before the difference (ActiveDPO's practice; leaves the
      theorem and its invariance to c(x)); or the ``duel``'s feature after it.
    - ``weight``: ``fisher`` scales each φ by ``√σ'(margin)``.
    - ``metric``: the ``full`` V, its ``diagonal``, or the ``identity``.
    - ``ridge``: of V; ``None`` takes the experiment's ``λ/κ``.
    """

    layer: Literal["all", "last"] = "all"
    gradients: Literal["current", "initial", "stale"] = "current"
    normalise: Literal["none", "response", "duel"] = "none"
    weight: Literal["none", "fisher"] = "none"
    metric: Literal["full", "diagonal", "identity"] = "full"
    ridge: float | None = None


@dataclass(frozen=True)
class Pool:
    """All that a strategy may know of the duels on offer.

    ``duels`` (n of them) name rows of an item table with ``responses`` rows a prompt; ``rewards`` are the learner's,
    one per item, in log-odds; ``features`` are the duels' φ seen through ``V⁻¹``; ``available`` is false where a duel
    was asked before.  ``entropy`` is the policy's predictive entropy per prompt in nats.
    """

    duels: Duels
    rewards: Float[Tensor, "*r items"]
    features: Posterior
    available: Bool[Tensor, "*r n"]
    responses: int
    entropy: Float[Tensor, "*r prompts"]

    @property
    def margins(self) -> Float[Tensor, "*r n"]:
        """The learner's reward difference of each duel, in log-odds."""
        return self.duels.difference(self.rewards)

    @property
    def prompts(self) -> Int64[Tensor, "*r n"]:
        """The prompt of each duel."""
        return self.duels.first // self.responses

    def leaders(self) -> Int64[Tensor, "*r prompts"]:
        """The row of the highest reward in each prompt."""
        return _rows(self.rewards.unflatten(-1, (-1, self.responses)).argmax(-1), self.responses)

    def against(self, rivals: Int64[Tensor, "*r prompts"]) -> tuple[Tensor, Tensor]:
        """For duels that contain their prompt's given item: whether they do, and the row of the other item."""
        rival = rivals.gather(-1, self.prompts)
        first, second = self.duels.first, self.duels.second
        return (first == rival) | (second == rival), torch.where(first == rival, second, first)

    def widths_against(self, rivals: Int64[Tensor, "*r prompts"]) -> Float[Tensor, "*r items"]:
        """Return every item's width in a duel with its prompt's given item (0 for that item itself)."""
        holds, other = self.against(rivals)
        widths = torch.where(holds, self.features.widths, 0.0)
        return torch.zeros_like(self.rewards).scatter_reduce(-1, other, widths, "amax")


def _rows(places: Tensor, responses: int) -> Tensor:
    return places + torch.arange(places.shape[-1], device=places.device) * responses


class Strategy(ABC):
    """A rule that picks duels from a pool; abstract."""

    space: FeatureSpace = FeatureSpace()

    def select(self, pool: Pool, count: int, key: Key) -> Int64[Tensor, "*r count"]:
        """Return the positions of ``count`` distinct available duels: by default those of highest score."""
        scores = torch.where(pool.available, self.scores(pool, key.fold_in("strategy")), -torch.inf)
        # Two stable sorts order by score, then by a random number: exact, whatever the scores' scale.
        shuffle = _ties(pool, key).argsort(-1)
        order = scores.gather(-1, shuffle).argsort(dim=-1, descending=True, stable=True)
        return shuffle.gather(-1, order[..., :count])

    @abstractmethod
    def scores(self, pool: Pool, key: Key) -> Float[Tensor, "*r n"]:
        """Return how much each duel is worth asking."""


def _ties(pool: Pool, key: Key) -> Float[Tensor, "*r n"]:
    return key.fold_in("ties").uniform(pool.duels.count).expand(pool.available.shape)


def select(pool: Pool, strategy: Strategy, count: int, key: Key) -> Int64[Tensor, "*r count"]:
    """Return the duels that a strategy asks, after checking that it can.

    Raises ``InputError`` if ``count`` exceeds the available duels, or if a feature or reward is not a number.
    """
    offered = int(pool.available.sum(-1).min())
    if not 1 <= count <= offered:
        raise InputError(f"selector: {count} picks asked from a pool with {offered} duels left; lower the batch size")
    if not bool(pool.rewards.isfinite().all()):
        raise InputError("selector: a reward is NaN or infinite; the learner has diverged")
    if not pool.features.rows.finite():
        raise InputError("selector: a feature is NaN or infinite; the learner has diverged")
    return strategy.select(pool, count, key)


# Gradients at θ0 do not change, so V only grows: for strategies whose picks do not depend on V.
_CHEAP = FeatureSpace(gradients="initial")


@dataclass(frozen=True)
class Random(Strategy):
    """Uniform over the pool: the rival that is hard to beat."""

    space: FeatureSpace = _CHEAP

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """All alike; the ties decide."""
        return torch.zeros_like(pool.features.widths)


@dataclass(frozen=True)
class ActiveDPO(Strategy):
    """``argmax ‖φ‖_{V⁻¹}``, then ``V ← V + φφᵀ``, until the batch is full (arXiv 2505.19241).

    ``batch_update=False`` takes the top B instead: the control for the batch rule, and what APO's public code does.
    """

    space: FeatureSpace = FeatureSpace()
    batch_update: bool = True

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return ``‖φ‖_{V⁻¹}``."""
        return pool.features.widths

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Pick greedily."""
        update = self.batch_update and self.space.metric == "full"
        return greedy(pool.features, count, pool.available, _ties(pool, key), update)


@dataclass(frozen=True)
class LabelEntropy(Strategy):
    """The duels whose answer is least certain: ``σ(margin)`` nearest ½."""

    space: FeatureSpace = _CHEAP

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return ``-|margin|``."""
        return -pool.margins.abs()


@dataclass(frozen=True)
class APLP(Strategy):
    """Keep the prompts of highest predictive entropy, then ``argmax |margin|`` (Muldrew et al., arXiv 2402.08114)."""

    keep: float = 0.5
    space: FeatureSpace = _CHEAP

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"APLP keeps a share of the prompts in (0, 1], got {self.keep}")

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return ``|margin|``, less a constant for the prompts that are not kept (asked only when those run out)."""
        kept = max(1, round(self.keep * pool.entropy.shape[-1]))
        threshold = pool.entropy.topk(kept, -1).values[..., -1:]
        margins = pool.margins.abs()
        low = (pool.entropy < threshold).gather(-1, pool.prompts)
        return margins - low * (1 + margins.max(-1, keepdim=True).values)


@dataclass(frozen=True)
class _TwoArms(Strategy):
    """Each prompt proposes a duel; with several prompts the widest proposals are asked first.

    The papers have one prompt and one duel a round; what to do with more is our extension.
    """

    nu: float = 1.0
    space: FeatureSpace = FeatureSpace()

    def __post_init__(self) -> None:
        if not self.nu >= 0:
            raise InputError(f"the exploration factor nu must not be negative, got {self.nu}")

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Rank duels within their prompt by ``preference``; order first by rank, then by width."""
        preference = torch.where(pool.available, self.preference(pool, key), -torch.inf)
        shuffle = _ties(pool, key).argsort(-1)  # equal preferences are ranked at random
        order = preference.gather(-1, shuffle).argsort(dim=-1, descending=True, stable=True)
        order = shuffle.gather(-1, order)
        order = order.gather(-1, pool.prompts.gather(-1, order).argsort(dim=-1, stable=True))
        sorted_prompts = pool.prompts.gather(-1, order)
        place = torch.arange(order.shape[-1], device=order.device)
        start = torch.searchsorted(sorted_prompts.contiguous(), sorted_prompts.contiguous())
        rank = torch.zeros_like(order).scatter(-1, order, place - start)
        widths = pool.features.widths
        return -rank * (1 + widths.max(-1, keepdim=True).values) + widths

    @abstractmethod
    def preference(self, pool: Pool, key: Key) -> Float[Tensor, "*r n"]:
        """Return each duel's worth among those of its prompt; ``-inf`` where the rule would not ask it."""

    def _duel_of(self, pool: Pool, first: Tensor, optimism: Tensor) -> Tensor:
        """Prefer duels that hold the first arm, by the optimistic reward of the other arm.

        The remaining duels of the prompt come after them, by the smaller of their two optimistic rewards.
        """
        holds, other = pool.against(first)
        rest = torch.minimum(optimism.gather(-1, pool.duels.first), optimism.gather(-1, pool.duels.second))
        drop = 2 + 2 * optimism.abs().max(-1, keepdim=True).values
        return torch.where(holds, optimism.gather(-1, other), rest - drop)


@dataclass(frozen=True)
class UCB(_TwoArms):
    """``y1 = argmax r``, ``y2 = argmax r + ν·width(·, y1)`` (Verma et al., arXiv 2407.17112)."""

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the optimistic reward of the leader's rival."""
        leaders = pool.leaders()
        return self._duel_of(pool, leaders, pool.rewards + self.nu * pool.widths_against(leaders))


@dataclass(frozen=True)
class TS(_TwoArms):
    """``y1 = argmax r``, ``y2 = argmax`` of draws ``N(r, ν² width(·, y1)²)`` (Verma et al., arXiv 2407.17112)."""

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the drawn reward of the leader's rival."""
        leaders = pool.leaders()
        draws = key.fold_in("thompson").normal(pool.rewards.shape[-1])
        return self._duel_of(pool, leaders, pool.rewards + self.nu * pool.widths_against(leaders) * draws)


@dataclass(frozen=True)
class CoLSTIM(_TwoArms):
    """First arm by Gumbel-perturbed rewards, second by UCB against it (Bengs et al. 2022).

    The perturbation of an arm is scaled by its width against the leader, since only differences are identified.
    """

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the optimistic reward of the perturbed leader's rival."""
        uniform = key.fold_in("gumbel").uniform(pool.rewards.shape[-1]).clamp(1e-12, 1 - 1e-12)
        noise = -(-uniform.log()).log() * self.nu * pool.widths_against(pool.leaders())
        perturbed = (pool.rewards + noise).unflatten(-1, (-1, pool.responses))
        first = _rows(perturbed.argmax(-1), pool.responses)
        return self._duel_of(pool, first, pool.rewards + self.nu * pool.widths_against(first))


@dataclass(frozen=True)
class DeltaUCB(_TwoArms):
    """``argmax UCB_i - LCB_j``, here ``|margin| + ν·width`` of the duel (after arXiv 2603.09692).

    The source gives each response a width of its own; only differences are identified, so the duel's width is used.
    """

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the optimistic gap."""
        return pool.margins.abs() + self.nu * pool.features.widths


@dataclass(frozen=True)
class DRTS(_TwoArms):
    """Thompson-max against Thompson-min (after arXiv 2603.09692); draws ``N(r, ν² width(·, leader)²)``."""

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the drawn gap."""
        draws = key.fold_in("thompson").normal(pool.rewards.shape[-1])
        drawn = pool.rewards + self.nu * pool.widths_against(pool.leaders()) * draws
        return pool.duels.difference(drawn).abs()


_LAST = FeatureSpace(layer="last", gradients="initial")

STRATEGIES: dict[str, Strategy] = {
    "random": Random(),
    "activedpo": ActiveDPO(),
    "activedpo-initial": ActiveDPO(FeatureSpace(gradients="initial")),
    "activedpo-stale": ActiveDPO(FeatureSpace(gradients="stale")),
    "activedpo-normalised": ActiveDPO(FeatureSpace(normalise="response")),
    "activedpo-normalised-duel": ActiveDPO(FeatureSpace(normalise="duel")),
    "activedpo-fisher": ActiveDPO(FeatureSpace(weight="fisher")),
    "activedpo-identity": ActiveDPO(FeatureSpace(metric="identity")),
    "activedpo-diagonal": ActiveDPO(FeatureSpace(metric="diagonal")),
    "activedpo-last-layer": ActiveDPO(FeatureSpace(layer="last", gradients="current")),
    "activedpo-top-b": ActiveDPO(batch_update=False),
    "apo": ActiveDPO(_LAST, batch_update=False),
    "aplp": APLP(),
    "adpo": ActiveDPO(_LAST),
    "adpo+": ActiveDPO(FeatureSpace(layer="last", gradients="initial", weight="fisher")),
    "label-entropy": LabelEntropy(),
    "ucb": UCB(space=FeatureSpace(gradients="initial")),
    "ts": TS(space=FeatureSpace(gradients="initial")),
    "colstim": CoLSTIM(space=FeatureSpace(gradients="initial")),
    "delta-ucb": DeltaUCB(space=FeatureSpace(gradients="initial")),
    "drts": DRTS(space=FeatureSpace(gradients="initial")),
}
