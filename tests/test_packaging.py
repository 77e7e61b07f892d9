"""What the wheel's packages import is what it declares."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from bandits.core.own import PACKAGES

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    "activedpo": (),
    "bandits": ("cluster", "ray"),
    "theory_checks": (),
    "labelling": ("label",),
    "llm_loop": ("llm",),
}
"""What each package may import beside the dependencies of all."""


def normalised(name: str) -> str:
    """A distribution's name as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: Sequence[str]) -> set[str]:
    return {normalised(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def imported(package: str) -> Iterator[str]:
    """The top modules that a package's files import anywhere, of neither Python's nor this project's own."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found = [node.module]
            tops = {name.partition(".")[0] for name in found}
            yield from tops - sys.stdlib_module_names - set(PACKAGES)


@cache
def distributions() -> dict[str, set[str]]:
    return {module: {normalised(name) for name in found} for module, found in packages_distributions().items()}


@pytest.mark.slow
@pytest.mark.parametrize("package", EXTRAS)
def test_what_a_package_imports_is_declared(package: str) -> None:
    """Not left to what another dependency happens to bring."""
    optional = PROJECT["optional-dependencies"]
    declared = names([*PROJECT["dependencies"], *(one for extra in EXTRAS[package] for one in optional[extra])])
    modules = set(imported(package))
    assert modules
    assert not {module for module in modules if not distributions().get(module, {normalised(module)}) & declared}
