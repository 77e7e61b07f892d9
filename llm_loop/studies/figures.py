"""Owns the figures of studies: drawn from their tables only, means over seeds with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits.runs.figures import BLUE, GREY, NEUTRAL, ORANGE, VERDICTS, curves, legend_below, looks, panels, student
from llm_loop.report.findings import FAR, FLUENCY
from llm_loop.studies.plans import EXACT, Study

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
MARKS = "osD^vP"
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

    Where labels saved are known, or what a projection changes in the first round, a panel has them: the last, or of
    several rows the first of the last one, where the strategies' names stand outside.
    """
    if study.settings:
        return settings(table)
    several = table["strategy"].nunique() > 1
    rows = list(table["part"].unique()) if several else [""]
    measures = in_panels(study, table)
    besides = _besides(saved, sketched)
    count = len(measures) + (besides is not None)
    across = min(count, ACROSS)
    block = across * math.ceil(count / across)
    extra = count - 1 if block == across else block - across
    names = list(table["strategy" if several else "part"].unique())
    look = looks(names) if several else _graded(names)
    figure, axes = panels(block * len(rows), across, 9.0 / across, 2.6, legend=0)
    for number, part in enumerate(rows):
        own = table[table["part"] == part] if several else table
        mine = list(axes[number * block : (number + 1) * block])
        if besides is not None:
            besides(mine.pop(extra), part)
        for axis, measure in zip(mine, measures, strict=False):
            curves(axis, own, "labels", measure, "strategy" if several else "part", look, student, marker="o", ms=3)
            axis.set_title(TITLES[measure], fontsize=9)
            axis.tick_params(labelsize=8)
            axis.set_xlabel("labels bought", fontsize=9)
            if measure.endswith("wins"):
                axis.axhline(0.5, color="black", lw=0.7, ls=":")
        if several and len(rows) > 1:
            mine[0].set_ylabel(part, fontsize=10, fontweight="bold")
        for empty in mine[len(measures) :]:
            empty.remove()
    legend_below(figure, *axes[::block])
    return figure


def settings(table: pd.DataFrame) -> Figure:
    """Draw what every setting gained against what it cost: reward by fluency lost, the judge by KL."""
    keys, last = ["part", "seed"], int(table["round"].max())
    ends = [table[table["round"] == number].set_index(keys)[[*COSTS, *COSTS.values()]] for number in (0, last)]
    change = (ends[1] - ends[0]).reset_index()
    names = list(table["part"].unique())
    look = looks(names)
    figure, axes = panels(2, 2, 4.4, 3.6, legend=1.0)
    for axis, (cost, gain), limit in zip(axes, COSTS.items(), (-FLUENCY, FAR), strict=True):
        for place, name in enumerate(names):
            own = change[change["part"] == name]
            style = {"color": look[name]["color"], "marker": MARKS[place % len(MARKS)]}
            axis.plot(own[cost], own[gain], ls="", ms=3, alpha=0.45, **style)
            axis.plot(own[cost].mean(), own[gain].mean(), ls="", ms=7, label=name, **style)
        axis.axvline(limit, color="black", lw=0.8, ls=":")
        axis.axhline(0, color="0.7", lw=0.8)
        axis.tick_params(labelsize=8)
        axis.set_xlabel(f"{TITLES[cost]}, change", fontsize=9)
        axis.set_ylabel(f"{TITLES[gain]}, change", fontsize=9)
    legend_below(figure, axes[0])
    return figure


def _besides(saved: pd.DataFrame, sketched: pd.DataFrame) -> Callable[[Axes, str], None] | None:
    """Return what draws a run's panel beside those of the measures, if there is anything to draw."""
    if len(saved):
        return lambda axis, part: _saved(axis, saved[saved["truth"] == part])
    if len(sketched):
        return lambda axis, _: _sketched(axis, sketched)
    return None


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
    axis.set_xlabel("hollow: undecided", fontsize=8)


def _sketched(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw the share of exact picks that are kept, and the widths' error, against the dimension."""
    names = sorted(rows["part"].unique(), key=int)
    sizes = [int(name) for name in names]
    for column, label, colour in (("picks", "exact gradients' picks kept", BLUE), ("error", "a width's error", ORANGE)):
        found = np.array([student(rows.loc[rows["part"] == name, column].to_numpy()) for name in names])
        middle, low, high = 100 * found.T
        bars = [middle - low, high - middle]
        axis.errorbar(sizes, middle, bars, fmt="o-", color=colour, ms=4, capsize=3, label=label)
    axis.set_xscale("log", base=2)
    axis.set(ylim=(0, 105), xticks=sizes, xticklabels=names)
    axis.minorticks_off()
    axis.set_title("the first round, %", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.set_xlabel("dimension", fontsize=9)
    axis.legend(fontsize=7.5, loc="center right", bbox_to_anchor=(1.0, 0.17))


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
