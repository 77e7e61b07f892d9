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
import sysconfig
import textwrap
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Generic, TypeVar

import torch

from bandits.core.errors import InputError, unknown

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Parts of one kind by name; ``register`` adds one, an unknown name is an ``InputError`` that names the nearest."""

    def __init__(self, kind: str, check: Callable[[object], None]) -> None:
        """Begin empty; ``check`` raises ``InputError`` for what is no such part."""
        self.kind, self._check, self._parts = kind, check, dict[str, T]()

    def register(self, name: str, part: T) -> None:
        """Add a part under a new name: letters, digits, ``_ + %`` and single hyphens (names make folder names)."""
        if not re.fullmatch(r"[A-Za-z0-9_+%]+(-[A-Za-z0-9_+%]+)*", name):
            raise InputError(f"{self.kind} {name!r}: a name is made of letters, digits, _, +, % and single hyphens")
        if name in self._parts and fingerprint(self._parts[name]) != fingerprint(part):
            raise InputError(f"{self.kind} {name!r} is taken by another one; choose another name")
        try:
            self._check(part)
        except InputError as error:
            raise InputError(f"{self.kind} {name!r}: {error}") from None
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


def fingerprint(part: object) -> dict[str, Any]:
    """Return what identifies a part in a run's config: its class (or function), its settings, and a hash of its code.

    The hash is over the source of the class and its bases, comments and docstrings apart; where there is no source (a
    class typed at a prompt), over the byte code.  Of a part of one's own it is also over the whole module that defines
    it and the modules beside that one which it imports: their functions and constants decide too.  JSON values only.
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
    own = {name: _code(module) for base in bases for name, module in _own_modules(base.__module__).items()}
    parts = [_code(base) for base in bases if base not in (object, ABC, Generic)]
    code = "\n".join(parts + [own[name] for name in sorted(own)])
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "settings": json.loads(json.dumps(settings, sort_keys=True, default=_plain)),
        "source": hashlib.sha256(code.encode()).hexdigest()[:16],
    }


def _own_modules(name: str) -> dict[str, ModuleType]:
    """Return a user's module and those in its folder, or below, that it imports; none of an installed package's."""
    installed = [Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")]
    found: dict[str, ModuleType] = {}
    waiting, folder = [name], None
    while waiting:
        module = sys.modules.get(name := waiting.pop())
        file = getattr(module, "__file__", None)
        if module is None or not file or name in found or name.partition(".")[0] == "bandits":
            continue
        path = Path(file).resolve()
        folder = folder or path.parent
        if not path.is_relative_to(folder) or any(path.is_relative_to(place.resolve()) for place in installed):
            continue
        found[name] = module
        for value in list(vars(module).values()):
            owner = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(owner, str):
                waiting.append(owner)
    return found


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
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):
        members = vars(thing).values() if isinstance(thing, type) else [thing]
        functions = (getattr(member, "fget", None) or inspect.unwrap(member) for member in members)
        return repr([_constants(f.__code__) for f in functions if inspect.isfunction(f)])
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _constants(code: CodeType) -> list[Any]:
    """Return what a code object does, without where it lies."""
    inner = [_constants(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return [code.co_code.hex(), code.co_names, inner]
