"""The command line of the theory checks: ``python -m theory_checks PRESET [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bandits.runs import command
from theory_checks.study import PRESETS, Suite, TheoryStudy, suite


def theory() -> command.Command[Suite]:
    """Return the command with all families that are registered by now."""
    presets = {preset: (text, suite(preset)) for preset, text in PRESETS.items()}
    some = next(settings for _, settings in presets.values())
    counted = [f"--{family.name}.replicates" for family in some.families if hasattr(family, "replicates")]
    return command.Command(
        "python -m theory_checks",
        presets,
        TheoryStudy,
        ", ".join(counted),
        "\n\nexit status: 0 all came out as the theory says; 1 a claim that should hold is refuted, or a control is "
        "not; 2 bad input.",
    )


def __getattr__(name: str) -> command.Command[Suite]:
    """Return ``COMMAND``, as the other programs have it, made when asked for: families may be registered by then."""
    if name != "COMMAND":
        raise AttributeError(name)
    return theory()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.guard(lambda given: command.run(theory(), given), arguments)


if __name__ == "__main__":
    sys.exit(main())
