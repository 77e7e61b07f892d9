"""The simulator: problems with a known truth, learners, the audit of Proposition 1, its runs and its page."""
