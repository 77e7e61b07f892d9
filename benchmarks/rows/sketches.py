"""Row: random projection of gradients, alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.core.sketches import CountSketch, ShiftSketch
from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register

N, P, SIZE = 64, 921_600, 8192


def gradients() -> Tensor:
    """Return 64 float32 rows of 921,600 coordinates with a common part, as gradients of one model have."""
    generator = Key(0).fold_in("gradients").torch_generator()
    return torch.randn(1, P, generator=generator) + torch.randn(N, P, generator=generator)


def _error(rows: Tensor, sketched: Tensor) -> float:
    """Return ``max |⟨Sa, Sb⟩ - ⟨a, b⟩| / (‖a‖‖b‖)`` in float64, over blocks of coordinates."""
    gram = sum(part.double() @ part.double().mT for part in rows.split(100_000, -1))
    assert isinstance(gram, Tensor)
    norms = gram.diagonal().sqrt()
    small = sketched.double()
    return float(((small @ small.mT - gram) / torch.outer(norms, norms)).abs().max())


def _timed(project: Callable[[Tensor], Any]) -> Callable[[], Answer]:
    rows = gradients()
    return lambda: {"sketch": torch.as_tensor(project(rows))}


def shifts() -> Callable[[], Answer]:
    """The shift sketch."""
    sketch = ShiftSketch.draw(P, SIZE, Key(1))
    return _timed(lambda rows: sketch(Dense(rows)).values)


def counts() -> Callable[[], Answer]:
    """The count-sketch, whose buckets are independent."""
    sketch = CountSketch.draw(P, SIZE, Key(1))
    return _timed(lambda rows: sketch(Dense(rows)).values)


def scikit(density: float | str) -> Callable[[], Answer]:
    """scikit-learn's sparse projection; its matrix is built beforehand."""
    from sklearn.random_projection import SparseRandomProjection

    projection = SparseRandomProjection(SIZE, density=density, random_state=1)
    projection.fit(np.zeros((1, P), dtype=np.float32))
    projection.components_ = projection.components_.astype(np.float32)
    return _timed(lambda rows: projection.transform(rows.numpy()))


def trak(coordinates: int) -> Callable[[], Answer]:
    """TRAK's projector on some coordinates, divided by ``√size``, which it leaves out."""
    from trak.projectors import BasicProjector, ProjectionType

    projector = BasicProjector(coordinates, SIZE, 1, ProjectionType.rademacher, "cpu", block_size=128)
    rows = gradients()[:, :coordinates].contiguous()
    return lambda: {"part": projector.project(rows, 0) / SIZE**0.5}


def dattri(coordinates: int) -> Callable[[], Answer]:
    """dattri's random projection on some coordinates."""
    from dattri.func.projection import random_project

    rows = gradients()[:, :coordinates].contiguous()
    project = random_project(rows, N, proj_dim=SIZE, proj_max_batch_size=32, device="cpu", proj_seed=1)
    return lambda: {"part": project(rows)}


def passing() -> Callable[[], Answer]:
    """Reading the rows once."""
    rows = gradients()
    return lambda: {"sum": float(rows.sum())}


def check(answers: Mapping[str, Answer]) -> Check:
    """Compare Gram matrices in float64, and our sketch with the explicit sum over coordinates."""
    rows = gradients()
    errors = {n: _error(rows, torch.from_numpy(a["sketch"])) for n, a in answers.items() if "sketch" in a}
    mine, sketch = answers["ours"]["sketch"], ShiftSketch.draw(P, SIZE, Key(1))
    place = (np.arange(P) + np.repeat(sketch.shift.numpy(), SIZE)[:P]) % SIZE
    slow = np.bincount(place, weights=rows[0].double().numpy() * sketch.sign.double().numpy(), minlength=SIZE)
    off = float(np.abs(mine[0] - slow).max() / np.abs(slow).max())
    rivals = [error for name, error in errors.items() if name != "ours"]
    equal = all(errors["ours"] <= 1.5 * error for error in rivals)
    listed = ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
    return Check(
        off < 1e-5 and equal and errors["ours"] < 6 / SIZE**0.5,
        f"against the sum in float64: {off:.1e}; largest relative Gram error: {listed}",
    )


PART = 9216  # coordinates given to projectors that draw a dense matrix

register(
    Row(
        "sketch",
        "Sketch alone",
        f"{N} x {P:,} float32 to {SIZE}",
        Contender("ours", shifts),
        check,
        (Target("peer", 5, "at least 5 times as fast as the fastest peer at equal Gram error"),),
        (
            Contender("count-sketch, scattered (own code)", counts, repetitions=2, own=True),
            Contender("scikit-learn, density 1/size", scikit, {"density": 1 / SIZE}, ("sklearn",), repetitions=3),
            Contender("scikit-learn, its default density", scikit, {"density": "auto"}, ("sklearn",), repetitions=2),
            Contender(
                f"TRAK BasicProjector ({PART} coordinates, times {P // PART})",
                trak,
                {"coordinates": PART},
                ("trak",),
                scale=P / PART,
                repetitions=1,
            ),
            Contender(
                f"dattri random_project ({PART} coordinates, times {P // PART})",
                dattri,
                {"coordinates": PART},
                ("dattri",),
                scale=P / PART,
                repetitions=1,
            ),
        ),
        yardstick=Contender("one pass over the rows", passing),
    )
)
