"""Owns the batched minimisers: limited-memory BFGS from a given metric, and damped Newton, every replicate on its own.

Knows nothing of networks or losses.  SciPy's and torch's L-BFGS take one problem at a time and start from a multiple of
the identity; the fits here are many at once, and a metric that is nearly the Hessian is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Vector = Float[Tensor, "*r p"]
Product = Callable[[Vector], Vector]
NUMBERS = 2**25  # of all kept steps
TRIES = 3  # lengths tried in the first leg: a good metric needs one or two; at a kink no number helps
LATER_TRIES = 6  # in later legs: the metric was not good
FRESH_TRIES = 12  # along a direction of the metric alone, which is one of descent: only at a kink do so many fail
HALVINGS = 30  # of a Newton step
LEG = 50  # iterations after which the metric is renewed
GAIN = (
    1e-3  # share of the value that a leg must gain, unless it halves the gradient, for another to be worth its metric
)


@dataclass(frozen=True, eq=False)
class Step:
    """A step, the change of the gradient along it, and the inverse of their inner product (0 unless it is positive)."""

    x: Vector
    gradient: Vector
    inverse: Float[Tensor, "*r"]

    @classmethod
    def of(cls, x: Vector, gradient: Vector) -> Step:
        """Return the step with its inverse curvature."""
        curvature = _inner(x, gradient)
        floor = 1e-12 * (_inner(x, x) * _inner(gradient, gradient)).sqrt()
        return cls(x, gradient, torch.where(curvature > floor, 1 / curvature, 0.0))


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a minimisation ended, and what a later one may go on from.

    ``value`` and ``gradient`` are the function and the norm of its gradient there, ``iterations`` were spent;
    ``promise`` is what the last direction promised to gain, ``-½ gᵀd``; ``steps`` are those remembered since
    ``precondition`` was taken up.
    """

    x: Vector
    value: Float[Tensor, "*r"]
    gradient: Float[Tensor, "*r"]
    promise: Float[Tensor, "*r"]
    iterations: Int64[Tensor, "*r"]
    steps: tuple[Step, ...]
    precondition: Product


def _inner(a: Vector, b: Vector) -> Float[Tensor, "*r"]:
    return torch.linalg.vecdot(a, b)


def minimise(
    evaluate: Callable[[Vector], tuple[Float[Tensor, "*r"], Callable[[], Vector]]],
    start: Vector,
    precondition: Product,
    tolerance: Float[Tensor, "*r"],
    iterations: Int64[Tensor, "*r"] | int,
    memory: int = 60,
    steps: tuple[Step, ...] = (),
    noise: float = 1e-14,
    renew: Callable[[Vector], Product] | None = None,
    worth: float = 0.0,
) -> Minimum:
    """Minimise in every replicate until its gradient's norm is at most ``tolerance`` or its ``iterations`` are spent.

    ``evaluate`` returns values, and what works out the gradients there (steps that are too long need none);
    ``precondition`` multiplies by a fixed positive definite approximation of the inverse Hessian, from which the
    two-loop recursion starts (Nocedal and Wright 2006, algorithm 7.4); ``steps`` are those of an earlier minimisation
    of nearly the same function.  Steps are shortened until the value falls enough (Armijo), or, where it changes by
    less than its relative ``noise``, until the slope has (the approximate Wolfe condition, Hager and Zhang 2005,
    eq. 4.1).  The value never rises by more than ``noise``.

    A replicate whose steps no longer do either ends its leg; so does one after ``LEG`` iterations.  With ``renew``,
    which returns the approximation at a point, those that are not at their minimum then go on from a new one, with no
    steps remembered, while legs gain something and directions promise to gain more than ``worth`` of the value.
    Without, a replicate stops where its leg ends; the gradient norm that is returned tells.

    The last ``memory`` steps are kept, fewer (but 12) where they are so large that ``NUMBERS`` would be exceeded: a
    step costs two inner products, forgetting one costs passes.
    """
    memory = min(memory, max(12, NUMBERS // start.numel()))
    left = torch.as_tensor(iterations).expand(start.shape[:-1]).to(start.device)
    if renew is None:
        return _leg(evaluate, start, precondition, tolerance, left, memory, steps, noise, TRIES)
    found = _leg(evaluate, start, precondition, tolerance, left.clamp(max=LEG), memory, steps, noise, TRIES)
    spent, live = found.iterations, torch.ones_like(found.value, dtype=torch.bool)
    value, gradient = torch.full_like(found.value, torch.inf), torch.full_like(found.value, torch.inf)
    while True:
        gained = (found.value < value - GAIN * found.value.abs()) | (found.gradient < gradient / 2)
        live = live & gained & (found.gradient > tolerance) & (spent < left)
        live = live & (found.promise > worth * found.value.abs())
        if not bool(live.any()):
            return replace(found, iterations=spent)
        value, gradient = found.value, found.gradient
        limit = torch.where(live, (left - spent).clamp(max=LEG), 0)
        found = _leg(evaluate, found.x, renew(found.x), tolerance, limit, memory, (), noise, LATER_TRIES)
        spent = spent + found.iterations


def _leg(
    evaluate: Callable[[Vector], tuple[Float[Tensor, "*r"], Callable[[], Vector]]],
    start: Vector,
    precondition: Product,
    tolerance: Float[Tensor, "*r"],
    iterations: Int64[Tensor, "*r"],
    memory: int,
    steps: tuple[Step, ...],
    noise: float,
    tries: int,
) -> Minimum:
    """Minimise with one approximation of the inverse Hessian, until steps of ``tries`` lengths fail."""
    x = start
    value, slopes = evaluate(x)
    gradient = slopes()
    running: Bool[Tensor, "*r"] = torch.ones_like(value, dtype=torch.bool)
    spent = torch.zeros_like(value, dtype=torch.int64)
    promise = torch.zeros_like(value)
    while True:
        norm = torch.linalg.vector_norm(gradient, dim=-1)
        running = running & (norm > tolerance) & (spent < iterations)
        if not bool(running.any()):
            return Minimum(x, value, norm, promise, spent, steps, precondition)
        spent = spent + running
        direction = -_inverse_hessian(gradient, steps, precondition)
        slope = _inner(gradient, direction)
        promise = torch.where(running, -slope / 2, promise)
        length = torch.where(running, 1.0, torch.zeros_like(value))
        for _ in range(tries if steps else FRESH_TRIES):
            trial = x + length.unsqueeze(-1) * direction
            trial_value, slopes = evaluate(trial)
            short = running & ~(trial_value <= value + 1e-4 * length * slope)
            level = short & (trial_value <= value + noise * value.abs())
            if bool(level.any()):
                short = short & ~(level & (_inner(slopes(), direction) <= -0.8 * slope))
            if not bool(short.any()):
                break
            length = torch.where(short, length / 4, length)
        running = running & ~short
        keep = running.unsqueeze(-1)
        trial, trial_gradient = torch.where(keep, trial, x), torch.where(keep, slopes(), gradient)
        steps = (*steps, Step.of(trial - x, trial_gradient - gradient))[-memory:]
        x, value, gradient = trial, torch.where(running, trial_value, value), trial_gradient


def _inverse_hessian(gradient: Vector, steps: tuple[Step, ...], precondition: Product) -> Vector:
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


def newton(
    objective: Callable[[Vector], tuple[Float[Tensor, "*r"], Tensor]],
    derivatives: Callable[[Vector, Tensor], tuple[Vector, Float[Tensor, "*r"], Callable[[], Vector]]],
    start: Vector,
    tolerance: float,
    iterations: int,
) -> tuple[Vector, Float[Tensor, "*r"], int]:
    """Minimise by Newton steps, halved until the value falls enough; return the end, its gradient sizes, the steps.

    ``objective`` returns values and margins; ``derivatives``, at a point with its margins, the gradient, its size (to
    which ``tolerance`` applies) and what works out the step.  A step is taken where the value is at most that before,
    plus 1e-4 of what the slope promises (Armijo), plus rounding; a replicate where no halving helps stays where it is.
    """
    x = start
    value, margins = objective(x)
    spent = 0
    while True:
        gradient, size, direction = derivatives(x, margins)
        if spent == iterations or bool((size <= tolerance).all()):
            return x, size, spent
        spent += 1
        step = direction()
        slope, length = _inner(gradient, step), torch.ones_like(value)
        for _ in range(HALVINGS):
            trial = x + length.unsqueeze(-1) * step
            trial_value, trial_margins = objective(trial)
            rounding = 1e-12 * (1 + value.abs())
            bad = ~(trial_value <= value + 1e-4 * length * slope + rounding)
            if not bool(bad.any()):
                break
            length = torch.where(bad, length / 2, length)
        if bool(bad.all()):
            return x, size, spent
        held = bad.unsqueeze(-1)
        x, margins = torch.where(held, x, trial), torch.where(held, margins, trial_margins)
        value = torch.where(bad, value, trial_value)
