"""Evaluation at the root, off the training path: a thread scores snapshots, each stamped with its own time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite, nan
from typing import Protocol

import torch
from torch import Tensor

from rfast_zmq.results import Point
from rfast_zmq.task import Trained
from rfast_zmq.task.finite import is_finite

Snapshot = Callable[[], tuple[Tensor, ...]]
"""Gives the model to be scored, per bucket; called in the thread that scores it."""


@dataclass(frozen=True)
class Shown:
    """One node at one moment.

    Attributes:
        model: per bucket, never written to; None: it has none, or none that counts.
        own_samples: that it had computed.
        clock_s: when, by the clock that all processes of this machine share (nodes start at times of their own).
    """

    model: tuple[Tensor, ...] | None
    own_samples: int
    clock_s: float


@dataclass(frozen=True)
class Together:
    """All nodes at one moment, where the mean of their models is judged.

    Attributes:
        samples: that all had computed.
        clock_s: when the last of them was there, by the machine's clock.
        mean: of the models that were shown.
    """

    samples: int
    clock_s: float
    mean: Snapshot


class Gatherer(Protocol):
    """Whoever can bring the models of all nodes together."""

    cpu_s: float
    """CPU seconds of this process that went into it."""

    async def everybody(self) -> Together | None:
        """All nodes' models as of now; None: there are none."""


class Scorer:
    """Scores one snapshot at a time; one that is due while another is being scored is not taken.

    Args:
        worker: whose task evaluates.
        name: of the thread.
        every_rounds: rounds between two snapshots.
        scored: called on the loop after each, with the point.
        failed: called on the loop if the task raised.
    """

    def __init__(
        self,
        worker: Trained,
        name: str,
        every_rounds: float,
        scored: Callable[[Point], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._worker, self._every_rounds, self._scored, self._failed = worker, every_rounds, scored, failed
        self._pool = ThreadPoolExecutor(1, name)
        self._task: asyncio.Task[None] | None = None
        self._gathering = False
        self._next_rounds = 0.0
        self.cpu_s = 0.0
        """CPU seconds of the thread."""
        self.good_model: tuple[Tensor, ...] | None = None
        """The newest scored model whose coordinates and loss were finite."""

    def due(self, rounds: float) -> bool:
        """Is a snapshot wanted at this progress?"""
        return rounds >= self._next_rounds and (self._task is None or self._task.done())

    def take(self, model: tuple[Tensor, ...], point: Point) -> None:
        """Score ``model``; ``point`` holds when it was taken, and takes the scores."""
        self._next_rounds = point.rounds + self._every_rounds
        self._task = asyncio.get_running_loop().create_task(self._score(lambda: model, point))

    def take_later(self, gather: Callable[[], Awaitable[Snapshot | None]], point: Point) -> None:
        """Score what ``gather`` gives, if it gives anything; ``point`` holds when it was asked for."""
        self._next_rounds, self._gathering = point.rounds + self._every_rounds, True
        self._task = asyncio.get_running_loop().create_task(self._score_later(gather, point))

    async def settled(self) -> None:
        """Until no snapshot is being scored. One for which models are still being gathered comes too late."""
        if self._task is not None:
            if self._gathering:
                self._gathering = False
                self._task.cancel()
            await asyncio.wait({self._task})

    def close(self) -> None:
        """End the thread; what is being scored is of no interest any more."""
        if self._task is not None:
            self._task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _score_later(self, gather: Callable[[], Awaitable[Snapshot | None]], point: Point) -> None:
        try:
            snapshot = await gather()
        except Exception as error:
            self._failed(error)
            return
        finally:
            self._gathering = False
        if snapshot is not None:
            await self._score(snapshot, point)

    async def _score(self, snapshot: Snapshot, point: Point) -> None:
        try:
            model, scores = await asyncio.get_running_loop().run_in_executor(self._pool, self._evaluate, snapshot)
            point.accuracy, point.loss = scores.get("accuracy"), scores.get("loss")
            point.extra = {name: value for name, value in scores.items() if name not in ("accuracy", "loss")}
            if isfinite(scores.get("loss", 0.0)) and all(is_finite(t) for t in model):
                self.good_model = model
            self._worker.hook("on_evaluate", {"accuracy": nan, "loss": nan, **scores})
            self._scored(point)
        except Exception as error:
            self._failed(error)

    def _evaluate(self, snapshot: Snapshot) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        torch.set_num_threads(1)
        try:
            model = snapshot()
            return model, self._worker.evaluate(model)
        finally:
            self.cpu_s = time.thread_time()
