"""Owns passes that do no more than they must: layers below the adapter run once a row, a prompt is read once a group.

What the layers below the lowest adapted one make of a row does not depend on θ, so it is computed once, kept, and put
in where that layer begins.  Responses to one prompt can stand behind it side by side, each blind to the others, and the
output's product is made only where a response token is foretold.  All of it is exact up to rounding;
``llm_loop.agreement`` compares it with the model's plain forward pass before a run relies on it.  Knows nothing of
policies, rewards or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One item as token ids: a prompt and a response to it (with its end token, if it has ended)."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many tokens, prompt and response."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences of tokens, each a prompt with one or more responses to it, padded on the right to ``T`` tokens."""

    ids: Int64[Tensor, "n T"]
    positions: Int64[Tensor, "n T"] | None
    """a response begins where its prompt ends, whatever stands between; None: as the model counts"""
    mask: Bool[Tensor, "n 1 T T"] | None
    """who sees whom: of the past, the prompt and the own response; None: all of the past"""
    segments: tuple[tuple[int, int, int, int, int], ...]
    """(row, its first token, end, sequence, place there) of every stretch that stands in a sequence as in its row"""
    foretold: Int64[Tensor, "m 2"]
    """sequence and place of the state that foretells each response token, rows in order"""
    tokens: Int64[Tensor, " m"]
    """the response tokens"""
    owner: Int64[Tensor, " m"]
    """the row of each"""
    rows: tuple[Row, ...]


def pack(groups: Sequence[Sequence[Row]], pad: int, device: torch.device | str = "cpu") -> Packed:
    """Return one sequence per group of rows, whose rows share their prompt; rows are numbered group by group."""
    lengths = [len(group[0].prompt) + sum(len(row.response) for row in group) for group in groups]
    longest, shared = max(lengths), any(len(group) > 1 for group in groups)
    ids = torch.full((len(groups), longest), pad)
    positions = torch.zeros(len(groups), longest, dtype=torch.int64)
    segment = torch.full((len(groups), longest), -1)
    segments, foretold, owner = [], [], []
    tokens: list[int] = []
    rows: list[Row] = []
    for s, group in enumerate(groups):
        prompt = group[0].prompt
        start = len(prompt)
        ids[s, :start] = torch.tensor(prompt)
        positions[s, :start] = torch.arange(start)
        segment[s, :start] = 0
        segments.append((len(rows), 0, start, s, 0))
        for k, row in enumerate(group):
            end = start + len(row.response)
            ids[s, start:end] = torch.tensor(row.response)
            positions[s, start:end] = torch.arange(len(prompt), row.tokens)
            segment[s, start:end] = k + 1
            segments.append((len(rows), len(prompt), row.tokens, s, start))
            foretold += [(s, len(prompt) - 1), *((s, place) for place in range(start, end - 1))]
            tokens += row.response
            owner += [len(rows)] * len(row.response)
            rows.append(row)
            start = end
    mask = None
    if shared:
        place = torch.arange(longest)
        seen = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
        mask = (seen & (place[None, :] <= place[:, None]))[:, None].to(device)
        mask |= torch.eye(longest, dtype=torch.bool, device=device)  # padding sees itself: a row of nothing is NaN
    return Packed(
        ids.to(device),
        positions.to(device) if shared else None,
        mask,
        tuple(segments),
        torch.tensor(foretold, device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(owner, device=device),
        tuple(rows),
    )


class _ReachedError(Exception):
    """A pass has come to the lowest adapted layer; nothing above is wanted."""


class Trunk:
    """The layers below the lowest adapted one, and what they make of rows.

    ``states(rows)`` computes and keeps the hidden states that enter the lowest adapted layer, ``(tokens, width)`` a
    row; ``given(packed)`` lets a pass begin there.  States are kept up to ``limit`` bytes, the oldest dropped first.
    """

    def __init__(self, model: Any, limit: int = 2 << 30) -> None:
        """Find the layers of a model with its adapter; there may be none below, and then there is nothing to save."""
        self.limit, self._kept, self._bytes, self._tuple = limit, dict[Row, Tensor](), 0, False
        layers = _below(model)
        self.below, self.entry = layers[:-1], layers[-1] if layers else None

    @property
    def there(self) -> bool:
        """Whether there are layers below."""
        return bool(self.below)

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows, each once, whose states are not kept."""
        return [row for row in dict.fromkeys(rows) if row not in self._kept]

    def keep(self, forward: Callable[[Tensor], Any], rows: Sequence[Row], pad: int, device: torch.device) -> None:
        """Compute the states of rows side by side; ``forward`` runs the model on padded token ids."""
        packed = pack([[row] for row in rows], pad, device)
        found: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _ReachedError

        def look(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self._tuple = isinstance(out, tuple)

        assert self.entry is not None
        hooks = [
            self.entry.register_forward_pre_hook(stop, with_kwargs=True),
            self.below[0].register_forward_hook(look),
        ]
        try:
            with torch.no_grad():
                forward(packed.ids)
        except _ReachedError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        for row, states in zip(rows, found[0].detach(), strict=True):
            self._kept[row] = states[: row.tokens].clone()
            self._bytes += self._kept[row].nbytes
        while self._bytes > self.limit and len(self._kept) > len(rows):
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes

    def forget(self) -> None:
        """Drop all states."""
        self._kept.clear()
        self._bytes = 0

    @contextmanager
    def given(self, packed: Packed) -> Iterator[Float[Tensor, "n T d"]]:
        """Let the layers below pass on what they get, and the lowest adapted one begin at kept states; yield those."""
        assert self.entry is not None
        states = [self._kept[row] for row in packed.rows]
        table = states[0].new_zeros(*packed.ids.shape, states[0].shape[-1])
        for row, first, end, sequence, place in packed.segments:
            table[sequence, place : place + end - first] = states[row][first:end]

        def skip(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden,) if self._tuple else hidden

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (table, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": table}

        hook = self.entry.register_forward_pre_hook(enter, with_kwargs=True)
        for layer in self.below:
            layer.forward = skip
        try:
            yield table
        finally:
            hook.remove()
            for layer in self.below:
                del layer.forward  # the class's own is seen again


def _below(model: Any) -> list[nn.Module]:
    """Return the layers below the lowest adapted one, and that one; empty if there are none, or not one stack."""
    places: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            parts = name.split(".")
            number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
            if number is None:
                return []
            places.setdefault(".".join(parts[:number]), []).append(int(parts[number]))
    if len(places) != 1:
        return []
    ((prefix, numbers),) = places.items()
    layers = model.get_submodule(prefix)
    lowest = min(numbers)
    if not isinstance(layers, nn.ModuleList) or lowest == 0:
        return []
    return list(layers)[: lowest + 1]


@contextmanager
def _only(head: nn.Module, foretold: Tensor) -> Iterator[None]:
    """Let the output's product be made for some hidden states alone: ``(1, m, width)``, not ``(n, T, width)``."""

    def pick(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][foretold[:, 0], foretold[:, 1]].unsqueeze(0), *args[1:])

    hook = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def windows(config: Any) -> dict[str, int | None] | None:
    """Return how far each kind of layer looks back (None: all the way), for models that want a mask for each kind."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return None
    return {kind: config.sliding_window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def _masks(packed: Packed, reach: dict[str, int | None] | None, dtype: torch.dtype) -> Any:
    """Return the mask as models add it to attention's scores: one, or one for each kind of their layers."""
    if packed.mask is None or packed.positions is None:
        return None
    back = (packed.positions[:, :, None] - packed.positions[:, None, :])[:, None]
    seen = {k: packed.mask if w is None else packed.mask & (back < w) for k, w in (reach or {"": None}).items()}
    masks = {k: torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype) for k, mask in seen.items()}
    return masks if reach else masks[""]


def log_probs(
    model: Any, head: nn.Module, packed: Packed, reach: dict[str, int | None] | None = None
) -> Float[Tensor, " n"]:
    """Return ``log π(y|x)`` of every row, nats, summed over its tokens; differentiable.

    ``reach`` is what ``windows`` says of the model.
    """
    more = {}
    if packed.mask is not None:
        more = {
            "attention_mask": _masks(packed, reach, next(head.parameters()).dtype),
            "position_ids": packed.positions,
        }
    with _only(head, packed.foretold):
        logits = model(input_ids=packed.ids, use_cache=False, **more).logits
    logits = logits.view(len(packed.tokens), -1).float()
    chosen = logits.gather(-1, packed.tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return chosen.new_zeros(len(packed.rows)).index_add(0, packed.owner, chosen)
