"""Owns the pool: prompts and the responses to choose from, read from the files that people have.

A row is ``prompt`` (a text or messages) with ``responses`` (texts or messages; as UltraFeedback has them, also
``completions``), or with ``chosen`` and ``rejected`` as TRL has them, also with the prompt within both; rows of one
prompt are put together, and a response that is there twice counts once.  Prompts alone make a pool whose responses the
model draws.  What the data hold out by a split is marked, by the same rule as prompts are.  Knows nothing of models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.data import files
from llm_loop.data.chat import Message, Prompt
from llm_loop.data.files import Found
from llm_loop.data.prompts import PromptSet
from llm_loop.data.rows import ANSWER, heldout_of, messages, prompt_of

RESPONSES = ("responses", "completions", "candidates")
"""names of the list of responses"""
TEXTS = ("response", "text", "content", "completion")
"""names of a response's text, where it is an object"""
FIELDS = ("prompt", "responses", "chosen", "rejected")
"""what ``--fields`` may give another name"""


@dataclass(frozen=True)
class Group:
    """A prompt and its responses, no two alike; none if the model is to draw them."""

    prompt: Prompt
    responses: tuple[str, ...]
    place: str = ""
    """where it was read: file and row"""
    heldout: bool = False
    """whether a split of the data holds the prompt out"""


@dataclass(frozen=True)
class Pool:
    """All groups, in the order in which their prompts were first met."""

    groups: tuple[Group, ...]
    files: Mapping[str, str]
    """SHA-256 of what was read, by file"""

    @property
    def drawn(self) -> bool:
        """Whether there are prompts alone."""
        return not any(group.responses for group in self.groups)

    def learnable(self) -> Pool:
        """Return the pool without what the data hold out; ``InputError`` if nothing else is there."""
        groups = tuple(group for group in self.groups if not group.heldout)
        if not groups:
            raise InputError(f"pool: {', '.join(self.files)}: every prompt is held out by its split; none is left")
        return replace(self, groups=groups)

    @property
    def widest(self) -> int:
        """The largest number of responses to a prompt."""
        return max(len(group.responses) for group in self.groups)


def read(path: Path, fields: Mapping[str, str] | None = None, dropped: Counter[str] | None = None) -> Pool:
    """Return the pool of a file or folder; ``fields`` says by which name its rows have ours (``prompt: question``).

    A prompt that any of its rows holds out is held out.

    Raises ``InputError``, with the row's place, for a row that is none, two forms in one row or one file, an id that is
    there twice, a split that is not known, and a pool without a single duel.  With ``dropped`` such rows are left out,
    and counted there.
    """
    found, hashes = files.rows(files.located(str(path), "the name of one"))
    groups: dict[Prompt, dict[str, None]] = {}
    places: dict[Prompt, str] = {}
    out: set[Prompt] = set()
    ids: dict[str, str] = {}
    first: tuple[bool, str] | None = None
    for row in found:
        try:
            with at(row):
                prompt, responses = _group(renamed(row_of(row), fields or {}))
                heldout = heldout_of(row.value, row.split)
                _new_id(row, ids)
                if first is None:
                    first = bool(responses), row.place
                elif first[0] != bool(responses):
                    has, other = ("responses", "a prompt alone") if first[0] else ("a prompt alone", "responses")
                    raise InputError(f"it has {other}, and {first[1]} has {has}")
        except InputError:
            if dropped is None:
                raise
            dropped["bad row"] += 1
            continue
        groups.setdefault(prompt, {}).update(dict.fromkeys(responses))
        places.setdefault(prompt, row.place)
        if heldout:
            out.add(prompt)
    if not groups:
        raise InputError(f"pool: {path} has no rows")
    kept = tuple(Group(prompt, tuple(texts), places[prompt], prompt in out) for prompt, texts in groups.items())
    return Pool(kept, hashes)


def offered(
    pool: Pool, texts: PromptSet, responses: int, key: Key, fits: Callable[[str], bool] = lambda text: True
) -> tuple[PromptSet, dict[Prompt, tuple[str, ...]]]:
    """Return what a loop may ask about: the prompts to learn from that have so many responses, and so many of each.

    Which ones, and in which order, is drawn at random, since a preference set has the better one first.  ``fits`` says
    which responses may be used.  Raises ``InputError`` if no prompt has enough of them.
    """
    groups = {group.prompt: group for group in pool.groups}
    (generator,) = key.fold_in("responses").generators()
    kept: dict[Prompt, tuple[str, ...]] = {}
    for prompt in texts.train:
        there = [text for text in groups[prompt].responses if fits(text)] if prompt in groups else []
        order = generator.permutation(len(there))
        if len(there) >= responses:
            kept[prompt] = tuple(there[place] for place in order[:responses])
    if not kept:
        raise InputError(
            f"pool {texts.name}: none of {len(texts.train)} prompts to learn from has {responses} responses; the most "
            f"that one has are {pool.widest}: lower --responses"
        )
    fewer = {f"with fewer than {responses} responses": len(texts.train) - len(kept)}
    return replace(texts, train=tuple(kept), dropped={**texts.dropped, **fewer}), kept


@contextmanager
def at(row: Found, what: str = "pool") -> Iterator[None]:
    """Say of what is wrong in the block where it stands."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {row.place}: {error}") from None


def row_of(row: Found) -> dict[str, Any]:
    """Return what a row says, by its fields' names."""
    if row.error:
        raise InputError(row.error)
    if not isinstance(row.value, dict):
        raise InputError("it is not a row with named fields")
    return row.value


def renamed(row: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Return a row with our names of its fields; of several forms of responses, only the one that they name."""
    missing = [name for name in fields.values() if name not in row]
    if missing:
        raise InputError(f"it has no field {missing[0]!r}, which --fields names; it has {', '.join(row) or 'none'}")
    others = {*fields.values()}
    if "responses" in fields:
        others |= {*RESPONSES, "chosen", "rejected"}
    elif "chosen" in fields or "rejected" in fields:
        others |= {*RESPONSES}
    return {name: value for name, value in row.items() if name not in others} | {
        ours: row[theirs] for ours, theirs in fields.items()
    }


def _new_id(row: Found, ids: dict[str, str]) -> None:
    name = row.value.get("id")
    if isinstance(name, str | int) and not isinstance(name, bool):
        if str(name) in ids:
            raise InputError(f"the id {str(name)[:60]!r} is that of {ids[str(name)]} too; ids are to be distinct")
        ids[str(name)] = row.place


def _group(row: dict[str, Any]) -> tuple[Prompt, tuple[str, ...]]:
    named = [name for name in RESPONSES if isinstance(row.get(name), list)]
    pair_there = "chosen" in row and "rejected" in row
    if len(named) + pair_there > 1:
        forms = [*named, *(["chosen and rejected"] if pair_there else [])]
        raise InputError(
            f"it has {', and also '.join(forms)}: leave one form, or let --fields of activedpo select name it"
        )
    if pair_there:
        prompt, pair = pair_of(row)
        return prompt, _distinct(pair)
    prompt = _prompt(row)
    if not named:
        lone = [name for name in (*RESPONSES, "chosen", "rejected", *TEXTS) if name in row]
        if lone:
            raise InputError(
                f"its {lone[0]} is no list of responses; a pool's row has responses, or chosen and rejected"
            )
        return prompt, ()
    texts = tuple(_response(entry, number) for number, entry in enumerate(row[named[0]], start=1))
    return prompt, _distinct(texts)


def _distinct(texts: Sequence[str]) -> tuple[str, ...]:
    if len(set(texts)) < 2:
        raise InputError(f"it has no two different responses ({len(texts)} in all)")
    return tuple(dict.fromkeys(texts))


def _prompt(row: dict[str, Any]) -> Prompt:
    try:
        return prompt_of(row)
    except InputError as error:
        if str(error).startswith("it has none of the fields"):
            names = ", ".join(row) or "none"
            raise InputError(
                f"none of its fields is known as a prompt; it has {names[:160]}: say which is which, such as --fields "
                f"prompt={next(iter(row), 'question')} responses=…"
            ) from None
        raise


def pair_of(row: dict[str, Any]) -> tuple[Prompt, tuple[str, str]]:
    """Return a row's prompt, and its preferred and other response, without the prompt if they repeat it."""
    prompt = _prompt(row)
    sides = []
    for name in ("chosen", "rejected"):
        value = row[name]
        if isinstance(value, list):
            said = messages(value)
            if not isinstance(prompt, str) and said[: len(prompt)] == prompt:
                said = said[len(prompt) :]
            elif len(said) > 1 and isinstance(prompt, str) and said[0] == Message("user", prompt):
                said = said[1:]
            sides.append(_single(said, f"its {name}"))
        elif isinstance(value, str):
            whole = "prompt" not in row and isinstance(prompt, str) and prompt.endswith(ANSWER)
            sides.append(_text(value[len(prompt) :] if whole else value, f"its {name}"))
        else:
            raise InputError(f"its {name} is neither a text nor messages")
    return prompt, (sides[0], sides[1])


def _response(entry: Any, number: int) -> str:
    what = f"its response {number}"
    if isinstance(entry, list):
        return _single(messages(entry), what)
    if isinstance(entry, dict):
        if {"role", "content"} <= set(entry):
            return _single(messages([entry]), what)
        entry = next((entry[name] for name in TEXTS if isinstance(entry.get(name), str)), None)
    return _text(entry, what)


def _single(said: Iterable[Message], what: str) -> str:
    turns = list(said)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise InputError(f"{what} is not one message of the assistant")
    return _text(turns[0].content, what)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what} is no text")
    if not value.strip():
        raise InputError(f"{what} is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{what} holds half a surrogate pair, which is no text")
    return value
