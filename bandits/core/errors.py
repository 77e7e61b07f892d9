"""The one exception a user's input can raise; commands print its message as one line and exit with status 2.

No ``ValueError``: who catches that of a library does not catch this by mistake.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """What the user gave cannot be used; the message says what, where and what to do."""


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Let bad input that is found within be told by the option that brought it, where the message names none."""
    try:
        yield
    except InputError as error:
        if "--" in str(error):
            raise
        raise type(error)(f"{error} ({option})") from None
