"""Owns the map: what choosing saves, over worlds that differ in redundancy, noise and responses a prompt.

A world is a simulation; every rule plays it on the same problems and answers.  Beside what a rule saves stands what the
headroom meter predicted from the pool alone, before any label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from bandits.core.errors import InputError, unknown
from bandits.core.oracles import kappa
from bandits.core.rng import Key
from bandits.runs.directory import Identity, RunDirectory, config_of
from bandits.runs.execute import Study
from bandits.runs.files import write_frame
from bandits.runs.settings import Count, Distinct, Ge, Gt, Le, MinLen, Names, Positive, Seed, check
from bandits.selector import STRATEGIES
from bandits.sim.config import BLOCK, Simulation, blocks, check_truth
from bandits.sim.learners import LEARNERS, Learner
from bandits.sim.problem import SyntheticArena
from bandits.sim.run import Parts, build, meter, run_cell

NOISES: Mapping[str, Mapping[str, float]] = {
    "sharp": {"temperature": 0.5},
    "plain": {},
    "blurred": {"temperature": 2.0},
    "flips": {"flips": 0.2},
    "ties": {"tie_rate": 0.3},
}
"""What answers are like: BTL at several temperatures, a fifth of them turned round, three in ten of even duels tied."""
METER = "meter"
"""The name under which the headroom meter's cells stand beside the rules'."""
EVEN = 4.0
"""1/κ at an even duel: V's ridge is λ times this in every world, so that rules and meter see the same V."""


def _check_noise(name: str) -> None:
    if name not in NOISES:
        raise unknown("noise", name, NOISES)


def _check_learner(name: str) -> None:
    _ = LEARNERS[name]


def _check_rule(name: str) -> None:
    _ = STRATEGIES[name]


@dataclass(frozen=True)
class World:
    """What a pool and its answers are like."""

    redundancy: float
    noise: str
    responses: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"redundancy-{self.redundancy:g}-{self.noise}-k{self.responses}"


@dataclass(frozen=True)
class MapCell:
    """One rule, or the meter, in one world, in a block of replicates."""

    world: World
    rule: str
    start: int
    stop: int

    @property
    def block(self) -> range:
        """Its replicates."""
        return range(self.start, self.stop)

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.world.name}/{self.rule}/replicates-{self.start}-{self.stop - 1}"

    @property
    def cost(self) -> float:
        """How long it takes: by the duels that are looked at."""
        return float(self.world.responses**2 * len(self.block))


@dataclass(frozen=True)
class Map:
    """A map of worlds; together with the code's version it determines every byte of its results.

    The learner is the network's linearisation unless another is named; Random is always there.
    """

    redundancy: Annotated[tuple[float, ...], MinLen(1), Distinct(), Ge(0), Le(1)] = (0.0, 0.5, 0.9, 0.97)
    """shares of the pool's prompts that lie near one plane"""
    noise: Annotated[tuple[str, ...], MinLen(1), Distinct(), Names(_check_noise)] = ("sharp", "plain", "flips")
    """sharp, plain, blurred, flips, ties"""
    responses: Annotated[tuple[int, ...], MinLen(1), Distinct(), Ge(2), Le(64)] = (2, 4, 8)
    """responses a prompt, K"""
    rules: Annotated[tuple[str, ...], MinLen(1), Distinct(), Names(_check_rule)] = ("activedpo",)
    """strategies beside Random"""
    budgets: Annotated[tuple[int, ...], MinLen(1), Distinct(), Ge(1), Le(10**6)] = (20, 40, 60)
    """numbers of labels at which labels saved are told; the largest is played"""
    truth: Annotated[str, Names(check_truth)] = "ntk"
    learner: Annotated[str, Names(_check_learner)] = "tangent"
    replicates: Annotated[int, Ge(2), Le(10**9)] = 40
    meter_replicates: Annotated[int, Ge(2), Le(10**9)] = 10
    """replicates in which the meter looks at the pool"""
    seed: Seed = 0
    batch: Count = 5
    prompts: Count = 100
    heldout: Count = 30
    dim: Annotated[int, Ge(3), Le(10**6)] = 5
    width: Count = 32
    regularisation: Positive = 1.0
    """λ of the loss"""
    margin: Annotated[float, Gt(0), Le(1)] = 0.1
    """a share of labels: what saves less does not save"""

    def __post_init__(self) -> None:
        check(self)
        if "random" in self.rules:
            object.__setattr__(self, "rules", tuple(rule for rule in self.rules if rule != "random"))
        if not self.rules:
            raise InputError("--rules random: Random is always played; name a rule to compare with it")
        for budget in self.budgets:
            if budget % self.batch or budget <= self.batch:
                raise InputError(
                    f"--budgets must be multiples of --batch {self.batch}, and more than one of it, got {budget}"
                )
        fewest = min(self.responses)
        if max(self.budgets) > (duels := self.prompts * fewest * (fewest - 1) // 2):
            raise InputError(
                f"--budgets asks for {max(self.budgets)} labels, but a pool of {fewest} responses a prompt has {duels} "
                "duels; lower it, or raise --prompts"
            )
        for world in self.worlds():
            self.simulation(world)

    def worlds(self) -> list[World]:
        """Return all worlds."""
        return [World(r, n, k) for n in self.noise for k in self.responses for r in self.redundancy]

    def contender(self, rule: str) -> str:
        """Return a rule's name in a world's simulation."""
        return f"{self.learner}:{rule}"

    def simulation(self, world: World) -> Simulation:
        """Return a world as a simulation."""
        noise: dict[str, Any] = dict(NOISES[world.noise])
        return Simulation(
            contenders=tuple(map(self.contender, ("random", *self.rules))),
            truths=(self.truth,),
            replicates=self.replicates,
            seed=self.seed,
            rounds=max(self.budgets) // self.batch,
            batch=self.batch,
            prompts=self.prompts,
            responses=world.responses,
            heldout=self.heldout,
            dim=self.dim,
            redundancy=world.redundancy,
            width=self.width,
            regularisation=self.regularisation,
            ridge=EVEN * self.regularisation,
            audit=False,
            **noise,
        )


@dataclass(frozen=True)
class MapStudy(Study):
    """A map as a run: its worlds, and the objects that its names stand for, which travel to the workers."""

    map: Map
    worlds: Mapping[World, Simulation]
    cast: Mapping[tuple[str, str], Parts]
    """what a noise and a rule stand for"""

    experiment = "map"

    @classmethod
    def of(cls, settings: Map) -> MapStudy:
        """Look the names up."""
        worlds = {world: settings.simulation(world) for world in settings.worlds()}
        cast = {
            (world.noise, rule): Parts.of(one, settings.truth, settings.contender(rule))
            for world, one in worlds.items()
            for rule in ("random", *settings.rules)
        }
        return cls(settings, worlds, cast)

    def identity(self) -> Identity:
        """What determines the bytes of its results."""
        parts = {f"{noise}, {rule}": parts.fingerprint() for (noise, rule), parts in self.cast.items()}
        return Identity(config_of(self.map), parts=parts)

    def prepare(self) -> None:
        """Try the parts that are a user's own, before anything is written."""
        for parts in self.cast.values():
            parts.rehearse(max(world.responses for world in self.worlds), self.map.dim)

    def memory(self) -> dict[str, float]:
        """Estimate a cell's bytes, those of its simulation where prompts have the most responses, and the page's.

        The meter looks at all its replicates together; the page weighs them anew for each that is left out.
        """
        most = self.worlds[max(self.worlds, key=lambda world: world.responses)].memory()
        together = self.map.meter_replicates / min(BLOCK, self.map.replicates)
        if together > 1:
            most = {f"--meter-replicates, {names}": together * size for names, size in most.items()}
        return most | {"--replicates": 16.0 * self.map.replicates**2}

    def count(self) -> int:
        """How many cells there are."""
        played = (1 + len(self.map.rules)) * -(-self.map.replicates // BLOCK)
        return len(self.worlds) * (1 + played)

    def cells(self) -> list[MapCell]:
        """All cells, world by world."""
        m = self.map
        once = [range(m.meter_replicates)]  # the meter's intervals are over its replicates together
        return [
            MapCell(world, rule, block.start, block.stop)
            for world in m.worlds()
            for rule in (METER, "random", *m.rules)
            for block in (once if rule == METER else blocks(m.replicates))
        ]

    def play(self, cell: MapCell, folder: Path) -> list[str]:
        """Play a cell."""
        rule = "random" if cell.rule == METER else cell.rule
        played = self.worlds[cell.world], self.map.truth, self.map.contender(rule)
        parts = self.cast[cell.world.noise, rule]
        if cell.rule == METER:
            arena, learner, _ = build(*played, cell.block, parts)
            write_frame(folder / "meter.csv", measured(self.map, arena, learner, cell.block))
            return ["meter.csv"]
        return run_cell(*played, folder, cell.block, parts)

    def finish(self, directory: RunDirectory) -> None:
        """Write tables, figures and page."""
        from bandits.sim.atlas import finish  # matplotlib: only where a page is made

        cells = self.cells()
        rounds = [
            directory.frame(cell, "rounds.csv").assign(**_columns(cell.world), rule=cell.rule)
            for cell in cells
            if cell.rule != METER
        ]
        meter = [
            directory.frame(cell, "meter.csv").assign(**_columns(cell.world)) for cell in cells if cell.rule == METER
        ]
        finish(self.map, directory, pd.concat(rounds, ignore_index=True), pd.concat(meter, ignore_index=True))


def _columns(world: World) -> dict[str, Any]:
    return {"redundancy": world.redundancy, "noise": world.noise, "responses": world.responses}


def measured(settings: Map, arena: SyntheticArena, learner: Learner, block: range) -> pd.DataFrame:
    """Return what the meter predicts of a world, with the rules' ridge of V: a row per budget."""
    ridge, key = EVEN * settings.regularisation, Key(settings.seed, tuple(block))
    rows = [
        {
            "budget": found.budget,
            "replicates": len(block),
            "predicted": found.labels_saved.value,
            "predicted_low": found.labels_saved.low,
            "predicted_high": found.labels_saved.high,
            "error_saved": found.error_saved.value,
        }
        for found in meter(arena, learner, settings.budgets, ridge=ridge, kappa=kappa(0.0), key=key, targets=300)
    ]
    return pd.DataFrame(rows)


RULES = (
    "activedpo",
    "activedpo-identity",
    "random-per-prompt",
    "dissimilar",
    "label-entropy",
    "decisive-bald",
    "delta-logdet",
    "policy-trace-target",
)

PRESETS: dict[str, tuple[str, Map]] = {
    "smoke": (
        "a few seconds, for tests",
        Map(
            redundancy=(0.0, 0.9),
            noise=("plain",),
            responses=(3,),
            rules=("activedpo",),
            budgets=(8, 12),
            batch=4,
            replicates=4,
            meter_replicates=4,
            prompts=20,
            heldout=8,
            width=8,
        ),
    ),
    "quick": (
        "12 worlds, 3 rules, 20 replicates",
        Map(
            redundancy=(0.0, 0.9, 0.97),
            noise=("plain", "flips"),
            responses=(2, 4),
            rules=("activedpo", "activedpo-identity", "policy-trace"),
            replicates=20,
        ),
    ),
    "spent": (
        "9 worlds of which nearly all is bought, so that the meter says no; 720 replicates",
        Map(
            redundancy=(0.0, 0.5, 0.9),
            responses=(2,),
            rules=("activedpo", "policy-trace-target"),
            prompts=61,
            budgets=(20, 40, 50, 60),
            replicates=720,
            meter_replicates=30,
        ),
    ),
    "full": ("36 worlds, 8 rules beside Random, 90 replicates (some 20 minutes)", Map(rules=RULES, replicates=90)),
}
