"""Owns the page: turns result tables into verdicts, figures and one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bandits.runs.directory import RunDirectory
from bandits.runs.figures import picture
from bandits.runs.files import write_bytes, write_frame, write_json, write_text
from bandits.runs.page import Picture, render
from bandits.runs.stats import (
    CONVERGED,
    SAVINGS,
    at_least,
    compare,
    empirical_multiplier,
    halved,
    judge,
    looked,
    pool_truths,
    replicates_needed,
    savings,
    summarise,
    unconverged,
)
from bandits.selector import STRATEGIES
from bandits.sim import figures as plots
from bandits.sim.audit import VERSIONS, coverage
from bandits.sim.config import Cell, Simulation, pool_of, split

MEASURES = ["error", "accuracy", "greedy_value", "policy_value"]


CONTROL = "control: half of a median multiplier"


def bound_verdicts(bounds: pd.DataFrame, simulation: Simulation) -> pd.DataFrame:
    """Judge the bounds per truth and contender, each with what the judgement rests on.

    The last row of each is the same judgement of a multiplier that is too small: it must come out *refuted*.  Where
    replicates were added until decided, a judgement has the share of the error of the look at which its truth ended.
    """
    wanted = at_least(1 - simulation.delta)
    rows = []
    for (truth, contender), part in bounds.groupby(["truth", "contender"], sort=False):
        kappa, replicates = simulation.bounds_for(str(truth)).kappa, np.unique(part["replicate"])
        n, level = looked(simulation.looks, len(replicates))[-1]
        part = part[part["replicate"] <= replicates[n - 1]]
        estimates = {name: coverage(part, version, kappa, level) for name, version in VERSIONS.items()}
        estimates[CONTROL] = halved(part.groupby("replicate", sort=False)["needed_tangent"].max(), level)
        for claim, estimate in estimates.items():
            verdict = judge(estimate, wanted)
            rows.append(
                {
                    "truth": truth,
                    "contender": contender,
                    "claim": claim,
                    "verdict": verdict.word,
                    "reason": verdict.reason,
                    "covered": 0 if np.isnan(estimate.value) else round(estimate.value * estimate.n),
                    "replicates": estimate.n,
                    "low": estimate.low,
                    "high": estimate.high,
                }
            )
    return pd.DataFrame(rows)


def bound_numbers(bounds: pd.DataFrame, simulation: Simulation) -> pd.DataFrame:
    """Return, per truth and contender, how loose the bound is and whether width predicts error."""
    last = bounds[bounds["round"] == bounds["round"].max()]
    rows = []
    for (truth, contender), part in bounds.groupby(["truth", "contender"], sort=False):
        end = last[(last["truth"] == truth) & (last["contender"] == contender)]
        row = {"truth": truth, "contender": contender}
        for name in (
            "gamma",
            "exact",
            "tightness",
            "tightness_tangent",
            "rank_correlation",
            "information",
            "norm",
            "error",
            "statistical",
            "linearisation",
            "kappa_network",
        ):
            row[name] = float(end[name].median())
        for name in ("needed_network", "needed_tangent"):
            row[name] = empirical_multiplier(part.groupby("replicate")[name].max(), simulation.delta)
        row["gradient_norm"] = float(part["gradient_norm"].max())
        rows.append(row)
    return pd.DataFrame(rows)


def percent(row: Mapping[Hashable, Any]) -> str:
    """Return a row's ratio to the baseline, with its interval if it has one, as a change in per cent."""
    middle, low, high = (100 * (row[name] - 1) for name in ("effect", "low", "high"))
    interval = "" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"
    return "–" if math.isnan(middle) else f"{middle:+.1f} %{interval}".replace("-", "−")


def share(row: Mapping[Hashable, Any], name: str = "") -> str:
    """Return a share with its interval, in per cent, none beyond 100; of labels saved, a limit not seen is open."""
    columns = (name, f"{name}_low", f"{name}_high") if name else ("saved", "low", "high")
    value, least, most = (100 * float(row[column]) for column in columns)
    if math.isnan(value):
        return "–"
    if math.isnan(least):
        return f"{value:.0f} %".replace("-", "−")
    low = "−∞" if not name and least <= -100 else f"{least:.0f}"
    return f"{value:.0f} % [{low}, {min(most, 100.0):.0f}]".replace("-", "−")


def needed(row: Mapping[Hashable, Any], first: float) -> str:
    """Return with how many labels a row's strategy is as good as its baseline, with its interval."""

    def number(value: float) -> str:
        return f"> {row['budget']:.0f}" if math.isinf(value) else f"≤ {first:.0f}" if value <= first else f"{value:.0f}"

    if math.isnan(row["labels"]) or math.isnan(row["labels_low"]):
        return "–" if math.isnan(row["labels"]) else number(row["labels"])
    middle, low, high = (number(row[name]) for name in ("labels", "labels_low", "labels_high"))
    return middle if middle == low == high else f"{middle} [{low}, {high}]"


WHAT = {"error": "error", "accuracy": "ordering accuracy", "policy_value": "policy value"}


def saving_findings(table: pd.DataFrame) -> list[str]:
    """Say in sentences what each strategy saves of its baseline's labels."""
    lines = []
    for row in table.to_dict("records"):
        what, end = WHAT[row["measure"]], f"{row['budget']:.0f} labels"
        who = f"On “{row['truth']}”, {row['contender']}"
        why = f"; {row['reason']}" if row["reason"] else ""
        interval = f"{share(row)} of {end}, {row['replicates']} paired replicates"
        match row["verdict"]:
            case "saves":
                count = f"{row['labels']:.0f} labels give {row['baseline']}'s {what} at {end}"
                lines.append(f"{who} saves labels: {count}; saved {interval}{why}.")
            case "does not save":
                lines.append(f"{who} does not save labels ({what}): {interval}{why}.")
            case "undecided":
                lines.append(f"{who} against {row['baseline']} is undecided ({what}): saved {interval}{why}.")
            case _:
                lines.append(f"{who} is not judged ({what}){why}.")
    return lines


def pooled_findings(pooled: pd.DataFrame) -> list[str]:
    """Say what holds over all truths of the run together."""
    lines = []
    for row in pooled.to_dict("records"):
        whose = f"Over {row['truths']} truths together, {row['contender']}'s error (mean over rounds) is"
        if row["reason"]:
            lines.append(f"{whose} not judged against {row['baseline']}'s: {row['reason']}.")
        else:
            lines.append(
                f"{whose} {percent(row)} against {row['baseline']}'s (interquartile mean), and lower in "
                f"{share(row, 'improvement')} of the paired replicates."
            )
    return lines


def pool_named(pool: Hashable) -> str:
    """Say which pool."""
    return "this pool" if pool == "own" else f"the {pool} pool"


def foreseen(meter: pd.DataFrame) -> list[str]:
    """Say what choosing can save, before any label."""
    return [
        f"Predicted before any label: the best choice from {pool_named(row['pool'])} can save "
        f"{share(row, 'labels_saved')} of {row['budget']} labels by variance alone."
        for row in meter.to_dict("records")
    ]


def few_findings(verdicts: pd.DataFrame, level: float) -> list[str]:
    """Say what became of Proposition 1 where a few duels were asked again and again."""
    lines = []
    for truth, part in verdicts.groupby("truth", sort=False):
        row = part[part["claim"] == "exact bound, κ from the data"].iloc[0]
        whose = "flipped answers, the control," if "@" in str(truth) else "honest answers"
        lines.append(
            f"Three duels asked again and again, {whose} on “{truth}”: the exact bound of Proposition 1 is "
            f"{row['verdict']} ({row['covered']} of {row['replicates']} replicates covered, "
            f"[{row['low']:.3f}, {row['high']:.3f}], {level:g} claimed)."
        )
    return lines


def findings(comparison: pd.DataFrame, unit: str) -> list[str]:
    """Say in sentences which contenders did better or worse than the baseline, and which remain undecided."""
    lines = []
    says = {
        "better": "{} did better than {}",
        "worse": "{} did worse than {}",
        "equivalent": "{} and {} are equivalent",
        "undecided": "{} against {} is undecided",
        "not judged": "{} against {} is not judged",
    }
    for truth, part in comparison.groupby("truth", sort=False):
        for word, text in says.items():
            for row in part[part["verdict"] == word].to_dict("records"):
                reason = f"; {row['reason']}" if row["reason"] else ""
                lines.append(
                    f"On “{truth}”, {text.format(row['contender'], row['baseline'])}: {unit} {percent(row)}, "
                    f"{row['replicates']} paired replicates{reason}."
                )
    return lines


def _span(values: pd.Series, digits: int) -> str:
    """Return the range of some numbers in words; one number if they round to the same."""
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return low if low == high else f"{low} to {high}"


def within_reach(verdicts: pd.DataFrame, simulation: Simulation) -> tuple[bool, int, int]:
    """Return whether a coverage of ``1 - δ`` can be supported, how many replicates there are, and how many it takes."""
    most = int(verdicts["replicates"].max())
    needed = replicates_needed(1 - simulation.delta, looked(simulation.looks, most)[-1][1])
    return most >= needed, most, needed


def bound_findings(numbers: pd.DataFrame, verdicts: pd.DataFrame, simulation: Simulation) -> list[str]:
    """Say in sentences what became of the propositions."""
    able, most, needed = within_reach(verdicts, simulation)
    lines = []
    if not able:
        honest = verdicts[verdicts["claim"] != CONTROL]
        lines.append(
            f"With {most} replicates no coverage of {1 - simulation.delta:g} can be supported: "
            f"{needed}, all covered, are needed. Of {len(honest)} judgements "
            f"{(honest['verdict'] == 'refuted').sum()} came out refuted."
        )
    for truth, part in numbers.groupby("truth", sort=False):
        judged = verdicts[(verdicts["truth"] == truth) & (verdicts["claim"] == "exact bound, κ from the data")]
        counts = ", ".join(f"{word} ({count})" for word, count in judged["verdict"].value_counts().items())
        words = f"The exact bound for the linearised learner, with κ from the data, is {counts}. " if able else ""
        correlation = part["rank_correlation"]
        word = "hardly predicts" if correlation.abs().max() < 0.3 else "predicts in part"
        right = (
            f"the right side of Proposition 1 is {_span(part['tightness'], 0)} times the left (median duel, last "
            f"round); γ is {_span(part['gamma'], 0)} where"
        )
        if part["norm"].isna().any():
            right = "γ is open, since items or their gradients coincide and B is not available:"
        lines.append(
            f"On “{truth}” {right} {_span(part['needed_network'], 1)} would have covered "
            f"{1 - simulation.delta:.0%} of the replicates. {words}Width {word} error: rank correlation "
            f"{_span(correlation, 2)}."
        )
    failed = verdicts[verdicts["reason"].str.contains("κ did not hold")]
    if len(failed):
        kappas = ", ".join(
            f"{kappa:.3g}" for kappa in sorted({simulation.bounds_for(t).kappa for t in failed["truth"]})
        )
        lines.append(
            f"κ = σ'(Δmax) = {kappas} did not hold on the realised differences in {len(failed)} "
            f"of {len(verdicts)} judgements; those are not informative, whatever their coverage."
        )
    return lines


def rules(simulation: Simulation) -> list[dict[str, str]]:
    """Say of every contender what it asks and in which space it measures, in words."""
    told = []
    for contender in simulation.contenders:
        learner, name = split(contender)
        strategy = STRATEGIES[name]
        says = strategy.summary + (f" ({strategy.source})" if strategy.source else "")
        widths = strategy.space.described() if "width" in strategy.reads else ["no width"]
        learns = [] if learner == "neural" else [f"learner: {learner}"]
        told.append({"contender": contender, "says": says, "measures": "; ".join(learns + widths)})
    return told


def unfitted(rounds: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Say of every truth and contender what forbids comparing it; "" if nothing does."""
    return {
        (str(truth), str(contender)): unconverged(part["gradient_norm"])
        for (truth, contender), part in rounds.groupby(["truth", "contender"], sort=False)
    }


def comparable(simulation: Simulation, rounds: pd.DataFrame) -> bool:
    """Whether there are curves to compare."""
    several = rounds["round"].nunique() > 1 and rounds["contender"].nunique() > 1
    return simulation.experiment == "pool" and several


def savings_of(simulation: Simulation, rounds: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return what each contender saves of Random's labels, by a measure, with all looks so far accounted for."""
    targets = [float(target) for target in simulation.targets]
    lower, looks, margin = measure == "error", simulation.looks, simulation.margin
    return savings(rounds, measure, "random", lower, targets, margin, unfitted(rounds), looks=looks)


def headline(simulation: Simulation, rounds: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by which a run is decided: Random's final error."""
    if not comparable(simulation, rounds):
        return pd.DataFrame(columns=SAVINGS)
    found = savings_of(simulation, rounds, "error")
    return found[found["budget"] == rounds["labels"].max()]


def timing(simulation: Simulation, directory: RunDirectory, cells: Sequence[Cell]) -> str:
    """Return the page of seconds: per strategy and truth, a replicate's mean over the cells of which it is known."""
    spent: dict[tuple[str, str], list[float]] = {}
    seconds = directory.timing
    for cell in cells:
        if isinstance(known := seconds.get(cell.key), int | float) and not cell.setting:
            spent.setdefault((cell.truth, cell.contender), []).append(known / len(cell.block))
    mean = {pair: sum(values) / len(values) for pair, values in spent.items()}
    rows = []
    for name in simulation.contenders:
        both = [
            (mean[truth, name], mean[truth, "random"])
            for truth in simulation.truths
            if (truth, name) in mean and mean.get((truth, "random"))
        ]
        rows.append(
            {
                "contender": name,
                "seconds": [mean.get((truth, name)) for truth in simulation.truths],
                "ratio": sum(ours for ours, _ in both) / sum(theirs for _, theirs in both) if both else None,
            }
        )
    return render("bandits.sim", "timing.html.j2", rows=rows, truths=simulation.truths, manifest=directory.manifest)


def finish(
    simulation: Simulation,
    directory: RunDirectory,
    tables: dict[str, pd.DataFrame],
    few: pd.DataFrame,
    cells: Sequence[Cell],
) -> None:
    """Write tables, figures and, last of all, the page.  ``few``: bounds on duels asked again and again."""
    rounds, bounds, calibration, meter = (tables[name] for name in ("rounds", "bounds", "calibration", "headroom"))
    regret = simulation.experiment == "regret"
    if regret:
        rounds = rounds.assign(
            average=rounds["cumulative_average_regret"] / rounds["round"],
            weak=rounds["cumulative_weak_regret"] / rounds["round"],
        )
    measures = MEASURES + (["cumulative_average_regret", "cumulative_weak_regret"] if regret else [])
    fits = unfitted(rounds)
    variants = [("activedpo", name) for name in simulation.contenders if name.startswith("activedpo-")]
    more = variants if "activedpo" in simulation.contenders and not regret else []
    if regret:  # a cumulative quantity is compared at its end, not averaged over rounds
        last = rounds[rounds["round"] == rounds["round"].max()]
        comparison = compare(last, "cumulative_average_regret", "random", scale="ratio")
        unit = "cumulative average regret"
    else:
        comparison = compare(rounds, "error", "random", scale="ratio", unmet=fits, more=more, looks=simulation.looks)
        unit = "error of reward differences (mean over rounds)"
    saved = pd.DataFrame(columns=SAVINGS)
    if comparable(simulation, rounds):
        saved = pd.concat([savings_of(simulation, rounds, measure) for measure in WHAT], ignore_index=True)
    whole = saved[(saved["measure"] == "error") & (saved["budget"] == rounds["labels"].max())]
    over = pd.DataFrame()
    if len(whole) and rounds["truth"].nunique() > 1:
        over = pool_truths(rounds, "error", "random", unmet=fits, looks=simulation.looks)
    pictures: list[Picture] = []

    def show(name: str, caption: str, figure: Figure) -> None:
        pictures.append(picture(name, caption, figure))

    if regret:
        show(
            "regret",
            "Average regret per round, f* − (f1 + f2)/2. Falling lines mean sub-linear cumulative regret.",
            plots.learning_curves(rounds, "average", "average regret per round", log=True),
        )
        show(
            "weak-regret",
            "Weak regret per round, f* − max(f1, f2).",
            plots.learning_curves(rounds, "weak", "weak regret per round"),
        )
    if len(whole):
        known = dict(zip(meter["pool"], meter["labels_saved"], strict=True)) if len(meter) else {}
        predicted = {truth: known[pool] for truth in simulation.truths if (pool := pool_of(truth) or "own") in known}
        show(
            "saved",
            "Above: mean error on held-out duels; a dot marks where a strategy has Random's final error. Below: the "
            "share of labels that saves, with joint 95 % intervals; hollow: undecided; shaded: counts as no saving"
            + ("; dotted: what the best choice is predicted to save." if len(meter) else "."),
            plots.saved(rounds, whole, simulation.margin, predicted),
        )
    show(
        "error",
        "Error of the learner's reward differences on held-out duels; lower is better.",
        plots.learning_curves(rounds, "error", "rms error (log-odds)"),
    )
    if rounds["contender"].nunique() > 1:
        show(
            "gap",
            "The same, as paired difference from Random: below zero is better. Pairing removes what the "
            "replicates share, so these bands are the ones to compare.",
            plots.learning_curves(
                plots.against(rounds, "random", "error"), "error", "rms error less Random's", zero=True
            ),
        )
    show(
        "accuracy",
        "Share of held-out duels that the learner orders as the truth does.",
        plots.learning_curves(rounds, "accuracy", "ordering accuracy"),
    )
    show(
        "value",
        "True reward of the greedy policy: 0 is a random response, 1 the best of each prompt.",
        plots.learning_curves(rounds, "greedy_value", "value of the greedy policy"),
    )
    if len(comparison):
        show(
            "paired",
            f"{unit[0].upper()}{unit[1:]} over the baseline's (Random's unless another is named): geometric means of "
            "paired ratios with joint 95 % intervals; left of 1 is better.",
            plots.paired_ratios(comparison, f"{unit.split(' (')[0]}, ratio"),
        )
    context: dict[str, object] = {"few": []}
    told = saving_findings(whole) + foreseen(meter) + pooled_findings(over)
    if len(few):
        small = simulation.repeated()
        assert small is not None
        judged = bound_verdicts(few, small)
        write_frame(directory.path / "few_duels_verdicts.csv", judged)
        write_frame(directory.path / "few_duels_bounds.csv", few)
        context |= {"few": few_findings(judged, 1 - small.delta), "few_verdicts": judged, "small": small}
        told += few_findings(judged, 1 - small.delta)
    if len(bounds):
        numbers, verdicts = bound_numbers(bounds, simulation), bound_verdicts(bounds, simulation)
        write_frame(directory.path / "bound_verdicts.csv", verdicts)
        write_frame(directory.path / "bound_numbers.csv", numbers)
        write_frame(directory.path / "bounds.csv", bounds)
        write_frame(directory.path / "calibration.csv", calibration)
        show(
            "bound",
            "The multiplier of Proposition 1 and its terms beside the one that would have sufficed "
            "(bands: 90 % of replicates and contenders). The gap is the bound's looseness.",
            plots.bound_terms(bounds),
        )
        show(
            "calibration",
            "Error by decile of width. A flat line means that width does not predict error.",
            plots.calibration(calibration),
        )
        show(
            "split",
            "The network's error and its two parts: what the linearised learner errs, and how far the "
            "network is from it.",
            plots.error_split(bounds),
        )
        able, most, _ = within_reach(verdicts, simulation)
        context |= {
            "able": able,
            "most": most,
            "verdicts": verdicts if able else verdicts[verdicts["verdict"] == "refuted"],
            "numbers": numbers,
            "bound_findings": bound_findings(numbers, verdicts, simulation),
        }
        controls = verdicts[verdicts["claim"].str.startswith("control")]
        context["controls"] = f"{int((controls['verdict'] == 'refuted').sum())} of {len(controls)}"
    summary = summarise(rounds, measures, ["truth", "contender", "round", "labels"])
    write_frame(directory.path / "rounds.csv", rounds)
    write_frame(directory.path / "summary.csv", summary)
    write_frame(directory.path / "comparison.csv", comparison)
    if len(saved):
        write_frame(directory.path / "savings.csv", saved)
    if len(over):
        write_frame(directory.path / "pooled.csv", over)
    for name in ("headroom", "headroom_curve"):
        if len(tables[name]):
            write_frame(directory.path / f"{name}.csv", tables[name])
    for drawn in pictures:
        write_bytes(directory.path / "figures" / drawn.file, drawn.content)
    ablations = comparison[comparison["baseline"] != "random"]
    lines = told + findings(ablations, unit) if len(saved) else findings(comparison, unit)
    if regret and any(fits.values()):
        lines.append(
            "Regret is of the duels asked, so it is compared although fits did not converge: "
            + "; ".join(f"{contender} on “{truth}”, {why}" for (truth, contender), why in fits.items() if why)
            + "."
        )
    write_json(directory.path / "findings.json", lines + list(context.get("bound_findings", [])))  # type: ignore[call-overload]
    final = summary[(summary["round"] == summary["round"].max())]
    page = render(
        "bandits.sim",
        "report.html.j2",
        s=simulation,
        manifest=directory.manifest,
        findings=lines,
        saved=saved,
        whole=whole,
        curve_findings=findings(comparison, unit),
        first=float(rounds["labels"].min()),
        share=share,
        needed=needed,
        what=WHAT,
        counts=rounds.groupby("truth", sort=False)["replicate"].nunique().to_dict(),
        meter=meter,
        pool_named=pool_named,
        pictures={p.name: p for p in pictures},
        comparison=comparison,
        final=final,
        measures=measures,
        unit=unit,
        has_bounds=len(bounds) > 0,
        rules=rules(simulation),
        percent=percent,
        gradient=float(np.nanmax(rounds["gradient_norm"])),
        converged=CONVERGED,
        **context,
    )
    write_text(directory.path / "timing.html", timing(simulation, directory, cells))
    write_text(directory.path / "index.html", page)
