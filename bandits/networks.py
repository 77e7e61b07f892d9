"""Owns the theorem's network: a fully connected MLP in the NTK parametrisation, batched over replicates.

Values, gradients (as layer factors) and activations only; how it is fitted is the learners' business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bandits.errors import InputError
from bandits.features import Dense, Factored
from bandits.luck import Luck

Weights = tuple[Float[Tensor, "*r _ _"], ...]
Activation = Literal["relu", "tanh", "softplus"]


@dataclass(frozen=True)
class MLP:
    """``f(x) = w_L·h_{L-1}/√m``, ``h_l = g·act(W_l h_{l-1}/√fan_in)``, ``h_0 = x``; all weights N(0, 1) at the start.

    The NTK parametrisation (Jacot et al. 2018; Lee et al. 2019): ``f`` and ``∇f`` are O(1) in the width ``m``, and the
    loss is a plain sum.  It equals the convention of Neural Dueling Bandits (arXiv 2407.17112: weights N(0, 4/m),
    output times √m, loss times 1/m) after ``θ = θ̃/√m``.  ``g = √2`` for ReLU keeps the scale through the layers; the
    other activations have gains that do the same at unit input variance.  The theorem is about ReLU; softplus is the
    default because its fits converge (with ReLU the minimiser sits on kinks and no gradient norm vanishes).  There are
    no biases, as in the theorem; inputs should have norm ``√inputs``.  ``depth`` counts weight
    matrices and is ``L`` in the bounds.
    """

    inputs: int
    width: int = 64
    depth: int = 3
    activation: Activation = "softplus"

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.width < 1:
            raise InputError(f"network: inputs and width must be at least 1, got {self.inputs} and {self.width}")
        if self.depth < 2:
            raise InputError(f"network: depth counts weight matrices and must be at least 2, got {self.depth}")

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes (fan_out, fan_in) of the weight matrices, first layer first."""
        hidden = ((self.width, self.width),) * (self.depth - 2)
        return ((self.width, self.inputs), *hidden, (1, self.width))

    @property
    def parameters(self) -> int:
        """How many weights: ``P``."""
        return sum(a * b for a, b in self.shapes)

    @property
    def gain(self) -> float:
        """The factor after the activation: ``E[gain² act(z)²] = 1`` for standard normal ``z``."""
        return {"relu": math.sqrt(2.0), "tanh": 1.5925374197, "softplus": 1.0418668355}[self.activation]

    def initial(self, luck: Luck) -> Weights:
        """Draw ``θ0``: every weight N(0, 1), layer by layer."""
        return tuple(luck.child("layer", i).normal(*shape) for i, shape in enumerate(self.shapes))

    @property
    def _scale(self) -> float:
        return self.gain / math.sqrt(self.width)

    def _activate(self, z: Tensor) -> Tensor:
        """Return ``g · act(z) / √m``."""
        if self.activation == "relu":
            return torch.relu(z) * self._scale
        return (torch.tanh(z) if self.activation == "tanh" else torch.nn.functional.softplus(z)) * self._scale

    def _through(self, signal: Tensor, z: Tensor) -> Tensor:
        """Return ``g · act'(z) ⊙ signal / √m``."""
        signal = signal * self._scale
        if self.activation == "relu":
            return torch.ops.aten.threshold_backward(signal, z, 0)
        return signal * (1 - torch.tanh(z).square() if self.activation == "tanh" else torch.sigmoid(z))

    def _forward(self, weights: Weights, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the scaled inputs ``h_{l-1}/√fan_in`` of every layer and the pre-activations of the hidden ones."""
        scaled, pre = [x / math.sqrt(self.inputs)], []
        for matrix in weights[:-1]:
            pre.append(scaled[-1] @ matrix.mT)
            scaled.append(self._activate(pre[-1]))
        return scaled, pre

    def value(self, weights: Weights, x: Float[Tensor, "*r n i"]) -> Float[Tensor, "*r n"]:
        """Return ``f(x; θ)`` for every row of ``x``."""
        scaled, _ = self._forward(weights, x)
        return (scaled[-1] @ weights[-1].mT).squeeze(-1)

    def value_and_gradient(
        self, weights: Weights, x: Float[Tensor, "*r n i"]
    ) -> tuple[Float[Tensor, "*r n"], Factored]:
        """Return ``f(x; θ)`` and ``∇_θ f(x; θ)`` for every row, the gradient as one outer product per layer.

        ``∂f/∂W_l = δ_l (h_{l-1}/√fan_in)ᵀ`` with ``δ_L = 1`` and ``δ_l = act'(z_l) ⊙ W_{l+1}ᵀ δ_{l+1} / √m``.
        Cost: one forward and one backward pass.
        """
        scaled, pre = self._forward(weights, x)
        values = (scaled[-1] @ weights[-1].mT).squeeze(-1)
        left = [torch.ones_like(values).unsqueeze(-1)]
        signal = weights[-1].expand_as(pre[-1])
        for z, matrix in zip(reversed(pre), (*reversed(weights[1:-1]), None), strict=True):
            left.append(self._through(signal, z))
            signal = left[-1] if matrix is None else left[-1] @ matrix
        return values, Factored(tuple(reversed(left)), tuple(scaled))

    def embedding(self, weights: Weights, x: Float[Tensor, "*r n i"]) -> Dense:
        """Return the last layer's features ``h_{L-1}/√m``: the gradient with respect to the last layer alone."""
        return Dense(self._forward(weights, x)[0][-1])
