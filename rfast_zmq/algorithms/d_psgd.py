"""``d-psgd``: synchronous gossip. Everybody steps along its gradient and averages with its neighbours, every round::

    x_i⁺ = Σ_j w_ij (x_j − γ ∇f_j(x_j; ζ_j))    j over i and its neighbours; W symmetric, doubly stochastic
    x_i⁺ = Σ_j w_ij x_j − γ ∇f_i(x_i; ζ_i)      with ``overlap`` = 1: the paper's Algorithm 1 to the letter

The graph is the topology's, both of its graphs together and every edge both ways; w_ij = 1/(1 + max(d_i, d_j)) with the
neighbours' numbers d (Metropolis), w_ii what is left. What counts is the mean of the nodes' models, which the averaging
keeps: mean x⁺ = mean x − γ · mean of the gradients.

The second form sends x_i as it begins its gradient, so that both take their time at once. It bears smaller steps: on
a quadratic of curvature L, γL < 1 + λ_min(W), where the first bears γL < 2; and nodes' models lie further apart, for a
step is not averaged in the round in which it is taken. So the first, which public implementations have, is the default.
Either way a node begins the next gradient when it has every neighbour's word of this round.

With a momentum rule each node keeps its own momentum. Of running averages (BatchNorm) everybody adds what its own have
changed by, r_i⁺ − r_i, in the place of a step, so that the mean over nodes is that of the nodes' own.

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
    options: ClassVar[Mapping[str, float]] = {"overlap": 0.0}
    switches: ClassVar[tuple[str, ...]] = ("overlap",)

    def __init__(self, config: NodeConfig) -> None:
        around = neighbours(config.topology)
        super().__init__(config, around[config.rank], around[config.rank])
        self._weights = metropolis(around, config.rank)
        self._steps = OwnSteps(config)
        self._overlaps = bool(config.options["overlap"])
        """Models are sent before the step, not after it."""
        self._came_of: dict[tuple[int, int], deque[Tensor]] = {
            (j, b): deque() for j in self.hears_from for b in range(self.buckets)
        }
        """Per neighbour and bucket what it sent and was not averaged yet: of this round, perhaps of the next."""
        self._after: list[Tensor] = []
        """This node's models after the step of this round, while others' words of the round are awaited. Without
        overlap they are what it shows meanwhile: over the nodes their mean is that of the round."""
        self._contributed: dict[int, Tensor] = {}
        """Of each bucket of running averages, this node's own of the round before."""
        self._sent = False

    def _at(self) -> tuple[Tensor, ...] | None:
        model = tuple(x for x in self._x if x is not None)
        return model if not self._after and len(model) == self.buckets else None

    def _issued(self) -> list[Action]:
        if self._sent or not self._overlaps:
            return []
        self._sent = True
        return self._post_model(self.sends_to, (x for x in self._x if x is not None))

    def _plain(self, bucket: int, x: Tensor) -> Tensor:
        return self._steps.plain(bucket, x, self.config.weight)

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        self._after = [self._step(b, g) for b, g in enumerate(gradient)]
        self._steps.done(event.samples)
        actions: list[Action] = []
        if not self._overlaps:
            self._x = list(self._after)
            actions = self._post_model(self.sends_to, self._after)
        self._mix()
        return actions

    def _step(self, b: int, g: Tensor) -> Tensor:
        """This node's model of a bucket after the step of this round."""
        x = self._x[b]
        assert x is not None
        if self.config.layout.buckets[b].kind == "averages":
            before, self._contributed[b] = self._contributed.get(b, x), g
            return x + (g - before)
        return x + self._steps.change(b, x, g, self.config.weight)

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        self._came_of[src, bucket].append(payload)
        self._mix()
        return []

    def _mix(self) -> None:
        """If everybody's word of this round is there, and the step is taken."""
        if not self._after or not all(self._came_of.values()):
            return
        own = self._weights[self.rank]
        for b, (x, after) in enumerate(zip(self._x, self._after, strict=True)):
            assert x is not None
            mixed = after - (1.0 - own) * x if self._overlaps else own * after
            for j in self.hears_from:
                mixed.add_(self._came_of[j, b].popleft(), alpha=self._weights[j])
            self._x[b] = mixed
        self._after, self._sent = [], False
