"""Owns what may be said of measured numbers: estimates with intervals, their judgement, comparisons of strategies.

A replicate is one independent draw of problem and randomness that all strategies share; so intervals are over
replicates and comparisons are paired.  Functions take arrays (``summarise`` and ``compare`` take frames).  There is one
rule each for what is converged, what κ must hold for, what is vacuous, and for the order of judgement.  The coverage of
every interval is simulated in ``tests/test_stats.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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

    ``n = ((t + z) s/mean)²`` with ``s`` from the t interval at ``level``; infinite for an estimate of 0.
    """
    if estimate.n < 2 or estimate.value == 0:
        return math.inf
    half = (estimate.high - estimate.low) / 2
    spread = half * math.sqrt(estimate.n) / float(special.stdtrit(estimate.n - 1, (1 + level) / 2))
    reach = float(special.ndtri((1 + level) / 2) + special.ndtri(power))
    return float(math.ceil((reach * spread / estimate.value) ** 2 + 1))


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
    needed = replicates_to_decide(effect, level)
    count = f"about {needed:,.0f}" if needed <= MANY else f"more than {MANY:,}"
    return "undecided", f"{count} replicates would decide an effect of this size"


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
) -> pd.DataFrame:
    """Compare every contender's label efficiency with a baseline's, replicate by replicate, on every truth.

    ``more`` are further pairs of (contender, baseline), judged jointly with the others.

    ``effect`` is the mean paired difference, or (``scale="ratio"``, for errors) the geometric mean of the paired
    ratios; ``low`` and ``high`` are t intervals at 95 % jointly over all rows (Bonferroni).  ``verdict`` and ``reason``
    are ``decide``'s; only ratios can be *equivalent*, within ``EQUIVALENT``.  ``unmet`` says of (truth, contender) why
    it must not be judged.
    """
    scores = label_efficiency(rounds, measure)
    wide = {
        truth: group.pivot(index="replicate", columns="contender", values=measure)
        for truth, group in scores.groupby("truth", sort=False)
    }
    pairs = [*((c, baseline) for c in scores["contender"].unique() if c != baseline), *more]
    level = joint_level(len(wide) * len(pairs))
    margin = math.log1p(EQUIVALENT) if scale == "ratio" else None
    rows = []
    for truth, table in wide.items():
        for rival, against in pairs:
            ours, theirs = table[rival].to_numpy(), table[against].to_numpy()
            with np.errstate(divide="ignore", invalid="ignore"):
                effect = mean(np.log(ours) - np.log(theirs) if scale == "ratio" else ours - theirs, level)
            why = {name: (unmet or {}).get((str(truth), name), "") for name in (rival, against)}
            effect = effect.but(unmet=", ".join(f"{name}: {reason}" for name, reason in why.items() if reason))
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
                    "replicates": len(ours),
                    "verdict": word,
                    "reason": reason,
                }
            )
    return pd.DataFrame(rows, columns=COMPARISON)
