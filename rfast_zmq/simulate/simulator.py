"""Virtual time: one heap of events drives the same core, codec and task as the real node. No wall clock.

The same settings and seed give the same bytes of trace and result, in any process and under any load: every draw is
counter-based, ties on the heap go by order of insertion, and nothing iterates over a set or a hash.
"""

from __future__ import annotations

import gc
import heapq
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import inf, nan
from typing import TextIO
from zlib import crc32

import torch
from torch import Tensor

from rfast_zmq.algorithms import Algorithm
from rfast_zmq.assembly import Plan
from rfast_zmq.conditions import Halt, LinkFaults
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
from rfast_zmq.core.slots import Slot, Timing
from rfast_zmq.errors import Refused, UsageError
from rfast_zmq.results import NodePoint, Point, Result
from rfast_zmq.simulate.lines import Lines
from rfast_zmq.task import Worker
from rfast_zmq.wire import Codec

HELD_MOST = 3
"""Messages of an edge and bucket that wait for a node that stands still."""
TICK_S = 0.25
AFTER_ROOT_S = 60.0
"""Below a node that stands still for ever nobody hears that the run has ended; so long they are followed."""
YOUNG_OBJECTS = 20_000
"""So many new objects before the garbage collector looks through the young ones: what waits on the heap is young for
long, and would be looked through again and again."""
PACE_POINTS_S = 0.5
"""Virtual seconds between two points of a node's pace."""


@dataclass
class Simulation:
    """What a simulated run gave.

    Attributes:
        result: as of a real run, times virtual.
        points: the evaluations, oldest first.
        node_points: each node's pace over time.
        model: the plain iterate at the end, per bucket 1-D float32; None if there is none.
        said: (time, line) of what a user would have been told.
        broken_off: it had not ended when it was.
    """

    result: Result
    points: list[Point] = field(default_factory=list)
    node_points: list[NodePoint] = field(default_factory=list)
    model: tuple[Tensor, ...] | None = None
    said: list[tuple[float, str]] = field(default_factory=list)
    broken_off: bool = False


class _Node:
    def __init__(self, plan: Plan, rank: int) -> None:
        self.rank = rank
        self.worker: Worker = plan.worker(rank)
        self.algorithm: Algorithm = plan.node(rank, self.worker, incarnation=1)
        self.codec: Codec = plan.codec(self.algorithm, "simulated")
        self.slots = {edge: Slot(self.algorithm.buckets_along(edge)) for edge in self.algorithm.out_edges}
        self.wake_s = dict.fromkeys(self.algorithm.out_edges, inf)
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
        self.plan, self.latency_s, self._trace, self._progress = plan, latency_s, trace, progress
        self.now = 0.0
        self._lines = Lines(plan.topology.nodes, bytes_per_s)
        self._heap: list[tuple[float, int, _Node | None, Callable[[], None]]] = []
        """(when, which of those then, whose doing it is, what); None: nobody's, it happens in any case."""
        self._order = count()
        self._halts = tuple(halts)
        self.nodes = [_Node(plan, rank) for rank in range(plan.topology.nodes)]
        self.root = self.nodes[plan.topology.root]
        self._present = len(self.nodes)
        """Nodes that have not left."""
        self.out = Simulation(plan.result(simulated=True))
        self._next_evaluation = 0.0
        self._samples = 0
        """That all nodes have computed."""
        self._troubled = False

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
                gone_s = inf
                while self._heap and self._present and self.now <= gone_s + AFTER_ROOT_S:
                    if self._heap[0][0] > until_s:
                        self.now, self.out.broken_off = until_s, True
                        break
                    self.now, _, who, act = heapq.heappop(self._heap)
                    if who is None or self._free_to(who, act):
                        act()
                    gone_s = min(gone_s, self.now) if self.root.gone else inf
                self.now = min(self.now, gone_s)
                self._finish()
        finally:
            torch.set_num_threads(threads)
            gc.set_threshold(*threshold)
        return self.out

    # -------------------------------------------------------------------------------------- the heap

    def _at(self, time_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(time_s, self.now), next(self._order), None, act))

    def _for(self, node: _Node, time_s: float, act: Callable[[], None]) -> None:
        """As :meth:`_at`, for something that ``node`` does itself: not while it stands still, nor once it is gone
        (:meth:`_free_to`, when the time has come)."""
        heapq.heappush(self._heap, (max(time_s, self.now), next(self._order), node, act))

    def _free_to(self, node: _Node, act: Callable[[], None]) -> bool:
        """Whether it can do that now. If it stands still, that is put off until it goes on."""
        until = self._still_until(node)
        if self.now < until < inf and not node.gone:
            self._for(node, until, act)
        return until <= self.now and not node.gone

    def _still_until(self, node: _Node) -> float:
        """Until when it stands still; not after now if it does not."""
        if not self._halts:
            return 0.0
        halts = (h for h in self._halts if h.rank == node.rank and h.at_s <= self.now < h.until_s)
        return max((h.until_s for h in halts), default=0.0)

    # -------------------------------------------------------------------------------------- events and actions

    def _tell(self, node: _Node, event: Event) -> None:
        if self._trace is not None:
            self._write(node, event)
        actions, node.timing = node.algorithm.handle(event), None
        if node is self.root and not node.stopping:
            self._mind_trouble()
        if node is self.root or node.algorithm.judged_by_mean:
            self._evaluate()
        for action in actions:
            self._do(node, action)

    def _do(self, node: _Node, action: Action) -> None:
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
                self._say(f"{self.plan.topology.called(rank)} has been silent for 10 rounds: set aside until it moves")
            case CountsAgain(rank):
                self._say(f"{self.plan.topology.called(rank)} moves: counts again")
            case Stopping():
                node.stopping = True
                self._tick(node)
            case Leave():
                self._leave(node)

    def _compute(self, node: _Node, model: tuple[Tensor, ...], rounds: tuple[float, ...]) -> None:
        settings = self.plan.settings
        node.computing = True
        gradient, loss, samples = node.worker.gradient(model, settings.report)
        seconds = self.plan.speeds.seconds(node.rank, node.samples, samples, settings.share)

        def ready() -> None:
            node.computing = False
            node.samples += samples
            self._samples += samples
            self._pace_point(node)
            if not node.algorithm.gradient_makes_model:
                self._tell(node, ModelWanted(self.now))
            self._tell(node, GradientReady(self.now, gradient, samples, loss, rounds, seconds))

        self._for(node, self.now + seconds, ready)

    def _wake(self, node: _Node, edge: Edge) -> None:
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

    def _speak(self, node: _Node, edge: Edge, due_s: float) -> None:
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

    def _due(self, node: _Node, edge: Edge) -> tuple[float, float, int]:
        """When the edge may speak next, by how much it may be early, and of which bucket."""
        if node.timing is None:
            node.timing = node.algorithm.timing
        return node.slots[edge].turn(node.timing, node.algorithm.not_before(edge))

    def _transmit(self, node: _Node, message: Message) -> None:
        frames = [bytes(frame) for frame in node.codec.encode(message)]
        size = sum(map(len, frames))
        node.bytes += size
        node.messages += 1
        target = self.nodes[message.edge.dst]
        arrives_s = self._lines.carry(message.edge, size, self.now) + self.latency_s
        self._at(arrives_s, partial(self._reach, target, message, frames))

    def _reach(self, node: _Node, message: Message, frames: list[bytes]) -> None:
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

    def _release(self, node: _Node, slot: tuple[Edge, int]) -> None:
        for frames in node.held.pop(slot):
            if not node.gone:
                self._arrive(node, frames)

    def _arrive(self, node: _Node, frames: list[bytes]) -> None:
        try:
            message = node.codec.decode(frames)
        except Refused as refused:
            node.refused[refused.reason] = node.refused.get(refused.reason, 0) + 1
            return
        for delivered in node.faults[message.edge].apply(message):
            if not node.gone:
                self._tell(node, Received(self.now, delivered))

    def _tick(self, node: _Node) -> None:
        if not node.gone:
            self._tell(node, Tick(self.now))
            self._for(node, self.now + TICK_S, lambda: self._tick(node))

    def _leave(self, node: _Node) -> None:
        assert not node.gone, "a node leaves once"
        node.gone = True
        self._present -= 1
        node.worker.hook("on_stop")
        for peer in self.nodes:
            if any(edge.dst == node.rank for edge in peer.algorithm.out_edges):
                self._left(peer, node.rank)

    def _left(self, peer: _Node, rank: int) -> None:
        self._for(peer, self.now + self.latency_s, lambda: self._tell(peer, PeerLeft(self.now, rank)))

    # -------------------------------------------------------------------------------------- what is noted

    def _mind_trouble(self) -> None:
        """A loss somewhere is no longer finite: the run ends."""
        trouble = self.root.algorithm.status().trouble
        if trouble >= 0 and not self._troubled:
            self._troubled = True
            self._say(f"{self.plan.topology.called(trouble)}: its loss or model is not a finite number")
            self._at(self.now, lambda: self._tell(self.root, StopWanted(self.now)))

    def _evaluate(self) -> None:
        if self.root.stopping or (rounds := self._rounds()) < self._next_evaluation:
            return
        self._next_evaluation = rounds + self.plan.settings.evaluate_every
        point = self._score()
        target = self.plan.settings.target
        if target is not None and point is not None and (point.accuracy or 0.0) >= target:
            self._at(self.now, lambda: self._tell(self.root, StopWanted(self.now)))

    def _counted(self) -> int | None:
        """Where the mean of all nodes' models is judged, the samples of all of them as of now. None: what is judged is
        the root's model, and the root knows of how many samples that is."""
        if not self.root.algorithm.judged_by_mean or self.root.stopping:
            return None
        return self._samples

    def _rounds(self) -> float:
        """Progress of the model that is judged."""
        algorithm, counted = self.root.algorithm, self._counted()
        if not algorithm.judged_by_mean:
            return algorithm.rounds
        return (algorithm.status().samples if counted is None else counted) / algorithm.config.global_batch

    def _judged(self) -> tuple[Tensor, ...] | None:
        """The root's model, or the mean of all nodes' where that is what the algorithm is judged by. (Once the run
        closes the root has that mean itself.)"""
        model = self.root.algorithm.export()
        if model is None or not self.root.algorithm.judged_by_mean or self.root.stopping:
            return model
        models = [node.algorithm.export() or model for node in self.nodes]
        return tuple(torch.stack(of_bucket).mean(0) for of_bucket in zip(*models, strict=True))

    def _score(self) -> Point | None:
        model = self._judged()
        if model is None:
            return None
        status, counted = self.root.algorithm.status(), self._counted()
        scores = self.root.worker.evaluate(model)
        self.root.worker.hook("on_evaluate", {"accuracy": nan, "loss": nan, **scores})
        point = Point(
            time_s=self.now,
            samples=status.samples if counted is None else counted,
            rounds=self._rounds(),
            accuracy=scores.pop("accuracy", None),
            loss=scores.pop("loss", None),
            train_loss=status.loss,
            staleness_rounds=status.staleness_rounds,
            bytes_sent=sum(node.bytes for node in self.nodes),
            extra=scores,
        )
        self.out.points.append(point)
        if self._progress is not None:
            self._progress(point)
        return point

    def _pace_point(self, node: _Node) -> None:
        since_s, samples = node.pace_mark
        if self.now - since_s >= PACE_POINTS_S:
            pace = (node.samples - samples) / (self.now - since_s)
            self.out.node_points.append(NodePoint(time_s=self.now, rank=node.rank, samples=node.samples, pace=pace))
            node.pace_mark = (self.now, node.samples)
            node.worker.hook("on_report", node.algorithm.status())

    def _say(self, line: str) -> None:
        self.out.said.append((self.now, line))

    def _finish(self) -> None:
        self.out.model = self.root.algorithm.export()
        stopped_s = self.now
        if self.out.model is not None:
            self._score()
        result, status = self.out.result, self.root.algorithm.status()
        result.settle(self.out.points, self.plan.settings.target)
        if self.out.broken_off and result.target_s == stopped_s:
            result.target_s = result.target_samples = None
        result.samples, result.rounds, result.wall_s = status.samples, self._rounds(), stopped_s
        result.set_aside = list(status.set_aside)
        result.missing = [node.rank for node in self.nodes if not node.gone]
        result.trouble = status.trouble if status.trouble >= 0 else None
        if status.slowest_rank >= 0:
            result.slowest_node = {"rank": status.slowest_rank, "pace": status.slowest_pace}
        for node in self.nodes:
            own = node.algorithm.status()
            result.bytes_sent += node.bytes
            result.messages_sent += node.messages
            result.messages_received += own.accepted + own.stale
            result.messages_stale += own.stale
            for reason, times in node.refused.items():
                result.messages_refused[reason] = result.messages_refused.get(reason, 0) + times
            for link in node.faults.values():
                for name in ("dropped", "duplicated", "reordered"):
                    result.faults[name] = result.faults.get(name, 0) + getattr(link, name)
            result.per_node.append(
                {
                    "rank": node.rank,
                    "gradients": own.gradients,
                    "samples": own.own_samples,
                    "pace": own.pace,
                    "waited_s": own.waited_s,
                }
            )
        if not result.missing and not result.set_aside:
            records = {node.rank: node.algorithm.last_record() for node in self.nodes}
            result.identity_error = self.root.algorithm.identity_error(records, self.root.rank)

    def _write(self, node: _Node, event: Event) -> None:
        """One line of the trace; tensors as the CRC-32 of their bytes."""
        assert self._trace is not None
        line: dict[str, object] = {"t": self.now, "node": node.rank, "event": type(event).__name__}
        match event:
            case Received(_, message):
                line |= {
                    "edge": list(message.edge),
                    "bucket": message.bucket,
                    "stamp": list(message.stamp),
                    "numbers": dict(message.numbers),
                    "payload": _digest((message.payload,)),
                }
            case LinkReady(_, edge, bucket):
                line |= {"edge": list(edge), "bucket": bucket}
            case GradientReady():
                line |= {"samples": event.samples, "loss": event.loss, "gradient": _digest(event.gradient)}
            case PeerLeft(_, rank):
                line["peer"] = rank
        self._trace.write(json.dumps(line) + "\n")


def _digest(tensors: tuple[Tensor, ...]) -> int:
    value = 0
    for t in tensors:
        value = crc32(t.numpy().tobytes(), value)
    return value
