"""How old a model is when it has been passed on along a line: real nodes, of which only the root has gradients.

The clock is CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from rfast_zmq.assembly import Plan
from rfast_zmq.bench.crew import told
from rfast_zmq.core.events import Action, Event, LinkReady, Message, Received, Transmit
from rfast_zmq.launch.process import run_loop
from rfast_zmq.node import Node, Steps
from rfast_zmq.node.gradients import Gradient
from rfast_zmq.results import Point
from rfast_zmq.settings import Settings
from rfast_zmq.task import OwnModel, Task
from rfast_zmq.transport import Addresses

DEPTH = 3
"""Hops from the root to the node that is looked at, the last of the line."""
REPORTS_A_ROUND = 8
"""So that the pace that the root chooses is that of its gradients."""


@dataclass(frozen=True)
class Line:
    """A line of nodes.

    Attributes:
        addresses: of them.
        coordinates: of the model.
        every_s: seconds between two gradients of the root.
        versions: once the last node has taken up so many it says so.
    """

    addresses: Addresses
    coordinates: int
    every_s: float
    versions: int


class Silent:
    """A watcher who is not interested."""

    def ready(self, layout: str) -> None: ...
    def report(self, report: Mapping[str, Any]) -> None: ...
    def point(self, point: Point) -> None: ...
    def say(self, line: str) -> None: ...
    def fault(self, error: BaseException) -> None: ...


def bare_model(coordinates: int) -> nn.Module:
    """A module of one parameter."""
    module = nn.Module()
    module.register_parameter("x", nn.Parameter(torch.zeros(coordinates)))
    return module


def relay(pipe: Connection, rank: int, line: Line) -> dict[float, float]:
    """One node of the line: says that it is ready, starts when told so, ends when told again.


    Returns:
        Version of the model (rounds of progress) to the time in seconds when it was first handed out (the root), or
        taken up (the others).
    """
    module = bare_model(line.coordinates)
    own = OwnModel(module, [{"params": list(module.parameters()), "lr": 1e-3, "weight_decay": 0.0}])
    settings = Settings(
        nodes=1 + DEPTH, topology="line", optimizer="sgd", global_batch=REPORTS_A_ROUND, evaluate_every=1e300
    )
    steps = Steps()
    node = Node(Plan.make(Task, settings), rank, line.addresses, "bench", 1, Silent(), (own, steps))
    seen_s: dict[float, float] = {}
    enough = partial(pipe.send, ("enough", None)) if rank == DEPTH else None
    _note_versions(node, seen_s, line.versions, enough)

    async def main() -> None:
        loop, going = asyncio.get_running_loop(), asyncio.Event()

        async def gate() -> None:
            pipe.send(("ready", None))
            with told(pipe, loop) as go:
                await go
            going.set()

        run = loop.create_task(node.run(gate))
        started = loop.create_task(going.wait())
        await asyncio.wait({run, started}, return_when=asyncio.FIRST_COMPLETED)
        if node.is_root:
            threading.Thread(target=_give, args=(steps, own, line.every_s), daemon=True).start()
        with told(pipe, loop) as end:
            await asyncio.wait({run, end}, return_when=asyncio.FIRST_COMPLETED)
        node.leave()
        started.cancel()
        await run

    run_loop(main())
    return seen_s


def _give(steps: Steps, own: OwnModel, every_s: float) -> None:
    """At the root: a gradient every so often (the same each time, as nobody looks at what it does)."""
    gradient, model = tuple(torch.full_like(bucket, 1e-6) for bucket in own.initial()), steps.take(wait=True)
    due_s = time.monotonic()
    while model is not None and not steps.over:
        steps.give(Gradient(model.rounds, gradient, 0.0, 1, True, every_s))
        due_s += every_s
        if (early_s := due_s - time.monotonic()) > 0:
            time.sleep(early_s)
        else:
            due_s -= early_s
        model = steps.take(wait=False) or model


def _note_versions(node: Node, seen_s: dict[float, float], versions: int, enough: Callable[[], None] | None) -> None:
    """Have the core note when it hands out (the root) or takes up a version for the first time; say when it has seen
    so many."""
    handle = node.algorithm.handle

    def noting(event: Event) -> list[Action]:
        actions = handle(event)
        message: Message | None
        if isinstance(event, Received) and not node.is_root:
            message = event.message
        elif isinstance(event, LinkReady) and node.is_root:
            message = next((action.message for action in actions if isinstance(action, Transmit)), None)
        else:
            return actions
        if message is not None and message.edge.graph == "W":
            before = len(seen_s)
            seen_s.setdefault(float(message.numbers["P"]), time.monotonic())  # type: ignore[arg-type]
            if enough is not None and before < versions == len(seen_s):
                enough()
        return actions

    node.algorithm.handle = noting  # type: ignore[method-assign]
