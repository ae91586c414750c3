"""The two mailboxes between a loop of the user's own and its node."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from rfast_zmq.core.events import RunGradient
from rfast_zmq.node.gradients import Gradient
from rfast_zmq.node.steps import Steps


def gradient(number: float) -> Gradient:
    return Gradient((number,), (torch.tensor([number]),), None, 1, True, 0.1)


def test_there_is_room_for_a_gradient_when_the_node_has_taken_the_last() -> None:
    steps, told = Steps(), []
    steps.attach(lambda act: act(), lambda: told.append(True))
    assert steps.room()
    assert not steps.room()  # one is on its way
    steps.give(gradient(0))
    assert told == [True]
    assert not steps.room()  # it lies here
    assert steps.room(anyhow=True)
    steps.give(gradient(1))
    assert [g.rounds[0] for g in steps.done()] == [0, 1]
    assert steps.room()
    steps.none()  # that one went wrong
    assert steps.room()
    steps.halt()
    steps.give(gradient(2))
    assert [*steps.done()] == []


def test_a_model_is_taken_when_it_is_near() -> None:
    arrived: list[Callable[[], object]] = []

    def bring(model: object, rounds: object, then: Callable[[], object]) -> bool:
        arrived.append(then)
        return len(arrived) > 2

    steps = Steps(bring)
    models = [RunGradient((torch.tensor([k]),), (k,)) for k in (1.0, 2.0, 3.0)]
    steps.offer(models[0])
    assert steps.busy
    assert steps.take(wait=False) is None
    steps.offer(models[1])
    threading.Timer(0.01, arrived[1]).start()
    assert steps.take(wait=True) is models[1]
    steps.offer(models[2])
    assert steps.take(wait=True) is models[2]
    assert steps.take(wait=False) is None


def test_of_a_loop_that_has_left_off_no_model_is_brought_near() -> None:
    brought: list[object] = []
    steps = Steps(lambda model, rounds, then: bool(brought.append(model)) or True)
    model = RunGradient((torch.tensor([1.0]),), (1.0,))
    steps.offer(model)
    steps.leave_off()
    steps.offer(model)
    assert len(brought) == 1
    assert steps.busy
