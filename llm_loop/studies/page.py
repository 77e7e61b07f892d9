"""Owns a study's page: the verdict in words, the figure, the numbers, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from bandits.runs.stats import SAVINGS, Estimate, compare, decide, mean, savings
from llm_loop.report.evaluate import against, at_equal_kl, by_seed, per_token
from llm_loop.report.findings import FAR, FLUENCY, compared, frontier, number, saving, share_saved, span, strays
from llm_loop.studies.figures import TITLES, in_panels
from llm_loop.studies.plans import EXACT, Part, Study
from llm_loop.studies.read import Found

BASELINE = "random"


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
    return savings(rows, "reward", BASELINE, lower_is_better=False)


def written(
    name: str, study: Study, parts: Sequence[Part], found: Mapping[str, Found], saved: pd.DataFrame, told: Told
) -> list[str]:
    """Return the page, line by line."""
    table = pd.concat([one.table for one in found.values() if len(one.table)], ignore_index=True)
    lines = [f"# {study.title}", "", study.question, "", "## What was found", ""]
    lines += [f"- {line}" for line in verdicts(study, parts, table, saved, told.forecasts)]
    lines += ["", f"![{study.title}]({told.stem}.png)", ""]
    lines += [_caption(study, table)]
    if len(saved):
        lines += ["", "## Labels saved", "", *_savings(saved)]
    rows = differences(study, parts, table)
    if rows:
        lines += ["", "## Against Random", "", *_differences(rows)]
    lines += ["", "## After the last round", "", *_final(study, table), "", "## How it was made", ""]
    return [*lines, *_made(name, parts, found, told)]


def _caption(study: Study, table: pd.DataFrame) -> str:
    """Return what a figure's marks are, and which measures the tables alone have."""
    if study.settings:
        return "Changes from the first to the last round: small marks are seeds, large ones means; dotted: the limits."
    said = "Lines are means over seeds, bands their 95 % intervals (Student's t); round 0 is the initial model."
    rest = [TITLES[measure] for measure in study.measures if measure not in in_panels(study, table)]
    return f"{said} In the tables alone: {'; '.join(rest)}." if rest else said


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
    several = len(parts) > 1
    runs = [table[table["part"] == part.name] for part in parts]
    lines = [line for own in runs for line in levels(study, own)]
    lines += [line for own in runs for line in unlearned(study, own)]
    lines += besides(study, table)
    for row in differences(study, parts, table):
        where = ", ".join(([row["part"]] if several else []) + [TITLES[row["measure"]]])
        if row["outcome"] == "final" and row["measure"] == study.measures[0]:
            lines.append(f"{where}: {compared(row, BASELINE)}")
    lines += [line for own in runs for line in at_kl(study, own)]
    open_ones = []
    for row in saved.to_dict("records"):
        where = f"{row['truth']}: " if several else ""
        if row["verdict"] == "undecided":
            open_ones.append(f"{where}{row['contender']}")
        else:
            lines.append(where + saving(row))
    if open_ones:
        lines.append(
            "How many of Random's labels these save is undecided (the table below says how many seeds would tell): "
            f"{'; '.join(open_ones)}."
        )
    if forecasts:
        lines.append(foreseen(forecasts))
    lines += overlaps(table) + healthy(study, table)
    return lines or ["No comparison can be made yet."]


def at_kl(study: Study, table: pd.DataFrame) -> list[str]:
    """Say what a run's strategies have over Random in reward at equal KL."""
    if not {"reward", "kl_per_token"} <= set(study.measures) or table.empty:
        return []
    equal = at_equal_kl(table, BASELINE)
    if equal.empty:
        return []
    said = frontier(equal, BASELINE, reasons=True)
    return [f"{table['part'].iloc[0]}: {said[0].lower()}{said[1:]}"]


def besides(study: Study, table: pd.DataFrame) -> list[str]:
    """Say how strategies compare with the one that the study names besides Random."""
    measure, rivals = study.measures[0], table[table["strategy"] != BASELINE].assign(prompt_index=0)
    rows = against(rivals, study.besides, measure)
    return [
        f"{TITLES[measure]}: {compared(row, study.besides)}"
        for row in rows[rows["outcome"] == "final"].to_dict("records")
    ]


def levels(study: Study, table: pd.DataFrame) -> list[str]:
    """Say from where to where a run's strategies brought what the study measures first."""
    if table.empty or table["strategy"].nunique() < 2:
        return []
    measure, last = study.measures[0], table[table["round"] == table["round"].max()]
    ends = {strategy: mean(own[measure]) for strategy, own in last.groupby("strategy", sort=False)}
    told = ", ".join(
        f"{number(found.value, sign=False)} {span(found.low, found.high, sign=False)} ({strategy})"
        for strategy, found in ends.items()
    )
    first = table[table["round"] == 0][measure].mean()
    began = "" if math.isnan(first) else f"was {number(first, sign=False)} at first and "
    return [
        f"{table['part'].iloc[0]}: {TITLES[measure]} {began}is, after {table['labels'].max()} labels, {told}; "
        f"{table['seed'].nunique()} seeds."
    ]


def unlearned(study: Study, table: pd.DataFrame) -> list[str]:
    """Say so where it cannot be told that Random itself learned: a share of its labels then measures little."""
    own = table[table["strategy"] == BASELINE]
    if own.empty or study.measures[0] != "reward" or table["strategy"].nunique() < 2:
        return []
    curve = own.pivot(index="seed", columns="round", values="reward")
    gained = mean((curve[curve.columns.max()] - curve[0]).to_numpy())
    if gained.low > 0 or math.isnan(gained.low):
        return []
    word = "it got worse" if gained.high < 0 else "it cannot be told whether anything was learned"
    return [
        f"{own['part'].iloc[0]}: with Random itself {word} "
        f"({number(gained.value)} {span(gained.low, gained.high)} of held-out reward, {gained.n} seeds), so a share "
        "of its labels saved says little there, and rewards are to be compared."
    ]


def differences(study: Study, parts: Sequence[Part], table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Return every strategy's paired differences from Random, run by run, of the study's outcomes."""
    found: list[dict[Hashable, Any]] = []
    for part in parts:
        own = table[table["part"] == part.name].assign(prompt_index=0)
        if own.empty or BASELINE not in part.strategies or len(part.strategies) < 2:
            continue
        for measure in ("reward", "judge") if "reward" in study.measures else study.measures:
            rows = against(own, BASELINE, measure).to_dict("records")
            found += [row | {"part": part.name, "measure": measure} for row in rows]
    return found


def _differences(rows: Sequence[Mapping[Hashable, Any]]) -> list[str]:
    lines = [
        "| run | strategy | measure | after the last round | verdict | mean over all rounds | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[Any, ...], dict[Any, str]] = {}
    for row in rows:
        said = f"{number(row['difference'])} {span(row['low'], row['high'])} | {row['verdict']}"
        key = row["part"], row["strategy"], TITLES[row["measure"]]
        cells.setdefault(key, {})[row["outcome"]] = said
    lines += [f"| {' | '.join(key)} | {said['final']} | {said['area']} |" for key, said in cells.items()]
    return [
        *lines,
        "",
        "Differences are paired by seed; intervals are 95 %, jointly over the rows of a run and measure.",
    ]


def foreseen(forecasts: Sequence[Mapping[Hashable, Any]]) -> str:
    """Say what the headroom meter foretold, over its seeds."""
    found = mean([one["labels_saved"] for one in forecasts])
    seeds = f"{len(forecasts)} seed{'s' if len(forecasts) > 1 else ''}"
    interval = "" if math.isnan(found.low) else f" [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    return (
        f"Foretold before any label, by variance alone ({seeds}, {forecasts[0]['duels']} duels in the pool, "
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
    """Compare runs that share their pool with the one of exact gradients: first picks, and what is learned."""
    lines = []
    for part, own in sketched(table).groupby("part", sort=False):
        error, rank = mean(own["error"]), mean(own["rank"])
        lines.append(
            f"dimension {part}: {_percent(mean(own['picks']))} of the exact gradients' first picks; a width is off by "
            f"{_percent(error, 1)} (median over a pool's duels), rank correlation {rank.value:.2f}; {len(own)} seeds."
        )
    if EXACT not in set(table["part"]):
        return lines
    seeds = set.intersection(*(set(own["seed"]) for _, own in table.groupby("part")))
    last = table[(table["round"] == table["round"].max()) & table["seed"].isin(seeds)]
    if seeds and last["part"].nunique() > 1:
        rows = last.assign(truth="final").rename(columns={"part": "contender", "seed": "replicate"})
        for row in compare(rows, "reward", EXACT, lower_is_better=False).to_dict("records"):
            reason = f"; {row['reason']}".replace("replicates", "seeds") if row["reason"] else ""
            said = f"{number(row['difference'])} {span(row['low'], row['high'])}, {row['replicates']} paired seeds"
            lines.append(
                f"dimension {row['contender']} against exact gradients, reward after the last round: {row['verdict']} "
                f"({said}{reason})."
            )
    return lines


def _percent(share: Estimate, digits: int = 0) -> str:
    """Return a share in per cent with its interval, which is cut at what a share can be."""
    low, value, high = (f"{100 * x:.{digits}f}" for x in (max(share.low, 0), share.value, min(share.high, 1)))
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
        lines.append(f"| {row['truth']} | {row['contender']} | {share_saved(row)} | {row['verdict']} | {reason} |")
    return [
        *lines,
        "",
        "A strategy saves the share s if its mean reward with (1 − s) of the labels is Random's with all of them; "
        "below 0, Random would save that share. Intervals: all shares that a paired t test does not reject, jointly "
        "95 % over the rows; *does not save*: below 10 %.",
    ]


def _final(study: Study, table: pd.DataFrame) -> list[str]:
    """Return a table of the last round, means over seeds with intervals."""
    last = table[table["round"] == table.groupby("part")["round"].transform("max")]
    lines = [
        f"| run | strategy | seeds | {' | '.join(TITLES[measure] for measure in study.measures)} |",
        f"|---|---|---|{'---|' * len(study.measures)}",
    ]
    for (part, strategy), own in last.groupby(["part", "strategy"], sort=False):
        cells = []
        for measure in study.measures:
            found = mean(own[measure])
            cells.append(f"{number(found.value, sign=False)} {span(found.low, found.high, sign=False)}")
        lines.append(f"| {part} | {strategy} | {len(own)} | {' | '.join(cells)} |")
    return lines


def _made(name: str, parts: Sequence[Part], found: Mapping[str, Found], told: Told) -> list[str]:
    lines = [f"`python -m llm_loop.studies {name} --preset {told.preset}` goes on where it stopped. The runs:", ""]
    for part in parts:
        one = found[part.name]
        about = ""
        if one.seeds:
            rounds, labels = one.table["round"].max(), one.table["labels"].max()
            played = f"{rounds} round{'s' if rounds > 1 else ''} of {labels // rounds} labels"
            about = f", {played}, {one.of_run('model')}, commit {one.of_run('commit')}"
        options = " ".join(part.options)
        lines.append(f"- {part.name}: {one.seeds} finished paired seeds{about} (`{options}`)")
    machines = sorted({one.of_run("machine") for one in found.values() if one.of_run("machine")})
    lines += ["", f"Computed on: {'; '.join(machines) or 'no record'}."]
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
    size = f"{number(found.value)} {span(found.low, found.high)} of reward a model, {found.n} paired seeds"
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
        *(f"- {_contrast(row)}" for row in comparison.to_dict("records")),
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
        shown = [
            f"{number(one.value, sign=i < 2)} {span(one.low, one.high, sign=i < 2)}" for i, one in enumerate(cells)
        ]
        whom = "itself" if chooser == model else chooser
        lines.append(
            f"| {model} | {whom} | {len(own)} | {number(own['before'].mean(), sign=False)} | {' | '.join(shown)} |"
        )
    return [*lines, "", "## How it was made", "", *about]


def _contrast(row: Mapping[Hashable, Any]) -> str:
    against = "chance" if row["baseline"] == BASELINE else f"the choice of {row['baseline']}"
    reason = f"; {row['reason']}".replace("replicates", "seeds") if row["reason"] else ""
    return (
        f"The model tuned on {row['truth']}, by the choice of {row['contender']} against {against}: {row['verdict']} "
        f"({number(row['difference'])} {span(row['low'], row['high'])}, {row['replicates']} paired seeds{reason})."
    )


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
