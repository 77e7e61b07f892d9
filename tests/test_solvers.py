"""The batched minimiser against SciPy, one problem at a time, in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from bandits.core.solvers import minimise, newton


def problem(seed: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three strictly convex functions ``½ xᵀAx - bᵀx + Σ log(1 + e^{c x})`` of their own."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(3, dim, dim))
    return root @ root.transpose(0, 2, 1) + np.eye(dim), rng.normal(size=(3, dim)) * 3, rng.normal(size=(3, dim)) * 2


def run(seed: int, dim: int, exact_metric: bool, replicates: slice = slice(None), iterations: int = 200):
    a, b, c = (torch.from_numpy(part[replicates]) for part in problem(seed, dim))

    def evaluate(x):
        value = 0.5 * (x.unsqueeze(-2) @ a @ x.unsqueeze(-1)).flatten() - (b * x).sum(-1)
        value = value + torch.nn.functional.softplus(c * x).sum(-1)
        return value, lambda: (a @ x.unsqueeze(-1)).squeeze(-1) - b + c * torch.sigmoid(c * x)

    metric = torch.linalg.inv(a) if exact_metric else torch.eye(dim, dtype=torch.float64).expand_as(a)
    tolerance = torch.full((len(a),), 1e-9, dtype=torch.float64)
    return minimise(
        evaluate, torch.zeros_like(b), lambda v: (metric @ v.unsqueeze(-1)).squeeze(-1), tolerance, iterations
    )


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 7), exact=st.booleans())
def test_every_replicate_ends_at_its_own_minimum(seed, dim, exact):
    found = run(seed, dim, exact)
    assert (found.gradient <= 1e-9).all()
    for r, (a, b, c) in enumerate(zip(*problem(seed, dim), strict=True)):
        best = optimize.minimize(
            lambda x, a=a, b=b, c=c: 0.5 * x @ a @ x - b @ x + np.logaddexp(0, c * x).sum(), np.zeros(dim), tol=1e-12
        )
        np.testing.assert_allclose(found.x[r].numpy(), best.x, atol=1e-4)


@pytest.mark.slow
@given(seed=st.integers(0, 10**6))
def test_company_changes_nothing(seed):
    together, alone = run(seed, 4, True), run(seed, 4, True, slice(1, 2))
    torch.testing.assert_close(together.x[1:2], alone.x, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_a_metric_near_the_hessian_saves_steps():
    """On 20 problems the exact quadratic part as metric takes fewer steps than the identity, every time."""
    assert all(run(seed, 6, True).iterations.max() < run(seed, 6, False).iterations.max() for seed in range(20))


@pytest.mark.campaign
def test_remembered_steps_save_steps():
    """20 problems, stopped half way and taken up again: with the steps so far fewer are needed than without, in sum."""

    def rest(seed: int, remember: bool) -> torch.Tensor:
        a, b, _ = (torch.from_numpy(part) for part in problem(seed, 12))

        def evaluate(x):
            slope = (a @ x.unsqueeze(-1)).squeeze(-1)
            return (x * (slope / 2 - b)).sum(-1), lambda: slope - b

        tolerance = torch.full((3,), 1e-9, dtype=torch.float64)
        half = minimise(evaluate, torch.zeros_like(b), lambda v: v / 20, tolerance, 12)
        return minimise(
            evaluate, half.x, lambda v: v / 20, tolerance, 200, steps=half.steps * remember
        ).iterations.sum()

    assert sum(rest(seed, True) for seed in range(20)) < 0.8 * sum(rest(seed, False) for seed in range(20))


@pytest.mark.campaign
def test_a_value_that_only_trembles_is_told_by_its_slope():
    """Values with a relative error of 1e-7, gradients exact: to 1e-9 with the noise named, not without it."""
    generator, curvature = torch.Generator().manual_seed(0), torch.linspace(1, 30, 8, dtype=torch.float64)

    def evaluate(x):
        value = 1000 + 0.5 * (curvature * x.square()).sum(-1)
        return value * (1 + 2e-8 * torch.randn(len(x), generator=generator, dtype=x.dtype)), lambda: curvature * x

    ends = [
        minimise(
            evaluate,
            torch.full((40, 8), 0.1).double(),
            lambda v: v / 10,
            torch.full((40,), 1e-9).double(),
            60,
            noise=noise,
        ).gradient
        for noise in (1e-7, 1e-14)
    ]
    assert (ends[0] <= 1e-9).all()
    assert not (ends[1] <= 1e-9).all()


def test_a_kink_stops_it_and_the_gradient_tells():
    """``|x| + x²/2`` from 3: no step lowers the value at the kink; it stops there, and its gradient is not small."""
    found = minimise(
        lambda x: (x.abs().sum(-1) + 0.5 * x.square().sum(-1), lambda: torch.where(x >= 0, 1.0, -1.0) + x),
        torch.tensor([[3.0], [0.5]]).double(),
        lambda v: v,
        torch.full((2,), 1e-9).double(),
        50,
    )
    assert found.x.isfinite().all()
    assert (found.x.abs() < 3).all()
    assert (found.gradient > 0.1).all()


def test_no_iterations_leave_the_start():
    found = run(0, 3, True, iterations=0)
    assert (found.iterations == 0).all()
    assert float(found.x.abs().max()) == 0


@given(seed=st.integers(0, 10**6))
def test_a_step_that_is_too_long_needs_no_gradient(seed):
    """With a metric 100 times too large, values are asked for more often than gradients, one gradient an iteration."""
    a, b, _ = (torch.from_numpy(part[:1]) for part in problem(seed, 3))
    asked = {"values": 0, "gradients": 0}

    def evaluate(x):
        asked["values"] += 1
        slope = (a @ x.unsqueeze(-1)).squeeze(-1)

        def gradient():
            asked["gradients"] += 1
            return slope - b

        return (x * (slope / 2 - b)).sum(-1), gradient

    found = minimise(evaluate, torch.zeros_like(b), lambda v: 100 * v, torch.full((1,), 1e-6).double(), 50)
    assert asked["gradients"] <= int(found.iterations) + 1 < asked["values"]


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 7), far=st.sampled_from([0.0, 50.0]))
def test_newton_ends_at_every_replicates_minimum_and_never_rises(seed, dim, far):
    """From near and from far, where full steps overshoot: SciPy's minimum, and values that only fall."""
    a, b, c = (torch.from_numpy(part) for part in problem(seed, dim))
    taken = []

    def objective(x):
        margins = c * x
        value = 0.5 * (x.unsqueeze(-2) @ a @ x.unsqueeze(-1)).flatten() - (b * x).sum(-1)
        return value + torch.nn.functional.softplus(margins).sum(-1), margins

    def derivatives(x, margins):
        taken.append(objective(x)[0])
        gradient = (a @ x.unsqueeze(-1)).squeeze(-1) - b + c * torch.sigmoid(margins)
        flat = torch.diag_embed(c.square() * torch.sigmoid(margins) * torch.sigmoid(-margins))
        return gradient, gradient.norm(dim=-1), lambda: -torch.linalg.solve(a + flat, gradient)

    x, size, steps = newton(objective, derivatives, torch.full_like(b, far), 1e-9, 100)
    assert (size <= 1e-9).all()
    assert steps == len(taken) - 1
    for before, after in pairwise(taken):
        assert (after <= before + 1e-12 * (1 + before.abs())).all()
    for r, (a, b, c) in enumerate(zip(*problem(seed, dim), strict=True)):
        best = optimize.minimize(
            lambda x, a=a, b=b, c=c: 0.5 * x @ a @ x - b @ x + np.logaddexp(0, c * x).sum(), np.zeros(dim), tol=1e-12
        )
        np.testing.assert_allclose(x[r].numpy(), best.x, atol=1e-4)


@pytest.mark.slow
def test_newton_leaves_a_replicate_where_its_step_does_not_help():
    """The second replicate is given an uphill direction: it stays, and its size tells; the first goes on to its end."""
    sign = torch.tensor([[-1.0], [1.0]]).double()
    x, size, _ = newton(
        lambda x: (x.square().sum(-1), x),
        lambda x, margins: (2 * x, 2 * x.abs().squeeze(-1), lambda: sign * x / 2),
        torch.ones(2, 1).double(),
        1e-6,
        60,
    )
    assert float(size[0]) <= 1e-6
    assert float(x[1]) == 1
    assert float(size[1]) == 2
