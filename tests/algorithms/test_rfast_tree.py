"""``rfast-tree``: a test for each change of DESIGN section 4 and each line of its pseudo-code.

A node is told by hand what its neighbours say (:class:`~.network.Solo`). ``ROOT`` is node 0 of a star; ``INNER`` is
node 1 of a binary tree of 7, below 0, with children 3 and 4; ``LEAF`` is node 3 of it.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.algorithms.tree_records import ASIDE_ROUNDS, PaceMeter
from rfast_zmq.core.control import Count
from rfast_zmq.core.events import (
    Action,
    CountsAgain,
    Edge,
    LinkReady,
    Message,
    ModelWanted,
    Ready,
    Received,
    Send,
    SetAside,
    Stamp,
    StopWanted,
)
from rfast_zmq.task.layout import Entry, Group, Layout
from rfast_zmq.topology import FAMILIES, build, from_edges

from .network import Network, Quadratic, Solo, fingerprint, topology_of

BATCH = 8


def root(nodes: int = 3, x0: tuple[float, ...] = (0.0,), **settings: Any) -> Solo:
    return Solo(build("star", nodes), 0, x0, **{"lr": 1.0, "global_batch": BATCH, **settings})


def inner(**settings: Any) -> Solo:
    solo = Solo(build("binary-tree", 7), 1, **settings)
    solo.hear("W", 0, [0.0])
    return solo


def leaf(**settings: Any) -> Solo:
    solo = Solo(build("binary-tree", 7), 3, **settings)
    solo.hear("W", 1, [0.0])
    return solo


def sent(actions: list[Action]) -> set[Edge]:
    return {action.edge for action in actions if isinstance(action, Send)}


def record(solo: Solo, dst: int) -> tuple[float, float, float, int]:
    """(w·g, w, w·V, c) of what it says to its parent now."""
    m = solo.say("A", dst)
    return m.payload.item(), m.numbers["w"], m.numbers["wV"], m.numbers["c"]  # type: ignore[return-value]


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


def paced_root(nodes: int = 3, **settings: Any) -> Solo:
    """A root that has just stepped for a link, with a pace of 1 s."""
    solo = root(nodes, pace_s=1.0, optimizer="sgd", **settings)
    solo.gradient([0.0])
    for child in range(1, nodes):
        solo.hear("A", child, [0.0], w=1.0, c=1)
    solo.tell(LinkReady, Edge("W", 0, 1), 0)
    return solo


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


# ------------------------------------------------------------------------------------------------ who waits for whom


def paces(actions: list[Action]) -> set[float]:
    return {action.paces for action in actions if isinstance(action, Send) and action.edge.graph == "A"}


def prompt_inner() -> Solo:
    """Itself and its children have each been heard every second, at a pace of 1 s; a report has just left."""
    solo = inner(pace_s=1.0)
    for k in range(1, 20):
        solo.now = float(k)
        solo.gradient([0.0])
        for child in (3, 4):
            solo.hear("A", child, [0.0], w=1.0, c=k)
    solo.say("A", 0)
    return solo


def test_a_report_waits_a_little_for_those_who_will_soon_be_heard() -> None:
    solo = prompt_inner()
    solo.now = 20.0
    assert paces(solo.gradient([0.0])) == {2.0}
    assert paces(solo.hear("A", 3, [0.0], w=1.0, c=20)) == {2.0}
    assert paces(solo.hear("A", 4, [0.0], w=1.0, c=20)) == {1.0}, "now all have been heard"


def test_and_for_no_slow_one() -> None:
    solo = prompt_inner()
    for k in range(20, 60):
        solo.now = float(k)
        solo.gradient([0.0])
        solo.hear("A", 3, [0.0], w=1.0, c=k)
        if k % 5 == 0:
            solo.hear("A", 4, [0.0], w=1.0, c=k)
        solo.say("A", 0)
    solo.now = 61.0
    solo.gradient([0.0])
    assert paces(solo.hear("A", 3, [0.0], w=1.0, c=61)) == {1.0}


def test_a_leaf_says_when_it_will_want_a_model_and_others_say_nothing() -> None:
    solo = leaf()
    for now in (1.0, 4.0):
        solo.now = now
        solo.gradient([0.0])
    assert solo.say("A", 1).numbers["next_s"] == 3.0
    solo.now = 5.0
    assert solo.say("A", 1).numbers["next_s"] == 2.0
    solo.now = 6.0
    solo.gradient([0.0])
    assert solo.say("A", 1).numbers["next_s"] == 2.0, "a shorter gradient counts at once"
    solo.now = 9.0
    assert solo.say("A", 1).numbers["next_s"] == 0.0, "overdue"
    solo.gradient([0.0])
    assert solo.say("A", 1).numbers["next_s"] == pytest.approx(2.1), "a longer one by and by"
    parent = inner()
    for now in (1.0, 4.0):
        parent.now = now
        parent.gradient([0.0])
    assert parent.say("A", 0).numbers["next_s"] == 0.0


def test_a_leaf_is_sent_no_model_that_it_would_not_use() -> None:
    solo = inner(pace_s=1.0)
    to_leaf, other = Edge("W", 1, 3), Edge("W", 1, 4)
    never = -float("inf")
    assert solo.node.not_before(to_leaf) == never
    solo.now = 10.0
    solo.hear("A", 3, [0.0], w=1.0, c=1, next_s=5.0)
    assert solo.node.not_before(to_leaf) == 10.0 + 5.0 / 2
    solo.now = 13.0
    solo.hear("A", 3, [0.0], w=1.0, c=1, next_s=1.5)
    assert solo.node.not_before(to_leaf) == 13.0 + 1.5 - 1.0, "in the last C always"
    solo.hear("A", 4, [0.0], w=1.0, c=1, next_s=0.0)
    assert solo.node.not_before(other) == never, "that one passes models on"
    solo.hear("W", 0, [0.0], P=1.0, phase=1)
    assert solo.node.not_before(to_leaf) == never, "the end is told at once"
    unpaced = inner(pace_s=0.0)
    unpaced.hear("A", 3, [0.0], w=1.0, c=1, next_s=5.0)
    assert unpaced.node.not_before(to_leaf) == never


def test_nobody_waits_for_a_child_that_was_never_heard_nor_for_one_that_has_died() -> None:
    solo = inner(pace_s=1.0)
    for k in range(1, 20):
        solo.now = float(k)
        solo.gradient([0.0])
        assert paces(solo.hear("A", 3, [0.0], w=1.0, c=k)) == {1.0}
        solo.say("A", 0)
    for k in range(20, 24):
        solo.now = float(k)
        found = paces(solo.gradient([0.0]))
        solo.say("A", 0)
    assert found == {1.0}


def test_3_no_progress_is_lost_where_links_ask_seldom_nor_at_the_end() -> None:
    solo = paced_root()
    before = solo.node.rounds
    for k in range(2, 32):
        solo.hear("A", 1, [1.0], w=1.0, c=k)
    solo.tell(StopWanted)
    assert solo.node.rounds == before + 30 / BATCH


# ------------------------------------------------------------------------------------------------ set aside


def silent_child(rounds: float) -> tuple[Solo, list[Action]]:
    """A root that heard child 1 once, and then only child 2 for so many rounds."""
    solo = root(optimizer="sgd", lr=0.01)
    solo.between_s = 1.0
    actions = solo.hear("A", 1, [100.0], w=1.0, wV=0.0, c=4, samples=4, weight=1.0, loss=9.0)
    for k in range(1, round(rounds * BATCH) + 1):
        actions += solo.hear("A", 2, [1.0], w=1.0, wV=0.0, c=k, samples=k, weight=1.0, loss=1.0)
    return solo, actions


def test_a_child_whose_count_has_not_moved_for_10_rounds_is_set_aside_once() -> None:
    assert ASIDE_ROUNDS == 10.0
    assert not any(isinstance(a, SetAside) for a in silent_child(9.4)[1])
    solo, actions = silent_child(13)
    assert [a for a in actions if isinstance(a, SetAside)] == [SetAside(1)]
    assert solo.node.status().set_aside == (1,)


def test_nobody_is_set_aside_who_could_not_have_been_heard_yet() -> None:
    """A pace of 3 s, and twelve rounds in two of them."""
    solo = root(optimizer="sgd", lr=0.01, pace_s=3.0)
    said = solo.hear("A", 1, [1.0], w=1.0, wV=0.0, c=4)
    for k in range(1, 25):
        solo.now = k / 12
        said += solo.hear("A", 2, [1.0], w=1.0, wV=0.0, c=k * BATCH)
    assert solo.node.rounds >= 12
    assert not any(isinstance(a, SetAside) for a in said)
    solo.now = 12.0
    assert SetAside(1) in solo.hear("A", 2, [1.0], w=1.0, wV=0.0, c=25 * BATCH)


def test_set_aside_its_gradient_weight_and_version_leave_the_sum_and_its_count_stays() -> None:
    solo, _ = silent_child(12)
    g, w, wv, c = solo.node._state[0].total()
    assert (g.item(), w, wv, c) == (1.0, 1.0, 0.0, 12 * BATCH + 4)
    assert solo.node.status().samples == 12 * BATCH + 4
    assert solo.node.status().loss == 1.0


def test_it_counts_again_when_it_moves_and_not_before() -> None:
    solo, _ = silent_child(12)
    assert not any(isinstance(a, CountsAgain) for a in solo.hear("A", 1, [100.0], w=1.0, c=4)), "a resend is no move"
    assert solo.node.status().set_aside == (1,)
    actions = solo.hear("A", 1, [50.0], w=1.0, c=5)
    assert CountsAgain(1) in actions
    assert solo.node.status().set_aside == ()
    assert solo.node._state[0].total()[0].item() == 51.0
    for k in range(12 * BATCH + 1, 21 * BATCH):
        assert not any(isinstance(a, SetAside) for a in solo.hear("A", 2, [1.0], w=1.0, c=k))


def test_an_inner_node_sets_aside_by_the_P_of_the_models_it_hears_and_says_so_in_its_report() -> None:
    solo = inner()
    solo.between_s = 1.0
    solo.gradient([1.0])
    solo.hear("W", 0, [0.0], P=3.0)
    solo.hear("A", 3, [5.0], w=1.0, c=2)
    solo.hear("W", 0, [0.0], P=4.0)
    solo.gradient([1.0])  # it moves itself
    assert not any(isinstance(a, SetAside) for a in solo.hear("W", 0, [0.0], P=13.0))
    assert SetAside(3) in solo.hear("W", 0, [0.0], P=13.1)
    message = solo.say("A", 0)
    assert (message.payload.item(), message.numbers["aside"], message.numbers["c"]) == (1.0, [3], 4)


def test_who_has_said_its_last_word_need_not_move() -> None:
    """Its parent may hear of the end later than it did."""
    solo = inner()
    solo.between_s = 1.0
    solo.hear("A", 3, [5.0], w=1.0, c=2, final=True)
    assert not any(isinstance(a, SetAside) for a in solo.hear("W", 0, [0.0], P=2 * ASIDE_ROUNDS))
    solo.hear("A", 4, [5.0], w=1.0, c=2, final=False)
    assert SetAside(4) in solo.hear("W", 0, [0.0], P=4 * ASIDE_ROUNDS)
    assert solo.node.status().set_aside == (4,)


def test_who_never_spoke_cannot_be_set_aside_and_is_not_waited_for() -> None:
    solo = root(optimizer="sgd", lr=0.01)
    for k in range(1, 12 * BATCH):
        assert not any(isinstance(a, SetAside) for a in solo.hear("A", 2, [1.0], w=1.0, c=k))
    assert solo.node.status().set_aside == ()


def test_ranks_set_aside_below_travel_up() -> None:
    solo = root()
    solo.hear("A", 1, [1.0], w=1.0, c=1, aside=[2])
    assert solo.node.status().set_aside == (2,)


def test_a_leaf_that_stops_does_not_drive_the_others_astray() -> None:
    """Set aside after 10 rounds, the survivors reach their own optimum."""
    problem = Quadratic(5, 3)
    net = Network("rfast-tree", topology_of("binary-tree", 5), problem, lr=0.3)
    net.train(60, drop=0.2)
    dead = net.nodes[4]
    dead.computing.clear()
    dead.left = True
    import random

    draw = random.Random(1)
    for turn in range(900):
        net.turn(turn % 4, draw, 0.2)
    assert net.nodes[0].algorithm.status().set_aside == (4,)
    assert net.error([0, 1, 2, 3]) < 1e-6
    assert net.error() > 1e-2


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
