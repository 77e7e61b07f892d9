"""Labels saved: intervals cover at their level, also when looked at several times; verdicts follow them.

Coverages are counted over synthetic draws.  ``least(n)`` is what a true coverage of 0.95 falls below with probability
1e-4 in n draws: with the counts of this file a sound one fails once in about 600 changed seeds.
"""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bandits.runs.stats import (
    Estimate,
    Saving,
    compare,
    interquartile_mean,
    joint_level,
    label_efficiency,
    labels_saved,
    looked,
    mean,
    pool_truths,
    pooled,
    replicates_to_tell,
    savings,
    share,
    spending,
    tell,
)
from bandits.sim.report import pooled_findings

LABELS = np.arange(20.0, 201.0, 20.0)


def least(draws: int, level: float = 0.95) -> float:
    return float(scipy_stats.binom.ppf(1e-4, draws, level)) / draws


def world(n: int, rng: np.random.Generator, gain: float, sd: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Curves ``n^-1/4`` of problems of unlike difficulty, with noise that rounds share; the rule learns faster."""
    problem = rng.lognormal(0, 0.3, (n, 1))

    def curves(worth: float) -> np.ndarray:
        noise = rng.normal(0, sd, (n, len(LABELS)))
        for place in range(1, len(LABELS)):
            noise[:, place] = 0.7 * noise[:, place - 1] + 0.714 * noise[:, place]
        return problem * (worth * LABELS) ** -0.25 * np.exp(noise)

    return curves(1 / (1 - gain)), curves(1.0)


def share_of(gain: float) -> float:
    """The share saved where it is measured: between measured rounds curves are taken to be straight."""
    ours, theirs = (((LABELS * worth) ** -0.25)[None] for worth in (1 / (1 - gain), 1.0))
    return slowly(LABELS, ours[0], theirs[0])


def slowly(labels: np.ndarray, rule: np.ndarray, baseline: np.ndarray) -> float:
    """The share saved, label by label."""
    places = np.linspace(labels[0], labels[-1], 200_001)
    sign, curve, target = (1, rule, baseline[-1]) if rule[-1] <= baseline[-1] else (-1, baseline, rule[-1])
    reached = places[np.argmax(np.interp(places, labels, curve) <= target + 1e-15)]
    return sign * (1 - reached / labels[-1])


def frame(n: int, seed: int = 0, gain: float = 0.3, truths: int = 1, sd: float = 0.15) -> pd.DataFrame:
    rng, parts = np.random.default_rng(seed), []
    for truth in range(truths):
        for name, curves in zip(("rule", "random"), world(n, rng, gain, sd), strict=True):
            table = pd.DataFrame(curves, columns=LABELS).rename_axis("replicate").reset_index()
            parts.append(table.melt("replicate", None, "labels", "error").assign(truth=f"t{truth}", contender=name))
    return pd.concat(parts, ignore_index=True)


def told(logs: np.ndarray) -> pd.DataFrame:
    """A run whose paired log ratios of errors are these: replicates × truths."""
    table = pd.DataFrame(np.exp(logs)).rename(columns="t{}".format).rename_axis("replicate").reset_index()
    ours = table.melt("replicate", None, "truth", "error").assign(contender="rule", labels=1)
    return pd.concat([ours, ours.assign(contender="random", error=1.0)], ignore_index=True)


class TestLabelsSaved:
    @given(st.integers(0, 10**6), st.floats(-0.5, 0.5))
    def test_the_estimate_is_what_a_slow_search_finds_and_exchange_changes_its_sign(self, seed, gain):
        ours, theirs = world(5, np.random.default_rng(seed), max(gain, 0.0), 0.05)
        if gain < 0:
            ours, theirs = theirs, ours
        found, other = labels_saved(LABELS, ours, theirs), labels_saved(LABELS, theirs, ours)
        assert found.saved.value == pytest.approx(slowly(LABELS, ours.mean(0), theirs.mean(0)), abs=1e-4)
        assert other.saved.value == pytest.approx(-found.saved.value, abs=1e-12)
        assert (other.saved.low, other.saved.high) == pytest.approx((-found.saved.high, -found.saved.low), abs=1e-9)
        assert found.saved.low <= found.saved.value <= found.saved.high

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [2, 3, 8, 16, 72])
    @pytest.mark.parametrize("gain", [0.0, 0.3])
    def test_the_interval_covers(self, n, gain):
        """250 draws each, at 95 % and at a level of 1 in 100."""
        rng, truth, draws = np.random.default_rng(n), share_of(gain), 250
        for level in (0.95, 0.99):
            found = [labels_saved(LABELS, *world(n, rng, gain), level=level).saved for _ in range(draws)]
            assert np.mean([e.low <= truth <= e.high for e in found]) >= least(draws, level)

    @pytest.mark.slow
    def test_with_many_replicates_it_is_the_paired_bootstraps(self):
        rng = np.random.default_rng(0)
        ours, theirs = world(200, rng, 0.3)
        found = labels_saved(LABELS, ours, theirs).saved
        drawn = rng.integers(0, 200, (1000, 200))
        shares = [slowly(LABELS, ours[i].mean(0), theirs[i].mean(0)) for i in drawn[:200]]
        assert (found.low, found.high) == pytest.approx(np.quantile(shares, (0.025, 0.975)), abs=0.04)

    def test_labels_are_counted_and_censored(self):
        ours, theirs = world(64, np.random.default_rng(0), 0.3)
        found = labels_saved(LABELS, ours, theirs)
        assert found.labels.value == pytest.approx(200 * (1 - found.saved.value))
        assert found.labels.low <= found.labels.value <= found.labels.high
        never = labels_saved(LABELS, theirs * 1.2, theirs)
        assert never.labels.value == math.inf
        assert never.labels.note == "not reached with 200 labels"
        at_once = labels_saved(LABELS, ours * 0.2, theirs)
        assert at_once.saved.value == pytest.approx(0.9)
        assert at_once.saved.high == 1
        assert "before the first measured round" in at_once.saved.note

    def test_a_measure_of_which_more_is_better_is_turned_round(self):
        ours, theirs = world(9, np.random.default_rng(0), 0.3)
        low, high = labels_saved(LABELS, ours, theirs), labels_saved(LABELS, -ours, -theirs, lower_is_better=False)
        assert low.saved == high.saved
        assert low.target == -high.target

    def test_a_smaller_budget_is_the_same_question_of_shorter_curves(self):
        ours, theirs = world(9, np.random.default_rng(0), 0.3)
        assert labels_saved(LABELS, ours, theirs, 120.0) == labels_saved(LABELS[:6], ours[:, :6], theirs[:, :6])
        places = np.append(LABELS[:6], 130)
        cut = [np.append(curves.mean(0)[:6], curves.mean(0)[5:7].mean()) for curves in (ours, theirs)]
        assert labels_saved(LABELS, ours, theirs, 130.0).saved.value == pytest.approx(slowly(places, *cut), abs=1e-4)

    @pytest.mark.parametrize("n", [2, 3, 9])
    def test_another_level_needs_no_second_solution(self, n):
        curves = world(n, np.random.default_rng(n), 0.3)
        assert labels_saved(LABELS, *curves).at(0.99) == labels_saved(LABELS, *curves, level=0.99)
        nothing = labels_saved(LABELS, curves[0] * np.nan, curves[1])
        assert nothing.at(0.5) is nothing

    @pytest.mark.parametrize("budget", [20.0, 200.5, -1.0])
    def test_a_budget_outside_what_was_measured_is_refused(self, budget):
        with pytest.raises(ValueError, match="outside what was measured: above 20, to 200"):
            labels_saved(LABELS, *world(3, np.random.default_rng(0), 0.0), budget=budget)

    def test_nothing_is_told_from_numbers_that_are_not_finite(self):
        ours, theirs = world(9, np.random.default_rng(0), 0.3)
        ours[2, 3] = math.nan
        assert tell(labels_saved(LABELS, ours, theirs).saved, 0.1) == ("not judged", "1 of 180 values are not finite")

    def test_one_replicate_gives_no_interval(self):
        row = savings(frame(1), "error", "random").iloc[0]
        assert (row["verdict"], row["reason"]) == ("undecided", "one replicate gives no interval")
        assert row["needed"] == math.inf


class TestVerdicts:
    @pytest.mark.parametrize(
        ("low", "high", "word", "reason"),
        [
            (0.01, 0.6, "saves", ""),
            (0.01, 0.05, "saves", ""),
            (-0.05, 0.1, "does not save", "within ±10% of the labels"),
            (-0.4, 0.1, "does not save", "at most 10%"),
            (-0.4, -0.01, "does not save", "the baseline needs fewer labels"),
            (-0.4, 0.11, "undecided", ""),
        ],
    )
    def test_a_word_follows_from_the_interval(self, low, high, word, reason):
        assert tell(Estimate((low + high) / 2, low, high, 20), 0.1) == (word, reason)

    def test_fits_that_did_not_converge_forbid_a_word(self):
        table = frame(9)
        row = savings(table, "error", "random", unmet={("t0", "random"): "3 of 9 fits did not converge"}).iloc[0]
        assert (row["verdict"], row["reason"]) == ("not judged", "random: 3 of 9 fits did not converge")

    def test_rows_are_judged_jointly_and_further_pairs_with_them(self):
        table = pd.concat([frame(12), frame(12, seed=1).query("contender == 'rule'").assign(contender="other")])
        found = savings(table, "error", "random", budgets=(100.0,), more=[("rule", "other")])
        assert len(found) == 6
        wide = {
            name: part.pivot(index="replicate", columns="labels", values="error")
            for name, part in table.groupby("contender")
        }
        expected = labels_saved(LABELS, wide["rule"], wide["other"], 100.0, level=joint_level(6)).saved
        assert tuple(found.iloc[-1][["saved", "low", "high"]]) == (expected.value, expected.low, expected.high)
        assert found["budget"].tolist() == [200, 100] * 3

    def test_truths_may_have_unlike_contenders(self):
        """What only one of two truths has is judged there; all that is judged, is judged jointly."""
        other = frame(12, seed=1).replace({"contender": {"rule": "other"}})
        table = pd.concat([frame(12).assign(truth="one"), other.assign(truth="two")])
        found = savings(table, "error", "random")
        assert found[["truth", "contender"]].to_numpy().tolist() == [["one", "rule"], ["two", "other"]]
        alone = savings(other.assign(truth="two"), "error", "random", level=1 - (1 - 0.95) / 2).iloc[0]
        assert tuple(found.iloc[1][["saved", "low", "high"]]) == tuple(alone[["saved", "low", "high"]])
        found = compare(table, "error", "random")
        assert found[["truth", "contender"]].to_numpy().tolist() == [["one", "rule"], ["two", "other"]]
        ours, theirs = (label_efficiency(other[other["contender"] == c], "error") for c in ("other", "random"))
        alone = mean(ours["error"].to_numpy() - theirs["error"].to_numpy(), joint_level(2))
        assert tuple(found.iloc[1][["effect", "low", "high"]]) == (alone.value, alone.low, alone.high)

    def test_without_the_baseline_there_is_nothing_to_say(self):
        assert savings(frame(3).query("contender == 'rule'"), "error", "random").empty

    def test_only_what_is_undecided_needs_replicates_and_the_reason_says_how_many(self):
        decided, undecided = (savings(frame(24, gain=g), "error", "random").iloc[0] for g in (0.5, 0.1))
        assert (decided["verdict"], undecided["verdict"]) == ("saves", "undecided")
        assert math.isnan(decided["needed"])
        assert undecided["reason"] == f"about {undecided['needed']:,.0f} replicates would decide an effect of this size"

    @pytest.mark.slow
    @pytest.mark.parametrize(("gain", "sd"), [(0.3, 0.15), (0.3, 1.0), (0.0, 0.15), (-0.3, 0.5)])
    def test_the_replicates_said_to_decide_do(self, gain, sd):
        """With the number that a large sample names, 80 % of tries are decided (65 to 95 % of 100), noise or not."""
        rng = np.random.default_rng(0)

        def draw(n: int) -> Saving:
            curves = world(n, rng, abs(gain), sd)
            return labels_saved(LABELS, *(curves if gain >= 0 else curves[::-1]))

        needed = int(replicates_to_tell(draw(20_000), 0.15))
        words = [tell(draw(needed).saved, 0.15)[0] for _ in range(100)]
        assert 65 <= sum(word == ("saves" if gain > 0 else "does not save") for word in words) <= 95

    @pytest.mark.slow
    def test_so_do_those_that_a_few_noisy_replicates_name_if_the_effect_is_the_one_they_saw(self):
        """Twelve times the world is eight noisy replicates, whose intervals end at what was seen: 80 % or more decide.

        65 % of 100 tries or more, as eight replicates scatter less (by a sixteenth) than their deviation says.
        """
        rng, rates = np.random.default_rng(1), []
        while len(rates) < 12:
            ours, theirs = world(8, rng, 0.3, 1.0)
            found = labels_saved(LABELS, ours, theirs)
            needed = replicates_to_tell(found, 0.15)
            if tell(found.saved, 0.15)[0] != "undecided" or needed > 2000:
                continue
            drawn = [labels_saved(LABELS, ours[i], theirs[i]) for i in rng.integers(0, 8, (100, int(needed)))]
            rates.append(np.mean([tell(one.saved, 0.15)[0] != "undecided" for one in drawn]))
        assert min(rates) >= 0.65


class TestLooks:
    @given(st.lists(st.integers(1, 100), min_size=1, max_size=6))
    def test_all_looks_together_spend_the_error_rate_once(self, blocks):
        shares = spending(np.cumsum(blocks).tolist())
        assert shares == pytest.approx(np.array(blocks) / sum(blocks))
        assert spending([6, 12, 24, 48]) == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 2])

    @pytest.mark.slow
    def test_stopping_at_the_first_decision_keeps_the_error_rate(self):
        """150 runs without a saving, looked at 4 times: a word for a saving, or against none, in at most 5 % of them.

        The same four looks at 95 % each, as one may not do it, err in more than twice as many.
        """
        looks, draws, rng = (6, 12, 24, 48), 150, np.random.default_rng(0)
        sound = naive = 0
        for _ in range(draws):
            ours, theirs = world(48, rng, 0.0)
            for shares, name in ((spending(looks), "sound"), (np.ones(4), "naive")):
                found = [
                    labels_saved(LABELS, ours[:n], theirs[:n], level=1 - 0.05 * share).saved
                    for n, share in zip(looks, shares, strict=True)
                ]
                wrong = any(e.low > 0 or e.high < 0 for e in found)
                sound, naive = sound + (name == "sound" and wrong), naive + (name == "naive" and wrong)
        assert sound <= scipy_stats.binom.ppf(1 - 1e-4, draws, 0.05)
        assert naive > 2 * sound

    def test_a_row_is_what_its_looks_have_in_common(self):
        table, looks = frame(24, gain=0.2), (6, 12, 24, 48)
        found = savings(table, "error", "random", looks=looks).iloc[0]
        each = [
            savings(table[table["replicate"] < n], "error", "random", level=1 - 0.05 * share).iloc[0]
            for n, share in zip(looks[:3], spending(looks), strict=False)
        ]
        assert found["low"] == max(one["low"] for one in each)
        assert found["high"] == min(one["high"] for one in each)
        assert found["replicates"] == 24

    @pytest.mark.campaign
    def test_whole_curves_and_truths_together_keep_the_error_rate_too(self):
        """100 runs of 2 truths without an effect, looked at 4 times: an effect, at any look, in at most 5 % of them.

        Without the looks' shares it is in more than twice as many, of curves and of truths together.
        """
        looks, draws, rng = (8, 16, 32, 64), 100, np.random.default_rng(0)
        wrong = {(name, way): 0 for name in ("compare", "pool_truths") for way in (looks, ())}
        for _ in range(draws):
            table = told(rng.normal(size=(64, 2)))
            tables = [table[table["replicate"] < n] for n in looks]
            for way in (looks, ()):
                compared = [compare(table, "error", "random", scale="ratio", looks=way) for table in tables]
                together = [pool_truths(table, "error", "random", looks=way) for table in tables]
                wrong["compare", way] += any(((t["low"] > 1) | (t["high"] < 1)).any() for t in compared)
                wrong["pool_truths", way] += any(
                    ((t["low"] > 1) | (t["high"] < 1) | (t["improvement_low"] > 0.5) | (t["improvement_high"] < 0.5))[0]
                    for t in together
                )
        for name in ("compare", "pool_truths"):
            assert wrong[name, looks] <= scipy_stats.binom.ppf(1 - 1e-4, draws, 0.05), wrong
            assert wrong[name, ()] > 2 * wrong[name, looks], wrong

    def test_a_truth_has_the_replicates_and_the_share_of_its_last_look(self):
        """Of looks at 8, 16 and 32 replicates one truth stopped at 8, one at 16, and one is between two looks."""
        looks, logs = (8, 16, 32), np.random.default_rng(0).normal(size=(32, 3))
        table = told(logs)
        counts = {"t0": 8, "t1": 16, "t2": 20}
        table = table[table["replicate"] < table["truth"].map(counts)]
        found = compare(table, "error", "random", scale="ratio", looks=looks)
        assert found["replicates"].tolist() == [8, 16, 16]
        for row, column, n in zip(found.itertuples(), logs.T, (8, 16, 16), strict=True):
            expected = mean(
                column[:n], joint_level(3, 1 - 0.05 / 4)
            )  # each of the two looks adds a fourth of the cap's
            assert (row.low, row.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
        (row,) = pool_truths(table, "error", "random", looks=looks).itertuples()
        level = joint_level(2, 1 - 0.05 / 4)
        effect, better = pooled(logs[:8], interquartile_mean, level), (logs[:8] < 0).mean(1).sum()
        assert row.replicates == 8
        assert (row.low, row.high) == pytest.approx((math.exp(effect.low), math.exp(effect.high)))
        chance = share(better, 8, level)
        assert (row.improvement_low, row.improvement_high) == pytest.approx((chance.low, chance.high))

    @pytest.mark.parametrize(
        ("replicates", "expected"),
        [(3, [(3, 0.99)]), (4, [(4, 0.99)]), (7, [(4, 0.99)]), (20, [(4, 0.99), (8, 0.99), (20, 0.97)])],
    )
    def test_replicates_before_the_first_look_and_beyond_one(self, replicates, expected):
        found = looked((4, 8, 20), replicates)
        assert [n for n, _ in found] == [n for n, _ in expected]
        assert [level for _, level in found] == pytest.approx([level for _, level in expected])
        assert looked((), replicates, 0.9) == [(replicates, 0.9)]


class TestPooled:
    def test_the_interquartile_mean_leaves_a_quarter_out_at_either_end(self):
        values = np.array([9.0, 1, 2, 3, 4, 100, -50, 5])
        assert interquartile_mean(values) == np.sort(values)[2:6].mean()

    def test_it_is_the_t_interval_where_the_statistic_is_a_mean(self):
        """The jackknife of a mean over truths is Student's t of the replicates' means."""
        values = np.random.default_rng(0).normal(size=(12, 3))
        found, expected = pooled(values, np.mean, 0.99), mean(values.mean(1), 0.99)
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))

    @pytest.mark.slow
    @pytest.mark.parametrize(("n", "truths"), [(8, 4), (24, 2)])
    def test_the_interval_covers_though_truths_share_their_replicates_luck(self, n, truths):
        """500 draws of truths that correlate by 0.3, at 95 % and as jointly and at a look: 0.93 and 0.99 or more."""
        rng = np.random.default_rng(n)
        shift, scale = np.linspace(0, 1, truths), np.linspace(1, 2, truths)

        def draw(count: int) -> np.ndarray:
            shared = math.sqrt(0.3) * rng.normal(size=(count, 1)) + math.sqrt(0.7) * rng.normal(size=(count, truths))
            return shift + scale * shared

        big = interquartile_mean(draw(10**6).ravel())
        for level, wanted in ((0.95, 0.93), (0.998, 0.99)):
            found = [pooled(draw(n), interquartile_mean, level) for _ in range(500)]
            assert np.mean([e.low <= big <= e.high for e in found]) >= least(500, wanted)

    @pytest.mark.slow
    @pytest.mark.parametrize("p", [0.02, 0.98])
    def test_the_share_of_better_replicates_covers_near_the_borders(self, p):
        """120 tables of 12 replicates of 3 truths, half of which have their luck in common; all better in many."""
        rng, hits = np.random.default_rng(0), 0
        for _ in range(120):
            luck = rng.random((12, 3))
            luck = np.where(rng.random((12, 1)) < 0.5, luck[:, :1], luck)
            found = pool_truths(told(np.where(luck < p, -1.0, 1.0)), "error", "random").iloc[0]
            hits += found["improvement_low"] <= p <= found["improvement_high"]
        assert hits / 120 >= least(120, 0.975)

    @pytest.mark.parametrize(("log", "expected"), [(-1.0, (1, 0.0125, 0)), (1.0, (0, 0, 0.0125))])
    def test_the_share_of_better_replicates_is_no_point_where_all_are_alike(self, log, expected):
        """12 of 12: the end is where so many alike have probability α/2, of two statistics together."""
        found = pool_truths(told(np.full((12, 3), log)), "error", "random").iloc[0]
        value, low, high = found[["improvement", "improvement_low", "improvement_high"]]
        assert value == expected[0]
        assert (low**12, (1 - high) ** 12) == pytest.approx(expected[1:])

    def test_ties_count_half_and_a_replicate_once(self):
        logs = np.zeros((10, 2))
        logs[:4], logs[4, 0] = -1, 1
        found = pool_truths(told(logs), "error", "random").iloc[0]
        assert found["improvement"] == pytest.approx((4 + 0.25 + 5 * 0.5) / 10)
        expected = share(4 + 0.25 + 5 * 0.5, 10, joint_level(2))
        assert (found["improvement_low"], found["improvement_high"]) == (expected.low, expected.high)

    @given(seed=st.integers(0, 10**6))
    def test_truths_pooled_are_the_middle_half_of_all_paired_ratios(self, seed):
        rng, rows = np.random.default_rng(seed), []
        ratios: dict[str, list[float]] = {"one": [], "two": []}
        for truth, replicates in (("a", 9), ("b", 9)):
            for replicate in range(replicates):
                errors = {name: rng.lognormal(size=3) for name in ("random", *ratios)}
                if replicate == 0:
                    errors["two"] = errors["random"]  # a tie
                rows += [(truth, name, replicate, k, v) for name, e in errors.items() for k, v in enumerate(e)]
                for name, found in ratios.items():
                    found.append(math.log(errors[name].mean() / errors["random"].mean()))
        table = pd.DataFrame(rows, columns=["truth", "contender", "replicate", "labels", "error"])
        for row in pool_truths(table, "error", "random").itertuples():
            logs = np.sort(ratios[row.contender])
            assert row.effect == pytest.approx(math.exp(logs[4:14].mean()))
            assert row.improvement == pytest.approx(np.mean((np.abs(logs) < 1e-12) / 2 + (logs < -1e-12)))
            level = 1 - 0.05 / 4
            again = pooled(np.reshape(ratios[row.contender], (2, 9)).T, interquartile_mean, level)
            assert (row.low, row.high) == pytest.approx((math.exp(again.low), math.exp(again.high)))

    @pytest.mark.slow
    def test_truths_are_pooled_by_paired_ratios(self):
        found = pool_truths(frame(32, gain=0.5, truths=2), "error", "random").iloc[0]
        assert found["high"] < 1
        assert found["improvement_low"] > 0.5
        null = pool_truths(frame(32, gain=0.0, truths=2), "error", "random").iloc[0]
        assert null["low"] < 1 < null["high"]
        assert null["improvement_low"] < 0.5 < null["improvement_high"]
        few = pool_truths(frame(4, truths=2), "error", "random").iloc[0]
        assert math.isnan(few["effect"])
        assert few["reason"] == "4 of the 8 replicates that it takes"

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_truths_together_are_not_judged_from_numbers_that_are_not_finite(self, value):
        table = told(np.random.default_rng(0).normal(-1, 0.1, (12, 2)))
        assert pool_truths(table, "error", "random").loc[0, "reason"] == ""
        table.loc[3, "error"] = value
        found = pool_truths(table, "error", "random").iloc[0]
        assert found["reason"] == "1 of 24 values are not finite"
        assert math.isnan(found["effect"])
        assert pooled_findings(found.to_frame().T) == [
            "Over 2 truths together, rule's error (mean over rounds) is not judged against random's: "
            "1 of 24 values are not finite."
        ]

    def test_fits_that_did_not_end_on_one_truth_forbid_what_is_said_of_all(self):
        table = told(np.random.default_rng(0).normal(-1, 0.1, (12, 2)))
        unmet = {("t1", "rule"): "3 of 12 fits did not converge", ("t0", "other"): "no"}
        found = pool_truths(table, "error", "random", unmet=unmet)
        assert found.loc[0, "reason"] == "on “t1”, rule: 3 of 12 fits did not converge"
        assert pooled_findings(found)[0].endswith(f"not judged against random's: {found.loc[0, 'reason']}.")
        both = pool_truths(table, "error", "random", unmet={("t0", "random"): "no", ("t1", "random"): "nor"})
        assert both.loc[0, "reason"] == "on “t0”, random: no; on “t1”, random: nor"
