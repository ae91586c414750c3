"""What the launcher knows of the nodes at one moment: their models, and what they had sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from rfast_zmq.assembly import Plan
from rfast_zmq.launch import Observer, loopback
from rfast_zmq.launch.outcome import Sent
from rfast_zmq.launch.showing import SILENT_S, Answer, Gathering, Shower
from rfast_zmq.node.scoring import Shown, Together
from rfast_zmq.settings import Settings

Model = tuple[torch.Tensor, ...]


async def shown(folder: Path, models: Mapping[int, Model | None]) -> tuple[Gathering, list[Shower]]:
    """Everybody shows, as on the launcher's word."""
    answers: asyncio.Queue[tuple[int, Answer]] = asyncio.Queue()

    def ear(rank: int) -> Callable[[str, object], None]:
        def hear(kind: str, content: object) -> None:
            if isinstance(content, Answer):
                answers.put_nowait((rank, content))

        return hear

    showers = [Shower(folder, rank, ear(rank)) for rank in models]
    gathering = Gathering(1, set(models))
    for rank, model in models.items():
        showers[rank].show(1, Shown(model, 10 * rank, rank / 10))
    while gathering.awaited:
        gathering.heard(*await answers.get())
    return gathering, showers


async def gathered(root: Shower, gathering: Gathering) -> Together | None:
    """What the root makes of it."""
    task = asyncio.create_task(root.everybody())
    await asyncio.sleep(0)
    root.gathered(gathering.shown, 77, gathering.clock_s)
    return await task


async def test_the_root_gets_the_mean_of_the_models_that_were_shown(tmp_path: Path) -> None:
    models = {r: (torch.full((3,), float(r)), torch.full((2,), 10.0 * r)) for r in range(4)}
    gathering, showers = await shown(tmp_path, {**models, 2: None})
    assert gathering.shown == [0, 1, 3]
    together = await gathered(showers[0], gathering)
    assert together is not None
    assert (together.samples, together.clock_s) == (77, 0.3)
    first, second = together.mean()
    assert first.tolist() == pytest.approx([4 / 3] * 3)
    assert second.tolist() == pytest.approx([40 / 3] * 2)
    assert models[3][0].tolist() == [3.0] * 3  # nobody's model was written to
    assert showers[0].cpu_s > showers[2].cpu_s == 0.0


async def test_where_nobody_has_a_model_there_is_no_mean(tmp_path: Path) -> None:
    gathering, showers = await shown(tmp_path, {0: None, 1: None})
    assert await gathered(showers[0], gathering) is None
    showers[0].gathered([0], 1, 1.0)  # which nobody awaits any more


async def test_a_model_that_cannot_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    model = (torch.ones(3),)
    gathering, _ = await shown(tmp_path / "absent", {0: model})
    assert gathering.shown == []
    assert "No such file" in gathering.answers[0].trouble


def test_an_answer_to_another_gathering_is_none_to_this_one() -> None:
    late, now = Answer(1, True, 5, 0.1), Answer(2, True, 9, 0.2)
    gathering = Gathering(2, {0, 1})
    gathering.heard(0, late)
    assert gathering.awaited == {0, 1}
    gathering.heard(0, now)
    gathering.without([1])
    assert not gathering.awaited
    assert gathering.shown == [0]
    gathering.heard(1, now)
    assert gathering.shown == [0]


def test_a_node_that_never_answers_is_asked_once_and_waited_for_no_longer_than_it_is_heard_of() -> None:
    """More orders than its pipe holds would keep the launcher itself."""
    tasks = Path(__file__).parents[1] / "loopback" / "tasks.py"
    plan = Plan.make(f"{tasks}:Apart", Settings(nodes=2, topology="ring", algorithm="ad-psgd"))
    launcher = loopback._Loopback(plan, Observer(), lambda: 0, None)
    (root, roots_end), (stopped, its_end) = Pipe(), Pipe()
    launcher.children = [loopback._Child(None, pipe) for pipe in (root, stopped)]  # type: ignore[arg-type]
    stopped_since_s = time.monotonic()
    for number in range(1, 1001):
        launcher.children[0].heard_s = time.monotonic()
        launcher.children[1].heard_s = stopped_since_s if number == 1 else stopped_since_s - SILENT_S
        launcher._gather()
        assert roots_end.recv() == ("show", number)
        roots_end.send(("shown", Answer(number, True, 8 * number, 0.1 * number)))
        launcher._hear(0, root)
        launcher._mind_gathering()
        if number == 1:
            assert not roots_end.poll()  # it may still answer
            launcher.children[1].heard_s -= SILENT_S
            launcher._mind_gathering()
        assert roots_end.recv() == ("gathered", [0], 8 * number, 0.1 * number)
    assert its_end.recv() == ("show", 1)
    assert not its_end.poll()
    its_end.send(("shown", Answer(1, True, 5, 0.1)))
    launcher._hear(1, stopped)
    launcher._gather()
    assert its_end.recv() == ("show", 1001)
    assert [line for _, line in launcher.out.said] == ["node 1 is silent: the mean that is judged is without its model"]


@pytest.mark.parametrize(
    ("reports", "time_s", "sent"),
    [
        ([], 0.7, 0),
        ([(0.5, 100)], -0.1, 0),
        ([(0.5, 100)], 0.25, 50),
        ([(0.5, 100)], 0.75, 150),
        ([(0.5, 300), (1.0, 400)], 0.0, 0),
        ([(0.5, 300), (1.0, 400)], 0.5, 300),
        ([(0.5, 100), (1.0, 300)], 0.75, 200),
        ([(0.5, 100), (1.0, 300)], 1.25, 400),
        ([(0.5, 100), (1.0, 300)], 60.0, 500),
        ([(0.5, 100), (1.0, 300), (1.5, 300)], 1.75, 300),
        ([(0.5, 100), (0.5, 120)], 0.5, 100),
    ],
)
def test_what_a_node_had_sent_by_a_moment_between_or_after_its_reports(
    reports: list[tuple[float, int]], time_s: float, sent: int
) -> None:
    record = Sent()
    for at_s, total in reports:
        record.heard({"time_s": at_s, "bytes_sent": total})
    assert record.at(time_s, ahead_s=0.5) == pytest.approx(sent)


def test_a_node_that_is_gone_sends_no_more() -> None:
    record = Sent()
    record.heard({"time_s": 1.0, "bytes_sent": 300})
    assert record.at(9.0, ahead_s=0.0) == 300
