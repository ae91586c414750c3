"""``rfast-tree`` on slow lines: change 10. Each node is told by hand what its neighbours say.

Nobody waits for anybody longer than 1.3 C (no invariant's, but the promise of the page); and whatever is said, I3, I4
and the sums of records (I1) are as without: those tests run in phase and out of it alike.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import pytest

from rfast_zmq.algorithms.rfast_tree import LINE_SLACK, LINES_ALIKE, PACE_OF_ROUND
from rfast_zmq.algorithms.tree_records import ANSWER_MARGIN, AT_ONCE, PATIENT_IN_PHASE
from rfast_zmq.core.events import Action, Edge, LinkReady, Message, Send, Transmit
from rfast_zmq.core.slots import EARLY, PATIENT
from rfast_zmq.topology import build

from .network import Solo

BATCH = 1000
PACED = {"pace_s": 1.0, "round_s": 2.0}
"""In the header of a model: C is well above an eighth of a round, so lines set it."""
FREE = {"pace_s": 0.25, "round_s": 2.0}
"""C is an eighth of a round."""


def paces(actions: list[Action], graph: str) -> set[float]:
    return {action.paces for action in actions if isinstance(action, Send) and action.edge.graph == graph}


class Root:
    """A star's root whose line takes ``took_s`` for a model along each of its two edges, of which the second so waits
    for the first. Its children report as many samples as make a round in ``round_s``."""

    def __init__(self, took_s: float = 0.5, round_s: float = 4.0) -> None:
        self.solo = Solo(build("star", 3), 0, optimizer="sgd", lr=0.1, global_batch=BATCH)
        self.took_s, self.round_s, self.c = took_s, round_s, {1: 0, 2: 0}
        self.cycle_s = {1: 0.0, 2: 0.0}
        """Of the lines below, as the children say."""
        self.P = -1.0

    @property
    def node(self):  # type: ignore[no-untyped-def]
        return self.solo.node

    def hand(self, child: int, waited_s: float = 0.0) -> Message:
        actions = self.solo.tell(LinkReady, Edge("W", 0, child), 0, waited_s)
        (message,) = (action.message for action in actions if isinstance(action, Transmit))
        return message

    def report(self, child: int, P: float, every_s: float = 0.0) -> list[Action]:
        self.c[child] += max(round(BATCH * every_s / self.round_s / 2), 1)
        numbers = {"w": 1.0, "wV": P, "c": self.c[child], "answers": P, "cycle_s": self.cycle_s[child]}
        return self.solo.hear("A", child, [1.0], **numbers)

    def warm(self, waves: int = 60) -> Root:
        """Until a round's time and the line are known: a wave every C, but no faster than the line."""
        for _ in range(waves):
            began, busy = self.solo.now, self.node.pace_s <= 2 * self.took_s
            for child in (1, 2):
                self.P = float(self.hand(child, self.took_s if child == 2 or busy else 0.0).numbers["P"])  # type: ignore[arg-type]
                self.solo.now += self.took_s
            wave_s = max(2 * self.took_s, self.node.pace_s)
            for child in (1, 2):
                self.report(child, self.P, wave_s)
            self.solo.now = began + wave_s
        return self


def inner() -> Solo:
    """Node 1 of a binary tree, in phase, whose children 3 and 4 have been heard in each C; a report has just left."""
    solo = Solo(build("binary-tree", 7), 1)
    for k in range(1, 20):
        solo.now = float(k)
        solo.hear("W", 0, [0.0], P=float(k), answer=0.3, **PACED)
        for child in (3, 4):
            solo.hear("A", child, [0.0], w=1.0, c=k, answers=float(k))
        solo.say("A", 0)
    return solo


def leaf() -> Solo:
    solo = Solo(build("binary-tree", 7), 3)
    solo.hear("W", 1, [0.0], P=1.0, answer=0.4, **PACED)
    solo.gradient([1.0])
    return solo


# ------------------------------------------------------------------------------------------------ C


def test_C_is_the_cycle_of_the_roots_line_and_comes_down_with_the_models() -> None:
    root = Root(took_s=0.5).warm()
    assert root.node.pace_s == pytest.approx(LINE_SLACK * 1.0, rel=1e-3)
    assert root.hand(1).numbers["pace_s"] == root.node.pace_s
    assert root.node.round_s == pytest.approx(4.0, rel=0.1)
    assert root.node.early == root.node.timing.early == 0.0, "in phase"


def test_C_is_never_below_an_eighth_of_a_round() -> None:
    root = Root(took_s=0.5, round_s=80.0).warm(200)
    assert root.node.pace_s == pytest.approx(PACE_OF_ROUND * root.node.round_s)
    assert root.node.pace_s > 2.0
    assert root.node.timing.early == EARLY, "lines that are that fast leave the reports their own time"


def test_C_is_the_busiest_lines_wherever_it_is_unless_that_is_far_slower_than_the_roots() -> None:
    root = Root(took_s=0.5)
    root.cycle_s[2] = 1.5
    assert root.warm().node.pace_s == pytest.approx(LINE_SLACK * 1.5, rel=1e-3)
    root.cycle_s[2] = 50.0
    assert root.warm().node.pace_s == pytest.approx(LINE_SLACK * LINES_ALIKE * 1.0, rel=1e-3), "one's own matter"
    root.cycle_s[2] = 0.0
    assert root.warm().node.pace_s == pytest.approx(LINE_SLACK * 1.0, rel=1e-3)


def test_cycles_ride_up_as_a_maximum() -> None:
    solo = inner()
    solo.hear("A", 3, [0.0], w=1.0, c=30, cycle_s=0.7)
    solo.hear("A", 4, [0.0], w=1.0, c=30, cycle_s=0.4)
    assert solo.say("A", 0).numbers["cycle_s"] == 0.7
    solo.hear("A", 3, [0.0], w=1.0, c=31, cycle_s=0.1)
    assert solo.say("A", 0).numbers["cycle_s"] == 0.4
    for k in range(40):  # its own line: three edges, 2 s a message
        solo.now += 2.0
        solo.tell(LinkReady, [Edge("W", 1, 3), Edge("W", 1, 4), Edge("A", 1, 0)][k % 3], 0, 2.0)
    assert solo.say("A", 0).numbers["cycle_s"] == pytest.approx(6.0, rel=1e-2)


def test_whose_line_is_far_slower_speaks_at_its_own_pace() -> None:
    solo = inner()
    edges = [Edge("W", 1, 3), Edge("W", 1, 4), Edge("A", 1, 0)]
    for took_s, pace_s in ((0.5, 1.0), (2.0, LINE_SLACK * 6.0)):
        for k in range(60):
            solo.now += took_s
            solo.tell(LinkReady, edges[k % 3], 0, took_s)
        assert solo.node.line_pace_s == pytest.approx(pace_s, rel=1e-2)
        assert solo.node.timing == (solo.node.line_pace_s, solo.node.resend_s, solo.node.early)
    assert solo.node.timing.pace_s > solo.node.pace_s
    solo.hear("W", 0, [0.0], P=50.0, phase=1, **PACED)
    assert solo.node.line_pace_s == 1.0, "the end is told as fast as can be"


def test_a_pace_that_was_asked_for_is_kept_and_nothing_is_in_phase() -> None:
    solo = Solo(build("binary-tree", 7), 1, pace_s=0.5)
    solo.hear("W", 0, [0.0], **PACED)
    assert solo.node.line_pace_s == 0.5
    assert solo.node.early == EARLY
    assert paces(solo.hear("W", 0, [0.0], P=1.0, **PACED), "W") == {1.0}


def test_out_of_phase_news_is_due_after_C_and_reports_wait_for_no_answer() -> None:
    solo = Solo(build("binary-tree", 7), 1)
    assert paces(solo.hear("W", 0, [0.0], P=1.0, **FREE), "W") == {1.0}
    assert paces(solo.hear("W", 0, [0.0], P=2.0, **FREE), "A") == set(), "a model asks nobody for anything"
    assert paces(solo.hear("A", 3, [0.0], w=1.0, c=1), "A") <= {1.0, PATIENT}


# ------------------------------------------------------------------------------------------------ down


def test_a_model_is_passed_on_in_the_moment_that_it_came() -> None:
    assert paces(inner().hear("W", 0, [0.0], P=20.0, **PACED), "W") == {AT_ONCE}


def test_one_wave_gives_all_links_the_same_model() -> None:
    """What is heard meanwhile is for the next one."""
    root = Root().warm()
    root.solo.now += 0.2
    first = root.hand(1)
    root.solo.now += 0.2
    for child in (1, 2):
        root.report(child, root.P)
    again = root.hand(2)
    assert again.numbers["P"] == first.numbers["P"]
    assert again.payload.item() == first.payload.item()
    root.solo.now += AT_ONCE * root.node.pace_s
    assert root.hand(1).numbers["P"] > first.numbers["P"]  # type: ignore[operator]


def test_the_other_links_are_due_at_once_when_a_wave_begins() -> None:
    root = Root().warm()
    root.report(1, root.P)
    root.solo.now += 0.6 * root.node.pace_s
    assert paces(root.solo.tell(LinkReady, Edge("W", 0, 1), 0, 0.5), "W") == {AT_ONCE}
    assert paces(root.report(1, root.P), "W") == {1.0}, "and a report alone begins none before its time"


# ------------------------------------------------------------------------------------------------ up


@pytest.mark.parametrize(("said_s", "due_s"), [(9.8, 10.4), (9.2, 10.4), (10.0, 10.5), (8.0, 9.3)])
def test_a_leaf_reports_so_long_after_a_model_as_the_root_says(said_s: float, due_s: float) -> None:
    """Here .4 C. But never before .5 C, nor later than 1.3 C after its last report."""
    solo = leaf()
    solo.now = said_s
    solo.say("A", 1)
    solo.gradient([1.0])
    solo.now = 10.0
    (after,) = paces(solo.hear("W", 1, [0.0], P=2.0, answer=0.4, **PACED), "A")
    assert said_s + after == pytest.approx(due_s)
    solo.now = 10.2
    assert paces(solo.gradient([1.0]), "A") == {after}, "its own gradient neither hastens nor delays it"


def test_a_leaf_with_nothing_new_does_not_say_the_old_again_for_every_wave() -> None:
    solo = leaf()
    solo.now = 9.8
    solo.say("A", 1)
    solo.now = 10.0
    assert not paces(solo.hear("W", 1, [0.0], P=2.0, answer=0.4, **PACED), "A")
    assert paces(solo.gradient([1.0]), "A")


def test_a_leaf_answers_the_model_that_came_first_since_its_last_report() -> None:
    solo = leaf()
    solo.now = 9.8
    solo.say("A", 1)
    solo.gradient([1.0])
    for now, P in ((10.0, 2.0), (10.1, 3.0)):
        solo.now = now
        found = paces(solo.hear("W", 1, [0.0], P=P, answer=0.4, **PACED), "A")
        assert len(found) == (P == 2.0), "a second does not put it off"
    assert solo.say("A", 1).numbers["answers"] == 2.0
    assert solo.say("A", 1).numbers["answers"] == 2.0, "a repetition answers what it did"
    solo.hear("W", 1, [0.0], P=4.0, answer=0.4, **PACED)
    assert solo.say("A", 1).numbers["answers"] == 4.0


def test_an_inner_node_reports_in_the_moment_when_all_have_answered_the_same_models() -> None:
    solo = inner()
    solo.now = 20.0
    assert not paces(solo.hear("W", 0, [0.0], P=20.0, answer=0.3, **PACED), "A"), "nothing is new yet"
    assert paces(solo.gradient([0.0]), "A") == {PATIENT_IN_PHASE}
    assert paces(solo.hear("A", 3, [0.0], w=1.0, c=20, answers=20.0), "A") == {PATIENT_IN_PHASE}
    assert paces(solo.hear("A", 4, [0.0], w=1.0, c=20, answers=19.0), "A") == {PATIENT_IN_PHASE}, "an older model"
    assert paces(solo.hear("A", 4, [0.0], w=1.0, c=21, answers=20.0), "A") == {AT_ONCE}
    assert solo.say("A", 0).numbers["answers"] == 20.0


def test_who_missed_a_report_is_not_waited_for_with_the_next_one_for_what_it_missed() -> None:
    solo = inner()
    solo.now = 20.0
    solo.hear("W", 0, [0.0], P=20.0, **PACED)
    solo.hear("A", 3, [0.0], w=1.0, c=20, answers=20.0)
    solo.now = 21.3  # nobody waits for longer
    assert solo.say("A", 0).numbers["answers"] == 20.0
    assert paces(solo.hear("A", 4, [0.0], w=1.0, c=20, answers=20.0), "A") == {PATIENT_IN_PHASE}
    for child in (3, 4):
        found = paces(solo.hear("A", child, [0.0], w=1.0, c=21, answers=21.0), "A")
    assert found == {AT_ONCE}


def test_a_slow_child_and_one_that_was_set_aside_hold_up_nobody() -> None:
    solo = inner()
    for k in range(20, 40):
        solo.now = float(k)
        solo.hear("W", 0, [0.0], P=float(k), **PACED)
        if k % 4 == 0:
            solo.hear("A", 4, [0.0], w=1.0, c=k, answers=float(k))
        found = paces(solo.hear("A", 3, [0.0], w=1.0, c=k, answers=float(k)), "A")
        solo.say("A", 0)
    assert found == {AT_ONCE}, "it is waited for no longer"
    solo = inner()
    for k in range(20, 40):  # this one says nothing at all
        solo.now = float(k)
        solo.hear("W", 0, [0.0], P=float(k), **PACED)
        found = paces(solo.hear("A", 3, [0.0], w=1.0, c=k, answers=float(k)), "A")
        assert found in ({AT_ONCE}, {PATIENT_IN_PHASE})
        solo.say("A", 0)
    assert solo.node.status().set_aside == (4,)
    assert found == {AT_ONCE}


@pytest.mark.parametrize(("said", "taken"), [(0.25, 0.25), (7.0, 1.0), (-3.0, -1.0), (1e300, 1.0)])
def test_when_to_answer_is_passed_down_and_what_is_absurd_is_cut(said: float, taken: float) -> None:
    solo = inner()
    solo.hear("W", 0, [0.0], P=20.0, answer=said, **PACED)
    assert solo.say("W", 3).numbers["answer"] == taken


def test_where_the_root_was_given_a_pace_nobody_is_in_phase() -> None:
    """It alone may have been given one: the others hear that its models go in no waves."""
    root = Solo(build("star", 3), 0, [0.0], pace_s=5.0)
    root.node.round_s = 1.0
    answer = root.say("W", 1).numbers["answer"]
    solo = inner()
    assert paces(solo.hear("W", 0, [0.0], P=20.0, answer=0.3, **PACED), "W") == {AT_ONCE}
    assert paces(solo.hear("W", 0, [0.0], P=21.0, answer=answer, **PACED), "W") == {1.0}
    assert solo.say("W", 3).numbers["answer"] == answer


# ------------------------------------------------------------------------------------------------ who keeps the phase


def settled(ways: tuple[float, float], waves: int = 120) -> tuple[float, float]:
    """The root's ``answer`` in the end, where each child's reports take so many C longer than that; and how long before
    the next models left (in C) the last of those that answer the same models was there."""
    root = Root().warm()
    pace_s, took_s = root.node.pace_s, root.took_s
    start, ways = root.solo.now, (ways[0], ways[1] - took_s / pace_s)  # the second has its model later
    events: list[tuple[float, int, float]] = []
    for k in range(waves):
        events += [(start + k * pace_s, 1, -1.0), (start + k * pace_s + took_s, 2, -1.0)]
    heapify(events)
    answered, all_s = {1: -1.0, 2: -1.0}, start
    while events:
        root.solo.now, child, P = heappop(events)
        if P >= 0.0:
            before, answered[child] = min(answered.values()), P
            all_s = root.solo.now if min(answered.values()) > before else all_s
            root.report(child, P, pace_s)
            continue
        if child == 1:
            waited = (root.solo.now - all_s) / pace_s
        numbers = root.hand(child, (child - 1) * took_s).numbers
        answer, P = float(numbers["answer"]), float(numbers["P"])  # type: ignore[arg-type]
        heappush(events, (root.solo.now + (answer + ways[child - 1]) * pace_s, child, P))
        if child == 1 and len(events) < 6:  # those under way
            break
    return answer, waited


@pytest.mark.parametrize(("waited", "change"), [(0.6, 0.11), (0.9, -0.03), (1.05, 0.0), (1.4, 0.0)])
def test_reports_that_waited_are_asked_for_later_and_those_that_just_missed_the_models_sooner(
    waited: float, change: float
) -> None:
    """A fifth of what is amiss at a time; what is too old for that says nothing."""
    root = Root().warm()
    root.report(1, root.P)
    root.report(2, root.P)
    root.solo.now += 1.5 * root.node.pace_s
    before = root.hand(1)
    (root.report(1, float(before.numbers["P"])), root.report(2, float(before.numbers["P"])))  # type: ignore[arg-type]
    root.solo.now += waited * root.node.pace_s
    moved = float(root.hand(1).numbers["answer"]) - float(before.numbers["answer"])  # type: ignore[arg-type]
    assert (moved - change + 0.5) % 1.0 - 0.5 == pytest.approx(0.0, abs=1e-9), "round the clock"


@pytest.mark.parametrize("way", [0.5, 0.7, 0.9, 1.4])
def test_the_roots_answer_brings_the_reports_shortly_before_the_models_leave(way: float) -> None:
    answer, waited = settled((way, way))
    assert waited == pytest.approx(ANSWER_MARGIN, abs=0.02)
    assert 0.0 <= answer < 1.0


def test_it_is_the_last_of_the_children_that_is_to_be_there_in_time() -> None:
    """And not the first: the other's reports would each wait for one C more."""
    assert settled((0.5, 0.8))[1] == pytest.approx(ANSWER_MARGIN, abs=0.02)
