"""Practical approximations of the exact rule: sketches, normalisation, diagonal V, last layer, stale gradients.

How far are their widths, their log det and their *picks* from those of full gradients, full V, gradients at θ_t; and
what does it cost in final error?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bandits.core.design import Design, DiagonalDesign, GramDesign
from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.greedy import greedy
from bandits.core.oracles import kappa
from bandits.core.rng import Key
from bandits.core.rows import Dense, Rows
from bandits.core.sketches import CountSketch, Rademacher
from bandits.runs.page import Picture
from bandits.runs.settings import Count
from bandits.runs.stats import LEVEL, Estimate, at_least, at_most, log_ratio, log_slope, mean
from bandits.sim.config import Simulation
from bandits.sim.learners import NeuralLearner
from bandits.sim.networks import MLP
from bandits.sim.problem import Problem, SyntheticArena
from bandits.sim.truths import Teacher
from theory_checks import figures
from theory_checks.checks import (
    Cell,
    Check,
    Family,
    Measure,
    Places,
    Result,
    Several,
    Table,
    at,
    blocks,
    measured,
    register,
    unfitted,
)
from theory_checks.simulated import simulate

EXACT = "activedpo"
APPROXIMATIONS = {
    "activedpo-stale": "stale gradients",
    "activedpo-initial": "gradients at θ0",
    "activedpo-normalised": "unit responses",
    "activedpo-normalised-duel": "unit duels",
    "activedpo-diagonal": "diagonal V",
    "activedpo-last-layer": "last layer",
    "activedpo-identity": "V = identity",
    "activedpo-top-b": "no in-batch update",
    "activedpo-fisher": "Fisher weights",
    "random": "random",
}
Kind = Literal["count-1", "count-4", "rademacher"]
KINDS: tuple[Kind, ...] = ("count-1", "count-4", "rademacher")
After = Literal["none", "response", "duel"]
CHOICES = (
    "activedpo-initial",
    "activedpo-stale",
    "activedpo-normalised",
    "activedpo-normalised-duel",
    "activedpo-last-layer",
    "activedpo-diagonal",
)
PICKS = 20
TOGETHER = 2**25
"""coordinates of gradients that are held at once, but for several copies"""


@dataclass(frozen=True, eq=False)
class Chosen:
    """A batch: widths of the pool, log det of the answered duels, and the greedy picks."""

    widths: Tensor
    information: Tensor
    picks: Tensor


@dataclass(frozen=True, eq=False)
class Scene:
    """A fitted network with answered duels and a pool: what one choice of a batch sees."""

    learner: NeuralLearner
    gradients: dict[str, Tensor]
    asked: Duels
    pool: Duels
    ridge: float
    ties: Tensor

    @classmethod
    def of(cls, width: int, prompts: int, key: Key) -> Scene:
        """Draw a problem, ask a random batch twice as large as the next one, and fit."""
        network = MLP(5, width, 3)
        initial = network.initial(key.fold_in("network"))
        problem = Problem(Teacher(), key.fold_in("world"), prompts, 3, 5)
        arena = SyntheticArena(problem)
        items = arena.offer(0).items
        lead = items.x.shape[0]
        every = Duels.within(prompts, 3).expand(lead)
        order = key.fold_in("order").uniform(every.count).argsort(-1)
        asked, pool = every.take(order[..., : 2 * PICKS]), every.take(order[..., 2 * PICKS :])
        learner = NeuralLearner(network, initial, 1.0)
        learner.fit(Labelled.of(items, asked, arena.label(asked), lasting=True))
        rows = {
            "current": learner.features(items, "current", "all").dense().values,
            "initial": learner.features(items, "initial", "all").dense().values,
            "last": learner.features(items, "current", "last").dense().values,
        }
        ties = key.fold_in("ties").uniform(pool.count)
        return cls(learner, rows, asked, pool, 1.0 / kappa(2.0), ties)

    def choose(self, items: Tensor, after: After = "none", design: Design | None = None) -> Chosen:
        """Choose from rows of item gradients, normalised ``after`` which step."""
        rows = Dense(items).normalised() if after == "response" else Dense(items)
        asked, pool = rows.differences(self.asked), rows.differences(self.pool)
        if after == "duel":
            asked, pool = asked.normalised(), pool.normalised()
        return self._pick(asked, pool, design or GramDesign(self.ridge))

    def _pick(self, asked: Rows, pool: Rows, design: Design) -> Chosen:
        design.append(asked)
        seen = design.condition(pool)
        free = torch.ones_like(self.ties, dtype=torch.bool)
        picks = greedy(seen, PICKS, free, self.ties)
        return Chosen(seen.widths, torch.as_tensor(design.information()), picks)

    def choices(self) -> dict[str, Chosen]:
        """Choose by every approximation but sketches."""
        current, initial = self.gradients["current"], self.gradients["initial"]
        stale = Dense(initial).differences(self.asked), Dense(current).differences(self.pool)
        return {
            "activedpo-initial": self.choose(initial),
            "activedpo-stale": self._pick(*stale, GramDesign(self.ridge)),
            "activedpo-normalised": self.choose(current, "response"),
            "activedpo-normalised-duel": self.choose(current, "duel"),
            "activedpo-last-layer": self.choose(self.gradients["last"]),
            "activedpo-diagonal": self.choose(current, design=DiagonalDesign(self.ridge)),
        }

    def shifted(self, shift: Tensor, after: After = "none") -> tuple[Tensor, Tensor]:
        """Return the picks without and with a c(x) in the reward, whose gradients are ``shift``, one row a prompt."""
        current = self.gradients["current"]
        each = shift.repeat_interleave(current.shape[-2] // shift.shape[-2], -2)
        each = each * torch.linalg.vector_norm(current, dim=-1).mean() / current.shape[-1] ** 0.5
        return self.choose(current, after).picks, self.choose(current + each, after).picks


def overlap(a: Tensor, b: Tensor) -> np.ndarray:
    """Return the share of picks in common."""
    return np.asarray((a.unsqueeze(-1) == b.unsqueeze(-2)).any(-1).double().mean(-1).numpy())


def _sketched(values: Tensor, kind: Kind, size: int, key: Key) -> Tensor:
    """Project every replicate's gradients by a map of its own."""
    out = []
    for row, member in zip(values, key.replicates or (), strict=True):
        alone = Key(key.seed, None, (*key.path, member))
        if kind == "rademacher":
            sketch: CountSketch | Rademacher = Rademacher.draw(row.shape[-1], size, alone)
        else:
            sketch = CountSketch.draw(row.shape[-1], size, alone, 1 if kind == "count-1" else 4)
        out.append(sketch(Dense(row)).values)
    return torch.stack(out)


@dataclass(frozen=True)
class Sketched(Cell):
    """One batch of picks by sketched gradients."""

    sketch: Kind
    size: int


@dataclass(frozen=True)
class Choice(Cell):
    """One batch of picks by every other approximation."""


@dataclass(frozen=True)
class Whole(Cell):
    """Whole runs of the simulator's loop, for their final errors."""

    contender: str


@dataclass(frozen=True, kw_only=True)
class Approximations(Family[Sketched | Choice | Whole]):
    """Distances of one batch of picks, and final errors of whole runs."""

    name = "approximations"
    title = "Practical approximations: sketches, normalisation, diagonal V, last layer, stale gradients"

    replicates: Several = 12
    width: Count = 64
    prompts: Count = 60
    sizes: Places = (32, 128, 512, 2048)
    runs: Several = 24
    """replicates of the whole runs that compare final errors"""

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        if min(self.sizes) < 4:
            raise InputError(f"--sizes must be at least 4, got {min(self.sizes)}")
        if 3 * self.prompts < 4 * PICKS:
            raise InputError(
                f"--prompts {self.prompts} leaves no pool to pick {PICKS} from; use at least {4 * PICKS // 3 + 1}"
            )
        self._simulation(0)

    def _simulation(self, seed: int) -> Simulation:
        return Simulation(
            contenders=(EXACT, *APPROXIMATIONS),
            truths=("mlp",),
            replicates=self.runs,
            seed=seed,
            prompts=60,
            heldout=30,
            rounds=5,
            batch=12,
            width=32,
            audit=False,
        )

    def cells(self) -> Sequence[Sketched | Choice | Whole]:
        """Return one per sketch, one for all other approximations, one per whole run."""
        runs = [Whole(contender) for contender in (EXACT, *APPROXIMATIONS)]
        return [*runs, *(Sketched(kind, size) for kind in KINDS for size in self.sizes), Choice()]

    def run(self, cell: Sketched | Choice | Whole, seed: int, folder: Path) -> Table:
        """Measure a sketch, the other approximations, or a whole run."""
        if isinstance(cell, Whole):
            rounds = simulate(self._simulation(seed), "mlp", cell.contender, folder)["rounds"]
            last = rounds[rounds["round"] == rounds["round"].max()]
            return last[["replicate", "error", "gradient_norm"]].assign(kind="run", rule=cell.contender)
        parts = [self._measured(cell, members, seed) for members in blocks(self.replicates, self._together)]
        return pd.concat(parts, ignore_index=True)

    @property
    def _numbers(self) -> int:
        """Coordinates of all items' gradients, in a replicate."""
        return 3 * self.prompts * self.width * (6 + self.width)

    @property
    def _together(self) -> int:
        """Replicates that are measured at once, so that these fit into memory."""
        return min(self.replicates, max(1, TOGETHER // self._numbers))

    def _measured(self, cell: Sketched | Choice, members: range, seed: int) -> Table:
        key = Key(seed, tuple(members)).fold_in("approximations")
        scene = Scene.of(self.width, self.prompts, key)
        exact = scene.choose(scene.gradients["current"])
        if isinstance(cell, Sketched):
            rows = _sketched(
                scene.gradients["current"], cell.sketch, cell.size, key.fold_in("sketch", cell.sketch, cell.size)
            )
            distances = _distances(exact, scene.choose(rows))
            where = {"kind": "sketch", "rule": cell.sketch, "size": cell.size}
            return pd.DataFrame(where | {"replicate": members} | distances)
        parts = [
            pd.DataFrame({"kind": "choice", "rule": name, "replicate": members} | _distances(exact, choice))
            for name, choice in scene.choices().items()
        ]
        chance = key.fold_in("random").uniform(scene.pool.count).argsort(-1)[..., :PICKS]
        random = {"kind": "choice", "rule": "random", "replicate": members, "overlap": overlap(exact.picks, chance)}
        shift = key.fold_in("shift").normal(self.prompts, scene.gradients["current"].shape[-1])
        moved = {"kind": "shift", "rule": "activedpo-normalised", "replicate": members}
        kept = {"overlap": overlap(*scene.shifted(shift, "response"))}
        return pd.concat([*parts, pd.DataFrame(random), pd.DataFrame(moved | kept)], ignore_index=True)

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: all items' gradients and duels' differences, plain and sketched."""
        scene = 8.0 * 6 * min(self.replicates * self._numbers, max(self._numbers, TOGETHER))
        options = "--approximations.replicates, --approximations.prompts, --approximations.width"
        sketched = 8.0 * 6 * 3 * self.prompts * max(self.sizes)  # one replicate's; several only if they are small
        parts = {options: scene, "--approximations.sizes, --approximations.prompts": sketched}
        return parts | {"--approximations.runs": sum(self._simulation(0).memory().values())}

    def checks(self) -> list[Check]:
        """Declare the sketches' order, the invariance that normalising responses loses, and the costs."""
        pool = 3 * self.prompts - 2 * PICKS
        sizes = f"sizes {min(self.sizes)} … {max(self.sizes)}, m = {self.width}, {PICKS} picks of {pool}"
        checks = [
            Check(
                name=f"approximations/sketch {kind}/width error",
                statement="log-log slope of the median relative width error in the dimension (Johnson-Lindenstrauss: "
                "-1/2, here within 0.1)",
                threshold=at_most(-0.4),
                measure=_order(kind),
                setting=sizes,
            )
            for kind in KINDS
        ]
        checks += [
            Check(
                name=f"approximations/sketch {kind}/overlap",
                statement=f"share of the exact picks kept at dimension {max(self.sizes)}",
                threshold=at_least(0.9),
                measure=measured(mean, "overlap", kind="sketch", rule=kind, size=max(self.sizes)),
                expect="open",
                setting=sizes,
            )
            for kind in KINDS
        ]
        checks.append(
            Check(
                name="approximations/invariance/unit responses",
                statement="share of the picks kept when a c(x) with gradients of its own is added, which leaves the "
                "exact rule's as they are: responses normalised before the difference",
                threshold=at_least(0.9),
                measure=measured(mean, "overlap", kind="shift"),
                expect="open",
            )
        )
        checks += [
            Check(
                name=f"approximations/overlap/{APPROXIMATIONS[rule]}",
                statement="share of the exact picks that the approximation picks too",
                threshold=at_least(0.9),
                measure=measured(mean, "overlap", kind="choice", rule=rule),
                expect="open",
            )
            for rule in (*CHOICES, "random")
        ]
        return checks + [
            Check(
                name=f"approximations/final error/{words}",
                statement="final held-out error over the exact rule's, paired (geometric mean): no worse than 2 %",
                threshold=at_most(1.02),
                measure=_error(rule),
                expect="open",
                setting="60 prompts x 3, 60 labels, m = 32",
            )
            for rule, words in APPROXIMATIONS.items()
        ]

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say how far the approximations are from the exact rule."""
        kept = at(table, kind="sketch").groupby(["rule", "size"], sort=False)["overlap"].mean()
        choice = at(table, kind="choice").groupby("rule")["overlap"].mean().sort_values(ascending=False)
        errors = {words: _error(rule)(table, LEVEL) for rule, words in APPROXIMATIONS.items()}
        sketches = [f"{kind} " + ", ".join(f"{size}: {kept[kind, size]:.2f}" for size in self.sizes) for kind in KINDS]
        changes = [f"{words} {e.value - 1:+.0%} [{e.low - 1:+.0%}, {e.high - 1:+.0%}]" for words, e in errors.items()]
        return [
            f"Overlap of {PICKS} picks with the exact rule: "
            + ", ".join(f"{APPROXIMATIONS[str(rule)]} {share:.2f}" for rule, share in choice.items())
            + ".",
            f"Sketches keep, by dimension: {'; '.join(sketches)}.",
            f"Final held-out error against the exact rule: {', '.join(changes)}. What changes the picks need not "
            "change the error.",
        ]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw sketches by dimension, overlaps, and errors."""
        sketches, choice = at(table, kind="sketch"), at(table, kind="choice").replace({"rule": APPROXIMATIONS})
        errors = {words: _error(rule)(table, LEVEL) for rule, words in APPROXIMATIONS.items()}
        measures = {"width_error": ("width error (median duel)", -0.5), "logdet_error": ("log det error", -0.5)}
        return [
            figures.picture(
                "approximations-sketch",
                "Sketched gradients: relative error of widths and of log det against the dimension, with the "
                "Johnson-Lindenstrauss order.",
                figures.orders(sketches, "size", measures, "rule", "dimension", paired=True),
            ),
            figures.picture(
                "approximations-overlap",
                f"Share of the exact {PICKS} picks kept, against the dimension.",
                figures.lines(sketches, "size", "overlap", "rule", None, ("dimension", "selection overlap"), "x"),
            ),
            figures.picture(
                "approximations-choice",
                "Share of the exact picks that other approximations keep.",
                figures.bars(choice, "overlap", "rule", None, label="selection overlap"),
            ),
            figures.picture(
                "approximations-error",
                "Final held-out error over the exact rule's (geometric mean of paired ratios with 95 % interval).",
                figures.intervals(errors, "error / error of the exact rule", 1.0),
            ),
        ]

    def numbers(self, table: Table) -> Table:
        """Tabulate distances of one choice."""
        columns = ["overlap", "width_error", "logdet_error"]
        means = at(table, kind="choice").groupby("rule", sort=False)[columns].mean().reset_index()
        return means.replace({"rule": APPROXIMATIONS}).fillna(0.0)


def _distances(exact: Chosen, other: Chosen) -> dict[str, np.ndarray]:
    return {
        "width_error": ((other.widths / exact.widths) - 1).abs().median(-1).values.numpy(),
        "logdet_error": ((other.information - exact.information) / exact.information).abs().numpy(),
        "overlap": overlap(exact.picks, other.picks),
    }


def _order(kind: Kind) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        part = at(table, kind="sketch", rule=kind)
        return log_slope(part["size"], part["width_error"], part["replicate"], level)

    return measure


def _error(rule: str) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        runs = at(table, kind="run")
        fits = unfitted(runs[runs["rule"].isin((EXACT, rule))])
        wide = runs.pivot(index="replicate", columns="rule", values="error")
        return log_ratio(wide[rule], wide[EXACT], level).but(unmet=fits)

    return measure


register(
    smoke=Approximations(replicates=2, width=8, prompts=30, sizes=(32, 128), runs=2),
    quick=Approximations(),
    full=Approximations(replicates=64, width=128, prompts=200, sizes=(32, 128, 512, 2048, 8192), runs=128),
)
