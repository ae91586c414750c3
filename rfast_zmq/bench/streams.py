"""A model of many buckets from one process to another, again and again, three ways. Each way is a pair of jobs.

Whoever receives says how long the models took from the moment the first (which warms up memory and connection) was
there to the last coordinate of the last; both say how much CPU they took for those, all threads together.

- *ours*: what a node has, an :class:`~rfast_zmq.node.exchange.Exchange` over an ``rfast-tree`` core, codec, slots,
  outlet and inlet, at pace 0. The core is a real one, but each bucket is news again as soon as it was said.
- *zmq*: bare pyzmq. One frame a bucket, PUSH to PULL, no copy on sending, received into standing buffers.
- *gloo*: ``torch.distributed`` send and receive of the whole model, into a standing tensor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import zmq
from torch import Tensor

from rfast_zmq.algorithms import RFastTree
from rfast_zmq.bench.crew import told
from rfast_zmq.conditions import Faults
from rfast_zmq.core.events import Action, Edge, Event, GradientReady, Graph, Received, Send, Started, Transmit
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.errors import Refused
from rfast_zmq.launch.process import run_loop
from rfast_zmq.node.exchange import Exchange
from rfast_zmq.task.layout import Layout
from rfast_zmq.topology import build
from rfast_zmq.transport import Addresses
from rfast_zmq.wire import Codec
from rfast_zmq.wire.memory import bytes_of

BARE_QUEUE = 16
"""High-water marks of bare pyzmq: with few it waits for its thread after each, with many it needs much memory."""
IDLE_S = 3600.0
"""No edge repeats itself for so long."""
CONNECTED_S = 30.0


@dataclass(frozen=True)
class Stream:
    """What is sent.

    Attributes:
        addresses: of the pair; of the bare kinds only that of node 1's W.
        layout: how the model is cut.
        models: how many are counted; one more comes before them.
    """

    addresses: Addresses
    layout: Layout
    models: int

    @property
    def buckets(self) -> int:
        """Messages of one model."""
        return len(self.layout.buckets)

    @property
    def megabytes(self) -> float:
        """Of all the models that are counted (10⁶ bytes)."""
        return self.layout.total * self.layout.dtype.itemsize * self.models / 1e6


class Clock:
    """Wall time and CPU from the end of the warming up to the last message."""

    def __init__(self, warm: int, counted: int) -> None:
        self._warm, self._last, self.count = warm, warm + counted, 0
        self._began_s = self._cpu0_s = self.wall_s = self.cpu_s = 0.0

    def tick(self) -> bool:
        """One more message; True if it was the last."""
        self.count += 1
        if self.count == self._warm:
            self._began_s, self._cpu0_s = time.perf_counter(), time.process_time()
        elif self.count == self._last:
            self.wall_s, self.cpu_s = time.perf_counter() - self._began_s, time.process_time() - self._cpu0_s
            return True
        return False

    def found(self) -> dict[str, float]:
        """As a job gives it."""
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s}


def some_model(layout: Layout) -> tuple[Tensor, ...]:
    """A model of that layout, per bucket."""
    return layout.split(torch.randn(layout.total, generator=torch.Generator().manual_seed(0)))


# ------------------------------------------------------------------------------------------------ ours


class Ceaseless(RFastTree):
    """A node of ``rfast-tree`` that, having said a bucket, has it to say again.

    Args:
        config: of the node.
        graph: on the edges of which graph it does so.
        times: how often each bucket is said on each edge.
    """

    def __init__(self, config: NodeConfig, graph: Graph, times: int) -> None:
        super().__init__(config)
        self._graph = graph
        self._to_say = {(e, b): times for e in self.out_edges if e.graph == graph for b in range(self.buckets)}

    def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
        actions = super()._link(edge, bucket, now)
        if (edge, bucket) in self._to_say and any(isinstance(action, Transmit) for action in actions):
            self._to_say[edge, bucket] -= 1
            if self._to_say[edge, bucket]:
                actions.append(Send(edge, bucket))
        return actions


class Station:
    """Half a node: a core and its exchange, on the running loop, without gradients and without reports to a watcher."""

    def __init__(self, core: RFastTree, heard: Callable[[Event], None] = lambda event: None) -> None:
        self.core, self._heard = core, heard
        self._loop = asyncio.get_running_loop()
        layout = core.config.layout
        codec = Codec(
            run="bench",
            layout=layout.hash,
            sizes=layout.sizes,
            dtype=layout.dtype,
            in_edges=core.in_edges,
            numbers={"W": core.numbers("W"), "A": core.numbers("A")},
        )
        self.failure: asyncio.Future[None] = self._loop.create_future()
        self.exchange = Exchange(
            core,
            codec,
            {edge: Faults().link(*edge) for edge in core.in_edges},
            now=self._loop.time,
            tell=self.tell,
            carry_out=self._carry_out,
            refused=self._refused,
            failed=self._failed,
        )

    def tell(self, event: Event) -> None:
        """Hand the core an event, and carry out what it answers."""
        self._carry_out(self.core.handle(event))
        self._heard(event)

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.exchange.mark(action)
        self.exchange.flush()

    def _refused(self, refused: Refused, graph: Graph) -> None:
        self._failed(refused)

    def _failed(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)

    async def run(self, addresses: Addresses, until: asyncio.Future[Any], events: Iterable[Event] = ()) -> None:
        """Open the sockets, tell the core of ``events``, go on until then, close the sockets.

        Raises:
            BaseException: whatever went wrong in a turn of the loop.
        """
        context: zmq.Context[Any] = zmq.Context(io_threads=1)
        tasks: list[asyncio.Task[None]] = []
        try:
            self.exchange.open(context, addresses, self.core.rank, str(self.core.rank))
            outlets = self.exchange.outlets.values()
            tasks += [self._loop.create_task(outlet.watch()) for outlet in outlets]
            connected = asyncio.gather(*(outlet.connected.wait() for outlet in outlets))
            await asyncio.wait_for(connected, CONNECTED_S)
            tasks += [self._loop.create_task(work) for work in self.exchange.coroutines()]
            for event in (Started(self._loop.time()), *events):
                self.tell(event)
            done, _ = await asyncio.wait({until, self.failure, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.exchange.close()
            context.term()


def pair_config(rank: int, stream: Stream) -> NodeConfig:
    """Of a node of the pair: 0 is the root, 1 its child."""
    return NodeConfig(
        rank=rank,
        topology=build("line", 2, 0),
        layout=stream.layout,
        initial=some_model(stream.layout) if rank == 0 else None,
        pace_s=0.0,
        resend_s=IDLE_S,
    )


def send_ours(pipe: Connection, stream: Stream, graph: Graph) -> dict[str, float]:
    """The root hands its model down (W), or its child tells it its gradient (A); a word through the pipe ends it."""
    clock = Clock(stream.buckets, stream.buckets * stream.models)

    class Sender(Ceaseless):
        def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
            actions = super()._link(edge, bucket, now)
            if edge.graph == graph:
                clock.tick()
            return actions

    async def main() -> None:
        station = Station(Sender(pair_config(0 if graph == "W" else 1, stream), graph, 1 + stream.models))
        with told(pipe, asyncio.get_running_loop()) as end:
            await station.run(stream.addresses, end, () if graph == "W" else (_gradient(stream),))

    run_loop(main())
    return clock.found()


def receive_ours(pipe: Connection, stream: Stream, graph: Graph) -> dict[str, float]:
    """Its child takes the model up (W), or the root takes the gradient into the mean of what it has heard (A)."""
    clock = Clock(stream.buckets, stream.buckets * stream.models)

    async def main() -> None:
        all_there: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def heard(event: Event) -> None:
            if isinstance(event, Received) and event.message.edge.graph == graph and clock.tick():
                all_there.set_result(None)

        core = RFastTree(pair_config(1 if graph == "W" else 0, stream))
        await Station(core, heard).run(stream.addresses, all_there)

    run_loop(main())
    return clock.found()


def _gradient(stream: Stream) -> GradientReady:
    rounds = (0.0,) * stream.buckets
    return GradientReady(0.0, some_model(stream.layout), 1, 0.0, rounds, seconds=1.0, finite=True)


# ------------------------------------------------------------------------------------------------ bare pyzmq


def send_zmq(pipe: Connection, stream: Stream) -> dict[str, float]:
    """One frame a bucket, of the tensor's own memory."""
    clock = Clock(stream.buckets, stream.buckets * stream.models)
    views = [bytes_of(bucket) for bucket in some_model(stream.layout)]
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.SNDHWM, BARE_QUEUE)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(stream.addresses.pull[1])
        for _ in range(1 + stream.models):
            for view in views:
                socket.send(view, copy=False)
                clock.tick()
        pipe.recv()
    return clock.found()


def receive_zmq(pipe: Connection, stream: Stream) -> dict[str, float]:
    """Each into its place of a standing model."""
    clock = Clock(stream.buckets, stream.buckets * stream.models)
    views = [bytes_of(bucket) for bucket in some_model(stream.layout)]
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.setsockopt(zmq.RCVHWM, BARE_QUEUE)
        socket.bind(stream.addresses.pull[1])
        for _ in range(1 + stream.models):
            for view in views:
                _receive_into(socket, view)
                clock.tick()
    return clock.found()


def _receive_into(socket: zmq.Socket[bytes], view: memoryview) -> None:
    if hasattr(socket, "recv_into"):  # pyzmq 26.4
        socket.recv_into(view)
    else:
        view[:] = socket.recv(copy=False).buffer


# ------------------------------------------------------------------------------------------------ gloo


def join_gloo(pipe: Connection, rank: int, store: str) -> None:
    """The process group of the pair, through a file that both see."""
    import os

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


def send_gloo(pipe: Connection, stream: Stream) -> dict[str, float]:
    """The whole model at once."""
    clock = Clock(1, stream.models)
    model = stream.layout.join(some_model(stream.layout))
    for _ in range(1 + stream.models):
        torch.distributed.send(model, 1)
        clock.tick()
    pipe.recv()
    return clock.found()


def receive_gloo(pipe: Connection, stream: Stream) -> dict[str, float]:
    """Into a standing one."""
    clock = Clock(1, stream.models)
    model = torch.zeros(stream.layout.total)
    for _ in range(1 + stream.models):
        torch.distributed.recv(model, 0)
        clock.tick()
    return clock.found()
