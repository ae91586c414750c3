"""A vector comes back to the pool when nothing refers to it any more, and never before."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rfast_zmq.task.pool import Pool

LENGTH = 6
HOLDS: list[Callable[[Tensor], Any]] = [
    lambda t: t,
    lambda t: t[1:4],
    lambda t: t.view(2, 3).T,
    lambda t: t.detach(),
    lambda t: t.numpy(),
    lambda t: memoryview(t.numpy()).cast("B"),
    lambda t: memoryview(t[2:].detach().numpy()),
    lambda t: torch.from_numpy(t.numpy()[3:]),
    lambda t: torch.from_dlpack(t),
    lambda t: [t],
]
"""Ways in which somebody may hold on to a vector."""


def numbers(held: Any) -> list[float]:
    """What somebody who holds it sees."""
    if isinstance(held, list):
        held = held[0]
    if isinstance(held, memoryview):
        held = torch.frombuffer(bytearray(held), dtype=torch.float32)
    return [float(x) for x in torch.as_tensor(held).flatten()]


@given(st.lists(st.tuples(st.integers(0, len(HOLDS) - 1), st.integers(0, 3))), st.integers(0, 3))
def test_nobody_who_holds_a_vector_sees_another_number_in_it(moves: list[tuple[int, int]], most: int) -> None:
    """Each move takes a vector, fills it with a number of its own, holds it in some way, and lets go of some others."""
    pool, held = Pool(LENGTH, most), []
    for k, (way, drop) in enumerate(moves):
        held.append((float(k), HOLDS[way](pool.take(LENGTH).fill_(k))))
        del held[:drop]
        assert all(set(numbers(thing)) == {number} for number, thing in held)
        assert pool.free <= most


def test_what_is_let_go_serves_again_and_no_more_is_kept_than_asked() -> None:
    pool = Pool(LENGTH, 2)
    vectors = [pool.take(length) for length in (6, 1, 4, 6)]
    assert [len(v) for v in vectors] == [6, 1, 4, 6]
    assert (pool.made, pool.free) == (4, 0)
    vectors.clear()
    assert (pool.made, pool.free) == (4, 2)
    places = set()
    for _ in range(50):
        vectors = [pool.take(LENGTH), pool.take(LENGTH)]
        places |= {v.data_ptr() for v in vectors}
        vectors.clear()
    assert (pool.made, len(places)) == (4, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vector_is_of_the_dtype_asked_for(dtype: torch.dtype) -> None:
    assert Pool(LENGTH, 1, dtype=dtype).take(3).dtype == dtype


def test_threads_let_go_while_others_take() -> None:
    pool, wrong = Pool(LENGTH, 8), []

    def use(me: float) -> None:
        before = pool.take(LENGTH).fill_(me)
        for k in range(300):
            mine = pool.take(LENGTH).fill_(me + k)
            if set(before.tolist()) != {me + max(k - 1, 0)}:
                wrong.append(before)
            before = mine

    threads = [threading.Thread(target=use, args=(1000.0 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert pool.made <= 8  # each thread holds two
    assert pool.free == pool.made
