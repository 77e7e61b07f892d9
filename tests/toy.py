"""A study of cells that add numbers, with the kit's whole command line: ``python tests/toy.py smoke --output …``."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from bandits.runs import command
from bandits.runs.directory import Identity, Ledger, RunDirectory, config_of
from bandits.runs.execute import Report
from bandits.runs.files import read_json, write_frame, write_json, write_text
from bandits.runs.settings import Count, check


@dataclass(frozen=True)
class Toy:
    """Sums of squares."""

    count: Count = 4
    steps: Count = 3
    pause: float = 0.0
    """seconds a step"""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ToyCell:
    number: int
    cost: float = 1.0

    @property
    def key(self) -> str:
        return f"cell-{self.number}"


@dataclass(frozen=True)
class ToyStudy:
    toy: Toy
    experiment: str = "toy"
    gpu: bool = False

    def identity(self) -> Identity:
        return Identity(config_of(self.toy))

    def memory(self) -> dict[str, float]:
        return {"--steps": 8.0 * self.toy.steps}

    def count(self) -> int:
        return self.toy.count

    def cells(self) -> list[ToyCell]:
        return [ToyCell(number) for number in range(self.toy.count)]

    def play(self, cell: ToyCell, folder: Path) -> list[str]:
        """Add a square a step, each step a file; then a table of all."""
        assert torch.get_num_threads() == 1
        ledger = Ledger(folder)
        rows = []
        for step in range(self.toy.steps):
            name = f"step-{step}.json"
            if not ledger.holds(name):
                time.sleep(self.toy.pause)
                write_json(folder / name, {"square": (cell.number + step) ** 2})
                with (folder.parents[3] / "trace.txt").open("a") as trace:  # in the output folder
                    trace.write(f"{cell.key} {step} {os.getpid()}\n")
                ledger.add(name, share=(step + 1) / self.toy.steps)
            rows.append({"cell": cell.number, "step": step} | read_json(folder / name, dict))
        write_frame(folder / "table.csv", pd.DataFrame(rows))
        return ["table.csv"]

    def finish(self, directory: RunDirectory) -> None:
        table = directory.frames(self.cells(), "table.csv")
        write_frame(directory.path / "all.csv", table)
        write_json(directory.path / "findings.json", [f"the sum is {int(table['square'].sum())}"])
        write_text(directory.path / "index.html", f"<p>{int(table['square'].sum())}</p>")

    def report(self, directory: RunDirectory) -> Report:
        return Report(tuple(f"• {line}" for line in read_json(directory.path / "findings.json", list)))


COMMAND = command.Command("toy", {"smoke": ("a few cells", Toy())}, ToyStudy, "--count")


def main(arguments: list[str]) -> int:
    return command.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
