"""The programs themselves, played by Dask (a worker killed) and by Ray: the bytes of a run in one process."""

import importlib
import os
import signal
import threading
from collections.abc import Callable

import pytest
from kept import contents

pytestmark = pytest.mark.campaign

PROGRAMS = {
    "bandits": ["smoke", "--replicates", "12", "--rounds", "2", "--prompts", "6", "--heldout", "3", "--width", "8"],
    "llm_loop": [
        "smoke",
        "--strategies",
        "random",
        "activedpo",
        "--rounds",
        "1",
        "--heldout",
        "2",
        "--heldout-duels",
        "1",
        "--heldout-between",
        "1",
        "--probes",
        "1",
    ],
}


def main_of(program: str) -> Callable[[list[str]], int]:
    found: Callable[[list[str]], int] = importlib.import_module(f"{program}.__main__").main
    return found


@pytest.fixture(scope="module", params=list(PROGRAMS))
def serial(request, tmp_path_factory) -> tuple[str, dict[str, bytes]]:
    output = tmp_path_factory.mktemp("serial")
    assert main_of(request.param)([*PROGRAMS[request.param], "--output", str(output), "--jobs", "1"]) == 0
    return request.param, contents(output)


def test_dask_loses_a_worker_and_nothing_else(serial, tmp_path):
    distributed = pytest.importorskip("distributed")
    program, whole = serial
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster, distributed.Client(cluster):
        victim, over, killed = next(iter(cluster.workers.values())).pid, threading.Event(), threading.Event()

        def kill() -> None:
            # Its first files are there: somebody is at work.
            while not any(path.is_file() and "cells" in path.parts for path in tmp_path.rglob("*")):
                if over.wait(0.02):
                    return
            os.kill(victim, signal.SIGKILL)
            killed.set()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        where = ["--backend", "dask", "--address", cluster.scheduler_address]
        try:
            assert main_of(program)([*PROGRAMS[program], "--output", str(tmp_path), *where]) == 0
        finally:
            over.set()  # a thread that outlived its cluster could kill a stranger
            killer.join()
        assert killed.is_set()
    assert contents(tmp_path) == whole


def test_ray_plays_on_two_workers(serial, tmp_path):
    ray = pytest.importorskip("ray")
    program, whole = serial
    where = ["--backend", "ray", "--jobs", "2"]
    assert main_of(program)([*PROGRAMS[program], "--output", str(tmp_path), *where]) == 0
    assert not ray.is_initialized()
    assert contents(tmp_path) == whole
