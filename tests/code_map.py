"""Write the code map, which symbol is where, into ``docs/where-is-what.md``: ``python tests/code_map.py``."""

from __future__ import annotations

import importlib
from pathlib import Path

from generated import between

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/where-is-what.md"
BEGIN, END = "<!-- tables: python tests/code_map.py -->\n", "<!-- end of the tables -->\n"

PLACES = {
    "The criterion and the choice": [
        ("the rule of ActiveDPO", "bandits.selector:ActiveDPO"),
        ("every strategy, by name; stochastic batches", "bandits.selector:STRATEGIES"),
        ("what a strategy may know", "bandits.selector:Pool"),
        ("in which space widths are measured", "bandits.selector:FeatureSpace"),
        ("choosing, after checking", "bandits.selector:select"),
        ("the greedy log-det batch", "bandits.core.greedy:greedy"),
        ("the greedy trace batch", "bandits.core.greedy:greedy_trace"),
        ("what choosing can save, before any label", "bandits.headroom:headroom"),
        ("the width ‖φ‖ in V⁻¹", "bandits.core.design:Posterior"),
        ("V, and which form of it suits", "bandits.core.design:Design"),
    ],
    "The loop": [
        ("one round after another", "bandits.loop:play"),
        ("what an arena must do", "bandits.loop:Arena"),
        ("what a learner must do", "bandits.loop:Learner"),
        ("what a round tells", "bandits.loop:Round"),
        ("duels; labelled duels", "bandits.core.duels:Duels"),
    ],
    "One's own data": [
        ("ask and tell on arrays", "bandits.ask:Selector"),
        ("rows on disk", "bandits.core.stored:Stored"),
        ("the pool's file", "llm_loop.data.pools:read"),
        ("a duel to ask", "labelling.queries:Query"),
        ("what people answered", "labelling.answers:Answers"),
        ("the desk at which people label", "labelling.desk:Desk"),
        ("the label page over HTTP", "labelling.server:application"),
        ("answers from other tools", "labelling.exchange:bring"),
        ("how far people agree", "bandits.runs.stats:agreement"),
        ("features, made once", "labelling.store:Store"),
        ("a project at work", "labelling.session:Session"),
        ("a project's settings", "labelling.settings:Settings"),
    ],
    "Truth and labels": [
        ("oracles, by name", "bandits.core.oracles:ORACLES"),
        ("Bradley–Terry–Luce", "bandits.core.oracles:BTL"),
        ("κ", "bandits.core.oracles:kappa"),
        ("ground truths", "bandits.sim.truths:GroundTruth"),
        ("ground truths, by name", "bandits.sim.truths:TRUTHS"),
        ("scorers, by name: who labels and judges responses", "llm_loop.rewards.scorers:SCORERS"),
        ("a set of prompts, by name or from a file", "llm_loop.data.prompts:PromptSet"),
        ("adding a prompt set", "llm_loop.data.prompts:register"),
        ("a simulated problem", "bandits.sim.problem:Problem"),
    ],
    "Learners": [
        ("learners of the simulator, by name", "bandits.sim.learners:LEARNERS"),
        ("the toy DPO step: a policy over the simulator's responses", "bandits.sim.learners:PolicyLearner"),
        ("the loss of a duel's answer, ties included, of both DPO steps", "bandits.core.oracles:loss"),
        ("the theorem's network", "bandits.sim.networks:MLP"),
        ("the network fitted to a near-minimiser", "bandits.sim.learners:NeuralLearner"),
        ("the DPO step of the language model", "llm_loop.learner:DPOLearner"),
        ("per-response LoRA gradients", "llm_loop.gradients:Gradients"),
        ("passes that read once what responses share", "llm_loop.passes:pack"),
        ("which of a model's passes may be fast", "llm_loop.agreement:settle"),
        ("random sketches", "bandits.core.sketches:Sketch"),
        ("L-BFGS and Newton, batched", "bandits.core.solvers:minimise"),
    ],
    "The bound": [
        ("γ of Proposition 1", "bandits.core.bounds:proposition"),
        ("both sides, measured in a simulation", "bandits.sim.audit:Audit"),
        ("a claim of the theory", "theory_checks.checks:Check"),
        ("the exact bound of the linearised learner", "theory_checks.families.exact:Exact"),
    ],
    "Runs and numbers": [
        ("an estimate with its interval; verdicts", "bandits.runs.stats:Estimate"),
        ("the run directory, its ledger and lock", "bandits.runs.directory:RunDirectory"),
        ("cells on cores, Dask or Ray", "bandits.runs.execute:execute"),
        ("checks of settings", "bandits.runs.settings:check"),
        ("the simulator's settings and presets", "bandits.sim.config:Simulation"),
        ("the map's settings and presets", "bandits.sim.map:Map"),
        ("a world of the map", "bandits.sim.map:World"),
        ("what the map's page says", "bandits.sim.atlas:page_text"),
        ("the language-model loop's settings and presets", "llm_loop.config:Alignment"),
        ("the paper's figures as studies", "llm_loop.studies.plans:STUDIES"),
        ("randomness", "bandits.core.rng:Key"),
    ],
}
"""What one looks for, and the symbol that is it, by topic."""


def place(path: str) -> tuple[str, str]:
    """Return a symbol's name and its file; ``AttributeError`` or ``ImportError`` where it is gone."""
    module_name, name = path.split(":")
    module = importlib.import_module(module_name)
    getattr(module, name)
    return f"`{name}`", f"`{Path(str(module.__file__)).relative_to(ROOT).as_posix()}`"


def tables() -> str:
    """Return all tables in Markdown, one a topic."""
    parts = []
    for title, rows in PLACES.items():
        lines = [f"| {' | '.join((what, *place(path)))} |\n" for what, path in rows]
        parts.append(f"## {title}\n\n| looking for | name | where |\n|---|---|---|\n{''.join(lines)}\n")
    return "".join(parts)


def written(page: str) -> str:
    """Return the page with the tables as they are now."""
    return between(page, BEGIN, tables(), END)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
