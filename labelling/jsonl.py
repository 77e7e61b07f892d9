"""Owns files of one JSON object a line: each with its line's number, and one line said of what is wrong.

Knows nothing of what a line means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bandits.core.errors import InputError
from bandits.runs.files import read_text, write_text
from bandits.runs.text import dumps, lines, loads


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with their lines' numbers, from 1; blank lines are passed over.

    Raises ``InputError`` for a file that cannot be read and, with its number, for a line that is no object.
    """
    for number, line in enumerate(lines(read_text(path)), start=1):
        if line.strip():
            try:
                value = loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: it is not JSON ({error})") from None
            if not isinstance(value, dict):
                raise InputError(f"{path}, line {number}: it is no object with named fields")
            yield number, value


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file whole."""
    write_text(path, "".join(dumps(dict(row)) + "\n" for row in rows))
