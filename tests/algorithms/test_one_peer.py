"""``sgp`` and ``osgp`` with one receiver a round: their recursion with a P that changes, and the weights' sum."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rfast_zmq import Plan, Settings, Simulator
from rfast_zmq.core.gossip import receivers
from tests.loopback.tasks import Line

from .network import Network
from .test_rivals import LR, descent, lockstep, models, started, weights_of

WEIGHTS = [0.5, 1.5, 1.0, 1.2, 0.8]


def one_peer(name: str, shape: str, nodes: int = 5, **more: object) -> Network:
    return started(name, shape, nodes, options={"one_peer": 1.0}, **more)


def exponential(nodes: int, k: int) -> np.ndarray:
    """P of round k, as the paper has it."""
    hop = 2 ** (k % (int(np.floor(np.log2(nodes - 1))) + 1))
    return (np.eye(nodes) + np.roll(np.eye(nodes), hop, axis=0)) / 2


def in_turn(net: Network, k: int) -> np.ndarray:
    """P of round k on any graph."""
    nodes = len(net.nodes)
    p = np.eye(nodes) / 2
    for j, to in enumerate(receivers(net.topology)):
        nearest = sorted((i - j) % nodes for i in to)
        p[(j + nearest[k % len(nearest)]) % nodes, j] += 0.5
    return p


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("nodes", [2, 3, 5, 6, 8])
def test_on_the_exponential_graph_it_is_the_papers_recursion(nodes: int, seed: int) -> None:
    net = one_peer("sgp", "exponential", nodes, weights=np.linspace(0.5, 1.5, nodes))
    lockstep(net, 11, seed)
    x, y = np.tile(np.linspace(-1, 1, 7), (nodes, 1)), np.ones((nodes, 1))
    for k in range(11):
        p = exponential(nodes, k)
        x, y = p @ (x - LR * descent(net.problem, x / y)), p @ y
    np.testing.assert_allclose(models(net), x / y, rtol=1e-11, atol=1e-12)
    assert weights_of(net) == pytest.approx(nodes * len(net.layout.buckets))


@pytest.mark.parametrize("shape", ["ring", "binary-tree", "mesh", "random:2", "split-roots"])
def test_on_any_graph_receivers_take_turns(shape: str) -> None:
    net = one_peer("sgp", shape, weights=WEIGHTS)
    lockstep(net, 11)
    x, y = np.tile(np.linspace(-1, 1, 7), (5, 1)), np.ones((5, 1))
    for k in range(11):
        p = in_turn(net, k)
        np.testing.assert_allclose(p.sum(0), 1.0)
        x, y = p @ (x - LR * descent(net.problem, x / y)), p @ y
    np.testing.assert_allclose(models(net), x / y, rtol=1e-11, atol=1e-12)
    assert weights_of(net) == pytest.approx(5 * len(net.layout.buckets))


@pytest.mark.parametrize("shape", ["exponential", "binary-tree"])
@pytest.mark.parametrize("name", ["sgp", "osgp"])
def test_it_ends_near_the_optimum_nearer_for_a_smaller_step_and_keeps_its_weights(name: str, shape: str) -> None:
    """On uneven data a fixed step leaves a bias that is in proportion to it."""
    errors = []
    for lr, rounds in ((0.2, 60), (0.01, 600)):
        net = one_peer(name, shape, weights=WEIGHTS, lr=lr, bucket=None)
        lockstep(net, rounds)
        errors.append(abs(models(net).mean(0) - net.problem.optimum()).max())
        assert weights_of(net) == pytest.approx(5)
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("name", ["sgp", "osgp"])
def test_a_node_sends_one_message_a_round(name: str) -> None:
    net = one_peer(name, "exponential", 8)
    sent = Counter[int]()
    post = type(net.nodes[0].algorithm)._post

    def counted(self, to, bucket, payload, **numbers):  # type: ignore[no-untyped-def]
        sent[self.rank] += bucket == 0
        return post(self, to, bucket, payload, **numbers)

    for node in net.nodes:
        node.algorithm._post = counted.__get__(node.algorithm)
    lockstep(net, 9)
    assert dict(sent) == dict.fromkeys(range(8), 9)


@pytest.mark.parametrize("name", ["sgp", "osgp"])
def test_in_virtual_time_all_go_at_the_pace_of_the_slowest(name: str) -> None:
    settings = Settings(
        nodes=4, algorithm=name, topology="exponential", optimizer="sgd", lr=0.05, compute="constant:0.1",
        straggler=("3:5",), samples=1600, algorithm_option=("one_peer=1",),
    )  # fmt: skip
    out = Simulator(Plan.make(Line, settings)).run()
    share = [node["waited_s"] / out.result.wall_s for node in out.result.per_node]
    assert share[3] < 0.05
    assert share[:3] == pytest.approx([0.8] * 3, abs=0.06)
    assert out.points[-1].extra["error"] < 0.1
