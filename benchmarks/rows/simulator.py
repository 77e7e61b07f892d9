"""Rows: the simulator beside calvera and beside itself one replicate at a time; its commands' time and memory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch

from bandits.loop import play
from bandits.selector import STRATEGIES
from bandits.sim.config import PRESETS, Simulation, blocks
from bandits.sim.run import build, run_cell
from benchmarks.harness import commands
from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register

REPLICATES, ROUNDS = 20, 300
HORIZON, STEPS = PRESETS["ndb"][1].rounds, PRESETS["ndb"][1].fit_iterations
EVERY = f"calvera NeuralUCB, fitted every round (one replicate, times {REPLICATES})"
AS_OFTEN = f"calvera NeuralUCB, fitted as often as ours (one replicate, times {REPLICATES})"
ALONE = "one replicate at a time, own code"
PER_CORE = REPLICATES / (os.cpu_count() or 1)  # replicates that a core would play one by one


def protocol(rounds: int, replicates: int = REPLICATES) -> Simulation:
    """Return the synthetic setting of Neural Dueling Bandits with a horizon of its own."""
    return replace(
        PRESETS["ndb"][1],
        contenders=("random", "ucb"),
        truths=("square",),
        rounds=rounds,
        replicates=replicates,
        evaluations=4,
    )


def _play(simulation: Simulation, parts: list[range], jobs: int) -> np.ndarray:
    """Play UCB in these blocks of replicates; return each replicate's cumulative regret."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(part.start) for part in parts]
        joblib.Parallel(n_jobs=jobs)(
            joblib.delayed(run_cell)(simulation, "square", "ucb", folder, block=part)
            for folder, part in zip(folders, parts, strict=True)
        )
        table = pd.concat([pd.read_csv(folder / "rounds.csv") for folder in folders])
    last = table[table["round"] == simulation.rounds].sort_values("replicate")
    return last["cumulative_average_regret"].to_numpy()


def ours(rounds: int = ROUNDS) -> Callable[[], Answer]:
    """20 replicates in blocks, a block per core."""
    simulation = protocol(rounds)
    return lambda: {"regret": _play(simulation, blocks(REPLICATES), os.cpu_count() or 1)}


def direct(rounds: int = ROUNDS) -> Callable[[], Answer]:
    """One replicate alone."""
    simulation = protocol(rounds)
    return lambda: {"regret": _play(simulation, [range(1)], 1)}


def calvera(every: bool) -> Callable[[], Answer]:
    """calvera's NeuralUCB (diagonal Z) on one replicate: a fit every round, or as often as ours."""
    import logging
    import warnings

    import lightning
    from calvera.bandits.neural_ucb_bandit import NeuralUCBBandit

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    due = [every or fit for fit in protocol(ROUNDS).schedule.fits()]

    def run() -> Answer:
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = torch.nn.Sequential(
                torch.nn.Linear(5, 50),
                torch.nn.ReLU(),
                torch.nn.Linear(50, 50),
                torch.nn.ReLU(),
                torch.nn.Linear(50, 1),
            )
            bandit = NeuralUCBBandit(
                n_features=5, network=network, min_samples_required_for_training=1, train_batch_size=32
            )
            target = torch.rand(5, generator=generator) * 2 - 1
            for fit in due:
                arms = torch.rand(1, 5, 5, generator=generator) * 2 - 1
                chosen, _ = bandit(arms)
                place = chosen.argmax(-1)
                picked = arms[0, place].unsqueeze(0)
                bandit.record_feedback(picked, (10 * (picked @ target).square()).view(1, 1))
                if fit:
                    trainer = lightning.Trainer(
                        max_epochs=1,
                        logger=False,
                        enable_checkpointing=False,
                        enable_progress_bar=False,
                        enable_model_summary=False,
                        accelerator="cpu",
                    )
                    trainer.fit(bandit)
        return {"rounds": float(len(due))}

    return run


def check(answers: Mapping[str, Answer]) -> Check:
    """Compare the replicate that was played alone with the same replicate in its block."""
    alone = answers[ALONE]["regret"][0]
    together = answers["ours"]["regret"]
    off = abs(alone - together[0]) / abs(alone)
    return Check(
        bool(off < 1e-9) and len(together) == REPLICATES,
        f"cumulative regret of replicate 0 alone and in its block differ by {off:.1e} of it",
    )


def command(arguments: tuple[str, ...]) -> Callable[[], Answer]:
    """Run ``python -m bandits …`` as a user does, into a new folder; watch the memory of all its processes."""

    def run() -> Answer:
        with tempfile.TemporaryDirectory() as scratch:
            peak = commands.run("bandits", arguments, Path(scratch))
            (table,) = Path(scratch).glob("*/*/rounds.csv")
            rounds = pd.read_csv(table)
            pages = len(list(Path(scratch).glob("*/*/index.html")))
        return {
            "gigabytes": peak,
            "rows": float(len(rounds)),
            "pages": float(pages),
            "last": _last(rounds),
            "finite": float(np.isfinite(rounds["cumulative_average_regret"]).all()),
        }

    return run


def _last(rounds: pd.DataFrame) -> np.ndarray:
    """Return the last round's cumulative regret of one contender's replicates on the square truth."""
    names = [name for name in ("activedpo", "ucb") if name in set(rounds["contender"])]
    part = rounds[(rounds["truth"] == "square") & (rounds["contender"] == names[0])]
    last = part[part["round"] == part["round"].max()].sort_values("replicate")
    return last["cumulative_average_regret"].to_numpy()


def checked_command(simulation: Simulation, contender: str) -> Callable[[Mapping[str, Answer]], Check]:
    """Return a check that plays one replicate of a command's run alone and compares."""

    def check(answers: Mapping[str, Answer]) -> Check:
        answer = answers["ours"]
        with tempfile.TemporaryDirectory() as scratch:
            run_cell(simulation, "square", contender, Path(scratch), block=range(1))
            alone = _last(pd.read_csv(Path(scratch) / "rounds.csv"))
        off = float(abs(alone[0] - answer["last"][0]) / abs(alone[0]))
        whole = answer["pages"] == 1 and answer["finite"] == 1 and len(answer["last"]) == simulation.replicates
        return Check(
            off < 1e-9 and whole,
            f"page and {answer['rows']:.0f} rows written, all finite; cumulative "
            f"regret of replicate 0 of {contender}, played alone: {off:.1e} off",
        )

    return check


def per_round(rounds: int, windows: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return, for UCB in NDB's setting with 10 replicates, rounds and mean seconds per round in windows of time."""
    simulation = protocol(rounds, 10)
    torch.set_num_threads(1)
    arena, learner, key = build(simulation, "square", "ucb")
    times = [time.perf_counter()]
    played = play(arena, learner, STRATEGIES["ucb"], simulation.schedule, simulation.ridges(0.0), key)
    times.extend(time.perf_counter() for _ in played)
    edges = np.unique(np.geomspace(rounds / 2**4, rounds, windows + 1).round().astype(int))
    seconds = np.array(times)
    return (edges[1:] + edges[:-1]) / 2, np.diff(seconds[edges]) / np.diff(edges)


def _seconds(name: str, limit: float) -> Target:
    return Target("seconds", limit, f"{name} within {limit:.0f} s")


QUICK = PRESETS["quick"][1]
_CORES: dict[str, Any] = {"repetitions": 2}

register(
    Row(
        "simulator",
        "Simulator",
        f"NDB's setting (d=5, K=5, 2 x 50 ReLU), UCB, exact full V, {REPLICATES} replicates, "
        f"{STEPS} steps a fit, {ROUNDS} rounds",
        Contender("ours", ours),
        check,
        (
            Target(
                "peer",
                10,
                "at least 10 times calvera's rounds per second and replicate at equal refits",
                against=AS_OFTEN,
            ),
            Target("peer", 20, "at least 20 times calvera as it fits by itself, every round", against=EVERY),
        ),
        (
            Contender(EVERY, calvera, {"every": True}, ("calvera", "lightning"), scale=REPLICATES, **_CORES),
            Contender(AS_OFTEN, calvera, {"every": False}, ("calvera", "lightning"), scale=REPLICATES, **_CORES),
            Contender(ALONE, direct, scale=PER_CORE, own=True, **_CORES),
        ),
        repetitions=5,
        profiled=False,
        bound="Fits of ReLU networks take more than half of the time (cProfile of a block of 10), in float64 since "
        "where they end hangs on every rounding; a step is evaluated 2.5 times, since all replicates of a block wait "
        "for the one whose step was too long. calvera does less: a diagonal of V in float32, and one epoch in place of "
        "5 BFGS steps.",
    ),
    Row(
        "simulate",
        "make simulate",
        "python -m bandits quick: 4 strategies, 2 truths, 2 pools, 96 replicates",
        Contender("ours", command, {"arguments": ("quick",)}),
        checked_command(QUICK, "activedpo"),
        (
            _seconds("make simulate", 180),
            Target("figure", 4, "at most 4 GB, all processes together", "gigabytes", unit="GB"),
        ),
        repetitions=1,
        warm=False,
        profiled=False,
    ),
    Row(
        "ndb",
        "Neural Dueling Bandits' horizon",
        f"NDB's setting, UCB, exact full V, {REPLICATES} replicates, {STEPS} steps a fit, {HORIZON} rounds",
        Contender("ours", ours, {"rounds": HORIZON}),
        check,
        (_seconds("UCB", 90),),
        (Contender(ALONE, direct, {"rounds": HORIZON}, scale=PER_CORE, own=True),),
        repetitions=1,
        warm=False,
        long=True,
        profiled=False,
    ),
)
