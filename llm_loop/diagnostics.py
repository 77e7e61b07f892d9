"""Owns what is said of a round beyond its reward: what each duel would teach, what it is like, how far features moved.

Numbers in, numbers out; knows nothing of models or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.design import Posterior
from bandits.core.greedy import gains


@dataclass(frozen=True, eq=False)
class Reasons:
    """Why duels were picked, or not: one number per duel on offer."""

    gain: Float[Tensor, " n"]
    """what the duel adds to ``log det V`` in nats, ``V`` as the strategy's metric keeps it; of a pick, given the picks
    before it, so that they sum to the batch's"""
    nearest: Int64[Tensor, " n"]
    """the picked duel of this round with the largest cosine, another one than itself (itself, if it is the only one)"""
    cosine: Float[Tensor, " n"]
    """``|⟨φ, φ'⟩| / (‖φ‖ ‖φ'‖)`` with that duel, in the space of ``V⁻¹``; 0 for a zero feature"""


def reasons(pool: Posterior, picks: Int64[Tensor, " b"]) -> Reasons:
    """Return the reasons of all duels of a pool, given the picks in their order."""
    gram = pool.inner(pool.take(picks))  # (n, b), times ridge the inner products in V⁻¹
    gain, taken = gains(pool, picks)
    gain[picks] = taken
    norms = pool.residuals.sqrt()
    scale = norms.unsqueeze(-1) * norms[picks]
    cosine = torch.where(scale > 0, gram / scale, 0.0).abs().clamp(max=1)
    if len(picks) > 1:
        cosine[picks, torch.arange(len(picks))] = -1.0  # not itself
    best = cosine.max(-1)
    return Reasons(gain, picks[best.indices], best.values.clamp(min=0))


def drift(now: Float[Tensor, "n d"], before: Float[Tensor, "n d"]) -> float:
    """Return ``‖now - before‖ / ‖before‖`` (Frobenius), of features of the same responses or of their Gram matrices."""
    return float(torch.linalg.vector_norm(now - before) / torch.linalg.vector_norm(before))
