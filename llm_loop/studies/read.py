"""Owns what is read off a study's runs: a row per strategy, seed and round of the seeds that are finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bandits.runs import command
from bandits.runs.directory import Ledger, RunDirectory
from llm_loop import tables
from llm_loop.__main__ import COMMAND
from llm_loop.report.evaluate import learning_curves, per_token, win_rates
from llm_loop.run import AlignmentStudy
from llm_loop.studies.plans import Part

KEYS = ["strategy", "seed", "round"]
MEASURES = ("reward", "judge", "kl_per_token", "fluency", "tokens")


@dataclass(frozen=True)
class Found:
    """A part's finished seeds."""

    table: pd.DataFrame
    """part, strategy, seed, round, labels, the measures' means over held-out prompts, the picks; model, machine and
    commit of the run"""

    @property
    def seeds(self) -> int:
        """How many there are."""
        return self.table["seed"].nunique() if len(self.table) else 0

    def of_run(self, column: str) -> str:
        """Return what a column says of the run."""
        return str(self.table[column].iloc[0]) if len(self.table) else ""


def run_of(arguments: Sequence[str]) -> tuple[AlignmentStudy, RunDirectory]:
    """Return the run that a command line names, and its folder."""
    preset, options = command.parse(COMMAND, arguments)
    study = AlignmentStudy.of(options.settings)
    return study, RunDirectory(options.output, study.experiment, preset, study.identity())


def finished(part: Part, arguments: Sequence[str], widths: bool = False) -> Found:
    """Return what the seeds of a run say that every strategy has finished; if asked, with the first round's widths.

    A round that asked some of the held-out prompts has the initial model's mean on all of them plus the mean change on
    those it asked.
    """
    study, directory = run_of(arguments)
    done = {cell: directory.cell(cell) for cell in study.cells() if Ledger(directory.cell(cell)).whole}
    seeds = [seed for seed in range(study.alignment.seeds) if sum(c.seed == seed for c in done) == len(part.strategies)]
    folders = [folder for cell, folder in done.items() if cell.seed in seeds]
    if not folders:
        return Found(pd.DataFrame())
    rows = per_token(tables.frame(tables.Evaluation, *folders))
    rounds = tables.frame(tables.Round, *folders)
    curves = [learning_curves(rows, rounds, measure).set_index([*KEYS, "labels"])[measure] for measure in MEASURES]
    out = pd.concat(curves, axis=1).reset_index("labels")
    for column, measure in (("wins", "reward"), ("judge_wins", "judge")):
        by_seed = [
            win_rates(own, measure).assign(seed=seed).set_index(KEYS)["rate"].rename(column)
            for seed, own in rows.groupby("seed", sort=False)
        ]
        out = out.join(pd.concat(by_seed))
    offered = tables.frame(tables.Candidate, *folders)
    out = out.join(_picks(offered))
    if widths:
        out = out.join(_first_widths(offered))
    out = out.reset_index().assign(part=part.name)
    return Found(out.assign(model=study.alignment.model, **about(directory)))


def kept(part: Part, file: Path) -> Found:
    """Return what a study's table has of a part: of a run that may be gone, or that other code played."""
    table = read(file)
    return Found(table if table.empty else table[table["part"] == part.name])


NAMES = ("part", "strategy", "machine", "commit", "model", "chosen_by")
"""columns of words, as far as a table has them"""


def read(file: Path) -> pd.DataFrame:
    """Return a study's table; empty where none was written yet."""
    if not file.exists():
        return pd.DataFrame()
    # Names may look like numbers: a projection's dimension, or the commit 0680098.
    return pd.read_csv(file, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(NAMES, str))


def about(directory: RunDirectory) -> dict[str, str]:
    """Return which machine played a run, and at which commit, as columns of a table."""
    manifest = directory.manifest if (directory.path / "manifest.json").exists() else {}
    return {
        "machine": ", ".join(map(str, manifest.get("machine", {}).values())),
        "commit": str(manifest.get("commit", ""))[:7],
    }


def _picks(offered: pd.DataFrame) -> pd.Series:
    """Return which duels were picked in every round, so that picks of several runs can be compared."""
    picked = offered[offered["picked_position"].notna()]
    names = picked["prompt_index"].astype(str) + ":" + picked["candidate"].astype(str)
    return names.groupby([picked[key] for key in KEYS]).apply(" ".join).rename("picks")


def _first_widths(offered: pd.DataFrame) -> pd.Series:
    """Return the widths of the first round's duels, in their order, to four digits."""
    first = offered[offered["round"] == 1]
    texts = first["width"].map("{:.4g}".format)
    return texts.groupby([first[key] for key in KEYS]).apply(" ".join).rename("widths")
