"""Owns the page of a batch: what is asked and why, what choosing can save, how the batch covers the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bandits.headroom import Headroom
from bandits.loop import Round
from bandits.runs.figures import panels, picture
from bandits.runs.files import write_text
from bandits.runs.page import Picture, render
from labelling.queries import Query
from labelling.settings import Settings
from llm_loop.diagnostics import Reasons


def write(
    path: Path,
    settings: Settings,
    asked: Sequence[Query],
    round: Round[Any, Any],
    why: Reasons | None,
    worth: Headroom | None,
    told: Sequence[str],
) -> None:
    """Write the page, one self-contained HTML file."""
    pictures: list[Picture] = []
    if worth is not None:
        pictures.append(picture("headroom", HEADROOM, _curve(worth)))
    if why is not None:
        pictures.append(picture("coverage", COVERAGE, _widths(round, why)))
    numbers = {query.id: f"no. {number}" for number, query in enumerate(asked, start=1)}
    html = render(
        "labelling",
        "batch.html.j2",
        settings=settings,
        queries=asked,
        why=[_named(query, numbers) for query in asked],
        told=told,
        note="" if worth is None else worth.note,
        pictures={one.name: one for one in pictures},
    )
    write_text(path, html)


HEADROOM = (
    "Expected error of the pool's margins by labels, by variance alone: chosen duels, and random ones with a 95 % "
    "interval of their mean. Where the curves lie together, sample at random."
)
COVERAGE = (
    "Left: widths of the pool's duels before the batch, and of those picked. Right: how like each duel of the pool is "
    "to the most similar one picked (cosine in V⁻¹; 1: it is as good as asked)."
)


def _named(query: Query, numbers: Mapping[str, str]) -> str:
    """Return why a duel was picked, the one it is most like by its number on the page."""
    near = query.nearest or ""
    return query.why.replace(near, numbers[near]) if near in numbers else query.why


def _curve(worth: Headroom) -> Figure:
    figure, (axis,) = panels(1)
    curve = worth.curve
    axis.plot(curve["labels"], curve["random"], label="random", color="#777777")
    axis.fill_between(curve["labels"], curve["random_low"], curve["random_high"], color="#777777", alpha=0.25, lw=0)
    axis.plot(curve["labels"], curve["chosen"], label="chosen", color="#0072b2")
    axis.set(xlabel="labels", ylabel="expected error of margins")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False)
    return figure


def _widths(round: Round[Any, Any], why: Reasons) -> Figure:
    figure, (left, right) = panels(2)
    free = round.pool.available
    widths, picked = round.pool.widths, round.pool.widths[round.picks]
    bins, span = 30, spanned(widths[free])
    shared: dict[str, Any] = {"bins": bins, "range": span, "density": True}
    left.hist(widths[free].double().numpy(), color="#cccccc", label="pool", **shared)
    left.hist(picked.double().numpy(), histtype="step", color="#0072b2", label="picked", **shared)
    left.set(xlabel="width", ylabel="density")
    left.legend(frameon=False)
    right.hist(why.cosine[free].numpy(), bins=bins, range=(0, 1), color="#cccccc")
    right.set(xlabel="likeness to the most similar pick", ylabel="duels of the pool")
    return figure


def spanned(values: Tensor) -> tuple[float, float]:
    """Return the range of a histogram of values; where they are (nearly) equal, wide enough to be cut into bins."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.0, 1e-3 * abs(high) - (high - low))
    return low - pad, high + pad
