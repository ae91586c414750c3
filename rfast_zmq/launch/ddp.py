"""One process of ``--algorithm ddp``: torch's ``DistributedDataParallel`` over gloo, in the place of a node.

How it is trained is torch's: the task's loss is the ``forward`` of a module that DDP wraps, and a ``torch.optim``
optimiser takes the step::

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

**On a GPU** gloo goes by way of the host's memory, and ranks may share one; NCCL, which does neither, is not used. All
of it is computed in the worker's own stream there, so that evaluations stand beside it.

**Half the bytes** (``--wire bf16``): as torch's ``bf16_compress_hook``, but that the word, which counts, travels as
float32 besides, in a message of its own.

**Figures.** A node's waiting is the time of its backward pass after its last gradient was there. Bytes are reckoned,
not measured: what a ring all-reduce sends, 2 (n − 1)/n of the vector a node. The CPU of communication is all but what
the training thread and the evaluation cost; copying gradients into torch's buckets is the training thread's.

A process that is gone breaks the others' connections, and torch raises in whatever they do then; one that hangs is
waited for. Both ends are the launcher's to bring about.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from rfast_zmq.algorithms import Ddp
from rfast_zmq.assembly import Plan
from rfast_zmq.errors import UsageError
from rfast_zmq.launch.ddp_optimizer import make_optimizer, plain, set_rates
from rfast_zmq.launch.guest import Guest
from rfast_zmq.launch.slowed import SlowedBackward
from rfast_zmq.node.watcher import Watcher
from rfast_zmq.task import Worker

WORD = 4
"""Numbers of the word before those of the ranks."""


class DdpNode(Guest):
    """One rank.

    Args:
        plan, rank, folder, watcher: as of :class:`Guest`.
        interface: of the network that the ranks talk over; None: the loopback's.
    """

    def __init__(self, plan: Plan, rank: int, folder: Path, watcher: Watcher, interface: str | None = None) -> None:
        super().__init__(plan, rank, folder, watcher)
        self._interface = interface or ("lo" if sys.platform == "linux" else "lo0")
        self._optimizer = make_optimizer(plan.settings, self.worker)

    def _meet(self) -> None:
        """First batch, the group of ranks, the wrapped module. Ranks whose models differ wrap none: the launcher will
        say so.
        """
        torch.set_num_threads(1)
        self.worker.prefetch()
        os.environ["GLOO_SOCKET_IFNAME"] = self._interface
        where = (self._folder / "meeting").as_uri()
        dist.init_process_group("gloo", init_method=where, rank=self.rank, world_size=self._n)
        with self.worker.on_stream():
            self._wrap()

    def _wrap(self) -> None:
        layout, options = self.worker.layout, self.plan.options
        mine = torch.tensor([self.worker.weight, int(layout.hash[:12], 16)], dtype=torch.float64)
        everybodys = [torch.empty_like(mine) for _ in range(self._n)]
        dist.all_gather(everybodys, mine)
        if any(theirs[1] != mine[1] for theirs in everybodys):
            return
        self._scale = self.worker.weight * self._n / sum(float(theirs[0]) for theirs in everybodys)
        self._model = DistributedDataParallel(
            _Step(self.worker, WORD + 2 * self._n),
            bucket_cap_mb=None if options["bucket_mb"] == Ddp.options["bucket_mb"] else options["bucket_mb"],
            find_unused_parameters=bool(options["find_unused_parameters"]),
        )
        each, words = 4, 0
        if self.plan.settings.wire == "bf16":
            # Torch would read the annotations, which here are strings, and refuse.
            self._model.register_comm_hook(self._model.module.word, lambda word, bucket: _in_bf16(word, bucket))
            each, words = 2, 4
        self._backward = SlowedBackward(p for group in self.worker.parameters() for p in group)
        vector = each * layout.parameters + (each + words) * (WORD + 2 * self._n)
        self._step_bytes = 2 * (self._n - 1) * vector // self._n

    def _step(self) -> bool:
        with self.worker.on_stream():
            return self._step_there()

    def _step_there(self) -> bool:
        settings = self.plan.settings
        began_s = time.perf_counter()
        batch, samples = self.worker.next_batch(settings.report)
        drawn_s = self.plan.speeds.seconds(self.rank, self._own_samples, samples, settings.share)
        self._optimizer.zero_grad()
        self._backward.forward_begins(began_s, drawn_s)
        loss, word = self._model(batch)
        content = self._content(samples, float(loss.detach()))
        self._backward.begins()
        (loss * self._scale + (word * content.to(word.device)).sum()).backward()
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
            self._gradients += 1
            self._samples += round(samples)
            self._rounds = self._samples / (s.global_batch or 1)
        return not stop and (s.samples is None or self._samples < s.samples)

    def _descend(self) -> None:
        """The optimiser's step, with the learning rate of the progress before it."""
        s = self.plan.settings
        set_rates(self._optimizer, s, self.worker, self._rounds)
        if s.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.worker.module.parameters(), s.clip_norm)
        self._optimizer.step()

    def _part(self) -> None:
        with contextlib.suppress(RuntimeError):  # who is through it may be gone before the others are
            dist.barrier()

    def _explained(self, error: Exception) -> UsageError | None:
        if "find_unused_parameters" not in str(error):
            return None
        return UsageError(
            "a step left a parameter of the model unused, for which torch's DDP waits; add --algorithm-option"
            " find_unused_parameters=1"
        )

    def last_record(self) -> Mapping[str, Tensor | float]:
        """As of ``ring-allreduce``: ``steps``, and the sum of the parameters and of their magnitudes."""
        parameters = torch.cat(self._model_now())[: self.worker.layout.parameters]
        return {"steps": float(self._steps), "sum": float(parameters.sum()), "scale": float(parameters.abs().sum())}

    def _model_now(self) -> tuple[Tensor, ...]:
        """The plain iterate, which the optimiser looks ahead from."""
        with self._stepping, self.worker.on_stream(), plain(self._optimizer):
            return self.worker.initial()


def _in_bf16(word: nn.Parameter, bucket: Any) -> Future[Tensor]:
    """The mean of a bucket's gradients, summed as bf16; that of the word, which counts, as float32."""
    n = dist.get_world_size()
    whole: Tensor = bucket.buffer()
    words = [g for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True) if p is word]
    sent = [whole.to(torch.bfloat16).div_(n), *(g / n for g in words)]
    under_way = [dist.all_reduce(t, async_op=True) for t in sent]

    def arrived(all_of_them: Future[Any] | None = None) -> Tensor:
        if all_of_them is not None:
            all_of_them.value()  # raises what became of a rank that is gone
        whole.copy_(sent[0])
        for mine, mean in zip(words, sent[1:], strict=True):
            mine.copy_(mean)
        return whole

    if whole.is_cuda:  # what is done when it has come would not be done in the stream of the pass, which so waits
        for work in under_way:
            work.wait()
        done: Future[Tensor] = Future()
        done.set_result(arrived())
        return done
    return torch.futures.collect_all([work.get_future() for work in under_way]).then(arrived)


class _Step(nn.Module):
    """The task's loss as a module's ``forward``, so that DDP may wrap it, and beside it the word.

    Args:
        worker: has the task and its module.
        numbers: of the word.
    """

    def __init__(self, worker: Worker, numbers: int) -> None:
        super().__init__()
        self.module = worker.module
        self.word = nn.Parameter(torch.zeros(numbers, device=next(worker.module.parameters()).device))
        self._loss = worker.loss

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        self.word.grad = None
        return self._loss(batch), self.word * 1.0
