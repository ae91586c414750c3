"""What runs inside a node's process of a loopback run, and what passes through its pipe."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from rfast_zmq.algorithms import ALGORITHMS, Ddp, Hivemind
from rfast_zmq.assembly import Plan
from rfast_zmq.errors import TaskError, UsageError
from rfast_zmq.launch.ddp import DdpNode
from rfast_zmq.launch.hivemind import HivemindNode
from rfast_zmq.launch.memory import keep_freed_memory, share_cores
from rfast_zmq.launch.namespaces import INTERFACE, enter
from rfast_zmq.launch.showing import Shower
from rfast_zmq.node import Node
from rfast_zmq.results import Point
from rfast_zmq.settings import Settings
from rfast_zmq.transport import Addresses

MODEL = "model.safetensors"
ENDING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a run to end. A terminal sends SIGINT and SIGHUP, and ``timeout`` SIGTERM, to all processes of a run."""


@dataclass(frozen=True)
class Orders:
    """What a node's process is given."""

    source: str
    settings: Settings
    rank: int
    addresses: Addresses
    run: str
    folder: Path
    """Of the run, private to it: sockets, the nodes' last records, the model."""
    namespace: str | None = None
    """The network namespace that it is to live in."""


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on uvloop where there is one, else on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


class PipeWatcher:
    """Sends what happens to the launcher, as (kind, content)."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def tell(self, kind: str, content: object) -> None:
        """Send one thing; a launcher that is gone is not told."""
        try:
            self._pipe.send((kind, content))
        except OSError:
            return

    def ready(self, layout: str) -> None:
        self.tell("ready", layout)

    def report(self, report: Mapping[str, Any]) -> None:
        self.tell("report", dict(report))

    def point(self, point: Point) -> None:
        self.tell("point", point)

    def say(self, line: str) -> None:
        self.tell("say", line)

    def fault(self, error: BaseException) -> None:
        if isinstance(error, TaskError):
            self.tell("task-error", (error.rank, error.traceback))
        elif isinstance(error, UsageError):
            self.tell("usage-error", str(error))
        else:
            self.tell("crash", "".join(traceback.format_exception(error)))


class Member(Protocol):
    """What runs in a node's process: a :class:`~rfast_zmq.node.Node`, or what stands for one where somebody else's code
    trains."""

    is_root: bool
    wall_s: float

    async def run(self, gate: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """To the end. ``gate``: awaited between "ready" and the start."""

    def stop(self) -> None:
        """End the run in order."""

    def leave(self) -> None:
        """Go now, without waiting for anybody."""

    def standing(self) -> dict[str, Any]:
        """Plain numbers, for the result."""

    def last_record(self) -> Mapping[str, Tensor | float]:
        """What the algorithm's identity is checked with."""

    def newest_model(self) -> dict[str, Tensor] | None:
        """What is worth keeping now, in the midst of the run."""

    def final_model(self) -> dict[str, Tensor] | None:
        """What to save at the end."""


def member(orders: Orders, watcher: PipeWatcher, shower: Shower) -> Member:
    """What is to run here."""
    plan = Plan.make(orders.source, orders.settings)
    if plan.method is Ddp:
        interface = None if orders.namespace is None else INTERFACE
        return DdpNode(plan, orders.rank, orders.folder, watcher, interface)
    if plan.method is Hivemind:
        os.setpgid(0, 0)  # what hivemind starts can then be ended by whoever ends this process
        return HivemindNode(plan, orders.rank, orders.folder, watcher)
    return Node(plan, orders.rank, orders.addresses, orders.run, incarnation=1, watcher=watcher, gatherer=shower)


def node_process(orders: Orders, pipe: Connection) -> None:
    """The process of one node: from its orders to its last record. Exits 0, or 1 after telling the launcher why."""
    for number in ENDING_SIGNALS:  # the launcher decides
        signal.signal(number, _heard)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
    torch.set_num_threads(1)
    keep_freed_memory()
    if orders.settings.algorithm in ALGORITHMS:  # the others' threads pass things on that somebody waits for
        share_cores()
    watcher = PipeWatcher(pipe)
    node: Member | None = None
    try:
        if orders.namespace is not None:
            enter(orders.namespace)
        shower = Shower(orders.folder, orders.rank, watcher.tell)
        node = member(orders, watcher, shower)
        gc.freeze()
        run_loop(_with_launcher(node, pipe, orders.folder, shower))
        record = {k: torch.as_tensor(v) for k, v in node.last_record().items()}
        save_file({k: v.clone() for k, v in record.items()}, orders.folder / f"record-{orders.rank}.safetensors")
        if node.is_root and (model := node.final_model()) is not None:
            _save(model, orders.folder)
        watcher.tell("done", {**node.standing(), "wall_s": node.wall_s})
        sys.stdout.flush()
        os._exit(0)  # without awaiting a gradient that is still being computed
    except asyncio.CancelledError:
        os._exit(1)
    except BaseException as error:
        watcher.fault(error)
        if node is not None:
            hand_over(node, orders.folder)
        sys.stdout.flush()
        os._exit(1)


def hand_over(node: Member, folder: Path) -> None:
    """At the root, leave the newest model where the launcher finds it, whatever became of the run."""
    if not node.is_root:
        return
    with contextlib.suppress(Exception):  # it is for what the run is worth after something else went wrong
        if (model := node.newest_model()) is not None:
            _save(model, folder)


def _save(model: Mapping[str, Tensor], folder: Path) -> None:
    part = folder / f"{MODEL}.part"
    save_file(dict(model), part)
    part.replace(folder / MODEL)


def terminals() -> list[int]:
    """Which of standard output and error are a terminal."""
    return [fd for fd in (1, 2) if os.isatty(fd)]


def leave_terminal(screens: list[int]) -> None:
    """If one of these terminals is closed, send what is still written there nowhere, so that writing does not fail."""
    for fd in screens:
        if not os.isatty(fd):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)
            os.close(nowhere)


def _heard(*_: object) -> None:
    """Does nothing; and, unlike SIG_IGN, is not passed on to what a task may start."""


async def _with_launcher(node: Member, pipe: Connection, folder: Path, shower: Shower) -> None:
    loop = asyncio.get_running_loop()
    gate = asyncio.Event()

    def order() -> None:
        try:
            word = pipe.recv()
        except (EOFError, OSError):  # the launcher is gone: nobody will end this node otherwise
            loop.remove_reader(pipe.fileno())
            node.leave()
            return
        if word == "go":
            gate.set()
        elif word == "stop":
            node.stop()
        elif word == "leave":
            hand_over(node, folder)  # now: there may be no time for the rest
            node.leave()
        elif word[0] == "show" and isinstance(node, Node):
            shower.show(word[1], node.shown())
        elif word[0] == "gathered":
            shower.gathered(*word[1:])

    async def opened() -> None:
        await gate.wait()

    loop.add_reader(pipe.fileno(), order)
    try:
        await node.run(opened)
    finally:
        loop.remove_reader(pipe.fileno())
