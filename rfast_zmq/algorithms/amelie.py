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
from typing import ClassVar

from rfast_zmq.core.events import Number
from rfast_zmq.core.gathered import Gathered
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.served import Gradient, add, over


class Amelie(Gathered):
    """One node of Amelie SGD. See the module."""

    name: ClassVar[str] = "amelie"
    data_numbers: ClassVar[Mapping[str, type]] = {**Gathered.data_numbers, "inverse": float}

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._renew()

    def _renew(self) -> None:
        self._sums: Gradient | None = None
        self._b = self._samples = 0.0
        """B_i of this node, and its samples."""
        self._below_means: dict[int, tuple[Gradient, float]] = {}
        """Of each child, the means of its subtree, added up, and Σ 1/B_i."""
        self._changed = False

    def _mine(self, gradient: Gradient, samples: int) -> None:
        self._sums = add(self._sums, gradient, samples)
        self._b, self._samples, self._changed = self._b + self._amount(samples), self._samples + samples, True

    def _theirs(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> None:
        self._below_means[src], self._changed = (parts, float(numbers["inverse"])), True  # type: ignore[arg-type]

    def _subtree(self) -> tuple[Gradient, float] | None:
        """The means of this node's subtree, added up, and Σ 1/B_i; None: of somebody there is nothing yet."""
        if self._sums is None or len(self._below_means) < len(self.hears_from):
            return None
        means, inverse = over(self._sums, self._samples), 1 / self._b
        for theirs, of_theirs in self._below_means.values():
            means, inverse = add(means, theirs, 1.0), inverse + of_theirs
        return means, inverse

    def _step(self) -> bool:
        n = self.config.topology.nodes
        if (found := self._subtree()) is None or n / found[1] < self._wanted / n * (1 - 1e-9):
            return False  # (as many as are wanted are enough, however the sum is rounded)
        self._update(over(found[0], n), self.config.global_batch)
        return True

    def _sum(self) -> tuple[Gradient, dict[str, Number]] | None:
        if not self._changed or (found := self._subtree()) is None:
            return None
        self._changed = False
        return found[0], {"inverse": found[1]}
