"""Owns where duels of text come from, and that a scorer's BTL oracle labels them.

``TextArena``: the current policy answers the round's prompts.  ``FixedArena``: responses are there before the first
label, the same for all strategies and seeds; ``DrawnArena``'s are drawn by the initial model, alone or beside others,
``GivenArena``'s are from a file.
Knows nothing of gradients, training or strategies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bandits.core.duels import Duels, Offer, Target, Truth
from bandits.core.errors import InputError
from bandits.core.oracles import BTL, Oracle
from bandits.core.rng import Key
from bandits.loop import Arena
from bandits.sim.problem import answer, foreseen
from llm_loop.data.chat import Prompt
from llm_loop.models import Policy, Row
from llm_loop.rewards.scorers import Scorer, checked
from llm_loop.sampling import Decoding, sample


@dataclass(frozen=True, eq=False)
class Completions:
    """Items of text: ``responses`` rows a prompt, prompt by prompt.

    ``log_probs`` are those of the policy that drew the rows (nats); a round's table is the current policy's.
    """

    rows: tuple[Row, ...]
    responses: int
    log_probs: Float[Tensor, " n"]

    @property
    def prompts(self) -> int:
        """How many prompts."""
        return len(self.rows) // self.responses

    def keep(self, duels: Duels) -> tuple[Completions, Duels]:
        """Return a table of the duels' own items, two a duel, and the duels in it."""
        index = torch.stack([duels.first, duels.second], -1).flatten()
        place = 2 * torch.arange(duels.count)
        rows = tuple(self.rows[i] for i in index.tolist())
        return Completions(rows, 2, self.log_probs[index]), Duels(place, place + 1)

    def join(self, *others: Completions) -> Completions:
        """Return this table followed by the others."""
        rows = self.rows + tuple(row for other in others for row in other.rows)
        return Completions(rows, self.responses, torch.cat([self.log_probs, *(other.log_probs for other in others)]))


T = TypeVar("T")


def interleaved(columns: Sequence[tuple[int, Sequence[T]]]) -> list[T]:
    """Return entries of lists that have so many a prompt, prompt by prompt, each list's own behind those before it."""
    count, entries = columns[0]
    prompts = range(len(entries) // count)
    return [entries[i * count + k] for i in prompts for count, entries in columns for k in range(count)]


def shares(responses: int, models: int) -> tuple[int, ...]:
    """Return how many of a prompt's responses each of several models draws: equally many; the first takes the rest."""
    share = responses // models
    return responses - share * (models - 1), *[share] * (models - 1)


def answers(
    policy: Policy, prompts: Sequence[tuple[int, ...]], draws: Sequence[tuple[int, Decoding]], key: Key
) -> tuple[list[Row], Float[Tensor, " n"]]:
    """Return what ``sample`` does, for some responses to each prompt by each of several ways of drawing."""
    parts = [
        sample(policy, prompts, count, decoding, key.fold_in("part", i), "generate")
        for i, (count, decoding) in enumerate(draws)
    ]
    counts = [count for count, _ in draws]
    rows = interleaved([(count, found) for count, (found, _) in zip(counts, parts, strict=True)])
    logs = interleaved([(count, found.tolist()) for count, (_, found) in zip(counts, parts, strict=True)])
    return rows, torch.tensor(logs, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Table:
    """What a round showed: items, their texts, their true rewards, and which training prompts they answer."""

    items: Completions
    texts: tuple[str, ...]
    rewards: Float[Tensor, " n"]
    prompt_indices: tuple[int, ...]


class TextArena(Arena[Completions]):
    """Rounds of duels between responses of the policy as it is when the round begins."""

    def __init__(
        self,
        policy: Policy,
        scorer: Scorer,
        prompts: Sequence[Prompt],
        *,
        key: Key,
        prompts_per_round: int = 2,
        responses: int = 3,
        decoding: Decoding | None = None,
        oracle: Oracle | None = None,
        temperature: float = 1.0,
        prompt_tokens: int = 64,
        note: Callable[[Completions], None] | None = None,
    ) -> None:
        """Let the policy answer these prompts, some each round; ``note`` is told what was drawn, while it is new."""
        if responses < 2:
            raise InputError(f"arena: a duel needs at least 2 responses per prompt, got {responses}")
        if prompts_per_round < 1:
            raise InputError(f"arena: a round needs at least 1 prompt, got {prompts_per_round}")
        if prompts_per_round > len(prompts):
            raise InputError(f"{prompts_per_round} prompts a round asked for, but there are {len(prompts)}")
        self.policy, self.scorer, self.prompts, self.key = policy, scorer, tuple(prompts), key
        self.encoded = policy.encode(self.prompts, prompt_tokens)
        self.decoding, self.oracle = decoding or Decoding(), oracle or BTL()
        self.prompts_per_round, self.responses = prompts_per_round, responses
        self.note = note
        self.temperature = temperature
        """divides the scorer's rewards, so that their differences are the oracle's log-odds"""
        self.tables: dict[int, Table] = {}
        """rounds that were offered; what is put here before is offered again instead of being drawn"""
        self.spent: Counter[str] = Counter()
        """tokens by stage, as the policy's meter showed them when the last table began to be drawn"""
        self.round = -1
        self.aim: tuple[Target[Completions], Tensor] | None = None

    def chosen_prompts(self, round: int) -> list[int]:
        """Return the round's training prompts: a random order, gone through again and again in new orders."""
        order: list[int] = []
        start = round * self.prompts_per_round
        for lap in range(start // len(self.prompts), (start + self.prompts_per_round - 1) // len(self.prompts) + 1):
            (generator,) = self.key.fold_in("prompts", lap).generators()
            order += generator.permutation(len(self.prompts)).tolist()
        first = start % len(self.prompts)
        return order[first : first + self.prompts_per_round]

    def draw(self, round: int) -> Table:
        """Let the current policy answer the round's prompts."""
        chosen = self.chosen_prompts(round)
        key = self.key.fold_in("responses", round)
        rows, logs = sample(
            self.policy, [self.encoded[i] for i in chosen], self.responses, self.decoding, key, "generate"
        )
        return self.scored(chosen, Completions(tuple(rows), self.responses, logs))

    def scored(self, chosen: Sequence[int], items: Completions, texts: Sequence[str] | None = None) -> Table:
        """Return a table of responses to training prompts, with their texts, if not given, and true rewards."""
        texts = [self.policy.decode(row.response) for row in items.rows] if texts is None else texts
        asked = [self.prompts[i] for i in chosen for _ in range(items.responses)]
        with self.policy.meter.stage("reward"):
            rewards = checked(self.scorer, asked, texts)
        return Table(items, tuple(texts), rewards, tuple(chosen))

    @property
    def table(self) -> Table:
        """What the current round offers."""
        return self.tables[self.round]

    def offer(self, round: int) -> Offer[Completions]:
        """Begin a round; a response drawn twice makes no duel with itself or a second one.

        Of responses with the same text only the first takes part.
        """
        self.round, k = round, self.responses
        if round not in self.tables:
            self.spent = Counter(self.policy.meter.tokens)
            self.tables[round] = self.draw(round)
            if self.note:
                self.note(self.tables[round].items)
        self.policy.together(self.table.items.rows)
        self.offered()
        seen: dict[tuple[int, str], int] = {}
        first = torch.tensor([seen.setdefault((i // k, text), i) == i for i, text in enumerate(self.table.texts)])
        duels = Duels.within(self.prompts_per_round, k)
        offer = Offer(self.table.items, duels, first[duels.first] & first[duels.second] & self.unasked(duels))
        if self.aim is None:
            return offer
        target, margins = self.aim
        return replace(offer, target=target, truth=Truth(*foreseen(self.oracle, self.rewards, duels, k), margins))

    def offered(self) -> None:
        """Take note that a round has begun."""

    def unasked(self, duels: Duels) -> Bool[Tensor, " n"]:
        """Return which duels of the round's table were not asked before; new responses make new duels."""
        return torch.ones(duels.count, dtype=torch.bool)

    def aim_at(self, rows: Sequence[Row], rewards: Sequence[float], reference: Float[Tensor, " n"]) -> None:
        """Offer a target: two fixed responses to each of some held-out prompts, with their scores, as duels.

        ``reference`` are the rows' log-probabilities under the initial model.  The scorer is the truth.
        """
        items, duels = Completions(tuple(rows), 2, reference), Duels.within(len(rows) // 2, 2)
        true = torch.tensor(rewards, dtype=torch.float64) / self.temperature
        self.aim = Target(items, duels), duels.difference(true)
        self.knows = frozenset(("target", "truth"))

    def label(self, duels: Duels) -> Float[Tensor, " b"]:
        """Label duels by the oracle; the uniform numbers are the round's, the same for every strategy."""
        uniforms = self.key.fold_in("labels", self.round).uniform(
            self.prompts_per_round, self.responses, self.responses
        )
        return answer(self.oracle, uniforms, self.rewards, duels)

    @property
    def rewards(self) -> Float[Tensor, " n"]:
        """The true rewards of the offered table in log-odds, for evaluation only."""
        return self.table.rewards / self.temperature


class FixedArena(TextArena):
    """Rounds of duels between responses that were there before any label was bought.

    A round offers the duels of some of the prompts that were not asked before.  What the policy did not write, it reads
    as text: a response's tokens are those of its own tokenizer, whoever wrote it.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Begin with nothing asked."""
        super().__init__(*args, **settings)
        self._asked: dict[int, set[tuple[int, int]]] = {}

    def read(self, prompt: int, text: str, ended: bool = True) -> Row:
        """Return a written response to a training prompt; one that was cut has no end token."""
        return Row(self.encoded[prompt], self.policy.response_of(text, ended))

    def written(self, chosen: Sequence[int], rows: Sequence[Row], texts: Sequence[str]) -> Table:
        """Return a table of responses to training prompts, ``log_probs`` being the initial model's."""
        self.policy.together(rows)  # before they are scored, or what is made of them here is made again
        with self.policy.reference():
            logs = self.policy.log_probs(rows, "score")
        return self.scored(chosen, Completions(tuple(rows), self.responses, logs), texts)

    def offered(self) -> None:
        """Forget what was asked in this round and later ones, for a loop that begins anew."""
        self._asked = {number: pairs for number, pairs in self._asked.items() if number < self.round}

    def _names(self, duels: Duels) -> list[tuple[int, int]]:
        chosen, k = self.table.prompt_indices, self.responses
        pairs = zip(duels.first.tolist(), duels.second.tolist(), strict=True)
        return [(chosen[a // k] * k + a % k, chosen[b // k] * k + b % k) for a, b in pairs]

    def unasked(self, duels: Duels) -> Bool[Tensor, " n"]:
        """Return which duels of the round's table were not asked in an earlier round."""
        asked = set().union(*self._asked.values())
        return torch.tensor([name not in asked for name in self._names(duels)])

    def label(self, duels: Duels) -> Float[Tensor, " b"]:
        """Label duels, which are not offered again.

        A duel is labelled alike whenever it is asked: the uniform numbers belong to the pool's duels, not to a round.
        """
        self._asked[self.round] = set(self._names(duels))
        chosen = torch.tensor(self.table.prompt_indices)
        uniforms = self.key.fold_in("labels").uniform(len(self.prompts), self.responses, self.responses)
        return answer(self.oracle, uniforms[chosen], self.rewards, duels)


class DrawnArena(FixedArena):
    """A pool that the initial model wrote, alone or with others: ``responses`` to each of ``pool`` training prompts.

    Half of a model's are drawn at a temperature of their own (``spread``; 0: none), so that a prompt has answers of
    unlike quality.  ``draw_pool`` makes them.
    """

    def __init__(self, *args: Any, pool: int = 60, spread: float = 0.0, **settings: Any) -> None:
        """Take the training prompts' first ``pool``; ``pool_table`` is to be set before the first offer."""
        super().__init__(*args, **settings)
        if pool > len(self.prompts):
            raise InputError(f"a pool of {pool} prompts asked for, but there are {len(self.prompts)}")
        if self.prompts_per_round > pool:
            raise InputError(f"{self.prompts_per_round} prompts a round asked for, but the pool has {pool}")
        self.prompts, self.encoded, self.spread = self.prompts[:pool], self.encoded[:pool], spread
        self.pool_table: Table | None = None

    def draw_pool(self, key: Key, others: Sequence[Callable[[], Policy]] = ()) -> Table:
        """Let the policy, which must be the initial one, answer all prompts of the pool, and ``others`` beside it.

        Each has its ``shares`` of every prompt's responses, the policy's first; others are loaded one at a time.
        """
        chosen = range(len(self.prompts))
        share, *rest = shares(self.responses, 1 + len(others))
        rows, logs = answers(self.policy, self.encoded, self._draws(share), key)
        if not others:
            return self.scored(chosen, Completions(tuple(rows), share, logs))
        columns = [(share, [(row, self.policy.decode(row.response)) for row in rows])]
        for i, (load, count) in enumerate(zip(others, rest, strict=True)):
            columns.append((count, self._by(load(), count, key.fold_in("model", i))))
        found = interleaved(columns)
        longest = max(len(row.response) for row, _ in found)
        self.policy.check_context(max(map(len, self.encoded)), longest)
        return self.written(chosen, [row for row, _ in found], [text for _, text in found])

    def _draws(self, count: int) -> list[tuple[int, Decoding]]:
        other = count // 2 if self.spread else 0
        draws = [(count - other, self.decoding)]
        return draws + ([(other, replace(self.decoding, temperature=self.spread))] if other else [])

    def _by(self, policy: Policy, count: int, key: Key) -> list[tuple[Row, str]]:
        """Let another policy answer all prompts of the pool; return its responses as this one reads them."""
        prompts = [policy.tokens_of(prompt) for prompt in self.prompts]
        rows, _ = answers(policy, prompts, self._draws(count), key)
        found = [(policy.decode(row.response), row.response[-1] in policy.ends) for row in rows]
        return [(self.read(i // count, text, ended), text) for i, (text, ended) in enumerate(found)]

    def draw(self, round: int) -> Table:
        """Return the part of the pool that the round offers."""
        assert self.pool_table is not None
        chosen, k, pool = self.chosen_prompts(round), self.responses, self.pool_table
        places = [i * k + j for i in chosen for j in range(k)]
        items = Completions(tuple(pool.items.rows[i] for i in places), k, pool.items.log_probs[places])
        return Table(items, tuple(pool.texts[i] for i in places), pool.rewards[places], tuple(chosen))


class GivenArena(FixedArena):
    """A pool that somebody else wrote, such as a preference set: ``given`` has ``responses`` texts for every prompt.

    Who preferred what there is not looked at: labels are the scorer's.  A response is its text's tokens and the end
    token; a round's are scored, by the scorer and by the initial model, when it begins.
    """

    def __init__(self, *args: Any, given: Mapping[Prompt, Sequence[str]], **settings: Any) -> None:
        """Take the responses to all training prompts; ``InputError`` if one is beyond the model's positions."""
        super().__init__(*args, **settings)
        self.given = given
        longest = max(len(self.policy.response_of(text)) for prompt in self.prompts for text in given[prompt])
        self.policy.check_context(max(map(len, self.encoded)), longest)

    def draw(self, round: int) -> Table:
        """Return the round's part of the pool, ``log_probs`` being the initial model's."""
        chosen = self.chosen_prompts(round)
        found = [(i, text) for i in chosen for text in self.given[self.prompts[i]]]
        return self.written(chosen, [self.read(i, text) for i, text in found], [text for _, text in found])
