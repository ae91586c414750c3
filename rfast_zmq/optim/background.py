"""A node in a thread of its own, beside the user's loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from rfast_zmq.launch.memory import come_second
from rfast_zmq.launch.process import run_loop
from rfast_zmq.node import Node, Steps
from rfast_zmq.results import Point

T = TypeVar("T")
log = logging.getLogger("rfast_zmq")


class Background:
    """Runs one node; what is to be read goes to the logger ``rfast_zmq``.

    Args:
        make: makes the node, whose watcher is the one given.
        steps: what passes between the node and the user's loop; halted when the node is gone.
    """

    def __init__(self, make: Callable[[Background], Node], steps: Steps) -> None:
        self.node, self._steps = make(self), steps
        self._error: BaseException | None = None
        self._told = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"rfast-{self.node.rank}", daemon=True)

    def start(self) -> None:
        """Open the sockets, and go on.

        Raises:
            UsageError: an address that cannot be bound or connected to.
        """
        self._thread.start()
        self._open.wait()
        self.check()

    def check(self) -> None:
        """Raise what the node's thread raised, once.

        Raises:
            UsageError: a parent that trains another model, an address in use.
        """
        if self._error is not None and not self._told:
            self._told = True
            raise self._error

    def ask(self, act: Callable[[], None]) -> None:
        """Have the node's loop call it, if it still runs."""
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(act)
        except RuntimeError:  # closed
            return

    def call(self, act: Callable[[], T]) -> T:
        """What it gives, called on the node's loop, where nothing else happens meanwhile; or here if that has ended."""
        found: Future[T] = Future()

        def on_loop() -> None:
            try:
                found.set_result(act())
            except Exception as error:
                found.set_exception(error)

        self.ask(on_loop)
        while True:
            try:
                return found.result(0.1)
            except TimeoutError:
                if not self._thread.is_alive():
                    return act()

    def join(self) -> None:
        """Until the node is gone."""
        self._thread.join()

    def _run(self) -> None:
        come_second()
        try:
            run_loop(self.node.run())
        except asyncio.CancelledError:  # told to leave before the start
            pass
        except BaseException as error:
            self.fault(error)
        finally:
            self._steps.halt()
            self._open.set()

    # ------------------------------------------------------------------------------ a Watcher, on the node's loop

    def ready(self, layout: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._open.set()

    def report(self, report: Mapping[str, Any]) -> None:
        return

    def point(self, point: Point) -> None:
        return

    def say(self, line: str) -> None:
        log.warning("%s", line)

    def fault(self, error: BaseException) -> None:
        self._error = self._error or error
