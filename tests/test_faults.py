"""Which cases the fault campaign tries; the cases themselves are its own affair (``make faults``)."""

from hypothesis import given
from hypothesis import strategies as st

from faults.__main__ import drawn
from faults.harness import Case, few


def test_a_few_files_of_each_kind_are_tried():
    names = [f"run/cells/rule-{k}--seed{s}/{file}" for k in range(3) for s in (0, 1) for file in ("a.csv", "b.json")]
    names += [f"run/figures/{name}.svg" for name in ("error", "saved", "kappa", "calibration")] + ["run/manifest.json"]
    kept = [names[place] for place in few(names)]
    assert few(names, whole=True) == list(range(len(names)))
    assert sum(name.endswith("a.csv") for name in kept) == sum(name.endswith("b.json") for name in kept) == 3
    assert sum("figures" in name for name in kept) == 3
    assert kept[-1] == "run/manifest.json"


@given(st.lists(st.sampled_from(["kill", "damage", "setting"]), min_size=1, max_size=40), st.integers(1, 40))
def test_a_sample_is_drawn_evenly_over_the_kinds(kinds, count):
    every = [Case(kind, f"simulate {number}", lambda folder: "") for number, kind in enumerate(kinds)]
    chosen = drawn(every, count, 0)
    assert len(chosen) == min(count, len(every))
    assert chosen == drawn(every, count, 0) == [case for case in every if case in chosen]
    took = {kind: sum(case.kind == kind for case in chosen) for kind in set(kinds)}
    assert all(took[kind] in (kinds.count(kind), max(took.values()), max(took.values()) - 1) for kind in took)
