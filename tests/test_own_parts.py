"""Parts of one's own: what a careless one returns works as it was meant, or is refused in a line that names it."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from bandits.core.duels import Duels
from bandits.core.errors import InputError
from bandits.core.given import numbers
from bandits.core.oracles import BTL, ORACLES, Oracle
from bandits.core.own import telling_own
from bandits.core.registry import check_name
from bandits.core.rng import Key
from bandits.selector import STRATEGIES, FeatureSpace, Pool, ScoreStrategy, Strategy, select
from bandits.sim.learners import LEARNERS, LinearLearner
from bandits.sim.problem import Problem, SyntheticArena
from bandits.sim.run import Parts
from bandits.sim.truths import TRUTHS, GroundTruth, Square

pytestmark = pytest.mark.ill_typed

ROOT = Path(__file__).parents[1]
NAN = float("nan")
NONE: tuple[tuple[Any, str], ...] = (
    (None, "no real numbers, but NoneType None"),
    ("wide", "no real numbers, but str 'wide'"),
    ([1.0, [2.0]], "no real numbers, but list"),
    (np.full(3, 1j), "no real numbers, but ndarray"),
    (torch.full((3,), 1j), "no real numbers, but Tensor"),
    ([1.0, None, 2.0], "no real numbers, but list"),
    (range, "no real numbers, but type"),
)
"""What is no table of numbers, and how it is told."""
TABLES: tuple[Any, ...] = (
    [0.0, 1.0, 0.0],
    (0, 1, 0),
    [False, True, False],
    np.array([0, 1, 0], dtype=np.uint8),
    np.array([0, 1, 0], dtype=">f4"),
    np.array([0.0, 1.0, 0.0])[::-1],
    np.array([0, 1, 0], dtype=object),
    pd.Series([0, 1, 0], dtype="Int64"),
    torch.tensor([0, 1, 0]),
    torch.tensor([0.0, 1.0, 0.0], requires_grad=True),
    [torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0)],
)
"""What says 0, 1, 0."""


@pytest.mark.parametrize("given", TABLES, ids=lambda given: type(given).__name__)
def test_numbers_come_in_many_clothes(given: Any) -> None:
    assert numbers(given, "it").tolist() == [0, 1, 0]


@pytest.mark.parametrize(("given", "words"), NONE)
def test_what_is_no_table_of_numbers_is_named(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"^it: {words}"):
        numbers(given, "it")


# Oracles.


@dataclass(frozen=True)
class Told(Oracle):
    """Says what it was told to, once for every duel; a function is asked."""

    win: Any = 0.5
    draw: Any = 0.0
    ties: Any = 0.0

    def probability(self, margin: Tensor, places: tuple[Tensor, Tensor], responses: int) -> Any:
        return self.win(margin) if callable(self.win) else torch.full_like(margin, self.win)

    def tie(self, margin: Tensor) -> Any:
        return self.draw(margin) if callable(self.draw) else torch.full_like(margin, self.draw)


def arena(oracle: Oracle, heldout: int = 2, truth: GroundTruth | None = None) -> SyntheticArena:
    world = Problem(truth or Square(), Key(1, (0, 1)), prompts=3, responses=3, dim=4, heldout=heldout)
    return SyntheticArena(world, oracle)


@pytest.mark.parametrize(
    ("oracle", "words"),
    [
        (Told(1.5), r"P\(first wins\) = 1.5 "),
        (Told(-0.1), r"P\(first wins\) = -0.1 "),
        (Told(NAN), r"P\(first wins\) = nan "),
        (Told(0.7, 0.4), r"P\(first wins\) = 0.7 and P\(tie\) = 0.4 "),
        (Told(0.5, -0.2), r"P\(tie\) = -0.2"),
        (Told(0.5, NAN), r"P\(tie\) = nan"),
        (Told(lambda m: None), "probability: no real numbers, but NoneType None"),
        (Told(lambda m: m.unsqueeze(-1)), r"probability: numbers of shape \(2, 9, 1\), not \(2, 9\)"),
        (Told(lambda m: torch.sigmoid(m)[..., 0]), "probability: numbers of shape"),
        (Told(0.5, lambda m: 0.0), r"tie: numbers of shape \(\), not \(2, 9\)"),
    ],
)
@pytest.mark.parametrize("heldout", [0, 2], ids=["answers", "foreseen"])
def test_what_is_no_probability_is_refused(oracle: Oracle, words: str, heldout: int) -> None:
    played = arena(oracle, heldout)
    with pytest.raises(InputError, match=f"^oracle Told: .*{words}"):
        played.label(played.offer(0).duels)


@pytest.mark.parametrize("clothes", [lambda p: p.tolist(), lambda p: p.numpy(), lambda p: p.float(), lambda p: p > 0.5])
def test_probabilities_in_other_clothes_answer_alike(clothes: Any) -> None:
    told = arena(Told(lambda m: clothes((m > 0).to(m.dtype))), 0)
    want = arena(ORACLES["noiseless"], 0)
    duels = want.offer(0).duels
    told.offer(0)
    assert torch.equal(told.label(duels), want.label(duels))


@pytest.mark.parametrize("ties", [-1, NAN, float("inf"), "2", None, True])
def test_an_oracle_of_impossible_ties_is_not_registered(ties: Any) -> None:
    with pytest.raises(InputError, match=r"oracle 'told': .*ties"):
        ORACLES.register("told", Told(ties=ties))
    assert "told" not in ORACLES


# Strategies.


@dataclass(frozen=True)
class Scored(ScoreStrategy):
    """Scores three duels as it was told."""

    given: Any = (0.0, 1.0, 0.0)
    reads: Any = frozenset()
    space: Any = FeatureSpace()
    summary: Any = "scores duels as it was told"
    source: Any = ""

    def scores(self, pool: Pool, key: Key) -> Any:
        return self.given


@dataclass(frozen=True)
class Picked(Strategy):
    """Picks what it was told."""

    given: Any
    reads = frozenset()
    summary = "picks what it was told"

    def select(self, pool: Pool, count: int, key: Key) -> Any:
        return self.given


def three() -> Pool:
    return Pool(Duels.within(1, 3), torch.ones(3, dtype=torch.bool), 3)


@pytest.mark.parametrize(
    "given", [t for t in TABLES if not isinstance(t, tuple)], ids=lambda given: type(given).__name__
)
def test_scores_in_any_clothes_choose_alike(given: Any) -> None:
    for scores in (given, (given,), (torch.zeros(3), given)):
        assert select(three(), Scored(scores), 1, Key(0)).tolist() == [1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *NONE,
        (torch.zeros(3, 1), r"have shape \(3, 1\) for \(3,\) duels"),
        ([1.0, 2.0], r"have shape \(2,\) for \(3,\) duels"),
        ((1.0, 2.0, 3.0), r"have shape \(\) for \(3,\) duels"),
        ((), "no scores"),
        ([1.0, NAN, 2.0], "is NaN"),
    ],
)
def test_what_are_no_scores_is_refused(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"Scored.*{words}"):
        select(three(), Scored(given), 1, Key(0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "no real numbers, but NoneType None"),
        (torch.tensor([0.0, 1.0]), "not 2 positions"),
        ([0], "not 2 positions"),
        ([0, 0], "twice"),
        ([0, 3], "not available"),
        ([0, -1], "not available"),
    ],
)
def test_what_are_no_picks_is_refused(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"Picked.*{words}"):
        select(three(), Picked(given), 2, Key(0))


@pytest.mark.parametrize("given", [[2, 0], np.array([2, 0], dtype=np.int32), torch.tensor([2, 0], dtype=torch.int32)])
def test_picks_in_other_clothes_are_taken(given: Any) -> None:
    assert select(three(), Picked(given), 2, Key(0)).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"reads": ["width"]}, r"Scored\.reads is a set.*got \['width'\]"),
        ({"reads": "width"}, r"Scored\.reads is a set"),
        ({"reads": None}, r"Scored\.reads is a set"),
        ({"reads": frozenset({1})}, r"Scored\.reads names 1; choose from"),
        ({"space": "last"}, r"Scored\.space is a FeatureSpace, got 'last'"),
        ({"space": FeatureSpace}, r"Scored\.space is a FeatureSpace"),
        ({"summary": None}, "summary is a text in one line, got None"),
        ({"summary": "two\u2028lines"}, "summary is a text in one line"),
        ({"source": ["a paper"]}, "source is a text in one line"),
    ],
)
def test_a_strategy_that_describes_itself_in_another_type_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^strategy 'told': .*{words}"):
        STRATEGIES.register("told", Scored(**said))
    assert "told" not in STRATEGIES


@pytest.mark.parametrize(
    ("switch", "value"),
    [("layer", "first"), ("gradients", None), ("normalise", True), ("weight", ""), ("metric", "diag")]
    + [("ridge", value) for value in (0, -1.0, NAN, float("inf"), "1", True)],
)
def test_a_feature_space_of_a_switch_that_there_is_not_is_refused(switch: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"a feature space's {switch} .*got {re.escape(repr(value))}"):
        FeatureSpace(**{switch: value})


# Ground truths, learners, and all of them before a run.


@dataclass(frozen=True)
class Said(GroundTruth):
    """Rewards as a function of Square's."""

    how: Any

    def __call__(self, x: Tensor, key: Key) -> Any:
        return self.how(Square()(x, key))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda r: None, "no real numbers, but NoneType None"),
        (lambda r: r.unsqueeze(-1), r"numbers of shape \(2, 15, 1\), not \(2, 15\)"),
        (lambda r: r.sum(), r"numbers of shape \(\), not"),
        (lambda r: r.log() * NAN, "NaN or infinite"),
        (lambda r: r / 0, "NaN or infinite"),
    ],
)
def test_what_are_no_rewards_is_refused(how: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"^the truth Said.*{words}"):
        arena(BTL(), truth=Said(how))


@pytest.mark.parametrize("how", [lambda r: r.tolist(), lambda r: r.numpy()])
def test_rewards_in_other_clothes_are_the_same(how: Any) -> None:
    assert torch.equal(arena(BTL(), truth=Said(how)).problem.table(0)[1], arena(BTL()).problem.table(0)[1])


@dataclass(frozen=True)
class Forgetful(ScoreStrategy):
    """Its author forgot that it is frozen."""

    space: FeatureSpace = FeatureSpace()
    asked: int = 0

    reads = frozenset({"width"})
    summary = "counts"

    def scores(self, pool: Pool, key: Key) -> Tensor:
        self.asked += 1  # type: ignore[misc]
        return pool.widths


def broken(*given: Any) -> Any:
    """Raise what somebody's code may."""
    raise ZeroDivisionError("for\nonce")


def learner(**methods: Any) -> type[LinearLearner]:
    """A linear learner of which some methods return something else."""
    made: type[LinearLearner] = type("Odd", (LinearLearner,), methods)
    return made


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"oracle": Told(2.0)}, r"oracle Told: P\(first wins\) = 2 "),
        ({"truth": Said(lambda r: r[0])}, "the truth Said: numbers of shape"),
        ({"strategy": Scored([[1.0]])}, r"the scores of Scored have shape \(1, 1\) for"),
        ({"strategy": Scored(reads=("width",))}, r"Scored\.reads is a set"),
        ({"learner": learner(rewards=lambda self, items: None)}, "learner Odd: rewards: no real numbers"),
        ({"learner": learner(rewards=lambda self, items: torch.zeros(3))}, "learner Odd: rewards: numbers of shape"),
        ({"learner": learner(features=lambda self, items, at, layer: items.x)}, "learner Odd: features are ItemRows"),
        ({"learner": learner(fit=lambda self, past: None)}, "learner Odd: fit returns a Fit, got None"),
        ({"learner": learner(state=lambda self: None)}, "learner Odd: state returns tensors by name, got NoneType"),
        ({"learner": learner(begin=classmethod(lambda cls, start: None))}, "learner Odd: begin returns a learner, got"),
        ({"learner": learner(fit=broken)}, r"^test_own_parts\.py, line \d+, in broken: ZeroDivisionError: for once$"),
        ({"truth": Said(broken)}, r"^test_own_parts\.py, line \d+, in broken: ZeroDivisionError: for once$"),
    ],
)
@pytest.mark.parametrize("replicates", [(0,), None])
def test_what_cannot_be_played_with_is_told_before_a_run(parts: dict[str, Any], words: str, replicates: Any) -> None:
    cast = {"truth": Square(), "oracle": BTL(), "learner": LinearLearner, "strategy": STRATEGIES["ucb"]} | parts
    with pytest.raises(InputError, match=words):
        Parts(**cast).rehearse(3, replicates=replicates)


BREAKS_LATE = """
import sys
from bandits import STRATEGIES
from bandits.__main__ import main
from bandits.selector import FeatureSpace, ScoreStrategy

class Late(ScoreStrategy):
    space, reads, summary = FeatureSpace(), frozenset({"width"}), "breaks in pools that no rehearsal has"

    def scores(self, pool, key):
        return pool.widths / (pool.widths.shape[-1] < 30 or [][0])

STRATEGIES.register("late", Late())
small = ["--contenders", "random", "late", "--truths", "square", "--no-few-duels", "--replicates", "2"]
sys.exit(main(["smoke", *small, *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_breaks_later_is_told_by_its_line_too(tmp_path, jobs) -> None:
    (tmp_path / "late.py").write_text(BREAKS_LATE)
    told = [sys.executable, "late.py", "--jobs", jobs, "--output", "out"]
    run = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == 2, run.stderr
    assert "line 11, in Late.scores: IndexError: list index out of range" in run.stderr
    assert ("error: late.py, line" in run.stderr) == (jobs == "1")  # a worker is sent the class, not its file
    assert "Traceback" not in run.stderr


OURS = "with telling_own():\n    divide()"


@pytest.mark.parametrize(
    "place",
    ["lib/python3.11/site-packages/torch/nn.py", "/usr/lib/python3/dist-packages/numpy/core.py", statistics.__file__],
)
def test_a_fault_of_ours_is_no_bad_input(tmp_path, place) -> None:
    """Nor where it shows in a library, wherever that is installed."""
    installed: dict[str, Any] = {}
    exec(compile("def divide():\n    1 / 0", str(tmp_path / place), "exec"), installed)
    ours = compile(OURS, str(ROOT / "bandits" / "ours.py"), "exec")
    with pytest.raises(ZeroDivisionError):
        exec(ours, {"telling_own": telling_own, "divide": installed["divide"]})


def test_a_frozen_part_that_changes_itself_is_told_by_its_own_line() -> None:
    with pytest.raises(InputError, match=r"^test_own_parts\.py, line \d+, in Forgetful\.scores: FrozenInstanceError"):
        Parts(Square(), BTL(), LinearLearner, Forgetful()).rehearse(3)


def test_memory_that_is_not_there_is_no_bad_input() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"), telling_own():
        torch.empty(10**15)


# Names.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(
            (name, "begins with a letter")
            for name in ("42", "1e5", "007", "%", " x ", "a,b", 'a"b', "a\nb", "é", 42, None)
        ),
        *(
            (name, "as if there were no name")
            for name in ("nan", "NaN", "NA", "null", "None", "True", "INF", "infinity")
        ),
        ("x" * 300, "at most 50 characters, got 300"),
    ],
)
def test_a_name_that_tables_or_folders_cannot_keep_is_refused(name: Any, words: str) -> None:
    for registry, part in ((STRATEGIES, Scored()), (ORACLES, Told())):
        with pytest.raises(InputError, match=words) as told:
            registry.register(name, part)
        assert len(str(told.value)) < 200


def test_every_name_of_the_house_is_one() -> None:
    """Also as pandas reads it: text."""
    for registry in (STRATEGIES, ORACLES, TRUTHS, LEARNERS):
        for name in registry:
            check_name("part", name)
