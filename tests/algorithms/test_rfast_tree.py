"""``rfast-tree``: trees, relays, steps by progress, the lead, reports: changes 1 to 5 and 8 of docs/algorithm.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.core.events import (
    Edge,
    LinkReady,
    ModelWanted,
    Ready,
    Send,
)
from rfast_zmq.task.layout import Layout
from rfast_zmq.topology import FAMILIES, build

from .network import Network, Quadratic, Solo, fingerprint, topology_of
from .tree import BATCH, inner, leaf, paced_root, record, root, sent

# ------------------------------------------------------------------------------------------------ 1: trees


@pytest.mark.parametrize("shape", [*FAMILIES, "random:2", "split-roots"])
def test_1_only_the_edges_of_the_two_trees_speak(shape: str) -> None:
    net = Network("rfast-tree", topology_of(shape, 6), Quadratic(6, 1))
    out = [edge for node in net.nodes for edge in node.algorithm.out_edges]
    pull, push = net.topology.pull_tree, net.topology.push_tree
    assert len(out) == 2 * 5
    assert {e for e in out if e.graph == "W"} == {Edge("W", p, i) for i, p in enumerate(pull.parent) if p is not None}
    assert {e for e in out if e.graph == "A"} == {Edge("A", i, p) for i, p in enumerate(push.parent) if p is not None}


def test_1_breadth_first_and_ties_go_to_the_lowest_rank() -> None:
    mesh = build("mesh", 9)
    assert mesh.root == 0
    assert mesh.pull_tree.parent == (None, 0, 1, 0, 1, 2, 3, 4, 5)
    assert topology_of("split-roots", 5).root == 1
    assert build("ring", 5).push_tree.parent == (None, 2, 3, 4, 0)


# ------------------------------------------------------------------------------------------------ several trees


def two_trees(rank: int) -> Solo:
    """A node of a double tree of 7, with two buckets: inner in the first tree if it is 1, in the second if it is 5."""
    return Solo(build("double-tree", 7), rank, (0.0, 0.0), layout=Layout.vector(2, dtype=torch.float64, bucket=1))


@pytest.mark.parametrize(("rank", "bucket"), [(1, 0), (5, 1)])
def test_a_bucket_travels_along_its_own_tree_only(rank: int, bucket: int) -> None:
    solo = two_trees(rank)
    tree, other = (solo.config.topology.trees[b] for b in (bucket, 1 - bucket))
    down = {Edge("W", rank, child) for child in tree.children[rank]}
    assert len(down) == 2
    assert not other.children[rank], "a leaf of the other"
    for b, its in ((bucket, tree), (1 - bucket, other)):
        actions = solo.hear("W", its.parent[rank], [1.0], bucket=b, P=1.0)  # type: ignore[arg-type]
        assert {a.bucket for a in actions if isinstance(a, Send)} <= {b}
        assert sent(actions) == (down if b == bucket else set())
    actions = solo.gradient([1.0, 1.0])
    for b, its in ((bucket, tree), (1 - bucket, other)):
        assert sent([a for a in actions if isinstance(a, Send) and a.bucket == b]) == {
            Edge("A", rank, its.parent[rank])
        }  # type: ignore[arg-type]


@pytest.mark.parametrize(("graph", "src"), [("W", 5), ("A", 3)])
def test_a_message_of_a_bucket_along_another_trees_edge_changes_nothing(graph: str, src: int) -> None:
    """A peer that is wrong, or means harm: its bucket 0 comes where bucket 1 goes, or the other way round. I1: no mass
    enters that nobody accounts for."""
    solo = two_trees(1)
    for b, parent in ((0, 0), (1, 5)):
        solo.hear("W", parent, [1.0], bucket=b, P=1.0)
    solo.gradient([1.0, 1.0])
    wrong = 0 if graph == "W" else 1
    numbers: dict[str, Any] = {"P": 9.0} if graph == "W" else {"w": 1.0, "c": 9, "final": True}
    before, theta = [s.total()[1:] for s in solo.node._state], solo.theta
    assert sent(solo.hear(graph, src, [50.0], bucket=wrong, **numbers)) == set()
    assert [s.total()[1:] for s in solo.node._state] == before
    assert solo.theta == theta
    assert [s.rounds for s in solo.node._state] == [1.0, 1.0]
    right = 1 - wrong
    assert sent(solo.hear(graph, src, [50.0], bucket=right, **numbers)) or graph == "W", (
        "the same of the other is taken"
    )
    assert [s.rounds for s in solo.node._state] == ([1.0, 9.0] if graph == "W" else [1.0, 1.0])


def test_over_two_trees_a_run_reaches_the_optimum_closes_and_keeps_the_identity() -> None:
    """I1 under loss, and every coordinate: half of them go one way, half the other."""
    net = Network("rfast-tree", topology_of("double-tree", 5), Quadratic(5, 2), bucket=1, lr=0.4)
    net.train(700, drop=0.3, straggler=3)
    assert net.error() < 1e-3
    for node in net.nodes:
        assert {b % 2 for edge in node.algorithm.in_edges for b in range(2) if edge in node.algorithm._expected[b]} == {
            0,
            1,
        }
    net.close(0.3)
    assert sorted(net.leaving) == list(range(5))
    records = {rank: node.algorithm.last_record() for rank, node in enumerate(net.nodes)}
    assert net.nodes[0].algorithm.identity_error(records, 0) < 1e-12


# ------------------------------------------------------------------------------------------------ 2: relays


def test_2_a_newer_model_is_taken_up_and_passed_on_at_once() -> None:
    solo = inner()
    actions = solo.hear("W", 0, [5.0], P=2.5)
    assert sent(actions) == {Edge("W", 1, 3), Edge("W", 1, 4)}
    assert solo.x == [5.0]
    message = solo.say("W", 3)
    assert (message.payload.item(), message.numbers["P"]) == (5.0, 2.5)


def test_2_a_newer_record_of_a_child_is_summed_and_passed_on_at_once() -> None:
    solo = inner()
    solo.gradient([1.0], samples=2, rounds=0.5)
    actions = solo.hear("A", 3, [10.0], w=1.0, wV=1.5, c=7)
    assert sent(actions) == {Edge("A", 1, 0)}
    assert record(solo, 0) == (11.0, 2.0, 2.0, 9)


def test_2_never_on_a_dropped_packet() -> None:
    solo = inner()
    solo.hear("A", 3, [10.0], stamp=(1, 5), w=1.0, c=7)
    solo.hear("W", 0, [5.0], stamp=(1, 5), P=2.0)
    before = fingerprint(solo.node)
    for stamp in ((1, 5), (1, 4), (0, 9)):
        assert solo.hear("A", 3, [99.0], stamp=stamp, w=1.0, c=70) == []
        assert solo.hear("W", 0, [99.0], stamp=stamp, P=9.0) == []
    assert fingerprint(solo.node) == before


def test_2_the_message_is_made_from_the_state_of_the_moment_the_link_takes_it() -> None:
    solo = inner()
    solo.hear("A", 3, [10.0], w=1.0, c=1)
    solo.hear("A", 4, [20.0], w=1.0, c=1)
    assert record(solo, 0)[0] == 30.0


def test_2_a_node_computes_at_the_newest_model_and_gives_its_version_back() -> None:
    solo = leaf()
    solo.hear("W", 1, [5.0], P=2.0)
    assert solo.model().rounds == (2.0,)
    solo.gradient([1.0], samples=4, rounds=2.0)
    assert record(solo, 1) == (1.0, 1.0, 2.0, 4)


def test_a_child_computes_nothing_before_its_first_model() -> None:
    solo = Solo(build("binary-tree", 7), 3)
    assert solo.tell(ModelWanted) == []
    assert Ready() in solo.hear("W", 1, [1.0])
    assert Ready() not in solo.hear("W", 1, [2.0])


def test_a_node_without_any_gradient_says_nothing_upwards() -> None:
    assert inner().tell(LinkReady, Edge("A", 1, 0), 0) == []


# ------------------------------------------------------------------------------------------------ 3: progress


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_3_a_step_is_worth_the_samples_newly_counted_over_B_and_at_most_one_round(samples: list[int]) -> None:
    solo = root(optimizer="sgd", lr=0.5)
    x = rounds = 0.0
    for count in samples:
        solo.gradient([1.0], samples=count, rounds=rounds)  # fresh: τ = f − f … the lead is taken off θ
        f = min(count / BATCH, 1.0)
        rounds += f
        x -= 0.5 * f
        assert solo.rounds == pytest.approx(rounds)
        assert solo.theta[0] == pytest.approx(x)


def test_3_what_was_counted_above_a_round_is_not_made_up_for_later() -> None:
    solo = root()
    solo.gradient([1.0], samples=5 * BATCH)
    solo.gradient([1.0], samples=2)
    assert solo.rounds == 1.25


def test_3_a_resend_a_duplicate_or_a_smaller_count_is_no_progress() -> None:
    solo = root()
    solo.hear("A", 1, [1.0], stamp=(1, 1), w=1.0, c=4)
    before = (solo.rounds, solo.x)
    assert before[0] == 0.5
    assert sent(solo.hear("A", 1, [1.0], stamp=(1, 2), w=1.0, c=4)) == set()
    assert sent(solo.hear("A", 1, [1.0], stamp=(1, 2), w=1.0, c=4)) == set()
    assert sent(solo.hear("A", 1, [1.0], stamp=(2, 1), w=1.0, c=1)) == set()
    assert (solo.rounds, solo.x) == before


def test_3_a_restarted_child_counts_only_beyond_what_it_had_counted() -> None:
    solo = root()
    solo.hear("A", 1, [1.0], stamp=(1, 9), w=1.0, c=6)
    for c in range(1, 7):
        solo.hear("A", 1, [1.0], stamp=(2, c), w=1.0, c=c)
    assert solo.rounds == 0.75
    solo.hear("A", 1, [1.0], stamp=(2, 7), w=1.0, c=8)
    assert solo.rounds == 1.0


def test_3_a_restarted_child_holds_back_nobody_elses_count() -> None:
    solo = root()
    solo.hear("A", 1, [1.0], stamp=(1, 9), w=1.0, c=6)
    solo.hear("A", 1, [1.0], stamp=(2, 1), w=1.0, c=1)
    solo.hear("A", 2, [1.0], w=1.0, c=1)
    assert solo.rounds == 7 / BATCH
    between = inner()
    between.hear("A", 3, [1.0], stamp=(1, 9), w=1.0, c=6)
    between.hear("A", 3, [1.0], stamp=(2, 1), w=1.0, c=1)
    assert record(between, 0)[3] == 6


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_3_samples_are_never_counted_twice(operations: list[tuple[int, int, int]]) -> None:
    """Two leaves of a star: whatever is resent, repeated or overtaken, P·B is what the newest counts add up to."""
    solo, counted, said = root(), {1: 0, 2: 0}, {1: [0], 2: [0]}
    newest = {1: 0, 2: 0}
    for child, new, back in operations:
        said[child].append(said[child][-1] + new)  # its stamp is the place in this list
        k = max(1, len(said[child]) - 1 - back)
        solo.hear("A", child, [1.0], stamp=(1, k), w=1.0, c=said[child][k])
        if k > newest[child]:
            newest[child], counted[child] = k, said[child][k]
    capped = solo.node._state[0].last == sum(counted.values())
    assert capped
    if max((b - a for c in (1, 2) for a, b in zip(said[c], said[c][1:], strict=False)), default=0) <= 1:
        assert solo.rounds == pytest.approx(sum(counted.values()) / BATCH)


def test_3_the_root_descends_along_the_weighted_mean_of_what_it_knows() -> None:
    solo = root(optimizer="sgd", weight=2.0)
    solo.gradient([3.0], samples=1)
    x = solo.theta[0]
    solo.hear("A", 1, [8.0], w=4.0, c=4)
    assert solo.theta[0] - x == pytest.approx(-0.5 * (2 * 3 + 8) / (2 + 4))


def test_3_a_straggling_root_costs_nothing() -> None:
    """It descends on arrivals: without a gradient of its own at all."""
    solo = root(optimizer="sgd")
    for c in range(1, 9):
        assert sent(solo.hear("A", 1, [1.0], w=1.0, c=c, wV=(c - 1) / BATCH)) == {Edge("W", 0, 1), Edge("W", 0, 2)}
    assert solo.rounds == 1.0
    assert solo.theta == [-1.0]


def test_3_one_descent_serves_all_that_was_heard_until_a_link_asks_and_all_links() -> None:
    solo = paced_root()
    before, x = solo.node.rounds, solo.x
    for child in (1, 2):
        actions = solo.hear("A", child, [6.0 * child], w=1.0, c=2)
        assert sent(actions) == {Edge("W", 0, 1), Edge("W", 0, 2)}
    assert (solo.node.rounds, solo.x) == (before, x), "nobody asked yet"
    transmit, *others = solo.tell(LinkReady, Edge("W", 0, 1), 0)
    assert solo.node.rounds == before + 2 / BATCH
    assert sent(others) == {Edge("W", 0, 2)}
    stepped = transmit.message.payload.item()  # type: ignore[union-attr]
    assert solo.x == [stepped]
    (transmit,) = solo.tell(LinkReady, Edge("W", 0, 2), 0)
    assert transmit.message.payload.item() == stepped  # type: ignore[union-attr]
    assert solo.node.rounds == before + 2 / BATCH
    assert stepped == pytest.approx(solo.theta[0] - solo.node._descent[0].lead * (6.0 + 12.0) / 3)


def test_3_a_root_that_nobody_asks_descends_all_the_same() -> None:
    solo = paced_root()
    before = solo.node.rounds
    solo.now = 3.9
    solo.hear("A", 1, [6.0], w=1.0, c=2)
    assert solo.node.rounds == before
    solo.now = 4.1
    solo.hear("A", 2, [6.0], w=1.0, c=3)
    assert solo.node.rounds == before + 3 / BATCH


# ------------------------------------------------------------------------------------------------ 4: the lead


def test_4_the_root_knows_the_mean_staleness_exactly_and_leads_by_it() -> None:
    """τ = P before the step − S.V/S.w, weights included."""
    solo = root(optimizer="sgd", lr=0.1)
    for c in range(1, 5):
        solo.hear("A", 1, [0.0], w=1.0, c=BATCH * c, wV=0.0)
    assert solo.rounds == 4.0
    solo.gradient([1.0], samples=4, rounds=3.5)
    tau = 4.0 - (0.0 + 3.5) / 2
    assert solo.node.status().staleness_rounds == tau
    u = 0.5
    assert solo.x[0] == pytest.approx(-0.1 * (0.5 + tau) * u)
    assert solo.theta[0] == pytest.approx(-0.1 * 0.5 * u)
    assert solo.say("W", 1).payload.item() == solo.x[0], "x is what is sent"


def test_4_versions_ride_in_the_sums() -> None:
    solo = inner(weight=2.0)
    solo.gradient([1.0], rounds=3.0)
    solo.hear("A", 3, [1.0], w=1.5, wV=6.0, c=1)
    assert record(solo, 0) == (3.0, 3.5, 12.0, 2)


@pytest.mark.parametrize(("rule", "lead"), [("sgd", 2.0), ("momentum", 2.0), ("nesterov", 2.9), ("nadam", 2.9)])
def test_4_L_goes_by_the_optimiser(rule: str, lead: float) -> None:
    solo = root(optimizer=rule)
    for c in (1, 2, 3):
        solo.hear("A", 1, [1.0], w=1.0, c=BATCH * c, wV=0.0)
    assert solo.node._descent[0].lead == pytest.approx(lead)


# ------------------------------------------------------------------------------------------------ 5: small reports


def test_5_each_node_may_report_after_as_many_samples_as_it_likes() -> None:
    solo = root(optimizer="sgd")
    solo.hear("A", 1, [1.0], w=1.0, c=1)
    solo.hear("A", 2, [1.0], w=1.0, c=5)
    assert solo.rounds == 6 / BATCH


# ------------------------------------------------------------------------------------------------ 8: windows


def test_8_a_report_is_the_mean_of_the_gradients_since_the_last_left() -> None:
    """By samples: a gradient over three counts three times one over one. Versions likewise, counts are the newest."""
    solo = leaf()
    solo.gradient([1.0], samples=1, rounds=1.0)
    solo.gradient([5.0], samples=3, rounds=2.0)
    assert record(solo, 1) == (4.0, 1.0, 1.75, 4)
    assert record(solo, 1) == (4.0, 1.0, 1.75, 4), "said again, it is the same"
    solo.gradient([7.0], samples=2, rounds=3.0)
    assert record(solo, 1) == (7.0, 1.0, 3.0, 6), "a window that has left is not mixed with the next"


def test_8_an_inner_node_takes_the_mean_of_what_each_child_said_since_its_own_last_report() -> None:
    solo = inner()
    solo.hear("A", 3, [2.0], w=1.0, wV=1.0, c=1)
    solo.hear("A", 3, [6.0], w=3.0, wV=2.0, c=2)
    solo.hear("A", 4, [10.0], w=1.0, wV=0.0, c=1)
    assert record(solo, 0) == (14.0, 3.0, 1.5, 3)
    solo.hear("A", 3, [8.0], w=1.0, wV=4.0, c=3)
    assert record(solo, 0) == (18.0, 2.0, 4.0, 4), "child 4 had nothing new: its last window stands"


def test_8_at_the_root_the_newest_counts() -> None:
    solo = root(optimizer="sgd")
    solo.hear("A", 1, [2.0], w=1.0, c=1)
    solo.hear("A", 1, [6.0], w=1.0, c=2)
    solo.gradient([1.0])
    solo.gradient([3.0])
    assert solo.node._state[0].total()[0].item() == 9.0


@given(st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=6), min_size=1, max_size=6))
def test_8_no_gradient_is_lost_on_a_slow_line(windows: list[list[int]]) -> None:
    """A leaf, the line to its parent and the parent's own line each speak once in a while: whatever was computed in a
    window is in what is said of it."""
    below, above = leaf(), inner()
    for window in windows:
        for g in window:
            below.gradient([float(g)])
        m = below.say("A", 1)
        assert m.payload.item() == pytest.approx(sum(window) / len(window))
        above.hear("A", 3, [m.payload.item()], w=1.0, c=m.numbers["c"])
    said = [sum(window) / len(window) for window in windows]
    assert record(above, 0)[0] == pytest.approx(sum(said) / len(said))


def test_last_reports_are_flagged_and_taken_alone() -> None:
    """While a run closes, a child's final word replaces the window: then S at the root is the sum of last records."""
    solo = inner()
    solo.hear("A", 3, [2.0], w=1.0, c=1)
    solo.hear("A", 3, [6.0], w=1.0, c=1, final=True)
    assert record(solo, 0)[0] == 6.0


def test_the_sum_is_recomputed_and_never_added_to() -> None:
    """After ten thousand float32 reports S is the float32 sum of the newest records, to the last bit."""
    solo = Solo(build("star", 3), 0, (0.0,), layout=Layout.vector(1, dtype=torch.float32), lr=0.0)
    draw = np.random.default_rng(0)
    newest: dict[int, float] = {}
    for c in range(1, 5000):
        for child in (1, 2):
            newest[child] = float(draw.normal() * 10 ** draw.uniform(-3, 3))
            solo.hear("A", child, [newest[child]], w=1.0, c=c)
    total = torch.tensor([newest[1]]) + torch.tensor([newest[2]])
    assert torch.equal(solo.node._state[0].total()[0], total)


def test_8_at_the_root_too_what_was_heard_between_two_descents_counts_as_its_mean() -> None:
    solo = paced_root(nodes=2)
    solo.gradient([1.0])
    solo.gradient([3.0])
    solo.hear("A", 1, [10.0], w=1.0, c=2)
    solo.hear("A", 1, [20.0], w=1.0, c=3)
    g, w, _, c = solo.node._state[0].total()
    assert (g.item(), w, c) == (2.0 + 15.0, 2.0, 3 + 3)
    solo.tell(LinkReady, Edge("W", 0, 1), 0)
    solo.hear("A", 1, [40.0], w=1.0, c=4)
    assert solo.node._state[0].total()[0].item() == 2.0 + 40.0, "a new window"
