"""The command line of the real loop: ``python -m llm_loop PRESET [options]``."""

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
from llm_loop.cells import check, run
from llm_loop.experiments import PACKAGES, PRESETS, Alignment
from llm_loop.launch import is_main, main_first
from llm_loop.report import write


@dataclass(frozen=True)
class Options:
    """A preset with its overrides, and where and how to run it."""

    alignment: Annotated[Alignment, tyro.conf.arg(name="")]
    output: Path = Path("results")
    """folder of all results"""
    jobs: int = 0
    """cells run side by side (0: one per core; one on CUDA); changes no result"""
    force: bool = False
    """start over, deleting what this run's folder holds"""


def usage() -> str:
    """Return the presets, a line each."""
    lines = [f"  {name:<10}{text}" for name, (text, _) in PRESETS.items()]
    return (
        "usage: python -m llm_loop PRESET [--option value ...]\n\npresets:\n"
        + "\n".join(lines)
        + "\n\npython -m llm_loop PRESET --help lists the options.  First, once: python -m llm_loop.assets"
    )


def align(arguments: Sequence[str]) -> Path:
    """Run a preset with overrides; return the folder of its results."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0)
    preset = arguments[0]
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown preset {preset!r}; {hint}choose from {', '.join(PRESETS)}")
    text, alignment = PRESETS[preset]
    options = tyro.cli(Options, args=list(arguments[1:]), default=Options(alignment), description=text,
                       prog=f"python -m llm_loop {preset}", config=(tyro.conf.FlagConversionOff,))  # fmt: skip
    alignment = replace(options.alignment)
    check(alignment)
    with main_first():
        force = options.force and is_main()
        directory = RunDirectory(options.output, "llm", preset, config_of(alignment), force, PACKAGES)
    if directory.complete:
        print(f"this run is complete; --force runs it again\npage: {directory.path / 'index.html'}")
        return directory.path
    run(alignment, directory, options.jobs)
    if not is_main():
        return directory.path
    write(directory.path)
    for line in read_json(directory.path / "findings.json"):
        print(f"• {line}")
    print(f"page: {directory.path / 'index.html'}")
    return directory.path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    try:
        align(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
