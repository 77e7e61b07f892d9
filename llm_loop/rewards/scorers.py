"""Owns how a (prompt, response) is scored: reward models that ship, reward models from elsewhere, and lexical ones.

A scorer is the ground truth of the loop: it labels duels through an oracle, and evaluates.  One of a user's own is
registered (``SCORERS``) or named by where it is: ``--reward module:attribute``.  Knows nothing of policies.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from bandits.core.errors import InputError
from bandits.core.given import alike
from bandits.core.own import is_own
from bandits.core.registry import Registry, fingerprint
from bandits.runs.text import lines
from llm_loop import folders
from llm_loop.data.chat import Message, Prompt, asked, text_of
from llm_loop.models import batches, context_of
from llm_loop.rewards import models as reward_models
from llm_loop.templates import conversation


class Scorer(Protocol):
    """A deterministic reward ``r(x, y)``."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " n"]:
        """Return one reward per pair, in float64 on the CPU."""


@runtime_checkable
class Limited(Scorer, Protocol):
    """A scorer that reads the beginning only of a text that is longer than its limit."""

    @property
    def limit(self) -> int | None:
        """Tokens of a text that are read; None: all."""

    def lengths(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[int]:
        """Return how many tokens each pair has; of texts that are read apart, the longer one."""

    def room(self, prompt: Prompt) -> int:
        """Return how many tokens a prompt leaves to a response, where there is a limit; below 0 if itself too long."""


LongTexts = Literal["refuse", "cut"]
"""What is done with a text that is longer than a reward model reads: refuse it, or score its beginning."""


@dataclass(frozen=True)
class Lexical:
    """The share of the response's characters that are of a kind, from −2 (none) to 2 (all): needs no file.

    A real reward that training can raise, but says nothing of meaning; it serves runs that may fetch nothing.
    """

    name: str
    characters: frozenset[str]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
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

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Score the responses."""
        return self.model.score(responses).double()

    @property
    def limit(self) -> int:
        """As many as of the texts that it was trained on."""
        return reward_models.LONGEST

    def lengths(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[int]:
        """Return the responses' tokens."""
        return self.model.encoder.lengths(responses)

    def room(self, prompt: Prompt) -> int:
        """Return what any prompt leaves."""
        return self.limit - reward_models.SPECIAL


READ = 256
"""Tokens of a text of which ``similarity`` takes the embedding: as many as MiniLM was made for."""


@dataclass(frozen=True)
class Similarity:
    """How near a response is in meaning to what the user wrote, as a summary or a headline should be.

    ``4 cos`` of MiniLM's sentence embeddings, so from −4 to 4 as the valence.  A copy of the user's words scores 4, and
    of an instruction among them too: what is asked for belongs into a system message (prompts ``articles``).
    """

    name: str
    encoder: reward_models.Encoder

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Compare each response with its prompt's last message of the user."""
        read = [asked(prompt) for prompt in prompts]
        once = list(dict.fromkeys(read))
        places = {text: place for place, text in enumerate(once)}
        rows = self.encoder.embeddings(once)[[places[text] for text in read]]
        return 4 * (rows * self.encoder.embeddings(responses)).sum(-1)

    @property
    def limit(self) -> int:
        """Of either text."""
        return READ

    def lengths(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[int]:
        """Return the tokens of the user's words or of the response, whichever are more."""
        sides = self.encoder.lengths([asked(prompt) for prompt in prompts]), self.encoder.lengths(responses)
        return [max(pair) for pair in zip(*sides, strict=True)]

    def room(self, prompt: Prompt) -> int:
        """Return what a prompt leaves that is not too long itself: the response is read apart."""
        (taken,) = self.encoder.lengths([asked(prompt)])
        return READ - (reward_models.SPECIAL if taken <= READ else taken)


@dataclass(frozen=True)
class WordOverlap:
    """``4 F₁`` of the distinct words that the response shares with what the user wrote (ROUGE-1 on sets): 0 to 4.

    Counted, not learned: a check on ``similarity`` by other means, no proof, since a copy of the user's words scores 4
    here too, and words like "the" count as others do.
    """

    name: str

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Compare each response with its prompt's last message of the user."""
        pairs = [(_words(asked(p)), _words(r)) for p, r in zip(prompts, responses, strict=True)]
        return torch.tensor([8 * len(a & b) / max(1, len(a) + len(b)) for a, b in pairs], dtype=torch.float64)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


@dataclass(frozen=True, eq=False)
class Classifier:
    """A sequence-classification model, as reward models are published: the logit of a pair.

    Of two labels, the log-odds of the good one over the other: the difference of their logits, in nats.  A model whose
    tokenizer has a chat template reads the prompt and the response as a chat; another reads them as a pair.
    """

    name: str
    model: Any
    tokenizer: Any
    signs: Float[Tensor, " labels"]
    """the reward is this combination of the logits"""
    limit: int | None
    """tokens that are read"""
    batch_tokens: int = 4096
    """padded tokens in one pass; 1 reads every text alone"""

    def tokens(self, prompt: Prompt, response: str) -> dict[str, list[int]]:
        """Return what the model would read of a pair if it were as long as the pair."""
        if not self.tokenizer.chat_template:
            pair = self.tokenizer(text_of(prompt), response, split_special_tokens=True)
            return self._known(pair)
        messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        try:
            ids = conversation(self.tokenizer, (*messages, Message("assistant", response)), answer=False)
        except InputError as error:
            raise InputError(f"reward model {self.name}: {error}") from None
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def _known(self, encoded: Mapping[str, list[int]]) -> dict[str, list[int]]:
        known = inspect.signature(type(self.model).forward).parameters
        return {key: value for key, value in encoded.items() if key in known}

    def _shortened(self, prompt: Prompt, response: str) -> dict[str, list[int]]:
        """Return what the model reads of a pair that is longer than its limit."""
        if not self.tokenizer.chat_template:
            how = {"truncation": True, "max_length": self.limit, "split_special_tokens": True}
            return self._known(self.tokenizer(text_of(prompt), response, **how))
        left = self.tokenizer.truncation_side == "left"
        part = slice(-(self.limit or 0), None) if left else slice(self.limit)
        return {key: value[part] for key, value in self.tokens(prompt, response).items()}

    def lengths(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[int]:
        """Return the pairs' tokens."""
        return [len(self.tokens(p, r)["input_ids"]) for p, r in zip(prompts, responses, strict=True)]

    def room(self, prompt: Prompt) -> int:
        """Return what is left behind the prompt."""
        return (self.limit or 0) - len(self.tokens(prompt, "")["input_ids"])

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Score the pairs, of longer ones the beginning."""
        encoded = [self.tokens(p, r) for p, r in zip(prompts, responses, strict=True)]
        for place in _over(self.limit, [len(e["input_ids"]) for e in encoded]):
            encoded[place] = self._shortened(prompts[place], responses[place])
        if not all(e["input_ids"] for e in encoded):
            raise InputError(f"reward model {self.name}: its tokenizer makes nothing of a pair")
        out = torch.zeros(len(encoded), dtype=torch.float64)
        for places in batches([len(e["input_ids"]) for e in encoded], self.batch_tokens):
            part = [encoded[place] for place in places]
            if len(part) == 1:
                inputs = {key: torch.tensor([value]) for key, value in part[0].items()}
            else:
                inputs = dict(self.tokenizer.pad(part, return_tensors="pt"))
            logits = self.model(**{key: value.to(self.model.device) for key, value in inputs.items()}).logits
            out[places] = logits.double().cpu() @ self.signs
        return out


def cut(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[int]:
    """Return the places of the pairs of which a scorer reads the beginning only, as far as it says so."""
    return _over(scorer.limit, scorer.lengths(prompts, responses)) if isinstance(scorer, Limited) else []


def _over(limit: int | None, lengths: Sequence[int]) -> list[int]:
    return [place for place, length in enumerate(lengths) if limit is not None and length > limit]


@dataclass(frozen=True)
class Unabridged:
    """A scorer by which no text is read in part: longer ones are refused."""

    scorer: Limited

    @property
    def name(self) -> str:
        """The scorer's."""
        return self.scorer.name

    def admit(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> None:
        """Raise ``InputError`` for pairs that are too long."""
        lengths = self.scorer.lengths(prompts, responses)
        if over := _over(self.scorer.limit, lengths):
            raise InputError(
                f"reward model {self.name} reads {self.scorer.limit} tokens; {len(over)} of {len(lengths)} texts have "
                f"more, up to {max(lengths)}, first {responses[over[0]][:40]!r}; shorten prompts or responses, or pass "
                "--long-texts cut to have the beginnings scored"
            )

    def admit_drawn(self, prompt: Prompt, tokens: int) -> None:
        """Raise ``InputError`` for a prompt that leaves no room for a response of so many tokens."""
        limit, room = self.scorer.limit, self.scorer.room(prompt)
        if limit is not None and room < tokens:
            raise InputError(
                f"reward model {self.name} reads {limit} tokens; a prompt leaves {max(0, room)} of them to a response, "
                f"which has up to {tokens}: {text_of(prompt)[:40]!r}; lower --tokens, shorten prompts or pass "
                "--long-texts cut to have the beginnings scored"
            )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Score the pairs."""
        self.admit(prompts, responses)
        return self.scorer(prompts, responses)


def read_by(scorer: Scorer, long_texts: LongTexts) -> Scorer:
    """Return a scorer that does with long texts as it is told."""
    return Unabridged(scorer) if long_texts == "refuse" and isinstance(scorer, Limited) else scorer


def _check_factory(part: object) -> None:
    if not callable(part):
        raise InputError("a scorer is registered as a function of the device that returns it")


SCORERS: Registry[Callable[[str], Scorer]] = Registry("reward model", _check_factory)
"""Named scorers: functions of the device."""


def _lexical(name: str, device: str) -> Scorer:
    return Lexical(name, LEXICAL[name])


def _shipped(name: str, device: str) -> Scorer:
    return Shipped(name, reward_models.load(name, device))


def _similarity(device: str) -> Scorer:
    encoder = reward_models.load_encoder()
    encoder.tokenizer.enable_truncation(READ)
    encoder.model.to(device)
    return Similarity("similarity", encoder)


def _word_overlap(device: str) -> Scorer:
    return WordOverlap("word-overlap")


SCORERS.register("similarity", _similarity)
SCORERS.register("word-overlap", _word_overlap)
for _name in (reward_models.LABELLER, reward_models.JUDGE):
    SCORERS.register(_name, partial(_shipped, _name))
for _name in LEXICAL:
    SCORERS.register(_name, partial(_lexical, _name))


def load_scorer(
    name: str, device: str, dtype: str = "float32", trust: bool = False, long_texts: LongTexts = "refuse"
) -> Scorer:
    """Return a scorer: a registered one, ``module:attribute``, or a classifier's local directory or hub id.

    A PEFT folder is merged into its model; ``long_texts`` is for those with a limit.  Raises ``InputError`` for a
    scorer that cannot be loaded or does not score two pairs, for a language model, for outputs of which none is the
    reward, and for code that is not trusted.
    """
    if name in SCORERS:
        return registered(name, SCORERS[name], device, long_texts)
    if ":" in name and not Path(name).exists():
        return _imported(name, device)
    folder = folders.locate(name, "reward model", list(SCORERS), trust)
    return read_by(_classifier(name, folder, device, dtype, trust), long_texts)


def registered(name: str, make: Callable[[str], Scorer], device: str, long_texts: LongTexts) -> Scorer:
    """Return the scorer that a registered function makes on a device; a user's own is tried first."""
    with _foreign(name):
        scorer = make(device)
        if is_own(scorer):
            if not isinstance(getattr(scorer, "name", None), str):
                raise InputError(f"reward model {name!r}: a scorer has a name, its function returned {scorer!r:.60}")
            checked(scorer, *TRIED)
    return read_by(scorer, long_texts)


def weights_hash(name: str, trust: bool = False) -> str:
    """Return a SHA-256 of what makes a scorer: its files, or its code."""
    if name in SCORERS:
        shipped = reward_models.WEIGHTS / f"{name}.safetensors"
        content = shipped.read_bytes() if shipped.exists() else _source_hash(SCORERS[name])
        return hashlib.sha256(name.encode() + b"\0" + content).hexdigest()
    if ":" in name and not Path(name).exists():
        return hashlib.sha256(_source_hash(_attribute(name))).hexdigest()
    return folders.fingerprint(folders.locate(name, "reward model", list(SCORERS), trust))


def _source_hash(part: object) -> bytes:
    part = part.func if isinstance(part, partial) else part
    return json.dumps(fingerprint(part), sort_keys=True).encode()


def _attribute(name: str) -> Any:
    """Return what ``module:attribute`` names; modules of the working directory count."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        part: Any = importlib.import_module(module)
        for step in attribute.split("."):
            part = getattr(part, step)
    except (Exception, SystemExit) as error:  # a user's module may raise anything, and a script ends
        raise InputError(f"reward model {name!r}: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(os.getcwd())
    return part


@dataclass(frozen=True)
class _Own:
    """A user's scorer under the name it was given by."""

    name: str
    score: Callable[[Sequence[Prompt], Sequence[str]], Any] = field(repr=False)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        return _rewards(self.name, self.score(prompts, responses), len(responses))


def _imported(name: str, device: str) -> Scorer:
    part = _attribute(name)
    with _foreign(name):
        scorer = _Own(name, part() if isinstance(part, type) else part)
        checked(scorer, *TRIED)
    return scorer


TRIED = ["a prompt", "another"], ["a response", "one more"]
"""What a user's own scorer is asked of before it is used."""


@contextmanager
def _foreign(name: str) -> Iterator[None]:
    """Let whatever a user's own code raises be one line that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(
            f"reward model {name!r} cannot score prompts and responses ({type(error).__name__}: {error})"
        ) from None


def _classifier(name: str, folder: Path, device: str, dtype: str, trust: bool) -> Classifier:
    what = "reward model"
    if not (folder / folders.ADAPTER).exists():
        kinds = folders.settings(folder, what).get("architectures") or []
        if kinds and not any("Classification" in kind or "Reward" in kind for kind in kinds):
            raise InputError(
                f"{what} {name!r} is a {kinds[0]}, which has no trained head that scores; give a classifier"
            )
    loaded = folders.load(AutoModelForSequenceClassification, folder, what, dtype, trust)
    model, tokenizer = loaded.model.requires_grad_(False).to(device), loaded.tokenizer
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = {i for i in tokenizer.get_vocab().values() if i >= rows} - {tokenizer.pad_token_id}
    if beyond:
        raise InputError(f"{what} {name!r}: its tokenizer has tokens up to {max(beyond)}, its embedding {rows} rows")
    limits = [limit for limit in (_positions(model), tokenizer.model_max_length) if limit and limit < 10**9]
    alone = Classifier(name, model, tokenizer, _signs(model.config, name), min(limits, default=None), 1)
    prompts, responses = ["one", "one", "a somewhat longer prompt"], ["two", "three, four", "five"]
    try:
        want = alone(prompts, responses)
    except InputError:
        raise
    except Exception as error:  # whatever a foreign model raises
        raise InputError(lines(f"{what} {name!r} cannot score a pair ({type(error).__name__}: {error})")[0]) from None
    together = replace(alone, batch_tokens=Classifier.batch_tokens)
    try:
        off = (together(prompts, responses) - want).abs().max() / (1 + want.abs().max())
    except Exception:  # without a pad token, say: then every text is read alone
        return alone
    return together if off <= (1e-4 if dtype == "float32" else 0.05) else alone


def _positions(model: Any) -> int | None:
    """Return how many tokens a model has positions for; some begin to count after their padding index."""
    limit = context_of(model.config)
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings == limit]
    before = max((m.padding_idx + 1 for m in tables if m.padding_idx is not None), default=0)
    return None if limit is None else limit - before


GOOD = {"positive", "pos", "good", "chosen", "better", "safe", "helpful", "acceptable", "yes", "true", "label_1", "1"}
"""Names, in lower case, of the label that a reward is for."""


def _signs(config: Any, name: str) -> Tensor:
    """Return the combination of a classifier's logits that is the reward."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if len(names) == 1:
        return torch.ones(1, dtype=torch.float64)
    good = [i for i, label in enumerate(names) if label.lower() in GOOD]
    if len(names) == 2 and len(good) == 1 and config.problem_type != "multi_label_classification":
        return torch.tensor([1.0 if i == good[0] else -1.0 for i in range(2)], dtype=torch.float64)
    raise InputError(
        f"reward model {name!r} has {len(names)} outputs ({', '.join(names[:5])}); it needs one, or two of which one "
        f"is named good ({', '.join(sorted(GOOD)[-3:])}, …), whose log-odds then are the reward"
    )


def _rewards(name: str, given: object, count: int) -> Float[Tensor, " n"]:
    """Return what a scorer gave as rewards; ``InputError`` for what are none, one a response."""
    return alike(given, f"reward model {name}, of {count} responses", torch.empty(count, dtype=torch.float64))


def checked(scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " n"]:
    """Return rewards; ``InputError`` for what are no finite numbers, one a response."""
    rewards = _rewards(scorer.name, scorer(prompts, responses), len(responses))
    bad = [i for i, reward in enumerate(rewards.tolist()) if not math.isfinite(reward)]
    if bad:
        raise InputError(
            f"reward model {scorer.name} gave {float(rewards[bad[0]])} for {len(bad)} of {len(rewards)} responses, "
            f"first for {responses[bad[0]][:60]!r}"
        )
    return rewards
