"""The headroom meter against explicit matrices, its limits, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bandits import Key, headroom
from bandits.core.design import Design, GramDesign
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.greedy import greedy_trace
from bandits.core.rows import Dense, Factored
from bandits.headroom import _compare


def variance(rows: np.ndarray, picks: list[int], target: np.ndarray, v: np.ndarray) -> float:
    """``mean_f fᵀ V⁻¹ f`` with the picks in ``V``, by inverting it."""
    v = v + rows[picks].T @ rows[picks]
    return float(np.einsum("fd,de,fe->f", target, np.linalg.inv(v), target).mean())


def slow_trace(rows: np.ndarray, target: np.ndarray, v: np.ndarray, count: int) -> list[int]:
    """Greedy: try every row, keep the one that leaves least variance."""
    picks: list[int] = []
    for _ in range(count):
        left = {i: variance(rows, [*picks, i], target, v) for i in range(len(rows)) if i not in picks}
        picks.append(min(left, key=lambda i: left[i]))
    return picks


def problem(seed: int, n: int = 12, m: int = 7, d: int = 5, past: int = 3):
    rng = np.random.default_rng(seed)
    shape = 1 / np.arange(1, d + 1)
    return (rng.standard_normal((k, d)) * shape for k in (n, m, past))


class TestGreedyTrace:
    @pytest.mark.slow
    @given(seed=st.integers(0, 10**6), ridge=st.floats(0.05, 5), itself=st.booleans(), many=st.booleans())
    def test_it_is_the_slow_rule(self, seed, ridge, itself, many):
        """Under every form of ``V``; two replicates at once; what each pick lowers is what the matrices say."""
        pairs = [list(problem(seed + r)) for r in range(2)]
        pool, target, old = (torch.tensor(np.stack(parts)) for parts in zip(*pairs, strict=True))
        design = Design.of(Dense(pool), ridge, many=many)
        design.append(Dense(old))
        seen = design.condition(Dense(pool))
        facing = seen if itself else design.condition(Dense(target))
        free = torch.ones(2, 12, dtype=torch.bool)
        picks, lowered = greedy_trace(seen, facing, 5, free, torch.arange(12).double().expand(2, -1))
        for r in range(2):
            rows, aims = pool[r].numpy(), (pool if itself else target)[r].numpy()
            v = ridge * np.eye(5) + old[r].numpy().T @ old[r].numpy()
            assert picks[r].tolist() == slow_trace(rows, aims, v, 5)
            left = [variance(rows, picks[r, :k].tolist(), aims, v) for k in range(6)]
            np.testing.assert_allclose(lowered[r] / len(aims), -np.diff(left), rtol=1e-8, atol=1e-12)

    def test_weights_count_a_target_row_as_often(self):
        pool, target, _ = (torch.tensor(part) for part in problem(3))
        seen = GramDesign(0.5).condition(Dense(pool))
        free, ties = torch.ones(12, dtype=torch.bool), torch.zeros(12).double()
        weights = torch.tensor([3, 1, 0, 2, 1, 1, 0]).double()
        twice = GramDesign(0.5).condition(Dense(target.repeat_interleave(weights.long(), 0)))
        once = GramDesign(0.5).condition(Dense(target))
        a, b = greedy_trace(seen, once, 6, free, ties, weights), greedy_trace(seen, twice, 6, free, ties)
        assert torch.equal(a[0], b[0])
        torch.testing.assert_close(a[1], b[1])

    def test_what_is_not_available_is_not_picked(self):
        pool, target, _ = (torch.tensor(part) for part in problem(4))
        seen, facing = (GramDesign(0.5).condition(Dense(part)) for part in (pool, target))
        free = torch.arange(12) % 2 == 1
        picks, _ = greedy_trace(seen, facing, 6, free, torch.zeros(12).double())
        assert sorted(picks.tolist()) == [1, 3, 5, 7, 9, 11]


class TestMeter:
    @pytest.mark.slow
    @settings(max_examples=5)
    @given(seed=st.integers(0, 10**6))
    def test_it_is_the_slow_one(self, seed):
        rows, target, old = problem(seed)
        kappa, ridge, budget = 0.2, 0.7, 6
        got = headroom(rows, target, ridge=ridge, budget=budget, labelled=old, kappa=kappa, draws=200)
        v = ridge * np.eye(5) + old.T @ old
        picks = slow_trace(rows, target, v, budget)
        chosen = [np.sqrt(variance(rows, picks[:k], target, v) / kappa) for k in range(budget + 1)]
        np.testing.assert_allclose(got.curve["chosen"], chosen, rtol=1e-8)
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(12).tolist() for _ in range(200)]
        drawn = np.sqrt([[variance(rows, o[:k], target, v) / kappa for k in range(budget + 1)] for o in orders])
        # Two means of 200 draws: they differ by more than 6 standard errors of their difference once in 10^8.
        error = np.hypot(*[drawn.std(0) / np.sqrt(200)] * 2)
        assert (np.abs(got.curve["random"] - drawn.mean(0)) <= 6 * error + 1e-12).all()
        saved = 1 - chosen[-1] / drawn[:, -1]
        assert abs(got.error_saved.value - saved.mean()) <= 6 * np.sqrt(2) * saved.std() / np.sqrt(200) + 1e-12
        assert got.error_saved.low <= got.error_saved.value <= got.error_saved.high
        needed = [np.interp(last, chosen[::-1], np.arange(budget, -1, -1)) for last in drawn[:, -1]]
        if max(chosen[-1] / drawn[:, -1]) < 1:
            share = 1 - np.array(needed) / budget
            assert abs(got.labels_saved.value - share.mean()) <= 6 * np.sqrt(2) * share.std() / np.sqrt(200) + 1e-12

    def test_intervals_are_t_s_over_draws_and_a_worse_choice_costs_what_it_would_save(self):
        """From curves alone: of three draws two end below the chosen design."""
        chosen = np.array([1.0, 0.6, 0.4])
        drawn = np.array([[1.0, 0.8, 0.5], [1.0, 0.5, 0.2], [1.0, 0.4, 0.3]])
        found = _compare(2, chosen, drawn, "")
        share = [1 - 1.5 / 2, (1 + 1 / 3) / 2 - 1, 1 / 2 - 1]  # the last two have 0.4 with 1 1/3 labels, and with 1
        for estimate, values, least in (
            (found.labels_saved, share, -1),
            (found.error_saved, 1 - 0.4 / drawn[:, -1], -np.inf),
        ):
            low, high = np.clip(stats.ttest_1samp(values, 0).confidence_interval(0.95), least, 1)
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((np.mean(values), low, high))

    def test_no_interval_of_a_share_is_beyond_what_a_share_can_be(self):
        found = _compare(2, np.array([1.0, 0.6, 0.1]), np.array([[1.0, 0.9, 0.4], [1.0, 0.5, 0.02]]), "")
        for estimate in (found.labels_saved, found.error_saved):
            assert estimate.high == 1.0 > estimate.value
        assert found.labels_saved.low == -1.0

    def test_rows_that_never_form_gradients_give_the_same(self):
        """Factored duels in two replicates, each as if it were alone; the interval is then over replicates."""
        rng = np.random.default_rng(0)
        items = Factored(
            tuple(torch.tensor(rng.standard_normal((2, 18, k))) for k in (3, 1)),
            tuple(torch.tensor(rng.standard_normal((2, 18, k))) for k in (2, 3)),
        )
        duels = Duels.within(6, 3)
        pool = items.differences(duels.expand(2))
        key = Key(5, (0, 1))
        both = headroom(pool, pool.take(torch.arange(4).expand(2, -1)), ridge=0.3, budget=8, key=key)
        alone = [
            headroom(rows, rows[:4], ridge=0.3, budget=8, key=key.only(r)) for r, rows in enumerate(pool.dense().values)
        ]
        assert both.error_saved.n == 2
        assert both.error_saved.value == pytest.approx(np.mean([one.error_saved.value for one in alone]))
        assert both.labels_saved.value == pytest.approx(np.mean([one.labels_saved.value for one in alone]))
        np.testing.assert_allclose(both.curve["random"], np.mean([one.curve["random"] for one in alone], 0))

    def test_a_pool_that_is_mostly_one_duel_is_worth_choosing_from(self):
        """Nine in ten duels alike: random labels repeat themselves, chosen ones need far fewer."""
        rng = np.random.default_rng(1)
        many, few = np.repeat(rng.standard_normal((1, 20)), 180, 0), rng.standard_normal((20, 20))
        got = headroom(np.concatenate([many, few]), few, ridge=1.0, budget=60)
        assert got.labels_saved.low > 0.5
        assert "choosing can save about" in got.verdict

    def test_orthogonal_duels_of_one_length_leave_nothing_to_choose(self):
        got = headroom(np.eye(30), ridge=1.0, budget=15)
        assert got.error_saved.value == pytest.approx(0, abs=1e-12)
        assert got.labels_saved.value == pytest.approx(0, abs=1e-9)
        assert got.verdict.endswith("less than 5 %: sample at random")
        assert got.note == "the target is the pool itself"

    def test_a_pool_that_tells_nothing_of_the_target_saves_nothing(self):
        rows = np.eye(10)
        got = headroom(rows[:5], rows[5:], ridge=1.0, budget=3)
        assert (got.error_saved.value, got.labels_saved.value) == (0, 0)
        assert "tell nothing of the target" in got.note

    def test_all_labels_leave_no_choice(self):
        rows, target, _ = problem(9)
        got = headroom(rows, target, ridge=0.5, budget=12)
        assert got.error_saved.value == pytest.approx(0, abs=1e-9)

    def test_precision_and_kind_of_array_do_not_matter_and_large_ones_are_drawn_from(self, tmp_path):
        rng = np.random.default_rng(2)
        rows = rng.standard_normal((400, 8)).astype(np.float32)
        mapped = np.memmap(tmp_path / "rows.f32", np.float32, "w+", shape=rows.shape)
        mapped[:] = rows
        kinds = [rows, rows.astype(np.float64), torch.from_numpy(rows), mapped, Dense(torch.from_numpy(rows))]
        got = [headroom(kind, ridge=1.0, budget=10, targets=50, candidates=100) for kind in kinds]
        for one in got:
            assert one.labels_saved.value == pytest.approx(got[0].labels_saved.value, rel=1e-3)
            assert "100 of 400 pool duels, drawn at random" in one.note

    @pytest.mark.ill_typed
    def test_lists_and_frames_and_odd_arrays_are_tables_too(self):
        rows = np.random.default_rng(3).standard_normal((12, 3))
        kinds = [
            rows,
            rows.tolist(),
            pd.DataFrame(rows),
            rows.astype(object),
            rows.astype(">f8"),
            rows[:, ::-1],
        ]  # columns turned: same widths
        kinds += [torch.from_numpy(rows).requires_grad_(), torch.from_numpy(rows).to_sparse()]
        got = [headroom(kind, labelled=[[0, 0, 0]], ridge=1.0, budget=3) for kind in kinds]
        assert len({round(one.labels_saved.value, 9) for one in got}) == 1

    def test_same_key_same_numbers(self):
        rows, target, _ = problem(7)
        one, same, other = (headroom(rows, target, ridge=1.0, budget=4, key=Key(k)) for k in (1, 1, 2))
        assert one.curve.equals(same.curve)
        assert not one.curve.equals(other.curve)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"target": np.empty((0, 5))}, "the target is empty"),
            ({"pool": np.empty((0, 5))}, "budget of 4 labels asked about, but the pool has 0 duels"),
            ({"budget": 0}, "budget of 0 labels"),
            ({"budget": 13}, "the pool has 12 duels"),
            ({"pool": np.full((12, 5), np.nan)}, "a feature of the pool is NaN"),
            ({"target": np.full((2, 5), np.inf)}, "a feature of the target is NaN"),
            ({"labelled": np.full((2, 5), np.inf)}, "a feature of the labelled is NaN"),
            ({"target": np.ones((2, 4))}, "target has 4 columns, the pool 5"),
            ({"pool": np.ones(5)}, r"got shape \(5,\)"),
            ({"ridge": 0.0}, "the ridge must be positive"),
            ({"kappa": 0.0}, "kappa must be positive"),
            ({"draws": 1}, "draws must be a whole number, at least 2, got 1"),
            ({"budget": 2.5}, "budget must be a whole number, at least 0, got 2.5"),
            ({"targets": None}, "targets must be a whole number"),
            ({"candidates": float("inf")}, "candidates must be a whole number"),
            ({"ridge": float("nan")}, "the ridge must be positive and finite, got nan"),
            ({"ridge": "1"}, "the ridge must be positive and finite, got '1'"),
            ({"kappa": None}, "kappa must be positive and finite, got None"),
            ({"key": 3}, "key is a bandits.Key"),
            ({"pool": None}, "the pool: no real numbers, but NoneType"),
            ({"pool": [[1, 2], [3]]}, "the pool: no real numbers, but list"),
            ({"pool": np.full((12, 5), 1j)}, "the pool: no real numbers"),
            ({"pool": np.full((12, 5), "1")}, "the pool: no real numbers"),
            ({"pool": np.ones((12, 0))}, r"the pool has rows of duels' features, \(n, d\), got shape \(12, 0\)"),
            ({"target": "mine"}, "the target: no real numbers, but str"),
            ({"target": np.ones((1, 2, 5))}, "target has shape .*the same replicates, or none"),
            ({"labelled": np.ones((1, 2, 5))}, "labelled has shape .*the same replicates, or none"),
        ],
    )
    @pytest.mark.ill_typed
    def test_what_cannot_be_told_is_refused(self, change, words):
        rows, target, _ = problem(0)
        with pytest.raises(InputError, match=words):
            headroom(**{"pool": rows, "target": target, "ridge": 1.0, "budget": 4} | change)
