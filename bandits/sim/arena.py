"""Owns where duels and answers come from: Gymnasium environments whose episode is one round of labelling.

``reset`` shows a table of items, ``step`` asks one duel, and the *reward* of a step is the answer: 1 if the first item
won, else 0.  True rewards travel in ``info`` only.  Knows nothing of learners or strategies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.core.duels import Answers, Duels, gather
from bandits.core.errors import InputError
from bandits.core.oracles import BTL, Oracle
from bandits.core.rng import Key
from bandits.loop import DuelArena
from bandits.sim.truths import GroundTruth, Linear


@dataclass(frozen=True)
class Inputs:
    """Synthetic items: one input vector per row, ``(*r, prompts * responses, d)``."""

    x: Float[Tensor, "*r n d"]
    responses: int

    @property
    def prompts(self) -> int:
        """How many prompts."""
        return self.x.shape[-2] // self.responses

    def take(self, prompts: Int64[Tensor, "*r p"]) -> Inputs:
        """Return the table of these prompts, in this order."""
        rows = prompts.unsqueeze(-1) * self.responses + torch.arange(self.responses, device=prompts.device)
        return Inputs(gather(self.x, rows.flatten(-2)), self.responses)

    def keep(self, duels: Duels) -> tuple[Inputs, Duels]:
        """Return one prompt per duel with all its responses (a softmax policy's gradient needs them), and the duels."""
        place = torch.arange(duels.count, device=duels.first.device) * self.responses
        inside = Duels(place + duels.first % self.responses, place + duels.second % self.responses)
        return self.take(duels.first // self.responses), inside

    def join(self, other: Inputs) -> Inputs:
        """Return this table followed by the other."""
        return Inputs(torch.cat([self.x, other.x], -2), self.responses)


InputShape = Literal["sphere", "cube", "skewed"]


@dataclass(frozen=True)
class Problem:
    """The truth of a simulation: every table that will be shown, its rewards, and the oracle's uniform numbers.

    Items lie on the sphere of radius ``√d`` (default) or are uniform on ``[-1, 1]^d``.  ``skewed`` items lie on the
    sphere too, but those of nine in ten shown prompts within about 5 % of a plane, while held-out ones lie anywhere:
    most of the pool is alike, and choosing has something to gain.  ``fresh`` draws a new pool
    every round, up to ``rounds``; otherwise one pool serves all rounds, and each duel is asked once at most unless
    ``repeats``.  Rewards are shifted and scaled per replicate so that ``|r| <= bound`` is attained on the items
    (``rescale``), or left as they are and checked against the bound.
    """

    truth: GroundTruth
    key: Key
    prompts: int
    responses: int
    dim: int
    heldout: int = 0
    rounds: int = 1
    fresh: bool = False
    repeats: bool = False
    inputs: InputShape = "sphere"
    bound: float = 1.0
    rescale: bool = True

    scale: Float[Tensor, "*r"] = field(init=False, repr=False)  # what rescaling multiplied the truth by
    _x: Tensor = field(init=False, repr=False)
    _rewards: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("prompts", "dim", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"arena: {name} must be at least 1, got {getattr(self, name)}")
        if self.responses < 2:
            raise InputError(f"arena: a duel needs at least 2 responses per prompt, got {self.responses}")
        if not (self.bound > 0 and math.isfinite(self.bound)):
            raise InputError(f"arena: the reward bound must be positive and finite, got {self.bound}")
        tables = self.rounds if self.fresh else 1
        rows = (tables * self.prompts + self.heldout) * self.responses
        if self.inputs == "cube":
            x = 2 * self.key.fold_in("inputs").uniform(rows, self.dim) - 1
        else:
            x = self.key.fold_in("inputs").normal(rows, self.dim)
            if self.inputs == "skewed":
                alike = self.key.fold_in("alike").uniform(tables * self.prompts) < 0.9
                thin = 1 - 0.95 * alike.to(x.dtype).repeat_interleave(self.responses, -1).unsqueeze(-1)
                x[..., : tables * self.prompts * self.responses, 2:] *= thin
            x = x * (math.sqrt(self.dim) / torch.linalg.vector_norm(x, dim=-1, keepdim=True))
        rewards = self.truth(x, self.key.fold_in("truth"))
        scale = torch.ones_like(rewards[..., :1])
        if self.rescale:
            low, high = rewards.min(-1, keepdim=True).values, rewards.max(-1, keepdim=True).values
            scale = 2 * self.bound / (high - low)
            rewards = (rewards - (low + high) / 2) * scale
        elif float(rewards.abs().max()) > self.bound:
            raise InputError(
                f"arena: the true reward reaches {float(rewards.abs().max()):.3g}, over its declared bound "
                f"{self.bound:g}; raise the bound or let the arena rescale"
            )
        object.__setattr__(self, "_x", x)
        object.__setattr__(self, "_rewards", rewards)
        object.__setattr__(self, "scale", scale.squeeze(-1))

    def table(self, round: int) -> tuple[Inputs, Float[Tensor, "*r n"]]:
        """Return the items of a round and their true rewards."""
        if not 0 <= round < self.rounds:
            raise InputError(f"arena: round {round} asked for, but it has {self.rounds}")
        start = (round if self.fresh else 0) * self.prompts * self.responses
        return self._rows(start, start + self.prompts * self.responses)

    def everything(self) -> tuple[Inputs, Float[Tensor, "*r n"]]:
        """Return all items, shown and held out, and their true rewards."""
        return self._rows(0, self._x.shape[-2])

    def heldout_table(self) -> tuple[Inputs, Float[Tensor, "*r n"]]:
        """Return the held-out items, which are never shown, and their true rewards."""
        end = self._x.shape[-2]
        return self._rows(end - self.heldout * self.responses, end)

    def _rows(self, start: int, end: int) -> tuple[Inputs, Tensor]:
        return Inputs(self._x[..., start:end, :], self.responses), self._rewards[..., start:end]

    def uniforms(self, round: int) -> Float[Tensor, "*r p k k"]:
        """Return the number that decides each duel of a round; the same for every strategy.

        A fixed pool has one number per duel for all rounds: asked when it may be, a duel gets the same answer.  Where
        duels may be asked again (``repeats``), every round has numbers of its own.
        """
        return self.key.fold_in("labels", round if self.fresh or self.repeats else 0).uniform(
            self.prompts, self.responses, self.responses
        )


def answer(
    oracle: Oracle, uniforms: Float[Tensor, "*r p k k"], rewards: Float[Tensor, "*r n"], action: Int64[Tensor, "*r b 3"]
) -> Bool[Tensor, "*r b"]:
    """Answer duels given as (prompt, first response, second response).

    The uniform number belongs to the unordered pair, so exchanging the two sides exchanges the answer.
    """
    responses = uniforms.shape[-1]
    prompt, first, second = action.unbind(-1)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    margin = Duels(prompt * responses + low, prompt * responses + high).difference(rewards)
    chance = oracle.probability(margin, (low, high), responses)
    number = uniforms.flatten(-3).gather(-1, (prompt * responses + low) * responses + high)
    return (number < chance) == (first <= second)


class SyntheticVectorArena(VectorEnv, DuelArena):
    """All replicates of a simulated arena as one natively vectorised environment.

    Observation: the table, ``(replicates, items, d)``.  Action: (prompt, first response, second response) in each
    replicate.  Reward: the answer.  ``reset(options={"round": t})`` shows round ``t``; a bare ``reset`` the next one.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        problem: Problem | None = None,
        oracle: Oracle | None = None,
        batch: int = 1,
        **settings: Any,
    ) -> None:
        """Wrap a problem, or make one of the given settings (``Problem``'s fields; truth linear by default)."""
        if batch < 1:
            raise InputError(f"arena: a round asks at least 1 duel, got batch {batch}")
        self._settings: dict[str, Any] = {
            "truth": Linear(),
            "prompts": 8,
            "responses": 3,
            "dim": 5,
            "rounds": 10**9,
        } | settings
        self.problem = problem or self._make(0, num_envs)
        self.num_envs = num_envs
        self.oracle = oracle or BTL()
        self.batch = batch
        shape = (self.problem.prompts * self.problem.responses, self.problem.dim)
        reach = math.sqrt(self.problem.dim) * (1 + 1e-9)  # every coordinate of an item on the sphere, or in the cube
        self.single_observation_space = Box(-reach, reach, shape, np.float64)
        self.single_action_space = MultiDiscrete([self.problem.prompts, self.problem.responses, self.problem.responses])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._round, self._asked = -1, 0

    def _make(self, seed: int, replicates: int) -> Problem:
        return Problem(key=Key(seed, tuple(range(replicates))), **self._settings)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a round; a seed makes a new problem of the same settings."""
        if seed is not None:
            self.problem = self._make(
                seed if isinstance(seed, int) else next(s for s in seed if s is not None), self.num_envs
            )
            self._round = -1
        self._round = (options or {}).get("round", self._round + 1)
        self._points, self._rewards = self.problem.table(self._round)
        self._uniforms = self.problem.uniforms(self._round)
        self._asked = 0
        return self._observation(), self._truth()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Ask one duel in every replicate."""
        asked = torch.as_tensor(np.asarray(actions), dtype=torch.int64, device=self._rewards.device).unsqueeze(-2)
        won = answer(self.oracle, self._uniforms, self._rewards, asked).squeeze(-1).cpu().numpy()
        self._asked += 1
        over = np.full(self.num_envs, self._asked >= self.batch)
        return self._observation(), won.astype(np.float64), over, np.zeros_like(over), self._truth()

    def _observation(self) -> np.ndarray:
        return self._points.x.cpu().numpy().copy()  # a copy: callers keep what they were shown

    def _truth(self) -> dict[str, Any]:
        return {"rewards": self._rewards.cpu().numpy().copy()}

    def show(self, round: int) -> Inputs:
        """Begin a round: return its table."""
        self.reset(options={"round": round})
        return self._points

    def ask(self, duels: Duels) -> Answers:
        """Ask the duels of a whole batch: what as many calls of ``step`` would answer."""
        k = self.problem.responses
        action = torch.stack([duels.first // k, duels.first % k, duels.second % k], -1)
        return Answers(duels, answer(self.oracle, self._uniforms, self._rewards, action))

    @property
    def rewards(self) -> Tensor:
        """The true rewards of the shown table."""
        return self._rewards


class SyntheticArena(gymnasium.Env):
    """One replicate of the simulated arena as a plain environment, for agents other than ours."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, **settings: Any) -> None:
        """Make an arena of ``SyntheticVectorArena``'s settings with one replicate."""
        self.render_mode = None
        self._arena = SyntheticVectorArena(1, **settings)
        self.observation_space = self._arena.single_observation_space
        self.action_space = self._arena.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a round."""
        super().reset(seed=seed)
        table, info = self._arena.reset(seed=seed, options=options)
        return table[0], {"rewards": info["rewards"][0]}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Ask one duel."""
        table, won, over, _, info = self._arena.step(np.asarray(action)[None])
        return table[0], float(won[0]), bool(over[0]), False, {"rewards": info["rewards"][0]}


gymnasium.register(
    "ActiveDPO/Synthetic-v0",
    entry_point="bandits.sim.arena:SyntheticArena",
    vector_entry_point="bandits.sim.arena:SyntheticVectorArena",
)
