"""The command line of the theory checks: ``python -m theory_checks PRESET [options]``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from bandits.errors import InputError
from bandits.results import RunDirectory, config_of, read_json
from theory_checks.experiments import PRESETS, Backend, Checks, run
from theory_checks.report import finish, judge, terminal


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


def usage() -> str:
    """Return the presets, a line each."""
    lines = [f"  {name:<10}{text}" for name, (text, _) in PRESETS.items()]
    return (
        "usage: python -m theory_checks PRESET [--option value ...]\n\npresets:\n" + "\n".join(lines)
        + "\n\npython -m theory_checks PRESET --help lists the options. Exit status: 0 as the theory says, 1 a claim that "
        "should hold\nis refuted or a control is not, 2 bad input."
    )  # fmt: skip


def check(arguments: Sequence[str]) -> bool:
    """Run a preset with overrides; print the table; return whether all came out as the theory says."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0)
    preset = arguments[0]
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown preset {preset!r}; {hint}choose from {', '.join(PRESETS)}")
    text, checks = PRESETS[preset]
    options = tyro.cli(Options, args=list(arguments[1:]), default=Options(checks), prog=f"python -m theory_checks {preset}",
                       description=text, config=(tyro.conf.FlagConversionOff,))  # fmt: skip
    checks = replace(options.checks)
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
    return not alarms


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    try:
        return 0 if check(sys.argv[1:] if arguments is None else arguments) else 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
