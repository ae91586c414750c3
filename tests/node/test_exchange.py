"""Exchanges without nodes: real sockets, an algorithm that does as it is told, mostly a clock that the test turns."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import zmq
from torch import Tensor

from rfast_zmq.conditions import Faults
from rfast_zmq.core.events import Action, Edge, Event, LinkReady, Message, Received, Send, Stamp, Transmit
from rfast_zmq.core.slots import EARLY, PATIENT, Timing
from rfast_zmq.node import exchange as module
from rfast_zmq.task.layout import Layout
from rfast_zmq.transport import RECEIVED_MOST, REFILLED, Addresses, Outlet, shareable
from rfast_zmq.wire import Codec

MODEL, UP, LEFT, RIGHT = Edge("W", 0, 1), Edge("A", 1, 0), Edge("A", 2, 1), Edge("A", 3, 1)
LONG_S = 1000.0
"""No timer that is set for it goes off in a test: what it is for, only the clock that the test turns brings about."""
SOON_S, NEVER_S = 20.0, 0.4
"""For what must happen, and for what must not."""


class Peer:
    """An exchange and the algorithm that it serves: it says what :attr:`model` holds, and keeps what it is told."""

    pace_s, idle_s, fed, models_can_wait, name, early = 0.0, inf, (), False, "run", EARLY

    def __init__(self, run: Run, rank: int, into: Any, out: Any, buckets: int = 1, size: int = 300, **given: Any):
        self.__dict__.update(given)
        self.in_edges, self.out_edges, self._made = tuple(into), tuple(out), 0
        layout = Layout.vector(buckets * size - buckets // 2, bucket=size)
        self.config = SimpleNamespace(layout=layout)
        self.model = self.new_model()
        self.said: list[LinkReady] = []
        self.heard: list[Message] = []
        self.refused: list[tuple[str, str]] = []
        self.failures: list[BaseException] = []
        self.looks = 0  # how often it was asked when an edge may speak
        self.answer: Callable[[Any], Any] = lambda event: []
        self.not_before: Callable[[Edge], Any] = lambda edge: -inf
        self.fed_by_reports, self.settle = lambda: self.fed, run.settle
        of_run: dict[str, Any] = {"run": self.name, "layout": layout.hash, "sizes": layout.sizes, "dtype": layout.dtype}
        self.codec = Codec(**of_run, in_edges=into, numbers={"W": {}, "A": {}})
        self.exchange = module.Exchange(
            self,  # type: ignore[arg-type]
            self.codec,
            {edge: Faults().link(*edge) for edge in into},
            now=lambda: run.now_s if run.turned else asyncio.get_running_loop().time(),
            tell=lambda event: self.carry_out(self.handle(event)),
            carry_out=self.carry_out,
            refused=lambda refused, graph: self.refused.append((refused.reason, graph)),
            failed=self.failures.append,
        )
        self.exchange.open(run.context, run.addresses, rank, str(rank))
        run.peers.append(self)
        run.tasks += [asyncio.ensure_future(work) for work in self.exchange.coroutines()]

    def new_model(self) -> list[Tensor]:
        odd = torch.tensor([-0.0, 1e-42])  # what only the very bits tell apart
        return [torch.cat([odd, torch.randn(size - 2)]) for size in self.config.layout.sizes]

    @property
    def resend_s(self) -> float:
        self.looks += 1
        return self.idle_s

    @property
    def line_pace_s(self) -> float:
        return self.pace_s

    @property
    def timing(self) -> Timing:
        return Timing(self.line_pace_s, self.resend_s, self.early)

    def buckets_along(self, edge: Edge) -> tuple[int, ...]:
        return tuple(range(len(self.model)))

    def handle(self, event: Event) -> list[Action]:
        if isinstance(event, Received):
            self.heard.append(event.message)
            return [*self.answer(event)]
        assert isinstance(event, LinkReady)
        self.said.append(event)
        self._made += 1
        made = Message(event.edge, event.bucket, Stamp(1, self._made), self.model[event.bucket])
        return [Transmit(made), *self.answer(event)]

    def carry_out(self, actions: Iterable[Any]) -> None:
        for action in actions:
            self.exchange.mark(action)
        self.exchange.flush()

    def news(self, edge: Edge, *buckets: int) -> None:
        self.carry_out(Send(edge, bucket) for bucket in buckets or (0,))

    async def say(self, edge: Edge, bucket: int = 0) -> None:
        """Have the edge, which may speak, hand its message to the socket."""
        await self.settle()
        count = len(self.said) + 1
        self.news(edge, bucket)
        await until(lambda: len(self.said) == count, f"{edge} speaks")

    async def hears(self, count: int) -> list[bytes]:
        await until(lambda: len(self.heard) >= count, f"{count} messages are handed over")
        assert len(self.heard) == count
        return bits(message.payload for message in self.heard)


class Run:
    """Exchanges on the running loop, in one context."""

    def __init__(self, turned: bool = True) -> None:
        self.now_s, self.turned = 0.0, turned
        self.peers: list[Peer] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._trouble: list[Any] = []
        self.context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._folder = tempfile.TemporaryDirectory(prefix="re-")  # short: a Unix socket's path may have 107 bytes
        self.addresses = Addresses.ipc(Path(self._folder.name), 5)
        self.context.setsockopt(zmq.LINGER, 0)
        self.push, self._ping, self._pong = map(self.context.socket, (zmq.PUSH, zmq.PUSH, zmq.PULL))
        self._pong.bind(f"ipc://{self._folder.name}/ping")
        self._ping.connect(f"ipc://{self._folder.name}/ping")

    async def connected(self) -> None:
        outlets = [outlet for peer in self.peers for outlet in peer.exchange.outlets.values()]
        await until(lambda: all(outlet.ready() for outlet in outlets), "all are connected")

    async def settle(self) -> None:
        """All that was sent before has come, for one thread carries all and this after it; whoever listens has it."""
        for _ in range(3):
            self._ping.send(b"")
            assert self._pong.poll(int(SOON_S) * 1000)
            self._pong.recv()
        for _ in range(10):
            await asyncio.sleep(0)

    async def __aenter__(self) -> Run:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self._trouble.append(context))
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self.tasks:
            task.cancel()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        ends: list[Any] = [*(peer.exchange for peer in self.peers), self.push, self._ping, self._pong]
        for end in ends:
            end.close()
        await asyncio.wait_for(asyncio.to_thread(self.context.term), SOON_S)
        self._folder.cleanup()
        failures = [failure for peer in self.peers for failure in peer.failures]
        assert [*failures, *self._trouble, *(e for e in ended if not isinstance(e, asyncio.CancelledError))] == []


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    async with Run() as made:
        yield made


async def until(true: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end_s, f"never: {what}"
        await asyncio.sleep(0.002)


def bits(tensors: Iterable[Tensor]) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in tensors]


async def test_buckets_marked_in_one_turn_are_said_once_each_the_longest_unsent_first(run: Run) -> None:
    sender, receiver = Peer(run, 0, (), [MODEL], 7, pace_s=1.0), Peer(run, 1, [MODEL], (), 7)
    await run.connected()
    order = [3, 0, 6, 2, 5, 1, 4]
    for bucket in order:
        run.now_s += 1.0
        await sender.say(MODEL, bucket)
    await run.settle()
    sender.model = sender.new_model()
    run.now_s = 100.0
    sender.news(MODEL, *range(7))
    assert len(sender.said) == 7 + 1  # in this very turn; and the others of themselves
    heard = await receiver.hears(7 + 7)
    sender.exchange.flush()
    await run.settle()
    assert [ready.bucket for ready in sender.said] == [message.bucket for message in receiver.heard] == 2 * order
    assert heard[7:] == bits(sender.model[bucket] for bucket in order)


async def test_between_two_buckets_everything_else_has_its_turn_however_fast_the_socket_is(run: Run) -> None:
    sender, receiver = Peer(run, 0, (), [MODEL], 7, pace_s=LONG_S), Peer(run, 1, [MODEL], (), 7)
    await run.connected()
    seen: set[int] = set()

    def turn() -> None:
        seen.add(len(sender.said))
        if len(sender.said) < 7:
            asyncio.get_running_loop().call_soon(turn)

    def slowly(edge: Edge) -> float:
        time.sleep(0.01)  # meanwhile the socket has taken the last one, and would take the next
        return -inf

    sender.not_before = slowly
    turn()
    sender.news(MODEL, *range(7))
    await receiver.hears(7)
    assert seen >= set(range(7))


@pytest.mark.parametrize("times", [1, 3])
async def test_a_message_that_is_not_taken_after_all_is_sent_later_once(run: Run, monkeypatch: Any, times: int) -> None:
    sender, receiver = Peer(run, 0, (), [MODEL], 2), Peer(run, 1, [MODEL], (), 2)
    await run.connected()
    outlet, before, asked = sender.exchange.outlets[MODEL], sender.model, list[int]()
    send = outlet.send

    def refuse(frames: Any) -> bool:
        if len(asked) == times:
            return send(frames)
        sender.model = sender.new_model()
        sender.news(MODEL, 1)
        asked.append(len(sender.said))
        return False

    monkeypatch.setattr(outlet, "send", refuse)
    sender.news(MODEL, 0)
    assert await receiver.hears(2) == bits([before[0], sender.model[1]])
    await run.settle()
    assert asked == [1] * times  # whatever news there was meanwhile, nothing else was asked for
    assert [message.bucket for message in receiver.heard] == [0, 1]
    assert sender.exchange.messages_sent == len(sender.said) == 2
    sender.news(MODEL, 0)
    await receiver.hears(3)


@pytest.mark.parametrize("news", ["every millisecond", "as soon as it has spoken", "never again"])
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_an_edge_speaks_at_its_pace_and_its_timer_does_not_spin(kind: str, news: str) -> None:
    loops = pytest.importorskip(kind).new_event_loop
    every_s = 0.0305  # no whole number of milliseconds, in which uvloop's timers are set
    often, idle = news == "every millisecond", news == "never again"

    async def work() -> None:
        async with Run(turned=False) as run:
            sender, receiver = Peer(run, 0, (), [MODEL], pace_s=every_s), Peer(run, 1, [MODEL], ())
            if idle:
                sender.pace_s, sender.idle_s = every_s / 3, every_s
            await run.connected()
            sender.answer = lambda event: [] if often or idle else [Send(MODEL, 0)]
            sender.news(MODEL)
            marks = 1
            for count in (15, 30):
                sender.model = sender.new_model()
                while len(sender.said) < count or (often and marks < 15 * count):
                    if often:
                        sender.news(MODEL)
                        marks += 1
                    await asyncio.sleep(0.001)
            times = [ready.now for ready in sender.said]
            assert sender.looks - marks <= 4 * len(times)
            assert (len(times) - 1 - (0 if idle else EARLY)) * every_s <= times[-1] - times[0] + 1e-6
            await until(lambda: len(receiver.heard) >= len(times), "what is said is heard")
            assert bits([receiver.heard[len(times) - 1].payload]) == bits(sender.model)

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(work())


# ------------------------------------------------------------------------------------- reports that wait


async def family(run: Run, buckets: int = 1, pace_s: float = LONG_S) -> tuple[Peer, Peer, Peer, Peer]:
    """A node that passes on what it is told, and has just spoken; the one above it; and the two that report to it."""
    node, above = Peer(run, 1, [LEFT, RIGHT], [UP], buckets, pace_s=pace_s, fed=(UP,)), Peer(run, 0, [UP], (), buckets)
    left, right = Peer(run, 2, (), [LEFT], buckets), Peer(run, 3, (), [RIGHT], buckets)
    await run.connected()
    for bucket in range(buckets):
        await node.say(UP, bucket)
    node.answer = lambda event: [Send(UP, 0)] if isinstance(event, Received) else []
    return node, above, left, right


async def test_reports_wait_until_the_edge_may_speak_and_are_in_what_it_says(run: Run) -> None:
    node, above, left, right = await family(run, RECEIVED_MOST)

    def take(event: Event) -> list[Send]:
        node.model[0] = torch.stack([message.payload for message in node.heard]).sum(0)
        return [Send(UP, 0)] if isinstance(event, Received) else []

    node.answer = take
    await left.say(LEFT)
    await right.say(RIGHT)
    for part in (0.0, 0.99 * (1.0 - EARLY)):
        run.now_s = part * LONG_S
        node.exchange.flush()
        await run.settle()
        assert node.heard == []
    run.now_s = (1.0 - EARLY) * LONG_S
    node.exchange.flush()
    assert (len(node.heard), len(node.said)) == (2, RECEIVED_MOST + 1)
    both = torch.stack([left.model[0], right.model[0]]).sum(0)
    assert (await above.hears(RECEIVED_MOST + 1))[-1:] == bits([both])


async def test_reports_wait_no_longer_while_the_socket_may_have_been_full(run: Run) -> None:
    node, _, left, right = await family(run)
    for turn, come, wait in ((1, REFILLED - 1, True), (2, REFILLED, True), (3, REFILLED - 1, False), (4, 1, True)):
        before = len(node.heard)
        await right.say(RIGHT)
        for _ in range(come):
            await left.say(LEFT)
        await run.settle()
        assert (len(node.heard), len(node.said)) == (before if wait else before + 1 + come, turn)
        run.now_s = turn * LONG_S
        node.news(UP)
        assert (len(node.heard), len(node.said)) == (before + 1 + come, turn + 1)


@pytest.mark.parametrize("why", ["they may not fit", "nobody reports for long", "the run closes"])
async def test_reports_do_not_wait_where(run: Run, why: str) -> None:
    pace_s = 0.1 if why == "nobody reports for long" else LONG_S
    node, _, left, right = await family(run, RECEIVED_MOST + (why == "they may not fit"), pace_s)
    if why == "the run closes":
        await left.say(LEFT)
        node.exchange.listen()
        await node.hears(1)
        run.now_s = LONG_S
        node.news(UP)
    elif why == "nobody reports for long":
        run.now_s = PATIENT * pace_s
        await asyncio.sleep(NEVER_S)  # the node's timer goes off meanwhile, most likely, and nothing is there
    await right.say(RIGHT)
    await node.hears(1 + (why == "the run closes"))


# ------------------------------------------------------------------------------------- models that wait


async def leaf_and_parent(run: Run, buckets: int = 1, *, can_wait: bool = True) -> tuple[Peer, Peer]:
    """The leaf has heard one model."""
    parent, leaf = Peer(run, 0, (), [MODEL], buckets), Peer(run, 1, [MODEL], (), buckets, models_can_wait=can_wait)
    await run.connected()
    await parent.say(MODEL)
    await leaf.hears(1)
    return leaf, parent


async def test_models_wait_while_the_leaf_computes_unless_many_came(run: Run, monkeypatch: Any) -> None:
    leaf, parent = await leaf_and_parent(run)
    leaf.exchange.computing()
    leaf.exchange.computed()  # and it does not listen in the midst of the next because of this one
    monkeypatch.setattr(module, "DEAF_S", LONG_S)
    no_time_to_listen_in = module.ATTENTIVE_S
    for come, wait, least_s in (
        (REFILLED - 1, True, None),
        (REFILLED, True, LONG_S),
        (REFILLED - 1, False, LONG_S),
        (1, True, no_time_to_listen_in),
    ):
        leaf.exchange.computing(least_s)
        before = len(leaf.heard)
        for _ in range(come):
            await parent.say(MODEL)
        await asyncio.sleep(NEVER_S)
        await run.settle()
        assert len(leaf.heard) == before + (0 if wait else come)
        leaf.exchange.computed()
        leaf.exchange.catch_up()
        assert len(leaf.heard) == before + come


@pytest.mark.parametrize(
    "why", ["they are passed on", "they may not fit", "the run closes", "it takes long", "it is nearly done"]
)
async def test_models_do_not_wait_where(run: Run, monkeypatch: Any, why: str) -> None:
    monkeypatch.setattr(module, "DEAF_S", module.DEAF_S if why == "it takes long" else LONG_S)
    buckets = RECEIVED_MOST + (why == "they may not fit")
    leaf, parent = await leaf_and_parent(run, buckets, can_wait=why != "they are passed on")
    if why == "the run closes":
        leaf.exchange.listen()
    leaf.exchange.computing(0.05 if why == "it is nearly done" else None)
    await parent.say(MODEL)
    await leaf.hears(2)


@pytest.mark.parametrize("size", [300, 200_000], ids=["copied", "uncopied"])
async def test_a_model_is_one_frame_for_all_children_and_a_report_is_not(run: Run, monkeypatch: Any, size: int) -> None:
    """Node 0 makes models for nodes 1 and 2; node 1 passes them on to 3 and 4, and sends it to 0 as a report."""
    down = [Edge("W", src, dst) for src, dst in ((0, 1), (0, 2), (1, 3), (1, 4))]
    root, node = Peer(run, 0, [UP], down[:2], size=size), Peer(run, 1, down[:1], [*down[2:], UP], size=size)
    leaves = [Peer(run, edge.dst, [edge], (), size=size) for edge in down[1:]]
    shared, send, sent = Mock(wraps=shareable), Outlet.send, dict[Edge, Any]()
    monkeypatch.setattr(module, "shareable", shared)
    monkeypatch.setattr(Outlet, "send", lambda o, frames: sent.update({o.edge: frames[1]}) or send(o, frames))

    def pass_on(event: Event) -> list[Send]:
        node.model = [node.heard[-1].payload]
        return [Send(edge, 0) for edge in node.out_edges if isinstance(event, Received)]

    node.answer = pass_on
    await run.connected()
    for count in (1, 2):
        root.model = root.new_model()
        root.carry_out(Send(edge, 0) for edge in down[:2])
        for peer in (root, *leaves):
            assert (await peer.hears(count))[-1:] == bits(root.model)
        assert shared.call_count == count
        assert sent[down[2]] is sent[down[3]]
        assert isinstance(sent[down[3]], zmq.Frame)
        assert not isinstance(sent[UP], zmq.Frame)


@pytest.mark.parametrize("edge", [MODEL, LEFT])
async def test_what_is_no_message_of_this_run_is_refused_and_the_next_is_heard(run: Run, edge: Edge) -> None:
    node, stranger = Peer(run, 1, [MODEL, LEFT], ()), Peer(run, edge.src, (), [edge], name="another run")
    await run.connected()
    await stranger.say(edge)
    await until(lambda: node.refused == [("run", edge.graph)], "another run's message is refused")
    run.push.connect(run.addresses.target(edge))
    run.push.send(b"noise")
    await until(lambda: node.refused == [("run", edge.graph), ("frames", edge.graph)], "noise is refused")
    assert node.heard == []
    friend = Peer(run, edge.src, (), [edge])
    friend.news(edge)
    assert await node.hears(1) == bits(friend.model)


async def test_after_the_end_nothing_is_said_and_nothing_raised(run: Run) -> None:
    node, *_ = await family(run, pace_s=0.1)
    run.now_s = 0.01
    node.news(UP)
    node.exchange.close()
    run.now_s = 1.0
    await asyncio.sleep(NEVER_S)  # the timer goes off
    node.news(UP)
    assert (len(node.said), node.failures) == (1, [])


async def test_a_leaf_that_is_closed_while_it_computes_does_not_listen_again(run: Run) -> None:
    leaf, _ = await leaf_and_parent(run)
    for _ in range(2):  # once more without computed(): its timer ends too
        leaf.exchange.computing(0.05)
    leaf.exchange.close()
    await asyncio.sleep(NEVER_S)  # what would be raised in a timer, the run hears of


async def test_an_error_in_the_core_at_a_timers_turn_is_told_and_the_exchange_goes_on(run: Run) -> None:
    sender, receiver = Peer(run, 0, (), [MODEL], pace_s=0.1), Peer(run, 1, [MODEL], ())
    await run.connected()
    await sender.say(MODEL)
    sender.answer = lambda event: 1 / 0
    sender.news(MODEL)
    run.now_s = 0.1
    await until(lambda: len(sender.failures) > 0, "the error is told")
    assert isinstance(sender.failures.pop(), ZeroDivisionError)
    sender.answer = lambda event: []
    run.now_s = 1.0
    sender.news(MODEL)
    await receiver.hears(2)
