"""The contract of every learner, and each fit against SciPy or autograd in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from bandits.core import oracles as btl
from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.stats import CONVERGED
from bandits.sim import learners
from bandits.sim.learners import Learner, LinearLearner, NeuralLearner, PolicyLearner, TangentLearner
from bandits.sim.networks import MLP
from bandits.sim.problem import Inputs, SyntheticArena

ALL = Duels.within(8, 3).expand(3)


def make(name: str, network: MLP, key: Key, lam: float = 0.8) -> Learner:
    initial = network.initial(key.fold_in("network"))
    match name:
        case "neural":
            return NeuralLearner(network, initial, lam)
        case "policy":
            return PolicyLearner(network, initial, lam, beta=0.5)
        case "tangent":
            return TangentLearner(network, initial, lam)
        case _:
            return LinearLearner(network.inputs, (3,), lam, key)


def labelled(items: Inputs, arena: SyntheticArena, duels: Duels = ALL) -> Labelled[Inputs]:
    return Labelled.of(items, duels, arena.label(duels))


every = pytest.mark.parametrize("name", ["neural", "policy", "tangent", "linear"])


@every
class TestContract:
    def test_rewards_are_zero_at_the_start(self, name, network, key, items):
        assert float(make(name, network, key).rewards(items).abs().max()) == 0

    def test_the_fit_is_a_near_minimiser_and_is_repeatable(self, name, network, key, items, arena):
        fits = []
        for _ in range(2):
            learner = make(name, network, key)
            assert (learner.fit(labelled(items, arena)).gradient < 1e-6).all()
            fits.append(learner.rewards(items))
        assert torch.equal(*fits)
        assert float(fits[0].abs().max()) > 0.05

    def test_a_fit_from_a_warm_start_is_the_fit_from_cold(self, name, network, key, items, arena):
        """After two batches, fitted after each or once: the same minimiser, to 1e-4 log-odds."""
        warm, cold = make(name, network, key), make(name, network, key)
        past, offer = Labelled(), arena.offer(0)
        for part in (slice(0, 12), slice(12, 24)):
            batch = Duels(ALL.first[:, part], ALL.second[:, part])
            past = past.add(offer, batch, arena.label(batch))
            warm.fit(past)
        cold.fit(past)
        difference = ALL.difference(warm.rewards(items)) - ALL.difference(cold.rewards(items))
        assert float(difference.abs().max()) < 1e-4

    def test_a_saved_state_is_taken_up(self, name, network, key, items, arena):
        learner, other = make(name, network, key), make(name, network, key)
        learner.fit(labelled(items, arena))
        other.restore({key: value.clone() for key, value in learner.state().items()})
        assert torch.equal(other.rewards(items), learner.rewards(items))
        a, b = learner.features(items, "current", "all"), other.features(items, "current", "all")
        assert torch.equal(a.squares(), b.squares())

    def test_features_are_the_gradient_of_the_reward_in_differences(self, name, network, key, items, arena):
        """A small step along φ moves a duel's margin by ``ε ‖φ‖²`` (learners with weights to move)."""
        if name in ("tangent", "linear"):
            pytest.skip("linear in its parameters: covered by the fits below")
        learner = make(name, network, key)
        learner.fit(labelled(items, arena))
        for at in ("initial", "current"):
            weights = learner.initial if at == "initial" else learner.weights
            learner.weights = weights
            phi = learner.features(items, at, "all").differences(ALL).dense().values[:, 7]
            before = ALL.difference(learner.rewards(items))[:, 7]
            parts = torch.split(phi, [a * b for a, b in network.shapes], -1)
            moved = tuple(w + 1e-6 * p.unflatten(-1, s) for w, p, s in zip(weights, parts, network.shapes, strict=True))
            learner.weights = moved
            after = ALL.difference(learner.rewards(items))[:, 7]
            torch.testing.assert_close((after - before) / 1e-6, phi.square().sum(-1), rtol=1e-4, atol=1e-8)

    def test_a_negative_regularisation_is_refused(self, name, network, key):
        with pytest.raises(InputError, match="λ"):
            make(name, network, key, lam=0.0)


def test_the_tangent_fit_is_scipys_in_explicit_gradients(network, key, items, arena):
    learner = make("tangent", network, key)
    past = labelled(items, arena)
    learner.fit(past)
    phi = learner.features(items, "initial", "all").differences(ALL).dense().values
    for r in range(3):
        signs = np.where(past.outcome[r].numpy() > 0.5, 1.0, -1.0)
        rows = phi[r].numpy()

        def objective(theta, rows=rows, signs=signs):
            margin = signs * (rows @ theta)
            gradient = -rows.T @ (signs / (1 + np.exp(margin))) + 0.8 * theta
            return np.logaddexp(0, -margin).sum() + 0.4 * theta @ theta, gradient

        best = optimize.minimize(
            objective,
            np.zeros(rows.shape[1]),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 10_000, "gtol": 1e-10, "ftol": 1e-16},
        )
        fitted = ALL.difference(learner.rewards(items))[r].numpy()
        np.testing.assert_allclose(fitted, rows @ best.x, atol=1e-5)
        np.testing.assert_allclose(learner.margins[r].numpy(), rows @ best.x, atol=1e-5)


def test_the_linear_fit_is_scipys(network, key, items, arena):
    learner = make("linear", network, key)
    past = labelled(items, arena)
    learner.fit(past)
    for r in range(3):
        rows = (items.x[r][ALL.first[r]] - items.x[r][ALL.second[r]]).numpy()
        signs = np.where(past.outcome[r].numpy() > 0.5, 1.0, -1.0)
        best = optimize.minimize(
            lambda t, rows=rows, signs=signs: np.logaddexp(0, -signs * (rows @ t)).sum() + 0.4 * t @ t,
            np.zeros(4),
            method="BFGS",
            options={"gtol": 1e-9},
        )
        np.testing.assert_allclose(learner.theta[r].numpy(), best.x, atol=1e-5)


class TestPolicy:
    """DPO on a softmax policy over finite responses: the implicit reward is the neural learner's reward."""

    @pytest.fixture
    def fitted(self, network, key, items, arena: SyntheticArena) -> PolicyLearner:
        learner = make("policy", network, key)
        assert isinstance(learner, PolicyLearner)
        learner.fit(labelled(items, arena))
        return learner

    def test_the_policy_is_a_distribution(self, fitted, items):
        policy = (fitted.log_ratio(items) - math.log(3)).exp().unflatten(-1, (-1, 3))
        torch.testing.assert_close(policy.sum(-1), torch.ones(3, 8, dtype=torch.float64))

    def test_its_implicit_reward_differs_from_the_scaled_network_by_c_of_x(self, fitted, items):
        network = fitted.scale * (
            fitted.network.value(fitted.weights, items.x) - fitted.network.value(fitted.initial, items.x)
        )
        gap = (fitted.rewards(items) - network).unflatten(-1, (-1, 3))
        torch.testing.assert_close(gap, gap[..., :1].expand_as(gap))
        assert float(gap.abs().max()) > 1e-3, "the log-partition term should not vanish"

    def test_its_features_are_autograd_of_beta_log_pi(self, fitted, items):
        r = 1
        leaves = [w[r].clone().requires_grad_() for w in fitted.weights]
        score = fitted.network.value(tuple(leaves), items.x[r]) - fitted.network.value(
            tuple(w[r] for w in fitted.initial), items.x[r]
        )
        reward = fitted.scale * torch.log_softmax(score.unflatten(-1, (-1, 3)), -1).flatten()
        rows = fitted.features(items, "current", "all").dense().values[r]
        for i in (0, 7, 23):
            expected = torch.autograd.grad(reward[i], leaves, retain_graph=True)
            torch.testing.assert_close(rows[i], torch.cat([e.flatten() for e in expected]))

    def test_the_dpo_loss_at_the_reference_is_log_two_a_duel(self, network, key, items, arena):
        learner, won = make("policy", network, key), arena.label(ALL)
        start = btl.loss(ALL.difference(learner.rewards(items)), won)
        torch.testing.assert_close(start, torch.full((3,), 24 * math.log(2), dtype=torch.float64))

    def test_the_dpo_loss_falls(self, fitted, items, arena):
        assert (btl.loss(ALL.difference(fitted.rewards(items)), arena.label(ALL)) < 24 * math.log(2)).all()

    def test_beta_must_be_positive(self, network, key):
        with pytest.raises(InputError, match="β"):
            PolicyLearner(network, network.initial(key), 1.0, beta=0.0)


@pytest.mark.slow
def test_one_table_kept_once_gives_the_same_fit(network, key, items, arena):
    """Duels of one table asked again and again: stored once or copied for every duel, the minimiser is the same."""
    initial = network.initial(key.fold_in("network"))
    kept, copied = (NeuralLearner(network, initial, 0.8, tolerance=1e-10) for _ in range(2))
    for learner, lasting in ((kept, True), (copied, False)):
        past, offer = Labelled(), dataclasses.replace(arena.offer(0), lasting=lasting)
        for _ in range(2):
            past = past.add(offer, ALL, arena.label(ALL))
        assert past.items.prompts == (8 if lasting else 48)
        learner.fit(past)
    torch.testing.assert_close(kept.rewards(items), copied.rewards(items), rtol=1e-6, atol=1e-8)


def test_the_minimum_is_pulled_to_theta_zero(network, key, items, arena):
    """A huge λ leaves θ at θ0, not at 0: rewards vanish while the network's raw output does not."""
    learner = NeuralLearner(network, network.initial(key.fold_in("network")), 1e8)
    learner.fit(labelled(items, arena))
    assert float(learner.rewards(items).abs().max()) < 1e-5
    assert float(network.value(learner.weights, items.x).abs().max()) > 0.1


def test_items_against_themselves_are_fitted_at_once(network, key, items, arena):
    """Their gradient is rounding alone, and is not told as a fit that failed."""
    learner = NeuralLearner(network, network.initial(key), 1.0)
    itself = Duels(ALL.first[:, :3], ALL.first[:, :3])
    assert (learner.fit(labelled(items, arena, itself)).gradient < 1e-6).all()
    assert float(learner.rewards(items).abs().max()) < 1e-6


def precisions(monkeypatch, learner: NeuralLearner, past: Labelled[Inputs]) -> list[torch.dtype]:
    """Fit, and return the precisions in which the network was worked out."""
    seen: list[torch.dtype] = []
    inner = MLP.forward

    def spied(self, weights, x):
        seen.append(x.dtype)
        return inner(self, weights, x)

    with monkeypatch.context() as patch:
        patch.setattr(MLP, "forward", spied)
        learner.fit(past)
    return seen


def test_single_precision_only_far_from_the_end(monkeypatch, network, key, items, arena):
    """Most passes of a fit are in single precision, the last in double, and the minimiser is double's alone."""
    initial = network.initial(key.fold_in("network"))
    both, double = (NeuralLearner(network, initial, 0.8, tolerance=1e-9) for _ in range(2))
    past = labelled(items, arena)
    mixed = precisions(monkeypatch, both, past)
    assert mixed.count(torch.float32) > mixed.count(torch.float64)
    assert mixed[-1] == torch.float64
    with monkeypatch.context() as patch:
        patch.setattr("bandits.sim.learners.SINGLE", 0.0)
        assert set(precisions(monkeypatch, double, past)) == {torch.float64}
    torch.testing.assert_close(both.rewards(items), double.rewards(items), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_a_steep_loss_is_fitted_in_double_precision_alone(monkeypatch, network, key, items, arena):
    """With λ = 1e-6 the Hessian's condition is beyond single precision."""
    learner = NeuralLearner(network, network.initial(key), 1e-6)
    assert set(precisions(monkeypatch, learner, labelled(items, arena))) == {torch.float64}


def by_autograd(learner: NeuralLearner, items: Inputs, duels: Duels, won: torch.Tensor, r: int):
    """Return the learner's objective of one replicate, by autograd: SciPy's, and the judge of ours."""
    network, one = learner.network, Duels(duels.first[r : r + 1], duels.second[r : r + 1])
    start = torch.cat([w[r].flatten() for w in learner.initial])
    origin = network.value(tuple(w[r : r + 1] for w in learner.initial), items.x[r : r + 1])

    def objective(vector):
        leaf = torch.tensor(vector, requires_grad=True)
        parts = torch.split(leaf, [a * b for a, b in network.shapes])
        weights = tuple(p.view(1, *s) for p, s in zip(parts, network.shapes, strict=True))
        margin = one.difference(network.value(weights, items.x[r : r + 1]) - origin)
        total = btl.loss(margin, won[r : r + 1]).sum() + learner.regularisation / 2 * (leaf - start).square().sum()
        total.backward()
        return float(total.detach()), leaf.grad.numpy()

    return start.numpy(), objective


def scale(learner: NeuralLearner, items: Inputs, duels: Duels, r: int) -> float:
    """Return ``G0``, to which gradient norms are relative."""
    return float(learner.features(items, "initial", "all").differences(duels).dense().values[r].norm()) / 2


def test_the_neural_fit_is_scipys(network, key, arena):
    """The learner's minimum is SciPy's, to 1e-6 in the objective; and the gradient norm that it reports is right."""
    items = arena.offer(0).items
    learner = NeuralLearner(network, network.initial(key), 0.7, tolerance=1e-8, iterations=300)
    past = labelled(items, arena)
    fit = learner.fit(past)
    assert fit.converged.all()
    start, objective = by_autograd(learner, items, ALL, past.outcome, 1)
    options = {"maxiter": 5000, "gtol": 1e-10}
    best = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    value, gradient = objective(torch.cat([w[1].flatten() for w in learner.weights]).numpy())
    assert value == pytest.approx(best.fun, rel=1e-6)
    norm = np.linalg.norm(gradient) / scale(learner, items, ALL, 1)
    assert norm == pytest.approx(float(fit.gradient[1]), rel=1e-2, abs=1e-9)


def drawn(seed: int, activation: str, answers: int, width: int = 64) -> tuple[MLP, tuple, Inputs, Duels, torch.Tensor]:
    """Two replicates of answered duels, two items each, about ``2 (xᵀa)²``."""
    key, network = Key(seed, (0, 1)), MLP(5, width, 3, activation)
    x = key.fold_in("x").normal(2 * answers, 5)
    x = x / x.norm(dim=-1, keepdim=True) * 5**0.5
    duels, along = Duels.within(answers, 2).expand(2), key.fold_in("direction").normal(5)
    margin = duels.difference((x @ along[..., None]).squeeze(-1).square() / along.square().sum(-1, keepdim=True) * 2)
    won = key.fold_in("labels").uniform(answers) < torch.sigmoid(margin)
    return network, network.initial(key.fold_in("network")), Inputs(x, 2), duels, won.to(x.dtype)


@pytest.mark.campaign
@pytest.mark.parametrize("lam", [1e-3, 1e-2, 0.03, 0.3, 1.0, 100.0])
def test_a_fit_ends_at_a_minimum_whatever_lambda_is(lam):
    """Width 64, depth 3, 60 answers, against L-BFGS-B from the same start to machine precision.

    For λ >= 0.3 it is the same minimum, to 1e-9 in the objective.  Below, the loss has several: within 10 % of SciPy's,
    where a fit that gives up is off by 100 % to 5000 %, and SciPy, started there, gains no 1e-6 of it.  The gradient
    vanishes in every case, by autograd.
    """
    network, initial, items, duels, won = drawn(0, "softplus", 60)
    learner = NeuralLearner(network, initial, lam)
    past = Labelled.of(items, duels, won)
    fit = learner.fit(past)
    assert fit.converged.all()
    start, objective = by_autograd(learner, items, duels, won, 0)
    options = {"maxiter": 20_000, "maxfun": 30_000, "maxcor": 30, "ftol": 1e-16, "gtol": 1e-9}
    best = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    end = torch.cat([w[0].flatten() for w in learner.weights]).numpy()
    value, gradient = objective(end)
    assert np.linalg.norm(gradient) <= 1.01e-6 * scale(learner, items, duels, 0)
    assert value <= best.fun * (1 + (1e-9 if lam >= 0.3 else 0.1))
    on = optimize.minimize(objective, end, jac=True, method="L-BFGS-B", options=options)
    assert value <= on.fun * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("lam", "passes"), [(0.3, 49), (1.0, 14), (100.0, 6)])
def test_a_well_regularised_fit_needs_few_passes(monkeypatch, lam, passes):
    """Values asked for where λ >= 0.3, as counted before fits with small λ were mended: no more are needed."""
    network, initial, items, duels, won = drawn(0, "softplus", 60)
    learner = NeuralLearner(network, initial, lam)
    past = Labelled.of(items, duels, won)
    asked = 0
    inner = learners._Objective.evaluate

    def counted(self, theta):
        nonlocal asked
        asked += 1
        return inner(self, theta)

    monkeypatch.setattr(learners._Objective, "evaluate", counted)
    assert learner.fit(past).converged.all()
    assert asked <= passes


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    log_lam=st.floats(-3, 2),
    activation=st.sampled_from(["softplus", "tanh", "relu"]),
    answers=st.integers(1, 20),
    iterations=st.sampled_from([1, 5, 30, 500]),
)
def test_a_fit_never_ends_above_its_start_and_tells_how_it_ended(seed, log_lam, activation, answers, iterations):
    """Whatever λ, the network and the time allowed: the loss does not rise, and ``converged`` is what autograd says."""
    network, initial, items, duels, won = drawn(seed, activation, answers, width=12)
    learner = NeuralLearner(network, initial, 10**log_lam, iterations=iterations)
    past = Labelled.of(items, duels, won)
    previous = [answers * math.log(2)] * 2  # both at θ0 and from where the last fit ended
    for _ in range(2):
        fit = learner.fit(past)
        assert fit.iterations <= iterations
        for r in range(2):
            value, gradient = by_autograd(learner, items, duels, won, r)[1](
                torch.cat([w[r].flatten() for w in learner.weights]).numpy()
            )
            assert value <= previous[r] * (1 + 1e-6)
            previous[r] = value
            norm = np.linalg.norm(gradient) / scale(learner, items, duels, r)
            assert norm == pytest.approx(float(fit.gradient[r]), rel=1e-2, abs=1e-9)
            assert bool(fit.converged[r]) == (norm <= CONVERGED) or norm == pytest.approx(CONVERGED, rel=0.02)


@pytest.mark.slow
def test_a_relu_fit_is_told_as_not_converged():
    """At λ = 1 with 60 answers its minimiser sits on kinks; at λ = 0.001 it is far below where first steps fail."""
    network, initial, items, duels, won = drawn(0, "relu", 60)
    for lam, most in ((1.0, 27.0), (1e-3, 0.5)):
        learner = NeuralLearner(network, initial, lam)
        past = Labelled.of(items, duels, won)
        assert not learner.fit(past).converged.any()
        for r in range(2):
            _, objective = by_autograd(learner, items, duels, won, r)
            assert objective(torch.cat([w[r].flatten() for w in learner.weights]).numpy())[0] < most


@every
def test_contradictory_answers_have_a_finite_gradient_norm(name, network, key, items, arena):
    """One duel won once by either side: the loss is least at θ0, and the relative gradient norm is 0, not 0/0."""
    learner = make(name, network, key)
    duel = Duels(ALL.first[:, :1], ALL.second[:, :1])
    past, offer = Labelled(), arena.offer(0)
    for won in (1.0, 0.0):
        past = past.add(offer, duel, torch.full((3, 1), won, dtype=torch.float64))
    assert (learner.fit(past).gradient < 1e-6).all()
    assert float(duel.difference(learner.rewards(items)).abs().max()) < 1e-6
