"""A training loop by itself and as a node among others: the same model, the same computation, the same optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isqrt
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from rfast_zmq import optim
from rfast_zmq.optim import RFast
from rfast_zmq.topology import build

OPTIMIZERS = ("sgd", "momentum", "adamw", "nadam")
REPORTS_A_ROUND = 8
"""A node's share of a round, in its steps: what the pages advise."""
LR = 1e-5
CALIBRATED_FROM, PRODUCTS = 7, 20
"""The fastest of so many passes tells how long one takes; with so many products, how long a product."""
SQUARE = {"cpu": 256, "cuda": 4096}
"""Sides of the matrices of a product: what keeps the device busy for about a millisecond."""


@dataclass(frozen=True)
class Work:
    """What a step computes.

    Attributes:
        parameters: of the model.
        extra: matrix products beside it in every forward pass, which make a gradient as long as was asked for.
        optimizer: one of :data:`OPTIMIZERS`.
        device: where the model lives.
    """

    parameters: int
    extra: int
    optimizer: str
    device: str = "cpu"

    def model(self) -> Busy:
        """The model, on its device."""
        return Busy(self).to(self.device)

    def settle(self) -> None:
        """Wait for what the device still has to do."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


class Busy(nn.Module):
    """Square layers with as many parameters as asked for, as nearly as squares allow, over one sample.

    Args:
        work: sizes.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = 1 if work.parameters < 4096 else 4
        side = max(1, isqrt(work.parameters // layers))
        self.layers = nn.ModuleList(nn.Linear(side, side, bias=False) for _ in range(layers))
        self.rest = nn.Parameter(torch.zeros(max(1, work.parameters - layers * side * side)))
        self.register_buffer("sample", torch.randn(1, side))
        square = SQUARE[torch.device(work.device).type]
        self.register_buffer("square", torch.randn(square, square))
        self.extra = work.extra

    def forward(self) -> Tensor:
        """A loss."""
        with torch.no_grad():
            for _ in range(self.extra):
                torch.mm(self.square, self.square)  # type: ignore[arg-type]
        x = self.sample
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().mean() + self.rest.square().mean()  # type: ignore[operator]


def own_optimizer(work: Work, model: nn.Module) -> torch.optim.Optimizer:
    """Of the loop by itself."""
    parameters, kind = model.parameters(), work.optimizer
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=LR)
    if kind == "nadam":
        return torch.optim.NAdam(parameters, lr=LR)
    return torch.optim.SGD(parameters, lr=LR, momentum=0.9 if kind == "momentum" else 0.0)


def calibrate(pipe: Connection, work: Work, gradient_s: float) -> tuple[int, float]:
    """How many products make forward and backward pass so long, and how long they then are, in seconds."""
    model = work.model()
    least_s = _seconds(work, model)
    model.extra = PRODUCTS
    one_s = (_seconds(work, model) - least_s) / model.extra
    model.extra = max(0, round((gradient_s - least_s) / max(one_s, 1e-6)))
    return model.extra, _seconds(work, model)


def _seconds(work: Work, model: Busy) -> float:
    """Of a pass, when nothing else has the device."""

    def once() -> float:
        work.settle()
        began_s = time.perf_counter()
        model().backward()
        work.settle()
        return time.perf_counter() - began_s

    return min(once() for _ in range(CALIBRATED_FROM))


def bare_loop(pipe: Connection, work: Work, warm: int, steps: int) -> dict[str, float]:
    """Plain PyTorch. Seconds a step, and the most memory that was resident, in bytes."""
    model = work.model()
    opt = own_optimizer(work, model)

    def step() -> None:
        opt.zero_grad()
        model().backward()
        opt.step()

    forget_peak()
    _times(work, step, warm)
    took_s = _times(work, step, steps)
    return {"step_s": took_s / steps, "peak_bytes": peak_bytes(), "steady_bytes": resident_bytes()}


def node_loop(pipe: Connection, work: Work, topology: str, rank: int, marks: tuple[int, ...]) -> float:
    """The same as a node among others. Says through the pipe when it has its first model, and begins when it is told
    to; says after so many steps as ``marks`` say (ascending) how it stands; goes on until it is told something or the
    run is over.

    Returns:
        The staleness of the gradients in rounds, as the root sees it.
    """
    model = work.model()
    kinds: dict[str, Callable[..., RFast]] = {
        "sgd": optim.SGD,
        "momentum": partial(optim.SGD, momentum=0.9),
        "adamw": optim.AdamW,
        "nadam": optim.NAdam,
    }
    batch = build(topology).nodes * REPORTS_A_ROUND
    opt = kinds[work.optimizer](model, lr=LR, batch=1, global_batch=batch, topology=topology, rank=rank, run_id="bench")
    forget_peak()
    opt.start()
    pipe.send(("there", None))
    pipe.recv()
    count = 0
    while not (opt.over or pipe.poll()):
        opt.zero_grad()
        model().backward()
        opt.step()
        count += 1
        if count in marks:
            work.settle()
            pipe.send(("mark", _standing(opt)))
    if pipe.poll():
        pipe.recv()
    staleness = opt.status().staleness_rounds
    opt.close()
    return staleness


def _standing(opt: RFast) -> dict[str, float]:
    behind = opt._node
    assert behind is not None
    standing = behind.call(behind.node.standing)
    return {
        "at_s": time.perf_counter(),
        "peak_bytes": peak_bytes(),
        "steady_bytes": resident_bytes(),
        "pace_s": standing["pace_s"],
        "bytes_sent": standing["bytes_sent"],
        "rounds": standing["rounds"],
    }


def _times(work: Work, step: Callable[[], None], count: int) -> float:
    began_s = time.perf_counter()
    for _ in range(count):
        step()
    work.settle()
    return time.perf_counter() - began_s


# ------------------------------------------------------------------------------------------------ memory


def resident_bytes() -> float:
    """Of this process, now (Linux; elsewhere 0)."""
    return _of_status("VmRSS")


def peak_bytes() -> float:
    """The most since :func:`forget_peak` (Linux; elsewhere 0)."""
    return _of_status("VmHWM")


def forget_peak() -> None:
    """Begin to look for the most from here (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return


def _of_status(key: str) -> float:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(f"{key}:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 0.0
