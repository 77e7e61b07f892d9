"""Every piece of the theory checks' mathematics against a slow, obvious float64 reference."""

import itertools
import math

from jaxtyping import install_import_hook

# The mathematics only: a hooked function sent to a cluster would need this folder on the workers.
with install_import_hook(
    [f"theory_checks.maths.{name}" for name in ("tangent", "certificate", "predictors", "trials")]
    + [f"theory_checks.families.{name}" for name in ("orders", "regret", "transformers")],
    "shapes.check",
):
    import theory_checks.families.orders
    import theory_checks.families.regret
    import theory_checks.families.transformers  # noqa: F401

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from bandits.core.bounds import interpolation_norm
from bandits.core.design import GramDesign, PrimalDesign
from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.oracles import kappa, loss
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.sim.learners import NeuralLearner, PolicyLearner, TangentLearner
from bandits.sim.networks import MLP
from bandits.sim.problem import Problem, SyntheticArena
from bandits.sim.truths import Teacher
from theory_checks.families import orders, transformers
from theory_checks.families.approximations import Scene, overlap
from theory_checks.families.information import greedy_ratio
from theory_checks.families.regret import optimism
from theory_checks.maths import certificate
from theory_checks.maths.predictors import predictors
from theory_checks.maths.tangent import (
    Counts,
    ExtendedLink,
    Logistic,
    Setting,
    TangentWorld,
    coordinates,
    fit,
    log_likelihood,
    times,
)
from theory_checks.maths.trials import Trial, floor, play

seeds = st.integers(0, 10**6)
F64 = torch.float64


def tally_of(rng: np.random.Generator, lead: int, n: int, most: int = 6) -> Counts:
    asked = torch.from_numpy(rng.integers(0, most, (lead, n))).to(F64)
    return Counts(asked, torch.from_numpy(rng.binomial(asked.long().numpy(), 0.5)).to(F64))


class TestTangentWorld:
    def test_coordinates_keep_every_inner_product(self):
        """Against the Gram matrix of the full gradients, to 1e-9."""
        key = Key(3, (0, 1))
        network = MLP(4, 20, 3)
        weights, x = network.initial(key.fold_in("w")), key.fold_in("x").normal(12, 4)
        rows = network.value_and_gradient(weights, x)[1]
        duels = Duels.within(4, 3).expand(2)
        dense = rows.dense().differences(duels)
        small = coordinates(rows, 3).differences(duels)
        assert small.values.shape[-1] == 8
        torch.testing.assert_close(small.inner(small), dense.inner(dense), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("truth", ["mlp", "square", "ntk", "aligned"])
    def test_the_truth_has_its_rewards_its_norm_and_its_largest_difference(self, truth):
        problem = TangentWorld.of(Setting(3, 3, truth=truth, largest=1.5), Key(5, (0, 1)))
        assert problem.margins.abs().amax(-1).tolist() == pytest.approx([1.5, 1.5])
        torch.testing.assert_close(times(problem.features, problem.theta), problem.margins)
        if truth == "aligned":  # Cauchy-Schwarz is attained along the first duel
            width = torch.linalg.vector_norm(problem.features[:, 0], dim=-1)
            torch.testing.assert_close(problem.margins[:, 0].abs(), problem.norm * width)

    def test_the_norm_is_the_cores(self):
        key, setting = Key(5, (0, 1)), Setting(3, 3, truth="mlp", largest=1.5)
        problem = TangentWorld.of(setting, key)
        network = setting.network
        initial = network.initial(key.fold_in("network"))
        items = Problem(Teacher(), key.fold_in("world", "mlp"), 3, 3, 5, bound=0.75).everything()[0]
        rewards = torch.zeros(2, 9, dtype=F64)
        rewards[:, [1, 4, 7]] = -problem.margins[:, [0, 3, 6]]
        rewards[:, [2, 5, 8]] = -problem.margins[:, [1, 4, 7]]
        rows = network.value_and_gradient(initial, items.x)[1]
        torch.testing.assert_close(interpolation_norm(rows, rewards, 3), problem.norm)

    def test_a_singular_gram_names_the_items_that_coincide(self):
        x = Key(1, (0,)).normal(9, 4)
        x[0, 7] = x[0, 6]
        rows = MLP(4, 20, 3).value_and_gradient(MLP(4, 20, 3).initial(Key(2, (0,))), x)[1]
        with pytest.raises(
            InputError, match=r"items 6 \(prompt 2, response 0\) and 7 \(prompt 2, response 1\) coincide"
        ):
            coordinates(rows, 3)
        narrow = MLP(4, 1, 2)
        rows = narrow.value_and_gradient(narrow.initial(Key(2, (0,))), Key(1, (0,)).normal(30, 4))[1]
        with pytest.raises(InputError, match="too few parameters"):
            coordinates(rows, 3)

    @pytest.mark.slow
    @given(seed=seeds, lam=st.sampled_from([0.1, 1.0, 20.0]), limit=st.sampled_from([0.5, 1.0, 50.0]))
    def test_fits_are_minima(self, seed, lam, limit):
        """Against scipy's BFGS on the same loss: values to 1e-8, θ to 1e-4."""
        rng = np.random.default_rng(seed)
        phi, counts = torch.from_numpy(rng.normal(size=(1, 6, 4))), tally_of(rng, 1, 6)
        link, centre = ExtendedLink(limit), torch.from_numpy(rng.normal(size=(1, 4)))
        theta, size = fit(phi, counts, torch.tensor([lam], dtype=F64), link, torch.zeros(1, 4, dtype=F64), centre)

        def objective(at):
            at = torch.from_numpy(at)[None]
            value = lam / 2 * (at - centre).square().sum(-1) - log_likelihood(times(phi, at), counts, link)
            return float(value)

        found = optimize.minimize(objective, np.zeros(4), tol=1e-10)
        assert float(size) < 1e-8
        assert objective(theta[0].numpy()) <= found.fun + 1e-8
        np.testing.assert_allclose(theta[0].numpy(), found.x, atol=1e-4)

    def test_counts_give_the_fit_of_the_cores_linearised_learner(self):
        """The same answers, one by one in the dual or as counts in coordinates: fitted differences to 1e-8."""
        key = Key(11, (0, 1))
        network = MLP(4, 16, 3)
        initial = network.initial(key.fold_in("network"))
        problem = Problem(Teacher(), key.fold_in("world"), 3, 3, 4)
        items = SyntheticArena(problem).offer(0).items
        every = Duels.within(3, 3).expand(2)
        picks = (key.fold_in("picks").uniform(40) * 9).long()
        won = (key.fold_in("won").uniform(40) < 0.6).to(F64)
        learner = TangentLearner(network, initial, 0.7)
        learner.fit(Labelled.of(items, every.take(picks), won))
        rows = network.value_and_gradient(initial, items.x)[1]
        phi = coordinates(rows, 3).differences(every).values
        zero = torch.zeros(2, 9, dtype=F64)
        counts = Counts(zero, zero).add(picks, won)
        theta, _ = fit(phi, counts, torch.full((2,), 0.7, dtype=F64), Logistic(), torch.zeros(2, 6, dtype=F64))
        torch.testing.assert_close(times(phi, theta), every.difference(learner.rewards(items)), rtol=1e-7, atol=1e-8)
        design, reference = PrimalDesign.weighted(Dense(phi), counts.asked, 3.0), GramDesign(3.0)
        reference.append(rows.differences(every.take(picks)))
        torch.testing.assert_close(design.widths(Dense(phi)), reference.widths(rows.differences(every)))
        torch.testing.assert_close(design.information(), reference.information())

    @given(limit=st.floats(0.2, 6), margin=st.floats(-12, 12))
    def test_the_extended_link_is_logistic_inside_and_never_flatter_than_kappa(self, limit, margin):
        m = torch.tensor(margin, dtype=F64, requires_grad=True)
        link = ExtendedLink(limit)
        (slope,) = torch.autograd.grad(link.primitive(m), m)
        assert float(slope) == pytest.approx(float(link.value(m)), rel=1e-9)
        (slope,) = torch.autograd.grad(link.value(m), m)
        assert float(slope) == pytest.approx(float(link.slope(m)), rel=1e-9)
        assert float(link.slope(m)) >= kappa(limit) * (1 - 1e-12)
        if abs(margin) <= limit:
            assert float(link.primitive(m)) == float(Logistic().primitive(m))


class TestCertificate:
    @given(limit=st.floats(0.2, 6), margin=st.floats(-9, 9))
    def test_secant_weights_are_the_least_ratio_on_a_grid(self, limit, margin):
        """Against brute force over 2001 differences, to 1e-5."""
        link = ExtendedLink(limit)
        m = torch.tensor([margin], dtype=F64)
        grid = torch.linspace(-limit, limit, 2001, dtype=F64)
        step = grid - m
        gap = link.primitive(m + step) - link.primitive(m) - link.value(m) * step
        ratio = (2 * gap / step.square())[step.abs() > 1e-3]
        least = float(certificate.secant(m, link))
        assert least <= float(ratio.min()) + 1e-5
        assert least >= min(float(ratio.min()), float(link.slope(m))) - 1e-5
        assert least >= kappa(limit) * (1 - 1e-9)

    @pytest.mark.slow
    @given(mean=st.floats(-6, 6), deviation=st.floats(0.01, 3))
    def test_expected_softplus_is_the_integral(self, mean, deviation):
        def integrand(z):
            return np.logaddexp(0, mean + deviation * z) * stats.norm.pdf(z)

        exact = integrate.quad(integrand, -12, 12)[0]
        found = certificate.expected_softplus(torch.tensor(mean, dtype=F64), torch.tensor(deviation**2, dtype=F64))
        assert float(found) == pytest.approx(exact, abs=1e-7)

    @pytest.mark.slow
    @given(seed=seeds)
    @settings(max_examples=10)
    def test_evidence_is_below_the_integral_and_near_it(self, seed):
        """One dimension, so that ``E_Q exp ℓ`` can be integrated: at most 1e-6 above it, at most 2 nats below."""
        rng = np.random.default_rng(seed)
        phi, counts = torch.from_numpy(rng.normal(size=(1, 3, 1))), tally_of(rng, 1, 3, 9)
        centres = certificate.fit_centres(phi, counts, 1.0, 50.0)
        direction, asked, won = phi[0, :, 0].numpy(), counts.asked[0].numpy(), counts.won[0].numpy()
        total = 0.0
        for centre in centres:
            scale = centre.precision**-0.5

            def integrand(z, scale=scale):
                margin = direction * z * scale
                return math.exp(won @ margin - asked @ np.logaddexp(0, margin)) * stats.norm.pdf(z)

            total += integrate.quad(integrand, -9, 9, points=[0.0], limit=400)[0] / len(centres)
        found = float(certificate.evidence(phi, counts, centres))
        assert math.log(total) - 2 < found <= math.log(total) + 1e-6

    @pytest.mark.slow
    @given(seed=seeds)
    @settings(max_examples=10)
    def test_the_certificate_holds_whenever_the_evidence_does(self, seed):
        """The deterministic half: where ``-ℓ(θ*) <= log 1/δ - evidence``, every duel of a θ* in the ball is covered."""
        rng = np.random.default_rng(seed)
        phi, counts = torch.from_numpy(rng.normal(size=(1, 8, 4))), tally_of(rng, 1, 8)
        limit, norm, delta = 2.0, 1.5, 0.05
        centres = certificate.fit_centres(phi, counts, 1.0, limit)
        told = float(certificate.evidence(phi, counts, centres))
        made = certificate.certify(phi, counts, centres, torch.tensor([norm], dtype=F64), limit, delta)
        theta, _ = fit(phi, counts, torch.ones(1, dtype=F64), Logistic(), torch.zeros(1, 4, dtype=F64))
        width = made.width(phi, theta)
        checked = 0
        for _ in range(300):
            truth = torch.from_numpy(rng.normal(size=(1, 4)))
            truth = truth * (norm * rng.random() / float(torch.linalg.vector_norm(truth)))
            inside = float(times(phi, truth).abs().max()) <= limit
            if inside and -float(log_likelihood(times(phi, truth), counts, Logistic())) <= math.log(1 / delta) - told:
                checked += 1
                assert (times(phi, truth - theta).abs() <= width * (1 + 1e-9) + 1e-12).all()
        assert checked > 0

    @pytest.mark.slow
    def test_no_certificate_is_below_the_floor(self):
        """The certificate, Proposition 1 and the exact bound all lie above the two-point floor."""
        key = Key(2, tuple(range(6)))
        for sampling in ("random", "active"):
            found = play(Trial(Setting(4, 3), sampling, rounds=6, batch=4, certificates=2), key)
            assert (found["gain_possible"] >= 1).all()
            assert (found["above_floor"] >= 1).all()

    def test_the_floor_of_an_unseen_duel_is_its_prior(self):
        problem = TangentWorld.of(Setting(2, 3), Key(4, (0,)))
        zero = torch.zeros(1, 6, dtype=F64)
        lowest = floor(problem, Counts(zero, zero))
        torch.testing.assert_close(lowest, problem.norm * torch.linalg.vector_norm(problem.features, dim=-1))


class TestTrials:
    def test_every_bound_is_what_the_formula_says(self):
        """One answered round, every quantity again from P x P matrices."""
        key = Key(8, (0, 1, 2))
        trial = Trial(Setting(2, 3, width=8), "repeated", rounds=1, batch=3, certificates=0)
        found = play(trial, key)
        problem = TangentWorld.of(trial.setting, key.fold_in("world"))
        for r in range(3):
            phi = problem.features[r].numpy()
            v = trial.ridge * np.eye(4)
            pick = int(np.argmax(np.abs(problem.margins[r].numpy())))
            v += 3 * np.outer(phi[pick], phi[pick])
            information = np.linalg.slogdet(v / trial.ridge)[1]
            assert found["information"][r] == pytest.approx(information)
            norm = float(problem.norm[r])
            noise = math.sqrt(information + 2 * math.log(20)) / trial.kappa
            assert found["gamma"][r] == pytest.approx(noise + norm * math.sqrt(1 / trial.kappa) + 1)

    @pytest.mark.slow
    @pytest.mark.parametrize("sampling", ["random", "active"])
    def test_chain_rule_and_potential(self, sampling):
        found = play(Trial(Setting(2, 3), sampling, rounds=30, certificates=0), Key(1, (0, 1)))
        assert (found["chain"] < 1e-9).all()
        assert (found["potential"] <= 1).all()

    @pytest.mark.slow
    def test_a_design_that_misses_answers_breaks_the_chain_rule(self):
        missing = Trial(Setting(2, 3), "random", rounds=60, certificates=0, corruption="unrecorded")
        assert (play(missing, Key(1, (0, 1)))["chain"] > 0.1).all()

    @pytest.mark.slow
    def test_replicates_do_not_see_each_other(self):
        """A replicate alone gives the numbers it gives among others (to rounding of batched linear algebra)."""
        trial = Trial(Setting(2, 3), "adversary", rounds=25, certificates=3)
        many, one = play(trial, Key(6, (0, 1, 2, 3))), play(trial, Key(6, (2,)))
        for name in many:
            np.testing.assert_allclose(many[name][2], one[name][0], rtol=1e-6, atol=1e-8, err_msg=name)

    def test_the_oracle_bias_and_noise_are_the_second_order_error(self):
        """Mean square error over 400 answered worlds of one design within 25 % of noise² + bias²; 4 standard errors."""
        rng = np.random.default_rng(0)
        phi = torch.from_numpy(rng.normal(size=(1, 5, 3)))
        theta = torch.from_numpy(rng.normal(size=(1, 3))) * 0.3
        asked = torch.full((1, 5), 40.0, dtype=F64)
        chance = torch.sigmoid(times(phi, theta))
        won = torch.from_numpy(rng.binomial(40, chance.expand(400, 5).numpy())).to(F64)
        many = phi.expand(400, 5, 3)
        counts = Counts(asked.expand(400, 5), won)
        fitted, _ = fit(many, counts, torch.full((400,), 4.0, dtype=F64), Logistic(), torch.zeros(400, 3, dtype=F64))
        duels = Duels(torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.int64))
        problem = TangentWorld(phi, theta, theta, duels, 2)
        expected = predictors(problem, Counts(asked, asked * chance), theta, 4.0, 10.0)["oracle"][0]
        measured = times(many, fitted - theta).square().mean(0).sqrt()
        torch.testing.assert_close(measured, expected, rtol=0.25, atol=0)

    def test_bad_trials_are_refused(self):
        for wrong in ({"rounds": 0}, {"delta": 1.0}, {"oracle": "oracle"}, {"regularisation": 0.0}):
            with pytest.raises(InputError):
                Trial(**wrong)
        for wrong in ({"largest": 0.0}, {"responses": 1}, {"truth": "true"}, {"depth": 1}):
            with pytest.raises(InputError):
                Setting(**wrong)


class TestOrders:
    def test_the_declared_order_has_its_logarithm(self):
        low, high = 64, 4096
        exact = math.log((high ** (-1 / 6) * math.log(high) ** 0.5) / (low ** (-1 / 6) * math.log(low) ** 0.5))
        assert orders.declared([64, 512, 4096]) == pytest.approx(exact / math.log(high / low))

    def test_differences_of_gradients_and_kernels(self):
        key = Key(9, (0, 1))
        network = MLP(3, 6, 3)
        x = key.fold_in("x").normal(6, 3)
        a, b = (network.value_and_gradient(network.initial(key.fold_in(k)), x)[1] for k in "ab")
        expected = torch.linalg.vector_norm(a.dense().values - b.dense().values, dim=-1)
        torch.testing.assert_close(orders._between(a, b), expected)
        duels = Duels.within(2, 3).expand(2)
        dense = a.dense().differences(duels).values
        torch.testing.assert_close(orders._duel_gram(a, duels), dense @ dense.mT)

    @pytest.mark.slow
    def test_a_wide_network_is_near_its_linearisation(self):
        found = {}
        for width in (8, 512):
            place = orders.Place("width", 2, width, 1.0)
            *_, found[width] = orders.measure(place, (4, 8), 6, Key(0, (0, 1, 2)))
        for name in ("epsilon", "gradient", "kernel", "width", "logdet"):
            assert found[512][name].mean() < found[8][name].mean(), name
        assert (found[8]["distance"] <= 1).all()


class TestGreedy:
    def test_ratio_is_brute_force(self):
        key = Key(4, (0, 1))
        found = greedy_ratio(key, pool=6, picks=2, dim=3)
        rows = key.fold_in("rows").normal(6, 3) * (1 + 3 * key.fold_in("scale").uniform(6, 1))
        for r in range(2):
            gains = {
                pair: float(torch.logdet(torch.eye(2, dtype=F64) + rows[r, list(pair)] @ rows[r, list(pair)].mT))
                for pair in itertools.combinations(range(6), 2)
            }
            widths = rows[r].square().sum(-1)
            first, least = int(widths.argmax()), int(widths.argmin())
            greedy = max(gain for pair, gain in gains.items() if first in pair)
            assert found["greedy"][r] == pytest.approx(greedy / max(gains.values()))
            narrow = min(gain for pair, gain in gains.items() if least in pair)
            assert found["narrow"][r] == pytest.approx(narrow / max(gains.values()))

    def test_greedy_keeps_its_guarantee_and_the_narrowest_duels_do_not(self):
        """``1 - 1/e`` of the best choice (Nemhauser, Wolsey and Fisher 1978), in every one of 200 pools."""
        found = greedy_ratio(Key(7, tuple(range(200))))
        assert (found["greedy"] >= 1 - 1 / math.e).all()
        assert (found["narrow"] < 1 - 1 / math.e).any()

    @given(seed=seeds)
    @settings(max_examples=10)
    def test_what_was_answered_tells_no_more_than_all_duels_would(self, seed):
        """``log det(V/ρ) <= d̃``, the same of all duels."""
        rows = Dense(Key(seed, (0, 1)).normal(8, 5))
        some, every = GramDesign(0.7), GramDesign(0.7)
        some.append(Dense(rows.values[:, :3]))
        every.append(rows)
        assert (some.information() <= every.information()).all()


class TestRegret:
    @pytest.mark.slow
    def test_the_optimistic_step_bounds_regret(self):
        found = optimism(Setting(1, 4, width=8), 30, 1.0, 0.05, Key(3, tuple(range(8))))
        assert (found["worst"] <= 1).all()
        assert (found["regret"] <= found["bound"]).all()
        assert (found["regret"] >= 0).all()


class TestTransformers:
    @pytest.mark.parametrize("rank", [0, 2])
    def test_gradients_are_finite_differences(self, rank):
        key = Key(1)
        model = transformers.Transformer.draw(8, rank, key.fold_in("model"))
        tokens = (key.fold_in("t").uniform(10) * 24).long()
        theta = 0.3 * key.fold_in("theta").normal(model.parameters)
        gradient = torch.func.grad(model.log_probability)(theta, tokens)
        assert float(torch.linalg.vector_norm(gradient)) > 0
        for place in range(0, model.parameters, model.parameters // 7):
            e = torch.zeros_like(theta)
            e[place] = 1e-5
            step = model.log_probability(theta + e, tokens) - model.log_probability(theta - e, tokens)
            assert float(step / 2e-5) == pytest.approx(float(gradient[place]), abs=1e-6)

    def test_probabilities_of_all_next_tokens_add_to_one_and_the_future_is_not_seen(self):
        model = transformers.Transformer.draw(8, 2, Key(2))
        theta, tokens = torch.zeros(model.parameters, dtype=F64), torch.arange(10)
        last = torch.stack([torch.cat([tokens[:-1], torch.tensor([v])]) for v in range(24)])
        total = torch.stack([model.log_probability(theta, row) for row in last])
        assert float(torch.logsumexp(total, 0)) == pytest.approx(float(model.log_probability(theta, tokens[:-1])))
        theta = 0.3 * Key(3).normal(model.parameters)
        total = torch.stack([model.log_probability(theta, row) for row in last])
        assert float(torch.logsumexp(total, 0)) == pytest.approx(float(model.log_probability(theta, tokens[:-1])))

    def test_the_fit_is_the_linearised_one_where_the_model_is_linear(self):
        rng = np.random.default_rng(0)
        rows, won = torch.from_numpy(rng.normal(size=(6, 5))), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)
        duels = Duels(torch.tensor([0, 1, 3, 4]), torch.tensor([1, 2, 4, 5]))
        theta, size = transformers.fit(lambda t: rows @ t, lambda t: rows, won, duels, torch.zeros(5, dtype=F64), 0.5)
        phi = (rows[duels.first] - rows[duels.second])[None]
        counts = Counts(torch.ones(1, 4, dtype=F64), won[None])
        exact, _ = fit(phi, counts, torch.tensor([0.5], dtype=F64), Logistic(), torch.zeros(1, 5, dtype=F64))
        assert size < 1e-6
        torch.testing.assert_close(theta, exact[0], atol=1e-6, rtol=1e-6)

    def test_lora_begins_with_no_gradient_by_a(self):
        """``B0 = 0``: in the first round only the B-gradients say anything."""
        model = transformers.Transformer.draw(8, 2, Key(5))
        zero = torch.zeros(model.parameters, dtype=F64)
        gradient = torch.func.grad(model.log_probability)(zero, torch.arange(10))
        blocks = gradient.split([a * b for a, b in model.shapes])
        assert all(bool((block == 0).all()) for block in blocks[::2])
        assert all(bool((block != 0).any()) for block in blocks[1::2])

    @pytest.mark.slow
    def test_a_transformer_leaves_its_linearisation(self):
        found = transformers.drift(8, 2, 3, 4, 1.0, Key(5))
        assert found["gradient_norm"] < 1e-3
        assert found["epsilon"] > 0


class TestInvariance:
    def test_a_shift_of_the_reward_moves_no_pick_unless_responses_are_normalised(self):
        """A c(x) with gradients of its own cancels in every duel; scaling responses before the difference ends that."""
        key = Key(3, (0, 1, 2))
        scene = Scene.of(8, 30, key)
        shift = key.fold_in("shift").normal(30, scene.gradients["current"].shape[-1])
        for after, kept in (("none", True), ("duel", True), ("response", False)):
            before, moved = scene.shifted(shift, after)
            assert (overlap(before, moved) == 1).all() == kept, after


@pytest.mark.parametrize("beta", [0.5, 2.0])
class TestDPO:
    """Identities of ``r_θ = β log π_θ/π_ref``: they hold for any answers, so they test the code, not the theory."""

    @pytest.fixture
    def case(self, beta):
        key = Key(6, (0, 1, 2))
        network = MLP(4, 16, 3)
        initial = network.initial(key.fold_in("network"))
        arena = SyntheticArena(Problem(Teacher(), key.fold_in("world"), 8, 4, 4))
        items = arena.offer(0).items
        duels = Duels.within(8, 4).expand(3)
        asked = duels.take(key.fold_in("order").uniform(duels.count).argsort(-1)[..., :20])
        return key, network, initial, arena, items, duels, Labelled.of(items, asked, arena.label(asked))

    def fitted(self, kind, case, *settings):
        _, network, initial, _, _, _, past = case
        learner = kind(network, initial, *settings)
        learner.fit(past)
        return learner

    def test_the_normaliser_cancels_in_margins_features_and_loss(self, case, beta):
        _, network, initial, _, items, duels, past = case
        policy = self.fitted(PolicyLearner, case, 1.0, beta)
        score = NeuralLearner(network, initial, 1.0, beta)
        score.restore(policy.state())
        tight = {"rtol": 0, "atol": 1e-9}
        rewards = policy.rewards(items), score.rewards(items)
        torch.testing.assert_close(*(duels.difference(r) for r in rewards), **tight)
        rows = (learner.features(items, "current", "all").differences(duels) for learner in (policy, score))
        torch.testing.assert_close(*(r.dense().values for r in rows), **tight)
        torch.testing.assert_close(*(loss(past.duels.difference(r), past.outcome) for r in rewards), **tight)

    def test_a_shift_of_the_truth_changes_no_probability(self, case, beta):
        key, _, _, arena, _, duels, _ = case
        shift = 3 * key.fold_in("shift").normal(8).repeat_interleave(4, -1)
        before, after = duels.difference(arena.rewards), duels.difference(arena.rewards + shift)
        torch.testing.assert_close(torch.sigmoid(after), torch.sigmoid(before), rtol=0, atol=1e-9)

    def test_beta_is_a_ridge(self, case, beta):
        """Margins fitted with (β, λ) are those with (1, λ/β²), linearised."""
        items, duels = case[4], case[5]
        scaled, ridged = (self.fitted(TangentLearner, case, *s) for s in ((1.0, beta), (1 / beta**2, 1.0)))
        margins = [duels.difference(learner.rewards(items)) for learner in (scaled, ridged)]
        torch.testing.assert_close(*margins, rtol=0, atol=1e-6)
