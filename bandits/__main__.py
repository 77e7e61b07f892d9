"""The command line of the simulator: ``python -m bandits PRESET [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bandits.runs.command import guard, parse
from bandits.runs.directory import RunDirectory, config_of, read_json
from bandits.sim.experiments import PRESETS, Simulation, run
from bandits.sim.report import finish


@dataclass(frozen=True)
class Options:
    """A preset with its overrides, and where and how to run it."""

    simulation: Annotated[Simulation, tyro.conf.arg(name="")]
    output: Path = Path("results")
    """folder of all results"""
    jobs: int = 0
    """blocks of replicates run side by side (0: one per core); changes no result"""
    force: bool = False
    """start over, deleting what this run's folder holds"""


def simulate(arguments: Sequence[str]) -> int:
    """Run a preset with overrides and say what was found."""
    preset, options = parse("bandits", arguments, PRESETS, Options)
    simulation = options.simulation
    directory = RunDirectory(options.output, simulation.experiment, preset, config_of(simulation), options.force)
    if directory.complete:
        print("this run is complete; --force runs it again")
    else:
        finish(simulation, directory, run(simulation, directory, options.jobs))
    for line in read_json(directory.path / "findings.json"):
        print(f"• {line}")
    print(f"page: {directory.path / 'index.html'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(simulate, arguments)


if __name__ == "__main__":
    sys.exit(main())
