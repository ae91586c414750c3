"""Vectors that stand ready: one that was handed out comes back by itself once nothing refers to it any more.

What is handed to the core is never written to again, so a gradient of 100 MB would want 100 MB of fresh memory, and the
page faults of fresh memory cost eight times what the copy into it costs. But most of what was handed out has been used
up before the next is wanted. Who still refers to it need not be told, nor be asked: each vector is handed out as the
memory of an array that was made for it alone; the vector, its views, and every array or memoryview made of them keep
that array alive, and when it dies the memory is free again.
"""

from __future__ import annotations

import weakref
from collections import deque

import torch
from torch import Tensor


class Pool:
    """Vectors of up to so many coordinates, on the CPU. Safe to use, and to let go of, from any thread.

    Args:
        length: coordinates, at most.
        most: so many vectors that nobody refers to are kept; what comes back beyond that is freed.
        dtype: one that numpy has.
        pinned: page-locked, for copies from and to a GPU.
    """

    def __init__(self, length: int, most: int, *, dtype: torch.dtype = torch.float32, pinned: bool = False) -> None:
        self._length, self._dtype, self._pinned = length, dtype, pinned
        self._free: deque[Tensor] = deque(maxlen=most)
        self.made = 0
        """How many were allocated so far."""

    @property
    def free(self) -> int:
        """How many stand ready."""
        return len(self._free)

    def take(self, length: int) -> Tensor:
        """A vector that nobody else refers to.

        Args:
            length: coordinates, no more than the pool's.

        Returns:
            1-D, ``length`` long, with whatever was in it last.
        """
        try:
            memory = self._free.pop()
        except IndexError:
            memory = torch.empty(self._length, dtype=self._dtype, pin_memory=self._pinned)
            self.made += 1
        lease = memory[:length].numpy()
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return torch.from_numpy(lease)
