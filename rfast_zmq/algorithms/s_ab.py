"""``s-ab``: synchronous push-pull (AB) with stochastic gradients: gradient tracking over two graphs, round for round::

    x_i⁺ = Σ_j w_ij (x_j − γ y_j)                                 over the pull graph W, whose rows sum to 1
    x_i⁺ = Σ_j w_ij x_j − γ y_i                                   the same with ``overlap`` = 1
    y_i⁺ = Σ_j a_ij y_j + ∇f_i(x_i⁺; ζ⁺) − ∇f_i(x_i; ζ)           over the push graph A, whose columns sum to 1

y begins as the first gradient, and Σ y is the sum of the nodes' newest gradients in every round. It is R-FAST without
what makes that robust: no running sums and no buffers, so every message counts, and nobody goes on before all its
in-neighbours' words of the round are there. A node sends a_ji y_i as soon as it has y_i, so that it travels while the
next gradient is computed; x_i − γ y_i then, too, and waits for the others'. With overlap it sends x_i as it begins its
gradient, so that models travel meanwhile, but it bears smaller steps.

The graphs and weights are the topology's, as ``rfast`` has them. What counts is the root's model. Of running averages
(BatchNorm) a node adds what its own have changed by, in the place of a step.

Sources: Xin, Sahu, Khan, Kar, "Distributed stochastic optimization with gradient tracking over strongly-connected
networks" (arXiv 1903.07266), S-AB, with overlap; Pu, Shi, Xu, Nedić, "Push-pull gradient methods for distributed
optimization in networks" (arXiv 1810.06653), without, and for graphs that share a root only.
Departures: node weights scale the gradients. Models, too, travel on edges of A here, marked as such: those of W
carry the first model and the end of the run (``rfast_zmq/core/ordered.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, GradientReady, Number
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import Ordered, OwnSteps


class SAb(Ordered):
    """One node of synchronous push-pull. See the module."""

    name: ClassVar[str] = "s-ab"
    optimizers: ClassVar[tuple[str, ...]] = ("sgd",)
    data_numbers: ClassVar[Mapping[str, type]] = {"mass": bool}
    options: ClassVar[Mapping[str, float]] = {"overlap": 0.0}
    switches: ClassVar[tuple[str, ...]] = ("overlap",)

    def __init__(self, config: NodeConfig) -> None:
        topology, rank = config.topology, config.rank
        self._w = {j: topology.pull[j, rank] for j in topology.pull_in(rank)}
        self._a = {j: topology.push[rank, j] for j in topology.push_out(rank)}
        self._models_to, self._masses_from = topology.pull_out(rank), topology.push_in(rank)
        super().__init__(config, {*self._models_to, *self._a}, {*self._w, *self._masses_from})
        self._steps = OwnSteps(config)
        self._overlaps = bool(config.options["overlap"])
        """Models are sent before the step, not after it."""
        self._models_came = {(j, b): deque[Tensor]() for j in self._w for b in range(self.buckets)}
        self._masses_came = {(j, b): deque[Tensor]() for j in self._masses_from for b in range(self.buckets)}
        self._stepped: list[Tensor] = []
        """This node's models after the step of this round."""
        self._y: list[Tensor] = []
        """Empty before the first gradient."""
        self._g: list[Tensor] = []
        """Of the round before: in a bucket of running averages, this node's own."""
        self._new: tuple[Tensor, ...] | None = None
        """A gradient whose round is not done, for masses are awaited."""
        self._samples = 0
        self._mixed = True
        """x is that of this round: a gradient can be computed at it."""
        self._sent = False

    def _at(self) -> tuple[Tensor, ...] | None:
        model = tuple(x for x in self._x if x is not None)
        return model if self._mixed and self._new is None and len(model) == self.buckets else None

    def _issued(self) -> list[Action]:
        if self._sent or not self._overlaps:
            return []
        self._sent = True
        return self._post_model(self._models_to, (x for x in self._x if x is not None), mass=False)

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        self._new, self._samples = gradient, event.samples
        return self._go_on()

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        came = self._masses_came if numbers["mass"] else self._models_came
        if (src, bucket) in came:
            came[src, bucket].append(payload)
        return self._go_on()

    def _go_on(self) -> list[Action]:
        """Whatever of the round can be done with what is there."""
        actions: list[Action] = []
        if self._new is not None and (not self._y or all(self._masses_came.values())):
            actions += self._track(self._new)
            self._new, self._mixed = None, False
        if not self._mixed and all(self._models_came.values()):
            self._pull()
            self._mixed, self._sent = True, False
        return actions

    def _track(self, gradient: tuple[Tensor, ...]) -> list[Action]:
        """y of this round and the step along it, and what others get of both."""
        actions: list[Action] = []
        kept, ys, gs, stepped = 1.0 - sum(self._a.values()), [], [], []
        for b, (x, g) in enumerate(zip(self._x, gradient, strict=True)):
            assert x is not None
            masses = [self._masses_came[j, b].popleft() for j in self._masses_from] if self._y else []
            if self.config.layout.buckets[b].kind == "averages":
                y = g - (self._g[b] if self._y else x)
            else:
                g = g if self.config.weight == 1.0 else g * self.config.weight
                y = kept * self._y[b] + sum(masses) + (g - self._g[b]) if self._y else g
            for j, a in self._a.items():
                actions += self._post(j, b, a * y, mass=True)
            ys.append(y)
            gs.append(g)
            averages = self.config.layout.buckets[b].kind == "averages"
            stepped.append(x + (y if averages else self._steps.change(b, x, y)))
        self._steps.done(self._samples)
        self._y, self._g, self._stepped = ys, gs, stepped
        return actions if self._overlaps else actions + self._post_model(self._models_to, stepped, mass=False)

    def _pull(self) -> None:
        """x of the next round."""
        own = 1.0 - sum(self._w.values())
        for b, (x, stepped) in enumerate(zip(self._x, self._stepped, strict=True)):
            assert x is not None
            mixed = stepped - (1.0 - own) * x if self._overlaps else own * stepped
            for j, w in self._w.items():
                mixed.add_(self._models_came[j, b].popleft(), alpha=w)
            self._x[b] = mixed
