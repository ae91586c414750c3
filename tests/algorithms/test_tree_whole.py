"""``rfast-tree`` as a whole: where it ends, its identity, and what absurd or failing neighbours do to it."""

from __future__ import annotations

from math import isfinite

import numpy as np
import pytest
import torch

from rfast_zmq.core.control import Count
from rfast_zmq.core.events import (
    Action,
    CountsAgain,
    Edge,
    Message,
    Received,
    SetAside,
    Stamp,
    StopWanted,
)
from rfast_zmq.task.layout import Entry, Group, Layout
from rfast_zmq.topology import build, from_edges

from .network import Network, Quadratic, Solo, topology_of
from .tree import BATCH, inner, root

# ------------------------------------------------------------------------------------------------ the whole


@pytest.mark.parametrize("rule", ["sgd", "momentum", "nesterov", "adam", "nadam"])
@pytest.mark.parametrize("drop", [0.0, 0.6])
def test_every_optimiser_reaches_the_optimum_of_uneven_weighted_data(rule: str, drop: float) -> None:
    problem = Quadratic(7, 3, weights=np.linspace(0.4, 1.6, 7))
    lr = {"sgd": 0.4, "momentum": 0.06, "nesterov": 0.06, "adam": 0.03, "nadam": 0.03}[rule]
    near = 1e-4 if rule in ("sgd", "momentum", "nesterov") else 2e-3
    net = Network("rfast-tree", topology_of("binary-tree", 7), problem, lr=lr, optimizer=rule)
    for stretch in range(6):
        net.train(700, seed=stretch, drop=drop)
        net.handed.clear()
        if net.error() < near:
            break
    assert net.error() < near


def test_the_identity_holds_after_a_drain_and_is_seen_to_fail() -> None:
    net = Network("rfast-tree", topology_of("binary-tree", 7), Quadratic(7, 4), bucket=3, lr=0.2)
    net.train(150, drop=0.4)
    net.close(0.4)
    records = {rank: dict(node.algorithm.last_record()) for rank, node in enumerate(net.nodes)}
    error = net.nodes[0].algorithm.identity_error
    assert error(records, 0) < 1e-14
    records[5]["own"] = records[5]["own"] + 0.5
    assert error(records, 0) > 1e-2


def test_a_spare_edge_hurts_nobody() -> None:
    """Graphs with more edges than the trees, and a root of W only: the trees are taken from the common root."""
    topology = from_edges("spare", 4, [(3, 0), (0, 1), (0, 2), (1, 2), (2, 1)], [(1, 0), (2, 0), (0, 3), (1, 2)])
    assert topology.root == 3
    net = Network("rfast-tree", topology, Quadratic(4, 2), lr=0.3)
    net.train(700)
    assert net.error() < 1e-5


def test_a_child_of_many_buckets_is_set_aside_and_counted_again_in_one_word_each() -> None:
    solo = root(x0=(0.0,) * 6, layout=Layout.vector(6, dtype=torch.float64, bucket=2))
    buckets = len(solo.layout.buckets)
    assert buckets == 3

    def said(*lists: list[Action]) -> list[Action]:
        return [a for actions in lists for a in actions if isinstance(a, SetAside | CountsAgain)]

    def from_child(counter: int, c: int) -> list[Action]:
        solo.now += 1.0
        numbers = {"final": False, **Count().numbers(), "w": 1.0, "wV": 0.0, "c": c, "next_s": 0.0, "answers": 0.0}
        messages = [
            Message(Edge("A", 1, 0), b, Stamp(1, counter), torch.ones(2, dtype=torch.float64), numbers)
            for b in range(buckets)
        ]
        return [action for message in messages for action in solo.node.handle(Received(0.0, message))]

    assert said(from_child(1, 4)) == []
    alone = [solo.gradient([0.0] * 6, samples=BATCH, rounds=solo.rounds) for _ in range(12)]
    assert said(*alone) == [SetAside(1)]
    assert said(from_child(2, 8)) == [CountsAgain(1)]


@pytest.mark.parametrize("absurd", [1.7e308, -1.7e308, 1e-300, 0.0])
def test_absurd_numbers_of_a_peer_leave_the_model_finite(absurd: float) -> None:
    solo = root(optimizer="nadam", weight_decay=0.1)
    numbers = {**Count().numbers(), "weight": absurd, "loss": absurd, "slowest": absurd}
    for counter in range(1, 6):
        for child in (1, 2):
            said = {
                "final": False,
                **numbers,
                "w": absurd,
                "wV": absurd,
                "c": 4 * counter,
                "next_s": absurd,
                "answers": absurd,
            }
            message = Message(Edge("A", child, 0), 0, Stamp(1, counter), solo.vector([1.0]), said)
            solo.node.handle(Received(0.0, message))
        solo.gradient([1.0], samples=4, rounds=solo.rounds)
    assert all(isfinite(value) for value in (*solo.x, *solo.theta, solo.rounds))
    below = inner()
    message = Message(
        Edge("W", 0, 1),
        0,
        Stamp(1, 9),
        below.vector([1.0]),
        {"P": absurd, "answer": absurd, "phase": 0, "rounds": absurd, "round_s": absurd, "pace_s": absurd},
    )
    below.node.handle(Received(0.0, message))
    below.gradient([1.0])
    spoken = below.say("A", 0)
    assert all(isfinite(v) for v in spoken.numbers.values() if isinstance(v, float))


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 1e300])
def test_a_step_to_a_model_that_is_not_finite_is_not_taken_and_the_run_is_in_trouble(rate: float) -> None:
    """Nobody would take such a model, nor the stop that rides with it."""
    solo = root(optimizer="momentum", group_rates=lambda rounds: [(0.1 if rounds < 1 else rate, 0.0)])
    solo.hear("A", 1, [1.0], w=1.0, wV=0.0, c=BATCH)
    before = solo.say("W", 1).payload
    for k in range(2, 6):
        solo.hear("A", 1, [1e10], w=1.0, wV=0.0, c=k * BATCH)
    said = solo.say("W", 1)
    assert torch.equal(said.payload, before)
    assert solo.node.status().trouble == 0
    assert isfinite(solo.theta[0])
    solo.tell(StopWanted)
    assert solo.say("W", 2).numbers["phase"] == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_whose_own_worker_hangs_is_set_aside_by_itself_and_counts_again(rank: int) -> None:
    """As a leaf is by its parent: its old gradient is no part of the sum any more, at the root and at an inner node."""
    solo = root(optimizer="sgd", lr=0.01) if rank == 0 else inner()
    solo.between_s = 1.0
    solo.gradient([100.0], samples=1)
    child = 1 if rank == 0 else 3
    actions: list[Action] = []
    for k in range(1, 13):
        actions += solo.hear("A", child, [1.0], w=1.0, wV=0.0, c=k * BATCH)
        if rank:
            actions += solo.hear("W", 0, [0.0], P=float(k))
    assert [a for a in actions if isinstance(a, SetAside)] == [SetAside(rank)]
    assert solo.node._state[0].total()[0].item() == 1.0
    assert solo.node.status().set_aside == (rank,)
    assert CountsAgain(rank) in solo.gradient([3.0], samples=1, rounds=12.0)
    assert solo.node._state[0].total()[1] == 2.0


def test_the_staleness_of_averages_is_none() -> None:
    entries = [Entry("p", (1,), "parameter", 0, 0), Entry("m", (1,), "mean", -1, 1), Entry("v", (1,), "var", -1, 2)]
    layout = Layout.build(entries, [Group(True)], torch.float64, 1)
    solo = root(x0=(0.0, 0.0, 1.0), layout=layout, optimizer="sgd")
    for bucket in range(3):
        solo.hear("A", 1, [1.0], bucket=bucket, w=1.0, wV=0.0, c=BATCH)
    for bucket in range(3):
        solo.hear("A", 1, [1.0], bucket=bucket, w=1.0, wV=0.0, c=2 * BATCH)
    assert solo.node.status().staleness_rounds == pytest.approx(1.0)


def test_a_report_that_is_repeated_weighs_once_in_the_mean_of_what_was_heard() -> None:
    solo = Solo(build("line", 3), 1, [0.0])
    solo.hear("W", 0, [0.0], P=0.0)
    for value, c in ((10.0, 1), (10.0, 1), (10.0, 1), (20.0, 2)):
        solo.hear("A", 2, [value], w=1.0, c=c)
    assert solo.say("A", 0).payload.tolist() == [15.0]
