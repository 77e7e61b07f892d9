"""Practical devices against the exact rule: sketches, normalisation, diagonal V, last layer, stale gradients.

How far are their widths, their log det and their *picks* from those of full gradients, full V, gradients at θ_t; and
what does it cost in final error?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bandits.core.design import Design, DiagonalDesign, GramDesign, greedy
from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import kappa
from bandits.core.rng import Key
from bandits.core.rows import CountSketch, Dense, Rademacher
from bandits.runs.stats import Estimate, log_ratio, log_slope, mean
from bandits.sim.arena import Problem, SyntheticVectorArena
from bandits.sim.config import Simulation
from bandits.sim.learners import NeuralLearner
from bandits.sim.networks import MLP
from bandits.sim.truths import Teacher
from theory_checks import figures as plots
from theory_checks.claims import Claim
from theory_checks.family import Family, Picture, Run, Verdict, picture
from theory_checks.simulated import simulate

EXACT = "activedpo"
DEVICES = {
    "activedpo-stale": "stale gradients",
    "activedpo-initial": "gradients at θ0",
    "activedpo-normalised": "unit responses",
    "activedpo-normalised-duel": "unit duels",
    "activedpo-diagonal": "diagonal V",
    "activedpo-last-layer": "last layer",
    "activedpo-identity": "V = identity",
    "activedpo-top-b": "no in-batch update",
    "activedpo-fisher": "Fisher weights",
    "random": "random",
}
KINDS = ("count-1", "count-4", "rademacher")
PICKS = 20


@dataclass(frozen=True)
class Scene:
    """A fitted network with answered duels and a pool: what one choice of a batch sees."""

    learner: NeuralLearner
    gradients: dict[str, Tensor]
    asked: Duels
    pool: Duels
    ridge: float
    ties: Tensor

    @classmethod
    def of(cls, width: int, prompts: int, key: Key) -> Scene:
        """Draw a problem, ask a random batch twice as large as the next one, and fit."""
        network = MLP(5, width, 3)
        initial = network.initial(key.fold_in("network"))
        problem = Problem(Teacher(), key.fold_in("world"), prompts, 3, 5)
        arena = SyntheticVectorArena(len(key.replicates or ()), problem=problem, batch=2 * PICKS)
        items = arena.show(0)
        lead = items.x.shape[0]
        every = Duels.within(prompts, 3).expand(lead)
        order = key.fold_in("order").uniform(every.count).argsort(-1)
        asked, pool = every.take(order[..., : 2 * PICKS]), every.take(order[..., 2 * PICKS :])
        learner = NeuralLearner(network, initial, 1.0, same_table=True)
        learner.observe(items, arena.ask(asked))
        learner.fit()
        rows = {
            "current": learner.features(items, "current", "all").dense().values,
            "initial": learner.features(items, "initial", "all").dense().values,
            "last": learner.features(items, "current", "last").dense().values,
        }
        ties = key.fold_in("ties").uniform(pool.count)
        return cls(learner, rows, asked, pool, 1.0 / kappa(2.0), ties)

    def choose(self, items: Tensor, after: str = "none", design: Design | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return widths of the pool, log det of the asked duels, and the greedy picks, from rows of item gradients."""
        rows = Dense(items).normalised() if after == "response" else Dense(items)
        asked, pool = rows.differences(self.asked), rows.differences(self.pool)
        if after == "duel":
            asked, pool = asked.normalised(), pool.normalised()
        design = design or GramDesign(self.ridge)
        design.append(asked)
        seen = design.condition(pool)
        free = torch.ones_like(self.ties, dtype=torch.bool)
        picks = greedy(seen, PICKS, free, self.ties, update=isinstance(design, GramDesign))
        return seen.widths, torch.as_tensor(design.information()), picks


def overlap(a: Tensor, b: Tensor) -> np.ndarray:
    """Return the share of picks in common."""
    return np.asarray((a.unsqueeze(-1) == b.unsqueeze(-2)).any(-1).double().mean(-1).numpy())


def _sketched(values: Tensor, kind: str, size: int, key: Key) -> Tensor:
    """Project every replicate's gradients by a map of its own."""
    out = []
    for row, member in zip(values, key.replicates or (), strict=True):
        alone = Key(key.seed, None, (*key.path, member))
        if kind == "rademacher":
            sketch: CountSketch | Rademacher = Rademacher.draw(row.shape[-1], size, alone)
        else:
            sketch = CountSketch.draw(row.shape[-1], size, alone, int(kind.partition("-")[2]))
        out.append(sketch(Dense(row)).values)
    return torch.stack(out)


@dataclass(frozen=True)
class Approximations(Family):
    """Distances of one batch of picks, and final errors of whole runs."""

    replicates: int = 12
    width: int = 64
    prompts: int = 60
    sizes: tuple[int, ...] = (32, 128, 512, 2048)
    runs: int = 24
    """replicates of the whole runs that compare final errors"""

    def __post_init__(self) -> None:
        if self.replicates < 2 or self.runs < 2:
            raise InputError("devices: intervals need at least 2 replicates")
        if len(set(self.sizes)) < 2 or min(self.sizes) < 4:
            raise InputError(f"devices: a slope needs at least two sketch sizes of at least 4, got {self.sizes}")
        if 3 * self.prompts < 4 * PICKS:
            raise InputError(
                f"devices: {self.prompts} prompts leave no pool to pick {PICKS} from; use at least {4 * PICKS // 3 + 1}"
            )
        self._simulation(0)

    @property
    def name(self) -> str:
        """The family's name."""
        return "devices"

    @property
    def title(self) -> str:
        """What it is about."""
        return "Practical devices: sketches, normalisation, diagonal V, last layer, stale gradients"

    def _simulation(self, seed: int) -> Simulation:
        return Simulation(
            contenders=(EXACT, *DEVICES),
            truths=("mlp",),
            replicates=self.runs,
            seed=seed,
            prompts=60,
            heldout=30,
            rounds=5,
            batch=12,
            width=32,
            audit=False,
        )

    def cells(self) -> list[str]:
        """One per sketch, one for all other devices, one per whole run."""
        sketches = [f"sketch={kind}={size}" for kind in KINDS for size in self.sizes]
        return [*sketches, "choice", *(f"run={contender}" for contender in (EXACT, *DEVICES))]

    def _luck(self, run: Run) -> Key:
        return run.key("devices", replicates=range(self.replicates))

    def run(self, cell: str, run: Run) -> pd.DataFrame:
        """Measure a sketch, the other devices, or a whole run."""
        kind, *what = cell.split("=")
        if kind == "run":
            rounds = simulate(self._simulation(run.seed), "mlp", what[0], run.folder)["rounds"]
            last = rounds[rounds["round"] == rounds["round"].max()]
            return last[["replicate", "error"]].assign(kind=kind, device=what[0])
        key = self._luck(run)
        scene = Scene.of(self.width, self.prompts, key)
        current = scene.gradients["current"]
        widths, information, picks = scene.choose(current)
        if kind == "sketch":
            rows = _sketched(current, what[0], int(what[1]), key.fold_in("sketch", what[0], int(what[1])))
            near, told, chosen = scene.choose(rows)
            return pd.DataFrame(
                {
                    "kind": kind,
                    "device": what[0],
                    "size": int(what[1]),
                    "replicate": np.arange(self.replicates),
                    "width_error": ((near / widths) - 1).abs().median(-1).values.numpy(),
                    "logdet_error": ((told - information) / information).abs().numpy(),
                    "overlap": overlap(picks, chosen),
                }
            )
        return pd.concat(self._choices(scene, widths, information, picks, key), ignore_index=True)

    def _choices(
        self, scene: Scene, widths: Tensor, information: Tensor, picks: Tensor, key: Key
    ) -> list[pd.DataFrame]:
        """Compare every other device's picks with the exact ones, before and after a shift c(x) of the gradients."""
        current = scene.gradients["current"]
        shift = key.fold_in("shift").normal(self.prompts, current.shape[-1]).repeat_interleave(3, -2)
        shift = shift * torch.linalg.vector_norm(current, dim=-1).mean() / current.shape[-1] ** 0.5
        asked = Dense(scene.gradients["initial"]).differences(scene.asked)
        stale = GramDesign(scene.ridge)
        stale.append(asked)
        pool = stale.condition(Dense(current).differences(scene.pool))
        free = torch.ones_like(scene.ties, dtype=torch.bool)
        results = {
            "activedpo-initial": scene.choose(scene.gradients["initial"]),
            "activedpo-stale": (
                pool.widths,
                torch.as_tensor(stale.information()),
                greedy(pool, PICKS, free, scene.ties),
            ),
            "activedpo-normalised": scene.choose(current, "response"),
            "activedpo-normalised-duel": scene.choose(current, "duel"),
            "activedpo-last-layer": scene.choose(scene.gradients["last"]),
            "activedpo-diagonal": scene.choose(current, design=DiagonalDesign(scene.ridge)),
        }
        moved = {
            EXACT: (picks, scene.choose(current + shift)[2]),
            "activedpo-normalised": (results["activedpo-normalised"][2], scene.choose(current + shift, "response")[2]),
            "activedpo-normalised-duel": (
                results["activedpo-normalised-duel"][2],
                scene.choose(current + shift, "duel")[2],
            ),
        }
        member = np.arange(self.replicates)
        parts = [
            pd.DataFrame(
                {
                    "kind": "choice",
                    "device": name,
                    "replicate": member,
                    "overlap": overlap(picks, chosen),
                    "width_error": ((near / widths) - 1).abs().median(-1).values.numpy(),
                    "logdet_error": ((told - information) / information).abs().numpy(),
                }
            )
            for name, (near, told, chosen) in results.items()
        ]
        parts += [
            pd.DataFrame({"kind": "shift", "device": name, "replicate": member, "overlap": overlap(*pair)})
            for name, pair in moved.items()
        ]
        chance = pd.DataFrame(
            {
                "kind": "choice",
                "device": "random",
                "replicate": member,
                "overlap": overlap(picks, key.fold_in("random").uniform(scene.pool.count).argsort(-1)[..., :PICKS]),
            }
        )
        return [*parts, chance]

    def claims(self) -> list[Claim]:
        """Declare the sketches' order, the invariance that normalising keeps or loses, and the costs."""
        pool = 3 * self.prompts - 2 * PICKS
        sizes = f"sizes {min(self.sizes)} … {max(self.sizes)}, m = {self.width}, {PICKS} picks of {pool}"
        declared = [
            Claim(
                f"devices/sketch {kind}/width error",
                "log-log slope of the median relative width error in the dimension (Johnson-Lindenstrauss: -1/2, "
                "here within 0.1)",
                "at most",
                -0.4,
                setting=sizes,
            )
            for kind in KINDS
        ]
        declared += [
            Claim(
                f"devices/sketch {kind}/overlap",
                f"share of the exact picks kept at dimension {max(self.sizes)}",
                "at least",
                0.9,
                "open",
                sizes,
            )
            for kind in KINDS
        ]
        declared += [
            Claim(
                "devices/invariance/no normalisation",
                "picks kept when a c(x) with gradients of its own is added: exact rule",
                "at least",
                1.0,
            ),
            Claim("devices/invariance/unit duels", "the same, duels normalised", "at least", 1.0),
            Claim(
                "devices/invariance/unit responses",
                "the same, responses normalised before the difference",
                "at least",
                1.0,
                "fails",
            ),
        ]
        declared += [
            Claim(
                f"devices/overlap/{words}",
                "share of the exact picks that the device picks too",
                "at least",
                0.9,
                "open",
            )
            for name, words in DEVICES.items()
            if name not in ("activedpo-identity", "activedpo-top-b", "activedpo-fisher")
        ]
        declared += [
            Claim(
                f"devices/final error/{words}",
                "final held-out error over the exact rule's, paired: no worse than 2 %",
                "at most",
                1.02,
                "open",
                "60 prompts x 3, 60 labels, m = 32",
            )
            for words in DEVICES.values()
        ]
        return declared

    def measure(self, table: pd.DataFrame) -> dict[str, Estimate]:
        """Fit slopes, average overlaps, compare errors replicate by replicate."""
        found = {}
        sketches = table[table["kind"] == "sketch"]
        for kind, part in sketches.groupby("device", sort=False):
            found[f"devices/sketch {kind}/width error"] = log_slope(
                part["size"], part["width_error"], part["replicate"]
            )
            top = part[part["size"] == part["size"].max()]["overlap"].to_numpy()
            found[f"devices/sketch {kind}/overlap"] = mean(top)
        shift = table[table["kind"] == "shift"]
        for name, words in ((EXACT, "no normalisation"), ("activedpo-normalised-duel", "unit duels")):
            kept = shift[shift["device"] == name]["overlap"].to_numpy()
            found[f"devices/invariance/{words}"] = Estimate(kept.min(), kept.min(), kept.min(), len(kept))
        broken = shift[shift["device"] == "activedpo-normalised"]["overlap"].to_numpy()
        found["devices/invariance/unit responses"] = mean(broken)
        for device, part in table[table["kind"] == "choice"].groupby("device", sort=False):
            found[f"devices/overlap/{DEVICES[str(device)]}"] = mean(part["overlap"].to_numpy())
        for name, ratio in self._ratios(table).items():
            found[f"devices/final error/{DEVICES[name]}"] = ratio
        return found

    @staticmethod
    def _ratios(table: pd.DataFrame) -> dict[str, Estimate]:
        wide = table[table["kind"] == "run"].pivot(index="replicate", columns="device", values="error")
        return {name: log_ratio(wide[name], wide[EXACT]) for name in DEVICES}

    def words(self, table: pd.DataFrame, verdicts: list[Verdict]) -> list[str]:
        """Say how far the devices are from the exact rule."""
        sketches = table[table["kind"] == "sketch"]
        kept = sketches.groupby(["device", "size"], sort=False)["overlap"].mean()
        choice = (
            table[table["kind"] == "choice"]
            .groupby("device", sort=False)["overlap"]
            .mean()
            .sort_values(ascending=False)
        )
        said = []
        for name, ratio in self._ratios(table).items():
            middle, low, high = (100 * (bound - 1) for bound in (ratio.value, ratio.low, ratio.high))
            said.append(f"{DEVICES[name]} {middle:+.0f} % [{low:+.0f}, {high:+.0f}]")
        return [
            f"Overlap of {PICKS} picks with the exact rule: "
            + ", ".join(f"{DEVICES[str(name)]} {share:.2f}" for name, share in choice.items())
            + ".",
            "Sketches keep, by dimension: "
            + "; ".join(
                f"{kind} " + ", ".join(f"{size}: {kept[kind, size]:.2f}" for size in self.sizes) for kind in KINDS
            )
            + ".",
            f"Final held-out error against the exact rule: {', '.join(said)}. What changes the picks need not change "
            "the error.",
        ]

    def pictures(self, table: pd.DataFrame) -> list[Picture]:
        """Draw sketches by dimension, overlaps, and errors."""
        sketches = table[table["kind"] == "sketch"]
        ratios = {DEVICES[name]: ratio for name, ratio in self._ratios(table).items()}
        choice = table[table["kind"] == "choice"].assign(device=lambda t: t["device"].map(DEVICES))
        return [
            picture(
                "devices-sketch",
                "Sketched gradients: relative error of widths and of log det against the dimension, with the "
                "Johnson-Lindenstrauss order.",
                plots.orders(
                    sketches,
                    "size",
                    {"width_error": ("width error (median duel)", -0.5), "logdet_error": ("log det error", -0.5)},
                    "device",
                    "dimension",
                    paired=True,
                ),
            ),
            picture(
                "devices-overlap",
                f"Share of the exact {PICKS} picks kept, against the dimension.",
                plots.lines(sketches, "size", "overlap", "device", None, ("dimension", "selection overlap"), "x"),
            ),
            picture(
                "devices-choice",
                "Share of the exact picks that other devices keep.",
                plots.bars(choice, "overlap", "device", None, label="selection overlap"),
            ),
            picture(
                "devices-error",
                "Final held-out error over the exact rule's (paired; mean with 95 % interval).",
                plots.intervals(ratios, "error / error of the exact rule", line=1.0),
            ),
        ]

    def numbers(self, table: pd.DataFrame) -> pd.DataFrame:
        """Tabulate distances of one choice."""
        part = table[table["kind"] == "choice"]
        means = part.groupby("device", sort=False)[["overlap", "width_error", "logdet_error"]].mean().reset_index()
        return means.assign(device=means["device"].map(DEVICES)).fillna(0.0)
