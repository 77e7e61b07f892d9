"""Which cases the fault campaign tries; the cases themselves are its own affair (``make faults``)."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults.__main__ import in_turn, main
from faults.harness import Case, attempt_all, few


def test_a_few_files_of_each_kind_are_tried():
    names = [f"run/cells/rule-{k}--seed{s}/{file}" for k in range(3) for s in (0, 1) for file in ("a.csv", "b.json")]
    names += [f"run/figures/{name}.svg" for name in ("error", "saved", "kappa", "calibration")] + ["run/manifest.json"]
    kept = [names[place] for place in few(names)]
    assert few(names, whole=True) == list(range(len(names)))
    assert sum(name.endswith("a.csv") for name in kept) == sum(name.endswith("b.json") for name in kept) == 3
    assert sum("figures" in name for name in kept) == 3
    assert kept[-1] == "run/manifest.json"


@given(st.lists(st.sampled_from(["kill", "damage", "setting"]), min_size=1, max_size=40), st.integers(1, 40))
def test_cases_come_in_turn_over_the_kinds(kinds, count):
    """So what a campaign has tried when its time is over is even over the kinds."""
    every = [Case(kind, f"simulate {number}", lambda folder: "") for number, kind in enumerate(kinds)]
    order = in_turn(every, 0)
    assert sorted(map(id, order)) == sorted(map(id, every))
    assert [case.name for case in order] == [case.name for case in in_turn(every, 0)]
    tried = order[:count]
    took = {kind: sum(case.kind == kind for case in tried) for kind in set(kinds)}
    assert all(took[kind] in (kinds.count(kind), max(took.values()), max(took.values()) - 1) for kind in took)


def test_no_case_is_begun_when_the_time_is_over(tmp_path):
    every = [Case("kill", f"simulate {number}", lambda folder: "") for number in range(3)]
    told = []
    attempt_all(every, tmp_path, 1, lambda case, said: told.append(case.name), over=0.0)
    assert not told
    attempt_all(every, tmp_path, 1, lambda case, said: told.append(case.name))
    assert told == [case.name for case in every]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--jobs", "-1"], "--jobs must be at least 0"),
        (["--minutes", "nan"], "--minutes must be at least 0"),
        (["--sample", "-1"], "--sample must be at least 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--programs", "no"], "--programs: there is no 'no'"),
    ],
)
def test_bad_options_of_the_campaign_are_one_line(given, said, capsys):
    assert main(given) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.campaign
def test_a_project_killed_at_any_write_goes_on_to_the_same_bytes_without_litter():
    command = ["--programs", "project", "--kinds", "kill", "--whole", "--minutes", "0"]
    done = subprocess.run([sys.executable, "-m", "faults", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
