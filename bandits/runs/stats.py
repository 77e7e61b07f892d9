"""Owns what may be said of a results frame: intervals over replicates, paired comparisons, coverage, in words.

Every replicate is one independent draw of problem and key, and all contenders share it; so intervals are over
replicates and comparisons are paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from bandits.core.bounds import clopper_pearson

COMPARISON = [
    "truth",
    "contender",
    "baseline",
    "measure",
    "difference",
    "low",
    "high",
    "relative",
    "replicates",
    "verdict",
]


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high of Student's t interval (NaN bounds for fewer than two values)."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def summarise(rounds: pd.DataFrame, measures: list[str], keys: list[str]) -> pd.DataFrame:
    """Return one row per key and measure: mean over replicates with its 95 % interval."""
    rows = []
    for values, group in rounds.groupby(keys, sort=False):
        for measure in measures:
            mean, low, high = mean_interval(group[measure].to_numpy())
            rows.append(
                dict(zip(keys, values, strict=True))
                | {"measure": measure, "mean": mean, "low": low, "high": high, "replicates": len(group)}
            )
    return pd.DataFrame(rows)


def label_efficiency(rounds: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return each replicate's mean of a measure over all rounds (the area under its learning curve)."""
    return rounds.groupby(["truth", "contender", "replicate"], sort=False)[measure].mean().reset_index()


def compare(rounds: pd.DataFrame, measure: str, baseline: str, lower_is_better: bool = True) -> pd.DataFrame:
    """Return paired differences of label efficiency against a baseline, contender minus baseline.

    Intervals are Student's t over replicates at 95 % jointly over all rows (Bonferroni).  The verdict is ``better``,
    ``worse`` or ``no gain``: the interval excludes zero on one side, or does not.
    """
    scores = label_efficiency(rounds, measure)
    wide = {
        truth: group.pivot(index="replicate", columns="contender", values=measure)
        for truth, group in scores.groupby("truth", sort=False)
    }
    rivals = [c for c in scores["contender"].unique() if c != baseline]
    level = 1 - 0.05 / max(1, len(wide) * len(rivals))
    rows = []
    for truth, table in wide.items():
        for rival in rivals:
            difference = (table[rival] - table[baseline]).to_numpy()
            mean, low, high = mean_interval(difference, level)
            gain = -mean if lower_is_better else mean
            clear = low > 0 or high < 0
            rows.append(
                {
                    "truth": truth,
                    "contender": rival,
                    "baseline": baseline,
                    "measure": measure,
                    "difference": mean,
                    "low": low,
                    "high": high,
                    "relative": mean / float(table[baseline].mean()),
                    "replicates": len(difference),
                    "verdict": ("better" if gain > 0 else "worse") if clear else "no gain",
                }
            )
    return pd.DataFrame(rows, columns=COMPARISON)


@dataclass(frozen=True)
class Coverage:
    """Simultaneous coverage of one bound over replicates, with its exact 95 % interval."""

    covered: int
    replicates: int
    low: float
    high: float

    @classmethod
    def of(cls, bounds: pd.DataFrame, violations: str) -> Coverage:
        """A replicate is covered if no (round, duel) violates the bound."""
        worst = bounds.groupby("replicate")[violations].max()
        covered = int((worst == 0).sum())
        return cls(covered, len(worst), *clopper_pearson(covered, len(worst)))


def empirical_multiplier(bounds: pd.DataFrame, needed: str, delta: float) -> float:
    """Return the smallest multiplier that covers a share ``1 - δ`` of the replicates at all rounds and duels."""
    worst = bounds.groupby("replicate")[needed].max().to_numpy()
    return float(np.quantile(worst, 1 - delta, method="inverted_cdf"))


def verdict(
    coverage: Coverage, delta: float, assumptions: bool, converged: bool, vacuous: float = 0.0
) -> tuple[str, str]:
    """Return *supported*, *refuted* or *not informative* for a bound of level ``1 - δ``, with the reason.

    ``vacuous`` is the share of (round, duel, replicate) whose right side is no less than ``Δmax``, which the answer 0
    guarantees.  A bound that is below it for less than one in ten says too little to be supported.
    """
    said = f"{coverage.covered} of {coverage.replicates} replicates covered [{coverage.low:.3f}, {coverage.high:.3f}]"
    if not converged:
        return "not informative", f"{said}; the fit is no near-minimiser"
    if not assumptions:
        return "not informative", f"{said}; κ did not hold on the realised differences"
    if coverage.high < 1 - delta:
        return "refuted", said
    if vacuous > 0:
        said += f"; the right side is above Δmax for {vacuous:.4g} of the duels"
    if vacuous > 0.9:
        return "not informative", f"{said}: vacuous"
    if coverage.low >= 1 - delta:
        return "supported", said
    return "not informative", f"{said}; too few replicates to tell from {1 - delta:g}"
