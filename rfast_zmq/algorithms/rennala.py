"""``rennala``: batches of whoever is fast. The root gathers S gradients of its present model, and steps along their
mean::

    x^{k+1} = x^k − γ (1/S) Σ_{s=1}^S ∇f_{i_s}(x^k; ζ_s)          gradients of older models are ignored

Every node computes at the newest model again and again, so a fast one gives many of the S. Nobody waits, but for the
answer to its own, and no gradient is old; what was under way as the model changed is lost. A fast node counts for more:
on uneven data it ends at the optimum weighted by speeds. ``batch_gradients`` is S; the default, 0, stands for the
number of nodes, so that a step is of about B samples.

Source: Tyurin and Richtárik, "Optimal time complexities of parallel stochastic optimization methods under a fixed
computation model" (arXiv 2305.12387), Rennala SGD. Over a tree whose relays add up what comes it is their Fragile SGD
(arXiv 2405.16218); relays here pass each gradient on by itself.
Departures: as of ``async-sgd``; means are weighted by samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.served import Gradient, Served, add, over
from rfast_zmq.errors import UsageError


def check_batch_gradients(options: Mapping[str, float]) -> None:
    """
    Raises:
        UsageError: S is no whole number, 0 or more.
    """
    wanted = options["batch_gradients"]
    if wanted < 0 or wanted != int(wanted):
        raise UsageError(
            f"--algorithm-option batch_gradients={wanted:g}: must be a whole number of gradients, 1 or more, or 0 for"
            " as many as there are nodes"
        )


class Rennala(Served):
    """One node of Rennala SGD. See the module."""

    name: ClassVar[str] = "rennala"
    options: ClassVar[Mapping[str, float]] = {"batch_gradients": 0.0}

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        check_batch_gradients(options)

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._sum: Gradient | None = None
        self._gathered = self._gathered_samples = 0

    def _arrived(self, rank: int, version: int, samples: int, gradient: Gradient) -> None:
        if version != self.version:
            return
        self._sum = add(self._sum, gradient, samples)
        self._gathered, self._gathered_samples = self._gathered + 1, self._gathered_samples + samples
        if self._gathered < (self.config.options["batch_gradients"] or self.config.topology.nodes):
            return
        direction, samples = over(self._sum, self._gathered_samples), self._gathered_samples
        self._sum, self._gathered, self._gathered_samples = None, 0, 0
        self._update(direction, samples)
