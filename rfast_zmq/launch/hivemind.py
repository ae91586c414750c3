"""One process of ``--algorithm hivemind``: hivemind's ``Optimizer`` in the place of a node.

The task's loss, its batches and the draws of compute time are a node's own; a step is::

    zero_grad;  loss(batch).backward();  the rest of the drawn time passes
    hivemind.Optimizer.step()            # adds the gradient up; once all together have B samples, averages and descends

Progress is counted in hivemind's epochs, of B samples each. The ranks meet through a file in the run's folder, in which
the root leaves the address of its hash table, and end by another, which the root makes once the epochs asked for are
done or the target is reached; a rank whose loss is not finite makes it, too.

**Emulated times** pass between the backward pass and the step.

**Figures.** A node's waiting is the time within hivemind's ``step``. Bytes are reckoned, not measured: 2 (n − 1)/n of
the gradients and as much of the parameters in each epoch. The CPU is that of hivemind's own processes, too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rfast_zmq.assembly import Plan
from rfast_zmq.errors import RfastError, UsageError
from rfast_zmq.launch.ddp_optimizer import make_optimizer, plain, set_rates
from rfast_zmq.launch.guest import Guest
from rfast_zmq.node.watcher import Watcher

if TYPE_CHECKING:
    import psutil

MEET_S = 60.0
"""So long a rank looks for the root's address."""
LOOK_S = 0.05


class HivemindNode(Guest):
    """One rank. See the module.

    Args:
        plan, rank, folder, watcher: as of :class:`~rfast_zmq.launch.guest.Guest`.
    """

    meets_in_thread: ClassVar[bool] = False
    """It sets signal handlers, which the main thread alone may."""

    def __init__(self, plan: Plan, rank: int, folder: Path, watcher: Watcher) -> None:
        super().__init__(plan, rank, folder, watcher)
        self._meeting, self._over = folder / "meeting", folder / "over"
        self._helpers_cpu0_s = 0.0
        """CPU that hivemind's processes had used as the run began."""
        self._helpers_used_s: float | None = None
        """Of theirs in all, once they are ended."""
        self._newest: tuple[Tensor, ...] = self.worker.initial()
        if self.worker.weight != 1.0:
            raise UsageError(
                f"rank {rank} weighs {self.worker.weight:g}: --algorithm hivemind counts every sample the same; leave"
                " the weights out"
            )

    def _meet(self) -> None:
        torch.set_num_threads(1)
        self.worker.prefetch()
        multiprocessing.set_start_method("fork", force=True)  # what it hands to its processes cannot be pickled
        os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
        import hivemind
        from hivemind.optim.grad_averager import GradientAverager

        own = ["/ip4/127.0.0.1/tcp/0"]
        local: dict[str, Any] = {"host_maddrs": own, "use_ipfs": False, "use_relay": False, "use_auto_relay": False}
        if self.is_root:
            self._dht = hivemind.DHT(start=True, **local)
            part = self._meeting.with_suffix(".part")
            part.write_text("\n".join(map(str, self._dht.get_visible_maddrs())))
            part.replace(self._meeting)
        else:
            self._dht = hivemind.DHT(initial_peers=self._roots_address(), start=True, **local)
        settings, options = self.plan.settings, self.plan.options
        patience = {"request_timeout": options["matchmaking_s"] / 2}  # less than that, as it advises itself
        self._optimizer = make_optimizer(settings, self.worker)
        first = [(p, p.detach().clone()) for group in self._optimizer.param_groups for p in group["params"]]
        self._hivemind = hivemind.Optimizer(
            dht=self._dht,
            run_id="rfast",
            optimizer=self._optimizer,
            target_batch_size=settings.global_batch,
            batch_size_per_step=settings.report,
            matchmaking_time=options["matchmaking_s"],
            averaging_timeout=options["averaging_timeout_s"],
            offload_optimizer=False,
            load_state_timeout=options["averaging_timeout_s"],
            averager_opts=patience,
            grad_averager_factory=partial(GradientAverager, **patience),
            tracker_opts={"min_refresh_period": options["refresh_s"], "default_refresh_period": options["refresh_s"]},
        )
        self._begin_anew(first)
        self._newest = self.worker.initial()
        self._epoch_bytes = 2 * 2 * (self._n - 1) * 4 * self.worker.layout.parameters // self._n

    def _begin_anew(self, first: list[tuple[Tensor, Tensor]]) -> None:
        """To see what state the optimiser has hivemind has let it take a step along gradients of zero."""
        with torch.no_grad():
            for p, x in first:
                p.copy_(x)
                state = self._optimizer.state[p]
                for name in ("t", "step", "ahead"):
                    if name in state:
                        state[name] = torch.zeros_like(state[name]) if isinstance(state[name], Tensor) else 0

    def _roots_address(self) -> list[str]:
        until = time.monotonic() + MEET_S
        while not self._meeting.exists():
            if time.monotonic() > until:
                raise RfastError(f"rank {self.rank}: the root of hivemind's hash table was not there in {MEET_S:g} s")
            time.sleep(LOOK_S)
        return self._meeting.read_text().split()

    def _step(self) -> bool:
        settings = self.plan.settings
        began_s = time.perf_counter()
        batch, samples = self.worker.next_batch(settings.report)
        drawn_s = self.plan.speeds.seconds(self.rank, self._own_samples, samples, settings.share)
        set_rates(self._optimizer, settings, self.worker, self._rounds)
        self._hivemind.zero_grad()
        loss = self.worker.loss(batch)
        loss_now = float(loss.detach())
        if not isfinite(loss_now):
            self._end_all(str(self.rank))
            return self._heard()
        loss.backward()  # type: ignore[no-untyped-call]
        time.sleep(max(0.0, began_s + (drawn_s or 0.0) - time.perf_counter()))
        computed_s = time.perf_counter()
        self._hivemind.step(batch_size=samples)
        if self._hivemind.local_epoch != self._steps:
            with plain(self._optimizer):
                self._newest = self.worker.initial()
        self._waited_s += time.perf_counter() - computed_s
        self._own_samples += samples
        self._gradients += 1
        pace = samples / max(computed_s - began_s, 1e-9)
        self._pace = pace if not self._pace else self._pace + 0.1 * (pace - self._pace)
        self._mean_loss = loss_now
        return self._heard()

    def _heard(self) -> bool:
        """Is there to be another step?"""
        s, epochs = self.plan.settings, self._hivemind.local_epoch
        batch = s.global_batch or 1
        self._bytes = epochs * self._epoch_bytes
        self._steps, self._samples, self._rounds = epochs, epochs * batch, float(epochs)
        if self._over.exists():
            if said := self._over.read_text():
                self.trouble = int(said)
                self._loop.call_soon_threadsafe(self._say_trouble)
            return False
        if self._stop_wanted or (s.samples is not None and self._samples >= s.samples):
            if self.is_root:
                self._end_all("")
            else:
                self._wait_for_the_root()
            return False
        return True

    def _wait_for_the_root(self) -> None:
        """It may be an epoch behind, and in want of somebody to get that from."""
        until = time.monotonic() + self.plan.options["averaging_timeout_s"]
        while not self._over.exists() and not self._gone.is_set() and time.monotonic() < until:
            time.sleep(LOOK_S)

    def _end_all(self, trouble: str) -> None:
        """The run is over, for everybody."""
        part = self._over.with_suffix(f".{self.rank}")
        part.write_text(trouble)
        part.replace(self._over)

    def _train(self) -> None:
        self._helpers_cpu0_s = cpu_s(helpers_of(os.getpid()))
        super()._train()

    def _tidy(self) -> None:
        """Away with hivemind's processes, which would outlive this one."""
        helpers = helpers_of(os.getpid())
        self._helpers_used_s = cpu_s(helpers) - self._helpers_cpu0_s
        end(helpers)

    def _helpers_cpu_s(self) -> float:
        if self._helpers_used_s is not None:
            return self._helpers_used_s
        return cpu_s(helpers_of(os.getpid())) - self._helpers_cpu0_s

    def _model_now(self) -> tuple[Tensor, ...]:
        """The plain iterate as of the last whole step. It is asked for in the midst of one, which may take its time."""
        return self._newest

    def last_record(self) -> Mapping[str, Tensor | float]:
        """``steps``: the epochs it took part in."""
        return {"steps": float(self._steps)}


def helpers_of(pid: int) -> list[psutil.Process]:
    """The processes that hivemind has started for a rank, and theirs."""
    import psutil

    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def cpu_s(processes: list[psutil.Process]) -> float:
    """CPU seconds that these have used, of those that still live."""
    import psutil

    used_s = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used_s += times.user + times.system
    return used_s


def end(processes: list[psutil.Process]) -> None:
    """Kill them, those that are still there."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
