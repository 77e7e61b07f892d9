"""Owns files: written whole or not at all, text as UTF-8, JSON that every reader takes.  Knows nothing of runs.

A file is written under a temporary name, ``.NAME.PID@HOST.tmp`` in its own folder, flushed to the disk and renamed.
A killed process can leave such a name behind; the next write of that file removes it, and ``sweep`` all in a folder,
if its owner is gone.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bandits.core.errors import InputError
from bandits.runs.text import dumps, loads

HOST = re.sub(r"[^\w.-]", "_", socket.gethostname()) or "localhost"
_TEMPORARY = re.compile(r"\..+\.(\d+)@([\w.-]+)\.tmp")


class WriteError(InputError):
    """The place cannot be written (full, read-only, not a folder); what the run has stays."""


class DamagedError(InputError):
    """A file is gone, cut or altered."""


def vacant(path: Path, option: str) -> None:
    """Raise ``InputError`` if something is at a path that a user named for a new file: nobody's file is replaced."""
    if os.path.lexists(path):
        raise InputError(f"{path} is there already; remove it or choose another {option}")


def replaceable(path: Path, title: str, option: str) -> None:
    """Raise ``InputError`` if a page, which is written anew each time, would replace a file with another title."""
    if path.exists() and not (path.is_file() and read_text(path).startswith(f"# {title}\n")):
        raise InputError(f"{path} is there already and is no page {title!r}; choose another {option}")


def writable(path: Path, option: str) -> None:
    """Raise ``WriteError``, before the work whose result it is to hold, if no file can be made there; leave nothing."""
    try:
        path.exists()  # raises what its name has against it
        with made(path.parent), tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}; choose another {option}") from None


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder while the block runs; of those made here, the ones in which nothing was written go again."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name in the same folder, flushed to the disk, then renamed.

    Raises ``WriteError`` where that cannot be, and for a device or a pipe, which would become a file.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise WriteError(f"cannot write {path}: it is no regular file; choose another place")
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{HOST}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sweep(path.parent, f".{glob.escape(path.name)}.*.tmp")
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # there only if it did not get its name


def write_text(path: Path, content: str) -> None:
    """Write a text file whole, as UTF-8; ``InputError`` for text that has no UTF-8 (half of a surrogate pair)."""
    try:
        encoded = content.encode()
    except UnicodeEncodeError as error:
        bad = content[error.start]
        raise InputError(f"cannot write {path}: the text holds U+{ord(bad):04X}, half of a surrogate pair") from None
    write_bytes(path, encoded)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole, in a fixed layout."""
    write_text(path, dumps(content, indent=2, sort_keys=True) + "\n")


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV file whole; numbers keep all digits that tell them apart."""
    write_text(path, frame.to_csv(index=False))


def read_bytes(path: Path) -> bytes:
    """Read a file; one that cannot be read is a ``DamagedError``."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, whatever the locale; its line ends stay as they are."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DamagedError(f"cannot read {path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path: Path, kind: type = object, mend: str = "delete the folder or run again with --force") -> Any:
    """Read a JSON file that holds a value of this kind; else raise ``DamagedError``, which says how to ``mend`` it."""
    try:
        content = loads(read_text(path))
    except ValueError as error:
        raise DamagedError(f"cannot read {path}: {error}; {mend}") from None
    if not isinstance(content, kind):
        raise DamagedError(f"cannot read {path}: it holds no {kind.__name__}; {mend}")
    return content


def frame(content: bytes, name: object = "a table") -> pd.DataFrame:
    """Return a table from the bytes of a CSV file, as ``write_frame`` wrote it; what is none is a ``DamagedError``.

    Only what is empty is missing: ``NA``, ``None`` and ``null`` are words.
    """
    try:
        return pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=[""])
    except (ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DamagedError(f"{name} is damaged: {str(error).strip()}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors whole, as safetensors."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors; a file that holds none is a ``DamagedError``."""
    try:
        return load(read_bytes(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from None


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str | None:
    """Return a file's SHA-256 in hex; None if there is no such file or it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def temporary(path: Path) -> bool:
    """Whether a file's name is one that a whole write uses before it is over."""
    return bool(_TEMPORARY.fullmatch(path.name))


def sweep(folder: Path, pattern: str = "**/.*.tmp", everybody: bool = False) -> None:
    """Remove temporary files below a folder whose owner is gone; of ``everybody``, if none but the caller may write."""
    for path in folder.glob(pattern):
        found = _TEMPORARY.fullmatch(path.name)
        if found and (everybody or (found[2] == HOST and not psutil.pid_exists(int(found[1])))):
            with contextlib.suppress(OSError):
                path.unlink()
