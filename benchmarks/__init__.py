"""The hot paths beside the best public peers, in one run: speed, memory, and whether the answers are right."""
