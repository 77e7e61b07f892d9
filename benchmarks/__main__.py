"""The command line of the benchmarks: ``python -m benchmarks [ROW ...] [--option value]``."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bandits.core.errors import InputError
from bandits.runs.command import guard, read
from bandits.runs.directory import commit
from bandits.runs.figures import png
from bandits.runs.files import replaceable, write_bytes, write_text
from benchmarks.harness import report
from benchmarks.harness.measure import AbsentError, hardware, measure, prepare
from benchmarks.harness.row import ROWS, Row
from benchmarks.rows import __all__ as _registered  # noqa: F401  (importing the rows registers them)


@dataclass(frozen=True)
class Options:
    """Which rows to measure, and how."""

    rows: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """names of rows (default: all but the long ones)"""
    long: bool = False
    """the long rows too"""
    repetitions: int = 0
    """timed runs of every contender (0: each row's own number)"""
    threads: int = 0
    """of torch and OpenMP (0: one per core)"""
    profile: bool = True
    """run ours once more under the profiler"""
    output: Path = Path("results/bench")
    """folder of records and tables; rows measured before are kept there"""
    docs: Path | None = None
    """the page to write: docs/benchmarks.md when all rows are measured, none when some are named"""
    measure: bool = True
    """off: write the page from what this commit's records on this machine hold"""
    list: bool = False
    """list the rows and stop"""


def versions() -> dict[str, str]:
    """Return the versions of what is installed of torch, NumPy, SciPy and all that contenders need."""
    needed = {need for row in ROWS.values() for contender in row.contenders for need in contender.needs}
    owners = importlib.metadata.packages_distributions()
    names = ["torch", "numpy", "scipy", *sorted({owners[need][0] for need in needed if need in owners})]
    return {name: importlib.metadata.version(name) for name in names}


def chosen(options: Options) -> list[Row]:
    """Return the rows to measure; ``InputError`` for a name that is none."""
    if options.rows:
        return [ROWS[name] for name in options.rows]
    return [row for row in ROWS.values() if options.long or not row.long]


def bench(arguments: Sequence[str]) -> int:
    """Measure rows one by one, telling each when it is done; write the page; status 1 if an answer was wrong."""
    options = read(Options, arguments, "python -m benchmarks", __doc__)
    rows = chosen(options)
    if options.list:
        for row in ROWS.values():
            print(f"  {row.name:<24}{row.title}: {row.workload}{' (long)' if row.long else ''}")
        return 0
    if options.repetitions < 0 or options.threads < 0:
        raise InputError("--repetitions and --threads must not be negative")
    if not options.measure:
        if options.rows and not options.docs:
            raise InputError("--no-measure writes a page: name it with --docs, or name no rows")
        rows = []
    docs = options.docs or (None if options.rows else Path("docs/benchmarks.md"))
    if docs:
        replaceable(docs, "Benchmarks", "--docs")
    if rows:
        report.load(options.output)  # what is no record there is told before hours are spent
    threads = options.threads or os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that are forked from here
    prepare()
    machine, found, head = hardware(), versions(), commit()
    wrong = []
    for row in rows:
        load = os.getloadavg()[0]
        try:
            measured = measure(row, threads, options.repetitions or None, options.profile and row.profiled)
        except AbsentError as reason:
            print(f"{row.name}: not measured: {reason}", flush=True)
            wrong.append(row.name)
            continue
        entry = report.record(row, measured, machine, threads, found, head) | {"load": f"{load:.1f}"}
        report.save(options.output, entry)
        print(report.terminal(entry), flush=True)
        wrong += [] if entry["valid"] else [row.name]
    if docs:
        publish(options.output, docs, head, machine)
        print(f"page: {docs}")
    if wrong:
        print(f"not valid: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def publish(output: Path, docs: Path, commit: str, machine: Mapping[str, str]) -> None:
    """Write the page, and its figure in ``figures`` beside it, from the records of this commit on this machine.

    Raises ``InputError`` if there is none.
    """
    records = report.together(report.load(output), commit, machine)
    if not records:
        raise InputError(f"{output} holds no row of this commit on this machine; measure some: python -m benchmarks")
    grown = [entry for entry in records if entry["name"] in ("growth", "growth-long")]
    picture = Path("figures", f"{docs.stem}-growth.png")
    text = report.docs(records, list(ROWS.values()), picture.as_posix() if grown else None)
    if grown:
        write_bytes(docs.parent / picture, png(report.growth(grown[-1])))
    write_text(docs, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(bench, arguments)


if __name__ == "__main__":
    sys.exit(main())
