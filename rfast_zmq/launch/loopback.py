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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rfast_zmq.algorithms import Ddp, Hivemind
from rfast_zmq.assembly import Plan
from rfast_zmq.errors import RfastError, TaskError, UsageError
from rfast_zmq.launch.namespaces import Namespaces
from rfast_zmq.launch.outcome import Observer, Run, Sent, check_target
from rfast_zmq.launch.process import ENDING_SIGNALS, MODEL, Orders, leave_terminal, node_process, terminals
from rfast_zmq.launch.showing import SILENT_S, Gathering
from rfast_zmq.node.process import REPORT_S
from rfast_zmq.transport import Addresses

ENDING_S = 5.0
"""After the root is done, a node that does not end by itself is ended after so long (a node under SIGSTOP, say)."""
PORTS = 7001, 7002
"""Of the pull and of the push graph, where each node has a host of its own."""
LEAVING_S = 2.0
"""After the second Ctrl-C, what has not ended by itself is ended after so long."""
SOCKET_PATH_MAX = 100
"""Bytes that the path of a Unix socket may have (the least of the platforms, and a little to spare)."""


@dataclass
class _Child:
    process: BaseProcess
    pipe: Connection | None
    ready: str | None = None
    last: dict[str, Any] | None = None
    done: dict[str, Any] | None = None
    heard_s: float = 0.0
    """When anything was last heard of it."""
    sent: Sent = field(default_factory=Sent)
    shown_samples: int = 0
    """That it had computed as it last answered."""
    owes: bool = False
    """It was told to show its model, and has yet to answer."""

    def bytes_at(self, time_s: float) -> float:
        """That it had sent by then."""
        if self.done is not None:
            return float(self.done["bytes_sent"])
        return self.sent.at(time_s, 0.0 if self.pipe is None else REPORT_S)


def run(
    plan: Plan,
    observer: Observer | None = None,
    stop: Callable[[], int] | None = None,
    hosts: Namespaces | None = None,
) -> Run:
    """Run all nodes of ``plan`` on this machine, to the end.

    Args:
        plan: the run.
        observer: told what happens.
        stop: asked now and then how often the user wants the run to end: 0 go on, 1 stop in order, 2 or more leave at
            once. None: Ctrl-C (SIGINT), SIGTERM and SIGHUP are counted, when called from the main thread.
        hosts: one for each node to live in, and to talk from over TCP; None: they talk over Unix sockets.

    Where it raises after the run began, the newest model of the root is handed to ``observer.rescued``.

    Raises:
        UsageError: nodes whose models differ, an address that cannot be bound.
        TaskError: the task raised, with the rank and the traceback.
        RfastError: a node crashed.
    """
    return _Loopback(plan, observer or Observer(), stop, hosts).run()


def process_context(*preloaded: str) -> multiprocessing.context.BaseContext:
    """Processes forked from a server that has imported torch once, where forking is safe.

    Args:
        preloaded: modules that the server, if it does not run yet, imports as well.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rfast_zmq.launch.process", *preloaded])
    return context


class _Loopback:
    def __init__(
        self, plan: Plan, observer: Observer, stop: Callable[[], int] | None, hosts: Namespaces | None
    ) -> None:
        self.plan, self.observer, self._hosts = plan, observer, hosts
        self.children: list[_Child] = []
        self.out = Run(plan.result(simulated=False))
        self._interrupts = 0
        self._stop, self._told_when = stop or (lambda: self._interrupts), stop is not None
        self._orders_given = 0
        self._t0: float | None = None
        self._root_done_s: float | None = None
        self._told_to_leave = False
        self._end_s: float | None = None
        """When whatever still runs is killed."""
        self._fault: RfastError | None = None
        self._gathering: Gathering | None = None
        self._gatherings = 0
        self._said_once: set[str] = set()

    def run(self) -> Run:
        folder: Path | None = None
        before = {} if self._told_when else self._count_interrupts()
        try:
            folder = _folder(self.plan.topology.nodes)
            self._start(folder)
            self._follow()
            if self._fault is not None:
                if (model := _saved(folder)) is not None:
                    self.observer.rescued(model)
                raise self._fault
            self._collect(folder)
            self.out.interrupted |= self._interrupts > self._orders_given  # too late to change anything, but heard
        finally:
            self._end_all()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.out

    def _count_interrupts(self) -> dict[signal.Signals, Any]:
        """Ctrl-C, and SIGTERM and SIGHUP alike; what handled them before."""
        screens = terminals()

        def count(*_: object) -> None:
            leave_terminal(screens)
            self._interrupts += 1

        try:
            return {number: signal.signal(number, count) for number in ENDING_SIGNALS if not _nohup(number)}
        except ValueError:  # not the main thread: whoever runs us has the signals
            return {}

    def _start(self, folder: Path) -> None:
        context = process_context()
        nodes = self.plan.topology.nodes
        addresses = Addresses.ipc(folder, nodes)
        if self._hosts is not None:
            addresses = Addresses.tcp([self._hosts.address(rank) for rank in range(nodes)], *PORTS)
        run_id = secrets.token_hex(8)
        if sys.platform == "linux":
            with signals_held(), _temporary(folder.parent):
                forkserver.ensure_running()
        for rank in range(nodes):
            self._mind_interrupts()
            ours, theirs = context.Pipe()
            namespace = None if self._hosts is None else self._hosts.names[rank]
            orders = Orders(self.plan.source, self.plan.settings, rank, addresses, run_id, folder, namespace)
            process = context.Process(  # type: ignore[attr-defined]
                target=node_process,
                args=(orders, theirs),
                name=f"rfast node {rank}",
                daemon=self.plan.method is not Hivemind,  # which has processes of its own
            )
            with without_main():
                process.start()
            theirs.close()
            self.children.append(_Child(process, ours))

    # -------------------------------------------------------------------------------------- while it runs

    def _follow(self) -> None:
        """Until every process has ended; after a fault, until the root has."""
        root = self.plan.topology.root
        while open_pipes := {child.pipe: rank for rank, child in enumerate(self.children) if child.pipe is not None}:
            if self._fault is not None and self.children[root].pipe is None:
                return
            self._mind_interrupts()
            self._mind_the_end()
            # A pipe may outlive its process, where that has processes of its own; what it holds is heard first.
            ends = {self.children[rank].process.sentinel: pipe for pipe, rank in open_pipes.items()}
            for ready in wait([*open_pipes, *ends], timeout=0.1):
                if isinstance(ready, Connection):
                    self._hear(open_pipes[ready], ready)
                    continue
                assert isinstance(ready, int)
                pipe = ends[ready]
                if not pipe.closed and not pipe.poll():
                    self._ended(open_pipes[pipe], pipe)
            self._mind_gathering()

    def _hear(self, rank: int, pipe: Connection) -> None:
        child = self.children[rank]
        try:
            kind, content = pipe.recv()
        except (EOFError, OSError):
            self._ended(rank, pipe)
            return
        child.heard_s = time.monotonic()
        match kind:
            case "ready":
                child.ready = content
                self._maybe_go()
            case "report":
                child.last = content
                child.sent.heard(content)
                self.out.heard(content)
                self.observer.report(content)
            case "point":
                content.bytes_sent = round(sum(c.bytes_at(content.time_s) for c in self.children))
                self.out.points.append(content)
                self.observer.point(content)
                if len(self.out.points) == 1:
                    try:
                        check_target(self.plan, content)
                    except UsageError as error:
                        self._failed(error)
            case "gather":
                self._gather()
            case "shown":
                child.owes, child.shown_samples = False, content.samples
                if content.trouble:
                    self._say_once(rank, f"shows no model: {content.trouble}")
                if self._gathering is not None:
                    self._gathering.heard(rank, content)
            case "say":
                self._say(content)
            case "done":
                child.done = content
                if rank == self.plan.topology.root:
                    self._root_done_s = time.monotonic()
            case "task-error":
                self._failed(TaskError(*content))
            case "usage-error":
                self._failed(UsageError(content))
            case "crash":
                self._failed(RfastError(f"rank {rank} crashed; this is a defect of rfast_zmq:\n{content}"))

    def _gather(self) -> None:
        """Have every node show its model: whoever owes no answer, so that no pipe fills up before one that is
        stopped."""
        ranks = {rank for rank, child in enumerate(self.children) if child.pipe is not None and not child.owes}
        self._gatherings += 1
        self._gathering = Gathering(self._gatherings, ranks)
        for rank in ranks:
            self.children[rank].owes = True
            self._order(("show", self._gatherings), rank)

    def _mind_gathering(self) -> None:
        """Tell the root once everybody has shown what it asked for, but for those of whom nothing is heard at all."""
        if self._gathering is None:
            return
        long_ago_s = time.monotonic() - SILENT_S
        silent = {rank for rank in self._gathering.awaited if self.children[rank].heard_s < long_ago_s}
        self._gathering.without(silent)
        if self._gathering.awaited:
            return
        for rank in silent:
            self._say_once(rank, "is silent: the mean that is judged is without its model")
        samples = sum(child.shown_samples for child in self.children)
        word = ("gathered", self._gathering.shown, samples, self._gathering.clock_s)
        self._gathering = None
        self._order(word, self.plan.topology.root)

    def _say_once(self, rank: int, what: str) -> None:
        line = f"{self.plan.topology.called(rank)} {what}"
        if line not in self._said_once:
            self._said_once.add(line)
            self._say(line)

    def _ended(self, rank: int, pipe: Connection) -> None:
        child = self.children[rank]
        if self._gathering is not None:
            self._gathering.without([rank])
        pipe.close()
        child.pipe = None
        child.process.join()
        _kill(child.process)  # what it has left behind
        if child.done is None:
            self._died(rank)

    def _failed(self, fault: RfastError) -> None:
        """The run is lost; the root, if it runs, is given the time to leave its model."""
        if self._t0 is None:
            raise fault
        if self._fault is None:
            self._fault = fault
            self._order("leave")
            self._end_in(ENDING_S)

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
        if self._root_done_s is not None or self._end_s is not None:
            return
        if rank == self.plan.topology.root:
            self._say(f"the root, {self.plan.topology.called(rank)}, died (exit status {code}): the run ends")
            self._root_done_s = time.monotonic()
            self._order("leave")
        elif not self.plan.method.bears_loss:
            name = self.plan.settings.algorithm
            self._say(f"{self.plan.topology.called(rank)} ended (exit status {code}): under {name} the run stops")
            if self.plan.method is Ddp:  # nobody can take another step, so there is no order to end in
                self._order("leave")
            else:
                self._order("stop", self.plan.topology.root)
        else:
            self._say(f"{self.plan.topology.called(rank)} ended (exit status {code}): the others go on")

    def _mind_interrupts(self) -> None:
        wanted = self._stop()
        if wanted <= self._orders_given:
            return
        self._orders_given, self.out.interrupted = wanted, True
        if self._t0 is None:
            raise KeyboardInterrupt
        if wanted == 1:
            self._say("stopping: the run ends in order (once more to end it at once)")
            self._order("stop", self.plan.topology.root)
        else:
            self._order("leave")
            self._end_in(LEAVING_S if wanted == 2 else 0.0)

    def _mind_the_end(self) -> None:
        """Once the root is done nobody else has a reason to stay."""
        if self._end_s is not None and time.monotonic() >= self._end_s:
            for child in self.children:
                _kill(child.process)
        if self._root_done_s is None:
            return
        late_s = time.monotonic() - self._root_done_s
        if late_s > 2.0 and not self._told_to_leave:
            self._told_to_leave = True
            self._order("leave")
        if late_s > ENDING_S:
            self._end_in(0.0)

    def _end_in(self, seconds: float) -> None:
        """Kill whatever still runs then."""
        end_s = time.monotonic() + seconds
        self._end_s = end_s if self._end_s is None else min(end_s, self._end_s)

    def _order(self, word: object, rank: int | None = None) -> None:
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
        plan, result, root = self.plan, self.out.result, self.plan.topology.root
        self.out.settle(plan, {rank: child.done or child.last or {} for rank, child in enumerate(self.children)}, root)
        result.missing = [rank for rank, child in enumerate(self.children) if child.done is None]
        self.out.model = _saved(folder)
        if not result.missing and not result.set_aside:
            records = {rank: dict(load_file(_record(folder, rank))) for rank in range(plan.topology.nodes)}
            result.identity_error = plan.method.identity_error(records, root)

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


@contextmanager
def without_main() -> Iterator[None]:
    """Start a process that does not import the script that starts it: a node loads its task by path, and so a script
    that calls :func:`run` at its top level, without the ``__main__`` guard, works."""
    main = sys.modules["__main__"].__dict__
    before: dict[str, object] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.update(dict.fromkeys(before))
    try:
        yield
    finally:
        main.update(before)


@contextmanager
def signals_held() -> Iterator[None]:
    """Start processes that no signal to the whole group ends while they import torch: they inherit what is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        resource_tracker.ensure_running()  # lets some of them through again
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _nohup(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _folder(nodes: int) -> Path:
    """A fresh folder, private to the run, in which the path of a socket is short enough.

    Raises:
        UsageError: there is none.
    """
    most = SOCKET_PATH_MAX - max(len(f"/rfast-xxxxxxxx/{nodes - 1}.W"), len("/pymp-xxxxxxxx/listener-xxxxxxxx"))
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(parent)) <= most and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="rfast-", dir=parent))
    raise UsageError(
        f"TMPDIR {tempfile.gettempdir()}: too long for the path of a Unix socket; give a folder of at most {most} bytes"
    )


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    """Let multiprocessing put its socket there: what TMPDIR says may be too long."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _saved(folder: Path) -> dict[str, Tensor] | None:
    """The model that the root left."""
    path = folder / MODEL
    return load_file(path) if path.exists() else None


def _kill(process: BaseProcess) -> None:
    if process.pid is None:
        return
    if not process.daemon and process.exitcode != 0:  # it has processes of its own, all of one group with it
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
        try:
            os.kill(process.pid, signal.SIGCONT)
        except ProcessLookupError:
            return


def _record(folder: Path, rank: int) -> Path:
    return folder / f"record-{rank}.safetensors"
