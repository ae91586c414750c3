"""Lines of a rate in virtual time: what they carry when, and what ``rfast-tree`` makes of slow ones."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.core.events import Edge
from rfast_zmq.simulate import Halt, Simulation, Simulator
from rfast_zmq.simulate.lines import Lines

from .test_simulator import HARSH, ended_well, plan

BUCKET = 2048
"""Bytes of a bucket, without a header."""


def slow(rate: float, trace: io.StringIO | None = None, halts: tuple[Halt, ...] = (), **changes: Any) -> Simulator:
    settings = {"rounds": 40, "bucket_bytes": BUCKET, "task_options": {"dim": str(BUCKET // 4)}, **changes}
    return Simulator(plan(**settings), latency_s=0.0005, bytes_per_s=rate, trace=trace, halts=halts)


def events(trace: io.StringIO, kind: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, trace.getvalue().splitlines()) if line["event"] == kind]


# ------------------------------------------------------------------------------------------------ the lines alone


def test_a_message_takes_its_size_over_the_rate() -> None:
    lines = Lines(2, 100.0)
    assert lines.free_s(Edge("W", 0, 1)) == -inf
    assert lines.carry(Edge("W", 0, 1), 250, now=1.0) == 3.5
    assert lines.free_s(Edge("W", 0, 1)) == 3.5
    assert lines.free_s(Edge("A", 1, 0)) == -inf, "the other way is another line"


def test_the_edges_of_a_node_share_one_line_out() -> None:
    lines = Lines(3, 100.0)
    lines.carry(Edge("W", 0, 1), 100, now=0.0)
    assert lines.free_s(Edge("W", 0, 2)) == 1.0
    assert lines.carry(Edge("W", 0, 2), 100, now=1.0) == 2.0


def test_what_ends_at_a_node_shares_one_line_in() -> None:
    lines = Lines(3, 100.0)
    assert lines.carry(Edge("A", 1, 0), 100, now=0.0) == 1.0
    assert lines.carry(Edge("A", 2, 0), 50, now=0.0) == 1.5, "it follows"
    assert lines.free_s(Edge("W", 2, 1)) == 0.5, "its own line was done with it by then"
    assert lines.free_s(Edge("A", 2, 0)) == 1.5, "but a full socket takes no other"
    assert [lines.busy(rank, now=0.75) for rank in range(3)] == [False, True, False], "only its own line keeps a node"


def test_without_a_rate_nothing_takes_time() -> None:
    lines = Lines(2, inf)
    assert not lines.slow
    assert [lines.carry(Edge("W", 0, 1), 10**9, now=3.0) for _ in range(3)] == [3.0] * 3
    assert lines.free_s(Edge("W", 0, 1)) <= 3.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 500)), max_size=30))
def test_no_line_carries_two_at_once_and_nothing_overtakes(messages: list[tuple[int, int, int]]) -> None:
    """I3's ground: what leaves an edge first arrives first, whatever the others do."""
    rate = 100.0
    lines, now = Lines(4, rate), 0.0
    left: dict[int, list[tuple[float, float]]] = defaultdict(list)
    came: dict[int, list[tuple[float, float]]] = defaultdict(list)
    of_edge: dict[Edge, list[float]] = defaultdict(list)
    for src, step, size in messages:
        edge = Edge("W", src, (src + step) % 4)
        now = max(now, lines.free_s(edge))
        arrives_s = lines.carry(edge, size, now)
        assert arrives_s >= now + size / rate
        left[src].append((now, size / rate))
        came[edge.dst].append((arrives_s, size / rate))
        of_edge[edge].append(arrives_s)
    for line in left.values():
        assert all(then >= at_s + took_s - 1e-9 for (at_s, took_s), (then, _) in pairwise(line))
    for line in came.values():
        assert all(then - took_s >= at_s - 1e-9 for (at_s, _), (then, took_s) in pairwise(line))
    for arrivals in of_edge.values():
        assert arrivals == sorted(arrivals)


# ------------------------------------------------------------------------------------------------ in a run


@pytest.mark.parametrize("topology", ["binary-tree", "double-tree"])
def test_a_runs_messages_keep_to_the_lines(topology: str) -> None:
    trace, rate = io.StringIO(), 1e5
    slow(rate, trace, rounds=4, topology=topology, task_options={"dim": str(BUCKET)}).run()
    left: dict[int, list[float]] = defaultdict(list)
    for line in events(trace, "LinkReady"):
        left[line["node"]].append(line["t"])
    came: dict[int, list[float]] = defaultdict(list)
    stamps: dict[tuple[Any, ...], list[list[int]]] = defaultdict(list)
    for line in events(trace, "Received"):
        came[line["node"]].append(line["t"])
        stamps[*line["edge"]].append(line["stamp"])
    least_s = BUCKET / rate  # and the header
    assert sum(map(len, came.values())) > 100
    for times in (*left.values(), *came.values()):
        assert min(b - a for a, b in pairwise(times)) > least_s - 1e-9
    assert all(of_edge == sorted(of_edge) for of_edge in stamps.values()), "nothing overtakes"


def test_lines_that_are_fast_enough_change_nothing() -> None:
    def run(rate: float) -> tuple[str, str]:
        trace = io.StringIO()
        return slow(rate, trace, rounds=3, **HARSH).run().result.to_json(), trace.getvalue()

    without = io.StringIO()
    settings = {"rounds": 3, "bucket_bytes": BUCKET, "task_options": {"dim": str(BUCKET // 4)}, **HARSH}
    result = Simulator(plan(**settings), latency_s=0.0005, trace=without).run().result.to_json()
    assert run(inf) == (result, without.getvalue())
    assert run(5e4)[1] != without.getvalue()


def test_the_same_seed_and_rate_give_the_same_bytes() -> None:
    def run(seed: int) -> tuple[str, str]:
        trace = io.StringIO()
        made = slow(6e4, trace, rounds=3, topology="double-tree", seed=seed, task_options={"dim": str(BUCKET)}, **HARSH)
        return made.run().result.to_json(), trace.getvalue()

    once = run(1)
    assert run(1) == once
    assert run(2)[1] != once[1]


# ------------------------------------------------------------------------------------------------ in phase


def rate_for(cycle_s: float) -> float:
    """The rate at which the line of an inner node of a binary tree carries a model along its three edges so fast."""
    return 3 * BUCKET / cycle_s


def staleness(run: Simulation) -> float:
    """In rounds, of the run without its beginning and its end."""
    seen = [point.staleness_rounds for point in run.points[len(run.points) // 3 : -1]]
    return sum(seen) / len(seen)


def test_C_is_the_busiest_lines_cycle_at_every_node() -> None:
    """The inner nodes' lines carry three models in each C, the root's two."""
    made = slow(rate_for(0.05), rounds=10)
    made.run()
    (header,) = {made.nodes[1].bytes / made.nodes[1].messages - BUCKET}
    cycle_s = 3 * (BUCKET + header) / rate_for(0.05)
    for node in made.nodes:
        assert node.algorithm.root_pace_s == pytest.approx(1.05 * cycle_s, rel=0.05)  # type: ignore[attr-defined]


def test_in_phase_gradients_are_fresher_than_at_the_same_pace_out_of_phase() -> None:
    """With two buckets, of which one is under way while the other is awaited."""
    changes = {"rounds": 30, "evaluate_every": 1.0, "task_options": {"dim": str(BUCKET // 2)}}
    made = slow(rate_for(0.04), **changes)
    in_phase = made.run()
    ended_well(in_phase)
    paced = slow(rate_for(0.04), **changes, pace=made.root.algorithm.root_pace_s).run()  # type: ignore[attr-defined]
    assert staleness(in_phase) < 0.95 * staleness(paced)


@pytest.mark.parametrize("what", ["a leaf stands still", "a leaf is twenty times slower"])
def test_in_phase_nobody_is_held_up_for_longer_than_1_3_C(what: str) -> None:
    """Nor is an edge's next word of a bucket sooner than half a C after its last."""
    trace = io.StringIO()
    stands = what == "a leaf stands still"
    made = slow(
        rate_for(0.05),
        trace,
        rounds=25,
        halts=(Halt(6, 0.8),) if stands else (),
        straggler=() if stands else ("6:20",),
    )
    run = made.run()
    pace_s = made.root.algorithm.root_pace_s  # type: ignore[attr-defined]
    assert pace_s > 1.1 * 0.05, "in phase"
    took_s = (BUCKET + 300) / rate_for(0.05)
    said: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for line in events(trace, "LinkReady"):
        if 1.0 < line["t"] < run.result.wall_s - 0.5 and 6 not in line["edge"][1:]:
            said[*line["edge"]].append(line["t"])
    assert len(said) == 10
    for (graph, *_), times in said.items():
        apart = [b - a for a, b in pairwise(times)]
        assert min(apart) > 0.5 * pace_s * 0.95, "C moves a little"
        if graph == "A":
            assert max(apart) < (1.3 * pace_s) * 1.05 + 3 * took_s, "and others may be on the line"
    assert run.result.set_aside == ([6] if stands else [])


def test_a_run_closes_well_where_a_word_takes_longer_than_the_least_patience() -> None:
    """The last words (I1 of the whole run) have six hops to go, on lines that need seconds for each."""
    ended_well(slow(rate_for(8.0), rounds=60, topology="line", nodes=7, compute="constant:0.5").run())
