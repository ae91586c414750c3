"""``ad-psgd`` does what its paper says: pairs average, the mean is kept, nobody waits, and speed is weight."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfast_zmq import Plan, Settings, Simulator
from rfast_zmq.algorithms.ad_psgd import bipartite
from rfast_zmq.core.gossip import neighbours
from rfast_zmq.errors import UsageError
from rfast_zmq.topology import FAMILIES
from tests.loopback.tasks import Line

from .network import Network, Quadratic, topology_of

LR = 0.2
X0 = np.linspace(-1, 1, 7)


def started(shape: str, nodes: int = 5, lr: float = LR, **more: object) -> tuple[Network, list[np.ndarray]]:
    """A network in which only the root has a model, and the gradients that are computed in it from now on, times the
    weights of their nodes."""
    problem = Quadratic(nodes, 7, weights=np.linspace(0.5, 1.5, nodes).tolist())
    net = Network("ad-psgd", topology_of(shape, nodes), problem, bucket=2, every_initial=False, lr=lr, **more)
    seen: list[np.ndarray] = []
    plain = problem.gradient

    def gradient(rank: int, x):  # type: ignore[no-untyped-def]
        g = plain(rank, x)
        seen.append(problem.weights[rank] * g.numpy())
        return g

    problem.gradient = gradient  # type: ignore[method-assign]
    return net, seen


def flush(net: Network) -> None:
    while net.dirty or net.flying:
        for edge, bucket in list(net.dirty):
            net.speak(edge, bucket)
        while net.flying:
            net.deliver(0)


def wander(net: Network, steps: int, seed: int, slow: int | None = None) -> list[int]:
    """Anything happens in any order, but for messages of one edge; gives the gradients of each node."""
    draw, done = random.Random(seed), [0] * len(net.nodes)
    for _ in range(steps):
        net.now += 0.01
        rank = draw.randrange(len(net.nodes))
        if rank == slow and draw.random() < 0.75:
            continue
        done[rank] += bool(net.nodes[rank].computing)
        net.finish(rank)
        net.compute(rank)
        for edge, bucket in list(net.dirty)[: draw.randrange(12)]:
            net.speak(edge, bucket)
        while net.flying and draw.random() < 0.9:
            first = draw.choice([edge for edge, _ in net.flying])
            net.deliver(next(k for k, (edge, _) in enumerate(net.flying) if edge == first))
    flush(net)
    return done


def models(net: Network) -> np.ndarray:
    return np.array([net.model(rank) for rank in range(len(net.nodes))])


@given(shape=st.sampled_from(sorted(FAMILIES)), nodes=st.integers(2, 17))
def test_the_graph_is_bipartite_reaches_everybody_and_more_are_active(shape: str, nodes: int) -> None:
    topology = topology_of(shape, nodes)
    around = neighbours(topology)
    kept, active = bipartite(topology)
    assert 2 * sum(active) >= nodes
    reached, more = {topology.root}, [topology.root]
    while more:
        new = set(kept[more.pop()]) - reached
        reached |= new
        more += new
    assert reached == set(range(nodes))
    for node, partners in enumerate(kept):
        assert all(active[j] != active[node] and node in kept[j] and j in around[node] for j in partners)


def test_two_nodes_meet_half_way_and_a_gradient_is_of_the_model_at_which_it_began() -> None:
    net, seen = started("line", nodes=2)
    net.compute(0)
    flush(net)  # the first model
    net.finish(0)
    passive = X0 - LR * seen[0]
    np.testing.assert_allclose(models(net), [passive, X0], atol=1e-12)
    net.compute(1)  # and asks, beside it
    flush(net)
    middle = (X0 + passive) / 2
    np.testing.assert_allclose(models(net), [middle, middle], atol=1e-12)
    net.finish(1)
    expected = net.problem.weights[1] * net.problem.H[1] * (X0 - net.problem.b[1])
    np.testing.assert_allclose(seen[1], expected)
    np.testing.assert_allclose(models(net), [middle, middle - LR * expected], atol=1e-12)


@settings(max_examples=30)
@given(shape=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 2**32 - 1), averagings=st.sampled_from([1.0, 3.0]))
def test_averaging_keeps_the_sum_whatever_happens_when(shape: str, seed: int, averagings: float) -> None:
    """What is left of the sum is what the gradients took from it."""
    net, seen = started(shape, options={"averagings": averagings})
    wander(net, 150, seed)
    assert len(seen) > 30
    np.testing.assert_allclose(models(net).sum(0), 5 * X0 - LR * np.sum(seen, 0), atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_nodes_agree_where_steps_are_small(seed: int) -> None:
    far, near = (started("ring", lr=lr)[0] for lr in (0.2, 0.002))
    for net in (far, near):
        wander(net, 1500, seed)
    spreads = [np.ptp(models(net), axis=0).max() for net in (far, near)]
    assert 0 < spreads[1] < 0.05 * spreads[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slow", [None, 2])
def test_a_node_counts_as_often_as_it_computes(slow: int | None, seed: int) -> None:
    """Even speeds: the optimum of the weighted mean. A straggler counts for less: the method's known bias."""
    net, _ = started("exponential", lr=0.02)
    done = wander(net, 2000, seed, slow)
    later = []
    for more in range(4):  # the mean over a while, in which no node is drawn much more often than another
        done = np.add(done, wander(net, 250, seed + 100 * more, slow))
        later.append(models(net).mean(0))
    problem = net.problem
    counts = problem.weights * np.array(done) / np.mean(done)
    optimum = counts @ (problem.H * problem.b) / (counts @ problem.H)
    mean = np.mean(later, 0)
    assert abs(mean - optimum).max() < 0.1
    if slow is not None:
        assert done[slow] < 0.4 * np.mean(done)
        assert np.linalg.norm(mean - optimum) < 0.6 * np.linalg.norm(mean - problem.optimum())


def test_partners_are_drawn_evenly() -> None:
    net, _ = started("mesh", nodes=9)
    flush(net)
    asked = Counter[tuple[int, int]]()
    for _ in range(400):
        for rank, node in enumerate(net.nodes):
            if node.algorithm._active:
                net.finish(rank)
                net.compute(rank)
                asked.update((edge.src, edge.dst) for edge, bucket in net.dirty if edge.src == rank and bucket == 0)
                flush(net)
    kept, active = bipartite(net.topology)
    assert asked.keys() == {(i, j) for i, of_node in enumerate(kept) for j in of_node if active[i]}
    for (i, _), count in asked.items():
        assert abs(count - 400 / len(kept[i])) < 50


def test_in_virtual_time_nobody_waits_for_a_straggler() -> None:
    plan = Plan.make(
        Line,
        Settings(
            nodes=4, algorithm="ad-psgd", topology="ring", optimizer="sgd", lr=0.05, compute="constant:0.1",
            straggler=("3:5",), samples=1600,
        ),
    )  # fmt: skip
    out = Simulator(plan, latency_s=0.001).run()
    assert [node["waited_s"] for node in out.result.per_node] == [0.0] * 4
    samples = [node["samples"] for node in out.result.per_node]
    assert samples[3] == pytest.approx(samples[0] / 5, abs=8)
    no_wait_s = 1600 / (3 * 80 + 16)
    assert no_wait_s <= out.result.wall_s < no_wait_s + 1.0, "the root hears of others' samples when it averages"


@pytest.mark.parametrize("averagings", ["0", "1.5", "-1"])
def test_a_number_of_averagings_that_is_none_is_refused(averagings: str) -> None:
    with pytest.raises(UsageError, match=f"averagings={averagings}: must be a whole number, 1 or more"):
        Plan.make(
            Line,
            Settings(algorithm="ad-psgd", optimizer="sgd", algorithm_option=(f"averagings={averagings}",)),
        )


@pytest.mark.parametrize("straggler", [(), ("2:5",)])
def test_in_virtual_time_it_is_scored_once_a_round_by_what_the_nodes_have_done(straggler: tuple[str, ...]) -> None:
    """The census reaches the root with averagings alone, rarely; the mean of all models is there at any time."""
    plan = Plan.make(
        Line,
        Settings(
            nodes=5,
            algorithm="ad-psgd",
            topology="binary-tree",
            optimizer="sgd",
            lr=0.05,
            compute="constant:0.1",
            straggler=straggler,
            samples=4000,
            global_batch=40,
            evaluate_every=1.0,
        ),
    )
    simulation = Simulator(plan, latency_s=0.001).run()
    *points, last = simulation.points
    per_s = sum(plan.speeds.mean_rate(rank, plan.settings.share) for rank in range(5))
    spacing = plan.settings.share * 5 / per_s
    assert len(points) > 15
    for before, point in pairwise(points):
        assert point.time_s <= before.time_s + spacing + 0.1  # the fast ones are done at the same moments
        assert point.samples == pytest.approx(point.time_s * per_s, abs=5 * plan.settings.share)
        assert point.rounds == point.samples / 40
    assert last.rounds == simulation.result.rounds == last.samples / 40
    assert last.rounds >= points[-1].rounds


def test_the_roots_progress_goes_on_between_two_reports_for_a_round_at_most_and_never_back() -> None:
    net, _ = started("binary-tree")
    root, rounds = net.nodes[0].algorithm, []
    wander(net, 400, 3)
    flush(net)
    heard = root.census().samples / root.config.global_batch
    for _ in range(60):  # the others are silent
        net.now += 0.02
        net.compute(0)
        net.finish(0)
        rounds.append(root.rounds)
        own = root.census().samples / root.config.global_batch - heard
        assert heard + own <= rounds[-1] <= heard + own + 1.0 + 1e-9
    assert rounds == sorted(rounds)
