"""Proposition 1's measurement against a slow re-computation, the verdicts, and controls that must be refuted."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bandits.core.bounds import interpolation_norm
from bandits.core.duels import Duels
from bandits.core.oracles import kappa
from bandits.runs.stats import Coverage, compare, empirical_multiplier, mean_interval, verdict
from bandits.sim.audit import Audit, Bounds, rank_correlation
from bandits.sim.config import Simulation
from bandits.sim.learners import NeuralLearner, PolicyLearner
from bandits.sim.report import bound_verdicts
from bandits.sim.run import run_cell


@pytest.mark.parametrize("kind", ["neural", "policy"])
def test_every_column_is_what_its_formula_says(kind, network, key, arena):
    """All numbers of a measured round, re-derived from explicit gradients and matrices."""
    bounds = Bounds(kappa(2.0), 0.7, 0.05)
    items, rewards = arena.problem.everything()
    initial = network.initial(key.fold_in("network"))
    learner = (
        NeuralLearner(network, initial, 0.7) if kind == "neural" else PolicyLearner(network, initial, 0.7, beta=0.5)
    )
    audit = Audit(learner, items, rewards, bounds)
    shown, duels = arena.show(0), Duels.within(8, 3).take(torch.tensor([0, 3, 8, 11, 19])).expand(3)
    for _ in range(2):
        answers = arena.ask(duels)
        learner.observe(shown, answers)
        audit.observe(shown, answers, arena.rewards)
        learner.fit()
        columns = audit.measure()

    every = Duels.within(12, 3)

    def phi(x: torch.Tensor, weights, r: int, pairs: Duels) -> torch.Tensor:
        gradient = network.value_and_gradient(tuple(w[r] for w in weights), x)[1].dense().values * learner.scale
        return gradient[pairs.first] - gradient[pairs.second]

    for r in range(3):
        asked = Duels(duels.first[r], duels.second[r])
        true = every.difference(rewards[r])
        past = phi(shown.x[r], initial, r, asked)
        past = torch.cat([past, past])
        v = bounds.ridge * torch.eye(past.shape[1]).double() + past.T @ past
        now = phi(items.x[r], initial, r, every)
        width = torch.einsum("nd,de,ne->n", now, torch.linalg.inv(v), now).sqrt().numpy()
        error = (every.difference(learner.rewards(items)[r]) - true).abs().numpy()
        information = float(torch.linalg.slogdet(v / bounds.ridge)[1])
        norm = float((torch.linalg.pinv(now) @ true).norm())
        gamma = math.sqrt(information + 2 * math.log(20)) / bounds.kappa + norm * math.sqrt(0.7 / bounds.kappa) + 1
        fitted = asked.difference(learner.rewards(shown)[r]).abs()
        slopes = torch.sigmoid(torch.maximum(fitted, asked.difference(arena.rewards[r]).abs()))
        expected = {
            "information": information,
            "norm": norm,
            "gamma": gamma,
            "error": math.sqrt((error**2).mean()),
            "needed_network": (error / width).max(),
            "violations": (error > gamma * width).sum(),
            "vacuous": (gamma * width >= 2.0).mean(),
            "tightness": np.median(gamma * width / error),
            "width": np.median(width),
            "rank_correlation": stats.spearmanr(width, error).statistic,
            "kappa_network": float((slopes * (1 - slopes)).min()),
        }
        for name, value in expected.items():
            assert columns[name][r] == pytest.approx(value, rel=1e-5), name
    assert bounds.largest_margin == pytest.approx(2.0)


def run(oracle: str, tmp_path, **changes) -> pd.DataFrame:
    settings = {
        "replicates": 24,
        "rounds": 80,
        "batch": 3,
        "prompts": 1,
        "heldout": 1,
        "repeats": True,
        "reward_bound": 0.5,
        "width": 32,
        "refit": 1e9,
        "evaluations": 1,
    }
    simulation = Simulation(contenders=("random",), truths=(f"ntk@{oracle}",), **(settings | changes))
    run_cell(simulation, simulation.truths[0], "random", tmp_path / oracle)
    return bound_verdicts(pd.read_csv(tmp_path / oracle / "bounds.csv"), simulation).set_index("claim")


class TestControls:
    """Three duels asked 80 times: the width shrinks, and an oracle that is not BTL has nowhere to hide."""

    def test_flipped_labels_are_refuted_and_honest_ones_are_not(self, tmp_path):
        honest, flipped = run("btl", tmp_path), run("flipped", tmp_path)
        claim = "exact bound, κ from the data"
        assert flipped.loc[claim, "verdict"] == "refuted"
        assert honest.loc[claim, "verdict"] != "refuted"
        assert honest.loc[claim, "covered"] == 24

    def test_too_small_a_multiplier_is_refuted(self, tmp_path):
        assert run("btl", tmp_path, rounds=10).loc["control: half the multiplier needed", "verdict"] == "refuted"


class TestVerdicts:
    def test_all_words_and_reasons(self):
        full, some, few = Coverage(80, 80, 0.955, 1.0), Coverage(60, 80, 0.64, 0.84), Coverage(16, 16, 0.79, 1.0)
        assert verdict(full, 0.05, True, True)[0] == "supported"
        assert verdict(some, 0.05, True, True)[0] == "refuted"
        assert "too few replicates" in verdict(few, 0.05, True, True)[1]
        assert "near-minimiser" in verdict(full, 0.05, True, False)[1]
        assert "κ did not hold" in verdict(full, 0.05, False, True)[1]
        assert verdict(full, 0.05, True, True, vacuous=0.99)[0] == "not informative"
        assert verdict(some, 0.05, True, True, vacuous=0.99)[0] == "refuted", "a bound that fails is no vacuous one"

    def test_one_violation_anywhere_costs_the_replicate(self):
        table = pd.DataFrame({"replicate": [0, 0, 1, 1, 2, 2], "violations": [0, 1, 0, 0, 0, 0]})
        coverage = Coverage.of(table, "violations")
        assert (coverage.covered, coverage.replicates) == (2, 3)

    @given(st.lists(st.floats(0, 100), min_size=20, max_size=60), st.floats(0.01, 0.5))
    def test_the_empirical_multiplier_is_the_least_that_covers(self, needed, delta):
        table = pd.DataFrame({"replicate": range(len(needed)), "needed": needed})
        least = empirical_multiplier(table, "needed", delta)
        values = np.array(needed)
        assert (values <= least).mean() >= 1 - delta
        below = values[values < least]
        assert len(below) == 0 or (values <= below.max()).mean() < 1 - delta


class TestComparisons:
    def frame(self, gap: float, replicates: int = 16) -> pd.DataFrame:
        rng = np.random.default_rng(0)
        rows = []
        for replicate in range(replicates):
            problem = rng.normal()
            for contender, shift in (("random", 0.0), ("rule", gap)):
                rows += [
                    {
                        "truth": "t",
                        "contender": contender,
                        "replicate": replicate,
                        "round": number,
                        "error": problem + shift + 0.05 * rng.normal(),
                    }
                    for number in range(3)
                ]
        return pd.DataFrame(rows)

    def test_words_follow_the_joint_interval(self):
        assert compare(self.frame(-0.5), "error", "random")["verdict"].tolist() == ["better"]
        assert compare(self.frame(0.5), "error", "random")["verdict"].tolist() == ["worse"]
        assert compare(self.frame(0.0), "error", "random")["verdict"].tolist() == ["no gain"]

    def test_pairing_removes_what_the_worlds_share(self):
        """World effects of size 1 and a gap of 0.5 on 16 replicates: a paired interval is far narrower than either."""
        row = compare(self.frame(-0.5), "error", "random").iloc[0]
        assert row["high"] - row["low"] < 0.2

    def test_no_gain_is_rarely_missed_under_the_null(self):
        """400 null comparisons at joint 95 %: false alarms within the binomial's 1e-6 range of 5 %."""
        rng, alarms = np.random.default_rng(1), 0
        for _ in range(400):
            low, high = mean_interval(rng.normal(size=16))[1:]
            alarms += low > 0 or high < 0
        assert alarms <= stats.binom.ppf(1 - 1e-6, 400, 0.05)

    @given(st.integers(0, 10**6))
    def test_rank_correlation_is_scipys(self, seed):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, 30)), rng.integers(0, 5, (2, 30)).astype(float)
        ours = rank_correlation(torch.from_numpy(a), torch.from_numpy(b))
        for r in range(2):
            assert ours[r] == pytest.approx(stats.spearmanr(a[r], b[r]).statistic, nan_ok=True)


def test_interpolation_reaches_the_truth(network, key, arena):
    """``B`` is the norm of a θ* that has the true differences on all items: shown by constructing it."""
    items, rewards = arena.problem.everything()
    rows = network.value_and_gradient(network.initial(key.fold_in("network")), items.x)[1]
    norm = interpolation_norm(rows, rewards, 3)
    duels = Duels.within(12, 3).expand(3)
    phi = rows.differences(duels).dense().values
    for r in range(3):
        star = torch.linalg.pinv(phi[r]) @ duels.difference(rewards)[r]
        torch.testing.assert_close(phi[r] @ star, duels.difference(rewards)[r], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(star.norm(), norm[r], rtol=1e-5, atol=1e-8)
