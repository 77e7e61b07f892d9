"""Owns running the simulator's own loop inside a cell, so that networks are checked by the code that users run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bandits.sim.config import Simulation
from bandits.sim.run import run_cell


def simulate(simulation: Simulation, truth: str, contender: str, folder: Path) -> dict[str, pd.DataFrame]:
    """Play one contender on one truth (resumed if it was cut off); return its tables by name."""
    run_cell(simulation, truth, contender, folder)
    return {
        path.stem: pd.read_csv(path)
        for path in sorted(folder.glob("*.csv"))
        if path.stem in ("rounds", "bounds", "calibration")
    }


def memory(simulation: Simulation, family: str) -> dict[str, float]:
    """Estimate a simulation's bytes, each part by the options of the family that has them."""
    return {option.replace("--", f"--{family}."): size for option, size in simulation.memory().items()}
