"""Owns what might predict a duel's error: widths of several kinds, noise, bias, margins; and how well each one does.

To second order the fit errs by ``φᵀ(θ̂ - θ*) = φᵀH⁻¹S - λ φᵀH⁻¹θ*``: noise of variance ``φᵀH⁻¹ I H⁻¹φ`` (``I`` the
Fisher information, ``H = I + λ``) and a bias.  ``‖φ‖²_{H⁻¹}`` is the mean square of the two if θ* were drawn from
``N(0, I/λ)``; a given truth is not drawn anew for every duel.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bandits.core.design import PrimalDesign
from bandits.core.oracles import slope
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.runs.stats import rank_correlation
from theory_checks.maths.tangent import Counts, TangentWorld, times

NAMES = {
    "width": "width ‖φ‖ in V⁻¹",
    "norm": "‖φ‖ alone",
    "fisher": "Fisher width ‖φ‖ in H⁻¹",
    "noise": "noise sd alone",
    "bias": "plug-in bias λ|φᵀH⁻¹θ̂|",
    "both": "noise and plug-in bias",
    "margin": "|fitted margin|",
    "oracle-bias": "true bias λ|φᵀH⁻¹θ*| (needs the truth)",
    "oracle": "noise and true bias (needs the truth)",
    "gaussian": "if errors were N(0, s²), s = noise and true bias",
}


def predictors(
    problem: TangentWorld, counts: Counts, theta: Float[Tensor, "r p"], regularisation: float, ridge: float
) -> dict[str, Float[Tensor, "r n"]]:
    """Return every predictor of ``|φᵀ(θ - θ*)|`` for every duel of the table."""
    phi = problem.features
    margins = times(phi, theta)
    information = counts.asked * slope(margins)
    hessian = PrimalDesign.weighted(Dense(phi), information, regularisation)
    solved = torch.cholesky_solve(phi.mT, hessian.factor)  # H⁻¹Φᵀ
    noise = ((phi @ solved).square() * information.unsqueeze(-2)).sum(-1).sqrt()

    def bias(parameter: Tensor) -> Tensor:
        return regularisation * (solved.mT @ parameter.unsqueeze(-1)).squeeze(-1).abs()

    plug, true = bias(theta), bias(problem.theta)
    return {
        "width": PrimalDesign.weighted(Dense(phi), counts.asked, ridge).widths(Dense(phi)),
        "norm": torch.linalg.vector_norm(phi, dim=-1),
        "fisher": hessian.widths(Dense(phi)),
        "noise": noise,
        "bias": plug,
        "both": (noise.square() + plug.square()).sqrt(),
        "margin": margins.abs(),
        "oracle-bias": true,
        "oracle": (noise.square() + true.square()).sqrt(),
    }


def correlations(
    problem: TangentWorld, counts: Counts, theta: Float[Tensor, "r p"], regularisation: float, ridge: float, key: Key
) -> dict[str, np.ndarray]:
    """Return Spearman's correlation of every predictor with the error over duels, per replicate; and error by decile.

    ``decile_k`` is the rms error of the ``k``-th tenth of the duels by width over that of all.
    """
    found = predictors(problem, counts, theta, regularisation, ridge)
    error = (times(problem.features, theta) - problem.margins).abs()
    columns = {f"corr_{name}": rank_correlation(values, error) for name, values in found.items()}
    drawn = found["oracle"] * key.normal(error.shape[-1]).abs()
    columns["corr_gaussian"] = rank_correlation(found["oracle"], drawn)
    whole = error.square().mean(-1)
    for number, part in enumerate(torch.tensor_split(found["width"].argsort(-1), 10, -1)):
        columns[f"decile_{number + 1}"] = (error.gather(-1, part).square().mean(-1) / whole).sqrt().numpy()
    return columns
