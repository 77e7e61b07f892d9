"""Owns ``activedpo loop``: where a project stands and its next command; and the loop with a reward model for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import ORACLES
from bandits.runs.command import guard, read, say
from bandits.runs.files import read_json
from bandits.runs.settings import Count, Positive, check
from labelling import select, train
from labelling.answers import Answer
from labelling.project import Project
from labelling.session import Session
from labelling.settings import Settings
from llm_loop.arena import TextArena
from llm_loop.rewards.scorers import LongTexts, checked, load_scorer
from llm_loop.setup import quiet_libraries

PROGRAM = "activedpo loop"


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Say where a project stands and what its next command is; or go on with a reward model in place of people."""

    project: Path
    """the project's directory"""
    simulate: Annotated[int, Ge(0)] = 0
    """batches to choose, have answered by --reward, and train on; 0: only say where the project stands"""
    reward: str = "sentiment-valence"
    """who answers in people's place: a registered scorer, or a classifier's directory or hub id"""
    long_texts: LongTexts = "refuse"
    """of a text that is longer than a classifier reads: refuse it, or cut, which scores its beginning"""
    label_temperature: Positive = 0.5
    """divides the rewards, so that their differences are log-odds"""
    budget: Count = 16
    """duels a batch"""


def run(arguments: Sequence[str]) -> int:
    """Run the command line."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--project", *arguments]
    options = read(Loop, arguments, PROGRAM, Loop.__doc__)
    check(options)
    project = Project(options.project.expanduser())
    project.manifest()
    with quiet_libraries():
        for _ in range(options.simulate):
            simulate(project, options)
    say(*stands(project))
    return 0


def stands(project: Project) -> list[str]:
    """Say where a project stands, a line each, and its next command."""
    kept, batches, answers = project.manifest(), project.batches, project.read_answers()
    settings = Settings.of(kept["settings"])
    lines = [f"{project.root}: model {settings.model}, strategy {settings.strategy}"]
    for batch in range(1, batches + 1):
        queries = project.read_queries(batch)
        names = {query.id for query in queries}
        said = {query for query, _ in answers.latest if query in names}
        split = len(answers.disagreements(queries))
        report = project.model(batch) / "training.json"
        trained = ", not trained on yet"
        if (project.model(batch) / "adapter_model.safetensors").exists():
            trained = f", trained on ({read_json(report, dict).get('answers')} answers)" if report.exists() else ""
        people = len({who for query, who in answers.latest if query in names})
        lines.append(
            f"batch {batch:02d}: {len(said)} of {len(queries)} queries answered by {people} "
            f"{'person' if people == 1 else 'people'}{f', {split} with disagreement' if split else ''}{trained}"
        )
    if not batches:
        following = f"activedpo select --project {project.root}"
    elif project.waiting():
        following = f"activedpo label {project.root}"
    elif not (project.model(batches) / "adapter_model.safetensors").exists():
        following = f"activedpo train {project.root}"
    else:
        following = f"activedpo select --project {project.root}"
    return [*lines, f"next: {following}"]


def simulate(project: Project, options: Loop) -> None:
    """Go one batch on: choose, let the reward model answer through the project's files, train."""
    settings = Settings.of(project.manifest()["settings"])
    if project.batches == 0 or (
        not project.waiting() and (project.model(project.batches) / "adapter_model.safetensors").exists()
    ):
        select.choose(select.Select(project=project.root, budget=options.budget, settings=settings))
    if project.waiting():
        answer(project, options)
    say(*(f"• {line}" for line in train.train(project, 0.0, False)))


def answer(project: Project, options: Loop) -> None:
    """Let the reward model answer what waits, by the numbers that would decide in the language-model loop."""
    work = train.opened(project)
    if work.table is not None:
        raise InputError("--simulate needs a pool of prompts alone, whose responses the model draws")
    settings = work.settings
    scorer = load_scorer(
        options.reward, settings.device, settings.dtype, settings.trust_remote_code, options.long_texts
    )
    batch = project.batches
    waiting, queries = set(project.waiting()), project.read_queries(batch)
    duels = _asked(work, batch, options, scorer)
    outcomes = TextArena.label(work.arena, duels).double().tolist()
    answers = project.read_answers()
    said = {1.0: ("left", "right"), 0.0: ("right", "left")}
    answers.extend(
        Answer.of(query, scorer.name, "tie" if outcome == 0.5 else said[outcome][query.swapped])  # type: ignore[arg-type]
        for query, outcome in zip(queries, outcomes, strict=True)
        if query.id in waiting
    )


def _asked(work: Session, batch: int, options: Loop, scorer: object) -> Duels:
    """Give the batch's table its true rewards, and return the batch's duels."""
    arena = work.arena
    offer = arena.offer(batch - 1)
    drawn = arena.table
    asked = [arena.prompts[i] for i in drawn.prompt_indices for _ in range(work.settings.responses)]
    arena.tables[batch - 1] = replace(drawn, rewards=checked(scorer, asked, drawn.texts))  # type: ignore[arg-type]
    arena.oracle, arena.temperature = ORACLES["btl"], options.label_temperature
    return offer.duels.take(work.past[-1].asked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
