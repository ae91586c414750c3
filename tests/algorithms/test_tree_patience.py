"""``rfast-tree``: who waits for whom, and who is set aside and counts again."""

from __future__ import annotations

import pytest

from rfast_zmq.algorithms.tree_records import ASIDE_ROUNDS
from rfast_zmq.core.events import (
    Action,
    CountsAgain,
    Edge,
    Send,
    SetAside,
    StopWanted,
)

from .network import Network, Quadratic, Solo, topology_of
from .tree import BATCH, inner, leaf, paced_root, root

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
