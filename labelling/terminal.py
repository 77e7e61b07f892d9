"""Owns labelling in a terminal, line by line: over ssh, in a pipe, with ASCII alone.  Knows nothing of files."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator

from bandits.runs.files import WriteError
from bandits.runs.text import lines
from labelling.desk import Desk, StaleError, Standing
from labelling.queries import Choice
from llm_loop.data.chat import Prompt

KEYS: dict[str, Choice] = {"l": "left", "r": "right", "t": "tie", "s": "skip"}
ASK = "[l]eft  [r]ight  [t]ie  [s]kip  [u]ndo  [q]uit > "
# What would move the cursor, change colours, or turn the direction of what follows.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """Return a text that does nothing to a terminal: control characters and marks of direction are written out."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def wrapped(text: str, width: int, indent: str = "  ") -> Iterator[str]:
    """Yield a text's lines, wrapped to a width; its own line ends and indents stay."""
    for line in lines(text.strip("\n")) or [""]:
        clean = harmless(line.expandtabs(4))
        inner = clean[: len(clean) - len(clean.lstrip(" "))][: width // 2]
        yield from textwrap.wrap(
            clean.strip(), width, initial_indent=indent + inner, subsequent_indent=indent + inner
        ) or [""]


def shown(standing: Standing, width: int) -> Iterator[str]:
    """Yield the lines that put a duel before a person."""
    assert standing.duel is not None
    query = standing.duel.query
    head = f"--- {standing.annotator}: {standing.answered} of {standing.total} answered "
    yield ""
    yield head + "-" * max(3, width - len(head))
    yield from _part("PROMPT", query.prompt, width)
    yield from _part("LEFT", query.left, width)
    yield from _part("RIGHT", query.right, width)
    yield ""


def _part(title: str, content: Prompt, width: int) -> Iterator[str]:
    yield ""
    yield title
    if isinstance(content, str):
        yield from wrapped(content, width)
        return
    for turn in content:
        yield f"  {harmless(turn.role)}:"
        yield from wrapped(turn.content, width, "    ")


def label(desk: Desk, name: str, question: str, say: Callable[..., None], read: Callable[[str], str]) -> None:
    """Put duels before a person until none is left, or they quit (``q``, or the input's end)."""
    standing = desk.standing(name)
    while (duel := standing.duel) is not None:
        width = max(40, min(100, shutil.get_terminal_size().columns))
        say(*shown(standing, width), harmless(question))
        key = _key(say, read)
        try:
            if key == "q":
                return
            if key == "u":
                if standing.undo is None:
                    say("there is nothing to take back")
                    continue
                standing = desk.undo(name, *standing.undo)
                say("taken back")
            else:
                standing = desk.answer(name, duel.query.id, duel.query.digest, duel.seen, KEYS[key])
                say(f"saved: {KEYS[key]}")
        except StaleError as error:
            say(str(error))
            standing = desk.standing(name)
        except WriteError as error:
            say(f"not saved: {error}", "free some space, then answer again; no other answer is lost")
    say("", "nothing is left to answer; thank you")


def _key(say: Callable[..., None], read: Callable[[str], str]) -> str:
    while True:
        try:
            said = read(ASK).strip().lower()
        except EOFError:
            say("")
            return "q"
        for key in (*KEYS, "u", "q"):
            word = {"u": "undo", "q": "quit"}.get(key) or KEYS[key]
            if said in (key, word):
                return key
        say("please type l, r, t, s, u or q, then Enter")
