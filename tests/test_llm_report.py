"""The page of a run: from a folder of tables to words, on a small run made up here with known truth."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bandits.errors import InputError
from bandits.results import write_frame, write_json, write_text
from llm_loop import report
from llm_loop.evaluate import distinct

PROMPTS, ROUNDS, BATCH = 24, 4, 6
WORDS = "the old garden was quiet and a small bird sang of rain joy bread night hope stone river light".split()


def made_up(folder: Path, gain: dict[str, float], seeds: int = 3, judge_follows: bool = True) -> Path:
    """Write a run whose strategies gain ``gain`` reward per round; prompts, seeds and rounds add noise of their own."""
    write_json(folder / "manifest.json", {
        "experiment": "llm", "preset": "made-up", "commit": "0123456789abcdef",
        "config": {"model": "none", "strategies": list(gain), "rounds": ROUNDS, "beta": 0.1},
        "versions": {"python": "3.11", "torch": "2.13.0"},
    })  # fmt: skip
    write_json(folder / "timing.json", {"random--seed0": {"generation": 12.5, "dpo": 30.25}, "total": 42.75})
    for (strategy, slope), seed in itertools.product(gain.items(), range(seeds)):
        generator = np.random.default_rng(seed)
        base = generator.normal(0.3, 0.8, PROMPTS)
        texts = [" ".join(generator.choice(WORDS, 12)) for _ in range(PROMPTS)]
        cell = folder / "cells" / f"{strategy}--seed{seed}"
        rounds, evaluations, duels, candidates, samples = [], [], [], [], []
        for r in range(ROUNDS + 1):
            luck = np.random.default_rng([seed, r, int(1000 * slope)])
            shift = slope * r + (0.1 * luck.normal() if r else 0)
            rewards = base + shift + (0.4 * luck.normal(size=PROMPTS) if r else 0)
            for p in range(PROMPTS):
                text = texts[p] if r == 0 else " ".join(luck.choice(WORDS, 12))
                evaluations.append({
                    "strategy": strategy, "seed": seed, "round": r, "prompt_index": p, "reward": rewards[p],
                    "judge": (0.2 * rewards[p] if judge_follows else 0.1 * base[p]) + 0.02 * luck.normal() * (r > 0),
                    "log_ratio": 0.0 if r == 0 else 2 * r + luck.normal(), "tokens": 12, "distinct_2": distinct(text),
                })  # fmt: skip
                samples.append({"prompt_index": p, "prompt": f"Prompt <{p}> & so on", "round": r, "response": text})
                for _ in range(3):
                    true = luck.normal()
                    duels.append({"strategy": strategy, "seed": seed, "round": r, "prompt_index": p,
                                  "margin": r * (0.5 * true + 0.5 * luck.normal()), "true_margin": true})  # fmt: skip
            rounds.append({
                "strategy": strategy, "seed": seed, "round": r, "labels": BATCH * r, "tokens_generated": 4000 if r else 0,
                "tokens_scored": 6000 if r else 0, "tokens_trained": 5000 * r,
                "zero_A_gradient_share": (1.0 if r == 1 else 0.0) if r else np.nan,
                "zero_margin_share": (1.0 if r == 1 else 0.0) if r else np.nan,
                "duplicates_dropped": float(luck.integers(0, 3)) if r else np.nan,
                "selected_length": 12.5 if r else np.nan, "pool_length": 12.0 if r else np.nan,
                "gradient_drift": 0.1 * r if r else np.nan, "kernel_drift": 0.2 * r if r else np.nan,
                "width_error_rank_correlation": 0.1 + 0.05 * luck.normal() if r else np.nan,
                "information": 3.0 * r if r else np.nan, "dpo_loss": 0.69 - 0.05 * r if r else np.nan,
                "first_loss": 0.693147 if r else np.nan,
            })  # fmt: skip
            if r == 0:
                continue
            widths = luck.uniform(0.2, 1.0, 30)
            order = (np.argsort(-widths) if strategy != "random" else luck.permutation(30))[:BATCH]
            for c in range(30):
                place = order.tolist().index(c) if c in order else None
                reward_1, reward_2 = luck.normal(size=2)
                candidates.append({
                    "strategy": strategy, "seed": seed, "round": r, "prompt_index": c // 3, "prompt": f"Train {c // 3}",
                    "response_1": " ".join(luck.choice(WORDS, 12)), "response_2": " ".join(luck.choice(WORDS, 12)),
                    "reward_1": reward_1, "reward_2": reward_2, "margin": 0.1 * luck.normal() * (r > 1),
                    "width": widths[c], "picked_position": place,
                    "log_det_gain": None if place is None else float(np.log1p(widths[c] ** 2)),
                    "nearest_picked_duel": None if not place else float(order[0]),
                    "label": None if place is None else float(luck.random() < 1 / (1 + np.exp(reward_2 - reward_1))),
                })  # fmt: skip
        for name, rows in (("rounds", rounds), ("evaluations", evaluations), ("duels", duels),
                           ("candidates", candidates)):  # fmt: skip
            write_frame(cell / f"{name}.csv", pd.DataFrame(rows))
        write_text(cell / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in samples))
    return folder
