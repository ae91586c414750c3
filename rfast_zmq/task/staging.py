"""How buckets get from where the model lives into memory that is handed to the core, and back.

On a CPU that is a copy. From a GPU it is a copy on a stream of its own into page-locked memory, so that what is known
of a gradient leaves while the rest is still being computed; and a model that is on offer is brought to the device by a
thread beside, so that whoever computes finds it there. Both are used in the same order, by the same code. For a
gradient: ``take``, some ``fetch``, ``fetched``; at the end ``drain``. For a model: ``bring``; to take it up, within
``held``, the ``newest``, which is ``put`` into the flat vector.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from rfast_zmq.task.aside import Aside
from rfast_zmq.task.pool import Pool

Look = Callable[[Tensor], object]
"""Told of each bucket, when all of it is there and, on a CPU, still in the cache, to see whether it is finite; not
told, where a GPU has seen already that all are."""
Staged = tuple[tuple[Tensor, ...], tuple[float, ...]]
"""A model, one tensor a bucket, and the rounds of each bucket."""
NOTHING = torch.empty(0)
READY_MODELS = 1
"""Memory for so many models is kept though nobody refers to it; more of it is freed."""


class Stager(Protocol):
    """Copies between the device and the host."""

    def take(self, length: int) -> Tensor:
        """A host vector to fetch into (1-D float32)."""

    def fetch(self, into: Sequence[Tensor], values: Tensor, *, add: bool = False) -> None:
        """Begin to copy ``values`` (1-D), one part after the other, into parts of host vectors (``add``: to add them to
        what is there). The present stream must have computed them; they may be let go at once, but not be written to
        before :meth:`drain`."""

    def fetched(self, bucket: Tensor, look: Look) -> None:
        """All of ``bucket`` was begun: ``look`` at it once it is there."""

    def drain(self) -> None:
        """Wait for all that was begun."""


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

    def fetch(self, into: Sequence[Tensor], values: Tensor, *, add: bool = False) -> None:
        for part, of_part in zip(into, torch.split(values, [len(part) for part in into]), strict=True):
            if add:
                part.add_(of_part)
            else:
                part.copy_(of_part)

    def fetched(self, bucket: Tensor, look: Look) -> None:
        look(bucket)

    def drain(self) -> None:
        return


class OnGpu:
    """A stream beside the one that computes."""

    def __init__(self, device: torch.device, length: int, buckets: int) -> None:
        self.pool = Pool(length, READY_MODELS * buckets, pinned=True)
        self._device = device
        self._out = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._coming: list[tuple[Tensor, Look]] = []
        self._sums: list[Tensor] = []
        """Of each part that was fetched, on the device: if it is finite, so is all of the part."""
        self._certain = True
        """The sums say all of what was fetched."""

    def take(self, length: int) -> Tensor:
        return self.pool.take(length)

    def fetch(self, into: Sequence[Tensor], values: Tensor, *, add: bool = False) -> None:
        parts = torch.split(values, [len(part) for part in into])
        if add:  # a second backward pass within one gradient: rare
            self._out.synchronize()
            for part, of_part in zip(into, parts, strict=True):
                part.add_(of_part.cpu())
            self._certain = False
            return
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            for part, of_part in zip(into, parts, strict=True):
                part.copy_(of_part, non_blocking=True)
            self._sums.append(values.sum())
        values.record_stream(self._out)  # the allocator gives their memory to nobody before the copy is done

    def fetched(self, bucket: Tensor, look: Look) -> None:
        self._coming.append((bucket, look))

    def drain(self) -> None:
        with torch.cuda.stream(self._out):
            finite = torch.stack(self._sums).isfinite().all() if self._sums else None
        there = self._out.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        there.synchronize()  # whoever waits leaves its core
        if not (self._certain and (finite is None or bool(finite))):
            for bucket, look in self._coming:
                look(bucket)
        self._coming, self._sums, self._certain = [], [], True


# ------------------------------------------------------------------------------------------------ models


def incoming(flat: Tensor, bounds: Sequence[tuple[int, int]]) -> Incoming:
    """What brings models near to a flat vector.

    Args:
        flat: it, where the model lives.
        bounds: of each bucket, its first coordinate, and the one after its last.
    """
    return ToGpu(flat, bounds) if flat.device.type == "cuda" else Incoming(flat, bounds)


class Incoming:
    """The newest model on offer, for a device that can read it where it is.

    Args:
        flat, bounds: as for :func:`incoming`.
    """

    def __init__(self, flat: Tensor, bounds: Sequence[tuple[int, int]]) -> None:
        self._flat, self._bounds = flat, bounds
        self._newest: deque[Staged] = deque(maxlen=1)

    def bring(self, model: Sequence[Tensor], rounds: Sequence[float], then: Callable[[], object]) -> bool:
        """Bring a model near.

        Args:
            model: one 1-D float32 CPU tensor a bucket; never to be written to.
            rounds: of each bucket.
            then: where it takes a while, called from another thread when it is there; but not if another model is
                brought soon after.

        Returns:
            Whether it is there already.
        """
        self._newest.append((tuple(model), tuple(rounds)))
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is near stays so within."""
        yield

    def newest(self) -> Staged:
        """Of what was brought, within :meth:`held`; no bucket, if nothing was since this was last asked."""
        try:
            return self._newest.popleft()
        except IndexError:
            return (), ()

    def put(self, buckets: Sequence[int], model: Sequence[Tensor]) -> None:
        """Copy some buckets (ascending) of a model into the flat vector; within :meth:`held`."""
        for bucket in buckets:
            start, stop = self._bounds[bucket]
            self._flat[start:stop].copy_(model[bucket])


class ToGpu(Incoming):
    """Beside the flat vector another one on the same device, into which a thread copies bucket by bucket what is on
    offer, so that taking up a model is a copy within the device. Buckets are independent of each other: what is taken
    up may have some of one model and some of the next.

    Args:
        flat, bounds: as for :func:`incoming`.
    """

    def __init__(self, flat: Tensor, bounds: Sequence[tuple[int, int]]) -> None:
        super().__init__(flat, bounds)
        self._near: Tensor | None = None
        """That other vector; made when the first model comes."""
        self._from: list[tuple[Tensor, float]] = []
        """What each was copied from, and its rounds."""
        self._stream = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]
        self._reading: torch.cuda.Event | None = None
        self._lock, self._turnstile = threading.RLock(), threading.Lock()
        """Whoever takes up a model waits for the copy of one bucket, not until the thread runs out of them."""
        self._offers: deque[tuple[Staged, Callable[[], object]]] = deque(maxlen=1)
        self._aside = Aside("models")
        self._error: Exception | None = None

    def bring(self, model: Sequence[Tensor], rounds: Sequence[float], then: Callable[[], object]) -> bool:
        self._offers.append(((tuple(model), tuple(rounds)), then))  # of several the newest
        self._aside.do(self._copy)
        return False

    def _copy(self) -> None:
        """In the thread."""
        try:
            (model, rounds), then = self._offers.pop()
        except IndexError:
            return
        try:
            self._copy_all(model, rounds)
        except Exception as error:  # such as no memory left on the device: for whoever wants the model
            self._error = error
        then()

    def _copy_all(self, model: tuple[Tensor, ...], rounds: tuple[float, ...]) -> None:
        near = self._near
        if near is None:
            with self._lock, torch.cuda.stream(self._stream):  # its memory is that stream's
                near = torch.empty_like(self._flat)
                self._near, self._from = near, [(NOTHING, 0.0)] * len(model)
        new = tuple(zip(model, rounds, strict=True))
        with self._lock:
            changed = [
                b
                for b, (before, (values, _)) in enumerate(zip(self._from, new, strict=True))
                if before[0] is not values
            ]
            here = set(changed)
            self._from = [
                before if b in here else now for b, (before, now) in enumerate(zip(self._from, new, strict=True))
            ]
        for bucket in changed:
            while not self._copy_one(near, bucket, model[bucket], new[bucket]):
                pass

    def _copy_one(self, near: Tensor, bucket: int, values: Tensor, now: tuple[Tensor, float]) -> bool:
        """Unless somebody has just taken up a model."""
        reading = self._reading
        if reading is not None:
            reading.synchronize()  # it may stand behind a step that is still computed: nobody else waits for that
        with self._turnstile:
            pass
        with self._lock, torch.cuda.stream(self._stream):
            if self._reading is not reading:
                return False
            start, stop = self._bounds[bucket]
            near[start:stop].copy_(values)  # from memory that is not page-locked: done when this returns
            self._from[bucket] = now
            return True

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._turnstile:
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def newest(self) -> Staged:
        if self._error is not None:
            raise self._error
        return tuple(values for values, _ in self._from), tuple(rounds for _, rounds in self._from)

    def put(self, buckets: Sequence[int], model: Sequence[Tensor]) -> None:
        here = {b for b in buckets if self._from and self._from[b][0] is model[b]}
        super().put([b for b in buckets if b not in here], model)
        for first, last in _runs(sorted(here)):
            start, stop = self._bounds[first][0], self._bounds[last][1]
            assert self._near is not None
            self._flat[start:stop].copy_(self._near[start:stop])
        if not here:
            return
        stream = torch.cuda.current_stream(self._flat.device)
        self._reading = stream.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last of those that follow each other, of ascending numbers."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found
