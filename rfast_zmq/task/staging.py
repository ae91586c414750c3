"""How buckets get from where the model lives into memory that is handed to the core, and back.

On a CPU that is a copy. From a GPU it is a copy on a stream of its own into page-locked memory, so that what is known
of a gradient leaves while the rest is still being computed. Both are used in the same order, by the same code:
``take``, some ``fetch``, ``fetched``; at the end ``drain``. And for a model: some ``send``, then ``sent``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rfast_zmq.task.pool import Pool

Look = Callable[[Tensor], object]
"""Told of each bucket, when all of it is there and, on a CPU, still in the cache."""
READY_MODELS = 2
"""Memory for so many models is kept though nobody refers to it; more of it is freed."""


class Stager(Protocol):
    """Copies between the device and the host."""

    def take(self, length: int) -> Tensor:
        """A host vector to fetch into (1-D float32)."""

    def fetch(self, into: Tensor, values: Tensor, *, add: bool = False) -> None:
        """Begin to copy ``values`` into a part of a host vector (``add``: to add them to what is there). The present
        stream must have computed them; they may be let go at once, but not be written to before :meth:`drain`."""

    def fetched(self, bucket: Tensor, look: Look) -> None:
        """All of ``bucket`` was begun: ``look`` at it once it is there."""

    def drain(self) -> None:
        """Wait for all that was begun."""

    def send(self, into: Tensor, values: Tensor) -> None:
        """Begin to copy a host vector into a part of a device's."""

    def sent(self) -> None:
        """What the present stream computes from now on sees all that was sent."""


def stager(device: torch.device, length: int, buckets: int) -> Stager:
    """The one for ``device``.

    Args:
        device: where the model lives.
        length: coordinates of a bucket, at most.
        buckets: of a model.
    """
    return OnGpu(device, length, buckets) if device.type == "cuda" else OnCpu(length, buckets)


class OnCpu:
    """Plain copies."""

    def __init__(self, length: int, buckets: int) -> None:
        self.pool = Pool(length, READY_MODELS * buckets)

    def take(self, length: int) -> Tensor:
        return self.pool.take(length)

    def fetch(self, into: Tensor, values: Tensor, *, add: bool = False) -> None:
        if add:
            into.add_(values)
        else:
            into.copy_(values)

    def fetched(self, bucket: Tensor, look: Look) -> None:
        look(bucket)

    def drain(self) -> None:
        return

    def send(self, into: Tensor, values: Tensor) -> None:
        into.copy_(values)

    def sent(self) -> None:
        return


class OnGpu:
    """One stream each way, beside the one that computes."""

    def __init__(self, device: torch.device, length: int, buckets: int) -> None:
        self.pool = Pool(length, READY_MODELS * buckets, pinned=True)
        self._device = device
        self._out, self._in = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._coming: deque[tuple[torch.cuda.Event, Tensor, Look]] = deque()
        self._going: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        """Page-locked copies that may still be read from."""

    def take(self, length: int) -> Tensor:
        return self.pool.take(length)

    def fetch(self, into: Tensor, values: Tensor, *, add: bool = False) -> None:
        if add:  # a second backward pass within one gradient: rare
            self._out.synchronize()
            into.add_(values.cpu())
            return
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            into.copy_(values, non_blocking=True)
        values.record_stream(self._out)  # the allocator gives their memory to nobody before the copy is done

    def fetched(self, bucket: Tensor, look: Look) -> None:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # whoever waits leaves its core
        self._coming.append((self._out.record_event(event), bucket, look))

    def drain(self) -> None:
        while self._coming:
            there, bucket, look = self._coming.popleft()
            there.synchronize()
            look(bucket)
        self._out.synchronize()
        self._let_go()

    def send(self, into: Tensor, values: Tensor) -> None:
        self._let_go()
        locked = self.pool.take(len(values)).copy_(values)
        self._in.wait_stream(torch.cuda.current_stream(self._device))  # which may still read the model of before
        with torch.cuda.stream(self._in):
            into.copy_(locked, non_blocking=True)
        self._going.append((self._in.record_event(), locked))

    def sent(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._in)

    def _let_go(self) -> None:
        while self._going and self._going[0][0].query():  # type: ignore[no-untyped-call]
            self._going.popleft()
