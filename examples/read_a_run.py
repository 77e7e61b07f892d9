"""Reading a run's tables: ``python examples/read_a_run.py results/pool/quick-…`` prints what its page is made of."""

import sys
from pathlib import Path

import pandas as pd

from bandits.runs.stats import mean


def main(folder: Path) -> None:
    """Print, for every truth and strategy, the error after the last round beside Random's, paired by replicate."""
    rounds = pd.read_csv(folder / "rounds.csv")
    last = rounds[rounds["round"] == rounds["round"].max()]
    for truth, part in last.groupby("truth"):
        table = part.pivot(index="replicate", columns="contender", values="error")
        for contender in table.columns.drop("random"):
            gap = mean((table[contender] - table["random"]).to_numpy(), 0.95)
            interval = f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
            print(f"{truth} {contender}: error less Random's {interval} (n = {gap.n})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
