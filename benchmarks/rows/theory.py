"""Row: what the system takes of the theory's checks, which large temporaries can make much of."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from benchmarks.harness import commands
from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register


def checks(preset: str) -> Callable[[], Answer]:
    """Run ``python -m theory_checks`` as a user does; note what its processes took of the processors."""

    def run() -> Answer:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory() as scratch:
            commands.run("theory_checks", (preset,), Path(scratch))
            (table,) = Path(scratch).glob("*/*/verdicts.csv")
            verdicts = pd.read_csv(table)
            pages = len(list(Path(scratch).glob("*/*/index.html")))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        return {
            "user": user,
            "system": system,
            "share": system / (user + system),
            "pages": float(pages),
            "claims": float(len(verdicts)),
            "alarms": float(verdicts["alarm"].sum()),
        }

    return run


def check(answers: Mapping[str, Answer]) -> Check:
    """Ask whether the run came to its page, and each claim and control out as expected."""
    ours = answers["ours"]
    return Check(
        ours["pages"] == 1 and ours["claims"] > 0 and ours["alarms"] == 0,
        f"page written, {ours['claims']:.0f} claims and controls judged, {ours['alarms']:.0f} alarms; "
        f"{ours['user']:.0f} s of processors in the program, {ours['system']:.0f} s in the system",
    )


register(
    Row(
        "theory",
        "make theory",
        "python -m theory_checks quick: all claims, with their controls",
        Contender("ours", checks, {"preset": "quick"}),
        check,
        (Target("figure", 0.05, "at most 5 % of its processors' time in the system", "share", unit="%"),),
        repetitions=1,
        warm=False,
        long=True,
        profiled=False,
    )
)
