"""Passes that begin above the frozen layers and read prompts once, against plain passes of one row at a time."""

import pytest
import torch
from tiny_models import TARGETS, rows_of

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop import passes
from llm_loop.gradients import Gradients, embeddings
from llm_loop.learner import Preference, Training, fit_dpo
from llm_loop.models import TINY, Adapter, Policy, Route, Row, byte_tokenizer, grouped, tiny_model
from llm_loop.passes import bundles, pack, read, read_once, shared_tokens, windows
from llm_loop.sampling import Decoding, sample

UNCACHED = Route(shared=False, cached=False)


def upper(name: str, layers: int = 1, moved: bool = True, init="b0") -> Policy:
    """A tiny policy of four layers, the uppermost of them adapted."""
    targets = TARGETS.get(name, ("q_proj", "v_proj", "o_proj"))
    policy = Policy(
        tiny_model(name, Key(0), layers=4), byte_tokenizer(), Adapter(4, 8.0, targets, layers, init), Key(0)
    )
    if moved:
        generator = torch.Generator().manual_seed(0)
        policy.restore({k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in policy.state().items()})
    return policy


@pytest.fixture(params=TINY)
def policy(request):
    return upper(request.param)


def pairs_of(policy):
    """Two or three responses of unequal length to each of three prompts, longer than a sliding window of 16."""
    prompts = [row.prompt for row in rows_of(policy)]
    return [
        [Row(p, tuple(range(10 + i + 7 * k, 16 + 3 * i + 9 * k))) for k in range(3 - i % 2)]
        for i, p in enumerate(prompts)
    ]


def opened(policy):
    """The same behind an opening that all prompts share, so that they stand in one sequence."""
    opening = tuple(range(30, 50))
    return [[Row(opening + row.prompt, row.response) for row in group] for group in pairs_of(policy)]


def plain(policy, row):
    """``log π(y|x)`` by the model's plain forward pass on this row alone, in float64."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([row.prompt + row.response])).logits[0].double()
    logs = torch.log_softmax(logits, -1)
    return sum(float(logs[len(row.prompt) - 1 + i, token]) for i, token in enumerate(row.response))


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 0])
def test_only_the_uppermost_layers_are_adapted(layers):
    policy = upper("tiny-llama", layers)
    numbers = {int(name.split("layers.")[1].split(".")[0]) for name in policy.parameters}
    assert numbers == set(range(4 - (layers or 4), 4))
    assert len(policy.trunk.below) == 4 - (layers or 4)


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(InputError, match="the model has 4 layers"):
        upper("tiny-llama", 5)


@pytest.mark.slow
@pytest.mark.parametrize("groups_of", [pairs_of, opened])
def test_log_probabilities_above_kept_states_are_the_plain_ones(policy, groups_of):
    groups = groups_of(policy)
    rows = [row for group in groups for row in group]
    want = torch.tensor([plain(policy, row) for row in rows], dtype=torch.float64)
    for route in (Route(cached=False), Route()):
        policy.route = route
        single = policy.summed([[row] for row in rows]).double()
        assert torch.allclose(single, want, atol=2e-5)
        assert torch.allclose(policy.summed(groups).double(), want, atol=2e-5)
        assert torch.allclose(policy.log_probs(rows, "test"), want, atol=2e-5)
    policy.route = Route()


def test_states_stay_right_when_theta_moves_and_under_the_reference(policy):
    policy.route, rows = Route(), rows_of(policy)
    policy.log_probs(rows, "test")
    with policy.at({name: -2 * value for name, value in policy.state().items()}):
        assert policy.log_probs(rows, "test").tolist() == pytest.approx([plain(policy, r) for r in rows], abs=2e-5)
        with policy.reference():
            assert policy.log_probs(rows, "test").tolist() == pytest.approx([plain(policy, r) for r in rows], abs=2e-5)


def test_rows_go_through_the_layers_below_once(policy):
    policy.trunk.forget()
    calls = []
    hook = (
        policy.trunk.below[0].self_attn if hasattr(policy.trunk.below[0], "self_attn") else policy.trunk.below[0].attn
    )
    handle = hook.register_forward_hook(lambda *a: calls.append(1))
    policy.route = Route()
    for _ in range(3):
        policy.log_probs(rows_of(policy), "test")
        Gradients(policy, 0.1, "none", 0, Key(1))(rows_of(policy))
    handle.remove()
    rows = rows_of(policy)
    assert len(calls) == len(rows) + len({row.prompt for row in rows})  # one a response and one a prompt
    assert all("forward" not in vars(layer) for layer in policy.trunk.below)


@pytest.mark.slow
def test_features_above_kept_states_are_those_of_whole_passes(policy):
    rows = rows_of(policy) * 2
    found = []
    for route in (UNCACHED, Route(cached=False), Route()):
        policy.route = route
        found.append((Gradients(policy, 0.1, "none", 0, Key(1))(rows).values, embeddings(policy, rows).values))
    policy.route = Route(shared=False, cached=False, hooked=False)
    by_autograd = Gradients(policy, 0.1, "none", 0, Key(1))(rows).values
    policy.route = Route()
    for gradients, hidden in found:
        assert torch.allclose(gradients, by_autograd, rtol=1e-4, atol=1e-6)
        assert torch.allclose(hidden, found[0][1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("groups_of", [pairs_of, opened])
@pytest.mark.parametrize("name", TINY)
def test_training_above_kept_states_takes_the_same_steps(name, groups_of):
    ends = []
    for route in (UNCACHED, Route()):
        policy = upper(name, moved=False)
        policy.route = UNCACHED
        groups = [group[:2] for group in groups_of(policy)]
        logs = [policy.log_probs(group, "score").tolist() for group in groups]
        policy.route = route
        preferences = [Preference(*group, *log) for group, log in zip(groups, logs, strict=True)]
        fit = fit_dpo(policy, preferences, Training(0.1, rate=1e-2, epochs=2, batch=2), Key(0))
        ends.append((fit, policy.state()))
    (one, before), (two, after) = ends
    assert one.last_loss == pytest.approx(two.last_loss, abs=1e-5)
    assert one.chosen == pytest.approx(two.chosen, abs=1e-3)
    assert all(torch.allclose(before[name], after[name], atol=2e-4) for name in before)


@pytest.mark.parametrize("tokens", [1, 1024])
def test_a_limit_on_memory_drops_the_oldest_and_changes_nothing(policy, tokens):
    policy.route, rows = Route(), rows_of(policy)
    want = policy.log_probs(rows, "test")
    policy.trunk.forget()
    policy.trunk.limit = 1
    policy.batch_tokens = tokens
    try:
        for some in (rows[:2], rows, rows[::-1]):  # in one pass some are kept and others new
            at = [rows.index(row) for row in some]
            assert torch.allclose(policy.log_probs(some, "test"), want[at], atol=2e-5)
    finally:
        policy.trunk.limit, policy.batch_tokens = 2 << 30, 1024


def test_groups_share_a_prompt_and_respect_the_limit():
    rows = [Row((1, 2, 3), (4,) * 5), Row((1, 2), (4,)), Row((1, 2, 3), (5,) * 5), Row((1, 2, 3), (6,) * 5)]
    assert grouped(rows, 13) == [[0, 2], [1], [3]]
    assert grouped(rows, 1) == [[0], [1], [2], [3]]
    assert read_once([rows[0], rows[2]]) == 13


def test_a_packed_response_sees_its_prompt_and_its_own_past_alone():
    packed = pack([[Row((1, 2), (3, 4)), Row((1, 2), (5,))], [Row((6,), (7,))]], 0)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 2]
    seen = packed.mask[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert packed.foretold.tolist() == [[0, 1], [0, 2], [0, 1], [1, 0]]
    assert packed.tokens.tolist() == [3, 4, 5, 7]
    assert packed.owner.tolist() == [0, 0, 1, 2]


def test_prompts_that_begin_alike_stand_in_one_sequence_blind_to_each_other():
    opening = tuple(range(10, 18))
    groups = [[Row((*opening, 1, 2), (3,)), Row((*opening, 1, 2), (4, 5))], [Row((*opening, 6), (7, 8))]]
    packed = pack(groups, 0, bundled=True)
    assert packed.ids.tolist() == [[*opening, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert packed.positions.tolist() == [[*range(10), 10, 10, 11, 8, 9, 10]]
    own = packed.mask[0, 0, 8:, 8:].int().tolist()  # prompt 1 (two tokens), its responses, prompt 2, its response
    assert own == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]
    assert bool(packed.mask[0, 0, 8:, :8].all())
    assert packed.foretold.tolist() == [[0, 9], [0, 9], [0, 11], [0, 13], [0, 14]]
    assert read(groups) == 16


def test_bundles_keep_to_their_size_and_to_what_is_shared():
    def group(opening, length):
        return [Row((*opening, 1000 + length), tuple(range(length)))]

    one, other = tuple(range(50)), tuple(range(100, 150))
    assert bundles([group(one, 100), group(one, 101), group(one, 102)]) == [(50, [0, 1]), (0, [2])]
    assert bundles([group(one, 5), group(other, 6), group(other, 7)]) == [(0, [0]), (50, [1, 2])]
    assert bundles([group(one[:7], 5), group(one[:7], 6)]) == [(0, [0]), (0, [1])]  # too little to share
    assert shared_tokens([one, one]) == 49  # each goes on with a token of its own
    assert shared_tokens([(1, 2, 3), (1, 2, 4, 5), (1, 2)]) == 1


@pytest.mark.slow
def test_an_opening_that_prompts_share_is_read_once_and_changes_no_draw(policy):
    prompts = [group[0].prompt for group in opened(policy)]
    before = policy.meter.tokens["draw"]
    rows, logs = sample(policy, prompts, 2, Decoding(9), Key(3), "draw")
    assert [row.prompt for row in rows] == [prompt for prompt in prompts for _ in range(2)]
    assert logs.tolist() == pytest.approx([plain(policy, row) for row in rows], abs=1e-4)
    read_of_prompts = policy.meter.tokens["draw"] - before - sum(len(row.response) - 1 for row in rows)
    once = windows(policy.model.config) is None  # padding behind an opening would count in a window of 16
    assert read_of_prompts == sum(map(len, prompts)) - (2 * shared_tokens(prompts) if once else 0)
    apart = [sample(policy, [prompt], 2, Decoding(9), Key(3), "draw")[0] for prompt in prompts]
    assert rows[:2] == apart[0]  # whose luck is the same


def test_lora_may_begin_with_a_at_zero():
    policy, rows = upper("tiny-llama", moved=False, init="a0"), rows_of(upper("tiny-llama"))
    assert all(bool((value == 0).all()) == ("lora_A" in name) for name, value in policy.initial.items())
    assert policy.log_probs(rows, "test").tolist() == pytest.approx([plain(policy, row) for row in rows], abs=2e-5)
    with policy.reference():
        assert policy.log_probs(rows, "test").tolist() == pytest.approx([plain(policy, row) for row in rows], abs=2e-5)
    assert Gradients(policy, 0.1, "none", 0, Key(1)).with_zeros(rows)[1].tolist() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
def test_logits_summed_up_by_parts_give_the_same_values_and_gradients(policy, bias, monkeypatch):
    monkeypatch.setattr(passes, "PART", 17)  # of a vocabulary that is no multiple of it
    if bias:
        policy.head.bias = torch.nn.Parameter(torch.linspace(-3, 3, policy.head.out_features), requires_grad=False)
    rows = rows_of(policy)
    want = torch.tensor([plain(policy, row) for row in rows], dtype=torch.float64)
    found = []
    for route in (Route(fused=False), Route()):
        policy.route = route
        logs = policy.summed([[row] for row in rows])
        assert torch.allclose(logs.double(), want, atol=2e-5)
        weights = torch.linspace(-1, 2, len(rows))
        found.append(torch.autograd.grad((weights * logs).sum(), list(policy.parameters.values())))
        assert torch.allclose(policy.log_probs(rows, "test"), want, atol=2e-5)
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("groups_of", [pairs_of, opened])
def test_states_seen_in_drawing_are_those_of_a_pass(policy, groups_of):
    prompts, states = [group[0].prompt for group in groups_of(policy)], {}
    policy.stops = torch.arange(40)  # so many tokens end a response that rows leave the batch
    rows, _ = sample(policy, prompts, 3, Decoding(9), Key(3), "draw", states)
    assert set(states) == set(rows)
    assert len({len(row.response) for row in rows}) > 3
    policy.route = Route()
    for row in rows:
        policy.trunk.forget()
        policy.go_below([row])
        whole = policy.trunk.states([row])
        assert torch.allclose(states[row][:-1], whole[:-1], atol=1e-5)
        assert not bool(states[row][-1].any())
    with policy.reference():
        want = torch.tensor([plain(policy, row) for row in rows], dtype=torch.float64)
        policy.trunk.forget()
        assert torch.allclose(policy.log_probs(rows, "test", states), want, atol=1e-4)
        assert policy.trunk.missing(rows) == list(dict.fromkeys(rows)), "rows that are seen but once are not kept"
        assert torch.allclose(policy.log_probs(rows, "test", {}), want, atol=1e-4)


def test_rows_of_a_prompt_go_through_together_and_whoever_is_asked_first_changes_no_digit(policy):
    policy.route = Route()
    groups = pairs_of(policy)
    rows = [row for group in groups for row in group]
    alone = []
    for row in rows:
        policy.trunk.forget()
        policy.go_below([row])
        alone.append(policy.trunk.states([row]))
    found = []
    for order in (rows, rows[::-1], rows[1::2]):
        policy.trunk.forget()
        policy.together(rows)
        policy.together(rows[::-1])  # they stay where they were put
        policy.go_below(order)
        found.append({row: policy.trunk.states([row]) for row in order})
    for row, states in zip(rows, alone, strict=True):
        assert torch.allclose(found[0][row], states, atol=1e-5)
        for other in found[1:]:
            assert row not in other or torch.equal(other[row], found[0][row])
