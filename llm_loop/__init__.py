"""The same loop against a real language model."""
