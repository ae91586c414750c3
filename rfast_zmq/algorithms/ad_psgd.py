"""``ad-psgd``: asynchronous gossip. A node computes on and on; beside that it averages with one neighbour at a time::

    x_i ← x_i − γ ∇f_i(x̂_i; ζ)          x̂_i: its model as the gradient began
    x_i, x_j ← (x_i + x_j)/2            j drawn uniformly among its neighbours

The graph is the topology's, both of its graphs together and every edge both ways, made bipartite: nodes have one of two
colours, by whether their depth in the push tree is even, and edges between nodes of one colour are left out (those of
that tree stay, so everybody is reached). The colour of more nodes is active, the other passive. An active node
sends its model to a passive neighbour, which answers at once with its own and moves half-way; the active one moves
by as much the other way when the answer is there::

    passive, as x̃_i comes:    answer x_j,  x_j ← x_j + (x̃_i − x_j)/2
    active, as x_j comes:      x_i ← x_i + (x_j − x̃_i)/2

What steps and averagings did to x_i meanwhile stays, and Σ x is kept, counting what is in flight. An active node has
one averaging under way at most, and a passive one answers whoever asks: nobody waits for anybody, and no circle of
waiting can come about, which is why the graph must be bipartite. For each of its gradients an active node begins
``averagings`` of them, beside computing it (default 1; those that come due while one is under way follow it).

With a momentum rule each node keeps its own momentum. What counts is the mean of the nodes' models. Of running averages
(BatchNorm) a node adds what its own have changed by.

Source: Lian et al., "Asynchronous decentralized parallel stochastic gradient descent" (arXiv 1710.06952), Algorithm 1
and section 3.1.
Departures: node weights scale the steps. An averaging under way as the run ends is finished on one side only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rfast_zmq.conditions.draws import uniform
from rfast_zmq.core.events import Action, GradientReady, Number
from rfast_zmq.core.gossip import neighbours
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import Ordered, OwnSteps
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Topology


class AdPsgd(Ordered):
    """One node of asynchronous gossip. See the module."""

    name: ClassVar[str] = "ad-psgd"
    judged_by_mean: ClassVar[bool] = True
    options: ClassVar[Mapping[str, float]] = {"averagings": 1.0}

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        averagings = options["averagings"]
        if averagings < 1 or averagings != int(averagings):
            raise UsageError(f"--algorithm-option averagings={averagings:g}: must be a whole number, 1 or more")

    def __init__(self, config: NodeConfig) -> None:
        around, active = bipartite(config.topology)
        partners = around[config.rank]
        super().__init__(config, partners, partners)
        self._partners, self._active = partners, active[config.rank]
        self._steps = OwnSteps(config)
        self._contributed: dict[int, Tensor] = {}
        """Of each bucket of running averages, this node's own of the gradient before."""
        self._asked: dict[int, Tensor] = {}
        """Per bucket the model that is with the partner, while its answer is awaited."""
        self._held: list[tuple[int, int, Tensor]] = []
        """What was asked of a passive node before it had a model."""
        self._due = self._drawn = 0
        """Averagings to begin; those that were begun."""
        self._told = (0.0, 0.0)
        """Rounds that the census last had, and when it first had so many."""

    def _at(self) -> tuple[Tensor, ...] | None:
        model = tuple(x for x in self._x if x is not None)
        return model if len(model) == self.buckets else None

    def _issued(self) -> list[Action]:
        if not self._active or not self._partners:
            return []
        self._due += int(self.config.options["averagings"])
        return self._ask()

    def _plain(self, bucket: int, x: Tensor) -> Tensor:
        return self._steps.plain(bucket, x, self.config.weight)

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        for b, (x, g) in enumerate(zip(self._x, gradient, strict=True)):
            assert x is not None
            if self.config.layout.buckets[b].kind == "averages":
                self._x[b] = x + (g - self._contributed.get(b, x))
                self._contributed[b] = g
            else:
                self._x[b] = x + self._steps.change(b, x, g, self.config.weight)
        self._steps.done(event.samples)
        return []

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        x = self._x[bucket]
        if self._active:
            sent = self._asked.pop(bucket, None)
            if x is None or sent is None:
                return []
            self._x[bucket] = x + (payload - sent) / 2
            return self._ask()
        if x is None:  # the first model is still on its way here
            self._held.append((src, bucket, payload))
            return []
        self._x[bucket] = x + (payload - x) / 2
        return self._post(src, bucket, x)

    def _first_model(self) -> list[Action]:
        actions = super()._first_model()
        held, self._held = self._held, []
        for src, bucket, payload in held:
            actions += self._came(src, bucket, payload, {})
        return actions

    def _progress(self, now: float) -> None:
        """The census comes with averagings alone: between two of them progress goes on at the pace of before, for a
        round at most."""
        before = self.root_rounds
        super()._progress(now)
        if self.root_rounds > self._told[0]:
            self._told = self.root_rounds, now
        if self._closing.running and self.is_root and self.round_s > 0:
            rounds, since_s = self._told
            self.root_rounds = max(before, rounds + min((now - since_s) / self.round_s, 1.0))

    def _ask(self) -> list[Action]:
        """Begin an averaging, if one is due and none is under way."""
        if not self._due or self._asked:
            return []
        self._due -= 1
        draw = uniform(self.config.seed, "partner", self.rank, self._drawn)
        self._drawn += 1
        partner = self._partners[int(draw * len(self._partners))]
        actions: list[Action] = []
        for b, x in enumerate(self._x):
            assert x is not None
            self._asked[b] = x
            actions += self._post(partner, b, x)
        return actions


def bipartite(topology: Topology) -> tuple[tuple[tuple[int, ...], ...], tuple[bool, ...]]:
    """A bipartite graph within the topology's edges, and which of its nodes are active.

    Returns:
        Per node those of its neighbours whose depth in the push tree is even where its own is odd, and the other way
        round; and whether its colour is that of more nodes (a tie: that of the root's children).
    """
    parent = topology.push_tree.parent
    odd = [False] * topology.nodes
    for node in range(topology.nodes):
        at = parent[node]
        while at is not None:
            odd[node], at = not odd[node], parent[at]
    kept = tuple(tuple(j for j in around if odd[j] != odd[node]) for node, around in enumerate(neighbours(topology)))
    active = 2 * sum(odd) >= topology.nodes
    return kept, tuple(is_odd == active for is_odd in odd)
