"""Negative controls: what must come out refuted, by the very code that supports the honest twin.

The bounds are loose, so an honest-looking setting has no power.  Each control therefore names the setting that gives it
power: duels asked so often that the width is tiny and a bias stays, or a prior so strong that the bound is its prior
term alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bandits.core.rng import Key
from bandits.runs.page import Picture
from bandits.runs.settings import Probability
from bandits.runs.stats import Estimate, at_least, halved
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
    check_replicates,
    measured,
    register,
)
from theory_checks.maths.tangent import Setting
from theory_checks.maths.trials import Bound, Corruption, Trial, play
from theory_checks.measures import coverage

OFTEN = "one duel (|Δ| = 2) asked 3000 times, λ = 1"
BOUNDS: dict[Bound, str] = {
    "extended": "exact bound, extended fit",
    "plain": "exact bound, θ_t",
    "noise": "self-normalised step",
    "certificate": "the tighter certificate",
}


@dataclass(frozen=True, kw_only=True)
class Control:
    """A trial that is corrupted in one point, and the bound that it must break there."""

    corruption: str
    trial: Trial
    bound: Bound = "extended"
    setting: str = OFTEN

    @property
    def twin(self) -> Trial:
        """The same trial without the corruption."""
        return replace(self.trial, oracle="btl", corruption="none")


def _all(delta: float) -> dict[str, Control]:
    often = Trial(
        Setting(prompts=1, responses=3, largest=2.0), "repeated", rounds=60, batch=50, certificates=0, delta=delta
    )
    certified = replace(often, certificates=8)

    def oracle(name: str, words: str, trial: Trial = often, bound: Bound = "extended") -> Control:
        return Control(corruption=words, trial=replace(trial, oracle=name), bound=bound)

    def corrupted(name: Corruption, words: str, **changes: object) -> Control:
        trial = replace(often, corruption=name, **changes)  # type: ignore[arg-type]
        return Control(corruption=words, trial=trial)

    flipped, probit = "every label inverted", "P = Φ(2Δ)"
    aligned = Setting(truth="aligned", largest=2.0, width=256)
    prior = {"sampling": "random", "rounds": 20, "batch": 1}
    return {
        "flipped labels": oracle("flipped", flipped),
        "20 % of labels flipped": oracle("flipped-20%", "every fifth label inverted"),
        "temperature 4": oracle("btl-hot", "P = σ(Δ/4)"),
        "temperature 1/4": oracle("btl-cold", "P = σ(4Δ)"),
        "probit link": oracle("probit", probit),
        "intransitive oracle": oracle("intransitive", "a cycle of 2 sin 120° = 1.7 log-odds on top of Δ"),
        "flipped labels, certificate": oracle("flipped", flipped, certified, "certificate"),
        "probit link, certificate": oracle("probit", probit, certified, "certificate"),
        "mean loss": corrupted("mean-loss", "the data term divided by t, λ as it was"),
        "decay to 0": replace(
            corrupted(
                "decay-to-zero",
                "(λ/2)‖θ‖² in place of (λ/2)‖θ - θ0‖²",
                setting=Setting(truth="aligned", largest=0.2),
                regularisation=100.0,
                **prior,
            ),
            setting="a weak truth along one feature (|Δ| <= 0.2), λ = 100, 20 answers: the prior term is the bound",
        ),
        "NDB features under NTK weights": replace(
            corrupted("ndb-features", "φ/√m in V, θ not rescaled", setting=aligned, regularisation=30.0, **prior),
            setting="a truth along one feature (|Δ| <= 2), m = 256, λ = 30, 20 answers: the bound is nearly attained",
        ),
        "forgetful fit": corrupted("forgetful", "θ_t fits the newest batch alone while V counts every answer"),
        "V misses answers": replace(
            corrupted("unrecorded", "V counts each asked duel once"),
            bound="noise",
            setting=OFTEN + "; the whole bound would only get looser, so its self-normalised step is judged",
        ),
        "κ at too small a Δmax": replace(
            corrupted("small-kappa", "κ = σ'(2) where |Δ| = 8", setting=Setting(prompts=1, responses=2, largest=8.0)),
            bound="plain",
            setting="one duel (|Δ| = 8) asked 3000 times, λ = 1; the audit of κ is switched off",
        ),
    }


@dataclass(frozen=True)
class Played(Cell):
    """A trial, named after the first control that has it, or has it for its twin."""

    name: str
    trial: Trial

    @property
    def key(self) -> str:
        """The name alone."""
        return "".join(c if c.isalnum() and c.isascii() else "-" for c in self.name).strip("-").lower()


@dataclass(frozen=True, kw_only=True)
class Controls(Family[Played]):
    """Every control and its honest twin."""

    name = "controls"
    title = "Negative controls: the same code refutes what is wrong"

    replicates: Several = 100
    delta: Probability = 0.05

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        check_replicates("replicates", self.replicates, self.delta)

    def cells(self) -> Sequence[Played]:
        """Return one per distinct trial; controls share honest twins."""
        cells: dict[Trial, Played] = {}
        for name, control in _all(self.delta).items():
            cells.setdefault(control.trial, Played(name, control.trial))
            cells.setdefault(control.twin, Played(f"twin of {name}", control.twin))
        return list(cells.values())

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: those of the largest trial."""
        return {"--controls.replicates": max(cell.trial.memory(self.replicates) for cell in self.cells())}

    def run(self, cell: Played, seed: int, folder: Path) -> Table:
        """Play a trial."""
        replicates = range(self.replicates)
        columns = play(cell.trial, Key(seed, tuple(replicates)).fold_in("controls"))
        return pd.DataFrame({"trial": cell.name, "replicate": replicates} | columns)

    def checks(self) -> list[Check]:
        """Declare each control (must fail) and its twin (must hold)."""
        level, checks = at_least(1 - self.delta), []
        for name, control in _all(self.delta).items():
            which = BOUNDS[control.bound]
            checks.append(
                Check(
                    name=f"controls/{name}",
                    statement=f"{which} with {control.corruption}",
                    threshold=level,
                    measure=_coverage(self._cell(control.trial), control.bound),
                    expect="fails",
                    setting=control.setting,
                )
            )
            checks.append(
                Check(
                    name=f"controls/{name}/honest twin",
                    statement=f"{which}, the same setting done right",
                    threshold=level,
                    measure=_coverage(self._cell(control.twin), control.bound),
                    setting=control.setting,
                )
            )
        honest = self._cell(_all(self.delta)["flipped labels"].twin)
        checks.append(
            Check(
                name="controls/half the empirical multiplier",
                statement="width times half of the multiplier that covered half of the first replicates, on the others",
                threshold=level,
                measure=measured(halved, "needed_plain", trial=honest),
                expect="fails",
                setting=OFTEN,
            )
        )
        return checks

    def _cell(self, trial: Trial) -> str:
        return next(cell.name for cell in self.cells() if cell.trial == trial)

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Count the controls that came out refuted."""
        controls = [r for r in results if r.check.expect == "fails"]
        missed = [r.check.name.partition("/")[2] for r in controls if r.verdict.word != "refuted"]
        return [
            f"{len(controls) - len(missed)} of {len(controls)} negative controls were refuted"
            + (
                f"; not refuted: {', '.join(missed)}."
                if missed
                else ", each beside an honest twin at the same setting."
            )
        ]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw controls beside their twins."""
        rows = []
        for name, control in _all(self.delta).items():
            for kind, trial in (("control", control.trial), ("honest twin", control.twin)):
                worst = at(table, trial=self._cell(trial))[f"worst_{control.bound}"]
                rows.append(pd.DataFrame({"control": name, "kind": kind, "worst": worst.clip(1e-3, 100)}))
        return [
            figures.picture(
                "controls",
                "Largest left side over right side of every control and its honest twin (box: quartiles, whiskers: "
                "95 % of replicates; cut at 100). Controls must lie beyond the line, twins before it.",
                figures.controls(pd.concat(rows)),
            )
        ]


def _coverage(trial: str, bound: Bound) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        return coverage(at(table, trial=trial), bound, level)

    return measure


register(smoke=Controls(replicates=80), quick=Controls(), full=Controls(replicates=1000))
