"""Owns Propositions 1 and 2 measured on a running simulation: left side, right side, and what lies between them.

Beside the learner that plays, an audit keeps the theorem's ``V`` (raw gradients at θ0, ridge ``λ/κ``) and the
linearised learner on the same answers.  Every round it compares fitted with true reward differences on all duels of
the pool and of the held-out table, so that coverage is simultaneous over rounds and duels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bandits.core.bounds import interpolation_norm, linearised, proposition
from bandits.core.design import GramDesign
from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.oracles import slope
from bandits.core.rows import ItemRows
from bandits.runs.stats import LEVEL, ROUNDING, Estimate, covered, kappa_failed, rank_correlation, unconverged, vacuous
from bandits.sim.learners import Fit, NeuralLearner, TangentLearner
from bandits.sim.problem import Inputs

Columns = dict[str, np.ndarray]


def _quantile(values: Float[Tensor, "r n"], q: float) -> np.ndarray:
    return np.asarray(torch.quantile(values, q, dim=-1).cpu().numpy())


@dataclass(frozen=True)
class Bounds:
    """The constants of a run's bounds."""

    kappa: float
    regularisation: float
    delta: float
    ties: float = 0.0
    """ν of the answers' model; ``κ`` is the least slope of its link"""
    largest_margin: float = math.nan
    """``Δmax``, on which κ is the least slope: the error that always answering 0 guarantees (default: of BTL's κ)"""

    def __post_init__(self) -> None:
        if math.isnan(self.largest_margin):
            object.__setattr__(self, "largest_margin", math.acosh(1 / (2 * self.kappa) - 1))

    @property
    def ridge(self) -> float:
        """``ρ = λ/κ``."""
        return self.regularisation / self.kappa


class Audit:
    """Measures the reward-difference bound round by round, in every replicate."""

    def __init__(
        self,
        learner: NeuralLearner,
        items: Inputs,
        rewards: Float[Tensor, "r n"],
        bounds: Bounds,
        norm: Float[Tensor, r] | None = None,
    ) -> None:
        """Prepare for duels of the given items (pool and held-out), of known true rewards.

        ``norm`` is ``B`` where it is known exactly; otherwise it is computed by interpolation on these items, which
        must then include every item that is asked (NaN where their Gram matrix is singular).
        """
        self.bounds, self._learner, self._items = bounds, learner, items
        self._duels = Duels.within(items.prompts, items.responses).expand(rewards.shape[0])
        self._true = self._duels.difference(rewards)
        self._tangent = TangentLearner(learner.network, learner.initial, bounds.regularisation, learner.scale)
        self._tangent.ties = bounds.ties
        start = self._tangent.features(items, "initial", "all")
        self._rows = start.differences(self._duels)
        self._design = GramDesign(bounds.ridge)
        self._past = Labelled[Inputs]()
        self._past_true = self._true[..., :0]
        self._last: tuple[Tensor, Tensor] | None = None
        self.norm = _norm(start, rewards, items.responses) if norm is None else norm

    def observe(self, past: Labelled[Inputs], true: Float[Tensor, "r b"]) -> None:
        """Take the history after a round, with the true margins of that round's duels."""
        items, duels = past.batches[-1].items.keep(past.batches[-1].duels)
        self._design.append(self._tangent.features(items, "initial", "all").differences(duels))
        self._past, self._past_true = past, torch.cat([self._past_true, true], -1)

    def refit(self) -> Fit:
        """Fit the linearised learner to the labels so far."""
        return self._tangent.fit(self._past)

    def measure(self) -> Columns:
        """Return this round's columns, each one number per replicate.  Call after the learner was fitted."""
        b, learner = self.bounds, self._learner
        fit = self.refit()
        network = self._duels.difference(learner.rewards(self._items))
        tangent = self._duels.difference(self._tangent.rewards(self._items))
        widths = self._design.widths(self._rows)
        current = GramDesign(b.ridge)
        current.append(learner.features(self._past.items, "current", "all").differences(self._past.duels))
        moved = current.widths(learner.features(self._items, "current", "all").differences(self._duels))
        information = torch.as_tensor(self._design.information())
        asked_network = self._past.duels.difference(learner.rewards(self._past.items))
        slopes = {"network": self._least_slope(asked_network), "tangent": self._least_slope(self._tangent.margins)}
        realised = slopes["tangent"].clamp(max=b.kappa)
        moved_information = torch.as_tensor(current.information())
        gamma = proposition(information, self.norm, b.kappa, b.regularisation, b.delta)
        second = proposition(moved_information, self.norm, b.kappa, b.regularisation, b.delta)
        exact = linearised(information, self.norm, b.kappa, b.ridge, b.regularisation, b.delta)
        safe = linearised(information, self.norm, realised, b.ridge, b.regularisation, b.delta)
        error, statistical = self._error(network), self._error(tangent)
        gap = (network - tangent).abs()
        # Each multiplier, with the left side, the width and the fitted differences that its bound is about.
        sides = {
            "": (gamma.total, error, widths, network),
            "_current": (second.total, error, moved, network),
            "_tangent": (exact.total, statistical, widths, tangent),
            "_audited": (safe.total, statistical, widths, tangent),
        }
        columns: dict[str, Tensor] = {
            "information": information,
            "information_current": moved_information,
            "norm": self.norm,
            "kappa_network": slopes["network"],
            "kappa_tangent": slopes["tangent"],
            "largest_margin": asked_network.abs().max(-1).values,
            "gamma": gamma.total,
            "gamma_noise": gamma.noise,
            "gamma_prior": gamma.prior,
            "gamma_current": second.total,
            "exact": exact.total,
            "audited": safe.total,
            "error": error.square().mean(-1).sqrt(),
            "statistical": statistical.square().mean(-1).sqrt(),
            "linearisation": gap.square().mean(-1).sqrt(),
            "epsilon": gap.max(-1).values,
            "gradient_tangent": fit.gradient,
            "needed_network": _ratio(error, widths).max(-1).values,
            "needed_current": _ratio(error, moved).max(-1).values,
            "needed_tangent": _ratio(statistical, widths).max(-1).values,
        }
        for name, (multiplier, left, width, fitted) in sides.items():
            right = multiplier.unsqueeze(-1) * width
            columns[f"violations{name}"] = (~(left <= right)).sum(-1)
            columns[f"sharpest{name}"] = (right / (b.largest_margin + fitted.abs())).min(-1).values
        table = {name: np.asarray(value.cpu().numpy(), dtype=np.float64) for name, value in columns.items()}
        table["tightness"] = _quantile(gamma.total.unsqueeze(-1) * widths / error.clamp(min=1e-300), 0.5)
        table["tightness_tangent"] = _quantile(exact.total.unsqueeze(-1) * widths / statistical.clamp(min=1e-300), 0.5)
        table["width"] = _quantile(widths, 0.5)
        table["rank_correlation"] = rank_correlation(widths.cpu(), error.cpu())
        table["rank_correlation_current"] = rank_correlation(moved.cpu(), error.cpu())
        self._last = (widths, error)
        return table

    def _error(self, fitted: Tensor) -> Tensor:
        """Return ``|fitted - true|``; 0 where it is rounding, as for two equal items, whose width is 0 too."""
        error = (fitted - self._true).abs()
        return torch.where(error > ROUNDING * self.bounds.largest_margin, error, 0.0)

    def _least_slope(self, fitted: Tensor) -> Tensor:
        """Return the least slope over the segments between true and fitted margins of the answered duels.

        With many ties (ν > 4) the slope rises before it falls, and its value at 0 may be the least.
        """
        ties = self.bounds.ties
        least = slope(torch.maximum(fitted.abs(), self._past_true.abs()), ties).min(-1).values
        return least if ties <= 4 else least.clamp(max=slope(torch.zeros_like(least), ties))

    def calibration(self, bins: int = 10) -> list[Columns]:
        """Return the last measured round's error by width decile: does width predict error?"""
        if self._last is None:
            raise InputError("audit: there is nothing to calibrate before the first measured round")
        widths, error = self._last
        order = widths.argsort(-1)
        rows = []
        for number, part in enumerate(torch.tensor_split(order, bins, -1)):
            rows.append(
                {
                    "decile": np.full(widths.shape[0], number + 1),
                    "width": widths.gather(-1, part).mean(-1).cpu().numpy(),
                    "error": error.gather(-1, part).square().mean(-1).sqrt().cpu().numpy(),
                }
            )
        return rows


def _norm(rows: ItemRows, rewards: Float[Tensor, "r n"], responses: int) -> Float[Tensor, r]:
    """Return ``B``, or NaN where it is not available: bounds that rest on it are then not judged, the rest is."""
    try:
        return interpolation_norm(rows, rewards, responses)
    except InputError:
        return rewards.new_full(rewards.shape[:-1], torch.nan)


def _ratio(error: Tensor, widths: Tensor) -> Tensor:
    """Return ``error / width``; a duel of zero width and zero error needs no multiplier."""
    return torch.where(error > 0, error / widths.clamp(min=1e-300), 0.0)


@dataclass(frozen=True)
class Version:
    """Which columns of an audit's table a bound is judged by."""

    suffix: str
    """of ``violations`` and ``sharpest``"""
    fit: str
    """the relative gradient norm of the fit that it is about"""
    slopes: str | None
    """the least slope that κ must not exceed; ``None`` where κ is read off the data"""


VERSIONS = {
    "Proposition 1, network": Version("", "gradient_norm", "kappa_network"),
    "Proposition 2, network, V at θ_t": Version("_current", "gradient_norm", "kappa_network"),
    "exact bound, linearised": Version("_tangent", "gradient_tangent", "kappa_tangent"),
    "exact bound, κ from the data": Version("_audited", "gradient_tangent", None),
}


def coverage(table: pd.DataFrame, version: Version, kappa: float, level: float = LEVEL) -> Estimate:
    """Estimate one bound's simultaneous coverage from an audit's table, with what forbids judging it.

    A replicate is covered if no measured (round, duel) breaks the bound.  The simulator's page and the theory's judge
    this same estimate.
    """
    replicates = table.groupby("replicate", sort=False)
    unmet = [unconverged(table[version.fit])]
    if version.slopes:
        unmet.append(kappa_failed(replicates[version.slopes].min(), kappa))
    if table["norm"].isna().any():
        unmet.append("B is not available, since the items' gradients are not linearly independent")
    elif not np.isfinite(table[f"sharpest{version.suffix}"]).all():
        unmet.append("numbers are not finite")
    return covered(replicates[f"violations{version.suffix}"].max() == 0, level).but(
        unmet=", ".join(filter(None, unmet)), vacuous=vacuous(replicates[f"sharpest{version.suffix}"].min())
    )
