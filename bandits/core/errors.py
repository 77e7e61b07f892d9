"""The one exception a user's input can raise; commands print its message as one line and exit with status 2.

No ``ValueError``: who catches that of a library does not catch this by mistake.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager


class InputError(Exception):
    """What the user gave cannot be used; the message says what, where and what to do."""


def unknown(what: str, name: str, known: Collection[str], derived: Iterable[str] = ()) -> InputError:
    """Return the error for a name that there is not, with the nearest one that there is, or that follows from one."""
    near = difflib.get_close_matches(name, [*known, *derived], 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {what} {name!r}; {hint}choose from {', '.join(known)}")


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Let bad input that is found within be told by the option that brought it, where the message names none."""
    try:
        yield
    except InputError as error:
        if "--" in str(error):
            raise
        raise type(error)(f"{error} ({option})") from None
