"""What identifies a part of one's own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
