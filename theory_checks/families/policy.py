"""The DPO case: a softmax policy over finite responses, trained by DPO; ``r_θ = β log π_θ/π_ref``; several β."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from bandits.core.duels import Answers, Duels
from bandits.core.errors import InputError
from bandits.core.oracles import loss
from bandits.core.rng import Key
from bandits.runs.stats import Estimate, worst
from bandits.sim.arena import Problem, SyntheticVectorArena
from bandits.sim.config import Simulation
from bandits.sim.learners import NeuralLearner, PolicyLearner, TangentLearner
from bandits.sim.networks import MLP
from bandits.sim.truths import Teacher
from theory_checks import figures as plots
from theory_checks.claims import Claim, check_replicates
from theory_checks.family import Family, Picture, Run, Verdict, picture
from theory_checks.simulated import needed, network_coverage, simulate

IDENTITIES = {
    "log Z cancels": "the DPO margins β log π_θ/π_ref of a duel less β (s_θ - s_θ0): the normaliser cancels",
    "∇ log Z cancels": "the same for the duels' features",
    "loss is DPO's": "the theory's data term less DPO's, per answer",
    "c(x) in the truth": "change of any answer's probability when c(x) is added to the reward",
    "c(x) in the fit": "change of the fitted margins when answers come from r + c(x)",
    "β is a ridge": "margins fitted with (β, λ) less those with (1, λ/β²), linearised",
}


def identities(beta: float, key: Key) -> dict[str, np.ndarray]:
    """Return the largest deviation of each identity, per replicate."""
    network = MLP(4, 32, 3)
    initial = network.initial(key.fold_in("network"))
    problem = Problem(Teacher(), key.fold_in("world"), 8, 4, 4)
    arena = SyntheticVectorArena(len(key.replicates or ()), problem=problem, batch=20)
    items = arena.show(0)
    lead = items.x.shape[0]
    duels = Duels.within(8, 4).expand(lead)
    asked = duels.take(key.fold_in("order").uniform(duels.count).argsort(-1)[..., :20])
    answers = arena.ask(asked)
    policy = PolicyLearner(network, initial, 1.0, beta, same_table=True)
    policy.observe(items, answers)
    policy.fit()
    score = NeuralLearner(network, initial, 1.0, beta, same_table=True)
    score.restore(policy.state())
    implicit, plain = duels.difference(policy.rewards(items)), duels.difference(score.rewards(items))
    rows = policy.features(items, "current", "all").differences(duels).dense().values
    scores = score.features(items, "current", "all").differences(duels).dense().values
    dpo = loss(asked.difference(policy.rewards(items)), answers.first_won)
    theory = loss(asked.difference(score.rewards(items)), answers.first_won)
    shift = 3 * key.fold_in("shift").normal(8).repeat_interleave(4, -1)
    chance = torch.sigmoid(asked.difference(arena.rewards))
    moved = torch.sigmoid(asked.difference(arena.rewards + shift))
    again = PolicyLearner(network, initial, 1.0, beta, same_table=True)
    uniform = key.fold_in("labels").uniform(asked.count)
    again.observe(items, Answers(asked, uniform < moved))
    first = PolicyLearner(network, initial, 1.0, beta, same_table=True)
    first.observe(items, Answers(asked, uniform < chance))
    again.fit()
    first.fit()
    refit = duels.difference(again.rewards(items)) - duels.difference(first.rewards(items))
    scaled, ridged = (TangentLearner(network, initial, lam, scale) for lam, scale in ((1.0, beta), (1 / beta**2, 1.0)))
    for learner in (scaled, ridged):
        learner.observe(items, answers)
        learner.fit()
    found = {
        "log Z cancels": implicit - plain,
        "∇ log Z cancels": (rows - scores).flatten(-2),
        "loss is DPO's": (dpo - theory).unsqueeze(-1) / asked.count,
        "c(x) in the truth": moved - chance,
        "c(x) in the fit": refit,
        "β is a ridge": duels.difference(scaled.rewards(items)) - duels.difference(ridged.rewards(items)),
    }
    return {name: value.abs().amax(-1).numpy() for name, value in found.items()}


@dataclass(frozen=True)
class Policy(Family):
    """Coverage of Proposition 1 by the implicit reward of a DPO-trained policy, and the invariances of the DPO case."""

    replicates: int = 80
    betas: tuple[float, ...] = (1.0, 0.2, 0.5, 2.0)
    rounds: int = 40
    width: int = 32
    delta: float = 0.05

    def __post_init__(self) -> None:
        check_replicates("policy", self.replicates, self.delta)
        if not self.betas or min(self.betas) <= 0:
            raise InputError(f"policy: β must be positive, got {self.betas}")
        self._simulation(1.0, 0)

    @property
    def name(self) -> str:
        """The family's name."""
        return "policy"

    @property
    def title(self) -> str:
        """What it is about."""
        return "The DPO case: a policy's implicit reward obeys the same bound, for several β"

    def _simulation(self, beta: float, seed: int) -> Simulation:
        """Return two duels asked again and again; the weaker β, the weaker λ, so that the ridge of βφ stays."""
        return Simulation(
            contenders=("random", "policy:random", "policy:activedpo"),
            truths=("mlp",),
            replicates=self.replicates,
            seed=seed,
            width=self.width,
            delta=self.delta,
            reward_bound=0.5,
            prompts=2,
            responses=2,
            heldout=1,
            rounds=self.rounds,
            batch=2,
            repeats=True,
            regularisation=10.0 * beta**2,
            beta=beta,
            evaluations=6,
        )

    def cells(self) -> list[str]:
        """One per β and strategy, and the identities per β."""
        cells = [f"{kind}={beta:g}" for beta in self.betas for kind in ("random", "identities")]
        return [f"activedpo={self.betas[0]:g}", *cells]

    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Play the loop, or measure identities."""
        kind, _, what = cell.partition("=")
        beta = float(what)
        if kind == "identities":
            count = min(self.replicates, 20)
            columns = identities(beta, run.key("policy", what, replicates=range(count)))
            return pd.DataFrame({"kind": kind, "beta": beta, "replicate": np.arange(count)} | columns)
        simulation = self._simulation(beta, run.seed)
        if kind == "activedpo":  # one duel a round, so that a choice is made
            simulation = replace(simulation, batch=1, rounds=2 * self.rounds)
        return simulate(simulation, "mlp", f"policy:{kind}", run.folder)["bounds"].assign(kind=kind, beta=beta)

    def claims(self) -> list[Claim]:
        """Declare coverage and identities per β."""
        declared = []
        for beta in self.betas:
            setting = (
                f"β = {beta:g}, λ = {10 * beta**2:g}, Δmax = 1, 2 duels, {2 * self.rounds} answers, m = {self.width}"
            )
            for kind in ("random", "activedpo") if beta == self.betas[0] else ("random",):
                for at, words in (("θ0", "gradients at θ0"), ("θt", "gradients at θ_t")):
                    declared.append(
                        Claim(
                            f"policy/β={beta:g}/{kind}/{at}",
                            f"Proposition 1 for r_θ = β log π_θ/π_ref, {words}",
                            "at least",
                            1 - self.delta,
                            setting=setting,
                        )
                    )
            declared += [
                Claim(
                    f"policy/β={beta:g}/{name}",
                    words,
                    "at most",
                    1e-6 if "fit" in name or "ridge" in name else 1e-9,
                    setting=f"β = {beta:g}, 8 prompts x 4 responses",
                )
                for name, words in IDENTITIES.items()
            ]
        return declared

    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Count covered replicates; take the worst deviation."""
        found: dict[str, Estimate] = {}
        for (kind, beta), part in table.groupby(["kind", "beta"], sort=False):
            name = f"policy/β={beta:g}"
            if kind == "identities":
                found |= {f"{name}/{which}": worst(part[which].to_numpy()) for which in IDENTITIES}
                continue
            found |= {f"{name}/{kind}/{which}": held for which, held in network_coverage(part, 1.0).items()}
        return found

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Say how the bound depends on β."""
        loop = table[table["kind"] == "random"]
        parts = [
            f"β = {beta:g}: γ {part['gamma'].max():.0f}, needed {needed(part, 'needed_network', self.delta):.1f}, "
            f"error {part[part['round'] == part['round'].max()]['error'].median():.2f}"
            for beta, part in loop.groupby("beta", sort=False)
        ]
        covered = [v for v in verdicts if v.claim.side == "at least"]
        held = [v for v in verdicts if v.claim.name.rpartition("/")[2] in IDENTITIES]
        return [
            f"The bound is supported for a DPO-trained policy in {sum(v.word == 'supported' for v in covered)} of "
            f"{len(covered)} settings (λ = 10β² keeps the ridge of βφ), else not informative: {'; '.join(parts)}.",
            f"{sum(v.word == 'supported' for v in held)} of {len(held)} invariances hold to rounding: log Z and any "
            "c(x) cancel in margins, features, losses and fits, and β acts as a ridge λ/β².",
        ]

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw right over left side against labels per β."""
        loop = table[table["kind"] == "random"].assign(beta=lambda t: "β = " + t["beta"].astype(str))
        return [
            picture(
                "policy",
                "Right over left side (median duel) for policies of several β, against labels.",
                plots.lines(loop, "labels", "tightness", "beta", None, ("labels", "right side / error"), "xy"),
            )
        ]
