"""Remark 1 is about networks other than fully connected ones; for a small random transformer it can be measured.

``r_θ(x, y) = β log π_θ(y|x)/π_ref(y|x)`` of a causal transformer, trained on duels by the theory's loss: by LoRA
factors on the attention's matrices, or by those matrices themselves.  How much do gradients and the duels' kernel move,
and how far is the reward from its linearisation, as the width ``m`` or LoRA's rank grows?  Written with torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import layer_norm, log_softmax

from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.oracles import loss, slope
from bandits.core.rng import Key
from bandits.core.solvers import newton
from bandits.runs.page import Picture
from bandits.runs.settings import Count, Positive
from bandits.runs.stats import LEVEL, Estimate, at_most, log_slope
from bandits.sim.learners import newton_step
from theory_checks import figures
from theory_checks.checks import Cell, Check, Family, Measure, Places, Result, Several, Table, at, register, unfitted

VOCABULARY, PROMPT, RESPONSE, HEADS, LAYERS = 24, 4, 6, 4, 2
MODULES = ("q", "k", "v", "o")


@dataclass(frozen=True, eq=False)
class Transformer:
    """A causal transformer in the NTK parametrisation with frozen weights and trainable vector θ, 0 at the reference.

    Every matrix acts as ``W x/√m``.  ``rank`` > 0: ``(W + B(A0 + A)/√rank) x/√m`` on q, k, v, o with θ = (A, B),
    ``B0 = 0`` (LoRA with standard normal ``A0``); ``rank`` 0: ``(W + D) x/√m`` with θ = D.
    """

    frozen: dict[str, Tensor]
    width: int
    rank: int

    @classmethod
    def draw(cls, width: int, rank: int, key: Key) -> Transformer:
        """Draw the reference."""
        frozen = {
            "embed": key.fold_in("embed").normal(VOCABULARY, width),
            "place": key.fold_in("place").normal(PROMPT + RESPONSE, width),
            "head": key.fold_in("head").normal(VOCABULARY, width),
        }
        for layer in range(LAYERS):
            for module in MODULES:
                frozen[f"{layer}.{module}"] = key.fold_in(layer, module).normal(width, width)
                frozen[f"{layer}.{module}.a"] = key.fold_in(layer, module, "a").normal(max(1, rank), width)
            frozen[f"{layer}.up"] = key.fold_in(layer, "up").normal(2 * width, width)
            frozen[f"{layer}.down"] = key.fold_in(layer, "down").normal(width, 2 * width)
        return cls(frozen, width, rank)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of the trainable blocks, A before B."""
        one = [(self.rank, self.width), (self.width, self.rank)] if self.rank else [(self.width, self.width)]
        return one * (LAYERS * len(MODULES))

    @property
    def parameters(self) -> int:
        """How many trainable numbers."""
        return sum(a * b for a, b in self.shapes)

    def _project(self, x: Tensor, name: str, blocks: list[Tensor]) -> Tensor:
        root = math.sqrt(self.width)
        out = x @ self.frozen[name].mT / root
        if self.rank:
            a, b = blocks
            return out + x @ (self.frozen[f"{name}.a"] + a).mT / root @ b.mT / math.sqrt(self.rank)
        return out + x @ blocks[0].mT / root

    def log_probability(self, theta: Tensor, tokens: Tensor) -> Tensor:
        """Return ``log π_θ(y|x)`` of one sequence: prompt, then response."""
        blocks = [
            part.view(shape)
            for part, shape in zip(theta.split([a * b for a, b in self.shapes]), self.shapes, strict=True)
        ]
        per, root = len(blocks) // (LAYERS * len(MODULES)), math.sqrt(self.width)
        x = self.frozen["embed"][tokens] + self.frozen["place"][: len(tokens)]
        mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
        for layer in range(LAYERS):
            h = layer_norm(x, (self.width,))
            mine = {m: blocks[per * (layer * len(MODULES) + i) :][:per] for i, m in enumerate(MODULES)}
            q, k, v = (
                self._project(h, f"{layer}.{m}", mine[m]).unflatten(-1, (HEADS, -1)).transpose(0, 1) for m in "qkv"
            )
            score = (q @ k.mT / math.sqrt(self.width / HEADS)).masked_fill(~mask, -torch.inf)
            mixed = (score.softmax(-1) @ v).transpose(0, 1).flatten(-2)
            x = x + self._project(mixed, f"{layer}.o", mine["o"])
            h = layer_norm(x, (self.width,))
            h = torch.nn.functional.gelu(h @ self.frozen[f"{layer}.up"].mT / root)
            x = x + h @ self.frozen[f"{layer}.down"].mT / math.sqrt(2 * self.width)
        logits = layer_norm(x, (self.width,)) @ self.frozen["head"].mT / root
        chosen = log_softmax(logits[PROMPT - 1 : -1], -1).gather(-1, tokens[PROMPT:, None])
        return chosen.sum()


def fit(
    rewards: Callable[[Tensor], Tensor],
    jacobian: Callable[[Tensor], Tensor],
    outcome: Tensor,
    duels: Duels,
    theta: Tensor,
    regularisation: float,
    iterations: int = 150,
    tolerance: float = 1e-6,
) -> tuple[Tensor, float]:
    """Return the minimiser of the theory's loss from ``theta``, by Gauss-Newton in the dual, and its gradient norm.

    The norm is relative to that at θ = 0.  ``rewards`` and ``jacobian`` are per item.
    """

    def objective(at: Tensor) -> tuple[Tensor, Tensor]:
        margin = duels.difference(rewards(at))
        return loss(margin, outcome) + regularisation / 2 * at.square().sum(), margin

    start = _differences(jacobian(torch.zeros_like(theta)), duels)
    reference = torch.linalg.vector_norm((0.5 - outcome) @ start)

    def derivatives(at: Tensor, margin: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        rows, residual = _differences(jacobian(at), duels), torch.sigmoid(margin) - outcome
        pull = residual @ rows + regularisation * at

        def step() -> Tensor:
            return newton_step(rows @ rows.mT, slope(margin), rows @ at, residual, regularisation) @ rows - at

        return pull, torch.linalg.vector_norm(pull) / reference, step

    theta, size, _ = newton(objective, derivatives, theta, tolerance, iterations)
    return theta, float(size)


def _differences(rows: Tensor, duels: Duels) -> Tensor:
    return rows[duels.first] - rows[duels.second]


def drift(width: int, rank: int, prompts: int, answers: int, regularisation: float, key: Key) -> dict[str, float]:
    """Fit one random transformer to answered duels; return how far it left its linearisation.

    The truth is a random reward of the items with |Δ| <= 2.
    """
    model = Transformer.draw(width, rank, key.fold_in("model"))
    draws = (key.fold_in("tokens").uniform(prompts * 3, PROMPT + RESPONSE) * VOCABULARY).long()
    draws[:, :PROMPT] = draws[::3, :PROMPT].repeat_interleave(3, 0)
    zero = torch.zeros(model.parameters, dtype=key.dtype)
    start = torch.stack([model.log_probability(zero, row) for row in draws])

    def rewards(theta: Tensor) -> Tensor:
        return vmap(model.log_probability, in_dims=(None, 0))(theta, draws) - start

    def jacobian(theta: Tensor) -> Tensor:
        return vmap(grad(model.log_probability), in_dims=(None, 0))(theta, draws)

    duels = Duels.within(prompts, 3)
    truth = key.fold_in("truth").normal(prompts * 3)
    truth = truth * (2 / duels.difference(truth).abs().max())
    asked = duels.take(key.fold_in("order").uniform(duels.count).argsort(-1)[:answers])
    won = (key.fold_in("labels").uniform(answers) < torch.sigmoid(asked.difference(truth))).to(key.dtype)
    first = jacobian(zero)
    theta, size = fit(rewards, jacobian, won, asked, zero, regularisation)
    flat, flat_size = fit(lambda t: first @ t, lambda t: first, won, asked, zero, regularisation)
    now = jacobian(theta)
    old, new = _differences(first, duels), _differences(now, duels)
    kernel = old @ old.mT
    fitted = duels.difference(rewards(theta))
    return {
        "gradient": float(
            (torch.linalg.vector_norm(now - first, dim=-1) / torch.linalg.vector_norm(first, dim=-1)).max()
        ),
        "kernel": float(torch.linalg.matrix_norm(new @ new.mT - kernel) / torch.linalg.matrix_norm(kernel)),
        "epsilon": float((fitted - duels.difference(first @ flat)).abs().max()),
        "relative": float((fitted - duels.difference(first @ flat)).abs().max() / fitted.abs().max()),
        "gradient_norm": max(size, flat_size),
    }


Sweep = Literal["LoRA in m", "LoRA in rank", "full in m"]
SWEEPS: dict[Sweep, str] = {
    "LoRA in m": "LoRA of rank 4, against the width m",
    "LoRA in rank": "LoRA at a fixed width, against the rank",
    "full in m": "the attention's matrices themselves, against the width m",
}
MEASURES = {
    "epsilon": "ε = max |reward - linearised| over duels",
    "gradient": "max ‖∇r_θt - ∇r_θ0‖ / ‖∇r_θ0‖",
    "kernel": "‖K_θt - K_θ0‖ / ‖K_θ0‖ over duels",
}


@dataclass(frozen=True)
class Point(Cell):
    """One point of a sweep."""

    sweep: Sweep
    width: int
    rank: int

    @property
    def x(self) -> int:
        """What the sweep is over."""
        return self.rank if self.sweep == "LoRA in rank" else self.width

    @property
    def key(self) -> str:
        """The sweep and its value."""
        return f"{self.sweep.replace(' ', '-')}-{self.x}".lower()


@dataclass(frozen=True, kw_only=True)
class Transformers(Family[Point]):
    """Gradient drift, kernel drift and linearisation residual of small transformers."""

    name = "transformers"
    title = "Transformers (Remark 1): does a LoRA-trained policy follow its linearisation?"

    replicates: Several = 6
    widths: Places = (16, 32, 64, 128, 256)
    ranks: Places = (2, 4, 8, 16, 32)
    prompts: Count = 8
    answers: Count = 16
    regularisation: Positive = 1.0
    at_width: Count = 64
    """of the sweep over the rank"""

    def check_sizes(self) -> None:
        """Raise ``InputError`` for sizes that do not go together."""
        if any(width % HEADS for width in (*self.widths, self.at_width)):
            raise InputError(f"--widths and --at-width must be multiples of {HEADS}")
        if self.answers > 3 * self.prompts:
            raise InputError(
                f"--answers {self.answers} is more than the {3 * self.prompts} duels of --prompts {self.prompts}"
            )

    def cells(self) -> Sequence[Point]:
        """Return one per point of a sweep; the largest first."""
        points = [Point("LoRA in m", width, 4) for width in self.widths]
        points += [Point("LoRA in rank", self.at_width, rank) for rank in self.ranks]
        points += [Point("full in m", width, 0) for width in self.widths]
        return sorted(points, key=lambda point: -point.width)

    def memory(self) -> dict[str, float]:
        """Estimate the bytes of a cell: Jacobians of all items and their differences over all duels."""
        weights = max(LAYERS * len(MODULES) * (2 * p.rank * p.width if p.rank else p.width**2) for p in self.cells())
        return {
            "--transformers.widths, --transformers.ranks, --transformers.prompts": 8.0 * weights * 18 * self.prompts
        }

    def run(self, cell: Point, seed: int, folder: Path) -> Table:
        """Measure one point in every replicate."""
        rows = []
        for member in range(self.replicates):
            key = Key(seed).fold_in("transformers", cell.sweep, cell.x, member)
            found = drift(cell.width, cell.rank, self.prompts, self.answers, self.regularisation, key)
            rows.append({"sweep": cell.sweep, "x": cell.x, "replicate": member} | found)
        return pd.DataFrame(rows)

    def checks(self) -> list[Check]:
        """Declare that each quantity falls; Remark 1's order is not known, so every claim is open."""
        return [
            Check(
                name=f"transformers/{sweep}/{name}",
                statement=f"log-log slope of {words}: falls; {SWEEPS[sweep]}",
                threshold=at_most(0.0),
                measure=_slope(sweep, name),
                expect="open",
                setting=f"2 layers, {HEADS} heads, {self.answers} answers, β = 1, λ = {self.regularisation:g}",
            )
            for sweep in SWEEPS
            for name, words in MEASURES.items()
        ]

    def summary(self, table: Table, results: Sequence[Result]) -> list[str]:
        """Say which of the three ways to grow is lazy."""
        lines = []
        for sweep, words in SWEEPS.items():
            ends = at(table, sweep=sweep).groupby("x")["relative"].median()
            lines.append(
                f"{words}: kernel drift has slope {_slope(sweep, 'kernel')(table, LEVEL)}, ε "
                f"{_slope(sweep, 'epsilon')(table, LEVEL)} (relative residual {ends.iloc[0]:.2f} at {ends.index[0]}, "
                f"{ends.iloc[-1]:.2f} at {ends.index[-1]})"
            )
        return ["; ".join(lines) + "."]

    def pictures(self, table: Table) -> list[Picture]:
        """Draw the sweeps."""
        measures = {"epsilon": ("ε", -0.5), "gradient": ("gradient drift", -0.5), "kernel": ("kernel drift", -0.5)}
        return [
            figures.picture(
                f"transformers-{sweep.replace(' ', '-').lower()}",
                f"{words[0].upper() + words[1:]} (medians with 95 % intervals). Dashed: order -1/2, for the eye.",
                figures.orders(at(table, sweep=sweep), "x", measures, None, sweep.rpartition(" ")[2], guide="order"),
            )
            for sweep, words in SWEEPS.items()
        ]


def _slope(sweep: Sweep, name: str) -> Measure:
    def measure(table: Table, level: float) -> Estimate:
        part = at(table, sweep=sweep)
        return log_slope(part["x"], part[name], None, level).but(unmet=unfitted(part))

    return measure


register(
    smoke=Transformers(replicates=2, widths=(8, 16), ranks=(2, 4), prompts=3, answers=3, at_width=8),
    quick=Transformers(),
    full=Transformers(replicates=32, widths=(16, 32, 64, 128, 256, 512, 1024), ranks=(2, 4, 8, 16, 32, 64)),
)
