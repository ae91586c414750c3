"""Whoever watches a node: the launcher's end of a pipe, or the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rfast_zmq.results import Point


class Watcher(Protocol):
    """Told what happens at a node, on the node's own loop: it must not block."""

    def ready(self, layout: str) -> None:
        """Imported, first batch loaded (and connected, where there is a gate). ``layout`` is the layout's hash."""

    def report(self, report: Mapping[str, Any]) -> None:
        """How the node stands (:meth:`rfast_zmq.node.Node.standing`), every half second."""

    def point(self, point: Point) -> None:
        """The root evaluated."""

    def say(self, line: str) -> None:
        """Something a person should read."""

    def fault(self, error: BaseException) -> None:
        """Something went wrong in a coroutine; the node ends."""
