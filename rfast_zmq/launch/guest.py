"""A node's place in a loopback run that somebody else's code trains: torch's DDP, hivemind.

What is trained, on which samples, from which model, with which draws, and how it is judged is a node's own: the same
:class:`~rfast_zmq.task.Worker` stands behind both. How it is trained is the guest's: a thread of its own goes from step
to step (:meth:`Guest._step`), while the loop hears the launcher, reports, and scores what the root's model is between
two steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from rfast_zmq.assembly import Plan
from rfast_zmq.core.interface import Status
from rfast_zmq.errors import RfastError, TaskError, UsageError
from rfast_zmq.node.process import REPORT_S, peak_memory_bytes, unless_gone
from rfast_zmq.node.scoring import Scorer
from rfast_zmq.node.watcher import Watcher
from rfast_zmq.results import Point
from rfast_zmq.task.finite import is_finite

BROKEN_S = 2.0
"""So long the launcher has, after a step failed, to say that another process is to blame."""


class Guest(ABC):
    """One rank of a run that somebody else's code trains.

    A subclass has the rest of what :class:`~rfast_zmq.launch.process.Member` asks for: ``last_record``.

    Args:
        plan: the run.
        rank: which of it.
        folder: of the run; the ranks find each other in it.
        watcher: told what happens.
    """

    def __init__(self, plan: Plan, rank: int, folder: Path, watcher: Watcher) -> None:
        self.plan, self.rank, self._folder, self._watcher = plan, rank, folder, watcher
        self.worker = plan.worker(rank)
        self.is_root = rank == plan.topology.root
        self.wall_s = 0.0
        self.trouble = -1
        self._n = plan.topology.nodes
        self._pool = ThreadPoolExecutor(1, f"training-{rank}")
        self._scorer = Scorer(self.worker, f"evaluate-{rank}", plan.settings.evaluate_every, self._scored, self._failed)
        self._handing_over = False
        """A snapshot is on its way to the loop."""
        self._stepping = threading.Lock()
        """Held while the parameters change."""
        self._stop_wanted = False
        self._started = False
        self._fault: BaseException | None = None
        self._cpu0_s = time.process_time()
        self._thread_cpu_s = 0.0
        self._steps = self._gradients = self._samples = self._own_samples = self._bytes = 0
        self._pace = self._waited_s = self._rounds = 0.0
        self._mean_loss = nan
        self._paces = [0.0] * self._n

    # -------------------------------------------------------------------------------------- for the subclass

    meets_in_thread: ClassVar[bool] = True
    """Whether :meth:`_meet` may run beside the loop; else the loop stands still meanwhile."""

    @abstractmethod
    def _meet(self) -> None:
        """Get to know the other ranks, up to the first step. In the training thread, as all of these."""

    @abstractmethod
    def _step(self) -> bool:
        """One step. Is there to be another?"""

    def _part(self) -> None:
        """The last step is done."""
        return

    def _tidy(self) -> None:
        """However it ended: leave nothing behind."""
        return

    def _model_now(self) -> tuple[Tensor, ...]:
        """The model as of the last whole step."""
        with self._stepping:
            return self.worker.initial()

    def _explained(self, error: Exception) -> UsageError | None:
        """What the user did wrong, if that is why a step failed."""
        return None

    # -------------------------------------------------------------------------------------- life

    async def run(self, gate: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """From the meeting of the ranks to the last evaluation.

        Args:
            gate: awaited between "ready" and the start.

        Raises:
            TaskError: the task raised, or torch for it.
            UsageError: its loss, or what it gave else, will not do.
        """
        self._loop = asyncio.get_running_loop()
        self._t0, self._gone = self._loop.time(), asyncio.Event()
        try:
            if self.meets_in_thread:
                await self._in_thread(self._meet)
            else:
                self._meet()
            self._watcher.ready(self.worker.layout.hash)
            await self._unless_gone(gate())
            self._t0, self._cpu0_s = self._loop.time(), time.process_time()
            self._started = True
            self.worker.hook("on_start")
            training = asyncio.ensure_future(self._in_thread(self._train))
            reporting = asyncio.ensure_future(self._reported())
            await self._unless_gone(self._trained(training))
            reporting.cancel()
            self.wall_s = self._now()
            await self._last_words()
        finally:
            self._tidy()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._scorer.close()

    def stop(self) -> None:
        """End the run in order. From the loop's thread."""
        self._stop_wanted = True

    def leave(self) -> None:
        """Go now. From the loop's thread."""
        self._gone.set()

    def _in_thread(self, act: Callable[[], None]) -> asyncio.Future[None]:
        return self._loop.run_in_executor(self._pool, act)

    async def _unless_gone(self, wanted: Coroutine[Any, Any, None]) -> None:
        """Await ``wanted``, but not once the node was told to go."""
        await unless_gone(wanted, self._gone, lambda: self._fault, lambda: self._started)

    async def _trained(self, training: asyncio.Future[None]) -> None:
        try:
            await training
        except RfastError:
            raise
        except Exception as error:
            # It may fail alike where a peer is gone and where the task's own backward pass fails.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), BROKEN_S)
                return
            if (why := self._explained(error)) is not None:
                raise why from error
            raise TaskError(self.rank, "".join(traceback.format_exception(error))) from error

    def _failed(self, error: BaseException) -> None:
        if self._fault is None:
            self._fault = error
            self._watcher.fault(error)
        self._gone.set()

    def _now(self) -> float:
        return self._loop.time() - self._t0

    # -------------------------------------------------------------------------------------- in the training thread

    def _train(self) -> None:
        """Until all agree to end."""
        began_s = time.thread_time()
        self._snapshot_if_due()
        another = True
        while another:
            another = self._step()
            self._snapshot_if_due()
            self._thread_cpu_s = time.thread_time() - began_s
        self._part()

    # -------------------------------------------------------------------------------------- evaluation (the root)

    def _snapshot_if_due(self) -> None:
        """In the training thread, between two steps."""
        if self.is_root and not self._handing_over and self._scorer.due(self._rounds):
            self._handing_over = True
            self._loop.call_soon_threadsafe(partial(self._take, self._model_now(), self._point()))

    def _take(self, model: tuple[Tensor, ...], point: Point) -> None:
        self._scorer.take(model, point)
        self._handing_over = False

    def _point(self) -> Point:
        return Point(
            time_s=self._now(),
            samples=self._samples,
            rounds=self._rounds,
            train_loss=self._mean_loss,
            bytes_sent=self._bytes,
        )

    def _scored(self, point: Point) -> None:
        self._watcher.point(point)
        target = self.plan.settings.target
        if target is not None and point.accuracy is not None and point.accuracy >= target:
            self._stop_wanted = True

    async def _last_words(self) -> None:
        """Score the model as it is at the end."""
        if self.is_root:
            await self._scorer.settled()
            if self.trouble < 0 and self._fault is None:
                self._take(self._model_now(), self._point())
                await self._scorer.settled()
            if self._fault is not None:
                raise self._fault
        self.worker.hook("on_stop")

    # -------------------------------------------------------------------------------------- what is known of it

    def _say_trouble(self) -> None:
        who = self.plan.topology.called(self.trouble)
        if self.is_root:
            self._watcher.say(
                f"{who}: its loss is no longer finite at round {self._rounds:.1f}: the run ends; try a lower --lr"
            )

    async def _reported(self) -> None:
        try:
            await self._reporting()
        except Exception as error:  # the user's hook
            self._failed(error)

    async def _reporting(self) -> None:
        before_s, before = 0.0, 0
        while True:
            await asyncio.sleep(REPORT_S)
            now, own = self._now(), self._own_samples
            pace = (own - before) / max(now - before_s, 1e-9)
            before_s, before = now, own
            self.worker.hook("on_report", self._status())
            self._watcher.report({**self.standing(), "time_s": now, "samples_per_s": pace})

    def _helpers_cpu_s(self) -> float:
        """CPU seconds of processes that this one has started."""
        return 0.0

    def _status(self) -> Status:
        slowest = min((r for r in range(self._n) if self._paces[r]), key=lambda r: self._paces[r], default=-1)
        return Status(
            rounds=self._rounds,
            samples=self._samples,
            own_samples=self._own_samples,
            gradients=self._gradients,
            loss=self._mean_loss,
            pace=self._pace,
            slowest_rank=slowest,
            slowest_pace=inf if slowest < 0 else self._paces[slowest],
            trouble=self.trouble,
            waited_s=self._waited_s,
        )

    def standing(self) -> dict[str, Any]:
        """How the rank stands, as :meth:`rfast_zmq.node.Node.standing` has it."""
        cpu_s = time.process_time() - self._cpu0_s + self._helpers_cpu_s()
        return {
            "rank": self.rank,
            **{f.name: getattr(self._status(), f.name) for f in fields(Status)},
            "set_aside": [],
            "bytes_sent": self._bytes,
            "messages_sent": 0,
            "refused": {},
            "faults": {},
            "cpu_s": cpu_s,
            "communication_cpu_s": cpu_s - self._thread_cpu_s - self._scorer.cpu_s,
            "memory_bytes": peak_memory_bytes(),
            "pace_s": 0.0,
        }

    def newest_model(self) -> dict[str, Tensor] | None:
        """The model after the last whole step; None: it is not finite."""
        model = self._model_now()
        return self.worker.state_dict(model) if all(is_finite(bucket) for bucket in model) else None

    def final_model(self) -> dict[str, Tensor] | None:
        """What to save: the model at the end; where that is not finite, the last good one."""
        if (newest := self.newest_model()) is not None:
            return newest
        return None if (good := self._scorer.good_model) is None else self.worker.state_dict(good)
