"""One process of ``--algorithm ddp``: torch's ``DistributedDataParallel`` over gloo, in the place of a node.

What is trained, on which samples, from which model, with which draws, and how it is judged is a node's own: the same
:class:`~rfast_zmq.task.Worker` stands behind both. How it is trained is torch's: the task's loss is the ``forward`` of
a module that DDP wraps, and a ``torch.optim`` optimiser takes the step::

    while there is reason to go on:
        zero_grad;  loss, word = ddp(batch)
        (w_i n / Σ w · loss + word · content).backward()      # torch averages the buckets meanwhile
        clip_grad_norm_ of the mean;  optimizer.step()

DDP takes the plain mean over nodes, so the loss is scaled by a node's weight over the mean weight.

``word`` is one more, tiny parameter, always 0, whose gradient is what a rank has to say to all: how many samples this
step has, its loss, and, from the root, whether the run is to end. It travels in torch's own bucket, so it costs no
message, and everybody stops after the same step. A step in which somebody's loss is not finite is taken by nobody.

**Emulated times** (``--compute``) pass where they would on a slow device: see :mod:`~rfast_zmq.launch.slowed`.

**Optimiser.** The steps of ``ring-allreduce``: see :mod:`~rfast_zmq.launch.ddp_optimizer`.

**Figures.** A node's waiting is the time of its backward pass after its last gradient was there. Bytes are reckoned,
not measured: what a ring all-reduce sends, 2 (n − 1)/n of the vector a node. The CPU of communication is all but what
the training thread and the evaluation cost; copying gradients into torch's buckets is the training thread's.

A process that is gone breaks the others' connections, and torch raises in whatever they do then; one that hangs is
waited for. Both ends are the launcher's to bring about.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rfast_zmq.assembly import Plan
from rfast_zmq.core.interface import Status
from rfast_zmq.errors import RfastError, TaskError, UsageError
from rfast_zmq.launch.ddp_optimizer import make_optimizer, plain
from rfast_zmq.launch.slowed import SlowedBackward
from rfast_zmq.node.runtime import REPORT_S, peak_memory_bytes
from rfast_zmq.node.scoring import Scorer
from rfast_zmq.node.watcher import Watcher
from rfast_zmq.results import Point
from rfast_zmq.task import Worker
from rfast_zmq.task.finite import is_finite

BROKEN_S = 2.0
"""So long the launcher has, after torch raised, to say that another process is to blame."""
WORD = 4
"""Numbers of the word before those of the ranks."""


class DdpNode:
    """One rank.

    Args:
        plan: the run.
        rank: which of it.
        folder: of the run; the ranks find each other in it.
        watcher: told what happens.
        interface: of the network that the ranks talk over; None: the loopback's.
    """

    def __init__(self, plan: Plan, rank: int, folder: Path, watcher: Watcher, interface: str | None = None) -> None:
        self._interface = interface or ("lo" if sys.platform == "linux" else "lo0")
        self.plan, self.rank, self._folder, self._watcher = plan, rank, folder, watcher
        self.worker = plan.worker(rank)
        self._optimizer = make_optimizer(plan.settings, self.worker)
        self.is_root = rank == plan.topology.root
        self.wall_s = 0.0
        self.trouble = -1
        self._n = plan.topology.nodes
        self._pool = ThreadPoolExecutor(1, f"ddp-{rank}")
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
        self._steps = self._samples = self._own_samples = self._bytes = 0
        self._pace = self._waited_s = self._rounds = 0.0
        self._mean_loss = nan
        self._paces = [0.0] * self._n

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
            await self._in_thread(self._meet)
            self._watcher.ready(self.worker.layout.hash)
            await self._unless_gone(gate())
            self._t0, self._cpu0_s = self._loop.time(), time.process_time()
            self._started = True
            self.worker.hook("on_start")
            training = asyncio.ensure_future(self._in_thread(self._train))
            reporting = asyncio.ensure_future(self._reporting())
            await self._unless_gone(self._trained(training))
            reporting.cancel()
            self.wall_s = self._now()
            await self._last_words()
        finally:
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
        task, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(self._gone.wait())
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

    async def _trained(self, training: asyncio.Future[None]) -> None:
        try:
            await training
        except RfastError:
            raise
        except Exception as error:
            # Torch raises alike where a peer is gone and where the task's own backward pass fails.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), BROKEN_S)
                return
            if "find_unused_parameters" in str(error):
                raise UsageError(
                    "a step left a parameter of the model unused, for which torch's DDP waits; add --algorithm-option"
                    " find_unused_parameters=1"
                ) from error
            raise TaskError(self.rank, "".join(traceback.format_exception(error))) from error

    def _failed(self, error: BaseException) -> None:
        if self._fault is None:
            self._fault = error
            self._watcher.fault(error)
        self._gone.set()

    def _now(self) -> float:
        return self._loop.time() - self._t0

    # -------------------------------------------------------------------------------------- in the training thread

    def _meet(self) -> None:
        """First batch, the group of ranks, the wrapped module. Ranks whose models differ wrap none: the launcher will
        say so.
        """
        torch.set_num_threads(1)
        self.worker.prefetch()
        os.environ["GLOO_SOCKET_IFNAME"] = self._interface
        where = (self._folder / "meeting").as_uri()
        dist.init_process_group("gloo", init_method=where, rank=self.rank, world_size=self._n)
        layout, options = self.worker.layout, self.plan.options
        mine = torch.tensor([self.worker.weight, int(layout.hash[:12], 16)], dtype=torch.float64)
        everybodys = [torch.empty_like(mine) for _ in range(self._n)]
        dist.all_gather(everybodys, mine)
        if any(theirs[1] != mine[1] for theirs in everybodys):
            return
        self._scale = self.worker.weight * self._n / sum(float(theirs[0]) for theirs in everybodys)
        self._model = DistributedDataParallel(
            _Step(self.worker, WORD + 2 * self._n),
            bucket_cap_mb=options["bucket_mb"],
            find_unused_parameters=bool(options["find_unused_parameters"]),
        )
        self._backward = SlowedBackward(p for group in self.worker.parameters() for p in group)
        self._step_bytes = 2 * (self._n - 1) * 4 * (layout.parameters + WORD + 2 * self._n) // self._n

    def _train(self) -> None:
        """Until all agree to end."""
        began_s = time.thread_time()
        self._snapshot_if_due()
        another = True
        while another:
            another = self._step()
            self._snapshot_if_due()
            self._thread_cpu_s = time.thread_time() - began_s
        with contextlib.suppress(RuntimeError):  # who is through it may be gone before the others are
            dist.barrier()

    def _step(self) -> bool:
        """One step. Is there to be another?"""
        settings = self.plan.settings
        began_s = time.perf_counter()
        batch, samples = self.worker.next_batch(settings.report)
        drawn_s = self.plan.speeds.seconds(self.rank, self._own_samples, samples, settings.share)
        self._optimizer.zero_grad()
        self._backward.forward_begins(began_s, drawn_s)
        loss, word = self._model(batch)
        content = self._content(samples, float(loss.detach()))
        self._backward.begins()
        (loss * self._scale + (word * content).sum()).backward()
        computed_s = self._backward.ended()
        self._waited_s += time.perf_counter() - computed_s
        self._own_samples += samples
        self._bytes += self._step_bytes
        pace = samples / max(computed_s - began_s, 1e-9)
        self._pace = pace if not self._pace else self._pace + 0.1 * (pace - self._pace)
        return self._heard()

    def _content(self, samples: int, loss: float) -> Tensor:
        """What this rank says: samples of this step; whether to stop after it (the root); weight, and weighted loss,
        where that is finite; by rank, whether it is not; by rank, samples a second of computing.
        """
        content = torch.zeros(WORD + 2 * self._n)
        content[0], content[1] = samples, self.is_root and self._stop_wanted
        if isfinite(loss):
            content[2], content[3] = self.worker.weight, self.worker.weight * loss
        else:
            content[WORD + self.rank] = 1
        content[WORD + self._n + self.rank] = self._pace
        return content

    def _heard(self) -> bool:
        """Take in what all said, and take the step. Is there to be another?"""
        s, said = self.plan.settings, self._model.module.word.grad
        assert said is not None
        samples, stop, weight, loss, *of_ranks = (said * self._n).tolist()
        if weight:
            self._mean_loss = loss / weight
        self._paces = of_ranks[self._n :]
        self.trouble = next((rank for rank, bad in enumerate(of_ranks[: self._n]) if bad), -1)
        if self.trouble >= 0:
            self._loop.call_soon_threadsafe(self._say_trouble)
            return False
        with self._stepping:
            self._descend()
            self._steps += 1
            self._samples += round(samples)
            self._rounds = self._samples / (s.global_batch or 1)
        return not stop and (s.samples is None or self._samples < s.samples)

    def _descend(self) -> None:
        """The optimiser's step, with the learning rate of the progress before it."""
        s = self.plan.settings
        assert s.lr is not None
        lr = s.lr * self.worker.lr_schedule(self._rounds)
        for of, group in zip(self._optimizer.param_groups, self.worker.layout.groups, strict=True):
            of["lr"] = lr * group.lr_scale
        if s.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.worker.module.parameters(), s.clip_norm)
        self._optimizer.step()

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

    async def _reporting(self) -> None:
        before_s, before = 0.0, 0
        while True:
            await asyncio.sleep(REPORT_S)
            now, own = self._now(), self._own_samples
            pace = (own - before) / max(now - before_s, 1e-9)
            before_s, before = now, own
            self.worker.hook("on_report", self._status())
            self._watcher.report({**self.standing(), "time_s": now, "samples_per_s": pace})

    def _status(self) -> Status:
        slowest = min((r for r in range(self._n) if self._paces[r]), key=lambda r: self._paces[r], default=-1)
        return Status(
            rounds=self._rounds,
            samples=self._samples,
            own_samples=self._own_samples,
            gradients=self._steps,
            loss=self._mean_loss,
            pace=self._pace,
            slowest_rank=slowest,
            slowest_pace=inf if slowest < 0 else self._paces[slowest],
            trouble=self.trouble,
            waited_s=self._waited_s,
        )

    def standing(self) -> dict[str, Any]:
        """How the rank stands, as :meth:`rfast_zmq.node.Node.standing` has it."""
        cpu_s = time.process_time() - self._cpu0_s
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

    def last_record(self) -> Mapping[str, Tensor | float]:
        """As of ``ring-allreduce``: ``steps``, and the sum of the parameters and of their magnitudes."""
        parameters = torch.cat(self._model_now())[: self.worker.layout.parameters]
        return {"steps": float(self._steps), "sum": float(parameters.sum()), "scale": float(parameters.abs().sum())}

    def newest_model(self) -> dict[str, Tensor] | None:
        """The model after the last whole step; None: it is not finite."""
        model = self._model_now()
        return self.worker.state_dict(model) if all(is_finite(bucket) for bucket in model) else None

    def final_model(self) -> dict[str, Tensor] | None:
        """What to save: the model at the end; where that is not finite, the last good one."""
        if (newest := self.newest_model()) is not None:
            return newest
        return None if (good := self._scorer.good_model) is None else self.worker.state_dict(good)

    def _model_now(self) -> tuple[Tensor, ...]:
        """The plain iterate, which the optimiser looks ahead from."""
        with self._stepping, plain(self._optimizer):
            return self.worker.initial()


class _Step(nn.Module):
    """The task's loss as a module's ``forward``, so that DDP may wrap it, and beside it the word.

    Args:
        worker: has the task and its module.
        numbers: of the word.
    """

    def __init__(self, worker: Worker, numbers: int) -> None:
        super().__init__()
        self.module = worker.module
        self.word = nn.Parameter(torch.zeros(numbers))
        self._loss = worker.loss

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        self.word.grad = None
        return self._loss(batch), self.word * 1.0
