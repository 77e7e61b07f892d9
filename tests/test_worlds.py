"""What pools and answers can be like, and the map over them."""

import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.map import main
from bandits.runs.stats import correlation, labels_saved
from bandits.selector import STRATEGIES
from bandits.sim.atlas import DRAWS, OBJECTIVES, WORLD, averaged, calibrated, page_text, redrawn, results, targets
from bandits.sim.config import PRESETS as SIMULATIONS
from bandits.sim.config import Simulation
from bandits.sim.learners import LEARNERS
from bandits.sim.map import METER, PRESETS, Map, MapStudy, _columns
from bandits.sim.problem import POLICIES, Problem
from bandits.sim.run import SimulationStudy
from bandits.sim.truths import TRUTHS, Linear, Square

DOCS = Path(__file__).parents[1] / "docs"
PUBLISHED = {"full": ("which-rule-when", "studies/map"), "spent": ("which-rule-when-spent", "studies/map-spent")}


def problem(seed: int = 0, replicates: int = 3, **knobs) -> Problem:
    options = {"prompts": 200, "responses": 3, "dim": 5, "heldout": 200} | knobs
    return Problem(Linear(), Key(seed, tuple(range(replicates))), **options)


def off_plane(x: torch.Tensor) -> torch.Tensor:
    """Return every item's share of its squared norm outside the plane of redundant prompts."""
    return x[..., 2:].square().sum(-1) / x.square().sum(-1)


@pytest.mark.parametrize("redundancy", [0.0, 0.3, 1.0])
def test_the_stated_share_of_the_pool_is_alike_and_held_out_prompts_are_not(redundancy):
    """600 prompts: the share is within 5 standard errors; of prompts that are not alike, few lie near the plane."""
    world = problem(redundancy=redundancy, alike=0.001)
    share = float((off_plane(world.table(0)[0].x) < 1e-3).double().mean())
    assert abs(share - redundancy) <= 5 * math.sqrt(redundancy * (1 - redundancy) / 600) + 0.01
    assert float((off_plane(world.heldout_table()[0].x) < 1e-3).double().mean()) < 0.01


def test_skewed_is_a_redundancy_of_nine_tenths():
    skewed, knob = problem(inputs="skewed"), problem(redundancy=0.9)
    assert torch.equal(skewed.everything()[0].x, knob.everything()[0].x)


def test_clusters_have_long_tailed_frequencies_in_the_pool_and_even_ones_held_out():
    world = problem(clusters=4, tail=2.0, alike=0.0, replicates=1, prompts=1000, heldout=1000)
    found = []
    for items, _ in (world.table(0), world.heldout_table()):
        first = items.x[0, :: items.responses]
        _, counts = torch.unique((first * 1e6).round(), dim=0, return_counts=True)
        found.append(np.sort(counts.numpy())[::-1] / 1000)
    weights = np.arange(1, 5.0) ** -2
    assert np.abs(found[0] - weights / weights.sum()).max() < 5 * math.sqrt(0.25 / 1000)
    assert np.abs(found[1] - 0.25).max() < 5 * math.sqrt(0.19 / 1000)


@pytest.mark.slow
def test_a_policy_of_a_mixture_answers_with_the_truly_best_of_its_draws():
    """Best of 16 standard normals has mean 1.766; a linear truth is nearly normal on a sphere of many dimensions.

    Within 0.1 standard deviations of a single draw.
    """
    options = {"dim": 50, "rescale": False, "bound": 10.0, "prompts": 1000, "heldout": 0}
    plain, best = (problem(mixing=mixing, **options).table(0)[1] for mixing in ((1.0,), (0.0, 0.0, 1.0)))
    assert float((best.mean() - plain.mean()) / plain.std()) == pytest.approx(1.766, abs=0.1)
    half = problem(mixing=(0.5, 0.0, 0.5), **options).table(0)[1]
    assert float((half.mean() - plain.mean()) / plain.std()) == pytest.approx(0.883, abs=0.1)
    assert POLICIES == (1, 4, 16)


def test_a_temperature_divides_rewards_and_what_bounds_them():
    cold, plain = problem(temperature=0.5), problem()
    torch.testing.assert_close(cold.everything()[1], 2 * plain.everything()[1])
    assert Simulation(temperature=0.5).bounds.largest_margin == 4.0


def test_one_replicate_is_the_same_alone_or_among_others():
    knobs = {"redundancy": 0.5, "clusters": 7, "tail": 1.0, "mixing": (0.4, 0.6)}
    alone = Problem(Square(), Key(3, (2,)), prompts=9, responses=3, dim=4, **knobs).everything()
    among = Problem(Square(), Key(3, (0, 1, 2)), prompts=9, responses=3, dim=4, **knobs).everything()
    assert torch.equal(alone[0].x[0], among[0].x[2])
    torch.testing.assert_close(alone[1][0], among[1][2])


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"mixing": (0.5, 0.4)}, "sum to 1"),
        ({"mixing": (0.5, -0.5, 1.0)}, "in \\[0, 1\\]"),
        ({"mixing": (0.25,) * 4}, "1 to 3 weights"),
        ({"tie_rate": 1.0}, "--tie-rate"),
        ({"tie_rate": -0.1}, "--tie-rate"),
        ({"flips": 1.5}, "--flips"),
        ({"responses": 1}, "--responses"),
        ({"redundancy": 0.5, "dim": 2}, "--dim"),
        ({"redundancy": 0.5, "inputs": "cube"}, "--redundancy"),
        ({"flips": 0.1, "truths": ("ntk@probit",)}, "another oracle"),
        ({"temperature": 0.0}, "--temperature"),
    ],
)
def test_worlds_that_there_are_not_are_refused_by_the_option(knobs, words):
    with pytest.raises(InputError, match=words):
        Simulation(**knobs)


def test_flips_and_ties_are_the_oracles_and_only_ties_are_the_learners():
    noisy = Simulation(truths=("ntk",), flips=0.2, tie_rate=0.3)
    oracle, margin = noisy.oracle("ntk"), torch.zeros(1, dtype=torch.float64)
    assert float(oracle.tie(margin)) == pytest.approx(0.3)
    far = torch.tensor([30.0], dtype=torch.float64)
    assert float(oracle.probability(far, (torch.zeros(1).long(), torch.ones(1).long()), 2)) == pytest.approx(
        0.8, abs=1e-6
    )
    assert noisy.ties_of(oracle) == pytest.approx(2 * 0.3 / 0.7)


class TestMap:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"budgets": (5,)}, "--budgets"),
            ({"budgets": (20, 33)}, "--budgets"),
            ({"noise": ("loud",)}, "noise"),
            ({"rules": ("best",)}, "strategy"),
            ({"responses": (1, 2)}, "--responses"),
            ({"budgets": (200,), "prompts": 10}, "--budgets asks for 200 labels, but a pool of"),
        ],
    )
    def test_bad_input_is_refused(self, options, words):
        with pytest.raises(InputError, match=words):
            Map(**options)

    @pytest.mark.slow
    def test_a_smoke_map_has_a_row_per_world_rule_and_budget(self, tmp_path, capsys):
        assert main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 0
        (folder,) = (tmp_path / "map").iterdir()
        table = pd.read_csv(folder / "results.csv")
        assert len(table) == 2 * 1 * 2 * 2  # worlds, rules, objectives, budgets
        assert np.isfinite(table[["saved", "predicted", "error_ratio", "value_difference"]]).all(axis=None)
        assert (table["low"] <= table["saved"]).all()
        assert (table["saved"] <= table["high"]).all()
        aims = pd.read_csv(folder / "target.csv")
        assert (aims["kept"] <= aims["claimed"]).all()
        assert "The target" in capsys.readouterr().out
        assert "| `activedpo` |" in (folder / "which-rule-when.md").read_text()

    def test_the_meter_looks_at_a_world_once(self):
        """However many its replicates: a row per world and budget."""
        cells = MapStudy.of(Map(meter_replicates=100, replicates=100)).cells()
        looks = [cell for cell in cells if cell.rule == "meter"]
        assert len({cell.world for cell in looks}) == len(looks)
        assert {len(cell.block) for cell in looks} == {100}

    def test_a_worlds_rules_share_its_problems_and_answers(self):
        settings = Map(rules=("activedpo",), replicates=4)
        cells = MapStudy.of(settings).cells()
        assert len({cell.key for cell in cells}) == len(cells)
        assert {cell.rule for cell in cells} == {"meter", "random", "activedpo"}
        assert all(settings.simulation(cell.world).seed == 0 for cell in cells)

    @pytest.mark.slow
    def test_workers_need_not_know_its_names(self, tmp_path, monkeypatch):
        """Rule, truth and learner of one's own: the study that a process without them gets plays all its cells."""
        own = {"mine": (STRATEGIES, STRATEGIES["activedpo"]), "ours": (TRUTHS, TRUTHS["square"])}
        own |= {"theirs": (LEARNERS, LEARNERS["tangent"])}
        for name, (registry, part) in own.items():
            monkeypatch.setitem(registry._parts, name, part)
        named = replace(PRESETS["smoke"][1], rules=("mine",), truth="ours", learner="theirs")
        sent = pickle.dumps((MapStudy.of(named), MapStudy.of(named).cells()))
        for name, (registry, _) in own.items():
            monkeypatch.delitem(registry._parts, name)
        study, cells = pickle.loads(sent)
        for cell in cells:
            folder = tmp_path / cell.key
            folder.mkdir(parents=True)
            assert study.play(cell, folder) == ["meter.csv" if cell.rule == METER else "rounds.csv"]


@pytest.mark.slow
def test_a_pool_of_a_truth_is_played_where_its_names_are_unknown(tmp_path, monkeypatch):
    """The settings that a truth's pool stands for are made where the run begins, for the meter and the rules."""
    monkeypatch.setitem(STRATEGIES._parts, "mine", STRATEGIES["activedpo"])
    small = replace(SIMULATIONS["smoke"][1], contenders=("random", "mine"), truths=("ntk+redundant",), audit=False)
    study = SimulationStudy.of(replace(small, rounds=2))
    sent = pickle.dumps((study, study.cells()))
    monkeypatch.delitem(STRATEGIES._parts, "mine")
    study, cells = pickle.loads(sent)
    assert {cell.contender for cell in cells} == {"random", "mine"}
    for cell in cells:
        folder = tmp_path / cell.key
        folder.mkdir(parents=True)
        assert study.play(cell, folder)
        assert study.settings[cell.setting, cell.truth].inputs == "skewed"


@pytest.mark.slow
@pytest.mark.skipif(not DOCS.exists(), reason="the studies are in a checkout")
@pytest.mark.parametrize("preset", PUBLISHED)
def test_which_rule_when_says_what_its_tables_say(preset):
    """The page is the text that the committed tables make, to the last number."""
    settings, (page, folder) = PRESETS[preset][1], PUBLISHED[preset]
    names = ("results", "means", "calibration", "target")
    table, means, fit, aims = (pd.read_csv(DOCS / folder / f"{name}.csv") for name in names)
    text = page_text(settings, preset, table, means, fit, aims, folder)
    assert (DOCS / f"{page}.md").read_text() == text
    told = text.partition("**In short.**")[2].partition("## Labels saved")[0]
    assert [claims(line) for line in told.splitlines() if claims(line) != ([], [])] == []
    assert set(table["rule"]) == set(settings.rules)
    pd.testing.assert_frame_equal(targets(settings, table).round(4), aims, check_dtype=False, atol=1e-4)


def made_up(key: int, replicates: int = 30, noise: float = 0.15) -> tuple[Map, pd.DataFrame]:
    """A map of six worlds that share their replicates' luck; on average a rule saves 10, 20, … 60 % of the labels."""
    settings = Map(redundancy=(0.0, 0.5, 0.9), noise=("plain", "flips"), responses=(3,), replicates=replicates)
    rng, rows = np.random.default_rng(key), []
    luck = rng.normal(size=(replicates, 2))
    labels = np.arange(settings.batch, max(settings.budgets) + 1, settings.batch)
    for number, world in enumerate(settings.worlds()):
        for rule, ahead in (("random", 0.0), ("activedpo", (number + 1) / 10)):
            own = noise * (luck[:, [int(rule == "random")]] + rng.normal(size=(replicates, 1))) / 2
            curve = np.exp(-labels * (1 / (1 - ahead)) / 60 + own)
            for replicate, label in np.ndindex(curve.shape):
                value = curve[replicate, label]
                rows.append((*_columns(world).values(), rule, replicate, labels[label], value, -value, 0.0))
    columns = [*_columns(settings.worlds()[0]), "rule", "replicate", "labels", *OBJECTIVES, "gradient_norm"]
    return settings, pd.DataFrame(rows, columns=columns)


def test_what_other_replicates_would_have_saved_is_worked_out_world_by_world():
    settings, rounds = made_up(0, 7)
    shares = redrawn(settings, rounds)
    counts = np.random.default_rng(settings.seed).multinomial(7, np.full(7, 1 / 7), DRAWS)
    samples = [range(7), *(np.repeat(np.arange(7), counts[draw]) for draw in (0, 99)), [0, 1, 2, 4, 5, 6]]
    for number, world in enumerate(rounds.groupby([*WORLD], sort=False)):
        curves = {
            rule: own.pivot(index="replicate", columns="labels", values="error")
            for rule, own in world[1].groupby("rule")
        }
        for budget in settings.budgets:
            found = shares["activedpo", "error", budget][number, [0, 1, 100, 1 + DRAWS + 3]]
            pairs = [(curves["activedpo"].loc[list(s)], curves["random"].loc[list(s)]) for s in samples]
            want = [labels_saved(a.columns, a, b, float(budget)).saved.value for a, b in pairs]
            np.testing.assert_allclose(found, want, rtol=1e-9)


def test_means_and_the_meter_s_fit_are_over_worlds():
    settings, rounds = made_up(1)
    shares, worlds = redrawn(settings, rounds), rounds[WORLD].drop_duplicates()
    table = results(settings, rounds)
    own = table[(table["objective"] == "error") & (table["budget"] == 60)]
    told = np.array([0.3, 0.1, 0.4, 0.15, 0.9, 0.05])
    means = averaged(settings, worlds, shares, dict.fromkeys(settings.budgets, told))
    means = means[(means["objective"] == "error") & (means["budget"] == 60)].set_index(["knob", "value"])
    assert means.loc[("all", "all"), "saved"] == pytest.approx(own["saved"].mean())
    assert means.loc[("redundancy", "0.5"), "saved"] == pytest.approx(own.loc[own["redundancy"] == 0.5, "saved"].mean())
    assert means.loc[("meter", "below 0.1"), ["worlds", "saved"]].tolist() == [1, pytest.approx(own["saved"].iloc[5])]
    more = shares | {("rival", "error", 60): shares["activedpo", "error", 60] - 0.1}
    rival = averaged(settings, worlds, more, dict.fromkeys(settings.budgets, told))
    np.testing.assert_allclose(rival.loc[rival["rule"] == "rival", ["ahead", "ahead_low", "ahead_high"]], 0.1)
    (fit,) = calibrated({("activedpo", "error", 60): shares["activedpo", "error", 60]}, {60: told}).itertuples()
    assert fit.rank == pytest.approx(scipy_stats.spearmanr(told, own["saved"]).statistic)
    assert fit.slope == pytest.approx(np.polyfit(told, own["saved"], 1)[0])
    draws = [
        scipy_stats.spearmanr(told, saved).statistic for saved in shares["activedpo", "error", 60][:, 1 : 1 + DRAWS].T
    ]
    expected = correlation(fit.rank, draws, settings.replicates)
    assert (fit.rank_low, fit.rank_high) == pytest.approx((expected.low, expected.high))


def claims(text: str) -> tuple[list[str], list[str]]:
    """Return what has 0 in its interval and is not called undecided, and averages without an interval."""
    plain = text.replace("−", "-")
    loose = [
        plain[: found.end()]
        for found in re.finditer(r"\[([-+]?[\d.]+), ([-+]?[\d.]+)\]", plain)
        if float(found[1]) <= 0 <= float(found[2])
        and not plain[found.end() :].startswith(" (undecided)")
        and not re.search(r"undecided(:| against) [^;]*$", plain[: found.start()])
    ]
    return loose, re.findall(r".*\d %(?= on average)", plain)


def test_what_is_open_is_said_to_be_and_averages_have_intervals():
    assert claims("a 3 % [−1, 7]; b 4 % [1, 7]; c 2 % [0, 3] (undecided)") == (["a 3 % [-1, 7]"], [])
    assert claims("saved labels: a 5 % [1, 7]; undecided: b 3 % [−1, 4], c 0 % [−3, 4]") == ([], [])
    assert claims("undecided against a −1 % [−4, +1], b +1 % [−1, +3]") == ([], [])
    assert claims("saves 12 % on average") == ([], ["saves 12 %"])


@pytest.mark.campaign
def test_intervals_over_replicates_cover_though_worlds_share_them():
    """Of 200 maps of dependent worlds, the mean, the meter's slope and each knob's mean: 0.90 or more hold the truth.

    (4 standard errors below 0.95.)
    """
    told, held = np.array([0.05, 0.2, 0.4, 0.35, 0.6, 0.5]), []
    exact = results(*made_up(0, 2, noise=0.0))
    true = exact.loc[(exact["objective"] == "error") & (exact["budget"] == 60), "saved"].to_numpy()
    np.testing.assert_allclose(true, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], atol=0.02)
    for key in range(200):
        settings, rounds = made_up(key)
        shares = {("activedpo", "error", 60): redrawn(settings, rounds)["activedpo", "error", 60]}
        means = averaged(settings, rounds[WORLD].drop_duplicates(), shares, {60: told}).set_index(["knob", "value"])
        (fit,) = calibrated(shares, {60: told}).itertuples()
        slope = np.polyfit(told, true, 1)[0]
        aims = {("all", "all"): true.mean(), ("redundancy", "0.9"): true[[2, 5]].mean()}
        hits = [means.loc[group, "low"] <= aim <= means.loc[group, "high"] for group, aim in aims.items()]
        held.append([*hits, fit.slope_low <= slope <= fit.slope_high])
    assert np.mean(held, 0).min() >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 200), np.mean(held, 0)


def test_a_pool_of_alike_prompts_offers_the_same_duels():
    assert problem(redundancy=0.5).duels.count == Duels.within(200, 3).count
