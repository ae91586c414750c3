"""What runs inside a node's process of a loopback run, and what passes through its pipe."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rfast_zmq.assembly import Plan
from rfast_zmq.errors import TaskError, UsageError
from rfast_zmq.launch.memory import keep_freed_memory, share_cores
from rfast_zmq.node import Node
from rfast_zmq.results import Point
from rfast_zmq.settings import Settings
from rfast_zmq.transport import Addresses


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


def node_process(orders: Orders, pipe: Connection) -> None:
    """The process of one node: from its orders to its last record. Exits 0, or 1 after telling the launcher why."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides
    torch.set_num_threads(1)
    keep_freed_memory()
    share_cores()
    watcher = PipeWatcher(pipe)
    try:
        node = Node(
            Plan.make(orders.source, orders.settings),
            orders.rank,
            orders.addresses,
            orders.run,
            incarnation=1,
            watcher=watcher,
        )
        gc.freeze()
        run_loop(_with_launcher(node, pipe))
        record = {k: torch.as_tensor(v) for k, v in node.algorithm.last_record().items()}
        save_file({k: v.clone() for k, v in record.items()}, orders.folder / f"record-{orders.rank}.safetensors")
        if node.is_root and (model := node.final_model()) is not None:
            save_file(model, orders.folder / "model.safetensors")
        watcher.tell("done", {**node.standing(), "wall_s": node.wall_s})
        sys.stdout.flush()
        os._exit(0)  # without awaiting a gradient that is still being computed
    except asyncio.CancelledError:
        os._exit(1)
    except BaseException as error:
        watcher.fault(error)
        sys.stdout.flush()
        os._exit(1)


async def _with_launcher(node: Node, pipe: Connection) -> None:
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
            node.leave()

    async def opened() -> None:
        await gate.wait()

    loop.add_reader(pipe.fileno(), order)
    try:
        await node.run(opened)
    finally:
        loop.remove_reader(pipe.fileno())
