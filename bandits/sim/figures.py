"""Owns the simulator's figures: drawn from results frames only, always with intervals over replicates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bandits.runs.figures import NEUTRAL, VERDICTS, curves, intervals, legend, legend_below, looks, panels, spread
from bandits.runs.stats import Estimate


def against(rounds: pd.DataFrame, baseline: str, measure: str) -> pd.DataFrame:
    """Return each contender's paired difference from the baseline, replicate by replicate and round by round."""
    keys = ["truth", "replicate", "labels"]
    reference = rounds[rounds["contender"] == baseline].set_index(keys)[measure]
    rivals = rounds[rounds["contender"] != baseline]
    return rivals.assign(
        **{measure: rivals[measure].to_numpy() - reference.loc[pd.MultiIndex.from_frame(rivals[keys])].to_numpy()}
    )


def learning_curves(rounds: pd.DataFrame, measure: str, label: str, log: bool = False, zero: bool = False) -> Figure:
    """Draw a measure against labels, one panel per truth; bands are 95 % intervals over replicates."""
    truths = list(rounds["truth"].unique())
    look = looks(list(rounds["contender"].unique()))
    figure, axes = panels(len(truths))
    for axis, truth in zip(axes, truths, strict=True):
        curves(axis, rounds[rounds["truth"] == truth], "labels", measure, "contender", look)
        axis.set(title=f"truth: {truth}", xlabel="labels", ylabel=label)
        if log:
            axis.set(xscale="log", yscale="log")
        if zero:
            axis.axhline(0, color="black", lw=0.8)
    legend(axes[-1])
    return figure


def saved(rounds: pd.DataFrame, savings: pd.DataFrame, margin: float, foreseen: Mapping[str, float]) -> Figure:
    """Draw, per truth, the mean error with where each strategy has Random's final one, and below it what that saves.

    Shaded: what counts as no saving; dotted: what the best choice is predicted to save.
    """
    truths = list(savings["truth"].unique())
    names = list(rounds["contender"].unique())
    look = looks(names)
    figure, axes = panels(2 * len(truths), len(truths), 9.4 / len(truths), 2.5, legend=0)
    for place, truth in enumerate(truths):
        above, below = axes[place], axes[place + len(truths)]
        means = rounds[rounds["truth"] == truth].groupby(["contender", "labels"])["error"].mean()
        rows = savings[savings["truth"] == truth].to_dict("records")
        for name in names:
            curve = means[name]
            above.plot(curve.index, curve.to_numpy(), label=name, **look[name])
        above.axhline(rows[0]["target"], color="black", lw=0.7, ls=":")
        for number, row in enumerate(rows):
            colour = look[row["contender"]]["color"]
            if np.isfinite(row["labels"]):
                above.plot(row["labels"], row["target"], "o", color=colour, ms=5, zorder=4)
            told = row["verdict"] in ("saves", "does not save")
            below.plot([100 * row["low"], 100 * row["high"]], [number, number], color=colour, lw=2.5)
            below.plot(100 * row["saved"], number, "o", color=colour, mfc=colour if told else "white", ms=7)
        below.axvspan(-100 * margin, 100 * margin, color="0.93", zorder=0)
        below.axvline(0, color="black", lw=0.8)
        if truth in foreseen:
            below.axvline(100 * foreseen[truth], color="0.3", ls=":", lw=1.4)
        above.set(title=f"truth: {truth}", xlabel="labels", ylabel="rms error (log-odds)" if place == 0 else "")
        below.set(xlim=(-100, 100), ylim=(len(rows) - 0.4, -0.6), xlabel="labels saved, %", yticks=range(len(rows)))
        below.set_yticklabels([row["contender"] for row in rows] if place == 0 else [])
    legend_below(figure, axes[0])
    return figure


def paired_ratios(comparison: pd.DataFrame, label: str) -> Figure:
    """Draw each contender's ratio to its baseline with its joint 95 % interval."""
    truths = list(comparison["truth"].unique())
    figure, axes = panels(len(truths), 0, 4.0, 1.1 + 0.32 * len(comparison) / len(truths), share=True, legend=1.6)
    for axis, truth in zip(axes, truths, strict=True):
        rows, colours = {}, {}
        for row in comparison[comparison["truth"] == truth].to_dict("records"):
            name = str(row["contender"]) + ("" if row["baseline"] == "random" else f" / {row['baseline']}")
            rows[name] = Estimate(row["effect"], row["low"], row["high"], row["replicates"])
            colours[name] = VERDICTS.get(row["verdict"], NEUTRAL)
        intervals(axis, rows, 1.0, colours)
        axis.set(title=f"truth: {truth}", xlabel=label)
    return figure


def bound_terms(bounds: pd.DataFrame) -> Figure:
    """Draw, against labels, the multiplier of Proposition 1, its terms, and the multiplier that would have sufficed."""
    names = {
        "gamma": "γ of Proposition 1",
        "gamma_noise": "its noise term",
        "gamma_prior": "its prior term B√(λ/κ)",
        "exact": "exact, linearised",
        "needed_network": "needed by the network",
        "needed_tangent": "needed, linearised",
    }
    truths = list(bounds["truth"].unique())
    figure, axes = panels(len(truths), share=True)
    for axis, truth in zip(axes, truths, strict=True):
        part = bounds[bounds["truth"] == truth].melt(["labels", "replicate"], list(names), "term", "multiplier")
        part = part.replace({"term": names})
        curves(axis, part, "labels", "multiplier", "term", looks(list(names.values())), spread)
        axis.set(title=f"truth: {truth}", yscale="log", ylabel="multiplier of the width", xlabel="labels")
    legend(axes[-1])
    return figure


def calibration(table: pd.DataFrame) -> Figure:
    """Draw root mean square error by decile of width: a rising line means that width predicts error."""
    truths = list(table["truth"].unique())
    look = looks(list(table["contender"].unique()))
    figure, axes = panels(len(truths), height=3.6)
    for axis, truth in zip(axes, truths, strict=True):
        curves(axis, table[table["truth"] == truth], "decile", "error", "contender", look, marker="o", ms=4)
        axis.set(title=f"truth: {truth}", xlabel="decile of width at the last round", ylabel="rms error (log-odds)")
        axis.set(xticks=np.arange(1, 11), ylim=(0, None))
    legend(axes[-1])
    return figure


def error_split(bounds: pd.DataFrame) -> Figure:
    """Draw the error's two parts: statistical (linearised learner) and linearisation (network less linearised)."""
    names = {"error": "network's error", "statistical": "statistical part", "linearisation": "linearisation part"}
    truths = list(bounds["truth"].unique())
    figure, axes = panels(len(truths), height=3.6)
    for axis, truth in zip(axes, truths, strict=True):
        part = bounds[bounds["truth"] == truth].melt(["labels", "replicate"], list(names), "part", "rms")
        curves(axis, part.replace({"part": names}), "labels", "rms", "part", looks(list(names.values())))
        axis.set(title=f"truth: {truth}", ylabel="rms reward difference (log-odds)", xlabel="labels", ylim=(0, None))
    legend(axes[-1])
    return figure
