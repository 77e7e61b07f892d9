"""A scorer of one's own labels duels in the language-model loop: ``python examples/own_scorer.py`` (a tiny model).

A run on SmolLM2: ``python examples/own_scorer.py quick`` after ``activedpo assets``.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_loop.__main__ import main
from llm_loop.rewards.scorers import SCORERS


class Brevity:
    """Prefers short responses: the reward falls from 2 (nothing said) towards −2 as a response grows longer."""

    name = "brevity"

    def __call__(self, prompts: Sequence[object], responses: Sequence[str]) -> Tensor:
        """Return ``2 − 4 n/(n + 40)`` for a response of ``n`` characters."""
        lengths = torch.tensor([float(len(text)) for text in responses], dtype=torch.float64)
        return 2 - 4 * lengths / (lengths + 40)


def brevity(device: str) -> Brevity:
    """Return the scorer; it needs no device."""
    return Brevity()


SCORERS.register("brevity", brevity)

if __name__ == "__main__":
    given = sys.argv[1:] or ["smoke"]
    sys.exit(main([given[0], "--reward", "brevity", *given[1:]]))
