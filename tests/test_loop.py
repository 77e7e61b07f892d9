"""The loop and its design against explicit matrices; resuming, switches, and what travels to the learner."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.loop import Plan, fit_rounds, play
from bandits.selector import STRATEGIES, ActiveDPO, FeatureSpace
from bandits.sim.arena import Problem, SyntheticVectorArena
from bandits.sim.learners import NeuralLearner
from bandits.sim.networks import MLP
from bandits.sim.truths import Cosine

ROUNDS, BATCH = 4, 5


def learner_for(network: MLP, key: Key) -> NeuralLearner:
    return NeuralLearner(network, network.initial(key.fold_in("network")), 1.0)


def plan(**changes) -> Plan:
    return dataclasses.replace(Plan(ROUNDS, BATCH, ridge=2.0, regularisation=1.0, fresh=False), **changes)


GEOMETRIES = [
    FeatureSpace(),
    FeatureSpace(gradients="initial"),
    FeatureSpace(gradients="stale"),
    FeatureSpace(normalise="response"),
    FeatureSpace(normalise="duel"),
    FeatureSpace(weight="fisher"),
    FeatureSpace(metric="diagonal"),
    FeatureSpace(metric="identity"),
    FeatureSpace(layer="last"),
    FeatureSpace(layer="last", gradients="initial", weight="fisher"),
    FeatureSpace(ridge=0.3, gradients="initial"),
]


@pytest.mark.parametrize("many_rounds", [False, True])
@pytest.mark.parametrize("space", GEOMETRIES, ids=str)
def test_widths_in_the_loop_are_those_of_explicit_matrices(space, many_rounds, network, key, arena):
    """Every switch, re-derived the slow way: gradients by autograd-checked rows, V as a matrix, its inverse."""
    learner = learner_for(network, key)
    items = arena.show(0)
    every = Duels.within(8, 3).expand(3)

    def phi(duels: Duels) -> torch.Tensor:
        at = learner.initial if space.gradients == "initial" else learner.weights
        gradient = network.value_and_gradient(at, items.x)[1].dense().values
        if space.layer == "last":
            gradient = network.embedding(at, items.x).values
        if space.normalise == "response":
            gradient = gradient / gradient.norm(dim=-1, keepdim=True)
        first, second = duels.first.unsqueeze(-1), duels.second.unsqueeze(-1)
        row = torch.take_along_dim(gradient, first, -2) - torch.take_along_dim(gradient, second, -2)
        if space.normalise == "duel":
            row = row / row.norm(dim=-1, keepdim=True)
        if space.weight == "fisher":
            p = torch.sigmoid(duels.difference(learner.rewards(items)))
            row = row * (p * (1 - p)).sqrt().unsqueeze(-1)
        return row

    ridge = space.ridge or (1.0 if space.weight == "fisher" else 2.0)
    asked, stale = None, None
    rounds = play(arena, learner, ActiveDPO(space), plan(many_rounds=many_rounds), key)
    for _ in range(ROUNDS):
        past = stale if space.gradients == "stale" else None if asked is None else phi(asked)
        before = phi(every)
        snapshot = learner.weights
        round = next(rounds)
        v = ridge * torch.eye(before.shape[-1], dtype=torch.float64).expand(3, -1, -1)
        if past is not None and space.metric != "identity":
            v = v + past.mT @ past
        if space.metric == "diagonal":
            v = torch.diag_embed(v.diagonal(dim1=-2, dim2=-1))
        widths = torch.einsum("rnd,rde,rne->rn", before, torch.linalg.inv(v), before).sqrt()
        torch.testing.assert_close(round.pool.features.widths, widths, rtol=1e-6, atol=1e-9)
        picked = round.answers.duels
        asked = picked if asked is None else asked.join(picked)
        fitted, learner.weights = learner.weights, snapshot
        stale = phi(picked) if stale is None else torch.cat([stale, phi(picked)], -2)
        learner.weights = fitted


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_replayed_run_goes_on_as_if_it_had_not_stopped(name, network, key, arena):
    """With the picks of the first rounds and the learner's states, the rest is equal to the last bit."""
    strategy = STRATEGIES[name]
    learner, history, rest = learner_for(network, key), [], []
    for round in play(arena, learner, strategy, plan(), key):
        if round.number < 2:
            history.append((round.picks, dict(learner.state())))
        else:
            rest.append((round.picks, learner.rewards(round.items)))
    again = learner_for(network, key)
    for round, (picks, rewards) in zip(play(arena, again, strategy, plan(), key, history), rest, strict=True):
        assert torch.equal(round.picks, picks)
        assert torch.equal(again.rewards(round.items), rewards)


def test_response_normalisation_loses_the_invariance_to_c_of_x(network, key, items):
    """Adding one vector to all gradients of a prompt: raw and duel-normalised φ stay, response-normalised φ moves."""
    from bandits.core.rows import Dense

    gradient = network.value_and_gradient(network.initial(key), items.x)[1].dense()
    common = key.fold_in("c").normal(8, network.parameters).repeat_interleave(3, 1)
    duels = Duels.within(8, 3).expand(3)
    a, b = gradient.differences(duels), Dense(gradient.values + common).differences(duels)
    torch.testing.assert_close(a.values, b.values)
    torch.testing.assert_close(a.normalised().values, b.normalised().values)
    a, b = gradient.normalised().differences(duels), Dense(gradient.values + common).normalised().differences(duels)
    assert float((a.values - b.values).norm() / a.values.norm()) > 0.1


def test_no_duel_of_a_fixed_pool_is_asked_twice(network, key, arena):
    picks = [r.picks for r in play(arena, learner_for(network, key), STRATEGIES["random"], plan(), key)]
    asked = torch.cat(picks, -1)
    assert all(len(set(row)) == ROUNDS * BATCH for row in asked.tolist())


def test_strategies_share_worlds_and_answers(network, key, arena):
    """The same duel gets the same answer, whoever asks it, in whichever round."""
    known: dict[tuple[int, int, int], bool] = {}
    for name in ("random", "activedpo", "label-entropy"):
        for round in play(arena, learner_for(network, key), STRATEGIES[name], plan(), key):
            duels = round.answers.duels
            for r in range(3):
                for a, b, won in zip(duels.first[r], duels.second[r], round.answers.first_won[r], strict=True):
                    key = (r, int(a), int(b))
                    assert known.setdefault(key, bool(won)) == bool(won)
    assert len(known) > ROUNDS * BATCH * 3


def test_replicates_are_independent_of_company(network):
    """Replicate 2 among three is replicate 2 alone: same picks, and rewards to rounding."""

    def run(key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        problem = Problem(Cosine(), key.fold_in("world"), prompts=8, responses=3, dim=4, heldout=4, rounds=6)
        arena = SyntheticVectorArena(len(key.replicates), problem=problem, batch=BATCH)
        learner = learner_for(network, key)
        picks = torch.cat([r.picks for r in play(arena, learner, STRATEGIES["activedpo"], plan(), key)], -1)
        return picks, learner.rewards(problem.everything()[0])

    together, alone = run(Key(7, (0, 1, 2))), run(Key(7, (2,)))
    assert torch.equal(together[0][2:], alone[0])
    torch.testing.assert_close(together[1][2:], alone[1], rtol=1e-6, atol=1e-9)


@given(rounds=st.integers(1, 200), batch=st.integers(1, 9), refit=st.floats(0, 0.5))
def test_the_fit_is_never_much_behind_and_always_made_at_the_end(rounds, batch, refit):
    due, behind = fit_rounds(Plan(rounds, batch, 1.0, 1.0, refit=refit)), 0
    assert due[-1]
    fitted = 0
    for number, now in enumerate(due):
        answers = (number + 1) * batch
        if now:
            fitted = answers
        behind = max(behind, answers - fitted * (1 + refit))
    assert behind <= 1
    assert refit > 0 or all(due)


def test_bad_plans_are_refused():
    with pytest.raises(InputError, match="rounds and batch"):
        Plan(0, 1, 1.0, 1.0)
    with pytest.raises(InputError, match="rounds and batch"):
        Plan(1, 0, 1.0, 1.0)
