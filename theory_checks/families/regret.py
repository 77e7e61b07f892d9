"""Regret of NDB-UCB and NDB-TS: sub-linear growth, and the step that bounds it by widths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bandits.core.bounds import linearised
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import kappa
from bandits.core.rng import Key
from bandits.runs.stats import Estimate, covered, log_ratio, log_slope, mean
from bandits.sim.config import Simulation
from theory_checks import figures as plots
from theory_checks.claims import Claim, check_replicates
from theory_checks.family import Family, Picture, Run, Verdict, picture
from theory_checks.maths.tangent import Counts, DenseDesign, ExtendedLink, Setting, TangentWorld, fit, times
from theory_checks.simulated import simulate

CONTENDERS = ("ucb", "ts", "linear:ucb", "linear:random")


def optimism(setting: Setting, rounds: int, regularisation: float, delta: float, key: Key) -> dict[str, np.ndarray]:
    """Play NDB-UCB on one prompt, linearised, with the exact multiplier in place of ν; return regret and its bound.

    ``y1 = argmax h``, ``y2 = argmax h + γ_t w(·, y1)``.  Where the bound holds, ``f* - (f1 + f2)/2 <= (3/2) γ_t w_t``
    (docs/theory.md, 4).  ``worst`` is the largest left over right side of that over all rounds.
    """
    problem = TangentWorld.of(setting, key.fold_in("world"))
    arms, lead, limit = setting.responses, problem.features.shape[0], setting.largest
    lam, ridge = problem.features.new_full((lead,), regularisation), regularisation / kappa(limit)
    truth = torch.cat([torch.zeros_like(problem.margins[..., :1]), -problem.margins[..., : arms - 1]], -1)
    best = truth.amax(-1)
    index = torch.zeros((arms, arms), dtype=torch.int64)
    pairs = Duels.within(1, arms)
    index[pairs.first, pairs.second] = index[pairs.second, pairs.first] = torch.arange(pairs.count)
    zero = torch.zeros_like(problem.margins)
    counts, theta, total, worst = (
        Counts(zero, zero),
        torch.zeros_like(problem.theta),
        torch.zeros(lead),
        torch.zeros(lead),
    )
    bound = torch.zeros(lead)
    curve = []
    for step in range(rounds):
        design = DenseDesign.of(problem.features, counts.asked, ridge)
        gamma = linearised(design.information, problem.norm, kappa(limit), ridge, regularisation, delta).total
        fitted = times(problem.features, theta)
        rewards = torch.cat([torch.zeros_like(fitted[..., :1]), -fitted[..., : arms - 1]], -1)
        first = rewards.argmax(-1)
        against = index[first]
        widths = design.widths(problem.features).gather(-1, against)
        widths = widths.scatter(-1, first.unsqueeze(-1), 0.0)
        second = (rewards + gamma.unsqueeze(-1) * widths).argmax(-1)
        asked = torch.stack([first, second], -1).sort(-1).values
        pick = index[asked[..., 0], asked[..., 1]].unsqueeze(-1)
        chance = torch.sigmoid(problem.margins.gather(-1, pick))
        won = key.fold_in("labels", step).uniform(1) < chance
        new, different = counts.add(pick, won), (first != second).unsqueeze(-1)
        counts = Counts(torch.where(different, new.asked, counts.asked), torch.where(different, new.won, counts.won))
        both = truth.gather(-1, asked)
        regret = best - both.mean(-1)
        width = widths.gather(-1, second.unsqueeze(-1)).squeeze(-1)
        total, bound = total + regret, bound + 1.5 * gamma * width
        worst = torch.maximum(worst, _over(regret, 1.5 * gamma * width))
        curve.append(total / (step + 1))
        theta, _ = fit(problem.features, counts, lam, ExtendedLink(limit), theta)
    return {
        "worst": worst.numpy(),
        "regret": total.numpy(),
        "bound": bound.numpy(),
        "early": curve[rounds // 4 - 1].numpy(),
        "late": curve[-1].numpy(),
    }


def _over(left: Tensor, right: Tensor) -> Tensor:
    return torch.where(left > 1e-12, left / right.clamp(min=1e-300), 0.0)


@dataclass(frozen=True)
class Regret(Family):
    """The simulator's regret experiment on two truths, and optimism with the exact multiplier."""

    replicates: int = 12
    rounds: int = 120
    width: int = 32
    exact_replicates: int = 100
    exact_rounds: int = 400
    delta: float = 0.05

    def __post_init__(self) -> None:
        check_replicates("regret", self.exact_replicates, self.delta)
        if self.rounds < 16 or self.exact_rounds < 16:
            raise InputError("regret: a slope needs at least 16 rounds")
        self._simulation(0)

    @property
    def name(self) -> str:
        """The family's name."""
        return "regret"

    @property
    def title(self) -> str:
        """What it is about."""
        return "Regret: NDB-UCB and NDB-TS grow sub-linearly"

    def _simulation(self, seed: int, contender: str = "ucb") -> Simulation:
        """Return the loop; linear contenders cost little and play at least 256 replicates."""
        replicates = max(256, self.replicates) if contender.startswith("linear") else self.replicates
        return Simulation(
            experiment="regret",
            contenders=CONTENDERS,
            truths=("square", "cosine"),
            replicates=replicates,
            seed=seed,
            rounds=self.rounds,
            batch=1,
            prompts=1,
            responses=5,
            fresh=True,
            heldout=5,
            refit=0.1,
            evaluations=14,
            width=self.width,
            audit=False,
            fit_iterations=15,
            reward_bound=5.0,
            ridge=1.0,
        )

    def cells(self) -> list[str]:
        """One per truth and contender, and the exact one."""
        return ["exact", *(f"{truth}={c.replace(':', '.')}" for truth in ("square", "cosine") for c in CONTENDERS)]

    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Play the simulator's loop, or optimism."""
        if cell == "exact":
            setting = Setting(1, 5, width=self.width, largest=1.0)
            key = run.key("regret", replicates=range(self.exact_replicates))
            columns = optimism(setting, self.exact_rounds, 1.0, self.delta, key)
            return pd.DataFrame({"kind": "exact", "replicate": np.arange(self.exact_replicates)} | columns)
        truth, contender = cell.replace(".", ":").split("=")
        rounds = simulate(self._simulation(run.seed, contender), truth, contender, run.folder)["rounds"]
        kept = rounds[
            ["truth", "contender", "replicate", "labels", "cumulative_average_regret", "cumulative_weak_regret"]
        ]
        return kept.assign(kind="loop")

    def claims(self) -> list[Claim]:
        """Declare sub-linear growth (random as the control) and the optimistic step."""
        where = f"T = {self.rounds}, 5 arms, fresh prompts, |r| <= 5, ridge 1, ν = 1"
        declared = [
            Claim(
                f"regret/{truth}/{contender}",
                "log-log slope of cumulative average regret in the last three quarters: below 0.95",
                "at most",
                0.95,
                "fails" if contender == "linear:random" else "open" if ":" in contender else "holds",
                where,
            )
            for truth in ("square", "cosine")
            for contender in CONTENDERS
        ]
        exact = f"1 prompt x 5 arms, Δmax = 1, {self.exact_rounds} rounds, linearised, ν = exact multiplier"
        declared += [
            Claim(
                "regret/optimism",
                "f* - (f1 + f2)/2 <= (3/2) γ_t w_t in every round",
                "at least",
                1 - self.delta,
                setting=exact,
            ),
            Claim(
                "regret/bound informative",
                "the bound on cumulative regret over T times the largest regret",
                "at most",
                1.0,
                "open",
                exact,
            ),
            Claim(
                "regret/exact multiplier learns",
                "average regret at the end over that at a quarter",
                "at most",
                0.95,
                "open",
                exact,
            ),
        ]
        return declared

    def _late(self, table: pd.DataFrame, truth: str, contender: str) -> pd.DataFrame:
        part = table[(table["truth"] == truth) & (table["contender"] == contender)]
        return part[part["labels"] >= self.rounds / 4]

    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Fit slopes over whole replicates; count covered replicates."""
        found = {}
        for truth in ("square", "cosine"):
            for contender in CONTENDERS:
                part = self._late(table, truth, contender)
                found[f"regret/{truth}/{contender}"] = log_slope(
                    part["labels"], part["cumulative_average_regret"], part["replicate"]
                )
        exact = table[table["kind"] == "exact"]
        found["regret/optimism"] = covered(exact["worst"] <= 1).but(note=f"left/right up to {exact['worst'].max():.2f}")
        found["regret/bound informative"] = mean((exact["bound"] / self.exact_rounds).to_numpy())
        found["regret/exact multiplier learns"] = log_ratio(exact["late"], exact["early"])
        return found

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Say how regret grows."""
        lines = []
        for truth in ("square", "cosine"):
            said = []
            for contender in CONTENDERS:
                part = self._late(table, truth, contender)
                slope = log_slope(part["labels"], part["cumulative_average_regret"], part["replicate"])
                last = part[part["labels"] == part["labels"].max()]["cumulative_average_regret"].mean()
                said.append(f"{contender} {last:.1f} (slope {slope})")
            lines.append(f"Cumulative average regret after {self.rounds} rounds, truth {truth}: {', '.join(said)}.")
        exact = table[table["kind"] == "exact"]
        word = next((v.word for v in verdicts if v.claim.name == "regret/optimism"), "not judged")
        lines.append(
            f"With the exact multiplier in place of ν = 1 the optimistic step is {word}; the bound on regret is "
            f"{(exact['bound'] / exact['regret']).median():.0f} times the regret after {self.exact_rounds} rounds, "
            f"and the average regret is {(exact['late'] / exact['early']).mean():.2f} of its value at a quarter of "
            "the way: what a valid γ costs in exploration, where practice takes ν = 1."
        )
        return lines

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw cumulative regret."""
        loop = table[table["kind"] == "loop"]
        return [
            picture(
                "regret",
                "Cumulative average regret against rounds (means with 95 % intervals). Random is linear.",
                plots.lines(
                    loop,
                    "labels",
                    "cumulative_average_regret",
                    "contender",
                    "truth",
                    ("round", "cumulative average regret"),
                ),
            )
        ]
