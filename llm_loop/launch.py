"""Owns what several processes of one run must agree on, where ``accelerate launch`` started them.

The main process runs the program; the others follow it from cell to cell, play each on the same random numbers and
share the work of DPO alone.  Only the main one writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState

from bandits.core.errors import InputError

NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
NAMES = (*NUMBERS, "MASTER_ADDR")


def _launched() -> bool:
    """Whether a launcher started this process: it sets all of these names, others set some of them for themselves."""
    return all(os.environ.get(name) for name in NAMES)


def _number(name: str) -> int:
    value = os.environ[name]
    if not (value.isascii() and value.isdigit()):
        raise InputError(f"the environment's {name} is {value!r}, which is no number of a process; unset it")
    return int(value)


def processes() -> int:
    """Return how many processes a launcher started for this run."""
    return max(1, _number("WORLD_SIZE")) if _launched() else 1


def is_main() -> bool:
    """Whether this is the process that writes."""
    return processes() == 1 or _number("RANK") == 0


@contextmanager
def agreed() -> Iterator[None]:
    """Keep libraries from believing what no launcher said: names that something else set are out of their sight."""
    hidden = {} if processes() > 1 else {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available())


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process go through a block before the others."""
    if processes() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def wait() -> None:
    """Wait for the other processes."""
    if processes() > 1:
        _state().wait_for_everyone()


def share(value: Any = None) -> Any:
    """Return the main process's value in all processes."""
    if processes() == 1:
        return value
    _ = _state()
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
