"""Owns how a run is carried out: a cell from its last recorded round to its tables, and cells side by side.

Knows nothing of the report.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor
from tqdm import tqdm

from bandits.core.oracles import ORACLES, Oracle
from bandits.loop import play
from bandits.runs.legacy import RunDirectory, read_json
from bandits.selector import STRATEGIES, FeatureSpace, Strategy
from llm_loop import measures, tables
from llm_loop.arena import Completions, Table
from llm_loop.config import Alignment
from llm_loop.data.chat import from_json
from llm_loop.journal import Journal, Record
from llm_loop.launch import is_main, main_first, processes, wait
from llm_loop.measures import Fixed
from llm_loop.models import Row
from llm_loop.setup import Setup, build, quiet_libraries

STAGES = {"generated": "generate", "scored": "score", "features": "features", "trained": "train"}
"""What a round's tokens are counted under, by column; measuring on held-out prompts is not counted."""

COMPARED = FeatureSpace(normalise="response")
"""Where the widths of a strategy that reads none are measured, if they are: ActiveDPO's space in practice."""


@dataclass(frozen=True)
class Cell:
    """One strategy with one seed."""

    strategy: str
    seed: int

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.strategy}--seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A run: its config, and the strategies and the oracle that the config names, which travel to the workers."""

    alignment: Alignment
    strategies: Mapping[str, Strategy]
    oracle: Oracle

    @classmethod
    def of(cls, alignment: Alignment) -> Study:
        """Look the names up."""
        strategies = {name: STRATEGIES[name] for name in alignment.strategies}
        return cls(alignment, strategies, ORACLES[alignment.labels])

    @property
    def cells(self) -> list[Cell]:
        """All cells, seed by seed."""
        return [Cell(name, seed) for seed in range(self.alignment.seeds) for name in self.strategies]

    def check(self) -> None:
        """Put the first cell together without playing it, so that what cannot be is said before anything is written."""
        with quiet_libraries():
            setup = build(self.alignment, self.strategies[self.cells[0].strategy], self.oracle, self.cells[0].seed)
        if setup.left_out and is_main():
            print(f"prompts left out: {setup.left_out}")

    def play(self, cell: Cell, folder: Path) -> None:
        """Carry out one cell from its last recorded round on.

        Under ``accelerate launch`` all processes play the same cell on the same key and share the work of DPO alone;
        only the main one writes.
        """
        # Cells run side by side on a CPU; and one thread sums in one order.
        with quiet_libraries(1 if self.alignment.device == "cpu" else None):
            with main_first():
                setup = build(self.alignment, self.strategies[cell.strategy], self.oracle, cell.seed)
                journal = Journal(folder, write=is_main())
            wait()  # no process looks for records after the first new one is written
            play_on(setup, journal)
        if journal.write:
            write_tables(cell, journal)


def play_on(setup: Setup, journal: Journal) -> None:
    """Play all rounds that the journal does not have yet."""
    alignment, policy, learner, arena = setup.alignment, setup.policy, setup.learner, setup.arena
    if not journal.rounds:
        fixed = measures.draw_fixed(setup)
        first = {"row": {"labels": 0}, "fixed": fixed.record} | measures.answer(setup, fixed, initial=True)
        journal.append(first, policy)
    fixed = Fixed.of(setup, journal.rounds[0]["fixed"])
    replay = [_recall(setup, journal, number) for number in range(1, len(journal.rounds))]
    # A width is judged against the margin's error, so a strategy that reads widths gets margins to be judged by.
    looks = alignment.diagnostics or "width" in setup.strategy.reads
    space = setup.strategy.space if "width" in setup.strategy.reads else COMPARED
    grown = space.gradients != "current" and space.weight == "none"
    if looks:
        initial = last = _probe(setup, fixed, policy.initial)
        if replay:
            last = _probe(setup, fixed, replay[-1][1])
    rounds = play(arena, learner, setup.strategy, alignment.schedule, setup.key, replay, COMPARED if looks else None)
    for round in rounds:
        spent = {f"tokens_{name}": policy.meter.tokens[stage] - arena.spent[stage] for name, stage in STAGES.items()}
        row = (
            {"labels": (round.number + 1) * alignment.batch}
            | spent
            | measures.pool_row(round, arena.table, alignment.label_temperature, grown)
            | {"zero_A_gradient_share": learner.zero_share(arena.table.items.rows)}
            | measures.fit_row(round.fit)
        )
        if looks:
            now = _probe(setup, fixed)
            row |= measures.drift_row(now, initial, last)
            last = now
        record = {
            "row": row,
            "picks": round.picks.tolist(),
            "candidates": measures.candidates(round, arena.table, arena.prompts),
            "preferences": measures.preferences(round, arena.table, arena.prompts),
            "table": _table(setup),
        }
        journal.append(record | measures.answer(setup, fixed), policy)


def _probe(setup: Setup, fixed: Fixed, theta: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the features of a few fixed responses, at θ or where the policy is."""
    probes = fixed.rows[: setup.alignment.evaluation.probes]
    with setup.policy.at(dict(theta) if theta else setup.policy.state()):
        return setup.learner.gradients(probes, "probe").values


def _table(setup: Setup) -> Record:
    """Return the round's table as JSON values."""
    table = setup.arena.table
    return {
        "prompt_indices": list(table.prompt_indices),
        "responses": [list(row.response) for row in table.items.rows],
        "texts": list(table.texts),
        "log_probs": table.items.log_probs.tolist(),
        "rewards": table.rewards.tolist(),
        "reference": setup.learner.reference(table.items.rows).tolist(),
    }


def _recall(setup: Setup, journal: Journal, number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Put a recorded round's table back into the arena; return its picks and θ after it."""
    arena, record = setup.arena, journal.rounds[number]
    table, k = record["table"], setup.alignment.responses
    encoded = [arena.encoded[i] for i in table["prompt_indices"] for _ in range(k)]
    rows = tuple(Row(p, tuple(r)) for p, r in zip(encoded, table["responses"], strict=True))
    log_probs, rewards, reference = (
        torch.tensor(table[name], dtype=torch.float64) for name in ("log_probs", "rewards", "reference")
    )
    items = Completions(rows, k, log_probs)
    arena.tables[number - 1] = Table(items, tuple(table["texts"]), rewards, tuple(table["prompt_indices"]))
    setup.learner.note(rows, reference=reference)
    return torch.tensor(record["picks"]), journal.theta(number, setup.policy)


def write_tables(cell: Cell, journal: Journal) -> None:
    """Write a cell's tables from its journal, rounds last: where they are, the cell is done."""
    for kind in tables.KINDS:
        rows = []
        for number, record in enumerate(journal.rounds):
            for row in [record["row"]] if kind is tables.Round else record.get(kind.table, []):
                prompt = {"prompt": from_json(row["prompt"])} if "prompt" in row else {}
                rows.append(kind(strategy=cell.strategy, seed=cell.seed, round=number, **(row | prompt)))
        tables.write(kind, journal.folder, rows)


def run(study: Study, directory: RunDirectory, jobs: int = 0) -> None:
    """Run all cells that are not done yet; ``jobs`` side by side (0: one per core; one on CUDA); no byte changes."""
    todo = [cell for cell in study.cells if not tables.path_of(tables.Round, directory.cell(cell.key)).exists()]
    if study.alignment.device == "cuda" or processes() > 1:
        jobs = 1
    jobs = min(jobs if jobs > 0 else joblib.cpu_count(), max(1, len(todo)))
    folders = [directory.cell(cell.key) for cell in study.cells]
    with (
        tqdm(
            total=len(folders) * (study.alignment.rounds + 1), desc="rounds", disable=not todo or not is_main()
        ) as bar,
        _Watched(bar, folders),
    ):
        work = (joblib.delayed(study.play)(cell, directory.cell(cell.key)) for cell in todo)
        joblib.Parallel(n_jobs=jobs)(work)
    wait()
    if is_main():
        directory.note_timing({folder.name: read_json(folder / "timing.json") for folder in folders})


class _Watched:
    """Move a progress bar by the records that appear in the cells' folders."""

    def __init__(self, bar: Any, folders: Sequence[Path]) -> None:
        self._bar, self._folders, self._over = bar, folders, threading.Event()
        self._bar.initial = self._bar.n = self._count()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _count(self) -> int:
        return sum(1 for folder in self._folders for _ in (folder / "records").glob("round-*.json"))

    def _follow(self) -> None:
        while not self._over.wait(1.0):
            self._bar.update(self._count() - self._bar.n)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._bar.update(self._count() - self._bar.n)
