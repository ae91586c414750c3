"""Is every coordinate a finite number?"""

from __future__ import annotations

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
