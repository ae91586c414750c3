"""``--algorithm ddp``: torch's DistributedDataParallel on the same task, draws and output as every other algorithm."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from rfast_zmq.assembly import Plan
from rfast_zmq.cli import main
from rfast_zmq.core.descent import Descent
from rfast_zmq.errors import TaskError, UsageError
from rfast_zmq.launch import run, slowed
from rfast_zmq.launch.ddp import DdpNode, _in_bf16
from rfast_zmq.launch.ddp_optimizer import make_optimizer, plain
from rfast_zmq.launch.slowed import SlowedBackward
from rfast_zmq.settings import Settings
from rfast_zmq.simulate import Simulator
from tests.loopback.test_run import TASKS, Watch

SAME = 1e-4
"""Of coordinates up to 8: what float32 rounds differently when a mean is taken in another order, over 40 steps."""


def plan(task: str, **settings: Any) -> Plan:
    return Plan.make(f"{TASKS}:{task}", Settings(**{"nodes": 3, "algorithm": "ddp", "samples": 40 * 33, **settings}))


def simulated(task: str, **settings: Any) -> tuple[dict[str, torch.Tensor], int]:
    """The model of our ring-allreduce with the same draws, in virtual time, and its steps."""
    as_ring = plan(task, algorithm="ring-allreduce", topology="ring", compute="constant:0.1", **settings)
    simulator = Simulator(as_ring)
    simulator.run()
    model = simulator.root.algorithm.export()
    assert model is not None
    return simulator.root.worker.state_dict(model), int(simulator.root.algorithm.last_record()["steps"])


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("Uneven", {"optimizer": "sgd", "weight_decay": 0.1}),
        ("Uneven", {"optimizer": "momentum", "lr": 0.01, "weight_decay": 0.1}),
        ("Uneven", {"optimizer": "nadam", "lr": 0.01, "weight_decay": 0.1}),
    ],
)
def test_the_model_is_that_of_ring_allreduce_with_the_same_draws(task: str, settings: dict[str, Any]) -> None:
    """Step for step: the same batches, first model, weights of nodes, groups, decay and schedule."""
    expected, steps = simulated(task, global_batch=33, **settings)
    done = run(plan(task, global_batch=33, **settings, samples=steps * 33))
    assert steps > 30
    assert (done.result.samples, done.result.rounds) == (steps * 33, steps)
    assert done.result.identity_error == 0.0
    assert done.model is not None
    for name, t in expected.items():
        assert done.model[name] == pytest.approx(t, abs=SAME), name
    assert done.result.missing == []


def test_its_buckets_are_those_of_whoever_wraps_a_module_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose first one is smaller than ``bucket_cap_mb=25`` makes it; or as small as they are asked for."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # a rank sets both in a process of its own; here they are put back
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    def sizes(model: DistributedDataParallel, batch: Any) -> list[int]:
        passes: list[list[int]] = []

        def summed(bucket: Any) -> Future[torch.Tensor]:
            passes[-1].append(bucket.buffer().nbytes)
            future: Future[torch.Tensor] = Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, lambda _, bucket: summed(bucket))
        for _ in range(3):  # torch settles them after the first
            passes.append([])
            loss, word = model(batch)
            (loss + word.sum()).backward()
        return passes[-1]

    found = {}
    for options in ((), ("bucket_mb=0.1",)):
        of = plan("Deep", nodes=1, algorithm_option=options)
        (folder := tmp_path / f"{len(options)}").mkdir()
        node = DdpNode(of, 0, folder, Mock())
        node._meet()
        try:
            (batch, _), module = node.worker.next_batch(33), node._model.module
            found[options], torchs = sizes(node._model, batch), sizes(DistributedDataParallel(module), batch)
            smaller = sizes(DistributedDataParallel(module, bucket_cap_mb=0.1), batch)
        finally:
            dist.destroy_process_group()
    assert found[()] == torchs
    assert found["bucket_mb=0.1",] == smaller
    assert sum(torchs) == sum(smaller) > 3_200_000
    assert 1 < len(torchs) < len(smaller)


@pytest.mark.parametrize("bucket_mb", [25, 1e-5])
def test_in_bf16_gradients_are_rounded_and_what_is_counted_is_not(bucket_mb: float) -> None:
    """In one bucket, and in one for each parameter: all nodes have one model, near that of float32 and not it; 301
    samples, which bf16 cannot hold, are 301; half the bytes."""
    settings: dict[str, Any] = {"global_batch": 903, "optimizer": "sgd", "weight_decay": 0.1, "samples": 40 * 903}
    settings["algorithm_option"] = (f"bucket_mb={bucket_mb}",)
    whole, half = run(plan("Uneven", **settings)), run(plan("Uneven", wire="bf16", **settings))
    assert (half.result.samples, half.result.rounds) == (40 * 903, 40)
    assert half.result.identity_error == 0.0
    assert whole.model is not None
    assert half.model is not None
    for name, t in whole.model.items():
        apart = float((half.model[name] - t).norm() / t.norm())
        assert 0 < apart < 0.02, name
    word = 4 + 2 * 3
    parameters = sum(t.numel() for t in whole.model.values())
    assert half.result.bytes_sent == 40 * 3 * (2 * 2 * (2 * (parameters + word) + 4 * word) // 3)


def test_one_step_clipped_is_as_long_as_the_bound() -> None:
    settings = plan("Line", global_batch=33, optimizer="sgd", lr=1.0, samples=33, clip_norm=0.5)
    done = run(settings)
    assert done.model is not None
    assert float((done.model["weight"].flatten() - settings.worker(0).initial()[0]).norm()) == pytest.approx(
        0.5, rel=1e-4
    )


def test_a_parameter_that_a_step_leaves_unused_needs_the_option_of_that_name() -> None:
    with pytest.raises(UsageError, match="--algorithm-option find_unused_parameters=1"):
        run(plan("LeavesUnused"))
    for wire in ("float32", "bf16"):
        done = run(plan("LeavesUnused", algorithm_option=("find_unused_parameters=1",), wire=wire))
        assert done.result.missing == []
        assert done.result.identity_error == 0.0


def test_who_waits_is_told_where_a_parameter_is_left_unused() -> None:
    """The slowest of three waits for nobody; the others for most of the time."""
    unused = {"algorithm_option": ("find_unused_parameters=1",), "samples": 40 * 32}
    done = run(plan("LeavesUnused", compute="constant:0.02", straggler=("1:4",), **unused))
    waits = [node["waited_s"] / done.result.wall_s for node in done.result.per_node]
    assert waits[0] > 0.5 > waits[1]
    assert done.result.wall_s >= 40 * 0.08
    assert done.result.slowest_node is not None
    assert done.result.slowest_node["rank"] == 1


def test_the_target_ends_a_run_and_the_result_has_every_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = "--nodes 3 --algorithm ddp --target 0.9 --samples 1000000 --compute constant:0.02 --straggler 1:3"
    assert not main(["run", f"{TASKS}:Line", *flags.split(), "--evaluate-every", "2", "--json", "--out", str(out)])
    result = json.loads(capsys.readouterr().out)
    assert result["algorithm"] == "ddp"
    assert 0 < result["target_s"] <= result["wall_s"]
    assert result["accuracy"] >= 0.9
    assert result["identity_error"] == 0.0
    assert result["staleness_rounds"] == 0.0
    assert result["cpu_s"] > result["communication_cpu_s"] > 0
    assert result["slowest_node"]["rank"] == 1
    steps = result["per_node"][0]["gradients"]
    assert [node["gradients"] for node in result["per_node"]] == [steps] * 3
    assert result["bytes_sent"] == steps * 3 * (2 * 2 * 4 * (8 + 4 + 6) // 3)
    assert result["wall_s"] >= steps * 0.06  # the slowest's time, which nobody escapes
    waits = [node["waited_s"] / result["wall_s"] for node in result["per_node"]]
    assert waits[0] > 0.5 > waits[1]
    assert {"metrics.jsonl", "nodes.jsonl", "model.safetensors", "result.json"} <= {p.name for p in out.iterdir()}


@pytest.mark.parametrize("wire", ["float32", "bf16"])
def test_a_killed_rank_ends_the_run_with_a_word(wire: str) -> None:
    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 5)
        os.kill(watch.pids[2], signal.SIGKILL)

    watch = Watch(act)
    began = time.monotonic()
    done = run(plan("Line", samples=10**8, compute="constant:0.02", wire=wire, global_batch=33), watch)
    assert done.result.samples == 33 * done.result.rounds  # nobody took a step with a part of what is to be in it
    assert any("node 2 ended" in line and "under ddp the run stops" in line for line in watch.lines)
    assert done.result.missing == [2]
    assert done.model is not None
    assert time.monotonic() - began < 30


def test_ctrl_c_ends_a_run_in_order() -> None:
    asked = {"times": 0}

    def act(watch: Watch) -> None:
        watch.until(lambda: watch.rounds > 5)
        asked["times"] = 1

    done = run(plan("Line", samples=10**8), Watch(act), stop=lambda: asked["times"])
    assert done.interrupted
    assert done.result.missing == []
    assert done.result.identity_error == 0.0
    assert len({node["gradients"] for node in done.result.per_node}) == 1


def test_a_task_that_raises_is_shown_with_its_rank_and_traceback() -> None:
    with pytest.raises(TaskError) as caught:
        run(plan("RaisesAtTwo"))
    assert caught.value.rank == 2
    assert "no such column: price" in caught.value.traceback


def test_a_hook_that_raises_between_two_steps_ends_the_run_too() -> None:
    with pytest.raises(TaskError) as caught:
        run(plan("RaisesInReport", samples=10**8))
    assert caught.value.rank == 1
    assert "no such dashboard" in caught.value.traceback


def test_models_that_differ_between_ranks_are_refused() -> None:
    with pytest.raises(UsageError, match="different models"):
        run(plan("Differs"))


def test_a_loss_that_is_not_finite_ends_the_run_before_the_step() -> None:
    watch = Watch()
    done = run(plan("TurnsNan", samples=10**8), watch)
    assert done.result.trouble == 1
    assert done.result.per_node[0]["gradients"] == 300
    assert any("node 1" in line and "no longer finite" in line for line in watch.lines)
    assert done.model is not None
    assert all(bool(torch.isfinite(t).all()) for t in done.model.values())


# ------------------------------------------------------------------------------------- without a process


def test_it_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(UsageError, match=r"--algorithm ddp.*rfast run alone.*ring-allreduce"):
        Simulator(plan("Line", compute="constant:0.1"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"drop": 0.1}, "--drop 0.1"),
        ({"wire": "int8"}, "--wire int8: --algorithm ddp sends float32 or bf16"),
        ({"pace": 0.1}, "--pace 0.1"),
        ({"resend": 0.1}, "--resend 0.1"),
        ({"report_batch": 4}, "--report-batch 4.*--report-batch 11"),
        ({"bucket_bytes": 2048}, "bucket_mb=25"),
        ({"algorithm_option": ("bucket_mb=0",)}, "bucket_mb=0"),
        ({"algorithm_option": ("find_unused_parameters=2",)}, "find_unused_parameters=2"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan("Line", **settings)


def test_a_rank_that_is_gone_is_no_mean_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def get_future(self) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(RuntimeError("connection closed by peer"))
            return future

    monkeypatch.setattr(dist, "all_reduce", lambda tensor, async_op: Gone())
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    word, gradient = torch.nn.Parameter(torch.zeros(3)), torch.ones(3)
    bucket = Mock(buffer=lambda: gradient, gradients=lambda: [gradient], parameters=lambda: [word])
    with pytest.raises(RuntimeError, match="connection closed by peer"):
        _in_bf16(word, bucket).wait()
    assert gradient.tolist() == [1.0] * 3


@pytest.mark.parametrize("rule", ["sgd", "momentum", "nesterov", "adam", "nadam"])
def test_its_optimiser_takes_the_steps_of_every_other_algorithms(rule: str) -> None:
    """With decay on one group, half the lr on the other, and an lr that changes, but for Nesterov in torch's form."""
    of_task = plan("Uneven", optimizer=rule, lr=0.01, weight_decay=0.1)
    worker = of_task.worker(0)
    optimizer = make_optimizer(of_task.settings, worker)
    (bucket,) = worker.layout.buckets
    ours, x = Descent(bucket, rule=rule), worker.initial()[0]
    for k in range(5):
        gradient = torch.randn(bucket.size, generator=torch.Generator().manual_seed(k))
        offset, lr = 0, 0.01 / (k + 1 if rule != "nesterov" else 1)
        for group, parameters in zip(optimizer.param_groups, worker.parameters(), strict=True):
            for p in parameters:
                p.grad = gradient[offset : offset + p.numel()].view_as(p)
                offset += p.numel()
            group["lr"] = lr
            lr /= 2
        optimizer.step()
        x = ours.step(x, gradient, 1.0, 0.0, [(4 * lr, 0.1), (2 * lr, 0.0)])
        assert worker.initial()[0] == pytest.approx(x, abs=1e-6)
        with plain(optimizer):
            assert worker.initial()[0] == pytest.approx(ours.plain(x), abs=1e-6)
        assert worker.initial()[0] == pytest.approx(x, abs=1e-6)


class SlowSleeper:
    """A clock that only sleeping moves, always 2 ms too far."""

    now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds + 0.002


def test_an_emulated_pass_takes_as_long_as_was_drawn_and_gradients_come_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SlowSleeper()
    monkeypatch.setattr(slowed, "time", clock)
    small, large = torch.nn.Parameter(torch.ones(100)), torch.nn.Parameter(torch.ones(900))
    backward = SlowedBackward([small, large])
    came: list[float] = []
    for p in (small, large):  # hooks are called in order: these see what the pass's own have waited for
        p.register_hook(lambda gradient: came.append(clock.now_s))
    for _ in range(5):
        backward.forward_begins(clock.now_s, 0.06)
        backward.begins()
        (small.sum() + large.exp().sin().sum()).backward()
        ended = backward.ended()
    assert ended - 100.0 == pytest.approx(5 * 0.06 + 0.002)  # only the last timer's lateness is left
    part = abs(came[-1] - came[-2]) / 0.06
    assert part == pytest.approx(2 / 3 * 0.1) or part == pytest.approx(2 / 3 * 0.9)  # whichever comes last
