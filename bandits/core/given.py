"""Owns how numbers that somebody else's code returns become tensors: what are none is refused by name."""

from __future__ import annotations

import warnings
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
            raise InputError(f"{what}: no real numbers, but {_short(given)}")
        return given.detach() if given.is_floating_point() else given.long()
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # lists of unlike lengths; what an object's own conversion raises
        array = np.array(None)
    if array.dtype.kind == "O" and all(isinstance(value, Real) for value in array.flat):
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what}: no real numbers, but {_short(given)}")
    if array.dtype.kind != "f":
        array = array.astype(np.int64)
    elif array.dtype not in (np.float32, np.float64) or any(step < 0 for step in array.strides):
        array = array.astype(np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing is written
        return torch.from_numpy(array)


def alike(given: object, what: str, like: Tensor) -> Tensor:
    """Return real numbers as a tensor is, in dtype and device; ``InputError`` for another shape than its."""
    values = numbers(given, what)
    if values.shape != like.shape:
        raise InputError(f"{what}: numbers of shape {tuple(values.shape)}, not {tuple(like.shape)}")
    return values.to(like)


def _short(given: object) -> str:
    text = " ".join(f"{type(given).__name__} {given!r}".split())
    return text if len(text) <= 60 else text[:59] + "…"
