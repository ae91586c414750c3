"""``sgp`` and ``osgp``: stochastic gradient push. Everybody hands on shares of its model and of a weight; the model
that counts is what it has of the one over what it has of the other::

    x_i½  = x_i − γ ∇f_i(z_i; ζ)
    x_i⁺  = Σ_j p_ij x_j½,   y_i⁺ = Σ_j p_ij y_j       p_ij = 1/(1 + receivers of j): the columns of P sum to 1
    z_i   = x_i / y_i                                   Σ y = n and Σ x are kept, whatever the graph

``sgp`` awaits the shares of this round from everybody who hands it some. ``osgp`` (overlap, τ = 1) sends its shares,
goes on computing, and takes up what has come when the gradient is done; it waits only for whoever is more than a round
behind.

The graph is A, where everybody reaches everybody along it, else the topology's two graphs with every edge both ways.

Departures: the graph does not change from round to round (the paper's own experiments take one receiver a round, in
turn, of an exponential graph); node weights scale the gradients.

Source: Assran et al., "Stochastic gradient push for distributed deep learning" (arXiv 1811.10792), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, GradientReady, Number
from rfast_zmq.core.gossip import receivers
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.ordered import Ordered, OwnSteps


class Sgp(Ordered):
    """One node of stochastic gradient push. See the module."""

    name: ClassVar[str] = "sgp"
    judged_by_mean: ClassVar[bool] = True
    data_numbers: ClassVar[Mapping[str, type]] = {"y": float}
    behind: ClassVar[int] = 0
    """τ: the rounds by which a sender may be behind."""

    def __init__(self, config: NodeConfig) -> None:
        of_all = receivers(config.topology)
        from_ = tuple(j for j, to in enumerate(of_all) if config.rank in to)
        super().__init__(config, of_all[config.rank], from_)
        self._share = 1.0 / (1 + len(self.sends_to))
        self._steps = OwnSteps(config)
        self._mass: list[Tensor | None] = [None] * self.buckets
        """x; None: that of the first model."""
        self._y = [1.0] * self.buckets
        self._waiting: dict[tuple[int, int], deque[tuple[Tensor, float]]] = {
            (j, b): deque() for j in self.hears_from for b in range(self.buckets)
        }
        self._taken = dict.fromkeys(self._waiting, 0)
        """Shares taken up so far, of each sender and bucket."""
        self._handed = 0
        """Rounds in which this node has handed out shares."""

    def _at(self) -> tuple[Tensor, ...] | None:
        model = tuple(x for x in self._x if x is not None)
        least = min(self._taken.values(), default=self._handed)
        return model if len(model) == self.buckets and least >= self._handed - self.behind else None

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        actions: list[Action] = []
        for b, (z, g) in enumerate(zip(self._x, gradient, strict=True)):
            assert z is not None
            x = self._mass[b] if self._mass[b] is not None else z * self._y[b]
            assert x is not None
            if self.config.layout.buckets[b].kind == "averages":
                half = g * self._y[b]
            else:
                half = x + self._steps.change(b, z, g if self.config.weight == 1.0 else g * self.config.weight)
            part, y = half * self._share, self._y[b] * self._share
            for j in self.sends_to:
                actions += self._post(j, b, part, y=y)
            self._mass[b], self._y[b] = part, y
        self._steps.done(event.samples)
        self._handed += 1
        return actions + self._take_up()

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        self._waiting[src, bucket].append((payload, float(numbers["y"])))  # type: ignore[arg-type]
        return self._take_up() if self._at() is None else []

    def _take_up(self) -> list[Action]:
        """What has come of rounds that this node has been through."""
        for (j, b), shares in self._waiting.items():
            while shares and self._taken[j, b] < self._handed:
                payload, y = shares.popleft()
                x = self._mass[b]
                assert x is not None
                self._mass[b], self._y[b] = x + payload, self._y[b] + y
                self._taken[j, b] += 1
        for b, x in enumerate(self._mass):
            if x is not None:
                self._x[b] = x / self._y[b]
        return []


class Osgp(Sgp):
    """The same, overlapped. See the module."""

    name: ClassVar[str] = "osgp"
    behind: ClassVar[int] = 1
