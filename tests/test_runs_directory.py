"""The run directory: ledgers notice every damage, locks keep two writers apart, a run is its sources, not its docs."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.strategies as st
import pandas as pd
import pytest
import toy
from hypothesis import given
from kept import contents, only

from bandits.core.errors import InputError
from bandits.runs import directory as kit
from bandits.runs import files
from bandits.runs.directory import Identity, Ledger, Part, RunDirectory
from bandits.runs.files import HOST, DamagedError, write_bytes, write_json, write_text

NOISE = [b"", b"[]", b"null", b"{}", b"0", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b'{"files": 3}', b'{"files"']


@pytest.fixture
def finished(tmp_path) -> Path:
    assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 0
    return only(tmp_path)


class TestFiles:
    def test_a_tables_words_are_read_as_they_were_written(self, tmp_path):
        """Only what is empty is missing; pandas takes more for nothing there."""
        words = ["NA", "None", "null", "nan", "n/a", "a, b", 'a "b"', "two\nlines", None]
        files.write_frame(tmp_path / "a.csv", pd.DataFrame({"word": words, "number": [*range(8), float("nan")]}))
        found = files.frame((tmp_path / "a.csv").read_bytes())
        assert found["word"].tolist()[:-1] == words[:-1]
        assert found.isna().to_numpy().tolist() == [[False, False]] * 8 + [[True, True]]

    @pytest.mark.campaign
    def test_json_is_strict_and_utf_8_whatever_the_locale(self, tmp_path):
        write_json(tmp_path / "a.json", {"x": [float("nan"), float("inf"), 1.5], "word": "é\u2028"})
        text = (tmp_path / "a.json").read_bytes().decode()

        def refuse(constant):
            raise AssertionError(constant)

        assert json.loads(text, parse_constant=refuse) == {"x": [None, None, 1.5], "word": "é\u2028"}
        path = str(tmp_path / "a.json")
        code = f"import pathlib, bandits.runs.files as f; print(f.read_json(pathlib.Path({path!r}))['x'])"
        environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert shown.stdout.strip() == "[None, None, 1.5]", shown.stderr

    def test_half_a_surrogate_pair_is_refused_and_leaves_nothing(self, tmp_path):
        with pytest.raises(InputError, match=r"U\+D800"):
            write_text(tmp_path / "a", "x\ud800")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("content", NOISE)
    def test_json_of_any_other_content_is_named(self, content, tmp_path):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DamagedError, match=r"a\.json"):
            files.read_json(tmp_path / "a.json", set)

    @given(content=st.binary(max_size=200))
    def test_no_noise_is_a_traceback(self, content, tmp_path_factory):
        path = tmp_path_factory.mktemp("noise") / "file"
        path.write_bytes(content)
        for read in (files.read_json, files.read_tensors, files.read_text, lambda path: files.frame(path.read_bytes())):
            with contextlib.suppress(DamagedError):
                read(path)

    def test_a_dead_writers_leftovers_are_swept_and_a_living_ones_kept(self, tmp_path):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        for name in (
            f".x.csv.{gone.pid}@{HOST}.tmp",
            f".x.csv.{os.getpid()}@{HOST}.tmp",
            f".x.csv.{gone.pid}@other.tmp",
        ):
            (tmp_path / name).write_text("half")
        files.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        files.sweep(tmp_path, everybody=True)
        assert not list(tmp_path.iterdir())

    def test_a_write_removes_what_a_killed_one_of_the_same_file_left(self, tmp_path):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        mine, others = f".x[1].csv.{gone.pid}@{HOST}.tmp", f".y.csv.{gone.pid}@{HOST}.tmp"
        for name in (mine, others):
            (tmp_path / name).write_text("half")
        write_bytes(tmp_path / "x[1].csv", b"whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == [others, "x[1].csv"]

    def test_an_interrupted_write_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupt(handle):
            raise KeyboardInterrupt

        monkeypatch.setattr("bandits.runs.files.os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_bytes(tmp_path / "x", b"whole")
        assert not list(tmp_path.iterdir())

    def test_a_pipe_never_becomes_a_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(files.WriteError, match="it is no regular file"):
            write_bytes(tmp_path / "pipe", b"x")
        assert (tmp_path / "pipe").is_fifo()
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_page_is_written_over_itself_alone(self, tmp_path):
        page = tmp_path / "page.md"
        files.replaceable(page, "Mine", "--docs")
        page.write_text("# Mine\n\nold")
        files.replaceable(page, "Mine", "--docs")
        os.mkfifo(tmp_path / "pipe")
        page.with_name("other.md").write_text("# Minestrone\n")
        for other in ("other.md", "pipe", "."):
            with pytest.raises(InputError, match="is no page 'Mine'; choose another --docs"):
                files.replaceable(tmp_path / other, "Mine", "--docs")


class TestLedger:
    def test_every_change_of_every_file_is_noticed(self, tmp_path):
        for name in ("a.csv", "deep/b.bin"):
            write_bytes(tmp_path / name, b"0123456789")
        Ledger(tmp_path).close("a.csv", "deep/b.bin")
        assert Ledger(tmp_path).whole
        for name in ("a.csv", "deep/b.bin"):
            for damage in (b"", b"01234", b"012345678", b"0123456780", b"01234567890", None):
                path = tmp_path / name
                path.unlink()
                if damage is not None:
                    path.write_bytes(damage)
                found = Ledger(tmp_path)
                assert not found.whole
                assert [str(path) in fault for fault in found.faults()] == [True]
                with pytest.raises(DamagedError, match=name):
                    found.read(name)
                path.write_bytes(b"0123456789")
        assert Ledger(tmp_path).whole

    @pytest.mark.parametrize("content", [*NOISE, b'{"files": {"../x": "0"}, "share": 1, "done": true}'])
    def test_a_damaged_ledger_lists_nothing_and_says_so(self, content, tmp_path):
        write_bytes(tmp_path / "a", b"x")
        Ledger(tmp_path).close("a")
        (tmp_path / "ledger.json").write_bytes(content)
        found = Ledger(tmp_path)
        assert not found.whole
        assert not found.files
        assert "ledger.json is damaged" in found.faults()[0]

    def test_closing_leaves_what_is_listed_and_nothing_else(self, tmp_path):
        for name in ("a", "old/checkpoint", ".b.1@x.tmp", "timing.json"):
            write_bytes(tmp_path / name, b"x")
        Ledger(tmp_path).close("a")
        assert {p.name for p in tmp_path.rglob("*")} == {"a", "ledger.json", "timing.json"}

    def test_work_is_not_over_before_what_is_not_listed_is_gone(self, tmp_path, monkeypatch):
        """A run killed while it tidies up leaves a cell that is played again, not a whole one with leftovers."""
        write_bytes(tmp_path / "a", b"x")
        write_bytes(tmp_path / "leftover", b"x")
        monkeypatch.setattr(Ledger, "tidy", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Ledger(tmp_path).close("a")
        assert not Ledger(tmp_path).whole


DAMAGES = ["cut", "emptied", "altered", "another digit", "gone"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    match how:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "emptied":
            path.write_bytes(b"")
        case "altered":
            path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        case "another digit":
            place = max(place for place, byte in enumerate(content) if 48 <= byte <= 57)
            path.write_bytes(content[:place] + bytes([48 + (content[place] - 47) % 10]) + content[place + 1 :])


class TestDamage:
    @pytest.mark.slow
    @pytest.mark.parametrize("how", DAMAGES)
    @pytest.mark.parametrize(
        "name",
        ["cells/cell-1/table.csv", "cells/cell-1/ledger.json", "all.csv", "index.html", "findings.json", "ledger.json"],
    )
    def test_what_is_damaged_is_named_and_made_anew(self, name, how, finished, capfd):
        whole = contents(finished)
        damage(finished / name, how)
        assert toy.main(["smoke", "--output", str(finished.parent.parent), "--jobs", "1"]) == 0
        told = capfd.readouterr()
        assert contents(finished) == whole
        assert "Traceback" not in told.err
        if how != "gone" or "ledger" not in name:
            assert name in told.err or "ledger" in name
        assert "this run is complete" not in told.out.split("page:")[-2]

    @pytest.mark.slow
    @pytest.mark.parametrize("content", NOISE)
    @pytest.mark.parametrize("name", ["manifest.json", "timing.json"])
    def test_noise_in_a_json_file_is_never_a_traceback(self, name, content, finished, capfd):
        (finished / name).write_bytes(content)
        (finished / "index.html").unlink()
        status = toy.main(["smoke", "--output", str(finished.parent.parent), "--jobs", "1"])
        error = capfd.readouterr().err
        assert status == (2 if name == "manifest.json" else 0)
        assert "Traceback" not in error
        if status:
            assert len(error.strip().split("\n")) <= 3

    def test_a_half_cell_goes_on_from_what_matches(self, tmp_path, capfd):
        study = toy.ToyStudy(toy.Toy())
        folder = tmp_path / "toy" / "x" / "cells" / "cell-0"
        for step in range(2):
            write_json(folder / f"step-{step}.json", {"square": step**2})
        Ledger(folder).add("step-0.json", "step-1.json", share=0.5)
        damage(folder / "step-1.json", "altered")
        write_bytes(folder / "step-2.json", b"not listed")
        ledger = Ledger(folder)
        ledger.forget()
        ledger.tidy()
        assert sorted(p.name for p in folder.iterdir()) == ["ledger.json", "step-0.json"]
        import torch

        torch.set_num_threads(1)
        assert study.play(toy.ToyCell(0), folder) == ["table.csv"]
        assert list(pd.read_csv(folder / "table.csv")["square"]) == [0, 1, 4]


def copy_package(folder: Path) -> None:
    """Copy the package into a folder."""
    import bandits

    source = Path(bandits.__file__).parent
    shutil.copytree(source, folder / "bandits", ignore=shutil.ignore_patterns("__pycache__"))


def git(folder: Path, *words: str) -> str:
    """Return what git says in a folder."""
    who = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit_of(folder: Path) -> str:
    """Return what the copy of the package in a folder takes for its commit."""
    code = "import bandits.runs.directory as r; print(r.__file__); print(r.commit())"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    file, commit = told.stdout.split()
    assert file == str(folder / "bandits" / "runs" / "directory.py")
    return commit


class TestIdentity:
    def directory(self, root: Path, **changes: object) -> RunDirectory:
        return RunDirectory(root, "toy", "smoke", Identity(**({"config": {"a": 1}} | changes)))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "changes",
        [
            {"parts": {"x": {"source": "1"}}},
            {"inputs": {"prompts.jsonl": "00"}},
            {"packages": ("bandits", "theory_checks")},
            {"libraries": ("torch",)},
        ],
    )
    def test_another_run_is_refused_by_what_differs(self, changes, tmp_path):
        with self.directory(tmp_path).held():
            pass
        self.directory(tmp_path).admit()
        with pytest.raises(InputError, match=f"another ({'|'.join((*changes, 'sources', 'versions'))})"):
            self.directory(tmp_path, **changes).admit()

    def test_sources_are_code_templates_and_weights_and_no_docs(self, tmp_path, monkeypatch):
        package = tmp_path / "parcel"
        for name in ("__init__.py", "page.html.j2", "weights/w.safetensors"):
            write_text(package / name, "x = 1\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        before = kit.sources("parcel")
        write_text(package / "README.md", "words")
        write_text(package / "__pycache__" / "a.pyc", "words")
        assert kit.sources("parcel") == before
        for name in ("__init__.py", "page.html.j2", "weights/w.safetensors"):
            write_text(package / name, "x = 2\n")
            assert kit.sources("parcel") != before
            write_text(package / name, "x = 1\n")
        assert kit.sources("parcel") == before
        write_text(package / "pages" / "draw.py", "x = 1\n")
        assert kit.sources("parcel", ("pages",)) == before != kit.sources("parcel")

    @pytest.mark.campaign
    def test_the_commit_is_never_that_of_a_repository_around_an_installation(self, tmp_path):
        """A copy of the package inside somebody else's repository, untracked as an installed one is."""
        copy_package(tmp_path)
        git(tmp_path, "init", "-q")
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
        assert commit_of(tmp_path) == "unknown"

    @pytest.mark.campaign
    def test_a_commit_is_marked_where_code_differs_and_not_where_a_page_was_written(self, tmp_path):
        copy_package(tmp_path)
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "page.md").write_text("old")
        git(tmp_path, "init", "-q")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", "ours")
        head = git(tmp_path, "rev-parse", "HEAD")
        (tmp_path / "docs" / "page.md").write_text("new")
        assert commit_of(tmp_path) == head
        with (tmp_path / "bandits" / "ask.py").open("a") as file:
            file.write("\n")
        assert commit_of(tmp_path) == f"{head}+"

    def test_the_manifest_says_on_which_processor(self, finished):
        machine = json.loads((finished / "manifest.json").read_text())["machine"]
        assert machine["processor"]
        assert machine["vector instructions"]


class TestPlaces:
    def test_only_the_runs_own_leftovers_before_the_manifest_go_on(self, tmp_path, capfd):
        folder = toy_folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / f".manifest.json.999999999@{HOST}.tmp").write_text("half")
        (folder / ".lock").write_text("{}")
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert not [name for name in contents(folder) if "tmp" in name or "lock" in name]

    def test_other_peoples_files_are_not_overrun(self, tmp_path, capfd):
        folder = toy_folder(tmp_path)
        write_text(folder / "thesis.txt", "years of work")
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 2
        assert "files but no manifest (thesis.txt)" in capfd.readouterr().err
        assert contents(folder) == {"thesis.txt": b"years of work"}

    @pytest.mark.parametrize("force", [[], ["--force"]])
    @pytest.mark.parametrize("kind", ["file", "link to nothing", "link to itself", "file above", "long name"])
    def test_no_folder_can_be_there(self, kind, force, tmp_path, capfd):
        folder, output = toy_folder(tmp_path), tmp_path
        folder.parent.mkdir()
        match kind:
            case "file":
                folder.write_text("")
            case "link to nothing":
                folder.symlink_to(tmp_path / "nowhere")
            case "link to itself":
                folder.symlink_to(folder)
            case "file above":
                (tmp_path / "file").write_text("")
                output = tmp_path / "file"
            case "long name":
                output = tmp_path / ("x" * 300)
        assert toy.main(["smoke", "--output", str(output), "--jobs", "1", *force]) == 2
        error = capfd.readouterr().err.strip().split("\n")
        assert len(error) == 1
        assert error[0].startswith("error: ")

    @pytest.mark.slow
    def test_force_starts_over(self, finished):
        (finished / "stale.txt").write_text("old")
        assert toy.main(["smoke", "--output", str(finished.parent.parent), "--jobs", "1", "--force"]) == 0
        assert not (finished / "stale.txt").exists()
        assert [p.name for p in finished.parent.iterdir()] == [finished.name]

    @pytest.mark.slow
    def test_a_deletion_that_was_cut_off_goes_on(self, finished):
        """The process kills itself when it has deleted half of the old run."""
        before = contents(finished)
        code = (
            "import os, shutil, signal, sys; from pathlib import Path; import toy\n"
            "def half(folder):\n"
            "    files = sorted(path for path in Path(folder).rglob('*') if path.is_file())\n"
            "    for path in files[: len(files) // 2]: path.unlink()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "shutil.rmtree = half\n"
            "toy.main(['smoke', '--output', sys.argv[1], '--jobs', '1', '--force'])\n"
        )
        environment = os.environ | {"PYTHONPATH": f"{Path(toy.__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
        output = str(finished.parent.parent)
        killed = subprocess.run([sys.executable, "-c", code, output], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert [p.name for p in finished.parent.iterdir() if p.name.endswith(".deleted")]
        assert toy.main(["smoke", "--output", output, "--jobs", "1"]) == 0
        assert [p.name for p in finished.parent.iterdir()] == [finished.name]
        assert contents(finished) == before


def toy_folder(output: Path) -> Path:
    study = toy.ToyStudy(toy.Toy())
    return RunDirectory(output, "toy", "smoke", study.identity()).path


class TestLock:
    @pytest.mark.slow
    def test_a_second_writer_is_told_who_holds_it_and_touches_nothing(self, tmp_path, capfd):
        run = RunDirectory(tmp_path, "toy", "smoke", toy.ToyStudy(toy.Toy()).identity())
        code = (
            "import sys, time, toy; from pathlib import Path; from bandits.runs.directory import RunDirectory\n"
            "run = RunDirectory(Path(sys.argv[1]), 'toy', 'smoke', toy.ToyStudy(toy.Toy()).identity())\n"
            "with run.held(): print('held', flush=True); time.sleep(600)\n"
        )
        environment = os.environ | {"PYTHONPATH": f"{Path(toy.__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = contents(run.path)
        for more in ([], ["--force"], ["--cells", "1/2"]):
            assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1", *more]) == 2
            error = capfd.readouterr().err
            assert f"process {holder.pid} on {HOST} since" in error
            assert contents(run.path) == before
        holder.kill()
        holder.wait()
        assert (run.path / ".lock").exists()
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert not list(run.path.glob(".lock*"))

    def test_parts_run_side_by_side_and_the_whole_does_not(self, tmp_path):
        run = RunDirectory(tmp_path, "toy", "smoke", toy.ToyStudy(toy.Toy()).identity())
        with run.held(Part(1, 3)), run.held(Part(3, 3)):
            for other in (Part(1, 3), Part(1, 2), Part()):
                with pytest.raises(InputError, match="is being written by"), run.held(other):
                    pass
        with run.held():
            pass
        assert not list(run.path.glob(".lock*"))

    def test_a_lock_on_a_file_system_without_locks_is_its_owners_life(self, tmp_path, monkeypatch):
        def none(handle: int, operation: int) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(kit.fcntl, "flock", none)
        run = RunDirectory(tmp_path, "toy", "smoke", toy.ToyStudy(toy.Toy()).identity())
        with run.held(), pytest.raises(InputError, match="is being written by"), run.held():
            pass
        dead = {"pid": os.getpid(), "host": HOST, "started": time.time() + 1e6}
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / ".lock").write_text(json.dumps(dead))
        with run.held():
            pass

    def test_a_killed_owners_semaphores_are_buried(self, tmp_path):
        shared = Path("/dev/shm")
        if not shared.is_dir():
            pytest.skip("no /dev/shm here")
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        left, others = shared / f"sem.loky-{gone.pid}-abc", shared / f"sem.loky-{os.getpid()}-abc"
        left.write_text("")
        others.write_text("")
        try:
            run = RunDirectory(tmp_path, "toy", "smoke", toy.ToyStudy(toy.Toy()).identity())
            run.path.mkdir(parents=True)
            (run.path / ".lock").write_text(json.dumps({"pid": gone.pid, "host": HOST, "started": 1.0}))
            with run.held():
                pass
            assert not left.exists()
            assert others.exists()
        finally:
            others.unlink()
