"""Owns prompt files: opens what users have and yields rows with their places.  Knows nothing of what a row says.

Files are told apart by what is in them as far as that goes, and by their names only within a folder.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from bandits.core.errors import InputError
from bandits.runs.text import lines, loads

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
"""of files that a folder is searched for, in upper or lower case, also with .gz after them"""
NO_ROWS = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"))
"""JSON files that data folders have beside their rows"""
READABLE = f"{', '.join(SUFFIXES)} file (or one of these with .gz)"


@dataclass(frozen=True)
class Found:
    """A row where it was found: in which file or split, and at which line or row (from 1); or what is wrong with it."""

    value: Any
    place: str
    split: str | None = None
    """the declared split, or the file's name within its folder"""
    error: str = ""
    """why there is no value"""


def hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of a file's bytes, or of every file in a folder, by name relative to it.

    Hidden files are left out.  Raises ``InputError`` if a file cannot be read.
    """
    files = inside(path) if path.is_dir() else [path]
    found = {}
    for file in files:
        try:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from None
        found[file.relative_to(path).as_posix() if path.is_dir() else file.name] = digest
    return found


def inside(folder: Path) -> list[Path]:
    """Return the files of a folder and its folders, sorted, hidden ones left out; ``InputError`` if it is closed."""
    try:
        next(os.scandir(folder), None)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from None
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))


def located(name: str, known: str = "a registered prompt set") -> Path:
    """Return the path of a prompt file or folder, ``~`` expanded; ``InputError`` says what else it could have been."""
    try:
        path = Path(name).expanduser()
        if path.is_file() or path.is_dir():
            return path
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no home, a NUL
        raise InputError(f"prompts: no file {name[:80]!r}: {getattr(error, 'strerror', None) or error}") from None
    what = "is neither a regular file nor a folder" if there else f"is neither a file nor {known}"
    raise InputError(f"prompts: {name} {what}")


def rows(path: Path) -> tuple[Iterator[Found], dict[str, str]]:
    """Return the rows of a file or folder, and the SHA-256 of what was read, by file.

    A folder is one that ``datasets.Dataset.save_to_disk`` wrote, or one of JSON-lines, JSON and Parquet files.
    Raises ``InputError`` for what cannot be read at all; what is wrong with a single row stands in its ``error``.
    """
    if not path.is_dir():
        content = _bytes(path)
        return _rows(path, content, None), {path.name: hashlib.sha256(content).hexdigest()}
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path), hashes(path)
    found = [file for file in inside(path) if file.name not in NO_ROWS and _suffix(file) in SUFFIXES]
    if not found:
        raise InputError(f"prompts: {path} has no {READABLE}")
    contents = {file: _bytes(file) for file in found}
    names = {file: file.relative_to(path).as_posix() for file in found}
    read = (row for file, content in contents.items() for row in _rows(file, content, names[file]))
    return read, {names[file]: hashlib.sha256(content).hexdigest() for file, content in contents.items()}


def _suffix(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"prompts: cannot read {file}: {error.strerror}") from None


def _rows(file: Path, content: bytes, split: str | None) -> Iterator[Found]:
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"prompts: cannot read {file}: a damaged gzip file ({error})") from None
    if content.startswith(b"PAR1"):
        yield from _parquet(file, content, split)
        return
    if _suffix(file) == ".parquet":
        raise InputError(f"prompts: {file} is no Parquet file, or cut short")
    if _suffix(file) not in (*SUFFIXES, ""):
        raise InputError(f"prompts: {file} is not a {READABLE}")
    if content.startswith(b"version https://git-lfs"):
        raise InputError(f"prompts: {file} is a git-LFS pointer, not the file; fetch it with git lfs pull")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or re.match(rb"\s*[{\[]\x00|\x00[{\[\s]", content):
        raise InputError(f"prompts: {file} is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    text = content.decode("utf-8-sig", "surrogateescape")  # so that a row with other bytes is told by its number
    whole = None
    if _suffix(file) == ".json" or text.lstrip()[:1] == "[":
        whole = _list(file, text)
    if whole is None:
        yield from _lines(file, text, split)
        return
    for number, entry in enumerate(whole, start=1):
        place = f"{file}, row {number}"
        if isinstance(entry, dict) and isinstance(entry.get("row"), dict) and "row_idx" in entry:
            cut = entry.get("truncated_cells")
            yield Found(entry["row"], place, split, f"the viewer cut cells of it short: {str(cut)[:80]}" if cut else "")
        else:
            yield Found(entry, place, split)


def _list(file: Path, text: str) -> list[Any] | None:
    """Return the rows of a file that is one JSON value, also those of a hub viewer's export; None if it is lines."""
    try:
        value = loads(text)
    except ValueError as error:
        first, *others = [line for line in lines(text) if line.strip()] or [""]
        if others and _is_object(first):
            return None
        place = getattr(error, "lineno", None)
        raise InputError(f"prompts: {file} is not JSON ({error})" + (f", line {place}" if place else "")) from None
    if isinstance(value, dict):
        value = next((value[name] for name in ("rows", "data") if isinstance(value.get(name), list)), None)
    if not isinstance(value, list):
        raise InputError(f"prompts: {file} holds no list of rows")
    if re.search("[\udc80-\udcff]", text):
        raise InputError(f"prompts: {file} is not UTF-8")
    return value


def _is_object(line: str) -> bool:
    try:
        return isinstance(loads(line), dict)
    except ValueError:
        return False


def _lines(file: Path, text: str, split: str | None) -> Iterator[Found]:
    for number, line in enumerate(lines(text), start=1):
        if line.strip():
            place = f"{file}, line {number}"
            if re.search("[\udc80-\udcff]", line):
                yield Found(None, place, split, "it is not UTF-8")
                continue
            try:
                yield Found(loads(line), place, split)
            except ValueError as error:
                yield Found(None, place, split, f"it is not JSON ({error})")


def _parquet(file: Path, content: bytes, split: str | None) -> Iterator[Found]:
    try:
        values = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"prompts: cannot read {file}: {str(error).partition(chr(10))[0][:160]}") from None
    yield from (Found(value, f"{file}, row {number}", split) for number, value in enumerate(values, start=1))


def _saved(folder: Path) -> Iterator[Found]:
    """Read a folder of ``save_to_disk``; a dictionary's keys are its splits, and a data set may know its own."""
    from datasets import DatasetDict, load_from_disk  # only these need it, and it takes seconds to import

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # the library raises what its readers raise: a dozen unrelated classes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"prompts: cannot read {folder}: {reason[:160]}") from None
    parts = loaded if isinstance(loaded, DatasetDict) else {str(loaded.split or ""): loaded}
    for name, table in parts.items():
        place = f"{folder}, {name} " if name else f"{folder}, "
        for number, row in enumerate(table, start=1):
            yield Found(row, f"{place}row {number}", name or None)
