"""Owns how a run is carried out: its cells, a cell from its last recorded round to its tables, and its page."""

from __future__ import annotations

import gc
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.loop import Round, play
from bandits.runs.directory import Identity, RunDirectory, config_of
from bandits.runs.execute import Study
from bandits.selector import FeatureSpace
from llm_loop import launch, measures, tables
from llm_loop.arena import Completions, DrawnArena, Table, TextArena
from llm_loop.config import LIBRARIES, Alignment
from llm_loop.data.chat import from_json
from llm_loop.journal import Journal, Record
from llm_loop.learner import Fit
from llm_loop.measures import Fixed
from llm_loop.models import Policy, Row
from llm_loop.rewards.scorers import cut
from llm_loop.setup import Parts, Setup, authors, build, check, check_lengths, inputs, quiet_libraries
from llm_loop.shared import Shared, clear, turns
from llm_loop.tuning import FOLDER as SFT

STAGES = {"generated": "generate", "scored": "score", "features": "features", "trained": "train"}
"""What a round's tokens are counted under, by column.  Not counted: measuring on held-out prompts, and what the layers
below the adapter make of a response, which a run that goes on computes again."""

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
class AlignmentStudy(Study):
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
            ("studies",),
            self.parts.fingerprint(),
            self.inputs,
            LIBRARIES,
        )

    @cached_property
    def inputs(self) -> dict[str, str | None]:
        """SHA-256 of what the run reads, by name, as it was when the run began; it travels to the workers."""
        return inputs(self.alignment)

    def memory(self) -> dict[str, float]:
        """Estimate a cell's bytes by the options that they grow with."""
        return self.alignment.memory()

    def count(self) -> int:
        """How many cells there are."""
        return self.alignment.seeds * len(self.alignment.strategies)

    def cells(self) -> list[Cell]:
        """All cells, in turns."""
        return [Cell(name, seed) for name, seed in turns(self.parts.strategies, self.alignment.seeds)]

    def prepare(self) -> None:
        """Put a cell together before anything is written, so that what cannot be is refused then; tell what is odd."""
        check(self.alignment, self.parts)
        with quiet_libraries():
            setup = build(self.alignment, self.parts, self.alignment.strategies[0], 0)
            check_lengths(setup)
            slow, replaced, asked = setup.policy.route.summary, setup.policy.replaced, setup.arena.prompts
            del setup
            for load in authors(self.alignment, self.parts, asked):
                load()
        gc.collect()  # the cells load their own; here the models would only take room
        if replaced:
            print(f"model {self.alignment.model}: {replaced}", file=sys.stderr)
        if slow:
            print(f"model {self.alignment.model} disagrees with the fastest ways, so: {slow}", file=sys.stderr)

    def play(self, cell: Cell, folder: Path) -> list[str]:
        """Play a cell from its last recorded round on; write its tables; return the files that the run relies on."""
        launch.share((cell, folder))
        return self._play(cell, folder)

    def _play(self, cell: Cell, folder: Path) -> list[str]:
        with launch.agreed(), quiet_libraries():
            with launch.main_first():
                kept = Shared.beside(folder, SFT, launch.is_main())
                setup = build(self.alignment, self.parts, cell.strategy, cell.seed, kept)
                for name, digest in setup.files.items():
                    if self.inputs.get(name, digest) != digest:
                        raise InputError(f"{name} was edited since the run began; put it back, or begin another run")
                if setup.tuned:  # what is learned from here on belongs to the tuned model, in the run's folder
                    setup.policy.belongs = f"../../../../{SFT}/adapter"
                journal = Journal(folder, self.alignment.rounds, launch.is_main())
            launch.wait()  # no process looks for records after the first new one is written
            self.lay_out(setup, folder)
            play_on(setup, journal, Shared.of_seed(folder, cell.seed, launch.is_main()))
        return [*journal.files, *(write_tables(cell, journal) if journal.write else [])]

    def lay_out(self, setup: Setup, folder: Path) -> None:
        """Give a cell what it shares with all others of the run: of a drawn pool, responses and their states below."""
        if isinstance(setup.arena, DrawnArena):
            shared = Shared.of_seed(folder, None, launch.is_main())
            _lay_out(setup.arena, shared, setup, authors(self.alignment, self.parts, setup.arena.prompts))
            if any(strategy.reads for strategy in self.parts.strategies.values()):
                assert setup.arena.pool_table is not None
                _share_states(shared, "states", setup.policy, setup.arena.pool_table.items.rows)

    def follow(self) -> None:
        """Play what the main process plays, until it has no more; under a launcher, in all other processes."""
        while (told := launch.share()) is not None:
            self._play(*told)

    def finish(self, directory: RunDirectory) -> None:
        """Write tables, figures and page."""
        from llm_loop.report.page import write  # matplotlib: only where a page is made

        write(directory.path)
        clear(directory.path)


def play_on(setup: Setup, journal: Journal, shared: Shared) -> None:
    """Play all rounds that the journal does not have yet."""
    alignment, policy, learner, arena = setup.alignment, setup.policy, setup.learner, setup.arena
    if not journal.rounds:
        with launch.main_first():
            answers = shared.json("round-0", partial(_initial_answers, setup))
        about = {"left_out": setup.left_out, "slower": policy.route.summary, "tuned": setup.tuned}
        journal.append({"row": {"labels": 0} | answers.pop("row")} | about | answers, policy)
    fixed = Fixed.of(setup, journal.rounds[0]["fixed"])
    _share_states(shared, "states-heldout", policy, fixed.rows)
    if setup.strategy.reads & {"target", "truth"}:
        arena.aim_at(fixed.rows, fixed.rewards, learner.reference(fixed.rows))
    _begin(setup, shared, len(journal.rounds))
    replay = [_recall(setup, journal, number) for number in range(1, len(journal.rounds))]
    # A width is judged against the margin's error, so a strategy that reads widths gets margins to be judged by.
    looks = alignment.diagnostics or "width" in setup.strategy.reads
    drawn_by = measures.drawn_by(alignment)
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
            | {"pool_cut": _pool_cut(arena)}
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
            "candidates": measures.candidates(round, arena.table, arena.prompts, drawn_by),
            "preferences": measures.preferences(round, arena.table, arena.prompts),
            "table": record_of(arena.table, learner.known_reference(arena.table.items.rows)),
        }
        answers = measures.answer(setup, fixed, last=round.number == alignment.rounds - 1)
        record["row"] |= answers.pop("row")
        journal.append(record | answers, policy)


def _pool_cut(arena: TextArena) -> int:
    """Return how many of the round's responses the scorer read in part."""
    table = arena.table
    asked = [arena.prompts[i] for i in table.prompt_indices for _ in range(table.items.responses)]
    return len(cut(arena.scorer, asked, table.texts))


def _initial_answers(setup: Setup) -> Record:
    """Return what round 0 has for all strategies of a seed: the fixed responses, and answers of the initial model."""
    fixed = measures.draw_fixed(setup)
    return {"fixed": fixed.record} | measures.answer(setup, fixed, initial=True)


def _lay_out(arena: DrawnArena, shared: Shared, setup: Setup, others: Sequence[Callable[[], Policy]]) -> None:
    """Give an arena its drawn pool, which all cells share; its making is no cell's cost."""
    key = Key(setup.alignment.seed).fold_in("pool")
    with launch.main_first():
        pool = shared.json("pool", partial(_counted, setup, lambda: record_of(arena.draw_pool(key, others))))
    arena.pool_table = table_of(setup, pool["made"])


def _share_states(shared: Shared, name: str, policy: Policy, given: Sequence[Row]) -> None:
    """Give a policy what the layers below its adapter make of rows that other cells meet too, if memory holds that."""
    policy.together(given)
    rows = list(dict.fromkeys(given))
    size = 4 * policy.model.config.get_text_config().hidden_size * sum(row.tokens for row in rows)
    if not policy.begins_above or shared.folder is None or size > policy.trunk.limit or not policy.trunk.missing(rows):
        return

    def states() -> dict[str, Tensor]:
        policy.go_below(rows)
        return {"states": policy.trunk.states(rows)}

    with launch.main_first():
        policy.trunk.note(rows, shared.tensors(name, states)["states"].to(policy.device))


def _begin(setup: Setup, shared: Shared, recorded: int) -> None:
    """Give arena and learner what all strategies of a seed share of round 1: its pool and, if read, its features.

    ``recorded`` is how many rounds the journal has, round 0 included.  What the work cost is counted as a cell's own.
    """
    strategy, learner, arena = setup.strategy, setup.learner, setup.arena
    reads = setup.alignment.diagnostics or "width" in strategy.reads
    if recorded > 1 and not (reads and strategy.space.gradients == "initial"):
        return
    with launch.main_first():
        pool = shared.json("round-1", partial(_counted, setup, lambda: record_of(arena.draw(0))))
    table = table_of(setup, pool["made"])
    _share_states(shared, "states", setup.policy, table.items.rows)
    spent = Counter(setup.policy.meter.tokens)
    if recorded == 1:
        arena.tables[0], arena.spent = table, spent
        learner.note_drawn(table.items)  # the policy is where it began
        setup.policy.meter.tokens.update(pool["tokens"])
    if reads:
        space = strategy.space if "width" in strategy.reads else COMPARED
        rows = list(dict.fromkeys(table.items.rows))
        with launch.main_first():
            found = shared.tensors(f"features-{space.layer}", partial(initial_features, setup, rows, space.layer))
        learner.note_initial(space.layer, rows, found["values"], found["zero"])
        if recorded == 1:
            setup.policy.meter.tokens["features"] += int(found["tokens"])


def _counted(setup: Setup, make: Callable[[], Any]) -> Record:
    """Do work that is shared; return it with the tokens it took, and leave the policy's counts as they were."""
    meter = setup.policy.meter
    before = Counter(meter.tokens)
    made = make()
    spent = Counter(meter.tokens)
    spent.subtract(before)
    meter.tokens = before
    return {"made": made, "tokens": {name: count for name, count in sorted(spent.items()) if count}}


def initial_features(setup: Setup, rows: list[Row], layer: Literal["all", "last"]) -> dict[str, Tensor]:
    """Return features at θ0, the share of zero gradients of each (NaN where no gradient was made), and tokens spent."""
    items = Completions(tuple(rows), 1, torch.zeros(len(rows)))
    counted = _counted(setup, lambda: setup.learner.features(items, "initial", layer).values)
    zero = [share if (share := setup.learner.zero_share([row])) is not None else math.nan for row in rows]
    spent = torch.tensor(counted["tokens"].get("features", 0))
    return {"values": counted["made"], "zero": torch.tensor(zero, dtype=torch.float64), "tokens": spent}


def _probe(setup: Setup, fixed: Fixed, theta: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the features of a few fixed responses, at θ or where the policy is."""
    probes = fixed.rows[: setup.alignment.evaluation.probes]
    with setup.policy.at(dict(theta) if theta else setup.policy.state()):
        return setup.learner.gradients(probes, "probe").values


def record_of(table: Table, reference: list[float | None] | None = None) -> Record:
    """Return a round's table as JSON values, with the reference's log-probabilities as far as they are known."""
    return {
        "prompt_indices": list(table.prompt_indices),
        "responses": [list(row.response) for row in table.items.rows],
        "texts": list(table.texts),
        "log_probs": table.items.log_probs.tolist(),
        "rewards": table.rewards.tolist(),
        "reference": reference,
    }


def table_of(setup: Setup, record: Record) -> Table:
    """Return the table that ``record_of`` wrote."""
    k = setup.alignment.responses
    encoded = [setup.arena.encoded[i] for i in record["prompt_indices"] for _ in range(k)]
    rows = tuple(Row(p, tuple(r)) for p, r in zip(encoded, record["responses"], strict=True))
    log_probs, rewards = (torch.tensor(record[name], dtype=torch.float64) for name in ("log_probs", "rewards"))
    return Table(Completions(rows, k, log_probs), tuple(record["texts"]), rewards, tuple(record["prompt_indices"]))


def _recall(setup: Setup, journal: Journal, number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Put a recorded round's table back into the arena; return its picks and θ after it."""
    record = journal.rounds[number]
    table = setup.arena.tables[number - 1] = table_of(setup, record["table"])
    known = {r: v for r, v in zip(table.items.rows, record["table"]["reference"], strict=True) if v is not None}
    setup.learner.note(list(known), reference=torch.tensor(list(known.values()), dtype=torch.float64))
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
