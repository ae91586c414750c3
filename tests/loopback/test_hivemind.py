"""``--algorithm hivemind``: hivemind's Optimizer on the same task, draws and output as every other algorithm."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from typing import Any

import pytest

from rfast_zmq.algorithms import hivemind as method
from rfast_zmq.assembly import Plan
from rfast_zmq.errors import UsageError
from rfast_zmq.launch import run
from rfast_zmq.launch.hivemind import end, helpers_of
from rfast_zmq.settings import Settings
from rfast_zmq.simulate import Simulator
from tests.loopback.test_run import TASKS, Watch

installed = pytest.mark.skipif(
    find_spec("hivemind") is None, reason="hivemind is not installed: pip install 'rfast-zmq[hivemind]'"
)


def plan(task: str, **settings: Any) -> Plan:
    chosen: dict[str, Any] = {
        "nodes": 3,
        "algorithm": "hivemind",
        "optimizer": "sgd",
        "compute": "constant:0.05",
        "global_batch": 33,
    }
    return Plan.make(f"{TASKS}:{task}", Settings(**{**chosen, **settings}))


def lives(helper: Any) -> bool:
    return bool(helper.is_running() and helper.status() != "zombie")


@installed
def test_it_trains_to_the_target_and_its_processes_end_with_it() -> None:
    watch = Watch()
    done = run(plan("Line", samples=10**6, target=0.9, lr=0.05), watch)
    assert done.result.target_s is not None
    assert (done.result.accuracy or 0) >= 0.9
    assert done.result.missing == []
    assert done.result.identity_error is None
    assert done.result.rounds * 33 == done.result.samples
    assert done.result.cpu_s is not None
    assert done.result.cpu_s > 1.0, "with hivemind's own processes"
    assert all(node["waited_s"] > 0 for node in done.result.per_node)
    assert not [helper for helper in helpers_of(os.getpid()) if "p2pd" in helper.name()]


@installed
def test_the_rules_with_moments_train_too_and_a_slow_root_gets_to_the_end() -> None:
    done = run(plan("Line", optimizer="nadam", lr=0.3, samples=33 * 20, straggler=("0:4",)))
    assert done.result.missing == []
    assert done.result.samples >= 33 * 20
    assert done.points[-1].loss < done.points[0].loss / 4
    fast, slow = (done.result.per_node[rank]["gradients"] for rank in (1, 0))
    assert fast > 2 * slow > 0


@installed
def test_ctrl_c_ends_a_run_in_order() -> None:
    asked = {"times": 0}

    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 2)
        asked["times"] = 1

    done = run(plan("Line", samples=10**8, lr=0.05), Watch(act), stop=lambda: asked["times"])
    assert done.interrupted
    assert done.model is not None


@installed
def test_a_killed_rank_ends_the_run_with_a_word() -> None:
    """Though the processes that it has started live on, and hold what they inherited."""
    left, names = [], []

    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 1)
        left.extend(helpers_of(watch.pids[2]))
        names.extend(helper.name() for helper in left)
        os.kill(watch.pids[2], signal.SIGKILL)

    watch = Watch(act)
    try:
        done = run(plan("Line", samples=10**8, lr=0.05), watch)
        assert watch.until(lambda: not any(map(lives, left)), 10.0)  # torch's for shared memory sees by itself
    finally:
        end(left)
    assert "p2pd" in names
    assert any("node 2 ended" in line and "under hivemind the run stops" in line for line in watch.lines)
    assert 2 in done.result.missing
    assert done.model is not None


@installed
def test_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"weighs .*counts every sample the same"):
        run(plan("Uneven", lr=0.05, samples=100))


# ------------------------------------------------------------------------------------- without it


def test_where_it_is_not_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--algorithm hivemind.*pip install 'rfast-zmq\[hivemind\]'"):
        plan("Line")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"drop": 0.1}, "--drop 0.1"),
        ({"wire": "int8"}, "--wire"),
        ({"pace": 0.1}, "--pace 0.1"),
        ({"bucket_bytes": 2048}, "--bucket-bytes 2048: --algorithm hivemind"),
        ({"device": "cuda"}, "--device cuda"),
        ({"algorithm_option": ("matchmaking_s=0",)}, "matchmaking_s=0: must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "find_spec", lambda name: name)
    with pytest.raises(UsageError, match=said):
        plan("Line", **settings)


def test_it_is_not_in_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "find_spec", lambda name: name)
    with pytest.raises(UsageError, match=r"--algorithm hivemind.*rfast run alone"):
        Simulator(plan("Line"))
