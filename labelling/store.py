"""Owns numbers that cost a pass through a model: kept on disk by their content's name, made once, never twice.

A folder holds ``rows.bin``, numbers in order of making, and ``ids.txt``, a line a row: its id and a hash of them,
written after they are on disk.  Rows are made and count by chunks, whose last line has a mark: a killed process loses
the chunk it was at and nothing else, and makes it again as a whole, since a row's last digits may hang on the rows that
pass through the model beside it; from the chunk of the first row that is not as it was written on, all are made again.
The folder's name is a hash of all that the numbers depend on, so another model's are never taken for this one's.  Knows
nothing of models.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from bandits.core.errors import InputError
from bandits.runs.files import DamagedError, WriteError, read_json, sha256, write_json
from labelling.queries import content_id

ID = 16  # characters of an id, and of a row's hash
LINE = 2 * ID + 2
WITHIN, LAST = b" ", b"."  # between id and hash: of a chunk's rows, and of its last
CHUNK = 256  # rows that are made and written at once
Make = Callable[[list[int]], Float[Tensor, "k size"]]
"""Makes the rows of some items, by their places."""


class Store:
    """A table on disk of ``size`` numbers a row."""

    def __init__(self, root: Path, identity: Mapping[str, Any], size: int, dtype: str = "float32") -> None:
        """Name the folder by ``identity``; nothing is written yet."""
        self.identity = dict(identity) | {"size": size, "dtype": dtype}
        self.folder = root / content_id(self.identity)
        self.size, self.dtype = size, np.dtype(dtype)
        self._places: dict[str, int] | None = None
        self._lost = 0  # rows of the chunk of the first that is not as it was written, and of those behind it

    @property
    def _rows(self) -> Path:
        return self.folder / "rows.bin"

    @property
    def _ids(self) -> Path:
        return self.folder / "ids.txt"

    @property
    def places(self) -> dict[str, int]:
        """Where each row lies, by its id, in the chunks before the first that is not as it was written."""
        if self._places is None:
            lines = self._lines()
            true = self._signed(line[:ID] for line in lines)
            kept = itertools.takewhile(
                lambda pair: pair[0].replace(LAST, WITHIN) == pair[1], zip(lines, true, strict=False)
            )
            ends = [place + 1 for place, (line, _) in enumerate(kept) if LAST in line]
            whole = lines[: ends[-1]] if ends else []
            self._places = {line[:ID].decode(): place for place, line in enumerate(whole)}
            self._lost = len(lines) - len(whole)
        return self._places

    def _lines(self) -> list[bytes]:
        """Return the lines that were written to their end, without it."""
        return self._ids.read_bytes().split(b"\n")[:-1] if self._ids.exists() else []

    def _signed(self, names: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines that rows of these names have, as far as their numbers are there."""
        width = self.size * self.dtype.itemsize
        if self._rows.exists():
            with self._rows.open("rb") as rows:
                for name in names:
                    row = rows.read(width)
                    if len(row) < width:
                        return
                    yield self._line(name, row)

    def _line(self, name: bytes, row: bytes) -> bytes:
        return name + WITHIN + sha256(self.folder.name.encode() + name + row)[:ID].encode()

    def missing(self, ids: Sequence[str]) -> list[int]:
        """Return the places in ``ids`` of rows that are not there, each id once."""
        known, found = self.places, dict[str, int]()
        for place, name in enumerate(ids):
            if name not in known:
                found.setdefault(name, place)
        return list(found.values())

    def fill(self, ids: Sequence[str], make: Make, what: str) -> None:
        """Make the rows that are not there, with progress on standard error."""
        missing = self.missing(ids)
        if not missing:
            return
        if self._lost:
            print(
                f"{self.folder}: {self._lost} rows are not as this version writes them; they are made again",
                file=sys.stderr,
            )
            self._lost = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            need = len(missing) * self.size * self.dtype.itemsize
            if need > free:
                raise InputError(
                    f"{what} of {len(missing)} rows need {need} bytes in {self.folder}, and {free} are free"
                )
            write_json(self.folder / "identity.json", self.identity)
            with tqdm(total=len(ids), initial=len(ids) - len(missing), desc=what, disable=None, file=sys.stderr) as bar:
                for start in range(0, len(missing), CHUNK):
                    part = missing[start : start + CHUNK]
                    self._append([ids[place] for place in part], make(part))
                    bar.update(len(part))
        except OSError as error:
            raise WriteError(
                f"cannot write {self.folder}: {error.strerror or error}; free space and give the same command again"
            ) from None

    def _append(self, names: Sequence[str], rows: Tensor) -> None:
        content = np.ascontiguousarray(rows.numpy().astype(self.dtype))
        count = len(self.places)
        lines = [self._line(name.encode(), row.tobytes()) for name, row in zip(names, content, strict=True)]
        with open(self._rows, "r+b" if self._rows.exists() else "w+b") as file:
            file.seek(count * self.size * self.dtype.itemsize)
            file.truncate()
            file.write(content.tobytes())
            file.flush()
            os.fsync(file.fileno())
        with open(self._ids, "r+b" if self._ids.exists() else "w+b") as file:
            file.seek(count * LINE)
            file.truncate()
            file.write(_chunk(lines))
            file.flush()
            os.fsync(file.fileno())
        self.places.update({name: count + place for place, name in enumerate(names)})

    def table(self, ids: Sequence[str]) -> tuple[Tensor, Int64[Tensor, " n"]]:
        """Return the table, mapped and not read, and where in it these rows lie; they must be there."""
        known = self.places
        places = torch.tensor([known[name] for name in ids], dtype=torch.int64)
        return torch.from_numpy(np.memmap(self._rows, self.dtype, "c", shape=(len(known), self.size))), places

    def column(self, ids: Sequence[str]) -> Float[Tensor, " n"]:
        """Return the rows of a table of one number a row."""
        values, places = self.table(ids)
        return values[places, 0].double()


def _chunk(lines: Sequence[bytes]) -> bytes:
    """Return the lines of rows that were made together, the last one marked."""
    marked = [*lines[:-1], *(line.replace(WITHIN, LAST) for line in lines[-1:])]
    return b"".join(line + b"\n" for line in marked)


def sweep(root: Path, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    """Remove the tables that are not to be kept, by what they depend on."""
    for folder in root.glob("*"):
        try:
            identity = read_json(folder / "identity.json", dict)
        except DamagedError:
            continue
        if not keep(identity):
            shutil.rmtree(folder, ignore_errors=True)
