"""Negative controls: what must come out refuted, by the very code that supports the honest twin.

The bounds are loose, so an honest-looking setting has no power.  Each control therefore names the setting that gives it
power: duels asked so often that the width is tiny and a bias stays, or a prior so strong that the bound is its prior
term alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bandits.runs.stats import Estimate, covered, halved, unconverged
from theory_checks import figures as plots
from theory_checks.claims import Claim, check_replicates
from theory_checks.family import Family, Picture, Run, Verdict, picture
from theory_checks.maths.tangent import Setting
from theory_checks.maths.trials import Trial, play

OFTEN = "one duel (|Δ| = 2) asked 3000 times, λ = 1"
WHICH = {
    "extended": "exact bound, extended fit",
    "plain": "exact bound, θ_t",
    "noise": "self-normalised step",
    "certificate": "the tighter certificate",
}


@dataclass(frozen=True)
class Control:
    """A trial that differs from an honest one in one point, and the bound it must break."""

    says: str
    trial: Trial
    bound: str
    setting: str

    @property
    def twin(self) -> Trial:
        """The same trial without the corruption."""
        return replace(self.trial, oracle="btl", corruption="none")


def _all(delta: float) -> dict[str, Control]:
    duel = Setting(prompts=1, responses=3, largest=2.0)
    often = Trial(duel, "repeated", rounds=60, batch=50, certificates=0, delta=delta)
    firm = Trial(
        Setting(truth="aligned", largest=2.0, width=256), rounds=20, regularisation=30.0, certificates=0, delta=delta
    )
    oracles = {
        "flipped labels": ("flipped", "every answer turned round"),
        "20 % of labels flipped": ("flipped-20%", "every fifth answer turned round"),
        "temperature 4": ("btl-hot", "P = σ(Δ/4)"),
        "temperature 1/4": ("btl-cold", "P = σ(4Δ)"),
        "probit link": ("probit", "P = Φ(2Δ)"),
        "intransitive oracle": ("intransitive", "a cycle of 2 sin 120° = 1.7 log-odds on top of Δ"),
    }
    controls = {
        name: Control(says, replace(often, oracle=oracle), "extended", OFTEN)
        for name, (oracle, says) in oracles.items()
    }
    controls |= {
        f"{name}, certificate": Control(
            controls[name].says, replace(controls[name].trial, certificates=8), "certificate", OFTEN
        )
        for name in ("flipped labels", "probit link")
    }
    controls["mean loss"] = Control(
        "the data term divided by t, λ as it was", replace(often, corruption="mean-loss"), "extended", OFTEN
    )
    controls["decay to 0"] = Control(
        "(λ/2)‖θ‖² in place of (λ/2)‖θ - θ0‖²",
        replace(firm, setting=Setting(truth="aligned", largest=0.2), regularisation=100.0, corruption="decay-to-zero"),
        "extended",
        "a weak truth along one feature (|Δ| <= 0.2), λ = 100, 20 answers: the prior term is the bound",
    )
    controls["NDB features under NTK weights"] = Control(
        "φ/√m in V, θ not rescaled",
        replace(firm, corruption="ndb-features"),
        "extended",
        "a truth along one feature (|Δ| <= 2), m = 256, λ = 30, 20 answers: the bound is nearly attained",
    )
    controls["forgetful fit"] = Control(
        "θ_t fits the newest batch alone while V counts every answer",
        replace(often, corruption="forgetful"),
        "extended",
        OFTEN,
    )
    controls["V misses answers"] = Control(
        "V counts each asked duel once",
        replace(often, corruption="unrecorded"),
        "noise",
        OFTEN + "; the whole bound would only get looser, so its self-normalised step is judged",
    )
    extreme = Setting(prompts=1, responses=2, largest=8.0)
    controls["κ at too small a Δmax"] = Control(
        "κ = σ'(2) where |Δ| = 8",
        replace(often, setting=extreme, corruption="small-kappa", certificates=0),
        "plain",
        "one duel (|Δ| = 8) asked 3000 times, λ = 1; the audit of κ is switched off",
    )
    return controls


HALF = "half the empirical multiplier"


@dataclass(frozen=True)
class Controls(Family):
    """Every control and its honest twin."""

    replicates: int = 100
    delta: float = 0.05

    def __post_init__(self) -> None:
        check_replicates("controls", self.replicates, self.delta)

    @property
    def name(self) -> str:
        """The family's name."""
        return "controls"

    @property
    def title(self) -> str:
        """What it is about."""
        return "Negative controls: the same code refutes what is wrong"

    def cells(self) -> list[str]:
        """One per distinct trial; honest twins are shared."""
        return list(self._trials())

    def _trials(self) -> dict[str, Trial]:
        """Return the trials by name, equal ones once."""
        named: dict[Trial, str] = {}
        for place, control in enumerate(_all(self.delta).values()):
            named.setdefault(control.trial, f"control-{place:02d}")
            named.setdefault(control.twin, f"twin-{place:02d}")
        return {name: trial for trial, name in named.items()}

    def _cell(self, trial: Trial) -> str:
        return next(name for name, other in self._trials().items() if other == trial)

    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Play a trial."""
        columns = play(self._trials()[cell], run.key("controls", replicates=range(self.replicates)))
        return pd.DataFrame({"trial": cell, "replicate": np.arange(self.replicates)} | columns)

    def claims(self) -> list[Claim]:
        """Declare each control (must fail) and its twin (must hold)."""
        declared = []
        for name, control in _all(self.delta).items():
            which = WHICH[control.bound]
            declared.append(
                Claim(
                    f"controls/{name}",
                    f"{which} with {control.says}",
                    "at least",
                    1 - self.delta,
                    "fails",
                    control.setting,
                )
            )
            declared.append(
                Claim(
                    f"controls/{name}/honest twin",
                    f"{which}, the same setting done right",
                    "at least",
                    1 - self.delta,
                    "holds",
                    control.setting,
                )
            )
        declared.append(
            Claim(
                f"controls/{HALF}",
                "width times half of the multiplier that covered half of one half of the replicates, on the other half",
                "at least",
                1 - self.delta,
                "fails",
                OFTEN,
            )
        )
        return declared

    def _part(self, table: pd.DataFrame, trial: Trial) -> pd.DataFrame:
        return table[table["trial"] == self._cell(trial)]

    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Judge controls and twins alike."""
        found = {}
        for name, control in _all(self.delta).items():
            for suffix, trial in (("", control.trial), ("/honest twin", control.twin)):
                part = self._part(table, trial)
                worst = part[f"worst_{control.bound}"]
                note = f"left/right {worst.median():.2f} in the median replicate"
                found[f"controls/{name}{suffix}"] = covered(worst <= 1).but(unconverged(part["gradient"]), note)
        found[f"controls/{HALF}"] = halved(self._part(table, _all(self.delta)["flipped labels"].twin)["needed_plain"])
        return found

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Count the controls that came out refuted."""
        controls = [v for v in verdicts if v.claim.expect == "fails"]
        refuted = sum(v.word == "refuted" for v in controls)
        missed = [v.claim.name.partition("/")[2] for v in controls if v.word != "refuted"]
        return [
            f"{refuted} of {len(controls)} negative controls were refuted"
            + (
                f"; not refuted: {', '.join(missed)}."
                if missed
                else ", each beside an honest twin at the same setting."
            )
        ]

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw controls beside their twins."""
        rows = []
        for name, control in _all(self.delta).items():
            for kind, trial in (("control", control.trial), ("honest twin", control.twin)):
                worst = self._part(table, trial)[f"worst_{control.bound}"]
                rows.append(pd.DataFrame({"control": name, "kind": kind, "worst": worst.clip(1e-3, 100)}))
        return [
            picture(
                "controls",
                "Largest left side over right side of every control and its honest twin (box: quartiles, whiskers: "
                "95 % of replicates; cut at 100). Controls must lie beyond the line, twins before it.",
                plots.controls(pd.concat(rows)),
            )
        ]
