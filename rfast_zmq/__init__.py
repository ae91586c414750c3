"""R-FAST over ZeroMQ: one model, many uneven machines, nobody waits.

A task is a class (:class:`Task`); ``rfast run FILE.py`` trains it, and so does ``main(Mine)`` at the end of its file.
From Python::

    plan = rfast_zmq.Plan.make("nodes/digits.py", rfast_zmq.Settings(nodes=7, split="label"))
    result = rfast_zmq.run(plan).result                # one process a node on this machine
    result = rfast_zmq.Simulator(plan).run().result    # the same in virtual time

Names are imported when they are first used: ``import rfast_zmq`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfast_zmq.assembly import Plan
    from rfast_zmq.cli.script import main
    from rfast_zmq.errors import Refused, RfastError, TaskError, UsageError
    from rfast_zmq.launch import run
    from rfast_zmq.settings import Settings
    from rfast_zmq.simulate import Simulator
    from rfast_zmq.task import Task
    from rfast_zmq.topology import Topology

    __version__: str

_HOMES = {
    "Plan": "assembly",
    "Refused": "errors",
    "RfastError": "errors",
    "Settings": "settings",
    "Simulator": "simulate",
    "Task": "task",
    "TaskError": "errors",
    "Topology": "topology",
    "UsageError": "errors",
    "main": "cli.script",
    "run": "launch",
}

__all__ = [
    "Plan",
    "Refused",
    "RfastError",
    "Settings",
    "Simulator",
    "Task",
    "TaskError",
    "Topology",
    "UsageError",
    "__version__",
    "main",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("rfast-zmq")
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
