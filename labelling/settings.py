"""Owns what is fixed when a project begins: model, drawing, sketch, rule of choice, training.

The names, defaults and meanings are those of the language-model loop (``llm_loop.config``), so that a project's choice
is that of a cell of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro

from bandits.core.errors import InputError
from bandits.loop import Ridges
from bandits.runs.settings import Count, Ge, Le, Names, Positive, Seed, check
from bandits.selector import STRATEGIES
from llm_loop.config import Alignment, Sketch
from llm_loop.learner import Training
from llm_loop.models import Adapter
from llm_loop.sampling import Decoding

PROMPTS = 20
"""that are answered anew for a batch, where a pool of prompts alone has as many: the language-model loop's default"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a project is."""

    model: str = "smollm2-135m"
    """a fetched asset, a local directory (of a model or a PEFT adapter), a hub id, or a tiny random model"""
    strategy: Annotated[str, Names(STRATEGIES.__getitem__)] = "activedpo"
    """registered rule of choice; activedpo asks where the model's own gradient is least known, activedpo-normalised
    scales each response's gradient to length 1 first, random asks blindly"""
    seed: Seed = 0
    responses: Annotated[int, Ge(2), Le(10**6)] = 3
    """drawn per prompt, where the pool has prompts alone"""
    prompts_per_round: Annotated[int, Ge(0), Le(10**6)] = 0
    """answered anew for every batch, where the pool has prompts alone (0: 20, or all where there are fewer)"""
    prompt_tokens: Count = 256
    """longest prompt allowed"""
    response_tokens: Count = 512
    """longest response allowed, of those that the pool has"""
    chat: Literal["auto", "yes", "no"] = "auto"
    """texts are the user's message of a chat; auto: if the tokenizer has a template"""
    trust_remote_code: bool = False
    """run code that a model's folder brings"""
    adapter: Annotated[Adapter, tyro.conf.arg(name="")] = Alignment.adapter
    decoding: Annotated[Decoding, tyro.conf.arg(name="")] = Alignment.decoding
    training: Annotated[Training, tyro.conf.arg(name="")] = Training()
    ridge: Positive = 1.0
    """of V"""
    sketch: Annotated[Sketch, tyro.conf.arg(name="")] = field(default_factory=Sketch)
    feature_tokens: Count = 512
    """padded tokens in one pass for gradients"""
    score_tokens: Count = 1024
    """padded tokens in one pass for log-probabilities"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        check(self)
        self.sketch.suits(self.adapter)

    def prompts_of(self, there: int) -> int:
        """Return how many of the prompts that are there a batch has answered; refuse more than there are."""
        if self.prompts_per_round > there:
            raise InputError(
                f"--prompts-per-round {self.prompts_per_round}, but the pool has {there} prompts beside those that are "
                "held out to judge by; lower it, or leave it out"
            )
        return self.prompts_per_round or min(PROMPTS, there)

    @property
    def ridges(self) -> Ridges:
        """The ridges of V."""
        return Ridges.given(self.ridge)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Settings:
        """Return the settings that a manifest keeps; ``InputError`` for what are none."""
        default = cls()
        try:
            values = {
                name: replace(getattr(default, name), **_tuples(value)) if isinstance(value, dict) else value
                for name, value in kept.items()
            }
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise InputError(f"the project's settings are those of another version ({error})") from None


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
