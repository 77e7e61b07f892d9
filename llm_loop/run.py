"""Owns how a run is carried out: its cells, a cell from its last recorded round to its tables, and its page."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bandits.loop import Round, play
from bandits.runs.directory import Identity, RunDirectory, config_of
from bandits.runs.execute import Report
from bandits.runs.files import read_json
from bandits.selector import FeatureSpace
from llm_loop import launch, measures, tables
from llm_loop.arena import Completions, Table
from llm_loop.config import LIBRARIES, Alignment
from llm_loop.data.chat import from_json
from llm_loop.journal import Journal, Record
from llm_loop.learner import Fit
from llm_loop.measures import Fixed
from llm_loop.models import Row
from llm_loop.setup import Parts, Setup, build, check, inputs, quiet_libraries

STAGES = {"generated": "generate", "scored": "score", "features": "features", "trained": "train"}
"""What a round's tokens are counted under, by column; measuring on held-out prompts is not counted."""

COMPARED = FeatureSpace(normalise="response")
"""Where the widths of a strategy that reads none are measured, if they are: ActiveDPO's space in practice."""


@dataclass(frozen=True)
class Cell:
    """One strategy with one seed."""

    strategy: str
    seed: int
    cost: float = 1.0

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.strategy}--seed{self.seed}"


@dataclass(frozen=True)
class AlignmentStudy:
    """A run: its config, and the objects that the config's names stand for."""

    alignment: Alignment
    parts: Parts
    experiment: str = "llm"

    @classmethod
    def of(cls, alignment: Alignment) -> AlignmentStudy:
        """Look the names up."""
        return cls(alignment, Parts.of(alignment))

    @property
    def gpu(self) -> bool:
        """Whether a cell wants a GPU of its own."""
        return self.alignment.device == "cuda"

    def identity(self) -> Identity:
        """What determines the bytes of its results."""
        return Identity(
            config_of(self.alignment),
            ("bandits", "llm_loop"),
            self.parts.fingerprint(),
            inputs(self.alignment),
            LIBRARIES,
        )

    def memory(self) -> dict[str, float]:
        """Estimate a cell's bytes by the options that they grow with."""
        return self.alignment.memory()

    def count(self) -> int:
        """How many cells there are."""
        return self.alignment.seeds * len(self.alignment.strategies)

    def cells(self) -> list[Cell]:
        """All cells, seed by seed; gradients cost about a third of what the rest of a round does."""
        return [
            Cell(name, seed, 1.3 if "width" in strategy.reads else 1.0)
            for seed in range(self.alignment.seeds)
            for name, strategy in self.parts.strategies.items()
        ]

    def prepare(self) -> None:
        """Put a cell together before anything is written, so that what cannot be is refused then; tell what is slow."""
        check(self.alignment, self.parts)
        with quiet_libraries():
            setup = build(self.alignment, self.parts, self.alignment.strategies[0], 0)
        if slow := setup.policy.route.summary:
            print(f"model {self.alignment.model} disagrees with the fastest ways, so: {slow}", file=sys.stderr)

    def play(self, cell: Cell, folder: Path) -> list[str]:
        """Play a cell from its last recorded round on; write its tables; return the files that the run relies on."""
        launch.share((cell, folder))
        return self._play(cell, folder)

    def _play(self, cell: Cell, folder: Path) -> list[str]:
        with launch.agreed(), quiet_libraries():
            with launch.main_first():
                setup = build(self.alignment, self.parts, cell.strategy, cell.seed)
                journal = Journal(folder, self.alignment.rounds, launch.is_main())
            launch.wait()  # no process looks for records after the first new one is written
            play_on(setup, journal)
        return [*journal.files, *(write_tables(cell, journal) if journal.write else [])]

    def follow(self) -> None:
        """Play what the main process plays, until it has no more; under a launcher, in all other processes."""
        while (told := launch.share()) is not None:
            self._play(*told)

    def finish(self, directory: RunDirectory) -> None:
        """Write tables, figures and page."""
        from llm_loop.report.page import write  # matplotlib: only where a page is made

        write(directory.path)

    def report(self, directory: RunDirectory) -> Report:
        """Say what was found."""
        return Report(tuple(f"• {line}" for line in read_json(directory.path / "findings.json", list)))


def play_on(setup: Setup, journal: Journal) -> None:
    """Play all rounds that the journal does not have yet."""
    alignment, policy, learner, arena = setup.alignment, setup.policy, setup.learner, setup.arena
    if not journal.rounds:
        fixed = measures.draw_fixed(setup)
        first = {"row": {"labels": 0}, "left_out": setup.left_out, "fixed": fixed.record} | measures.answer(
            setup, fixed, initial=True
        )
        journal.append(first, policy)
    fixed = Fixed.of(setup, journal.rounds[0]["fixed"])
    if setup.strategy.reads & {"target", "truth"}:
        arena.aim_at(fixed.rows, fixed.rewards, learner.reference(fixed.rows))
    replay = [_recall(setup, journal, number) for number in range(1, len(journal.rounds))]
    # A width is judged against the margin's error, so a strategy that reads widths gets margins to be judged by.
    looks = alignment.diagnostics or "width" in setup.strategy.reads
    if looks:
        initial = last = _probe(setup, fixed, policy.initial)
        if replay:
            last = _probe(setup, fixed, replay[-1][1])
    rounds: Iterator[Round[Completions, Fit]] = play(
        arena,
        learner,
        setup.strategy,
        alignment.schedule,
        alignment.ridges,
        setup.key,
        replay,
        COMPARED if looks else None,
    )
    for round in rounds:
        assert round.fit is not None  # every round is fitted
        spent = {f"tokens_{name}": policy.meter.tokens[stage] - arena.spent[stage] for name, stage in STAGES.items()}
        row = (
            {"labels": (round.number + 1) * alignment.batch}
            | spent
            | measures.pool_row(round, arena.table, alignment.label_temperature)
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


def write_tables(cell: Cell, journal: Journal) -> list[str]:
    """Write a cell's tables from its journal; return their files' names."""
    names = []
    for kind in tables.KINDS:
        rows = []
        for number, record in enumerate(journal.rounds):
            for row in [record["row"]] if kind is tables.Round else record.get(kind.table, []):
                prompt = {"prompt": from_json(row["prompt"])} if "prompt" in row else {}
                rows.append(kind(strategy=cell.strategy, seed=cell.seed, round=number, **(row | prompt)))
        tables.write(kind, journal.folder, rows)
        names.append(tables.path_of(kind, journal.folder).name)
    return names
