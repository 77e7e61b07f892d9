"""Owns how a cell is put together: policy, arena, learner and held-out set, from a config, a strategy and a seed.

Draws nothing from the models and writes nothing.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import transformers

from bandits.core.errors import InputError, naming
from bandits.core.oracles import ORACLES, Oracle
from bandits.core.registry import fingerprint
from bandits.core.rng import Key
from bandits.selector import STRATEGIES, Strategy
from bandits.sim.learners import LEARNERS
from bandits.sim.run import Parts as Played
from bandits.sim.truths import TRUTHS
from llm_loop.agreement import settle
from llm_loop.arena import DrawnArena, GivenArena, TextArena
from llm_loop.config import Alignment
from llm_loop.data import assets, pools
from llm_loop.data import prompts as prompt_sets
from llm_loop.data.chat import Prompt, text_of
from llm_loop.data.files import hashes, located
from llm_loop.data.prompts import SOURCES, PromptSet, Source
from llm_loop.gradients import Gradients
from llm_loop.learner import DPOLearner
from llm_loop.models import Adapter, Policy, Row, check_device, check_model, distinct, load_policy, weights_hash
from llm_loop.rewards.scorers import SCORERS, Scorer, Unabridged, load_scorer, registered
from llm_loop.rewards.scorers import weights_hash as scorer_hash
from llm_loop.shared import Shared
from llm_loop.tuning import Tuned, examples, tuned, wide


@dataclass(frozen=True)
class Parts:
    """The objects that a config's names stand for; they travel to workers, where the names may be unknown."""

    strategies: Mapping[str, Strategy]
    oracle: Oracle
    scorers: Mapping[str, Callable[[str], Scorer]]
    """those that are registered, made on a device"""
    prompts: Mapping[str, Source]
    """likewise"""

    @classmethod
    def of(cls, alignment: Alignment) -> Parts:
        """Look the names up."""
        return cls(
            {name: STRATEGIES[name] for name in alignment.strategies},
            ORACLES[alignment.labels],
            {name: SCORERS[name] for name in (alignment.reward, alignment.judge) if name in SCORERS},
            {name: SOURCES[name] for name in (alignment.prompts, alignment.tuning.data) if name in SOURCES},
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the parts in the run's config; strategies with what they say of themselves."""
        strategies = {
            name: fingerprint(strategy) | {"summary": strategy.summary, "source": strategy.source}
            for name, strategy in self.strategies.items()
        }
        prompts = {name: fingerprint(source) for name, source in self.prompts.items()}
        return {"strategies": strategies, "oracle": fingerprint(self.oracle), "prompts": prompts}

    def rehearse(self, responses: int) -> None:
        """Try strategies and oracle that are a user's own in a small simulation: here their turn may come late."""
        for strategy in self.strategies.values():
            Played(TRUTHS["square"], self.oracle, LEARNERS["neural"], strategy).rehearse(responses, replicates=None)

    def load_prompts(self, alignment: Alignment, name: str | None = None) -> PromptSet:
        """Return the prompt set, or another one; all cells have the same."""
        with naming("--sft" if name and name == alignment.tuning.data else _brought_by(alignment)):
            return prompt_sets.load(
                name or alignment.prompts, Key(alignment.seed), alignment.skip_bad_rows, {**SOURCES, **self.prompts}
            )

    def load_scorer(self, name: str, alignment: Alignment) -> Scorer:
        """Return a scorer by name, directory or import path."""
        if name in self.scorers:
            return registered(name, self.scorers[name], alignment.device, alignment.long_texts)
        return load_scorer(name, alignment.device, alignment.dtype, alignment.trust_remote_code, alignment.long_texts)


@dataclass(frozen=True, eq=False)
class Heldout:
    """Prompts that nothing learns from, and who scores the answers to them."""

    prompts: tuple[Prompt, ...]
    encoded: list[tuple[int, ...]]
    scorer: Scorer
    judge: Scorer
    key: Key
    written: tuple[str, ...]
    """what people wrote of each prompt"""


@dataclass(frozen=True, eq=False)
class Setup:
    """All that a cell plays with; the policy, which arena and learner hold as well, is what changes."""

    alignment: Alignment
    strategy: Strategy
    policy: Policy
    arena: TextArena
    learner: DPOLearner
    heldout: Heldout
    key: Key
    left_out: str
    """prompts that were left out, in a clause"""
    tuned: str = ""
    """how the model was tuned first, in a sentence"""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the prompts' files, as they were read"""


def build(alignment: Alignment, parts: Parts, strategy: str, seed: int, sft: Shared | None = None) -> Setup:
    """Put a cell together; cells of one seed begin with the same bytes.

    ``sft`` keeps the tuned model of settings that ask for one; without it, the model is taken as it is, to be looked
    at.  Raises ``InputError`` for models, rewards and prompts that cannot be loaded or do not suit each other.
    """
    key = Key(alignment.seed).fold_in("seed", seed)
    texts = parts.load_prompts(alignment)
    policy, told = load_model(alignment, parts, key, sft)
    policy.batch_tokens = alignment.score_tokens
    texts = texts.within(lambda prompt: len(policy.tokens_of(prompt)), alignment.prompt_tokens, alignment.skip_bad_rows)
    _check_prompts(alignment, texts)
    with naming("--reward"):
        scorer = parts.load_scorer(alignment.reward, alignment)
    with naming("--judge"):
        judge = parts.load_scorer(alignment.judge, alignment)
    gradients = Gradients(
        policy,
        alignment.training.beta,
        alignment.sketch.kind,
        alignment.sketch.size,
        key.fold_in("gradients"),
        alignment.feature_tokens,
    )
    given = alignment.training.ties
    training = replace(alignment.training, ties=parts.oracle.ties if given is None else given)
    learner = DPOLearner(policy, training, gradients, key.fold_in("learner"))
    kind: Callable[..., TextArena] = TextArena
    if isinstance(alignment.pool, str):
        texts, written = _offered(alignment, texts, policy)
        kind = partial(GivenArena, given=written)
    elif alignment.pool:
        kind = partial(DrawnArena, pool=alignment.pool, spread=alignment.pool_temperature)
    arena = kind(
        policy,
        scorer,
        texts.train,
        key=key.fold_in("arena"),
        prompts_per_round=alignment.prompts_per_round,
        responses=alignment.responses,
        decoding=alignment.decoding,
        oracle=parts.oracle,
        temperature=alignment.label_temperature,
        prompt_tokens=alignment.prompt_tokens,
        note=learner.note_initial_draws if alignment.pool else learner.note_drawn,
    )
    prompts = texts.heldout[: alignment.evaluation.prompts]
    heldout = Heldout(
        prompts,
        policy.encode(prompts, alignment.prompt_tokens),
        scorer,
        judge,
        key.fold_in("heldout"),
        tuple(map(texts.text_of_people, prompts)),
    )
    settle(policy, max(map(len, (*arena.encoded, *heldout.encoded))), alignment.decoding.tokens)
    return Setup(
        alignment,
        parts.strategies[strategy],
        policy,
        arena,
        learner,
        heldout,
        key.fold_in("play"),
        texts.dropped_text,
        told.summary(alignment.tuning.data) if told else "",
        texts.files,
    )


def load_model(alignment: Alignment, parts: Parts, key: Key, sft: Shared | None = None) -> tuple[Policy, Tuned | None]:
    """Return the policy, and how its model was tuned: by the settings, if ``sft`` is there to keep what is learned."""
    tuning, start = alignment.tuning, Key(alignment.seed).fold_in("tuning")
    if not tuning.data or sft is None:
        return _load(alignment, parts, alignment.adapter, key), None
    return tuned(*demonstrations(alignment, parts), tuning, alignment.adapter, key, sft, start)


def demonstrations(alignment: Alignment, parts: Parts) -> tuple[Policy, list[Row]]:
    """Return a policy with the adapter that is tuned, and the answers that it is tuned on.

    A prompt that is held out, or whose text is part of one that is, does not count.
    """
    policy = _load(alignment, parts, wide(alignment.adapter), Key(alignment.seed).fold_in("sft"))
    asked = "\n".join(map(text_of, parts.load_prompts(alignment).heldout))
    known = parts.load_prompts(alignment, alignment.tuning.data).demonstrations
    found = [(prompt, answer) for prompt, answer in known if text_of(prompt) not in asked]
    limits = alignment.prompt_tokens, alignment.decoding.tokens
    return policy, examples(policy, found, *limits, alignment.tuning.examples)


def _load(alignment: Alignment, parts: Parts, adapter: Adapter, key: Key) -> Policy:
    return load_policy(
        alignment.model,
        adapter,
        key,
        alignment.device,
        alignment.dtype,
        _chat(alignment, parts),
        alignment.trust_remote_code,
        Key(alignment.seed),
    )


AUTHOR = Adapter(rank=1, alpha=1.0, targets=())
"""what a model is given that only draws: at the start, an adapter changes nothing"""


def authors(alignment: Alignment, parts: Parts, prompts: Sequence[Prompt]) -> list[Callable[[], Policy]]:
    """Return what loads each model that draws a pool of these prompts beside the initial one."""
    return [partial(_author, alignment, parts, prompts, name) for name in alignment.pool_models]


def _author(alignment: Alignment, parts: Parts, prompts: Sequence[Prompt], name: str) -> Policy:
    key, option = Key(alignment.seed), "--pool-models"
    where, trust = (alignment.device, alignment.dtype, _chat(alignment, parts)), alignment.trust_remote_code
    policy = load_policy(name, AUTHOR, key, *where, trust, option=option)
    with naming(f"{option} {name}"):
        settle(policy, max(len(policy.tokens_of(prompt)) for prompt in prompts), alignment.decoding.tokens)
    return policy


def _offered(
    alignment: Alignment, texts: PromptSet, policy: Policy | None = None
) -> tuple[PromptSet, dict[Prompt, tuple[str, ...]]]:
    """Return the prompts of a pool's file that have responses enough, and their responses; the same for all cells.

    Which are short enough is known once there is a policy: ``InputError`` names the first prompt with one that is not,
    or these are left out and counted with ``--skip-bad-rows``.
    """
    skip, limit = alignment.skip_bad_rows, alignment.response_tokens
    pool = pools.read(located(str(alignment.pool)), dropped=Counter() if skip else None)
    if pool.drawn:
        raise InputError(f"pool: {alignment.pool} has prompts alone; give it as --prompts, and --pool a number")
    lengths: dict[str, int] = {}
    if policy is not None:
        train = set(texts.train)
        for group in pool.groups:
            if group.prompt not in train:
                continue
            lengths |= {text: len(policy.response_of(text)) for text in group.responses}
            longest = max(lengths[text] for text in group.responses)
            if longest > limit and not skip:
                raise InputError(
                    f"pool: {group.place}: a response has {longest} tokens, over the limit of {limit}; raise "
                    "--response-tokens, shorten it or pass --skip-bad-rows"
                )
    found = pools.offered(
        pool, texts, alignment.responses, Key(alignment.seed), lambda text: lengths.get(text, 0) <= limit
    )
    alignment.check_pool(len(found[1]))
    _check_prompts(alignment, found[0])
    return found


def check_lengths(setup: Setup) -> None:
    """Raise ``InputError`` for texts that a scorer will refuse: a pool's own, and prompts that leave no room.

    How long a response that is yet to be drawn is to the scorer is not known; the policy's tokens are taken for its.
    """
    arena, heldout, alignment = setup.arena, setup.heldout, setup.alignment
    for scorer in (heldout.scorer, heldout.judge):
        if not isinstance(scorer, Unabridged):
            continue
        if isinstance(arena, GivenArena) and scorer is heldout.scorer:
            for prompt, texts in arena.given.items():
                scorer.admit([prompt] * len(texts), texts)
        drawn = scorer is heldout.scorer and not isinstance(arena, GivenArena)
        for prompt in (*arena.prompts, *heldout.prompts) if drawn else heldout.prompts:
            scorer.admit_drawn(prompt, alignment.decoding.tokens)


def _chat(alignment: Alignment, parts: Parts) -> Literal["auto", "yes", "no"]:
    """Return whether texts are messages: those of named sets are openings, which a model is to go on with."""
    return "no" if alignment.chat == "auto" and alignment.prompts in parts.prompts else alignment.chat


def check(alignment: Alignment, parts: Parts) -> None:
    """Raise ``InputError`` for what can be known to be wrong without a model's weights."""
    check_device(alignment.device)
    parts.rehearse(alignment.responses)
    if alignment.pool_models:
        distinct((alignment.model, *alignment.pool_models), alignment.trust_remote_code, "--pool-models")
    tokens, chat = alignment.decoding.tokens, _chat(alignment, parts)
    check_model(alignment.model, alignment.adapter, tokens, chat, alignment.trust_remote_code)
    for name in alignment.pool_models:
        check_model(name, AUTHOR, tokens, chat, alignment.trust_remote_code, "--pool-models")
    texts = parts.load_prompts(alignment)
    _check_prompts(alignment, texts)
    if isinstance(alignment.pool, str):
        _offered(alignment, texts)
    if (data := alignment.tuning.data) and not parts.load_prompts(alignment, data).demonstrations:
        raise InputError(
            f"--sft {data}: none of its prompts to learn from has an answer by people; bring rows with prompt and "
            "completion"
        )


def _check_prompts(alignment: Alignment, texts: PromptSet) -> None:
    for side, wanted, there in (
        ("held-out prompts", alignment.evaluation.prompts, len(texts.heldout)),
        ("prompts a round", alignment.prompts_per_round, len(texts.train)),
    ):
        if wanted > there:
            raise InputError(f"{wanted} {side} asked for, but the prompt set has {there}")


def inputs(alignment: Alignment) -> dict[str, str | None]:
    """Return the SHA-256 of what a run reads beside the packages and the assets, whose bytes are pinned, by name."""
    trust = alignment.trust_remote_code
    found: dict[str, str | None] = {}
    for name, option in ((alignment.reward, "--reward"), (alignment.judge, "--judge")):
        with naming(option):
            found[name] = scorer_hash(name, trust)
    for name in (alignment.model, *alignment.pool_models):
        if name not in assets.models():
            found[name] = weights_hash(name, trust, "--model" if name == alignment.model else "--pool-models")
    for name, use in ((alignment.prompts, "prompts"), (alignment.tuning.data, "sft")):
        if name in prompt_sets.SOURCES:  # a registered one may read what it likes
            texts = prompt_sets.load(name, Key(alignment.seed))
            found[use] = texts.digest if use == "prompts" else texts.answers_digest
        elif name:
            with naming("--sft" if use == "sft" else _brought_by(alignment)):
                found |= hashes(located(name))
    return found


def _brought_by(alignment: Alignment) -> str:
    """Return the option that names the prompts."""
    return "--pool" if isinstance(alignment.pool, str) else "--prompts"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence what libraries say of themselves, errors aside; then put all back as it was."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
