"""Owns where duels of text come from: the current policy answers the round's prompts, a scorer's BTL oracle labels.

Knows nothing of gradients, training or strategies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
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
    ) -> None:
        """Let the policy answer these prompts, some each round."""
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

    def _draw(self, round: int) -> Table:
        """Let the current policy answer the round's prompts."""
        self.spent = Counter(self.policy.meter.tokens)
        chosen = self.chosen_prompts(round)
        key = self.key.fold_in("responses", round)
        rows, logs = sample(
            self.policy, [self.encoded[i] for i in chosen], self.responses, self.decoding, key, "generate"
        )
        texts = tuple(self.policy.decode(row.response) for row in rows)
        asked = [self.prompts[i] for i in chosen for _ in range(self.responses)]
        with self.policy.meter.stage("reward"):
            rewards = checked(self.scorer, asked, texts)
        return Table(Completions(tuple(rows), self.responses, logs), texts, rewards, tuple(chosen))

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
            self.tables[round] = self._draw(round)
        seen: dict[tuple[int, str], int] = {}
        first = torch.tensor([seen.setdefault((i // k, text), i) == i for i, text in enumerate(self.table.texts)])
        duels = Duels.within(self.prompts_per_round, k)
        offer = Offer(self.table.items, duels, first[duels.first] & first[duels.second])
        if self.aim is None:
            return offer
        target, margins = self.aim
        return replace(offer, target=target, truth=Truth(*foreseen(self.oracle, self.rewards, duels, k), margins))

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
