"""Injected link faults: rates as asked, the same in every process, one item held at most."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rfast_zmq.conditions import Faults, LinkFaults
from rfast_zmq.errors import UsageError

ITEMS = 20_000


def run(link: LinkFaults[int], items: int = ITEMS) -> list[list[int]]:
    return [link.apply(item) for item in range(items)]


def test_nothing_injected_changes_nothing() -> None:
    link = Faults(seed=3).link("W", 0, 1)
    assert run(link, 100) == [[item] for item in range(100)]
    assert link.counts == {"dropped": 0, "duplicated": 0, "reordered": 0}


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.6])
def test_drops_as_often_as_asked(probability: float) -> None:
    link = Faults(drop=probability, seed=1).link("A", 1, 0)
    delivered = run(link)
    assert all(out in ([], [item]) for item, out in enumerate(delivered))
    assert delivered.count([]) == link.dropped
    assert link.dropped / ITEMS == pytest.approx(probability, abs=0.012)


def test_duplicates_as_often_as_asked() -> None:
    link = Faults(duplicate=0.1, seed=1).link("A", 1, 0)
    delivered = run(link)
    assert all(out in ([item], [item, item]) for item, out in enumerate(delivered))
    assert sum(len(out) == 2 for out in delivered) == link.duplicated
    assert link.duplicated / ITEMS == pytest.approx(0.1, abs=0.01)


def test_reorders_with_the_next_and_loses_none() -> None:
    link = Faults(reorder=0.1, seed=1).link("A", 1, 0)
    delivered = run(link)
    assert all(out in ([], [item], [item, item - 1]) for item, out in enumerate(delivered))
    assert sum(len(out) == 2 for out in delivered) == link.reordered - (delivered[-1] == [])
    flat = [item for out in delivered for item in out]
    assert sorted(flat) == list(range(ITEMS))[: len(flat)]
    assert link.reordered / ITEMS == pytest.approx(0.1 / 1.1, abs=0.01)


def test_all_at_once_holds_one_item_at_most() -> None:
    link = Faults(drop=0.3, duplicate=0.1, reorder=0.5, seed=4).link("W", 0, 2)
    delivered = 0
    for item in range(ITEMS):
        out = link.apply(item)
        delivered += len(out)
        assert len(out) <= 4
        waiting = item + 1 - link.dropped + link.duplicated - delivered
        assert 0 <= waiting <= 2  # one item, perhaps in two copies
    assert link.dropped / ITEMS == pytest.approx(0.3, abs=0.012)
    assert link.duplicated / (ITEMS - link.dropped) == pytest.approx(0.1, abs=0.01)


def test_an_item_held_back_outlives_the_loss_of_the_next() -> None:
    link = Faults(drop=0.4, reorder=0.4, seed=0).link("W", 0, 1)
    outlived = 0
    held, lost_meanwhile = -1, False
    for item in range(2000):
        dropped, reordered = link.dropped, link.reordered
        out = link.apply(item)
        if link.reordered > reordered:
            held, lost_meanwhile = item, False
        elif link.dropped > dropped:
            lost_meanwhile = held >= 0
        elif held >= 0:
            assert out == [item, held]
            outlived += lost_meanwhile
            held = -1
    assert outlived > 50


def test_links_and_seeds_differ_and_repeat() -> None:
    def pattern(seed: int, graph: str, src: int, dst: int) -> str:
        return str(run(Faults(drop=0.5, seed=seed).link(graph, src, dst), 200))

    names = [(seed, graph, src, dst) for seed in (0, 1) for graph in "WA" for src, dst in ((0, 1), (1, 0), (1, 2))]
    assert len({pattern(*name) for name in names}) == len(names)
    assert pattern(0, "W", 0, 1) == pattern(0, "W", 0, 1)


def test_a_link_does_not_depend_on_what_other_links_carry() -> None:
    alone = run(Faults(drop=0.5, seed=2).link("W", 0, 1), 200)
    faults = Faults(drop=0.5, seed=2)
    first, second = faults.link("A", 0, 1), faults.link("W", 0, 1)
    together = []
    for item in range(200):
        first.apply(item)
        together.append(second.apply(item))
    assert together == alone


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_draws_the_same(hash_seed: str) -> None:
    program = (
        "import json; from rfast_zmq.conditions import Faults; "
        "l = Faults(drop=.3, duplicate=.2, reorder=.2, seed=9).link('A', 3, 1); "
        "print(json.dumps([l.apply(i) for i in range(300)]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == run(Faults(drop=0.3, duplicate=0.2, reorder=0.2, seed=9).link("A", 3, 1), 300)


@pytest.mark.parametrize("value", [1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("flag", ["drop", "duplicate", "reorder"])
def test_a_probability_that_cannot_be(flag: str, value: float) -> None:
    with pytest.raises(UsageError) as refused:
        Faults(**{flag: value})  # type: ignore[arg-type]
    assert str(refused.value) == f"--{flag} {value}: a probability: at least 0 and below 1"


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="--seed -1: must be 0 or more"):
        Faults(seed=-1)
