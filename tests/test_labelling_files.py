"""The files of a project: pools as people have them, queries whose edits are noticed, answers that no kill loses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.files import WriteError
from labelling import labelled, queries
from labelling.answers import Answer, Answers, majority
from labelling.project import Project
from labelling.queries import Query
from llm_loop.data import pools, prompts
from llm_loop.data.chat import Message

ASK = "What is it?"
ORDER = (Message("user", ASK),)


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def query(number: int = 0, swapped: bool = False) -> Query:
    return Query.of("01", f"prompt {number}", "a", "b", swapped, width=1.0, gain=0.5, why="widest")


class TestPool:
    @pytest.mark.parametrize(
        ("row", "prompt"),
        [
            ({"prompt": ASK, "responses": ["one", "two"]}, ASK),
            ({"prompt": ASK, "responses": ["one", "two", "one"]}, ASK),
            ({"instruction": ASK, "completions": [{"response": "one"}, {"response": "two", "model": "m"}]}, ASK),
            ({"prompt": ASK, "chosen": "one", "rejected": "two"}, ASK),
            (
                {
                    "prompt": [{"role": "user", "content": ASK}],
                    "chosen": [{"role": "assistant", "content": "one"}],
                    "rejected": [{"role": "assistant", "content": "two"}],
                },
                ORDER,
            ),
            (
                {
                    side: [{"role": "user", "content": ASK}, {"role": "assistant", "content": text}]
                    for side, text in (("chosen", "one"), ("rejected", "two"))
                },
                ORDER,
            ),
            (
                {"prompt": ASK}
                | {
                    side: [{"role": "user", "content": ASK}, {"role": "assistant", "content": text}]
                    for side, text in (("chosen", "one"), ("rejected", "two"))
                },
                ORDER,
            ),
            (
                {
                    "prompt": [{"role": "user", "content": ASK}],
                    "responses": [[{"role": "assistant", "content": "one"}], {"role": "assistant", "content": "two"}],
                },
                ORDER,
            ),
            (
                {"chosen": "\n\nHuman: Hi\n\nAssistant:one", "rejected": "\n\nHuman: Hi\n\nAssistant:two"},
                "\n\nHuman: Hi\n\nAssistant:",
            ),
        ],
    )
    def test_every_form_is_a_prompt_and_its_responses(self, tmp_path, row, prompt):
        (group,) = pools.read(lines(tmp_path / "p.jsonl", row)).groups
        assert group.prompt == prompt
        assert group.responses == ("one", "two")

    def test_rows_of_one_prompt_are_put_together(self, tmp_path):
        rows = [{"prompt": ASK, "chosen": "a", "rejected": "b"}, {"prompt": ASK, "chosen": "c", "rejected": "a"}]
        read = pools.read(lines(tmp_path / "p.jsonl", *rows))
        assert [group.responses for group in read.groups] == [("a", "b", "c")]
        assert read.widest == 3

    def test_fields_may_have_other_names(self, tmp_path):
        path = lines(tmp_path / "p.jsonl", {"query": ASK, "drafts": ["one", "two"]})
        assert pools.read(path, {"prompt": "query", "responses": "drafts"}).groups[0].responses == ("one", "two")

    def test_of_two_forms_the_named_one_is_read(self, tmp_path):
        row = {"prompt": ASK, "responses": ["1", "2"], "completions": ["3", "4"], "chosen": "5", "rejected": "6"}
        path = lines(tmp_path / "p.jsonl", row)
        for fields, want in (
            ({"responses": "responses"}, ("1", "2")),
            ({"responses": "completions"}, ("3", "4")),
            ({"chosen": "chosen"}, ("5", "6")),
        ):
            assert pools.read(path, fields).groups[0].responses == want

    def test_a_split_holds_prompts_out_as_it_does_where_the_model_answers(self, tmp_path):
        (tmp_path / "d").mkdir()
        rows = [{"prompt": name, "responses": ["x", "y"]} for name in "abcd"]
        rows[1]["split"], rows[2]["split"] = "test", "train"
        lines(tmp_path / "d" / "some.jsonl", *rows)
        lines(tmp_path / "d" / "validation.jsonl", {"prompt": "e", "responses": ["x", "y"], "split": "train"}, rows[0])
        read = pools.read(tmp_path / "d")
        assert {group.prompt for group in read.groups if group.heldout} == {"a", "b", "e"}
        assert set(prompts.load(str(tmp_path / "d"), Key(0)).heldout) == {"a", "b", "e"}
        assert [group.prompt for group in read.learnable().groups] == ["c", "d"]

    def test_prompts_alone_are_to_be_answered(self, tmp_path):
        assert pools.read(lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})).drawn

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ([{"prompt": ASK, "responses": ["one", "one"]}], "line 1: it has no two different responses"),
            ([{"prompt": ASK, "responses": ["one", " "]}], "line 1: its response 2 is empty"),
            ([{"prompt": ASK, "responses": ["one", 2]}], "line 1: its response 2 is no text"),
            ([{"prompt": ASK, "responses": ["one", "\ud800"]}], "half a surrogate"),
            ([{"prompt": ASK, "response": "one"}], "line 1: its response is no list"),
            ([{"query": ASK, "drafts": ["one", "two"]}], "--fields prompt=query"),
            ([{"prompt": ASK, "chosen": "x", "rejected": "x"}], "no two different responses"),
            (
                [{"prompt": ASK, "responses": ["one", "two"]}, {"prompt": "b"}],
                "line 2: it has a prompt alone, and .*line 1",
            ),
            (
                [
                    {"id": 7, "prompt": "a", "responses": ["1", "2"]},
                    {"id": "7", "prompt": "b", "responses": ["1", "2"]},
                ],
                "line 2: the id '7' is that of .*line 1",
            ),
            ([{"prompt": ASK}, ["prompt"]], "line 2: it is not a row"),
            (
                [{"prompt": ASK, "responses": ["1", "2"], "completions": ["3", "4"]}],
                "line 1: it has responses, and also completions: leave one form",
            ),
            (
                [{"prompt": ASK, "responses": ["1", "2"], "chosen": "3", "rejected": "4"}],
                "line 1: it has responses, and also chosen and rejected",
            ),
            ([{"prompt": ASK, "responses": ["1", "2"], "split": "trial"}], "line 1: its split 'trial' is neither"),
            (
                [
                    {
                        "prompt": [{"role": "user", "content": ASK}],
                        "responses": [[{"role": "user", "content": "x"}], "y"],
                    }
                ],
                "1 is not one",
            ),
        ],
    )
    def test_what_is_no_row_is_told_by_its_number(self, tmp_path, rows, said):
        with pytest.raises(InputError, match=said):
            pools.read(lines(tmp_path / "p.jsonl", *rows))

    def test_labels_are_trl_s_and_may_be_ties(self, tmp_path):
        rows = [
            {"prompt": ASK, "chosen": "a", "rejected": "b"},
            {"prompt": ASK, "chosen": "a", "rejected": "c", "tie": True},
        ]
        assert [label.outcome for label in labelled.read_labels(lines(tmp_path / "l.jsonl", *rows))] == [1.0, 0.5]
        with pytest.raises(InputError, match=r"labels: .*line 1: a label has chosen and rejected"):
            labelled.read_labels(lines(tmp_path / "l.jsonl", {"prompt": ASK, "responses": ["a", "b"]}))
        with pytest.raises(InputError, match=r"labels: .*line 1: it is held out by its split"):
            labelled.read_labels(lines(tmp_path / "l.jsonl", rows[0] | {"split": "test"}))


texts = st.text(min_size=1).filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text))


class TestQueries:
    @pytest.mark.slow
    @given(texts, texts, texts, st.booleans())
    def test_what_is_written_is_read(self, tmp_path_factory, prompt, first, second, swapped):
        if first == second:
            return
        path = tmp_path_factory.mktemp("q") / "queries.jsonl"
        asked = Query.of("01", prompt, first, second, swapped, width=0.1, cosine=1 / 3, why=prompt)
        queries.write(path, [asked])
        (read,) = queries.read(path)
        assert read == asked
        assert (read.first, read.second, read.digest) == (first, second, asked.digest)

    def test_an_answer_is_about_the_pool_s_order_whatever_was_shown(self):
        for swapped in (False, True):
            said = query(swapped=swapped)
            assert said.outcome("left") == float(said.left == said.first)
            assert said.outcome("right") == float(said.right == said.first)
            assert (said.outcome("tie"), said.outcome("skip")) == (0.5, None)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"colour": 1}, "unknown field 'colour'"),
            ({"left": None}, "its left is no text"),
            ({"left": "a", "right": "a"}, "are the same"),
            ({"swapped": 1}, "its swapped"),
            ({"width": "wide"}, "its width is no number"),
            ({"prompt": 3}, "its prompt is neither"),
        ],
    )
    def test_what_is_no_query_is_told_by_its_line(self, tmp_path, change, said):
        path = lines(tmp_path / "q.jsonl", query(1).to_json(), query(2).to_json() | change)
        with pytest.raises(InputError, match=f"line 2: .*{said}"):
            queries.read(path)

    def test_an_id_twice_and_no_queries_at_all_are_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"line 2: the id .* is there twice"):
            queries.read(lines(tmp_path / "q.jsonl", query(1).to_json(), query(1).to_json()))
        with pytest.raises(InputError, match="no queries"):
            queries.read(lines(tmp_path / "q.jsonl"))
        with pytest.raises(InputError, match="there is no file"):
            queries.read(tmp_path / "none.jsonl")


class TestAnswers:
    def test_the_last_word_of_a_person_holds(self, tmp_path):
        answers, asked = Answers(tmp_path / "a.jsonl"), query()
        for who, said in (("ada", "left"), ("bob", "right"), ("ada", "tie"), ("bob", "undo")):
            answers.append(Answer.of(asked, who, said))
        again = Answers(tmp_path / "a.jsonl")
        assert again.all == answers.all
        assert again.of("ada") == {asked.id: "tie"}
        assert again.of("bob") == {}
        assert again.outcomes([asked]) == {asked.id: 0.5}

    def test_people_who_disagree_are_a_tie_and_a_majority_decides(self, tmp_path):
        answers, asked = Answers(tmp_path / "a.jsonl"), query(swapped=True)
        answers.extend([Answer.of(asked, "ada", "left"), Answer.of(asked, "bob", "right")])
        assert answers.disagreements([asked]) == [asked.id]
        assert answers.outcomes([asked]) == {asked.id: 0.5}
        answers.append(Answer.of(asked, "eve", "left"))
        assert answers.outcomes([asked]) == {asked.id: 0.0}  # left is the duel's second
        answers.append(Answer.of(query(1), "eve", "skip"))
        assert answers.outcomes([query(1)]) == {}

    @given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1))
    def test_a_majority_is_the_sign_of_the_sum(self, votes):
        total = sum(vote - 0.5 for vote in votes)
        assert majority(votes) == (0.5 if total == 0 else float(total > 0))

    def test_an_edited_query_is_noticed(self, tmp_path):
        answers, asked = Answers(tmp_path / "a.jsonl"), query()
        answers.append(Answer.of(asked, "ada", "left"))
        answers.check([asked], "q.jsonl")
        edited = Query(asked.id, asked.prompt, asked.left + "!", asked.right)
        with pytest.raises(InputError, match=r"q\.jsonl: query .* was edited"):
            answers.check([edited], "q.jsonl")

    @pytest.mark.slow
    @given(st.integers(1, 300))
    def test_a_last_line_that_was_cut_short_is_passed_over_and_removed(self, tmp_path_factory, cut):
        path = tmp_path_factory.mktemp("a") / "answers.jsonl"
        answers = Answers(path)
        answers.extend(Answer.of(query(n), "ada", "left") for n in range(2))
        whole = path.read_bytes()
        ends = [place for place in range(len(whole) + 1) if whole[:place].endswith(b"\n")]
        path.write_bytes(whole[: -min(cut, len(whole) - 1)])
        kept = sum(end <= len(whole) - cut + 1 for end in ends)  # a line that lacks its end alone is whole
        again = Answers(path)
        assert len(again.all) == kept
        again.append(Answer.of(query(7), "ada", "tie"))
        assert Answers(path).all == again.all
        assert path.read_bytes().endswith(b"\n")

    @pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
    @pytest.mark.parametrize("last", [True, False])
    def test_lines_may_end_as_other_tools_end_them(self, tmp_path, end, last):
        path = tmp_path / "a.jsonl"
        Answers(path).extend(Answer.of(query(n), "ada", "left") for n in range(4))
        path.write_bytes(path.read_bytes().replace(b"\n", end).removesuffix(b"" if last else end))
        answers = Answers(path)
        assert [answer.query for answer in answers.all] == [query(n).id for n in range(4)]
        answers.append(Answer.of(query(4), "ada", "right"))
        assert [answer.query for answer in Answers(path).all] == [query(n).id for n in range(5)]
        path.write_bytes(path.read_bytes() + b"no answer" + end)
        with pytest.raises(InputError, match="line 6: it is not JSON"):
            Answers(path)

    @pytest.mark.parametrize(
        "separator", ["", " ", "\x0b", "\u2028", "\0"], ids=["nothing", "blank", "tab", "u2028", "zero"]
    )
    def test_answers_that_lost_their_ends_are_refused_and_stay(self, tmp_path, separator):
        path = tmp_path / "a.jsonl"
        answers = Answers(path)
        answers.extend(Answer.of(query(n), "ada", "left") for n in range(3))
        content = path.read_bytes().replace(b"\n", separator.encode())
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.jsonl, line 1: it is not JSON \(Extra data"):
            Answers(path)
        with contextlib.suppress(InputError):
            answers.append(Answer.of(query(9), "ada", "tie"))  # by one who read the file before
        assert path.read_bytes().startswith(content)

    def test_a_file_of_something_else_is_refused_and_stays(self, tmp_path):
        path = tmp_path / "notes.txt"
        for content in (b"my notes", b'{"note": "mi', b"\xff\xfe{"):
            path.write_bytes(content)
            with pytest.raises(InputError, match="line 1: it is not JSON"):
                Answers(path)
            assert path.read_bytes() == content

    def test_no_answers_are_kept_in_a_pipe_or_a_folder(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
            with pytest.raises(InputError, match="is no regular file"):
                Answers(path)

    def test_zeros_that_a_crash_left_are_passed_over(self, tmp_path):
        path = tmp_path / "a.jsonl"
        Answers(path).append(Answer.of(query(), "ada", "left"))
        for rest in (b"\0" * 40, b'{"query": "9f0c\0\0\0'):
            path.write_bytes(path.read_bytes() + rest)
            again = Answers(path)
            again.append(Answer.of(query(1), "ada", "right"))
            assert Answers(path).all == again.all
            assert b"\0" not in path.read_bytes()

    def test_a_bad_line_is_told_by_its_number(self, tmp_path):
        path = tmp_path / "a.jsonl"
        good = {"query": "q", "annotator": "ada", "answer": "left", "time": "", "digest": ""}
        for bad, said in (
            (good | {"answer": "up"}, "line 2: an answer is one of"),
            (good | {"annotator": ""}, "line 2: an annotator needs a name"),
            ({"query": "q"}, "line 2: an answer has the fields"),
        ):
            with pytest.raises(InputError, match=said):
                Answers(lines(path, good, bad, good))
        path.write_bytes(b'{"a"\n' + b"{}\n")
        with pytest.raises(InputError, match="line 1: it is not JSON"):
            Answers(path)

    def test_a_full_disk_leaves_the_file_as_it_was(self, tmp_path, monkeypatch):
        answers = Answers(tmp_path / "a.jsonl")
        answers.append(Answer.of(query(), "ada", "left"))
        before = (tmp_path / "a.jsonl").read_bytes()
        real, calls = os.pwrite, []

        def full(handle, content, place):
            calls.append(1)
            if len(calls) > 1:
                raise OSError(28, "No space left on device")
            return real(handle, content[:20], place)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(WriteError, match="No space left"):
            answers.append(Answer.of(query(1), "ada", "left"))
        assert (tmp_path / "a.jsonl").read_bytes() == before
        assert len(answers.all) == 1

    @pytest.mark.slow
    def test_a_kill_at_any_moment_loses_nothing_that_was_confirmed(self, tmp_path):
        path = tmp_path / "answers.jsonl"
        code = (
            "import pathlib, sys; from labelling.answers import Answer, Answers; from labelling.queries import Query\n"
            f"answers = Answers(pathlib.Path({str(path)!r}))\n"
            "for n in range(10**6):\n"
            "    answers.append(Answer.of(Query.of('01', str(n), 'a', 'b', False), 'ada', 'left'))\n"
            "    print(n, flush=True)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
            confirmed = [line for line in process.stdout.read().split("\n") if line]
        assert len(Answers(path).all) >= len(confirmed) + 1

    def test_two_processes_add_to_one_file(self, tmp_path):
        one, two = Answers(tmp_path / "a.jsonl"), Answers(tmp_path / "a.jsonl")
        for n in range(3):
            one.append(Answer.of(query(n), "ada", "left"))
            two.append(Answer.of(query(n), "bob", "right"))
        one.refresh()
        assert len(one.all) == 6
        assert len(one.latest) == 6


class TestProject:
    def test_a_directory_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"holds something else \(notes.txt\)"):
            Project(tmp_path).begin({"model": "m"})
        assert not Project(tmp_path).exists

    def test_another_project_is_refused_by_what_differs(self, tmp_path):
        kept = {"model": "m", "rank": 4, "strategy": "activedpo"}
        Project(tmp_path).begin({"model": "m", "settings": kept})
        Project(tmp_path).begin({"model": "m", "settings": kept})
        with pytest.raises(InputError, match=r"another settings.rank \(4, not 8\)"):
            Project(tmp_path).begin({"model": "m", "settings": kept | {"rank": 8}})
        Project(tmp_path).begin({"model": "m", "settings": kept | {"strategy": "random"}})
        assert Project(tmp_path).manifest()["settings"] == kept | {"strategy": "random"}
        with pytest.raises(InputError, match="is no project"):
            Project(tmp_path / "none").manifest()

    def test_batches_are_numbered_without_a_gap(self, tmp_path):
        project = Project(tmp_path)
        assert project.batches == 0
        queries.write(project.queries(1), [query(1)])
        queries.write(project.queries(3), [query(3)])
        with pytest.raises(InputError, match="no 02"):
            project.batches  # noqa: B018
