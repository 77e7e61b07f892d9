"""Cases: every option of every program with values that cannot be; each runs, or is refused by its option's name."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from bandits.runs.settings import called, option
from faults.harness import PROGRAMS, Case, contents, play

NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e30", "0.5", "100000", "1000000", "1000000000", "100000000000")
LONG = 90.0  # seconds, after which a run that has begun is taken to go on
WORDS = ("", "no-such-name", "\u2028", "a,b")


def _plain(hint: Any) -> tuple[Any, bool]:
    """Return what a field holds (one of several, if several), and whether it holds several."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return _plain(next(choice for choice in get_args(hint) if choice is not type(None)))
    if get_origin(hint) is tuple:
        return _plain(get_args(hint)[0])[0], True
    return hint, False


def options(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, bool, Sequence[Any]]]:
    """Yield every option of nested settings: its name, what it holds, whether it holds several, and which there are."""
    hints = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), called(field.name, hints[field.name])
        if not field.init:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from options(value, f"{prefix}{name}." if name else prefix)
        else:
            yield option(name, prefix), *_plain(hints[field.name]), value if isinstance(value, tuple) else ()


def bad_values(kind: Any, several: bool, there: Sequence[Any] = ()) -> Iterator[tuple[str, ...]]:
    """Yield values that most options of this kind cannot have (``there``: what it has); some may be right for some."""
    if several:
        yield ()
    if kind is bool:
        return
    single = WORDS if kind is str or get_origin(kind) is Literal else NUMBERS
    for value in single:
        yield (value,)
    if several:
        yield (single[-2], single[-2])
        if there:
            yield (str(there[0]), str(there[0]))  # one that there is, twice


def _small(program: str, arguments: Sequence[str], name: str) -> list[str]:
    """Return a small run's arguments without an option; of the theory's, those of the claims that the option is of."""
    family = name.removeprefix("--").partition(".")
    if program == "theory" and family[1]:
        return [arguments[0], "--claims", family[0], "--jobs", "1"]
    kept: list[str] = []
    skipping = False
    for word in arguments:
        skipping = word == name if word.startswith("--") else skipping
        kept += [] if skipping else [word]
    return kept


def cases(program: str, arguments: Sequence[str], whole: bool) -> Iterator[Case]:
    """Yield every option of a small run with every value that may be wrong.

    Groups of settings have many options in common: where a name is met again, two values are tried, in turn
    (``whole``: all).
    """
    command = importlib.import_module(PROGRAMS[program]).COMMAND
    preset, met = arguments[0], collections.Counter[str]()
    for name, kind, several, there in options(command.presets[preset][1]):
        small = _small(program, arguments, name)
        tried = list(bad_values(kind, several, there))
        turn = met[name.rpartition(".")[2]]
        met[name.rpartition(".")[2]] += 1
        if turn and not whole:
            tried = [tried[place % len(tried)] for place in (2 * turn, 2 * turn + 1)] if tried else []
        for values in tried:
            given = [f"{name}={values[0]}"] if len(values) == 1 and not several else [name, *values]

            def attempt(folder: Path, given: list[str] = given, name: str = name, small: list[str] = small) -> str:
                outcome = play(program, [*small, *given], folder, seconds=LONG)
                if outcome.status in (0, 1) and "page: " in outcome.out:
                    return ""  # a value that the option can have
                if outcome.late and list(folder.glob("results/*/*/manifest.json")):
                    return ""  # one that it can have, which takes its time
                left = contents(folder)
                if outcome.refused:
                    return outcome.refused
                if left:
                    return f"refused, but left {', '.join(list(left)[:3])}"
                return "" if name in outcome.err else f"not told by its option {name}: {outcome.err.strip()[:200]}"

            yield Case("setting", f"{program} {preset} {' '.join(given)}", attempt)


def command_lines(program: str) -> Iterator[Case]:
    """Yield command lines that are wrong as a whole."""
    for given in (
        ["no-such-preset"],
        ["smoke", "--no-such-option", "1"],
        ["smoke", "--cells", "5/4"],
        ["smoke", "--cells", "0/4"],
        ["smoke", "--cells", "a/b"],
        ["smoke", "--jobs", "-1"],
        ["smoke", "--backend", "no-such-backend"],
        ["smoke", "--address", "tcp://127.0.0.1:9"],
        ["smoke", "--backend", "dask", "--address", "tcp://127.0.0.1:9"],
        ["smoke", "--seed"],
        ["smoke", "smoke"],
    ):

        def attempt(folder: Path, given: list[str] = given) -> str:
            outcome = play(program, given, folder, seconds=60)
            left = contents(folder)
            return outcome.refused or (f"refused, but left {', '.join(list(left)[:3])}" if left else "")

        yield Case("command line", f"{program} {' '.join(given)}", attempt)
