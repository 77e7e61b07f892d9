"""The contract of every strategy, and each rule against a slow, obvious statement of it."""

import dataclasses
import importlib
import math
import re

import numpy as np
import pytest
import strategies_table
import torch
from hypothesis import given
from hypothesis import strategies as st
from replicates import alone

from bandits.core.design import GramDesign
from bandits.core.duels import Duels, Truth
from bandits.core.errors import InputError
from bandits.core.oracles import slope
from bandits.core.registry import fingerprint
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.selector import (
    ADPO,
    APLP,
    DRTS,
    STRATEGIES,
    TS,
    UCB,
    ActiveDPO,
    CoLSTIM,
    DeltaUCB,
    FeatureSpace,
    Pool,
    Quantity,
    ScoreStrategy,
    Stochastic,
    Strategy,
    select,
)

PROMPTS, RESPONSES, DIM = 5, 3, 6
LUCK = Key(11, (0, 1))
PARTS = {
    "width": "posterior",
    "reward": "item_rewards",
    "entropy": "prompt_entropy",
    "response width": "item_posterior",
    "target": "target_posterior",
    "truth": "known",
}
"""Where a pool keeps what is read of it."""
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
    seen = design.condition(Dense(gradients).differences(duels))
    asked = ~available & torch.from_numpy(rng.random((2, duels.count)) < 0.7)
    outcome = torch.from_numpy(rng.random((2, duels.count)))
    return Pool(
        duels,
        available,
        RESPONSES,
        seen,
        rewards,
        entropy,
        asked,
        design.condition(Dense(gradients)),
        design.condition(Dense(torch.from_numpy(rng.standard_normal((2, 7, DIM))))),
        torch.from_numpy(rng.standard_normal((2, 7))),
        Truth(outcome, outcome * (1 - outcome), torch.from_numpy(rng.standard_normal((2, 7)))),
    )


def reordered(pool: Pool, order: torch.Tensor) -> Pool:
    """The same duels in another order."""
    index = order.expand(2, -1)
    truth = pool.truth
    return dataclasses.replace(
        pool,
        duels=pool.duels.take(index),
        posterior=pool.features.take(index),
        available=pool.available.gather(-1, index),
        asked=pool.asked.gather(-1, index),
        known=Truth(truth.outcome.gather(-1, index), truth.variance.gather(-1, index), truth.margins),
    )


def turned(pool: Pool) -> Pool:
    """The same duels with the two sides exchanged: every φ changes its sign."""
    seen = dataclasses.replace(
        pool.features,
        rows=pool.features.rows.scaled(-torch.ones_like(pool.margins)),
        projections=-pool.features.projections,
    )
    known = dataclasses.replace(pool.truth, outcome=1 - pool.truth.outcome)
    return dataclasses.replace(pool, duels=Duels(pool.duels.second, pool.duels.first), posterior=seen, known=known)


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
            assert torch.equal(select(alone(pool, r), STRATEGIES[name], 4, LUCK.only(r))[0], both[r])

    @pytest.mark.slow
    def test_sides_and_common_shifts_do_not_matter(self, name):
        """Exchanging a duel's sides, or adding c(x) to the rewards of a prompt, changes no pick."""
        for seed in range(5):
            pool = make_pool(seed)
            plain = select(pool, STRATEGIES[name], 4, LUCK)
            assert torch.equal(select(turned(pool), STRATEGIES[name], 4, LUCK), plain)
            shift = torch.arange(PROMPTS, dtype=torch.float64).repeat_interleave(RESPONSES)
            moved = dataclasses.replace(pool, item_rewards=pool.rewards + shift)
            assert torch.equal(select(moved, STRATEGIES[name], 4, LUCK), plain)

    def test_the_order_of_the_pool_does_not_matter(self, name):
        """But for the strategies that draw per duel."""
        if name.startswith("random") or name.endswith("-power"):
            pytest.skip("its draw belongs to the position in the pool")
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
            select(dataclasses.replace(pool, item_rewards=rewards), strategy, 2, LUCK)
        values = pool.features.rows.dense().values.clone()
        values[0, 1, 1] = torch.inf
        broken = dataclasses.replace(pool.features, rows=Dense(values))
        with pytest.raises(InputError, match="feature is NaN"):
            select(dataclasses.replace(pool, posterior=broken), strategy, 2, LUCK)


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

    @pytest.mark.slow
    def test_random_is_uniform(self):
        """Chi-square over 15 duels and 6,000 draws at level 1e-5."""
        from scipy.stats import chisquare

        pool = dataclasses.replace(make_pool(0), available=torch.ones(2, 15, dtype=torch.bool))
        counts = np.zeros(15)
        for i in range(3000):
            for row in select(pool, STRATEGIES["random"], 1, LUCK.fold_in(i)).tolist():
                counts[row[0]] += 1
        assert chisquare(counts).pvalue > 1e-5

    @pytest.mark.slow
    @given(seed=st.integers(0, 10**6), nu=st.floats(0, 3))
    def test_two_arms_on_one_prompt_are_those_of_the_paper(self, seed, nu):
        """UCB, Thompson, DeltaUCB and DRTS on one prompt, arm by arm, every arm against itself included."""
        inner = LUCK.fold_in("strategy").fold_in
        pool = make_pool(seed, selves=True, prompts=1)
        pool = dataclasses.replace(pool, available=torch.ones(2, 6, dtype=torch.bool))
        draws = inner("thompson").normal(RESPONSES)
        best, worst = inner("thompson", "best").normal(RESPONSES), inner("thompson", "worst").normal(RESPONSES)
        names = {"ucb": UCB(nu), "ts": TS(nu), "delta": DeltaUCB(nu), "drts": DRTS(nu)}
        picked = {name: select(pool, strategy, 1, LUCK) for name, strategy in names.items()}
        for r in range(2):
            rows = zip(pool.duels.first[r], pool.duels.second[r], pool.features.widths[r], strict=True)
            width = {frozenset((int(a), int(b))): float(w) for a, b, w in rows}
            reward = pool.rewards[r].tolist()
            first = int(np.argmax(reward))
            ucb = [reward[j] + nu * width[frozenset((first, j))] for j in range(3)]
            ts = [reward[j] + nu * width[frozenset((first, j))] * float(draws[r, j]) for j in range(3)]
            gap = {pair: abs(reward[min(pair)] - reward[max(pair)]) + nu * w for pair, w in width.items()}
            spread = [nu * width[frozenset((first, j))] for j in range(3)]
            up = int(np.argmax([reward[j] + spread[j] * float(best[r, j]) for j in range(3)]))
            down = int(np.argmin([reward[j] + spread[j] * float(worst[r, j]) for j in range(3)]))
            expected = {
                "drts": frozenset((up, down)),
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
            torch.ones(1, 3, dtype=torch.bool),
            3,
            GramDesign(1.0).condition(Dense(values)),
            torch.zeros(1, 3).double(),
            torch.zeros(1, 1).double(),
        )
        one = Key(0, (0,))
        assert set(select(pool, ActiveDPO(), 2, one)[0].tolist()) in ({0, 2}, {1, 2})
        assert set(select(pool, ActiveDPO(batch_update=False), 2, one)[0].tolist()) == {0, 1}


@dataclasses.dataclass(frozen=True)
class Given(ScoreStrategy):
    """Scores as given, for tests."""

    values: tuple[float, ...]
    reads = frozenset[Quantity]()
    summary = "scores duels as it is told to"

    def scores(self, pool, key):
        return torch.tensor(self.values, dtype=torch.float64).expand(pool.available.shape)


class TestChecks:
    """What a strategy returns is checked, whoever wrote it."""

    def pool(self, available: list[bool]) -> Pool:
        duels = Duels.within(1, 3).expand(1)
        return Pool(duels, torch.tensor([available]), 3)

    def test_an_available_duel_never_ties_with_one_that_is_not(self):
        """Whatever its score: the last available duel at minus infinity is asked before any that may not be."""
        for seed in range(20):
            picks = select(self.pool([True, False, True]), Given((1.0, torch.inf, -torch.inf)), 2, Key(seed, (0,)))
            assert picks.tolist() == [[0, 2]]

    def test_a_score_that_is_no_number_is_refused_where_it_counts(self):
        nan = float("nan")
        with pytest.raises(InputError, match="a score of Given is NaN"):
            select(self.pool([True, True, True]), Given((1.0, nan, 2.0)), 1, LUCK.only(0))
        assert select(self.pool([True, False, True]), Given((1.0, nan, 2.0)), 1, LUCK.only(0)).tolist() == [[2]]

    def test_scores_of_another_shape_are_refused(self):
        class Short(Given):
            def scores(self, pool, key):
                return torch.zeros(1, 2)

        with pytest.raises(InputError, match=r"shape \(1, 2\) for \(1, 3\) duels"):
            select(self.pool([True, True, True]), Short(()), 1, LUCK.only(0))

    @pytest.mark.parametrize(
        ("picks", "words"),
        [
            ([0, 0], "picked a duel twice"),
            ([0, 1], "picked a duel that is not available"),
            ([0, 3], "picked a duel that is not available"),
            ([-1, 0], "picked a duel that is not available"),
            ([0], "not 2 positions"),
            ([0.0, 2.0], "not 2 positions"),
        ],
    )
    def test_picks_are_checked(self, picks, words):
        class Fixed(Strategy):
            summary = "picks what it is told to"

            def select(self, pool, count, key):
                return torch.tensor([picks])

        with pytest.raises(InputError, match=f"Fixed .*{words}"):
            select(self.pool([True, False, True]), Fixed(), 2, LUCK.only(0))

    def test_what_is_read_is_declared(self):
        class Sly(Given):
            def scores(self, pool, key):
                return pool.widths

        with pytest.raises(InputError, match="add 'width' to its reads"):
            select(self.pool([True, True, True]), Sly(()), 1, LUCK.only(0))

    @every
    def test_a_strategy_needs_no_more_than_it_says(self, name):
        pool, strategy = make_pool(7), STRATEGIES[name]
        read = dataclasses.replace(
            pool, **{PARTS[quantity]: None for quantity in PARTS if quantity not in strategy.reads}
        )
        assert torch.equal(select(read, strategy, 4, LUCK), select(pool, strategy, 4, LUCK))

    @every
    def test_each_quantity_that_is_declared_is_read(self, name):
        pool, strategy = make_pool(7), STRATEGIES[name]
        for quantity in strategy.reads:
            with pytest.raises(InputError, match=f"reads {quantity} without saying so"):
                select(dataclasses.replace(pool, **{PARTS[quantity]: None}), strategy, 4, LUCK)


class TestRegistry:
    @pytest.mark.slow
    def test_a_strategy_is_added_in_one_place(self):
        try:
            STRATEGIES.register("as-told", Given((1.0, 2.0, 3.0)))
            STRATEGIES.register("as-told", Given((1.0, 2.0, 3.0)))  # a worker's import of the same script
            assert STRATEGIES["as-told"] == Given((1.0, 2.0, 3.0))
            with pytest.raises(InputError, match="'as-told' is taken"):
                STRATEGIES.register("as-told", Given((3.0, 2.0, 1.0)))
        finally:
            STRATEGIES._parts.pop("as-told")

    def test_an_unknown_name_is_told_with_the_nearest(self):
        with pytest.raises(InputError, match=r"unknown strategy 'activdpo'; did you mean 'activedpo'\?"):
            STRATEGIES["activdpo"]

    def test_every_rule_by_score_has_a_stochastic_batch(self):
        """By score where that is one and never negative, else by rank; others are told in a line."""
        pool = make_pool(4)
        for name, rule in STRATEGIES.items():
            power = f"{name}-power"
            if isinstance(rule, ScoreStrategy) and not isinstance(rule, Stochastic):
                batch, scores = STRATEGIES[power], rule.scores(pool, LUCK)
                single = torch.is_tensor(scores) and bool((scores[pool.available] > 0).all())
                assert power in STRATEGIES
                assert (batch.rule, batch.power, batch.by) == (rule, 1.0, "score" if single else "rank")
                assert rule.summary in batch.summary
                select(pool, batch, 3, LUCK)
            else:
                assert power not in STRATEGIES
                words = "such a batch already" if isinstance(rule, Stochastic) else "picks by no score of single duels"
                with pytest.raises(InputError, match=f"{power}.*{words}"):
                    STRATEGIES[power]

    def test_a_stochastic_batch_of_a_rule_of_ones_own_draws_by_rank(self, monkeypatch):
        """What its scores may be nobody knows; a batch registered under the name comes first."""
        rule, twice = Given((1.0, 2.0, 3.0)), Stochastic(Given((1.0, 2.0, 3.0)), power=2.0)
        monkeypatch.setitem(STRATEGIES._parts, "mine", rule)
        assert STRATEGIES["mine-power"] == Stochastic(rule, by="rank")
        monkeypatch.setitem(STRATEGIES._parts, "mine-power", twice)
        assert STRATEGIES["mine-power"] == twice
        monkeypatch.setitem(STRATEGIES._parts, "m" * 48, rule)
        with pytest.raises(InputError, match="at most 50 characters, got 54"):
            STRATEGIES["m" * 48 + "-power"]

    @pytest.mark.parametrize("name", ["polcy-trace-power", "policy-trace-powr"])
    def test_an_unknown_stochastic_batch_is_told_with_the_nearest(self, name):
        with pytest.raises(InputError, match=rf"unknown strategy '{name}'; did you mean 'policy-trace-power'\?"):
            STRATEGIES[name]

    def test_what_does_not_describe_itself_is_refused(self):
        class Silent(Given):
            summary = " "

        class Wordy(Given):
            summary = "two\nlines"

        class Curious(Given):
            reads = frozenset({"mood"})

        class Blind(Given):
            reads = frozenset({"target"})

        for strategy, words in (
            (Silent(()), "set summary"),
            (Wordy(()), "in one line"),
            (Curious(()), "reads names mood"),
            (Blind(()), "reads names target without width"),
            (Given, "inherits from Strategy, got <class"),
        ):
            with pytest.raises(InputError, match=f"strategy 'mine': .*{words}"):
                STRATEGIES.register("mine", strategy)
        for name in ("linear:ucb", "a--b", "", "a/b", "a.b", "-a"):
            with pytest.raises(InputError, match="a name is made of"):
                STRATEGIES.register(name, Given(()))
        assert "mine" not in STRATEGIES

    @every
    def test_every_strategy_says_what_it_does_and_where_it_comes_from(self, name):
        strategy = STRATEGIES[name]
        assert len(strategy.summary) > 20
        assert strategy.source or name in ("random", "random-per-prompt", "label-entropy")

    def test_who_deviates_from_its_source_says_so(self):
        """In its summary, which pages show; a docstring is seen by who reads the code alone."""
        deviating = {name for name, rule in STRATEGIES.items() if re.search("eviations?:", type(rule).__doc__ or "")}
        assert {"adpo", "colstim", "drts"} <= deviating
        for name in deviating:
            assert re.search("deviations?:", STRATEGIES[name].summary), name
        assert "width" in STRATEGIES["colstim"].summary

    def test_no_two_strategies_say_the_same(self):
        said = [(s.summary, s.source) for s in STRATEGIES.values()]
        assert len(set(said)) == len(said)


class TestFingerprint:
    def source(self, body: str) -> str:
        """The fingerprint's hash of a class with this ``scores``, typed at a prompt (no source) ."""
        names: dict = {"ScoreStrategy": ScoreStrategy, "__name__": "__main__"}
        exec(f"class Mine(ScoreStrategy):\n summary = 'x'\n def scores(self, pool, key):\n  {body}\n", names)
        return fingerprint(names["Mine"]())["source"]

    @pytest.mark.slow
    def test_settings_and_code_count(self):
        one, other = fingerprint(UCB(1.0)), fingerprint(UCB(2.0))
        assert one["class"] == "bandits.selector.UCB"
        assert one["settings"]["nu"] == 1.0
        assert one["source"] == other["source"]
        assert one != other
        assert fingerprint(TS())["source"] != one["source"]
        assert self.source("return pool.widths") == self.source("return pool.widths")
        assert self.source("return pool.widths") != self.source("return -pool.widths")
        assert self.source("return pool.widths + 1") != self.source("return pool.widths + 2")

    def test_a_comment_or_docstring_changes_nothing_and_a_base_class_does(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        base = "class Base:\n    def rule(self):\n        return {}\n\n\nclass Own(Base):\n    {}\n    x = 1\n"
        found = []
        for number, (value, text) in enumerate(((1, '"""Said."""'), (1, "# said otherwise"), (2, '"""Said."""'))):
            (tmp_path / f"own_{number}.py").write_text(base.format(value, text))
            found.append(fingerprint(importlib.import_module(f"own_{number}").Own())["source"])
        assert found[0] == found[1] != found[2]


def test_adpo_is_the_d_optimal_design_of_its_source():
    """Fixed last-layer features, weighted by ``√(μ(1-μ))``, updated within the batch; and APO without either."""
    space = STRATEGIES["adpo"].space
    assert (space.layer, space.gradients, space.weight, space.metric) == ("last", "initial", "fisher", "full")
    assert STRATEGIES["adpo"] == ADPO()
    assert STRATEGIES["adpo"].batch_update
    assert (
        STRATEGIES["apo"].space == STRATEGIES["apo-in-batch"].space == FeatureSpace(layer="last", gradients="initial")
    )
    assert not STRATEGIES["apo"].batch_update
    assert STRATEGIES["apo-in-batch"].batch_update


@pytest.mark.slow
@given(seed=st.integers(0, 10**6))
def test_colstim_cuts_its_perturbations(seed):
    """With a threshold near zero nothing is perturbed: CoLSTIM is UCB."""
    pool = make_pool(seed)
    assert torch.equal(select(pool, CoLSTIM(threshold=1e-300), 4, LUCK), select(pool, UCB(), 4, LUCK))


@given(seed=st.integers(0, 10**6), nu=st.floats(0.1, 3))
def test_colstim_is_that_of_its_source_arm_by_arm(seed, nu):
    """On one prompt: first the best response by reward and Gumbel noise times width, then UCB against it."""
    pool = make_pool(seed, selves=True, prompts=1)
    pool = dataclasses.replace(pool, available=torch.ones(2, 6, dtype=torch.bool))
    picks = select(pool, CoLSTIM(nu, threshold=1.5), 1, LUCK)
    uniforms = LUCK.fold_in("strategy").fold_in("gumbel").uniform(RESPONSES)
    for r in range(2):
        rows = zip(pool.duels.first[r], pool.duels.second[r], pool.features.widths[r], strict=True)
        width = {frozenset((int(a), int(b))): float(w) for a, b, w in rows}
        reward, leader = pool.rewards[r].tolist(), int(np.argmax(pool.rewards[r]))
        noise = [min(max(-math.log(-math.log(float(u))), -1.5), 1.5) for u in uniforms[r]]
        seen = [reward[j] + noise[j] * nu * width[frozenset((leader, j))] for j in range(3)]
        first = int(np.argmax(seen))
        second = int(np.argmax([reward[j] + nu * width[frozenset((first, j))] for j in range(3)]))
        pick = int(picks[r, 0])
        assert {int(pool.duels.first[r, pick]), int(pool.duels.second[r, pick])} == {first, second}


@pytest.mark.parametrize("rule", [UCB(0.7), DeltaUCB(0.7)])
@given(seed=st.integers(0, 10**6))
def test_proposals_of_several_prompts_are_asked_widest_first_and_then_the_next_ones(rule, seed):
    pool = make_pool(seed)
    picks = select(pool, rule, 7, LUCK)
    worth = rule.preference(pool, LUCK)
    for r in range(2):
        free = [i for i in range(pool.duels.count) if pool.available[r, i]]
        place = {}  # a duel's rank among those of its prompt that are free
        for prompt in range(PROMPTS):
            own = [i for i in free if int(pool.prompts[r, i]) == prompt]
            place |= {i: rank for rank, i in enumerate(sorted(own, key=lambda i: -float(worth[r, i])))}
        want = sorted(free, key=lambda i: (place[i], -float(pool.features.widths[r, i])))
        assert picks[r].tolist() == want[:7]


def test_bad_strategies_are_refused():
    with pytest.raises(InputError, match="share"):
        APLP(keep=0.0)
    with pytest.raises(InputError, match="nu"):
        UCB(nu=-1.0)
    with pytest.raises(InputError, match="threshold"):
        CoLSTIM(threshold=0.0)


def test_fisher_weights_are_the_slopes(key, network, items, arena):
    """In the Fisher space a row is ``√σ'(margin) φ``: V is the Hessian of the logistic loss (less the ridge)."""
    from bandits.core.duels import Labelled
    from bandits.loop import DesignState
    from bandits.sim.learners import NeuralLearner

    learner = NeuralLearner(network, network.initial(key), 1.0)
    duels = Duels.within(8, 3).take(torch.tensor([1, 5, 9])).expand(3)
    learner.fit(Labelled.of(items, duels, arena.label(duels)))
    plain = DesignState(FeatureSpace(), 1.0, 1).rows(learner, items, duels).dense().values
    fisher = DesignState(FeatureSpace(weight="fisher"), 1.0, 1).rows(learner, items, duels).dense().values
    weights = slope(duels.difference(learner.rewards(items))).sqrt()
    torch.testing.assert_close(fisher, plain * weights.unsqueeze(-1))


def test_the_documents_table_is_that_of_the_registry():
    page = strategies_table.PAGE.read_text(encoding="utf-8")
    assert page == strategies_table.written(page), "run: python tests/strategies_table.py"


def test_no_two_strategies_are_described_alike():
    told = [line.partition("` | ")[2] for line in strategies_table.table().splitlines()[2:]]
    assert len(told) == len(set(told)) > 30
