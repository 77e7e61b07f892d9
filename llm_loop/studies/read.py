"""Owns what is read off a study's runs: a row per strategy, seed and round of the seeds that are finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd

from bandits.runs import command
from bandits.runs.directory import Ledger, RunDirectory
from llm_loop import tables
from llm_loop.__main__ import COMMAND
from llm_loop.config import Alignment
from llm_loop.report.evaluate import accuracies, learning_curves, longer_wins, per_token, same_policy, win_rates
from llm_loop.run import AlignmentStudy
from llm_loop.studies.plans import Part

KEYS = ["strategy", "seed", "round"]
MEASURES = ("reward", "judge", "kl_per_token", "fluency", "tokens")
"""means over held-out responses"""
OF_ROUNDS = ("bits_per_byte", "chosen_log_ratio", "rejected_log_ratio", "chosen_fell_share", "training_accuracy")
"""what the loop says of a round itself"""
WINS = {"wins": "reward", "judge_wins": "judge"}
"""win rates, by the measure that decides who wins"""
DIGITS, COARSE = 4, dict.fromkeys(("tokens", "chosen_log_ratio", "rejected_log_ratio"), 2)
"""of a table's numbers, and of those in tokens and nats; a page is made of the numbers as its table has them"""


@dataclass(frozen=True, eq=False)
class Found:
    """A part's finished seeds."""

    table: pd.DataFrame
    """part, strategy, seed, round, labels, the measures' means over held-out prompts, what the loop says of the round,
    win rates and what they are to be compared with, the picks; model, options, machine and commit of the run.  An older
    table lacks some of these columns."""

    @property
    def seeds(self) -> int:
        """How many there are."""
        return self.table["seed"].nunique() if len(self.table) else 0

    def of_run(self, column: str) -> str:
        """Return what a column says of the run."""
        return str(self.table[column].iloc[0]) if len(self.table) else ""

    def whole(self, alignment: Alignment) -> bool:
        """Whether it has every strategy with every seed of a run, up to the last label."""
        if self.table.empty:
            return False
        last = self.table[self.table["labels"] == alignment.rounds * alignment.batch]
        wanted = set(product(alignment.strategies, range(alignment.seeds)))
        return wanted <= set(zip(last["strategy"], last["seed"], strict=True))


def run_of(arguments: Sequence[str]) -> tuple[AlignmentStudy, RunDirectory]:
    """Return the run that a command line names, and its folder."""
    preset, options = command.parse(COMMAND, arguments)
    study = AlignmentStudy.of(options.settings)
    return study, RunDirectory(options.output, study.experiment, preset, study.identity())


def finished(part: Part, study: AlignmentStudy, directory: RunDirectory, widths: bool = False) -> Found:
    """Return what the seeds of a run say that every strategy has finished; if asked, with the first round's widths.

    A round that asked some of the held-out prompts has the initial model's mean on all of them plus the mean change on
    those it asked; shares are of those it asked.
    """
    done = {cell: directory.cell(cell) for cell in study.cells() if Ledger(directory.cell(cell)).whole}
    seeds = [seed for seed in range(study.alignment.seeds) if sum(c.seed == seed for c in done) == len(part.strategies)]
    folders = [folder for cell, folder in done.items() if cell.seed in seeds]
    if not folders:
        return Found(pd.DataFrame())
    rows = per_token(tables.frame(tables.Evaluation, *folders))
    rounds = tables.frame(tables.Round, *folders)
    curves = [learning_curves(rows, rounds, measure).set_index([*KEYS, "labels"])[measure] for measure in MEASURES]
    out = pd.concat(curves, axis=1).reset_index("labels").join(rounds.set_index(KEYS)[list(OF_ROUNDS)])
    out = out.join(rows.groupby(KEYS)["ended"].mean())
    for column, measure in WINS.items():
        out = out.join(_by_seed(rows, partial(win_rates, measure=measure), "rate").rename(column))
    out = out.join(_by_seed(tables.frame(tables.HeldoutDuel, *folders), accuracies, "accuracy"))
    out = out.join(_nulls(rows))
    offered = tables.frame(tables.Candidate, *folders)
    out = out.join(_picks(offered))
    if widths:
        out = out.join(_first_widths(offered))
    out = out.reset_index().assign(part=part.name)
    out = out.assign(model=study.alignment.model, options=part.digest, **about(directory))
    return Found(out.round(DIGITS).round(COARSE))


def kept(part: Part, file: Path) -> Found:
    """Return what a study's table has of a part: of a run that may be gone, or that other code played.

    Rows of other options are another run's; rows that name none are older than the column, and taken to be the part's.
    """
    table = read(file)
    if table.empty:
        return Found(table)
    own = table[table["part"] == part.name]
    return Found(own[own["options"].isin([part.digest]) | own["options"].isna()] if "options" in own else own)


NAMES = ("part", "strategy", "machine", "commit", "options", "model", "chosen_by")
"""columns of words, as far as a table has them"""


def read(file: Path) -> pd.DataFrame:
    """Return a study's table; empty where none was written yet."""
    if not file.exists():
        return pd.DataFrame()
    # Names may look like numbers: a projection's dimension, or the commit 0680098.
    table = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(NAMES, str))
    return table.round(DIGITS).round(COARSE)


def about(directory: RunDirectory) -> dict[str, str]:
    """Return which machine played a run, and at which commit, as columns of a table."""
    manifest = directory.manifest if (directory.path / "manifest.json").exists() else {}
    return {
        "machine": ", ".join(map(str, manifest.get("machine", {}).values())),
        "commit": str(manifest.get("commit", ""))[:7],
    }


def _by_seed(rows: pd.DataFrame, measured: Callable[[pd.DataFrame], pd.DataFrame], column: str) -> pd.Series:
    """Return a column of what is measured of every seed alone."""
    parts = [measured(own).assign(seed=seed) for seed, own in rows.groupby("seed", sort=False)]
    return pd.concat(parts).set_index(KEYS)[column]


def _nulls(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what a win rate is to be compared with, seed by seed.

    ``longer_wins``, in the last round: how often the longer of the initial and the trained policy's responses has more
    reward.  ``null_wins`` and ``null_judge_wins``, in round 0, in the first of every two seeds: how often the
    initial responses of the other beat its own, two draws of one policy.
    """
    last, seeds = rows["round"].max(), sorted(rows["seed"].unique())
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for seed in seeds:
        for strategy, rate in longer_wins(rows[rows["seed"] == seed]).items():
            found[strategy, seed, last] = {"longer_wins": rate.value}
    for first, second in zip(seeds[::2], seeds[1::2], strict=False):
        pair = rows[rows["seed"].isin((first, second))]
        null = {f"null_{column}": float(same_policy(pair, by)["rate"].iloc[0]) for column, by in WINS.items()}
        found |= {(strategy, first, 0): null for strategy in rows["strategy"].unique()}
    return pd.DataFrame(found.values(), index=pd.MultiIndex.from_tuples(found, names=KEYS))


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
