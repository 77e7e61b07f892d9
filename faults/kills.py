"""Cases: a run killed within, before and after each of its writes must go on to the same bytes and leave no litter."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.harness import Case, differences, play

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


def count_writes(path: Path) -> Callable[[], None]:
    """Return what makes a process keep the number of its writes in a file."""

    def set_counter() -> None:
        named = os.replace
        made = 0

        def replace(source: Any, target: Any) -> None:
            nonlocal made
            named(source, target)
            made += 1
            path.write_text(str(made), encoding="ascii")

        os.replace = replace  # type: ignore[assignment]

    return set_counter


def cases(
    program: str, arguments: tuple[str, ...], expected: dict[str, str], writes: int, whole: bool
) -> Iterator[Case]:
    """Yield a kill at each write, its moment taken in turn (``whole``: at all three)."""
    for number in range(writes):
        for moment in MOMENTS if whole else (MOMENTS[number % 3],):

            def attempt(folder: Path, number: int = number, moment: str = moment) -> str:
                killed = play(program, arguments, folder, before=trap(number, moment))
                if killed.status != -signal.SIGKILL:
                    return f"was not killed (status {killed.status}): {killed.err[-200:]}"
                again = play(program, arguments, folder)
                return again.failed or differences(expected, folder / "results")

            yield Case("kill", f"{program}: {moment} write {number + 1} of {writes}", attempt)
