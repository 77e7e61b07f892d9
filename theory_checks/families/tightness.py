"""How loose the bound is, term by term, and whether width predicts error at all; over κ, λ, sampling.

A bound that holds says little; a width that does not rank duels by their error selects no better than chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from bandits.core.errors import InputError
from bandits.core.oracles import kappa
from bandits.core.rng import Key
from bandits.runs.page import Picture
from bandits.runs.settings import Count, Probability
from bandits.runs.stats import Threshold, at_least, at_most, empirical_multiplier, mean, median
from theory_checks import figures
from theory_checks.checks import (
    Cell,
    Check,
    Counts,
    Family,
    Measure,
    Positives,
    Result,
    Several,
    Table,
    Truths,
    at,
    measured,
    register,
)
from theory_checks.maths.predictors import NAMES
from theory_checks.maths.tangent import Setting
from theory_checks.maths.trials import Sampling, Trial, play

SAMPLINGS: tuple[Sampling, ...] = ("random", "active")
RIVALS = ("norm", "fisher", "noise", "bias", "both", "margin", "oracle")
LARGEST = 2.0
SWEEPS = {"largest": "Δmax", "regularisation": "λ", "labels": "labels", "truth": "truth"}


@dataclass(frozen=True)
class Point(Cell):
    """One value of what is swept, all else at its default."""

    sweep: Literal["largest", "regularisation", "labels", "truth"]
    value: float | int | str
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Tightness(Family[Point]):
    """Sweeps of one thing at a time around Δmax = 2, λ = 1, truth mlp."""

    name = "tightness"
    title = "Tightness: how loose the bound is, and whether width predicts error"

    replicates: Several = 100
    prompts: Count = 30
    width: Count = 64
    labels: Count = 60
    more: Counts = (15, 60, 240, 960)
    """labels, in the sweep over them"""
    largest: Positives = (0.5, 1.0, 2.0, 4.0)
    """Δmax, hence κ"""
    regularisations: Positives = (0.01, 0.1, 1.0, 10.0)
    """λ; scaling the reward by β is the same as dividing λ by β² and B by β"""
    truths: Truths = ("linear", "square", "cosine", "mlp", "ntk")
    delta: Probability = 0.05

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        if LARGEST not in self.largest or 1.0 not in self.regularisations or "mlp" not in self.truths:
            raise InputError("--largest needs 2, --regularisations 1 and --truths mlp: the default")
        if 3 * self.prompts < max(5, max(self.more) // 15):
            raise InputError(f"--prompts {self.prompts} has too few duels for 5, or a 15th of --more, a round")
        for cell in self.cells():
            self._trial(cell)

    def cells(self) -> Sequence[Point]:
        """Return one per point of a sweep."""
        sweeps: dict[Literal["largest", "regularisation", "labels", "truth"], tuple[float | int | str, ...]] = {
            "largest": self.largest,
            "regularisation": self.regularisations,
            "labels": self.more,
            "truth": self.truths,
        }
        return [Point(sweep, value, s) for s in SAMPLINGS for sweep, values in sweeps.items() for value in values]

    def _trial(self, cell: Point) -> Trial:
        base = Trial(
            Setting(self.prompts, 3, width=self.width, largest=LARGEST),
            cell.sampling,
            rounds=max(1, self.labels // 5),
            batch=5,
            delta=self.delta,
            certificates=0,
            predictors=True,
        )
        match cell.sweep:
            case "labels":
                return replace(base, rounds=15, batch=max(1, int(cell.value) // 15))
            case "regularisation":
                return replace(base, regularisation=float(cell.value))
            case "largest" | "truth":
                return replace(base, setting=replace(base.setting, **{cell.sweep: cell.value}))  # type: ignore[arg-type]

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: those of the largest trial."""
        most = max(self._trial(cell).memory(self.replicates) for cell in self.cells())
        return {"--tightness.prompts, --tightness.width, --tightness.more, --tightness.replicates": most}

    def run(self, cell: Point, seed: int, folder: Path) -> Table:
        """Play a trial."""
        replicates = range(self.replicates)
        columns = play(self._trial(cell), Key(seed, tuple(replicates)).fold_in("tightness"))
        where = {"sweep": cell.sweep, "value": cell.value, "sampling": cell.sampling}
        return pd.DataFrame(where | {"replicate": replicates} | columns)

    def checks(self) -> list[Check]:
        """Declare what a useful width would do; nothing of it is proved, so every claim is open."""
        checks = []

        def claim(name: str, statement: str, threshold: Threshold, measure: Measure) -> None:
            where = f"{self.prompts} prompts x 3, {self.labels} labels, Δmax = 2, λ = 1, truth mlp"
            checks.append(
                Check(
                    name=f"tightness/{name}",
                    statement=statement,
                    threshold=threshold,
                    measure=measure,
                    expect="open",
                    setting=where,
                )
            )

        for sampling in SAMPLINGS:
            here = {"sweep": "regularisation", "value": 1.0, "sampling": sampling}
            claim(
                f"width predicts error/{sampling}",
                "rank correlation of width and error over duels",
                at_least(0.3),
                measured(mean, "corr_width", **here),
            )
            claim(
                f"calibration/{sampling}",
                "error in the widest tenth over error in the narrowest tenth",
                at_least(1.0),
                measured(median, lambda table: table["decile_10"] / table["decile_1"], **here),
            )
            claim(
                f"within tenfold/{sampling}",
                "right over left side (median duel), constants of the papers",
                at_most(10.0),
                measured(median, "tightness_proposition", **here),
            )
            for name in RIVALS:
                claim(
                    f"{name} beats width/{sampling}",
                    f"rank correlation with error: {NAMES[name]} less width, paired",
                    at_least(0.0),
                    measured(mean, _gain(name), **here),
                )
        claim(
            "attainable",
            "correlation of |N(0, s²)| with s, s = noise and true bias: what a known deviation could give",
            at_least(0.3),
            measured(mean, "corr_gaussian", sweep="regularisation", value=1.0, sampling="random"),
        )
        return checks

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say how loose, why, and what predicts error."""
        lines = []
        for sampling in SAMPLINGS:
            part = _default(table, sampling)
            best = sorted(NAMES, key=lambda name: -part[f"corr_{name}"].mean())
            ranked = ", ".join(f"{name} {part[f'corr_{name}'].mean():.2f}" for name in best)
            lines.append(
                f"{sampling.capitalize()} sampling, Δmax = 2, λ = 1, truth mlp: γ_T = {part['gamma'].median():.0f} = "
                f"noise {part['gamma_noise'].median():.0f} + prior {part['gamma_prior'].median():.0f} + 1, where "
                f"{empirical_multiplier(part['needed_plain'], self.delta):.1f} would have sufficed. Rank "
                f"correlation with the error: {ranked}."
            )

        def along(sweep: str) -> str:
            part = at(table, sampling="random", sweep=sweep)
            return ", ".join(f"{p['corr_width'].mean():.2f} at {v}" for v, p in part.groupby("value", sort=False))

        part = _default(table, "random")
        return [
            *lines,
            "Width's correlation with the error under random sampling, "
            + "; ".join(f"by {words}: {along(sweep)}" for sweep, words in SWEEPS.items())
            + ".",
            "What is missing? Rank correlations with the error: the true bias of shrinking alone "
            f"{part['corr_oracle-bias'].mean():.2f}, the noise's deviation {part['corr_noise'].mean():.2f}, and the "
            f"bias estimated from the fit {part['corr_bias'].mean():.2f}; Fisher weights change the correlation by "
            f"{(part['corr_fisher'] - part['corr_width']).mean():+.3f}.",
        ]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw looseness, correlations and calibration."""
        terms = {"gamma_noise": "noise term", "gamma_prior": "prior term", "needed_plain": "needed"}
        random = at(table, sampling="random").replace({"sweep": SWEEPS})
        sweeps = random[random["sweep"] != "truth"].astype({"value": float})
        long = sweeps.melt(["sweep", "value", "replicate"], list(terms), "term", "multiplier").replace({"term": terms})
        names = [f"corr_{name}" for name in NAMES]
        default = pd.concat([_default(table, sampling) for sampling in SAMPLINGS])
        ranked = default.melt(["sampling", "replicate"], names, "predictor", "correlation")
        ranked["predictor"] = ranked["predictor"].str.removeprefix("corr_").map(NAMES)
        tenths = [f"decile_{k}" for k in range(1, 11)]
        deciles = random.melt(["sweep", "value", "replicate"], tenths, "decile", "relative")
        deciles["decile"] = deciles["decile"].str.removeprefix("decile_").astype(int)
        axes = ("decile of width", "relative error")
        return [
            figures.picture(
                "tightness-terms",
                "The terms of γ_T beside the multiplier that would have sufficed (random sampling).",
                figures.lines(long, "value", "multiplier", "term", "sweep", ("value", "multiplier of the width"), "xy"),
            ),
            figures.picture(
                "tightness-rank",
                "Rank correlation over duels between the error and what might predict it, at Δmax = 2, λ = 1, truth "
                "mlp.",
                figures.bars(ranked, "correlation", "predictor", "sampling", label="Spearman's correlation", line=0.0),
            ),
            figures.picture(
                "tightness-calibration",
                "Error by decile of width over the error of all duels (random sampling). Flat: width does not "
                "predict error.",
                figures.lines(deciles, "decile", "relative", "value", "sweep", axes, own=True),
            ),
        ]

    def numbers(self, table: Table) -> Table:
        """Tabulate every point of the sweeps."""
        return pd.DataFrame(
            [
                {
                    "sweep": SWEEPS[str(sweep)],
                    "value": str(value),
                    "sampling": sampling,
                    "κ": kappa(float(str(value)) if sweep == "largest" else LARGEST),
                    "B": part["norm"].median(),
                    "γ": part["gamma"].median(),
                    "noise term": part["gamma_noise"].median(),
                    "prior term": part["gamma_prior"].median(),
                    "needed γ̂": empirical_multiplier(part["needed_plain"], self.delta),
                    "rhs/lhs": part["tightness_proposition"].median(),
                    "corr. width": part["corr_width"].mean(),
                    "corr. Fisher": part["corr_fisher"].mean(),
                    "corr. Gaussian": part["corr_gaussian"].mean(),
                    "decile 10 : 1": (part["decile_10"] / part["decile_1"]).median(),
                    "error": part["error"].mean(),
                }
                for (sweep, value, sampling), part in table.groupby(["sweep", "value", "sampling"], sort=False)
            ]
        )


def _gain(name: str) -> Callable[[Table], pd.Series]:
    return lambda table: table[f"corr_{name}"] - table["corr_width"]


def _default(table: Table, sampling: Sampling) -> Table:
    return at(table, sweep="regularisation", value=1.0, sampling=sampling)


register(
    smoke=Tightness(
        replicates=6,
        prompts=10,
        width=16,
        labels=15,
        more=(15, 30),
        largest=(2.0,),
        regularisations=(1.0,),
        truths=("mlp",),
    ),
    quick=Tightness(),
    full=Tightness(replicates=400, prompts=100, width=128, labels=200),
)
