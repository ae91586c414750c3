"""One PULL socket a graph (bound) and one PUSH socket an edge (connected), on the asyncio loop.

PUSH deals round-robin over its peers, so each edge has a PUSH of its own. PUSH never drops, it refuses to take: so the
message is built only when :meth:`Outlet.writable` says the socket takes it, from the state of that moment. With a
high-water mark of one on each side and bounded kernel buffers, what is under way on an edge stays a few messages.

A PUSH knows when its peer's connection comes and goes; that is how a node learns that a peer has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import zmq
from zmq import Frame
from zmq.utils.monitor import recv_monitor_message

from rfast_zmq.core.events import Edge, Graph
from rfast_zmq.errors import UsageError

COPY_SENT_BELOW_BYTES = 512 * 1024
"""A shorter payload is copied once: cheaper than the book-keeping of one that is not, which wakes another thread."""
RECEIVED_MOST = 3
"""Messages of one peer that wait in a PULL: what came while the node did not listen is read in one go."""
REFILLED = (RECEIVED_MOST + 1) // 2
"""Only once so many were taken does ZeroMQ refill a full socket: whoever took fewer has left none outside."""
UNAWAITED_MOST = 2
"""So many signals in a row that nobody waits for; then it is cheaper to begin to listen anew when somebody does."""
RECONNECT_MS = 100
"""Between two tries to connect, without back-off: a child that already computes must not stay unheard for seconds."""
BUFFER_LEAST_BYTES, BUFFER_MOST_BYTES = 16 * 1024, 1 << 20


def _buffer_bytes(frame_bytes: int) -> int:
    return min(max(frame_bytes, BUFFER_LEAST_BYTES), BUFFER_MOST_BYTES)


def shareable(payload: memoryview) -> Frame:
    """``payload`` as a frame that any number of messages may share: of ZeroMQ's own memory if it is short."""
    return Frame(payload, copy=len(payload) < COPY_SENT_BELOW_BYTES)


class Readiness:
    """Lets one coroutine wait on the running loop until a socket can be read or written.

    ZeroMQ signals on a file descriptor that something *may* have changed, once; whoever is told must ask for the
    socket's events, which takes the signal back. (``zmq.asyncio`` does this too, with a future and two calls into the
    loop for each message; on the path of every relayed bucket that is work for nothing.)

    Args:
        socket: the socket; used by this loop's thread only.
        wanted: ``zmq.POLLIN`` or ``zmq.POLLOUT``.
        listening: whether the loop is woken by the signals; see :meth:`listen`.
        awaited: once signals come while nobody waits (:data:`UNAWAITED_MOST` in a row), they wake the loop no more
            until somebody does.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], wanted: int, *, listening: bool = True, awaited: bool = False
    ) -> None:
        self._socket, self._wanted, self._awaited = socket, int(wanted), awaited
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._unawaited = 0
        self._fd = cast(int, socket.getsockopt(zmq.FD))
        self._listening = False
        self.listen(listening)

    def listen(self, listening: bool) -> None:
        """Whether signals wake the loop. Where they do not, :meth:`wait` goes on only once they do again."""
        if listening != self._listening:
            self._listening = listening
            if listening:
                self._loop.add_reader(self._fd, self._signalled)
                self.look()
            else:
                self._loop.remove_reader(self._fd)

    def now(self) -> bool:
        """Is it so now? Takes the signal back."""
        return bool(cast(int, zmq.backend.Socket.get(self._socket, zmq.EVENTS)) & self._wanted)

    async def wait(self) -> None:
        """Until it is so."""
        while not self.now():
            self._unawaited = 0
            if self._awaited:
                self.listen(True)
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None

    def close(self) -> None:
        self.listen(False)

    def look(self) -> None:
        """Have whoever waits look whether it is so: ZeroMQ signals again only once it was seen not to be so."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _signalled(self) -> None:
        if self._waiting is not None:
            self.look()
            return
        self.now()
        self._unawaited += 1
        if self._awaited and self._unawaited >= UNAWAITED_MOST:
            self.listen(False)


class Inlet:
    """The PULL socket of one graph: everything that is sent to this node in it.

    Args:
        context: of the node.
        graph: which graph.
        address: what to bind.
        frame_bytes: the largest frame that is let in (MAXMSGSIZE); a peer that sends a larger one is disconnected.
        bucket_bytes: the size of a payload.
        what: for error messages, e.g. ``"node 3, pull endpoint"``.

    Raises:
        UsageError: the address is in use, or cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        graph: Graph,
        address: str,
        frame_bytes: int,
        bucket_bytes: int,
        what: str,
    ) -> None:
        self.graph = graph
        self._socket = context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.IPV6, int("[" in address))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVED_MOST)
        self._socket.setsockopt(zmq.RCVBUF, _buffer_bytes(bucket_bytes))
        self._socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close()
            if error.errno == zmq.EADDRINUSE:
                raise UsageError(f"{what}: {address} is in use; stop what listens there, or choose another") from None
            raise UsageError(f"{what}: cannot listen on {address}: {error.strerror}") from None
        self._readable = Readiness(self._socket, zmq.POLLIN)

    def listen(self, listening: bool) -> None:
        """Whether a message that comes wakes :meth:`readable` (it does at first), or waits until somebody takes it."""
        self._readable.listen(listening)

    async def readable(self) -> None:
        """Wait until there is a message, and the inlet listens."""
        await self._readable.wait()

    def more(self) -> None:
        """Somebody else took messages and may have left some: have whoever waits for them look."""
        self._readable.look()

    def take(self) -> list[Frame] | None:
        """The frames of the next message, if one is there. They stay valid as long as they are referred to.

        Whoever does not take until there is none says :meth:`more`.
        """
        recv = zmq.backend.Socket.recv  # without what the class above it does for other kinds of sockets
        try:
            frames = [recv(self._socket, zmq.NOBLOCK, copy=False)]
        except zmq.Again:  # which, like a look at the socket's events, takes the signal back
            return None
        while frames[-1].more:  # a message arrives whole
            frames.append(recv(self._socket, copy=False))
        return frames

    def close(self) -> None:
        self._readable.close()
        self._socket.close()


class Outlet:
    """The PUSH socket of one edge.

    Args:
        context: of the node.
        edge: the edge.
        address: where its receiver listens; it need not listen yet.
        bucket_bytes: the size of a payload.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], edge: Edge, address: str, bucket_bytes: int) -> None:
        self.edge = edge
        self.connected = asyncio.Event()
        self.lost = asyncio.Event()
        """The connection was there and is gone (set once, cleared when it is back)."""
        self._copy = bucket_bytes < COPY_SENT_BELOW_BYTES
        self._socket = context.socket(zmq.PUSH)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 1),
            (zmq.IMMEDIATE, 1),
            (zmq.SNDBUF, _buffer_bytes(bucket_bytes)),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.IPV6, int("[" in address)),
        ):
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
            raise UsageError(f"cannot send to node {edge.dst} at {address}: {error.strerror}") from None
        self._news = Readiness(self._monitor, zmq.POLLIN)
        self._writable = Readiness(self._socket, zmq.POLLOUT, listening=False, awaited=True)
        self._takes = False
        """It was seen that the socket takes a message, and none has been sent since."""

    async def watch(self) -> None:
        """Follow the connection, for ever: sets :attr:`connected` and :attr:`lost`."""
        while True:
            await self._news.wait()
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.lost.clear()
                self.connected.set()
            elif event["event"] == zmq.EVENT_DISCONNECTED and self.connected.is_set():
                self.connected.clear()
                self.lost.set()

    def ready(self) -> bool:
        """Does the socket take a message now?"""
        self._takes = self._takes or self._writable.now()
        return self._takes

    async def writable(self) -> None:
        """Wait until the socket takes a message.

        A PUSH signals after every message that its line took. On a line on which one message follows the other that is
        waited for; the first signal that nobody awaits is the last that wakes the loop for nothing.
        """
        if not self.ready():
            await self._writable.wait()
            self._takes = True

    def send(self, frames: Sequence[bytes | memoryview | Frame]) -> bool:
        """Hand a message to the socket; the frames must never be written to afterwards. A :class:`zmq.Frame` (one that
        was received, or :func:`shareable` made) is shared, not copied.

        Returns:
            False if it did not take it after all (its connection has just gone).
        """
        self._takes = False
        try:
            more, send = len(frames), cast(Callable[..., object], zmq.backend.Socket.send)
            for frame in frames:
                more -= 1
                flags = zmq.NOBLOCK | zmq.SNDMORE if more else zmq.NOBLOCK
                send(self._socket, frame, flags, copy=self._copy or len(frame) < COPY_SENT_BELOW_BYTES)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        self._news.close()
        self._writable.close()
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
