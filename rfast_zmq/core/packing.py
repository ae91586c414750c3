"""Fewer bytes for a payload: bf16 or int8, with error feedback over time.

What is said is q = Q(s + e), and e ← e + s − q is kept for the next time: so what a receiver has heard differs from
what it should have heard by one message's rounding, however many there were. Whatever Q is, nothing is lost from the
sum for good (the mass is exact), and what a node knows of itself, how far its last message was from what it meant to
say, accounts for the identity (:attr:`Packer.off`).

    bf16    the upper half of each float32, rounded to the nearest even: 2 bytes a coordinate
    int8    in blocks of 256 (the last may be shorter) a float32 scale, the largest magnitude ÷ 127, and a code for each
            coordinate, it ÷ scale rounded to the nearest; all scales, then all codes: 1.016 bytes a coordinate

A model that is passed on is passed on as it came, byte for byte. Running averages travel as float32.

Source: ``docs/algorithm.md``; error feedback: arXiv 1901.09847.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad

from rfast_zmq.settings import WIRES
from rfast_zmq.task.finite import is_finite

PACKINGS = WIRES
BLOCK = 256
LARGEST_CODE = 127
LARGEST_BF16 = torch.finfo(torch.bfloat16).max


def packed_bytes(size: int, packing: str) -> int:
    """Bytes of a payload of ``size`` float32 coordinates."""
    return {"float32": 4 * size, "bf16": 2 * size, "int8": size + 4 * ceil(size / BLOCK)}[packing]


def pack(values: Tensor, packing: str) -> Tensor:
    """What travels.

    Args:
        values: 1-D float32, finite.
        packing: ``bf16`` or ``int8``.

    Returns:
        1-D uint8, :func:`packed_bytes` long, freshly made.
    """
    if packing == "bf16":
        return values.clamp(-LARGEST_BF16, LARGEST_BF16).to(torch.bfloat16).view(torch.uint8)
    blocks = pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1).div_(LARGEST_CODE)
    # A block of zeros, or of numbers so small that 1/scale is none, is all 0.
    inverse = torch.where(scales > 1e-37, scales.reciprocal(), 0.0)
    codes = (blocks * inverse[:, None]).round_().clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)
    return torch.cat([scales.view(torch.uint8), codes.view(torch.uint8).flatten()[: len(values)]])


def unpack(packed: Tensor, size: int, packing: str) -> Tensor:
    """The coordinates that :func:`pack` stands for.

    Args:
        packed: 1-D uint8, :func:`packed_bytes` long; only read.
        size: coordinates.
        packing: ``bf16`` or ``int8``.

    Returns:
        1-D float32, freshly made; not finite where the bytes say so.
    """
    if packing == "bf16":
        return _aligned(packed).view(torch.bfloat16).float()
    count = ceil(size / BLOCK)
    scales = _aligned(packed[: 4 * count]).view(torch.float32)
    codes = packed[4 * count :].view(torch.int8)
    blocks = pad(codes, (0, count * BLOCK - size)).view(count, BLOCK).float()
    return blocks.mul_(scales[:, None]).flatten()[:size]


def _aligned(t: Tensor) -> Tensor:
    """``t``, or a copy of it where it begins at an odd address."""
    return t if t.data_ptr() % 4 == 0 and t.storage_offset() % 4 == 0 else t.clone()


class Packer:
    """Says vectors in ``packing``, each with the error of the ones before of the same key.

    Args:
        packing: ``bf16`` or ``int8``.
    """

    def __init__(self, packing: str) -> None:
        self._packing = packing
        self._error: dict[Hashable, Tensor] = {}
        self._said: dict[Hashable, tuple[Tensor, Tensor, Tensor]] = {}
        self.off: dict[Hashable, Tensor] = {}
        """By key, what was said last less what was meant."""

    def say(self, key: Hashable, values: Tensor) -> tuple[Tensor, Tensor]:
        """Pack ``values``; the same again is a repetition, and said as it was.

        Args:
            key: whose error.
            values: 1-D float32; never written to afterwards.

        Returns:
            (packed, the coordinates that it stands for).
        """
        before = self._said.get(key)
        if before is not None and (before[0] is values or torch.equal(before[0], values)):
            return before[1], before[2]
        error = self._error.get(key)
        meant = values if error is None else values + error
        packed = pack(meant, self._packing)
        said = unpack(packed, len(values), self._packing)
        left = meant - said
        self._error[key] = left if is_finite(left) else torch.zeros_like(left)  # one overflow must not stay for ever
        self.off[key] = said - values
        self._said[key] = values, packed, said
        return packed, said

    def came(self, key: Hashable, values: Tensor, packed: Tensor) -> None:
        """``values`` were heard as ``packed``: they are said so too."""
        self._said[key] = values, packed, values
