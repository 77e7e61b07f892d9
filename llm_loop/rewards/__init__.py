"""Reward models and scorers: who labels and who judges."""
