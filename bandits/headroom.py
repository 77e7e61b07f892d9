"""Owns the headroom meter: how much the best choice of duels can gain over random ones, before any label is bought.

Sees features only: rows of duels that may be labelled, rows of duels whose margins are to become known, and ``V``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bandits.core.design import Design, Posterior, factorised
from bandits.core.errors import InputError
from bandits.core.given import numbers, positive, whole
from bandits.core.greedy import greedy_trace
from bandits.core.rng import Key
from bandits.core.rows import Dense, Rows
from bandits.runs.stats import ROUNDING, Estimate, mean

WORTH = 0.05
"""The share of labels below which choosing is not worth its trouble."""

Features = Rows | np.ndarray | Tensor | pd.DataFrame | Sequence[Sequence[float]]


@dataclass(frozen=True, eq=False)
class Headroom:
    """What choosing can save over drawing at random, by the variance of target margins alone.

    ``error_saved`` is the share by which the root mean square error at ``budget`` labels is lower; ``labels_saved`` the
    share of the budget that the chosen design can do without to be as exact as random draws are with all of it (less
    than 0: it needs more).  Intervals are 95 % for the mean over random draws, or over replicates where the rows have
    them.  ``curve`` has the expected error by ``labels``: ``random`` with ``random_low`` and ``random_high``, and
    ``chosen``.  ``note`` says what was left out.
    """

    budget: int
    error_saved: Estimate
    labels_saved: Estimate
    curve: pd.DataFrame
    note: str = ""

    @property
    def verdict(self) -> str:
        """Say in one line whether to choose."""
        saved, last = self.labels_saved, self.curve.iloc[-1]
        interval = f" [{100 * saved.low:.0f}, {100 * saved.high:.0f}]" if math.isfinite(saved.low) else ""
        errors = f"error {last['chosen']:.3g} in place of {last['random']:.3g}, by variance alone"
        if saved.value < WORTH:
            return (
                f"choosing saves {100 * saved.value:.0f} %{interval} of {self.budget} labels ({errors}), less than "
                f"{100 * WORTH:.0f} %: sample at random"
            )
        return (
            f"choosing can save about {100 * saved.value:.0f} %{interval} of {self.budget} labels, "
            f"{self.budget * saved.value:.0f} labels ({errors})"
        )


def headroom(
    pool: Features,
    target: Features | None = None,
    *,
    ridge: float,
    budget: int,
    labelled: Features | None = None,
    kappa: float = 1.0,
    draws: int = 16,
    candidates: int = 10_000,
    targets: int = 1000,
    key: Key | None = None,
) -> Headroom:
    """Predict what ``budget`` labels chosen from ``pool`` can save over as many drawn from it at random.

    The error is ``(mean_f ‖f‖²_{V⁻¹} / κ)^½`` over target duels ``f``: with ``ridge = λ/κ`` it is the root mean square
    of their margins' posterior standard deviations (log-odds) under the prior ``N(0, I/λ)`` for ``θ`` and labels of
    information ``κ`` each, so the expected error of the linearised fit if the truth is a draw of that prior.  What the
    model cannot represent, its bias, is not in it.  κ scales the error and no saving.  The chosen design is greedy
    (:func:`bandits.core.greedy.greedy_trace`), so the best one may save more; labels do not enter ``V``, so the size of
    a batch makes no difference.

    ``pool``, ``target`` (default: the pool itself) and ``labelled`` (duels answered before) are features φ of duels,
    ``(n, d)`` arrays, lists, tensors or rows, on a memory map too; all may have a replicate dimension in front.
    At most ``candidates`` of the pool and ``targets`` of the target are looked at, drawn at random; memory is
    ``candidates · (d + targets)`` numbers.

    Raises ``InputError``, naming the argument, for an empty target, another number of columns, a budget outside
    ``[1, pool]``, or what is not a number.
    """
    kappa, ridge = positive(kappa, "headroom: kappa"), positive(ridge, "headroom: the ridge")
    draws, candidates = whole(draws, "headroom: draws", 2), whole(candidates, "headroom: candidates", 1)
    targets, budget = whole(targets, "headroom: targets", 1), whole(budget, "headroom: budget")
    if key is not None and not isinstance(key, Key):
        raise InputError(f"headroom: key is a bandits.Key, such as Key(0), got {key!r:.60}")
    key, itself = key or Key(0), target is None or target is pool
    pool = _given(pool, "pool")
    target = None if itself or target is None else _given(target, "target")
    labelled = None if labelled is None else _given(labelled, "labelled")
    size = _count(pool)
    if not 1 <= budget <= size:
        raise InputError(f"headroom: a budget of {budget} labels asked about, but the pool has {size} duels")
    notes: list[str] = []
    rows = _rows(pool, "pool", max(candidates, budget), key, notes)
    if target is None:
        aims = rows if rows.count <= targets else _rows(rows, "target", targets, key, notes)
        notes.append("the target is the pool itself")
    else:
        aims = _rows(target, "target", targets, key, notes, like=rows)
    design = Design.of(rows, ridge)
    if labelled is not None and _count(labelled):
        design.append(_rows(labelled, "labelled", _count(labelled), key, notes, like=rows))
    seen = design.condition(rows)
    facing = seen if aims is rows else design.condition(aims)
    start = facing.widths.square().mean(-1)
    chosen = _errors(start, _chosen(seen, facing, budget) / facing.rows.count, kappa)
    drawn = _errors(start.unsqueeze(-1), _drawn(seen, facing, budget, draws, key) / facing.rows.count, kappa)
    return _compare(budget, chosen, drawn, "; ".join(notes))


Table = Rows | np.ndarray | Tensor


def _given(features: Features, name: str) -> Table:
    """Return features as rows or a table, a mapped one where it lies; ``InputError`` for what are neither."""
    if isinstance(features, Rows):
        return features
    table = features if isinstance(features, np.ndarray) else numbers(features, f"headroom: the {name}")
    if table.ndim not in (2, 3) or not table.shape[-1]:
        raise InputError(f"headroom: the {name} has rows of duels' features, (n, d), got shape {tuple(table.shape)}")
    return table


def _count(table: Table) -> int:
    return table.count if isinstance(table, Rows) else int(table.shape[-2])


def _rows(features: Table, name: str, most: int, key: Key, notes: list[str], like: Rows | None = None) -> Rows:
    """Return rows of numbers, at most so many of them; refuse what is none."""
    count = _count(features)
    if count == 0:
        raise InputError(f"headroom: the {name} is empty; there is nothing to tell of it")
    index = None
    if count > most:
        drawn = key.fold_in("headroom", name).only(0) if key.replicates else key.fold_in("headroom", name)
        index = np.sort(drawn.generators()[0].choice(count, most, replace=False))
        notes.append(f"{most:,} of {count:,} {name} duels, drawn at random")
    if isinstance(features, Rows):
        if index is not None:
            lead = features.squares().shape[:-1]
            features = features.take(torch.from_numpy(index).expand(*lead, -1))
        rows = features
    else:
        part = features if index is None else features[..., index, :]
        values = numbers(part, f"headroom: the {name}")
        if values.dtype not in (torch.float32, torch.float64):
            values = values.to(torch.float32 if values.dtype.is_floating_point else torch.float64)
        rows = Dense(values)
    if not rows.finite():
        raise InputError(f"headroom: a feature of the {name} is NaN or infinite")
    if isinstance(rows, Dense) and isinstance(like, Dense):
        if rows.values.shape[-1] != like.values.shape[-1]:
            raise InputError(
                f"headroom: {name} has {rows.values.shape[-1]} columns, the pool {like.values.shape[-1]}; both must "
                "be features of one model"
            )
        if rows.values.shape[:-2] != like.values.shape[:-2]:
            shapes = f"{tuple(rows.values.shape)}, the pool {tuple(like.values.shape)}"
            raise InputError(f"headroom: {name} has shape {shapes}; both must have the same replicates, or none")
        rows = Dense(rows.values.to(like.values.dtype))
    return rows


def _chosen(pool: Posterior, target: Posterior, budget: int) -> Float[Tensor, "*r budget"]:
    """Return by how much each greedy pick lowers the sum of target variances."""
    free = torch.ones_like(pool.residuals, dtype=torch.bool)
    order = torch.arange(free.shape[-1], 0, -1, dtype=pool.residuals.dtype).expand(free.shape)
    return greedy_trace(pool, target, budget, free, order.to(free.device))[1]


def _drawn(pool: Posterior, target: Posterior, budget: int, draws: int, key: Key) -> Float[Tensor, "*r draws budget"]:
    """Return by how much each randomly drawn duel lowers the sum of target variances.

    With ``L`` the Cholesky factor of the drawn duels' ``ridge + K``, in the order drawn, duel ``s`` lowers the variance
    of target ``f`` by ``(L⁻¹ K_f)²_s / ridge``: one factor gives the whole curve.
    """
    count, lead = pool.rows.count, pool.residuals.shape[:-1]
    lowered = []
    for number in range(draws):
        source = key.fold_in("headroom", "draw", number)
        orders = np.stack([generator.permutation(count)[:budget] for generator in source.generators()])
        index = torch.from_numpy(orders).to(pool.residuals.device)
        sample = pool.take(index if len(lead) and key.replicates else index[0].expand(*lead, -1))
        own = sample.inner(sample)
        own.diagonal(dim1=-2, dim2=-1).add_(pool.ridge)
        along = torch.linalg.solve_triangular(factorised(own, pool.ridge), sample.inner(target), upper=False)
        lowered.append(along.square().sum(-1) / pool.ridge)
    return torch.stack(lowered, -2)


def _errors(start: Tensor, lowered: Tensor, kappa: float) -> np.ndarray:
    """Return the root mean square error after 0, 1, … labels."""
    start, lowered = start.double().unsqueeze(-1), lowered.double()
    left = (start - lowered.cumsum(-1)).clamp(min=0)
    left = torch.cat([start.expand(*left.shape[:-1], 1), left], -1)
    return (left / kappa).sqrt().cpu().numpy()


def _compare(budget: int, chosen: np.ndarray, drawn: np.ndarray, note: str) -> Headroom:
    """Compare errors by labels ``(*r, budget + 1)`` of the chosen design with those of random ones, draw by draw."""
    labels = np.arange(budget + 1)
    single = chosen.ndim == 1
    chosen, drawn = np.atleast_2d(chosen), drawn[None] if single else drawn
    first, last = drawn[..., 0], drawn[..., -1]
    idle = last >= first * (1 - ROUNDING)
    for found, words in (
        (idle.any(), "drawn labels tell nothing of the target"),
        ((last == 0).any(), "draws tell all"),
    ):
        note = "; ".join(part for part in (note, words if found else "") if part)
    error = 1 - np.divide(chosen[:, None, -1], last, out=np.ones_like(last), where=last > 0)
    saved = np.empty_like(last)
    for r, curve in enumerate(chosen):
        for d, random in enumerate(drawn[r]):
            # Errors only fall: read the labels off the curves, backwards, where they lie between two whole numbers.
            if idle[r, d]:
                saved[r, d] = float(curve[-1] < curve[0] * (1 - ROUNDING))
            elif curve[-1] <= random[-1]:
                saved[r, d] = 1 - np.interp(random[-1], curve[::-1], labels[::-1]) / budget
            else:
                saved[r, d] = np.interp(curve[-1], random[::-1], labels[::-1]) / budget - 1

    def over(values: np.ndarray) -> Estimate:
        return mean(values[0] if single else values.mean(1))

    points = [over(drawn[..., label]) for label in labels]
    curve = pd.DataFrame(
        {
            "labels": labels,
            "random": [point.value for point in points],
            "random_low": [point.low for point in points],
            "random_high": [point.high for point in points],
            "chosen": chosen.mean(0),
        }
    )
    return Headroom(budget, over(error).within(-math.inf, 1.0), over(saved).within(-1.0, 1.0), curve, note)
