"""What the rivals share: algorithms in which every message counts, once and in order.

R-FAST says its newest and a lost word does not matter. The methods it is compared with were published for links that
lose nothing, and count on each message. So here each out-edge keeps a queue per bucket, its messages are numbered
(``seq``), and one that was heard already is no news. What is lost stays lost: a node that waits for it waits for ever,
which is why faults are refused for such an algorithm (``Algorithm.bears_loss``).

Data travels on edges of A. The edges of W carry the first model down the pull tree, and the end of the run; the census
goes up the push tree beside the data. A last word up the push tree has, where ``Algorithm.judged_by_mean``, the sum of
the models below, so that the root ends with the mean over the nodes.

A subclass implements ``_at``, ``_computed`` and ``_came``; the time in which its node has nothing to compute because it
waits for somebody is counted (``Status.waited_s``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rfast_zmq.core.descent import Descent
from rfast_zmq.core.events import Action, Edge, GradientReady, Graph, Message, Number, Ready, RunGradient, Send
from rfast_zmq.core.interface import NodeConfig, Status
from rfast_zmq.core.skeleton import Skeleton

OWN_RULES = ("sgd", "momentum", "nesterov", "adam", "nadam")
"""What every node can run by itself."""


class Ordered(Skeleton):
    """Common state of a node whose algorithm counts on every message: see the module.

    Args:
        config: what the node is told.
        sends_to: ranks that take data from this node.
        hears_from: ranks that it takes data from.
    """

    optimizers: ClassVar[tuple[str, ...]] = OWN_RULES
    bears_loss: ClassVar[bool] = False
    data_numbers: ClassVar[Mapping[str, type]] = {}
    """What rides beside the data."""

    def __init__(self, config: NodeConfig, sends_to: Iterable[int], hears_from: Iterable[int]) -> None:
        rank, pull, push = config.rank, config.topology.pull_tree, config.topology.push_tree
        below, above = push.children[rank], push.parent[rank]
        self.sends_to, self.hears_from = tuple(sorted(set(sends_to))), tuple(sorted(set(hears_from)))
        to = sorted({*self.sends_to, *(() if above is None else (above,))})
        parent = pull.parent[rank]
        out = [Edge("W", rank, j) for j in pull.children[rank]] + [Edge("A", rank, j) for j in to]
        into = [] if parent is None else [Edge("W", parent, rank)]
        super().__init__(config, out, into + [Edge("A", j, rank) for j in sorted({*self.hears_from, *below})])
        self._queues: dict[tuple[Edge, int], deque[tuple[Tensor, Mapping[str, Number]]]] = {
            (edge, b): deque() for edge in self.out_edges if edge.graph == "A" for b in range(self.buckets)
        }
        self._said = dict.fromkeys(self._queues, 0)
        self._heard = {(edge, b): 0 for edge in self.in_edges if edge.graph == "A" for b in range(self.buckets)}
        self._x: list[Tensor | None] = [None] * self.buckets
        self._first: list[Tensor | None] = [None] * self.buckets
        """The first model, at which everybody begins, however late its word comes."""
        self._parts: list[Tensor] = []
        self._idle_at: float | None = None
        self._stood_s = 0.0
        self._t0: float | None = None
        self._last_words: list[dict[int, tuple[Tensor, int]]] = [{} for _ in range(self.buckets)]
        if config.initial is not None:
            self._x, self._first = list(config.initial), list(config.initial)

    # ------------------------------------------------------------------------------------ for the subclass

    @abstractmethod
    def _at(self) -> tuple[Tensor, ...] | None:
        """The model to compute a gradient at, or None while somebody is waited for."""

    @abstractmethod
    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        """A whole gradient is ready."""

    @abstractmethod
    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        """Data came from a node, the next of those that it sent."""

    def _issued(self) -> list[Action]:
        """A gradient at :meth:`_at` is being computed from now on."""
        return []

    def _plain(self, bucket: int, x: Tensor) -> Tensor:
        """What is judged where this node's model is ``x``: the iterate that its optimiser looks ahead from."""
        return x

    def _post(self, to: int, bucket: int, payload: Tensor, **numbers: Number) -> list[Action]:
        """Queue data for a node."""
        edge = Edge("A", self.rank, to)
        self._queues[edge, bucket].append((payload, numbers))
        return [Send(edge, bucket)]

    def _post_model(self, to: Iterable[int], model: Iterable[Tensor], **numbers: Number) -> list[Action]:
        """Queue a whole model for each of some nodes."""
        posts = [self._post(j, b, x, **numbers) for b, x in enumerate(model) for j in to]
        return [action for post in posts for action in post]

    # ------------------------------------------------------------------------------------ the skeleton's

    @classmethod
    def numbers(cls, graph: Graph) -> Mapping[str, type]:
        of_all = super().numbers(graph)
        return of_all if graph == "W" else {**of_all, "seq": int, "nodes": int, **cls.data_numbers}

    def _ready(self) -> bool:
        return all(x is not None for x in self._x) and self._at() is not None

    def _started(self, now: float) -> list[Action]:
        if any(x is None for x in self._x):
            return []
        return self._first_model()

    def _first_model(self) -> list[Action]:
        return self._mark("W") + ([Ready()] if self._ready() else [])

    def _models(self, now: float) -> list[Action]:
        if not self._ready():
            if self._idle_at is None and self._gradients:
                self._idle_at = now
            return []
        if self._idle_at is not None:
            self._stood_s += now - self._idle_at
            self._idle_at = None
        if self._t0 is None:
            self._t0 = now
        model = self._at()
        assert model is not None
        return [RunGradient(model, (self.root_rounds,) * self.buckets), *self._issued()]

    def _gradient(self, event: GradientReady) -> list[Action]:
        self._parts += event.gradient
        if event.first + len(event.gradient) < self.buckets:
            return []
        gradient, self._parts = tuple(self._parts), []
        actions = self._computed(gradient, event)
        self._progress(event.now)
        if not self._ready():
            self._idle_at = event.now
        return actions

    def _progress(self, now: float) -> None:
        if not self.is_root or not self._closing.running:
            return
        self.root_rounds = self._samples_done() / self.config.global_batch
        if self._t0 is not None and self.root_rounds > 0:
            self.round_s = (now - self._t0) / self.root_rounds

    def _received(self, message: Message, now: float) -> list[Action]:
        edge, bucket, numbers = message.edge, message.bucket, message.numbers
        if edge.graph == "A" and (nodes := int(numbers["nodes"])) > 0:  # type: ignore[arg-type]
            self._last_words[bucket][edge.src] = message.payload, min(nodes, self.config.topology.nodes)
            return []
        if edge.graph == "W":
            if self._x[bucket] is not None:
                return []
            self._x[bucket] = self._first[bucket] = (
                message.payload
            )  # also as the run closes, so that the end is passed on
            return [] if any(x is None for x in self._x) else self._first_model()
        self._progress(now)
        following = int(numbers["seq"]) == self._heard[edge, bucket] + 1  # type: ignore[arg-type]
        if not following or edge.src not in self.hears_from or not self._closing.running:
            return []
        self._heard[edge, bucket] += 1
        was_ready = self._ready()
        actions = self._came(edge.src, bucket, message.payload, numbers)
        return actions + ([Ready()] if self._ready() and not was_ready else [])

    def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
        actions = super()._link(edge, bucket, now)
        return [*actions, Send(edge, bucket)] if self._queues.get((edge, bucket)) else actions

    def _payload(self, edge: Edge, bucket: int, now: float) -> tuple[Tensor, dict[str, Number]] | None:
        slot, x = (edge, bucket), self._x[bucket]
        if edge.graph == "W":
            first = self._first[bucket]
            return None if first is None else (first, {})
        if self._queues[slot]:
            payload, extra = self._queues[slot].popleft()
            self._said[slot] += 1
        elif x is None or (self._closing.running and edge.dst in self.sends_to and self.census().trouble < 0):
            return None  # between two words of data there is nothing to say, but that somebody is in trouble
        else:
            payload, extra = torch.zeros_like(x), {}
        nodes = 0
        if edge.dst == self.push_tree(bucket).parent[self.rank] and self._final(bucket, now):
            payload, nodes = self._sum_below(bucket)
        zeros: dict[str, Number] = {name: kind() for name, kind in self.data_numbers.items()}
        return payload, {"seq": self._said[slot], "nodes": nodes, **zeros, **extra}

    def _stop(self, now: float) -> None:
        for queue in self._queues.values():
            queue.clear()
        if self._idle_at is not None:
            self._stood_s += now - self._idle_at
            self._idle_at = None

    def _sum_below(self, bucket: int) -> tuple[Tensor, int]:
        """The sum of the models of this node's subtree, as far as they are known, and how many those are."""
        own = self._x[bucket]
        assert own is not None
        sum_, nodes = self._plain(bucket, own).clone(), 1
        for payload, count in self._last_words[bucket].values():
            sum_.add_(payload)
            nodes += count
        return sum_, nodes

    # ------------------------------------------------------------------------------------ the interface

    @property
    def pace_s(self) -> float:
        return self.config.pace_s or 0.0

    def status(self) -> Status:
        return replace(super().status(), waited_s=self._stood_s)

    def export(self) -> tuple[Tensor, ...] | None:
        """This node's model; where the mean is what counts, at the end of the run the root's is that."""
        found = []
        for b, x in enumerate(self._x):
            if x is None:
                return None
            if self.judged_by_mean and self.is_root and not self._closing.running:
                x, nodes = self._sum_below(b)
                found.append(x / nodes)
            else:
                found.append(self._plain(b, x))
        return tuple(found)

    def last_record(self) -> Mapping[str, Tensor | float]:
        """Nothing, but for those that have an identity."""
        return {}

    @staticmethod
    def identity_error(records: Mapping[int, Mapping[str, Any]], root: int) -> float | None:
        return None


class OwnSteps:
    """The optimiser that a node runs for itself: a step is a batch of its own, and nothing is stale.

    Args:
        config: of the node.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._descents = [
            Descent(b, rule=config.optimizer, momentum=config.momentum, beta2=config.beta2, eps=config.eps)
            if b.kind == "parameters"
            else None
            for b in config.layout.buckets
        ]
        self._before: list[Tensor | None] = [None] * len(self._descents)
        self._share = config.global_batch / config.topology.nodes
        self.steps, self.rounds = 0, 0.0
        """That were done; the learning rate goes by the rounds, in which this node does its share of B."""

    def done(self, samples: int) -> None:
        """A step along the mean of so many samples was taken in every bucket."""
        self.steps, self.rounds = self.steps + 1, self.rounds + samples / self._share

    def after(self, bucket: int, x: Tensor, d: Tensor) -> Tensor:
        """The model ``x`` of a bucket of parameters after a step along ``d`` (a tensor that is not written to again).
        Where somebody else moved x since the last step, momentum is not moved."""
        descent, before = self._descents[bucket], self._before[bucket]
        assert descent is not None
        if before is not None and before is not x:
            descent.moved(x - before)
        after = descent.step(x, d, 1.0, 0.0, self._config.rates(self.rounds))
        self._before[bucket] = after
        return after

    def change(self, bucket: int, x: Tensor, d: Tensor, weight: float = 1.0) -> Tensor:
        """What a step along ``d`` adds to the model ``x`` of a bucket of parameters (a new tensor), times the weight of
        the node whose gradient ``d`` is. (It is not ``d`` that is weighed, of which Adam would make the same step.)
        Where models are mixed between two steps, momentum is not."""
        change = self.after(bucket, x, d) - x
        return change if weight == 1.0 else change.mul_(weight)

    def plain(self, bucket: int, x: Tensor, weight: float = 1.0) -> Tensor:
        """The plain iterate, which the optimiser looks ahead from (``weight`` times as far), where the model is ``x``
        now."""
        descent, before = self._descents[bucket], self._before[bucket]
        if descent is None or before is None or not descent.lead:
            return x
        return descent.plain(x).sub_(before).mul_(weight).add_(x)
