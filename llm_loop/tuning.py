"""Owns the stage before preferences: a model tuned on people's answers by TRL's ``SFTTrainer``, as the paper starts.

LoRA on all layers is trained and then merged, so the tuned model is the reference of everything that follows.  What is
learned is a PEFT folder of the run, ``sft/adapter``, which ``--model`` takes too.  Knows nothing of duels and rewards.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import tyro
from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.runs.text import dumps, loads
from llm_loop import launch
from llm_loop.data.chat import Prompt
from llm_loop.learner import MOST
from llm_loop.models import Adapter, Policy, Row, trainer_settings
from llm_loop.seeding import seeded
from llm_loop.shared import Shared

FOLDER = "sft"
"""in a run's folder"""
ADAPTER, CONFIG, TOLD = "adapter_model.safetensors", "adapter_config.json", "tuning.json"
IGNORED = -100
"""the label of a token that is not learned"""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a model is tuned on people's answers before any preference is asked."""

    data: Annotated[str, tyro.conf.arg(name="sft")] = ""
    """prompt set or file whose answers, those held out aside, the model is first tuned on (SFT); empty: it is not"""
    examples: Annotated[int, tyro.conf.arg(name="sft-examples")] = 256
    """at most so many answers; 0: all there are"""
    epochs: Annotated[int, tyro.conf.arg(name="sft-epochs")] = 1
    rate: Annotated[float, tyro.conf.arg(name="sft-rate")] = 2e-4
    """learning rate of AdamW, linear to 0"""
    batch: Annotated[int, tyro.conf.arg(name="sft-batch")] = 8
    """answers per step"""

    def __post_init__(self) -> None:
        for option, count, least in (
            *(("--sft-examples", self.examples, 0), ("--sft-epochs", self.epochs, 1), ("--sft-batch", self.batch, 1)),
        ):
            if count < least:
                raise InputError(f"{option} must be at least {least}, got {count}")
            if count > MOST and option != "--sft-examples":
                raise InputError(f"{option} must be at most {MOST}, got {count}")
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise InputError(f"--sft-rate must be positive and finite, got {self.rate}")


@dataclass(frozen=True)
class Tuned:
    """How a tuning went: answers, steps, and nats a token of the answers in the first and the last quarter of it."""

    examples: int
    steps: int
    first_loss: float
    last_loss: float

    def summary(self, data: str) -> str:
        """Say it in a sentence."""
        return (
            f"First tuned on {self.examples} answers of {data} in {self.steps} steps: {self.first_loss:.2f} nats a "
            f"token in the first quarter of the steps, {self.last_loss:.2f} in the last"
        )


def examples(policy: Policy, found: Sequence[tuple[Prompt, str]], longest: int, tokens: int, count: int) -> list[Row]:
    """Return people's answers as token rows that end with an end token; those that do not fit are left out.

    Raises ``InputError`` if none is left.
    """
    rows = [Row(policy.tokens_of(prompt), policy.response_of(text)) for prompt, text in found]
    fit = [row for row in rows if row.prompt and len(row.prompt) <= longest and 1 < len(row.response) <= tokens]
    if not fit:
        raise InputError(
            f"--sft: of {len(found)} answered prompts none has a prompt within --prompt-tokens {longest} and an answer "
            f"within --tokens {tokens}; bring rows with prompt and completion, or raise these"
        )
    return fit[: count or None]


def tune(policy: Policy, rows: Sequence[Row], tuning: Tuning, key: Key) -> Tuned:
    """Train the policy's adapter on these answers: mean negative log-likelihood of their tokens, prompts ignored."""
    table = Dataset.from_list(
        [
            {"input_ids": list(row.prompt + row.response), "labels": [IGNORED] * len(row.prompt) + list(row.response)}
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as scratch, seeded(key):
        arguments = SFTConfig(
            output_dir=scratch,
            **trainer_settings(policy, key),
            learning_rate=tuning.rate,
            num_train_epochs=tuning.epochs,
            per_device_train_batch_size=tuning.batch,
            lr_scheduler_type="linear",
            packing=False,
        )
        trainer = SFTTrainer(model=policy.model, args=arguments, train_dataset=table, processing_class=policy.tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    policy.model.eval()
    part = -(-len(losses) // 4)
    return Tuned(len(rows), len(losses), sum(losses[:part]) / part, sum(losses[-part:]) / part)


def wide(adapter: Adapter) -> Adapter:
    """Return the adapter that is tuned and merged: all layers, its B at 0."""
    return replace(adapter, layers=0, init="b0")


def tuned(
    policy: Policy, rows: Sequence[Row], tuning: Tuning, adapter: Adapter, key: Key, kept: Shared, start: Key
) -> tuple[Policy, Tuned]:
    """Return the policy whose reference is the tuned model, with a fresh ``adapter``; and how the tuning went.

    ``policy`` has the adapter that is trained (``wide``), or merged as ``kept`` has it from another cell; it is spent.
    ``key`` is of the fresh adapter, ``start`` of the tuning, which all seeds share.
    """
    found = kept.files("adapter", (ADAPTER, CONFIG, TOLD), partial(_learned, policy, rows, tuning, start))
    set_peft_model_state_dict(policy.model, load(found[ADAPTER]))
    model = policy.model.merge_and_unload()
    told: dict[str, Any] = loads(found[TOLD].decode())
    return Policy(model, policy.tokenizer, adapter, key, str(policy.device), policy.chat), Tuned(**told)


def _learned(policy: Policy, rows: Sequence[Row], tuning: Tuning, key: Key) -> dict[str, bytes]:
    if launch.processes() > 1:
        raise InputError(
            "--sft is trained by one process: begin this run without a launcher, and go on with one once it has tuned"
        )
    told = tune(policy, rows, tuning, key)
    return policy.files() | {TOLD: dumps(told.__dict__).encode()}
