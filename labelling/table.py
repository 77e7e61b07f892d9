"""Owns a pool as the loop sees it: a table of items, an arena that answers from files, a learner that looks things up.

Nothing here chooses or trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.core.duels import Duels, Offer
from bandits.core.errors import InputError
from bandits.core.stored import Stored
from bandits.loop import Arena
from labelling.labelled import id_of
from labelling.queries import content_id
from labelling.store import Store, sweep
from llm_loop.arena import Completions
from llm_loop.data.chat import Prompt
from llm_loop.data.pools import Group, Pool
from llm_loop.gradients import embeddings
from llm_loop.learner import DPOLearner
from llm_loop.models import Policy, Row


class Table:
    """A pool's items: ``widest`` places a prompt, of which those behind its last response are empty and in no duel."""

    def __init__(self, pool: Pool, policy: Policy, prompt_tokens: int, response_tokens: int) -> None:
        """Tokenise the pool; ``InputError`` with the row's place for what is too long or nothing to the tokenizer."""
        self.groups: tuple[Group, ...] = pool.groups
        self.responses, self.prompts = pool.widest, len(pool.groups)
        self.ids: list[str] = []
        """of the items that are there, in the table's order"""
        self._prompts: list[tuple[int, ...]] = []
        starts, tokens, real, first, second = [0], list[np.ndarray](), list[int](), list[Tensor](), list[Tensor]()
        for number, group in enumerate(pool.groups):
            prompt = policy.tokens_of(group.prompt)
            _check_length(len(prompt), prompt_tokens, "prompt", group.place)
            self._prompts.append(prompt)
            for place, text in enumerate(group.responses):
                found = policy.response_of(text)
                _check_length(len(found), response_tokens, f"response {place + 1}", group.place)
                tokens.append(np.array(found, dtype=np.int32))
                starts.append(starts[-1] + len(found))
                real.append(number * self.responses + place)
                self.ids.append(content_id(id_of(group), text))
            pair = torch.combinations(torch.arange(len(group.responses)), 2) + number * self.responses
            first.append(pair[:, 0])
            second.append(pair[:, 1])
        self._tokens, self._starts = np.concatenate(tokens), starts
        self._at = torch.tensor(real)
        self._real = torch.zeros(self.prompts * self.responses, dtype=torch.int64)  # empty places: any row, never used
        self._real[self._at] = torch.arange(len(real))
        self.duels = Duels(torch.cat(first), torch.cat(second))
        self._numbers = {group.prompt: number for number, group in enumerate(pool.groups)}
        self._keys = self.duels.first * len(self._real) + self.duels.second

    @property
    def longest(self) -> tuple[int, int]:
        """The tokens of the longest prompt and of the longest response."""
        return max(map(len, self._prompts)), int(np.diff(self._starts).max())

    def row(self, item: int) -> Row:
        """Return an item, by its place in ``ids``, as token ids."""
        response = self._tokens[self._starts[item] : self._starts[item + 1]].tolist()
        return Row(self._prompts[int(self._at[item]) // self.responses], tuple(response))

    def texts(self, duel: int) -> tuple[Prompt, str, str]:
        """Return a duel's prompt and its two responses."""
        first, second = int(self.duels.first[duel]), int(self.duels.second[duel])
        group, start = self.groups[first // self.responses], first // self.responses * self.responses
        return group.prompt, group.responses[first - start], group.responses[second - start]

    def find(self, prompt: Prompt, first: str, second: str) -> tuple[int, bool]:
        """Return a duel's place, and whether it has the two responses the other way round.

        Raises ``InputError`` for a duel that the pool does not have.
        """
        number = self._numbers.get(prompt)
        if number is None:
            raise InputError("its prompt is not in the pool")
        places = []
        for text in (first, second):
            if text not in self.groups[number].responses:
                raise InputError(f"the response {text[:40]!r} is not among those of its prompt in the pool")
            places.append(number * self.responses + self.groups[number].responses.index(text))
        low, high = sorted(places)
        return int(torch.searchsorted(self._keys, low * len(self._real) + high)), places[0] > places[1]

    @property
    def everywhere(self) -> Int64[Tensor, " n"]:
        """Where in ``ids`` each of the table's rows is."""
        return self._real

    @property
    def there(self) -> Bool[Tensor, " n"]:
        """Which of the table's places are not empty."""
        found = torch.zeros(len(self._real), dtype=torch.bool)
        found[self._at] = True
        return found

    def completions(self, duels: Duels) -> tuple[Completions, Duels]:
        """Return a table of the duels' own items, two a duel, and the duels in it: what a model is trained on."""
        index = torch.stack([duels.first, duels.second], -1).flatten()
        rows = tuple(self.row(item) for item in self._real[index].tolist())
        place = 2 * torch.arange(duels.count)
        return Completions(rows, 2, torch.zeros(len(rows), dtype=torch.float64)), Duels(place, place + 1)

    def keep(self, duels: Duels) -> tuple[Table, Duels]:
        """Return this very table, which lasts, and the duels in it."""
        return self, duels

    def join(self, *others: Table) -> Table:
        """Return this very table: all rounds have it."""
        return self


def _check_length(tokens: int, limit: int, what: str, place: str) -> None:
    if not tokens:
        raise InputError(f"pool: {place}: the tokenizer makes nothing of its {what}")
    if tokens > limit:
        option = "--prompt-tokens" if what == "prompt" else "--response-tokens"
        raise InputError(
            f"pool: {place}: its {what} has {tokens} tokens, over the limit of {limit}; raise {option} or shorten it"
        )


class PoolArena(Arena[Table]):
    """One table for all rounds, no duel asked twice; labels are those that are known."""

    def __init__(self, table: Table, known: Sequence[Tensor], asked: Int64[Tensor, " a"]) -> None:
        """``known`` are the answered duels' outcomes by round; ``asked`` all that are not to be asked."""
        self.table, self._known, self._round = table, known, 0
        self._free = torch.ones(table.duels.count, dtype=torch.bool)
        self._free[asked] = False

    def offer(self, round: int) -> Offer[Table]:
        """Offer the whole pool."""
        self._round = round
        return Offer(self.table, self.table.duels, self._free, lasting=True, asked=~self._free)

    def label(self, duels: Duels) -> Tensor:
        """Return the round's answers; of the round that is being chosen, which has none yet, ties."""
        if self._round < len(self._known):
            return self._known[self._round]
        return torch.full((duels.count,), 0.5, dtype=torch.float64)


class PoolLearner(DPOLearner):
    """The loop's learner, whose features and log-probabilities of a pool's items are kept on disk."""

    root: Path
    """where"""
    identity: Mapping[str, Any]
    """what they depend on, θ apart"""

    def sweep(self) -> None:
        """Remove what was kept for earlier θ; what the reference, the start and the current model gave stays."""
        thetas = ("reference", _hash(self.policy.state()))
        sweep(
            self.root,
            lambda identity: identity.get("theta") in thetas or identity.get("model") != self.identity["model"],
        )

    def store(self, what: str, initial: bool, size: int, dtype: str = "float32") -> Store:
        """Return the table of one kind of numbers, at the reference (or the start) or the current model."""
        theta = "reference" if initial or self.at_start else _hash(self.policy.state())
        return Store(self.root, {"what": what, "theta": theta} | dict(self.identity), size, dtype)

    def features(self, items: Any, at: Literal["current", "initial"], layer: Literal["all", "last"]) -> Any:
        """Return each item's gradient of its implicit reward, or its last hidden state."""
        if not isinstance(items, Table):
            return super().features(items, at, layer)
        size = self.policy.model.config.hidden_size if layer == "last" else self.gradients.map.size
        store = self.store(f"features of {layer}", at == "initial", size)

        def make(places: list[int]) -> Tensor:
            rows = [items.row(place) for place in places]
            return (embeddings(self.policy, rows) if layer == "last" else self.gradients(rows)).values

        if at == "initial" and not self.at_start and store.missing(items.ids):
            with self.policy.at(self.policy.initial):
                store.fill(items.ids, make, "features at the reference")
        else:
            store.fill(items.ids, make, "features")
        values, places = store.table(items.ids)
        return Stored(values, places=places[items.everywhere])

    def rewards(self, items: Any) -> Float[Tensor, " n"]:
        """Return ``β log π_θ(y|x)/π_ref(y|x)``, in log-odds; 0 in empty places and at the start."""
        if not isinstance(items, Table):
            return super().rewards(items)
        if self.at_start:
            return torch.zeros(len(items.everywhere), dtype=torch.float64)
        found = self.training.beta * (self._logs(items, False) - self._logs(items, True))
        return torch.where(items.there, found, found[items.there].min() - 1)

    def _logs(self, items: Table, reference: bool) -> Float[Tensor, " n"]:
        def make(places: list[int]) -> Tensor:
            return self.policy.log_probs([items.row(place) for place in places], "score").unsqueeze(-1)

        store = self.store("log-probabilities", reference, 1, "float64")
        if reference:
            with self.policy.reference():
                store.fill(items.ids, make, "log-probabilities of the reference")
        else:
            store.fill(items.ids, make, "log-probabilities")
        return store.column(items.ids)[items.everywhere]

    def entropy(self, items: Any, rewards: Tensor) -> Float[Tensor, " p"]:
        """Return ``-mean log π_θ(y|x)`` over each prompt's responses in nats; the pool's need not be its own draws."""
        if not isinstance(items, Table):
            return super().entropy(items, rewards)
        there = items.there.unflatten(-1, (-1, items.responses))
        logs = self._logs(items, False).unflatten(-1, (-1, items.responses))
        return -torch.where(there, logs, 0.0).sum(-1) / there.sum(-1)


def _hash(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
