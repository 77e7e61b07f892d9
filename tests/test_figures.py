"""All pages draw by one kit: no global state, one look per strategy, bands that are intervals."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from bandits.runs import figures as kit
from bandits.runs.figures import curves, intervals, looks, panels, picture, png, spread, student
from bandits.runs.stats import Estimate, mean
from bandits.selector import STRATEGIES


@pytest.mark.campaign
def test_importing_the_programs_leaves_matplotlib_as_it_was():
    """A notebook that imports a program keeps its backend, and drawing opens no pyplot figure."""
    code = (
        "import matplotlib as mpl; before = mpl.rcParams._get('backend')\n"
        "import bandits.sim.report, llm_loop.report.page, theory_checks.report, benchmarks.harness.report\n"
        "from bandits.runs.figures import panels, png\n"
        "png(panels(2)[0])\n"
        "assert mpl.rcParams._get('backend') == before\n"
        "import matplotlib.pyplot as plt; assert not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_a_strategy_looks_alike_on_every_page_and_like_no_other():
    every = looks(list(STRATEGIES))
    assert looks(["ucb", "apo", "random"]) == {name: every[name] for name in ("ucb", "apo", "random")}
    shown = [(str(look["color"]), str(look["ls"])) for look in every.values()]
    assert len(set(shown)) == len(shown)
    assert looks(["policy:ucb"])["policy:ucb"] == every["ucb"] | {"ls": ":"}
    assert looks(["mine", "random"])["mine"] == looks(["ucb", "mine"])["mine"]
    many = looks([f"rule-{number}" for number in range(20)])
    assert len({str(look) for look in many.values()}) == 20
    drawn = looks([*STRATEGIES, *(f"{name}-power" for name in STRATEGIES), "mine", "mine-power"])
    assert all(look["color"] == drawn[name.removesuffix("-power")]["color"] for name, look in drawn.items())
    assert len({str(look) for look in drawn.values()}) == len(drawn)


@pytest.mark.slow
def test_a_picture_is_drawn_in_lines_unless_they_are_too_many(monkeypatch):
    figure, (axis,) = panels(1)
    axis.plot([1, 2], [3, 4])
    drawn, again = picture("a", "line", figure), picture("a", "line", figure)
    assert (drawn.kind, drawn.file) == ("svg", "a.svg")
    assert drawn == again
    monkeypatch.setattr(kit, "HEAVY", 10)
    assert picture("a", "line", figure).source.startswith("data:image/png;base64,")


@pytest.mark.slow
def test_bands_are_the_intervals():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": np.repeat([1, 2], 9), "y": rng.normal(size=18), "who": "a"})
    figure, (axis,) = panels(1)
    curves(axis, table, "x", "y", "who", looks(["a", "absent"]))
    assert len(axis.lines) == 1
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    for place in (1, 2):
        found = mean(table[table["x"] == place]["y"])
        assert student(table[table["x"] == place]["y"].to_numpy()) == (found.value, found.low, found.high)
        assert np.isclose(band, found.low).any()
        assert np.isclose(band, found.high).any()
    assert spread(np.arange(101.0)) == (50.0, 5.0, 95.0)
    assert png(figure) == png(figure)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_panels_are_as_many_as_asked(count):
    figure, axes = panels(count, columns=3)
    assert len(axes) == len(figure.axes) == count


def test_rows_of_intervals_run_downwards():
    _, (axis,) = panels(1)
    intervals(axis, {"first": Estimate(1.0, 0.5, 2.0, 9), "second": Estimate(2.0, 1.5, 3.0, 9)}, 1.0)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
