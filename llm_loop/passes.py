"""Owns passes that do no more than they must: layers below the adapter run once a row, what rows share is read once.

What the layers below the lowest adapted one make of a row does not depend on θ, so it is computed once, kept, and put
in where that layer begins.  Responses to one prompt can stand behind it side by side, each blind to the others, and so
can prompts behind an opening that they share, such as a chat's system message; the output's product is made only where
a response token is foretold, by parts of the vocabulary that stay in the cache until they are summed up.  All of it is
exact up to rounding; ``llm_loop.agreement`` compares it with the model's plain forward pass before a run relies on it.
Knows nothing of policies, rewards or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import DynamicCache


@dataclass(frozen=True)
class Row:
    """One item as token ids: a prompt and a response to it (with its end token, if it has ended)."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many tokens, prompt and response."""
        return len(self.prompt) + len(self.response)


BUNDLE = 320
"""Tokens of a sequence that several prompts share: attention, which sees them all, costs about a tenth of the rest."""
OPENING = 8
"""Tokens that prompts must have in common to stand in one sequence."""
PART = 2048
"""Tokens of the vocabulary whose logits are made and summed up together."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences of tokens, padded on the right to ``T`` tokens.

    A sequence is an opening, prompts that go on from it, and behind each prompt one or more responses to it.
    """

    ids: Int64[Tensor, "n T"]
    positions: Int64[Tensor, "n T"] | None
    """a response begins where its prompt ends, whatever stands between; None: as the model counts"""
    mask: Bool[Tensor, "n 1 T T"] | None
    """who sees whom: of the past, the opening, the own prompt and the own response; None: all of the past"""
    segments: tuple[tuple[int, int, int, int, int], ...]
    """(row, its first token, end, sequence, place there) of every stretch that stands in a sequence as in its row"""
    foretold: Int64[Tensor, "m 2"]
    """sequence and place of the state that foretells each response token, rows in order"""
    tokens: Int64[Tensor, " m"]
    """the response tokens"""
    owner: Int64[Tensor, " m"]
    """the row of each"""
    rows: tuple[Row, ...]


def shared_tokens(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return with how many tokens all prompts begin alike, each going on with one of its own at least."""
    first, last = min(prompts), max(prompts)  # of all in order, these two differ first
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(same, min(map(len, prompts)) - 1)


def bundles(groups: Sequence[Sequence[Row]]) -> list[tuple[int, list[int]]]:
    """Return which groups, each of rows with one prompt, stand in one sequence, and the length of their opening.

    Groups are taken in order: one joins the sequence before it if ``OPENING`` tokens or more are then shared by all,
    and at most ``BUNDLE`` tokens stand there.
    """
    out: list[tuple[int, list[int]]] = []
    for number in range(len(groups)):
        if out:
            members = [*out[-1][1], number]
            opening = shared_tokens([groups[k][0].prompt for k in members])
            if opening >= OPENING and opening + sum(read_once(groups[k]) - opening for k in members) <= BUNDLE:
                out[-1] = (opening, members)
                continue
        out.append((0, [number]))
    return out


def read_once(rows: Sequence[Row]) -> int:
    """Return how many tokens rows of one prompt have, the prompt counted once."""
    return len(rows[0].prompt) + sum(len(row.response) for row in rows)


def read(groups: Sequence[Sequence[Row]]) -> int:
    """Return how many tokens a pass over groups reads, padding not counted."""
    return sum(read_once(group) for group in groups) - sum(
        opening * (len(members) - 1) for opening, members in bundles(groups)
    )


def pack(
    groups: Sequence[Sequence[Row]], pad: int, device: torch.device | str = "cpu", bundled: bool = False
) -> Packed:
    """Return groups of rows, each of one prompt, as sequences, one a group or ``bundled``; rows keep their order."""
    parts = bundles(groups) if bundled else [(0, [number]) for number in range(len(groups))]
    lengths = [sum(read_once(groups[k]) - opening for k in members) + opening for opening, members in parts]
    longest, shared = max(lengths), any(len(group) > 1 for group in groups) or len(parts) < len(groups)
    ids = torch.full((len(parts), longest), pad)
    positions = torch.zeros(len(parts), longest, dtype=torch.int64)
    prompt_of = torch.full((len(parts), longest), -1)  # 0: the opening; else the prompt's number from 1
    response_of = torch.full((len(parts), longest), -1)  # 0: of no response; else the response's number from 1
    segments, foretold, owner = [], [], []
    tokens: list[int] = []
    rows: list[Row] = []
    for s, (opening, members) in enumerate(parts):
        first = groups[members[0]][0].prompt
        start = opening
        ids[s, :start] = torch.tensor(first[:start], dtype=torch.int64)
        positions[s, :start] = torch.arange(start)
        prompt_of[s, :start] = response_of[s, :start] = 0
        if opening:
            segments.append((len(rows), 0, opening, s, 0))
        for p, number in enumerate(members):
            group = groups[number]
            prompt = group[0].prompt
            end = start + len(prompt) - opening
            ids[s, start:end] = torch.tensor(prompt[opening:])
            positions[s, start:end] = torch.arange(opening, len(prompt))
            response_of[s, start:end] = 0
            segments.append((len(rows), opening, len(prompt), s, start))
            begun, last = start, end - 1
            for row in group:
                start, end = end, end + len(row.response)
                ids[s, start:end] = torch.tensor(row.response)
                positions[s, start:end] = torch.arange(len(prompt), row.tokens)
                response_of[s, start:end] = len(rows) + 1
                segments.append((len(rows), len(prompt), row.tokens, s, start))
                foretold += [(s, last), *((s, place) for place in range(start, end - 1))]
                tokens += row.response
                owner += [len(rows)] * len(row.response)
                rows.append(row)
            prompt_of[s, begun:end] = p + 1
            start = end
    mask = None
    if shared:
        place = torch.arange(longest)
        own = prompt_of[:, None, :] == prompt_of[:, :, None]
        seen = (prompt_of[:, None, :] == 0) | (own & (response_of[:, None, :] == 0))
        seen |= (response_of[:, None, :] == response_of[:, :, None]) & own
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

    ``keep(row)`` computes and keeps the hidden states that enter the lowest adapted layer, ``(tokens, width)`` a row;
    ``given(packed)`` lets a pass begin there.  ``shrink`` drops the oldest states beyond ``limit`` bytes.  To the
    last digit, those of a row depend on the rows that ``together`` put it with, and on nothing else that is computed.
    """

    def __init__(self, model: Any, limit: int = 2 << 30) -> None:
        """Find the layers of a model with its adapter; there may be none below, and then there is nothing to save."""
        self.limit, self._kept, self._bytes, self._tuple = limit, dict[Row, Tensor](), 0, False
        self._groups: dict[Row, tuple[Row, ...]] = {}
        self._prompt: tuple[tuple[int, ...], DynamicCache, Tensor] | None = None
        """the last prompt, with its key-value memory and its states"""
        layers = _below(model)
        self.below, self.entry = layers[:-1], layers[-1] if layers else None

    @property
    def there(self) -> bool:
        """Whether there are layers below."""
        return bool(self.below)

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows, each once, whose states are not kept."""
        return [row for row in dict.fromkeys(rows) if row not in self._kept]

    def together(self, rows: Sequence[Row]) -> None:
        """Let rows of one prompt go through side by side whenever one of them does, in parts of ``BUNDLE`` tokens.

        A row stays with those it was first put with; what was made of it alone is forgotten.
        """
        parts: list[list[Row]] = [[]]
        for row in dict.fromkeys(rows):
            if row not in self._groups:
                if parts[-1] and read_once([*parts[-1], row]) > BUNDLE:
                    parts.append([])
                parts[-1].append(row)
        for part in parts:
            self._groups |= dict.fromkeys(part, tuple(part))
            if len(part) > 1:
                for row in part:
                    self._drop(row)

    def keep(self, forward: Callable[..., Any], row: Row, device: torch.device) -> int:
        """Compute a row's states where they are not kept; return how many tokens that took.

        ``forward(ids, memory)`` runs the model on tokens behind a key-value memory, ``forward(packed)`` on sequences.
        A row goes through with those it was put with.  Alone, its prompt goes first, once for the rows that follow
        each other, and its response behind the prompt's memory.
        """
        if row in self._kept:
            return 0
        group = self._groups.get(row, (row,))
        if len(group) > 1:
            found = self._entering(forward, pack([group], 0, device))
            prompt, *responses = found.split([len(row.prompt), *(len(other.response) for other in group)])
            for other, states in zip(group, responses, strict=True):
                self._note(other, torch.cat([prompt, states]))
            return read_once(group)
        spent = 0
        if self._prompt is None or self._prompt[0] != row.prompt:
            memory = DynamicCache()
            self._prompt = (row.prompt, memory, self._entering(forward, _ids(row.prompt, device), memory))
            spent += len(row.prompt)
        _, memory, before = self._prompt
        states = [before]
        if row.response:
            states.append(self._entering(forward, _ids(row.response, device), memory))
            memory.crop(-len(row.response))
        self._note(row, torch.cat(states))
        return spent + len(row.response)

    def _drop(self, row: Row) -> None:
        if row in self._kept:
            self._bytes -= self._kept.pop(row).nbytes

    def _note(self, row: Row, states: Tensor) -> None:
        self._drop(row)
        self._kept[row] = states
        self._bytes += states.nbytes

    def shrink(self, wanted: Sequence[Row]) -> None:
        """Drop the oldest states beyond ``limit``, but not those of the rows that are wanted now."""
        for row in (those := dict.fromkeys(wanted)):
            self._kept[row] = self._kept.pop(row)
        while self._bytes > self.limit and len(self._kept) > len(those):
            self._drop(next(iter(self._kept)))

    def states(self, rows: Sequence[Row]) -> Float[Tensor, "t d"]:
        """Return the kept states of rows, one row's behind the other's."""
        return torch.cat([self._kept[row] for row in rows])

    def note(self, rows: Sequence[Row], states: Float[Tensor, "t d"]) -> None:
        """Keep states that ``states`` returned, as if they had been computed here."""
        for row, own in zip(rows, states.split([row.tokens for row in rows]), strict=True):
            self._note(row, own)
        self.shrink(rows)

    def _entering(self, forward: Callable[..., Any], *what: Any) -> Float[Tensor, "t d"]:
        """Return the hidden states of one sequence that enter the lowest adapted layer when the model runs on it."""
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
                forward(*what)
        except _ReachedError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found[0].detach()[0].clone()

    def forget(self) -> None:
        """Drop all states, and which rows belong together."""
        self._kept.clear()
        self._groups.clear()
        self._bytes, self._prompt = 0, None

    @contextmanager
    def watched(self, found: list[Float[Tensor, "_ _ d"]]) -> Iterator[None]:
        """Add to a list, pass by pass, the hidden states that enter the lowest adapted layer."""

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])

        assert self.entry is not None
        hook = self.entry.register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def given(self, packed: Packed, once: Mapping[Row, Tensor] | None = None) -> Iterator[Float[Tensor, "n T d"]]:
        """Let the layers below pass on what they get, and the lowest adapted one begin at kept states; yield those.

        ``once`` has the states in place of the kept ones.
        """
        assert self.entry is not None
        states = [(self._kept if once is None else once)[row] for row in packed.rows]
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


def _ids(tokens: tuple[int, ...], device: torch.device) -> Int64[Tensor, "1 t"]:
    return torch.tensor([tokens], device=device)


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
def _only(head: nn.Module, foretold: Tensor, untouched: bool) -> Iterator[None]:
    """Let the output's product be made for some hidden states alone: ``(1, m, width)``, not ``(n, T, width)``.

    ``untouched`` leaves the product out, so that a model returns these states for logits.
    """

    def pick(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][foretold[:, 0], foretold[:, 1]].unsqueeze(0), *args[1:])

    hook = head.register_forward_pre_hook(pick)
    if untouched:
        head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        hook.remove()
        if untouched:
            del head.forward  # the class's own is seen again


class _Normaliser(torch.autograd.Function):
    """``log Σ_k exp(w_k·h + b_k)`` of hidden states ``(m, width)``, by ``PART`` rows of the frozen ``w`` at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, differentiated: bool) -> Tensor:
        biases = repeat(None) if bias is None else bias.split(PART)
        parts, sums = [], []
        for w, b in zip(weight.split(PART), biases, strict=False):
            logits = nn.functional.linear(hidden, w, b).float()
            sums.append(logits.logsumexp(-1))
            if differentiated:
                parts.append(logits)
        total = torch.stack(sums).logsumexp(0)
        if differentiated:
            ctx.save_for_backward(weight, total, *parts)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        weight, total, *parts = ctx.saved_tensors
        out = signal.new_zeros(len(total), weight.shape[1])
        for w, logits in zip(weight.split(PART), parts, strict=True):
            share = (logits - total[:, None]).exp_().mul_(signal[:, None])
            out += share.to(w.dtype) @ w
        return out.to(weight.dtype), None, None, None


def _foretold(head: nn.Linear, hidden: Float[Tensor, "m d"], tokens: Int64[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Return ``log softmax(W h + b)`` at one token a state; differentiable in the states."""
    own = (hidden.float() * head.weight[tokens].float()).sum(-1)
    if head.bias is not None:
        own = own + head.bias[tokens].float()
    differentiated = hidden.requires_grad and torch.is_grad_enabled()
    normaliser: Tensor = _Normaliser.apply(hidden, head.weight, head.bias, differentiated)  # type: ignore[no-untyped-call]
    return own - normaliser


def windows(config: Any) -> dict[str, int | None] | None:
    """Return how far each kind of layer looks back (None: all the way), for models that want a mask for each kind."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return None
    return {kind: config.sliding_window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def placed(packed: Packed, reach: dict[str, int | None] | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a model is told of sequences beside their ids: positions, and masks as it adds them to its scores.

    One mask, or one for each kind of its layers (``reach`` is what ``windows`` says of the model); nothing where each
    token sees all of the past.
    """
    if packed.mask is None or packed.positions is None:
        return {}
    back = (packed.positions[:, :, None] - packed.positions[:, None, :])[:, None]
    seen = {k: packed.mask if w is None else packed.mask & (back < w) for k, w in (reach or {"": None}).items()}
    masks = {k: torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype) for k, mask in seen.items()}
    return {"attention_mask": masks if reach else masks[""], "position_ids": packed.positions}


def log_probs(
    model: Any, head: nn.Module, packed: Packed, reach: dict[str, int | None] | None = None, fused: bool = True
) -> Float[Tensor, " n"]:
    """Return ``log π(y|x)`` of every row, nats, summed over its tokens; differentiable.

    ``reach`` is what ``windows`` says of the model.  ``fused`` makes logits and their normaliser by parts, which is
    right for a model that returns what its output layer gives, unaltered.
    """
    fused = fused and type(head) is nn.Linear and "forward" not in vars(head)  # nobody has replaced it
    where = placed(packed, reach, next(head.parameters()).dtype)
    with _only(head, packed.foretold, fused):
        logits = model(input_ids=packed.ids, use_cache=False, **where).logits
    logits = logits.view(len(packed.tokens), -1)
    if fused:
        assert isinstance(head, nn.Linear)
        chosen = _foretold(head, logits, packed.tokens)
    else:
        logits = logits.float()
        chosen = logits.gather(-1, packed.tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return chosen.new_zeros(len(packed.rows)).index_add(0, packed.owner, chosen)
