"""Owns the tables of named parts (strategies, oracles, truths, learners), and what identifies a part in a run's config.

A part of one's own is registered once, in the script that starts the run: the object itself travels to workers, which
need not know its name.  Knows nothing of what the parts do.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import re
import sys
import textwrap
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, Generic, TypeVar

import torch

from bandits.core.errors import InputError, unknown
from bandits.core.own import is_own_file

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Parts of one kind by name; ``register`` adds one, an unknown name is an ``InputError`` that names the nearest."""

    def __init__(self, kind: str, check: Callable[[object], None]) -> None:
        """Begin empty; ``check`` raises ``InputError`` for what is no such part."""
        self.kind, self._check, self._parts = kind, check, dict[str, T]()

    def register(self, name: str, part: T) -> None:
        """Add a part under a new name: a letter, then letters, digits, ``_ + %`` and single hyphens.

        Names make folder names, and stand in tables, which are read again: one that a table's reader takes for a number
        or for nothing there (``nan``, ``NA``, ``true``) is none.
        """
        check_name(self.kind, name)
        try:
            self._check(part)
        except InputError as error:
            raise InputError(f"{self.kind} {name!r}: {error}") from None
        if name in self._parts and fingerprint(self._parts[name]) != fingerprint(part):
            raise InputError(f"{self.kind} {name!r} is taken by another one; choose another name")
        self._parts[name] = part

    def __getitem__(self, name: str) -> T:
        if name not in self._parts:
            raise unknown(self.kind, name, self._parts)
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


LONGEST = 50  # of four names, and what joins them, a folder is made: 255 characters at most
NO_WORDS = ("nan", "na", "null", "none", "inf", "infinity", "true", "false")
"""What readers of tables take for a number or for nothing there, in whatever case."""


def check_name(kind: str, name: object) -> None:
    """Raise ``InputError`` for what is no name of a part: see ``Registry.register``."""
    shown = repr(name) if len(repr(name)) <= LONGEST + 2 else repr(name)[:LONGEST] + "…"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_+%]*(-[A-Za-z0-9_+%]+)*", name):
        raise InputError(
            f"{kind} {shown}: a name is made of letters, digits, _, +, % and single hyphens, and begins with a letter"
        )
    if len(name) > LONGEST:
        raise InputError(f"{kind} {shown}: a name has at most {LONGEST} characters, got {len(name)}")
    if name.lower() in NO_WORDS:
        raise InputError(f"{kind} {shown}: tables are read as if there were no name; choose another")


def fingerprint(part: object) -> dict[str, Any]:
    """Return what identifies a part in a run's config: its class (or function), its settings, and a hash of its code.

    The hash is over the source of the class and its bases, comments and docstrings apart; where there is no source (a
    class typed at a prompt), over the byte code.  Of a part of one's own it is also over the whole module that defines
    it and the modules beside that one which it imports, in a function too, and those that they import: their functions
    and constants decide as well.  JSON values only.
    """
    kind: Any = part if isinstance(part, type) or inspect.isroutine(part) else type(part)
    settings: Mapping[str, Any] = {}
    if kind is not part:
        fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else None
        try:
            settings = {f.name: getattr(part, f.name) for f in fields} if fields is not None else vars(part)
        except TypeError:
            raise InputError(f"a setting that is a {kind.__name__} cannot be recorded; use JSON values") from None
    bases = inspect.getmro(kind) if isinstance(kind, type) else (kind,)
    own = dict.fromkeys(path for base in bases for path in _own_files(base.__module__))
    parts = [_code(base) for base in bases if base not in (object, ABC, Generic)]
    code = "\n".join(parts + [_bare(_tree(path)) for path in own])
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "settings": json.loads(json.dumps(settings, sort_keys=True, default=_plain)),
        "source": hashlib.sha256(code.encode()).hexdigest()[:16],
    }


def _own_files(module: str) -> list[Path]:
    """Return the file of a user's module, and the files beside or below it that it imports, wherever in it; in turn.

    None of an installed package's, nor of this project's.
    """
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file:
        return []
    root = Path(file).resolve().parent
    while (root / "__init__.py").is_file():
        root = root.parent
    found, waiting = set[Path](), [Path(file).resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found and is_own_file(path):
            found.add(path)
            waiting += [imported.resolve() for imported in _imported(path, root)]
    return sorted(found)


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Yield the files, beside a source file or below ``root``, that its import statements run."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files((path.parent, root), alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            above = path.parents[node.level - 1 : node.level] if node.level else (path.parent, root)
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _files(above, [*module, alias.name], relative=node.level > 0)


def _files(folders: Sequence[Path], name: list[str], relative: bool = False) -> Iterator[Path]:
    """Yield the files that an import of a dotted name runs in any of these folders; its last part may be no module."""
    for folder in folders:
        steps = [folder.joinpath(*name[:length]) for length in range(not relative, len(name) + 1)]
        files = (file for step in steps for file in (step / "__init__.py", step.parent / f"{step.name}.py"))
        yield from filter(Path.is_file, files)


def _tree(path: Path) -> ast.Module:
    """Return a file's syntax; nothing of one that is no source."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _plain(value: Any) -> Any:
    """Return a setting as JSON values."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return fingerprint(value)


def _code(thing: Any) -> str:
    """Return a class's or function's source without comments and docstrings, or what its byte code says."""
    try:
        return _bare(ast.parse(textwrap.dedent(inspect.getsource(thing))))
    except (OSError, TypeError, SyntaxError):
        members = vars(thing).values() if isinstance(thing, type) else [thing]
        functions = (getattr(member, "fget", None) or inspect.unwrap(member) for member in members)
        return repr([_constants(f.__code__) for f in functions if inspect.isfunction(f)])


DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


def _bare(tree: ast.Module) -> str:
    """Return source without comments and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _constants(code: CodeType) -> list[Any]:
    """Return what a code object does, without where it lies."""
    inner = [_constants(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return [code.co_code.hex(), code.co_names, inner]
