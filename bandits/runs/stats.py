"""Owns what may be said of measured numbers: estimates with intervals, their judgement, comparisons of strategies.

A replicate is one independent draw of problem and randomness that all strategies share; so intervals are over
replicates and comparisons are paired.  Functions take arrays (``summarise`` and ``compare`` take frames).  There is one
rule each for what is converged, what κ must hold for, what is vacuous, and for the order of judgement.  The coverage of
every interval is simulated in ``tests/test_stats.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats

LEVEL = 0.95
CONVERGED = 1e-4
"""The gradient norm, relative to its size at θ0, up to which a fit counts as a near-minimiser."""
ROUNDING = 1e-12

Word = Literal["supported", "refuted", "not informative"]


# --- Estimates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number with its interval from ``n`` replicates; NaN bounds where ``n`` is too small to give any.

    ``unmet`` names what forbids a judgement (an assumption, a fit), ``vacuous`` why a bound that holds says nothing;
    ``note`` is a remark.
    """

    value: float
    low: float
    high: float
    n: int
    unmet: str = ""
    note: str = ""
    vacuous: str = ""

    def but(self, unmet: str = "", note: str = "", vacuous: str = "") -> Estimate:
        """Return the same estimate with one more reason against judging it, or one more remark."""
        join = [
            ", ".join(part for part in pair if part)
            for pair in ((self.unmet, unmet), (self.note, note), (self.vacuous, vacuous))
        ]
        return replace(self, unmet=join[0], note=join[1], vacuous=join[2])

    def within(self, least: float, most: float) -> Estimate:
        """Return the same estimate of what cannot be below ``least`` or above ``most``; nor then can its interval."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def joint_level(tests: int, level: float = LEVEL) -> float:
    """Return the level of each of ``tests`` intervals that makes all of them hold at ``level`` (Bonferroni)."""
    return 1 - (1 - level) / max(1, tests)


def _sample(values: ArrayLike) -> tuple[np.ndarray, str]:
    """Return the values, and what is wrong with them."""
    kept = np.asarray(values, dtype=np.float64).ravel()
    bad = int((~np.isfinite(kept)).sum())
    if not len(kept):
        return kept, "nothing was measured"
    return kept, f"{bad} of {len(kept)} values are not finite" if bad else ""


def mean(values: ArrayLike, level: float = LEVEL) -> Estimate:
    """Estimate a mean with Student's t interval.

    It covers at its level for normal values from 2 on; for exponential ones it covers 0.90 of 0.95 at 16, 0.94 at 64.
    """
    sample, wrong = _sample(values)
    if wrong:
        return Estimate(math.nan, math.nan, math.nan, len(sample), wrong)
    middle, n = float(sample.mean()), len(sample)
    if n < 2:
        return Estimate(middle, math.nan, math.nan, n)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * float(sample.std(ddof=1)) / math.sqrt(n)
    return Estimate(middle, middle - half, middle + half, n)


def median(values: ArrayLike, level: float = LEVEL) -> Estimate:
    """Estimate a median between two order statistics, exact for any distribution (inverted sign test).

    The interval ``(x₍ₖ₎, x₍ₙ₊₁₋ₖ₎)`` misses with probability at most ``2 P(Bin(n, 1/2) < k)``; below 6 values there is
    none at 95 %.
    """
    sample, wrong = _sample(values)
    if wrong:
        return Estimate(math.nan, math.nan, math.nan, len(sample), wrong)
    n = len(sample)
    k = int(stats.binom.ppf((1 - level) / 2, n, 0.5))  # the least with P(Bin <= k) >= α/2, so P(Bin < k) <= α/2
    if k < 1:
        return Estimate(float(np.median(sample)), math.nan, math.nan, n)
    ordered = np.sort(sample)
    return Estimate(float(np.median(sample)), float(ordered[k - 1]), float(ordered[n - k]), n)


def share(hits: float | int, n: int, level: float = LEVEL) -> Estimate:
    """Estimate a probability from ``hits`` of ``n`` independent trials with the exact interval (Clopper-Pearson).

    Half hits (ties) and hits averaged over repetitions are allowed: a value in [0, 1] varies at most as a hit of the
    same mean does, so the interval then is wider than it need be.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits in {n} trials")
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0, "nothing was measured")
    tail = (1 - level) / 2
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return Estimate(hits / n, low, high, n)


def covered(holds: ArrayLike, level: float = LEVEL) -> Estimate:
    """Estimate a simultaneous coverage: the share of replicates in which a bound ``holds`` throughout."""
    held = np.asarray(holds, dtype=bool)
    return share(int(held.sum()), len(held), level)


def bootstrap(
    samples: Sequence[ArrayLike],
    statistic: Callable[..., np.ndarray],
    level: float = LEVEL,
    paired: bool = True,
    seed: int = 0,
    draws: int = 4000,
) -> Estimate:
    """Estimate a smooth statistic of one or more samples by the BCa bootstrap (Efron 1987).

    For what has no interval of its own, such as a ratio of means: ``statistic(*samples, axis=-1)``.  ``paired`` draws
    whole replicates.  It covers below its level where replicates are few and skewed (0.90 of 0.95 at 16, 0.92 at 64,
    0.94 at 200), so prefer ``mean``, ``median`` and ``log_ratio``.
    """
    arrays = [np.asarray(s, dtype=np.float64) for s in samples]
    n = min(len(a) for a in arrays)
    wrong = next((w for w in (_sample(a)[1] for a in arrays) if w), "")
    if wrong:
        return Estimate(math.nan, math.nan, math.nan, n, wrong)
    value = float(statistic(*arrays, axis=-1))
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    if all(np.ptp(a) == 0 for a in arrays):
        return Estimate(value, value, value, n)
    found = stats.bootstrap(
        arrays,
        statistic,
        paired=paired and len(arrays) > 1,
        confidence_level=level,
        n_resamples=draws,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high), n)


def bca(value: float, draws: ArrayLike, left_out: ArrayLike, level: float = LEVEL) -> Estimate:
    """Estimate a statistic from its bootstrap draws and from its values without each replicate: BCa (Efron 1987).

    For statistics that are worked out for all draws at once, such as many of the same drawn replicates.
    """
    drawn, less = np.asarray(draws, dtype=np.float64), np.asarray(left_out, dtype=np.float64)
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    bias = special.ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    pull = less.mean() - less
    size = float((pull**2).sum())
    skew = float((pull**3).sum()) / (6 * size**1.5) if size > 0 else 0.0
    ends = bias + special.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(drawn, special.ndtr(bias + ends / (1 - skew * ends)))
    return Estimate(value, float(low), float(high), len(less))


def jackknife(value: float, left_out: ArrayLike, level: float = LEVEL) -> Estimate:
    """Estimate a statistic from its values without each of n replicates: ``value ± t √((n-1)/n Σ (less - mean)²)``.

    Student's t at n - 1 degrees of freedom (Tukey 1958): what the statistic is on average of so many replicates.
    """
    less = np.asarray(left_out, dtype=np.float64)
    n = len(less)
    half = float(special.stdtrit(n - 1, (1 + level) / 2) * math.sqrt(n - 1) * less.std()) if n > 1 else math.nan
    return Estimate(value, value - half, value + half, n)


def correlation(value: float, draws: ArrayLike, n: int, level: float = LEVEL) -> Estimate:
    """Estimate what a correlation ``ρ̂`` from n replicates is on average, from its bootstrap draws.

    ``tanh(atanh ρ̂ ± t s / (1 - ρ̂²))``: Fisher's scale, ``s`` the draws' deviation, Student's t at n - 1.  Of ranks of 9
    to 36 means it covers 0.92 to 0.98 of 0.95; BCa, 0.72 to 0.83, as noise pulls the draws to 0 once more.
    """
    inside = min(max(value, 1e-12 - 1), 1 - 1e-12)
    spread = float(np.asarray(draws, dtype=np.float64).std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * spread / (1 - inside**2)
    return Estimate(value, math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half), n)


def log_ratio(above: ArrayLike, below: ArrayLike, level: float = LEVEL) -> Estimate:
    """Estimate how many times as large paired positive numbers are: ``exp(mean log a/b)``, t interval on the logs.

    Ratios of errors are compared so: without an effect it is 1, and exchanging the sides inverts it (the mean of the
    ratios themselves lies above 1 both ways).
    """
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = mean(np.log(a) - np.log(b), level)
    if logs.unmet:
        return logs
    return replace(logs, value=math.exp(logs.value), low=math.exp(logs.low), high=math.exp(logs.high))


def log_slope(x: ArrayLike, y: ArrayLike, replicates: ArrayLike | None = None, level: float = LEVEL) -> Estimate:
    """Estimate the exponent of ``y ∝ x^slope``: least squares of mean ``log y`` on ``log x`` over the places ``x``.

    With ``replicates`` (which one each row is of, every one at every place) the interval is Student's t over each
    one's own slope.  Without, the rows of different places are independent, and the slope ``Σ c_k m_k`` of the places'
    means has the half-width ``√(Σ c_k² t_k² s_k²/n_k)``, ``t_k`` Student's quantile at ``n_k - 1``, which covers at its
    level or above however few and unequal the places' replicates are (Banerjee 1961).  Zeros are no part of a power
    law: ``ValueError``, as with fewer than two places.
    """
    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    places = np.unique(at)
    if len(places) < 2 or not (np.isfinite(values).all() and (values > 0).all() and places[0] > 0):
        raise ValueError("a slope needs two places and positive values")
    logs, spots = np.log(values), np.log(places)
    weights = (spots - spots.mean()) / np.square(spots - spots.mean()).sum()
    if replicates is not None:
        members = np.unique(np.asarray(replicates))
        if len(logs) != len(members) * len(places):
            raise ValueError("a slope within replicates needs every replicate at every place")
        curves = logs[np.lexsort((at, np.asarray(replicates)))].reshape(len(members), len(places))
        return mean(curves @ weights, level)
    groups = [logs[at == place] for place in places]
    slope, n = float(weights @ [g.mean() for g in groups]), min(len(g) for g in groups)
    if n < 2:
        return Estimate(slope, math.nan, math.nan, n)
    reach = [float(special.stdtrit(len(g) - 1, (1 + level) / 2)) for g in groups]
    squares = [(c * t) ** 2 * g.var(ddof=1) / len(g) for c, t, g in zip(weights, reach, groups, strict=True)]
    half = math.sqrt(sum(squares))
    return Estimate(slope, slope - half, slope + half, n)


@dataclass(frozen=True)
class Agreement:
    """How far people who answered the same questions gave the same answer."""

    units: int
    """questions with at least two answers"""
    share: float
    """of pairs of answers to one question that are equal; each question counts by its answers, as in ``alpha``"""
    alpha: float
    """Krippendorff's: 1 for full agreement, 0 for that of chance; NaN if all answers are the same"""


def agreement(counts: ArrayLike) -> Agreement | None:
    """Return the agreement of answers without order, from how many people gave each to each question.

    ``α = 1 - D_o/D_e`` with ``D_o = Σ_u Σ_{c≠k} n_uc n_uk/(m_u - 1) / n`` and ``D_e = Σ_{c≠k} n_c n_k / (n (n - 1))``
    over questions ``u`` with ``m_u ≥ 2`` answers, ``n = Σ m_u`` (K. Krippendorff, Content Analysis, chapter on
    reliability); the share is ``1 - D_o``.  ``counts`` is questions × answers.  None if no question has two answers.
    """
    table = np.asarray(counts, dtype=np.float64)
    table = table[table.sum(-1) >= 2]
    if not len(table):
        return None
    each, total = table.sum(-1), table.sum()
    differ = ((each**2 - (table**2).sum(-1)) / (each - 1)).sum() / total
    by_chance = (total**2 - (table.sum(0) ** 2).sum()) / (total * (total - 1))
    return Agreement(len(table), 1 - float(differ), 1 - float(differ / by_chance) if by_chance else math.nan)


def rank_correlation(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Return Spearman's correlation over the last axis (NaN where one side is constant)."""
    sides = [stats.rankdata(np.asarray(side, dtype=np.float64), axis=-1) for side in (a, b)]
    first, second = (side - side.mean(-1, keepdims=True) for side in sides)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((first * second).sum(-1) / np.sqrt((first**2).sum(-1) * (second**2).sum(-1)))


def empirical_multiplier(needed: ArrayLike, delta: float) -> float:
    """Return a multiplier that covers ``1 - δ`` of the replicates, from what each of them needed.

    The order statistic at or above rank ``1 + (n - 1)(1 - δ)``: the one rule for it, on all pages.
    """
    return float(np.quantile(np.asarray(needed, dtype=np.float64), 1 - delta, method="higher"))


def halved(needed: ArrayLike, level: float = LEVEL) -> Estimate:
    """Estimate the coverage of a multiplier that is too small: a negative control for judging coverage.

    Half of the multiplier that covered one half of the first replicates, tried on the others: whatever the tail of what
    they need, it covers no more than about one half of them.
    """
    values = np.asarray(needed, dtype=np.float64)
    first, rest = np.split(values, [len(values) // 2])
    if not len(first):
        return Estimate(math.nan, math.nan, math.nan, len(rest), "nothing was measured")
    multiplier = float(np.median(first)) / 2
    return covered(rest <= multiplier, level).but(note=f"multiplier {multiplier:.2f}")


# --- Rules --------------------------------------------------------------------------------------------------------


def unconverged(gradients: ArrayLike) -> str:
    """Say how many fits are no near-minimisers, from relative gradient norms (NaN: no fit was made); "" if none."""
    norms = np.asarray(gradients, dtype=np.float64)
    made = norms[~np.isnan(norms)]
    failed = int((made > CONVERGED).sum())
    return f"{failed} of {len(made)} fits did not converge" if failed else ""


def kappa_failed(slopes: ArrayLike, kappa: float) -> str:
    """Say in how many replicates κ exceeded their least slope ``σ'`` on the segments asked; "" if in none."""
    least = np.asarray(slopes, dtype=np.float64)
    failed = int((~(least >= kappa * (1 - ROUNDING))).sum())
    return f"κ did not hold on the fitted differences of {failed} of {len(least)} replicates" if failed else ""


def vacuous(sharpest: ArrayLike) -> str:
    """Say that a bound says nothing, from each replicate's least ``R/(Δmax + |Δ̂|)`` over moments and duels.

    ``|Δ̂ - Δ| <= R`` tells something that ``|Δ| <= Δmax`` does not exactly where ``R < Δmax + |Δ̂|``: there the interval
    ``Δ̂ ± R`` leaves out a part of ``[-Δmax, Δmax]``.  Vacuous: in at least half of the replicates it never did.
    """
    least = np.asarray(sharpest, dtype=np.float64)
    mute = int((~(least < 1)).sum())
    if 2 * mute < len(least):
        return ""
    return f"vacuous: it excluded nothing that |Δ| <= Δmax allows in {mute} of {len(least)} replicates"


def replicates_needed(coverage: float, level: float = LEVEL) -> int:
    """Return how many replicates, all covered, put the exact interval's lower end at ``coverage``.

    ``low = α^{1/n}`` with ``α = (1 - level)/2`` (Clopper-Pearson at n of n), so ``n >= log α / log coverage``.
    """
    return math.ceil(math.log((1 - level) / 2) / math.log(coverage) - 1e-9)


# --- Judgement ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """What an estimate is judged by: ``at least`` or ``at most`` a value."""

    side: Literal["at least", "at most"]
    value: float

    def __str__(self) -> str:
        return f"{self.side} {self.value:.4g}"


def at_least(value: float) -> Threshold:
    """Return the threshold that wants no less."""
    return Threshold("at least", value)


def at_most(value: float) -> Threshold:
    """Return the threshold that wants no more."""
    return Threshold("at most", value)


@dataclass(frozen=True)
class Verdict:
    """What follows of an estimate, and from what."""

    word: Word
    reason: str


def judge(estimate: Estimate, threshold: Threshold) -> Verdict:
    """Judge an estimate; the order of the questions is the same everywhere.

    1. Nothing finite was measured, or an assumption or a fit failed: *not informative*.
    2. The whole interval lies on the wrong side: *refuted*, vacuous or not.
    3. The bound is vacuous: *not informative*.
    4. The whole interval lies on the right side: *supported*.
    5. Otherwise *not informative*: the interval holds the threshold, or there is none.
    """
    e, sign = estimate, 1 if threshold.side == "at least" else -1
    limit = sign * threshold.value
    best, least = (e.high, e.low) if sign == 1 else (-e.low, -e.high)
    word: Word = "not informative"
    if e.unmet or math.isnan(e.value):
        why = e.unmet or "nothing was measured"
    elif best < limit:
        word, why = "refuted", ""
    elif e.vacuous:
        why = e.vacuous
    elif least >= limit:
        word, why = "supported", ""
    elif math.isnan(e.low):
        why = f"{e.n} replicates give no interval"
    else:
        why = "the interval holds the threshold: too few replicates"
    said = f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}], {threshold} claimed"
    return Verdict(word, "; ".join(part for part in (said, why, e.note) if part))


# --- Strategies compared ------------------------------------------------------------------------------------------

Scale = Literal["difference", "ratio"]
POWER = 0.8
EQUIVALENT = 0.05
"""Ratios within 1/(1 + x) to 1 + x count as equivalent."""
MANY = 10_000
COMPARISON = [
    *("truth", "contender", "baseline", "measure", "difference", "effect", "low", "high"),
    *("replicates", "verdict", "reason"),
]


def replicates_to_decide(estimate: Estimate, level: float = LEVEL, power: float = POWER) -> float:
    """Return how many replicates would tell an effect of the estimated size from 0 with the given power.

    ``needed`` of the mean over its deviation, which the t interval at ``level`` shows; infinite for an estimate of 0.
    """
    if estimate.n < 2 or estimate.value == 0:
        return math.inf
    half = (estimate.high - estimate.low) / 2
    spread = half * math.sqrt(estimate.n) / float(special.stdtrit(estimate.n - 1, (1 + level) / 2))
    return needed(abs(estimate.value) / spread, level, power) if spread else 2.0


def needed(effect: float, level: float = LEVEL, power: float = POWER) -> float:
    """Return the least n whose t interval at ``level`` excludes 0 with the given power; ``effect`` is in deviations.

    ``n >= ((t + t') / effect)²``, Student's t at n - 1 degrees of freedom for the level and for the power.  So it
    exceeds the number of a sample whose interval holds 0: few replicates that could not tell are never said to.
    """
    levels = np.array([(1 + level) / 2, power])
    if not effect > 0 or (start := (float(special.ndtri(levels).sum()) / effect) ** 2) > 10 * MANY:
        return math.inf
    n = max(2, math.ceil(start))
    while n < (float(special.stdtrit(n - 1, levels).sum()) / effect) ** 2:
        n += 1
    return float(n)


def decide(
    effect: Estimate, lower_is_better: bool, level: float = LEVEL, margin: float | None = None
) -> tuple[str, str]:
    """Return the word for a paired effect (0: none) and its reason.

    *better* or *worse*: the interval lies on one side of 0.  *equivalent*: it holds 0 and lies within ±``margin``, a
    logarithm.  *not judged*: no finite numbers, or fits that did not converge.  Otherwise *undecided*, with the
    replicates that would decide it: that no difference was seen is no evidence that there is none.
    """
    if effect.unmet or math.isnan(effect.value):
        return "not judged", effect.unmet or "nothing was measured"
    if effect.low > 0 or effect.high < 0:
        return ("better" if (effect.value < 0) == lower_is_better else "worse"), ""
    if margin is not None and -margin <= effect.low and effect.high <= margin:
        return "equivalent", f"within {math.expm1(margin):.0%}"
    if math.isnan(effect.low):
        return "undecided", "one replicate gives no interval"
    return "undecided", would_decide(replicates_to_decide(effect, level))


def would_decide(enough: float) -> str:
    """Say how many replicates decide, in ``POWER`` of all tries, an effect that is (over its scatter) the one seen."""
    count = f"about {enough:,.0f}" if enough <= MANY else f"more than {MANY:,}"
    return f"{count} replicates would decide an effect of this size"


# --- Labels saved -------------------------------------------------------------------------------------------------

GRID = 200
"""The shares of labels at which an interval is sought, in either direction."""
SAVES, SAVES_NOT, UNDECIDED, UNJUDGED = "saves", "does not save", "undecided", "not judged"
SAVINGS = [
    *("truth", "contender", "baseline", "measure", "budget", "target", "labels", "labels_low", "labels_high"),
    *("saved", "low", "high", "replicates", "verdict", "reason", "needed"),
]


@dataclass(frozen=True)
class Saving:
    """What a rule saves of the ``budget`` labels with which its baseline reaches the mean ``target``.

    ``labels``: with how many the rule's mean curve first is as good (infinite: not within the budget).  ``saved``: the
    share of labels saved, ``1 - labels/budget``; where the rule is worse at the budget, less the share that the
    baseline would save, by the same rule, against what the rule has there.  So exchanging the two changes the sign.
    """

    budget: float
    target: float
    labels: Estimate
    saved: Estimate
    gaps: Gaps | None = field(default=None, repr=False, compare=False)

    def at(self, level: float) -> Saving:
        """Return the same with intervals at another level."""
        return self if self.gaps is None else self.gaps.saving(self.budget, self.target, level)


@dataclass(frozen=True, eq=False)
class Gaps:
    """What ``labels_saved`` inverts: mean and standard deviation of ``D(s)`` over replicates, on a grid of shares.

    ``share`` solves the mean's equation; shares beyond ±``first`` are not seen.
    """

    grid: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    n: int
    share: float
    first: float

    def saving(self, budget: float, target: float, level: float) -> Saving:
        """Return the share saved with every share in its interval that a t test at ``level`` does not reject."""
        n, share, first = self.n, self.share, self.first
        if n < 2:
            low = high = math.nan
        else:
            reach = float(special.stdtrit(n - 1, (1 + level) / 2)) / math.sqrt(n)
            held, last = np.flatnonzero(np.abs(self.mean) <= reach * self.deviation), len(self.grid) - 1
            # Between two places of the grid the end may lie anywhere; the estimate itself is never rejected.
            low = min(share, float(self.grid[max(0, held[0] - 1)])) if len(held) else share
            high = max(share, float(self.grid[min(last, held[-1] + 1)])) if len(held) else share
            low, high = (-1.0 if low <= -first else low), (1.0 if high >= first else high)
        told = "reached before the first measured round" if share >= first else ""
        told = "worse at the end than the baseline at the first measured round" if share <= -first else told
        middle, least, most = (_needed(budget, one) for one in (share, high, low))
        never = f"not reached with {budget:g} labels" if share < 0 else told
        labels, saved = Estimate(middle, least, most, n, note=never), Estimate(share, low, high, n, note=told)
        return Saving(budget, target, labels, saved, self)


def share_saved(
    labels: ArrayLike, rule: ArrayLike, baseline: ArrayLike, budget: float, lower_is_better: bool = True
) -> np.ndarray:
    """Return the share of labels saved (``labels_saved``) for each of many pairs of mean curves, a row each."""
    at, sign = np.asarray(labels, dtype=np.float64), 1.0 if lower_is_better else -1.0
    places = np.append(at[at < budget], budget)
    ours, theirs = (_at(at, sign * np.atleast_2d(np.asarray(c, dtype=np.float64)), places) for c in (rule, baseline))
    ahead = ours[:, -1] <= theirs[:, -1]
    curves = np.where(ahead[:, None], ours, theirs)
    reached = _reached(places, curves, np.where(ahead, theirs[:, -1], ours[:, -1])) / budget
    return np.where(ahead, 1 - reached, reached - 1)


def _at(labels: np.ndarray, curves: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return every row's curve at other numbers of labels, linear between the measured ones."""
    right = np.clip(np.searchsorted(labels, places), 1, len(labels) - 1)
    share = (places - labels[right - 1]) / (labels[right] - labels[right - 1])
    return np.asarray(curves[:, right - 1] * (1 - share) + curves[:, right] * share)


def _reached(labels: np.ndarray, curves: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return with how many labels every row's curve, linear between its places, first is at or below its target."""
    place = (curves <= targets[:, None]).argmax(1)  # who asks knows that it gets there
    before, row = np.maximum(place - 1, 0), np.arange(len(curves))
    above, below = curves[row, before], curves[row, place]
    fall = np.where(place > 0, above - below, 1.0)
    part = np.where(place > 0, (above - targets) / fall, 0.0)
    return np.asarray(labels[before] + (labels[place] - labels[before]) * part)


def _needed(budget: float, share: float) -> float:
    """Return the labels that are needed where a share of the budget is saved; infinite where none is."""
    return math.inf if share < 0 else budget * (1 - share)  # NaN stays NaN


def labels_saved(
    labels: ArrayLike,
    rule: ArrayLike,
    baseline: ArrayLike,
    budget: float | None = None,
    lower_is_better: bool = True,
    level: float = LEVEL,
) -> Saving:
    """Estimate the share of labels that a rule saves, from learning curves (replicates × numbers of labels), paired.

    With mean curves ``a`` of the rule and ``b`` of the baseline, linear between measured rounds, and ``B`` the budget
    (default: all labels), the share ``s`` solves ``D(s) = 0`` for

        D(s) = a(B (1 - s)) - b(B) for s >= 0,    a(B) - b(B (1 + s)) for s < 0,

    which rises in ``s`` where curves fall.  The interval holds every ``s`` at which a paired t test does not reject
    ``E D(s) = 0`` (Fieller 1954: at the true ``s`` it errs in ``1 - level`` of draws), from 2 replicates on; a
    percentile bootstrap of ``s`` covers 0.77, 0.85, 0.92 and 0.95 of 0.95 at 3, 8, 16 and 72.  Censored: what lies
    before the first measured round is not seen, so an interval that gets there ends at 1 (or -1).  ``note`` says where
    the estimate itself is such a limit.

    Raises ``ValueError`` for a budget at or before the first measured number of labels or beyond the last.
    """
    at = np.asarray(labels, dtype=np.float64)
    sign = 1.0 if lower_is_better else -1.0
    ours, theirs = (sign * np.atleast_2d(np.asarray(curve, dtype=np.float64)) for curve in (rule, baseline))
    total = float(at[-1]) if budget is None else float(budget)
    if len(at) < 2 or (np.diff(at) <= 0).any() or not at[0] < total <= at[-1]:
        raise ValueError(f"a budget of {total:g} labels lies outside what was measured: above {at[0]:g}, to {at[-1]:g}")
    n, end = len(ours), np.array([total])
    wrong = _sample(np.concatenate([ours, theirs]))[1]
    if wrong:
        nothing = Estimate(math.nan, math.nan, math.nan, n, wrong)
        return Saving(total, math.nan, nothing, nothing)
    first = 1 - float(at[0]) / total
    share = float(share_saved(at, ours.mean(0), theirs.mean(0), total)[0])
    shares = np.linspace(0.0, first, GRID + 1)
    forward = _at(at, ours, total * (1 - shares)) - _at(at, theirs, end)
    backward = _at(at, ours, end) - _at(at, theirs, total * (1 - shares[:0:-1]))
    gaps, grid = np.concatenate([backward, forward], 1), np.concatenate([-shares[:0:-1], shares])
    spread = gaps.std(0, ddof=1) if n > 1 else np.full(len(grid), math.nan)
    found = Gaps(grid, gaps.mean(0), spread, n, share, first)
    return found.saving(total, sign * float(_at(at, theirs, end).mean()), level)


def replicates_to_tell(saving: Saving, margin: float, level: float = LEVEL, power: float = POWER) -> float:
    """Return how many replicates would tell, with the given power, a saving of the size (over its scatter) seen.

    What decides are t tests of ``D(s)``: *saves* needs a rejection at every ``s <= 0``, *does not save* at every ``s >=
    margin``.  So of the two that is taken whose least effect ``|mean|/deviation``, in the direction it needs, is the
    larger: ``needed`` of it.  The interval's width is not asked, of which a censored end would tell too little.
    """
    gaps = saving.gaps
    if gaps is None or gaps.n < 2:
        return math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        effects = np.where(gaps.mean == 0, 0.0, gaps.mean / gaps.deviation)
    step = gaps.first / GRID  # an interval ends one place of the grid beyond what is not rejected
    saves, not_saves = gaps.grid <= step, gaps.grid >= min(margin, gaps.first) - step
    return needed(max(-effects[saves].max(), effects[not_saves].min()), level, power)


def tell(saved: Estimate, margin: float) -> tuple[str, str]:
    """Return the word for a share of labels saved, and its reason.

    *saves*: the interval lies above 0.  *does not save*: it lies below ``margin``, a share; the reason says whether it
    is equivalent (within ±``margin``) or worse.  *not judged*: no finite numbers, or fits that did not converge.
    """
    if saved.unmet or math.isnan(saved.value):
        return UNJUDGED, saved.unmet or "nothing was measured"
    if math.isnan(saved.low):
        return UNDECIDED, "one replicate gives no interval"
    if saved.low > 0:
        return SAVES, saved.note
    if saved.high <= margin:
        if saved.high < 0:
            return SAVES_NOT, "the baseline needs fewer labels"
        within = saved.low >= -margin
        return SAVES_NOT, f"within ±{margin:.0%} of the labels" if within else f"at most {margin:.0%}"
    return UNDECIDED, ""


def spending(looks: Sequence[int]) -> np.ndarray:
    """Return the share of the error rate that each look at the data may spend: its new replicates over the last look's.

    The shares sum to 1, so by the union bound all intervals of all looks hold together at the level of the whole,
    whatever is done after a look and however the looks depend on each other (Lan and DeMets 1983 with linear spending,
    without the gain from the looks' correlation).
    """
    return np.diff([0, *looks]) / looks[-1]


def looked(looks: Sequence[int], replicates: int, level: float = LEVEL) -> list[tuple[int, float]]:
    """Return, for every look at so many replicates so far, how many it saw and the level of its intervals.

    At which look the looking stops is chance, so what is told of the last look has that look's share of the error rate
    (``spending``).  Replicates beyond a look are for the next one.  Without looks there is one, at all replicates.
    """
    if not len(looks):
        return [(replicates, level)]
    every = [(look, 1 - (1 - level) * float(share)) for look, share in zip(looks, spending(looks), strict=True)]
    return [one for one in every if one[0] <= replicates] or [(replicates, every[0][1])]


def _because(unmet: Mapping[tuple[str, str], str] | None, truth: Any, *contenders: Any) -> str:
    """Say what forbids judging contenders on a truth; "" if nothing does."""
    why = {name: (unmet or {}).get((str(truth), str(name)), "") for name in contenders}
    return ", ".join(f"{name}: {reason}" for name, reason in why.items() if reason)


def _with_both(
    pairs: Sequence[tuple[Any, Any]], truths: Mapping[Any, Iterable[Any]]
) -> dict[Any, list[tuple[Any, Any]]]:
    """Return the pairs of contenders that can be compared on each truth: those of which it has both."""
    return {truth: [pair for pair in pairs if set(pair) <= set(names)] for truth, names in truths.items()}


def savings(
    rounds: pd.DataFrame,
    measure: str,
    baseline: str,
    lower_is_better: bool = True,
    budgets: Sequence[float] = (),
    margin: float = 0.1,
    unmet: Mapping[tuple[str, str], str] | None = None,
    more: Sequence[tuple[str, str]] = (),
    looks: Sequence[int] = (),
    level: float = LEVEL,
) -> pd.DataFrame:
    """Say for every contender what it saves of a baseline's labels, on every truth that has both.

    ``rounds`` has truth, contender, replicate, labels and the measure.  Targets are the baseline's mean at its last
    number of labels and at ``budgets``; ``more`` are further pairs of (contender, baseline).  Intervals hold at
    ``level`` jointly over all rows (Bonferroni).  ``looks``: the numbers of replicates at which the data were or will
    be looked at to decide whether to go on.  Each look then has its share of the error rate (``spending``), and a
    row's interval is what the intervals of all looks so far have in common.  ``unmet`` says of (truth, contender) why
    it must not be judged.  Words and reasons: ``tell``; ``needed`` (NaN where decided): ``replicates_to_tell``.  Empty
    without the baseline.
    """
    truths = {
        truth: {
            name: part.pivot(index="replicate", columns="labels", values=measure)
            for name, part in group.groupby("contender", sort=False)
        }
        for truth, group in rounds.groupby("truth", sort=False)
    }
    names = list(rounds["contender"].unique())
    pairs = [*((name, baseline) for name in names if name != baseline), *more] if baseline in names else []
    wanted: list[float | None] = [None, *budgets]
    told = _with_both(pairs, truths)
    tests = sum(map(len, told.values())) * len(wanted)
    rows = []
    for truth, tables in truths.items():
        for rival, against in told[truth]:
            ours, theirs = tables[rival].align(tables[against], join="inner")
            done = [(n, joint_level(tests, one)) for n, one in looked(looks, len(ours), level)]
            for budget in wanted:
                found = [
                    labels_saved(ours.columns, ours[:n], theirs[:n], budget, lower_is_better, one) for n, one in done
                ]
                last, saved = found[-1], found[-1].saved
                low, high = max(one.saved.low for one in found), min(one.saved.high for one in found)
                if low <= high:
                    saved = replace(saved, value=min(max(saved.value, low), high), low=low, high=high)
                saved = saved.but(unmet=_because(unmet, truth, rival, against))
                (word, reason), needed = tell(saved, margin), math.nan
                if word == UNDECIDED:
                    needed = replicates_to_tell(last, margin, done[-1][1])
                    reason = reason or would_decide(needed)
                ends = [_needed(last.budget, share) for share in (saved.value, saved.high, saved.low)]
                rows.append(
                    {
                        "truth": truth,
                        "contender": rival,
                        "baseline": against,
                        "measure": measure,
                        "budget": last.budget,
                        "target": last.target,
                        "labels": ends[0],
                        "labels_low": ends[1],
                        "labels_high": ends[2],
                        "saved": saved.value,
                        "low": saved.low,
                        "high": saved.high,
                        "replicates": saved.n,
                        "verdict": word,
                        "reason": reason,
                        "needed": needed,
                    }
                )
    return pd.DataFrame(rows, columns=SAVINGS)


# --- Truths pooled ------------------------------------------------------------------------------------------------

LEAST_POOLED = 8
"""replicates below which what truths together say has no interval that covers"""


def pooled(values: ArrayLike, statistic: Callable[..., np.ndarray], level: float = LEVEL) -> Estimate:
    """Estimate a statistic of all values (replicates × truths) with the ``jackknife``'s interval over replicates.

    A replicate is left out with all its truths, which share its network and random numbers; to draw within each truth
    (Agarwal et al. 2021, whose runs are independent) would cover too seldom.  ``statistic(values, axis=-1)`` sees all
    values in one row.  The truths are those that were run: the interval says nothing of others.  Of 8 replicates of 4
    truths it covers 0.93 of 0.95, of 48 0.95.
    """
    table = np.asarray(values, dtype=np.float64)
    n, wrong = len(table), _sample(table)[1]
    wrong = wrong or (f"{n} of the {LEAST_POOLED} replicates that it takes" if n < LEAST_POOLED else "")
    if wrong:
        return Estimate(math.nan, math.nan, math.nan, n, wrong)
    less = [statistic(np.delete(table, replicate, 0).ravel(), axis=-1) for replicate in range(n)]
    return jackknife(float(statistic(table.ravel(), axis=-1)), less, level)


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean of the middle half: a quarter of the values is left out at either end, rounded down."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def pool_truths(
    rounds: pd.DataFrame,
    measure: str,
    baseline: str,
    lower_is_better: bool = True,
    unmet: Mapping[tuple[str, str], str] | None = None,
    looks: Sequence[int] = (),
) -> pd.DataFrame:
    """Return per contender what holds over all truths together, from its label efficiency paired with a baseline's.

    ``effect``: interquartile mean over truths and replicates of the paired log ratios, as a ratio, with the interval of
    ``pooled``.  ``improvement``: the share of truths and replicates in which the contender is the better one, ties
    half (unlike Agarwal et al., whose runs are not paired); a replicate counts once, by its truths' mean, with the
    exact interval (``share``).  95 % jointly over contenders and the two statistics.

    With ``looks`` (``savings``), after which truths may have stopped apart, each has as many replicates as the one that
    stopped first, whose look's share of the error rate the intervals have.  ``reason`` says why a contender is not
    judged: ``unmet`` of (truth, contender), numbers that are not finite, or too few replicates.
    """
    scores = label_efficiency(rounds, measure)
    wide = {
        str(truth): part.pivot(index="replicate", columns="contender", values=measure)
        for truth, part in scores.groupby("truth", sort=False)
    }
    n, level = looked(looks, min(map(len, wide.values())))[-1]
    names = [name for name in scores["contender"].unique() if name != baseline]
    level, rows = joint_level(2 * len(names), level), []
    for name in names:
        with np.errstate(divide="ignore", invalid="ignore"):
            pairs = [np.log(table[name]) - np.log(table[baseline]) for table in wide.values()]
        logs = pd.concat(pairs, axis=1, join="inner").to_numpy()[:n]
        why = {truth: _because(unmet, truth, name, baseline) for truth in wide}
        forbids = "; ".join(f"on “{truth}”, {reason}" for truth, reason in why.items() if reason)
        effect = pooled(logs, interquartile_mean, level).but(unmet=forbids)
        hits = float(((np.sign(-logs if lower_is_better else logs) + 1) / 2).mean(1).sum())
        chance = effect if math.isnan(hits) else share(hits, n, level)
        ratio = [math.exp(value) for value in (effect.value, effect.low, effect.high)]
        rows.append(
            {"contender": name, "baseline": baseline, "measure": measure, "truths": len(wide), "replicates": n}
            | dict(zip(("effect", "low", "high"), ratio, strict=True))
            | {"improvement": chance.value, "improvement_low": chance.low, "improvement_high": chance.high}
            | {"reason": effect.unmet}
        )
    return pd.DataFrame(rows)


# --- Frames -------------------------------------------------------------------------------------------------------


def summarise(rounds: pd.DataFrame, measures: list[str], keys: list[str]) -> pd.DataFrame:
    """Return one row per key and measure: mean over replicates with its 95 % interval."""
    rows = []
    for values, group in rounds.groupby(keys, sort=False):
        for measure in measures:
            found = mean(group[measure].to_numpy())
            rows.append(
                dict(zip(keys, values, strict=True))
                | {"measure": measure, "mean": found.value, "low": found.low, "high": found.high, "replicates": found.n}
            )
    return pd.DataFrame(rows)


def label_efficiency(rounds: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return each replicate's mean of a measure over all rounds (the area under its learning curve)."""
    return rounds.groupby(["truth", "contender", "replicate"], sort=False)[measure].mean().reset_index()


def compare(
    rounds: pd.DataFrame,
    measure: str,
    baseline: str,
    lower_is_better: bool = True,
    scale: Scale = "difference",
    unmet: Mapping[tuple[str, str], str] | None = None,
    more: Sequence[tuple[str, str]] = (),
    looks: Sequence[int] = (),
) -> pd.DataFrame:
    """Compare every contender's label efficiency with a baseline's, replicate by replicate, on truths that have both.

    ``more`` are further pairs of (contender, baseline), judged jointly with the others.

    ``effect`` is the mean paired difference, or (``scale="ratio"``, for errors) the geometric mean of the paired
    ratios; ``low`` and ``high`` are t intervals at 95 % jointly over all rows (Bonferroni).  ``verdict`` and ``reason``
    are ``decide``'s; only ratios can be *equivalent*, within ``EQUIVALENT``.  ``unmet`` says of (truth, contender) why
    it must not be judged.  With ``looks`` (``savings``) a truth's intervals have its last look's share of the error.
    """
    scores = label_efficiency(rounds, measure)
    wide = {
        truth: group.pivot(index="replicate", columns="contender", values=measure)
        for truth, group in scores.groupby("truth", sort=False)
    }
    pairs = [*((c, baseline) for c in scores["contender"].unique() if c != baseline), *more]
    told = _with_both(pairs, wide)
    tests = sum(map(len, told.values()))
    margin = math.log1p(EQUIVALENT) if scale == "ratio" else None
    rows = []
    for truth, table in wide.items():
        n, level = looked(looks, len(table))[-1]
        level = joint_level(tests, level)
        for rival, against in told[truth]:
            ours, theirs = table[rival].to_numpy()[:n], table[against].to_numpy()[:n]
            with np.errstate(divide="ignore", invalid="ignore"):
                effect = mean(np.log(ours) - np.log(theirs) if scale == "ratio" else ours - theirs, level)
            effect = effect.but(unmet=_because(unmet, truth, rival, against))
            word, reason = decide(effect, lower_is_better, level, margin)
            shown = [math.exp(v) if scale == "ratio" else v for v in (effect.value, effect.low, effect.high)]
            rows.append(
                {
                    "truth": truth,
                    "contender": rival,
                    "baseline": against,
                    "measure": measure,
                    "difference": float((ours - theirs).mean()),
                    "effect": shown[0],
                    "low": shown[1],
                    "high": shown[2],
                    "replicates": n,
                    "verdict": word,
                    "reason": reason,
                }
            )
    return pd.DataFrame(rows, columns=COMPARISON)


def slopes(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return the least-squares slopes of ``y`` on ``x`` over the last axis."""
    places = np.asarray(x, dtype=np.float64)
    places = places - places.mean(-1, keepdims=True)
    return np.asarray((places * np.asarray(y)).sum(-1) / (places**2).sum(-1))
