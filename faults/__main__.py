"""The campaign's command line: ``python -m faults [--minutes 14] [--kinds kill damage ...]``; ``make faults``."""

from __future__ import annotations

import collections
import math
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import joblib

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.command import guard, read
from bandits.runs.settings import Ge, Seed, Whole, check
from faults import brought, damage, kills, settings, surroundings
from faults.harness import PROGRAMS, Case, attempt_all, contents, play, prepare
from labelling.project import RELIED_ON

# Runs so small that hundreds of them fit into minutes, and still with every kind of file that a run writes.
RUNS: dict[str, tuple[str, ...]] = {
    "simulate": (
        *("smoke", "--contenders", "random", "policy:activedpo-stale", "--replicates", "2", "--rounds", "2"),
        *("--batch", "2", "--prompts", "5", "--heldout", "3", "--width", "6", "--jobs", "1"),
    ),
    "theory": ("smoke", "--claims", "exact", "--jobs", "1"),
    "align": (
        *("smoke", "--strategies", "random", "--rounds", "1", "--heldout", "2", "--heldout-duels", "1"),
        *("--heldout-between", "1", "--probes", "1", "--jobs", "1"),
    ),
    "map": ("smoke", "--replicates", "2", "--redundancy", "0", "--rules", "activedpo", "--jobs", "1"),
    "project": (
        *("--model", "tiny-llama", "--rank", "4", "--alpha", "8", "--lora-layers", "1", "--sketch-size", "512"),
        *("--tokens", "8", "--rate", "1e-2", "--epochs", "1", "--budget", "3"),
    ),
}
FILES_ALONE = {"map": ("*",), "project": RELIED_ON}
"""programs of which kills and damage alone are tried, and their files (below ``results``) whose damage they notice"""
KINDS = ("kill", "damage", "setting", "command line", "surroundings", "place", "race", "disk", "text", "file")


@dataclass(frozen=True)
class Options:
    """Which cases to try, and how."""

    minutes: Annotated[float, Ge(0)] = 14.0
    """begin no case when so much time is over; cases come in turn over kinds and programs (0: no limit)"""
    sample: Whole = 0
    """try so many cases, drawn evenly over the kinds (0: all)"""
    seed: Seed = 0
    """of the order in which cases come"""
    kinds: tuple[str, ...] = KINDS
    """kinds of cases"""
    programs: tuple[str, ...] = tuple(PROGRAMS)
    """programs to try"""
    jobs: Whole = 0
    """cases tried side by side (0: one per core)"""
    whole: bool = False
    """every damage of every file, all moments of every write, every value of every option, where a few of them are:
    hours, which --minutes 0 allows"""
    verbose: bool = False
    """tell of each case, not of the failed ones alone"""


def cases(program: str, root: Path, kinds: Sequence[str], whole: bool) -> Iterator[Case]:
    """Yield all cases of a program, after one run that went well, which gives the bytes to expect."""
    arguments = RUNS[program]
    home = root / program
    counter = root / f"{program}.writes"
    good = play(program, arguments, home, before=kills.note_writes(counter))
    if good.failed:
        raise InputError(f"{program} does not run even undisturbed: {good.failed}")
    expected, writes = contents(home / "results"), counter.read_text(encoding="utf-8").splitlines()
    yield from kills.cases(program, arguments, expected, writes, whole)
    noticed = FILES_ALONE.get(program, ("*",))
    yield from damage.cases(program, arguments, expected, home / "results", "complete", whole, noticed)
    half = root / f"{program}-half"
    killed = play(program, arguments, half, before=kills.trap(len(writes) // 2, "after"))
    if killed.status == -signal.SIGKILL:
        yield from damage.cases(program, arguments, expected, half / "results", "half done", whole, noticed)
    if program in FILES_ALONE:
        return
    yield from settings.cases(program, arguments, whole)
    yield from settings.command_lines(program)
    yield from surroundings.streams(program, arguments, expected)
    yield from surroundings.places(program, ("smoke",))
    yield from surroundings.races(program, arguments, expected)
    yield from surroundings.disk(program, arguments, expected)
    if program == "align":
        yield from brought.cases()


def in_turn(every: list[Case], seed: int) -> list[Case]:
    """Return the cases in turn over the kinds of each program, each kind in an order drawn by the seed."""
    groups: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for place, case in enumerate(every):
        groups[case.kind, case.name.partition(" ")[0].rstrip(":,")].append(place)
    (generator,) = Key(seed).fold_in("sample").generators()
    shuffled = [generator.permutation(group).tolist() for group in groups.values()]
    turn = [
        place for round in range(max(map(len, shuffled))) for group in shuffled for place in group[round : round + 1]
    ]
    return [every[place] for place in turn]


def campaign(arguments: Sequence[str]) -> int:
    """Try all cases; print those that failed and ``N survived, M failed``; status 1 if any failed."""
    options = read(Options, arguments, "python -m faults", __doc__)
    check(options)
    for name, known, given in (("kinds", KINDS, options.kinds), ("programs", tuple(PROGRAMS), options.programs)):
        if strange := [one for one in given if one not in known]:
            raise InputError(f"--{name}: there is no {strange[0]!r}; choose from {', '.join(known)}")
    prepare()
    began = time.monotonic()
    over = began + 60 * options.minutes if options.minutes else math.inf
    survived = failed = 0
    kinds = collections.Counter[str]()

    def tell(case: Case, said: str) -> None:
        nonlocal survived, failed
        survived, failed = survived + (not said), failed + bool(said)
        kinds[case.kind] += 1
        if said or options.verbose:
            print(f"{'FAILED' if said else 'ok'}  {case.kind}: {case.name}{': ' if said else ''}{said}", flush=True)

    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as place:
        every = [case for program in options.programs for case in cases(program, Path(place), KINDS, options.whole)]
        every = [case for case in every if case.kind in options.kinds]
        chosen = in_turn(every, options.seed)[: options.sample or None]
        attempt_all(chosen, Path(place), options.jobs or joblib.cpu_count(), tell, over)
    told = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
    print(f"{told} in {time.monotonic() - began:.0f} s, of {len(every)} cases")
    print(f"{survived} survived, {failed} failed")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(campaign, arguments)


if __name__ == "__main__":
    sys.exit(main())
