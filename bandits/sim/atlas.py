"""Owns what a map says: labels saved in every world, the meter beside them, and which rule to take when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bandits.headroom import WORTH
from bandits.runs import figures
from bandits.runs.directory import RunDirectory
from bandits.runs.files import write_bytes, write_frame, write_json, write_text
from bandits.runs.page import Picture, render
from bandits.runs.stats import (
    SAVES,
    SAVES_NOT,
    UNDECIDED,
    Estimate,
    bca,
    correlation,
    joint_level,
    labels_saved,
    log_ratio,
    mean,
    rank_correlation,
    share_saved,
    slopes,
    tell,
    unconverged,
)

if TYPE_CHECKING:
    from bandits.sim.map import Map

WORLD = ["noise", "responses", "redundancy"]
OBJECTIVES = {"error": "reward error", "policy_value": "policy value"}
"""what is saved of, and what it is called; of errors less is better"""
ALWAYS = "always"
CALIBRATION = ["rule", "objective", "budget", "worlds"]
CALIBRATION += ["rank", "rank_low", "rank_high", "slope", "slope_low", "slope_high"]
CLAIMED, HARM = 0.30, 0.05
"""the target: where the meter says so much it is saved, and nowhere are so many more labels needed"""
KNOBS = {"redundancy": "redundancy", "noise": "answers", "responses": "K ="}
"""what worlds differ in, and how a value is announced"""
SIGHTED = {
    "policy-trace-target": (
        "- `policy-trace-target` sees the held-out prompts, without their answers; the others do not. A pool of one's",
        "  own names no such prompts, so `activedpo select` cannot use it.",
    ),
    "ceiling": (
        "- `ceiling` knows the truth, so it cannot be used. It greedily lowers the reward error one label at a time;",
        "  its lead over the others suggests, but does not bound, what a better rule might gain.",
    ),
}
"""rules that see more than a pool of one's own has, and what to know of them"""
ALL = "all"
"""the knob of means over all worlds"""
ABLATED = "activedpo-identity"
"""the rule without V"""
ADVISED = "meter"
"""the knob of means over the worlds in which the meter predicts less than the margin"""
DRAWS = 2000
"""of replicates, with replacement"""
Key = tuple[str, str, int]
"""rule, objective and budget"""


def results(settings: Map, rounds: pd.DataFrame) -> pd.DataFrame:
    """Return a row per world, rule, objective and budget: labels saved, and what the rule has there beside Random.

    Intervals are 95 % each.  ``verdict`` is by intervals that hold jointly over all rows of an objective.
    """
    rows: list[dict[str, Any]] = []
    level = joint_level(len(settings.worlds()) * len(settings.rules) * len(settings.budgets))
    for world, part in rounds.groupby(WORLD, sort=False):
        curves = _curves(part)
        fits = {str(rule): unconverged(own["gradient_norm"]) for rule, own in part.groupby("rule", sort=False)}
        for rule in settings.rules:
            unmet = ", ".join(f"{name}: {fits[name]}" for name in (rule, "random") if fits[name])
            for measure in OBJECTIVES:
                less = measure == "error"
                ours, theirs = curves[rule, measure], curves["random", measure]
                for budget in settings.budgets:
                    saving = labels_saved(ours.columns, ours, theirs, float(budget), less)
                    saved, (word, _) = saving.saved, tell(saving.at(level).saved.but(unmet=unmet), settings.margin)
                    ratio = log_ratio(curves[rule, "error"][budget], curves["random", "error"][budget])
                    value = mean(curves[rule, "policy_value"][budget] - curves["random", "policy_value"][budget])
                    rows.append(
                        dict(zip(WORLD, world, strict=True))
                        | {"rule": rule, "objective": measure, "budget": budget, "replicates": len(ours)}
                        | {"saved": saved.value, "low": saved.low, "high": saved.high, "verdict": word}
                        | {"error_ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
                        | {"value_difference": value.value, "value_low": value.low, "value_high": value.high}
                    )
    return pd.DataFrame(rows)


def _curves(part: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Return a world's learning curves by rule and objective: a row a replicate, a column a number of labels."""
    return {
        (str(rule), m): own.pivot(index="replicate", columns="labels", values=m)
        for rule, own in part.groupby("rule", sort=False)
        for m in OBJECTIVES
    }


def redrawn(settings: Map, rounds: pd.DataFrame) -> dict[Key, np.ndarray]:
    """Return the shares of labels saved, worlds × (1 + draws + replicates), had other replicates been played.

    First with all replicates, then with those of each bootstrap draw, then without each one.  Replicate ``r`` is drawn
    in all worlds together: there it has the same network and the same uniform numbers, and where K is equal the same
    items, so worlds are no independent repetitions, and nor are they a sample of anything; replicates are.
    """
    n = settings.replicates
    drawn = np.random.default_rng(settings.seed).multinomial(n, np.full(n, 1 / n), DRAWS)
    weights = np.concatenate([np.full((1, n), 1 / n), drawn / n, (1 - np.eye(n)) / max(n - 1, 1)])
    found: dict[Key, list[np.ndarray]] = {}
    for _, part in rounds.groupby(WORLD, sort=False):
        curves = _curves(part)
        means = {name: weights @ table.to_numpy() for name, table in curves.items()}
        for rule in settings.rules:
            for m in OBJECTIVES:
                for budget in settings.budgets:
                    pair = means[rule, m], means["random", m]
                    saved = share_saved(curves[rule, m].columns, *pair, float(budget), m == "error")
                    found.setdefault((rule, m, budget), []).append(saved)
    return {key: np.stack(saved) for key, saved in found.items()}


def _over(values: np.ndarray) -> Estimate:
    """Return the estimate and its interval over replicates, from values as ``redrawn`` has them."""
    return bca(float(values[0]), values[1 : 1 + DRAWS], values[1 + DRAWS :])


def averaged(
    settings: Map, worlds: pd.DataFrame, shares: dict[Key, np.ndarray], predicted: dict[int, np.ndarray]
) -> pd.DataFrame:
    """Return what rules save on average over all worlds, over those that have a knob in common, and by the meter.

    ``ahead`` is what the map's first rule saves more than this one, with its paired interval: all share the replicates.
    """
    groups = [(ALL, ALL, np.ones(len(worlds), dtype=bool))]
    groups += [(knob, str(v), (worlds[knob] == v).to_numpy()) for knob in KNOBS for v in worlds[knob].unique()]
    rows = []
    for (rule, objective, budget), saved in shares.items():
        first, advised = shares[settings.rules[0], objective, budget], predicted[budget] < settings.margin
        no = [(ADVISED, f"below {settings.margin:g}", advised)] if advised.any() else []
        for knob, value, inside in groups + no:
            found, ahead = _over(saved[inside].mean(0)), _over((first - saved)[inside].mean(0))
            rows.append(
                {"rule": rule, "objective": objective, "budget": budget, "knob": knob, "value": value}
                | {"worlds": int(inside.sum()), "saved": found.value, "low": found.low, "high": found.high}
                | {"ahead": ahead.value, "ahead_low": ahead.low, "ahead_high": ahead.high}
            )
    return pd.DataFrame(rows)


def calibrated(shares: dict[Key, np.ndarray], predicted: dict[int, np.ndarray]) -> pd.DataFrame:
    """Return per rule, objective and budget how the meter's prediction goes with what was saved, over the worlds.

    Intervals are over replicates.  The slope's is of the true savings.  The rank correlation's is of savings measured
    with so many replicates: noise in them pulls it to 0, so that of the true savings is likely farther from 0.
    """
    rows = []
    for (rule, objective, budget), saved in shares.items():
        told = np.broadcast_to(predicted[budget], saved.T.shape)
        if len(saved) < 3 or np.ptp(predicted[budget]) == 0:
            continue
        ranks, slope = np.nan_to_num(rank_correlation(told, saved.T)), _over(slopes(told, saved.T))
        rank = correlation(float(ranks[0]), ranks[1 : 1 + DRAWS], len(ranks) - 1 - DRAWS)
        rows.append(
            {"rule": rule, "objective": objective, "budget": budget, "worlds": len(saved)}
            | {"rank": rank.value, "rank_low": rank.low, "rank_high": rank.high}
            | {"slope": slope.value, "slope_low": slope.low, "slope_high": slope.high}
        )
    return pd.DataFrame(rows, columns=CALIBRATION)


def targets(settings: Map, table: pd.DataFrame) -> pd.DataFrame:
    """Return how near every rule comes to the target, alone and behind the meter ("choose when it says so").

    Behind the meter a rule is used where the meter predicts at least ``margin`` of the labels, else Random, which saves
    nothing and costs nothing.  ``harmed``: places (world, budget) in which more than 5 % more labels were needed;
    ``harmed_surely``: in which the interval says so.  ``claimed``: places where the meter predicted 30 % or more;
    ``kept``: of these, where 30 % were saved and the interval excludes 0.
    """
    rows = []
    for (rule, objective), part in table.groupby(["rule", "objective"], sort=False):
        for policy in (ALWAYS, "where the meter says so"):
            used = part["predicted"] >= (settings.margin if policy != ALWAYS else -np.inf)
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


def sentences(
    settings: Map, table: pd.DataFrame, means: pd.DataFrame, fit: pd.DataFrame, aims: pd.DataFrame
) -> list[str]:
    """Say which rule to take when, every number from the tables, negative results included."""
    last, lines = max(settings.budgets), []
    for objective, words in OBJECTIVES.items():
        ends = means[(means["objective"] == objective) & (means["budget"] == last) & (means["knob"] == ALL)]
        ranked = _rows(ends.sort_values("saved", ascending=False, kind="stable"))
        kinds = {
            "saved labels": [row for row in ranked if row.low > 0],
            "undecided": [row for row in ranked if row.low <= 0 <= row.high],
            "cost labels": [row for row in ranked if row.high < 0],
        }
        lines.append(
            f"Share of {last} labels saved, mean over {len(settings.worlds())} worlds ({words}): "
            + "; ".join(
                f"{kind}: {', '.join(f'{row.rule} {_percent(row)}' for row in of)}" for kind, of in kinds.items() if of
            )
            + "."
        )
        others = [row for row in ranked if row.rule != settings.rules[0]]
        kinds = {
            "saves more than": [row for row in others if row.ahead_low > 0],
            "undecided against": [row for row in others if row.ahead_low <= 0 <= row.ahead_high],
            "saves less than": [row for row in others if row.ahead_high < 0],
        }
        if others:
            lines.append(
                f"{settings.rules[0]} less each other rule, in pairs, 95 % each ({words}): "
                + "; ".join(
                    f"{kind} {', '.join(f'{row.rule} {_ahead(row)}' for row in of)}" for kind, of in kinds.items() if of
                )
                + "."
            )
        goals = aims[(aims["objective"] == objective) & (aims["policy"] == ALWAYS)]
        losing = [f"{g.rule} (in {g.harmed_surely} of {g.places})" for g in _rows(goals) if g.harmed_surely > 0]
        lines.append(
            f"At some world and budget more than 105 % of Random's labels were needed, by its own 95 % interval "
            f"({words}): {', '.join(losing) or 'by no rule'}."
        )
        lined = fit[(fit["objective"] == objective) & (fit["rule"] == settings.rules[0])].sort_values("budget")
        if len(lined):
            lines.append(
                f"The meter, asked before any label, against what {settings.rules[0]} then saved ({words}, "
                f"{len(settings.worlds())} worlds): "
                + "; ".join(
                    f"at {row.budget} labels rank correlation {_fitted(row, 'rank')}"
                    f"{_open(row.rank_low, row.rank_high)}, slope {_fitted(row, 'slope')}"
                    f"{_open(row.slope_low, row.slope_high)}"
                    for row in _rows(lined)
                )
                + f". The rank correlations are of savings measured with {settings.replicates} replicates, whose noise "
                "pulls them to 0; that of the true savings is likely farther from 0."
            )
        own = aims[(aims["objective"] == objective) & (aims["rule"] == settings.rules[0])]
        if own["used"].nunique() == 1:  # the meter never says no: choosing behind it is choosing
            own = own[own["policy"] == ALWAYS]
        lines += [
            f"The target, {row.rule} {row.policy} ({words}): more than 105 % of Random's labels in {row.harmed} of "
            f"{row.places} worlds and budgets (by its interval in {row.harmed_surely}); where the meter predicts 30 % "
            f"or more, {row.kept} of {row.claimed} save 30 % with an interval above 0."
            for row in _rows(own)
        ]
    told = table["predicted"]
    lines.append(
        f"Over these worlds and budgets the meter predicts from {100 * told.min():.0f} % to {100 * told.max():.0f} %"
        + (
            ": whether it is right where it advises against choosing cannot be seen here; the map `spent` asks that."
            if told.min() >= settings.margin
            else f"; where it predicts less than {100 * settings.margin:.0f} %, Random is used (`activedpo select` "
            f"advises Random where less than {100 * WORTH:.0f} % is predicted)."
        )
    )
    no = means[(means["rule"] == settings.rules[0]) & (means["knob"] == ADVISED)].sort_values("budget")
    margin = f"{100 * settings.margin:.0f} %"
    for row in _rows(no):
        if row.low <= settings.margin <= row.high:
            right = f"whether that is less than {margin} is undecided"
        else:
            right = f"{'less' if row.high < settings.margin else 'not less'} than {margin}"
        lines.append(
            f"Where the meter predicts less than {margin} of {row.budget} labels ({OBJECTIVES[row.objective]}, "
            f"{row.worlds} of {len(settings.worlds())} worlds), {settings.rules[0]} saves {_told(row)} on average: "
            f"{right}."
        )
    return lines


def page_text(
    settings: Map,
    preset: str,
    table: pd.DataFrame,
    means: pd.DataFrame,
    fit: pd.DataFrame,
    aims: pd.DataFrame,
    figure: str,
) -> str:
    """Return "Which rule when" as Markdown; ``figure`` is the folder of its figures."""
    last, worlds = max(settings.budgets), len(settings.worlds())
    duels = settings.prompts * math.comb(max(settings.responses), 2)
    small = f"The pool is small: {last} of at most {duels} duels are bought, so there is little to choose."
    out = [
        "# Which rule when" + ("" if preset == "full" else f": the map `{preset}`"),
        "",
        "Does it pay to choose which duels to label, on a pool like mine, and by which rule? Every number here is of",
        f"one run, `python -m bandits.map {preset}`: {worlds} *worlds* ({len(settings.redundancy)} redundancies of the",
        f"pool, {len(settings.noise)} kinds of answers, K = {', '.join(map(str, settings.responses))} responses to "
        f"each of {settings.prompts} prompts), in each",
        f"{settings.replicates} replicates that all rules share, and budgets of "
        f"{', '.join(map(str, sorted(settings.budgets)))} labels.",
        "",
        *summary(settings, table, means),
        "",
        "*Labels saved* is the share of Random's labels that a rule does without to be as good (below 0: it needs",
        "more). Intervals are 95 % over replicates, the verdicts on single worlds joint 95 %; what is said of several",
        "worlds (bootstrap of the replicates, which all worlds share) holds for these worlds. What has 0 in its",
        "interval is undecided. *Redundancy* is the share of prompts that lie near one plane. Answers: BTL at",
        "temperature ½ (*sharp*) or 1 (*plain*), or plain with a fifth turned round (*flips*). *The meter*,",
        "[`headroom`](api.md), sees features alone. The learner "
        f"(`{settings.learner}`) is linear, and can represent the truth",
        f"(`{settings.truth}`).",
        *(["", small] if duels < 2 * last else []),
        "",
        "## What was found",
        "",
        *(f"- {line}" for line in sentences(settings, table, means, fit, aims)),
        "",
        f"What `{settings.rules[0]}` saves of {last} labels, by what a world is like:",
        "",
        *by_knob(settings, means),
    ]
    for objective, words in OBJECTIVES.items():
        ends = table[(table["objective"] == objective) & (table["budget"] == last)]
        out += [
            "",
            f"## Labels saved, {words}, {last} labels",
            "",
            f"![labels saved]({figure}/saved-{objective}.svg)",
            "",
            f"*{heated(settings, objective)}*",
            "",
            "| rule | worlds: saves / does not / undecided | mean over worlds | highest estimate | lowest estimate "
            "| needs over 105 % (by its interval) | saves 30 % where predicted | slope, saved on predicted |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for rule in settings.rules:
            own = ends[ends["rule"] == rule]
            counts = own["verdict"].value_counts()
            best, worst = (_rows(own)[int(at)] for at in (own["saved"].argmax(), own["saved"].argmin()))
            goal = _rows(aims[(aims["rule"] == rule) & (aims["objective"] == objective) & (aims["policy"] == ALWAYS)])[
                0
            ]
            line = _rows(fit[(fit["rule"] == rule) & (fit["objective"] == objective) & (fit["budget"] == last)])
            over = means[(means["rule"] == rule) & (means["objective"] == objective) & (means["budget"] == last)]
            (whole,) = _rows(over[over["knob"] == ALL])
            slope = _fitted(line[0], "slope") if line else "–"
            out.append(
                f"| `{rule}` | {counts.get(SAVES, 0)} / {counts.get(SAVES_NOT, 0)} / {counts.get(UNDECIDED, 0)} "
                f"| {_percent(whole)} | {_place(best)} | {_place(worst)} | {goal.harmed} "
                f"({goal.harmed_surely}) of {goal.places} | {goal.kept} of {goal.claimed} | {slope} |"
            )
        out += [
            "",
            f"![the meter's prediction and what was saved]({figure}/meter-{objective}.svg)",
            "",
            f"*{metered(objective, last)}*",
        ]
    out += [
        "",
        "## What this does not say",
        "",
        "- The learner is linear in its parameters and the truth is one that it can represent: with a network that is",
        "  fitted, or a truth outside its space, what is saved may be less ([findings](findings.md)).",
        *[line for rule, lines in SIGHTED.items() if rule in settings.rules for line in lines],
        "- Kinds of answers and pools are a grid, not a sample: means over worlds weigh what is in the grid.",
        "",
        "Tables: `results.csv` (a row per world, rule, objective and budget), `means.csv`, `meter.csv`,",
        f"`calibration.csv`, `target.csv`, in `{figure}/`.",
    ]
    return "\n".join(out) + "\n"


def summary(settings: Map, table: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """Return the page's short answer, of the first rule, in lines."""
    rule, last = settings.rules[0], max(settings.budgets)
    own = means[(means["rule"] == rule) & (means["budget"] == last) & (means["knob"] == ALL)].set_index("objective")
    mean_of = [f"{_told(own.loc[objective])} at equal {words}" for objective, words in OBJECTIVES.items()]
    ends = table[(table["rule"] == rule) & (table["budget"] == last)]
    low, high = _whole(ends["saved"].min()), _whole(ends["saved"].max())
    predicted = ends["predicted"]
    alone = [
        f"{(ends.loc[ends['objective'] == objective, 'verdict'] == SAVES).sum()} ({words})"
        for objective, words in OBJECTIVES.items()
    ]
    return [
        f"**In short.** Of {last} labels `{rule}` saves {' and '.join(mean_of)} on average over",
        f"these worlds. Estimates in single ones go from {low} to {high} %; by itself a saving is shown in "
        f"{' and '.join(alone)} of {len(settings.worlds())}.",
        f"The meter, which asks for no label, predicts from {_whole(predicted.min())} to {_whole(predicted.max())} %.",
        "Ask it first (`activedpo select` prints it), and sample at random where it advises so. On language models no",
        "saving has been shown yet ([findings](findings.md)).",
    ]


def by_knob(settings: Map, means: pd.DataFrame) -> list[str]:
    """Return a table of what the first rule saves at the last budget, a row for every value that worlds differ in.

    Where the rule without V was played too, also of what it saves more than that one.
    """
    last = means[means["budget"] == max(settings.budgets)]
    rules = [settings.rules[0], *(rule for rule in settings.rules[1:] if rule == ABLATED)]
    heads = [f"more than `{rule}`, {said}" for rule in rules[1:] for said in OBJECTIVES.values()]
    rows = [f"| | {' | '.join([*OBJECTIVES.values(), *heads])} |", "|---" * (1 + len(OBJECTIVES) + len(heads)) + "|"]
    for (knob, value), part in last[last["knob"].isin(KNOBS)].groupby(["knob", "value"], sort=False):
        cells = []
        for rule, told in zip(rules, (_told, _more), strict=False):
            own = part[part["rule"] == rule]
            cells += [told(_rows(own[own["objective"] == objective])[0]) for objective in OBJECTIVES]
        rows.append(f"| {KNOBS[str(knob)]} {value} | {' | '.join(cells)} |")
    return rows


def _whole(share: float, sign: str = "") -> str:
    """Return a share in whole per cent; with a digit more where it would be rounded to 0, on whose side it lies."""
    digits = 1 if 0.0005 <= abs(share) < 0.005 else 0
    return f"{round(100 * share, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def _open(low: float, high: float) -> str:
    """Say that an interval which holds 0 decides nothing."""
    return " (undecided)" if low <= 0 <= high else ""


def _percent(row: Any) -> str:
    return f"{_whole(row.saved)} % [{_whole(row.low)}, {_whole(row.high)}]"


def _told(row: Any) -> str:
    return _percent(row) + _open(row.low, row.high)


def _more(row: Any) -> str:
    return _ahead(row) + _open(row.ahead_low, row.ahead_high)


def _ahead(row: Any) -> str:
    return f"{_whole(row.ahead, '+')} % [{_whole(row.ahead_low, '+')}, {_whole(row.ahead_high, '+')}]"


def _fitted(row: Any, name: str) -> str:
    """Return the rank correlation, or the slope, of the meter's prediction and what was saved."""
    value, low, high = (getattr(row, column) for column in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")


def _rows(table: pd.DataFrame) -> list[Any]:
    """Return a table's rows as objects with their columns as attributes."""
    return list(table.itertuples(index=False))


def _place(row: Any) -> str:
    return f"{_percent(row)} (redundancy {row.redundancy:g}, {row.noise}, K = {row.responses})"


def heat(settings: Map, table: pd.DataFrame, objective: str) -> Figure:
    """Draw what the first rule saves at the last budget: redundancy against K, a panel per noise (``heated``)."""
    rule, last = settings.rules[0], max(settings.budgets)
    figure, axes = figures.panels(len(settings.noise), width=3.4, height=2.8, legend=0.8)
    shown = table[(table["rule"] == rule) & (table["objective"] == objective) & (table["budget"] == last)]
    for axis, noise in zip(axes, settings.noise, strict=True):
        part = shown[shown["noise"] == noise].pivot(index="responses", columns="redundancy", values="saved")
        verdicts = shown[shown["noise"] == noise].pivot(index="responses", columns="redundancy", values="verdict")
        drawn = axis.imshow(100 * part.to_numpy(), cmap="RdBu", vmin=-100, vmax=100, aspect="auto", origin="lower")
        for (y, x), value in np.ndenumerate(part.to_numpy()):
            said = f"({_whole(value)})" if verdicts.iloc[y, x] == UNDECIDED else _whole(value)
            axis.text(x, y, said, ha="center", va="center", color="white" if abs(value) > 0.6 else "black")
        axis.set(title=noise, xlabel="redundancy", ylabel="responses K")
        axis.set(xticks=range(part.shape[1]), xticklabels=[f"{v:g}" for v in part.columns])
        axis.set(yticks=range(part.shape[0]), yticklabels=list(part.index))
    figure.colorbar(drawn, ax=axes, label=f"labels that {rule} saves, %")
    return figure


def heated(settings: Map, objective: str) -> str:
    """Return the caption of ``heat``."""
    return (
        f"Share of labels, in %, that {settings.rules[0]} saves against Random's {OBJECTIVES[objective]} at "
        f"{max(settings.budgets)} labels, world by world; in brackets where the world by itself is undecided."
    )


def metered(objective: str, last: int) -> str:
    """Return the caption of ``scatter``."""
    return (
        f"Labels saved ({OBJECTIVES[objective]}, {last} labels, 95 % intervals) against the meter's prediction; a "
        "point is a world, on the dashed line the meter is right."
    )


def scatter(settings: Map, table: pd.DataFrame, objective: str) -> Figure:
    """Draw what was saved against what the meter predicted, a panel per rule."""
    last = max(settings.budgets)
    figure, axes = figures.panels(len(settings.rules), columns=3, width=3.4, height=3.0, share=True, legend=0.2)
    shown = table[(table["objective"] == objective) & (table["budget"] == last)]
    right = max(100 * shown["predicted"].max() + 5, 25)
    bottom, top = 100 * shown["low"].min() - 5, 100 * shown["high"].max() + 5  # intervals may be open
    for axis, rule in zip(axes, settings.rules, strict=True):
        part = shown[shown["rule"] == rule]
        low, high = 100 * (part["saved"] - part["low"]), 100 * (part["high"] - part["saved"])
        bars = [low.clip(lower=0), high.clip(lower=0)]
        axis.errorbar(100 * part["predicted"], 100 * part["saved"], bars, fmt="o", ms=3, lw=0.6)
        axis.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
        axis.axhline(0, color="black", lw=0.5)
        axis.set(title=rule, xlabel="predicted by the meter, %", ylabel="labels saved, %", xlim=(-5, right))
        axis.set(ylim=(max(-100, bottom), min(100, top)))
    return figure


def finish(settings: Map, directory: RunDirectory, rounds: pd.DataFrame, meter: pd.DataFrame) -> None:
    """Write tables, figures, "Which rule when", and the page."""
    table = results(settings, rounds).merge(meter.drop(columns="replicates"), on=[*WORLD, "budget"]).round(4)
    shares, worlds = redrawn(settings, rounds), rounds[WORLD].drop_duplicates()
    told = {
        budget: worlds.merge(meter[meter["budget"] == budget], on=WORLD, how="left")["predicted"].to_numpy()
        for budget in settings.budgets
    }
    means, fit = averaged(settings, worlds, shares, told).round(4), calibrated(shares, told).round(4)
    aims = targets(settings, table).round(4)
    lines = sentences(settings, table, means, fit, aims)
    tables = {"results": table, "means": means, "meter": meter.round(4), "calibration": fit, "target": aims}
    for name, frame in tables.items():
        write_frame(directory.path / f"{name}.csv", frame)
    last = max(settings.budgets)
    pictures: list[Picture] = []
    for objective in OBJECTIVES:
        drawn = heat(settings, table, objective), scatter(settings, table, objective)
        pictures.append(figures.picture(f"saved-{objective}", heated(settings, objective), drawn[0]))
        pictures.append(figures.picture(f"meter-{objective}", metered(objective, last), drawn[1]))
    for picture in pictures:
        write_bytes(directory.path / "figures" / f"{picture.name}.{picture.kind}", picture.content)
    text = page_text(settings, directory.manifest["preset"], table, means, fit, aims, "figures")
    write_text(directory.path / "which-rule-when.md", text)
    write_json(directory.path / "findings.json", lines)
    page = render(
        "bandits.sim",
        "map.html.j2",
        manifest=directory.manifest,
        settings=settings,
        lines=lines,
        pictures=pictures,
        worlds=len(settings.worlds()),
    )
    write_text(directory.path / "index.html", page)
