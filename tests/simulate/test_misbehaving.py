"""What a task does wrong is said, in virtual time and in real processes alike, and never hangs a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rfast_zmq.assembly import Plan
from rfast_zmq.errors import TaskError
from rfast_zmq.launch import run
from rfast_zmq.settings import Settings
from rfast_zmq.simulate import Simulator

TASK = str(Path(__file__).with_name("misbehaving.py"))
PLACES = ("evaluate", "lr_schedule", "on_start", "on_report", "on_evaluate", "on_stop")


def plan(where: str) -> Plan:
    settings = Settings(nodes=3, compute="constant:0.05", report_batch=2, task_options={"where": where})
    return Plan.make(TASK, settings)


@pytest.mark.parametrize("where", PLACES)
def test_whatever_a_user_writes_may_raise_and_is_shown_in_a_simulation(where: str) -> None:
    with pytest.raises(TaskError) as caught:
        Simulator(plan(where)).run()
    assert f"raised in {where}" in caught.value.traceback


@pytest.mark.parametrize("where", PLACES)
def test_whatever_a_user_writes_may_raise_and_is_shown_in_a_real_run(where: str) -> None:
    with pytest.raises(TaskError) as caught:
        run(plan(where))
    assert f"raised in {where}" in caught.value.traceback


def test_a_loss_that_is_nowhere_finite_ends_a_simulation() -> None:
    done = Simulator(plan("nan")).run()
    assert done.result.trouble is not None
    assert done.result.missing == []
    assert any("not a finite number" in line for _, line in done.said)


def test_a_loss_that_is_nowhere_finite_ends_a_real_run() -> None:
    done = run(plan("nan"))
    assert done.result.trouble is not None
    assert done.result.missing == []
