"""Owns what the project's commands share: a preset with overrides, where and how to run it, one line for a failure.

Exit status: 0 well, 1 an alarm, 2 bad input, 3 stopped from outside (the same command goes on), 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from bandits.core.errors import InputError, tell, unknown
from bandits.runs.directory import Part, RunDirectory, StoppedError
from bandits.runs.execute import Backend, Study, execute, wanted
from bandits.runs.settings import afford

Settings = TypeVar("Settings")
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Options(Generic[Settings]):
    """A preset with its overrides, and where and how to run it."""

    settings: Annotated[Settings, tyro.conf.arg(name="")]
    output: Path = Path("results")
    """folder of all results"""
    jobs: int = 0
    """cells run side by side (0: one per core, or per GPU); changes no result"""
    backend: Backend = "loky"
    """where cells run: local processes, or a Dask or Ray cluster"""
    address: str | None = None
    """of the cluster's scheduler (default: a cluster on this machine)"""
    cells: str = "1/1"
    """i/n: play every n-th cell from the i-th on, as one task of a Slurm array does; the last task writes the page"""
    force: bool = False
    """start over, deleting what this run's folder holds"""
    allow_large: bool = False
    """run what is estimated to need more memory, or cells, than is sensible here"""


@dataclass(frozen=True)
class Command(Generic[Settings]):
    """A program: presets of settings, and the study that settings make."""

    program: str
    """how it is called: python -m bandits"""
    presets: Mapping[str, tuple[str, Settings]]
    """a line about each, and its settings"""
    study: Callable[[Settings], Study]
    counted_by: str = "these settings"
    """the options that make cells"""
    note: str = ""
    """more for the list of presets"""
    refuse: Callable[[Any, Sequence[str]], None] = lambda settings, arguments: None
    """raises ``InputError`` for what the settings alone do not show to be wrong, but their command line does"""


def main(command: Command[Any], arguments: Sequence[str] | None = None) -> int:
    """Run a program's command line; return the exit status."""
    return guard(lambda given: run(command, given), arguments)


def run(command: Command[Any], arguments: Sequence[str]) -> int:
    """Run a preset with overrides and say what was found; return the exit status."""
    preset, options = parse(command, arguments)
    part = Part.of(options.cells)
    study = command.study(options.settings)
    afford(study.memory(), study.count(), command.counted_by, options.jobs, options.allow_large)
    directory = RunDirectory(options.output, study.experiment, preset, study.identity())
    if not options.force:
        directory.admit()
    if not options.force and directory.complete(wanted(study, directory)):
        directory.tidy()
        say("this run is complete; --force runs it again")
    else:
        whole = execute(study, directory, options.jobs, options.backend, options.address, part, options.force)
        if not whole:
            say(f"cells {options.cells} are done; the page is written when all parts are")
            return 0
    report = study.report(directory)
    for line in report.alarms:
        print(f"alarm: {line}", file=sys.stderr)
    say(*report.lines, f"page: {directory.path / 'index.html'}")
    return 1 if report.alarms else 0


def parse(command: Command[Settings], arguments: Sequence[str]) -> tuple[str, Options[Settings]]:
    """Return the named preset and its options, overridden by the rest of the command line.

    Without a preset, or with ``--help`` in its place, the presets are listed, a line each, and the process exits.
    """
    presets = command.presets
    if not arguments or arguments[0] in ("-h", "--help"):
        say(f"usage: {command.program} PRESET [--option value ...]\n\npresets:")
        say(*(f"  {name:<14}{text}" for name, (text, _) in presets.items()))
        say(f"\n{command.program} PRESET --help lists the options.{command.note}")
        raise SystemExit(0)
    preset = arguments[0]
    if preset not in presets:
        raise unknown("preset", preset, presets)
    text, settings = presets[preset]
    kind: Any = Options.__class_getitem__(type(settings))  # type: ignore[attr-defined]
    default = Options(settings=settings)
    options: Options[Settings] = read(kind, arguments[1:], f"{command.program} {preset}", text, default)
    Part.of(options.cells)  # here, so that a dry run refuses it too
    if options.jobs < 0:
        raise InputError(f"--jobs must be at least 0, got {options.jobs}")
    command.refuse(options.settings, arguments)
    return preset, options


def read(
    kind: type[Parsed], arguments: Sequence[str], program: str, description: str | None = None, default: Any = None
) -> Parsed:
    """Read options by tyro; what it cannot read is an ``InputError`` of one line, not a box."""
    told = io.StringIO()
    given = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(told):
            parsed: Parsed = tyro.cli(kind, args=list(arguments), prog=program, description=description, **given)
            return parsed
    except ImportError as error:  # completion for a shell that needs a package
        raise InputError(f"{program}: {str(error).partition(chr(10))[0]}") from None
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stderr.write(told.getvalue())
            raise
        raise InputError(_one_line(told.getvalue(), program, arguments)) from None


def _one_line(box: str, program: str, arguments: Sequence[str]) -> str:
    """Return what tyro tells in a box as one line: the message, without frames, usage or the list of options."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    bare = [line.strip(" │|╭╮╰╯├┤+") for line in plain.split("\n")]
    rules = [place for place, line in enumerate(bare) if line and set(line) <= set("─- ")]
    if "│" not in plain and rules:
        bare = bare[rules[0] + 1 :]  # a terminal without frames: the title stands above the first rule
    kept: list[str] = []
    for line in bare:
        if line and set(line) <= set("─- "):
            if kept:
                break
        elif line.startswith(("For full helptext", "Arguments similar", "Perhaps you meant")):
            break
        elif line and not re.search("^─|[─-]{3,}$", line):  # a title stands in its frame
            kept.append(line)
    message = " ".join(" ".join(kept).split()) or " ".join(plain.split()) or "these options cannot be read"
    near = [option for line in bare for option in re.findall(r"^(--[a-z][\w.-]*)", line) if line not in kept]
    hint = f"; did you mean {near[0]}?" if near and near[0] not in message else ""
    message = re.sub(
        r"Error parsing (--\S+): invalid literal for int\(\).*?: ", r"\1 must be a whole number, got ", message
    )
    message = re.sub(
        r"Error parsing (--\S+): could not convert string to float: ", r"\1 must be a number, got ", message
    )
    if any("," in argument and not argument.startswith("--") for argument in arguments):
        hint += "; separate several values by blanks, not commas"
    return f"{message}{hint} ({program} --help lists the options)"


def say(*lines: str) -> None:
    """Print lines; a reader that has gone away is no error, any other fault of standard output is told in one line."""
    if sys.stdout is None:  # closed before the start
        return
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
    except OSError as error:
        _silence()
        raise InputError(f"cannot write to standard output: {error.strerror or error}") from None


def _silence() -> None:
    """Send the rest of standard output, the interpreter's last flush included, nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def guard(run: Callable[[Sequence[str]], int], arguments: Sequence[str] | None) -> int:
    """Return the exit status of ``run``; what goes wrong in a known way is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        try:
            given = sys.argv[1:] if arguments is None else arguments
            _refuse_nul(given)
            return run(given)
        finally:
            say()
    except InputError as error:
        return _tell(f"error: {error}", 2)
    except StoppedError as error:
        return _tell(f"stopped: {error}", 3)
    except MemoryError:
        return _tell("stopped: out of memory; the same command goes on from here", 3)
    except KeyboardInterrupt:
        return _tell("interrupted; the same command goes on from here", 130)
    except BrokenPipeError:
        _silence()
        return 0
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        return _tell(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), 2)


def _refuse_nul(arguments: Sequence[str]) -> None:
    """Raise ``InputError``, naming the option, for a word with a NUL, which no path can have and no name has."""
    for before, word in zip(("", *arguments), arguments, strict=False):
        if "\0" in word:
            name, equals, value = word.partition("=") if word.startswith("--") else (before, "", word)
            told = f"{name} must be without a NUL, got" if name.startswith("--") else "no argument may hold a NUL, got"
            raise InputError(f"{told} {(value if equals else word)!r}")


def _tell(line: str, status: int) -> int:
    tell(line)
    return status
