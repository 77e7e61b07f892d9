"""Cases: streams, locales, places, locks and environments in which a run must end well or in one line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from faults.harness import PROGRAMS, Case, Outcome, differences, play


def _process(
    program: str, arguments: tuple[str, ...], folder: Path, more: Mapping[str, str | None], shell: str
) -> Outcome:
    """Run a program as a user does, in a new interpreter whose environment and streams are given."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name, value in more.items():
        environment.pop(name, None) if value is None else environment.__setitem__(name, value)
    module = PROGRAMS[program].removesuffix(".__main__")
    line = f"{shell.replace('RUN', f'{sys.executable} -m {module} ' + ' '.join(arguments))}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, timeout=240, check=False
    )
    return Outcome(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


STREAMS: dict[str, tuple[Mapping[str, str | None], str]] = {
    "an ASCII terminal": ({"PYTHONIOENCODING": "ascii"}, "RUN"),
    "a Latin-1 terminal": ({"PYTHONIOENCODING": "latin-1"}, "RUN"),
    "the C locale without UTF-8 mode": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "RUN"),
    "a reader that goes away": ({}, "set -o pipefail; RUN | head -1"),
    "standard output closed": ({}, "RUN >&-"),
    "no home": ({"HOME": None}, "RUN"),
    "TERM=dumb": ({"TERM": "dumb"}, "RUN"),
    "RANK set by something else": ({"RANK": "3"}, "RUN"),
    "WORLD_SIZE=junk": ({"WORLD_SIZE": "junk", "RANK": "0"}, "RUN"),
    "another hash seed": ({"PYTHONHASHSEED": "7"}, "RUN"),
    "many threads": ({"OMP_NUM_THREADS": "4"}, "RUN"),
}


def streams(program: str, arguments: tuple[str, ...], expected: dict[str, str]) -> Iterator[Case]:
    """Yield surroundings in which a run must give its bytes and status 0."""
    for name, (environment, shell) in STREAMS.items():

        def attempt(folder: Path, environment: Mapping[str, str | None] = environment, shell: str = shell) -> str:
            outcome = _process(program, arguments, folder, environment, shell)
            return outcome.failed or differences(expected, folder / "results")

        yield Case("surroundings", f"{program}: {name}", attempt)

    def full(folder: Path) -> str:
        outcome = _process(program, arguments, folder, {}, "RUN >/dev/full")
        return outcome.refused or differences(expected, folder / "results")

    yield Case("surroundings", f"{program}: standard output on a full disk", full)


def _file(folder: Path) -> None:
    (folder / "results").write_text("mine", encoding="utf-8")


def _nothing(folder: Path) -> None:
    (folder / "results").symlink_to("no/such/place")


def _circle(folder: Path) -> None:
    (folder / "results").symlink_to("results")


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file where the folder goes": (_file, "results"),
    "a link to nothing": (_nothing, "results"),
    "a link to itself": (_circle, "results"),
    "a name that is too long": (lambda folder: None, "x" * 300),
    "a path that is too long": (lambda folder: None, "/".join(["y" * 200] * 30)),
    "a NUL in the path": (lambda folder: None, "a\0b"),
    "a device": (lambda folder: None, "/dev/null"),
    "a place that cannot be written": (lambda folder: None, "/proc/activedpo"),
}


def places(program: str, preset: tuple[str, ...]) -> Iterator[Case]:
    """Yield places where no run can be."""
    for name, (make, output) in PLACES.items():
        for force in ((), ("--force",)):

            def attempt(
                folder: Path,
                name: str = name,
                make: Callable[[Path], None] = make,
                output: str = output,
                force: tuple[str, ...] = force,
            ) -> str:
                make(folder)
                before = sorted(folder.rglob("*"))
                outcome = play(program, [*preset, "--output", output, *force], folder)
                left = [path for path in sorted(folder.rglob("*")) if path not in before]
                # A link to nothing may be filled: the place can be written.
                if not outcome.status and name == "a link to nothing":
                    return ""
                return outcome.refused or (f"left {left[0]}" if left else "")

            yield Case("place", f"{program}: {name}{' with --force' if force else ''}", attempt)


def races(program: str, arguments: tuple[str, ...], expected: dict[str, str]) -> Iterator[Case]:
    """Yield runs that meet in one folder, and workers and groups that are killed at any moment."""

    def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
        module = PROGRAMS[program].removesuffix(".__main__")
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments, *more],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def together(folder: Path) -> str:
        runs = [start(folder), start(folder)]
        ends = []
        for run in runs:
            out, err = run.communicate(timeout=240)
            ends.append(Outcome(run.returncode, out.decode(), err.decode()))
        good = [end for end in ends if not end.failed]
        bad = [end for end in ends if end.failed]
        if not good:
            return f"neither ended well: {bad[0].failed}"
        for end in bad:
            if end.refused:
                return end.refused
        return differences(expected, folder / "results")

    yield Case("race", f"{program}: two equal runs at once", together)

    def forced(folder: Path) -> str:
        first = start(folder)
        while not list(folder.rglob("manifest.json")) and first.poll() is None:
            time.sleep(0.02)
        second = play(program, [*arguments, "--force"], folder)
        _, err = first.communicate(timeout=240)
        if first.returncode:
            return f"the first run ended with status {first.returncode}: {err.decode()[-200:]}"
        return (second.refused if second.status else "") or differences(expected, folder / "results")

    yield Case("race", f"{program}: --force beside a running run", forced)

    for share in (0.3, 0.6):

        def group(folder: Path, share: float = share) -> str:
            began = time.monotonic()
            run = start(folder, "--jobs", "2")
            while not list(folder.rglob("manifest.json")) and run.poll() is None:
                time.sleep(0.02)
            time.sleep(share * (time.monotonic() - began))
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
            again = play(program, arguments, folder)
            return again.failed or differences(expected, folder / "results")

        yield Case("race", f"{program}: the whole group killed ({share:.0%})", group)

    def worker(folder: Path) -> str:
        import psutil

        run = start(folder, "--jobs", "2")
        killed = False
        while run.poll() is None and not killed:
            for child in psutil.Process(run.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # a child that lives for a moment only
                    if "LokyProcess" in " ".join(child.cmdline()):
                        child.kill()
                        killed = True
                        break
            time.sleep(0.02)
        _, err = run.communicate(timeout=240)
        if not killed:
            return ""
        if run.returncode and ("Traceback" in err.decode() or "goes on from here" not in err.decode()):
            return f"status {run.returncode}, not one line: {err.decode()[-300:]}"
        again = play(program, arguments, folder)
        return again.failed or differences(expected, folder / "results")

    yield Case("race", f"{program}: a worker killed alone", worker)


def disk(program: str, arguments: tuple[str, ...], expected: dict[str, str]) -> Iterator[Case]:
    """Yield a disk that is full at one of the writes: one line, and the same command goes on when there is room."""
    for number in (0, 1, 3, 8, 20):

        def attempt(folder: Path, number: int = number) -> str:
            def fill() -> None:
                synced = os.fsync
                made = -1

                def fsync(handle: int) -> None:
                    nonlocal made
                    made += 1
                    if made >= number:
                        raise OSError(28, "No space left on device")
                    synced(handle)

                os.fsync = fsync  # type: ignore[assignment]

            outcome = play(program, arguments, folder, before=fill)
            if not outcome.status:
                return ""  # it needed fewer writes
            again = play(program, arguments, folder)
            return outcome.refused or again.failed or differences(expected, folder / "results")

        yield Case("disk", f"{program}: full from write {number + 1} on", attempt)
