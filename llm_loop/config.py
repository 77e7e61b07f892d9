"""Owns the config of the real loop's experiments and its presets.

A cell is one strategy with one seed; cells of a seed share prompts, initial adapter, uniform numbers of responses and
labels, and the held-out set's key.  Every setting is declared once, with one default: LoRA's in ``Adapter``, decoding's
in ``Decoding``, DPO's in ``Training``; on the command line they stand side by side, without a prefix.

What a run leaves in ``results/llm/<preset>-<hash of the config>/``:

- ``manifest.json``; ``timing.json`` (``{cell: {stage: seconds}}``), the one file, with the cells' own ``timing.json``,
  that differs between equal runs;
- ``cells/<strategy>--seed<k>/``: ``records`` and ``adapters`` of the rounds (``llm_loop.journal``), and the tables made
  from them, ``rounds.jsonl``, ``candidates.jsonl``, ``evaluations.jsonl``, ``duels.jsonl``, ``samples.jsonl`` and
  ``preferences.jsonl`` (which TRL reads): ``llm_loop.tables`` has their columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from bandits.core.errors import InputError
from bandits.core.oracles import ORACLES
from bandits.core.sketches import Kind
from bandits.loop import Ridges, Schedule
from bandits.runs.settings import Count, Distinct, Ge, Le, MinLen, Names, Positive, Seed, check
from bandits.selector import STRATEGIES
from llm_loop.data.prompts import SOURCES
from llm_loop.learner import Training
from llm_loop.models import Adapter
from llm_loop.rewards.scorers import LongTexts
from llm_loop.sampling import Decoding
from llm_loop.tuning import Tuning

LIBRARIES = ("torch", "numpy", "scipy", "pandas", "transformers", "tokenizers", "peft", "trl", "accelerate", "datasets")


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """How gradients are projected."""

    kind: Annotated[Kind, tyro.conf.arg(name="sketch")] = "shift"
    """of gradients: none (exact), shift (count-sketch by cyclic shifts), count, sjlt, rademacher, factored"""
    size: Annotated[int, tyro.conf.arg(name="sketch-size")] = 8192
    """coordinates that are left"""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"--sketch-size must be at least 1, got {self.size}")

    def suits(self, adapter: Adapter) -> None:
        """Raise ``InputError`` if gradients of this adapter cannot be projected so."""
        if self.kind == "factored" and self.size % adapter.rank:
            raise InputError(
                f"a factored sketch needs a --sketch-size divisible by LoRA's --rank {adapter.rank}, got {self.size}"
            )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured after every round, on prompts that nothing learns from."""

    prompts: Annotated[int, tyro.conf.arg(name="heldout")] = 48
    """held-out prompts"""
    between: Annotated[int, tyro.conf.arg(name="heldout-between")] = 0
    """held-out prompts that are answered after the rounds between the first and the last; 0: all"""
    duels: Annotated[int, tyro.conf.arg(name="heldout-duels")] = 12
    """of the held-out prompts, how many also give a fixed duel"""
    probes: int = 4
    """fixed responses on which the drift of gradients is measured"""

    def __post_init__(self) -> None:
        for option, value in (("--heldout", self.prompts), ("--heldout-duels", self.duels), ("--probes", self.probes)):
            if value < 1:
                raise InputError(f"{option} must be at least 1, got {value}")
        if not 0 <= self.between <= self.prompts:
            raise InputError(f"--heldout-between must be from 0 to --heldout, got {self.between}")
        if self.duels > self.prompts or self.probes > 2 * self.duels:
            raise InputError("--heldout-duels may not exceed --heldout, nor --probes twice --heldout-duels")


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """A preference-alignment experiment; together with the code's version it determines every byte of its results."""

    strategies: Annotated[tuple[str, ...], MinLen(1), Distinct(), Names(STRATEGIES.__getitem__)] = (
        "activedpo-normalised",
        "random",
    )
    """registered rules of choice; random is the baseline of all comparisons"""
    seeds: Count = 8
    """paired runs of every strategy"""
    seed: Seed = 0
    """of the first run's key"""
    rounds: Count = 3
    batch: Count = 16
    """duels labelled per round"""
    prompts_per_round: Count = 20
    responses: Annotated[int, Ge(2), Le(10**6)] = 3
    """per prompt"""
    pool: Annotated[int, Ge(0), Le(10**6)] | str = 0
    """0: every round has new responses of the current policy; a number: of so many prompts, drawn once, from the
    initial model, for all rounds, strategies and seeds; a file: responses of its own (prompt and responses, or chosen
    and rejected), and its prompts in place of --prompts"""
    pool_temperature: Annotated[float, Ge(0)] = 0.0
    """of a pool, at which half of each model's responses are drawn; 0: all at --sampling-temperature"""
    pool_models: Annotated[tuple[str, ...], Distinct()] = ()
    """of a pool that is drawn: models that draw equal shares of every prompt's responses beside the initial one, which
    draws the rest; named as --model is"""
    model: str = "smollm2-135m"
    """a fetched asset, a tiny random model, a local directory or a hub id"""
    chat: Literal["auto", "yes", "no"] = "auto"
    """texts are the user's message of a chat; auto: of a file, if the tokenizer has a template (named sets go on)"""
    trust_remote_code: bool = False
    """run code that a model's folder brings"""
    adapter: Annotated[Adapter, tyro.conf.arg(name="")] = Adapter(layers=4)
    tuning: Annotated[Tuning, tyro.conf.arg(name="")] = Tuning()
    prompts: str = "films"
    """films, headlines and articles (chat), both (films and headlines), redundant (nine in ten alike), plots and news
    (openings), tldr, webgpt, builtin, or a file or folder of JSON lines, JSON or Parquet"""
    skip_bad_rows: bool = False
    """drop and count rows of a prompt file that cannot be used or are too long, instead of stopping at the first"""
    prompt_tokens: Count = 160
    """longest prompt allowed"""
    response_tokens: Count = 512
    """longest response allowed, of those that a pool's file has"""
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = Decoding(tokens=28)
    reward: str = "sentiment-valence"
    """labels duels and evaluates: sentiment-valence, similarity (to what the user wrote), lexical-letters, or a
    classifier's directory or hub id"""
    judge: str = "tweet-judge"
    """evaluates only: tweet-judge, word-overlap (with what the user wrote), or any reward"""
    long_texts: LongTexts = "refuse"
    """of a text that is longer than a reward model or judge reads: refuse it, or cut, which scores its beginning and is
    counted"""
    labels: Annotated[str, Names(ORACLES.__getitem__)] = "btl"
    """registered oracle that labels duels: btl, noiseless, flipped-20%, probit, ..."""
    label_temperature: Positive = 0.5
    """divides the rewards, so that their differences are the oracle's log-odds: P(first wins) = σ(Δ / temperature)"""
    training: Annotated[Training, tyro.conf.arg(name="")] = Training()
    ridge: Positive = 1.0
    """of V; not known of the paper"""
    sketch: Annotated[Sketch, tyro.conf.arg(name="")] = Sketch()
    evaluation: Annotated[Evaluation, tyro.conf.arg(name="")] = Evaluation(prompts=48, between=24)
    diagnostics: bool = False
    """compute widths and margins for strategies that read none too, so that the page can tell what they would be"""
    feature_tokens: Count = 512
    """padded tokens in one pass for gradients"""
    score_tokens: Count = 1024
    """padded tokens in one pass for log-probabilities"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        check(self)
        duels = self.prompts_per_round * (self.responses * (self.responses - 1) // 2)
        if self.batch > duels:
            raise InputError(
                f"{self.batch} duels are to be labelled a round, but the pool has {duels}; lower --batch, or raise "
                "--prompts-per-round or --responses"
            )
        if isinstance(self.pool, str):
            self._bring(self.pool)
        elif not self.pool and self.pool_temperature:
            raise InputError("--pool-temperature is for a pool that is drawn; give --pool a number of prompts")
        elif self.pool:
            if self.prompts_per_round > self.pool:
                raise InputError(f"--prompts-per-round {self.prompts_per_round} exceeds --pool {self.pool}")
            self.check_pool(self.pool)
        if self.pool_models:
            self._check_authors()
        self.sketch.suits(self.adapter)

    def _bring(self, file: str) -> None:
        """Take the prompts from the pool's file, which has them."""
        if not file:
            raise InputError("--pool is empty; give a number of prompts or a file")
        if self.prompts != file and self.prompts not in SOURCES:
            raise InputError(f"--pool {file} has prompts of its own; leave --prompts {self.prompts} out")
        for option, given in (("--pool-temperature", self.pool_temperature), ("--pool-models", self.pool_models)):
            if given:
                raise InputError(f"{option} is for a pool that is drawn, and a file's responses are there")
        object.__setattr__(self, "prompts", file)  # frozen: nobody has seen it yet

    def _check_authors(self) -> None:
        """Raise ``InputError`` if a model cannot have its share of a pool."""
        models = 1 + len(self.pool_models)
        if not self.pool:
            raise InputError("--pool-models is for a pool that is drawn; give --pool a number of prompts")
        if self.model in self.pool_models:
            raise InputError(f"--pool-models names {self.model}, the --model, which draws its share anyway")
        least = 2 * models if self.pool_temperature else models
        if self.responses < least:
            halves = ", half of them at --pool-temperature" if self.pool_temperature else ""
            raise InputError(
                f"--responses {self.responses} cannot be shared by {models} models{halves}; raise it to {least} or "
                "more, or name fewer --pool-models"
            )

    def check_pool(self, prompts: int) -> None:
        """Raise ``InputError`` if a pool of so many prompts has fewer duels than labels are to be bought."""
        labels, most = self.rounds * self.batch, prompts * (self.responses * (self.responses - 1) // 2)
        if labels > most:
            raise InputError(
                f"{labels} labels are to be bought, but the pool has {most} duels; "
                + ("raise --pool" if isinstance(self.pool, int) else "lower --rounds or --batch, or bring a larger one")
            )

    def memory(self) -> dict[str, float]:
        """Estimate a cell's bytes beside the model's own, by the options that they grow with."""
        k = self.responses
        rows = self.prompts_per_round * (k + k * (k - 1)) + 2 * self.rounds * self.batch
        words, width = 50_000, 4096  # of a common vocabulary, and a large model's hidden size
        longest = self.prompt_tokens + self.decoding.tokens
        return {
            "--rounds, --prompts-per-round, --responses and --sketch-size": 8.0 * rows * self.sketch.size,
            "--score-tokens and --feature-tokens": 8.0 * words * max(self.score_tokens, self.feature_tokens),
            "--sampling-rows, --prompt-tokens and --tokens": 16.0 * self.decoding.rows * longest * width,
            "--heldout and --tokens": (8.0 + 4.0 * width) * self.evaluation.prompts * longest,
        }

    @property
    def schedule(self) -> Schedule:
        """How long the loop runs."""
        return Schedule(self.rounds, self.batch)

    @property
    def ridges(self) -> Ridges:
        """The ridges of V."""
        return Ridges.given(self.ridge)


PRESETS: dict[str, tuple[str, Alignment]] = {
    "smoke": (
        "a tiny random model and a lexical reward, a few seconds, for tests",
        Alignment(
            seeds=1,
            rounds=2,
            batch=3,
            prompts_per_round=4,
            model="tiny-llama",
            adapter=Adapter(rank=4, alpha=8.0, layers=1),
            prompts="builtin",
            prompt_tokens=64,
            decoding=Decoding(tokens=8),
            reward="lexical-letters",
            judge="lexical-vowels",
            training=Training(rate=1e-2, epochs=4),
            sketch=Sketch(size=512),
            evaluation=Evaluation(prompts=6, between=4, duels=4),
        ),
    ),
    "quick": ("SmolLM2-135M answers on films: ActiveDPO and Random, 8 paired seeds", Alignment()),
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
            training=Training(batch=8),
            evaluation=Evaluation(prompts=128, duels=64, probes=16),
        ),
    ),
    "paper": (
        "the paper's sizes: Llama-2-7B (give --model a directory), tuned on TL;DR first, LoRA rank 128, for a GPU",
        Alignment(
            strategies=("activedpo-normalised", "apo", "aplp", "random"),
            seeds=5,
            rounds=10,
            batch=50,
            prompts_per_round=1000,
            model="meta-llama/Llama-2-7b-hf",
            adapter=Adapter(rank=128, alpha=512.0),
            tuning=Tuning(data="tldr", examples=0, rate=2e-5),
            prompts="tldr",
            prompt_tokens=1024,
            decoding=Decoding(tokens=64, rows=256),
            reward="OpenAssistant/reward-model-deberta-v3-large-v2",
            judge="word-overlap",
            label_temperature=1.0,
            training=Training(rate=1e-4, epochs=4, batch=8),
            evaluation=Evaluation(prompts=200, duels=100, probes=16),
            feature_tokens=8192,
            score_tokens=32768,
            dtype="bfloat16",
            device="cuda",
        ),
    ),
}
