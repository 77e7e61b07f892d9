"""Labelling in a terminal, and answers that come from other tools or go to them."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from label_client import full

from bandits.core.errors import InputError
from labelling import label, queries, terminal
from labelling.answers import Answer, Answers
from labelling.desk import Desk, Source
from labelling.queries import Query
from llm_loop.data.chat import Message

QUERIES = [
    Query.of("01", "prompt 0", "red", "blue", False),
    Query.of("01", (Message("system", "s"), Message("user", "prompt 1")), "up", "down", True),
    Query.of("01", "prompt 2", "in", "out\x1b[2J\u202e", False),
]
IDS = [query.id for query in QUERIES]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    queries.write(tmp_path / "q.jsonl", QUERIES)
    return tmp_path / "q.jsonl"


def kept(file: Path) -> list[tuple[int, str, str]]:
    found = Answers(file.with_name("q.answers.jsonl")).all
    return [(IDS.index(answer.query), answer.annotator, answer.answer) for answer in found]


class Keyboard:
    """A person at a terminal, and what stands on the screen."""

    def __init__(self, *keys: str) -> None:
        self.keys, self.screen = list(keys), ""

    def read(self, prompt: str) -> str:
        if not self.keys:
            raise EOFError
        return self.keys.pop(0)

    def say(self, *rows: str) -> None:
        self.screen += "".join(row + "\n" for row in rows)


class TestTerminal:
    def run(self, file: Path, *keys: str) -> Keyboard:
        person = Keyboard(*keys)
        terminal.label(Desk(Source.at(file)), "ada", "Which?", person.say, person.read)
        return person

    def test_keys_answer_and_the_end_of_input_quits(self, file: Path) -> None:
        self.run(file, "l", "nonsense", "RIGHT", "u", "t")
        assert kept(file) == [(0, "ada", "left"), (1, "ada", "right"), (1, "ada", "undo"), (1, "ada", "tie")]
        assert "nothing is left" in self.run(file, "s").screen
        assert kept(file)[-1] == (2, "ada", "skip")

    def test_quitting_and_undoing_nothing_keep_nothing(self, file: Path) -> None:
        assert "nothing to take back" in self.run(file, "u", "q").screen
        assert kept(file) == []

    def test_a_text_does_nothing_to_the_terminal(self, file: Path) -> None:
        screen = self.run(file, "l", "l").screen
        assert "\\u001b[2J\\u202e" in screen
        assert not {"\x1b", "\u202e"} & set(screen)

    def test_ascii_is_enough(self, file: Path) -> None:
        assert self.run(file, "l", "l").screen.isascii()

    def test_long_lines_are_wrapped_and_ends_of_lines_stay(self) -> None:
        assert list(terminal.wrapped("a\n\n    b " + "c" * 5, 12)) == ["  a", "", "      b", "      ccccc"]

    def test_a_full_disk_is_told_and_the_answer_can_be_given_again(self, file: Path) -> None:
        person = Keyboard("l", "r")
        with full(40):
            terminal.label(Desk(Source.at(file)), "ada", "Which?", person.say, person.read)
        assert person.screen.count("not saved: ") == 2
        assert kept(file) == []
        self.run(file, "r")
        assert kept(file) == [(0, "ada", "right")]

    def test_the_command_needs_a_name_where_nobody_can_be_asked(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("builtins.input", Keyboard().read)
        with pytest.raises(InputError, match="give --annotator"):
            label.main([str(file), "--terminal"])


def bring(file: Path, name: str, content: object, *options: str) -> None:
    path = file.with_name(name)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    label.main([str(file), "--import", str(path), *options])


class TestImport:
    @pytest.mark.parametrize(
        ("name", "content", "options"),
        [
            ("a.csv", f"id,answer,annotator\n{IDS[0]},left,ada\n{IDS[1]},Tie,ada\n", ()),
            ("a.csv", f"\ufeffid;answer;annotator\r\n{IDS[0]};left;ada\r\n{IDS[1]};tie;ada\r\n{IDS[2]};;ada\r\n", ()),
            (
                "a.csv",
                f"task_id\twinner\n{IDS[0]}\tA\n{IDS[1]}\tsame\n",
                (
                    "--columns",
                    "id=task_id",
                    "answer=winner",
                    "--values",
                    "A=left",
                    "B=right",
                    "same=tie",
                    "--annotator",
                    "ada",
                ),
            ),
            (
                "a.jsonl",
                "".join(
                    json.dumps({"id": i, "answer": a, "annotator": "ada"}) + "\n"
                    for i, a in zip(IDS, ("left", "tie"), strict=False)
                ),
                (),
            ),
            (
                "a.json",
                [
                    {"id": IDS[0], "chosen": "red", "annotator": "ada"},
                    {"id": IDS[1], "answer": "tie", "annotator": "ada"},
                ],
                (),
            ),
        ],
    )
    def test_answers_come_in_from_files_that_people_have(
        self, file: Path, name: str, content: object, options: tuple[str, ...]
    ) -> None:
        for _ in range(2):  # what is there is not taken twice
            bring(file, name, content, *options)
        assert kept(file) == [(0, "ada", "left"), (1, "ada", "tie")]

    def test_a_label_studio_export_comes_in(self, file: Path) -> None:
        def task(query: int, *annotations: dict[str, Any]) -> dict[str, Any]:
            made = [{"id": n, "was_cancelled": False, "result": []} | one for n, one in enumerate(annotations)]
            return {"id": 7, "data": {"id": IDS[query]}, "annotations": made}

        pair = {"result": [{"type": "pairwise", "value": {"selected": "right"}, "from_name": "pw"}]}
        tie = {"result": [{"type": "choices", "value": {"choices": ["tie"]}}], "updated_at": "2026-01-02T03:04:05.6Z"}
        export = [
            task(0, pair | {"completed_by": 4}, tie | {"completed_by": {"email": "b@x.org"}}),
            task(1, {"was_cancelled": True, "completed_by": 4}),
            task(2),
        ]
        bring(file, "ls.json", export)
        assert kept(file) == [
            (0, "label-studio 4", "right"),
            (0, "label-studio b@x.org", "tie"),
            (1, "label-studio 4", "skip"),
        ]
        assert Answers(file.with_name("q.answers.jsonl")).all[1].time == "2026-01-02T03:04:05+00:00"

    def test_an_argilla_export_comes_in(self, file: Path) -> None:
        def record(query: int, *responses: dict[str, Any]) -> dict[str, Any]:
            return {"id": IDS[query], "fields": {"left": "x"}, "responses": {"preference": list(responses)}}

        ranks = [{"value": "left", "rank": 2}, {"value": "right", "rank": 1}]
        export = [
            record(0, {"value": "left", "user_id": "u1"}, {"value": ranks, "user_id": "u2"}),
            record(1, {"value": [entry | {"rank": 1} for entry in ranks], "user_id": "u1"}),
            {"id": IDS[2], "fields": {}, "responses": {}},
        ]
        bring(file, "argilla.json", export)
        assert kept(file) == [(0, "argilla u1", "left"), (0, "argilla u2", "right"), (1, "argilla u1", "tie")]

    def test_an_answer_to_a_duel_that_was_edited_is_taken_in_anew(self, file: Path) -> None:
        rows = f"id,answer,annotator\n{IDS[0]},left,ada\n"
        bring(file, "a.csv", rows)
        edited = [replace(QUERIES[0], prompt="another"), *QUERIES[1:]]
        queries.write(file, edited)
        bring(file, "b.csv", rows, "--again")
        desk = Desk(Source.at(file), again=True)
        assert desk.people() == [("ada", 1)]

    def test_of_one_persons_answers_the_later_holds_and_two_peoples_are_a_disagreement(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [("ada", "left"), ("ada", "right"), ("bob", "left")]
        bring(file, "a.csv", "id,answer,annotator\n" + "".join(f"{IDS[0]},{said},{who}\n" for who, said in rows))
        told = capsys.readouterr().out
        assert "1 times somebody answered a duel again" in told
        assert f"1 duels on which people chose different sides, such as {IDS[0]}" in told
        assert {(a.annotator, a.answer) for a in Answers(file.with_name("q.answers.jsonl")).latest.values()} == {
            ("ada", "right"),
            ("bob", "left"),
        }

    @pytest.mark.parametrize(
        ("name", "content", "options", "words"),
        [
            ("a.csv", f"id,answer\n{IDS[0]},left\nnone,left\n", (), r"a\.csv, row 3: there is no duel 'none'"),
            ("a.csv", f"id,answer\n{IDS[0][:-1]},left\n", (), f"did you mean {IDS[0]}"),
            ("a.csv", f"id,answer\n{IDS[0]},both\n", (), r"row 2: its answer 'both' is none of .* --values both=left"),
            (
                "a.csv",
                f"task,label,user\n{IDS[0]},left,x\n",
                (),
                r"no column 'id'; it has task, label, user: .*--columns id=… answer=label annotator=user",
            ),
            ("a.csv", f"id,answer\n{IDS[0]},left,more\n", (), "row 2: it has 3 cells, and the header 2"),
            ("a.csv", "id,id\nx,y\n", (), "two columns have one name"),
            ("a.csv", f"id,answer\n{IDS[0]},left\n", ("--columns", "id=key"), "no column 'key'"),
            ("a.csv", f"id,answer\n{IDS[0]},left\n", ("--columns", "key=id"), "'key' is none of id"),
            ("a.csv", f"id,answer\n{IDS[0]},left\n", ("--columns", "id"), "takes pairs such as id=task_id"),
            (
                "a.csv",
                f"id,w,v\n{IDS[0]},left,right\n",
                ("--columns", "answer=w", "answer=v"),
                "--columns gives 'answer' twice, as 'w' and 'v'",
            ),
            (
                "a.csv",
                f"id,answer\n{IDS[0]},A\n",
                ("--values", "A=left", "A=right"),
                "--values gives 'A' twice, as 'left' and 'right'",
            ),
            ("a.csv", f"id,answer\n{IDS[0]},left\n", ("--values", "A=both"), "'both' is none of left"),
            ("a.csv", f"id,answer,time\n{IDS[0]},left,yesterday\n", (), "its time 'yesterday' is not ISO 8601"),
            ("a.csv", f"id,chosen\n{IDS[0]},green\n", (), "its chosen text is neither response"),
            ("a.csv", f"id,answer,annotator\n{IDS[0]},left,{'x' * 61}\n", (), "row 2: an annotator's name has at most"),
            ("a.csv", "", (), "is empty"),
            ("a.jsonl", '{"id": "x", "answer": "left"}\n{"id": \n', (), r"a\.jsonl, line 2: it is not JSON"),
            ("a.json", "[1]", (), "row 1: it is no object"),
            ("a.json", "[]", (), "has no rows"),
            (
                "a.json",
                [{"data": {"id": "x"}, "annotations": []}, {"id": "x", "answer": "left"}],
                (),
                "row 2: it has another form",
            ),
            ("a.json", [{"data": {"text": "x"}, "annotations": []}], (), "row 1: its data has no id of a duel"),
            (
                "a.json",
                [{"data": {"id": "x"}, "annotations": [{"result": [{"type": "pairwise", "value": {}}]}]}],
                (),
                "row 1: it is not as the tool exports it",
            ),
            ("a.json", [{"id": "x", "fields": {}, "responses": {"a": [], "b": []}}], (), "it answers 2 questions"),
        ],
    )
    def test_what_cannot_be_taken_in_is_one_line_with_its_row_and_nothing_is_kept(
        self, file: Path, name: str, content: object, options: tuple[str, ...], words: str
    ) -> None:
        with pytest.raises(InputError, match=words) as error:
            bring(file, name, content, *options)
        assert "\n" not in str(error.value)
        assert kept(file) == []

    def test_two_jobs_at_once_are_refused(self, file: Path) -> None:
        with pytest.raises(InputError, match="--terminal and --import are two jobs"):
            label.main([str(file), "--terminal", "--import", "x"])
        with pytest.raises(InputError, match="name its file"):
            label.main([str(file), "--columns", "id=x"])


class TestExport:
    def test_what_goes_out_as_csv_comes_back(self, file: Path) -> None:
        path = file.with_name("out.csv")
        label.main([str(file), "--export", str(path), "--format", "csv"])
        text = path.read_text()
        assert text.splitlines()[0] == "id,prompt,left,right,answer,annotator"
        bring(file, "back.csv", text.replace("red,blue,,", "red,blue,right,ada"))
        assert kept(file) == [(0, "ada", "right")]

    def test_label_studio_and_argilla_get_tasks_that_name_their_duel(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = file.with_name("out.json")
        label.main([str(file), "--export", str(path), "--question", 'Which is "better"?'])
        assert [task["data"]["id"] for task in json.loads(path.read_text())] == IDS
        assert 'value="Which is &quot;better&quot;?"' in capsys.readouterr().out
        path.unlink()
        label.main([str(file), "--export", str(path), "--format", "argilla"])
        records = json.loads(path.read_text())
        assert [record["id"] for record in records] == IDS
        for record, choice in zip(records, ("left", "tie", "right"), strict=True):
            record["responses"] = {"answer": [{"value": choice, "user_id": "u"}]}
        bring(file, "back.json", records)
        assert [answer for _, _, answer in kept(file)] == ["left", "tie", "right"]

    @pytest.mark.parametrize("form", ["csv", "argilla", "label-studio"])
    def test_nothing_that_is_there_is_replaced(self, file: Path, form: str) -> None:
        answers = file.with_name("q.answers.jsonl")
        Answers(answers).append(Answer.of(QUERIES[0], "ada", "left"))
        pipe, link = file.with_name("pipe"), file.with_name("link")
        os.mkfifo(pipe)
        link.symlink_to("nowhere")
        for path in (answers, file, pipe, link, Path("/dev/null"), file.parent):
            before = path.lstat()
            with pytest.raises(InputError, match="is there already; remove it or choose another --export"):
                label.main([str(file), "--export", str(path), "--format", form])
            assert path.lstat().st_ino == before.st_ino
        assert kept(file) == [(0, "ada", "left")]
