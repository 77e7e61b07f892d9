"""Owns the run directory: write whole, resume, read.  Knows nothing of what the numbers mean.

``results/<experiment>/<preset>-<hash of the config>/`` holds ``manifest.json``, one folder per cell (a cell is one
contender on one truth) and, when all cells are done, the tables, figures and page.  Files appear whole or not at all:
they are written under a temporary name and renamed.  Wall-clock times live in ``timing.json`` alone, so everything else
is the same bytes on every run of the same config, killed and resumed or not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bandits.core.errors import InputError

PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "pandas", "seaborn")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name in the same folder, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --output"
        ) from None


def write_text(path: Path, content: str) -> None:
    """Write a text file whole."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole, in a fixed layout."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV file whole; numbers keep all digits that tell them apart."""
    write_text(path, frame.to_csv(index=False))


def read_json(path: Path) -> Any:
    """Read a JSON file; one that is damaged is an ``InputError``."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; delete the folder or run again with --force") from None


def config_of(settings: Any) -> dict[str, Any]:
    """Return a frozen dataclass as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return plain


def config_hash(config: dict[str, Any]) -> str:
    """Return eight hex digits that name a config."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def commit() -> str:
    """Return the commit of the code, with ``+`` if files differ from it; ``unknown`` outside a checkout."""
    home = Path(__file__).parent
    git = ["git", "-C", str(home)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed.strip() else "")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions that a run depends on."""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


class RunDirectory:
    """One run's folder: opened once, resumed if it is the same run, refused if it is another's."""

    def __init__(
        self,
        root: Path,
        experiment: str,
        preset: str,
        config: dict[str, Any],
        force: bool = False,
        packages: tuple[str, ...] = PACKAGES,
    ) -> None:
        """Create the folder with its manifest, or open it to resume.

        Raises ``InputError`` if the folder cannot be written, or holds a run of another config, commit or version.
        """
        self.path = root / experiment / f"{preset}-{config_hash(config)}"
        manifest = {
            "experiment": experiment,
            "preset": preset,
            "config": config,
            "commit": commit(),
            "versions": versions(packages),
        }
        if force and self.path.exists():
            shutil.rmtree(self.path)
        known = self.path / "manifest.json"
        if known.exists():
            old = read_json(known)
            for key in ("config", "commit", "versions"):
                if old.get(key) != manifest[key] and not (key == "commit" and self.complete):
                    raise InputError(
                        f"{self.path} holds a run of another {key}; choose another --output or start over with --force"
                    )
        elif self.path.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} has files but no manifest; choose another --output or use --force")
        else:
            write_json(known, manifest)
        self.manifest = read_json(known)

    @property
    def complete(self) -> bool:
        """Whether the run has ended: its page, which is written last, is there."""
        return (self.path / "index.html").exists()

    def note_timing(self, seconds: Mapping[str, Any]) -> None:
        """Add wall-clock seconds, of cells or their stages, to ``timing.json``: all that differs between equal runs."""
        path = self.path / "timing.json"
        write_json(path, (read_json(path) if path.exists() else {}) | dict(seconds))

    def cell(self, name: str) -> Path:
        """Return the folder of one cell."""
        return self.path / "cells" / name


def save_checkpoint(path: Path, tensors: dict[str, Tensor], round: int) -> None:
    """Write tensors and a round number whole, as safetensors."""
    write_bytes(path, save({k: v.contiguous() for k, v in tensors.items()}, {"round": str(round)}))


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint; one that is damaged is an ``InputError``."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"checkpoint {path} is damaged ({error}); delete it to redo this cell, or use --force"
        ) from None
