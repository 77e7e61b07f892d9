"""Propositions 1 and 2 on the network, with the constants of Neural Dueling Bandits, in the simulator's loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from bandits.runs.page import Picture
from bandits.runs.settings import Count, Probability
from bandits.runs.stats import Estimate, at_least
from bandits.sim.audit import Version
from bandits.sim.config import Simulation
from theory_checks import figures
from theory_checks.checks import Cell, Check, Family, Measure, Several, Table, at, check_replicates, register
from theory_checks.measures import PROPOSITIONS, audited_coverage, needed
from theory_checks.simulated import memory, simulate

Pool = Literal["pool", "repeated"]
POOLS: dict[Pool, str] = {
    "pool": "20 prompts x 3, each duel asked once, λ = 1, Δmax = 1",
    "repeated": "2 duels asked again and again, λ = 10, Δmax = 1",
}
STRATEGIES = ("random", "activedpo")


@dataclass(frozen=True)
class Loop(Cell):
    """A strategy on a pool."""

    pool: Pool
    strategy: str


@dataclass(frozen=True, kw_only=True)
class Network(Family[Loop]):
    """Coverage of Proposition 1 by the network, with V at θ0 and at θ_t."""

    name = "network"
    title = "Propositions 1 and 2 on the network"

    replicates: Several = 80
    rounds: Count = 60
    width: Count = 128
    delta: Probability = 0.05

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        check_replicates("replicates", self.replicates, self.delta)
        for pool in POOLS:
            self._simulation(pool, 0)

    def _simulation(self, pool: Pool, seed: int) -> Simulation:
        common = Simulation(
            contenders=STRATEGIES,
            truths=("mlp",),
            replicates=self.replicates,
            seed=seed,
            width=self.width,
            delta=self.delta,
            reward_bound=0.5,
        )
        if pool == "pool":
            return replace(common, prompts=20, heldout=5, rounds=3, batch=10)
        return replace(
            common,
            prompts=2,
            responses=2,
            heldout=1,
            rounds=self.rounds,
            batch=2,
            repeats=True,
            regularisation=10.0,
            evaluations=8,
        )

    def cells(self) -> Sequence[Loop]:
        """Return one per pool and strategy."""
        return [Loop(pool, strategy) for pool in POOLS for strategy in STRATEGIES]

    def run(self, cell: Loop, seed: int, folder: Path) -> Table:
        """Play the loop with its audit."""
        tables = simulate(self._simulation(cell.pool, seed), "mlp", cell.strategy, folder)
        return tables["bounds"].assign(pool=cell.pool, strategy=cell.strategy)

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: those of its simulation."""
        return memory(self._simulation("repeated", 0), self)

    def checks(self) -> list[Check]:
        """Declare coverage per pool, strategy and gradients in V."""
        return [
            Check(
                name=f"network/{pool}/{strategy}/{gradients}",
                statement=f"Proposition {1 if gradients == 'θ0' else 2} ({words}) without its 2ε, which can only help",
                threshold=at_least(1 - self.delta),
                measure=_coverage(pool, strategy, version),
                setting=f"{POOLS[pool]}, m = {self.width}, depth 3",
            )
            for pool in POOLS
            for strategy in STRATEGIES
            for gradients, (version, words) in PROPOSITIONS.items()
        ]

    def summary(self, table: Table, results: Sequence[object]) -> list[str]:
        """Say how loose the propositions are."""
        lines = []
        for pool, words in POOLS.items():
            part = at(table, pool=pool)
            last = part[part["round"] == part["round"].max()]
            lines.append(
                f"{words}: γ_T = {last['gamma'].median():.0f} where "
                f"{needed(part, 'needed_network', self.delta):.2f} would have sufficed; right over left side "
                f"{last['tightness'].median():.0f} in the median; linearisation "
                f"{last['linearisation'].median() / last['error'].median():.0%} of the error."
            )
        return lines

    def pictures(self, table: Table) -> list[Picture]:
        """Draw the multiplier beside the one needed, and the parts of the error."""
        terms = {
            "gamma": "γ of the papers",
            "gamma_noise": "its noise term",
            "gamma_prior": "its prior term",
            "needed_network": "needed by the network",
            "needed_tangent": "needed, linearised",
        }
        keys = ["pool", "labels", "replicate"]
        long = table.melt(keys, list(terms), "term", "multiplier").replace({"term": terms})
        parts = {"error": "network's error", "statistical": "statistical part", "linearisation": "linearisation part"}
        split = table.melt(keys, list(parts), "part", "rms").replace({"part": parts})
        return [
            figures.picture(
                "network-terms",
                "Proposition 1's multiplier and its terms beside what would have sufficed (means with 95 % "
                "intervals over replicates).",
                figures.lines(
                    long, "labels", "multiplier", "term", "pool", ("labels", "multiplier of the width"), "xy"
                ),
            ),
            figures.picture(
                "network-split",
                "The network's error and its two parts.",
                figures.lines(split, "labels", "rms", "part", "pool", ("labels", "rms error (log-odds)"), "xy"),
            ),
        ]

    def numbers(self, table: Table) -> Table:
        """Tabulate the last round."""
        rows = []
        for (pool, strategy), part in table.groupby(["pool", "strategy"], sort=False):
            last = part[part["round"] == part["round"].max()]
            rows.append(
                {
                    "pool": pool,
                    "strategy": strategy,
                    "labels": int(last["labels"].iloc[0]),
                    "γ": last["gamma"].median(),
                    "noise term": last["gamma_noise"].median(),
                    "prior term": last["gamma_prior"].median(),
                    "needed γ̂": needed(part, "needed_network", self.delta),
                    "rhs/lhs": last["tightness"].median(),
                    "width-error corr.": float(np.nanmean(last["rank_correlation"])),
                    "ε": last["epsilon"].median(),
                    "error": last["error"].median(),
                }
            )
        return pd.DataFrame(rows)


def _coverage(pool: Pool, strategy: str, version: Version) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        return audited_coverage(at(table, pool=pool, strategy=strategy), version, 1.0, level)

    return measure


register(smoke=Network(rounds=12, width=16), quick=Network(), full=Network(replicates=400, rounds=200, width=512))
