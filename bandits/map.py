"""The command line of the map: ``python -m bandits.map PRESET [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bandits.runs import command
from bandits.sim.map import PRESETS, MapStudy

COMMAND = command.Command(
    "python -m bandits.map", PRESETS, MapStudy.of, "--replicates, --redundancy, --noise, --responses and --rules"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
