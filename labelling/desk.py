"""Owns the desk at which people label: which duel is whose next, and what is kept of an answer.

A desk is a view of two kinds of files, queries and ``answers.jsonl``: it holds nothing that is not in them.  They are
read once; after that only what was added.  An answer is on disk before anything is said of it.  A desk may be asked by
several threads, and several processes may sit over the same files.  Knows nothing of pages and terminals.
"""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bandits.core.errors import InputError
from bandits.runs import stats
from labelling import queries
from labelling.answers import Answer, Answers, Said, checked_name
from labelling.project import Project
from labelling.queries import CHOICES, Choice, Query

SIDES: tuple[Choice, ...] = ("left", "right", "tie")
"""the choices that say something of a duel"""
HELD = 600.0
"""seconds for which a duel that was shown to somebody is kept for them, where each needs few answers"""


class StaleError(InputError):
    """What a page shows is no longer so: the duel was answered in another tab, or edited."""


@dataclass(frozen=True)
class Source:
    """Where queries and answers are: a project's, or a file of queries of its own."""

    answers: Path
    project: Project | None = None
    file: Path | None = None
    """the one batch to label; without it all of the project's"""

    @classmethod
    def at(cls, path: Path, answers: Path | None = None) -> Source:
        """Return the source of a project directory, or of a file of queries, in a project or outside.

        A project's answers are in its ``answers.jsonl``, those to a lone file beside it: ``NAME.answers.jsonl``.
        Raises ``InputError`` if there is neither.
        """
        if path.is_dir():
            project = Project(path)
            project.manifest()
            project.check("queries/")
            if not project.batches:
                raise InputError(f"{path} has no queries yet; activedpo select --project {path} writes a batch")
            return cls(answers or project.answers_path, project)
        if not path.is_file():
            raise InputError(f"{path} is neither a file of queries nor a project; activedpo select writes both")
        project = Project(path.resolve().parent.parent)
        if path.resolve().parent.name == "queries" and project.exists:
            return cls(answers or project.answers_path, project, path)
        return cls(answers or path.with_name(f"{path.stem}.answers.jsonl"), None, path)

    @property
    def files(self) -> list[Path]:
        """The files of queries, in order."""
        if self.file is not None:
            return [self.file]
        assert self.project is not None
        return [self.project.queries(batch) for batch in range(1, self.project.batches + 1)]

    @property
    def name(self) -> str:
        """What is labelled, in words."""
        place = self.file or (self.project.root if self.project else self.answers)
        return str(place)

    def signature(self) -> tuple[object, ...]:
        """Return what changes when a file of queries does."""
        found = []
        for path in self.files:
            try:
                status = path.stat()
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}") from None
            found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)

    def read(self) -> list[Query]:
        """Return all queries; ``InputError`` if an id is there twice."""
        found: dict[str, Query] = {}
        for path in self.files:
            for query in queries.read(path):
                if query.id in found:
                    raise InputError(f"{path}: the id {query.id!r} is in another file of queries, too")
                found[query.id] = query
        return list(found.values())


@dataclass
class Person:
    """Where one annotator stands."""

    name: str
    said: dict[int, Choice] = field(default_factory=dict)
    """what holds, by the query's place, in the order in which it was said"""
    entries: dict[int, int] = field(default_factory=dict)
    """how many lines of the file are about each query, undone ones too"""
    first: int = 0
    """no query before it is unanswered"""
    shown: int | None = None
    """the query that was shown last, and"""
    when: float = 0.0
    """when, on the desk's clock"""

    def counts(self) -> dict[str, int]:
        """Return how often each choice was made."""
        chosen = list(self.said.values())
        return {choice: chosen.count(choice) for choice in CHOICES}


@dataclass(frozen=True)
class Shown:
    """A duel as it is put before a person."""

    query: Query
    place: int
    """of the query among all, from 0"""
    seen: int
    """how many lines of the file are this person's of this query"""


@dataclass(frozen=True)
class Standing:
    """What a person is told after each step."""

    annotator: str
    duel: Shown | None
    """the next, None if there is none left"""
    answered: int
    total: int
    counts: dict[str, int]
    undo: tuple[str, int] | None
    """id of the query answered last, and how many lines are about it"""
    people: tuple[tuple[str, int], ...]
    """everybody who answered, and how much"""
    agreement: stats.Agreement | None


class Desk:
    """Duels, people and their answers.  ``each`` is how many people a duel needs (0: everybody)."""

    def __init__(self, source: Source, each: int = 0, again: bool = False, clock: Callable[[], float] = time.monotonic):
        """Read the files; ``InputError`` if a query was edited since it was answered, unless asked ``again``."""
        if each < 0:
            raise InputError(f"--each must be at least 0, got {each}")
        self.source, self.each, self.again = source, each, again
        self._clock = clock
        self._lock = threading.RLock()
        self._signature: tuple[object, ...] = ()
        self.answers = Answers(source.answers)
        self._refresh()

    # What is kept of the files.

    def _refresh(self) -> None:
        """Take in what changed on disk."""
        signature = self.source.signature()
        self.answers.refresh()
        if signature != self._signature:
            self._read()
            self._signature = signature
        self._apply()

    def _read(self) -> None:
        found = self.source.read()
        if not self.again:
            self.answers.check(found, self.source.name)
        self.queries: list[Query] = found
        self._places = {query.id: place for place, query in enumerate(found)}
        self._people: dict[str, Person] = {}
        self._votes = np.zeros((len(found), len(SIDES)), dtype=np.int64)
        self._applied, self._version = 0, self.answers.version
        self.strangers = 0
        """answers to duels that are not here"""
        self.edited = 0
        """answers to duels that were edited since, which do not count"""

    def _apply(self) -> None:
        if self._version != self.answers.version:  # another file than before
            self._read()
        for answer in self.answers.all[self._applied :]:
            place = self._places.get(answer.query)
            if place is None:
                self.strangers += 1
            elif answer.digest != self.queries[place].digest:
                self.edited += 1
            else:
                self._count(self._person(answer.annotator), place, answer.answer)
        self._applied = len(self.answers.all)

    def _count(self, person: Person, place: int, said: Said) -> None:
        person.entries[place] = person.entries.get(place, 0) + 1
        before = person.said.pop(place, None)
        if before in SIDES:
            self._votes[place, SIDES.index(before)] -= 1
        if said == "undo":
            person.first = min(person.first, place)
            return
        person.said[place] = said
        if said in SIDES:
            self._votes[place, SIDES.index(said)] += 1
        while person.first in person.said:
            person.first += 1

    def _person(self, name: str) -> Person:
        return self._people.setdefault(name, Person(name))

    def _named(self, name: str) -> Person:
        """Return a person by name, also if it is spelt with other capitals than before."""
        clean = unicodedata.normalize("NFC", " ".join(name.split()))
        checked_name(clean)
        same = (known for known in self._people if known.casefold() == clean.casefold())
        return self._person(clean if clean in self._people else next(same, clean))

    # What is next.

    def _open(self, person: Person) -> Iterator[int]:
        """Yield the places of queries that a person may be shown, in order."""
        now = self._clock()
        held: dict[int, int] = {}
        if self.each:
            for other in self._people.values():
                if other is not person and other.shown is not None and now - other.when < HELD:
                    held[other.shown] = held.get(other.shown, 0) + 1
        votes = self._votes.sum(1) if self.each else None
        for place in range(person.first, len(self.queries)):
            if place in person.said:
                continue
            if votes is None or int(votes[place]) + held.get(place, 0) < self.each:
                yield place

    def _next(self, person: Person) -> Shown | None:
        if person.shown is not None and person.shown in person.said:
            person.shown = None
        place = next(self._open(person), None)
        person.shown, person.when = place, self._clock()
        return None if place is None else Shown(self.queries[place], place, person.entries.get(place, 0))

    def _standing(self, person: Person) -> Standing:
        duel = self._next(person)
        last = next(reversed(person.said), None)
        people = tuple((one.name, len(one.said)) for one in self._people.values() if one.said or one is person)
        return Standing(
            annotator=person.name,
            duel=duel,
            answered=len(person.said),
            total=len(self.queries),
            counts=person.counts(),
            undo=None if last is None else (self.queries[last].id, person.entries[last]),
            people=people,
            agreement=stats.agreement(self._votes),
        )

    # What may be asked of it.

    def standing(self, name: str) -> Standing:
        """Return where a person stands, with the next duel; ``InputError`` for what is no name."""
        with self._lock:
            self._refresh()
            return self._standing(self._named(name))

    def people(self) -> list[tuple[str, int]]:
        """Return everybody who answered, and how much."""
        with self._lock:
            self._refresh()
            return [(person.name, len(person.said)) for person in self._people.values() if person.said]

    def answer(self, name: str, query: str, digest: str, seen: int, choice: Choice) -> Standing:
        """Keep an answer; when this returns it is on disk.

        ``digest`` and ``seen`` are those of the duel as it was shown.  The same answer twice is kept once.  Raises
        ``StaleError`` if the duel has changed or was answered elsewhere since it was shown, ``WriteError`` if the
        disk is full; then nothing is kept.
        """
        if choice not in CHOICES:
            raise InputError(f"an answer is one of {', '.join(CHOICES)}, got {str(choice)[:40]!r}")
        with self._lock:
            self._refresh()
            person, place = self._named(name), self._places.get(query)
            if place is None:
                raise StaleError(f"there is no duel {query[:40]!r} any more; this answer was not kept")
            if digest != self.queries[place].digest:
                raise StaleError("this duel was edited after it was shown; the answer was not kept: please look again")
            if seen != person.entries.get(place, 0):
                now = person.said.get(place)
                if now == choice and seen == person.entries[place] - 1:
                    return self._standing(person)  # the same request a second time: the first reply got lost
                said = f"answered ({now})" if now else "taken back"
                raise StaleError(f"this duel was already {said} elsewhere, such as in another tab; nothing was changed")
            self._keep(person, place, choice)
            return self._standing(person)

    def undo(self, name: str, query: str, seen: int) -> Standing:
        """Take back the answer that a person gave last; errors as for ``answer``."""
        with self._lock:
            self._refresh()
            person = self._named(name)
            last = next(reversed(person.said), None)
            if last is None or self.queries[last].id != query or person.entries[last] != seen:
                raise StaleError("another answer was given or taken back elsewhere since; nothing was changed")
            self._keep(person, last, "undo")
            return self._standing(person)

    def _keep(self, person: Person, place: int, said: Said) -> None:
        self.answers.append(Answer.of(self.queries[place], person.name, said))
        self._apply()

    def summary(self) -> list[str]:
        """Return who has answered how much, whether they agree, and where the answers are, a line each."""
        with self._lock:
            lines = [
                f"{person.name}: {len(person.said)} of {len(self.queries)} answered ("
                + ", ".join(f"{choice} {count}" for choice, count in person.counts().items())
                + ")"
                for person in self._people.values()
                if person.said
            ]
            found = stats.agreement(self._votes)
        if found:
            lines.append(f"agreement: {agreed(found)}")
        return [*lines, f"answers: {self.source.answers}"] if lines else [f"no answers yet in {self.source.answers}"]

    def notes(self) -> list[str]:
        """Return what is strange about the files and yet no error, a line each."""
        found = []
        if self.strangers:
            found.append(f"{self.strangers} lines of {self.source.answers} are about other duels; they stay there")
        if self.edited:
            found.append(f"{self.edited} answers are to duels that were edited since; these are asked again")
        return found


def agreed(found: stats.Agreement) -> str:
    """Return an agreement in words."""
    alpha = "" if np.isnan(found.alpha) else f"; Krippendorff's alpha {found.alpha:.2f}"
    of = "1 duel" if found.units == 1 else f"{found.units} duels"
    return f"{100 * found.share:.0f} % on {of} that several people answered{alpha}"
