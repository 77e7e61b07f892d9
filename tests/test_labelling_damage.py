"""A project's files that are not as they were written, and a second writer: named in one line, or made again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from activedpo.__main__ import main
from bandits.core.errors import InputError
from bandits.runs.directory import BusyError, Ledger, alone, config_of
from bandits.runs.files import HOST, DamagedError
from labelling.answers import Answer, Answers
from labelling.desk import Desk, Source
from labelling.project import Project
from labelling.session import check_drawn
from labelling.settings import Settings
from labelling.store import Store

TINY = ["--model", "tiny-llama", "--rank", "4", "--alpha", "8", "--lora-layers", "1", "--sketch-size", "512"]
TINY += ["--tokens", "8", "--rate", "1e-2", "--epochs", "1"]


def answer_all(project: Project) -> None:
    asked = project.read_queries(project.batches)
    Answers(project.answers_path).extend(Answer.of(query, "ada", "left") for query in asked)


def whole_project(root: Path, rows: list[dict[str, object]], strategy: str) -> Path:
    """Begin a project, answer its first batch and train on it."""
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    begin = ["select", "--project", str(root / "p"), "--pool", str(root / "rows.jsonl"), "--budget", "3"]
    assert main([*begin, "--strategy", strategy, *TINY]) == 0
    answer_all(Project(root / "p"))
    assert main(["train", str(root / "p"), "--held-out", "0", "--no-health"]) == 0
    return root / "p"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    rows = [{"prompt": f"Say {n}", "responses": [f"{word} {n}" for word in ("yes", "no", "maybe")]} for n in range(3)]
    return whole_project(tmp_path_factory.mktemp("own"), rows, "activedpo")


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> Path:
    rows: list[dict[str, object]] = [{"prompt": f"Say number {n}"} for n in range(6)]
    return whole_project(tmp_path_factory.mktemp("drawn"), rows, "random")


@pytest.fixture
def project(written, tmp_path) -> Project:
    return Project(shutil.copytree(written, tmp_path / "p"))


def flip(path: Path) -> None:
    """Turn one bit over in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put(old: str, new: str):
    def change(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def refused(capsys, arguments: list[str], *said: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "--force" not in error
    for text in said:
        assert text in error


def commands(root: Path) -> list[list[str]]:
    return [["select", "--project", str(root)], ["train", str(root)], ["loop", str(root)]]


@pytest.mark.slow
class TestAltered:
    @pytest.mark.parametrize(
        ("name", "change", "said"),
        [
            ("models/01/adapter_model.safetensors", flip, "delete {root}/models/01 and go on with: activedpo train"),
            ("models/01/adapter_model.safetensors", Path.unlink, "is gone"),
            ("models/01/adapter_config.json", put('"r": 4', '"r": 8'), "cut or altered"),
            ("models/01/training.json", put('"answers": 3', '"answers": 4'), "cut or altered"),
            ("pool.jsonl", put("maybe 2", "maybe 9"), "put it back from a copy"),
            ("pool.jsonl", Path.unlink, "is gone"),
            ("project.json", put('"seed": 0', '"seed": 1'), "cut or altered"),
            ("queries/01.jsonl", put('"swapped": ', '"swapped":  '), "cut or altered"),
            ("ledger.json", put("{", ""), "is damaged; put it back from a copy, or delete it"),
        ],
    )
    def test_is_named_by_every_command(self, project, name, change, said, capsys):
        change(project.root / name)
        for command in commands(project.root):
            refused(capsys, command, f"{project.root / name} ", said.format(root=project.root))
        assert project.batches == 1

    @pytest.mark.parametrize("change", [put('"reference": [\n    -', '"reference": [\n    -5'), flip])
    def test_responses_that_were_drawn_are_named(self, drawing, tmp_path, change, capsys):
        project = Project(shutil.copytree(drawing, tmp_path / "p"))
        change(project.drawn(1))
        for command in commands(project.root):
            refused(capsys, command, f"{project.drawn(1)} is cut or altered")

    def test_a_model_that_is_deleted_is_trained_again(self, project, capsys):
        weights = project.model(1) / "adapter_model.safetensors"
        before = weights.read_bytes()
        shutil.rmtree(project.model(1))
        assert main(["loop", str(project.root)]) == 0
        assert "not trained on yet" in capsys.readouterr().out
        assert main(["train", str(project.root), "--held-out", "0", "--no-health"]) == 0
        assert weights.read_bytes() == before
        project.check()

    def test_labelling_looks_at_what_it_shows_alone(self, project, capsys):
        flip(project.pool)
        Source.at(project.root)
        flip(project.queries(1))
        refused(capsys, ["label", str(project.root), "--terminal"], str(project.queries(1)))

    def test_a_project_without_a_ledger_goes_on_and_gets_one(self, project, capsys):
        own = project.root / "ledger.json"
        listed = Ledger(project.root).files
        own.unlink()
        made = []
        real = Store._append
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "_append", lambda *given: (made.append(given), real(*given)))
            project.queries(1).unlink()
            shutil.rmtree(project.model(1))
            assert main(["select", "--project", str(project.root), "--budget", "3"]) == 0
        assert not made
        again = Ledger(project.root).files
        assert again == {name: value for name, value in listed.items() if not name.startswith("models/")}

    def test_features_are_made_again(self, project, capsys):
        before = project.queries(1).read_bytes()
        shutil.rmtree(project.model(1))
        project.queries(1).unlink()
        rows = list(project.features.glob("*/rows.bin"))
        assert rows
        for path in rows:
            flip(path)
        capsys.readouterr()
        assert main(["select", "--project", str(project.root), "--budget", "3"]) == 0
        assert "they are made again" in capsys.readouterr().err
        assert project.queries(1).read_bytes() == before

    def test_a_pool_may_grow(self, project, tmp_path, capsys):
        more = tmp_path / "more.jsonl"
        more.write_text(json.dumps({"prompt": "Say 9", "responses": ["a", "b"]}) + "\n")
        assert main(["select", "--project", str(project.root), "--pool", str(more), "--budget", "2"]) == 0
        assert main(["loop", str(project.root)]) == 0
        flip(project.pool)
        refused(capsys, ["loop", str(project.root)], "pool.jsonl is cut or altered")


class TestLedger:
    def test_a_write_that_was_cut_off_leaves_nothing_that_differs(self, tmp_path):
        project = Project(tmp_path)
        for text in ("one", "two"):
            with project.writing(project.pool):
                project.pool.write_text(text)
            project.check()

        def killed() -> None:
            with project.writing(project.pool):
                project.pool.write_text("three")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            killed()
        project.check()
        with project.writing(project.queries(1)):
            pass
        project.pool.write_text("four")
        with pytest.raises(DamagedError, match=r"pool\.jsonl is cut or altered since the project wrote it"):
            project.check()

    @pytest.mark.parametrize(
        ("name", "owner", "gone"),
        [
            ("labelled.jsonl", None, True),
            ("pool.jsonl", None, True),
            ("drawn/01.json", None, True),
            ("drawn/01.json", "queries/01.jsonl", False),
            ("queries/01.jsonl", None, False),
            ("models/01/adapter_model.safetensors", None, True),
            ("models/01/adapter_model.safetensors", "models/01/adapter_config.json", False),
        ],
    )
    def test_batches_and_models_may_be_removed_whole(self, tmp_path, name, owner, gone):
        project, names = Project(tmp_path), {name, owner or name}
        names |= {"queries/01.jsonl", "models/01/adapter_config.json"}
        for one in names:
            (tmp_path / one).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / one).write_text("{}")
        with project.writing():
            pass
        for one in {name, owner or name}:
            (tmp_path / one).unlink()
            if not any((tmp_path / one).parent.iterdir()):
                (tmp_path / one).parent.rmdir()
        if gone:
            with pytest.raises(DamagedError, match=f"{name} is gone"):
                project.check()
        else:
            project.check()


class TestManifest:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", "cannot read"),
            ("[]", "it holds no dict"),
            ('{"format": 2}', "is of format 2"),
            ('{"format": 1}', "it has no settings"),
            ('{"format": 1, "settings": []}', "it has no settings"),
            ('{"format": 1, "settings": {}}', "its model is no text"),
            ('{"format": 1, "model": "m", "settings": {"model": 1}}', "its settings.model is no text"),
            ('{"format": 1, "model": "m", "settings": {"model": "m"}}', "its settings.strategy is no text"),
        ],
    )
    def test_what_is_none_is_refused_by_every_command(self, tmp_path, content, said, capsys):
        (tmp_path / "project.json").write_text(content)
        for command in (*commands(tmp_path), ["label", str(tmp_path)]):
            refused(capsys, command, "project.json", said)

    @pytest.mark.parametrize(
        ("place", "value", "said"),
        [
            ("adapter", None, "its settings.adapter must be named values, got 'None'"),
            ("training", {}, "it has no settings.training.beta"),
            ("seed", ..., "it has no settings.seed"),
            ("training.rate", ..., "it has no settings.training.rate"),
            ("colour", 1, "its settings have 'colour', which this version does not know"),
            ("seed", "0", "its settings.seed must be int, got '0'"),
            ("seed", True, "its settings.seed must be int, got 'True'"),
            ("seed", 1.5, "its settings.seed must be int, got '1.5'"),
            ("ridge", "1", "its settings.ridge must be float"),
            ("ridge", -1.0, "--ridge must be above 0"),
            ("chat", "maybe", "its settings.chat must be auto or yes or no"),
            ("trust_remote_code", 1, "its settings.trust_remote_code must be bool"),
            ("adapter.targets", "q_proj", "its settings.adapter.targets must be"),
            ("adapter.targets", [1], "its settings.adapter.targets must be str"),
            ("training.ties", "no", "its settings.training.ties must be float or NoneType"),
        ],
    )
    def test_a_setting_that_cannot_be_is_named(self, place, value, said):
        settings = config_of(Settings(model="tiny-llama"))
        *group, name = place.split(".")
        inner = settings[group[0]] if group else settings
        assert isinstance(inner, dict)
        if value is ...:
            del inner[name]
        else:
            inner[name] = value
        with pytest.raises(InputError, match=r"project\.json: .*put it back from a copy") as error:
            Settings.of(settings)
        assert said in str(error.value)

    def test_settings_are_read_as_they_were_written(self):
        settings = Settings(model="tiny-llama", ridge=2, seed=2**62)
        assert Settings.of(config_of(settings)) == settings
        before = config_of(settings)
        for group, name in (("adapter", "layers"), ("adapter", "init"), ("training", "ties")):
            del before[group][name]
        assert (Settings.of(before).adapter.layers, Settings.of(before).adapter.init) == (0, "b0")


class TestDrawn:
    KEPT = {  # noqa: RUF012
        "prompt_indices": [0, 2],
        "responses": [[1], [2, 3], [4], [0]],
        "texts": ["a", "b", "c", "d"],
        "log_probs": [-1.0, -2.0, -3, -4.5],
        "reference": [-1.0, None, -3.0, -4.5],
    }

    def test_what_was_drawn_is_taken(self):
        check_drawn(self.KEPT, 3, 2, 2, 5)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("prompt_indices", [0]),
            ("prompt_indices", [0, 3]),
            ("prompt_indices", [0, -1]),
            ("prompt_indices", [0, True]),
            ("responses", [[1], [2], [4]]),
            ("responses", [[1], [], [4], [0]]),
            ("responses", [[1], [5], [4], [0]]),
            ("responses", [[1], ["2"], [4], [0]]),
            ("responses", None),
            ("texts", ["a", "b", "c"]),
            ("texts", ["a", "b", "c", 4]),
            ("log_probs", [-1.0, -2.0, -3.0]),
            ("log_probs", [-1.0, -2.0, -3.0, None]),
            ("log_probs", [-1.0, -2.0, -3.0, "4"]),
            ("reference", [-1.0]),
            ("reference", [-1.0, "x", -3.0, -4.5]),
        ],
    )
    def test_what_cannot_have_been_drawn_is_not(self, name, value):
        with pytest.raises(ValueError, match=name):
            check_drawn(self.KEPT | {name: value}, 3, 2, 2, 5)

    @pytest.mark.slow
    def test_a_damaged_file_of_a_project_without_a_ledger_is_named(self, drawing, tmp_path, capsys):
        project = Project(shutil.copytree(drawing, tmp_path / "p"))
        (project.root / "ledger.json").unlink()
        kept = json.loads(project.drawn(1).read_text())
        project.drawn(1).write_text(json.dumps(kept | {"responses": [[], *kept["responses"][1:]]}))
        refused(capsys, ["select", "--project", str(project.root), "--budget", "2"], str(project.drawn(1)), "responses")


class TestStore:
    IDS = tuple(f"{n:016x}" for n in range(6))

    @staticmethod
    def make(places: list[int]) -> torch.Tensor:
        return torch.stack([torch.arange(4.0) + 10 * place for place in places])

    def store(self, root: Path) -> Store:
        return Store(root, {"model": "m"}, 4)

    @staticmethod
    def swap(path: Path) -> None:
        first, second, *rest = path.read_text().splitlines(keepends=True)
        path.write_text("".join([second, first, *rest]))

    @staticmethod
    def behead(path: Path) -> None:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))

    @staticmethod
    def garble(path: Path) -> None:
        path.write_bytes(b"\xff" + path.read_bytes()[1:])

    @staticmethod
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-3])

    @pytest.mark.parametrize(
        ("file", "change"),
        [
            ("rows.bin", flip),
            ("rows.bin", cut),
            ("rows.bin", Path.unlink),
            ("ids.txt", swap),
            ("ids.txt", behead),
            ("ids.txt", garble),
            ("ids.txt", flip),
        ],
    )
    def test_rows_that_are_not_as_written_are_made_again(self, tmp_path, file, change, capsys):
        self.store(tmp_path).fill(self.IDS, self.make, "rows")
        folder = self.store(tmp_path).folder
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        change(folder / file)
        capsys.readouterr()
        again = self.store(tmp_path)
        again.fill(self.IDS, self.make, "rows")
        assert f"{folder}: " in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        values, places = again.table(self.IDS)
        assert torch.equal(values[places], self.make(list(range(6))))

    def test_a_chunk_that_was_cut_is_made_again_as_a_whole(self, tmp_path):
        """A row's digits may hang on the rows that it is made with: a rest, made by itself, would have others."""

        def beside(places: list[int]) -> torch.Tensor:
            return self.make(places) + len(places)

        self.store(tmp_path).fill(self.IDS, beside, "rows")
        ids = self.store(tmp_path).folder / "ids.txt"
        before = {path.name: path.read_bytes() for path in ids.parent.iterdir()}
        for size in range(0, len(before["ids.txt"]), 17):
            ids.write_bytes(before["ids.txt"][:size])
            self.store(tmp_path).fill(self.IDS, beside, "rows")
            assert {path.name: path.read_bytes() for path in ids.parent.iterdir()} == before


class TestLock:
    @pytest.mark.slow
    def test_one_writes_at_a_time_and_people_go_on(self, project, capsys):
        with project.held():
            for command in commands(project.root)[:2]:
                refused(capsys, command, f"{project.root} is being written by process", "wait for it")
            assert main(["loop", str(project.root)]) == 0
            desk = Desk(Source.at(project.root))
            shown = desk.standing("bob").duel
            assert shown is not None
            assert desk.answer("bob", shown.query.id, shown.query.digest, shown.seen, "left").answered == 1
        with project.held():
            pass
        assert not (project.root / ".lock").exists()

    def test_a_lone_file_in_a_project_waits_for_its_writer_too(self, tmp_path, capsys):
        """Beside a lone file are its features; in a folder of a project they would be written under its lock."""
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"]}\n')
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "project.json").write_text("{}")
        for folder, out in ((tmp_path / "p", tmp_path / "p" / "mine" / "q.jsonl"), (tmp_path, tmp_path / "q.jsonl")):
            with alone(folder):
                command = ["select", "--out", str(out), "--pool", str(tmp_path / "rows.jsonl"), "--budget", "1", *TINY]
                refused(capsys, command, f"{folder} is being written by process", "wait for it")
            assert not out.exists()

    @pytest.mark.parametrize(
        ("command", "places", "elsewhere"),
        [
            (["train", "p"], ["p", "p/queries", "p/features/0f", "p/models/01"], ["."]),
            (["select", "--project", "p", "--pool", "rows.jsonl"], ["p", "p/queries", "p/features/0f"], ["."]),
            (["select", "--out", "q.jsonl", "--pool", "rows.jsonl"], [".", "features/0f"], ["p", "mine"]),
        ],
    )
    def test_what_a_killed_writer_left_is_swept_and_no_living_one_s(
        self, tmp_path, command, places, elsewhere, capsys, monkeypatch
    ):
        """Before anything else is done, so also where the command is then refused, as all of these are."""
        monkeypatch.chdir(tmp_path)
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        Path("p").mkdir()
        about = {"format": 1, "model": "m", "settings": config_of(Settings(model="tiny-llama"))}
        Path("p/project.json").write_text(json.dumps(about))
        names = {dead: f".pool.jsonl.{gone.pid if dead else os.getpid()}@{HOST}.tmp" for dead in (True, False)}
        foreign = f".pool.jsonl.{gone.pid}@elsewhere.tmp"
        for place in (*places, *elsewhere):
            Path(place).mkdir(parents=True, exist_ok=True)
            for name in (*names.values(), foreign):
                Path(place, name).write_text("half")
        assert main(command) == 2
        for place in (*places, *elsewhere):
            left = {path.name for path in Path(place).glob(".*.tmp")}
            assert left == {names[False], foreign} | ({names[True]} if place in elsewhere else set()), place

    def test_no_error_in_writing_names_an_option_that_there_is_not(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "responses": ["b", "c"]}\n')
        monkeypatch.setattr("bandits.runs.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        command = ["select", "--project", str(tmp_path / "p"), "--pool", str(tmp_path / "rows.jsonl"), "--budget", "1"]
        refused(capsys, [*command, "--strategy", "random", *TINY], "cannot write", "No space; free space or choose")
        assert main([*command, "--strategy", "random", *TINY]) == 2
        assert "--output" not in capsys.readouterr().err

    def test_a_folder_in_which_nothing_was_written_is_removed(self, tmp_path):
        project = Project(tmp_path / "a" / "b")

        def nothing() -> None:
            with project.held():
                with pytest.raises(BusyError), Project(project.root).held():
                    pass
                raise InputError("bad")

        with pytest.raises(InputError, match="bad"):
            nothing()
        assert not list(tmp_path.iterdir())

    def test_another_s_folder_is_left_alone(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="holds something else"), Project(tmp_path).held():
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.campaign
    def test_of_two_at_once_one_is_refused(self, written, tmp_path):
        begin = [sys.executable, "-m", "activedpo", "select", "--project", str(tmp_path / "p"), "--pool"]
        both = [
            subprocess.Popen(
                [*begin, str(written.parent / "rows.jsonl"), "--budget", budget, *TINY],
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
            for budget in ("2", "5")
        ]
        errors = [process.communicate()[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 2], errors
        won = [process.returncode for process in both].index(0)
        assert len(Project(tmp_path / "p").read_queries(1)) == (2, 5)[won]
