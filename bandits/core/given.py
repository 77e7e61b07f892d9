"""Owns how numbers that somebody else's code returns become tensors: what are none is refused by name."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from bandits.core.errors import InputError


def numbers(given: object, what: str) -> Tensor:
    """Return the real numbers of a tensor, an array, a data frame or a list, whole ones as int64; copied if need be.

    Raises ``InputError``, which begins with ``what``, for anything else: None, words, complex numbers, ragged lists.
    """
    if isinstance(given, Tensor):
        if given.is_complex():
            raise InputError(f"{what}: no real numbers, but {shown(given)}")
        values = given.detach() if given.layout == torch.strided else given.detach().to_dense()
        return values if values.is_floating_point() else values.long()
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # lists of unlike lengths; what an object's own conversion raises
        array = np.array(None)
    if array.dtype.kind == "O" and all(isinstance(value, Real) for value in array.flat):
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what}: no real numbers, but {shown(given)}")
    if array.dtype.kind != "f":
        array = array.astype(np.int64)
    elif array.dtype not in (np.float32, np.float64) or any(step < 0 for step in array.strides):
        array = array.astype(np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing is written
        return torch.from_numpy(array)


def shaped(given: object, what: str, shape: Sequence[int]) -> Tensor:
    """Return real numbers of a shape; ``InputError`` for another one."""
    values = numbers(given, what)
    if values.shape != tuple(shape):
        raise InputError(f"{what}: numbers of shape {tuple(values.shape)}, not {tuple(shape)}")
    return values


def alike(given: object, what: str, like: Tensor) -> Tensor:
    """Return real numbers as a tensor is, in dtype and device; ``InputError`` for another shape than its."""
    return shaped(given, what, like.shape).to(like)


def whole(given: object, what: str, least: int = 0) -> int:
    """Return a whole number of at least ``least``, else ``InputError``."""
    try:
        number = operator.index(given)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, RuntimeError):
        number = None
    if number is None or isinstance(given, bool) or number < least:
        raise InputError(f"{what} must be a whole number, at least {least}, got {given!r:.60}")
    return number


def positive(given: object, what: str) -> float:
    """Return a positive, finite number, else ``InputError``."""
    one = isinstance(given, Tensor) and given.numel() == 1 and not given.is_complex()
    if one or (isinstance(given, Real) and not isinstance(given, bool)):
        number = float(given)  # type: ignore[arg-type]  # of which ``one`` is a tensor
        if 0 < number < math.inf:
            return number
    raise InputError(f"{what} must be positive and finite, got {given!r:.60}")


def shown(given: object) -> str:
    """Return what something is, on one short line, for an error."""
    text = " ".join(f"{type(given).__name__} {given!r}".split())
    return text if len(text) <= 60 else text[:59] + "…"
