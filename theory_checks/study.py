"""Owns a run of the checks: which families with which sizes, the presets, and the run that they make."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path

from bandits.core.errors import InputError
from bandits.runs.directory import Identity, RunDirectory, config_of
from bandits.runs.execute import Report
from bandits.runs.files import read_json, write_frame
from bandits.runs.settings import Seed, check
from theory_checks.families.approximations import Approximations
from theory_checks.families.certificates import Certificates
from theory_checks.families.controls import Controls
from theory_checks.families.exact import Exact
from theory_checks.families.information import Information
from theory_checks.families.network import Network
from theory_checks.families.orders import Orders
from theory_checks.families.policy import Policy
from theory_checks.families.regret import Regret
from theory_checks.families.tightness import Tightness
from theory_checks.families.transformers import Transformers
from theory_checks.family import Family, Run


@dataclass(frozen=True)
class Checks:
    """All families with their sizes; together with the code's version it determines every byte of the results."""

    seed: Seed = 0
    claims: tuple[str, ...] = ()
    """families, or names of claims, to check (default: all)"""
    exact: Exact = field(default_factory=Exact)
    controls: Controls = field(default_factory=Controls)
    network: Network = field(default_factory=Network)
    orders: Orders = field(default_factory=Orders)
    information: Information = field(default_factory=Information)
    tightness: Tightness = field(default_factory=Tightness)
    sharper: Certificates = field(default_factory=Certificates)
    policy: Policy = field(default_factory=Policy)
    devices: Approximations = field(default_factory=Approximations)
    regret: Regret = field(default_factory=Regret)
    transformers: Transformers = field(default_factory=Transformers)

    def __post_init__(self) -> None:
        check(self)
        known = [family.name for family in self._all()]
        names = [claim.name for family in self._all() for claim in family.claims()]
        for wanted in self.claims:
            if wanted not in known and not any(name == wanted or name.startswith(wanted + "/") for name in names):
                near = [name for name in names if name.startswith(wanted)] or difflib.get_close_matches(
                    wanted, [*known, *names], 1, 0.0
                )
                raise InputError(
                    f"no claim is named {wanted!r}; the nearest is {near[0]!r}; families: {', '.join(known)}"
                )

    def _all(self) -> list[Family]:
        return [getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Family)]

    @property
    def families(self) -> list[Family]:
        """The families that are to be run."""
        wanted = {name.partition("/")[0] for name in self.claims}
        return [family for family in self._all() if not wanted or family.name in wanted]

    def wants(self, claim: str) -> bool:
        """Whether a claim is to be judged."""
        return not self.claims or any(claim == name or claim.startswith(name + "/") for name in self.claims)


PRESETS: dict[str, tuple[str, Checks]] = {
    "smoke": (
        "every family at its smallest, for tests (under a minute)",
        Checks(
            exact=Exact(replicates=80, block=80, rounds=10, prompts=2),
            controls=Controls(replicates=80),
            network=Network(rounds=12, width=16),
            orders=Orders(
                3,
                2,
                widths=(16, 32, 64),
                deepest_width=64,
                depths=(2, 3),
                times=(5, 10),
                at_width=32,
                regularisations=(0.3, 1.0, 3.0),
                prompts=6,
            ),
            information=Information(3, ("mlp",), prompts=5, width=16, pools=50, answers=40),
            tightness=Tightness(6, 10, 16, 15, (15, 30), (2.0,), (1.0,), ("mlp",)),
            sharper=Certificates(80, 80, 4, 16, 3, 3),
            policy=Policy(80, (1.0, 0.5), 10, 16),
            devices=Approximations(2, 8, 30, (32, 128), runs=2),
            regret=Regret(2, 48, 8, exact_replicates=80, exact_rounds=40),
            transformers=Transformers(2, (8, 16), (2, 4), 4, 6, at_width=8),
        ),
    ),
    "quick": ("every claim, small (under 10 minutes on 2 cores)", Checks()),
    "full": (
        "every claim with many replicates and the largest networks (hours)",
        Checks(
            exact=Exact(replicates=4000, rounds=2000),
            controls=Controls(replicates=1000),
            network=Network(400, 200, 512),
            orders=Orders(40, 16, deepest_width=4096, times=(5, 10, 20, 40, 60)),
            information=Information(64, prompts=200),
            tightness=Tightness(400, 100, 128, 200),
            sharper=Certificates(400, 40, 200, 64, 20, 10),
            policy=Policy(400, (1.0, 0.1, 0.2, 0.5, 2.0, 5.0), 200, 128),
            devices=Approximations(64, 128, 200, (32, 128, 512, 2048, 8192), 128),
            regret=Regret(40, 2000, 50, 1000, 2000),
            transformers=Transformers(32, (16, 32, 64, 128, 256, 512, 1024), (2, 4, 8, 16, 32, 64)),
        ),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A part of a family that is played alone."""

    family: str
    name: str
    cost: float = 1.0

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.family}--{self.name}"


@dataclass(frozen=True)
class TheoryStudy:
    """The checks as a run."""

    checks: Checks

    experiment = "theory"
    gpu = False

    def identity(self) -> Identity:
        """What determines the bytes of its results."""
        return Identity(config_of(self.checks), packages=("bandits", "theory_checks"))

    def memory(self) -> dict[str, float]:
        """Estimate a cell's bytes: the largest of the families'."""
        parts: dict[str, float] = {}
        for family in self.checks.families:
            parts = max(parts, family.memory(), key=lambda part: sum(part.values()))
        return parts

    def count(self) -> int:
        """How many cells there are."""
        return sum(family.count() for family in self.checks.families)

    def cells(self) -> list[Cell]:
        """All cells, family by family."""
        return [Cell(family.name, cell) for family in self.checks.families for cell in family.cells()]

    def play(self, cell: Cell, folder: Path) -> list[str]:
        """Run one cell and write its table."""
        family = next(f for f in self.checks.families if f.name == cell.family)
        write_frame(folder / "table.csv", family.run(cell.name, Run(self.checks.seed, folder)))
        return ["table.csv"]

    def finish(self, directory: RunDirectory) -> None:
        """Judge the claims; write verdicts, tables, figures and page."""
        from theory_checks.report import finish  # matplotlib: only where a page is made

        tables = {
            family.name: directory.frames([c for c in self.cells() if c.family == family.name], "table.csv")
            for family in self.checks.families
        }
        finish(self.checks, directory, tables)

    def report(self, directory: RunDirectory) -> Report:
        """Say what was found: the table of claims, the findings, and an alarm for each claim that came out wrong."""
        from theory_checks.report import terminal

        verdicts = directory.table("verdicts.csv")
        alarms = [f"{v.claim} is {v.verdict}: {v.reason}" for v in verdicts[verdicts["alarm"]].itertuples()]
        found = [f"• {line}" for line in read_json(directory.path / "findings.json", list)]
        counted = f"{len(verdicts)} claims, {len(alarms)} alarms"
        return Report((*terminal(verdicts), *found, counted), tuple(alarms))
