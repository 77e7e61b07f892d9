"""Owns the figures of a run: drawn from its tables only, with intervals or with every seed shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bandits.runs.figures import NEUTRAL, VERDICTS, legend_below, looks, panels

LABELS = "labels bought"


def reward_curves(
    evaluations: pd.DataFrame, reward: pd.DataFrame, totals: pd.DataFrame, label: str, single: bool
) -> Figure:
    """Draw held-out reward against labels and against tokens.

    Thick lines are means over seeds with ``reward``'s bands, thin ones single seeds (if ``single``).  ``label`` says
    what the reward is.
    """
    strategies = list(totals["strategy"].unique())
    look = looks(strategies)
    seeds = evaluations.groupby(["strategy", "seed", "round"], sort=False)["reward"].mean().reset_index()
    figure, axes = panels(2, legend=0)
    many = totals["tokens"].max() >= 2e6
    tokens = f"tokens through the model, {'millions' if many else 'thousands'}"
    sides = (("labels", LABELS, 1.0), ("tokens", tokens, 1e6 if many else 1e3))
    for axis, (column, price, unit) in zip(axes, sides, strict=True):
        for strategy in strategies:
            cost = totals[totals["strategy"] == strategy].set_index("round")[column] / unit
            part = reward[reward["strategy"] == strategy]
            x = cost.loc[part["round"]].to_numpy()
            style = look[strategy] | {"marker": "o", "lw": 2, "ms": 4, "zorder": 3}
            axis.plot(x, part["mean"], label=strategy, **style)
            axis.fill_between(x, part["low"], part["high"], color=style["color"], alpha=0.13, lw=0)
            for _, line in seeds[(seeds["strategy"] == strategy) & single].groupby("seed", sort=False):
                axis.plot(cost.loc[line["round"]], line["reward"], color=style["color"], lw=0.7, alpha=0.55)
        axis.set(xlabel=price)
    axes[0].set(ylabel=f"mean held-out reward\n({label})")
    axes[1].sharey(axes[0])
    legend_below(figure, axes[0])
    return figure


def frontier(table: pd.DataFrame, label: str) -> Figure:
    """Draw mean reward against KL from the initial model, a line per strategy, round by round: more reward at equal KL
    is better alignment, whatever the labels.  ``table`` has strategy, round, kl, reward, low, high."""
    strategies = list(table["strategy"].unique())
    look = looks(strategies)
    figure, (axis,) = panels(1, legend=0)
    for strategy in strategies:
        part = table[table["strategy"] == strategy].sort_values("round")
        style = look[strategy] | {"marker": "o", "ms": 4}
        axis.errorbar(
            part["kl"],
            part["reward"],
            [(part["reward"] - part["low"]).clip(lower=0), (part["high"] - part["reward"]).clip(lower=0)],
            label=strategy,
            elinewidth=0.7,
            **style,
        )
    axis.set(xlabel="KL from the initial model (nats per token)", ylabel=f"mean held-out reward\n({label})")
    legend_below(figure, axis)
    return figure


def small_multiples(table: pd.DataFrame, titles: dict[str, str], columns: int = 3) -> Figure:
    """Draw measures against labels, a panel each: lines are means, bands what the table calls ``low`` and ``high``.

    ``table`` has strategy, labels, measure, mean, low, high; ``titles`` the measures with theirs.
    """
    strategies = list(table["strategy"].unique())
    look = looks(strategies)
    figure, axes = panels(len(titles), columns, 10.4 / columns, 2.5, legend=0)
    for place, (axis, (measure, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        for strategy in strategies:
            part = table[(table["strategy"] == strategy) & (table["measure"] == measure)]
            style = look[strategy] | {"marker": "o", "ms": 3}
            axis.plot(part["labels"], part["mean"], label=strategy, **style)
            axis.fill_between(part["labels"], part["low"], part["high"], color=style["color"], alpha=0.13, lw=0)
        axis.set_title(title, fontsize=10 if columns < 4 else 9)
        axis.tick_params(labelsize=8)
        if place >= len(titles) - columns:
            axis.set_xlabel(LABELS)
        axis.ticklabel_format(axis="y", useOffset=False)
    legend_below(figure, axes[0])
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
    figure, axes = panels(len(outcomes), 0, 4.6, 1.3 + 0.42 * len(strategies), share=True, legend=0)
    for axis, (outcome, dots) in zip(axes, outcomes.items(), strict=True):
        for place, strategy in enumerate(strategies):
            row = comparison[(comparison["strategy"] == strategy) & (comparison["outcome"] == outcome)].iloc[0]
            shade = VERDICTS.get(row["verdict"], NEUTRAL)
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
    return figure
