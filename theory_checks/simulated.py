"""Owns running the simulator's own loop inside a cell, so that networks are checked by the code that users run."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pandas as pd

from bandits.runs.files import frame, read_bytes
from bandits.runs.settings import option
from bandits.sim.config import Simulation
from bandits.sim.run import run_cell
from theory_checks.checks import AnyFamily


def simulate(simulation: Simulation, truth: str, contender: str, folder: Path) -> dict[str, pd.DataFrame]:
    """Play one contender on one truth (resumed if it was cut off); return its tables by name."""
    run_cell(simulation, truth, contender, folder)
    return {
        path.stem: frame(read_bytes(path), path)
        for path in sorted(folder.glob("*.csv"))
        if path.stem in ("rounds", "bounds", "calibration")
    }


def memory(simulation: Simulation, family: AnyFamily) -> dict[str, float]:
    """Estimate a simulation's bytes, each part by those of its options that the family has too."""
    own = {option(field.name): option(field.name, f"{family.name}.") for field in fields(family)}  # type: ignore[arg-type]
    parts: dict[str, float] = {}
    for names, size in simulation.memory().items():
        mine = ", ".join(own[name] for name in re.findall("--[a-z-]+", names) if name in own)
        mine = mine or f"the sizes of {family.name}"
        parts[mine] = parts.get(mine, 0.0) + size
    return parts
