"""Propositions 1 and 2 on the network, with the constants of Neural Dueling Bandits, in the simulator's loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bandits.runs.stats import Estimate, worst
from bandits.sim.config import Simulation
from theory_checks import figures as plots
from theory_checks.claims import Claim, check_replicates
from theory_checks.family import Family, Picture, Run, Verdict, picture
from theory_checks.simulated import needed, network_coverage, simulate

SETTINGS = {
    "pool": "20 prompts x 3, each duel asked once, λ = 1, Δmax = 1",
    "repeated": "2 duels asked again and again, λ = 10, Δmax = 1",
}


@dataclass(frozen=True)
class Network(Family):
    """Coverage of Proposition 1 by the network, with V at θ0 and at θ_t."""

    replicates: int = 80
    rounds: int = 60
    width: int = 128
    delta: float = 0.05

    def __post_init__(self) -> None:
        check_replicates("network", self.replicates, self.delta)
        self._simulation("pool", 0)

    @property
    def name(self) -> str:
        """The family's name."""
        return "network"

    @property
    def title(self) -> str:
        """What it is about."""
        return "Propositions 1 and 2 on the network"

    def _simulation(self, setting: str, seed: int) -> Simulation:
        common = Simulation(
            contenders=("random", "activedpo"),
            truths=("mlp",),
            replicates=self.replicates,
            seed=seed,
            width=self.width,
            delta=self.delta,
            reward_bound=0.5,
        )
        if setting == "pool":
            return replace(common, prompts=20, heldout=5, rounds=3, batch=10)
        return replace(
            common,
            prompts=2,
            responses=2,
            heldout=1,
            rounds=self.rounds,
            batch=2,
            repeats=True,
            regularisation=10.0,
            evaluations=8,
        )

    def cells(self) -> list[str]:
        """One per setting and strategy."""
        return [f"{setting}-{contender}" for setting in SETTINGS for contender in ("random", "activedpo")]

    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Play the loop with its audit."""
        setting, contender = cell.split("-")
        tables = simulate(self._simulation(setting, run.seed), "mlp", contender, run.folder)
        return tables["bounds"].assign(setting=setting, sampling=contender)

    def claims(self) -> list[Claim]:
        """Declare coverage per setting, strategy and gradients in V; and the split of the error."""
        level = 1 - self.delta
        declared = []
        for setting, words in SETTINGS.items():
            for sampling in ("random", "activedpo"):
                for kind, says in (("θ0", "Proposition 1"), ("θt", "Proposition 2 (V and φ at θ_t)")):
                    declared.append(
                        Claim(
                            f"network/{setting}/{sampling}/{kind}",
                            f"{says} without its 2ε, which can only help",
                            "at least",
                            level,
                            setting=f"{words}, m = {self.width}, depth 3",
                        )
                    )
                declared.append(
                    Claim(
                        f"network/{setting}/{sampling}/split",
                        "rms error <= statistical part + linearisation part",
                        "at most",
                        1.0,
                        setting=words,
                    )
                )
        return declared

    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Count covered replicates; compare the error with its parts."""
        found: dict[str, Estimate] = {}
        for (setting, sampling), part in table.groupby(["setting", "sampling"], sort=False):
            name = f"network/{setting}/{sampling}"
            found |= {f"{name}/{which}": held for which, held in network_coverage(part, 1.0).items()}
            whole = part["statistical"] + part["linearisation"]
            found[f"{name}/split"] = worst((part["error"] / whole).to_numpy() - 1e-9)
        return found

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Say how loose the propositions are."""
        lines = []
        for setting, part in table.groupby("setting", sort=False):
            last = part[part["round"] == part["round"].max()]
            lines.append(
                f"{SETTINGS[str(setting)]}: γ_T = {last['gamma'].median():.0f} where "
                f"{needed(part, 'needed_network', self.delta):.2f} would have sufficed; right over left side "
                f"{last['tightness'].median():.0f} in the median; linearisation "
                f"{last['linearisation'].median() / last['error'].median():.0%} of the error."
            )
        return lines

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw the multiplier beside the one needed, and the parts of the error."""
        terms = {
            "gamma": "γ of the papers",
            "gamma_noise": "its noise term",
            "gamma_prior": "its prior term",
            "needed_network": "needed by the network",
            "needed_tangent": "needed, linearised",
        }
        long = table.melt(["setting", "labels", "replicate"], list(terms), "term", "multiplier").replace(
            {"term": terms}
        )
        parts = {"error": "network's error", "statistical": "statistical part", "linearisation": "linearisation part"}
        split = table.melt(["setting", "labels", "replicate"], list(parts), "part", "rms").replace({"part": parts})
        return [
            picture(
                "network-terms",
                "Proposition 1's multiplier and its terms beside what would have sufficed (means with 95 % "
                "intervals over replicates).",
                plots.lines(
                    long, "labels", "multiplier", "term", "setting", ("labels", "multiplier of the width"), "xy"
                ),
            ),
            picture(
                "network-split",
                "The network's error and its two parts.",
                plots.lines(split, "labels", "rms", "part", "setting", ("labels", "rms error (log-odds)"), "xy"),
            ),
        ]

    def numbers(self, table: pd.DataFrame) -> pd.DataFrame:
        """Tabulate the last round."""
        rows = []
        for (setting, sampling), part in table.groupby(["setting", "sampling"], sort=False):
            last = part[part["round"] == part["round"].max()]
            rows.append(
                {
                    "setting": setting,
                    "sampling": sampling,
                    "labels": int(last["labels"].iloc[0]),
                    "γ": last["gamma"].median(),
                    "noise term": last["gamma_noise"].median(),
                    "prior term": last["gamma_prior"].median(),
                    "needed γ̂": needed(part, "needed_network", self.delta),
                    "rhs/lhs": last["tightness"].median(),
                    "width-error corr.": float(np.nanmean(last["rank_correlation"])),
                    "ε": last["epsilon"].median(),
                    "error": last["error"].median(),
                }
            )
        return pd.DataFrame(rows)
