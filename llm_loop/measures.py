"""Owns what is measured of a round: rows of tables, from what the loop yields and from the held-out prompts.

What is said of a pool is a pure function of the round; the policy is asked only where a name says so (``answer``,
``draw_fixed``).  The tables' columns are described in ``llm_loop.tables``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bandits.loop import Round
from bandits.runs.stats import rank_correlation
from llm_loop.arena import Completions, Table, shares
from llm_loop.config import Alignment
from llm_loop.data.chat import Prompt, to_json
from llm_loop.diagnostics import drift, reasons
from llm_loop.learner import Fit
from llm_loop.models import Policy, Row
from llm_loop.report.evaluate import distinct
from llm_loop.rewards.scorers import checked, cut
from llm_loop.sampling import beside_reference, sample
from llm_loop.setup import Setup

Record = dict[str, Any]
Played = Round[Completions, Fit]


def pool_row(round: Played, table: Table, temperature: float) -> Record:
    """Return what is said of a round's pool, at the θ that drew it, as far as the loop computed it."""
    pool = round.pool
    offered, k = pool.available, table.items.responses
    lengths = torch.tensor([len(row.response) for row in table.items.rows], dtype=torch.float64)
    picked = pool.duels.take(round.picks)
    per_prompt = [table.texts[i : i + k] for i in range(0, len(table.texts), k)]
    chosen, rejected = sides(round)
    row: Record = {
        "duplicates_dropped": sum(len(texts) - len(set(texts)) for texts in per_prompt),
        "duels_offered": int(offered.sum()),
        "selected_length": float(torch.cat([lengths[picked.first], lengths[picked.second]]).mean()),
        "pool_length": float(lengths.mean()),
    }
    if len(chosen):  # not all were ties
        row |= {"chosen_length": float(lengths[chosen].mean()), "rejected_length": float(lengths[rejected].mean())}
    margins = None if pool.item_rewards is None else pool.margins[offered]
    if margins is not None:
        row["zero_margin_share"] = float((margins == 0).double().mean())
    if pool.posterior is not None:
        row["information"] = float(round.information)
    if margins is not None and pool.posterior is not None:
        errors = (margins - pool.duels.difference(table.rewards)[offered] / temperature).abs()
        row["width_error_rank_correlation"] = float(rank_correlation(pool.widths[offered], errors))
    return row


def sides(round: Played) -> tuple[Tensor, Tensor]:
    """Return the rows of the preferred and of the other response of each labelled duel that is no tie."""
    decided = round.outcome != 0.5
    first, second, won = round.asked.first[decided], round.asked.second[decided], round.outcome[decided] > 0.5
    return torch.where(won, first, second), torch.where(won, second, first)


def fit_row(fit: Fit) -> Record:
    """Return what is said of a fit."""
    return {
        "first_loss": fit.first_loss,
        "dpo_loss": fit.last_loss,
        "steps": fit.steps,
        "chosen_log_ratio": fit.chosen,
        "rejected_log_ratio": fit.rejected,
        "chosen_fell_share": fit.chosen_fell,
        "training_accuracy": fit.accuracy,
    }


def drawn_by(alignment: Alignment) -> list[str]:
    """Return which model drew each of a prompt's responses, by its name; nothing to tell where all are one model's."""
    if not alignment.pool_models:
        return [""] * alignment.responses
    models = (alignment.model, *alignment.pool_models)
    counts = shares(alignment.responses, len(models))
    return [name for name, count in zip(models, counts, strict=True) for _ in range(count)]


def candidates(round: Played, table: Table, prompts: Sequence[Prompt], drawn_by: Sequence[str]) -> list[Record]:
    """Return a row for every duel of the pool: what it would teach, what it is like, whether it was picked.

    ``drawn_by`` names the model that drew each of a prompt's responses.
    """
    pool, k = round.pool, table.items.responses
    order = {pick: place for place, pick in enumerate(round.picks.tolist())}
    won = dict(zip(round.picks.tolist(), round.outcome.tolist(), strict=True))
    rewards, available, nothing = table.rewards.tolist(), pool.available.tolist(), [None] * pool.duels.count
    margins = nothing if pool.item_rewards is None else pool.margins.tolist()
    widths = gain = nearest = cosine = nothing
    if pool.posterior is not None:
        widths, why = pool.widths.tolist(), reasons(pool.features, round.picks)
        gain, nearest, cosine = why.gain.tolist(), why.nearest.tolist(), why.cosine.tolist()
    rows = []
    for i, (a, b) in enumerate(zip(round.offer.duels.first.tolist(), round.offer.duels.second.tolist(), strict=True)):
        prompt = table.prompt_indices[a // k]
        rows.append(
            {
                "candidate": i,
                "prompt_index": prompt,
                "prompt": to_json(prompts[prompt]),
                "response_1": table.texts[a],
                "response_2": table.texts[b],
                "model_1": drawn_by[a % k],
                "model_2": drawn_by[b % k],
                "reward_1": rewards[a],
                "reward_2": rewards[b],
                "tokens_1": len(table.items.rows[a].response),
                "tokens_2": len(table.items.rows[b].response),
                "margin": margins[i],
                "width": widths[i],
                "offered": available[i],
                "picked_position": order.get(i),
                "log_det_gain": gain[i],
                "nearest_picked_duel": nearest[i],
                "nearest_cosine": cosine[i],
                "label": won.get(i),
            }
        )
    return rows


def preferences(round: Played, table: Table, prompts: Sequence[Prompt]) -> list[Record]:
    """Return the round's labelled duels as TRL reads them: wins only, for want of a place for ties."""
    chosen, rejected = sides(round)
    return [
        {
            "prompt": to_json(prompts[table.prompt_indices[good // table.items.responses]]),
            "chosen": table.texts[good],
            "rejected": table.texts[bad],
        }
        for good, bad in zip(chosen.tolist(), rejected.tolist(), strict=True)
    ]


def drift_row(now: Tensor, initial: Tensor, last: Tensor) -> Record:
    """Return how far the probes' features ``(n, d)`` have moved, and their Gram matrix, since θ0 and since last."""
    return {
        "gradient_drift": drift(now, initial),
        "gradient_step": drift(now, last),
        "kernel_drift": drift(now @ now.mT, initial @ initial.mT),
        "kernel_step": drift(now @ now.mT, last @ last.mT),
    }


@dataclass(frozen=True)
class Fixed:
    """Two responses of the initial model to each of the first held-out prompts, with their rewards: duels to order."""

    rows: tuple[Row, ...]
    rewards: tuple[float, ...]

    @classmethod
    def of(cls, setup: Setup, record: Record) -> Fixed:
        """Read what ``record`` wrote."""
        prompts = [ids for ids in setup.heldout.encoded[: setup.alignment.evaluation.duels] for _ in range(2)]
        rows = (Row(prompt, tuple(response)) for prompt, response in zip(prompts, record["responses"], strict=True))
        return cls(tuple(rows), tuple(record["rewards"]))

    @property
    def record(self) -> Record:
        """The fixed responses as JSON values."""
        return {"responses": [list(row.response) for row in self.rows], "rewards": list(self.rewards)}


def draw_fixed(setup: Setup) -> Fixed:
    """Draw the fixed responses from the initial model, which the policy must be."""
    policy, heldout, count = setup.policy, setup.heldout, setup.alignment.evaluation.duels
    key = heldout.key.fold_in("fixed")
    rows, _ = sample(policy, heldout.encoded[:count], 2, setup.alignment.decoding, key, "evaluate")
    with policy.meter.stage("evaluate"):
        texts = [policy.decode(row.response) for row in rows]
        asked = [prompt for prompt in heldout.prompts[:count] for _ in range(2)]
        rewards = checked(heldout.scorer, asked, texts).tolist()
    return Fixed(tuple(rows), tuple(rewards))


def answer(setup: Setup, fixed: Fixed, initial: bool = False, last: bool = False) -> Record:
    """Let the policy answer the held-out prompts, fewer of them between the ends; return the rows of tables.

    The policies of all rounds draw with the same uniform numbers, so that rounds and strategies can be told apart; the
    initial model draws with others, so that a win against it is one between independent responses.
    """
    policy, learner, heldout, alignment = setup.policy, setup.learner, setup.heldout, setup.alignment
    key = heldout.key.fold_in("initial" if initial else "answers")
    asked = heldout.prompts[: None if initial or last else alignment.evaluation.between or None]
    prompts = heldout.encoded[: len(asked)]
    if initial:
        rows, logs = sample(policy, prompts, 1, alignment.decoding, key, "evaluate")
        reference, pairs = logs, torch.zeros(len(fixed.rows), dtype=torch.float64)
    else:
        rows, logs, reference = beside_reference(policy, prompts, alignment.decoding, key, "evaluate")
        pairs = policy.log_probs(fixed.rows, "evaluate") - learner.reference(fixed.rows)
    with policy.meter.stage("evaluate"):
        texts = [policy.decode(row.response) for row in rows]
        rewards, judged = (checked(s, asked, texts).tolist() for s in (heldout.scorer, heldout.judge))
    evaluations = [
        {
            "prompt_index": i,
            "reward": rewards[i],
            "judge": judged[i],
            "log_ratio": log - at_start,
            "reference_log_prob": at_start,
            "tokens": len(row.response),
            "ended": row.response[-1] in policy.ends,
            "distinct_2": distinct(texts[i]),
        }
        for i, (row, log, at_start) in enumerate(zip(rows, logs.tolist(), reference.tolist(), strict=True))
    ]
    ratios, true = pairs.unflatten(-1, (-1, 2)).tolist(), fixed.rewards
    duels = [
        {
            "prompt_index": i,
            "margin": alignment.training.beta * (first - second),
            "true_margin": (true[2 * i] - true[2 * i + 1]) / alignment.label_temperature,
            "log_ratio_1": first,
            "log_ratio_2": second,
        }
        for i, (first, second) in enumerate(ratios)
    ]
    samples = [
        {"prompt_index": i, "prompt": to_json(prompt), "response": text}
        for i, (prompt, text) in enumerate(zip(asked, texts, strict=True))
    ]
    row = {
        "bits_per_byte": bits_per_byte(policy, heldout.written),
        "heldout_cut": len(cut(heldout.scorer, asked, texts)),
        "judge_cut": len(cut(heldout.judge, asked, texts)),
    }
    return {"row": row, "evaluations": evaluations, "duels": duels, "samples": samples}


def bits_per_byte(policy: Policy, texts: Sequence[str]) -> float:
    """Return how well the policy foretells what people wrote: bits per byte of texts.

    ``-Σ log₂ π(text) / bytes``, each text begun as the tokenizer begins texts (or after an end token); bytes, not
    tokens, so that models with unlike tokenizers can be compared.
    """
    rows = [policy.as_response(text) for text in texts]
    policy.together(rows)
    logs = policy.log_probs(rows, "evaluate")
    return float(-logs.sum() / math.log(2)) / sum(len(text.encode("utf-8", "replace")) for text in texts)
