"""``ringmaster``: asynchronous SGD with a threshold of delay. As ``async-sgd``, but gradients that are too old are
ignored::

    x^{k+1} = x^k − γ b/B ∇f_i(x^{k−δ}; ζ)     if δ < R, else nothing, and k stays

``delay_threshold`` is R, in updates of the root; the paper's best, about σ²/ε, is not known beforehand. The default,
0, stands for 8 n: with even speeds nothing is ignored, nor what a node sends that is seven times slower than the
others. Where data are uneven, ignoring a node ignores its data: the paper is of nodes that draw from one distribution.

Source: Maranjyan, Tyurin, Richtárik, "Ringmaster ASGD" (arXiv 2501.16168), the form that ignores; it also has one that
stops a gradient which grows too old while it is computed, as nothing here can.
Departures: as of ``async-sgd``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rfast_zmq.core.served import Answered, Gradient
from rfast_zmq.errors import UsageError

SHARES = 8
"""The default threshold, over the number of nodes."""


class Ringmaster(Answered):
    """One node of asynchronous SGD with a threshold of delay. See the module."""

    name: ClassVar[str] = "ringmaster"
    options: ClassVar[Mapping[str, float]] = {"delay_threshold": 0.0}

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        threshold = options["delay_threshold"]
        if threshold < 0 or threshold != int(threshold):
            raise UsageError(
                f"--algorithm-option delay_threshold={threshold:g}: must be a whole number of updates, 1 or more, or 0"
                f" for {SHARES} times the nodes"
            )

    def _arrived(self, rank: int, version: int, samples: int, gradient: Gradient) -> None:
        threshold = self.config.options["delay_threshold"] or SHARES * self.config.topology.nodes
        if self.version - version < threshold:
            self._update(gradient, samples)
