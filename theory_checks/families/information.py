"""The information of the answers: log det against d̃, its growth, and greedy choice against the best choice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bandits.core.design import GramDesign
from bandits.core.duels import Duels
from bandits.core.greedy import greedy
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.runs.page import Picture
from bandits.runs.settings import Count
from bandits.runs.stats import LEVEL, Estimate, at_least, at_most, log_ratio, log_slope, mean
from bandits.sim.config import Simulation
from bandits.sim.run import build
from theory_checks import figures
from theory_checks.checks import Cell, Check, Family, Measure, Result, Several, Table, Truths, at, measured, register
from theory_checks.simulated import memory, simulate

CONTENDERS = ("random", "activedpo", "activedpo-fisher", "ucb")
PICKS, POOL = 3, 10


def greedy_ratio(key: Key, pool: int = POOL, picks: int = PICKS, dim: int = 4) -> dict[str, np.ndarray]:
    """Return ``log det`` of greedy picks, and of the narrowest duels, over that of the best choice of all."""
    rows = key.fold_in("rows").normal(pool, dim) * (1 + 3 * key.fold_in("scale").uniform(pool, 1))
    ties = key.fold_in("ties").uniform(pool)
    conditioned = GramDesign(1.0).condition(Dense(rows))
    chosen = greedy(conditioned, picks, torch.ones_like(ties, dtype=torch.bool), ties)
    narrow = conditioned.widths.argsort(-1)[..., :picks]
    subsets = torch.tensor(list(itertools.combinations(range(pool), picks)))

    def gain(index: torch.Tensor) -> torch.Tensor:
        picked = rows.unsqueeze(-3).expand(*rows.shape[:-2], index.shape[-2], pool, dim)
        part = torch.take_along_dim(picked, index.unsqueeze(-1), -2)
        return torch.logdet(torch.eye(picks, dtype=rows.dtype) + part @ part.mT)

    best = gain(subsets.expand(rows.shape[0], -1, -1)).amax(-1)
    return {
        "greedy": (gain(chosen.unsqueeze(-2)).squeeze(-1) / best).numpy(),
        "narrow": (gain(narrow.unsqueeze(-2)).squeeze(-1) / best).numpy(),
    }


@dataclass(frozen=True)
class Loop(Cell):
    """A strategy on a truth."""

    truth: str
    contender: str


@dataclass(frozen=True)
class Greedy(Cell):
    """Tiny pools on which the best choice is found by trying all."""


@dataclass(frozen=True, kw_only=True)
class Information(Family[Loop | Greedy]):
    """log det V of the simulator's loop on every truth, and greedy choice on tiny pools."""

    name = "information"
    title = "Information: log det V against d̃, its growth, greedy choice"

    replicates: Several = 16
    truths: Truths = ("linear", "square", "cosine", "mlp", "ntk")
    prompts: Count = 20
    width: Count = 64
    pools: Several = 2000

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        self._simulation(0)

    def _simulation(self, seed: int) -> Simulation:
        return Simulation(
            contenders=CONTENDERS,
            truths=self.truths,
            replicates=self.replicates,
            seed=seed,
            prompts=self.prompts,
            heldout=2,
            rounds=10,
            batch=max(1, self.prompts // 5),
            width=self.width,
        )

    def cells(self) -> Sequence[Loop | Greedy]:
        """Return the loop per truth and strategy, and greedy choice."""
        return [*(Loop(truth, contender) for truth in self.truths for contender in CONTENDERS), Greedy()]

    def run(self, cell: Loop | Greedy, seed: int, folder: Path) -> Table:
        """Play the loop, or try all choices."""
        if isinstance(cell, Greedy):
            pools = range(self.pools)
            found = greedy_ratio(Key(seed, tuple(pools)).fold_in("information", "greedy"))
            return pd.DataFrame({"kind": "greedy", "replicate": pools} | found)
        simulation = self._simulation(seed)
        bounds = simulate(simulation, cell.truth, cell.contender, folder)["bounds"]
        kept = bounds[["truth", "contender", "replicate", "labels", "information", "information_current"]]
        return kept.assign(kind="loop", dimension=np.tile(_dimension(simulation, cell.truth), simulation.rounds))

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: those of its simulation."""
        return memory(self._simulation(0), self)

    def checks(self) -> list[Check]:
        """Declare growth, gains and how near greedy choice comes to the best."""
        loop = f"{self.prompts} prompts x 3, {10 * max(1, self.prompts // 5)} labels, m = {self.width}"
        checks = [
            Check(
                name="information/greedy",
                statement="log det of greedy picks over the best of all choices, mean over pools",
                threshold=at_least(0.99),
                measure=measured(mean, "greedy", kind="greedy"),
                expect="open",
                setting=f"{self.pools} pools of {POOL} duels, {PICKS} picks",
            ),
            Check(
                name="information/greedy, narrowest first",
                statement="the same for the narrowest duels",
                threshold=at_least(0.99),
                measure=measured(mean, "narrow", kind="greedy"),
                expect="fails",
                setting=f"{self.pools} pools of {POOL} duels, {PICKS} picks",
            ),
        ]
        checks += [
            Check(
                name=f"information/active gains more than random/{truth}",
                statement="log det after all labels, activedpo over random, paired",
                threshold=at_least(1.0),
                measure=_gain(truth),
                expect="open",
                setting=loop,
            )
            for truth in self.truths
        ]
        # Under random picks log det is concave in expectation, so its slope is at most 1 by algebra: only strategies
        # whose picks depend on the answers are judged.
        return checks + [
            Check(
                name=f"information/growth/{truth}/{contender}",
                statement="log-log slope of log det(V/ρ) in labels: sub-linear",
                threshold=at_most(1.0),
                measure=_growth(truth, contender),
                setting=loop,
            )
            for truth in self.truths
            for contender in CONTENDERS[1:]
        ]

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say how much of d̃ is used and how it grows."""
        loop, small = at(table, kind="loop"), at(table, kind="greedy")
        last = loop[loop["labels"] == loop["labels"].max()]
        used = (last["information"] / last["dimension"]).groupby(last["contender"], sort=False).mean()
        slopes = [_growth(truth, name)(table, LEVEL).value for truth in self.truths for name in CONTENDERS]
        drift = (last["information_current"] / last["information"]).mean()
        return [
            f"Realised log det as a share of d̃ after {int(last['labels'].iloc[0])} labels: "
            + ", ".join(f"{name} {share:.2f}" for name, share in used.items())
            + f"; gradients at θ_t instead of θ0 change it by {drift - 1:+.1%}.",
            f"It grows as labels^{min(slopes):.2f} to labels^{max(slopes):.2f} over truths and strategies.",
            f"Greedy picks reach at least {small['greedy'].min():.3f} of the best choice's log det over {len(small)} "
            f"small pools (mean {small['greedy'].mean():.4f}); the guarantee is {1 - 1 / math.e:.3f}.",
        ]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw the growth."""
        axes = ("labels", "log det (nats)")
        return [
            figures.picture(
                "information",
                "Realised log det(V/ρ) against labels, per truth (means with 95 % intervals).",
                figures.lines(at(table, kind="loop"), "labels", "information", "contender", "truth", axes, "xy"),
            )
        ]


def _dimension(simulation: Simulation, truth: str) -> np.ndarray:
    """Return ``d̃ = log det(I + (κ/λ) H')`` of all duels of the pool, per replicate."""
    arena, learner, _ = build(simulation, truth, "random")
    items = arena.offer(0).items
    every = Duels.within(items.prompts, items.responses).expand(items.x.shape[0])
    design = GramDesign(simulation.bounds.ridge)
    design.append(learner.features(items, "initial", "all").differences(every))
    return np.asarray(torch.as_tensor(design.information()).numpy())


def _gain(truth: str) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        loop = at(table, kind="loop", truth=truth)
        last = loop[loop["labels"] == loop["labels"].max()]
        wide = last.pivot(index="replicate", columns="contender", values="information")
        return log_ratio(wide["activedpo"], wide["random"], level)

    return measure


def _growth(truth: str, contender: str) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        part = at(table, truth=truth, contender=contender)
        return log_slope(part["labels"], part["information"], part["replicate"], level)

    return measure


register(
    smoke=Information(replicates=3, truths=("mlp",), prompts=5, width=16, pools=50),
    quick=Information(),
    full=Information(replicates=64, prompts=200),
)
