"""Owns the experiments of the simulator: a config, its presets, and how a run is carried out cell by cell."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from bandits.core.bounds import check_delta
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import ORACLES, Oracle, kappa
from bandits.core.registry import fingerprint
from bandits.core.rng import Key
from bandits.loop import Plan, Round, play
from bandits.runs.directory import RunDirectory, load_checkpoint, save_checkpoint, write_frame
from bandits.selector import STRATEGIES, Strategy
from bandits.sim.arena import Inputs, InputShape, Problem, SyntheticVectorArena
from bandits.sim.audit import Audit, Bounds, Columns
from bandits.sim.learners import LEARNERS, Learner, NeuralLearner, Start
from bandits.sim.networks import MLP, Activation
from bandits.sim.truths import TRUTHS, GroundTruth, TangentTeacher

CHECKPOINT_SECONDS = 15.0
BLOCK = 10  # replicates played at once, at most: one matrix product for all of them, and still work for every core


def split(contender: str) -> tuple[str, str]:
    """Return (learner, strategy) of a contender's name."""
    learner, _, strategy = contender.rpartition(":")
    return learner or "neural", strategy


def split_truth(truth: str) -> tuple[str, str]:
    """Return (ground truth, oracle) of a truth's name: ``cosine`` or ``cosine@flipped``."""
    name, _, oracle = truth.partition("@")
    return name, oracle or "btl"


@dataclass(frozen=True)
class Simulation:
    """A simulated experiment; together with the code's version it determines every byte of its results.

    Contenders are ``strategy`` or ``learner:strategy`` (learners: neural, tangent, linear, policy).  Random is the
    baseline of all comparisons and is added if it is missing.
    """

    experiment: Literal["pool", "regret"] = "pool"
    """pool: which duels of a large pool to label; regret: one prompt a round, and the arms asked are what counts"""
    contenders: tuple[str, ...] = ("random", "activedpo", "activedpo-fisher", "apo", "adpo", "label-entropy", "ucb")
    """strategies, each with a learner other than neural before a colon (linear:ucb)"""
    truths: tuple[str, ...] = ("ntk", "square")
    """ground truths, each with an oracle other than btl after an @ (cosine@flipped)"""
    replicates: int = 16
    seed: int = 0
    rounds: int = 10
    batch: int = 20
    """duels asked per round"""
    prompts: int = 200
    responses: int = 3
    heldout: int = 50
    """held-out prompts"""
    dim: int = 5
    inputs: InputShape = "sphere"
    """skewed: most of the pool is alike, the held-out prompts are not"""
    fresh: bool = False
    """a new pool every round"""
    repeats: bool = False
    """duels of a fixed pool may be asked again"""
    reward_bound: float = 1.0
    """|r| is at most this, so |Δ| at most twice this"""
    rescale: bool = True
    """shift and scale the truth to attain the bound"""
    width: int = 64
    depth: int = 3
    activation: Activation = "softplus"
    regularisation: float = 1.0
    """λ of the loss"""
    ridge: float | None = None
    """of V; default λ/κ with κ = σ'(2 · reward_bound)"""
    delta: float = 0.05
    """failure probability of the bounds"""
    beta: float = 1.0
    """of the policy learner, and of the KL-regularised policy that is evaluated"""
    refit: float = 0.0
    """growth of the number of answers after which the learner is fitted again (0: every round)"""
    fit_iterations: int = 50
    evaluations: int = 0
    """measure in about this many rounds, evenly spaced in log t (0: every round)"""
    audit: bool = True
    """measure Proposition 1 (neural and policy learners)"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if "random" not in self.contenders:
            object.__setattr__(self, "contenders", ("random", *self.contenders))
        for contender in self.contenders:
            learner, strategy = split(contender)
            _ = STRATEGIES[strategy], LEARNERS[learner]  # each raises InputError for an unknown name
        for truth in self.truths:
            name, oracle = split_truth(truth)
            _ = TRUTHS[name], ORACLES[oracle]
        for name in ("replicates", "rounds", "batch", "prompts", "heldout", "dim", "width", "fit_iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.responses < 2:
            raise InputError(f"responses must be at least 2 to make a duel, got {self.responses}")
        if self.experiment == "regret" and not self.fresh:
            raise InputError("a regret experiment needs fresh prompts every round; set fresh")
        duels = self.prompts * (self.responses * (self.responses + (1 if self.selves else -1)) // 2)
        asked = self.batch if self.fresh or self.repeats else self.batch * self.rounds
        if asked > duels:
            raise InputError(
                f"{asked} duels are to be picked, but the pool has {duels}; lower rounds or batch, or raise prompts"
            )
        if not (self.regularisation > 0 and math.isfinite(self.regularisation)):
            raise InputError(f"regularisation λ must be positive and finite, got {self.regularisation}")
        if self.ridge is not None and not self.ridge > 0:
            raise InputError(f"ridge must be positive, got {self.ridge}")
        if not self.reward_bound > 0:
            raise InputError(f"reward_bound must be positive, got {self.reward_bound}")
        if not self.beta > 0:
            raise InputError(f"beta must be positive, got {self.beta}")
        if self.refit < 0 or self.evaluations < 0 or self.seed < 0:
            raise InputError("refit, evaluations and seed must not be negative")
        if self.device != "cpu" and not (self.device.startswith("cuda") and torch.cuda.is_available()):
            raise InputError(f"device {self.device!r} is not available here; use cpu")
        check_delta(self.delta)
        _ = self.network  # raises InputError for a network that cannot be

    @property
    def selves(self) -> bool:
        """Whether an arm may be asked against itself (an algorithm that has converged does so)."""
        return self.experiment == "regret"

    @property
    def network(self) -> MLP:
        """The learner's network."""
        return MLP(self.dim, self.width, self.depth, self.activation)

    @property
    def bounds(self) -> Bounds:
        """Constants of the bounds: κ = σ'(Δmax), λ, δ."""
        return Bounds(kappa(2 * self.reward_bound), self.regularisation, self.delta)

    @property
    def plan(self) -> Plan:
        """The loop's plan."""
        return Plan(
            self.rounds,
            self.batch,
            self.ridge or self.bounds.ridge,
            self.regularisation,
            self.refit,
            self.selves,
            self.fresh,
            self.repeats,
            self.beta,
            many_rounds=self.experiment == "regret",
        )

    def measured_rounds(self) -> list[int]:
        """Return the rounds in which to measure; always the last."""
        if not self.evaluations or self.evaluations >= self.rounds:
            return list(range(self.rounds))
        spaced = np.geomspace(self.rounds, 1, self.evaluations).round().astype(int)
        return [int(number) - 1 for number in np.unique(spaced)]

    @property
    def cells(self) -> list[tuple[str, str]]:
        """All (truth, contender) pairs."""
        return [(truth, contender) for truth in self.truths for contender in self.contenders]


PRESETS: dict[str, tuple[str, Simulation]] = {
    "quick": ("which duels to label: 7 strategies, 2 truths, 16 replicates (about 2 minutes)", Simulation()),
    "skewed": (
        "a pool of which most is alike: choosing has something to gain, and V is what gains it (about a minute)",
        Simulation(
            contenders=("random", "activedpo", "activedpo-identity", "activedpo-top-b", "apo", "label-entropy"),
            truths=("ntk", "mlp"),
            replicates=32,
            inputs="skewed",
            audit=False,
        ),
    ),
    "regret": (
        "which arms to duel: neural and linear UCB, TS, CoLSTIM on short horizons (about 1 minute)",
        Simulation(
            experiment="regret",
            contenders=("ucb", "ts", "linear:ucb", "linear:ts", "linear:colstim", "random"),
            truths=("square",),
            rounds=150,
            batch=1,
            prompts=1,
            responses=5,
            fresh=True,
            heldout=50,
            refit=0.05,
            evaluations=12,
            width=50,
        ),
    ),
    "control": (
        "three duels asked again and again by honest and dishonest oracles: the bound check can fail (half a minute)",
        Simulation(
            contenders=("random",),
            truths=("ntk", "ntk@flipped"),
            replicates=80,
            rounds=60,
            batch=3,
            prompts=1,
            heldout=1,
            repeats=True,
            reward_bound=0.5,
            evaluations=8,
            refit=0.1,
        ),
    ),
    "study": (
        "all strategies on all truths, 64 replicates (hours)",
        Simulation(
            contenders=tuple(STRATEGIES), truths=tuple(TRUTHS), replicates=64, rounds=20, prompts=400, width=128
        ),
    ),
    "ndb": (
        "the synthetic protocol of Neural Dueling Bandits: T = 2000, 20 replicates, 2 x 50 ReLU (2 minutes a strategy)",
        Simulation(
            experiment="regret",
            contenders=("ucb", "ts", "linear:ucb", "linear:ts", "linear:colstim", "random"),
            truths=("square", "cosine"),
            replicates=20,
            rounds=2000,
            batch=1,
            prompts=1,
            responses=5,
            fresh=True,
            reward_bound=10.0,
            rescale=False,
            width=50,
            activation="relu",
            ridge=1.0,
            refit=0.05,
            fit_iterations=5,  # ReLU fits end at kinks anyway; with 10 the regret is the same (docs/findings.md)
            evaluations=40,
            audit=False,
        ),
    ),
    "smoke": (
        "a few seconds, for tests",
        Simulation(
            contenders=("random", "activedpo", "policy:activedpo-stale", "ucb"),
            truths=("ntk",),
            replicates=3,
            rounds=3,
            batch=4,
            prompts=10,
            heldout=6,
            width=16,
        ),
    ),
    "smoke-regret": (
        "a few seconds, for tests",
        Simulation(
            experiment="regret",
            contenders=("ucb", "linear:colstim", "random"),
            truths=("cosine",),
            replicates=3,
            rounds=12,
            batch=1,
            prompts=1,
            responses=4,
            fresh=True,
            heldout=6,
            width=16,
            evaluations=4,
        ),
    ),
}


@dataclass(frozen=True)
class Parts:
    """The objects that a cell's names stand for; they travel to workers, where the names may be unknown."""

    truth: GroundTruth
    oracle: Oracle
    learner: type[Learner]
    strategy: Strategy

    @classmethod
    def of(cls, truth: str, contender: str) -> Parts:
        """Look the names up; raises ``InputError`` for an unknown one."""
        (name, oracle), (learner, strategy) = split_truth(truth), split(contender)
        return cls(TRUTHS[name], ORACLES[oracle], LEARNERS[learner], STRATEGIES[strategy])

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the parts in the run's config."""
        return {field.name: fingerprint(getattr(self, field.name)) for field in fields(self)}


def build(
    simulation: Simulation, truth: str, contender: str, block: range | None = None, parts: Parts | None = None
) -> tuple[SyntheticVectorArena, Learner, Key]:
    """Return arena, learner and key of one cell; problems and key are the same for all contenders of a truth.

    ``block`` names the replicates to play (default: all); ``parts`` are what the names stand for (default: looked up).
    """
    name, _ = split_truth(truth)
    parts = parts or Parts.of(truth, contender)
    block = block or range(simulation.replicates)
    key = Key(simulation.seed, tuple(block), device=simulation.device)
    network = simulation.network
    initial = network.initial(key.fold_in("network"))
    problem = Problem(
        parts.truth.beside(network, initial),
        key.fold_in("world", name),
        simulation.prompts,
        simulation.responses,
        simulation.dim,
        simulation.heldout,
        simulation.rounds,
        simulation.fresh,
        simulation.repeats,
        simulation.inputs,
        simulation.reward_bound,
        simulation.rescale,
    )
    arena = SyntheticVectorArena(len(block), problem=problem, oracle=parts.oracle, batch=simulation.batch)
    again = simulation.repeats and not simulation.fresh
    start = Start(network, initial, key, simulation.regularisation, simulation.fit_iterations, simulation.beta, again)
    return arena, parts.learner.begin(start), key.fold_in("play", name)


def evaluate(learner: Learner, items: Inputs, rewards: Tensor, beta: float) -> Columns:
    """Return what is measured of a learner on a held-out table, one number per replicate.

    error: root mean square error of reward differences (log-odds); accuracy: share of duels ordered as the truth does;
    greedy_value: true reward of each prompt's highest-ranked response, as the share of the way from the prompt's mean
    to its best; policy_value: true reward of ``π ∝ exp(r/β)`` less the uniform policy's; policy_kl: its KL from
    uniform, nats.
    """
    duels = Duels.within(items.prompts, items.responses).to(rewards.device).expand(rewards.shape[0])
    fitted = learner.rewards(items)
    true, guess = duels.difference(rewards), duels.difference(fitted)
    truth = rewards.unflatten(-1, (-1, items.responses))
    ranked = fitted.unflatten(-1, (-1, items.responses))
    chosen = truth.gather(-1, ranked.argmax(-1, keepdim=True)).squeeze(-1)
    log_policy = torch.log_softmax(ranked / beta, -1)
    policy = log_policy.exp()
    mean, top = truth.mean(-1), truth.max(-1).values
    columns = {
        "error": (guess - true).square().mean(-1).sqrt(),
        "max_error": (guess - true).abs().max(-1).values,
        "accuracy": ((guess * true > 0).double() + 0.5 * (guess == 0)).mean(-1),
        "greedy_value": (chosen - mean).mean(-1) / (top - mean).mean(-1),
        "policy_value": ((policy * truth).sum(-1) - mean).mean(-1),
        "policy_kl": (policy * (log_policy + math.log(items.responses))).sum(-1).mean(-1),
    }
    return {name: value.cpu().numpy() for name, value in columns.items()}


def regret(round: Round, rewards: Tensor) -> Columns:
    """Return average regret ``f* - (f1 + f2)/2`` and weak regret ``f* - max(f1, f2)`` of a round's duels."""
    first = rewards.gather(-1, round.answers.duels.first)
    second = rewards.gather(-1, round.answers.duels.second)
    top = rewards.max(-1, keepdim=True).values
    return {
        "average_regret": (top - (first + second) / 2).sum(-1).cpu().numpy(),
        "weak_regret": (top - torch.maximum(first, second)).sum(-1).cpu().numpy(),
    }


def run_cell(
    simulation: Simulation,
    truth: str,
    contender: str,
    folder: Path,
    bar: bool = False,
    block: range | None = None,
    parts: Parts | None = None,
) -> float:
    """Play one contender on one truth in a block of replicates; write its tables; return the seconds spent.

    ``parts`` are what the names stand for, for a process that may lack them.
    A checkpoint is written now and then; if there is one, the cell goes on from it, to the same bytes.
    """
    torch.set_num_threads(1)  # cells run side by side; and one thread sums in one order
    started = time.perf_counter()
    block = block or range(simulation.replicates)
    parts = parts or Parts.of(truth, contender)
    arena, learner, key = build(simulation, truth, contender, block, parts)
    strategy = parts.strategy
    stale = strategy.space.gradients == "stale"
    audit = None
    problem = arena.problem
    if simulation.audit and isinstance(learner, NeuralLearner):
        known = (
            torch.as_tensor(problem.scale * problem.truth.norm) if isinstance(problem.truth, TangentTeacher) else None
        )
        everything, rewards = problem.everything()
        norm = None if known is None else known / learner.scale
        audit = Audit(learner, everything, rewards, simulation.bounds, norm)
    heldout, heldout_rewards = problem.heldout_table()
    measured = set(simulation.measured_rounds())
    history: list[Tensor] = []
    states: dict[int, dict[str, Tensor]] = {}
    tables: dict[str, list[Columns]] = {"rounds": [], "bounds": []}
    cumulative = {"average_regret": np.zeros(len(block)), "weak_regret": np.zeros(len(block))}
    checkpoint = folder / "checkpoint.safetensors"
    replay: list[tuple[Tensor, dict[str, Tensor] | None]] = []
    if checkpoint.exists():
        replay, tables, cumulative = _restore(load_checkpoint(checkpoint))
        for number, (picks, state) in enumerate(replay):
            history.append(picks)
            states |= {} if state is None else {number: state}
            if audit is not None:
                items = arena.show(number)
                duels = Duels.within(items.prompts, items.responses, simulation.selves).expand(len(block))
                audit.observe(items, arena.ask(duels.take(picks)), arena.rewards)
                if number in measured:
                    audit.refit()
    saved = time.perf_counter()
    rounds = play(arena, learner, strategy, simulation.plan, key, replay)
    for round in tqdm(rounds, initial=len(replay), total=simulation.rounds, disable=not bar, desc=contender):
        history.append(round.picks)
        states = (states if stale else {}) | {round.number: learner.state()}
        if audit is not None:
            assert isinstance(round.items, Inputs)
            audit.observe(round.items, round.answers, arena.rewards)
        steps = regret(round, arena.rewards)
        cumulative = {name: cumulative[name] + steps[name] for name in cumulative}
        if round.number in measured:
            row = {"round": np.full(len(block), round.number + 1)}
            row["labels"] = row["round"] * simulation.batch
            row |= evaluate(learner, heldout, heldout_rewards, simulation.beta)
            row |= {f"cumulative_{name}": total for name, total in cumulative.items()}
            row["design_information"] = _per_replicate(round.information, len(block))
            row["gradient_norm"] = _per_replicate(round.fit.gradient, len(block))
            tables["rounds"].append(row)
            if audit is not None:
                tables["bounds"].append({k: row[k] for k in ("round", "labels", "gradient_norm")} | audit.measure())
        if time.perf_counter() - saved > CHECKPOINT_SECONDS and round.number < simulation.rounds - 1:
            save_checkpoint(checkpoint, _bundle(history, states, tables, cumulative), round.number)
            saved = time.perf_counter()
    if audit is not None:
        write_frame(folder / "calibration.csv", _frame(truth, contender, block, audit.calibration()))
        write_frame(folder / "bounds.csv", _frame(truth, contender, block, tables["bounds"]))
    write_frame(folder / "rounds.csv", _frame(truth, contender, block, tables["rounds"]))
    checkpoint.unlink(missing_ok=True)
    return time.perf_counter() - started


def _per_replicate(value: Tensor | float, replicates: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(torch.as_tensor(value).cpu().numpy(), dtype=np.float64), (replicates,))


def _frame(truth: str, contender: str, block: range, rows: list[Columns]) -> pd.DataFrame:
    """Return a tidy frame: one row per measured round and replicate."""
    parts = [pd.DataFrame({"replicate": np.array(block)} | row) for row in rows]
    frame = pd.concat(parts, ignore_index=True)
    frame.insert(0, "contender", contender)
    frame.insert(0, "truth", truth)
    return frame


def _bundle(
    picks: list[Tensor], states: dict[int, dict[str, Tensor]], tables: dict[str, list[Columns]], cumulative: Columns
) -> dict[str, Tensor]:
    """Flatten everything that a checkpoint keeps into named tensors."""
    tensors = {"picks": torch.stack(picks)}
    for number, state in states.items():
        tensors |= {f"state/{number}/{name}": tensor for name, tensor in state.items()}
    for table, rows in tables.items():
        if rows:
            columns = {name: np.stack([np.asarray(row[name], dtype=np.float64) for row in rows]) for name in rows[0]}
            for place, (name, values) in enumerate(
                columns.items()
            ):  # numbered: a restored table keeps its column order
                tensors[f"table/{table}/{place:03d}/{name}"] = torch.from_numpy(values)
    return tensors | {f"cumulative/{name}": torch.from_numpy(values) for name, values in cumulative.items()}


def _restore(
    tensors: dict[str, Tensor],
) -> tuple[list[tuple[Tensor, dict[str, Tensor] | None]], dict[str, list[Columns]], Columns]:
    """Undo ``_bundle``."""
    states: dict[int, dict[str, Tensor]] = {}
    tables: dict[str, list[Columns]] = {"rounds": [], "bounds": []}
    cumulative: Columns = {}
    for name, tensor in sorted(tensors.items()):
        kind, *rest = name.split("/")
        match kind:
            case "state":
                states.setdefault(int(rest[0]), {})[rest[1]] = tensor
            case "table":
                rows, column = tables[rest[0]], rest[2]
                rows.extend({} for _ in range(len(tensor) - len(rows)))
                for row, values in zip(rows, tensor, strict=True):
                    row[column] = values.numpy().astype(np.int64) if column in ("round", "labels") else values.numpy()
            case "cumulative":
                cumulative[rest[0]] = tensor.numpy()
    picks = list(tensors["picks"])
    return [(pick, states.get(number)) for number, pick in enumerate(picks)], tables, cumulative


def run(simulation: Simulation, directory: RunDirectory, jobs: int = 0) -> dict[str, pd.DataFrame]:
    """Run all cells that are not done yet and return the tables ``rounds``, ``bounds`` and ``calibration``.

    A cell's replicates are played in equal blocks of at most ``BLOCK``; ``jobs`` blocks run side by side (0: one per
    core) through joblib, whose backend a caller may choose by ``joblib.parallel_config``.  The number of jobs changes
    no byte.
    """
    work = [(cell, block) for cell in simulation.cells for block in blocks(simulation.replicates)]
    folders = [directory.cell(_name(*cell)) / f"replicates-{block.start}-{block.stop - 1}" for cell, block in work]
    todo = [number for number, folder in enumerate(folders) if not (folder / "rounds.csv").exists()]
    jobs = min(jobs if jobs > 0 else joblib.cpu_count(), max(1, len(todo)))

    cast = {cell: Parts.of(*cell) for cell in simulation.cells}

    def play_block(number: int) -> tuple[str, float]:
        cell, block = work[number]
        name = str(folders[number].relative_to(directory.cell("")))
        seconds = run_cell(simulation, *cell, folders[number], jobs == 1, block, cast[cell])
        return name, seconds

    timing: dict[str, float] = {}
    results = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
        joblib.delayed(play_block)(number) for number in todo
    )
    for name, seconds in tqdm(results, total=len(todo), desc="blocks of replicates", disable=not todo):
        timing[name] = round(seconds, 2)
    directory.note_timing(timing)
    tables: dict[str, pd.DataFrame] = {}
    for table in ("rounds", "bounds", "calibration"):
        paths = [folder / f"{table}.csv" for folder in folders]
        parts = [pd.read_csv(path) for path in paths if path.exists()]
        tables[table] = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return tables


def blocks(replicates: int) -> list[range]:
    """Return the replicates in as few blocks of at most ``BLOCK`` as can be, of equal size but for one."""
    count = -(-replicates // BLOCK)
    edges = [replicates * number // count for number in range(count + 1)]
    return [range(start, end) for start, end in pairwise(edges)]


def _name(truth: str, contender: str) -> str:
    return f"{truth}--{contender.replace(':', '.')}"
