"""``rfast bench stall``: one of seven nodes is stopped for a while. How do the others fare, and it afterwards?"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

from rfast_zmq.assembly import Plan
from rfast_zmq.bench import task
from rfast_zmq.bench.figures import Figures, at_least
from rfast_zmq.errors import RfastError, UsageError
from rfast_zmq.launch import Observer, run
from rfast_zmq.settings import Settings

NODES = 7
POSITIONS = {"root": 0, "inner": 1, "leaf": 6}
"""Of the binary tree of seven."""
REPORTS_A_ROUND = 8
SETTLING, SETTLING_MOST_S = 0.3, 2.0
"""From the start until the pace before the stop is looked at: a part of the time of the stop, and at the most."""
BEFORE_MOST_S = 15.0
SECONDS_LEAST = 1.5
"""In less, nodes report too seldom to tell their pace."""
AFTER_S, AFTER_MOST_S = 0.5, 20.0
"""Once the stopped node counts again the run goes on for so long; and for so long at the most until it does."""


@dataclass(frozen=True, kw_only=True)
class StallOptions:
    """
    Attributes:
        seconds: for how long the node is stopped.
        positions: which nodes are stopped, one in each run: of :data:`POSITIONS`.
        gradient_ms: emulated, of each gradient (and report) of each node.
        repeats: runs of each position.
    """

    seconds: float = 30.0
    positions: tuple[str, ...] = tuple(POSITIONS)
    gradient_ms: float = 100.0
    repeats: int = 1

    def __post_init__(self) -> None:
        at_least("seconds", self.seconds, SECONDS_LEAST)
        at_least("gradient-ms", self.gradient_ms, 1)
        at_least("repeats", self.repeats, 1)
        for position in self.positions:
            if position not in POSITIONS:
                raise UsageError(f"--positions {position}: one of {', '.join(POSITIONS)}")
        if not self.positions:
            raise UsageError(f"--positions: at least one of {', '.join(POSITIONS)}")


@dataclass(frozen=True)
class Stall:
    """What one run showed.

    Attributes:
        pace_ratio: the least over the other nodes: gradients a second during the stop over before.
        progress_per_gradient: rounds of progress at the root a gradient of those nodes that ran, during over before.
        catch_up_reports: in how many of its reports the node counted again; 0 if it was never set aside.
    """

    pace_ratio: float
    progress_per_gradient: float
    catch_up_reports: int


def stall(options: StallOptions, tell: Callable[[str], None]) -> Figures:
    """Measure.

    Args:
        options: sizes.
        tell: told how it goes.
    """
    figures = Figures(
        "stall",
        nodes=NODES,
        topology="binary-tree",
        seconds=options.seconds,
        positions=list(options.positions),
        gradient_ms=options.gradient_ms,
        repeats=options.repeats,
        pinned=None,
        note="loopback (ipc); one process a node, one torch thread each, on any core; compute is emulated: the real"
        " gradient, then a wait",
    )
    found: dict[str, list[Stall]] = {position: [] for position in options.positions}
    for repeat in range(options.repeats):
        for position, runs in found.items():
            runs.append(_stalled(POSITIONS[position], options))
            tell(f"{repeat + 1}/{options.repeats} {position} stopped for {options.seconds:g} s: {runs[-1]}")
    every = list(found.values())

    def least(name: str) -> list[float]:
        return [min(getattr(r, name) for r in runs) for runs in zip(*every, strict=True)]

    what = "the others' pace in computing, during the stop over before: the least of them"
    figures.add("pace_ratio_min", least("pace_ratio"), f"{what}, of all positions", (">=", 0.95))
    for position, runs in found.items():
        figures.add(f"pace_ratio_{position}", [r.pace_ratio for r in runs], f"{what}, {position} stopped")
    if "leaf" in found:
        figures.add(
            "progress_per_gradient",
            [r.progress_per_gradient for r in found["leaf"]],
            "rounds of progress a gradient of those that run, a leaf stopped, during over before",
        )
    catching = [float(max(r.catch_up_reports for r in runs)) for runs in zip(*every, strict=True)]
    figures.add(
        "catch_up_reports", catching, "reports until the stopped node counts again (0: never set aside)", ("<=", 2)
    )
    return figures


class _Watch(Observer):
    """Stops the node and lets it go on, and keeps what the nodes report meanwhile."""

    def __init__(self, rank: int, options: StallOptions) -> None:
        self._rank, self._gradient_s = rank, options.gradient_ms / 1e3
        self._before_s, self._during_s = min(options.seconds, BEFORE_MOST_S), options.seconds
        self._pid: int | None = None
        self._next_s = float("inf")
        self.marks_s: list[float] = []
        """When it settled, was stopped, went on."""
        self.reports: list[tuple[float, Mapping[str, Any]]] = []
        self.lines: list[tuple[float, str]] = []

    def started(self, pids: list[int]) -> None:
        self._pid, self._next_s = pids[self._rank], time.monotonic() + min(SETTLING * self._during_s, SETTLING_MOST_S)

    def report(self, report: Mapping[str, Any]) -> None:
        self.reports.append((time.monotonic(), report))

    def say(self, line: str) -> None:
        self.lines.append((time.monotonic(), line))

    def stop(self) -> int:
        """Asked ten times a second whether the run shall end."""
        now = time.monotonic()
        if len(self.marks_s) == 3:
            again_s = self._again_s()
            return int(now >= min(self.marks_s[2] + AFTER_MOST_S, (again_s or self.marks_s[2]) + AFTER_S))
        if now >= self._next_s:
            assert self._pid is not None
            if self.marks_s:
                os.kill(self._pid, signal.SIGCONT if len(self.marks_s) == 2 else signal.SIGSTOP)
            self._next_s = now + (self._during_s if self.marks_s else self._before_s)
            self.marks_s.append(now)
        return 0

    def _again_s(self) -> float | None:
        """When it counted again for everybody who had set it aside; inf: not yet; None: nobody had."""
        aside = [at_s for at_s, line in self.lines if line.startswith(f"node {self._rank} has been silent")]
        again = [at_s for at_s, line in self.lines if line.startswith(f"node {self._rank} moves")]
        if not aside:
            return None
        return again[-1] if len(again) >= len(aside) else float("inf")

    # -------------------------------------------------------------------------------------- afterwards

    def found(self) -> Stall:
        """
        Raises:
            RfastError: the run ended too early, or the node never counted again.
        """
        if len(self.marks_s) < 3:
            raise RfastError("the run ended before the stopped node went on")
        settled_s, stopped_s, went_on_s = self.marks_s
        before = {rank: self._rate(rank, "gradients", settled_s, stopped_s) for rank in range(NODES)}
        others = [rank for rank in range(NODES) if rank != self._rank]
        during = {rank: self._rate(rank, "gradients", stopped_s, went_on_s) for rank in others}
        per_gradient = self._rate(0, "rounds", settled_s, stopped_s) / sum(before.values())
        meanwhile = self._rate(0, "rounds", stopped_s, went_on_s) / sum(during.values()) if self._rank else 0.0
        again_s = self._again_s()
        if again_s == float("inf"):
            raise RfastError(f"node {self._rank} did not count again within {AFTER_MOST_S:g} s")
        return Stall(
            pace_ratio=min(during[rank] / before[rank] for rank in others),
            progress_per_gradient=meanwhile / per_gradient,
            catch_up_reports=0 if again_s is None else 1 + floor(max(again_s - went_on_s, 0.0) / self._gradient_s),
        )

    def _rate(self, rank: int, what: str, from_s: float, to_s: float) -> float:
        """Of a number that a node reports, a second of its own clock, between its first and last report of a time."""
        told = [r for at_s, r in self.reports if r["rank"] == rank and from_s <= at_s <= to_s]
        if len(told) < 2 or told[-1][what] <= told[0][what]:
            raise RfastError(f"node {rank} reported no {what} for {to_s - from_s:.1f} s")
        return float((told[-1][what] - told[0][what]) / (told[-1]["time_s"] - told[0]["time_s"]))


def _stalled(rank: int, options: StallOptions) -> Stall:
    settings = Settings(
        nodes=NODES,
        topology="binary-tree",
        global_batch=NODES * REPORTS_A_ROUND,
        report_batch=1,
        compute=f"constant:{options.gradient_ms / 1e3 * REPORTS_A_ROUND}",
        evaluate_every=1e9,
    )
    watch = _Watch(rank, options)
    run(Plan.make(f"{Path(task.__file__).resolve()}:{task.Regression.__name__}", settings), watch, watch.stop)
    return watch.found()


def parse_positions(words: Sequence[str]) -> tuple[str, ...]:
    """``root,leaf`` and ``root leaf`` alike."""
    return tuple(part for word in words for part in word.split(",") if part)
