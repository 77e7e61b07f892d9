"""Owns rows that are too many for memory: a table on disk, mapped, read a few rows at a time.

``torch.from_numpy(np.memmap(…))`` or any tensor serves as the table.  Numbers may be in single precision; products and
sums are in double.  Beside the table nothing is held that grows with its number of coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.duels import Duels
from bandits.core.rows import Dense, ItemRows, Pairs, Rows

AT_ONCE = 2**21  # numbers of the table that are in memory, in double precision, at once
FORMED = 2**25  # numbers of duels' features up to which they are formed: 256 MiB
NEAR = 32  # duels whose items are read together: most often those of a few prompts, each met several times
CLOSE = 1e-6  # of two items' squared norms: below it a difference of inner products has lost half its digits


@dataclass(frozen=True, eq=False)
class Stored(ItemRows):
    """Items' rows in a table ``(m, d)``, each times its weight; ``places`` are theirs in the table (all, in order)."""

    values: Float[Tensor, "m d"]
    weights: Float[Tensor, " n"] | None = None
    places: Int64[Tensor, " n"] | None = None

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.values if self.places is None else self.places)

    def parts(self) -> Iterator[tuple[slice, Float[Tensor, "k d"]]]:
        """Yield the rows, a few at a time, in double precision and weighted, with their places."""
        step = max(1, AT_ONCE // max(1, self.values.shape[1]))
        for start in range(0, self.count, step):
            place = slice(start, min(start + step, self.count))
            rows = (self.values[place] if self.places is None else self.values[self.places[place]]).double()
            yield place, rows if self.weights is None else rows * self.weights[place].unsqueeze(-1)

    def inner(self, other: Rows) -> Float[Tensor, "n k"]:
        """Return all inner products with some other rows, which are formed; one pass over the table."""
        facing = other.dense().values.mT
        out = facing.new_empty((self.count, facing.shape[-1]))
        for place, rows in self.parts():
            torch.mm(rows, facing, out=out[place])
        return out

    def squares(self) -> Float[Tensor, " n"]:
        """Return the squared norms, put into one vector: results kept beside the parts would pin what they free."""
        out = torch.empty(self.count, dtype=torch.float64)
        for place, rows in self.parts():
            out[place] = Dense(rows).squares()
        return out

    def take(self, index: Tensor) -> Dense:  # type: ignore[override]
        """Return the rows at these positions, formed."""
        found = index if self.places is None else self.places[index]
        rows = Dense(self.values.index_select(0, found).double())
        return rows if self.weights is None else rows.scaled(self.weights[index])

    def join(self, other: Rows) -> Dense:  # type: ignore[override]
        """Return these rows followed by others, all of them formed."""
        return self.dense().join(other.dense())

    def scaled(self, weights: Tensor) -> Stored:
        """Return the rows, each times its weight."""
        return replace(self, weights=weights if self.weights is None else self.weights * weights)

    def differences(self, duels: Duels) -> Rows:
        """Return the duels' features: formed, if they are few."""
        pairs = StoredPairs(self, duels)
        return pairs.dense() if duels.count * self.values.shape[1] <= FORMED else pairs

    def dense(self) -> Dense:
        """Return the rows explicitly."""
        return Dense(torch.cat([rows for _, rows in self.parts()]))

    def finite(self) -> bool:
        """Whether every number is finite."""
        return all(Dense(rows).finite() for _, rows in self.parts())


@dataclass(frozen=True, eq=False)
class StoredPairs(Pairs):
    """Duels of stored items."""

    items: Stored

    def parts(self) -> Iterator[tuple[slice, Float[Tensor, "k d"]]]:
        """Yield the duels' features, a few at a time, with their places."""
        step = max(1, AT_ONCE // max(1, self.items.values.shape[1]))
        for start in range(0, self.count, step):
            place = slice(start, min(start + step, self.count))
            sides = self.items.take(self.duels.first[place]), self.items.take(self.duels.second[place])
            rows = sides[0].values.sub_(sides[1].values)
            yield place, rows if self.weights is None else rows * self.weights[place].unsqueeze(-1)

    def inner(self, other: Rows) -> Float[Tensor, "n k"]:
        """Return all inner products with some other rows, which are formed; one pass over the items' table."""
        return self.along(self.items.inner(other), -2)

    def squares(self) -> Float[Tensor, " n"]:
        """Return the squared norms ``‖a‖² + ‖b‖² - 2⟨a, b⟩``, reading an item once for the duels near each other.

        Where two items are so close that this cancels, their difference is formed.
        """
        out = torch.empty(self.count, dtype=torch.float64)
        for start in range(0, self.count, NEAR):
            place = slice(start, min(start + NEAR, self.count))
            own, at = torch.stack([self.duels.first[place], self.duels.second[place]]).unique(return_inverse=True)
            rows = self.items.take(own)
            gram = rows.inner(rows)
            norms = gram.diagonal()[at].sum(0)
            out[place] = norms - 2 * gram[at[0], at[1]]
            close = start + (out[place] < CLOSE * norms).nonzero().squeeze(-1)
            if len(close):
                out[close] = replace(self, duels=self.duels.take(close), weights=None).dense().squares()
        return out if self.weights is None else out * self.weights.square()

    def take(self, index: Tensor) -> Dense:  # type: ignore[override]
        """Return the duels at these positions, formed."""
        rows = self.items.take(self.duels.first[index]).values.sub_(self.items.take(self.duels.second[index]).values)
        return Dense(rows if self.weights is None else rows * self.weights[index].unsqueeze(-1))

    def join(self, other: Rows) -> Dense:  # type: ignore[override]
        """Return these duels followed by others, all of them formed."""
        return self.dense().join(other.dense())

    def scaled(self, weights: Tensor) -> StoredPairs:
        """Return the rows, each times its weight."""
        return replace(self, weights=weights if self.weights is None else self.weights * weights)

    def dense(self) -> Dense:
        """Return the features explicitly."""
        out = torch.empty(self.count, self.items.values.shape[1], dtype=torch.float64)
        for place, rows in self.parts():
            out[place] = rows
        return Dense(out)

    def finite(self) -> bool:
        """Whether every number is finite."""
        return self.items.finite() and (self.weights is None or bool(self.weights.isfinite().all()))
