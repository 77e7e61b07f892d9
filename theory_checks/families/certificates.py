"""The tighter certificate: is it covered where the papers' bound is, how much tighter, does it select better?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.page import Picture
from bandits.runs.settings import Count, Probability
from bandits.runs.stats import LEVEL, Estimate, at_least, at_most, log_ratio, median
from theory_checks import figures
from theory_checks.checks import (
    Cell,
    Check,
    Family,
    Measure,
    Result,
    Several,
    Table,
    at,
    blocks,
    check_replicates,
    measured,
    register,
    unfitted,
)
from theory_checks.maths.tangent import Setting
from theory_checks.maths.trials import Sampling, Trial, play
from theory_checks.measures import coverage

SELECTIONS: tuple[Sampling, ...] = ("random", "active", "fisher", "certificate")
STRETCH = (0.5, 1.0, 2.0, 4.0, 8.0)
TARGET = 5.0


@dataclass(frozen=True)
class Case:
    """A problem and how it is sampled.

    ``mlp`` and ``ntk``: the simulator's default, smaller: a label per prompt, Δmax = 2, λ = 1.  ``often``: nine duels
    with 400 answers.
    """

    problem: Literal["mlp", "ntk", "often"]
    sampling: Sampling = "random"
    largest: float = 2.0

    @property
    def name(self) -> str:
        """Its name in claims and tables."""
        return f"often-{self.largest:g}" if self.problem == "often" else f"{self.problem}-{self.sampling}"


DEFAULTS = [*(Case("mlp", s) for s in SELECTIONS), Case("ntk", "random"), Case("ntk", "active")]
OFTEN = [Case("often", largest=largest) for largest in STRETCH]
COMPARED = [case for case in DEFAULTS if case.sampling in ("random", "active")]


@dataclass(frozen=True)
class Block(Cell):
    """Some replicates of a case."""

    case: Case
    first: int
    end: int

    @property
    def key(self) -> str:
        """The case and the first replicate."""
        return f"{self.case.name}-{self.first}"


@dataclass(frozen=True, kw_only=True)
class Certificates(Family[Block]):
    """Coverage, tightness and selection by the certificate."""

    name = "certificates"
    title = "A tighter certificate: evidence and Fisher-weighted widths"

    replicates: Several = 80
    block: Count = 80
    prompts: Count = 40
    width: Count = 64
    rounds: Count = 8
    batch: Count = 5
    delta: Probability = 0.05

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        check_replicates("replicates", self.replicates, self.delta)
        if self.batch > 3 * self.prompts:
            raise InputError(f"--batch {self.batch} is more than the {3 * self.prompts} duels of --prompts")
        for case in (*DEFAULTS, *OFTEN):
            self._trial(case)

    def _trial(self, case: Case) -> Trial:
        if case.problem == "often":
            setting = Setting(3, 3, width=32, largest=case.largest)
            return Trial(setting, case.sampling, rounds=80, batch=5, delta=self.delta, certificates=6)
        setting = Setting(self.prompts, 3, width=self.width, largest=case.largest, truth=case.problem)
        return Trial(setting, case.sampling, rounds=self.rounds, batch=self.batch, delta=self.delta, certificates=6)

    def cells(self) -> Sequence[Block]:
        """Return one per case and block of replicates."""
        parts = blocks(self.replicates, self.block)
        return [Block(case, part.start, part.stop) for case in (*DEFAULTS, *OFTEN) for part in parts]

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: those of the largest trial."""
        most, block = max(self._trial(case).memory(1) for case in (*DEFAULTS, *OFTEN)), min(self.block, self.replicates)
        return {"--certificates.prompts, --certificates.width, --certificates.block": block * most}

    def run(self, cell: Block, seed: int, folder: Path) -> Table:
        """Play a trial."""
        replicates = range(cell.first, cell.end)
        columns = play(self._trial(cell.case), Key(seed, tuple(replicates)).fold_in("certificates", cell.case.problem))
        where = {"case": cell.case.name, "problem": cell.case.problem, "sampling": cell.case.sampling}
        return pd.DataFrame(where | {"largest": cell.case.largest, "replicate": replicates} | columns)

    def checks(self) -> list[Check]:
        """Declare coverage everywhere, the gain, and the comparison of selections."""
        default = f"{self.prompts} prompts x 3, {self.rounds * self.batch} labels, Δmax = 2, λ = 1, m = {self.width}"
        settings = {case.name: f"{default}, truth {case.problem}" for case in DEFAULTS}
        settings |= {case.name: f"9 duels, 400 answers, Δmax = {case.largest:g}, λ = 1" for case in OFTEN}
        checks = [
            Check(
                name=f"certificates/coverage/{case.name}",
                statement="the certificate holds at all its moments and duels",
                threshold=at_least(1 - self.delta),
                measure=_coverage(case.name),
                setting=settings[case.name],
            )
            for case in (*DEFAULTS, *OFTEN)
        ]
        checks += [
            Check(
                name=f"certificates/gain/{case.name}",
                statement="median over duels of Proposition 1's right side over the certificate's (target: 5)",
                threshold=at_least(TARGET),
                measure=measured(median, "gain_proposition", case=case.name),
                expect="holds" if case.problem == "often" else "open",
                setting=settings[case.name],
            )
            for case in (*COMPARED, OFTEN[-1])
        ]
        checks += [
            Check(
                name=f"certificates/why not five times/{case.name}",
                statement="median over duels of Proposition 1's right side over a half-width below which no "
                "certificate can go under ‖θ* - θ0‖ <= B alone",
                threshold=at_most(TARGET),
                measure=measured(median, "gain_possible", case=case.name),
                expect="open",
                setting=settings[case.name],
            )
            for case in COMPARED
        ]
        checks += [
            Check(
                name="certificates/gain with the range",
                statement="the gain if |Δ| <= Δmax, which κ presumes, is used for every duel",
                threshold=at_least(TARGET),
                measure=measured(median, "gain_range", case="mlp-random"),
                expect="open",
                setting=settings["mlp-random"],
            ),
            Check(
                name="certificates/gain over the exact bound",
                statement="the same against the exact bound",
                threshold=at_least(1.0),
                measure=measured(median, "gain_exact", case="mlp-random"),
                setting=settings["mlp-random"],
            ),
            Check(
                name="certificates/gain grows with Δmax",
                statement="gain at Δmax = 8 over gain at Δmax = 1, paired",
                threshold=at_least(1.0),
                measure=_paired("gain_proposition", "often-8", "often-1"),
                setting="9 duels, 400 answers",
            ),
        ]
        return checks + [
            Check(
                name=f"certificates/selection/{sampling}",
                statement=f"final error of {sampling} selection over random's, paired (geometric mean)",
                threshold=at_most(1.0),
                measure=_paired("error", f"mlp-{sampling}", "mlp-random"),
                expect="open",
                setting=settings["mlp-random"],
            )
            for sampling in SELECTIONS[1:]
        ]

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say how much tighter, where, and what is left."""
        parts = {str(name): part for name, part in table.groupby("case", sort=False)}
        gains = [f"{parts[c.name]['gain_proposition'].median():.1f} at Δmax = {c.largest:g}" for c in OFTEN]
        mlp, ntk, active = parts["mlp-random"], parts["ntk-random"], parts["ntk-active"]
        picks = [f"{s} {_paired('error', f'mlp-{s}', 'mlp-random')(table, LEVEL)}" for s in SELECTIONS[1:]]
        settings = [
            f"truth {case.problem}, {case.sampling}: {parts[case.name]['gain_proposition'].median():.1f} times (at "
            f"most {parts[case.name]['gain_possible'].median():.1f} by the two-point floor; ours is "
            f"{parts[case.name]['above_floor'].median():.1f} times the floor)"
            for case in COMPARED
        ]
        return [
            "How many times tighter than Proposition 1 the certificate is in the simulator's default setting: "
            f"{'; '.join(settings)}. Nine duels asked 400 times: {', '.join(gains)}.",
            f"Where the prior rules no certificate can help: truth mlp has B = {mlp['norm'].median():.0f} on these "
            f"items, and the prior term is {mlp['gamma_prior'].median() / mlp['gamma'].median():.0%} of γ_T; truth "
            f"ntk has B = {ntk['norm'].median():.1f} and "
            f"{active['gamma_prior'].median() / active['gamma'].median():.0%}. Cut at the range |Δ| <= Δmax, which κ "
            f"presumes anyway, the certificate is {ntk['gain_range'].median():.1f} (ntk) and "
            f"{mlp['gain_range'].median():.0f} (mlp) times tighter.",
            f"Final error over random selection's (truth mlp, geometric mean of paired ratios): {', '.join(picks)}.",
        ]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw right over left sides against Δmax, and errors by selection."""
        names = {
            "tightness_proposition": "Proposition 1",
            "tightness_extended": "exact bound",
            "tightness_certificate": "certificate",
        }
        often = at(table, problem="often").melt(["largest", "replicate"], list(names), "bound", "ratio")
        axes = ("Δmax (log-odds)", "right side / error")
        errors = {str(s): _paired("error", f"mlp-{s}", "mlp-random")(table, LEVEL) for s in SELECTIONS[1:]}
        return [
            figures.picture(
                "certificates",
                "Right over left side (median over duels, mean over replicates) after 400 answers to nine duels, "
                "against the largest true difference. The papers' bounds pay 1/κ, the certificate does not.",
                figures.lines(often.replace({"bound": names}), "largest", "ratio", "bound", None, axes, "xy"),
            ),
            figures.picture(
                "certificates-selection",
                "Final error by selection rule over random selection's (geometric mean of paired ratios with 95 % "
                "interval).",
                figures.intervals(errors, "error / error of random selection", 1.0),
            ),
        ]

    def numbers(self, table: Table) -> Table:
        """Tabulate tightness per case."""
        return pd.DataFrame(
            [
                {
                    "case": case,
                    "rhs/lhs, papers": part["tightness_proposition"].median(),
                    "rhs/lhs, exact": part["tightness_extended"].median(),
                    "rhs/lhs, certificate": part["tightness_certificate"].median(),
                    "certificate over floor": part["above_floor"].median(),
                    "gain possible": part["gain_possible"].median(),
                    "B": part["norm"].median(),
                    "γ": part["gamma"].median(),
                    "γ prior term": part["gamma_prior"].median(),
                    "gain over papers": part["gain_proposition"].median(),
                    "gain over exact": part["gain_exact"].median(),
                    "error": part["error"].mean(),
                }
                for case, part in table.groupby("case", sort=False)
            ]
        )


def _coverage(case: str) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        return coverage(at(table, case=case), "certificate", level)

    return measure


def _paired(column: str, above: str, below: str) -> Measure:
    """Measure the ratio of two cases, replicate by replicate."""

    def measure(table: Table, level: float) -> Estimate:
        part = table[table["case"].isin((above, below))]
        wide = part.pivot(index="replicate", columns="case", values=column)
        return log_ratio(wide[above], wide[below], level).but(unmet=unfitted(part))

    return measure


register(
    smoke=Certificates(replicates=80, block=80, prompts=4, width=16, rounds=3, batch=3),
    quick=Certificates(),
    full=Certificates(replicates=400, block=40, prompts=200, width=64, rounds=20, batch=10),
)
