"""Owns how all pages draw: panels, curves with intervals, rows of intervals, one look per strategy.

Figures are objects of their own: no pyplot state, no backend chosen, nothing to close.  Knows nothing of what is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits.runs.page import Picture
from bandits.runs.stats import Estimate, mean

STYLE: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}
GOOD, BAD, NEUTRAL = "#0072b2", "#d55e00", "0.45"
VERDICTS = {"better": GOOD, "worse": BAD, "supported": GOOD, "refuted": BAD}
"""colours of verdicts; any other is ``NEUTRAL``"""
Look = dict[str, Any]


def png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", metadata={"Software": ""})
    return buffer.getvalue()


def picture(name: str, caption: str, figure: Figure) -> Picture:
    """Return a figure as a page's picture."""
    return Picture(name, caption, png(figure))


def panels(
    count: int, columns: int = 0, width: float = 4.6, height: float = 3.8, share: bool = False, legend: float = 1.2
) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels in rows of ``columns`` (0: one row), sizes in inches.

    ``share``: one y axis for all; ``legend``: room beside the panels.
    """
    columns = min(columns or count, count)
    rows = math.ceil(count / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(legend + width * columns, height * rows), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False, sharey=share).flat)
    for empty in grid[count:]:
        empty.remove()
    return figure, grid[:count]


def looks(names: Sequence[str], known: Sequence[str] = ()) -> dict[str, Look]:
    """Return how to draw each name: a colour and a dash that are its own wherever the same names are ``known``.

    Random is black and dashed, so that a line under it shows.  A learner before a colon keeps its strategy's colour and
    is dotted.  The first twenty other names differ in colour, the second ten in the dash as well.
    """
    order = [name for name in dict.fromkeys([*known, *(name.rpartition(":")[2] for name in names)]) if name != "random"]
    colours = [*sns.color_palette("colorblind", 10), *sns.color_palette("dark", 10)]
    dashes = ("-", (0, (5, 1)), (0, (3, 1, 1, 1)))
    found: dict[str, Look] = {}
    for name in names:
        learner, _, strategy = name.rpartition(":")
        if strategy == "random":
            look: Look = {"color": "black", "ls": "--"}
        else:
            place = order.index(strategy)
            look = {"color": colours[place % 20], "ls": dashes[place // 10 % 3]}
        found[name] = look | ({"ls": ":"} if learner else {})
    return found


def student(values: np.ndarray) -> tuple[float, float, float]:
    """Return a mean with its 95 % t interval: a band of ``curves``."""
    found = mean(values)
    return found.value, found.low, found.high


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """Return a mean with the middle 90 % of the values: a band of ``curves``."""
    low, high = np.quantile(values, (0.05, 0.95))
    return float(np.mean(values)), float(low), float(high)


def curves(
    axis: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    look: Mapping[str, Look],
    band: Callable[[np.ndarray], tuple[float, float, float]] = student,
    **options: Any,
) -> None:
    """Draw ``y`` against ``x``, a line for each ``hue`` with a band over the rows (replicates) at a place."""
    for name, style in look.items():
        part = table[table[hue] == name]
        if part.empty:
            continue
        groups = part.groupby(x)[y]
        places, found = np.array(list(groups.groups)), np.array([band(values.to_numpy()) for _, values in groups])
        axis.plot(places, found[:, 0], label=name, **(style | options))
        axis.fill_between(places, found[:, 1], found[:, 2], color=style["color"], alpha=0.13, lw=0)


def intervals(axis: Axes, rows: Mapping[str, Estimate], null: float, colours: Mapping[str, str] | None = None) -> None:
    """Draw estimates with their intervals, a row each from the top, beside the line of no effect."""
    for place, (name, estimate) in enumerate(rows.items()):
        colour = (colours or {}).get(name, GOOD)
        axis.plot([estimate.low, estimate.high], [place, place], color=colour, lw=2)
        axis.plot(estimate.value, place, "o", color=colour)
    axis.axvline(null, color="black", lw=0.8)
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.4, -0.6))


def legend(axis: Axes) -> None:
    """Put a panel's legend to its right."""
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def legend_below(figure: Figure, axis: Axes) -> None:
    """Put one legend, of a panel's lines, under all panels."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 5), frameon=False)
