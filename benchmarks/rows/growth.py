"""Row: how our cost grows with the pool, the dimension, the width, the horizon and the replicates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from bandits.core.design import GramDesign
from bandits.core.greedy import greedy
from bandits.core.rows import Dense
from bandits.sim.config import PRESETS
from bandits.sim.run import run_cell
from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register
from benchmarks.rows.greedy import gaussian, naive
from benchmarks.rows.simulator import per_round
from benchmarks.rows.widths import scene


@dataclass(frozen=True)
class Axis:
    """One figure: what grows, over which sizes, and the exponent that is promised at most.

    The exponent is the slope of log seconds on log size over the upper half of the sizes, where overheads matter least.
    """

    name: str
    label: str
    promised: float
    text: str
    measure: str = "seconds"


AXES = (
    Axis("n", "duels in the pool, n", 1.1, "greedy batch (d=512, 32 picks, 200 past) grows no faster than n^1.1"),
    Axis("d", "dimension of a feature, d", 1.1, "greedy batch (n=4000, 32 picks, 200 past) grows no faster than d^1.1"),
    Axis(
        "m",
        "width of the network, m",
        2.1,
        "exact widths (60 items, 1000 asked duels) grow with m no faster than m^2.1 (parameters are of order m^2)",
    ),
    Axis(
        "T",
        "round, T",
        1.1,
        "seconds per round (NDB's setting, 10 replicates, with fits) grow no faster than T^1.1",
        "seconds a round",
    ),
    Axis("replicates", "replicates, R", 1.05, "a run of 100 rounds grows with the replicates no faster than R^1.05"),
)


def _least(run: Callable[[], object], times: int = 3) -> float:
    run()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _batch(n: int, d: int) -> Callable[[], Tensor]:
    pool, past = gaussian(n, d, "pool"), gaussian(200, d, "past")

    def run() -> Tensor:
        design = GramDesign(1.0)
        design.append(Dense(past))
        return greedy(design.condition(Dense(pool)), 32, torch.ones(n, dtype=torch.bool), torch.zeros(n))

    return run


def _network(width: int) -> Callable[[], Tensor]:
    network, weights, pool, offered, asked, past = scene(width)

    def run() -> Tensor:
        design = GramDesign(1.0)
        design.append(network.value_and_gradient(weights, asked)[1].differences(past))
        return design.widths(network.value_and_gradient(weights, pool)[1].differences(offered))

    return run


def _replicates(count: int) -> Callable[[], float]:
    simulation = replace(
        PRESETS["ndb"][1], contenders=("random", "ucb"), truths=("square",), rounds=100, replicates=count, evaluations=2
    )

    def run() -> float:
        with TemporaryDirectory() as scratch:
            started = time.perf_counter()
            run_cell(simulation, "square", "ucb", Path(scratch))
            return time.perf_counter() - started

    return run


def curves(long: bool) -> Callable[[], Answer]:
    """Measure all axes; the horizon and the replicates on one thread, as the simulator runs."""

    def run() -> Answer:
        threads = torch.get_num_threads()
        sizes = {
            "n": [1000, 2000, 4000, 8000, 16_000, 32_000],
            "d": [256, 512, 1024, 2048, 4096, 8192],
            "m": [256, 512, 1024, 2048, 4096, *([8192] if long else [])],
            "replicates": [1, 2, 4, 8, 16, 32, 64],
        }
        out: dict[str, object] = {}
        seconds = {
            "n": [_least(_batch(n, 512)) for n in sizes["n"]],
            "d": [_least(_batch(4000, d)) for d in sizes["d"]],
            "m": [_least(_network(m), 1) for m in sizes["m"]],
        }
        torch.set_num_threads(1)
        seconds["replicates"] = [_least(_replicates(r), 1) for r in sizes["replicates"]]
        rounds, costs = per_round(2000 if long else 600)
        torch.set_num_threads(threads)
        for name, values in seconds.items():
            out[f"x:{name}"], out[f"y:{name}"] = np.array(sizes[name], dtype=float), np.array(values)
        out["x:T"], out["y:T"] = rounds, costs
        for axis in AXES:
            out[f"slope_{axis.name}"] = exponent(np.asarray(out[f"x:{axis.name}"]), np.asarray(out[f"y:{axis.name}"]))
        pool, past = gaussian(2000, 64, "pool"), gaussian(200, 64, "past")
        design = GramDesign(1.0)
        design.append(Dense(past))
        picks = greedy(design.condition(Dense(pool)), 32, torch.ones(2000, dtype=torch.bool), torch.zeros(2000))
        out["same"] = float(picks.tolist() == naive(pool, past, 32))
        return out

    return run


def exponent(x: np.ndarray, y: np.ndarray) -> float:
    """Return the slope of ``log y`` on ``log x`` over the upper half of the sizes."""
    upper = len(x) // 2
    return float(np.polyfit(np.log(x[upper:]), np.log(y[upper:]), 1)[0])


def check(answers: Mapping[str, Answer]) -> Check:
    """The picks of the timed code are the naive reference's on a small pool."""
    same = answers["ours"]["same"] == 1
    return Check(
        bool(same), f"picks {'identical to' if same else 'DIFFER from'} the naive float64 reference (n=2000, d=64)"
    )


def _row(name: str, long: bool) -> Row:
    return Row(
        name,
        "Growth of cost",
        "sizes doubled one at a time" + (", m to 8192, T to 2000" if long else ""),
        Contender("ours", curves, {"long": long}),
        check,
        tuple(Target("figure", axis.promised, axis.text, f"slope_{axis.name}") for axis in AXES),
        repetitions=1,
        warm=False,
        long=long,
        profiled=False,
    )


register(_row("growth", False), _row("growth-long", True))
