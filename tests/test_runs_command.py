"""The front door and what commands print: one line for what is wrong, any terminal, and results before words."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from activedpo.__main__ import PROGRAMS, main

TOY = Path(toy.__file__)


class TestFrontDoor:
    def test_usage_names_every_program_and_imports_none(self, capsys):
        assert main([]) == 0
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in PROGRAMS)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["simulat"], "unknown program 'simulat'; did you mean 'simulate'?"),
            (["simulate", "smok"], "unknown preset 'smok'; did you mean 'smoke'?"),
            (["simulate", "smoke", "--widht", "3"], "did you mean --width?"),
            (["simulate", "smoke", "--width", "x"], "--width must be a whole number, got 'x'"),
            (["simulate", "smoke", "--delta", "x"], "--delta must be a number, got 'x'"),
            (["simulate", "smoke", "--truths", "ntk,mlp"], "separate several values by blanks, not commas"),
            (["simulate", "smoke", "--backend", "slurm"], "invalid choice 'slurm'"),
            (["simulate", "smoke", "--fit-iterations", "0"], "--fit-iterations must be at least 1"),
            (["theory", "smoke", "--exact.delta", "0"], "--exact.delta must be above 0 and below 1"),
            (["--completion", "tcsh"], "unknown shell 'tcsh'"),
            (["simulate", "smoke", "--tyro-print-completion", "tcsh"], "is required for completion"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, arguments, said, tmp_path, capsys):
        more = ["--output", str(tmp_path / "out")] if len(arguments) > 2 else []
        assert main([*arguments, *more]) == 2
        told = capsys.readouterr()
        assert said in told.err
        assert re.fullmatch(r"error: [^\n]*\n", told.err)
        assert "╭" not in told.err
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_programs_presets_and_options(shell, capsys):
    with pytest.raises(SystemExit) as stop:  # tyro's own way to end
        main(["--completion", shell])
    assert not stop.value.code
    script = capsys.readouterr().out
    for word in ("annotator", "held-out", "simulate", "labelled", "price", "quick", "replicates"):
        assert word in script


class TestStreams:
    def run(self, output: Path, **changes: str) -> list[str]:
        return [sys.executable, str(TOY), "smoke", "--jobs", "1", "--output", str(output)]

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
    def test_any_encoding_shows_what_it_can(self, encoding, tmp_path, monkeypatch):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert toy.main(["smoke", "--jobs", "1", "--output", str(tmp_path)]) == 0
        assert "the sum is 98" in stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]

    def test_no_standard_output_at_all(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "stdout", None)
        assert toy.main(["smoke", "--jobs", "1", "--output", str(tmp_path)]) == 0

    @pytest.mark.campaign
    def test_a_reader_that_went_away_loses_nothing(self, tmp_path):
        reader, writer = os.pipe()
        os.close(reader)
        environment = os.environ | {"PYTHONPATH": f"{TOY.parent}:{os.environ.get('PYTHONPATH', '')}"}
        shown = subprocess.run(self.run(tmp_path), stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
        os.close(writer)
        assert shown.returncode == 0
        assert "Traceback" not in shown.stderr
        assert "Exception ignored" not in shown.stderr
        assert list(tmp_path.glob("toy/*/index.html"))

    @pytest.mark.campaign
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_a_full_standard_output_is_one_line_after_the_results(self, tmp_path):
        environment = os.environ | {"PYTHONPATH": f"{TOY.parent}:{os.environ.get('PYTHONPATH', '')}"}
        with open("/dev/full", "w") as full:
            shown = subprocess.run(self.run(tmp_path), stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
        assert shown.returncode == 2
        last = shown.stderr.replace("\r", "\n").strip().split("\n")[-1]
        assert last == "error: cannot write to standard output: No space left on device"
        assert "Traceback" not in shown.stderr
        assert list(tmp_path.glob("toy/*/index.html"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["select", "--project", "a\0b"], "--project must be without a NUL, got 'a\\x00b'"),
        (["select", "--out=a\0b"], "--out must be without a NUL, got 'a\\x00b'"),
        (["train", "a\0b"], "no argument may hold a NUL, got 'a\\x00b'"),
        (["label", "q.jsonl", "--answers", "a\0b"], "--answers must be without a NUL"),
        (["map", "smoke", "--output", "a\0b"], "--output must be without a NUL"),
    ],
)
def test_a_nul_is_one_line(given, said, capsys):
    from activedpo.__main__ import main as activedpo

    assert activedpo(given) == 2
    error = capsys.readouterr().err
    assert error == f"error: {error[7:]}"
    assert said in error
    assert error.count("\n") == 1
