"""Owns the figures: drawn from tables only, always with intervals over replicates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bandits.runs import figures as kit
from bandits.runs.figures import BAD, GOOD
from bandits.runs.figures import picture as picture
from bandits.runs.stats import Estimate, log_slope, median


def _panels(count: int, width: float = 4.2, height: float = 3.6, share: bool = False) -> tuple[Figure, list[Axes]]:
    return kit.panels(count, 0, width, height, share, 1.0)


def _ticks(axis: Axes, places: Sequence[float]) -> None:
    """Label a logarithmic x axis at the places that were measured, thinned out where they crowd."""
    kept, last = [], -math.inf
    reach = math.log(max(places) / min(places)) or 1.0
    for place in sorted(places):
        if math.log(place) - last > 0.11 * reach:
            kept.append(place)
            last = math.log(place)
    axis.set_xticks(kept, [f"{place:.3g}" for place in kept])
    axis.xaxis.set_minor_locator(NullLocator())


def ratios(table: pd.DataFrame, panel: str, group: str) -> Figure:
    """Draw left over right side per bound as boxes with 95 % whiskers, one panel per setting; 1 is the bound."""
    panels = list(table[panel].unique())
    figure, axes = _panels(len(panels), share=True)
    for axis, name in zip(axes, panels, strict=True):
        sns.boxplot(
            table[table[panel] == name],
            x=group,
            y="worst",
            hue="bound",
            palette="colorblind",
            whis=(2.5, 97.5),
            showfliers=False,
            linewidth=0.8,
            ax=axis,
            legend=name == panels[-1],
        )
        axis.axhline(1, color="black", lw=0.9, ls="--")
        axis.set(title=f"{panel}: {name}", xlabel="", ylabel="largest left / right side", yscale="log")
        axis.tick_params(axis="x", rotation=20)
    kit.legend(axes[-1])
    return figure


def controls(table: pd.DataFrame) -> Figure:
    """Draw every control beside its honest twin; the bound is broken right of the line."""
    figure, (axis,) = _panels(1, 7.5, 0.9 + 0.34 * table["control"].nunique())
    sns.boxplot(
        table,
        y="control",
        x="worst",
        hue="kind",
        palette={"control": BAD, "honest twin": GOOD},
        whis=(2.5, 97.5),
        showfliers=False,
        linewidth=0.8,
        ax=axis,
    )
    axis.axvline(1, color="black", lw=0.9, ls="--")
    axis.set(xscale="log", xlabel="largest left / right side", ylabel="")
    kit.legend(axis)
    return figure


def orders(
    table: pd.DataFrame,
    x: str,
    measures: Mapping[str, tuple[str, float]],
    hue: str | None = None,
    label: str = "",
    paired: bool = False,
    guide: str = "declared order",
) -> Figure:
    """Draw measures against ``x`` on log-log axes with a dashed line of some order and the fitted slopes.

    ``measures`` maps a column to its words and the exponent of the line, which ``guide`` names.  Points are medians
    over replicates, bars their 95 % intervals; ``paired`` slopes follow every replicate along ``x``.
    """
    figure, axes = _panels(len(measures))
    for axis, (column, (words, order)) in zip(axes, measures.items(), strict=True):
        groups = [("", table)] if hue is None else [(str(k), part) for k, part in table.groupby(hue)]
        colours = sns.color_palette("colorblind", len(groups))
        for colour, (name, part) in zip(colours, groups, strict=True):
            slope = log_slope(part[x], part[column], part["replicate"] if paired else None)
            _medians(axis, part, x, column, colour, f"{name} slope {slope}".strip())
        _line(axis, table, x, column, order, guide)
        axis.set(xscale="log", yscale="log", xlabel=label or x, title=words)
        _ticks(axis, [float(place) for place in table[x].unique()])
        axis.legend(fontsize=7, frameon=False)
    return figure


def _medians(axis: Axes, part: pd.DataFrame, x: str, column: str, colour: object, label: str) -> None:
    places = np.sort(part[x].unique()).astype(float)
    found = [median(part[part[x] == place][column]) for place in places]
    reach = np.array([(e.value - e.low, e.high - e.value) for e in found]).T
    # Where there are too few replicates for an interval, there is no bar.
    bars = np.nan_to_num(reach)
    middles = [e.value for e in found]
    axis.errorbar(places, middles, bars, fmt="o-", ms=3.5, lw=1.1, capsize=2, color=colour, label=label)


def _line(axis: Axes, table: pd.DataFrame, x: str, column: str, order: float, guide: str) -> None:
    places = np.sort(table[x].unique()).astype(float)
    start = float(table[table[x] == places[0]][column].median())
    line = start * (places / places[0]) ** order
    axis.plot(places, line, ls="--", lw=0.9, color="0.3", label=f"{guide} {order:.3g}")


def lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    panel: str | None = None,
    labels: tuple[str, str] = ("", ""),
    log: str = "",
    own: bool = False,
) -> Figure:
    """Draw means over replicates with 95 % intervals; ``log`` names the logarithmic axes; ``own``: a legend a panel."""
    panels: Sequence[object] = [None] if panel is None else list(table[panel].unique())
    figure, axes = _panels(len(panels))
    for axis, name in zip(axes, panels, strict=True):
        part = table if panel is None else table[table[panel] == name]
        look = kit.looks([str(value) for value in part[hue].unique()])
        kit.curves(axis, part.astype({hue: str}), x, y, hue, look, marker="o", ms=4, lw=1.2)
        axis.set(xlabel=labels[0] or x, ylabel=labels[1] or y, title="" if name is None else f"{panel}: {name}")
        if "x" in log:
            axis.set_xscale("log")
            _ticks(axis, [float(place) for place in part[x].unique()])
        if "y" in log:
            axis.set_yscale("log")
    for axis in axes if own else []:
        axis.legend(fontsize=7, frameon=False)
    if not own:
        kit.legend(axes[-1])
    return figure


def bars(table: pd.DataFrame, x: str, y: str, hue: str | None, label: str = "", line: float | None = None) -> Figure:
    """Draw means per category as points with 95 % intervals."""
    names = table[y].unique()
    figure, (axis,) = _panels(1, 4.2 + 0.07 * max(len(str(name)) for name in names), 1.2 + 0.34 * len(names))
    sns.pointplot(
        table,
        x=x,
        y=y,
        hue=hue,
        palette="colorblind" if hue else None,
        errorbar=lambda values: kit.student(values)[1:],
        ls="none",
        dodge=0.4 if hue else False,
        ms=4,
        capsize=0.15,
        err_kws={"linewidth": 1.1},
        ax=axis,
    )
    if line is not None:
        axis.axvline(line, color="black", lw=0.8, ls="--")
    axis.set(xlabel=label or x, ylabel="")
    if hue:
        kit.legend(axis)
    return figure


def intervals(estimates: Mapping[str, Estimate], label: str, line: float) -> Figure:
    """Draw estimates with their intervals, a row each."""
    figure, (axis,) = _panels(1, 4.2 + 0.07 * max(map(len, estimates)), 1.2 + 0.34 * len(estimates))
    kit.intervals(axis, estimates, line)
    axis.set(xlabel=label)
    return figure
