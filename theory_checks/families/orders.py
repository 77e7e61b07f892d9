"""How far the network is from its linearisation: ε, gradients, kernels, widths and log det, against m, t, λ and depth.

Proposition 1 has ``ε = C m^{-1/6} √(log m) L³ (t/λ)^{4/3}`` with an unknown ``C``; the lemmas carry widths and
``log det V`` from gradients at θ0 to gradients at θ_t.  Constants cannot be checked, exponents can: the declared ones
are upper bounds, so a claim is supported if the whole interval of the fitted slope lies at or below the declared one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bandits.core.design import GramDesign
from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.oracles import kappa
from bandits.core.rng import Key
from bandits.core.rows import Factored
from bandits.runs.page import Picture
from bandits.runs.settings import Count
from bandits.runs.stats import LEVEL, Estimate, at_most, log_slope
from bandits.sim.learners import NeuralLearner, TangentLearner
from bandits.sim.networks import MLP, Activation
from bandits.sim.problem import Inputs, Problem, SyntheticArena
from bandits.sim.truths import TRUTHS
from theory_checks import figures
from theory_checks.checks import (
    Cell,
    Check,
    Family,
    Measure,
    Places,
    Positives,
    Result,
    Several,
    Table,
    at,
    blocks,
    register,
    unfitted,
)

MEASURES = {
    "epsilon": "ε = max |network - linearised| over all duels",
    "gradient": "max ‖∇r_θt - ∇r_θ0‖ / ‖∇r_θ0‖ over items",
    "kernel": "‖K_θt - K_θ0‖ / ‖K_θ0‖ over duels",
    "width": "max |width at θ_t - width at θ0| over duels",
    "logdet": "|log det V at θ_t - at θ0|",
    "width_stale": "the same for stale rows",
    "logdet_stale": "the same for stale rows",
}
LARGEST, BOUND = 2.0, 1.0


@dataclass(frozen=True)
class Place(Cell):
    """One point of a sweep."""

    sweep: Literal["width", "time", "lambda", "relu"]
    depth: int
    width: int
    regularisation: float
    activation: Activation = "softplus"

    @property
    def key(self) -> str:
        """Its values."""
        return f"{self.sweep}-{self.depth}-{self.width}-{self.regularisation:g}-{self.activation}"


def declared(widths: Sequence[int]) -> float:
    """Return the slope of ``m^{-1/6} √(log m)`` between the ends of a range of widths."""
    low, high = min(widths), max(widths)
    gain = 0.5 * (math.log(math.log(high)) - math.log(math.log(low))) / (math.log(high) - math.log(low))
    return -1 / 6 + gain


def measure(place: Place, times: tuple[int, ...], prompts: int, key: Key) -> Iterator[dict[str, np.ndarray]]:
    """Fit network and linearisation to the same growing answers; yield what differs at every time.

    Random duels of a fixed pool of ``prompts x 3`` items, none twice; all duels of the pool and of a quarter as many
    held-out prompts are compared.
    """
    network = MLP(5, place.width, place.depth, place.activation)
    initial = network.initial(key.fold_in("network"))
    problem = Problem(TRUTHS["mlp"], key.fold_in("world"), prompts, 3, 5, max(1, prompts // 4), bound=BOUND)
    arena = SyntheticArena(problem)
    offer, (everything, _) = arena.offer(0), problem.everything()
    lead = everything.x.shape[0]
    ridge = place.regularisation / kappa(LARGEST)
    learner = NeuralLearner(network, initial, place.regularisation, tolerance=1e-5)
    tangent = TangentLearner(network, initial, place.regularisation)
    order = key.fold_in("order").uniform(offer.duels.count).argsort(-1)
    compared = Duels.within(everything.prompts, 3).expand(lead)
    first = network.value_and_gradient(initial, everything.x)[1]
    old_gram = _duel_gram(first, compared)
    norms = first.squares().sqrt()
    stale, past = GramDesign(ridge), Labelled[Inputs]()
    for time in times:
        duels = offer.duels.take(order[..., len(past) : time])
        past = past.add(offer, duels, arena.label(duels))
        batch = past.batches[-1]
        stale.append(learner.features(batch.items, "current", "all").differences(batch.duels))
        ended = learner.fit(past)
        tangent.fit(past)
        now = network.value_and_gradient(learner.weights, everything.x)[1]
        designs = {}
        for weights in ("initial", "current"):
            designs[weights] = GramDesign(ridge)
            designs[weights].append(learner.features(past.items, weights, "all").differences(past.duels))
        widths = {
            "initial": designs["initial"].widths(first.differences(compared)),
            "current": designs["current"].widths(now.differences(compared)),
            "stale": stale.widths(now.differences(compared)),
        }
        gap = compared.difference(learner.rewards(everything)) - compared.difference(tangent.rewards(everything))
        moved = torch.stack([(a - b).square().sum((-1, -2)) for a, b in zip(learner.weights, initial, strict=True)])
        start = torch.as_tensor(designs["initial"].information())
        yield {
            name: value.numpy()
            for name, value in {
                "epsilon": gap.abs().amax(-1),
                "gradient": (_between(now, first) / norms).amax(-1),
                "kernel": _relative(_duel_gram(now, compared), old_gram),
                "width": (widths["current"] - widths["initial"]).abs().amax(-1),
                "logdet": (torch.as_tensor(designs["current"].information()) - start).abs(),
                "width_stale": (widths["stale"] - widths["initial"]).abs().amax(-1),
                "logdet_stale": (torch.as_tensor(stale.information()) - start).abs(),
                "distance": moved.sum(0).sqrt() / math.sqrt(2 * time * math.log(2) / place.regularisation),
                "gradient_norm": ended.gradient,
            }.items()
        }


def _duel_gram(rows: Factored, duels: Duels) -> Tensor:
    pairs = rows.differences(duels)
    return pairs.inner(pairs)


def _between(a: Factored, b: Factored) -> Tensor:
    """Return ``‖a_i - b_i‖`` for every row, without cancellation."""
    count = a.count
    place = torch.arange(count).expand(a.squares().shape)
    return a.join(b).differences(Duels(place, place + count)).squares().sqrt()


def _relative(a: Tensor, b: Tensor) -> Tensor:
    norm = torch.linalg.matrix_norm
    return norm(a - b) / norm(b)


@dataclass(frozen=True, kw_only=True)
class Orders(Family[Place]):
    """Sweeps over width (per depth), number of answers, regularisation and depth."""

    name = "orders"
    title = "The network follows its linearisation: ε, gradients, widths and log det against m, t, λ and depth"

    replicates: Several = 10
    few: Several = 3
    """replicates of networks wider than 1024"""
    widths: Places = (64, 128, 256, 512, 1024, 2048, 4096)
    depths: Places = (2, 3, 4)
    deepest_width: Count = 512
    """the widest network of more than 3 weight matrices"""
    times: Places = (5, 10, 20, 40)
    """answers, in the sweep over t; the other sweeps end at the last"""
    regularisations: Positives = (0.1, 0.3, 1.0, 3.0, 10.0)
    at_width: Count = 256
    """of the sweeps over λ, t and depth"""
    prompts: Count = 20

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        if min(self.depths) < 2:
            raise InputError(f"--depths must be at least 2, got {min(self.depths)}")
        if min(self.regularisations) >= 1 or max(self.regularisations) <= 1 or 1.0 not in self.regularisations:
            raise InputError("--regularisations needs values below, at and above 1")
        if max(self.times) > 3 * self.prompts:
            raise InputError(f"--times {max(self.times)} is more than the {3 * self.prompts} duels of --prompts")
        if any(len(self._widths(depth)) < 2 for depth in (2, *self.depths)):
            raise InputError(f"--widths needs two up to --deepest-width {self.deepest_width}")

    def _widths(self, depth: int) -> list[int]:
        return [width for width in self.widths if depth <= 3 or width <= self.deepest_width]

    def cells(self) -> Sequence[Place]:
        """Return one per point of a sweep; the slowest first."""
        places = [Place("width", depth, width, 1.0) for depth in self.depths for width in self._widths(depth)]
        places += [Place("time", depth, self.at_width, 1.0) for depth in self.depths]
        places += [Place("lambda", 3, self.at_width, lam) for lam in self.regularisations]
        places += [Place("relu", 2, width, 1.0, "relu") for width in self._widths(4)]
        return sorted(places, key=lambda place: -place.depth * place.width**2)

    def _times(self, place: Place) -> tuple[int, ...]:
        """Return when to fit and measure: often where t is swept, else twice (stale rows need an earlier fit)."""
        last = max(self.times)
        return self.times if place.sweep == "time" else (last // 2, last)

    def _replicates(self, place: Place) -> tuple[int, int]:
        """Return a point's replicates, and how many are measured at once: of wide networks one, to spare memory."""
        count = self.replicates if place.width <= 1024 else self.few
        return count, min(count, max(1, 2**22 // place.width**2))

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: a fit's copies of the weights, and gradients and kernels of all duels."""
        items = 3 * (self.prompts + max(1, self.prompts // 4))

        def size(place: Place) -> float:
            weights = place.width * (6 + place.width * (place.depth - 2))
            sides = 6 + 2 * place.width * (place.depth - 1)
            return 8.0 * self._replicates(place)[1] * (20 * weights + 6 * items * sides + 6 * items**2)

        return {"--orders.widths, --orders.depths, --orders.at-width, --orders.prompts": max(map(size, self.cells()))}

    def run(self, cell: Place, seed: int, folder: Path) -> Table:
        """Measure one point."""
        parts = []
        for members in blocks(*self._replicates(cell)):
            key = Key(seed, tuple(members)).fold_in("orders", cell.key)
            times = self._times(cell)
            parts += [
                pd.DataFrame(
                    {
                        "sweep": cell.sweep,
                        "depth": cell.depth,
                        "width_m": cell.width,
                        "lambda": cell.regularisation,
                        "inverse": 1 / cell.regularisation,
                        "t": time,
                        "replicate": members,
                        **columns,
                    }
                )
                for time, columns in zip(times, measure(cell, times, self.prompts, key), strict=True)
            ]
        return pd.concat(parts, ignore_index=True)

    def checks(self) -> list[Check]:
        """Declare one exponent per measure and sweep."""
        last, near = max(self.times), f"m = {self.at_width}"
        where = f"t = {last} random duels, λ = 1, softplus"
        checks = [
            Check(
                name=f"orders/{measure_name} in m, depth {depth}",
                statement=f"log-log slope of {words}: order m^(-1/6) √log m",
                threshold=at_most(declared(self._widths(depth))),
                measure=_slope("width_m", measure_name, sweep="width", depth=depth, t=last),
                expect="open" if "stale" in measure_name else "holds",
                setting=f"{where}, m = {min(self._widths(depth))} … {max(self._widths(depth))}",
            )
            for depth in self.depths
            for measure_name, words in MEASURES.items()
        ]
        checks.append(
            Check(
                name="orders/epsilon in m, ReLU, depth 2",
                statement="log-log slope of ε with the theorem's own activation",
                threshold=at_most(declared(self._widths(4))),
                measure=_slope("width_m", "epsilon", sweep="relu", t=last),
                setting=f"ReLU, m = {min(self._widths(4))} … {max(self._widths(4))}",
            )
        )
        checks += [
            Check(
                name=f"orders/epsilon in t, depth {depth}",
                statement="log-log slope of ε in t: order t^(4/3)",
                threshold=at_most(4 / 3),
                measure=_slope("t", "epsilon", paired=True, sweep="time", depth=depth),
                setting=near,
            )
            for depth in self.depths
        ]
        checks.append(
            Check(
                name="orders/epsilon in depth",
                statement="log-log slope of ε in L: order L³",
                threshold=at_most(3.0),
                measure=_slope("depth", "epsilon", sweep="time", t=last),
                setting=f"{near}, L = {min(self.depths)} … {max(self.depths)}",
            )
        )
        sides = {
            "weak λ": (
                "log-log slope of ε in 1/λ: order (1/λ)^(4/3); a bound with an unknown C binds only as t/λ grows",
                [lam for lam in self.regularisations if lam <= 1],
            ),
            "strong λ": (
                "the same where the fit shrinks as 1/λ and ε, of second order, as 1/λ²: an upper bound in t/λ is "
                "about large t/λ and does not forbid it",
                [lam for lam in self.regularisations if lam >= 1],
            ),
        }
        return checks + [
            Check(
                name=f"orders/epsilon in 1∕λ, {side}",
                statement=words,
                threshold=at_most(4 / 3),
                measure=_slope("inverse", "epsilon", among=("lambda", some), sweep="lambda", t=last),
                expect="open",
                setting=f"{near}, depth 3, λ = {min(some):g} … {max(some):g}",
            )
            for side, (words, some) in sides.items()
        ]

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Compare what was measured with what was declared."""
        slopes = {check.name.partition("/")[2]: check.measure(table, LEVEL) for check in self.checks()}
        widths = [f"{slopes[f'epsilon in m, depth {d}']}" for d in self.depths]
        t, lam = slopes[f"epsilon in t, depth {self.depths[1]}"], slopes["epsilon in 1∕λ, weak λ"]
        wide = at(table, sweep="width", depth=self.depths[1], t=max(self.times)).groupby("width_m")["epsilon"].median()
        return [
            f"ε falls much faster with the width than declared: slopes {', '.join(widths)} at depth "
            f"{', '.join(map(str, self.depths))}, against m^(-1/6) √log m; from {wide.iloc[0]:.3f} at m = "
            f"{wide.index[0]} to {wide.iloc[-1]:.4f} log-odds at m = {wide.index[-1]} (depth {self.depths[1]}).",
            f"In t its slope is {t} (declared 4/3), in 1/λ {lam} for λ <= 1 (declared 4/3), in depth "
            f"{slopes['epsilon in depth']} (declared 3); the kernel's relative change falls as "
            f"m^{slopes[f'kernel in m, depth {self.depths[1]}']}.",
        ]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw the sweeps on log-log axes with the declared orders."""
        last = max(self.times)
        named = table.assign(depth="depth " + table["depth"].astype(str))
        widths, times = at(named, sweep="width", t=last), at(named, sweep="time")
        order = declared(self.widths)
        three = {"epsilon": "ε", "gradient": "gradient closeness", "kernel": "kernel drift"}
        rest = {"width": "widths, θ_t vs θ0", "logdet": "log det, θ_t vs θ0", "logdet_stale": "log det, stale vs θ0"}
        return [
            figures.picture(
                "orders-m",
                "Linearisation error, relative change of gradients and of the duels' kernel against the width m. "
                "Medians with 95 % intervals; dashed: the declared order, anchored at the narrowest network.",
                figures.orders(widths, "width_m", {k: (v, order) for k, v in three.items()}, "depth", "width m"),
            ),
            figures.picture(
                "orders-design",
                "What the lemmas are about: widths and log det under gradients at θ_t, and under rows that were "
                "never recomputed (stale), against θ0.",
                figures.orders(widths, "width_m", {k: (v, order) for k, v in rest.items()}, "depth", "width m"),
            ),
            figures.picture(
                "orders-t",
                f"ε against the number of answers at m = {self.at_width}.",
                figures.orders(times, "t", {"epsilon": ("ε", 4 / 3)}, "depth", "answers t", paired=True),
            ),
            figures.picture(
                "orders-lambda",
                f"ε against 1/λ at m = {self.at_width}, depth 3.",
                figures.orders(at(table, sweep="lambda", t=last), "inverse", {"epsilon": ("ε", 4 / 3)}, None, "1/λ"),
            ),
        ]


def _slope(
    x: str, y: str, *, paired: bool = False, among: tuple[str, Sequence[float]] | None = None, **cells: object
) -> Measure:
    """Measure a log-log slope over the rows with these values; ``paired`` follows every replicate along ``x``."""

    def measure(table: Table, level: float) -> Estimate:
        part = at(table, **cells)
        if among is not None:
            part = part[part[among[0]].isin(among[1])]
        found = log_slope(part[x], part[y], part["replicate"] if paired else None, level)
        return found.but(unmet=unfitted(part))

    return measure


register(
    smoke=Orders(
        replicates=3,
        few=2,
        widths=(16, 32, 64),
        deepest_width=64,
        depths=(2, 3),
        times=(5, 10),
        at_width=32,
        regularisations=(0.3, 1.0, 3.0),
        prompts=6,
    ),
    quick=Orders(),
    full=Orders(replicates=40, few=16, deepest_width=4096, times=(5, 10, 20, 40, 60)),
)
