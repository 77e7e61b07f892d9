"""Owns a run of the checks: which families with which sizes, the presets, and how cells are carried out anywhere."""

from __future__ import annotations

import contextlib
import difflib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import joblib
import pandas as pd
import torch
from tqdm import tqdm

from bandits.core.errors import InputError
from bandits.runs.directory import RunDirectory, write_frame
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

Backend = Literal["loky", "dask", "ray"]


@dataclass(frozen=True)
class Checks:
    """All families with their sizes; together with the code's version it determines every byte of the results."""

    seed: int = 0
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
        if self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")
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

    @property
    def cells(self) -> list[tuple[str, str]]:
        """All (family, cell) pairs."""
        return [(family.name, cell) for family in self.families for cell in family.cells()]


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


@contextlib.contextmanager
def backend_of(name: Backend, address: str | None) -> Iterator[None]:
    """Send joblib's work to local processes, or to a Dask or Ray cluster (at ``address``, else a local one)."""
    with contextlib.ExitStack() as open_until_done:
        try:
            if name == "dask":
                from distributed import Client

                client = Client(address, timeout=10) if address else Client(processes=True, threads_per_worker=1)  # type: ignore[no-untyped-call]
                open_until_done.enter_context(client)
            elif name == "ray":
                import ray
                from ray.util.joblib import register_ray

                ray.init(address=address, log_to_driver=False)
                open_until_done.callback(ray.shutdown)
                register_ray()
        except ImportError:
            package = {"dask": "distributed", "ray": "ray"}[name]
            raise InputError(f"backend {name!r} needs the package {package!r}: pip install {package}") from None
        except (OSError, ConnectionError) as error:
            raise InputError(f"backend {name!r}: cannot reach {address or 'a local cluster'} ({error})") from None
        open_until_done.enter_context(joblib.parallel_config(backend=name))
        yield


def run_cell(checks: Checks, family: str, cell: str, folder: Path) -> tuple[str, float]:
    """Run one cell and write its table whole; return its name and the seconds spent."""
    torch.set_num_threads(1)  # cells run side by side; and one thread sums in one order
    started = time.perf_counter()
    owner = next(f for f in checks.families if f.name == family)
    write_frame(folder / "table.csv", owner.run(cell, Run(checks.seed, folder)))
    return folder.name, time.perf_counter() - started


def run(
    checks: Checks, directory: RunDirectory, jobs: int = 0, backend: Backend = "loky", address: str | None = None
) -> dict[str, pd.DataFrame]:
    """Run all cells that are not done yet; return one table per family.

    Neither the number of jobs nor the backend changes a byte; a cell whose worker dies is run again by the backend
    (Dask, Ray) or by the next run of the same command.  On a cluster the output folder must be shared.
    """
    todo = [cell for cell in checks.cells if not (directory.cell(_folder(*cell)) / "table.csv").exists()]

    timing: dict[str, float] = {}
    with backend_of(backend, address) if todo else contextlib.nullcontext():
        jobs = jobs if jobs > 0 or backend != "loky" else joblib.cpu_count()
        results = joblib.Parallel(n_jobs=jobs or -1, return_as="generator_unordered", batch_size=1)(
            joblib.delayed(run_cell)(checks, *cell, directory.cell(_folder(*cell)).resolve()) for cell in todo
        )
        for name, seconds in tqdm(results, total=len(todo), desc="cells", disable=not todo):
            timing[name] = round(seconds, 2)
    directory.note_timing(timing)
    return {family.name: _collect(family, directory) for family in checks.families}


def _collect(family: Family, directory: RunDirectory) -> pd.DataFrame:
    paths = [directory.cell(_folder(family.name, cell)) / "table.csv" for cell in family.cells()]
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)


def _folder(family: str, cell: str) -> str:
    return f"{family}--{cell}"
