"""Owns the row type: what is run, beside what, how its answer is checked, and what must be reached.

A contender is a function that builds its workload and returns what is timed.  All contenders of a row see the same
numbers.  No row counts whose check fails; a peer that is not installed is named and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Answer = Mapping[str, Any]
"""What a run returns: arrays or numbers by name, for the check and for targets on figures."""


@dataclass(frozen=True)
class Contender:
    """One way to do the row's work, run in a process of its own.

    ``build(**settings)`` returns the function to be timed.  ``needs`` are modules that must be installed.  ``scale``
    multiplies the seconds of a run on a part of the workload.  ``repetitions`` overrides the row's, for slow peers; one
    that runs once is not warmed.  ``own`` marks another form of our own: it is told, and is nobody's peer.
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

    ``peer``: the fastest peer's seconds over ours, or those of the one named by ``against``, at least; ``limit``: ours
    over the limit's, at most; ``seconds`` and ``memory`` (GB, peak) of ours, at most; ``figure``: a number of our
    answer, by name, at most.
    """

    of: Literal["peer", "limit", "seconds", "memory", "figure"]
    threshold: float
    text: str
    figure: str = ""
    against: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the table.

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
    limit: Contender | None = None
    repetitions: int = 5
    warm: bool = True
    memory: Literal["all", "beside"] = "all"
    long: bool = False
    bound: str = ""
    profiled: bool = True

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """Everyone who is timed: ours first, then peers, then the limit."""
        return (self.ours, *self.peers, *((self.limit,) if self.limit else ()))
