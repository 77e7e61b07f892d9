"""Properties of every piece of mathematics, each against a slow, obvious float64 reference."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from scipy.stats import norm

from bandits.core import oracles as btl
from bandits.core import rows as row_sets
from bandits.core.bounds import interpolation_norm, linearised, proposition
from bandits.core.design import Design, DiagonalDesign, GramDesign, IdentityDesign, PrimalDesign, WhitenedDesign
from bandits.core.duels import Duels, gather
from bandits.core.errors import InputError
from bandits.core.greedy import greedy
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.core.sketches import CountSketch, Rademacher
from bandits.sim.networks import MLP
from bandits.sim.problem import Inputs, Problem, SyntheticArena, answer
from bandits.sim.truths import Cosine, Linear, Square, TangentTeacher

seeds = st.integers(0, 10**6)
margins = st.floats(-30, 30)


def rows(seed: int, n: int, d: int, lead: tuple[int, ...] = ()) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((*lead, n, d)))


def reference_design(past: torch.Tensor, ridge: float) -> torch.Tensor:
    return ridge * torch.eye(past.shape[-1], dtype=past.dtype) + past.mT @ past


def reference_greedy(pool: torch.Tensor, v: torch.Tensor, count: int, metric: str = "full") -> list[int]:
    """Pick one by one with an explicit ``V``, of which only what the metric keeps is used."""
    picks: list[int] = []
    for _ in range(count):
        kept = {"full": v, "diagonal": torch.diag(v.diagonal()), "identity": torch.eye(len(v), dtype=v.dtype)}[metric]
        inverse = torch.linalg.inv(kept)
        widths = [float(f @ inverse @ f) if i not in picks else -1.0 for i, f in enumerate(pool)]
        picks.append(int(np.argmax(widths)))
        v = v + torch.outer(pool[picks[-1]], pool[picks[-1]])
    return picks


class TestBTL:
    @given(a=margins, b=margins)
    def test_probabilities_of_the_two_sides_add_to_one(self, a, b):
        margin = torch.tensor([[a - b, b - a]], dtype=torch.float64)
        places = torch.tensor([[0, 1]]), torch.tensor([[1, 0]])
        for oracle in (btl.BTL(), btl.BTL(3.0), btl.Flipped(0.3), btl.Probit(), btl.Intransitive(), btl.Noiseless()):
            assert oracle.probability(margin, places, 3).sum() == pytest.approx(1.0, abs=1e-12)

    @given(margin=margins, other=margins)
    def test_probabilities_are_those_of_their_names(self, margin, other):
        d = margin - other
        x, places = torch.tensor([d], dtype=torch.float64), (torch.tensor([0]), torch.tensor([2]))
        for oracle, want in (
            (btl.BTL(), special.expit(d)),
            (btl.BTL(4.0), special.expit(d / 4)),
            (btl.Flipped(), special.expit(-d)),
            (btl.Flipped(0.2), 0.8 * special.expit(d) + 0.2 * special.expit(-d)),
            (btl.Probit(), norm.cdf(2 * d)),
            (btl.Probit(0.6), norm.cdf(0.6 * d)),
            (btl.Intransitive(), special.expit(d + 2 * math.sin(4 * math.pi / 3))),
            (btl.Noiseless(), 0.5 if d == 0 else float(d > 0)),
        ):
            assert float(oracle.probability(x, places, 3)) == pytest.approx(want, rel=1e-9, abs=1e-14)

    @given(margin=margins)
    def test_slope_is_the_derivative_of_the_link_and_kappa_its_least_value(self, margin):
        x = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
        torch.sigmoid(x).backward()
        assert float(btl.slope(x.detach())) == pytest.approx(float(x.grad), rel=1e-9)
        assert btl.kappa(abs(margin)) == pytest.approx(float(btl.slope(x.detach())), rel=1e-9)
        grid = torch.linspace(-abs(margin), abs(margin), 101, dtype=torch.float64)
        assert float(btl.slope(grid).min()) >= btl.kappa(abs(margin)) * (1 - 1e-9)

    @given(seed=seeds, shift=st.floats(-5, 5))
    def test_answers_are_blind_to_a_shift_per_prompt(self, seed, shift):
        rng = np.random.default_rng(seed)
        rewards, uniforms = torch.from_numpy(rng.normal(size=(1, 12))), torch.from_numpy(rng.random((1, 4, 3, 3)))
        prompt, first, second = torch.from_numpy(rng.integers(0, (4, 3, 3), (1, 9, 3))).unbind(-1)
        duels = Duels(3 * prompt + first, 3 * prompt + second)
        moved = rewards + shift * torch.arange(4).repeat_interleave(3)
        # equal up to rounding of the margin: a uniform number within 1e-9 of a probability is not drawn here
        assert torch.equal(answer(btl.BTL(), uniforms, rewards, duels), answer(btl.BTL(), uniforms, moved, duels))

    def test_exchanged_sides_give_the_exchanged_answer(self, arena, items):
        duels = Duels.within(8, 3).expand(3)
        there, back = arena.label(duels), arena.label(Duels(duels.second, duels.first))
        assert torch.equal(there, 1 - back)

    def test_sampled_answers_follow_the_probability(self):
        """Binomial test at level 1e-6 on 20,000 duels of one margin."""
        key = Key(3, (0,))
        uniforms = key.fold_in("u").uniform(20_000, 2, 2)
        rewards = torch.tensor([0.8, 0.0], dtype=torch.float64).repeat(20_000)[None]
        duels = Duels(2 * torch.arange(20_000)[None], 2 * torch.arange(20_000)[None] + 1)
        share = float(answer(btl.BTL(), uniforms, rewards, duels).double().mean())
        p = 1 / (1 + math.exp(-0.8))
        assert abs(share - p) < 4.9 * math.sqrt(p * (1 - p) / 20_000)

    def test_an_intransitive_oracle_has_a_cycle(self):
        first, second = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 0]])
        win = btl.Intransitive(2.0).probability(torch.zeros(1, 3, dtype=torch.float64), (first, second), 3)
        assert (win > 0.8).all()

    def test_bad_oracles_are_refused(self):
        with pytest.raises(InputError, match="temperature"):
            btl.BTL(0.0)
        with pytest.raises(InputError, match="flip"):
            btl.Flipped(1.5)


class TestNetwork:
    @pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
    @pytest.mark.parametrize("depth", [2, 3, 4])
    def test_factored_gradients_are_autograd(self, key, activation, depth):
        network = MLP(4, 9, depth, activation)
        weights, x = network.initial(key.fold_in("w")), key.fold_in("x").normal(5, 4)
        values, gradient = network.value_and_gradient(weights, x)
        dense = gradient.dense().values
        assert dense.shape[-1] == network.parameters
        torch.testing.assert_close(values, network.value(weights, x))
        for r in range(3):
            leaves = [w[r].clone().requires_grad_() for w in weights]
            for i in range(5):
                expected = torch.autograd.grad(network.value(tuple(leaves), x[r, i : i + 1]).squeeze(), leaves)
                torch.testing.assert_close(dense[r, i], torch.cat([e.flatten() for e in expected]))

    @pytest.mark.slow
    @pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
    def test_scale_is_kept_in_width_and_depth(self, activation):
        """``f`` and ``‖∇f‖²/L`` are O(1): within a factor of 3 over 40 draws, from m = 64 to 512."""
        for width in (64, 512):
            network, key = MLP(6, width, 3, activation), Key(0, tuple(range(40)))
            x = key.fold_in("x").normal(1, 6)
            x = x * math.sqrt(6) / x.norm(dim=-1, keepdim=True)
            values, gradient = network.value_and_gradient(network.initial(key.fold_in("w")), x)
            assert 1 / 3 < float(values.square().mean()) < 3
            assert 1 / 3 < float(gradient.squares().mean()) / 3 < 3

    def test_batched_is_looped(self, key, network):
        weights, x = network.initial(key), key.fold_in("x").normal(6, 4)
        for r in range(3):
            alone = network.initial(key.only(r))
            for a, b in zip(alone, weights, strict=True):
                assert torch.equal(a[0], b[r])
            torch.testing.assert_close(network.value(alone, x[r : r + 1])[0], network.value(weights, x)[r])

    def test_bad_networks_are_refused(self):
        with pytest.raises(InputError, match="width"):
            MLP(3, 0)
        with pytest.raises(InputError, match="depth"):
            MLP(3, 4, 1)


class TestRows:
    def test_factored_duels_are_explicit_gradient_differences(self, key, network, items):
        gradient = network.value_and_gradient(network.initial(key), items.x)[1]
        duels = Duels.within(8, 3).expand(3)
        lazy, dense = gradient.differences(duels), gradient.dense().differences(duels)
        weights = key.fold_in("weights").uniform(duels.count)
        some = torch.tensor([[3, 1, 3], [0, 2, 5], [7, 7, 1]])
        for a, b in (
            (lazy, dense),
            (lazy.take(some), dense.take(some)),
            (lazy.scaled(weights), dense.scaled(weights)),
            (lazy.normalised(), dense.normalised()),
            (lazy.join(lazy.scaled(weights).take(some)), dense.join(dense.scaled(weights).take(some))),
        ):
            torch.testing.assert_close(a.dense().values, b.values)
            torch.testing.assert_close(a.inner(a), b.inner(b))
            torch.testing.assert_close(a.squares(), b.squares())

    def test_products_with_parameters(self, key, network, items):
        gradient = network.value_and_gradient(network.initial(key), items.x)[1]
        vector = network.initial(key.fold_in("v"))
        flat = torch.cat([v.flatten(1) for v in vector], -1)
        torch.testing.assert_close(gradient.times(vector), (gradient.dense().values @ flat[..., None]).squeeze(-1))
        weights = key.fold_in("weights").normal(items.x.shape[-2])
        combined = torch.cat([v.flatten(1) for v in gradient.combined(weights)], -1)
        torch.testing.assert_close(combined, (weights[:, None] @ gradient.dense().values).squeeze(-2))

    @given(seed=seeds, shift=st.floats(-3, 3))
    def test_duels_are_blind_to_a_common_vector_per_prompt(self, seed, shift):
        """Adding c(x) to the reward adds one vector to all gradients of a prompt: no φ changes."""
        values = rows(seed, 6, 4)
        moved = values + shift * rows(seed + 1, 2, 4).repeat_interleave(3, 0)
        duels = Duels.within(2, 3)
        a, b = Dense(values).differences(duels), Dense(moved).differences(duels)
        torch.testing.assert_close(a.values, b.values)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["count", "sparse", "rademacher"])
    def test_sketches_are_unbiased(self, kind):
        """Mean inner product over 400 draws lies within 4.5 standard errors (error rate 7e-6)."""
        a = Dense(rows(0, 3, 40))
        draws = []
        for i in range(400):
            key = Key(5).fold_in(i)
            if kind == "rademacher":
                sketch = Rademacher.draw(40, 16, key)
            else:
                sketch = CountSketch.draw(40, 16, key, 1 if kind == "count" else 4)
            b = sketch(a)
            draws.append(b.inner(b))
        stack = torch.stack(draws)
        error = (stack.mean(0) - a.inner(a)).abs()
        spread = stack.std(0) / math.sqrt(400)
        assert (error < 4.5 * spread + 1e-12).all()

    def test_a_sketch_needs_a_size(self):
        with pytest.raises(InputError, match="sketch"):
            CountSketch.draw(10, 0, Key(0))


@pytest.mark.slow
@pytest.mark.parametrize(("lead", "n"), [((), 1024), ((2,), 1333), ((), 1023)])
def test_a_large_gram_matrix_is_the_plain_product(lead, n):
    """By stripes from 1,024 rows on, mirrored; an equal set that is another object is multiplied plainly."""
    values = rows(0, n, 3, lead)
    one = Dense(values)
    torch.testing.assert_close(one.inner(one), values @ values.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.inner(one), one.inner(Dense(values.clone())), rtol=1e-12, atol=1e-12)
    with mock.patch("bandits.core.rows._gram", wraps=row_sets._gram) as by_stripes:
        one.inner(one)
    assert by_stripes.called == (n >= 1024)


class TestDesign:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "panel"), [(GramDesign, 128), (GramDesign, 3), (WhitenedDesign, 128), (PrimalDesign, 128)]
    )
    @given(seed=seeds, ridge=st.floats(0.05, 20), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6))
    def test_widths_and_information_are_those_of_the_explicit_matrix(self, kind, panel, seed, ridge, sizes):
        with mock.patch("bandits.core.design.PANEL", panel):
            self.compare_with_the_explicit_matrix(kind(ridge), seed, ridge, sizes)

    @staticmethod
    def compare_with_the_explicit_matrix(design, seed, ridge, sizes):
        pool = rows(seed, 6, 4, (2,))
        past = torch.zeros(2, 0, 4, dtype=torch.float64)
        before = design.widths(Dense(pool))
        for i, size in enumerate(sizes):
            new = rows(seed + 1 + i, size, 4, (2,))
            past = torch.cat([past, new], -2)
            design.append(Dense(new))
            after = design.widths(Dense(pool))
            assert (after <= before + 1e-9).all(), "a width grew"
            before = after
        for r in range(2):
            v = reference_design(past[r], ridge)
            expected = torch.einsum("nd,de,ne->n", pool[r], torch.linalg.inv(v), pool[r]).sqrt()
            torch.testing.assert_close(after[r], expected)
            logdet = torch.linalg.slogdet(v / ridge)[1]
            torch.testing.assert_close(torch.as_tensor(design.information())[r], logdet)
            column = design.condition(Dense(pool)).column(torch.tensor([2, 4]))
            torch.testing.assert_close(column[r], ridge * pool[r] @ torch.linalg.inv(v) @ pool[r, (2, 4)[r]])

    @pytest.mark.slow
    @given(
        seed=seeds,
        ridge=st.floats(0.05, 20),
        asked=st.integers(2, 30),
        weighted=st.booleans(),
        panel=st.sampled_from([4, 128]),
    )
    def test_the_two_forms_agree_on_factored_duels(self, seed, ridge, asked, weighted, panel):
        """Asked duels have items of their own, the pool's duels share items: both ways to their inner products."""
        key = Key(seed, replicates=(0, 1))
        network = MLP(3, 10, 3)  # wide enough that its middle layer is kept in factors
        weights = network.initial(key.fold_in("network"))
        x, old = key.fold_in("pool").normal(5, 3), key.fold_in("past").normal(2 * asked, 3)
        place = torch.arange(asked).expand(2, -1)
        past = network.value_and_gradient(weights, old)[1].differences(Duels(place, place + asked))
        pool = network.value_and_gradient(weights, x)[1].differences(Duels.within(1, 5, selves=True).expand(2))
        if weighted:
            past = past.scaled(key.fold_in("weights").uniform(asked))
            pool = pool.scaled(key.fold_in("others").uniform(pool.count))
        gram = past.dense().values @ past.dense().values.mT
        torch.testing.assert_close(past.inner(past), gram)
        torch.testing.assert_close(past.inner(past.scaled(torch.ones(2, asked, dtype=torch.float64))), gram)
        designs = GramDesign(ridge), WhitenedDesign(ridge)
        half = torch.arange(asked).expand(2, -1).split([asked // 2, asked - asked // 2], -1)
        for design in designs:
            with mock.patch("bandits.core.design.PANEL", panel):
                for part in half:
                    design.append(past.take(part))
        one, two = (design.condition(pool) for design in designs)
        torch.testing.assert_close(one.projections.mT @ one.projections, two.projections.mT @ two.projections)
        torch.testing.assert_close(one.residuals, two.residuals, rtol=1e-7, atol=1e-9)

    @given(seed=seeds, count=st.integers(1, 6), strided=st.booleans())
    def test_rows_are_gathered_replicate_by_replicate(self, seed, count, strided):
        values = rows(seed, 5, 4, (3,))
        values = values.mT.contiguous().mT if strided else values
        index = (Key(seed, replicates=(0, 1, 2)).uniform(count) * 5).long()
        for r in range(3):
            torch.testing.assert_close(gather(values, index)[r], values[r][index[r]], rtol=0, atol=0)

    @pytest.mark.slow
    @given(seed=seeds, ridge=st.floats(0.1, 10))
    def test_determinant_lemma_and_elliptical_potential(self, seed, ridge):
        """``log det`` grows by ``log(1 + w²)``; ``Σ min(1, w²) <= 2 log det(V/ridge)`` (Abbasi-Yadkori et al. 2011)."""
        design, potential = GramDesign(ridge), 0.0
        for i in range(12):
            row = Dense(rows(seed + i, 1, 5))
            width = float(design.widths(row)[0])
            old = float(design.information())
            design.append(row)
            assert float(design.information()) - old == pytest.approx(math.log1p(width**2), rel=1e-8)
            potential += min(1.0, width**2)
        assert potential <= 2 * float(design.information()) + 1e-9

    @given(
        seed=seeds,
        ridge=st.floats(0.1, 10),
        past=st.integers(0, 5),
        count=st.integers(1, 6),
        metric=st.sampled_from(["full", "diagonal", "identity"]),
        many=st.booleans(),
    )
    def test_greedy_is_the_naive_one_under_every_metric(self, seed, ridge, past, count, metric, many):
        pool, old = rows(seed, 8, 3, (2,)), rows(seed + 1, past, 3, (2,))
        design = Design.of(Dense(pool), ridge, metric, many)
        if past:
            design.append(Dense(old))
        available = torch.ones(2, 8, dtype=torch.bool)
        ties = Key(seed, (0, 1)).uniform(8)
        picks = greedy(design.condition(Dense(pool)), count, available, ties)
        for r in range(2):
            assert picks[r].tolist() == reference_greedy(pool[r], reference_design(old[r], ridge), count, metric)

    def test_greedy_is_within_its_guarantee_of_the_best_batch(self):
        from itertools import combinations

        for seed in range(10):
            pool = rows(seed, 7, 3)
            gain = {
                c: float(torch.linalg.slogdet(reference_design(pool[list(c)], 1.0))[1])
                for c in combinations(range(7), 3)
            }
            picks = greedy(
                GramDesign(1.0).condition(Dense(pool)), 3, torch.ones(7, dtype=torch.bool), Key(seed).uniform(7)
            )
            assert gain[tuple(sorted(picks.tolist()))] >= (1 - 1 / math.e) * max(gain.values())

    @given(seed=seeds)
    def test_greedy_is_blind_to_order_and_orientation(self, seed):
        pool = rows(seed, 8, 3)
        design = GramDesign(1.0)
        design.append(Dense(rows(seed + 1, 4, 3)))
        order = torch.from_numpy(np.random.default_rng(seed).permutation(8))
        signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], 8))
        free, ties = torch.ones(8, dtype=torch.bool), Key(seed).uniform(8)
        plain = greedy(design.condition(Dense(pool)), 4, free, ties)
        mixed = greedy(design.condition(Dense((pool * signs[:, None])[order])), 4, free, ties[order])
        assert order[mixed].tolist() == plain.tolist()

    def test_orthogonal_designs_for_the_controls(self):
        pool, past = Dense(rows(0, 5, 3)), Dense(rows(1, 6, 3))
        fixed, diagonal = IdentityDesign(2.0), DiagonalDesign(2.0)
        fixed.append(past)
        diagonal.append(past)
        torch.testing.assert_close(fixed.widths(pool), pool.squares().sqrt() / math.sqrt(2.0))
        v = torch.diag(reference_design(past.values, 2.0))
        torch.testing.assert_close(diagonal.widths(pool), (pool.values.square() / v).sum(-1).sqrt())

    @pytest.mark.parametrize(
        ("metric", "many", "dim", "form"),
        [
            ("full", False, 3, GramDesign),
            ("full", True, 3, PrimalDesign),
            ("full", True, 80, WhitenedDesign),
            ("diagonal", True, 3, DiagonalDesign),
            ("identity", False, 3, IdentityDesign),
        ],
    )
    def test_the_form_follows_from_the_rows_and_the_metric(self, metric, many, dim, form):
        """And none is a kind of another: a check for one form is not met by the next."""
        design = Design.of(Dense(rows(0, 5, dim)), 1.0, metric, many)
        assert type(design) is form
        forms = {GramDesign, WhitenedDesign, PrimalDesign, DiagonalDesign, IdentityDesign}
        assert not any(isinstance(design, other) for other in forms - {form})

    @given(seed=seeds, ridge=st.floats(0.05, 20))
    def test_weights_are_repeated_rows(self, seed, ridge):
        phi, past = Dense(rows(seed, 6, 3, (2,))), GramDesign(ridge)
        counts = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (2, 6))).double()
        design = PrimalDesign.weighted(phi, counts, ridge)
        past.append(phi.scaled(counts.sqrt()))
        torch.testing.assert_close(design.widths(phi), past.widths(phi))
        torch.testing.assert_close(design.information(), past.information())
        more = Dense(rows(seed + 1, 2, 3, (2,)))
        design.append(more)
        past.append(more)
        torch.testing.assert_close(design.widths(phi), past.widths(phi))

    def test_widths_are_computed_once(self):
        """A posterior is asked for its widths duel by duel by pages; the rows are passed over once."""
        posterior = GramDesign(1.0).condition(Dense(rows(0, 5, 3)))
        assert posterior.widths is posterior.widths

    @pytest.mark.parametrize("many", [False, True])
    @pytest.mark.parametrize("dim", [2, 80])
    def test_a_ridge_lost_in_rounding_is_refused_by_its_option(self, many, dim):
        """The same large row again and again, beside a ridge that float64 cannot add to its square."""
        row = Dense(rows(0, 1, dim).repeat(3, 1) * 1e8)
        with pytest.raises(InputError, match="--ridge"):
            Design.of(row, 1e-6, "full", many).append(row)

    def test_a_ridge_must_be_positive(self):
        for bad in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(InputError, match="ridge"):
                GramDesign(bad)


class TestBounds:
    def test_the_known_norm_interpolates_no_worse(self, key, network):
        """The tangent teacher's B is exact; the least norm on finitely many items is at most that, scaling included."""
        weights = network.initial(key)
        problem = Problem(TangentTeacher(1.7).beside(network, weights), key.fold_in("w"), 10, 3, 4)
        items, rewards = problem.everything()
        gradient = network.value_and_gradient(weights, items.x)[1]
        least = interpolation_norm(gradient, rewards, 3)
        assert (least <= 1.7 * problem.scale * (1 + 1e-6)).all()
        dense = gradient.differences(Duels.within(10, 3).expand(3)).dense().values
        for r in range(3):  # the reference: least-norm solution by the pseudo-inverse
            d = Duels.within(10, 3).difference(rewards[r])
            torch.testing.assert_close(least[r], (torch.linalg.pinv(dense[r]) @ d).norm(), rtol=1e-5, atol=1e-8)

    def test_coinciding_items_are_named(self, key, network):
        x = key.fold_in("x").normal(1, 4).expand(3, 6, 4).contiguous()
        gradient = network.value_and_gradient(network.initial(key), x)[1]
        with pytest.raises(InputError, match=r"singular: items \d \(prompt .* and \d .* coincide"):
            interpolation_norm(gradient, key.normal(6), 3)

    def test_too_few_parameters_are_told(self, key):
        """Two inputs and a linear kernel of rank 2: three differences cannot be independent."""
        with pytest.raises(InputError, match="too few parameters for 4 items"):
            interpolation_norm(Dense(key.normal(4, 2)), key.normal(4), 4)

    @given(kappa=st.floats(0.01, 0.25), lam=st.floats(0.01, 10), delta=st.floats(0.001, 0.5))
    def test_the_two_forms_of_the_exact_multiplier_agree(self, kappa, lam, delta):
        information, norm = torch.tensor([3.0]).double(), torch.tensor([2.0]).double()
        exact = linearised(information, norm, kappa, lam / kappa, lam, delta)
        noise = math.sqrt(3.0 + 2 * math.log(1 / delta)) / (2 * kappa)
        assert float(exact.total) == pytest.approx(noise + 2.0 * math.sqrt(lam / kappa), rel=1e-9)
        paper = proposition(information, norm, kappa, lam, delta)
        assert float(paper.noise) == pytest.approx(2 * noise)
        assert float(paper.total) > float(exact.total)

    @given(kappa=st.floats(0.01, 0.25), ridge=st.floats(0.1, 50), lam=st.floats(0.01, 10))
    def test_the_exact_multiplier_with_any_ridge_and_curvature(self, kappa, ridge, lam):
        found = linearised(torch.tensor([3.0]).double(), torch.tensor([2.0]).double(), kappa, ridge, lam, 0.05)
        want = (math.sqrt(3.0 + 2 * math.log(20)) / 2 + lam * 2.0 / math.sqrt(ridge)) / kappa
        assert float(found.total) == pytest.approx(want, rel=1e-9)

    @pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 2.0])
    def test_delta_is_a_probability(self, delta):
        one = torch.ones(1, dtype=torch.float64)
        with pytest.raises(InputError, match="δ"):
            proposition(one, one, 0.1, 1.0, delta)


def test_luck_is_a_value():
    key = Key(1, (0, 1, 2))
    assert torch.equal(key.fold_in("a", 3).uniform(4), key.fold_in("a", 3).uniform(4))
    assert not torch.equal(key.fold_in("a", 3).uniform(4), key.fold_in("a", 4).uniform(4))
    assert not torch.equal(key.fold_in("a").uniform(4), Key(2, (0, 1, 2)).fold_in("a").uniform(4))
    assert torch.equal(key.only(2).normal(5)[0], key.normal(5)[2])
    assert torch.equal(Key(1, tuple(range(9))).normal(5)[:3], key.normal(5))


class TestArena:
    def test_a_fixed_pool_offers_each_duel_once_and_begins_anew_at_round_0(self, key):
        problem = Problem(Cosine(), key, 3, 3, 4, rounds=3)
        arena = SyntheticArena(problem)
        for _ in range(2):
            offer = arena.offer(0)
            assert offer.available.all()
            assert not offer.lasting
            arena.label(Duels(offer.duels.second[:, :2], offer.duels.first[:, :2]))  # whichever side is named first
            assert arena.offer(1).available.sum(-1).tolist() == [7, 7, 7]
            assert not arena.offer(1).available[:, :2].any()

    def test_repeats_fresh_pools_and_self_duels_are_the_problems(self, key):
        again = SyntheticArena(Problem(Cosine(), key, 3, 3, 4, rounds=3, repeats=True))
        fresh = SyntheticArena(Problem(Cosine(), key, 3, 3, 4, rounds=3, fresh=True, selves=True))
        for arena, lasting, duels in ((again, True, 9), (fresh, False, 18)):
            arena.label(arena.offer(0).duels)
            offer = arena.offer(1)
            assert offer.duels.count == duels
            assert offer.available.all()
            assert offer.lasting == lasting

    def test_rewards_attain_their_bound(self, key):
        for truth in ("linear", "square", "cosine", "mlp", "ntk"):
            from bandits.sim.truths import TRUTHS

            network = MLP(4, 8)
            problem = Problem(TRUTHS[truth].beside(network, network.initial(key)), key, 20, 3, 4, bound=1.5)
            assert torch.allclose(problem.everything()[1].abs().amax(-1), torch.tensor(1.5, dtype=torch.float64))

    def test_a_truth_without_variation_is_refused(self, key):
        """A constant; one that differs between prompts alone; and rounding noise, in one dimension."""

        class Constant(Linear):
            def __call__(self, x, key):
                return torch.full(x.shape[:-1], 3.0, dtype=x.dtype)

        class ByPrompt(Linear):
            def __call__(self, x, key):
                return torch.arange(x.shape[-2]).div(3, rounding_mode="floor").to(x.dtype).expand(x.shape[:-1])

        class Broken(Linear):
            def __call__(self, x, key):
                return super().__call__(x, key) / 0.0

        for truth, dim in ((Constant(), 4), (ByPrompt(), 4), (Square(), 1), (Cosine(), 1)):
            with pytest.raises(InputError, match=f"the truth {type(truth).__name__} gives all responses"):
                Problem(truth, key, 20, 3, dim)
        with pytest.raises(InputError, match="NaN or infinite"):
            Problem(Broken(), key, 20, 3, 4)
        assert Problem(Linear(), key, 20, 3, 1).everything()[1].abs().max() == 1

    def test_bad_worlds_are_refused(self, key):
        with pytest.raises(InputError, match="3 or more dimensions"):
            Problem(Square(), key, 20, 3, 2, inputs="skewed")
        with pytest.raises(InputError, match="over its declared bound"):
            Problem(Square(), key, 20, 3, 4, bound=0.1, rescale=False)
        with pytest.raises(InputError, match="2 responses"):
            Problem(Square(), key, 20, 1, 4)
        with pytest.raises(InputError, match="round 3"):
            Problem(Square(), key, 20, 2, 4, rounds=3).table(3)

    def test_points_join_and_take(self, key):
        points = Inputs(key.normal(6, 2), 3)
        both = points.join(points)
        assert both.prompts == 4
        assert torch.equal(both.take(torch.tensor([[2], [0], [3]])).x[2], points.x[2, 3:])
