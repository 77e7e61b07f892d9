"""Every example runs as its first line says, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = [
    "--jobs",
    "1",
    "--rounds",
    "2",
    "--batch",
    "2",
    "--prompts",
    "8",
    "--heldout",
    "3",
    "--width",
    "8",
    "--replicates",
    "2",
]
EXAMPLES = {
    "own_strategy": (*SMALL, "--no-audit", "--truths", "square"),
    "own_learner": (*SMALL, "--no-audit"),
    "own_scorer": ("smoke", "--strategies", "random", "--rounds", "1", "--jobs", "1"),
    "own_data": (),
    "own_embeddings": (),
}


def run(name: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.campaign
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    said = run(name, tmp_path, *EXAMPLES[name])
    assert any(word in said for word in ("page: ", "of unseen duels ordered correctly", "20 answers"))


@pytest.mark.campaign
def test_a_runs_tables_are_read(tmp_path: Path) -> None:
    run("own_learner", tmp_path, *SMALL, "--no-audit", "--contenders", "random", "quadratic:random")
    (folder,) = (tmp_path / "results" / "pool").iterdir()
    assert "square quadratic:random: error less Random's" in run("read_a_run", tmp_path, str(folder))


def test_there_is_a_test_for_every_example() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, "read_a_run"}
