"""``rfast-tree``: weights and the census, rounds and schedules, pace and idle resend (changes 7 and 9)."""

from __future__ import annotations

import pytest
import torch

from rfast_zmq.algorithms.tree_records import PaceMeter
from rfast_zmq.core.events import (
    Edge,
)
from rfast_zmq.task.layout import Entry, Group, Layout
from rfast_zmq.topology import build

from .network import Network, Quadratic, Solo, topology_of
from .tree import BATCH, inner, leaf, root

# ------------------------------------------------------------------------------------------------ weights, census


def test_nobody_needs_to_know_n() -> None:
    """Who has joined counts: with one of two children heard, the mean is over two nodes."""
    solo = root(nodes=3, optimizer="sgd")
    solo.hear("A", 1, [3.0], w=1.0, c=4)
    assert solo.theta[0] == pytest.approx(-0.5 * 3.0)


def test_loss_samples_pace_and_trouble_ride_up() -> None:
    solo = inner(weight=2.0)
    solo.gradient([1.0], samples=3, loss=5.0, seconds=1.5)
    solo.hear("A", 3, [1.0], w=1.0, c=7, samples=7, weight=1.0, loss=2.0, slowest=0.5, slowest_rank=3, trouble=4)
    numbers = solo.say("A", 0).numbers
    expected = {"samples": 10, "weight": 3.0, "loss": 12.0, "slowest": 0.5, "slowest_rank": 3, "trouble": 4}
    assert {name: numbers[name] for name in expected} == expected
    assert solo.node.status().loss == 4.0


def test_the_census_goes_by_the_newest_stamp_over_all_buckets() -> None:
    layout = Layout.vector(2, dtype=torch.float64, bucket=1)
    solo = Solo(build("star", 3), 0, (0.0, 0.0), layout=layout)
    solo.hear("A", 1, [1.0], stamp=(1, 5), bucket=0, w=1.0, c=5, samples=5)
    solo.hear("A", 1, [1.0], stamp=(1, 4), bucket=1, w=1.0, c=4, samples=4)
    assert solo.node.status().samples == 5


# ------------------------------------------------------------------------------------------------ rounds, schedules


def test_rounds_and_schedules_go_by_the_least_P_over_buckets() -> None:
    seen: list[float] = []

    def schedule(rounds: float) -> float:
        seen.append(rounds)
        return 1.0 / (1 + rounds)

    layout = Layout.vector(2, dtype=torch.float64, bucket=1)
    solo = Solo(
        build("star", 2),
        0,
        (0.0, 0.0),
        layout=layout,
        optimizer="sgd",
        lr=1.0,
        global_batch=BATCH,
        lr_schedule=schedule,
    )
    solo.hear("A", 1, [1.0], bucket=0, w=1.0, c=8)
    assert solo.rounds == 0.0
    solo.hear("A", 1, [1.0], bucket=1, w=1.0, c=4)
    assert solo.rounds == 0.5
    solo.hear("A", 1, [1.0], bucket=0, w=1.0, c=16, wV=1.0)
    assert seen == [0.0, 0.0, 0.5]
    assert solo.theta == pytest.approx([-1.0 - 1 / 1.5, -0.5])
    assert [solo.say("W", 1, b).numbers["P"] for b in (0, 1)] == [2.0, 0.5]


def test_a_nodes_version_is_that_of_each_bucket() -> None:
    layout = Layout.vector(2, dtype=torch.float64, bucket=1)
    solo = Solo(build("line", 2), 1, (0.0, 0.0), layout=layout)
    solo.hear("W", 0, [1.0], bucket=0, P=3.0)
    solo.hear("W", 0, [1.0], bucket=1, P=2.0)
    assert solo.model().rounds == (3.0, 2.0)


def test_averages_of_batchnorm_are_the_exact_mean_over_nodes_and_no_descent() -> None:
    entries = [Entry("p", (1,), "parameter", 0, 0), Entry("m", (2,), "mean", -1, 1)]
    layout = Layout.build(entries, [Group(True)], torch.float64, 8)
    solo = Solo(build("star", 3), 0, (0.0, 0.0, 1.0), layout=layout, optimizer="sgd", lr=0.3, global_batch=BATCH)
    solo.gradient([1.0, 2.0, 6.0], samples=1)
    solo.hear("A", 1, [2.0, 10.0], bucket=1, w=1.0, c=1)
    solo.hear("A", 2, [9.0, 2.0], bucket=1, w=2.0, c=1)
    assert solo.theta[1:] == pytest.approx([13 / 4, 18 / 4])
    assert solo.say("W", 1, 1).payload.tolist() == pytest.approx([13 / 4, 18 / 4])


def test_theta_is_exported_at_the_root_and_the_newest_model_elsewhere() -> None:
    solo = leaf()
    solo.hear("W", 1, [3.0])
    assert solo.theta == [3.0]
    assert root(x0=(7.0,)).theta == [7.0]


# ------------------------------------------------------------------------------------------------ 7, 9: pace, resend


def test_7_the_pace_is_an_eighth_of_a_round_as_the_root_measures_it_and_comes_down_with_the_models() -> None:
    solo = root()
    for k in range(1, 65):
        solo.now = 0.5 * k
        solo.hear("A", 1, [1.0], w=1.0, c=k)
    assert solo.node.round_s == pytest.approx(0.5 * BATCH)
    assert solo.node.pace_s == pytest.approx(0.5)
    numbers = solo.say("W", 1).numbers
    assert numbers["pace_s"] == pytest.approx(0.5)
    below = inner()
    assert below.node.pace_s == 0.0, "before it is known nothing is held back"
    below.hear("W", 0, [0.0], pace_s=0.5, round_s=4.0)
    assert below.node.pace_s == 0.5
    assert below.say("W", 3).numbers["pace_s"] == 0.5
    assert below.say("W", 3).numbers["round_s"] == 4.0


def test_7_a_pace_that_was_asked_for_is_kept_and_told() -> None:
    solo = root(pace_s=0.25)
    solo.hear("A", 1, [1.0], w=1.0, c=1)
    assert solo.node.pace_s == 0.25
    assert solo.say("W", 1).numbers["pace_s"] == 0.25


def test_7_a_pace_meter_forgets_in_about_two_rounds() -> None:
    meter = PaceMeter()
    assert meter.round_s == 0.0
    now = 0.0
    for k in range(400):
        now += 1.0 if k < 200 else 0.25
        meter.descended(now, 0.125)
    assert meter.round_s == pytest.approx(2.0, rel=0.01)
    few = PaceMeter()
    for _ in range(8):
        few.descended(0.0, 0.125)
    assert few.round_s == 0.0, "not from the burst of all nodes' first reports"
    for k in range(1, 9):
        few.descended(float(k), 0.125)
    assert few.round_s == pytest.approx(8.0, rel=0.5)


def test_7_a_clock_that_is_set_back_makes_no_round_shorter_than_nothing() -> None:
    """A round of less than no time would put the root in phase with lines of no cycle."""
    meter = PaceMeter()
    for now in (0.0, 1.0, 0.0, -3.0):
        meter.descended(now, 1.0)
    assert meter.round_s > 0.0
    for now in range(50):
        meter.descended(float(now), 1.0)
    assert meter.round_s == pytest.approx(1.0)


def test_9_an_idle_edge_says_its_newest_again_after_twice_the_pace_unless_told_otherwise() -> None:
    solo = inner()
    solo.hear("W", 0, [0.0], pace_s=0.5)
    assert solo.node.resend_s == 1.0
    assert inner(resend_s=3.0).node.resend_s == 3.0
    solo.gradient([1.0])
    first, again = solo.say("A", 0), solo.say("A", 0)
    assert again.stamp > first.stamp, "the newest again, with the next stamp"
    assert torch.equal(again.payload, first.payload)


def test_9_until_a_rounds_time_is_known_an_edge_repeats_itself_more_and_more_seldom() -> None:
    """Gradients may take minutes: an edge of 1 ms would have said the first model 10^5 times by then."""
    solo, times = root(), []
    while solo.now < 100.0:
        times.append(solo.now)
        solo.say("W", 1)
        solo.now += solo.node.resend_s
    assert len(times) < 100
    assert times[1] == pytest.approx(1e-3)


def test_while_a_run_closes_an_edge_with_news_speaks_within_a_second() -> None:
    solo = inner(pace_s=1000.0)
    assert solo.node.pace_s == 1000.0
    solo.hear("W", 0, [0.0], phase=1)
    assert solo.node.pace_s == 1.0


def test_9_while_a_run_closes_edges_repeat_themselves_whatever_was_asked_for() -> None:
    solo = inner(resend_s=1000.0, pace_s=0.0)
    solo.hear("W", 0, [0.0], phase=1)
    assert solo.node.resend_s == pytest.approx(0.02)


def test_9_what_was_lost_is_made_good_by_a_resend_alone() -> None:
    net = Network("rfast-tree", topology_of("line", 3), Quadratic(3, 2), lr=0.1)
    net.compute(2)
    assert net.nodes[2].computing == []
    for edge in (Edge("W", 0, 1), Edge("W", 1, 2)):
        for _ in range(3):  # the first two are lost
            net.flying.clear()
            net.speak(edge)
        net.deliver(0)
    net.compute(2)
    assert len(net.nodes[2].computing) == 1
