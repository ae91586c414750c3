"""Splits are partitions, the same everywhere, and as uneven as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.errors import UsageError
from rfast_zmq.task import split

HOW = st.sampled_from(["iid", "label", "dirichlet:0.001", "dirichlet:0.3", "dirichlet:100"])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.data(), HOW, st.integers(0, 2**31))
def test_each_sample_goes_to_exactly_one_node_and_each_node_has_one(
    labels: list[int], data: st.DataObject, how: str, seed: int
) -> None:
    nodes = data.draw(st.integers(1, len(labels)))
    shards = split(labels, nodes, how, seed)
    assert len(shards) == nodes
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    assert all(len(s) >= 1 and s.dtype == np.int64 for s in shards)
    again = split(np.array(labels), nodes, how, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))
    if not how.startswith("dirichlet"):
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_label_gives_few_classes_a_node_and_iid_gives_all() -> None:
    labels = np.arange(1000) % 10
    classes = {how: [len(set(labels[s])) for s in split(labels, 5, how, 0)] for how in ("label", "iid")}
    assert classes == {"label": [2] * 5, "iid": [10] * 5}


def test_a_small_alpha_is_more_uneven_than_a_large_one() -> None:
    labels = np.arange(2000) % 10
    spread = [np.std([len(s) for s in split(labels, 8, f"dirichlet:{a}", 1)]) for a in ("0.05", "1", "1000")]
    assert spread[0] > spread[1] > spread[2]


def test_another_seed_gives_another_split() -> None:
    labels = np.arange(100) % 10
    for how in ("iid", "dirichlet:0.5"):
        assert not np.array_equal(split(labels, 2, how, 0)[0], split(labels, 2, how, 1)[0])


@pytest.mark.parametrize("how", ["", "even", "dirichlet", "dirichlet:", "dirichlet:x", "dirichlet:0", "dirichlet:-1"])
def test_no_such_split_is_refused_with_what_would_do(how: str) -> None:
    with pytest.raises(UsageError, match=rf"--split {how}: .*dirichlet:0\.3"):
        split([0, 1], 1, how, 0)


def test_more_nodes_than_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="--nodes 3: 2 samples"):
        split([0, 1], 3, "iid", 0)
    with pytest.raises(UsageError, match="shape"):
        split([[0], [1]], 1, "iid", 0)
