"""``ring-allreduce``: synchronous SGD; the gradients' mean is made by a ring reduce-scatter and an all-gather.

The model is cut in n chunks. Of chunk c, node c + 1 sends its gradient to node c + 2, which adds its own and sends the
sum on, … until node c has that of all; the mean then goes round the same way until node c − 1 has it::

    reduce-scatter   s_c+1 = w_c+1 g_c+1,   s_i = s_i−1 + w_i g_i,   mean_c = s_c / Σ w          n − 1 messages of x/n
    all-gather       node c sends mean_c on, everybody passes it on                             n − 1 messages of x/n
    step             every node:  x ← optimiser(x, mean),  the same everywhere                  2 (n − 1)/n x in all

A chunk goes on its way as soon as the gradient is there and the chunk of the node before: no bucket waits for another.
Nobody computes before it has every mean, so a round takes as long as its slowest node, and the ring.

Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009); the baseline
of R-FAST, arXiv 2307.11617, section VI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, GradientReady, Number
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import Ordered, OwnSteps
from rfast_zmq.core.skeleton import SCALE_LEAST
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Topology


class RingAllReduce(Ordered):
    """One node of synchronous SGD on a ring. See the module."""

    name: ClassVar[str] = "ring-allreduce"
    data_numbers: ClassVar[Mapping[str, type]] = {"w": float, "mean": bool}

    def __init__(self, config: NodeConfig) -> None:
        self._n = config.topology.nodes
        self._following = (config.rank + 1) % self._n
        alone = self._n == 1
        super().__init__(config, () if alone else (self._following,), () if alone else ((config.rank - 1) % self._n,))
        self._steps = OwnSteps(config)
        self._gradient_now: tuple[Tensor, ...] | None = None
        """This node's gradient of the present round."""
        self._samples = 0
        self._sums: list[tuple[Tensor, float] | None] = [None] * self.buckets
        """Of each bucket what came from the node before, and its weight, not yet added to."""
        self._added = [False] * self.buckets
        self._means: list[Tensor | None] = [None] * self.buckets

    @classmethod
    def check(cls, topology: Topology) -> None:
        n, parent = topology.nodes, topology.push_tree.parent
        if any(above is not None and above != (rank + 1) % n for rank, above in enumerate(parent)):
            raise UsageError(f"--topology {topology.name}: --algorithm {cls.name} runs on a ring; take --topology ring")

    @classmethod
    def turns(cls, topology: Topology) -> int:
        return topology.nodes

    def _at(self) -> tuple[Tensor, ...] | None:
        model = tuple(x for x in self._x if x is not None)
        return model if self._gradient_now is None and len(model) == self.buckets else None

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        self._gradient_now, self._samples = gradient, event.samples
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
            return self._mean(bucket, payload)
        # This node's gradient is not there yet, or the node before is a round ahead.
        if self._gradient_now is None or self._added[bucket]:
            self._sums[bucket] = payload, float(numbers["w"])  # type: ignore[arg-type]
            return []
        return self._add(bucket, payload, float(numbers["w"]))  # type: ignore[arg-type]

    def _add(self, bucket: int, sum_: Tensor | None, weight: float) -> list[Action]:
        """This node's gradient joins the sum of those before it."""
        assert self._gradient_now is not None
        self._added[bucket] = True
        own = self._gradient_now[bucket] * self.config.weight
        total, weight = own if sum_ is None else own.add_(sum_), weight + self.config.weight
        if self.rank == bucket % self._n:
            return self._mean(bucket, total / weight)
        return self._post(self._following, bucket, total, w=weight)

    def _mean(self, bucket: int, mean: Tensor) -> list[Action]:
        self._means[bucket] = mean
        on = (self.rank + 1) % self._n != bucket % self._n  # the next is not where it was made
        actions = self._post(self._following, bucket, mean, mean=True) if on else []
        if all(m is not None for m in self._means):
            self._step()
        return actions

    def _step(self) -> None:
        for b, (x, mean) in enumerate(zip(self._x, self._means, strict=True)):
            assert x is not None
            assert mean is not None
            averages = self.config.layout.buckets[b].kind == "averages"
            self._x[b] = mean if averages else x + self._steps.change(b, x, mean)
        self._steps.done(self._samples)
        self._gradient_now, self._added, self._means = None, [False] * self.buckets, [None] * self.buckets

    def last_record(self) -> Mapping[str, Tensor | float]:
        """``steps``, and the sum of the model's coordinates and of their magnitudes."""
        known = [x for x in self._x if x is not None]
        sums = float(sum(float(x.sum()) for x in known)), float(sum(float(x.abs().sum()) for x in known))
        return {"steps": float(self._steps.steps), "sum": sums[0], "scale": sums[1]}

    @staticmethod
    def identity_error(records: Mapping[int, Mapping[str, Any]], root: int) -> float:
        """How far the models of nodes that have taken equally many steps differ, relative to the model: 0."""
        of_root = records[root]
        same = [r for r in records.values() if float(r["steps"]) == float(of_root["steps"])]
        return max(abs(float(r["sum"]) - float(of_root["sum"])) for r in same) / max(
            float(of_root["scale"]), SCALE_LEAST
        )
