"""Owns intervals over replicates: log-log slopes, means and medians, mostly by the bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bandits.runs.stats import mean_interval
from theory_checks.claims import Measurement

DRAWS = 2000


@dataclass(frozen=True)
class Slope:
    """A fitted exponent with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    replicates: int

    @property
    def said(self) -> str:
        """The slope in words."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def measurement(self, unmet: str = "", note: str = "") -> Measurement:
        """Return it as a claim's measurement."""
        return Measurement(self.value, self.low, self.high, self.replicates, unmet, note)


def log_slope(table: pd.DataFrame, x: str, y: str, paired: bool = False, seed: int = 0) -> Slope:
    """Return the least-squares slope of mean ``log y`` against ``log x`` with a percentile bootstrap interval.

    Replicates are drawn anew within every ``x`` where they are independent problems there; ``paired`` draws whole
    replicates, where one problem is followed along ``x``.  Values of 0 are no part of a power law and are refused.
    """
    with np.errstate(divide="ignore"):
        groups = [(float(str(place)), np.log(values.to_numpy())) for place, values in table.groupby(x)[y]]
    if len(groups) < 2 or not all(np.isfinite(values).all() for _, values in groups):
        raise ValueError(f"{y} against {x}: a slope needs two places and positive values")
    places = np.log([place for place, _ in groups])
    centred = (places - places.mean()) / np.square(places - places.mean()).sum()
    generator = np.random.default_rng(seed)
    if paired:
        curves = np.stack([values for _, values in groups], -1)
        means = curves[generator.integers(len(curves), size=(DRAWS, len(curves)))].mean(-2)
    else:
        means = np.stack([generator.choice(v, (DRAWS, len(v))).mean(-1) for _, v in groups], -1)
    low, high = np.quantile(means @ centred, (0.025, 0.975))
    value = float(np.dot([v.mean() for _, v in groups], centred))
    return Slope(value, float(low), float(high), min(len(v) for _, v in groups))


def mean(values: np.ndarray, unmet: str = "", note: str = "") -> Measurement:
    """Measure a mean over replicates with Student's t interval."""
    kept = np.asarray(values, dtype=np.float64)
    return Measurement(*mean_interval(kept), len(kept), unmet, note)


def median(values: np.ndarray, unmet: str = "", note: str = "", seed: int = 0) -> Measurement:
    """Measure a median over replicates with a percentile bootstrap interval."""
    kept = np.asarray(values, dtype=np.float64)
    draws = np.median(np.random.default_rng(seed).choice(kept, (DRAWS, len(kept))), -1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Measurement(float(np.median(kept)), float(low), float(high), len(kept), unmet, note)
