"""``rfast simulate``: the same run in virtual time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from torch import Tensor

from rfast_zmq.cli.baseline import add_baseline
from rfast_zmq.cli.config import read_settings
from rfast_zmq.cli.flags import Config, Flags, Judging, Output, make_plan
from rfast_zmq.cli.outcome import Outcome, finish, open_folder
from rfast_zmq.cli.progress import Progress
from rfast_zmq.conditions import bytes_per_s
from rfast_zmq.errors import RfastError, UsageError
from rfast_zmq.launch import Run
from rfast_zmq.results import Point
from rfast_zmq.simulate import Halt, Simulator

COMPUTE = "constant:0.1"


def simulate(
    task: str,
    /,
    *,
    latency: float = 0.0,
    bandwidth: str | None = None,
    trace: Path | None = None,
    halt: tuple[str, ...] = (),
    config: Config = None,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    judging: Annotated[Judging | None, Parameter(name="*")] = None,
    output: Annotated[Output | None, Parameter(name="*")] = None,
    **task_options: str,
) -> int:
    """The same run in virtual time: one process, no clock. The same seed gives the same bytes of trace and result.

    Parameters
    ----------
    task
        FILE.py with the task, or FILE.py:Class.
    latency
        Virtual seconds that a message is under way.
    bandwidth
        Of each node's outgoing line, and of its incoming one, which its edges share: bytes a second, or as 10mbit.
    trace
        Write every event into this file, one JSON object a line.
    halt
        RANK:FROM or RANK:FROM:UNTIL, in virtual seconds: this node stands still. May be given several times.
    task_options
        The task's own options, such as --model logreg.
    """
    flags, judging, output = flags or Flags(), judging or Judging(), output or Output()
    judging.check()
    settings = flags.settings(read_settings(config))
    if flags.compute is None and settings.compute == "none":
        settings = replace(settings, compute=COMPUTE)
    plan = make_plan(task, settings, task_options)
    halts = Halt.parse(halt, plan.topology.nodes)
    rate = inf if bandwidth is None else bytes_per_s(bandwidth)
    folder = open_folder(output.out)
    with ExitStack() as stack:
        file = None if trace is None else stack.enter_context(_Trace(trace))
        progress = stack.enter_context(Progress(plan, json=output.json, folder=folder, virtual=True))
        simulator = Simulator(
            plan, latency_s=latency, bytes_per_s=rate, trace=file, halts=halts, progress=lambda p: seen(p)
        )
        good: tuple[Tensor, ...] | None = None

        def seen(point: Point) -> None:
            nonlocal good
            model = simulator.root.algorithm.export()
            if model is not None and all(bool(torch.isfinite(bucket).all()) for bucket in model):
                good = model
            progress.follow(simulator, point)

        progress.started([])
        try:
            done = simulator.run()
            if file is not None:
                file.close()  # what it still holds may not be writable
        except (RfastError, KeyboardInterrupt):
            progress.node_points = simulator.out.node_points
            progress.save(None if good is None else simulator.root.worker.state_dict(good))
            raise
        progress.say_all(done.said)
    state = None if good is None else simulator.root.worker.state_dict(good)
    run = Run(done.result, done.points, done.node_points, state, done.said)
    outcome = Outcome(plan, run, require=judging.require)
    if judging.baseline:
        add_baseline(outcome)
    return finish(outcome, folder, json=output.json)


class _Trace(io.StringIO):
    """The trace's file; that it cannot be written to is said as any other failure is.

    Raises:
        UsageError: it cannot be opened.
        RfastError: it cannot be written to (the disk is full, say).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--trace {path}: cannot be written: {error.strerror}") from None

    def write(self, text: str) -> int:
        with self._said():
            return self._file.write(text)

    def close(self) -> None:
        with self._said():
            self._file.close()
        super().close()

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RfastError(f"--trace {self._path}: cannot be written: {error.strerror}") from None
