"""Owns telling a user's own code from this project's and from what is installed, and its errors from ours."""

from __future__ import annotations

import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from bandits.core.errors import InputError

PACKAGES = ("activedpo", "bandits", "benchmarks", "faults", "labelling", "llm_loop", "theory_checks")
"""This project's own; a run's identity has their sources by itself."""


def is_own(part: object) -> bool:
    """Whether a part's class, or function, is a user's own: defined in none of this project's packages."""
    kind: Any = part if isinstance(part, type) or inspect.isroutine(part) else type(part)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return not file or not _lies_in(Path(file).resolve(), _project())


def is_own_file(path: Path) -> bool:
    """Whether a resolved path is of no installed package, nor of this project's."""
    return not _lies_in(path, _installed()) and not _lies_in(path, _project())


@contextmanager
def telling_own(*known: type[Exception]) -> Iterator[None]:
    """Let an error that a user's own code raises within be told as bad input: where in that code, and what it said.

    The place is the innermost line of the user's own code.  An error that passes no such line is a fault of ours and
    goes on, as do files that cannot be read, memory that is not there, and errors of a ``known`` kind.
    """
    try:
        yield
    except (InputError, OSError, MemoryError, *known):
        raise
    except Exception as error:
        own = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_own_frame(frame)]
        if not own:
            raise
        code, line = own[-1]
        file = "" if code.co_filename.startswith("<") else f"{Path(code.co_filename).name}, "  # "<": sent to a worker
        said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise InputError(f"{file}line {line}, in {code.co_qualname}: {said}") from error


def _is_own_frame(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    if file.startswith("<"):  # made while running: the user's if typed at a prompt, or sent to this worker
        return frame.f_globals.get("__name__") == "__main__"
    return is_own_file(Path(file).resolve())


def _lies_in(path: Path, places: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(place) for place in places)


@cache
def _project() -> tuple[Path, ...]:
    return tuple(Path(__file__).resolve().parents[2] / name for name in PACKAGES)


@cache
def _installed() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib"))
