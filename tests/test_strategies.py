"""The contract of every strategy, and each rule against a slow, obvious statement of it."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandits.core.design import GramDesign
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import slope
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.selector import APLP, STRATEGIES, TS, UCB, ActiveDPO, CoLSTIM, DeltaUCB, FeatureSpace, Pool, select

PROMPTS, RESPONSES, DIM = 5, 3, 6
LUCK = Key(11, (0, 1))
every = pytest.mark.parametrize("name", list(STRATEGIES))


def make_pool(seed: int, selves: bool = False, prompts: int = PROMPTS) -> Pool:
    """A pool of random gradients and rewards in two replicates, with a few answered duels behind it."""
    rng = np.random.default_rng(seed)
    gradients = torch.from_numpy(rng.standard_normal((2, prompts * RESPONSES, DIM)))
    rewards = torch.from_numpy(rng.standard_normal((2, prompts * RESPONSES)))
    duels = Duels.within(prompts, RESPONSES, selves).expand(2)
    design = GramDesign(1.5)
    design.append(Dense(torch.from_numpy(rng.standard_normal((2, 4, DIM)))))
    available = torch.from_numpy(rng.random((2, duels.count)) < 0.8)
    available[:, :3] = True
    entropy = torch.from_numpy(rng.random((2, prompts)))
    return Pool(duels, rewards, design.condition(Dense(gradients).differences(duels)), available, RESPONSES, entropy)


def reordered(pool: Pool, order: torch.Tensor) -> Pool:
    """The same duels in another order."""
    index = order.expand(2, -1)
    seen = dataclasses.replace(
        pool.features, rows=pool.features.rows.take(index), projections=pool.features.projections[..., order]
    )
    return dataclasses.replace(
        pool, duels=pool.duels.take(index), features=seen, available=pool.available.gather(-1, index)
    )


def turned(pool: Pool) -> Pool:
    """The same duels with the two sides exchanged: every φ changes its sign."""
    seen = dataclasses.replace(
        pool.features,
        rows=pool.features.rows.scaled(-torch.ones_like(pool.margins)),
        projections=-pool.features.projections,
    )
    return dataclasses.replace(pool, duels=pool.duels.swapped(), features=seen)


@every
class TestContract:
    def test_picks_are_distinct_and_available_and_repeatable(self, name):
        for seed in range(5):
            pool = make_pool(seed)
            picks = select(pool, STRATEGIES[name], 3, LUCK)
            assert picks.shape == (2, 3)
            assert all(len(set(row)) == 3 for row in picks.tolist())
            assert pool.available.gather(-1, picks).all()
            assert torch.equal(picks, select(pool, STRATEGIES[name], 3, LUCK))

    def test_it_can_empty_the_pool(self, name):
        pool = dataclasses.replace(make_pool(1), available=torch.ones(2, PROMPTS * 3, dtype=torch.bool))
        picks = select(pool, STRATEGIES[name], pool.duels.count, LUCK)
        assert all(sorted(row) == list(range(pool.duels.count)) for row in picks.tolist())

    def test_a_replicate_alone_picks_what_it_picks_in_company(self, name):
        pool = make_pool(2)
        both = select(pool, STRATEGIES[name], 4, LUCK)
        for r in range(2):
            seen = dataclasses.replace(
                pool.features,
                rows=Dense(pool.features.rows.dense().values[r : r + 1]),
                projections=pool.features.projections[r : r + 1],
            )
            alone = Pool(
                Duels(pool.duels.first[r : r + 1], pool.duels.second[r : r + 1]),
                pool.rewards[r : r + 1],
                seen,
                pool.available[r : r + 1],
                RESPONSES,
                pool.entropy[r : r + 1],
            )
            assert torch.equal(select(alone, STRATEGIES[name], 4, LUCK.only(r))[0], both[r])

    def test_sides_and_common_shifts_do_not_matter(self, name):
        """Exchanging a duel's sides, or adding c(x) to the rewards of a prompt, changes no pick."""
        for seed in range(5):
            pool = make_pool(seed)
            plain = select(pool, STRATEGIES[name], 4, LUCK)
            assert torch.equal(select(turned(pool), STRATEGIES[name], 4, LUCK), plain)
            shift = torch.arange(PROMPTS, dtype=torch.float64).repeat_interleave(RESPONSES)
            moved = dataclasses.replace(pool, rewards=pool.rewards + shift)
            assert torch.equal(select(moved, STRATEGIES[name], 4, LUCK), plain)

    def test_the_order_of_the_pool_does_not_matter(self, name):
        """But for the strategies that draw per duel: Random (its ties)."""
        if name == "random":
            pytest.skip("Random's draw belongs to the position in the pool")
        pool = make_pool(3)
        order = torch.from_numpy(np.random.default_rng(0).permutation(pool.duels.count))
        picks = select(reordered(pool, order), STRATEGIES[name], 4, LUCK)
        assert torch.equal(order[picks], select(pool, STRATEGIES[name], 4, LUCK))

    def test_what_cannot_be_picked_from_is_refused(self, name):
        pool, strategy = make_pool(4), STRATEGIES[name]
        with pytest.raises(InputError, match="picks asked"):
            select(pool, strategy, pool.duels.count + 1, LUCK)
        with pytest.raises(InputError, match="picks asked"):
            select(pool, strategy, 0, LUCK)
        rewards = pool.rewards.clone()
        rewards[1, 2] = torch.nan
        with pytest.raises(InputError, match="reward is NaN"):
            select(dataclasses.replace(pool, rewards=rewards), strategy, 2, LUCK)
        values = pool.features.rows.dense().values.clone()
        values[0, 1, 1] = torch.inf
        broken = dataclasses.replace(pool.features, rows=Dense(values))
        with pytest.raises(InputError, match="feature is NaN"):
            select(dataclasses.replace(pool, features=broken), strategy, 2, LUCK)


class TestRules:
    @given(seed=st.integers(0, 10**6))
    def test_uncertainty_of_the_label_is_the_smallest_margin(self, seed):
        pool = make_pool(seed)
        picks = select(pool, STRATEGIES["label-entropy"], 3, LUCK)
        for r in range(2):
            ranked = sorted(
                (abs(float(pool.margins[r, i])), i) for i in range(pool.duels.count) if pool.available[r, i]
            )
            assert picks[r].tolist() == [i for _, i in ranked[:3]]

    @given(seed=st.integers(0, 10**6))
    def test_aplp_keeps_uncertain_prompts_then_takes_wide_margins(self, seed):
        pool = make_pool(seed)
        picks = select(pool, APLP(keep=0.4), 2, LUCK)
        for r in range(2):
            kept = sorted(range(PROMPTS), key=lambda p: -float(pool.entropy[r, p]))[:2]
            free = [i for i in range(pool.duels.count) if pool.available[r, i]]
            inside = [i for i in free if int(pool.prompts[r, i]) in kept]
            ranked = sorted(inside, key=lambda i: -abs(float(pool.margins[r, i])))
            assert picks[r].tolist()[: len(ranked)] == ranked[:2]

    def test_random_is_uniform(self):
        """Chi-square over 15 duels and 6,000 draws at level 1e-5."""
        from scipy.stats import chisquare

        pool = dataclasses.replace(make_pool(0), available=torch.ones(2, 15, dtype=torch.bool))
        counts = np.zeros(15)
        for i in range(3000):
            for row in select(pool, STRATEGIES["random"], 1, LUCK.fold_in(i)).tolist():
                counts[row[0]] += 1
        assert chisquare(counts).pvalue > 1e-5

    @given(seed=st.integers(0, 10**6), nu=st.floats(0, 3))
    def test_two_arms_on_one_prompt_are_those_of_the_paper(self, seed, nu):
        """UCB, Thompson, DeltaUCB and DRTS on one prompt, arm by arm, every arm against itself included."""
        pool = make_pool(seed, selves=True, prompts=1)
        pool = dataclasses.replace(pool, available=torch.ones(2, 6, dtype=torch.bool))
        draws = LUCK.fold_in("strategy").fold_in("thompson").normal(RESPONSES)
        names = {"ucb": UCB(nu), "ts": TS(nu), "delta": DeltaUCB(nu)}
        picked = {name: select(pool, strategy, 1, LUCK) for name, strategy in names.items()}
        for r in range(2):
            rows = zip(pool.duels.first[r], pool.duels.second[r], pool.features.widths[r], strict=True)
            width = {frozenset((int(a), int(b))): float(w) for a, b, w in rows}
            reward = pool.rewards[r].tolist()
            first = int(np.argmax(reward))
            ucb = [reward[j] + nu * width[frozenset((first, j))] for j in range(3)]
            ts = [reward[j] + nu * width[frozenset((first, j))] * float(draws[r, j]) for j in range(3)]
            gap = {pair: abs(reward[min(pair)] - reward[max(pair)]) + nu * w for pair, w in width.items()}
            expected = {
                "ucb": frozenset((first, int(np.argmax(ucb)))),
                "ts": frozenset((first, int(np.argmax(ts)))),
                "delta": max(gap, key=lambda pair: gap[pair]),
            }
            for name, picks in picked.items():
                pick = int(picks[r, 0])
                assert frozenset((int(pool.duels.first[r, pick]), int(pool.duels.second[r, pick]))) == expected[name]

    def test_two_arms_ask_every_prompt_before_a_second_duel_of_one(self):
        pool = dataclasses.replace(make_pool(5), available=torch.ones(2, 15, dtype=torch.bool))
        for strategy in (UCB(), TS(), CoLSTIM(), DeltaUCB(), STRATEGIES["drts"]):
            prompts = pool.prompts.gather(-1, select(pool, strategy, PROMPTS, LUCK))
            assert all(sorted(row) == list(range(PROMPTS)) for row in prompts.tolist())

    def test_no_update_takes_the_widest(self):
        pool = make_pool(6)
        widths = torch.where(pool.available, pool.features.widths, -1.0)
        picks = select(pool, STRATEGIES["activedpo-top-b"], 4, LUCK)
        assert torch.equal(picks, widths.argsort(-1, descending=True)[:, :4])

    def test_the_batch_update_avoids_a_copy(self):
        """Two equal wide duels: the batch rule asks only one of them, top-B both."""
        values = torch.zeros(1, 3, 2, dtype=torch.float64)
        values[0, 0, 0] = values[0, 1, 0] = 2.0
        values[0, 2, 1] = 1.9
        duels = Duels.within(1, 3).expand(1)
        pool = Pool(
            duels,
            torch.zeros(1, 3).double(),
            GramDesign(1.0).condition(Dense(values)),
            torch.ones(1, 3, dtype=torch.bool),
            3,
            torch.zeros(1, 1).double(),
        )
        one = Key(0, (0,))
        assert set(select(pool, ActiveDPO(), 2, one)[0].tolist()) in ({0, 2}, {1, 2})
        assert set(select(pool, ActiveDPO(batch_update=False), 2, one)[0].tolist()) == {0, 1}


def test_bad_strategies_are_refused():
    with pytest.raises(InputError, match="share"):
        APLP(keep=0.0)
    with pytest.raises(InputError, match="nu"):
        UCB(nu=-1.0)


def test_fisher_weights_are_the_slopes(key, network, items, arena):
    """In the Fisher space a row is ``√σ'(margin) φ``: V is the Hessian of the logistic loss (less the ridge)."""
    from bandits.loop import DesignState, Plan
    from bandits.sim.learners import NeuralLearner

    learner = NeuralLearner(network, network.initial(key), 1.0)
    duels = Duels.within(8, 3).take(torch.tensor([1, 5, 9])).expand(3)
    learner.observe(items, arena.ask(duels))
    learner.fit()
    plain = DesignState(FeatureSpace(), Plan(1, 1, 1.0, 1.0)).rows(learner, items, duels).dense().values
    fisher = DesignState(FeatureSpace(weight="fisher"), Plan(1, 1, 1.0, 1.0)).rows(learner, items, duels).dense().values
    weights = slope(duels.difference(learner.rewards(items))).sqrt()
    torch.testing.assert_close(fisher, plain * weights.unsqueeze(-1))
