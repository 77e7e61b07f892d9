"""The loop as a library, on data of one's own: embeddings of responses, and somebody who answers.

``python examples/own_data.py`` asks for 40 labels on a pool of 60 prompts with 4 responses each.  The embeddings and
the answers are made up here; put your own arrays and your own ``prefer`` in their place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bandits import STRATEGIES, Arena, Duels, Inputs, Key, Labelled, LinearLearner, Offer, Ridges, Schedule, play

PROMPTS, RESPONSES, DIM = 60, 4, 12


class Answered(Arena[Inputs]):
    """One pool for all rounds; each duel is asked once, and ``prefer(first, second)`` says who won.

    It returns 1 where the first did, 0 where the second did, and 1/2 for a tie.
    """

    def __init__(self, embeddings: Tensor, prefer: Callable[[int, int], float]) -> None:
        self.items, self.prefer = Inputs(embeddings, RESPONSES), prefer
        self.duels = Duels.within(self.items.prompts, RESPONSES)
        self.asked: set[tuple[int, int]] = set()

    def offer(self, round: int) -> Offer[Inputs]:
        """Offer every duel that was not asked yet."""
        free = [pair not in self.asked for pair in zip(*self._rows(self.duels), strict=True)]
        return Offer(self.items, self.duels, torch.tensor(free))

    def label(self, duels: Duels) -> Tensor:
        """Ask, and remember what was asked."""
        pairs = list(zip(*self._rows(duels), strict=True))
        self.asked |= set(pairs)
        return torch.tensor([self.prefer(first, second) for first, second in pairs], dtype=torch.float64)

    @staticmethod
    def _rows(duels: Duels) -> tuple[list[int], list[int]]:
        return duels.first.tolist(), duels.second.tolist()


def accuracy(strategy: str, seed: int, rounds: int = 8, batch: int = 5) -> float:
    """Return the share of unseen duels that the learner orders correctly after ``rounds * batch`` labels."""
    key = Key(seed)
    scale = torch.linspace(2.0, 0.1, DIM, dtype=torch.float64)
    embeddings = key.fold_in("embeddings").normal(2 * PROMPTS * RESPONSES, DIM) * scale
    truth = key.fold_in("truth").normal(DIM)
    noise = key.fold_in("noise").uniform(PROMPTS * RESPONSES, PROMPTS * RESPONSES)
    pool, unseen = embeddings.chunk(2)
    rewards = pool @ truth

    def prefer(first: int, second: int) -> float:
        return float(noise[first, second] < torch.sigmoid(rewards[first] - rewards[second]))

    learner = LinearLearner(DIM, (), regularisation=0.5, key=key)
    history = Labelled[Inputs]()
    for round in play(
        Answered(pool, prefer),
        learner,
        STRATEGIES[strategy],
        Schedule(rounds, batch),
        Ridges(plain=2.0, fisher=0.5),
        key.fold_in("play"),
    ):
        history = round.past
    assert history.duels.count == rounds * batch
    duels = Duels.within(PROMPTS, RESPONSES)
    fitted, true = (duels.difference(values) for values in (learner.rewards(Inputs(unseen, RESPONSES)), unseen @ truth))
    return float(((fitted > 0) == (true > 0)).double().mean())


if __name__ == "__main__":
    for name in ("random", "activedpo"):
        found = [accuracy(name, seed) for seed in range(10)]
        print(f"{name:>10}: {sum(found) / len(found):.1%} of unseen duels ordered correctly (10 seeds, 40 labels)")
