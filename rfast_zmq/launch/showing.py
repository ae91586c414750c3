"""All nodes' models at one moment, where their mean is what is judged (``Algorithm.judged_by_mean``).

The root asks the launcher, which tells every node; each leaves its model in the run's folder, in a thread beside its
training, and says so; the launcher tells the root whose are there. No node waits for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rfast_zmq.node.scoring import Together

PATIENCE_S = 1.0
"""Who has not shown its model after so long (a node under SIGSTOP, say) is left out of the mean."""


class Gathering:
    """At the launcher: one moment, of which the nodes' models are awaited.

    Args:
        ranks: of whom.
    """

    def __init__(self, ranks: Iterable[int]) -> None:
        self.awaited = set(ranks)
        """Who has not answered yet."""
        self.shown: list[int] = []
        """Who has shown a model."""
        self._by_s = time.monotonic() + PATIENCE_S

    def heard(self, rank: int, shown: bool) -> None:
        """A node has answered."""
        if rank in self.awaited:
            self.awaited.discard(rank)
            if shown:
                self.shown.append(rank)

    @property
    def done(self) -> bool:
        """Everybody has answered, or had the time to."""
        return not self.awaited or time.monotonic() >= self._by_s


class Shower:
    """In a node's process: shows its model, and at the root sees what all have shown.

    Args:
        folder: of the run.
        rank: of this node.
        tell: takes (kind, content) to the launcher.
    """

    def __init__(self, folder: Path, rank: int, tell: Callable[[str, object], None]) -> None:
        self._folder, self._rank, self._tell = folder, rank, tell
        self._pool: ThreadPoolExecutor | None = None
        self._wanted: asyncio.Future[tuple[list[int], int]] | None = None

    async def everybody(self) -> Together | None:
        """At the root: all nodes' models as of now; None: nobody has shown one."""
        self._wanted = asyncio.get_running_loop().create_future()
        self._tell("gather", None)
        ranks, samples = await self._wanted
        if not ranks:
            return None
        return Together(samples, partial(_mean, [_path(self._folder, rank) for rank in ranks]))

    def gathered(self, ranks: list[int], samples: int) -> None:
        """At the root: these have shown their models, after so many samples of all nodes."""
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result((ranks, samples))

    def show(self, model: tuple[Tensor, ...] | None, own_samples: int) -> None:
        """Leave ``model``, which nobody writes to, for the root; None: there is none to show."""
        if model is None:
            self._tell("shown", (False, own_samples))
            return
        self._pool = self._pool or ThreadPoolExecutor(1, f"show-{self._rank}")
        written = asyncio.get_running_loop().run_in_executor(self._pool, _write, _path(self._folder, self._rank), model)
        written.add_done_callback(lambda done: self._tell("shown", (done.exception() is None, own_samples)))


def _path(folder: Path, rank: int) -> Path:
    return folder / f"shown-{rank}.safetensors"


def _write(path: Path, model: tuple[Tensor, ...]) -> None:
    part = path.with_suffix(".part")
    save_file({str(b): bucket.detach().cpu().contiguous() for b, bucket in enumerate(model)}, part)
    part.replace(path)


def _mean(paths: list[Path]) -> tuple[Tensor, ...]:
    """Bucket by bucket, without all models in memory at once."""
    sums: list[Tensor] = []
    for path in paths:
        shown = load_file(path)
        buckets = [shown[str(b)] for b in range(len(shown))]
        sums = [a.add_(b) for a, b in zip(sums, buckets, strict=True)] if sums else buckets
    return tuple(torch.div(total, len(paths)) for total in sums)
