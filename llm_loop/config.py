"""Owns the experiments of the real loop: a config, its presets, and what a run leaves behind.

A cell is one strategy with one seed; cells of a seed share prompts, initial adapter, uniform numbers of responses and
labels, and held-out key.  What a run leaves in ``results/llm/<preset>-<hash of the config>/``:

- ``manifest.json``; ``timing.json`` (``{cell: {stage: seconds}}``), the one file, with the cells' own ``timing.json``,
  that differs between equal runs;
- ``cells/<strategy>--seed<k>/records/round-NN.json``: all that a round left (round 0: the initial model), written whole
  when the round is over, so that a killed run goes on after the last of them; the tables below are made from these;
- ``adapters/round-NN/``: θ after the round, a PEFT folder;
- ``rounds.jsonl``, ``candidates.jsonl``, ``evaluations.jsonl``, ``duels.jsonl``, ``samples.jsonl`` and
  ``preferences.jsonl`` (which TRL reads): ``llm_loop.tables`` has their columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bandits.core.errors import InputError
from bandits.core.oracles import BTL, Flipped, Noiseless, Oracle
from bandits.loop import Plan
from bandits.selector import STRATEGIES
from llm_loop.gradients import Kind
from llm_loop.learner import Training
from llm_loop.models import Adapter
from llm_loop.sampling import Decoding

PACKAGES = ("torch", "numpy", "scipy", "pandas", "transformers", "tokenizers", "peft", "trl", "accelerate", "datasets")


@dataclass(frozen=True)
class Alignment:
    """A preference-alignment experiment; together with the code's version it determines every byte of its results."""

    strategies: tuple[str, ...] = ("activedpo-normalised", "random")
    """rules of bandits.selector; random is the baseline of all comparisons"""
    seeds: int = 2
    """paired runs of every strategy"""
    seed: int = 0
    """of the first run's key"""
    rounds: int = 3
    batch: int = 16
    """duels labelled per round"""
    prompts_per_round: int = 20
    responses: int = 3
    """per prompt"""
    model: str = "smollm2-135m"
    """a fetched asset, a tiny random model, a local directory or a hub id"""
    rank: int = 16
    alpha: float = 32.0
    """LoRA's scale is alpha/rank"""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """modules that get an adapter"""
    prompts: str = "plots"
    """plots, news, tldr, webgpt, builtin, or a JSONL file with a field named prompt"""
    prompt_tokens: int = 64
    """longest prompt allowed"""
    tokens: int = 20
    """longest response"""
    sampling_temperature: float = 1.0
    reward: str = "sentiment-valence"
    """labels duels and evaluates: sentiment-valence, lexical-letters, or a classifier's directory or hub id"""
    judge: str = "tweet-judge"
    """evaluates only"""
    labels: Literal["btl", "argmax", "flip"] = "btl"
    """sampled by Bradley-Terry-Luce; always the better one; or sampled at temperature 1, then turned round at random"""
    label_temperature: float = 0.5
    """P(first wins) = σ(Δ / temperature)"""
    flip: float = 0.1
    """probability that an answer is turned round (labels flip)"""
    beta: float = 0.1
    """of DPO and of the implicit reward"""
    rate: float = 2e-3
    """learning rate of AdamW"""
    epochs: int = 3
    dpo_batch: int = 4
    """duels per step"""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """of the learning rate"""
    data: Literal["all", "new"] = "all"
    """refit to all answers from the reference, or go on with the round's new ones"""
    regularisation: float = 0.0
    """λ of (λ/2)‖θ - θ0‖² beside the sum of losses"""
    ridge: float = 1.0
    """of V; not known of the paper"""
    sketch: Kind = "shift"
    """of gradients: none (exact), shift (count-sketch by cyclic shifts), count, sjlt, rademacher, factored"""
    sketch_size: int = 8192
    heldout: int = 48
    """held-out prompts"""
    heldout_duels: int = 12
    """of the held-out prompts, how many also give a fixed duel"""
    probes: int = 4
    """fixed responses on which the drift of gradients is measured"""
    feature_tokens: int = 512
    """padded tokens in one pass for gradients"""
    score_tokens: int = 1024
    """padded tokens in one pass for log-probabilities"""
    sampling_rows: int = 128
    """responses drawn side by side"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            _ = STRATEGIES[strategy]  # raises InputError for an unknown one
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            raise InputError("name at least one strategy, and each once")
        for name in (
            "seeds",
            "rounds",
            "batch",
            "prompts_per_round",
            "heldout",
            "heldout_duels",
            "probes",
            "prompt_tokens",
            "sketch_size",
            "feature_tokens",
            "score_tokens",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.responses < 2:
            raise InputError(f"responses must be at least 2 to make a duel, got {self.responses}")
        duels = self.prompts_per_round * (self.responses * (self.responses - 1) // 2)
        if self.batch > duels:
            raise InputError(
                f"{self.batch} duels are to be labelled a round, but the pool has {duels}; lower the batch, or raise "
                "prompts_per_round or responses"
            )
        if self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")
        if not (self.ridge > 0 and math.isfinite(self.ridge)):
            raise InputError(f"ridge must be positive and finite, got {self.ridge}")
        if self.heldout_duels > self.heldout or self.probes > 2 * self.heldout_duels:
            raise InputError("heldout_duels may not exceed heldout, nor probes twice heldout_duels")
        _ = self.adapter, self.decoding, self.training, self.oracle  # each raises InputError for what cannot be

    @property
    def adapter(self) -> Adapter:
        """LoRA's settings."""
        return Adapter(self.rank, self.alpha, self.targets)

    @property
    def decoding(self) -> Decoding:
        """How responses are drawn."""
        return Decoding(self.tokens, self.sampling_temperature, self.sampling_rows)

    @property
    def training(self) -> Training:
        """DPO's settings."""
        return Training(
            self.beta, self.rate, self.epochs, self.dpo_batch, self.data, self.regularisation, self.schedule
        )

    @property
    def oracle(self) -> Oracle:
        """Who answers, given the rewards."""
        match self.labels:
            case "argmax":
                return Noiseless()
            case "flip":
                return Flipped(self.flip)
        return BTL(self.label_temperature)

    @property
    def plan(self) -> Plan:
        """The loop's plan; a Fisher-weighted design has κ in its weights, which are at most ¼, so λ is ridge/4."""
        return Plan(self.rounds, self.batch, self.ridge, self.ridge / 4)

    @property
    def cells(self) -> list[tuple[str, int]]:
        """All (strategy, seed) pairs, seed by seed."""
        return [(strategy, seed) for seed in range(self.seeds) for strategy in self.strategies]


PRESETS: dict[str, tuple[str, Alignment]] = {
    "smoke": (
        "a tiny random model and a lexical reward, a few seconds, for tests",
        Alignment(
            seeds=1,
            rounds=2,
            batch=3,
            prompts_per_round=4,
            model="tiny-llama",
            rank=4,
            alpha=8.0,
            prompts="builtin",
            tokens=8,
            reward="lexical-letters",
            judge="lexical-vowels",
            rate=1e-2,
            epochs=4,
            dpo_batch=4,
            sketch_size=512,
            heldout=6,
            heldout_duels=4,
            probes=4,
        ),
    ),
    "quick": ("SmolLM2-135M continues film plots: ActiveDPO and Random on the same key, 2 seeds", Alignment()),
    "study": (
        "SmolLM2-135M, all main strategies, 8 seeds, 10 rounds (hours)",
        Alignment(
            strategies=(
                "activedpo-normalised",
                "activedpo",
                "activedpo-normalised-duel",
                "activedpo-initial",
                "activedpo-stale",
                "activedpo-fisher",
                "activedpo-identity",
                "activedpo-top-b",
                "apo",
                "aplp",
                "apo-in-batch",
                "adpo",
                "label-entropy",
                "delta-ucb",
                "drts",
                "random",
            ),
            seeds=8,
            rounds=10,
            prompts_per_round=32,
            rate=1e-3,
            dpo_batch=8,
            heldout=128,
            heldout_duels=64,
            probes=16,
        ),
    ),
    "paper": (
        "the paper's sizes: Llama-2-7B (give --model a directory), TL;DR, LoRA rank 128, for a GPU",
        Alignment(
            strategies=("activedpo-normalised", "apo", "aplp", "random"),
            seeds=5,
            rounds=10,
            batch=50,
            prompts_per_round=1000,
            model="meta-llama/Llama-2-7b-hf",
            rank=128,
            alpha=512.0,
            prompts="tldr",
            prompt_tokens=1024,
            tokens=64,
            reward="OpenAssistant/reward-model-deberta-v3-large-v2",
            judge="sentiment-valence",
            label_temperature=1.0,
            rate=1e-4,
            epochs=4,
            dpo_batch=8,
            heldout=200,
            heldout_duels=100,
            probes=16,
            feature_tokens=8192,
            score_tokens=32768,
            sampling_rows=256,
            dtype="bfloat16",
            device="cuda",
        ),
    ),
}
