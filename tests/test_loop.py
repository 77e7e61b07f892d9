"""The loop and its design against explicit matrices; resuming, switches, and what travels to the learner."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandits.core.duels import Duels, Labelled, Offer
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.loop import Ridges, Schedule, play
from bandits.selector import STRATEGIES, ActiveDPO, FeatureSpace
from bandits.sim.learners import NeuralLearner, TangentLearner
from bandits.sim.networks import MLP
from bandits.sim.problem import Inputs, Problem, SyntheticArena
from bandits.sim.truths import Cosine

ROUNDS, BATCH = 4, 5


def learner_for(network: MLP, key: Key) -> NeuralLearner:
    return NeuralLearner(network, network.initial(key.fold_in("network")), 1.0)


def run(arena, learner, strategy, key, replay=(), schedule=None, diagnostics=None):
    return play(
        arena, learner, strategy, schedule or Schedule(ROUNDS, BATCH), Ridges(2.0, 1.0), key, replay, diagnostics
    )


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


@pytest.mark.slow
@pytest.mark.parametrize("batch", [5, 8])  # 8 prompts: with 8 duels a round, V takes the rows as they are looked at
@pytest.mark.parametrize("space", GEOMETRIES, ids=str)
def test_widths_in_the_loop_are_those_of_explicit_matrices(space, batch, network, key, arena):
    """Every switch, re-derived the slow way: gradients by autograd-checked rows, V as a matrix, its inverse."""
    learner = learner_for(network, key)
    items, rounds = arena.offer(0).items, 24 // batch - 1
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
    played = run(arena, learner, ActiveDPO(space), key, schedule=Schedule(rounds, batch))
    for _ in range(rounds):
        past = stale if space.gradients == "stale" else None if asked is None else phi(asked)
        before = phi(every)
        snapshot = learner.weights
        round = next(played)
        v = ridge * torch.eye(before.shape[-1], dtype=torch.float64).expand(3, -1, -1)
        if past is not None and space.metric != "identity":
            v = v + past.mT @ past
        if space.metric == "diagonal":
            v = torch.diag_embed(v.diagonal(dim1=-2, dim2=-1))
        widths = torch.einsum("rnd,rde,rne->rn", before, torch.linalg.inv(v), before).sqrt()
        torch.testing.assert_close(round.pool.widths, widths, rtol=1e-6, atol=1e-9)
        picked = round.asked
        asked = picked if asked is None else asked.join(picked)
        fitted, learner.weights = learner.weights, snapshot
        if space.metric == "full":  # V as the picks saw it, with the picks in it
            after = v + phi(picked).mT @ phi(picked)
            information = torch.linalg.slogdet(after / ridge)[1]
            torch.testing.assert_close(torch.as_tensor(round.information), information, rtol=1e-6, atol=1e-9)
        stale = phi(picked) if stale is None else torch.cat([stale, phi(picked)], -2)
        learner.weights = fitted


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_replayed_run_goes_on_as_if_it_had_not_stopped(name, network, key, arena):
    """With the picks of the first rounds and the learner's states, the rest is equal to the last bit."""
    strategy = STRATEGIES[name]
    learner, history, rest = learner_for(network, key), [], []
    for round in run(arena, learner, strategy, key):
        if round.number < 2:
            history.append((round.picks, dict(learner.state())))
        else:
            rest.append((round.picks, learner.rewards(round.offer.items)))
    again = learner_for(network, key)
    for round, (picks, rewards) in zip(run(arena, again, strategy, key, history), rest, strict=True):
        assert torch.equal(round.picks, picks)
        assert torch.equal(again.rewards(round.offer.items), rewards)


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


def test_batches_of_unlike_sizes_are_replayed(network, key, arena):
    """As people's batches are.  Shape checks draw one round a call: 2⁻¹⁶ miss a size that is held to another's."""
    strategy, first = STRATEGIES["random"], run(arena, learner_for(network, key), STRATEGIES["random"], key)
    replay = [(next(first).picks, None), (next(first).picks[..., :3], None)]
    for _ in range(16):
        rest = run(arena, learner_for(network, key), strategy, key, replay)
    assert [round.number for round in rest] == [2, 3]


def test_no_duel_of_a_fixed_pool_is_asked_twice(network, key, arena):
    picks = [r.picks for r in run(arena, learner_for(network, key), STRATEGIES["random"], key)]
    asked = torch.cat(picks, -1)
    assert all(len(set(row)) == ROUNDS * BATCH for row in asked.tolist())


@pytest.mark.slow
def test_strategies_share_worlds_and_answers(network, key, arena):
    """The same duel gets the same answer, whoever asks it, in whichever round."""
    known: dict[tuple[int, int, int], float] = {}
    for name in ("random", "activedpo", "label-entropy"):
        for round in run(arena, learner_for(network, key), STRATEGIES[name], key):
            duels = round.asked
            for r in range(3):
                for a, b, won in zip(duels.first[r], duels.second[r], round.outcome[r], strict=True):
                    duel = (r, int(a), int(b))
                    assert known.setdefault(duel, float(won)) == float(won)
    assert len(known) > ROUNDS * BATCH * 3


@pytest.mark.slow
def test_replicates_are_independent_of_company(network):
    """Replicate 2 among three is replicate 2 alone: same picks, and rewards to rounding."""

    def played(key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        problem = Problem(Cosine(), key.fold_in("world"), prompts=8, responses=3, dim=4, heldout=4, rounds=6)
        arena = SyntheticArena(problem)
        learner = learner_for(network, key)
        picks = torch.cat([r.picks for r in run(arena, learner, STRATEGIES["activedpo"], key)], -1)
        return picks, learner.rewards(problem.everything()[0])

    together, alone = played(Key(7, (0, 1, 2))), played(Key(7, (2,)))
    assert torch.equal(together[0][2:], alone[0])
    torch.testing.assert_close(together[1][2:], alone[1], rtol=1e-6, atol=1e-9)


@given(rounds=st.integers(1, 200), batch=st.integers(1, 9), refit=st.floats(0, 0.5))
def test_the_fit_is_never_much_behind_and_always_made_at_the_end(rounds, batch, refit):
    due, behind = Schedule(rounds, batch, refit).fits(), 0
    assert due[-1]
    fitted = 0
    for number, now in enumerate(due):
        answers = (number + 1) * batch
        if now:
            fitted = answers
        behind = max(behind, answers - fitted * (1 + refit))
    assert behind <= 1
    assert refit > 0 or all(due)


def test_bad_schedules_are_refused():
    for rounds, batch in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match="rounds and batch"):
            Schedule(rounds, batch)
    for refit in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="refit"):
            Schedule(1, 1, refit)


class Counted(NeuralLearner):
    """Counts the items whose gradients, rewards and entropy were asked for."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.seen = {"features": [], "rewards": [], "entropy": []}

    def features(self, items, at, layer):
        self.seen["features"].append(items.x.shape[-2])
        return super().features(items, at, layer)

    def rewards(self, items):
        self.seen["rewards"].append(items.x.shape[-2])
        return super().rewards(items)

    def entropy(self, items, rewards):
        self.seen["entropy"].append(items.x.shape[-2])
        return super().entropy(items, rewards)


class TestReads:
    """The loop computes what the strategy reads, and no more unless asked."""

    def played(self, name, network, key, arena, **changes) -> tuple[Counted, list]:
        learner = Counted(network, network.initial(key.fold_in("network")), 1.0)
        return learner, list(run(arena, learner, STRATEGIES[name], key, **changes))

    @pytest.mark.slow
    def test_what_is_not_read_is_not_computed(self, network, key, arena):
        for name, quantities in (("random", ()), ("label-entropy", ("rewards",)), ("aplp", ("rewards", "entropy"))):
            learner, rounds = self.played(name, network, key, arena)
            assert {what for what, calls in learner.seen.items() if calls} == set(quantities)
            assert all(torch.as_tensor(round.information).isnan() for round in rounds)
        learner, _ = self.played("activedpo-initial", network, key, arena)
        assert not learner.seen["rewards"]

    @pytest.mark.slow
    def test_diagnostics_measure_everything_and_change_no_pick(self, network, key, arena):
        space = FeatureSpace(normalise="response")
        for name in ("random", "aplp", "activedpo"):
            _, plain = self.played(name, network, key, arena)
            learner, rounds = self.played(name, network, key, arena, diagnostics=space)
            assert all(learner.seen.values())
            for a, b in zip(plain, rounds, strict=True):
                assert torch.equal(a.picks, b.picks)
                assert (b.pool.widths > 0).any()
                assert b.pool.entropy.shape == (3, 8)
            if name == "random":  # V = ridge·I at first, of gradients of length 1
                assert float(rounds[0].pool.widths.max()) <= 2 / 2**0.5

    def test_the_identity_never_looks_at_past_duels(self, network, key, arena):
        """Its V forgets them, so their gradients are not recomputed at every θ."""
        learner, rounds = self.played("activedpo-identity", network, key, arena)
        assert learner.seen["features"] == [24] * ROUNDS
        assert all(float(torch.as_tensor(round.information).max()) == 0 for round in rounds)


class TestLabelled:
    def offer(self, key: Key, prompts: int = 4, lasting: bool = False) -> Offer[Inputs]:
        duels = Duels.within(prompts, 3).expand(3)
        return Offer(
            Inputs(key.normal(prompts * 3, 2), 3), duels, torch.ones(3, duels.count, dtype=torch.bool), lasting
        )

    @given(seed=st.integers(0, 10**6), lasting=st.booleans())
    def test_joined_duels_name_the_items_that_were_asked(self, seed, lasting):
        """Whatever the rounds were, the history's differences are those of the rounds' tables, in order."""
        key, past, expected, shared = Key(seed, (0, 1, 2)), Labelled(), [], None
        for number in range(3):
            offer = shared or self.offer(key.fold_in(number), lasting=lasting)
            shared = offer if lasting else None
            picks = key.fold_in("picks", number).uniform(offer.duels.count).argsort(-1)[:, : number + 1]
            asked, won = offer.duels.take(picks), (picks % 2 == 0).double()
            longer = past.add(offer, asked, won)
            assert len(longer) == len(past) + number + 1
            past = longer
            expected.append(asked.difference(offer.items.x.sum(-1)))
        assert len(past.batches) == 3
        torch.testing.assert_close(past.duels.difference(past.items.x.sum(-1)), torch.cat(expected, -1))
        assert past.outcome.shape == (3, 6)
        assert past.items.prompts == (4 if lasting else 6)

    def test_adding_leaves_the_shorter_history_as_it_was(self, key):
        offer = self.offer(key)
        one = Labelled().add(offer, offer.duels.take(torch.zeros(3, 1).long()), torch.ones(3, 1, dtype=torch.float64))
        two = one.add(offer, offer.duels.take(torch.ones(3, 2).long()), torch.ones(3, 2, dtype=torch.float64))
        assert (len(Labelled()), len(one), len(two)) == (0, 1, 3)
        assert not Labelled()
        assert one.items.prompts == 1


def test_a_linearised_learner_restored_goes_on_as_if_it_had_seen_all(network, key, arena):
    """Its Gram matrix is kept by the length of the history, and made again, to the same bytes, where it is missing."""
    initial = network.initial(key.fold_in("network"))
    one, again = (TangentLearner(network, initial, 0.7) for _ in range(2))
    past = Labelled()
    for number in range(3):
        offer = arena.offer(number)
        asked = offer.duels.take(key.fold_in("asked", number).uniform(24).argsort(-1)[:, :4])
        past = past.add(offer, asked, arena.label(asked))
        if number == 2:
            again.restore(one.state())
            assert torch.equal(again.rewards(offer.items), one.rewards(offer.items))
            again.fit(past)
        one.fit(past)
    assert torch.equal(again.rewards(offer.items), one.rewards(offer.items))
    assert torch.equal(again.margins, one.margins)
    shorter = Labelled(past.batches[:1])
    fresh = TangentLearner(network, initial, 0.7)
    one.fit(shorter)
    fresh.fit(shorter)
    torch.testing.assert_close(one.rewards(offer.items), fresh.rewards(offer.items), rtol=1e-6, atol=1e-8)
