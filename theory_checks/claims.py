"""Owns what a claim is, what a measurement of it is, and when the one judges the other.

Every claim is a number compared with a threshold: a coverage (at least 1 - δ), a log-log slope (at most the declared
order), a deviation from an identity (at most rounding).  A control is a claim that must come out *refuted*.  Knows
nothing of what is measured or how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bandits.core.bounds import clopper_pearson
from bandits.core.errors import InputError

Word = Literal["supported", "refuted", "not informative"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Claim:
    """``quantity at least | at most threshold``; ``expect`` says what a run that goes well finds.

    holds: refuting it is an alarm.  fails: a negative control, not refuting it is an alarm.  open: nobody has proved
    it; whatever is found is a finding and no alarm.
    """

    name: str
    statement: str
    side: Literal["at least", "at most"]
    threshold: float
    expect: Literal["holds", "fails", "open"] = "holds"
    setting: str = ""

    @property
    def family(self) -> str:
        """The family of claims that this one belongs to: its name up to the first slash."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Measurement:
    """An estimate with its 95 % interval; ``unmet`` names what forbids a judgement (an assumption, a fit, vacuity)."""

    estimate: float
    low: float
    high: float
    replicates: int
    unmet: str = ""
    note: str = ""

    def but(self, unmet: str = "", note: str = "") -> Measurement:
        """Return the same measurement with one more reason against judging it, or one more remark."""
        join = [", ".join(part for part in pair if part) for pair in ((self.unmet, unmet), (self.note, note))]
        return Measurement(self.estimate, self.low, self.high, self.replicates, *join)


@dataclass(frozen=True)
class Verdict:
    """A claim, what was measured, and what follows."""

    claim: Claim
    measurement: Measurement

    @property
    def word(self) -> Word:
        """*supported* or *refuted* only if the whole interval lies on one side and nothing forbids a judgement."""
        c, m = self.claim, self.measurement
        if m.unmet or math.isnan(m.estimate):
            return "not informative"
        sign = 1 if c.side == "at least" else -1
        best, worst = (m.high, m.low) if sign == 1 else (m.low, m.high)
        if sign * worst >= sign * c.threshold:
            return "supported"
        return "refuted" if sign * best < sign * c.threshold else "not informative"

    @property
    def reason(self) -> str:
        """What the word rests on."""
        c, m = self.claim, self.measurement
        said = f"{m.estimate:.4g} [{m.low:.4g}, {m.high:.4g}], {c.side} {c.threshold:.4g} claimed"
        why = m.unmet or ("nothing was measured" if math.isnan(m.estimate) else "")
        if not why and self.word == "not informative":
            why = "the interval holds the threshold: too few replicates"
        return "; ".join(part for part in (said, why, m.note) if part)

    @property
    def alarm(self) -> bool:
        """Whether a claim that should hold is refuted, or a control is not."""
        expected = {"holds": self.word != "refuted", "fails": self.word == "refuted", "open": True}
        return not expected[self.claim.expect]


def replicates_needed(level: float, confidence: float = CONFIDENCE) -> int:
    """Return how many replicates, all covered, put the exact interval's lower end at ``level``.

    ``low = α^{1/n}`` with ``α = (1 - confidence)/2`` (Clopper-Pearson at n of n), so ``n >= log α / log level``.
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log(level) - 1e-9)


def check_replicates(what: str, replicates: int, delta: float) -> None:
    """Raise ``InputError`` if a coverage of ``1 - δ`` could not be supported even with every replicate covered."""
    needed = replicates_needed(1 - delta)
    if replicates < needed:
        raise InputError(
            f"{what}: {replicates} replicates cannot support a coverage of {1 - delta:g} at {CONFIDENCE:.0%} "
            f"confidence; at least {needed} are needed (or a larger delta)"
        )


def coverage(covered: np.ndarray, unmet: str = "", note: str = "") -> Measurement:
    """Measure a coverage: the share of replicates that are covered *throughout*, with its exact interval."""
    hits, count = int(np.sum(covered)), len(covered)
    return Measurement(hits / count, *clopper_pearson(hits, count, CONFIDENCE), count, unmet, note)


def deviation(values: np.ndarray, unmet: str = "", note: str = "") -> Measurement:
    """Measure an identity or inequality that must hold in every case: the worst case is its own interval."""
    worst = float(np.max(values))
    return Measurement(worst, worst, worst, len(values), unmet, note)
