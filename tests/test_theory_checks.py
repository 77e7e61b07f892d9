"""What a claim is: how it is judged, when it raises an alarm, and that a family of one's own is added in one place."""

import pickle
import re
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.stats import Estimate, at_least, at_most, covered, mean
from theory_checks import __main__ as command
from theory_checks import alarms, checks
from theory_checks.checks import ERROR_RATE, Cell, Check, Family, Result, alarm_level, check_replicates, measured
from theory_checks.study import PRESETS, TheoryStudy, suite

ROOT = Path(__file__).parents[1]
EXPECTS = ("holds", "fails", "open")


def fixed(low: float, high: float, **other: str):
    """A measure that finds the same interval at every level."""
    return lambda table, level: Estimate((low + high) / 2, low, high, 9, **other)


def claim(expect="holds", measure=None, threshold=at_least(0.5)) -> Check:  # noqa: B008
    return Check(name="a/b", statement="", threshold=threshold, measure=measure or fixed(1, 1), expect=expect)


class TestCheck:
    @given(low=st.floats(0, 1), expect=st.sampled_from(EXPECTS))
    def test_nothing_is_judged_while_an_assumption_is_unmet(self, low, expect):
        result = Result.of(claim(expect, fixed(low, low, unmet="κ did not hold")), pd.DataFrame(), 0.999)
        assert result.verdict.word == "not informative"
        assert "κ did not hold" in result.verdict.reason
        assert result.alarm == (expect == "fails")

    def test_alarms(self):
        for expect, expected in (("holds", (False, True)), ("fails", (True, False)), ("open", (False, False))):
            found = (Result.of(claim(expect, fixed(v, v)), pd.DataFrame(), 0.999).alarm for v in (1.0, 0.0))
            assert tuple(found) == expected

    def test_a_refutation_at_95_percent_alone_is_no_alarm(self):
        values = pd.DataFrame({"x": np.concatenate([np.full(9, 0.3), np.full(9, 0.6)])})
        check = claim(measure=measured(mean, "x"))
        estimate = mean(values["x"])
        assert estimate.high < 0.53
        check = replace(check, threshold=at_least(estimate.high + 1e-3))
        assert Result.of(check, values, 0.95).alarm
        result = Result.of(check, values, 0.9999)
        assert result.verdict.word == "refuted"
        assert not result.alarm

    @given(many=st.integers(1, 400))
    def test_the_alarm_level_is_for_the_claims_that_should_hold(self, many):
        level = alarm_level([claim()] * many + [claim("fails"), claim("open")])
        assert many * (1 - level) / 2 == pytest.approx(ERROR_RATE)

    def test_true_claims_at_their_thresholds_raise_alarms_as_rarely_as_stated(self):
        """2000 suites of 40 claims, each just true: at most 20 alarms expected; above 40 has probability 1e-4."""
        rng = np.random.default_rng(0)
        level, n = alarm_level([claim()] * 40), 12
        hits = rng.binomial(200, 0.95, (2000, 20))
        worst_share = np.array([covered(np.arange(200) < k, level).high for k in range(201)])
        means = rng.normal(size=(2000, 20, n))
        half = stats.t.ppf((1 + level) / 2, n - 1) * means.std(-1, ddof=1) / n**0.5
        alarmed = (worst_share[hits] < 0.95).any(-1) | (means.mean(-1) - half > 0).any(-1)
        assert 2 <= alarmed.sum() <= 40

    def test_too_few_replicates_says_how_many(self):
        with pytest.raises(InputError, match=r"--replicates 71 cannot support .* at least 72 are needed"):
            check_replicates("replicates", 71, 0.05)


class TestSuite:
    @pytest.mark.slow
    @pytest.mark.parametrize("preset", PRESETS)
    def test_names_are_unique_and_every_cell_has_a_safe_key(self, preset):
        made = suite(preset)
        names = [check.name for family in made.families for check in family.checks()]
        assert len(names) == len(set(names)) > 150
        assert all(c.name.startswith(f"{family.name}/") for family in made.families for c in family.checks())
        keys = [cell.key for cell in TheoryStudy(made).cells()]
        assert len(keys) == len(set(keys))
        assert all(key.isascii() and not set(key) & set("/\\: ") for key in keys)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_cells_are_frozen_values_that_travel(self, preset):
        for work in TheoryStudy(suite(preset)).cells():
            assert pickle.loads(pickle.dumps(work)) == work
            with pytest.raises(AttributeError):
                work.cell.anything = 1

    def test_every_family_is_an_option_with_its_sizes(self):
        assert {f.name for f in fields(suite("smoke"))} == {"seed", "claims", *checks.FAMILIES}


class TestSizes:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("option", "values"),
        [
            ("exact.rounds", ["0"]),
            ("exact.replicates", ["71"]),
            ("exact.delta", ["1"]),
            ("network.width", ["0"]),
            ("orders.widths", ["64"]),
            ("orders.times", ["10"]),
            ("orders.times", ["10", "99"]),
            ("orders.regularisations", ["1", "2"]),
            ("information.pools", ["1"]),
            ("tightness.truths", ["nope"]),
            ("tightness.prompts", ["1"]),
            ("certificates.batch", ["500"]),
            ("policy.betas", ["0"]),
            ("approximations.prompts", ["20"]),
            ("regret.exact-rounds", ["3"]),
            ("transformers.widths", ["8", "10"]),
            ("transformers.answers", ["99"]),
        ],
    )
    def test_a_size_that_cannot_be_is_refused_by_its_option(self, option, values, tmp_path, capsys):
        assert command.main(["smoke", f"--{option}", *values, "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert f"--{option}" in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Coin(Cell):
    """A coin that is thrown."""

    side: str


FAIR = Check(name="coins/fair", statement="heads", threshold=at_most(0.7), measure=measured(covered, "up"))


@dataclass(frozen=True, kw_only=True)
class Coins(Family[Coin]):
    """Is a coin fair?  A family of one's own, outside the package."""

    name = "coins"
    title = "Coins are fair"
    throws: int = 400

    def cells(self):
        return [Coin("heads")]

    def run(self, cell, seed, folder):
        return pd.DataFrame({"up": Key(seed).fold_in(cell.side).uniform(self.throws).numpy() < 0.5})

    def checks(self):
        return [FAIR, replace(FAIR, name="coins/loaded", threshold=at_most(0.3), expect="fails")]


class TestOwnFamily:
    @pytest.fixture(autouse=True)
    def registered(self):
        checks.register(smoke=Coins(throws=200), quick=Coins(), full=Coins())
        yield
        del checks.FAMILIES._parts["coins"]

    @pytest.mark.slow
    @pytest.mark.parametrize("jobs", ["1", "2"])
    def test_it_runs_as_the_package_s_own_do(self, jobs, tmp_path, capsys):
        arguments = ["smoke", "--claims", "coins", "--coins.throws", "300", "--output", str(tmp_path), "--jobs", jobs]
        assert command.main(arguments) == 0
        said = capsys.readouterr().out
        assert "coins/fair" in said
        assert "2 claims, 0 alarms" in said
        (page,) = tmp_path.rglob("index.html")
        assert "Coins are fair" in page.read_text()

    @pytest.mark.slow
    def test_alarms_are_counted_over_fresh_seeds(self, tmp_path, capsys, monkeypatch):
        arguments = ["smoke", "--claims", "coins", "--seeds", "3", "--output", str(tmp_path), "--jobs", "1"]
        assert alarms.main(arguments) == 0
        assert "0 of 3 runs of smoke raised an alarm: within the 0" in capsys.readouterr().out
        monkeypatch.setattr(Coins, "run", lambda *a: pd.DataFrame({"up": np.ones(300)}))
        arguments[arguments.index(str(tmp_path))] = str(tmp_path / "loaded")
        assert alarms.main(arguments) == 1
        said = capsys.readouterr().out
        assert "coins/fair (holds) is refuted" in said
        assert "3 of 3 runs of smoke raised an alarm: more than the 0" in said

    @pytest.mark.parametrize(
        ("method", "found", "words"),
        [
            ("cells", None, "cells returns a list of Cells, got None"),
            ("cells", [], "cells returns a list of Cells"),
            ("cells", ["heads"], "cells returns a list of Cells"),
            ("cells", [Coin("heads")] * 2, "2 cells with the key coin-heads"),
            ("cells", [Coin("a/../b")], "a cell's values make its folder's name"),
            ("cells", [Coin("x" * 300)], "a cell's values make its folder's name"),
            ("checks", None, "checks returns a list of Checks, got None"),
            ("checks", ["fair"], "checks returns a list of Checks"),
            ("checks", [FAIR, FAIR], "2 claims named coins/fair"),
            ("checks", [replace(FAIR, name="nan")], "its claims are named coins/"),
            ("checks", [replace(FAIR, measure=lambda table, level: 0.5)], "fair: measure returns an Estimate, got 0.5"),
            ("checks", [replace(FAIR, measure=measured(covered, "tails"))], "fair: there is no column 'tails'"),
            ("checks", [replace(FAIR, measure=measured(covered, "up", side=1))], "fair: there is no column 'side'"),
            ("run", None, "run returns a pandas DataFrame, got a NoneType"),
            ("run", {"up": [1]}, "run returns a pandas DataFrame, got a dict"),
        ],
    )
    def test_what_a_family_returns_is_refused_in_a_line_that_names_it(
        self, method, found, words, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(Coins, method, lambda *_: found)
        arguments = ["smoke", "--claims", "coins", "--output", str(tmp_path / "out"), "--jobs", "1"]
        assert command.main(arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.splitlines()[-1].startswith("error: ")
        assert "coins" in said

    @pytest.mark.parametrize(
        ("field", "value"), [("threshold", 0.7), ("expect", "maybe"), ("statement", None), ("measure", 3)]
    )
    def test_a_claim_says_what_it_claims(self, field, value):
        with pytest.raises(InputError, match=f"^claim coins/fair: .*got {value!r}"):
            replace(FAIR, **{field: value})

    @pytest.mark.parametrize("sizes", [3, Coins, None])
    def test_what_is_no_family_is_refused(self, sizes):
        with pytest.raises(InputError, match="a family is an object of a class that inherits from Family"):
            checks.register(smoke=sizes, quick=sizes, full=sizes)

    def test_a_name_that_cannot_be_an_option_is_refused(self):
        class Odd(Coins):
            name = "two-words"

        with pytest.raises(InputError, match="Python name"):
            checks.register(smoke=Odd(), quick=Odd(), full=Odd())


FAULTS = """
import resource, torch
from theory_checks.study import keep_freed

keep_freed()
torch.ones(2**23, dtype=torch.float64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**23, dtype=torch.float64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_large_temporaries_use_the_pages_of_those_before_them():
    """A tensor of 64 MB has 16,384 pages; made ten times, they are faulted in about once, not ten times.

    In a process of its own, as a cell is: what others left in the heap would be no part of it.
    """
    told = [sys.executable, "-c", FAULTS]
    assert int(subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=True).stdout) < 3 * 16_384


@pytest.mark.campaign
def test_the_recipe_of_the_documentation_runs(tmp_path):
    """A claim of one's own, as docs/how-to-add.md says it: from a script, outside the checkout."""
    text = (ROOT / "docs/how-to-add.md").read_text(encoding="utf-8")
    (tmp_path / "coins.py").write_text(
        re.findall(r"```python\n(.*?)```", text.partition("## A claim of the theory")[2], re.S)[0]
    )
    run = subprocess.run([sys.executable, "coins.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "2 claims, 0 alarms" in run.stdout


class TestAlarms:
    @pytest.mark.campaign
    def test_on_seeds_that_nothing_was_tuned_on_the_suite_raises_none(self, tmp_path, capsys):
        """Two of the default preset, as an alarm in either is more than the stated rate allows."""
        assert alarms.main(["smoke", "--seeds", "2", "--first", "101", "--output", str(tmp_path)]) == 0
        assert "0 of 2 runs of smoke raised an alarm: within the 0" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["quik"], "choose from smoke, quick"),
            (["--seeds", "0"], "--seeds must be at least 1"),
            (["--seeds", "100000000000"], "--seeds must be at least 1 and at most 1e+09"),
            (["--first", "-1"], "--first must be at least 0"),
            (["--jobs", "-1"], "--jobs must be at least 0"),
        ],
    )
    def test_bad_input_is_one_line_and_status_2(self, arguments, said, capsys):
        assert alarms.main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

    def test_what_is_allowed_is_exceeded_in_at_most_5_percent_of_campaigns(self):
        for runs in (1, 6, 20, 200):
            most = alarms.allowed(runs)
            assert stats.binom.sf(most, runs, ERROR_RATE) <= 0.05
            assert most == 0 or stats.binom.sf(most - 1, runs, ERROR_RATE) > 0.05
