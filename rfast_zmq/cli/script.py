"""The end of a task's own file: ``main(Mine)``, so that ``python mine.py --nodes 7`` runs it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rfast_zmq.cli import USAGE, command_line
from rfast_zmq.cli import main as rfast

if TYPE_CHECKING:
    from rfast_zmq.task import Task

VERBS = ("run", "node", "simulate")
IMPORTED = ("__mp_main__", "_rfast_task_")
"""How the file is called where multiprocessing or :func:`rfast_zmq.task.load_task` imports it in a node's process."""


def main(task: type[Task], argv: Sequence[str] | None = None) -> None:
    """Run ``task`` as the command line does.

    ``python FILE.py …`` is ``rfast run FILE.py …``; with ``--rank`` or ``--name`` it is ``rfast node FILE.py …``, and
    with ``simulate`` before the rest ``rfast simulate FILE.py …``. In a process of a run, where the file is only
    imported, nothing happens.

    Args:
        task: the class, defined in a file.
        argv: the words after the file's name; None: those of this process.

    Raises:
        SystemExit: with the exit status, unless it is 0.
    """
    caller = sys._getframe(1).f_globals.get("__name__", "")
    if command_line.get() is not None or caller.startswith(IMPORTED):
        return
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words.pop(0) if words and words[0] in VERBS else None
    if verb is None:
        names_a_node = any(word.split("=")[0] in ("--rank", "--name") for word in words)
        verb = "node" if names_a_node else "run"
    try:
        source = Path(inspect.getfile(task)).resolve()
    except (TypeError, OSError):
        print(f"rfast: {task.__name__} is defined in no file: put it into one and run that", file=sys.stderr)
        raise SystemExit(USAGE) from None
    rfast([verb, f"{source}:{task.__name__}", *words])
