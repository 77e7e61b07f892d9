"""Owns how a row is measured: a process per contender, interleaved runs, wall-clock seconds, peak memory, a profile.

Knows nothing of what the contenders do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import platform
import secrets
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bandits.runs.directory import machine
from bandits.runs.text import lines
from benchmarks.harness.row import Answer, Check, Contender, Row

POLL = 0.05
OPERATORS = 6  # of a profile are shown


@dataclass
class Timing:
    """Seconds of each run, in order, and memory: GB at the peak, and of it outside mapped files."""

    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    beside: float = 0.0


@dataclass(frozen=True)
class Measured:
    """A measured row: timings and figures by contender, the check, who was missing, and where our time went."""

    timings: Mapping[str, Timing]
    figures: Mapping[str, float]
    curves: Mapping[str, list[float]]
    check: Check
    absent: Mapping[str, str]
    profile: tuple[tuple[str, float], ...]


class AbsentError(Exception):
    """A contender that cannot be run here; the message says why."""


class _Worker:
    """A contender in its own process: built once, run when told."""

    def __init__(self, contender: Contender, threads: int) -> None:
        missing = [name for name in contender.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise AbsentError(f"{', '.join(missing)} is not installed")
        self.contender = contender
        self.timing = Timing()
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._scratch = Path(tempfile.gettempdir()) / f"bench-{secrets.token_hex(8)}"
        told = (theirs, contender, threads, self._scratch)
        self._process = context.Process(target=_serve, args=told, daemon=False)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until the workload is built."""
        self._receive()

    def run(self, keep: bool) -> Answer:
        """Run once; note its seconds unless it is a warm-up."""
        self._connection.send("run")
        seconds, answer = self._receive()
        if keep:
            self.timing.seconds.append(seconds * self.contender.scale)
        return answer

    def profiled(self) -> tuple[tuple[str, float], ...]:
        """Run once more under the profiler, whose own memory is no workload's."""
        self._connection.send("profile")
        return self._receive(watched=False)

    def _receive(self, watched: bool = True) -> Any:
        while not self._connection.poll(POLL):
            if watched:
                self._watch()
        if watched:
            self._watch()
        try:
            kind, content = self._connection.recv()
        except EOFError:
            self._process.join()
            raise AbsentError(f"its process ended with status {self._process.exitcode}") from None
        if kind == "failed":
            raise AbsentError(content)
        return content

    def _watch(self) -> None:
        sizes = memory(self._process.pid or 0)
        self.timing.peak = max(self.timing.peak, sizes.get("VmHWM", 0.0))
        self.timing.beside = max(self.timing.beside, sizes.get("RssAnon", 0.0))

    def stop(self) -> None:
        """End the process and all that it started; its temporary files go with it."""
        if self._process.is_alive():
            self._connection.close()
            self._process.join(5)
            if self._process.is_alive():
                assert self._process.pid is not None
                kill(family(self._process.pid))
                self._process.join()
        shutil.rmtree(self._scratch, ignore_errors=True)


def memory(pid: int) -> dict[str, float]:
    """Return a process's memory in GB, by Linux's names; nothing where there is no /proc.

    ``VmHWM`` belongs to the process itself, unlike ``ru_maxrss``, which a child takes over from its parent.
    """
    try:
        status = lines(Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e9 for line in status if line.endswith(" kB")}


def family(pid: int) -> list[int]:
    """Return a process and all its descendants; it alone where there is no /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def kill(pids: Iterable[int]) -> None:
    """End processes at once; those that have ended already are left alone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _serve(connection: Connection, contender: Contender, threads: int, scratch: Path) -> None:
    """Build and run a contender on request (the body of its process); it and what it starts write into ``scratch``.

    ``scratch`` comes and goes with the process, so that none is left where the benchmarks themselves were killed.
    """
    torch.set_num_threads(threads)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    try:
        scratch.mkdir(mode=0o700)
        run = contender.build(**contender.settings)
        connection.send(("ready", None))
        while True:
            message = connection.recv()
            if message == "profile":
                connection.send(("profile", _profile(run)))
                continue
            started = time.perf_counter()
            answer = run()
            connection.send(("answer", (time.perf_counter() - started, _plain(answer))))
    except EOFError:
        return
    except AbsentError as reason:
        connection.send(("failed", str(reason)))
    except Exception as error:  # whatever a peer raises is reported in its place
        where = traceback.extract_tb(error.__traceback__)[-1]
        connection.send(
            ("failed", f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})")
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _plain(answer: Answer) -> dict[str, Any]:
    """Return the answer with tensors as arrays, which cross between processes."""
    return {k: v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for k, v in answer.items()}


def _profile(run: Any) -> tuple[tuple[str, float], ...]:
    """Return the operators that took most of a run, each with its share, and what was spent outside all of them."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as record:
        started = time.perf_counter()
        run()
        elapsed = time.perf_counter() - started
    own = {event.key: event.self_cpu_time_total / 1e6 for event in record.key_averages()}
    top = sorted(own.items(), key=lambda item: -item[1])[:OPERATORS]
    rest = max(0.0, 1 - sum(own.values()) / elapsed)
    return (*((name.removeprefix("aten::"), seconds / elapsed) for name, seconds in top), ("outside operators", rest))


def prepare() -> None:
    """Start the server that contenders' processes are forked from, with the libraries that all of them import."""
    os.environ["KINETO_LOG_LEVEL"] = "9"  # the profiler would write on the terminal
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "numpy", "scipy.linalg", "bandits.sim.run"])


def measure(row: Row, threads: int, repetitions: int | None = None, profiled: bool = True) -> Measured:
    """Measure a row: all contenders are built, warmed, then run in turn, again and again.

    Raises ``AbsentError`` if our own contender cannot be run.
    """
    workers, absent = {}, {}
    for contender in row.contenders:
        try:
            workers[contender.name] = _Worker(contender, threads)
        except AbsentError as reason:
            absent[contender.name] = str(reason)
    try:
        answers: dict[str, Answer] = {}
        for name, worker in list(workers.items()):
            try:
                worker.ready()
                if row.warm and worker.contender.repetitions != 1:
                    answers[name] = worker.run(keep=False)
            except AbsentError as reason:
                _give_up(row, name, reason)
                absent[name] = str(reason)
                workers.pop(name).stop()
        times = repetitions or row.repetitions
        for turn in range(times):
            for name, worker in list(workers.items()):
                if turn >= min(times, worker.contender.repetitions or times):
                    continue
                try:
                    answer = worker.run(keep=True)
                    answers.setdefault(name, answer)
                except AbsentError as reason:
                    _give_up(row, name, reason)
                    absent[name] = str(reason)
                    workers.pop(name).stop()
        shares = workers[row.ours.name].profiled() if profiled else ()
    finally:
        for worker in workers.values():
            worker.stop()
    timings = {name: worker.timing for name, worker in workers.items()}
    figures = {k: float(v) for k, v in answers[row.ours.name].items() if np.ndim(v) == 0}
    curves = {k: np.asarray(v).tolist() for k, v in answers[row.ours.name].items() if k[:2] in ("x:", "y:")}
    return Measured(timings, figures, curves, _checked(row, answers), absent, shares)


def _checked(row: Row, answers: Mapping[str, Answer]) -> Check:
    """Return the row's check; one that breaks has not passed, and the rows after it are still measured."""
    try:
        return row.check(answers)
    except Exception as error:
        return Check(False, f"the check itself failed: {type(error).__name__}: {error}")


def _give_up(row: Row, name: str, reason: AbsentError) -> None:
    if name == row.ours.name:
        raise AbsentError(f"{row.name}: our own contender failed: {reason}")


def hardware() -> dict[str, str]:
    """Return what the numbers depend on: processor, its vector instructions, cores, memory, system."""
    told = _lines(Path("/proc/cpuinfo"))
    names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
    family = [line.split(":", 1)[1].strip() for line in told if line.startswith(("cpu family", "model\t"))][:2]
    size = [line for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal")]
    gb = f"{int(size[0].split()[1]) * 1024 / 1e9:.0f} GB" if size else "unknown"
    processor = names[0] if names else platform.processor()
    kind = f"{processor} (family {'/'.join(family)})" if family else processor
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "processor": kind,
        "instructions": machine()["vector instructions"],
        "cores": str(multiprocessing.cpu_count()),
        "memory": gb,
        "gpu": gpu,
        "system": platform.platform(terse=True),
    }


def _lines(path: Path) -> list[str]:
    return lines(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else []
