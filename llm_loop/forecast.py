"""Owns what a run will cost, told before it begins: cells, tokens, hours and memory on this machine.

A few seconds of each kind of work, on the run's own model and prompts, say how long a response takes; how many there
will be follows from the settings.  Responses are taken to be as long as those of the probe.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import joblib
import torch

from bandits.core.rng import Key
from bandits.runs.execute import in_words, remaining, side_by_side
from bandits.runs.settings import SHARE, machine_memory
from llm_loop.agreement import STAGE
from llm_loop.arena import shares
from llm_loop.config import Alignment
from llm_loop.data.chat import Prompt
from llm_loop.learner import Preference, fit_dpo
from llm_loop.models import Policy, Row
from llm_loop.passes import read_once
from llm_loop.run import AlignmentStudy, Cell
from llm_loop.sampling import Decoding, sample
from llm_loop.setup import Setup, authors, build, check, demonstrations, quiet_libraries
from llm_loop.tuning import tune

DRAWN, PROBE = 24, 8
"""Prompts answered twice, side by side as a round's are, and those of them that go through the other stages."""
STAGES = ("draw", "below", "score", "features", "train")


@dataclass(frozen=True)
class Work:
    """Responses that go through a stage in one cell."""

    draw: int
    below: int
    """through the layers below the adapter, for good"""
    score: int
    features: int
    train: int
    """pairs, all epochs"""


def work(alignment: Alignment, reads_width: bool) -> Work:
    """Return a cell's work, by its settings."""
    a, rounds, e = alignment, alignment.rounds, alignment.evaluation
    pool = a.prompts_per_round * a.responses
    answers = 2 * e.prompts + (e.between or e.prompts) * (rounds - 1)
    fits = [a.batch * (number if a.training.data == "all" else 1) for number in range(1, rounds + 1)]
    past = sum(2 * a.batch * number for number in range(1, rounds))
    drawn = (0 if a.pool else rounds * pool) + answers + 2 * e.duels
    asked = rounds * pool if reads_width or isinstance(a.pool, str) else 2 * a.batch * rounds
    seen_once = answers - e.prompts  # the reference's values of answers
    scored = seen_once + 2 * e.duels * (rounds + 1) + asked
    below = 2 * e.duels + (0 if a.pool else asked)
    features = rounds * pool + past if reads_width or a.diagnostics else 0
    return Work(drawn, below, scored, features, a.training.epochs * sum(fits))


@dataclass(frozen=True)
class Author:
    """What a model takes that draws a pool beside the initial one."""

    begun: float
    """seconds until it can draw"""
    draw: float
    """seconds a response"""
    size: int
    """bytes of its weights"""

    @classmethod
    def of(cls, load: Callable[[], Policy], prompts: Sequence[Prompt], decoding: Decoding) -> Author:
        """Load it and let it answer a few prompts."""
        started = time.perf_counter()
        policy = load()
        begun = time.perf_counter()
        sample(policy, [policy.tokens_of(prompt) for prompt in prompts], 2, decoding, Key(0), STAGE)
        return cls(begun - started, (time.perf_counter() - begun) / (2 * len(prompts)), size_of(policy))


def of_pool(alignment: Alignment, pace: dict[str, float], others: Sequence[Author] = ()) -> float:
    """Return the seconds that a pool takes before the first cell: its responses, and their states below the adapter.

    What others draw beside the initial model, this one scores.  Responses of a file are not counted, for nobody has
    read it yet.
    """
    if isinstance(alignment.pool, str):
        return 0.0
    draws = zip(shares(alignment.responses, 1 + len(others)), (pace["draw"], *(o.draw for o in others)), strict=True)
    each = alignment.responses * (pace["below"] + (pace["score"] if others else 0.0))
    return alignment.pool * (each + sum(count * draw for count, draw in draws)) + sum(o.begun for o in others)


def size_of(policy: Policy) -> int:
    """Return the bytes of a model's weights."""
    return sum(p.numel() * p.element_size() for p in policy.model.parameters())


def probed(decoding: Decoding) -> int:
    """Return how many prompts are answered to see how long a response takes."""
    return max(1, min(DRAWN, decoding.rows // 2))


def seconds(setup: Setup) -> dict[str, float]:
    """Return how many seconds a response, or a pair, takes in each stage, by doing a little of it."""
    decoding = setup.alignment.decoding
    policy, prompts = setup.policy, setup.arena.encoded[: probed(decoding)]
    spent: dict[str, float] = {}

    def timed(stage: str, count: int, do: Callable[[], object]) -> None:
        started = time.perf_counter()
        do()
        spent[stage] = (time.perf_counter() - started) / count

    rows: list[Row] = []
    timed("draw", 2 * len(prompts), lambda: rows.extend(sample(policy, prompts, 2, decoding, Key(0), STAGE)[0]))
    rows = rows[: 2 * PROBE]
    policy.together(rows)
    timed("below", len(rows), lambda: policy.go_below(rows) if policy.begins_above else None)
    timed("score", len(rows), lambda: policy.log_probs(rows, STAGE))
    timed("features", len(rows), lambda: setup.learner.gradients(rows, STAGE))
    pairs = [Preference(rows[i], rows[i + 1], 0.0, 0.0) for i in range(0, len(rows), 2)]
    fit_dpo(policy, pairs[:1], setup.learner.training, Key(0))  # what a first fit costs once is no pair's
    timed(
        "train",
        len(pairs) * setup.alignment.training.epochs,
        lambda: fit_dpo(policy, pairs, setup.learner.training, Key(0)),
    )
    spent["tokens"] = sum(read_once([p.chosen, p.rejected]) for p in pairs) / len(pairs)
    return spent


def tuning_seconds(study: AlignmentStudy) -> float:
    """Return how long the model is tuned before the first cell, by tuning it a little; 0 where it is not."""
    alignment, tuning = study.alignment, study.alignment.tuning
    if not tuning.data:
        return 0.0
    policy, rows = demonstrations(alignment, study.parts)
    part = rows[: 2 * tuning.batch]
    tune(policy, part[:1], replace(tuning, epochs=1), Key(0))  # what a first step costs once
    started = time.perf_counter()
    tune(policy, part, replace(tuning, epochs=1), Key(0))
    return (time.perf_counter() - started) * tuning.epochs * len(rows) / len(part)


@dataclass(frozen=True)
class Forecast:
    """What the cells of a run will take."""

    lines: tuple[str, ...]
    """a line a fact"""
    seconds: float
    """until all are done, side by side"""


def forecast(study: AlignmentStudy, jobs: int = 0, cells: Collection[Cell] | None = None) -> Forecast:
    """Return what a run will take, or those cells of it that are left."""
    alignment = study.alignment
    left = study.cells() if cells is None else cells
    check(alignment, study.parts)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with quiet_libraries():
            started = time.perf_counter()
            setup = build(alignment, study.parts, alignment.strategies[0], 0)
            begun = time.perf_counter() - started
            pace = seconds(setup)
            model, prompts = size_of(setup.policy), setup.arena.prompts
            del setup
            few, found = prompts[: probed(alignment.decoding)], authors(alignment, study.parts, prompts)
            others = [Author.of(load, few, alignment.decoding) for load in found]
            pool = of_pool(alignment, pace, others)
            first = tuning_seconds(study)
    finally:
        torch.set_num_threads(threads)
    gc.collect()
    costs: list[float] = []
    rows: list[str] = []
    for name, strategy in study.parts.strategies.items():
        one = work(alignment, "width" in strategy.reads)
        parts = {stage: getattr(one, stage) * pace[stage] for stage in STAGES}
        whole = begun + sum(parts.values())
        count = sum(cell.strategy == name for cell in left)
        costs += [whole] * count
        told = ", ".join(f"{stage} {in_words(part)}" for stage, part in parts.items() if part)
        rows.append(f"  {name}: {count} cells of about {in_words(whole)} ({told})")
    memory = 2 * (model + max((one.size for one in others), default=0)) + sum(study.memory().values())
    most = max(1, min(len(costs), int(SHARE * machine_memory() / memory)))
    side = side_by_side(jobs, 0, joblib.cpu_count(), most)
    lines = [f"{len(costs)} cells; {pace['tokens']:.0f} tokens in a prompt with two responses", *rows]
    lines.append(f"memory: about {memory / 2**30:.1f} GiB a cell")
    if first:
        lines.append(f"the model is tuned on {alignment.tuning.data} first: about {in_words(first)}, once")
    if pool:
        lines.append(f"the pool is drawn first: about {in_words(pool)}, once")
    whole = first + pool + remaining(costs, 1.0, side)
    lines.append(f"about {in_words(whole)} with {side} side by side, without waiting for other work")
    return Forecast(tuple(lines), whole)
