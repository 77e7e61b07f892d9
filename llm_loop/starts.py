"""Owns what LoRA's start means for the first choice: B = 0 against A = 0, on one pool, before any label.

``python -m llm_loop.starts PRESET [options]``, with the options of ``python -m llm_loop``.  Where B is 0, A has no
gradient, and where A is 0, B has none, so that either start sees the model's uncertainty through half of its parameters
alone, each through another half.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.duels import Labelled
from bandits.core.greedy import greedy
from bandits.core.rng import Key
from bandits.loop import DesignState
from bandits.runs import command
from bandits.runs.command import guard, say
from bandits.runs.stats import rank_correlation
from llm_loop.__main__ import COMMAND
from llm_loop.arena import DrawnArena, Table
from llm_loop.config import Alignment
from llm_loop.run import COMPARED
from llm_loop.setup import Parts, authors, build, check, quiet_libraries


@dataclass(frozen=True, eq=False)
class Start:
    """A pool of duels as a start sees it."""

    widths: Float[Tensor, " n"]
    """``‖φ‖_{V⁻¹}`` without labels, of the duels on offer"""
    picks: Int64[Tensor, " b"]
    """the first batch, greedy by log det"""
    zero: float
    """share of (response, A-matrix) pairs whose gradient is exactly 0"""


def look(alignment: Alignment, parts: Parts, table: Table | None) -> tuple[Start, Table]:
    """Return what a start sees of a pool; the initial model draws it where it is not given."""
    setup = build(alignment, parts, alignment.strategies[0], 0)
    if table is not None:
        setup.arena.tables[0] = table
    elif isinstance(setup.arena, DrawnArena):  # its pool is the run's
        others = authors(alignment, parts, setup.arena.prompts)
        setup.arena.pool_table = setup.arena.draw_pool(Key(alignment.seed).fold_in("pool"), others)
    offer = setup.arena.offer(0)
    state = DesignState(COMPARED, alignment.ridges.of(COMPARED), alignment.batch)
    seen = state.look(setup.learner, offer, Labelled())
    ties = torch.zeros(offer.duels.count, dtype=torch.float64)
    picks = greedy(seen, alignment.batch, offer.available, ties)
    zero = setup.learner.zero_share(offer.items.rows)
    assert zero is not None  # gradients were just made
    return Start(seen.widths[offer.available], picks, zero), setup.arena.table


def compare(alignment: Alignment) -> list[str]:
    """Return how the two starts differ, a line a fact."""
    parts = Parts.of(alignment)
    found, table = {}, None
    for init in ("b0", "a0"):
        adapter = replace(alignment.adapter, init=init)
        found[init], table = look(replace(alignment, adapter=adapter), parts, table)
    return told(found["b0"], found["a0"])


def told(b0: Start, a0: Start) -> list[str]:
    """Return the same in words."""
    common, batch, duels = len(set(b0.picks.tolist()) & set(a0.picks.tolist())), len(b0.picks), len(b0.widths)
    spread = [float(start.widths.std() / start.widths.mean()) for start in (b0, a0)]
    return [
        f"{duels} duels of one pool, in the space of activedpo-normalised, before any label",
        f"A-matrices without a gradient: {b0.zero:.0%} with B = 0, {a0.zero:.0%} with A = 0",
        f"widths: rank correlation {float(rank_correlation(b0.widths, a0.widths)):.2f}; their spread over their mean "
        f"{spread[0]:.2f} with B = 0, {spread[1]:.2f} with A = 0",
        f"picks: {common} of {batch} in common; {batch * batch / duels:.1f} would be by chance",
    ]


def run(arguments: Sequence[str]) -> int:
    """Run the command line."""
    _, options = command.parse(replace(COMMAND, program="python -m llm_loop.starts"), arguments)
    check(options.settings, Parts.of(options.settings))
    with quiet_libraries():
        say(*compare(options.settings))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
