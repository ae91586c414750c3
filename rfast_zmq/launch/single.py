"""One node on this host, as part of a run over many hosts.

There is no gate and no launcher: a node starts when it is started, in any order and minutes apart, takes its first
model from its parent, and leaves when the run closes. Only what this node knows is in its result; the root's tells of
the whole run.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import torch

from rfast_zmq.assembly import Plan
from rfast_zmq.errors import RfastError, UsageError
from rfast_zmq.launch.memory import keep_freed_memory
from rfast_zmq.launch.outcome import Observer, Run, check_target
from rfast_zmq.launch.process import ENDING_SIGNALS, leave_terminal, run_loop, terminals
from rfast_zmq.node import Node
from rfast_zmq.results import Point
from rfast_zmq.topology import to_toml
from rfast_zmq.transport import Addresses, check_exposure

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def run_node(
    plan: Plan, rank: int, observer: Observer | None = None, *, insecure: bool = False, run_id: str | None = None
) -> Run:
    """Run one node to the end of the run. Ctrl-C at the root ends the run in order; elsewhere this node's part in it.

    Args:
        plan: the run; its topology must name the endpoints of every node.
        rank: which node of it.
        observer: told what happens here.
        insecure: listen on an address that other machines reach, though there are no keys.
        run_id: tells runs over the same addresses apart; every node must be given the same. None: made from what
            all nodes must agree on (:func:`default_run_id`).

    Raises:
        UsageError: a rank out of range, no endpoints, an address in use or not allowed, a parent that trains another
            model.
        TaskError: the task raised.
    """
    topology = plan.topology
    if not 0 <= rank < topology.nodes:
        raise UsageError(f"--rank {rank}: {topology.name} has {topology.nodes} nodes, so 0 to {topology.nodes - 1}")
    addresses = Addresses.of(topology)
    watcher = _Here(plan, rank, observer or Observer())
    for address in check_exposure((addresses.pull[rank], addresses.push[rank]), insecure):
        watcher.say(f"warning: {address} takes part in the run with whoever reaches it: there are no keys (--insecure)")
    torch.set_num_threads(1)
    keep_freed_memory()
    node = Node(plan, rank, addresses, run_id or default_run_id(plan), time.time_ns(), watcher)
    try:
        run_loop(_with_signals(node, watcher))
    except RfastError:
        if node.is_root and (model := node.final_model()) is not None:
            watcher.observer.rescued(model)
        raise
    watcher.out.settle(plan, {rank: {**node.standing(), "wall_s": node.wall_s}}, rank)
    if (model := node.final_model()) is not None:
        watcher.out.model = model
    return watcher.out


def default_run_id(plan: Plan) -> str:
    """What the nodes of a run agree on, topology, algorithm, batch, split and seed: 16 hexadecimal characters."""
    s = plan.settings
    text = f"{to_toml(plan.topology)}\n{s.algorithm} {s.global_batch} {s.split} {s.seed}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _Here:
    """Passes what happens on to the observer, and keeps it."""

    def __init__(self, plan: Plan, rank: int, observer: Observer) -> None:
        self.plan = plan
        self.out, self.rank, self.observer = Run(plan.result(simulated=False)), rank, observer
        self._t0 = time.monotonic()

    def ready(self, layout: str) -> None:
        self._t0 = time.monotonic()
        self.observer.started([os.getpid()])

    def report(self, report: Mapping[str, Any]) -> None:
        self.out.heard(report)
        self.observer.report(report)

    def point(self, point: Point) -> None:
        self.out.points.append(point)
        self.observer.point(point)
        if len(self.out.points) == 1:
            check_target(self.plan, point)

    def say(self, line: str) -> None:
        self.out.said.append((time.monotonic() - self._t0, line))
        self.observer.say(line)

    def fault(self, error: BaseException) -> None:
        return  # it is raised by Node.run as well


async def _with_signals(node: Node, watcher: _Here) -> None:
    loop, asked, screens = asyncio.get_running_loop(), 0, terminals()

    def interrupted() -> None:
        nonlocal asked
        leave_terminal(screens)
        asked += 1
        watcher.out.interrupted = True
        if asked == 1 and node.is_root:
            watcher.say("stopping: the run ends in order (once more to leave at once)")
            node.stop()
        elif asked == 1:
            node.leave()
        else:
            os._exit(INTERRUPTED)  # at once, whatever is being computed

    installed = []
    for number in ENDING_SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:  # nohup
            continue
        try:
            loop.add_signal_handler(number, interrupted)
            installed.append(number)
        except (NotImplementedError, ValueError, RuntimeError):  # not the main thread, or not this platform
            continue
    try:
        await node.run()
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
