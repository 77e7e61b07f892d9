"""Regret of NDB-UCB and NDB-TS: sub-linear growth, and the step that bounds it by widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bandits.core.bounds import linearised
from bandits.core.design import PrimalDesign
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import kappa
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.runs.page import Picture
from bandits.runs.settings import Count, Probability
from bandits.runs.stats import LEVEL, Estimate, at_least, at_most, bootstrap, covered, log_slope, mean
from bandits.selector import UCB, Pool, select
from bandits.sim.config import Simulation
from theory_checks import figures
from theory_checks.checks import (
    Cell,
    Check,
    Family,
    Measure,
    Result,
    Several,
    Table,
    at,
    check_replicates,
    measured,
    register,
    unfitted,
)
from theory_checks.maths.tangent import Counts, ExtendedLink, Setting, TangentWorld, fit, times
from theory_checks.maths.trials import Trial
from theory_checks.simulated import memory, simulate

TRUTHS = ("square", "cosine")
CONTENDERS = ("ucb", "ts", "linear:ucb", "linear:random")
CONTROL = "linear:random"
HORIZON = 100


def optimism(setting: Setting, rounds: int, regularisation: float, delta: float, key: Key) -> dict[str, np.ndarray]:
    """Play the selector's UCB on one prompt, linearised, with the exact multiplier for ν; return regret and its bound.

    ``y1 = argmax h``, ``y2 = argmax h + γ_t w(·, y1)``.  Where the bound holds, ``f* - (f1 + f2)/2 <= (3/2) γ_t w_t``
    (docs/theory.md, 4).  ``worst`` is the largest left over right side of that over all rounds; ``gradient_norm`` the
    largest at the end of a fit.
    """
    problem = TangentWorld.of(setting, key.fold_in("world"))
    arms, lead, limit = setting.responses, problem.features.shape[0], setting.largest
    lam, ridge = problem.features.new_full((lead,), regularisation), regularisation / kappa(limit)
    # An arm against itself is a duel of no feature, which tells nothing: UCB may choose it.
    every = Duels.within(1, arms, selves=True).expand(lead)
    rows = problem.features.new_zeros((lead, every.count, problem.features.shape[-1]))
    rows[:, every.first[0] != every.second[0]] = problem.features
    truth = -times(rows, problem.theta)[..., :arms]  # the first duels are those of arm 0
    free = torch.ones((lead, every.count), dtype=torch.bool)
    zero = rows.new_zeros((lead, every.count))
    counts, theta = Counts(zero, zero), torch.zeros_like(problem.theta)
    total, worst, bound, left = (rows.new_zeros(lead) for _ in range(4))
    curve = []
    for step in range(rounds):
        design = PrimalDesign.weighted(Dense(rows), counts.asked, ridge)
        information = torch.as_tensor(design.information())
        gamma = linearised(information, problem.norm, kappa(limit), ridge, regularisation, delta).total
        rewards = -times(rows, theta)[..., :arms]
        pool = Pool(every, free, arms, design.condition(Dense(gamma[..., None, None] * rows)), rewards)
        pick = select(pool, UCB(), 1, key.fold_in("select", step))
        asked, width = every.take(pick), design.widths(Dense(rows)).gather(-1, pick).squeeze(-1)
        won = (key.fold_in("labels", step).uniform(1) < torch.sigmoid(asked.difference(truth))).to(truth.dtype)
        counts = counts.add(pick, won)
        both = (truth.gather(-1, asked.first) + truth.gather(-1, asked.second)).squeeze(-1)
        regret = truth.amax(-1) - both / 2
        total, bound = total + regret, bound + 1.5 * gamma * width
        worst = torch.maximum(worst, _over(regret, 1.5 * gamma * width))
        curve.append(total / (step + 1))
        theta, size = fit(rows, counts, lam, ExtendedLink(limit), theta)
        left = torch.maximum(left, size)
    return {
        "gradient_norm": left.numpy(),
        "worst": worst.numpy(),
        "regret": total.numpy(),
        "bound": bound.numpy(),
        "early": curve[rounds // 4 - 1].numpy(),
        "late": curve[-1].numpy(),
    }


def _over(left: Tensor, right: Tensor) -> Tensor:
    return torch.where(left > 1e-12, left / right.clamp(min=1e-300), 0.0)


@dataclass(frozen=True)
class Loop(Cell):
    """A contender on a truth, in the simulator's regret experiment."""

    truth: str
    contender: str

    @property
    def key(self) -> str:
        """A name without the colon of ``learner:strategy``."""
        return f"loop-{self.truth}-{self.contender.replace(':', '-')}"


@dataclass(frozen=True)
class Optimism(Cell):
    """The linearised problem with the exact multiplier."""


@dataclass(frozen=True, kw_only=True)
class Regret(Family[Loop | Optimism]):
    """The simulator's regret experiment on two truths, and optimism with the exact multiplier."""

    name = "regret"
    title = "Regret: NDB-UCB and NDB-TS grow sub-linearly"

    replicates: Several = 12
    rounds: Count = 120
    width: Count = 32
    exact_replicates: Several = 100
    exact_rounds: Count = 400
    delta: Probability = 0.05

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        check_replicates("exact-replicates", self.exact_replicates, self.delta)
        if self.rounds < 16 or self.exact_rounds < 16:
            raise InputError("--rounds and --exact-rounds must be at least 16: a slope needs them")
        self._simulation(0, "ucb")

    def _simulation(self, seed: int, contender: str) -> Simulation:
        """Return the loop; the control costs little and plays at least 256 replicates, so that it can be refuted."""
        replicates = max(256, self.replicates) if contender == CONTROL else self.replicates
        return Simulation(
            experiment="regret",
            contenders=CONTENDERS,
            truths=TRUTHS,
            replicates=replicates,
            seed=seed,
            rounds=self.rounds,
            batch=1,
            prompts=1,
            responses=5,
            fresh=True,
            heldout=5,
            refit=0.1,
            evaluations=14,
            width=self.width,
            audit=False,
            fit_iterations=15,
            reward_bound=5.0,
            ridge=1.0,
        )

    def cells(self) -> Sequence[Loop | Optimism]:
        """Return one per truth and contender, and the exact one."""
        return [Optimism(), *(Loop(truth, contender) for truth in TRUTHS for contender in CONTENDERS)]

    @property
    def _setting(self) -> Setting:
        return Setting(1, 5, width=self.width, largest=1.0)

    def run(self, cell: Loop | Optimism, seed: int, folder: Path) -> Table:
        """Play the simulator's loop, or optimism."""
        if isinstance(cell, Optimism):
            replicates = range(self.exact_replicates)
            key = Key(seed, tuple(replicates)).fold_in("regret")
            columns = optimism(self._setting, self.exact_rounds, 1.0, self.delta, key)
            return pd.DataFrame({"kind": "exact", "replicate": replicates} | columns)
        rounds = simulate(self._simulation(seed, cell.contender), cell.truth, cell.contender, folder)["rounds"]
        kept = ["truth", "contender", "replicate", "labels", "cumulative_average_regret", "cumulative_weak_regret"]
        return rounds[[*kept, "gradient_norm"]].assign(kind="loop")

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: those of its simulation, or of all exact replicates together."""
        exact = Trial(self._setting, "random", certificates=0).memory(self.exact_replicates)
        return memory(self._simulation(0, CONTROL), self) | {"--regret.exact-replicates, --regret.width": exact}

    def checks(self) -> list[Check]:
        """Declare sub-linear growth (random as the control) and the optimistic step."""
        checks = [
            Check(
                name=f"regret/{truth}/{contender}",
                statement="log-log slope of cumulative average regret in the last three quarters: below 0.95",
                threshold=at_most(0.95),
                measure=self._slope(truth, contender),
                expect="fails" if contender == CONTROL else "open" if ":" in contender else self._proved,
                setting=f"T = {self.rounds}, 5 arms, fresh prompts, |r| <= 5, ridge 1, ν = 1",
            )
            for truth in TRUTHS
            for contender in CONTENDERS
        ]
        exact = f"1 prompt x 5 arms, Δmax = 1, {self.exact_rounds} rounds, linearised, ν = exact multiplier"
        return [
            *checks,
            Check(
                name="regret/optimism",
                statement="f* - (f1 + f2)/2 <= (3/2) γ_t w_t in every round",
                threshold=at_least(1 - self.delta),
                measure=_optimism,
                setting=exact,
            ),
            Check(
                name="regret/bound informative",
                statement="the bound on cumulative regret over T times the largest regret",
                threshold=at_most(1.0),
                measure=measured(mean, lambda table: table["bound"] / self.exact_rounds, kind="exact"),
                expect="open",
                setting=exact,
            ),
            Check(
                name="regret/exact multiplier learns",
                statement="average regret at the end over that at a quarter",
                threshold=at_most(0.95),
                measure=_learns,
                expect="open",
                setting=exact,
            ),
        ]

    @property
    def _proved(self) -> Literal["holds", "open"]:
        """Sub-linear growth is about a long horizon; in a short one the first rounds' exploration still rules."""
        return "holds" if self.rounds >= HORIZON else "open"

    def _slope(self, truth: str, contender: str) -> Measure:
        def measure(table: Table, level: float) -> Estimate:
            part = at(table, truth=truth, contender=contender)
            late = part[part["labels"] >= self.rounds / 4]
            found = log_slope(late["labels"], late["cumulative_average_regret"], late["replicate"], level)
            return found.but(unmet=unfitted(part))

        return measure

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say how regret grows."""
        last = table[table["labels"] == table["labels"].max()]
        regret = last.groupby(["truth", "contender"])["cumulative_average_regret"].mean()
        lines = []
        for truth in TRUTHS:
            grown = [f"{c} {regret[truth, c]:.1f} (slope {self._slope(truth, c)(table, LEVEL)})" for c in CONTENDERS]
            lines.append(f"Cumulative average regret after {self.rounds} rounds, truth {truth}: {', '.join(grown)}.")
        exact = at(table, kind="exact")
        word = next((r.verdict.word for r in results if r.check.name == "regret/optimism"), "not judged")
        lines.append(
            f"With the exact multiplier in place of ν = 1 the optimistic step is {word}; the bound on regret is "
            f"{(exact['bound'] / exact['regret']).median():.0f} times the regret after {self.exact_rounds} rounds, "
            f"and the average regret is {_learns(table, LEVEL).value:.2f} of its value at a quarter of "
            "the way: what a valid γ costs in exploration, where practice takes ν = 1."
        )
        return lines

    def pictures(self, table: Table) -> list[Picture]:
        """Draw cumulative regret."""
        loop, axes = at(table, kind="loop"), ("round", "cumulative average regret")
        return [
            figures.picture(
                "regret",
                "Cumulative average regret against rounds (means with 95 % intervals). Random is linear.",
                figures.lines(loop, "labels", "cumulative_average_regret", "contender", "truth", axes),
            )
        ]


def _learns(table: Table, level: float) -> Estimate:
    exact = at(table, kind="exact")
    found = bootstrap([exact["late"], exact["early"]], lambda a, b, axis: a.mean(axis) / b.mean(axis), level)
    return found.but(unmet=unfitted(exact))


def _optimism(table: Table, level: float) -> Estimate:
    exact = at(table, kind="exact")
    found = covered(exact["worst"] <= 1, level).but(unmet=unfitted(exact))
    return found.but(note=f"left/right up to {exact['worst'].max():.2f}")


register(
    smoke=Regret(replicates=2, rounds=48, width=8, exact_replicates=80, exact_rounds=40),
    quick=Regret(),
    full=Regret(replicates=40, rounds=2000, width=50, exact_replicates=1000, exact_rounds=2000),
)
