"""Every rule beyond the width against a slow, obvious statement of it in float64, with explicit matrices."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replicates import alone
from scipy import integrate, stats
from scipy.special import expit, xlog1py, xlogy

from bandits.core.design import Design, GramDesign
from bandits.core.duels import Duels, Truth
from bandits.core.errors import InputError
from bandits.core.greedy import gains
from bandits.core.oracles import ORACLES
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.loop import DesignState, Ridges, Schedule, check, play
from bandits.selector import (
    STRATEGIES,
    Ceiling,
    DecisiveBALD,
    DeltaLogDet,
    FeatureSpace,
    KCentre,
    MaxHerding,
    Pool,
    RandomPerPrompt,
    Stochastic,
    select,
)
from bandits.sim.learners import NeuralLearner
from bandits.sim.problem import Problem, SyntheticArena, foreseen
from bandits.sim.truths import Cosine

LUCK = Key(3)
seeds = st.integers(0, 10**6)


@dataclasses.dataclass
class World:
    """A small pool with every matrix in the open."""

    seed: int
    fisher: bool = False
    prompts: int = 5
    k: int = 3
    dim: int = 6
    ridge: float = 0.8
    ties: float = 0.0

    def information(self, margins: np.ndarray) -> np.ndarray:
        """What an answer tells of its margin: ``σ'``, or with ties the variance of 1, ½ and 0 by Davidson."""
        return (1 + self.ties / 2 * np.cosh(margins / 2)) / (2 * np.cosh(margins / 2) + self.ties) ** 2

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.duels = Duels.within(self.prompts, self.k)
        first, second = self.duels.first.numpy(), self.duels.second.numpy()
        self.items = rng.standard_normal((self.prompts * self.k, self.dim))
        self.rewards = rng.standard_normal(self.prompts * self.k)
        self.phi, self.m = self.items[first] - self.items[second], self.rewards[first] - self.rewards[second]
        self.slopes = self.information(self.m)
        self.past = rng.standard_normal((3, self.dim))
        self.V = self.ridge * np.eye(self.dim) + self.past.T @ self.past
        self.aims, self.aim_m, self.aim_true = rng.standard_normal((4, self.dim)), *rng.standard_normal((2, 4))
        self.p = rng.random(len(first))
        self.tied = rng.random(len(first)) * (1 - self.p) if self.ties else np.zeros(len(first))
        self.free = rng.random(len(first)) < 0.8
        self.free[:6] = True
        self.asked = ~self.free

    def pool(self) -> Pool:
        """What a rule is shown of it; Fisher weights scale the rows, as the loop does."""
        design = GramDesign(self.ridge)
        design.append(Dense(torch.from_numpy(self.past)))
        aim_slopes = self.information(self.aim_m)
        mean = self.p + self.tied / 2
        variance = self.p + self.tied / 4 - mean**2
        own, theirs = (self.slopes, aim_slopes) if self.fisher else (np.ones(len(self.m)), np.ones(4))

        def seen(rows: np.ndarray, weights: np.ndarray):
            return design.condition(Dense(torch.from_numpy(rows * np.sqrt(weights)[:, None])))

        return Pool(
            self.duels,
            torch.from_numpy(self.free),
            self.k,
            seen(self.phi, own),
            torch.from_numpy(self.rewards),
            None,
            torch.from_numpy(self.asked),
            seen(self.items, np.ones(len(self.items))),
            seen(self.aims, theirs),
            torch.from_numpy(self.aim_m),
            Truth(*(torch.from_numpy(x) for x in (mean, variance, self.aim_true))),
            ties=self.ties,
        )

    def left(self, picks: list[int]) -> list[int]:
        """The duels that may still be picked."""
        return [i for i in range(len(self.m)) if self.free[i] and i not in picks]

    def width(self, V: np.ndarray, i: int) -> float:
        return float(self.phi[i] @ np.linalg.inv(V) @ self.phi[i]) ** 0.5


class TestTrace:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["policy-trace", "policy-trace-target"])
    @given(seed=seeds)
    def test_it_lowers_the_trace_most(self, name, seed):
        """``tr(M V⁻¹)`` with ``M`` the policy's Fisher matrix of uniform policies, or that of the target's duels."""
        world = World(seed)
        by_prompt = world.items.reshape(world.prompts, world.k, -1)
        fisher = sum(np.cov(part.T, bias=True) for part in by_prompt)  # Cov over uniform responses, summed
        M = fisher if name == "policy-trace" else world.aims.T @ world.aims
        picks, V = [], world.V
        for _ in range(4):
            trace = {
                i: np.trace(M @ np.linalg.inv(V + np.outer(world.phi[i], world.phi[i]))) for i in world.left(picks)
            }
            picks.append(min(trace, key=lambda i: trace[i]))
            V = V + np.outer(world.phi[picks[-1]], world.phi[picks[-1]])
        pool = world.pool()
        assert select(pool, STRATEGIES[name], 4, LUCK).tolist() == picks
        best = torch.where(pool.available, STRATEGIES[name].scores(pool, LUCK), -1).argmax()
        assert int(best) == picks[0]


class TestDelta:
    @pytest.mark.slow
    @given(seed=seeds, nu=st.sampled_from([0.0, 0.5, 2.0]), responses=st.booleans(), k=st.integers(2, 5))
    def test_the_batch_is_the_greedy_one_of_the_prompts_proposals(self, seed, nu, responses, k):
        world = World(seed, k=k)
        inverse, count = np.linalg.inv(world.V), min(7, int(world.free.sum()))
        own = np.sqrt(np.einsum("nd,de,ne->n", world.items, inverse, world.items))
        first, second = world.duels.first.tolist(), world.duels.second.tolist()
        gap = [
            abs(m) + nu * (own[a] + own[b] if responses else world.width(world.V, i))
            for i, (m, a, b) in enumerate(zip(world.m, first, second, strict=True))
        ]
        proposals = {p: sorted(g, key=lambda i: -gap[i]) for p, g in self.groups(world).items()}
        picks, V = [], world.V
        while len(picks) < count:
            turn = min(place for g in proposals.values() for place, i in enumerate(g) if i not in picks)
            heads = [g[turn] for g in proposals.values() if len(g) > turn and g[turn] not in picks]
            picks.append(max(heads, key=lambda i: world.width(V, i)))
            V = V + np.outer(world.phi[picks[-1]], world.phi[picks[-1]])
        rule = DeltaLogDet(nu=nu, widths="responses" if responses else "difference")
        assert select(world.pool(), rule, count, LUCK).tolist() == picks

    def groups(self, world: World) -> dict[int, list[int]]:
        return {
            p: list(g) for p, g in itertools.groupby(world.left([]), lambda i: int(world.duels.first[i]) // world.k)
        }

    @given(seed=seeds, q=st.sampled_from([0.0, 0.2, 0.34, 0.6]))
    def test_the_quantile_passes_over_the_worst_rivals_of_the_best(self, seed, q):
        world = World(seed, k=6)
        world.free[:] = True
        place = DeltaLogDet(quantile=q, nu=0.5).proposals(world.pool(), LUCK)
        gap = [abs(m) + 0.5 * world.width(world.V, i) for i, m in enumerate(world.m)]
        for group in self.groups(world).values():
            top = max(group, key=lambda i: gap[i])
            best = int(world.duels.first[top] if world.m[top] >= 0 else world.duels.second[top])
            rivals = [i for i in group if best in (int(world.duels.first[i]), int(world.duels.second[i]))]
            expected = sorted(rivals, key=lambda i: -gap[i])[int(q * 5 + 1e-9)]
            assert [i for i in group if int(place[i]) == 0] == [expected]
            assert sorted(int(place[i]) for i in group) == list(range(15))


def entropy(p: float) -> float:
    return -float(xlogy(p, p) + xlog1py(1 - p, -p))


class TestDecisive:
    @pytest.mark.parametrize("margin", [-3.0, -0.4, 0.0, 1.0, 4.0])
    @pytest.mark.parametrize("width", [1e-3, 0.3, 1.0, 2.0])
    def test_sixteen_nodes_are_the_integral(self, margin, width):
        """The information to 0.2 %; with the kink of ``|2p - 1|`` in it to 7 %, where the kink is in the middle."""

        def mean(f):
            return integrate.quad(lambda z: f(expit(margin + width * z)) * stats.norm.pdf(z), -12, 12, limit=400)[0]

        information = entropy(mean(lambda p: p)) - mean(entropy)
        decided = mean(lambda p: abs(2 * p - 1))
        m, w = torch.tensor([margin]).double(), torch.tensor([width]).double()
        assert float(DecisiveBALD(decisive=False).worth(m, w)) == pytest.approx(information, rel=2e-3)
        assert float(DecisiveBALD().worth(m, w)) == pytest.approx(information * decided, rel=7e-2)

    def test_nothing_is_lost_where_the_answer_is_known(self):
        """Information of a far margin is ``σ'(m) w² / 2`` for small ``w``: tiny, but not rounding."""
        m, w = torch.tensor([30.0, -30.0]).double(), torch.tensor([0.01, 0.01]).double()
        got = DecisiveBALD(decisive=False).worth(m, w)
        torch.testing.assert_close(got, torch.full_like(got, np.exp(-30) * 1e-4 / 2), rtol=1e-2, atol=0)

    @pytest.mark.slow
    @given(seed=seeds, decisive=st.booleans())
    def test_the_batch_updates_the_hessian(self, seed, decisive):
        world = World(seed, fisher=True)
        nodes, weights = np.polynomial.hermite.hermgauss(16)

        def worth(H: np.ndarray, i: int) -> float:
            p = expit(world.m[i] + world.width(H, i) * np.sqrt(2) * nodes)
            share = weights / np.sqrt(np.pi)
            information = entropy(float(share @ p)) - float(share @ [entropy(x) for x in p])
            return information * (float(share @ np.abs(2 * p - 1)) if decisive else 1.0)

        picks, H = [], world.V
        for _ in range(4):
            picks.append(max(world.left(picks), key=lambda i: worth(H, i)))
            H = H + world.slopes[picks[-1]] * np.outer(world.phi[picks[-1]], world.phi[picks[-1]])
        assert select(world.pool(), DecisiveBALD(decisive=decisive), 4, LUCK).tolist() == picks

    @given(seed=seeds)
    def test_with_ties_an_answer_s_information_is_davidson_s(self, seed):
        world = World(seed, fisher=True, ties=1.5)
        pool = world.pool()
        widths = torch.tensor([world.width(world.V, i) for i in range(len(world.m))], dtype=torch.float64)
        rule = DecisiveBALD()
        torch.testing.assert_close(rule.scores(pool, LUCK), rule.worth(pool.margins, widths), rtol=1e-9, atol=1e-12)


class TestCeiling:
    @pytest.mark.slow
    @given(seed=seeds, ties=st.sampled_from([0.0, 1.5]))
    def test_it_lowers_the_expected_error_most(self, seed, ties):
        """All answers of every duel, each with its Newton step by an explicit Hessian; then the expected one."""
        world = World(seed, fisher=True, ties=ties)
        H, m, aim = world.V, world.m.copy(), world.aim_m.copy()
        picks: list[int] = []

        def step(i: int, y: float) -> np.ndarray:
            after = H + world.slopes[i] * np.outer(world.phi[i], world.phi[i])
            share = expit(m[i]) if not ties else (np.exp(m[i] / 2) + ties / 2) / (2 * np.cosh(m[i] / 2) + ties)
            return np.linalg.solve(after, world.phi[i]) * (y - share)

        for _ in range(4):
            error = {
                i: sum(
                    chance * np.square(aim + world.aims @ step(i, y) - world.aim_true).sum()
                    for y, chance in ((1.0, world.p[i]), (0.5, world.tied[i]), (0.0, 1 - world.p[i] - world.tied[i]))
                )
                for i in world.left(picks)
            }
            picks.append(min(error, key=lambda i: error[i]))
            moved = step(picks[-1], world.p[picks[-1]] + world.tied[picks[-1]] / 2)
            aim, m = aim + world.aims @ moved, m + world.phi @ moved
            H = H + world.slopes[picks[-1]] * np.outer(world.phi[picks[-1]], world.phi[picks[-1]])
        assert select(world.pool(), Ceiling(), 4, LUCK).tolist() == picks

    @pytest.mark.slow
    def test_it_is_below_all_others_in_the_simulator(self, network, key):
        """The error of held-out margins after 40 labels, mean of 12 replicates.

        Over 8 seeds its ratio to the better of the two others is 0.85 with a standard deviation of 0.04.
        """
        error = {}
        luck = Key(2, tuple(range(12)))
        for name in ("random", "activedpo", "ceiling"):
            problem = Problem(Cosine(), luck.fold_in("world"), prompts=40, responses=3, dim=4, heldout=20, rounds=4)
            learner = NeuralLearner(network, network.initial(luck.fold_in("network")), 1.0)
            list(play(SyntheticArena(problem), learner, STRATEGIES[name], Schedule(4, 10), Ridges(4.0, 1.0), luck))
            items, rewards = problem.heldout_table()
            duels = Duels.within(20, 3).expand(12)
            wrong = duels.difference(learner.rewards(items)) - duels.difference(rewards)
            error[name] = float(wrong.square().mean(-1).sqrt().mean())
        assert error["ceiling"] < min(error["random"], error["activedpo"])


class TestCoverage:
    def distances(self, world: World) -> np.ndarray:
        """``min ‖φ ∓ φ'‖²``, with 0 and the asked duels in front."""
        rows = np.concatenate([np.zeros((1, world.dim)), world.phi[world.asked], world.phi])
        return np.minimum(*(np.square(rows[:, None] + s * rows[None]).sum(-1) for s in (1, -1)))

    @given(seed=seeds)
    def test_k_centre_goes_where_nothing_is_near(self, seed):
        world = World(seed)
        pool = self.plain(world)
        d, start = self.distances(world), 1 + int(world.asked.sum())
        picks = select(pool, KCentre(), 5, LUCK).tolist()
        for place, pick in enumerate(picks):  # two duels of one prompt may be equally far: any of them will do
            covered = [*range(start), *(start + i for i in picks[:place])]
            near = {i: d[start + i, covered].min() for i in world.left(picks[:place])}
            assert near[pick] == pytest.approx(max(near.values()))

    @given(seed=seeds, length=st.sampled_from([0.5, 1.0, 2.0]))
    def test_max_herding_covers_most(self, seed, length):
        world = World(seed)
        d, start = self.distances(world), 1 + int(world.asked.sum())
        k = np.exp(-d / (2 * length**2 * np.square(world.phi).sum(-1).mean()))
        picks = select(self.plain(world), MaxHerding(length=length), 5, LUCK).tolist()
        for place, pick in enumerate(picks):
            covered = [*range(start), *(start + i for i in picks[:place])]
            cover = {i: k[start:, [*covered, start + i]].max(-1).sum() for i in world.left(picks[:place])}
            assert cover[pick] == pytest.approx(max(cover.values()))

    def plain(self, world: World) -> Pool:
        seen = Design.of(Dense(torch.from_numpy(world.phi)), world.ridge, "identity").condition(
            Dense(torch.from_numpy(world.phi))
        )
        return dataclasses.replace(world.pool(), posterior=seen)

    def test_dissimilar_is_the_smallest_cosine(self, network, key, items):
        learner = NeuralLearner(network, network.initial(key), 1.0)
        rule = STRATEGIES["dissimilar"]
        duels = Duels.within(8, 3).expand(3)
        state = DesignState(rule.space, 1.0, 4)
        rows = state.rows(learner, items, duels)
        seen = Design.of(rows, 1.0, "identity").condition(rows)
        free = torch.ones(3, 24, dtype=torch.bool)
        picks = select(Pool(duels, free, 3, seen), rule, 4, Key(0, (0, 1, 2)))
        last = network.embedding(learner.initial, items.x).values
        for r in range(3):
            a, b = last[r, duels.first[r]], last[r, duels.second[r]]
            cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
            assert picks[r].tolist() == cosine.argsort()[:4].tolist()


class TestLuck:
    def test_random_per_prompt_levels_the_prompts(self):
        """No prompt gets another duel while one with a free duel has had fewer; earlier rounds' duels count."""
        for seed in range(20):
            world = World(seed)
            picks = select(world.pool(), RandomPerPrompt(), int(world.free.sum()), Key(seed)).tolist()
            prompt = [int(p) for p in world.duels.first // world.k]
            had = [sum(world.asked[i] for i in range(15) if prompt[i] == p) for p in range(5)]
            for place, pick in enumerate(picks):
                rest = {prompt[i] for i in picks[place:]}
                assert had[prompt[pick]] == min(had[p] for p in rest)
                had[prompt[pick]] += 1

    @pytest.mark.slow
    def test_random_per_prompt_is_uniform_within_a_prompt_and_between_prompts(self):
        """Chi-square over 15 duels and 600 draws at level 1e-5."""
        world = World(0)
        world.free[:], world.asked[:] = True, False
        counts = np.zeros(15)
        for i in range(600):
            counts[int(select(world.pool(), RandomPerPrompt(), 1, Key(i)))] += 1
        assert stats.chisquare(counts).pvalue > 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize(("by", "power"), [("score", 1.0), ("score", 3.0), ("rank", 1.0), ("rank", 2.0)])
    def test_a_stochastic_batch_draws_by_its_scores(self, by, power):
        """First and second pick against ``s^power`` without replacement: chi-square, 800 draws, level 1e-5."""
        world = World(1, prompts=1, k=3)
        world.free[:] = True
        pool, rule = world.pool(), STRATEGIES["activedpo-top-b"]
        score = pool.widths.numpy()
        if by == "rank":
            score = 1 / stats.rankdata(-score)
        share = score**power
        counts = np.zeros((3, 3))
        for i in range(800):
            a, b = select(pool, Stochastic(rule, power, by), 2, Key(i)).tolist()
            counts[a, b] += 1
        expected = np.array(
            [
                [0 if a == b else share[a] / share.sum() * share[b] / (share.sum() - share[a]) for b in range(3)]
                for a in range(3)
            ]
        )
        off = ~np.eye(3, dtype=bool)
        assert stats.chisquare(counts[off], 800 * expected[off]).pvalue > 1e-5

    def test_scores_that_may_be_negative_are_ranked(self):
        world = World(2)
        with pytest.raises(InputError, match="LabelEntropy's scores may be negative, or are several: set by='rank'"):
            select(world.pool(), Stochastic(STRATEGIES["label-entropy"]), 2, LUCK)
        with pytest.raises(InputError, match="the power must be positive"):
            Stochastic(STRATEGIES["label-entropy"], power=0.0)


class TestSettings:
    @pytest.mark.parametrize(
        ("rule", "changes", "words"),
        [
            ("policy-trace", {"space": FeatureSpace(metric="diagonal")}, "PolicyTrace needs a space of metric 'full'"),
            ("decisive-bald", {"space": FeatureSpace()}, "needs a space of weight 'fisher', got 'none'"),
            ("ceiling", {"space": FeatureSpace()}, "needs a space of weight 'fisher'"),
            ("delta-logdet", {"quantile": 1.0}, "quantile must lie in"),
            ("delta-logdet", {"nu": -1.0}, "nu must not be negative"),
            ("delta-logdet-responses", {"space": FeatureSpace(weight="fisher")}, "needs a space of weight 'none'"),
            ("delta-logdet-responses", {"space": FeatureSpace(normalise="duel")}, "cannot normalise duels"),
            ("max-herding", {"length": 0.0}, "length must be positive"),
        ],
    )
    def test_what_means_nothing_is_refused(self, rule, changes, words):
        with pytest.raises(InputError, match=words):
            dataclasses.replace(STRATEGIES[rule], **changes)


class TestArena:
    def arena(self, heldout: int, oracle: str = "btl") -> SyntheticArena:
        problem = Problem(Cosine(), Key(4, (0, 1)), prompts=6, responses=3, dim=4, heldout=heldout, rounds=3)
        return SyntheticArena(problem, ORACLES[oracle])

    def test_what_an_arena_does_not_have_is_refused_before_work(self, network, key):
        for name, words in (("policy-trace-target", "reads target"), ("ceiling", "reads target and truth")):
            with pytest.raises(InputError, match=f"{words}, which SyntheticArena does not have"):
                check(STRATEGIES[name], self.arena(0))
            learner = NeuralLearner(network, network.initial(key), 1.0)
            with pytest.raises(InputError, match="does not have; choose another strategy"):
                next(play(self.arena(0), learner, STRATEGIES[name], Schedule(1, 2), Ridges(1.0, 1.0), key))
            check(STRATEGIES[name], self.arena(2))
        check(STRATEGIES["policy-trace"], self.arena(0))

    def test_what_was_asked_is_told(self):
        arena = self.arena(2)
        offer = arena.offer(0)
        assert not offer.asked.any()
        arena.label(offer.duels.take(torch.tensor([[1, 4], [0, 2]])))
        asked = arena.offer(1).asked
        assert asked[0].nonzero().flatten().tolist() == [1, 4]
        assert asked[1].nonzero().flatten().tolist() == [0, 2]

    @pytest.mark.slow
    @pytest.mark.parametrize("oracle", list(ORACLES))
    def test_the_truth_is_what_the_oracle_answers(self, oracle):
        """Mean and variance of 3,000 answers to each of 18 duels, in 2 worlds, at 5 standard errors (1e-4 in all)."""
        from bandits.sim.problem import answer

        arena = self.arena(2, oracle)
        offer = arena.offer(0)
        draws = torch.stack(
            [
                answer(arena.oracle, Key(i, (0, 1)).uniform(6, 3, 3), arena.rewards, offer.duels).double()
                for i in range(3000)
            ]
        )
        mean, variance = foreseen(arena.oracle, arena.rewards, offer.duels, 3)
        assert ((draws.mean(0) - mean).abs() <= 5 * (variance / 3000).sqrt() + 1e-9).all()
        # (y - mean)² lies in [0, 1], so its standard deviation is at most 1/2.
        assert (((draws - mean).square().mean(0) - variance).abs() <= 5 * 0.5 / 3000**0.5).all()
        items, rewards = arena.problem.heldout_table()
        assert torch.equal(offer.target.items.x, items.x)
        assert torch.equal(offer.truth.margins, offer.target.duels.difference(rewards))


class TestGains:
    @pytest.mark.parametrize("metric", ["full", "diagonal", "identity"])
    @given(seed=seeds)
    @settings(max_examples=10)
    def test_they_are_those_of_the_metric(self, metric, seed):
        world = World(seed)
        design = Design.of(Dense(torch.from_numpy(world.phi)), world.ridge, metric)
        design.append(Dense(torch.from_numpy(world.past)))
        picks = [7, 2, 11]
        alone_, batch = gains(design.condition(Dense(torch.from_numpy(world.phi))), torch.tensor(picks))

        def added(V: np.ndarray, i: int) -> tuple[float, np.ndarray]:
            after = V + np.outer(world.phi[i], world.phi[i])
            after = np.diag(np.diag(after)) if metric == "diagonal" else after
            return np.linalg.slogdet(after)[1] - np.linalg.slogdet(V)[1], after

        kept = {"full": world.V, "diagonal": np.diag(np.diag(world.V)), "identity": world.ridge * np.eye(world.dim)}
        V = kept[metric]
        np.testing.assert_allclose(alone_, [added(V, i)[0] for i in range(15)], rtol=1e-8)
        for place, i in enumerate(picks):
            gain, after = added(V, i)
            assert float(batch[place]) == pytest.approx(gain)
            V = V if metric == "identity" else after


def test_alone_takes_one_replicate():
    assert alone(torch.arange(6).view(2, 3), 1).tolist() == [[3, 4, 5]]
