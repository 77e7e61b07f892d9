"""The simulator: duels, oracles, networks, the design matrix, the selector, and the loop."""

__version__ = "0.1.0"
