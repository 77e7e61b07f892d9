"""Owns what is fitted: the network, its linearisation, linear rewards, and a softmax policy trained by DPO.

Every learner minimises the theory's loss over all answers so far, ``-Σ log σ(o Δ) + (λ/2)‖θ - θ0‖²`` (a sum, pulled to
θ0), to a near-minimiser, and says how near.  Where it models ties (ν > 0) the likelihood is Davidson's.
Knows nothing of strategies, nor of where duels come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bandits.core.duels import Duels, Labelled, gather
from bandits.core.errors import InputError
from bandits.core.oracles import expected, loss, slope
from bandits.core.registry import Registry
from bandits.core.rng import Key
from bandits.core.rows import Dense, Factored, ItemRows, PairRows, Rows
from bandits.core.solvers import Step, minimise, newton
from bandits.runs.stats import CONVERGED
from bandits.sim.networks import MLP, Pass, Weights
from bandits.sim.problem import Inputs

Layer = Literal["all", "last"]
At = Literal["current", "initial"]


@dataclass(frozen=True, eq=False)
class Fit:
    """How a fit ended: ``‖∇L(θ_t)‖ / G0`` and the iterations spent.

    ``G0 = ½ √(Σ ‖φ_s‖²)``, gradients at θ0, is the root mean square of ``‖∇L(θ0)‖`` were the answers fair coins (their
    own ``‖∇L(θ0)‖`` may be zero: one duel answered once either way).
    """

    gradient: Float[Tensor, "*r"]
    iterations: int

    @property
    def converged(self) -> Bool[Tensor, "*r"]:
        """Whether θ_t is a near-minimiser: the relative gradient norm is at most ``CONVERGED``."""
        return self.gradient <= CONVERGED


@dataclass(frozen=True, eq=False)
class Start:
    """What a learner begins with: the experiment's network at θ0 (one per replicate), its key and its settings."""

    network: MLP
    initial: Weights
    key: Key
    regularisation: float
    iterations: int
    beta: float
    """of the policy learner, and the temperature of the policy whose entropy is read"""
    ties: float = 0.0
    """ν of the likelihood that is fitted"""


class Learner(ABC):
    """A reward model over synthetic items, fitted to labelled duels; abstract."""

    temperature: float = 1.0
    """of the policy ``π ∝ exp(r / temperature)`` whose entropy is read"""
    ties: float = 0.0
    """Davidson's ν of the likelihood that is fitted; at 0 a tie counts as half a win of either side"""

    @classmethod
    @abstractmethod
    def begin(cls, start: Start) -> Self:
        """Return the learner at the start of an experiment."""

    def __init__(self, regularisation: float, tolerance: float, iterations: int) -> None:
        """Begin at θ0; ``tolerance`` is on the gradient norm relative to its size at θ0 (see ``Fit``)."""
        if not regularisation > 0:
            raise InputError(f"learner: the regularisation λ must be positive, got {regularisation}")
        self.regularisation, self.tolerance, self.iterations = regularisation, tolerance, iterations

    @abstractmethod
    def fit(self, past: Labelled[Inputs]) -> Fit:
        """Move θ to the minimiser of the loss over all labelled duels."""

    @abstractmethod
    def rewards(self, items: Inputs) -> Float[Tensor, "*r n"]:
        """Return the learner's reward of every item, in log-odds; 0 at θ0."""

    @abstractmethod
    def features(self, items: Inputs, at: At, layer: Layer) -> ItemRows:
        """Return the gradient of every item's reward, at the current θ or at θ0."""

    def entropy(self, items: Inputs, rewards: Float[Tensor, "*r n"]) -> Float[Tensor, "*r p"]:
        """Return the entropy in nats of ``π ∝ exp(r / temperature)`` over each prompt's responses."""
        policy = torch.log_softmax(rewards.unflatten(-1, (-1, items.responses)) / self.temperature, -1)
        return -(policy.exp() * policy).sum(-1)

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the tensors that restore the learner as it is."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Load a saved state."""


def newton_step(
    gram: Float[Tensor, "*r s s"],
    slopes: Float[Tensor, "*r s"],
    linear: Float[Tensor, "*r s"],
    residual: Float[Tensor, "*r s"],
    regularisation: float,
) -> Float[Tensor, "*r s"]:
    """Return the dual Gauss-Newton coefficients ``α`` of ``θ⁺ - θ0 = Jᵀα``.

    Minimises ``½ Σ σ'_s (j_sᵀu - z_s)² + (λ/2)‖u‖²`` with ``z = J(θ - θ0) - (σ(Δ) - y)/σ'``: the logistic loss to
    second order around ``θ`` with margins linear in ``u``.  ``α = √D (√D K √D + λI)⁻¹ √D z``: a
    system of ``S x S``, whatever ``P`` is.
    """
    root = slopes.sqrt()
    system = root.unsqueeze(-1) * gram * root.unsqueeze(-2)
    system.diagonal(dim1=-2, dim2=-1).add_(regularisation)
    target = (root * linear - residual / root).unsqueeze(-1)
    return root * torch.cholesky_solve(target, torch.linalg.cholesky(system)).squeeze(-1)


def _scale(squares: Float[Tensor, "*r s"]) -> Float[Tensor, "*r"]:
    """Return ``G0`` of ``Fit`` from the ``‖φ_s‖²``; not zero even where all items coincide."""
    return squares.sum(-1).sqrt().clamp(min=1e-150) / 2


ROUGH = 1e-5  # share of G0 down to which single precision is used
KINK = 0.1  # share of the loss that a failed step must have promised for a ReLU fit to go on: at a kink it is less
SINGLE = 1e6  # bound on (Σ σ'‖φ‖²)/λ, so on the Hessian's condition, up to which single precision can hold the metric


def _flat(blocks: Weights) -> Float[Tensor, "*r p"]:
    return torch.cat([block.flatten(-2) for block in blocks], -1)


class _Objective:
    """A neural learner's loss as a function of one parameter vector, the network evaluated in a precision of its own.

    The vector, the loss and its gradient stay in the learner's precision.
    """

    def __init__(
        self,
        learner: NeuralLearner,
        x: Tensor,
        duels: Duels,
        outcome: Float[Tensor, "*r s"],
        precision: torch.dtype | None = None,
    ) -> None:
        """Take the inputs, the duels among them and the answers; evaluate the initial network."""
        self.learner, self.duels, self.outcome, self._given = learner, duels, outcome, x
        self.x = x.to(precision)
        self.origin = _flat(learner.initial)
        self.initial = learner.network.forward(self._weights(self.origin), self.x)
        self.base = self.initial.values
        self._last: tuple[Tensor, Tensor, Pass] | None = None

    def to(self, precision: torch.dtype) -> _Objective:
        """Return the same loss with the network in another precision."""
        return _Objective(self.learner, self._given, self.duels, self.outcome, precision)

    @property
    def noise(self) -> float:
        """The relative error of a value."""
        return 1e-14 if self.x.dtype == torch.float64 else 1e-7

    def _weights(self, theta: Tensor) -> Weights:
        return tuple(block.to(self.x.dtype) for block in self.learner._blocks(theta))

    def _look(self, theta: Tensor) -> tuple[Tensor, Pass]:
        """Return the duels' margins, and the pass that they came from; those of the last vector are remembered."""
        if self._last is None or self._last[0] is not theta:
            look = self.learner.network.forward(self._weights(theta), self.x)
            margin = self.duels.difference(self.learner.scale * (look.values - self.base)).to(theta.dtype)
            self._last = theta, margin, look
        return self._last[1:]

    def _pull(self, look: Pass, weights: Float[Tensor, "*r s"]) -> Tensor:
        """Return ``Jᵀ w``, ``J`` the gradients of the duels' margins."""
        items = _scatter(self.duels, (self.learner.scale * weights).to(self.x.dtype), self.x.shape[-2])
        return _flat(look.pull(items)).to(weights.dtype)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return the loss, and what works out its gradient."""
        margin, look = self._look(theta)
        lam, drift = self.learner.regularisation, theta - self.origin
        value = loss(margin, self.outcome, self.learner.ties) + lam / 2 * drift.square().sum(-1)
        return value, lambda: self._pull(look, expected(margin, self.learner.ties) - self.outcome) + lam * drift

    def metric(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product with ``(λI + JᵀDJ)⁻¹ = (I - Jᵀ√D (λI + √D K √D)⁻¹ √D J) / λ``, ``K = JJᵀ`` (Woodbury)."""
        margin, look = self._look(theta)
        rows, lam = self.learner._scaled(look.gradient()), self.learner.regularisation
        pairs, root = rows.differences(self.duels), slope(margin, self.learner.ties).sqrt()
        system = root.unsqueeze(-1) * pairs.inner(pairs) * root.unsqueeze(-2)
        system.diagonal(dim1=-2, dim2=-1).add_(lam)
        factor = torch.linalg.cholesky(system)

        def product(vector: Tensor) -> Tensor:
            along = root * self.duels.difference(rows.times(self._weights(vector)))
            half = torch.linalg.solve_triangular(factor, along.unsqueeze(-1), upper=False)
            dual = root * torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(-1)
            items = _scatter(self.duels, dual.to(self.x.dtype), self.x.shape[-2])
            return (vector - _flat(rows.combined(items))) / lam

        return product


class NeuralLearner(Learner):
    """``r_θ = f(x; θ) - f(x; θ0)`` with the theorem's MLP, fitted by BFGS from a Gauss-Newton metric kept in the dual.

    The ``S x S`` Gram matrix of the duels' gradients comes from layer factors, so a fit costs one such matrix, its
    Cholesky factor, and a few passes over the network a step.  No row per duel is formed.  ``scale`` multiplies the
    output (a DPO policy's β).
    """

    def __init__(
        self,
        network: MLP,
        initial: Weights,
        regularisation: float,
        scale: float = 1.0,
        tolerance: float = 1e-6,
        iterations: int = 500,
    ) -> None:
        """Begin at the given initial weights θ0."""
        super().__init__(regularisation, tolerance, iterations)
        self.network, self.initial, self.scale = network, initial, scale
        self.weights: Weights = initial

    @classmethod
    def begin(cls, start: Start) -> Self:
        """Return the network at θ0."""
        learner = cls(start.network, start.initial, start.regularisation, iterations=start.iterations)
        learner.temperature, learner.ties = start.beta, start.ties
        return learner

    def rewards(self, items: Inputs) -> Tensor:
        """Return ``scale · (f(x; θ) - f(x; θ0))``."""
        if self.weights is self.initial:
            return torch.zeros_like(items.x[..., 0])
        difference = self.network.value(self.weights, items.x) - self.network.value(self.initial, items.x)
        return self.scale * difference

    def features(self, items: Inputs, at: At, layer: Layer) -> ItemRows:
        """Return ``∇r_θ(x)``; the last layer's part is dense, all layers' is factored."""
        weights = self.weights if at == "current" else self.initial
        if layer == "last":
            return Dense(self.scale * self.network.embedding(weights, items.x).values)
        return self._scaled(self.network.value_and_gradient(weights, items.x)[1])

    def _scaled(self, rows: Factored) -> Factored:
        return rows if self.scale == 1 else Factored(tuple(self.scale * a for a in rows.left), rows.right)

    def state(self) -> dict[str, Tensor]:
        """Return the weights."""
        return {f"weights.{i}": matrix for i, matrix in enumerate(self.weights)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load saved weights."""
        self.weights = tuple(state[f"weights.{i}"] for i in range(len(self.initial)))

    def fit(self, past: Labelled[Inputs]) -> Fit:
        """Minimise from where the last fit ended, by BFGS whose first metric is the Gauss-Newton matrix there.

        The metric is renewed when the gradient has fallen to a tenth of ``G0``, and where steps from it fail or are
        many: a small λ lets margins grow until the curvature ``σ'`` is nothing like that at the start.  Up to ``ROUGH``
        the network is evaluated in single precision, whose gradients are good to about ``1e-7 G0``; the rest, and what
        is said of the end, is in the precision of the items.

        With ReLU the minimiser sits on kinks, where the gradient jumps and never becomes small: no smooth method ends
        there, ``Fit.converged`` says so, and claims about ``θ_t`` as a minimiser can then not be judged.  Where such a
        fit ends depends on every rounding, so it is in the precision of the items throughout; its metric is renewed
        only while much is to be gained.  Softplus and tanh converge.
        """
        exact = _Objective(self, *_sides(past), past.outcome)
        rows = self._scaled(exact.initial.gradient())
        reference = _scale(rows.differences(exact.duels).squares())
        # Items asked against themselves leave nothing but rounding: no gradient is small beside that.
        whole = _scale(rows.squares())
        reference = torch.maximum(reference, 1e-8 * whole)
        stages: tuple[tuple[_Objective, float], ...] = ((exact, 0.0),)
        if self.network.smooth:
            # By the items too: what cancels in their differences leaves their rounding.
            sound = bool((torch.maximum(reference, whole).square() < SINGLE * self.regularisation).all())
            rough = exact.to(torch.float32) if sound else exact
            stages = (rough, 0.1), (rough, ROUGH), *stages
        theta, left = _flat(self.weights), torch.full_like(reference, self.iterations, dtype=torch.int64)
        steps: tuple[Step, ...] = ()
        metric, worth = stages[0][0].metric(theta), 0.0 if self.network.smooth else KINK
        for stage, (objective, goal) in enumerate(stages):
            if stage == 1 and steps:
                metric, steps = objective.metric(theta), ()
            tolerance = max(goal, self.tolerance) * reference
            minimum = minimise(
                objective.evaluate,
                theta,
                metric,
                tolerance,
                left,
                steps=steps,
                noise=objective.noise,
                renew=objective.metric,
                worth=worth,
            )
            theta, left = minimum.x, left - minimum.iterations
            metric, steps = minimum.precondition, minimum.steps
        self.weights = self._blocks(theta)
        return Fit(minimum.gradient / reference, self.iterations - int(left.min()))

    def _blocks(self, vector: Float[Tensor, "*r p"]) -> Weights:
        """Return a parameter vector as weight matrices."""
        parts = vector.split([a * b for a, b in self.network.shapes], -1)
        return tuple(part.unflatten(-1, shape) for part, shape in zip(parts, self.network.shapes, strict=True))


class PolicyLearner(NeuralLearner):
    """A softmax policy ``π_θ ∝ π_ref exp(f(·; θ) - f(·; θ0))`` over each prompt's responses, trained by DPO.

    Its implicit reward is ``β log π_θ/π_ref = β (s_θ - log Σ_y π_ref e^{s_θ})``, ``s_θ = f(·; θ) - f(·; θ0)``; within a
    prompt the last term cancels, so DPO on it is the neural learner's loss with output scale β.  ``π_ref`` is uniform.
    """

    def __init__(
        self,
        network: MLP,
        initial: Weights,
        regularisation: float,
        beta: float,
        tolerance: float = 1e-6,
        iterations: int = 500,
    ) -> None:
        """Begin at the reference policy."""
        if not beta > 0:
            raise InputError(f"policy: β must be positive, got {beta}")
        super().__init__(network, initial, regularisation, beta, tolerance, iterations)
        self.temperature = beta

    @classmethod
    def begin(cls, start: Start) -> Self:
        """Return the reference policy."""
        learner = cls(start.network, start.initial, start.regularisation, start.beta, iterations=start.iterations)
        learner.ties = start.ties
        return learner

    def log_ratio(self, items: Inputs) -> Float[Tensor, "*r n"]:
        """Return ``log π_θ(y|x) / π_ref(y|x)`` of every item, normalised over its prompt's responses."""
        scores = (super().rewards(items) / self.scale).unflatten(-1, (-1, items.responses))
        reference = -torch.log(torch.tensor(float(items.responses), dtype=scores.dtype, device=scores.device))
        return (torch.log_softmax(scores + reference, -1) - reference).flatten(-2)

    def rewards(self, items: Inputs) -> Tensor:
        """Return the implicit reward ``β log π_θ/π_ref``."""
        return self.scale * self.log_ratio(items)

    def features(self, items: Inputs, at: At, layer: Layer) -> ItemRows:
        """Return ``∇ β log π_θ = β (∇s - E_{π_θ} ∇s)``, dense (the mean couples a prompt's items)."""
        rows = super().features(items, at, layer).dense().values.unflatten(-2, (-1, items.responses))
        if at == "current":
            policy = (self.log_ratio(items).unflatten(-1, (-1, items.responses))).softmax(-1)
        else:
            policy = torch.full_like(rows[..., 0], 1 / items.responses)
        return Dense((rows - (policy.unsqueeze(-1) * rows).sum(-2, keepdim=True)).flatten(-3, -2))


class TangentLearner(Learner):
    """The network's linearisation at θ0, ``h(x) = ⟨∇f(x; θ0), θ - θ0⟩``: kernel logistic regression with its own NTK.

    The theory's finite-sample bound holds for it exactly.
    """

    def __init__(
        self,
        network: MLP,
        initial: Weights,
        regularisation: float,
        scale: float = 1.0,
        tolerance: float = 1e-10,
        iterations: int = 100,
    ) -> None:
        """Begin at θ0."""
        super().__init__(regularisation, tolerance, iterations)
        self.network, self.initial, self.scale = network, initial, scale
        self._known = 0  # rounds of the history whose duels the Gram matrix holds
        self._gram = self._alpha = torch.empty(0)
        self._rows: Rows | None = None
        self._shift: Weights | None = None  # θ - θ0, block by block

    @classmethod
    def begin(cls, start: Start) -> Self:
        """Return the linearisation at θ0."""
        learner = cls(start.network, start.initial, start.regularisation)
        learner.temperature, learner.ties = start.beta, start.ties
        return learner

    def features(self, items: Inputs, at: At, layer: Layer) -> ItemRows:
        """Return ``∇f(x; θ0)``, the same at any θ."""
        if layer == "last":
            return Dense(self.scale * self.network.embedding(self.initial, items.x).values)
        rows = self.network.value_and_gradient(self.initial, items.x)[1]
        return rows if self.scale == 1 else Factored(tuple(self.scale * a for a in rows.left), rows.right)

    def _grow(self, past: Labelled[Inputs]) -> Rows:
        """Extend the Gram matrix to the whole history, a block a round: a resumed run makes the same bytes.

        It is kept between fits by the number of rounds; a shorter history makes it anew.
        """
        if self._known > len(past.batches):
            self._known, self._rows = 0, None
        for batch in past.batches[self._known :]:
            items, duels = batch.items.keep(batch.duels)
            rows = self.features(items, "initial", "all").differences(duels)
            if self._rows is None:
                self._rows, self._gram = rows, rows.inner(rows)
            else:
                cross = self._rows.inner(rows)
                top = torch.cat([self._gram, cross], -1)
                self._gram = torch.cat([top, torch.cat([cross.mT, rows.inner(rows)], -1)], -2)
                self._rows = self._rows.join(rows)
        self._known = len(past.batches)
        assert self._rows is not None
        return self._rows

    @property
    def margins(self) -> Float[Tensor, "*r s"]:
        """The fitted reward differences of the labelled duels."""
        return (self._gram @ self._alpha.unsqueeze(-1)).squeeze(-1)

    def fit(self, past: Labelled[Inputs]) -> Fit:
        """Newton's method in the dual (convex), halving steps where needed."""
        rows = self._grow(past)
        gram, outcome, lam, ties = self._gram, past.outcome, self.regularisation, self.ties
        alpha = torch.zeros_like(outcome)  # begins where the last fit ended
        known = min(self._alpha.shape[-1], alpha.shape[-1])
        alpha[..., :known] = self._alpha[..., :known]

        def objective(a: Tensor) -> tuple[Tensor, Tensor]:
            margin = (gram @ a.unsqueeze(-1)).squeeze(-1)
            return loss(margin, outcome, ties) + lam / 2 * (a * margin).sum(-1), margin

        reference = _scale(gram.diagonal(dim1=-2, dim2=-1))

        def derivatives(a: Tensor, margin: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
            residual = expected(margin, ties) - outcome
            dual = residual + lam * a  # the gradient is Σ dual_s φ_s
            pull = (gram @ dual.unsqueeze(-1)).squeeze(-1)
            norm = (dual * pull).sum(-1).clamp(min=0).sqrt()
            flat = slope(margin, ties).clamp(min=1e-12)
            return pull, norm / reference, lambda: newton_step(gram, flat, margin, residual, lam) - a

        alpha, gradient, spent = newton(objective, derivatives, alpha, self.tolerance, self.iterations)
        self._alpha = alpha
        assert isinstance(rows, PairRows)
        self._shift = rows.items.combined(_scatter(rows.duels, alpha, rows.items.count))
        return Fit(gradient, spent)

    def rewards(self, items: Inputs) -> Tensor:
        """Return ``h(x) = ⟨∇f(x), θ - θ0⟩``, ``θ - θ0 = Σ α_s φ_s``; only a prompt's differences mean something."""
        if self._shift is None:
            return torch.zeros_like(items.x[..., 0])
        rows = self.features(items, "initial", "all")
        assert isinstance(rows, Factored)
        return rows.times(self._shift)

    def state(self) -> dict[str, Tensor]:
        """Return ``θ - θ0``, and the dual coefficients from which the next fit begins."""
        if self._shift is None:
            return {}
        return {"alpha": self._alpha} | {f"shift.{i}": block for i, block in enumerate(self._shift)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load a saved ``θ - θ0``."""
        self._alpha = state.get("alpha", torch.empty(0))
        self._shift = tuple(state[f"shift.{i}"] for i in range(len(self.initial))) if state else None


def _sides(past: Labelled[Inputs]) -> tuple[Tensor, Duels]:
    """Return the inputs to evaluate and the duels among them: a table that lasts, else both items of every duel."""
    duels = past.duels
    if past.lasting:
        return past.items.x, duels
    both = torch.cat([duels.first, duels.second], -1)
    place = torch.arange(duels.count, device=both.device).expand(duels.first.shape)
    return gather(past.items.x, both), Duels(place, place + duels.count)


def _scatter(duels: Duels, weights: Float[Tensor, "*r s"], rows: int) -> Float[Tensor, "*r n"]:
    """Return item weights ``Dᵀ w``: each duel adds its weight to the first item and takes it from the second."""
    out = weights.new_zeros((*weights.shape[:-1], rows))
    return out.scatter_add(-1, duels.first, weights).scatter_add(-1, duels.second, -weights)


class LinearLearner(Learner):
    """``r = xᵀθ`` by ridge logistic regression (LinDB-UCB/TS, CoLSTIM): Newton's method on ``d`` numbers."""

    def __init__(
        self,
        dim: int,
        lead: tuple[int, ...],
        regularisation: float,
        key: Key,
        tolerance: float = 1e-10,
        iterations: int = 100,
    ) -> None:
        """Begin at θ = 0."""
        super().__init__(regularisation, tolerance, iterations)
        self.theta = torch.zeros((*lead, dim), dtype=key.dtype, device=key.device)

    @classmethod
    def begin(cls, start: Start) -> Self:
        """Return θ = 0 in the items' own dimension."""
        learner = cls(start.network.inputs, start.initial[0].shape[:-2], start.regularisation, start.key)
        learner.temperature, learner.ties = start.beta, start.ties
        return learner

    def features(self, items: Inputs, at: At, layer: Layer) -> Dense:
        """Return ``x``."""
        return Dense(items.x)

    def rewards(self, items: Inputs) -> Tensor:
        """Return ``xᵀθ``."""
        return (items.x @ self.theta.unsqueeze(-1)).squeeze(-1)

    def fit(self, past: Labelled[Inputs]) -> Fit:
        """Newton's method on the regularised logistic loss (convex)."""
        phi, outcome = Dense(past.items.x).differences(past.duels).values, past.outcome
        lam, ties = self.regularisation, self.ties
        eye = lam * torch.eye(phi.shape[-1], dtype=phi.dtype, device=phi.device)
        reference = _scale(phi.square().sum(-1))

        def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
            margin = (phi @ theta.unsqueeze(-1)).squeeze(-1)
            return loss(margin, outcome, ties) + lam / 2 * theta.square().sum(-1), margin

        def derivatives(theta: Tensor, margin: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
            residual = expected(margin, ties) - outcome
            pull = (residual.unsqueeze(-2) @ phi).squeeze(-2) + lam * theta
            hessian = (phi * slope(margin, ties).unsqueeze(-1)).mT @ phi + eye
            return pull, torch.linalg.vector_norm(pull, dim=-1) / reference, lambda: -torch.linalg.solve(hessian, pull)

        self.theta, gradient, spent = newton(objective, derivatives, self.theta, self.tolerance, self.iterations)
        return Fit(gradient, spent)

    def state(self) -> dict[str, Tensor]:
        """Return θ."""
        return {"theta": self.theta}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load a saved θ."""
        self.theta = state["theta"]


def _check(learner: object) -> None:
    """Raise ``InputError`` for what is no learner."""
    if not (isinstance(learner, type) and issubclass(learner, Learner)):
        raise InputError(f"a learner is a class that inherits from Learner, got {learner!r}")


LEARNERS = Registry[type[Learner]]("learner", _check)
"""All learners by name; ``LEARNERS.register`` adds one."""

LEARNERS.register("neural", NeuralLearner)
LEARNERS.register("policy", PolicyLearner)
LEARNERS.register("tangent", TangentLearner)
LEARNERS.register("linear", LinearLearner)
