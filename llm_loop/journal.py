"""Owns what a cell has lived through: a record and an adapter per finished round, read back to go on from there.

``records/round-NN.json`` and ``adapters/round-NN/`` (a PEFT folder) count once the cell's ledger lists them, with their
SHA-256.  What does not match is never used: the journal ends before it, and the rounds from there on are played again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from bandits.runs.directory import TIMING, Ledger, read_timing
from bandits.runs.files import DamagedError, write_json, write_text
from bandits.runs.text import dumps, loads
from llm_loop.agreement import STAGE as CHECK
from llm_loop.models import Policy

Record = dict[str, Any]


class Journal:
    """The finished rounds of a cell; round 0 is the initial model."""

    def __init__(self, folder: Path, rounds: int, write: bool = True) -> None:
        """Read what is there and whole; ``write=False`` reads only, as all processes but the main one do.

        ``rounds`` is how many there will be.
        """
        self.folder, self.write, self._expected = folder, write, rounds + 1
        self.rounds: list[Record] = []
        self._ledger, self._since = Ledger(folder), time.perf_counter()
        try:
            while all(map(self._ledger.holds, self._names(len(self.rounds)))):
                content = [self._ledger.read(name) for name in self._names(len(self.rounds))]
                self.rounds.append(loads(content[-1].decode()))
        except DamagedError as error:
            print(f"{error}; round {len(self.rounds)} and what follows are played again", file=sys.stderr)

    def _names(self, number: int) -> list[str]:
        adapter = f"adapters/round-{number:02d}"
        return [f"{adapter}/adapter_config.json", f"{adapter}/adapter_model.safetensors", self._record(number)]

    def _record(self, number: int) -> str:
        return f"records/round-{number:02d}.json"

    @property
    def files(self) -> list[str]:
        """All files of the finished rounds, by their paths in the cell's folder."""
        return [name for number in range(len(self.rounds)) for name in self._names(number)]

    def append(self, record: Record, policy: Policy) -> None:
        """Write a finished round: θ, then the record, then the ledger, which makes the round count; and the seconds."""
        number, text = len(self.rounds), dumps(record)
        self.rounds.append(loads(text))  # as a run that goes on would read it
        if self.write:
            policy.save(self.folder / "adapters" / f"round-{number:02d}")
            write_text(self.folder / self._record(number), text + "\n")
            self._ledger.replace(*self.files, share=len(self.rounds) / self._expected)
            self._note_seconds(policy)

    def _note_seconds(self, policy: Policy) -> None:
        """Add the seconds of every stage; they are told, never relied on."""
        spent = read_timing(self.folder)
        seconds: dict[str, float] = dict(policy.meter.seconds)
        checked = seconds.get(CHECK, 0.0)  # before this journal was opened
        seconds["other"] = time.perf_counter() - self._since - sum(seconds.values()) + checked
        total = {stage: round(spent.get(stage, 0.0) + s, 2) for stage, s in seconds.items()}
        write_json(self.folder / TIMING, spent | total)
        policy.meter.seconds.clear()
        self._since = time.perf_counter()

    def theta(self, number: int, policy: Policy) -> dict[str, Tensor]:
        """Return θ after a round, by the policy's names of its matrices."""
        return policy.theta_of(load(self._ledger.read(self._names(number)[1])))
