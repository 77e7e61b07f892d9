"""Row: a batch of duels of a pool whose items' features lie in a file, given earlier answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from bandits.ask import Selector
from bandits.core.rng import Key
from bandits.core.stored import Stored
from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register

RIDGE = 1.0
RESPONSES = 7
PLACES = [(a, b) for a in range(RESPONSES) for b in range(a + 1, RESPONSES)]
SIZE = {"items": 10_003, "d": 8192, "past": 1000, "picks": 50}
SMALL = {"items": 301, "d": 48, "past": 40, "picks": 20}


@contextmanager
def _mapped(items: int, d: int) -> Iterator[np.ndarray]:
    """Write float32 rows whose coordinates fade as ``j^{-1/4}`` to a file, part by part, and map it."""
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        for start in range(0, items, 1000):
            generator = Key(start).fold_in("pool").torch_generator()
            part = torch.randn(min(1000, items - start), d, generator=generator) * torch.arange(1, d + 1) ** -0.25
            file.write(part.numpy().tobytes())
        file.flush()
        yield np.memmap(file.name, np.float32, "c", shape=(items, d))


def _groups(items: int) -> np.ndarray:
    return np.arange(items) // RESPONSES


def _answered(items: int, past: int) -> np.ndarray:
    first = Key(0).fold_in("past").generators()[0].permutation(items // RESPONSES)[:past] * RESPONSES
    return np.stack([first, first + 1], -1)


def _pick(pool: np.ndarray, past: int, picks: int) -> np.ndarray:
    selector = Selector("activedpo", ridge=RIDGE)
    selector.tell([1.0] * past, duels=_answered(len(pool), past))
    return selector.ask(pool, picks, groups=_groups(len(pool)))


def ours(items: int, d: int, past: int, picks: int) -> Callable[[], Answer]:
    """Ask for a batch; and the same of a pool that is small enough for the reference."""
    with _mapped(items, d) as pool, _mapped(SMALL["items"], SMALL["d"]) as few:
        checked = _pick(few, SMALL["past"], SMALL["picks"])
    return lambda: {"picks": _pick(pool, past, picks), "small": checked}


def yardstick(items: int, d: int, past: int, picks: int) -> Callable[[], Answer]:
    """One pass over the file, and one product of it with the past's features, in double precision."""
    with _mapped(items, d) as pool:
        rows = Stored(torch.from_numpy(pool))
    duels = _answered(items, past)

    def run() -> Answer:
        facing = rows.take(torch.from_numpy(duels[:, 0]))
        facing = type(facing)(facing.values - rows.take(torch.from_numpy(duels[:, 1])).values)
        total = sum(float(part.sum()) for _, part in rows.parts())
        return {"total": total, "product": rows.inner(facing).sum()}

    return run


def check(answers: Mapping[str, Answer]) -> Check:
    """Compare the small pool's batch with ``V`` itself, inverted for every pick."""
    items, d, past, picks = SMALL.values()
    with _mapped(items, d) as pool:
        values = torch.from_numpy(np.array(pool, dtype=np.float64))
    pairs = torch.tensor([(g + a, g + b) for g in range(0, items, RESPONSES) for a, b in PLACES])
    phi = values[pairs[:, 0]] - values[pairs[:, 1]]
    known = {tuple(duel) for duel in _answered(items, past).tolist()}
    gone = torch.tensor([tuple(pair) in known for pair in pairs.tolist()])
    v = RIDGE * torch.eye(d, dtype=torch.float64) + phi[gone].mT @ phi[gone]
    chosen = []
    for _ in range(picks):
        widths = torch.where(gone, -torch.inf, (phi * torch.linalg.solve(v, phi.mT).mT).sum(-1))
        best = int(widths.argmax())
        chosen.append(pairs[best].tolist())
        gone[best] = True
        v = v + torch.outer(phi[best], phi[best])
    same = answers["ours"]["small"].tolist() == chosen
    return Check(same, f"picks {'identical to' if same else 'DIFFER from'} the naive float64 reference on a small pool")


register(
    Row(
        "select",
        "A batch from a pool on disk, given earlier answers",
        "10,003 responses × 8192 float32 mapped from a file, 30,009 duels (7 a prompt), 50 picks, 1000 answered",
        Contender("ours", ours, SIZE),
        check,
        (
            Target("yardstick", 2, "at most 2 times one pass over the file and one product with the past"),
            Target("memory", 2, "less than 2 GB beside the mapped file"),
        ),
        yardstick=Contender("one pass, one product", yardstick, SIZE),
        repetitions=3,
        memory="beside",
    )
)
