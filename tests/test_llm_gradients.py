"""Per-response gradients against autograd one response at a time; sketches against their explicit matrices."""

from dataclasses import replace

import pytest
import torch
from tiny_models import rows_of, tiny

from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.core.sketches import SKETCHES, CountSketch, Rademacher, ShiftSketch
from llm_loop.config import PRESETS, Evaluation
from llm_loop.gradients import Gradients, embeddings
from llm_loop.models import TINY
from llm_loop.setup import Parts
from llm_loop.starts import look, told

BETA = 0.1


@pytest.fixture(params=TINY, scope="module")
def policy(request):
    return tiny(request.param)


def one_at_a_time(policy, rows):
    """``∇ β log π(y|x)`` by autograd, one unpadded row at a time, matrices in the model's order."""
    matrices = [m["default"].weight for layer in policy.layers for m in (layer.lora_A, layer.lora_B)]
    out = []
    for row in rows:
        ids = torch.tensor([row.prompt + row.response])
        logs = torch.log_softmax(policy.model(input_ids=ids).logits[0], -1)
        start = len(row.prompt)
        total = sum(logs[start + i - 1, token] for i, token in enumerate(row.response))
        out.append(torch.cat([g.flatten() for g in torch.autograd.grad(BETA * total, matrices)]))
    return torch.stack(out)


def relative(a, b):
    return float((torch.linalg.vector_norm(a - b, dim=-1) / torch.linalg.vector_norm(b, dim=-1)).max())


def test_features_are_the_gradients_of_a_batch_of_one(policy):
    rows = rows_of(policy)
    assert relative(Gradients(policy, BETA, "none", 0, Key(1))(rows).values, one_at_a_time(policy, rows)) < 1e-5


@pytest.mark.parametrize("kind", SKETCHES)
def test_alone_and_padded_features_are_the_same(policy, kind):
    rows = rows_of(policy)
    gradients = Gradients(policy, BETA, kind, 256, Key(1))
    alone = torch.cat([gradients([row]).values for row in rows])
    assert relative(gradients(rows).values, alone) < 1e-5


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_batches_change_no_feature(batch_tokens):
    policy = tiny("tiny-llama")
    rows = rows_of(policy) * 2
    one = Gradients(policy, BETA, "none", 0, Key(1))(rows).values
    assert relative(Gradients(policy, BETA, "none", 0, Key(1), batch_tokens)(rows).values, one) < 1e-5


@pytest.mark.slow
def test_sketches_are_their_explicit_maps(policy):
    rows, key = rows_of(policy), Key(4)
    exact = Gradients(policy, BETA, "none", 0, key)(rows)
    shapes = [tuple(m["default"].weight.shape) for layer in policy.layers for m in (layer.lora_A, layer.lora_B)]
    dim = sum(a * b for a, b in shapes)
    for kind, nonzeros in (("count", 1), ("sjlt", 4)):
        want = CountSketch.draw(dim, 96, key.fold_in("sketch"), nonzeros)(Dense(exact.values.double())).values
        assert relative(Gradients(policy, BETA, kind, 96, key)(rows).values, want) < 1e-5
    blocks = exact.values.double().split([a * b for a, b in shapes], -1)
    shifts = [
        ShiftSketch.draw(a * b, 96, key.fold_in("sketch").fold_in("matrix", i)) for i, (a, b) in enumerate(shapes)
    ]
    want = sum(shift(Dense(block)).values for shift, block in zip(shifts, blocks, strict=True))
    assert relative(Gradients(policy, BETA, "shift", 96, key)(rows).values, want) < 1e-5
    signs = [Rademacher.draw(a * b, 96, key.fold_in("sketch").fold_in("matrix", i)) for i, (a, b) in enumerate(shapes)]
    want = sum(sign(Dense(block)).values for sign, block in zip(signs, blocks, strict=True))
    assert relative(Gradients(policy, BETA, "rademacher", 96, key)(rows).values, want) < 1e-5
    rank, want = policy.adapter.rank, 0
    for i, (block, (a, b)) in enumerate(zip(blocks, shapes, strict=True)):
        side = Rademacher.draw(max(a, b), 96 // rank, key.fold_in("sketch").fold_in("matrix", i)).matrix
        gradient = block.unflatten(-1, (a, b))
        want = want + ((gradient if a == rank else gradient.mT) @ side).flatten(1)
    assert relative(Gradients(policy, BETA, "factored", 96, key)(rows).values, want) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SKETCHES)[1:])
def test_sketches_keep_inner_products_in_expectation(kind):
    """Mean over 300 independent sketches within 4.5 standard errors, on six products: a false alarm in 1e-4 runs."""
    policy = tiny("tiny-llama")
    rows = rows_of(policy)
    exact = Gradients(policy, BETA, "none", 0, Key(0))(rows).values.double()
    maps = [Gradients(policy, BETA, kind, 64, Key(seed)).map for seed in range(300)]
    shapes = [tuple(m["default"].weight.shape) for layer in policy.layers for m in (layer.lora_A, layer.lora_B)]
    blocks = exact.float().split([a * b for a, b in shapes], -1)
    draws = []
    for one in maps:
        out = torch.zeros(len(rows), one.size)
        for i, (block, shape) in enumerate(zip(blocks, shapes, strict=True)):
            one.add(out, i, block.unflatten(-1, shape))
        draws.append((out @ out.mT).double())
    stack, want = torch.stack(draws), exact @ exact.mT
    errors = (stack.mean(0) - want).abs() / (stack.std(0) / 300**0.5)
    assert float(errors.max()) < 4.5


def test_one_map_serves_all_rounds_and_another_seed_is_another_map():
    policy = tiny("tiny-llama")
    rows = rows_of(policy)
    one, two, other = (Gradients(policy, BETA, "count", 64, Key(s)) for s in (1, 1, 2))
    assert torch.equal(one(rows).values, two(rows).values)
    assert torch.equal(one(rows).values, one(rows).values)
    assert not torch.allclose(one(rows).values, other(rows).values)


def test_lora_begins_with_zero_gradients_of_a():
    policy = tiny("tiny-llama", moved=False)
    gradients = Gradients(policy, BETA, "none", 0, Key(1))
    assert gradients.with_zeros(rows_of(policy))[1].tolist() == [1, 1, 1]
    generator = torch.Generator().manual_seed(0)
    policy.restore({k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in policy.state().items()})
    assert gradients.with_zeros(rows_of(policy))[1].tolist() == [0, 0, 0]


def test_features_leave_no_trace_on_the_model():
    policy = tiny("tiny-llama")
    Gradients(policy, BETA, "count", 64, Key(1))(rows_of(policy))
    assert all(p.grad is None and p.requires_grad for p in policy.parameters.values())
    assert all(not m._forward_hooks for m in policy.model.modules())


def test_embeddings_are_means_of_last_hidden_states(policy):
    rows = rows_of(policy)
    got = embeddings(policy, rows).values
    for i, row in enumerate(rows):
        with torch.no_grad():
            out = policy.model(input_ids=torch.tensor([row.prompt + row.response]), output_hidden_states=True)
        want = out.hidden_states[-1][0, len(row.prompt) :].double().mean(0)
        assert relative(got[i], want) < 1e-5


def test_refusals():
    policy = tiny("tiny-llama")
    with pytest.raises(InputError, match="divisible by LoRA's rank"):
        Gradients(policy, BETA, "factored", 65, Key(0))
    with pytest.raises(InputError, match="sketch needs"):
        Gradients(policy, BETA, "count", 0, Key(0))
    with pytest.raises(InputError, match="β must be positive"):
        Gradients(policy, 0.0, "none", 0, Key(0))


@pytest.mark.slow
@pytest.mark.parametrize("pool", [0, 5])
def test_either_start_sees_the_first_pool_through_another_half_of_the_parameters(pool):
    """A pool that is drawn for the round, and one that is there before the first label."""
    alignment = replace(PRESETS["smoke"][1], pool=pool, evaluation=Evaluation(prompts=2, duels=1, probes=2))
    found, table = {}, None
    for init in ("b0", "a0"):
        start = replace(alignment, adapter=replace(alignment.adapter, init=init))
        found[init], table = look(start, Parts.of(start), table)
    assert (found["b0"].zero, found["a0"].zero) == (1.0, 0.0)
    assert found["b0"].widths.shape == found["a0"].widths.shape
    assert not torch.allclose(found["b0"].widths, found["a0"].widths)
    lines = told(found["b0"], found["a0"])
    assert lines[1] == "A-matrices without a gradient: 100% with B = 0, 0% with A = 0"
    assert told(found["b0"], found["b0"])[2:] == [
        "widths: rank correlation 1.00; their spread over their mean "
        + ", ".join(f"{float(found['b0'].widths.std() / found['b0'].widths.mean()):.2f} with {s} = 0" for s in "BA"),
        f"picks: 3 of 3 in common; {9 / len(found['b0'].widths):.1f} would be by chance",
    ]
