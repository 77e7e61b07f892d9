"""The command line of the real loop: ``python -m llm_loop PRESET [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bandits.runs.command import guard
from bandits.runs.legacy import RunDirectory, config_of, parse, read_json
from llm_loop.config import PACKAGES, PRESETS, Alignment
from llm_loop.launch import is_main, main_first
from llm_loop.report.page import write
from llm_loop.run import Study, run


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


def align(arguments: Sequence[str]) -> int:
    """Run a preset with overrides and say what was found."""
    note = "  First, once: python -m llm_loop.data.assets"
    preset, options = parse("llm_loop", arguments, PRESETS, Options, note)
    study = Study.of(options.alignment)
    study.check()
    with main_first():
        force = options.force and is_main()
        directory = RunDirectory(options.output, "llm", preset, config_of(study.alignment), force, PACKAGES)
    if directory.complete:
        print("this run is complete; --force runs it again")
    else:
        run(study, directory, options.jobs)
        if is_main():
            write(directory.path)
    if is_main():
        for line in read_json(directory.path / "findings.json"):
            print(f"• {line}")
        print(f"page: {directory.path / 'index.html'}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(align, arguments)


if __name__ == "__main__":
    sys.exit(main())
