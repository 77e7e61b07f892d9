"""Ask and tell on plain arrays: the picks of the obvious greedy rule, whatever holds the numbers."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given

from bandits import InputError, Selector
from bandits.core import stored
from bandits.core.rng import Key


def obvious(
    values: np.ndarray, pairs: np.ndarray, past: np.ndarray, budget: int, ridge: float
) -> list[tuple[int, int]]:
    """``argmax ‖φ‖_{V⁻¹}``, then ``V += φφᵀ``, by inverses in float64."""
    values = values.astype(np.float64)
    matrix = ridge * np.eye(values.shape[1])
    for first, second in past:
        matrix += np.outer(values[first] - values[second], values[first] - values[second])
    asked, free = [], [tuple(pair) for pair in pairs if tuple(pair) not in {tuple(p) for p in past}]
    for _ in range(budget):
        inverse = np.linalg.inv(matrix)
        phi = {pair: values[pair[0]] - values[pair[1]] for pair in free}
        best = max(free, key=lambda pair: phi[pair] @ inverse @ phi[pair])
        asked.append(best)
        free.remove(best)
        matrix += np.outer(phi[best], phi[best])
    return asked


@pytest.mark.slow
@given(st.integers(0, 200), st.integers(1, 6), st.booleans(), st.sampled_from(["numpy", "torch", "mapped"]))
def test_two_batches_are_the_obvious_greedy_rule_s(tmp_path_factory, seed, size, formed, kind):
    values = Key(seed).normal(9, size).float().numpy()
    groups = np.array(["a", "b", "c", "a", "b", "a", "c", "b", "a"])  # of four, three and two
    pairs = np.array([(i, j) for i in range(9) for j in range(i + 1, 9) if groups[i] == groups[j]])
    pool = {"numpy": values, "torch": torch.from_numpy(values), "mapped": None}[kind]
    if kind == "mapped":
        np.save(path := tmp_path_factory.mktemp("m") / "x.npy", values)
        pool = np.load(path, mmap_mode="r")
    selector = Selector(ridge=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "FORMED", 2**25 if formed else 0)
        first = selector.ask(pool, 3, groups=groups)
        second = selector.tell([1, 0, 0.5]).ask(pool, 2, groups=groups)
    assert [tuple(pair) for pair in first] == obvious(values, pairs, np.empty((0, 2), int), 3, 0.5)
    assert [tuple(pair) for pair in second] == obvious(values, pairs, first, 2, 0.5)
    assert selector.duels_.shape == (len(pairs), 2)
    assert selector.widths_.shape == (len(pairs),)


def test_pairs_of_groups_of_unlike_sizes_are_made_group_by_group():
    groups = np.array([0] * 300 + list(np.repeat(np.arange(1, 3001), 2)) + [3001])
    selector = Selector("random")
    selector.ask(np.zeros((len(groups), 1)), 1, groups=groups)
    want = [(i, j) for i in range(300) for j in range(i + 1, 300)] + [(i, i + 1) for i in range(300, 6300, 2)]
    assert selector.duels_.tolist() == [list(pair) for pair in want]


def test_what_has_no_answer_is_neither_known_nor_asked_again():
    values = Key(1).normal(4, 3)
    selector, told = Selector(), Selector()
    asked = selector.ask(values, 6)
    selector.tell([float("nan")] * 5 + [None])
    assert selector.answers == {}
    with pytest.raises(InputError, match="0 duels left"):
        selector.ask(values, 1)
    more = torch.cat([values, Key(2).normal(1, 3)])
    told.tell([0.0], duels=asked[:1, ::-1])  # answered elsewhere, the other way round
    assert told.answers == {tuple(asked[0]): 1.0}
    assert tuple(asked[0]) not in {tuple(pair) for pair in told.ask(more, 9)}


def test_a_part_of_a_mapped_file_is_that_part(tmp_path, recwarn):
    np.save(tmp_path / "x.npy", Key(5).normal(12, 3).numpy())
    part = np.load(tmp_path / "x.npy", mmap_mode="r")[4:]
    assert Selector().ask(part, 4).tolist() == Selector().ask(np.array(part), 4).tolist()
    assert not recwarn.list


def test_rewards_are_read_by_those_who_read_them():
    values, rewards = Key(3).normal(6, 2), [0.0, 5.0, 0.1, 9.0, 1.0, 1.01]
    asked = Selector("label-entropy").ask(values, 1, duels=np.array([[0, 1], [2, 3], [5, 4]]), rewards=rewards)
    assert asked.tolist() == [[5, 4]]
    assert len(Selector("ucb").ask(values, 3, groups=[0, 0, 0, 1, 1, 2], rewards=rewards)) == 3


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda s: s.ask(np.ones(3), 1), r"an array of rows, \(n, d\)"),
        (lambda s: s.ask(np.full((3, 2), np.nan), 1), "NaN or infinite"),
        (lambda s: s.ask(np.eye(3), 4), "3 duels left"),
        (lambda s: s.ask(np.eye(3), 1, groups=[1, 2]), "groups are one per row"),
        (lambda s: s.ask(np.eye(3), 1, groups=[1, 2, 3]), "no group has two rows"),
        (lambda s: s.ask(np.eye(3), 1, duels=np.array([[0, 3]])), "rows from 0 to 2"),
        (lambda s: s.tell([1], duels=np.array([[-1, 2]])), r"counted from 0, got \(-1, 2\)"),
        (lambda s: s.tell([1], duels=np.array([[2, 2]])), r"two rows, counted from 0, got \(2, 2\)"),
        (lambda s: s.ask(np.eye(3), 1, duels=np.array([[0, 1]]), groups=[0, 1, 1]), "two rows of one group"),
        (lambda s: s.ask(np.eye(3), 1, duels=np.array([[0.0, 1.0]])), "whole numbers"),
        (lambda s: Selector("label-entropy").ask(np.eye(3), 1), "give your model's"),
        (lambda s: Selector("aplp"), "reads entropy"),
        (lambda s: s.tell([1]), "0 duels were asked"),
        (lambda s: (s.ask(np.eye(3), 1), s.tell([2])), "a share between 0 and 1"),
        (lambda s: (s.ask(np.eye(3), 1), s.ask(np.eye(3), 1)), "tell the answers"),
        (lambda s: (s.tell([1], duels=np.array([[0, 9]])), s.ask(np.eye(3), 1)), "row 9 was asked about"),
    ],
)
def test_what_cannot_be_is_told(ask, said):
    with pytest.raises(InputError, match=said):
        ask(Selector())


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda s: Selector(ridge="1"), "ask: the ridge must be positive and finite, got '1'"),
        (lambda s: Selector(ridge=float("nan")), "ask: the ridge must be positive"),
        (lambda s: Selector(ridge=0), "ask: the ridge must be positive"),
        (lambda s: Selector(seed=-1), "ask: the seed must be a whole number"),
        (lambda s: Selector(type(s.strategy)), "inherits from Strategy, got <class"),
        (lambda s: Selector(None), "inherits from Strategy, got None"),
        (lambda s: s.ask(POOL, 2.0), "ask: the budget must be a whole number, at least 1, got 2.0"),
        (lambda s: s.ask(POOL.astype(str), 1), "ask: the pool: no real numbers"),
        (lambda s: s.ask(POOL + 1j, 1), "ask: the pool: no real numbers"),
        (lambda s: s.ask([[1, 2], [3]], 1), "ask: the pool: no real numbers"),
        (lambda s: s.ask(None, 1), "ask: the pool: no real numbers, but NoneType"),
        (lambda s: s.ask(POOL, 1, duels=[[0], [1, 2]]), "pairs of rows"),
        (lambda s: s.ask(POOL, 1, groups=["a", None, "a", 1]), "groups are names or numbers, all of one kind"),
        (lambda s: Selector("ucb").ask(POOL, 1, rewards=["a"] * 4), "ask: rewards: no real numbers"),
        (lambda s: Selector("ucb").ask(POOL, 1, rewards=[None] * 4), "ask: rewards: no real numbers"),
        (lambda s: (s.ask(POOL, 2), s.tell(1)), "tell: answers are a list or an array"),
        (lambda s: (s.ask(POOL, 2), s.tell("10")), "tell: answers are a list or an array"),
        (lambda s: (s.ask(POOL, 2), s.tell({0: 1, 1: 0})), "tell: answers are a list or an array"),
        (lambda s: (s.ask(POOL, 2), s.tell(["left", "right"])), "tell: answers, 1, 0, 1/2 or NaN: no real numbers"),
        (lambda s: (s.ask(POOL, 2), s.tell(["1", "0"])), "no real numbers"),
        (lambda s: (s.ask(POOL, 2), s.tell(np.zeros((2, 1)))), r"one a duel, got shape \(2, 1\)"),
        (lambda s: s.ask(POOL, 2, duels=[[0, 1], [1, 0], [0, 1]]), "2 picks asked from a pool with 1 duels left"),
    ],
)
@pytest.mark.ill_typed
def test_what_is_of_another_kind_is_told_by_its_argument(ask, said):
    with pytest.raises(InputError, match=said):
        ask(Selector())


POOL = np.random.default_rng(0).standard_normal((4, 3))


@pytest.mark.parametrize("kind", [list, pd.DataFrame, lambda p: p.astype(">f8"), lambda p: p.astype(object)])
@pytest.mark.ill_typed
def test_pools_in_other_clothes_are_asked_alike(kind):
    want = Selector().ask(POOL, 3).tolist()
    assert Selector().ask(kind(POOL), 3, duels=pd.DataFrame([[a, b] for a in range(4) for b in range(a)])).shape == (
        3,
        2,
    )
    assert Selector().ask(kind(POOL), 3).tolist() == want


def test_batches_go_on_prompt_by_prompt_where_the_last_ended():
    """Six prompts of three: three batches of two ask every prompt once before any prompt twice."""
    values, groups = Key(0).normal(18, 4).numpy(), np.repeat(np.arange(6), 3)
    selector, prompts = Selector("random-per-prompt"), []
    for _ in range(3):
        asked = selector.ask(values, 2, groups=groups)
        prompts += groups[asked[:, 0]].tolist()
        selector.tell([1.0, 0.0])
    assert sorted(prompts) == [0, 1, 2, 3, 4, 5]
