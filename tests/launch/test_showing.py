"""What the launcher knows of the nodes at one moment: their models, and what they had sent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rfast_zmq.launch import showing
from rfast_zmq.launch.loopback import _Child
from rfast_zmq.launch.showing import Gathering, Shower


async def shown(folder: Path, models: dict[int, tuple[torch.Tensor, ...] | None]) -> tuple[list[int], list[Shower]]:
    """Everybody shows, as on the launcher's word; who has a model there, and the nodes' ends."""
    ranks: list[int] = []
    answers: asyncio.Queue[tuple[int, bool]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def ear(rank: int):  # type: ignore[no-untyped-def]
        def hear(kind: str, content: object) -> None:
            if kind == "shown":
                loop.call_soon_threadsafe(answers.put_nowait, (rank, content[0]))  # type: ignore[index]

        return hear

    showers = [Shower(folder, rank, ear(rank)) for rank in models]
    gathering = Gathering(models)
    for rank, model in models.items():
        showers[rank].show(model, 10 * rank)
    while not gathering.done:
        gathering.heard(*await answers.get())
    ranks += gathering.shown
    return ranks, showers


async def test_the_root_gets_the_mean_of_the_models_that_were_shown(tmp_path: Path) -> None:
    models = {r: (torch.full((3,), float(r)), torch.full((2,), 10.0 * r)) for r in range(4)}
    ranks, showers = await shown(tmp_path, {**models, 2: None})
    assert sorted(ranks) == [0, 1, 3]
    task = asyncio.create_task(showers[0].everybody())
    await asyncio.sleep(0)
    showers[0].gathered(ranks, 77)
    together = await task
    assert together is not None
    assert together.samples == 77
    first, second = together.mean()
    assert first.tolist() == pytest.approx([4 / 3] * 3)
    assert second.tolist() == pytest.approx([40 / 3] * 2)
    assert models[3][0].tolist() == [3.0] * 3  # nobody's model was written to


async def test_where_nobody_has_a_model_there_is_no_mean(tmp_path: Path) -> None:
    ranks, showers = await shown(tmp_path, {0: None, 1: None})
    task = asyncio.create_task(showers[0].everybody())
    await asyncio.sleep(0)
    showers[0].gathered(ranks, 0)
    assert await task is None
    showers[0].gathered([0], 1)  # which nobody awaits any more


def test_who_does_not_answer_in_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(showing.time, "monotonic", lambda: clock.now)
    gathering = Gathering([0, 1, 2])
    gathering.heard(0, shown=True)
    gathering.heard(2, shown=True)
    assert not gathering.done
    clock.now += showing.PATIENCE_S
    assert gathering.done
    assert gathering.shown == [0, 2]
    late = Gathering([0])
    late.heard(1, shown=True)  # an answer of the time before
    assert late.shown == []


@pytest.mark.parametrize(
    ("reports", "time_s", "sent"),
    [
        ([], 0.7, 0),
        ([(0.5, 100)], 0.25, 50),
        ([(0.5, 100)], 0.75, 150),
        ([(0.5, 100), (1.0, 300)], 1.25, 400),
        ([(0.5, 100), (1.0, 300)], 0.75, 200),
        ([(0.5, 100), (1.0, 300), (1.5, 300)], 1.75, 300),
    ],
)
def test_what_a_node_had_sent_by_a_moment_between_or_after_its_reports(
    reports: list[tuple[float, int]], time_s: float, sent: int
) -> None:
    child = _Child(None, None)  # type: ignore[arg-type]
    for at_s, total in reports:
        child.report({"time_s": at_s, "bytes_sent": total})
    assert child.bytes_at(time_s) == pytest.approx(sent)
