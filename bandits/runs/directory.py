"""Owns the run directory: what makes a run this run, which of its files can be relied on, and who may write to it.

``results/<experiment>/<preset>-<hash of the config>/`` holds ``manifest.json``, a folder per cell below ``cells/`` and,
when all cells are done, the tables, figures and page.  Files appear whole or not at all, and every folder has a
``ledger.json`` with the SHA-256 of each file that its owner relies on: what does not match is named and made again,
never used.  Wall-clock times live in ``timing.json`` alone, so everything else is the same bytes on every run of the
same config on one machine, killed and resumed or not.  Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import pandas as pd
import psutil
import torch

from bandits.core.errors import InputError
from bandits.runs import files
from bandits.runs.files import HOST, DamagedError, WriteError
from bandits.runs.text import dumps

T = TypeVar("T")
DISTRIBUTION = "activedpo-testbed"
SOURCES = {".py", ".j2", ".css", ".json", ".toml", ".safetensors"}
LIBRARIES = ("torch", "numpy", "scipy", "pandas")
TIMING = "timing.json"
VOLATILE = (TIMING, "timing.html")
"""Files of wall-clock times, the only ones in which equal runs differ; no ledger relies on them."""
LEDGER = "ledger.json"
LOCK = ".lock"
WAIT = "wait for it or choose another --output"


class BusyError(InputError):
    """Another process writes into the folder."""


class StoppedError(Exception):
    """A run was stopped from outside (a killed worker, no memory); the same command goes on from there."""


@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``count`` of a run's cells: number ``index`` and every ``count``-th after it, from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def of(cls, text: str) -> Part:
        """Read ``i/n``; ``InputError`` unless 1 <= i <= n."""
        index, _, count = text.partition("/")
        if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
            raise InputError(f"--cells must be i/n, such as 2/8 for the second of eight parts, got {text!r}")
        part = cls(int(index), int(count))
        if not 1 <= part.index <= part.count:
            raise InputError(f"--cells must be i/n with 1 <= i <= n, got {text!r}")
        return part

    def take(self, cells: Sequence[T]) -> list[T]:
        """Return this part of a run's cells."""
        return list(cells[self.index - 1 :: self.count])


# What makes a run this run.


def config_of(settings: Any) -> dict[str, Any]:
    """Return a frozen dataclass as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return plain


def config_hash(config: dict[str, Any]) -> str:
    """Return eight hex digits that name a config."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def sources(package: str, apart: Sequence[str] = ()) -> str:
    """Return the SHA-256 of all sources of an importable package: code, templates and weights, by path and content.

    What lies in its folders ``apart`` does not count.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"the package {package!r} is not installed")
    digest = hashlib.sha256()
    for home in map(Path, found.submodule_search_locations):
        for path in sorted(home.rglob("*")):
            if path.relative_to(home).parts[0] in apart:
                continue
            if path.suffix in SOURCES and path.is_file():
                digest.update(f"{path.relative_to(home).as_posix()} {files.file_sha256(path)}\n".encode())
    return digest.hexdigest()


def version() -> str:
    """Return this project's version."""
    from bandits._version import __version__

    return __version__


def versions(libraries: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return the versions that a run depends on, this project's among them."""
    found = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), DISTRIBUTION: version(), **found}


def commit() -> str:
    """Return the commit of the checkout that this package is, ``+`` if files differ; ``unknown`` if it is none.

    Information alone.  Files of ``docs`` do not count: no number hangs on them, and commands write pages there.  A
    package installed into somebody else's repository is not that repository's commit.
    """
    home = Path(__file__).resolve()
    git = ["git", "-C", str(home.parent)]
    try:
        kept = subprocess.run(
            [*git, "ls-files", "--error-unmatch", str(home)], capture_output=True, text=True, check=True
        )
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        code = ["--", ":(top)", ":(top,exclude)docs"]
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", *code], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.stdout.strip() else "") if kept.stdout.strip() else "unknown"


def machine() -> dict[str, str]:
    """Return the processor's name and the vector instructions that torch uses, on which the last digits depend."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n"):
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {"processor": name, "vector instructions": torch.backends.cpu.get_cpu_capability()}


@dataclass(frozen=True)
class Identity:
    """What determines a run's bytes: the config, the code, the objects in use, the input files and the versions."""

    config: dict[str, Any]
    packages: tuple[str, ...] = ("bandits",)
    """whose sources count"""
    apart: tuple[str, ...] = ()
    """folders of these packages whose sources do not: they read what runs leave, and no run does anything by them"""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """fingerprints of the strategies and other objects in use, by name"""
    inputs: Mapping[str, str | None] = field(default_factory=dict)
    """SHA-256 of the files that are read, by name"""
    libraries: tuple[str, ...] = LIBRARIES

    def manifest(self) -> dict[str, Any]:
        """Return it as JSON values; runs are the same if all of these are."""
        whole = {
            "config": self.config,
            "sources": {name: sources(name, self.apart) for name in self.packages},
            "parts": dict(self.parts),
            "inputs": dict(self.inputs),
            "versions": versions(self.libraries),
        }
        plain: dict[str, Any] = json.loads(dumps(whole))
        return plain


# Which files can be relied on.


class Ledger:
    """The files of a folder that its owner relies on, with their SHA-256; written whole in ``ledger.json``.

    A file that is not listed is not relied on: a write that was cut off leaves the ledger as it was.  ``share`` says
    how much of the cell's work the files hold, in [0, 1]; ``done`` that it is over.
    """

    def __init__(self, folder: Path) -> None:
        """Read the folder's ledger; one that is not there, or damaged, lists nothing."""
        self.folder, self.files, self.share, self.done, self.torn = folder, dict[str, str](), 0.0, False, False
        path = folder / LEDGER
        try:
            if not path.is_file():
                return
            content = files.read_json(path, dict)
            listed, share, done = content["files"], float(content["share"]), content["done"]
            if not all(self._plain(name) and isinstance(value, str) for name, value in listed.items()):
                raise ValueError
            if not (share == 1 if done is True else 0 <= share <= 1):
                raise ValueError
        except (DamagedError, OSError, KeyError, TypeError, ValueError, AttributeError):
            self.torn = True
            return
        self.files, self.share, self.done = dict(listed), share, done is True

    @staticmethod
    def _plain(name: str) -> bool:
        return bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts

    def add(self, *names: str, share: float = 0.0) -> None:
        """List files that are there now, by their paths in the folder; what was listed stays."""
        self._write(self.files | self._hashes(names), share, False)

    def replace(self, *names: str, share: float = 0.0) -> None:
        """List these files and no others."""
        self._write(self._hashes(names), share, False)

    def drop(self, names: Iterable[str]) -> None:
        """List these files no more."""
        left = self.files.keys() - set(names)
        if left != self.files.keys():
            self._write({name: value for name, value in self.files.items() if name in left}, 0.0, False)

    def close(self, *names: str) -> None:
        """List these files and no others, and that the work is over; remove whatever else is in the folder."""
        self._write(self._hashes(names), 1.0, False)
        self.tidy()  # before the work is over: who is killed here plays the cell again, and leaves nothing behind
        self._write(self.files, 1.0, True)

    def _hashes(self, names: Iterable[str]) -> dict[str, str]:
        found = {name: files.file_sha256(self.folder / name) for name in names}
        gone = [name for name, value in found.items() if value is None]
        if gone:
            raise DamagedError(f"{self.folder / gone[0]} vanished while it was written; the same command writes it")
        return {name: value for name, value in found.items() if value is not None}

    def _write(self, listed: dict[str, str], share: float, done: bool) -> None:
        self.files, self.share, self.done, self.torn = listed, share, done, False
        files.write_json(self.folder / LEDGER, {"files": listed, "share": share, "done": done})

    def holds(self, name: str) -> bool:
        """Whether a file is listed."""
        return name in self.files

    def faults(self) -> list[str]:
        """Say what does not match, a line each."""
        if self.torn:
            return [f"{self.folder / LEDGER} is damaged"]
        return [f"{self.folder / name} is {fate}" for name, fate in self.differing(self.files).items()]

    def differing(self, names: Iterable[str]) -> dict[str, str]:
        """Say, by name, what became of those of some listed files that do not match."""
        found = {name: files.file_sha256(self.folder / name) for name in names}
        return {n: "gone" if s is None else "cut or altered" for n, s in found.items() if s != self.files[n]}

    @property
    def whole(self) -> bool:
        """Whether the work is over and every file is as it was written."""
        return self.done and bool(self.files) and not self.faults()

    def read(self, name: str) -> bytes:
        """Return a listed file's bytes; ``DamagedError`` if they are not those that were written."""
        if name not in self.files:
            raise DamagedError(f"{self.folder / name} is not in the ledger; the same command makes it")
        content = files.read_bytes(self.folder / name)
        if files.sha256(content) != self.files[name]:
            raise DamagedError(f"{self.folder / name} is cut or altered; the same command makes it anew")
        return content

    def forget(self) -> None:
        """Strike out what does not match, so that it is made again."""
        kept = {n: s for n, s in self.files.items() if files.file_sha256(self.folder / n) == s}
        if self.torn or kept != self.files:
            self._write(kept, 0.0, False)

    def tidy(self) -> None:
        """Remove what is not listed: leftovers of a cut-off write, and checkpoints of work that is over."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.rmdir()  # an empty one
            elif name not in self.files and path.name not in (LEDGER, TIMING):
                with contextlib.suppress(OSError):
                    path.unlink()


@runtime_checkable
class HasKey(Protocol):
    """A cell, as far as a directory knows it."""

    @property
    def key(self) -> str:
        """The name of its folder."""
        ...


# Who may write.


def _lock(path: Path) -> int | None:
    """Lock a file for this process; return its descriptor, or None if another process holds it.

    The kernel lets go of the lock when its holder dies, however it dies and whatever the file says.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                if _alive(_owner(path)):  # a file system without locks: who the file names must do
                    os.close(handle)
                    return None
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                return handle
        except FileNotFoundError:
            pass  # the last holder removed it in between
        os.close(handle)


def _owner(path: Path) -> dict[str, Any]:
    """Return who holds, or last held, a lock: pid, host, started; empty if the file does not say."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _alive(owner: Mapping[str, Any]) -> bool:
    """Whether a lock's owner runs; one on another host is taken to."""
    if owner.get("host") != HOST:
        return bool(owner)
    try:
        return abs(psutil.Process(int(owner["pid"])).create_time() - float(owner["started"])) < 1.0
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _bury(owner: Mapping[str, Any]) -> None:
    """Remove what a killed owner's worker pool left in shared memory: semaphores and mapped arrays."""
    if owner.get("host") != HOST or _alive(owner):
        return
    with contextlib.suppress(TypeError, ValueError, KeyError):
        pid = int(owner["pid"])
        for pattern in (f"sem.loky-{pid}-*", f"joblib_memmapping_folder_{pid}_*"):
            for path in Path("/dev/shm").glob(pattern):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _claim(folder: Path, name: str, wait: str) -> tuple[Path, int]:
    """Take a lock of a folder and sign it; return path and descriptor, or raise ``BusyError``, naming its holder."""
    path = folder / name
    before = _owner(path)
    handle = _lock(path)
    if handle is None:
        raise _busy(folder, path, wait)
    _bury(before)
    me = {"pid": os.getpid(), "host": HOST, "started": psutil.Process().create_time()}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(me).encode(), 0)
    return path, handle


def _busy(folder: Path, lock: Path, wait: str) -> BusyError:
    owner = _owner(lock)
    since = ""
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError, OSError):
        since = time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(float(owner["started"])))
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}{since}"
    return BusyError(f"{folder} is being written by {who}; {wait}")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder that is no run alone while the block runs; ``BusyError``, naming the holder, if another has it."""
    try:
        lock = _claim(folder, LOCK, "wait for it")
    except OSError as error:
        raise WriteError(f"cannot write {folder / LOCK}: {error.strerror or error}") from None
    try:
        yield
    finally:
        _release(*lock)


class RunDirectory:
    """One run's folder: resumed if it is the same run, refused if it is another's.  Opening it writes nothing."""

    def __init__(self, root: Path, experiment: str, preset: str, identity: Identity) -> None:
        """Name the folder; see ``admit``, ``complete`` and ``held``.  Raises ``InputError`` for what is no path."""
        if "\0" in str(root):
            raise InputError(f"--output must be a path, got {str(root)!r}, which holds a NUL")
        self.experiment, self.preset, self.identity = experiment, preset, identity.manifest()
        self.path = root / experiment / f"{preset}-{config_hash(identity.config)}"
        self.config = identity.config

    @property
    def manifest(self) -> dict[str, Any]:
        """What the folder says of its run."""
        content: dict[str, Any] = files.read_json(self.path / "manifest.json", dict)
        return content

    def admit(self) -> None:
        """Raise ``InputError`` if the folder is another run's, or cannot be one at all; write nothing."""
        if not self.path.exists():
            if self.path.is_symlink():
                raise InputError(f"{self.path} is a symbolic link to nothing; choose another --output")
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path} is a file, not a folder; choose another --output")
        if not (self.path / "manifest.json").exists():
            strange = [p.name for p in self.path.iterdir() if not self._own(p)]
            if strange:
                raise InputError(
                    f"{self.path} has files but no manifest ({strange[0]}); choose another --output or use --force"
                )
            return
        old = self.manifest
        for part, now in self.identity.items():
            before = old.get(part)
            if before == now:
                continue
            differs = [""]
            if isinstance(before, dict) and isinstance(now, dict) and part != "config":
                differs = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
            names = ", ".join(filter(None, differs))
            raise InputError(
                f"{self.path} holds a run of another {part}{f' ({names})' if names else ''}; choose another --output "
                "or start over with --force"
            )

    def tidy(self) -> None:
        """Remove what a process that was killed after its last write left in a finished run: its lock."""
        if any(map(self._own, self.path.iterdir())):
            with contextlib.suppress(InputError), self.held():  # somebody's who lives, or a folder that is read only
                pass

    @staticmethod
    def _own(path: Path) -> bool:
        return path.name.startswith(LOCK) or files.temporary(path)

    @contextlib.contextmanager
    def held(self, part: Part = Part(), force: bool = False) -> Iterator[None]:
        """Hold the run alone while the block runs (or, of several parts, this part); write the manifest if need be.

        Parts of one run may be held side by side.  Raises ``InputError``, naming the holder, if another process has
        it.  A folder made here whose block ends in bad input before any cell is done is removed again.
        """
        fresh = not self.path.exists()
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                locks = self._take(part)
                stack.callback(_release_all, locks)
                if force and any(not self._own(path) for path in self.path.iterdir()):
                    locks[:] = self._start_over(part, locks)
                self._clear_deleted()
                files.sweep(self.path, everybody=part.count == 1)
                if not (self.path / "manifest.json").exists():
                    about = {"experiment": self.experiment, "preset": self.preset, "commit": commit()}
                    files.write_json(self.path / "manifest.json", about | self.identity | {"machine": machine()})
                self.admit()
            except OSError as error:
                raise WriteError(
                    f"cannot write {error.filename or self.path}: {error.strerror or error}; choose another --output"
                ) from None
            try:
                yield
            except InputError as error:
                if fresh and part.count == 1 and not isinstance(error, WriteError | DamagedError):
                    self._withdraw()
                raise
            finally:
                with contextlib.suppress(OSError):
                    files.sweep(self.path, everybody=part.count == 1)

    def _withdraw(self) -> None:
        """Remove a folder in which nothing was done, and those above it that are empty then."""
        if any(Ledger(path.parent).done for path in self.path.glob(f"cells/**/{LEDGER}")):
            return
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()

    def _take(self, part: Part) -> list[tuple[Path, int]]:
        """Lock the run, or one part of it, against all that would write the same; return path and descriptor."""
        name = LOCK if part.count == 1 else f"{LOCK}-{part.index}-of-{part.count}"
        mine, handle = _claim(self.path, name, WAIT)
        for other in sorted(self.path.glob(f"{LOCK}*")):
            alongside = other.name.endswith(f"-of-{part.count}") and name != LOCK
            if other.name == name or alongside:
                continue
            left = _owner(other)
            theirs = _lock(other)
            if theirs is None:
                _release(mine, handle)
                raise _busy(self.path, other, WAIT)
            _bury(left)
            _release(other, theirs)
        return [(mine, handle)]

    def _start_over(self, part: Part, locks: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
        """Rename the folder away, begin a new one, hold that, and delete the old."""
        if part.count > 1:
            raise InputError(
                "--force with --cells would delete what other parts made; delete the folder by --force alone"
            )
        if self.path.is_symlink():
            raise InputError(f"{self.path} is a symbolic link; remove it yourself, --force does not follow it")
        away = self.path.with_name(f".{self.path.name}.{os.getpid()}@{HOST}.deleted")
        os.rename(self.path, away)
        self.path.mkdir()
        taken = self._take(part)
        for _, handle in locks:
            os.close(handle)
        shutil.rmtree(away)
        return taken

    def _clear_deleted(self) -> None:
        """Go on with deletions that were cut off."""
        for path in self.path.parent.glob(f".{self.path.name}.*@{HOST}.deleted"):
            if not psutil.pid_exists(int(path.name.rpartition("@")[0].rpartition(".")[2])):
                shutil.rmtree(path, ignore_errors=True)

    # Cells.

    def cell(self, key: str | HasKey) -> Path:
        """Return the folder of one cell."""
        return self.path / "cells" / (key if isinstance(key, str) else key.key)

    def missing(self, cells: Sequence[Any], warn: bool = False) -> list[Any]:
        """Return the cells that are not done and whole; ``warn`` names the files that do not match, a line each."""
        absent = []
        for cell in cells:
            ledger = Ledger(self.cell(cell))
            faults = ledger.faults()
            if faults or not ledger.done or not ledger.files:
                absent.append(cell)
            if warn:
                for fault in faults:
                    print(f"{fault}; it is made again", file=sys.stderr)
        return absent

    def frame(self, cell: str | HasKey, name: str) -> pd.DataFrame:
        """Return a table of a finished cell; ``DamagedError`` if it is not the one that was written."""
        ledger = Ledger(self.cell(cell))
        return files.frame(ledger.read(name), ledger.folder / name)

    def frames(self, cells: Iterable[str | HasKey], name: str) -> pd.DataFrame:
        """Return a table of all these cells, one below the other; cells without one are left out."""
        parts = [self.frame(cell, name) for cell in cells if Ledger(self.cell(cell)).holds(name)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    # The whole run.

    def complete(self, cells: Sequence[Any]) -> bool:
        """Whether the run is over and every file of it, cells' included, is as it was written."""
        return Ledger(self.path).whole and not self.missing(cells)

    def read(self, name: str) -> bytes:
        """Return a file of the finished run's own folder; ``DamagedError`` if it is not the one that was written."""
        return Ledger(self.path).read(name)

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the finished run's own folder."""
        return files.frame(self.read(name), self.path / name)

    def close(self) -> None:
        """List what the run's own folder holds (tables, figures, page) as relied on; the run is over."""
        mine = [
            path.relative_to(self.path).as_posix()
            for path in sorted(self.path.rglob("*"))
            if path.is_file()
            and path.relative_to(self.path).parts[0] != "cells"
            and path.name not in (LEDGER, "manifest.json")
            and path.name not in VOLATILE
            and not self._own(path)
        ]
        ledger = Ledger(self.path)
        ledger._write(ledger._hashes(mine), 1.0, True)

    @property
    def timing(self) -> dict[str, Any]:
        """Wall-clock seconds of cells."""
        return read_timing(self.path)

    def note_timing(self, seconds: Mapping[str, Any]) -> None:
        """Add wall-clock seconds to ``timing.json``: all that differs between equal runs."""
        files.write_json(self.path / TIMING, self.timing | dict(seconds))


def read_timing(folder: Path) -> dict[str, Any]:
    """Return the wall-clock seconds in a folder; nothing where they are lost, since nothing rests on them."""
    path = folder / TIMING
    try:
        found: dict[str, Any] = files.read_json(path, dict) if path.exists() else {}
    except DamagedError:
        return {}
    return found


def _release_all(locks: Sequence[tuple[Path, int]]) -> None:
    for lock in locks:
        _release(*lock)


def _release(path: Path, handle: int) -> None:
    """Remove a lock file and let go of it."""
    with contextlib.suppress(OSError):
        if os.fstat(handle).st_ino == os.stat(path).st_ino:
            path.unlink()
    with contextlib.suppress(OSError):
        os.close(handle)
