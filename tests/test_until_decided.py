"""Replicates added until decided: the same bytes however the run is cut, and never more than are needed."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from kept import contents, only

from bandits import __main__ as command
from bandits.runs.stats import compare, savings
from bandits.sim import report
from bandits.sim import run as cells
from bandits.sim.config import Simulation

TINY = [
    *("smoke", "--contenders", "random", "activedpo-identity", "--truths", "ntk", "linear", "--replicates", "2"),
    *("--until-decided", "7", "--no-audit", "--rounds", "3", "--batch", "2", "--prompts", "6", "--heldout", "4"),
    *("--width", "8"),
]


def run(output: Path, *more: str) -> int:
    return command.main([*TINY, "--output", str(output), "--jobs", "1", *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert run(output) == 0
    return output


def test_looks_double_up_to_the_cap():
    assert Simulation(replicates=20, until_decided=150).looks == [20, 40, 80, 150]
    assert Simulation(replicates=20, until_decided=40).looks == [20, 40]
    assert Simulation(replicates=20).looks == []


def test_cells_of_all_looks_are_each_replicate_once():
    s = Simulation(replicates=12, until_decided=50, truths=("ntk",), contenders=("random",))
    every = [*s.cells(), *(cell for look in s.looks for cell in s.further("ntk", look))]
    assert [number for cell in every for number in cell.block] == list(range(50))
    assert max(len(cell.block) for cell in every) <= 10
    assert len({cell.key for cell in every}) == len(every)


@pytest.mark.slow
def test_a_truth_stops_at_the_first_look_that_decides_or_at_the_cap(whole):
    folder = next((whole / "pool").iterdir())
    rounds, saved = pd.read_csv(folder / "rounds.csv"), pd.read_csv(folder / "savings.csv")
    for truth, part in rounds.groupby("truth"):
        count, looks = part["replicate"].nunique(), [2, 4, 7]
        assert count in looks
        rows = saved[(saved["truth"] == truth) & (saved["measure"] == "error")]
        assert (rows["replicates"] == count).all()
        assert count == 7 or "undecided" not in set(rows["verdict"])
        before = rounds[(rounds["truth"] != truth) | (rounds["replicate"] < looks[max(looks.index(count) - 1, 0)])]
        earlier = savings(before, "error", "random", looks=looks)
        assert count == 2 or "undecided" in set(earlier.loc[earlier["truth"] == truth, "verdict"])
    page = (folder / "index.html").read_text()
    assert "looked at 2, 4, 7 of them" in page
    assert "not corrected for the looks" not in page


@pytest.mark.slow
def test_what_the_page_compares_has_the_share_of_the_last_look(whole):
    folder = next((whole / "pool").iterdir())
    rounds = pd.read_csv(folder / "rounds.csv")
    found, ends = pd.read_csv(folder / "comparison.csv"), ["replicates", "low", "high"]
    sound, plain = (compare(rounds, "error", "random", scale="ratio", looks=looks) for looks in ([2, 4, 7], []))
    pd.testing.assert_frame_equal(found[ends], sound[ends])
    assert (sound["high"] / sound["low"] > plain["high"] / plain["low"]).all()
    together = pd.read_csv(folder / "pooled.csv")
    least = rounds.groupby("truth")["replicate"].nunique().min()
    assert together["reason"].tolist() == [f"{least} of the 8 replicates that it takes"]


@pytest.mark.slow
def test_what_is_said_of_all_truths_knows_which_fits_did_not_end(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "copy")
    folder = next((tmp_path / "copy" / "pool").iterdir())
    (folder / "index.html").unlink()
    monkeypatch.setattr(
        report, "unfitted", lambda rounds: {("linear", "activedpo-identity"): "9 fits did not converge"}
    )
    assert run(tmp_path / "copy") == 0
    assert (
        pd.read_csv(folder / "pooled.csv")["reason"].str.contains("on “linear”, activedpo-identity: 9 fits did").all()
    )
    assert "is not judged against random's" in (folder / "findings.json").read_text()


@pytest.mark.campaign
def test_a_run_that_stops_at_a_later_look_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch):
    play = cells.run_cell

    def then_die(simulation, truth, contender, folder, block, parts):
        if block.start >= 4:
            raise KeyboardInterrupt
        return play(simulation, truth, contender, folder, block, parts)

    monkeypatch.setattr(cells, "run_cell", then_die)
    assert run(tmp_path) == 130
    assert not (next((tmp_path / "pool").iterdir()) / "index.html").exists()
    monkeypatch.setattr(cells, "run_cell", play)
    assert run(tmp_path) == 0
    assert contents(only(tmp_path)) == contents(only(whole))
    assert run(tmp_path) == 0


@pytest.mark.campaign
def test_parts_are_submitted_again_until_the_page_is_there(whole, tmp_path):
    for _ in range(3):  # looks
        for part in ("1/2", "2/2"):
            assert run(tmp_path, "--cells", part) == 0
        if list(tmp_path.rglob("index.html")):
            break
    assert contents(only(tmp_path)) == contents(only(whole))


@pytest.mark.campaign
def test_damage_at_an_early_look_is_made_anew(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    table = next((tmp_path / "copy").glob("pool/*/cells/ntk--random/replicates-0-1/rounds.csv"))
    table.write_bytes(table.read_bytes()[:-2] + b"7\n")
    assert run(tmp_path / "copy") == 0
    assert contents(only(tmp_path / "copy")) == contents(only(whole))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["smoke", "--until-decided", "3"], "--until-decided must be more than --replicates"),
        (["smoke-regret", "--until-decided", "30"], "--until-decided is for pool experiments"),
        (["smoke", "--targets", "4"], "--targets are numbers of Random's labels: above 4"),
        (["smoke", "--targets", "13"], "at most 12, got 13"),
        (["smoke", "--targets", "8", "8"], "--targets names 8 twice"),
        (["smoke-regret", "--targets", "8"], "none in an experiment about regret"),
        (["smoke", "--margin", "0"], "--margin must be above 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused_by_its_option(arguments, word, tmp_path, capsys):
    assert command.main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert word in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
