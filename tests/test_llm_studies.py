"""What strategies of a seed share, pools that are drawn once, and the figures' studies, on tiny models."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from kept import contents, only
from test_llm_loop import FEW, SMOKE, run_cell, smoke
from test_llm_models import tiny

import llm_loop.forecast
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop import tables
from llm_loop.arena import DrawnArena
from llm_loop.forecast import work
from llm_loop.models import Adapter
from llm_loop.rewards.scorers import load_scorer
from llm_loop.sampling import Decoding
from llm_loop.shared import Shared
from llm_loop.studies import __main__ as studies
from llm_loop.studies import figures, page
from llm_loop.studies.matrix import MATRICES, MatrixStudy
from llm_loop.studies.plans import STUDIES
from llm_loop.studies.read import Found, read

POOL = ("--pool", "5", "--responses", "4", "--pool-temperature", "1.5")


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """A run on a fixed pool: two seeds, two strategies."""
    folder = tmp_path_factory.mktemp("pooled")
    assert smoke(folder, *POOL, "--seeds", "2") == 0
    return only(folder)


def test_what_is_shared_is_made_once_and_a_damaged_entry_again(tmp_path, capsys):
    made = []

    def make():
        made.append(1)
        return {"a": [0.1, 1 / 3]}

    first, second = Shared(tmp_path / "seed-0"), Shared(tmp_path / "seed-0")
    assert first.json("one", make) == second.json("one", make) == {"a": [0.1, 1 / 3]}
    assert len(made) == 1
    (tmp_path / "seed-0" / "one" / "one.json").write_text("{}")
    assert second.json("one", make) == {"a": [0.1, 1 / 3]}
    assert len(made) == 2
    assert "cut or altered" in capsys.readouterr().err
    assert Shared(None).json("one", make) == {"a": [0.1, 1 / 3]}
    tensors = first.tensors("two", lambda: {"x": torch.tensor([1 / 3], dtype=torch.float64)})
    assert torch.equal(tensors["x"], torch.tensor([1 / 3], dtype=torch.float64))


@pytest.mark.campaign
@pytest.mark.parametrize("strategy", ["activedpo-initial", "apo", "random"])
def test_a_cell_that_finds_shared_work_has_the_bytes_of_one_that_makes_it(strategy, tmp_path):
    alignment = replace(FEW, strategies=(strategy, "activedpo-normalised"))
    run_cell(alignment, strategy, 0, tmp_path / "alone")
    run = tmp_path / "run" / "cells"
    run_cell(alignment, "activedpo-normalised", 0, run / "first")
    run_cell(alignment, strategy, 0, run / "second")
    assert (tmp_path / "run" / "shared" / "seed-0" / "round-1").is_dir()
    assert contents(run / "second") == contents(tmp_path / "alone")
    shutil.copytree(run / "second", run / "third")
    (run / "third" / "records" / "round-02.json").unlink()
    run_cell(alignment, strategy, 0, run / "third")  # resumed above layers whose states are gone
    assert contents(run / "third") == contents(tmp_path / "alone")


@pytest.mark.campaign
def test_a_finished_run_keeps_nothing_shared(pooled):
    assert not (pooled / "shared").exists()
    assert (pooled / "index.html").exists()
    assert "before the first label was bought" in (pooled / "index.html").read_text()


def test_a_pool_is_one_for_all_strategies_and_seeds_and_no_duel_is_asked_twice(pooled):
    texts, labels = {}, {}
    for cell in sorted((pooled / "cells").iterdir()):
        table = tables.frame(tables.Candidate, cell)
        for row in table.to_dict("records"):
            name = (row["prompt_index"], row["candidate"] % 6)
            pair = (row["response_1"], row["response_2"])
            assert texts.setdefault(name, pair) == pair
        picked = table[table["picked_position"].notna()]
        asked = list(zip(picked["prompt_index"], picked["candidate"] % 6, strict=True))
        assert len(set(asked)) == len(asked) == 6
        for duel, label in zip(asked, picked["label"], strict=True):
            assert labels.setdefault((cell.name[-1], *duel), label) == label
    seeds = [
        tables.frame(tables.Candidate, pooled / "cells" / f"random--seed{k}")["prompt_index"].tolist() for k in (0, 1)
    ]
    assert seeds[0] != seeds[1]


@pytest.mark.campaign
def test_a_pool_goes_on_with_the_same_bytes(pooled, tmp_path):
    part = tmp_path / "llm" / pooled.name
    shutil.copytree(pooled, part)
    (part / "ledger.json").unlink()
    (part / "cells" / "activedpo-normalised--seed1" / "records" / "round-02.json").unlink()
    (part / "cells" / "activedpo-normalised--seed1" / "rounds.jsonl").unlink()
    assert smoke(tmp_path, *POOL, "--seeds", "2") == 0
    assert contents(part) == contents(pooled)


@pytest.mark.campaign
def test_states_below_the_adapter_that_a_run_shares_change_no_byte(pooled, tmp_path):
    alignment = replace(SMOKE, seeds=2, pool=5, responses=4, pool_temperature=1.5)
    run_cell(alignment, "activedpo-normalised", 1, tmp_path / "alone")
    assert contents(tmp_path / "alone") == contents(pooled / "cells" / "activedpo-normalised--seed1")
    run = tmp_path / "run" / "cells"
    for strategy in ("random", "activedpo-normalised"):
        run_cell(alignment, strategy, 1, run / f"{strategy}--seed1")
    assert (tmp_path / "run" / "shared" / "all" / "states" / "states.safetensors").exists()
    assert contents(run / "random--seed1") == contents(pooled / "cells" / "random--seed1")
    assert contents(run / "activedpo-normalised--seed1") == contents(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pool", "3"), "exceeds --pool 3"),
        (("--pool", "4", "--responses", "2"), "the pool has 4 duels"),
        (("--pool", "5000"), "a pool of 5000 prompts asked for"),
        (("--lora-layers", "9"), "the model has 2 layers"),
        (("--heldout-between", "99"), "--heldout-between must be from 0"),
    ],
)
def test_bad_settings_of_pools_and_layers_are_one_line(options, words, tmp_path, capsys):
    assert smoke(tmp_path, *options) == 2
    assert words in capsys.readouterr().err


def test_a_fixed_arena_offers_parts_of_its_pool_half_of_it_at_another_temperature():
    policy, scorer = tiny("tiny-llama", moved=False), load_scorer("lexical-letters", "cpu")
    prompts = ["a b c", "de", "f"]
    arena = DrawnArena(
        policy, scorer, prompts, key=Key(1), prompts_per_round=2, responses=4, decoding=Decoding(5), pool=3, spread=9.0
    )
    arena.pool_table = table = arena.draw_pool(Key(0))
    logs = table.items.log_probs.unflatten(0, (3, 4))
    lengths = torch.tensor([len(row.response) for row in table.items.rows]).view(3, 4)
    per_token = logs / lengths
    assert float(per_token[:, :2].mean()) > float(per_token[:, 2:].mean())
    assert torch.allclose(policy.log_probs(table.items.rows, "test"), table.items.log_probs, atol=1e-4)
    offer = arena.offer(0)
    arena.label(Duels(offer.duels.first[:2], offer.duels.second[:2]))
    again = [arena.offer(number) for number in (1, 2, 3)]
    chosen = arena.chosen_prompts(0)[0]
    for number, later in zip((1, 2, 3), again, strict=True):
        place = arena.chosen_prompts(number)
        if chosen in place:
            start = 6 * place.index(chosen)
            assert not bool(later.available[start : start + 2].any())
    assert bool(arena.offer(0).available[:2].all()) == bool(offer.available[:2].all())


def test_names_that_look_like_numbers_stay_names(tmp_path):
    table = pd.DataFrame({"part": ["256", "1024"], "commit": ["0680098", "12e4567"], "reward": [0.5, 1.0]})
    table.to_csv(tmp_path / "t.csv", index=False)
    pd.testing.assert_frame_equal(read(tmp_path / "t.csv"), table, check_dtype=False)


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["3", "4"])
def test_a_study_plays_in_parts_and_says_what_its_finished_seeds_show(name, tmp_path, capsys):
    options = ["--output", str(tmp_path), "--jobs", "1"]
    assert studies.main([name, *options, "--show-only"]) == 0
    assert "no seed of this study is finished yet" in capsys.readouterr().out
    if name == "3":
        assert studies.main([name, *options, "--cells", "1/2"]) == 0
    assert studies.main([name, *options]) == 0
    page = (tmp_path / "studies" / f"figure-{name}.md").read_text()
    assert "2 finished" in page
    assert ("did" in page or "undecided" in page) if name == "3" else "of the exact gradients' first picks" in page
    table = pd.read_csv(tmp_path / "studies" / f"figure-{name}.csv")
    assert set(table["round"]) == {0, 1, 2}
    shutil.rmtree(tmp_path / "llm")  # what a table has is not lost with its runs, nor when the code has moved on
    assert studies.main([name, *options, "--show-only"]) == 0
    assert (tmp_path / "studies" / f"figure-{name}.md").read_text() == page
    assert (tmp_path / "studies" / f"figure-{name}.png").stat().st_size > 5000


@pytest.mark.campaign
def test_a_positive_control_has_its_forecast_and_a_ceiling(tmp_path, capsys):
    options = ["--output", str(tmp_path), "--jobs", "1"]
    assert studies.main(["redundant", *options]) == 0
    page = (tmp_path / "studies" / "redundant.md").read_text()
    assert "Foretold before any label, by variance alone (2 seeds, 30 duels in the pool" in page
    assert "| redundant pool | ceiling |" in page
    made = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("seed-*/*.json"))]
    assert studies.main(["redundant", *options]) == 0  # nothing is foretold anew
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("seed-*/*.json"))] == made
    assert (tmp_path / "studies" / "redundant.md").read_text() == page
    (gone,) = (tmp_path / "studies").glob("headroom-*")
    shutil.rmtree(gone)  # what was foretold outlives its run, as the table does
    shutil.rmtree(tmp_path / "llm")
    assert studies.main(["redundant", *options, "--show-only"]) == 0
    assert (tmp_path / "studies" / "redundant.md").read_text() == page


@pytest.mark.campaign
def test_two_models_and_three_preference_sets_make_a_matrix(tmp_path, capsys):
    options = ["--output", str(tmp_path), "--jobs", "1"]
    assert studies.main(["2", *options, "--show-only"]) == 0
    assert "no seed of this study is finished yet" in capsys.readouterr().out
    assert studies.main(["2", *options, "--cells", "1/2"]) == 0
    assert studies.main(["figure-2", *options]) == 0
    page = (tmp_path / "studies" / "figure-2.md").read_text()
    assert "2 of 2 paired seeds are finished" in page
    assert "suits the model" in page or "a model learned" in page
    table = pd.read_csv(tmp_path / "studies" / "figure-2.csv")
    assert len(table) == 2 * 3 * 2
    assert (tmp_path / "studies" / "figure-2.png").stat().st_size > 5000
    shutil.rmtree(tmp_path / "matrix")  # the table outlives its run
    assert studies.main(["2", *options, "--show-only"]) == 0
    assert (tmp_path / "studies" / "figure-2.md").read_text() == page


@pytest.mark.campaign
def test_a_cell_of_the_matrix_shares_a_pool_and_plays_alike(tmp_path, capsys):
    """Chosen at random, without a page: what both models start from, and the same bytes again."""
    matrix = MATRICES["smoke"][1]
    study = MatrixStudy.of(replace(matrix, alignment=replace(matrix.alignment, rounds=1, seeds=1)))
    chance = study.cells()[-1]
    assert chance.key == "random--seed0"
    for run in ("one", "two"):
        assert study.play(chance, tmp_path / run / "cells" / chance.key) == ["evaluations.csv", "picks.csv"]
    first, second = (tmp_path / run / "cells" / chance.key for run in ("one", "two"))
    assert contents(first) == contents(second)
    assert {path.name for path in (tmp_path / "one" / "sft").iterdir()} == {"toy-vowels", "toy-letters"}
    pool = json.loads((tmp_path / "one" / "shared" / "all" / "pool" / "pool.json").read_text())
    texts = len(pool["texts"])
    assert texts == 6 * 4 == len(pool["log_probs"]["toy-vowels"])
    assert pool["log_probs"]["toy-vowels"] != pool["log_probs"]["toy-letters"]
    rows = pd.read_csv(first / "evaluations.csv")
    assert rows.groupby(["model", "stage"]).size().tolist() == [6, 6, 6, 6]
    assert (rows[rows["stage"] == "before"]["log_ratio"] == 0).all()
    assert (rows[rows["stage"] == "after"]["log_ratio"] != 0).any()
    picks = pd.read_csv(first / "picks.csv")
    assert len(picks) == 3
    assert not picks[["prompt_index", "first", "second"]].duplicated().any()


def gains(own: float, seeds: int = 8, noise: float = 0.01) -> pd.DataFrame:
    """Gains of two models by three sets, the model's own being better by ``own``."""
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"model": m, "chosen_by": c, "seed": k, "gain": 0.3 + own * (m == c) + generator.normal(scale=noise)}
            for k in range(seeds)
            for m in ("films", "news")
            for c in ("films", "news", "random")
        ]
    )


def test_gains_are_differences_of_means_over_held_out_prompts():
    """Every number again from plain lists; a seed of which one set is missing is left out."""
    generator, names = np.random.default_rng(1), ("plots", "news")
    measured = ("reward", "judge", "log_ratio", "reference_log_prob")
    sets = [(chosen, seed) for chosen in (*names, "random") for seed in (0, 1) if (chosen, seed) != ("random", 1)]
    evaluations = [
        {"model": model, "chosen_by": chosen, "seed": seed, "stage": stage, "prompt_index": prompt}
        | {"tokens": int(generator.integers(3, 20))}
        | dict(zip(measured, generator.normal(size=4), strict=True))
        for chosen, seed in sets
        for model in names
        for stage in ("before", "after")
        for prompt in range(5)
    ]
    picks = [
        {"chosen_by": chosen, "seed": seed, "prompt_index": 10 * k, "first": k, "second": k + 1, "prompt": text}
        for chosen, seed in sets
        for k, text in enumerate(("You are a film critic.", "Write a headline.", "Is this a good film?"))
    ]
    found = page.gains_of(pd.DataFrame(evaluations), pd.DataFrame(picks)).set_index(["model", "chosen_by"])
    assert set(found["seed"]) == {0}
    assert set(found.index) == {(model, chosen) for model in names for chosen in (*names, "random")}
    for (model, chosen), row in found.iterrows():

        def average(stage, value, model=model, chosen=chosen):
            here = {"model": model, "chosen_by": chosen, "seed": 0, "stage": stage}
            values = [value(one) for one in evaluations if here.items() <= one.items()]
            return sum(values) / len(values)

        after, before = (average(stage, lambda one: one["reward"]) for stage in ("after", "before"))
        assert row["before"] == pytest.approx(before)
        assert row["gain"] == pytest.approx(after - before)
        after, before = (average(stage, lambda one: one["judge"]) for stage in ("after", "before"))
        assert row["judge_gain"] == pytest.approx(after - before)
        after, before = (average(s, lambda one: one["reference_log_prob"] / one["tokens"]) for s in ("after", "before"))
        assert row["fluency_change"] == pytest.approx(after - before)
        assert row["kl_per_token"] == pytest.approx(average("after", lambda one: one["log_ratio"] / one["tokens"]))
        assert row["films"] == pytest.approx(2 / 3)
        assert row["picks"] == "0:0-1 10:1-2 20:2-3"


def test_a_matrix_is_told_by_whether_own_data_suits_more():
    assert page.fits(gains(0.2)).startswith("On average over both, a model learned more from what it chose itself")
    assert "+0.20" in page.fits(gains(0.2))
    assert page.fits(gains(-0.2)).startswith("On average over both, a model learned less")
    assert "undecided" in page.fits(gains(0.0, seeds=3, noise=0.1))
    found = page.contrasts(gains(0.2)).set_index(["truth", "contender", "baseline"])
    assert len(found) == 6
    assert found.loc[("films", "films", "random"), "verdict"] == "better"
    assert found.loc[("news", "films", "news"), "verdict"] == "worse"
    assert found.loc[("news", "films", "random"), "verdict"] == "undecided"


def test_every_seed_of_a_matrix_is_in_the_picture():
    table = gains(0.2)
    table.loc[table["model"] == "news", "gain"] += 3.0
    drawing = figures.matrix(table, page.contrasts(table))
    for axis, model in zip(drawing.axes, ("films", "news"), strict=False):
        low, high = axis.get_ylim()
        own = table.loc[table["model"] == model, "gain"]
        assert low < own.min()
        assert own.max() < high


def test_a_projection_is_compared_with_exact_gradients_round_one():
    """Of 4 picks, 3 are kept; widths are off by 10, 20 and 30 %, so by 20 % in the middle; their order is kept."""
    rows = [
        {"part": part, "seed": seed, "round": number, "labels": 4 * number, "reward": 0.1 * seed, "strategy": "a"}
        | {"picks": picks, "widths": widths}
        for seed in (0, 1)
        for number in (1, 2)
        for part, picks, widths in (("256", "0:1 0:2 1:1 9:9", "1.1 1.6 3.9"), ("exact", "0:1 0:2 1:1 2:2", "1 2 3"))
    ]
    table = pd.DataFrame(rows)
    found = page.sketched(table)
    assert found[["part", "seed", "picks"]].to_numpy().tolist() == [["256", 0, 0.75], ["256", 1, 0.75]]
    assert found["error"].to_list() == pytest.approx([0.2, 0.2])
    assert found["rank"].to_list() == [1.0, 1.0]
    said = " ".join(page.overlaps(table))
    assert "dimension 256: 75 %" in said
    assert "off by 20.0 %" in said
    assert page.sketched(table[table["part"] != "exact"]).empty


@pytest.mark.slow
def names_of(drawing):
    """What a figure's legend has."""
    return [text.get_text() for text in drawing.legends[0].get_texts()]


def test_a_page_says_what_saves_labels_and_which_text_broke():
    study = STUDIES["1"]
    generator = np.random.default_rng(0)
    pace = {"activedpo-normalised": 2.0, "random": 1.0, "apo": 0.5, "aplp": 1.0, "decisive-bald": 2.0}
    pace |= {"policy-trace-target": 2.0}
    rows = [
        {
            "part": part.name,
            "strategy": strategy,
            "seed": seed,
            "round": number,
            "labels": 16 * number,
            "reward": pace[strategy] * number + generator.normal(scale=0.05),
            "judge": 0.1 * number,
            "kl_per_token": 0.05 * number * (1 + 9 * (strategy == "apo")),
            "fluency": -2.0 - 0.01 * number,
            "picks": "0:1",
        }
        for part in study.full
        for strategy in part.strategies
        for seed in range(4)
        for number in range(5)
    ]
    table = pd.DataFrame(rows)
    saved = page.saved_of(study, table)
    said = page.verdicts(study, study.full, table, saved)
    assert sum("activedpo-normalised saves labels: with 32 it has random's reward at 64" in line for line in said) == 4
    assert sum("decisive-bald saves labels: with 32 it has random's reward at 64" in line for line in said) == 1
    assert sum("apo does not save labels" in line for line in said) == 4
    assert len(saved) == 4 * 3 + 2
    assert said[0].startswith("films: held-out reward was −0.01 at first and is, after 64 labels, 7.97 [")
    assert said[0].endswith("; 4 seeds.")
    assert sum("activedpo-normalised did better than random, after the last round" in line for line in said) == 4
    assert said[-1].startswith("Beyond the limits")
    assert "films, apo; headlines, apo; " in said[-1]
    told = table.assign(machine="a machine", model="tiny", commit="abc")
    found = {part.name: Found(told[told["part"] == part.name]) for part in study.full}
    lines = page.written("1", study, study.full, found, saved, page.Told("figure-1", "full"))
    assert "Computed on: a machine." in lines
    assert any(line.endswith("In the tables alone: KL, nats a token; fluency, nats a token.") for line in lines)
    assert any(line.startswith("- films: 4 finished paired seeds, 4 rounds of 16 labels, tiny") for line in lines)
    assert not any("with Random itself" in line for line in said)
    assert set(names_of(figures.drawn(study, table, saved, page.sketched(table)))) == set(pace)
    flat = table["strategy"].eq("random") & table["part"].eq("headlines")
    none = table.assign(reward=table["reward"].mask(flat, generator.normal(scale=0.05, size=len(table))))
    said = page.verdicts(study, study.full, none, page.saved_of(study, none))
    assert [line.partition(":")[0] for line in said if "with Random itself it cannot be told" in line] == ["headlines"]
    fell = table.assign(reward=table["reward"].where(~flat, -table["reward"]))
    (line,) = page.unlearned(study, fell[fell["part"] == "headlines"])
    assert line.startswith("headlines: with Random itself it got worse (−4")
    assert not page.unlearned(study, fell[(fell["part"] == "headlines") & (fell["seed"] == 0)])


def test_a_regime_names_the_best_setting_whose_text_stayed_language():
    """The setting of the largest reward lost fluency; the next one is named, and each is drawn where it ended."""
    study = STUDIES["regime"]
    steps = {part.name: place for place, part in enumerate(study.full)}
    table = pd.DataFrame(
        [
            {"part": name, "strategy": "random", "seed": seed, "round": number, "labels": 48 * number, "picks": "0:1"}
            | {"reward": 0.2 + 0.01 * place * number + 0.001 * seed * number, "judge": 0.02 * number}
            | {"kl_per_token": 0.05 * number, "fluency": -3.0 - number * (0.4 if place == 11 else 0.1)}
            for name, place in steps.items()
            for seed in (0, 1)
            for number in (0, 1)
        ]
    )
    said = page.verdicts(study, study.full, table, page.saved_of(study, table))
    assert said[0].startswith(
        f"Of the 11 of 12 settings within the limits, {list(steps)[10]} raised the reward most: by +0.10"
    )
    assert said[1].endswith(f"so that reward there is no gain: {list(steps)[11]}.")
    drawing = figures.drawn(study, table, page.saved_of(study, table), page.sketched(table))
    first = drawing.axes[0]
    ends = {
        line.get_label(): tuple(map(float, line.get_xydata()[0])) for line in first.lines if line.get_markersize() > 5
    }
    for name, place in steps.items():
        assert ends[name] == pytest.approx((-0.4 if place == 11 else -0.1, 0.01 * place + 0.0005))


def test_an_unknown_study_is_refused(capsys):
    assert studies.main(["7"]) == 2
    assert "unknown study '7'" in capsys.readouterr().err


@pytest.mark.slow
def test_every_study_has_settings_that_hold():
    for study in STUDIES.values():
        for preset in ("smoke", "full"):
            for part in study.parts(preset):
                arguments = ["quick" if preset == "full" else "smoke", "--strategies", *part.strategies, *part.options]
                assert studies.command.parse(studies.COMMAND, arguments)[1].settings.seeds >= 2


@pytest.mark.slow
def test_a_run_with_a_at_zero_sees_no_gradient_of_b_at_first(tmp_path):
    alignment = replace(SMOKE, adapter=Adapter(rank=4, alpha=8.0, layers=1, init="a0"), strategies=("activedpo",))
    run_cell(alignment, "activedpo", 0, tmp_path)
    assert tables.frame(tables.Round, tmp_path)["zero_A_gradient_share"].tolist()[1:] == [0.0, 0.0]


def test_a_pool_too_small_is_refused_by_the_arena():
    with pytest.raises(InputError, match="the pool has 1"):
        DrawnArena(
            tiny("tiny-llama"),
            load_scorer("lexical-letters", "cpu"),
            ["a", "b"],
            key=Key(0),
            prompts_per_round=2,
            pool=1,
        )


@pytest.mark.slow
def test_a_dry_run_tells_what_a_run_takes_and_writes_nothing(tmp_path, capsys):
    assert smoke(tmp_path / "none", "--dry-run", "--seeds", "3") == 0
    said = capsys.readouterr().out
    assert said.startswith("6 cells to play\n")
    assert re.search(r"activedpo-normalised: 3 cells of about .* \(draw .*, score .*, features .*, train .*\)", said)
    assert re.search(r"random: 3 cells of about [^f]*\)", said)  # blind: no features
    assert re.search(r"memory: about .* GiB a cell, and this machine has .* side by side would fit\n", said)
    assert re.search(r"tokens: about [\d,]+ drawn and [\d,]+ trained on \(all epochs\) in a cell, [\d,]+ drawn", said)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_dry_run_counts_what_is_left_of_its_part_of_the_cells(tmp_path, capsys):
    few = ("--rounds", "1", "--strategies", "random", "--seeds", "4", "--sft", "toy-letters")
    assert smoke(tmp_path, *few, "--cells", "1/4") == 0
    for more, first, tuned in (
        ((), "3 cells to play, 1 are finished\n", False),
        (("--cells", "1/2"), "1 cells to play, 1 are finished; part 1/2 of 4\n", False),
        (("--force",), "4 cells to play\n", True),
    ):
        capsys.readouterr()
        assert smoke(tmp_path, *few, *more, "--dry-run") == 0
        said = capsys.readouterr().out
        assert said.startswith(first)
        assert f"random: {first[0]} cells" in said
        assert ("is tuned on" in said) == tuned  # once for all cells: it was kept
    assert smoke(tmp_path, *few, "--cells", "1/4", "--dry-run") == 0
    assert capsys.readouterr().out == "0 cells to play, 1 are finished; part 1/4 of 4\n"
    assert smoke(tmp_path, *few, "--cells", "9/3", "--dry-run") == 2
    assert "--cells must be i/n with 1 <= i <= n, got '9/3'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_of_figure_2_counts_its_part_of_the_cells(tmp_path, capsys):
    arguments = ["2", "--output", str(tmp_path), "--dry-run", "--cells"]
    assert studies.main([*arguments, "2/3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 cells to play; part 2/3 of 6\nof these 1 of about")
    assert "before them, once: two tunings and the pool" in said
    assert studies.main([*arguments, "9/3"]) == 2
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run_for_a_gpu_that_is_not_here_is_of_the_cpu_and_says_what_does_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert smoke(tmp_path, "--dry-run", "--device", "cuda", "--seeds", "1") == 0
    assert "device 'cuda' is not available here: hours and memory are of this machine's CPU" in capsys.readouterr().out
    monkeypatch.setattr(llm_loop.forecast, "machine_memory", lambda: 2.0**29)
    assert smoke(tmp_path, "--dry-run", "--seeds", "1") == 0
    said = capsys.readouterr().out
    assert "GiB a cell, and this machine has 0.5 GiB, of which a run may take 90%: it does not fit\n" in said
    assert "1 side by side, if it did fit" in said
    monkeypatch.setattr(llm_loop.forecast, "machine_memory", lambda: 100.0)
    monkeypatch.setattr(llm_loop.forecast, "build", lambda *given: 1 / 0)
    assert smoke(tmp_path, "--dry-run", "--seeds", "1") == 0
    said = capsys.readouterr().out
    assert said.endswith("the model alone does not fit, so it was not loaded and no work was timed\n")
    assert re.search(r"tokens: at most [\d,]+ drawn", said)


@pytest.mark.slow
def test_a_forecast_counts_what_a_cell_does(tmp_path):
    """Responses drawn, and pairs trained on, of a cell that was played, by its records."""
    run_cell(FEW, "activedpo-normalised", 0, tmp_path)
    done = work(FEW, True)
    rounds = tables.frame(tables.Round, tmp_path)
    pool = 4 * 3 * FEW.rounds
    assert done.draw == pool + len(tables.frame(tables.Evaluation, tmp_path)) + 2 * FEW.evaluation.duels
    assert done.train == FEW.training.epochs * int(rounds["labels"].sum())
    assert done.features == pool + 2 * int(rounds["labels"][:-1].sum())
