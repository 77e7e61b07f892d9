"""How far the network is from its linearisation: ε, gradients, kernels, widths and log det, against m, t, λ and depth.

Proposition 1 has ``ε = C m^{-1/6} √(log m) L³ (t/λ)^{4/3}`` with an unknown ``C``; the lemmas carry widths and
``log det V`` from gradients at θ0 to gradients at θ_t.  Constants cannot be checked, exponents can: the declared ones
are upper bounds, so a claim is supported if the whole interval of the fitted slope lies at or below the declared one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bandits.core.design import GramDesign
from bandits.core.duels import Asked, Duels
from bandits.core.errors import InputError
from bandits.core.oracles import kappa
from bandits.core.rng import Key
from bandits.core.rows import Factored
from bandits.runs.stats import Estimate, log_slope, unconverged, worst
from bandits.sim.arena import Problem, SyntheticVectorArena
from bandits.sim.learners import NeuralLearner, TangentLearner
from bandits.sim.networks import MLP, Activation
from bandits.sim.truths import TRUTHS
from theory_checks import figures as plots
from theory_checks.claims import Claim
from theory_checks.family import Family, Picture, Run, Verdict, picture

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
class Place:
    """One point of a sweep."""

    sweep: str
    depth: int
    width: int
    regularisation: float
    activation: Activation = "softplus"

    @property
    def cell(self) -> str:
        """Its name."""
        return f"{self.sweep}-{self.depth}-{self.width}-{self.regularisation:g}-{self.activation}"


def declared(widths: list[int]) -> float:
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
    arena = SyntheticVectorArena(len(key.replicates or ()), problem=problem, batch=1)
    pool, (everything, _) = arena.show(0), problem.everything()
    lead = everything.x.shape[0]
    ridge = place.regularisation / kappa(LARGEST)
    learner = NeuralLearner(network, initial, place.regularisation, tolerance=1e-5, same_table=True)
    tangent = TangentLearner(network, initial, place.regularisation)
    offered = Duels.within(prompts, 3).expand(lead)
    order = key.fold_in("order").uniform(offered.count).argsort(-1)
    compared = Duels.within(everything.prompts, 3).expand(lead)
    first = network.value_and_gradient(initial, everything.x)[1]
    old_gram = _duel_gram(first, compared)
    norms = first.squares().sqrt()
    stale, asked, past = GramDesign(ridge), 0, None
    for time in times:
        duels = offered.take(order[..., asked:time])
        answers = arena.ask(duels)
        learner.observe(pool, answers)
        tangent.observe(pool, answers)
        batch = Asked.of(pool, duels)
        rows = learner.features(batch.items, "current", "all")
        stale.append(rows.differences(batch.duels))
        past = batch if past is None else past.join(batch)
        asked = time
        ended = learner.fit()
        tangent.fit()
        now = network.value_and_gradient(learner.weights, everything.x)[1]
        designs = {}
        for at in ("initial", "current"):
            designs[at] = GramDesign(ridge)
            designs[at].append(learner.features(past.items, at, "all").differences(past.duels))
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


@dataclass(frozen=True)
class Orders(Family):
    """Sweeps over width (per depth), number of answers, regularisation and depth."""

    replicates: int = 10
    few: int = 3
    """replicates of networks wider than 1024"""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    depths: tuple[int, ...] = (2, 3, 4)
    deepest_width: int = 512
    """the widest network of more than 3 weight matrices"""
    times: tuple[int, ...] = (5, 10, 20, 40)
    """answers, in the sweep over t; the other sweeps end at the last"""
    regularisations: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    at_width: int = 256
    """of the sweeps over λ, t and depth"""
    prompts: int = 20

    def __post_init__(self) -> None:
        if min(self.replicates, self.few) < 2:
            raise InputError("orders: a slope's interval needs at least 2 replicates")
        if len(set(self.widths)) < 2 or len(set(self.depths)) < 2 or len(set(self.times)) < 2:
            raise InputError("orders: a slope needs at least two widths, depths and times")
        if min(self.regularisations) >= 1 or max(self.regularisations) <= 1 or 1.0 not in self.regularisations:
            raise InputError("orders: the regularisations need values below, at and above 1")
        if max(self.times) > 3 * self.prompts:
            raise InputError(f"orders: {max(self.times)} duels are to be asked, but the pool has {3 * self.prompts}")

    @property
    def name(self) -> str:
        """The family's name."""
        return "orders"

    @property
    def title(self) -> str:
        """What it is about."""
        return "The network follows its linearisation: ε, gradients, widths and log det against m, t, λ and depth"

    def _places(self) -> list[Place]:
        places = [
            Place("width", depth, width, 1.0)
            for depth in self.depths
            for width in self.widths
            if depth <= 3 or width <= self.deepest_width
        ]
        places += [Place("time", depth, self.at_width, 1.0) for depth in self.depths]
        places += [Place("lambda", 3, self.at_width, lam) for lam in self.regularisations]
        places += [Place("relu", 2, width, 1.0, "relu") for width in self.widths if width <= self.deepest_width]
        return places

    def _times(self, place: Place) -> tuple[int, ...]:
        """Return when to fit and measure: often where t is swept, else twice (stale rows need an earlier fit)."""
        last = max(self.times)
        return self.times if place.sweep == "time" else (last // 2, last)

    def cells(self) -> list[str]:
        """One per point of a sweep; the slowest first."""
        return [p.cell for p in sorted(self._places(), key=lambda p: -p.depth * p.width**2)]

    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Measure one point; wide networks replicate by replicate, to spare memory."""
        place = next(p for p in self._places() if p.cell == cell)
        count = self.replicates if place.width <= 1024 else self.few
        size = max(1, min(count, 2**22 // place.width**2))
        parts = []
        for start in range(0, count, size):
            members = range(start, min(start + size, count))
            key = run.key("orders", place.cell, replicates=members)
            times = self._times(place)
            for time, columns in zip(times, measure(place, times, self.prompts, key), strict=True):
                parts.append(
                    pd.DataFrame(
                        {
                            "sweep": place.sweep,
                            "depth": place.depth,
                            "width_m": place.width,
                            "lambda": place.regularisation,
                            "t": time,
                            "replicate": list(members),
                            **columns,
                        }
                    )
                )
        return pd.concat(parts, ignore_index=True)

    def _slopes(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Return every slope with what its fits forbid."""
        found: dict[str, Estimate] = {}

        def fit(name: str, part: pd.DataFrame, x: str, y: str = "epsilon", paired: bool = False) -> None:
            slope = log_slope(part[x], part[y], part["replicate"] if paired else None)
            found[f"orders/{name}"] = slope.but(unconverged(part["gradient_norm"]))

        final = table[table["t"] == max(self.times)]
        for depth in self.depths:
            part = final[(final["sweep"] == "width") & (final["depth"] == depth)]
            for measure in MEASURES:
                fit(f"{measure} in m, depth {depth}", part, "width_m", measure)
        fit("epsilon in m, ReLU, depth 2", final[final["sweep"] == "relu"], "width_m")
        at = table[table["sweep"] == "time"]
        for depth in self.depths:
            fit(f"epsilon in t, depth {depth}", at[at["depth"] == depth], "t", paired=True)
        fit("epsilon in depth", at[at["t"] == max(self.times)], "depth")
        lam = final[final["sweep"] == "lambda"].assign(inverse=lambda part: 1 / part["lambda"])
        for side, part in (("weak λ", lam[lam["lambda"] <= 1]), ("strong λ", lam[lam["lambda"] >= 1])):
            fit(f"epsilon in 1∕λ, {side}", part, "inverse")
        return found

    def claims(self) -> list[Claim]:
        """Declare one exponent per measure and sweep, and the distance of θ_t from θ0."""
        deep = [w for w in self.widths if w <= self.deepest_width]
        relu = deep
        where = f"t = {max(self.times)} random duels, λ = 1, softplus"
        declared_claims = []
        for depth in self.depths:
            widths = list(self.widths) if depth <= 3 else deep
            for name, words in MEASURES.items():
                declared_claims.append(
                    Claim(
                        f"orders/{name} in m, depth {depth}",
                        f"log-log slope of {words}: order m^(-1/6) √log m",
                        "at most",
                        declared(widths),
                        "open" if "stale" in name else "holds",
                        f"{where}, m = {min(widths)} … {max(widths)}",
                    )
                )
        declared_claims.append(
            Claim(
                "orders/epsilon in m, ReLU, depth 2",
                "log-log slope of ε with the theorem's own activation",
                "at most",
                declared(relu),
                "holds",
                f"ReLU, m = {min(relu)} … {max(relu)}",
            )
        )
        declared_claims += [
            Claim(
                f"orders/epsilon in t, depth {depth}",
                "log-log slope of ε in t: order t^(4/3)",
                "at most",
                4 / 3,
                setting=f"m = {self.at_width}",
            )
            for depth in self.depths
        ]
        declared_claims += [
            Claim(
                "orders/epsilon in depth",
                "log-log slope of ε in L: order L³",
                "at most",
                3.0,
                setting=f"m = {self.at_width}, L = {min(self.depths)} … {max(self.depths)}",
            ),
            Claim(
                "orders/epsilon in 1∕λ, weak λ",
                "log-log slope of ε in 1/λ: order (1/λ)^(4/3); a bound with an unknown C binds only as t/λ grows",
                "at most",
                4 / 3,
                "open",
                setting=f"m = {self.at_width}, depth 3, λ = {min(self.regularisations):g} … 1",
            ),
            Claim(
                "orders/epsilon in 1∕λ, strong λ",
                "the same where the fit shrinks as 1/λ and ε, of second order, as 1/λ²: an upper bound in t/λ is "
                "about large t/λ and does not forbid it",
                "at most",
                4 / 3,
                "open",
                setting=f"m = {self.at_width}, depth 3, λ = 1 … {max(self.regularisations):g}",
            ),
            Claim(
                "orders/distance",
                "‖θ_t - θ0‖ <= √(2 t log 2 / λ), since L_t(θ_t) <= L_t(θ0) = t log 2",
                "at most",
                1.0,
                setting="all of the above",
            ),
        ]
        return declared_claims

    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Fit every slope."""
        return self._slopes(table) | {"orders/distance": worst(table["distance"].to_numpy())}

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Compare what was measured with what was declared."""
        slopes = self._slopes(table)
        widths = [slopes[f"orders/epsilon in m, depth {d}"] for d in self.depths]
        t, lam = slopes["orders/epsilon in t, depth 3"], slopes["orders/epsilon in 1∕λ, weak λ"]
        depth, kernel = slopes["orders/epsilon in depth"], slopes["orders/kernel in m, depth 3"]
        at = table[(table["sweep"] == "width") & (table["depth"] == 3) & (table["t"] == max(self.times))]
        ends = [float(at[at["width_m"] == m]["epsilon"].median()) for m in (min(self.widths), max(self.widths))]
        return [
            f"ε falls much faster with the width than declared: slopes {', '.join(map(str, widths))} at depth "
            f"{', '.join(map(str, self.depths))}, against m^(-1/6) √log m; from {ends[0]:.3f} at m = "
            f"{min(self.widths)} to {ends[1]:.4f} log-odds at m = {max(self.widths)} (depth 3).",
            f"In t its slope is {t} (declared 4/3), in 1/λ {lam} for λ <= 1 (declared 4/3), in depth "
            f"{depth} (declared 3); the kernel's relative change falls as m^{kernel}.",
        ]

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw the sweeps on log-log axes with the declared orders."""
        last = max(self.times)
        widths = table[(table["sweep"] == "width") & (table["t"] == last)]
        widths = widths.assign(depth="depth " + widths["depth"].astype(str))
        order = declared(list(self.widths))
        three = {"epsilon": "ε", "gradient": "gradient closeness", "kernel": "kernel drift"}
        rest = {"width": "widths, θ_t vs θ0", "logdet": "log det, θ_t vs θ0", "logdet_stale": "log det, stale vs θ0"}
        at = table[table["sweep"] == "time"]
        at = at.assign(depth="depth " + at["depth"].astype(str))
        lam = table[(table["sweep"] == "lambda") & (table["t"] == last)]
        lam = lam.assign(inverse=1 / lam["lambda"])
        return [
            picture(
                "orders-m",
                "Linearisation error, relative change of gradients and of the duels' kernel against the width m. "
                "Medians with 95 % intervals; dashed: the declared order, anchored at the narrowest network.",
                plots.orders(widths, "width_m", {k: (v, order) for k, v in three.items()}, "depth", "width m"),
            ),
            picture(
                "orders-design",
                "What the lemmas are about: widths and log det under gradients at θ_t, and under rows that were "
                "never recomputed (stale), against θ0.",
                plots.orders(widths, "width_m", {k: (v, order) for k, v in rest.items()}, "depth", "width m"),
            ),
            picture(
                "orders-t",
                f"ε against the number of answers at m = {self.at_width}.",
                plots.orders(at, "t", {"epsilon": ("ε", 4 / 3)}, "depth", "answers t", paired=True),
            ),
            picture(
                "orders-lambda",
                f"ε against 1/λ at m = {self.at_width}, depth 3.",
                plots.orders(lam, "inverse", {"epsilon": ("ε", 4 / 3)}, None, "1/λ"),
            ),
        ]
