"""Owns what a run will cost, told before it begins: cells, tokens, hours and memory on this machine.

A few seconds of each kind of work, on the run's own model and prompts, say how long a response takes; how many there
will be follows from the settings.  Responses are taken to be as long as those of the probe.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import joblib
import torch

from bandits.core.rng import Key
from bandits.runs.directory import Ledger, Part, RunDirectory
from bandits.runs.execute import in_words, remaining, side_by_side
from bandits.runs.settings import SHARE, machine_memory
from llm_loop.agreement import STAGE
from llm_loop.arena import shares
from llm_loop.config import Alignment
from llm_loop.data.chat import Prompt
from llm_loop.learner import Preference, fit_dpo
from llm_loop.models import Policy, Row, model_bytes
from llm_loop.passes import read_once
from llm_loop.run import AlignmentStudy
from llm_loop.sampling import Decoding, sample
from llm_loop.setup import Setup, authors, build, check, demonstrations, quiet_libraries
from llm_loop.shared import FOLDER as SHARED
from llm_loop.tuning import FOLDER as SFT
from llm_loop.tuning import tune

DRAWN, PROBE = 24, 8
"""Prompts answered twice, side by side as a round's are, and those of them that go through the other stages."""
STAGES = ("draw", "below", "score", "features", "train")
POOL, TUNED = f"{SHARED}/all/pool", f"{SFT}/adapter"
"""Folders of what a run's cells share, once it is there."""


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

    @classmethod
    def of(cls, load: Callable[[], Policy], prompts: Sequence[Prompt], decoding: Decoding) -> Author:
        """Load it and let it answer a few prompts."""
        started = time.perf_counter()
        policy = load()
        begun = time.perf_counter()
        sample(policy, [policy.tokens_of(prompt) for prompt in prompts], 2, decoding, Key(0), STAGE)
        return cls(begun - started, (time.perf_counter() - begun) / (2 * len(prompts)))


def of_pool(alignment: Alignment, pace: dict[str, float], others: Sequence[Author] = ()) -> float:
    """Return the seconds that a pool takes before the first cell: its responses, and their states below the adapter.

    What others draw beside the initial model, this one scores.
    """
    assert isinstance(alignment.pool, int)
    draws = zip(shares(alignment.responses, 1 + len(others)), (pace["draw"], *(o.draw for o in others)), strict=True)
    each = alignment.responses * (pace["below"] + (pace["score"] if others else 0.0))
    return alignment.pool * (each + sum(count * draw for count, draw in draws)) + sum(o.begun for o in others)


def probed(decoding: Decoding) -> int:
    """Return how many prompts are answered to see how long a response takes."""
    return max(1, min(DRAWN, decoding.rows // 2))


def seconds(setup: Setup) -> dict[str, float]:
    """Return how many seconds a response, or a pair, takes in each stage, by doing a little of it; and their tokens."""
    policy, prompts = setup.policy, setup.arena.encoded[: probed(setup.alignment.decoding)]
    spent: dict[str, float] = {}

    def time_of(stage: str, count: int, do: Callable[[], object]) -> None:
        started = time.perf_counter()
        do()
        spent[stage] = (time.perf_counter() - started) / count

    rows: list[Row] = []
    decoding = setup.alignment.decoding
    time_of("draw", 2 * len(prompts), lambda: rows.extend(sample(policy, prompts, 2, decoding, Key(0), STAGE)[0]))
    rows = rows[: 2 * PROBE]
    policy.together(rows)
    time_of("below", len(rows), lambda: policy.go_below(rows) if policy.begins_above else None)
    time_of("score", len(rows), lambda: policy.log_probs(rows, STAGE))
    time_of("features", len(rows), lambda: setup.learner.gradients(rows, STAGE))
    pairs = [Preference(rows[i], rows[i + 1], 0.0, 0.0) for i in range(0, len(rows), 2)]
    fit_dpo(policy, pairs[:1], setup.learner.training, Key(0))  # what a first fit costs once is no pair's
    time_of(
        "train",
        len(pairs) * setup.alignment.training.epochs,
        lambda: fit_dpo(policy, pairs, setup.learner.training, Key(0)),
    )
    spent["pair"] = sum(read_once([p.chosen, p.rejected]) for p in pairs) / len(pairs)
    spent["response"] = sum(len(row.response) for row in rows) / len(rows)
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
    """until all are done, side by side; NaN: nothing could be timed"""


def forecast(study: AlignmentStudy, directory: RunDirectory | None, jobs: int, part: Part) -> Forecast:
    """Return what is left of a part of a run's cells and what that will take, a line a fact.

    ``directory`` is where it goes on; None: it starts over.  Without the settings' device the CPU is timed; a model
    that does not fit into memory is not loaded, and nothing is timed.
    """
    alignment, every = study.alignment, study.cells()
    mine = part.take(every)
    left = mine if directory is None else directory.missing(mine)
    lines = [counted(len(left), len(mine) - len(left), len(every), part)]
    if not left:
        return Forecast(tuple(lines), 0.0)
    if alignment.device != "cpu" and not torch.cuda.is_available():
        lines.append(f"device {alignment.device!r} is not available here: hours and memory are of this machine's CPU")
        alignment = replace(alignment, device="cpu")
    check(alignment, study.parts)
    if _there(directory, POOL):
        alignment = replace(alignment, pool_models=())  # they have drawn
    known = isinstance(alignment.pool, str) or _there(directory, POOL)  # of a file, which nobody has read yet
    pool = 0 if known else int(alignment.pool) * alignment.responses
    rest = {cell: 1 - (Ledger(directory.cell(cell)).share if directory else 0.0) for cell in left}
    trust, named = alignment.trust_remote_code, alignment.pool_models
    weights = model_bytes(alignment.model, alignment.dtype, trust)
    weights += max((model_bytes(name, alignment.dtype, trust, "--pool-models") for name in named), default=0)
    need, have = 2 * weights + sum(study.memory().values()), _memory(alignment.device)
    fit = int(SHARE * have / need)
    lines.append(
        f"memory: about {need / 2**30:.1f} GiB a cell, and this {'GPU' if alignment.device == 'cuda' else 'machine'} "
        f"has {have / 2**30:.1f} GiB, of which a run may take {SHARE:.0%}: "
        + (f"{fit} side by side would fit" if fit else "it does not fit")
    )
    if 2 * weights > SHARE * have:
        longest = alignment.decoding.tokens, alignment.prompt_tokens + 2 * alignment.decoding.tokens
        lines.append(tokens(work(alignment, True), pool, sum(rest.values()), longest, "at most"))
        lines.append("the model alone does not fit, so it was not loaded and no work was timed")
        return Forecast(tuple(lines), math.nan)
    if _there(directory, TUNED):
        alignment = replace(alignment, tuning=replace(alignment.tuning, data=""))
    pace, begun, first, others = timed(replace(study, alignment=alignment))
    costs: list[float] = []
    for name, strategy in study.parts.strategies.items():
        one, own = work(alignment, "width" in strategy.reads), [cell for cell in left if cell.strategy == name]
        stages = {stage: getattr(one, stage) * pace[stage] for stage in STAGES}
        whole = begun + sum(stages.values())
        costs += [whole * rest[cell] for cell in own]
        if own:
            told = ", ".join(f"{stage} {in_words(spent)}" for stage, spent in stages.items() if spent)
            lines.append(f"  {name}: {len(own)} cells of about {in_words(whole)} ({told})")
    lines.append(tokens(one, pool, sum(rest.values()), (pace["response"], pace["pair"]), "about"))
    before = 0.0 if known else of_pool(alignment, pace, others)
    if first:
        lines.append(f"the model is tuned on {alignment.tuning.data} first: about {in_words(first)}, once")
    if before:
        lines.append(f"the pool is drawn first: about {in_words(before)}, once")
    gpus = torch.cuda.device_count() if alignment.device == "cuda" else 0
    side = side_by_side(jobs, gpus, joblib.cpu_count(), max(1, min(len(costs), fit)))
    whole = first + before + remaining(costs, 1.0, side)
    clause = "" if fit else ", if it did fit"
    lines.append(f"about {in_words(whole)} with {side} side by side{clause}, without waiting for other work")
    return Forecast(tuple(lines), whole)


def counted(left: int, done: int, every: int, part: Part) -> str:
    """Say how many cells are to be played."""
    share = f"; part {part.index}/{part.count} of {every}" if part.count > 1 else ""
    return f"{left} cells to play{f', {done} finished' if done else ''}{share}"


def tokens(one: Work, pool: int, cells: float, lengths: tuple[float, float], word: str) -> str:
    """Say how many tokens of responses are drawn, and of pairs trained on, where a response and a pair are so long."""
    drawn, trained = one.draw * lengths[0], one.train * lengths[1]
    every = cells * drawn + pool * lengths[0], cells * trained
    of_cell, of_all = (f"{_round(a)} drawn and {_round(b)} trained on" for a, b in ((drawn, trained), every))
    return f"tokens: {word} {of_cell} (all epochs) in a cell, {of_all} in what is left"


def timed(study: AlignmentStudy) -> tuple[dict[str, float], float, float, list[Author]]:
    """Return the paces of ``seconds``, how long a cell begins and the model is tuned first, and a pool's authors."""
    alignment, parts = study.alignment, study.parts
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with quiet_libraries():
            started = time.perf_counter()
            setup = build(alignment, parts, alignment.strategies[0], 0)
            begun = time.perf_counter() - started
            pace, prompts = seconds(setup), setup.arena.prompts
            del setup
            few, found = prompts[: probed(alignment.decoding)], authors(alignment, parts, prompts)
            others = [Author.of(load, few, alignment.decoding) for load in found]
            return pace, begun, tuning_seconds(study), others
    finally:
        torch.set_num_threads(threads)
        gc.collect()


def _memory(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    return machine_memory()


def _there(directory: RunDirectory | None, entry: str) -> bool:
    """Whether a run has what its cells share already."""
    return directory is not None and Ledger(directory.path / entry).whole


def _round(count: float) -> str:
    return f"{float(f'{count:.2g}'):,.0f}"
