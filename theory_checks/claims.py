"""Owns what a claim is, what it expects of a run, and when its verdict is an alarm.

Every claim is a number compared with a threshold: a coverage (at least 1 - δ), a log-log slope (at most the declared
order), the worst case of an identity (at most rounding).  A control is a claim that must come out *refuted*.  Knows
nothing of what is measured or how; estimates and their judgement are ``bandits.runs.stats``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bandits.core.errors import InputError
from bandits.runs.stats import LEVEL, Estimate, Threshold, Word, judge, replicates_needed


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
class Verdict:
    """A claim, what was measured, and what follows."""

    claim: Claim
    measurement: Estimate

    @property
    def word(self) -> Word:
        """*supported*, *refuted* or *not informative*."""
        return judge(self.measurement, Threshold(self.claim.side, self.claim.threshold)).word

    @property
    def reason(self) -> str:
        """What the word rests on."""
        return judge(self.measurement, Threshold(self.claim.side, self.claim.threshold)).reason

    @property
    def alarm(self) -> bool:
        """Whether a claim that should hold is refuted, or a control is not."""
        expected = {"holds": self.word != "refuted", "fails": self.word == "refuted", "open": True}
        return not expected[self.claim.expect]


def check_replicates(what: str, replicates: int, delta: float) -> None:
    """Raise ``InputError`` if a coverage of ``1 - δ`` could not be supported even with every replicate covered."""
    needed = replicates_needed(1 - delta)
    if replicates < needed:
        raise InputError(
            f"{what}: {replicates} replicates cannot support a coverage of {1 - delta:g} at {LEVEL:.0%} confidence; at "
            f"least {needed} are needed (or a larger delta)"
        )
