"""Owns the loop through a project's files with a reward model in people's place: choose, answer, train, and again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bandits.core.duels import Duels
from bandits.core.oracles import BTL
from bandits.runs.command import say
from labelling import select, train
from labelling.answers import Answer
from labelling.project import Project
from labelling.queries import Choice
from labelling.session import Session
from labelling.settings import Settings
from llm_loop.arena import TextArena
from llm_loop.rewards.scorers import LongTexts, Scorer, checked, load_scorer
from llm_loop.setup import quiet_libraries

SAID: dict[float, tuple[Choice, Choice]] = {1.0: ("left", "right"), 0.0: ("right", "left")}
"""what an outcome is called where the first response stands left, and where it stands right"""


def simulate(
    project: Project, batches: int, budget: int, reward: str, temperature: float, long_texts: LongTexts = "refuse"
) -> None:
    """Go on by some batches, from wherever the project stands: a batch that waits or was not trained on comes first."""
    with quiet_libraries():
        for _ in range(batches):
            settings = Settings.of(project.manifest()["settings"])
            if project.batches == 0 or (not project.waiting() and project.trained(project.batches)):
                select.choose(select.Select(project=project.root, budget=budget, settings=settings))
            if project.waiting():
                answer(project, reward, temperature, long_texts)
            say(*(f"• {line}" for line in train.train(project, 0.0, False)))


def answer(project: Project, reward: str, temperature: float, long_texts: LongTexts) -> None:
    """Let the reward model answer what waits: the first response wins with probability ``σ(Δ / temperature)``."""
    work = train.opened(project)
    settings, batch = work.settings, project.batches
    scorer = load_scorer(reward, settings.device, settings.dtype, settings.trust_remote_code, long_texts)
    outcomes = (_of_draws if work.table is None else _of_pool)(work, batch, scorer, temperature).tolist()
    waiting, queries, answers = set(project.waiting()), project.read_queries(batch), project.read_answers()
    answers.extend(
        Answer.of(query, scorer.name, SAID[outcome][query.swapped])
        for query, outcome in zip(queries, outcomes, strict=True)
        if query.id in waiting
    )


def _of_draws(work: Session, batch: int, scorer: Scorer, temperature: float) -> Tensor:
    """Return the outcomes of a batch of drawn responses, by the numbers that would decide in the loop itself."""
    arena = work.arena
    offer = arena.offer(batch - 1)
    drawn = arena.table
    asked = [arena.prompts[i] for i in drawn.prompt_indices for _ in range(work.settings.responses)]
    arena.tables[batch - 1] = replace(drawn, rewards=checked(scorer, asked, drawn.texts))
    arena.oracle, arena.temperature = BTL(), temperature
    duels: Duels = offer.duels.take(work.past[-1].asked)
    return TextArena.label(arena, duels).double()


def _of_pool(work: Session, batch: int, scorer: Scorer, temperature: float) -> Tensor:
    """Return the outcomes of duels of the pool, whose uniform numbers are their own: asked by any rule, the same."""
    table = work.table
    assert table is not None
    asked = work.past[-1].asked
    prompts, first, second = zip(*(table.texts(duel) for duel in asked.tolist()), strict=True)
    margins = checked(scorer, prompts, first) - checked(scorer, prompts, second)
    wins = torch.sigmoid(margins / temperature)
    return (work.key.fold_in("labels").uniform(table.duels.count)[asked] < wins).double()
