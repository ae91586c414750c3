"""How long a node's line takes for a model, from how long its edges were kept: on lines whose rate is known."""

from __future__ import annotations

from math import inf

import pytest

from rfast_zmq.core.events import Edge
from rfast_zmq.core.lines import BELIEVED, UNSEEN_CYCLES, LineMeter

SIZE = 1000
"""Bytes of a bucket."""


class Line:
    """One that carries a message after the other; all edges always want to speak, the longest-unsent first.

    Args:
        edges: how many share it.
        buckets: of each edge.
        rate: bytes a second.
        pace_s: least seconds between two messages of an edge and bucket.
    """

    def __init__(self, edges: int, buckets: int = 1, rate: float = 1e4, pace_s: float = 0.0) -> None:
        self.edges = [Edge("W", 0, j) for j in range(1, edges + 1)]
        self.meter = LineMeter(edges * buckets * SIZE, edges)
        self.rate, self.pace_s, self.now = rate, pace_s, 0.0
        self.said_s = {(edge, b): -inf for b in range(buckets) for edge in self.edges}
        self.slow: set[Edge] = set()
        """Their receivers take nothing."""

    @property
    def cycle_s(self) -> float:
        """What the meter should find."""
        return len(self.said_s) * SIZE / self.rate

    def run(self, messages: int, rate: float | None = None) -> float:
        """Some messages go; what the meter has then."""
        self.rate = rate or self.rate
        for _ in range(messages):
            due = {key: max(at_s + self.pace_s, 0.0) for key, at_s in self.said_s.items() if key[0] not in self.slow}
            (edge, bucket), due_s = min(due.items(), key=lambda item: item[1])
            self.now = max(self.now, due_s)
            self.say(edge, bucket, min(at_s for (e, _), at_s in due.items() if e == edge))
        return self.meter.cycle_s

    def say(self, edge: Edge, bucket: int, due_s: float) -> None:
        """An edge that wanted to speak since ``due_s``, and since it last spoke, does."""
        since = max(due_s, *(at_s for (e, _), at_s in self.said_s.items() if e == edge), 0.0)
        self.said_s[edge, bucket] = self.now
        self.meter.spoke(edge, SIZE, self.now - since, self.now)
        self.now += SIZE / self.rate

    def spread(self) -> None:
        """The edges speak one after the other, at even intervals."""
        for place, key in enumerate(self.said_s):
            self.said_s[key] = self.pace_s * place / len(self.said_s) - self.pace_s


@pytest.mark.parametrize("edges", [1, 2, 3, 5, 15, 40])
@pytest.mark.parametrize("buckets", [1, 4])
def test_a_busy_lines_cycle_is_found_exactly_however_many_edges_share_it(edges: int, buckets: int) -> None:
    line = Line(edges, buckets)
    assert line.run(10 * edges * buckets) == pytest.approx(line.cycle_s, rel=1e-3)
    assert line.run(20 * edges * buckets) == pytest.approx(line.cycle_s, rel=1e-9)


def test_messages_of_any_size_tell_of_the_same_line() -> None:
    """A cycle is that of the payload: of 1, 2 and 3 kB in turn, along two edges each."""
    edges, sizes = (Edge("W", 0, 1), Edge("W", 0, 2)), (1000, 2000, 3000)
    meter, now, said = LineMeter(2 * sum(sizes), 2), 0.0, [0.0, 0.0]
    for k in range(200):
        meter.spoke(edges[k % 2], sizes[k // 2 % 3], now - said[k % 2], now)
        said[k % 2] = now
        now += sizes[k // 2 % 3] / 1e4
    assert meter.cycle_s == pytest.approx(2 * sum(sizes) / 1e4)


@pytest.mark.parametrize("burst", [2, 5])
def test_a_socket_that_takes_several_at_once_and_then_none_tells_of_the_same_line(burst: int) -> None:
    edges = [Edge("W", 0, 1), Edge("W", 0, 2)]
    meter, now, said = LineMeter(2 * SIZE, 2), 0.0, [0.0, 0.0]
    for k in range(60 * burst):
        meter.spoke(edges[k % 2], SIZE, now - said[k % 2], now)
        said[k % 2] = now
        now += burst * SIZE / 1e4 if k % burst == burst - 1 else 0.0
    assert meter.cycle_s == pytest.approx(2 * SIZE / 1e4, rel=1e-3)


@pytest.mark.parametrize("idle", [0.2, 2.0, 7.0])
def test_a_line_that_is_idle_between_two_waves_tells_by_those_who_had_to_wait(idle: float) -> None:
    """As in phase: the first finds it free, the others follow it. What is known is kept."""
    edges = [Edge("W", 0, j) for j in (1, 2, 3)]
    meter, took_s, least_s = LineMeter(3 * SIZE, 3), SIZE / 1e4, inf
    for wave in range(100):
        began = wave * (3 + idle) * took_s
        for place, edge in enumerate(edges):
            meter.spoke(edge, SIZE, place * took_s, began + place * took_s)
        least_s = min(least_s, meter.cycle_s) if wave > 20 else inf
    assert least_s == pytest.approx(3 * took_s, rel=2e-3)
    assert meter.cycle_s == pytest.approx(3 * took_s, rel=2e-3)


@pytest.mark.parametrize("edges", [2, 15])
def test_a_line_that_nobody_waits_for_is_not_known(edges: int) -> None:
    line = Line(edges, pace_s=10 * edges * SIZE / 1e4)
    line.spread()
    assert line.run(100) == 0.0


@pytest.mark.parametrize("edges", [3, 8])
def test_an_edge_that_its_slow_receiver_keeps_does_not_move_it(edges: int) -> None:
    """The others speak again and again meanwhile, at their pace, on a line that is mostly idle."""
    line = Line(edges, pace_s=10 * edges * SIZE / 1e4)
    line.spread()
    line.run(10 * edges)
    kept = line.edges[0]
    line.slow = {kept}
    for _ in range(10):
        since = line.now
        line.run(4 * (edges - 1))
        line.now += 5 * SIZE / line.rate
        line.say(kept, 0, since)
    assert line.meter.cycle_s <= 1.01 * line.cycle_s, "nothing but what its own word, now and then, holds up"


@pytest.mark.parametrize("known", [0, 60])
@pytest.mark.parametrize("edges", [1, 3, 8])
def test_a_node_that_stood_still_for_a_minute_does_not_take_its_line_for_slow(edges: int, known: int) -> None:
    """Nor one whose only receiver did. It would keep to a pace of minutes, and others to twice theirs."""
    line = Line(edges)
    line.run(known)
    line.now += 60.0
    assert line.run(1) <= 1.001 * line.cycle_s
    assert line.run(100) == pytest.approx(line.cycle_s, rel=1e-3)


def test_a_slower_line_counts_soon_and_a_faster_one_little() -> None:
    line = Line(3)
    first = line.run(60)
    cycle = len(line.said_s)
    slower = line.run(cycle + 2, rate=line.rate / 2)  # of the first message it is not known yet, nor is one believed
    assert slower > 1.5 * first, "more than half of the way within one cycle"
    line.run(60)
    before = line.meter.cycle_s
    assert before == pytest.approx(2 * first, rel=1e-3)
    faster = line.run(cycle + 1, rate=line.rate * 2)
    assert first < faster < before
    assert before - faster < 0.5 * (before - first), "what went into an empty buffer passes faster, too"
    assert line.run(100 * cycle) == pytest.approx(first, rel=1e-3)


def test_what_is_seen_no_more_is_believed_less_and_less() -> None:
    line = Line(2)
    known = line.run(40)
    line.pace_s = 20 * known
    line.run(3)
    for k in range(1, 6):
        line.now += (UNSEEN_CYCLES + 1) * known
        line.meter.spoke(line.edges[k % 2], SIZE, 0.0, line.now)
        assert line.meter.cycle_s <= known * BELIEVED**k * (1 + 1e-9)
    assert line.meter.cycle_s > 0.5 * known, "by and by"


def test_empty_messages_and_time_that_stands_still_say_nothing() -> None:
    meter = LineMeter(0, 1)
    for now in (0.0, 1.0, 1.0, 2.0):
        meter.spoke(Edge("A", 1, 0), 0, 5.0, now)
    assert meter.cycle_s == 0.0
    meter = LineMeter(10, 1)
    for _ in range(3):
        meter.spoke(Edge("A", 1, 0), 10, 1.0, 7.0)
    assert meter.cycle_s in (0.0, 7.0)
