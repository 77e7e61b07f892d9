"""The one exception a user's input can raise; commands and scripts print it as one line and exit with status 2.

No ``ValueError``: who catches that of a library does not catch this by mistake.
"""

import difflib
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType


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


def tell(line: str) -> None:
    """Print what went wrong, on one line, to standard error, if that is open."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(" ".join(line.split("\n")), file=sys.stderr)


def _end_script(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Let bad input that a script does not catch end it as it ends a command; at a prompt, show what is always shown.

    The interpreter takes the status of an exit that its hook for uncaught exceptions raises.
    """
    if not isinstance(error, InputError) or hasattr(sys, "ps1") or sys.flags.interactive:
        _usual_hook(kind, error, trace)
        return
    frames = [at for at in traceback.walk_tb(trace) if at[0].f_globals.get("__name__") == "__main__"]
    where = [f" ({Path(frame.f_code.co_filename).name}, line {line})" for frame, line in frames[-1:]]
    tell("".join([f"error: {error}", *where]))
    raise SystemExit(2)


_usual_hook = sys.excepthook
sys.excepthook = _end_script
