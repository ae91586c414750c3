"""What every algorithm on a pair of graphs shares: stamps, the census, closing. The mathematics is left to subclasses.

A subclass implements five methods (``_models``, ``_gradient``, ``_received``, ``_payload``, ``_ready``) and never sees
a stamp: :meth:`Skeleton.handle` drops whatever is not newer (I3, I4) before the mathematics hears of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf

from torch import Tensor

from rfast_zmq.core.control import COUNT_NUMBERS, Closing, Count, Phase, bounded, merge, patience_s
from rfast_zmq.core.events import (
    NEVER,
    Action,
    Edge,
    Event,
    GradientReady,
    Graph,
    Leave,
    LinkReady,
    Message,
    ModelWanted,
    Number,
    PeerLeft,
    Ready,
    Received,
    Send,
    Stamp,
    Started,
    Stopping,
    StopWanted,
    Tick,
    Transmit,
)
from rfast_zmq.core.interface import Algorithm, NodeConfig, Status
from rfast_zmq.core.lines import LineMeter
from rfast_zmq.core.packing import PACKINGS, Packer, packed_bytes
from rfast_zmq.task.finite import all_finite
from rfast_zmq.topology import Tree

SCALE_LEAST = 1e-12
"""The identity's error is told relative to the largest gradient, or to this where an optimum leaves none."""
CLOSING_PACE_S = 1.0
"""While a run closes, an edge with news need not wait for longer."""
RESEND_LEAST_S = 0.02
"""While a run closes, idle edges repeat themselves at most this often."""


class Skeleton(Algorithm):
    """Common state of a node: see the module.

    Args:
        config: what the node is told.
        out_edges: the edges it sends along.
        in_edges: the edges that end here.
    """

    def __init__(self, config: NodeConfig, out_edges: Iterable[Edge], in_edges: Iterable[Edge]) -> None:
        self.config = config
        self.out_edges, self.in_edges = tuple(out_edges), tuple(in_edges)
        self.rank, self.buckets = config.rank, len(config.layout.buckets)
        pull, push = config.topology.pull_tree, config.topology.push_tree
        self.is_root = config.topology.root == self.rank
        self._pull_parent = pull.parent[self.rank]
        self._counted = push.children[self.rank]
        """Whose census enters this node's."""
        below = [self.push_tree(b).children[self.rank] for b in range(self.buckets)]
        self._closing = Closing(below, pull.children[self.rank], root=self.is_root)
        self._carriers: dict[Graph, list[list[Edge]]] = {"W": [], "A": []}
        """Per bucket, the out-edges along which it travels."""
        along = {edge: set(self.buckets_along(edge)) for edge in self.out_edges}
        for graph, of_bucket in self._carriers.items():
            of_bucket += [[e for e in along if e.graph == graph and b in along[e]] for b in range(self.buckets)]
        self._payload_bytes = [
            packed_bytes(bucket.size, packing) if packing != PACKINGS[0] else bucket.size * config.layout.dtype.itemsize
            for bucket, packing in zip(config.layout.buckets, config.packings, strict=True)
        ]
        cycle_bytes = sum(self._payload_bytes[b] for of_edge in along.values() for b in of_edge)
        self._line = LineMeter(cycle_bytes, len(along))
        self._counter = dict.fromkeys(self.out_edges, 0)
        self._accepted_stamp: dict[tuple[Edge, int], Stamp] = {}
        self._count_stamp: dict[int, Stamp] = {}
        self._counts: dict[int, Count] = {}
        self._own = Count()
        self._gradients = self._accepted = self._stale = 0
        self._pace = 0.0
        self._packer = None if config.packing == PACKINGS[0] else Packer(config.packing)
        self._packed = [packing != PACKINGS[0] for packing in config.packings]
        self._left = False
        self._started_s = self._last_s = 0.0
        self.round_s = 0.0
        """Seconds of a round as the root measured them (0.0: unknown)."""
        self.root_pace_s = 0.0
        """C as the root hands it out."""
        self.root_rounds = 0.0
        """Rounds of progress at the root, as of the newest header."""

    def pull_tree(self, bucket: int) -> Tree:
        """The tree down which the models of ``bucket`` go."""
        trees = self.config.topology.pull_trees
        return trees[bucket % len(trees)]

    def push_tree(self, bucket: int) -> Tree:
        """The tree up which the gradient mass of ``bucket`` goes."""
        trees = self.config.topology.push_trees
        return trees[bucket % len(trees)]

    # ------------------------------------------------------------------------------------ for the subclass

    @abstractmethod
    def _models(self, now: float) -> list[Action]:
        """:class:`RunGradient` with the model to compute at now (nothing if there is none yet), and what follows."""

    @abstractmethod
    def _gradient(self, event: GradientReady) -> list[Action]:
        """A finite gradient is ready."""

    @abstractmethod
    def _received(self, message: Message, now: float) -> list[Action]:
        """A newer message arrived."""

    @abstractmethod
    def _payload(self, edge: Edge, bucket: int, now: float) -> tuple[Tensor, dict[str, Number]] | None:
        """What to say on ``edge``; None: nothing yet."""

    @abstractmethod
    def _ready(self) -> bool:
        """Is there a model to compute at?"""

    def _set_aside(self) -> tuple[int, ...]:
        """Children this node has set aside."""
        return ()

    def _loss_of(self, count: Count, rank: int) -> Count:
        """A child's count as it enters the census (one set aside keeps its samples, and says nothing of the loss)."""
        if rank in self._set_aside():
            return Count(samples=count.samples, set_aside=count.set_aside, trouble=count.trouble)
        return count

    def _stop(self, now: float) -> None:
        """The run is about to close: whatever was put off is done now."""

    def _started(self, now: float) -> list[Action]:
        """The node begins."""
        return [Ready()] if self._ready() else []

    # ------------------------------------------------------------------------------------ the interface

    @classmethod
    def numbers(cls, graph: Graph) -> Mapping[str, type]:
        if graph == "W":
            return {"phase": int, "rounds": float, "round_s": float, "pace_s": float}
        return {"final": bool, **COUNT_NUMBERS}

    def handle(self, event: Event) -> list[Action]:
        self._last_s = event.now
        match event:
            case Received(now, message):
                actions = self._receive(message, now)
            case LinkReady(now, edge, bucket, waited_s):
                actions = self._link(edge, bucket, now)
                if any(isinstance(action, Transmit) for action in actions):
                    self._line.spoke(edge, self._payload_bytes[bucket], waited_s, now)
                return actions
            case ModelWanted(now):
                return self._models(now) if self._closing.running else []
            case GradientReady():
                actions = self._take_gradient(event)
            case Started(now):
                self._started_s = now
                actions = self._started(now)
            case PeerLeft(now, rank):
                self._closing.left(rank)
                actions = []
            case StopWanted(now):
                actions = self._enter(Phase.STOP, now) if self.is_root else []
            case Tick(now):
                actions = []
        return actions + self._done(event.now) + self._close(event.now)

    def status(self) -> Status:
        total = self.census()
        return Status(
            rounds=self.root_rounds,
            samples=total.samples,
            own_samples=self._own.samples,
            gradients=self._gradients,
            loss=total.loss,
            staleness_rounds=self._staleness(),
            pace=self._pace,
            slowest_rank=total.slowest_rank,
            slowest_pace=total.slowest_pace,
            set_aside=total.set_aside,
            trouble=total.trouble,
            stopping=not self._closing.running,
            stale=self._stale,
            accepted=self._accepted,
        )

    @property
    def rounds(self) -> float:
        return self.root_rounds

    @property
    def resend_s(self) -> float:
        if not self._closing.running:
            return max(2 * self.pace_s, RESEND_LEAST_S)
        return self._idle_s() if self.config.resend_s is None else self.config.resend_s

    @property
    def pace_s(self) -> float:
        pace_s = self.root_pace_s if self.config.pace_s is None else self.config.pace_s
        return pace_s if self._closing.running else min(pace_s, CLOSING_PACE_S)

    @property
    def waited_s(self) -> float:
        """Seconds from the start to the last event."""
        return self._last_s - self._started_s

    def census(self) -> Count:
        """What is known of this node's subtree (at the root: of the run)."""
        counts = [replace(self._own, cycle_s=self._line.cycle_s)]
        counts += [self._loss_of(count, rank) for rank, count in self._counts.items()]
        return merge(counts, self._set_aside())

    def _staleness(self) -> float:
        return 0.0

    def _idle_s(self) -> float:
        """The algorithm's own choice of τ_idle."""
        return inf

    # ------------------------------------------------------------------------------------ events

    def _take_gradient(self, event: GradientReady) -> list[Action]:
        if not self._closing.running:
            return []
        finite = event.finite
        if finite is None:
            finite = all_finite(event.loss or 0.0, event.gradient)
        if not finite:
            return [*self._in_trouble(), Ready()]
        if event.first + len(event.gradient) < self.buckets:
            return self._gradient(event)
        self._gradients += event.steps
        if event.seconds > 0:
            pace = event.samples / event.seconds
            self._pace = pace if not self._pace else self._pace + 0.1 * (pace - self._pace)
        weight = self.config.weight
        self._own = Count(
            samples=self._own.samples + event.samples,
            weight=0.0 if event.loss is None else weight,
            weighted_loss=weight * (event.loss or 0.0),
            slowest_pace=self._pace or inf,
            slowest_rank=self.rank if self._pace else -1,
            trouble=self._own.trouble,
        )
        actions = self._gradient(event)
        if self._ready():
            actions.append(Ready())
        return actions

    def _in_trouble(self) -> list[Action]:
        """This node's numbers are no longer finite: keep them out, and let the root know."""
        self._own = Count(
            samples=self._own.samples,
            slowest_pace=self._own.slowest_pace,
            slowest_rank=self._own.slowest_rank,
            trouble=self.rank,
        )
        return self._mark("A")

    def _receive(self, message: Message, now: float) -> list[Action]:
        edge, slot = message.edge, (message.edge, message.bucket)
        if message.stamp <= self._accepted_stamp.get(slot, NEVER):
            self._stale += 1
            return []
        self._accepted_stamp[slot] = message.stamp
        self._accepted += 1
        if edge.graph == "W" and message.packed is not None and self._packer is not None:
            self._packer.came(message.bucket, message.payload, message.packed)
        actions: list[Action] = []
        numbers = message.numbers
        if edge.graph == "W":
            self.root_rounds = max(self.root_rounds, bounded(numbers["rounds"]))
            if edge.src == self._pull_parent:
                self._closing.heard_parent(now)
                self.round_s, self.root_pace_s = bounded(numbers["round_s"]), bounded(numbers["pace_s"])
            phase = min(int(numbers["phase"]), Phase.LEAVE)  # type: ignore[arg-type]
            if phase > self._closing.phase:
                actions += self._enter(Phase(phase), now)
        elif edge.src in self.push_tree(message.bucket).children[self.rank]:
            if edge.src in self._counted and message.stamp > self._count_stamp.get(edge.src, NEVER):
                self._count_stamp[edge.src] = message.stamp
                before = self._counts.get(edge.src, Count()).trouble
                self._counts[edge.src] = Count.read(numbers, self.config.topology.nodes)
                if self._counts[edge.src].trouble != before:
                    actions += self._mark("A")
            self._closing.heard(edge.src, message.bucket, bool(numbers["final"]), now)
        return actions + self._received(message, now)

    def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
        said = self._payload(edge, bucket, now)
        if said is None:
            return []
        payload, numbers = said
        if edge.graph == "W":
            numbers |= {
                "phase": int(self._closing.phase),
                "rounds": self.root_rounds,
                "round_s": self.round_s,
                "pace_s": self.root_pace_s,
            }
        else:
            final = edge.dst == self.push_tree(bucket).parent[self.rank] and self._final(bucket, now)
            numbers |= {"final": final, **self.census().numbers()}
        self._counter[edge] += 1
        stamp = Stamp(self.config.incarnation, self._counter[edge])
        packed = None
        if self._packer is not None and self._packed[bucket]:  # a model is the same for all, a report the parent's own
            packed, payload = self._packer.say(bucket if edge.graph == "W" else (edge, bucket), payload)
        return [Transmit(Message(edge, bucket, stamp, payload, numbers, packed))]

    # ------------------------------------------------------------------------------------ closing

    def _enter(self, phase: Phase, now: float) -> list[Action]:
        was_running = self._closing.running
        if was_running:
            self._stop(now)
        if not self._closing.enter(phase, now):
            return []
        return [*([Stopping()] if was_running else []), *self._mark("W"), *self._mark("A")]

    def _done(self, now: float) -> list[Action]:
        """The root ends the run once the samples asked for are done."""
        wanted = self.config.stop_samples
        if not self.is_root or wanted is None or not self._closing.running:
            return []
        return self._enter(Phase.STOP, now) if self._samples_done() >= wanted else []

    def _samples_done(self) -> int:
        """At the root: those that are progress; here all that were computed, as far as the census knows."""
        return self._own.samples + sum(count.samples for count in self._counts.values())

    def _close(self, now: float) -> list[Action]:
        """What follows of itself once the run closes."""
        if self._closing.running or self._left:
            return []
        actions: list[Action] = []
        patience = self._patience_s
        if self.is_root and self._closing.all_final(self._set_aside(), patience, now):
            actions += self._enter(Phase.LEAVE, now)
        if self._closing.may_leave(patience, now, self._set_aside()):
            self._left = True
            actions.append(Leave())
        return actions

    def _final(self, bucket: int, now: float) -> bool:
        return not self._closing.running and self._closing.final(bucket, self._set_aside(), self._patience_s, now)

    @property
    def _patience_s(self) -> float:
        """How long silence is borne while the run closes: a message of a slow line takes its time then, too."""
        pace_s = max(self.pace_s, self.root_pace_s, self._line.cycle_s)
        return patience_s(self.round_s, pace_s, self.config.topology.depth)

    def _mark(
        self, graph: Graph, bucket: int | None = None, *, paces: float = 1.0, but: Edge | None = None
    ) -> list[Action]:
        """There is news for every edge of ``graph`` that starts here (``but``: for all others)."""
        buckets = range(self.buckets) if bucket is None else (bucket,)
        return [Send(edge, b, paces) for b in buckets for edge in self._carriers[graph][b] if edge != but]
