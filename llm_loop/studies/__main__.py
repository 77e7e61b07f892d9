"""The paper's figures as studies, in as many sittings as they take: ``python -m llm_loop.studies STUDY``.

A study is a few runs of the loop and what is read off them.  Every run goes on where it stopped, also shared out by
``--cells i/n``; after each call the table, the figure and the page of the study say what the finished seeds show, so
nothing waits for the last cell.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import tyro
from matplotlib.figure import Figure

from bandits.runs import command
from bandits.runs.directory import Ledger, RunDirectory
from bandits.runs.figures import looks, panels, png
from bandits.runs.files import write_bytes, write_frame, write_text
from bandits.runs.settings import unknown
from bandits.runs.stats import mean
from llm_loop import tables
from llm_loop.__main__ import COMMAND
from llm_loop.report.evaluate import against, win_rates
from llm_loop.report.findings import compared, number, span
from llm_loop.run import AlignmentStudy

Preset = Literal["smoke", "full"]
ALL = ("activedpo-normalised", "apo", "aplp", "random")
SIZES = (256, 1024, 4096, 8192, 32768)
FIXED = ("--pool", "80", "--responses", "8", "--pool-temperature", "1.4")
FULL = ("--seeds", "8")


@dataclass(frozen=True)
class Part:
    """One run: the preset that it begins with and the options that change it."""

    name: str
    options: tuple[str, ...]
    strategies: tuple[str, ...] = ALL


@dataclass(frozen=True)
class Study:
    """A question, the runs that answer it, and what is drawn against labels."""

    title: str
    question: str
    full: tuple[Part, ...]
    measures: tuple[str, ...] = ("reward", "judge", "kl_per_token", "fluency")

    def parts(self, preset: Preset) -> tuple[Part, ...]:
        """Return the runs of a preset; the smoke preset plays every one on a tiny model."""
        return self.full if preset == "full" else tuple(map(_tiny, self.full))


def _tiny(part: Part) -> Part:
    """Return a run with the same strategies and switches on a tiny model."""
    kept = [o for pair in zip(part.options[::2], part.options[1::2], strict=True) if pair[0] in SWITCHES for o in pair]
    small = ("--pool", "5", "--responses", "4") if "--pool" in part.options else ()
    return Part(part.name, (*kept, *small, "--seeds", "2"), part.strategies)


SWITCHES = ("--sketch-size", "--sketch", "--pool-temperature", "--beta", "--lora-init")
ONCE = ("--rounds", "1", "--batch", "48", "--prompts-per-round", "24")
RATES = ("5e-4", "1e-3", "2e-3")

STUDIES: dict[str, Study] = {
    "1": Study(
        "Figure 1: held-out reward against labels",
        "Does choosing the duels buy more reward per label than asking blindly?",
        (Part("films", ("--prompts", "films", *FULL)), Part("headlines", ("--prompts", "headlines", *FULL))),
    ),
    "3": Study(
        "Figure 3: normalised gradients",
        "Do gradients scaled to length 1, by response or by duel, choose better than gradients as they are?",
        (
            Part(
                "fixed pool",
                (*FIXED, *FULL),
                ("activedpo", "activedpo-normalised", "activedpo-normalised-duel", "random"),
            ),
        ),
    ),
    "4": Study(
        "Figure 4: the dimension that gradients are projected to",
        "How small may the projection be before picks, and what is learned from them, differ?",
        (
            *(Part(str(s), (*FIXED, *FULL, "--sketch-size", str(s)), ("activedpo-normalised",)) for s in SIZES),
            Part("exact", (*FIXED, *FULL, "--sketch", "none"), ("activedpo-normalised",)),
        ),
    ),
    "5": Study(
        "Figure 5: win rate against the initial model",
        "How often does a trained policy's response beat the initial model's, by the reward and by the judge?",
        (Part("films", ("--prompts", "films", *FULL)), Part("headlines", ("--prompts", "headlines", *FULL))),
        ("wins", "judge_wins"),
    ),
    "regime": Study(
        "The regime: reward gained at which loss of fluency",
        "Which learning rate and β raise reward and judge while the text stays language (fluency lost at most 0.3 nats "
        "a token, KL at most 0.5 nats a token)?",
        tuple(
            Part(f"rate {rate}, β {beta}", (*ONCE, "--seeds", "2", "--rate", rate, "--beta", beta), ("random",))
            for rate in RATES
            for beta in ("0.1", "0.3")
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a study is played."""

    preset: Preset = "smoke"
    """smoke: every run on a tiny model, in seconds; full: the real one, in hours"""
    output: Path = Path("results")
    """where the runs are"""
    pages: Path = Path("docs/studies")
    """where the study's table, figure and page are written"""
    cells: str = "1/1"
    """the i-th of n parts of the cells, as i/n"""
    jobs: int = 0
    """cells side by side; 0: one per core"""
    show: Annotated[bool, tyro.conf.arg(name="show-only")] = False
    """play nothing; write down what the finished cells show"""


def play(name: str, options: Options) -> int:
    """Play what is missing of a study, then write its table, figure and page."""
    study = STUDIES[name]
    parts, frames = study.parts(options.preset), []
    for part in parts:
        arguments = [
            "smoke" if options.preset == "smoke" else "quick",
            *("--strategies", *part.strategies),
            *part.options,
            *("--output", str(options.output), "--cells", options.cells, "--jobs", str(options.jobs)),
        ]
        if not options.show and (status := command.run(COMMAND, arguments)):
            return status
        frames.append(finished(part, arguments))
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True) if any(map(len, frames)) else None
    if table is None:
        command.say("no seed of this study is finished yet")
        return 0
    command.say(f"page: {write(name, study, parts, table, options)}")
    return 0


def finished(part: Part, arguments: Sequence[str]) -> pd.DataFrame:
    """Return a row per strategy, seed and round of a run, of the seeds that every strategy has finished."""
    preset, options = command.parse(COMMAND, arguments)
    study = AlignmentStudy.of(options.settings)
    directory = RunDirectory(options.output, study.experiment, preset, study.identity())
    done = {cell: directory.cell(cell) for cell in study.cells() if Ledger(directory.cell(cell)).whole}
    seeds = [seed for seed in range(study.alignment.seeds) if sum(c.seed == seed for c in done) == len(part.strategies)]
    folders = [folder for cell, folder in done.items() if cell.seed in seeds]
    if not folders:
        return pd.DataFrame()
    rows = tables.frame(tables.Evaluation, *folders)
    rows = rows.assign(
        kl_per_token=rows["log_ratio"] / rows["tokens"], fluency=rows["reference_log_prob"] / rows["tokens"]
    )
    keys = ["strategy", "seed", "round"]
    out = rows.groupby(keys, sort=False)[["reward", "judge", "kl_per_token", "fluency", "tokens"]].mean()
    for column, measure in (("wins", "reward"), ("judge_wins", "judge")):
        by_seed = [
            win_rates(own, measure).assign(seed=seed).set_index(keys)["rate"].rename(column)
            for seed, own in rows.groupby("seed", sort=False)
        ]
        out = out.join(pd.concat(by_seed))
    labels = tables.frame(tables.Round, *folders).set_index(keys)["labels"]
    return out.join(labels).join(_picks(folders, keys)).reset_index().assign(part=part.name)


def _picks(folders: Sequence[Path], keys: list[str]) -> pd.Series:
    """Return which duels were picked in every round, so that picks of several runs can be compared."""
    found = tables.frame(tables.Candidate, *folders)
    picked = found[found["picked_position"].notna()]
    names = picked["prompt_index"].astype(str) + ":" + picked["candidate"].astype(str)
    return names.groupby([picked[key] for key in keys]).apply(" ".join).rename("picks")


def write(name: str, study: Study, parts: Sequence[Part], table: pd.DataFrame, options: Options) -> Path:
    """Write a study's table, figure and page; return the page."""
    stem = f"figure-{name}" if name.isdigit() else name
    folder = options.pages if options.preset == "full" else options.output / "studies"
    write_frame(folder / f"{stem}.csv", table.round(6))
    write_bytes(folder / f"{stem}.png", png(_drawn(study, table)))
    seeds = {part.name: table[table["part"] == part.name]["seed"].nunique() for part in parts}
    lines = [
        f"# {study.title}",
        "",
        study.question,
        "",
        f"Command: `python -m llm_loop.studies {name} --preset {options.preset}`.  Finished paired seeds: "
        + ", ".join(f"{count} of {part}" for part, count in seeds.items())
        + ".",
        "",
        f"![{study.title}]({stem}.png)",
        "",
        *verdicts(study, parts, table),
        "",
        *_final(study, table),
    ]
    write_text(folder / f"{stem}.md", "\n".join(lines) + "\n")
    return folder / f"{stem}.md"


def verdicts(study: Study, parts: Sequence[Part], table: pd.DataFrame) -> list[str]:
    """Say how strategies compare with Random, and runs that share their pool with the last of them."""
    lines = []
    for part in parts:
        own = table[table["part"] == part.name].assign(prompt_index=0)
        if own.empty or "random" not in part.strategies or len(part.strategies) < 2:
            continue
        lines += [f"- {part.name}: {compared(row, 'random')}" for row in against(own).to_dict("records")]
    exact = table[table["part"] == parts[-1].name]
    if len(parts) > 1 and parts[-1].name == "exact" and len(exact):
        kept = _first_picks(exact)
        for part in parts[:-1]:
            found = _first_picks(table[table["part"] == part.name])
            shares = [len(kept[seed] & picks) / len(kept[seed]) for seed, picks in found.items() if seed in kept]
            if shares:
                share = mean(pd.Series(shares))
                lines.append(
                    f"- dimension {part.name}: {share.value:.0%} {span(share.low, share.high)} of the exact gradients' "
                    f"first picks, {len(shares)} seeds."
                )
    return lines or ["No comparison can be made yet."]


def _first_picks(table: pd.DataFrame) -> dict[int, set[str]]:
    first = table[table["round"] == 1]
    return {seed: set(str(picks).split()) for seed, picks in zip(first["seed"], first["picks"], strict=True)}


def _final(study: Study, table: pd.DataFrame) -> list[str]:
    """Return a table of the last round, means over seeds with intervals."""
    last = table[table["round"] == table.groupby("part")["round"].transform("max")]
    lines = [
        f"| run | strategy | seeds | {' | '.join(study.measures)} |",
        f"|---|---|---|{'---|' * len(study.measures)}",
    ]
    for (part, strategy), own in last.groupby(["part", "strategy"], sort=False):
        cells = []
        for measure in study.measures:
            found = mean(own[measure])
            cells.append(f"{number(found.value, sign=False)} {span(found.low, found.high, sign=False)}")
        lines.append(f"| {part} | {strategy} | {len(own)} | {' | '.join(cells)} |")
    return lines


def _drawn(study: Study, table: pd.DataFrame) -> Figure:
    """Draw each measure against labels, a line per run and strategy, over the seeds."""
    figure, axes = panels(len(study.measures), 2, legend=0)
    several = table["strategy"].nunique() > 1
    look = looks(list(table["strategy"].unique()))
    for axis, measure in zip(axes, study.measures, strict=True):
        for (part, strategy), own in table.groupby(["part", "strategy"], sort=False):
            line = own.groupby("labels")[measure].mean().dropna()
            style = look[str(strategy)] if several and table["part"].nunique() == 1 else {}
            axis.plot(line.index, line.to_numpy(), marker="o", ms=3, label=f"{part}, {strategy}", **style)
        axis.set(xlabel="labels bought", ylabel=measure)
    axes[0].legend(fontsize=7)
    return figure


def run(arguments: Sequence[str]) -> int:
    """Play the named study."""
    if not arguments or arguments[0] in ("-h", "--help"):
        command.say("usage: python -m llm_loop.studies STUDY [--preset smoke|full] [--cells i/n]\n\nstudies:")
        command.say(*(f"  {name:<8}{study.title}" for name, study in STUDIES.items()))
        return 0 if arguments else 2
    name = arguments[0].removeprefix("figure-")
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return play(name, command.read(Options, arguments[1:], f"python -m llm_loop.studies {name}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return command.guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
