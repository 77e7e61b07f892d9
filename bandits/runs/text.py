"""Owns text as files hold it: what ends a line, and JSON that every reader takes.  Knows nothing of paths."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# What some readers take for the end of a line or show as something else, and what UTF-8 cannot hold: controls beyond
# those that JSON escapes itself, marks of direction, line and paragraph separators, halves of surrogate pairs.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def lines(text: str) -> list[str]:
    """Return a text's lines without their ends, which are ``\\n``, ``\\r\\n`` and ``\\r`` alone.

    ``str.splitlines`` also ends a line at U+2028, U+0085 and six other characters that stand within texts.
    """
    found = re.split("\r\n|\r|\n", text)
    return found if found[-1] else found[:-1]


def dumps(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return a value as strict JSON (RFC 8259), one line without ``indent``; what is not finite becomes null.

    Characters that could be taken for the end of a line, that change the direction of what follows, or that UTF-8
    cannot hold are escaped; ``loads`` gives every text back (a pair of surrogates as the character it stands for).
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=sort_keys)
    except ValueError:  # rare, so numbers are looked at one by one only then
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=sort_keys)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def loads(text: str) -> Any:
    """Return the value of JSON; NaN and infinities, which some writers leave in it, are None.

    Raises ``ValueError`` for what is no JSON, or nested deeper than Python's stack.
    """
    try:
        return json.loads(text, parse_constant=lambda token: None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
