"""A run of the language-model loop written by hand, with known truth."""

import itertools
from pathlib import Path

import numpy as np

from bandits.core.registry import fingerprint
from bandits.runs.directory import Ledger, config_of
from bandits.runs.files import write_json
from bandits.selector import STRATEGIES
from llm_loop import tables
from llm_loop.config import Alignment, Evaluation
from llm_loop.report.evaluate import distinct

PROMPTS, ROUNDS, BATCH = 24, 4, 6
WORDS = [
    "the",
    "old",
    "garden",
    "was",
    "quiet",
    "and",
    "a",
    "small",
    "bird",
    "sang",
    "of",
    "rain",
    "joy",
    "bread",
    "night",
]


def close(cell: Path) -> None:
    """Enter a cell's tables in its ledger, as they are now."""
    Ledger(cell).close(*(path.name for path in cell.glob("*.jsonl")))


def made_up(
    folder: Path, gain: dict[str, float], seeds: int = 3, judge_follows: bool = True, pool: int | str = 0
) -> Path:
    """Write a run whose strategies gain ``gain`` reward per round; prompts, seeds and rounds add noise of their own."""
    write_json(
        folder / "manifest.json",
        {
            "experiment": "llm",
            "preset": "made-up",
            "commit": "0123456789abcdef",
            "config": config_of(
                Alignment(
                    strategies=tuple(gain),
                    seeds=seeds,
                    rounds=ROUNDS,
                    batch=BATCH,
                    prompts_per_round=10,
                    pool=pool,
                    evaluation=Evaluation(prompts=PROMPTS, duels=PROMPTS),
                )
            ),
            "parts": {
                "strategies": {
                    name: fingerprint(STRATEGIES[name]) | {"summary": STRATEGIES[name].summary} for name in gain
                }
            },
            "versions": {"python": "3.11", "torch": "2.13.0"},
        },
    )
    for (strategy, slope), seed in itertools.product(gain.items(), range(seeds)):
        generator = np.random.default_rng(seed)
        base = generator.normal(0.3, 0.8, PROMPTS)
        texts = [" ".join(generator.choice(WORDS, 12)) for _ in range(PROMPTS)]
        cell = folder / "cells" / f"{strategy}--seed{seed}"
        rounds, evaluations, duels, candidates, samples = [], [], [], [], []
        for r in range(ROUNDS + 1):
            key = np.random.default_rng([seed, r, int(1000 * slope)])
            shift = slope * r + (0.1 * key.normal() if r else 0)
            rewards = base + shift + (0.4 * key.normal(size=PROMPTS) if r else 0)
            for p in range(PROMPTS):
                text = texts[p] if r == 0 else " ".join(key.choice(WORDS, 12))
                evaluations.append(
                    {
                        "strategy": strategy,
                        "seed": seed,
                        "round": r,
                        "prompt_index": p,
                        "reward": rewards[p],
                        "judge": (0.2 * rewards[p] if judge_follows else 0.1 * base[p]) + 0.02 * key.normal() * (r > 0),
                        "log_ratio": 0.0 if r == 0 else 0.5 * r + key.normal(),
                        "reference_log_prob": 12 * (-3.6 + 0.1 * key.normal()) + 1e-9,
                        "tokens": 12,
                        "ended": bool(p % 2),
                        "distinct_2": distinct(text),
                    }
                )
                samples.append(
                    {
                        "strategy": strategy,
                        "seed": seed,
                        "round": r,
                        "prompt_index": p,
                        "prompt": f"Prompt <{p}> & so on",
                        "response": text,
                    }
                )
                for _ in range(3):
                    true = key.normal()
                    duels.append(
                        {
                            "strategy": strategy,
                            "seed": seed,
                            "round": r,
                            "prompt_index": p,
                            "margin": r * (0.5 * true + 0.5 * key.normal()),
                            "true_margin": true,
                            "log_ratio_1": -0.1 * r,
                            "log_ratio_2": -0.3 * r,
                        }
                    )
            rounds.append(
                {
                    "strategy": strategy,
                    "seed": seed,
                    "round": r,
                    "labels": BATCH * r,
                    "tokens_generated": 4000 if r else 0,
                    "tokens_scored": 6000 if r else 0,
                    "tokens_trained": 5000 * r,
                    "tokens_features": (9000 if r else 0) * (strategy != "random"),
                    "zero_A_gradient_share": (1.0 if r == 1 else 0.0) if r else None,
                    "zero_margin_share": (1.0 if r == 1 else 0.0) if r else None,
                    "duplicates_dropped": int(key.integers(0, 3)) if r else None,
                    "selected_length": 12.5 if r else None,
                    "pool_length": 12.0 if r else None,
                    "bits_per_byte": 1.2 + 0.01 * r,
                    "chosen_length": 12.0 if r else None,
                    "rejected_length": 10.0 if r else None,
                    "gradient_drift": 0.1 * r if r else None,
                    "kernel_drift": 0.2 * r if r else None,
                    "width_error_rank_correlation": 0.1 + 0.05 * key.normal() if r else None,
                    "information": 3.0 * r if r else None,
                    "dpo_loss": 0.69 - 0.05 * r if r else None,
                    "first_loss": 0.693147 if r else None,
                }
            )
            if r == 0:
                continue
            widths = key.uniform(0.2, 1.0, 30)
            order = (np.argsort(-widths) if strategy != "random" else key.permutation(30))[:BATCH].tolist()
            for c in range(30):
                place = order.index(c) if c in order else None
                other = order[0] if c != order[0] else order[1]
                reward_1, reward_2 = key.normal(size=2)
                text_1, text_2 = (" ".join(key.choice(WORDS, 12)) for _ in range(2))
                candidates.append(
                    {
                        "strategy": strategy,
                        "seed": seed,
                        "round": r,
                        "candidate": c,
                        "prompt_index": c // 3,
                        "prompt": f"Train {c // 3}",
                        "offered": True,
                        "response_1": {0: "NA", 1: ""}.get(c, text_1),
                        "response_2": text_2,
                        "reward_1": reward_1,
                        "reward_2": reward_2,
                        "tokens_1": 12,
                        "tokens_2": 12,
                        "margin": 0.1 * key.normal() * (r > 1),
                        "width": widths[c],
                        "picked_position": place,
                        "log_det_gain": float(np.log1p(widths[c] ** 2)),
                        "nearest_picked_duel": other,
                        "nearest_cosine": 0.25,
                        "label": None if place is None else float(key.random() < 1 / (1 + np.exp(reward_2 - reward_1))),
                    }
                )
        for kind, rows in (
            (tables.Round, rounds),
            (tables.Evaluation, evaluations),
            (tables.HeldoutDuel, duels),
            (tables.Candidate, candidates),
            (tables.Sample, samples),
        ):
            tables.write(kind, cell, (kind(**row) for row in rows))
        write_json(cell / "timing.json", {"generate": 12.5, "train": 30.25})
        close(cell)
    return folder
