"""When the edges of a node speak, and when its sockets are listened to.

A message's walk: ``Send`` marks the slot of an edge (:meth:`Exchange.mark`) → when the pace allows and the socket takes
it, which is mostly in the same turn of the loop (:meth:`Exchange.flush`), the core is asked for the message
(``LinkReady``) → codec → PUSH … PULL → codec → injected faults → the core is told (``Received``).

What costs a node most is to be woken. So whoever is awake for one thing does all that may be done now: an edge may
speak a little early, a socket is emptied whole. And nobody is woken by what would only be kept:

- reports, until an edge that they feed may speak (:meth:`Algorithm.fed_by_reports`);
- models, at a node that passes none on, while it computes (:attr:`Algorithm.models_can_wait`).

Neither is left waiting where more may have come than the socket holds: what follows would queue up in the kernel and be
read later and later.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from math import ceil, inf
from typing import Any

import zmq
from torch import Tensor

from rfast_zmq.algorithms import Algorithm
from rfast_zmq.conditions import LinkFaults
from rfast_zmq.core.events import Action, Edge, Event, Graph, LinkReady, Message, Received, Send, Transmit
from rfast_zmq.core.slots import EARLY, PATIENT, Slot
from rfast_zmq.errors import Refused
from rfast_zmq.transport import RECEIVED_MOST, REFILLED, Addresses, Inlet, Outlet, shareable
from rfast_zmq.wire import Codec

TURNS, TURN_BYTES = 8, 1 << 20
"""So many messages of one socket, and no more than so many bytes (but one message), are handled before everything else
has had its turn."""
HASTE_S = 1e-3
"""A timer that is set is not set anew for less than this; nor are reports looked for twice within it."""
DEAF_S, ATTENTIVE_S = 0.1, 0.002
"""A leaf that computes listens again after so long, that it may hear of the end; and so long before it will be done,
that it may begin the next gradient at the newest model."""


class Exchange:
    """The sockets of one node, and the slots of its edges.

    Args:
        algorithm: the core; asked for messages, told of those that come.
        codec: of the run.
        faults: what is injected, per edge that ends here.
        now: seconds since the run began.
        tell: hands the core an event and carries out what it answers.
        carry_out: carries out actions that came with a message.
        refused: told of what was not a message of this run.
        failed: told of an error in a turn of the loop that nobody awaits.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        codec: Codec,
        faults: Mapping[Edge, LinkFaults[Message]],
        *,
        now: Callable[[], float],
        tell: Callable[[Event], None],
        carry_out: Callable[[Iterable[Action]], None],
        refused: Callable[[Refused, Graph], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._algorithm, self._codec, self._faults = algorithm, codec, faults
        self._now, self._tell, self._carry_out, self._refused, self._failed = now, tell, carry_out, refused, failed
        self.outlets: dict[Edge, Outlet] = {}
        self.inlets: list[Inlet] = []
        self.bytes_sent = self.messages_sent = 0
        self._closing = False
        self._turns = max(1, min(TURNS, TURN_BYTES // codec.max_payload_bytes))

        edges = algorithm.out_edges
        self._slots = {edge: Slot(algorithm.buckets_along(edge)) for edge in edges}
        self._fresh: dict[Edge, None] = {}
        """Edges with news, or whose time has come."""
        self._flushing = False
        self._spoke: set[Edge] = set()
        """Edges that have said something in this turn of the loop: what one says may be news for another, endlessly."""
        self._due_s = dict.fromkeys(edges, inf)
        """For when the timer of each edge is set."""
        self._timers: dict[Edge, asyncio.TimerHandle] = {}
        self._go_on: dict[Edge, asyncio.Event] = {}
        """Wakes :meth:`sending`."""
        self._kept_s: dict[Edge, float] = {}
        """Since when an edge that may speak is kept by its socket."""
        self._unsent: dict[Edge, tuple[bytes | memoryview | zmq.Frame, ...]] = {}

        passes_on = any(edge.graph == "W" for edge in algorithm.in_edges)
        self._shares = sum(edge.graph == "W" for edge in edges) > (0 if passes_on else 1)
        """Whether a model is said more than once, or passed on."""
        self._shared: dict[int, tuple[Tensor, zmq.Frame]] = {}

        self._fed = algorithm.fed_by_reports()
        self._reports: Inlet | None = None
        """The socket of A, where reports may wait; :attr:`_models` that of W."""
        self._models: Inlet | None = None
        self._reports_can_wait = True
        self._drained_s = -inf
        self._came: dict[Graph, Counter[Edge | None]] = {"W": Counter(), "A": Counter()}
        self._ear: asyncio.TimerHandle | None = None

    # -------------------------------------------------------------------------------------- opened and closed

    def open(self, context: zmq.Context[Any], addresses: Addresses, rank: int, name: str) -> None:
        """Bind and connect; on the running loop.

        Raises:
            UsageError: an address that cannot be bound or connected to.
        """
        self._loop = asyncio.get_running_loop()
        layout = self._algorithm.config.layout
        payload_bytes = self._codec.max_payload_bytes
        names: dict[Graph, str] = {"W": "pull", "A": "push"}
        for graph, what in names.items():
            if any(edge.graph == graph for edge in self._algorithm.in_edges):
                where = f"node {name}, {what} endpoint"
                address = addresses.bound(graph, rank)
                inlet = Inlet(context, graph, address, self._codec.max_frame_bytes, payload_bytes, where)
                self.inlets.append(inlet)
                if len(layout.buckets) > RECEIVED_MOST:
                    continue  # they would not all fit in a socket that nobody reads
                if graph == "A" and self._fed:
                    self._reports = inlet
                elif graph == "W" and self._algorithm.models_can_wait:
                    self._models = inlet
        for edge in self._algorithm.out_edges:
            self.outlets[edge] = Outlet(context, edge, addresses.target(edge), payload_bytes)
            self._go_on[edge] = asyncio.Event()

    def coroutines(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run from the start of the run to its end: one per socket."""
        return [self._receiving(inlet) for inlet in self.inlets] + [self._sending(o) for o in self.outlets.values()]

    def listen(self) -> None:
        """From now on whatever comes is wanted at once: the run closes."""
        self._closing = True
        for inlet in self.inlets:
            inlet.listen(True)

    def close(self) -> None:
        """Close the sockets, once the coroutines have ended; no timer comes back to them."""
        for timer in (*self._timers.values(), self._ear):
            if timer is not None:
                timer.cancel()
        self._reports = self._models = None
        while self.inlets:
            self.inlets.pop().close()
        while self.outlets:
            self.outlets.popitem()[1].close()

    # -------------------------------------------------------------------------------------- what is said

    def mark(self, news: Send) -> None:
        """There is news for an edge; :meth:`flush` follows."""
        self._slots[news.edge].mark(news.bucket, news.paces)
        self._fresh[news.edge] = None

    def flush(self) -> None:
        """Whoever has news and may speak does so, in this very turn of the loop."""
        if self._flushing:
            return
        if not self.outlets and not self.inlets:  # closed
            self._fresh.clear()
            return
        self._flushing = True
        try:
            now = self._now()
            if self._reports is not None and now >= max(self._free_s(1.0 - EARLY), self._drained_s + HASTE_S):
                self._drained_s = now
                self._drain(self._reports)
                self._reports_can_wait = self._few_came("A")
            while self._fresh:
                edge = next(iter(self._fresh))
                del self._fresh[edge]
                if edge in self._spoke:
                    self._go_on[edge].set()
                else:
                    self._speak(edge)
        finally:
            self._flushing = False

    def _free_s(self, paces: float) -> float:
        """When so many paces have passed since one of the edges that the reports feed last spoke."""
        pace_s = self._algorithm.line_pace_s
        return min(self._slots[edge].free(pace_s, paces) for edge in self._fed)

    def _speak(self, edge: Edge) -> None:
        """Say what the edge may say now, one bucket; see that it is woken for what follows."""
        if edge not in self.outlets:  # closed
            return
        now = self._now()
        due_s, early_s, bucket = self._due(edge)
        if due_s - early_s <= now:
            if edge in self._unsent or not self.outlets[edge].ready():
                self._kept_s.setdefault(edge, now)
                self._go_on[edge].set()  # its coroutine goes on when the socket takes messages again
                due_s = inf
            else:
                if not self._spoke:
                    self._loop.call_soon(self._spoke.clear)
                self._spoke.add(edge)
                self._slots[edge].spoke(bucket, max(now, due_s))
                self._say(edge, bucket, now, now - self._kept_s.pop(edge, now))
                due_s, early_s, _ = self._due(edge)
                if due_s - early_s <= now:
                    self._go_on[edge].set()  # the next bucket, after everything else has had its turn
                self._due_s[edge] = inf
        else:
            self._kept_s.pop(edge, None)
        if edge in self._fed and self._reports is not None:
            overdue_s = self._free_s(PATIENT)
            at_once = self._closing or not self._algorithm.early or not self._reports_can_wait
            self._reports.listen(at_once or overdue_s <= now)
            if overdue_s > now:
                due_s = min(due_s, overdue_s)
        if due_s < self._due_s[edge] - HASTE_S:
            self._arm(edge, due_s)

    def _due(self, edge: Edge) -> tuple[float, float, int]:
        """When the edge may speak next, by how much it may be early, and of which bucket."""
        return self._slots[edge].turn(self._algorithm.timing, self._algorithm.not_before(edge))

    def _say(self, edge: Edge, bucket: int, now: float, waited_s: float) -> None:
        """Have the message made, and hand it to the socket."""
        for action in self._algorithm.handle(LinkReady(now, edge, bucket, waited_s)):
            if not isinstance(action, Transmit):
                self._carry_out((action,))
                continue
            header, payload = self._codec.encode(action.message)
            frames = header, self._sharing(action.message, payload)
            if not self.outlets[edge].send(frames):  # the connection has just gone: what was said must not be lost
                self._unsent[edge] = frames
                self._go_on[edge].set()
            self.bytes_sent += len(header) + len(payload)
            self.messages_sent += 1

    def _sharing(self, message: Message, payload: bytes | memoryview) -> bytes | memoryview | zmq.Frame:
        """A model that goes to several children, or came from the parent, is in ZeroMQ's memory once for all."""
        if message.edge.graph == "A" or not self._shares:
            return payload
        model, frame = self._shared.get(message.bucket, (None, None))
        if frame is None or model is not message.payload:
            frame = shareable(memoryview(payload))
            self._shared[message.bucket] = message.payload, frame
        return frame

    def _arm(self, edge: Edge, due_s: float) -> None:
        """See that the edge speaks at ``due_s``."""
        if (timer := self._timers.pop(edge, None)) is not None:
            timer.cancel()
        self._due_s[edge] = due_s
        wait_s = due_s - self._now()
        if wait_s <= 0:
            self._go_on[edge].set()
        elif wait_s < inf:
            wait_s = ceil(wait_s * 1000) / 1000  # uvloop's clock ticks in milliseconds: never wake just before the time
            self._timers[edge] = self._loop.call_later(wait_s, self._time_has_come, edge)

    def _time_has_come(self, edge: Edge) -> None:
        try:
            self._due_s[edge] = inf
            self._fresh[edge] = None
            self.flush()
        except Exception as error:  # nobody awaits a timer
            self._failed(error)

    async def _sending(self, outlet: Outlet) -> None:
        """Goes on when the edge could not speak at once: when its socket takes messages again, or has taken one of
        several that are due. (What may be said at once, :meth:`_speak` says in the turn of the loop that brought it.)
        """
        edge, go_on = outlet.edge, self._go_on[outlet.edge]
        while True:
            await go_on.wait()
            go_on.clear()
            await asyncio.sleep(0)  # many buckets on a fast line must not starve the loop
            if edge not in self.outlets:  # closed
                continue
            await outlet.writable()
            if (frames := self._unsent.get(edge)) is not None:
                if not outlet.send(frames):
                    go_on.set()
                    continue
                del self._unsent[edge]
            self._time_has_come(edge)

    # -------------------------------------------------------------------------------------- what is heard

    async def _receiving(self, inlet: Inlet) -> None:
        while True:
            await inlet.readable()
            self._drain(inlet, self._turns)
            await asyncio.sleep(0)  # a flood on one socket must not starve the loop

    def _drain(self, inlet: Inlet, most: int = TURNS) -> None:
        """Take in what has come, so many messages at most (those of a socket that may be left waiting are few)."""
        for _ in range(most):
            if (frames := inlet.take()) is None:
                return
            try:
                message = self._codec.decode([frame.buffer for frame in frames])
            except Refused as refused:
                self._came[inlet.graph][None] += 1
                self._refused(refused, inlet.graph)
            else:
                self._came[inlet.graph][message.edge] += 1
                if message.edge.graph == "W" and self._shares:
                    self._shared[message.bucket] = message.payload, frames[1]
                for delivered in self._faults[message.edge].apply(message):
                    self._tell(Received(self._now(), delivered))
        inlet.more()

    def _few_came(self, graph: Graph) -> bool:
        """Since this was last asked, has nobody sent so much that some may not have had room in the socket?"""
        came, self._came[graph] = self._came[graph], Counter()
        return max(came.values(), default=0) < REFILLED

    def catch_up(self) -> None:
        """A model is wanted: take in those that were left waiting."""
        if self._models is not None:
            self._drain(self._models)

    def computing(self, least_s: float | None = None) -> None:
        """A gradient is begun: models may wait, where they can, until shortly before it is done.

        Args:
            least_s: it will probably take longer than this (None: not known).
        """
        self.computed()
        if self._models is not None and not self._closing:
            can_wait = self._few_came("W")
            self._models.listen(not can_wait)
            if can_wait:
                deaf_s = DEAF_S if least_s is None or least_s <= 2 * ATTENTIVE_S else min(least_s - ATTENTIVE_S, DEAF_S)
                self._ear = self._loop.call_later(deaf_s, self._models.listen, True)

    def computed(self) -> None:
        """It is done: what :meth:`computing` set going ends."""
        if self._ear is not None:
            self._ear.cancel()
