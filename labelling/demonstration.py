"""What choosing buys on a pool that stays as it is: ``python -m labelling.demonstration smoke|full``.

One pool of responses that a model drew to its prompts, a budget of labels, one batch: chosen duels beside random ones,
the reward model answering in people's place.  It is the language-model loop on a fixed pool; what the seeds have in
common, the pool and its features at the first model, is made once.  Seeds differ in who answers what, in Random's
draws, in the order of training and in the held-out responses; so intervals are for this pool.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from bandits.core.duels import Duels
from bandits.core.rng import Key
from bandits.headroom import headroom
from bandits.loop import DesignState
from bandits.runs import command, figures
from bandits.runs.directory import Identity, Ledger, Part, RunDirectory
from bandits.runs.files import read_json, write_bytes, write_frame, write_json, write_text
from bandits.runs.settings import Whole, check
from bandits.runs.stats import Estimate, mean
from llm_loop import launch, tables
from llm_loop.arena import DrawnArena
from llm_loop.config import PRESETS, Alignment, Evaluation
from llm_loop.forecast import forecast
from llm_loop.gradients import Gradients
from llm_loop.learner import Training
from llm_loop.models import Adapter
from llm_loop.report.evaluate import win_rates
from llm_loop.report.findings import number, with_span
from llm_loop.run import AlignmentStudy, Cell, initial_features
from llm_loop.setup import Setup
from llm_loop.shared import Shared
from llm_loop.studies.figures import TITLES

PROGRAM = "python -m labelling.demonstration"
HEADROOM = "headroom.json"
TABLES = "studies/own-pool"
ARMS = ("activedpo", "random")
NAMES = TITLES | {"accuracy": "ordering accuracy"}
DRAWN = ("reward", "judge", "accuracy", "wins")
COMPARED = (*DRAWN, "fluency", "kl_per_token")
FULL = replace(
    PRESETS["quick"][1],
    strategies=ARMS,
    seeds=5,
    rounds=1,
    batch=60,
    prompts_per_round=250,
    responses=8,
    pool=250,
    pool_temperature=1.4,
    adapter=Adapter(layers=8),
    training=Training(rate=1e-3),
    long_texts="cut",
    evaluation=Evaluation(prompts=48, between=0, duels=48),
)
"""as the published table was measured, whatever the defaults have become"""
SMOKE = replace(
    PRESETS["smoke"][1],
    strategies=ARMS,
    seeds=2,
    rounds=1,
    batch=6,
    prompts_per_round=5,
    responses=4,
    pool=5,
    pool_temperature=1.5,
    training=Training(rate=1e-2, epochs=2),
)


HEAD = f"""# One pool, {FULL.batch} labels

{FULL.pool * FULL.responses:,} responses of SmolLM2-135M-Instruct to {FULL.pool} questions about films, half of them at
temperature {FULL.pool_temperature}. {FULL.batch} duels are chosen by `{ARMS[0]}`, the default of
[`activedpo select`](own-data.md), and {FULL.batch} drawn at random. A reward model answers in people's place, and DPO
starts from the same adapter. Is the model that learned from chosen duels the better one on prompts that nothing was
learned from?

```
make demonstration PRESET=full     # goes on where it was stopped; PRESET=smoke: a tiny model, in seconds
```

The rule chooses once, before any label, so its duels are the same in every seed: the pool, its gradients at the first
model and their sketch are made once. Seeds differ in the answers, in Random's draws, in the order of training and in
the held-out answers; intervals (Student's t over seeds, 95 % each) are for this pool and this model. *Predicted* is
what the [headroom meter](api.md#headroom) says of the pool alone. The settings are pinned to those of the table below,
whatever the defaults have become.

## What came out
"""
READ = """Reward and judge are mean scores of the answers to held-out prompts. *Ordering accuracy* is the share of
held-out duels that the trained model's implicit reward orders as the reward does; *win rate*, that of held-out answers
with more reward than the initial model's; ties count half. *Fluency* is the initial model's log-probability of the
answers; *KL*, how far the trained model is from the initial one. Differences are paired by seed."""
CAPTION = f"""*A dot is a seed, a grey line joins a seed's two arms, a bar is the mean over seeds. Above: the mean
paired difference, {ARMS[0]} less {ARMS[1]} [95 % interval].*"""
FOOT = """
## What this does not say

- *Undecided* is not *equal*: the interval says which differences these seeds leave open.
- The reward is of sentiment. A reward can be gamed, so a judge that never labels is asked too.
"""


@dataclass(frozen=True)
class Demonstration(AlignmentStudy):
    """One batch from one pool, chosen and at random."""

    experiment: str = "demonstration"

    def identity(self) -> Identity:
        """What determines the bytes of its results."""
        own = super().identity()
        return replace(own, packages=(*own.packages, "labelling"))

    def play(self, cell: Cell, folder: Path) -> list[str]:
        """Play a cell; of a seed's cells that look at features, the first also has what the headroom meter says."""
        names = super().play(cell, folder)
        return [*names, HEADROOM] if (folder / HEADROOM).exists() else names

    def lay_out(self, setup: Setup, folder: Path) -> None:
        """Give a cell the pool, and features of it at the first model in the first seed's sketch, made once for all."""
        super().lay_out(setup, folder)
        arena, learner, alignment = setup.arena, setup.learner, setup.alignment
        assert isinstance(arena, DrawnArena)
        assert arena.pool_table is not None
        if "width" not in setup.strategy.reads:
            return
        sketch, key = alignment.sketch, Key(alignment.seed).fold_in("seed", 0).fold_in("gradients")
        learner.gradients = Gradients(
            setup.policy, alignment.training.beta, sketch.kind, sketch.size, key, alignment.feature_tokens
        )
        rows, layer = list(dict.fromkeys(arena.pool_table.items.rows)), setup.strategy.space.layer
        shared = Shared.beside(folder, "all", launch.is_main())
        with launch.main_first():
            found = shared.tensors(f"features-{layer}", partial(initial_features, setup, rows, layer))
        learner.note_initial(layer, rows, found["values"], found["zero"])
        if folder.name.endswith("--seed0") and launch.is_main():
            write_json(folder / HEADROOM, _headroom(setup, arena))


def _headroom(setup: Setup, arena: DrawnArena) -> dict[str, float | str]:
    """Return what the meter predicts of a batch from the pool, before any label."""
    table, alignment, space = arena.pool_table, setup.alignment, setup.strategy.space
    assert table is not None
    k = alignment.responses
    every = Duels.within(len(table.texts) // k, k)
    unlike = [
        table.texts[a] != table.texts[b] for a, b in zip(every.first.tolist(), every.second.tolist(), strict=True)
    ]
    duels = Duels(every.first[unlike], every.second[unlike])
    ridge = alignment.ridges.of(space)
    rows = DesignState(space, ridge, alignment.batch).rows(setup.learner, table.items, duels)
    key = Key(alignment.seed).fold_in("headroom")
    worth = headroom(rows, ridge=ridge, budget=alignment.batch, candidates=4000, targets=500, key=key)
    saved, error = worth.labels_saved, worth.error_saved
    return {
        "verdict": worth.verdict,
        "labels_saved": saved.value,
        "labels_saved_low": saved.low,
        "labels_saved_high": saved.high,
        "error_saved": error.value,
        "error_saved_low": error.low,
        "error_saved_high": error.high,
        "duels": duels.count,
    }


COMMAND = command.Command(
    PROGRAM,
    {
        "smoke": ("20 responses of a tiny random model, 6 labels: seconds, for tests", SMOKE),
        "full": ("2,000 responses of SmolLM2-135M, 60 labels, 5 paired seeds: about an hour", FULL),
    },
    Demonstration.of,
    "--strategies and --seeds",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the demonstration is played."""

    preset: Annotated[Literal["smoke", "full"], tyro.conf.Positional] = "smoke"
    """smoke: a tiny random model, in seconds; full: the real one, in about an hour"""
    output: Path = Path("results")
    """where the run is"""
    pages: Path | None = None
    """where the page is written, its tables and figure below it (default: docs; beside the run when tiny)"""
    cells: str = "1/1"
    """the i-th of n parts of the cells, as i/n"""
    jobs: Whole = 0
    """cells side by side; 0: one per core"""
    show: Annotated[bool, tyro.conf.arg(name="show-only")] = False
    """play nothing; write down what the finished seeds show"""
    dry_run: bool = False
    """tell what the run will take, and run nothing"""


def run(arguments: Sequence[str]) -> int:
    """Play what is missing; then write table and figure and say what the finished seeds show."""
    options = command.read(Options, arguments, PROGRAM, __doc__)
    check(options)
    settings = COMMAND.presets[options.preset][1]
    study = Demonstration.of(settings)
    directory = RunDirectory(options.output, study.experiment, options.preset, study.identity())
    if options.dry_run:
        command.say(*forecast(study, directory, options.jobs, Part.of(options.cells)).lines)
        return 0
    told = ["--output", str(options.output), "--cells", options.cells, "--jobs", str(options.jobs)]
    if not options.show and (status := command.run(COMMAND, [options.preset, *told])):
        return status
    table, predicted = (frame.round(6) for frame in finished(study, directory))
    home = options.pages or (Path("docs") if options.preset == "full" else options.output / "docs")
    if len(table):
        write_frame(home / TABLES / "own-pool.csv", table)
        write_frame(home / TABLES / "predicted.csv", predicted)
        write_bytes(home / TABLES / "own-pool.png", figures.png(drawn(table)))
        command.say(*shown(table, predicted))
    write_text(home / "demonstration.md", page(table, predicted))
    command.say(f"page: {home / 'demonstration.md'}")
    return 0


def page(table: pd.DataFrame, predicted: pd.DataFrame) -> str:
    """Return the page, in Markdown, with what the finished seeds show."""
    found = "No seed of the full run is finished yet, so nothing is said here of what it shows."
    if len(table):
        found = "\n\n".join(shown(table, predicted))
        found += f"\n\n{READ}\n\n![each arm's outcome, seed by seed]({TABLES}/own-pool.png)\n\n{CAPTION}"
        found += (
            f"\n\nMeasured at commit `{table['commit'].iloc[0][:7]}`: {table['settings'].iloc[0]}. Tables: "
            f"`own-pool.csv` (a row an arm and seed) and `predicted.csv`, in `{TABLES}/`."
        )
    return f"{HEAD}\n{found}\n{FOOT}"


def shown(table: pd.DataFrame, predicted: pd.DataFrame) -> list[str]:
    """Say what the finished seeds show, a paragraph each, the verdict first: of the page, and of the terminal."""
    return [verdict(table), asked(table), *believed(table, predicted), outcomes(table)]


def verdict(table: pd.DataFrame) -> str:
    """Say which arm's model was the better one, or that these seeds leave it undecided."""
    labels, seeds = int(table["labels"].iloc[0]), table["seed"].nunique()
    level = {arm: mean(own["reward"]) for arm, own in table.groupby("strategy", sort=False)}
    first, lines = table["reward_at_first"].mean(), []
    for arm, found in differences(table, "reward").items():
        said = {
            "better": f"Choosing by {arm} was worth it.",
            "worse": f"Choosing by {arm} did harm.",
            "undecided": f"Whether choosing by {arm} is worth it is undecided.",
        }[word(found)]
        lines.append(
            f"**{said}** With {labels} labels the held-out reward went from {number(first, sign=False)} to "
            f"{_measured(level[arm])} where duels were chosen and to {_measured(level['random'])} where they were "
            f"drawn at random: a difference of {_measured(found, sign=True)} over {seeds} paired "
            f"seed{'s' if seeds > 1 else ''}."
        )
    return "\n\n".join(lines)


def asked(table: pd.DataFrame) -> str:
    """Say what kind of duels each arm had labelled."""
    means = table.groupby("strategy", sort=False)[["picked_tokens", "picked_gap", "against_reward", "prompts"]].mean()
    each = "; ".join(
        f"{arm}: responses of {row['picked_tokens']:.1f} tokens, rewards {row['picked_gap']:.2f} apart, "
        f"{row['prompts']:.0f} prompts, {100 * row['against_reward']:.0f} % of the answers against the reward"
        for arm, row in means.iterrows()
    )
    return f"What was asked, on average: {each}."


def believed(table: pd.DataFrame, predicted: pd.DataFrame) -> list[str]:
    """Say what was predicted, and whether it was seen."""
    lines = []
    for row in predicted.to_dict("records"):
        seen = {
            "better": "held-out reward was higher",
            "worse": "held-out reward was lower",
            "undecided": "whether held-out reward was higher is undecided",
        }[word(differences(table, "reward")[row["strategy"]])]
        lines.append(
            f"Predicted before any label, from {row['strategy']}'s features: {row['verdict']}. Seen: {seen}. The meter "
            "counts the variance of a reward that is estimated at the first model. It knows nothing of what DPO makes "
            "of the labels."
        )
    return lines


def outcomes(table: pd.DataFrame) -> str:
    """Return all outcomes as a table in Markdown: each arm's mean and its difference from Random, with intervals."""
    arms = list(dict.fromkeys(table["strategy"]))
    chosen = [arm for arm in arms if arm != "random"]
    head = ["", "initial model", *arms, *(f"{arm} less random" for arm in chosen), ""]
    lines = [head, ["---"] * len(head)]
    for measure in COMPARED:
        start = f"{measure}_at_first"
        first = number(table[start].mean(), sign=False) if start in table else ""
        apart = differences(table, measure)
        means = [_measured(mean(table.loc[table["strategy"] == arm, measure])) for arm in arms]
        told = ", ".join(word(apart[arm]) for arm in chosen) if measure in DRAWN else ""
        lines.append([NAMES[measure], first, *means, *(_measured(apart[arm], sign=True) for arm in chosen), told])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def finished(study: AlignmentStudy, directory: RunDirectory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row per arm and seed, of the seeds that are finished, and what the headroom meter predicted per arm."""
    done = {cell: directory.cell(cell) for cell in study.cells() if Ledger(directory.cell(cell)).whole}
    arms = study.alignment.strategies
    seeds = [seed for seed in range(study.alignment.seeds) if sum(cell.seed == seed for cell in done) == len(arms)]
    folders = [folder for cell, folder in done.items() if cell.seed in seeds]
    told = [
        {"strategy": cell.strategy, **read_json(folder / HEADROOM, dict)}
        for cell, folder in done.items()
        if (folder / HEADROOM).exists()
    ]
    if not folders:
        return pd.DataFrame(), pd.DataFrame(told)
    keys = ["strategy", "seed"]
    rows = tables.frame(tables.Evaluation, *folders)
    last = rows[rows["round"] > 0].assign(
        kl_per_token=rows["log_ratio"] / rows["tokens"], fluency=rows["reference_log_prob"] / rows["tokens"]
    )
    out = last.groupby(keys, sort=False)[["reward", "judge", "kl_per_token", "fluency", "tokens"]].mean()
    start = rows[rows["round"] == 0].groupby(keys, sort=False)[["reward", "judge"]].mean().add_suffix("_at_first")
    wins = pd.concat(
        [win_rates(own).assign(seed=seed).set_index(keys)["rate"] for seed, own in rows.groupby("seed", sort=False)]
    )
    duels = tables.frame(tables.HeldoutDuel, *folders)
    duels = duels[(duels["round"] > 0) & (duels["true_margin"] != 0)]
    right = (np.sign(duels["margin"]) * np.sign(duels["true_margin"]) + 1) / 2
    accuracy = right.groupby([duels[key] for key in keys]).mean()
    columns = [start, wins.rename("wins"), accuracy.rename("accuracy"), _picked(folders, keys)]
    manifest = directory.manifest
    machine = ", ".join(map(str, manifest.get("machine", {}).values()))
    settings = f"{trained(study.alignment)}; {machine}"
    out = out.join(columns).reset_index().assign(commit=str(manifest.get("commit", "")), settings=settings)
    return out, pd.DataFrame(told)


def trained(alignment: Alignment) -> str:
    """Say what is trained, and how."""
    adapter, training = alignment.adapter, alignment.training
    return (
        f"LoRA of rank {adapter.rank} on the uppermost {adapter.layers} layers, learning rate {training.rate:g}, "
        f"{training.epochs} epochs, β = {training.beta:g}"
    )


def _picked(folders: Sequence[Path], keys: list[str]) -> pd.DataFrame:
    """Return what was asked: tokens a response, the true reward difference, the share of answers against it."""
    found = tables.frame(tables.Candidate, *folders)
    found = found[found["picked_position"].notna()]
    gap = found["reward_1"] - found["reward_2"]
    found = found.assign(
        picked_tokens=(found["tokens_1"] + found["tokens_2"]) / 2,
        picked_gap=gap.abs(),
        against_reward=((found["label"] > 0.5) != (gap > 0)).astype(float),
        prompts=found["prompt_index"],
    )
    kept = found.groupby(keys, sort=False)
    means = kept[["picked_tokens", "picked_gap", "against_reward"]].mean()
    return means.join(kept["prompts"].nunique()).join(kept["candidate"].size().rename("labels"))


def differences(table: pd.DataFrame, measure: str) -> dict[str, Estimate]:
    """Return each chosen arm's difference from random in a measure: paired by seed, Student's t at 95 %."""
    wide = table.pivot(index="seed", columns="strategy", values=measure)
    return {arm: mean(wide[arm] - wide["random"]) for arm in wide.columns if arm != "random"}


def _measured(estimate: Estimate, sign: bool = False) -> str:
    """Return a number with its interval, both to two digits behind the point."""
    return with_span(estimate.value, estimate.low, estimate.high, sign=sign)


def word(difference: Estimate) -> str:
    """Return what a difference from Random is said to be: undecided where its interval holds 0."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "undecided"


def drawn(table: pd.DataFrame) -> Figure:
    """Draw each arm's outcome seed by seed, with the mean; above it, the difference from Random."""
    figure, axes = figures.panels(len(DRAWN), width=2.7, height=3.0, legend=0)
    arms = list(dict.fromkeys(table["strategy"]))
    look = figures.looks(arms)
    for axis, measure in zip(axes, DRAWN, strict=True):
        wide = table.pivot(index="seed", columns="strategy", values=measure)[arms]
        for values in wide.to_numpy():
            axis.plot(range(len(arms)), values, color="0.85", lw=0.8, zorder=0)
        for place, arm in enumerate(arms):
            axis.plot([place] * len(wide), wide[arm], "o", ms=4, color=look[arm]["color"], alpha=0.5)
            axis.plot(place, wide[arm].mean(), "_", ms=22, mew=2, color=look[arm]["color"])
        apart = (_measured(found, sign=True) for found in differences(table, measure).values())
        axis.set_title("\n".join(apart), fontsize="medium")
        axis.set(xticks=range(len(arms)), xticklabels=[_broken(arm) for arm in arms], xlim=(-0.5, len(arms) - 0.5))
        axis.set_ylabel(NAMES[measure])
    return figure


def _broken(name: str) -> str:
    return name.replace("-", "-\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
