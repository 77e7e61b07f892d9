"""Every claim of the theory can come out otherwise: falsified tables refute it, or support it.

The tables are those of the smoke preset with one column falsified at a time, in ways that know nothing of the claim.
"""

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from bandits.core.errors import InputError
from bandits.runs.stats import CONVERGED, LEVEL, at_least, covered, judge
from theory_checks.checks import FITS, AnyFamily, Check, Table
from theory_checks.study import suite

SUITE = suite("smoke")
FAMILIES = [pytest.param(family, id=family.name) for family in SUITE.everything]
NEED_NO_FIT = re.compile("information/|.*/noise$|controls/V misses answers")
"""log det, and the self-normalised step, are about features and answers alone"""
SIZES = (1e-6, 1e-3, 0.5, 1.0, 1e3)
POWERS = (-6, -1, 0.3, 1.5, 6)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> AnyFamily:
    return request.param


@pytest.fixture(scope="module")
def table(family, tmp_path_factory) -> Table:
    """A family's smoke table in which all that its claims presume holds: fits ended, κ held, bounds are sharp."""
    folder = tmp_path_factory.mktemp(family.name)
    cells = pd.concat([family.run(cell, SUITE.seed, folder / cell.key) for cell in family.cells()], ignore_index=True)
    met: dict[str, float] = dict.fromkeys(norms(cells), 0.0)
    met |= {column: 0.25 for column in cells if column.startswith("kappa")}
    met |= {column: 0.0 for column in cells if column.startswith("sharpest")}
    return cells.assign(**met)


def norms(table: Table) -> list[str]:
    """Name the columns that hold relative gradient norms of fits: how near they came to their minimum."""
    return [column for column in FITS if column in table]


def reads(check: Check, table: Table) -> list[str]:
    """Name the columns of numbers without which a claim cannot be measured."""
    found = []
    for column in table.select_dtypes("number"):
        try:
            check.measured(table.drop(columns=column), LEVEL)
        except (InputError, KeyError):
            found.append(column)
    return found


def falsified(table: Table, column: str, others: list[str]) -> Iterator[Table]:
    """Make tables whose column is a constant, a power of another, or a constant but where another has some value."""
    scatter = 1 + 1e-3 * np.random.default_rng(0).standard_normal(len(table))
    for size in SIZES:
        yield table.assign(**{column: size * scatter})
    for other in others:
        if pd.api.types.is_numeric_dtype(table[other]) and (table[other] > 0).any():
            base = table[other].astype(float).clip(lower=1e-3)
            for power in POWERS:
                yield table.assign(**{column: base**power * scatter})
        if table[other].nunique() <= 30:
            for value in table[other].unique():
                for size in (1e-4, 1e4):
                    yield table.assign(**{column: np.where(table[other] == value, size, 1.0) * scatter})


def word(check: Check, table: Table) -> str:
    """Return a claim's verdict; "" where the falsified column says where numbers were measured, and none are left."""
    try:
        return judge(check.measured(table, LEVEL), check.threshold).word
    except (InputError, ValueError, KeyError):
        return ""


def words(check: Check, table: Table, wanted: set[str]) -> set[str]:
    """Return the verdicts that falsified tables bring about, until all wanted ones are found."""
    read = reads(check, table)
    others = list(dict.fromkeys([*read, *table.select_dtypes(exclude="floating")]))
    found = {judge(check.measured(table, LEVEL), check.threshold).word}
    for column in read:
        for lie in falsified(table, column, [other for other in others if other != column]):
            if wanted <= found:
                return found
            found.add(word(check, lie))
    return found - {""}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_claim_can_come_out_otherwise(family, table):
    for check in family.checks():
        found = words(check, table, {"refuted", "supported"})
        if check.expect == "fails":
            assert "refuted" in found, check.name
            assert found != {"refuted"}, check.name
        else:
            assert {"refuted", "supported"} <= found, f"{check.name}: {found}"


@pytest.mark.slow
def test_no_claim_is_judged_on_fits_that_did_not_end(family, table):
    undone = table.assign(**dict.fromkeys(norms(table), 10 * CONVERGED))
    judged = [
        c.name for c in family.checks() if judge(c.measured(undone, LEVEL), c.threshold).word != "not informative"
    ]
    assert [name for name in judged if not NEED_NO_FIT.match(name)] == []


def test_a_claim_that_its_table_cannot_change_is_told_from_others():
    always = Check(
        name="told/always",
        statement="",
        threshold=at_least(0.5),
        measure=lambda table, level: covered([True] * 99, level),
    )
    assert words(always, pd.DataFrame({"a": [0.1, 0.2]}), {"refuted", "supported"}) == {"supported"}
