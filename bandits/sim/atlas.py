"""Owns what a map says: labels saved in every world, the meter beside them, and which rule to take when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bandits.runs import figures
from bandits.runs.directory import RunDirectory
from bandits.runs.files import write_bytes, write_frame, write_text
from bandits.runs.page import Picture, render
from bandits.runs.stats import (
    SAVES,
    SAVES_NOT,
    UNDECIDED,
    Estimate,
    calibration,
    joint_level,
    labels_saved,
    log_ratio,
    mean,
    tell,
)
from bandits.runs.stats import share as shared

if TYPE_CHECKING:
    from bandits.sim.map import Map

WORLD = ["noise", "responses", "redundancy"]
OBJECTIVES = {"error": True, "policy_value": False}
"""what is saved of, and whether less is better"""
CLAIMED, HARM = 0.30, 0.05
"""the target: where the meter says so much it is saved, and nowhere are so many more labels needed"""


def results(settings: Map, rounds: pd.DataFrame) -> pd.DataFrame:
    """Return a row per world, rule, objective and budget: labels saved, and what the rule has there beside Random.

    Intervals are 95 % each.  ``verdict`` is by intervals that hold jointly over all rows of an objective.
    """
    rows: list[dict[str, Any]] = []
    level = joint_level(len(settings.worlds()) * len(settings.rules) * len(settings.budgets))
    for world, part in rounds.groupby(WORLD, sort=False):
        tables = {
            rule: {m: own.pivot(index="replicate", columns="labels", values=m) for m in OBJECTIVES}
            for rule, own in part.groupby("rule", sort=False)
        }
        for rule in settings.rules:
            for measure, less in OBJECTIVES.items():
                ours, theirs = tables[rule][measure], tables["random"][measure]
                for budget in settings.budgets:
                    saved = labels_saved(ours.columns, ours, theirs, float(budget), less).saved
                    word = tell(
                        labels_saved(ours.columns, ours, theirs, float(budget), less, level).saved, settings.margin
                    )[0]
                    a, b = (tables[name]["error"][budget] for name in (rule, "random"))
                    ratio = log_ratio(a, b)
                    value = mean(tables[rule]["policy_value"][budget] - tables["random"]["policy_value"][budget])
                    rows.append(
                        dict(zip(WORLD, world, strict=True))
                        | {"rule": rule, "objective": measure, "budget": budget, "replicates": len(ours)}
                        | {"saved": saved.value, "low": saved.low, "high": saved.high, "verdict": word}
                        | {"error_ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
                        | {"value_difference": value.value, "value_low": value.low, "value_high": value.high}
                    )
    return pd.DataFrame(rows)


def calibrated(settings: Map, table: pd.DataFrame) -> pd.DataFrame:
    """Return per rule, objective and budget how the meter's prediction goes with what was saved, over the worlds."""
    rows = []
    for (rule, objective, budget), part in table.groupby(["rule", "objective", "budget"], sort=False):
        if len(part) < 3 or np.ptp(part["predicted"]) == 0:
            continue
        rank, slope = calibration(part["predicted"], part["saved"])
        rows.append(
            {"rule": rule, "objective": objective, "budget": budget, "worlds": len(part)}
            | {"rank": rank.value, "rank_low": rank.low, "rank_high": rank.high}
            | {"slope": slope.value, "slope_low": slope.low, "slope_high": slope.high}
        )
    return pd.DataFrame(rows)


def targets(settings: Map, table: pd.DataFrame) -> pd.DataFrame:
    """Return how near every rule comes to the target, alone and behind the meter ("choose when it says so").

    Behind the meter a rule is used where the meter predicts at least ``margin`` of the labels, else Random, which saves
    nothing and costs nothing.  ``harmed``: places (world, budget) in which more than 5 % more labels were needed;
    ``harmed_surely``: in which the interval says so.  ``claimed``: places where the meter predicted 30 % or more;
    ``kept``: of these, where 30 % were saved and the interval excludes 0.
    """
    rows = []
    for (rule, objective), part in table.groupby(["rule", "objective"], sort=False):
        for policy in ("always", "when the meter says so"):
            used = part["predicted"] >= (settings.margin if policy != "always" else -np.inf)
            saved, low, high = (part[name].where(used, 0.0) for name in ("saved", "low", "high"))
            claimed = part["predicted"] >= CLAIMED
            kept = claimed & (saved >= CLAIMED) & (low > 0)
            rows.append(
                {"rule": rule, "objective": objective, "policy": policy, "places": len(part), "used": int(used.sum())}
                | {"mean_saved": saved.mean(), "worst": saved.min()}
                | {"harmed": int((saved < -HARM).sum()), "harmed_surely": int((high < -HARM).sum())}
                | {"claimed": int(claimed.sum()), "kept": int(kept.sum())}
            )
    return pd.DataFrame(rows)


def sentences(settings: Map, table: pd.DataFrame, fit: pd.DataFrame, aims: pd.DataFrame) -> list[str]:
    """Say which rule to take when, every sentence from the tables, negative results included."""
    last, lines = max(settings.budgets), []
    for objective, words in (("error", "reward error"), ("policy_value", "policy value")):
        part = table[(table["objective"] == objective) & (table["budget"] == last)]
        for rule, own in part.groupby("rule", sort=False):
            counts = own["verdict"].value_counts()
            average = mean(own["saved"])
            best, worst = (_rows(own)[int(place)] for place in (own["saved"].argmax(), own["saved"].argmin()))
            lines.append(
                f"**{rule}**, {words}, {last} labels: saves in {counts.get(SAVES, 0)} of {len(own)} worlds, not in "
                f"{counts.get(SAVES_NOT, 0)}, undecided in {counts.get(UNDECIDED, 0)} (joint 95 %); over worlds "
                f"{_percent(average)} on average; most {_place(best)}, least {_place(worst)}."
            )
    error = table[(table["objective"] == "error") & (table["budget"] == last)]
    for knob, word in (("redundancy", "redundancy"), ("noise", "noise"), ("responses", "K")):
        for rule in settings.rules[:1]:
            parts = [
                f"{word} {value}: {_percent(mean(own['saved']))}"
                for value, own in error[error["rule"] == rule].groupby(knob, sort=False)
                if len(own) > 1
            ]
            if parts:
                lines.append(f"What governs the gain of {rule} (reward error, {last} labels): {'; '.join(parts)}.")
    lines += [
        f"The meter against what {row.rule} saves ({row.objective}, {row.worlds} worlds): rank correlation "
        f"{row.rank:.2f} [{row.rank_low:.2f}, {row.rank_high:.2f}], slope {row.slope:.2f} "
        f"[{row.slope_low:.2f}, {row.slope_high:.2f}]."
        for row in _rows(fit)
        if row.budget == last
    ]
    for row in _rows(aims):
        kept = shared(row.kept, row.claimed) if row.claimed else None
        interval = f" ({100 * kept.value:.0f} % [{100 * kept.low:.0f}, {100 * kept.high:.0f}])" if kept else ""
        lines.append(
            f"The target, {row.rule} {row.policy} ({row.objective}): needs over 5 % more labels than Random in "
            f"{row.harmed} of {row.places} places (surely in {row.harmed_surely}); where the meter predicts 30 % or "
            f"more, {row.kept} of {row.claimed} places save 30 % with an interval above 0{interval}; it saves "
            f"{100 * row.mean_saved:.0f} % on average, at worst {100 * row.worst:.0f} %."
        )
    return lines


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _rows(table: pd.DataFrame) -> list[Any]:
    """Return a table's rows as objects with their columns as attributes."""
    return list(table.itertuples(index=False))


def _place(row: Any) -> str:
    return (
        f"{100 * row.saved:.0f} % [{100 * row.low:.0f}, {100 * row.high:.0f}] (redundancy {row.redundancy:g}, "
        f"{row.noise}, K = {row.responses})"
    )


def heat(settings: Map, table: pd.DataFrame, rule: str, objective: str) -> Figure:
    """Draw what a rule saves at the last budget: redundancy against K, a panel per noise."""
    last = max(settings.budgets)
    figure, axes = figures.panels(len(settings.noise), width=3.4, height=2.8, legend=0.8)
    shown = table[(table["rule"] == rule) & (table["objective"] == objective) & (table["budget"] == last)]
    for axis, noise in zip(axes, settings.noise, strict=True):
        part = shown[shown["noise"] == noise].pivot(index="responses", columns="redundancy", values="saved")
        drawn = axis.imshow(part.to_numpy(), cmap="RdBu", vmin=-1, vmax=1, aspect="auto", origin="lower")
        for (y, x), value in np.ndenumerate(part.to_numpy()):
            axis.text(
                x, y, f"{100 * value:.0f} %", ha="center", va="center", color="white" if abs(value) > 0.6 else "black"
            )
        axis.set(title=noise, xlabel="redundancy", ylabel="responses K")
        axis.set(xticks=range(part.shape[1]), xticklabels=[f"{v:g}" for v in part.columns])
        axis.set(yticks=range(part.shape[0]), yticklabels=list(part.index))
    figure.colorbar(drawn, ax=axes, label="share of labels saved")
    return figure


def scatter(settings: Map, table: pd.DataFrame, objective: str) -> Figure:
    """Draw what was saved against what the meter predicted, a panel per rule."""
    last = max(settings.budgets)
    figure, axes = figures.panels(len(settings.rules), columns=3, width=3.4, height=3.0, share=True, legend=0.2)
    for axis, rule in zip(axes, settings.rules, strict=True):
        part = table[(table["rule"] == rule) & (table["objective"] == objective) & (table["budget"] == last)]
        low, high = part["saved"] - part["low"], part["high"] - part["saved"]
        axis.errorbar(part["predicted"], part["saved"], [low.clip(lower=0), high.clip(lower=0)], fmt="o", ms=3, lw=0.6)
        axis.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
        axis.axhline(0, color="black", lw=0.5)
        axis.set(title=rule, xlabel="predicted by the meter", ylabel="labels saved", xlim=(-0.1, 1), ylim=(-1, 1))
    return figure


def finish(settings: Map, directory: RunDirectory, rounds: pd.DataFrame, meter: pd.DataFrame) -> None:
    """Write tables, figures, the list of sentences, and the page."""
    table = results(settings, rounds).merge(meter.drop(columns="replicates"), on=[*WORLD, "budget"])
    fit, aims = calibrated(settings, table), targets(settings, table)
    lines = sentences(settings, table, fit, aims)
    for name, frame in (("results", table), ("meter", meter), ("calibration", fit), ("target", aims)):
        write_frame(directory.path / f"{name}.csv", frame.round(4))
    write_text(directory.path / "which-rule-when.md", "\n".join(f"- {line}" for line in lines) + "\n")
    last = max(settings.budgets)
    pictures: list[Picture] = []
    for objective, words in (("error", "reward error"), ("policy_value", "policy value")):
        for rule in settings.rules[:1]:
            caption = f"Share of labels that {rule} saves against Random's {words} at {last} labels, world by world."
            pictures.append(figures.picture(f"saved-{objective}", caption, heat(settings, table, rule, objective)))
        caption = (
            f"Share of labels saved ({words}, {last} labels, 95 % intervals) against the meter's prediction; a point "
            "is a world, on the dashed line the meter is right."
        )
        pictures.append(figures.picture(f"meter-{objective}", caption, scatter(settings, table, objective)))
    for picture in pictures:
        write_bytes(directory.path / "figures" / f"{picture.name}.{picture.kind}", picture.content)
    page = render(
        "bandits.sim", "map.html.j2", manifest=directory.manifest, settings=settings, lines=lines, pictures=pictures,
        worlds=len(settings.worlds())
    )  # fmt: skip
    write_text(directory.path / "index.html", page)
