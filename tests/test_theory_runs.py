"""The theory checks as a user runs them: the command line, equal bytes, a killed run, a cluster, refusals, alarms."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from kept import contents, only

from bandits.core import oracles as btl
from bandits.core.errors import InputError
from theory_checks import __main__ as command
from theory_checks.maths import trials
from theory_checks.study import suite

FAST = ["--claims", "information", "tightness"]
COMMAND = [sys.executable, "-m", "theory_checks", "smoke", *FAST]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("first")
    assert command.main(["smoke", *FAST, "--output", str(output), "--jobs", "1"]) == 0
    return only(output)


class TestRun:
    @pytest.mark.slow
    def test_the_folder_and_the_page(self, finished):
        names = set(contents(finished))
        assert {
            "manifest.json",
            "index.html",
            "verdicts.csv",
            "findings.json",
            "information.csv",
            "tightness.csv",
        } <= names
        page = (finished / "index.html").read_text()
        assert 'src="data:image/svg+xml;base64,' in page
        assert "http" not in page
        verdicts = pd.read_csv(finished / "verdicts.csv")
        assert set(verdicts["verdict"]) <= {"supported", "refuted", "not informative"}
        assert not verdicts["alarm"].any()
        assert not [n for n in names if "tmp" in n]

    @pytest.mark.campaign
    def test_another_process_and_other_jobs_give_the_same_bytes(self, finished, tmp_path):
        subprocess.run([*COMMAND, "--output", str(tmp_path), "--jobs", "2"], check=True, capture_output=True)
        assert contents(only(tmp_path)) == contents(finished)

    @pytest.mark.campaign
    def test_a_killed_run_goes_on_to_the_same_bytes(self, finished, tmp_path):
        run = subprocess.Popen(
            [*COMMAND, "--output", str(tmp_path), "--jobs", "1"],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while len(list(tmp_path.rglob("table.csv"))) < 2 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert not (only(tmp_path) / "index.html").exists()
        assert command.main(["smoke", *FAST, "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert contents(only(tmp_path)) == contents(finished)

    @pytest.mark.slow
    def test_a_complete_run_is_judged_again_not_run_again(self, finished, capsys):
        before = {f: f.stat().st_mtime_ns for f in finished.rglob("*.csv")}
        assert command.main(["smoke", *FAST, "--output", str(finished.parent.parent)]) == 0
        assert {f: f.stat().st_mtime_ns for f in finished.rglob("*.csv")} == before
        assert "complete" in capsys.readouterr().out

    @pytest.mark.campaign
    def test_a_cluster_loses_a_worker_and_nothing_else(self, finished, tmp_path):
        """Two Dask workers, one killed with SIGKILL after the first cell; the same bytes as one process gave."""
        distributed = pytest.importorskip("distributed")
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
        with cluster, distributed.Client(cluster) as client:
            victim = next(iter(client.run(os.getpid).values()))
            killed, over = threading.Event(), threading.Event()

            def kill() -> None:
                while not list(tmp_path.rglob("table.csv")):
                    if over.wait(0.02):
                        return
                os.kill(victim, signal.SIGKILL)
                killed.set()

            killer = threading.Thread(target=kill, daemon=True)
            killer.start()
            where = ["--backend", "dask", "--address", cluster.scheduler_address, "--jobs", "2"]
            try:
                assert command.main(["smoke", *FAST, "--output", str(tmp_path), *where]) == 0
            finally:
                over.set()  # a thread that outlived its cluster could kill a stranger
                killer.join()
            assert killed.is_set()
        assert contents(only(tmp_path)) == contents(finished)


class TestAlarms:
    @pytest.mark.campaign
    def test_a_control_that_is_not_refuted_is_exit_status_1(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(trials.ORACLES._parts, "flipped", btl.BTL())
        names = ["--claims", "controls/flipped labels"]
        assert command.main(["smoke", *names, "--output", str(tmp_path), "--jobs", "1"]) == 1
        assert "alarm: controls/flipped labels is supported" in capsys.readouterr().err

    @pytest.mark.campaign
    def test_a_claim_that_should_hold_and_is_refuted_is_exit_status_1(self, tmp_path, monkeypatch, capsys):
        real = trials.linearised
        monkeypatch.setattr(trials, "linearised", lambda i, b, *rest: real(0 * i, 0 * b, *rest[:-1], 0.999))
        small = ["--claims", "exact/default/random/extended", "--exact.rounds", "6"]
        assert command.main(["smoke", *small, "--output", str(tmp_path), "--jobs", "1"]) == 1
        assert "exact/default/random/extended is refuted" in capsys.readouterr().err


class TestBadInput:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["quik"], "did you mean 'quick'"),
            (["smoke", "--claims", "contrls"], "the nearest is 'controls'"),
            (["smoke", "--claims", "exact/default/random/extend"], "the nearest is 'exact/default/random/extended'"),
            (["smoke", "--claims", "exact", "--backend", "dask", "--address", "tcp://127.0.0.1:9"], "cannot reach"),
        ],
    )
    def test_one_line_and_status_2(self, arguments, said, tmp_path, capsys):
        extra = ["--output", str(tmp_path)] if len(arguments) > 1 else []
        try:
            status = command.main([*arguments, *extra])
        except SystemExit as error:
            status = error.code
        assert status == 2
        assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())

    def test_a_seed_must_not_be_negative(self):
        with pytest.raises(InputError, match="seed"):
            replace(suite("smoke"), seed=-1)
