"""Which duels of texts to have answered next, from embeddings of one's own: ask and tell, without a language model.

``python examples/own_embeddings.py`` asks for 4 batches of 5 labels on 60 prompts with 4 responses each.  Embeddings
and answers are made up here; put your own arrays and your own people in their place.  Gradients of your own trainer,
one row a response, serve as well: then give the array of the current model to every ``ask``.
"""

import numpy as np

from bandits import Selector, headroom

PROMPTS, RESPONSES, DIM = 60, 4, 12


def main() -> None:
    """Ask, answer, and say what was asked."""
    made = np.random.default_rng(0)
    embeddings = made.normal(size=(PROMPTS * RESPONSES, DIM)) * np.linspace(2.0, 0.1, DIM)
    groups = np.repeat(np.arange(PROMPTS), RESPONSES)
    taste = made.normal(size=DIM)
    selector = Selector("activedpo", ridge=1.0)
    for batch in range(4):
        duels = selector.ask(embeddings, 5, groups=groups)
        if batch == 0:
            features = embeddings[selector.duels_[:, 0]] - embeddings[selector.duels_[:, 1]]
            print(headroom(features, ridge=1.0, budget=20).verdict)
        margins = (embeddings[duels[:, 0]] - embeddings[duels[:, 1]]) @ taste
        selector.tell((made.random(5) < 1 / (1 + np.exp(-margins))).astype(float))
        assert selector.widths_ is not None
        print(f"batch {batch + 1}: mean width of the pool before it {selector.widths_.mean():.2f}")
    print(f"{len(selector.answers)} answers")


if __name__ == "__main__":
    main()
