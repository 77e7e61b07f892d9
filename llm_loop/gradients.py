"""Owns the features of the real loop: each response's gradient of the implicit reward, sketched as it is made.

``r_θ(x, y) = β log π_θ(y|x)/π_ref(y|x)``, so ``∇r_θ = β ∇ log π_θ(y|x)`` with respect to LoRA's matrices.  One forward
and one backward pass serve a whole batch: every LoRA matrix is a linear map ``out = M in``, so row ``i``'s gradient of
it is ``Σ_t δ_it ⊗ in_it``, taken from what passes through, and projected before the next matrix is reached.
Knows nothing of duels, designs or strategies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bandits.core.errors import InputError, unknown
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.core.sketches import SKETCHES, Coordinates, Kind
from llm_loop.models import Policy, Row, batches
from llm_loop.passes import log_probs, pack


@dataclass(eq=False)
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
        if kind not in SKETCHES:
            raise unknown("sketch", kind, SKETCHES)
        self.map = SKETCHES[kind](shapes, size, policy.adapter.rank, key.fold_in("sketch"), str(policy.device))

    def __call__(self, rows: Sequence[Row], stage: str = "features") -> Dense:
        """Return one feature row per response, ``(n, size)`` in float64 on the CPU (float32 unsketched).

        Rows are padded on the right and attention is causal: padding changes no feature beyond rounding.
        """
        return self.with_zeros(rows, stage)[0]

    def with_zeros(self, rows: Sequence[Row], stage: str = "features") -> tuple[Dense, Float[Tensor, " n"]]:
        """Return the features, and of each response the share of A-matrices whose gradient is exactly 0.

        It is 1 while B = 0, where A has no say in what the model does.
        """
        dtype = torch.float32 if isinstance(self.map, Coordinates) else torch.float64
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
        packed = pack([[row] for row in rows], policy.pad, policy.device)
        with policy.begun(packed) as start, self._watched(done), torch.enable_grad():
            if start is not None:
                start.requires_grad_(True)
            if policy.route.shared:
                total = self.beta * log_probs(policy.model, policy.head, packed, fused=policy.route.fused).sum()
            else:
                total = self.beta * policy.token_log_probs(rows).sum()
            # Rows do not interact, so the gradient of the sum holds each row's own.
            torch.autograd.grad(total, self._entry if start is None else start)
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

    def plain(self, row: Row) -> list[Float[Tensor, "1 _ _"]]:
        """Return one row's gradients by autograd, matrix by matrix."""
        weights = [matrix.weight for matrix in self._matrices]
        with torch.enable_grad():
            total = self.beta * self.policy.summed([[row]]).sum()
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
        packed = pack([[row] for row in part], policy.pad, policy.device)
        with policy.meter.stage(stage, sum(row.tokens for row in part)), policy.begun(packed):
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
