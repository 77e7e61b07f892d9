"""The whole real loop through its command line, on tiny random models: bytes, resume, refusals, no network."""

import json
import math
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from gymnasium.utils.env_checker import check_env
from kept import contents, only
from safetensors.torch import load_file, save_file
from tiny_models import FEW, SMOKE, classifier, run_cell, smoke, tiny

import bandits.runs.files
import llm_loop.folders
from bandits.core.design import Design, GramDesign
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import Noiseless
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.selector import STRATEGIES
from llm_loop import launch, tables
from llm_loop.__main__ import main
from llm_loop.arena import Completions, GivenArena, Table, TextArena
from llm_loop.config import PRESETS, Alignment, Sketch
from llm_loop.data import pools
from llm_loop.data.chat import Message, text_of
from llm_loop.data.prompts import Entry
from llm_loop.data.prompts import load as load_prompts
from llm_loop.diagnostics import drift, reasons
from llm_loop.gym import TextEnv
from llm_loop.journal import Journal
from llm_loop.models import TINY, Row, byte_tokenizer, tiny_model
from llm_loop.rewards.scorers import checked, load_scorer
from llm_loop.run import AlignmentStudy, Cell
from llm_loop.sampling import Decoding
from llm_loop.setup import Parts, build

KINDS = ("activedpo-normalised", "aplp", "policy-trace-target")
"""strategies that read, between them, all that there is"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert smoke(folder) == 0
    return only(folder)


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """The folder of one finished cell."""
    folder = tmp_path_factory.mktemp("cell")
    run_cell(FEW, "random", 0, folder)
    return folder


@pytest.mark.slow
def test_bits_per_byte_are_those_of_what_people_wrote_of_all_held_out_prompts(cell):
    """Of the initial model, from all its logits, text by text; and of a prompt set that has instructions of its own."""

    def asking(dropped):
        return [Entry((Message("user", f"Go on: {n} é..."),), f"{n}", written=f"{n} é") for n in range(20)]

    setup = build(FEW, Parts.of(FEW), "random", 0)
    assert setup.heldout.written == setup.heldout.prompts
    texts = setup.heldout.written
    assert len(texts) == FEW.evaluation.prompts > FEW.evaluation.duels
    bits = 0.0
    for text in texts:
        row = setup.policy.as_response(text)
        with torch.no_grad():
            logits = setup.policy.model(input_ids=torch.tensor([row.prompt + row.response])).logits[0].double()
        logs = torch.log_softmax(logits, -1)[len(row.prompt) - 1 : -1]
        bits -= sum(float(at[token]) for at, token in zip(logs, row.response, strict=True)) / math.log(2)
    first = tables.frame(tables.Round, cell).set_index("round").loc[0]
    assert first["bits_per_byte"] == pytest.approx(bits / sum(len(text.encode()) for text in texts), rel=1e-5)
    parts = Parts.of(FEW)
    own = build(FEW, replace(parts, prompts={FEW.prompts: asking}), "random", 0)
    assert all(re.fullmatch(r"\d+ é", text) for text in own.heldout.written)


def test_a_run_leaves_what_it_promises(finished):
    cell = finished / "cells" / "activedpo-normalised--seed0"
    rounds, candidates, evaluations, duels, preferences = (
        tables.frame(kind, cell)
        for kind in (tables.Round, tables.Candidate, tables.Evaluation, tables.HeldoutDuel, tables.Preference)
    )
    assert rounds["round"].tolist() == [0, 1, 2]
    assert rounds["labels"].tolist() == [0, 3, 6]
    assert rounds["first_loss"][1:].tolist() == pytest.approx([math.log(2)] * 2, abs=1e-5)
    assert rounds["zero_A_gradient_share"][1:].tolist() == [1.0, 0.0]
    assert rounds["zero_margin_share"][1:].tolist() == [1.0, 0.0]
    assert (rounds[["tokens_generated", "tokens_features", "tokens_trained"]][1:] > 0).all(axis=None)
    # in round 1 the policy that draws is the reference: there is nothing to score
    assert rounds["tokens_scored"][1] == 0 < rounds["tokens_scored"][2]
    assert len(candidates) == 2 * 4 * 3
    picked = candidates.dropna(subset=["picked_position"])
    assert sorted(picked["picked_position"]) == [0, 0, 1, 1, 2, 2]
    assert (picked["label"].notna()).all()
    assert (picked["offered"]).all()
    # the picks' gains sum to the information that the rounds report
    gains = picked.groupby("round")["log_det_gain"].sum()
    assert rounds["information"][1] == pytest.approx(gains[1])
    assert len(evaluations) == 2 * SMOKE.evaluation.prompts + SMOKE.evaluation.between
    assert (evaluations.query("round == 0")["log_ratio"] == 0).all()
    assert (duels.query("round == 0")["margin"] == 0).all()
    assert len(preferences) == 6
    rewards = candidates.set_index(["round", "prompt", "response_1", "response_2"])
    assert len(rewards) == len(candidates)
    for number in range(3):
        assert load_file(cell / "adapters" / f"round-{number:02d}" / "adapter_model.safetensors")
    assert "timing.json" in {path.name for path in finished.iterdir()}
    assert (finished / "index.html").exists()


def test_both_strategies_begin_with_the_same_model_prompts_and_responses(finished):
    first = [
        tables.frame(tables.Candidate, finished / "cells" / f"{s}--seed0").query("round == 1") for s in SMOKE.strategies
    ]
    shared = ["prompt", "response_1", "response_2", "reward_1", "reward_2"]
    pd.testing.assert_frame_equal(first[0][shared], first[1][shared])
    assert first[0]["picked_position"].tolist() != first[1]["picked_position"].tolist()
    both = first[0][first[0]["label"].notna() & first[1]["label"].notna()]
    assert (first[0]["label"][both.index] == first[1]["label"][both.index]).all()


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(finished, capsys):
    before = contents(finished)
    assert smoke(finished.parent.parent) == 0
    assert "complete" in capsys.readouterr().out
    assert contents(finished) == before


@pytest.mark.campaign
def test_the_same_config_gives_the_same_bytes_and_another_seed_others(finished, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    assert smoke(tmp_path / "same") == 0
    assert contents(only(tmp_path / "same")) == contents(finished)
    assert smoke(tmp_path / "other", "--seed", "1") == 0
    name = "cells/random--seed0/candidates.jsonl"
    assert contents(only(tmp_path / "other"))[name] != contents(finished)[name]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1, 2])
def test_a_run_that_was_stopped_after_a_round_ends_in_the_same_bytes(finished, tmp_path, kept):
    part = tmp_path / "llm" / finished.name
    shutil.copytree(finished, part)
    for path in ("index.html", "findings.json", "figures", "ledger.json"):
        target = part / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    cell = part / "cells" / "activedpo-normalised--seed0"
    for name in ("rounds.jsonl", "candidates.jsonl", "samples.jsonl"):
        (cell / name).unlink()
    for number in range(kept, 3):
        (cell / "records" / f"round-{number:02d}.json").unlink()
    # θ of a round that did not get its record counts for nothing
    (cell / "adapters" / "round-02" / "adapter_model.safetensors").write_bytes(b"half")
    assert smoke(tmp_path) == 0
    assert contents(part) == contents(finished)


@pytest.mark.campaign
def test_a_killed_run_ends_in_the_same_bytes(finished, tmp_path):
    command = [sys.executable, "-m", "llm_loop", "smoke", "--output", str(tmp_path), "--jobs", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    record = tmp_path / "llm" / finished.name / "cells" / "activedpo-normalised--seed0" / "records" / "round-01.json"
    for _ in range(6000):
        if record.exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert record.exists()
    assert not (tmp_path / "llm" / finished.name / "index.html").exists()
    assert smoke(tmp_path) == 0
    assert contents(only(tmp_path)) == contents(finished)


@pytest.mark.campaign
def test_a_full_disk_leaves_the_last_round_intact(finished, tmp_path, monkeypatch, capsys):
    replaced = os.replace

    def full(source, target):
        if Path(target).name == "round-02.json":
            raise OSError(28, "No space left on device")
        replaced(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(bandits.runs.files.os, "replace", full)
        assert smoke(tmp_path) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "No space left on device; free space" in line
    cell = only(tmp_path) / "cells" / "activedpo-normalised--seed0"
    assert [path.name for path in sorted((cell / "records").iterdir())] == ["round-00.json", "round-01.json"]
    assert smoke(tmp_path) == 0
    assert contents(only(tmp_path)) == contents(finished)


@pytest.mark.slow
def test_a_run_of_another_config_is_refused(finished, tmp_path, capsys):
    part = tmp_path / "llm" / finished.name
    shutil.copytree(finished, part)
    (part / "index.html").unlink()
    manifest = json.loads((part / "manifest.json").read_text())
    manifest["config"]["beta"] = 0.7
    (part / "manifest.json").write_text(json.dumps(manifest))
    assert smoke(tmp_path) == 2
    assert "holds a run of another config" in capsys.readouterr().err


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "a digit changed": lambda content: re.sub(rb"\d(?=[^\d]*$)", lambda d: b"%d" % (9 - int(d[0])), content, count=1),
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "an object": lambda content: b"{}",
    "noise": lambda content: bytes(range(256)),
    "empty": lambda content: b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "file", ["records/round-00.json", "records/round-01.json", "adapters/round-01/adapter_config.json"]
)
def test_a_damaged_record_is_named_and_never_used(file, damage, tmp_path, cell, capfd):
    part = shutil.copytree(cell, tmp_path / "part")
    for table in part.glob("*.jsonl"):
        table.unlink()
    content = (part / file).read_bytes()
    (part / file).write_bytes(DAMAGE[damage](content))
    assert (part / file).read_bytes() != content
    number = int(re.search(r"round-(\d+)", file)[1])
    journal = Journal(part, FEW.rounds)
    assert len(journal.rounds) == number
    error = capfd.readouterr().err.strip()
    assert f"{file} is cut or altered" in error
    assert f"round {number} and what follows are played again" in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_damaged_cell_ends_in_the_same_bytes(tmp_path, cell, capfd):
    part = shutil.copytree(cell, tmp_path / "part")
    weights = part / "adapters" / "round-01" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    (part / "timing.json").write_text("[]")
    run_cell(FEW, "random", 0, part)
    assert "round-01/adapter_model.safetensors is cut or altered" in capfd.readouterr().err
    assert contents(part) == contents(cell)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "13"], "13 duels are to be labelled a round, but the pool has 12"),
        (["--responses", "1"], "--responses must be at least 2"),
        (["--strategies", "activdpo"], "unknown strategy 'activdpo'"),
        (["--targets", "c_attn"], "no modules named c_attn"),
        (["--device", "cuda"], "not available here"),
        (["--model", "no/such-model-here"], "cannot load model"),
        (["--reward", "no/such-model-here"], "cannot load reward model"),
        (["--prompts", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--prompt-tokens", "3"], "over the limit of 3"),
        (["--heldout", "5000"], "5000 held-out prompts asked for"),
        (["--prompts-per-round", "5000"], "5000 prompts a round asked for"),
        (["--rate", "inf"], "--rate must be positive and finite, got inf"),
        (["--ridge", "0"], "--ridge must be above 0"),
        (["--label-temperature", "0"], "--label-temperature must be above 0"),
        (["--labels", "noisless"], "unknown oracle 'noisless'"),
        (["--sampling-temperature", "inf"], "--sampling-temperature must be positive and finite"),
        (["--sketch", "factored", "--sketch-size", "511"], "divisible by LoRA's --rank 4"),
        (["--probes", "100"], "--probes"),
        (["--rate", "1e30"], "--rate must be at most 10"),
        (["--rank", "100000000000"], "--rank must be at most"),
        (["--alpha", "1e30"], "--alpha must be positive and at most"),
        (["--targets", "no-such-name"], "(--targets)"),
        (["--targets", "q_proj", "lm_head"], "lm_head is the output layer"),
        (["--pool", "nan"], "(--pool)"),
        (["--sft", "no-such-name"], "(--sft)"),
        (["--model", "a,b"], "(--model)"),
        (["--judge", "a,b"], "(--judge)"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert smoke(tmp_path / "results", *options) == 2
    error = [line for line in re.split("[\r\n]+", capsys.readouterr().err.strip()) if not line.startswith("cells: ")]
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert words in error[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.campaign
def test_a_number_in_place_of_a_default_that_is_none_is_no_damage_of_the_manifest(tmp_path, capsys):
    assert smoke(tmp_path, "--ties", "0.5", "--strategies", "random", "--rounds", "1") == 0, capsys.readouterr().err


def test_an_unknown_preset_is_refused(capsys):
    assert main(["smok"]) == 2
    assert "did you mean 'smoke'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.campaign) for name in sorted(STRATEGIES)]
)
def test_every_strategy_plays_and_resumes(name, tmp_path):
    alignment = replace(FEW, strategies=(name,))
    run_cell(alignment, name, 0, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "records", tmp_path / "part" / "records")
    shutil.copytree(tmp_path / "whole" / "adapters", tmp_path / "part" / "adapters")
    (tmp_path / "part" / "records" / "round-02.json").unlink()
    run_cell(alignment, name, 0, tmp_path / "part")
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    rounds = tables.frame(tables.Round, tmp_path / "whole")
    assert rounds["labels"].tolist() == [0, 3, 6]


OWN = """
import sys
from dataclasses import dataclass

import torch

from bandits.core.oracles import ORACLES, Oracle
from bandits.selector import STRATEGIES
from llm_loop.__main__ import main
from llm_loop.data.prompts import register
from llm_loop.rewards.scorers import SCORERS
from own_strategy import WideAndUnsure  # an example of the repository: a module of its own


@dataclass(frozen=True)
class Wider(WideAndUnsure):  # and one of the script itself
    summary = "picks wide <duels> & says so"


@dataclass(frozen=True)
class First(Oracle):
    def probability(self, margin, places, responses):
        return torch.ones_like(margin)


@dataclass(frozen=True)
class Long:
    name: str

    def __call__(self, prompts, responses):
        return torch.tensor([float(len(text)) for text in responses], dtype=torch.float64)


if __name__ == "__main__":
    STRATEGIES.register("wider", Wider())
    ORACLES.register("first", First())
    SCORERS.register("long", lambda device: Long("long"))
    register("riddles")(lambda dropped: [f"What has {n} legs and" for n in range(60)])
    own = ["--labels", "first", "--reward", "long", "--prompts", "riddles"]
    names = ["random", "wide-and-unsure", "wider"]
    sys.exit(main(["smoke", "--rounds", "1", *own, "--strategies", *names, *sys.argv[1:]]))
"""


@pytest.mark.campaign
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_strategy_an_oracle_a_scorer_and_prompts_of_ones_own_run_page_included(jobs, tmp_path):
    script = tmp_path / "own.py"
    script.write_text(OWN)
    root = Path(__file__).parent.parent
    path = os.pathsep.join([str(root), str(root / "examples")])
    command = [sys.executable, str(script), "--output", str(tmp_path / "results"), "--jobs", jobs]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    folder = only(tmp_path / "results")
    page = (folder / "index.html").read_text()
    assert "picks wide &lt;duels&gt; &amp; says so" in page
    assert "picks wide duels whose label the learner cannot foresee" in page
    assert "The oracle is <i>first</i>" in page
    candidates = tables.frame(tables.Candidate, folder / "cells" / "wider--seed0")
    assert (candidates["label"].dropna() == 1).all()
    assert candidates["prompt"].str.contains("legs").all()
    assert candidates["reward_1"].tolist() == [len(text) for text in candidates["response_1"]]


@pytest.mark.slow
def test_a_strategy_that_reads_no_gradients_computes_none_unless_asked(tmp_path):
    """Its round costs no pass for features, and its tables say null where there is nothing to tell."""
    run_cell(FEW, "random", 0, tmp_path / "blind")
    run_cell(replace(FEW, diagnostics=True), "random", 0, tmp_path / "watched")
    blind, watched = (tables.read(tables.Round, tmp_path / name)[1] for name in ("blind", "watched"))
    assert blind.tokens_features == 0 < watched.tokens_features
    assert blind.information is blind.gradient_drift is blind.zero_margin_share is None
    assert watched.information is not None
    assert watched.gradient_drift is not None
    one, other = (tables.read(tables.Candidate, tmp_path / name) for name in ("blind", "watched"))
    assert all(row.width is row.margin is row.nearest_picked_duel is None for row in one)
    assert all(row.width is not None and row.margin is not None for row in other)
    assert [row.picked_position for row in one] == [row.picked_position for row in other]


@pytest.mark.campaign
def test_true_margins_are_in_log_odds_at_the_labels_temperature(tmp_path):
    """Half the temperature, twice the margins, for the same rewards."""
    for temperature in (1.0, 0.5):
        run_cell(replace(FEW, label_temperature=temperature), "random", 0, tmp_path / str(temperature))
    whole, half = (tables.read(tables.HeldoutDuel, tmp_path / name) for name in ("1.0", "0.5"))
    assert [row.true_margin for row in half] == [2 * row.true_margin for row in whole]
    assert any(row.true_margin for row in whole)


def test_the_initial_model_answers_with_uniform_numbers_of_its_own(cell):
    """At a learning rate that moves nothing, the policy's answers would otherwise be the initial model's, all ties."""
    samples = tables.read(tables.Sample, cell)
    first, second = ([row.response for row in samples if row.round == number] for number in (0, 1))
    assert first != second


@pytest.mark.slow
def test_width_is_compared_with_the_error_of_margins_in_log_odds(finished):
    """From the table of candidates: ``|margin - Δ/temperature|`` over the duels on offer."""
    cell = finished / "cells" / "activedpo-normalised--seed0"
    rows = pd.DataFrame(map(vars, tables.read(tables.Candidate, cell)))
    for number, own in rows[rows["offered"]].groupby("round"):
        true = (own["reward_1"] - own["reward_2"]) / Alignment().label_temperature
        want = own["width"].astype(float).corr((own["margin"].astype(float) - true).abs(), method="spearman")
        found = tables.read(tables.Round, cell)[number].width_error_rank_correlation
        assert found == pytest.approx(want)


BRIEF = ("--rounds", "1", "--heldout", "2", "--heldout-duels", "1", "--heldout-between", "1", "--probes", "1")


def test_records_are_strict_json(finished):
    """Where there is no number there is null, which every reader takes."""
    strict(finished)


@pytest.mark.campaign
def test_records_of_a_rule_that_measures_elsewhere_are_strict_json(tmp_path):
    assert smoke(tmp_path, "--strategies", "random", "apo", *BRIEF) == 0
    strict(only(tmp_path))


@pytest.mark.campaign
@pytest.mark.parametrize("option", ["--model", "--reward"])
def test_weights_edited_in_place_are_another_run(option, tmp_path, capsys):
    """The folder's name and all its settings are as they were: one weight is half as large again."""
    given = tmp_path / "given"
    if option == "--reward":
        classifier(given, max_position_embeddings=512)
    else:
        tiny_model("tiny-llama", Key(0)).save_pretrained(given)
        byte_tokenizer().save_pretrained(given)
    command = ("--strategies", "random", option, str(given), *BRIEF)
    assert smoke(tmp_path / "out", *command) == 0
    before = contents(only(tmp_path / "out"))
    tensors = load_file(given / "model.safetensors")
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2)
    tensors[name][0, 0] *= 1.5
    save_file(tensors, given / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert smoke(tmp_path / "out", *command) == 2
    error = capsys.readouterr().err
    assert "choose another --output or start over with --force" in error
    assert error.count("\n") == 1
    assert contents(only(tmp_path / "out")) == before


def strict(folder):
    """Read every record of a run, as a reader does who knows no NaN."""

    def no_constant(token):
        raise AssertionError(token)

    records = list(folder.rglob("*.json")) + list(folder.rglob("*.jsonl"))
    assert len(records) > 5
    for path in records:
        for line in path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]:
            if line:
                json.loads(line, parse_constant=no_constant)


class TestLaunch:
    @pytest.mark.parametrize(
        "names", [{"RANK": "3"}, {"WORLD_SIZE": "8", "RANK": "7"}, {"RANK": "junk", "LOCAL_RANK": "junk"}]
    )
    def test_names_that_no_launcher_set_are_not_believed(self, names, finished, tmp_path, monkeypatch):
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        assert launch.processes() == 1
        assert launch.is_main()
        with launch.agreed():
            assert not set(names) & set(os.environ)
        assert {name: os.environ[name] for name in names} == names

    @pytest.mark.campaign
    def test_a_page_is_written_whatever_rank_the_environment_names(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("LOCAL_RANK", "x")
        assert smoke(tmp_path, "--strategies", "random", "--rounds", "1") == 0
        assert (only(tmp_path) / "index.html").exists()

    def test_junk_from_a_launcher_is_one_line(self, tmp_path, monkeypatch, capsys):
        for name in launch.NAMES:
            monkeypatch.setenv(name, "1")
        monkeypatch.setenv("WORLD_SIZE", "two")
        assert smoke(tmp_path / "results") == 2
        assert (
            capsys.readouterr().err.strip().endswith("WORLD_SIZE is 'two', which is no number of a process; unset it")
        )


@pytest.mark.slow
def test_what_libraries_are_told_is_taken_back(tmp_path):
    before = transformers.utils.logging.get_verbosity(), list(warnings.filters), torch.get_num_threads()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    AlignmentStudy.of(FEW).play(Cell("random", 0), tmp_path)
    assert (transformers.utils.logging.get_verbosity(), list(warnings.filters), torch.get_num_threads()) == before
    assert transformers.utils.logging.is_progress_bar_enabled() == bars


@pytest.mark.slow
@pytest.mark.parametrize("model", TINY)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "training": replace(FEW.training, data="new", regularisation=0.5),
            "sketch": Sketch(kind="none"),
            "labels": "noiseless",
        },
        {"dtype": "bfloat16"},
    ],
)
def test_two_rounds_on_each_architecture(model, settings, tmp_path):
    targets = ("c_attn", "c_proj") if model == "tiny-gpt2" else SMOKE.adapter.targets
    alignment = replace(FEW, model=model, adapter=replace(SMOKE.adapter, targets=targets), **settings)
    run_cell(alignment, "activedpo-normalised", 0, tmp_path)
    rounds = tables.frame(tables.Round, tmp_path)
    assert rounds["information"][1:].is_monotonic_increasing or settings
    assert (rounds["gradient_drift"][1:] > 0).all()


@pytest.mark.slow
def test_a_run_says_where_the_adapter_sits_in_a_model_without_the_default_modules(capsys):
    for model, told in (("tiny-gpt2", "LoRA is on PEFT's default: c_attn\n"), ("tiny-llama", "")):
        AlignmentStudy.of(replace(FEW, model=model)).prepare()
        error = capsys.readouterr().err
        assert error.endswith(told)
        assert error.count("\n") == bool(told)


def arena_of(prompts, **settings) -> TextArena:
    scorer = load_scorer("lexical-letters", "cpu")
    return TextArena(tiny("tiny-llama"), scorer, prompts, key=Key(0), decoding=Decoding(6), **settings)


class TestArena:
    def test_an_action_that_names_no_duel_is_refused(self):
        env = TextEnv(arena_of(["a", "b"]))
        env.reset(seed=np.int64(3))
        for action in ([0, 0, 3], [0, -1, 1], [2, 0, 1]):
            with pytest.raises(InputError, match="an action is"):
                env.step(action)

    @pytest.mark.slow
    def test_the_environment_is_one_that_gymnasium_accepts(self):
        check_env(TextEnv(arena_of(["a", "b", "c"])), skip_render_check=True)
        check_env(TextEnv(), skip_render_check=True)

    def test_a_step_answers_as_asking_the_batch_does(self):
        env = TextEnv(arena_of(["a", "b", "c"], prompts_per_round=3), batch=4)
        env.reset()
        arena = env.arena
        duels = Duels(torch.tensor([0, 5, 8]), torch.tensor([2, 3, 7]))
        won = arena.label(duels)
        steps = [
            env.step(np.array([i // 3, i % 3, j % 3]))[1]
            for i, j in zip(duels.first.tolist(), duels.second.tolist(), strict=True)
        ]
        assert won.tolist() == [bool(s) for s in steps]
        assert arena.label(Duels(duels.second, duels.first)).tolist() == [not w for w in won.tolist()]

    def test_rounds_go_through_all_prompts_before_any_comes_again(self):
        arena = arena_of([f"prompt {i}" for i in range(7)], prompts_per_round=3)
        order = [i for number in range(7) for i in arena.chosen_prompts(number)]
        assert all(sorted(order[7 * lap : 7 * lap + 7]) == list(range(7)) for lap in range(3))
        assert order[:7] != order[7:14]

    def test_a_repeated_response_is_offered_once(self):
        arena = arena_of(["a", "b"], oracle=Noiseless())
        rows = tuple(Row((1,), (k,)) for k in range(6))
        texts = ("same", "same", "other", "one", "two", "same")
        arena.tables[0] = Table(Completions(rows, 3, torch.zeros(6)), texts, torch.arange(6.0), (0, 1))
        offer = arena.offer(0)
        duels, kept = offer.duels, offer.available
        offered = set(zip(duels.first[kept].tolist(), duels.second[kept].tolist(), strict=True))
        assert offered == {(0, 2), (3, 4), (3, 5), (4, 5)}

    @pytest.mark.slow
    def test_too_few_distinct_responses_are_refused(self, tmp_path):
        alignment = replace(SMOKE, decoding=Decoding(tokens=8, temperature=1e-4))
        with pytest.raises(InputError, match="picks asked from a pool with 0 duels left"):
            run_cell(alignment, "random", 0, tmp_path)

    def test_kept_items_are_the_duels_own(self):
        rows = tuple(Row((i // 3,), (i,)) for i in range(9))
        items = Completions(rows, 3, torch.arange(9.0))
        kept, inside = items.keep(Duels(torch.tensor([4, 8]), torch.tensor([3, 6])))
        assert [row.response[0] for row in kept.rows] == [4, 3, 8, 6]
        assert inside.first.tolist() == [0, 2]
        assert inside.second.tolist() == [1, 3]
        joined = kept.join(kept)
        assert joined.prompts == 4
        assert joined.log_probs.tolist() == [4, 3, 8, 6] * 2


WRITTEN = ("aaaa", "bbb 12", "?!")


def brought(path, count=12, rows=("responses", "pair", "messages")):
    """Write a preference set: its prompts' responses in every form that the field has, three to a prompt."""
    lines = []
    for i in range(count):
        texts, form = [f"answer {i}, {word}" for word in WRITTEN], rows[i % len(rows)]
        said = [{"role": "assistant", "content": text} for text in texts]
        match form:
            case "responses":
                lines.append({"prompt": f"question {i}", "responses": texts})
            case "pair":
                lines.append({"prompt": f"question {i}", "chosen": texts[0], "rejected": texts[1]})
                lines.append({"prompt": f"question {i}", "chosen": texts[2], "rejected": texts[0]})
            case "messages":
                asked = [{"role": "user", "content": f"question {i}"}]
                lines.append({"prompt": asked, "chosen": [*asked, said[0]], "rejected": [*asked, said[1]]})
                lines.append({"prompt": asked, "responses": [said[2:3], said[1]]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


class TestBroughtPool:
    @pytest.mark.slow
    def test_a_preference_set_is_the_pool_of_all_strategies(self, tmp_path):
        alignment = replace(FEW, pool=brought(tmp_path / "ours.jsonl"))
        assert alignment.prompts == alignment.pool
        seen = []
        for strategy in ("random", "activedpo-normalised"):
            cell = tmp_path / strategy
            run_cell(alignment, strategy, 0, cell)
            asked = set()
            found = tables.read(tables.Candidate, cell)
            for row in found:
                number = text_of(row.prompt).split()[1]
                assert {row.response_1, row.response_2} < {f"answer {number}, {word}" for word in WRITTEN}
                reward = load_scorer("lexical-letters", "cpu")([""], [row.response_1])
                assert row.reward_1 == pytest.approx(float(reward))
                if row.picked_position is not None:
                    asked.add((number, *sorted((row.response_1, row.response_2))))
            assert len(asked) == 6  # no duel twice
            seen.append({text_of(row.prompt) for row in found})
            held = {text_of(row.prompt) for row in tables.read(tables.Sample, cell)}
            assert len(held) == 2
            assert not held & seen[-1]
        assert seen[0] == seen[1]
        part = shutil.copytree(cell, tmp_path / "part")
        for name in ("records/round-02.json", "rounds.jsonl"):
            (part / name).unlink()
        run_cell(alignment, strategy, 0, part)
        whole, again = contents(cell), contents(part)
        assert [name for name in whole if whole[name] != again.get(name)] == []

    def test_a_round_s_log_probabilities_are_the_initial_model_s(self):
        policy = tiny("tiny-llama")
        given = {f"question {i}": (f"one {i}", "two", "three") for i in range(4)}
        arena = GivenArena(
            policy, load_scorer("lexical-letters", "cpu"), list(given), key=Key(1), prompts_per_round=2, given=given
        )
        table = arena.draw(0)
        assert [row.response[-1] for row in table.items.rows] == [policy.end] * 6
        with policy.reference():
            want = policy.log_probs(list(table.items.rows), "test")
        assert torch.equal(table.items.log_probs, want)
        assert not torch.allclose(policy.log_probs(list(table.items.rows), "test"), want)
        assert table.texts == tuple(text for i in arena.chosen_prompts(0) for text in given[f"question {i}"])

    def test_which_responses_are_taken_is_drawn_and_the_same_for_all(self, tmp_path):
        texts = load_prompts(brought(tmp_path / "ours.jsonl", 40, ("pair",)), Key(0))
        pool = pools.read(tmp_path / "ours.jsonl")
        found, kept = pools.offered(pool, texts, 2, Key(0))
        again = pools.offered(pool, texts, 2, Key(0))[1]
        assert kept == again
        assert found.train == tuple(kept) == texts.train
        assert len({group.responses.index(kept[group.prompt][0]) for group in pool.groups if group.prompt in kept}) == 3
        assert all(len(set(two)) == 2 for two in kept.values())
        short = pools.offered(pool, texts, 2, Key(0), lambda text: "bbb" not in text)[1]
        assert all("bbb" not in text for two in short.values() for text in two)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("rows", "options", "words"),
        [
            (
                None,
                ("--responses", "4"),
                "none of 10 prompts to learn from has 4 responses; the most that one has are 3",
            ),
            ("".join(f'{{"prompt": "{i}"}}\n' for i in range(20)), (), "has prompts alone"),
            (
                "".join(f'{{"prompt": "{i}", "responses": ["x", {i}]}}\n' for i in range(20)),
                (),
                "line 1: its response 2 is",
            ),
            (None, ("--response-tokens", "9"), "a response has 1. tokens, over the limit of 9"),
            (None, ("--prompts", "plots"), "has prompts of its own; leave --prompts plots out"),
            (None, ("--prompts=builtin",), "has prompts of its own; leave --prompts builtin out"),
            (None, ("--prompts", "ours.jsonl.gz"), "has prompts of its own; leave --prompts ours.jsonl.gz out"),
            (None, ("--pool-temperature", "1"), "--pool-temperature is for a pool that is drawn"),
            (None, ("--rounds", "11"), "33 labels are to be bought, but the pool has 30 duels; lower --rounds or"),
            (None, ("--prompts-per-round", "11"), "11 prompts a round asked for, but the prompt set has 10"),
        ],
    )
    def test_what_is_no_pool_is_refused_in_one_line(self, rows, options, words, tmp_path, capsys):
        path = tmp_path / "ours.jsonl"
        brought(path)
        if rows:
            path.write_text(rows)
        assert (
            smoke(
                tmp_path / "out",
                "--pool",
                str(path),
                "--heldout",
                "2",
                "--heldout-duels",
                "1",
                "--probes",
                "2",
                "--heldout-between",
                "0",
                *options,
            )
            == 2
        )
        error = capsys.readouterr().err
        assert re.search(words, error), error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_bad_rows_and_long_responses_are_left_out_if_asked(self, tmp_path):
        path = tmp_path / "ours.jsonl"
        brought(path, 20, ("responses",))
        with path.open("a") as file:
            file.write('{"prompt": "bad", "responses": ["x", 3]}\n')
            file.write(json.dumps({"prompt": "long", "responses": ["x" * 600, "y", "z"]}) + "\n")
        alignment = replace(FEW, pool=str(path), skip_bad_rows=True)
        setup = build(alignment, Parts.of(alignment), "random", 0)
        assert "long" not in setup.arena.prompts
        assert "bad" not in setup.arena.prompts
        assert "with fewer than 3 responses" in setup.left_out

    @pytest.mark.slow
    def test_a_file_that_was_edited_since_the_run_began_is_refused(self, tmp_path):
        path = tmp_path / "ours.jsonl"
        brought(path, 20, ("responses",))
        study = AlignmentStudy.of(replace(FEW, pool=str(path)))
        study.identity()
        study = pickle.loads(pickle.dumps(study))  # as it gets to a worker
        path.write_text(path.read_text().replace("a", "b", 1))
        with pytest.raises(InputError, match=r"ours\.jsonl was edited since the run began"):
            study.play(Cell("random", 0), tmp_path / "cell")
        assert not (tmp_path / "cell").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a model with 2 layers and 512 positions, whose tokenizer has no chat template."""
    path = tmp_path_factory.mktemp("model")
    tiny_model("tiny-llama", Key(0)).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


class TestBeforeAModel:
    @pytest.fixture(autouse=True)
    def unread(self, monkeypatch):
        def load(*given, **more):
            raise AssertionError("a model was loaded")

        for name in ("AutoModelForCausalLM", "AutoModelForSequenceClassification"):
            monkeypatch.setattr(getattr(transformers, name), "from_pretrained", load)
            monkeypatch.setattr(getattr(transformers, name), "from_config", load)

    @pytest.mark.slow
    @pytest.mark.parametrize("dry", [(), ("--dry-run",)])
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--pool-temperature", "1.4"), "--pool-temperature is for a pool that is drawn; give --pool a number"),
            (("--lora-layers", "3"), "--lora-layers 3: the model has 2 layers; 0 means all"),
            (("--tokens", "512"), "--tokens 512: the model has 512 positions, for a prompt and its response; lower it"),
            (("--chat", "yes"), "the tokenizer has no chat template; use --chat no"),
            (("--reward", "lexical-leters"), "'lexical-leters': did you mean lexical-letters"),
            (("--judge", "nosuchthing"), "cannot load reward model 'nosuchthing'"),
        ],
    )
    def test_what_its_folder_or_the_options_tell_is_refused_before_it_is_read(
        self, options, words, dry, folder, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(llm_loop.folders, "snapshot_download", lambda *given, **more: 1 / 0)
        for model in ("tiny-llama", "tiny-gpt2", str(folder)):
            assert smoke(tmp_path / "out", "--model", model, *options, *dry) == 2
            error = capsys.readouterr().err
            assert words in error
            assert error.count("\n") == 1
            assert not (tmp_path / "out").exists()


class TestLongTexts:
    """A judge with 40 positions, and prompts of up to 34 bytes that are answered with up to 5 tokens."""

    @pytest.fixture
    def judge(self, tmp_path):
        return str(classifier(tmp_path / "judge", max_position_embeddings=40))

    @pytest.mark.slow
    def test_a_reward_model_that_cannot_read_the_prompts_is_refused_before_anything_is_written(
        self, judge, tmp_path, capsys
    ):
        for option in ("--judge", "--reward"):
            assert smoke(tmp_path / "out", option, judge) == 2
            error = capsys.readouterr().err
            assert re.search(
                r"reads 40 tokens; a prompt leaves \d of them to a response, which .* --long-texts cut", error
            )
            assert error.count("\n") == 1
            assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_what_ships_is_refused_as_early_where_responses_may_be_longer_than_it_reads(self, tmp_path, capsys):
        for option in ("--judge", "--reward"):
            assert smoke(tmp_path / "out", option, "sentiment-valence", "--tokens", "63") == 2
            error = capsys.readouterr().err
            assert "sentiment-valence reads 64 tokens; a prompt leaves 62 of them to a response, which has" in error
            assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_what_a_judge_reads_in_part_is_counted_and_told(self, judge, tmp_path):
        run_cell(replace(FEW, judge=judge, long_texts="cut"), "random", 0, tmp_path / "cell")
        rounds = tables.read(tables.Round, tmp_path / "cell")
        assert [row.heldout_cut for row in rounds] == [0, 0, 0]
        assert [row.pool_cut for row in rounds] == [None, 0, 0]
        scorer = load_scorer(judge, "cpu", long_texts="cut")
        for row in rounds:
            answers = [sample for sample in tables.read(tables.Sample, tmp_path / "cell") if sample.round == row.round]
            lengths = scorer.lengths([sample.prompt for sample in answers], [sample.response for sample in answers])
            assert row.judge_cut == sum(length > 40 for length in lengths)
        assert any(row.judge_cut for row in rounds)


class TestReasons:
    def test_against_an_explicit_matrix(self):
        past, rows, ridge = Key(0).normal(5, 12), Key(1).normal(9, 12), 0.7
        design = GramDesign(ridge)
        design.append(Dense(past))
        picks = torch.tensor([6, 2, 4])
        got = reasons(design.condition(Dense(rows)), picks)
        V = ridge * torch.eye(12, dtype=torch.float64) + past.T @ past
        inverse = torch.linalg.inv(V)
        for i in range(9):
            if i not in picks.tolist():
                assert float(got.gain[i]) == pytest.approx(math.log1p(float(rows[i] @ inverse @ rows[i])))
            cosines = {
                int(p): abs(float(rows[i] @ inverse @ rows[p]))
                / math.sqrt(float(rows[i] @ inverse @ rows[i]) * float(rows[p] @ inverse @ rows[p]))
                for p in picks
                if int(p) != i
            }
            assert int(got.nearest[i]) == max(cosines, key=lambda p: cosines[p])
            assert float(got.cosine[i]) == pytest.approx(max(cosines.values()))
        for p in picks:
            after = V + torch.outer(rows[p], rows[p])
            assert float(got.gain[p]) == pytest.approx(float(torch.logdet(after) - torch.logdet(V)))
            V = after

    @pytest.mark.parametrize("metric", ["diagonal", "identity"])
    def test_the_strategys_own_metric_counts(self, metric):
        """With V's diagonal, gains are those of its product; with no V, a pick takes nothing from the next."""
        rows = torch.stack([torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2.0, 0.0, 1.0])]).double()
        seen = Design.of(Dense(rows), 0.5, metric).condition(Dense(rows))
        got = reasons(seen, torch.tensor([0, 1]))
        first = math.log1p(4 / 0.5) + math.log1p(1 / 0.5) if metric == "diagonal" else math.log1p(5 / 0.5)
        both = math.log1p(8 / 0.5) + math.log1p(2 / 0.5) if metric == "diagonal" else 2 * first
        assert got.gain.tolist() == pytest.approx([first, both - first])

    def test_a_zero_feature_is_like_nothing(self):
        rows = Key(1).normal(4, 6)
        rows[3] = 0
        got = reasons(GramDesign(1.0).condition(Dense(rows)), torch.tensor([0, 1]))
        assert float(got.gain[3]) == 0
        assert float(got.cosine[3]) == 0

    def test_drift(self):
        a = Key(0).normal(5, 3)
        assert drift(a, a) == 0
        assert drift(1.5 * a, a) == pytest.approx(0.5)


class TestScorers:
    def test_lexical_rewards_are_shares(self):
        scorer = load_scorer("lexical-letters", "cpu")
        assert scorer(["", "", ""], ["abc ", "12", ""]).tolist() == [2, -2, -2]

    def test_a_reward_that_is_no_number_is_refused(self):
        class Broken:
            name = "broken"

            def __call__(self, prompts, responses):
                return torch.tensor([0.0, float("nan")])

        with pytest.raises(InputError, match="reward model broken gave nan for 1 of 2 responses, first for 'two'"):
            checked(Broken(), ["", ""], ["one", "two"])

    def test_a_classifier_of_a_directory_scores_pairs_alone_as_in_company(self, tmp_path):
        from transformers import BertConfig, BertForSequenceClassification

        from llm_loop.models import byte_tokenizer
        from llm_loop.seeding import seeded

        with seeded(Key(0)):
            model = BertForSequenceClassification(
                BertConfig(
                    vocab_size=257,
                    hidden_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=16,
                    num_labels=1,
                    max_position_embeddings=64,
                )
            )
        model.save_pretrained(tmp_path)
        byte_tokenizer().save_pretrained(tmp_path)
        scorer = load_scorer(str(tmp_path), "cpu")
        prompts, responses = ["one", "a longer prompt", "x"], ["two", "y", "three, four, five"]
        alone = [float(scorer([p], [r])[0]) for p, r in zip(prompts, responses, strict=True)]
        assert scorer(prompts, responses).tolist() == pytest.approx(alone, abs=1e-5)
        assert len(set(alone)) == 3


class TestAlignment:
    def test_every_preset_can_be(self):
        assert all(isinstance(alignment, Alignment) for _, alignment in PRESETS.values())
        assert PRESETS["quick"][1].seeds >= 2
        assert PRESETS["study"][1].seeds >= 5

    def test_cells_of_two_seeds_come_together(self):
        cells = [(cell.strategy, cell.seed) for cell in AlignmentStudy.of(Alignment(seeds=3)).cells()]
        rules = ("activedpo-normalised", "random")
        assert cells == [(rule, seed) for seeds in ((0, 1), (2,)) for rule in rules for seed in seeds]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chat", "prompts", "want"),
    [("auto", "builtin", False), ("auto", "file", True), ("no", "file", False), ("yes", "builtin", True)],
)
def test_texts_of_a_file_are_messages_to_a_chat_model_and_openings_are_not(chat, prompts, want, tmp_path):
    from llm_loop.models import byte_tokenizer, tiny_model

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    tiny_model("tiny-llama", Key(0)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    if prompts == "file":
        prompts = str(tmp_path / "prompts.jsonl")
        Path(prompts).write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(60)))
    alignment = replace(SMOKE, model=str(tmp_path / "model"), prompts=prompts, chat=chat, prompt_tokens=128)
    setup = build(alignment, Parts.of(alignment), "random", 0)
    read = [setup.policy.tokenizer.decode(ids) for ids in setup.arena.encoded]
    assert all(text.startswith("[user]") and text.endswith("[assistant]") for text in read) == want
