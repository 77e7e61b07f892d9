"""Owns a batch of duels to ask, as a file: ``queries/<batch>.jsonl`` of a project, or one of its own.

A line a duel, in the order in which they were picked (the most informative first)::

    {"id": "9f0c…", "prompt": "…", "left": "…", "right": "…", "swapped": false,
     "width": 1.3, "gain": 0.99, "margin": 0.1, "nearest": "41aa…", "cosine": 0.2, "why": "…"}

Knows nothing of models, and of people only what they may answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from bandits.core.errors import InputError
from bandits.runs.text import dumps
from labelling import jsonl
from llm_loop.data.chat import Prompt, from_json, text_of, to_json

Choice = Literal["left", "right", "tie", "skip"]
"""What a person may say of a duel."""
CHOICES: tuple[Choice, ...] = get_args(Choice)
FIELDS = ("id", "prompt", "left", "right", "swapped", "width", "gain", "margin", "nearest", "cosine", "why")


def content_id(*parts: Any) -> str:
    """Return 16 hex digits that name a content: the head of the SHA-256 of its JSON."""
    return hashlib.sha256(dumps(list(parts), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Query:
    """A duel to ask: a prompt, and two responses in the order in which people see them."""

    id: str
    """``content_id`` of its batch's name, the prompt and the two responses in the pool's order"""
    prompt: Prompt
    left: str
    right: str
    swapped: bool = False
    """whether the left response is the duel's second; the order is drawn at random, and this is its record"""
    width: float | None = None
    """``‖φ‖_{V⁻¹}`` before the batch: how little is known of the answer, in log-odds up to a factor"""
    gain: float | None = None
    """``log(1 + ‖φ‖²_{V⁻¹})`` in nats, given the picks before it: what the answer adds to ``log det V``"""
    margin: float | None = None
    """the model's own reward of the first response less that of the second, in log-odds"""
    nearest: str | None = None
    """id of the duel of the batch that is most like this one"""
    cosine: float | None = None
    """how like, in [0, 1], in the space of ``V⁻¹``"""
    why: str = ""
    """the same in words"""

    @classmethod
    def of(cls, batch: str, prompt: Prompt, first: str, second: str, swapped: bool, **said: Any) -> Query:
        """Return the query of a duel, ``first`` against ``second`` in the pool's order, in a batch of this name."""
        left, right = (second, first) if swapped else (first, second)
        return cls(content_id(batch, to_json(prompt), first, second), prompt, left, right, swapped, **said)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of what a person sees and of the id: answers carry it, so that an edited query is noticed."""
        seen = [self.id, to_json(self.prompt), self.left, self.right]
        return hashlib.sha256(dumps(seen).encode()).hexdigest()

    @property
    def first(self) -> str:
        """The duel's first response, in the pool's order."""
        return self.right if self.swapped else self.left

    @property
    def second(self) -> str:
        """The duel's second response."""
        return self.left if self.swapped else self.right

    @property
    def text(self) -> str:
        """The prompt as text: turns with their roles before them."""
        return text_of(self.prompt)

    def outcome(self, choice: Choice) -> float | None:
        """Return the share of the duel that its *first* response wins: 1, 0, ½ for a tie, None for a skip."""
        match choice:
            case "tie":
                return 0.5
            case "skip":
                return None
            case _:
                return float((choice == "left") != self.swapped)

    def to_json(self) -> dict[str, Any]:
        """Return the line of the file."""
        return {name: getattr(self, name) for name in FIELDS} | {"prompt": to_json(self.prompt)}


def read(path: Path) -> list[Query]:
    """Return a file's queries, in its order; ``InputError`` with the line's number for what is none."""
    if not path.is_file():
        raise InputError(f"there is no file of queries {path}; activedpo select writes one")
    found: dict[str, Query] = {}
    for number, row in jsonl.read(path):
        try:
            query = _query(row)
            if query.id in found:
                raise InputError(f"the id {query.id!r} is there twice")
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        found[query.id] = query
    if not found:
        raise InputError(f"{path} holds no queries")
    return list(found.values())


def write(path: Path, queries: Sequence[Query]) -> None:
    """Write queries, whole or not at all."""
    jsonl.write(path, (query.to_json() for query in queries))


def _query(row: dict[str, Any]) -> Query:
    strange = sorted(set(row) - set(FIELDS))
    if strange:
        raise InputError(f"unknown field {strange[0]!r}; a query has {', '.join(FIELDS)}")
    for name in ("id", "left", "right"):
        if not isinstance(row.get(name), str):
            raise InputError(f"its {name} is no text")
    if not row["id"]:
        raise InputError("its id is empty")
    if row["left"] == row["right"]:
        raise InputError("its two responses are the same")
    if not isinstance(row.get("swapped", False), bool):
        raise InputError("its swapped is neither true nor false")
    for name in ("width", "gain", "margin", "cosine"):
        value = row.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"its {name} is no number")
    if not isinstance(row.get("nearest"), str | None) or not isinstance(row.get("why", ""), str):
        raise InputError("its nearest or why is no text")
    try:
        prompt = from_json(row.get("prompt"))
    except ValueError as error:
        raise InputError(f"its prompt is {error}") from None
    return Query(**row | {"prompt": prompt})
