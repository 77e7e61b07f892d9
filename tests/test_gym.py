"""The simulator's Gymnasium environments: accepted by the library's own checker, seeded as it says, and not fooled."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.rng import Key
from bandits.sim.gym import SyntheticEnv
from bandits.sim.problem import Problem, SyntheticArena
from bandits.sim.truths import Linear


def make(count: int, **settings):
    return gymnasium.make_vec("ActiveDPO/Synthetic-v0", count, prompts=4, **settings)


def test_gymnasium_accepts_it():
    env = gymnasium.make("ActiveDPO/Synthetic-v0", prompts=4, batch=3)
    check_env(env.unwrapped)
    table, info = env.reset(seed=1)
    assert table.shape == (12, 5)
    assert info["rewards"].shape == (12,)
    steps = [env.step(np.array([0, 0, 1])) for _ in range(3)]
    assert [s[2] for s in steps] == [False, False, True]
    assert all(s[1] in (0.0, 1.0) for s in steps)


@pytest.mark.parametrize("seed", [5, np.int64(5), [4, 5, 6], [np.int32(4), np.uint8(5), 6], np.array([4, 5, 6])])
def test_environment_k_is_the_single_one_of_its_own_seed(seed):
    envs = make(3)
    table, info = envs.reset(seed=seed)
    assert table.shape == (3, 12, 5)
    seeds = list(seed) if isinstance(seed, list | np.ndarray) else [seed, seed + 1, seed + 2]
    for k, own in enumerate(seeds):
        alone, truth = SyntheticEnv(prompts=4).reset(seed=own)
        assert np.array_equal(table[k], alone)
        assert np.array_equal(info["rewards"][k], truth["rewards"])
    actions = np.array([[1, 0, 2], [3, 1, 0], [0, 2, 1]])
    single = [SyntheticEnv(prompts=4) for _ in seeds]
    for env, own in zip(single, seeds, strict=True):
        env.reset(seed=own)
    won = [env.step(action)[1] for env, action in zip(single, actions, strict=True)]
    assert envs.step(actions)[1].tolist() == won


def test_no_seed_shows_the_next_round_of_the_same_problem():
    envs = make(2, fresh=True, rounds=2)
    first, _ = envs.reset(seed=[4, 9])
    second, _ = envs.reset(seed=[None, None])
    third, _ = envs.reset()
    assert not np.array_equal(first, second)
    assert np.array_equal(first, third), "after the last round the first is shown again"
    other, _ = envs.reset(seed=[None, 3])
    assert np.array_equal(other[0], second[0])
    assert np.array_equal(other[1], SyntheticEnv(prompts=4, fresh=True, rounds=2).reset(seed=3)[0])


def test_fresh_pools_fit_into_memory():
    env = SyntheticEnv(fresh=True)
    assert env.reset()[0].shape == (24, 5)


@pytest.mark.parametrize(
    "action", [[0, 0, 3], [0, -1, 1], [4, 0, 1], [-1, 0, 1], [0, 1], [0.0, 1.0, 2.0], [[0, 0, 1]], "abc", None]
)
def test_an_action_that_names_no_duel_is_refused(action):
    env = SyntheticEnv(prompts=4)
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"an action is \(prompt, first response, second response\)"):
        env.step(action)


@pytest.mark.parametrize("seed", [-1, 1.5, "one"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises((gymnasium.error.Error, TypeError)):
        SyntheticEnv().reset(seed=seed)


def test_a_step_labels_as_the_arena_does():
    env = SyntheticEnv(prompts=8, batch=3)
    env.reset(seed=2, options={"round": 2})
    key = Key(2, (0,))
    arena = SyntheticArena(Problem(Linear(), key, 8, 3, 5, rounds=10**9))
    arena.offer(2)
    duels = Duels.within(8, 3).take(torch.tensor([0, 7, 20])).expand(1)
    won = arena.label(duels)[0].tolist()
    for first, second, label in zip(duels.first[0].tolist(), duels.second[0].tolist(), won, strict=True):
        assert env.step(np.array([first // 3, first % 3, second % 3]))[1] == float(label)


@pytest.mark.campaign
def test_the_library_needs_no_gymnasium():
    code = "import sys, bandits, bandits.loop, bandits.sim.run, bandits.sim.config; print('gymnasium' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
