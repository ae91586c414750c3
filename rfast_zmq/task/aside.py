"""A thread that does one thing after the other, and keeps no process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Aside:
    """It begins when there is something to do. (A pool of ``concurrent.futures`` takes nothing more on once the
    interpreter ends, when a node may still have to pass on what it hears.)

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, task: Callable[[], None]) -> None:
        """After all that was asked before. It must not raise. From one thread at a time."""
        self._tasks.put(task)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Until all that was asked is done."""
        done = threading.Event()
        self.do(done.set)
        done.wait()

    def _run(self) -> None:
        while True:
            self._tasks.get()()
