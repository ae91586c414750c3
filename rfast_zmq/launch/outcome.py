"""What a run gave, and who watches it: the same for a run on this machine and for one node of a run over many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from rfast_zmq.assembly import Plan
from rfast_zmq.errors import UsageError
from rfast_zmq.results import NodePoint, Point, Result


@dataclass
class Run:
    """What a run gave.

    Attributes:
        result: as ``--json`` prints it.
        points: the root's evaluations, oldest first.
        node_points: each node's pace over time.
        model: the module's ``state_dict`` at the end; None if there is none.
        said: what the nodes said, as (seconds since the start, line).
        interrupted: the user ended it (Ctrl-C, or SIGTERM for a single node).
    """

    result: Result
    points: list[Point] = field(default_factory=list)
    node_points: list[NodePoint] = field(default_factory=list)
    model: dict[str, Tensor] | None = None
    said: list[tuple[float, str]] = field(default_factory=list)
    interrupted: bool = False

    def heard(self, report: Mapping[str, Any]) -> None:
        """Note a node's report."""
        self.node_points.append(
            NodePoint(
                time_s=report["time_s"],
                rank=report["rank"],
                samples=report["own_samples"],
                pace=report["samples_per_s"],
            )
        )

    def settle(self, plan: Plan, standings: Mapping[int, Mapping[str, Any]], seen_from: int) -> None:
        """Fill the result from the nodes' last standings.

        Args:
            plan: the run.
            standings: rank to what :meth:`rfast_zmq.node.Node.standing` gave last, of the nodes that are known.
            seen_from: the node whose view of the whole counts: the root, where it is known.
        """
        result, seen = self.result, standings.get(seen_from, {})
        result.settle(self.points, plan.settings.target)
        result.samples, result.rounds = seen.get("samples", 0), seen.get("rounds", 0.0)
        result.wall_s = seen.get("wall_s", seen.get("time_s", 0.0))
        result.set_aside = list(seen.get("set_aside", []))
        result.trouble = seen["trouble"] if seen.get("trouble", -1) >= 0 else None
        if seen.get("slowest_rank", -1) >= 0:
            result.slowest_node = {"rank": seen["slowest_rank"], "pace": seen["slowest_pace"]}
        result.cpu_s = sum(s.get("cpu_s", 0.0) for s in standings.values())
        result.communication_cpu_s = sum(s.get("communication_cpu_s", 0.0) for s in standings.values())
        for rank, s in standings.items():
            result.bytes_sent += s.get("bytes_sent", 0)
            result.messages_sent += s.get("messages_sent", 0)
            result.messages_received += s.get("accepted", 0) + s.get("stale", 0)
            result.messages_stale += s.get("stale", 0)
            _add(result.messages_refused, s.get("refused", {}))
            _add(result.faults, s.get("faults", {}))
            own = {
                name: s.get(name, 0) for name in ("gradients", "pace", "waited_s", "cpu_s", "memory_bytes", "pace_s")
            }
            result.per_node.append({"rank": rank, "samples": s.get("own_samples", 0), **own})


class Sent:
    """The bytes that one node has sent, over time, from its reports."""

    def __init__(self) -> None:
        self._times_s, self._bytes = [0.0], [0]
        self._rate = 0.0

    def heard(self, report: Mapping[str, Any]) -> None:
        """Note what :meth:`rfast_zmq.node.Node.standing` gave at ``time_s``."""
        since_s = report["time_s"] - self._times_s[-1]
        if since_s > 0:
            self._rate = (report["bytes_sent"] - self._bytes[-1]) / since_s
            self._times_s.append(report["time_s"])
            self._bytes.append(report["bytes_sent"])

    def at(self, time_s: float, ahead_s: float) -> float:
        """Bytes by ``time_s``: in proportion between two reports; after the last one as between the last two, for
        ``ahead_s`` at most."""
        ahead_s = min(max(time_s - self._times_s[-1], 0.0), ahead_s)
        return float(np.interp(time_s, self._times_s, self._bytes)) + self._rate * ahead_s


def check_target(plan: Plan, point: Point) -> None:
    """Hold the first evaluation against what is to end the run.

    Raises:
        UsageError: nothing would.
    """
    settings = plan.settings
    if settings.target is not None and settings.samples is None and point.accuracy is None:
        raise UsageError(
            f"--target {settings.target:g}: the task's evaluate() gives no accuracy, so nothing would end the run;"
            " give --samples, or an accuracy"
        )


class Observer:
    """Told what happens in a run; override what you want to see."""

    def started(self, pids: list[int]) -> None:
        """The gate opened: every node is ready. ``pids``: the processes' ids by rank (of one node of many: its own)."""

    def report(self, report: Mapping[str, Any]) -> None:
        """A node's standing (:meth:`rfast_zmq.node.Node.standing`), every half second of each."""

    def point(self, point: Point) -> None:
        """The root evaluated; a first point comes before the first gradient."""

    def say(self, line: str) -> None:
        """A line for a person."""

    def rescued(self, model: Mapping[str, Tensor]) -> None:
        """The run failed, and this is the newest model that it had: the module's ``state_dict``."""


def _add(into: dict[str, int], more: Mapping[str, int]) -> None:
    for name, times in more.items():
        into[name] = into.get(name, 0) + times
