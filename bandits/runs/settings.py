"""Owns the checks of settings: what a value may be stands beside its field, and who breaks it is told by its option.

    width: Count = 64
    delta: Probability = 0.05
    truths: Annotated[tuple[str, ...], MinLen(1), Distinct(), Names(check_truth)] = ("ntk",)

The marks are those of ``annotated_types``, so that hypothesis draws valid settings from the same table.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import psutil
from annotated_types import Ge, Gt, Le, Lt, MinLen

from bandits.core.errors import InputError

__all__ = ["Count", "Distinct", "Ge", "Gt", "Le", "Lt", "MinLen", "Names", "Positive", "Probability", "Seed", "Whole"]
__all__ += ["afford", "called", "check", "option", "pairs", "under"]

Count = Annotated[int, Ge(1), Le(10**9)]
Whole = Annotated[int, Ge(0), Le(10**9)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Positive = Annotated[float, Gt(0), Le(1e9)]
Probability = Annotated[float, Gt(0), Lt(1)]

SAYS = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
MOST_CELLS = 100_000
SHARE = 0.9  # of the machine's memory that a run may be estimated to need


@dataclass(frozen=True)
class Distinct:
    """No value may be given twice."""


@dataclass(frozen=True)
class Names:
    """Each value must pass a check, which raises ``InputError`` with what is wrong and what there is."""

    check: Callable[[str], object]


def option(field: str, prefix: str = "") -> str:
    """Return the command line's option for a field: ``fit_iterations`` of ``exact`` is ``--exact.fit-iterations``."""
    return f"--{prefix}{field}".replace("_", "-")


def pairs(words: Sequence[str], name: str, example: str) -> dict[str, str]:
    """Return what an option's ``KEY=VALUE`` words say; ``InputError`` for another word, and for a key given twice."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise InputError(f"{name} takes pairs such as {example}, got {word!r}")
        if key in found:
            raise InputError(f"{name} gives {key!r} twice, as {found[key]!r} and {value!r}; give it once")
        found[key] = value
    return found


def called(field: str, hint: Any) -> str:
    """Return what the command line calls a field: its own name, or the one that its annotation gives it."""
    given = (getattr(about, "name", None) for about in getattr(hint, "__metadata__", ()))
    return next((name for name in given if name is not None), field)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def check(settings: Any, prefix: str = "") -> None:
    """Raise ``InputError``, naming the option, if a field of a dataclass is not what its marks say.

    Every number must be finite.  Fields that are dataclasses check themselves.
    """
    kind: Any = type(settings)
    for field in fields(settings):
        if field.init and not is_dataclass(getattr(settings, field.name)):
            hint = _hints(kind)[field.name]
            _check(getattr(settings, field.name), hint, option(called(field.name, hint), prefix))


def _check(value: Any, hint: Any, name: str) -> None:
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        marks = tuple(rest)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return
        hint = next(choice for choice in get_args(hint) if choice is not type(None))
        _check(value, hint, name)
        origin = None
    if origin is tuple:
        _several(value, marks, name)
        for one in value:
            _check(one, get_args(hint)[0], name)
    elif origin is Literal and value not in get_args(hint):
        raise InputError(f"{name} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
    for mark in marks:
        if isinstance(mark, Names):
            for one in value if isinstance(value, tuple) else (value,):
                try:
                    mark.check(one)
                except InputError as error:
                    hint = "; separate several values by blanks, not commas" if "," in str(one) else ""
                    raise InputError(f"{name}: {error}{hint}") from None
    limits = [mark for mark in marks if type(mark) in SAYS]  # of a tuple: each value's
    for one in value if isinstance(value, tuple) else (value,):
        number = isinstance(one, int | float) and not isinstance(one, bool)
        if number and not (math.isfinite(one) and all(_keeps(one, mark) for mark in limits)):
            allowed = " and ".join(f"{SAYS[type(mark)]} {_limit(mark):g}" for mark in limits) or "finite"
            raise InputError(f"{name} must be {allowed}, got {one}")


def _several(value: Any, marks: tuple[Any, ...], name: str) -> None:
    least = next((mark.min_length for mark in marks if isinstance(mark, MinLen)), 0)
    if len(value) < least:
        raise InputError(f"{name} needs at least {least} {'value' if least == 1 else 'values'}, got {len(value)}")
    if any(isinstance(mark, Distinct) for mark in marks):
        twice = next((one for place, one in enumerate(value) if one in value[:place]), None)
        if twice is not None:
            raise InputError(f"{name} names {twice!r} twice; give each value once")


def _limit(mark: Any) -> float:
    match mark:
        case Ge():
            return float(mark.ge)  # type: ignore[arg-type]
        case Gt():
            return float(mark.gt)  # type: ignore[arg-type]
        case Le():
            return float(mark.le)  # type: ignore[arg-type]
        case _:
            return float(mark.lt)


def _keeps(value: int | float, mark: Any) -> bool:
    limit = _limit(mark)
    match mark:
        case Ge():
            return value >= limit
        case Gt():
            return value > limit
        case Le():
            return value <= limit
        case _:
            return value < limit


@contextlib.contextmanager
def under(prefix: str) -> Iterator[None]:
    """Name the options of what is checked inside by where it stands: ``--width`` of ``exact`` is ``--exact.width``."""
    try:
        yield
    except InputError as error:
        text = str(error)
        dotted = prefix.rstrip(".")
        raise InputError(text.replace("--", f"--{dotted}.") if "--" in text else f"--{dotted}: {text}") from None


def machine_memory() -> float:
    """Return the bytes of memory that this process may use: the machine's, or its control group's."""
    total = float(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, float(Path(path).read_text(encoding="ascii")))
    return total


def afford(memory: Mapping[str, float], count: int, counted_by: str, jobs: int, allow: bool) -> None:
    """Raise ``InputError`` if a run is estimated to need more than the machine has, unless that is allowed.

    ``memory`` is bytes of one cell, each part named by the options that it grows with.
    """
    if allow:
        return
    if count > MOST_CELLS:
        raise InputError(
            f"{counted_by} make {count:.3g} cells, more than {MOST_CELLS}; lower them, or insist with --allow-large"
        )
    side = min(jobs or os.cpu_count() or 1, max(1, int(count)))
    need, have = sum(memory.values()), machine_memory()
    if need * side > SHARE * have and (need > SHARE * have or jobs):
        most = max(memory, key=lambda name: memory[name])
        raise InputError(
            f"{most} make a run that needs about {_size(need * (side if jobs else 1))} of memory, and this machine has "
            f"{_size(have)}; lower them, or insist with --allow-large"
        )


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if number < 1000 or unit == "PB":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError
