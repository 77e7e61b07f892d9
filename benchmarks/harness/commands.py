"""Owns commands that are timed as a user runs them: here or at a commit of the past, with what they leave.

A command's processes end with the contender's own, and that ends with the benchmarks.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from bandits.runs.text import lines
from benchmarks.harness.measure import AbsentError, family, kill, memory

ROOT = Path(__file__).parents[2]
POLL = 0.2


def run(module: str, arguments: Sequence[str], output: Path, tree: Path = ROOT) -> float:
    """Run ``python -m MODULE … --output OUTPUT`` in a source tree; return the peak memory of all its processes, GB.

    Raises ``AbsentError`` with its last line if it fails, ``EOFError`` if the benchmarks have ended meanwhile.
    """
    told, parent = output / "stderr.txt", multiprocessing.parent_process()
    with told.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, "--output", str(output)],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        peak = 0.0
        try:
            while process.poll() is None:
                peak = max(peak, sum(memory(pid).get("RssAnon", 0.0) for pid in family(process.pid)))
                if parent is not None and not parent.is_alive():
                    raise EOFError("the benchmarks have been stopped")
                time.sleep(POLL)
        finally:
            if process.poll() is None:
                kill(family(process.pid))
                process.wait()
    if process.returncode:
        said = [line for line in lines(told.read_text("utf-8", "replace")) if any(map(str.isalnum, line))]
        raise AbsentError(said[-1] if said else f"{module} ended with status {process.returncode}")
    return peak


def unpack(commit: str, folder: Path) -> None:
    """Write the files of a commit of this repository; ``AbsentError`` where its history does not have it."""
    try:
        made = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=tar", commit], capture_output=True)
    except OSError:
        raise AbsentError(f"commit {commit} cannot be read: there is no git") from None
    if made.returncode:
        raise AbsentError(f"commit {commit} is not in this checkout's history")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
