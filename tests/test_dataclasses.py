"""Dataclasses of arrays: compared as objects, since ``==`` of arrays is no truth value."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("activedpo", "bandits", "benchmarks", "faults", "labelling", "llm_loop", "theory_checks")
ARRAYS = {"Tensor", "ndarray", "DataFrame", "Series", "Rows", "ItemRows", "Posterior"}


def comparing(source: str) -> set[str]:
    """Return a module's dataclasses that are compared field by field and have a field of arrays, or inherit one."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    holding, known = {node.name for node in classes if _arrays(node)}, -1
    while known < len(holding):
        known = len(holding)
        holding |= {node.name for node in classes if holding & {ast.unparse(base) for base in node.bases}}
    made = {node.name: [ast.unparse(each) for each in node.decorator_list] for node in classes}
    return {name for name in holding if any("dataclass" in each and "eq=False" not in each for each in made[name])}


def _arrays(node: ast.ClassDef) -> bool:
    fields = [line.annotation for line in node.body if isinstance(line, ast.AnnAssign)]
    return any(getattr(part, "attr", getattr(part, "id", "")) in ARRAYS for field in fields for part in ast.walk(field))


def test_no_dataclass_compares_arrays() -> None:
    """``Dense(x) == Dense(x)`` raised; with ``eq=False`` it asks whether they are one object, which a set can hold."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    found = [f"{name} ({file.relative_to(ROOT)})" for file in files for name in comparing(file.read_text("utf-8"))]
    assert not found, f"say @dataclass(eq=False) of {', '.join(sorted(found))}"


def test_the_sweep_sees_every_way_to_say_it() -> None:
    """A field by itself, within another type, through a module or inherited; not one that is compared as an object."""
    for field in ("Tensor", "Float[Tensor, 'n'] | None", "dict[str, pd.Series]", "np.ndarray", "tuple[Rows, ...]"):
        for decorator in ("dataclass", "dataclass(frozen=True)", "dataclasses.dataclass(kw_only=True)"):
            assert comparing(f"@{decorator}\nclass A:\n    x: {field}\n") == {"A"}
    above = "@dataclass(frozen=True, eq=False)\nclass A:\n    x: Tensor\n"
    assert comparing(above) == set()
    assert comparing(above + "@dataclass\nclass B(A): ...\n") == {"B"}
    assert comparing("@dataclass\nclass A:\n    x: int\n    def f(self) -> Tensor: ...\n") == set()
