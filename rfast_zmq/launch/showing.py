"""All nodes' models at one moment, where their mean is what is judged (``Algorithm.judged_by_mean``).

The root asks the launcher, which tells every node; each leaves its model in the run's folder, in a thread beside its
training, and says so; the launcher tells the root whose are there. No node waits for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rfast_zmq.node.scoring import Shown, Together

SILENT_S = 2.0
"""Who has said nothing for so long, not even how it stands (a node under SIGSTOP, say), is not waited for."""


@dataclass(frozen=True)
class Answer:
    """What a node says once it has shown its model, or has none to show.

    Attributes:
        number: of the gathering.
        there: its model lies in the folder.
        samples: that it had computed.
        clock_s: when, by the machine's clock.
        trouble: why its model could not be written; empty: nothing was in the way.
    """

    number: int
    there: bool
    samples: int
    clock_s: float
    trouble: str = ""


@dataclass
class Gathering:
    """At the launcher: one moment, of which the nodes' models are awaited.

    Attributes:
        number: tells it from others.
        awaited: ranks that have yet to answer.
        answers: rank to what it said.
    """

    number: int
    awaited: set[int]
    answers: dict[int, Answer] = field(default_factory=dict)

    def heard(self, rank: int, answer: Answer) -> None:
        """A node has answered; an answer to another gathering is of another moment."""
        if answer.number == self.number and rank in self.awaited:
            self.awaited.discard(rank)
            self.answers[rank] = answer

    def without(self, ranks: Iterable[int]) -> None:
        """These are not waited for."""
        self.awaited.difference_update(ranks)

    @property
    def shown(self) -> list[int]:
        """Whose models are there."""
        return sorted(rank for rank, answer in self.answers.items() if answer.there)

    @property
    def clock_s(self) -> float:
        """When the last of them was shown, by the machine's clock."""
        return max((answer.clock_s for answer in self.answers.values()), default=0.0)


class Shower:
    """In a node's process: shows its model, and at the root sees what all have shown.

    Args:
        folder: of the run.
        rank: of this node.
        tell: takes (kind, content) to the launcher; called on the loop.
    """

    def __init__(self, folder: Path, rank: int, tell: Callable[[str, object], None]) -> None:
        self._folder, self._rank, self._tell = folder, rank, tell
        self._pool: ThreadPoolExecutor | None = None
        self._wanted: asyncio.Future[tuple[list[int], int, float]] | None = None
        self.cpu_s = 0.0
        """CPU seconds of showing, which is for the judging alone. (Averaging is the scoring thread's.)"""

    async def everybody(self) -> Together | None:
        """At the root: all nodes' models as of now; None: nobody has shown one."""
        self._wanted = asyncio.get_running_loop().create_future()
        self._tell("gather", None)
        ranks, samples, clock_s = await self._wanted
        if not ranks:
            return None
        return Together(samples, clock_s, partial(self._mean, [_path(self._folder, rank) for rank in ranks]))

    def gathered(self, ranks: list[int], samples: int, clock_s: float) -> None:
        """At the root: these have shown their models, after so many samples of all nodes, the last of them then."""
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result((ranks, samples, clock_s))

    def show(self, number: int, shown: Shown) -> None:
        """Leave what is ``shown``, which nobody writes to, for the root, and answer. One at a time."""
        self._pool = self._pool or ThreadPoolExecutor(1, f"show-{self._rank}")
        written = asyncio.get_running_loop().run_in_executor(self._pool, self._write, shown.model)

        def answer(done: asyncio.Future[bool]) -> None:
            error = None if done.cancelled() else done.exception()
            there = not done.cancelled() and error is None and done.result()
            trouble = "" if error is None else f"{error}"
            self._tell("shown", Answer(number, there, shown.own_samples, shown.clock_s, trouble))

        written.add_done_callback(answer)

    def _write(self, model: tuple[Tensor, ...] | None) -> bool:
        """In the thread. Whether there was a model."""
        if model is None:
            return False
        began_s, path = time.thread_time(), _path(self._folder, self._rank)
        part = path.with_suffix(".part")
        save_file({str(b): bucket.detach().cpu().contiguous() for b, bucket in enumerate(model)}, part)
        part.replace(path)
        self.cpu_s += time.thread_time() - began_s
        return True

    @staticmethod
    def _mean(paths: list[Path]) -> tuple[Tensor, ...]:
        """In the thread that scores it; of two models in memory at a time."""
        sums: list[Tensor] = []
        for path in paths:
            shown = load_file(path)
            buckets = [shown[str(b)] for b in range(len(shown))]
            sums = [a.add_(b) for a, b in zip(sums, buckets, strict=True)] if sums else buckets
        return tuple(torch.div(total, len(paths)) for total in sums)


def _path(folder: Path, rank: int) -> Path:
    return folder / f"shown-{rank}.safetensors"
