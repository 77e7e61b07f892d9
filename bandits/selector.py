"""Owns the choice of duels: the pool, the strategies and ``select``.  Sees numbers only: no model, arena or plot.

A strategy is a frozen dataclass that is its own configuration and says of itself what it ``reads``, what it does
(``summary``) and where it comes from (``source``).  Most are one method, ``scores``: the duels of highest score are
asked, equal scores decided at random.  ``space`` says in which space and with which ``V`` widths are measured.
``STRATEGIES.register(name, strategy)`` adds one; its name then works in both arenas.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from bandits.core.design import Metric, Posterior
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.greedy import greedy
from bandits.core.registry import Registry
from bandits.core.rng import Key

T = TypeVar("T")
Quantity = Literal["width", "reward", "entropy"]


@dataclass(frozen=True)
class FeatureSpace:
    """In which space a strategy measures, and with which design matrix; every field is a switch.

    - ``layer``: gradients of ``all`` parameters, or of the ``last`` layer only, which are its inputs (APO, ADPO); for a
      language model the mean of a response's last hidden states.
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
    metric: Metric = "full"
    ridge: float | None = None

    def described(self) -> list[str]:
        """Say in words what φ and V are."""
        where = {
            "current": "gradients of the learner's reward at the current model, past duels' included",
            "initial": "gradients of the learner's reward at the initial model",
            "stale": "gradients of the learner's reward at the current model, but a labelled duel keeps those it had",
        }[self.gradients]
        if self.layer == "last":
            where = f"the last layer's {where} (of a language model: its mean hidden state)"
        words = {
            "response": "each response's gradient scaled to length 1 (the ActiveDPO paper's practice)",
            "duel": "each φ scaled to length 1",
            "fisher": "φ scaled by √σ'(margin): duels whose label is foreseen count less",
            "diagonal": "V's diagonal in place of V",
            "identity": "no V: V = ridge·I whatever was asked",
        }
        told = [words[switch] for switch in (self.normalise, self.weight, self.metric) if switch in words]
        return [f"φ from {where}", *told, *([] if self.ridge is None else [f"ridge {self.ridge:g}"])]


@dataclass(frozen=True, eq=False)
class Pool:
    """All that a strategy may know of the duels on offer.

    ``duels`` (n of them) name rows of an item table with ``responses`` rows a prompt; ``available`` is false where a
    duel may not be asked (it was asked before, or repeats another).  Of the rest there is what the strategy ``reads``:
    ``features``, the duels' φ seen through ``V⁻¹``; ``rewards``, the learner's, one per item, in log-odds; ``entropy``,
    the policy's predictive entropy per prompt in nats.  Anything else raises ``InputError``.
    """

    duels: Duels
    available: Bool[Tensor, "*r n"]
    responses: int
    posterior: Posterior | None = None
    item_rewards: Float[Tensor, "*r items"] | None = None
    prompt_entropy: Float[Tensor, "*r prompts"] | None = None

    @property
    def features(self) -> Posterior:
        """The duels' φ as seen through ``V⁻¹``."""
        return _declared(self.posterior, "width")

    @property
    def widths(self) -> Float[Tensor, "*r n"]:
        """``‖φ‖_{V⁻¹}`` of each duel."""
        return self.features.widths

    @property
    def rewards(self) -> Float[Tensor, "*r items"]:
        """The learner's reward of each item, in log-odds."""
        return _declared(self.item_rewards, "reward")

    @property
    def entropy(self) -> Float[Tensor, "*r prompts"]:
        """The policy's predictive entropy of each prompt, in nats."""
        return _declared(self.prompt_entropy, "entropy")

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
        widths = torch.where(holds, self.widths, 0.0)
        return torch.zeros_like(self.rewards).scatter_reduce(-1, other, widths, "amax")


def _declared(value: T | None, quantity: Quantity) -> T:
    if value is None:
        raise InputError(f"the strategy reads {quantity} without saying so; add {quantity!r} to its reads")
    return value


def _rows(places: Tensor, responses: int) -> Tensor:
    return places + torch.arange(places.shape[-1], device=places.device) * responses


def largest_first(*keys: Shaped[Tensor, "*r n"]) -> Int64[Tensor, "*r n"]:
    """Return the order of falling first key, equals by the second, and so on; exact, whatever the keys' scale."""
    order = keys[-1].argsort(dim=-1, descending=True, stable=True)
    for key in keys[-2::-1]:
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    return order


class Strategy(ABC):
    """A rule that picks duels from a pool; abstract.  Most rules are a :class:`ScoreStrategy`."""

    space: FeatureSpace = FeatureSpace()
    reads: frozenset[Quantity] = frozenset(get_args(Quantity))
    """what the rule looks at; the loop computes nothing else for it"""

    @property
    def summary(self) -> str:
        """What the rule does, in one line for pages; every strategy must say it."""
        return ""

    @property
    def source(self) -> str:
        """The paper that the rule comes from; empty for one of one's own."""
        return ""

    @abstractmethod
    def select(self, pool: Pool, count: int, key: Key) -> Int64[Tensor, "*r count"]:
        """Return the positions of ``count`` distinct available duels."""


class ScoreStrategy(Strategy):
    """A rule that asks the duels of highest score, equal scores decided at random; abstract."""

    @abstractmethod
    def scores(self, pool: Pool, key: Key) -> Shaped[Tensor, "*r n"] | tuple[Shaped[Tensor, "*r n"], ...]:
        """Return how much each duel is worth asking; of several scores, each decides where those before are equal."""

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Return the available duels of highest score; a score may be infinite, but not NaN."""
        scores = self.scores(pool, key.fold_in("strategy"))
        scores = (scores,) if isinstance(scores, Tensor) else scores
        for values in scores:
            if values.shape != pool.available.shape:
                shapes = f"{tuple(values.shape)} for {tuple(pool.available.shape)} duels"
                raise InputError(f"selector: the scores of {type(self).__name__} have shape {shapes}")
            if bool((values.isnan() & pool.available).any()):
                raise InputError(f"selector: a score of {type(self).__name__} is NaN")
        scores = tuple(torch.where(pool.available, values, 0) for values in scores)
        return largest_first(pool.available.to(torch.int8), *scores, -_ties(pool, key))[..., :count]


def _ties(pool: Pool, key: Key) -> Float[Tensor, "*r n"]:
    return key.fold_in("ties").uniform(pool.duels.count).expand(pool.available.shape)


def select(pool: Pool, strategy: Strategy, count: int, key: Key) -> Int64[Tensor, "*r count"]:
    """Return the duels that a strategy asks, after checking that it can; then check what it returned.

    Raises ``InputError`` if ``count`` exceeds the available duels, if a feature or reward is not a number, or if the
    picks are not ``count`` distinct available duels.
    """
    offered = int(pool.available.sum(-1).min())
    if not 1 <= count <= offered:
        raise InputError(f"selector: {count} picks asked from a pool with {offered} duels left; lower the batch size")
    if pool.item_rewards is not None and not bool(pool.item_rewards.isfinite().all()):
        raise InputError("selector: a reward is NaN or infinite; the learner has diverged")
    if pool.posterior is not None and not pool.posterior.rows.finite():
        raise InputError("selector: a feature is NaN or infinite; the learner has diverged")
    picks = strategy.select(pool, count, key)
    name, expected = type(strategy).__name__, (*pool.available.shape[:-1], count)
    if picks.dtype != torch.int64 or picks.shape != expected:
        raise InputError(
            f"selector: {name} returned {picks.dtype} of shape {tuple(picks.shape)}, not {count} positions"
        )
    if bool(((picks < 0) | (picks >= pool.duels.count)).any()) or not bool(pool.available.gather(-1, picks).all()):
        raise InputError(f"selector: {name} picked a duel that is not available")
    if bool((picks.sort(-1).values.diff(dim=-1) == 0).any()):
        raise InputError(f"selector: {name} picked a duel twice")
    return picks


@dataclass(frozen=True)
class Random(ScoreStrategy):
    """Uniform over the pool."""

    reads = frozenset[Quantity]()
    summary = "picks duels blindly; the rival that is hard to beat"

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """All alike; the ties decide."""
        return torch.zeros(pool.available.shape, device=pool.available.device)


@dataclass(frozen=True)
class ActiveDPO(Strategy):
    """``argmax ‖φ‖_{V⁻¹}``, then ``V ← V + φφᵀ``, until the batch is full (arXiv 2505.19241).

    ``batch_update=False`` takes the B widest instead: the control for the batch rule, and what APO's public code does.
    """

    space: FeatureSpace = FeatureSpace()
    batch_update: bool = True

    reads = frozenset[Quantity](["width"])
    source = "Lin et al., ActiveDPO, arXiv 2505.19241"

    @property
    def summary(self) -> str:
        """What the switches make of the rule, in words."""
        rule = "picks the duel of greatest width ‖φ‖ under V⁻¹, adds it to V, picks the next"
        if not self.batch_update:
            rule = "picks the widest duels under V⁻¹ without adding a pick to V: the batch may repeat itself"
        return "; ".join([rule, *self.space.described()])

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Return ``count`` duels, each the widest given those before it."""
        return greedy(pool.features, count, pool.available, _ties(pool, key), update=self.batch_update)


_LAST = FeatureSpace(layer="last", gradients="initial")


@dataclass(frozen=True)
class APO(ActiveDPO):
    """The widest duels of fixed last-layer features (Das et al., arXiv 2402.10500), as its public code has it.

    Deviation: the paper asks one duel a round; with a batch, its code takes the top B of one V.
    """

    space: FeatureSpace = _LAST
    batch_update: bool = False

    source = "Das et al., Active Preference Optimization, arXiv 2402.10500"


@dataclass(frozen=True)
class ADPO(ActiveDPO):
    """Algorithm 1 of arXiv 2503.01076: D-optimal design of last-layer features weighted by ``√(μ(1-μ))``.

    ``μ`` is the answer's probability under the current fit, past duels' included.  Deviations: β, which the source has
    in the weight, is left to the ridge; features are those of the initial model.  ADPO⁺, which weights by a fit to the
    labels of *all* logged duels, has no place where labels must first be asked for.
    """

    space: FeatureSpace = FeatureSpace(layer="last", gradients="initial", weight="fisher")

    source = "Kveton et al., Active Learning for Direct Preference Optimization, arXiv 2503.01076, Algorithm 1"


@dataclass(frozen=True)
class LabelEntropy(ScoreStrategy):
    """The duels whose answer is least certain: ``σ(margin)`` nearest ½."""

    reads = frozenset[Quantity](["reward"])
    summary = "picks the duels whose label the learner's reward foresees least"

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return ``-|margin|``."""
        return -pool.margins.abs()


@dataclass(frozen=True)
class APLP(ScoreStrategy):
    """Keep the prompts of highest predictive entropy, then ``argmax |margin|`` (Muldrew et al., arXiv 2402.08114)."""

    keep: float = 0.5

    reads = frozenset[Quantity](["reward", "entropy"])
    summary = "keeps the prompts of highest predictive entropy, then picks the largest margins of the learner's reward"
    source = "Muldrew et al., Active Preference Learning for Large Language Models, arXiv 2402.08114"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"APLP keeps a share of the prompts in (0, 1], got {self.keep}")

    def scores(self, pool: Pool, key: Key) -> tuple[Tensor, Tensor]:
        """Return whether the prompt is kept (others are asked only when those run out), then ``|margin|``."""
        kept = max(1, round(self.keep * pool.entropy.shape[-1]))
        threshold = pool.entropy.topk(kept, -1).values[..., -1:]
        return (pool.entropy >= threshold).gather(-1, pool.prompts).to(torch.int8), pool.margins.abs()


@dataclass(frozen=True)
class _TwoArms(ScoreStrategy):
    """Each prompt proposes a duel; with several prompts the widest proposals are asked first.

    The papers have one prompt and one duel a round; what to do with more is our extension.
    """

    nu: float = 1.0
    space: FeatureSpace = FeatureSpace(gradients="initial")

    reads = frozenset[Quantity](["width", "reward"])

    def __post_init__(self) -> None:
        if not self.nu >= 0:
            raise InputError(f"the exploration factor nu must not be negative, got {self.nu}")

    def scores(self, pool: Pool, key: Key) -> tuple[Tensor, Tensor]:
        """Rank duels within their prompt by ``preference``; order first by rank, then by width."""
        preference = torch.where(pool.available, self.preference(pool, key), -torch.inf)
        shuffle = -_ties(pool, key)  # equal preferences are ranked at random
        order = largest_first(-pool.prompts, pool.available.to(torch.int8), preference, shuffle)
        sorted_prompts = pool.prompts.gather(-1, order)
        place = torch.arange(order.shape[-1], device=order.device)
        start = torch.searchsorted(sorted_prompts.contiguous(), sorted_prompts.contiguous())
        rank = torch.zeros_like(order).scatter(-1, order, place - start)
        return -rank, pool.widths

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


_VERMA = "Verma et al., Neural Dueling Bandits, arXiv 2407.17112"
_MELIKIDZE = "Melikidze et al., ActiveUltraFeedback, arXiv 2603.09692"


@dataclass(frozen=True)
class UCB(_TwoArms):
    """``y1 = argmax r``, ``y2 = argmax r + ν·width(·, y1)`` (Verma et al., arXiv 2407.17112)."""

    summary = "pits each prompt's best response by the learner's reward against its most promising rival"
    source = _VERMA

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the optimistic reward of the leader's rival."""
        leaders = pool.leaders()
        return self._duel_of(pool, leaders, pool.rewards + self.nu * pool.widths_against(leaders))


@dataclass(frozen=True)
class TS(_TwoArms):
    """``y1 = argmax r``, ``y2 = argmax`` of draws ``N(r, ν² width(·, y1)²)`` (Verma et al., arXiv 2407.17112)."""

    summary = "pits each prompt's best response by the learner's reward against the best of a Thompson draw"
    source = _VERMA

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the drawn reward of the leader's rival."""
        leaders = pool.leaders()
        draws = key.fold_in("thompson").normal(pool.rewards.shape[-1])
        return self._duel_of(pool, leaders, pool.rewards + self.nu * pool.widths_against(leaders) * draws)


@dataclass(frozen=True)
class CoLSTIM(_TwoArms):
    """First arm by Gumbel-perturbed rewards, second by UCB against it (Bengs et al., arXiv 2202.04593).

    Perturbations are cut off at ``±threshold`` (``C_thresh``, which the source leaves open).  Deviations: an arm's
    perturbation is scaled by its width against the leader, since only differences are identified (the source has the
    arm's own width); there is no first phase of random duels, and no coin that decides whether a round perturbs: every
    one does.
    """

    threshold: float = 6.0

    summary = (
        "pits the best response by Gumbel-perturbed rewards against its most promising rival; deviations: perturbed in "
        "every round, without a coin or a first phase of random duels"
    )
    source = (
        "Bengs et al., Stochastic Contextual Dueling Bandits under Linear Stochastic Transitivity, arXiv 2202.04593"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold > 0:
            raise InputError(f"CoLSTIM's threshold must be positive, got {self.threshold}")

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the optimistic reward of the perturbed leader's rival."""
        uniform = key.fold_in("gumbel").uniform(pool.rewards.shape[-1]).clamp(1e-12, 1 - 1e-12)
        noise = (-(-uniform.log()).log()).clamp(-self.threshold, self.threshold)
        noise = noise * self.nu * pool.widths_against(pool.leaders())
        perturbed = (pool.rewards + noise).unflatten(-1, (-1, pool.responses))
        first = _rows(perturbed.argmax(-1), pool.responses)
        return self._duel_of(pool, first, pool.rewards + self.nu * pool.widths_against(first))


@dataclass(frozen=True)
class DeltaUCB(_TwoArms):
    """``argmax UCB_i - LCB_j``, here ``|margin| + ν·width`` of the duel (after arXiv 2603.09692).

    Deviation: the source gives each response a width of its own; only differences are identified, so the duel's width
    is used.
    """

    summary = "picks the largest optimistic gap between two responses; deviation: the duel's width, not the responses'"
    source = _MELIKIDZE

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the optimistic gap."""
        return pool.margins.abs() + self.nu * pool.widths


@dataclass(frozen=True)
class DRTS(_TwoArms):
    """The best response of one Thompson draw against the worst of another (after arXiv 2603.09692).

    Draws are ``N(r, ν² width(·, leader)²)``; deviation: where both name one response, the source draws again, here the
    pair of largest drawn gap is taken.
    """

    summary = "pits the best response of one Thompson draw against the worst of another"
    source = _MELIKIDZE

    def preference(self, pool: Pool, key: Key) -> Tensor:
        """Return the gap from the first draw of one side to the second draw of the other, the larger way round."""
        spread = self.nu * pool.widths_against(pool.leaders())
        best, worst = (
            pool.rewards + spread * key.fold_in("thompson", draw).normal(pool.rewards.shape[-1])
            for draw in ("best", "worst")
        )
        first, second = pool.duels.first, pool.duels.second
        ahead = best.gather(-1, first) - worst.gather(-1, second)
        return torch.maximum(ahead, best.gather(-1, second) - worst.gather(-1, first))


def _check(strategy: object) -> None:
    """Raise ``InputError`` for what is no strategy, or does not say what it is."""
    if not isinstance(strategy, Strategy):
        raise InputError(f"a strategy is an object of a class that inherits from Strategy, got {strategy!r}")
    if not strategy.summary.strip() or "\n" in strategy.summary:
        raise InputError("a strategy says in one line what it does; set summary")
    if unknown := set(strategy.reads) - set(get_args(Quantity)):
        raise InputError(f"reads names {', '.join(sorted(unknown))}; choose from {', '.join(get_args(Quantity))}")


STRATEGIES = Registry[Strategy]("strategy", _check)
"""All strategies by name; ``STRATEGIES.register`` adds one."""

for _name, _strategy in {
    "random": Random(),
    "activedpo": ActiveDPO(),
    "activedpo-initial": ActiveDPO(FeatureSpace(gradients="initial")),
    "activedpo-stale": ActiveDPO(FeatureSpace(gradients="stale")),
    "activedpo-normalised": ActiveDPO(FeatureSpace(normalise="response")),
    "activedpo-normalised-duel": ActiveDPO(FeatureSpace(normalise="duel")),
    "activedpo-fisher": ActiveDPO(FeatureSpace(weight="fisher")),
    "activedpo-identity": ActiveDPO(FeatureSpace(metric="identity")),
    "activedpo-diagonal": ActiveDPO(FeatureSpace(metric="diagonal")),
    "activedpo-last-layer": ActiveDPO(FeatureSpace(layer="last")),
    "activedpo-top-b": ActiveDPO(batch_update=False),
    "apo": APO(),
    "apo-in-batch": APO(batch_update=True),
    "aplp": APLP(),
    "adpo": ADPO(),
    "label-entropy": LabelEntropy(),
    "ucb": UCB(),
    "ts": TS(),
    "colstim": CoLSTIM(),
    "delta-ucb": DeltaUCB(),
    "drts": DRTS(),
}.items():
    STRATEGIES.register(_name, _strategy)
