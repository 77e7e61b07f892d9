"""The command line of labelling: ``activedpo label QUERIES`` serves a page on which people answer duels.

``QUERIES`` is a project directory or a file of queries.  Every answer is on disk before the next duel is shown.
"""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bandits.core.errors import InputError
from bandits.runs import command
from bandits.runs.files import read_text, vacant, write_text
from bandits.runs.settings import Ge, Le, Whole, check
from labelling import exchange, terminal
from labelling.answers import checked_name
from labelling.desk import Desk, Source
from labelling.project import Project

PORT = 8765
QUESTION = "Which response is better?"
PROGRAM = "activedpo label"
ABOUT = """Serve a page on which people answer duels: left, right, tie or skip.

Every answer is on disk before the next duel is shown; the same command goes on where it was left."""


@dataclass(frozen=True)
class Options:
    """Have duels answered by people."""

    queries: Annotated[Path, tyro.conf.Positional]
    """a project directory, or a file of queries as activedpo select writes it"""
    question: str = ""
    """what people are asked (default: Which response is better?); further lines: guidelines; a project remembers it"""
    each: Whole = 0
    """how many people each duel needs (0: everybody answers every duel)"""
    again: bool = False
    """ask again what was edited since it was answered; for a file of queries, not a project"""
    answers: Path | None = None
    """the file of answers (default: the project's answers.jsonl, or NAME.answers.jsonl beside NAME.jsonl)"""
    terminal: bool = False
    """label in this terminal instead of a page"""
    annotator: str = ""
    """who labels in the terminal, or who gave the answers of an --import that does not say so"""
    host: str = "127.0.0.1"
    """the address to listen on; another one than this machine's own lets everybody in who has the page's address"""
    port: Annotated[int, Ge(0), Le(65535)] = PORT
    """the port to listen on (0: any that is free)"""
    browser: bool = False
    """open the page in this machine's browser"""
    bring: Annotated[Path | None, tyro.conf.arg(name="import")] = None
    """take in answers made elsewhere: CSV, JSON, JSON lines, exports of Label Studio and Argilla"""
    columns: tuple[str, ...] = ()
    """which of the import's columns are ours: id=… answer=… annotator=… time=… (or chosen=…, the preferred text)"""
    values: tuple[str, ...] = ()
    """what the import's answers mean: A=left B=right same=tie"""
    export: Path | None = None
    """write the duels for another tool, in --format, into a new file, and stop"""
    format: Literal["label-studio", "argilla", "csv"] = "label-studio"
    """of --export"""


OPTIONS = Options


def main(arguments: Sequence[str]) -> int:
    """Label, take answers in or give duels out; return the exit status."""
    options = command.read(Options, arguments, PROGRAM, ABOUT)
    check(options)
    jobs = [name for name in ("terminal", "bring", "export") if getattr(options, name)]
    if len(jobs) > 1:
        names = " and ".join("--import" if name == "bring" else f"--{name}" for name in jobs[:2])
        raise InputError(f"{names} are two jobs; give one of them at a time")
    if (options.columns or options.values) and not options.bring:
        raise InputError("--columns and --values say how to read an --import; name its file")
    if options.export:
        vacant(options.export, "--export")
    source = Source.at(options.queries, options.answers)
    if options.again and source.project is not None:
        raise InputError(
            "--again is for queries in a file of their own; a project's are of its pool, so put back what was edited"
        )
    options = replace(options, question=asked(source.project, options.question))
    desk = Desk(source, options.each, options.again)
    command.say(*(f"note: {note}" for note in desk.notes()))
    if options.bring:
        mapping = exchange.Mapping.of(options.columns, options.values, options.annotator)
        command.say(*exchange.bring(options.bring, desk, mapping))
    elif options.export:
        command.say(*exchange.export(options.export, desk.queries, options.format, options.question))
    elif options.terminal:
        _terminal(desk, options)
    else:
        _page(desk, options)
    if not options.export and source.project is not None:
        command.say(f"next: activedpo loop {source.project.root}")
    return 0


def asked(project: Project | None, question: str) -> str:
    """Return what people are asked: what is given, which a project remembers, or what it was given before."""
    if project is None:
        return question or QUESTION
    if question:
        write_text(project.question, f"{question}\n")
        return question
    return read_text(project.question).strip() or QUESTION if project.question.exists() else QUESTION


def _terminal(desk: Desk, options: Options) -> None:
    try:
        terminal.label(desk, options.annotator or _who(desk), options.question, command.say, input)
    except KeyboardInterrupt:
        command.say("")
    command.say(*desk.summary())


def _who(desk: Desk) -> str:
    known = ", ".join(name for name, _ in desk.people())
    while True:
        try:
            name = input(f"your name{f' (so far: {known})' if known else ''}: ")
        except EOFError:
            raise InputError("--terminal needs to know who labels: give --annotator NAME") from None
        try:
            checked_name(name)
            return name
        except InputError as error:
            command.say(str(error))


def _page(desk: Desk, options: Options) -> None:
    try:
        from labelling import server
    except ModuleNotFoundError as error:
        raise InputError(
            f"the page needs {error.name!r}: pip install 'activedpo-testbed[label]', or label with --terminal"
        ) from None

    count = len(desk.queries)

    def say(address: str) -> None:
        command.say(f"{count} {'duel' if count == 1 else 'duels'} of {desk.source.name}", f"open {address}")
        if options.host not in ("127.0.0.1", "localhost", "::1"):
            command.say("note: whoever gets the address can read the duels and answer them, and it travels unencrypted")
        command.say("Ctrl-C stops; every answer is saved at once, and the same command goes on")

    try:
        server.serve(
            desk,
            options.question,
            options.host,
            options.port,
            say,
            lambda line: print(f"not saved: {line}", file=sys.stderr, flush=True),
            webbrowser.open if options.browser else lambda address: None,
        )
    except KeyboardInterrupt:
        command.say("")
    command.say(*desk.summary())


if __name__ == "__main__":
    sys.exit(command.guard(main, None))
