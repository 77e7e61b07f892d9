"""The command line of the simulator: ``python -m bandits PRESET [options]``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from bandits.errors import InputError
from bandits.experiments import PRESETS, Simulation, run
from bandits.report import finish
from bandits.results import RunDirectory, config_of, read_json


@dataclass(frozen=True)
class Options:
    """A preset with its overrides, and where and how to run it."""

    simulation: Annotated[Simulation, tyro.conf.arg(name="")]
    output: Path = Path("results")
    """folder of all results"""
    jobs: int = 0
    """cells run side by side (0: one per core); changes no result"""
    force: bool = False
    """start over, deleting what this run's folder holds"""


def usage() -> str:
    """Return the presets, a line each."""
    lines = [f"  {name:<14}{text}" for name, (text, _) in PRESETS.items()]
    return (
        "usage: python -m bandits PRESET [--option value ...]\n\npresets:\n"
        + "\n".join(lines)
        + ("\n\npython -m bandits PRESET --help lists the options.")
    )


def simulate(arguments: Sequence[str]) -> Path:
    """Run a preset with overrides; return the folder of its results."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0)
    preset = arguments[0]
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown preset {preset!r}; {hint}choose from {', '.join(PRESETS)}")
    text, simulation = PRESETS[preset]
    default = Options(simulation)
    prog = f"python -m bandits {preset}"
    options = tyro.cli(Options, args=list(arguments[1:]), default=default, prog=prog, description=text)
    simulation = replace(options.simulation)
    directory = RunDirectory(options.output, simulation.experiment, preset, config_of(simulation), options.force)
    if directory.complete:
        print(f"this run is complete; --force runs it again\npage: {directory.path / 'index.html'}")
        return directory.path
    tables = run(simulation, directory, options.jobs)
    finish(simulation, directory, tables)
    for line in read_json(directory.path / "findings.json"):
        print(f"• {line}")
    print(f"page: {directory.path / 'index.html'}")
    return directory.path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    try:
        simulate(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
