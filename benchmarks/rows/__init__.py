"""The rows: ours beside public peers.  Importing this package registers all of them, in the table's order."""

from benchmarks.rows import greedy, sketches, widths, fits, simulator, theory, llm, growth, labelling, select  # isort: skip

__all__ = ["fits", "greedy", "growth", "labelling", "llm", "select", "simulator", "sketches", "theory", "widths"]
