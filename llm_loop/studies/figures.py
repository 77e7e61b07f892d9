"""Owns the figures of studies: drawn from their tables only, means over seeds with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bandits.runs.figures import BLUE, GREY, NEUTRAL, ORANGE, VERDICTS, Look, legend_below, looks, panels, student
from bandits.runs.stats import UNJUDGED
from llm_loop.report.findings import FAR, FLUENCY
from llm_loop.studies.plans import EXACT, Study

SIDE = 0.012
"""how far strategies stand beside each other at one number of labels, of the axis"""
HALF = 0.01
"""nats a token of KL up to which its axis is straight, and logarithmic beyond: an estimate may be below 0"""
TITLES = {
    "reward": "held-out reward",
    "judge": "judge, which never labels",
    "kl_per_token": "KL, nats a token",
    "fluency": "fluency, nats a token",
    "wins": "win rate by the reward",
    "judge_wins": "win rate by the judge",
}
COSTS = {"fluency": "reward", "kl_per_token": "judge"}
"""What is paid, and what is drawn against it."""
ERRORS = {"picks": "share of the exact gradients'\nfirst 16 picks kept, %", "error": "error of a width in round 1, %"}
"""What a projection changes."""
AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
AWAY = (6, 11, 17, 24, 32, 42, 54)
"""Where a point's name may stand: in which direction, and how many points away."""
ACROSS = 3
"""panels side by side"""
MOST = 2
"""measures that are drawn where there are several rows of panels; the page's tables have all"""


def in_panels(study: Study, table: pd.DataFrame) -> tuple[str, ...]:
    """Return the measures that are drawn: all, or the first ``MOST`` where several runs have rows of their own."""
    several = table["strategy"].nunique() > 1 and table["part"].nunique() > 1
    return study.measures[:MOST] if several else study.measures


def drawn(study: Study, table: pd.DataFrame, saved: pd.DataFrame, sketched: pd.DataFrame) -> Figure:
    """Draw measures against labels: panels for every run, a line a strategy; runs of one strategy share panels.

    Where labels saved are known, or what a projection changes in the first round, panels have them: the last, or of
    several rows the first of the last one, where the strategies' names stand outside.
    """
    if study.settings:
        return settings(table)
    several = table["strategy"].nunique() > 1
    rows = list(table["part"].unique()) if several else [""]
    measures = in_panels(study, table)
    besides = _besides(saved, sketched)
    count = len(measures) + len(besides)
    across = min(count, ACROSS)
    block = across * math.ceil(count / across)
    extra = count - 1 if block == across else block - across
    names = list(table["strategy" if several else "part"].unique())
    look = looks(names) if several else _graded(names)
    figure, axes = panels(block * len(rows), across, 9.0 / across, 2.6, legend=0)
    for number, part in enumerate(rows):
        own = table[table["part"] == part] if several else table
        mine = list(axes[number * block : (number + 1) * block])
        for beside in besides:
            beside(mine.pop(extra), part)
        for axis, measure in zip(mine, measures, strict=False):
            _beside_each_other(axis, own, measure, "strategy" if several else "part", look)
            axis.set_title(TITLES[measure], fontsize=9)
            axis.tick_params(labelsize=8)
            axis.set(xticks=own["labels"].unique())
            axis.set_xlabel("labels bought", fontsize=9)
            if measure.endswith("wins"):
                axis.axhline(0.5, color="black", lw=0.7, ls=":")
        if several and len(rows) > 1:
            mine[0].set_ylabel(part, fontsize=10, fontweight="bold")
        for empty in mine[len(measures) :]:
            empty.remove()
    legend_below(figure, *axes[::block])
    return figure


def _beside_each_other(axis: Axes, table: pd.DataFrame, measure: str, hue: str, look: Mapping[str, Look]) -> None:
    """Draw a measure against labels, a line for each ``hue``: means over seeds with bars, a little apart."""
    names = [name for name in look if name in set(table[hue])]
    step = SIDE * float(table["labels"].max())
    for place, name in enumerate(names):
        groups = table[(table[hue] == name) & table[measure].notna()].groupby("labels")[measure]
        places = np.array(list(groups.groups)) + step * (place - (len(names) - 1) / 2)
        middle, low, high = np.array([student(values.to_numpy()) for _, values in groups]).reshape(-1, 3).T
        bars = [middle - low, high - middle]
        axis.errorbar(places, middle, bars, label=name, marker="o", ms=3, elinewidth=0.9, capsize=1.5, **look[name])


def settings(table: pd.DataFrame) -> Figure:
    """Draw what every setting gained against what it cost: reward by fluency lost, the judge by KL."""
    keys, last = ["part", "seed"], int(table["round"].max())
    ends = [table[table["round"] == number].set_index(keys)[[*COSTS, *COSTS.values()]] for number in (0, last)]
    change = (ends[1] - ends[0]).reset_index()
    means = change.groupby("part", sort=False)[[*COSTS, *COSTS.values()]].mean()
    figure, axes = panels(2, 2, 4.7, 4.4, legend=0)
    for axis, (cost, gain), limit in zip(axes, COSTS.items(), (-FLUENCY, FAR), strict=True):
        axis.plot(change[cost], change[gain], ls="", marker="o", ms=2.5, color="0.65")
        for name, row in means.iterrows():
            face = BLUE if row["fluency"] >= -FLUENCY and row["kl_per_token"] <= FAR else "white"
            axis.plot(row[cost], row[gain], ls="", marker="o", ms=5.5, color=BLUE, mfc=face, label=name)
        axis.axvline(limit, color="black", lw=0.8, ls=":")
        axis.axhline(0, color="0.7", lw=0.8)
        axis.tick_params(labelsize=8)
        axis.set_xlabel(f"{TITLES[cost]}, change", fontsize=9)
        axis.set_ylabel(f"{TITLES[gain].partition(',')[0]}, change", fontsize=9)
    axes[1].set_xscale("symlog", linthresh=HALF)
    axes[1].set_xticks([0, 0.01, 0.1, 1], labels=["0", "0.01", "0.1", "1"])
    axes[1].set_xlim(min(0, 1.5 * float(change["kl_per_token"].min())) - HALF / 10, 2 * change["kl_per_token"].max())
    figure.draw_without_rendering()  # where points are is known only then
    for axis, (cost, gain) in zip(axes, COSTS.items(), strict=True):
        _name(axis, means[[cost, gain]])
    return figure


def _name(axis: Axes, points: pd.DataFrame) -> None:
    """Write every point's name beside it, at the nearest place around where it covers no other name nor point."""
    unit = axis.figure.dpi / 72
    spots = axis.transData.transform(points.to_numpy())
    taken = [Bbox.from_extents(x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit) for x, y in spots]
    frame = axis.get_window_extent()
    order = np.argsort(-spots[:, 1])
    for name, spot in zip(points.index[order], spots[order], strict=True):
        probe = axis.annotate(name, (0, 0), xycoords="figure pixels", fontsize=6.5)
        width, height = probe.get_window_extent().size
        probe.remove()
        places = []
        for far, (dx, dy) in product(AWAY, AROUND):
            x, y = spot[0] + far * unit * dx - width * (1 - dx) / 2, spot[1] + far * unit * dy - height * (1 - dy) / 2
            box = Bbox.from_bounds(x, y, width, height)
            within = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            places.append((sum(map(box.overlaps, taken)) + 100 * (not within), far, box))
        _, far, box = min(places, key=lambda place: place[:2])
        taken.append(box)
        middle = axis.transData.inverted().transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        leader = {"arrowstyle": "-", "lw": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 3} if far > AWAY[0] else None
        axis.annotate(
            name, tuple(points.loc[name]), tuple(middle), fontsize=6.5, ha="center", va="center", arrowprops=leader
        ).set_in_layout(False)


def _besides(saved: pd.DataFrame, sketched: pd.DataFrame) -> list[Callable[[Axes, str], None]]:
    """Return what draws a run's panels beside those of the measures, if there is anything to draw."""
    if len(saved):
        return [lambda axis, part: _saved(axis, saved[saved["truth"] == part])]
    if len(sketched):
        return [partial(_sketched, sketched, column) for column in ERRORS]
    return []


def _graded(names: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return looks of runs that are steps of one setting: shades from light to dark, the last one black and dashed."""
    import matplotlib as mpl

    shades = mpl.colormaps["viridis_r"](np.linspace(0.15, 0.95, max(1, len(names))))
    found: dict[str, dict[str, object]] = {
        name: {"color": mpl.colors.to_hex(shade), "ls": "-"} for name, shade in zip(names, shades, strict=True)
    }
    if EXACT in found:
        found[EXACT] = {"color": "black", "ls": "--"}
    return found


def _saved(axis: Axes, rows: pd.DataFrame) -> None:
    names = list(rows["contender"])
    look = looks(names)
    for place, row in enumerate(rows.to_dict("records")):
        if row["verdict"] == UNJUDGED:
            axis.text(15, place, "not defined", va="center", fontsize=8)
            continue
        colour = look[row["contender"]]["color"]
        told = row["verdict"] in ("saves", "does not save")
        low, high = (100 * row[end] if np.isfinite(row[end]) else 100 * row["saved"] for end in ("low", "high"))
        axis.plot([low, high], [place, place], color=colour, lw=2.2)
        axis.plot(100 * row["saved"], place, "o", color=colour, mfc=colour if told else "white", ms=6)
    axis.axvspan(-10, 10, color="0.93", zorder=0)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(xlim=(-105, 105), ylim=(len(names) - 0.4, -0.6), yticks=range(len(names)), yticklabels=names)
    axis.set_title("share of Random's labels saved, %", fontsize=9)
    axis.tick_params(labelsize=7.5)
    axis.set_xlabel("grey: within ±10 %; hollow: undecided", fontsize=8)


def _sketched(rows: pd.DataFrame, column: str, axis: Axes, _: str) -> None:
    """Draw the share of exact picks that are kept, or the widths' error, against the dimension."""
    names = sorted(rows["part"].unique(), key=int)
    sizes = [int(name) for name in names]
    found = np.array([student(rows.loc[rows["part"] == name, column].to_numpy()) for name in names])
    middle, low, high = 100 * found.T
    axis.errorbar(sizes, middle, [middle - low, high - middle], fmt="o-", color=BLUE, ms=4, capsize=3)
    axis.set_xscale("log", base=2)
    axis.set(ylim=(0, None), xticks=sizes, xticklabels=names)
    axis.minorticks_off()
    axis.set_title(ERRORS[column], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.set_xlabel("dimension", fontsize=9)


def matrix(gains: pd.DataFrame, comparison: pd.DataFrame) -> Figure:
    """Draw how much reward each model gained by each preference set, and the paired differences between sets.

    ``gains`` has model, chosen_by, seed and gain; ``comparison`` is ``bandits.runs.stats.compare``'s, a truth a model.
    """
    models = list(gains["model"].unique())
    figure, axes = panels(len(models) + 1, 0, 4.1, 3.4, legend=0)
    for axis, model in zip(axes, models, strict=False):
        if axis is not axes[0]:
            axis.sharey(axes[0])  # before anything is drawn: what is shared later are the first panel's limits
        (other,) = (name for name in models if name != model)
        labels: list[str] = []
        for place, (chooser, label, colour) in enumerate(
            ((model, "itself", BLUE), (other, f"the {other} model", ORANGE), ("random", "chance", GREY))
        ):
            values = gains[(gains["model"] == model) & (gains["chosen_by"] == chooser)].sort_values("seed")["gain"]
            middle, low, high = student(values.to_numpy())
            spots = place + np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else np.array([place])
            axis.plot(spots, values, "o", mfc="white", mec=colour, ms=4, alpha=0.7)
            axis.errorbar(place, middle, [[middle - low], [high - middle]], fmt="D", color=colour, ms=7, capsize=4)
            labels.append(label)
        axis.axhline(0, color="black", lw=0.8)
        axis.set(xticks=range(3), xticklabels=labels, xlim=(-0.5, 2.5), xlabel="preferences chosen by")
        axis.set_title(f"model tuned on {model}", fontsize=10)
    axes[0].set_ylabel("held-out reward gained")
    last = axes[-1]
    names = []
    for place, row in enumerate(comparison.to_dict("records")):
        colour = VERDICTS.get(row["verdict"], NEUTRAL)
        last.plot([row["low"], row["high"]], [place, place], color=colour, lw=2)
        last.plot(row["difference"], place, "D", color=colour, ms=6)
        sides = ["chance" if name == "random" else str(name) for name in (row["contender"], row["baseline"])]
        names.append(f"model of {row['truth']}:\nchosen by {' − by '.join(sides)}")
    last.axvline(0, color="black", lw=0.8)
    last.set(yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6), xlabel="difference in reward, paired by seed")
    last.set_yticklabels(names, fontsize=7)
    last.set_title("joint 95 % intervals", fontsize=10)
    return figure
