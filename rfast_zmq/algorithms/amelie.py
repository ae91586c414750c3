"""``amelie``: synchronous steps for uneven data, whose batches grow where nodes are fast. At the present model::

    every node i gives gradients of x^k, B_i so far, until  ((1/n) Σ_i 1/B_i)⁻¹ ≥ S/n
    x^{k+1} = x^k − γ (1/n) Σ_i (1/B_i) Σ_{s ≤ B_i} ∇f_i(x^k; ζ_is)       gradients of older models are ignored

Each node's mean counts the same, however many gradients it is of: no bias where data are uneven. A step needs one of
everybody, so it takes at least as long as the slowest node's gradient; meanwhile the others' means become better, and
nobody waits. ``batch_gradients`` is S; the default, 0, stands for as many as B samples are.

A report holds Σ (1/B_i) Σ_s g_is and Σ 1/B_i over a subtree, as of now: the newest of a child replaces the one before.
It goes up once everybody below has given a gradient, and again as somebody gives more.

Source: Tyurin and Richtárik, "On the optimal time complexities in decentralized stochastic asynchronous optimization"
(arXiv 2405.16218), Amelie SGD; a spanning tree up and one down, whose relays add up, as there.
Departures: as of ``async-sgd``. A step counts as one of B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import ClassVar

from rfast_zmq.core.events import Number
from rfast_zmq.core.gathered import Gathered
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.served import Gradient, add, mean_of, over


class Amelie(Gathered):
    """One node of Amelie SGD. See the module."""

    name: ClassVar[str] = "amelie"
    data_numbers: ClassVar[Mapping[str, type]] = {**Gathered.data_numbers, "inverse": float}

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._renew()

    def _renew(self) -> None:
        self._mean: Gradient | None = None
        self._b = self._samples_of = 0.0
        """Of this node: the mean of its gradients, B_i, and of how many samples they are."""
        self._below_means: dict[int, tuple[Gradient, float]] = {}
        """Of each child, the means of its subtree, added up, and Σ 1/B_i."""
        self._changed = False

    def _mine(self, gradient: Gradient, samples: int) -> None:
        self._b, self._samples_of = self._b + self._amount(samples), self._samples_of + samples
        self._mean, self._changed = mean_of(self._mean, gradient, samples / self._samples_of), True

    def _theirs(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> None:
        inverse = float(numbers["inverse"])  # type: ignore[arg-type]
        if 0 < inverse < inf:
            self._below_means[src], self._changed = (parts, inverse), True

    def _everybody(self) -> bool:
        """Has everybody of this node's subtree given a gradient?"""
        return self._mean is not None and len(self._below_means) == len(self.hears_from)

    def _inverse(self) -> float:
        """Σ 1/B_i over the subtree."""
        return 1 / self._b + sum(inverse for _, inverse in self._below_means.values())

    def _means(self) -> Gradient:
        """The means of the subtree, added up."""
        means = self._mean
        for theirs, _ in self._below_means.values():
            means = add(means, theirs, 1.0)
        assert means is not None
        return means

    def _step(self) -> bool:
        n = self.config.topology.nodes
        if not self._everybody() or n / self._inverse() < self._wanted / n * (1 - 1e-9):
            return False  # (as many as are wanted are enough, however the sum is rounded)
        self._update(over(self._means(), n), self.config.global_batch)
        return True

    def _anew(self) -> bool:
        return self._changed and self._everybody()

    def _sum(self) -> tuple[Gradient, dict[str, Number]]:
        self._changed = False
        return self._means(), {"inverse": self._inverse()}
