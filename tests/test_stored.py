"""Rows on disk: the same widths, picks and inner products as the same rows in memory, whatever the duels' weights."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from bandits.core import stored
from bandits.core.design import Design
from bandits.core.duels import Duels
from bandits.core.greedy import greedy
from bandits.core.rng import Key
from bandits.core.rows import Dense
from bandits.core.stored import Stored, StoredPairs


def mapped(path, values: torch.Tensor) -> torch.Tensor:
    np.save(path, values.float().numpy())
    return torch.from_numpy(np.load(path, mmap_mode="c"))


@pytest.fixture(autouse=True)
def _little_at_once(monkeypatch):
    monkeypatch.setattr(stored, "AT_ONCE", 40)
    monkeypatch.setattr(stored, "FORMED", 0)


@pytest.mark.slow
@given(
    st.integers(0, 99),
    st.integers(2, 9),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["none", "duel", "response"]),
)
def test_designs_and_picks_are_those_of_rows_in_memory(tmp_path_factory, seed, prompts, size, past, normalise):
    key = Key(seed)
    table = mapped(tmp_path_factory.mktemp("t") / "t.npy", key.normal(3 * prompts, size))
    duels, answered = Duels.within(prompts, 3), Duels(torch.tensor([0, 1, 3]), torch.tensor([1, 2, 5]))
    seen = []
    for items in (Stored(table), Dense(table.double())):
        items = items.normalised() if normalise == "response" else items
        rows, asked = (items.differences(d) for d in (duels, answered))
        assert isinstance(rows, StoredPairs) is isinstance(items, Stored)
        if normalise == "duel":
            rows, asked = rows.normalised(), asked.normalised()
        rows, asked = rows.scaled(key.uniform(rows.count) + 0.5), asked.scaled(key.uniform(asked.count))
        design = Design.of(rows, 0.3)
        if past:
            design.append(asked)
        posterior = design.condition(rows)
        picks = greedy(posterior, 3, torch.ones(rows.count, dtype=torch.bool), torch.arange(rows.count).double())
        design.extend(posterior.take(picks))
        seen.append((posterior.widths, picks, torch.as_tensor(design.information()), rows.inner(asked), rows.squares()))
        assert rows.finite()
        assert torch.allclose(rows.dense().values, rows.take(torch.arange(rows.count)).dense().values)
    ours, theirs = seen
    assert torch.equal(ours[1], theirs[1])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-9)


def test_a_number_that_is_none_is_noticed(tmp_path):
    table = mapped(tmp_path / "t.npy", torch.ones(6, 3))
    table[4, 1] = torch.nan
    assert not Stored(table).finite()
    assert not Stored(table).differences(Duels.within(2, 3)).finite()


def test_rows_may_lie_elsewhere_in_the_table(tmp_path):
    table = mapped(tmp_path / "t.npy", torch.arange(18.0).reshape(6, 3))
    places = torch.tensor([5, 0, 0, 2])
    rows, direct = Stored(table, places=places), Dense(table[places].double())
    assert torch.equal(rows.dense().values, direct.values)
    assert torch.equal(rows.inner(direct), direct.inner(direct))
    assert torch.equal(rows.take(torch.tensor([3])).values, direct.values[3:])


def test_few_duels_are_formed(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FORMED", 6 * 3)
    table = mapped(tmp_path / "t.npy", torch.arange(18.0).reshape(6, 3))
    rows = Stored(table).differences(Duels.within(2, 3))
    assert isinstance(rows, Dense)
    assert torch.equal(rows.values, Dense(table.double()).differences(Duels.within(2, 3)).values)


def test_squared_norms_keep_their_digits_where_items_are_close():
    noise = Key(0).normal(12, 300)
    noise[1] = 0
    table = 3 + noise * 10.0 ** -torch.arange(12, dtype=torch.float64)[:, None]  # from far apart to the last digit
    rows = Stored(table).differences(Duels.within(1, 12))
    want = (table[rows.duels.first] - table[rows.duels.second]).square().sum(-1)
    assert float(want.min()) < 1e-15 < 1 < float(want.max())
    assert torch.allclose(rows.squares(), want, rtol=1e-8, atol=0)
    weights = torch.linspace(0, 2, rows.count, dtype=torch.float64)
    assert torch.allclose(rows.scaled(weights).squares(), weights.square() * want, rtol=1e-8, atol=0)
    assert Stored(table[[4, 4]]).differences(Duels.within(1, 2)).squares().tolist() == [0.0]
