"""Cases: a damaged file of a run must be noticed; the run is mended to the same bytes, or refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from faults.harness import Case, differences, few, play


def _digit(content: bytes) -> bytes:
    """Change the last digit, the smallest harm that can be done to a table."""
    for place in range(len(content) - 1, -1, -1):
        if 48 <= content[place] <= 57:
            return content[:place] + bytes([48 + (content[place] - 47) % 10]) + content[place + 1 :]
    return content + b"1"


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "is gone": lambda content: None,
    "is empty": lambda content: b"",
    "is cut in half": lambda content: content[: len(content) // 2],
    "lost its last line": lambda content: content[: content.rstrip(b"\n").rfind(b"\n") + 1],
    "has another digit": _digit,
    "has a bit flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([(content + b"\0")[len(content) // 2] ^ 4])
        + content[len(content) // 2 + 1 :]
    ),
    "is []": lambda content: b"[]",
    "is null": lambda content: b"null",
    "is {}": lambda content: b"{}",
    "is noise": lambda content: bytes((37 * i * i + 11 * i) % 256 for i in range(max(64, len(content)))),
}


def cases(
    program: str,
    arguments: tuple[str, ...],
    expected: dict[str, str],
    source: Path,
    state: str,
    whole: bool,
    noticed: Sequence[str] = ("*",),
) -> Iterator[Case]:
    """Yield a damage of a few files of each kind of a run that lies in ``source``, by all ways in turn (``whole``: of
    every file, in every way; ``noticed``: of files of these names alone)."""
    every = sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file())
    names = [name for name in every if any(fnmatch(name, pattern) for pattern in noticed)]
    kinds = list(DAMAGES)
    for turn, place in enumerate(few(names, whole)):
        name = names[place]
        for kind in kinds if whole else (kinds[turn % len(kinds)], kinds[(turn + 3) % len(kinds)]):

            def attempt(folder: Path, name: str = name, kind: str = kind) -> str:
                shutil.copytree(source, folder / "results", symlinks=True)
                target = folder / "results" / name
                content = DAMAGES[kind](target.read_bytes())
                if content is None:
                    target.unlink()
                elif content == target.read_bytes():
                    return ""  # no harm was done
                else:
                    target.write_bytes(content)
                harmed = {n: p.read_bytes() for n in names if (p := folder / "results" / n).exists()}
                again = play(program, arguments, folder)
                if not again.status:
                    return again.failed or differences(expected, folder / "results")
                kept = {n: p.read_bytes() for n in names if (p := folder / "results" / n).exists()}
                return again.refused or ("" if kept == harmed else "refused, but files were changed")

            yield Case("damage", f"{program}, {state}: {name} {kind}", attempt)
