"""The thread that computes, with a worker whose gradients are done when the test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rfast_zmq.assembly import Plan
from rfast_zmq.core.events import GradientReady, ModelWanted, RunGradient, Started
from rfast_zmq.node.gradients import Gradients
from rfast_zmq.settings import Settings
from tests.loopback.tasks import Line

SOON_S = 10.0


class Slow:
    """Computes until the test lets it."""

    rank = 0
    far: bool = False
    """A model takes its time to come near; :attr:`arrived` then has what to call."""

    def __init__(self) -> None:
        self.arrived: list[Callable[[], object]] = []
        self.at: list[float] = []
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None

    def prefetch(self) -> None:
        pass

    def bring(self, model: Any, rounds: Any, then: Callable[[], object]) -> bool:
        if self.far:
            self.arrived.append(lambda: (setattr(self, "newest", (model, rounds)), then()))
            return False
        self.newest = model, rounds
        return True

    def take_up(self) -> tuple[float, ...]:
        self.taken, rounds = self.newest
        return rounds

    def gradient(
        self, model: None, samples: int, look: Callable[[torch.Tensor], object]
    ) -> tuple[tuple[torch.Tensor, ...], float, int]:
        model = self.taken
        self.at.append(float(model[0]))
        assert self.go.acquire(timeout=SOON_S)
        if self.error is not None:
            raise self.error
        return (model[0] * 2,), 1.0, samples


class Bench:
    def __init__(self, drawn_s: float = 0.0) -> None:
        self.worker = Slow()
        self.news = asyncio.Event()
        speeds = SimpleNamespace(seconds=lambda *_: drawn_s)
        settings: Any = SimpleNamespace(report=4, share=8)
        self.thread = Gradients(
            self.worker,  # type: ignore[arg-type]
            speeds,  # type: ignore[arg-type]
            settings,
            soon=asyncio.get_running_loop().call_soon_threadsafe,
            news=self.news.set,
        )

    def offer(self, version: float) -> None:
        self.thread.offer(RunGradient((torch.tensor([version]),), (version,)))

    async def until(self, true: Callable[[], bool]) -> None:
        for _ in range(int(SOON_S / 0.005)):
            if true():
                return
            await asyncio.sleep(0.005)
        pytest.fail("never")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.thread.halt()
    for _ in range(10):
        made.worker.go.release()
    made.thread.close(wait=True)


async def test_of_several_models_offered_meanwhile_the_newest_is_taken_without_the_loop(bench: Bench) -> None:
    bench.offer(1.0)
    await bench.until(lambda: bench.worker.at == [1.0])
    for version in (2.0, 3.0, 4.0):
        bench.offer(version)
    bench.worker.go.release()
    begun = threading.Event()

    def watch() -> None:  # the loop stands still while the thread goes on
        while bench.worker.at != [1.0, 4.0] and not begun.wait(0.001):
            pass
        begun.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    thread.join(SOON_S)  # this blocks the loop
    assert begun.is_set()
    await asyncio.wait_for(bench.news.wait(), SOON_S)
    (first,) = bench.thread.done()
    assert (first.rounds, first.gradient[0].item(), first.samples) == ((1.0,), 2.0, 4)
    assert bench.thread.busy
    assert list(bench.thread.done()) == []  # told once


async def test_without_an_offer_it_is_idle_until_there_is_one(bench: Bench) -> None:
    bench.offer(1.0)
    bench.worker.go.release()
    await asyncio.wait_for(bench.news.wait(), SOON_S)
    assert not bench.thread.busy
    bench.offer(2.0)
    assert bench.thread.busy
    await bench.until(lambda: bench.worker.at == [1.0, 2.0])


async def test_a_model_that_takes_its_time_to_come_near_is_begun_when_it_is_there(bench: Bench) -> None:
    bench.worker.far = True
    for version in (1.0, 2.0):
        bench.offer(version)
    assert bench.thread.busy
    threading.Thread(target=bench.worker.arrived[1]).start()  # the first is not worth bringing any more
    await bench.until(lambda: bench.worker.at == [2.0])
    bench.offer(3.0)
    bench.worker.go.release()
    await asyncio.wait_for(bench.news.wait(), SOON_S)
    assert bench.thread.busy  # it will have a model to work on
    assert bench.worker.at == [2.0]
    bench.worker.arrived[2]()
    await bench.until(lambda: bench.worker.at == [2.0, 3.0])
    bench.offer(4.0)
    bench.thread.halt()
    bench.worker.arrived[3]()
    bench.worker.go.release()
    await bench.until(lambda: not bench.thread.busy)
    assert bench.worker.at == [2.0, 3.0]


async def test_what_the_task_raises_is_raised_where_gradients_are_fetched_and_no_other_is_begun(bench: Bench) -> None:
    bench.offer(1.0)
    await bench.until(lambda: bench.worker.at == [1.0])
    bench.offer(2.0)
    bench.worker.error = ValueError("no such thing")
    bench.worker.go.release()
    await asyncio.wait_for(bench.news.wait(), SOON_S)
    with pytest.raises(ValueError, match="no such thing"):
        list(bench.thread.done())
    assert bench.worker.at == [1.0]


async def test_after_halt_no_gradient_is_begun_and_no_wait_is_sat_out() -> None:
    bench = Bench(drawn_s=1000.0)
    bench.offer(1.0)
    bench.worker.go.release()
    await bench.until(lambda: bench.worker.at == [1.0])
    bench.offer(2.0)
    bench.thread.halt()
    await asyncio.wait_for(bench.news.wait(), SOON_S)
    bench.thread.close(wait=True)
    assert bench.worker.at == [1.0]


def test_the_root_begins_ahead_only_where_its_own_gradient_is_a_small_part_of_a_round() -> None:
    def makes(nodes: int, *samples: int) -> list[bool]:
        plan = Plan.make(Line, Settings(nodes=nodes, global_batch=64, samples=10**6))
        node = plan.node(plan.topology.root, plan.worker(plan.topology.root), 1)
        node.handle(Started(0.0))
        found = [node.gradient_makes_model]
        for n in samples:
            (run,) = (a for a in node.handle(ModelWanted(0.0)) if isinstance(a, RunGradient))
            gradient = tuple(torch.zeros_like(x) for x in run.model)
            node.handle(GradientReady(0.1, gradient, n, 1.0, run.rounds, 0.1))
            found.append(node.gradient_makes_model)
        return found

    assert makes(3, 4, 5, 64, 1) == [True, False, True, True, False]
    assert makes(1, 4, 1) == [True, True, True]
