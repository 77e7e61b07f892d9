"""The policy's gap: what a design of duels costs the policy that is fitted to its labels.

For a linear softmax policy ``π_θ(y|x) ∝ exp θᵀφ(x, y)``, BTL labels of the true ``θ*`` and ``n`` duels drawn from a
design ``q``, the fitted ``θ̂`` is asymptotically ``N(θ*, Σ⁻¹/n)`` with ``Σ = Σ_e q_e σ'(θ*ᵀg_e) g_e g_eᵀ``, ``g_e`` the
difference of the duel's features.  The KL-regularised value that is lost is ``KL(π_θ̂ ‖ π_θ*)``, to second order
``½ (θ̂ - θ*)ᵀ I (θ̂ - θ*)`` with the policy's Fisher matrix ``I = E_x Cov_{y~π*}[φ]``, so its mean is
``tr(I Σ⁻¹) / 2n`` (the criterion of Han, Goyal and Ma, arXiv 2606.19607).  Both sides are computed here, the left one
from fits to drawn labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import softplus

from bandits.core.duels import Duels
from bandits.core.oracles import slope
from bandits.core.rng import Key
from bandits.core.solvers import newton
from bandits.runs.page import Picture
from bandits.runs.settings import Count, Ge, Le
from bandits.runs.stats import LEVEL, Estimate, at_least, at_most, log_ratio, log_slope, mean
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
    register,
    unfitted,
)

BLOCK = 8
RIDGE = 1e-6  # of the fit: it only decides where labels are separable, which hundreds of labels hardly ever are
STEPS = 2000  # of the multiplicative algorithm


@dataclass(frozen=True, eq=False)
class World:
    """A linear softmax policy's world: features of duels ``(e, d)`` and items ``(x, k, d)``, and the truth ``(d)``."""

    duels: np.ndarray
    items: np.ndarray
    truth: np.ndarray

    @classmethod
    def draw(cls, generator: np.random.Generator, prompts: int, responses: int, dim: int) -> World:
        """Draw features whose directions and prompts are of unlike size, so that designs differ, and a truth."""
        sizes = np.exp(generator.normal(size=dim)) * np.exp(0.5 * generator.normal(size=(prompts, 1, 1)))
        items = generator.normal(size=(prompts, responses, dim)) * sizes
        items /= np.sqrt((items**2).sum(-1).mean())
        pairs = Duels.within(prompts, responses)
        flat = items.reshape(-1, dim)
        return cls(flat[pairs.first.numpy()] - flat[pairs.second.numpy()], items, generator.normal(size=dim))

    @property
    def weights(self) -> np.ndarray:
        """The Fisher information of a label of each duel, ``σ'(θ*ᵀg)``."""
        return np.asarray(slope(torch.as_tensor(self.duels @ self.truth)).numpy())

    @property
    def fisher(self) -> np.ndarray:
        """The policy's Fisher matrix ``I = E_x Cov_{y~π*}[φ]``."""
        policy = torch.softmax(torch.as_tensor(self.items @ self.truth), -1).numpy()
        centred = self.items - (policy[..., None] * self.items).sum(1, keepdims=True)
        return np.asarray(np.einsum("xk,xki,xkj->ij", policy, centred, centred) / len(policy))

    def information(self, design: np.ndarray) -> np.ndarray:
        """Return ``Σ`` of a design, for one label."""
        return np.asarray(np.einsum("e,ei,ej->ij", design * self.weights, self.duels, self.duels))

    def trace(self, design: np.ndarray, fisher: np.ndarray) -> float:
        """Return ``tr(I Σ⁻¹)``."""
        return float(np.trace(np.linalg.solve(self.information(design), fisher)))

    def best_trace(self) -> np.ndarray:
        """Return the design of least ``tr(I Σ⁻¹)``: ``q ← q √(derivative)``, normalised (Yu 2010, arXiv 0804.1838)."""
        design = np.full(len(self.duels), 1 / len(self.duels))
        for _ in range(STEPS):
            turned = np.linalg.solve(self.information(design), self.duels.T)
            design = design * np.sqrt(self.weights * np.einsum("ie,ij,je->e", turned, self.fisher, turned))
            design /= design.sum()
        return design

    def best_determinant(self) -> np.ndarray:
        """Return the design of greatest ``det Σ_e q_e g_e g_eᵀ``, to which ActiveDPO's picks tend as labels grow."""
        design, dim = np.full(len(self.duels), 1 / len(self.duels)), self.duels.shape[-1]
        for _ in range(STEPS):
            plain = np.einsum("e,ei,ej->ij", design, self.duels, self.duels)
            design = design * np.einsum("ei,ie->e", self.duels, np.linalg.solve(plain, self.duels.T)) / dim
        return design

    def twice_the_trace(self, generator: np.random.Generator) -> np.ndarray:
        """Return a design with exactly twice the uniform one's trace: uniform, but for a growing share of one duel."""
        uniform, alone = np.full(len(self.duels), 1 / len(self.duels)), np.zeros(len(self.duels))
        alone[generator.integers(len(alone))] = 1
        goal, low, high = 2 * self.trace(uniform, self.fisher), 0.0, 1 - 1e-9
        for _ in range(60):
            middle = (low + high) / 2
            mixed = (1 - middle) * uniform + middle * alone
            low, high = (middle, high) if self.trace(mixed, self.fisher) < goal else (low, middle)
        return mixed

    def turned(self) -> np.ndarray:
        """Return ``I`` with its eigenvectors shuffled: the same sizes, the largest assigned to the least direction.

        Of all shuffles the reversal is farthest from none at all, which would be no control.
        """
        values, vectors = np.linalg.eigh(self.fisher)
        return np.asarray((vectors * values[::-1]) @ vectors.T)

    def gaps(
        self, design: np.ndarray, labels: int, draws: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """Return ``KL(π_θ̂ ‖ π_θ*)``, mean over prompts, of fits to ``labels`` drawn duels, for each of ``draws``.

        And the largest gradient at the end of a fit, a label.
        """
        asked = generator.multinomial(labels, design / design.sum(), size=draws)
        chance = 1 / (1 + np.exp(-self.duels @ self.truth))
        fitted, left = fit(
            torch.as_tensor(self.duels), torch.as_tensor(asked), torch.as_tensor(generator.binomial(asked, chance))
        )
        items = torch.as_tensor(self.items)
        found = torch.log_softmax(torch.einsum("xki,ri->rxk", items, fitted), -1)
        true = torch.log_softmax(items @ torch.as_tensor(self.truth), -1)
        return np.asarray((found.exp() * (found - true)).sum(-1).mean(-1).numpy()), float(left.max())


def fit(rows: Tensor, asked: Tensor, won: Tensor) -> tuple[Tensor, Tensor]:
    """Return each draw's minimiser of ``Σ_e [asked_e log(1 + e^{m_e}) - won_e m_e] + ½ RIDGE ‖θ‖²``, ``m = rows θ``.

    And the size of the gradient there, a label.
    """
    asked, won = asked.to(rows.dtype), won.to(rows.dtype)

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        margins = theta @ rows.T
        return (asked * softplus(margins) - won * margins).sum(-1) + RIDGE / 2 * theta.square().sum(-1), margins

    def derivatives(theta: Tensor, margins: Tensor) -> tuple[Tensor, Tensor, object]:
        gradient = (asked * torch.sigmoid(margins) - won) @ rows + RIDGE * theta
        size = gradient.norm(dim=-1) / asked.sum(-1)

        def step() -> Tensor:
            weighted = (asked * slope(margins)).unsqueeze(-1) * rows
            hessian = weighted.mT @ rows + RIDGE * torch.eye(rows.shape[-1], dtype=rows.dtype)
            return -torch.linalg.solve(hessian, gradient)

        return gradient, size, step

    start = torch.zeros(asked.shape[0], rows.shape[-1], dtype=rows.dtype)
    return newton(objective, derivatives, start, 1e-10, 100)[:2]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Worlds(Cell):
    """A block of worlds, each with all its designs."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Gap(Family[Worlds]):
    """The gap of policies fitted to labels of several designs, against its prediction by the trace."""

    name = "gap"
    title = "The policy's gap: tr(I Σ⁻¹)/2n predicts what a design of duels costs the policy"

    replicates: Several = 32
    labels: Places = (1000, 4000)
    draws: Annotated[int, Ge(20), Le(10**6)] = 300
    """sets of labels drawn per world, design and number of labels"""
    designs: Annotated[int, Ge(3), Le(1000)] = 8
    """random designs of a world, through which the slope goes"""
    prompts: Count = 12
    responses: Annotated[int, Ge(2), Le(100)] = 3
    dim: Annotated[int, Ge(2), Le(100)] = 6

    def cells(self) -> Sequence[Worlds]:
        """Return blocks of worlds."""
        return [Worlds(block.start, block.stop) for block in blocks(self.replicates, BLOCK)]

    def run(self, cell: Worlds, seed: int, folder: Path) -> Table:
        """Draw worlds; fit and predict under each design."""
        rows = [
            {"replicate": number} | row
            for number in range(cell.start, cell.stop)
            for row in self._world(Key(seed, (number,)).fold_in("gap"))
        ]
        return pd.DataFrame(rows)

    def _world(self, key: Key) -> list[dict[str, object]]:
        (generator,) = key.fold_in("world").generators()
        world = World.draw(generator, self.prompts, self.responses, self.dim)
        fisher, turned = world.fisher, world.turned()
        designs = {f"random-{n}": generator.dirichlet(np.full(len(world.duels), 0.2)) for n in range(self.designs)}
        # A little of every duel, so that Σ has an inverse that is worth one.
        designs = {name: 0.95 * design + 0.05 / len(design) for name, design in designs.items()}
        designs |= {
            "uniform": np.full(len(world.duels), 1 / len(world.duels)),
            "twice": world.twice_the_trace(generator),
            "trace": world.best_trace(),
            "determinant": world.best_determinant(),
        }
        rows: list[dict[str, object]] = []
        most = max(self.labels)
        for name, design in designs.items():
            for labels in {"uniform": self.labels, "twice": (most, 2 * most)}.get(name, (most,)):
                (drawn,) = key.fold_in("labels", name, labels).generators()
                gaps, left = world.gaps(design, labels, self.draws, drawn)
                predicted = {"trace": world.trace(design, fisher), "shuffled": world.trace(design, turned)}
                rows.append({"design": name, "labels": labels, "gap": gaps.mean(), "gradient_norm": left} | predicted)
        return rows

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: all draws' weighted rows at once."""
        duels = self.prompts * self.responses * (self.responses - 1) / 2
        return {"--gap.draws, --gap.prompts, --gap.responses, --gap.dim": 8.0 * self.draws * duels * (4 + 2 * self.dim)}

    def checks(self) -> list[Check]:
        """Declare level, slope, doubling, their controls, and what ActiveDPO's design loses."""
        most = max(self.labels)
        setting = (
            f"{self.prompts} prompts x {self.responses}, d = {self.dim}, {most} labels, {self.draws} draws a world"
        )

        def check(name: str, statement: str, threshold: object, measure: Measure, expect: str = "holds") -> Check:
            return Check(
                name=f"gap/{name}",
                statement=statement,
                threshold=threshold,  # type: ignore[arg-type]
                measure=measure,
                expect=expect,  # type: ignore[arg-type]
                setting=setting,
            )

        level = "KL(π_θ̂ ‖ π*) over tr(I Σ⁻¹)/2n, all designs"
        slope_ = "log-log slope of the gap in tr(I Σ⁻¹), over random designs"
        twice = "gap of a design with twice the uniform one's trace over the uniform one's"
        return [
            check("level, at most", level, at_most(1.1), _level(most)),
            check("level, at least", level, at_least(0.9), _level(most)),
            check("slope, at least", slope_, at_least(0.9), _slope("trace", most)),
            check("slope, at most", slope_, at_most(1.1), _slope("trace", most)),
            check(
                "slope, I shuffled",
                "the same with I's eigenvectors in reverse order",
                at_least(0.9),
                _slope("shuffled", most),
                "fails",
            ),
            check("labels", "log-log slope of the gap in labels, uniform design", at_most(-0.9), _labels(self.labels)),
            check("twice the trace, at least", twice, at_least(1.8), _twice(most, most)),
            check("twice the trace, at most", twice, at_most(2.2), _twice(most, most)),
            check(
                "twice the trace, twice the labels",
                "the same where the design of twice the trace has twice the labels",
                at_least(1.8),
                _twice(2 * most, most),
                "fails",
            ),
            check(
                "determinant against trace",
                "gap of the D-optimal design (ActiveDPO's limit) over that of the trace-optimal one",
                at_most(1.1),
                _against("determinant", "trace", most),
                "open",
            ),
            check(
                "determinant against uniform",
                "gap of the D-optimal design over that of uniform labels",
                at_most(1.0),
                _against("determinant", "uniform", most),
                "open",
            ),
        ]

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say how good the prediction is and what the designs are worth."""
        most = max(self.labels)
        found = {name: _against(name, "uniform", most)(table, LEVEL) for name in ("determinant", "trace")}
        loss = _against("determinant", "trace", most)(table, LEVEL)
        level = _level(most)(table, LEVEL)
        return [
            f"The policy's gap is {level.value:.2f} [{level.low:.2f}, {level.high:.2f}] of tr(I Σ⁻¹)/2n at {most} "
            "labels.",
            "Against uniform labels the gap is "
            + ", ".join(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}] ({name}-optimal)" for name, e in found.items())
            + f"; D-optimal choice, which ActiveDPO's picks tend to, has {loss.value:.2f} [{loss.low:.2f}, "
            f"{loss.high:.2f}] times the gap of the trace rule.",
        ]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw the ratios of the designs to the uniform one."""
        most = max(self.labels)
        names = ("twice", "determinant", "trace")
        return [
            figures.picture(
                "gap",
                "The policy's gap under a design over that under uniform labels (95 % intervals over worlds).",
                figures.intervals(
                    {n: _against(n, "uniform", most)(table, LEVEL) for n in names}, "gap / uniform's", 1.0
                ),
            )
        ]


def _level(labels: int) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        part = at(table, labels=labels)
        # A world's designs share its features: one value a world.
        part = part.assign(log=np.log(part["gap"] * 2 * labels / part["trace"]))
        ratios = np.exp(part.groupby("replicate")["log"].mean())
        return log_ratio(ratios, np.ones(len(ratios)), level).but(unmet=unfitted(part))

    return measure


def _slope(trace: str, labels: int) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        part = at(table, labels=labels)
        part = part[part["design"].str.startswith("random")]
        slopes = [
            np.polyfit(np.log(world[trace]), np.log(world["gap"]), 1)[0] for _, world in part.groupby("replicate")
        ]
        return mean(slopes, level).but(unmet=unfitted(part))

    return measure


def _labels(places: Sequence[int]) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        part = at(table, design="uniform")
        part = part[part["labels"].isin(places)]
        return log_slope(part["labels"], part["gap"], part["replicate"], level).but(unmet=unfitted(part))

    return measure


def _twice(doubled: int, labels: int) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        above, below = at(table, design="twice", labels=doubled), at(table, design="uniform", labels=labels)
        fits = unfitted(pd.concat([above, below]))
        ours, theirs = (part.set_index("replicate")["gap"] for part in (above, below))
        return log_ratio(ours, theirs.loc[ours.index], level).but(unmet=fits)

    return measure


def _against(design: str, other: str, labels: int) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        part = at(table, labels=labels)
        part = part[part["design"].isin((design, other))]
        wide = part.pivot(index="replicate", columns="design", values="gap")
        return log_ratio(wide[design], wide[other], level).but(unmet=unfitted(part))

    return measure


register(
    smoke=Gap(replicates=24, draws=80, designs=6),
    quick=Gap(),
    full=Gap(replicates=200, labels=(1000, 4000, 16000), draws=1000, designs=16),
)
