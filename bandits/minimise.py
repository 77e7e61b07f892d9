"""Owns one batched minimiser: limited-memory BFGS from a given metric, every replicate on its own steps.

Knows nothing of networks or losses.  SciPy's and torch's L-BFGS take one problem at a time and start from a multiple of
the identity; the fits here are many at once, and a metric that is nearly the Hessian is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Vector = Float[Tensor, "*r p"]
NUMBERS = 2**25  # of all kept steps
TRIES = 3  # a good metric needs one or two; at a kink no number helps


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended, the norm of the gradient there, and the iterations spent."""

    x: Vector
    gradient: Float[Tensor, "*r"]
    iterations: int


@dataclass(frozen=True)
class _Step:
    """A step, the change of the gradient along it, and the inverse of their inner product (0 unless it is positive)."""

    x: Vector
    gradient: Vector
    inverse: Float[Tensor, "*r"]

    @classmethod
    def of(cls, x: Vector, gradient: Vector) -> _Step:
        curvature = _inner(x, gradient)
        floor = 1e-12 * (_inner(x, x) * _inner(gradient, gradient)).sqrt()
        return cls(x, gradient, torch.where(curvature > floor, 1 / curvature, 0.0))


def _inner(a: Vector, b: Vector) -> Float[Tensor, "*r"]:
    return torch.linalg.vecdot(a, b)


def minimise(
    evaluate: Callable[[Vector], tuple[Float[Tensor, "*r"], Vector]],
    start: Vector,
    precondition: Callable[[Vector], Vector],
    tolerance: Float[Tensor, "*r"],
    iterations: int,
    memory: int = 60,
) -> Minimum:
    """Minimise in every replicate until the gradient's norm is at most its ``tolerance``.

    ``evaluate`` returns values and gradients; ``precondition`` multiplies by a fixed positive definite approximation of
    the inverse Hessian, from which the two-loop recursion starts (Nocedal and Wright 2006, algorithm 7.4).  Steps are
    shortened until the value falls enough (Armijo).  A replicate whose steps no longer lower its value stops where it
    is; the gradient norm that is returned tells.  The last ``memory`` steps are kept, fewer (but 12) where they are so
    large that ``NUMBERS`` would be exceeded: a step costs two inner products, forgetting one costs passes.
    """
    memory = min(memory, max(12, NUMBERS // start.numel()))
    x = start
    value, gradient = evaluate(x)
    running: Bool[Tensor, "*r"] = torch.ones_like(value, dtype=torch.bool)
    steps: list[_Step] = []
    spent = 0
    for spent in range(iterations + 1):
        running = running & (torch.linalg.vector_norm(gradient, dim=-1) > tolerance)
        if spent == iterations or not bool(running.any()):
            break
        direction = -_inverse_hessian(gradient, steps, precondition)
        slope = _inner(gradient, direction)
        length = torch.where(running, 1.0, torch.zeros_like(value))
        for _ in range(TRIES):
            trial = x + length.unsqueeze(-1) * direction
            trial_value, trial_gradient = evaluate(trial)
            short = running & ~(trial_value <= value + 1e-4 * length * slope + 1e-14 * value.abs())
            if not bool(short.any()):
                break
            length = torch.where(short, length / 4, length)
        running = running & ~short
        keep = running.unsqueeze(-1)
        trial, trial_gradient = torch.where(keep, trial, x), torch.where(keep, trial_gradient, gradient)
        steps = [*steps, _Step.of(trial - x, trial_gradient - gradient)][-memory:]
        x, value, gradient = trial, torch.where(running, trial_value, value), trial_gradient
    return Minimum(x, torch.linalg.vector_norm(gradient, dim=-1), spent)


def _inverse_hessian(gradient: Vector, steps: list[_Step], precondition: Callable[[Vector], Vector]) -> Vector:
    """Return the BFGS approximation of ``H⁻¹ gradient`` by the two-loop recursion."""
    weights = []
    for step in reversed(steps):
        weight = step.inverse * _inner(step.x, gradient)
        gradient = gradient - weight.unsqueeze(-1) * step.gradient
        weights.append(weight)
    vector = precondition(gradient)
    for step, weight in zip(steps, reversed(weights), strict=True):
        again = step.inverse * _inner(step.gradient, vector)
        vector = vector + (weight - again).unsqueeze(-1) * step.x
    return vector
