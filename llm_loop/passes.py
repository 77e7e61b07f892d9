"""Owns passes that do no more than they must: layers below the adapter run once a row, what rows share is read once.

What the layers below the lowest adapted one make of a row does not depend on θ, so it is computed once, kept, and put
in where that layer begins.  Responses to one prompt can stand behind it side by side, each blind to the others, and so
can prompts behind an opening that they share, such as a chat's system message; the output's product is made only where
a response token is foretold.  All of it is exact up to rounding;
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
    ``given(packed)`` lets a pass begin there.  States are kept up to ``limit`` bytes, the oldest dropped first.
    """

    def __init__(self, model: Any, limit: int = 2 << 30) -> None:
        """Find the layers of a model with its adapter; there may be none below, and then there is nothing to save."""
        self.limit, self._kept, self._bytes, self._tuple = limit, dict[Row, Tensor](), 0, False
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

    def keep(self, forward: Callable[[Tensor, DynamicCache], Any], row: Row, device: torch.device) -> int:
        """Compute a row's states; return how many tokens that took.  ``forward`` runs the model on ids behind a memory.

        A prompt goes through alone, once for the rows that follow each other, and every response behind its memory; so
        a row's states do not depend, to the last digit, on what else is computed.
        """
        spent = 0
        if self._prompt is None or self._prompt[0] != row.prompt:
            memory = DynamicCache()
            self._prompt = (row.prompt, memory, self._entering(forward, row.prompt, memory, device))
            spent += len(row.prompt)
        _, memory, before = self._prompt
        states = [before]
        if row.response:
            states.append(self._entering(forward, row.response, memory, device))
            memory.crop(-len(row.response))
        self._note(row, torch.cat(states))
        return spent + len(row.response)

    def _note(self, row: Row, states: Tensor) -> None:
        if row in self._kept:
            self._bytes -= self._kept.pop(row).nbytes
        self._kept[row] = states
        self._bytes += states.nbytes
        while self._bytes > self.limit and len(self._kept) > 1:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes

    def states(self, rows: Sequence[Row]) -> Float[Tensor, "t d"]:
        """Return the kept states of rows, one row's behind the other's."""
        return torch.cat([self._kept[row] for row in rows])

    def note(self, rows: Sequence[Row], states: Float[Tensor, "t d"]) -> None:
        """Keep states that ``states`` returned, as if they had been computed here."""
        for row, own in zip(rows, states.split([row.tokens for row in rows]), strict=True):
            self._note(row, own)

    def _entering(
        self, forward: Callable[[Tensor, DynamicCache], Any], ids: tuple[int, ...], memory: DynamicCache, device: Any
    ) -> Float[Tensor, "t d"]:
        """Return the hidden states of tokens behind a memory that enter the lowest adapted layer; the memory grows."""
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
                forward(torch.tensor([ids], device=device), memory)
        except _ReachedError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found[0].detach()[0].clone()

    def forget(self) -> None:
        """Drop all states."""
        self._kept.clear()
        self._bytes, self._prompt = 0, None

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
