"""The weighted mean of a vector over all nodes, on a ring: reduce-scatter and all-gather, chunk by chunk.

The vector is cut in n chunks. Of chunk c, node c + 1 sends what it has to node c + 2, which adds its own and sends the
sum on, … until node c has that of all; the mean then goes round the same way until node c − 1 has it::

    reduce-scatter   s_c+1 = w_c+1 v_c+1,   s_i = s_i−1 + w_i v_i,   mean_c = s_c / Σ w          n − 1 messages of v/n
    all-gather       node c sends mean_c on, everybody passes it on                             n − 1 messages of v/n

So 2 (n − 1)/n vectors leave each node, and all end with the same bits. A chunk goes on its way as soon as the node has
its part and the chunk of the node before: no bucket waits for another.

Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, Number
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import Ordered
from rfast_zmq.core.skeleton import SCALE_LEAST
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Topology


class Ring(Ordered):
    """One node of an algorithm that takes means over all nodes: see the module.

    A subclass gives its part with :meth:`_reduce`, and implements :meth:`_reduced`.
    """

    data_numbers: ClassVar[Mapping[str, type]] = {"w": float, "mean": bool}

    def __init__(self, config: NodeConfig) -> None:
        self._n = config.topology.nodes
        self._following = (config.rank + 1) % self._n
        alone = self._n == 1
        super().__init__(config, () if alone else (self._following,), () if alone else ((config.rank - 1) % self._n,))
        self._part: tuple[Tensor, ...] | None = None
        """This node's own part of the mean that is being made; None: it makes none."""
        self._sums: list[tuple[Tensor, float] | None] = [None] * self.buckets
        """Of each bucket what came from the node before, and its weight, not yet added to."""
        self._added = [False] * self.buckets
        self._means: list[Tensor | None] = [None] * self.buckets
        self._reductions = 0
        """Means that this node has seen complete."""

    @abstractmethod
    def _reduced(self, means: tuple[Tensor, ...]) -> None:
        """The mean over nodes is there, of every bucket."""

    @classmethod
    def check(cls, topology: Topology) -> None:
        n, parent = topology.nodes, topology.push_tree.parent
        if any(above is not None and above != (rank + 1) % n for rank, above in enumerate(parent)):
            raise UsageError(f"--topology {topology.name}: --algorithm {cls.name} runs on a ring; take --topology ring")

    @classmethod
    def turns(cls, topology: Topology) -> int:
        return topology.nodes

    @property
    def _reducing(self) -> bool:
        """Is this node waiting for a mean?"""
        return self._part is not None

    def _reduce(self, part: tuple[Tensor, ...]) -> list[Action]:
        """This node has its part of the next mean."""
        self._part = part
        actions: list[Action] = []
        for b in range(self.buckets):
            if self.rank == (b + 1) % self._n:
                actions += self._add(b, None, 0.0)
            elif (before := self._sums[b]) is not None:
                self._sums[b] = None
                actions += self._add(b, *before)
        return actions

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        if numbers["mean"]:
            return self._mean(bucket, payload) if self._reducing else []  # none is without this node's part
        # This node's part is not there yet, or the node before is a mean ahead.
        if self._part is None or self._added[bucket]:
            self._sums[bucket] = payload, float(numbers["w"])  # type: ignore[arg-type]
            return []
        return self._add(bucket, payload, float(numbers["w"]))  # type: ignore[arg-type]

    def _add(self, bucket: int, sum_: Tensor | None, weight: float) -> list[Action]:
        """This node's part joins the sum of those before it."""
        assert self._part is not None
        self._added[bucket] = True
        own = self._part[bucket] * self.config.weight
        total, weight = own if sum_ is None else own.add_(sum_), weight + self.config.weight
        if self.rank == bucket % self._n:
            return self._mean(bucket, total / weight)
        return self._post(self._following, bucket, total, w=weight)

    def _mean(self, bucket: int, mean: Tensor) -> list[Action]:
        self._means[bucket] = mean
        on = (self.rank + 1) % self._n != bucket % self._n  # the next is not where it was made
        actions = self._post(self._following, bucket, mean, mean=True) if on else []
        means = tuple(m for m in self._means if m is not None)
        if len(means) == self.buckets:
            self._part, self._added, self._means = None, [False] * self.buckets, [None] * self.buckets
            self._reductions += 1
            self._reduced(means)
        return actions

    def last_record(self) -> Mapping[str, Tensor | float]:
        """``steps``: the means it took; and the sum of the model's coordinates and of their magnitudes."""
        known = [x for x in self._x if x is not None]
        sums = float(sum(float(x.sum()) for x in known)), float(sum(float(x.abs().sum()) for x in known))
        return {"steps": float(self._reductions), "sum": sums[0], "scale": sums[1]}

    @staticmethod
    def identity_error(records: Mapping[int, Mapping[str, Any]], root: int) -> float:
        """How far the models of nodes that have taken equally many means differ, relative to the model: 0."""
        of_root = records[root]
        same = [r for r in records.values() if float(r["steps"]) == float(of_root["steps"])]
        return max(abs(float(r["sum"]) - float(of_root["sum"])) for r in same) / max(
            float(of_root["scale"]), SCALE_LEAST
        )
