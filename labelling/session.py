"""Owns how a project is put together for work: model, arena and learner as the loop has them, and the history so far.

Two kinds of pool, one loop: a pool that *has* its responses is one table for all batches; of prompts *alone* the model,
as it is when a batch begins, draws anew, which is the language-model loop itself.  Writes nothing but features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.duels import Batch, Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.loop import Round, Schedule, play
from bandits.runs.files import DamagedError, read_json, read_tensors, write_json
from bandits.selector import STRATEGIES, FeatureSpace
from labelling import jsonl
from labelling.labelled import Label, id_of
from labelling.project import COPY, Project
from labelling.queries import Query
from labelling.settings import Settings
from labelling.table import PoolArena, PoolLearner, Table
from llm_loop.agreement import settle
from llm_loop.arena import Completions, TextArena
from llm_loop.arena import Table as Drawn
from llm_loop.data import prompts as prompt_sets
from llm_loop.data.chat import Prompt, to_json
from llm_loop.data.pools import Group, Pool
from llm_loop.data.prompts import PromptSet
from llm_loop.gradients import Gradients
from llm_loop.models import Policy, Row, load_policy
from llm_loop.run import COMPARED

"""Prompts on which a model's health is looked at, at most."""


@dataclass(frozen=True, eq=False)
class Past:
    """A batch that was asked: where its duels are in the offer of its round, and what is known of them."""

    picks: Int64[Tensor, " a"]
    """of those that have an outcome"""
    outcomes: Float[Tensor, " a"]
    """the share of the duel that its first response won"""
    asked: Int64[Tensor, " q"]
    """of all its duels"""


class _Nobody:
    """Who scores where people answer."""

    name = "nobody"

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Return 0 for each."""
        return torch.zeros(len(responses), dtype=torch.float64)


class AnsweredArena(TextArena):
    """The loop's own arena, whose labels are those that are known; a round being chosen has ties for placeholders."""

    known: Sequence[Tensor] = ()

    def label(self, duels: Any) -> Tensor:
        """Return the round's answers."""
        if self.round < len(self.known):
            return self.known[self.round]
        return torch.full((duels.count,), 0.5, dtype=torch.float64)


class _Chooser(PoolLearner):
    """The learner where nothing is trained: the loop stops when a batch is chosen."""

    def fit(self, past: Any) -> Any:
        """Leave the model as it is."""
        return None


@dataclass(eq=False)
class Session:
    """A model at work on a pool."""

    settings: Settings
    policy: Policy
    learner: PoolLearner
    key: Key
    table: Table | None
    """the pool, if it has its responses"""
    texts: PromptSet | None
    """the prompts, if the model draws"""
    heldout: tuple[Prompt, ...] = ()
    past: list[Past] = field(default_factory=list)
    thetas: list[dict[str, Tensor] | None] = field(default_factory=list)
    arena: Any = None

    @classmethod
    def of(cls, settings: Settings, pool: Pool | None, texts: PromptSet | None, features: Path, model: str) -> Session:
        """Put model, learner and pool together; ``model`` is its files' hash.

        All draws are those of the language-model loop's first cell with this seed.
        """
        key = Key(settings.seed).fold_in("seed", 0)
        policy = load_policy(
            settings.model,
            settings.adapter,
            key,
            settings.device,
            settings.dtype,
            settings.chat,
            settings.trust_remote_code,
            Key(settings.seed),
        )
        policy.batch_tokens = settings.score_tokens
        sketch, given = settings.sketch, settings.training.ties
        training = replace(settings.training, ties=0.0 if given is None else given)
        gradients = Gradients(
            policy, training.beta, sketch.kind, sketch.size, key.fold_in("gradients"), settings.feature_tokens
        )
        learner = _Chooser(policy, training, gradients, key.fold_in("learner"))
        learner.root = features
        learner.identity = {
            "model": model,
            "seed": settings.seed,
            "adapter": asdict(settings.adapter) | {"targets": list(settings.adapter.targets)},
            "beta": training.beta,
            "sketch": asdict(sketch),
            "dtype": settings.dtype,
        }
        if texts is not None:
            texts = texts.within(lambda prompt: len(policy.tokens_of(prompt)), settings.prompt_tokens)
            arena = AnsweredArena(
                policy,
                _Nobody(),
                texts.train,
                key=key.fold_in("arena"),
                prompts_per_round=settings.prompts_of(len(texts.train)),
                responses=settings.responses,
                decoding=settings.decoding,
                prompt_tokens=settings.prompt_tokens,
                note=learner.note_drawn,
            )
            heldout = texts.heldout
            encoded = [*arena.encoded, *policy.encode(heldout, settings.prompt_tokens)]
            settle(policy, max(map(len, encoded)), settings.decoding.tokens)
            return cls(settings, policy, learner, key, None, texts, heldout, arena=arena)
        assert pool is not None
        table = Table(pool, policy, settings.prompt_tokens, settings.response_tokens)
        settle(policy, *table.longest)
        return cls(settings, policy, learner, key, table, None)

    def remember(self, project: Project | None, labels: Sequence[Label]) -> None:
        """Take up what was asked and answered: labels that came along, then the project's batches."""
        if labels:
            if self.table is None:
                raise InputError(
                    "labels from elsewhere need a pool that has their responses; this one has prompts alone"
                )
            self.past.append(self._labelled(self.table, labels))
            self.thetas.append(None)
        if project is not None:
            answers = project.read_answers()
            for batch in range(1, project.batches + 1):
                queries = project.read_queries(batch)
                outcomes = answers.outcomes(queries)
                self.past.append(self._asked(project, batch, queries, outcomes))
                self.thetas.append(self._theta(project.model(batch)))
        if self.table is not None:
            asked = torch.cat([torch.empty(0, dtype=torch.int64), *(past.asked for past in self.past)])
            self.arena = PoolArena(self.table, [past.outcomes for past in self.past], asked)
        else:
            self.arena.known = [past.outcomes for past in self.past]

    @staticmethod
    def _labelled(table: Table, labels: Sequence[Label]) -> Past:
        found: dict[int, tuple[float, str]] = {}
        for label in labels:
            try:
                duel, turned = table.find(label.prompt, label.first, label.second)
                outcome = 1 - label.outcome if turned else label.outcome
                if duel in found and found[duel][0] != outcome:
                    raise InputError(f"it contradicts {found[duel][1]}")
            except InputError as error:
                raise InputError(f"labels: {label.place}: {error}") from None
            found.setdefault(duel, (outcome, label.place))
        picks = torch.tensor(list(found))
        return Past(picks, torch.tensor([outcome for outcome, _ in found.values()], dtype=torch.float64), picks)

    def _asked(self, project: Project, batch: int, queries: Sequence[Query], outcomes: dict[str, float]) -> Past:
        if self.table is None:
            self._recall(project, batch)
        places, won = [], []
        for number, query in enumerate(queries, start=1):
            try:
                places.append(self._find(batch, query))
            except InputError as error:
                raise InputError(f"{project.queries(batch)}, line {number}: {error}") from None
            if query.id in outcomes:
                won.append((places[-1], outcomes[query.id]))
        picks = torch.tensor([place for place, _ in won], dtype=torch.int64)
        return Past(picks, torch.tensor([w for _, w in won], dtype=torch.float64), torch.tensor(places))

    def _find(self, batch: int, query: Query) -> int:
        """Return a query's place among the duels on offer."""
        if self.table is not None:
            return self.table.find(query.prompt, query.first, query.second)[0]
        drawn, k = self.arena.tables[batch - 1], self.settings.responses
        duels = self.arena.offer(batch - 1).duels
        for number, index in enumerate(drawn.prompt_indices):
            texts = drawn.texts[number * k : (number + 1) * k]
            if self.arena.prompts[index] == query.prompt and {query.first, query.second} <= set(texts):
                pair = [number * k + texts.index(text) for text in (query.first, query.second)]
                return int(((duels.first == pair[0]) & (duels.second == pair[1])).nonzero()[0, 0])
        raise InputError("its prompt and responses are not among those drawn for its batch")

    def _recall(self, project: Project, batch: int) -> None:
        """Put a batch's responses back into the arena, as they were drawn."""
        path = project.drawn(batch)
        try:
            kept = read_json(path, dict, COPY)
            vocabulary = len(self.policy.model.get_input_embeddings().weight)
            check_drawn(
                kept, len(self.arena.prompts), self.arena.prompts_per_round, self.settings.responses, vocabulary
            )
            encoded = [self.arena.encoded[i] for i in kept["prompt_indices"] for _ in range(self.settings.responses)]
            rows = tuple(Row(p, tuple(r)) for p, r in zip(encoded, kept["responses"], strict=True))
            logs = torch.tensor(kept["log_probs"], dtype=torch.float64)
            items = Completions(rows, self.settings.responses, logs)
            nothing = torch.zeros(len(rows), dtype=torch.float64)
            self.arena.tables[batch - 1] = Drawn(items, tuple(kept["texts"]), nothing, tuple(kept["prompt_indices"]))
            known = {row: value for row, value in zip(rows, kept["reference"], strict=True) if value is not None}
            self.learner.note(list(known), reference=torch.tensor(list(known.values()), dtype=torch.float64))
        except ValueError as error:
            raise DamagedError(f"{path} is damaged ({error}); {COPY}") from None

    def _theta(self, folder: Path) -> dict[str, Tensor] | None:
        path = folder / "adapter_model.safetensors"
        if not path.exists():
            return None
        try:
            theta = self.policy.theta_of(read_tensors(path))
        except KeyError as error:
            raise DamagedError(f"{path} is damaged or another model's: it has no {error}") from None
        for name, parameter in self.policy.parameters.items():
            if theta[name].shape != parameter.shape or not theta[name].isfinite().all():
                raise DamagedError(f"{path} is damaged or another model's: its {name} cannot be this model's")
        return theta

    def go_to_last(self) -> int:
        """Set θ to that of the last model that was trained; return how many batches it knows (0: none was)."""
        for number in range(len(self.thetas), 0, -1):
            theta = self.thetas[number - 1]
            if theta is not None:
                self.learner.restore(theta)
                return number
        return 0

    def choose(self, budget: int) -> Round[Any, Any]:
        """Play the loop to the point where it asks, and return the round, whose labels are not known yet."""
        strategy = STRATEGIES[self.settings.strategy]
        replay = [(past.picks, theta) for past, theta in zip(self.past, self.thetas, strict=True)]
        # As the language-model loop does; over a pool of its own it would cost two passes for what no rule reads.
        looks: FeatureSpace | None = COMPARED if "width" in strategy.reads and self.table is None else None
        schedule = Schedule(len(replay) + 1, budget)
        ridges, key = self.settings.ridges, self.key.fold_in("play")
        return next(play(self.arena, self.learner, strategy, schedule, ridges, key, replay, looks))

    def history(self, only: Sequence[Tensor] | None = None) -> Labelled[Completions]:
        """Return all answered duels with the items that they name; ``only`` keeps some of each batch, by place."""
        found = Labelled[Completions]()
        for number, past in enumerate(self.past):
            keep = torch.arange(len(past.picks)) if only is None else only[number]
            if len(keep):
                items, duels = self.kept(number, past.picks[keep])
                found = Labelled((*found.batches, Batch(items, duels, past.outcomes[keep])))
        return found

    def kept(self, number: int, picks: Tensor) -> tuple[Completions, Duels]:
        """Return the items of some of a round's duels, two a duel, and the duels in them."""
        if self.table is not None:
            return self.table.completions(self.table.duels.take(picks))
        offer = self.arena.offer(number)
        items, duels = offer.items.keep(offer.duels.take(picks))
        return items, duels

    def history_in_place(self) -> Labelled[Any]:
        """Return all answered duels, in the pool itself where it has its responses."""
        if self.table is None:
            return self.history()
        found, outcomes = [past.picks for past in self.past], [past.outcomes for past in self.past]
        if not found or not len(torch.cat(found)):
            return Labelled()
        return Labelled.of(self.table, self.table.duels.take(torch.cat(found)), torch.cat(outcomes), lasting=True)

    def keep_drawn(self, project: Project, batch: int) -> None:
        """Write down what was drawn for a batch, with the reference's log-probabilities as far as they are known."""
        drawn = self.arena.tables[batch - 1]
        write_json(
            project.drawn(batch),
            {
                "prompt_indices": list(drawn.prompt_indices),
                "responses": [list(row.response) for row in drawn.items.rows],
                "texts": list(drawn.texts),
                "log_probs": drawn.items.log_probs.tolist(),
                "reference": self.learner.known_reference(drawn.items.rows),
            },
        )

    def quiet_prompts(self, count: int) -> tuple[Prompt, ...]:
        """Return prompts that no answer was about: held-out ones, or those of the pool, if there are any."""
        if self.table is None:
            return self.heldout[:count]
        asked = torch.cat([torch.empty(0, dtype=torch.int64), *(past.asked for past in self.past)])
        touched = set((self.table.duels.first[asked] // self.table.responses).tolist())
        prompts = [group.prompt for group in self.table.groups]
        return tuple([p for n, p in enumerate(prompts) if n not in touched][:count] or prompts[:count])

    def texts_of(self, duels: Duels, duel: int) -> tuple[Prompt, str, str]:
        """Return an offered duel's prompt and its two responses."""
        if self.table is not None:
            return self.table.texts(duel)
        drawn, k = self.arena.table, self.settings.responses
        first, second = int(duels.first[duel]), int(duels.second[duel])
        return self.arena.prompts[drawn.prompt_indices[first // k]], drawn.texts[first], drawn.texts[second]


def check_drawn(kept: Mapping[str, Any], prompts: int, asked: int, responses: int, vocabulary: int) -> None:
    """Raise ``ValueError`` unless this is what was drawn for ``asked`` of ``prompts``, so many responses to each."""

    def number(value: object) -> bool:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]

    def below(value: object, end: int) -> bool:
        return type(value) is int and 0 <= value < end

    fits: dict[str, tuple[int, Callable[[Any], bool]]] = {
        "prompt_indices": (asked, lambda value: below(value, prompts)),
        "responses": (
            asked * responses,
            lambda value: isinstance(value, list) and bool(value) and all(below(token, vocabulary) for token in value),
        ),
        "texts": (asked * responses, lambda value: isinstance(value, str)),
        "log_probs": (asked * responses, number),
        "reference": (asked * responses, lambda value: value is None or number(value)),
    }
    for name, (count, fit) in fits.items():
        values = kept.get(name)
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"its {name} is no list of {count}")
        bad = next((place for place, value in enumerate(values, start=1) if not fit(value)), None)
        if bad is not None:
            raise ValueError(f"number {bad} of its {name} cannot be")


def write_pool(path: Path, pool: Pool) -> None:
    """Write a pool as a project keeps it."""
    jsonl.write(
        path, ({"id": id_of(g), "prompt": to_json(g.prompt), "responses": list(g.responses)} for g in pool.groups)
    )


def write_prompts(path: Path, texts: PromptSet) -> None:
    """Write prompts as a project keeps them: in the order in which they were read, each with its side."""
    heldout = set(texts.heldout)
    jsonl.write(path, ({"prompt": to_json(p), "split": "test" if p in heldout else "train"} for p in texts.places))


def grown(pool: Pool, more: Pool) -> Pool:
    """Return a pool with the prompts and responses that another has beyond it, behind its own."""
    groups = {group.prompt: group for group in pool.groups}
    for group in more.groups:
        known = groups.get(group.prompt)
        texts = (*known.responses, *group.responses) if known else group.responses
        place = known.place if known else group.place
        groups[group.prompt] = Group(group.prompt, tuple(dict.fromkeys(texts)), place)
    return Pool(tuple(groups.values()), {**pool.files, **more.files})


def read_prompts(name: str, seed: int) -> PromptSet:
    """Return a named prompt set's, or a file's, prompts to learn from and held-out ones."""
    return prompt_sets.load(name, Key(seed))
