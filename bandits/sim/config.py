"""Owns the settings of a simulation: fields with what they may be, the cells they make, presets.  Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch

from bandits.core.errors import InputError, unknown
from bandits.core.oracles import ORACLES, Davidson, Oracle, kappa
from bandits.loop import Ridges, Schedule
from bandits.runs.settings import Count, Distinct, Ge, Le, Lt, MinLen, Names, Probability, Seed, Whole, check
from bandits.selector import STRATEGIES
from bandits.sim.audit import Bounds
from bandits.sim.learners import LEARNERS
from bandits.sim.networks import MLP, Activation
from bandits.sim.problem import POLICIES, InputShape, check_mixing
from bandits.sim.truths import TRUTHS

COLUMNS, OBJECT = 40, 200  # of the tables of a measured round; bytes of an array beside its numbers
BLOCK = 10  # replicates played at once, at most: one matrix product for all of them, and still work for every core


def split(contender: str) -> tuple[str, str]:
    """Return (learner, strategy) of a contender's name."""
    learner, _, strategy = contender.rpartition(":")
    return learner or "neural", strategy


def split_truth(truth: str) -> tuple[str, str]:
    """Return (ground truth, oracle) of a truth's name: ``cosine``, ``cosine@flipped``, ``cosine+redundant``."""
    name, _, oracle = truth.partition("@")
    return name.partition("+")[0], oracle or "btl"


POOLS: dict[str, dict[str, Any]] = {"redundant": {"inputs": "skewed"}}
"""Pools that a truth may name after a +, with the settings that they stand for."""


def pool_of(truth: str) -> str:
    """Return the pool that a truth names; "" where it is the run's own."""
    return truth.partition("@")[0].partition("+")[2]


def blocks(stop: int, first: int = 0) -> list[range]:
    """Return the replicates from ``first`` on in as few blocks of at most ``BLOCK`` as can be, of about equal size."""
    count = -(-(stop - first) // BLOCK)
    edges = [first + (stop - first) * number // count for number in range(count + 1)]
    return [range(start, end) for start, end in pairwise(edges)]


def check_contender(contender: str) -> None:
    """Raise ``InputError`` for a contender whose learner or strategy there is not."""
    learner, strategy = split(contender)
    _ = STRATEGIES[strategy], LEARNERS[learner]


def check_truth(truth: str) -> None:
    """Raise ``InputError`` for a truth whose ground truth or oracle there is not."""
    name, oracle = split_truth(truth)
    _ = TRUTHS[name], ORACLES[oracle]
    if (pool := pool_of(truth)) and pool not in POOLS:
        raise unknown("pool", pool, POOLS)


@dataclass(frozen=True)
class Cell:
    """One contender on one truth in a block of replicates: what is played in one go."""

    truth: str
    contender: str
    start: int
    stop: int
    setting: str = ""
    """the part of the run that it belongs to, if that has settings of its own"""

    @property
    def block(self) -> range:
        """Its replicates."""
        return range(self.start, self.stop)

    @property
    def key(self) -> str:
        """The name of its folder."""
        name = f"{self.truth}--{self.contender.replace(':', '.')}"
        return f"{self.setting and self.setting + '--'}{name}/replicates-{self.start}-{self.stop - 1}"

    @property
    def cost(self) -> float:
        """How long it takes: a network's fits are nearly all of it."""
        learner = split(self.contender)[0]
        return (0.1 if learner in ("linear", "tangent") or self.setting else 1.0) * len(self.block)


@dataclass(frozen=True)
class Simulation:
    """A simulated experiment; together with the code's version it determines every byte of its results.

    Contenders are ``strategy`` or ``learner:strategy`` (learners: neural, tangent, linear, policy).  Random is the
    baseline of all comparisons and is added if it is missing.
    """

    experiment: Literal["pool", "regret"] = "pool"
    """pool: which duels of a large pool to label; regret: one prompt a round, and the arms asked are what counts"""
    contenders: Annotated[tuple[str, ...], MinLen(1), Distinct(), Names(check_contender)] = (
        "random",
        "activedpo",
        "activedpo-fisher",
        "apo",
        "adpo",
        "label-entropy",
        "ucb",
    )
    """strategies, each with a learner other than neural before a colon (linear:ucb)"""
    truths: Annotated[tuple[str, ...], MinLen(1), Distinct(), Names(check_truth)] = ("ntk", "square")
    """ground truths, each with a pool of its own after a + (ntk+redundant), an oracle after an @ (cosine@flipped)"""
    replicates: Count = 16
    until_decided: Whole = 0
    """add replicates (doubling them) on each truth until it is decided what each strategy saves; at most so many"""
    seed: Seed = 0
    rounds: Count = 10
    batch: Count = 20
    """duels asked per round"""
    prompts: Count = 200
    responses: Annotated[int, Ge(2), Le(10**6)] = 3
    heldout: Count = 50
    """held-out prompts"""
    dim: Count = 5
    inputs: InputShape = "sphere"
    """skewed: most of the pool is redundant (redundancy 0.9), the held-out prompts are not"""
    redundancy: Annotated[float, Ge(0), Le(1)] = 0.0
    """share of the pool's prompts that are redundant: their items lie near one plane, held-out ones anywhere"""
    alike: Annotated[float, Ge(0), Le(1)] = 0.05
    """how far redundant prompts, or copies, differ, as a share of what others do"""
    clusters: Whole = 0
    """prompts are noisy copies of so many (0: all are of their own), the noise by --alike"""
    tail: Annotated[float, Ge(0), Le(100)] = 0.0
    """exponent of the clusters' frequencies in the pool, rank^-tail; held out they are even"""
    mixing: Annotated[tuple[float, ...], MinLen(1)] = (1.0,)
    """weights of policies that answer with the truly best of 1, 4 and 16 draws; sum 1"""
    temperature: Annotated[float, Ge(1e-3), Le(1e3)] = 1.0
    """of the oracle: divides the rewards, so that they are log-odds (errors, values and bounds are in these)"""
    flips: Annotated[float, Ge(0), Le(1)] = 0.0
    """share of answers turned round, which no learner knows"""
    tie_rate: Annotated[float, Ge(0), Lt(1)] = 0.0
    """share of ties between responses of equal reward (Davidson)"""
    fresh: bool = False
    """a new pool every round"""
    repeats: bool = False
    """duels of a fixed pool may be asked again"""
    reward_bound: Annotated[float, Ge(1e-6), Le(100)] = 1.0
    """|r| is at most this, so |Δ| at most twice this"""
    rescale: bool = True
    """shift and scale the truth to attain the bound"""
    width: Count = 64
    depth: Annotated[int, Ge(2), Le(1000)] = 3
    activation: Activation = "softplus"
    regularisation: Annotated[float, Ge(1e-6), Le(1e6)] = 1.0
    """λ of the loss"""
    ties: Annotated[float, Ge(0), Le(1e6)] | None = None
    """Davidson's ν of the loss; default the oracle's own (0 where it gives no ties)"""
    ridge: Annotated[float, Ge(1e-9), Le(1e12)] | None = None
    """of V; default λ/κ with κ = σ'(2 · reward_bound)"""
    delta: Probability = 0.05
    """failure probability of the bounds"""
    beta: Annotated[float, Ge(1e-6), Le(1e6)] = 1.0
    """of the policy learner, and of the KL-regularised policy that is evaluated"""
    refit: Annotated[float, Ge(0), Le(1e6)] = 0.0
    """growth of the number of answers after which the learner is fitted again (0: every round)"""
    fit_iterations: Count = 500
    """of a fit at most; few need more than 50 where λ is 0.3 or more"""
    evaluations: Whole = 0
    """measure in about this many rounds, evenly spaced in log t (0: every round)"""
    audit: bool = True
    """measure Proposition 1 (neural and policy learners)"""
    few_duels: bool = False
    """measure it also where it can say something: three duels asked again and again, by honest and flipped answers"""
    targets: Annotated[tuple[Count, ...], Distinct()] = ()
    """also say with how many labels each strategy has Random's error at these numbers of labels"""
    margin: Probability = 0.1
    """a saving whose interval lies below this share of the labels is none"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        check(self)
        check_mixing(self.mixing)
        if self.redundancy and self.inputs != "sphere":
            raise InputError(f"--redundancy is of items on the sphere, got --inputs {self.inputs}")
        if (self.redundancy or self.inputs == "skewed") and self.dim < 3:
            raise InputError(f"--redundancy needs --dim 3 or more, got {self.dim}")
        if self.clusters and self.inputs == "cube":
            raise InputError("--clusters are of items on the sphere, got --inputs cube")
        for truth in self.truths:
            self.oracle(truth)
        if "random" not in self.contenders:
            object.__setattr__(self, "contenders", ("random", *self.contenders))
        if self.experiment == "regret" and not self.fresh:
            raise InputError("--experiment regret needs fresh prompts every round: set --fresh")
        duels = self.prompts * (self.responses * (self.responses + (1 if self.selves else -1)) // 2)
        asked = self.batch if self.fresh or self.repeats else self.batch * self.rounds
        if asked > duels:
            raise InputError(
                f"--rounds and --batch pick {asked} duels, but the pool has {duels}; lower them, or raise --prompts"
            )
        if self.until_decided and (self.experiment == "regret" or self.until_decided <= self.replicates):
            least = "is for pool experiments" if self.experiment == "regret" else "must be more than --replicates"
            raise InputError(f"--until-decided {least}, got {self.until_decided} beside {self.replicates} replicates")
        first = self.batch * (self.rounds if self.evaluations == 1 else 1)
        last = self.batch * self.rounds  # as ``measured_rounds`` has it, of which there may be too many to list here
        for target in self.targets:
            if self.experiment == "regret" or not first < target <= last:
                seen = f"above {first} (the first measured round) and at most {last}" if last > first else "none"
                seen = "none in an experiment about regret" if self.experiment == "regret" else seen
                raise InputError(f"--targets are numbers of Random's labels: {seen}, got {target}")
        if self.device != "cpu" and not (self.device.startswith("cuda") and torch.cuda.is_available()):
            raise InputError(f"--device {self.device!r} is not available here; use cpu")

    @property
    def selves(self) -> bool:
        """Whether an arm may be asked against itself (an algorithm that has converged does so)."""
        return self.experiment == "regret"

    @property
    def network(self) -> MLP:
        """The learner's network."""
        return MLP(self.dim, self.width, self.depth, self.activation)

    @property
    def bounds(self) -> Bounds:
        """Constants of the bounds without ties: κ = σ'(Δmax), λ, δ."""
        return self.bounds_with(0.0)

    def bounds_for(self, truth: str) -> Bounds:
        """Return the constants of the bounds on the answers about a truth."""
        return self.bounds_with(self.ties_of(self.oracle(truth)))

    def oracle(self, truth: str) -> Oracle:
        """Return who answers about a truth: the oracle that it names, or BTL with this run's flips and ties."""
        name = split_truth(truth)[1]
        if not (self.flips or self.tie_rate):
            return ORACLES[name]
        if name != "btl":
            raise InputError(f"--flips and --tie-rate are of BTL answers, but the truth {truth} names another oracle")
        return Davidson(self.tie_rate, self.flips)

    def bounds_with(self, ties: float) -> Bounds:
        """Return the constants of the bounds, κ the least slope of the link with Davidson's ν."""
        largest = 2 * self.reward_bound / self.temperature
        return Bounds(kappa(largest, ties), self.regularisation, self.delta, ties, largest)

    @property
    def schedule(self) -> Schedule:
        """How long the loop runs."""
        return Schedule(self.rounds, self.batch, self.refit)

    def ties_of(self, oracle: Oracle) -> float:
        """Return ν of the learner's likelihood on an oracle's answers: the setting, else the oracle's own."""
        return oracle.ties if self.ties is None else self.ties

    def ridges(self, ties: float) -> Ridges:
        """Return the ridges of V: λ/κ, and λ in Fisher-weighted spaces."""
        return Ridges(self.ridge or self.bounds_with(ties).ridge, self.regularisation)

    def measured_rounds(self) -> Sequence[int]:
        """Return the rounds in which to measure; always the last, and, if there are two, the first."""
        if not self.evaluations or self.evaluations >= self.rounds:
            return range(self.rounds)
        spaced = np.geomspace(self.rounds, 1, self.evaluations).round().astype(int)
        return [int(number) - 1 for number in np.unique(spaced)]

    def cells(self) -> list[Cell]:
        """All cells, truth by truth, contender by contender, in blocks of at most ``BLOCK`` replicates."""
        return [
            Cell(truth, contender, block.start, block.stop)
            for truth in self.truths
            for contender in self.contenders
            for block in blocks(self.replicates)
        ]

    def beside(self, truth: str) -> Simulation:
        """Return the settings with which a truth is played: these, with the pool that it names."""
        pool = POOLS[pool_of(truth)] if pool_of(truth) else {}
        # The same object where nothing changes: a copy looks all names up, and a worker may know none of a script's.
        return replace(self, **pool) if any(getattr(self, name) != value for name, value in pool.items()) else self

    @property
    def foreseeable(self) -> list[str]:
        """A truth for each pool of which it can be asked, before any label, what choosing from it can save."""
        if self.experiment != "pool" or self.fresh or self.repeats:
            return []
        return list({pool_of(truth): truth for truth in reversed(self.truths)}.values())[::-1]

    def repeated(self) -> Simulation | None:
        """Return the setting in which Proposition 1 can say something, if it is asked for."""
        if not self.few_duels:
            return None
        return replace(FEW_DUELS, seed=self.seed, delta=self.delta, device=self.device)

    @property
    def looks(self) -> list[int]:
        """The numbers of replicates at which it is looked whether more are needed; empty if it is never."""
        if not self.until_decided:
            return []
        found = [self.replicates]
        while 2 * found[-1] < self.until_decided:
            found.append(2 * found[-1])
        return [*found, self.until_decided]

    def further(self, truth: str, done: int) -> list[Cell]:
        """Return the cells of a truth between the look at ``done`` replicates and the next; none after the last."""
        after = next((look for look in self.looks if look > done), done)
        return [
            Cell(truth, contender, block.start, block.stop)
            for contender in self.contenders
            for block in (blocks(after, done) if after > done else [])
        ]

    def count(self) -> int:
        """How many cells there are."""
        return len(self.truths) * len(self.contenders) * -(-max(self.replicates, self.until_decided) // BLOCK)

    def memory(self) -> dict[str, float]:
        """Estimate the bytes that a cell needs at most, each part by the options that it grows with."""
        lead = 8.0 * min(BLOCK, self.replicates)
        items, heldout = self.prompts * self.responses, self.heldout * self.responses
        tables = items * (self.rounds if self.fresh else 1) + heldout
        drawn = tables * POLICIES[len(self.mixing) - 1]
        pairs = items * (self.responses - 1) / 2 + heldout * (self.responses - 1) / 2
        sides = self.dim + 2 * self.width * (self.depth - 1) + 1
        weights = self.width * (self.dim + 1 + self.width * (self.depth - 2))
        labels = self.batch * self.rounds
        rows = min(labels, pairs) if not self.fresh else labels
        everything = (tables if self.audit else 0) ** 2
        centres = self.clusters * self.responses * POLICIES[len(self.mixing) - 1]
        measured = min(self.rounds, self.evaluations or self.rounds)
        fresh = "--rounds, " if self.fresh else ""  # whose pools are all drawn at once
        return {
            f"{fresh}--prompts, --heldout, --responses, --dim": lead * (2 * drawn * self.dim + 8 * pairs),
            "--prompts, --heldout, --responses, --width, --depth": lead * 3 * (items + heldout) * sides,
            "--width, --depth, --dim": lead * 20 * weights,
            "--rounds, --batch": lead * (rows * (2 * rows + 3 * sides) + 4 * labels),
            "--rounds, --evaluations": COLUMNS * (lead + OBJECT) * measured + OBJECT * self.rounds,
            "--prompts, --responses, --batch, --rounds": lead * rows * items * (self.responses - 1) / 2,
            f"{fresh}--prompts, --heldout, --responses with --audit": lead * 2 * everything,
            "--clusters, --responses, --dim": lead * centres * (self.dim + 1),
        }


FEW_DUELS = Simulation(
    contenders=("random",),
    truths=("ntk", "ntk@flipped"),
    replicates=80,
    rounds=100,
    batch=3,
    prompts=1,
    heldout=1,
    width=32,
    repeats=True,
    reward_bound=0.5,
    evaluations=2,
    refit=1.0,
)

PRESETS: dict[str, tuple[str, Simulation]] = {
    "quick": (
        "how many labels choosing saves: an even and a redundant pool, 2 truths; a bound that can be checked",
        Simulation(
            contenders=("random", "activedpo", "label-entropy", "ceiling"),
            truths=("ntk", "ntk+redundant", "square", "square+redundant"),
            replicates=96,
            width=32,
            audit=False,
            few_duels=True,
        ),
    ),
    "headline": (
        "what the README tells: ActiveDPO, Random, V = identity, 3 truths, 384 replicates (--inputs skewed: its pool)",
        Simulation(
            contenders=("random", "activedpo", "activedpo-identity"),
            truths=("ntk", "mlp", "square"),
            replicates=384,
            seed=1,  # fresh replicates: 96 of seed 0 were looked at first, and too few
            audit=False,
        ),
    ),
    "skewed": (
        "a pool of which most is redundant, V ablated",
        Simulation(
            contenders=("random", "activedpo", "activedpo-identity", "activedpo-top-b", "apo", "label-entropy"),
            truths=("ntk", "mlp"),
            replicates=32,
            inputs="skewed",
            audit=False,
        ),
    ),
    "regret": (
        "which arms to duel: neural and linear UCB, TS, CoLSTIM on short horizons",
        Simulation(
            experiment="regret",
            contenders=("ucb", "ts", "linear:ucb", "linear:ts", "linear:colstim", "random"),
            truths=("square",),
            rounds=150,
            batch=1,
            prompts=1,
            responses=5,
            fresh=True,
            heldout=50,
            refit=0.05,
            evaluations=12,
            width=50,
        ),
    ),
    "control": (
        "three duels asked again and again by honest and dishonest oracles: the bound check can fail",
        FEW_DUELS,
    ),
    "study": (
        "all strategies on all truths, 64 replicates (hours)",
        Simulation(
            contenders=tuple(STRATEGIES), truths=tuple(TRUTHS), replicates=64, rounds=20, prompts=400, width=128
        ),
    ),
    "ndb": (
        "the synthetic protocol of Neural Dueling Bandits: T = 2000, 20 replicates, 2 x 50 ReLU",
        Simulation(
            experiment="regret",
            contenders=("ucb", "ts", "linear:ucb", "linear:ts", "linear:colstim", "random"),
            truths=("square", "cosine"),
            replicates=20,
            rounds=2000,
            batch=1,
            prompts=1,
            responses=5,
            fresh=True,
            reward_bound=10.0,
            rescale=False,
            width=50,
            activation="relu",
            ridge=1.0,
            refit=0.05,
            fit_iterations=5,  # ReLU fits end at kinks anyway; with 10 the regret is the same (docs/findings.md)
            evaluations=40,
            audit=False,
        ),
    ),
    "smoke": (
        "a few seconds, for tests",
        Simulation(
            contenders=("random", "activedpo", "policy:activedpo-stale", "ucb"),
            truths=("ntk",),
            replicates=3,
            rounds=3,
            batch=4,
            prompts=10,
            heldout=6,
            width=16,
        ),
    ),
    "smoke-regret": (
        "a few seconds, for tests",
        Simulation(
            experiment="regret",
            contenders=("ucb", "linear:colstim", "random"),
            truths=("cosine",),
            replicates=3,
            rounds=12,
            batch=1,
            prompts=1,
            responses=4,
            fresh=True,
            heldout=6,
            width=16,
            evaluations=4,
        ),
    ),
}
