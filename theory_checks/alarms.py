"""Owns how often the suite raises false alarms: it plays the suite on fresh seeds and counts.

``python -m theory_checks.alarms smoke --seeds 20`` (or ``make alarms SEEDS=20``).  A suite that was tuned to one seed
passes on that seed alone; this command says whether alarms are as rare as ``checks.ERROR_RATE`` promises.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from scipy import stats

from bandits.core.errors import unknown
from bandits.runs.command import guard, read
from bandits.runs.directory import RunDirectory
from bandits.runs.execute import execute
from bandits.runs.settings import Count, Whole, check
from theory_checks.checks import ERROR_RATE, Result
from theory_checks.study import PRESETS, TheoryStudy, suite

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Alarms:
    """Play the suite on fresh seeds and count its alarms; exit status 1 if more than the stated rate allows."""

    preset: Annotated[str, tyro.conf.Positional] = "smoke"
    """smoke, quick or full"""
    seeds: Count = 20
    """how many seeds"""
    first: Whole = 1
    """the first of them; 0 is the presets' own"""
    claims: tuple[str, ...] = ()
    """families, or names of claims, to check (default: all)"""
    output: Path = Path("results")
    """folder of all results; what was played before is not played again"""
    jobs: Whole = 0
    """cells run side by side (0: one per core)"""


def allowed(runs: int, rate: float = ERROR_RATE) -> int:
    """Return how many runs may raise an alarm: true claims exceed it in at most 5 % of such campaigns."""
    return int(stats.binom.ppf(CONFIDENCE, runs, rate))


def play(options: Alarms, seed: int) -> list[Result]:
    """Play the suite with a seed; return the verdicts on all claims."""
    study = TheoryStudy(replace(suite(options.preset), seed=seed, claims=options.claims))
    directory = RunDirectory(options.output, study.experiment, options.preset, study.identity())
    directory.admit()
    execute(study, directory, options.jobs)
    tables = study.tables(directory)
    return [result for family in study.checks.families for result in study.checks.judge(family, tables[family.name])]


def count(arguments: Sequence[str]) -> int:
    """Play all seeds, print their alarms, and return 1 if they are too many."""
    options = read(Alarms, arguments, "python -m theory_checks.alarms")
    if options.preset not in PRESETS:
        raise unknown("preset", options.preset, PRESETS)
    check(options)
    alarmed = 0
    for seed in range(options.first, options.first + options.seeds):
        results = play(options, seed)
        alarms = [r for r in results if r.alarm]
        alarmed += bool(alarms)
        print(f"seed {seed}: {len(alarms)} alarms in {len(results)} claims", flush=True)
        for r in alarms:
            print(f"  {r.check.name} ({r.check.expect}) is {r.verdict.word}: {r.verdict.reason}", flush=True)
    most = allowed(options.seeds)
    word = "within" if alarmed <= most else "more than"
    print(
        f"{alarmed} of {options.seeds} runs of {options.preset} raised an alarm: {word} the {most} that a rate of at "
        f"most {ERROR_RATE:.0%} a run allows (exceeded in at most {1 - CONFIDENCE:.0%} of such campaigns)"
    )
    return int(alarmed > most)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(count, arguments)


if __name__ == "__main__":
    sys.exit(main())
