"""Virtual time: one heap of events drives the same core, codec and task as the real node. No wall clock.

The same settings and seed give the same bytes of trace and result, in any process and under any load: every draw is
counter-based, ties on the heap go by order of insertion, and nothing iterates over a set or a hash.
"""

from __future__ import annotations

import gc
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from math import inf
from typing import TextIO

import torch
from torch import Tensor

from rfast_zmq.assembly import Plan
from rfast_zmq.conditions import Halt
from rfast_zmq.core.events import (
    Action,
    CountsAgain,
    Edge,
    Event,
    GradientReady,
    Leave,
    LinkReady,
    Message,
    ModelWanted,
    PeerLeft,
    Ready,
    Received,
    RunGradient,
    Send,
    SetAside,
    Started,
    Stopping,
    StopWanted,
    Tick,
    Transmit,
)
from rfast_zmq.errors import Refused, UsageError
from rfast_zmq.results import Point
from rfast_zmq.simulate.lines import Lines
from rfast_zmq.simulate.node import SimulatedNode
from rfast_zmq.simulate.notes import Notes, Simulation
from rfast_zmq.simulate.trace import traced

HELD_MOST = 3
"""Messages of an edge and bucket that wait for a node that stands still."""
TICK_S = 0.25
AFTER_ROOT_S = 60.0
"""Below a node that stands still for ever nobody hears that the run has ended; so long they are followed."""
YOUNG_OBJECTS = 20_000
"""So many new objects before the garbage collector looks through the young ones: what waits on the heap is young for
long, and would be looked through again and again."""


class Simulator:
    """One run in virtual time.

    Args:
        plan: the run.
        latency_s: virtual seconds that a message is under way.
        bytes_per_s: of each node's outgoing and of its incoming line, which its edges share.
        trace: where every event is written, one JSON object a line; None: nowhere.
        halts: nodes that stand still for a while.
        progress: called after each evaluation.

    Raises:
        UsageError: no emulated compute time, or nothing that ends the run.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        latency_s: float = 0.0,
        bytes_per_s: float = inf,
        trace: TextIO | None = None,
        halts: Sequence[Halt] = (),
        progress: Callable[[Point], None] | None = None,
    ) -> None:
        if not plan.speeds.emulated:
            raise UsageError("--compute none: in virtual time a gradient must take some; try --compute constant:0.1")
        if plan.settings.samples is None:
            raise UsageError("--samples: a simulation needs an end; give the number of samples")
        if not 0 <= latency_s < inf:
            raise UsageError(f"--latency {latency_s}: must be 0 or more seconds")
        if any(h.rank == plan.topology.root and h.until_s == inf for h in halts):
            raise UsageError(f"--halt {plan.topology.root}: the root must go on some time, or the run cannot end")
        self.plan, self.latency_s, self._trace = plan, latency_s, trace
        self.now = 0.0
        self._lines = Lines(plan.topology.nodes, bytes_per_s)
        self._heap: list[tuple[float, int, SimulatedNode | None, Callable[[], None]]] = []
        """(when, which of those then, whose doing it is, what); None: nobody's, it happens in any case."""
        self._order = count()
        self._halts = tuple(halts)
        self.nodes = [SimulatedNode(plan, rank) for rank in range(plan.topology.nodes)]
        self.root = self.nodes[plan.topology.root]
        self._present = len(self.nodes)
        """Nodes that have not left."""
        self._notes = Notes(plan, self.nodes, progress)
        self.out = self._notes.out

    def run(self, until_s: float = inf) -> Simulation:
        """Run to the end: every node has left, or nothing can happen any more.

        Args:
            until_s: break it off at that virtual time, if it has not ended by then; what there is, is scored, but it
                reaches no target by that.
        """
        threads, threshold = torch.get_num_threads(), gc.get_threshold()
        try:
            torch.set_num_threads(1)
            if threshold[0]:  # else nothing is collected at all
                gc.set_threshold(max(YOUNG_OBJECTS, threshold[0]), *threshold[1:])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.plan.settings.seed)
                for node in self.nodes:
                    node.worker.hook("on_start")
                    self._tell(node, Started(0.0))
                gone_s, broken_off = inf, False
                while self._heap and self._present and self.now <= gone_s + AFTER_ROOT_S:
                    if self._heap[0][0] > until_s:
                        self.now, broken_off = until_s, True
                        break
                    self.now, _, who, act = heapq.heappop(self._heap)
                    if who is None or self._free_to(who, act):
                        act()
                    gone_s = min(gone_s, self.now) if self.root.gone else inf
                self.now = min(self.now, gone_s)
                self._notes.finish(self.now, broken_off)
        finally:
            torch.set_num_threads(threads)
            gc.set_threshold(*threshold)
        return self.out

    # -------------------------------------------------------------------------------------- the heap

    def _at(self, time_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(time_s, self.now), next(self._order), None, act))

    def _for(self, node: SimulatedNode, time_s: float, act: Callable[[], None]) -> None:
        """As :meth:`_at`, for something that ``node`` does itself: not while it stands still, nor once it is gone
        (:meth:`_free_to`, when the time has come)."""
        heapq.heappush(self._heap, (max(time_s, self.now), next(self._order), node, act))

    def _free_to(self, node: SimulatedNode, act: Callable[[], None]) -> bool:
        """Whether it can do that now. If it stands still, that is put off until it goes on."""
        until = self._still_until(node)
        if self.now < until < inf and not node.gone:
            self._for(node, until, act)
        return until <= self.now and not node.gone

    def _still_until(self, node: SimulatedNode) -> float:
        """Until when it stands still; not after now if it does not."""
        if not self._halts:
            return 0.0
        halts = (h for h in self._halts if h.rank == node.rank and h.at_s <= self.now < h.until_s)
        return max((h.until_s for h in halts), default=0.0)

    # -------------------------------------------------------------------------------------- events and actions

    def _tell(self, node: SimulatedNode, event: Event) -> None:
        if self._trace is not None:
            self._trace.write(traced(self.now, node.rank, event))
        actions, node.timing = node.algorithm.handle(event), None
        if node is self.root and not node.stopping and self._notes.notice_trouble(self.now):
            self._stop()
        if (node is self.root or node.algorithm.judged_by_mean) and self._notes.evaluate(self.now):
            self._stop()
        for action in actions:
            self._do(node, action)

    def _stop(self) -> None:
        self._at(self.now, lambda: self._tell(self.root, StopWanted(self.now)))

    def _do(self, node: SimulatedNode, action: Action) -> None:
        match action:
            case Send(edge, bucket, paces):
                node.slots[edge].mark(bucket, paces)
                self._wake(node, edge)
            case Ready():
                if not node.computing and not node.stopping:
                    self._tell(node, ModelWanted(self.now))
            case RunGradient(model, rounds):
                self._compute(node, model, rounds)
            case Transmit(message):
                self._transmit(node, message)
            case SetAside(rank):
                called = self.plan.topology.called(rank)
                self._notes.say(self.now, f"{called} has been silent for 10 rounds: set aside until it moves")
            case CountsAgain(rank):
                self._notes.say(self.now, f"{self.plan.topology.called(rank)} moves: counts again")
            case Stopping():
                node.stopping = True
                self._tick(node)
            case Leave():
                self._leave(node)

    def _compute(self, node: SimulatedNode, model: tuple[Tensor, ...], rounds: tuple[float, ...]) -> None:
        settings = self.plan.settings
        node.computing = True
        gradient, loss, samples = node.worker.gradient(model, settings.report)
        seconds = self.plan.speeds.seconds(node.rank, node.samples, samples, settings.share)

        def ready() -> None:
            node.computing = False
            node.samples += samples
            self._notes.computed(node, samples, self.now)
            if not node.algorithm.gradient_makes_model:
                self._tell(node, ModelWanted(self.now))
            self._tell(node, GradientReady(self.now, gradient, samples, loss, rounds, seconds))

        self._for(node, self.now + seconds, ready)

    def _wake(self, node: SimulatedNode, edge: Edge) -> None:
        """See that the edge speaks when its slot is due."""
        due_s, early_s, _ = self._due(node, edge)
        if due_s - early_s <= self.now:
            due_s = self.now
        if due_s < (free_s := self._lines.free_s(edge)):
            node.kept_s.setdefault(edge, due_s)
            due_s = free_s
        else:
            node.kept_s.pop(edge, None)
        if due_s < node.wake_s[edge]:
            node.wake_s[edge] = due_s
            self._for(node, due_s, partial(self._speak, node, edge, due_s))

    def _speak(self, node: SimulatedNode, edge: Edge, due_s: float) -> None:
        if node.wake_s[edge] != due_s:
            return
        node.wake_s[edge] = inf
        if self._lines.busy(node.rank, self.now):  # so no edge of it can
            self._wake(node, edge)
            return
        edges = node.algorithm.out_edges if self._lines.slow else (edge,)
        due = [(*self._due(node, e), e) for e in edges if self._lines.free_s(e) <= self.now]
        ready = [(at_s, bucket, e) for at_s, early_s, bucket, e in due if at_s - early_s <= self.now]
        if ready:  # the line takes one at a time
            at_s, bucket, first = min(ready)
            node.slots[first].spoke(bucket, max(at_s, self.now))
            self._tell(node, LinkReady(self.now, first, bucket, max(self.now - node.kept_s.pop(first, self.now), 0.0)))
        for e in () if node.gone else edges if ready else (edge,):  # of the others nothing has changed
            self._wake(node, e)

    def _due(self, node: SimulatedNode, edge: Edge) -> tuple[float, float, int]:
        """When the edge may speak next, by how much it may be early, and of which bucket."""
        if node.timing is None:
            node.timing = node.algorithm.timing
        return node.slots[edge].turn(node.timing, node.algorithm.not_before(edge))

    def _transmit(self, node: SimulatedNode, message: Message) -> None:
        frames = [bytes(frame) for frame in node.codec.encode(message)]
        size = sum(map(len, frames))
        node.bytes += size
        node.messages += 1
        target = self.nodes[message.edge.dst]
        arrives_s = self._lines.carry(message.edge, size, self.now) + self.latency_s
        self._at(arrives_s, partial(self._reach, target, message, frames))

    def _reach(self, node: SimulatedNode, message: Message, frames: list[bytes]) -> None:
        """A message reaches a node: if that stands still, its socket, which holds no more than a few of each edge and
        bucket (of a line that takes no more the sender would keep the newest)."""
        until = self._still_until(node)
        if until <= self.now:
            if not node.gone:
                self._arrive(node, frames)
            return
        slot = message.edge, message.bucket
        if slot not in node.held:
            node.held[slot] = deque(maxlen=HELD_MOST if node.algorithm.bears_loss else None)
            if until < inf:
                self._at(until, lambda: self._release(node, slot))
        node.held[slot].append(frames)

    def _release(self, node: SimulatedNode, slot: tuple[Edge, int]) -> None:
        for frames in node.held.pop(slot):
            if not node.gone:
                self._arrive(node, frames)

    def _arrive(self, node: SimulatedNode, frames: list[bytes]) -> None:
        try:
            message = node.codec.decode(frames)
        except Refused as refused:
            node.refused[refused.reason] = node.refused.get(refused.reason, 0) + 1
            return
        for delivered in node.faults[message.edge].apply(message):
            if not node.gone:
                self._tell(node, Received(self.now, delivered))

    def _tick(self, node: SimulatedNode) -> None:
        if not node.gone:
            self._tell(node, Tick(self.now))
            self._for(node, self.now + TICK_S, lambda: self._tick(node))

    def _leave(self, node: SimulatedNode) -> None:
        assert not node.gone, "a node leaves once"
        node.gone = True
        self._present -= 1
        node.worker.hook("on_stop")
        for peer in self.nodes:
            if any(edge.dst == node.rank for edge in peer.algorithm.out_edges):
                self._left(peer, node.rank)

    def _left(self, peer: SimulatedNode, rank: int) -> None:
        self._for(peer, self.now + self.latency_s, lambda: self._tell(peer, PeerLeft(self.now, rank)))
