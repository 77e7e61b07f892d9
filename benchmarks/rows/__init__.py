"""The rows: ours beside public peers.  Importing this package registers all of them, in the table's order."""

from benchmarks.rows import greedy, sketches, widths, fits, simulator, llm, growth  # isort: skip

__all__ = ["fits", "greedy", "growth", "llm", "simulator", "sketches", "widths"]
