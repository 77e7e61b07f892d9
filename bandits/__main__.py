"""The command line of the simulator: ``python -m bandits PRESET [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bandits.runs import command
from bandits.sim.config import PRESETS
from bandits.sim.run import SimulationStudy

COMMAND = command.Command(
    "python -m bandits", PRESETS, SimulationStudy.of, "--replicates, --until-decided, --contenders and --truths"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
