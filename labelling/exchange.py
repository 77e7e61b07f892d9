"""Owns the way to other tools and back: answers that people gave elsewhere, and duels for them to answer there.

Answers are read from CSV, JSON and JSON lines, one a row, and from what Label Studio (JSON) and Argilla
(``records.to_json``) export.  All of a file is taken in, or none of it; what is there already is not taken twice.
"""

from __future__ import annotations

import csv
import datetime
import difflib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bandits.core.errors import InputError
from bandits.runs.files import read_text, write_text
from bandits.runs.settings import pairs
from bandits.runs.text import dumps, lines, loads
from labelling.answers import Answer, now
from labelling.desk import Desk
from labelling.queries import CHOICES, Choice, Query
from llm_loop.data.chat import to_json

COLUMNS = ("id", "answer", "chosen", "annotator", "time")
"""what a row may say; ``chosen`` is the text of the preferred response, in place of ``answer``"""
NOBODY = "imported"
"""who gave an answer that names nobody"""


@dataclass(frozen=True)
class Mapping:
    """How another tool's rows say what ours do."""

    columns: dict[str, str] = field(default_factory=dict)
    """their column, by ours"""
    values: dict[str, Choice] = field(default_factory=dict)
    """our choice, by their word"""
    annotator: str = ""
    """who answered where a row does not say"""

    @classmethod
    def of(cls, columns: Sequence[str], values: Sequence[str], annotator: str = "") -> Mapping:
        """Read ``ours=theirs`` columns and ``theirs=ours`` values; ``InputError`` for anything else."""
        named = pairs(columns, "--columns", "id=task_id")
        for ours in named:
            if ours not in COLUMNS:
                raise InputError(f"--columns: {ours!r} is none of {', '.join(COLUMNS)}; write OURS=THEIRS")
        meant: dict[str, Choice] = {}
        for theirs, ours in pairs(values, "--values", "A=left").items():
            choice = next((choice for choice in CHOICES if choice == ours), None)
            if choice is None:
                raise InputError(f"--values: {ours!r} is none of {', '.join(CHOICES)}; write THEIRS=OURS")
            meant[theirs] = choice
        return cls(named, meant, annotator)

    def choice(self, said: Any) -> Choice:
        """Return what a word means; ``InputError`` if that is not known."""
        word = str(said).strip()
        found = self.values.get(word)
        if found is None:
            found = next((choice for choice in CHOICES if choice == word.lower()), None)
        if found is None:
            raise InputError(
                f"its answer {word[:40]!r} is none of {', '.join(CHOICES)}; say what it means, such as --values "
                f"{word[:20]}=left"
            )
        return found


@dataclass(frozen=True)
class Row:
    """An answer as another tool has it."""

    place: str
    """where it stands, for people"""
    query: str
    said: Any
    """the choice in the tool's word, or the text of the preferred response"""
    annotator: str = ""
    time: str = ""
    chosen: bool = False
    """whether ``said`` is a response's text"""


# --- Answers from elsewhere ---------------------------------------------------------------------------------------


def bring(path: Path, desk: Desk, mapping: Mapping) -> list[str]:
    """Take in the answers of a file, all or none; return what was done, a line each.

    Raises ``InputError``, with the row's number, for an answer to a duel that is not there, an answer or a name that is
    none, and columns that are not known.
    """
    known = {query.id: query for query in desk.queries}
    added: list[Answer] = []
    standing = desk.answers.latest
    twice = same = 0
    seen: dict[tuple[str, str], str] = {}
    for row in _read(path, mapping):
        try:
            answer = _answer(row, known, mapping)
        except InputError as error:
            raise InputError(f"{row.place}: {error}") from None
        place = answer.query, answer.annotator
        twice += place in seen and seen[place] != answer.answer
        seen[place] = answer.answer
        before = standing.get(place)
        if before and (before.answer, before.digest) == (answer.answer, answer.digest):
            same += 1
            continue
        standing[place] = answer
        added.append(answer)
    if added:
        desk.answers.extend(added)
        desk.people()  # which takes them in
    told = [f"{len(added)} answers taken in from {path}"]
    if same:
        told.append(f"{same} were there already")
    if twice:
        told.append(
            f"{twice} times somebody answered a duel again with another answer: the later one in the file holds"
        )
    apart = desk.answers.disagreements(desk.queries)
    if apart:
        told.append(f"{len(apart)} duels on which people chose different sides, such as {apart[0]}")
    return [*told, *desk.summary()]


def _answer(row: Row, known: dict[str, Query], mapping: Mapping) -> Answer:
    query = known.get(row.query)
    if query is None:
        near = difflib.get_close_matches(row.query, known, 1) if len(known) < 5000 else []
        hint = f"; did you mean {near[0]}?" if near else "; is it of another project?"
        raise InputError(f"there is no duel {row.query[:40]!r}{hint}")
    said = _side(query, row.said) if row.chosen else mapping.choice(row.said)
    return Answer.of(query, " ".join((row.annotator or mapping.annotator or NOBODY).split()), said, _time(row.time))


def _side(query: Query, text: Any) -> Choice:
    if isinstance(text, list) and text and isinstance(text[-1], dict):
        text = text[-1].get("content")
    sides: dict[str, Choice] = {query.left.strip(): "left", query.right.strip(): "right"}
    found = sides.get(str(text).strip())
    if found is None or len(sides) < 2:
        raise InputError(f"its chosen text is neither response of duel {query.id}: {str(text)[:40]!r}")
    return found


def _time(text: str) -> str | None:
    if not text:
        return None
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"its time {text[:40]!r} is not ISO 8601, such as {now()}") from None
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).isoformat(timespec="seconds")


def _read(path: Path, mapping: Mapping) -> Iterator[Row]:
    """Yield the answers of a file in the order of its rows, whichever form it has."""
    if not path.is_file():
        raise InputError(f"--import: there is no file {path}")
    text = read_text(path).removeprefix("\ufeff")
    if not text.strip():
        raise InputError(f"--import: {path} is empty")
    if text.lstrip()[0] not in "[{":
        yield from _rows(_table(path, text), mapping)
        return
    whole = _objects(path, text)
    form = next((form for recognises, form in FORMS if all(recognises(row) for _, row in whole)), None)
    if form is not None and not mapping.columns:
        for place, row in whole:
            try:
                yield from form(place, row)
            except (KeyError, TypeError, AttributeError, InputError) as error:
                said = str(error) if isinstance(error, InputError) else "it is not as the tool exports it"
                raise InputError(f"{place}: {said}") from None
    elif form is None and any(recognises(row) for recognises, _ in FORMS for _, row in whole):
        strange = next(place for place, row in whole if not any(recognises(row) for recognises, _ in FORMS))
        raise InputError(f"{strange}: it has another form than other rows of the file; split the file by form")
    else:
        yield from _rows(iter(whole), mapping)


def _objects(path: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of JSON or JSON lines with their places."""
    try:
        value = loads(text)
        rows = value if isinstance(value, list) else [value]
        found = [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]
    except ValueError:
        found = []
        for number, line in enumerate(lines(text), start=1):
            if line.strip():
                try:
                    found.append((f"{path}, line {number}", loads(line)))
                except ValueError as error:
                    raise InputError(f"{path}, line {number}: it is not JSON ({error})") from None
    for place, row in found:
        if not isinstance(row, dict):
            raise InputError(f"{place}: it is no object with named fields")
    if not found:
        raise InputError(f"--import: {path} has no rows")
    return found


def _table(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a CSV file, whose separator is what its header has most of: comma, semicolon or tab."""
    head = lines(text)[0]
    separator = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        if len(set(header)) < len(header):
            raise InputError(f"{path}: two columns have one name: {', '.join(header)[:160]}")
        for number, cells in enumerate(reader, start=2):
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise InputError(f"{path}, row {number}: it has {len(cells)} cells, and the header {len(header)}")
            yield f"{path}, row {number}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: it is not CSV ({error})") from None


def _rows(found: Iterator[tuple[str, dict[str, Any]]], mapping: Mapping) -> Iterator[Row]:
    """Read rows by their columns: those that ``--columns`` names, else those that are called as ours."""
    for place, row in found:
        column = {ours: mapping.columns.get(ours, ours) for ours in COLUMNS}
        missing = [theirs for theirs in mapping.columns.values() if theirs not in row]
        if missing or column["id"] not in row or not {column["answer"], column["chosen"]} & set(row):
            lacks = missing[0] if missing else "id" if column["id"] not in row else "answer"
            has = ", ".join(map(str, row))[:160]
            raise InputError(
                f"{place}: it has no column {lacks!r}; it has {has}: say which is which, such as "
                f"--columns {' '.join(_guess(list(row)))}"
            )
        chosen = column["answer"] not in row or ("chosen" in mapping.columns and "answer" not in mapping.columns)
        said = row[column["chosen" if chosen else "answer"]]
        if said is None or not str(said).strip():
            continue  # not answered yet
        who, when = (row.get(column[name]) for name in ("annotator", "time"))
        yield Row(place, str(row[column["id"]]).strip(), said, str(who or "").strip(), str(when or "").strip(), chosen)


def _guess(names: list[str]) -> list[str]:
    """Return the mapping that a user probably wants, from the names there are."""
    likely = {
        "id": ("id", "query", "query_id", "task_id", "duel", "uid", "external_id"),
        "answer": ("answer", "preference", "label", "choice", "winner", "vote", "judgement", "judgment"),
        "annotator": ("annotator", "user", "worker", "annotator_id", "user_id", "worker_id", "rater", "who"),
    }
    found = []
    for ours, words in likely.items():
        near = [name for word in words for name in names if word in name.lower()]
        if near:
            found.append(f"{ours}={near[0]}")
        elif ours != "annotator":
            found.append(f"{ours}=…")
    return found


# --- Label Studio: a list of tasks; ours are told by ``id`` in a task's data ---------------------------------------


def _is_label_studio(row: dict[str, Any]) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def _label_studio(place: str, task: dict[str, Any]) -> Iterator[Row]:
    """Read a task: of each annotation the ``Pairwise`` or the ``Choices`` in it; cancelled ones are skips."""
    if not isinstance(task["data"].get("id"), str):
        raise InputError("its data has no id of a duel; --export writes tasks that do")
    for annotation in task["annotations"]:
        who = annotation.get("completed_by", "")
        who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
        when = str(annotation.get("updated_at") or annotation.get("created_at") or "")
        said = [_label_studio_choice(result) for result in annotation.get("result") or ()]
        said = [choice for choice in said if choice is not None]
        if annotation.get("was_cancelled"):
            said = ["skip"]
        if len(said) > 1:
            raise InputError(f"annotation {annotation.get('id')} has {len(said)} answers; a duel has one")
        if said:
            yield Row(place, task["data"]["id"], said[0], f"label-studio {who}".strip(), when)


def _label_studio_choice(result: dict[str, Any]) -> Any:
    value = result.get("value", {})
    if result.get("type") == "pairwise":
        return value["selected"]
    return value["choices"][0] if result.get("type") == "choices" else None


# --- Argilla: a list of records; ours are told by the record's id ---------------------------------------------------


def _is_argilla(row: dict[str, Any]) -> bool:
    return isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict)


def _argilla(place: str, record: dict[str, Any]) -> Iterator[Row]:
    """Read a record: the responses to its one question, a label or a ranking of ``left`` and ``right``."""
    questions = record["responses"]
    if len(questions) > 1:
        raise InputError(f"it answers {len(questions)} questions ({', '.join(questions)}); a duel has one")
    for response in next(iter(questions.values()), ()):
        value = response["value"]
        if isinstance(value, list):
            ranks = {entry["value"]: entry["rank"] for entry in value}
            left, right = ranks["left"], ranks["right"]
            value = "tie" if left == right else "left" if left < right else "right"
        yield Row(place, str(record["id"]), value, f"argilla {response.get('user_id', '')}".strip())


FORMS: tuple[tuple[Callable[[dict[str, Any]], bool], Callable[[str, dict[str, Any]], Iterator[Row]]], ...] = (
    (_is_label_studio, _label_studio),
    (_is_argilla, _argilla),
)


# --- Duels for other tools ----------------------------------------------------------------------------------------


def export(path: Path, queries: Sequence[Query], form: str, question: str) -> list[str]:
    """Write duels as another tool reads them; return what to do with the file, a line each."""
    rows: list[dict[str, Any]] = [
        {"id": query.id, "prompt": query.text, "left": query.left, "right": query.right} for query in queries
    ]
    again = f"bring the answers back: activedpo label … --import FILE  ({len(rows)} duels in {path})"
    if form == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*rows[0], "answer", "annotator"], restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
        return [f"fill in the column answer: {', '.join(CHOICES)}", again]
    if form == "argilla":
        records = [
            {
                "id": row.pop("id"),
                "fields": row | {"prompt": to_json(query.prompt)},
                "metadata": {},
                "suggestions": {},
                "responses": {},
                "vectors": {},
                "status": "pending",
                "_server_id": None,
            }
            for row, query in zip(rows, queries, strict=True)
        ]
        write_text(path, dumps(records, indent=1) + "\n")
        return [
            "a dataset with the fields prompt, left and right and one LabelQuestion (left, right, tie, skip)",
            f"dataset.records.from_json({str(path)!r})",
            again,
        ]
    write_text(path, dumps([{"data": row} for row in rows], indent=1) + "\n")
    return ["labelling interface:", *LABEL_STUDIO.format(question=_attribute(question)).splitlines(), again]


LABEL_STUDIO = """\
<View>
  <Header value="{question}"/>
  <Text name="prompt" value="$prompt"/>
  <Text name="left" value="$left"/>
  <Text name="right" value="$right"/>
  <Choices name="answer" toName="prompt" choice="single" showInline="true">
    <Choice value="left"/><Choice value="tie"/><Choice value="right"/>
  </Choices>
</View>"""


def _attribute(text: str) -> str:
    from xml.sax.saxutils import quoteattr

    return quoteattr(text, {"\n": "&#10;"})[1:-1].replace('"', "&quot;")
