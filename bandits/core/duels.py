"""Owns the nouns of the field: items, duels, offers, labels.  Knows nothing of where they come from or what is fitted.

An *item* is a pair (prompt, response).  A table of ``N = prompts * responses`` items lists the responses of prompt 0
first, then those of prompt 1, and so on; a *duel* names two rows of the table that share a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def gather(values: Tensor, index: Int64[Tensor, "*r k"]) -> Tensor:
    """Return ``values[..., index, :]`` for values ``(*r, n, d)``, replicate by replicate: shape ``(*r, k, d)``."""
    # By whole rows: no table of indices as large as the result.
    if values.dim() == 2:
        return values.index_select(0, index)
    if values.dim() == 3 and values.is_contiguous():
        replicates, rows, _ = values.shape
        start = torch.arange(0, replicates * rows, rows, device=index.device).unsqueeze(-1)
        return values.flatten(0, 1).index_select(0, (index + start).flatten()).unflatten(0, (replicates, -1))
    return torch.take_along_dim(values, index.unsqueeze(-1), dim=-2)


@dataclass(frozen=True, eq=False)
class Duels:
    """Pairs of rows of an item table: ``first`` is asked against ``second``; both ``(*r, k)``."""

    first: Int64[Tensor, "*r k"]
    second: Int64[Tensor, "*r k"]

    @classmethod
    def within(cls, prompts: int, responses: int, selves: bool = False) -> Self:
        """Return all pairs within each prompt, prompt by prompt; ``selves`` adds every item against itself."""
        pair = torch.combinations(torch.arange(responses), 2, with_replacement=selves)
        rows = (torch.arange(prompts)[:, None, None] * responses + pair).reshape(-1, 2)
        return cls(rows[:, 0].contiguous(), rows[:, 1].contiguous())

    @property
    def count(self) -> int:
        """How many duels (in each replicate)."""
        return self.first.shape[-1]

    def expand(self, *lead: int) -> Duels:
        """Return the same duels in every replicate."""
        return Duels(self.first.expand(*lead, -1), self.second.expand(*lead, -1))

    def to(self, device: torch.device | str) -> Duels:
        """Return the duels on a device."""
        return Duels(self.first.to(device), self.second.to(device))

    def take(self, index: Int64[Tensor, "*r j"]) -> Duels:
        """Return the duels at these positions, replicate by replicate."""
        return Duels(self.first.gather(-1, index), self.second.gather(-1, index))

    def shifted(self, rows: int) -> Duels:
        """Return the duels in a table that has ``rows`` more rows in front."""
        return Duels(self.first + rows, self.second + rows)

    def join(self, *others: Duels) -> Duels:
        """Return these duels followed by the others."""
        firsts, seconds = [self.first, *(o.first for o in others)], [self.second, *(o.second for o in others)]
        return Duels(torch.cat(firsts, -1), torch.cat(seconds, -1))

    def difference(self, values: Float[Tensor, "*r n"]) -> Float[Tensor, "*r k"]:
        """Return ``values[first] - values[second]``: of rewards, this is the margin in log-odds."""
        return values.gather(-1, self.first) - values.gather(-1, self.second)


T = TypeVar("T")


@runtime_checkable
class Items(Protocol):
    """A table of items as the learner may see it: everything but the truth."""

    @property
    def prompts(self) -> int:
        """How many prompts the table has."""

    @property
    def responses(self) -> int:
        """How many responses every prompt has; row ``i`` belongs to prompt ``i // responses``."""

    def keep(self: T, duels: Duels) -> tuple[T, Duels]:
        """Return a table with one prompt per duel, in the duels' order, and the same duels in it."""

    def join(self, *others: Self) -> Self:
        """Return this table followed by the prompts of the others."""


I = TypeVar("I", bound=Items)  # noqa: E741


@dataclass(frozen=True, eq=False)
class Target(Generic[I]):
    """Duels whose margins the labels are to make known, such as those of held-out prompts; they are never asked."""

    items: I
    duels: Duels


@dataclass(frozen=True, eq=False)
class Truth:
    """What no rule for real labels may know, for reference rules alone: what will be answered, and what is aimed at.

    ``outcome`` and ``variance`` are the mean and variance of the label of each duel on offer, ``margins`` the true
    reward differences of the target's duels, in log-odds.
    """

    outcome: Float[Tensor, "*r k"]
    variance: Float[Tensor, "*r k"]
    margins: Float[Tensor, "*r m"]


@dataclass(frozen=True, eq=False)
class Offer(Generic[I]):
    """What a round offers: a table of items, duels of it, and which of them may be asked.

    ``lasting`` says that every round offers this very table and that duels may be asked again: the history then keeps
    the table once.  ``asked`` tells which of these duels earlier rounds asked (none, if it is missing).  ``target`` and
    ``truth`` are there if the arena says that it has them.
    """

    items: I
    duels: Duels
    available: Bool[Tensor, "*r k"]
    lasting: bool = False
    asked: Bool[Tensor, "*r k"] | None = None
    target: Target[I] | None = None
    truth: Truth | None = None


@dataclass(frozen=True, eq=False)
class Batch(Generic[I]):
    """The labelled duels of one round, the items that they name, and the share of each that its first item won."""

    items: I
    duels: Duels
    outcome: Float[Tensor, "*r b"]


@dataclass(frozen=True, eq=False)
class Labelled(Generic[I]):
    """All labelled duels so far, round by round: what a learner is fitted to.

    ``add`` returns a longer history and copies nothing; ``items``, ``duels`` and ``outcome`` join the rounds when
    first asked for.  A round keeps one prompt per duel, in the duels' order, or the offered table itself where that is
    ``lasting``.
    """

    batches: tuple[Batch[I], ...] = ()
    lasting: bool = False

    @classmethod
    def of(cls, items: I, duels: Duels, outcome: Float[Tensor, "*r b"], lasting: bool = False) -> Self:
        """Return a history of one round, with the table as it is."""
        return cls((Batch(items, duels, outcome),), lasting)

    def add(self, offer: Offer[I], duels: Duels, outcome: Float[Tensor, "*r b"]) -> Labelled[I]:
        """Return this history followed by labelled duels of an offer."""
        items, inside = (offer.items, duels) if offer.lasting else offer.items.keep(duels)
        return Labelled((*self.batches, Batch(items, inside, outcome)), offer.lasting)

    def __len__(self) -> int:
        """How many labels (in each replicate)."""
        return sum(batch.duels.count for batch in self.batches)

    @cached_property
    def items(self) -> I:
        """One table that holds the items of all rounds."""
        first, *others = (batch.items for batch in self.batches)
        return first if self.lasting or not others else first.join(*others)

    @cached_property
    def duels(self) -> Duels:
        """All labelled duels, in ``items``."""
        placed, rows = [], 0
        for batch in self.batches:
            placed.append(batch.duels.shifted(rows))
            rows += 0 if self.lasting else batch.items.prompts * batch.items.responses
        return placed[0].join(*placed[1:])

    @cached_property
    def outcome(self) -> Float[Tensor, "*r s"]:
        """All labels."""
        return torch.cat([batch.outcome for batch in self.batches], -1)
