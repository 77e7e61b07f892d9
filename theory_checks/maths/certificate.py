"""Owns the certificate that is tighter than Proposition 1: evidence for the true parameter, turned into widths.

Derivation in docs/theory.md, section 3.  In short: with any prior ``Q`` on θ, ``E_Q Π p_θ(answers)/p_θ*(answers)`` is a
nonnegative martingale of mean 1, however the duels are chosen (Ville; Robbins' mixtures), so with probability at least
``1 - δ``, for all ``t`` at once, ``-ℓ_t(θ*) <= -log E_Q exp ℓ_t + log 1/δ``: no κ, no sub-Gaussian step.  The loss's
curvature between the fit and the truth (self-concordance, here exact for the logistic link) turns that into a
Fisher-weighted width.  Knows nothing of trials or claims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from bandits.core.design import PrimalDesign
from bandits.core.oracles import slope
from bandits.core.rows import Dense
from theory_checks.maths.tangent import Counts, ExtendedLink, fit, log_likelihood, times

GRID = tuple(4.0**power for power in range(-6, 4))
"""prior precisions of the mixture, and precisions of the centres, in units of λ"""


def secant(margin: Float[Tensor, ...], link: ExtendedLink) -> Float[Tensor, ...]:
    """Least ``w`` with ``b(Δ) - b(m) - b'(m)(Δ - m) >= w (Δ - m)²/2`` for all ``|Δ| <= limit``; ``b = ∫link``.

    The ratio is a weighted mean of the link's slope over the segment from ``m`` to Δ; since the slope has one peak, at
    0, the ratio is least at an end of the interval or next to ``m``.  Between ``κ = σ'(limit)`` and ``1/4``.
    """
    weights = [link.slope(margin)]
    for end in (-link.limit, link.limit):
        step = end - margin
        gap = link.primitive(margin + step) - link.primitive(margin) - link.value(margin) * step
        near = step.abs() < 1e-4  # the limit of the ratio, where its quotient would cancel
        weights.append(torch.where(near, link.slope(margin), 2 * gap / step.square().clamp(min=1e-8)))
    return torch.stack(weights).amin(0)


def expected_softplus(mean: Float[Tensor, ...], variance: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Return ``E log(1 + e^z)``, ``z ~ N(mean, variance)``, to about 1e-7.

    Up to a deviation of 1.5 by Gauss-Hermite quadrature; beyond, as ``E max(z, 0)`` in closed form plus
    ``∫ log(1 + e^{-|x|}) p(x) dx`` by Gauss-Legendre quadrature on both sides of the kink.
    """
    deviation = variance.sqrt()
    near = torch.zeros_like(mean)
    point, weight = np.polynomial.hermite_e.hermegauss(24)
    for x, w in zip(point, weight / math.sqrt(2 * math.pi), strict=True):
        near = near + w * softplus(mean + x * deviation)
    spread = deviation.clamp(min=1.0)
    ratio = mean / spread
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    far = mean * torch.special.ndtr(ratio) + spread * density
    point, weight = np.polynomial.legendre.leggauss(32)
    for x, w in zip(18 * (point + 1), 18 * weight, strict=True):
        rest = w * math.log1p(math.exp(-x)) / math.sqrt(2 * math.pi)
        sides = torch.exp(-((x - mean) / spread).square() / 2) + torch.exp(-((x + mean) / spread).square() / 2)
        far = far + rest * sides / spread
    return torch.where(deviation <= 1.5, near, far)


@dataclass(frozen=True, eq=False)
class Centre:
    """A penalised fit with precision ``ν``: its θ, margins, and loss ``F_ν = -ℓ̃ + (ν/2)‖θ‖²`` there.

    ``ℓ̃`` has the extended link; it equals the log-likelihood at the truth, whose differences are within the limit.
    """

    theta: Float[Tensor, "r p"]
    margins: Float[Tensor, "r n"]
    precision: float
    loss: Float[Tensor, r]


@dataclass(frozen=True, eq=False)
class Certificate:
    """The confidence set of one moment, as one ellipsoid per centre."""

    features: Float[Tensor, "r n p"]
    centres: tuple[Centre, ...]
    ellipsoids: tuple[PrimalDesign, ...]
    radii: tuple[Float[Tensor, r], ...]

    def width(self, features: Float[Tensor, "r k p"], theta: Float[Tensor, "r p"]) -> Float[Tensor, "r k"]:
        """Return the bound on ``|φᵀ(θ* - θ)|`` of any estimate: ``min_ν |φᵀ(θ_ν - θ)| + √(2R_ν) ‖φ‖_{W_ν⁻¹}``."""
        sides = [
            times(features, centre.theta - theta).abs() + radius.unsqueeze(-1) * ellipsoid.widths(Dense(features))
            for centre, ellipsoid, radius in zip(self.centres, self.ellipsoids, self.radii, strict=True)
        ]
        return torch.stack(sides).amin(0)


def evidence(features: Float[Tensor, "r n p"], counts: Counts, centres: tuple[Centre, ...]) -> Float[Tensor, r]:
    """Return a lower bound on ``log E_Q exp ℓ``, ``Q`` the even mixture of ``N(0, I/ν)`` over the centres' ``ν``.

    Per component the variational bound ``E_q ℓ - KL(q ‖ N(0, I/ν))`` with ``q = N(θ_ν, H_ν⁻¹)``, ``H_ν`` the Fisher
    matrix at ``θ_ν`` plus ``νI``; true for any ``q``, tight because ``ℓ`` is nearly quadratic.
    """
    bounds = []
    for centre in centres:
        nu, p = centre.precision, features.shape[-1]
        posterior = PrimalDesign.weighted(Dense(features), counts.asked * slope(centre.margins), nu)
        variance = posterior.widths(Dense(features)).square()
        expected = (counts.won * centre.margins - counts.asked * expected_softplus(centre.margins, variance)).sum(-1)
        inverse = torch.linalg.solve_triangular(posterior.factor, torch.eye(p, dtype=features.dtype), upper=False)
        trace = inverse.square().sum((-1, -2))
        divergence = (nu * trace - p + nu * centre.theta.square().sum(-1) + posterior.information()) / 2
        bounds.append(expected - divergence)
    return torch.logsumexp(torch.stack(bounds), 0) - math.log(len(bounds))


def fit_centres(
    features: Float[Tensor, "r n p"], counts: Counts, regularisation: float, limit: float, warm: tuple[Centre, ...] = ()
) -> tuple[Centre, ...]:
    """Fit the centres ``θ_ν`` with the link extended at ``limit``, from those of an earlier moment where given."""
    link = ExtendedLink(limit)
    lead = features.shape[0]
    centres = []
    for place, factor in enumerate(GRID):
        nu = factor * regularisation
        start = warm[place].theta if warm else features.new_zeros((lead, features.shape[-1]))
        theta, _ = fit(features, counts, features.new_full((lead,), nu), link, start)
        margins = times(features, theta)
        loss = nu / 2 * theta.square().sum(-1) - log_likelihood(margins, counts, link)
        centres.append(Centre(theta, margins, nu, loss))
    return tuple(centres)


def certify(
    features: Float[Tensor, "r n p"],
    counts: Counts,
    centres: tuple[Centre, ...],
    norm: Float[Tensor, r],
    limit: float,
    delta: float,
) -> Certificate:
    """Return the certificate: ``½‖θ* - θ_ν‖²_{W_ν} <= R_ν = log 1/δ - evidence + νB²/2 - F_ν(θ_ν)`` for every ν.

    Assumes Bradley-Terry-Luce answers to duels chosen from the past, ``‖θ* - θ0‖ <= B`` and ``|Δ| <= limit`` on the
    asked duels.  ``W_ν = νI + Σ w φφᵀ`` with the secant weights ``w`` of the fitted margins.
    """
    known = math.log(1 / delta) - evidence(features, counts, centres)
    radii = tuple(
        (2 * (known + centre.precision * norm.square() / 2 - centre.loss)).clamp(min=0).sqrt() for centre in centres
    )
    ellipsoids = tuple(
        PrimalDesign.weighted(
            Dense(features), counts.asked * secant(centre.margins, ExtendedLink(limit)), centre.precision
        )
        for centre in centres
    )
    return Certificate(features, centres, ellipsoids, radii)
