"""What rfast_zmq.optim costs a loop of one's own beside torch.optim: ms of CPU time of the loop's thread, a step.

A chain of square layers, about 25 M parameters. Our loop is that of a node which is not the root, without sockets: what
stands in for the node takes each gradient, keeps the last two, as a node does, and has a new model for every step, in
which all the buckets have changed, or a tenth of them, as on a slow line. The three loops take turns, so that they see
the same machine; one thread computes.

    python benchmarks/own_loop.py [--layers 24] [--width 1024] [--batch 16]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from common import spread, table
from torch import Tensor, nn

from rfast_zmq import optim
from rfast_zmq.core.events import RunGradient
from rfast_zmq.launch.memory import keep_freed_memory

PARTS = ("zero_grad", "forward", "backward", "step")
TURNS, STEPS = 4, 6


class StandIn:
    """In the place of a node's thread: :meth:`turn` is what it does between two steps."""

    gradient_makes_model, rounds = False, 0.0

    def __init__(self, opt: Any, changed: float) -> None:
        self._steps, self._changed, self._turn = opt._steps, changed, 0
        self._models = [[t.clone() for t in opt._model.flat.read()] for _ in range(2)]
        self._now = list(self._models[0])
        self._kept: list[object] = []
        self.node = self.algorithm = self
        self._steps.attach(lambda act: None, lambda: None)
        opt._node = self

    def check(self) -> None:
        """It never fails."""

    def turn(self) -> None:
        self._turn += 1
        self._kept = [*self._kept, *self._steps.done()][-2:]
        count = len(self._now)
        fresh = round(self._changed * count)
        for b in (k % count for k in range(self._turn * fresh, (self._turn + 1) * fresh)):
            self._now[b] = self._models[(self._now[b] is self._models[0][b])][b]
        self._steps.offer(RunGradient(tuple(self._now), (float(self._turn),) * count))


def chain(layers: int, width: int) -> nn.Module:
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.Tanh())])


def measured(model: nn.Module, opt: Any, x: Tensor, before: Callable[[], None]) -> Iterator[list[float]]:
    """Per step, the milliseconds of each of :data:`PARTS`."""
    for _ in range(STEPS):
        before()
        at = [time.thread_time()]
        opt.zero_grad()
        at.append(time.thread_time())
        loss = model(x).square().mean()
        at.append(time.thread_time())
        loss.backward()
        at.append(time.thread_time())
        opt.step()
        at.append(time.thread_time())
        yield [1e3 * (b - a) for a, b in pairwise(at)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16, help="samples")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    bare, x = chain(args.layers, args.width), torch.randn(args.batch, args.width)
    loops: dict[str, tuple[nn.Module, Any, Callable[[], None]]] = {
        "torch.optim.SGD": (bare, torch.optim.SGD(bare.parameters(), lr=1e-3), lambda: None),
        "torch.optim.AdamW": (bare, torch.optim.AdamW(bare.parameters(), lr=1e-5), lambda: None),
    }
    for name, changed in (("rfast_zmq.optim", 1.0), ("rfast_zmq.optim, a tenth of the buckets new", 0.1)):
        model = chain(args.layers, args.width)
        opt = optim.SGD(model, lr=1e-3, batch=args.batch)
        loops[name] = model, opt, StandIn(opt, changed).turn
    found: dict[str, list[list[float]]] = {name: [] for name in loops}
    for turn in range(TURNS):
        for name, (model, opt, before) in loops.items():
            steps = list(measured(model, opt, x, before))
            found[name] += steps if turn else []  # the first meets fresh memory
    rows = [
        (name, *(spread(part) for part in zip(*steps, strict=True)), spread(map(sum, steps)))
        for name, steps in found.items()
    ]
    table(("", *PARTS, "together"), rows)


if __name__ == "__main__":
    main()
