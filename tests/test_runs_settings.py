"""Settings: any value runs or is refused by its option's name, in every program, before anything is written."""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from bandits.core.errors import InputError
from bandits.runs import settings as kit
from bandits.runs.settings import Count, Distinct, Ge, Le, MinLen, Names, Positive, Probability, check, option
from bandits.sim.config import PRESETS, Simulation
from bandits.sim.map import PRESETS as MAPS
from bandits.sim.map import MapStudy
from bandits.sim.run import SimulationStudy, run_cell
from labelling.settings import Settings
from llm_loop.config import PRESETS as ALIGNMENTS
from llm_loop.config import Sketch
from llm_loop.learner import Training
from llm_loop.models import Adapter
from llm_loop.sampling import Decoding
from llm_loop.tuning import Tuning
from theory_checks.__main__ import main as theory
from theory_checks.study import suite


def refuse(name: str) -> None:
    if name != "known":
        raise InputError(f"unknown thing {name!r}")


@dataclass(frozen=True)
class Sample:
    count: Count = 1
    weight: Positive = 1.0
    share: Probability = 0.5
    plain: float = 0.0
    limit: Annotated[float, Ge(0), Le(2)] | None = None
    kind: Literal["a", "b"] = "a"
    sizes: Annotated[tuple[Count, ...], MinLen(2), Distinct()] = (1, 2)
    shares: Annotated[tuple[float, ...], Ge(0), Le(1)] = (0.0, 1.0)
    names: Annotated[tuple[str, ...], Names(refuse)] = ("known",)
    flag: bool = False

    def __post_init__(self) -> None:
        check(self)


class TestTable:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"count": 0}, "--count must be at least 1 and at most 1e+09, got 0"),
            ({"weight": math.nan}, "--weight must be above 0 and at most 1e+09, got nan"),
            ({"weight": math.inf}, "--weight must be above 0"),
            ({"weight": 1e30}, "--weight must be above 0"),
            ({"share": 1.0}, "--share must be above 0 and below 1, got 1.0"),
            ({"plain": math.inf}, "--plain must be finite, got inf"),
            ({"limit": 3.0}, "--limit must be at least 0 and at most 2, got 3.0"),
            ({"kind": "c"}, "--kind must be one of a, b, got 'c'"),
            ({"sizes": ()}, "--sizes needs at least 2 values, got 0"),
            ({"sizes": (3, 3)}, "--sizes names 3 twice; give each value once"),
            ({"sizes": (3, 0)}, "--sizes must be at least 1"),
            ({"shares": (0.5, 2.0)}, "--shares must be at least 0 and at most 1, got 2.0"),
            ({"names": ("known", "a,b")}, "--names: unknown thing 'a,b'; separate several values by blanks"),
        ],
    )
    def test_each_kind_of_fault_is_told_by_its_option(self, changes, said):
        with pytest.raises(InputError, match="^" + re.escape(said)):
            Sample(**changes)

    def test_options_are_spelt_as_on_the_command_line(self):
        assert option("fit_iterations") == "--fit-iterations"
        assert option("at_width", "orders.") == "--orders.at-width"
        with pytest.raises(InputError, match=r"^--exact\.count must"), kit.under("exact"):
            Sample(count=0)
        with pytest.raises(InputError, match=r"^--exact: too late"), kit.under("exact"):
            raise InputError("too late")


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Draw values that a field's type has, whatever its marks say: wild numbers, empty and repeated tuples."""
    if get_origin(hint) is Annotated:
        return values(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=3).map(tuple)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if hint is int:
        return st.one_of(st.integers(-2, 5), st.sampled_from([0, -1, 10**5, 10**6, 10**9, 10**11, 10**18]))
    if hint is float:
        return st.one_of(
            st.floats(), st.floats(0, 3), st.sampled_from([0.0, -1.0, 1e5, 1e9, 1e30, 1e-300, math.nan, math.inf])
        )
    if hint is str:
        return st.sampled_from(["random", "ntk", "mlp", "activedpo", "linear:ucb", "cosine@flipped", "", "none,"])
    if hint is bool:
        return st.booleans()
    others = [argument for argument in get_args(hint) if argument is not type(None)]
    return st.one_of(st.none(), values(others[0]))


SMALL = replace(
    PRESETS["smoke"][1],
    contenders=("random", "activedpo"),
    replicates=2,
    rounds=2,
    batch=2,
    prompts=4,
    heldout=3,
    width=6,
    fit_iterations=5,
)


def attempt(make: Callable[[], Any]) -> tuple[Any, str]:
    """Return what is made, or None and the refusal's words."""
    try:
        return make(), ""
    except InputError as error:
        return None, str(error)


def admitted(simulation: Simulation) -> SimulationStudy:
    study = SimulationStudy.of(simulation)
    kit.afford(study.memory(), study.count(), "--replicates, --contenders and --truths", 1, False)
    return study


class TestSimulation:
    @pytest.mark.slow
    @given(data=st.data())
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_a_random_setting_is_made_or_refused_by_an_option(self, data):
        hints = get_type_hints(Simulation, include_extras=True)
        chosen = data.draw(st.lists(st.sampled_from([f.name for f in fields(Simulation)]), min_size=1, max_size=3))
        changes = {name: data.draw(values(hints[name])) for name in chosen}
        study, said = attempt(lambda: admitted(replace(SMALL, **changes)))
        assert study.cells() if study else re.match(r"^--[a-z]", said), said

    @pytest.mark.slow
    @given(data=st.data())
    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_what_is_made_runs(self, data, tmp_path_factory):
        """Every number at the ends of what its marks allow, sizes excepted, which would only take long."""
        hints = get_type_hints(Simulation, include_extras=True)
        changes: dict[str, Any] = {}
        for name in ("reward_bound", "regularisation", "ridge", "delta", "beta", "refit"):
            if data.draw(st.booleans()):
                changes[name] = data.draw(st.sampled_from(ends(hints[name])))
        changes["truths"] = (data.draw(st.sampled_from(["ntk", "mlp", "cosine@flipped"])),)
        contender = data.draw(st.sampled_from(["activedpo", "policy:activedpo-stale", "tangent:ts", "linear:ucb"]))
        study, said = attempt(lambda: admitted(replace(SMALL, contenders=("random", contender), **changes)))
        if study is None:
            assert re.match(r"^--[a-z]", said)
            return
        folder = tmp_path_factory.mktemp("cell")
        assert "rounds.csv" in run_cell(study.simulation, study.simulation.truths[0], contender, folder)

    def test_sizes_beyond_the_machine_are_refused_by_their_options_at_once(self):
        wild = {"prompts": 10**9, "width": 10**8, "dim": 10**9, "replicates": 10**9, "depth": 1000, "heldout": 10**9}
        wild |= {"clusters": 10**9}
        for name, value in wild.items():
            width = {"width": 10**5} if name == "depth" else {}
            made = replace(SMALL, audit=False, **{name: value} | width)
            with pytest.raises(InputError, match=option(name)):
                admitted(made)

    @pytest.mark.parametrize("evaluations", [0, 1, 10**9 - 1])
    @pytest.mark.parametrize("asked", ["fresh", "repeats"])
    def test_more_rounds_than_can_be_listed_are_refused_by_their_option(self, asked, evaluations):
        many = {"rounds": 10**9, "evaluations": evaluations, "audit": False, asked: True}
        with pytest.raises(InputError, match=r"--rounds.* of memory"):
            admitted(replace(SMALL, **many))

    @pytest.mark.parametrize("name", ["replicates", "meter_replicates"])
    def test_a_map_of_more_than_can_be_listed_is_refused_by_its_option(self, name):
        study = MapStudy.of(replace(MAPS["quick"][1], **{name: 10**9}))
        with pytest.raises(InputError, match=f"^{option(name)}"):
            kit.afford(study.memory(), study.count(), "--replicates", 1, False)

    def test_a_map_s_budget_beyond_its_pool_is_refused_by_its_option(self):
        most = 3 * MAPS["smoke"][1].prompts
        made = {"responses": (3, 4), "batch": 1}
        assert replace(MAPS["smoke"][1], budgets=(most,), **made).budgets == (most,)
        for more in (most + 1, 10**5, 10**6):
            with pytest.raises(InputError, match=f"^--budgets asks for {more} labels, .* has {most} duels"):
                replace(MAPS["smoke"][1], budgets=(most, more), **made)

    @pytest.mark.parametrize("preset", MAPS)
    def test_a_map_s_cells_are_counted_as_they_are(self, preset):
        study = MapStudy.of(MAPS[preset][1])
        assert study.count() == len(study.cells())

    @pytest.mark.parametrize(("rounds", "evaluations"), [(1, 0), (1, 1), (7, 0), (7, 1), (7, 2), (7, 3), (7, 9)])
    def test_targets_lie_among_the_measured_rounds(self, rounds, evaluations):
        """What a refused target is told is the first and the last of them."""
        made = replace(SMALL, rounds=rounds, evaluations=evaluations, batch=2, prompts=9)
        first, last = (2 * (made.measured_rounds()[place] + 1) for place in (0, -1))
        with pytest.raises(InputError, match=f"above {first} .* at most {last}," if last > first else "none, got 1"):
            replace(made, targets=(1,))

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            *((name, size) for name in ("exact", "tightness", "certificates") for size in ("prompts", "replicates")),
            ("gap", "replicates"),
            ("regret", "exact_replicates"),
            ("approximations", "sizes"),
        ],
    )
    def test_a_family_s_sizes_are_refused_before_they_are_made(self, name, size):
        family = next(one for one in suite("smoke").families if one.name == name)
        most = (32, 10**9) if size == "sizes" else 10**9
        with pytest.raises(InputError, match=rf"^--.*{option(size, name + '.')[2:]}"):
            kit.afford(replace(family, **{size: most}).memory(), 1, f"--{name}.replicates", 1, False)

    def test_presets_fit_on_a_small_machine(self, monkeypatch):
        monkeypatch.setattr(kit, "machine_memory", lambda: 4e9)
        for _, simulation in PRESETS.values():
            kit.afford(simulation.memory(), simulation.count(), "--replicates", 0, False)


class TestOtherPrograms:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "made",
        [MAPS["smoke"][1], ALIGNMENTS["smoke"][1], Settings(), Training(), Decoding(), Tuning(), Adapter(), Sketch()],
        ids=lambda made: type(made).__name__,
    )
    @given(data=st.data())
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_a_random_setting_is_made_or_refused_by_an_option(self, made, data):
        hints = get_type_hints(type(made), include_extras=True)
        plain = [f.name for f in fields(made) if f.init and not dataclasses.is_dataclass(getattr(made, f.name))]
        chosen = data.draw(st.lists(st.sampled_from(plain), min_size=1, max_size=3))
        changes = {name: data.draw(values(hints[name])) for name in chosen}
        changed, said = attempt(lambda: replace(made, **changes))
        assert changed or re.search(r"--[a-z]", said), said


def ends(hint: Any) -> list[float]:
    """The smallest and the largest value that a number's marks allow."""
    if get_origin(hint) is not Annotated:
        hint = next(argument for argument in get_args(hint) if get_origin(argument) is Annotated)
    found = []
    for mark in get_args(hint)[1:]:
        match type(mark).__name__:
            case "Ge":
                found.append(mark.ge)
            case "Le":
                found.append(mark.le)
            case "Gt":
                found.append(mark.gt + 1e-9)
            case "Lt":
                found.append(mark.lt - 1e-9)
    return [float(value) for value in found]


FAMILIES = [f.name for f in dataclasses.fields(suite("smoke")) if f.name not in ("seed", "claims")]


class TestTheory:
    def test_more_cells_than_can_be_listed_are_told_by_every_family_s_option(self, tmp_path, capsys):
        given = ["smoke", "--exact.replicates", "1000000", "--output", str(tmp_path)]
        assert theory(given) == 2
        error = capsys.readouterr().err
        assert "--exact.replicates, " in error
        assert "cells, more than 100000" in error
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    @pytest.mark.parametrize("family", FAMILIES)
    @given(data=st.data())
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_a_random_size_of_a_family_is_made_or_refused_by_its_option(self, family, data):
        made = getattr(suite("smoke"), family)
        hints = get_type_hints(type(made), include_extras=True)
        name = data.draw(st.sampled_from([f.name for f in fields(made)]))
        value = data.draw(values(hints[name]))
        changed, said = attempt(lambda: replace(made, **{name: value}))
        assert changed or said.startswith(f"--{family}"), said
        if changed:
            assert changed.cells()
            assert all(size >= 0 for size in changed.memory().values())

    @pytest.mark.slow
    @pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_its_memory_is_told_by_its_own_options_and_grows_with_them(self, family, preset):
        """A cell of every preset fits into 12 GB; doubling what an estimate names never lowers it, and raises some."""
        made = getattr(suite(preset), family)
        parts = made.memory()
        assert 0 < sum(parts.values()) < 12e9
        named = {name for part in parts for name in re.findall(rf"--{family}\.([a-z-]+)", part)}
        fields_of = {field.name.replace("_", "-"): field.name for field in fields(made)}
        assert named <= set(fields_of), named - set(fields_of)
        grown = 0
        for name in named:
            value = getattr(made, fields_of[name])
            more = tuple(2 * one for one in value) if isinstance(value, tuple) else 2 * value
            changed, _ = attempt(lambda name=name, more=more: replace(made, **{fields_of[name]: more}))
            if changed is not None:
                assert sum(changed.memory().values()) >= sum(parts.values())
                grown += sum(changed.memory().values()) > sum(parts.values())
        assert grown

    @pytest.mark.parametrize(
        ("family", "changes"),
        [
            ("exact", {"delta": 0.0}),
            ("orders", {"widths": (0, 16)}),
            ("transformers", {"at_width": 0}),
            ("information", {"pools": 0}),
            ("tightness", {"more": ()}),
            ("network", {"rounds": 0}),
            ("exact", {"replicates": 10**11}),
            ("policy", {"betas": (1e6,)}),
            ("policy", {"betas": (1.0, 1e-5)}),
        ],
    )
    def test_values_that_broke_inside(self, family, changes):
        with pytest.raises(InputError, match=f"^{option(next(iter(changes)), f'{family}.')} "):
            replace(getattr(suite("smoke"), family), **changes)
