"""A real node: one asyncio loop that feeds the core with events and carries out its actions.

A gradient's walk: the compute coroutine hands a model to a worker thread and gets a gradient back →
``handle(GradientReady)`` → ``Send`` marks the slot of an edge → when the pace allows and the socket takes it, which is
mostly in the same turn of the loop, the core is asked for the message (``handle(LinkReady)``) → codec → PUSH … PULL →
codec → ``handle(Received)`` → the next model.

No coroutine waits for another node, and there is no timeout in the data path: a coroutine waits for its own thread, its
own socket, or its own clock (pace, idle resend, emulated compute).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from math import ceil, inf
from typing import Any

import torch
import zmq
from torch import Tensor

from rfast_zmq.algorithms import Algorithm
from rfast_zmq.assembly import Plan
from rfast_zmq.core.events import (
    Action,
    CountsAgain,
    Edge,
    Event,
    GradientReady,
    Graph,
    Leave,
    LinkReady,
    Message,
    ModelWanted,
    PeerLeft,
    Ready,
    Received,
    RunGradient,
    Send,
    SetAside,
    Started,
    Stopping,
    StopWanted,
    Tick,
    Transmit,
)
from rfast_zmq.core.finite import all_finite, is_finite
from rfast_zmq.core.slots import EARLY, PATIENT, Slot
from rfast_zmq.errors import Refused, UsageError
from rfast_zmq.node.scoring import Scorer
from rfast_zmq.node.watcher import Watcher
from rfast_zmq.results import Point
from rfast_zmq.task import Worker
from rfast_zmq.transport import RECEIVED_MOST, REFILLED, Addresses, Inlet, Outlet, shareable

REPORT_S = 0.5
"""Seconds between two reports of a node to whoever watches it."""
HINTS = {"run": "; the nodes of a run share topology, algorithm, batch, split and seed, or a --run-id"}
TURNS = 8
"""So many messages of one socket are handled before everything else has had its turn."""
HASTE_S = 1e-3
"""A timer that is set is not set anew for less than this; nor are reports looked for twice within it."""
DEAF_S = 0.1
"""A leaf that computes listens again after so long, that it may hear of the end."""
Computed = tuple[tuple[Tensor, ...], float, int, bool, float]
"""As :meth:`Node._gradient` returns it."""


class Node:
    """One node of a run.

    Args:
        plan: the run.
        rank: which node of it.
        addresses: where everybody listens.
        run: the run's id; messages of another are refused.
        incarnation: higher at every start of this node.
        watcher: told what happens.
    """

    def __init__(
        self, plan: Plan, rank: int, addresses: Addresses, run: str, incarnation: int, watcher: Watcher
    ) -> None:
        self.plan, self.rank, self._addresses, self._watcher = plan, rank, addresses, watcher
        self.name = plan.topology.names[rank]
        self.worker: Worker = plan.worker(rank)
        self.algorithm: Algorithm = plan.node(rank, self.worker, incarnation)
        self.codec = plan.codec(self.algorithm, run)
        self.is_root = rank == plan.topology.root
        self._called = plan.topology.called
        buckets = len(self.worker.layout.buckets)
        self._slots = {edge: Slot(buckets) for edge in self.algorithm.out_edges}
        self._due_s = dict.fromkeys(self.algorithm.out_edges, inf)
        self._timers: dict[Edge, asyncio.TimerHandle] = {}
        self._unsent: dict[Edge, tuple[bytes | memoryview | zmq.Frame, ...]] = {}
        self._inlets: list[Inlet] = []
        self._outlets: dict[Edge, Outlet] = {}
        self._fresh: dict[Edge, None] = {}
        self._flushing = False
        self._drained_s = -inf
        self._shared: dict[int, tuple[Tensor, zmq.Frame]] = {}
        self._share = sum(edge.graph == "W" for edge in self.algorithm.out_edges) > (1 if self.is_root else 0)
        self._fed = self.algorithm.fed_by_reports()
        self._reports: Inlet | None = None
        self._models: Inlet | None = None
        self._reports_can_wait = True
        self._came: dict[Graph, Counter[Edge | None]] = {"W": Counter(), "A": Counter()}
        self._ear: asyncio.TimerHandle | None = None
        self._faults = {e: plan.faults.link(e.graph, e.src, e.dst) for e in self.algorithm.in_edges}
        self._compute_pool = ThreadPoolExecutor(1, f"gradient-{rank}")
        every_rounds = plan.settings.evaluate_every
        self._scorer = Scorer(self.worker, f"evaluate-{rank}", every_rounds, self._scored, self._failed)
        self._gradient_cpu0_s = self._gradient_cpu_s = 0.0
        self._halt = threading.Event()
        self._started = False
        self._cpu0_s = time.process_time()
        self.wall_s = 0.0
        self._samples = 0
        self.bytes_sent = self.messages_sent = 0
        self.refused: dict[str, int] = {}
        self.trouble = -1
        self._fault: BaseException | None = None

    # -------------------------------------------------------------------------------------- life

    async def run(self, gate: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """From the first socket to the last: returns when the run has closed.

        Args:
            gate: awaited between "ready" and the start; None: start as soon as the sockets are open.

        Raises:
            UsageError: an address that cannot be bound, a peer that trains another model.
            TaskError: the task raised.
        """
        self._loop = asyncio.get_running_loop()
        self._t0 = self._loop.time()
        self._ready, self._gone, self._stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._news = {edge: asyncio.Event() for edge in self.algorithm.out_edges}
        context: zmq.Context[Any] = zmq.Context(io_threads=1)
        tasks: list[asyncio.Task[None]] = []
        try:
            self._open(context)
            outlets = list(self._outlets.values())
            tasks += [self._spawn(outlet.watch()) for outlet in outlets]
            await self._loop.run_in_executor(self._compute_pool, self._first_batch)
            if gate is not None:
                await self._unless_fault(asyncio.gather(*(outlet.connected.wait() for outlet in outlets)))
            self._watcher.ready(self.worker.layout.hash)
            if gate is not None:
                await self._unless_fault(gate())
            self._t0, self._cpu0_s = self._loop.time(), time.process_time()
            self._started = True
            self.worker.hook("on_start")
            self._tell(Started(0.0))
            tasks += [self._spawn(self._receiving(inlet)) for inlet in self._inlets]
            tasks += [self._spawn(self._sending(outlet)) for outlet in outlets]
            tasks += [self._spawn(self._following(outlet)) for outlet in outlets]
            tasks += [self._spawn(self._computing()), self._spawn(self._reporting())]
            await self._unless_fault(self._gone.wait())
            self.wall_s = self._now()
            await self._last_words()
        finally:
            self._halt.set()
            for timer in (*self._timers.values(), self._ear):
                if timer is not None:
                    timer.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._reports = self._models = None
            while self._inlets:
                self._inlets.pop().close()
            while self._outlets:
                self._outlets.popitem()[1].close()
            context.term()
            self._compute_pool.shutdown(wait=False, cancel_futures=True)  # a gradient may take long: nobody awaits it
            self._scorer.close()

    def stop(self) -> None:
        """End the run (at the root), or this node's part in it (elsewhere). From the loop's thread."""
        if not (self.is_root and self._started):
            self._gone.set()
            return
        try:
            self._tell(StopWanted(self._now()))
        except Exception as error:  # nobody awaits a signal
            self._failed(error)

    def leave(self) -> None:
        """Go now, without waiting for anybody. From the loop's thread."""
        self._gone.set()

    def _open(self, context: zmq.Context[Any]) -> None:
        layout = self.worker.layout
        payload_bytes = max(layout.sizes) * layout.dtype.itemsize
        names: dict[Graph, str] = {"W": "pull", "A": "push"}
        for graph, what in names.items():
            if any(edge.graph == graph for edge in self.algorithm.in_edges):
                address = self._addresses.bound(graph, self.rank)
                where = f"node {self.name}, {what} endpoint"
                inlet = Inlet(context, graph, address, self.codec.max_frame_bytes, payload_bytes, where)
                self._inlets.append(inlet)
                if len(layout.buckets) > RECEIVED_MOST:
                    continue  # they would not all fit in a socket that nobody reads
                if graph == "A" and self._fed:
                    self._reports = inlet
                elif graph == "W" and self.algorithm.models_can_wait:
                    self._models = inlet
        for edge in self.algorithm.out_edges:
            self._outlets[edge] = Outlet(context, edge, self._addresses.target(edge), payload_bytes)

    def _first_batch(self) -> None:
        torch.set_num_threads(1)
        self.worker.prefetch()
        self._gradient_cpu0_s = self._gradient_cpu_s = time.thread_time()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self._failed(error)

        return self._loop.create_task(guarded())

    def _failed(self, error: BaseException) -> None:
        if self._fault is None:
            self._fault = error
            self._watcher.fault(error)
        self._gone.set()

    async def _unless_fault(self, wanted: Any) -> None:
        """Await ``wanted``, but raise as soon as a coroutine has failed or the node was told to go."""
        task = asyncio.ensure_future(wanted)
        gone = asyncio.ensure_future(self._gone.wait())
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
        if self._fault is not None:
            raise self._fault
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
        if self._gone.is_set() and not self._started:
            raise asyncio.CancelledError

    def _now(self) -> float:
        return self._loop.time() - self._t0

    # -------------------------------------------------------------------------------------- events and actions

    def _tell(self, event: Event) -> None:
        actions = self.algorithm.handle(event)
        if self.is_root and not isinstance(event, LinkReady | ModelWanted):
            self._evaluate()
        self._carry_out(actions)

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send(edge, bucket, paces):
                    self._slots[edge].mark(bucket, paces)
                    self._fresh[edge] = None
                case Ready():
                    self._ready.set()
                case SetAside(rank):
                    self._watcher.say(f"{self._called(rank)} has been silent for 10 rounds: set aside until it moves")
                case CountsAgain(rank):
                    self._watcher.say(f"{self._called(rank)} moves: counts again")
                case Stopping():
                    self._stopping.set()
                    self._halt.set()
                    for inlet in self._inlets:
                        inlet.listen(True)
                case Leave():
                    self._gone.set()
                case _:
                    raise AssertionError(f"{action} is answered where it was asked for")
        if not self._flushing:
            self._flush()

    def _flush(self) -> None:
        """Whoever has news and may speak does so, in this very turn of the loop."""
        if not self._outlets and not self._inlets:  # closed
            self._fresh.clear()
            return
        self._flushing = True
        try:
            now = self._now()
            if self._reports is not None and now >= max(self._free_s(1.0 - EARLY), self._drained_s + HASTE_S):
                self._drained_s = now
                self._drain(self._reports)
                self._reports_can_wait = self._few_came("A")
            while self._fresh:
                edge = next(iter(self._fresh))
                del self._fresh[edge]
                self._speak(edge)
        finally:
            self._flushing = False

    def _free_s(self, paces: float) -> float:
        """When so many paces have passed since one of the edges that the reports feed last spoke."""
        pace_s = self.algorithm.pace_s
        return min(self._slots[edge].free(pace_s, paces) for edge in self._fed)

    def _speak(self, edge: Edge) -> None:
        """Say what the edge may say now, one bucket; see that it is woken for what follows."""
        slot, algorithm, outlet = self._slots[edge], self.algorithm, self._outlets.get(edge)
        if outlet is None:  # closed
            return
        pace_s = algorithm.pace_s
        due_s, bucket = slot.due(pace_s, algorithm.resend_s, algorithm.not_before(edge))
        now = self._now()
        if due_s - slot.early_s(bucket, pace_s) > now:
            pass
        elif edge in self._unsent or not outlet.ready():
            self._news[edge].set()  # its coroutine goes on when the socket takes messages again
            due_s = inf
        else:
            slot.spoke(bucket, max(now, due_s))
            for action in algorithm.handle(LinkReady(now, edge, bucket)):
                if not isinstance(action, Transmit):
                    self._carry_out((action,))
                    continue
                header, payload = self.codec.encode(action.message)
                frames = header, self._sharing(action.message, payload)
                if not outlet.send(frames):  # the connection has just gone: what was said must not be lost
                    self._unsent[edge] = frames
                    self._news[edge].set()
                self.bytes_sent += len(header) + len(payload)
                self.messages_sent += 1
            due_s, bucket = slot.due(pace_s, algorithm.resend_s, algorithm.not_before(edge))
            if due_s - slot.early_s(bucket, pace_s) <= now:
                self._news[edge].set()  # the next bucket, after everything else has had its turn
            self._due_s[edge] = inf
        if edge in self._fed and self._reports is not None:
            overdue_s = self._free_s(PATIENT)
            self._reports.listen(not self._reports_can_wait or overdue_s <= now or self._stopping.is_set())
            if overdue_s > now:
                due_s = min(due_s, overdue_s)
        if due_s < self._due_s[edge] - HASTE_S:
            self._arm(edge, due_s)

    def _sharing(self, message: Message, payload: bytes | memoryview) -> bytes | memoryview | zmq.Frame:
        """A model that goes to several children, or came from the parent, is in ZeroMQ's memory once for all."""
        if message.edge.graph == "A" or not self._share:
            return payload
        model, frame = self._shared.get(message.bucket, (None, None))
        if frame is None or model is not message.payload:
            frame = shareable(memoryview(payload))
            self._shared[message.bucket] = message.payload, frame
        return frame

    def _arm(self, edge: Edge, due_s: float) -> None:
        """See that the edge speaks at ``due_s``."""
        if (timer := self._timers.pop(edge, None)) is not None:
            timer.cancel()
        self._due_s[edge] = due_s
        wait_s = due_s - self._now()
        if wait_s <= 0:
            self._news[edge].set()
        elif wait_s < inf:
            wait_s = ceil(wait_s * 1000) / 1000  # uvloop's clock ticks in milliseconds: never wake just before the time
            self._timers[edge] = self._loop.call_later(wait_s, self._time_has_come, edge)

    def _time_has_come(self, edge: Edge) -> None:
        try:
            self._due_s[edge] = inf
            self._fresh[edge] = None
            if not self._flushing:
                self._flush()
        except Exception as error:  # nobody awaits a timer
            self._failed(error)

    # -------------------------------------------------------------------------------------- coroutines

    async def _computing(self) -> None:
        done: asyncio.Future[Computed] | None = None
        waiting: GradientReady | None = None
        while True:
            await self._ready.wait()
            self._ready.clear()
            if self._models is not None:
                self._drain(self._models)
            rounds: tuple[float, ...] = ()
            others: list[Action] = []
            for action in self.algorithm.handle(ModelWanted(self._now())):
                if isinstance(action, RunGradient):
                    done, rounds = self._start(action.model), action.rounds
                else:
                    others.append(action)
            self._carry_out(others)
            if waiting is not None:  # the next gradient is under way: now there is time to tell of the last one
                self._computed(waiting)
                waiting = None
            if done is None:
                continue
            try:
                gradient, loss, samples, finite, seconds = await done
            finally:
                done = None
                if self._ear is not None:
                    self._ear.cancel()
            self._samples += samples
            waiting = GradientReady(self._now(), gradient, samples, loss, rounds, seconds, finite)
            if self.algorithm.gradient_makes_model:
                self._computed(waiting)
                waiting = None
            else:
                self._ready.set()

    def _computed(self, event: GradientReady) -> None:
        self._tell(event)
        if not event.finite and self.trouble < 0 and not self._stopping.is_set():
            self.trouble = self.rank
            self._watcher.say(f"{self._called(self.rank)}: the loss is {event.loss}: its gradient is left out")

    def _start(self, model: tuple[Tensor, ...]) -> asyncio.Future[Computed]:
        """Have the worker thread compute the gradient. A node that passes no model on is not woken by new ones
        meanwhile: it takes them in when it wants one."""
        if self._models is not None and not self._stopping.is_set():
            can_wait = self._few_came("W")
            self._models.listen(not can_wait)
            if can_wait:
                self._ear = self._loop.call_later(DEAF_S, self._models.listen, True)
        done: asyncio.Future[Computed] = self._loop.create_future()
        self._compute_pool.submit(self._work, model, done)
        return done

    def _work(self, model: tuple[Tensor, ...], done: asyncio.Future[Computed]) -> None:
        """In the worker thread: :meth:`_gradient`, and hand it to the loop."""
        found: Computed | None = None
        error: BaseException | None = None
        try:
            found = self._gradient(model)
        except BaseException as raised:
            error = raised

        def settle() -> None:
            if done.cancelled():
                return
            if found is None:
                done.set_exception(error or RuntimeError("no gradient"))
            else:
                done.set_result(found)

        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
            self._loop.call_soon_threadsafe(settle)

    def _gradient(self, model: tuple[Tensor, ...]) -> Computed:
        """In the worker thread: the gradient, then, where speeds are emulated, the wait up to the drawn duration.

        Returns:
            Gradient per bucket, loss, samples, whether all of it is finite, and the seconds it took.
        """
        settings, began_s = self.plan.settings, time.perf_counter()
        gradient, loss, samples = self.worker.gradient(model, settings.report)
        finite = all_finite(loss, gradient)
        drawn_s = self.plan.speeds.seconds(self.rank, self._samples, samples, settings.share)
        self._gradient_cpu_s = time.thread_time()
        if drawn_s:
            self._halt.wait(max(0.0, began_s + drawn_s - time.perf_counter()))
        return gradient, loss, samples, finite, time.perf_counter() - began_s

    async def _receiving(self, inlet: Inlet) -> None:
        while True:
            await inlet.readable()
            self._drain(inlet)
            await asyncio.sleep(0)  # a flood on one socket must not starve the loop

    def _drain(self, inlet: Inlet) -> None:
        """Take in what has come."""
        for _ in range(TURNS):
            if (frames := inlet.take()) is None:
                return
            try:
                message = self.codec.decode([frame.buffer for frame in frames])
            except Refused as refused:
                self._came[inlet.graph][None] += 1
                self._refuse(refused, inlet.graph)
            else:
                self._came[inlet.graph][message.edge] += 1
                if message.edge.graph == "W" and self._share:
                    self._shared[message.bucket] = message.payload, frames[1]
                for delivered in self._faults[message.edge].apply(message):
                    self._tell(Received(self._now(), delivered))
        inlet.more()

    def _few_came(self, graph: Graph) -> bool:
        """Since this was last asked, has nobody sent so much that some may not have had room in the socket? Else what
        follows must not wait there: it would queue up behind, and be read later and later."""
        came, self._came[graph] = self._came[graph], Counter()
        return max(came.values(), default=0) < REFILLED

    def _refuse(self, refused: Refused, graph: Graph) -> None:
        first = refused.reason not in self.refused
        self.refused[refused.reason] = self.refused.get(refused.reason, 0) + 1
        if first:
            hint = HINTS.get(refused.reason, "")
            who = self._called(self.rank)
            self._watcher.say(f"{who} refused a message: {refused}{hint} (further ones are only counted)")
        if refused.reason == "layout" and graph == "W" and self.algorithm.export() is None:
            raise UsageError(
                f"node {self.name}: the node it takes models from trains another model ({refused});"
                " start every node with the same task file and the same options"
            )

    async def _sending(self, outlet: Outlet) -> None:
        """Goes on when the edge could not speak at once: when its socket takes messages again, or has taken one of
        several that are due. (What may be said at once, :meth:`_speak` says in the turn of the loop that brought it.)
        """
        edge, news = outlet.edge, self._news[outlet.edge]
        while True:
            await news.wait()
            news.clear()
            await outlet.writable()
            if (frames := self._unsent.get(edge)) is not None:
                if not outlet.send(frames):
                    news.set()
                    continue
                del self._unsent[edge]
            self._time_has_come(edge)

    async def _following(self, outlet: Outlet) -> None:
        """Who is connected when the run closes, and who leaves then."""
        await self._stopping.wait()
        if not outlet.connected.is_set():
            self._tell(PeerLeft(self._now(), outlet.edge.dst))
        while True:
            await outlet.lost.wait()
            self._tell(PeerLeft(self._now(), outlet.edge.dst))
            await outlet.connected.wait()

    async def _reporting(self) -> None:
        before_s, before = 0.0, 0
        while True:
            await asyncio.sleep(REPORT_S if not self._stopping.is_set() else REPORT_S / 5)
            if self._stopping.is_set():
                self._tell(Tick(self._now()))
            now, status = self._now(), self.algorithm.status()
            pace = (status.own_samples - before) / max(now - before_s, 1e-9)
            before_s, before = now, status.own_samples
            self.worker.hook("on_report", status)
            self._watcher.report({**self.standing(), "time_s": now, "samples_per_s": pace})
            if self.is_root and status.trouble >= 0 and not status.stopping:
                self.trouble = status.trouble
                self._watcher.say(
                    f"{self._called(status.trouble)}: its loss is no longer finite at round {status.rounds:.1f}:"
                    " the run ends; try a lower --lr"
                )
                self._tell(StopWanted(now))

    # -------------------------------------------------------------------------------------- evaluation (the root)

    def _evaluate(self) -> None:
        """Score a snapshot off the training path, if one is due."""
        if self._started and not self._stopping.is_set() and self._scorer.due(self.algorithm.rounds):
            self._snapshot()

    def _snapshot(self) -> None:
        if (model := self.algorithm.export()) is None:
            return
        status = self.algorithm.status()
        point = Point(
            time_s=self._now(),
            samples=status.samples,
            rounds=status.rounds,
            train_loss=status.loss,
            staleness_rounds=status.staleness_rounds,
            bytes_sent=self.bytes_sent,
        )
        self._scorer.take(model, point)

    def _scored(self, point: Point) -> None:
        self._watcher.point(point)
        target = self.plan.settings.target
        if target is not None and point.accuracy is not None and point.accuracy >= target:
            self._tell(StopWanted(self._now()))

    async def _last_words(self) -> None:
        """Score the model as it is at the end."""
        if self.is_root and self._started:
            await self._scorer.settled()
            if self.trouble < 0 and self._fault is None:
                self._snapshot()
                await self._scorer.settled()
            if self._fault is not None:
                raise self._fault
        self.worker.hook("on_stop")

    # -------------------------------------------------------------------------------------- what is known of it

    def standing(self) -> dict[str, Any]:
        """How the node stands: plain numbers, for reports and the result."""
        status = self.algorithm.status()
        cpu_s = time.process_time() - self._cpu0_s
        return {
            "rank": self.rank,
            "rounds": status.rounds,
            "samples": status.samples,
            "own_samples": status.own_samples,
            "gradients": status.gradients,
            "loss": status.loss,
            "staleness_rounds": status.staleness_rounds,
            "pace": status.pace,
            "slowest_rank": status.slowest_rank,
            "slowest_pace": status.slowest_pace,
            "set_aside": list(status.set_aside),
            "trouble": status.trouble if status.trouble >= 0 else self.trouble,
            "accepted": status.accepted,
            "stale": status.stale,
            "bytes_sent": self.bytes_sent,
            "messages_sent": self.messages_sent,
            "refused": dict(self.refused),
            "faults": {
                name: sum(getattr(link, name) for link in self._faults.values())
                for name in ("dropped", "duplicated", "reordered")
            },
            "cpu_s": cpu_s,
            "communication_cpu_s": cpu_s - (self._gradient_cpu_s - self._gradient_cpu0_s) - self._scorer.cpu_s,
            "memory_bytes": peak_memory_bytes(),
            "pace_s": self.algorithm.pace_s,
        }

    def final_model(self) -> dict[str, Tensor] | None:
        """What to save: the model at the end; the last good one if the run ended in trouble."""
        self._compute_pool.shutdown(wait=not self.is_root)  # away from the root it is the training module that is saved
        model = self.algorithm.export()
        if model is None:
            return None
        if self.trouble >= 0 or not all(is_finite(t) for t in model):
            model = self._scorer.good_model
        return None if model is None else self.worker.state_dict(model)


def peak_memory_bytes() -> int:
    """The most memory this process has had resident; 0 where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
