"""Owns the row type: what is run, beside what, how its answer is checked, and what must be reached.

A contender is a function that builds its workload and returns what is timed.  All contenders of a row see the same
numbers.  No row counts whose check fails; a peer that is not installed is named and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bandits.core.errors import InputError
from bandits.core.registry import Registry

Answer = Mapping[str, Any]
"""What a run returns: arrays or numbers by name, for the check and for targets on figures."""


@dataclass(frozen=True)
class Contender:
    """One way to do the row's work, run in a process of its own.

    ``build(**settings)`` returns the function to be timed.  ``needs`` are modules that must be installed.  ``scale``
    multiplies the seconds of a run on a part of the workload.  ``repetitions`` overrides the row's, for slow peers; one
    that runs once is not warmed.  ``own`` marks another form of our own: it is shown, and counts as no peer.
    """

    name: str
    build: Callable[..., Callable[[], Answer]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    scale: float = 1.0
    repetitions: int | None = None
    own: bool = False


@dataclass(frozen=True)
class Check:
    """Whether the answers agree with the slow float64 reference, and in which words."""

    passed: bool
    text: str


@dataclass(frozen=True)
class Target:
    """What must be reached.

    ``peer``: the fastest peer's seconds over ours, or those of the one named by ``against``, at least; ``yardstick``
    and ``limit``: ours over the yardstick's or the limit's, at most; ``seconds`` and ``memory`` (GB, peak) of ours, at
    most; ``figure``: a number of our answer, by name, at most.  ``unit`` is the figure's; a share is told in ``%``.
    """

    of: Literal["peer", "yardstick", "limit", "seconds", "memory", "figure"]
    threshold: float
    text: str
    figure: str = ""
    against: str = ""
    unit: Literal["", "GB", "%"] = ""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    ``yardstick`` is a plain form of the work that ours is measured by and may beat; ``limit`` is what the machine
    allows (``benchmarks.harness.limit``): ours cannot beat it, and a row where it does is not valid.
    ``check`` sees every contender's first answer.  ``bound`` says what bounds the row where a target is missed.
    ``memory`` says which memory counts: all of it, or what lies ``beside`` mapped files.  ``warm`` runs everything once
    before timing.  ``long`` rows are left out unless asked for;
    ``profiled`` rows are run once more under the profiler.
    """

    name: str
    title: str
    workload: str
    ours: Contender
    check: Callable[[Mapping[str, Answer]], Check]
    targets: tuple[Target, ...]
    peers: tuple[Contender, ...] = ()
    yardstick: Contender | None = None
    limit: Contender | None = None
    repetitions: int = 5
    warm: bool = True
    memory: Literal["all", "beside"] = "all"
    long: bool = False
    bound: str = ""
    profiled: bool = True

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """Everything that is timed: ours first, then peers, the yardstick and the limit."""
        return (self.ours, *self.peers, *(c for c in (self.yardstick, self.limit) if c))


def _check(row: object) -> None:
    if not isinstance(row, Row) or not row.targets:
        raise InputError("it must be a benchmarks.harness.row.Row with a target")


ROWS = Registry[Row]("benchmark row", _check)
"""Every row that can be measured, in the table's order; ``register`` adds to it, here or in a script of one's own."""


def register(*rows: Row) -> None:
    """Add rows to the table under their own names."""
    for row in rows:
        ROWS.register(row.name, row)
