"""Owns the forecast beside a study: what choosing can save of its labels, told before any is bought."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from bandits.core.duels import Duels
from bandits.core.rng import Key
from bandits.headroom import headroom
from bandits.loop import DesignState
from bandits.runs.directory import Ledger, config_hash
from llm_loop.arena import Completions, DrawnArena
from llm_loop.measures import draw_fixed
from llm_loop.run import COMPARED, AlignmentStudy
from llm_loop.setup import build, quiet_libraries
from llm_loop.shared import Shared


def place(study: AlignmentStudy, output: Path) -> Path:
    """Return the folder of a run's forecasts, beside the runs."""
    return output / "studies" / f"headroom-{config_hash(study.identity().config)}"


def foretold(
    study: AlignmentStudy, output: Path, seeds: int, cells: tuple[int, int], play: bool
) -> list[dict[str, Any]]:
    """Return the forecasts of the first seeds, made if they are missing and of this part of the cells."""
    found = []
    for seed in range(min(seeds, study.alignment.seeds)):
        folder = place(study, output)
        mine = play and seed % cells[1] == cells[0] - 1
        if mine or Ledger(folder / f"seed-{seed}").whole:
            found.append(Shared(folder).json(f"seed-{seed}", partial(foresee, study, seed, folder)))
    return found


def foresee(study: AlignmentStudy, seed: int, folder: Path) -> dict[str, Any]:
    """Return the share of labels that the best choice from the pool can save, by variance alone.

    At θ0, in the space that ActiveDPO measures in; the target is two fixed responses to each of some held-out prompts.
    """
    alignment = study.alignment
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with quiet_libraries():
            setup = build(alignment, study.parts, alignment.strategies[0], seed)
            study.lay_out(setup, folder / "cells" / "forecast")
            assert isinstance(setup.arena, DrawnArena)
            assert setup.arena.pool_table is not None
            state = DesignState(COMPARED, alignment.ridges.of(COMPARED), alignment.batch)
            items, fixed = setup.arena.pool_table.items, draw_fixed(setup).rows
            pool = state.rows(setup.learner, items, Duels.within(items.prompts, items.responses))
            aims = Completions(fixed, 2, torch.zeros(len(fixed), dtype=torch.float64))
            target = state.rows(setup.learner, aims, Duels.within(aims.prompts, 2))
    finally:
        torch.set_num_threads(threads)
    budget = alignment.rounds * alignment.batch
    told = headroom(pool, target, ridge=alignment.ridges.of(COMPARED), budget=budget, key=Key(seed))
    return {
        "seed": seed,
        "budget": budget,
        "labels_saved": told.labels_saved.value,
        "error_saved": told.error_saved.value,
        "duels": pool.count,
        "targets": target.count,
    }
