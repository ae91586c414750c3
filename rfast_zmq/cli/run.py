"""``rfast run``: one process a node on this machine."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from rfast_zmq import launch
from rfast_zmq.cli.baseline import add_baseline
from rfast_zmq.cli.config import read_settings
from rfast_zmq.cli.flags import Config, Flags, Judging, Output, make_plan
from rfast_zmq.cli.outcome import Outcome, finish, open_folder
from rfast_zmq.cli.progress import Progress
from rfast_zmq.errors import RfastError


def run(
    task: str,
    /,
    *,
    config: Config = None,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    judging: Annotated[Judging | None, Parameter(name="*")] = None,
    output: Annotated[Output | None, Parameter(name="*")] = None,
    **task_options: str,
) -> int:
    """Train a task with one process a node on this machine. It ends at --samples, at --target, or at Ctrl-C.

    Parameters
    ----------
    task
        FILE.py with the task, or FILE.py:Class.
    task_options
        The task's own options, such as --model logreg.
    """
    flags, judging, output = flags or Flags(), judging or Judging(), output or Output()
    judging.check()
    plan = make_plan(task, flags.settings(read_settings(config)), task_options)
    folder = open_folder(output.out)
    with Progress(plan, json=output.json, folder=folder) as progress:
        try:
            done = launch.run(plan, progress)
        except (RfastError, KeyboardInterrupt):
            progress.save()
            raise
    outcome = Outcome(plan, done, interrupted=done.interrupted, require=judging.require)
    if judging.baseline:
        add_baseline(outcome)
    return finish(outcome, folder, json=output.json)
