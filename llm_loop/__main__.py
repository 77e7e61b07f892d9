"""The command line of the real loop: ``python -m llm_loop PRESET [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise

from bandits.core.errors import InputError
from bandits.runs import command
from bandits.runs.directory import Part, RunDirectory
from llm_loop import launch
from llm_loop.config import PRESETS, Alignment
from llm_loop.run import AlignmentStudy


def _refuse(alignment: Alignment, arguments: Sequence[str]) -> None:
    """Raise ``InputError`` for prompts that are named beside a pool's file, which has its own.

    The settings alone do not tell them from the preset's.
    """
    words = [part for word in arguments for part in word.split("=", 1)]
    named, pool = dict(pairwise(words)).get("--prompts"), alignment.pool
    if isinstance(pool, str) and named not in (None, pool):
        raise InputError(f"--pool {pool} has prompts of its own; leave --prompts {named} out")


COMMAND = command.Command(
    "python -m llm_loop",
    PRESETS,
    AlignmentStudy.of,
    "--strategies and --seeds",
    "  First, once: activedpo assets\n--dry-run tells what a run will take and runs nothing.",
    _refuse,
)


def align(arguments: Sequence[str]) -> int:
    """Run a preset with overrides and say what was found; under a launcher, in the main process of several."""
    if "--dry-run" in arguments:
        return foretell(*command.parse(COMMAND, [word for word in arguments if word != "--dry-run"]))
    if launch.processes() == 1:
        return command.run(COMMAND, arguments)
    if not launch.is_main():
        _, options = command.parse(COMMAND, arguments)
        AlignmentStudy.of(options.settings).follow()
        return 0
    try:
        return command.run(COMMAND, [*arguments, "--jobs", "1"])
    finally:
        launch.share(None)


def foretell(preset: str, options: command.Options[Alignment]) -> int:
    """Say what is left of a run and what that will take; write nothing."""
    from llm_loop.forecast import forecast

    part, study = Part.of(options.cells), AlignmentStudy.of(options.settings)
    directory = RunDirectory(options.output, study.experiment, preset, study.identity())
    if not options.force:
        directory.admit()
    command.say(*forecast(study, None if options.force else directory, options.jobs, part).lines)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.guard(align, arguments)


if __name__ == "__main__":
    sys.exit(main())
