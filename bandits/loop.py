"""Owns the one loop of the project: offer, look, select, label, fit.  The simulator and the LLM share it.

An arena offers duels and labels them; a learner has rewards and gradients and is fitted; a strategy picks.  The loop
owns the history of labelled duels, and ``V`` in the strategy's space.  What is measured on the way is the caller's
business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.design import Design, Posterior
from bandits.core.duels import Duels, I, Labelled, Offer
from bandits.core.errors import InputError
from bandits.core.given import shaped
from bandits.core.oracles import slope
from bandits.core.rng import Key
from bandits.core.rows import ItemRows, Rows
from bandits.selector import ORDINARY, FeatureSpace, Pool, Quantity, Strategy, check_strategy, select

F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)


class Arena(ABC, Generic[I]):
    """Where duels and labels come from; abstract.  Rounds are offered in order, and round 0 begins anew."""

    knows: frozenset[Quantity] = frozenset()
    """which of ``target`` and ``truth`` its offers have, for strategies that read them"""

    @abstractmethod
    def offer(self, round: int) -> Offer[I]:
        """Begin a round: return its items, its duels, and which of them may be asked."""

    @abstractmethod
    def label(self, duels: Duels) -> Float[Tensor, "*r b"]:
        """Let the oracle label duels of the round's items; the same duel is labelled alike.

        An outcome is the share of the duel won by the first item: 1, 0, or 1/2 for a tie.
        """


@runtime_checkable
class Learner(Protocol[I, F_co]):
    """What the loop needs of a learner, simulated or real."""

    @property
    def ties(self) -> float:
        """Davidson's ν of the learner's own model of an answer; 0 is BTL."""

    def fit(self, past: Labelled[I]) -> F_co:
        """Fit to all labelled duels; what is returned is handed on in the round."""

    def rewards(self, items: I) -> Float[Tensor, "*r n"]:
        """Return the learner's reward of every item, in log-odds."""

    def features(self, items: I, at: Literal["current", "initial"], layer: Literal["all", "last"]) -> ItemRows:
        """Return the gradient of every item's reward."""

    def entropy(self, items: I, rewards: Float[Tensor, "*r n"]) -> Float[Tensor, "*r p"]:
        """Return the policy's predictive entropy per prompt in nats, given the items' rewards."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that restore the learner as it is."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load a saved state."""


@dataclass(frozen=True)
class Schedule:
    """How many rounds, how many labels a round, and when to fit.

    ``refit`` is the growth of the number of labels after which the learner is fitted again (0: every round; 0.02: when
    2 % more are in).
    """

    rounds: int
    batch: int
    refit: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 1:
            raise InputError(f"loop: rounds and batch must be at least 1, got {self.rounds} and {self.batch}")
        if not 0 <= self.refit < math.inf:
            raise InputError(f"loop: refit must be finite and not negative, got {self.refit}")

    def fits(self) -> list[bool]:
        """Return for every round whether the learner is fitted in it; it is in the last."""
        due, fitted = [], 0
        for number in range(self.rounds):
            labels = (number + 1) * self.batch
            due.append(number == self.rounds - 1 or labels >= max(fitted + 1, math.ceil(fitted * (1 + self.refit))))
            fitted = labels if due[-1] else fitted
        return due


@dataclass(frozen=True)
class Ridges:
    """The ridge of ``V`` where the space names none: ``plain = λ/κ``; ``fisher = λ``, since Fisher weights hold κ."""

    plain: float
    fisher: float

    @classmethod
    def given(cls, ridge: float) -> Ridges:
        """Return the ridges where ``λ/κ`` is given: κ is at most ¼, so λ is taken for a quarter of it."""
        return cls(ridge, ridge / 4)

    def of(self, space: FeatureSpace) -> float:
        """Return the ridge in a space."""
        natural = self.fisher if space.weight == "fisher" else self.plain
        return natural if space.ridge is None else space.ridge


@dataclass(frozen=True, eq=False)
class Round(Generic[I, F]):
    """What happened: the offer, the positions picked, their outcomes, the history with them, and how the fit ended.

    ``pool`` is what the strategy saw.  ``information`` is ``log det(V / ridge)`` in nats with this round's duels in
    ``V``, at the gradients that they were picked by; NaN where nothing reads widths.
    """

    number: int
    offer: Offer[I]
    picks: Int64[Tensor, "*r b"]
    outcome: Float[Tensor, "*r b"]
    past: Labelled[I]
    fit: F | None
    pool: Pool
    information: Float[Tensor, "*r"] | float

    @property
    def asked(self) -> Duels:
        """The picked duels, in the offered table."""
        return self.offer.duels.take(self.picks)


def rewards_of(learner: Learner[I, F], items: I, duels: Duels) -> Float[Tensor, "*r n"]:
    """Return the learner's reward of every item of a table with these duels; ``InputError`` for what are no such."""
    shape = (*duels.first.shape[:-1], items.prompts * items.responses)
    return shaped(learner.rewards(items), f"learner {type(learner).__name__}: rewards", shape)


def _outcome(arena: Arena[I], asked: Duels) -> Float[Tensor, "*r b"]:
    """Let the arena label duels; ``InputError`` for what are no shares, one a duel."""
    name = f"arena {type(arena).__name__}: label"
    found = shaped(arena.label(asked), name, asked.first.shape)
    fair = (found >= 0) & (found <= 1)  # of NaN, neither is true
    if not bool(fair.all()):
        raise InputError(f"{name}: {float(found[~fair][0]):g} is no share of a duel, 1, 0 or 1/2")
    return found if found.is_floating_point() else found.double()


class DesignState:
    """The design matrix of the labelled duels in one feature space."""

    def __init__(self, space: FeatureSpace, ridge: float, batch: int) -> None:
        """Begin without labels; ``batch`` duels are added at a time."""
        self.space, self.ridge, self.batch = space, ridge, batch
        # Rows that stay as they were are appended; rows that change with θ (or whose weights do) are computed anew.
        self.grows = space.metric == "identity" or (space.gradients != "current" and space.weight == "none")
        self.design: Design | None = None

    def responses(self, learner: Learner[I, F], items: I) -> ItemRows:
        """Return the items' gradients in this space."""
        space = self.space
        at: Literal["current", "initial"] = "initial" if space.gradients == "initial" else "current"
        gradients = learner.features(items, at, space.layer)
        if not isinstance(gradients, ItemRows) or gradients.count != items.prompts * items.responses:
            what = f"{gradients.count} rows" if isinstance(gradients, ItemRows) else type(gradients).__name__
            raise InputError(
                f"learner {type(learner).__name__}: features are ItemRows (Dense(values), say), one row an item, got "
                f"{what} for {items.prompts * items.responses} items"
            )
        return gradients.normalised() if space.normalise == "response" else gradients

    def rows(self, learner: Learner[I, F], items: I, duels: Duels) -> Rows:
        """Return the duels' features φ in this space."""
        space = self.space
        rows: Rows = self.responses(learner, items).differences(duels)
        if space.normalise == "duel":
            rows = rows.normalised()
        if space.weight == "fisher":
            rows = rows.scaled(slope(duels.difference(rewards_of(learner, items, duels)), learner.ties).sqrt())
        return rows

    def small(self, offer: Offer[I]) -> bool:
        """Whether the offer holds no more than what is kept of it: then ``V`` takes its rows as they are looked at.

        So a round of a long run passes over ``V`` once; a replayed round, too, has to look.
        """
        return self.grows and offer.items.prompts <= self.batch

    def look(self, learner: Learner[I, F], offer: Offer[I], past: Labelled[I]) -> Posterior:
        """Return the duels on offer as seen through ``V⁻¹`` of the past ones."""
        rows = self.rows(learner, offer.items, offer.duels)
        if self.design is None or not self.grows:
            self.design = Design.of(rows, self.ridge, self.space.metric, self.small(offer))
            if past and not self.grows:
                self.design.append(self.rows(learner, past.items, past.duels))
        return self.design.condition(rows)

    def beside(self, rows: Rows) -> Posterior:
        """Return other rows of this space as seen through the ``V⁻¹`` of the last look."""
        assert self.design is not None
        return self.design.condition(rows)

    def add(
        self, learner: Learner[I, F], offer: Offer[I], picks: Tensor, past: Labelled[I], seen: Posterior | None
    ) -> None:
        """Add the last round's duels, before the learner is fitted to them; ``seen`` is the offer, if looked at."""
        if self.space.metric == "identity":
            return
        if seen is not None and self.design is not None and (self.small(offer) or not self.grows):
            self.design.extend(seen.take(picks))
        elif self.grows:
            rows = self.rows(learner, past.batches[-1].items, past.batches[-1].duels)
            self.design = self.design or Design.of(rows, self.ridge, self.space.metric)
            self.design.append(rows)


def check(strategy: Strategy, arena: Arena[I]) -> None:
    """Refuse what is no strategy, and one that reads what the arena does not have."""
    check_strategy(strategy)
    if missing := sorted(strategy.reads & {"target", "truth"} - arena.knows):
        raise InputError(
            f"strategy {type(strategy).__name__} reads {' and '.join(missing)}, which {type(arena).__name__} does not "
            "have; choose another strategy"
        )


def _pool(
    offer: Offer[I],
    learner: Learner[I, F],
    reads: frozenset[Quantity],
    state: DesignState | None,
    seen: Posterior | None,
) -> Pool:
    """Compute what is read of an offer that was looked at."""
    target = offer.target if "target" in reads else None
    rewards = rewards_of(learner, offer.items, offer.duels) if reads & {"reward", "entropy"} else None
    entropy = learner.entropy(offer.items, rewards) if rewards is not None and "entropy" in reads else None
    items = facing = margins = None
    if state is not None and "response width" in reads:
        items = state.beside(state.responses(learner, offer.items))
    if state is not None and target is not None:
        facing = state.beside(state.rows(learner, target.items, target.duels))
    if target is not None and "reward" in reads:
        margins = target.duels.difference(rewards_of(learner, target.items, target.duels))
    return Pool(
        offer.duels,
        offer.available,
        offer.items.responses,
        seen,
        rewards,
        entropy,
        offer.asked,
        items,
        facing,
        margins,
        offer.truth if "truth" in reads else None,
        learner.ties,
    )


def play(
    arena: Arena[I],
    learner: Learner[I, F],
    strategy: Strategy,
    schedule: Schedule,
    ridges: Ridges,
    key: Key,
    replay: Sequence[tuple[Int64[Tensor, "*r _"], dict[str, Tensor] | None]] = (),
    diagnostics: FeatureSpace | None = None,
) -> Iterator[Round[I, F]]:
    """Run the loop, yielding after every round.

    What the strategy does not read is not computed, unless ``diagnostics`` asks for it: then widths, rewards and
    entropy are, and the widths of a strategy that reads none are measured in the space that it names.  A strategy that
    reads what the arena does not have is refused at once.

    ``replay`` holds the picks of rounds that were played before, each with the learner's state after it where one is
    known; they are labelled again (the arena labels alike) and not yielded.  A strategy with ``stale`` gradients needs
    the state after every round, others only after the last.
    """
    check(strategy, arena)
    reads = strategy.reads if diagnostics is None else strategy.reads | ORDINARY
    space = strategy.space if diagnostics is None or "width" in strategy.reads else diagnostics
    state = DesignState(space, ridges.of(space), schedule.batch) if "width" in reads else None
    past, fit = Labelled[I](), None
    for number, due in enumerate(schedule.fits()):
        offer = arena.offer(number)
        posterior = pool = None
        if state and (number >= len(replay) or state.small(offer)):
            posterior = state.look(learner, offer, past)
        if number < len(replay):
            picks = replay[number][0]
        else:
            pool = _pool(offer, learner, reads, state, posterior)
            picks = select(pool, strategy, schedule.batch, key.fold_in("select", number))
        asked = offer.duels.take(picks)
        outcome = _outcome(arena, asked)
        past = past.add(offer, asked, outcome)
        if state:
            state.add(learner, offer, picks, past, posterior)
        if pool is None:
            if (saved := replay[number][1]) is not None:
                learner.restore(saved)
            continue
        fit = learner.fit(past) if due else fit
        information = state.design.information() if state and state.design else math.nan
        yield Round(number, offer, picks, outcome, past, fit, pool, information)
