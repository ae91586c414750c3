"""Takes the gradients of a module's parameters into buckets of the flat vector.

Parameters and buckets do not begin and end together: a bucket has the gradients of several, a parameter's may lie in
several. Each gradient is taken as soon as it is known: where one backward pass makes a gradient, by a hook, while the
pass goes on to other parameters, and then let go, so that its memory, still in the cache, serves for the next. What no
hook brought (a parameter that this pass did not use, or everything, in a loop of the user's own, who may accumulate and
clip until the step) is taken at the end: from ``p.grad``, and 0 where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rfast_zmq.task.staging import Look, Stager


class Piece(NamedTuple):
    """What a parameter and a bucket have in common: coordinates ``[start, stop)`` of the bucket, the parameter's from
    ``offset`` on."""

    bucket: int
    start: int
    stop: int
    offset: int


class Gather:
    """The gradients of some parameters, one set of buckets after the other.

    Args:
        parameters: in the order of the flat vector, which they fill without gaps.
        sizes: coordinates of each bucket, in the same order; together those of the parameters.
        stager: copies.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], sizes: Sequence[int], stager: Stager) -> None:
        self._parameters, self._sizes, self._stager = parameters, sizes, stager
        self._pieces = pieces([p.numel() for p in parameters], sizes)
        self._shares = [0] * len(sizes)
        for piece in (piece for of_parameter in self._pieces for piece in of_parameter):
            self._shares[piece.bucket] += 1
        self._hooked = self._open = False
        self._look: Look

    def begin(self, look: Look, *, hooks: bool = False) -> None:
        """Begin a new set of buckets.

        Args:
            look: told of each bucket that is whole (again, should something be added to it).
            hooks: take each gradient when it is known, and let it go.
        """
        self._look, self._buckets = look, [self._stager.take(size) for size in self._sizes]
        self._taken: set[int] = set()
        self._wanting = list(self._shares)
        """Per bucket, how many parameters' gradients it lacks."""
        self._open = hooks
        if hooks and not self._hooked:
            self._hooked = True
            for i, p in enumerate(self._parameters):
                p.register_post_accumulate_grad_hook(partial(self._known, i))  # type: ignore[no-untyped-call]

    def end(self) -> list[Tensor]:
        """The buckets, with what no hook brought."""
        self._open = False
        for i, p in enumerate(self._parameters):
            if p.grad is not None:
                self._take(i, p.grad)
            elif i not in self._taken:
                self._take(i, None)
        self._stager.drain()
        buckets, self._buckets = self._buckets, []
        return buckets

    def abandon(self) -> None:
        """After an error: there will be no end."""
        self._open = False
        self._stager.drain()  # copies into memory that is about to be free
        self._buckets = []

    def _known(self, i: int, p: Tensor) -> None:
        """The hook: ``p.grad`` has what this pass gives."""
        if self._open and p.grad is not None:
            self._take(i, p.grad)
            p.grad = None

    def _take(self, i: int, gradient: Tensor | None) -> None:
        """One parameter's gradient, or what comes on top of it; None: 0."""
        again = i in self._taken
        self._taken.add(i)
        into = [self._buckets[b][start:stop] for b, start, stop, _ in self._pieces[i]]
        if gradient is None:
            for part in into:
                part.zero_()
        elif into:
            gradient = gradient.detach()
            flat = (gradient if gradient.layout is torch.strided else gradient.to_dense()).reshape(-1)
            self._stager.fetch(into, flat, add=again)
        for b, *_ in self._pieces[i]:
            self._wanting[b] -= not again
            if not self._wanting[b]:
                self._stager.fetched(self._buckets[b], self._look)


def pieces(parameters: Sequence[int], buckets: Sequence[int]) -> list[list[Piece]]:
    """Which parameter has which part of which bucket.

    Args:
        parameters, buckets: how many coordinates each has; the same in total.

    Returns:
        Per parameter its pieces, in order.
    """
    found: list[list[Piece]] = []
    b = start = 0
    for size in parameters:
        offset, of_parameter = 0, []
        while offset < size:
            if start == buckets[b]:
                b, start = b + 1, 0
            stop = min(buckets[b], start + size - offset)
            of_parameter.append(Piece(b, start, stop, offset))
            offset, start = offset + stop - start, stop
        found.append(of_parameter)
    return found
