"""A forward and backward pass that takes as long as it would on a slower device.

The real pass is computed, and the rest of the drawn time is slept. On a device that took so long gradients would become
ready one by one, and what averages them could send some while others are computed. So it is here: a third of the time
passes before the backward pass, and two thirds within it, at each parameter's gradient in proportion to its size. The
hooks are on the tensors themselves, which autograd calls before a gradient counts as accumulated, hence before DDP
learns of it.

All is reckoned from the beginning of the pass: where a sleep, or the real computing, is late, what follows is due no
later for it. What the whole pass was late by a timer is taken off the next, as for every algorithm.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

BEFORE_BACKWARD = 1 / 3
"""The part of the time that passes before the backward pass."""


class SlowedBackward:
    """Tells when the last gradient of a pass was there (on a GPU: computed); where times are emulated, sees that it
    was not earlier.

    A pass that leaves parameters unused has its last gradient sooner: that is expected of the next, too.

    Args:
        parameters: that gradients are taken of.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._began_s = self._drawn_s = self._overslept_s = self._last_s = 0.0
        self._ready = self._due = 0
        for p in parameters:
            self._due += p.numel()
            p.register_hook(self._comes)  # type: ignore[no-untyped-call]

    def forward_begins(self, began_s: float, drawn_s: float) -> None:
        """A pass begins.

        Args:
            began_s: when (``time.perf_counter``); fetching its batch is part of it.
            drawn_s: it is to take; 0.0: what it takes.
        """
        self._began_s, self._drawn_s, self._ready = began_s - self._overslept_s, drawn_s, 0
        self._overslept_s = 0.0

    def begins(self) -> None:
        """The forward pass is done."""
        self._until(BEFORE_BACKWARD)

    def ended(self) -> float:
        """The backward pass is done. When the last gradient was there (``time.perf_counter``)."""
        if self._drawn_s and self._ready < self._due:  # a parameter had no gradient, which the pass before had
            self._until(1.0)
        self._due = self._ready
        return self._last_s

    def _comes(self, gradient: Tensor) -> None:
        """A parameter's whole gradient, about to be accumulated."""
        self._ready += gradient.numel()
        if gradient.is_cuda and self._ready >= self._due:
            torch.cuda.current_stream(gradient.device).synchronize()
        self._until(BEFORE_BACKWARD + (1.0 - BEFORE_BACKWARD) * min(1.0, self._ready / max(1, self._due)))

    def _until(self, part: float) -> None:
        if self._drawn_s:
            due_s = self._began_s + part * self._drawn_s
            if (wait_s := due_s - time.perf_counter()) > 0:
                time.sleep(wait_s)
                self._overslept_s = time.perf_counter() - due_s if part == 1.0 else 0.0
        self._last_s = time.perf_counter()
