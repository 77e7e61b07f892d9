"""Drawn responses against slow inversion in float64, against scoring, and against ``generate``."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny_models import rows_of, tiny

from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.models import TINY
from llm_loop.sampling import BLOCK, Decoding, draw, sample
from llm_loop.seeding import seeded


@pytest.fixture(params=TINY, scope="module")
def policy(request):
    return tiny(request.param)


@given(st.integers(0, 10_000), st.sampled_from([3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]), st.floats(0.3, 2.0))
def test_a_draw_inverts_the_distribution_function(seed, vocabulary, temperature):
    rng = np.random.default_rng(seed)
    logits, uniform = rng.normal(0, 3, (5, vocabulary)), rng.random(5)
    token, log_prob = draw(torch.tensor(logits), torch.tensor(uniform), temperature)
    for row in range(5):
        mass = np.exp((logits[row] - logits[row].max()) / temperature)
        steps = np.cumsum(mass) / mass.sum()
        want = int(np.searchsorted(steps, uniform[row], side="right"))
        # where the number falls within rounding of a step, either side is right
        near = abs(steps[min(want, token[row])] - uniform[row]) < 1e-12
        assert int(token[row]) == want or near
        logs = logits[row] - np.logaddexp.reduce(logits[row])
        assert float(log_prob[row]) == pytest.approx(logs[token[row]], abs=1e-9)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    logits = torch.full((2, 2 * BLOCK), -torch.inf)
    logits[0, 5:7] = 0.0
    logits[1, BLOCK + 3] = 1.0
    token, log_prob = draw(logits, torch.full((2,), uniform, dtype=torch.float64))
    assert int(token[0]) in (5, 6)
    assert int(token[1]) == BLOCK + 3
    assert bool(log_prob.isfinite().all())


def test_draws_have_the_probabilities_of_the_softmax():
    """Chi-square on 20,000 draws; a false alarm has probability 1e-4."""
    logits = Key(3).normal(40)
    token, _ = draw(logits.expand(20_000, -1), Key(4).uniform(20_000))
    counts = torch.bincount(token, minlength=40).numpy()
    assert stats.chisquare(counts, torch.softmax(logits, -1).numpy() * 20_000).pvalue > 1e-4


@pytest.mark.slow
def test_log_probabilities_of_draws_are_those_of_scoring(policy):
    prompts = [row.prompt for row in rows_of(policy)]
    rows, logs = sample(policy, prompts, 6, Decoding(30), Key(2), "generate")
    assert torch.allclose(logs, policy.log_probs(rows, "score"), atol=3e-4)
    assert [row.prompt for row in rows] == [prompt for prompt in prompts for _ in range(6)]


@pytest.mark.slow
def test_a_response_ends_with_its_end_token_or_is_cut(policy):
    rows, _ = sample(policy, [row.prompt for row in rows_of(policy)], 40, Decoding(50), Key(6), "generate")
    ended = [row for row in rows if row.response[-1] == policy.end]
    assert 0 < len(ended) < len(rows)  # both kinds occur
    assert all(policy.end not in row.response[:-1] for row in rows)
    assert all(len(row.response) == 50 for row in rows if row.response[-1] != policy.end)


@pytest.mark.slow
def test_batches_do_not_change_what_is_drawn(policy):
    prompts = [row.prompt for row in rows_of(policy)]
    whole, _ = sample(policy, prompts, 4, Decoding(25, rows=128), Key(2), "generate")
    parts, _ = sample(policy, prompts, 4, Decoding(25, rows=4), Key(2), "generate")
    first, _ = sample(policy, prompts[:1], 4, Decoding(25), Key(2), "generate")
    assert whole == parts
    assert whole[:4] == first


@pytest.mark.slow
def test_generate_draws_from_the_same_distribution():
    """Mean log-probability and length of 600 draws each, by Welch's test; a false alarm has probability 2e-4."""
    policy = tiny("tiny-llama")
    prompt = policy.encode(["hello"], 9)[0]
    ours, _ = sample(policy, [prompt], 600, Decoding(12), Key(8), "generate")
    with seeded(Key(9)):
        tokens = policy.model.generate(
            input_ids=torch.tensor([prompt] * 600),
            attention_mask=torch.ones(600, len(prompt), dtype=torch.int64),
            do_sample=True,
            top_k=0,
            max_new_tokens=12,
            pad_token_id=policy.pad,
            eos_token_id=policy.end,
        )[:, len(prompt) :].tolist()
    cut = [t[: t.index(policy.end) + 1] if policy.end in t else t for t in tokens]
    theirs = [type(ours[0])(prompt, tuple(t)) for t in cut]
    a, b = policy.log_probs(ours, "score").numpy(), policy.log_probs(theirs, "score").numpy()
    assert stats.ttest_ind(a, b, equal_var=False).pvalue > 1e-4
    a, b = ([len(row.response) for row in rows] for rows in (ours, theirs))
    assert stats.ttest_ind(a, b, equal_var=False).pvalue > 1e-4


def test_a_low_temperature_draws_the_likeliest_token(policy):
    prompts = [row.prompt for row in rows_of(policy)]
    rows, _ = sample(policy, prompts, 2, Decoding(6, temperature=1e-4), Key(2), "generate")
    assert rows[0::2] == rows[1::2]
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompts[0]])).logits[0, -1]
    assert rows[0].response[0] == int(logits.argmax())


@pytest.mark.slow
def test_the_same_luck_draws_the_same_and_other_luck_other_responses():
    policy = tiny("tiny-llama")
    prompts = [row.prompt for row in rows_of(policy)]
    one, two, other = (sample(policy, prompts, 3, Decoding(9), Key(s), "generate")[0] for s in (1, 1, 2))
    assert one == two
    assert one != other


def test_drawing_leaves_no_trace_on_the_model():
    """Weights, attention and every layer's ``forward`` are as before, also where somebody has replaced one."""
    policy = tiny("tiny-llama")
    base = policy.model.get_base_model()
    hooked = next(module for module in base.modules() if type(module) is torch.nn.Linear)
    hooked.forward = theirs = hooked.forward
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    attention = base.config._attn_implementation
    sample(policy, [(1, 2, 3)], 2, Decoding(3), Key(0), "test")
    assert base.config._attn_implementation == attention
    assert vars(hooked)["forward"] is theirs
    assert [m for m in base.modules() if type(m) is torch.nn.Linear and "forward" in vars(m)] == [hooked]
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize("settings", [{"tokens": 0}, {"temperature": 0.0}, {"temperature": float("nan")}, {"rows": 0}])
def test_decoding_refuses_what_cannot_be(settings):
    with pytest.raises(InputError, match="--"):
        Decoding(**settings)


@pytest.mark.parametrize(
    ("dtype", "hint"), [(torch.float32, "if it was trained, that diverged"), (torch.bfloat16, "try --dtype float32")]
)
def test_what_is_not_finite_is_told_with_what_helps(dtype, hint):
    policy = tiny("tiny-llama")
    policy.head.to(dtype).weight.data.fill_(torch.nan)
    policy.model.to(dtype)
    with pytest.raises(InputError, match=f"not finite numbers; {hint}"):
        sample(policy, [(1, 2)], 1, Decoding(2), Key(0), "test")
