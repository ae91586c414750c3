"""The census that climbs in the headers, and how a run closes."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.core.control import (
    COUNT_MOST,
    COUNT_NUMBERS,
    PATIENCE_LEAST_S,
    Closing,
    Count,
    Phase,
    merge,
    patience_s,
)

PACES = st.one_of(st.just(inf), st.floats(0.001, 1e6))


@st.composite
def counts(draw: st.DrawFn) -> Count:
    pace = draw(PACES)
    return Count(
        samples=draw(st.integers(0, 10**6)),
        weight=float(draw(st.integers(0, 8))),
        weighted_loss=float(draw(st.integers(-8, 8))),
        slowest_pace=pace,
        slowest_rank=draw(st.integers(0, 9)) if pace < inf else -1,
        set_aside=tuple(sorted(draw(st.sets(st.integers(0, 9), max_size=4)))),
        trouble=draw(st.integers(-1, 9)),
    )


# ------------------------------------------------------------------------------------------------ counts


@given(counts())
def test_a_count_comes_back_from_the_header_as_it_was(count: Count) -> None:
    numbers = count.numbers()
    assert {name: type(value) for name, value in numbers.items()} == COUNT_NUMBERS
    assert Count.read(numbers, 10) == count


@given(counts(), counts(), counts(), st.sets(st.integers(0, 9), max_size=3))
def test_a_census_does_not_depend_on_how_the_tree_groups_it(a: Count, b: Count, c: Count, aside: set[int]) -> None:
    at_once = merge([a, b, c], aside)
    assert merge([a, merge([b, c], ())], aside).samples == at_once.samples
    nested = merge([merge([a, b], aside), c], ())
    assert nested.set_aside == at_once.set_aside == tuple(sorted({*a.set_aside, *b.set_aside, *c.set_aside, *aside}))
    assert nested.slowest_pace == at_once.slowest_pace == min(a.slowest_pace, b.slowest_pace, c.slowest_pace)
    assert nested.trouble == at_once.trouble
    assert at_once.weight == a.weight + b.weight + c.weight


def test_the_slowest_is_named_with_its_pace_and_trouble_by_the_lowest_rank() -> None:
    made = merge(
        [Count(slowest_pace=3.0, slowest_rank=1, trouble=5), Count(slowest_pace=2.0, slowest_rank=4, trouble=2)], ()
    )
    assert (made.slowest_rank, made.slowest_pace, made.trouble) == (4, 2.0, 2)
    assert merge([], ()) == Count()


def test_the_loss_is_the_weighted_mean_and_nan_before_the_first() -> None:
    assert merge([Count(weight=1.0, weighted_loss=2.0), Count(weight=3.0, weighted_loss=3.0)], ()).loss == 1.25
    assert isnan(Count().loss)


def test_what_cannot_be_is_read_as_unknown_and_what_cannot_travel_is_cut() -> None:
    numbers = Count(slowest_pace=1.0, slowest_rank=3, set_aside=(0, 3), trouble=3, samples=2**70).numbers()
    assert numbers["samples"] == COUNT_MOST
    read = Count.read(numbers, 3)
    assert (read.slowest_rank, read.slowest_pace, read.set_aside, read.trouble) == (-1, inf, (0,), -1)


# ------------------------------------------------------------------------------------------------ closing


def test_the_phase_only_grows() -> None:
    closing = Closing([()], ())
    assert closing.running
    assert closing.enter(Phase.STOP, 1.0)
    assert not closing.enter(Phase.STOP, 2.0)
    assert closing.enter(Phase.LEAVE, 3.0)
    assert not closing.enter(Phase.RUN, 4.0)
    assert closing.phase is Phase.LEAVE


def test_nothing_is_final_while_the_run_goes_on() -> None:
    closing = Closing([()], ())
    assert not closing.final(0, (), 1.0, 1e9)
    closing.enter(Phase.STOP, 0.0)
    assert closing.final(0, (), 1.0, 0.0), "a leaf's word is final at once"


def test_a_word_is_final_once_each_child_has_said_its_last_on_that_bucket() -> None:
    closing = Closing([(5, 6)] * 2, ())
    closing.enter(Phase.STOP, 0.0)
    closing.heard(5, 0, True, 0.1)
    closing.heard(6, 1, True, 0.1)
    assert not closing.final(0, (), 9.0, 0.2)
    closing.heard(6, 0, False, 0.2)
    assert not closing.final(0, (), 9.0, 0.2)
    closing.heard(6, 0, True, 0.3)
    assert closing.final(0, (), 9.0, 0.3)
    assert not closing.all_final((), 9.0, 0.3)
    closing.heard(5, 1, True, 0.4)
    assert closing.all_final((), 9.0, 0.4)


def test_a_child_that_was_set_aside_is_not_waited_for() -> None:
    closing = Closing([(5, 6)], ())
    closing.enter(Phase.STOP, 0.0)
    closing.heard(5, 0, True, 0.1)
    assert closing.final(0, {6}, 9.0, 0.2)


def test_a_silent_child_is_waited_for_as_long_as_the_patience_since_the_stop_or_its_last_word() -> None:
    closing = Closing([(5,)], ())
    closing.heard(5, 0, False, 1.0)
    closing.enter(Phase.STOP, 10.0)
    assert not closing.final(0, (), 2.0, 12.0)
    closing.heard(5, 0, False, 11.0)
    assert not closing.final(0, (), 2.0, 13.0)
    assert closing.final(0, (), 2.0, 13.5)


def test_a_node_leaves_when_its_children_have_left_or_had_their_time_to() -> None:
    closing = Closing([()], (5, 6))
    closing.enter(Phase.STOP, 0.0)
    closing.heard_parent(99.0)
    assert not closing.may_leave(1.0, 100.0), "not before the root said so"
    assert closing.may_leave(1.0, 101.5), "unless the parent is gone"
    closing.enter(Phase.LEAVE, 100.0)
    closing.left(5)
    assert not closing.may_leave(1.0, 100.5)
    assert closing.may_leave(1.0, 101.5)
    closing.left(6)
    closing.left(6)
    closing.left(99)
    assert closing.may_leave(1.0, 100.5)


@pytest.mark.parametrize(("round_s", "patience"), [(0.0, PATIENCE_LEAST_S), (0.01, PATIENCE_LEAST_S), (7.0, 70.0)])
def test_patience_is_ten_rounds_as_measured(round_s: float, patience: float) -> None:
    assert patience_s(round_s) == patience
    assert not patience_s(nan) < 0


def test_the_root_misses_no_parent() -> None:
    closing = Closing([(1,)], (1,), root=True)
    closing.enter(Phase.STOP, 0.0)
    assert not closing.may_leave(1.0, 1e9)
