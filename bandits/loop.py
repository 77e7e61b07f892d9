"""Owns the one loop of the project: show, look, select, ask, remember, fit.  The simulator and the LLM share it.

An arena shows items and answers duels; a learner has rewards and gradients and is fitted; a strategy picks.  The belief
keeps ``V`` in the strategy's space.  What is measured on the way is the caller's business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.core.design import Design, DiagonalDesign, FixedDesign, GramDesign, Posterior, WhitenedDesign
from bandits.core.duels import Answers, Asked, Duels, Items
from bandits.core.errors import InputError
from bandits.core.oracles import slope
from bandits.core.rng import Key
from bandits.core.rows import Dense, Rows
from bandits.selector import FeatureSpace, Pool, Quantity, Strategy, select


class DuelArena(ABC):
    """What the loop needs of an arena, simulated or real; abstract."""

    @abstractmethod
    def show(self, round: int) -> Items:
        """Begin a round: return its table of items."""

    @abstractmethod
    def ask(self, duels: Duels) -> Answers:
        """Ask the oracle these duels of the shown table."""

    @property
    @abstractmethod
    def rewards(self) -> Float[Tensor, "*r n"]:
        """The true rewards of the shown table, for evaluation only."""

    def offers(self, duels: Duels) -> Bool[Tensor, "*r k"]:
        """Which duels of the shown table may be asked: all, unless an arena knows of items that are the same."""
        return torch.ones_like(duels.first, dtype=torch.bool)


@runtime_checkable
class Learner(Protocol):
    """What the loop needs of a learner, simulated or real."""

    def observe(self, items: Any, answers: Answers) -> None:
        """Remember answered duels of a table."""

    def fit(self) -> Any:
        """Fit to all remembered answers; what is returned is handed on in the round."""

    def rewards(self, items: Any) -> Float[Tensor, "*r n"]:
        """Return the learner's reward of every item, in log-odds."""

    def features(self, items: Any, at: Literal["current", "initial"], layer: Literal["all", "last"]) -> Rows:
        """Return the gradient of every item's reward."""

    def entropy(self, items: Any, rewards: Float[Tensor, "*r n"], temperature: float) -> Float[Tensor, "*r p"]:
        """Return the policy's predictive entropy per prompt in nats, given the items' rewards."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that, with the answers, restore the learner."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a saved state."""


@dataclass(frozen=True)
class Plan:
    """How long, how many, and with which ridge.

    ``ridge`` is ``λ/κ`` and ``regularisation`` is ``λ`` (Fisher-weighted designs use it: κ is in their weights).
    ``refit`` is the growth of the number of answers after which the learner is fitted again (0: every round; 0.02: when
    2 % more are in).  ``selves`` offers every item against itself too, as in the regret setting.  ``temperature`` is β
    of the policy whose entropy APLP reads.  ``many_rounds`` takes the rows of picked duels as they were looked at, so
    that a round passes over ``V`` once.
    """

    rounds: int
    batch: int
    ridge: float
    regularisation: float
    refit: float = 0.0
    selves: bool = False
    fresh: bool = True
    repeats: bool = False
    temperature: float = 1.0
    many_rounds: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 1:
            raise InputError(f"loop: rounds and batch must be at least 1, got {self.rounds} and {self.batch}")


@dataclass(frozen=True)
class Round:
    """What happened: the pool that was on offer, the positions picked, the answers, and how the fit ended."""

    number: int
    items: Items
    duels: Duels
    picks: Int64[Tensor, "*r b"]
    answers: Answers
    fit: Any
    pool: Pool | None
    information: Float[Tensor, "*r"] | float


class DesignState:
    """The design matrix of the answered duels in a strategy's space."""

    def __init__(self, space: FeatureSpace, plan: Plan) -> None:
        """Begin with no answer."""
        self._geometry = space
        natural = plan.regularisation if space.weight == "fisher" else plan.ridge
        self._ridge = space.ridge if space.ridge is not None else natural
        # Rows that stay as they were are appended; rows that change with θ (or whose weights do) are made anew.
        self._grows = space.gradients != "current" and space.weight == "none"
        self.extends = plan.many_rounds and self._grows
        """whether ``V`` takes the picked rows as they were looked at, so that a round passes over its rows once"""
        self.design: Design = FixedDesign(self._ridge)  # until the first rows are seen
        self._began = False
        self._same_table = plan.repeats and not plan.fresh
        self._past: Asked[Items] | None = None

    def _begin(self, rows: Rows) -> None:
        """Choose the form of ``V`` that suits these rows: once, or every time where rows do not stay as they were."""
        if self._began and self._grows:
            return
        self._began = True
        match self._geometry.metric:
            case "identity":
                self.design = FixedDesign(self._ridge)
            case "diagonal":
                self.design = DiagonalDesign(self._ridge)
            case "full":
                whitened = self.extends and isinstance(rows, Dense)
                self.design = WhitenedDesign(self._ridge) if whitened else GramDesign(self._ridge)

    def rows(self, learner: Learner, items: Items, duels: Duels) -> Rows:
        """Return the duels' features φ in this space."""
        space = self._geometry
        at: Literal["current", "initial"] = "initial" if space.gradients == "initial" else "current"
        gradients = learner.features(items, at, space.layer)
        if space.normalise == "response":
            gradients = gradients.normalised()
        rows = gradients.differences(duels)
        if space.normalise == "duel":
            rows = rows.normalised()
        if space.weight == "fisher":
            rows = rows.scaled(slope(duels.difference(learner.rewards(items))).sqrt())
        return rows

    def look(self, learner: Learner, items: Items, duels: Duels) -> Posterior:
        """Return the duels on offer as seen through ``V⁻¹``."""
        rows = self.rows(learner, items, duels)
        self._begin(rows)
        if not self._grows and self._past is not None:
            self.design.append(self.rows(learner, self._past.items, self._past.duels))
        return self.design.condition(rows)

    def remember(self, learner: Learner, items: Items, duels: Duels, seen: Posterior | None = None) -> None:
        """Add answered duels, before the learner is fitted to them; ``seen`` are their rows, if just looked at."""
        if seen is not None:
            self.design.extend(seen)
        elif self._grows:
            asked = Asked.of(items, duels)
            rows = self.rows(learner, asked.items, asked.duels)
            self._begin(rows)
            self.design.append(rows)
        else:
            asked = Asked.of(items, duels, self._same_table)
            self._past = asked if self._past is None else self._past.join(asked, self._same_table)


def fit_rounds(plan: Plan) -> list[bool]:
    """Return in which rounds the learner is fitted."""
    due, fitted = [], 0
    for number in range(plan.rounds):
        answers = (number + 1) * plan.batch
        due.append(number == plan.rounds - 1 or answers >= max(fitted + 1, math.ceil(fitted * (1 + plan.refit))))
        fitted = answers if due[-1] else fitted
    return due


def play(
    arena: DuelArena,
    learner: Learner,
    strategy: Strategy,
    plan: Plan,
    key: Key,
    replay: Sequence[tuple[Int64[Tensor, "*r b"], dict[str, Tensor] | None]] = (),
    diagnostics: FeatureSpace | None = None,
) -> Iterator[Round]:
    """Run the loop, yielding after every round.

    What the strategy does not read is not computed, unless ``diagnostics`` asks for it: then every quantity is, and the
    widths of a strategy that reads none are measured in the space that it names.
    ``replay`` holds the picks of rounds that were played before, each with the learner's state after it where one is
    known; they are asked again (the arena answers alike) and not yielded.  A strategy with ``stale`` gradients needs
    the state after every round, others only after the last.
    """
    reads = strategy.reads if diagnostics is None else frozenset(get_args(Quantity))
    measured = strategy.space if diagnostics is None or "width" in strategy.reads else diagnostics
    belief = DesignState(measured, plan) if "width" in reads else None
    asked: Tensor | None = None
    due, fit = fit_rounds(plan), None
    for number in range(plan.rounds):
        items = arena.show(number)
        lead = arena.rewards.shape[:-1]
        duels = Duels.within(items.prompts, items.responses, plan.selves).to(arena.rewards.device).expand(*lead)
        if asked is None or plan.fresh or plan.repeats:
            asked = torch.zeros(duels.first.shape, dtype=torch.bool, device=duels.first.device)
        pool = features = None
        if belief and (number >= len(replay) or belief.extends):
            features = belief.look(learner, items, duels)
        if number < len(replay):
            picks = replay[number][0]
        else:
            rewards = learner.rewards(items) if reads & {"reward", "entropy"} else None
            entropy = learner.entropy(items, rewards, plan.temperature) if rewards is not None else None
            pool = Pool(duels, ~asked & arena.offers(duels), items.responses, features, rewards, entropy)
            picks = select(pool, strategy, plan.batch, key.fold_in("select", number))
        asked = asked.scatter(-1, picks, True)
        answers = arena.ask(duels.take(picks))
        if belief:
            seen = features.take(picks) if features and belief.extends else None
            belief.remember(learner, items, answers.duels, seen)
        learner.observe(items, answers)
        if number < len(replay):
            saved = replay[number][1]
            if saved is not None:
                learner.restore(saved)
            continue
        if due[number]:
            fit = learner.fit()
        yield Round(
            number, items, duels, picks, answers, fit, pool, belief.design.information() if belief else math.nan
        )
