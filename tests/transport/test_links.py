"""Inlets and outlets in process, over Unix sockets and TCP."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from rfast_zmq.core.events import Edge
from rfast_zmq.errors import UsageError
from rfast_zmq.transport import Inlet, Outlet, shareable

EDGE = Edge("W", 0, 1)
MB = 1 << 20
FRAME_MOST = 16 * MB
SOON_S = 10.0
"""For what must happen."""
NEVER_S = 0.4
"""For what must not."""
HANDFUL = 12
"""Messages of 1 MB under way on an edge: one in each queue, those in the I/O threads' hands, the kernel's buffers."""


class Ends:
    """Makes contexts, inlets and outlets, and closes what is left of them."""

    def __init__(self) -> None:
        self._contexts: list[zmq.Context[Any]] = []
        self._ends: list[Inlet | Outlet] = []
        self._watching: list[asyncio.Task[None]] = []

    def context(self) -> zmq.Context[Any]:
        self._contexts.append(zmq.Context(io_threads=1))
        return self._contexts[-1]

    def inlet(self, address: str, *, frame_bytes: int = FRAME_MOST, bucket_bytes: int = MB) -> Inlet:
        """In a context of its own, as in a process of its own."""
        inlet = Inlet(self.context(), "W", address, frame_bytes, bucket_bytes, "node 3, pull endpoint")
        self._ends.append(inlet)
        return inlet

    def outlet(self, address: str, *, bucket_bytes: int = MB) -> Outlet:
        outlet = Outlet(self.context(), EDGE, address, bucket_bytes)
        self._ends.append(outlet)
        self._watching.append(asyncio.get_running_loop().create_task(outlet.watch()))
        return outlet

    async def close(self, end: Inlet | Outlet) -> None:
        """Close one end and see it gone from its address."""
        context = self._contexts[self._ends.index(end)]
        self._contexts.remove(context)
        self._ends.remove(end)
        end.close()
        await terminated(context)

    async def finish(self) -> None:
        for task in self._watching:
            task.cancel()
        for result in await asyncio.gather(*self._watching, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result
        for end in self._ends:
            end.close()
        for context in self._contexts:
            await terminated(context)


async def terminated(context: zmq.Context[Any]) -> None:
    """End a context; fails where a socket was left open, for then it would wait for ever."""
    thread = threading.Thread(target=context.term, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, SOON_S)
    assert not thread.is_alive(), "a socket was left open: the context does not end"


def readers() -> int:
    """File descriptors that the running loop watches."""
    return len(asyncio.get_running_loop()._selector.get_map())  # type: ignore[attr-defined]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    before = readers()
    made = Ends()
    yield made
    await made.finish()
    assert readers() == before, "file descriptors are still watched"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Shorter than tmp_path: a Unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rl-") as name:
        yield Path(name)


def tcp_address(host: str = "127.0.0.1") -> str:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, folder: Path) -> str:
    return f"ipc://{folder}/0.W" if request.param == "ipc" else tcp_address()


async def within(work: Any, seconds: float = SOON_S) -> Any:
    return await asyncio.wait_for(work, seconds)


async def not_yet(work: Any) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work, NEVER_S)


async def until(true: Callable[[], bool], what: str) -> None:
    for _ in range(int(SOON_S / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"never: {what}")


async def sent(outlet: Outlet, frames: list[bytes | memoryview]) -> None:
    while True:
        await within(outlet.writable())
        if outlet.send(frames):
            return


async def received(inlet: Inlet) -> list[memoryview]:
    while (frames := inlet.take()) is None:
        await inlet.readable()
    return [frame.buffer for frame in frames]


async def writable_soon(outlet: Outlet) -> bool:
    try:
        await asyncio.wait_for(outlet.writable(), NEVER_S)
    except TimeoutError:
        return False
    return True


async def fill(outlet: Outlet, size: int, most: int) -> int:
    """Messages of ``size`` bytes that the outlet takes until it takes no more for a while."""
    for taken in range(most):
        if not await writable_soon(outlet):
            return taken
        assert outlet.send([b"number", bytes([taken % 256]) * size])
    return most


# ------------------------------------------------------------------------------------- what arrives


@pytest.mark.parametrize("bucket_bytes", [100, 100_000, 4 * MB], ids=["copied", "copied once", "uncopied"])
async def test_frames_arrive_unchanged_and_in_order(address: str, ends: Ends, bucket_bytes: int) -> None:
    inlet = ends.inlet(address, bucket_bytes=bucket_bytes)
    outlet = ends.outlet(address, bucket_bytes=bucket_bytes)
    messages: list[list[bytes | memoryview]] = [
        [bytes([i]) * 7, b"", memoryview(bytearray([i + 100]) * bucket_bytes)] for i in range(8)
    ]

    async def send_all() -> None:
        for message in messages:
            await sent(outlet, message)

    sending = asyncio.ensure_future(send_all())
    got = [await within(received(inlet)) for _ in messages]
    await sending
    # compared only now: what was received first is still what it was
    assert [[bytes(frame) for frame in message] for message in got] == [[bytes(f) for f in m] for m in messages]


async def test_large_frames_are_received_without_a_copy(address: str, ends: Ends) -> None:
    inlet, outlet = ends.inlet(address), ends.outlet(address)
    await sent(outlet, [b"head", bytes(MB)])
    head, payload = await within(received(inlet))
    assert isinstance(payload, memoryview)
    assert isinstance(payload.obj, zmq.Frame)  # ZeroMQ's own memory
    assert payload.nbytes == MB
    assert bytes(head) == b"head"


def lent(payload: bytearray) -> bool:
    """Does somebody refer to its memory? Then it cannot grow."""
    try:
        payload.append(0)
    except BufferError:
        return True
    payload.pop()
    return False


async def test_large_frames_are_sent_without_a_copy(address: str, ends: Ends) -> None:
    """Nobody reads, so that in the end the outlet takes no more: the message that waits in it is the sender's memory.

    How much goes before that is the kernel's affair, and when it goes the scheduler's.
    """
    size = 8 * MB
    inlet = ends.inlet(address, bucket_bytes=size)
    outlet = ends.outlet(address, bucket_bytes=size)
    payloads: list[bytearray] = []
    for _ in range(40):
        if await writable_soon(outlet):
            payloads.append(bytearray([len(payloads)]) * size)
            assert outlet.send([memoryview(payloads[-1])])
        elif lent(payloads[-1]):
            break
    else:
        pytest.fail(f"of {len(payloads)} messages taken none waits in the sender's memory")
    for number in range(len(payloads)):
        (got,) = await within(received(inlet))
        assert (got.nbytes, got[0], got[-1]) == (size, number, number)
        del got
    await until(lambda: not any(map(lent, payloads)), "the socket lets go of what it has sent")


async def test_small_frames_are_copied_when_they_are_sent(address: str, ends: Ends) -> None:
    ends.inlet(address, bucket_bytes=100_000)
    outlet = ends.outlet(address, bucket_bytes=100_000)
    payload = bytearray(100_000)
    await sent(outlet, [memoryview(payload)])
    assert not lent(payload)


@pytest.mark.parametrize("size", [1000, 100_000, 4 * MB])
async def test_a_shared_frame_goes_to_many_and_is_passed_on(folder: Path, ends: Ends, size: int) -> None:
    addresses = [f"ipc://{folder}/{n}.W" for n in range(3)]
    inlets = [ends.inlet(a, bucket_bytes=size) for a in addresses]
    outlets = [ends.outlet(a, bucket_bytes=size) for a in addresses]
    payload = bytearray(b"y" * size)
    frame = shareable(memoryview(payload))
    for outlet in outlets[:2]:
        await sent(outlet, [b"head", frame])
    del frame
    await within(inlets[0].readable())
    taken = inlets[0].take()
    assert taken is not None
    await sent(outlets[2], [b"next head", taken[1]])
    del taken
    for inlet, head in ((inlets[1], b"head"), (inlets[2], b"next head")):
        assert [bytes(f) for f in await within(received(inlet))] == [head, payload]


async def test_one_inlet_hears_many_outlets(address: str, ends: Ends) -> None:
    inlet = ends.inlet(address, bucket_bytes=100)
    outlets = [ends.outlet(address, bucket_bytes=100) for _ in range(5)]

    async def send_all(number: int, outlet: Outlet) -> None:
        for turn in range(20):
            await sent(outlet, [bytes([number, turn])])

    sending = asyncio.gather(*(send_all(number, outlet) for number, outlet in enumerate(outlets)))
    got = [bytes((await within(received(inlet)))[0]) for _ in range(100)]
    await sending
    for number in range(5):
        assert [message[1] for message in got if message[0] == number] == list(range(20))


async def test_ipv6(ends: Ends) -> None:
    try:
        address = tcp_address("::1")
    except OSError as error:
        pytest.skip(f"no IPv6 loopback address here: {error}")
    inlet, outlet = ends.inlet(address), ends.outlet(address)
    await sent(outlet, [b"six"])
    assert [bytes(frame) for frame in await within(received(inlet))] == [b"six"]


# ------------------------------------------------------------------------------------- when a socket takes a message


async def test_an_outlet_waits_for_a_peer_that_does_not_listen_yet(address: str, ends: Ends) -> None:
    outlet = ends.outlet(address)
    await not_yet(outlet.writable())
    assert not outlet.send([b"too early"])
    assert not outlet.connected.is_set()
    waiting = asyncio.ensure_future(outlet.writable())
    inlet = ends.inlet(address)
    await within(waiting)
    await within(outlet.connected.wait())
    assert not outlet.lost.is_set()
    assert outlet.send([b"now"])
    assert [bytes(frame) for frame in await within(received(inlet))] == [b"now"]


async def test_what_is_under_way_is_bounded_and_flows_again(address: str, ends: Ends) -> None:
    inlet, outlet = ends.inlet(address), ends.outlet(address)
    await within(outlet.connected.wait())
    taken = await fill(outlet, MB, 4 * HANDFUL)
    assert 1 <= taken <= HANDFUL
    assert not outlet.send([b"one more"])
    waiting = asyncio.ensure_future(outlet.writable())
    for number in range(taken):  # none was dropped
        _, payload = await within(received(inlet))
        assert (payload[0], len(payload)) == (number, MB)
    await within(waiting)
    await not_yet(received(inlet))


async def test_a_slow_reader_holds_up_only_its_own_edge(folder: Path, ends: Ends) -> None:
    slow, quick = f"ipc://{folder}/1.W", f"ipc://{folder}/2.W"
    ends.inlet(slow)
    inlet = ends.inlet(quick)
    stuck, outlet = ends.outlet(slow), ends.outlet(quick)
    await within(stuck.connected.wait())
    assert await fill(stuck, MB, 4 * HANDFUL) <= HANDFUL
    for turn in range(30):
        await sent(outlet, [bytes([turn]) * MB])
        (got,) = await within(received(inlet))
        assert got[0] == turn


# ------------------------------------------------------------------------------------- peers that come and go


async def test_a_peer_that_closes_and_comes_back_is_followed(address: str, ends: Ends) -> None:
    inlet, outlet = ends.inlet(address), ends.outlet(address)
    await within(outlet.connected.wait())
    for turn in range(3):
        assert not outlet.lost.is_set()
        await ends.close(inlet)
        await within(outlet.lost.wait())
        assert not outlet.connected.is_set()
        await not_yet(outlet.writable())
        inlet = ends.inlet(address)
        await within(outlet.connected.wait())
        assert not outlet.lost.is_set()
        await sent(outlet, [bytes([turn])])
        assert [bytes(frame) for frame in await within(received(inlet))] == [bytes([turn])]


async def test_a_peer_that_goes_in_the_midst_of_a_message_takes_nothing_else_with_it(address: str, ends: Ends) -> None:
    inlet, outlet = ends.inlet(address), ends.outlet(address)
    await within(outlet.connected.wait())
    await fill(outlet, MB, HANDFUL)
    await ends.close(inlet)
    await within(outlet.lost.wait())
    inlet = ends.inlet(address)
    await sent(outlet, [b"fresh"])
    while len(got := await within(received(inlet))) > 1:
        assert [len(frame) for frame in got] == [6, MB]  # an old one, whole
    assert bytes(got[0]) == b"fresh"


async def test_an_outlet_that_goes_leaves_the_inlet_to_others(address: str, ends: Ends) -> None:
    inlet, first = ends.inlet(address), ends.outlet(address)
    await sent(first, [b"first"])
    await within(received(inlet))
    await ends.close(first)
    second = ends.outlet(address)
    await sent(second, [b"second"])
    assert [bytes(frame) for frame in await within(received(inlet))] == [b"second"]


# ------------------------------------------------------------------------------------- what is kept out


@pytest.mark.parametrize("before", [[], [b"head"]], ids=["alone", "after a good frame"])
async def test_too_large_a_frame_never_arrives_and_others_are_served(
    address: str, ends: Ends, before: list[bytes]
) -> None:
    limit = 100_000
    inlet = ends.inlet(address, frame_bytes=limit, bucket_bytes=limit)
    hostile = ends.context().socket(zmq.PUSH)
    news = hostile.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        hostile.setsockopt(zmq.LINGER, 0)
        hostile.connect(address)
        hostile.send_multipart([*before, bytes(limit + 1)])
        honest = ends.outlet(address, bucket_bytes=limit)
        for number in range(5):
            await sent(honest, [b"head", bytes([number]) * limit])  # just as large as allowed
            got = await within(received(inlet))
            assert [bytes(frame) for frame in got] == [b"head", bytes([number]) * limit]
        assert await asyncio.to_thread(news.poll, SOON_S * 1000), "the sender of too large a frame stays connected"
        await not_yet(received(inlet))
        assert honest.connected.is_set()
    finally:
        hostile.disable_monitor()
        news.close()
        hostile.close()


async def test_bytes_that_are_no_zeromq_do_not_disturb(ends: Ends) -> None:
    address = tcp_address()
    inlet, outlet = ends.inlet(address), ends.outlet(address)
    host, port = address.removeprefix("tcp://").split(":")
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b""):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(noise)
        with suppress(OSError):
            await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    await sent(outlet, [b"still here"])
    assert [bytes(frame) for frame in await within(received(inlet))] == [b"still here"]


async def test_an_address_in_use_is_named(address: str, ends: Ends) -> None:
    ends.inlet(address)
    if address.startswith("ipc://"):
        # ZeroMQ takes a Unix socket over from whoever had it; its folder is private to the run.
        ends.inlet(address)
        return
    context = zmq.Context()
    with pytest.raises(UsageError, match="in use") as caught:
        Inlet(context, "A", address, MB, MB, "node big, push endpoint")
    assert address in str(caught.value)
    assert "node big, push endpoint" in str(caught.value)
    await terminated(context)


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:http",
        "tcp://192.0.2.1:7001",
        "ipc:///no/such/folder/0.W",
        f"ipc:///tmp/{'x' * 120}",
    ],
)
async def test_an_address_that_cannot_be_bound_is_named(bad: str) -> None:
    before, context = readers(), zmq.Context()
    with pytest.raises(UsageError, match="cannot listen") as caught:
        Inlet(context, "W", bad, MB, MB, "node 3, pull endpoint")
    assert bad in str(caught.value)
    assert "node 3, pull endpoint" in str(caught.value)
    await terminated(context)
    assert readers() == before


@pytest.mark.parametrize("bad", ["nonsense", f"ipc:///tmp/{'x' * 120}"])
async def test_an_address_that_cannot_be_sent_to_is_named(bad: str) -> None:
    before, context = readers(), zmq.Context()
    with pytest.raises(UsageError, match="node 1") as caught:
        Outlet(context, EDGE, bad, MB)
    assert bad in str(caught.value)
    await terminated(context)
    assert readers() == before


# ------------------------------------------------------------------------------------- waiting


async def test_a_wait_that_is_given_up_can_be_taken_up_again(address: str, ends: Ends) -> None:
    inlet, outlet = ends.inlet(address), ends.outlet(address)
    for turn in range(3):
        await not_yet(received(inlet))
        await sent(outlet, [bytes([turn])])
        assert [bytes(frame) for frame in await within(received(inlet))] == [bytes([turn])]


async def test_no_signal_is_lost_however_messages_and_waits_fall(address: str, ends: Ends) -> None:
    """ZeroMQ signals once; whoever misses it waits for ever. So: many messages, at odd moments."""
    inlet, outlet = ends.inlet(address, bucket_bytes=100), ends.outlet(address, bucket_bytes=100)
    count = 3000

    async def send_all() -> None:
        for number in range(count):
            await sent(outlet, [number.to_bytes(4, "big")])
            if number % 7 == 0:
                await asyncio.sleep(0)
            if number % 501 == 0:
                await asyncio.sleep(0.01)

    sending = asyncio.ensure_future(send_all())
    for number in range(count):
        (frame,) = await within(received(inlet))
        assert int.from_bytes(frame, "big") == number
        if number % 11 == 0:
            await asyncio.sleep(0)
    await sending


async def test_an_inlet_that_does_not_listen_wakes_nobody_and_loses_nothing(address: str, ends: Ends) -> None:
    inlet, outlet = ends.inlet(address, bucket_bytes=100), ends.outlet(address, bucket_bytes=100)
    await within(outlet.connected.wait())
    for turn in range(3):
        waiting = asyncio.ensure_future(inlet.readable())
        await asyncio.sleep(0)
        inlet.listen(False)
        watched = readers()
        await sent(outlet, [bytes([turn])])
        await not_yet(asyncio.shield(waiting))
        assert readers() == watched
        if turn == 1:  # somebody takes it meanwhile
            assert [frame.bytes for frame in inlet.take() or []] == [bytes([turn])]
            await sent(outlet, [bytes([turn + 100])])
        inlet.listen(True)
        await within(waiting)
        assert [frame.bytes for frame in inlet.take() or []] == [bytes([turn + 100 if turn == 1 else turn])]
    assert inlet.take() is None
