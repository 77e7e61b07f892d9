"""Owns how a (prompt, response) is scored: reward models that ship, reward models from elsewhere, and lexical ones.

A scorer is the ground truth of the loop: it labels duels through an oracle, and evaluates.  Knows nothing of policies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bandits.core.errors import InputError
from llm_loop.folders import DTYPES
from llm_loop.models import batches
from llm_loop.rewards import models as reward_models


class Scorer(Protocol):
    """A deterministic reward ``r(x, y)``."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float[Tensor, " n"]:
        """Return one reward per pair, in float64 on the CPU."""


@dataclass(frozen=True)
class Lexical:
    """The share of the response's characters that are of a kind, from −2 (none) to 2 (all): needs no file.

    A real reward that training can raise, but says nothing of meaning; it serves runs that may fetch nothing.
    """

    name: str
    characters: frozenset[str]

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return ``4 · share − 2``; an empty response has none."""
        shares = [sum(c in self.characters for c in text) / max(1, len(text)) for text in responses]
        return 4 * torch.tensor(shares, dtype=torch.float64) - 2


LEXICAL = {
    "lexical-letters": frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ "),
    "lexical-vowels": frozenset("aeiouAEIOU"),
}


@dataclass(frozen=True)
class Shipped:
    """A reward model of this repository, applied to the response alone.

    With the prompt before it, a film plot's own sentiment would drown the response's: mean |Δ| is 0.56 then, not 0.81.
    """

    name: str
    model: reward_models.RewardModel

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Score the responses."""
        return self.model.score(responses).double()


@dataclass(frozen=True)
class Classifier:
    """A sequence-classification model with one output, as reward models are published: a logit per pair."""

    name: str
    model: Any
    tokenizer: Any
    batch_tokens: int = 4096

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Score pairs, encoded as the tokenizer encodes pairs."""
        encoded = [self.tokenizer(p, r, truncation=True) for p, r in zip(prompts, responses, strict=True)]
        out = torch.zeros(len(encoded), dtype=torch.float64)
        for places in batches([len(e["input_ids"]) for e in encoded], self.batch_tokens):
            padded = self.tokenizer.pad([encoded[place] for place in places], return_tensors="pt")
            out[places] = self.model(**padded.to(self.model.device)).logits[:, 0].double().cpu()
        return out


def load_scorer(name: str, device: str, dtype: str = "float32") -> Scorer:
    """Return a scorer: a lexical or shipped one by name, or a local directory or hub id of a one-output classifier."""
    if name in LEXICAL:
        return Lexical(name, LEXICAL[name])
    if name in (reward_models.LABELLER, reward_models.JUDGE):
        return Shipped(name, reward_models.load(name, device))
    for offline in (True, False):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=offline)
            model = AutoModelForSequenceClassification.from_pretrained(
                name, local_files_only=offline, dtype=DTYPES[dtype]
            )
            break
        except (OSError, ValueError, KeyError) as error:
            if not offline or Path(name).is_dir():
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
                known = ", ".join([reward_models.LABELLER, reward_models.JUDGE, *LEXICAL])
                raise InputError(
                    f"cannot load reward model {name!r}: {reason[:200]}; give {known}, a local directory or a hub id"
                ) from None
    if model.config.num_labels != 1:
        raise InputError(f"reward model {name!r} has {model.config.num_labels} outputs, not 1")
    return Classifier(name, model.eval().requires_grad_(False).to(device), tokenizer)


def checked(scorer: Scorer, prompts: Sequence[str], responses: Sequence[str]) -> Float[Tensor, " n"]:
    """Return rewards; one that is not a number is an ``InputError``."""
    rewards = scorer(prompts, responses)
    bad = [i for i, reward in enumerate(rewards.tolist()) if not math.isfinite(reward)]
    if bad:
        raise InputError(
            f"reward model {scorer.name} gave {float(rewards[bad[0]])} for {len(bad)} of {len(rewards)} responses, "
            f"first for {responses[bad[0]][:60]!r}"
        )
    return rewards
