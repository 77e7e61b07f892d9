"""Owns what is told of measured rows: records, verdicts, the terminal's table, ``docs/benchmarks.md``, a figure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bandits.core.errors import InputError
from bandits.runs.figures import GOOD, NEUTRAL, panels
from bandits.runs.files import read_json, write_frame, write_json
from benchmarks.harness.measure import Measured, Timing
from benchmarks.harness.row import Row, Target
from benchmarks.rows.growth import AXES

Record = dict[str, Any]
SPREAD = (25, 75)  # percentiles of the ratios


@dataclass(frozen=True)
class Ratio:
    """The median over repetitions of one contender's seconds over another's, with quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Pair the repetitions in order, as they were run; all with the last of the shorter list's."""
        count = min(len(above), len(below))
        ratios = np.array(above[:count]) / np.array(below[:count])
        return cls(float(np.median(ratios)), *map(float, np.percentile(ratios, SPREAD)))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def record(
    row: Row, measured: Measured, machine: Mapping[str, str], threads: int, versions: Mapping[str, str], commit: str
) -> Record:
    """Return a measured row as JSON values, with the verdict on each target."""
    part = {contender.name: "own" if contender.own else "peer" for contender in row.peers} | {"ours": "ours"}
    part |= {c.name: name for name, c in (("yardstick", row.yardstick), ("limit", row.limit)) if c}
    timings = measured.timings
    verdicts = [verdict(row, target, measured) for target in row.targets]
    return {
        "name": row.name,
        "title": row.title,
        "workload": row.workload,
        "when": _now(),
        "commit": commit,
        "machine": dict(machine),
        "threads": threads,
        "versions": dict(versions),
        "contenders": [
            {
                "name": name,
                "seconds": t.seconds,
                "peak_gb": t.peak,
                "beside_gb": t.beside,
                "part": part[name],
                "of_ours": str(Ratio.of(t.seconds, timings["ours"].seconds)),
            }
            for name, t in timings.items()
        ],
        "figures": dict(measured.figures),
        "curves": dict(measured.curves),
        "absent": dict(measured.absent),
        "valid": measured.check.passed and all(v["word"] != "beaten" for v in verdicts),
        "check": measured.check.text,
        "targets": verdicts,
        "bound": row.bound,
        "profile": [list(part) for part in measured.profile],
        "memory": row.memory,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def verdict(row: Row, target: Target, measured: Measured) -> dict[str, str]:
    """Return what was measured for a target, and whether it was met.

    ``met``, ``missed``; ``unknown`` where there was nothing to compare with; ``invalid`` where the check failed;
    ``beaten`` where ours is faster than what was taken for a limit (upper quartile below 1), which then is none.
    """
    ours, timings = measured.timings["ours"], measured.timings
    at_least = beaten = False
    value: float | None
    told = ""
    match target.of:
        case "peer":
            peers = [
                timings[p.name] for p in row.peers if p.name in timings and not p.own and target.against in ("", p.name)
            ]
            at_least = True
            ratios = [Ratio.of(p.seconds, ours.seconds) for p in peers if p.seconds]
            best = min(ratios, key=lambda r: r.median, default=None)
            value, told = (best.median, f"{best} times") if best else (None, "no peer could be run")
        case "yardstick" | "limit":
            contender = row.yardstick if target.of == "yardstick" else row.limit
            known = timings.get(contender.name) if contender else None
            ratio = Ratio.of(ours.seconds, known.seconds) if known else None
            beaten = target.of == "limit" and ratio is not None and ratio.high < 1
            value, told = (
                (ratio.median, f"{ratio} times the {target.of}")
                if ratio
                else (None, f"the {target.of} could not be run")
            )
        case "seconds":
            value = float(np.median(ours.seconds))
            told = f"{value:.3g} s" if value >= 0.1 else f"{1000 * value:.3g} ms"
        case "memory":
            value = _memory(row, ours)
            told = f"{value:.2f} GB"
        case "figure":
            value = measured.figures[target.figure]
            shown = 100 * value if target.unit == "%" else value
            told = f"{shown:.3g} {target.unit}".rstrip()
    if value is None:
        word = "unknown"
    elif not measured.check.passed:
        word = "invalid"
    elif beaten:
        word = "beaten"
    else:
        word = "met" if (value >= target.threshold if at_least else value <= target.threshold) else "missed"
    return {"text": target.text, "measured": told, "word": word}


def _memory(row: Row, timing: Timing) -> float:
    return timing.beside if row.memory == "beside" else timing.peak


def save(folder: Path, entry: Record) -> None:
    """Write one row's record, whole, and the table of all runs of all rows measured so far."""
    write_json(folder / "rows" / f"{entry['name']}.json", entry)
    runs = [
        {
            "row": e["name"],
            "contender": c["name"],
            "repetition": i,
            "seconds": s,
            "peak_gb": c["peak_gb"],
            "threads": e["threads"],
            "commit": e["commit"],
        }
        for e in load(folder)
        for c in e["contenders"]
        for i, s in enumerate(c["seconds"])
    ]
    write_frame(folder / "runs.csv", pd.DataFrame(runs))


def load(folder: Path) -> list[Record]:
    """Return the records of all rows measured so far; ``InputError`` names a file that holds none."""
    return [_record(path) for path in sorted((folder / "rows").glob("*.json"))]


_CONTENDER = {"name": str, "seconds": list, "peak_gb": float, "beside_gb": float, "part": str, "of_ours": str}
_TARGET = {"text": str, "measured": str, "word": str}
_TEXTS = ("name", "title", "workload", "when", "commit", "check", "memory", "load")
_RECORD = dict.fromkeys(_TEXTS, str) | {
    **dict.fromkeys(("machine", "versions", "figures", "curves", "absent"), dict),
    **dict.fromkeys(("contenders", "targets", "profile"), list),
    **{"threads": int, "valid": bool},
}


def _record(path: Path) -> Record:
    entry = read_json(path)
    whole = (
        _has(entry, _RECORD)
        and all(_has(contender, _CONTENDER) for contender in entry["contenders"])
        and all(contender["seconds"] and all(map(_number, contender["seconds"])) for contender in entry["contenders"])
        and all(_has(target, _TARGET) and target["word"] in MARK for target in entry["targets"])
        and all(isinstance(part, list) and len(part) == 2 and _number(part[1]) for part in entry["profile"])
        and (not entry["name"].startswith("growth") or _grown(entry))
    )
    if not whole:
        raise InputError(f"{path} is no record of a measured row; delete it and measure the row again")
    return entry


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _has(entry: Any, kinds: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(
        _number(entry.get(name)) if kind is float else isinstance(entry.get(name), kind) for name, kind in kinds.items()
    )


def _grown(entry: Record) -> bool:
    curves, figures = entry["curves"], entry["figures"]
    sizes = [(curves.get(f"x:{axis.name}"), curves.get(f"y:{axis.name}")) for axis in AXES]
    lists = all(isinstance(x, list) and isinstance(y, list) and len(x) == len(y) > 0 for x, y in sizes)
    numbers = lists and all(_number(value) for x, y in sizes for value in (*x, *y))
    return numbers and all(_number(figures.get(f"slope_{axis.name}")) for axis in AXES)


def together(records: Sequence[Record], commit: str, machine: Mapping[str, str]) -> list[Record]:
    """Return the rows that one commit gave on one machine: no others may stand in one table."""
    return [entry for entry in records if entry["commit"] == commit and entry["machine"] == dict(machine)]


MARK = {"met": "ok", "missed": "RED", "unknown": "?", "invalid": "INVALID", "beaten": "NO LIMIT"}


def terminal(entry: Record) -> str:
    """Return a row for the terminal."""
    lines = [f"{entry['title']} ({entry['name']}): {entry['workload']}"]
    lines += [
        f"    {c['name'][:66]:<66} {np.median(c['seconds']):>9.4g} s   x {c['of_ours']:<22} {c['peak_gb']:.2f} GB"
        for c in entry["contenders"]
    ]
    lines += [f"    {name}: {reason}"[:160] for name, reason in entry["absent"].items()]
    lines.append(f"    check: {'' if entry['valid'] else 'FAILED: '}{entry['check']}"[:300])
    lines += [f"    {MARK[t['word']]:<8}{t['text']}: {t['measured']}" for t in entry["targets"]]
    return "\n".join(lines)


def growth(entry: Record) -> Figure:
    """Draw seconds against each size, with the measured exponent."""
    figure, axes = panels(len(AXES), 3, 3.1, 2.8, legend=0)
    for place, axis in zip(axes, AXES, strict=True):
        x, y = np.array(entry["curves"][f"x:{axis.name}"]), np.array(entry["curves"][f"y:{axis.name}"])
        slope = entry["figures"][f"slope_{axis.name}"]
        place.plot(x, y, "o-", color=GOOD, ms=4)
        place.plot(x, y[-1] * (x / x[-1]) ** axis.promised, ":", color=NEUTRAL, lw=1)
        place.set(xscale="log", yscale="log", xlabel=axis.label, ylabel=axis.measure)
        place.set_title(f"exponent {slope:.2f} (promised ≤ {axis.promised:g})", fontsize=10)
        place.set_ylim(y.min() / 1.6, y.max() * 1.6)
        for side, values in ((place.xaxis, x), (place.yaxis, y)):
            side.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() / values.min() < 20 else (1, 3)))
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            side.set_minor_formatter(NullFormatter())  # within a decade matplotlib would name every minor tick
    return figure


def docs(entries: Sequence[Record], rows: Sequence[Row], picture: str | None) -> str:
    """Return the page from all records, in the rows' order; rows without a record are named."""
    known = {entry["name"]: entry for entry in entries}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("benchmarks.harness", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["median"] = lambda seconds: f"{float(np.median(seconds)):.3g}"
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    shown = [known[row.name] | {"bound": row.bound} for row in rows if row.name in known]
    return environment.get_template("benchmarks.md.j2").render(
        commit=entries[-1]["commit"],
        machine=entries[-1]["machine"],
        versions=entries[-1]["versions"],
        entries=shown,
        missing=[row for row in rows if row.name not in known],
        picture=picture,
        mark=MARK,
    )
