"""Owns a run of the checks: which families with which sizes, the presets, and the run that they make."""

from __future__ import annotations

import ctypes
import dataclasses
import difflib
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from bandits.core.errors import InputError
from bandits.core.registry import fingerprint
from bandits.runs.directory import Identity, RunDirectory, config_of
from bandits.runs.execute import Report, Study
from bandits.runs.files import read_json, write_frame
from bandits.runs.settings import Seed, check
from theory_checks.checks import FAMILIES, AnyFamily, Cell, Result, Table, alarm_level, check_family

PRESETS = {
    "smoke": "every family at its smallest, for tests (about a minute)",
    "quick": "every claim, small (under 10 minutes on 2 cores)",
    "full": "every claim with many replicates and the largest networks (hours)",
}


@dataclass(frozen=True)
class Suite:
    """Families with their sizes; together with the code's version it determines every byte of the results.

    ``suite`` adds a field for every registered family, so that each has its options on the command line.
    """

    seed: Seed = 0
    claims: tuple[str, ...] = ()
    """families, or names of claims, to check (default: all)"""

    def __post_init__(self) -> None:
        check(self)
        for family in self.everything:
            check_family(family)
        known = [family.name for family in self.everything]
        names = [check.name for family in self.everything for check in family.checks()]
        for wanted in self.claims:
            if wanted not in known and not any(name == wanted or name.startswith(wanted + "/") for name in names):
                near = [name for name in names if name.startswith(wanted)] or difflib.get_close_matches(
                    wanted, [*known, *names], 1, 0.0
                )
                raise InputError(
                    f"--claims: no claim is named {wanted!r}; the nearest is {near[0]!r}; families: {', '.join(known)}"
                )

    @property
    def everything(self) -> list[AnyFamily]:
        """All families, wanted or not."""
        return [getattr(self, f.name) for f in fields(self) if f.name not in ("seed", "claims")]

    @property
    def families(self) -> list[AnyFamily]:
        """The families that are to be run."""
        wanted = {name.partition("/")[0] for name in self.claims}
        return [family for family in self.everything if not wanted or family.name in wanted]

    def judge(self, family: AnyFamily, table: Table) -> list[Result]:
        """Judge a family's wanted claims; alarms allow for all claims of the suite, whichever of them are wanted."""
        level = alarm_level([check for family in self.everything for check in family.checks()])
        return [Result.of(check, table, level) for check in family.checks() if self._wants(check.name)]

    def _wants(self, claim: str) -> bool:
        return not self.claims or any(f"{claim}/".startswith(f"{name}/") for name in self.claims)


def suite(preset: str) -> Suite:
    """Return all registered families at a preset's sizes."""
    import theory_checks.families  # noqa: F401  (registers the package's own)

    families = [getattr(sizes, preset) for sizes in FAMILIES.values()]
    options = [(family.name, type(family), dataclasses.field(default=family)) for family in families]
    made: type[Suite] = dataclasses.make_dataclass("Checks", options, bases=(Suite,), frozen=True)
    return made()


def keep_freed() -> None:
    """Let glibc keep the memory that tensors free, for the next ones; elsewhere nothing is done.

    It hands blocks of 32 MB and more back at once, so every temporary of a wide network faults its pages in anew: more
    than half of such a cell's time was spent in the system.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # never: a limit is an int, and wide networks free more than 2 GB


@dataclass(frozen=True)
class Work:
    """A family's cell as a cell of the run."""

    family: str
    cell: Cell

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.family}--{self.cell.key}"

    @property
    def cost(self) -> float:
        """How long it takes, in a unit of its own."""
        return self.cell.cost


@dataclass(frozen=True)
class TheoryStudy(Study):
    """The checks as a run."""

    checks: Suite

    experiment = "theory"

    def identity(self) -> Identity:
        """What determines the bytes of its results."""
        parts = {family.name: fingerprint(family) for family in self.checks.families}
        return Identity(config_of(self.checks), packages=("bandits", "theory_checks"), parts=parts)

    def memory(self) -> dict[str, float]:
        """Estimate a cell's bytes: the largest of the families'."""
        parts: dict[str, float] = {}
        for family in self.checks.families:
            parts = max(parts, family.memory(), key=lambda part: sum(part.values()))
        return parts

    def count(self) -> int:
        """How many cells there are."""
        return sum(len(family.cells()) for family in self.checks.families)

    def cells(self) -> list[Work]:
        """All cells, family by family."""
        return [Work(family.name, cell) for family in self.checks.families for cell in family.cells()]

    def play(self, cell: Work, folder: Path) -> list[str]:
        """Run one cell and write its table."""
        keep_freed()
        family = next(f for f in self.checks.families if f.name == cell.family)
        table = family.run(cell.cell, self.checks.seed, folder)
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"family {family.name}: run returns a pandas DataFrame, got a {type(table).__name__}")
        write_frame(folder / "table.csv", table)
        return ["table.csv"]

    def tables(self, directory: RunDirectory) -> dict[str, Table]:
        """Return each family's table, of all its cells."""
        cells = self.cells()
        return {
            family.name: directory.frames([cell for cell in cells if cell.family == family.name], "table.csv")
            for family in self.checks.families
        }

    def finish(self, directory: RunDirectory) -> None:
        """Judge the claims; write verdicts, tables, figures and page."""
        from theory_checks.report import finish  # matplotlib: only where a page is made

        finish(self.checks, directory, self.tables(directory))

    def report(self, directory: RunDirectory) -> Report:
        """Say what was found: the table of claims, the findings, and an alarm for each claim that came out wrong."""
        from theory_checks.report import terminal

        verdicts = directory.table("verdicts.csv")
        alarms = [f"{v.claim} is {v.verdict}: {v.reason}" for v in verdicts[verdicts["alarm"]].itertuples()]
        found = [f"• {line}" for line in read_json(directory.path / "findings.json", list)]
        counted = f"{len(verdicts)} claims, {len(alarms)} alarms"
        return Report((*terminal(verdicts), *found, counted), tuple(alarms))
