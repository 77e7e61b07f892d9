"""Owns the measures that several families share: coverage of a bound, from trials or from the simulator's audit."""

from __future__ import annotations

import pandas as pd

from bandits.core.oracles import kappa
from bandits.runs.stats import Estimate, covered, empirical_multiplier, kappa_failed, vacuous
from bandits.sim import audit
from bandits.sim.audit import VERSIONS, Version
from theory_checks.checks import unfitted
from theory_checks.maths.trials import Bound


def coverage(part: pd.DataFrame, bound: Bound, level: float, assumed: float | None = None) -> Estimate:
    """Estimate in how many trials no moment and no duel breaks a bound; ``assumed`` is the κ that it presumes, if any.

    The self-normalised step (``noise``) is about no fit and no range, so nothing forbids judging it.
    """
    found = covered(part[f"worst_{bound}"] <= 1, level)
    found = found.but(note=f"left/right {part[f'worst_{bound}'].median():.2f} (median), at most {_worst(part, bound)}")
    if bound == "noise":
        return found
    failed = "" if assumed is None else kappa_failed(part["kappa"], assumed)
    found = found.but(unmet=unfitted(part)).but(unmet=failed)
    return found.but(vacuous=vacuous(part[f"sharpest_{bound}"]))


def _worst(part: pd.DataFrame, bound: Bound) -> str:
    return format(part[f"worst_{bound}"].max(), ".2f")


PROPOSITIONS = {
    "θ0": (VERSIONS["Proposition 1, network"], "gradients at θ0"),
    "θt": (VERSIONS["Proposition 2, network, V at θ_t"], "φ, V and its log det at θ_t"),
}


def audited_coverage(bounds: pd.DataFrame, version: Version, largest: float, level: float) -> Estimate:
    """Estimate the simultaneous coverage of a proposition from an audit's table, as the simulator's page does."""
    found = audit.coverage(bounds, version, kappa(largest), level)
    return found.but(note=f"rhs/lhs {bounds['tightness'].median():.0f} (median), ε up to {bounds['epsilon'].max():.3f}")


def needed(bounds: pd.DataFrame, column: str, delta: float) -> float:
    """Return the multiplier that covers a share ``1 - δ`` of the replicates at all measured moments and duels."""
    return empirical_multiplier(bounds.groupby("replicate")[column].max(), delta)
