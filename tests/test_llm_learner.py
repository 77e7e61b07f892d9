"""DPO by TRL on our rows against the loss written out, and the implicit reward."""

import dataclasses
import math

import pytest
import torch
from tiny_models import rows_of, tiny
from torch.nn.functional import logsigmoid
from trl import DPOConfig

from bandits.core.duels import Duels, Labelled
from bandits.core.errors import InputError
from bandits.core.rng import Key
from llm_loop.arena import Completions
from llm_loop.gradients import Gradients
from llm_loop.learner import DPOLearner, Preference, Training, _lent, _Trainer, fit_dpo
from llm_loop.models import TINY, Row
from llm_loop.seeding import seeded

BETA = 0.3


def preferences_of(policy):
    """Six preferences of unequal lengths with the reference's log-probabilities."""
    prompts = [row.prompt for row in rows_of(policy)] * 2
    chosen = [Row(p, tuple(range(10 + i, 14 + 2 * i))) for i, p in enumerate(prompts)]
    rejected = [Row(p, tuple(range(90 + i, 93 + i))) for i, p in enumerate(prompts)]
    with policy.reference():
        a, b = policy.log_probs(chosen, "score").tolist(), policy.log_probs(rejected, "score").tolist()
    return [Preference(*four) for four in zip(chosen, rejected, a, b, strict=True)]


@pytest.fixture(params=TINY)
def policy(request):
    return tiny(request.param, moved=False)


def learner_of(policy, **settings):
    gradients = Gradients(policy, BETA, "count", 64, Key(1))
    return DPOLearner(policy, Training(BETA, rate=1e-2, epochs=2, batch=4, **settings), gradients, Key(2))


def table_of(policy, responses=3):
    prompts = [row.prompt for row in rows_of(policy)]
    rows = tuple(
        Row(p, tuple(range(20 + 5 * i + k, 24 + 6 * i + 2 * k)))
        for i, p in enumerate(prompts)
        for k in range(responses)
    )
    return Completions(rows, responses, policy.log_probs(rows, "score"))


@pytest.mark.slow
def test_the_first_loss_is_log_2(policy):
    fit = fit_dpo(policy, preferences_of(policy), Training(BETA, epochs=1, batch=6), Key(0))
    assert fit.first_loss == pytest.approx(math.log(2), abs=2e-6)
    assert fit.steps == 1


@pytest.mark.slow
def test_ties_enter_the_loss_by_davidsons_likelihood(policy):
    """The first loss, at Δ = 0, is ``log(2 + ν)`` for every answer, win or tie; float32 log-probabilities."""
    wins = preferences_of(policy)
    tied = [dataclasses.replace(p, outcome=0.5) for p in wins[:3]] + wins[3:]
    fit = fit_dpo(policy, tied, Training(BETA, epochs=1, batch=6, ties=0.8), Key(0))
    assert fit.first_loss == pytest.approx(math.log(2.8), abs=2e-6)


@pytest.mark.slow
def test_a_fit_to_ties_alone_leaves_no_preference(policy):
    """The first loss is ``log 2``, and shares of the preferred are not numbers."""
    tied = [dataclasses.replace(p, outcome=0.5) for p in preferences_of(policy)]
    fit = fit_dpo(policy, tied, Training(BETA, rate=1e-9, epochs=1, batch=6), Key(0))
    assert fit.first_loss == pytest.approx(math.log(2), abs=2e-6)
    assert math.isnan(fit.accuracy)


def test_labelled_ties_become_tied_preferences(policy):
    learner, items = learner_of(policy), table_of(policy)
    duels = Duels.within(items.prompts, items.responses)
    outcome = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64).repeat(items.prompts)
    preferences = learner.preferences(Labelled.of(items, duels, outcome))
    assert [p.outcome for p in preferences] == [1.0, 0.5, 1.0] * items.prompts
    for p, a, b, share in zip(preferences, duels.first, duels.second, outcome, strict=True):
        shown = (items.rows[a], items.rows[b])
        assert (p.chosen, p.rejected) == (shown if share >= 0.5 else shown[::-1])


def trainer_of(policy, preferences, folder, pull=0.0, own_loss=True):
    arguments = DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        per_device_train_batch_size=len(preferences),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        max_length=None,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    return _Trainer(policy, preferences, args=arguments, pull=pull, own_loss=own_loss)


def by_hand(policy, preferences):
    """``mean -log σ(β [log π(c)/π_ref(c) - log π(r)/π_ref(r)])``, with autograd, one row at a time."""
    total = torch.zeros(())
    for p in preferences:
        a, b = (policy.token_log_probs([row]).sum() for row in (p.chosen, p.rejected))
        total = total - logsigmoid(BETA * ((a - p.chosen_reference) - (b - p.rejected_reference)))
    return total / len(preferences)


@pytest.mark.slow
@pytest.mark.parametrize("own_loss", [True, False])
@pytest.mark.parametrize("pull", [0.0, 0.7])
def test_loss_and_gradients_are_those_written_out_and_trls(policy, tmp_path, pull, own_loss):
    preferences = preferences_of(policy)
    generator = torch.Generator().manual_seed(1)
    policy.restore({k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in policy.state().items()})
    parameters = policy.parameters
    want = by_hand(policy, preferences)
    want = want + pull / 2 * sum((parameters[n] - v).square().sum() for n, v in policy.initial.items())
    want_gradients = torch.autograd.grad(want, list(parameters.values()))
    with seeded(Key(0)), _lent(policy):
        trainer = trainer_of(policy, preferences, tmp_path, pull, own_loss)
        inputs = next(iter(trainer.get_train_dataloader()))
        loss = trainer.compute_loss(policy.model, inputs)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    for got, expected in zip(gradients, want_gradients, strict=True):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_cached_reference_log_probabilities_are_those_that_trl_computes(policy, tmp_path):
    """Ours are the adapter-off model's; TRL computes its own from the copy of the adapter as it was at the start."""
    preferences = preferences_of(policy)
    with seeded(Key(0)), _lent(policy):
        trainer = trainer_of(policy, preferences, tmp_path, own_loss=False)
        inputs = next(iter(trainer.get_train_dataloader()))
        chosen, rejected = trainer.compute_ref_log_probs(policy.model, inputs)
    assert torch.allclose(chosen, inputs["ref_chosen_logps"], atol=1e-4)
    assert torch.allclose(rejected, inputs["ref_rejected_logps"], atol=1e-4)


@pytest.mark.slow
def test_a_fit_says_what_became_of_both_sides_of_its_pairs(policy):
    """One epoch of one step sees all pairs where training begins; here, away from the reference."""
    preferences = preferences_of(policy)
    generator = torch.Generator().manual_seed(1)
    policy.restore({k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in policy.state().items()})
    chosen = policy.log_probs([p.chosen for p in preferences], "score")
    chosen -= torch.tensor([p.chosen_reference for p in preferences])
    rejected = policy.log_probs([p.rejected for p in preferences], "score")
    rejected -= torch.tensor([p.rejected_reference for p in preferences])
    fit = fit_dpo(policy, preferences, Training(BETA, rate=1e-3, epochs=1, batch=6), Key(0))
    assert fit.chosen == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert fit.rejected == pytest.approx(float(rejected.mean()), abs=1e-4)
    assert fit.chosen_fell == float((chosen < 0).double().mean())
    assert fit.accuracy == float((chosen > rejected).double().mean())


@pytest.mark.slow
def test_a_fit_counts_the_pairs_of_its_last_epoch_once(policy):
    preferences = preferences_of(policy)
    fit = fit_dpo(policy, preferences, Training(BETA, rate=5e-2, epochs=3, batch=4), Key(0))
    assert fit.steps == 6
    assert fit.accuracy * len(preferences) == pytest.approx(round(fit.accuracy * len(preferences)))
    assert fit.chosen > fit.rejected


@pytest.mark.slow
def test_training_prefers_the_chosen_and_leaves_the_model_as_it_was_otherwise(policy):
    preferences = preferences_of(policy)
    modules, names = set(map(type, policy.model.modules())), list(dict(policy.model.named_parameters()))
    frozen = {n: p.clone() for n, p in policy.model.named_parameters() if n not in policy.parameters}
    fit_dpo(policy, preferences, Training(BETA, rate=1e-2, epochs=4, batch=3), Key(0))
    margins = policy.log_probs([p.chosen for p in preferences], "score") - policy.log_probs(
        [p.rejected for p in preferences], "score"
    )
    before = torch.tensor([p.chosen_reference - p.rejected_reference for p in preferences])
    assert bool((margins > before).all())
    assert list(dict(policy.model.named_parameters())) == names
    assert set(map(type, policy.model.modules())) == modules
    assert "forward" not in policy.model.get_base_model().__dict__
    assert not policy.model.training
    assert all(torch.equal(p, frozen[n]) for n, p in policy.model.named_parameters() if n in frozen)


@pytest.mark.slow
def test_the_same_luck_trains_the_same_and_another_order_differs():
    states = []
    for seed in (0, 0, 1):
        policy = tiny("tiny-llama", moved=False)
        fit_dpo(policy, preferences_of(policy), Training(BETA, rate=1e-2, epochs=1, batch=2), Key(seed))
        states.append(policy.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.slow
def test_the_pull_keeps_theta_near_its_start():
    norms = []
    for strength in (0.0, 50.0):
        policy = tiny("tiny-llama", moved=False)
        settings = Training(BETA, rate=1e-2, epochs=6, batch=6, regularisation=strength)
        fit_dpo(policy, preferences_of(policy), settings, Key(0))
        norms.append(sum(float((v - policy.initial[n]).square().sum()) for n, v in policy.state().items()))
    assert norms[1] < 0.5 * norms[0]


def labelled(items):
    return Labelled.of(
        items, Duels(torch.tensor([0, 4]), torch.tensor([2, 5])), torch.tensor([1.0, 0.0], dtype=torch.float64)
    )


@pytest.mark.slow
def test_a_refit_to_all_answers_forgets_where_theta_was_and_new_data_go_on_from_there():
    states = {}
    for data in ("all", "new"):
        for detour in (False, True):
            policy = tiny("tiny-llama", moved=False)
            learner = learner_of(policy, data=data)
            past = labelled(table_of(policy))
            if detour:
                policy.restore({n: v + 0.1 for n, v in policy.initial.items()})
            learner.fit(past)
            states[data, detour] = policy.state()
    same = {d: all(torch.equal(v, states[d, True][n]) for n, v in states[d, False].items()) for d in ("all", "new")}
    assert same == {"all": True, "new": False}


def test_answers_become_preferences(policy):
    learner, items = learner_of(policy), table_of(policy)
    preferences = learner.preferences(labelled(items))
    pairs = [(p.chosen, p.rejected) for p in preferences]
    assert pairs == [(items.rows[0], items.rows[2]), (items.rows[5], items.rows[4])]
    assert preferences[0].chosen_reference == pytest.approx(float(items.log_probs[0]), abs=1e-5)


@pytest.mark.slow
def test_rewards_are_implicit_and_exactly_zero_at_the_start(policy):
    learner, items = learner_of(policy), table_of(policy)
    assert bool((learner.rewards(items) == 0).all())
    learner.fit(labelled(items))
    with policy.reference():
        reference = policy.log_probs(items.rows, "score")
    want = BETA * (policy.log_probs(items.rows, "score") - reference)
    assert torch.allclose(learner.rewards(items), want, atol=1e-5)
    assert float(want.abs().max()) > 0.01


def test_known_log_probabilities_are_not_computed_again_until_theta_moves():
    policy = tiny("tiny-llama", moved=False)
    learner, items = learner_of(policy), table_of(policy)
    learner.note(items.rows, current=items.log_probs, reference=items.log_probs)
    before = policy.meter.tokens["score"]
    learner.reference(items.rows), learner.current(items.rows)
    assert policy.meter.tokens["score"] == before
    learner.restore(policy.state())
    learner.current(items.rows)
    assert policy.meter.tokens["score"] > before


def test_equal_items_have_equal_features_and_cost_one_pass():
    policy = tiny("tiny-llama", moved=False)
    learner, items = learner_of(policy), table_of(policy, 2)
    twice = Completions(items.rows[:2] * 3, 2, items.log_probs[:2].repeat(3))
    before = policy.meter.tokens["features"]
    rows = learner.features(twice, "current", "all").values
    assert policy.meter.tokens["features"] - before == sum(row.tokens for row in items.rows[:2])
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["all", "last"])
def test_initial_features_are_those_of_theta_0(layer):
    policy = tiny("tiny-llama", moved=False)
    learner, items = learner_of(policy), table_of(policy)
    start = learner.features(items, "current", layer).values
    learner.fit(labelled(items))
    moved = policy.state()
    assert torch.equal(learner.features(items, "initial", layer).values, start)
    assert not torch.allclose(learner.features(items, "current", layer).values, start, rtol=1e-3)
    assert all(torch.equal(moved[n], v) for n, v in policy.state().items())


def test_entropy_is_the_mean_surprise_of_a_prompts_responses(policy):
    learner, items = learner_of(policy), table_of(policy)
    got = learner.entropy(items, torch.zeros(9))
    assert got.tolist() == pytest.approx([-float(items.log_probs[3 * i : 3 * i + 3].mean()) for i in range(3)])


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"beta": 0.0}, "--beta"),
        ({"rate": -1.0}, "--rate"),
        ({"rate": math.inf}, "--rate"),
        ({"epochs": 0}, "--epochs"),
        ({"batch": 0}, "--dpo-batch"),
        ({"regularisation": -1.0}, "--regularisation"),
        ({"regularisation": math.nan}, "--regularisation"),
        ({"clip": math.nan}, "--clip"),
    ],
)
def test_training_refuses_what_cannot_be(settings, option):
    with pytest.raises(InputError, match=option):
        Training(**settings)


def test_training_that_diverged_says_so():
    policy = tiny("tiny-llama")
    with torch.no_grad():
        for matrix in policy.parameters.values():
            matrix.fill_(math.inf)
    with pytest.raises(InputError, match=r"the training diverged: .*; lower --rate 0\.5"):
        fit_dpo(policy, preferences_of(tiny("tiny-llama")), Training(rate=0.5), Key(0))


def test_no_preference_is_refused():
    with pytest.raises(InputError, match="at least one preference"):
        fit_dpo(tiny("tiny-llama"), [], Training(), Key(0))
