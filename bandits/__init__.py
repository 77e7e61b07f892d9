"""The simulator: duels, oracles, networks, the design matrix, the selector, and the loop."""
