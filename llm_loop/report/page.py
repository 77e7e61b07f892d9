"""Owns the page of a run: reads the run's folder, says in words what was measured, writes one self-contained HTML file.

Everything comes from the folder's files (their columns: ``llm_loop.config``), so ``python -m llm_loop.report.page
FOLDER`` writes the same page again.  Wall-clock seconds are on a page of their own, since they alone differ between
equal runs.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bandits.core.errors import InputError
from bandits.runs.command import guard, say
from bandits.runs.directory import Ledger, config_of, read_timing
from bandits.runs.figures import picture
from bandits.runs.files import DamagedError, read_json, write_bytes, write_frame, write_json, write_text
from bandits.runs.page import Picture, render
from bandits.runs.stats import summarise
from bandits.runs.text import loads
from llm_loop import tables
from llm_loop.config import Alignment
from llm_loop.data.chat import Prompt, text_of
from llm_loop.report import figures as plots
from llm_loop.report import findings as words
from llm_loop.report.evaluate import (
    OUTCOMES,
    REPETITIVE,
    accuracies,
    against,
    at_equal_kl,
    authors,
    by_seed,
    check_balanced,
    corpus_distinct,
    degenerate,
    fits,
    intervals,
    labels_saved,
    learning_curves,
    longer_wins,
    per_token,
    same_policy,
    selection,
    totals,
    win_rates,
)

BASELINE = "random"
SHOWN_PICKS = 5
SHOWN_SAMPLES = 6

HEALTH = {
    "judge": "judge, which never labels",
    "win_rate": "win rate against the initial model",
    "accuracy": "held-out duels ordered correctly\nby the implicit reward",
    "log_ratio": "KL from the initial model\n(nats per response)",
    "kl_per_token": "KL from the initial model\n(nats per token)",
    "fluency": "fluency: log-probability by the\ninitial model (nats per token)",
    "tokens": "tokens per response",
    "ended": "responses that ended",
    "distinct_2": "distinct word pairs\nwithin a response",
}
"""Panels of the second figure, by measure."""


MEASURES = ["reward", "judge", "log_ratio", "kl_per_token", "fluency", "tokens", "ended", "distinct_2", "degenerate"]


@dataclass(frozen=True, eq=False)
class Run:
    """What a run's folder holds: its tables over all cells, and the held-out samples."""

    manifest: dict[str, Any]
    rounds: pd.DataFrame
    evaluations: pd.DataFrame
    duels: pd.DataFrame
    candidates: pd.DataFrame
    samples: pd.DataFrame
    left_out: str = ""
    """prompts that were not used, in words"""
    slower: str = ""
    """which slower ways the model took, in words"""
    tuned: str = ""
    """how the model was tuned first, in a sentence"""

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
    """Read a finished run; ``InputError`` names the file that is missing or damaged, or the cell that is not done."""
    manifest = read_json(folder / "manifest.json", dict)
    try:
        config = manifest["config"]
        cells = [folder / "cells" / f"{name}--seed{k}" for name in config["strategies"] for k in range(config["seeds"])]
        numbered = config | ({"pool": 0} if isinstance(config["pool"], str) else {})  # a number, or a file
        known = _known(config_of(Alignment()), numbered) and all(
            isinstance(manifest["parts"]["strategies"][name]["summary"], str) for name in config["strategies"]
        )
    except (KeyError, TypeError):
        known = False
    if not (known and cells):
        raise DamagedError(f"{folder / 'manifest.json'} is not that of a language model's run")
    for ledger in map(Ledger, cells):
        if faults := ledger.faults():
            raise DamagedError(f"{faults[0]}; the command of this run makes it anew")
        if not ledger.done:
            raise InputError(f"{ledger.folder} is not finished; the command of this run goes on with it")
    first = "records/round-00.json"
    ledger = Ledger(cells[0])
    about = loads(ledger.read(first).decode()) if ledger.holds(first) else {}
    told: dict[str, Any] = {name: str(about.get(name, "")) for name in ("left_out", "slower", "tuned")}
    kinds = (tables.Round, tables.Evaluation, tables.HeldoutDuel, tables.Candidate, tables.Sample)
    frames: dict[str, Any] = {kind.table: tables.frame(kind, *cells) for kind in kinds}
    return Run(manifest, **frames, **told)


def _known(ours: Any, theirs: Any) -> bool:
    """Whether a config has all settings that ours has, of their kinds."""
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and all(name in theirs and _known(ours[name], theirs[name]) for name in ours)
    numbers = isinstance(ours, int | float) and isinstance(theirs, int | float)
    return ours is None or numbers or type(ours) is type(theirs)


def measures(run: Run) -> pd.DataFrame:
    """Return what was measured on held-out prompts: a row per strategy, round and measure, intervals over prompts.

    ``corpus_distinct_2`` alone has its interval over seeds, since a corpus has no prompts to vary.
    """
    table = per_token(run.evaluations)
    evaluations = table.assign(degenerate=degenerate(table), ended=table["ended"].astype(float))
    means = intervals(evaluations, MEASURES, "prompt_index")
    wins = win_rates(evaluations).rename(columns={"rate": "mean", "prompts": "units"}).assign(measure="win_rate")
    right = accuracies(run.duels).rename(columns={"accuracy": "mean", "prompts": "units"}).assign(measure="accuracy")
    alike = run.samples.groupby(["strategy", "round", "seed"])["response"].apply(corpus_distinct).reset_index()
    corpus = summarise(
        alike.rename(columns={"response": "corpus_distinct_2"}), ["corpus_distinct_2"], ["strategy", "round"]
    ).rename(columns={"replicates": "units"})
    kept = ["strategy", "round", "measure", "mean", "low", "high", "units"]
    table = pd.concat([means, wins[kept], right[kept], corpus], ignore_index=True)
    return table.merge(totals(run.rounds)[["strategy", "round", "labels"]], on=["strategy", "round"], how="left")


def frontiers(run: Run) -> pd.DataFrame:
    """Return reward and KL a token by strategy, seed, round and labels bought, on all held-out prompts."""
    rows = per_token(run.evaluations)
    reward, kl = (learning_curves(rows, run.rounds, measure) for measure in ("reward", "kl_per_token"))
    return reward.merge(kl, on=["strategy", "seed", "round", "labels"])


def bands(table: pd.DataFrame) -> pd.DataFrame:
    """Return the measures with ``low`` and ``high`` such that a curve's band is its paired change's interval.

    Where a measure is a change itself (win rate) or has a known start (accuracy), they stay what they are.
    """
    start = table["mean"] - table["change"]
    low, high = start + table["change_low"], start + table["change_high"]
    return table.assign(low=low.fillna(table["low"]), high=high.fillna(table["high"]))


def diagnostics(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return the loop's own diagnostics per strategy and round: the mean over seeds, and their range as low and high.

    A diagnostic that no round of any cell has is left out; a round that lacks one (round 0 has no pool) is, too.
    """
    table = rounds.assign(
        selected_excess_length=rounds["selected_length"] / rounds["pool_length"],
        chosen_excess_length=rounds["chosen_length"] / rounds["rejected_length"],
    )
    long = table.melt(["strategy", "seed", "round", "labels"], list(words.DIAGNOSTICS), "measure", "value").dropna()
    grouped = long.groupby(["strategy", "round", "labels", "measure"], sort=False)["value"]
    return grouped.agg(mean="mean", low="min", high="max").reset_index()


def summary(run: Run, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what the page's main table says of each strategy after the last round."""
    seeds = intervals(run.evaluations, ["reward", "judge"], "seed")
    wins, judged = win_rates(run.evaluations), win_rates(run.evaluations, "judge")
    longer, each = longer_wins(run.evaluations), by_seed(per_token(run.evaluations), ["strategy"])
    fit = fits(run.rounds, run.duels)
    rows = []
    for strategy in run.strategies:
        own = table[table["strategy"] == strategy]
        first, last = (own[own["round"] == number].set_index("measure") for number in (0, run.last))
        over = seeds[(seeds["strategy"] == strategy) & (seeds["round"] == run.last)].set_index("measure")
        start = run.evaluations[(run.evaluations["strategy"] == strategy) & (run.evaluations["round"] == 0)]
        won, praised = (t[(t["strategy"] == strategy) & (t["round"] == run.last)] for t in (wins, judged))
        played = run.rounds[run.rounds["strategy"] == strategy].groupby("round")["bits_per_byte"].mean()
        rows.append(
            {
                "strategy": strategy,
                "first": first.to_dict("index"),
                "last": last.to_dict("index"),
                "seeds": over.to_dict("index"),
                "each": each[each["strategy"] == strategy],
                "wins": won.to_dict("records")[0],
                "judged": praised.to_dict("records")[0],
                "longer": longer[strategy],
                "fit": fit[fit["strategy"] == strategy],
                "bits": (float(played.loc[0]), float(played.loc[run.last])),
                "start": start[["reward", "judge", "tokens", "distinct_2"]].mean().to_dict(),
                "spread": start[["reward", "judge"]].std().to_dict(),
            }
        )
    return rows


def why(run: Run) -> dict[str, Any]:
    """Return one round's first picks with what spoke for each: the first strategy and seed, the last round."""
    strategy, seed = run.strategies[0], run.seeds[0]
    pool = run.candidates[(run.candidates["strategy"] == strategy) & (run.candidates["seed"] == seed)]
    pool = pool[(pool["round"] == run.last) & pool["offered"]].copy()
    pool["rank"] = pool["width"].rank(ascending=False, method="min")
    picks = pool.dropna(subset=["picked_position"]).sort_values("picked_position", kind="stable")
    places = dict(zip(picks["candidate"], picks["picked_position"], strict=True))
    shown = picks.head(SHOWN_PICKS).to_dict("records")
    for pick in shown:
        nearest = pick["nearest_picked_duel"]
        alone = pd.isna(nearest) or nearest == pick["candidate"]
        pick["nearest"] = None if alone else int(places[nearest]) + 1
    return {"strategy": strategy, "seed": seed, "pool": len(pool), "picked": len(picks), "picks": shown}


def seconds(run: Run, folder: Path) -> pd.DataFrame:
    """Return wall-clock seconds by strategy and stage, means over the seeds that have any, with their sum."""
    rows = []
    for name, seed in itertools.product(run.strategies, run.seeds):
        if found := read_timing(folder / "cells" / f"{name}--seed{seed}"):
            rows.append({"strategy": name} | found)
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).set_index("strategy").apply(pd.to_numeric, errors="coerce")
    table = table.fillna(0.0).groupby(level=0, sort=False).mean()  # a stage that a cell had no need of
    return table.assign(total=table.sum(axis=1))


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
        drawn.append(picture(name, caption, figure))

    paired = bands(table)
    thin = " Thin: the single seeds; where they cross, the strategies do not differ reliably."
    show(
        "reward",
        "Mean reward of responses to held-out prompts, by labels bought (left) and by tokens generated, "
        "scored, run through for gradients and trained on (right). Thick: mean over seeds; its band is the 95 % "
        "interval, over prompts, of the change from the initial model: for these very policies, so whether two bands "
        "overlap says nothing of two strategies."
        + (thin if len(run.strategies) <= words.FEW and len(run.seeds) > 1 else ""),
        plots.reward_curves(
            run.evaluations,
            paired[paired["measure"] == "reward"],
            totals(run.rounds),
            str(run.manifest["config"]["reward"]),
            len(run.strategies) <= words.FEW,
        ),
    )
    sides = [paired[paired["measure"] == name].set_index(["strategy", "round"]) for name in ("kl_per_token", "reward")]
    show(
        "frontier",
        "Reward against KL from the initial model, round by round: how much reward each nat of change buys. Bars are "
        "95 % over prompts, of the change from the initial model. Two strategies' rewards at equal KL, of which the "
        "findings tell, are read off seed by seed, where a seed's own curve, straight between rounds, first comes to "
        "the smaller of the two last KLs.",
        plots.frontier(
            sides[1][["mean", "low", "high"]]
            .rename(columns={"mean": "reward"})
            .join(sides[0]["mean"].rename("kl"))
            .reset_index(),
            str(run.manifest["config"]["reward"]),
        ),
    )
    if len(comparison) and len(run.seeds) > 1:
        show(
            "paired",
            f"Difference from {BASELINE} paired by seed: a ring per seed, the mean (diamond) with its "
            "95 % interval, joint over all rows; an arrow where the interval goes on.",
            plots.seed_differences(run.evaluations, comparison, BASELINE, OUTCOMES),
        )
    show(
        "health",
        "What else changed on held-out prompts. Bands are 95 % over prompts: of the change from the initial "
        "model, for win rate and duels of the share itself. A reward that rises while the judge does not, or while "
        "KL or repetition run away, is a reward being gamed; where fluency falls, the text breaks down.",
        plots.small_multiples(paired, HEALTH),
    )
    titles = {name: title for name, (title, _) in words.DIAGNOSTICS.items() if name in set(loop["measure"])}
    if titles:
        show(
            "diagnostics",
            "The loop's own diagnostics, round by round: means over seeds, bands from the least seed to the greatest.",
            plots.small_multiples(loop, titles, columns=4),
        )
    return drawn


def visible(text: Prompt) -> str:
    """Return a text as a page can show it: control characters by their pictures, half surrogate pairs by their code.

    HTML knows neither; line ends and tabs stay.
    """
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
    return text_of(text).translate(pictures).encode("utf-8", "backslashreplace").decode()


def write(folder: Path) -> Path:
    """Write a finished run's tables, figures, findings and, last of all, its page ``index.html``; return the page."""
    run = read(folder)
    check_balanced(run.evaluations)
    table, loop, comparison = measures(run), diagnostics(run.rounds), against(run.evaluations, BASELINE)
    curves = frontiers(run)
    saved, equal = labels_saved(curves, BASELINE), at_equal_kl(curves, BASELINE)
    rows, chosen, spent = summary(run, table), selection(run.candidates), totals(run.rounds)
    drew = authors(run.candidates)
    drawn = pictures(run, table, loop, comparison)
    labels, config = int(run.rounds["labels"].max()), run.manifest["config"]
    health = words.health(rows)
    headline = " ".join([words.headline(rows, comparison, equal, BASELINE), *(health[:1] if len(health) > 1 else [])])
    said = words.findings(rows, comparison, labels, len(run.seeds), BASELINE)
    if len(equal):
        said.append(words.frontier(equal, BASELINE, reasons=True))
    if len(run.seeds) > 1 and len(saved) <= words.FEW:
        said += map(words.saving, saved.to_dict("records"))
    null = {measure: same_policy(run.evaluations, measure).to_dict("records") for measure in ("reward", "judge")}
    said += words.lengths({row["strategy"]: row["longer"] for row in rows})
    said += words.null({measure: found[0] for measure, found in null.items() if found})
    said += words.remarks(rows)
    said += words.partly(run.rounds)
    if run.tuned:
        said.append(f"{run.tuned}; that model is the initial one.")
    if run.slower:
        said.append(f"The model disagrees with the fastest ways, so: {run.slower}.")
    if run.left_out:
        said.append(f"Prompts left out: {run.left_out}.")
    timing = render("llm_loop.report", "timing.html.j2", seconds=seconds(run, folder), manifest=run.manifest)
    page = render(
        "llm_loop.report",
        "report.html.j2",
        manifest=run.manifest,
        config=config,
        run=run,
        headline=headline,
        findings=said,
        health=health,
        rows=rows,
        comparison=comparison,
        null=null,
        saved=saved,
        share_saved=words.share_saved,
        outcomes=OUTCOMES,
        baseline=BASELINE,
        does={name: run.manifest["parts"]["strategies"][name]["summary"] for name in run.strategies},
        means={c: words.REWARDS.get(c, "a reward model from elsewhere") for c in (config["reward"], config["judge"])},
        pictures={drawing.name: drawing for drawing in drawn},
        selection=chosen[chosen["round"] == run.last],
        authors=drew.to_dict("records"),
        diagnostics=words.told(loop, run.strategies),
        why=why(run),
        samples=samples(run),
        labels=labels,
        tokens=spent[spent["round"] == run.last].set_index("strategy")["tokens"],
        repetitive=REPETITIVE,
        prompts=run.evaluations["prompt_index"].nunique(),
        between=config["evaluation"]["between"] or config["evaluation"]["prompts"],
        number=words.number,
        span=words.span,
        visible=visible,
    )
    for name, frame in (
        *(("rounds", run.rounds), ("measures", table), ("comparison", comparison)),
        *(("frontier", equal), ("savings", saved), ("selection", chosen)),
        *([("authors", drew)] if len(drew) else []),
    ):
        write_frame(folder / f"{name}.csv", frame)
    for drawing in drawn:
        write_bytes(folder / "figures" / drawing.file, drawing.content)
    write_json(folder / "findings.json", [headline, *health, *said])
    write_text(folder / "timing.html", timing)
    write_text(folder / "index.html", page)
    return folder / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages of finished runs again, from their files."""

    def rewrite(folders: Sequence[str]) -> int:
        if not folders or folders[0] in ("-h", "--help"):
            say("usage: python -m llm_loop.report.page FOLDER [FOLDER ...]")
            return 0 if folders else 2
        for folder in folders:
            say(f"page: {write(Path(folder))}")
        return 0

    return guard(rewrite, arguments)


if __name__ == "__main__":
    sys.exit(main())
