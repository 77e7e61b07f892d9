"""Rows: greedy D-optimal and trace batches, after many past duels and from a large memory-mapped pool."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bandits.core.design import GramDesign, WhitenedDesign
from bandits.core.greedy import greedy, greedy_trace
from bandits.core.rng import Key
from bandits.core.rows import Dense
from benchmarks.harness.limit import at_peak
from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register

RIDGE = 1.0
LIMIT = "at most 3 times what the machine allows (the products with the past at peak, the pool read once)"
SMALL = {"n": 2000, "d": 96, "past": 150, "picks": 40}  # what the float64 reference is run on


def gaussian(n: int, d: int, name: str, seed: int = 0) -> Tensor:
    """Return ``n`` float32 rows whose coordinates fade as ``j^{-1/4}``, so that widths differ."""
    generator = Key(seed).fold_in(name).torch_generator()
    return torch.randn(n, d, generator=generator) * torch.arange(1, d + 1) ** -0.25


def naive(pool: Tensor, past: Tensor, picks: int) -> list[int]:
    """Return the greedy batch in float64 with ``V`` itself, solved anew for every pick."""
    values = pool.double()
    v = RIDGE * torch.eye(values.shape[-1], dtype=torch.float64) + past.double().mT @ past.double()
    chosen: list[int] = []
    for _ in range(picks):
        widths = (values * torch.linalg.solve(v, values.mT).mT).sum(-1)
        widths[chosen] = -torch.inf
        chosen.append(int(widths.argmax()))
        v = v + torch.outer(values[chosen[-1]], values[chosen[-1]])
    return chosen


def _pick(pool: Tensor, past: Tensor, picks: int, whitened: bool) -> Tensor:
    design = WhitenedDesign(RIDGE) if whitened else GramDesign(RIDGE)
    if len(past):
        design.append(Dense(past))
    free = torch.ones(len(pool), dtype=torch.bool)
    return greedy(design.condition(Dense(pool)), picks, free, torch.zeros(len(pool)))


def ours(n: int, d: int, past: int, picks: int) -> Callable[[], Answer]:
    """Condition on the past, pick the batch; and the same code on the small case."""
    pool, old = gaussian(n, d, "pool"), gaussian(past, d, "past")
    whitened = n > 4 * d
    small = gaussian(SMALL["n"], SMALL["d"], "pool"), gaussian(SMALL["past"], SMALL["d"], "past")
    checked = _pick(*small, SMALL["picks"], whitened)
    return lambda: {"picks": _pick(pool, old, picks, whitened), "small": checked}


def bmdal(n: int, d: int, past: int, picks: int) -> Callable[[], Answer]:
    """bmdal's MaxDet; it picks the small case too."""
    vars(np)["Inf"] = np.inf  # NumPy 2 dropped the name that bmdal uses
    from bmdal_reg.bmdal.feature_data import TensorFeatureData
    from bmdal_reg.bmdal.feature_maps import IdentityFeatureMap
    from bmdal_reg.bmdal.features import Features
    from bmdal_reg.bmdal.selection import MaxDetSelectionMethod

    def select(pool: Tensor, old: Tensor, count: int) -> Tensor:
        features = IdentityFeatureMap(n_features=pool.shape[-1])
        method = MaxDetSelectionMethod(
            Features(features, TensorFeatureData(pool)),
            Features(features, TensorFeatureData(old)),
            sel_with_train=len(old) > 0,
            noise_sigma=RIDGE**0.5,
            verbosity=0,
        )
        return torch.as_tensor(method.select(count))

    pool, old = gaussian(n, d, "pool"), gaussian(past, d, "past")
    small = select(
        gaussian(SMALL["n"], SMALL["d"], "pool"), gaussian(SMALL["past"], SMALL["d"], "past"), SMALL["picks"]
    )
    return lambda: {"picks": select(pool, old, picks), "small": small}


def limit(n: int, d: int, past: int) -> Callable[[], Answer]:
    """Return what the machine allows: a width needs the row's products with all of the past, and the row itself.

    The past's own Gram matrix and its Cholesky factor (``past² d + past³/3``) are needed too; a pick may touch as few
    rows as it likes, so none of its cost is counted.
    """
    return at_peak(2 * n * past * d + past**2 * d + past**3 / 3, 4 * d * (n + past))


def check(answers: Mapping[str, Answer]) -> Check:
    """Compare the small case with the naive reference, and ours with bmdal on the row's own size."""
    want = naive(gaussian(SMALL["n"], SMALL["d"], "pool"), gaussian(SMALL["past"], SMALL["d"], "past"), SMALL["picks"])
    mine = answers["ours"]
    same = mine["small"].tolist() == want
    text = (
        f"picks {'identical to' if same else 'DIFFER from'} the naive float64 reference on n={SMALL['n']}, "
        f"d={SMALL['d']}, {SMALL['past']} past, {SMALL['picks']} picks"
    )
    if "bmdal MaxDet" in answers and len(answers["bmdal MaxDet"]["picks"]) == len(mine["picks"]):
        shared = len(set(mine["picks"].tolist()) & set(answers["bmdal MaxDet"]["picks"].tolist()))
        text += f"; at full size {shared} of {len(mine['picks'])} picks are bmdal's"
    return Check(same, text)


def _past_row(name: str, n: int, d: int, past: int, picks: int) -> Row:
    size = {"n": n, "d": d, "past": past, "picks": picks}
    return Row(
        name,
        "Greedy batch after past duels",
        f"n={n}, d={d}, {picks} picks, {past} past rows, float32",
        Contender("ours", ours, size),
        check,
        (Target("peer", 6, "at least 6 times as fast as bmdal MaxDet"), Target("limit", 3, LIMIT)),
        (Contender("bmdal MaxDet", bmdal, size, ("bmdal_reg",), repetitions=2),),
        limit=Contender("limit", limit, {"n": n, "d": d, "past": past}),
    )


@contextmanager
def _mapped(n: int, d: int) -> Iterator[Tensor]:
    """Write a pool to a file, part by part, and map it."""
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        for start in range(0, n, 10_000):
            part = gaussian(min(10_000, n - start), d, "pool", seed=start)
            file.write(part.numpy().tobytes())
        file.flush()
        yield torch.from_file(file.name, shared=False, size=n * d, dtype=torch.float32).view(n, d)


def pool_ours(n: int, d: int, past: int, picks: int) -> Callable[[], Answer]:
    """Pick from a mapped file; the file is gone when the process ends, the map stays until then."""
    with _mapped(n, d) as pool:
        old = gaussian(past, d, "past")
    small = gaussian(SMALL["n"], SMALL["d"], "pool"), gaussian(SMALL["past"], SMALL["d"], "past")
    checked = _pick(*small, SMALL["picks"], True)
    return lambda: {"picks": _pick(pool, old, picks, True), "small": checked}


def pool_naive(n: int, d: int, past: int) -> Callable[[], Answer]:
    """One pick of the naive rule: widths of all rows from ``V⁻¹``, in float32."""
    pool, old = gaussian(n, d, "pool"), gaussian(past, d, "past")

    def run() -> Answer:
        inverse = torch.linalg.inv(RIDGE * torch.eye(d) + old.mT @ old)
        return {"pick": ((pool @ inverse) * pool).sum(-1).argmax()}

    return run


def naive_trace(pool: Tensor, past: Tensor, picks: int) -> list[int]:
    """Return the greedy trace batch in float64: ``V`` itself is inverted for every pick, the pool is the target."""
    values = pool.double()
    v = RIDGE * torch.eye(values.shape[-1], dtype=torch.float64) + past.double().mT @ past.double()
    chosen: list[int] = []
    for _ in range(picks):
        seen = values @ torch.linalg.inv(v)
        gain = (seen @ values.mT).square().sum(-1) / (1 + (seen * values).sum(-1))
        gain[chosen] = -torch.inf
        chosen.append(int(gain.argmax()))
        v = v + torch.outer(values[chosen[-1]], values[chosen[-1]])
    return chosen


def _trace(pool: Tensor, past: Tensor, picks: int) -> Tensor:
    design = GramDesign(RIDGE)
    design.append(Dense(past))
    seen = design.condition(Dense(pool))
    return greedy_trace(seen, seen, picks, torch.ones(len(pool), dtype=torch.bool), torch.zeros(len(pool)))[0]


def trace(n: int, d: int, past: int, picks: int) -> Callable[[], Answer]:
    """Condition on the past, pick the batch that lowers the pool's variance most; and the same on the small case."""
    pool, old = gaussian(n, d, "pool"), gaussian(past, d, "past")
    small = gaussian(SMALL["n"], SMALL["d"], "pool"), gaussian(SMALL["past"], SMALL["d"], "past")
    checked = _trace(*small, SMALL["picks"])
    return lambda: {"picks": _trace(pool, old, picks), "small": checked}


def check_trace(answers: Mapping[str, Answer]) -> Check:
    """Compare the small case with the naive reference."""
    small = gaussian(SMALL["n"], SMALL["d"], "pool"), gaussian(SMALL["past"], SMALL["d"], "past")
    same = answers["ours"]["small"].tolist() == naive_trace(*small, SMALL["picks"])
    return Check(
        same,
        f"picks {'identical to' if same else 'DIFFER from'} the naive float64 reference on n={SMALL['n']}, "
        f"d={SMALL['d']}, {SMALL['past']} past, {SMALL['picks']} picks",
    )


PAST = {"n": 3000, "d": 8192, "past": 1000, "picks": 50}
POOL = {"n": 200_000, "d": 1024, "past": 500, "picks": 64}

register(
    _past_row("greedy-past", 3000, 8192, 1000, 50),
    _past_row("greedy-past-wide-pool", 10_000, 1024, 500, 64),
    Row(
        "greedy-trace",
        "Greedy trace batch, the pool its own target, after past duels",
        "n=3000, d=8192, 50 picks, 1000 past rows, float32",
        Contender("ours", trace, PAST),
        check_trace,
        (Target("yardstick", 3, "at most 3 times the greedy log-det batch from the same pool"),),
        yardstick=Contender("greedy log det", ours, PAST),
        bound="The Gram matrix of 3000 rows of 8192 is 74 GFLOP, where the log-det batch has 57 GFLOP.",
    ),
    Row(
        "greedy-pool",
        "Greedy batch from a large memory-mapped pool",
        "n=200,000, d=1024, 64 picks, 500 past rows, float32, features mapped from a file",
        Contender("ours", pool_ours, POOL),
        check,
        (Target("memory", 4, "less than 4 GB beside the mapped file"), Target("limit", 3, LIMIT)),
        (
            Contender(
                "naive D-optimal (n=20,000, one pick, times 640)",
                pool_naive,
                {"n": 20_000, "d": 1024, "past": 500},
                scale=640,
                repetitions=2,
            ),
            Contender(
                "bmdal MaxDet (n=20,000, times 10)",
                bmdal,
                POOL | {"n": 20_000},
                ("bmdal_reg",),
                scale=10,
                repetitions=1,
            ),
        ),
        limit=Contender("limit", limit, {name: POOL[name] for name in ("n", "d", "past")}),
        repetitions=3,
        memory="beside",
    ),
)
