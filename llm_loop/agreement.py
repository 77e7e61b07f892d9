"""Owns the check that a policy draws, scores and differentiates as the model's own plain forward pass does.

The fast ways rest on what most families share: a causal mask, positions that start at a row's first token, one kind of
key-value memory, scaled dot products.  No list of names says who does; this comparison decides, before a run.  A model
that disagrees takes slower ways (``llm_loop.models.Route``), and one that agrees in none of them is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.gradients import Gradients
from llm_loop.models import DRAWINGS, Policy, Route, Row
from llm_loop.passes import OPENING
from llm_loop.sampling import Decoding, sample

TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.2, 0.2)}
"""By the weights' precision: nats a token that log π(y|x) may be off, and the relative error of a gradient."""
TOKENS = 8
"""of a response that is compared"""
STAGE = "check"
"""what the seconds of the comparison are counted under; its tokens are no round's"""


_FOUND: dict[tuple[object, ...], Route] = {}
"""what was found in this process: the cells of a run load one model again and again"""


def settle(policy: Policy, longest: int, tokens: int) -> Route:
    """Give a policy the fastest ways that agree with its model's plain forward pass, and return them.

    Compared on responses to a few prompts of random tokens, of unlike lengths up to ``longest`` (and past a sliding
    window, if a run of ``longest + tokens`` tokens gets there), and to two that begin alike, at an adapter of random
    numbers, the same wherever the policy's own begins: log π(y|x) of what is drawn and of what is scored in company,
    and LoRA's gradients.  What was found is not sought again in one process for the same weights.  Raises
    ``InputError`` for a model whose draws agree in no way, whose plain pass fails, or whose context is shorter than
    ``longest + tokens``.
    """
    policy.check_context(longest, tokens)
    prompts, decoding = _prompts(policy, longest, Key(0)), Decoding(min(tokens, TOKENS))
    asked = (*_contents(policy), tuple(map(tuple, prompts)), decoding)
    if asked not in _FOUND:
        with policy.meter.stage(STAGE):  # the model's own plain passes are no other stage's
            _FOUND[asked] = _compared(policy, prompts, decoding, Key(0))
    policy.route = _FOUND[asked]
    return policy.route


def _contents(policy: Policy) -> tuple[object, ...]:
    """Return what tells models, and what computes with them, apart: frozen weights by their sums."""
    weights = (
        (name, value.dtype, float(value.detach().sum(dtype=torch.float64)))
        for name, value in policy.model.named_parameters()
        if name not in policy.parameters
    )
    config, machine = policy.model.config.to_json_string(), (str(policy.device), torch.get_num_threads())
    return type(policy.model.get_base_model()), config, policy.adapter, policy.batch_tokens, *machine, *weights


def _compared(policy: Policy, prompts: Sequence[list[tuple[int, ...]]], decoding: Decoding, key: Key) -> Route:
    """Return the fastest ways that agree on responses to these prompts."""
    nats, share = TOLERANCE[next(policy.model.get_base_model().parameters()).dtype]
    with _moved(policy, key):
        told = ""
        for drawing in DRAWINGS:
            policy.route, states = Route(drawing, padded=False, shared=False, cached=False), dict[Row, Tensor]()
            try:
                drawn = [
                    sample(policy, part, 2, decoding, key.fold_in("draws", i), STAGE, states)
                    for i, part in enumerate(prompts)
                ]
            except Exception as error:  # a fast way may break in any manner on a model it is not made for
                told = told or f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
                continue
            rows, logs = [row for part, _ in drawn for row in part], torch.cat([part for _, part in drawn])
            plain = [_plain(policy, row) for row in rows]
            off = max(abs(float(p.sum() - log)) / len(p) for p, log in zip(plain, logs, strict=True))
            if off <= nats:
                break
            told = f"log-probabilities of drawn responses are off by {off:.2g} nats a token"
        else:
            raise InputError(f"the model cannot be used: {told}, against its own plain forward pass")
        policy.route = replace(policy.route, padded=_padding_agrees(policy, rows, plain, nats))
        shared = policy.route.padded and _sharing_agrees(policy, rows, plain, nats)
        fused = shared and _sharing_agrees(policy, rows, plain, nats, fused=True)
        cached = shared and (not policy.trunk.there or _states_agree(policy, rows, plain, nats, states))
        want = _gradients(policy, rows[-1:-4:-2], key)
        best = replace(policy.route, hooked=True, cached=cached, shared=shared, fused=fused)
        for route in (
            best,
            replace(best, fused=False),
            replace(best, fused=False, cached=False),
            replace(best, fused=False, cached=False, shared=False),
        ):
            policy.route = route
            if _hooks_agree(policy, rows[-1:-4:-2], want, share, key):
                break
        else:
            policy.route = replace(best, hooked=False)
    policy.trunk.forget()
    for stage in (STAGE, "below"):
        policy.meter.tokens.pop(stage, None)
    policy.meter.seconds[STAGE] += policy.meter.seconds.pop("below", 0.0)
    return policy.route


def _prompts(policy: Policy, longest: int, key: Key) -> list[list[tuple[int, ...]]]:
    """Return prompts of ordinary tokens, drawn at random: two of unlike lengths that begin alike, and some that do not.

    The two are left out where a prompt cannot be long enough to share an opening.
    """
    text = policy.model.config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size")]
    reach = max([24, *(w + 2 for w in windows if isinstance(w, int) and w <= longest)])
    special = set(policy.tokenizer.all_special_ids)
    ordinary = sorted(set(policy.tokenizer.get_vocab().values()) - special - set(policy.ends))
    (generator,) = key.fold_in("prompts").generators()

    def some(length: int) -> tuple[int, ...]:
        return tuple(ordinary[i] for i in generator.integers(len(ordinary), size=length))

    alone = [some(length) for length in sorted({min(longest, length) for length in (1, 7, reach)})]
    opening = alone[-1][: longest - 4]
    return [[(*opening, *some(1)), (*opening, *some(4))], alone] if len(opening) >= OPENING else [alone]


@contextmanager
def _moved(policy: Policy, key: Key) -> Iterator[None]:
    """Work at an adapter whose every matrix counts: at the start B = 0, which hides half of what is compared.

    It does not depend on that start, so that all cells of a run take the same ways.
    """
    named = enumerate(policy.parameters.items())
    with policy.at({n: 0.03 * key.fold_in("adapter", i).normal(*p.shape).to(p.dtype) for i, (n, p) in named}):
        yield


@torch.no_grad()
def _plain(policy: Policy, row: Row) -> Float[Tensor, " t"]:
    """Return ``log π(y_t | x, y_<t)`` of one row by the model's plain forward pass: nothing padded, nothing kept."""
    ids = torch.tensor([row.prompt + row.response], device=policy.device)
    try:
        logits = policy.model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1].double()
    except Exception as error:  # whatever a foreign model raises
        reason = str(error).partition("\n")[0][:120]
        raise InputError(
            f"the model cannot be used: its forward pass fails ({type(error).__name__}: {reason})"
        ) from None
    return logits.log_softmax(-1).gather(-1, ids[0, len(row.prompt) :, None]).squeeze(-1).cpu()


def _padding_agrees(policy: Policy, rows: list[Row], plain: list[Tensor], nats: float) -> bool:
    """Whether rows of unlike length, side by side, have the log-probabilities of the plain pass, token by token."""
    try:
        with torch.no_grad():
            ids, inside = policy.padded(rows)
            policy.route = replace(policy.route, padded=True)
            logs = policy.token_log_probs(rows)
    except Exception:  # as above
        return False
    finally:
        policy.route = replace(policy.route, padded=False)
    found = logs[inside[:, ids.shape[1] - logs.shape[1] :]].double().cpu()
    return bool((found - torch.cat(plain)).abs().max() <= nats)


def _sharing_agrees(
    policy: Policy,
    rows: list[Row],
    plain: list[Tensor],
    nats: float,
    cached: bool = False,
    fused: bool = False,
    once: Mapping[Row, Tensor] | None = None,
) -> bool:
    """Whether rows behind a prompt that is read once, two a prompt, have the log-probabilities of the plain pass."""
    before, policy.route = policy.route, replace(policy.route, shared=True, cached=cached, fused=fused)
    try:
        with torch.no_grad():
            found = policy.summed([rows[i : i + 2] for i in range(0, len(rows), 2)], once=once).double().cpu()
    except Exception:  # as above
        return False
    finally:
        policy.route = before
    off = (found - torch.stack([logs.sum() for logs in plain])).abs()
    return bool((off <= nats * torch.tensor([len(logs) for logs in plain])).all())


def _states_agree(
    policy: Policy, rows: list[Row], plain: list[Tensor], nats: float, seen: Mapping[Row, Tensor]
) -> bool:
    """Whether passes may begin at states: of rows alone, of rows that went through together, and seen in drawing."""
    alone = _sharing_agrees(policy, rows, plain, nats, cached=True)
    policy.trunk.forget()
    policy.together(rows)
    together = _sharing_agrees(policy, rows, plain, nats, cached=True)
    return alone and together and (not seen or _sharing_agrees(policy, rows, plain, nats, cached=True, once=seen))


def _gradients(policy: Policy, rows: list[Row], key: Key) -> Tensor:
    """Return gradients by autograd, row by row, by the slowest way; ``InputError`` if the model has none."""
    policy.route = replace(policy.route, hooked=False, cached=False, fused=False, shared=False)
    try:
        return Gradients(policy, 1.0, "shift", 1024, key)(rows, STAGE).values
    except Exception as error:  # as above
        reason = str(error).partition("\n")[0][:120]
        raise InputError(f"the model cannot be trained ({type(error).__name__}: {reason})") from None


def _hooks_agree(policy: Policy, rows: list[Row], want: Tensor, share: float, key: Key) -> bool:
    """Whether gradients of a batch, taken by hooks, are those of autograd; both through one sketch."""
    try:
        found = Gradients(policy, 1.0, "shift", 1024, key)(rows, STAGE).values
    except Exception:  # as above
        return False
    norms = torch.linalg.vector_norm(want, dim=-1)
    return bool((torch.linalg.vector_norm(found - want, dim=-1) <= share * norms).all() and (norms > 0).all())
