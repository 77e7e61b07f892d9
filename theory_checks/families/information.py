"""The information of the answers: log det against d̃, its growth, the chain rule, the potential, greedy choice."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from bandits.core.design import GramDesign, greedy
from bandits.core.duels import Duels
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.runs.stats import Estimate, log_ratio, log_slope, worst
from bandits.sim.config import Simulation
from bandits.sim.run import build
from theory_checks import figures as plots
from theory_checks.claims import Claim
from theory_checks.family import Family, Picture, Run, Verdict, picture
from theory_checks.maths.tangent import Setting
from theory_checks.maths.trials import Sampling, Trial, play
from theory_checks.simulated import simulate

CONTENDERS = ("random", "activedpo", "activedpo-fisher", "ucb")
SAMPLINGS: tuple[Sampling, ...] = ("random", "active", "adversary")


def greedy_ratio(key: Key, pool: int = 10, picks: int = 3, dim: int = 4) -> dict[str, np.ndarray]:
    """Return ``log det`` of greedy picks, and of the narrowest duels, over that of the best choice of all."""
    rows = key.fold_in("rows").normal(pool, dim) * (1 + 3 * key.fold_in("scale").uniform(pool, 1))
    ties = key.fold_in("ties").uniform(pool)
    conditioned = GramDesign(1.0).condition(Dense(rows))
    chosen = greedy(conditioned, picks, torch.ones_like(ties, dtype=torch.bool), ties)
    narrow = conditioned.widths.argsort(-1)[..., :picks]
    subsets = torch.tensor(list(itertools.combinations(range(pool), picks)))

    def gain(index: torch.Tensor) -> torch.Tensor:
        picked = rows.unsqueeze(-3).expand(*rows.shape[:-2], index.shape[-2], pool, dim)
        part = torch.take_along_dim(picked, index.unsqueeze(-1), -2)
        return torch.logdet(torch.eye(picks, dtype=rows.dtype) + part @ part.mT)

    best = gain(subsets.expand(rows.shape[0], -1, -1)).amax(-1)
    return {
        "greedy": (gain(chosen.unsqueeze(-2)).squeeze(-1) / best).numpy(),
        "narrow": (gain(narrow.unsqueeze(-2)).squeeze(-1) / best).numpy(),
    }


@dataclass(frozen=True)
class Information(Family):
    """log det V of the simulator's loop on every truth, of long trials, and greedy choice on tiny pools."""

    replicates: int = 16
    truths: tuple[str, ...] = ("linear", "square", "cosine", "mlp", "ntk")
    prompts: int = 20
    width: int = 64
    pools: int = 2000
    answers: int = 500

    def __post_init__(self) -> None:
        self._simulation(0)

    @property
    def name(self) -> str:
        """The family's name."""
        return "information"

    @property
    def title(self) -> str:
        """What it is about."""
        return "Information: log det V against d̃, its growth, the elliptical potential, greedy choice"

    def _simulation(self, seed: int) -> Simulation:
        return Simulation(
            contenders=CONTENDERS,
            truths=self.truths,
            replicates=self.replicates,
            seed=seed,
            prompts=self.prompts,
            heldout=2,
            rounds=10,
            batch=max(1, self.prompts // 5),
            width=self.width,
        )

    def _trial(self, sampling: Sampling) -> Trial:
        return Trial(Setting(3, 3), sampling, rounds=self.answers, certificates=0)

    def cells(self) -> list[str]:
        """The loop per truth and strategy; long trials; greedy choice."""
        loop = [f"loop={truth}={contender}" for truth in self.truths for contender in CONTENDERS]
        return [*loop, *(f"trial={s}" for s in SAMPLINGS), "trial=unrecorded", "greedy"]

    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Run a cell of one of the three kinds."""
        kind, *what = cell.split("=")
        if kind == "greedy":
            key = run.key("information", "greedy", replicates=range(self.pools))
            return pd.DataFrame({"kind": kind, "replicate": np.arange(self.pools)} | greedy_ratio(key))
        if kind == "trial":
            unrecorded = what[0] == "unrecorded"
            sampling = next((s for s in SAMPLINGS if s == what[0]), SAMPLINGS[0])
            trial = replace(self._trial(sampling), corruption="unrecorded" if unrecorded else "none")
            columns = play(trial, run.key("information", "trial", replicates=range(self.replicates)))
            kept = {name: columns[name] for name in ("information", "potential", "chain")}
            return pd.DataFrame({"kind": kind, "contender": what[0], "replicate": np.arange(self.replicates)} | kept)
        truth, contender = what
        simulation = self._simulation(run.seed)
        bounds = simulate(simulation, truth, contender, run.folder)["bounds"]
        return bounds[["truth", "contender", "replicate", "labels", "information", "information_current"]].assign(
            kind=kind, dimension=np.tile(self._dimension(simulation, truth), simulation.rounds)
        )

    @staticmethod
    def _dimension(simulation: Simulation, truth: str) -> np.ndarray:
        """Return ``d̃ = log det(I + (κ/λ) H')`` of all duels of the pool, per replicate."""
        arena, learner, _ = build(simulation, truth, "random")
        items = arena.show(0)
        lead = items.x.shape[0]
        rows = learner.features(items, "initial", "all").differences(
            Duels.within(items.prompts, items.responses).expand(lead)
        )
        design = GramDesign(simulation.bounds.ridge)
        design.append(rows)
        return np.asarray(torch.as_tensor(design.information()).numpy())

    def claims(self) -> list[Claim]:
        """Declare identities, inequalities and growth."""
        loop = f"{self.prompts} prompts x 3, {10 * max(1, self.prompts // 5)} labels, m = {self.width}"
        declared = [
            Claim(
                "information/realised within d̃",
                "log det(V/ρ) over d̃, every round, truth and strategy",
                "at most",
                1.0,
                setting=loop,
            ),
            Claim(
                "information/chain rule",
                "|Σ log(1 + ‖φ_s‖²) - log det(V/ρ)|, ‖·‖ in V of the answers before",
                "at most",
                1e-8,
                setting=f"9 duels, {self.answers} answers",
            ),
            Claim(
                "information/chain rule, V misses answers",
                "the same with V that counts each duel once",
                "at most",
                1e-8,
                "fails",
                f"9 duels, {self.answers} answers",
            ),
            Claim(
                "information/elliptical potential",
                "Σ min(1, ‖φ_s‖²) over 2 log det(V/ρ)",
                "at most",
                1.0,
                setting=f"9 duels, {self.answers} answers",
            ),
            Claim(
                "information/greedy",
                "log det of greedy picks over the best of all choices, worst pool: 1 - 1/e",
                "at least",
                1 - 1 / math.e,
                setting=f"{self.pools} pools of 10 duels, 3 picks",
            ),
            Claim(
                "information/greedy, narrowest first",
                "the same for the narrowest duels",
                "at least",
                1 - 1 / math.e,
                "fails",
                f"{self.pools} pools of 10 duels, 3 picks",
            ),
            Claim(
                "information/active gains more than random",
                "log det after all labels, activedpo over random, paired, worst truth",
                "at least",
                1.0,
                "open",
                loop,
            ),
        ]
        declared += [
            Claim(
                f"information/growth/{truth}/{contender}",
                "log-log slope of log det(V/ρ) in labels: sub-linear",
                "at most",
                1.0,
                setting=loop,
            )
            for truth in self.truths
            for contender in CONTENDERS
        ]
        return declared

    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Measure all of it."""
        loop, trial, small = (table[table["kind"] == kind] for kind in ("loop", "trial", "greedy"))
        honest = trial[trial["contender"] != "unrecorded"]
        missed = trial[trial["contender"] == "unrecorded"]["chain"].to_numpy()
        found = {
            "information/realised within d̃": worst((loop["information"] / loop["dimension"]).to_numpy()),
            "information/chain rule": worst(honest["chain"].to_numpy()),
            "information/chain rule, V misses answers": Estimate(
                float(np.median(missed)), float(missed.min()), float(missed.max()), len(missed)
            ),
            "information/elliptical potential": worst(honest["potential"].to_numpy()),
            "information/greedy": _worst(small["greedy"].to_numpy()),
            "information/greedy, narrowest first": _worst(small["narrow"].to_numpy()),
        }
        gains = []
        for truth in self.truths:
            last = loop[(loop["truth"] == truth) & (loop["labels"] == loop["labels"].max())]
            wide = last.pivot(index="replicate", columns="contender", values="information")
            gains.append(log_ratio(wide["activedpo"], wide["random"]))
        found["information/active gains more than random"] = min(gains, key=lambda m: m.value)
        for (name, contender), part in loop.groupby(["truth", "contender"], sort=False):
            found[f"information/growth/{name}/{contender}"] = log_slope(
                part["labels"], part["information"], part["replicate"]
            )
        return found

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Say how much of d̃ is used and how it grows."""
        loop = table[table["kind"] == "loop"]
        last = loop[loop["labels"] == loop["labels"].max()]
        used = last.groupby("contender", sort=False).apply(lambda p: (p["information"] / p["dimension"]).mean())
        small = table[table["kind"] == "greedy"]
        growth = [v for v in verdicts if v.claim.name.startswith("information/growth")]
        slopes = [v.measurement.value for v in growth]
        drift = (last["information_current"] / last["information"]).mean()
        return [
            f"Realised log det as a share of d̃ after {int(last['labels'].iloc[0])} labels: "
            + ", ".join(f"{name} {share:.2f}" for name, share in used.items())
            + f"; gradients at θ_t instead of θ0 change it by {drift - 1:+.1%}.",
            f"It grows as labels^{min(slopes):.2f} to labels^{max(slopes):.2f} over truths and strategies."
            if slopes
            else "",
            f"Greedy picks reach at least {small['greedy'].min():.3f} of the best choice's log det over {len(small)} "
            f"small pools (mean {small['greedy'].mean():.4f}); the guarantee is {1 - 1 / math.e:.3f}.",
        ]

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw the growth."""
        loop = table[table["kind"] == "loop"]
        return [
            picture(
                "information",
                "Realised log det(V/ρ) against labels, per truth (means with 95 % intervals).",
                plots.lines(loop, "labels", "information", "contender", "truth", ("labels", "log det (nats)"), "xy"),
            )
        ]


def _worst(values: np.ndarray) -> Estimate:
    return Estimate(float(values.min()), float(values.min()), float(values.min()), len(values))
