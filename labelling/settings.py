"""Owns what is fixed when a project begins: model, drawing, sketch, rule of choice, training.

The names, defaults and meanings are those of the language-model loop (``llm_loop.config``), so that a project's choice
is that of a cell of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from bandits.core.errors import InputError
from bandits.loop import Ridges
from bandits.runs.settings import Count, Ge, Le, Names, Positive, Seed, check
from bandits.selector import STRATEGIES
from labelling.project import COPY
from llm_loop.config import Alignment, Sketch
from llm_loop.learner import Training
from llm_loop.models import Adapter
from llm_loop.sampling import Decoding

PROMPTS = 20
"""that are answered anew for a batch, where a pool of prompts alone has as many: the language-model loop's default"""
LATER = ("settings.adapter.layers", "settings.adapter.init", "settings.training.ties")
"""that the first projects do not know; theirs are the values by which nothing changed"""


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
        """Return the settings that a manifest keeps; ``InputError``, naming the field, for what are none."""
        try:
            found: Settings = _made(cls, kept, "settings")
            return found
        except InputError as error:
            raise InputError(f"project.json: {error}; {COPY}") from None


def _made(kind: Any, kept: object, name: str) -> Any:
    """Return a dataclass of settings from its JSON value, called ``name``."""
    if not isinstance(kept, dict):
        raise InputError(f"its {name} must be named values, got {str(kept)[:40]!r}")
    hints, values = get_type_hints(kind), dict[str, Any]()
    strange = sorted(kept.keys() - hints.keys())
    if strange:
        raise InputError(f"its {name} have {strange[0]!r}, which this version does not know")
    for one in fields(kind):
        place = f"{name}.{one.name}"
        if one.name in kept:
            values[one.name] = _value(kept[one.name], hints[one.name], place)
        elif place not in LATER:
            raise InputError(f"it has no {place}")
    return kind(**values)


def _value(value: Any, hint: Any, name: str) -> Any:
    """Return a JSON value as its type has it."""
    if is_dataclass(hint):
        return _made(hint, value, name)
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(one, kinds[0], name) for one in value)
    allowed = kinds if origin in (Union, UnionType, Literal) else (hint,)
    if value not in allowed if origin is Literal else not any(_is(value, one) for one in allowed):
        said = " or ".join(str(getattr(one, "__name__", one)) for one in allowed)
        raise InputError(f"its {name} must be {said}, got {str(value)[:40]!r}")
    return value


def _is(value: object, kind: Any) -> bool:
    """Whether a JSON value is of a plain type; a whole number is a float, too, and true is neither."""
    return type(value) is kind or (kind is float and type(value) is int)
