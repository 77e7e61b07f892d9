"""Projects: the loop through files is the language-model loop, byte for byte; pools of one's own; bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trl.data_utils import is_conversational

from activedpo.__main__ import main
from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.files import WriteError
from bandits.runs.stats import share
from bandits.selector import STRATEGIES
from labelling import page, queries
from labelling import train as training
from labelling.answers import Answer, Answers
from labelling.labelled import read_labels
from labelling.project import Project
from labelling.select import calibrated
from labelling.store import Store
from llm_loop.__main__ import main as align
from llm_loop.arena import Completions
from llm_loop.data.chat import Message, as_trl
from llm_loop.models import Row, byte_tokenizer, tiny_model

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


@pytest.mark.campaign
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


class TestPromptsAlone:
    """A pool of prompts, which the model answers: as many of them as there are, if they are few."""

    BEGIN = ("select", "--budget", "3", *TINY, "--strategy", "random")

    @pytest.fixture
    def prompts(self, tmp_path) -> Path:
        return lines(tmp_path / "prompts.jsonl", *({"prompt": f"Say number {n}"} for n in range(12)))

    @pytest.mark.slow
    def test_a_small_pool_works_as_it_is(self, prompts, tmp_path, capsys):
        assert main([*self.BEGIN, "--project", str(tmp_path / "p"), "--pool", str(prompts)]) == 0
        project = Project(tmp_path / "p")
        drawn = json.loads(project.drawn(1).read_text())
        rows = [json.loads(line) for line in project.pool.read_text().splitlines()]
        assert len(drawn["prompt_indices"]) == sum(row["split"] == "train" for row in rows) < 12
        assert "responses were cut at 8 tokens" in capsys.readouterr().out
        answer_all(project)
        assert main(["select", "--project", str(project.root), "--budget", "2"]) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--prompts-per-round", "11"], "--prompts-per-round 11, but the pool has"),
            (["--budget", "99"], "--budget 99, but 3 responses to each of"),
        ],
    )
    def test_what_is_too_much_is_refused_by_its_option(self, options, said, prompts, tmp_path, capsys):
        begin = [*self.BEGIN, "--project", str(tmp_path / "p"), "--pool", str(prompts), *options]
        assert main(begin) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("values", [[0.3] * 5, [0.0] * 5, [1.0, 1.0 + 2**-23], [1e-40] * 2, [0.1, 0.7]])
def test_a_histogram_of_equal_widths_is_drawn(values):
    widths = torch.tensor(values)
    low, high = page.spanned(widths)
    counts, edges = np.histogram(widths.double().numpy(), 30, (low, high))
    assert counts.sum() == len(values)
    assert (np.diff(edges) > 0).all()
    if values == [0.1, 0.7]:
        assert (low, high) == pytest.approx((0.1, 0.7))


@pytest.mark.campaign
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_rule_chooses_two_batches(strategy, tmp_path):
    """Also on a model all of whose widths are equal in the first batch: normalised gradients, B = 0, all layers."""
    pool, root = one_pool(tmp_path / "pool.jsonl"), tmp_path / "p"
    begin = ["select", "--project", str(root), "--pool", str(pool), "--strategy", strategy, "--budget", "3"]
    begin += ["--model", "tiny-llama", "--lora-layers", "0", "--sketch-size", "512"]
    if {"target", "truth"} & set(STRATEGIES[strategy].reads):  # what no pool of one's own has
        assert main(begin) == 2
        assert not root.exists()
        return
    assert main(begin) == 0
    answer_all(Project(root))
    assert main(["select", "--project", str(root), "--budget", "3"]) == 0
    assert Project(root).batches == 2
    assert (root / "index.html").exists()


class TestOwnPool:
    """A pool that has its responses: select, answer, train, select."""

    @pytest.fixture
    def begun(self, tmp_path) -> Project:
        path = one_pool(tmp_path / "pool.jsonl")
        assert main(["select", "--project", str(tmp_path / "p"), "--pool", str(path), "--budget", "4", *TINY]) == 0
        return Project(tmp_path / "p")

    @pytest.mark.slow
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

    @pytest.mark.campaign
    def test_a_reward_model_answers_in_people_s_place(self, begun, capsys):
        """Of an own pool too: what waits is answered first; asked by another rule, a duel has the same answer."""
        told = ["loop", str(begun.root), "--simulate", "2", "--reward", "lexical-letters", "--budget", "9"]
        assert main(told) == 0
        assert "trained on (4 answers)" in capsys.readouterr().out
        assert begun.batches == 2
        assert begun.trained(2)
        other = begun.root.with_name("other")
        pool = str(begun.root.with_name("pool.jsonl"))
        assert (
            main(["select", "--project", str(other), "--pool", pool, "--strategy", "random", "--budget", "4", *TINY])
            == 0
        )
        assert main([*told[:1], str(other), "--simulate", "1", *told[4:]]) == 0

        def answers(project: Project) -> dict[tuple[str, str], float]:
            asked = [q for batch in range(1, project.batches + 1) for q in project.read_queries(batch)]
            outcomes = project.read_answers().outcomes(asked)
            return {(q.first, q.second): outcomes[q.id] for q in asked}

        ours, theirs = answers(begun), answers(Project(other))
        assert len(ours) == 13  # all duels of the pool
        assert theirs.items() <= ours.items()
        assert len(set(ours.values())) == 2

    @pytest.mark.slow
    def test_choosing_again_is_the_same_choice_and_reuses_features(self, begun, tmp_path, capsys, monkeypatch):
        first = begun.queries(1).read_bytes()
        begun.queries(1).unlink()
        monkeypatch.setattr("labelling.store.Store._append", lambda *_: pytest.fail("features were made again"))
        assert main(["select", "--project", str(begun.root), "--budget", "4"]) == 0
        assert begun.queries(1).read_bytes() == first

    @pytest.mark.slow
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

    def test_a_lone_batch_replaces_no_file_and_not_its_own_page(self, tmp_path, capsys):
        base = ["select", "--pool", str(one_pool(tmp_path / "pool.jsonl")), "--budget", "2", *TINY]
        (tmp_path / "q.html").write_text("mine")
        for out, said in (
            ("x.html", "that is the name of the queries' page"),
            ("q.jsonl", "q.html is there already; remove it or choose another --out"),
            ("pool.jsonl", "pool.jsonl is there already"),
        ):
            assert main([*base, "--out", str(tmp_path / out)]) == 2
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1
        assert {path.name for path in tmp_path.iterdir()} == {"pool.jsonl", "q.html"}
        assert (tmp_path / "q.html").read_text() == "mine"

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_the_pool_s_names_are_not_the_labels(self, tmp_path):
        rows = [json.loads(line) for line in one_pool(tmp_path / "pool.jsonl", 2).read_text().splitlines()]
        pool = lines(tmp_path / "own.jsonl", *({"ask": r["prompt"], "drafts": r["responses"]} for r in rows))
        label = lines(tmp_path / "l.jsonl", {"prompt": "Say 0", "chosen": "no 0", "rejected": "yes 0"})
        base = ["select", "--pool", str(pool), "--fields", "prompt=ask", "responses=drafts", "--labelled", str(label)]
        assert main([*base, "--out", str(tmp_path / "q.jsonl"), "--budget", "2", *TINY]) == 0

    @pytest.mark.slow
    def test_a_project_begins_when_its_pool_is_there(self, tmp_path, monkeypatch, capsys):
        path, project = one_pool(tmp_path / "pool.jsonl"), Project(tmp_path / "p")
        begin = ["select", "--project", str(project.root), "--pool", str(path), "--budget", "2", *TINY]

        def full(*_: object) -> None:
            raise WriteError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr("labelling.session.write_pool", full)
            assert main(begin) == 2
        assert "no space left" in capsys.readouterr().err
        assert not project.exists
        assert main(begin) == 0

    @pytest.mark.parametrize("program", ["train", "loop"])
    def test_the_project_is_positional_and_may_be_named(self, program, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main([program, "--help"])
        usage, _, told = capsys.readouterr().out.partition("positional arguments")
        assert "--project" not in usage + told
        assert "PATH" in told.partition("options")[0]
        nowhere = str(tmp_path / "none")
        for arguments in ([nowhere], ["--project", nowhere], [f"--project={nowhere}"]):
            assert main([program, *arguments]) == 2
            assert nowhere in capsys.readouterr().err
        assert main([program]) == 2
        error = capsys.readouterr().err
        assert "PATH" in error
        assert error.count("\n") == 1

    @pytest.mark.slow
    def test_what_is_wrong_is_one_line_and_leaves_nothing(self, begun, tmp_path, capsys):
        path, root = one_pool(tmp_path / "pool.jsonl"), tmp_path / "new"
        empty = lines(tmp_path / "empty.jsonl")
        out = lines(tmp_path / "out.jsonl", {"prompt": "Say", "responses": ["a", "b"], "split": "test"})
        capsys.readouterr()
        for arguments, said in (
            (["--pool", str(path), "--project", str(root), "--budget", "99"], "the pool has 13 duels that were not"),
            (["--pool", str(path)], "give either --project"),
            (["--project", str(root)], "--pool says which"),
            (["--pool", str(tmp_path / "none.jsonl"), "--project", str(root)], "is neither a file"),
            (["--pool", str(path), "--project", str(root), "--strategy", "activdpo"], "did you mean 'activedpo'"),
            (["--pool", str(path), "--project", str(root), "--fields", "promt=x"], "--fields takes"),
            (
                ["--pool", str(path), "--project", str(root), "--fields", "prompt=q", "prompt=q2"],
                "--fields gives 'prompt' twice, as 'q' and 'q2'",
            ),
            (["--pool", str(path), "--project", str(root), "--labelled", str(empty)], "has no labels; leave it out"),
            (["--pool", str(out), "--project", str(root)], "every prompt is held out by its split"),
            (["--pool", str(path), "--project", str(root), "--response-tokens", "4"], "over the limit of 4"),
            (["--pool", str(path), "--project", str(path.parent)], "holds something else"),
            (["--pool", str(path), "--project", str(root), "--targets", "q_proj", "lm_head"], "is the output layer"),
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

    @pytest.mark.slow
    def test_a_project_that_knows_fewer_settings_goes_on_with_their_defaults(self, begun, capsys):
        answer_all(begun)
        kept = json.loads(begun.manifest_path.read_text())
        del kept["settings"]["adapter"]["init"], kept["settings"]["training"]["ties"]
        (begun.root / "ledger.json").unlink()  # such projects have none
        begun.manifest_path.write_text(json.dumps(kept))
        assert main(["select", "--project", str(begun.root), "--budget", "2"]) == 0

    @pytest.mark.slow
    def test_an_edited_queries_file_is_refused_with_its_line(self, begun, capsys):
        answer_all(begun)
        text = begun.queries(1).read_text()
        begun.queries(1).write_text(text.replace(begun.read_queries(1)[0].left, "something else"))
        assert main(["train", str(begun.root)]) == 2
        assert f"{begun.queries(1)} is cut or altered" in capsys.readouterr().err
        (begun.root / "ledger.json").unlink()
        assert main(["train", str(begun.root)]) == 2
        assert "edited" in capsys.readouterr().err
        assert not (begun.root / "models").exists()

    def test_the_calibration_that_a_price_quotes_is_the_map_s(self):
        home = Path(__file__).parents[1]
        published = home / "docs/studies/map/calibration.csv"
        assert (home / "labelling/calibration.csv").read_bytes() == published.read_bytes()

    @pytest.mark.slow
    def test_what_a_split_holds_out_is_never_asked(self, tmp_path, capsys):
        folder, root = tmp_path / "data", tmp_path / "p"
        folder.mkdir()
        one_pool(folder / "train.jsonl", 3)
        lines(
            folder / "test.jsonl",
            {"prompt": "Say 1", "responses": ["x", "y"]},  # which is in the other file, too
            {"prompt": "Held out", "responses": ["x", "y"]},
        )
        begin = ["select", "--project", str(root), "--pool", str(folder), "--strategy", "random", *TINY]
        assert main([*begin, "--budget", "7"]) == 0
        assert f"note: 2 of 5 prompts of {folder} are held out by their split" in capsys.readouterr().out
        assert {query.prompt for query in Project(root).read_queries(1)} == {"Say 0", "Say 2", "Say little"}
        assert "Held out" not in Project(root).pool.read_text()
        answer_all(Project(root))
        assert main(["select", "--project", str(root), "--pool", str(folder), "--budget", "1"]) == 2
        assert "the pool has 0 duels" in capsys.readouterr().err

    @pytest.mark.slow
    def test_ties_alone_are_trained_on_and_no_share_is_made_up(self, begun, capsys):
        answer_all(begun, "tie")
        capsys.readouterr()
        assert main(["train", str(begun.root), "--no-health"]) == 0
        told = capsys.readouterr().out
        assert "nan" not in told
        assert "no decided duel among them" in told
        assert "no decided duel among those that a second fit was not shown" in told

    @pytest.mark.slow
    def test_a_price_stops(self, tmp_path, capsys):
        path = one_pool(tmp_path / "pool.jsonl")
        base = ["select", "--pool", str(path), "--budget", "4", *TINY]
        assert main([*base, "--out", str(tmp_path / "a.jsonl"), "--price", "1e-6"]) == 0
        told = capsys.readouterr().out
        assert "go on: at least the price" in told
        assert "in 36 simulated worlds the share of 20 labels that activedpo was predicted to save" in told
        assert "of activedpo-normalised is not known" in calibrated("activedpo-normalised", 20)
        project = Project(tmp_path / "p")
        assert main([*base, "--project", str(project.root), "--price", "99"]) == 1
        told = capsys.readouterr().out
        assert "stop: less than the price" in told
        assert "no batch was written" in told
        assert not project.exists
        assert not project.batches
        assert main([*base, "--project", str(project.root), "--price", "1e-6"]) == 0

    @pytest.mark.slow
    def test_the_rule_may_change_from_batch_to_batch(self, begun):
        for strategy in ("random", "activedpo"):  # as the page advises where choosing saves little
            answer_all(begun)
            assert main(["select", "--project", str(begun.root), "--budget", "2", "--strategy", strategy]) == 0
            assert begun.manifest()["settings"]["strategy"] == strategy
            assert all((query.width is None) == (strategy == "random") for query in begun.read_queries(begun.batches))
        answer_all(begun)
        assert main(["select", "--project", str(begun.root), "--budget", "2"]) == 0
        asked = [query.id for batch in range(1, 5) for query in begun.read_queries(batch)]
        assert len(asked) == len({(q.prompt, q.first, q.second) for b in range(1, 5) for q in begun.read_queries(b)})

    @pytest.mark.slow
    def test_a_project_s_edited_queries_cannot_be_asked_again(self, begun, capsys):
        assert main(["label", str(begun.root), "--terminal", "--again"]) == 2
        assert "put back what was edited" in capsys.readouterr().err


def test_agreement_is_over_prompts(monkeypatch):
    rows = [Row((1,), (n,)) for n in range(3)] + [Row((2,), (n,)) for n in range(2)]
    items = Completions(tuple(rows), 1, torch.zeros(5))
    duels = Duels(torch.tensor([0, 0, 1, 3, 3]), torch.tensor([1, 2, 2, 4, 4]))
    past = Labelled.of(items, duels, torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5]), lasting=True)
    monkeypatch.setattr(training, "_rewards", lambda *_: torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0]))
    want = share((1 + 1 + 0) / 3 + 0.5, 2)  # the tie says nothing; a margin of 0 is half right
    assert training._agreement(None, past, 1) == want
    assert training._agreement(None, past, 0) == share(1.0, 2)
    monkeypatch.setattr(training, "_rewards", lambda *_: torch.tensor([3.0, torch.nan, 1.0, 0.0, 0.0]))
    with pytest.raises(InputError, match=r"its training diverged; lower --rate"):
        training._agreement(None, past, 1)


def test_preferences_of_a_conversation_have_messages_on_both_sides(tmp_path):
    chat = (Message("system", "Be brief."), Message("user", "Say it"))
    rows = [as_trl("Say it", "a", "b"), as_trl(chat, "a", "b")]
    assert [is_conversational(row) for row in rows] == [False, True]
    assert rows[1]["chosen"] == [{"role": "assistant", "content": "a"}]
    read = read_labels(lines(tmp_path / "preferences.jsonl", *rows))
    assert [(label.prompt, label.first, label.second) for label in read] == [("Say it", "a", "b"), (chat, "a", "b")]


@pytest.mark.slow
def test_a_project_remembers_what_people_are_asked(tmp_path, capsys):
    pool = one_pool(tmp_path / "pool.jsonl")
    begin = ["select", "--project", str(tmp_path / "p"), "--pool", str(pool), "--budget", "2", "--strategy", "random"]
    assert main([*begin, *TINY]) == 0
    label = ["label", str(tmp_path / "p"), "--export", str(tmp_path / "tasks.json")]

    def asked(*more: str) -> str:
        capsys.readouterr()
        assert main([*label, *more]) == 0
        (tmp_path / "tasks.json").unlink()
        return capsys.readouterr().out

    assert "Which response is better?" in asked()
    assert "Which is kinder?" in asked("--question", "Which is kinder?\nNo sarcasm.")
    assert "Which is kinder?" in asked()
    assert Project(tmp_path / "p").question.read_text() == "Which is kinder?\nNo sarcasm.\n"
    lone = lines(tmp_path / "q.jsonl", *(query.to_json() for query in Project(tmp_path / "p").read_queries(1)))
    label[1] = str(lone)
    assert "Which is kinder?" in asked("--question", "Which is kinder?")
    assert "Which response is better?" in asked()


KILLED = """
import os, pathlib, signal, sys, torch
from labelling import store

store.CHUNK, root, sync = 4, pathlib.Path(sys.argv[1]), os.fsync
ids = [f"{n:016x}" for n in range(60)]

def fill(name, at):
    left = [at]
    def until(handle):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)
    os.fsync = until
    make = lambda places: torch.stack([torch.arange(64.0) * place for place in places]) + torch.eye(64)[9] * len(places)
    store.Store(root / name, {"model": "m"}, 64).fill(ids, make, "features")

for name, moments in (("whole", (-1,)), ("killed", (1, 2, 3, 4, 5, 6, 7, -1))):
    for at in moments:
        child = os.fork()
        if not child:
            fill(name, at)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == (0 if at < 0 else signal.SIGKILL)
        kept = store.Store(root / name, {"model": "m"}, 64)
        values, places = kept.table(list(kept.places)) if kept.places else (torch.zeros(0, 2), torch.zeros(0).long())
        assert values[places, 1].tolist() == [float(int(row, 16)) for row in kept.places]
        print(name, len(kept.places))
"""


@pytest.mark.campaign
def test_a_killed_store_goes_on_to_the_same_bytes(tmp_path):
    """Killed at any write, a table of features is made to its end with the bytes of one that nobody disturbed."""
    told = [sys.executable, "-c", KILLED, str(tmp_path)]
    out = subprocess.run(told, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")
    kept = [int(line.split()[1]) for line in out if line.startswith("killed")]
    assert sorted(kept) == kept  # each goes on where the one before it was
    assert (kept[0], kept[-1]) == (0, 60)
    assert len(set(kept)) > 4
    folder = Store(tmp_path, {"model": "m"}, 64).folder.name
    for file in ("rows.bin", "ids.txt", "identity.json"):
        assert (tmp_path / "killed" / folder / file).read_bytes() == (tmp_path / "whole" / folder / file).read_bytes()
    assert Store(tmp_path / "whole", {"model": "another"}, 64).missing(["0" * 16]) == [0]


@pytest.mark.slow
def test_a_changed_model_is_noticed(tmp_path, capsys):
    model = tmp_path / "model"
    tiny_model("tiny-llama", Key(0)).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    own = ["--model", str(model), *TINY[2:]]
    begin = [
        "select",
        "--project",
        str(tmp_path / "p"),
        "--pool",
        str(one_pool(tmp_path / "pool.jsonl")),
        "--budget",
        "3",
    ]
    assert main([*begin, *own]) == 0
    answer_all(Project(tmp_path / "p"))
    tiny_model("tiny-llama", Key(1)).save_pretrained(model)
    capsys.readouterr()
    assert main(["select", "--project", str(tmp_path / "p"), "--budget", "3"]) == 2
    assert "began with other model files than --model has now" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "p")]) == 2
