"""A whole run on this machine: one process a node, Unix sockets between them, one gate at the start."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rfast_zmq.algorithms import algorithm
from rfast_zmq.assembly import Plan
from rfast_zmq.errors import RfastError, TaskError, UsageError
from rfast_zmq.launch.process import Orders, node_process
from rfast_zmq.results import NodePoint, Point, Result
from rfast_zmq.transport import Addresses

ENDING_S = 10.0
"""After the root is done, a node that does not end by itself is ended after so long (a node under SIGSTOP, say)."""


@dataclass
class Run:
    """What a run gave.

    Attributes:
        result: as ``--json`` prints it.
        points: the root's evaluations, oldest first.
        node_points: each node's pace over time.
        model: the module's ``state_dict`` at the end; None if there is none.
        said: what the nodes said, as (seconds since the gate, line).
    """

    result: Result
    points: list[Point] = field(default_factory=list)
    node_points: list[NodePoint] = field(default_factory=list)
    model: dict[str, Tensor] | None = None
    said: list[tuple[float, str]] = field(default_factory=list)


class Observer:
    """Told what happens in a run; override what you want to see."""

    def started(self, pids: list[int]) -> None:
        """The gate opened; ``pids`` by rank."""

    def report(self, report: Mapping[str, Any]) -> None:
        """A node's standing, every half second of each."""

    def point(self, point: Point) -> None:
        """The root evaluated."""

    def say(self, line: str) -> None:
        """A line for a person."""


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection | None
    ready: str | None = None
    last: dict[str, Any] | None = None
    done: dict[str, Any] | None = None


def run(plan: Plan, observer: Observer | None = None, stop: Callable[[], int] | None = None) -> Run:
    """Run all nodes of ``plan`` on this machine, to the end.

    Args:
        plan: the run.
        observer: told what happens.
        stop: asked now and then how often the user wants the run to end: 0 go on, 1 stop in order, 2 or more leave at
            once. None: Ctrl-C (SIGINT) is counted, when called from the main thread.

    Raises:
        UsageError: nodes whose models differ, an address that cannot be bound.
        TaskError: the task raised, with the rank and the traceback.
        RfastError: a node crashed.
    """
    return _Loopback(plan, observer or Observer(), stop).run()


def _context() -> multiprocessing.context.BaseContext:
    """Processes forked from a server that has imported torch once, where forking is safe."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rfast_zmq.launch.process"])
    return context


class _Loopback:
    def __init__(self, plan: Plan, observer: Observer, stop: Callable[[], int] | None) -> None:
        self.plan, self.observer = plan, observer
        self.children: list[_Child] = []
        self.out = Run(plan.result(simulated=False))
        self._interrupts = 0
        self._stop = stop or (lambda: self._interrupts)
        self._orders_given = 0
        self._t0: float | None = None
        self._root_done_s: float | None = None

    def run(self) -> Run:
        folder = Path(tempfile.mkdtemp(prefix="rfast-"))
        before = self._count_interrupts()
        try:
            self._start(folder)
            self._follow()
            self._collect(folder)
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)
            self._end_all()
            shutil.rmtree(folder, ignore_errors=True)
        return self.out

    def _count_interrupts(self) -> Any:
        def count(*_: object) -> None:
            self._interrupts += 1

        try:
            return signal.signal(signal.SIGINT, count)
        except ValueError:  # not the main thread: whoever runs us has the signals
            return None

    def _start(self, folder: Path) -> None:
        context = _context()
        nodes = self.plan.topology.nodes
        addresses, run_id = Addresses.ipc(folder, nodes), secrets.token_hex(8)
        for rank in range(nodes):
            ours, theirs = context.Pipe()
            orders = Orders(self.plan.source, self.plan.settings, rank, addresses, run_id, folder)
            process = context.Process(target=node_process, args=(orders, theirs), name=f"rfast node {rank}", daemon=True)  # type: ignore[attr-defined]
            process.start()
            theirs.close()
            self.children.append(_Child(process, ours))

    # -------------------------------------------------------------------------------------- while it runs

    def _follow(self) -> None:
        """Until every process has ended."""
        while open_pipes := {child.pipe: rank for rank, child in enumerate(self.children) if child.pipe is not None}:
            self._mind_interrupts()
            self._mind_the_end()
            for pipe in wait(list(open_pipes), timeout=0.1):
                assert isinstance(pipe, Connection)
                self._hear(open_pipes[pipe], pipe)

    def _hear(self, rank: int, pipe: Connection) -> None:
        child = self.children[rank]
        try:
            kind, content = pipe.recv()
        except (EOFError, OSError):
            pipe.close()
            child.pipe = None
            child.process.join()
            if child.done is None:
                self._died(rank)
            return
        match kind:
            case "ready":
                child.ready = content
                self._maybe_go()
            case "report":
                child.last = content
                self.out.node_points.append(
                    NodePoint(
                        time_s=content["time_s"],
                        rank=rank,
                        samples=content["own_samples"],
                        pace=content["samples_per_s"],
                    )
                )
                self.observer.report(content)
            case "point":
                self.out.points.append(content)
                self.observer.point(content)
            case "say":
                self._say(content)
            case "done":
                child.done = content
                if rank == self.plan.topology.root:
                    self._root_done_s = time.monotonic()
            case "task-error":
                raise TaskError(*content)
            case "usage-error":
                raise UsageError(content)
            case "crash":
                raise RfastError(f"rank {rank} crashed; this is a defect of rfast_zmq:\n{content}")

    def _maybe_go(self) -> None:
        layouts = {rank: child.ready for rank, child in enumerate(self.children)}
        if any(layout is None for layout in layouts.values()):
            return
        if len(set(layouts.values())) > 1:
            other = next(rank for rank, layout in layouts.items() if layout != layouts[0])
            raise UsageError(
                f"rank 0 and rank {other} have different models (layouts {layouts[0]} and {layouts[other]}):"
                " configure_model() must give the same parameters on every rank"
            )
        self._t0 = time.monotonic()
        self._order("go")
        self.observer.started([child.process.pid or -1 for child in self.children])

    def _died(self, rank: int) -> None:
        """A process ended without a word: killed from outside. The others go on, unless it was the last hope."""
        child = self.children[rank]
        code = child.process.exitcode
        if self._t0 is None:
            raise RfastError(f"rank {rank} ended before the run began (exit status {code})")
        if self._root_done_s is None:
            self._say(f"node {self.plan.topology.names[rank]} ended (exit status {code}): the others go on")
        if rank == self.plan.topology.root and self._root_done_s is None:
            self._say("the root is gone: the run ends with the models the nodes have")
            self._root_done_s = time.monotonic()
            self._order("leave")

    def _mind_interrupts(self) -> None:
        wanted = self._stop()
        if wanted <= self._orders_given:
            return
        self._orders_given = wanted
        if self._t0 is None:
            raise KeyboardInterrupt
        if wanted == 1:
            self._say("stopping: the run ends in order and the model is saved (once more to end it at once)")
            self._order("stop", self.plan.topology.root)
        else:
            self._order("leave")

    def _mind_the_end(self) -> None:
        """Once the root is done nobody else has a reason to stay."""
        if self._root_done_s is None:
            return
        late_s = time.monotonic() - self._root_done_s
        if late_s > 2.0:
            self._order("leave")
        if late_s > ENDING_S:
            for child in self.children:
                _kill(child.process)

    def _order(self, word: str, rank: int | None = None) -> None:
        for i, child in enumerate(self.children):
            if (rank is None or i == rank) and child.pipe is not None:
                try:
                    child.pipe.send(word)
                except OSError:
                    continue

    def _say(self, line: str) -> None:
        self.out.said.append((0.0 if self._t0 is None else time.monotonic() - self._t0, line))
        self.observer.say(line)

    # -------------------------------------------------------------------------------------- afterwards

    def _collect(self, folder: Path) -> None:
        plan, result = self.plan, self.out.result
        root = plan.topology.root
        standings = [child.done or child.last or {} for child in self.children]
        at_root = standings[root]
        result.settle(self.out.points, plan.settings.target)
        result.samples, result.rounds = at_root.get("samples", 0), at_root.get("rounds", 0.0)
        result.wall_s = at_root.get("wall_s", at_root.get("time_s", 0.0))
        result.set_aside = at_root.get("set_aside", [])
        result.missing = [rank for rank, child in enumerate(self.children) if child.done is None]
        result.trouble = at_root["trouble"] if at_root.get("trouble", -1) >= 0 else None
        if at_root.get("slowest_rank", -1) >= 0:
            result.slowest_node = {"rank": at_root["slowest_rank"], "pace": at_root["slowest_pace"]}
        result.cpu_s = sum(s.get("cpu_s", 0.0) for s in standings)
        result.communication_cpu_s = sum(s.get("communication_cpu_s", 0.0) for s in standings)
        for rank, s in enumerate(standings):
            result.bytes_sent += s.get("bytes_sent", 0)
            result.messages_sent += s.get("messages_sent", 0)
            result.messages_received += s.get("accepted", 0) + s.get("stale", 0)
            result.messages_stale += s.get("stale", 0)
            _add(result.messages_refused, s.get("refused", {}))
            _add(result.faults, s.get("faults", {}))
            result.per_node.append(
                {
                    "rank": rank,
                    "gradients": s.get("gradients", 0),
                    "samples": s.get("own_samples", 0),
                    "pace": s.get("pace", 0.0),
                    "cpu_s": s.get("cpu_s", 0.0),
                    "memory_bytes": s.get("memory_bytes", 0),
                }
            )
        if (saved := folder / "model.safetensors").exists():
            self.out.model = load_file(saved)
        if not result.missing and not result.set_aside:
            records: dict[int, dict[str, Tensor | float]] = {}
            for rank in range(plan.topology.nodes):
                records[rank] = dict(load_file(folder / f"record-{rank}.safetensors"))
            assert plan.settings.optimizer is not None
            kind = algorithm(plan.settings.algorithm, plan.settings.optimizer)
            result.identity_error = kind.identity_error(records, root)

    def _end_all(self) -> None:
        """Leave no process behind."""
        for child in self.children:
            if child.process.is_alive():
                child.process.join(timeout=0.2)
            _kill(child.process)
        for child in self.children:
            child.process.join()
            child.process.close()
            if child.pipe is not None:
                child.pipe.close()


def _kill(process: BaseProcess) -> None:
    if process.is_alive() and process.pid is not None:
        process.kill()
        try:
            os.kill(process.pid, signal.SIGCONT)
        except ProcessLookupError:
            return


def _add(into: dict[str, int], more: Mapping[str, int]) -> None:
    for name, times in more.items():
        into[name] = into.get(name, 0) + times


__all__ = ["Observer", "Run", "run"]
