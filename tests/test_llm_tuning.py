"""The stage before preferences: tuning on people's answers, merging, keeping it for all cells, refusals."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from kept import contents, only
from tiny_models import FEW, run_cell, smoke

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.data.chat import Message
from llm_loop.data.prompts import load
from llm_loop.data.rows import answer_of
from llm_loop.learner import DPOLearner
from llm_loop.models import Adapter, load_policy
from llm_loop.shared import Shared
from llm_loop.tuning import Tuning, examples, tune, tuned, wide

ADAPTER = Adapter(4, 8.0, ("q_proj", "v_proj"), layers=1)
TUNING = Tuning(data="some", rate=2e-2, batch=4, epochs=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty prompts, all answered alike."""
    file = tmp_path_factory.mktemp("data") / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {i}:", "completion": " ab"}) + "\n" for i in range(40)))
    return file


def untuned():
    return load_policy("tiny-llama", wide(ADAPTER), Key(3))


def rows_of(policy, data):
    return examples(policy, load(str(data), Key(0)).demonstrations, 64, 8, 0)


@pytest.mark.slow
def test_tuning_minimises_the_mean_negative_log_likelihood_of_answers_alone(data):
    policy = untuned()
    rows = rows_of(policy, data)
    assert all(row.response[-1] == policy.end and policy.decode(row.response) == " ab" for row in rows)
    before = float(-policy.log_probs(rows, "test").sum()) / sum(len(row.response) for row in rows)
    first = tune(policy, rows, replace(TUNING, batch=len(rows), epochs=1), Key(0))
    assert first.steps == 1
    assert first.first_loss == pytest.approx(before, rel=1e-3)  # one step of all rows, at the start
    told = tune(policy, rows, TUNING, Key(0))
    after = float(-policy.log_probs(rows, "test").sum()) / sum(len(row.response) for row in rows)
    assert told.steps == TUNING.epochs * math.ceil(len(rows) / TUNING.batch)
    assert after < told.last_loss + 0.2 < told.first_loss < before


@pytest.mark.slow
def test_the_tuned_model_is_the_reference_and_implicit_rewards_begin_at_0(data, tmp_path):
    trained = untuned()
    rows = rows_of(trained, data)
    tune(trained, rows, TUNING, Key(5))
    with trained.reference():
        base = trained.log_probs(rows, "test")
    want = trained.log_probs(rows, "test")
    policy, told = tuned(untuned(), rows, TUNING, ADAPTER, Key(1), Shared(tmp_path), Key(5))
    assert told.examples == len(rows)
    with policy.reference():
        reference = policy.log_probs(rows, "test")
    assert torch.allclose(reference, want, atol=1e-4)
    assert float((want - base).mean()) > 1
    assert torch.equal(policy.log_probs(rows, "test"), reference)
    assert len(policy.layers) == 2  # the fresh adapter's alone
    again, _ = tuned(untuned(), [], TUNING, ADAPTER, Key(1), Shared(tmp_path), Key(5))  # nothing is trained anew
    assert torch.equal(again.log_probs(rows, "test"), policy.log_probs(rows, "test"))
    assert DPOLearner(policy, None, None, Key(0)).at_start  # type: ignore[arg-type]


def test_answers_that_do_not_fit_are_left_out(data):
    policy = untuned()
    found = [("a b", " c"), ("a b", " " + 30 * "c"), ("a b" * 99, " c"), ((Message("user", "hello"),), "d")]
    rows = examples(policy, found, 64, 8, 0)
    assert [policy.decode(row.response) for row in rows] == [" c", "d"]
    assert examples(policy, found, 64, 8, 1) == rows[:1]
    with pytest.raises(InputError, match="none has a prompt within --prompt-tokens 2"):
        examples(policy, found, 2, 8, 0)


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "q", "completion": " a"}, "q", " a"),
        ({"prompt": "q", "completion": [MESSAGES[1]]}, (Message("user", "q"),), "a"),
        ({"prompt": "q", "chosen": "q a", "rejected": "q b"}, "q", " a"),
        ({"prompt": "q", "chosen": MESSAGES, "rejected": MESSAGES[:1]}, (Message("user", "q"),), "a"),
        ({"messages": MESSAGES}, (Message("user", "q"),), "a"),
        ({"instruction": "q", "output": "a"}, "q", "a"),
        ({"info": {"post": "p"}, "summaries": [{"text": "x"}, {"text": " y "}], "choice": 1}, "p", " y"),
        ({"question": "q", "answer_0": "x", "answer_1": "y", "score_0": -1.0, "score_1": 1.0}, "q", " y"),
        ({"prompt": "q"}, "q", ""),
        ({"messages": MESSAGES[:1]}, (Message("user", "q"),), ""),
        ({"prompt": "q", "completion": 3}, "q", ""),
    ],
)
def test_answers_of_rows(row, prompt, answer):
    assert answer_of(row, prompt) == answer


@pytest.mark.campaign
def test_a_run_tunes_once_for_all_cells_and_goes_on_with_the_same_bytes(data, tmp_path, capsys):
    alignment = replace(FEW, rounds=1, strategies=("random",), tuning=replace(TUNING, data=str(data), rate=1e-2))
    run = tmp_path / "one"
    cells = [run / "cells" / f"random--seed{seed}" for seed in (0, 1)]
    run_cell(alignment, "random", 0, cells[0])
    learned = run / "sft" / "adapter" / "adapter_model.safetensors"
    made = learned.stat().st_mtime_ns
    run_cell(alignment, "random", 1, cells[1])
    assert learned.stat().st_mtime_ns == made
    told = json.loads((cells[0] / "records" / "round-00.json").read_text())["tuned"]
    assert told.startswith("First tuned on 32 answers of")
    adapter = cells[0] / "adapters" / "round-01"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (adapter / base).resolve() == learned.parent.resolve()
    other = tmp_path / "two"
    shutil.copytree(run, other)
    (other / "cells" / "random--seed0" / "rounds.jsonl").unlink()
    (other / "cells" / "random--seed0" / "records" / "round-01.json").unlink()
    (other / "sft" / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    run_cell(alignment, "random", 0, other / "cells" / "random--seed0")
    assert "cut or altered" in capsys.readouterr().err
    assert contents(other) == contents(run)


@pytest.mark.campaign
def test_the_page_tells_of_tuning(data, tmp_path):
    options = ("--sft", str(data), "--seeds", "1", "--rounds", "1", "--strategies", "random")
    assert smoke(tmp_path, *options) == 0
    run = only(tmp_path)
    assert "First tuned on" in (run / "index.html").read_text()
    assert (run / "sft" / "adapter" / "adapter_config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sft", "builtin"), "--sft builtin: none of its prompts to learn from has an answer"),
        (("--sft", "no-such-set"), "no-such-set"),
        (("--sft-epochs", "0"), "--sft-epochs must be at least 1"),
        (("--sft-rate", "0"), "--sft-rate must be positive"),
    ],
)
def test_what_cannot_be_tuned_on_is_refused_in_one_line(options, words, tmp_path, capsys):
    assert smoke(tmp_path / "out", *options) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_tells_what_tuning_takes(data, tmp_path, capsys):
    assert smoke(tmp_path / "none", "--dry-run", "--sft", str(data)) == 0
    assert f"the model is tuned on {data} first: about" in capsys.readouterr().out
