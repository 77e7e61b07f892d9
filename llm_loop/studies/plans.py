"""Owns which studies there are: a question, the runs of the loop that answer it, and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from bandits.runs.files import sha256

Preset = Literal["smoke", "full"]
ALL = ("activedpo-normalised", "apo", "aplp", "random")
NORMALISED = ("activedpo", "activedpo-normalised", "activedpo-normalised-duel", "random")
CUT = ("--long-texts", "cut")
"""Of runs whose models may write much in a few tokens, such as a row of dots: what is read in part is counted."""
FIXED = ("--pool", "80", "--responses", "8", "--pool-temperature", "1.4", *CUT)
FULL = ("--seeds", "8")


@dataclass(frozen=True)
class Part:
    """One run: the preset that it begins with and the options that change it."""

    name: str
    options: tuple[str, ...]
    strategies: tuple[str, ...] = ALL

    @property
    def words(self) -> tuple[str, ...]:
        """All that its command line says beside the preset."""
        return ("--strategies", *self.strategies, *self.options)

    @property
    def digest(self) -> str:
        """Eight hex digits that name its options, but for strategies and seeds: rows of a table name those."""
        pairs = zip(self.options[::2], self.options[1::2], strict=True)
        return sha256(" ".join(f"{name} {value}" for name, value in pairs if name != "--seeds").encode())[:8]


@dataclass(frozen=True)
class Study:
    """A question, the runs that answer it, and what is drawn against labels."""

    title: str
    question: str
    full: tuple[Part, ...]
    measures: tuple[str, ...] = ("reward", "judge", "kl_per_token", "fluency")
    besides: str = ""
    """a strategy that the others are compared with besides Random"""
    metered: int = 0
    """of how many seeds the headroom meter foretells, before any label, what choosing can save"""
    table: str = ""
    """another study whose runs and table it reads, if it has none of its own"""

    @property
    def exact(self) -> bool:
        """Whether a run's gradients are exact; the others' first picks and widths are compared with its."""
        return any(part.name == EXACT for part in self.full)

    @property
    def settings(self) -> bool:
        """Whether its runs try settings, all by one rule; these are compared with each other."""
        return not self.exact and all(len(part.strategies) == 1 for part in self.full)

    def parts(self, preset: Preset) -> tuple[Part, ...]:
        """Return the runs of a preset; the smoke preset plays every one on a tiny model."""
        return self.full if preset == "full" else tuple(map(_tiny, self.full))


def _tiny(part: Part) -> Part:
    """Return a run with the same strategies and switches on a tiny model."""
    pairs = zip(part.options[::2], part.options[1::2], strict=True)
    kept = [o for name, value in pairs if name in SWITCHES for o in (name, TINY.get(value, value))]
    small = ("--pool", "5", "--responses", "4") if "--pool" in part.options else ()
    return replace(part, options=(*kept, *small, "--seeds", "2"))


def _projected(size: int) -> tuple[str, ...]:
    """Return the options of a run on the fixed pool, with gradients projected to a dimension."""
    return (*FIXED, *FULL, "--sketch-size", str(size))


EXACT = "exact"
"""The run whose gradients are not projected."""
TINY = {"gemma3-270m": "tiny-gemma"}
"""What stands for a model in the smoke preset."""
SWITCHES = (
    *("--model", "--judge", "--sketch-size", "--sketch", "--beta", "--lora-init", "--epochs"),
    *("--pool-temperature", "--sampling-temperature"),
)
"""The options that the smoke preset keeps: they need no file, and no larger pool."""
ONCE = {"--rounds": "1", "--batch": "48", "--prompts-per-round": "24", "--seeds": "2", CUT[0]: CUT[1]}
REDUNDANT = ("--pool", "60", "--responses", "6", "--pool-temperature", "1.4", "--heldout-duels", "24", *CUT)
SETTINGS = {
    **{f"rate {r}, β {b}": {"--rate": r, "--beta": b} for r in ("1e-3", "1.5e-3", "2e-3") for b in ("0.1", "0.3")},
    "1 epoch": {"--epochs": "1"},
    "6 epochs": {"--epochs": "6"},
    "temperature 0.7": {"--sampling-temperature": "0.7"},
    "24 labels": {"--batch": "24"},
    "LoRA on 2 layers": {"--lora-layers": "2"},
    "LoRA on 8 layers": {"--lora-layers": "8"},
}
"""What a regime's runs change, two of the default's settings or one."""

TASKS = (
    Part("films", ("--prompts", "films", *FULL)),
    Part("headlines", ("--prompts", "headlines", *FULL)),
    Part("films, many seeds", ("--prompts", "films", "--seeds", "40"), ("activedpo-normalised", "random")),
    Part("films, Gemma-3-270M", ("--prompts", "films", "--model", "gemma3-270m", "--seeds", "4", *CUT)),
    Part(
        "films, Gemma-3-270M, rate 5e-4",
        ("--prompts", "films", "--model", "gemma3-270m", "--rate", "5e-4", *FULL, *CUT),
        ("activedpo-normalised", "random"),
    ),
    Part(
        "films, the simulator's best", ("--prompts", "films", *FULL), ("policy-trace-target", "decisive-bald", "random")
    ),
)
STUDIES: dict[str, Study] = {
    "1": Study(
        "Figure 1: held-out reward against labels",
        "Does choosing the duels buy more reward per label than asking blindly?",
        TASKS,
    ),
    "3": Study(
        "Figure 3: normalised gradients",
        "Do gradients scaled to length 1, by response or by duel, choose better than gradients as they are?",
        (Part("fixed pool", _projected(8192), NORMALISED),),
        besides="activedpo",
    ),
    "4": Study(
        "Figure 4: the dimension that gradients are projected to",
        "How small may the projection be before picks, and what is learned from them, differ?",
        (
            *(Part(str(size), _projected(size), NORMALISED[1:2]) for size in (256, 1024, 8192, 32768)),
            Part(EXACT, (*FIXED, *FULL, "--sketch", "none"), NORMALISED[1:2]),
        ),
    ),
    "5": Study(
        "Figure 5: win rate against the initial model",
        "How often does a trained policy's response beat the initial model's, by the reward and by the judge?",
        TASKS,
        ("wins", "judge_wins"),
        table="1",
    ),
    "redundant": Study(
        "Positive control: a redundant pool",
        "Nine in ten prompts are headlines about one man, the held-out ones are films and headlines of all "
        "topics.  Does choosing save labels here, as much as predicted?  What would a rule save that knows the truth?",
        (
            Part(
                "redundant pool",
                ("--prompts", "redundant", *REDUNDANT, *FULL),
                ("activedpo-normalised", "ceiling", "random"),
            ),
        ),
        metered=3,
    ),
    "regime": Study(
        "Training settings: reward gained against fluency lost",
        "Which settings raise reward and judge while the text stays language (fluency lost at most 0.3 nats "
        "a token, KL at most 0.5 nats a token)?  Settings that name neither have rate 1.5e-3 and β 0.1.",
        tuple(
            Part(name, tuple(chain.from_iterable((ONCE | changed).items())), ("random",))
            for name, changed in SETTINGS.items()
        ),
    ),
}


def pages(name: str) -> dict[str, Study]:
    """Return the studies that are read off a study's runs, itself among them."""
    table = STUDIES[name].table or name
    return {other: study for other, study in STUDIES.items() if (study.table or other) == table}
