"""``s-ab`` does what its papers say: the recursion to the digit, the sum of trackers, the optimum of uneven data."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rfast_zmq.topology import Topology

from .network import Network, Quadratic, topology_of

LR, ROUNDS, X0 = 0.05, 12, np.linspace(-1, 1, 7)
SHAPES = ["binary-tree", "line", "ring", "exponential", "mesh", "split-roots"]


def started(shape: str, nodes: int = 5, lr: float = LR, overlap: float = 0.0) -> Network:
    problem = Quadratic(nodes, 7, weights=np.linspace(0.5, 1.5, nodes).tolist())
    options = {"overlap": overlap}
    return Network("s-ab", topology_of(shape, nodes), problem, bucket=2, every_initial=False, lr=lr, options=options)


def lockstep(net: Network, rounds: int, seed: int) -> None:
    """Every node computes so many gradients; who is next is drawn; what is said arrives, in order on each edge."""
    draw, done = random.Random(seed), [0] * len(net.nodes)
    for _ in range(rounds * len(net.nodes) * 200):
        if min(done) == rounds and not net.flying and not net.dirty:
            return
        net.now += 0.01
        rank = draw.randrange(len(net.nodes))
        if net.nodes[rank].computing:
            net.finish(rank)
            done[rank] += 1
        elif done[rank] < rounds:
            net.compute(rank)
        for edge, bucket in list(net.dirty)[: draw.randrange(6)]:
            net.speak(edge, bucket)
        while net.flying and draw.random() < 0.8:
            first = draw.choice([edge for edge, _ in net.flying])
            net.deliver(next(k for k, (edge, _) in enumerate(net.flying) if edge == first))
    raise AssertionError(f"stuck after {done} gradients")


def matrices(topology: Topology) -> tuple[np.ndarray, np.ndarray]:
    """W with rows that sum to 1, A with columns that sum to 1; [i, j] is of what goes from j to i."""
    w, a = np.zeros((2, topology.nodes, topology.nodes))
    for (src, dst), weight in topology.pull.items():
        w[dst, src] = weight
    for (src, dst), weight in topology.push.items():
        a[dst, src] = weight
    np.fill_diagonal(w, 1 - w.sum(1))
    np.fill_diagonal(a, 1 - a.sum(0))
    return w, a


def trackers(net: Network) -> np.ndarray:
    return np.array([np.concatenate([y.numpy() for y in node.algorithm._y]) for node in net.nodes])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("overlap", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_recursion_of_the_papers_whatever_comes_when(shape: str, overlap: float, seed: int) -> None:
    net = started(shape, overlap=overlap)
    lockstep(net, ROUNDS, seed)
    w, a = matrices(net.topology)

    def gradients(x: np.ndarray) -> np.ndarray:
        return net.problem.weights[:, None] * net.problem.H * (x - net.problem.b)

    x = np.tile(X0, (5, 1))
    y = before = gradients(x)
    for k in range(ROUNDS):
        x = w @ x - LR * y if overlap else w @ (x - LR * y)
        if k < ROUNDS - 1:
            now = gradients(x)
            y, before = a @ y + now - before, now
    np.testing.assert_allclose(trackers(net), y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose([net.model(rank) for rank in range(5)], x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(trackers(net).sum(0), before.sum(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("overlap", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_ends_at_the_optimum_of_uneven_data_at_a_fixed_step(shape: str, overlap: float) -> None:
    """Not beside it, as gossip does."""
    net = started(shape, lr=0.03, overlap=overlap)
    lockstep(net, 300, 0)
    for rank in range(5):
        np.testing.assert_allclose(net.model(rank), net.problem.optimum(), atol=2e-3)
