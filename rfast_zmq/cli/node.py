"""``rfast node``: one node on this host, of a run over several hosts."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from rfast_zmq import launch
from rfast_zmq.cli.config import read_settings
from rfast_zmq.cli.flags import Config, Flags, Output, make_plan
from rfast_zmq.cli.outcome import Outcome, finish, open_folder
from rfast_zmq.cli.progress import Progress
from rfast_zmq.errors import RfastError, UsageError
from rfast_zmq.topology import Topology, is_file


def node(
    task: str,
    /,
    *,
    rank: str | None = None,
    name: str | None = None,
    insecure: bool = False,
    run_id: str | None = None,
    config: Config = None,
    flags: Annotated[Flags | None, Parameter(name="*")] = None,
    output: Annotated[Output | None, Parameter(name="*")] = None,
    **task_options: str,
) -> int:
    """Run one node on this host. Start the others on theirs in any order, with the same task and flags.

    Parameters
    ----------
    task
        FILE.py with the task, or FILE.py:Class.
    rank
        Which node of the topology's file this is: its rank, from 0, or its name.
    name
        The same, by name.
    insecure
        Allow endpoints that are not of this machine: whoever reaches them can join the run.
    run_id
        Tells runs over the same addresses apart: messages of a run with another id are refused. The same on every node.
        Default: made from topology, algorithm, B, split and seed.
    task_options
        The task's own options, such as --model logreg.
    """
    flags, output = flags or Flags(), output or Output()
    settings = flags.settings(read_settings(config))
    if not is_file(settings.topology):
        raise UsageError(
            f"--topology {settings.topology}: not a file; a run over hosts needs a TOML file with the nodes' names and"
            " endpoints"
        )
    plan = make_plan(task, settings, task_options)
    this = find_node(plan.topology, rank, name)
    folder = open_folder(output.out)
    with Progress(plan, json=output.json, folder=folder, rank=this) as progress:
        try:
            done = launch.run_node(plan, this, progress, insecure=insecure, run_id=run_id)
        except (RfastError, KeyboardInterrupt):
            progress.save()
            raise
    return finish(Outcome(plan, done, interrupted=done.interrupted, rank=this), folder, json=output.json)


def find_node(topology: Topology, rank: str | None, name: str | None) -> int:
    """The rank that the user meant.

    Args:
        topology: the run's.
        rank: a number or a name.
        name: a name.

    Raises:
        UsageError: no such node, none said, or both.
    """
    shown = ", ".join(n if n == str(i) else f"{i} ({n})" for i, n in enumerate(topology.names[:32]))
    there = f"{topology.name} has {shown}" + (f", … ({topology.nodes} in all)" if topology.nodes > 32 else "")
    if (rank is None) == (name is None):
        said = "--rank or --name: which node is this?" if rank is None else "--rank and --name: give one of them"
        raise UsageError(f"{said} {there}")
    flag, text = ("--rank", rank) if rank is not None else ("--name", name)
    assert text is not None
    if flag == "--rank" and text.isascii() and text.isdigit():  # a number is a rank, even where a node is called so
        if int(text) < topology.nodes:
            return int(text)
    elif text in topology.names:
        return topology.names.index(text)
    raise UsageError(f"{flag} {text}: no such node; {there}")
