"""Owns the choice of duels: the pool, the strategies and ``select``.  Sees numbers only: no model, arena or plot.

A strategy is a frozen dataclass that is its own configuration and says of itself what it ``reads``, what it does
(``summary``) and where it comes from (``source``).  Most are one method, ``scores``: the duels of highest score are
asked, equal scores decided at random.  ``space`` says in which space and with which ``V`` widths are measured.
``STRATEGIES.register(name, strategy)`` adds one; its name then works in both arenas, and so does ``name-power``, its
stochastic batch, if it is a rule by score.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Set
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal, TypeVar, get_args, get_type_hints

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from bandits.core.design import Metric, Posterior
from bandits.core.duels import Duels, Truth, gather
from bandits.core.errors import InputError, unknown
from bandits.core.given import numbers
from bandits.core.greedy import Facing, best, greedy, greedy_trace
from bandits.core.oracles import expected, slope
from bandits.core.registry import Registry, check_name
from bandits.core.rng import Key

T = TypeVar("T")
Quantity = Literal["width", "reward", "entropy", "response width", "target", "truth"]
ORDINARY = frozenset[Quantity](["width", "reward", "entropy"])
"""What a strategy may read of any arena and learner; the others are computed, or asked of the arena, only if read."""


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

    def __post_init__(self) -> None:
        for field, allowed in _SWITCHES.items():
            if (value := getattr(self, field)) not in allowed:
                raise InputError(f"a feature space's {field} is one of {', '.join(allowed)}, got {value!r}")
        ridge = self.ridge
        if ridge is not None and (not isinstance(ridge, Real) or isinstance(ridge, bool) or not 0 < ridge < math.inf):
            raise InputError(f"a feature space's ridge is a positive number, or None, got {ridge!r}")

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
            "fisher": "φ scaled by √σ'(margin): duels whose label is predictable count less",
            "diagonal": "V's diagonal in place of V",
            "identity": "no V: V = ridge·I whatever was asked",
        }
        told = [words[switch] for switch in (self.normalise, self.weight, self.metric) if switch in words]
        return [f"φ from {where}", *told, *([] if self.ridge is None else [f"ridge {self.ridge:g}"])]


_SWITCHES = {name: get_args(hint) for name, hint in get_type_hints(FeatureSpace).items() if name != "ridge"}


@dataclass(frozen=True, eq=False)
class Pool:
    """All that a strategy may know of the duels on offer.

    ``duels`` (n of them) name rows of an item table with ``responses`` rows a prompt; ``available`` is false where a
    duel may not be asked (it was asked before, or repeats another), ``asked`` is true where an earlier round asked it.
    Of the rest there is what the strategy ``reads``: ``features``, the duels' φ seen through ``V⁻¹``; ``rewards``, the
    learner's, one per item, in log-odds; ``entropy``, the policy's predictive entropy per prompt in nats;
    ``response_widths``, ``‖∇r‖_{V⁻¹}`` per item; ``target``, the target duels' φ in the same ``V⁻¹``; ``truth``, what
    only a simulation knows.  Anything else raises ``InputError``.  ``ties`` is Davidson's ν of the learner's model of
    an answer.
    """

    duels: Duels
    available: Bool[Tensor, "*r n"]
    responses: int
    posterior: Posterior | None = None
    item_rewards: Float[Tensor, "*r items"] | None = None
    prompt_entropy: Float[Tensor, "*r prompts"] | None = None
    asked: Bool[Tensor, "*r n"] | None = None
    item_posterior: Posterior | None = None
    target_posterior: Posterior | None = None
    target_rewards: Float[Tensor, "*r m"] | None = None
    known: Truth | None = None
    ties: float = 0.0

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
    def response_widths(self) -> Float[Tensor, "*r items"]:
        """``‖∇r‖_{V⁻¹}`` of each item."""
        return _declared(self.item_posterior, "response width").widths

    @property
    def target(self) -> Posterior:
        """The target duels' φ as seen through the same ``V⁻¹``."""
        return _declared(self.target_posterior, "target")

    @property
    def target_margins(self) -> Float[Tensor, "*r m"]:
        """The learner's reward difference of each target duel, in log-odds; for rules that read target and reward."""
        return _declared(self.target_rewards, "target")

    @property
    def truth(self) -> Truth:
        """What only a simulation knows."""
        return _declared(self.known, "truth")

    @property
    def margins(self) -> Float[Tensor, "*r n"]:
        """The learner's reward difference of each duel, in log-odds."""
        return self.duels.difference(self.rewards)

    @property
    def prompts(self) -> Int64[Tensor, "*r n"]:
        """The prompt of each duel."""
        return self.duels.first // self.responses

    def rank(self, *keys: Shaped[Tensor, "*r n"]) -> Int64[Tensor, "*r n"]:
        """Return each duel's place, from 0, among those of its prompt in the order of falling keys."""
        order = largest_first(-self.prompts, *keys)
        prompts = self.prompts.gather(-1, order).contiguous()
        place = torch.arange(order.shape[-1], device=order.device)
        return torch.zeros_like(order).scatter(-1, order, place - torch.searchsorted(prompts, prompts))

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
    reads: frozenset[Quantity] = ORDINARY
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
        scores = _scores(self, pool, key.fold_in("strategy"))
        return largest_first(pool.available.to(torch.int8), *scores, -_ties(pool, key))[..., :count]


def _scores(rule: ScoreStrategy, pool: Pool, key: Key) -> tuple[Shaped[Tensor, "*r n"], ...]:
    """Return a rule's scores, 0 where a duel may not be asked; ``InputError`` for what are none, one a duel."""
    given, name, there = rule.scores(pool, key), type(rule).__name__, pool.available
    scores = []
    for part in given if isinstance(given, tuple) else (given,):
        values = numbers(part, f"selector: the scores of {name}").to(there.device)
        if values.shape != there.shape:
            shapes = f"{tuple(values.shape)} for {tuple(there.shape)} duels"
            raise InputError(f"selector: the scores of {name} have shape {shapes}")
        if bool((values.isnan() & there).any()):
            raise InputError(f"selector: a score of {name} is NaN")
        scores.append(torch.where(there, values, 0))
    if not scores:
        raise InputError(f"selector: {name} returned no scores")
    return tuple(scores)


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
    name, expected = type(strategy).__name__, (*pool.available.shape[:-1], count)
    picks = numbers(strategy.select(pool, count, key), f"selector: the picks of {name}").to(pool.available.device)
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
class RandomPerPrompt(ScoreStrategy):
    """Uniform, but no prompt is asked a second duel while another has not been asked one, and so on.

    Duels of earlier rounds count where the pool says which they are (``Pool.asked``).
    """

    reads = frozenset[Quantity]()
    summary = "picks blindly, one duel of every prompt before a second of any"

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return less the number of its prompt's duels that come before it."""
        luck = key.uniform(pool.duels.count).expand(pool.available.shape)
        rank = pool.rank(pool.available.to(torch.int8), luck)
        if pool.asked is None:
            return -rank
        before = torch.zeros_like(rank).scatter_add(-1, pool.prompts, pool.asked.to(rank.dtype))
        return -rank - before.gather(-1, pool.prompts)


@dataclass(frozen=True)
class ActiveDPO(ScoreStrategy):
    """``argmax ‖φ‖_{V⁻¹}``, then ``V ← V + φφᵀ``, until the batch is full (arXiv 2505.19241).

    ``batch_update=False`` takes the B widest instead: the control for the batch rule, and what APO's public code does.
    """

    space: FeatureSpace = FeatureSpace()
    batch_update: bool = True

    reads = frozenset[Quantity](["width"])
    source = "Lin et al., ActiveDPO, arXiv 2505.19241"
    deviations: ClassVar[tuple[str, ...]] = ()
    """from the source, for the summary"""

    @property
    def summary(self) -> str:
        """What the switches make of the rule, in words."""
        rule = "picks the duel of greatest width ‖φ‖ under V⁻¹, adds it to V, picks the next"
        if not self.batch_update:
            rule = "picks the widest duels under V⁻¹ without adding a pick to V: the batch may repeat itself"
        return "; ".join([rule, *self.deviations, *self.space.described()])

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return the widths, before any pick."""
        return pool.widths

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
    deviations = ("deviation: a batch, where the paper asks one duel a round",)


@dataclass(frozen=True)
class ADPO(ActiveDPO):
    """Algorithm 1 of arXiv 2503.01076: D-optimal design of last-layer features weighted by ``√(μ(1-μ))``.

    ``μ`` is the answer's probability under the current fit, past duels' included.  Deviations: β, which the source has
    in the weight, is left to the ridge; features are those of the initial model.  ADPO⁺, which weights by a fit to the
    labels of *all* logged duels, has no place where labels must first be asked for.
    """

    space: FeatureSpace = FeatureSpace(layer="last", gradients="initial", weight="fisher")

    source = "Kveton et al., Active Learning for Direct Preference Optimization, arXiv 2503.01076, Algorithm 1"
    deviations = ("deviations: no β in the weight, which the ridge takes up, and features of the initial model",)


@dataclass(frozen=True)
class Dissimilar(ActiveDPO):
    """The duels of least similar responses: ``1 - cos`` of their fixed last-layer features, whatever was asked (REAL).

    ``‖a/‖a‖ - b/‖b‖‖² = 2 - 2 cos(a, b)``: the widest duels of normalised responses where ``V`` is the identity.
    """

    space: FeatureSpace = FeatureSpace(layer="last", gradients="initial", normalise="response", metric="identity")
    batch_update: bool = False

    summary = "picks the duels whose two responses are least alike (cosine of fixed last-layer features)"
    source = "Zhang et al., REAL, arXiv 2409.17169"


@dataclass(frozen=True)
class _Coverage(Strategy):
    """Duels that stand for the others by distance; abstract.

    A duel and its mirror image are one, and one of equal items teaches nothing: distances are ``min ‖φ ∓ φ'‖``, and 0
    counts as covered, as do the duels that earlier rounds asked, where the pool says which they are.
    """

    space: FeatureSpace = FeatureSpace(metric="identity")

    reads = frozenset[Quantity](["width"])

    def _near(self, seen: Posterior, facing: Posterior) -> Float[Tensor, "*r n k"]:
        """Return squared distances, times the ridge: ``‖φ‖² + ‖φ'‖² - 2 |⟨φ, φ'⟩|``."""
        both = seen.residuals.unsqueeze(-1) + facing.residuals.unsqueeze(-2)
        return (both - 2 * seen.inner(facing).abs()).clamp(min=0)

    def _asked(self, pool: Pool) -> Float[Tensor, "*r n"]:
        """Return every duel's squared distance to 0 or the nearest asked one."""
        seen = pool.features
        if pool.asked is None or not bool(pool.asked.any()):
            return seen.residuals
        flags, index = pool.asked.to(torch.int8).topk(int(pool.asked.sum(-1).max()), -1)
        near = self._near(seen, seen.take(index))
        return torch.minimum(seen.residuals, torch.where(flags.unsqueeze(-2) > 0, near, torch.inf).amin(-1))


@dataclass(frozen=True)
class KCentre(_Coverage):
    """Each time the duel farthest from all asked so far (Gonzalez 1985; core-sets, Sener and Savarese)."""

    source = (
        "Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, arXiv 1708.00489"
    )

    @property
    def summary(self) -> str:
        """The rule and its space."""
        return "; ".join(["picks the duel whose φ is farthest from those asked", *self.space.described()])

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Return ``count`` duels, each the farthest from those before it."""
        seen, near, free, ties = pool.features, self._asked(pool), pool.available, _ties(pool, key)
        picks: list[Tensor] = []
        for _ in range(count):
            picks.append(best(near, free, ties))
            index = picks[-1].unsqueeze(-1)
            free = free.scatter(-1, index, False)
            near = torch.minimum(near, self._near(seen, seen.take(index)).squeeze(-1))
        return torch.stack(picks, -1)


@dataclass(frozen=True)
class MaxHerding(_Coverage):
    """Greedy maximisation of ``Σ_f max_{e asked} k(e, f)``, ``k = exp(-distance²/2ℓ²)`` (Bae et al.).

    ``ℓ²`` is ``length²`` times the mean square of the φ's; memory is ``n²`` numbers.
    """

    length: float = 1.0

    source = "Bae et al., Generalized Coverage for More Robust Low-Budget Active Learning, arXiv 2407.12212"

    def __post_init__(self) -> None:
        if not self.length > 0:
            raise InputError(f"the kernel's length must be positive, got {self.length}")

    @property
    def summary(self) -> str:
        """The rule and its space."""
        return "; ".join(["picks the duel whose φ has most others near that no asked one has", *self.space.described()])

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Return ``count`` duels, each the one that adds most to the coverage."""
        seen, free, ties = pool.features, pool.available, _ties(pool, key)
        scale = 2 * self.length**2 * seen.residuals.mean(-1, keepdim=True).clamp(min=1e-300)
        kernel = (-self._near(seen, seen) / scale.unsqueeze(-1)).exp()
        covered = (-self._asked(pool) / scale).exp()
        picks: list[Tensor] = []
        for _ in range(count):
            picks.append(best((kernel - covered.unsqueeze(-2)).clamp(min=0).sum(-1), free, ties))
            index = picks[-1].unsqueeze(-1)
            free = free.scatter(-1, index, False)
            covered = torch.maximum(covered, gather(kernel, index).squeeze(-2))
        return torch.stack(picks, -1)


def _only(rule: str, space: FeatureSpace, **wanted: str) -> None:
    """Refuse a space in which a rule means nothing."""
    for field, value in wanted.items():
        if getattr(space, field) != value:
            raise InputError(f"{rule} needs a space of {field} {value!r}, got {getattr(space, field)!r}")


@dataclass(frozen=True)
class PolicyTrace(ScoreStrategy):
    """The duel that most lowers the margins' variance over all duels of the pool, then ``V ← V + φφᵀ``, and so on.

    ``Σ_f ⟨φ, f⟩²_{V⁻¹} / (1 + ‖φ‖²_{V⁻¹})``.  With responses drawn from π, ``Σ_{i<j} φ_ij φ_ijᵀ / K²`` estimates the
    policy's Fisher matrix ``I``, so this lowers ``tr(I V⁻¹)``, the criterion of arXiv 2606.19607, one duel at a time.
    """

    space: FeatureSpace = FeatureSpace()

    reads = frozenset[Quantity](["width"])
    source = "Han, Goyal and Ma, Which Pairs to Compare for LLM Post-Training?, arXiv 2606.19607, made sequential"
    _aim = "all duels of the pool"

    def __post_init__(self) -> None:
        _only(type(self).__name__, self.space, metric="full")

    @property
    def summary(self) -> str:
        """The rule, its target and its space."""
        rule = f"picks the duel whose label most lowers the margins' variance, summed over {self._aim}; adds it to V"
        return "; ".join([rule, *self.space.described()])

    def _target(self, pool: Pool) -> Posterior:
        return pool.features

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return by how much each duel lowers the variance, before any pick."""
        return Facing(pool.features, self._target(pool), 0, None).lowered

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Return ``count`` duels, each the best given those before it."""
        return greedy_trace(pool.features, self._target(pool), count, pool.available, _ties(pool, key))[0]


@dataclass(frozen=True)
class PolicyTraceTarget(PolicyTrace):
    """As ``PolicyTrace``, over the duels of held-out prompts: transductive, since it sees what it is measured on.

    It sees their responses, never their labels or rewards.
    """

    reads = frozenset[Quantity](["width", "target"])
    _aim = "the target's duels (transductive: it sees the held-out prompts, not their labels)"

    def _target(self, pool: Pool) -> Posterior:
        return pool.target


@dataclass(frozen=True)
class DeltaLogDet(Strategy):
    """Each prompt proposes its largest optimistic gap, ``|margin| + ν·width``; of these the batch is greedy log det.

    What DeltaUCB (arXiv 2603.09692) lacks is the batch: there each prompt's proposal stands alone.  Every prompt's
    first proposal comes before any second one.  ``widths``: of the duel's ``difference`` (only differences are
    identified), or ``s_i + s_j`` of its two ``responses``, as in the source.  ``quantile``: the share of a prompt's
    rivals of the best response, from the worst up, that is passed over (0: the largest gap).
    """

    space: FeatureSpace = FeatureSpace()
    nu: float = 1.0
    widths: Literal["difference", "responses"] = "difference"
    quantile: float = 0.0

    source = "after Melikidze et al., ActiveUltraFeedback, arXiv 2603.09692; the batch is ours"

    def __post_init__(self) -> None:
        _only("delta-logdet", self.space, metric="full")
        if self.widths == "responses":
            _only("delta-logdet with widths of responses", self.space, weight="none")
            if self.space.normalise == "duel":
                raise InputError("delta-logdet with widths of responses cannot normalise duels")
        if not self.nu >= 0:
            raise InputError(f"the exploration factor nu must not be negative, got {self.nu}")
        if not 0 <= self.quantile < 1:
            raise InputError(f"the quantile must lie in [0, 1), got {self.quantile}")

    @property
    def reads(self) -> frozenset[Quantity]:  # type: ignore[override]  # a constant of the other rules
        """Response widths only where they are used."""
        return frozenset(("width", "reward", *(("response width",) if self.widths == "responses" else ())))

    @property
    def summary(self) -> str:
        """What the switches make of the rule, in words."""
        width = "the duel's width" if self.widths == "difference" else "its responses' two widths"
        rule = f"each prompt proposes its largest gap (|margin| + {self.nu:g} × {width})"
        if self.quantile:
            rule += f", the worst {100 * self.quantile:g} % of rivals passed over"
        return "; ".join([f"{rule}; picks of these what adds most to log det V", *self.space.described()])

    def proposals(self, pool: Pool, key: Key) -> Int64[Tensor, "*r n"]:
        """Return each duel's place, from 0, among its prompt's proposals."""
        free, luck = pool.available.to(torch.int8), -_ties(pool, key)
        width = pool.widths
        if self.widths == "responses":
            widths = pool.response_widths
            width = widths.gather(-1, pool.duels.first) + widths.gather(-1, pool.duels.second)
        gap = pool.margins.abs() + self.nu * width
        rank = pool.rank(free, gap, luck)
        if self.quantile == 0:
            return rank
        # The best response is the better side of the largest gap; its rivals are ranked, the worst of them first.
        ahead = torch.where(pool.margins >= 0, pool.duels.first, pool.duels.second)
        leaders = pool.leaders().scatter_reduce(
            -1, pool.prompts, torch.where(rank == 0, ahead, -1), "amax", include_self=False
        )
        holds, _ = pool.against(leaders)
        rivals = pool.rank(free, holds.to(torch.int8), gap, luck)
        skipped = math.floor(self.quantile * (pool.responses - 1) + 1e-9)
        return pool.rank(free, holds.to(torch.int8), -(rivals - skipped).abs(), gap, luck)

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Return ``count`` proposals, each the widest given those before it."""
        place = self.proposals(pool, key)

        def score(residual: Tensor, taken: Tensor) -> Tensor:
            turn = torch.where(taken, place.amax(-1, keepdim=True) + 1, place).amin(-1, keepdim=True)
            return torch.where(place == turn, residual, -1.0)

        return greedy(pool.features, count, pool.available, _ties(pool, key), score=score)


_FISHER = FeatureSpace(weight="fisher")


@dataclass(frozen=True)
class DecisiveBALD(ScoreStrategy):
    """Information of the label about its margin, times how decided the label will be.

    ``[h(E_z p) - E_z h(p)] · E_z |2p - 1|`` with ``p = σ(m + wz)``, ``z ~ N(0, 1)`` by 16 Gauss-Hermite nodes, ``h``
    the binary entropy in nats, ``m`` the margin and ``w = ‖φ‖_{H⁻¹}`` its posterior standard deviation, ``H`` the
    logistic loss's Hessian: the Fisher-weighted ``V``, which grows with every pick.  The first factor is BALD (Houlsby
    et al., arXiv 1112.5745).  ``decisive=False`` is BALD alone.
    """

    space: FeatureSpace = _FISHER
    decisive: bool = True

    reads = frozenset[Quantity](["width", "reward"])
    source = "BALD of Houlsby et al., arXiv 1112.5745, by the chance of a decided answer"

    def __post_init__(self) -> None:
        _only("decisive-bald", self.space, metric="full", weight="fisher")

    @property
    def summary(self) -> str:
        """The rule and its space."""
        rule = "picks the label of greatest information about its margin under the Laplace posterior"
        return "; ".join([rule + (", times how decided it will be" if self.decisive else ""), *self.space.described()])

    def worth(self, margins: Tensor, widths: Tensor) -> Tensor:
        """Return the score of margins with these posterior standard deviations."""
        nodes, weights = hermegauss(16)
        margins = -margins.abs()  # the worth is even, and shares near 0 keep the digits that those near 1 lose
        information, mean, decided = torch.zeros_like(margins), torch.zeros_like(margins), torch.zeros_like(margins)
        for z, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
            drawn = margins + widths * z
            mean = mean + weight * torch.sigmoid(drawn)
            information = information - weight * _entropy(drawn)
            decided = decided + weight * torch.tanh(drawn.abs() / 2)  # |2σ - 1|
        information = (information - torch.xlogy(mean, mean) - (1 - mean) * torch.log1p(-mean)).clamp(min=0)
        return information * decided if self.decisive else information

    def _score(self, pool: Pool, residual: Tensor) -> Tensor:
        information = slope(pool.margins, pool.ties)
        return self.worth(pool.margins, (residual / pool.features.ridge / information).sqrt())

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return the score before any pick."""
        return self._score(pool, pool.features.residuals)

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Return ``count`` duels, each the best given those before it."""
        ties = _ties(pool, key)
        return greedy(pool.features, count, pool.available, ties, score=lambda left, _: self._score(pool, left))


def _entropy(margins: Tensor) -> Tensor:
    """Return ``h(σ(m)) = softplus(-|m|) + |m| σ(-|m|)`` in nats."""
    size = margins.abs()
    return torch.nn.functional.softplus(-size) + size * torch.sigmoid(-size)


@dataclass(frozen=True)
class Stochastic(ScoreStrategy):
    """A rule by score, as a stochastic batch: ``log score + Gumbel noise / power``, the largest first (Kirsch et al.).

    So duels are drawn one by one, without replacement, with probability ∝ ``score^power``, from the scores before any
    pick: a batch that does not repeat itself costs one look.  ``by="rank"`` puts ``1/rank`` in the score's place: for
    scores that may be negative, or several.
    """

    rule: ScoreStrategy
    power: float = 1.0
    by: Literal["score", "rank"] = "score"

    source = "Kirsch et al., Stochastic Batch Acquisition, arXiv 2106.12059"

    def __post_init__(self) -> None:
        if not isinstance(self.rule, ScoreStrategy):
            raise InputError(f"a stochastic batch needs a rule by score, got {type(self.rule).__name__}")
        if not (self.power > 0 and math.isfinite(self.power)):
            raise InputError(f"the power must be positive and finite, got {self.power}")

    @property
    def space(self) -> FeatureSpace:  # type: ignore[override]  # the wrapped rule's
        """The rule's."""
        return self.rule.space

    @property
    def reads(self) -> frozenset[Quantity]:  # type: ignore[override]  # the wrapped rule's
        """The rule's."""
        return self.rule.reads

    @property
    def summary(self) -> str:
        """The rule's, and what is drawn."""
        shares = "score" if self.by == "score" else "1/rank"
        return f"draws a batch with probability ∝ ({shares})^{self.power:g} of a rule that {self.rule.summary}"

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return perturbed log scores."""
        scores = _scores(self.rule, pool, key)
        if self.by == "rank":
            order = largest_first(pool.available.to(torch.int8), *scores, -_ties(pool, key))
            place = torch.arange(1, order.shape[-1] + 1, dtype=torch.float64, device=order.device)
            logs = torch.zeros(order.shape, dtype=place.dtype, device=order.device)
            logs = logs.scatter(-1, order, -place.log().expand(order.shape))
        elif len(scores) == 1 and not bool((scores[0] < 0).any()):
            logs = scores[0].double().log()
        else:
            raise InputError(f"{type(self.rule).__name__}'s scores may be negative, or are several: set by='rank'")
        uniform = key.fold_in("power").uniform(pool.duels.count).clamp(1e-300, 1 - 1e-16)
        return logs - (-uniform.log()).log() / self.power


@dataclass(frozen=True)
class Ceiling(Strategy):
    """The rule that knows the truth: greedy on the true reduction of the target margins' squared error.  No real rule.

    Adding a duel of answer ``y`` moves the fit by one Newton step, so target margin ``f`` by ``h_f (y - σ(m)) g`` with
    ``h_f = ⟨f, φ⟩_{H⁻¹}``, ``g = 1/(1 + σ'(m) ‖φ‖²_{H⁻¹})``, ``H`` the loss's Hessian.  With ``a = E[y] - σ(m)`` and
    ``Var y`` the oracle's, and ``d_f`` the true margin less the fitted one, the expected squared error falls by

        ``2 a g Σ_f d_f h_f - g² (a² + Var y) Σ_f h_f²``.

    The best duel is picked, margins move by what is expected of it, ``H`` grows, and so on.  It knows the reward and
    the oracle's probabilities, not which way a label will fall; it looks one label ahead, so a cleverer rule that knows
    as much could do better still.
    """

    space: FeatureSpace = _FISHER

    reads = frozenset[Quantity](["width", "reward", "target", "truth"])
    summary = (
        "knows the truth, as no real rule does: picks the label that most lowers the true squared error of the "
        "target's margins, expected over its answer; the ceiling for the others"
    )
    source = "a reference of this project's"

    def __post_init__(self) -> None:
        _only("the ceiling", self.space, metric="full", weight="fisher")

    def select(self, pool: Pool, count: int, key: Key) -> Tensor:
        """Return ``count`` duels, each the best given what is expected of those before it."""
        margins, ties, ridge = pool.margins, _ties(pool, key), pool.features.ridge
        root, facing_root = slope(margins, pool.ties).sqrt(), slope(pool.target_margins, pool.ties).sqrt()
        missing = pool.truth.margins - pool.target_margins
        facing = Facing(pool.features, pool.target, count, facing_root.square().reciprocal())
        free, picks = pool.available, list[Tensor]()
        for step in range(count):
            gain = ridge / (ridge + facing.residual)
            surprise = pool.truth.outcome - expected(margins, pool.ties)
            towards = facing.times(missing / facing_root) / (ridge * root)
            spread = facing.squares / (ridge * root).square()
            falls = 2 * surprise * gain * towards - gain.square() * (surprise.square() + pool.truth.variance) * spread
            picks.append(best(falls, free, ties))
            if step == count - 1:
                break
            index = picks[-1].unsqueeze(-1)
            free = free.scatter(-1, index, False)
            moved = (surprise * gain / (ridge * root)).gather(-1, index)
            missing = missing - moved * facing.row(picks[-1]) / facing_root
            margins = margins + moved * facing.column(picks[-1]) / root
            facing.add(picks[-1])
        return torch.stack(picks, -1)


@dataclass(frozen=True)
class LabelEntropy(ScoreStrategy):
    """The duels whose answer is least certain: ``σ(margin)`` nearest ½."""

    reads = frozenset[Quantity](["reward"])
    summary = "picks the duels whose label the learner's reward predicts least"

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
        return -pool.rank(pool.available.to(torch.int8), preference, shuffle), pool.widths

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
        "proportion to an arm's width against the leader, and in every round, without a coin or a first phase of "
        "random duels"
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

    summary = (
        "pits the best response of one Thompson draw against the worst of another; deviation: where both are one "
        "response, the pair of largest drawn gap, where the source draws again"
    )
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


def check_strategy(strategy: object) -> None:
    """Raise ``InputError`` for what is no strategy, or reads or measures what there is not."""
    if not isinstance(strategy, Strategy):
        raise InputError(f"a strategy is an object of a class that inherits from Strategy, got {strategy!r}")
    name, reads, space = type(strategy).__name__, strategy.reads, strategy.space
    if not isinstance(reads, Set):
        raise InputError(f'{name}.reads is a set, such as frozenset({{"width"}}), got {reads!r}')
    if unknown := set(reads) - set(get_args(Quantity)):
        there = ", ".join(get_args(Quantity))
        raise InputError(f"{name}.reads names {', '.join(sorted(map(str, unknown)))}; choose from {there}")
    if "width" not in reads and (without := set(reads) & {"response width", "target"}):
        raise InputError(f"{name}.reads names {' and '.join(sorted(without))} without width, by whose V they are seen")
    if not isinstance(space, FeatureSpace):
        raise InputError(f"{name}.space is a FeatureSpace, got {space!r}")


def _check(strategy: object) -> None:
    """Raise ``InputError`` for what is no strategy, or does not say what it is."""
    check_strategy(strategy)
    assert isinstance(strategy, Strategy)
    for name, text in (("summary", strategy.summary), ("source", strategy.source)):
        if not isinstance(text, str) or len(text.splitlines()) > 1:
            raise InputError(f"its {name} is a text in one line, got {text!r}")
    if not strategy.summary.strip():
        raise InputError("a strategy says in one line what it does; set summary")


POWER = "-power"
"""what turns the name of a rule by score into that of its stochastic batch"""
_SHARES = (ActiveDPO, APO, ADPO, Dissimilar, PolicyTrace, PolicyTraceTarget, DecisiveBALD)
"""the rules of one score that is never negative; of all others, one's own among them, ranks are drawn by"""


class Strategies(Registry[Strategy]):
    """All strategies by name; with ``-power`` after it, the name of a rule by score is that of its stochastic batch.

    ``Stochastic(rule)`` draws by the score where that is known to be one and never negative, else by rank.  A name that
    is registered as such comes first.
    """

    def __getitem__(self, name: str) -> Strategy:
        """Return a strategy; ``InputError`` for a name that there is not, or a rule with nothing to draw by."""
        base = name.removesuffix(POWER)
        if name in self._parts:
            return self._parts[name]
        if base not in self._parts or base == name:
            scored = (known + POWER for known, rule in self._parts.items() if _scored(rule))
            raise unknown(self.kind, name, self._parts, scored)
        check_name(self.kind, name)
        rule = self._parts[base]
        if not _scored(rule):
            what = "is such a batch already" if isinstance(rule, Stochastic) else "picks by no score of single duels"
            raise InputError(f"strategy {name!r}: {POWER} draws a batch by a rule's scores; {base!r} {what}")
        assert isinstance(rule, ScoreStrategy)
        return Stochastic(rule, by="score" if type(rule) in _SHARES else "rank")

    def __contains__(self, name: object) -> bool:
        base = name.removesuffix(POWER) if isinstance(name, str) else name
        return name in self._parts or (base in self._parts and _scored(self._parts[str(base)]))


def _scored(rule: Strategy) -> bool:
    return isinstance(rule, ScoreStrategy) and not isinstance(rule, Stochastic)


STRATEGIES = Strategies("strategy", _check)
"""All strategies by name; ``STRATEGIES.register`` adds one."""

for _name, _strategy in {
    "random": Random(),
    "random-per-prompt": RandomPerPrompt(),
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
    "dissimilar": Dissimilar(),
    "k-centre": KCentre(),
    "max-herding": MaxHerding(),
    "policy-trace": PolicyTrace(),
    "policy-trace-target": PolicyTraceTarget(),
    "delta-logdet": DeltaLogDet(),
    "delta-logdet-responses": DeltaLogDet(widths="responses"),
    "delta-logdet-20%": DeltaLogDet(quantile=0.2),
    "decisive-bald": DecisiveBALD(),
    "activedpo-power": Stochastic(ActiveDPO()),
    "decisive-bald-power": Stochastic(DecisiveBALD()),
    "label-entropy-power": Stochastic(LabelEntropy(), by="rank"),
    "ceiling": Ceiling(),
}.items():
    STRATEGIES.register(_name, _strategy)
