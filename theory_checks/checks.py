"""Owns what a claim is (one object), what a family of claims is, and where families are registered.

A claim is a number, measured from a family's table, against a threshold that was declared beforehand.  It could have
come out otherwise: identities and inequalities that hold by algebra are tests of the code, not claims.  A control is
a claim that must come out *refuted*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import pandas as pd

from bandits.core.errors import InputError
from bandits.core.registry import Registry
from bandits.runs import settings
from bandits.runs.page import Picture
from bandits.runs.settings import Count, Distinct, Ge, Le, MinLen, Names, Positive
from bandits.runs.stats import LEVEL, Estimate, Threshold, Verdict, joint_level, judge, replicates_needed, unconverged
from bandits.sim.truths import TRUTHS

ERROR_RATE = 0.01
"""Probability that any claim of a preset that should hold raises an alarm, if all of them are true."""

Several = Annotated[int, Ge(2), Le(10**6)]
"""a number of replicates that has an interval"""
Counts = Annotated[tuple[Count, ...], MinLen(1), Distinct()]
Places = Annotated[tuple[Count, ...], MinLen(2), Distinct()]
"""where a slope is measured"""
Positives = Annotated[tuple[Positive, ...], MinLen(1), Distinct()]
Truths = Annotated[tuple[str, ...], MinLen(1), Distinct(), Names(TRUTHS.__getitem__)]

Table = pd.DataFrame
Measure = Callable[[Table, float], Estimate]


@dataclass(frozen=True)
class Cell:
    """A family's unit of work: it runs alone, in any process, and a resumed run does not repeat it.

    Subclasses are frozen dataclasses of plain values.
    """

    @property
    def key(self) -> str:
        """The name of its folder, from its kind and its values."""
        values = (getattr(self, f.name) for f in fields(self))
        words = (format(value, "g") if isinstance(value, float) else str(value) for value in values)
        return "-".join([type(self).__name__.lower(), *words])

    @property
    def cost(self) -> float:
        """How long it takes, in a unit that the suite's cells share."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """A claim: ``measure(table, level)`` estimates a number with an interval at that level; it is to keep a threshold.

    ``expect`` says what a run that goes well finds.  holds: refuting it is an alarm.  fails: a negative control, not
    refuting it is an alarm.  open: nobody has proved it; whatever is found is a finding and no alarm.
    """

    name: str
    statement: str
    threshold: Threshold
    measure: Measure
    expect: Literal["holds", "fails", "open"] = "holds"
    setting: str = ""

    def __post_init__(self) -> None:
        for what, kind in (("name", str), ("statement", str), ("threshold", Threshold), ("setting", str)):
            if not isinstance(given := getattr(self, what), kind):
                raise InputError(f"claim {self.name}: its {what} is a {kind.__name__}, got {given!r}")
        if not callable(self.measure):
            raise InputError(f"claim {self.name}: measure is a function of a table and a level, got {self.measure!r}")
        if self.expect not in ("holds", "fails", "open"):
            raise InputError(f"claim {self.name}: expect is holds, fails or open, got {self.expect!r}")

    def measured(self, table: Table, level: float) -> Estimate:
        """Return the estimate; ``InputError``, naming the claim, for what is none."""
        try:
            found = self.measure(table, level)
        except InputError as error:
            raise InputError(f"claim {self.name}: {error}") from None
        if not isinstance(found, Estimate):
            raise InputError(f"claim {self.name}: measure returns an Estimate, got {found!r:.60}")
        return found


@dataclass(frozen=True)
class Result:
    """A claim, its estimate at 95 %, the verdict on it, and whether it raises an alarm."""

    check: Check
    estimate: Estimate
    verdict: Verdict
    alarm: bool

    @classmethod
    def of(cls, check: Check, table: Table, level: float) -> Result:
        """Judge a claim at 95 %; an alarm needs a refutation at ``level``, or a control that is not refuted at 95 %."""
        estimate = check.measured(table, LEVEL)
        verdict = judge(estimate, check.threshold)
        alarm = check.expect == "fails" and verdict.word != "refuted"
        if check.expect == "holds" and verdict.word == "refuted":
            alarm = judge(check.measured(table, level), check.threshold).word == "refuted"
        return cls(check, estimate, verdict, alarm)


def alarm_level(checks: Sequence[Check]) -> float:
    """Return the level of the two-sided intervals by which claims that should hold are refuted for an alarm.

    Bonferroni: ``n`` such claims err on their one side with probability ``ERROR_RATE/n`` each, and with at most
    ``ERROR_RATE`` all together.
    """
    return joint_level(sum(check.expect == "holds" for check in checks), 1 - 2 * ERROR_RATE)


def at(table: Table, **values: object) -> Table:
    """Return the rows of a table that have these values; ``InputError`` for a column that there is not."""
    for column, value in values.items():
        _there(table, column)
        table = table[table[column] == value]
    return table


def _there(table: Table, column: str) -> None:
    if column not in table:
        raise InputError(f"there is no column {column!r} in the table, which has {', '.join(map(str, table))}")


FITS = ("gradient_norm", "gradient_tangent")
"""Columns of relative gradient norms at the ends of fits."""


def unfitted(table: Table) -> str:
    """Say how many of the fits that a table's numbers rest on are no near-minimisers; "" if none."""
    return ", ".join(filter(None, (unconverged(table[name]) for name in FITS if name in table)))


def measured(
    estimate: Callable[[np.ndarray, float], Estimate], values: str | Callable[[Table], pd.Series], **cells: object
) -> Measure:
    """Measure by an estimator of a column, or of what a function makes of the table, in the rows with these values.

    Where these rows have a fit that did not end, nothing is judged.
    """

    def measure(table: Table, level: float) -> Estimate:
        part = at(table, **cells)
        if isinstance(values, str):
            _there(part, values)
        found = estimate((part[values] if isinstance(values, str) else values(part)).to_numpy(), level)
        return found.but(unmet=unfitted(part))

    return measure


C = TypeVar("C", bound=Cell)


class Family(ABC, Generic[C]):
    """A family of claims; abstract.  A frozen dataclass that is its own configuration."""

    name: ClassVar[str]
    """begins the names of its claims"""
    title: ClassVar[str]
    """what it is about, a sentence"""

    def __post_init__(self) -> None:
        with settings.under(self.name):
            settings.check(self)
            self.check_sizes()

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together; ``--width`` in it becomes ``--NAME.width``."""

    @abstractmethod
    def cells(self) -> Sequence[C]:
        """Return the units of work, the slowest first."""

    @abstractmethod
    def run(self, cell: C, seed: int, folder: Path) -> Table:
        """Run one cell, with a folder of its own for checkpoints; return a tidy table."""

    @abstractmethod
    def checks(self) -> list[Check]:
        """Declare the claims, each with how it is measured from the tables of all cells together."""

    def memory(self) -> dict[str, float]:
        """Estimate the bytes that a cell needs, each part by the options that it grows with."""
        return {}

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say what was found, with numbers."""
        return []

    def pictures(self, table: Table) -> list[Picture]:
        """Draw what was found."""
        return []

    def numbers(self, table: Table) -> Table:
        """Return a small table of numbers for the page; empty if there is none."""
        return pd.DataFrame()


AnyFamily = Family[Any]
F = TypeVar("F", bound=AnyFamily)


@dataclass(frozen=True)
class Sizes(Generic[F]):
    """A family at the size of every preset."""

    smoke: F
    quick: F
    full: F


def check_family(family: AnyFamily) -> None:
    """Raise ``InputError`` for cells that cannot have folders of their own, and claims that are not the family's."""
    cells, checks = family.cells(), family.checks()
    for what, given, kind in (("cells", cells, Cell), ("checks", checks, Check)):
        if not isinstance(given, list | tuple) or not given or not all(isinstance(one, kind) for one in given):
            raise InputError(f"family {family.name}: {what} returns a list of {kind.__name__}s, got {given!r:.60}")
    for what, names in (("cells with the key", [c.key for c in cells]), ("claims named", [c.name for c in checks])):
        name, times = Counter(names).most_common(1)[0]
        if times > 1:
            raise InputError(f"family {family.name}: {times} {what} {name:.60}")
    for key in (cell.key for cell in cells):
        if "/" in key or "\0" in key or len(key.encode()) > LONGEST_KEY:
            raise InputError(
                f"family {family.name}: a cell's values make its folder's name, at most {LONGEST_KEY} bytes without /, "
                f"got {key!r:.60}"
            )
    for check in checks:
        if not check.name.startswith(f"{family.name}/"):
            raise InputError(f"family {family.name}: its claims are named {family.name}/…, got {check.name!r:.60}")


LONGEST_KEY = 150


def _check_sizes(sizes: object) -> None:
    assert isinstance(sizes, Sizes)
    for family in (sizes.smoke, sizes.quick, sizes.full):
        if not isinstance(family, Family):
            raise InputError(f"a family is an object of a class that inherits from Family, got {family!r:.60}")
        if not (isinstance(family.title, str) and isinstance(family.name, str)):
            raise InputError(f"its name and title are texts, got {family.name!r:.60} and {family.title!r:.60}")
    if not sizes.quick.name.isidentifier():
        raise InputError("the name becomes an option, --NAME.replicates: it must be a Python name")


FAMILIES: Registry[Sizes[Any]] = Registry("family", _check_sizes)


def register(*, smoke: F, quick: F, full: F) -> None:
    """Add a family, at three sizes, to the suite: the one place that knows of it, in this package or in your code."""
    FAMILIES.register(getattr(quick, "name", "unnamed"), Sizes(smoke, quick, full))


def blocks(replicates: int, size: int) -> list[range]:
    """Split replicates into blocks of at most ``size``: units of parallel work and of resuming."""
    return [range(start, min(start + size, replicates)) for start in range(0, replicates, size)]


def check_replicates(option: str, replicates: int, delta: float) -> None:
    """Raise ``InputError``, naming the option, if not even full coverage could support a coverage of ``1 - δ``."""
    if 1 - delta == 1:
        raise InputError(f"--delta is too small for a coverage of 1 - delta, got {delta}")
    needed = replicates_needed(1 - delta)
    if replicates < needed:
        raise InputError(
            f"--{option} {replicates} cannot support a coverage of {1 - delta:g} at {LEVEL:.0%} "
            f"confidence; at least {needed} are needed (or a larger delta)"
        )
