"""Owns the simulator's problems: their tables of items, true rewards, and the arena that offers and labels duels.

Knows nothing of learners or strategies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bandits.core.duels import Duels, Offer, Target, Truth, gather
from bandits.core.errors import InputError
from bandits.core.oracles import BTL, Oracle, chances
from bandits.core.rng import Key
from bandits.loop import Arena
from bandits.sim.truths import GroundTruth, rewards_of


@dataclass(frozen=True, eq=False)
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

    def join(self, *others: Inputs) -> Inputs:
        """Return this table followed by the others."""
        return Inputs(torch.cat([self.x, *(other.x for other in others)], -2), self.responses)


InputShape = Literal["sphere", "cube", "skewed"]

POLICIES = (1, 4, 16)
"""Of how many draws each policy of a mixture answers with the truly best."""
SKEWED = 0.9
"""The redundancy of ``skewed`` pools."""


def check_mixing(mixing: tuple[float, ...]) -> None:
    """Raise ``InputError`` unless these are weights of as many policies as there are, or fewer, that sum to 1."""
    if not 1 <= len(mixing) <= len(POLICIES) or not all(0 <= weight <= 1 for weight in mixing):
        raise InputError(f"--mixing takes 1 to {len(POLICIES)} weights in [0, 1], got {' '.join(map(str, mixing))}")
    if abs(sum(mixing) - 1) > 1e-9:
        raise InputError(f"--mixing weights must sum to 1, got {' '.join(map(str, mixing))}: {sum(mixing):g}")


class AlikeError(InputError):
    """A truth makes no difference between the responses to any prompt."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The truth of a simulation: every table that will be shown, its rewards, and the oracle's uniform numbers.

    Items lie on the sphere of radius ``√d`` (default) or are uniform on ``[-1, 1]^d``.  What makes a pool uneven:

    - ``redundancy``: the items of this share of the shown prompts lie near a plane (off it by the share ``alike`` of
      what others are), held-out ones anywhere.  ``skewed`` items are redundant in nine prompts of ten.
    - ``clusters``: prompts are noisy copies of so many, of frequencies ``∝ rank^-tail`` in the pool and equal held out.
      The noise is the share ``alike`` of the whole.
    - ``mixing``: weights of policies of unlike quality that answer: a policy's response is the truly best of 1, 4, 16
      draws.

    ``temperature`` divides the rewards, so that they are the oracle's log-odds.

    ``fresh`` draws a new pool every round, up to ``rounds``; otherwise one pool serves all rounds, and each duel is
    asked once at most unless ``repeats``.  ``selves`` offers every item against itself too, as in the regret setting.
    Rewards are shifted and scaled per replicate so that ``|r| <= bound`` is attained on the items (``rescale``), or
    left as they are and checked against the bound.
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
    selves: bool = False
    inputs: InputShape = "sphere"
    bound: float = 1.0
    rescale: bool = True
    redundancy: float = 0.0
    alike: float = 0.05
    clusters: int = 0
    tail: float = 0.0
    mixing: tuple[float, ...] = (1.0,)
    temperature: float = 1.0

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
        self._check_world()
        x = self._draw()
        rewards = rewards_of(self.truth, x, self.key.fold_in("truth"))
        x, rewards = self._answered(x, rewards)
        self._check_variation(rewards)
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
        object.__setattr__(self, "_rewards", rewards / self.temperature)
        object.__setattr__(self, "scale", scale.squeeze(-1) / self.temperature)

    @property
    def _redundancy(self) -> float:
        return SKEWED if self.inputs == "skewed" else self.redundancy

    @property
    def _draws(self) -> int:
        """How many candidates are drawn for every response: as many as the best policy of the mixture has."""
        return max((n for n, weight in zip(POLICIES, self.mixing, strict=False) if weight > 0), default=1)

    def _check_world(self) -> None:
        """Refuse what makes no world."""
        for name, value, least, most in (
            ("redundancy", self.redundancy, 0.0, 1.0),
            ("alike", self.alike, 0.0, 1.0),
            ("tail", self.tail, 0.0, 100.0),
        ):
            if not least <= value <= most:
                raise InputError(f"arena: {name} must lie in [{least:g}, {most:g}], got {value}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"arena: the temperature must be positive and finite, got {self.temperature}")
        if self._redundancy and self.dim < 3:
            raise InputError(f"arena: redundant prompts lie near a plane and need 3 or more dimensions, got {self.dim}")
        if self.inputs == "cube" and (self.redundancy or self.clusters):
            raise InputError("arena: redundancy and clusters are of items on the sphere; leave inputs at sphere")
        if self.clusters < 0:
            raise InputError(f"arena: clusters must be at least 0, got {self.clusters}")
        check_mixing(self.mixing)

    def _draw(self) -> Float[Tensor, "*r n d"]:
        """Draw all items, as many candidates for each as the mixture's best policy has."""
        draws, shown = self._draws, (self.rounds if self.fresh else 1) * self.prompts
        each = self.responses * draws
        rows = (shown + self.heldout) * each
        if self.inputs == "cube":
            return 2 * self.key.fold_in("inputs").uniform(rows, self.dim) - 1
        x = self.key.fold_in("inputs").normal(rows, self.dim)
        if self.clusters:
            centres = self.key.fold_in("centres").normal(self.clusters * each, self.dim).unflatten(-2, (-1, each))
            weights = torch.arange(1, self.clusters + 1, dtype=x.dtype, device=x.device) ** -self.tail
            edges = (weights / weights.sum()).cumsum(0)
            number = self.key.fold_in("cluster").uniform(shown + self.heldout)
            place = torch.searchsorted(edges, number.contiguous()).clamp(max=self.clusters - 1)
            even = (number * self.clusters).long().clamp(max=self.clusters - 1)
            place[..., shown:] = even[..., shown:]
            copied = torch.take_along_dim(centres, place[..., None, None], -3).flatten(-3, -2)
            x = math.sqrt(1 - self.alike**2) * copied + self.alike * x
        if self._redundancy:
            alike = self.key.fold_in("alike").uniform(shown) < self._redundancy
            thin = 1 - (1 - self.alike) * alike.to(x.dtype).repeat_interleave(each, -1).unsqueeze(-1)
            x[..., : shown * each, 2:] *= thin
        return x * (math.sqrt(self.dim) / torch.linalg.vector_norm(x, dim=-1, keepdim=True))

    def _answered(self, x: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items that the policies of the mixture answer with, and their rewards."""
        draws = self._draws
        if draws == 1:
            return x, rewards
        by_item = rewards.unflatten(-1, (-1, draws))
        edges = torch.tensor(self.mixing, dtype=x.dtype, device=x.device).cumsum(0)[:-1].contiguous()
        policy = torch.searchsorted(edges, self.key.fold_in("policy").uniform(by_item.shape[-2]).contiguous())
        tries = torch.tensor(POLICIES[: len(self.mixing)], device=x.device)[policy].unsqueeze(-1)
        seen = torch.arange(draws, device=x.device) < tries
        best = by_item.masked_fill(~seen, -torch.inf).argmax(-1, keepdim=True)
        start = torch.arange(0, rewards.shape[-1], draws, device=x.device)
        return gather(x, start + best.squeeze(-1)), by_item.gather(-1, best).squeeze(-1)

    def _check_variation(self, rewards: Float[Tensor, "*r n"]) -> None:
        """Refuse a truth that makes no difference within any prompt: rounding would be rescaled to a reward."""
        by_prompt = rewards.unflatten(-1, (-1, self.responses))
        spread = (by_prompt.amax(-1) - by_prompt.amin(-1)).amax(-1)
        if bool((spread <= 1e-9 * rewards.abs().amax(-1)).any()):
            raise AlikeError(
                f"arena: the truth {type(self.truth).__name__} gives all responses of a prompt the same reward; choose "
                f"another truth, or more than {self.dim} dimensions"
            )

    @property
    def duels(self) -> Duels:
        """The duels of a round's table."""
        shape = self._rewards.shape[:-1]
        return Duels.within(self.prompts, self.responses, self.selves).to(self._rewards.device).expand(*shape)

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
    oracle: Oracle, uniforms: Float[Tensor, "*r p k k"], rewards: Float[Tensor, "*r n"], duels: Duels
) -> Float[Tensor, "*r b"]:
    """Label duels of a table: return the share of each that the first item won (1, 0, or 1/2 for a tie).

    The uniform number belongs to the unordered pair, so exchanging the two sides exchanges the answer.
    """
    responses = uniforms.shape[-1]
    low, high = torch.minimum(duels.first, duels.second), torch.maximum(duels.first, duels.second)
    margin = Duels(low, high).difference(rewards)
    win, tie = chances(oracle, margin, (low % responses, high % responses), responses)
    number = uniforms.flatten(-3).gather(-1, low * responses + high % responses)
    share = ((number < win).to(margin.dtype) + (number < win + tie).to(margin.dtype)) / 2
    return torch.where(duels.first <= duels.second, share, 1 - share)


def foreseen(
    oracle: Oracle, rewards: Float[Tensor, "*r n"], duels: Duels, responses: int
) -> tuple[Float[Tensor, "*r b"], Float[Tensor, "*r b"]]:
    """Return the mean and the variance of the label of each duel of a table."""
    margin = duels.difference(rewards)
    win, tie = chances(oracle, margin, (duels.first % responses, duels.second % responses), responses)
    mean = win + tie / 2
    return mean, (win + tie / 4 - mean.square()).clamp(min=0)


class SyntheticArena(Arena[Inputs]):
    """Rounds of duels of a problem, in all its replicates at once, labelled by an oracle.

    The target are all duels of the held-out prompts, if there are any.
    """

    def __init__(self, problem: Problem, oracle: Oracle | None = None) -> None:
        """Offer this problem."""
        self.problem, self.oracle = problem, oracle or BTL()
        self._duels = problem.duels
        self._asked: Bool[Tensor, "*r pairs"] | None = None
        if problem.heldout:
            self.knows = frozenset(("target", "truth"))

    def offer(self, round: int) -> Offer[Inputs]:
        """Begin a round; a duel of a fixed pool that was labelled is no longer available, unless it may be repeated."""
        problem = self.problem
        items, self._rewards = problem.table(round)
        self._uniforms = problem.uniforms(round)
        if self._asked is None or round == 0 or problem.fresh or problem.repeats:
            pairs = problem.prompts * problem.responses**2
            self._asked = torch.zeros((*self._rewards.shape[:-1], pairs), dtype=torch.bool, device=self._rewards.device)
        asked = self._asked.gather(-1, self._pair(self._duels))
        lasting = problem.repeats and not problem.fresh
        if not problem.heldout:
            return Offer(items, self._duels, ~asked, lasting, asked)
        heldout, rewards = problem.heldout_table()
        duels = Duels.within(problem.heldout, problem.responses).to(rewards.device).expand(*rewards.shape[:-1])
        truth = Truth(*foreseen(self.oracle, self._rewards, self._duels, problem.responses), duels.difference(rewards))
        return Offer(items, self._duels, ~asked, lasting, asked, Target(heldout, duels), truth)

    def label(self, duels: Duels) -> Float[Tensor, "*r b"]:
        """Label duels of the offered table."""
        assert self._asked is not None
        self._asked = self._asked.scatter(-1, self._pair(duels), True)
        return answer(self.oracle, self._uniforms, self._rewards, duels)

    def _pair(self, duels: Duels) -> Int64[Tensor, "*r b"]:
        """Return the number of each unordered pair."""
        low, high = torch.minimum(duels.first, duels.second), torch.maximum(duels.first, duels.second)
        return low * self.problem.responses + high % self.problem.responses

    @property
    def rewards(self) -> Float[Tensor, "*r n"]:
        """The true rewards of the offered table, for evaluation only."""
        return self._rewards
