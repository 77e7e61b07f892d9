"""Proposition 1's measurement against a slow re-computation, the verdicts, and controls that must be refuted."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from bandits.core.bounds import interpolation_norm
from bandits.core.duels import Duels, Labelled
from bandits.core.oracles import kappa
from bandits.runs.stats import at_least, covered, judge
from bandits.sim.audit import VERSIONS, Audit, Bounds, coverage
from bandits.sim.config import Simulation
from bandits.sim.learners import NeuralLearner, PolicyLearner
from bandits.sim.report import CONTROL, bound_verdicts
from bandits.sim.run import run_cell
from theory_checks.measures import PROPOSITIONS, audited_coverage

SUFFIXES = [version.suffix for version in VERSIONS.values()]


@pytest.mark.slow
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
    offer, past = arena.offer(0), Labelled()
    shown, duels = offer.items, Duels.within(8, 3).take(torch.tensor([0, 3, 8, 11, 19])).expand(3)
    for _ in range(2):
        past = past.add(offer, duels, arena.label(duels))
        audit.observe(past, duels.difference(arena.rewards))
        learner.fit(past)
        columns = audit.measure()

    deciles, history = audit.calibration(), past
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
        guess = every.difference(learner.rewards(items)[r])
        error = (guess - true).abs().numpy()
        information = float(torch.linalg.slogdet(v / bounds.ridge)[1])
        norm = float((torch.linalg.pinv(now) @ true).norm())
        gamma = math.sqrt(information + 2 * math.log(20)) / bounds.kappa + norm * math.sqrt(0.7 / bounds.kappa) + 1
        weights = learner.weights
        past_now, every_now = phi(shown.x[r], weights, r, asked), phi(items.x[r], weights, r, every)
        past_now = torch.cat([past_now, past_now])
        v_now = bounds.ridge * torch.eye(past_now.shape[1]).double() + past_now.T @ past_now
        width_now = torch.einsum("nd,de,ne->n", every_now, torch.linalg.inv(v_now), every_now).sqrt().numpy()
        information_now = float(torch.linalg.slogdet(v_now / bounds.ridge)[1])
        second = (
            gamma
            + (math.sqrt(information_now + 2 * math.log(20)) - math.sqrt(information + 2 * math.log(20))) / bounds.kappa
        )
        fitted = asked.difference(learner.rewards(shown)[r]).abs()
        asked_true = asked.difference(arena.rewards[r]).abs()
        slopes = torch.sigmoid(torch.maximum(fitted, asked_true))
        linear = logistic(past, history.outcome[r], 0.7)
        tangent = now @ linear
        ended = torch.sigmoid(torch.maximum((past @ linear).abs(), asked_true.repeat(2)))
        kappa_tangent = float((ended * (1 - ended)).min())
        statistical, gap = (tangent - true).abs().numpy(), (guess - tangent).abs().numpy()
        noise = math.sqrt(information + 2 * math.log(20))
        exact = noise / (2 * bounds.kappa) + norm * math.sqrt(0.7 / bounds.kappa)
        safe = (noise / 2 + 0.7 * norm / math.sqrt(bounds.ridge)) / min(kappa_tangent, bounds.kappa)
        expected = {
            "exact": exact,
            "audited": safe,
            "gamma_noise": noise / bounds.kappa,
            "gamma_prior": norm * math.sqrt(0.7 / bounds.kappa),
            "information_current": information_now,
            "largest_margin": float(fitted.max()),
            "kappa_tangent": kappa_tangent,
            "statistical": math.sqrt((statistical**2).mean()),
            "linearisation": math.sqrt((gap**2).mean()),
            "epsilon": gap.max(),
            "needed_current": (error / width_now).max(),
            "needed_tangent": (statistical / width).max(),
            "violations_tangent": (statistical > exact * width).sum(),
            "violations_audited": (statistical > safe * width).sum(),
            "sharpest_tangent": (exact * width / (2.0 + tangent.abs().numpy())).min(),
            "sharpest_audited": (safe * width / (2.0 + tangent.abs().numpy())).min(),
            "tightness_tangent": np.median(exact * width / statistical),
            "rank_correlation_current": stats.spearmanr(width_now, error).statistic,
            "information": information,
            "norm": norm,
            "gamma": gamma,
            "error": math.sqrt((error**2).mean()),
            "needed_network": (error / width).max(),
            "violations": (error > gamma * width).sum(),
            "sharpest": (gamma * width / (2.0 + guess.abs().numpy())).min(),
            "gamma_current": second,
            "violations_current": (error > second * width_now).sum(),
            "sharpest_current": (second * width_now / (2.0 + guess.abs().numpy())).min(),
            "tightness": np.median(gamma * width / error),
            "width": np.median(width),
            "rank_correlation": stats.spearmanr(width, error).statistic,
            "kappa_network": float((slopes * (1 - slopes)).min()),
        }
        for name, value in expected.items():
            assert columns[name][r] == pytest.approx(value, rel=1e-5), name
        assert columns.keys() - expected.keys() == {"gradient_tangent"}
        parts = np.array_split(np.argsort(width), 10)
        for part, found in zip(parts, deciles, strict=True):
            assert found["width"][r] == pytest.approx(width[part].mean())
            assert found["error"][r] == pytest.approx(math.sqrt((error[part] ** 2).mean()))
    assert bounds.largest_margin == pytest.approx(2.0)


def logistic(rows: torch.Tensor, outcome: torch.Tensor, lam: float) -> torch.Tensor:
    """The minimiser of ``Σ log(1 + e^m) - y m + λ/2 ‖θ‖²``, ``m = rows θ``, by Newton's steps."""
    theta = torch.zeros(rows.shape[1]).double()
    for _ in range(30):
        share = torch.sigmoid(rows @ theta)
        hessian = rows.T @ (rows * (share * (1 - share)).unsqueeze(1)) + lam * torch.eye(len(theta)).double()
        theta = theta - torch.linalg.solve(hessian, rows.T @ (share - outcome) + lam * theta)
    return theta


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
        "refit": 1e6,
        "evaluations": 1,
    }
    simulation = Simulation(contenders=("random",), truths=(f"ntk@{oracle}",), **(settings | changes))
    run_cell(simulation, simulation.truths[0], "random", tmp_path / oracle)
    return bound_verdicts(pd.read_csv(tmp_path / oracle / "bounds.csv"), simulation).set_index("claim")


class TestControls:
    """Three duels asked 80 times: the width shrinks, and an oracle that is not BTL has nowhere to hide."""

    @pytest.mark.campaign
    def test_flipped_labels_are_refuted_and_honest_ones_are_not(self, tmp_path):
        honest, flipped = run("btl", tmp_path), run("flipped", tmp_path)
        claim = "exact bound, κ from the data"
        assert flipped.loc[claim, "verdict"] == "refuted"
        assert honest.loc[claim, "verdict"] != "refuted"
        assert honest.loc[claim, "covered"] == 24

    @pytest.mark.slow
    def test_too_small_a_multiplier_is_refuted(self, tmp_path):
        assert run("btl", tmp_path, rounds=10).loc[CONTROL, "verdict"] == "refuted"


class TestVerdicts:
    def table(self, **columns) -> pd.DataFrame:
        base = {"replicate": np.repeat(np.arange(80), 2), "gradient_norm": 0.0, "kappa_network": 0.2, "norm": 1.0}
        return pd.DataFrame(base | {"violations": 0, "sharpest": 0.5} | columns)

    def word(self, **columns) -> tuple[str, str]:
        found = judge(coverage(self.table(**columns), VERSIONS["Proposition 1, network"], 0.1), at_least(0.95))
        return found.word, found.reason

    def test_all_words_and_reasons(self):
        broken = np.repeat(np.arange(80) < 20, 2)
        assert self.word()[0] == "supported"
        assert self.word(violations=broken)[0] == "refuted"
        assert "fits did not converge" in self.word(gradient_norm=1e-2)[1]
        assert "κ did not hold" in self.word(kappa_network=0.05)[1]
        assert self.word(sharpest=2.0)[0] == "not informative"
        assert "vacuous" in self.word(sharpest=2.0)[1]
        assert self.word(sharpest=2.0, violations=broken)[0] == "refuted", "a bound that fails is no vacuous one"
        assert "not finite" in self.word(sharpest=math.nan)[1]
        assert "B is not available" in self.word(norm=math.nan, sharpest=math.nan)[1]

    def test_one_violation_anywhere_costs_the_replicate(self):
        table = self.table(violations=np.arange(160) == 7)
        assert coverage(table, VERSIONS["Proposition 1, network"], 0.1).value == 79 / 80

    def test_judgements_spend_the_share_of_the_look_at_which_a_truth_ended(self):
        """80 of 320: a quarter of the error; of 100 replicates the last 20 are the next look's."""
        broken = np.repeat(np.arange(100) >= 80, 2)
        names = ["gradient_norm", "kappa_network", "kappa_tangent", "gradient_tangent", "needed_tangent"]
        columns = dict.fromkeys(names, 0.0) | {f"{n}{s}": 0.0 for n in ("violations", "sharpest") for s in SUFFIXES}
        base = {"truth": "t", "contender": "c", "replicate": np.repeat(np.arange(100), 2), "norm": 1.0}
        table = pd.DataFrame(base | columns | {f"violations{s}": broken for s in SUFFIXES})
        found = bound_verdicts(table, Simulation(replicates=80, until_decided=320)).set_index("claim")
        assert (found.loc[list(VERSIONS), "covered"] == 80).all()
        assert found.loc[list(VERSIONS), "low"].to_numpy() == pytest.approx(covered([True] * 80, 1 - 0.05 / 4).low)
        alone = bound_verdicts(table, Simulation(replicates=80)).set_index("claim")
        assert (alone.loc[list(VERSIONS), "covered"] == 80).all()
        assert (alone.loc[list(VERSIONS), "replicates"] == 100).all()

    @pytest.mark.parametrize("column", ["gradient_norm", "kappa_network", "violations", "sharpest"])
    def test_the_same_table_has_the_same_verdict_on_the_page_and_in_the_theory(self, column):
        """Whatever is wrong with it: tables of both propositions, judged by both programs' own call."""
        wrong = {"gradient_norm": 1e-2, "kappa_network": 1e-3, "violations": 1, "sharpest": 3.0}
        names = ("violations", "sharpest")
        columns = {f"{n}{s}": {"violations": 0, "sharpest": 0.5}[n] for n in names for s in SUFFIXES}
        columns |= {
            "kappa_tangent": 0.2,
            "gradient_tangent": 0.0,
            "needed_tangent": 1.0,
            "tightness": 9.0,
            "epsilon": 0.1,
        }
        columns |= {column: wrong[column]} | ({f"{column}_current": wrong[column]} if column in names else {})
        table = self.table(**columns).assign(truth="t", contender="c")
        page = bound_verdicts(table, Simulation(replicates=80)).set_index("claim")
        for (version, words), claim in zip(PROPOSITIONS.values(), list(VERSIONS)[:2], strict=True):
            theory = audited_coverage(table, version, 2.0, 0.95)
            assert judge(theory, at_least(0.95)).word == page.loc[claim, "verdict"], words


@pytest.mark.slow
@pytest.mark.parametrize("responses", [2, 3])
def test_items_that_coincide_cost_the_bound_alone(responses, tmp_path):
    """In one dimension all items lie on two points: B is not available, what needs no B is there, and finite."""
    sizes = {"replicates": 2, "rounds": 2, "batch": 3, "prompts": 8, "heldout": 4, "width": 16}
    simulation = Simulation(contenders=("random",), truths=("mlp",), dim=1, responses=responses, **sizes)
    run_cell(simulation, "mlp", "random", tmp_path)
    table = pd.read_csv(tmp_path / "bounds.csv")
    assert table[["norm", "gamma", "exact", "audited"]].isna().all(axis=None)
    free = ["information", "error", "epsilon", "needed_network", "needed_tangent", "rank_correlation"]
    assert np.isfinite(table[free]).all(axis=None)
    assert (table[free].abs() < 1e6).all(axis=None), "two equal items have no width and no error, so need no multiplier"
    verdicts = bound_verdicts(table, simulation).set_index("claim").loc[list(VERSIONS)]
    assert (verdicts["verdict"] == "not informative").all()
    assert verdicts["reason"].str.contains("B is not available").all()


@pytest.mark.slow
def test_one_replicate_has_verdicts_that_say_nothing(tmp_path):
    sizes = {"replicates": 1, "rounds": 2, "batch": 3, "prompts": 8, "heldout": 4, "width": 16}
    simulation = Simulation(contenders=("random",), truths=("mlp",), **sizes)
    run_cell(simulation, "mlp", "random", tmp_path)
    verdicts = bound_verdicts(pd.read_csv(tmp_path / "bounds.csv"), simulation).set_index("claim")
    assert verdicts.loc[CONTROL, "verdict"] == "not informative"
    assert verdicts.loc[CONTROL, "covered"] == 0


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
