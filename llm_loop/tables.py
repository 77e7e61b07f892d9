"""Owns the tables of a run's cells: what their rows hold, how they are written and read.

A table is a file of JSON lines, an object a row in the order of its fields; what there is no number for is null.  Every
text comes back as it was, whatever is in it.  The classes below are the one description of the columns: they write the
tables and they read them.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import pandas as pd

from bandits.core.errors import InputError
from bandits.runs.files import write_text
from bandits.runs.text import dumps, lines, loads
from llm_loop.data.chat import Prompt, as_trl, from_json, text_of, to_json


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every row begins with."""

    table: ClassVar[str]
    """the file's name without its suffix"""
    strategy: str
    seed: int
    round: int
    """0: the initial model"""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, kw_only=True)
class Round(Row):
    """A round; of round 0, which has no pool and no fit, most is null.

    Tokens are those that went through the model in this round, prompts included and padding not; measuring on held-out
    prompts is not counted.
    """

    table: ClassVar[str] = "rounds"
    labels: int
    """bought so far"""
    bits_per_byte: float | None = None
    """of what people wrote of the held-out prompts, under the policy: what it still knows of how people write"""
    pool_cut: int | None = None
    """of the pool's responses, how many the reward model read the beginning of only"""
    heldout_cut: int | None = None
    """of the answers to held-out prompts, likewise"""
    judge_cut: int | None = None
    """likewise, by the judge"""
    tokens_generated: int | None = None
    """of the pool's responses"""
    tokens_scored: int | None = None
    """log-probabilities, for rewards and reference"""
    tokens_features: int | None = None
    """gradients, forward and backward; blind strategies do without"""
    tokens_trained: int | None = None
    """DPO, all epochs"""
    zero_A_gradient_share: float | None = None  # noqa: N815 (LoRA's A)
    """share of (response, A-matrix) pairs of the pool whose gradient is exactly 0, at the θ that drew it"""
    zero_margin_share: float | None = None
    duplicates_dropped: int | None = None
    """responses that repeat an earlier one"""
    duels_offered: int | None = None
    selected_length: float | None = None
    """tokens per response, of the picks"""
    pool_length: float | None = None
    chosen_length: float | None = None
    """tokens per response, of those that the round's labels prefer"""
    rejected_length: float | None = None
    width_error_rank_correlation: float | None = None
    """of width with |margin − true margin|, both in log-odds"""
    information: float | None = None
    """log det(V/ridge) in nats, this round's duels included"""
    first_loss: float | None = None
    """of the fit's first step"""
    dpo_loss: float | None = None
    """of its last step"""
    steps: int | None = None
    chosen_log_ratio: float | None = None
    """mean of log π_θ/π_ref over the preferred responses, nats, as the last epoch met them"""
    rejected_log_ratio: float | None = None
    """the same over the other responses"""
    chosen_fell_share: float | None = None
    """share of pairs whose preferred response is less likely than under the reference"""
    training_accuracy: float | None = None
    """share of pairs whose preferred response has the larger log-ratio"""
    gradient_drift: float | None = None
    """of θ after the fit, on a few fixed responses, against θ0"""
    gradient_step: float | None = None
    """the same against the round before"""
    kernel_drift: float | None = None
    kernel_step: float | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate(Row):
    """A duel of a round's pool."""

    table: ClassVar[str] = "candidates"
    candidate: int
    """its number in the round"""
    prompt_index: int
    """of the training prompts"""
    prompt: Prompt
    response_1: str
    response_2: str
    model_1: str = ""
    """that drew response_1, of a pool that several models drew; else empty"""
    model_2: str = ""
    reward_1: float
    reward_2: float
    tokens_1: int
    tokens_2: int
    margin: float | None
    """the learner's, log-odds; null for a strategy that reads no reward"""
    width: float | None
    """null, with what follows from it, for a strategy that reads no width"""
    offered: bool
    """false: a repeated response"""
    picked_position: int | None
    """0: first pick; null: not picked"""
    log_det_gain: float | None
    """nats; of a pick given the picks before it"""
    nearest_picked_duel: int | None
    """the candidate number of that pick of this round, other than itself, which it is most like"""
    nearest_cosine: float | None
    """|cosine| with it under V⁻¹"""
    label: float | None
    """1: response_1 won; 0: response_2 won; null: not asked"""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Row):
    """A held-out response."""

    table: ClassVar[str] = "evaluations"
    prompt_index: int
    """of the held-out prompts"""
    reward: float
    judge: float
    log_ratio: float
    """log π_θ/π_ref, nats, summed over tokens"""
    reference_log_prob: float
    """log π_ref, nats, summed over tokens: per token, how fluent the initial model finds the response"""
    tokens: int
    ended: bool
    """by its end token; false: cut"""
    distinct_2: float
    """share of distinct pairs of neighbouring words"""


@dataclass(frozen=True, kw_only=True)
class HeldoutDuel(Row):
    """A duel of two fixed responses of the initial model to a held-out prompt."""

    table: ClassVar[str] = "duels"
    prompt_index: int
    margin: float
    """implicit"""
    true_margin: float
    """of the rewards over the labels' temperature: log-odds, as the margin"""
    log_ratio_1: float
    """log π_θ/π_ref of the first response, nats"""
    log_ratio_2: float


@dataclass(frozen=True, kw_only=True)
class Sample(Row):
    """A held-out prompt with its response."""

    table: ClassVar[str] = "samples"
    prompt_index: int
    prompt: Prompt
    response: str


@dataclass(frozen=True, kw_only=True)
class Preference(Row):
    """A labelled duel that is no tie, as TRL reads it."""

    table: ClassVar[str] = "preferences"
    prompt: Prompt
    chosen: str
    rejected: str


KINDS: tuple[type[Row], ...] = (Candidate, Evaluation, HeldoutDuel, Sample, Preference, Round)
"""all tables of a cell, in the order of writing"""
COLUMNS: dict[type[Row], dict[str, Any]] = {
    kind: {name: hint for name, hint in get_type_hints(kind).items() if name != "table"} for kind in KINDS
}
"""the types of their columns"""


def path_of(kind: type[Row], folder: Path) -> Path:
    """Return where a cell's folder has a table."""
    return folder / f"{kind.table}.jsonl"


def line_of(row: Row) -> str:
    """Return a row as its line; a conversation's preference has messages on both sides, as TRL wants them."""
    entry = {field.name: getattr(row, field.name) for field in fields(row)}
    if isinstance(row, Preference):
        entry |= as_trl(row.prompt, row.chosen, row.rejected)
    elif (prompt := entry.get("prompt")) is not None:
        entry["prompt"] = to_json(prompt)
    return dumps(entry) + "\n"


def write(kind: type[R], folder: Path, rows: Iterable[R]) -> None:
    """Write a table whole."""
    write_text(path_of(kind, folder), "".join(map(line_of, rows)))


def read(kind: type[R], folder: Path) -> list[R]:
    """Return a table's rows; ``InputError`` names the line that is not what the class says."""
    path = path_of(kind, folder)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; is the run complete?") from None
    except ValueError:
        raise InputError(f"{path} is a damaged table (not UTF-8)") from None
    rows = []
    for number, line in enumerate(lines(text), start=1):
        try:
            rows.append(row_of(kind, loads(line)))
        except ValueError as error:
            raise InputError(f"{path} is a damaged table (line {number}: {error})") from None
    return rows


def frame(kind: type[Row], *folders: Path) -> pd.DataFrame:
    """Return a table of one or more cells as a frame; null is NaN, and a prompt stays what it is."""
    rows = [row for folder in folders for row in read(kind, folder)]
    columns = {}
    for name, hint in COLUMNS[kind].items():
        number = {int: "int64", float: "float64", bool: "bool"}.get(hint)
        optional = isinstance(hint, types.UnionType) and type(None) in get_args(hint)
        values = [getattr(row, name) for row in rows]
        columns[name] = pd.Series(values, dtype=number or ("float64" if optional else "object"))
    return pd.DataFrame(columns)


def row_of(kind: type[R], entry: Any) -> R:
    """Return the row that JSON values make; ``ValueError`` names what is not as the class says."""
    required = {column.name for column in fields(kind) if column.default is MISSING}
    if not isinstance(entry, dict) or not required <= set(entry) <= set(COLUMNS[kind]):
        raise ValueError(f"no row of {kind.table}")
    entry = dict(entry)
    for name in entry:
        hint = COLUMNS[kind][name]
        if name == "prompt":
            entry[name] = from_json(entry[name])
        elif name in ("chosen", "rejected") and isinstance(entry[name], list):
            entry[name] = text_of(from_json(entry[name]))
        elif not _is(entry[name], hint):
            raise ValueError(f"{name} is {str(entry[name])[:40]!r}")
        elif isinstance(entry[name], int) and float in (hint, *get_args(hint)):
            entry[name] = float(entry[name])
    return kind(**entry)


def _is(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a type; an int is a float, a bool is neither, infinity is none."""
    options = get_args(hint) or (hint,)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return type(value) in options or (type(value) is int and float in options)
