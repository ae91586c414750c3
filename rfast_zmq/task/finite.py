"""Is every coordinate a finite number?"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no coordinate is NaN or infinite.

    Exact, and nearly free where the answer is yes: a finite sum proves it (one pass); only a sum that is not finite,
    which large finite coordinates can give as well, costs a look at each.

    Args:
        tensor: floating point, any shape.
    """
    return isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


class Finite:
    """Whether all that was looked at is finite; one bucket after the other, each while it is in the cache."""

    def __init__(self) -> None:
        self.yes = True

    def look(self, tensor: Tensor) -> None:
        """One more."""
        self.yes = self.yes and is_finite(tensor)


def all_finite(number: float, tensors: Iterable[Tensor]) -> bool:
    """Whether a number and every coordinate of some tensors are."""
    return isfinite(number) and all(is_finite(tensor) for tensor in tensors)
