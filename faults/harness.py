"""Owns how a case is run: a program in a forked process with its own streams, folder and environment, and what it left.

All libraries are imported once, here; a case forks, so that hundreds of runs cost no imports.  Knows nothing of what is
wrong with a case.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib
import math
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bandits.runs.directory import VOLATILE

PROGRAMS = {
    "simulate": "bandits.__main__",
    "theory": "theory_checks.__main__",
    "align": "llm_loop.__main__",
    "map": "bandits.map",
    "project": "faults.project",
}
SECONDS = 240.0  # after which a case hangs


@dataclass(frozen=True)
class Outcome:
    """What a program did: exit status (negative: the signal that ended it), and what it said."""

    status: int
    out: str
    err: str
    late: bool = False
    """killed since its time was up"""

    @property
    def refused(self) -> str:
        """Say why this is no clean refusal: status 2 and one line; empty if it is."""
        lines = [line for line in self.err.split("\n") if line.strip() and not line.lstrip("\r").startswith("cells:")]
        if self.status != 2:
            return f"status {self.status} where 2 is right: {' / '.join(lines[-2:])[:300]}"
        if "Traceback" in self.err:
            return f"a traceback: {lines[-1][:300]}"
        said = [line for line in lines if line.startswith("error: ")]
        if len(said) != 1 or lines[-1] != said[0]:
            return f"{len(lines)} lines where one is right: {' / '.join(lines)[:300]}"
        return ""

    @property
    def failed(self) -> str:
        """Say why this is no good end: status 0 and no traceback; empty if it is."""
        if self.status or "Traceback" in self.err:
            return f"status {self.status}: {' / '.join(self.err.strip().split(chr(10))[-2:])[:300]}"
        return ""


@dataclass(frozen=True)
class Case:
    """One thing that can go wrong: its name, and what tries it and says what went wrong (nothing if it survived)."""

    kind: str
    name: str
    attempt: Callable[[Path], str] = field(repr=False)


def prepare() -> None:
    """Import all programs once; nothing is computed here, so a fork carries no threads."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for module in PROGRAMS.values():
        importlib.import_module(module)
    for module in ("matplotlib.backends.backend_agg", "seaborn", "tqdm", "scipy.stats", "peft", "trl"):
        importlib.import_module(module)


def play(
    program: str,
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str | None] | None = None,
    before: Callable[[], object] | None = None,
    seconds: float = SECONDS,
) -> Outcome:
    """Run ``activedpo PROGRAM ARGUMENTS`` in a forked process whose working folder is ``folder``; return what it did.

    ``before`` is called in the new process first (to set a trap).  A process that outlives ``seconds`` is killed, with
    its group, and counts as hanging (status -9).
    """
    folder.mkdir(parents=True, exist_ok=True)
    streams = [folder.parent / f".{folder.name}.{name}" for name in ("out", "err")]
    child = os.fork()
    if not child:
        status = 70
        try:
            os.setsid()
            for number, path in zip((1, 2), streams, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(folder)
            for name, value in (environment or {}).items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
            sys.argv = [program, *arguments]
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            if before:
                before()
            status = _main(program, list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    status, late = _wait(child, seconds)
    out, err = (path.read_text(encoding="utf-8", errors="replace") for path in streams)
    for path in streams:
        path.unlink()
    return Outcome(status, out, err, late)


def _main(program: str, arguments: list[str]) -> int:
    try:
        found: int = importlib.import_module(PROGRAMS[program]).main(arguments)
        return found
    except SystemExit as stop:
        return int(stop.code) if isinstance(stop.code, int) else 0 if stop.code is None else 1


def _wait(child: int, seconds: float) -> tuple[int, bool]:
    """Wait for a process; kill its whole group when its time is up, and what is left of the group when it ended.

    Returns its status, and whether its time was up.
    """
    until, late = time.monotonic() + seconds, False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if late := time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), late


def few(names: Sequence[str], whole: bool = False, most: int = 3) -> list[int]:
    """Return the places of at most ``most`` files of each kind: figures are alike, and so is a file of every cell.

    ``whole``: of every file.
    """
    seen: collections.Counter[str] = collections.Counter()
    places = []
    for place, name in enumerate(names):
        kind = re.sub(r"cells/[^/]+", "cells", re.sub(r"figures/[^/.]+", "figures", name))
        kind = re.sub(r"\d+", "", kind)
        seen[kind] += 1
        places += [place] if whole or seen[kind] <= most else []
    return places


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by path; times are left out, links and folders told apart."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file() and path.name not in VOLATILE:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(expected: Mapping[str, str], folder: Path) -> str:
    """Say in what a folder differs from what is expected; empty if in nothing."""
    found = contents(folder)
    gone = [name for name in expected if name not in found]
    litter = [name for name in found if name not in expected]
    other = [name for name in expected if name in found and found[name] != expected[name]]
    parts = [
        f"{word} {', '.join(names[:3])}"
        for word, names in (("gone:", gone), ("litter:", litter), ("other bytes:", other))
        if names
    ]
    return "; ".join(parts)


@contextlib.contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """Give a folder of its own, and remove it."""
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def attempt(case: Case, root: Path) -> str:
    """Try a case in a folder of its own; what breaks in the trying is a failure too."""
    with scratch(root, f"case-{os.getpid()}-{abs(hash((case.kind, case.name)))}") as folder:
        try:
            return case.attempt(folder)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return (
                f"the case itself broke: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            )


def attempt_all(
    cases: Sequence[Case], root: Path, jobs: int, tell: Callable[[Case, str], None], over: float = math.inf
) -> None:
    """Try cases, ``jobs`` at a time, each slot a forked process of its own; tell of each as it ends.

    None is begun after ``over``, a time of ``time.monotonic``.
    """
    running: dict[int, tuple[Case, int]] = {}
    waiting = list(reversed(cases))
    while waiting or running:
        if time.monotonic() >= over:
            waiting.clear()
        while waiting and len(running) < jobs:
            case = waiting.pop()
            read, write = os.pipe()
            child = os.fork()
            if not child:
                os.close(read)
                said = attempt(case, root)
                os.write(write, said.encode("utf-8", "replace")[:4000])
                os._exit(0)
            os.close(write)
            running[child] = case, read
        if not running:
            break
        ended, _ = os.wait()
        if ended in running:
            case, read = running.pop(ended)
            with os.fdopen(read, "rb") as stream:
                tell(case, stream.read().decode("utf-8", "replace"))
