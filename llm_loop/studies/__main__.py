"""The paper's figures as studies, in as many sittings as they take: ``python -m llm_loop.studies STUDY``.

A study is a few runs of the loop and what is read off them.  Every run goes on where it stopped, also shared out by
``--cells i/n``; after each call the table, the figure and the page of the study say what the finished seeds show, so
nothing waits for the last cell.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro
from matplotlib.figure import Figure

from bandits.core.errors import InputError, unknown
from bandits.runs import command
from bandits.runs.directory import Ledger, Part, RunDirectory
from bandits.runs.execute import execute, in_words
from bandits.runs.figures import png
from bandits.runs.files import write_bytes, write_frame, write_text
from bandits.runs.settings import Whole, afford, check
from llm_loop.__main__ import COMMAND
from llm_loop.forecast import forecast
from llm_loop.run import AlignmentStudy
from llm_loop.studies import figures, page
from llm_loop.studies.matrix import EVALUATIONS, MATRICES, PICKS, MatrixStudy
from llm_loop.studies.meter import foretold
from llm_loop.studies.plans import STUDIES, Preset, Study, pages
from llm_loop.studies.read import DIGITS, Found, about, finished, kept, read, run_of

MATRIX = "2"
MATRIX_TITLE = "Figure 2: different models need different data"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a study is played."""

    preset: Preset = "smoke"
    """smoke: every run on a tiny model, in seconds; full: the real one, in hours"""
    output: Path = Path("results")
    """where the runs are"""
    pages: Path = Path("docs/studies")
    """where a full study's table, figure and page are written; those of the smoke preset stay beside its runs"""
    part: tuple[str, ...] = ()
    """play these runs of the study alone, by the names that its page has"""
    again: bool = False
    """play also what the study's table holds whole already"""
    cells: str = "1/1"
    """the i-th of n parts of the cells, as i/n"""
    jobs: Whole = 0
    """cells side by side; 0: one per core"""
    show: Annotated[bool, tyro.conf.arg(name="show-only")] = False
    """play nothing; write down what the finished cells show"""
    dry: Annotated[bool, tyro.conf.arg(name="dry-run")] = False
    """play nothing; tell what each run will take, and all that are left"""

    def __post_init__(self) -> None:
        check(self)
        Part.of(self.cells)

    @property
    def folder(self) -> Path:
        """Where the study's files go."""
        return self.pages if self.preset == "full" else self.output / "studies"

    def table(self, name: str) -> Path:
        """Where a study's table is."""
        return self.folder / f"{_stem(name)}.csv"


def play(name: str, options: Options) -> int:
    """Play what is missing of a study, then write its table, and figure and page of every study that reads it."""
    study, found = STUDIES[name], dict[str, Found]()
    forecasts: list[dict[str, Any]] = []
    parts, cells, table = study.parts(options.preset), Part.of(options.cells), options.table(study.table or name)
    for unheard in set(options.part) - {part.name for part in parts}:
        raise unknown(f"--part of study {name},", unheard, [part.name for part in parts])
    left = 0.0
    for part in parts:
        arguments = [
            "smoke" if options.preset == "smoke" else "quick",
            *part.words,
            *("--output", str(options.output), "--cells", options.cells, "--jobs", str(options.jobs)),
        ]
        run, directory = run_of(arguments)
        lasting = kept(part, table)
        asked = not options.show and (not options.part or part.name in options.part)
        if asked and not options.again and lasting.whole(run.alignment):
            command.say(f"{part.name}: {_kept_line(table, lasting)}")
            asked = False
        if options.dry:
            left += _told(part.name, run, directory, cells, options.jobs) if asked else 0.0
            continue
        if study.metered:
            forecasts += foretold(run, options.output, study.metered, (cells.index, cells.count), asked)
        if asked and (status := command.run(COMMAND, arguments)):
            return status
        found[part.name] = max(finished(part, run, directory, study.exact), lasting, key=lambda one: one.seeds)
    if options.dry:
        some = "not known, since not all could be timed" if math.isnan(left) else f"about {in_words(left)}"
        command.say(f"in all: {some if left else 'nothing is left to play'}")
        return 0
    if not any(len(one.table) for one in found.values()):
        command.say("no seed of this study is finished yet")
        return 0
    write_frame(table, pd.concat([one.table for one in found.values() if len(one.table)], ignore_index=True))
    for other, reading in pages(name).items():
        written = write(other, reading, found, forecasts, options)
        if other == name:
            command.say(f"page: {written}")
    return 0


def _kept_line(table: Path, lasting: Found) -> str:
    return f"kept from {table}, commit {lasting.of_run('commit')}; --again plays it anew"


def _told(name: str, run: AlignmentStudy, directory: RunDirectory, part: Part, jobs: int) -> float:
    """Tell what the unfinished cells of a run will take; return the seconds."""
    told = forecast(run, directory, jobs, part)
    command.say(f"{name}:", *told.lines)
    return told.seconds


def write(
    name: str, study: Study, found: Mapping[str, Found], forecasts: Sequence[Mapping[str, Any]], options: Options
) -> Path:
    """Write a study's figure and page; return the page."""
    table = pd.concat([one.table for one in found.values() if len(one.table)], ignore_index=True)
    saved = page.saved_of(study, table)
    told = page.Told(_stem(name), options.preset, _lasting(forecasts, options.folder / f"{_stem(name)}-foretold.csv"))
    drawing = figures.drawn(study, table, saved, page.sketched(table))
    lines = page.written(name, study, study.parts(options.preset), found, saved, told)
    return _written(told.stem, drawing, lines, options)


def _lasting(forecasts: Sequence[Mapping[str, Any]], file: Path) -> list[dict[Hashable, Any]]:
    """Return what was foretold, which outlives its run as the study's table does, and write it down."""
    made, kept = pd.DataFrame(forecasts), read(file)
    lasting = kept if len(kept) > len(made) else made
    if len(lasting):
        write_frame(file, lasting)
    return lasting.to_dict("records")


def _stem(name: str) -> str:
    return f"figure-{name}" if name.isdigit() else name


def _written(stem: str, drawing: Figure, lines: Sequence[str], options: Options) -> Path:
    write_bytes(options.folder / f"{stem}.png", png(drawing))
    write_text(options.folder / f"{stem}.md", "\n".join(lines) + "\n")
    return options.folder / f"{stem}.md"


def play_matrix(options: Options) -> int:
    """Play what is missing of Figure 2, then write its table, figure and page."""
    if options.part:
        raise InputError(f"--part: study {MATRIX} is one run, without parts")
    study = MatrixStudy.of(MATRICES[options.preset][1])
    directory = RunDirectory(options.output, study.experiment, options.preset, study.identity())
    lasting = Found(read(options.table(MATRIX)))  # its run may be gone
    asked = not options.show
    if asked and not options.again and lasting.seeds == study.matrix.alignment.seeds:
        command.say(_kept_line(options.table(MATRIX), lasting))
        asked = False
    if options.dry:
        directory.admit()
        command.say(*study.forecast(directory, options.jobs, Part.of(options.cells)) if asked else ())
        return 0
    if asked:
        afford(study.memory(), study.count(), "--seeds", options.jobs, False)
        directory.admit()
        if not directory.complete(study.cells()):
            execute(study, directory, options.jobs, cells=Part.of(options.cells))
    found = max(played(study, directory), lasting, key=lambda one: one.seeds)
    if not found.seeds:
        command.say("no seed of this study is finished yet")
        return 0
    command.say(f"page: {write_matrix(study, found, options)}")
    return 0


def played(study: MatrixStudy, directory: RunDirectory) -> Found:
    """Return the seeds of the run whose three preference sets are finished."""
    done = [cell for cell in study.cells() if Ledger(directory.cell(cell)).whole]
    seeds = [seed for seed in range(study.matrix.alignment.seeds) if sum(cell.seed == seed for cell in done) == 3]
    if not seeds:
        return Found(pd.DataFrame())
    cells = [cell for cell in done if cell.seed in seeds]
    gains = page.gains_of(directory.frames(cells, EVALUATIONS), directory.frames(cells, PICKS))
    return Found(gains.assign(**about(directory)).round(DIGITS))


def write_matrix(study: MatrixStudy, found: Found, options: Options) -> Path:
    """Write Figure 2's table, figure and page; return the page."""
    gains = found.table
    comparison = page.contrasts(gains)
    a = study.matrix.alignment
    made = [
        f"`python -m llm_loop.studies {MATRIX} --preset {options.preset}` goes on where it stopped: "
        f"{found.seeds} of {a.seeds} paired seeds are finished. {a.model}, tuned on "
        f"{' and on '.join(study.matrix.sets)} ({a.tuning.examples} answers of each at most, read "
        f"{_times(a.tuning.epochs)}, LoRA at rate {a.tuning.rate:g}); a pool of {a.pool} prompts ({a.prompts}) with "
        f"{a.responses} responses, half of them by either model; {a.rounds} rounds of {a.batch} labels, chosen by "
        f"{a.strategies[0]}; then DPO of "
        "both models on all labels, each from where it began.",
        "",
        f"Computed on: {found.of_run('machine')}; commit {found.of_run('commit')}.",
    ]
    lines = page.matrix_page(MATRIX_TITLE, gains, comparison, made, _stem(MATRIX))
    write_frame(options.table(MATRIX), gains)
    return _written(_stem(MATRIX), figures.matrix(gains, comparison), lines, options)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def run(arguments: Sequence[str]) -> int:
    """Play the named study."""
    known = {name: study.title for name, study in STUDIES.items()} | {MATRIX: MATRIX_TITLE}
    if not arguments or arguments[0] in ("-h", "--help"):
        command.say(
            "usage: python -m llm_loop.studies STUDY [--preset smoke|full] [--part NAME ...] [--cells i/n]\n\nstudies:"
        )
        command.say(*(f"  {name:<11}{title}" for name, title in sorted(known.items())))
        return 0 if arguments else 2
    name = arguments[0].removeprefix("figure-")
    if name not in known:
        raise unknown("study", name, known)
    options = command.read(Options, arguments[1:], f"python -m llm_loop.studies {name}")
    return play_matrix(options) if name == MATRIX else play(name, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
