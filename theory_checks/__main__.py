"""The command line of the theory checks: ``python -m theory_checks PRESET [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bandits.runs.command import guard, parse
from bandits.runs.directory import RunDirectory, config_of, read_json
from theory_checks.experiments import PRESETS, Backend, Checks, run
from theory_checks.report import finish, judge, terminal

STATUS = (
    "\n\nexit status: 0 all came out as the theory says; 1 a claim that should hold is refuted, or a control is not; "
    "2 bad input."
)


@dataclass(frozen=True)
class Options:
    """A preset with its overrides, and where and how to run it."""

    checks: Annotated[Checks, tyro.conf.arg(name="")]
    output: Path = Path("results")
    """folder of all results"""
    jobs: int = 0
    """cells run side by side (0: one per core); changes no result"""
    backend: Backend = "loky"
    """where cells run: local processes, or a Dask or Ray cluster"""
    address: str | None = None
    """of the cluster's scheduler (default: a cluster on this machine)"""
    force: bool = False
    """start over, deleting what this run's folder holds"""


def check(arguments: Sequence[str]) -> int:
    """Run a preset with overrides; print the table of claims; return the exit status."""
    preset, options = parse("theory_checks", arguments, PRESETS, Options, STATUS)
    checks = options.checks
    directory = RunDirectory(options.output, "theory", preset, config_of(checks), options.force)
    tables = run(checks, directory, options.jobs, options.backend, options.address)
    if directory.complete:
        verdicts = [v for family in checks.families for v in judge(family, tables[family.name], checks)]
        print("this run is complete; --force runs it again")
    else:
        verdicts = finish(checks, directory, tables)
    print(terminal(verdicts))
    for line in read_json(directory.path / "findings.json"):
        print(f"• {line}")
    alarms = [v for v in verdicts if v.alarm]
    for v in alarms:
        print(f"alarm: {v.claim.name} is {v.word}: {v.reason}", file=sys.stderr)
    print(f"{len(verdicts)} claims, {len(alarms)} alarms; page: {directory.path / 'index.html'}")
    return 1 if alarms else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(check, arguments)


if __name__ == "__main__":
    sys.exit(main())
