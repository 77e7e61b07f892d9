"""Owns labels from elsewhere, ``prompt``, ``chosen`` and ``rejected`` as TRL has them, and the names of a pool's parts.

The pool itself is read by ``llm_loop.data.pools``.  Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bandits.core.errors import InputError
from labelling import jsonl
from labelling.queries import content_id
from llm_loop.data import files
from llm_loop.data.chat import Prompt, to_json
from llm_loop.data.pools import Group, at, pair_of, renamed, row_of
from llm_loop.data.rows import heldout_of


def id_of(group: Group) -> str:
    """Return what names a prompt, by its content."""
    return content_id(to_json(group.prompt))


@dataclass(frozen=True)
class Label:
    """A duel that was answered before: the outcome is the share that ``first`` won."""

    prompt: Prompt
    first: str
    second: str
    outcome: float
    place: str


def read_labels(path: Path, fields: Mapping[str, str] | None = None) -> list[Label]:
    """Return the labels of a file: ``prompt``, ``chosen``, ``rejected``, as TRL has them; ``tie`` may be true.

    Raises ``InputError``, with the row's place, for a row that is no label, and for one that a split holds out.
    """
    found, _ = files.rows(files.located(str(path), "the name of one"))
    labels = []
    for row in found:
        with at(row, "labels"):
            value = renamed(row_of(row), fields or {})
            if heldout_of(value, row.split):
                raise InputError("it is held out by its split, and labels are learned from; leave it out")
            if "chosen" not in value or "rejected" not in value:
                raise InputError("a label has chosen and rejected")
            prompt, (chosen, rejected) = pair_of(value)
            if chosen == rejected:
                raise InputError("its chosen and rejected are the same")
            tie = value.get("tie", False)
            if not isinstance(tie, bool):
                raise InputError(f"its tie is neither true nor false: {str(tie)[:40]!r}")
            labels.append(Label(prompt, chosen, rejected, 0.5 if tie else 1.0, row.place))
    return labels


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    """Write labels as ``read_labels`` reads them; of a label whose second response won, that is the chosen one."""
    rows = []
    for label in labels:
        pair = (label.first, label.second) if label.outcome >= 0.5 else (label.second, label.first)
        row = {"prompt": to_json(label.prompt), "chosen": pair[0], "rejected": pair[1]}
        rows.append(row | ({"tie": True} if label.outcome == 0.5 else {}))
    jsonl.write(path, rows)
