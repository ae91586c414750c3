"""``rfast run``: one process a node on this machine."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from rfast_zmq import launch
from rfast_zmq.cli.baseline import one_machine
from rfast_zmq.cli.flags import Flags, Output, make_plan
from rfast_zmq.cli.outcome import Outcome, finish, open_folder
from rfast_zmq.cli.progress import Progress
from rfast_zmq.errors import RfastError, UsageError


def run(
    task: str,
    /,
    *,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    output: Annotated[Output | None, Parameter(name="*")] = None,
    baseline: bool = False,
    require: float | None = None,
    **task_options: str,
) -> int:
    """Train a task with one process a node on this machine. It ends at --samples, at --target, or at Ctrl-C.

    Parameters
    ----------
    task
        FILE.py with the task, or FILE.py:Class.
    baseline
        Afterwards train on one machine at the same hyper-parameters (simulated), and put its accuracy beside ours.
    require
        Exit with status 1 if the accuracy ends below this.
    task_options
        The task's own options, such as --model logreg.
    """
    flags, output = flags or Flags(), output or Output()
    if require is not None and not 0 < require <= 1:
        raise UsageError(f"--require {require}: an accuracy above 0, at most 1")
    plan = make_plan(task, flags, task_options)
    folder = open_folder(output.out)
    with Progress(plan, json=output.json, folder=folder) as progress:
        try:
            done = launch.run(plan, progress)
        except (RfastError, KeyboardInterrupt):
            progress.save()
            raise
    outcome = Outcome(plan, done, interrupted=done.interrupted, require=require)
    if baseline and done.result.trouble is None and not done.interrupted:
        outcome.baseline = one_machine(plan, done.result.samples)
    return finish(outcome, folder, json=output.json)
