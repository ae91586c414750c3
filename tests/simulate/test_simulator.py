"""The whole of ``rfast-tree`` in virtual time on quadratics whose optimum is known: float32, codec, emulated speeds."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from rfast_zmq.assembly import Plan
from rfast_zmq.core.events import Edge
from rfast_zmq.errors import RfastError, UsageError
from rfast_zmq.settings import Settings
from rfast_zmq.simulate import Halt, Simulation, Simulator
from rfast_zmq.topology import build

ROOT = Path(__file__).parents[2]
TASK = str(ROOT / "nodes" / "quadratic.py")
LR = {"sgd": 0.3, "nesterov": 0.06, "nadam": 0.04}
HARSH: dict[str, Any] = {"drop": 0.3, "duplicate": 0.1, "reorder": 0.1}


def plan(nodes: int = 7, rounds: int = 120, **changes: Any) -> Plan:
    optimizer = changes.setdefault("optimizer", "sgd")
    settings = {
        "nodes": nodes,
        "global_batch": 8 * nodes,
        "samples": 8 * nodes * rounds,
        "lr": LR[optimizer],
        "compute": "constant:0.1",
        "evaluate_every": 5.0,
        "report_batch": 2,
        **changes,
    }
    return Plan.make(TASK, Settings(**settings))


def simulate(*, halts: tuple[Halt, ...] = (), latency_s: float = 0.001, **changes: Any) -> Simulation:
    return Simulator(plan(**changes), halts=halts, latency_s=latency_s).run()


def test_a_run_can_be_broken_off_at_a_moment_and_is_the_same_until_then() -> None:
    whole = simulate(rounds=60)
    part = Simulator(plan(rounds=60), latency_s=0.001).run(until_s=2.0)
    assert whole.result.wall_s > 4
    assert part.broken_off
    assert not whole.broken_off
    assert part.result.wall_s == 2.0
    assert part.points[-1].time_s == 2.0
    assert part.points[:-1] == [p for p in whole.points if p.time_s <= 2.0]
    assert Simulator(plan(rounds=60), latency_s=0.001).run(until_s=100.0).result == whole.result


def test_the_process_is_left_as_it_was_found() -> None:
    def found() -> tuple[object, ...]:
        return gc.get_threshold(), torch.get_num_threads(), torch.get_rng_state().tolist()

    def run(simulator: Simulator) -> None:
        before = found()
        try:
            simulator.run()
        finally:
            assert found() == before

    threads, threshold = torch.get_num_threads(), gc.get_threshold()
    try:
        torch.set_num_threads(2)
        for young in (700, 0, 10**6):
            gc.set_threshold(young, 11, 12)
            run(Simulator(plan(rounds=3)))
        ill = Simulator(plan(rounds=3))
        ill.root.worker.task.on_start = Mock(side_effect=RuntimeError("no start"))  # type: ignore[method-assign]
        with pytest.raises(RfastError):
            run(ill)
    finally:
        torch.set_num_threads(threads)
        gc.set_threshold(*threshold)


def test_a_collector_that_was_switched_off_stays_so_within_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    simulator = Simulator(plan(rounds=1))
    simulator.root.worker.task.on_start = lambda: seen.append(gc.get_threshold()[0])  # type: ignore[method-assign]
    threshold = gc.get_threshold()
    try:
        gc.set_threshold(0)
        simulator.run()
    finally:
        gc.set_threshold(*threshold)
    assert seen == [0]


HALTED: dict[str, Any] = {"halts": (Halt(3, 0.5, 1.5), Halt(6, 1.0))}


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({"bucket_bytes": 1024, "task_options": {"dim": "1024"}}, {"bytes_per_s": 4e5, **HALTED}),
        ({"straggler": ("6:5",), **HARSH}, HALTED),
        ({"algorithm": "ad-psgd", "topology": "exponential"}, {"bytes_per_s": 2e4}),
    ],
    ids=["slow lines", "loss", "a rival"],
)
def test_what_is_kept_between_events_is_what_would_be_asked_for(
    settings: dict[str, Any], lines: dict[str, Any]
) -> None:
    """An algorithm's timing hangs on its events alone; and a busy line is busy for every edge."""

    class Asking(Simulator):
        asked = 0

        def _due(self, node: Any, edge: Edge) -> tuple[float, float, int]:
            if node.timing is not None:
                self.asked += 1
                assert node.timing == node.algorithm.timing
            return super()._due(node, edge)

    traces = io.StringIO(), io.StringIO()
    asking = Asking(plan(rounds=8, **settings), latency_s=0.002, trace=traces[0], **lines)
    looking = Simulator(plan(rounds=8, **settings), latency_s=0.002, trace=traces[1], **lines)
    looking._lines.busy = lambda rank, now: False  # type: ignore[method-assign]
    assert asking.run().result == looking.run().result
    assert asking.asked > 100
    assert traces[0].getvalue() == traces[1].getvalue()


def ended_well(run: Simulation) -> None:
    result = run.result
    assert result.missing == []
    assert result.set_aside == []
    assert result.messages_refused == {}
    assert result.identity_error is not None
    assert result.identity_error <= 1e-5


@pytest.mark.parametrize(
    ("optimizer", "rounds", "nodes", "slow"),
    [
        ("sgd", 60, 7, 0),
        ("sgd", 60, 15, 14),
        ("nesterov", 180, 7, 6),
        ("nadam", 160, 7, 0),
        ("nadam", 140, 15, 14),
    ],
)
def test_it_reaches_the_true_optimum(optimizer: str, rounds: int, nodes: int, slow: int) -> None:
    """30 % lost, 10 % twice, 10 % out of order; the root or the last node 5 times slower than the rest."""
    run = simulate(nodes=nodes, rounds=rounds, optimizer=optimizer, straggler=(f"{slow}:5",), **HARSH)
    ended_well(run)
    assert run.result.extra["error"] < (5e-5 if optimizer == "nadam" else 2e-5)
    assert run.result.slowest_node is not None
    assert run.result.slowest_node["rank"] == slow
    assert all(run.result.faults[fault] > 0 for fault in ("dropped", "duplicated", "reordered"))


@pytest.mark.parametrize("topology", ["line", "ring", "mesh", "exponential", "star", "random:2"])
def test_on_every_topology_at_60_percent_loss(topology: str) -> None:
    run = simulate(topology=topology, rounds=70, straggler=("3:5",), drop=0.6, duplicate=0.1, reorder=0.1)
    ended_well(run)
    assert run.result.extra["error"] < 5e-5


def test_a_leaf_of_the_pull_tree_with_children_in_the_push_tree_gets_its_models() -> None:
    """Its own gradients are rare, but its reports are not: models must come by the former."""
    run = simulate(nodes=8, topology="exponential", straggler=("4:5",), rounds=60)
    ended_well(run)
    tree = build("exponential", 8)
    assert not tree.pull_tree.children[4]
    assert tree.push_tree.children[4]
    assert run.result.staleness_rounds < 1.5
    assert run.result.extra["error"] < 5e-5


def test_uneven_weights_and_noise() -> None:
    run = simulate(rounds=60, task_options={"weights": "uneven"}, straggler=("2:5",), **HARSH)
    ended_well(run)
    assert run.result.extra["error"] < 2e-5


def test_rfast_as_published_in_virtual_time() -> None:
    run = simulate(algorithm="rfast", topology="ring", lr=0.1, rounds=300, report_batch=8, straggler=("3:2",), drop=0.2)
    ended_well(run)
    assert run.result.extra["error"] < 1e-2


def survivors_error(run: Simulation, made: Plan, dead: int) -> float:
    """Distance from the optimum of all nodes but one."""
    task = made.worker(0).task
    alive = [rank for rank in range(made.topology.nodes) if rank != dead]
    H, b, w = task.H[alive], task.b[alive], task.w[alive]  # type: ignore[attr-defined]
    assert run.model is not None
    return float(abs(np.concatenate([t.numpy() for t in run.model]) - (w @ (H * b)) / (w @ H)).max())


def test_a_leaf_that_is_halted_for_ever_is_set_aside_and_the_others_reach_their_own_optimum_and_end() -> None:
    made = plan(rounds=120, **HARSH)
    run = Simulator(made, halts=[Halt(6, 2.0)], latency_s=0.001).run()
    assert run.result.set_aside == [6]
    assert run.result.missing == [6]
    assert [line for _, line in run.said] == ["node 6 has been silent for 10 rounds: set aside until it moves"]
    assert survivors_error(run, made, 6) < 5e-5
    assert run.result.extra["error"] > 1e-3
    at_s = run.said[0][0]
    assert 2.0 < at_s < 2.0 + 14 * 0.12, "after about ten rounds"


def test_a_halted_leaf_costs_the_others_neither_pace_nor_progress() -> None:
    whole, halted = simulate(rounds=80), simulate(rounds=80, halts=(Halt(6, 1.0),))
    assert halted.result.wall_s < 7 / 6 * whole.result.wall_s * 1.1 + 2.5  # a seventh fewer hands, and the patience


def test_a_leaf_that_moves_again_counts_again() -> None:
    run = simulate(rounds=150, halts=(Halt(6, 2.0, 6.0),), **HARSH)
    ended_well(run)
    assert [line for _, line in run.said] == [
        "node 6 has been silent for 10 rounds: set aside until it moves",
        "node 6 moves: counts again",
    ]
    assert run.said[1][0] >= 6.0
    assert run.result.extra["error"] < 2e-5


def test_a_halted_inner_node_and_a_halted_root_end_too() -> None:
    """They cost their subtree new models; the run still ends, and says who did not."""
    inner = simulate(rounds=40, halts=(Halt(1, 2.0),))
    assert 1 in inner.result.missing
    assert 0 not in inner.result.missing
    root = simulate(rounds=40, halts=(Halt(0, 2.0, 5.0),))
    ended_well(root)


def trace(seed: int, **changes: Any) -> tuple[str, str]:
    """Digest of the trace, and the result."""
    text = io.StringIO()
    run = Simulator(plan(rounds=10, seed=seed, straggler=("6:5",), **changes), latency_s=0.002, trace=text).run()
    return hashlib.sha256(text.getvalue().encode()).hexdigest(), run.result.to_json()


@pytest.mark.parametrize("algorithm", ["rfast-tree", "rfast"])
def test_the_same_seed_gives_the_same_bytes(algorithm: str) -> None:
    once = trace(3, algorithm=algorithm, **HARSH)
    assert once == trace(3, algorithm=algorithm, **HARSH)
    assert once[0] != trace(4, algorithm=algorithm, **HARSH)[0]


def test_the_same_seed_gives_the_same_bytes_in_another_process_with_another_hash_seed() -> None:
    code = "from simulate.test_simulator import HARSH, trace; print(trace(3, **HARSH)[0])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert done.stdout.strip() == trace(3, **HARSH)[0]


def test_a_pace_and_a_resend_that_were_asked_for_bound_what_is_sent() -> None:
    free, slow = simulate(rounds=40), simulate(rounds=40, pace=0.2, resend=5.0)
    edges = 12
    assert slow.result.messages_sent <= edges * (slow.result.wall_s / 0.2 + 2) + 40 * edges
    assert slow.result.messages_sent < free.result.messages_sent / 2
    assert slow.result.extra["error"] < 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"compute": "none"}, "--compute none"), ({"latency_s": inf}, "--latency inf")],
)
def test_what_cannot_be_simulated_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        simulate(**changes)


def test_packed_payloads_reach_the_optimum_with_the_identity_kept() -> None:
    """Over lossy links: what rounding took from a message is in the next, so that the optimum is not missed by it."""
    packed = simulate(nodes=4, rounds=50, wire="int8", drop=0.3, duplicate=0.1)
    ended_well(packed)
    assert packed.result.extra["error"] < 1e-2


@pytest.mark.parametrize(("topology", "rank"), [("ring", 2), ("exponential", 1)])
def test_a_run_ends_though_a_dead_node_keeps_the_end_from_others(topology: str, rank: int) -> None:
    """The trees differ: those below it in the pull tree go on reporting to the living, and never hear of the end."""
    run = simulate(nodes=5, rounds=14, report_batch=8, topology=topology, halts=(Halt(rank, 0.5),))
    assert rank in run.result.missing
    assert run.result.samples >= 14 * 8 * 5
