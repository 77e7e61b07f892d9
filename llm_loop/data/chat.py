"""Owns what a prompt is: a text, or the messages of a conversation.  Knows nothing of files and tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool, as chat templates know them"""
    content: str


Prompt = str | tuple[Message, ...]
"""A text to go on with, or a conversation whose next turn is the assistant's."""


def to_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return a prompt as JSON has it: a text, or messages as ``apply_chat_template`` and TRL take them."""
    return prompt if isinstance(prompt, str) else [asdict(message) for message in prompt]


def as_trl(prompt: Prompt, chosen: str, rejected: str) -> dict[str, Any]:
    """Return a decided duel as TRL reads it: of a conversation, both sides are messages too."""
    sides: dict[str, Any] = {"chosen": chosen, "rejected": rejected}
    if not isinstance(prompt, str):
        sides = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
    return {"prompt": to_json(prompt), **sides}


def from_json(value: Any) -> Prompt:
    """Return the prompt that ``to_json`` wrote; ``ValueError`` for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value:
        messages = [entry for entry in value if isinstance(entry, dict) and set(entry) == {"role", "content"}]
        if len(messages) == len(value) and all(isinstance(part, str) for entry in messages for part in entry.values()):
            return tuple(Message(**entry) for entry in messages)
    raise ValueError("neither a text nor messages with role and content")


def text_of(prompt: Prompt) -> str:
    """Return a prompt as text, for people and for reward models that read text: turns with their roles before them.

    A single message is its content alone.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in prompt)


def asked(prompt: Prompt) -> str:
    """Return what the user wrote last: of a text all of it, of a conversation without a user ``text_of``."""
    if isinstance(prompt, str):
        return prompt
    return next((message.content for message in reversed(prompt) if message.role == "user"), text_of(prompt))


def continuable(prompt: Prompt) -> str:
    """Return a prompt as text that a model without a chat template goes on with: ``text_of``, and whose turn it is."""
    single = isinstance(prompt, str) or len(prompt) == 1
    return text_of(prompt) if single else f"{text_of(prompt)}\n\nAssistant:"
