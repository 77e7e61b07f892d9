"""Owns the experiment behind Figure 2: do models that learned from different texts need different preferences?

One base model is tuned twice (``llm_loop.tuning``), on disjoint texts.  Both answer the same prompts; what they wrote
is one pool.  A cell: the duels of the pool are chosen by one of the two models, round by round as in the loop, or at
random; then *both* models are trained on them and answer the held-out prompts.  So the outcomes are a matrix of two
models by three preference sets, a matrix a seed.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import joblib
import pandas as pd
import torch
import tyro

from bandits.core.duels import Labelled
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.loop import Schedule, play
from bandits.runs.directory import Identity, Part, RunDirectory, config_of
from bandits.runs.execute import Report, in_words, remaining, side_by_side
from bandits.runs.files import sha256, write_frame
from bandits.runs.settings import Distinct, MinLen, check
from llm_loop import launch, measures
from llm_loop import setup as cells
from llm_loop.arena import Completions, DrawnArena
from llm_loop.config import LIBRARIES, PRESETS, Alignment, Evaluation
from llm_loop.data.chat import text_of
from llm_loop.forecast import counted, seconds, tuning_seconds
from llm_loop.measures import Fixed
from llm_loop.models import Row
from llm_loop.run import AlignmentStudy, record_of, table_of
from llm_loop.setup import Parts, Setup, build, quiet_libraries
from llm_loop.shared import Shared, clear, turns
from llm_loop.tuning import FOLDER as SFT
from llm_loop.tuning import Tuning

RANDOM = "random"
CHOOSER = "activedpo-normalised"
EVALUATIONS, PICKS = "evaluations.csv", "picks.csv"
BEFORE, AFTER = "before", "after"


FULL = Alignment(
    strategies=(CHOOSER, RANDOM),
    rounds=3,
    responses=4,
    pool=48,
    prompts="both",
    long_texts="cut",
    tuning=Tuning(examples=256),
    evaluation=Evaluation(prompts=48, duels=1, probes=1),
)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Two models, three preference sets."""

    sets: Annotated[tuple[str, ...], MinLen(2), Distinct()] = ("plots", "news")
    """what the two models are tuned on: prompt sets or files whose prompts people answered"""
    alignment: Annotated[Alignment, tyro.conf.arg(name="")] = FULL

    def __post_init__(self) -> None:
        check(self)
        if len(self.sets) != 2:
            raise InputError(f"--sets names the data of two models, got {len(self.sets)}")
        if not isinstance(self.alignment.pool, int) or self.alignment.pool < 1:
            raise InputError("both models answer the prompts of one pool: --pool must be a number of prompts, above 0")
        if self.alignment.pool_models:
            raise InputError("the two models that --sets tunes draw the pool; leave --pool-models out")
        if self.alignment.responses % 2:
            raise InputError(
                f"each model writes half of --responses, which must be even, got {self.alignment.responses}"
            )
        if len(self.alignment.strategies) != 2 or self.alignment.strategies[1] != RANDOM:
            raise InputError(f"--strategies names the rule by which a model chooses, and {RANDOM}")

    def of(self, name: str) -> Alignment:
        """Return the settings of the model that is tuned on one of the sets."""
        return replace(self.alignment, tuning=replace(self.alignment.tuning, data=name))


MATRICES: dict[str, tuple[str, Matrix]] = {
    "smoke": (
        "two tiny models that learned toys",
        Matrix(
            sets=("toy-vowels", "toy-letters"),
            alignment=replace(
                PRESETS["smoke"][1],
                seeds=2,
                strategies=(CHOOSER, RANDOM),
                responses=4,
                pool=6,
                tuning=Tuning(rate=1e-2),
                evaluation=Evaluation(prompts=6, duels=1, probes=1),
            ),
        ),
    ),
    "full": ("SmolLM2 tuned on film plots and on news articles, 8 seeds", Matrix()),
}


@dataclass(frozen=True)
class Cell:
    """A preference set, chosen by one of the models or at random, with one seed."""

    chosen_by: str
    seed: int
    cost: float = 1.0

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.chosen_by}--seed{self.seed}"


@dataclass(frozen=True)
class MatrixStudy:
    """The run."""

    matrix: Matrix
    parts: Parts
    experiment: str = "matrix"
    gpu: bool = False

    @classmethod
    def of(cls, matrix: Matrix) -> MatrixStudy:
        """Look the names up."""
        first, second = (Parts.of(matrix.of(name)) for name in matrix.sets)
        return cls(matrix, replace(first, prompts={**first.prompts, **second.prompts}))

    def identity(self) -> Identity:
        """What determines the bytes of its results; of the studies, this file counts alone."""
        found: dict[str, str | None] = {}
        for name in self.matrix.sets:
            one = cells.inputs(self.matrix.of(name))
            found |= {f"sft {name}" if use == "sft" else use: value for use, value in one.items()}
        own = {"matrix": {"source": sha256(inspect.getsource(sys.modules[__name__]).encode())}}
        parts = self.parts.fingerprint() | own
        return Identity(config_of(self.matrix), ("bandits", "llm_loop"), ("studies",), parts, found, LIBRARIES)

    def memory(self) -> dict[str, float]:
        """Estimate a cell's bytes: two models' work."""
        return {option: 2 * size for option, size in self.matrix.alignment.memory().items()}

    def names(self) -> dict[str, str]:
        """Return the models' names, which are folders too, with what each is tuned on."""
        return {Path(data).stem: data for data in self.matrix.sets}

    def count(self) -> int:
        """How many cells there are."""
        return 3 * self.matrix.alignment.seeds

    def cells(self) -> list[Cell]:
        """All cells, in turns."""
        return [Cell(name, seed) for name, seed in turns((*self.names(), RANDOM), self.matrix.alignment.seeds)]

    def forecast(self, directory: RunDirectory, jobs: int, part: Part) -> list[str]:
        """Return what is left of a part of the run and what it takes, by a few seconds of work on the first model."""
        every = self.cells()
        mine = part.take(every)
        left = directory.missing(mine)
        lines = [counted(len(left), len(mine) - len(left), len(every), part)]
        if not left:
            return lines
        alignment = replace(self.matrix.of(self.matrix.sets[0]), seeds=1)
        cells.check(alignment, self.parts)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with quiet_libraries():
                pace = seconds(build(alignment, self.parts, alignment.strategies[0], 0))
                tuning = tuning_seconds(AlignmentStudy(alignment, self.parts))
        finally:
            torch.set_num_threads(threads)
        a, labels, pool = self.matrix.alignment, self.matrix.alignment.rounds * self.matrix.alignment.batch, 0
        if isinstance(a.pool, int):
            pool = a.pool * a.responses
        fit = a.training.epochs * labels * pace["train"]
        read = pace["below"] + pace["score"]
        blind = 2 * fit + 4 * a.evaluation.prompts * (pace["draw"] + read)
        offered = a.rounds * a.prompts_per_round * a.responses + (a.rounds - 1) * labels
        chosen = blind + offered * (pace["below"] + pace["features"]) + fit * (a.rounds - 1) / 2
        begun = len(directory.missing(every)) < len(every)
        first = 0.0 if begun else 2 * tuning + pool * (pace["draw"] + 2 * read)
        costs = [blind if cell.chosen_by == RANDOM else chosen for cell in left]
        side = side_by_side(jobs, 0, joblib.cpu_count(), len(costs))
        return [
            *lines,
            f"of these {costs.count(blind)} of about {in_words(blind)} (at random), the others (chosen by a model) of "
            f"about {in_words(chosen)}",
            *([] if begun else [f"before them, once: two tunings and the pool, about {in_words(first)}"]),
            f"about {in_words(first + remaining(costs, 1.0, side))} with {side} side by side, without waiting for "
            "other work",
        ]

    def prepare(self) -> None:
        """Refuse what cannot be before anything is written."""
        if len(self.names()) < 2 or RANDOM in self.names():
            raise InputError(f"--sets: the two need file names that differ, and none may be {RANDOM!r}")
        for data in self.matrix.sets:
            cells.check(self.matrix.of(data), self.parts)
        with quiet_libraries():
            build(self.matrix.of(self.matrix.sets[0]), self.parts, CHOOSER, 0)

    def play(self, cell: Cell, folder: Path) -> list[str]:
        """Play a cell whole; return its files."""
        with launch.agreed(), quiet_libraries():
            setups = {
                name: build(
                    self.matrix.of(data),
                    self.parts,
                    self.matrix.alignment.strategies[cell.chosen_by == RANDOM],
                    cell.seed,
                    Shared.beside(folder, f"{SFT}/{name}"),
                )
                for name, data in self.names().items()
            }
            pool = Shared.of_seed(folder, None).json("pool", partial(write_pool, setups))
            for name, setup in setups.items():
                lay_out(setup, pool, name)
            before = {
                name: Shared.of_seed(folder, cell.seed).json(f"before-{name}", partial(answers, setup, initial=True))
                for name, setup in setups.items()
            }
            chooser = setups.get(cell.chosen_by, next(iter(setups.values())))
            past, picks = choose(chooser)
            rows = []
            for name, setup in setups.items():
                if setup is not chooser:
                    setup.learner.fit(past)
                about = {"chosen_by": cell.chosen_by, "model": name, "seed": cell.seed}
                for stage, found in ((BEFORE, before[name]), (AFTER, answers(setup))):
                    rows += [about | {"stage": stage} | row for row in found]
        write_frame(folder / EVALUATIONS, pd.DataFrame(rows))
        write_frame(folder / PICKS, picks.assign(chosen_by=cell.chosen_by, seed=cell.seed))
        return [EVALUATIONS, PICKS]

    def finish(self, directory: RunDirectory) -> None:
        """Gather the cells' tables."""
        for name in (EVALUATIONS, PICKS):
            write_frame(directory.path / name, directory.frames(self.cells(), name))
        clear(directory.path)

    def report(self, directory: RunDirectory) -> Report:
        """Say nothing; the study's page does."""
        return Report()


def write_pool(setups: dict[str, Setup]) -> dict[str, Any]:
    """Let the two models draw the pool, half of each prompt's responses each; score all by both of them."""
    first, second = setups.values()
    assert isinstance(first.arena, DrawnArena)
    table = first.arena.draw_pool(Key(first.alignment.seed).fold_in("pool"), [lambda: second.policy])
    scores = table.items.log_probs, second.policy.log_probs(table.items.rows, "score")
    return {"table": record_of(table), "log_probs": {n: s.tolist() for n, s in zip(setups, scores, strict=True)}}


def lay_out(setup: Setup, pool: dict[str, Any], name: str) -> None:
    """Give a model's arena the pool, with what this model makes of it at the start."""
    assert isinstance(setup.arena, DrawnArena)
    table = table_of(setup, pool["table"] | {"log_probs": pool["log_probs"][name]})
    setup.arena.pool_table = table
    setup.learner.note(table.items.rows, reference=table.items.log_probs)


def choose(setup: Setup) -> tuple[Labelled[Completions], pd.DataFrame]:
    """Let a model, or chance, choose duels round by round, being fitted to their labels; return them, and a table."""
    alignment, arena = setup.alignment, setup.arena
    blind = not setup.strategy.reads
    refit = 1e9 if blind else 0.0  # chance needs no fit between the first and the last
    schedule = Schedule(alignment.rounds, alignment.batch, refit)
    rows: list[dict[str, Any]] = []
    past = Labelled[Completions]()
    for round in play(arena, setup.learner, setup.strategy, schedule, alignment.ridges, setup.key):
        past, k, table = round.past, alignment.responses, arena.table
        pairs = zip(round.asked.first.tolist(), round.asked.second.tolist(), round.outcome.tolist(), strict=True)
        for place, (first, second, label) in enumerate(pairs):
            prompt = table.prompt_indices[first // k]
            rows.append(
                {
                    "round": round.number + 1,
                    "place": place,
                    "prompt_index": prompt,
                    "prompt": text_of(arena.prompts[prompt])[:60],
                    "first": first % k,
                    "second": second % k,
                    "label": label,
                    "gap": abs(float(table.rewards[first] - table.rewards[second])),
                }
            )
    return past, pd.DataFrame(rows)


def answers(setup: Setup, initial: bool = False) -> list[dict[str, Any]]:
    """Let a model answer the held-out prompts; return a row each."""
    fixed = Fixed((Row(setup.heldout.encoded[0], (setup.policy.end,)),) * 2, (0.0, 0.0))
    found: list[dict[str, Any]] = measures.answer(setup, fixed, initial=initial, last=True)["evaluations"]
    return found
