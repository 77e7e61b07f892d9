"""What identifies a part of one's own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bandits.core import errors
from bandits.core.errors import InputError
from bandits.core.registry import fingerprint
from bandits.sim.map import Map

OWN = """
import helper
from bandits.core.registry import fingerprint
WEIGHT = {weight}
def blend(x):
    return WEIGHT * x  # {comment}
class Mine:
    def scores(self, x):
        return helper.double(blend(x))
if __name__ == "__main__":
    print(fingerprint(Mine())["source"])
"""


def _source(folder: Path, weight: int = 1, comment: str = "a", factor: int = 2) -> str:
    (folder / "own.py").write_text(OWN.format(weight=weight, comment=comment))
    (folder / "helper.py").write_text(f"def double(x):\n    return {factor} * x\n")
    command = [sys.executable, "-B", str(folder / "own.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_a_strategy_of_ones_own_calls_identifies_it(tmp_path: Path) -> None:
    """A constant of its script or a function beside it changes the hash; a comment does not."""
    first = _source(tmp_path)
    assert _source(tmp_path, comment="b") == first
    assert _source(tmp_path, weight=2) != first
    assert _source(tmp_path, factor=3) != first


def test_a_setting_that_cannot_be_recorded_is_refused_in_one_line() -> None:
    """A NumPy array among the settings is told, not a traceback."""

    class Mine:
        def __init__(self) -> None:
            self.weights = np.zeros(2)

    with pytest.raises(InputError, match="a setting that is a ndarray"):
        fingerprint(Mine())


def test_a_map_of_random_alone_is_refused() -> None:
    """Random is what the rules are compared with: there must be one."""
    with pytest.raises(InputError, match="name a rule"):
        Map(rules=("random",))


PACKAGE = {
    "own.py": "import taste\nfrom taste import LIKES\nfrom mine.rule import Mine\n"
    "from bandits.core.registry import fingerprint\n"
    "class Here:\n    def scores(self):\n        from late import LATE\n        return LATE\n"
    "print(fingerprint(Mine())['source'], fingerprint(Here())['source'])\n",
    "taste.py": "LIKES = 1\n",
    "late.py": "import later\nLATE = later.NUMBER\n",
    "later.py": "NUMBER = 1\n",
    "mine/__init__.py": "",
    "mine/rule.py": "from .numbers import ONE\nfrom . import deep\nimport mine.third\n"
    "class Mine:\n    def scores(self):\n        return ONE + deep.TWO\n",
    "mine/numbers.py": "ONE = 1\n",
    "mine/deep/__init__.py": "from ..fourth import TWO\n",
    "mine/fourth.py": "TWO = 2\n",
    "mine/third.py": "THREE = 3\n",
    "mine/unused.py": "FOUR = 4\n",
    "unused.py": "NUMBER = 1\n",
    "theory_checks.py": "NUMBER = 1\n",
}
"""A folder of a user's, whose ``Mine`` is below it and whose ``Here`` imports in a method."""


def _sources(folder: Path) -> list[str]:
    command = [sys.executable, "-B", str(folder / "own.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder.parent).stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edited", "changes"),
    [
        ("taste.py", (False, True)),
        ("later.py", (False, True)),
        ("mine/numbers.py", (True, True)),
        ("mine/fourth.py", (True, True)),
        ("mine/third.py", (True, True)),
        ("mine/unused.py", (False, False)),
        ("unused.py", (False, False)),
        ("theory_checks.py", (False, False)),
    ],
)
def test_what_a_part_imports_identifies_it_and_nothing_else_does(
    edited: str, changes: tuple[bool, bool], tmp_path: Path
) -> None:
    """A number that is imported by name, in a method, relatively, through another module; not a file that is not."""
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    before = _sources(tmp_path)
    (tmp_path / edited).write_text(PACKAGE[edited].replace(" = ", " = 7 + ") + "import theory_checks\n")
    now = _sources(tmp_path)
    assert tuple(a != b for a, b in zip(before, now, strict=True)) == changes


SILENT = """
from bandits.selector import STRATEGIES, ScoreStrategy

class Mine(ScoreStrategy):
    reads = frozenset()

    def scores(self, pool, key):
        return pool.widths

print("before")
STRATEGIES.register("mine", Mine())
print("after")
"""


@pytest.mark.slow
def test_a_script_whose_part_is_refused_ends_in_one_line(tmp_path: Path) -> None:
    """As a command does: one line, which says where in the script, and status 2."""
    (tmp_path / "own.py").write_text(SILENT)
    done = subprocess.run([sys.executable, str(tmp_path / "own.py")], capture_output=True, text=True, check=False)
    line = "error: strategy 'mine': a strategy says in one line what it does; set summary (own.py, line 11)\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "before\n", line)


@pytest.mark.parametrize(
    ("error", "prompt"), [(InputError("it"), True), (ValueError("it"), False)], ids=["at a prompt", "another error"]
)
def test_what_is_no_bad_input_of_a_script_is_shown_as_always(
    error: Exception, prompt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(errors, "_usual_hook", lambda *told: shown.append(told[1]))
    if prompt:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    errors._end_script(type(error), error, None)
    assert shown == [error]
