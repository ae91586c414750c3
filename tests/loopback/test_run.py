"""Real processes over Unix sockets: what a user sees of a run, in good order and in bad."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rfast_zmq.assembly import Plan
from rfast_zmq.errors import TaskError, UsageError
from rfast_zmq.launch import Observer, Run, loopback, run
from rfast_zmq.results import Point
from rfast_zmq.settings import Settings
from rfast_zmq.topology import FAMILIES

TASKS = Path(__file__).with_name("tasks.py")
DIGITS = Path(__file__).parents[2] / "nodes" / "digits.py"
OPTIMUM = torch.arange(1.0, 9.0)
NEAR = 0.1
"""Of coordinates from 1 to 8 that start near 0. Runs end by samples, and on a slow machine a sample is worth less."""


def plan(task: str, **settings: Any) -> Plan:
    source = str(DIGITS) if task == "digits" else f"{TASKS}:{task}"
    return Plan.make(source, Settings(**{"nodes": 3, "compute": "constant:0.02", "report_batch": 4, **settings}))


def weights(done: Run) -> torch.Tensor:
    assert done.model is not None
    return next(t for name, t in done.model.items() if t.numel() == 8)[0]


class Watch(Observer):
    """Keeps what it is told, and acts when a node has come so far."""

    def __init__(self, act: Callable[[Watch], None] | None = None) -> None:
        self.pids: list[int] = []
        self.lines: list[str] = []
        self.own: dict[int, int] = {}
        self.rounds = 0.0
        self.points: list[Point] = []
        self._act = act

    def started(self, pids: list[int]) -> None:
        self.pids = pids
        if self._act is not None:
            self._thread = threading.Thread(target=self._act, args=(self,), daemon=True)
            self._thread.start()

    def report(self, report: Mapping[str, Any]) -> None:
        self.own[report["rank"]] = report["own_samples"]
        self.rounds = max(self.rounds, report["rounds"])

    def point(self, point: Point) -> None:
        self.points.append(point)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def until(self, true: Callable[[], bool], within_s: float = 40.0) -> bool:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if true():
                return True
            time.sleep(0.02)
        return False


def test_a_run_reaches_the_optimum_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    watch = Watch()
    done = run(plan("Line", samples=6000), watch)
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)
    result = done.result
    assert result.missing == []
    assert result.identity_error is not None
    assert result.identity_error <= 1e-5
    assert result.samples >= 6000
    assert sum(int(node["samples"]) for node in result.per_node) >= 6000
    assert all(node["gradients"] > 0 for node in result.per_node)
    assert result.messages_refused == {}
    assert result.bytes_sent > 0
    assert result.wall_s > 0
    assert list(tmp_path.glob("rfast-*")) == []
    assert not [pid for pid in watch.pids if Path(f"/proc/{pid}/cmdline").exists()]


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("random")] + ["random:2"])
def test_every_topology_runs_under_loss(family: str) -> None:
    done = run(plan("Line", topology=family, nodes=5, drop=0.3, duplicate=0.1, reorder=0.1, samples=4000))
    assert done.result.missing == []
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)
    assert done.result.identity_error is not None
    assert done.result.identity_error <= 1e-5
    assert done.result.faults["dropped"] > 0


@pytest.mark.parametrize("family", ["exponential", "ring", "binary-tree"])
def test_the_published_algorithm_runs_on_the_same_wire(family: str) -> None:
    done = run(plan("Line", algorithm="rfast", topology=family, nodes=4, drop=0.2, lr=0.02, samples=12_000))
    assert done.result.missing == []
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)
    assert done.result.identity_error is not None
    assert done.result.identity_error <= 1e-5


def test_digits_on_seven_uneven_nodes_over_bad_links() -> None:
    done = run(
        plan(
            "digits",
            nodes=7,
            split="label",
            straggler=("6:5",),
            drop=0.3,
            duplicate=0.1,
            reorder=0.1,
            report_batch=3,
            samples=60_000,
            target=0.95,
        )
    )
    assert done.result.target_s is not None, [(p.samples, p.accuracy) for p in done.points]
    assert done.result.accuracy is not None
    assert done.result.accuracy >= 0.94
    assert done.result.slowest_node is not None
    paces = {int(node["rank"]): node["pace"] for node in done.result.per_node}
    assert paces[6] < 0.5 * max(paces.values())
    assert (
        done.result.slowest_node["pace"] <= 1.1 * paces[6]
    )  # itself, but for one that a busy machine made slower still
    assert done.result.identity_error is not None
    assert done.result.identity_error <= 1e-5


def test_a_run_ends_under_sixty_per_cent_loss() -> None:
    done = run(plan("Line", nodes=7, drop=0.6, samples=2000))
    assert done.result.missing == []
    assert done.result.samples >= 2000


def test_a_model_of_several_buckets() -> None:
    done = run(plan("Wide", samples=3000, compute="constant:0.1"))
    assert done.result.missing == []
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)
    assert done.result.identity_error is not None
    assert done.result.identity_error <= 1e-5


def test_one_node_alone() -> None:
    done = run(plan("Line", nodes=1, samples=4000, compute="none"))
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)
    assert done.result.messages_sent == 0


def test_the_target_ends_a_run_and_is_timed() -> None:
    done = run(plan("Line", target=0.9, samples=100_000))
    result = done.result
    assert result.target_s is not None
    assert result.target_samples is not None
    assert result.samples < 100_000
    assert result.target_s <= result.wall_s
    first = next(p for p in done.points if p.accuracy is not None and p.accuracy >= 0.9)
    assert (first.time_s, first.samples) == (result.target_s, result.target_samples)


def test_where_the_mean_of_the_models_is_judged_every_point_is_of_the_mean() -> None:
    """Two nodes that want 0 and 1: x⁺ = mean − (x − what it wants)/2 settles at 1/3 and 2/3."""
    given = {"algorithm_option": ("overlap=1",), "lr": 0.5, "samples": 3200, "evaluate_every": 4.0}
    done = run(plan("Apart", nodes=2, algorithm="d-psgd", topology="ring", **given))
    models = [p.extra["model"] for p in done.points]
    assert len(models) > 5
    assert models[len(models) // 2 :] == pytest.approx([0.5] * (len(models) - len(models) // 2), abs=0.01)
    for numbers in ([p.samples for p in done.points], [p.time_s for p in done.points], [p.rounds for p in done.points]):
        assert numbers == sorted(numbers)
    assert done.points[-1].samples >= 3200
    assert not [line for _, line in done.said if "mean" in line or "model" in line]


def test_a_stopped_node_is_left_out_of_the_mean_that_is_judged_and_that_is_said() -> None:
    """Of 0, 1, 2 and 3 the node that wants 3 is stopped."""
    seen: dict[str, bool] = {}

    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 5)
        os.kill(watch.pids[3], signal.SIGSTOP)
        try:
            seen["said"] = watch.until(lambda: any("node 3 is silent" in line for line in watch.lines))
            before = len(watch.points)
            seen["went on"] = watch.until(lambda: len(watch.points) >= before + 3)
            seen["without it"] = watch.until(lambda: watch.points[-1].extra["model"] < 1.25)
        finally:
            os.kill(watch.pids[3], signal.SIGCONT)
        seen["with it"] = watch.until(lambda: watch.points[-1].extra["model"] > 1.25)

    settings = {"nodes": 4, "algorithm": "ad-psgd", "topology": "exponential", "lr": 0.1, "samples": 16_000}
    done = run(plan("Apart", **settings, report_batch=8, evaluate_every=1.0), Watch(act))
    assert seen == {"said": True, "went on": True, "without it": True, "with it": True}
    assert sum("node 3 is silent" in line for _, line in done.said) == 1
    assert done.result.missing == []


def test_hooks_are_called(tmp_path: Path) -> None:
    path = tmp_path / "seen"
    run(plan("Hooks", samples=3000, task_options={"path": str(path)}))
    seen = path.read_text().split()
    assert seen[0] == "start"
    assert {"report", "evaluate"} <= set(seen)


# ------------------------------------------------------------------------------------- nodes that stop and die


def test_a_killed_leaf_costs_the_others_nothing() -> None:
    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 5)
        os.kill(watch.pids[6], signal.SIGKILL)

    watch = Watch(act)
    done = run(plan("Line", nodes=7, samples=6000), watch)
    assert done.result.missing == [6]
    assert any("node 6 ended" in line for line in watch.lines)
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)


def test_a_killed_node_stops_a_run_in_which_everybody_waits_for_everybody() -> None:
    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 5)
        os.kill(watch.pids[2], signal.SIGKILL)

    watch = Watch(act)
    done = run(plan("Line", nodes=4, algorithm="d-psgd", topology="ring", report_batch=None, samples=10**6), watch)
    assert done.result.missing == [2]
    assert done.result.samples < 10**5
    assert any("node 2 ended" in line and "under d-psgd the run stops" in line for line in watch.lines)


def test_a_stopped_leaf_is_set_aside_by_name_and_counts_again() -> None:
    seen: dict[str, Any] = {}

    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 5)
        os.kill(watch.pids[2], signal.SIGSTOP)
        try:
            seen["aside"] = watch.until(lambda: any("node 2 has been silent" in line for line in watch.lines))
            at, since = watch.own[1], watch.rounds
            watch.until(lambda: watch.rounds > since + 5)
            seen["went on"] = watch.own[1] - at
        finally:
            os.kill(watch.pids[2], signal.SIGCONT)
        seen["again"] = watch.until(lambda: any("node 2 moves" in line for line in watch.lines))

    watch = Watch(act)
    done = run(plan("Line", samples=8000), watch)
    assert seen["aside"], watch.lines
    assert seen["went on"] > 0
    assert seen["again"], watch.lines
    assert done.result.missing == []
    assert done.result.set_aside == []
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)


def test_a_leaf_that_stays_stopped_does_not_keep_the_run_from_ending() -> None:
    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 5)
        os.kill(watch.pids[2], signal.SIGSTOP)

    done = run(plan("Line", samples=4000), Watch(act))
    assert done.result.missing == [2]
    assert done.result.set_aside == [2]
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_root_or_inner_node_costs_its_subtree_no_pace(stopped: int) -> None:
    """7 nodes on a binary tree: 3 and 4 hang below 1, 1 and 2 below 0."""
    gained: list[float] = []

    def act(watch: Watch) -> None:
        watch.until(lambda: min(watch.own.values(), default=0) > 30 and len(watch.own) == 7)
        before_s, before = time.monotonic(), watch.own[3]
        os.kill(watch.pids[stopped], signal.SIGSTOP)
        try:
            watch.until(lambda: time.monotonic() > before_s + 2.0)
            gained.append((watch.own[3] - before) / (time.monotonic() - before_s))
        finally:
            os.kill(watch.pids[stopped], signal.SIGCONT)

    share = 32 / 7
    done = run(plan("Line", nodes=7, samples=3500, compute="constant:0.1", report_batch=2), Watch(act))
    assert gained[0] > 0.5 * share / 0.1  # of its samples a second, with half a second's grain in the reports
    assert done.result.missing == []
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)


def test_ctrl_c_that_comes_when_all_is_done_is_heard_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(self: loopback._Loopback, folder: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        whole(self, folder)

    whole = loopback._Loopback._collect
    monkeypatch.setattr(loopback._Loopback, "_collect", collect)
    done = run(plan("Line", samples=300))
    assert done.interrupted
    assert done.result.missing == []
    assert done.result.samples >= 300
    assert done.model is not None


def test_ctrl_c_ends_a_run_in_order() -> None:
    asked = {"times": 0}

    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 20)
        asked["times"] = 1

    done = run(plan("Line", nodes=5, samples=10**9), Watch(act), stop=lambda: asked["times"])
    assert done.result.missing == []
    assert done.model is not None
    assert done.result.identity_error is not None


@pytest.mark.parametrize("stopped", [True, False])
def test_a_second_ctrl_c_ends_a_run_at_once_whatever_the_root_does(stopped: bool) -> None:
    asked = {"times": 0}

    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 5 and 0 in watch.own)
        if stopped:
            os.kill(watch.pids[0], signal.SIGSTOP)
        asked["times"] = 1
        watch.until(lambda: any("once more" in line for line in watch.lines))
        asked["times"] = 2

    done = run(plan("Line", samples=10**9), Watch(act), stop=lambda: asked["times"])
    assert done.interrupted
    assert (0 in done.result.missing) == stopped
    assert (done.model is None) == stopped
    assert done.points


# ------------------------------------------------------------------------------------- what users do wrong


def test_a_task_that_raises_is_shown_with_its_rank_and_traceback() -> None:
    with pytest.raises(TaskError) as caught:
        run(plan("RaisesAtTwo"))
    assert caught.value.rank == 2
    assert "no such column: price" in caught.value.traceback
    assert "tasks.py" in caught.value.traceback


def test_models_that_differ_between_ranks_are_refused() -> None:
    with pytest.raises(UsageError, match="different models"):
        run(plan("Differs"))


def test_a_loss_that_is_not_finite_is_said_at_once_and_the_model_before_it_is_kept() -> None:
    watch = Watch()
    done = run(plan("TurnsNan", samples=10**6), watch)
    assert done.result.trouble == 1
    assert any("node 1" in line and "nan" in line for line in watch.lines)
    assert done.model is not None
    assert all(bool(torch.isfinite(t).all()) for t in done.model.values())
    assert weights(done) == pytest.approx(OPTIMUM, abs=NEAR)


def test_the_folder_of_sockets_has_a_short_path() -> None:
    """A Unix socket's path may have 107 bytes."""
    assert len("ipc:///tmp/rfast-xxxxxxxx/1023.W") < 107
    assert hasattr(socket, "AF_UNIX")
