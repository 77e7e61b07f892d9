"""Owns a trial: duels asked again and again on a linearised problem, with every bound measured at every moment.

The same code runs honest trials and the negative controls, which differ by one *corruption*.  Duels are chosen by the
shared selector; what is not shared is the loop, since in exact coordinates answers are counts and every duel may be
asked any number of times.  Knows nothing of claims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.bounds import check_delta, linearised, proposition
from bandits.core.design import Posterior, PrimalDesign
from bandits.core.errors import InputError
from bandits.core.oracles import ORACLES, chances, kappa, slope
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.selector import ActiveDPO, FeatureSpace, Pool, Random, ScoreStrategy, Strategy, select
from theory_checks.maths.certificate import GRID, Centre, certify, fit_centres
from theory_checks.maths.predictors import correlations
from theory_checks.maths.tangent import Counts, ExtendedLink, Logistic, Setting, TangentWorld, fit, times

Columns = dict[str, np.ndarray]
Sampling = Literal["random", "active", "adversary", "repeated", "fisher", "certificate"]
AGAIN: tuple[Sampling, ...] = ("adversary", "repeated")
Corruption = Literal["none", "mean-loss", "decay-to-zero", "forgetful", "unrecorded", "ndb-features", "small-kappa"]
Bound = Literal["plain", "audited", "extended", "noise", "proposition", "certificate"]


@dataclass(frozen=True)
class Trial:
    """How duels are asked and answered, and what is wrong with it.

    ``sampling``: ``random``; ``active``: ActiveDPO, greedy by width; ``fisher``: the same with ``√σ'(m) φ`` in
    ``H⁻¹``, ``H`` the Fisher matrix; ``certificate``: the largest certified errors. These pick distinct duels of the
    table every round. ``adversary``: knows the truth and all answers, and asks the duel that the fit is most wrong
    about for its width, so that bad luck is kept; ``repeated``: the duel of largest true difference, always. These
    ask one duel ``batch`` times.

    ``corruption``: ``mean-loss`` divides the loss's sum by the number of answers; ``decay-to-zero`` pulls θ to 0
    instead of θ0; ``forgetful`` fits the newest round's answers alone while V counts all; ``unrecorded``: V counts
    every duel once; ``ndb-features`` divides features by ``√m`` (the NDB convention) under NTK weights;
    ``small-kappa`` takes κ at Δmax/4.
    """

    setting: Setting = field(default_factory=Setting)
    sampling: Sampling = "random"
    oracle: str = "btl"
    regularisation: float = 1.0
    rounds: int = 400
    batch: int = 1
    delta: float = 0.05
    corruption: Corruption = "none"
    certificates: int = 12
    """moments, evenly spaced in log t, at which the tighter certificate is computed too"""
    predictors: bool = False
    """also rank duels by what might predict their error, at the end"""

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if self.rounds < 1 or self.batch < 1:
            raise InputError(f"a trial needs at least 1 round and 1 answer, got {self.rounds} and {self.batch}")
        if not self.regularisation > 0:
            raise InputError(f"regularisation λ must be positive, got {self.regularisation}")
        if self.sampling not in AGAIN and self.batch > self.setting.count:
            raise InputError(f"{self.batch} distinct duels a round cannot be asked of {self.setting.count}")
        if ORACLES[self.oracle].ties:
            raise InputError(f"a trial counts wins, but the oracle {self.oracle} gives ties; choose one without")

    @property
    def kappa(self) -> float:
        """``κ = σ'(Δmax)``, or too large under the corruption."""
        return kappa(self.setting.largest / (4 if self.corruption == "small-kappa" else 1))

    @property
    def ridge(self) -> float:
        """``ρ = λ/κ``."""
        return self.regularisation / self.kappa

    def memory(self, replicates: int) -> float:
        """Estimate the bytes of so many replicates: duels as vectors, ``V`` and its like, and the items' gradients."""
        s = self.setting
        n, p = s.count, s.prompts * (s.responses - 1)
        square = 4 + (3 * len(GRID) if self.certificates or self.sampling == "certificate" else 0)
        gradients = s.prompts * s.responses * (s.dim + 2 * s.width * (s.depth - 1) + 1)
        return 8.0 * replicates * (6 * n * p + square * p**2 + 3 * gradients + self.batch * n)


def _answers(problem: TangentWorld, trial: Trial, picks: Int64[Tensor, "r b"], key: Key) -> Float[Tensor, "r b"]:
    places = tuple(place.gather(-1, picks) for place in problem.places)
    margins = problem.margins.gather(-1, picks)
    chance, _ = chances(ORACLES[trial.oracle], margins, (places[0], places[1]), problem.responses)
    return (key.uniform(picks.shape[-1]) < chance).to(margins.dtype)


@dataclass(frozen=True, eq=False)
class _Largest(ScoreStrategy):
    """The duels of largest given score."""

    values: Float[Tensor, "r n"]
    reads = frozenset()

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return the values."""
        return self.values


RULES: dict[Sampling, Strategy] = {
    "random": Random(),
    "active": ActiveDPO(),
    "fisher": ActiveDPO(FeatureSpace(weight="fisher")),
}


def _picks(
    trial: Trial, problem: TangentWorld, posterior: Posterior, scores: dict[str, Tensor], key: Key
) -> Int64[Tensor, "r b"]:
    """Choose a round's duels from what is known before it: by the selector, or one duel ``batch`` times."""
    if trial.sampling not in AGAIN:
        rule = RULES.get(trial.sampling) or _Largest(scores[trial.sampling])
        free = torch.ones_like(problem.margins, dtype=torch.bool)
        return select(Pool(problem.duels, free, problem.responses, posterior), rule, trial.batch, key)
    score = scores[trial.sampling]
    ties = key.uniform(trial.batch, score.shape[-1])
    top = score.unsqueeze(-2) >= score.amax(-1)[..., None, None] * (1 - 1e-9)
    return torch.where(top, ties, -1.0).argmax(-1)


def _ratio(error: Float[Tensor, "r n"], bound: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
    return torch.where(error > 1e-12, error / bound.clamp(min=1e-300), 0.0)


def play(trial: Trial, key: Key) -> Columns:
    """Run a trial; return one number per replicate and column.

    ``worst_b``: the largest left side over right side of bound ``b`` over all moments and duels (covered: at most 1);
    ``sharpest_b``: the least right side over ``Δmax + |Δ̂|`` (from 1 on it excludes nothing that ``|Δ| <= Δmax``
    allows); ``needed_b``: the multiplier of the width that would have sufficed; ``tightness_b``: median right over
    left side at the end; ``gain_*``: median over duels of a bound's right side over the certificate's (``range``: the
    papers' over the certificate cut at ``Δmax + |Δ̂|``; ``possible``: the papers' over the floor below which no
    certificate can go; ``above_floor``: the certificate's over that floor); ``potential``: ``Σ min(1, w²)`` over ``2
    log det``; ``chain``: ``|Σ log(1 + w²) - log det|`` (both for one answer a round); ``kappa``: the least slope on
    the segments between true and plainly fitted differences of asked duels; ``gradient``: the largest relative
    gradient norm of any fit.
    """
    problem = TangentWorld.of(trial.setting, key.fold_in("world"))
    lead, n = problem.features.shape[0], problem.features.shape[-2]
    lam = problem.features.new_full((lead,), trial.regularisation)
    truth, norm, limit = problem.margins, problem.norm, trial.setting.largest
    rows = problem.features / trial.setting.width**0.5 if trial.corruption == "ndb-features" else problem.features
    centre = -problem.start if trial.corruption == "decay-to-zero" else None
    zero = problem.features.new_zeros((lead, n))
    counts, noise = Counts(zero, zero), torch.zeros_like(problem.theta)
    plain = straight = torch.zeros_like(problem.theta)
    centres: tuple[Centre, ...] = ()
    design = PrimalDesign.weighted(Dense(rows), zero, trial.ridge)
    posterior = design.condition(Dense(rows))
    widths = posterior.widths
    scores = {"adversary": zero, "repeated": truth.abs()}
    scores["certificate"] = torch.linalg.vector_norm(problem.features, dim=-1)
    information = potential = chain = zero.sum(-1)
    track = _Track(lead, limit)
    moments = set(np.geomspace(1, trial.rounds, trial.certificates).round().astype(int))
    for step in range(1, trial.rounds + 1):
        child = key.fold_in("round", step)
        picks = _picks(trial, problem, posterior, scores, child.fold_in("ties"))
        won = _answers(problem, trial, picks, child.fold_in("labels"))
        counts = counts.add(picks, won)
        squares = widths.gather(-1, picks[..., :1]).squeeze(-1).square()
        potential, chain = potential + squares.clamp(max=1), chain + squares.log1p()
        surprise = won.to(noise.dtype) - torch.sigmoid(truth.gather(-1, picks))
        noise = noise + times(problem.features.mT, torch.zeros_like(zero).scatter_add(-1, picks, surprise))
        seen = counts
        if trial.corruption == "forgetful":
            seen = Counts(zero, zero).add(picks, won)
        pull = lam * (counts.total if trial.corruption == "mean-loss" else 1)
        plain, first = fit(problem.features, seen, pull, Logistic(), plain, centre)
        fitted = times(problem.features, plain)
        asked = counts.asked > 0
        beyond = bool(((fitted.abs() > limit) & asked).any())
        straight, second = (
            fit(problem.features, seen, pull, ExtendedLink(limit), plain, centre) if beyond else (plain, first)
        )
        weights = asked.to(zero.dtype) if trial.corruption == "unrecorded" else counts.asked
        design = PrimalDesign.weighted(Dense(rows), weights, trial.ridge)
        seen_through = design.condition(Dense(rows))
        widths, information = seen_through.widths, torch.as_tensor(design.information())
        least = torch.where(asked, slope(torch.maximum(fitted.abs(), truth.abs())), 0.25).amin(-1)
        error = (fitted - truth).abs()
        extended = times(problem.features, straight)
        exact = linearised(information, norm, trial.kappa, trial.ridge, trial.regularisation, trial.delta)
        safe = linearised(
            information, norm, least.clamp(max=trial.kappa), trial.ridge, trial.regularisation, trial.delta
        )
        paper = proposition(information, norm, trial.kappa, trial.regularisation, trial.delta)
        scores["adversary"] = _ratio(error, widths)
        if trial.sampling == "active":
            posterior = seen_through
        track.note("plain", error, exact.total.unsqueeze(-1) * widths, widths, fitted)
        track.note("audited", error, safe.total.unsqueeze(-1) * widths, widths, fitted)
        track.note("extended", (extended - truth).abs(), exact.total.unsqueeze(-1) * widths, widths, extended)
        track.note("proposition", error, paper.total.unsqueeze(-1) * widths, widths, fitted)
        track.note("noise", design.widths(Dense(noise.unsqueeze(-2))), (exact.noise * trial.kappa).unsqueeze(-1))
        track.assume(least, torch.maximum(first, second))
        if trial.sampling == "fisher":
            fisher = PrimalDesign.weighted(Dense(problem.features), seen.asked * slope(fitted), trial.regularisation)
            posterior = fisher.condition(Dense(slope(fitted).sqrt().unsqueeze(-1) * problem.features))
        if step in moments or trial.sampling == "certificate":
            centres = fit_centres(problem.features, counts, trial.regularisation, limit, centres)
            certificate = certify(problem.features, counts, centres, norm, limit, trial.delta)
            certified = certificate.width(problem.features, plain)
            scores["certificate"] = certified
            track.note("certificate", error, certified, widths, fitted)
            track.last("gain_proposition", paper.total.unsqueeze(-1) * widths / certified)
            track.last("gain_exact", exact.total.unsqueeze(-1) * widths / certified)
            track.last("gain_range", paper.total.unsqueeze(-1) * widths / certified.minimum(limit + fitted.abs()))
            side = paper.total.unsqueeze(-1) * widths
            lowest = floor(problem, counts)
            track.last("gain_possible", side / lowest)
            track.last("above_floor", certified / lowest)
    ended = {
        "norm": norm,
        "information": information,
        "answers": counts.total,
        "error": error.square().mean(-1).sqrt(),
        "gamma": paper.total,
        "gamma_noise": paper.noise,
        "gamma_prior": paper.prior,
        "potential": potential / (2 * information),
        "chain": (chain - information).abs(),
    }
    columns = track.columns() | {name: value.numpy() for name, value in ended.items()}
    if trial.predictors:
        columns |= correlations(problem, counts, plain, trial.regularisation, trial.ridge, key.fold_in("gaussian"))
    return columns


def floor(problem: TangentWorld, counts: Counts) -> Float[Tensor, "r n"]:
    """Return, per duel, a half-width below which no certificate can go whose only knowledge is ``‖θ* - θ0‖ <= B``.

    Le Cam's two points ``θ = ±(s/2)ψ`` with ``(s/2)‖ψ‖ <= B`` and a divergence ``<= (s²/8) Σ (φ_sᵀψ)² <= 1/2`` between
    the answers' laws: total variation at most 1/2, so an interval that holds the truth with probability ``1 - δ``
    under both laws holds both points with probability at least ``1/2 - 2δ``, and then is ``s|φᵀψ|/2`` wide on one side.
    ``ψ = (Σφφᵀ + νI)⁻¹φ``, the best of a grid of ``ν`` (docs/theory.md, 3.4).
    """
    phi = problem.features
    values, vectors = torch.linalg.eigh(phi.mT @ (phi * counts.asked.unsqueeze(-1)))
    values = values.clamp(min=0).unsqueeze(-2)
    squares = (phi @ vectors).square()
    best = torch.zeros_like(problem.margins)
    for nu in torch.logspace(-5, 3, 17, dtype=phi.dtype):
        inverse = 1 / (values + nu)
        reach = (squares * inverse).sum(-1)
        length = (squares * inverse.square()).sum(-1).sqrt()
        told = (squares * inverse.square() * values).sum(-1).sqrt()
        s = torch.minimum(2 * problem.norm.unsqueeze(-1) / length, 2 / told.clamp(min=1e-300))
        best = torch.maximum(best, s * reach / 2)
    return best


class _Track:
    """The extremes of a trial so far, per replicate."""

    def __init__(self, lead: int, limit: float) -> None:
        self._limit = limit
        self._columns: dict[str, Tensor] = {}
        self._kappa, self._gradient = torch.full((lead,), 0.25), torch.zeros(lead)

    def note(
        self, bound: Bound, error: Tensor, side: Tensor, widths: Tensor | None = None, fitted: Tensor | None = None
    ) -> None:
        """Take in one moment of one bound: of each duel's fitted difference, where it is about those."""
        ratio = _ratio(error, side)
        self._keep(f"worst_{bound}", ratio.amax(-1), torch.maximum)
        self._columns[f"tightness_{bound}"] = (1 / ratio.clamp(min=1e-12)).median(-1).values
        if widths is not None and fitted is not None:
            self._keep(f"sharpest_{bound}", (side / (self._limit + fitted.abs())).amin(-1), torch.minimum)
            self._keep(f"needed_{bound}", _ratio(error, widths).amax(-1), torch.maximum)

    def last(self, name: str, values: Tensor) -> None:
        """Keep the latest median over duels."""
        self._columns[name] = values.median(-1).values

    def assume(self, kappa: Tensor, gradient: Tensor) -> None:
        """Take in what the bounds assume."""
        self._kappa, self._gradient = torch.minimum(self._kappa, kappa), torch.maximum(self._gradient, gradient)

    def _keep(self, name: str, value: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> None:
        old = self._columns.get(name)
        self._columns[name] = value if old is None else choose(old, value)

    def columns(self) -> Columns:
        """Return the extremes as arrays."""
        values = self._columns | {"kappa": self._kappa, "gradient_norm": self._gradient}
        return {name: value.numpy() for name, value in values.items()}
