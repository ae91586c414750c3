"""Where the root owns the model: gradients come to it through the push tree, each counted for itself, and models go
down.

What the methods of this family share. The root has the only optimiser, and counts its updates: k is the *version* of a
model. Models go down the pull tree, the newest only, and are passed on as they come. A node computes at the newest
whole model that it has, at once and again and again, and hands each gradient up with its rank, the version it is of,
and its samples; relays pass on what comes, in order, and add nothing up. Every gradient arrives, once.

What the root does with a gradient is the subclass's: ``_arrived``. A step along ``samples`` of B samples is that part
of a round, at most a whole one: lr, momentum and decay mean what they mean for steps of B samples (as in
``rfast-tree``, whose rule of descent it is).

A node does not begin a gradient while two messages or more wait for its line to the parent: so a fast one cannot pile
up gradients at itself (``Status.waited_s`` has the time). A relay does pile up what its children send, if its line
carries less than theirs: the papers assume that it does not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rfast_zmq.core.descent import Descent
from rfast_zmq.core.events import Action, Edge, GradientReady, Graph, Message, Number, Ready
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import Ordered
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Topology

WAITING_MOST = 2
"""A node with so many messages that wait for its line begins no gradient."""
Gradient = tuple[Tensor, ...]


class Served(Ordered):
    """Common state of a node whose root owns the model. See the module."""

    data_numbers: ClassVar[Mapping[str, type]] = {"rank": int, "version": int, "batch": int}

    @classmethod
    def check(cls, topology: Topology) -> None:
        if len(topology.push_trees) > 1 or len(topology.pull_trees) > 1:
            raise UsageError(
                f"--topology {topology.name}: --algorithm {cls.name} has one tree up and one down; take binary-tree"
            )

    def __init__(self, config: NodeConfig) -> None:
        tree = config.topology.push_tree
        parent = tree.parent[config.rank]
        super().__init__(config, () if parent is None else (parent,), tree.children[config.rank])
        self._up = parent
        self._versions = [0 if self.is_root else -1] * self.buckets
        self.version = 0
        """Of the newest whole model; at the root, the updates done."""
        self._whole: Gradient | None = config.initial
        self._began_at = 0
        """Version of the model that the gradient under way is of."""
        self._coming = {
            (j, b): deque[tuple[Tensor, tuple[int, int, int]]]() for j in self.hears_from for b in range(self.buckets)
        }
        self._rounds = 0.0
        """Samples stepped along, over B."""
        self._descents = [
            Descent(b, rule=config.optimizer, momentum=config.momentum, beta2=config.beta2, eps=config.eps)
            if b.kind == "parameters"
            else None
            for b in config.layout.buckets
        ]

    # ------------------------------------------------------------------------------------ for the subclass

    @abstractmethod
    def _arrived(self, rank: int, version: int, samples: int, gradient: Gradient) -> list[Action]:
        """At the root: a gradient of node ``rank``, times the node's weight, of the model of ``version``."""

    def _update(self, direction: Gradient, samples: float) -> list[Action]:
        """At the root: a step along a mean over so many samples. The next version."""
        f = min(1.0, samples / self.config.global_batch)
        rates = self.config.rates(self._rounds)
        for b, (x, d, descent) in enumerate(zip(self._x, direction, self._descents, strict=True)):
            assert x is not None
            self._x[b] = x + f * (d - x) if descent is None else descent.step(x, d, f, 0.0, rates)
        self._rounds += samples / self.config.global_batch
        self.version += 1
        self._versions = [self.version] * self.buckets
        self._whole = tuple(x for x in self._x if x is not None)
        return self._mark("W")

    # ------------------------------------------------------------------------------------ of a node

    @classmethod
    def numbers(cls, graph: Graph) -> Mapping[str, type]:
        of_all = super().numbers(graph)
        return {**of_all, "version": int} if graph == "W" else of_all

    def _at(self) -> Gradient | None:
        if self._up is not None and len(self._queues[Edge("A", self.rank, self._up), 0]) >= WAITING_MOST:
            return None
        return self._whole

    def _issued(self) -> list[Action]:
        self._began_at = self.version
        return []

    def _computed(self, gradient: Gradient, event: GradientReady) -> list[Action]:
        weight, buckets = self.config.weight, self.config.layout.buckets
        if weight != 1.0:
            gradient = tuple(g if b.kind == "averages" else g * weight for b, g in zip(buckets, gradient, strict=True))
        if self._up is None:
            return self._arrived(self.rank, self._began_at, event.samples, gradient)
        actions: list[Action] = []
        for b, g in enumerate(gradient):
            actions += self._post(self._up, b, g, rank=self.rank, version=self._began_at, batch=event.samples)
        return actions

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        if self._up is not None:
            told = {name: numbers[name] for name in self.data_numbers}
            return self._post(self._up, bucket, payload, **told)
        rank, version, samples = (int(numbers[name]) for name in ("rank", "version", "batch"))  # type: ignore[arg-type]
        self._coming[src, bucket].append((payload, (rank, version, samples)))
        if not all(self._coming[src, b] for b in range(self.buckets)):
            return []
        parts = [self._coming[src, b].popleft() for b in range(self.buckets)]
        if not 0 <= rank < self.config.topology.nodes or samples < 1:
            return []
        return self._arrived(rank, version, samples, tuple(g for g, _ in parts))

    def _received(self, message: Message, now: float) -> list[Action]:
        if message.edge.graph == "A":
            return super()._received(message, now)
        bucket, version = message.bucket, int(message.numbers["version"])  # type: ignore[arg-type]
        if version <= self._versions[bucket]:
            return []
        was_ready = self._ready()
        self._versions[bucket], self._x[bucket] = version, message.payload
        if len(set(self._versions)) == 1:
            self._whole, self.version = tuple(x for x in self._x if x is not None), version
        actions = self._mark("W", bucket)
        return [*actions, Ready()] if self._ready() and not was_ready else actions

    def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
        was_ready = self._ready()
        actions = super()._link(edge, bucket, now)
        return [*actions, Ready()] if self._ready() and not was_ready else actions

    def _payload(self, edge: Edge, bucket: int, now: float) -> tuple[Tensor, dict[str, Number]] | None:
        if edge.graph == "A":
            return super()._payload(edge, bucket, now)
        x = self._x[bucket]
        return None if x is None else (x, {"version": self._versions[bucket]})


def add(sums: Gradient | None, gradient: Gradient, times: float) -> Gradient:
    """``sums`` + ``times`` · ``gradient``, new tensors; None is nothing yet."""
    if sums is None:
        return tuple(g * times for g in gradient)
    return tuple(s + g * times for s, g in zip(sums, gradient, strict=True))


def over(sums: Gradient, by: float) -> Gradient:
    """``sums`` ÷ ``by``, new tensors."""
    return tuple(s / by for s in sums)
