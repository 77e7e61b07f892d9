"""Owns how texts and conversations become tokens, for policies and reward models alike.

What reads like a special token within a text is text: only the tokenizer and its chat template put special ones.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from bandits.core.errors import InputError
from bandits.runs.text import lines
from llm_loop.data.chat import Message, Prompt, text_of, to_json


def plain(tokenizer: Any, text: str) -> list[int]:
    """Return a text's tokens, none of them special."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids


def conversation(tokenizer: Any, said: tuple[Message, ...], answer: bool) -> list[int]:
    """Return the tokens of a conversation as the chat template has it, with ``answer`` up to where the answer begins.

    Raises ``InputError`` for a conversation that the template refuses.
    """
    text = _rendered(tokenizer, said, answer)
    special = tokenizer.all_special_tokens
    if not any(token in message.content for token in special for message in said):
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids
    # Contents are cut out of the template's text, so that special tokens are the template's alone.
    marks = [f"\ue000{i}\ue001" for i in range(len(said))]
    marked = tuple(replace(message, content=mark) for message, mark in zip(said, marks, strict=True))
    out: list[int] = []
    for piece in re.split("(\ue000\\d+\ue001)", _rendered(tokenizer, marked, answer)):
        if piece in marks:
            content = said[marks.index(piece)].content
            out += plain(tokenizer, content if content in text else content.strip())
        elif piece:
            out += tokenizer(piece, add_special_tokens=False).input_ids
    return out


def _rendered(tokenizer: Any, said: Prompt, answer: bool) -> str:
    try:
        text: str = tokenizer.apply_chat_template(to_json(said), tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # a template is somebody's program
        reason = (lines(str(error)) or [type(error).__name__])[0]
        shown = text_of(said)[:60]
        raise InputError(f"the chat template refuses a prompt ({reason[:120]}): {shown!r}…") from None
    return text
