"""Owns the drawing of responses: batched, from given uniform numbers, with the log-probabilities of what was drawn.

Faster than a general ``generate``: a prompt is read once for all its responses, the adapter is merged into the weights,
the key-value memory is laid out once, finished rows leave the batch, and a token is drawn by one pass over the logits.
Every row has its own uniform numbers, so which rows share a batch does not matter.  A model that this is wrong for
draws by the library's ``generate``, from the same numbers (``llm_loop.agreement`` decides).  Knows nothing of rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.models import Drawing, Policy, Row
from llm_loop.passes import OPENING, shared_tokens, windows

GROUPED = "grouped"
"""Name under which transformers knows the attention below."""


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend with one new token per row: plain products over the key-value heads, ``(b, h, 1, d)`` to ``(b, 1, h, d)``.

    The fused kernel is made for long queries and takes five times as long here on a CPU; it still reads the prompts.
    """
    rows, heads, length, size = query.shape
    if length != 1 or query.device.type != "cpu":
        out, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **more)
        return out, None
    scale = size**-0.5 if scaling is None else scaling
    scores = (query.view(rows, key.shape[1], -1, size) * scale) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).view(rows, 1, heads, size), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def _grouped(model: Any) -> Iterator[None]:
    """Let a model attend by ``grouped_attention``."""
    before = model.config._attn_implementation
    model.config._attn_implementation = GROUPED
    try:
        yield
    finally:
        model.config._attn_implementation = before


@contextmanager
def _products(policy: Policy) -> Iterator[None]:
    """Let a model in float32 on a CPU multiply by oneDNN, without gradients: up to 1.6 times the speed of ``mm``.

    The operator is the one that torch's compiler calls; where a torch has none, products stay as they are, and so do
    layers whose ``forward`` somebody has replaced.
    """
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    usable = operator is not None and policy.device.type == "cpu"
    modules = [
        module
        for module in policy.model.modules()
        if usable
        and type(module) is nn.Linear
        and module.weight.dtype == torch.float32
        and "forward" not in vars(module)
    ]
    for module in modules:
        module.forward = partial(_product, operator, module.weight, module.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _product(operator: Any, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out: Tensor = operator(x, weight, bias, "none", [], "")
    return out


BLOCK = 256
"""Tokens of the vocabulary that are summed up together when a token is drawn."""


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn: ``π^{1/temperature}`` over the whole vocabulary, at most ``tokens`` tokens."""

    tokens: int = 20
    """longest response"""
    temperature: Annotated[float, tyro.conf.arg(name="sampling-temperature")] = 1.0
    rows: Annotated[int, tyro.conf.arg(name="sampling-rows")] = 128
    """responses drawn side by side"""

    def __post_init__(self) -> None:
        for option, count in (("--tokens", self.tokens), ("--sampling-rows", self.rows)):
            if count < 1:
                raise InputError(f"{option} must be at least 1, got {count}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"--sampling-temperature must be positive and finite, got {self.temperature}")


def draw(
    logits: Float[Tensor, "n v"],
    uniform: Float[Tensor, " n"],
    temperature: float = 1.0,
    drawable: Bool[Tensor, " v"] | None = None,
) -> tuple[Int64[Tensor, " n"], Float[Tensor, " n"]]:
    """Draw one token per row by inversion of the distribution function; return it and its log-probability in nats.

    Token ``k`` is drawn where ``F(k-1) <= u < F(k)``, ``F`` the distribution function of
    ``softmax(logits/temperature)``, given that the token is one of ``drawable``, summed in blocks so that the
    vocabulary is passed once.  The log-probability is that of ``softmax(logits)``.
    """
    shown = logits if drawable is None else logits.masked_fill(~drawable, -torch.inf)
    top = shown.max(-1, keepdim=True).values
    mass = (shown - top).exp_() if temperature == 1 else ((shown - top) / temperature).exp_()
    if short := -mass.shape[-1] % BLOCK:
        mass = torch.nn.functional.pad(mass, (0, short))
    blocks = mass.unflatten(-1, (-1, BLOCK))
    steps = blocks.sum(-1).double().cumsum(-1)
    goal = uniform.double().unsqueeze(-1) * steps[:, -1:]
    block = (steps <= goal).sum(-1, keepdim=True).clamp(max=steps.shape[-1] - 1)
    goal = goal - torch.where(block > 0, steps.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.take_along_dim(block[..., None], 1).squeeze(1).double().cumsum(-1)
    # Rounding of the block sums must not carry the goal past the block's last token of positive probability.
    goal = torch.minimum(goal, inside[:, -1:] * (1 - 1e-12))
    token = block.squeeze(-1) * BLOCK + (inside > goal).int().argmax(-1)
    whole = temperature == 1 and drawable is None
    total = steps[:, -1].log() if whole else (logits - top).exp().sum(-1).double().log()
    return token, (logits.gather(-1, token[:, None]) - top).squeeze(-1).double() - total


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    responses: int,
    decoding: Decoding,
    key: Key,
    stage: str,
    states: dict[Row, Tensor] | None = None,
) -> tuple[list[Row], Float[Tensor, " n"]]:
    """Return ``responses`` rows for every prompt, prompt by prompt, and ``log π_θ(y|x)`` of each in nats.

    A response ends with one of the policy's end tokens, or is cut at ``decoding.tokens``.  ``states`` is given, where
    it is seen on the way, what the layers below the adapter make of a row, ``(tokens, width)``; of its last token,
    which foretells nothing, zeros.  Its last digits depend on which rows share a batch.  Raises ``InputError`` if
    a response may be longer than the model's context, or if the model's logits are not finite numbers.
    """
    policy.check_context(max(map(len, prompts)), decoding.tokens)
    uniforms = key.uniform(len(prompts) * responses, decoding.tokens).to(policy.device)
    rows: list[Row | None] = [None] * (len(prompts) * responses)
    log_probs = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts of like length need little padding
    size = max(1, decoding.rows // responses)
    grouped = _grouped(policy.model.get_base_model()) if policy.route.drawing == "grouped" else nullcontext()
    library = policy.route.drawing.startswith("generate")
    with policy.merged(), grouped, _products(policy):
        for part in _parts(order, [len(prompt) for prompt in prompts], size, policy.route.drawing):
            places = torch.tensor([i * responses + k for i in part for k in range(responses)])
            read, own = [prompts[i] for i in part], uniforms[places.to(policy.device)]
            opening = 0 if library else _opening(policy, read, decoding.tokens)
            with policy.meter.stage(stage):
                seen = None if library or states is None or not policy.trunk.there else _Seen(opening)
                if library:
                    tokens, lengths, logs = _generate(policy, read, responses, decoding, own)
                else:
                    with nullcontext() if seen is None else policy.trunk.watched(seen.passes):
                        tokens, lengths, logs = _decode(policy, read, responses, decoding, own, opening, seen)
            if not bool(logs.isfinite().all()):
                half = next(policy.head.parameters()).dtype != torch.float32
                what = "try --dtype float32" if half else "if it was trained, that diverged: lower the learning rate"
                raise InputError(f"the model gives log-probabilities that are not finite numbers; {what}")
            log_probs[places] = logs
            drawn = [
                Row(prompts[place // responses], tuple(row[:length]))
                for place, row, length in zip(places.tolist(), tokens.tolist(), lengths.tolist(), strict=True)
            ]
            for place, row in zip(places.tolist(), drawn, strict=True):
                rows[place] = row
            if seen is not None and states is not None:
                states |= zip(drawn, seen.of(drawn, responses), strict=True)
            policy.meter.tokens[stage] += _read(policy.route.drawing, list(map(len, read)), opening, lengths)
    return [row for row in rows if row is not None], log_probs


def beside_reference(
    policy: Policy, prompts: Sequence[tuple[int, ...]], decoding: Decoding, key: Key, stage: str
) -> tuple[list[Row], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return a response drawn to every prompt, its ``log π_θ(y|x)``, and its ``log π_ref(y|x)``, in nats.

    The layers below the adapter are the reference's too, so what they made of the tokens in drawing is not made again.
    """
    states: dict[Row, Tensor] = {}
    rows, logs = sample(policy, prompts, 1, decoding, key, stage, states)
    with policy.reference():
        return rows, logs, policy.log_probs(rows, stage, states)


def _parts(order: Sequence[int], lengths: Sequence[int], size: int, drawing: Drawing) -> Iterator[list[int]]:
    """Yield the prompts that are read side by side: at most ``size``, all of one length where padding is not borne."""
    alike = drawing in ("generate-alike", "generate-uncached")
    for _, group in groupby(order, key=lambda i: lengths[i] if alike else 0):
        same = list(group)
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _read(drawing: Drawing, prompts: Sequence[int], opening: int, lengths: Tensor) -> int:
    """Return how many tokens went through the model, given the lengths of prompts, opening and responses."""
    drawn = int(lengths.sum()) - len(lengths)
    if not drawing.startswith("generate"):
        return sum(prompts) - opening * (len(prompts) - 1) + drawn
    starts = torch.tensor(prompts).repeat_interleave(len(lengths) // len(prompts))
    if drawing == "generate-uncached":  # T passes over a prompt of P read P, P + 1, ..., P + T - 1 tokens
        return int((lengths * starts + lengths * (lengths - 1) // 2).sum())
    return int(starts.sum()) + drawn


def _opening(policy: Policy, prompts: Sequence[tuple[int, ...]], tokens: int) -> int:
    """Return how many tokens, shared by prompts that are read side by side, are read once for all.

    What follows is padded on its left, so behind the opening; a layer that looks back over a window would count that.
    """
    shared = shared_tokens(prompts)
    reach = [w for w in (windows(policy.model.config.get_text_config()) or {}).values() if w is not None]
    within = max(map(len, prompts)) + tokens <= min(reach, default=math.inf)
    return shared if len(prompts) > 1 and shared >= OPENING and within else 0


class _Inversion(LogitsProcessor):
    """Draws every row's token itself and leaves ``generate`` no other choice, so that its randomness is an argument."""

    def __init__(self, policy: Policy, uniforms: Tensor, temperature: float, start: int) -> None:
        self.policy, self.uniforms, self.temperature, self.start = policy, uniforms, temperature, start
        self.logs = torch.zeros(uniforms.shape, dtype=torch.float64, device=uniforms.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.start
        token, self.logs[:, step] = draw(scores.float(), self.uniforms[:, step], self.temperature, self.policy.drawable)
        return torch.full_like(scores, -torch.inf).scatter(-1, token[:, None], 0.0)


def _generate(
    policy: Policy, prompts: Sequence[tuple[int, ...]], responses: int, decoding: Decoding, uniforms: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one batch as ``_decode`` does, by the library's ``generate`` with the model's own attention and memory."""
    model = policy.model.get_base_model()
    longest, limit, n = max(map(len, prompts)), decoding.tokens, len(prompts) * responses
    ids, mask = _left(policy, prompts)
    inversion = _Inversion(policy, uniforms, decoding.temperature, longest)
    settings = GenerationConfig(
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=list(policy.ends),
        pad_token_id=policy.pad,
        use_cache=policy.route.drawing != "generate-uncached",
    )
    before, model.generation_config = model.generation_config, settings  # the model's own would fill in the rest
    try:
        out = model.generate(
            input_ids=ids.repeat_interleave(responses, 0),
            attention_mask=mask.repeat_interleave(responses, 0),
            generation_config=settings,
            logits_processor=LogitsProcessorList([inversion]),
        )
    finally:
        model.generation_config = before
    tokens = torch.full((n, limit), policy.pad)
    tokens[:, : out.shape[1] - longest] = out[:, longest:].cpu()
    ended = torch.isin(tokens, policy.stops.cpu())
    lengths = torch.where(ended.any(-1), ended.int().argmax(-1) + 1, out.shape[1] - longest)
    within = torch.arange(limit) < lengths[:, None]
    return tokens, lengths, torch.where(within, inversion.logs.cpu(), 0.0).sum(-1)


def _left(policy: Policy, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Return prompts padded on the left, ``(n, T)``, and where they are (1, else 0)."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), policy.pad)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids.to(policy.device), mask.to(policy.device)


@dataclass(eq=False)
class _Seen:
    """What entered the lowest adapted layer while a batch was drawn."""

    opening: int
    """tokens that the first pass read once for all prompts; 0: there was no such pass"""
    passes: list[Float[Tensor, "_ _ d"]] = field(default_factory=list)
    """of the opening, if any; of the prompts, padded on the left; then of a token of every row not yet dropped"""
    alive: list[Int64[Tensor, " _"]] = field(default_factory=list)
    """of each such token, the rows"""

    def of(self, rows: Sequence[Row], responses: int) -> list[Float[Tensor, "_ d"]]:
        """Return the states of the rows that were drawn, zeros at their last tokens."""
        prompts, *steps = self.passes[1:] if self.opening else self.passes
        out = [prompts.new_zeros(row.tokens, prompts.shape[-1]) for row in rows]
        for i, (row, own) in enumerate(zip(rows, out, strict=True)):
            rest = len(row.prompt) - self.opening
            if self.opening:
                own[: self.opening] = self.passes[0][0]
            own[self.opening : len(row.prompt)] = prompts[i // responses, prompts.shape[1] - rest :]
        for step, (states, alive) in enumerate(zip(steps, self.alive, strict=True)):
            for i, state in zip(alive.tolist(), states[:, 0], strict=True):
                if step < len(rows[i].response) - 1:
                    out[i][len(rows[i].prompt) + step] = state
        return out


def _decode(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    responses: int,
    decoding: Decoding,
    uniforms: Tensor,
    opening: int,
    seen: _Seen | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one batch: tokens ``(n, T)``, lengths and log-probabilities, on the CPU; ``seen`` is told the rows drawn."""
    model, device = policy.model.get_base_model(), policy.device
    limit = decoding.tokens
    ids, read = _left(policy, [prompt[opening:] for prompt in prompts])
    longest = opening + ids.shape[1]
    cache = StaticCache(config=model.config, max_cache_len=longest + limit)
    if opening:  # read once, and its memory copied
        first = torch.tensor([prompts[0][:opening]], device=device)
        model(input_ids=first, cache=cache, use_cache=True, logits_to_keep=1)
        cache.reorder_cache(torch.zeros(len(prompts), dtype=torch.int64, device=device))
        read = torch.nn.functional.pad(read, (opening, 0), value=1)
    mask = torch.nn.functional.pad(read, (0, limit), value=1)
    places = (read.cumsum(-1) - 1).clamp(min=0)
    last = torch.tensor([ids.shape[1] - 1], device=device)  # as an index: a slice would make the product over it slow
    logits = (
        model(
            input_ids=ids,
            attention_mask=read,
            position_ids=places[:, opening:],
            cache=cache,
            use_cache=True,
            logits_to_keep=last,
        )
        .logits[:, -1]
        .float()
    )
    n = len(prompts) * responses
    copies = torch.arange(len(prompts), device=device).repeat_interleave(responses)
    cache.reorder_cache(copies)
    logits, mask, place = logits[copies], mask[copies], places[copies, -1]
    tokens = torch.full((n, limit), policy.pad)
    lengths, logs = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.float64)
    alive = torch.arange(n, device=device)
    going = torch.ones(n, dtype=torch.bool, device=device)
    for step in range(limit):
        token, log_prob = draw(logits, uniforms[alive, step], decoding.temperature, policy.drawable)
        now = alive[going].cpu()
        tokens[now, step] = token[going].cpu()
        lengths[now] += 1
        logs[now] += log_prob[going].cpu()
        going = going & ~torch.isin(token, policy.stops)
        left = int(going.sum())
        if step == limit - 1 or left == 0:
            break
        if left <= 0.8 * len(going):  # dropping rows copies the memory: worth it when enough have finished
            kept = going.nonzero().squeeze(-1)
            cache.reorder_cache(kept)
            alive, mask, place, token, going = alive[kept], mask[kept], place[kept], token[kept], going[kept]
        place = place + 1
        if seen is not None:
            seen.alive.append(alive)
        logits = (
            model(
                input_ids=token[:, None],
                attention_mask=mask[:, : longest + step + 1],
                position_ids=place[:, None],
                cache=cache,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )
    return tokens, lengths, logs
