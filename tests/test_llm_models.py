"""The policy against plain full-softmax log-probabilities, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.models import TINY, Adapter, Policy, Row, batches, byte_tokenizer, load_policy, seeded, tiny_model

TARGETS = {"tiny-gpt2": ("c_attn", "c_proj")}


def tiny(name: str, moved: bool = True, seed: int = 0, rank: int = 4) -> Policy:
    """A tiny policy, by default away from the reference."""
    policy = load_policy(name, Adapter(rank, 2.0 * rank, TARGETS.get(name, ("q_proj", "v_proj", "o_proj"))), Key(seed))
    if moved:
        generator = torch.Generator().manual_seed(seed)
        policy.restore({k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in policy.state().items()})
    return policy


def rows_of(policy: Policy) -> list[Row]:
    """Rows of unequal prompts and responses; one ends, one has a single token."""
    prompts = policy.encode(["hello there", "abc", "a somewhat longer prompt, with punctuation."], 64)
    responses = [(1, 2, 3), (5, 6, 7, 8, 9, 10, 11, policy.end), (77,)]
    return [Row(p, r) for p, r in zip(prompts, responses, strict=True)]


@pytest.fixture(params=TINY, scope="module")
def policy(request):
    return tiny(request.param)


def by_hand(policy, row):
    """``Σ_t log softmax(logits)_t`` of one row alone, in float64, from all logits."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([row.prompt + row.response])).logits[0].double()
    logs = torch.log_softmax(logits, -1)
    start = len(row.prompt)
    return sum(float(logs[start + i - 1, token]) for i, token in enumerate(row.response))


def test_log_probabilities_are_those_computed_by_hand(policy):
    rows = rows_of(policy)
    assert policy.log_probs(rows, "test").tolist() == pytest.approx([by_hand(policy, row) for row in rows], abs=2e-5)


def test_padding_changes_no_log_probability(policy):
    rows = rows_of(policy)
    alone = [float(policy.log_probs([row], "test")[0]) for row in rows]
    assert policy.log_probs(rows, "test").tolist() == pytest.approx(alone, abs=2e-5)


def test_merging_keeps_the_map_and_leaves_no_trace(policy):
    rows = rows_of(policy)
    weights = [p.detach().clone() for p in policy.model.parameters()]
    plain = policy.log_probs(rows, "test")
    with policy.merged():
        merged = policy.log_probs(rows, "test")
    assert torch.allclose(plain, merged, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(weights, policy.model.parameters(), strict=True))
    assert torch.equal(plain, policy.log_probs(rows, "test"))


def test_the_reference_is_the_policy_at_its_start(policy):
    rows = rows_of(policy)
    here = policy.state()
    with policy.reference():
        off = policy.log_probs(rows, "test")
    with policy.at(policy.initial):
        assert torch.equal(off, policy.log_probs(rows, "test"))
    assert all(torch.equal(here[name], value) for name, value in policy.state().items())
    assert not torch.allclose(off, policy.log_probs(rows, "test"))


def test_a_saved_adapter_is_a_peft_folder(policy, tmp_path):
    policy.save(tmp_path)
    with seeded(Key(5)):
        base = tiny_model(policy_name(policy), Key(0).fold_in("model"))
        loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    rows = rows_of(policy)
    other = Policy.__new__(Policy)
    other.__dict__.update(policy.__dict__ | {"model": loaded})
    assert torch.equal(policy.log_probs(rows, "test"), other.log_probs(rows, "test"))


def policy_name(policy):
    kinds = {"llama": "tiny-llama", "gemma3_text": "tiny-gemma", "gpt2": "tiny-gpt2"}
    return kinds[policy.model.config.model_type]


def test_the_meter_counts_tokens_without_padding(policy):
    rows = rows_of(policy)
    before = policy.meter.tokens["count"]
    policy.log_probs(rows, "count")
    assert policy.meter.tokens["count"] - before == sum(row.tokens for row in rows)


def test_adapters_differ_by_luck_alone():
    one, same, other = (tiny("tiny-llama", moved=False, seed=s).state() for s in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(bool((value == 0).all()) for name, value in one.items() if "lora_B" in name)


@given(st.text(max_size=40))
def test_byte_tokens_spell_every_text(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode("utf-8", "replace"))
    assert tokenizer.decode(ids) == text


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 100))
def test_batches_hold_every_row_once_and_keep_their_size(lengths, limit):
    parts = batches(lengths, limit)
    assert sorted(place for part in parts for place in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= limit for part in parts)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: load_policy("tiny-llama", Adapter(targets=("c_attn",)), Key(0)), "no modules named c_attn; it has"),
        (lambda: load_policy("no/such-model-here", Adapter(), Key(0)), "cannot load model 'no/such-model-here'"),
        (lambda: load_policy("tiny-llama", Adapter(), Key(0), "cuda"), "not available here"),
        (lambda: Adapter(rank=0), "--rank must be at least 1"),
        (lambda: tiny("tiny-llama").encode([" "], 9), "a prompt is empty"),
        (lambda: tiny("tiny-llama").encode(["ten tokens"], 9), "10 tokens, over the limit of 9"),
        (lambda: tiny("tiny-llama").restore({}), "other matrices"),
    ],
)
def test_refusals_say_what_is_wrong(make, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=words):
        make()


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot load model"):
        load_policy(str(tmp_path), Adapter(), Key(0))


def test_a_local_directory_is_a_model(tmp_path):
    tiny_model("tiny-llama", Key(0).fold_in("model")).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    there = load_policy(str(tmp_path), Adapter(4, 8.0, ("q_proj",)), Key(0))
    here = load_policy("tiny-llama", Adapter(4, 8.0, ("q_proj",)), Key(0))
    rows = rows_of(here)
    assert torch.equal(there.log_probs(rows, "test"), here.log_probs(rows, "test"))


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_and_without_an_end_is_refused():
    model, tokenizer = tiny_model("tiny-llama", Key(0)), byte_tokenizer()
    tokenizer.pad_token = None
    policy = Policy(model, tokenizer, Adapter(4, 8.0, ("q_proj",)), Key(0))
    assert policy.pad == policy.end == 256
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        Policy(tiny_model("tiny-llama", Key(0)), tokenizer, Adapter(4, 8.0, ("q_proj",)), Key(0))
