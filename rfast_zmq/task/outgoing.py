"""How the gradients of a loop of the user's own leave it: held until the node has room for them, then handed on.

The node's core works on a CPU and may be slower than the loop, above all where that has a GPU. So gradients never queue
up before it, and the loop never waits for it: what the node has no room for yet is added up where it was computed, and
the mean of it goes on when there is room. The algorithm takes a mean over two batches as it takes one over one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from rfast_zmq.task.finite import Finite
from rfast_zmq.task.pool import Pool
from rfast_zmq.task.staging import READY_MODELS, Look

Then = Callable[[tuple[Tensor, ...], bool], object]
"""Told the buckets of a gradient, not to be written to any more, and whether all of it is finite."""


class Outgoing:
    """On the CPU.

    Args:
        collect: copies what is in ``p.grad`` now, and the contributions to the averages, into fresh buckets.
        parameters: so many buckets, the first ones, are of parameters.
    """

    def __init__(self, collect: Callable[[Look], tuple[Tensor, ...]], parameters: int) -> None:
        self._collect, self._parameters = collect, parameters
        self._held: tuple[Tensor, ...] = ()
        self._finite = Finite()
        self._count = 0

    def hold(self) -> None:
        """What is in ``p.grad`` now counts, beside what is held."""
        added = self._collect(self._finite.look)
        if self._count:
            for sum_, more in zip(self._held[: self._parameters], added, strict=False):
                sum_.add_(more)
            added = self._held[: self._parameters] + added[self._parameters :]
        self._held = added
        self._count += 1

    def hand_on(self, then: Then) -> None:
        """The mean of what is held; then nothing is.

        Args:
            then: called once, perhaps later, from another thread.
        """
        if self._count > 1:
            for sum_ in self._held[: self._parameters]:
                sum_.div_(self._count)
        held, finite = self._held, self._finite.yes
        self._held, self._finite, self._count = (), Finite(), 0
        then(held, finite)


class FromGpu(Outgoing):
    """Adds up on the device, in a vector like the flat one, so that ``p.grad`` is the user's again at once; what is
    handed on leaves on a stream of its own, while the loop goes on. The loop may be one step ahead of the device.

    Args:
        parameters: in the order of the flat vector.
        flat: it; behind the parameters, the contributions to the averages.
        contribute: writes those into it.
        bounds: of each bucket, its first coordinate, and the one after its last.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        flat: Tensor,
        contribute: Callable[[], None],
        bounds: Sequence[tuple[int, int]],
    ) -> None:
        self._of, self._flat, self._contribute, self._bounds = parameters, flat, contribute, bounds
        self._length = sum(p.numel() for p in parameters)
        self._sum = torch.zeros_like(flat)
        begins = [sum(p.numel() for p in parameters[:i]) for i in range(len(parameters))]
        self._views = [self._sum[b : b + p.numel()].view(p.shape) for b, p in zip(begins, parameters, strict=True)]
        self._out = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]
        self._pool = Pool(len(flat), READY_MODELS, pinned=True)
        self._thread = ThreadPoolExecutor(1, "gradients")
        self._left: torch.cuda.Event | None = None
        """The sum was copied."""
        self._before: torch.cuda.Event | None = None
        """The step before the present one was computed."""
        self._count = 0

    @torch.no_grad()
    def hold(self) -> None:
        stream = torch.cuda.current_stream(self._flat.device)
        if not self._count:
            if self._left is not None:
                stream.wait_event(self._left)
            self._sum[: self._length].zero_()
        known = [(view, p.grad) for view, p in zip(self._views, self._of, strict=True) if p.grad is not None]
        if known:
            dense = [g if g.layout is torch.strided else g.to_dense() for _, g in known]
            torch._foreach_add_([view for view, _ in known], dense)
        self._count += 1
        computed = stream.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        if self._before is not None:
            self._before.synchronize()
        self._before = computed

    @torch.no_grad()
    def hand_on(self, then: Then) -> None:
        if self._count > 1:
            self._sum[: self._length].div_(self._count)
        self._count = 0
        self._contribute()
        self._sum[self._length :] = self._flat[self._length :]
        vector = self._pool.take(len(self._flat))
        self._out.wait_stream(torch.cuda.current_stream(self._flat.device))
        with torch.cuda.stream(self._out):
            vector.copy_(self._sum, non_blocking=True)
            finite = self._sum.isfinite().all()
        self._left = self._out.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        self._thread.submit(self._there, self._left, vector, finite, then)

    def _there(self, left: torch.cuda.Event, vector: Tensor, finite: Tensor, then: Then) -> None:
        """In the thread."""
        left.synchronize()
        with torch.cuda.stream(self._out):
            all_finite = bool(finite)
        then(tuple(vector[start:stop] for start, stop in self._bounds), all_finite)
