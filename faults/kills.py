"""Cases: a run killed within, before and after each of its writes must go on to the same bytes and leave no litter."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from faults.harness import Case, differences, few, play

MOMENTS = ("within", "before", "after")


def trap(number: int, moment: str) -> Callable[[], None]:
    """Return what makes a process kill itself at its write of this number, from 0: when its bytes are half on the disk,
    when they are whole under a temporary name, or when the file has its name."""

    def set_trap() -> None:
        synced, named = os.fsync, os.replace
        count = {"fsync": -1, "replace": -1}

        def fsync(handle: int) -> None:
            synced(handle)
            count["fsync"] += 1
            if moment == "within" and count["fsync"] == number:
                with contextlib.suppress(OSError):  # a folder, of which nothing can be cut
                    os.ftruncate(handle, os.fstat(handle).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def replace(source: Any, target: Any) -> None:
            count["replace"] += 1
            if moment == "before" and count["replace"] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            named(source, target)
            if moment == "after" and count["replace"] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync, os.replace = fsync, replace  # type: ignore[assignment]

    return set_trap


def note_writes(path: Path) -> Callable[[], None]:
    """Return what makes a process keep in a file what it writes, a line a write."""

    def set_note() -> None:
        named = os.replace

        def replace(source: Any, target: Any) -> None:
            named(source, target)
            with path.open("a", encoding="utf-8") as notes:
                notes.write(f"{target}\n")

        os.replace = replace  # type: ignore[assignment]

    return set_note


def cases(
    program: str, arguments: tuple[str, ...], expected: dict[str, str], writes: Sequence[str], whole: bool
) -> Iterator[Case]:
    """Yield kills at the writes of a few files of each kind, at moments in turn (``whole``: at all three of each)."""
    for turn, number in enumerate(few(writes, whole)):
        for moment in MOMENTS if whole else (MOMENTS[turn % 3],):

            def attempt(folder: Path, number: int = number, moment: str = moment) -> str:
                killed = play(program, arguments, folder, before=trap(number, moment))
                if killed.status != -signal.SIGKILL:
                    return f"was not killed (status {killed.status}): {killed.err[-200:]}"
                again = play(program, arguments, folder)
                return again.failed or differences(expected, folder / "results")

            yield Case("kill", f"{program}: {moment} write {number + 1} of {len(writes)}", attempt)
