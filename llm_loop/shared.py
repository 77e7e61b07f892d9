"""Owns what all strategies of a seed have in common: work at θ0, made by the first cell that needs it.

``shared/seed-K/NAME/`` in the run's folder (``shared/all/`` for what seeds have in common too), each entry with a
ledger, so that nothing cut or altered is used; cells that run side by side wait for one another.  It is a cache: a cell
that finds nothing makes the same bytes itself, and the finished run does without it.  (What is kept elsewhere in the
run's folder stays there: ``llm_loop.tuning``.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from bandits.runs.directory import Ledger
from bandits.runs.files import DamagedError, write_bytes
from bandits.runs.text import dumps, loads

FOLDER = "shared"


class Shared:
    """A seed's work at θ0."""

    def __init__(self, folder: Path | None, write: bool = True) -> None:
        """Keep it in a folder; ``None`` keeps nothing, and ``write=False`` only reads."""
        self.folder, self.write = folder, write

    @classmethod
    def beside(cls, cell: Path, of: str, write: bool = True) -> Shared:
        """Return the entries in a folder ``of`` a cell's run; a cell outside a run keeps nothing."""
        run = cell.parent.parent if cell.parent.name == "cells" else None
        return cls(None if run is None else run / of, write)

    @classmethod
    def of_seed(cls, cell: Path, seed: int | None, write: bool = True) -> Shared:
        """Return what a cell's seed has in common, or what all seeds have (None)."""
        return cls.beside(cell, f"{FOLDER}/{'all' if seed is None else f'seed-{seed}'}", write)

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a JSON value, as it is read back."""
        return loads(self._one(f"{name}.json", lambda: dumps(make()).encode()).decode())

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors by name."""
        return load(self._one(f"{name}.safetensors", lambda: save(make())))

    def files(self, name: str, files: Sequence[str], make: Callable[[], Mapping[str, bytes]]) -> Mapping[str, bytes]:
        """Return the bytes of several files of one entry."""
        if self.folder is None:
            return make()
        with self._alone(name):
            ledger = Ledger(self.folder / name)
            if all(map(ledger.holds, files)):
                try:
                    return {file: ledger.read(file) for file in files}
                except DamagedError as error:
                    print(f"{error}", file=sys.stderr)
            content = make()
            if self.write:
                for file in files:
                    write_bytes(self.folder / name / file, content[file])
                ledger.close(*files)
            return content

    def _one(self, file: str, make: Callable[[], bytes]) -> bytes:
        return self.files(file.partition(".")[0], (file,), lambda: {file: make()})[file]

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Wait for whoever makes the same; where a file system has no locks, both make it, and write the same bytes."""
        assert self.folder is not None
        if not self.write:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / f".lock-{name}", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def turns(names: Iterable[str], seeds: int) -> list[tuple[str, int]]:
    """Return every (name, seed), two seeds at a time: seeds are whole early, and few cells wait for what one shares."""
    every, numbers = list(names), range(seeds)
    return [(name, seed) for first in numbers[::2] for name in every for seed in numbers[first : first + 2]]


def clear(run: Path) -> None:
    """Remove the entries of a run whose cells are done."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
