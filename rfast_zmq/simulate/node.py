"""A node of a simulated run: what a process of a real run has, without its clock and sockets."""

from __future__ import annotations

from collections import deque
from math import inf

from rfast_zmq.algorithms import Algorithm
from rfast_zmq.assembly import Plan
from rfast_zmq.conditions import LinkFaults
from rfast_zmq.core.events import Edge, Message
from rfast_zmq.core.slots import Slot, Timing
from rfast_zmq.task import Worker
from rfast_zmq.wire import Codec


class SimulatedNode:
    """Its core, worker, codec and slots, and how it stands; the simulator drives it.

    Args:
        plan: the run.
        rank: which of its nodes.

    Attributes:
        computing, stopping, gone: a gradient is under way; it has heard that the run ends; it has left.
        samples: that it has had gradients of.
        bytes, messages: that it has sent.
        refused: messages that its codec did not take, by reason.
    """

    def __init__(self, plan: Plan, rank: int) -> None:
        self.rank = rank
        self.worker: Worker = plan.worker(rank)
        self.algorithm: Algorithm = plan.node(rank, self.worker, incarnation=1)
        self.codec: Codec = plan.codec(self.algorithm, "simulated")
        self.slots = {edge: Slot(self.algorithm.buckets_along(edge)) for edge in self.algorithm.out_edges}
        self.wake_s = dict.fromkeys(self.algorithm.out_edges, inf)
        """When each of its edges is to be looked at next."""
        self.timing: Timing | None = None
        """Of its algorithm, while that is told of nothing new."""
        self.kept_s: dict[Edge, float] = {}
        """Since when an edge that may speak is kept by its line."""
        self.faults: dict[Edge, LinkFaults[Message]] = {
            e: plan.faults.link(e.graph, e.src, e.dst) for e in self.algorithm.in_edges
        }
        self.held: dict[tuple[Edge, int], deque[list[bytes]]] = {}
        """What reached it while it stands still."""
        self.computing = self.gone = self.stopping = False
        self.samples = 0
        self.bytes = self.messages = 0
        self.refused: dict[str, int] = {}
        self.pace_mark = (0.0, 0)
        """Virtual seconds and its samples at the last point of its pace."""
