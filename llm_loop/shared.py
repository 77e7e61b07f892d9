"""Owns what all strategies of a seed have in common: work at θ0, made by the first cell that needs it.

``shared/seed-K/NAME/`` in the run's folder (``shared/all/`` for what seeds have in common too), each entry with a
ledger, so that nothing cut or altered is used; cells that run side by side wait for one another.  It is a cache: a cell
that finds nothing makes the same bytes itself, and the finished run does without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
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
        """Return the entries ``of`` a seed, or all, for a cell's folder; a cell outside a run keeps nothing."""
        run = cell.parent.parent if cell.parent.name == "cells" else None
        return cls(None if run is None else run / FOLDER / of, write)

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a JSON value, as it is read back."""
        return loads(self._bytes(f"{name}.json", lambda: dumps(make()).encode()).decode())

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors by name."""
        return load(self._bytes(f"{name}.safetensors", lambda: save(make())))

    def _bytes(self, file: str, make: Callable[[], bytes]) -> bytes:
        if self.folder is None:
            return make()
        place = self.folder / file.partition(".")[0]
        with self._alone(file):
            ledger = Ledger(place)
            if ledger.holds(file):
                try:
                    return ledger.read(file)
                except DamagedError as error:
                    print(f"{error}", file=sys.stderr)
            content = make()
            if self.write:
                write_bytes(place / file, content)
                ledger.close(file)
            return content

    @contextlib.contextmanager
    def _alone(self, file: str) -> Iterator[None]:
        """Wait for whoever makes the same; where a file system has no locks, both make it, and write the same bytes."""
        assert self.folder is not None
        if not self.write:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / f".lock-{file}", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def clear(run: Path) -> None:
    """Remove the entries of a run whose cells are done."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
