"""Owns running the simulator's own loop inside a cell, so that networks are checked by the code that users run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bandits.core.oracles import kappa
from bandits.runs.stats import Estimate, empirical_multiplier
from bandits.sim.audit import VERSIONS, coverage
from bandits.sim.config import Simulation
from bandits.sim.run import run_cell

PROPOSITIONS = {"θ0": VERSIONS["Proposition 1, network"], "θt": VERSIONS["Proposition 2, network, V at θ_t"]}


def simulate(simulation: Simulation, truth: str, contender: str, folder: Path) -> dict[str, pd.DataFrame]:
    """Play one contender on one truth (resumed if it was cut off); return its tables by name."""
    run_cell(simulation, truth, contender, folder)
    return {
        path.stem: pd.read_csv(path)
        for path in sorted(folder.glob("*.csv"))
        if path.stem in ("rounds", "bounds", "calibration")
    }


def network_coverage(bounds: pd.DataFrame, largest: float) -> dict[str, Estimate]:
    """Estimate the coverage of Propositions 1 (θ0) and 2 (θt) from an audit's table, with κ = σ'(``largest``)."""
    note = f"rhs/lhs {bounds['tightness'].median():.0f} (median), ε up to {bounds['epsilon'].max():.3f}"
    return {which: coverage(bounds, version, kappa(largest)).but(note=note) for which, version in PROPOSITIONS.items()}


def needed(bounds: pd.DataFrame, column: str, delta: float) -> float:
    """Return the multiplier that covers a share ``1 - δ`` of the replicates at all measured moments and duels."""
    return empirical_multiplier(bounds.groupby("replicate")[column].max(), delta)
