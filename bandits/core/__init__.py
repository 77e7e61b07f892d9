"""The mathematics that everything shares: duels, oracles, rows of gradients, the design matrix, right-hand sides."""
