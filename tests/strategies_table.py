"""Write the table of all registered strategies into ``docs/strategies.md``: ``python tests/strategies_table.py``."""

from __future__ import annotations

from pathlib import Path

from generated import between

from bandits import STRATEGIES
from bandits.selector import FeatureSpace, Strategy

PAGE = Path(__file__).parents[1] / "docs/strategies.md"
BEGIN, END = "<!-- table: python tests/strategies_table.py -->\n", "<!-- end of the table -->\n"


def table() -> str:
    """Return the table in Markdown, a row per strategy of the package in the order of the registry."""
    own = {name: rule for name, rule in STRATEGIES.items() if type(rule).__module__.startswith("bandits.")}
    rows = [("name", "what it does", "space", "reads", "source"), ("---",) * 5]
    rows += [(f"`{name}`", *described(rule)) for name, rule in own.items()]
    return "".join(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |\n" for row in rows)


def described(rule: Strategy) -> tuple[str, str, str, str]:
    """Say of a strategy what it does, in which space it measures, what it reads and where it comes from."""
    what = rule.summary.removesuffix("; ".join(["", *rule.space.described()]))
    where = space(rule.space) if "width" in rule.reads else "–"
    return what, where, ", ".join(sorted(rule.reads)) or "nothing", rule.source or "–"


def space(used: FeatureSpace) -> str:
    """Return a feature space in few words: layers, θ, V, and what is scaled."""
    words = [f"{used.layer} layer{'s' if used.layer == 'all' else ''}", f"{used.gradients} θ", f"{used.metric} V"]
    words += [] if used.normalise == "none" else [f"normalised by {used.normalise}"]
    words += [] if used.weight == "none" else ["Fisher weights"]
    return ", ".join(words)


def written(page: str) -> str:
    """Return the page with the table as it is now."""
    return between(page, BEGIN, f"{table()}\n", END)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
