"""The simulator as a user runs it: the real command line, its files, its resumption, its refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kept import contents

from bandits import __main__ as command
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.files import write_bytes
from bandits.sim import run as cells
from bandits.sim.config import PRESETS, Simulation
from bandits.sim.report import percent, share
from bandits.sim.run import SimulationStudy, build

SMALL = ["--contenders", "random", "activedpo-stale", "policy:ucb", "--rounds", "4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("first")
    assert command.main(["smoke", *SMALL, "--output", str(output), "--jobs", "1"]) == 0
    return next((output / "pool").iterdir())


class TestRun:
    @pytest.mark.slow
    def test_the_folder_has_what_the_readme_says(self, finished):
        names = set(contents(finished))
        assert {
            "manifest.json",
            "index.html",
            "rounds.csv",
            "summary.csv",
            "comparison.csv",
            "savings.csv",
            "headroom.csv",
            "bounds.csv",
            "bound_verdicts.csv",
            "bound_numbers.csv",
            "calibration.csv",
            "findings.json",
        } <= names
        assert {"figures/error.svg", "figures/saved.svg", "figures/bound.svg"} <= names
        assert not [n for n in names if "tmp" in n or "checkpoint" in n]
        manifest = json.loads((finished / "manifest.json").read_text())
        assert set(manifest) == {
            "experiment",
            "preset",
            "config",
            "sources",
            "parts",
            "inputs",
            "versions",
            "commit",
            "machine",
        }
        assert manifest["machine"]["vector instructions"]
        assert finished.name.startswith("smoke-")

    @pytest.mark.campaign
    @pytest.mark.parametrize("content", [b"[]", b"\xff\xfe{", b'{"a": "b"}'])
    def test_seconds_that_are_damaged_are_left_out_of_their_page(self, content, finished, tmp_path):
        folder = tmp_path / finished.parent.name / finished.name
        shutil.copytree(finished, folder)
        before = contents(folder)
        (folder / "timing.json").write_bytes(content)
        (folder / "index.html").unlink()  # nothing is left to play, the page is to be written
        assert command.main(["smoke", *SMALL, "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert contents(folder) == before

    def test_the_page_stands_alone_and_says_what_was_found(self, finished):
        page = (finished / "index.html").read_text()
        assert "undecided" in page or "did better" in page or "did worse" in page
        assert 'src="data:image/svg+xml;base64,' in page
        assert "http://" not in page
        assert "https://" not in page

    def test_what_no_verdict_could_support_is_said_once(self, finished):
        """3 replicates: 72, all covered, would be needed; the table lists refuted rows alone."""
        said = json.loads((finished / "findings.json").read_text())
        assert sum("no coverage of 0.95 can be supported" in line for line in said) == 1
        assert "exact bound" not in " ".join(said)
        page = (finished / "index.html").read_text()
        verdicts = pd.read_csv(finished / "bound_verdicts.csv")
        assert set(verdicts["verdict"]) <= {"refuted", "not informative"}
        assert (
            page.count("<td>exact bound")
            == (verdicts["claim"].str.startswith("exact bound") & (verdicts["verdict"] == "refuted")).sum()
        )

    def test_rounds_are_tidy(self, finished):
        rounds = pd.read_csv(finished / "rounds.csv")
        assert len(rounds) == 3 * 4 * 3  # contenders, rounds, replicates
        assert not rounds.duplicated(["truth", "contender", "round", "replicate"]).any()
        assert rounds["accuracy"].between(0, 1).all()
        assert (rounds["gradient_norm"] < 1e-5).all()
        start = rounds[rounds["round"] == 1].pivot(index="replicate", columns="contender", values="labels")
        assert (start == 4).all().all()

    @pytest.mark.campaign
    def test_another_process_and_other_jobs_give_the_same_bytes(self, finished, tmp_path):
        run = [sys.executable, "-m", "bandits", "smoke", *SMALL, "--output", str(tmp_path), "--jobs", "2"]
        subprocess.run(run, check=True, capture_output=True)
        assert contents(next((tmp_path / "pool").iterdir())) == contents(finished)

    @pytest.mark.campaign
    def test_another_seed_gives_other_numbers(self, finished, tmp_path):
        assert command.main(["smoke", *SMALL, "--output", str(tmp_path), "--seed", "1", "--jobs", "1"]) == 0
        other = next((tmp_path / "pool").iterdir())
        assert (other / "rounds.csv").read_bytes() != (finished / "rounds.csv").read_bytes()

    @pytest.mark.slow
    def test_a_complete_run_is_not_run_again(self, finished, capsys):
        before = {f: f.stat().st_mtime_ns for f in finished.rglob("*")}
        assert command.main(["smoke", *SMALL, "--output", str(finished.parent.parent)]) == 0
        assert "complete" in capsys.readouterr().out
        assert before == {f: f.stat().st_mtime_ns for f in finished.rglob("*")}

    @pytest.mark.campaign
    def test_the_regret_experiment_runs(self, tmp_path):
        assert command.main(["smoke-regret", "--output", str(tmp_path), "--jobs", "1"]) == 0
        folder = next((tmp_path / "regret").iterdir())
        rounds = pd.read_csv(folder / "rounds.csv")
        for _, part in rounds.groupby(["contender", "replicate"]):
            assert part["cumulative_average_regret"].is_monotonic_increasing
            assert (part["cumulative_weak_regret"] <= part["cumulative_average_regret"] + 1e-12).all()
        assert (folder / "figures" / "regret.svg").exists()


class TestInterruption:
    @pytest.mark.slow
    @pytest.mark.parametrize("refit", [0.0, 1.0])  # also where the round before the stop made no fit
    @pytest.mark.parametrize(
        "contender", ["activedpo", "activedpo-stale", "policy:ucb", "tangent:ts", "linear:colstim"]
    )
    def test_a_cell_stopped_after_any_round_ends_in_the_same_bytes(self, contender, refit, tmp_path, monkeypatch):
        settings = {"rounds": 4, "batch": 3, "prompts": 6, "heldout": 3, "width": 8, "refit": refit}
        simulation = Simulation(contenders=(contender,), truths=("ntk",), replicates=2, **settings)
        cells.run_cell(simulation, "ntk", contender, tmp_path / "whole")
        monkeypatch.setattr(cells, "CHECKPOINT_SECONDS", -1.0)  # after every round
        save = cells.save
        for stop in range(3):
            folder = tmp_path / f"stopped-{stop}"

            def then_die(folder, tensors, number, rounds, stop=stop):
                save(folder, tensors, number, rounds)
                if number == stop:
                    raise KeyboardInterrupt

            monkeypatch.setattr(cells, "save", then_die)
            with pytest.raises(KeyboardInterrupt):
                cells.run_cell(simulation, "ntk", contender, folder)
            assert {f.name for f in folder.iterdir()} == {f"checkpoint-{stop}.safetensors", "ledger.json"}
            monkeypatch.setattr(cells, "save", save)
            cells.run_cell(simulation, "ntk", contender, folder)
            assert contents(folder) == contents(tmp_path / "whole")

    @pytest.mark.campaign
    def test_a_killed_run_resumes_to_the_same_bytes(self, finished, tmp_path):
        run = [sys.executable, "-m", "bandits", "smoke", *SMALL, "--output", str(tmp_path), "--jobs", "1"]
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("rounds.csv")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert command.main(run[3:]) == 0
        assert contents(next((tmp_path / "pool").iterdir())) == contents(finished)


BAD = [
    (["quikc"], "did you mean 'quick'"),
    (["smoke", "--contenders", "activdpo"], "unknown strategy"),
    (["smoke", "--contenders", "neuron:random"], "unknown learner"),
    (["smoke", "--truths", "cubic"], "unknown ground truth"),
    (["smoke", "--truths", "ntk@liar"], "unknown oracle"),
    (["smoke", "--truths", "ntk+deep"], "unknown pool"),
    (["smoke", "--width", "0"], "--width"),
    (["smoke", "--depth", "1"], "--depth"),
    (["smoke", "--rounds", "100"], "--rounds and --batch"),
    (["smoke", "--batch", "0"], "--batch"),
    (["smoke", "--delta", "1.0"], "--delta must be above 0 and below 1"),
    (["smoke", "--delta", "nan"], "--delta must be above 0 and below 1"),
    (["smoke", "--regularisation", "0"], "--regularisation"),
    (["smoke", "--regularisation", "nan"], "--regularisation"),
    (["smoke", "--ridge", "-1"], "--ridge"),
    (["smoke", "--reward-bound", "0"], "--reward-bound"),
    (["smoke", "--no-rescale", "--reward-bound", "0.001"], "over its declared bound"),
    (["smoke", "--responses", "1"], "--responses"),
    (["smoke", "--device", "cuda:7"], "not available"),
    (["smoke-regret", "--no-fresh"], "--fresh"),
    (["smoke", "--seed", "-1"], "--seed"),
]


class TestRefusals:
    @pytest.mark.slow
    @pytest.mark.parametrize(("arguments", "word"), BAD, ids=[" ".join(a) for a, _ in BAD])
    def test_bad_input_is_one_line_and_status_2(self, arguments, word, tmp_path, capfd):
        """One line on standard error that names the matter; no results written."""
        assert command.main([*arguments, "--output", str(tmp_path / "out"), "--jobs", "1"]) == 2
        error = capfd.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        assert word in lines[0]
        assert "Traceback" not in error
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_an_output_that_cannot_be_written_is_named(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert command.main(["smoke", "--output", str(tmp_path / "file")]) == 2
        assert "cannot write" in capsys.readouterr().err

    def test_a_full_disk_leaves_no_half_file(self, tmp_path, monkeypatch):
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        write_bytes(tmp_path / "a", b"old")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left"):
            write_bytes(tmp_path / "a", b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
        assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_every_preset_is_valid_and_described():
    for text, simulation in PRESETS.values():
        assert text
        assert simulation.contenders[0] == "random" or "random" in simulation.contenders
        assert simulation.measured_rounds()[-1] == simulation.rounds - 1


@pytest.mark.parametrize(
    ("low", "high", "words"), [(0.875, 1.25, "−6.2 % [−12.5, +25.0]"), (float("nan"), float("nan"), "−6.2 %")]
)
def test_a_change_is_told_with_its_interval_or_without_one(low, high, words):
    assert percent({"effect": 0.9375, "low": low, "high": high}) == words
    assert percent({"effect": float("nan"), "low": low, "high": high}) == "–"


@pytest.mark.parametrize(
    ("value", "low", "high", "words", "of_the_meter"),
    [
        (0.47, -0.61, 1.55, "47 % [−61, 100]", "47 % [−61, 100]"),
        (0.5, -1.0, 1.0, "50 % [−∞, 100]", "50 % [−100, 100]"),
        (0.5, -np.inf, np.inf, "50 % [−∞, 100]", None),
        (-0.2, -1.5, 0.3, "−20 % [−∞, 30]", "−20 % [−150, 30]"),
        (0.5, np.nan, np.nan, "50 %", "50 %"),
        (np.nan, np.nan, np.nan, "–", "–"),
    ],
)
def test_a_share_is_never_beyond_all(value, low, high, words, of_the_meter):
    assert share({"saved": value, "low": low, "high": high}) == words
    if of_the_meter is not None:
        assert share({"error_saved": value, "error_saved_low": low, "error_saved_high": high}, "error_saved") == (
            of_the_meter
        )


def test_usage_lists_the_presets(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS)


@pytest.mark.campaign
def test_a_strategy_of_ones_own_runs_in_other_processes(tmp_path):
    """The README's example, as a script, with workers that have never heard of the strategy."""
    script = Path(__file__).parent.parent / "examples" / "own_strategy.py"
    small = ["--rounds", "2", "--batch", "2", "--prompts", "5", "--heldout", "3", "--width", "8", "--replicates", "2"]
    run = [sys.executable, str(script), *small, "--truths", "ntk", "--output", str(tmp_path), "--jobs", "2"]
    shown = subprocess.run(run, check=True, capture_output=True, text=True, cwd=script.parent.parent).stdout
    assert "wide-and-unsure" in shown
    rounds = pd.read_csv(next(tmp_path.rglob("quick-*/rounds.csv")))
    assert set(rounds["contender"]) == {"random", "activedpo", "wide-and-unsure"}


OWN = """
import sys
from dataclasses import dataclass
import torch
from bandits.__main__ import main
from bandits.core.oracles import ORACLES, Oracle
from bandits.selector import STRATEGIES, ScoreStrategy
from bandits.sim.learners import LEARNERS, NeuralLearner
from bandits.sim.truths import TRUTHS, GroundTruth

@dataclass(frozen=True)
class Nearest(ScoreStrategy):
    reads = frozenset({"reward"})
    summary = "picks the duels whose margin is nearest to one"
    def scores(self, pool, key):
        return -(pool.margins.abs() - 1).abs()

@dataclass(frozen=True)
class Stubborn(Oracle):
    def probability(self, margin, places, responses):
        return (places[0] < places[1]).to(margin.dtype)

@dataclass(frozen=True)
class Ripple(GroundTruth):
    waves: float = 3.0
    def __call__(self, x, key):
        return torch.sin(self.waves * x.sum(-1))

class Doubled(NeuralLearner):
    def rewards(self, items):
        return 2 * super().rewards(items)

STRATEGIES.register("nearest", Nearest())
ORACLES.register("stubborn", Stubborn())
TRUTHS.register("ripple", Ripple())
LEARNERS.register("doubled", Doubled)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.campaign
def test_parts_of_ones_own_run_in_one_process_and_in_others(tmp_path):
    """Strategy, oracle, truth and learner, each registered in one place of a script; 1 and 2 jobs give equal bytes."""
    script = tmp_path / "own.py"
    script.write_text(OWN)
    small = ["--rounds", "2", "--batch", "2", "--prompts", "5", "--heldout", "3", "--width", "8", "--replicates", "2"]
    named = ["--truths", "ripple@stubborn", "--contenders", "random", "nearest", "doubled:nearest", "--no-audit"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    found = []
    for jobs in ("1", "2"):
        run = [sys.executable, str(script), "smoke", *small, *named, "--output", str(tmp_path / jobs), "--jobs", jobs]
        shown = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        found.append(contents(next((tmp_path / jobs / "pool").iterdir())))
    assert found[0] == found[1]
    rounds = pd.read_csv(next(tmp_path.glob("1/pool/*/rounds.csv")))
    assert set(rounds["contender"]) == {"random", "nearest", "doubled:nearest"}
    page = next(tmp_path.glob("1/pool/*/index.html")).read_text()
    assert "nearest to one" in page
    # The parts' code is part of the run's identity: an edited strategy never shows the old numbers.
    script.write_text(OWN.replace(".abs() - 1)", ".abs() - 2)"))
    run = [sys.executable, str(script), "smoke", *small, *named, "--output", str(tmp_path / "1"), "--jobs", "1"]
    shown = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "complete" not in shown.stdout


class TestRegret:
    @given(seed=st.integers(0, 10**6), prompts=st.integers(1, 4))
    def test_it_is_against_the_best_of_each_duels_own_prompt(self, seed, prompts):
        """Slowly, duel by duel; asking a prompt's best against any other has no weak regret."""
        rewards = Key(seed, (0, 1)).normal(3 * prompts)
        duels = Duels.within(prompts, 3, selves=True).expand(2)
        found = cells.regret(duels, rewards, 3)
        for r in range(2):
            pairs = list(zip(duels.first[r].tolist(), duels.second[r].tolist(), strict=True))
            own = [float(rewards[r, a // 3 * 3 : a // 3 * 3 + 3].max()) for a, _ in pairs]
            sides = [(float(rewards[r, a]), float(rewards[r, b])) for a, b in pairs]
            weak = sum(top - max(both) for top, both in zip(own, sides, strict=True))
            average = sum(top - sum(both) / 2 for top, both in zip(own, sides, strict=True))
            assert found["weak_regret"][r] == pytest.approx(weak)
            assert found["average_regret"][r] == pytest.approx(average)
        leaders = rewards.unflatten(-1, (-1, 3)).argmax(-1) + 3 * torch.arange(prompts)
        best = Duels(leaders, leaders // 3 * 3 + (leaders + 1) % 3)
        assert (cells.regret(best, rewards, 3)["weak_regret"] == 0).all()


def test_a_skewed_pool_is_skewed_and_its_held_out_prompts_are_not():
    simulation = Simulation(inputs="skewed", truths=("ntk",), replicates=2)
    arena, _, _ = build(simulation, "ntk", "random")
    shown, heldout = arena.problem.table(0)[0].x, arena.problem.heldout_table()[0].x
    assert torch.allclose(shown.norm(dim=-1), torch.tensor(5.0).double().sqrt())
    off_plane = shown[..., 2:].norm(dim=-1).unflatten(-1, (-1, 3)).amax(-1) / 5**0.5
    assert 0.05 < float((off_plane > 0.5).double().mean()) < 0.2
    assert float((heldout[..., 2:].norm(dim=-1) / 5**0.5 > 0.5).double().mean()) > 0.8


def test_a_truth_may_name_a_pool_of_its_own():
    """The same world, luck and labels as with the pool as the run's own setting; the even pool stays beside it."""
    both = Simulation(truths=("ntk", "ntk+redundant"), replicates=2, prompts=12, heldout=4, rounds=2, batch=3)
    alone = Simulation(truths=("ntk",), replicates=2, prompts=12, heldout=4, rounds=2, batch=3, inputs="skewed")
    for ours, theirs in (("ntk+redundant", "ntk"), ("ntk+redundant@flipped", "ntk@flipped")):
        named, own = (build(s, truth, "random")[0].problem for s, truth in ((both, ours), (alone, theirs)))
        assert torch.equal(named.table(0)[0].x, own.table(0)[0].x)
        assert torch.equal(named.heldout_table()[1], own.heldout_table()[1])
    assert both.foreseeable == ["ntk", "ntk+redundant"]
    assert len(SimulationStudy.of(both).cells()) == both.count() + 2


class TestOneTableOfACell:
    @pytest.mark.campaign
    @pytest.mark.parametrize("table", ["rounds.csv", "bounds.csv", "calibration.csv"])
    def test_that_is_altered_is_made_anew_beside_those_that_are_whole(self, finished, tmp_path, table):
        """What is left of a cell must never pass for the whole cell."""
        folder = tmp_path / "pool" / finished.name
        shutil.copytree(finished, folder)
        for path in folder.glob(f"cells/*/*/{table}"):
            path.write_bytes(path.read_bytes()[:-2] + b"7\n")
        assert command.main(["smoke", *SMALL, "--output", str(tmp_path), "--jobs", "1"]) == 0
        assert contents(folder) == contents(finished)

    @pytest.mark.slow
    def test_a_nul_in_the_path_is_one_line(self, capsys):
        assert command.main(["smoke", "--output", "a\0b"]) == 2
        assert "--output must be without a NUL" in capsys.readouterr().err
