"""Every sample once an epoch, whatever the batches, from tensors, datasets and loaders."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rfast_zmq.errors import UsageError
from rfast_zmq.task.sampler import EpochSampler, batch_length, make_feed, to_device


class Squares(Dataset[tuple[int, int]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[int, int]:
        return i, i * i


@given(st.integers(1, 30), st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 99))
def test_every_sample_once_an_epoch_whatever_the_batches(length: int, batches: list[int], seed: int) -> None:
    sampler = EpochSampler(length, seed, rank=3)
    drawn: list[int] = []
    for size in batches:
        peeked = sampler.peek(size).tolist()
        assert sampler.take(size).tolist() == peeked
        drawn += peeked
    assert drawn == EpochSampler(length, seed, rank=3).take(len(drawn)).tolist()
    for epoch in range(len(drawn) // length):
        assert Counter(drawn[epoch * length : (epoch + 1) * length]) == Counter(range(length))


def test_seed_rank_and_epoch_each_change_the_order() -> None:
    orders = [EpochSampler(50, seed, rank).take(100) for seed, rank in ((0, 0), (0, 1), (1, 0))]
    halves = [tuple(h) for order in orders for h in (order[:50], order[50:])]
    assert len(set(halves)) == 6


@pytest.mark.parametrize("prefetched", [None, 4, 3])
@pytest.mark.parametrize("kind", ["tensors", "arrays", "TensorDataset", "Dataset"])
def test_indexed_data_give_their_rows_prefetched_or_not(kind: str, prefetched: int | None) -> None:
    x = torch.arange(6)
    data: Any = {
        "tensors": (x, x * x),
        "arrays": [x.numpy(), (x * x).numpy()],
        "TensorDataset": TensorDataset(x, x * x),
        "Dataset": Squares(),
    }[kind]
    feed = make_feed(data, seed=0, rank=0)
    if prefetched is not None:
        feed.prefetch(prefetched)
    expected = EpochSampler(6, 0, 0)
    for _ in range(3):
        (a, b), samples = feed.draw(4)
        assert samples == 4
        assert a.tolist() == expected.take(4).tolist()
        assert torch.equal(a * a, b)


def test_an_iterable_gives_its_own_batches_and_begins_anew() -> None:
    feed = make_feed(DataLoader(Squares(), batch_size=4), seed=0, rank=0)
    feed.prefetch(1)
    drawn = [feed.draw(1) for _ in range(4)]
    assert [samples for _, samples in drawn] == [4, 2, 4, 2]
    assert [batch[0].tolist() for batch, _ in drawn] == [[0, 1, 2, 3], [4, 5]] * 2


def test_a_generator_that_ran_out_is_said() -> None:
    feed = make_feed((torch.zeros(3) for _ in range(2)), seed=0, rank=0)
    assert [feed.draw(1)[1] for _ in range(2)] == [3, 3]
    with pytest.raises(UsageError, match="ran out"):
        feed.draw(1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (3, "gave a int"),
        (None, "gave a NoneType"),
        ({"x": torch.zeros(3)}, "gave a dict"),
        ((torch.zeros(3), torch.zeros(4)), r"\[3, 4\] samples"),
        ((torch.zeros(0),), "rank 5 no sample"),
        (torch.tensor(1.0), "rank 5 no sample"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_feed(data, seed=0, rank=5)


class Pair(NamedTuple):
    x: torch.Tensor
    note: str


def test_batches_of_any_shape_are_counted_and_moved() -> None:
    x = torch.zeros(5, 2)
    batch = {"meta": ["a", torch.tensor(1.0)], "pair": Pair(x, "b"), "more": (x, [x])}
    assert batch_length(batch) == 5
    moved = to_device(batch, torch.device("cpu"))
    assert moved["pair"].note == "b"
    assert isinstance(moved["pair"], Pair)
    assert isinstance(moved["more"], tuple)
    with pytest.raises(UsageError, match="without a tensor"):
        batch_length([np.zeros(3)])
