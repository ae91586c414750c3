"""``--algorithm hivemind``: hivemind's Optimizer on the same task, draws and output as every other algorithm."""

from __future__ import annotations

import os
import signal
import time
from importlib.util import find_spec
from typing import Any

import pytest

from rfast_zmq.algorithms import hivemind as method
from rfast_zmq.assembly import Plan
from rfast_zmq.errors import UsageError
from rfast_zmq.launch import run
from rfast_zmq.launch.descendants import cpu_s, descendants, end
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
    assert not [pid for pid in descendants(os.getpid()) if "p2pd" in _command(pid)]


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


# ------------------------------------------------------------------------------------- the processes below one


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc here")
def test_descendants_are_found_cost_cpu_and_can_be_ended() -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        if not os.fork():
            os.write(write, str(os.getpid()).encode() + b"\n")
            while True:
                pass
        signal.pause()
        os._exit(0)
    grandchild = int(os.read(read, 64))
    try:
        found = descendants(os.getpid())
        assert found.index(child) < found.index(grandchild)
        until = time.monotonic() + 20
        while cpu_s([child, grandchild]) < 0.05:
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        end([child, grandchild])
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    until = time.monotonic() + 20
    while _command(grandchild):
        assert time.monotonic() < until
        time.sleep(0.02)
    end([grandchild])  # gone already: no matter
    assert cpu_s([child]) == 0.0


def _command(pid: int) -> str:
    """Of a process; empty once it is gone (or waits to be buried)."""
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""
