"""A labelling project as one program that goes on from wherever it stands: a batch chosen, answered and trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bandits.runs.command import guard
from bandits.runs.files import write_text
from labelling import loop, select, train
from labelling.answers import Answer, Answers
from labelling.project import Project

PROJECT = Project(Path("results"))
ROWS = [{"prompt": f"Say {n}", "responses": [f"{word} {n}" for word in ("yes", "no", "maybe")]} for n in range(3)]


def run(arguments: Sequence[str]) -> int:
    """Choose a batch, unless there is one; have it answered, at a time that is always the same; train, if need be."""
    if not PROJECT.batches:
        write_text(Path("rows.jsonl"), "".join(json.dumps(row) + "\n" for row in ROWS))
        status = select.run(["--project", str(PROJECT.root), "--pool", "rows.jsonl", *arguments])
        if status:
            return status
    if PROJECT.trained(1):
        loop.run([str(PROJECT.root)])
        with PROJECT.held(), PROJECT.writing():  # as the next batch's select does
            return 0
    waiting = PROJECT.waiting()
    asked = [query for query in PROJECT.read_queries(1) if query.id in waiting]
    answers = [Answer.of(query, "ada", "left", "2026-01-31T12:00:00+00:00") for query in asked]
    Answers(PROJECT.answers_path).extend(answers)
    return train.run([str(PROJECT.root), "--held-out", "0", "--no-health"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; bad input is one line on standard error and exit status 2."""
    return guard(run, arguments)
