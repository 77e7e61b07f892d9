"""Owns what a file's row says: its prompt, and whether it is held out.  Knows nothing of files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from bandits.core.errors import InputError
from llm_loop.data.chat import Message, Prompt, text_of

HELD_OUT = {
    *("valid", "validation", "val", "dev", "devel", "development", "eval", "evaluation"),
    *("test", "testing", "heldout", "holdout"),
}
"""words of a split's name by which it is held out"""
TRAINING = {"train", "training"}
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""names of roles as some data have them"""
ANSWER = "\n\nAssistant:"
"""what opens an answer in Anthropic's dialogues"""
FORMS = (
    "prompt (text or messages), messages, chosen and rejected (a dialogue), question, instruction, "
    "info.post (TL;DR), question.full_text (WebGPT)"
)


class NoPromptError(InputError):
    """A row that is as its data set should be, but holds no prompt; it is dropped and counted."""


def prompt_of(row: Any) -> Prompt:
    """Return the prompt of a row, which is recognised by its fields.

    ``prompt`` (text or messages), ``messages`` or ``conversations`` (up to the assistant's last turn), ``chosen`` and
    ``rejected`` alone (what they share, up to the assistant's last turn: Anthropic's dialogues, UltraFeedback),
    ``instruction`` with ``input``, ``question``, and the rows of ``openai/summarize_from_feedback`` and
    ``openai/webgpt_comparisons``.  Raises ``InputError`` for any other row, an empty prompt, and one that no tokenizer
    takes (half a surrogate pair); ``NoPromptError`` for a news article among TL;DR's posts.
    """
    if not isinstance(row, dict):
        raise InputError("it is not a row with named fields")
    prompt = _recognised(row)
    text = text_of(prompt) if isinstance(prompt, str) else prompt[-1].content
    if not text.strip():
        raise InputError("it has an empty prompt")
    for part in (prompt,) if isinstance(prompt, str) else (part.content for part in prompt):
        half = re.search("[\ud800-\udfff]", part)
        if half:
            raise InputError(f"its prompt holds half a surrogate pair (\\u{ord(half[0]):04x}), which is no text")
    return prompt


def _recognised(row: dict[str, Any]) -> Prompt:
    match row:
        case {"info": {"post": str(post), **info}}:
            known = {"SUBREDDIT": info.get("subreddit") and f"r/{info['subreddit']}", "TITLE": info.get("title")}
            if not post.strip():
                raise InputError("it has an empty post")
            return "\n\n".join(f"{name}: {value}" for name, value in (known | {"POST": post}).items() if value) + (
                "\n\nTL;DR:"
            )
        case {"info": {"article": str()}}:
            raise NoPromptError("no post")
        case {"prompt": str(), "chosen": list(chosen), "rejected": list(rejected)} if (
            len(chosen) > 1 and chosen[:1] == rejected[:1]
        ):
            return _shared(messages(chosen), messages(rejected))
        case {"prompt": str(prompt)}:
            return prompt
        case {"prompt": list(prompt)}:
            return opened(messages(prompt))
        case {"messages": list(said)} | {"conversations": list(said)} | {"conversation": list(said)}:
            return before_answer(messages(said))
        case {"chosen": str(chosen), "rejected": str(rejected)}:
            return _shared_dialogue(chosen, rejected)
        case {"chosen": list(chosen), "rejected": list(rejected)}:
            return _shared(messages(chosen), messages(rejected))
        case {"question": str(question)} | {"question": {"full_text": str(question)}}:
            if not question.strip():
                raise InputError("it has an empty question")
            return f"Question: {question.strip()}\n\nAnswer:"
        case {"instruction": str(instruction)}:
            more = row.get("input")
            return f"{instruction}\n\n{more}" if isinstance(more, str) and more.strip() else instruction
    fields = ", ".join(f"{name} ({type(value).__name__})" for name, value in row.items())
    raise InputError(f"it has none of the fields {FORMS}; it has {fields[:160] or 'no field'}")


def answer_of(row: dict[str, Any], prompt: Prompt) -> str:
    """Return what a row has as a good answer to its prompt; empty if it has none.

    ``completion``, ``response`` or ``output`` (text, or messages that end with the assistant's), the assistant's last
    turn of ``messages``, the preferred side of ``chosen`` and ``rejected``, the summary of TL;DR's that was chosen,
    the better of WebGPT's two answers.
    """
    match row:
        case {"info": {"post": str()}, "summaries": [*summaries], "choice": int(choice)} if choice < len(summaries):
            found = summaries[choice]
            return " " + str(found["text"]).strip() if isinstance(found, dict) and "text" in found else ""
        case {"answer_0": str(first), "answer_1": str(second), "score_0": float(one), "score_1": float(two)}:
            return " " + (first if one >= two else second).strip()
        case {"completion": found} | {"response": found} | {"output": found} | {"chosen": found}:
            pass
        case {"messages": found} | {"conversations": found} | {"conversation": found}:
            pass
        case _:
            return ""
    if isinstance(found, list):
        said = messages(found)
        return said[-1].content if said[-1].role == "assistant" else ""
    if not isinstance(found, str):
        return ""
    return found.removeprefix(prompt) if isinstance(prompt, str) else found


def messages(entries: Sequence[Any]) -> tuple[Message, ...]:
    """Return messages, each with ``role`` and ``content`` (a text or parts of text), or with ``from`` and ``value``."""
    found = []
    for number, entry in enumerate(entries, start=1):
        match entry:
            case {"role": str(role), "content": str(content)} | {"from": str(role), "value": str(content)}:
                pass
            case {"role": str(role), "content": [*parts]} if parts and all(
                isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts
            ):
                content = "".join(part["text"] for part in parts)
            case _:
                raise InputError(f"message {number} has no role and content of text")
        found.append(Message(ROLES.get(role.lower(), role.lower()), content))
    if not found:
        raise InputError("it has no messages")
    return tuple(found)


def opened(said: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return messages that wait for an answer; ``InputError`` if the last is the assistant's own."""
    if said[-1].role == "assistant":
        raise InputError("its prompt ends with the assistant's own message")
    return said


def before_answer(said: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a conversation up to the assistant's last turn, which is left out; all of it if it waits for an answer."""
    kept = said
    while kept and kept[-1].role == "assistant":
        kept = kept[:-1]
    if not kept or kept[-1].role == "system":
        raise InputError("its messages hold nothing before the assistant's answer")
    return kept


def _shared(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Message, ...]:
    return before_answer(tuple(a for a, b in _while_equal(chosen, rejected)))


def _shared_dialogue(chosen: str, rejected: str) -> str:
    prefix = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 (of characters, which is meant)
    end = prefix.rfind(ANSWER)
    if end < 0:
        raise InputError('its chosen and rejected share no dialogue up to an answer ("\\n\\nAssistant:"), so no prompt')
    return prefix[:end] + ANSWER


def _while_equal(first: Sequence[Message], second: Sequence[Message]) -> list[tuple[Message, Message]]:
    pairs = []
    for pair in zip(first, second, strict=False):
        if pair[0] != pair[1]:
            break
        pairs.append(pair)
    return pairs


def held_out(name: str) -> bool | None:
    """Return whether a split or file name says held out (True), training (False) or neither (None).

    Whole words count (``test_prefs``, ``valid1``, ``VALIDATION``, ``held-out``), never parts of words (``contest``).
    Raises ``InputError`` for a name that says both.
    """
    words = set(re.findall("[a-z]+", name.lower().replace("held-out", "heldout").replace("held_out", "heldout")))
    out, training = bool(words & HELD_OUT), bool(words & TRAINING)
    if out and training:
        raise InputError(f"{name!r} names both training and held-out rows; rename it")
    return out if out or training else None


def split_of(row: dict[str, Any]) -> bool | None:
    """Return whether a row's field ``split`` holds it out (None: it has none); ``InputError`` for a split not known."""
    split = row.get("split")
    if split is None or split == "":
        return None
    found = held_out(str(split))
    if found is None:
        raise InputError(f"its split {str(split)[:40]!r} is neither train nor one of {', '.join(sorted(HELD_OUT))}")
    return found


def heldout_of(row: dict[str, Any], name: str | None) -> bool | None:
    """Return whether a row is held out (None: nothing says), by its ``split`` or by its file's or data set's name.

    Where both say, either can hold it out.
    """
    said = (split_of(row), held_out(name or ""))
    return None if said == (None, None) else any(said)
