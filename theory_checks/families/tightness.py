"""How loose the bound is, term by term, and whether width predicts error at all; over κ, λ, sampling.

A bound that holds says little; a width that does not rank duels by their error selects no better than chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bandits.core.errors import InputError
from bandits.core.oracles import kappa
from bandits.runs.stats import Estimate, empirical_multiplier, mean, median
from theory_checks import figures as plots
from theory_checks.claims import Claim
from theory_checks.family import Family, Picture, Run, Verdict, picture
from theory_checks.maths.predictors import NAMES
from theory_checks.maths.tangent import Setting
from theory_checks.maths.trials import Sampling, Trial, play

SAMPLINGS: tuple[Sampling, ...] = ("random", "active")


@dataclass(frozen=True)
class Tightness(Family):
    """Sweeps of one thing at a time around Δmax = 2, λ = 1, truth mlp."""

    replicates: int = 100
    prompts: int = 30
    width: int = 64
    labels: int = 60
    more: tuple[int, ...] = (15, 60, 240, 960)
    """labels, in the sweep over them"""
    largest: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Δmax, hence κ"""
    regularisations: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """λ; scaling the reward by β is the same as dividing λ by β² and B by β"""
    truths: tuple[str, ...] = ("linear", "square", "cosine", "mlp", "ntk")

    def __post_init__(self) -> None:
        if self.replicates < 2:
            raise InputError("tightness: an interval needs at least 2 replicates")
        if 2.0 not in self.largest or 1.0 not in self.regularisations or "mlp" not in self.truths:
            raise InputError("tightness: the sweeps must hold the default (Δmax 2, λ 1, truth mlp)")

    @property
    def name(self) -> str:
        """The family's name."""
        return "tightness"

    @property
    def title(self) -> str:
        """What it is about."""
        return "Tightness: how loose the bound is, and whether width predicts error"

    def _trials(self) -> dict[str, Trial]:
        base = Trial(
            Setting(self.prompts, 3, width=self.width, largest=2.0),
            rounds=max(1, self.labels // 5),
            batch=5,
            certificates=0,
            predictors=True,
        )
        problem, found = base.setting, {}
        for sampling in SAMPLINGS:
            one = replace(base, sampling=sampling)
            for d in self.largest:
                found[f"Δmax={d:g}={sampling}"] = replace(one, setting=replace(problem, largest=d))
            for lam in self.regularisations:
                found[f"λ={lam:g}={sampling}"] = replace(one, regularisation=lam)
            for count in self.more:
                found[f"labels={count}={sampling}"] = replace(one, rounds=15, batch=max(1, count // 15))
            for truth in self.truths:
                found[f"truth={truth}={sampling}"] = replace(one, setting=replace(problem, truth=truth))
        return found

    def cells(self) -> list[str]:
        """One per point of a sweep."""
        return list(self._trials())

    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Play a trial."""
        sweep, value, sampling = cell.split("=")
        columns = play(self._trials()[cell], run.key("tightness", replicates=range(self.replicates)))
        return pd.DataFrame(
            {"sweep": sweep, "value": value, "sampling": sampling, "replicate": np.arange(self.replicates), **columns}
        )

    def claims(self) -> list[Claim]:
        """Declare what a useful width would do; nothing of it is proved, so all is open."""
        where = f"{self.prompts} prompts x 3, {self.labels} labels, Δmax = 2, λ = 1, truth mlp"
        declared = []
        for sampling in SAMPLINGS:
            declared += [
                Claim(
                    f"tightness/width predicts error/{sampling}",
                    "rank correlation of width and error over duels",
                    "at least",
                    0.3,
                    "open",
                    where,
                ),
                Claim(
                    f"tightness/calibration/{sampling}",
                    "error in the widest tenth over error in the narrowest tenth",
                    "at least",
                    1.0,
                    "open",
                    where,
                ),
                Claim(
                    f"tightness/within tenfold/{sampling}",
                    "right over left side (median duel), constants of the papers",
                    "at most",
                    10.0,
                    "open",
                    where,
                ),
            ]
            declared += [
                Claim(
                    f"tightness/{name} beats width/{sampling}",
                    f"rank correlation with error: {NAMES[name]} less width, paired",
                    "at least",
                    0.0,
                    "open",
                    where,
                )
                for name in ("norm", "fisher", "noise", "bias", "both", "margin", "oracle")
            ]
        declared.append(
            Claim(
                "tightness/attainable",
                "correlation of |N(0, s²)| with s, s = noise and true bias: what a known deviation could give",
                "at least",
                0.3,
                "open",
                where,
            )
        )
        return declared

    def _default(self, table: pd.DataFrame, sampling: str) -> pd.DataFrame:
        at = pd.to_numeric(table["value"], errors="coerce") == 1
        return table[(table["sweep"] == "λ") & at & (table["sampling"] == sampling)]

    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Average over replicates at Δmax = 2, λ = 1, truth mlp."""
        found = {}
        for sampling in SAMPLINGS:
            part = self._default(table, sampling)
            found[f"tightness/width predicts error/{sampling}"] = mean(part["corr_width"].to_numpy())
            found[f"tightness/calibration/{sampling}"] = median((part["decile_10"] / part["decile_1"]).to_numpy())
            found[f"tightness/within tenfold/{sampling}"] = median(part["tightness_proposition"].to_numpy())
            for name in ("norm", "fisher", "noise", "bias", "both", "margin", "oracle"):
                gain = part[f"corr_{name}"] - part["corr_width"]
                found[f"tightness/{name} beats width/{sampling}"] = mean(gain.to_numpy())
        found["tightness/attainable"] = mean(self._default(table, "random")["corr_gaussian"].to_numpy())
        return found

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Say how loose, why, and what predicts error."""
        lines = []
        for sampling in SAMPLINGS:
            part = self._default(table, sampling)
            best = sorted(NAMES, key=lambda name: -part[f"corr_{name}"].mean())
            ranked = ", ".join(f"{name} {part[f'corr_{name}'].mean():.2f}" for name in best)
            lines.append(
                f"{sampling.capitalize()} sampling, Δmax = 2, λ = 1, truth mlp: γ_T = {part['gamma'].median():.0f} = "
                f"noise {part['gamma_noise'].median():.0f} + prior {part['gamma_prior'].median():.0f} + 1, where "
                f"{empirical_multiplier(part['needed_plain'], Trial.delta):.1f} would have sufficed. Rank "
                f"correlation with the error: {ranked}."
            )
        random = table[table["sampling"] == "random"]

        def along(sweep: str) -> str:
            part = random[random["sweep"] == sweep]
            return ", ".join(f"{p['corr_width'].mean():.2f} at {v}" for v, p in part.groupby("value", sort=False))

        lines.append(
            f"Width's correlation with the error under random sampling, by λ: {along('λ')}; by Δmax: "
            f"{along('Δmax')}; by labels: {along('labels')}; by truth: {along('truth')}."
        )
        part = self._default(table, "random")
        lines.append(
            "What is missing? Rank correlations with the error: the true bias of shrinking alone "
            f"{part['corr_oracle-bias'].mean():.2f}, the noise's deviation {part['corr_noise'].mean():.2f}, and the "
            f"bias estimated from the fit {part['corr_bias'].mean():.2f}; Fisher weights change the correlation by "
            f"{(part['corr_fisher'] - part['corr_width']).mean():+.3f}."
        )
        return lines

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw looseness, correlations and calibration."""
        terms = {"gamma_noise": "noise term", "gamma_prior": "prior term", "needed_plain": "needed"}
        sweeps = table[table["sweep"] != "truth"]
        sweeps = sweeps.assign(value=sweeps["value"].astype(float))
        long = (
            sweeps[sweeps["sampling"] == "random"]
            .melt(["sweep", "value", "replicate"], list(terms), "term", "multiplier")
            .replace({"term": terms})
        )
        names = [f"corr_{name}" for name in NAMES]
        default = pd.concat([self._default(table, sampling) for sampling in SAMPLINGS])
        ranked = default.melt(["sampling", "replicate"], names, "predictor", "correlation")
        ranked["predictor"] = ranked["predictor"].str.removeprefix("corr_").map(NAMES)
        deciles = table[table["sampling"] == "random"].melt(
            ["sweep", "value", "replicate"], [f"decile_{k}" for k in range(1, 11)], "decile", "relative"
        )
        deciles["decile"] = deciles["decile"].str.removeprefix("decile_").astype(int)
        return [
            picture(
                "tightness-terms",
                "The terms of γ_T beside the multiplier that would have sufficed (random sampling).",
                plots.lines(long, "value", "multiplier", "term", "sweep", ("value", "multiplier of the width"), "xy"),
            ),
            picture(
                "tightness-rank",
                "Rank correlation over duels between the error and what might predict it, at Δmax = 2, λ = 1, truth "
                "mlp.",
                plots.bars(ranked, "correlation", "predictor", "sampling", label="Spearman's correlation", line=0.0),
            ),
            picture(
                "tightness-calibration",
                "Error by decile of width over the error of all duels (random sampling). Flat: width does not "
                "predict error.",
                plots.lines(
                    deciles, "decile", "relative", "value", "sweep", ("decile of width", "relative error"), own=True
                ),
            ),
        ]

    def numbers(self, table: pd.DataFrame) -> pd.DataFrame:
        """Tabulate every point of the sweeps."""
        rows = []
        for (sweep, value, sampling), part in table.groupby(["sweep", "value", "sampling"], sort=False):
            largest = float(str(value)) if sweep == "Δmax" else 2.0
            rows.append(
                {
                    "sweep": sweep,
                    "value": str(value),
                    "sampling": sampling,
                    "κ": kappa(largest),
                    "B": part["norm"].median(),
                    "γ": part["gamma"].median(),
                    "noise term": part["gamma_noise"].median(),
                    "prior term": part["gamma_prior"].median(),
                    "needed γ̂": empirical_multiplier(part["needed_plain"], Trial.delta),
                    "rhs/lhs": part["tightness_proposition"].median(),
                    "corr. width": part["corr_width"].mean(),
                    "corr. Fisher": part["corr_fisher"].mean(),
                    "corr. Gaussian": part["corr_gaussian"].mean(),
                    "decile 10 : 1": (part["decile_10"] / part["decile_1"]).median(),
                    "error": part["error"].mean(),
                }
            )
        return pd.DataFrame(rows)
