"""``d-psgd``: synchronous gossip. Everybody averages with its neighbours in every round, and steps along its gradient::

    x_i⁺ = Σ_j w_ij x_j − γ ∇f_i(x_i; ζ)        j over i and its neighbours; W symmetric, doubly stochastic

The graph is the topology's, both of its graphs together and every edge both ways; w_ij = 1/(1 + max(d_i, d_j)) with the
neighbours' numbers d (Metropolis), w_ii what is left. A node sends x_i as it begins its gradient, so that both take
their time at once; it begins the next when it has the gradient and every neighbour's model of this round. What counts
is the mean of the nodes' models, which the averaging keeps: mean x⁺ = mean x − γ · mean of the gradients.

With a momentum rule each node keeps its own momentum. Of running averages (BatchNorm) everybody adds what its own have
changed by, x_i⁺ = Σ_j w_ij x_j + r_i⁺ − r_i, so that the mean over nodes is that of the nodes' own.

Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?" (arXiv 1705.09056), Algorithm 1.
Departure: node weights scale the steps (their mean over nodes being 1 changes nothing).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, GradientReady, Number
from rfast_zmq.core.gossip import metropolis, neighbours
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import Ordered, OwnSteps


class DPsgd(Ordered):
    """One node of synchronous gossip. See the module."""

    name: ClassVar[str] = "d-psgd"
    judged_by_mean: ClassVar[bool] = True

    def __init__(self, config: NodeConfig) -> None:
        around = neighbours(config.topology)
        super().__init__(config, around[config.rank], around[config.rank])
        self._weights = metropolis(around, config.rank)
        self._steps = OwnSteps(config)
        self._came_of: dict[tuple[int, int], deque[Tensor]] = {
            (j, b): deque() for j in self.hears_from for b in range(self.buckets)
        }
        """Per neighbour and bucket its models that were not averaged yet: of this round, perhaps of the next."""
        self._gradient_now: tuple[Tensor, ...] | None = None
        self._samples = 0
        self._contributed: dict[int, Tensor] = {}
        """Of each bucket of running averages, this node's own of the round before."""
        self._sent = False

    def _at(self) -> tuple[Tensor, ...] | None:
        model = tuple(x for x in self._x if x is not None)
        return model if self._gradient_now is None and len(model) == self.buckets else None

    def _issued(self) -> list[Action]:
        if self._sent:
            return []
        self._sent = True
        posts = [self._post(j, b, x) for j in self.sends_to for b, x in enumerate(self._x) if x is not None]
        return [action for post in posts for action in post]

    def _plain(self, bucket: int, x: Tensor) -> Tensor:
        return self._steps.plain(bucket, x, self.config.weight)

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        self._gradient_now, self._samples = gradient, event.samples
        return self._mix()

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        self._came_of[src, bucket].append(payload)
        return self._mix()

    def _mix(self) -> list[Action]:
        """If everybody's model of this round is there, and the gradient."""
        if self._gradient_now is None or not all(self._came_of.values()):
            return []
        for b, (x, g) in enumerate(zip(self._x, self._gradient_now, strict=True)):
            assert x is not None
            mixed = x * self._weights[self.rank]
            for j in self.hears_from:
                mixed.add_(self._came_of[j, b].popleft(), alpha=self._weights[j])
            if self.config.layout.buckets[b].kind == "averages":
                before = self._contributed.get(b)
                mixed.add_(g - (x if before is None else before))
                self._contributed[b] = g
            else:
                mixed.add_(self._steps.change(b, x, g, self.config.weight))
            self._x[b] = mixed
        self._steps.done(self._samples)
        self._gradient_now, self._sent = None, False
        return []
