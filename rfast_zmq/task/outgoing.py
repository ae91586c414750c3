"""How the gradients of a loop of the user's own leave it: held until the node has room for them, then handed on.

The node's core works on a CPU and may be slower than the loop, above all where that has a GPU. So gradients never queue
up before it, and the loop never waits for it: what the node has no room for yet is added up where it was computed, and
the mean of it goes on when there is room. The algorithm takes a mean over two batches as it takes one over one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import isfinite
from statistics import fmean

import torch
from torch import Tensor, nn

from rfast_zmq.task.aside import Aside
from rfast_zmq.task.finite import Finite, is_finite
from rfast_zmq.task.pool import Pool
from rfast_zmq.task.staging import READY_MODELS, Look

Then = Callable[[tuple[Tensor, ...], bool, float | None], object]
"""Told the buckets of a gradient, not to be written to any more, whether all of it is finite, and the mean loss (None:
not known)."""
Failed = Callable[[Exception], object]
"""Told what kept the gradient from being told."""


class Outgoing:
    """On the CPU. A step that is held beside others costs two passes more over the gradient, and a second one's memory.

    Args:
        collect: copies what is in ``p.grad`` now, and the contributions to the averages, into fresh buckets.
        parameters: so many buckets, the first ones, are of parameters.
    """

    def __init__(self, collect: Callable[[Look], tuple[Tensor, ...]], parameters: int) -> None:
        self._collect, self._parameters = collect, parameters
        self._held: tuple[Tensor, ...] = ()
        self._losses: list[float] = []
        self._finite = Finite()
        self._count = 0

    def hold(self, loss: Tensor | None) -> None:
        """What is in ``p.grad`` now counts, beside what is held.

        Args:
            loss: of one element, or None.
        """
        added = self._collect(self._finite.look)
        if loss is not None:
            self._losses.append(float(loss))
        if self._count:
            for sum_, more in zip(self._held[: self._parameters], added, strict=False):
                sum_.add_(more)
            added = self._held[: self._parameters] + added[self._parameters :]
        self._held = added
        self._count += 1

    def hand_on(self, then: Then, failed: Failed) -> None:
        """The mean of what is held; then nothing is.

        Args:
            then: called once, perhaps later, from another thread.
            failed: called in its place, from another thread.
        """
        if self._count > 1:
            for sum_ in self._held[: self._parameters]:
                sum_.div_(self._count)
        held, finite, loss = self._held, self._finite.yes, fmean(self._losses) if self._losses else None
        self._held, self._losses, self._finite, self._count = (), [], Finite(), 0
        then(held, finite, loss)


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
        ends = list(accumulate((p.numel() for p in parameters), initial=0))
        self._length = ends[-1]
        self._sum = torch.zeros_like(flat)
        self._views = [self._sum[b : b + p.numel()].view(p.shape) for b, p in zip(ends, parameters, strict=False)]
        self._out = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]
        self._pool = Pool(len(flat), READY_MODELS, pinned=True)
        self._aside = Aside("gradients")
        self._left: torch.cuda.Event | None = None
        """The sum was copied."""
        self._before: torch.cuda.Event | None = None
        """The step before the present one was computed."""
        self._lost: list[Tensor] = []
        """Copies of losses that are on the device; the others' are in :attr:`_losses`."""
        self._losses: list[float] = []
        self._count = 0

    @torch.no_grad()
    def hold(self, loss: Tensor | None) -> None:
        stream = torch.cuda.current_stream(self._flat.device)
        if not self._count:
            if self._left is not None:
                stream.wait_event(self._left)
            self._sum[: self._length].zero_()
        known = [(view, p.grad) for view, p in zip(self._views, self._of, strict=True) if p.grad is not None]
        if known:
            dense = [g if g.layout is torch.strided else g.to_dense() for _, g in known]
            torch._foreach_add_([view for view, _ in known], dense)
        if loss is not None and loss.device.type == "cuda":  # the user's own may be written to before it is read
            self._lost.append(loss.detach().to(self._flat.device, torch.float32, copy=True).reshape(()))
        elif loss is not None:
            self._losses.append(float(loss))
        self._count += 1
        computed = stream.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        if self._before is not None:
            self._before.synchronize()
        self._before = computed

    @torch.no_grad()
    def hand_on(self, then: Then, failed: Failed) -> None:
        if self._count > 1:
            self._sum[: self._length].div_(self._count)
        self._count = 0
        self._contribute()
        self._sum[self._length :] = self._flat[self._length :]
        lost, losses, self._lost, self._losses = self._lost, self._losses, [], []
        of_device = torch.stack(lost) if lost else None
        vector = self._pool.take(len(self._flat))
        self._out.wait_stream(torch.cuda.current_stream(self._flat.device))
        with torch.cuda.stream(self._out):
            vector.copy_(self._sum, non_blocking=True)
            total = self._sum.sum()
        left = self._left = self._out.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]

        def there() -> None:
            try:
                left.synchronize()
                with torch.cuda.stream(self._out):  # what is read here waits for nothing else
                    all_losses = losses if of_device is None else losses + of_device.tolist()
                    said, sum_ = fmean(all_losses) if all_losses else None, float(total)
                buckets = tuple(vector[start:stop] for start, stop in self._bounds)
                then(buckets, isfinite(sum_) or all(is_finite(bucket) for bucket in buckets), said)
            except Exception as error:
                failed(error)

        self._aside.do(there)
