"""What tests of batched replicates share."""

import dataclasses

import torch


def alone(part, r: int):
    """One replicate of a pool, or of anything in it."""
    if isinstance(part, torch.Tensor):
        return part[r : r + 1]
    if not dataclasses.is_dataclass(part):
        return part
    fields = {field.name: alone(getattr(part, field.name), r) for field in dataclasses.fields(part)}
    return type(part)(**fields)
