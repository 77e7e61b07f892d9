"""Shape checks at run time for the whole core, where asked for, and small problems that the tests share."""

import os
from collections.abc import Iterator

from jaxtyping import config, install_import_hook

if os.environ.get("SHAPES"):  # every call of the core is then checked, which takes as long again as what it does
    with install_import_hook("bandits", "shapes.check"):
        import bandits.sim.run  # noqa: F401

import hypothesis
import numpy as np
import pytest
import torch

from bandits.core.rng import Key
from bandits.sim.networks import MLP
from bandits.sim.problem import Inputs, Problem, SyntheticArena
from bandits.sim.truths import Cosine

hypothesis.settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")
torch.set_num_threads(1)


WHOLE_RUNS = {"cell": "slow", "finished": "slow", "run": "slow", "played": "campaign", "pooled": "campaign"}
"""fixtures that play a run, and how slow a test is that looks at one, whoever asks first"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for price in {WHOLE_RUNS[name] for name in getattr(item, "fixturenames", ()) if name in WHOLE_RUNS}:
            item.add_marker(getattr(pytest.mark, price))


@pytest.fixture(autouse=True)
def _unchecked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave run-time checks off where a test hands over what annotations forbid."""
    config.update("jaxtyping_disable", request.node.get_closest_marker("ill_typed") is not None)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def key() -> Key:
    return Key(7, (0, 1, 2))


@pytest.fixture
def network() -> MLP:
    return MLP(4, 12, 3)


@pytest.fixture
def arena(key: Key) -> SyntheticArena:
    problem = Problem(Cosine(), key.fold_in("world"), prompts=8, responses=3, dim=4, heldout=4, rounds=6)
    return SyntheticArena(problem)


@pytest.fixture
def items(arena: SyntheticArena) -> Inputs:
    return arena.offer(0).items


@pytest.fixture(autouse=True)
def _global_generators_untouched():
    """No test may move a global random state: randomness is an argument everywhere.

    Python's own ``random`` is moved by beartype, which samples what it checks; the linter bans it from the packages.
    """
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    yield
    assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.equal(torch_before, torch.get_rng_state())
