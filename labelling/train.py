"""Owns ``activedpo train``: DPO on a project's answered duels, from the reference, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from annotated_types import Ge, Lt
from torch import Tensor

from bandits.core.duels import Labelled
from bandits.core.errors import InputError
from bandits.runs import stats
from bandits.runs.command import guard, read, say
from bandits.runs.files import write_json
from bandits.runs.settings import check
from labelling import jsonl, labelled, session
from labelling.project import Project, located
from labelling.session import Session
from labelling.settings import Settings
from llm_loop.arena import Completions
from llm_loop.data import pools
from llm_loop.data.chat import as_trl
from llm_loop.learner import DPOLearner, Fit
from llm_loop.models import weights_hash
from llm_loop.report.evaluate import distinct
from llm_loop.sampling import beside_reference
from llm_loop.setup import quiet_libraries

PROGRAM = "activedpo train"
PROMPTS = 16
"""on which the trained model's health is looked at, at most"""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a project's model on all answered duels, from the reference, into a PEFT folder."""

    project: Annotated[Path, tyro.conf.Positional]
    """the project's directory"""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.2
    """share of prompts whose duels a second fit, for judgement alone, is not shown (0: none, no second fit)"""
    health: bool = True
    """let the trained model answer a few prompts, to see how far it went"""


OPTIONS = Train


def run(arguments: Sequence[str]) -> int:
    """Run the command line."""
    options = read(Train, located(arguments), PROGRAM, Train.__doc__)
    check(options)
    with quiet_libraries():
        say(*(f"• {line}" for line in train(Project(options.project.expanduser()), options.held_out, options.health)))
    say(f"next: activedpo select --project {options.project}")
    return 0


def opened(project: Project) -> Session:
    """Return a project at work, with all that was asked and answered, its model at the reference."""
    kept = project.manifest()
    project.check()
    settings = Settings.of(kept["settings"])
    model = weights_hash(settings.model, settings.trust_remote_code)
    project.admit({"model": model, "settings": kept["settings"]})
    found = pools.read(project.pool)
    texts = session.read_prompts(str(project.pool), settings.seed) if found.drawn else None
    work = Session.of(settings, None if found.drawn else found, texts, project.features, model)
    work.remember(project, labelled.read_labels(project.labelled) if project.labelled.exists() else [])
    return work


def train(project: Project, held_out: float, health: bool) -> list[str]:
    """Train and write, alone; return what is to be said, a line each.

    All is written when the fit is over: first ``preferences.jsonl``, then the model's folder, whose weights come last.
    """
    project.manifest()
    with project.held():
        return _train(project, held_out, health)


def _train(project: Project, held_out: float, health: bool) -> list[str]:
    batches = project.batches
    if not batches:
        raise InputError(f"{project.root} has no queries yet; first: activedpo select --project {project.root}")
    work = opened(project)
    past = work.history()
    if not len(past):
        raise InputError(f"{project.root} has no answered duel yet; first: activedpo label {project.root}")
    learner, policy = work.learner, work.policy
    before = _agreement(learner, past, work.go_to_last())
    fit: Fit = DPOLearner.fit(learner, past)
    theta = policy.state()
    after = _agreement(learner, past, 1)
    if work.table is None:
        with project.writing(*map(project.drawn, range(1, batches + 1))):
            for batch in range(1, batches + 1):
                work.arena.offer(batch - 1)
                work.keep_drawn(project, batch)
    lines = [
        f"{len(past)} answered duels ({_ties(past)} ties), {fit.steps} steps: loss {fit.first_loss:.3f} to "
        f"{fit.last_loss:.3f} nats",
        f"of these the model's own reward orders {_percent(before)} as people did before, {_percent(after)} after"
        if after.n
        else "no decided duel among them, so none that the model's own reward could order as people did",
    ]
    checked = _held_out(work, past, held_out) if held_out else None
    if checked is not None:
        lines.append(
            f"duels that a second fit was not shown: {_percent(checked[0])} before, {_percent(checked[1])} after"
            if checked[1].n
            else "no decided duel among those that a second fit was not shown"
        )
    policy.restore(theta)
    healthy = _health(work) if health else None
    if healthy is not None:
        lines.append(
            f"KL from the reference {healthy['kl']:.2f} nats a response ({healthy['kl_per_token']:.3f} a token), over "
            f"{healthy['prompts']} answers; {healthy['tokens']:.0f} tokens a response, {100 * healthy['ended']:.0f} % "
            f"ended, {100 * healthy['distinct_2']:.0f} % distinct word pairs"
        )
    jsonl.write(project.preferences, preferences(work))
    folder = project.model(batches)
    report = {
        "answers": len(past),
        "fit": asdict(fit),
        "agreement": {"before": _plain(before), "after": _plain(after)},
        "held_out": None if checked is None else {"before": _plain(checked[0]), "after": _plain(checked[1])},
        "health": healthy,
    }
    with project.writing(folder):
        write_json(folder / "training.json", report)
        policy.save(folder)
    return [*lines, f"model: {folder}", f"preferences: {project.preferences}"]


def preferences(work: Session) -> list[dict[str, Any]]:
    """Return the answered duels as TRL reads them; ties, which it has no place for, are left out."""
    rows = []
    for number, past in enumerate(work.past):
        offer = work.arena.offer(number)
        for duel, outcome in zip(past.picks.tolist(), past.outcomes.tolist(), strict=True):
            prompt, first, second = work.texts_of(offer.duels, duel)
            if outcome != 0.5:
                chosen, rejected = (first, second) if outcome > 0.5 else (second, first)
                rows.append(as_trl(prompt, chosen, rejected))
    return rows


def _ties(past: Labelled[Completions]) -> int:
    return int((past.outcome == 0.5).sum())


def _agreement(learner: DPOLearner, past: Labelled[Completions], trained: int) -> stats.Estimate:
    """Return the share of decided duels that the model's reward orders as people did; without a reward, half.

    A prompt's duels share responses, so the share is the mean over prompts of theirs, and so is its interval.
    """
    decided = past.outcome != 0.5
    margins = past.duels.difference(_rewards(learner, past.items)) if trained else torch.zeros(len(past))
    if not bool(margins.isfinite().all()):
        raise InputError("the model's own reward is no finite number: its training diverged; lower --rate")
    right = torch.where(margins == 0, 0.5, ((margins > 0) == (past.outcome > 0.5)).double())
    found: dict[tuple[int, ...], list[float]] = {}
    for first, value in zip(past.duels.first[decided].tolist(), right[decided].tolist(), strict=True):
        found.setdefault(past.items.rows[first].prompt, []).append(value)
    return stats.share(sum(sum(values) / len(values) for values in found.values()), len(found))


def _rewards(learner: DPOLearner, items: Completions) -> Tensor:
    """Return the implicit reward of kept items, whose log-probabilities under the current model are not known."""
    return learner.training.beta * (learner.policy.log_probs(items.rows, "score") - learner.reference(items.rows))


def _held_out(work: Session, past: Labelled[Completions], share: float) -> tuple[stats.Estimate, stats.Estimate] | None:
    """Fit to some prompts' duels and judge by the others'; return the agreement before and after."""
    prompts = list(dict.fromkeys(row.prompt for row in past.items.rows))
    (generator,) = work.key.fold_in("held out", len(past)).generators()
    order = generator.permutation(len(prompts))
    out = {prompts[i] for i in order[: max(1, round(share * len(prompts)))]}
    if len(out) == len(prompts):
        return None
    sides: list[list[Tensor]] = [[], []]
    for number, kept in enumerate(work.past):
        items, duels = work.kept(number, kept.picks)
        inside = torch.tensor([items.rows[row].prompt in out for row in duels.first.tolist()], dtype=torch.bool)
        for side, where in zip(sides, (~inside, inside), strict=True):
            side.append(where.nonzero().squeeze(-1))
    shown, hidden = (work.history(side) for side in sides)
    if not len(shown) or not len(hidden):
        return None
    trained = work.go_to_last()
    before = _agreement(work.learner, hidden, trained)
    DPOLearner.fit(work.learner, shown)
    return before, _agreement(work.learner, hidden, 1)


def _health(work: Session) -> dict[str, float]:
    """Let the model answer a few prompts that were not asked about (if there are such), and look at the answers."""
    policy, settings = work.policy, work.settings
    prompts = work.quiet_prompts(PROMPTS)
    encoded = [policy.tokens_of(prompt) for prompt in prompts]
    key = work.key.fold_in("health")
    rows, logs, reference = beside_reference(policy, encoded, settings.decoding, key, "evaluate")
    tokens = sum(len(row.response) for row in rows)
    texts = [policy.decode(row.response) for row in rows]
    return {
        "prompts": len(prompts),
        "kl": float((logs - reference).mean()),
        "kl_per_token": float((logs - reference).sum()) / tokens,
        "fluency": float(reference.sum()) / tokens,
        "tokens": tokens / len(rows),
        "ended": sum(row.response[-1] in policy.ends for row in rows) / len(rows),
        "distinct_2": sum(map(distinct, texts)) / len(rows),
    }


def _percent(estimate: stats.Estimate) -> str:
    value, low, high = (100 * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:.0f} % [{low:.0f}, {high:.0f}] ({estimate.n} {'prompt' if estimate.n == 1 else 'prompts'})"


def _plain(estimate: stats.Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
