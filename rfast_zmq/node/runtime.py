"""A real node: one asyncio loop that feeds the core with events and carries out its actions.

The compute coroutine hands a model to a worker thread and gets a gradient back → ``handle(GradientReady)`` → ``Send``
marks an edge → :mod:`~rfast_zmq.node.exchange` says and hears what is to be said and heard → the next model.

No coroutine waits for another node, and there is no timeout in the data path: a coroutine waits for its own thread, its
own socket, or its own clock (pace, idle resend, emulated compute).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import zmq
from torch import Tensor

from rfast_zmq.algorithms import Algorithm
from rfast_zmq.assembly import Plan
from rfast_zmq.core.events import (
    Action,
    CountsAgain,
    Event,
    GradientReady,
    Graph,
    Leave,
    LinkReady,
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
)
from rfast_zmq.errors import Refused, UsageError
from rfast_zmq.node.exchange import TURN_BYTES, Exchange
from rfast_zmq.node.gradients import Gradient, Gradients
from rfast_zmq.node.process import REPORT_S, peak_memory_bytes, unless_gone
from rfast_zmq.node.scoring import Gatherer, Scorer, Shown, Snapshot
from rfast_zmq.node.steps import Steps
from rfast_zmq.node.watcher import Watcher
from rfast_zmq.results import Point
from rfast_zmq.task import Trained, Worker
from rfast_zmq.task.finite import is_finite
from rfast_zmq.transport import Addresses, Outlet

TOLD_MOST = 16
"""So many buckets of a gradient, and no more than ``TURN_BYTES`` (but one bucket), are told in one turn of the loop."""
HINTS = {"run": "; the nodes of a run share topology, algorithm, batch, split and seed, or a --run-id"}


class Node:
    """One node of a run.

    Args:
        plan: the run.
        rank: which node of it.
        addresses: where everybody listens.
        run: the run's id; messages of another are refused.
        incarnation: higher at every start of this node.
        watcher: told what happens.
        own: a model that a loop of the user's own trains, and what passes between the two; None: the plan's task.
        gatherer: brings the models of all nodes together, where their mean is judged; None: nobody here can, and until
            the end the root's own model is judged.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        addresses: Addresses,
        run: str,
        incarnation: int,
        watcher: Watcher,
        own: tuple[Trained, Steps] | None = None,
        gatherer: Gatherer | None = None,
    ) -> None:
        self.plan, self.rank, self._addresses, self._watcher = plan, rank, addresses, watcher
        self._gatherer = gatherer if plan.method.judged_by_mean else None
        self.name = plan.topology.names[rank]
        trained = plan.worker(rank) if own is None else own[0]
        self.worker: Trained = trained
        self.algorithm: Algorithm = plan.node(rank, self.worker, incarnation)
        self.is_root = rank == plan.topology.root
        self._called = plan.topology.called
        self._faults = {e: plan.faults.link(e.graph, e.src, e.dst) for e in self.algorithm.in_edges}
        self._exchange = Exchange(
            self.algorithm,
            plan.codec(self.algorithm, run),
            self._faults,
            now=self._now,
            tell=self._tell,
            carry_out=self._carry_out,
            refused=self._refuse,
            failed=self._failed,
        )
        self._gradients: Gradients | Steps
        if own is None:
            assert isinstance(trained, Worker)
            self._gradients = Gradients(trained, plan.speeds, plan.settings, soon=self._soon, news=self._heed)
        else:
            self._gradients = own[1]
            own[1].attach(self._soon, self._heed)
        every_rounds = plan.settings.evaluate_every
        self._scores = own is None
        """Whether the node evaluates; the user's own loop sees to it itself."""
        self._scorer = Scorer(self.worker, f"evaluate-{rank}", every_rounds, self._scored, self._failed)
        self._started = False
        self._cpu0_s = time.process_time()
        self.wall_s = 0.0
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
        context: zmq.Context[Any] = zmq.Context(io_threads=1)
        tasks: list[asyncio.Task[None]] = []
        try:
            self._exchange.open(context, self._addresses, self.rank, self.name)
            outlets = list(self._exchange.outlets.values())
            tasks += [self._spawn(outlet.watch()) for outlet in outlets]
            await self._gradients.first_batch()
            if gate is not None:
                await self._unless_fault(asyncio.gather(*(outlet.connected.wait() for outlet in outlets)))
            self._watcher.ready(self.worker.layout.hash)
            if gate is not None:
                await self._unless_fault(gate())
            self._t0, self._cpu0_s = self._loop.time(), time.process_time()
            self._started = True
            self.worker.hook("on_start")
            self._tell(Started(0.0))
            tasks += [self._spawn(work) for work in self._exchange.coroutines()]
            tasks += [self._spawn(self._following(outlet)) for outlet in outlets]
            tasks += [self._spawn(self._computing()), self._spawn(self._reporting())]
            await self._unless_fault(self._gone.wait())
            self.wall_s = self._now()
            await self._last_words()
        finally:
            self._gradients.halt()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._exchange.close()
            context.term()
            self._gradients.close(wait=False)  # a gradient may take long
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
        await unless_gone(wanted, self._gone, lambda: self._fault, lambda: self._started)

    def _soon(self, act: Callable[[], None]) -> None:
        """Have the loop call it; from another thread."""
        self._loop.call_soon_threadsafe(act)

    def _heed(self) -> None:
        """A gradient is done."""
        self._ready.set()

    def _now(self) -> float:
        return self._loop.time() - self._t0

    # -------------------------------------------------------------------------------------- events and actions

    def _tell(self, event: Event) -> None:
        actions = self.algorithm.handle(event)
        if self.is_root and not isinstance(event, LinkReady | ModelWanted):
            self._evaluate()
        self._carry_out(actions)
        if isinstance(event, Received) and self._gradients.busy and not self.algorithm.gradient_makes_model:
            self._ask()  # there may be a newer model for the gradient after the present one

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._exchange.mark(action)
                case Ready():
                    self._ready.set()
                case SetAside(rank):
                    self._watcher.say(f"{self._called(rank)} has been silent for 10 rounds: set aside until it moves")
                case CountsAgain(rank):
                    self._watcher.say(f"{self._called(rank)} moves: counts again")
                case Stopping():
                    self._stopping.set()
                    self._gradients.halt()
                    self._exchange.listen()
                case Leave():
                    self._gone.set()
                case _:
                    raise AssertionError(f"{action} is answered where it was asked for")
        self._exchange.flush()

    # -------------------------------------------------------------------------------------- coroutines

    async def _computing(self) -> None:
        """See that the worker thread has a model, and tell the core of the gradients."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            done = list(self._gradients.done())
            if done:
                self._exchange.computed()
            if not done or not self.algorithm.gradient_makes_model:
                self._begin(bool(done))
            done.reverse()
            while done:
                await self._computed(done.pop())

    def _begin(self, another: bool) -> None:
        """Give the worker thread a model if it has none (``another``: it has just begun another gradient)."""
        idle = not self._gradients.busy
        if idle:
            self._exchange.catch_up()
            self._ask()
        if self._gradients.busy and (idle or another):
            self._exchange.computing(self._gradients.least_s)

    def _ask(self) -> None:
        """Offer the worker thread the model of now."""
        others: list[Action] = []
        for action in self.algorithm.handle(ModelWanted(self._now())):
            if isinstance(action, RunGradient):
                self._gradients.offer(action)
            else:
                others.append(action)
        self._carry_out(others)

    async def _computed(self, found: Gradient) -> None:
        """Tell the core, so much at a time: a large model must not keep the loop from all else."""
        rest = list(found.gradient)
        found, first = replace(found, gradient=()), 0
        rest.reverse()
        while rest:  # of which nothing is held any longer than the core holds it
            if first:
                await asyncio.sleep(0)
            part = [rest.pop()]
            room_bytes = TURN_BYTES - part[0].nbytes
            while rest and (not found.finite or (len(part) < TOLD_MOST and rest[-1].nbytes <= room_bytes)):
                part.append(rest.pop())
                room_bytes -= part[-1].nbytes
            self._tell(
                GradientReady(
                    now=self._now(),
                    gradient=tuple(part),
                    samples=found.samples,
                    loss=found.loss,
                    rounds=found.rounds,
                    seconds=found.seconds,
                    finite=found.finite,
                    first=first,
                    steps=found.steps,
                )
            )
            first += len(part)
            part.clear()
        if not found.finite and self.trouble < 0 and not self._stopping.is_set():
            self.trouble = self.rank
            what = "the gradient is not finite" if found.loss is None else f"the loss is {found.loss}"
            self._watcher.say(f"{self._called(self.rank)}: {what}: its gradient is left out")

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
                    f"{self._called(status.trouble)}: its loss or model is no longer finite at round"
                    f" {status.rounds:.1f}: the run ends; try a lower --lr"
                )
                self._tell(StopWanted(now))

    # -------------------------------------------------------------------------------------- evaluation (the root)

    def _evaluate(self) -> None:
        """Score a snapshot off the training path, if one is due."""
        if self._scores and self._started and not self._stopping.is_set() and self._scorer.due(self.algorithm.rounds):
            self._snapshot()

    def _snapshot(self, *, last: bool = False) -> None:
        """Have the model as it is now scored. ``last``: the run has closed, and where the mean is judged the root has
        it itself."""
        status = self.algorithm.status()
        by_mean = self._gatherer is not None
        point = Point(
            time_s=self._now(),
            samples=status.samples,
            rounds=status.samples / self.algorithm.config.global_batch if by_mean else status.rounds,
            train_loss=status.loss,
            staleness_rounds=status.staleness_rounds,
            bytes_sent=self._exchange.bytes_sent,
        )
        if self._gatherer is not None and not last:
            if not status.stopping:
                self._scorer.take_later(partial(self._mean_of_all, self._gatherer, point), point)
        elif (model := self.algorithm.export()) is not None:
            self._scorer.take(model, point)

    async def _mean_of_all(self, gatherer: Gatherer, point: Point) -> Snapshot | None:
        """The mean to be scored, whose ``point`` then says when that was and how far all nodes together were."""
        together = await gatherer.everybody()
        if together is None or self._stopping.is_set():  # as the run closes some show a model and some do not
            return None
        point.time_s, point.samples = together.clock_s - self._t0, together.samples
        point.rounds = together.samples / self.algorithm.config.global_batch
        return together.mean

    def shown(self) -> Shown:
        """This node as it is now, for the mean; as the run closes without a model."""
        status = self.algorithm.status()
        return Shown(None if status.stopping else self.algorithm.export(), status.own_samples, self._loop.time())

    def _scored(self, point: Point) -> None:
        self._watcher.point(point)
        target = self.plan.settings.target
        if target is not None and point.accuracy is not None and point.accuracy >= target:
            self._tell(StopWanted(self._now()))

    async def _last_words(self) -> None:
        """Score the model as it is at the end."""
        if self.is_root and self._started:
            await self._scorer.settled()
            if self._scores and self.trouble < 0 and self._fault is None:
                self._snapshot(last=True)
                await self._scorer.settled()
            if self._fault is not None:
                raise self._fault
        self.worker.hook("on_stop")

    # -------------------------------------------------------------------------------------- what is known of it

    def standing(self) -> dict[str, Any]:
        """How the node stands: plain numbers, for reports and the result."""
        status = self.algorithm.status()
        cpu_s = time.process_time() - self._cpu0_s - (0.0 if self._gatherer is None else self._gatherer.cpu_s)
        return {
            "rank": self.rank,
            "rounds": status.rounds,
            "samples": status.samples,
            "own_samples": status.own_samples,
            "gradients": status.gradients,
            "loss": status.loss,
            "staleness_rounds": status.staleness_rounds,
            "pace": status.pace,
            "waited_s": status.waited_s,
            "slowest_rank": status.slowest_rank,
            "slowest_pace": status.slowest_pace,
            "set_aside": list(status.set_aside),
            "trouble": status.trouble if status.trouble >= 0 else self.trouble,
            "accepted": status.accepted,
            "stale": status.stale,
            "bytes_sent": self._exchange.bytes_sent,
            "messages_sent": self._exchange.messages_sent,
            "refused": dict(self.refused),
            "faults": {
                name: sum(getattr(link, name) for link in self._faults.values())
                for name in ("dropped", "duplicated", "reordered")
            },
            "cpu_s": cpu_s,
            "communication_cpu_s": cpu_s - self._gradients.cpu_s - self._scorer.cpu_s,
            "memory_bytes": peak_memory_bytes(),
            "pace_s": self.algorithm.pace_s,
        }

    def last_record(self) -> Mapping[str, Tensor | float]:
        """Of the algorithm, after the run has closed."""
        return self.algorithm.last_record()

    def newest_model(self) -> dict[str, Tensor] | None:
        """The model as it is, in the midst of the run; None: there is none, or none that is worth keeping."""
        model = self.algorithm.export()
        if model is None or self.trouble >= 0 or not all(is_finite(bucket) for bucket in model):
            return None
        return self.worker.state_dict(model)

    def final_model(self) -> dict[str, Tensor] | None:
        """What to save: the model at the end; the last good one if the run ended in trouble."""
        self._gradients.close(wait=not self.is_root)  # away from the root it is the training module that is saved
        model = self.algorithm.export()
        if model is None:
            return None
        if self.is_root and (self.trouble >= 0 or not all(is_finite(t) for t in model)):
            model = self._scorer.good_model
        return None if model is None else self.worker.state_dict(model)
