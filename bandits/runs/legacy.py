"""The run directory and command line that programs use until they are ported to ``runs.execute``; goes away then."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from bandits.core.errors import InputError
from bandits.runs.directory import commit, config_hash, config_of, versions
from bandits.runs.files import read_json, write_bytes, write_frame, write_json, write_text

__all__ = [
    "RunDirectory",
    "commit",
    "config_of",
    "parse",
    "read_json",
    "write_bytes",
    "write_frame",
    "write_json",
    "write_text",
]
PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "pandas", "seaborn")

Settings = TypeVar("Settings")
Options = TypeVar("Options")


def parse(
    program: str,
    arguments: Sequence[str],
    presets: Mapping[str, tuple[str, Settings]],
    options: Callable[[Settings], Options],
    note: str = "",
) -> tuple[str, Options]:
    """Return the named preset and its ``options``, overridden by the rest of the command line.

    Without a preset, or with ``--help`` in its place, the presets are listed, a line each, then ``note``, and the
    process exits.  Raises ``InputError`` for a preset that does not exist, with the nearest one that does.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<14}{text}" for name, (text, _) in presets.items()]
        print(f"usage: python -m {program} PRESET [--option value ...]\n\npresets:", *lines, sep="\n")
        print(f"\npython -m {program} PRESET --help lists the options.{note}")
        raise SystemExit(0)
    preset = arguments[0]
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown preset {preset!r}; {hint}choose from {', '.join(presets)}")
    text, settings = presets[preset]
    default = options(settings)
    prog = f"python -m {program} {preset}"
    return preset, tyro.cli(type(default), args=list(arguments[1:]), default=default, prog=prog, description=text)


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
