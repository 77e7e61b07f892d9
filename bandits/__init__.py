"""Active choice of preference pairs: oracles, the design matrix, the selector, the loop, and a simulator around them.

The loop (:func:`play`) asks an :class:`Arena` for duels and labels, a :class:`Learner` for rewards and gradients, and a
:class:`Strategy` for picks.  Strategies, oracles, ground truths and learners are registered by name.
"""

from bandits._version import __version__
from bandits.ask import Selector
from bandits.core.duels import Duels, Items, Labelled, Offer
from bandits.core.errors import InputError
from bandits.core.oracles import BTL, ORACLES, Oracle, kappa
from bandits.core.rng import Key
from bandits.headroom import Headroom, headroom
from bandits.loop import Arena, Learner, Ridges, Round, Schedule, play
from bandits.selector import STRATEGIES, ActiveDPO, FeatureSpace, Pool, ScoreStrategy, Stochastic, Strategy, select
from bandits.sim.learners import LEARNERS, LinearLearner, NeuralLearner, PolicyLearner, TangentLearner
from bandits.sim.networks import MLP
from bandits.sim.problem import Inputs, Problem, SyntheticArena
from bandits.sim.truths import TRUTHS, GroundTruth

__all__ = [
    "BTL",
    "LEARNERS",
    "MLP",
    "ORACLES",
    "STRATEGIES",
    "TRUTHS",
    "ActiveDPO",
    "Arena",
    "Duels",
    "FeatureSpace",
    "GroundTruth",
    "Headroom",
    "InputError",
    "Inputs",
    "Items",
    "Key",
    "Labelled",
    "Learner",
    "LinearLearner",
    "NeuralLearner",
    "Offer",
    "Oracle",
    "PolicyLearner",
    "Pool",
    "Problem",
    "Ridges",
    "Round",
    "Schedule",
    "ScoreStrategy",
    "Selector",
    "Stochastic",
    "Strategy",
    "SyntheticArena",
    "TangentLearner",
    "__version__",
    "headroom",
    "kappa",
    "play",
    "select",
]
