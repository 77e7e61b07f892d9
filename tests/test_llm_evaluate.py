"""Evaluation of a run's tables: every estimator against a slow, obvious one."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bandits.core.errors import InputError
from bandits.runs.stats import share
from llm_loop.report.evaluate import (
    TOKENS,
    accuracies,
    against,
    at_equal_kl,
    authors,
    check_balanced,
    corpus_distinct,
    degenerate,
    distinct,
    first_at,
    intervals,
    labels_saved,
    learning_curves,
    longer_wins,
    same_policy,
    selection,
    totals,
    win_rates,
)


def table(seed: int = 0, seeds: int = 3, prompts: int = 8, rounds: int = 3, gain: float = 0.5) -> pd.DataFrame:
    """Evaluations of two strategies with the same start; rewards come in steps, so that ties occur."""
    generator = np.random.default_rng(seed)
    rows = []
    for k in range(seeds):
        first = generator.integers(-2, 3, prompts) / 2
        for strategy, r in itertools.product(("random", "activedpo"), range(rounds + 1)):
            noise = generator.integers(-1, 2, prompts) / 2 if r else 0 * first
            rows.extend(
                {
                    "strategy": strategy,
                    "seed": k,
                    "round": r,
                    "prompt_index": p,
                    "reward": first[p] + gain * r + noise[p],
                    "tokens": int(generator.integers(0, 20)),
                    "distinct_2": generator.random(),
                }
                for p in range(prompts)
            )
    return pd.DataFrame(rows)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["prompt_index", "seed"])
def test_intervals_are_t_intervals_of_paired_unit_means(unit: str) -> None:
    evaluations = table()
    found = intervals(evaluations, ["reward", "tokens"], unit).set_index(["strategy", "round", "measure"])  # type: ignore[arg-type]
    for strategy, r, measure in itertools.product(("random", "activedpo"), range(4), ("reward", "tokens")):
        values, changes = [], []
        for u in sorted(evaluations[unit].unique()):
            now = [
                row[measure]
                for _, row in evaluations.iterrows()
                if row["strategy"] == strategy and row["round"] == r and row[unit] == u
            ]
            then = [
                row[measure]
                for _, row in evaluations.iterrows()
                if row["strategy"] == strategy and row["round"] == 0 and row[unit] == u
            ]
            values.append(sum(now) / len(now))
            changes.append(sum(now) / len(now) - sum(then) / len(then))
        row = found.loc[(strategy, r, measure)]
        for of, prefix in ((values, ""), (changes, "change_")):
            half = stats.t.ppf(0.975, len(of) - 1) * np.std(of, ddof=1) / math.sqrt(len(of))
            assert row[prefix.rstrip("_") or "mean"] == pytest.approx(np.mean(of))
            assert row[f"{prefix}low"] == pytest.approx(np.mean(of) - half)
            assert row[f"{prefix}high"] == pytest.approx(np.mean(of) + half)


@pytest.mark.campaign
def test_intervals_over_prompts_hold_their_level_where_seeds_share_prompts() -> None:
    """A prompt effect common to all seeds: 400 problems at 95 % may miss 20; more than 38 has a chance below 1e-4."""
    generator = np.random.default_rng(1)
    missed = 0
    for _ in range(400):
        shared = generator.normal(size=12)
        rows = [
            {
                "strategy": "s",
                "seed": k,
                "round": r,
                "prompt_index": p,
                "reward": r * (1 + shared[p]) + 0.1 * generator.normal(),
            }
            for k in range(4)
            for r in range(2)
            for p in range(12)
        ]
        last = intervals(pd.DataFrame(rows), ["reward"], "prompt_index").iloc[-1]
        missed += not last["change_low"] <= 1.0 <= last["change_high"]
    assert stats.binom.sf(38, 400, 0.05) < 1e-4
    assert missed <= 38


def test_win_rates_count_every_pair() -> None:
    evaluations = table()
    found = win_rates(evaluations).set_index(["strategy", "round"])
    cell = {
        (row["strategy"], row["seed"], row["round"], row["prompt_index"]): row["reward"]
        for _, row in evaluations.iterrows()
    }
    assert (found["ties"] > 0).any()
    for strategy, r in itertools.product(("random", "activedpo"), (1, 2, 3)):
        counts = [0, 0, 0]
        for k, p in itertools.product(range(3), range(8)):
            now, then = cell[strategy, k, r, p], cell[strategy, k, 0, p]
            counts[0 if now > then else 1 if now == then else 2] += 1
        row = found.loc[(strategy, r)]
        assert [row["wins"], row["ties"], row["losses"]] == counts
        assert row["rate"] == pytest.approx((counts[0] + counts[1] / 2) / 24)
        expected = share(8 * row["rate"], 8)
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))


def test_win_rates_pair_several_responses_to_a_prompt_by_their_place() -> None:
    rows = [("s", 0, r, 0, value) for r, values in ((0, (1.0, 5.0)), (1, (2.0, 4.0))) for value in values]
    row = win_rates(pd.DataFrame(rows, columns=["strategy", "seed", "round", "prompt_index", "reward"])).iloc[0]
    assert (row["wins"], row["ties"], row["losses"], row["rate"]) == (1, 0, 1, 0.5)


@pytest.mark.campaign
def test_the_initial_model_against_itself_pairs_seeds_and_wins_half() -> None:
    frame = table(seeds=5)
    found = same_policy(frame).iloc[0]
    wins = []
    for p in range(8):
        own = frame[(frame["round"] == 0) & (frame["strategy"] == "random") & (frame["prompt_index"] == p)]
        reward = own.set_index("seed")["reward"]
        wins.append(np.mean([(np.sign(reward[b] - reward[a]) + 1) / 2 for a, b in ((0, 1), (2, 3))]))
    assert found["rate"] == pytest.approx(np.mean(wins))
    assert (found["wins"] + found["ties"] + found["losses"], found["prompts"]) == (16, 8)
    assert same_policy(table(seeds=1)).empty
    # 200 worlds of 20 draws each: the mean rate is within 4 standard errors of a half (0.006 at most)
    rates = [same_policy(table(seed, seeds=4, rounds=1)).iloc[0]["rate"] for seed in range(200)]
    assert abs(np.mean(rates) - 0.5) < 4 * np.std(rates) / np.sqrt(200)


def test_accuracies_count_signs_and_leave_out_true_ties() -> None:
    generator = np.random.default_rng(5)
    rows = [
        {
            "strategy": "s",
            "seed": k,
            "round": r,
            "prompt_index": p,
            "margin": float(generator.integers(-2, 3)) * r,
            "true_margin": float(generator.integers(-2, 3)),
        }
        for k in range(2)
        for r in range(3)
        for p in range(6)
        for _ in range(3)
    ]
    duels = pd.DataFrame(rows)
    found = accuracies(duels).set_index("round")
    for r in range(3):
        by_prompt = []
        for p in range(6):
            scores = []
            for row in rows:
                if row["round"] == r and row["prompt_index"] == p and row["true_margin"]:
                    product = row["margin"] * row["true_margin"]
                    scores.append(1.0 if product > 0 else 0.5 if product == 0 else 0.0)
            if scores:
                by_prompt.append(sum(scores) / len(scores))
        assert found.loc[r, "accuracy"] == pytest.approx(np.mean(by_prompt))
        want = share(sum(by_prompt), len(by_prompt))  # over prompts: a prompt's duels share responses
        assert (found.loc[r, "low"], found.loc[r, "high"]) == pytest.approx((want.low, want.high))
        assert found.loc[r, "tied"] == sum(row["true_margin"] == 0 for row in rows if row["round"] == r)
    assert found.loc[0, "accuracy"] == 0.5


def test_against_random_pairs_seeds_and_shares_the_level_over_both_outcomes() -> None:
    evaluations = table(seeds=6)
    found = against(evaluations).set_index("outcome")
    cell = evaluations.groupby(["strategy", "seed", "round"])["reward"].mean()
    for outcome, rounds in (("final", (3,)), ("area", (1, 2, 3))):
        differences = [
            np.mean([cell["activedpo", k, r] for r in rounds]) - np.mean([cell["random", k, r] for r in rounds])
            for k in range(6)
        ]
        half = stats.t.ppf(1 - 0.05 / 2 / 2, 5) * np.std(differences, ddof=1) / math.sqrt(6)
        row = found.loc[outcome]
        assert row["difference"] == pytest.approx(np.mean(differences))
        assert row["low"] == pytest.approx(np.mean(differences) - half)
        assert row["verdict"] == "undecided"


def test_against_random_sees_a_gain_a_loss_and_claims_nothing_from_one_seed() -> None:
    evaluations = table(seeds=5)
    for shift, word in ((3.0, "better"), (-3.0, "worse")):
        moved = evaluations.copy()
        moved.loc[(moved["strategy"] == "activedpo") & (moved["round"] > 0), "reward"] += shift
        assert set(against(moved)["verdict"]) == {word}
        alone = against(moved[moved["seed"] == 0])
        assert set(alone["verdict"]) == {"undecided"}
        assert alone["low"].isna().all()


def test_against_random_without_random_is_empty() -> None:
    evaluations = table()
    assert against(evaluations[evaluations["strategy"] != "random"]).empty
    assert against(evaluations[evaluations["strategy"] == "random"]).empty


@pytest.mark.campaign
def test_no_gain_is_rarely_called_a_gain() -> None:
    """Equal strategies, 300 problems: a false verdict in at most 5 %; more than 30 has a chance below 1e-3."""
    false = sum(set(against(table(seed, seeds=5, prompts=4))["verdict"]) != {"undecided"} for seed in range(300))
    assert stats.binom.sf(30, 300, 0.05) < 1e-3
    assert false <= 30


def test_rounds_that_ask_fewer_prompts_are_compared_on_these_and_have_the_level_of_all() -> None:
    whole = table(seeds=2, prompts=8, rounds=3)
    few = whole[(whole["round"] != 1) | (whole["prompt_index"] < 3)]
    check_balanced(few)
    found = intervals(few, ["reward"], "prompt_index").set_index(["strategy", "round"])
    want = intervals(whole, ["reward"], "prompt_index").set_index(["strategy", "round"])
    one, two = (frame.query("round != 1") for frame in (found, want))
    pd.testing.assert_frame_equal(one, two)
    for strategy, own in few.groupby("strategy"):
        by = own.groupby(["round", "prompt_index"])["reward"].mean().unstack("round")
        change = (by[1] - by[0]).dropna().mean()
        assert found.loc[(strategy, 1), "change"] == pytest.approx(change)
        assert found.loc[(strategy, 1), "mean"] == pytest.approx(by[0].mean() + change)
        assert found.loc[(strategy, 1), "units"] == 3
    with pytest.raises(InputError):
        check_balanced(few.drop(few[(few["strategy"] == "random") & (few["round"] == 1)].index[:1]))


def test_longer_wins_counts_pairs_of_unequal_length() -> None:
    rows = [(0, 0, 5, 1.0), (0, 1, 5, 1.0), (0, 2, 5, 1.0), (0, 3, 5, 1.0)]
    rows += [(2, 0, 9, 2.0), (2, 1, 3, 0.0), (2, 2, 5, 0.0), (2, 3, 7, 1.0)]  # longer better twice, alike, tied
    frame = pd.DataFrame(rows, columns=["round", "prompt_index", "tokens", "reward"]).assign(strategy="a", seed=0)
    found = longer_wins(frame)["a"]
    assert (found.value, found.n) == (pytest.approx(2.5 / 3), 3)
    assert 0 < found.low < 2.5 / 3 < found.high <= 1
    again = longer_wins(pd.concat([frame, frame.assign(seed=1)]))["a"]  # a prompt of two seeds is one prompt
    assert (again.value, again.low, again.n) == (found.value, found.low, 3)
    alike = longer_wins(frame.assign(tokens=5))["a"]
    assert (np.isnan(alike.value), alike.n) == (True, 0)


def test_reward_at_a_kl_is_read_where_the_curve_first_comes_there() -> None:
    """Against a walk along the curve in small steps, of which the first at or above the level counts."""
    generator = np.random.default_rng(3)
    for _ in range(50):
        kl, reward = np.append(0.0, generator.random(4)), generator.normal(size=5)
        level = float(generator.random() * kl[-1])
        place = 0.0
        while np.interp(place, range(5), kl) < level:
            place += 1e-3
        there = first_at(kl, reward, level)
        steepest = np.abs(np.diff(reward)).max()
        assert abs(there - np.interp(place, range(5), reward)) <= 1.001e-3 * steepest
    assert first_at([0.0, 0.4, 0.2], [1.0, 3.0, 9.0], 0.2) == 2.0  # not the last round's 9
    assert first_at([0.0, -0.1], [1.0, 3.0], 0.0) == 1.0


def test_reward_at_equal_kl_is_paired_by_seed_at_the_smaller_last_kl() -> None:
    generator = np.random.default_rng(4)
    rows = [
        (name, seed, r, generator.normal() + gain * r, 0.1 * r * speed + 0.04 * generator.normal() * (r > 0))
        for name, gain, speed in (("a", 1.0, 1.0), ("random", 0.2, 2.0), ("b", -1.0, 1.0))
        for seed in range(6)
        for r in range(4)
    ]
    curves = pd.DataFrame(rows, columns=["strategy", "seed", "round", "reward", "kl_per_token"])
    found = at_equal_kl(curves).set_index("strategy")
    for name in ("a", "b"):
        gaps, levels = [], []
        for seed in range(6):
            sides = [
                sorted((r, kl, reward) for n, s, r, reward, kl in rows if (n, s) == (who, seed))
                for who in (name, "random")
            ]
            level = min(side[-1][1] for side in sides)
            read = []
            for side in sides:
                for (_, low, below), (_, high, above) in itertools.pairwise(side):
                    if high >= level:
                        read.append(below + (above - below) * (level - low) / (high - low))
                        break
            gaps.append(read[0] - read[1])
            levels.append(level)
        half = stats.t.ppf(1 - 0.05 / 2 / 2, 5) * np.std(gaps, ddof=1) / np.sqrt(6)
        assert found.loc[name, "kl"] == pytest.approx(np.mean(levels))
        assert found.loc[name, "difference"] == pytest.approx(np.mean(gaps))
        assert found.loc[name, "low"] == pytest.approx(np.mean(gaps) - half)
        assert found.loc[name, "high"] == pytest.approx(np.mean(gaps) + half)
    assert found["verdict"].tolist() == ["better", "worse"]
    assert found["seeds"].tolist() == [6, 6]
    mirrored = at_equal_kl(curves[curves["strategy"] != "b"], baseline="a").iloc[0]
    assert mirrored["difference"] == pytest.approx(-found.loc["a", "difference"])
    assert mirrored["verdict"] == "worse"
    assert at_equal_kl(curves[curves["strategy"] != "random"]).empty
    assert at_equal_kl(curves[curves["strategy"] == "random"]).empty
    negative = at_equal_kl(curves.assign(kl_per_token=-curves["kl_per_token"].abs()))
    assert negative["kl"].tolist() == [0, 0]


def test_incomplete_evaluations_are_refused() -> None:
    evaluations = table()
    check_balanced(evaluations)
    for bad in (
        evaluations[evaluations["round"] > 0],
        evaluations[~((evaluations["strategy"] == "random") & (evaluations["seed"] == 2))],
        evaluations[~((evaluations["strategy"] == "random") & (evaluations["round"] == 3))],
    ):
        with pytest.raises(InputError, match="evaluations"):
            check_balanced(bad)


def test_distinct_counts_word_pairs() -> None:
    assert distinct("a b a b a") == 2 / 4
    assert distinct("The the THE the") == 1 / 3
    assert distinct("one two three") == 1.0
    assert distinct("") == distinct("word") == 1.0
    assert distinct("a a a", 1) == 1 / 3
    assert corpus_distinct(pd.Series(["a b c", "a b c", "a b d"])) == 3 / 6
    assert corpus_distinct(pd.Series(["", "x"])) == 1.0


def test_degenerate_is_empty_or_repetitive() -> None:
    frame = pd.DataFrame({"tokens": [0, 1, 20, 20], "distinct_2": [1.0, 1.0, 0.49, 0.5]})
    assert degenerate(frame).tolist() == [1, 1, 1, 0]


def test_totals_add_tokens_up_within_a_seed() -> None:
    rounds = pd.DataFrame(
        [("s", k, r, 4 * r, 10, 5, 2 if r else math.nan, k) for r in (2, 0, 1) for k in range(2)],
        columns=["strategy", "seed", "round", "labels", *TOKENS],
    )
    found = totals(rounds).sort_values("round")
    assert found["tokens"].tolist() == [15.5, 33.0, 50.5]
    assert found["labels"].tolist() == [0, 4, 8]


def test_selection_compares_picked_duels_with_their_pool() -> None:
    candidates = pd.DataFrame(
        {
            "strategy": "s",
            "seed": [0, 0, 0, 1, 1, 1, 1],
            "round": 1,
            "reward_1": [1.0, 0, 0, 2, 0, 0, 9],
            "reward_2": [0.0, 2, 0, 0, 0, 1, 9],
            "width": [3.0, 2, 1, 6, 5, 4, 0],
            "offered": [True] * 6 + [False],
            "picked_position": [0, 1, np.nan, 0, np.nan, np.nan, np.nan],
            "label": [1.0, 1, np.nan, 1, np.nan, np.nan, np.nan],
        }
    )
    row = selection(candidates).iloc[0]
    assert (row["pool"], row["picked"]) == (3, 1.5)
    assert row["gap"] == pytest.approx((1.5 + 2) / 2)
    assert row["gap_pool"] == pytest.approx((1 + 1) / 2)
    assert row["width"] == pytest.approx((2.5 + 6) / 2)
    assert row["width_pool"] == pytest.approx((2 + 5) / 2)
    assert row["agreement"] == pytest.approx((0.5 + 1) / 2)


def test_learning_curves_are_slowly_computed_ones_also_where_a_round_asked_few_prompts() -> None:
    evaluations = table()
    few = evaluations[(evaluations["round"] != 1) | (evaluations["prompt_index"] < 3)]
    rounds = few[["strategy", "seed", "round"]].drop_duplicates().assign(labels=lambda t: 10 * t["round"])
    found = learning_curves(few, rounds).set_index(["strategy", "seed", "round"])
    for (strategy, seed, number), row in found.iterrows():
        own = few[(few["strategy"] == strategy) & (few["seed"] == seed)].set_index(["round", "prompt_index"])["reward"]
        asked = own[number].index
        start = [own[0, p] for p in own[0].index]
        change = [own[number, p] - own[0, p] for p in asked]
        assert len(asked) == (3 if number == 1 else 8)
        assert row["reward"] == pytest.approx(sum(start) / len(start) + sum(change) / len(change))
        assert row["labels"] == 10 * number


def test_a_strategy_that_learns_twice_as_fast_saves_half_of_the_labels() -> None:
    """The blind one gains 1 a round, the other 2; per-seed offsets are shared, so pairing removes them."""
    generator = np.random.default_rng(0)
    offset = generator.normal(size=6)
    curves = pd.DataFrame(
        [
            {"strategy": s, "seed": k, "labels": 10 * r, "reward": offset[k] + pace * r + generator.normal(scale=0.05)}
            for k in range(6)
            for r in range(5)
            for s, pace in (("random", 1.0), ("fast", 2.0), ("slow", 0.5))
        ]
    )
    found = labels_saved(curves).set_index("contender")
    assert found.loc["fast", "saved"] == pytest.approx(0.5, abs=0.05)
    assert 0.4 < found.loc["fast", "low"] <= found.loc["fast", "high"] < 0.6
    assert found.loc["fast", "verdict"] == "saves"
    assert found.loc["slow", "saved"] == pytest.approx(-0.5, abs=0.05)
    assert found.loc["slow", "verdict"] == "does not save"
    assert labels_saved(curves[curves["strategy"] != "random"]).empty


def test_authors_have_their_shares_of_what_was_offered_and_picked() -> None:
    candidates = pd.DataFrame(
        [
            ("active", "a", "a", 1.0, 2.0, True, 0.0),
            ("active", "a", "b", 1.0, 5.0, True, math.nan),
            ("active", "a", "b", 2.0, 6.0, True, 1.0),
            ("active", "b", "b", 9.0, 9.0, False, math.nan),  # a repeated response
            ("random", "a", "b", 3.0, 4.0, True, 0.0),
        ],
        columns=["strategy", "model_1", "model_2", "reward_1", "reward_2", "offered", "picked_position"],
    )
    found = authors(candidates).set_index(["strategy", "model"])
    assert found.loc[("active", "a")].tolist() == pytest.approx([4 / 6, 3 / 4, 6 / 4])
    assert found.loc[("active", "b")].tolist() == pytest.approx([2 / 6, 1 / 4, 11 / 2])
    assert found.loc[("random", "b")].tolist() == pytest.approx([1 / 2, 1 / 2, 4])
    assert authors(candidates.assign(model_1="", model_2="")).empty
