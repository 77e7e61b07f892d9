"""Owns what the machine allows: the time that a number of multiplications and of bytes cost at the machine's peak.

A limit is no other way to do the work, which ours may beat by doing less.  It is the least work that any way must do
(floating-point operations of the products that the answer depends on, bytes that must be read once), timed in the
shape that suits the machine best: one square matrix product, one long sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness.row import Answer

SIDE = 2048  # of the square product: large enough for the peak, small enough for the caches' blocking
LANE = 2**26  # numbers of the array that is summed: larger than any cache


def at_peak(flops: float, bytes_read: float) -> Callable[[], Answer]:
    """Return a run that computes ``flops`` in float32 square products and reads ``bytes_read`` from memory.

    The part of a product or pass that is left over is made up by a smaller one, so a run takes the time of just so many
    operations and bytes.
    """
    square = torch.ones(SIDE, SIDE)
    out = torch.empty(SIDE, SIDE)
    lane = torch.ones(LANE)
    whole, left = divmod(flops, 2 * SIDE**3)
    columns = round(left / (2 * SIDE**2))
    passes, rest = divmod(bytes_read, 4 * LANE)

    def run() -> Answer:
        total = 0.0
        for _ in range(int(whole)):
            torch.matmul(square, square, out=out)
        if columns:
            total += float((square @ square[:, :columns])[0, 0])
        for _ in range(int(passes)):
            total += float(lane.sum())
        return {"total": total + float(lane[: int(rest / 4)].sum()), "flops": flops, "bytes": bytes_read}

    return run
