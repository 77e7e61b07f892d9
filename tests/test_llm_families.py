"""Every family of models either draws, scores and differentiates as its plain forward pass does, or is refused.

The models are tiny and random; the contract is the same for all, and no code but this test knows a family's name.
"""

import math

import pytest
import torch
import transformers as hf

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop import agreement
from llm_loop.agreement import settle
from llm_loop.gradients import Gradients, embeddings
from llm_loop.learner import Preference, Training, fit_dpo
from llm_loop.models import DRAWINGS, Adapter, Drawing, Policy, Route, Row, byte_tokenizer
from llm_loop.sampling import Decoding, sample
from llm_loop.seeding import seeded

VOCABULARY = 257
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256}
STACK = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**STACK, "num_key_value_heads": 2}
QUERY = ("q_proj", "v_proj", "o_proj")
FAMILIES = {
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}, ("c_attn", "c_proj")),
    "gpt2-dropout": (
        hf.GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5},
        ("c_attn",),
    ),
    "neox": (hf.GPTNeoXConfig, STACK, ("query_key_value", "dense_h_to_4h")),
    "opt": (
        hf.OPTConfig,
        {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        ("q_proj", "fc1", "fc2"),
    ),
    "llama": (hf.LlamaConfig, GROUPED, QUERY),
    "qwen2": (hf.Qwen2Config, GROUPED, QUERY),
    "qwen2-moe": (
        hf.Qwen2MoeConfig,
        {
            **GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "decoder_sparse_step": 1,
        },
        ("q_proj", "gate_proj", "down_proj"),
    ),
    "qwen3": (hf.Qwen3Config, {**GROUPED, "head_dim": 8}, QUERY),
    "gemma2": (
        hf.Gemma2Config,
        {
            **GROUPED,
            "head_dim": 8,
            "sliding_window": 16,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
        QUERY,
    ),
    "gemma3": (
        hf.Gemma3TextConfig,
        {**GROUPED, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
        QUERY,
    ),
    "phi": (hf.PhiConfig, STACK, ("q_proj", "dense", "fc1")),
    "mistral": (hf.MistralConfig, {**GROUPED, "sliding_window": 8, "head_dim": 8}, QUERY),
    "gptj": (
        hf.GPTJConfig,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
        ("q_proj", "fc_in"),
    ),
    "codegen": (
        hf.CodeGenConfig,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128, "n_ctx": 128},
        ("qkv_proj", "fc_in"),
    ),
    "bigcode": (
        hf.GPTBigCodeConfig,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        ("c_attn", "c_proj"),
    ),
    "bloom": (hf.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}, ("query_key_value", "dense_4h_to_h")),
    "mpt": (hf.MptConfig, {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}, ("Wqkv", "out_proj")),
    "gpt-neo": (
        hf.GPTNeoConfig,
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 128,
        },
        ("q_proj", "out_proj", "c_fc"),
    ),
    "falcon": (
        hf.FalconConfig,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        ("query_key_value",),
    ),
    "falcon-alibi": (
        hf.FalconConfig,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True, "multi_query": False},
        ("query_key_value", "dense"),
    ),
    "xglm": (
        hf.XGLMConfig,
        {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 512},
        ("q_proj", "fc1"),
    ),
    "gpt-oss": (
        hf.GptOssConfig,
        {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        QUERY,
    ),
    "mamba": (hf.MambaConfig, {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, ("in_proj", "x_proj")),
    "bert-decoder": (hf.BertConfig, {**STACK, "is_decoder": True}, ("query", "value")),
    "bert-encoder": (hf.BertConfig, STACK, ("query", "value")),
    "roberta-decoder": (
        hf.RobertaConfig,
        {**STACK, "is_decoder": True, "max_position_embeddings": 512},
        ("query", "value"),
    ),
    "olmo": (hf.OlmoConfig, GROUPED, QUERY),
    "starcoder2": (hf.Starcoder2Config, {**GROUPED, "sliding_window": 8}, (*QUERY, "c_fc")),
    "ctrl": (hf.CTRLConfig, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "dff": 64}, ("Wq", "Wv")),
    "xlnet": (hf.XLNetConfig, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, ("layer_1",)),
    "llama4": (
        hf.Llama4TextConfig,
        {**GROUPED, "head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 8, "intermediate_size_mlp": 64},
        ("q_proj",),
    ),
}


def family(name: str) -> Policy:
    """A tiny random policy of a family, away from its start."""
    config, settings, targets = FAMILIES[name]
    with seeded(Key(0)):
        model = hf.AutoModelForCausalLM.from_config(config(**TOKENS | settings)).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
    policy = Policy(model, byte_tokenizer(), Adapter(2, 4.0, targets), Key(0))
    generator = torch.Generator().manual_seed(0)
    policy.restore({k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in policy.state().items()})
    return policy


def plain(policy: Policy, row: Row) -> torch.Tensor:
    """``log π(y_t | x, y_<t)`` by one forward pass of the whole row, unpadded."""
    logits = policy.model(input_ids=torch.tensor([row.prompt + row.response]), use_cache=False).logits[0]
    logs = torch.log_softmax(logits.double(), -1)[len(row.prompt) - 1 : -1]
    return logs.gather(-1, torch.tensor(row.response)[:, None]).squeeze(-1)


REFUSED = {"bert-encoder", "xlnet", "roberta-decoder"}
"""The first two read what follows a token; the third gets other positions from the library's ``generate``."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_does_as_its_plain_forward_pass_or_is_refused(name: str) -> None:
    policy = family(name)
    before = policy.state()
    if name in REFUSED:
        with pytest.raises(InputError, match=r"off by .* nats a token, against its own plain forward pass"):
            settle(policy, 40, 12)
        return
    route = settle(policy, 40, 12)
    assert all(torch.equal(value, before[n]) for n, value in policy.state().items())
    prompts = [policy.encode([text], 64)[0] for text in ("hello there", "a", "a somewhat longer prompt, by far")]
    rows, logs = sample(policy, prompts, 3, Decoding(12), Key(1), "generate")
    with torch.no_grad():
        want = torch.stack([plain(policy, row).sum() for row in rows])
    assert (logs - want).abs().max() < 1e-4, route
    assert (policy.log_probs(rows, "score") - want).abs().max() < 1e-4, route
    some = rows[::4]
    found = Gradients(policy, 1.0, "none", 0, Key(1))(some).values
    matrices = [m["default"].weight for layer in policy.layers for m in (layer.lora_A, layer.lora_B)]
    for row, gradient in zip(some, found, strict=True):
        parts = torch.autograd.grad(plain(policy, row).sum(), matrices)
        exact = torch.cat([part.flatten() for part in parts])
        assert torch.linalg.vector_norm(gradient - exact) < 1e-4 * torch.linalg.vector_norm(exact), route
    assert bool(embeddings(policy, rows).values.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("drawing", DRAWINGS)
def test_all_ways_of_drawing_draw_the_same(drawing: Drawing) -> None:
    policy = family("llama")
    prompts = [policy.encode([text], 64)[0] for text in ("hello there", "a", "some more text", "hello again")]
    want, logs = sample(policy, prompts, 3, Decoding(9), Key(1), "generate")
    policy.meter.tokens.clear()
    policy.route = Route(drawing)
    rows, found = sample(policy, prompts, 3, Decoding(9), Key(1), "generate")
    assert rows == want
    assert (logs - found).abs().max() < 1e-4
    spent = {
        "grouped": sum(map(len, prompts)) + sum(len(row.response) - 1 for row in rows),
        "generate": sum(row.tokens - 1 for row in rows),
        "generate-uncached": sum(len(row.prompt) + i for row in rows for i in range(len(row.response))),
    }
    same = {"cached": "grouped", "generate-alike": "generate"}
    assert policy.meter.tokens["generate"] == spent[same.get(drawing, drawing)]


@pytest.mark.slow
def test_slower_ways_are_told_and_the_fastest_are_not() -> None:
    assert Route().summary == ""
    assert settle(family("llama"), 40, 12) == Route()
    told = "decoding with the model's own attention, making all logits before any is summed up"  # capped, both
    assert settle(family("gemma2"), 40, 12).summary == told
    assert Route("generate", padded=False, hooked=False).summary == (
        "decoding by the library's generate, scoring one response at a time, gradients one response at a time"
    )


@pytest.mark.slow
def test_what_was_found_holds_for_the_same_weights_and_for_no_others(monkeypatch) -> None:
    found = settle(family("llama"), 40, 12)
    monkeypatch.setattr(agreement, "_compared", lambda *_: Route("generate"))
    again, other = family("llama"), family("llama")
    again.restore({name: value + 1 for name, value in again.state().items()})  # of another seed, it begins elsewhere
    assert settle(again, 40, 12) == again.route == found
    assert settle(again, 40, 2) == Route("generate")  # shorter responses were not compared
    with torch.no_grad():
        next(other.model.get_base_model().parameters()).add_(1e-3)
    assert settle(other, 40, 12) == other.route == Route("generate")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_rows_one_at_a_time_are_what_they_are_in_company(name: str) -> None:
    policy = family(name)
    prompts = [policy.encode([text], 64)[0] for text in ("hello there", "a", "a somewhat longer prompt")]
    rows, _ = sample(policy, prompts, 2, Decoding(9), Key(1), "generate")
    logs, gradients = policy.log_probs(rows, "score"), Gradients(policy, 1.0, "count", 512, Key(1))
    (features, zero), hidden = gradients.with_zeros(rows), embeddings(policy, rows).values
    policy.route = Route(padded=False, hooked=False)
    assert torch.allclose(policy.log_probs(rows, "score"), logs, atol=1e-4)
    found, zeros = gradients.with_zeros(rows)
    assert torch.allclose(found.values, features.values, atol=1e-4)
    assert torch.equal(zeros, zero)
    assert torch.allclose(embeddings(policy, rows).values, hidden, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False])
def test_a_model_with_dropout_begins_training_at_margin_zero_and_learns_without_it(padded: bool) -> None:
    policy = family("gpt2-dropout")
    policy.restore(policy.initial)
    policy.route = Route(padded=padded)
    rows, logs = sample(policy, [policy.encode(["hello there"], 64)[0]], 4, Decoding(9), Key(1), "generate")
    pairs = [
        Preference(a, b, x, y)
        for a, b, x, y in zip(rows, rows[::-1], logs.tolist(), logs.flip(0).tolist(), strict=True)
    ]
    fits = [fit_dpo(policy, pairs[:2], Training(epochs=2, batch=2), Key(seed)) for seed in (3, 3)]
    assert fits[0].first_loss == pytest.approx(math.log(2), abs=1e-5)
    assert fits[0].last_loss < fits[0].first_loss
    assert not any(module.training for module in policy.model.modules())


@pytest.mark.slow
def test_a_context_that_is_too_short_is_refused_before_and_in_drawing() -> None:
    policy = family("gpt2")
    for refused in (
        lambda: settle(policy, 100, 29),
        lambda: sample(policy, [(1,) * 100], 1, Decoding(29), Key(0), "x"),
    ):
        with pytest.raises(InputError, match="need 129 positions, and the model has 128; lower --tokens"):
            refused()
    settle(policy, 100, 28)
    rotary = family("llama")  # which would go on beyond its positions without a word
    with pytest.raises(InputError, match=f"positions, and the model has {rotary.context}; lower --tokens"):
        settle(rotary, rotary.context - 10, 11)
    assert family("bloom").context is None


@pytest.mark.slow
def test_tokens_that_the_tokenizer_lacks_are_never_drawn_and_any_end_token_ends() -> None:
    config, settings, targets = FAMILIES["llama"]
    with seeded(Key(0)):
        model = hf.AutoModelForCausalLM.from_config(config(**TOKENS | settings | {"vocab_size": 900})).float()
    model.generation_config.eos_token_id = [256, 65, 5000]
    policy = Policy(model, byte_tokenizer(), Adapter(2, 4.0, targets), Key(0))
    assert policy.ends == (65, 256)
    prompt = policy.encode(["hello"], 64)[0]
    for drawing in ("grouped", "generate"):
        policy.route = Route(drawing)
        rows, logs = sample(policy, [prompt], 200, Decoding(20), Key(1), "generate")
        drawn = [token for row in rows for token in row.response]
        assert max(drawn) <= 256
        assert all(not {65, 256} & set(row.response[:-1]) for row in rows)
        assert {row.response[-1] for row in rows} >= {65, 256}
        with torch.no_grad():
            want = torch.stack([plain(policy, row).sum() for row in rows[:5]])
        assert (logs[:5] - want).abs().max() < 1e-4  # of π itself, whose mass is on all ids
