"""The benchmarks' machinery on small rows, and the fast paths that they measure against slow references."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandits.core.design import GramDesign
from bandits.core.errors import InputError
from bandits.core.greedy import greedy
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.core.sketches import ShiftSketch
from bandits.selector import STRATEGIES
from benchmarks import __main__ as command
from benchmarks.harness import commands, report
from benchmarks.harness.measure import AbsentError, Measured, Timing, hardware, measure, prepare
from benchmarks.harness.row import Check, Contender, Row, Target
from benchmarks.rows import fits, growth, llm, simulator, sketches, widths
from benchmarks.rows import greedy as batches


def build(value: float):
    return lambda: {"value": value, "x:size": np.array([1.0, 2.0]), "y:size": np.array([3.0, 4.0])}


def hoarding(value: float, from_run: int):
    """A workload that takes 400 MB for 0.3 s from one of its runs on."""
    runs = iter(range(10))

    def run():
        if next(runs) >= from_run:
            kept = np.ones(50_000_000)
            time.sleep(0.3)
            del kept
        return {"value": value}

    return run


def littering(told: str):
    """A workload that leaves a temporary folder, and notes where."""
    folder = tempfile.mkdtemp()
    Path(told).write_text(folder)
    return lambda: {"value": 1.0 if Path(folder).is_dir() else 0.0}


SLEEPER = """
import os, pathlib, sys, time
pathlib.Path("pid.part").write_text(str(os.getpid()))
pathlib.Path("pid.part").rename("pid")
time.sleep(120)
"""
BENCH = """
import sys, tempfile
from pathlib import Path
from benchmarks.harness import commands
from benchmarks.harness.measure import measure
from benchmarks.harness.row import Check, Contender, Row, Target

def build():
    return lambda: {"peak": commands.run("sleeper", (), Path(tempfile.mkdtemp()), Path(sys.argv[1]))}

if __name__ == "__main__":
    targets = (Target("seconds", 1.0, "soon"),)
    measure(Row("asleep", "Asleep", "sleep", Contender("ours", build), lambda answers: Check(True, ""), targets), 1)
"""


def lives(pid: int) -> bool:
    """Whether a process runs, or would (one that was ended and that nobody asked after is listed still)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(happens, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.1)
    return happens()


def broken():
    raise RuntimeError("no such algorithm")


def refusing():
    raise AbsentError("its data are not here")


def crashing():
    def run():
        raise MemoryError("too large")

    return run


def agreeing(answers):
    return Check(all(answer["value"] == 1.0 for answer in answers.values()), "all say one")


RUNS = (Target("peer", 0.0, "runs beside a peer"),)


def row(ours=build, settings=None, peers=(), targets=RUNS):
    return Row(
        "small",
        "A small row",
        "nothing",
        Contender("ours", ours, settings or {}),
        agreeing,
        targets,
        peers,
        repetitions=2,
    )


@pytest.fixture(scope="module", autouse=True)
def _server():
    prepare()


class TestMeasuring:
    @pytest.mark.campaign
    def test_everyone_runs_in_turn_and_is_checked(self):
        peer = Contender("peer", build, {"value": 1.0}, repetitions=1, scale=10.0)
        got = measure(row(settings={"value": 1.0}, peers=(peer,)), threads=1, profiled=True)
        assert [len(got.timings[name].seconds) for name in ("ours", "peer")] == [2, 1]
        assert got.check.passed
        assert got.figures == {"value": 1.0}
        assert got.curves == {"x:size": [1.0, 2.0], "y:size": [3.0, 4.0]}
        assert got.timings["ours"].peak > 0.01
        assert sum(share for _, share in got.profile) == pytest.approx(1, abs=0.05)

    @pytest.mark.slow
    @pytest.mark.parametrize(("from_run", "counts"), [(0, True), (3, False)])
    def test_what_the_profiler_takes_is_no_memory_of_the_row(self, from_run, counts):
        """A warm-up and two timed runs come before the profiled one."""
        got = measure(row(hoarding, {"value": 1.0, "from_run": from_run}), threads=1, profiled=True)
        plain = measure(row(settings={"value": 1.0}), threads=1, profiled=False)
        assert (got.timings["ours"].beside > plain.timings["ours"].beside + 0.3) == counts

    def test_temporary_files_of_a_contender_go_with_its_process(self, tmp_path: Path):
        got = measure(row(littering, {"told": str(tmp_path / "told")}), threads=1, profiled=False)
        assert got.check.passed
        assert not Path((tmp_path / "told").read_text()).exists()

    @pytest.mark.campaign
    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
    def test_a_command_and_its_files_end_with_benchmarks_that_are_stopped(self, how, tmp_path: Path, request):
        scratch = Path(tempfile.mkdtemp())  # a worker's socket lies below, whose path may have 107 bytes
        request.addfinalizer(lambda: shutil.rmtree(scratch))
        (tmp_path / "sleeper.py").write_text(SLEEPER)
        (tmp_path / "bench.py").write_text(BENCH)
        environment = os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(commands.ROOT)}
        told = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        bench = subprocess.Popen([sys.executable, tmp_path / "bench.py", tmp_path], env=environment, **told)
        try:
            assert soon((tmp_path / "pid").exists)
            asleep = int((tmp_path / "pid").read_text())
            assert lives(asleep)
            assert list(scratch.glob("bench-*"))
            bench.send_signal(how)
            assert soon(lambda: not lives(asleep))
            assert soon(lambda: not list(scratch.glob("bench-*")))
        finally:
            bench.kill()
            bench.wait()

    def test_a_command_that_fails_is_told_by_its_last_line(self, tmp_path: Path):
        (tmp_path / "failing.py").write_text("raise SystemExit('first line\\nerror: no such thing')")
        with pytest.raises(AbsentError, match=r"^error: no such thing$"):
            commands.run("failing", (), tmp_path, tmp_path)

    def test_a_commit_that_is_not_there_is_told_in_plain_words(self, tmp_path: Path):
        with pytest.raises(AbsentError, match="commit 0123456 is not in this checkout's history"):
            commands.unpack("0123456", tmp_path)

    def test_the_machine_is_told_with_its_vector_instructions(self):
        assert hardware()["instructions"] == torch.backends.cpu.get_cpu_capability()

    def test_a_wrong_answer_makes_the_row_invalid(self):
        peer = Contender("peer", build, {"value": 2.0})
        got = measure(row(settings={"value": 1.0}, peers=(peer,)), threads=1, profiled=False)
        assert report.verdict(row(peers=(peer,)), Target("peer", 0.0, "faster"), got)["word"] == "invalid"

    def test_a_peer_that_is_missing_or_fails_is_named_and_the_row_goes_on(self):
        peers = (
            Contender("absent", build, {"value": 1.0}, needs=("no_such_module",)),
            Contender("broken", broken),
            Contender("crashing", crashing),
            Contender("refusing", refusing),
        )
        got = measure(row(settings={"value": 1.0}, peers=peers), threads=1, profiled=False)
        assert got.absent["absent"] == "no_such_module is not installed"
        assert "no such algorithm" in got.absent["broken"]
        assert "too large" in got.absent["crashing"]
        assert got.absent["refusing"] == "its data are not here"
        assert len(got.timings["ours"].seconds) == 2
        assert report.verdict(row(peers=peers), Target("peer", 1.0, "faster"), got)["word"] == "unknown"

    def test_our_own_failure_ends_the_row(self):
        with pytest.raises(AbsentError, match="no such algorithm"):
            measure(row(ours=broken), threads=1)


class TestTelling:
    def measured(self, ours=(1.0, 2.0, 1.0), peer=(6.0, 6.0), passed=True):
        timings = {"ours": Timing(list(ours), 1.0, 0.5), "peer": Timing(list(peer), 2.0, 0.5)}
        return Measured(timings, {"share": 0.2}, {}, Check(passed, "compared"), {}, (("mm", 0.9),))

    def small(self, *targets):
        return row(peers=(Contender("peer", build),), targets=targets)

    @pytest.mark.parametrize(
        ("target", "word"),
        [
            (Target("peer", 4.5, ""), "met"),
            (Target("peer", 4.6, ""), "missed"),
            (Target("seconds", 1.0, ""), "met"),
            (Target("seconds", 0.9, ""), "missed"),
            (Target("memory", 0.9, ""), "missed"),
            (Target("figure", 0.2, "", "share"), "met"),
            (Target("figure", 0.1, "", "share"), "missed"),
        ],
    )
    def test_verdicts(self, target, word):
        """Ratios are paired in time: 6/1 and 6/2, median 4.5."""
        assert report.verdict(self.small(target), target, self.measured())["word"] == word

    @pytest.mark.parametrize(
        ("target", "told"),
        [
            (Target("figure", 1, "", "share"), "0.2"),
            (Target("figure", 1, "", "share", unit="GB"), "0.2 GB"),
            (Target("figure", 1, "", "share", unit="%"), "20 %"),
            (Target("seconds", 60, ""), "1 s"),
        ],
    )
    def test_what_was_measured_is_told_with_its_unit(self, target, told):
        assert report.verdict(self.small(target), target, self.measured())["measured"] == told

    def test_short_times_are_told_in_milliseconds(self):
        target = Target("seconds", 0.05, "")
        assert report.verdict(self.small(target), target, self.measured(ours=(0.00193,)))["measured"] == "1.93 ms"

    def test_figures_of_all_rows_have_the_unit_that_their_target_names(self):
        """Exponents alone have none."""
        for row in command.ROWS.values():
            for target in row.targets:
                if target.of == "figure":
                    assert target.unit == next(unit for unit in ("GB", "%", "") if unit in target.text)

    @pytest.mark.parametrize(
        ("seconds", "of", "word"),
        [(0.5, "limit", "met"), (0.2, "limit", "missed"), (3.0, "limit", "beaten"), (3.0, "yardstick", "met")],
    )
    def test_a_limit_that_is_beaten_is_none_and_the_row_not_valid(self, seconds, of, word):
        plain = Contender("plain", build)
        small = replace(row(targets=(Target(of, 2.5, ""),)), **{of: plain})
        measured = self.measured()
        timings = {"ours": Timing([1.0, 1.0, 1.0], 1.0, 0.5), "plain": Timing([seconds] * 3, 1.0, 0.5)}
        measured = replace(measured, timings=timings)
        assert report.verdict(small, small.targets[0], measured)["word"] == word
        assert report.record(small, measured, {}, 2, {}, "abc")["valid"] == (word != "beaten")

    def test_a_page_tells_of_one_commit_and_one_machine(self, tmp_path: Path):
        small = self.small(Target("peer", 1, "faster"))
        for name, commit, machine in (("old", "abc", "one"), ("other", "def", "two"), ("small", "def", "one")):
            entry = report.record(small, self.measured(), {"processor": machine}, 2, {"torch": "0"}, commit)
            report.save(tmp_path, entry | {"name": name, "load": "0.1", "when": f"2026-01-0{len(name)}"})
        assert [e["name"] for e in report.together(report.load(tmp_path), "def", {"processor": "one"})] == ["small"]

    def test_records_become_a_page(self, tmp_path: Path):
        target = Target("peer", 100, "a hundred times faster")
        small = self.small(target)
        entry = report.record(
            small,
            self.measured(),
            {"processor": "p", "instructions": "AVX2", "cores": "2", "memory": "1 GB", "gpu": "none"},
            2,
            {"torch": "0"},
            "abc",
        )
        report.save(tmp_path, entry | {"load": "0.1"})
        assert json.loads((tmp_path / "rows" / "small.json").read_text())["valid"]
        assert len((tmp_path / "runs.csv").read_text().splitlines()) == 6
        text = report.docs(report.load(tmp_path), [small, command.ROWS["widths-256"]], None)
        assert "**red**" in text
        assert "4.5 [3.75, 5.25] times" in text
        assert "`widths-256`" in text
        assert "RED" in report.terminal(entry)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "holds no row of this commit"),
            ("[]", "is no record of a measured row"),
            ("null", "is no record of a measured row"),
            ('{"name": "small"}', "is no record of a measured row"),
            ("noise", "cannot read"),
            ("whole but for its seconds", "is no record of a measured row"),
        ],
    )
    def test_a_page_of_foreign_records_is_refused_in_one_line(self, content, message, tmp_path: Path, capsys):
        output, docs = tmp_path / "bench", tmp_path / "page.md"
        if content == "whole but for its seconds":
            entry = report.record(self.small(), self.measured(), {}, 2, {}, "abc") | {"load": "0.1"}
            entry["contenders"][0]["seconds"] = ["fast"]
            content = json.dumps(entry)
        if content is not None:
            (output / "rows").mkdir(parents=True)
            (output / "rows" / "small.json").write_text(content)
        assert command.main(["--no-measure", "--output", str(output), "--docs", str(docs)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
        assert not docs.exists()

    @pytest.mark.slow
    def test_a_page_from_a_text_file_is_refused_in_one_line(self, tmp_path: Path, capsys):
        (tmp_path / "file.txt").write_text("hello")
        assert (
            command.main(["--no-measure", "--output", str(tmp_path / "file.txt"), "--docs", str(tmp_path / "p")]) == 2
        )
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "p").exists()

    def test_every_row_says_what_it_must_reach(self):
        for name, row in command.ROWS.items():
            assert row.name == name
            assert row.targets
            assert row.ours.name == "ours"


class TestCommand:
    def test_an_unknown_row_is_one_line_and_status_2(self, capsys):
        assert command.main(["no-such-row"]) == 2
        assert capsys.readouterr().err.startswith("error: unknown benchmark row 'no-such-row'")

    def test_a_page_replaces_no_other_file(self, tmp_path: Path, capsys):
        notes = tmp_path / "notes.md"
        notes.write_text("mine")
        assert command.main(["--no-measure", "--output", str(tmp_path / "bench"), "--docs", str(notes)]) == 2
        assert "notes.md is there already and is no page 'Benchmarks'" in capsys.readouterr().err
        assert notes.read_text() == "mine"

    def test_rows_are_listed(self, capsys):
        assert command.main(["--list"]) == 0
        assert "greedy-past" in capsys.readouterr().out

    @pytest.mark.slow
    def test_a_row_end_to_end(self, tmp_path: Path, monkeypatch, capsys):
        monkeypatch.setitem(command.ROWS._parts, "small", row(settings={"value": 1.0}))
        page = tmp_path / "page.md"
        assert command.main(["small", "--output", str(tmp_path), "--docs", str(page), "--threads", "1"]) == 0
        assert "all say one" in page.read_text()
        assert "A small row" in capsys.readouterr().out


@pytest.mark.slow
def test_the_trace_row_is_checked_against_the_naive_batch():
    answer = batches.trace(200, 16, 30, 5)()
    small = {"ours": answer}
    assert batches.check_trace(small).passed
    assert not batches.check_trace({"ours": answer | {"small": answer["small"].flip(0)}}).passed
    pool, past = batches.gaussian(200, 16, "pool"), batches.gaussian(30, 16, "past")
    assert answer["picks"].tolist() == batches.naive_trace(pool, past, 5)


class TestFastPaths:
    @pytest.mark.slow
    @given(
        seed=st.integers(0, 10**6),
        n=st.integers(300, 900),
        d=st.integers(2, 30),
        past=st.integers(0, 20),
        picks=st.integers(1, 9),
        fade=st.sampled_from([0.0, 0.5, 2.0]),
        unit=st.booleans(),
    )
    def test_picks_from_a_front_are_the_naive_ones(self, seed, n, d, past, picks, fade, unit):
        generator = torch.Generator().manual_seed(seed)
        scale = torch.arange(1, d + 1, dtype=torch.float64) ** -fade
        pool = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale
        pool = pool / pool.norm(dim=-1, keepdim=True) if unit else pool
        old = torch.randn(past, d, generator=generator, dtype=torch.float64)
        free = torch.rand(n, generator=generator) < 0.9
        design = GramDesign(0.7)
        if past:
            design.append(Dense(old))
        got = greedy(design.condition(Dense(pool)), picks, free, torch.rand(n, generator=generator).double())
        assert free[got].all()
        assert len(set(got.tolist())) == picks
        v = 0.7 * torch.eye(d, dtype=torch.float64) + old.mT @ old
        for pick in got.tolist():  # each was the widest when it was taken
            widths = (pool * torch.linalg.solve(v, pool.mT).mT).sum(-1)
            widths = torch.where(free, widths, -torch.inf)
            assert widths[pick] >= widths.max() - 1e-10 * widths.max().abs()
            free[pick] = False
            v = v + torch.outer(pool[pick], pool[pick])

    def test_equal_rows_are_told_apart_by_their_numbers(self):
        pool = torch.ones(400, 3, dtype=torch.float64)
        ties = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        free = torch.ones(400, dtype=torch.bool)
        assert int(greedy(GramDesign(1.0).condition(Dense(pool)), 1, free, ties)) == int(ties.argmax())

    @given(seed=st.integers(0, 10**6), dim=st.integers(1, 60), size=st.integers(1, 20))
    def test_the_shift_sketch_is_the_sum_over_coordinates(self, seed, dim, size):
        sketch = ShiftSketch.draw(dim, size, Key(seed))
        rows = torch.randn(3, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        want = torch.zeros(3, size, dtype=torch.float64)
        for i in range(dim):
            want[:, (i + int(sketch.shift[i // size])) % size] += sketch.sign[i] * rows[:, i]
        torch.testing.assert_close(sketch(Dense(rows)).values, want)

    @pytest.mark.slow
    def test_the_shift_sketch_is_unbiased_and_its_variance_bounded(self):
        """Mean over 800 draws within 4.5 standard errors (error rate 7e-6); variance within its bound and 20 %."""
        rows = torch.randn(2, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        draws = []
        for i in range(800):
            b = ShiftSketch.draw(40, 16, Key(5).fold_in(i))(Dense(rows)).values
            draws.append(b[0] @ b[1])
        stack, want = torch.stack(draws), rows[0] @ rows[1]
        assert abs(stack.mean() - want) < 4.5 * stack.std() / 800**0.5
        bound = (rows[0].square().sum() * rows[1].square().sum() + want**2) / 16
        assert stack.var() < 1.2 * bound

    def test_a_sketch_of_no_size_is_refused(self):
        with pytest.raises(InputError, match="size >= 1"):
            ShiftSketch.draw(4, 0, Key(0))


@pytest.mark.slow
class TestSteps:
    """The rows of a DPO step, on a tiny model."""

    @pytest.fixture(autouse=True)
    def _tiny(self, monkeypatch):
        from llm_loop.models import Adapter, Row, load_policy

        def policy(layers=0):
            return load_policy("tiny-llama", Adapter(rank=4, layers=layers), Key(0))

        def rows(policy, count, length):
            ids = [[3 + (7 * place + 11 * row) % 90 for place in range(length)] for row in range(count)]
            return [Row(tuple(row[: length // 6]), tuple(row[length // 6 :])) for row in ids]

        monkeypatch.setattr(llm, "_policy", policy)
        monkeypatch.setattr(llm, "_rows", rows)

    def test_all_take_the_same_steps(self):
        answers = {"ours": llm.dpo()(), "TRL": llm.trl(False)(), "TRL, cached": llm.trl(True)()}
        check = llm.dpo_check(answers)
        assert check.passed, check.text
        assert "refused beyond 0.0001 nats" in check.text
        for name in answers:  # whoever's loss is off
            for wrong in (0.5, np.nan):
                assert not llm.dpo_check(answers | {name: {"first_loss": np.log(2), "last_loss": wrong}}).passed

    def test_the_rows_of_upper_layers_train_those_that_the_loop_does(self):
        from llm_loop.config import Alignment

        assert Alignment().adapter.layers == llm.UPPER
        assert all(f"the upper {llm.UPPER} of 30 layers" in row.workload for row in llm._upper_rows())


class TestCells:
    """The row that plays cells of the past, on a tiny model."""

    @pytest.mark.slow
    def test_the_same_work_must_be_done_by_all(self):
        whole = {"rounds": 6.0, "labels": 18.0, "cells": np.array([1.0, 2.0]), "gigabytes": 0.5}
        assert llm.cells_check({"ours": whole, "past": whole}, "smoke").passed
        for short in ({"rounds": 5.0}, {"labels": 12.0}):
            assert not llm.cells_check({"ours": whole, "past": whole | short}, "smoke").passed

    @pytest.mark.campaign
    def test_both_commits_play_the_same_cells(self, tmp_path: Path, monkeypatch):
        """One of the past's rules has another name by now, so this one's code would not know it."""
        assert "adpo+" not in STRATEGIES
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        try:
            past = llm.cells(("smoke", "--jobs", "1", "--strategies", "adpo+", "random"), llm.BEFORE)
        except AbsentError as reason:
            pytest.skip(str(reason))
        ours = llm.cells(("smoke", "--jobs", "1"))
        assert llm.cells_check({"ours": ours(), "past": past()}, "smoke").passed


class TestReferences:
    @pytest.mark.slow
    def test_checks_refuse_wrong_answers(self):
        """Each check that needs no long run says no to a wrong answer."""
        wrong = {"ours": {"small": np.arange(batches.SMALL["picks"]), "picks": np.arange(3)}}
        assert not batches.check(wrong).passed
        zeros = {"ours": {"widths": np.zeros(60), "narrow": np.zeros(60)}}
        assert not widths.check(zeros).passed
        alone = {"ours": {"regret": np.ones(20)}, "one replicate at a time, own code": {"regret": np.full(1, 1.1)}}
        assert not simulator.check(alone).passed
        far = {"log_probs": np.zeros(4), "again": np.ones(4)}
        assert not llm.generation_check({"ours": far}).passed
        assert not growth.check({"ours": {"same": 0.0}}).passed

    @pytest.mark.slow
    def test_widths_agree_with_autograd(self):
        answer = {"ours": dict(widths.ours(16)())}
        answer["ours"] = {name: value.numpy() for name, value in answer["ours"].items()}
        assert widths.check(answer).passed

    def test_the_exponent_of_a_power_is_found(self):
        x = np.array([1.0, 2, 4, 8, 16])
        assert growth.exponent(x, 3 * x**1.5) == pytest.approx(1.5)

    def test_growth_is_drawn_with_its_exponents(self):
        curves = {f"{side}:{axis.name}": [45.5, 181.0, 724.0] for axis in growth.AXES for side in "xy"}
        figure = report.growth({"curves": curves, "figures": {f"slope_{axis.name}": 1.0 for axis in growth.AXES}})
        assert figure.axes[0].get_title() == "exponent 1.00 (promised ≤ 1.1)"
        assert figure.get_figwidth() < 10  # as wide as a page can show
        figure.draw_without_rendering()
        for place, axis in zip(figure.axes, growth.AXES, strict=True):
            assert place.get_xlabel() == axis.label
            low, high = place.get_xlim()
            shown = [tick for tick in place.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
            assert [tick.label1.get_text() for tick in shown] == ["50", "100", "200", "500"]

    def test_the_page_shows_the_figure_that_is_written(self, tmp_path, monkeypatch):
        curves = {f"{side}:{axis.name}": [1.0, 2.0, 4.0] for axis in growth.AXES for side in "xy"}
        grown = {"name": "growth", "curves": curves, "figures": {f"slope_{axis.name}": 1.0 for axis in growth.AXES}}
        monkeypatch.setattr(report, "load", lambda folder: [])
        monkeypatch.setattr(report, "together", lambda *given: [grown])
        monkeypatch.setattr(report, "docs", lambda records, rows, picture: picture)
        command.publish(tmp_path, tmp_path / "page.md", "abc", {})
        shown = (tmp_path / "page.md").read_text()
        assert shown == "figures/page-growth.png"
        assert (tmp_path / shown).read_bytes().startswith(b"\x89PNG")

    def test_the_fit_problem_has_its_gradient(self):
        problem = fits.Problem.draw(8)
        value, gradient = problem.evaluate(problem.start, problem.base())
        assert float(value) == pytest.approx(fits.DUELS * np.log(2))
        step = torch.zeros_like(gradient)
        step[3] = 1e-6
        ahead, _ = problem.evaluate(problem.start + step, problem.base())
        behind, _ = problem.evaluate(problem.start - step, problem.base())
        assert float((ahead - behind) / 2e-6) == pytest.approx(float(gradient[3]), rel=1e-4, abs=1e-6)

    def test_relative_error_of_a_sketch(self):
        rows = torch.eye(3).repeat(1, 2)
        assert sketches._error(rows, rows) == 0
