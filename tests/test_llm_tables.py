"""Texts as files hold them: what is written is read again, whatever a model or a file may say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up_runs import close, made_up

from bandits.core.errors import InputError
from bandits.runs import text as texts
from bandits.runs.directory import VOLATILE
from llm_loop import tables
from llm_loop.__main__ import main
from llm_loop.data.chat import Message, text_of
from llm_loop.report import page
from llm_loop.tables import Candidate, Preference, Sample

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=30)
AWKWARD = [
    "one\u2028two\u2029three\u0085four",
    "a\rb\r\nc\nd\n",
    "\0 \x0b \x0c \x1c \x1d \x1e \x7f",
    "\u202egnitirw\u202c \u200f",
    "half \ud800 pair, other \udfff half",
    "NA",
    "null",
    "",
    '"quoted", \\ and, commas',
    "x" * 100_000,
    "<script>alert(1)</script> & <b>",
]
SAMPLE = Sample(strategy="random", seed=0, round=0, prompt_index=0, prompt="p", response="r")


def whole(text: str) -> str:
    """The text with pairs of surrogates as the characters they stand for, which is all that JSON can say."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@given(ANYTHING)
@example("\ud83d\ude00")
def test_json_gives_every_text_back_and_holds_no_line_end(text: str) -> None:
    line = texts.dumps({"text": text})
    assert line.encode("utf-8").decode().splitlines() == [line]
    assert texts.loads(line) == json.loads(line) == {"text": whole(text)}


@given(st.lists(ANYTHING.map(whole), max_size=5))
def test_lines_are_those_of_an_opened_file(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    text = "\n".join(parts).replace("\ud800", "")
    text = text.encode("utf-8", "ignore").decode()
    file = tmp_path_factory.mktemp("lines") / "file"
    file.write_bytes(text.encode())
    with file.open(encoding="utf-8") as opened:
        assert texts.lines(text) == [line.rstrip("\n") for line in opened]


def test_json_is_strict() -> None:
    found = texts.dumps({"a": float("nan"), "b": [float("inf"), (1.5, -float("inf"))], "c": {"d": float("nan")}})
    assert found == '{"a": null, "b": [null, [1.5, null]], "c": {"d": null}}'
    assert texts.loads('{"a": NaN}') == {"a": None}
    with pytest.raises(ValueError, match="nested too deep"):
        texts.loads("[" * 100_000)


@pytest.mark.slow
@given(st.lists(st.tuples(ANYTHING, ANYTHING, st.booleans()), max_size=6))
@example([(text, text, chat) for text in AWKWARD for chat in (False, True)])
def test_tables_give_every_text_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("cell")
    for chat in (False, True):
        said = [tuple(map(whole, row[:2])) for row in rows if row[2] is chat]
        prompts = [(Message("system", "Be brief."), Message("user", p)) if chat else p for p, _ in said]
        samples = [
            replace(SAMPLE, prompt_index=i, prompt=p, response=r[1])
            for i, (p, r) in enumerate(zip(prompts, said, strict=True))
        ]
        tables.write(Sample, folder, samples)
        assert tables.read(Sample, folder) == samples
        assert tables.frame(Sample, folder)["response"].tolist() == [sample.response for sample in samples]
        preferences = [
            Preference(strategy="random", seed=0, round=1, prompt=s.prompt, chosen=s.response, rejected="no")
            for s in samples
        ]
        tables.write(Preference, folder, preferences)
        assert tables.read(Preference, folder) == preferences


def test_a_conversation_s_preferences_are_as_trl_wants_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    row = Preference(
        strategy="random", seed=0, round=1, prompt=(Message("user", "Why?"),), chosen="a\u2028b", rejected="c"
    )
    tables.write(Preference, tmp_path, [row])
    read = datasets.load_dataset("json", data_files=str(tmp_path / "preferences.jsonl"), cache_dir=str(tmp_path / "c"))
    (found,) = read["train"].to_list()
    assert found["prompt"] == [{"role": "user", "content": "Why?"}]
    assert found["chosen"] == [{"role": "assistant", "content": "a\u2028b"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"round": 1}\n', "line 1: no row of samples"),
        (b"[]\n", "line 1: no row of samples"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"{\n", "line 1"),
        (b"[" * 100_000, "nested too deep"),
        (tables.line_of(SAMPLE).encode()[:-9], "line 1"),
        (tables.line_of(SAMPLE).replace('"round": 0', '"round": 0.5').encode(), "round is '0.5'"),
        (tables.line_of(SAMPLE).replace('"r"}', "1}").encode(), "response is '1'"),
        (tables.line_of(SAMPLE).replace('"p"', '[{"role": "user"}]').encode(), "neither a text nor messages"),
    ],
)
def test_a_damaged_table_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        tables.read(Sample, tmp_path)
    assert "\n" not in str(caught.value)
    assert "samples.jsonl" in str(caught.value)


def test_numbers_that_are_not_there_are_null_and_come_back_as_nan(tmp_path: Path) -> None:
    row = tables.Round(strategy="apo", seed=0, round=1, labels=3, information=float("nan"))
    tables.write(tables.Round, tmp_path, [row])
    assert "NaN" not in (tmp_path / "rounds.jsonl").read_text()
    assert tables.frame(tables.Round, tmp_path)["information"].isna().all()


@pytest.mark.campaign
def test_a_page_shows_every_text_escaped(tmp_path: Path) -> None:
    """The page is UTF-8 and loads; no text of a response becomes markup, and none turns the line's direction round."""
    folder = made_up(tmp_path / "run", {"random": 0.3, "activedpo": 0.3}, seeds=1)
    for cell in (folder / "cells").iterdir():
        samples = tables.read(Sample, cell)
        said = [replace(s, prompt=f"{s.prompt_index} {AWKWARD[s.prompt_index % 11]}") for s in samples]
        tables.write(Sample, cell, [replace(s, response=AWKWARD[s.prompt_index % 11]) for s in said])
        pool = tables.read(Candidate, cell)
        texts = [replace(row, response_1=AWKWARD[row.candidate % 11], response_2="\ud800\0") for row in pool]
        tables.write(Candidate, cell, texts)
        close(cell)
    page.write(folder)
    html = (folder / "index.html").read_bytes().decode("utf-8")
    for text in AWKWARD[: page.SHOWN_SAMPLES]:
        assert page.visible(text).replace("<", "&lt;") in html or not text
    assert "<script>alert" not in html
    assert not any(chr(code) in html for code in range(32) if chr(code) not in "\n\t")
    assert "half \\ud800 pair, other \\udfff half" in html


def test_what_is_shown_of_a_conversation() -> None:
    assert text_of((Message("user", "Why?"),)) == "Why?"
    assert text_of((Message("system", "Be brief."), Message("user", "Why?"))) == "System: Be brief.\n\nUser: Why?"
    assert page.visible("a\0b\rc\ud800") == "a␀b␍c\\ud800"


@pytest.mark.campaign
def test_a_run_on_awkward_prompts_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """From the file through samples, candidates, preferences and page; then from its first round on once more."""
    file = tmp_path / "prompts.jsonl"
    asked = [f"{n} {text} end" for n, text in enumerate(AWKWARD[:4] + AWKWARD[5:9] + AWKWARD[10:]) for n in (n, n + 20)]
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked), encoding="utf-8")
    arguments = ["smoke", "--prompts", str(file), "--heldout", "3", "--heldout-duels", "2", "--jobs", "1"]
    arguments += ["--heldout-between", "3"]
    arguments += ["--strategies", "random", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    (folder,) = (tmp_path / "out" / "llm").iterdir()
    cell = folder / "cells" / "random--seed0"
    for kind in (Sample, Candidate, Preference):
        prompts = set(tables.frame(kind, cell)["prompt"])
        assert prompts
        assert prompts <= set(asked)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in VOLATILE}
    (folder / "index.html").unlink()
    for name in ("samples.jsonl", "records/round-02.json"):
        (cell / name).unlink()
    assert main(arguments) == 0
    assert {path: path.read_bytes() for path in before} == before
    file.write_text(file.read_text(encoding="utf-8").replace("end", "End"), encoding="utf-8")
    assert main(arguments) == 2  # the file's content is part of what the run is
