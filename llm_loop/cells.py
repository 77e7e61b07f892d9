"""Owns how a cell is carried out: play, measure, record, resume; and how cells are run side by side.

What is written, and where, is told in ``llm_loop.config``.  Knows nothing of the report.
"""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.loop import Round, play
from bandits.runs.legacy import RunDirectory, read_json, write_json, write_text
from bandits.runs.text import dumps, loads
from bandits.selector import STRATEGIES, FeatureSpace, Strategy
from llm_loop import tables
from llm_loop.agreement import settle
from llm_loop.arena import Completions, Table, TextArena
from llm_loop.config import Alignment
from llm_loop.data import prompts as prompt_sets
from llm_loop.diagnostics import drift, rank_correlation, reasons
from llm_loop.gradients import Gradients
from llm_loop.launch import is_main, main_first, processes, wait
from llm_loop.learner import DPOLearner, Fit
from llm_loop.models import Policy, Row, load_policy
from llm_loop.report.evaluate import distinct
from llm_loop.rewards.scorers import Scorer, checked, load_scorer
from llm_loop.sampling import sample

Record = dict[str, Any]
DIAGNOSTICS = FeatureSpace(normalise="response")
"""Where the widths of a strategy that reads none are measured, to compare them: ActiveDPO's space in practice."""


class Heldout:
    """Held-out prompts, their fixed duels and probes, and what is measured on them."""

    def __init__(
        self, alignment: Alignment, prompts: Sequence[str], policy: Policy, scorer: Scorer, judge: Scorer, key: Key
    ) -> None:
        """Take the first held-out prompts."""
        if len(prompts) < alignment.heldout:
            raise InputError(f"{alignment.heldout} held-out prompts asked for, but the prompt set has {len(prompts)}")
        self.alignment, self.policy, self.scorer, self.judge, self.key = alignment, policy, scorer, judge, key
        self.prompts = tuple(prompts[: alignment.heldout])
        self.encoded = policy.encode(self.prompts, alignment.prompt_tokens)
        self.rows: tuple[Row, ...] = ()
        """two responses of the initial model to each prompt that gives a duel"""
        self.true: list[float] = []
        """their rewards"""

    def begin(self) -> Record:
        """Draw the fixed responses from the initial model, which the policy must be; return them as JSON values."""
        count = self.alignment.heldout_duels
        rows, _ = sample(
            self.policy, self.encoded[:count], 2, self.alignment.decoding, self.key.fold_in("fixed"), "evaluate"
        )
        with self.policy.meter.stage("evaluate"):
            texts = [self.policy.decode(row.response) for row in rows]
            asked = [prompt for prompt in self.prompts[:count] for _ in range(2)]
            rewards = checked(self.scorer, asked, texts).tolist()
        fixed = {"responses": [list(row.response) for row in rows], "rewards": rewards}
        self.resume(fixed)
        return fixed

    def resume(self, fixed: Record) -> None:
        """Take up the fixed responses of a record."""
        prompts = [ids for ids in self.encoded[: self.alignment.heldout_duels] for _ in range(2)]
        self.rows = tuple(Row(p, tuple(r)) for p, r in zip(prompts, fixed["responses"], strict=True))
        self.true = fixed["rewards"]

    @property
    def probes(self) -> list[Row]:
        """Fixed responses on which gradients are followed."""
        return list(self.rows[: self.alignment.probes])

    def measure(self, learner: DPOLearner) -> Record:
        """Let the policy answer the held-out prompts, always with the same uniform numbers; return rows of tables."""
        policy, start = self.policy, learner.at_start
        rows, logs = sample(policy, self.encoded, 1, self.alignment.decoding, self.key.fold_in("answers"), "evaluate")
        if start:
            ratios, margins = torch.zeros(len(rows)), torch.zeros(len(self.rows))
        else:
            with policy.reference():
                ratios = logs - policy.log_probs(rows, "evaluate")
            reference = learner.reference(self.rows)
            margins = self.alignment.beta * (policy.log_probs(self.rows, "evaluate") - reference)
        with policy.meter.stage("evaluate"):
            texts = [policy.decode(row.response) for row in rows]
            rewards, judged = (checked(s, self.prompts, texts).tolist() for s in (self.scorer, self.judge))
        columns = zip(self.prompts, rows, texts, rewards, judged, ratios.tolist(), strict=True)
        evaluations, samples = [], []
        for i, (prompt, row, text, reward, judge, ratio) in enumerate(columns):
            evaluations.append(
                {
                    "prompt_index": i,
                    "reward": reward,
                    "judge": judge,
                    "log_ratio": ratio,
                    "tokens": len(row.response),
                    "distinct_2": distinct(text),
                }
            )
            samples.append({"prompt_index": i, "prompt": prompt, "response": text})
        pairs = [
            (margins[2 * i] - margins[2 * i + 1], self.true[2 * i] - self.true[2 * i + 1])
            for i in range(len(self.rows) // 2)
        ]
        duels = [{"prompt_index": i, "margin": float(a), "true_margin": b} for i, (a, b) in enumerate(pairs)]
        return {"evaluations": evaluations, "duels": duels, "samples": samples}


class Cell:
    """One strategy with one seed: its policy, arena, learner and records.

    Under ``accelerate launch`` all processes play the same cell on the same key and share the work of DPO alone; only
    the main one writes.
    """

    def __init__(
        self,
        alignment: Alignment,
        name: str,
        seed: int,
        folder: Path,
        strategy: Strategy | None = None,
        write: bool = True,
    ) -> None:
        """Build everything, and take up what a run that was stopped left in the folder.

        ``strategy`` is the named one, for a process that may not know the name.
        """
        self.alignment, self.name, self.seed, self.folder, self.write = alignment, name, seed, folder, write
        self.strategy = strategy or STRATEGIES[name]
        shared, key = Key(alignment.seed), Key(alignment.seed).fold_in("seed", seed)
        texts = prompt_sets.load(alignment.prompts, shared)
        self.policy = load_policy(alignment.model, alignment.adapter, key, alignment.device, alignment.dtype)
        self.policy.batch_tokens = alignment.score_tokens
        scorer = load_scorer(alignment.reward, alignment.device, alignment.dtype)
        judge = load_scorer(alignment.judge, alignment.device, alignment.dtype)
        self.arena = TextArena(
            self.policy,
            scorer,
            texts.train,
            key=key.fold_in("arena"),
            prompts_per_round=alignment.prompts_per_round,
            responses=alignment.responses,
            decoding=alignment.decoding,
            oracle=alignment.oracle,
            batch=alignment.batch,
            prompt_tokens=alignment.prompt_tokens,
        )
        gradients = Gradients(
            self.policy,
            alignment.beta,
            alignment.sketch,
            alignment.sketch_size,
            key.fold_in("gradients"),
            alignment.feature_tokens,
        )
        self.learner = DPOLearner(self.policy, alignment.training, gradients, key.fold_in("learner"))
        self.heldout = Heldout(alignment, texts.heldout, self.policy, scorer, judge, key.fold_in("heldout"))
        longest = max(len(prompt) for prompt in (*self.arena.encoded, *self.heldout.encoded))
        settle(self.policy, longest, alignment.tokens)
        self.key = key.fold_in("play")
        self.records: list[Record] = []
        while (path := self._record(len(self.records))).exists():
            self.records.append(read_json(path))
        self.initial_probe = self.last_probe = torch.empty(0)
        self._since = time.perf_counter()

    def _record(self, number: int) -> Path:
        return self.folder / "records" / f"round-{number:02d}.json"

    def _adapter(self, number: int) -> Path:
        return self.folder / "adapters" / f"round-{number:02d}"

    def run(self) -> None:
        """Play all rounds that are not recorded yet, then write the tables."""
        if self.write:
            for half_written in self.folder.rglob(".*.tmp"):  # of a process that was killed
                half_written.unlink()
        if not self.records:
            fixed = self.heldout.begin()
            measured = self.heldout.measure(self.learner)
            self._keep({"row": {"labels": 0}, "fixed": fixed} | measured)
        self.heldout.resume(self.records[0]["fixed"])
        self.last_probe = self.initial_probe = self._probe_at(0)
        replay = [self._recall(number) for number in range(1, len(self.records))]
        if replay:
            self.last_probe = self._probe_at(len(replay))
        plan = self.alignment.plan
        for round in play(self.arena, self.learner, self.strategy, plan, self.key, replay, DIAGNOSTICS):
            row = self._pool_row(round) | self._fit_row(round.fit)
            row |= self._tokens() | self._probe()
            record = {"row": row, "picks": round.picks.tolist(), "candidates": self._candidates(round)}
            record |= {"preferences": self._preferences(round), "table": self._table()} | self.heldout.measure(
                self.learner
            )
            self._keep(record)
        self._tables()

    def _keep(self, record: Record) -> None:
        """Write a finished round: θ first, then the record, which makes the round count."""
        number = len(self.records)
        text = dumps(record)
        self.records.append(loads(text))  # as a run that goes on would read it
        if self.write:
            self.policy.save(self._adapter(number))
            write_text(self._record(number), text + "\n")
            path = self.folder / "timing.json"
            spent = read_json(path) if path.exists() else {}
            seconds = dict(self.policy.meter.seconds)
            seconds["other"] = time.perf_counter() - self._since - sum(seconds.values())
            write_json(path, spent | {stage: round(spent.get(stage, 0.0) + s, 2) for stage, s in seconds.items()})
        self.policy.meter.seconds.clear()
        self._since = time.perf_counter()

    def _theta(self, number: int) -> dict[str, Tensor]:
        """Read θ after a round from its PEFT folder."""
        saved = load_file(self._adapter(number) / "adapter_model.safetensors")
        return {name: saved[name.replace(".default.", ".")] for name in self.policy.parameters}

    def _recall(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Put a recorded round's table back into the arena; return its picks and θ after it."""
        record = self.records[number]
        table = record["table"]
        k = self.alignment.responses
        encoded = [self.arena.encoded[i] for i in table["prompt_indices"] for _ in range(k)]
        rows = tuple(Row(p, tuple(r)) for p, r in zip(encoded, table["responses"], strict=True))
        items = Completions(rows, k, torch.tensor(table["log_probs"], dtype=torch.float64))
        self.arena.tables[number - 1] = Table(
            items,
            tuple(table["texts"]),
            torch.tensor(table["rewards"], dtype=torch.float64),
            tuple(table["prompt_indices"]),
        )
        self.learner.note(rows, reference=torch.tensor(table["reference"], dtype=torch.float64))
        return torch.tensor(record["picks"]), self._theta(number)

    def _table(self) -> Record:
        table = self.arena.table
        return {
            "prompt_indices": list(table.prompt_indices),
            "responses": [list(row.response) for row in table.items.rows],
            "texts": list(table.texts),
            "log_probs": table.items.log_probs.tolist(),
            "rewards": table.rewards.tolist(),
            "reference": self.learner.reference(table.items.rows).tolist(),
        }

    def _tokens(self) -> Record:
        """Return the tokens of the method's stages since the round began; gradients for diagnostics are not its own."""
        stages = {"generated": "generate", "scored": "score", "features": "features", "trained": "train"}
        now = self.policy.meter.tokens
        row = {f"tokens_{column}": now[stage] - self.arena.spent[stage] for column, stage in stages.items()}
        return row if "width" in self.strategy.reads else row | {"tokens_features": 0}

    def _probe_at(self, number: int) -> Tensor:
        """Return the probes' features at θ after a round."""
        with self.policy.at(self._theta(number) if number else self.policy.initial):
            return self.learner.gradients(self.heldout.probes, "probe").values

    def _probe(self) -> Record:
        """Measure how far features have moved; the current ones become the last."""
        now = self.learner.gradients(self.heldout.probes, "probe").values
        row = {
            "gradient_drift": drift(now, self.initial_probe),
            "gradient_step": drift(now, self.last_probe),
            "kernel_drift": drift(now @ now.mT, self.initial_probe @ self.initial_probe.mT),
            "kernel_step": drift(now @ now.mT, self.last_probe @ self.last_probe.mT),
        }
        self.last_probe = now
        return row

    def _pool_row(self, round: Round) -> Record:
        """Return the diagnostics of a round's pool."""
        pool = round.pool
        assert pool is not None
        space = self.strategy.space if "width" in self.strategy.reads else DIAGNOSTICS
        offered = pool.available
        margins, truth = pool.margins, pool.duels.difference(self.arena.rewards)
        lengths = torch.tensor([len(row.response) for row in self.arena.table.items.rows], dtype=torch.float64)
        picked = pool.duels.take(round.picks)
        per_prompt = [
            self.arena.table.texts[i : i + self.alignment.responses]
            for i in range(0, len(lengths), self.alignment.responses)
        ]
        gains = reasons(pool.features, round.picks).gain[round.picks]
        # Where V is made anew every round, what the loop tells is from before this round's duels.
        grown = space.gradients != "current" and space.weight == "none"
        return {
            "labels": (round.number + 1) * self.alignment.batch,
            "zero_A_gradient_share": self.learner.gradients.zero_share if space.layer == "all" else math.nan,
            "zero_margin_share": float((margins[offered] == 0).double().mean()),
            "duplicates_dropped": sum(len(texts) - len(set(texts)) for texts in per_prompt),
            "duels_offered": int(offered.sum()),
            "selected_length": float(torch.cat([lengths[picked.first], lengths[picked.second]]).mean()),
            "pool_length": float(lengths.mean()),
            "width_error_rank_correlation": rank_correlation(
                pool.features.widths[offered], (margins - truth).abs()[offered]
            ),
            "information": float(round.information) + (0.0 if grown else float(gains.sum())),
        }

    @staticmethod
    def _fit_row(fit: Fit) -> Record:
        return {"first_loss": fit.first_loss, "dpo_loss": fit.last_loss, "steps": fit.steps}

    def _candidates(self, round: Round) -> list[Record]:
        """Return the replay log of every duel of the pool."""
        pool, table = round.pool, self.arena.table
        assert pool is not None
        why, k = reasons(pool.features, round.picks), self.alignment.responses
        order = {int(pick): place for place, pick in enumerate(round.picks)}
        won = {int(pick): float(w) for pick, w in zip(round.picks, round.answers.first_won, strict=True)}
        rewards = table.rewards.tolist()
        rows = []
        for i, (a, b) in enumerate(zip(round.duels.first.tolist(), round.duels.second.tolist(), strict=True)):
            prompt = table.prompt_indices[a // k]
            rows.append(
                {
                    "candidate": i,
                    "prompt_index": prompt,
                    "prompt": self.arena.prompts[prompt],
                    "response_1": table.texts[a],
                    "response_2": table.texts[b],
                    "reward_1": rewards[a],
                    "reward_2": rewards[b],
                    "tokens_1": len(table.items.rows[a].response),
                    "tokens_2": len(table.items.rows[b].response),
                    "margin": float(pool.margins[i]),
                    "width": float(pool.features.widths[i]),
                    "offered": bool(pool.available[i]),
                    "picked_position": order.get(i),
                    "log_det_gain": float(why.gain[i]),
                    "nearest_picked_duel": int(why.nearest[i]),
                    "nearest_cosine": float(why.cosine[i]),
                    "label": won.get(i),
                }
            )
        return rows

    def _preferences(self, round: Round) -> list[Record]:
        """Return the round's labelled duels as TRL reads them."""
        table, k = self.arena.table, self.alignment.responses
        rows = []
        duels = round.answers.duels
        for a, b, won in zip(
            duels.first.tolist(), duels.second.tolist(), round.answers.first_won.tolist(), strict=True
        ):
            good, bad = (a, b) if won else (b, a)
            rows.append(
                {
                    "prompt": self.arena.prompts[table.prompt_indices[a // k]],
                    "chosen": table.texts[good],
                    "rejected": table.texts[bad],
                }
            )
        return rows

    def _tables(self) -> None:
        """Write the tables from the records."""
        if not self.write:
            return
        for kind in tables.KINDS:  # rounds last: where they are, the cell is done
            rows = [
                kind(strategy=self.name, seed=self.seed, round=number, **row)
                for number, record in enumerate(self.records)
                for row in ([record["row"]] if kind is tables.Round else record.get(kind.table, []))
            ]
            tables.write(kind, self.folder, rows)


def cell_name(strategy: str, seed: int) -> str:
    """Return the name of a cell's folder."""
    return f"{strategy}--seed{seed}"


def run_cell(alignment: Alignment, name: str, seed: int, folder: Path, strategy: Strategy | None = None) -> float:
    """Carry out one cell, from its last recorded round on; return the seconds spent.

    ``strategy`` is the named one, for a process that may not know the name.
    """
    started = time.perf_counter()
    _quiet()
    if alignment.device == "cpu":
        torch.set_num_threads(1)  # cells run side by side; and one thread sums in one order
    with main_first():
        cell = Cell(alignment, name, seed, folder, strategy, write=is_main())
    wait()  # records are read by all before the first new one is written
    cell.run()
    return time.perf_counter() - started


def _quiet() -> None:
    """Silence what libraries print about themselves; errors still come through."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def check(alignment: Alignment) -> None:
    """Build one cell without running it, so that what cannot be is said before anything is written."""
    _quiet()
    Cell(alignment, *alignment.cells[0], Path(os.devnull))


def run(alignment: Alignment, directory: RunDirectory, jobs: int = 0) -> None:
    """Run all cells that are not done yet; ``jobs`` side by side (0: one per core; one on CUDA); no byte changes."""
    todo = [
        cell for cell in alignment.cells if not tables.path_of(tables.Round, directory.cell(cell_name(*cell))).exists()
    ]
    if alignment.device == "cuda" or processes() > 1:
        jobs = 1
    jobs = min(jobs if jobs > 0 else joblib.cpu_count(), max(1, len(todo)))
    folders = [directory.cell(cell_name(*cell)) for cell in alignment.cells]
    with (
        tqdm(total=len(folders) * (alignment.rounds + 1), desc="rounds", disable=not todo or not is_main()) as bar,
        _Watched(bar, folders),
    ):
        work = (
            joblib.delayed(run_cell)(alignment, *cell, directory.cell(cell_name(*cell)), STRATEGIES[cell[0]])
            for cell in todo
        )
        joblib.Parallel(n_jobs=jobs)(work)
    wait()
    if is_main():
        directory.note_timing({folder.name: read_json(folder / "timing.json") for folder in folders})


class _Watched:
    """Move a progress bar by the records that appear in the cells' folders."""

    def __init__(self, bar: Any, folders: Sequence[Path]) -> None:
        self._bar, self._folders, self._over = bar, folders, threading.Event()
        self._bar.initial = self._bar.n = self._count()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _count(self) -> int:
        return sum(1 for folder in self._folders for _ in (folder / "records").glob("round-*.json"))

    def _follow(self) -> None:
        while not self._over.wait(1.0):
            self._bar.update(self._count() - self._bar.n)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._bar.update(self._count() - self._bar.n)
