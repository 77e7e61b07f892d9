"""Owns ``activedpo select``: which duels of a pool to have answered next, as a file of queries and a page."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from bandits.core.design import Posterior, factorised
from bandits.core.errors import InputError
from bandits.headroom import Headroom, headroom
from bandits.loop import DesignState, Round
from bandits.runs.command import guard, read, say
from bandits.runs.directory import config_of
from bandits.runs.files import frame, sweep, vacant
from bandits.runs.settings import Count, MinLen, Positive, check, pairs
from bandits.selector import STRATEGIES
from labelling import labelled, page, queries, session
from labelling.labelled import Label
from labelling.project import Project, held
from labelling.queries import Query
from labelling.session import Session
from labelling.settings import Settings
from llm_loop.data import pools
from llm_loop.data.pools import FIELDS, Pool
from llm_loop.data.prompts import SOURCES, PromptSet
from llm_loop.diagnostics import Reasons, reasons
from llm_loop.models import weights_hash
from llm_loop.run import COMPARED
from llm_loop.setup import quiet_libraries

PROGRAM = "activedpo select"
CUT = 0.2
"""Share of drawn responses that may be cut before that is said."""


@dataclass(frozen=True, kw_only=True)
class Select:
    """Choose the duels of a pool that are most worth a person's answer."""

    pool: str | None = None
    """file of prompts with responses (or chosen and rejected), or of prompts alone, whose responses the model draws"""
    labelled: Path | None = None
    """file of duels that were answered before: prompt, chosen, rejected, as TRL has them; ties: tie true"""
    budget: Count = 20
    """duels to ask"""
    out: Path | None = None
    """write the queries to this file, beside no project"""
    project: Path | None = None
    """directory that keeps everything from batch to batch"""
    fields: Annotated[tuple[str, ...], MinLen(0)] = ()
    """names that the pool's fields have in the file: prompt=question responses=answers"""
    price: Positive | None = None
    """write no batch if a label of it lowers the expected error of the pool's margins by less than this, in percent"""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


OPTIONS = Select


def mapping(fields: Sequence[str]) -> dict[str, str]:
    """Return what ``--fields`` says; ``InputError`` for what is no ``ours=theirs``."""
    found = pairs(fields, "--fields", "prompt=question")
    for ours in found:
        if ours not in FIELDS:
            raise InputError(f"--fields takes {', '.join(f'{name}=…' for name in FIELDS)}, got {ours!r}")
    return found


def run(arguments: Sequence[str]) -> int:
    """Run the command line."""
    before = _project_of(arguments)
    default = Select(settings=Settings.of(before["settings"])) if before else Select()
    options = read(Select, arguments, PROGRAM, Select.__doc__, default)
    check(options)
    with quiet_libraries():
        return choose(options)


def _project_of(arguments: Sequence[str]) -> Mapping[str, Any] | None:
    """Return what the project on the command line, if it is one already, says of itself."""
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == "--project" and (equals or place + 1 < len(arguments)):
            project = Project(Path(value if equals else arguments[place + 1]).expanduser())
            return project.manifest() if project.exists else None
    return None


def choose(options: Select) -> int:
    """Choose a batch and write it, alone; return the exit status: 1 if ``--price`` says that it is not worth it."""
    if (options.out is None) == (options.project is None):
        raise InputError("give either --project, a directory that is kept from batch to batch, or --out, a file")
    with _held(options):
        return _choose(options)


@contextlib.contextmanager
def _held(options: Select) -> Iterator[None]:
    """Hold the project alone; for a lone file, the folder that it and its features are in, or the project above it."""
    if options.project is not None:
        with Project(options.project.expanduser()).held():
            yield
        return
    beside = _file(options).parent
    with held(next((folder for folder in (beside, *beside.parents) if Project(folder).exists), beside)):
        sweep(beside, ".*.tmp")  # what is in other folders of somebody's directory is none of ours
        sweep(beside / "features")
        yield


def _choose(options: Select) -> int:
    project, labels = _places(options)
    found, texts, settings = _pools(options, project)
    model = weights_hash(settings.model, settings.trust_remote_code)
    content = {"model": model, "settings": config_of(settings)}
    if project is not None and project.exists:
        kept = project.manifest()["settings"]
        if replace(Settings.of(kept), strategy=settings.strategy) == settings:
            content["settings"] = kept | {"strategy": settings.strategy}  # as written: perhaps before some setting was
    if project is not None:
        project.admit(content)
    beside = project.root if project is not None else _file(options).parent
    work = Session.of(settings, found, texts, beside / "features", model)
    work.remember(project, labels)
    trained = work.go_to_last()
    _check_budget(work, options.budget)
    round = work.choose(options.budget)
    batch = 1 if project is None else project.batches + 1
    why = None if round.pool.posterior is None else reasons(round.pool.posterior, round.picks)
    asked = _queries(work, round, f"{batch:02d}" if project is not None else _file(options).stem, why)
    worth = _headroom(work, round, options.budget)
    told = _told(work, round, worth, trained)
    if options.price is not None and _worthless(worth, options.price, settings.strategy, told):
        say(*(f"• {line}" for line in told), "no batch was written; at a lower --price it would be")
        return 1
    where = project.queries(batch) if project is not None else _file(options)
    written = project.root / "index.html" if project is not None else _page(where)
    with contextlib.ExitStack() as stack:
        if project is not None:
            own = project.manifest_path, project.pool, project.labelled, project.drawn(batch), where
            stack.enter_context(project.writing(*own))
            if texts is not None:
                session.write_prompts(project.pool, texts)
                work.keep_drawn(project, batch)
            elif found is not None:
                session.write_pool(project.pool, found)
            if options.labelled is not None:
                labelled.write_labels(project.labelled, labels)
            project.begin(content)  # last: a project has its pool
        page.write(written, settings, asked, round, why, worth, told)
        queries.write(where, asked)
    work.learner.sweep()
    follow = f"activedpo label {project.root if project is not None else where}"
    say(*(f"• {line}" for line in told), f"queries: {where}", f"page: {written}", f"next: {follow}")
    return 0


def _file(options: Select) -> Path:
    assert options.out is not None  # where there is no project
    return options.out.expanduser().absolute()


def _page(queries: Path) -> Path:
    """Return the page beside a lone file of queries."""
    return queries.with_suffix(".html")


def _places(options: Select) -> tuple[Project | None, list[Label]]:
    """Return the project, if there is one, and the labels from elsewhere; refuse what cannot be."""
    given = None if options.labelled is None else labelled.read_labels(options.labelled.expanduser())
    if given == []:
        raise InputError(f"--labelled {options.labelled} has no labels; leave it out, or name the file that has them")
    if options.project is None:
        if _file(options).suffix == ".html":
            raise InputError(f"--out {options.out}: that is the name of the queries' page; name them .jsonl")
        for path in (_file(options), _page(_file(options))):
            vacant(path, "--out")
        return None, given or []
    project = Project(options.project.expanduser())
    if project.exists:
        project.check()
        waiting = project.waiting()
        if waiting:
            raise InputError(
                f"{len(waiting)} queries of {project.queries(project.batches)} wait for an answer; go on with: "
                f"activedpo label {project.root}"
            )
        if project.labelled.exists():
            if given is not None:
                raise InputError(f"{project.root} has labels from elsewhere already, in {project.labelled.name}")
            return project, labelled.read_labels(project.labelled)
        if given is not None and project.batches:
            raise InputError(f"{project.root} has begun without --labelled; begin another --project with it")
    return project, given or []


def _pools(options: Select, project: Project | None) -> tuple[Pool | None, PromptSet | None, Settings]:
    """Return the pool, with what it has grown by, or the prompts alone; and the settings that suit it."""
    settings, fields = options.settings, mapping(options.fields)
    known = pools.read(project.pool) if project is not None and project.exists else None
    if options.pool is None and known is None:
        raise InputError("--pool says which prompts and responses to choose from; give a file")
    if options.pool in SOURCES:
        if known is not None and not known.drawn:
            raise InputError(f"--pool {options.pool} has prompts alone, and {project} has responses")
        chat = "no" if settings.chat == "auto" else settings.chat
        return None, session.read_prompts(options.pool, settings.seed), replace(settings, chat=chat)
    given = None if options.pool is None else pools.read(Path(options.pool), fields)
    if known is not None and given is not None and known.drawn != given.drawn:
        raise InputError(f"--pool {options.pool} and the project's own pool are not of one form")
    if known is not None and known.drawn:
        assert project is not None
        if given is not None and {group.prompt for group in given.groups} != {group.prompt for group in known.groups}:
            raise InputError("the prompts of a project that draws its responses are fixed; begin another --project")
        return None, session.read_prompts(str(project.pool), settings.seed), settings
    if known is None and given is not None and given.drawn:
        if options.project is None:
            raise InputError("a pool of prompts alone needs a --project, which keeps what the model draws")
        if fields:
            raise InputError("a pool of prompts alone takes no --fields; name its field prompt")
        return None, session.read_prompts(str(options.pool), settings.seed), settings
    if given is not None:
        given = _to_learn_from(given, str(options.pool))
    whole = given if known is None else known if given is None else session.grown(known, given)
    return whole, None, settings


def _to_learn_from(pool: Pool, name: str) -> Pool:
    """Return a pool without what its data hold out, and say how much that is."""
    kept = pool.learnable()
    if out := len(pool.groups) - len(kept.groups):
        say(f"note: {out} of {len(pool.groups)} prompts of {name} are held out by their split and are not asked about")
    return kept


def _check_budget(work: Session, budget: int) -> None:
    if work.table is not None:
        left = work.table.duels.count - len(torch.cat([torch.empty(0), *(past.asked for past in work.past)]).unique())
        if budget > left:
            raise InputError(f"--budget {budget}, but the pool has {left} duels that were not asked yet")
    else:
        prompts, k = work.arena.prompts_per_round, work.settings.responses
        if budget > (most := prompts * k * (k - 1) // 2):
            raise InputError(
                f"--budget {budget}, but {k} responses to each of {prompts} prompts make {most} duels; lower it, or "
                "raise --responses"
            )


def _queries(work: Session, round: Round[Any, Any], batch: str, why: Reasons | None) -> list[Query]:
    """Return the picks as queries, their sides in a random order."""
    number = len(work.past)
    swapped = (work.key.fold_in("sides", number).uniform(len(round.picks)) < 0.5).tolist()
    shown = [work.texts_of(round.offer.duels, duel) for duel in round.picks.tolist()]
    names = [Query.of(batch, *texts, swap).id for texts, swap in zip(shown, swapped, strict=True)]
    by_duel = dict(zip(round.picks.tolist(), names, strict=True))
    widths = None if why is None else round.pool.widths
    margins = None if round.pool.item_rewards is None else round.pool.margins
    made = []
    for place, duel in enumerate(round.picks.tolist()):
        said: dict[str, Any] = {"why": "drawn by a rule that looks at no width"}
        if why is not None and widths is not None and "width" in STRATEGIES[work.settings.strategy].reads:
            said["why"] = _why(round, why, duel, by_duel)
        if why is not None and widths is not None:
            nearest = int(why.nearest[duel])
            said |= {"width": float(widths[duel]), "gain": float(why.gain[duel])}
            said |= {"nearest": by_duel[nearest] if nearest != duel else None, "cosine": float(why.cosine[duel])}
        if margins is not None:
            said["margin"] = float(margins[duel])
        made.append(Query.of(batch, *shown[place], swapped[place], **said))
    return made


def _why(round: Round[Any, Any], why: Reasons, duel: int, names: Mapping[int, str]) -> str:
    """Say in words why a duel was picked."""
    width = round.pool.widths
    narrower = float((width[round.pool.available] < width[duel]).double().mean())
    nearest = int(why.nearest[duel])
    like = f"; most like {names[nearest]} (cosine {float(why.cosine[duel]):.2f})" if nearest != duel else ""
    return f"less is known of its answer than of {100 * narrower:.0f} % of the pool's duels{like}"


def _headroom(work: Session, round: Round[Any, Any], budget: int) -> Headroom | None:
    """Return what choosing can save in this pool; None where the rule looks at no features."""
    if round.pool.posterior is None or round.pool.posterior.metric != "full" or budget < 2:
        return None
    strategy = STRATEGIES[work.settings.strategy]
    space = strategy.space if "width" in strategy.reads else COMPARED
    ridge = work.settings.ridges.of(space)
    past = work.history_in_place()
    state = DesignState(space, ridge, budget)
    labelled = state.rows(work.learner, past.items, past.duels) if past else None
    free_duels = round.pool.available.nonzero().squeeze(
        -1
    )  # of the duels, not of their features: those of all may not fit
    free = state.rows(work.learner, round.offer.items, round.offer.duels.take(free_duels))
    key = work.key.fold_in("headroom", len(work.past))
    return headroom(free, ridge=ridge, budget=budget, labelled=labelled, candidates=2000, targets=500, key=key)


def _told(work: Session, round: Round[Any, Any], worth: Headroom | None, trained: int) -> list[str]:
    """Say what was done, a line each."""
    strategy = STRATEGIES[work.settings.strategy]
    answered = sum(len(past.picks) for past in work.past)
    lines = [
        f"{len(round.picks)} of {int(round.pool.available.sum())} duels, given {answered} answered ones, by "
        f"{work.settings.strategy}, which {strategy.summary}"
    ]
    if worth is not None:
        lines.append(f"headroom: {worth.verdict}")
    if round.pool.posterior is not None and round.pool.posterior.metric == "full":
        before, after, asked = coverage(round.pool.posterior, round.picks, round.pool.prompts)
        lines.append(
            f"coverage: the batch lowers the mean squared width of all duels by {100 * (1 - after / before):.0f} %; "
            f"it asks about {asked} prompts"
        )
    if work.table is None:
        rows = work.arena.table.items.rows
        cut = sum(row.response[-1] not in work.policy.ends for row in rows)
        if cut > CUT * len(rows):
            lines.append(
                f"{cut} of {len(rows)} responses were cut at {work.settings.decoding.tokens} tokens; for whole ones "
                "begin a project with more --tokens, or ask for short answers in the prompts"
            )
    late = sum(len(past.picks) > 0 for past in work.past[trained:])
    if late and trained < len(work.past):
        lines.append("answers are there that the model was not trained on; activedpo train takes them up")
    return lines


def coverage(pool: Posterior, picks: Tensor, prompts: Tensor) -> tuple[float, float, int]:
    """Return the pool's mean squared width without and with the picks in V, and how many prompts they are of."""
    chosen = pool.take(picks)
    gram = pool.rows.inner(chosen.rows) - pool.projections.mT @ chosen.projections
    own = gram[picks] + pool.ridge * torch.eye(len(picks), dtype=gram.dtype)
    known = torch.linalg.solve_triangular(factorised(own, pool.ridge), gram.mT, upper=False).square().sum(0)
    residual = pool.residuals
    before, after = float(residual.mean()), float((residual - known).clamp(min=0).mean())
    return max(before, 1e-300) / pool.ridge, after / pool.ridge, len(prompts[picks].unique())


def _worthless(worth: Headroom | None, price: float, strategy: str, told: list[str]) -> bool:
    """Say whether a label of this batch is worth its price."""
    if worth is None:
        raise InputError("--price needs a rule that looks at features, in the full metric, and a --budget of 2 or more")
    first, last = float(worth.curve["chosen"].iloc[0]), float(worth.curve["chosen"].iloc[-1])
    gain = 100 * (1 - last / first) / worth.budget if first > 0 else 0.0
    verdict = "stop: less than" if gain < price else "go on: at least"
    told.insert(
        0,
        f"{verdict} the price of {price:g} %: a label lowers the expected error of the pool's margins by {gain:.2g} % "
        f"(by variance alone; {calibrated(strategy, worth.budget)})",
    )
    return gain < price


def calibrated(strategy: str, budget: int) -> str:
    """Say how well variance alone predicted what a rule saved in the simulator's map, at the budget nearest to this.

    ``calibration.csv`` is the map's own table (``docs/studies/map``).
    """
    table = frame(resources.files("labelling").joinpath("calibration.csv").read_bytes())
    table = table[(table["rule"] == strategy) & (table["objective"] == "error")]
    if table.empty:
        return f"how well that predicts real errors of {strategy} is not known"
    found = table.iloc[int((table["budget"] - budget).abs().to_numpy().argmin())]
    rank, slope = (
        "{:.2f} [{:.2f}, {:.2f}]".format(*(found[name + end] for end in ("", "_low", "_high")))
        for name in ("rank", "slope")
    )
    return (
        f"in {found['worlds']} simulated worlds the share of {found['budget']} labels that {strategy} was predicted to "
        f"save and the share that it was measured to save had rank correlation {rank} and slope {slope}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; bad input is one line on standard error and exit status 2."""
    return guard(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
