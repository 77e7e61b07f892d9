"""Owns the page and the terminal table: tables of measurements become verdicts, figures and one self-contained file."""

from __future__ import annotations

import textwrap

import pandas as pd

from bandits.runs.directory import RunDirectory
from bandits.runs.files import write_bytes, write_frame, write_json, write_text
from bandits.runs.page import render
from bandits.runs.stats import LEVEL
from theory_checks.claims import Verdict
from theory_checks.family import Family, Picture
from theory_checks.study import Checks

EXPECTED = {"holds": "should hold", "fails": "control: must be refuted", "open": "open question"}


def judge(family: Family, table: pd.DataFrame, checks: Checks) -> list[Verdict]:
    """Judge a family's claims; every declared claim must have been measured, and no other."""
    claims = {claim.name: claim for claim in family.claims()}
    measured = family.measure(table)
    if claims.keys() != measured.keys():
        raise AssertionError(f"{family.name}: declared and measured differ: {sorted(claims.keys() ^ measured.keys())}")
    return [Verdict(claim, measured[name]) for name, claim in claims.items() if checks.wants(name)]


def frame(verdicts: list[Verdict]) -> pd.DataFrame:
    """Return verdicts as a table, one row per claim."""
    return pd.DataFrame(
        [
            {
                "claim": v.claim.name,
                "statement": v.claim.statement,
                "expected": EXPECTED[v.claim.expect],
                "verdict": v.word,
                "estimate": v.measurement.value,
                "low": v.measurement.low,
                "high": v.measurement.high,
                "side": v.claim.side,
                "threshold": v.claim.threshold,
                "replicates": v.measurement.n,
                "alarm": v.alarm,
                "setting": v.claim.setting,
                "unmet": v.measurement.unmet,
                "reason": v.reason,
            }
            for v in verdicts
        ]
    )


def terminal(table: pd.DataFrame) -> list[str]:
    """Return the table of claims, as in ``verdicts.csv``, for a terminal of 120 columns."""
    lines = []
    for v in table.fillna({"unmet": ""}).itertuples():
        mark = "!!" if v.alarm else "  "
        name = textwrap.shorten(str(v.claim), 58, placeholder="…")
        number = f"{v.estimate:.3g} [{v.low:.3g}, {v.high:.3g}]"
        sign = "≥" if v.side == "at least" else "≤"
        lines.append(f"{mark} {name:<58} {v.verdict:<16}{number:>28} {sign} {v.threshold:.3g}")
        if v.unmet:
            lines.append(f"      {textwrap.shorten(str(v.unmet), 110, placeholder='…')}")
    return lines


def finish(checks: Checks, directory: RunDirectory, tables: dict[str, pd.DataFrame]) -> list[Verdict]:
    """Write verdicts, tables, figures and, last of all, the page; return the verdicts."""
    sections, every, said = [], [], []
    for family in checks.families:
        table = tables[family.name]
        verdicts = judge(family, table, checks)
        pictures = family.pictures(table)
        words = family.words(table, verdicts)
        numbers = family.numbers(table)
        for picture in pictures:
            write_bytes(directory.path / "figures" / f"{picture.name}.png", picture.content)
        write_frame(directory.path / f"{family.name}.csv", table)
        sections.append(_Section(family, frame(verdicts), pictures, words, numbers))
        every += verdicts
        said += words
    everything = frame(every)
    write_frame(directory.path / "verdicts.csv", everything)
    write_json(directory.path / "findings.json", said)
    page = render(
        "theory_checks",
        "theory.html.j2",
        manifest=directory.manifest,
        checks=checks,
        sections=sections,
        summary=summary(everything),
        alarms=everything[everything["alarm"]].to_dict("records"),
        confidence=LEVEL,
    )
    write_text(directory.path / "index.html", page)
    return every


def summary(table: pd.DataFrame) -> list[dict[str, object]]:
    """Count verdicts per kind of claim."""
    rows: list[dict[str, object]] = []
    for expected, part in table.groupby("expected", sort=False):
        counts = part["verdict"].value_counts()
        rows.append(
            {"kind": str(expected), "claims": len(part)}
            | {w: int(counts.get(w, 0)) for w in ("supported", "refuted", "not informative")}
        )
    return rows


class _Section:
    """One family on the page."""

    def __init__(
        self, family: Family, verdicts: pd.DataFrame, pictures: list[Picture], words: list[str], numbers: pd.DataFrame
    ) -> None:
        self.name, self.title, self.pictures, self.words = family.name, family.title, pictures, words
        self.verdicts = verdicts.to_dict("records")
        self.numbers = numbers
