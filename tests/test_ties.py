"""Ties: Davidson's likelihood against itself written out, and every learner that models them against SciPy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from bandits.core import oracles
from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.oracles import BTL, ORACLES, Davidson
from bandits.core.rng import Key
from bandits.sim.config import Simulation
from bandits.sim.learners import Learner, LinearLearner, NeuralLearner, PolicyLearner, TangentLearner
from bandits.sim.networks import MLP
from bandits.sim.problem import Inputs, answer
from bandits.sim.run import build

margins = st.floats(-40, 40)
rates = st.floats(0, 0.95)
outcomes = st.sampled_from([0.0, 0.5, 1.0])


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def chances(margin: float, ties: float) -> dict[float, float]:
    """Return the probability of every outcome, slowly."""
    first, tie, second = math.exp(margin / 2), ties, math.exp(-margin / 2)
    total = first + tie + second
    return {1.0: first / total, 0.5: tie / total, 0.0: second / total}


@given(margin=margins, rate=rates)
def test_an_answers_probabilities_mean_and_variance_are_the_models(margin, rate):
    """Absolute 1e-12: sums of three numbers that are at most 1."""
    oracle = Davidson(rate)
    slow = chances(margin, oracle.ties)
    m, places = tensor(margin), (torch.tensor([0]), torch.tensor([1]))
    assert float(oracle.probability(m, places, 2)) == pytest.approx(slow[1.0], abs=1e-12)
    assert float(oracle.probability(-m, places, 2)) == pytest.approx(slow[0.0], abs=1e-12)
    assert float(oracle.tie(m)) == pytest.approx(slow[0.5], abs=1e-12)
    mean = sum(share * chance for share, chance in slow.items())
    variance = sum((share - mean) ** 2 * chance for share, chance in slow.items())
    assert float(oracles.expected(m, oracle.ties)) == pytest.approx(mean, abs=1e-12)
    assert float(oracles.slope(m, oracle.ties)) == pytest.approx(variance, abs=1e-12)


@given(margin=margins, rate=rates, outcome=outcomes)
def test_the_loss_is_the_negative_log_likelihood_but_for_a_constant(margin, rate, outcome):
    """Its derivative is expected less observed outcome; at ν = 0 a tie is the mean of both answers."""
    ties, x = Davidson(rate).ties, tensor(margin).requires_grad_(True)
    loss = oracles.loss(x, tensor(outcome), ties)
    loss.sum().backward()
    slow = chances(margin, ties)
    if outcome == 0.5 and ties == 0:
        expected = -(math.log(slow[1.0]) + math.log(slow[0.0])) / 2
    else:
        expected = -math.log(slow[outcome]) + (math.log(ties) if outcome == 0.5 and ties else 0.0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert float(x.grad) == pytest.approx(float(oracles.expected(x.detach(), ties)) - outcome, abs=1e-9)


@given(margin=margins, outcome=st.sampled_from([0.0, 1.0]))
def test_without_ties_the_loss_is_btls_bit_for_bit(margin, outcome):
    m = tensor(margin)
    plain = torch.nn.functional.softplus(-m if outcome else m)
    assert float(oracles.loss(m, tensor(outcome))) == float(plain)


@given(largest=st.floats(0, 12), rate=rates)
def test_kappa_is_the_least_slope(largest, rate):
    ties = oracles.tie_weight(rate)
    grid = torch.linspace(-largest, largest, 401, dtype=torch.float64)
    assert oracles.kappa(largest, ties) == pytest.approx(float(oracles.slope(grid, ties).min()), rel=1e-9)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
def test_a_share_of_ties_outside_its_range_is_refused(rate):
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        Davidson(rate)


@given(seed=st.integers(0, 10**6), rate=rates)
def test_exchanging_the_sides_exchanges_the_outcome(seed, rate):
    rng = np.random.default_rng(seed)
    rewards, uniforms = torch.from_numpy(rng.normal(size=(1, 12))), torch.from_numpy(rng.random((1, 4, 3, 3)))
    duels = Duels.within(4, 3).expand(1)
    there = answer(Davidson(rate), uniforms, rewards, duels)
    back = answer(Davidson(rate), uniforms, rewards, Duels(duels.second, duels.first))
    assert torch.equal(there, 1 - back)
    assert set(there.unique().tolist()) <= {0.0, 0.5, 1.0}
    if rate == 0:
        assert torch.equal(there, answer(BTL(), uniforms, rewards, duels))


def test_the_oracles_shares_of_outcomes_are_its_probabilities():
    """20,000 answers; each share within 4.5 standard errors, error rate about 2e-5 for three shares."""
    n, margin, oracle = 20_000, 0.7, Davidson(0.3)
    rewards = tensor(margin, 0.0).repeat(n)[None]
    uniforms = Key(3, (0,)).uniform(n, 2, 2)
    seen = answer(oracle, uniforms, rewards, Duels.within(n, 2).expand(1))
    for outcome, chance in chances(margin, oracle.ties).items():
        share = float((seen == outcome).double().mean())
        assert abs(share - chance) < 4.5 * math.sqrt(chance * (1 - chance) / n)


def fitted(name: str, ties: float) -> tuple[Learner, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a learner fitted to 24 answers, a third of them ties; its margins, the answers, the margins' gradients."""
    network, key, duels = MLP(4, 8, 3, "softplus"), Key(5, (0,)), Duels.within(8, 3).expand(1)
    initial = network.initial(key.fold_in("network"))
    items = Inputs(key.fold_in("x").normal(24, 4), 3)
    make: dict[str, Callable[[], Learner]] = {
        "neural": lambda: NeuralLearner(network, initial, 0.8, tolerance=1e-9),
        "policy": lambda: PolicyLearner(network, initial, 0.8, beta=0.5, tolerance=1e-9),
        "tangent": lambda: TangentLearner(network, initial, 0.8),
        "linear": lambda: LinearLearner(4, (1,), 0.8, key),
    }
    learner = make[name]()
    learner.ties = ties
    outcome = (key.fold_in("answers").uniform(24) * 3).floor() / 2
    assert (learner.fit(Labelled.of(items, duels, outcome)).gradient < 1e-8).all()
    rows = learner.features(items, "current", "all").differences(duels).dense().values
    return learner, duels.difference(learner.rewards(items))[0], outcome[0], rows[0]


@pytest.mark.slow
@pytest.mark.parametrize("ties", [0.0, 0.9, 6.0])
@pytest.mark.parametrize("name", ["tangent", "linear"])
def test_a_convex_fit_with_ties_is_scipys(name, ties):
    _, margin, outcome, rows = fitted(name, ties)
    phi, share = rows.numpy(), outcome.numpy()

    def objective(theta: np.ndarray) -> float:
        m = phi @ theta
        return float(np.sum(np.log(2 * np.cosh(m / 2) + ties) - (share - 0.5) * m) + 0.4 * theta @ theta)

    best = optimize.minimize(objective, np.zeros(phi.shape[1]), method="BFGS", options={"gtol": 1e-6})
    np.testing.assert_allclose(margin.numpy(), phi @ best.x, atol=2e-4)


@pytest.mark.parametrize("ties", [0.0, 0.9, 6.0])
@pytest.mark.parametrize("name", ["neural", "policy"])
def test_a_networks_fit_with_ties_is_stationary(name, ties):
    """``λ(θ - θ0) = -Σ (expected - observed outcome) φ``, the expectation written out."""
    learner, margin, outcome, rows = fitted(name, ties)
    assert isinstance(learner, NeuralLearner)
    share = np.array([sum(value * chance for value, chance in chances(float(m), ties).items()) for m in margin])
    drift = torch.cat([(a - b).flatten() for a, b in zip(learner.weights, learner.initial, strict=True)])
    pull = torch.from_numpy(share - outcome.numpy()) @ rows
    torch.testing.assert_close(pull + 0.8 * drift, torch.zeros_like(drift), atol=1e-6, rtol=0)


def test_the_learner_takes_the_oracles_ties_unless_told_otherwise():
    small = Simulation(truths=("ntk@btl-ties",), replicates=2, prompts=8, rounds=2, batch=4, heldout=2, width=8)
    _, learner, _ = build(small, "ntk@btl-ties", "neural:random")
    assert learner.ties == ORACLES["btl-ties"].ties > 0
    assert small.bounds_for("ntk@btl-ties").kappa == oracles.kappa(2.0, learner.ties)
    _, blind, _ = build(
        Simulation(ties=0.0, truths=("ntk@btl-ties",), replicates=2, width=8), "ntk@btl-ties", "tangent:random"
    )
    assert blind.ties == 0
