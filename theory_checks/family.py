"""Owns the shape of a family of claims: cells to run, claims declared beforehand, their measurement, words, figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bandits.core.rng import Key
from bandits.runs.page import Picture
from bandits.runs.stats import Estimate
from bandits.sim.figures import png
from theory_checks.claims import Claim, Verdict

__all__ = ["Family", "Picture", "Run", "Verdict", "blocks", "picture"]


@dataclass(frozen=True)
class Run:
    """What a cell is given: the run's seed, and a folder of its own for checkpoints."""

    seed: int
    folder: Path

    def key(self, *path: str | int, replicates: range) -> Key:
        """Return the source of these replicates; the same replicate has the same key in any block."""
        return Key(self.seed, tuple(replicates)).fold_in(*path)


class Family(ABC):
    """One family of claims; abstract.  A frozen dataclass that is its own configuration."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The word that begins the names of its claims."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the family is about, a sentence."""

    @abstractmethod
    def cells(self) -> list[str]:
        """Name the cells; each runs alone, in any process, and is what a resumed run does not do again."""

    def memory(self) -> dict[str, float]:
        """Estimate the bytes that a cell needs, each part by the options that it grows with."""
        return {}

    def count(self) -> int:
        """How many cells there are."""
        return len(self.cells())

    @abstractmethod
    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Run one cell; return a tidy table."""

    @abstractmethod
    def claims(self) -> list[Claim]:
        """Declare the claims, before anything is run."""

    @abstractmethod
    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Measure every declared claim from the table of all cells."""

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Say what was found, with numbers."""
        return []

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw what was found."""
        return []

    def numbers(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return a small table of numbers for the page; empty if there is none."""
        return pd.DataFrame()


def blocks(replicates: int, size: int) -> list[range]:
    """Split replicates into blocks of at most ``size``: the unit of parallel work and of resuming."""
    return [range(start, min(start + size, replicates)) for start in range(0, replicates, size)]


def picture(name: str, caption: str, figure: Figure) -> Picture:
    """Return a finished figure and close it."""
    done = Picture(name, caption, png(figure))
    plt.close(figure)
    return done
