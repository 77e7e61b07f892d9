"""Owns where duels of text come from: the current policy answers the round's prompts, a scorer's BTL oracle judges.

``TextArena`` is a Gymnasium environment whose episode is one round, as the simulated arena is.  Knows nothing of
gradients, training or strategies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from jaxtyping import Bool, Float
from torch import Tensor

from bandits.core.duels import Answers, Duels
from bandits.core.errors import InputError
from bandits.core.oracles import BTL, Oracle
from bandits.core.rng import Key
from bandits.loop import DuelArena
from bandits.sim.arena import answer
from llm_loop.data.chat import Prompt
from llm_loop.data.prompts import load
from llm_loop.models import Adapter, Policy, Row, load_policy
from llm_loop.rewards.scorers import Scorer, checked, load_scorer
from llm_loop.sampling import Decoding, sample


@dataclass(frozen=True)
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

    def join(self, other: Completions) -> Completions:
        """Return this table followed by the other."""
        return Completions(self.rows + other.rows, self.responses, torch.cat([self.log_probs, other.log_probs]))


@dataclass(frozen=True)
class Table:
    """What a round showed: items, their texts, their true rewards, and which training prompts they answer."""

    items: Completions
    texts: tuple[str, ...]
    rewards: Float[Tensor, " n"]
    prompt_indices: tuple[int, ...]


class TextArena(gymnasium.Env, DuelArena):
    """Rounds of duels between responses of the policy as it is when the round begins.

    Observation: the table's token ids, one row an item, −1 after the end.  Action: (prompt, first response, second
    response).  Reward: the answer, 1 if the first won.  ``reset(options={"round": t})`` shows round ``t``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        policy: Policy | None = None,
        scorer: Scorer | None = None,
        prompts: Sequence[Prompt] = (),
        *,
        key: Key | None = None,
        prompts_per_round: int = 2,
        responses: int = 3,
        decoding: Decoding | None = None,
        oracle: Oracle | None = None,
        temperature: float = 1.0,
        batch: int = 1,
        prompt_tokens: int = 64,
    ) -> None:
        """Make an arena; by default a tiny random model answers built-in prompts."""
        if responses < 2:
            raise InputError(f"arena: a duel needs at least 2 responses per prompt, got {responses}")
        if prompts_per_round < 1 or batch < 1:
            raise InputError("arena: a round needs at least 1 prompt and 1 duel")
        self.render_mode = None
        self.key = key or Key(0)
        self.policy = policy or load_policy("tiny-llama", Adapter(), self.key.fold_in("policy"))
        self.scorer = scorer or load_scorer("lexical-letters", "cpu")
        self.prompts = tuple(prompts) or load("builtin", self.key).train
        if prompts_per_round > len(self.prompts):
            raise InputError(f"{prompts_per_round} prompts a round asked for, but there are {len(self.prompts)}")
        self.encoded = self.policy.encode(self.prompts, prompt_tokens)
        self.decoding, self.oracle, self.batch = decoding or Decoding(), oracle or BTL(), batch
        self.prompts_per_round, self.responses = prompts_per_round, responses
        self.temperature = temperature
        """divides the scorer's rewards, so that their differences are the oracle's log-odds"""
        self.tables: dict[int, Table] = {}
        """rounds that were shown; what is put here before is shown again instead of being drawn"""
        self.spent: Counter[str] = Counter()
        """tokens by stage, as the policy's meter showed them when the last table began to be drawn"""
        longest = max(map(len, self.encoded)) + self.decoding.tokens
        vocabulary = self.policy.model.get_input_embeddings().weight.shape[0]
        self.observation_space = Box(-1, vocabulary - 1, (prompts_per_round * responses, longest), np.int64)
        self.action_space = MultiDiscrete([prompts_per_round, responses, responses])
        self.round = -1
        self._asked = 0

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
        """What the current round shows."""
        return self.tables[self.round]

    def show(self, round: int) -> Completions:
        """Begin a round: return its table."""
        self.reset(options={"round": round})
        return self.table.items

    def ask(self, duels: Duels) -> Answers:
        """Ask the duels of a whole batch: what as many calls of ``step`` would answer."""
        k = self.responses
        action = torch.stack([duels.first // k, duels.first % k, duels.second % k], -1)
        return Answers(duels, self._answer(action))

    def _answer(self, action: Tensor) -> Bool[Tensor, " b"]:
        """Answer by the oracle; the uniform numbers are the round's, the same for every strategy."""
        uniforms = self.key.fold_in("labels", self.round).uniform(
            self.prompts_per_round, self.responses, self.responses
        )
        return answer(self.oracle, uniforms, self.rewards, action)

    @property
    def rewards(self) -> Tensor:
        """The true rewards of the shown table, in log-odds."""
        return self.table.rewards / self.temperature

    def offers(self, duels: Duels) -> Bool[Tensor, " k"]:
        """Which duels are between different texts; a response drawn twice makes no duel with itself or a second one.

        Of responses with the same text only the first takes part.
        """
        k, first = self.responses, []
        seen: dict[tuple[int, str], int] = {}
        for i, text in enumerate(self.table.texts):
            first.append(seen.setdefault((i // k, text), i) == i)
        return torch.tensor(first)[duels.first] & torch.tensor(first)[duels.second]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a round; a seed brings other key, and forgets what was shown."""
        super().reset(seed=seed)
        if seed is not None:
            self.key, self.round, self.tables = Key(seed), -1, {}
        self.round = (options or {}).get("round", self.round + 1)
        if self.round not in self.tables:
            self.tables[self.round] = self._draw(self.round)
        self._asked = 0
        return self._observation(), self._truth()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Ask one duel."""
        asked = torch.as_tensor(np.asarray(action), dtype=torch.int64).unsqueeze(0)
        won = float(self._answer(asked)[0])
        self._asked += 1
        return self._observation(), won, self._asked >= self.batch, False, self._truth()

    def _observation(self) -> np.ndarray:
        out = np.full(self.observation_space.shape or (), -1, dtype=np.int64)
        for i, row in enumerate(self.table.items.rows):
            out[i, : row.tokens] = row.prompt + row.response
        return out

    def _truth(self) -> dict[str, Any]:
        return {"rewards": self.rewards.numpy().copy()}


gymnasium.register("ActiveDPO/Text-v0", entry_point="llm_loop.arena:TextArena")
