"""Rows: the language-model loop's passes beside plain passes, per-example gradient libraries, ``generate`` and TRL."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bandits.core.rng import Key
from bandits.core.sketches import ShiftSketch
from benchmarks.harness import commands
from benchmarks.harness.row import Answer, Check, Contender, Row, Target, register

SIZE, BETA = 8192, 0.1
LOOP = ("transformers", "peft", "trl")
RATE = 5e-4  # of ours, TRL's and the one written out
TRAINED = 2  # steps of a DPO fit
OFF = 1e-4  # nats by which losses may differ from the reference's


def _policy(layers: int = 0) -> Any:
    """Return SmolLM2 with an adapter on all layers, or the uppermost, its B-matrices off zero: no gradient vanishes."""
    import transformers

    from llm_loop.models import Adapter, load_policy

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    policy = load_policy("smollm2-135m", Adapter(layers=layers), Key(0))
    generator = Key(0).fold_in("moved").torch_generator()
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    return policy


def _rows(policy: Any, count: int, length: int) -> list[Any]:
    """Return rows of ``length`` tokens, a sixth of them prompt, drawn uniformly from common tokens."""
    from llm_loop.models import Row

    ids = torch.randint(1000, 20_000, (count, length), generator=Key(3).fold_in("tokens").torch_generator()).tolist()
    return [Row(tuple(row[: length // 6]), tuple(row[length // 6 :])) for row in ids]


def gradients(rows: int, length: int, layers: int = 0) -> Callable[[], Answer]:
    """Hooks and the sketch; two rows are compared by the check; the sketch's share of the time is taken apart."""
    from llm_loop.gradients import Gradients

    policy = _policy(layers)
    items = _rows(policy, rows, length)
    maker = Gradients(policy, BETA, "shift", SIZE, Key(1), 10**6)
    first = maker(items)
    spent, add = [0.0], maker.map.add

    def timed(out: Tensor, block: int, values: Tensor) -> None:
        started = time.perf_counter()
        add(out, block, values)
        spent[0] += time.perf_counter() - started

    maker.map.add = timed  # type: ignore[method-assign]
    started = time.perf_counter()
    maker(items)
    share = spent[0] / (time.perf_counter() - started - spent[0])
    maker.map.add = add  # type: ignore[method-assign]
    return lambda: {"features": maker(items).values[:2], "first": first.values[:2], "sketch_share": share}


def plain(rows: int, length: int, layers: int = 0) -> Callable[[], Answer]:
    """One forward and backward pass of the batch through the layers that train, for LoRA's gradients of the sum."""
    policy = _policy(layers)
    items = _rows(policy, rows, length)
    policy.log_probs(items, "benchmark")  # what the layers below make of the rows is known

    def run() -> Answer:
        total = BETA * policy.summed([[row] for row in items]).sum()
        got = torch.autograd.grad(total, list(policy.parameters.values()))
        return {"norm": float(sum(g.square().sum() for g in got))}

    return run


def singly(rows: int, length: int) -> Callable[[], Answer]:
    """A loop over batches of one, without any projection (LESS and TRAK project each row besides)."""
    policy = _policy()
    items = _rows(policy, rows, length)

    def run() -> Answer:
        total = 0.0
        for row in items:
            value = BETA * policy.token_log_probs([row]).sum()
            got = torch.autograd.grad(value, list(policy.parameters.values()))
            total += float(sum(g.square().sum() for g in got))
        return {"norm": total}

    return run


def opacus(rows: int, length: int) -> Callable[[], Answer]:
    """Opacus' per-sample gradients of LoRA's matrices, unprojected."""
    from opacus import GradSampleModule

    policy = _policy()
    for module in policy.model.modules():
        module.train()
    wrapped = GradSampleModule(policy.model, strict=False, loss_reduction="sum")
    ids, inside = policy.padded(_rows(policy, rows, length))

    def run() -> Answer:
        logits = wrapped(input_ids=ids, use_cache=False).logits.float()[:, :-1]
        logs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        (BETA * (logs * inside[:, 1:]).sum()).backward()
        total = sum(float(p.grad_sample.square().sum()) for p in policy.parameters.values())
        wrapped.zero_grad(set_to_none=True)
        for parameter in policy.parameters.values():
            parameter.grad_sample = None
        return {"norm": total}

    return run


def bergson(rows: int, length: int) -> Callable[[], Answer]:
    """bergson's collector on LoRA's matrices, each projected on both sides to 6 x 6 (8640 numbers a row)."""
    from bergson import GradientProcessor, IndexConfig
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from datasets import Dataset

    policy = _policy()
    items = _rows(policy, rows, length)
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt, *row.response],
                "labels": [-100] * len(row.prompt) + list(row.response),
                "length": row.tokens,
            }
            for row in items
        ]
    )
    names = {
        name
        for name, module in policy.model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear) and ("lora_A" in name or "lora_B" in name)
    }
    scratch = tempfile.mkdtemp()
    Path(f"{scratch}.part").mkdir(exist_ok=True)  # where it writes before it is done
    config = IndexConfig(run_path=scratch, projection_dim=6)

    def run() -> Answer:
        collector = InMemoryCollector(
            model=policy.model.base_model,
            data=data,
            cfg=config,
            target_modules=names,
            processor=GradientProcessor(projection_dim=6),
        )
        computer = CollectorComputer(
            policy.model, data, collector=collector, cfg=config, batches=[list(range(len(items)))]
        )
        computer.run_with_collector_hooks(desc="rows")
        return {"matrices": float(len(collector.gradients))}

    return run


def gradients_check(rows: int, length: int, layers: int = 0) -> Callable[[Mapping[str, Answer]], Check]:
    """Return the check of this size: two rows alone, by autograd, through the same sketch written out.

    With the model in float64 the hooks must agree to 1e-5.  The timed rows, in float32, must come as near to float64 as
    autograd does in float32 (within a factor 2, or 1e-5): rounding inside the model is not an error of ours.
    """

    def check(answers: Mapping[str, Answer]) -> Check:
        from llm_loop.gradients import Gradients

        policy = _policy(layers)
        items = _rows(policy, rows, length)[:2]
        single = _alone(policy, items)
        policy.model.double()
        double = _alone(policy, items)
        hooks = Gradients(policy, BETA, "shift", SIZE, Key(1), 10**6)(items).values

        def off(got: Tensor) -> float:
            return float(((got - double).norm(dim=-1) / double.norm(dim=-1)).max())

        mine, theirs, exact = off(torch.from_numpy(answers["ours"]["features"])), off(single), off(hooks)
        return Check(
            exact < 1e-5 and mine < max(1e-5, 2 * theirs),
            f"two rows against autograd alone in float64, "
            f"relative: in float64 {exact:.1e}; as timed, in float32, {mine:.1e}, where autograd in float32 "
            f"is {theirs:.1e} off",
        )

    return check


def _alone(policy: Any, rows: list[Any]) -> Tensor:
    """Return each row's sketched gradient by autograd on it alone; the sketch coordinate by coordinate."""
    matrices = _matrices(policy)
    sketches = [
        ShiftSketch.draw(p.numel(), SIZE, Key(1).fold_in("sketch").fold_in("matrix", i)) for i, p in enumerate(matrices)
    ]
    images = []
    for row in rows:
        ids, inside = policy.padded([row])
        logs = policy.model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        chosen = logs.gather(-1, ids[:, 1:, None]).squeeze(-1)
        image = np.zeros(SIZE)
        parts = torch.autograd.grad(BETA * (chosen * inside[:, 1:]).sum(), matrices)
        for part, sketch in zip(parts, sketches, strict=True):
            place = np.arange(part.numel())
            bucket = (place + sketch.shift.numpy()[place // SIZE]) % SIZE
            np.add.at(image, bucket, (part.flatten() * sketch.sign).double().numpy())
        images.append(torch.from_numpy(image))
    return torch.stack(images)


def _matrices(policy: Any) -> list[Tensor]:
    """Return LoRA's matrices in the order of the features."""
    return [layer[side]["default"].weight for layer in _layers(policy) for side in (0, 1)]


def _layers(policy: Any) -> list[tuple[Any, Any]]:
    return [(layer.lora_A, layer.lora_B) for layer in policy.layers]


PROMPTS, DRAWN = 64, 24


def _prompts(policy: Any) -> list[tuple[int, ...]]:
    """Return 64 prompts of 4 to 9 tokens, from the built-in set."""
    from llm_loop.data.prompts import load

    encoded = policy.encode(load("builtin", Key(0)).train, 64)
    return [tuple(encoded[i % len(encoded)][:9]) for i in range(PROMPTS)]


def drawing() -> Callable[[], Answer]:
    """The loop's sampling: 64 prompts, one response each, all 24 tokens; log-probabilities come with it."""
    from llm_loop.sampling import Decoding, sample

    policy = _policy()
    prompts = _prompts(policy)
    policy.stops = torch.tensor([-1])  # nobody ends early

    def run() -> Answer:
        rows, logs = sample(policy, prompts, 1, Decoding(DRAWN), Key(1), "benchmark")
        again = policy.log_probs(rows, "benchmark") if not seen else seen[0]
        seen[:] = [again]
        return {"log_probs": logs, "again": again}

    seen: list[Tensor] = []
    run()
    return run


def generating() -> Callable[[], Answer]:
    """``generate`` with its defaults, sampling from the whole distribution."""
    from llm_loop.models import Row
    from llm_loop.seeding import seeded

    policy = _policy()
    prompts = _prompts(policy)
    longest = max(map(len, prompts))
    ids = torch.tensor([[policy.pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])

    def draw(seed: int) -> Tensor:
        with seeded(Key(seed)):
            out: Tensor = policy.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                min_length=0,
                max_new_tokens=DRAWN,
                eos_token_id=-1,
                pad_token_id=policy.pad,
            )
        return out[:, longest:]

    rows = [Row(p, tuple(r)) for p, r in zip(prompts, draw(1).tolist(), strict=True)]
    known = policy.log_probs(rows, "benchmark")
    return lambda: {"tokens": float(draw(1).numel()), "log_probs": known}


def forwarding() -> Callable[[], Answer]:
    """One forward pass over as many tokens as are drawn and read: what the products alone cost."""
    policy = _policy()
    prompts = _prompts(policy)
    ids = torch.randint(1000, 20_000, (PROMPTS, max(map(len, prompts)) + DRAWN - 1), generator=Key(3).torch_generator())
    keep = torch.arange(ids.shape[1] - DRAWN, ids.shape[1])

    @torch.no_grad()
    def run() -> Answer:
        with policy.merged():
            return {"top": float(policy.model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits.max())}

    return run


def generation_check(answers: Mapping[str, Answer]) -> Check:
    """Recompute the drawn log-probabilities by a plain pass; compare their mean with ``generate``'s by a z-test."""
    mine = answers["ours"]
    off = float(np.abs(mine["log_probs"] - mine["again"]).max())
    text, ok = f"log-probabilities as drawn and by a plain pass differ by at most {off:.1e} nats", off < 5e-3
    if "generate, defaults" in answers:
        a, b = mine["log_probs"], answers["generate, defaults"]["log_probs"]
        z = float((a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
        text += f"; mean log π(y|x) {a.mean():.1f} ours, {b.mean():.1f} generate (z = {z:.1f}, refused beyond 4)"
        ok = ok and abs(z) < 4
    return Check(ok, text)


def _preferences(policy: Any) -> list[Any]:
    from llm_loop.learner import Preference
    from llm_loop.models import Row

    drawn = _rows(policy, 16, 40)
    rows = drawn[:8] + [Row(drawn[i].prompt, drawn[i + 8].response) for i in range(8)]  # a pair shares its prompt
    with policy.reference():
        known = policy.log_probs(rows, "benchmark").tolist()
    return [Preference(rows[i], rows[i + 8], known[i], known[i + 8]) for i in range(8)]


def dpo(layers: int = 0, whole: bool = False) -> Callable[[], Answer]:
    """The loop's fit: two steps of 8 pairs; ``whole`` runs all layers in every pass, and a prompt for each response."""
    from llm_loop.learner import Training, fit_dpo
    from llm_loop.models import Route

    policy = _policy(layers)
    policy.restore(policy.initial)
    pairs = _preferences(policy)
    policy.route = Route(shared=not whole, cached=not whole)
    training = Training(beta=BETA, rate=RATE, epochs=TRAINED, batch=8)

    def run() -> Answer:
        policy.restore(policy.initial)
        fit = fit_dpo(policy, pairs, training, Key(1))
        return {"first_loss": fit.first_loss, "last_loss": fit.last_loss}

    return run


def trl(cached: bool) -> Callable[[], Answer]:
    """TRL's trainer on our token ids, reference log-probabilities cached or not; all else as its documentation has it.

    From text it would train on other rows: most of these are split otherwise when read again, and get an end token.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from llm_loop.seeding import seeded

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            return dataset

    policy = _policy()
    policy.restore(policy.initial)
    data = Dataset.from_list(
        [
            {
                "prompt_ids": list(pair.chosen.prompt),
                "chosen_ids": list(pair.chosen.response),
                "rejected_ids": list(pair.rejected.response),
            }
            for pair in _preferences(policy)
        ]
    )

    def run() -> Answer:
        policy.restore(policy.initial)
        with tempfile.TemporaryDirectory() as scratch, seeded(Key(1)):
            arguments = DPOConfig(
                output_dir=scratch,
                beta=BETA,
                learning_rate=RATE,
                num_train_epochs=TRAINED,
                per_device_train_batch_size=8,
                lr_scheduler_type="linear",
                max_grad_norm=1.0,
                weight_decay=0.0,
                max_length=None,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                precompute_ref_log_probs=cached,
            )
            trainer = Trainer(model=policy.model, args=arguments, train_dataset=data, processing_class=policy.tokenizer)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        if "ref" in policy.model.peft_config:
            policy.model.delete_adapter("ref")
            policy.model.set_adapter("default")
        return {"first_loss": losses[0], "last_loss": losses[-1]}

    return run


def dpo_check(answers: Mapping[str, Answer], layers: int = 0) -> Check:
    """Compare all losses with log 2 and with two AdamW steps written out, from the logistic loss itself."""
    policy = _policy(layers)
    policy.restore(policy.initial)
    pairs = _preferences(policy)
    base = torch.tensor([p.chosen_reference for p in pairs] + [p.rejected_reference for p in pairs])
    rows = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    solver = torch.optim.AdamW(policy.parameters.values(), RATE, weight_decay=0.0)
    losses = []
    for _ in range(TRAINED):
        chosen, rejected = (policy.token_log_probs(rows).sum(-1) - base).chunk(2)
        value = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        losses.append(value.item())
        solver.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters.values(), 1.0)
        solver.step()
    first = np.abs([answer["first_loss"] - np.log(2) for answer in answers.values()]).max()
    last = np.abs([answer["last_loss"] - losses[-1] for answer in answers.values()]).max()
    told = ", ".join(f"{name} {answer['last_loss']:.4f}" for name, answer in answers.items())
    return Check(
        bool(first < OFF and last < OFF),
        f"first losses off log 2 by at most {first:.1e}; after {TRAINED} steps: {told}; written out {losses[-1]:.4f}, "
        f"off by at most {last:.1e} (refused beyond {OFF:g} nats)",
    )


def loop() -> Callable[[], Answer]:
    """ActiveDPO in the quick preset, one seed; the seconds of its stages against all seconds."""
    from bandits.runs.files import read_json
    from llm_loop import tables
    from llm_loop.config import PRESETS
    from llm_loop.run import AlignmentStudy, Cell

    study = AlignmentStudy.of(replace(PRESETS["quick"][1], seeds=1))

    def run() -> Answer:
        with tempfile.TemporaryDirectory() as scratch:
            started = time.perf_counter()
            study.play(Cell("activedpo-normalised", 0), Path(scratch))
            elapsed = time.perf_counter() - started
            stages: dict[str, Any] = read_json(Path(scratch) / "timing.json")
            rows = len(tables.read(tables.Round, Path(scratch)))
        inside = sum(seconds for name, seconds in stages.items() if name != "other")
        return {"outside": max(0.0, 1 - inside / elapsed), "rows": float(rows)} | {
            f"stage_{name}": float(seconds) for name, seconds in stages.items()
        }

    return run


def loop_check(answers: Mapping[str, Answer]) -> Check:
    """All rounds were played and recorded (its mathematics is checked by the rows above and by the tests)."""
    from llm_loop.config import PRESETS

    mine = answers["ours"]
    stages = {name.removeprefix("stage_"): float(mine[name]) for name in mine if name.startswith("stage_")}
    whole = sum(stages.values())
    shares = ", ".join(f"{name} {share / whole:.0%}" for name, share in sorted(stages.items(), key=lambda s: -s[1]))
    return Check(
        mine["rows"] == PRESETS["quick"][1].rounds + 1,
        f"{mine['rows']:.0f} rounds recorded, the initial model's among them; of its seconds: {shares}",
    )


BEFORE = "a01fed7"  # the loop before its cells were made cheaper
CELL = ("quick", "--seeds", "1", "--prompts", "plots", "--tokens", "20", "--rate", "1.5e-3", "--jobs", "1")


def cells(options: tuple[str, ...], commit: str = "") -> Callable[[], Answer]:
    """Run ``python -m llm_loop OPTIONS`` as a user does, here or at a commit of the past."""
    from bandits.runs.files import read_json

    tree = commands.ROOT
    if commit:
        tree = Path(tempfile.mkdtemp(prefix="tree-"))  # in the contender's own folder, which goes with it
        commands.unpack(commit, tree)

    def run() -> Answer:
        with tempfile.TemporaryDirectory() as scratch:
            peak = commands.run("llm_loop", options, Path(scratch), tree)
            (folder,) = Path(scratch).glob("llm/*")
            records = [read_json(path)["row"] for path in folder.glob("cells/*/records/round-*.json")]
            stages = [read_json(path) for path in sorted(folder.glob("cells/*/timing.json"))]
        return {
            "gigabytes": peak,
            "rounds": float(len(records)),
            "labels": float(sum(row["labels"] for row in records)),
            "cells": np.array([sum(spent.values()) for spent in stages]),
        }

    return run


def cells_check(answers: Mapping[str, Answer], preset: str) -> Check:
    """Each played and recorded as many rounds, and bought as many labels, as the preset has, with one seed.

    A round's record has the labels so far: ``batch · (0 + 1 + ... + rounds)`` in all of a cell's.
    """
    from llm_loop.config import PRESETS

    alignment = PRESETS[preset][1]
    count, rounds = len(alignment.strategies), alignment.rounds
    want = (count * (rounds + 1), count * alignment.batch * rounds * (rounds + 1) / 2)
    passed = all((answer["rounds"], answer["labels"]) == want for answer in answers.values())
    told = "; ".join(
        f"{name} {' + '.join(f'{seconds:.0f}' for seconds in answer['cells'])} s in the stages of the cells, "
        f"{answer['gigabytes']:.1f} GB in all processes together"
        for name, answer in answers.items()
    )
    return Check(
        passed,
        f"{'each' if passed else 'NOT each'} played {count} cells, all rounds of them, with {rounds * alignment.batch} "
        f"labels a cell: {told}",
    )


UPPER = 4  # as Alignment has it, which a test holds: to read it here would load every library of language models


def _upper_rows() -> tuple[Row, Row]:
    """Return the rows of an adapter on the uppermost layers."""
    size = {"rows": 16, "length": 40, "layers": UPPER}
    features = Row(
        "llm-gradients-upper",
        "Per-response LoRA gradients, upper layers",
        f"SmolLM2-135M, LoRA on the upper {UPPER} of 30 layers, 16 x 40 tokens, to {SIZE}; states below are kept",
        Contender("ours", gradients, size, LOOP),
        gradients_check(**size),
        (Target("yardstick", 1.05, "at most 1.05 times one plain pass through the layers that train"),),
        (),
        yardstick=Contender("one plain forward and backward pass", plain, size, LOOP),
        repetitions=3,
    )
    step = Row(
        "dpo-step-upper",
        "DPO step, upper layers",
        f"SmolLM2-135M, LoRA on the upper {UPPER} of 30 layers, 8 pairs x 40 tokens, {TRAINED} steps and set-up",
        Contender("ours", dpo, {"layers": UPPER}, LOOP),
        partial(dpo_check, layers=UPPER),
        (Target("peer", 1.5, "at least 1.5 times as fast as with whole passes"),),
        (Contender("the same, every pass through all layers", dpo, {"layers": UPPER, "whole": True}, LOOP),),
        repetitions=2,
    )
    return features, step


def _gradient_row(rows: int, length: int, long: bool) -> Row:
    size = {"rows": rows, "length": length}
    rivals: tuple[tuple[str, Callable[..., Callable[[], Answer]], Literal["", "bergson", "opacus"]], ...] = (
        ("loop over batches of one, no projection", singly, ""),
        ("bergson, 6 x 6 a matrix", bergson, "bergson"),
        ("Opacus, no projection", opacus, "opacus"),
    )
    return Row(
        f"llm-gradients-{rows}x{length}",
        "Per-response LoRA gradients and sketch",
        f"SmolLM2-135M, rank 16 on q/k/v/o (921,600 coordinates), {rows} x {length} tokens, to {SIZE}",
        Contender("ours", gradients, size, LOOP),
        gradients_check(rows, length),
        (
            Target("yardstick", 1.10, "at most 1.10 times one plain forward and backward pass of the batch"),
            Target("figure", 0.05, "the sketch at most 5 % of the rest", "sketch_share", unit="%"),
        ),
        tuple(
            Contender(name, build, size, (*LOOP, *((package,) if package else ())), repetitions=1)
            for name, build, package in rivals
        ),
        yardstick=Contender("one plain forward and backward pass", plain, size, LOOP),
        repetitions=3,
        long=long,
    )


register(
    *_upper_rows(),
    _gradient_row(16, 40, False),
    _gradient_row(32, 64, True),
    Row(
        "generation",
        "Generation",
        f"SmolLM2-135M, batch {PROMPTS}, {DRAWN} new tokens, float32",
        Contender("ours", drawing, {}, LOOP),
        generation_check,
        (
            Target("peer", 1.8, "at least 1.8 times as fast as generate with defaults"),
            Target("yardstick", 1 / 0.65, "at least 65 % of the speed of one forward pass over the same tokens"),
        ),
        (Contender("generate, defaults", generating, {}, LOOP, repetitions=2),),
        yardstick=Contender("one forward pass over the same tokens", forwarding, {}, LOOP),
        repetitions=3,
        bound="The model's own products: a plain forward pass over the same tokens takes as long as ours.",
    ),
    Row(
        "dpo-step",
        "DPO step",
        f"SmolLM2-135M with LoRA, 8 pairs x 40 tokens, {TRAINED} steps and set-up",
        Contender("ours", dpo, {}, LOOP),
        dpo_check,
        (Target("peer", 1, "not slower than TRL, with or without cached reference log-probabilities"),),
        (
            Contender("TRL, reference computed in each step", trl, {"cached": False}, LOOP),
            Contender("TRL, reference cached (computed once a fit)", trl, {"cached": True}, LOOP),
        ),
        repetitions=2,
    ),
    Row(
        "llm-loop",
        "The LLM loop",
        "ActiveDPO's first seed of the quick preset, as in make llm-run; loading included",
        Contender("ours", loop, {}, LOOP),
        loop_check,
        (Target("figure", 0.05, "at most 5 % of the time outside model passes", "outside", unit="%"),),
        repetitions=1,
        warm=False,
        profiled=False,
        bound="What a process does once: the classes of model and adapter (imported here), weights and prompts read "
        "from the disk; a second cell in the same process reads none of it but the weights.",
    ),
    Row(
        "llm-cell",
        "A cell beside one of the past",
        f"python -m llm_loop {' '.join(CELL)}, loading and page included: ActiveDPO and Random on one seed, one after "
        "the other; layers that train and prompts answered between rounds as each commit has them by default",
        Contender("ours", cells, {"options": CELL}, LOOP),
        partial(cells_check, preset="quick"),
        (Target("peer", 3, f"at least 3 times as fast as at commit {BEFORE}"),),
        (Contender(f"at commit {BEFORE}", cells, {"options": CELL, "commit": BEFORE}, LOOP),),
        repetitions=1,
        warm=False,
        long=True,
        profiled=False,
    ),
)
