"""Where the root owns the model: gradients come to it through the push tree, and models go down.

What the methods of this family share. The root has the only optimiser, and counts its updates: k is the *version* of a
model. Models go down the pull tree, the newest only. An edge says all buckets of one version before it begins with
another, and a relay passes a version on when it has the whole of it. A step along ``samples`` of B samples is that part
of a round, at most a whole one: lr, momentum and decay mean what they mean for steps of B samples (as in
``rfast-tree``, whose rule of descent it is).

How gradients go up is one of two ways:

- ``Answered``: each is counted for itself, and its node waits for the answer. A node computes one, hands it up with its
  rank, the version it is of, and its samples, and begins the next when it has the model that the root had once it had
  dealt with that one (``heard``: how many of each node's it has). So these methods go by rounds of asking and
  answering, and with n nodes the mean delay of a gradient is at most n - 1 updates, as in their papers. What a node
  waits for the answer is counted (``Status.waited_s``). Relays pass on a whole gradient of a whole node, in the order
  in which they came, and add nothing up; every gradient arrives, once. An edge carries a model when below it somebody
  is to be answered; if it is still the same, one bucket says so.
- ``Gathered`` (``gathered.py``): relays add up what is of the same model, and nobody waits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rfast_zmq.core.descent import Descent
from rfast_zmq.core.events import Action, Edge, GradientReady, Graph, Message, Number, Ready, Send
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import Ordered
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Topology

Gradient = tuple[Tensor, ...]


class Served(Ordered):
    """Common state of a node whose root owns the model. See the module."""

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
        self.version = -1 if config.initial is None else 0
        """Of the newest whole model; at the root, the updates done."""
        self._began_at = 0
        """Version of the model that the gradient under way is of."""
        self._coming = {
            j: [deque[tuple[Tensor, Mapping[str, Number]]]() for _ in range(self.buckets)] for j in self.hears_from
        }
        """Of each child, what has come of its reports bucket by bucket."""
        self._descending: list[tuple[int, Tensor | None]] = [(self.version, x) for x in self._x]
        """Of each bucket the newest version that came, perhaps of a model that is not whole yet."""
        self._down = {edge: Downward(self._below(edge.dst)) for edge in self.out_edges if edge.graph == "W"}
        self._descents = [
            Descent(b, rule=config.optimizer, momentum=config.momentum, beta2=config.beta2, eps=config.eps)
            if b.kind == "parameters"
            else None
            for b in config.layout.buckets
        ]

    # ------------------------------------------------------------------------------------ for the subclass

    @abstractmethod
    def _given(self, gradient: Gradient, samples: int) -> list[Action]:
        """A gradient of this node, times its weight, of the model of version ``_began_at``."""

    @abstractmethod
    def _whole(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> list[Action]:
        """All buckets of a child's next report have come."""

    @abstractmethod
    def _news(self, down: Downward) -> set[int]:
        """The buckets that an edge of W is to say."""

    def _told(self, numbers: Mapping[str, Number]) -> None:
        """A part of the newest model came, with these numbers."""

    def _beside(self, down: Downward) -> dict[str, Number]:
        """What rides down beside a model."""
        return {}

    def _update(self, direction: Gradient, samples: float) -> None:
        """At the root: a step along a mean over so many samples. The next version."""
        f = min(1.0, samples / self.config.global_batch)
        rates = self.config.rates(self._samples_done() / self.config.global_batch)
        for b, (x, d, descent) in enumerate(zip(self._x, direction, self._descents, strict=True)):
            assert x is not None
            self._x[b] = x + f * (d - x) if descent is None else descent.step(x, d, f, 0.0, rates)
        self.version += 1

    # ------------------------------------------------------------------------------------ of a node

    def _plain(self, bucket: int, x: Tensor) -> Tensor:
        descent = self._descents[bucket]
        return x if descent is None or not self.is_root else descent.plain(x)

    @classmethod
    def numbers(cls, graph: Graph) -> Mapping[str, type]:
        of_all = super().numbers(graph)
        return {**of_all, "version": int} if graph == "W" else of_all

    def _at(self) -> Gradient | None:
        return None if self.version < 0 else tuple(x for x in self._x if x is not None)

    def _issued(self) -> list[Action]:
        self._began_at = self.version
        return []

    def _computed(self, gradient: Gradient, event: GradientReady) -> list[Action]:
        weight, buckets = self.config.weight, self.config.layout.buckets
        if weight != 1.0:
            gradient = tuple(g if b.kind == "averages" else g * weight for b, g in zip(buckets, gradient, strict=True))
        return self._given(gradient, event.samples)

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        coming = self._coming[src]
        of = {name: numbers[name] for name in self.data_numbers}
        coming[bucket].append((payload, of))
        if not all(coming):
            return []
        parts = [of_bucket.popleft() for of_bucket in coming]
        if any(other != of for _, other in parts):
            return []
        return self._whole(src, tuple(part for part, _ in parts), of)

    def _received(self, message: Message, now: float) -> list[Action]:
        if message.edge.graph == "A":
            return super()._received(message, now)
        bucket, version = message.bucket, int(message.numbers["version"])  # type: ignore[arg-type]
        was_ready = self._ready()
        if version > self._descending[bucket][0]:
            self._descending[bucket] = version, message.payload
            if all(of_bucket == version for of_bucket, _ in self._descending):
                self.version, self._x = version, [x for _, x in self._descending]
        if version == self.version:
            self._told(message.numbers)
        actions = self._tell_below()
        return [*actions, Ready()] if self._ready() and not was_ready else actions

    # ------------------------------------------------------------------------------------ models down

    def _below(self, top: int) -> tuple[int, ...]:
        """The ranks of a subtree of the pull tree, that of ``top`` first."""
        children = self.config.topology.pull_tree.children
        ranks = [top]
        for rank in ranks:
            ranks += children[rank]
        return tuple(ranks)

    def _first_model(self) -> list[Action]:
        return self._tell_below() + ([Ready()] if self._ready() else [])

    def _tell_below(self) -> list[Action]:
        """Edges that have something new to say begin with it, but for those in the middle of a version."""
        return [action for edge in self._down for action in self._begin(edge)]

    def _begin(self, edge: Edge) -> list[Action]:
        down = self._down[edge]
        return [Send(edge, 0)] if not down.left and self.version >= 0 and self._news(down) else []

    def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
        actions = super()._link(edge, bucket, now)
        if edge.graph == "A":
            return actions
        return actions + [Send(edge, b) for b in sorted(self._down[edge].left)] + self._begin(edge)

    def _payload(self, edge: Edge, bucket: int, now: float) -> tuple[Tensor, dict[str, Number]] | None:
        if edge.graph == "A":
            return super()._payload(edge, bucket, now)
        down = self._down[edge]
        running = self._closing.running
        if not down.left or not running:  # the end is told at once, whatever of a model is left
            down.left = self._news(down) if running and self.version >= 0 else set()
            if down.left or not running:  # with no news what was said last is said again
                down.version, down.numbers, down.model = self.version, self._beside(down), self._x[:]
        down.left.discard(bucket)
        x = down.model[bucket] if down.model else None
        if x is None:
            return None
        return x, {"version": down.version, **down.numbers}


class Answered(Served):
    """Common state of a node that waits for the answer to its own gradient. See the module."""

    data_numbers: ClassVar[Mapping[str, type]] = {"rank": int, "version": int, "batch": int}

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._handed = 0
        """Gradients of this node's own that were computed."""
        self.heard = [0] * config.topology.nodes
        """Per rank, the gradients that the root had dealt with as it made what this node has."""
        self._dealt_with = 0
        """At the root: samples of all gradients that have arrived."""
        self._here = self._below(config.rank)

    @abstractmethod
    def _arrived(self, rank: int, version: int, samples: int, gradient: Gradient) -> None:
        """At the root: a gradient of node ``rank``, times the node's weight, of the model of ``version``."""

    def _samples_done(self) -> int:
        return self._dealt_with

    @classmethod
    def numbers(cls, graph: Graph) -> Mapping[str, type]:
        of_all = super().numbers(graph)
        return {**of_all, "heard": list} if graph == "W" else of_all

    def _at(self) -> Gradient | None:
        return None if self.heard[self.rank] < self._handed else super()._at()

    def _given(self, gradient: Gradient, samples: int) -> list[Action]:
        self._handed += 1
        return self._hand_up(gradient, self.rank, self._began_at, samples)

    def _whole(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> list[Action]:
        rank, version, samples = (int(numbers[name]) for name in self.data_numbers)  # type: ignore[arg-type]
        if not 0 <= rank < self.config.topology.nodes or samples < 1:
            return []
        return self._hand_up(parts, rank, version, samples)

    def _hand_up(self, gradient: Gradient, rank: int, version: int, samples: int) -> list[Action]:
        """A whole gradient of some node goes on to the parent; at the root it has arrived."""
        if self._up is not None:
            beside = {"rank": rank, "version": version, "batch": samples}
            return [action for b, g in enumerate(gradient) for action in self._post(self._up, b, g, **beside)]
        self._arrived(rank, version, samples, gradient)
        self.heard[rank] += 1
        self._dealt_with += samples
        self._progress(self._last_s)
        return self._tell_below()

    def _told(self, numbers: Mapping[str, Number]) -> None:
        heard = numbers["heard"]
        assert isinstance(heard, list)
        for rank, count in zip(self._here, heard, strict=False):
            self.heard[rank] = max(self.heard[rank], count)

    def _news(self, down: Downward) -> set[int]:
        """The first model, and then what answers somebody: all buckets if the model is newer, else one."""
        if down.version >= 0 and self._beside(down) == down.numbers:
            return set()
        return set(range(self.buckets)) if self.version > down.version else {0}

    def _beside(self, down: Downward) -> dict[str, Number]:
        return {"heard": [self.heard[rank] for rank in down.ranks]}


class Downward:
    """What an edge of W is saying: a model of one version, bucket by bucket.

    Args:
        ranks: of the nodes that it reaches.
    """

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self.version = -1
        self.numbers: dict[str, Number] = {}
        self.model: list[Tensor | None] = []
        self.left: set[int] = set()
        """Buckets of it that are still to be said."""


def add(sums: Gradient | None, gradient: Gradient, times: float) -> Gradient:
    """``sums`` + ``times`` · ``gradient``, new tensors; None is nothing yet."""
    if sums is None:
        return tuple(g * times for g in gradient)
    return tuple(s + g * times for s, g in zip(sums, gradient, strict=True))


def over(sums: Gradient, by: float) -> Gradient:
    """``sums`` ÷ ``by``, new tensors."""
    return tuple(s / by for s in sums)


def mean_of(mean: Gradient | None, gradient: Gradient, part: float) -> Gradient:
    """The mean once ``gradient`` makes ``part`` of it; None: of nothing yet."""
    return gradient if mean is None else tuple(torch.lerp(m, g, part) for m, g in zip(mean, gradient, strict=True))
