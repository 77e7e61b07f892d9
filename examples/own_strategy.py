"""A strategy of one's own against Random and ActiveDPO: ``python examples/own_strategy.py``."""

import sys
from dataclasses import dataclass

from torch import Tensor

from bandits.__main__ import main
from bandits.core.rng import Key
from bandits.selector import STRATEGIES, FeatureSpace, Pool, ScoreStrategy


@dataclass(frozen=True)
class WideAndUnsure(ScoreStrategy):
    """Ask wide duels whose answer the learner cannot tell: width less |margin|, both in log-odds."""

    space: FeatureSpace = FeatureSpace()

    reads = frozenset({"width", "reward"})
    summary = "picks wide duels whose label the learner cannot foresee"

    def scores(self, pool: Pool, key: Key) -> Tensor:
        """Return how much each duel is worth asking; the highest are asked, ties are broken at random."""
        return pool.widths - pool.margins.abs()


STRATEGIES.register("wide-and-unsure", WideAndUnsure())

if __name__ == "__main__":
    contenders = ["--contenders", "random", "activedpo", "wide-and-unsure"]
    sys.exit(main(["quick", "--no-few-duels", *contenders, *sys.argv[1:]]))
