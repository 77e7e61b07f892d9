"""Owns how all pages draw: panels, curves with intervals, rows of intervals, one look per strategy.

Figures are objects of their own: no pyplot state, no backend chosen, nothing to close.  Knows nothing of what is drawn.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bandits.runs.page import Picture
from bandits.runs.stats import Estimate, mean

STYLE: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}
HEAVY = 400_000
"""bytes of a vector drawing above which a page shows points, at twice the screen's"""
GOOD, BAD, NEUTRAL = "#0072b2", "#d55e00", "0.45"
VERDICTS = {"better": GOOD, "worse": BAD, "supported": GOOD, "refuted": BAD}
"""colours of verdicts; any other is ``NEUTRAL``"""
Look = dict[str, Any]

BLUE, ORANGE, GREEN, PINK, BROWN, ROSE, GREY, GOLD, SKY, RED = (
    *("#0072b2", "#de8f05", "#029e73", "#cc78bc", "#7a4b26", "#fbafe4", "#7f7f7f", "#b8a800", "#56b4e9", "#d55e00"),
)
NAVY, PURPLE, FOREST, MAROON, TEAL = "#001c7f", "#591e71", "#12711c", "#8c0800", "#006374"
VIOLET, CRIMSON = "#8f6fd8", "#c2185b"
SOLID, DASHED, DASHDOT = "-", (0, (5, 1)), (0, (3, 1, 1, 1))
PALETTE: dict[str, Look] = {
    name: {"color": colour, "ls": dash}
    for name, colour, dash in (
        ("random", "black", "--"),
        ("random-per-prompt", GREY, DASHED),
        ("activedpo", BLUE, SOLID),
        ("activedpo-initial", SKY, SOLID),
        ("activedpo-stale", SKY, DASHED),
        ("activedpo-normalised", NAVY, SOLID),
        ("activedpo-normalised-duel", VIOLET, DASHED),
        ("activedpo-fisher", TEAL, SOLID),
        ("activedpo-identity", ORANGE, SOLID),
        ("activedpo-diagonal", ORANGE, DASHED),
        ("activedpo-last-layer", BROWN, SOLID),
        ("activedpo-top-b", BLUE, DASHED),
        ("activedpo-power", BLUE, DASHDOT),
        ("apo", GREEN, SOLID),
        ("apo-in-batch", GREEN, DASHED),
        ("aplp", FOREST, SOLID),
        ("adpo", PINK, SOLID),
        ("label-entropy", GREY, SOLID),
        ("label-entropy-power", GREY, DASHDOT),
        ("ucb", RED, SOLID),
        ("ts", GOLD, SOLID),
        ("colstim", GOLD, DASHED),
        ("delta-ucb", RED, DASHED),
        ("drts", MAROON, SOLID),
        ("dissimilar", BROWN, DASHED),
        ("k-centre", ROSE, SOLID),
        ("max-herding", ROSE, DASHED),
        ("policy-trace", PURPLE, SOLID),
        ("policy-trace-target", PURPLE, DASHED),
        ("delta-logdet", MAROON, DASHED),
        ("delta-logdet-responses", MAROON, DASHDOT),
        ("delta-logdet-20%", RED, DASHDOT),
        ("decisive-bald", FOREST, DASHED),
        ("decisive-bald-power", FOREST, DASHDOT),
        ("ceiling", CRIMSON, DASHDOT),
    )
}
"""The look of each strategy, the same on every page of every program."""
POWER = "-power"
_BATCHED: dict[Any, Any] = {
    SOLID: (0, (3, 1, 1, 1, 1, 1)),
    DASHED: (0, (6, 1, 1, 1, 1, 1)),
    DASHDOT: (0, (6, 1, 3, 1, 1, 1)),
    "--": (0, (6, 1, 1, 1, 1, 1)),
}
"""how a rule's stochastic batch is dashed, in the rule's colour, where the palette has no look for it"""
_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, BROWN, SKY, GOLD, PURPLE, NAVY, FOREST, MAROON, TEAL, ROSE, GREY)
_DASHES = (SOLID, DASHED, DASHDOT)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG of 256 colours, a third of the bytes of all; the same figure gives the same bytes."""
    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=220, bbox_inches="tight")
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG with its letters drawn; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "figure", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def picture(name: str, caption: str, figure: Figure) -> Picture:
    """Return a figure as a page's picture: drawn in lines, or in points where lines would be too many."""
    drawn = svg(figure)
    if len(drawn) <= HEAVY:
        return Picture(name, caption, drawn, "svg")
    return Picture(name, caption, png(figure), "png")


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


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return how to draw each name: ``PALETTE``'s look, or a colour and a dash that follow from the name itself.

    Random is black and dashed, so that a line under it shows.  A learner before a colon keeps its strategy's colour and
    is dotted; a stochastic batch (``-power``) keeps its rule's colour.  Two unknown names of one call never look alike.
    """
    own: dict[str, Look] = {}
    taken: set[int] = set()
    every = len(_COLOURS) * len(_DASHES)

    def plain(strategy: str, learner: str) -> Look:
        if strategy in PALETTE:
            return PALETTE[strategy]
        if strategy not in own:
            place = zlib.crc32(strategy.encode()) % every
            while place in taken and len(taken) < every and not learner:
                place = (place + 1) % every
            taken.add(place)
            own[strategy] = {"color": _COLOURS[place % len(_COLOURS)], "ls": _DASHES[place // len(_COLOURS)]}
        return own[strategy]

    found: dict[str, Look] = {}
    for name in names:
        learner, _, strategy = name.rpartition(":")
        look = plain(strategy if strategy in PALETTE else strategy.removesuffix(POWER), learner)
        if strategy not in PALETTE and strategy.endswith(POWER):
            look = look | {"ls": _BATCHED[look["ls"]]}
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


def legend_below(figure: Figure, *axes: Axes) -> None:
    """Put one legend, of these panels' lines, under all panels; what several panels have stands once."""
    shown = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=min(len(shown), 5), frameon=False)
