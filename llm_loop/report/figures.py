"""Owns the figures of a run: drawn from its tables only, with intervals or with every seed shown."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandits.sim.figures import STYLE, VERDICTS, palette

LABELS = "labels bought"


def _axes(count: int, columns: int, width: float = 3.5, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels in rows of ``columns``."""
    rows = math.ceil(count / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    panels = list(grid.flat)
    for empty in panels[count:]:
        empty.remove()
    return figure, panels[:count]


def _line(strategies: list[str], strategy: str) -> str:
    """Return how to draw a line: Random's dashed, so that one under it shows; dotted where colours recur."""
    return "o--" if strategy == "random" else "o-" if strategies.index(strategy) < 10 else "s:"


def _legend(figure: Figure, axis: Axes) -> None:
    """Put one legend under all panels."""
    handles, names = axis.get_legend_handles_labels()
    columns = min(len(names), 5)
    figure.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncol=columns, frameon=False)


def reward_curves(
    evaluations: pd.DataFrame, reward: pd.DataFrame, totals: pd.DataFrame, label: str, single: bool
) -> Figure:
    """Draw held-out reward against labels and against tokens.

    Thick lines are means over seeds with ``reward``'s bands, thin ones single seeds (if ``single``).  ``label`` says
    what the reward is.
    """
    strategies = list(totals["strategy"].unique())
    colours = palette(strategies)
    seeds = evaluations.groupby(["strategy", "seed", "round"], sort=False)["reward"].mean().reset_index()
    with plt.rc_context(STYLE):
        figure, panels = _axes(2, 2, width=4.6, height=3.8)
        many = totals["tokens"].max() >= 2e6
        tokens = f"tokens through the model, {'millions' if many else 'thousands'}"
        sides = (("labels", LABELS, 1.0), ("tokens", tokens, 1e6 if many else 1e3))
        for axis, (column, price, unit) in zip(panels, sides, strict=True):
            for strategy in strategies:
                cost = totals[totals["strategy"] == strategy].set_index("round")[column] / unit
                part = reward[reward["strategy"] == strategy]
                x = cost.loc[part["round"]].to_numpy()
                axis.plot(
                    x,
                    part["mean"],
                    _line(strategies, strategy),
                    color=colours[strategy],
                    lw=2,
                    ms=4,
                    label=strategy,
                    zorder=3,
                )
                axis.fill_between(x, part["low"], part["high"], color=colours[strategy], alpha=0.13, lw=0)
                for _, line in seeds[(seeds["strategy"] == strategy) & single].groupby("seed", sort=False):
                    axis.plot(cost.loc[line["round"]], line["reward"], color=colours[strategy], lw=0.7, alpha=0.55)
            axis.set(xlabel=price)
        panels[0].set(ylabel=f"mean held-out reward\n({label})")
        panels[1].sharey(panels[0])
        figure.tight_layout()
        _legend(figure, panels[0])
    return figure


def small_multiples(table: pd.DataFrame, panels: dict[str, str], columns: int = 3) -> Figure:
    """Draw measures against labels, a panel each: lines are means, bands what the table calls ``low`` and ``high``.

    ``table`` has strategy, labels, measure, mean, low, high; ``panels`` the measures with their titles.
    """
    strategies = list(table["strategy"].unique())
    colours = palette(strategies)
    with plt.rc_context(STYLE):
        figure, axes = _axes(len(panels), columns, width=10.4 / columns, height=2.5)
        for place, (axis, (measure, title)) in enumerate(zip(axes, panels.items(), strict=True)):
            for strategy in strategies:
                part = table[(table["strategy"] == strategy) & (table["measure"] == measure)]
                axis.plot(
                    part["labels"],
                    part["mean"],
                    _line(strategies, strategy),
                    color=colours[strategy],
                    ms=3,
                    label=strategy,
                )
                axis.fill_between(part["labels"], part["low"], part["high"], color=colours[strategy], alpha=0.13, lw=0)
            axis.set_title(title, fontsize=10 if columns < 4 else 9)
            axis.tick_params(labelsize=8)
            if place >= len(panels) - columns:
                axis.set_xlabel(LABELS)
            axis.ticklabel_format(axis="y", useOffset=False)
        figure.tight_layout()
        _legend(figure, axes[0])
    return figure


def seed_differences(
    evaluations: pd.DataFrame, comparison: pd.DataFrame, baseline: str, titles: dict[str, str]
) -> Figure:
    """Draw each strategy's difference from the baseline: a dot per seed, the mean with its joint 95 % interval."""
    means = evaluations[evaluations["round"] > 0].groupby(["strategy", "seed", "round"])["reward"].mean()
    wide = means.unstack("strategy")
    differences = wide.sub(wide[baseline], axis=0)
    outcomes = {
        "final": differences.xs(differences.index.get_level_values("round").max(), level="round"),
        "area": differences.groupby("seed").mean(),
    }
    strategies = list(comparison["strategy"].unique())[::-1]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(outcomes), figsize=(9.2, 1.3 + 0.42 * len(strategies)), squeeze=False, sharey=True
        )
        for axis, (outcome, dots) in zip(axes[0], outcomes.items(), strict=True):
            for place, strategy in enumerate(strategies):
                row = comparison[(comparison["strategy"] == strategy) & (comparison["outcome"] == outcome)].iloc[0]
                shade = VERDICTS.get(row["verdict"], "0.4")
                values = dots[strategy].to_numpy()
                reach = 1.6 * np.abs(values).max() + 1e-9  # an interval of two seeds would dwarf the dots
                low, high = max(row["low"], -reach), min(row["high"], reach)
                axis.plot([low, high], [place, place], color=shade, lw=1.6, zorder=2)
                for end, cut, mark in ((low, low > row["low"], "<"), (high, high < row["high"], ">")):
                    if cut:
                        axis.plot(end, place, mark, color=shade, ms=6)
                axis.plot(values, np.full(len(values), place), "o", mfc="white", mec=shade, ms=5, zorder=3)
                axis.plot(row["difference"], place, "D", color=shade, ms=6, zorder=4)
            axis.axvline(0, color="black", lw=0.8)
            axis.set_title(titles[outcome], fontsize=10)
            axis.set(
                xlabel=f"reward less {baseline}'s",
                yticks=range(len(strategies)),
                yticklabels=strategies,
                ylim=(-0.6, len(strategies) - 0.4),
            )
        figure.tight_layout()
    return figure
