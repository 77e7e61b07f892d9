"""The DPO case: a softmax policy over finite responses, trained by DPO; ``r_θ = β log π_θ/π_ref``; several β."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from bandits.runs.page import Picture
from bandits.runs.settings import Count, Distinct, Ge, Le, MinLen, Probability
from bandits.runs.stats import Estimate, at_least
from bandits.sim.audit import Version
from bandits.sim.config import Simulation
from theory_checks import figures
from theory_checks.checks import Cell, Check, Family, Measure, Result, Several, Table, at, check_replicates, register
from theory_checks.measures import PROPOSITIONS, audited_coverage, needed
from theory_checks.simulated import memory, simulate

Strategy = Literal["random", "activedpo"]


@dataclass(frozen=True)
class Loop(Cell):
    """A strategy that trains a policy at some β."""

    strategy: Strategy
    beta: float


@dataclass(frozen=True, kw_only=True)
class Policy(Family[Loop]):
    """Coverage of Proposition 1 by the implicit reward of a DPO-trained policy."""

    name = "policy"
    title = "The DPO case: a policy's implicit reward obeys the same bound, for several β"

    replicates: Several = 80
    betas: Annotated[tuple[float, ...], MinLen(1), Distinct(), Ge(0.001), Le(300)] = (1.0, 0.2, 0.5, 2.0)
    """the first one is played by ActiveDPO too"""
    rounds: Count = 40
    width: Count = 32
    delta: Probability = 0.05

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        check_replicates("replicates", self.replicates, self.delta)
        for cell in self.cells():
            self._simulation(cell, 0)

    def _simulation(self, cell: Loop, seed: int) -> Simulation:
        """Return two duels asked again and again; the weaker β, the weaker λ, so that the ridge of βφ stays."""
        both = Simulation(
            contenders=("random", "policy:random", "policy:activedpo"),
            truths=("mlp",),
            replicates=self.replicates,
            seed=seed,
            width=self.width,
            delta=self.delta,
            reward_bound=0.5,
            prompts=2,
            responses=2,
            heldout=1,
            rounds=self.rounds,
            batch=2,
            repeats=True,
            regularisation=10.0 * cell.beta**2,
            beta=cell.beta,
            evaluations=6,
        )
        # Where there is a choice to make, one of the two duels a round.
        return both if cell.strategy == "random" else replace(both, batch=1, rounds=2 * self.rounds)

    def cells(self) -> Sequence[Loop]:
        """Return one per β and strategy."""
        return [Loop("activedpo", self.betas[0]), *(Loop("random", beta) for beta in self.betas)]

    def run(self, cell: Loop, seed: int, folder: Path) -> Table:
        """Play the loop with its audit."""
        tables = simulate(self._simulation(cell, seed), "mlp", f"policy:{cell.strategy}", folder)
        return tables["bounds"].assign(strategy=cell.strategy, beta=cell.beta)

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: those of its simulation."""
        return memory(self._simulation(self.cells()[0], 0), self)

    def checks(self) -> list[Check]:
        """Declare coverage per β and strategy."""
        return [
            Check(
                name=f"policy/β={cell.beta:g}/{cell.strategy}/{gradients}",
                statement=f"Proposition {1 if gradients == 'θ0' else 2} for r_θ = β log π_θ/π_ref, {words}",
                threshold=at_least(1 - self.delta),
                measure=_coverage(cell, version),
                setting=f"β = {cell.beta:g}, λ = {10 * cell.beta**2:g}, Δmax = 1, 2 duels, {2 * self.rounds} answers, "
                f"m = {self.width}",
            )
            for cell in self.cells()
            for gradients, (version, words) in PROPOSITIONS.items()
        ]

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say how the bound depends on β."""
        parts = [
            f"β = {beta:g}: γ {part['gamma'].max():.0f}, needed {needed(part, 'needed_network', self.delta):.1f}, "
            f"error {part[part['round'] == part['round'].max()]['error'].median():.2f}"
            for beta, part in at(table, strategy="random").groupby("beta", sort=False)
        ]
        supported = sum(r.verdict.word == "supported" for r in results)
        return [
            f"The bound is supported for a DPO-trained policy in {supported} of {len(results)} settings (λ = 10β² "
            f"keeps the ridge of βφ), else not informative: {'; '.join(parts)}."
        ]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw right over left side against labels per β."""
        loop = at(table, strategy="random")
        loop = loop.assign(beta="β = " + loop["beta"].astype(str))
        return [
            figures.picture(
                "policy",
                "Right over left side (median duel) for policies of several β, against labels.",
                figures.lines(loop, "labels", "tightness", "beta", None, ("labels", "right side / error"), "xy"),
            )
        ]


def _coverage(cell: Loop, version: Version) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        return audited_coverage(at(table, strategy=cell.strategy, beta=cell.beta), version, 1.0, level)

    return measure


register(
    smoke=Policy(replicates=80, betas=(1.0, 0.5), rounds=10, width=16),
    quick=Policy(),
    full=Policy(replicates=400, betas=(1.0, 0.1, 0.2, 0.5, 2.0, 5.0), rounds=200, width=128),
)
