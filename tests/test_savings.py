"""Labels saved: intervals cover at their level, also when looked at several times; verdicts follow them.

Coverages are counted over synthetic draws.  ``least(n)`` is what a true coverage of 0.95 falls below with probability
1e-4 in n draws: with the counts of this file a sound one fails once in about 900 changed seeds.
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
    mean,
    pool_truths,
    pooled,
    replicates_to_tell,
    savings,
    spending,
    tell,
)

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


class TestPooled:
    def test_the_interquartile_mean_leaves_a_quarter_out_at_either_end(self):
        values = np.array([9.0, 1, 2, 3, 4, 100, -50, 5])
        assert interquartile_mean(values) == np.sort(values)[2:6].mean()

    def test_it_is_the_bootstrap_done_slowly(self):
        rng = np.random.default_rng(0)
        strata = [rng.normal(size=12), rng.normal(2, 3, 20)]
        found = pooled(strata, interquartile_mean, seed=3, draws=300)
        again = np.random.default_rng(3)
        picks = [again.integers(0, len(part), (300, len(part))) for part in strata]
        shares = []
        for draw in range(300):
            values = sorted(float(part[i]) for part, pick in zip(strata, picks, strict=True) for i in pick[draw])
            shares.append(sum(values[8:24]) / 16)
        assert found.value == pytest.approx(np.sort(np.concatenate(strata))[8:24].mean())
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(shares, (0.025, 0.975))))

    @pytest.mark.slow
    @pytest.mark.parametrize(("n", "level"), [(16, 0.92), (72, 0.94)])
    def test_the_interval_covers_as_its_docstring_says(self, n, level):
        rng = np.random.default_rng(n)
        big = interquartile_mean(np.concatenate([rng.normal(0, 1, 10**6), rng.normal(1, 2, 10**6)]))
        hits = []
        for _ in range(200):
            found = pooled([rng.normal(0, 1, n), rng.normal(1, 2, n)], interquartile_mean, draws=300)
            hits.append(found.low <= big <= found.high)
        assert np.mean(hits) >= least(200, level)

    @given(seed=st.integers(0, 10**6))
    def test_truths_pooled_are_the_middle_half_of_all_paired_ratios(self, seed):
        rng, rows = np.random.default_rng(seed), []
        ratios: dict[str, list[float]] = {"one": [], "two": []}
        for truth, replicates in (("a", 9), ("b", 12)):
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
            assert row.effect == pytest.approx(math.exp(logs[5:16].mean()))
            assert row.improvement == pytest.approx(np.mean((np.abs(logs) < 1e-12) / 2 + (logs < -1e-12)))
            level = 1 - 0.05 / 4
            parts = [np.array(ratios[row.contender][:9]), np.array(ratios[row.contender][9:])]
            again = pooled(parts, interquartile_mean, level)
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
        assert math.isnan(few["low"])
