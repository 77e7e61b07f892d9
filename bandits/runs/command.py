"""Owns what the project's commands share: a preset with overrides, one line for bad input, the exit status."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

from bandits.core.errors import InputError

Settings = TypeVar("Settings")
Options = TypeVar("Options")


def parse(
    program: str,
    arguments: Sequence[str],
    presets: Mapping[str, tuple[str, Settings]],
    options: Callable[[Settings], Options],
    note: str = "",
) -> tuple[str, Options]:
    """Return the named preset and its ``options``, overridden by the rest of the command line.

    Without a preset, or with ``--help`` in its place, the presets are listed, a line each, then ``note``, and the
    process exits.  Raises ``InputError`` for a preset that does not exist, with the nearest one that does.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<14}{text}" for name, (text, _) in presets.items()]
        print(f"usage: python -m {program} PRESET [--option value ...]\n\npresets:", *lines, sep="\n")
        print(f"\npython -m {program} PRESET --help lists the options.{note}")
        raise SystemExit(0)
    preset = arguments[0]
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown preset {preset!r}; {hint}choose from {', '.join(presets)}")
    text, settings = presets[preset]
    default = options(settings)
    prog = f"python -m {program} {preset}"
    return preset, tyro.cli(type(default), args=list(arguments[1:]), default=default, prog=prog, description=text)


def guard(run: Callable[[Sequence[str]], int], arguments: Sequence[str] | None) -> int:
    """Return the exit status of ``run``: 2 after one line on standard error for bad input, 130 if interrupted."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
