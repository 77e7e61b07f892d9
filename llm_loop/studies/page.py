"""Owns a study's page: the verdict in words, the figure, the numbers, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from bandits.runs.stats import SAVINGS, Estimate, compare, decide, mean, savings
from llm_loop.report.evaluate import against, at_equal_kl, by_seed, per_token
from llm_loop.report.findings import (
    FAR,
    FLUENCY,
    compared,
    frontier,
    named,
    number,
    saving,
    share_saved,
    strays,
    with_span,
)
from llm_loop.studies.figures import TITLES, in_panels
from llm_loop.studies.plans import EXACT, Part, Study
from llm_loop.studies.read import Found

BASELINE = "random"
NOT_KNOWN = "it is not known that Random learned"
NULLS = {"longer_wins": "longer wins", "null_wins": "null by the reward", "null_judge_wins": "null by the judge"}
"""what a win rate is to be compared with"""
SHARES = {*NULLS, "wins", "judge_wins"}
WELL = {
    "ended": "responses that ended",
    "bits_per_byte": "bits per byte",
    "chosen_log_ratio": "chosen log-ratio",
    "rejected_log_ratio": "rejected log-ratio",
    "chosen_fell_share": "chosen that fell",
    "training_accuracy": "training accuracy",
    "accuracy": "held-out accuracy",
}
"""how well a model still is, beside KL and fluency"""


def saved_of(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Return what strategies save of Random's labels, run by run; intervals hold jointly over the whole study."""
    parts = [
        part
        for _, part in table.groupby("part", sort=False)
        if BASELINE in set(part["strategy"]) and part["strategy"].nunique() > 1
    ]
    if not parts or "reward" not in study.measures or table["labels"].nunique() < 3:
        return pd.DataFrame(columns=SAVINGS)
    rows = pd.concat(parts).rename(columns={"part": "truth", "strategy": "contender", "seed": "replicate"})
    unmet = {(str(part), BASELINE): why for part, own in table.groupby("part") if (why := undefined(study, own))}
    return savings(rows, "reward", BASELINE, lower_is_better=False, unmet=unmet)


def written(
    name: str, study: Study, parts: Sequence[Part], found: Mapping[str, Found], saved: pd.DataFrame, told: Told
) -> list[str]:
    """Return the page, line by line."""
    table = pd.concat([one.table for one in found.values() if len(one.table)], ignore_index=True)
    lines = [f"# {study.title}", "", study.question, "", "## What was found", ""]
    lines += [f"- {line}" for line in verdicts(study, parts, table, saved, told.forecasts)]
    lines += ["", f"![{study.title}]({told.stem}.png)", ""]
    lines += [_caption(study, table, saved)]
    if len(saved):
        lines += ["", "## Labels saved", "", *_savings(saved)]
    rows = differences(study, parts, table)
    if rows:
        lines += ["", "## Differences", "", *_differences(rows)]
    if dimensions := exact_differences(table):
        lines += ["", "## Against exact gradients", "", *_dimensions(dimensions)]
    lines += ["", "## After the last round", "", *_final(study, table)]
    if "fluency" in study.measures:
        lines += ["", "## How well the model still is", "", *_well(table)]
    return [*lines, "", "## How it was made", "", *_made(name, parts, found, told)]


def _caption(study: Study, table: pd.DataFrame, saved: pd.DataFrame) -> str:
    """Return what a figure's marks are, and which measures the tables alone have."""
    if study.settings:
        return (
            "Changes from the first to the last round: small marks are seeds, large ones their means, hollow beyond a "
            "limit (dotted). KL is drawn in the logarithm, below 0.01 straight."
        )
    drawn = in_panels(study, table)
    said = ["Lines are means over seeds, bars their 95 % intervals (Student's t), drawn side by side."]
    if table.loc[table["round"] == 0, list(drawn)].notna().any(axis=None):
        said.append("0 labels: the initial model.")
    if "wins" in drawn:
        said.append("Dotted: 0.5, no better than the initial model.")
    if rest := [TITLES[measure].partition(",")[0] for measure in study.measures if measure not in drawn]:
        names = named(rest)
        said.append(f"{names[0].upper()}{names[1:]} {'are' if len(rest) > 1 else 'is'} in the table below only.")
    if len(saved):
        said.append(
            "Labels saved: shares of Random's labels with joint 95 % intervals, below 0 where Random would save them; "
            "grey: less than 10 % either way; hollow: undecided."
        )
    return " ".join(said)


class Told:
    """What a page is told beside the tables."""

    def __init__(self, stem: str, preset: str, forecasts: Sequence[Mapping[Hashable, Any]] = ()) -> None:
        """Name the page's files, the preset, and what the meter foretold."""
        self.stem, self.preset, self.forecasts = stem, preset, forecasts


def verdicts(
    study: Study,
    parts: Sequence[Part],
    table: pd.DataFrame,
    saved: pd.DataFrame,
    forecasts: Sequence[Mapping[Hashable, Any]] = (),
) -> list[str]:
    """Say what was found, the answer to the question first."""
    runs = [table[table["part"] == part.name] for part in parts]
    lines = [line for own in runs for line in levels(study, own)]
    lines += [line for own in runs for line in unlearned(study, own)]
    rows = [row for row in differences(study, parts, table) if row["measure"] == study.measures[0]]
    final = [row for row in rows if row["outcome"] == "final"]
    for part, baseline in dict.fromkeys((row["part"], row["baseline"]) for row in final):
        own = [row for row in final if (row["part"], row["baseline"]) == (part, baseline)]
        lines += [f"{part}: {line}" for line in summed(own, "strategy", baseline, TITLES[study.measures[0]])]
    lines += [line for own in runs for line in at_kl(study, own)]
    open_ones = []
    for row in saved.to_dict("records"):
        if row["verdict"] == "undecided":
            open_ones.append(f"{row['truth']}: {row['contender']}")
        elif not _undefined(row):
            lines.append(f"{row['truth']}: {saving(row)}")
    if open_ones:
        lines.append(
            "How many of Random's labels these save is undecided (the table below says how many seeds would tell): "
            f"{'; '.join(open_ones)}."
        )
    if forecasts:
        lines.append(foreseen(forecasts))
    lines += overlaps(table) + summed(exact_differences(table), "dimension", "exact gradients", TITLES["reward"])
    lines += healthy(study, table)
    return lines or ["No comparison can be made yet."]


def summed(rows: Sequence[Mapping[Hashable, Any]], kind: str, baseline: str, what: str) -> list[str]:
    """Say who did better or worse than a baseline after the last round, each alone; of all others in one sentence."""
    rest = _undecided(rows)
    lines = [f"{what}: {compared(dict(row), baseline)}" for row in rows if row not in rest]
    if not rest:
        return lines
    names = [str(row["strategy"]) for row in rest]
    who = f"no {kind} differs" if len(names) == len(rows) > 1 else f"{named(names)} {_do(names)} not differ"
    whom = baseline.capitalize() if baseline == BASELINE else baseline
    return [
        *lines,
        f"{who} significantly from {whom} in {what} after the last round, which is undecided (table below); "
        f"{_nearest(rest)}",
    ]


def at_kl(study: Study, table: pd.DataFrame) -> list[str]:
    """Say what a run's strategies have over Random in reward at equal KL."""
    if not {"reward", "kl_per_token"} <= set(study.measures) or table.empty:
        return []
    equal = at_equal_kl(table, BASELINE)
    if equal.empty:
        return []
    said = frontier(equal, BASELINE, reasons=True)
    return [f"{table['part'].iloc[0]}: {said[0].lower()}{said[1:]}"]


def _undecided(rows: Sequence[Mapping[Hashable, Any]]) -> list[Mapping[Hashable, Any]]:
    """Return the differences whose intervals hold 0."""
    return [row for row in rows if row["verdict"] == "undecided" and not math.isnan(row["low"])]


def _nearest(rows: Sequence[Mapping[Hashable, Any]]) -> str:
    """Say which undecided difference is largest beside its interval, and how many seeds would decide it."""
    near = max(rows, key=lambda row: abs(row["difference"]) / (row["high"] - row["low"] or 1.0))
    who = f"the nearest to a verdict, {near['strategy']}," if len(rows) > 1 else "the difference,"
    return (
        f"{who} {_size(near)} over {near['seeds']} paired seeds, would take {_needed(near)} seeds to decide if it has "
        "this size."
    )


def _do(names: Sequence[str]) -> str:
    return "do" if len(names) > 1 else "does"


def _needed(row: Mapping[Hashable, Any]) -> str:
    """Return how many seeds would decide a difference of the size seen, as its reason has it; a dash if none would."""
    count, found, _ = str(row["reason"]).partition(" replicates")
    return count if found else "–"


def over_seeds(table: pd.DataFrame, measure: str) -> Estimate:
    """Estimate a measure's mean over a table's rows, Student's t; a share's interval stays between 0 and 1."""
    found = mean(table[measure])
    return found.within(0.0, 1.0) if measure in SHARES else found


def levels(study: Study, table: pd.DataFrame) -> list[str]:
    """Say from where to where a run's strategies brought what the study measures first."""
    if table.empty or table["strategy"].nunique() < 2:
        return []
    measure, last = study.measures[0], table[table["round"] == table["round"].max()]
    ends = {strategy: over_seeds(own, measure) for strategy, own in last.groupby("strategy", sort=False)}
    told = ", ".join(
        f"{with_span(found.value, found.low, found.high, sign=False)} ({strategy})" for strategy, found in ends.items()
    )
    first = table[table["round"] == 0][measure].mean()
    began = "" if math.isnan(first) else f"was {number(first, sign=False)} at first and "
    return [
        f"{table['part'].iloc[0]}: {TITLES[measure]} {began}is, after {table['labels'].max()} labels, {told}; "
        f"{table['seed'].nunique()} seeds."
    ]


def _gained(study: Study, table: pd.DataFrame) -> Estimate | None:
    """Return what Random itself gained in a run, where strategies are compared with it by the reward."""
    own = table[table["strategy"] == BASELINE]
    if own.empty or study.measures[0] != "reward" or table["strategy"].nunique() < 2:
        return None
    curve = own.pivot(index="seed", columns="round", values="reward")
    return mean((curve[curve.columns.max()] - curve[0]).to_numpy())


def undefined(study: Study, table: pd.DataFrame) -> str:
    """Return why a run has no share of Random's labels to be saved, if so: Random is not known to have learned."""
    gained = _gained(study, table)
    if gained is None or gained.low > 0 or math.isnan(gained.low):
        return ""
    return "Random got worse" if gained.high < 0 else NOT_KNOWN


def unlearned(study: Study, table: pd.DataFrame) -> list[str]:
    """Say so where Random itself is not known to have learned."""
    gained, why = _gained(study, table), undefined(study, table)
    if gained is None or not why:
        return []
    return [
        f"{table['part'].iloc[0]}: {why} ({with_span(gained.value, gained.low, gained.high)} of held-out reward, "
        f"{gained.n} seeds), so a share of its labels saved is not defined there, and rewards are to be compared."
    ]


def _undefined(row: Mapping[Hashable, Any]) -> str:
    """Return why a row of ``saved_of`` has no share."""
    _, found, why = str(row["reason"]).partition(f"{BASELINE}: ")
    return why if found else ""


def differences(study: Study, parts: Sequence[Part], table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return every strategy's paired differences from Random, and from the one that the study names besides.

    Run by run, of the study's outcomes.
    """
    found: list[dict[Hashable, Any]] = []
    for part in parts:
        own = table[table["part"] == part.name]
        if own.empty or BASELINE not in part.strategies or len(part.strategies) < 2:
            continue
        for baseline, rivals in ((BASELINE, own), (study.besides, own[own["strategy"] != BASELINE])):
            for measure in ("reward", "judge") if "reward" in study.measures else study.measures:
                rows = against(rivals, baseline, measure).to_dict("records")
                found += [row | {"part": part.name, "measure": measure} for row in rows]
    return found


def _differences(rows: Sequence[Mapping[Hashable, Any]]) -> list[str]:
    lines = [
        "| run | strategy | against | measure | after the last round | verdict | seeds to decide "
        "| mean over all rounds | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[Any, ...], dict[Any, Mapping[Hashable, Any]]] = {}
    for row in rows:
        key = row["part"], row["strategy"], row["baseline"], TITLES[row["measure"]]
        cells.setdefault(key, {})[row["outcome"]] = row
    for key, of in cells.items():
        final, area = (f"{_size(of[name])} | {of[name]['verdict']}" for name in ("final", "area"))
        lines.append(f"| {' | '.join(key)} | {final} | {_needed(of['final'])} | {area} |")
    said = (
        "Differences are paired by seed; intervals are 95 %, jointly over the rows of a run, a measure and a baseline. "
        "Seeds to decide: with so many a difference of the size seen after the last round would most likely be told "
        "from 0."
    )
    if any(row["measure"] == "reward" for row in rows):
        said += (
            " At equal KL, both rewards are read where a seed's curve, straight between rounds, first comes to the "
            "smaller of the two last KLs; these intervals are 95 % jointly over a run's strategies."
        )
    return [*lines, "", said]


def _size(row: Mapping[Hashable, Any]) -> str:
    """Return a difference with its interval."""
    return with_span(row["difference"], row["low"], row["high"])


def foreseen(forecasts: Sequence[Mapping[Hashable, Any]]) -> str:
    """Say what the headroom meter foretold, over its seeds."""
    found = mean([one["labels_saved"] for one in forecasts])
    seeds = f"{len(forecasts)} seed{'s' if len(forecasts) > 1 else ''}"
    interval = "" if math.isnan(found.low) else f" [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    return (
        f"Predicted before any label, by variance alone ({seeds}, {forecasts[0]['duels']} duels in the pool, "
        f"{forecasts[0]['targets']} held-out ones): the best choice can save {100 * found.value:.0f} %{interval} of "
        f"{forecasts[0]['budget']} labels. "
    ).strip()


SKETCHED = ["part", "seed", "picks", "error", "rank"]


def sketched(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the first round of runs that share their pool with exact gradients': a row per run and seed.

    ``picks``: the share of the exact gradients' picks that are picked; ``error``: the median of a width's relative
    error; ``rank``: Spearman's correlation of the widths.
    """
    first = table[table["round"] == 1]
    exact = first[first["part"] == EXACT].set_index("seed")
    rows = []
    for row in first[first["seed"].isin(exact.index) & (first["part"] != EXACT)].to_dict("records"):
        of = exact.loc[row["seed"]]
        kept, found = (set(str(one["picks"]).split()) for one in (of, row))
        true, width = (np.array(str(one["widths"]).split(), dtype=float) for one in (of, row))
        error, rank = np.median(np.abs(width / true - 1)), scipy.stats.spearmanr(true, width).statistic
        rows.append(
            {"part": row["part"], "seed": row["seed"], "picks": len(kept & found) / len(kept)}
            | {"error": float(error), "rank": float(rank)}
        )
    return pd.DataFrame(rows, columns=SKETCHED)


def overlaps(table: pd.DataFrame) -> list[str]:
    """Compare the first round of runs that share their pool with that of exact gradients."""
    lines = []
    for part, own in sketched(table).groupby("part", sort=False):
        error, rank = mean(own["error"]), mean(own["rank"])
        lines.append(
            f"dimension {part}: {_percent(mean(own['picks']))} of the exact gradients' first picks; a width is off by "
            f"{_percent(error, 1)} (median over a pool's duels), rank correlation {rank.value:.2f}; {len(own)} seeds."
        )
    return lines


def exact_differences(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return the paired differences of projected gradients' runs from exact gradients', in reward at the end."""
    if EXACT not in set(table["part"]):
        return []
    seeds = set.intersection(*(set(own["seed"]) for _, own in table.groupby("part")))
    last = table[(table["round"] == table["round"].max()) & table["seed"].isin(seeds)]
    if not seeds or last["part"].nunique() < 2:
        return []
    rows = last.assign(truth="final").rename(columns={"part": "contender", "seed": "replicate"})
    found = compare(rows, "reward", EXACT, lower_is_better=False)
    names = {"truth": "outcome", "contender": "strategy", "replicates": "seeds"}
    return found.rename(columns=names).to_dict("records")


def _dimensions(rows: Sequence[Mapping[Hashable, Any]]) -> list[str]:
    return [
        "| dimension | held-out reward after the last round | verdict | seeds to decide |",
        "|---|---|---|---|",
        *(f"| {row['strategy']} | {_size(row)} | {row['verdict']} | {_needed(row)} |" for row in rows),
        "",
        "Differences from exact gradients, paired by seed; intervals are 95 %, jointly over the rows.",
    ]


def _percent(share: Estimate, digits: int = 0) -> str:
    """Return a share in per cent with its interval, which is cut at what a share can be."""
    share = share.within(0.0, 1.0)
    low, value, high = (f"{100 * x:.{digits}f}" for x in (share.low, share.value, share.high))
    return f"{value} %" if math.isnan(share.low) else f"{value} % [{low}, {high}]"


def healthy(study: Study, table: pd.DataFrame) -> list[str]:
    """Say whether the text stayed language, by the means over seeds and seed by seed; of a regime, which settings pass.

    Nothing of a table without fluency.
    """
    if "fluency" not in table:
        return []
    ends = by_seed(table, ["part", "strategy"]).groupby(["part", "strategy"], sort=False)
    single: dict[str, list[str]] = {}
    changes: dict[str, dict[str, float]] = {}
    several = [column for column in ("part", "strategy") if table[column].nunique() > 1] or ["strategy"]
    for (part, strategy), own in table.groupby(["part", "strategy"], sort=False):
        first, last = (own[own["round"] == number].mean(numeric_only=True) for number in (0, own["round"].max()))
        name = ", ".join(str({"part": part, "strategy": strategy}[column]) for column in several)
        changes[name] = {m: float(last[m] - first[m]) for m in ("fluency", "reward", "judge")}
        changes[name] |= {"kl": float(last["kl_per_token"]), "seeds": own["seed"].nunique()}
        single[name] = strays(name, ends.get_group((part, strategy)))
    broken = [name for name, row in changes.items() if not (row["fluency"] >= -FLUENCY and row["kl"] <= FAR)]
    well = {name: row for name, row in changes.items() if name not in broken and not single[name]}
    lines = [_language(broken, [line for found in single.values() for line in found])]
    if well and len(changes) > 1 and study.settings:
        name = max(well, key=lambda one: well[one]["reward"])
        best = well[name]
        lines.insert(
            0,
            f"Of the {len(well)} of {len(changes)} settings within the limits in every seed, {name} raised the reward "
            f"most: by {number(best['reward'])}, the judge by {number(best['judge'])}, at "
            f"{number(best['kl'], sign=False)} nats a token of KL; means over {best['seeds']:.0f} seeds, whose "
            "differences were not tested.",
        )
    return lines


def _language(broken: Sequence[str], single: Sequence[str]) -> str:
    """Say where the text did not stay language: by the means over seeds, and in which seeds."""
    limits = f"{FLUENCY} nats a token of fluency lost, {FAR} of KL"
    where = "in all runs, by the means over seeds" if single else "in all runs and seeds"
    said = f"The text stayed language {where} (limits: {limits})."
    if broken:
        names = "; ".join(broken)
        said = f"Beyond the limits ({limits}) by the means over seeds, so that reward there is no gain: {names}."
    return f"{said} Seed by seed: {'; '.join(single)}." if single else said


def _savings(saved: pd.DataFrame) -> list[str]:
    lines = ["| run | strategy | share of Random's labels saved | verdict | |", "|---|---|---|---|---|"]
    for row in saved.to_dict("records"):
        reason = str(row["reason"]).replace("replicate", "seed")
        told = f"{share_saved(row)} | {row['verdict']} | {reason}"
        if why := _undefined(row):
            told = f"not defined: {why} | – | "
        lines.append(f"| {row['truth']} | {row['contender']} | {told} |")
    return [
        *lines,
        "",
        "A strategy saves the share s if its mean reward with (1 − s) of the labels is Random's with all of them; "
        "below 0, Random would save that share. Intervals: all shares that a paired t test does not reject, jointly "
        "95 % over the rows; *does not save*: below 10 %.",
    ]


def _final(study: Study, table: pd.DataFrame) -> list[str]:
    """Return a table of the last round, means over seeds with intervals; win rates with what to compare them with."""
    nulls = NULLS if "wins" in study.measures else {}
    titles = [*(TITLES[measure] for measure in study.measures), *nulls.values()]
    lines = [f"| run | strategy | seeds | {' | '.join(titles)} |", f"|---|---|---|{'---|' * len(titles)}"]
    for (part, strategy), own in _with(table, nulls).groupby(["part", "strategy"], sort=False):
        last = own[own["round"] == own["round"].max()]
        found = [over_seeds(last, measure) for measure in study.measures]
        found += [over_seeds(own.dropna(subset=name), name) for name in nulls]
        shown = [with_span(one.value, one.low, one.high, sign=False) for one in found]
        cells = " | ".join(cell.replace("– –", "–") for cell in shown)
        lines.append(f"| {part} | {strategy} | {len(last)} | {cells} |")
    if nulls:
        lines += [
            "",
            "*Longer wins*: how often the longer of the initial and the trained model's responses has more reward; "
            "near 0.5, length says nothing. *Null*: the win rate of the initial model against itself, between two "
            f"seeds' responses, which is to be 0.5.{_lacking(table, nulls)}",
        ]
    return lines


def _well(table: pd.DataFrame) -> list[str]:
    """Return a table of how well models are after the last round, and were at first, means over seeds."""
    lines = [f"| run | strategy | {' | '.join(WELL.values())} |", f"|---|---|{'---|' * len(WELL)}"]
    rows = _with(table, WELL)
    for (part, strategy), own in rows[rows[list(WELL)].notna().any(axis=1)].groupby(["part", "strategy"], sort=False):
        ends = [own[own["round"] == place][list(WELL)].mean() for place in (0, own["round"].max())]
        first, last = ([number(float(end[name]), sign=False) for name in WELL] for end in ends)
        cells = [end if begun == "–" else f"{begun} → {end}" for begun, end in zip(first, last, strict=True)]
        lines.append(f"| {part} | {strategy} | {' | '.join(cells)} |")
    said = [
        "",
        "Bits per byte: of the held-out prompts' own texts. Log-ratios: of preferred and other responses' probability "
        "under the trained and the initial model, nats, over the last fit; *chosen that fell*: the share of preferred "
        "responses that became less likely.",
    ]
    lacking = _lacking(table, WELL).strip()
    return [*(lines + said if len(lines) > 2 else []), *([""] if lacking and len(lines) > 2 else []), lacking]


def _with(table: pd.DataFrame, columns: Collection[str]) -> pd.DataFrame:
    """Return a table that has these columns, empty where it was written before there were any."""
    return table.reindex(columns=[*table.columns, *(name for name in columns if name not in table)])


def _lacking(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Say which runs' rows are older than these columns."""
    empty = _with(table, columns)[list(columns)].isna().all(axis=1).groupby(table["part"], sort=False).all()
    parts = [str(part) for part, none in empty.items() if none]
    if not parts:
        return ""
    return f" Not in the table, which is older than these columns: {', '.join(columns.values())} of {'; '.join(parts)}."


def _made(name: str, parts: Sequence[Part], found: Mapping[str, Found], told: Told) -> list[str]:
    lines = [f"`python -m llm_loop.studies {name} --preset {told.preset}` goes on where it stopped. The runs:", ""]
    options = {part.name: f"(`{' '.join(part.words)}`)" for part in parts}
    for part in parts:
        one = found[part.name]
        if one.seeds:
            rounds, labels = one.table["round"].max(), one.table["labels"].max()
            played = f"{rounds} round{'s' if rounds > 1 else ''} of {labels // rounds} labels"
            about = f"{played}, {one.of_run('model')}, commit {one.of_run('commit')}"
            lines.append(f"- {part.name}: {one.seeds} finished paired seeds, {about} {options[part.name]}")
    machines = sorted({one.of_run("machine") for one in found.values() if one.of_run("machine")})
    lines += ["", f"Computed on: {'; '.join(machines) or 'no record'}."]
    waiting = [part.name for part in parts if not found[part.name].seeds]
    if waiting:
        lines += ["", "## Not yet run", "", *(f"- {part} {options[part]}" for part in waiting)]
    return lines


# --- Figure 2 -----------------------------------------------------------------------------------------------------


CELLS = 2 * 3
"""outcomes of a seed: two models, each taught by three preference sets"""


def gains_of(evaluations: pd.DataFrame, picks: pd.DataFrame) -> pd.DataFrame:
    """Return how much each model gained by each preference set, seed by seed, and what the set is made of.

    Gains are differences of means over held-out prompts; ``films`` is the share of duels about films.
    A seed of which a set is missing is left out.
    """
    rows = per_token(evaluations)
    sets = ["chosen_by", "seed"]
    means = rows.groupby(["model", *sets, "stage"], sort=False)[["reward", "judge", "kl_per_token", "fluency"]].mean()
    wide = means.unstack("stage")
    out = pd.DataFrame(
        {
            "before": wide["reward", "before"],
            "after": wide["reward", "after"],
            "gain": wide["reward", "after"] - wide["reward", "before"],
            "judge_gain": wide["judge", "after"] - wide["judge", "before"],
            "fluency_change": wide["fluency", "after"] - wide["fluency", "before"],
            "kl_per_token": wide["kl_per_token", "after"],
        }
    ).reset_index()
    names = picks["prompt_index"].astype(str) + ":" + picks["first"].astype(str) + "-" + picks["second"].astype(str)
    films = picks["prompt"].str.contains("film critic|good film", regex=True)
    asked = picks.assign(picks=names, films=films).groupby(sets, sort=False)
    out = out.join(asked.agg({"films": "mean", "picks": " ".join}), on=sets)
    whole = out.groupby("seed")["gain"].transform("size") == CELLS
    return out[whole].reset_index(drop=True)


def contrasts(gains: pd.DataFrame) -> pd.DataFrame:
    """Compare, for either model, the sets pairwise, paired by seed; intervals hold jointly over all six."""
    rows = gains.rename(columns={"model": "truth", "chosen_by": "contender", "seed": "replicate"})
    first, second = dict.fromkeys(rows["truth"])
    return compare(rows, "gain", "random", lower_is_better=False, more=[(first, second)])


def fits(gains: pd.DataFrame) -> str:
    """Say whether a set suits the model that chose it: half of (own − other's, for one model, and for the other)."""
    first, second = dict.fromkeys(gains["model"])
    wide = gains.pivot(index="seed", columns=["model", "chosen_by"], values="gain")
    own = wide[first, first] - wide[first, second] + wide[second, second] - wide[second, first]
    found = mean((own / 2).to_numpy())
    word, reason = decide(found, lower_is_better=False)
    reason = reason.replace("replicates", "seeds").replace("one replicate", "one seed")
    said = {
        "better": "On average over both, a model learned more from what it chose itself than from what the other chose",
        "worse": "On average over both, a model learned less from what it chose itself than from what the other chose",
    }.get(word, "Whether a preference set suits the model that chose it is undecided")
    size = f"{with_span(found.value, found.low, found.high)} of reward a model, {found.n} paired seeds"
    return f"{said}: {size}{f'; {reason}' if reason else ''}."


def choices(gains: pd.DataFrame) -> list[str]:
    """Say how alike the sets are, and what the models chose to ask about."""
    sets = gains.drop_duplicates(["chosen_by", "seed"])
    wide = sets.pivot(index="seed", columns="chosen_by", values="picks").map(lambda names: set(names.split()))
    first, second = (name for name in dict.fromkeys(sets["chosen_by"]) if name != "random")
    lines = []
    for a, b in ((first, second), (first, "random"), (second, "random")):
        shared = mean([len(x & y) / len(x) for x, y in zip(wide[a], wide[b], strict=True)])
        lines.append(f"{a} and {b} {_percent(shared)}")
    said = f"Duels that two sets share: {', '.join(lines)}."
    if sets["films"].any():
        shares = sets.groupby("chosen_by", sort=False)["films"].mean()
        said += f" About films were {', '.join(f'{share:.0%} of those by {name}' for name, share in shares.items())}."
    return [said]


def matrix_page(
    title: str, gains: pd.DataFrame, comparison: pd.DataFrame, about: Sequence[str], stem: str
) -> list[str]:
    """Return the page of Figure 2."""
    lines = [
        f"# {title}",
        "",
        "One model is tuned twice, on disjoint texts. Does either learn most from preferences that it chose itself?",
        "",
        "## What was found",
        "",
        f"- {fits(gains)}",
        *(f"- {line}" for line in _contrasts(comparison)),
        *(f"- {line}" for line in choices(gains)),
        f"- {matrix_healthy(gains)}",
        "",
        f"![{title}]({stem}.png)",
        "",
        "Rings are seeds, diamonds their means with 95 % intervals (Student's t).",
        "",
        "## Held-out reward gained",
        "",
        "| model tuned on | preferences chosen by | seeds | reward before | gained | judge gained | KL, nats a token |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, chooser), own in gains.groupby(["model", "chosen_by"], sort=False):
        cells = [mean(own[name]) for name in ("gain", "judge_gain", "kl_per_token")]
        shown = [with_span(one.value, one.low, one.high, sign=i < 2) for i, one in enumerate(cells)]
        whom = "itself" if chooser == model else chooser
        lines.append(
            f"| {model} | {whom} | {len(own)} | {number(own['before'].mean(), sign=False)} | {' | '.join(shown)} |"
        )
    lines += [
        "",
        "## Preference sets compared",
        "",
        "| model tuned on | chosen by | against | reward gained | verdict | seeds to decide |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['truth']} | {_chooser(row['contender'])} | {_chooser(row['baseline'])} | {_size(row)} | "
        f"{row['verdict']} | {_needed(row)} |"
        for row in comparison.to_dict("records")
    ]
    lines += ["", "Differences are paired by seed; intervals are 95 %, jointly over the rows."]
    return [*lines, "", "## How it was made", "", *about]


def _chooser(name: str) -> str:
    return "chance" if name == BASELINE else name


def _choice(name: str) -> str:
    return "chance" if name == BASELINE else f"the choice of {name}"


def _contrasts(comparison: pd.DataFrame) -> list[str]:
    """Say which preference set taught a model more than another; of all others one sentence a model."""
    lines = []
    for model, rows in comparison.groupby("truth", sort=False):
        told = rows.rename(columns={"replicates": "seeds"}).assign(
            strategy=[
                f"{_choice(ours)} against {_choice(theirs)}"
                for ours, theirs in zip(rows["contender"], rows["baseline"], strict=True)
            ]
        )
        every = told.to_dict("records")
        rest = _undecided(every)
        lines += [
            f"The model tuned on {model}: {row['strategy']}: {row['verdict']} ({_size(row)}, {row['seeds']} paired "
            "seeds)."
            for row in every
            if row not in rest
        ]
        if rest:
            which = "all" if len(rest) == len(every) else "all other"
            lines.append(
                f"The model tuned on {model}: {which} differences between preference sets are undecided (table below); "
                f"{_nearest(rest)}"
            )
    return lines


def matrix_healthy(gains: pd.DataFrame) -> str:
    """Say whether the text of Figure 2 stayed language, by the means over seeds and seed by seed."""
    broken, single = [], []
    for (model, chooser), own in gains.groupby(["model", "chosen_by"], sort=False):
        choice = {model: "its own choice", BASELINE: "chance"}.get(chooser, f"the choice of {chooser}")
        name = f"the model tuned on {model}, by {choice}"
        worst = own[["fluency_change", "kl_per_token"]].mean()
        if not (worst["fluency_change"] >= -FLUENCY and worst["kl_per_token"] <= FAR):
            broken.append(name)
        single += strays(name, own)
    return _language(broken, single)
