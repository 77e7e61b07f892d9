"""Owns the page of a run: reads the run's folder, says in words what was measured, writes one self-contained HTML file.

Everything comes from the folder's files (their columns: ``llm_loop.experiments``), so ``python -m llm_loop.report
FOLDER`` writes the same page again.  Wall-clock seconds are on a page of their own, since they alone differ between
equal runs.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bandits import plots as core_plots
from bandits.errors import InputError
from bandits.page import Picture, render
from bandits.results import read_json, write_bytes, write_frame, write_json, write_text
from bandits.summary import summarise
from llm_loop import plots
from llm_loop.evaluate import (
    OUTCOMES,
    accuracies,
    against,
    check_balanced,
    corpus_distinct,
    degenerate,
    intervals,
    selection,
    totals,
    win_rates,
)

BASELINE = "random"
TABLES = ("rounds", "evaluations", "duels", "candidates")
SHOWN_PICKS = 5
SHOWN_SAMPLES = 6

HEALTH = {
    "judge": "judge (−1 to 1)",
    "win_rate": "win rate against the initial model",
    "log_ratio": "KL from the initial model\n(nats per response)",
    "accuracy": "held-out duels ordered rightly\nby the implicit reward",
    "tokens": "tokens per response",
    "distinct_2": "distinct word pairs\nwithin a response",
}
"""Panels of the second figure, by measure."""

DIAGNOSTICS = {
    "zero_A_gradient_share": (
        "zero A-gradients",
        "Share of LoRA's A-parameters with a gradient of exactly 0. LoRA starts with B = 0, so in round 1 the model's "
        "uncertainty is measured through the B-half of its parameters alone; afterwards through both.",
    ),
    "zero_margin_share": (
        "zero margins",
        "Share of duels that the implicit reward calls a tie. In round 1 policy and reference are one, so all are "
        "ties, and a rule that ranks by margin has nothing to go by.",
    ),
    "duplicates_dropped": (
        "duplicates dropped",
        "Responses that repeated another to the same prompt: their duel has a feature of 0 and would waste a label.",
    ),
    "selected_excess_length": (
        "length, selected ÷ pool",
        "Mean tokens of the responses in selected duels over those of the pool. A token sum has a gradient that grows "
        "with length, so without normalisation a gradient rule may simply be buying long responses.",
    ),
    "gradient_drift": (
        "gradient drift",
        "How far gradients at this round's model have moved from those at the initial model, relative to their norm. "
        "The theory wants it small.",
    ),
    "kernel_drift": (
        "kernel drift",
        "The same for the Gram matrix of the features, which is all that widths depend on (the measurable side of the "
        "paper's Remark 1).",
    ),
    "width_error_rank_correlation": (
        "width–error correlation",
        "Rank correlation, over the pool, of a duel's width with the true error of its reward difference. Selecting by "
        "width can only help as far as this is above 0.",
    ),
    "information": (
        "information",
        "log det of V against its ridge, in nats: how much the labelled duels pin down, as the design sees it.",
    ),
}
"""Panels of the third figure: title, and the sentence that says what to make of it."""


@dataclass(frozen=True)
class Run:
    """What a run's folder holds: its tables over all cells, and the held-out samples."""

    manifest: dict[str, Any]
    rounds: pd.DataFrame
    evaluations: pd.DataFrame
    duels: pd.DataFrame
    candidates: pd.DataFrame
    samples: pd.DataFrame

    @property
    def strategies(self) -> list[str]:
        """The run's strategies, the baseline last."""
        names = list(dict.fromkeys(self.rounds["strategy"]))
        return sorted(names, key=lambda name: name == BASELINE)

    @property
    def seeds(self) -> list[int]:
        """The run's seeds."""
        return sorted(int(seed) for seed in self.rounds["seed"].unique())

    @property
    def last(self) -> int:
        """The number of the last round."""
        return int(self.rounds["round"].max())


def read(folder: Path) -> Run:
    """Read a finished run; ``InputError`` names the file that is missing or damaged."""
    cells = sorted(path for path in (folder / "cells").glob("*--seed*") if path.is_dir())
    if not cells:
        raise InputError(f"{folder} holds no finished cell of a run")
    # Numbers, not their spelling, put seed 10 after seed 9.
    cells.sort(key=lambda path: (path.name.rpartition("--seed")[0], int(path.name.rpartition("--seed")[2])))
    try:
        tables = {
            name: pd.concat([pd.read_csv(c / f"{name}.csv", float_precision="round_trip") for c in cells],
                            ignore_index=True)
            for name in TABLES
        }  # fmt: skip
        samples: list[dict[str, Any]] = []
        for cell in cells:
            strategy, _, seed = cell.name.rpartition("--seed")
            lines = (cell / "samples.jsonl").read_text(encoding="utf-8").splitlines()
            samples.extend({**json.loads(line), "strategy": strategy, "seed": int(seed)} for line in lines)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; is the run complete?") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{folder} holds a damaged table ({error})") from None
    return Run(read_json(folder / "manifest.json"), **tables, samples=pd.DataFrame(samples))


def measures(run: Run) -> pd.DataFrame:
    """Return what was measured on held-out prompts: a row per strategy, round and measure, intervals over prompts.

    ``corpus_distinct_2`` alone has its interval over seeds, since a corpus has no prompts to vary.
    """
    evaluations = run.evaluations.assign(degenerate=degenerate(run.evaluations))
    means = intervals(
        evaluations, ["reward", "judge", "log_ratio", "tokens", "distinct_2", "degenerate"], "prompt_index"
    )
    wins = win_rates(evaluations).rename(columns={"rate": "mean", "prompts": "units"}).assign(measure="win_rate")
    right = accuracies(run.duels).rename(columns={"accuracy": "mean", "prompts": "units"}).assign(measure="accuracy")
    alike = run.samples.groupby(["strategy", "round", "seed"])["response"].apply(corpus_distinct).reset_index()
    corpus = summarise(alike.rename(columns={"response": "corpus_distinct_2"}), ["corpus_distinct_2"],
                       ["strategy", "round"]).rename(columns={"replicates": "units"})  # fmt: skip
    kept = ["strategy", "round", "measure", "mean", "low", "high", "units"]
    table = pd.concat([means, wins[kept], right[kept], corpus], ignore_index=True)
    return table.merge(totals(run.rounds)[["strategy", "round", "labels"]], on=["strategy", "round"], how="left")


def diagnostics(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return the loop's own diagnostics per strategy and round: the mean over seeds, and their range as low and high.

    A diagnostic that no round of any cell has is left out; a round that lacks one (round 0 has no pool) is, too.
    """
    table = rounds.assign(selected_excess_length=rounds["selected_length"] / rounds["pool_length"])
    long = table.melt(["strategy", "seed", "round", "labels"], list(DIAGNOSTICS), "measure", "value").dropna()
    grouped = long.groupby(["strategy", "round", "labels", "measure"], sort=False)["value"]
    return grouped.agg(mean="mean", low="min", high="max").reset_index()


def told(loop: pd.DataFrame, strategies: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return each diagnostic's title, what to make of it, and its first and last values per strategy in words."""
    found = []
    for name, (title, text) in DIAGNOSTICS.items():
        said = []
        for strategy in strategies:
            part = loop[(loop["measure"] == name) & (loop["strategy"] == strategy)].sort_values("round")
            ends = part.iloc[[0, -1]] if len(part) > 1 else part
            values = [f"{row['mean']:.3g} in round {row['round']}" for row in ends.to_dict("records")]
            if values:
                said.append(f"{strategy}: {', '.join(values)}")
        if said:
            found.append((title, text, "; ".join(said)))
    return found


def summary(run: Run, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what the page's main table says of each strategy after the last round."""
    seeds = intervals(run.evaluations, ["reward", "judge"], "seed")
    wins = win_rates(run.evaluations)
    rows = []
    for strategy in run.strategies:
        last = table[(table["strategy"] == strategy) & (table["round"] == run.last)].set_index("measure")
        over = seeds[(seeds["strategy"] == strategy) & (seeds["round"] == run.last)].set_index("measure")
        start = run.evaluations[(run.evaluations["strategy"] == strategy) & (run.evaluations["round"] == 0)]
        won = wins[(wins["strategy"] == strategy) & (wins["round"] == run.last)]
        rows.append({
            "strategy": strategy,
            "last": last.to_dict("index"),
            "seeds": over.to_dict("index"),
            "wins": won.to_dict("records")[0],
            "start": start[["reward", "judge", "tokens", "distinct_2"]].mean().to_dict(),
            "spread": start[["reward", "judge"]].std().to_dict(),
        })  # fmt: skip
    return rows


def moved(low: float, high: float) -> str:
    """Say which way a change went, if its interval says so."""
    return "rose" if low > 0 else "fell" if high < 0 else "did not change beyond its interval"


def span(low: float, high: float, digits: int = 2, sign: bool = True) -> str:
    """Return an interval in brackets; in words where one unit gives none."""
    if math.isnan(low) or math.isnan(high):
        return "no interval from one value"
    form = f"{'+' if sign else ''}.{digits}f"
    return f"[{low:{form}}, {high:{form}}]"


def findings(run: Run, rows: Sequence[dict[str, Any]], comparison: pd.DataFrame) -> list[str]:
    """Say in sentences what the run found, whichever way it went."""
    lines = []
    labels = int(run.rounds["labels"].max())
    for row in rows:
        reward, judge, name = row["last"]["reward"], row["last"]["judge"], row["strategy"]
        over = row["seeds"]["reward"]
        lines.append(
            f"{name}: mean held-out reward {moved(reward['change_low'], reward['change_high'])}, from "
            f"{row['start']['reward']:.2f} to {reward['mean']:.2f} after {labels} labels: {reward['change']:+.2f} "
            f"{span(reward['change_low'], reward['change_high'])} over {reward['units']:.0f} held-out prompts (these "
            f"very runs), {span(over['change_low'], over['change_high'])} over {len(run.seeds)} seeds (other runs like "
            "them)."
        )
        ours, theirs = (row["last"][k]["change"] / row["spread"][k] for k in ("reward", "judge"))
        lines.append(
            f"{name}: the judge, which never labels, {moved(judge['change_low'], judge['change_high'])}: "
            f"{judge['change']:+.2f} {span(judge['change_low'], judge['change_high'])}. In units of the spread among "
            f"the initial model's responses that is {theirs:+.2f}, against {ours:+.2f} for the reward that labelled."
        )
    for judged in comparison.to_dict("records"):
        name, where = judged["strategy"], OUTCOMES[judged["outcome"]]
        low, high = judged["low"], judged["high"]
        said = f"{judged['difference']:+.2f} {span(low, high)}, {judged['seeds']} paired seeds"
        if judged["verdict"] == "no gain":
            line = f"{name} against {BASELINE}, {where}: no gain was seen ({said})."
            if not math.isnan(low):
                line += f" With these seeds only a difference of more than {(high - low) / 2:.2f} would have shown."
        else:
            line = f"{name} did {judged['verdict']} than {BASELINE}, {where}: {said}."
        lines.append(line)
    if comparison.empty:
        lines.append(f"No comparison of strategies: it takes {BASELINE} and one other at least.")
    return lines


def hacking(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Name the signs that a strategy's policy games the reward rather than earns it; empty if there are none."""
    lines = []
    for row in rows:
        last, name = row["last"], row["strategy"]
        if last["reward"]["change_low"] > 0 and not last["judge"]["change_low"] > 0:
            lines.append(f"{name}: the reward rose, the judge did not follow.")
        if last["degenerate"]["change_low"] > 0:
            lines.append(
                f"{name}: empty or repetitive responses became more frequent ({last['degenerate']['mean']:.0%} by the "
                "end)."
            )
        if last["distinct_2"]["change_high"] < -0.05:
            lines.append(
                f"{name}: responses repeat themselves more ({last['distinct_2']['change']:+.2f} distinct pairs)."
            )
        if abs(last["tokens"]["change"]) > 0.25 * row["start"]["tokens"]:
            lines.append(f"{name}: responses changed in length by {last['tokens']['change']:+.1f} tokens.")
    return lines


def why(run: Run) -> dict[str, Any]:
    """Return one round's first picks with what spoke for each: the first strategy and seed, the last round."""
    strategy, seed = run.strategies[0], run.seeds[0]
    pool = run.candidates[(run.candidates["strategy"] == strategy) & (run.candidates["seed"] == seed)]
    pool = pool[pool["round"] == pool["round"].max()].copy()
    pool["rank"] = pool["width"].rank(ascending=False, method="min")
    picks = pool.dropna(subset=["picked_position"]).sort_values("picked_position", kind="stable").head(SHOWN_PICKS)
    return {
        "strategy": strategy, "seed": seed, "round": int(pool["round"].max()), "pool": len(pool),
        "picked": int(pool["picked_position"].notna().sum()), "picks": picks.to_dict("records"),
    }  # fmt: skip


def samples(run: Run) -> list[dict[str, Any]]:
    """Return the first held-out prompts with the first seed's responses: the initial model's, and each strategy's last.

    They are the first ones in the data's random order, not chosen.
    """
    keys = ["strategy", "seed", "round", "prompt_index"]
    scores = run.evaluations.drop_duplicates(keys)[[*keys, "reward", "judge"]]
    table = run.samples.drop_duplicates(keys).merge(scores, on=keys, how="left")
    table = table[table["seed"] == run.seeds[0]]
    before = table[(table["strategy"] == run.strategies[0]) & (table["round"] == 0)].assign(who="initial model")
    after = table[table["round"] == run.last]
    after = after.assign(who=after["strategy"], place=after["strategy"].map(run.strategies.index)).sort_values("place")
    shown = []
    for first in before.sort_values("prompt_index").head(SHOWN_SAMPLES).to_dict("records"):
        last = after[after["prompt_index"] == first["prompt_index"]]
        shown.append({"prompt": first["prompt"], "responses": [first, *last.to_dict("records")]})
    return shown


def pictures(run: Run, table: pd.DataFrame, loop: pd.DataFrame, comparison: pd.DataFrame) -> list[Picture]:
    """Draw the page's figures."""
    drawn: list[Picture] = []

    def show(name: str, caption: str, figure: Figure) -> None:
        drawn.append(Picture(name, caption, core_plots.png(figure)))
        plt.close(figure)

    show("reward", "Mean reward of responses to held-out prompts, by labels bought (left) and by tokens generated, "
         "scored and trained on (right). Thick: mean over seeds, with a 95 % band over prompts. Thin: the single "
         "seeds; where they cross, the strategies do not differ reliably.",
         plots.reward_curves(run.evaluations, table[table["measure"] == "reward"], totals(run.rounds)))  # fmt: skip
    if len(comparison):
        show("paired", f"Difference from {BASELINE} on the same luck: a ring per seed, the mean (diamond) with its "
             "95 % interval, joint over all rows; an arrow where the interval goes on.",
             plots.seed_differences(run.evaluations, comparison, BASELINE, OUTCOMES))  # fmt: skip
    show("health", "What else changed on held-out prompts; bands are 95 % over prompts. A reward that rises while the "
         "judge does not, or with the KL or the repetition running away, is a reward being gamed.",
         plots.small_multiples(table, HEALTH))  # fmt: skip
    titles = {name: title for name, (title, _) in DIAGNOSTICS.items() if name in set(loop["measure"])}
    if titles:
        show("diagnostics", "The loop's own diagnostics, round by round: means over seeds, bands from the least seed "
             "to the greatest.", plots.small_multiples(loop, titles, columns=4))  # fmt: skip
    return drawn


def write(folder: Path) -> Path:
    """Write a finished run's tables, figures, findings and, last of all, its page ``index.html``; return the page."""
    run = read(folder)
    check_balanced(run.evaluations)
    table, loop, comparison = measures(run), diagnostics(run.rounds), against(run.evaluations, BASELINE)
    rows, chosen = summary(run, table), selection(run.candidates)
    said, drawn = findings(run, rows, comparison), pictures(run, table, loop, comparison)
    for name, frame in (("rounds", run.rounds), ("measures", table), ("comparison", comparison), ("selection", chosen)):
        write_frame(folder / f"{name}.csv", frame)
    for picture in drawn:
        write_bytes(folder / "figures" / f"{picture.name}.png", picture.content)
    write_json(folder / "findings.json", said)
    if (folder / "timing.json").exists():
        timing = read_json(folder / "timing.json")
        write_text(folder / "timing.html", render("llm_loop", "timing.html.j2", timing=timing, manifest=run.manifest))
    spent = totals(run.rounds)
    page = render(
        "llm_loop", "report.html.j2", manifest=run.manifest, config=run.manifest["config"], run=run, findings=said,
        hacking=hacking(rows), rows=rows, comparison=comparison, outcomes=OUTCOMES, baseline=BASELINE, span=span,
        pictures={picture.name: picture for picture in drawn}, selection=chosen[chosen["round"] == run.last],
        diagnostics=told(loop, run.strategies),
        why=why(run), samples=samples(run), tokens=spent[spent["round"] == run.last].set_index("strategy")["tokens"],
        prompts=run.evaluations["prompt_index"].nunique(), labels=int(run.rounds["labels"].max()), isnan=np.isnan,
    )  # fmt: skip
    write_text(folder / "index.html", page)
    return folder / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages of finished runs again, from their files."""
    folders = list(sys.argv[1:] if arguments is None else arguments)
    if not folders or folders[0] in ("-h", "--help"):
        print("usage: python -m llm_loop.report FOLDER [FOLDER ...]")
        return 0 if folders else 2
    try:
        for folder in folders:
            print(f"page: {write(Path(folder))}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
