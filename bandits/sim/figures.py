"""Owns the figures: drawn from results frames only, always with intervals over replicates."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

mpl.use("Agg")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "activedpo",
    "figure.dpi": 110,
}


def png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", metadata={"Software": ""})
    return buffer.getvalue()


def palette(contenders: list[str]) -> dict[str, object]:
    """Return one colour per contender, black for Random."""
    others = [name for name in contenders if name != "random"]
    return {"random": "black"} | dict(zip(others, sns.color_palette("colorblind", len(others)), strict=True))


VERDICTS = {"better": "#0072b2", "worse": "#d55e00"}
BAND = {"alpha": 0.13, "linewidth": 0}


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
    truths, contenders = list(rounds["truth"].unique()), list(rounds["contender"].unique())
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(truths), figsize=(1.2 + 4.6 * len(truths), 3.8), squeeze=False, layout="constrained"
        )
        for axis, truth in zip(axes[0], truths, strict=True):
            sns.lineplot(
                rounds[rounds["truth"] == truth],
                x="labels",
                y=measure,
                hue="contender",
                hue_order=contenders,
                palette=palette(contenders),
                errorbar=("ci", 95),
                seed=0,
                n_boot=400,
                ax=axis,
                legend=truth == truths[-1],
                err_kws=BAND,
            )
            axis.set(title=f"truth: {truth}", xlabel="labels", ylabel=label)
            if log:
                axis.set(xscale="log", yscale="log")
            if zero:
                axis.axhline(0, color="black", lw=0.8)
        sns.move_legend(axes[0][-1], "center left", bbox_to_anchor=(1.02, 0.5), title=None, frameon=False)
    return figure


def paired_ratios(comparison: pd.DataFrame, label: str) -> Figure:
    """Draw each contender's ratio to the baseline with its joint 95 % interval."""
    truths = list(comparison["truth"].unique())
    height = 1.1 + 0.32 * comparison["contender"].nunique()
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(truths), figsize=(1.6 + 4.0 * len(truths), height), squeeze=False, sharey=True, layout="constrained"
        )
        for axis, truth in zip(axes[0], truths, strict=True):
            part = comparison[comparison["truth"] == truth].iloc[::-1]
            for place, row in enumerate(part.to_dict("records")):
                colour = VERDICTS.get(row["verdict"], "0.5")
                axis.plot([row["low"], row["high"]], [place, place], color=colour, lw=2)
                axis.plot(row["effect"], place, "o", color=colour)
            axis.axvline(1, color="black", lw=0.8)
            axis.set(title=f"truth: {truth}", xlabel=label, yticks=range(len(part)), yticklabels=part["contender"])
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
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(truths), figsize=(1.2 + 4.6 * len(truths), 3.8), squeeze=False, sharey=True, layout="constrained"
        )
        for axis, truth in zip(axes[0], truths, strict=True):
            part = bounds[bounds["truth"] == truth]
            long = part.melt(["labels", "replicate"], list(names), "term", "multiplier").replace({"term": names})
            sns.lineplot(
                long,
                x="labels",
                y="multiplier",
                hue="term",
                hue_order=list(names.values()),
                palette="colorblind",
                errorbar=("pi", 90),
                style="term",
                ax=axis,
                legend=truth == truths[-1],
            )
            axis.set(title=f"truth: {truth}", yscale="log", ylabel="multiplier of the width", xlabel="labels")
        sns.move_legend(axes[0][-1], "center left", bbox_to_anchor=(1.02, 0.5), title=None, frameon=False)
    return figure


def calibration(table: pd.DataFrame) -> Figure:
    """Draw root mean square error by decile of width: a rising line means that width predicts error."""
    truths, contenders = list(table["truth"].unique()), list(table["contender"].unique())
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(truths), figsize=(1.2 + 4.6 * len(truths), 3.6), squeeze=False, layout="constrained"
        )
        for axis, truth in zip(axes[0], truths, strict=True):
            sns.lineplot(
                table[table["truth"] == truth],
                x="decile",
                y="error",
                hue="contender",
                hue_order=contenders,
                palette=palette(contenders),
                errorbar=("ci", 95),
                seed=0,
                n_boot=400,
                marker="o",
                ax=axis,
                legend=truth == truths[-1],
            )
            axis.set(
                title=f"truth: {truth}",
                xlabel="decile of width at the last round",
                ylabel="rms error (log-odds)",
                xticks=np.arange(1, 11),
                ylim=(0, None),
            )
        sns.move_legend(axes[0][-1], "center left", bbox_to_anchor=(1.02, 0.5), title=None, frameon=False)
    return figure


def error_split(bounds: pd.DataFrame) -> Figure:
    """Draw the error's two parts: statistical (linearised learner) and linearisation (network less linearised)."""
    names = {"error": "network's error", "statistical": "statistical part", "linearisation": "linearisation part"}
    truths = list(bounds["truth"].unique())
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(truths), figsize=(1.2 + 4.6 * len(truths), 3.6), squeeze=False, layout="constrained"
        )
        for axis, truth in zip(axes[0], truths, strict=True):
            part = bounds[bounds["truth"] == truth]
            long = part.melt(["labels", "replicate"], list(names), "part", "rms").replace({"part": names})
            sns.lineplot(
                long,
                x="labels",
                y="rms",
                hue="part",
                hue_order=list(names.values()),
                palette="colorblind",
                errorbar=("ci", 95),
                seed=0,
                n_boot=400,
                ax=axis,
                legend=truth == truths[-1],
            )
            axis.set(
                title=f"truth: {truth}", ylabel="rms reward difference (log-odds)", xlabel="labels", ylim=(0, None)
            )
        sns.move_legend(axes[0][-1], "center left", bbox_to_anchor=(1.02, 0.5), title=None, frameon=False)
    return figure
