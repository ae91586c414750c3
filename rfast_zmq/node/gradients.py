"""The thread that computes a node's gradients, one after the other.

A model may be offered while a gradient is still being computed: the thread takes it in the instant that one is done, so
that a device need not stand idle while the loop hears of the gradient and finds the next model. Of several offers the
newest counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor

from rfast_zmq.conditions import Speeds
from rfast_zmq.core.events import RunGradient
from rfast_zmq.settings import Settings
from rfast_zmq.task import Worker
from rfast_zmq.task.finite import Finite

RECENT = 8
"""So many gradients tell how long the next will take at least."""


@dataclass(frozen=True)
class Gradient:
    """What the thread made of a model.

    Attributes:
        rounds: per bucket, the version of the model.
        gradient: per bucket.
        loss: mean over the samples; None: not known.
        samples: how many.
        finite: whether all of it is.
        seconds: it took; where speeds are emulated, what it was to take.
        steps: of so many it is the mean; all the numbers above are of all of them.
    """

    rounds: tuple[float, ...]
    gradient: tuple[Tensor, ...]
    loss: float | None
    samples: int
    finite: bool
    seconds: float
    steps: int = 1


class Gradients:
    """The thread, and what passes between it and the loop. All methods are the loop's.

    Args:
        worker: computes.
        speeds: how long a gradient takes, where that is emulated.
        settings: the run's, resolved.
        soon: has a function called on the loop; from the thread.
        news: called on the loop when a gradient is done.
    """

    def __init__(
        self,
        worker: Worker,
        speeds: Speeds,
        settings: Settings,
        *,
        soon: Callable[[Callable[[], None]], object],
        news: Callable[[], None],
    ) -> None:
        self._worker, self._speeds, self._settings, self._soon, self._news = worker, speeds, settings, soon, news
        self._pool = ThreadPoolExecutor(1, f"gradient-{worker.rank}")
        self._offered: deque[RunGradient] = deque(maxlen=1)
        self._done: deque[Gradient | BaseException] = deque()
        self._recent_s: deque[float] = deque(maxlen=RECENT)
        self._halt = threading.Event()
        self._samples = 0
        self._overslept_s = self._cpu0_s = self._cpu_s = 0.0
        self._working = self._coming = False

    @property
    def busy(self) -> bool:
        """A model is being worked on, or will be as soon as it is near."""
        return self._working or self._coming

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the thread, since it had its first batch."""
        return self._cpu_s - self._cpu0_s

    @property
    def least_s(self) -> float | None:
        """The next gradient will probably take longer than this (None: there was none yet)."""
        return min(self._recent_s, default=None)

    async def first_batch(self) -> None:
        """Load what the first gradient needs.

        Raises:
            TaskError: the task's data raised.
        """
        await asyncio.wrap_future(self._pool.submit(self._first_batch))

    def offer(self, model: RunGradient) -> None:
        """A model to compute at: at once, or when the present gradient is done, unless a newer one is offered first."""
        self._coming = True
        if self._worker.bring(model.model, model.rounds, partial(self._near, model)):
            self._offered.append(model)
            self._arrived()

    def _near(self, model: RunGradient) -> None:
        """In another thread: it is there."""
        if self._halt.is_set():
            return
        self._offered.append(model)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
            self._soon(self._arrived)

    def _arrived(self) -> None:
        self._coming = False
        self._begin()

    def _begin(self) -> None:
        """Unless the thread is at work already, or there is nothing for it."""
        if self._offered and not self._working:
            self._working = True
            self._pool.submit(self._work)

    def done(self) -> Iterator[Gradient]:
        """The gradients that are done, oldest first; each is told once.

        Raises:
            TaskError: the task raised.
        """
        while self._done:
            found = self._done.popleft()
            if isinstance(found, BaseException):
                raise found
            yield found

    def halt(self) -> None:
        """Begin no other; end an emulated wait."""
        self._halt.set()
        self._offered.clear()
        self._coming = False

    def close(self, wait: bool) -> None:
        """End the thread.

        Args:
            wait: until the gradient is done that it may be computing; else nobody awaits it.
        """
        self.halt()
        self._pool.shutdown(wait=wait, cancel_futures=True)

    # -------------------------------------------------------------------------------------- in the thread

    def _first_batch(self) -> None:
        torch.set_num_threads(1)
        self._worker.prefetch()
        self._cpu0_s = self._cpu_s = time.thread_time()

    def _work(self) -> None:
        """Until nothing is on offer."""
        another = self._take()
        while another:
            found: Gradient | BaseException
            try:
                found = self._gradient()
                another = self._take()
            except BaseException as error:
                found, another = error, False
            with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
                self._soon(partial(self._settle, found, another))
            del found  # not this thread's any more while it computes the next

    def _take(self) -> bool:
        """Is there another model? It is taken up from where it was brought to."""
        try:
            self._offered.popleft()
        except IndexError:
            return False
        return True

    def _settle(self, found: Gradient | BaseException, busy: bool) -> None:
        """On the loop."""
        self._working = busy
        if isinstance(found, Gradient):
            self._begin()  # what came just too late for the thread to see
        self._done.append(found)
        self._news()

    def _gradient(self) -> Gradient:
        """The gradient, then, where speeds are emulated, the wait up to the drawn duration (less what the last wait
        took too long: a timer is a little late, a device is not).
        """
        settings, began_s, finite = self._settings, time.perf_counter(), Finite()
        rounds = self._worker.take_up()
        gradient, loss, samples = self._worker.gradient(None, settings.report, finite.look)
        took_s = time.perf_counter() - began_s
        drawn_s = self._speeds.seconds(self._worker.rank, self._samples, samples, settings.share)
        self._samples += samples
        self._cpu_s = time.thread_time()
        if drawn_s:
            end_s = began_s + drawn_s - self._overslept_s
            self._overslept_s = 0.0
            if (wait_s := end_s - time.perf_counter()) > 0 and not self._halt.wait(wait_s):
                self._overslept_s = time.perf_counter() - end_s
        self._recent_s.append(time.perf_counter() - began_s)
        good = finite.yes and isfinite(loss)
        return Gradient(rounds, gradient, loss, samples, good, max(took_s, drawn_s or 0.0))
