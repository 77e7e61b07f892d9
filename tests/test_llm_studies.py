"""What strategies of a seed share, pools that are drawn once, and the figures' studies, on tiny models."""

import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kept import contents, only
from tiny_models import FEW, SMOKE, run_cell, smoke, tiny
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import llm_loop.forecast
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop import measures, tables
from llm_loop.__main__ import main
from llm_loop.arena import DrawnArena, answers, shares
from llm_loop.forecast import Author, of_pool, work
from llm_loop.models import Adapter, Policy, byte_tokenizer, tiny_model
from llm_loop.rewards.scorers import load_scorer
from llm_loop.run import AlignmentStudy
from llm_loop.sampling import Decoding
from llm_loop.shared import Shared
from llm_loop.studies import __main__ as studies
from llm_loop.studies import figures, page
from llm_loop.studies.matrix import MATRICES, MatrixStudy
from llm_loop.studies.plans import STUDIES, Part
from llm_loop.studies.read import Found, finished, read, run_of

ROOT = Path(__file__).parents[1]
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


def test_a_study_reads_how_well_the_model_is_off_its_runs(pooled):
    """Every measure of health again from plain rows, of each seed alone."""
    part = Part("pool", (*POOL, "--seeds", "2"), ("activedpo-normalised", "random"))
    table = finished(part, *run_of(["smoke", *part.words, "--output", str(pooled.parents[1])])).table
    assert set(table["options"]) == {part.digest}
    answers = {}
    for cell in sorted((pooled / "cells").iterdir()):
        strategy, seed = cell.name.split("--seed")
        own = table[(table["strategy"] == strategy) & (table["seed"] == int(seed))].set_index("round")
        answers[strategy, int(seed)] = rows = tables.read(tables.Evaluation, cell)
        for row in tables.read(tables.Round, cell):
            ended = [one.ended for one in rows if one.round == row.round]
            assert own.loc[row.round, "ended"] == pytest.approx(np.mean(ended), abs=1e-4)
            assert own.loc[row.round, "bits_per_byte"] == pytest.approx(row.bits_per_byte, abs=1e-4)
            duels = [one for one in tables.read(tables.HeldoutDuel, cell) if one.round == row.round]
            right = [(np.sign(one.margin * one.true_margin) + 1) / 2 for one in duels if one.true_margin]
            assert own.loc[row.round, "accuracy"] == pytest.approx(np.mean(right), abs=1e-4)
            if row.round:
                assert own.loc[row.round, "chosen_log_ratio"] == pytest.approx(row.chosen_log_ratio, abs=0.01)
                assert own.loc[row.round, "rejected_log_ratio"] == pytest.approx(row.rejected_log_ratio, abs=0.01)
                assert own.loc[row.round, "chosen_fell_share"] == pytest.approx(row.chosen_fell_share, abs=1e-4)
                assert own.loc[row.round, "training_accuracy"] == pytest.approx(row.training_accuracy, abs=1e-4)
        first, last = ({one.prompt_index: one for one in rows if one.round == number} for number in (0, 2))
        longer = [
            (np.sign((last[k].tokens - first[k].tokens) * (last[k].reward - first[k].reward)) + 1) / 2
            for k in last
            if last[k].tokens != first[k].tokens
        ]
        assert own["longer_wins"].dropna().to_list() == pytest.approx([np.mean(longer)] if longer else [], abs=1e-4)
    begun = [{one.prompt_index: one for one in answers["random", seed] if one.round == 0} for seed in (0, 1)]
    for column, measure in (("null_wins", "reward"), ("null_judge_wins", "judge")):
        twice = [[getattr(one[k], measure) for k in begun[0]] for one in begun]
        wins = np.mean([(np.sign(second - first) + 1) / 2 for first, second in zip(*twice, strict=True)])
        null = table[table[column].notna()]
        assert null[["strategy", "seed", "round"]].to_numpy().tolist() == [[name, 0, 0] for name in part.strategies]
        assert null[column].to_list() == pytest.approx([wins, wins], abs=1e-4)


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


def stranger(seed: int = 5) -> Policy:
    """Return a model whose tokenizer numbers the bytes from the other end."""
    spec = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocabulary = spec["model"]["vocab"]
    spec["model"]["vocab"] = {text: i if text == "<end>" else 255 - i for text, i in vocabulary.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token="<end>", pad_token="<end>"
    )
    return Policy(tiny_model("tiny-gpt2", Key(seed)), tokenizer, Adapter(1, 1.0, ()), Key(0))


def mixed_arena(responses: int = 7, spread: float = 0.0) -> DrawnArena:
    return DrawnArena(
        tiny("tiny-llama", moved=False),
        load_scorer("lexical-letters", "cpu"),
        ["a b c", "de", "f"],
        key=Key(1),
        prompts_per_round=2,
        responses=responses,
        decoding=Decoding(6),
        pool=3,
        spread=spread,
    )


@pytest.mark.slow
class TestModelsBesideTheInitialOne:
    def test_each_has_its_share_and_the_first_what_is_left(self):
        assert shares(8, 1) == (8,)
        assert shares(8, 2) == (4, 4)
        assert shares(7, 3) == (3, 2, 2)
        assert measures.drawn_by(replace(SMOKE, pool=5, responses=4, pool_models=("tiny-gpt2", "tiny-gemma"))) == [
            *("tiny-llama", "tiny-llama", "tiny-gpt2", "tiny-gemma")
        ]
        assert measures.drawn_by(SMOKE) == ["", "", ""]

    def test_what_another_model_draws_is_read_as_text_by_the_initial_one(self):
        arena, other = mixed_arena(), stranger()
        table = arena.draw_pool(Key(0), [lambda: other, stranger])
        policy, drawn = arena.policy, []
        for i in range(3):
            share = slice(7 * i, 7 * i + 3)
            for row, text in zip(table.items.rows[share], table.texts[share], strict=True):
                assert policy.decode(row.response) == text
            drawn += zip(table.items.rows[7 * i + 3 : 7 * i + 5], table.texts[7 * i + 3 : 7 * i + 5], strict=True)
        prompts = [other.tokens_of(prompt) for prompt in arena.prompts]
        key = Key(0).fold_in("model", 0)
        assert prompts[0] != arena.encoded[0]  # the tokenizers are unlike
        rows, _ = answers(other, prompts, [(2, arena.decoding)], key)
        assert [text for _, text in drawn] == [other.decode(row.response) for row in rows]
        for (row, text), own in zip(drawn, rows, strict=True):
            ended = own.response[-1] in other.ends or not text
            assert row.response == policy.response_of(text)[: None if ended else -1]
        assert [row.prompt for row in table.items.rows] == [ids for ids in arena.encoded for _ in range(7)]
        assert torch.allclose(policy.log_probs(table.items.rows, "test"), table.items.log_probs, atol=1e-4)
        rewards = load_scorer("lexical-letters", "cpu")([""] * 21, table.texts)
        assert torch.equal(table.rewards, rewards)

    def test_alone_the_initial_model_draws_what_it_draws_beside_others(self):
        alone = mixed_arena(3).draw_pool(Key(0))
        beside = mixed_arena(5).draw_pool(Key(0), [stranger])
        assert alone.texts == tuple(text for i in range(3) for text in beside.texts[5 * i : 5 * i + 3])

    def test_half_of_each_models_responses_are_drawn_at_the_pools_temperature(self):
        cold, hot = (mixed_arena(8, spread).draw_pool(Key(0), [stranger]) for spread in (1e-3, 50.0))
        for i in range(3):
            for first in (8 * i, 8 * i + 4):  # the initial model's, and the other's
                assert cold.texts[first : first + 2] == hot.texts[first : first + 2]
                assert cold.texts[first + 2] == cold.texts[first + 3]  # at no temperature, a model says one thing
                assert hot.texts[first + 2] != hot.texts[first + 3]

    def test_one_model_at_a_time_is_in_memory(self):
        alive: list[weakref.ref] = []

        def load() -> Policy:
            assert not any(known() for known in alive)
            policy = stranger(len(alive))
            alive.append(weakref.ref(policy.model.get_base_model()))
            return policy

        mixed_arena(6).draw_pool(Key(0), [load, load])
        assert len(alive) == 2
        assert not any(known() for known in alive)

    def test_a_response_too_long_for_the_initial_model_is_refused(self):
        arena = mixed_arena(4)
        arena.policy.context = max(map(len, arena.encoded)) + arena.decoding.tokens
        with pytest.raises(InputError, match="positions, and the model has 11"):
            arena.draw_pool(Key(0), [stranger])  # bytes that are no text become three each


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--pool-models is for a pool that is drawn; give --pool a number of prompts"),
        (("--pool", "ours.jsonl"), "--pool-models is for a pool that is drawn, and a file's responses are there"),
        (("--pool", "5", "--pool-models", "tiny-gpt2", "tiny-gemma", "x"), "cannot be shared by 4 models; raise it"),
        (("--pool", "5", "--pool-temperature", "2"), "2 models, half of them at --pool-temperature; raise it to 4"),
        (("--pool", "5", "--pool-models", "tiny-gpt3"), r"'tiny-gpt3': did you mean tiny-gpt2\? .*\(--pool-models\)"),
        (("--pool", "5", "--pool-models", "./none"), r"'\./none': there is no such directory.* \(--pool-models\)"),
        (("--pool", "5", "--pool-models", "tiny-llama"), "--pool-models names tiny-llama, the --model, which draws"),
        (("--pool", "5", "--pool-models", "tiny-gpt2", "tiny-gpt2"), "--pool-models names 'tiny-gpt2' twice"),
    ],
)
def test_models_that_cannot_share_a_pool_are_one_line_and_none_is_loaded(options, words, tmp_path, capsys, monkeypatch):
    def loaded(*arguments, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("llm_loop.setup.load_policy", loaded)
    given = options if "--pool-models" in options else (*options, "--pool-models", "tiny-gpt2")
    for more in ((), ("--dry-run",)):
        assert smoke(tmp_path / "out", *given, *more) == 2
        error = capsys.readouterr().err
        assert re.search(words, error), error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_model_by_two_names_is_refused(tmp_path, capsys):
    tiny_model("tiny-gpt2", Key(0)).save_pretrained(tmp_path / "own")
    byte_tokenizer().save_pretrained(tmp_path / "own")
    names = str(tmp_path / "own"), str(tmp_path / "own" / ".." / "own")
    assert smoke(tmp_path / "out", "--pool", "5", "--pool-models", *names) == 2
    assert f"--pool-models: {names[1]} and {names[0]} are the same model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_draws_belongs_to_the_runs_identity(tmp_path):
    tiny_model("tiny-gpt2", Key(0)).save_pretrained(tmp_path / "own")
    byte_tokenizer().save_pretrained(tmp_path / "own")
    alignment = replace(SMOKE, pool=5, pool_models=(str(tmp_path / "own"),))
    before = AlignmentStudy.of(alignment).identity()
    assert AlignmentStudy.of(alignment).identity() == before
    tiny_model("tiny-gpt2", Key(1)).save_pretrained(tmp_path / "own")
    assert AlignmentStudy.of(alignment).identity() != before


MIXED = replace(FEW, pool=5, responses=5, pool_models=("tiny-gpt2",))


@pytest.mark.campaign
def test_a_pool_of_two_models_says_who_drew_what_and_goes_on_with_the_same_bytes(tmp_path):
    options = ("--pool", "5", "--responses", "5", "--pool-models", "tiny-gpt2")
    assert smoke(tmp_path, *options) == 0
    run = only(tmp_path)
    found = tables.frame(tables.Candidate, *sorted((run / "cells").iterdir()))
    drew = found.drop_duplicates(["round", "strategy", "candidate"]).groupby(["model_1", "model_2"]).size()
    assert (drew / drew.sum()).to_dict() == pytest.approx(
        {("tiny-llama", "tiny-llama"): 0.3, ("tiny-llama", "tiny-gpt2"): 0.6, ("tiny-gpt2", "tiny-gpt2"): 0.1}
    )
    told = pd.read_csv(run / "authors.csv")
    assert told.groupby("strategy")[["offered", "picked"]].sum().to_numpy() == pytest.approx(1)
    assert "with tiny-gpt2 beside it, wrote 5 responses" in (run / "index.html").read_text()
    whole = contents(run)
    for name in ("ledger.json", "cells/random--seed0/records/round-02.json", "cells/random--seed0/rounds.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "cells" / "activedpo-normalised--seed0")
    assert smoke(tmp_path, *options) == 0
    assert contents(run) == whole


@pytest.mark.campaign
def test_a_cell_that_finds_a_pool_of_two_models_has_the_bytes_of_one_that_draws_it(tmp_path):
    cells = tmp_path / "run" / "cells"
    run_cell(MIXED, "random", 0, cells / "random--seed0")
    run_cell(MIXED, "activedpo-normalised", 0, cells / "active--seed0")
    run_cell(MIXED, "activedpo-normalised", 0, tmp_path / "alone")
    assert contents(cells / "active--seed0") == contents(tmp_path / "alone")


def test_the_forecast_of_a_pool_counts_each_models_share():
    alignment = replace(SMOKE, pool=10, responses=5, pool_models=("a", "b"))
    pace = {"draw": 1.0, "below": 0.1, "score": 0.01}
    assert of_pool(replace(alignment, pool_models=()), pace) == pytest.approx(10 * 5 * 1.1)
    others = [Author(3.0, 100.0), Author(4.0, 1000.0)]
    assert of_pool(alignment, pace, others) == pytest.approx(10 * (3 + 100 + 1000 + 5 * 0.11) + 7)


def test_a_win_rates_interval_stays_within_what_a_share_can_be():
    table = pd.DataFrame({"wins": [0.2, 0.99], "reward": [0.2, 0.99]})
    share, free = page.over_seeds(table, "wins"), page.over_seeds(table, "reward")
    assert (share.value, share.low, share.high) == (free.value, 0.0, 1.0)
    assert free.low < 0 < 1 < free.high


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
    assert studies.main([name, *options]) == 0
    assert not (tmp_path / "llm").exists()
    assert (tmp_path / "studies" / f"figure-{name}.md").read_text() == page
    assert (tmp_path / "studies" / f"figure-{name}.png").stat().st_size > 5000


def table_of(part, strategies=None, last=2, batch=3, **columns):
    """A study's table of a part of the smoke preset, as if two seeds were played."""
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"strategy": strategy, "seed": seed, "round": number, "labels": batch * number, "part": part.name}
            | dict(zip(("reward", "judge", "fluency"), generator.normal(size=3), strict=True))
            | {"kl_per_token": 0.1 * number, "wins": 0.5, "judge_wins": 0.5, "picks": "0:1"}
            | {"model": "tiny-gpt2", "machine": "a machine", "commit": "abc1234"}
            | columns
            for strategy in strategies or part.strategies
            for seed in (0, 1)
            for number in range(last + 1)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "options", "plays"),
    [
        ({}, (), 0),
        ({"options": "own"}, (), 0),
        ({"options": "another"}, (), 1),
        ({"strategies": ("random", "activedpo")}, (), 1),
        ({"last": 1}, (), 1),
        ({}, ("--again",), 1),
        ({}, ("--show-only", "--again"), 0),
        ({"last": 1}, ("--part", "fixed pool"), 1),
    ],
)
def test_what_a_table_has_whole_is_not_played_again(columns, options, plays, tmp_path, monkeypatch, capsys):
    (part,) = STUDIES["3"].parts("smoke")
    given = columns | ({"options": part.digest} if columns.get("options") == "own" else {})
    (tmp_path / "studies").mkdir()
    table_of(part, **given).to_csv(tmp_path / "studies" / "figure-3.csv", index=False)
    played = []
    monkeypatch.setattr(studies.command, "run", lambda *call: played.append(call) or 0)
    assert studies.main(["3", "--output", str(tmp_path), *options]) == 0
    assert len(played) == plays
    said = f"fixed pool: kept from {tmp_path}/studies/figure-3.csv, commit abc1234; --again plays it anew"
    assert (said in capsys.readouterr().out) == (not plays and "--show-only" not in options)


@pytest.mark.slow
def test_one_part_is_played_and_no_other(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(studies.command, "run", lambda _, arguments: played.append(arguments) or 0)
    assert studies.main(["1", "--output", str(tmp_path), "--part", "films, Gemma-3-270M"]) == 0
    assert ["tiny-gemma" in arguments for arguments in played] == [True]


@pytest.mark.slow
def test_two_pages_are_read_off_one_table(tmp_path):
    (tmp_path / "studies").mkdir()
    parts = STUDIES["1"].parts("smoke")
    pd.concat(map(table_of, parts)).to_csv(tmp_path / "studies" / "figure-1.csv", index=False)
    assert studies.main(["5", "--output", str(tmp_path), "--show-only"]) == 0
    made = {path.name for path in (tmp_path / "studies").iterdir()}
    assert made == {f"figure-{number}.{kind}" for number in (1, 5) for kind in ("md", "png")} | {"figure-1.csv"}


def test_committed_tables_are_small_and_none_is_there_twice():
    tables = [path.read_bytes() for path in (ROOT / "docs" / "studies").rglob("*.csv")]
    assert sum(map(len, tables)) <= 2_000_000
    assert len(set(tables)) == len(tables) > 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("7",), "unknown study '7'"),
        (("1", "--jobs", "-3"), "--jobs must be at least 0"),
        (("2", "--jobs", "-3"), "--jobs must be at least 0"),
        (("1", "--dry-run", "--cells", "9/4"), "1 <= i <= n, got '9/4'"),
        (("2", "--dry-run", "--cells", "9/4"), "1 <= i <= n, got '9/4'"),
        (("1", "--dry-run", "--part", "film"), "unknown --part of study 1, 'film'; did you mean 'films'? choose from"),
        (("2", "--part", "films"), "study 2 is one run, without parts"),
    ],
)
def test_bad_options_of_a_study_are_one_line(arguments, words, tmp_path, capsys):
    assert studies.main([*arguments, "--output", str(tmp_path / "none")]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_study_tells_what_is_left_of_all_its_runs(tmp_path, monkeypatch, capsys):
    """Of two runs one is in the table; of the other, cells that are done are not counted."""
    one, two = STUDIES["1"].full[:2]
    study = replace(STUDIES["1"], full=tuple(replace(part, strategies=("apo", "random")) for part in (one, two)))
    monkeypatch.setitem(STUDIES, "1", study)
    films, headlines = study.parts("smoke")
    (tmp_path / "studies").mkdir()
    table_of(films).to_csv(tmp_path / "studies" / "figure-1.csv", index=False)
    assert smoke(tmp_path, *headlines.words, "--cells", "1/4") == 0
    capsys.readouterr()
    assert studies.main(["1", "--output", str(tmp_path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "films: kept from" in said
    assert "3 cells to play, 1 finished" in said
    whole = re.search(r"about (.+) with \d side by side", said)[1]
    assert said.endswith(f"in all: about {whole}\n")
    table_of(headlines).to_csv(tmp_path / "studies" / "figure-1.csv", index=False, mode="a", header=False)
    assert studies.main(["1", "--output", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("in all: nothing is left to play\n")


@pytest.mark.campaign
def test_a_positive_control_has_its_forecast_and_a_ceiling(tmp_path, capsys):
    options = ["--output", str(tmp_path), "--jobs", "1"]
    assert studies.main(["redundant", *options]) == 0
    page = (tmp_path / "studies" / "redundant.md").read_text()
    assert "Predicted before any label, by variance alone (2 seeds, 30 duels in the pool" in page
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
    assert studies.main(["2", *options]) == 0
    assert not (tmp_path / "matrix").exists()
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
    assert len(pool["table"]["texts"]) == 6 * 4 == len(pool["log_probs"]["toy-letters"])
    assert pool["log_probs"]["toy-vowels"] == pool["table"]["log_probs"]
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
    said = page._contrasts(page.contrasts(gains(0.2)))
    assert len(said) == 6
    assert said[0].startswith("The model tuned on films: the choice of films against chance: better (+0.2")
    assert said[-1].startswith("The model tuned on news: all other differences between preference sets are undecided")


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
    (row,) = page.exact_differences(table)
    assert (row["strategy"], row["difference"], row["seeds"]) == ("256", 0.0, 2)
    whole = table.assign(judge=0.1, kl_per_token=0.1, fluency=-3.0)
    titles = [axis.get_title() for axis in figures.drawn(STUDIES["4"], whole, pd.DataFrame(), found).axes]
    assert titles[3:5] == list(figures.ERRORS.values())


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
    (equal,) = (line for line in said if line.startswith("headlines: reward at equal KL"))
    assert re.search(r"activedpo-normalised \+4\.\d+ \[.*\] at 0\.20 nats a token \(better\); apo −3\.[78]", equal)
    by_rule = sum("activedpo-normalised" in part.strategies for part in study.full)
    assert sum("reward at equal KL" in line for line in said) == len(study.full)
    assert (
        sum("activedpo-normalised saves labels: with 32 it has random's reward at 64" in line for line in said)
        == by_rule
    )
    assert sum("decisive-bald saves labels: with 32 it has random's reward at 64" in line for line in said) == 1
    assert sum("apo does not save labels" in line for line in said) == sum(
        "apo" in one.strategies for one in study.full
    )
    assert len(saved) == sum(len(part.strategies) - 1 for part in study.full)
    assert said[0].startswith("films: held-out reward was −0.01 at first and is, after 64 labels, 7.97 [")
    assert said[0].endswith("; 4 seeds.")
    assert sum("activedpo-normalised did better than random, after the last round" in line for line in said) == by_rule
    assert said[-1].startswith("Beyond the limits")
    assert "films, apo; headlines, apo; " in said[-1]
    told = table.assign(machine="a machine", model="tiny", commit="abc")
    found = {part.name: Found(told[told["part"] == part.name]) for part in study.full}
    lines = page.written("1", study, study.full, found, saved, page.Told("figure-1", "full"))
    assert "Computed on: a machine." in lines
    assert any("0 labels: the initial model. KL and fluency are in the table below only." in line for line in lines)
    assert any(line.startswith("- films: 4 finished paired seeds, 4 rounds of 16 labels, tiny") for line in lines)
    for strategies in ("activedpo-normalised apo aplp", "policy-trace-target decisive-bald"):
        assert any(line.endswith(f"(`--strategies {strategies} random --prompts films --seeds 8`)") for line in lines)
    assert "## Not yet run" not in lines
    begun = {name: one if name == "films" else Found(pd.DataFrame()) for name, one in found.items()}
    lines = page.written("1", study, study.full, begun, saved, page.Told("figure-1", "full"))
    rest = lines[lines.index("## Not yet run") :]
    assert [line.partition(" (`--strategies ")[0] for line in rest[2:]] == [f"- {part.name}" for part in study.full[1:]]
    assert not any("not known that Random learned" in line for line in said)
    assert set(names_of(figures.drawn(study, table, saved, page.sketched(table)))) == set(pace)
    flat = table["strategy"].eq("random") & table["part"].eq("headlines")
    none = table.assign(reward=table["reward"].mask(flat, generator.normal(scale=0.05, size=len(table))))
    saved = page.saved_of(study, none)
    said = page.verdicts(study, study.full, none, saved)
    assert [line.partition(":")[0] for line in said if "it is not known that Random learned" in line] == ["headlines"]
    assert not any(line.startswith("headlines: ") and "save labels" in line for line in said)
    rows = [line for line in page._savings(saved) if line.startswith("| headlines | ")]
    assert [row.split(" | ")[2] for row in rows] == ["not defined: it is not known that Random learned"] * 3
    fell = table.assign(reward=table["reward"].where(~flat, -table["reward"]))
    (line,) = page.unlearned(study, fell[fell["part"] == "headlines"])
    assert line.startswith("headlines: Random got worse (−4")
    assert not page.unlearned(study, fell[(fell["part"] == "headlines") & (fell["seed"] == 0)])


def test_strategies_that_are_not_told_apart_are_one_sentence_and_a_row_each():
    """Of two, one has a difference near its interval's end; how many seeds would tell stands with either."""
    (part,) = STUDIES["3"].full
    study = replace(STUDIES["3"], besides="activedpo")
    rng = np.random.default_rng(3)
    table = table_of(part, last=3, batch=16)
    table = pd.concat([table.assign(seed=table["seed"] + 2 * k, reward=rng.normal(size=len(table))) for k in range(4)])
    near = table["strategy"].eq("activedpo-normalised") & table["round"].eq(3)
    table.loc[near, "reward"] += 0.5
    said = page.verdicts(study, [part], table, page.saved_of(study, table))
    (line,) = [line for line in said if "significantly from Random" in line]
    assert line.startswith(
        "fixed pool: no strategy differs significantly from Random in held-out reward after the last"
    )
    (other,) = [line for line in said if "significantly from activedpo " in line]
    assert other.startswith("fixed pool: no strategy differs")
    rows = page.differences(study, [part], table)
    lines = page._differences(rows)
    for row in rows:
        if (row["measure"], row["outcome"], row["baseline"]) == ("reward", "final", "random"):
            count = row["reason"].removesuffix(" replicates would decide an effect of this size")
            cells = [row["strategy"], "random", "held-out reward", page._size(row), "undecided", count]
            assert any(one.startswith(f"| fixed pool | {' | '.join(cells)} |") for one in lines)
            nearest = f"the nearest to a verdict, {row['strategy']}, {page._size(row)} over 8 paired seeds, would take"
            assert (nearest in line) == (row["strategy"] == "activedpo-normalised")
    same = page.summed(
        [row | {"difference": 0.0, "low": 0.0, "high": 0.0} for row in rows[:1]], "strategy", "random", "x"
    )
    assert same[0].startswith("activedpo does not differ significantly from Random in x")


def test_win_rates_stand_beside_what_they_are_to_be_compared_with():
    study, (films, headlines) = STUDIES["5"], STUDIES["5"].full[:2]
    old, new = table_of(films), table_of(headlines, null_wins=np.nan, null_judge_wins=np.nan, longer_wins=np.nan)
    new.loc[(new["round"] == 0) & (new["seed"] == 0), ["null_wins", "null_judge_wins"]] = [0.5, 0.25]
    new.loc[new["round"] == 2, "longer_wins"] = 0.75
    lines = page._final(study, pd.concat([old, new]))
    assert lines[0].endswith("win rate by the judge | longer wins | null by the reward | null by the judge |")
    assert "| films | apo | 2 | 0.50 [0.50, 0.50] | 0.50 [0.50, 0.50] | – | – | – |" in lines
    assert (
        "| headlines | apo | 2 | 0.50 [0.50, 0.50] | 0.50 [0.50, 0.50] | 0.75 [0.75, 0.75] | 0.50 – | 0.25 – |" in lines
    )
    lacking = "longer wins, null by the reward, null by the judge of films."
    assert lines[-1].endswith(f"Not in the table, which is older than these columns: {lacking}")


def test_a_page_says_how_well_models_are_as_far_as_its_table_does():
    films, headlines = STUDIES["1"].full[:2]
    new = table_of(headlines, ended=0.5, chosen_log_ratio=2.0)
    new.loc[new["round"] == 0, ["ended", "chosen_log_ratio"]] = [0.25, np.nan]
    lines = page._well(pd.concat([table_of(films), new]))
    assert "| headlines | random | 0.25 → 0.50 | – | 2.00 | – | – | – | – |" in lines
    assert not any(line.startswith("| films") for line in lines)
    assert lines[-1].endswith("held-out accuracy of films.")
    assert page._well(table_of(films)) == lines[-1:]


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
        f"Of the 11 of 12 settings within the limits in every seed, {list(steps)[10]} raised the reward most: by +0.10"
    )
    assert f"so that reward there is no gain: {list(steps)[11]}. Seed by seed: 2 of 2 seeds" in said[1]
    worse = table["part"].eq(list(steps)[10]) & table["seed"].eq(1) & table["round"].eq(1)
    said = page.healthy(study, table.assign(fluency=table["fluency"].mask(worse, -3.35)))
    assert said[0].startswith(f"Of the 10 of 12 settings within the limits in every seed, {list(steps)[9]} raised")
    assert f"1 of 2 seeds of {list(steps)[10]} (seed 1) lost 0.35 nats a token" in said[1]
    drawing = figures.drawn(study, table, page.saved_of(study, table), page.sketched(table))
    first = drawing.axes[0]
    ends = {
        line.get_label(): tuple(map(float, line.get_xydata()[0])) for line in first.lines if line.get_markersize() > 5
    }
    for name, place in steps.items():
        assert ends[name] == pytest.approx((-0.4 if place == 11 else -0.1, 0.01 * place + 0.0005))
    assert all({text.get_text() for text in axis.texts} == set(steps) for axis in drawing.axes)


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


@pytest.mark.parametrize(("option", "value"), [("--jobs", "-3"), ("--cells", "9/4")])
def test_a_dry_run_refuses_what_a_run_does(option, value, tmp_path, capsys):
    assert main(["smoke", "--output", str(tmp_path / "none"), "--dry-run", option, value]) == 2
    assert option in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_counts_what_is_left_of_its_part_of_the_cells(tmp_path, capsys):
    few = ("--rounds", "1", "--strategies", "random", "--seeds", "4", "--sft", "toy-letters")
    assert smoke(tmp_path, *few, "--cells", "1/4") == 0
    for more, first, tuned in (
        ((), "3 cells to play, 1 finished\n", False),
        (("--cells", "1/2"), "1 cells to play, 1 finished; part 1/2 of 4\n", False),
        (("--force",), "4 cells to play\n", True),
    ):
        capsys.readouterr()
        assert smoke(tmp_path, *few, *more, "--dry-run") == 0
        said = capsys.readouterr().out
        assert said.startswith(first)
        assert f"random: {first[0]} cells" in said
        assert ("is tuned on" in said) == tuned  # once for all cells: it was kept
    assert smoke(tmp_path, *few, "--cells", "1/4", "--dry-run") == 0
    assert capsys.readouterr().out == "0 cells to play, 1 finished; part 1/4 of 4\n"
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
