"""Owns the nouns of the field: items, duels, answers.  Knows nothing of where they come from or what is fitted.

An *item* is a pair (prompt, response).  A table of ``N = prompts * responses`` items lists the responses of prompt 0
first, then those of prompt 1, and so on; a *duel* names two rows of the table that share a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

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


@dataclass(frozen=True)
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

    def swapped(self) -> Duels:
        """Return the duels with the two sides exchanged."""
        return Duels(self.second, self.first)

    def shifted(self, rows: int) -> Duels:
        """Return the duels in a table that has ``rows`` more rows in front."""
        return Duels(self.first + rows, self.second + rows)

    def join(self, other: Duels) -> Duels:
        """Return these duels followed by the others."""
        return Duels(torch.cat([self.first, other.first], -1), torch.cat([self.second, other.second], -1))

    def difference(self, values: Float[Tensor, "*r n"]) -> Float[Tensor, "*r k"]:
        """Return ``values[first] - values[second]``: of rewards, this is the margin in log-odds."""
        return values.gather(-1, self.first) - values.gather(-1, self.second)


@dataclass(frozen=True)
class Answers:
    """What the oracle said: ``first_won[i]`` is true where the first item of duel ``i`` was preferred."""

    duels: Duels
    first_won: Bool[Tensor, "*r k"]

    def join(self, other: Answers) -> Answers:
        """Return these answers followed by the others."""
        return Answers(self.duels.join(other.duels), torch.cat([self.first_won, other.first_won], -1))


@runtime_checkable
class Items(Protocol):
    """A table of items as the learner may see it: everything but the truth."""

    @property
    def prompts(self) -> int:
        """How many prompts the table has."""

    @property
    def responses(self) -> int:
        """How many responses every prompt has; row ``i`` belongs to prompt ``i // responses``."""

    def keep(self, duels: Duels) -> tuple[Any, Duels]:
        """Return a table with one prompt per duel, in the duels' order, and the same duels in it."""

    def join(self, other: Self) -> Self:
        """Return this table followed by the other's prompts."""


Table = TypeVar("Table", bound=Items)


@dataclass(frozen=True)
class Asked(Generic[Table]):
    """Asked duels with the items they name.

    ``items`` holds one prompt per duel, in the duels' order; or the shown table itself, where the same table is shown
    every round and duels are asked again (``same_table``).
    """

    items: Table
    duels: Duels

    @classmethod
    def of(cls, items: Table, duels: Duels, same_table: bool = False) -> Self:
        """Keep the part of a table that these duels touch."""
        if same_table:
            return cls(items, duels)
        return cls(*items.keep(duels))

    def join(self, other: Self, same_table: bool = False) -> Self:
        """Return these duels followed by the others."""
        if same_table:
            return type(self)(self.items, self.duels.join(other.duels))
        rows = self.items.prompts * self.items.responses
        return type(self)(self.items.join(other.items), self.duels.join(other.duels.shifted(rows)))
