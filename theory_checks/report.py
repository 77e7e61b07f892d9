"""Owns the page and the terminal table: tables of measurements become verdicts, figures and one self-contained file."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bandits.runs.directory import RunDirectory
from bandits.runs.files import write_bytes, write_frame, write_json, write_text
from bandits.runs.page import Picture, render
from bandits.runs.stats import LEVEL
from theory_checks.checks import ERROR_RATE, Result
from theory_checks.study import Suite

EXPECTED = {"holds": "should hold", "fails": "control: must be refuted", "open": "open question"}


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """Return verdicts as a table, one row per claim."""
    return pd.DataFrame(
        [
            {
                "claim": r.check.name,
                "statement": r.check.statement,
                "expected": EXPECTED[r.check.expect],
                "verdict": r.verdict.word,
                "estimate": r.estimate.value,
                "low": r.estimate.low,
                "high": r.estimate.high,
                "side": r.check.threshold.side,
                "threshold": r.check.threshold.value,
                "replicates": r.estimate.n,
                "alarm": r.alarm,
                "setting": r.check.setting,
                "unmet": r.estimate.unmet or r.estimate.vacuous,
                "reason": r.verdict.reason,
            }
            for r in results
        ]
    )


def terminal(table: pd.DataFrame) -> list[str]:
    """Return the table of claims, as in ``verdicts.csv``, for a terminal of 120 columns."""
    lines = []
    for v in table.astype({"unmet": object}).fillna({"unmet": ""}).itertuples():
        mark = "!!" if v.alarm else "  "
        name = textwrap.shorten(str(v.claim), 58, placeholder="…")
        number = f"{v.estimate:.3g} [{v.low:.3g}, {v.high:.3g}]"
        sign = "≥" if v.side == "at least" else "≤"
        lines.append(f"{mark} {name:<58} {v.verdict:<16}{number:>28} {sign} {v.threshold:.3g}")
        if v.unmet:
            lines.append(f"      {textwrap.shorten(str(v.unmet), 110, placeholder='…')}")
    return lines


def finish(checks: Suite, directory: RunDirectory, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write verdicts, tables, figures and, last of all, the page."""
    sections: list[_Section] = []
    every: list[Result] = []
    for family in checks.families:
        table = tables[family.name]
        results = checks.judge(family, table)
        section = _Section(
            family.name,
            family.title,
            frame(results).to_dict("records"),
            family.pictures(table),
            family.summary(table, results),
            family.numbers(table),
        )
        for picture in section.pictures:
            write_bytes(directory.path / "figures" / picture.file, picture.content)
        write_frame(directory.path / f"{family.name}.csv", table)
        sections.append(section)
        every += results
    everything = frame(every)
    write_frame(directory.path / "verdicts.csv", everything)
    write_json(directory.path / "findings.json", [line for section in sections for line in section.summary])
    page = render(
        "theory_checks",
        "theory.html.j2",
        manifest=directory.manifest,
        checks=checks,
        sections=sections,
        counts=counts(everything),
        alarms=everything[everything["alarm"]].to_dict("records"),
        confidence=LEVEL,
        error_rate=ERROR_RATE,
    )
    write_text(directory.path / "index.html", page)


def counts(table: pd.DataFrame) -> list[dict[str, object]]:
    """Count verdicts per kind of claim."""
    rows: list[dict[str, object]] = []
    for expected, part in table.groupby("expected", sort=False):
        found = part["verdict"].value_counts()
        words = {word: int(found.get(word, 0)) for word in ("supported", "refuted", "not informative")}
        rows.append({"kind": str(expected), "claims": len(part)} | words)
    return rows


@dataclass(frozen=True, eq=False)
class _Section:
    """One family on the page."""

    name: str
    title: str
    verdicts: list[dict[Any, Any]]
    pictures: list[Picture]
    summary: list[str]
    numbers: pd.DataFrame
