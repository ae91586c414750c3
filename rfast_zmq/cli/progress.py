"""What a user sees while a run goes on: a live panel on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EIO
from math import isfinite
from pathlib import Path
from statistics import median_high
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rfast_zmq.assembly import Plan
from rfast_zmq.cli import command_line
from rfast_zmq.errors import RfastError
from rfast_zmq.launch import Observer
from rfast_zmq.results import NodePoint, Point, RunFolder
from rfast_zmq.simulate import Simulator
from rfast_zmq.topology import to_toml

if TYPE_CHECKING:
    from torch import Tensor

LINE_S = 5.0
"""Seconds between two lines where there is no terminal."""
FOLLOW_S = 0.25
"""Least seconds between two looks at a simulation."""
FRESH_S = 3.0
"""A node whose newest report is older than this, against the newest of all, counts for no rate."""
SLOW = 1.5
"""A node that is slower than the median by this factor is named."""
PLAIN_WIDTH = 140
RUN_FILES = (
    *("config.json", "topology.toml", "metrics.jsonl", "nodes.jsonl", "baseline.jsonl", "model.safetensors"),
    *("result.json", "curve.png", "topology.png"),
)
"""What a run leaves in the folder of ``--out``."""


class Progress(Observer):
    """Watches a run, shows it, and keeps what is to be saved if the run fails.

    Args:
        plan: the run.
        json: standard output belongs to the result: show progress on stderr, and only if that is a terminal.
        folder: where configuration and metrics go; None: nowhere.
        rank: the node that is watched; None: all of them.
        virtual: times are of a simulation.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        json: bool = False,
        folder: RunFolder | None = None,
        rank: int | None = None,
        virtual: bool = False,
    ) -> None:
        self.plan, self.folder, self.virtual = plan, folder, virtual
        self.points: list[Point] = []
        self.node_points: list[NodePoint] = []
        self.console = make_console(json)
        self._main = plan.topology.root if rank is None else rank
        self._partial = self._main != plan.topology.root
        """One node away from the root is watched: it knows of the run only what comes by."""
        self._live = Live(self, console=self.console, refresh_per_second=4, transient=True, redirect_stdout=False)
        self._shows = self.console.is_terminal or not json
        self._reports: dict[int, Mapping[str, Any]] = {}
        self._bytes_per_s: dict[int, float] = {}
        self._samples_per_s = 0.0
        self._rescued: Mapping[str, Tensor] | None = None
        self._started = False
        self._next_line_s = time.monotonic() + LINE_S
        self._next_look_s = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        elif self._shows and not self.virtual:
            self.console.print(Text(f"starting {self._what()}"), soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    # -------------------------------------------------------------------------------------- what the launcher tells

    def started(self, pids: list[int]) -> None:
        if not self._started and self.folder is not None:
            if (aside := put_aside(self.folder)) is not None:
                self.say(f"the earlier run's files in {self.folder.path} are now in {aside}")
            save_config(self.folder, self.plan)
        self._started = True
        self._next_line_s = time.monotonic() + LINE_S / 2

    def report(self, report: Mapping[str, Any]) -> None:
        if not self._started:  # a node without a gate has started when it says so
            self.started([])
        rank, before = int(report["rank"]), self._reports.get(int(report["rank"]))
        self._reports[rank] = report
        if "samples_per_s" in report:
            pace, samples = report["samples_per_s"], report["own_samples"]
            self.node_points.append(NodePoint(time_s=report["time_s"], rank=rank, samples=samples, pace=pace))
        if before is not None and (since_s := report["time_s"] - before["time_s"]) > 0:
            self._bytes_per_s[rank] = (report["bytes_sent"] - before["bytes_sent"]) / since_s
            if rank == self._main:
                counted = "own_samples" if self._partial else "samples"
                rate = (report[counted] - before[counted]) / since_s
                self._samples_per_s += (rate - self._samples_per_s) * (0.3 if self._samples_per_s else 1.0)
        self._line_if_due()

    def point(self, point: Point) -> None:
        self.points.append(point)

    def say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    # -------------------------------------------------------------------------------------- what a simulation shows

    def follow(self, simulator: Simulator, point: Point) -> None:
        """Look at a simulation, now and then."""
        self.points.append(point)
        if self._shows and time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + FOLLOW_S
            for node in simulator.nodes:
                s = node.algorithm.status()
                self.report(
                    {
                        **{name: getattr(s, name) for name in s.__slots__},
                        "rank": node.rank,
                        "time_s": simulator.now,
                        "bytes_sent": node.bytes,
                    }
                )

    def say_all(self, said: list[tuple[float, str]]) -> None:
        """What a simulation had to say, after it."""
        for time_s, line in said:
            self.say(f"{time_s:.1f} virtual s: {line}")

    # -------------------------------------------------------------------------------------- what is saved of a failure

    def rescued(self, model: Mapping[str, Tensor]) -> None:
        self._rescued = model

    def save(self, model: Mapping[str, Tensor] | None = None) -> None:
        """Metrics so far, of a run that began and will give no more; where they cannot be written, nothing.

        Args:
            model: the newest there is, to be kept with them; None: what :meth:`rescued` was told.
        """
        model = self._rescued if model is None else model
        if self.folder is not None and self._started:
            try:
                self.folder.metrics(self.points)
                self.folder.nodes(self.node_points)
                self.folder.baseline(None)
                if model is not None:
                    self.folder.model(model)
            except OSError:
                return
            where = self.folder.path / "model.safetensors"
            self.say("no model could be saved" if model is None else f"the newest model is kept: {where}")

    # -------------------------------------------------------------------------------------- what is shown

    def __rich__(self) -> Group:
        """The live panel."""
        if self._main not in self._reports:
            return Group(Text(f"starting {self._what()} …" if not self._started else f"{self._what()}: first round …"))
        if waiting := self._waiting():
            return Group(Text(self._what()), Text(waiting))
        head = Table.grid(padding=(0, 2))
        goal = None if self._partial else self.plan.settings.samples
        samples = self._reports[self._main]["samples"]
        bar = ProgressBar(total=goal, completed=min(samples, goal), width=24) if goal else Text("")
        head.add_row(bar, Text(self._progress()))
        body = Table.grid(padding=(0, 3))
        body.add_row(*(Text(cell) for cell in self._scores()))
        body.add_row(*(Text(cell) for cell in self._rates()))
        lines = [Text(line) for line in (self._slow(), self._aside()) if line]
        return Group(Text(self._what()), head, body, *lines)

    def _line_if_due(self) -> None:
        if self.console.is_terminal or not self._shows or time.monotonic() < self._next_line_s:
            return
        if self._main in self._reports:
            self._next_line_s = time.monotonic() + LINE_S
            cells = [self._waiting()]
            if not cells[0]:
                cells = [self._progress(), *self._scores()[:2], *self._rates(), self._slow(), self._aside()]
            self.console.print(Text("  ".join(cell for cell in cells if cell)), soft_wrap=True)

    def _what(self) -> str:
        nodes = self.plan.topology.nodes
        return f"{nodes} node{'s' * (nodes != 1)}, {self.plan.topology.name}, {self.plan.settings.algorithm}"

    def _waiting(self) -> str:
        """What a node away from the root is waiting for before it can do anything; nothing once it has."""
        at = self._reports[self._main]
        if not self._partial or at["gradients"]:
            return ""
        parent = self.plan.topology.pull_tree.parent[self._main]
        assert parent is not None
        model = f"the first model from {self.plan.topology.called(parent)}"
        what = "the first gradient" if at["accepted"] else model
        return f"{at['time_s']:.1f} s  waiting for {what}"

    def _progress(self) -> str:
        at, goal = self._reports[self._main], self.plan.settings.samples
        done = f"{at['samples']:,}" + (f" of {goal:,}" if goal else "") + " samples"
        clock = f"{at['time_s']:.1f} virtual s" if self.virtual else f"{at['time_s']:.1f} s"
        if self._partial:
            return f"{clock}  {at['own_samples']:,} own samples  the run's round {at['rounds']:.0f}"
        return f"{clock}  {done}  round {at['rounds']:.0f}"

    def _scores(self) -> list[str]:
        newest = self.points[-1] if self.points else None
        of = " of the subtree" if self._partial and self._has_children() else ""
        cells = [f"train loss{of} {self._reports[self._main]['loss']:.4f}"]
        if newest is not None and newest.loss is not None:
            cells.insert(0, f"loss {newest.loss:.4f}")
        if newest is not None and newest.accuracy is not None:
            cells.insert(0, f"accuracy {newest.accuracy:.4f}")
        elif newest is not None:
            cells += [f"{name} {value:.4g}" for name, value in list(newest.extra.items())[:1]]
        return cells

    def _rates(self) -> list[str]:
        fresh = self._fresh()
        sent = sum(rate for rank, rate in self._bytes_per_s.items() if rank in fresh)
        per = "virtual s" if self.virtual else "s"
        cells = [f"{self._samples_per_s:,.0f} samples/{per}", f"{size(sent)}/{per}"]
        if not self._partial:  # only the root knows it
            cells.insert(1, f"staleness {self._reports[self._main]['staleness_rounds']:.2f} rounds")
        return cells

    def _slow(self) -> str:
        fresh = self._fresh()
        paces = {rank: r["pace"] for rank, r in fresh.items() if r["pace"] > 0}
        slowest, pace = self._reports[self._main]["slowest_rank"], self._reports[self._main]["slowest_pace"]
        if len(paces) > 1:
            return slow_node(self.plan, paces)
        if slowest >= 0 and isfinite(pace) and (not self._partial or self._has_children()):
            of = " of the subtree" if self._partial else ""
            return f"slowest{of}: {self.plan.topology.called(slowest)}, {pace:,.0f} samples/s"
        return ""

    def _aside(self) -> str:
        aside = self._reports[self._main]["set_aside"]
        return "set aside: " + ", ".join(self.plan.topology.called(rank) for rank in aside) if aside else ""

    def _has_children(self) -> bool:
        return bool(self.plan.topology.push_tree.children[self._main])

    def _fresh(self) -> dict[int, Mapping[str, Any]]:
        newest = max((r["time_s"] for r in self._reports.values()), default=0.0)
        return {rank: r for rank, r in self._reports.items() if r["time_s"] > newest - FRESH_S}


def slow_node(plan: Plan, paces: Mapping[int, float]) -> str:
    """Names the slowest node, with its factor against the median, if it is slow.

    Args:
        plan: the run.
        paces: rank to samples a second of computing, at least one.
    """
    rank, middle = min(paces, key=lambda r: paces[r]), median_high(paces.values())
    factor = middle / max(paces[rank], 1e-9)
    if factor < SLOW:
        return f"no node is slow (slowest: {plan.topology.called(rank)}, {factor:.1f}x the median's time)"
    rates = f"{paces[rank]:,.0f} samples/s against {middle:,.0f}"
    return f"slow: {plan.topology.called(rank)}, {factor:.1f}x the median's time ({rates})"


def size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


class Screen:
    """A stream that bears it if it is a terminal which was closed: what is written then goes nowhere. (SIGHUP says so,
    too, but what is being written at that moment fails first.)

    Args:
        stream: standard output or error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._borne():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._borne():
            self._stream.flush()

    @contextmanager
    def _borne(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != EIO:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_console(json: bool) -> Console:
    """Standard output, or stderr where standard output belongs to the JSON; wide where it is no terminal."""
    stream = sys.stderr if json else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=cast(TextIO, Screen(stream)), width=width, highlight=False, markup=False, emoji=False)


def put_aside(folder: RunFolder) -> Path | None:
    """Move the files of an earlier run into a folder of their own, so that none is lost and no two runs are mixed.

    Returns:
        That folder, ``before-N``; None: there are no such files.

    Raises:
        RfastError: they cannot be moved.
    """
    files = [path for name in RUN_FILES if (path := folder.path / name).exists()]
    if not files:
        return None
    number = 1
    while (aside := folder.path / f"before-{number}").exists():
        number += 1
    try:
        aside.mkdir()
        for path in files:
            path.rename(aside / path.name)
    except OSError as error:
        raise RfastError(
            f"--out {folder.path}: the earlier run's files cannot be moved to {aside.name}: {error.strerror}"
        ) from None
    return aside


def save_config(folder: RunFolder, plan: Plan) -> None:
    """The configuration that repeats this run.

    Raises:
        RfastError: the folder cannot be written to.
    """
    words = command_line.get()
    more = {} if words is None else {"argv": list(words)}
    try:
        folder.config(plan.settings, plan.source, nodes=list(plan.topology.names), root=plan.topology.root, **more)
        folder.topology(to_toml(plan.topology))
    except OSError as error:
        raise RfastError(f"--out {folder.path}: cannot be written to: {error.strerror}") from None
