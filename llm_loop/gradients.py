"""Owns the features of the real loop: each response's gradient of the implicit reward, sketched as it is made.

``r_θ(x, y) = β log π_θ(y|x)/π_ref(y|x)``, so ``∇r_θ = β ∇ log π_θ(y|x)`` with respect to LoRA's matrices.  One forward
and one backward pass serve a whole batch: every LoRA matrix is a linear map ``out = M in``, so row ``i``'s gradient of
it is ``Σ_t δ_it ⊗ in_it``, taken from what passes through, and projected before the next matrix is reached.
Knows nothing of duels, designs or strategies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.core.rows import CountSketch, Dense, Rademacher, ShiftSketch
from llm_loop.models import Policy, Row, batches

Kind = Literal["none", "shift", "count", "sjlt", "rademacher", "factored"]
KINDS: tuple[Kind, ...] = ("none", "shift", "count", "sjlt", "rademacher", "factored")
SJLT_NONZEROS = 4


class Projection(ABC):
    """A linear map of LoRA gradients, matrix by matrix; abstract.  Inner products are kept in expectation.

    ``shapes`` are the matrices' shapes (outputs, inputs) in the model's order.  One key gives one map, for all rounds.
    """

    size: int

    @abstractmethod
    def add(self, out: Float[Tensor, "n size"], matrix: int, gradient: Float[Tensor, "n o i"]) -> None:
        """Add the image of one matrix's gradients to the rows of ``out``."""


class Exact(Projection):
    """No projection: the coordinates themselves."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        sizes = [a * b for a, b in shapes]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.size = sum(sizes)

    def add(self, out: Tensor, matrix: int, gradient: Tensor) -> None:
        """Write the coordinates to their place."""
        start = self._starts[matrix]
        out[:, start : start + gradient[0].numel()] += gradient.flatten(1)


class Shifted(Projection):
    """Count-sketch by cyclic shifts, a map of its own for every matrix: nothing is scattered, so it is the fastest."""

    def __init__(self, shapes: Sequence[tuple[int, int]], size: int, key: Key, device: str) -> None:
        self.size = size
        draws = (ShiftSketch.draw(a * b, size, key.fold_in("matrix", i)) for i, (a, b) in enumerate(shapes))
        self._parts = [replace(part, sign=part.sign.to(device, torch.float32)) for part in draws]

    def add(self, out: Tensor, matrix: int, gradient: Tensor) -> None:
        """Add the coordinates, signed and shifted, in whole blocks."""
        self._parts[matrix].add(out, gradient.flatten(1))


class Counted(Projection):
    """Count-sketch (one non-zero per coordinate) or SJLT (several): ``core.rows.CountSketch``, cut in blocks."""

    def __init__(self, shapes: Sequence[tuple[int, int]], size: int, nonzeros: int, key: Key, device: str) -> None:
        sizes = [a * b for a, b in shapes]
        whole = CountSketch.draw(sum(sizes), size, key, nonzeros)
        self.size = size
        self._parts = [
            CountSketch(b.to(device), s.to(device, torch.float32), size)
            for b, s in zip(whole.bucket.split(sizes, -1), whole.sign.split(sizes, -1), strict=True)
        ]

    def add(self, out: Tensor, matrix: int, gradient: Tensor) -> None:
        """Scatter the coordinates, signed, into their buckets."""
        part = self._parts[matrix]
        rows = gradient.flatten(1)
        for bucket, sign in zip(part.bucket, part.sign, strict=True):
            out.index_add_(-1, bucket, rows * sign)


class Signs(Projection):
    """Dense random signs over ``√size`` (TRAK, LESS): cost ``O(P · size)`` a row.

    The ``P × size`` signs do not fit in memory for a language model, so each matrix's are drawn again when it is
    reached; for reference, not for speed.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], size: int, key: Key, device: str) -> None:
        self.size = size
        self._shapes, self._luck, self._device = shapes, key, device

    def add(self, out: Tensor, matrix: int, gradient: Tensor) -> None:
        """Multiply by this matrix's signs."""
        a, b = self._shapes[matrix]
        signs = Rademacher.draw(a * b, self.size, self._luck.fold_in("matrix", matrix))
        out += gradient.flatten(1) @ signs.matrix.to(self._device, torch.float32)


class Sides(Projection):
    """The wide side of each matrix by random signs, LoRA's rank side kept: ``Σ G S`` over matrices (``GᵀS`` for B).

    ``S`` has ``size / rank`` columns of independent signs over ``√(size/rank)`` for every matrix, so inner products
    between different matrices vanish in expectation.  Cost a row: ``O(P · size / rank)``.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], size: int, rank: int, key: Key, device: str) -> None:
        if size % rank:
            raise InputError(f"a factored sketch needs a size divisible by LoRA's rank {rank}, got {size}")
        self.size, self._rank = size, rank
        self._signs = [
            Rademacher.draw(max(shape), size // rank, key.fold_in("matrix", i)).matrix.to(device, torch.float32)
            for i, shape in enumerate(shapes)
        ]

    def add(self, out: Tensor, matrix: int, gradient: Tensor) -> None:
        """Project the wide side; the rank side comes first."""
        wide = gradient if gradient.shape[1] == self._rank else gradient.mT
        out += (wide @ self._signs[matrix]).flatten(1)


def projection(
    kind: Kind, shapes: Sequence[tuple[int, int]], size: int, rank: int, key: Key, device: str
) -> Projection:
    """Return a projection by name; ``size`` is ignored by ``none``."""
    match kind:
        case "none":
            return Exact(shapes)
        case "shift":
            return Shifted(shapes, size, key, device)
        case "count":
            return Counted(shapes, size, 1, key, device)
        case "sjlt":
            return Counted(shapes, size, SJLT_NONZEROS, key, device)
        case "rademacher":
            return Signs(shapes, size, key, device)
        case "factored":
            return Sides(shapes, size, rank, key, device)
    raise InputError(f"unknown sketch {kind!r}; choose from {', '.join(KINDS)}")


@dataclass
class _Pass:
    """What one batch leaves behind."""

    out: Tensor
    inputs: dict[int, Tensor] = field(default_factory=dict)
    zero: Tensor | None = None  # of each row, how many A-matrices have a gradient of exactly zero


class Gradients:
    """Per-response gradients of ``β log π_θ(y|x)`` at the policy's current θ."""

    def __init__(self, policy: Policy, beta: float, kind: Kind, size: int, key: Key, batch_tokens: int = 512) -> None:
        """Draw the projection; it stays the same as θ moves."""
        if not beta > 0:
            raise InputError(f"β must be positive, got {beta}")
        self.policy, self.beta, self.batch_tokens = policy, beta, batch_tokens
        self._matrices: list[nn.Linear] = []
        self._sides: list[Literal["A", "B"]] = []
        for layer in policy.layers:
            self._matrices += [layer.lora_A["default"], layer.lora_B["default"]]
            self._sides += ["A", "B"]
        shapes = [(m.out_features, m.in_features) for m in self._matrices]
        self.map = projection(kind, shapes, size, policy.adapter.rank, key.fold_in("sketch"), str(policy.device))

    def __call__(self, rows: Sequence[Row], stage: str = "features") -> Dense:
        """Return one feature row per response, ``(n, size)`` in float64 on the CPU (float32 unsketched).

        Rows are padded on the right and attention is causal: padding changes no feature beyond rounding.
        """
        return self.with_zeros(rows, stage)[0]

    def with_zeros(self, rows: Sequence[Row], stage: str = "features") -> tuple[Dense, Float[Tensor, " n"]]:
        """Return the features, and of each response the share of A-matrices whose gradient is exactly 0.

        It is 1 while B = 0, where A has no say in what the model does.
        """
        dtype = torch.float32 if isinstance(self.map, Exact) else torch.float64
        table = torch.zeros(len(rows), self.map.size, dtype=dtype)
        zero = torch.zeros(len(rows), dtype=torch.float64)
        for places in batches([row.tokens for row in rows], self.batch_tokens if self.policy.route.padded else 1):
            part = [rows[place] for place in places]
            with self.policy.meter.stage(stage, sum(row.tokens for row in part)):
                done = self._batch(part) if self.policy.route.hooked else self._one_by_one(part)
                table[places] = done.out.to("cpu", dtype)
            assert done.zero is not None
            zero[places] = done.zero.to("cpu", torch.float64) / len(self.policy.layers)
        return Dense(table), zero

    def _batch(self, rows: Sequence[Row]) -> _Pass:
        """Run one batch forward and backward, collecting projected gradients on the way back."""
        policy = self.policy
        done = _Pass(torch.zeros(len(rows), self.map.size, device=policy.device))
        done.zero = torch.zeros(len(rows), dtype=torch.int64, device=policy.device)
        with self._watched(done), torch.enable_grad():
            total = self.beta * policy.token_log_probs(rows).sum()
            # Rows do not interact, so the gradient of the sum holds each row's own.
            torch.autograd.grad(total, self._entry)
        return done

    def _one_by_one(self, rows: Sequence[Row]) -> _Pass:
        """Differentiate by autograd, row by row: for models whose layers see tokens otherwise than row by row."""
        done = _Pass(torch.zeros(len(rows), self.map.size, device=self.policy.device))
        done.zero = torch.zeros(len(rows), dtype=torch.int64, device=self.policy.device)
        for i, row in enumerate(rows):
            for number, gradient in enumerate(self.plain(row)):
                self.map.add(done.out[i : i + 1], number, gradient)
                done.zero[i] += self._sides[number] == "A" and not bool(gradient.any())
        return done

    def plain(self, row: Row) -> list[Float[Tensor, "1 o i"]]:
        """Return one row's gradients by autograd, matrix by matrix."""
        weights = [matrix.weight for matrix in self._matrices]
        with torch.enable_grad():
            total = self.beta * self.policy.token_log_probs([row]).sum()
            found = torch.autograd.grad(total, weights, allow_unused=True)
        return [torch.zeros_like(w[None]) if g is None else g[None] for w, g in zip(weights, found, strict=True)]

    @contextmanager
    def _watched(self, done: _Pass) -> Iterator[None]:
        """Hook every LoRA matrix; the pass starts at the embeddings, and no weight's own gradient is computed."""

        def entry(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            self._entry = out.detach().requires_grad_(True)
            return self._entry

        def watch(number: int, side: Literal["A", "B"]):  # type: ignore[no-untyped-def]
            def forward(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
                seen = args[0].detach()

                def backward(signal: Tensor) -> None:
                    rows = (len(done.out), -1)  # of layers that are given the tokens of all rows in one list
                    one, other = (t if t.dim() == 3 else t.unflatten(0, rows) for t in (signal, seen))
                    gradient = one.mT.float() @ other.float()
                    self.map.add(done.out, number, gradient)
                    if side == "A":
                        assert done.zero is not None
                        done.zero += ~gradient.flatten(1).any(-1)

                out.register_hook(backward)

            return forward

        handles = [self.policy.model.get_input_embeddings().register_forward_hook(entry)]
        for number, (matrix, side) in enumerate(zip(self._matrices, self._sides, strict=True)):
            handles.append(matrix.register_forward_hook(watch(number, side)))
        parameters = list(self.policy.parameters.values())
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in parameters:
                parameter.requires_grad_(True)


@torch.no_grad()
def embeddings(policy: Policy, rows: Sequence[Row], stage: str = "features") -> Dense:
    """Return the mean last hidden state over each response's tokens, ``(n, width)``: APO's and ADPO's ``ψ(x, y)``."""
    base = policy.model.get_base_model()
    table = torch.zeros(0, dtype=torch.float64)
    for places in batches([row.tokens for row in rows], policy.batch_tokens if policy.route.padded else 1):
        part = [rows[place] for place in places]
        with policy.meter.stage(stage, sum(row.tokens for row in part)):
            ids, inside = policy.padded(part)
            decoder = base.get_decoder()
            if decoder is base:  # of a model that does not name its decoder
                out = base(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
            else:
                out = decoder(input_ids=ids, use_cache=False).last_hidden_state
            hidden = out.double()
            mean = (hidden * inside.unsqueeze(-1)).sum(1) / inside.sum(1, keepdim=True)
        if not len(table):
            table = torch.zeros(len(rows), mean.shape[-1], dtype=torch.float64)
        table[places] = mean.cpu()
    return Dense(table)
