"""Rows: exact full-``V`` widths of wide networks, without forming a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from bandits.core.design import GramDesign
from bandits.core.duels import Duels
from bandits.core.rng import Key
from bandits.core.rows import Dense, ItemRows
from bandits.sim.networks import MLP, Weights
from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register

ITEMS, ASKED, INPUTS, DEPTH, RIDGE = 60, 1000, 5, 3, 1.0
NARROW = 48  # the width at which gradients are formed in float64, by autograd, to check


def scene(width: int) -> tuple[MLP, Weights, Tensor, Duels, Tensor, Duels]:
    """Return network, weights, 60 pool items with all 90 duels in threes, 2000 asked items with their 1000 duels."""
    key = Key(0)
    network = MLP(INPUTS, width, DEPTH)
    pool, asked = key.fold_in("pool").normal(ITEMS, INPUTS), key.fold_in("asked").normal(2 * ASKED, INPUTS)
    place = torch.arange(ASKED)
    triples = Duels.within(ITEMS // 3, 3)
    return network, network.initial(key), pool, triples, asked, Duels(2 * place, 2 * place + 1)


def _widths(rows: Callable[[Tensor], ItemRows], pool: Tensor, offered: Duels, asked: Tensor, past: Duels) -> Tensor:
    design = GramDesign(RIDGE)
    design.append(rows(asked).differences(past))
    return design.widths(rows(pool).differences(offered))


def ours(width: int) -> Callable[[], Answer]:
    """Layer factors."""
    network, weights, pool, offered, asked, past = scene(width)
    narrow, thin = scene(NARROW)[:2]  # the items and duels are the same at any width
    checked = _widths(lambda x: narrow.value_and_gradient(thin, x)[1], pool, offered, asked, past)

    def run() -> Answer:
        widths = _widths(lambda x: network.value_and_gradient(weights, x)[1], pool, offered, asked, past)
        return {"widths": widths, "narrow": checked}

    return run


def by_autograd(network: MLP, weights: Weights, x: Tensor) -> Dense:
    """Return every item's gradient, formed by ``torch.func``."""

    def value(w: Weights, point: Tensor) -> Tensor:
        return network.value(w, point.unsqueeze(0)).squeeze(0)

    gradients = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))(weights, x)
    return Dense(torch.cat([g.flatten(1) for g in gradients], -1))


def explicit(width: int) -> Callable[[], Answer]:
    """Gradients formed by ``torch.func.vmap(grad)``, then the same algebra."""
    network, weights, pool, offered, asked, past = scene(width)
    return lambda: {"widths": _widths(lambda x: by_autograd(network, weights, x), pool, offered, asked, past)}


def check(answers: Mapping[str, Answer]) -> Check:
    """Compare with ``V`` formed and inverted, from autograd's gradients, at a narrow width; and with the peer's."""
    network, weights, pool, offered, asked, past = scene(NARROW)
    old = by_autograd(network, weights, asked).differences(past).values
    new = by_autograd(network, weights, pool).differences(offered).values
    v = RIDGE * torch.eye(old.shape[-1], dtype=torch.float64) + old.mT @ old
    want = (new * torch.linalg.solve(v, new.mT).mT).sum(-1).sqrt().numpy()
    off = float(np.abs(answers["ours"]["narrow"] - want).max() / want.max())
    text = f"against V itself, from autograd's gradients, m={NARROW}: {off:.1e}"
    ok = off < 1e-8
    if "explicit gradients" in answers:
        rival = answers["explicit gradients"]["widths"]
        gap = float(np.abs(answers["ours"]["widths"] - rival).max() / rival.max())
        ok, text = ok and gap < 1e-8, f"{text}; at full width against explicit gradients: {gap:.1e}"
    return Check(ok, text)


def _row(
    name: str,
    width: int,
    targets: tuple[Target, ...],
    peers: tuple[Contender, ...] = (),
    repetitions: int = 3,
    long: bool = False,
) -> Row:
    return Row(
        name,
        "Exact widths of wide networks",
        f"m={width}, depth {DEPTH}, {ITEMS} items, {ASKED} asked duels of {2 * ASKED} items, float64",
        Contender("ours", ours, {"width": width}),
        check,
        targets,
        peers,
        repetitions=repetitions,
        long=long,
        bound="Matrix products in float64: 2060 items forward and backward through 4096 x 4096 weights are 140 GFLOP.",
    )


register(
    _row(
        "widths-256",
        256,
        (Target("peer", 1, "not slower than explicit gradients"),),
        (Contender("explicit gradients", explicit, {"width": 256}, repetitions=2),),
    ),
    _row("widths-4096", 4096, (Target("seconds", 10, "less than 10 s"), Target("memory", 2, "less than 2 GB"))),
)
