"""Playing cells: killed anywhere, in parts, on clusters, with workers that die: the same bytes, and one line."""

import contextlib
import ctypes
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
import toy
from kept import contents, only

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.directory import Ledger, Part, RunDirectory, StoppedError
from bandits.runs.execute import CLUSTER, execute, gpu_of, in_words, remaining, side_by_side
from bandits.runs.files import WriteError
from bandits.runs.settings import afford

TOY = Path(toy.__file__)
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{TOY.parent}:{os.environ.get('PYTHONPATH', '')}"}


def played(output: Path) -> list[tuple[str, int, int]]:
    """The (cell, step, process) that were worked on, in their order."""
    lines = (output / "trace.txt").read_text().split("\n") if (output / "trace.txt").exists() else []
    return [(cell, int(step), int(pid)) for cell, step, pid in (line.split() for line in lines if line)]


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("whole")
    assert toy.main(["smoke", "--output", str(output), "--jobs", "1"]) == 0
    return contents(only(output))


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> dict[str, bytes]:
    """What a run with a pause of 0.1 s a step gives."""
    output = tmp_path_factory.mktemp("slow")
    assert toy.main(["smoke", "--pause", "0.1", "--output", str(output), "--jobs", "1"]) == 0
    return contents(only(output))


def start(output: Path, *more: str) -> subprocess.Popen:
    run = [sys.executable, str(TOY), "smoke", "--pause", "0.1", "--output", str(output), *more]
    return subprocess.Popen(
        run, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def no_privileges() -> None:
    """Give up root's capabilities in this process: permissions then bind it as they bind any owner of files.

    Another user's number would not do: to him the environment and the checkout may be closed too.
    """
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the interface; this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def unprivileged(*arguments: str) -> tuple[int, str]:
    """Run the toy as somebody whom permissions bind, which root is not; return its status and what it says."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.stderr, status = os.fdopen(writing, "w", buffering=1), 99  # pytest's own would keep what is said
        try:
            if os.geteuid() == 0:
                no_privileges()
            status = toy.main(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


class TestPermissions:
    @pytest.mark.slow
    @pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read only", "unreadable"])
    def test_a_folder_of_results_that_is_not_ours_is_one_line(self, mode, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out").chmod(mode)
        status, said = unprivileged("smoke", "--output", str(tmp_path / "out"), "--jobs", "1")
        (tmp_path / "out").chmod(0o755)
        assert status == 2, said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert not list((tmp_path / "out").iterdir())

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read only", "unreadable"])
    def test_a_run_folder_that_is_not_ours_is_one_line_with_force_too(self, mode, tmp_path):
        out = tmp_path / "out"
        assert toy.main(["smoke", "--output", str(out), "--jobs", "1"]) == 0
        before = contents(only(out))
        only(out).chmod(mode)
        status, said = unprivileged("smoke", "--output", str(out), "--jobs", "1", "--force")
        only(out).chmod(0o755)
        assert status == 2, said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert contents(only(out)) == before


class TestKills:
    @pytest.mark.slow
    @pytest.mark.parametrize("stop", range(0, 50, 3))
    def test_killed_at_any_write_it_goes_on_to_the_same_bytes_without_litter(self, stop, whole, tmp_path):
        """A child of this process dies between the writing and the renaming of its n-th file."""
        import multiprocessing

        code = (
            "import os, sys, toy; from bandits.runs import files; real = os.replace; count = iter(range(10**6))\n"
            "def replace(a, b):\n"
            f"    if next(count) == {stop}: os._exit(9)\n"
            "    real(a, b)\n"
            "files.os.replace = replace\n"
            "sys.exit(toy.main(['smoke', '--output', sys.argv[1], '--jobs', '1']))"
        )
        pid = os.fork()  # the libraries are loaded: a new interpreter would spend its time on imports
        if pid == 0:
            sys.argv = ["", str(tmp_path)]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                exec(compile(code, "killed", "exec"), {})
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert multiprocessing.current_process().name == "MainProcess"
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert contents(only(tmp_path)) == whole
        assert [p.name for p in (tmp_path / "toy").iterdir()] == [only(tmp_path).name]
        if os.waitstatus_to_exitcode(status) == 9:
            assert len(set(played(tmp_path))) >= 12

    @pytest.mark.campaign
    @pytest.mark.parametrize("whom", ["group", "parent"])
    def test_killed_with_workers(self, whom, slow, tmp_path):
        run = start(tmp_path, "--jobs", "2")
        wait_for(lambda: len(played(tmp_path)) >= 3)
        (os.killpg if whom == "group" else os.kill)(run.pid, signal.SIGKILL)
        run.wait()
        if whom == "parent":
            workers = {pid for _, _, pid in played(tmp_path)}
            wait_for(lambda: not any(alive(pid) for pid in workers))  # nobody plays on behind the next run's back
        assert toy.main(["smoke", "--pause", "0.1", "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert contents(only(tmp_path)) == slow
        assert not list(Path("/dev/shm").glob(f"sem.loky-{run.pid}-*"))

    @pytest.mark.campaign
    def test_a_worker_killed_alone_is_one_line_and_goes_on(self, slow, tmp_path):
        run = start(tmp_path, "--jobs", "2")
        wait_for(lambda: len(played(tmp_path)) >= 3)
        os.kill(played(tmp_path)[-1][2], signal.SIGKILL)
        _, error = run.communicate(timeout=120)
        assert run.returncode == 3
        said = [line for line in error.replace("\r", "\n").split("\n") if line and not line.startswith("cells:")]
        assert len(said) == 1
        assert said[0].endswith("the same command goes on from here")
        assert toy.main(["smoke", "--pause", "0.1", "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert contents(only(tmp_path)) == slow

    @pytest.mark.campaign
    @pytest.mark.parametrize("jobs", ["1", "2"])
    def test_ctrl_c_is_one_line_and_status_130(self, jobs, slow, tmp_path):
        run = start(tmp_path, "--jobs", jobs)
        wait_for(lambda: len(played(tmp_path)) >= 3)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal sends it: to workers too
        _, error = run.communicate(timeout=120)
        assert run.returncode == 130
        said = [
            line for line in error.replace("\r", "\n").split("\n") if line.strip() and not line.startswith("cells:")
        ]
        assert said == ["interrupted; the same command goes on from here"]
        assert toy.main(["smoke", "--pause", "0.1", "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert contents(only(tmp_path)) == slow


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestPlaying:
    @pytest.mark.campaign
    def test_jobs_change_no_byte_and_threads_are_given_back(self, whole, tmp_path):
        import torch

        torch.set_num_threads(2)
        try:
            assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "2"]) == 0
            assert toy.main(["smoke", "--output", str(tmp_path / "one"), "--jobs", "1"]) == 0
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(1)
        assert contents(next((tmp_path / "toy").iterdir())) == whole
        assert contents(only(tmp_path / "one")) == whole

    @pytest.mark.slow
    def test_a_complete_run_is_not_played_again(self, tmp_path, capsys):
        run = ["smoke", "--output", str(tmp_path), "--jobs", "1"]
        assert toy.main(run) == 0
        before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
        capsys.readouterr()
        assert toy.main(run) == 0
        assert capsys.readouterr().out.startswith("this run is complete; --force runs it again\n• the sum is")
        assert before == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}

    def test_a_complete_run_is_rid_of_the_lock_of_who_was_killed_after_the_last_write(self, whole, tmp_path):
        run = ["smoke", "--output", str(tmp_path), "--jobs", "1"]
        assert toy.main(run) == 0
        (only(tmp_path) / ".lock").write_text('{"pid": 4194304, "host": "here", "started": 1.0}')
        assert toy.main(run) == 0
        assert contents(only(tmp_path)) == whole

    @pytest.mark.slow
    def test_parts_make_the_whole_and_the_last_writes_the_page(self, whole, tmp_path, capsys):
        for part in ("2/3", "1/3"):
            assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1", "--cells", part]) == 0
            assert not (only(tmp_path) / "index.html").exists()
            assert f"cells {part} are done" in capsys.readouterr().out
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1", "--cells", "3/3"]) == 0
        assert contents(only(tmp_path)) == whole
        assert len(played(tmp_path)) == 4 * 3

    @pytest.mark.slow
    @pytest.mark.parametrize("wrong", ["5/4", "0/4", "-1/4", "1", "1/0", "a/b", "1/2/3", "", "1.5/2", "²/3"])
    def test_parts_that_cannot_be(self, wrong, tmp_path, capsys):
        assert toy.main(["smoke", "--output", str(tmp_path / "out"), f"--cells={wrong}"]) == 2
        assert "--cells must be i/n" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_cell_that_vanishes_is_played_again(self, whole, tmp_path, monkeypatch):
        """Between its end and the gathering of the tables, once."""
        import shutil

        from bandits.runs import execute

        real, gone = execute._play_all, []

        def play_all(study, directory, todo, *rest):
            real(study, directory, todo, *rest)
            if not gone:
                gone.append(directory.cell("cell-2"))
                shutil.rmtree(gone[0])

        monkeypatch.setattr(execute, "_play_all", play_all)
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert contents(only(tmp_path)) == whole

    def test_a_cell_that_vanishes_every_time_is_no_page_without_it(self, tmp_path, monkeypatch, capsys):
        import shutil

        from bandits.runs import execute

        real = execute._play_all

        def play_all(study, directory, todo, *rest):
            real(study, directory, todo, *rest)
            shutil.rmtree(directory.cell("cell-2"))

        monkeypatch.setattr(execute, "_play_all", play_all)
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 3
        assert "cell-2 vanishes whenever it is written" in capsys.readouterr().err
        assert not (only(tmp_path) / "index.html").exists()

    def test_a_cell_that_changes_while_tables_are_gathered_is_no_page(self, tmp_path, monkeypatch, capsys):
        from bandits.runs import execute

        finish = toy.ToyStudy.finish

        def change(study, directory):
            (directory.cell("cell-1") / "table.csv").write_text("cell,step,square\n1,0,9999\n")
            finish(study, directory)

        monkeypatch.setattr(toy.ToyStudy, "finish", change)
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1"]) == 2
        assert "table.csv is cut or altered" in capsys.readouterr().err
        assert not (only(tmp_path) / "index.html").exists()
        assert execute

    def test_a_part_whose_page_cannot_be_written_says_so(self, tmp_path, monkeypatch, capsys):
        def full(study, directory):
            raise WriteError("cannot write the page: no space left")

        monkeypatch.setattr(toy.ToyStudy, "finish", full)
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1", "--cells", "1/2"]) == 0
        assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", "1", "--cells", "2/2"]) == 2
        assert "no space left" in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
    )
    @pytest.mark.parametrize("jobs", ["1", "2"])
    def test_out_of_memory_is_one_line_and_keeps_what_is_there(self, jobs, error, tmp_path, monkeypatch, capfd):
        if jobs == "2" and isinstance(error, RuntimeError):
            pytest.skip("told in this process")
        play = toy.ToyStudy.play

        def greedy(study, cell, folder):
            if cell.number == 3:
                raise error
            return play(study, cell, folder)

        if jobs == "1":
            monkeypatch.setattr(toy.ToyStudy, "play", greedy)
            assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", jobs]) == 3
            assert "stopped: cell-3: out of memory" in capfd.readouterr().err
            assert Ledger(only(tmp_path) / "cells" / "cell-0").whole
            monkeypatch.setattr(toy.ToyStudy, "play", play)
            assert toy.main(["smoke", "--output", str(tmp_path), "--jobs", jobs]) == 0

    def test_bad_input_found_in_a_cell_leaves_nothing(self, tmp_path, monkeypatch, capsys):
        def refuse(study, cell, folder):
            folder.mkdir(parents=True)
            raise InputError("the truth is false")

        monkeypatch.setattr(toy.ToyStudy, "play", refuse)
        assert toy.main(["smoke", "--output", str(tmp_path / "out"), "--jobs", "1"]) == 2
        assert capsys.readouterr().err.rstrip().endswith("error: the truth is false")
        assert not (tmp_path / "out").exists()


class TestSizes:
    def test_what_the_machine_has_not_is_refused_by_the_options_that_want_it(self):
        with pytest.raises(
            InputError, match=r"^--width, --depth make a run that needs about 800 PB of memory.*--allow-large"
        ):
            afford({"--width, --depth": 8e17, "--dim": 1.0}, 1, "--replicates", 1, False)
        with pytest.raises(InputError, match=r"^--replicates make 1e\+10 cells"):
            afford({}, 10**10, "--replicates", 1, False)
        afford({"--width, --depth": 8e17}, 10**10, "--replicates", 1, True)
        afford({"--width": 1e6}, 100, "--replicates", 2, False)

    def test_it_is_refused_before_anything_is_written(self, tmp_path, capsys):
        assert toy.main(["smoke", "--output", str(tmp_path / "out"), "--count", "1000000"]) == 2
        assert "--count make 1e+06 cells" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


class TestProgress:
    def test_the_rest_is_right_to_a_factor_of_two_on_uneven_cells(self):
        """Jobs taken in order by free lanes; the estimate after every end against what really remains."""
        import heapq

        drawn = Key(1).generators()[0]
        for _ in range(20):
            costs = sorted((float(drawn.choice([1.0, 3.0, 10.0])) for _ in range(30)), reverse=True)
            took = [cost * 2.0 * drawn.uniform(0.7, 1.4) for cost in costs]
            jobs = int(drawn.choice([1, 2, 4]))
            lanes = [(0.0, -1)] * jobs
            ends = []
            for number, seconds in enumerate(took):
                free, _ = heapq.heappop(lanes)
                heapq.heappush(lanes, (free + seconds, number))
                ends.append(free + seconds)
            over = max(ends)
            order = sorted(range(30), key=lambda number: ends[number])
            for count in range(1, 25):
                now = ends[order[count - 1]]
                done = order[:count]
                pace = sum(took[number] for number in done) / sum(costs[number] for number in done)
                left = [
                    costs[number] * min(1.0, (ends[number] - now) / took[number])
                    for number in range(30)
                    if number not in done
                ]
                if over - now > 5:
                    assert 0.5 < remaining(left, pace, jobs) / (over - now) < 2.0

    def test_words(self):
        assert [in_words(s) for s in (0.2, 59.0, 100.0, 5000.0, 7200.0, 2e5)] == [
            "1 s",
            "59 s",
            "1.7 min",
            "83 min",
            "2 h",
            "2.3 d",
        ]

    def test_nothing_is_promised_before_a_cell_has_ended(self, tmp_path, capfd):
        assert (
            toy.main(
                ["smoke", "--count", "1", "--steps", "1", "--pause", "2.5", "--output", str(tmp_path), "--jobs", "1"]
            )
            == 0
        )
        before_the_end = capfd.readouterr().err.split("1/1")[0]
        assert "0/1" in before_the_end
        assert "left" not in before_the_end

    @pytest.mark.slow
    @pytest.mark.parametrize(("wait", "pause"), [(0.5, "1.2"), (60.0, "0.1")])
    def test_a_log_gets_whole_lines_and_few(self, wait, pause, tmp_path, capfd, monkeypatch):
        monkeypatch.setattr("bandits.runs.execute.NEWS_SECONDS", wait)
        options = ["--count", "3", "--steps", "1", "--pause", pause, "--output", str(tmp_path), "--jobs", "1"]
        assert toy.main(["smoke", *options]) == 0
        said = capfd.readouterr().err
        assert "\r" not in said
        lines = [line for line in said.splitlines() if line.startswith("cells: ")]
        told = [0, 1, 2, 3] if wait < 1 else [0, 3]
        assert [line.split(" in ")[0] for line in lines] == [f"cells: {n}/3" for n in told]
        assert wait > 1 or "left" in lines[2]


class TestDevices:
    def test_workers_take_gpus_in_turn(self):
        assert [gpu_of(f"LokyProcess-{n}", 3, None) for n in range(1, 7)] == ["0", "1", "2", "0", "1", "2"]
        assert [gpu_of(f"LokyProcess-{n}", 2, "5,GPU-abc") for n in (1, 2, 3)] == ["5", "GPU-abc", "5"]
        assert gpu_of("MainProcess", 2, None) == "0"

    def test_as_many_cells_as_gpus_and_no_more(self):
        assert side_by_side(0, gpus=4, cores=16, cells=100) == 4
        assert side_by_side(8, gpus=4, cores=16, cells=100) == 4
        assert side_by_side(1, gpus=4, cores=16, cells=100) == 1
        assert side_by_side(0, gpus=0, cores=16, cells=3) == 3
        assert side_by_side(0, gpus=0, cores=16, cells=100) == 16
        assert side_by_side(0, gpus=0, cores=16, cells=100, local=False) == -1


HOLD = """
import ray
cluster = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
print(cluster.address_info["gcs_address"], flush=True)
input()
"""


def greet(listener: socket.socket, answer: bytes) -> None:
    """Take every connection, give each the same answer, and keep it open until the listener is shut down."""
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(listener.accept()[0])
            taken[-1].sendall(answer)


class TestClusters:
    @pytest.mark.campaign
    def test_dask_loses_a_worker_and_nothing_else(self, slow, tmp_path):
        distributed = pytest.importorskip("distributed")
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
        with cluster, distributed.Client(cluster):
            killed, over = threading.Event(), threading.Event()

            def kill() -> None:
                while len(played(tmp_path)) < 2:
                    if over.wait(0.02):
                        return
                os.kill(played(tmp_path)[-1][2], signal.SIGKILL)
                killed.set()

            killer = threading.Thread(target=kill, daemon=True)
            killer.start()
            where = ["--backend", "dask", "--address", cluster.scheduler_address]
            try:
                assert toy.main(["smoke", "--pause", "0.1", "--output", str(tmp_path), *where]) == 0
            finally:
                over.set()  # a thread that outlived its cluster could kill a stranger
                killer.join()
            assert killed.is_set()
        assert contents(only(tmp_path)) == slow
        assert len({pid for _, _, pid in played(tmp_path)} - {os.getpid()}) >= 2

    @pytest.mark.campaign
    def test_ray_plays_on_two_workers(self, whole, tmp_path, monkeypatch):
        ray = pytest.importorskip("ray")
        monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        where = ["--backend", "ray", "--jobs", "2"]
        assert toy.main(["smoke", "--output", str(tmp_path), *where]) == 0
        assert not ray.is_initialized()
        assert contents(only(tmp_path)) == whole
        assert os.getpid() not in {pid for _, _, pid in played(tmp_path)}

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["dask", "ray"])
    @pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "127.0.0.1:9", "127.0.0.1:65536", "a..b:9"])
    def test_a_scheduler_that_is_not_there_is_one_line_within_ten_seconds(self, backend, address, tmp_path, capfd):
        pytest.importorskip({"dask": "distributed"}.get(backend, backend))
        began = time.monotonic()
        where = ["--backend", backend, "--address", address]
        assert toy.main(["smoke", "--output", str(tmp_path / "out"), *where]) == 2
        assert time.monotonic() - began < 10
        error = capfd.readouterr().err.strip().split("\n")
        assert len(error) == 1
        assert f"error: --backend {backend}: cannot reach {CLUSTER[backend]} at {address} (" in error[0]
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["dask", "ray"])
    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad request\r\n\r\n"], ids=["silent", "HTTP"])
    def test_something_else_that_listens_is_one_line(self, backend, answer, tmp_path, capfd, monkeypatch):
        """A socket that says nothing, and a web server, whose words Dask takes for the size of a message."""
        pytest.importorskip({"dask": "distributed"}.get(backend, backend))
        monkeypatch.setattr("bandits.runs.execute.ANSWER_SECONDS", 1.0)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=greet, args=(listener, answer), daemon=True).start()
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            where = ["--backend", backend, "--address", address]
            assert toy.main(["smoke", "--output", str(tmp_path / "out"), *where]) == 2
            listener.shutdown(socket.SHUT_RDWR)
        error = capfd.readouterr().err.strip().split("\n")
        assert len(error) == 1
        assert f"error: --backend {backend}: cannot reach {CLUSTER[backend]} at {address} (" in error[0]
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("backend", "address", "words"),
        [("dask", "127.0.0.1:9", "cannot reach"), ("ray", None, "pip install"), ("loky", "127.0.0.1:9", "--address")],
    )
    def test_a_backend_is_checked_before_models_are_loaded(self, backend, address, words, tmp_path, monkeypatch):
        """What a study prepares takes minutes."""
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))

        def refuse(study):
            raise InputError("no such model")

        monkeypatch.setattr(toy.ToyStudy, "prepare", refuse, raising=False)
        study = toy.ToyStudy(toy.Toy())
        directory = RunDirectory(tmp_path, study.experiment, "smoke", study.identity())
        with pytest.raises(InputError, match=words):
            execute(study, directory, 1, backend, address)
        with pytest.raises(InputError, match="such model"):
            execute(study, directory, 1)

    @pytest.mark.campaign
    def test_ray_plays_on_a_cluster_that_is_there(self, whole, tmp_path, monkeypatch):
        """Another process holds it, on two workers."""
        ray = pytest.importorskip("ray")
        monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        address = holder.stdout.readline().strip()
        try:
            assert toy.main(["smoke", "--output", str(tmp_path), "--backend", "ray", "--address", address]) == 0
        finally:
            holder.communicate("over\n", timeout=60)
        assert not ray.is_initialized()
        assert contents(only(tmp_path)) == whole
        assert os.getpid() not in {pid for _, _, pid in played(tmp_path)}

    def test_a_backend_that_is_not_installed_says_what_to_install(self, tmp_path, monkeypatch, capsys):
        from bandits.runs import execute

        real = execute.importlib.util.find_spec
        monkeypatch.setattr(execute.importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
        assert toy.main(["smoke", "--output", str(tmp_path / "out"), "--backend", "ray"]) == 2
        assert "pip install ray" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_an_address_without_a_cluster_is_refused(self, tmp_path, capsys):
        assert toy.main(["smoke", "--output", str(tmp_path / "out"), "--address", "tcp://127.0.0.1:9"]) == 2
        assert "--address" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_parts_are_numbers_from_one():
    assert Part.of("2/3") == Part(2, 3)
    assert issubclass(StoppedError, Exception)
