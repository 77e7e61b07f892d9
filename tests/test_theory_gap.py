"""The policy's gap: its fits, Fisher matrix and designs against slow references and equivalence theorems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from theory_checks.families.gap import RIDGE, Gap, World, fit


@pytest.fixture(params=range(4))
def world(request) -> World:
    return World.draw(np.random.default_rng(request.param), 6, 3, 4)


def test_a_fit_is_scipys(world):
    generator = np.random.default_rng(7)
    asked = generator.multinomial(300, np.full(len(world.duels), 1 / len(world.duels)), size=3)
    won = generator.binomial(asked, 0.6)
    found = fit(torch.as_tensor(world.duels), torch.as_tensor(asked), torch.as_tensor(won))[0].numpy()
    for k in range(3):

        def loss(theta: np.ndarray, k: int = k) -> float:
            margins = world.duels @ theta
            return float((asked[k] * np.logaddexp(0, margins) - won[k] * margins).sum() + RIDGE / 2 * theta @ theta)

        slow = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(found[k], slow.x, rtol=1e-4, atol=1e-5)


def test_the_fisher_matrix_is_the_hessian_of_kl(world):
    items, truth = torch.as_tensor(world.items), torch.as_tensor(world.truth)

    def gap(theta: torch.Tensor) -> torch.Tensor:
        found, true = (torch.log_softmax(items @ t, -1) for t in (theta, truth))
        return (found.exp() * (found - true)).sum(-1).mean()

    hessian = torch.autograd.functional.hessian(gap, truth).numpy()
    np.testing.assert_allclose(world.fisher, hessian, atol=1e-10)


@pytest.mark.slow
def test_the_best_designs_fulfil_their_equivalence_theorems(world):
    """Kiefer and Wolfowitz: no duel's directional derivative exceeds the criterion at the optimum."""
    trace = world.best_trace()
    assert trace.sum() == pytest.approx(1)
    turned = np.linalg.solve(world.information(trace), world.duels.T)
    slopes = world.weights * np.einsum("ie,ij,je->e", turned, world.fisher, turned)
    assert slopes.max() <= world.trace(trace, world.fisher) * 1.01
    best = world.best_determinant()
    assert best.sum() == pytest.approx(1)
    plain = np.einsum("e,ei,ej->ij", best, world.duels, world.duels)
    assert np.einsum("ei,ie->e", world.duels, np.linalg.solve(plain, world.duels.T)).max() <= 4 * 1.01


def test_twice_the_trace_is_twice_the_trace_and_the_shuffled_matrix_keeps_its_sizes(world):
    generator = np.random.default_rng(0)
    uniform = np.full(len(world.duels), 1 / len(world.duels))
    twice = world.twice_the_trace(generator)
    assert world.trace(twice, world.fisher) == pytest.approx(2 * world.trace(uniform, world.fisher), rel=1e-6)
    turned = world.turned()
    np.testing.assert_allclose(np.linalg.eigvalsh(turned), np.linalg.eigvalsh(world.fisher), atol=1e-12)
    assert np.abs(turned - world.fisher).max() > 1e-3


@pytest.mark.slow
def test_a_table_does_not_depend_on_its_block(tmp_path):
    small = Gap(replicates=3, draws=20, designs=3, prompts=4, dim=2, labels=(50, 100))
    (whole,) = (small.run(cell, 0, tmp_path) for cell in small.cells())
    from theory_checks.families.gap import Worlds

    alone = small.run(Worlds(2, 3), 0, tmp_path)
    assert whole[whole["replicate"] == 2].reset_index(drop=True).equals(alone)
