"""Owns ``activedpo loop``: where a project stands, and its next command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge

from bandits.runs.command import guard, read, say
from bandits.runs.files import read_json
from bandits.runs.settings import Count, Positive, check
from labelling.project import COPY, Project, located

PROGRAM = "activedpo loop"


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Say where a project stands and what its next command is; or go on with a reward model in place of people."""

    project: Annotated[Path, tyro.conf.Positional]
    """the project's directory"""
    simulate: Annotated[int, Ge(0)] = 0
    """batches to choose, have answered by --reward, and train on; 0: only say where the project stands"""
    reward: str = "sentiment-valence"
    """who answers in people's place: a registered scorer, or a classifier's directory or hub id"""
    long_texts: Literal["refuse", "cut"] = "refuse"
    """of a text that is longer than a classifier reads: refuse it, or cut, which scores its beginning"""
    label_temperature: Positive = 0.5
    """divides the rewards, so that their differences are log-odds"""
    budget: Count = 16
    """duels a batch"""


OPTIONS = Loop


def run(arguments: Sequence[str]) -> int:
    """Run the command line."""
    options = read(Loop, located(arguments), PROGRAM, Loop.__doc__)
    check(options)
    project = Project(options.project.expanduser())
    project.manifest()
    project.check()
    if options.simulate:
        from labelling.simulate import simulate  # models: only where one is asked for

        simulate(
            project, options.simulate, options.budget, options.reward, options.label_temperature, options.long_texts
        )
    say(*stands(project))
    return 0


def stands(project: Project) -> list[str]:
    """Say where a project stands, a line each, and its next command."""
    kept, batches, answers = project.manifest(), project.batches, project.read_answers()
    settings = kept["settings"]
    lines = [f"{project.root}: model {settings['model']}, strategy {settings['strategy']}"]
    for batch in range(1, batches + 1):
        queries = project.read_queries(batch)
        names = {query.id for query in queries}
        said = {query for query, _ in answers.latest if query in names}
        split = len(answers.disagreements(queries))
        report = project.model(batch) / "training.json"
        trained = ", not trained on yet"
        if project.trained(batch):
            told = read_json(report, dict, COPY).get("answers") if report.exists() else None
            trained = ", trained on" if told is None else f", trained on ({told} answers)"
        people = len({who for query, who in answers.latest if query in names})
        lines.append(
            f"batch {batch:02d}: {len(said)} of {len(queries)} queries answered by {people} "
            f"{'person' if people == 1 else 'people'}{f', {split} with disagreement' if split else ''}{trained}"
        )
    if not batches:
        following = f"activedpo select --project {project.root}"
    elif project.waiting():
        following = f"activedpo label {project.root}"
    elif not project.trained(batches):
        following = f"activedpo train {project.root}"
    else:
        following = f"activedpo select --project {project.root}"
    return [*lines, f"next: {following}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
