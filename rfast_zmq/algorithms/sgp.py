"""``sgp`` and ``osgp``: stochastic gradient push. Everybody hands on shares of its model and of a weight; the model
that counts is what it has of the one over what it has of the other::

    x_i½  = x_i − γ ∇f_i(z_i; ζ)
    x_i⁺  = Σ_j p_ij x_j½,   y_i⁺ = Σ_j p_ij y_j       p_ij = 1/(1 + receivers of j): the columns of P sum to 1
    z_i   = x_i / y_i                                   Σ y = n and Σ x are kept, whatever the graph

``sgp`` awaits the shares of this round from everybody who hands it some. ``osgp`` (overlap, τ = 1) sends its shares,
goes on computing, and when the gradient is done takes up what has come meanwhile, so that it goes on with the shares
that are sent then: a word is a round on its way from node to node. It waits only for whoever is more than a round
behind.

The graph is A, where everybody reaches everybody along it, else the topology's two graphs with every edge both ways.

With ``one_peer`` = 1 the graph changes from round to round, as in the paper's own experiments: in round k each node
hands the half of what it has to one receiver, in turn, the nearest in rank first (i − j mod n for receiver i of j), and
awaits those alone whose turn is this node's. On the exponential graph that is the node 2^(k mod (⌊log₂(n − 1)⌋ + 1))
ahead: everybody sends one message a round and gets one. The columns of P_k still sum to 1, and in as many rounds as
anybody has receivers every edge has its turn. The census goes up the same edges, so that the root hears of samples, and
the run ends, later by up to so many rounds for each edge of the push tree.

Departures: ``one_peer`` is 0 unless asked for; node weights scale the steps.

Source: Assran et al., "Stochastic gradient push for distributed deep learning" (arXiv 1811.10792), Algorithms 1 and 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
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
    options: ClassVar[Mapping[str, float]] = {"one_peer": 0.0}
    switches: ClassVar[tuple[str, ...]] = ("one_peer",)
    behind: ClassVar[int] = 0
    """τ: the rounds by which a sender may be behind."""

    def __init__(self, config: NodeConfig) -> None:
        turns = [_turns(j, to, config) for j, to in enumerate(receivers(config.topology))]
        self._turns = turns[config.rank]
        self._turn_here = {
            j: (turn, len(of_j)) for j, of_j in enumerate(turns) for turn, to in enumerate(of_j) if config.rank in to
        }
        """Per sender, in which of how many rounds it is this node's turn."""
        super().__init__(config, (j for to in self._turns for j in to), self._turn_here)
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
        here = all(taken >= self._handed_by(j, self._handed - self.behind) for (j, _), taken in self._taken.items())
        return model if len(model) == self.buckets and here else None

    def _plain(self, bucket: int, x: Tensor) -> Tensor:
        return self._steps.plain(bucket, x, self.config.weight)

    def _computed(self, gradient: tuple[Tensor, ...], event: GradientReady) -> list[Action]:
        # What has come is handed on in this round. (Of running averages a node hands on its own, and shows the mix.)
        self._take_up(b for b, bucket in enumerate(self.config.layout.buckets) if bucket.kind == "parameters")
        actions: list[Action] = []
        takers = self._turns[self._handed % len(self._turns)]
        share = 1.0 / (1 + len(takers))
        for b, (z, g) in enumerate(zip(self._x, gradient, strict=True)):
            assert z is not None
            x = self._mass[b] if self._mass[b] is not None else z * self._y[b]
            assert x is not None
            if self.config.layout.buckets[b].kind == "averages":
                half = g * self._y[b]
            else:
                half = x + self._steps.change(b, z, g, self.config.weight)
            part, y = half * share, self._y[b] * share
            for j in takers:
                actions += self._post(j, b, part, y=y)
            self._mass[b], self._y[b] = part, y
        self._steps.done(event.samples)
        self._handed += 1
        self._take_up(range(self.buckets))
        return actions

    def _came(self, src: int, bucket: int, payload: Tensor, numbers: Mapping[str, Number]) -> list[Action]:
        self._waiting[src, bucket].append((payload, float(numbers["y"])))  # type: ignore[arg-type]
        if self._at() is None:
            self._take_up(range(self.buckets))
        return []

    def _take_up(self, buckets: Iterable[int]) -> None:
        """What has come, in these buckets, of rounds that this node has been through."""
        wanted = set(buckets)
        for (j, b), shares in self._waiting.items():
            while b in wanted and shares and self._taken[j, b] < self._handed_by(j, self._handed):
                payload, y = shares.popleft()
                x = self._mass[b]
                assert x is not None
                self._mass[b], self._y[b] = x + payload, self._y[b] + y
                self._taken[j, b] += 1
        for b, x in enumerate(self._mass):
            if x is not None and b in wanted:
                self._x[b] = x / self._y[b]

    def _handed_by(self, src: int, rounds: int) -> int:
        """The shares that a node hands to this one in its first ``rounds`` rounds."""
        turn, turns = self._turn_here[src]
        return max(0, (rounds - turn + turns - 1) // turns)


class Osgp(Sgp):
    """The same, overlapped. See the module."""

    name: ClassVar[str] = "osgp"
    behind: ClassVar[int] = 1


def _turns(rank: int, to: tuple[int, ...], config: NodeConfig) -> tuple[tuple[int, ...], ...]:
    """Whom a node hands shares to, round after round, and then from the beginning."""
    if not to or not config.options["one_peer"]:
        return (to,)
    return tuple((i,) for i in sorted(to, key=lambda i: (i - rank) % config.topology.nodes))
