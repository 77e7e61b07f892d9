"""Owns what people answered: ``answers.jsonl``, to which lines are only ever added, each on disk before the next.

A line an answer::

    {"query": "9f0c…", "annotator": "ada", "answer": "left", "time": "2026-01-31T12:00:00+00:00", "digest": "…"}

A person's later answer to a query takes the place of the earlier one; ``undo`` takes it back.  ``digest`` is that of
the query as it was shown.  A last line that a killed process or a full disk cut short was never confirmed to anybody:
readers pass over it, and the next write removes it.  Nothing else is ever removed: other tools may have ended lines by
``\\r``, and what is no beginning of an answer is refused.  Several processes may add to one file.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from bandits.core.errors import InputError
from bandits.runs.files import DamagedError, WriteError
from bandits.runs.text import dumps, loads
from labelling.queries import Choice, Query

Said = Literal[Choice, "undo"]
"""A choice, or that the earlier one does not hold."""
SAID: tuple[str, ...] = get_args(Said)
LONGEST_NAME = 60
OPENING = b'{"query": "'
"""how every line begins that is written here"""
_ENDS = re.compile(rb"\r\n|\r|\n")


def now() -> str:
    """Return the time as answers have it: ISO 8601, UTC, in seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Answer:
    """What one person said of one query, and when."""

    query: str
    """its id"""
    annotator: str
    answer: Said
    time: str
    """ISO 8601"""
    digest: str
    """of the query as it was shown"""

    @classmethod
    def of(cls, query: Query, annotator: str, answer: Said, time: str | None = None) -> Answer:
        """Return an answer to a query, given now; ``InputError`` for what is no answer or no name."""
        _check(annotator, answer)
        return cls(query.id, annotator, answer, time or now(), query.digest)


def _check(annotator: object, answer: object) -> None:
    if answer not in SAID:
        raise InputError(f"an answer is one of {', '.join(SAID)}, got {str(answer)[:40]!r}")
    checked_name(annotator)


def checked_name(annotator: object) -> None:
    """Raise ``InputError`` for what is no name of an annotator."""
    if not isinstance(annotator, str) or not annotator.strip() or not annotator.isprintable():
        raise InputError("an annotator needs a name of printable characters")
    if len(annotator) > LONGEST_NAME:
        raise InputError(f"an annotator's name has at most {LONGEST_NAME} characters, got {len(annotator)}")


class Answers:
    """The answers in a file; one that is not there has none.  Opening it writes nothing."""

    def __init__(self, path: Path) -> None:
        """Read the file; ``InputError``, with the line's number, for a line that is no answer, and for a pipe."""
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no regular file, so no answers can be kept there")
        self.path = path
        self.all: tuple[Answer, ...] = ()
        """every line, in the file's order"""
        self.version = 0
        """how often the file turned out to be another than the one read before, instead of a longer one"""
        self._file: tuple[int, int] | None = None
        self._bytes = self._ends = 0  # of whole lines read so far, and how many line ends are in them
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes added to the file, and nothing twice."""
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            if self._bytes:
                self._forget()
            return
        except OSError as error:
            raise DamagedError(f"cannot read {self.path}: {error.strerror or error}") from None
        try:
            self._take(handle)
        except OSError as error:
            raise DamagedError(f"cannot read {self.path}: {error.strerror or error}") from None
        finally:
            os.close(handle)

    def _forget(self) -> None:
        self.all, self._file, self._bytes, self._ends = (), None, 0, 0
        self.version += 1

    def _take(self, handle: int) -> None:
        status = os.fstat(handle)
        if self._file != (status.st_dev, status.st_ino) or status.st_size < self._bytes:
            if self._bytes:
                self._forget()
            self._file = status.st_dev, status.st_ino
        content = _whole(os.pread(handle, status.st_size - self._bytes, self._bytes))
        if content:
            found = [self._answer(n, line) for n, line in enumerate(_ENDS.split(content), self._ends + 1) if line]
            self._add(found, content)

    def _add(self, found: Iterable[Answer], content: bytes) -> None:
        self.all = (*self.all, *found)
        self._bytes += len(content)
        self._ends += len(_ENDS.findall(content))

    def _answer(self, number: int, line: bytes) -> Answer:
        try:
            row = loads(line.decode())
        except ValueError as error:
            raise InputError(f"{self.path}, line {number}: it is not JSON ({error}); mend or remove it") from None
        names = list(Answer.__dataclass_fields__)
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
            raise InputError(f"{self.path}, line {number}: an answer has the fields {', '.join(names)}, each a text")
        try:
            _check(row["annotator"], row["answer"])
        except InputError as error:
            raise InputError(f"{self.path}, line {number}: {error}") from None
        return Answer(**{name: row[name] for name in names})

    def append(self, answer: Answer) -> None:
        """Add an answer; when this returns it is on disk.

        Raises ``WriteError`` if it cannot be written (a full disk): the file then is as it was.
        """
        self.extend([answer])

    def extend(self, answers: Iterable[Answer]) -> None:
        """Add answers, all or none."""
        added = tuple(answers)
        content = "".join(dumps(asdict(answer)) + "\n" for answer in added).encode()
        fresh = not self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
                self._take(handle)
                content = _append(handle, self._bytes, content)
            finally:
                os.close(handle)  # which lets go of the lock, too
            if fresh:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise WriteError(
                f"cannot write {self.path}: {error.strerror or error}; the answer is not kept, those before it are"
            ) from None
        self._add(added, content)

    @property
    def latest(self) -> dict[tuple[str, str], Answer]:
        """What holds, by query and annotator: of each person's answers to a query the last, unless taken back."""
        found: dict[tuple[str, str], Answer] = {}
        for answer in self.all:
            place = answer.query, answer.annotator
            found.pop(place, None)
            if answer.answer != "undo":
                found[place] = answer
        return found

    def of(self, annotator: str) -> dict[str, Choice]:
        """Return what holds of one person, by query."""
        return {query: said.answer for (query, who), said in self.latest.items() if who == annotator}  # type: ignore[misc]

    def check(self, queries: Sequence[Query], where: Path | str) -> None:
        """Raise ``InputError`` if one of these queries was edited after it was answered; ``where`` is their file."""
        known = {query.id: query for query in queries}
        for place, answer in self.latest.items():
            query = known.get(answer.query)
            if query is not None and query.digest != answer.digest:
                raise InputError(
                    f"{where}: query {query.id} is not what {place[1]} answered on {answer.time}: it was edited since; "
                    "put it back, or have it answered again"
                )

    def outcomes(self, queries: Sequence[Query]) -> dict[str, float]:
        """Return the outcome of every query that has one, in the queries' order: 1, 0 or ½ of it for its first.

        Of several people the majority of those who chose a side decides; an even split is a tie, as are ties alone.
        Who skipped says nothing, and a query that all skipped has no outcome.
        """
        known = {query.id: query for query in queries}
        said: dict[str, list[float]] = {query.id: [] for query in queries}
        for answer in self.latest.values():
            if answer.query in known and (outcome := known[answer.query].outcome(answer.answer)) is not None:  # type: ignore[arg-type]
                said[answer.query].append(outcome)
        return {query: majority(votes) for query, votes in said.items() if votes}

    def disagreements(self, queries: Sequence[Query]) -> list[str]:
        """Return the ids of queries for which one person chose the left side and another the right."""
        sides: Mapping[str, set[str]] = {query.id: set() for query in queries}
        for answer in self.latest.values():
            if answer.query in sides and answer.answer in ("left", "right"):
                sides[answer.query].add(answer.answer)
        return [query for query, both in sides.items() if len(both) == 2]


def majority(votes: Sequence[float]) -> float:
    """Return 1, 0 or ½: the side with more votes; ties (½) count for neither."""
    first, second = sum(vote > 0.5 for vote in votes), sum(vote < 0.5 for vote in votes)
    return 0.5 if first == second else float(first > second)


def _append(handle: int, size: int, content: bytes) -> bytes:
    """Put a content behind the first ``size`` bytes of a file and flush it; return what was put there.

    Raises ``OSError`` if there is no room; the file then is as it was.
    """
    if size and os.pread(handle, 1, size - 1) not in (b"\n", b"\r"):
        content = b"\n" + content
    try:
        os.ftruncate(handle, size)
        written = 0
        while written < len(content):
            written += os.pwrite(handle, content[written:], size + written)
        os.fsync(handle)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, size)
            os.fsync(handle)
        raise
    return content


def _whole(content: bytes) -> bytes:
    """Return a file without what was cut short after its last whole line, which may lack its end.

    Cut short is only what begins as our lines do and holds no whole object yet; zeros may stand for what never came.
    """
    end = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
    tail = content[end:].rstrip(b"\0")
    if not (tail.startswith(OPENING) or OPENING.startswith(tail)):
        return content
    try:
        json.JSONDecoder().raw_decode(tail.decode(errors="replace"))
    except ValueError:
        return content[:end]
    return content


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
