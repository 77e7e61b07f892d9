"""Owns what is said of a round beyond its reward: what each duel would teach, what it is like, how far features moved.

Numbers in, numbers out; knows nothing of models or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bandits.core.design import Posterior


@dataclass(frozen=True)
class Reasons:
    """Why duels were picked, or not: one number per duel on offer."""

    gain: Float[Tensor, " n"]
    """``log(1 + ‖φ‖²_{V⁻¹})`` in nats; of a pick, given the picks before it, so that they sum to the batch's"""
    nearest: Int64[Tensor, " n"]
    """the picked duel of this round with the largest cosine, another one than itself (itself, if it is the only one)"""
    cosine: Float[Tensor, " n"]
    """``|⟨φ, φ'⟩| / (‖φ‖ ‖φ'‖)`` with that duel, in the space of ``V⁻¹``; 0 for a zero feature"""


def reasons(pool: Posterior, picks: Int64[Tensor, " b"]) -> Reasons:
    """Return the reasons of all duels of a pool, given the picks in their order."""
    chosen = pool.rows.take(picks)
    seen = pool.projections[:, picks]
    gram = pool.rows.inner(chosen) - pool.projections.mT @ seen  # (n, b), times ridge the inner products in V⁻¹
    own = gram[picks]
    steps = torch.linalg.cholesky(own + pool.ridge * torch.eye(len(picks), dtype=own.dtype)).diagonal()
    gain = torch.log1p(pool.widths.square())
    gain[picks] = 2 * steps.log() - math.log(pool.ridge)
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
