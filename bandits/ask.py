"""Owns choice for people with arrays of their own: ask which duels to have answered, tell what came back.

    selector = Selector("activedpo", ridge=1.0)
    duels = selector.ask(features, 20, groups=prompts)  # (20, 2): rows of the array
    selector.tell(answers)                              # 1: the first won, 0: the second, 1/2: a tie, NaN: no answer

The same strategies and the same design as everywhere; no language model, no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.core.duels import Duels, Labelled, Offer
from bandits.core.errors import InputError
from bandits.core.given import numbers, positive, whole
from bandits.core.rng import Key
from bandits.core.stored import Stored
from bandits.loop import DesignState
from bandits.selector import STRATEGIES, Pool, Strategy, check_strategy, select

Array = np.ndarray | Tensor | pd.DataFrame | Sequence[Sequence[float]]
MOST = 5_000_000  # duels that "all pairs" may make


@dataclass(frozen=True, eq=False)
class _Items:
    """Rows of an array, laid out with ``responses`` places a group; ``rows`` of empty places are anybody's."""

    rows: Int64[Tensor, " n"]
    places: Int64[Tensor, " m"]
    responses: int

    @property
    def prompts(self) -> int:
        """How many groups."""
        return len(self.rows) // self.responses

    def keep(self, duels: Duels) -> tuple[_Items, Duels]:
        """Return this very table, which lasts."""
        return self, duels

    def join(self, *others: _Items) -> _Items:
        """Return this very table."""
        return self

    def placed(self, duels: Duels) -> Duels:
        """Return duels of the array's rows as duels of the table."""
        return Duels(self.places[duels.first], self.places[duels.second])


@dataclass(frozen=True, eq=False)
class _Given:
    """What stands where the loop has a learner: the numbers that were given."""

    values: Tensor
    scores: Tensor | None
    ties: float = 0.0

    def features(self, items: _Items, at: str, layer: str) -> Stored:
        """Return the rows as they are."""
        return Stored(self.values, places=items.rows)

    def rewards(self, items: _Items) -> Float[Tensor, " n"]:
        """Return the rewards that were given, in log-odds."""
        if self.scores is None:
            raise InputError("ask: this strategy reads rewards; give your model's, one per row, in log-odds: rewards=…")
        return self.scores[items.rows]

    def entropy(self, items: _Items, rewards: Tensor) -> Tensor:
        """Nothing is known of a policy."""
        raise InputError("ask: arrays tell no entropy of a policy")

    def fit(self, past: Labelled[_Items]) -> None:
        """Whoever gives arrays fits his model himself."""

    def state(self) -> dict[str, Tensor]:
        """Return nothing: there is no model here."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""


class Selector:
    """Asks for the duels of a pool that are most worth an answer, batch after batch.

    The pool is an array ``(n, d)``, NumPy's or torch's, in memory or mapped from a file: a row a response, such as its
    gradient (then widths are ActiveDPO's) or an embedding of it (then they are those of a linear reward).  Rows keep
    their places from call to call; their numbers may change as the model moves, and new rows may come at the end.
    """

    def __init__(self, strategy: str | Strategy = "activedpo", ridge: float = 1.0, seed: int = 0) -> None:
        """Take a registered strategy or one of one's own; ``ridge`` is that of ``V``, in squared units of the rows."""
        self.strategy = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
        check_strategy(self.strategy)
        if unmet := set(self.strategy.reads) - {"width", "reward"}:
            raise InputError(
                f"ask: the strategy reads {', '.join(sorted(unmet))}, which arrays do not tell; choose another"
            )
        self.ridge, self.key = positive(ridge, "ask: the ridge"), Key(whole(seed, "ask: the seed"))
        self.batches = 0
        """how many were asked"""
        self._told: dict[tuple[int, int], float] = {}
        self._open: list[tuple[int, int]] = []
        self.duels_: np.ndarray
        """the duels of the last pool, ``(m, 2)``"""
        self.widths_: np.ndarray | None = None
        """``‖φ‖_{V⁻¹}`` of each of them before the last batch; None if the strategy reads no width"""

    @property
    def answers(self) -> dict[tuple[int, int], float]:
        """All answers so far, by duel."""
        return {duel: outcome for duel, outcome in self._told.items() if outcome == outcome}

    def ask(
        self,
        pool: Array,
        budget: int,
        *,
        duels: Array | None = None,
        groups: Array | Sequence[Any] | None = None,
        rewards: Array | Sequence[int | float] | None = None,
    ) -> np.ndarray:
        """Return ``budget`` duels to have answered, ``(budget, 2)`` rows of the pool, the most informative first.

        ``groups`` names each row's prompt: only rows of one group make duels (without it, all rows do).  ``duels`` says
        which there are, ``(m, 2)``, in place of all pairs.  ``rewards`` are the model's, one per row, in log-odds, for
        strategies that read them.  No duel is asked twice, in either order.

        Raises ``InputError`` for what is no such array, for numbers that are not finite, a budget beyond the duels
        left, and a batch that was asked and not told.
        """
        if self._open:
            raise InputError(
                f"ask: tell the answers to the last {len(self._open)} duels first; NaN where there is none"
            )
        values, budget = _table(pool), whole(budget, "ask: the budget", 1)
        items, free = _layout(len(values), groups)
        offered = _pairs(len(values), items, free, duels)
        available = self._free(offered)
        scores = None if rewards is None else _scores(rewards, len(values))
        given = _Given(values, scores)
        placed = items.placed(offered)
        posterior = None
        if "width" in self.strategy.reads:
            posterior = self._look(given, items, placed, available, budget)
        seen = given.rewards(items) if "reward" in self.strategy.reads else None
        shown = Pool(placed, available, items.responses, posterior, seen, asked=~available)
        picks = select(shown, self.strategy, budget, self.key.fold_in("ask", self.batches))
        self.batches += 1
        self.duels_ = torch.stack([offered.first, offered.second], -1).numpy()
        self.widths_ = None if posterior is None else posterior.widths.numpy()
        chosen: np.ndarray = self.duels_[picks.numpy()]
        self._open = [(int(a), int(b)) for a, b in chosen]
        return chosen

    def _free(self, offered: Duels) -> Bool[Tensor, " m"]:
        """Return which duels were not told, and do not repeat one before."""
        first: dict[tuple[int, int], int] = {}
        return torch.tensor(
            [
                first.setdefault(pair, place) == place and pair not in self._told
                for place, pair in enumerate(_sorted(offered))
            ]
        )

    def _look(self, given: _Given, items: _Items, placed: Duels, available: Tensor, budget: int) -> Any:
        """Return the duels as seen through V⁻¹ of the answered ones, at the features as they are now."""
        space = replace(self.strategy.space, gradients="current")  # the arrays say at which model they were taken
        ridge = self.ridge if space.ridge is None else space.ridge
        past: Labelled[_Items] = Labelled()
        if answered := self.answers:
            pairs = torch.tensor(list(answered))
            if int(pairs.max()) >= len(given.values):
                raise InputError(
                    f"ask: the pool has {len(given.values)} rows, but row {int(pairs.max())} was asked about before; "
                    "rows keep their places, and new ones come at the end"
                )
            asked = items.placed(Duels(pairs[:, 0], pairs[:, 1]))
            past = Labelled.of(items, asked, torch.tensor(list(answered.values()), dtype=torch.float64), lasting=True)
        offer = Offer(items, placed, available, lasting=True)
        return DesignState(space, ridge, budget).look(given, offer, past)

    def tell(self, answers: Array | Sequence[int | float | None], duels: Array | None = None) -> Selector:
        """Take the answers to the duels last asked, in their order; or to ``duels`` that were answered elsewhere.

        1: the first won, 0: the second, 1/2: a tie, any share between if several people answered; NaN or None: there is
        no answer, and the duel is not asked again.  Raises ``InputError`` for anything else, or another number of them.
        """
        pairs = self._open if duels is None else _given(duels)
        values = _answers(answers)
        if len(values) != len(pairs):
            raise InputError(f"tell: {len(pairs)} duels were asked, and {len(values)} answers came")
        wrong = next((value for value in values if not (0 <= value <= 1 or value != value)), None)
        if wrong is not None:
            raise InputError(f"tell: an answer is a share between 0 and 1 that the first won, or NaN, got {wrong}")
        for (first, second), value in zip(pairs, values, strict=True):
            self._told[min(first, second), max(first, second)] = value if first <= second else 1 - value
        if duels is None:
            self._open = []
        return self


def _answers(answers: object) -> list[float]:
    """Return answers as numbers, NaN for None; ``InputError`` for words and the like."""
    if isinstance(answers, str | Mapping) or not isinstance(answers, Iterable):
        raise InputError(f"tell: answers are a list or an array, in the order of the duels, got {answers!r:.60}")
    given = [math.nan if answer is None else answer for answer in answers]
    found = numbers(given, "tell: answers, 1, 0, 1/2 or NaN").double()
    if found.dim() != 1:
        raise InputError(f"tell: answers are one a duel, got shape {tuple(found.shape)}")
    return found.tolist()


def _table(pool: Array) -> Tensor:
    """Return an array as a tensor, without a copy of what is mapped from a file."""
    values = numbers(pool, "ask: the pool")
    if values.dim() != 2 or not values.shape[0] or not values.shape[1]:
        raise InputError(f"ask: a pool is an array of rows, (n, d), got shape {tuple(values.shape)}")
    return (values if values.is_floating_point() else values.double()).cpu()


def _scores(rewards: Array | Sequence[int | float], count: int) -> Tensor:
    found = numbers(rewards, "ask: rewards").double()
    if found.shape != (count,):
        raise InputError(f"ask: rewards are one per row, ({count},), got shape {tuple(found.shape)}")
    return found


def _layout(count: int, groups: Array | Sequence[Any] | None) -> tuple[_Items, Int64[Tensor, " n"]]:
    """Return the table of the rows by group, and each row's group."""
    if groups is None:
        every = torch.arange(count)
        return _Items(every, every, count), torch.zeros(count, dtype=torch.int64)
    try:
        names = np.asarray(groups)
        _, inverse = np.unique(names, return_inverse=True)
    except (TypeError, ValueError):
        raise InputError(
            f"ask: groups are names or numbers, all of one kind, one per row, got {groups!r:.60}"
        ) from None
    if names.shape != (count,):
        raise InputError(f"ask: groups are one per row, ({count},), got shape {names.shape}")
    group = torch.from_numpy(inverse.astype(np.int64))
    order = group.argsort(stable=True)
    start = torch.searchsorted(group[order].contiguous(), group[order].contiguous())
    widest = int(group.bincount().max())
    places = torch.empty(count, dtype=torch.int64)
    places[order] = group[order] * widest + torch.arange(count) - start
    rows = order[torch.searchsorted(group[order].contiguous(), torch.arange(int(group.max()) + 1))]
    table = rows.repeat_interleave(widest)  # an empty place repeats its group's first row
    table[places] = torch.arange(count)
    return _Items(table, places, widest), group


def _pairs(count: int, items: _Items, group: Tensor, duels: Array | None) -> Duels:
    if duels is not None:
        pairs = torch.tensor(_given(duels))
        if int(pairs.max()) >= count or int(pairs.min()) < 0:
            raise InputError(f"ask: duels name rows from 0 to {count - 1}")
        bad = (group[pairs[:, 0]] != group[pairs[:, 1]]) | (pairs[:, 0] == pairs[:, 1])
        if bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            raise InputError(f"ask: duel {first}, {pairs[first].tolist()}, is not one of two rows of one group")
        return Duels(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())
    sizes = group.bincount()
    number = int((sizes * (sizes - 1) // 2).sum())
    if not number:
        raise InputError("ask: no group has two rows, so there is no duel")
    if number > MOST:
        raise InputError(f"ask: all pairs make {number} duels; give groups, or the duels that there are")
    order, starts = group.argsort(stable=True), sizes.cumsum(0) - sizes
    parts = []
    for size in sizes.unique().tolist():  # groups of one size at once, then in the groups' order
        alike = (sizes == size).nonzero().squeeze(-1)
        places = starts[alike][:, None, None] + torch.combinations(torch.arange(size), 2)
        parts.append(order[places.flatten(0, 1)])
    pairs = torch.cat(parts)
    pairs = pairs[group[pairs[:, 0]].argsort(stable=True)]
    return Duels(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


def _given(duels: Array) -> list[tuple[int, int]]:
    try:
        found = np.asarray(duels)
    except ValueError:  # lists of unlike lengths
        found = np.array(None)
    if found.ndim != 2 or found.shape[1] != 2 or not len(found) or found.dtype.kind not in "iu":
        raise InputError(f"duels are pairs of rows, (m, 2) whole numbers, got {found.dtype} of shape {found.shape}")
    pairs = [(int(a), int(b)) for a, b in found]
    if wrong := [pair for pair in pairs if min(pair) < 0 or pair[0] == pair[1]]:
        raise InputError(f"duels are pairs of two rows, counted from 0, got {wrong[0]}")
    return pairs


def _sorted(duels: Duels) -> list[tuple[int, int]]:
    low, high = torch.minimum(duels.first, duels.second), torch.maximum(duels.first, duels.second)
    return list(zip(low.tolist(), high.tolist(), strict=True))
