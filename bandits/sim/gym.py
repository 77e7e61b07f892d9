"""Owns the simulator's Gymnasium environments, for agents other than ours: an episode is one round of labelling.

``reset`` shows a table of items, ``step`` asks one duel, and the *reward* of a step is the label: 1 if the first item
won, 0 if the second, 1/2 for a tie.  True rewards travel in ``info`` only.  Importing this module registers
``ActiveDPO/Synthetic-v0``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import Oracle
from bandits.core.rng import Key
from bandits.sim.problem import Problem, SyntheticArena
from bandits.sim.truths import Linear


def duel_of(action: Any, prompts: int, responses: int) -> Duels:
    """Return the duel that an action (prompt, first response, second response) names; others are refused."""
    numbers, sizes = np.asarray(action), (prompts, responses, responses)
    if numbers.shape != (3,) or numbers.dtype.kind not in "iu" or not ((numbers >= 0) & (numbers < sizes)).all():
        raise InputError(
            f"an action is (prompt, first response, second response), whole numbers from 0 and below {sizes}; "
            f"got {action}"
        )
    prompt, first, second = torch.from_numpy(numbers.astype(np.int64)).unsqueeze(-1)
    return Duels(prompt * responses + first, prompt * responses + second)


class SyntheticEnv(gymnasium.Env):
    """One simulated problem as an environment.

    Observation: the table, ``(items, d)``.  Action: (prompt, first response, second response).
    ``reset(options={"round": t})`` shows round ``t``; a bare ``reset`` the next one, after the last the first again.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, *, oracle: Oracle | None = None, batch: int = 1, **settings: Any) -> None:
        """Make a problem of the given settings (``Problem``'s fields); an episode asks ``batch`` duels."""
        if batch < 1:
            raise InputError(f"arena: a round asks at least 1 duel, got batch {batch}")
        self.render_mode = None
        # The tables of all rounds are drawn at once: with a fresh one each round, there are not too many.
        rounds = 100 if settings.get("fresh") else 10**9
        usual = {"truth": Linear(), "prompts": 8, "responses": 3, "dim": 5, "rounds": rounds}
        self._settings: dict[str, Any] = usual | settings
        self._oracle, self.batch = oracle, batch
        self._begin(0)
        problem = self.arena.problem
        shape = (problem.prompts * problem.responses, problem.dim)
        reach = math.sqrt(problem.dim) * (1 + 1e-9)  # every coordinate of an item on the sphere, or in the cube
        self.observation_space = Box(-reach, reach, shape, np.float64)
        self.action_space = MultiDiscrete([problem.prompts, problem.responses, problem.responses])

    def _begin(self, seed: int) -> None:
        self.arena = SyntheticArena(Problem(key=Key(seed, (0,)), **self._settings), self._oracle)
        self._round, self._asked = -1, 0

    def reset(
        self, *, seed: SupportsIndex | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a round; a seed makes a new problem of the same settings."""
        if seed is not None:
            super().reset(seed=operator.index(seed))
            self._begin(operator.index(seed))
        self._round = (options or {}).get("round", (self._round + 1) % self.arena.problem.rounds)
        self._items = self.arena.offer(self._round).items
        self._asked = 0
        return self._seen()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Ask one duel."""
        problem = self.arena.problem
        outcome = self.arena.label(duel_of(action, problem.prompts, problem.responses).expand(1))
        self._asked += 1
        items, info = self._seen()
        return items, float(outcome[0, 0]), self._asked >= self.batch, False, info

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Return copies: callers keep what they were shown."""
        return self._items.x[0].cpu().numpy().copy(), {"rewards": self.arena.rewards[0].cpu().numpy().copy()}


class SyntheticVectorEnv(SyncVectorEnv):
    """Several simulated problems side by side: environment ``k`` is the single one with seed ``seed + k``."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, num_envs: int = 1, **settings: Any) -> None:
        """Make ``num_envs`` environments of ``SyntheticEnv``'s settings."""
        super().__init__([partial(SyntheticEnv, **settings)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)

    def reset(
        self,
        *,
        seed: SupportsIndex | Sequence[SupportsIndex | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a round everywhere; of a list of seeds, each goes to its environment and ``None`` to none."""
        if isinstance(seed, Sequence | np.ndarray):
            seed = [None if one is None else operator.index(one) for one in seed]
        elif seed is not None:
            seed = operator.index(seed)
        return super().reset(seed=seed, options=options)


gymnasium.register(
    "ActiveDPO/Synthetic-v0",
    entry_point="bandits.sim.gym:SyntheticEnv",
    vector_entry_point="bandits.sim.gym:SyntheticVectorEnv",
)
