"""Projects: the loop through files is the language-model loop, byte for byte; pools of one's own; bad input."""

import json
from pathlib import Path

import pytest

from activedpo.__main__ import main
from labelling import queries
from labelling.answers import Answer, Answers
from labelling.project import Project
from labelling.store import Store
from llm_loop.__main__ import main as align

TINY = ["--model", "tiny-llama", "--rank", "4", "--alpha", "8", "--lora-layers", "1", "--sketch-size", "512"]
TINY += ["--tokens", "8", "--rate", "1e-2", "--epochs", "4"]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_pool(path: Path, prompts: int = 4) -> Path:
    rows = [
        {"prompt": f"Say {n}", "responses": [f"{word} {n}" for word in ("yes", "no", "maybe so")]}
        for n in range(prompts)
    ]
    return lines(path, *rows, {"prompt": "Say little", "responses": ["a", "b"]})  # fewer than the others


def answer_all(project: Project, said: str = "left") -> None:
    answers = Answers(project.answers_path)
    answers.extend(Answer.of(query, "ada", said) for query in project.read_queries(project.batches))


@pytest.mark.parametrize("strategy", ["activedpo-normalised", "random"])
def test_files_with_the_reward_model_for_people_are_the_language_model_loop(tmp_path, capsys, strategy):
    told = ["--strategies", strategy, *(() if strategy == "random" else ("random",))]
    assert align(["smoke", *told, "--output", str(tmp_path / "loop"), "--jobs", "1"]) == 0
    (cell,) = (tmp_path / "loop").glob(f"llm/*/cells/{strategy}--seed0")
    root = tmp_path / "project"
    begin = ["select", "--project", str(root), "--pool", "builtin", "--budget", "3", "--strategy", strategy]
    begin += [*TINY, "--prompts-per-round", "4"]
    assert main(begin) == 0
    assert main(["loop", str(root), "--simulate", "2", "--reward", "lexical-letters", "--budget", "3"]) == 0
    project = Project(root)
    for round in (1, 2):
        record = json.loads((cell / f"records/round-{round:02d}.json").read_text())
        drawn = json.loads(project.drawn(round).read_text())
        for name in ("prompt_indices", "responses", "texts", "log_probs", "reference"):
            assert drawn[name] == record["table"][name]
        theirs = (cell / f"adapters/round-{round:02d}/adapter_model.safetensors").read_bytes()
        assert (project.model(round) / "adapter_model.safetensors").read_bytes() == theirs
        picked = sorted(
            (row for row in record["candidates"] if row["picked_position"] is not None),
            key=lambda r: r["picked_position"],
        )
        asked = project.read_queries(round)
        assert [(q.prompt, q.first, q.second) for q in asked] == [
            (row["prompt"], row["response_1"], row["response_2"]) for row in picked
        ]
        outcomes = project.read_answers().outcomes(asked)
        assert [outcomes[q.id] for q in asked] == [row["label"] for row in picked]
        if strategy != "random":
            assert [q.width for q in asked] == [row["width"] for row in picked]
            assert [q.gain for q in asked] == [row["log_det_gain"] for row in picked]
    assert len(project.preferences.read_text().split("\n")) == 7
    capsys.readouterr()


class TestOwnPool:
    """A pool that has its responses: select, answer, train, select."""

    @pytest.fixture
    def begun(self, tmp_path) -> Project:
        path = one_pool(tmp_path / "pool.jsonl")
        assert main(["select", "--project", str(tmp_path / "p"), "--pool", str(path), "--budget", "4", *TINY]) == 0
        return Project(tmp_path / "p")

    def test_the_whole_way(self, begun, capsys):
        asked = begun.read_queries(1)
        assert len({query.id for query in asked}) == 4
        assert all(query.width > 0 and query.why for query in asked)
        assert main(["select", "--project", str(begun.root)]) == 2  # nothing is asked twice, nor over what waits
        assert "4 queries" in capsys.readouterr().err
        answer_all(begun)
        assert main(["loop", str(begun.root)]) == 0
        assert f"next: activedpo train {begun.root}" in capsys.readouterr().out
        assert main(["train", str(begun.root)]) == 0
        out = capsys.readouterr().out
        assert "a second fit was not shown" in out
        assert "KL from the reference" in out
        report = json.loads((begun.model(1) / "training.json").read_text())
        assert report["answers"] == 4
        assert report["agreement"]["before"]["value"] == 0.5
        assert main(["select", "--project", str(begun.root), "--budget", "3"]) == 0
        first, second = (
            {(query.prompt, query.first, query.second) for query in begun.read_queries(batch)} for batch in (1, 2)
        )
        assert len(second) == 3
        assert not first & second
        assert main(["loop", str(begun.root)]) == 0
        assert f"next: activedpo label {begun.root}" in capsys.readouterr().out

    def test_choosing_again_is_the_same_choice_and_reuses_features(self, begun, tmp_path, capsys, monkeypatch):
        first = begun.queries(1).read_bytes()
        begun.queries(1).unlink()
        monkeypatch.setattr("labelling.store.Store._append", lambda *_: pytest.fail("features were made again"))
        assert main(["select", "--project", str(begun.root), "--budget", "4"]) == 0
        assert begun.queries(1).read_bytes() == first

    def test_only_what_a_pool_has_grown_by_is_new(self, begun, tmp_path, monkeypatch, capsys):
        answer_all(begun, "tie")
        made: list[int] = []
        real = Store._append
        monkeypatch.setattr(
            Store, "_append", lambda self, names, rows: (made.append(len(names)), real(self, names, rows))
        )
        more = one_pool(tmp_path / "more.jsonl", 6)
        assert main(["select", "--project", str(begun.root), "--pool", str(more), "--budget", "3"]) == 0
        assert sum(made) == 6  # two prompts of three responses; θ did not move

    def test_labels_from_elsewhere_count_and_are_not_asked_again(self, tmp_path, capsys):
        path = one_pool(tmp_path / "pool.jsonl", 2)
        labels = [
            {"prompt": "Say 0", "chosen": "no 0", "rejected": "yes 0"},
            {"prompt": "Say little", "chosen": "a", "rejected": "b"},
        ]
        out = tmp_path / "q.jsonl"
        base = ["select", "--pool", str(path), "--labelled", str(lines(tmp_path / "l.jsonl", *labels)), *TINY]
        assert main([*base, "--out", str(out), "--budget", "5"]) == 0
        assert "given 2 answered ones" in capsys.readouterr().out
        asked = {(query.prompt, query.first, query.second) for query in queries.read(out)}
        assert len(asked) == 5
        assert ("Say 0", "yes 0", "no 0") not in asked
        assert ("Say little", "a", "b") not in asked
        for bad, said in (
            ({"prompt": "Say 9", "chosen": "a", "rejected": "b"}, "line 1: its prompt is not in the pool"),
            ({"prompt": "Say 0", "chosen": "a", "rejected": "no 0"}, "line 1: the response 'a' is not among"),
        ):
            lines(tmp_path / "l.jsonl", bad)
            assert main([*base, "--out", str(tmp_path / "other.jsonl"), "--budget", "2"]) == 2
            assert said in capsys.readouterr().err
        lines(tmp_path / "l.jsonl", labels[0], {**labels[0], "chosen": "yes 0", "rejected": "no 0"})
        assert main([*base, "--out", str(tmp_path / "other.jsonl"), "--budget", "2"]) == 2
        assert "line 2: it contradicts" in capsys.readouterr().err

    def test_what_is_wrong_is_one_line_and_leaves_nothing(self, begun, tmp_path, capsys):
        path, root = one_pool(tmp_path / "pool.jsonl"), tmp_path / "new"
        capsys.readouterr()
        for arguments, said in (
            (["--pool", str(path), "--project", str(root), "--budget", "99"], "the pool has 13 duels that were not"),
            (["--pool", str(path)], "give either --project"),
            (["--project", str(root)], "--pool says which"),
            (["--pool", str(tmp_path / "none.jsonl"), "--project", str(root)], "is neither a file"),
            (["--pool", str(path), "--project", str(root), "--strategy", "activdpo"], "did you mean 'activedpo'"),
            (["--pool", str(path), "--project", str(root), "--fields", "promt=x"], "--fields takes"),
            (["--pool", str(path), "--project", str(root), "--response-tokens", "4"], "over the limit of 4"),
            (["--pool", str(path), "--project", str(path.parent)], "holds something else"),
        ):
            assert main(["select", *arguments, *TINY]) == 2, arguments
            error = capsys.readouterr().err
            assert said in error, error
            assert error.count("\n") == 1, error
            assert not (root / "project.json").exists()
        assert main(["select", "--project", str(begun.root), "--rank", "8"]) == 2
        answer_all(begun)
        assert main(["select", "--project", str(begun.root), "--rank", "8"]) == 2
        assert "is a project with another settings.adapter" in capsys.readouterr().err

    def test_a_project_that_knows_fewer_settings_goes_on_with_their_defaults(self, begun, capsys):
        answer_all(begun)
        kept = json.loads(begun.manifest_path.read_text())
        for name in ("init", "targets"):
            del kept["settings"]["adapter"][name]
        begun.manifest_path.write_text(json.dumps(kept))
        assert main(["select", "--project", str(begun.root), "--budget", "2"]) == 0

    def test_an_edited_queries_file_is_refused_with_its_line(self, begun, capsys):
        answer_all(begun)
        text = begun.queries(1).read_text()
        begun.queries(1).write_text(text.replace(begun.read_queries(1)[0].left, "something else"))
        assert main(["train", str(begun.root)]) == 2
        assert "edited" in capsys.readouterr().err
        assert not (begun.root / "models").exists()

    def test_a_price_stops(self, tmp_path, capsys):
        path = one_pool(tmp_path / "pool.jsonl")
        base = ["select", "--pool", str(path), "--budget", "4", *TINY]
        assert main([*base, "--out", str(tmp_path / "a.jsonl"), "--price", "1e-6"]) == 0
        assert "go on: at least the price" in capsys.readouterr().out
        assert main([*base, "--out", str(tmp_path / "b.jsonl"), "--price", "99"]) == 1
        assert "stop: less than the price" in capsys.readouterr().out
