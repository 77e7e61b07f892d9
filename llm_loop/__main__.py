"""The command line of the real loop: ``python -m llm_loop PRESET [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bandits.runs import command
from llm_loop import launch
from llm_loop.config import PRESETS
from llm_loop.run import AlignmentStudy

COMMAND = command.Command(
    "python -m llm_loop",
    PRESETS,
    AlignmentStudy.of,
    "--strategies and --seeds",
    "  First, once: activedpo assets\n--dry-run tells what a run will take and runs nothing.",
)


def align(arguments: Sequence[str]) -> int:
    """Run a preset with overrides and say what was found; under a launcher, in the main process of several."""
    if "--dry-run" in arguments:
        from llm_loop.forecast import forecast

        _, options = command.parse(COMMAND, [word for word in arguments if word != "--dry-run"])
        command.say(*forecast(AlignmentStudy.of(options.settings), options.jobs).lines)
        return 0
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.guard(align, arguments)


if __name__ == "__main__":
    sys.exit(main())
