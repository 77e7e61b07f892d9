"""Owns how a simulation's cells are built, played, measured and resumed, and how their tables become a page."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.oracles import Oracle
from bandits.core.own import is_own, telling_own
from bandits.core.registry import fingerprint
from bandits.core.rng import Key
from bandits.headroom import Headroom, headroom
from bandits.loop import Ridges, Round, Schedule, play, rewards_of
from bandits.runs.directory import Identity, Ledger, RunDirectory, config_of
from bandits.runs.execute import Study, wanted
from bandits.runs.files import DamagedError, read_tensors, write_frame, write_tensors
from bandits.runs.stats import UNDECIDED, Estimate
from bandits.selector import STRATEGIES, Strategy
from bandits.sim.audit import Audit, Columns
from bandits.sim.config import Cell, Simulation, pool_of, split, split_truth
from bandits.sim.learners import LEARNERS, Fit, Learner, NeuralLearner, Start
from bandits.sim.networks import MLP
from bandits.sim.problem import AlikeError, Inputs, Problem, SyntheticArena
from bandits.sim.truths import TRUTHS, GroundTruth, TangentTeacher

CHECKPOINT_SECONDS = 15.0
FEW, METER = "few-duels", "headroom"
TABLES = ("rounds", "bounds", "calibration")
WHOLE = ("round", "labels", "converged")  # columns of whole numbers


@dataclass(frozen=True)
class Parts:
    """The objects that a cell's names stand for; they travel to workers, where the names may be unknown."""

    truth: GroundTruth
    oracle: Oracle
    learner: type[Learner]
    strategy: Strategy

    @classmethod
    def of(cls, simulation: Simulation, truth: str, contender: str) -> Parts:
        """Look the names up; raises ``InputError`` for an unknown one."""
        learner, strategy = split(contender)
        return cls(TRUTHS[split_truth(truth)[0]], simulation.oracle(truth), LEARNERS[learner], STRATEGIES[strategy])

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the parts in the run's config."""
        return {field.name: fingerprint(getattr(self, field.name)) for field in fields(self)}

    def rehearse(self, responses: int, dim: int = 5, replicates: tuple[int, ...] | None = (0,)) -> None:
        """Play a round of a small problem if a part is a user's own: ``InputError``, naming it, for what none can be.

        So a part that returns something else than it should is told before a run begins, not when its turn comes.
        """
        if any(is_own(getattr(self, field.name)) for field in fields(self)):
            with telling_own():
                self._rehearse(responses, dim, replicates)

    def _rehearse(self, responses: int, dim: int, replicates: tuple[int, ...] | None) -> None:
        key, network = Key(0, replicates), MLP(dim, 8, 3)
        initial = network.initial(key.fold_in("network"))
        try:
            truth = self.truth.beside(network, initial)
            problem = Problem(truth, key.fold_in("world"), 4, min(responses, 16), dim, heldout=2)
        except AlikeError:  # by chance, perhaps, in so small a pool
            return
        start = Start(network, initial, key, 1.0, 20, 1.0, self.oracle.ties)
        learner, name = self.learner.begin(start), f"learner {self.learner.__name__}"
        if not isinstance(learner, Learner):
            raise InputError(f"{name}: begin returns a learner, got {learner!r}")
        arena, once = SyntheticArena(problem, self.oracle), Schedule(rounds=1, batch=1)
        for round in play(arena, learner, self.strategy, once, Ridges.given(4.0), key):
            if not isinstance(round.fit, Fit):
                raise InputError(f"{name}: fit returns a Fit, got {round.fit!r}")
        state = learner.state()
        if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
            raise InputError(f"{name}: state returns tensors by name, got {type(state).__name__}")
        learner.restore(state)
        rewards_of(learner, problem.heldout_table()[0], Duels.within(2, problem.responses).expand(*problem.scale.shape))


@dataclass(frozen=True)
class SimulationStudy(Study):
    """A simulation as a run: its cells, and the objects that their names stand for, which travel to the workers."""

    simulation: Simulation
    settings: Mapping[tuple[str, str], Simulation]
    """with which a truth is played in each part of the run: made here, where all names are known"""
    cast: Mapping[tuple[str, str], Parts]

    @classmethod
    def of(cls, simulation: Simulation) -> SimulationStudy:
        """Look the names up."""
        parts = {"": simulation, METER: simulation, FEW: simulation.repeated()}
        ones = [(name, truth, one) for name, one in parts.items() if one is not None for truth in one.truths]
        settings = {(name, truth): one.beside(truth) for name, truth, one in ones}
        pairs = [(one, truth, contender) for _, truth, one in ones for contender in one.contenders]
        return cls(simulation, settings, {pair[1:]: Parts.of(*pair) for pair in pairs})

    @property
    def experiment(self) -> str:
        """The folder of its kind."""
        return self.simulation.experiment

    @property
    def gpu(self) -> bool:
        """Whether a cell wants a GPU of its own."""
        return self.simulation.device == "cuda"

    def identity(self) -> Identity:
        """What determines the bytes of its results."""
        parts = {f"{truth}, {contender}": parts.fingerprint() for (truth, contender), parts in self.cast.items()}
        return Identity(config_of(self.simulation), parts=parts)

    def prepare(self) -> None:
        """Try the parts that are a user's own, before anything is written."""
        for parts in self.cast.values():
            parts.rehearse(self.simulation.responses, self.simulation.dim)

    def memory(self) -> dict[str, float]:
        """Estimate a cell's bytes by the options that they grow with."""
        return self.simulation.memory()

    def count(self) -> int:
        """How many cells there are."""
        few = self.simulation.repeated()
        return self.simulation.count() + (few.count() if few else 0) + len(self.simulation.foreseeable)

    def cells(self) -> list[Cell]:
        """All cells: the pool's, those of the duels asked again and again, and those that foresee the saving."""
        s, few = self.simulation, self.simulation.repeated()
        extra = [replace(cell, setting=FEW) for cell in (few.cells() if few else ())]
        stop = min(FORESEEN, s.replicates)
        extra += [Cell(truth, s.contenders[0], 0, stop, METER) for truth in s.foreseeable]
        return s.cells() + extra

    def more(self, directory: RunDirectory, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells of the next look on every truth on which it is not decided what each strategy saves."""
        s = self.simulation
        if not s.until_decided:
            return []
        from bandits.sim.report import headline

        mine = [cell for cell in cells if not cell.setting]
        told = headline(s, directory.frames(mine, "rounds.csv"))
        open_ = set(told.loc[told["verdict"] == UNDECIDED, "truth"])
        return [
            one
            for truth in s.truths
            if truth in open_
            for one in s.further(truth, max(cell.stop for cell in mine if cell.truth == truth))
        ]

    def play(self, cell: Cell, folder: Path) -> list[str]:
        """Play a cell."""
        simulation, parts = self.settings[cell.setting, cell.truth], self.cast[cell.truth, cell.contender]
        if cell.setting == METER:
            return foresee(simulation, cell, folder, parts)
        return run_cell(simulation, cell.truth, cell.contender, folder, cell.block, parts)

    def finish(self, directory: RunDirectory) -> None:
        """Write tables, figures and page."""
        from bandits.sim.report import finish  # matplotlib: only where a page is made

        cells = wanted(self, directory)
        tables = {
            name: directory.frames([cell for cell in cells if not cell.setting], f"{name}.csv") for name in TABLES
        }
        few = directory.frames([cell for cell in cells if cell.setting == FEW], "bounds.csv")
        meter = [cell for cell in cells if cell.setting == METER]
        tables |= {f"{METER}{part}": directory.frames(meter, f"{METER}{part}.csv") for part in ("", "_curve")}
        finish(self.simulation, directory, tables, few, cells)


def build(
    simulation: Simulation, truth: str, contender: str, block: range | None = None, parts: Parts | None = None
) -> tuple[SyntheticArena, Learner, Key]:
    """Return arena, learner and key of one cell; all contenders of a truth share problems and random numbers.

    ``block`` names the replicates to play (default: all); ``parts`` are what the names stand for (default: looked up).
    """
    name, _ = split_truth(truth)
    simulation = simulation.beside(truth)
    parts = parts or Parts.of(simulation, truth, contender)
    block = block or range(simulation.replicates)
    key = Key(simulation.seed, tuple(block), device=simulation.device)
    network = simulation.network
    initial = network.initial(key.fold_in("network"))
    problem = Problem(
        parts.truth.beside(network, initial),
        key.fold_in("world", name),
        prompts=simulation.prompts,
        responses=simulation.responses,
        dim=simulation.dim,
        heldout=simulation.heldout,
        rounds=simulation.rounds,
        fresh=simulation.fresh,
        repeats=simulation.repeats,
        selves=simulation.selves,
        inputs=simulation.inputs,
        bound=simulation.reward_bound,
        rescale=simulation.rescale,
        redundancy=simulation.redundancy,
        alike=simulation.alike,
        clusters=simulation.clusters,
        tail=simulation.tail,
        mixing=simulation.mixing,
        temperature=simulation.temperature,
    )
    arena = SyntheticArena(problem, parts.oracle)
    ties = simulation.ties_of(parts.oracle)
    start = Start(network, initial, key, simulation.regularisation, simulation.fit_iterations, simulation.beta, ties)
    return arena, parts.learner.begin(start), key.fold_in("play", name)


def evaluate(learner: Learner, items: Inputs, rewards: Tensor, beta: float) -> Columns:
    """Return what is measured of a learner on a held-out table, one number per replicate.

    error: root mean square error of reward differences (log-odds); accuracy: share of duels ordered as the truth does;
    greedy_value: true reward of each prompt's highest-ranked response, as the share of the way from the prompt's mean
    to its best; policy_value: true reward of ``π ∝ exp(r/β)`` less the uniform policy's; policy_kl: its KL from
    uniform, nats.
    """
    duels = Duels.within(items.prompts, items.responses).to(rewards.device).expand(rewards.shape[0])
    fitted = rewards_of(learner, items, duels)
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


def regret(asked: Duels, rewards: Tensor, responses: int) -> Columns:
    """Return average regret ``f* - (f1 + f2)/2`` and weak regret ``f* - max(f1, f2)``, summed over a round's duels.

    ``f*`` is the best true reward of the duel's own prompt.
    """
    first, second = rewards.gather(-1, asked.first), rewards.gather(-1, asked.second)
    top = rewards.unflatten(-1, (-1, responses)).amax(-1).gather(-1, asked.first // responses)
    return {
        "average_regret": (top - (first + second) / 2).sum(-1).cpu().numpy(),
        "weak_regret": (top - torch.maximum(first, second)).sum(-1).cpu().numpy(),
    }


FORESEEN = 6
"""replicates of the pool on which the saving is foreseen"""


def meter(
    arena: SyntheticArena,
    learner: Learner,
    budgets: Sequence[int],
    *,
    ridge: float,
    kappa: float,
    key: Key,
    targets: int = 1000,
) -> list[Headroom]:
    """Return what the best choice from an arena's pool can save over Random at each budget, before any label.

    By the theorem's V (gradients at θ0) with at most ``targets`` held-out duels as target; truths play no part.
    """
    heldout, _ = arena.problem.heldout_table()
    offer = arena.offer(0)
    aims = Duels.within(heldout.prompts, heldout.responses).expand(len(offer.duels.first))
    pool = learner.features(offer.items, "initial", "all").differences(offer.duels)
    target = learner.features(heldout, "initial", "all").differences(aims)
    return [
        headroom(pool, target, ridge=ridge, kappa=kappa, budget=budget, key=key, targets=targets) for budget in budgets
    ]


def foresee(simulation: Simulation, cell: Cell, folder: Path, parts: Parts) -> list[str]:
    """Write what the meter foresees of a pool, with the run's ridge λ/κ; name the files."""
    arena, learner, key = build(simulation, cell.truth, cell.contender, cell.block, parts)
    bounds, budget = simulation.bounds_with(simulation.ties_of(parts.oracle)), simulation.rounds * simulation.batch
    ridge = simulation.ridge or bounds.ridge
    (found,) = meter(arena, learner, [budget], ridge=ridge, kappa=bounds.kappa, key=key)
    row: dict[str, Any] = {
        "pool": pool_of(cell.truth) or "own",
        "budget": found.budget,
        "replicates": found.labels_saved.n,
        "note": found.note,
    }
    for name in ("labels_saved", "error_saved"):
        estimate: Estimate = getattr(found, name)
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    tables = {METER: pd.DataFrame([row]), f"{METER}_curve": found.curve.assign(pool=row["pool"])}
    for name, table in tables.items():
        write_frame(folder / f"{name}.csv", table)
    return [f"{name}.csv" for name in tables]


def run_cell(
    simulation: Simulation,
    truth: str,
    contender: str,
    folder: Path,
    block: range | None = None,
    parts: Parts | None = None,
) -> list[str]:
    """Play one contender on one truth in a block of replicates; write its tables; return their names.

    ``parts`` are what the names stand for, for a process that may lack them.
    A checkpoint is written now and then; if there is one, the cell goes on from it, to the same bytes.
    """
    block = block or range(simulation.replicates)
    parts = parts or Parts.of(simulation, truth, contender)
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
        audit = Audit(learner, everything, rewards, simulation.bounds_with(learner.ties), norm)
    ledger, names = Ledger(folder), [f"{name}.csv" for name in TABLES if name == "rounds" or audit is not None]
    if all(map(ledger.holds, names)) and not ledger.faults():
        return names  # killed when all was written, before the ledger was closed
    heldout, heldout_rewards = problem.heldout_table()
    measured = set(simulation.measured_rounds())
    history: list[Tensor] = []
    states: dict[int, dict[str, Tensor]] = {}
    tables: dict[str, list[Columns]] = {"rounds": [], "bounds": []}
    past = Labelled[Inputs]()
    carried = {f"cumulative_{name}": np.zeros(len(block)) for name in ("average_regret", "weak_regret")}
    carried |= {name: np.zeros(len(block)) for name in ("gradient_norm", "converged")}  # of the last fit
    replay: list[tuple[Tensor, dict[str, Tensor] | None]] = []
    if checkpoint := next((name for name in ledger.files if name.startswith("checkpoint-")), None):
        try:
            replay, tables, carried = _restore(read_tensors(folder / checkpoint))
        except (KeyError, ValueError, IndexError):
            raise DamagedError(
                f"{folder / checkpoint} is no checkpoint of this cell; delete it to redo the cell"
            ) from None
        for number, (picks, state) in enumerate(replay):
            history.append(picks)
            states |= {} if state is None else {number: state}
            if audit is not None:
                offer = arena.offer(number)
                asked = offer.duels.take(picks)
                past = past.add(offer, asked, arena.label(asked))
                audit.observe(past, asked.difference(arena.rewards))
                if number in measured:
                    audit.refit()
    saved = time.perf_counter()
    rounds: Iterator[Round[Inputs, Fit]]
    rounds = play(arena, learner, strategy, simulation.schedule, simulation.ridges(learner.ties), key, replay)
    for round in rounds:
        history.append(round.picks)
        states = (states if stale else {}) | {round.number: learner.state()}
        if audit is not None:
            audit.observe(round.past, round.asked.difference(arena.rewards))
        steps = regret(round.asked, arena.rewards, simulation.responses)
        carried |= {f"cumulative_{name}": carried[f"cumulative_{name}"] + step for name, step in steps.items()}
        if round.fit is not None:
            carried["gradient_norm"] = _per_replicate(round.fit.gradient, len(block))
            carried["converged"] = _per_replicate(round.fit.converged, len(block))
        if round.number in measured:
            row = {"round": np.full(len(block), round.number + 1)}
            row["labels"] = row["round"] * simulation.batch
            row |= evaluate(learner, heldout, heldout_rewards, simulation.beta)
            row |= {name: total for name, total in carried.items() if name.startswith("cumulative_")}
            row["design_information"] = _per_replicate(round.information, len(block))
            row["gradient_norm"] = carried["gradient_norm"]
            row["converged"] = carried["converged"].astype(np.int64)
            tables["rounds"].append(row)
            if audit is not None:
                shared = ("round", "labels", "gradient_norm", "converged")
                tables["bounds"].append({name: row[name] for name in shared} | audit.measure())
        if time.perf_counter() - saved > CHECKPOINT_SECONDS and round.number < simulation.rounds - 1:
            save(folder, _bundle(history, states, tables, carried), round.number, simulation.rounds)
            saved = time.perf_counter()
    written = {"rounds": _frame(truth, contender, block, tables["rounds"])}
    if audit is not None:
        written["bounds"] = _frame(truth, contender, block, tables["bounds"])
        written["calibration"] = _frame(truth, contender, block, audit.calibration())
    for name, table in written.items():
        write_frame(folder / f"{name}.csv", table)
    ledger = Ledger(folder)
    old = list(ledger.files)
    ledger.replace(*names, share=1.0)
    _remove(folder, old, names)
    return names


def save(folder: Path, tensors: dict[str, Tensor], round: int, rounds: int) -> None:
    """Write a checkpoint after a round, enter it in the ledger, and only then remove the one before."""
    name, ledger = f"checkpoint-{round}.safetensors", Ledger(folder)
    old = list(ledger.files)
    write_tensors(folder / name, tensors)
    ledger.replace(name, share=(round + 1) / rounds)
    _remove(folder, old, [name])


def _remove(folder: Path, names: list[str], kept: list[str]) -> None:
    for name in names:
        if name not in kept:
            (folder / name).unlink(missing_ok=True)


def _per_replicate(value: Tensor | float, replicates: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(torch.as_tensor(value).cpu().numpy(), dtype=np.float64), (replicates,)).copy()


def _frame(truth: str, contender: str, block: range, rows: list[Columns]) -> pd.DataFrame:
    """Return a tidy frame: one row per measured round and replicate."""
    parts = [pd.DataFrame({"replicate": np.array(block)} | row) for row in rows]
    frame = pd.concat(parts, ignore_index=True)
    frame.insert(0, "contender", contender)
    frame.insert(0, "truth", truth)
    return frame


def _bundle(
    picks: list[Tensor], states: dict[int, dict[str, Tensor]], tables: dict[str, list[Columns]], carried: Columns
) -> dict[str, Tensor]:
    """Flatten everything that a checkpoint keeps into named tensors."""
    tensors = {"picks": torch.stack(picks)}
    for number, state in states.items():
        # copies: rounds without a fit share their θ, which the file may not
        tensors |= {f"state/{number}/{name}": tensor.clone() for name, tensor in state.items()}
    for table, rows in tables.items():
        if rows:
            columns = {name: np.stack([np.asarray(row[name], dtype=np.float64) for row in rows]) for name in rows[0]}
            for place, (name, values) in enumerate(
                columns.items()
            ):  # numbered: a restored table keeps its column order
                tensors[f"table/{table}/{place:03d}/{name}"] = torch.from_numpy(values)
    return tensors | {f"carried/{name}": torch.from_numpy(values) for name, values in carried.items()}


def _restore(
    tensors: dict[str, Tensor],
) -> tuple[list[tuple[Tensor, dict[str, Tensor] | None]], dict[str, list[Columns]], Columns]:
    """Undo ``_bundle``."""
    states: dict[int, dict[str, Tensor]] = {}
    tables: dict[str, list[Columns]] = {"rounds": [], "bounds": []}
    carried: Columns = {}
    for name, tensor in sorted(tensors.items()):
        kind, *rest = name.split("/")
        match kind:
            case "state":
                states.setdefault(int(rest[0]), {})[rest[1]] = tensor
            case "table":
                rows, column = tables[rest[0]], rest[2]
                rows.extend({} for _ in range(len(tensor) - len(rows)))
                for row, values in zip(rows, tensor, strict=True):
                    row[column] = values.numpy().astype(np.int64) if column in WHOLE else values.numpy()
            case "carried":
                carried[rest[0]] = tensor.numpy()
    picks = list(tensors["picks"])
    return [(pick, states.get(number)) for number, pick in enumerate(picks)], tables, carried
