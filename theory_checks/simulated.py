"""Owns running the simulator's own loop inside a cell, so that networks are checked by the code that users run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from bandits.core.bounds import clopper_pearson
from bandits.core.oracles import kappa
from bandits.sim.config import Simulation
from bandits.sim.run import run_cell
from theory_checks.claims import Measurement

CONVERGED = 1e-3


def simulate(simulation: Simulation, truth: str, contender: str, folder: Path) -> dict[str, pd.DataFrame]:
    """Play one contender on one truth (resumed if it was cut off); return its tables by name."""
    run_cell(simulation, truth, contender, folder)
    return {
        path.stem: pd.read_csv(path)
        for path in sorted(folder.glob("*.csv"))
        if path.stem in ("rounds", "bounds", "calibration")
    }


def network_coverage(
    bounds: pd.DataFrame, violations: str, largest: float, slopes: str = "kappa_network"
) -> Measurement:
    """Measure simultaneous coverage of Proposition 1 from an audit's table, with what forbids judging it.

    Vacuous: in half of the replicates the right side never fell below ``2Δmax``.
    """
    worst = bounds.groupby("replicate")[violations].max()
    hits, count = int((worst == 0).sum()), len(worst)
    reasons = []
    if (bounds["gradient_norm"] > CONVERGED).any():
        reasons.append(f"{int((bounds['gradient_norm'] > CONVERGED).sum())} fits did not converge")
    failed = int((bounds.groupby("replicate")[slopes].min() < kappa(largest) * (1 - 1e-12)).sum())
    if failed:
        reasons.append(f"κ did not hold on the fitted differences of {failed} of {count} replicates")
    least = (bounds["gamma"] * bounds["least_width"]).groupby(bounds["replicate"]).min()
    if least.median() >= 2 * largest:
        reasons.append("vacuous: never below 2Δmax")
    note = f"rhs/lhs {bounds['tightness'].median():.0f} (median), ε up to {bounds['epsilon'].max():.3f}"
    return Measurement(hits / count, *clopper_pearson(hits, count), count, ", ".join(reasons), note)


def needed(bounds: pd.DataFrame, column: str, delta: float) -> float:
    """Return the multiplier that covers a share ``1 - δ`` of the replicates at all measured moments and duels."""
    return float(np.quantile(bounds.groupby("replicate")[column].max(), 1 - delta, method="higher"))
