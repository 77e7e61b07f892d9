"""Owns what the loop's passes cost against the obvious way, measured: ``python -m llm_loop.benchmark [MODEL]``.

Ways are timed in turns, in one process, on the cores that ``OMP_NUM_THREADS`` gives; the least of several times counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
import transformers
from torch.nn.functional import logsigmoid

from bandits.errors import InputError
from bandits.luck import Luck
from llm_loop.gradients import KINDS, Gradients
from llm_loop.learner import Preference, Training, fit_dpo
from llm_loop.models import Adapter, Policy, Row, load_policy, seeded
from llm_loop.prompts import load
from llm_loop.sampling import Decoding, sample

REPEATS = 3


def race(title: str, ways: dict[str, Callable[[], object]]) -> None:
    """Time the ways in turns and print each one's least seconds and its ratio to the first one's."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(REPEATS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first turn warms up
                best[name] = min(best[name], time.perf_counter() - started)
    print(title)
    base = next(iter(best.values()))
    for name, seconds in best.items():
        print(f"  {name:<42}{seconds:8.2f} s   x {seconds / base:.2f}")


def generation(policy: Policy, prompts: Sequence[tuple[int, ...]]) -> None:
    """Race ``generate`` with its defaults against our drawing: 64 rows of 24 new tokens."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[policy.pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])

    def generate() -> None:
        with seeded(Luck(1)):
            policy.model.generate(input_ids=ids, attention_mask=mask, do_sample=True, min_new_tokens=24,
                                  max_new_tokens=24, pad_token_id=policy.pad)  # fmt: skip

    unending = policy.end
    policy.end = -1  # so that both draw all 24 tokens

    def shared() -> None:
        sample(policy, prompts[:21], 3, Decoding(24), Luck(1), "benchmark")

    race("generation, 64 rows x 24 tokens", {
        "generate with defaults": generate,
        "sample, 64 prompts": lambda: sample(policy, prompts, 1, Decoding(24), Luck(1), "benchmark"),
        "sample, 21 prompts x 3 responses": shared,
    })  # fmt: skip
    policy.end = unending


def features(policy: Policy, rows: Sequence[Row]) -> None:
    """Race one plain forward and backward pass of a batch against per-response gradients of it."""
    ids, inside = policy.padded(rows)
    ways = {kind: Gradients(policy, 0.1, kind, 8192, Luck(1), 10**6) for kind in KINDS if kind != "rademacher"}

    def plain() -> None:
        torch.autograd.grad(policy.token_log_probs(ids, inside).sum(), list(policy.parameters.values()))

    def singly() -> None:
        for row in rows:
            torch.autograd.grad(policy.token_log_probs(*policy.padded([row])).sum(), list(policy.parameters.values()))

    passes: dict[str, Callable[[], object]] = {"one forward + backward of the batch": plain}
    passes |= {f"per-response, sketch {kind}": lambda kind=kind: ways[kind](rows) for kind in ways}  # type: ignore[misc]
    race(f"features, {len(rows)} rows x {rows[0].tokens} tokens", passes | {"a loop over batches of one": singly})


def training(policy: Policy, rows: Sequence[Row]) -> None:
    """Race a bare DPO loop against TRL's trainer on the same preferences."""
    half = len(rows) // 2
    with policy.reference():
        known = policy.log_probs(rows, "benchmark").tolist()
    sides = zip(rows[:half], rows[half:], known[:half], known[half:], strict=True)
    pairs = [Preference(*side) for side in sides]
    settings = Training(epochs=1, batch=8)

    def bare() -> None:
        policy.restore(policy.initial)
        optimiser = torch.optim.AdamW(policy.parameters.values(), settings.rate, weight_decay=0.0)
        for start in range(0, half, settings.batch):
            part = pairs[start : start + settings.batch]
            logs = policy.token_log_probs(*policy.padded([p.chosen for p in part] + [p.rejected for p in part])).sum(-1)
            base = torch.tensor([p.chosen_reference for p in part] + [p.rejected_reference for p in part])
            chosen, rejected = (logs - base).chunk(2)
            (-logsigmoid(settings.beta * (chosen - rejected)).mean()).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters.values(), settings.clip)
            optimiser.step()
            optimiser.zero_grad()

    def trl() -> None:
        policy.restore(policy.initial)
        fit_dpo(policy, pairs, settings, Luck(1))

    race(f"DPO, one epoch of {half} pairs in batches of {settings.batch}", {"a bare loop": bare, "TRL's trainer": trl})
    policy.restore(policy.initial)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all races on a model (by default the quick preset's)."""
    names = list(sys.argv[1:] if arguments is None else arguments) or ["smollm2-135m"]
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        policy = load_policy(names[0], Adapter(), Luck(0))
        prompts = policy.encode(load("builtin", Luck(0)).train, 64)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    prompts = [prompts[i % len(prompts)] for i in range(64)]
    print(f"{names[0]}, {torch.get_num_threads()} threads, least of {REPEATS} times")
    rows, _ = sample(policy, prompts, 1, Decoding(24), Luck(2), "benchmark")
    generation(policy, prompts)
    features(policy, [Row(row.prompt[:7], (row.response * 33)[:33]) for row in rows[:16]])
    training(policy, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
