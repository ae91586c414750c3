"""Nodes in process, on one loop, on which nothing may block."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx
from torch import Tensor, nn

from rfast_zmq.algorithms import RIVALS
from rfast_zmq.assembly import Plan
from rfast_zmq.core.events import Action, Edge, Event, GradientReady, LinkReady, Received
from rfast_zmq.core.served import Served
from rfast_zmq.errors import TaskError, UsageError
from rfast_zmq.node import Node
from rfast_zmq.results import Point
from rfast_zmq.settings import Settings
from rfast_zmq.task import Task
from rfast_zmq.transport import RECEIVED_MOST, Addresses
from tests.algorithms.network import given_options
from tests.loopback.tasks import Line

OPTIMUM = torch.arange(1.0, 9.0)
NOBODY_WAITS = {"ad-psgd", *(name for name in RIVALS if issubclass(RIVALS[name], Served))}
"""So one node may compute much more than another."""
END_S = 60.0
RUN = "a" * 16


class Watch:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.layouts: list[str] = []
        self.reports: list[Mapping[str, Any]] = []
        self.points: list[Point] = []
        self.lines: list[str] = []
        self.faults: list[BaseException] = []
        self.told: Callable[[Mapping[str, Any]], None] | None = None
        self.said: Callable[[str], None] | None = None

    def ready(self, layout: str) -> None:
        self.layouts.append(layout)

    def report(self, report: Mapping[str, Any]) -> None:
        self.reports.append(report)
        if self.told is not None:
            self.told(report)

    def point(self, point: Point) -> None:
        self.points.append(point)

    def say(self, line: str) -> None:
        self.lines.append(line)
        if self.said is not None:
            self.said(line)

    def fault(self, error: BaseException) -> None:
        self.faults.append(error)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Shorter than tmp_path: a Unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rn-") as name:
        yield Path(name)


@contextmanager
def nothing_blocks() -> Iterator[BlockBuster]:
    """A call that could block the loop (a lock that is held, a sleep, a socket, a file) raises where it is made."""
    with blockbuster_ctx() as strict:
        yield strict


class Nodes:
    """All nodes of a run, on the running loop."""

    def __init__(self, folder: Path, task: type[Task], **settings: Any) -> None:
        chosen = {"nodes": 3, "compute": "constant:0.02", "report_batch": 4, "samples": 3000, **settings}
        self.plan = Plan.make(task, Settings(**chosen))
        self.count = self.plan.topology.nodes
        self.addresses = Addresses.ipc(folder, self.count)
        self.watches = [Watch() for _ in range(self.count)]
        self.nodes = [self.make(rank, watch) for rank, watch in enumerate(self.watches)]

    def make(self, rank: int, watch: Watch, run: str = RUN) -> Node:
        return Node(self.plan, rank, self.addresses, run, 1, watch)

    async def run(self, gate: bool = False, *, ranks: tuple[int, ...] | None = None) -> list[BaseException | None]:
        """To the end of each; what each raised."""
        chosen = [node for node in self.nodes if ranks is None or node.rank in ranks]
        tasks_before, readers_before = asyncio.all_tasks(), readers()
        opened, ready = asyncio.Event(), 0

        async def wait() -> None:
            nonlocal ready
            ready += 1
            if ready == len(chosen):
                opened.set()
            await opened.wait()

        with nothing_blocks():
            work = asyncio.gather(*(node.run(wait if gate else None) for node in chosen), return_exceptions=True)
            ended = await asyncio.wait_for(work, END_S)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == tasks_before
        assert readers() == readers_before
        for error in ended:
            assert not isinstance(error, BlockingError), error
        return ended

    @property
    def model(self) -> Tensor:
        found = next(node for node in self.nodes if node.is_root).final_model()
        assert found is not None
        return next(t for t in found.values() if t.numel() == 8)[0]


def readers() -> int:
    """File descriptors that the running loop watches."""
    return len(asyncio.get_running_loop()._selector.get_map())  # type: ignore[attr-defined]


async def test_the_strictness_is_real() -> None:
    with nothing_blocks(), pytest.raises(BlockingError):
        time.sleep(0.01)  # noqa: ASYNC251


@pytest.mark.parametrize("gate", [False, True], ids=["no gate", "gate"])
@pytest.mark.parametrize("algorithm", ["rfast-tree", "rfast"])
async def test_three_nodes_train_and_leave_without_ever_blocking(folder: Path, algorithm: str, gate: bool) -> None:
    run = Nodes(folder, Line, algorithm=algorithm, samples=6000, lr=0.03)
    assert await run.run(gate) == [None] * 3
    assert run.model == pytest.approx(OPTIMUM, abs=0.2)
    root = next(node for node in run.nodes if node.is_root)
    for node, watch in zip(run.nodes, run.watches, strict=True):
        assert watch.faults == []
        assert watch.layouts == [node.worker.layout.hash]
        assert watch.reports
        assert node.standing()["gradients"] > 0
        assert node.standing()["messages_sent"] > 0
        assert node.refused == {}
        times = [report["time_s"] for report in watch.reports]
        assert times == sorted(times)
        assert node.is_root == bool(watch.points)
        assert 0 < node.wall_s < END_S
    points = run.watches[root.rank].points
    assert root.standing()["samples"] >= 6000
    assert points[-1].samples >= 6000
    assert [p.time_s for p in points] == sorted(p.time_s for p in points)
    assert points[-1].loss is not None
    assert points[-1].loss < 0.05
    assert points[-1].extra["error"] == pytest.approx((run.model - OPTIMUM).abs().max().item(), abs=1e-4)


@pytest.mark.parametrize("algorithm", RIVALS)
async def test_the_rivals_train_and_leave_without_ever_blocking(folder: Path, algorithm: str) -> None:
    """At a fixed step gossip on uneven data ends beside the optimum."""
    run = Nodes(
        folder,
        Line,
        algorithm=algorithm,
        topology="ring",
        report_batch=None,
        samples=3000,
        lr=0.05,
        optimizer="sgd",
        algorithm_option=given_options(algorithm),
    )
    assert await run.run() == [None] * 3
    assert run.model == pytest.approx(OPTIMUM, abs=0.3)
    for node, watch in zip(run.nodes, run.watches, strict=True):
        assert watch.faults == []
        assert node.standing()["gradients"] >= (30 if algorithm in NOBODY_WAITS else 90)
        assert node.refused == {}
    assert run.nodes[0].standing()["samples"] >= 3000


class Wide(Line):
    """Of 32 buckets."""

    def configure_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(8, 32 * 256 // 8, bias=False)

    def training_step(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).square().mean()  # type: ignore[no-any-return]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"loss": 0.0}


@pytest.mark.parametrize(
    ("algorithm", "bytes_most", "parts"),
    [("rfast-tree", 5 * 1024, [5, 5, 5, 5, 5, 5, 2]), ("rfast", 1 << 20, [16, 16])],
)
async def test_in_a_turn_of_the_loop_a_node_handles_a_few_buckets_however_many_there_are(
    folder: Path, algorithm: str, bytes_most: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket for each socket that has brought something, one for each edge that may speak, some of its gradient."""
    monkeypatch.setattr("rfast_zmq.node.exchange.TURN_BYTES", 1024)
    monkeypatch.setattr("rfast_zmq.node.runtime.TURN_BYTES", bytes_most)
    run = Nodes(folder, Wide, algorithm=algorithm, bucket_bytes=1024, samples=300, lr=0.01)
    handled, most = Counter[int](), Counter[int]()
    told: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}

    def turn(rank: int) -> None:
        most[rank] = max(most[rank], handled.pop(rank))

    for node in run.nodes:
        assert node.algorithm.buckets == 32

        def watched(event: Event, node: Any = node, handle: Any = node.algorithm.handle) -> Any:
            if isinstance(event, Received | LinkReady | GradientReady):
                if node.rank not in handled:
                    asyncio.get_running_loop().call_soon(turn, node.rank)
                handled[node.rank] += 1
            if isinstance(event, GradientReady):
                told[node.rank].append((event.first, len(event.gradient)))
            return handle(event)

        node.algorithm.handle = watched
    assert await run.run() == [None] * 3
    for node in run.nodes:
        sockets, edges = len(node.algorithm.in_edges), len(node.algorithm.out_edges)
        assert 1 <= most[node.rank] <= 2 * (sockets + edges + 1)
        whole = [(sum(parts[:i]), part) for i, part in enumerate(parts)]
        assert told[node.rank][: len(parts)] == whole, "in order, no bucket left out"


class Blown(Wide):
    """Whose third gradient is none."""

    steps = 0

    def training_step(self, model: nn.Module, batch: Any) -> Tensor:
        self.steps += 1
        return super().training_step(model, batch) * (float("nan") if self.steps >= 3 else 1.0)


async def test_a_gradient_that_is_not_finite_is_told_once_whatever_its_buckets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no part of it counts: the others, whose values may be finite, are never seen apart."""
    monkeypatch.setattr("rfast_zmq.node.runtime.TURN_BYTES", 1024)
    run = Nodes(folder, Blown, nodes=1, bucket_bytes=1024, lr=0.01)
    (node,) = run.nodes
    told: list[tuple[bool | None, int, int]] = []

    def watched(event: Event, handle: Any = node.algorithm.handle) -> Any:
        if isinstance(event, GradientReady):
            told.append((event.finite, event.first, len(event.gradient)))
        return handle(event)

    node.algorithm.handle = watched  # type: ignore[method-assign]
    await run.run()
    assert node.trouble == 0
    assert [(first, count) for finite, first, count in told if finite] == [(b, 1) for _ in range(2) for b in range(32)]
    assert {(first, count) for finite, first, count in told if not finite} == {(0, 32)}


async def test_under_loss_as_well(folder: Path) -> None:
    run = Nodes(folder, Line, nodes=2, drop=0.3, duplicate=0.1, reorder=0.1, samples=4000)
    assert await run.run() == [None] * 2
    assert run.model == pytest.approx(OPTIMUM, abs=0.2)
    assert run.nodes[0].standing()["faults"]["dropped"] > 0


async def test_one_node_alone(folder: Path) -> None:
    run = Nodes(folder, Line, nodes=1)
    assert await run.run() == [None]
    assert run.model == pytest.approx(OPTIMUM, abs=0.2)
    assert run.nodes[0].standing()["messages_sent"] == 0


async def test_a_late_comer_joins(folder: Path) -> None:
    run = Nodes(folder, Line, samples=6000)
    late: list[asyncio.Task[None]] = []

    def start(report: Mapping[str, Any]) -> None:
        if not late and report["rounds"] > 3:
            late.append(asyncio.get_running_loop().create_task(run.nodes[2].run()))

    run.watches[0].told = start
    with nothing_blocks():
        work = asyncio.gather(run.nodes[0].run(), run.nodes[1].run())
        await asyncio.wait_for(work, END_S)
        await asyncio.wait_for(late[0], END_S)
    assert run.nodes[2].standing()["gradients"] > 0
    assert run.model == pytest.approx(OPTIMUM, abs=0.2)


async def test_stop_at_the_root_ends_all_in_order(folder: Path) -> None:
    run = Nodes(folder, Line, samples=10**9)

    def stop(report: Mapping[str, Any]) -> None:
        if report["rounds"] > 3:
            run.nodes[0].stop()

    run.watches[0].told = stop
    assert await run.run() == [None] * 3
    assert all(node.standing()["gradients"] > 0 for node in run.nodes)


async def test_leaving_waits_for_nobody(folder: Path) -> None:
    run = Nodes(folder, Line, samples=10**9)

    def leave(report: Mapping[str, Any]) -> None:
        if report["rounds"] > 3:
            for node in run.nodes:
                node.leave()

    run.watches[0].told = leave
    began_s = time.monotonic()
    assert await run.run() == [None] * 3
    left_s = run.watches[0].reports[-1]["time_s"]
    assert time.monotonic() - began_s < left_s + 5.0


async def test_a_node_that_leaves_before_it_is_connected_ends(folder: Path) -> None:
    run = Nodes(folder, Line)
    asyncio.get_running_loop().call_later(0.3, run.nodes[1].leave)
    (ended,) = await run.run(gate=True, ranks=(1,))
    assert isinstance(ended, asyncio.CancelledError)
    assert run.watches[1].layouts == []


async def test_a_leaf_in_a_long_gradient_hears_of_the_end(folder: Path) -> None:
    """It does not listen while it computes, for a tenth of a second; then it does."""
    run = Nodes(folder, Line, nodes=2, straggler=("1:100000",), samples=10**9)
    root, leaf = run.nodes

    def stop(report: Mapping[str, Any]) -> None:
        if report["time_s"] > 1.0:
            root.stop()

    run.watches[0].told = stop
    began_s = time.monotonic()
    assert await run.run() == [None] * 2
    assert time.monotonic() - began_s < 6
    assert leaf.standing()["gradients"] == 0


async def test_a_leaf_that_does_not_listen_while_it_computes_never_falls_behind(folder: Path) -> None:
    """Node 2 ends the ring's pull tree, and node 1, which it takes models from, is not told when it wants one: many
    more come while it computes than its socket holds."""
    run = Nodes(folder, Line, topology="ring", pace=0.002, resend=0.002, compute="constant:0.08", samples=400)
    _, above, leaf = (node.algorithm for node in run.nodes)
    assert leaf.models_can_wait
    edge = Edge("W", 1, 2)
    said = heard = 0
    behind: list[int] = []
    of_above, of_leaf = above.handle, leaf.handle

    def above_handles(event: Event) -> list[Action]:
        nonlocal said
        said += isinstance(event, LinkReady) and event.edge == edge
        return of_above(event)

    def leaf_handles(event: Event) -> list[Action]:
        nonlocal heard
        heard += isinstance(event, Received) and event.message.edge == edge
        if isinstance(event, GradientReady):
            behind.append(said - heard)
        return of_leaf(event)

    above.handle, leaf.handle = above_handles, leaf_handles  # type: ignore[method-assign]
    assert await run.run() == [None] * 3
    assert said > RECEIVED_MOST * len(behind)
    assert sorted(behind)[len(behind) // 2] < RECEIVED_MOST


# ------------------------------------------------------------------------------------- what the task does wrong


class Unscorable(Line):
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        raise ValueError("no such metric: f1")


class Unheeding(Line):
    def on_evaluate(self, metrics: dict[str, float]) -> None:
        raise ValueError("no such logger: board")


class Unready(Line):
    def on_start(self) -> None:
        raise ValueError("no such file: notes")


class Unreporting(Line):
    def on_report(self, status: object) -> None:
        raise ValueError("no such queue: q")


class Unstopping(Line):
    def on_stop(self) -> None:
        raise ValueError("no such drain: d")


class Untrainable(Line):
    def training_step(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        raise ValueError("no such column: price")


class Unscheduled(Line):
    """Raises where a link asks for the model, and no coroutine of a user's is near."""

    def lr_schedule(self, rounds: float) -> float:
        if rounds > 3:
            raise ValueError("no such epoch: 3")
        return 1.0


class Scoreless(Line):
    """Scores what is not to be had."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"loss": float("low")}


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Unscorable, "no such metric: f1"),
        (Scoreless, "low"),
        (Unscheduled, "no such epoch: 3"),
        (Unheeding, "no such logger: board"),
        (Unready, "no such file: notes"),
        (Unreporting, "no such queue: q"),
        (Unstopping, "no such drain: d"),
        (Untrainable, "no such column: price"),
    ],
)
@pytest.mark.parametrize("nodes", [1, 2])
async def test_what_the_task_raises_ends_the_node_and_is_shown(
    folder: Path, task: type[Task], words: str, nodes: int
) -> None:
    run = Nodes(folder, task, nodes=nodes, samples=1000 if task is Unstopping else 10**9)

    with nothing_blocks():
        root = asyncio.ensure_future(run.nodes[0].run())
        others = [asyncio.ensure_future(node.run()) for node in run.nodes[1:]]
        await asyncio.wait({root}, timeout=END_S)
        for node in run.nodes[1:]:
            node.leave()
        await asyncio.gather(*others, return_exceptions=True)
    assert root.done()
    error = root.exception()
    assert isinstance(error, TaskError), error
    assert error.rank == 0
    assert words in error.traceback
    assert "ValueError" in error.traceback
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_fault_is_told_to_the_watcher_once(folder: Path) -> None:
    run = Nodes(folder, Unscorable, nodes=1)
    (ended,) = await run.run()
    assert run.watches[0].faults == [ended]


async def test_an_address_that_cannot_be_bound_ends_the_node_and_leaves_nothing(folder: Path) -> None:
    run = Nodes(folder / "missing", Line)
    (ended,) = await run.run(ranks=(1,))
    assert isinstance(ended, UsageError)
    assert "node 1" in str(ended)
    assert "missing" in str(ended)


async def test_messages_of_another_run_are_refused_and_counted(folder: Path) -> None:
    run = Nodes(folder, Line, nodes=2, samples=10**9)
    watch = Watch()
    stranger = run.make(1, watch, run="b" * 16)
    run.nodes[1] = stranger

    refused = asyncio.Event()
    watch.said = lambda line: refused.set() if "refused a message: run" in line else None
    with nothing_blocks():
        work = [asyncio.ensure_future(node.run()) for node in run.nodes]
        await asyncio.wait_for(refused.wait(), END_S)
        for node in run.nodes:
            node.leave()
        await asyncio.wait_for(asyncio.gather(*work), END_S)
    assert stranger.refused.keys() == {"run"}
    assert stranger.standing()["gradients"] == 0  # it never had a model
