"""The search for the best lr and B."""

from __future__ import annotations

import asyncio
from math import inf, log2
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.bench.suites.tuning import AS_GOOD, HOPELESS, Score, best_batch, best_lr


@given(best=st.floats(-9, 9), start=st.floats(-3, 3))
def test_the_search_ends_within_a_quarter_octave_of_the_best_lr_and_never_at_the_end_of_its_grid(
    best: float, start: float
) -> None:
    async def ask(batch: int, lr: float, until_s: float) -> Score:
        return abs(log2(lr) - best), 0.0

    tuned = asyncio.run(best_lr(ask, 64, 2**start))
    lrs = [lr for _, lr in tuned.tried]
    if not tuned.open_end:
        assert min(lrs) < tuned.lr < max(lrs)
        assert abs(log2(tuned.lr) - best) <= 0.25 * AS_GOOD + 1e-9
    else:
        assert abs(best - start) > 7, "so far from the start is as far as the grid is made longer"


def test_a_grid_whose_end_stays_the_best_says_so() -> None:
    async def the_smaller_the_better(batch: int, lr: float, until_s: float) -> Score:
        return lr, 0.0

    assert asyncio.run(best_lr(the_smaller_the_better, 64, 1.0)).open_end


def test_of_neighbours_that_few_seeds_cannot_tell_apart_the_middle_is_taken() -> None:
    """Not the one before the cliff, though it was a little faster by chance."""
    seconds = {-2.0: 14.0, -1.5: 12.0, -1.0: 10.2, -0.5: 10.1, 0.0: 10.3, 0.5: 10.0, 1.0: 80.0}

    async def ask(batch: int, lr: float, until_s: float) -> Score:
        return seconds[round(2 * log2(lr)) / 2], 0.0

    tuned = asyncio.run(best_lr(ask, 64, 1.0))
    assert log2(tuned.lr) == pytest.approx(-0.5)
    assert tuned.score == (10.1, 0.0)


def test_where_the_target_is_never_reached_the_accuracy_decides() -> None:
    async def ask(batch: int, lr: float, until_s: float) -> Score:
        return inf, abs(log2(lr) - 2)

    assert asyncio.run(best_lr(ask, 64, 1.0)).lr == pytest.approx(4.0)


def test_against_another_optimiser_the_search_goes_on_where_all_were_broken_off() -> None:
    """By where they stood then the middle one looked best; but three steps further is what beats the other."""
    seconds = {0.5: 30.0, 1.0: 25.0, 2.0: 24.0, 4.0: 9.0, 8.0: 5.0, 16.0: 40.0, 5.657: 7.0, 11.314: 11.0}
    standing = {0.25: 0.5, 0.5: 0.92, 1.0: 0.928, 2.0: 0.9275}

    async def ask(batch: int, lr: float, until_s: float) -> Score:
        lr = round(lr, 3)
        s = seconds.get(lr, inf)
        return (s, -0.93) if s <= until_s else (inf, -standing.get(lr, 0.0))

    for best_s in (10.0, inf):
        found = asyncio.run(best_lr(ask, 64, 1.0, best_s))
        assert (found.lr, found.score[0], found.open_end) == (8.0, 5.0, False)


@given(
    seconds=st.lists(
        st.lists(st.one_of(st.floats(1, 100), st.just(inf)), min_size=4, max_size=4), min_size=45, max_size=45
    ),
    seeds=st.integers(1, 4),
)
def test_runs_that_are_broken_off_change_nothing_of_what_is_found(seconds: list[list[float]], seeds: int) -> None:
    """Whatever each lr gives with each seed (where all are never there, accuracies are alike)."""

    async def whole(batch: int, lr: float, until_s: float) -> Score:
        return median(seconds[22 + round(2 * log2(lr))][:seeds]), 0.0

    async def cut(batch: int, lr: float, until_s: float) -> Score:
        there = [s if s <= until_s else inf for s in seconds[22 + round(2 * log2(lr))][:seeds]]
        return median(there), 0.0

    found, wanted = (asyncio.run(best_lr(ask, 64, 1.0)) for ask in (cut, whole))
    assert (found.lr, found.score, found.open_end) == (wanted.lr, wanted.score, wanted.open_end)


def test_what_is_hopeless_beside_the_best_so_far_is_broken_off() -> None:
    """A cliff: of what lies behind it nothing runs longer than it must."""
    limits: dict[float, float] = {}

    async def ask(batch: int, lr: float, until_s: float) -> Score:
        limits[round(lr, 3)] = until_s
        return (10 / lr if lr <= 1 else inf), 0.0

    asyncio.run(best_lr(ask, 64, 0.5))
    assert limits == {
        0.5: inf,
        0.25: HOPELESS * 20,
        1.0: HOPELESS * 20,
        2.0: HOPELESS * 10,
        0.707: HOPELESS * 10,
        1.414: HOPELESS * 10,
    }


def test_each_batch_has_its_own_best_lr_and_none_is_smaller_than_allowed() -> None:
    async def ask(batch: int, lr: float, until_s: float) -> Score:
        return 1 + abs(log2(lr * 256 / batch)) + abs(log2(batch / 32)), 0.0

    async def search(least: int) -> tuple[int, float]:
        found = await best_batch(ask, await best_lr(ask, 256, 1.0), least)
        assert all(batch >= least for batch, _ in found.tried)
        return found.batch, found.lr

    assert asyncio.run(search(8)) == (32, pytest.approx(1 / 8))
    assert asyncio.run(search(64)) == (64, pytest.approx(1 / 4))
