"""Owns the Gymnasium environment of the language model loop, for agents other than ours: an episode is one round.

Importing this module registers ``ActiveDPO/Text-v0``.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar, SupportsIndex

import gymnasium
import numpy as np
from gymnasium.spaces import Box, MultiDiscrete

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.sim.gym import duel_of
from llm_loop.arena import TextArena
from llm_loop.data.prompts import load
from llm_loop.models import Adapter, load_policy
from llm_loop.rewards.scorers import load_scorer


class TextEnv(gymnasium.Env):
    """Rounds of duels of text; by default a tiny random model answers built-in prompts.

    Observation: the table's token ids, one row an item, −1 after the end.  Action: (prompt, first response, second
    response).  Reward: the label (1/2: a tie).  ``reset(options={"round": t})`` shows round ``t``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, arena: TextArena | None = None, batch: int = 1) -> None:
        """Wrap an arena; an episode asks ``batch`` duels."""
        if batch < 1:
            raise InputError(f"arena: a round asks at least 1 duel, got batch {batch}")
        self.render_mode, self.batch = None, batch
        self.arena = arena or _tiny()
        self.arena.round = -1
        rows = self.arena.prompts_per_round * self.arena.responses
        longest = max(map(len, self.arena.encoded)) + self.arena.decoding.tokens
        vocabulary = self.arena.policy.model.get_input_embeddings().weight.shape[0]
        self.observation_space = Box(-1, vocabulary - 1, (rows, longest), np.int64)
        self.action_space = MultiDiscrete([self.arena.prompts_per_round, self.arena.responses, self.arena.responses])
        self._asked = 0

    def reset(
        self, *, seed: SupportsIndex | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a round; a seed brings another key, and forgets what was shown."""
        if seed is not None:
            super().reset(seed=operator.index(seed))
            self.arena.key, self.arena.round, self.arena.tables = Key(operator.index(seed)), -1, {}
        self.arena.offer((options or {}).get("round", self.arena.round + 1))
        self._asked = 0
        return self._seen()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Ask one duel."""
        outcome = self.arena.label(duel_of(action, self.arena.prompts_per_round, self.arena.responses))
        self._asked += 1
        table, info = self._seen()
        return table, float(outcome[0]), self._asked >= self.batch, False, info

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the table as token ids, and copies of the true rewards."""
        out = np.full(self.observation_space.shape or (), -1, dtype=np.int64)
        for i, row in enumerate(self.arena.table.items.rows):
            out[i, : row.tokens] = row.prompt + row.response
        return out, {"rewards": self.arena.rewards.numpy().copy()}


def _tiny() -> TextArena:
    key = Key(0)
    policy = load_policy("tiny-llama", Adapter(), key.fold_in("policy"))
    return TextArena(policy, load_scorer("lexical-letters", "cpu"), load("builtin", key).train, key=key)


gymnasium.register("ActiveDPO/Text-v0", entry_point="llm_loop.gym:TextEnv")
