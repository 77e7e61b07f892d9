"""What the import hook of the tests calls on every function of the core: beartype, but for ``Self``."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check arguments and result at run time; ``Self``, which means nothing outside a class, is let through."""
    annotations = function.__annotations__
    function.__annotations__ = {k: Any if "Self" in str(v).split(".")[-1] else v for k, v in annotations.items()}
    return beartype(function)
