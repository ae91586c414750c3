"""The latest-wins slot: longest-unsent first, never faster than the pace, bounded whatever a peer does."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.core.slots import EARLY, Slot, Timing


def test_nothing_marked_nothing_to_say() -> None:
    assert Slot(range(3)).due(0.0, inf) == (inf, -1)
    assert Slot(range(3)).due(0.0, 0.1) == (inf, -1), "what never spoke has no newest to repeat"


def test_the_first_word_of_a_bucket_waits_for_no_pace() -> None:
    slot = Slot(range(2))
    slot.mark(1)
    assert slot.due(9.0, inf) == (-inf, 1)


def test_a_mark_is_a_mark_however_often() -> None:
    slot = Slot(range(1))
    for _ in range(1000):
        slot.mark(0)
    slot.spoke(0, 5.0)
    assert slot.due(1.0, inf) == (inf, -1)


def test_the_pace_is_kept_per_bucket() -> None:
    slot = Slot(range(2))
    slot.mark(0)
    slot.spoke(0, 10.0)
    slot.mark(0)
    assert slot.due(3.0, inf) == (13.0, 0)
    slot.mark(1)
    assert slot.due(3.0, inf) == (-inf, 1)


def test_an_idle_bucket_says_its_newest_again_after_resend_seconds() -> None:
    slot = Slot(range(1))
    slot.mark(0)
    slot.spoke(0, 10.0)
    assert slot.due(1.0, 4.0) == (14.0, 0)
    assert slot.due(5.0, 4.0) == (15.0, 0), "never below the pace"
    assert slot.due(1.0, inf) == (inf, -1)
    slot.mark(0)
    assert slot.due(1.0, 4.0) == (11.0, 0), "news does not wait for the resend"


def test_news_that_may_wait_is_due_later_unless_other_news_may_not() -> None:
    slot = Slot(range(1))
    slot.spoke(0, 10.0)
    slot.mark(0, 2.0)
    assert slot.due(3.0, inf) == (16.0, 0)
    slot.mark(0, 1.0)
    assert slot.due(3.0, inf) == (13.0, 0)
    slot.mark(0, 2.0)
    assert slot.due(3.0, inf) == (13.0, 0)
    slot.spoke(0, 13.0)
    slot.mark(0, 2.0)
    assert slot.due(3.0, inf) == (19.0, 0)


def test_nothing_is_said_before_the_receiver_has_a_use_for_it() -> None:
    slot = Slot(range(1))
    slot.mark(0)
    assert slot.due(1.0, inf, not_before=7.0) == (7.0, 0)
    slot.spoke(0, 7.0)
    assert slot.due(1.0, inf, not_before=9.0) == (inf, -1), "and nothing is made up"


def test_only_news_is_said_early() -> None:
    slot = Slot(range(1))
    slot.mark(0)
    assert slot.early_s(0, 4.0) == 4.0 * EARLY
    slot.spoke(0, 1.0)
    assert slot.early_s(0, 4.0) == 0.0
    assert slot.early_s(-1, 4.0) == 0.0


def test_a_turn_is_when_and_how_early_and_which() -> None:
    slot = Slot(range(2))
    slot.mark(1)
    slot.spoke(1, 10.0)
    assert slot.turn(Timing(4.0, 6.0, 0.25)) == (16.0, 0.0, 1), "a repetition is never early"
    slot.mark(1)
    assert slot.turn(Timing(4.0, 6.0, 0.25)) == (14.0, 1.0, 1)
    assert slot.turn(Timing(4.0, 6.0, 0.0)) == (14.0, 0.0, 1)
    assert slot.turn(Timing(4.0, 6.0, 0.25), not_before=15.0) == (15.0, 1.0, 1)


@given(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=200))
def test_who_speaks_early_speaks_no_oftener_on_average(waits: list[float]) -> None:
    slot, pace_s, now, said = Slot(range(1)), 1.0, 0.0, 0
    for wait in waits:
        now += wait
        slot.mark(0)
        due_s, bucket = slot.due(pace_s, inf)
        if due_s - slot.early_s(bucket, pace_s) <= now:
            slot.spoke(bucket, max(now, due_s))
            said += 1
    assert said <= now / pace_s + 1 + EARLY


def test_free_when_the_bucket_that_was_silent_longest_may_speak() -> None:
    slot = Slot(range(2))
    assert slot.free(1.0) == -inf
    slot.spoke(0, 5.0)
    slot.spoke(1, 3.0)
    assert slot.free(2.0) == 5.0
    assert slot.free(2.0, 2.0) == 7.0


def test_memory_is_some_marks_a_bucket() -> None:
    """However long it goes on, also beside a bucket that is never said again."""
    slot, most = Slot(range(4)), 0
    assert not hasattr(slot, "__dict__")
    slot.mark(3)
    slot.spoke(3, -1.0)
    for now in range(1000):
        slot.mark(now % 3, 1.0 + now % 2)
        if now % 7 == 0:
            slot.spoke(now % 3, float(now))
        slot.due(1.0, inf)
        slot.free(1.0)
        most = max(most, len(slot._silent) + sum(len(heap) for heap in slot._heaps.values()))
    assert most < 4 * 40


class Searched:
    """What a slot promises, by looking at every bucket."""

    def __init__(self, buckets: int) -> None:
        self.last, self.paces, self.spoken = [-inf] * buckets, [0.0] * buckets, [False] * buckets

    def due(self, pace_s: float, resend_s: float) -> tuple[float, int]:
        ats = [
            (last + pace_s * paces if paces else last + max(pace_s, resend_s), b)
            for b, (last, paces, spoken) in enumerate(zip(self.last, self.paces, self.spoken, strict=True))
            if paces or spoken
        ]
        at_s, bucket = min(ats, default=(inf, -1))
        return (at_s, bucket) if at_s < inf else (inf, -1)


@given(
    buckets=st.integers(1, 6),
    moves=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0, 1.3, 2.0]), st.integers(0, 3), st.integers(0, 4)),
        max_size=120,
    ),
    resend=st.sampled_from([2.0, 5.0, inf]),
)
def test_it_says_what_looking_at_every_bucket_would_say(buckets: int, moves: list[Any], resend: float) -> None:
    """Marks (with paces), words of any bucket at times that do not only grow, and a pace that changes."""
    slot, searched, now = Slot(range(buckets)), Searched(buckets), 0.0
    for bucket, paces, pace, wait in moves:
        bucket, now = bucket % buckets, now + wait
        if paces:
            slot.mark(bucket, paces)
            searched.paces[bucket] = min(searched.paces[bucket] or inf, paces)
        else:
            at_s = max(now - 2.0 * (wait == 3), slot.due(float(pace), resend)[0] if wait == 1 and resend < inf else 0.0)
            if at_s < inf:
                slot.spoke(bucket, at_s)
                searched.paces[bucket], searched.spoken[bucket], searched.last[bucket] = 0.0, True, at_s
        assert slot.due(float(pace), resend) == searched.due(float(pace), resend)
        assert slot.free(float(pace), 2.0) == min(searched.last) + 2.0 * pace
        assert [slot.early_s(b, 1.0) > 0 for b in range(buckets)] == [p > 0 for p in searched.paces]


@given(
    buckets=st.integers(1, 5),
    pace=st.floats(0, 3),
    resend=st.one_of(st.floats(0, 9), st.just(inf)),
    marks=st.lists(st.tuples(st.integers(0, 4), st.floats(0, 2)), max_size=60),
)
def test_a_driver_that_obeys_keeps_the_pace_and_leaves_no_bucket_behind(
    buckets: int, pace: float, resend: float, marks: list[tuple[int, float]]
) -> None:
    """Model: after each mark time passes, and whatever is due is said; a bucket's words are at least `pace` apart, and
    of those that have news the one that has waited longest comes first."""
    slot, now = Slot(range(buckets)), 0.0
    said: dict[int, float] = {}
    dirty: set[int] = set()
    for bucket, wait in marks:
        bucket %= buckets
        slot.mark(bucket)
        dirty.add(bucket)
        end = now + wait
        for _ in range(200):
            at, due = slot.due(pace, resend)
            if at > end:
                break
            now = max(now, at)
            assert due in dirty or due in said
            if due in said:
                assert now >= said[due] + pace
            if due in dirty:
                assert all(said.get(due, -inf) + pace <= said.get(other, -inf) + pace for other in dirty)
            else:
                assert now >= said[due] + resend
            slot.spoke(due, now)
            said[due] = now
            dirty.discard(due)
            if max(pace, resend) == 0.0:
                break  # else it would repeat itself without end in no time
        now = end
    at, _ = slot.due(pace, resend)
    assert (at < inf) == (bool(dirty) or (bool(said) and resend < inf))


@pytest.mark.parametrize("buckets", [2, 7])
def test_under_a_line_that_is_too_slow_every_bucket_is_refreshed_evenly(buckets: int) -> None:
    slot = Slot(range(buckets))
    order = []
    for now in range(3 * buckets):
        for bucket in range(buckets):
            slot.mark(bucket)
        _, bucket = slot.due(0.0, inf)
        order.append(bucket)
        slot.spoke(bucket, float(now))
    assert order == list(range(buckets)) * 3
