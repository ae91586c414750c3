"""``ringleader``: asynchronous SGD for uneven data. The root keeps a table of gradients by node, and goes by rounds::

    phase 1   until every node i has given one or more:   G_i ← G_i + g,  b_i ← b_i + 1
    phase 2   x ← x − γ ḡ,  ḡ = (1/n) Σ_i G_i/b_i,  once for each node: at once for the one that ended phase 1, and
              for another as its next gradient comes (which first enters G_i, b_i); what comes of a node that had
              its turn enters the next round's table. When everybody had its turn that becomes the table.

So each node's mean counts the same in every step: no bias where data are uneven; and no gradient is lost, nor older
than 2 n − 2 updates. A round ends when the slowest node has had its turn. Nobody stands idle, but for
the answer to its own gradient.

Source: Maranjyan and Richtárik, "Ringleader ASGD" (arXiv 2509.22860).
Departures: as of ``async-sgd``. A step is the n-th part of a round of B samples.
"""

from __future__ import annotations

from typing import ClassVar

from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.served import Answered, Gradient, add, over


class Table:
    """Sums of gradients by node, and of how many they are."""

    def __init__(self) -> None:
        self.sums: dict[int, Gradient] = {}
        self.counts: dict[int, int] = {}

    def enter(self, rank: int, gradient: Gradient) -> None:
        self.sums[rank] = add(self.sums.get(rank), gradient, 1.0)
        self.counts[rank] = self.counts.get(rank, 0) + 1

    def mean(self) -> Gradient:
        """Of the nodes' means."""
        found: Gradient | None = None
        for rank, sums in sorted(self.sums.items()):
            found = add(found, over(sums, self.counts[rank]), 1 / len(self.sums))
        assert found is not None
        return found


class Ringleader(Answered):
    """One node of Ringleader ASGD. See the module."""

    name: ClassVar[str] = "ringleader"

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._table, self._next = Table(), Table()
        self._had_turn: set[int] = set()
        """Empty in phase 1."""

    def _arrived(self, rank: int, version: int, samples: int, gradient: Gradient) -> None:
        n = self.config.topology.nodes
        if rank in self._had_turn:
            self._next.enter(rank, gradient)
            return
        self._table.enter(rank, gradient)
        if len(self._table.counts) < n:
            return
        self._had_turn.add(rank)
        self._update(self._table.mean(), self.config.global_batch / n)
        if len(self._had_turn) == n:
            self._table, self._next, self._had_turn = self._next, Table(), set()
