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

import torch

from bandits.core.errors import InputError

PACKAGES = ("activedpo", "bandits", "benchmarks", "faults", "labelling", "llm_loop", "theory_checks")
"""This project's own; a run's identity has their sources by itself."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders in which packages are installed."""


def is_own(part: object) -> bool:
    """Whether a part's class, or function, is a user's own: defined in none of this project's packages.

    It may be installed, as a plugin is; ``is_own_file`` is about what its author may edit.
    """
    kind: Any = part if isinstance(part, type) or inspect.isroutine(part) else type(part)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return not file or not _lies_in(Path(file).resolve(), _project())


def is_own_file(path: Path) -> bool:
    """Whether a file is of no installed package, nor of this project's.

    Wherever packages are installed (for all, for one user, linked from a cache) a folder of the path says so.
    """
    real = path.resolve()
    if INSTALLED & {*path.parts, *real.parts}:
        return False
    return not (_lies_in(real, _library()) or _lies_in(real, _project()))


@contextmanager
def telling_own(*known: type[Exception]) -> Iterator[None]:
    """Let an error that a user's own code raises within be told as bad input: where in that code, and what it said.

    The place is the innermost line of the user's own code.  An error that passes no such line is a fault of ours and
    goes on, as do files that cannot be read, memory that is not there, and errors of a ``known`` kind.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (InputError, OSError, *known)) or is_out_of_memory(error):
            raise
        frames = traceback.walk_tb(error.__traceback__)
        own = [(frame.f_code, line) for frame, line in frames if _is_own_frame(frame)]
        if not own:
            raise
        code, line = own[-1]
        file = "" if code.co_filename.startswith("<") else f"{Path(code.co_filename).name}, "  # "<": sent to a worker
        said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise InputError(f"{file}line {line}, in {code.co_qualname}: {said}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is not there: Python's, or PyTorch's on a processor or a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _is_own_frame(frame: FrameType) -> bool:
    code = frame.f_code
    if code.co_qualname.startswith("__create_fn__"):  # a method that ``dataclass`` made, in nobody's source
        return False
    if code.co_filename.startswith("<"):  # made while running: the user's if typed at a prompt, or sent to this worker
        return frame.f_globals.get("__name__") == "__main__"
    return is_own_file(Path(code.co_filename))


def _lies_in(path: Path, places: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(place) for place in places)


@cache
def _project() -> tuple[Path, ...]:
    return tuple(Path(__file__).resolve().parents[2] / name for name in PACKAGES)


@cache
def _library() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib"))
