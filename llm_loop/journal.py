"""Owns what a cell has lived through: a record and an adapter per finished round, read back to go on from there.

A round counts when its record is there: ``records/round-NN.json`` is written after ``adapters/round-NN/`` (a PEFT
folder), and holds the SHA-256 of that folder's files and of itself.  What does not match is never used: the journal
ends before it, and the rounds from there on are played again.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from bandits.core.errors import InputError
from bandits.runs.files import read_json, write_json, write_text
from bandits.runs.text import dumps, loads
from llm_loop.models import Policy

Record = dict[str, Any]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Journal:
    """The finished rounds of a cell; round 0 is the initial model."""

    def __init__(self, folder: Path, write: bool = True) -> None:
        """Read what is there and whole; ``write=False`` reads only, as all processes but the main one do."""
        self.folder, self.write = folder, write
        self.rounds: list[Record] = []
        self._since = time.perf_counter()
        if write:
            for half_written in folder.rglob(".*.tmp"):  # of a process that was killed
                half_written.unlink()
        while (path := self._path(len(self.rounds))).exists():
            try:
                self.rounds.append(self._read(path))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                print(f"{path} is damaged ({error}); played again from this round on", file=sys.stderr)
                break

    def _path(self, number: int) -> Path:
        return self.folder / "records" / f"round-{number:02d}.json"

    def _adapter(self, number: int) -> Path:
        return self.folder / "adapters" / f"round-{number:02d}"

    def _read(self, path: Path) -> Record:
        entry = loads(path.read_text(encoding="utf-8"))
        body = {"adapter": entry["adapter"], "round": entry["round"]}
        if entry["sha256"] != _digest(dumps(body).encode()):
            raise ValueError("its SHA-256 is another")
        for name, digest in entry["adapter"].items():
            if _digest((self.folder / "adapters" / path.stem / name).read_bytes()) != digest:
                raise ValueError(f"{path.stem}/{name} has another SHA-256")
        return entry["round"]

    def append(self, record: Record, policy: Policy) -> None:
        """Write a finished round: θ first, then the record, which makes the round count; then the seconds spent."""
        number = len(self.rounds)
        self.rounds.append(loads(dumps(record)))  # as a run that goes on would read it
        if not self.write:
            return
        folder = self._adapter(number)
        policy.save(folder)
        files = {path.name: _digest(path.read_bytes()) for path in sorted(folder.iterdir()) if path.name[0] != "."}
        body = {"adapter": files, "round": record}
        write_text(self._path(number), dumps({"sha256": _digest(dumps(body).encode()), **body}) + "\n")
        self._note_seconds(policy)

    def _note_seconds(self, policy: Policy) -> None:
        path = self.folder / "timing.json"
        try:
            spent = dict(read_json(path)) if path.exists() else {}
        except (InputError, TypeError, ValueError):  # seconds are told, never relied on
            spent = {}
        seconds = dict(policy.meter.seconds)
        seconds["other"] = time.perf_counter() - self._since - sum(seconds.values())
        write_json(path, spent | {stage: round(spent.get(stage, 0.0) + s, 2) for stage, s in seconds.items()})
        policy.meter.seconds.clear()
        self._since = time.perf_counter()

    def theta(self, number: int, policy: Policy) -> dict[str, Tensor]:
        """Return θ after a round, by the policy's names of its matrices."""
        saved = load_file(self._adapter(number) / "adapter_model.safetensors")
        return {name: saved[name.replace(".default.", ".")] for name in policy.parameters}
