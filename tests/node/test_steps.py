"""The two mailboxes between a loop of the user's own and its node."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from rfast_zmq.core.events import RunGradient
from rfast_zmq.node.gradients import Gradient
from rfast_zmq.node.steps import UNSEEN_MOST, Steps

SOON_S = 10.0


def gradient(number: float) -> Gradient:
    return Gradient((number,), (torch.tensor([number]),), None, 1, True, 0.1)


@pytest.mark.parametrize("over", [False, True])
def test_gradients_do_not_pile_up_before_a_node_that_does_not_look(over: bool) -> None:
    """The loop waits until the node has taken one, or the run is over."""
    steps, waits = Steps(), threading.Event()
    steps.attach(lambda act: None, lambda: None)
    for k in range(UNSEEN_MOST):
        steps.give(gradient(k))
    wait_for = steps._changed.wait_for

    def watched(true: object, timeout: float | None = None) -> bool:
        waits.set()
        return wait_for(true, timeout)  # type: ignore[arg-type]

    steps._changed.wait_for = watched  # type: ignore[method-assign,assignment]
    thread = threading.Thread(target=steps.give, args=(gradient(UNSEEN_MOST),), daemon=True)
    thread.start()
    assert waits.wait(SOON_S)
    with steps._changed:  # it is in wait_for, or done: the lock is free
        assert len(steps._done) == UNSEEN_MOST
    if over:
        steps.halt()
        thread.join(SOON_S)
        assert not thread.is_alive()
    found = [g.rounds[0] for g in steps.done()]
    thread.join(SOON_S)
    assert not thread.is_alive()
    found += [g.rounds[0] for g in steps.done()]
    assert found == list(range(UNSEEN_MOST + (not over)))


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
