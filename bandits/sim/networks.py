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

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.core.rows import Dense, Factored

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

    @property
    def smooth(self) -> bool:
        """Whether the gradient is continuous in the weights."""
        return self.activation != "relu"

    def initial(self, key: Key) -> Weights:
        """Draw ``θ0``: every weight N(0, 1), layer by layer."""
        return tuple(key.fold_in("layer", i).normal(*shape) for i, shape in enumerate(self.shapes))

    @property
    def _scale(self) -> float:
        return self.gain / math.sqrt(self.width)

    def _activate(self, z: Tensor) -> Tensor:
        """Return ``g · act(z) / √m``."""
        if self.activation == "relu":
            return torch.relu(z) * self._scale
        return (torch.tanh(z) if self.activation == "tanh" else torch.nn.functional.softplus(z)) * self._scale

    def _derivative(self, z: Tensor, signal: Tensor) -> Tensor:
        """Return ``act'(z) ⊙ signal``."""
        if self.activation == "relu":
            return torch.ops.aten.threshold_backward(signal, z, 0)
        return signal * (1 - torch.tanh(z).square() if self.activation == "tanh" else torch.sigmoid(z))

    def forward(self, weights: Weights, x: Float[Tensor, "*r n i"]) -> Pass:
        """Evaluate ``f(x; θ)`` for every row of ``x``, ready for its gradients."""
        scaled, pre = [x / math.sqrt(self.inputs)], []
        for matrix in weights[:-1]:
            pre.append(scaled[-1] @ matrix.mT)
            scaled.append(self._activate(pre[-1]))
        return Pass(self, weights, tuple(scaled), tuple(pre))

    def value(self, weights: Weights, x: Float[Tensor, "*r n i"]) -> Float[Tensor, "*r n"]:
        """Return ``f(x; θ)`` for every row of ``x``."""
        return self.forward(weights, x).values

    def value_and_gradient(
        self, weights: Weights, x: Float[Tensor, "*r n i"]
    ) -> tuple[Float[Tensor, "*r n"], Factored]:
        """Return ``f(x; θ)`` and ``∇_θ f(x; θ)`` for every row; cost: one forward and one backward pass."""
        forward = self.forward(weights, x)
        return forward.values, forward.gradient()

    def embedding(self, weights: Weights, x: Float[Tensor, "*r n i"]) -> Dense:
        """Return the last layer's features ``h_{L-1}/√m``: the gradient with respect to the last layer alone."""
        return Dense(self.forward(weights, x).scaled[-1])


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass: the scaled inputs ``h_{l-1}/√fan_in`` of every layer, and the hidden layers' ``z_l``."""

    network: MLP
    weights: Weights
    scaled: tuple[Float[Tensor, "*r n _"], ...]
    pre: tuple[Float[Tensor, "*r n _"], ...]

    @property
    def values(self) -> Float[Tensor, "*r n"]:
        """Return ``f(x; θ)`` of every row."""
        return (self.scaled[-1] @ self.weights[-1].mT).squeeze(-1)

    def gradient(self) -> Factored:
        """Return ``∇_θ f(x; θ)`` of every row, one outer product per layer.

        ``∂f/∂W_l = δ_l (h_{l-1}/√fan_in)ᵀ`` with ``δ_L = 1`` and ``δ_l = g·act'(z_l) ⊙ W_{l+1}ᵀ δ_{l+1} / √m``.
        """
        return Factored(self._back(torch.ones_like(self.scaled[-1][..., :1])), self.scaled)

    def pull(self, weights: Float[Tensor, "*r n"]) -> Weights:
        """Return ``Σ weight_i ∇_θ f(x_i; θ)`` as weight matrices; no row is formed."""
        return Factored(self._back(weights.unsqueeze(-1)), self.scaled).total()

    def _back(self, last: Float[Tensor, "*r n 1"]) -> tuple[Float[Tensor, "*r n _"], ...]:
        """Return the signals ``δ_l`` of all layers, the last layer's being given."""
        signals = [last]
        for z, matrix in zip(reversed(self.pre), reversed(self.weights[1:]), strict=True):
            # The factor g/√m goes where there are fewer numbers: the last layer's signal is one column.
            if len(signals) == 1:
                back = (self.network._scale * last) * matrix
            else:
                back = (signals[-1] @ matrix).mul_(self.network._scale)
            signals.append(self.network._derivative(z, back))
        return tuple(reversed(signals))
