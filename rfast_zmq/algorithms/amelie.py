"""``amelie``: synchronous steps for uneven data, whose batches grow where nodes are fast. At the present model::

    every node i gives gradients of x^k, B_i so far, until  ((1/n) Σ_i 1/B_i)⁻¹ ≥ S/n
    x^{k+1} = x^k − γ (1/n) Σ_i (1/B_i) Σ_{s ≤ B_i} ∇f_i(x^k; ζ_is)       gradients of older models are ignored

Each node's mean counts the same, however many gradients it is of: no bias where data are uneven. A step needs one of
everybody, so it takes at least as long as the slowest node; meanwhile the others' means become better, and nobody
stands idle, but for the answer to its own gradient. ``batch_gradients`` is S; the default, 0, stands for the number of
nodes: one of each is enough.

Source: Tyurin and Richtárik, "On the optimal time complexities in decentralized stochastic asynchronous optimization"
(arXiv 2405.16218), Amelie SGD; a spanning tree up and one down, as there.
Departures: as of ``async-sgd``; and relays pass each gradient on by itself instead of adding them up, which costs
bytes. A step counts as one of B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rfast_zmq.algorithms.rennala import check_batch_gradients
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.served import Gradient, Served, add, over


class Amelie(Served):
    """One node of Amelie SGD. See the module."""

    name: ClassVar[str] = "amelie"
    options: ClassVar[Mapping[str, float]] = {"batch_gradients": 0.0}

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        check_batch_gradients(options)

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._sums: dict[int, Gradient] = {}
        self._given: dict[int, int] = {}
        """B_i, of the nodes that gave one."""

    def _arrived(self, rank: int, version: int, samples: int, gradient: Gradient) -> None:
        if version != self.version:
            return
        self._sums[rank] = add(self._sums.get(rank), gradient, 1.0)
        self._given[rank] = self._given.get(rank, 0) + 1
        n = self.config.topology.nodes
        wanted = self.config.options["batch_gradients"] or n
        if len(self._given) < n:
            return
        harmonic = n / sum(1 / given for given in self._given.values())
        if harmonic < wanted / n * (1 - 1e-9):  # as many as are wanted are enough, however the sum is rounded
            return
        direction: Gradient | None = None
        for i, sums in sorted(self._sums.items()):
            direction = add(direction, over(sums, self._given[i]), 1 / n)
        assert direction is not None
        self._sums, self._given = {}, {}
        self._update(direction, self.config.global_batch)
