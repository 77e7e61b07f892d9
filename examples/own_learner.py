"""A learner of one's own in the simulator: ``python examples/own_learner.py`` compares it with the network."""

import sys
from typing import Self

import torch
from torch import Tensor

from bandits import LEARNERS
from bandits.__main__ import main
from bandits.core.duels import Labelled
from bandits.core.rows import Dense
from bandits.sim.learners import At, Fit, Layer, LinearLearner, Start
from bandits.sim.problem import Inputs


class Quadratic(LinearLearner):
    """Ridge logistic regression on the coordinates of ``x`` and all their products."""

    @classmethod
    def begin(cls, start: Start) -> Self:
        """Return θ = 0 in the space of the features."""
        dim = start.network.inputs
        learner = cls(dim + dim * (dim + 1) // 2, start.initial[0].shape[:-2], start.regularisation, start.key)
        learner.temperature = start.beta
        return learner

    def features(self, items: Inputs, at: At, layer: Layer) -> Dense:
        """Return the gradient of the reward: the features themselves."""
        return Dense(self.expanded(items).x)

    def rewards(self, items: Inputs) -> Tensor:
        """Return the reward of every item."""
        return super().rewards(self.expanded(items))

    def fit(self, past: Labelled[Inputs]) -> Fit:
        """Fit to the labelled duels, seen through the features."""
        return super().fit(Labelled.of(self.expanded(past.items), past.duels, past.outcome))

    @staticmethod
    def expanded(items: Inputs) -> Inputs:
        """Return the items with products of coordinates beside them."""
        upper = torch.triu_indices(items.x.shape[-1], items.x.shape[-1])
        products = items.x[..., upper[0]] * items.x[..., upper[1]]
        return Inputs(torch.cat([items.x, products], -1), items.responses)


LEARNERS.register("quadratic", Quadratic)

if __name__ == "__main__":
    contenders = ["--contenders", "random", "activedpo", "quadratic:random", "quadratic:activedpo"]
    sys.exit(main(["quick", "--no-few-duels", "--truths", "square", *contenders, *sys.argv[1:]]))
