"""Owns how a study's cells are played: side by side here or on a cluster, resumed, and with an honest progress line.

A cell writes whole files into a folder of its own and is skipped when they are all there, so neither the number of
jobs nor the backend changes a byte, and a shared folder is all that a cluster needs.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib.util
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from bandits.core.errors import InputError
from bandits.core.own import is_out_of_memory, telling_own
from bandits.runs.directory import BusyError, Identity, Ledger, Part, RunDirectory, StoppedError
from bandits.runs.files import HOST, read_json
from bandits.runs.settings import SHARE, machine_memory

Backend = Literal["loky", "dask", "ray"]
PACKAGE = {"dask": "distributed", "ray": "ray"}
CLUSTER = {"dask": "a Dask scheduler", "ray": "a Ray cluster"}
CONNECT_SECONDS, ANSWER_SECONDS = 2.0, 6.0
OPEN_DASK = """
import faulthandler, os, sys
from distributed import Client
address, seconds = sys.argv[1], float(sys.argv[2])
faulthandler.dump_traceback_later(seconds, exit=True, file=os.open(os.devnull, os.O_WRONLY))
try:
    Client(address, timeout=seconds)
except BaseException as error:
    print(str(error).strip() or type(error).__name__)
    sys.exit(1)
faulthandler.cancel_dump_traceback_later()
"""
"""Becomes a scheduler's client and ends, at the latest some seconds after the library is loaded, which may last."""
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of HTTP/2, and so of Ray, begins: its greeting and empty settings; a server answers with its own."""
NEWS_SECONDS, LOG_SECONDS = 10.0, 60.0
AGAIN = "the same command goes on from here"


@runtime_checkable
class Cell(Protocol):
    """What a run is made of: typed, frozen, picklable; played alone, in any process."""

    @property
    def key(self) -> str:
        """The name of its folder, unique in the run."""
        ...

    @property
    def cost(self) -> float:
        """How long it takes, in any unit that its run's cells share."""
        ...


@dataclass(frozen=True)
class Report:
    """What a finished run says: lines for the terminal, and alarms, which make the exit status 1."""

    lines: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


@runtime_checkable
class Study(Protocol):
    """A run: what it is, its cells, and what becomes of them.  Picklable; workers get the object itself.

    A study derived from it needs to say nothing of GPUs where its cells want none, and nothing of its report where that
    is the lines of its ``findings.json``.
    """

    @property
    def experiment(self) -> str:
        """The folder of its kind below the output folder."""
        ...

    @property
    def gpu(self) -> bool:
        """Whether a cell wants a GPU of its own."""
        return False

    def identity(self) -> Identity:
        """What determines the bytes of its results."""
        ...

    def memory(self) -> dict[str, float]:
        """Estimate the bytes that a cell needs, each part named by the options it grows with."""
        ...

    def count(self) -> int:
        """How many cells there are, without making them."""
        ...

    def cells(self) -> Sequence[Any]:
        """All cells, in the order in which tables gather them."""
        ...

    def play(self, cell: Any, folder: Path) -> Sequence[str]:
        """Play one cell, from its ledger's last state on; return the names of the files that the run relies on."""
        ...

    def finish(self, directory: RunDirectory) -> None:
        """Write tables, figures and page from the cells' files, whose bytes ``directory.frame`` checks."""
        ...

    def report(self, directory: RunDirectory) -> Report:
        """Say what was found, from the files that ``finish`` wrote."""
        return Report(tuple(f"• {line}" for line in read_json(directory.path / "findings.json", list)))


def execute(
    study: Study,
    directory: RunDirectory,
    jobs: int = 0,
    backend: Backend = "loky",
    address: str | None = None,
    cells: Part = Part(),  # noqa: B008
    force: bool = False,
) -> bool:
    """Play all cells that are missing (of one part), and write the page if none is missing then; return if it is there.

    A study with ``more(directory, cells)`` may name further cells once all so far are done, as a function of their
    files alone: so a killed run goes on to the same bytes.  A part plays its share of what is known by then; parts are
    submitted again until the page is there.

    ``jobs`` cells run side by side (0: one per core, or per GPU, if memory holds them; on a cluster, all it takes).
    What is damaged is named and made again.  Raises ``InputError`` for what cannot be, ``StoppedError`` if a worker or
    memory is lost.
    """
    check_backend(backend, address)
    every = wanted(study, directory)
    if (prepare := getattr(study, "prepare", None)) and directory.missing(every):
        prepare()  # what is costly to check, such as models: before anything is written
    with backend_of(backend, address), directory.held(cells, force):
        every = wanted(study, directory)  # afresh: --force has emptied the folder
        while True:
            mine = cells.take(every)
            _play_missing(study, directory, mine, jobs, backend)
            known, every = len(every), wanted(study, directory)
            if len(every) == known:
                break
        if cells.count == 1:
            _finish(study, directory)
            return True
    if directory.missing(every):
        return False
    for _ in range(40):  # another part may be about to write the page
        with contextlib.suppress(BusyError), directory.held():
            if not directory.complete(every):
                _finish(study, directory)
            return True
        time.sleep(0.25)
    return directory.complete(every)


def wanted(study: Study, directory: RunDirectory) -> list[Any]:
    """Return all cells that the run is known to need: the study's, and what follows of those that are done."""
    cells = list(study.cells())
    more = getattr(study, "more", None)
    while more and not directory.missing(cells) and (added := more(directory, cells)):
        cells += added
    return cells


def _play_missing(study: Study, directory: RunDirectory, mine: Sequence[Cell], jobs: int, backend: Backend) -> None:
    for _ in range(3):  # a cell that vanishes between its end and here is played again
        todo = directory.missing(mine, warn=True)
        if not todo:
            return
        _play_all(study, directory, todo, len(mine), jobs, backend)
    if todo := directory.missing(mine):
        raise StoppedError(f"{directory.cell(todo[0])} vanishes whenever it is written; {AGAIN}")


def _finish(study: Study, directory: RunDirectory) -> None:
    for fault in Ledger(directory.path).faults():
        print(f"{fault}; it is made again", file=sys.stderr)
    study.finish(directory)
    directory.close()


def _play_all(
    study: Study, directory: RunDirectory, todo: Sequence[Cell], total: int, jobs: int, backend: Backend
) -> None:
    """Play cells, those that cost most first, while a line tells how far they are."""
    gpus = torch.cuda.device_count() if study.gpu and backend == "loky" else 0
    fits = int(SHARE * machine_memory() / max(1.0, sum(study.memory().values())))
    most = len(todo) if jobs > 0 else max(1, min(len(todo), fits))
    jobs = side_by_side(jobs, gpus, joblib.cpu_count(), most, local=backend == "loky")
    order = sorted(todo, key=lambda cell: -cell.cost)  # stable: equal costs keep the study's order
    timing: dict[str, float] = {}
    calls = [(study, cell, directory.cell(cell).resolve(), gpus, os.getpid(), HOST) for cell in order]
    results = _on_ray(calls, jobs, study.gpu) if backend == "ray" else _by_joblib(calls, jobs)
    try:
        with _Progress(directory, order, total, jobs if jobs > 0 else joblib.cpu_count()) as progress:
            for key, seconds in results:
                timing[key] = round(seconds, 2)
                progress.ended(key, seconds)
    except TerminatedWorkerError:
        raise StoppedError(f"a worker was killed (out of memory? fewer --jobs need less); {AGAIN}") from None
    except (MemoryError, StoppedError) as error:
        raise StoppedError(str(error) or f"out of memory; {AGAIN}") from None
    except Exception as error:
        if type(error).__name__ == "KilledWorker":  # of Dask, which need not be installed
            raise StoppedError(f"Dask lost a worker too often; {AGAIN}") from None
        raise
    finally:
        if timing:
            directory.note_timing(timing)


def _by_joblib(calls: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[tuple[str, float]]:
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
    found: Iterator[tuple[str, float]] = parallel(joblib.delayed(_play)(*call) for call in calls)
    return found


def _on_ray(calls: Sequence[tuple[Any, ...]], jobs: int, gpu: bool) -> Iterator[tuple[str, float]]:
    """Play on Ray's workers; joblib's own way there can only return all at once, and does not play a cell again."""
    import ray

    play = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0, max_retries=3)(_play)
    waiting = list(reversed(calls))
    running: list[Any] = []
    while waiting or running:
        while waiting and (jobs < 1 or len(running) < jobs):
            running.append(play.remote(*waiting.pop()))
        done, running = ray.wait(running)
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise StoppedError(f"Ray lost a worker too often ({type(error).__name__}); {AGAIN}") from None


def side_by_side(jobs: int, gpus: int, cores: int, cells: int, local: bool = True) -> int:
    """Return how many cells to play at once; 0 wants one per GPU, else per core (-1 on a cluster: all it has)."""
    if not local:
        return jobs if jobs > 0 else -1
    most = gpus if gpus else cores
    return max(1, min(jobs if jobs > 0 else most, cells, gpus or cells))


def gpu_of(worker: str, gpus: int, visible: str | None) -> str:
    """Return the GPU of a worker, as ``CUDA_VISIBLE_DEVICES`` names it: workers are numbered, and take turns.

    ``visible`` is what the run itself may see (None: all).  A worker's name ends in its number, from 1.
    """
    number = re.search(r"(\d+)$", worker)
    place = (int(number[1]) - 1 if number else 0) % gpus
    return visible.split(",")[place].strip() if visible else str(place)


def _play(study: Study, cell: Cell, folder: Path, gpus: int, parent: int, host: str) -> tuple[str, float]:
    """Play one cell in this process; return its key and the seconds it took.  The folder's ledger says what holds."""
    started = time.perf_counter()
    with _worker(gpus, parent, host), telling_own(StoppedError):
        ledger = Ledger(folder)
        ledger.forget()
        if folder.exists():
            ledger.tidy()
        try:
            names = study.play(cell, folder)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise StoppedError(f"{cell.key}: out of memory; {AGAIN} where there is more") from None
            raise
        Ledger(folder).close(*names)
    return cell.key, time.perf_counter() - started


@contextlib.contextmanager
def _worker(gpus: int, parent: int, host: str) -> Iterator[None]:
    """One thread, so that sums have one order and cells can run side by side; in a process of its own, also a GPU of
    its own, no Ctrl-C (the run's main process ends it) and no life after the main process."""
    threads = torch.get_num_threads()
    over = threading.Event()
    if os.getpid() != parent and host == HOST and multiprocessing.current_process().name.startswith("Loky"):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_leave_with, args=(parent, over), daemon=True).start()
        if gpus > 1 and not torch.cuda.is_initialized():
            name = multiprocessing.current_process().name
            visible = os.environ.setdefault("ACTIVEDPO_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(name, gpus, visible or None)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        over.set()


def _leave_with(parent: int, over: threading.Event) -> None:
    """End this process when its parent is gone: nobody gathers its work, and the next run may play the same cell."""
    while not over.wait(0.2):
        if os.getppid() != parent:
            os._exit(1)


# Progress.


def remaining(costs: Sequence[float], pace: float, jobs: int) -> float:
    """Return the seconds that cells of these costs take on ``jobs`` lanes; ``pace`` is seconds per cost."""
    lanes = [0.0] * max(1, min(jobs, len(costs)))
    for cost in costs:
        heapq.heapreplace(lanes, lanes[0] + cost)
    return max(lanes) * pace


def in_words(seconds: float) -> str:
    """Return a length of time in words, to two digits."""
    for size, word in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {word}" if seconds < 99.5 * size else f"{seconds / size:.0f} {word}"
    return f"{max(1, round(seconds))} s"


class _Progress:
    """A line that says how many cells are done and, once it can be known, how long the rest takes.

    The pace is that of the cells that ended; before the first one has, that of a cell whose ledger says that a
    quarter of it is done; before that, nothing is promised.  A file or pipe has no line to write over: it gets one
    line when a cell has ended, at most one in ``NEWS_SECONDS``, and one in ``LOG_SECONDS`` while none does.
    """

    def __init__(self, directory: RunDirectory, order: Sequence[Cell], total: int, jobs: int) -> None:
        self._left = {cell.key: cell for cell in order}
        self._ledgers = {cell.key: directory.cell(cell) for cell in order}
        self._start = {key: Ledger(folder).share for key, folder in self._ledgers.items()}
        self._jobs, self._began = jobs, time.monotonic()
        self._seconds = self._cost = 0.0
        self._lock, self._over = threading.Lock(), threading.Event()
        self._bar = tqdm(
            total=total,
            initial=total - len(order),
            desc="cells",
            bar_format="{desc}: {n}/{total} |{bar:20}| {elapsed}{postfix}",
            disable=not sys.stderr.isatty(),
        )
        self._total, self._noted = total, -LOG_SECONDS
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _Progress:
        self._tell()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._bar.close()

    def ended(self, key: str, seconds: float) -> None:
        """Take note of a cell that is done."""
        with self._lock:
            cell = self._left.pop(key)
            self._seconds += seconds
            self._cost += cell.cost * (1 - self._start[key])
            self._bar.update(1)
        self._tell(ended=True)

    def _follow(self) -> None:
        while not self._over.wait(2.0):
            self._tell()

    def _tell(self, ended: bool = False) -> None:
        with self._lock:
            shares = {key: Ledger(self._ledgers[key]).share for key in self._left}
            gained = {key: share - self._start[key] for key, share in shares.items() if share > self._start[key]}
            rest = [cell.cost * (1 - shares[key]) for key, cell in self._left.items()]
            pace = 0.0
            if self._cost:
                pace = self._seconds / self._cost
            elif gained and max(gained.values()) >= 0.25:
                done = sum(self._left[key].cost * share for key, share in gained.items())
                pace = (time.monotonic() - self._began) * len(gained) / done
            words = f"about {in_words(remaining(rest, pace, self._jobs))} left" if pace and rest else ""
            self._bar.set_postfix_str(words)
            if self._bar.disable:
                self._log(self._total - len(rest), words, (NEWS_SECONDS if rest else 0.0) if ended else LOG_SECONDS)

    def _log(self, done: int, words: str, wait: float) -> None:
        now = time.monotonic()
        if now - self._noted < wait:
            return
        self._noted = now
        line = [f"cells: {done}/{self._total} in {tqdm.format_interval(now - self._began)}", words]
        with contextlib.suppress(OSError, ValueError):  # a log that cannot be written ends no run
            print(*filter(None, line), sep=", ", file=sys.stderr, flush=True)


# Backends.


def check_backend(name: Backend, address: str | None) -> None:
    """Raise ``InputError`` within ten seconds if a backend is not installed or its cluster does not answer."""
    if name == "loky":
        if address:
            raise InputError("--address names a cluster's scheduler: give --backend dask or ray with it")
        return
    if importlib.util.find_spec(PACKAGE[name]) is None:
        raise InputError(f"--backend {name} needs the package {PACKAGE[name]!r}: pip install {PACKAGE[name]}")
    if not address or (name == "ray" and address in ("auto", "local")):
        return
    try:
        found = re.fullmatch(r"(?:[\w+]+://)?(\[[^\]]+\]|[^:/\[\]]+):(\d+)/?", address)
        if not found:
            raise OSError("no address such as tcp://host:8786 (dask) or host:6379 (ray)")
        with socket.create_connection((found[1].strip("[]"), int(found[2])), CONNECT_SECONDS) as stream:
            if name == "ray":
                _greet_ray(stream)
        if name == "dask":
            _open_dask(address)
    except (OSError, ValueError, OverflowError) as error:  # also for a host, or a port, that cannot be one
        raise _unreachable(name, address, error) from None


def _greet_ray(stream: socket.socket) -> None:
    """Raise ``OSError`` unless a server of HTTP/2 answers; Ray would log that it cannot connect, for minutes."""
    if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return  # greeted in cipher only
    stream.settimeout(ANSWER_SECONDS)
    stream.sendall(HTTP_2)
    if stream.recv(4)[3:] != b"\4":  # the kind of its first frame, after three bytes of length: settings
        raise OSError("something else answers there")


def _open_dask(address: str) -> None:
    """Raise ``OSError`` unless a scheduler takes a client: in a process of its own, since elsewhere a client waits for
    ever, or takes what it is told for the size of a message."""
    command = [sys.executable, "-P", "-c", OPEN_DASK, address, str(ANSWER_SECONDS)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise OSError(done.stdout or "timed out")


def _unreachable(name: Backend, address: str | None, error: Exception) -> InputError:
    cluster = f"{CLUSTER[name]} at {address}" if address else "a local cluster"
    reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
    return InputError(f"--backend {name}: cannot reach {cluster} ({reason})")


@contextlib.contextmanager
def backend_of(name: Backend, address: str | None) -> Iterator[None]:
    """Send joblib's work to local processes, or to a Dask or Ray cluster (at ``address``, else a local one)."""
    if name == "loky":
        with joblib.parallel_config(backend="loky"), warnings.catch_warnings():
            # loky replaces a worker that has kept much memory, as the theory's wide networks do: no news for a user.
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
            yield
        return
    with contextlib.ExitStack() as open_until_done:
        try:
            if name == "dask":
                from distributed import Client

                client = (
                    Client(address, timeout=ANSWER_SECONDS)  # type: ignore[no-untyped-call]
                    if address
                    else Client(processes=True, threads_per_worker=1, dashboard_address=None)  # type: ignore[no-untyped-call]
                )
                open_until_done.enter_context(client)
            else:
                import ray

                os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level="error",
                    include_dashboard=False if address is None else None,
                )
                open_until_done.callback(ray.shutdown)
        except (OSError, ValueError, RuntimeError) as error:
            raise _unreachable(name, address, error) from None
        if name == "dask":
            open_until_done.enter_context(joblib.parallel_config(backend=name))
        yield
