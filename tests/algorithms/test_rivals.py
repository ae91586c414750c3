"""The rivals do what their papers say: to the digit on quadratics, round for round, over links that lose nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from rfast_zmq import Plan, Settings, Simulator
from rfast_zmq.algorithms import METHODS, RIVALS, NodeConfig, options_of
from rfast_zmq.algorithms.d_psgd import DPsgd
from rfast_zmq.conditions import Halt
from rfast_zmq.core.events import GradientReady, LinkReady, ModelWanted, Received, Send, Started, Transmit
from rfast_zmq.core.gossip import metropolis, neighbours, receivers
from rfast_zmq.core.served import Served
from rfast_zmq.errors import UsageError
from rfast_zmq.task.layout import Entry, Group, Layout
from rfast_zmq.topology import Topology, build
from tests.loopback.tasks import Line

from .network import Network, Quadratic, given_options, shape_for, topology_of

LR, ROUNDS = 0.2, 12
NOBODY_WAITS = ("ad-psgd", *(name for name in RIVALS if issubclass(RIVALS[name], Served)))
"""Who is fast waits for nobody slow (at most for the answer to its own gradient)."""
SYNCHRONOUS = [name for name in RIVALS if name != "osgp"]


def lockstep(net: Network, rounds: int, seed: int = 0) -> None:
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
        for edge, bucket in list(net.dirty)[: draw.randrange(4)]:
            net.speak(edge, bucket)
        while net.flying and draw.random() < 0.8:
            first = draw.choice([edge for edge, _ in net.flying])
            net.deliver(next(k for k, (edge, _) in enumerate(net.flying) if edge == first))
    raise AssertionError(f"stuck after {done} gradients")


def models(net: Network) -> np.ndarray:
    return np.array([net.model(rank) for rank in range(len(net.nodes))])


def descent(problem: Quadratic, x: np.ndarray) -> np.ndarray:
    """The gradients, times the nodes' weights."""
    return problem.weights[:, None] * problem.H * (x - problem.b)


def started(name: str, shape: str = "ring", nodes: int = 5, weights: Any = None, **more: Any) -> Network:
    problem = Quadratic(nodes, 7, weights=weights)
    chosen = {"lr": LR, "bucket": 2, **more}
    return Network(name, topology_of(shape_for(name, shape), nodes), problem, every_initial=False, **chosen)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weights", [None, [0.5, 1.5, 1.0, 1.2, 0.8]])
def test_ring_allreduce_is_gradient_descent_along_the_weighted_mean(weights: Any, seed: int) -> None:
    net = started("ring-allreduce", weights=weights)
    lockstep(net, ROUNDS, seed)
    x = np.linspace(-1, 1, 7)
    for _ in range(ROUNDS):
        x = x - LR * descent(net.problem, np.tile(x, (5, 1))).sum(0) / net.problem.weights.sum()
    np.testing.assert_allclose(models(net), np.tile(x, (5, 1)), rtol=1e-12)


def test_ring_allreduce_counts_a_round_as_its_step_is_taken() -> None:
    """What is judged at k rounds is the model after k steps."""
    net, models_at = started("ring-allreduce"), {}
    root, handle = net.nodes[0].algorithm, net.nodes[0].algorithm.handle

    def told(event: Any) -> Any:
        actions = handle(event)
        models_at.setdefault(root.rounds, net.model())
        return actions

    root.handle = told
    lockstep(net, ROUNDS)
    x = np.linspace(-1, 1, 7)
    assert sorted(models_at) == [k / 2 for k in range(ROUNDS + 1)]  # B is twice the nodes
    for k in range(ROUNDS + 1):
        np.testing.assert_allclose(models_at[k / 2], x, atol=1e-12)
        x = x - LR * descent(net.problem, np.tile(x, (5, 1))).mean(0)


@pytest.mark.parametrize("name", ["d-psgd", "sgp", "osgp", "ad-psgd"])
def test_a_node_that_weighs_more_takes_longer_steps_whatever_the_optimiser(name: str) -> None:
    """Adam makes the same step of a gradient and of its multiple: it is the step that is weighed."""
    weights = [0.4, 1.6, 1.0, 1.0, 1.0]
    net = started(name, weights=weights, optimizer="adam", lr=0.01)
    before = [node.algorithm._x for node in net.nodes]
    steps: dict[int, np.ndarray] = {}
    for rank, node in enumerate(net.nodes):
        change = node.algorithm._steps.change

        def told(b: int, x: Any, d: Any, weight: float = 1.0, rank: int = rank, change: Any = change) -> Any:
            found = change(b, x, d, weight)
            steps.setdefault(rank, np.abs(found.numpy()))
            return found

        node.algorithm._steps.change = told
    lockstep(net, 1)
    assert all(x is not None for x in before[0])
    for rank, weight in enumerate(weights):
        np.testing.assert_allclose(steps[rank], 0.01 * weight, rtol=1e-6)


@pytest.mark.parametrize("name", ["ring-allreduce", "d-psgd", "sgp", "ad-psgd", "async-sgd"])
@pytest.mark.parametrize("rule", ["nesterov", "nadam"])
def test_what_is_judged_is_the_iterate_that_the_optimiser_looks_ahead_from(name: str, rule: str) -> None:
    """As of one machine, and of rfast-tree: after a step of one node alone, θ = x + lr β u."""
    shape = topology_of(shape_for(name, "ring"), 1)
    net = Network(name, shape, Quadratic(1, 7), lr=0.01, optimizer=rule, global_batch=1)
    d = descent(net.problem, np.linspace(-1, 1, 7)[None])[0]
    net.compute(0)
    ahead = net.nodes[0].computing[0].model[0].numpy()
    net.finish(0)
    net.compute(0)
    at, judged = net.nodes[0].computing[0].model[0].numpy(), net.model()
    u = np.sign(d) if rule == "nadam" else d
    np.testing.assert_allclose(judged, ahead - 0.01 * u, rtol=1e-5)
    assert np.abs(at - judged).max() > 1e-4


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_a_ring_moves_each_model_nearly_twice_whatever_the_number_of_nodes(nodes: int) -> None:
    """2 (n − 1)/n models out of each node in a round."""
    net = Network("ring-allreduce", build("ring", nodes), Quadratic(nodes, 2 * nodes), bucket=2, lr=LR)
    sent = [0] * nodes

    class Counted(list[Any]):
        def append(self, item: Any) -> None:
            edge, frames = item
            sent[edge.src] += len(frames[1]) * (edge.graph == "A")
            super().append(item)

    net.flying = Counted(net.flying)
    lockstep(net, 4)
    assert sent == [4 * 2 * (nodes - 1) * 2 * 8] * nodes


def mixing(topology: Topology) -> np.ndarray:
    around = neighbours(topology)
    return np.array([[metropolis(around, i).get(j, 0.0) for j in range(5)] for i in range(5)])


@pytest.mark.parametrize("overlap", [0.0, 1.0])
@pytest.mark.parametrize("shape", ["ring", "binary-tree", "mesh", "exponential"])
def test_d_psgd_is_its_recursion_and_keeps_the_mean(shape: str, overlap: float) -> None:
    net = started("d-psgd", shape, options={"overlap": overlap})
    lockstep(net, ROUNDS)
    w = mixing(net.topology)
    np.testing.assert_allclose(w, w.T)
    np.testing.assert_allclose(w.sum(0), 1.0)
    x = np.tile(np.linspace(-1, 1, 7), (5, 1))
    for _ in range(ROUNDS):
        steps = LR * descent(net.problem, x)
        x = w @ x - steps if overlap else w @ (x - steps)
    np.testing.assert_allclose(models(net), x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("overlap", [0.0, 1.0])
@pytest.mark.parametrize("shape", ["ring", "mesh"])
def test_d_psgd_ends_at_the_fixed_point_of_its_recursion_nearer_to_the_optimum_for_a_smaller_step(
    shape: str, overlap: float
) -> None:
    """x = W x − γ V H (x − b) with V = W, or the identity where the exchange overlaps: on uneven data the nodes stay
    apart, and their mean beside the optimum."""
    bias = []
    for lr, rounds in ((0.4, 80), (0.1, 320)):
        net = started("d-psgd", shape, lr=lr, options={"overlap": overlap})
        lockstep(net, rounds)
        w, h, b = mixing(net.topology), net.problem.H, net.problem.b
        v = lr * (np.eye(5) if overlap else w)
        x = [np.linalg.solve(np.eye(5) - w + v @ np.diag(h[:, c]), v @ (h[:, c] * b[:, c])) for c in range(7)]
        np.testing.assert_allclose(models(net), np.transpose(x), atol=1e-6)
        bias.append(abs(np.mean(x, 1) - net.problem.optimum()).max())
    assert 0 < bias[1] < bias[0] / 2


def test_d_psgd_bears_larger_steps_where_the_exchange_does_not_overlap() -> None:
    """On the ring λ_min(W) < 0: with curvature L at every node, γL < 1 + λ_min(W) with overlap, and γL < 2 without."""
    least = np.linalg.eigvalsh(mixing(topology_of("ring", 5)))[0]
    assert least < 0
    ends = {}
    for overlap in (0.0, 1.0):
        net = started("d-psgd", "ring", lr=1.0, options={"overlap": overlap})
        net.problem.H = np.full_like(net.problem.H, 1.2)
        lockstep(net, 200)
        ends[overlap] = np.abs(models(net)).max()
    assert 1.0 + least < 1.2 < 2.0
    assert ends[0.0] < 10.0 < ends[1.0]


def shares(topology: Topology) -> np.ndarray:
    p = np.zeros((topology.nodes, topology.nodes))
    for j, to in enumerate(receivers(topology)):
        for i in (j, *to):
            p[i, j] = 1 / (1 + len(to))
    return p


def weights_of(net: Network) -> float:
    """Of all nodes and buckets, what waits to be taken up included."""
    nodes = [node.algorithm for node in net.nodes]
    return sum(sum(n._y) + sum(y for shares in n._waiting.values() for _, y in shares) for n in nodes)


@pytest.mark.parametrize("shape", ["ring", "binary-tree", "exponential", "random:2"])
def test_sgp_is_its_recursion_and_its_weights_sum_to_n(shape: str) -> None:
    net = started("sgp", shape)
    lockstep(net, ROUNDS)
    p, x, y = shares(net.topology), np.tile(np.linspace(-1, 1, 7), (5, 1)), np.ones((5, 1))
    for _ in range(ROUNDS):
        x, y = p @ (x - LR * descent(net.problem, x / y)), p @ y
    np.testing.assert_allclose(models(net), x / y, rtol=1e-11, atol=1e-12)
    assert weights_of(net) == pytest.approx(5 * len(net.layout.buckets))


@pytest.mark.parametrize("shape", ["ring", "binary-tree"])
def test_sgp_ends_at_the_fixed_point_of_its_recursion(shape: str) -> None:
    """x = P (x − γ H (x/y − b)) with y = P y, Σ y = n."""
    lr = 0.2
    net = started("sgp", shape, lr=lr)
    lockstep(net, 160)
    p, h, b = shares(net.topology), net.problem.H, net.problem.b
    y = np.linalg.matrix_power(p, 1000) @ np.ones(5)
    x = [np.linalg.solve(np.eye(5) - p + lr * p @ np.diag(h[:, c] / y), lr * p @ (h[:, c] * b[:, c])) for c in range(7)]
    np.testing.assert_allclose(models(net), np.transpose(x) / y[:, None], atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["sgp", "osgp"])
@pytest.mark.parametrize("shape", ["ring", "binary-tree", "exponential"])
def test_push_sum_keeps_the_sum_of_the_models_but_for_the_steps(shape: str, name: str, seed: int) -> None:
    """Σ x = n x⁰ − γ Σ g, whatever came when: what waits to be taken up included."""
    net, steps = started(name, shape, weights=[0.5, 1.5, 1.0, 1.2, 0.8]), []
    plain = net.problem.gradient

    def told(rank: int, x: torch.Tensor) -> torch.Tensor:
        g = plain(rank, x)
        steps.append(net.problem.weights[rank] * g.numpy())
        return g

    net.problem.gradient = told  # type: ignore[method-assign]
    lockstep(net, ROUNDS, seed)
    nodes = [node.algorithm for node in net.nodes]
    waiting = {b: sum(x for n in nodes for (_, of), s in n._waiting.items() if of == b for x, _ in s) for b in range(4)}
    mass = np.concatenate([(sum(n._mass[b] for n in nodes) + waiting[b]).numpy() for b in range(4)])
    np.testing.assert_allclose(mass, 5 * np.linspace(-1, 1, 7) - LR * np.sum(steps, 0), atol=1e-12)
    assert len(steps) == 5 * ROUNDS


@pytest.mark.parametrize("shape", ["ring", "exponential"])
def test_osgp_ends_near_the_optimum_nearer_for_a_smaller_step_and_keeps_its_weights(shape: str) -> None:
    """On uneven data a fixed step leaves a bias that is in proportion to it."""
    errors = []
    for lr, rounds in ((0.2, 60), (0.05, 200)):
        net = started("osgp", shape, lr=lr)
        lockstep(net, rounds)
        errors.append(abs(models(net).mean(0) - net.problem.optimum()).max())
        assert weights_of(net) == pytest.approx(5 * len(net.layout.buckets))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 2


def test_d_psgd_counts_a_round_as_its_steps_are_taken() -> None:
    """What is judged when all have computed k gradients is the mean after k steps, whatever has come of it."""
    net = started("d-psgd")
    lockstep(net, 3)
    mean = models(net).mean(0) - LR * descent(net.problem, models(net)).mean(0)
    for rank in range(5):
        net.compute(rank)
    for rank in range(5):
        net.finish(rank)
    shown = np.array([np.concatenate([t.numpy() for t in node.algorithm.export()]) for node in net.nodes])
    np.testing.assert_allclose(shown.mean(0), mean, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("given", ["2", "0.5", "-1"])
@pytest.mark.parametrize(("name", "switch"), [(name, s) for name, kind in METHODS.items() for s in kind.switches])
def test_a_switch_that_is_neither_0_nor_1_is_refused(name: str, switch: str, given: str) -> None:
    assert METHODS[name].options[switch] in (0.0, 1.0)
    assert options_of(METHODS[name], [f"{switch}=1"])[switch] == 1.0
    with pytest.raises(UsageError, match=f"{switch}={given}: must be 0 or 1"):
        options_of(METHODS[name], [f"{switch}={given}"])


@pytest.mark.parametrize("name", ["rennala", "amelie"])
def test_who_loses_gradients_of_an_older_model_takes_small_ones(name: str) -> None:
    assert Settings(nodes=4, algorithm=name, global_batch=256).report == 8


@pytest.mark.parametrize("shape", ["ring", "binary-tree", "exponential"])
def test_osgp_hands_on_in_this_round_what_came_while_its_gradient_was_computed(shape: str) -> None:
    """Where all are as fast and every word is half a round on its way: x½ = x + what came − γ g, of which shares go."""
    net = started("osgp", shape)
    p, begin = shares(net.topology), np.tile(np.linspace(-1, 1, 7), (5, 1))
    own = np.diag(np.diag(p))
    x, y, came_x, came_y = begin, np.ones((5, 1)), np.zeros((5, 7)), np.zeros((5, 1))
    while net.dirty or net.flying:  # the first model
        for edge, bucket in list(net.dirty):
            net.speak(edge, bucket)
        while net.flying:
            net.deliver(0)
    for _ in range(ROUNDS):
        for rank in range(5):
            net.compute(rank)
        while net.flying:
            net.deliver(0)
        for rank in range(5):
            net.finish(rank)
        while net.dirty:
            net.speak(*next(iter(net.dirty)))
        half, whole = x + came_x - LR * descent(net.problem, x / y), y + came_y
        x, y, came_x, came_y = own @ half, own @ whole, (p - own) @ half, (p - own) @ whole
    np.testing.assert_allclose(models(net), x / y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", RIVALS)
def test_at_the_end_the_root_has_the_mean_of_the_models(name: str) -> None:
    net = started(name)
    lockstep(net, 5)
    net.close(0.3)  # the last words repeat themselves
    each = models(net)
    each[0] = np.concatenate([x.numpy() for x in net.nodes[0].algorithm._x])  # what it had itself
    if RIVALS[name].judged_by_mean:
        np.testing.assert_allclose(net.model(), each.mean(0), rtol=1e-12, atol=1e-12)
    else:
        assert net.model().tolist() == each[0].tolist()


@pytest.mark.parametrize("name", [name for name in RIVALS if name not in NOBODY_WAITS])
def test_who_is_fast_waits_for_who_is_slow_and_that_is_counted(name: str) -> None:
    plan = Plan.make(
        Line,
        Settings(
            nodes=4,
            algorithm=name,
            topology="ring",
            optimizer="sgd",
            lr=0.05,
            compute="constant:0.1",
            straggler=("3:5",),
            samples=1600,
            algorithm_option=given_options(name),
        ),
    )
    assert plan.settings.report == 8  # the whole share of a round
    out = Simulator(plan).run()
    share = [node["waited_s"] / out.result.wall_s for node in out.result.per_node]
    assert share[3] < 0.05
    assert share[:3] == pytest.approx([0.8] * 3, abs=0.06)
    assert out.result.wall_s == pytest.approx(1600 / 32 * 0.5, rel=0.1)
    assert out.points[-1].extra["error"] < 0.1


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("d-psgd", {"drop": 0.1}, "--drop 0.1: --algorithm d-psgd counts on every message"),
        ("sgp", {"reorder": 0.5}, "--reorder 0.5: --algorithm sgp counts on every message"),
        ("ring-allreduce", {"topology": "binary-tree"}, "take --topology ring"),
        ("osgp", {"wire": "int8"}, "--wire int8: --algorithm osgp sends float32 only"),
    ],
)
def test_what_it_cannot_do_is_refused(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Plan.make(Line, Settings(**{"nodes": 4, "algorithm": name, "topology": "ring", **given}))


@pytest.mark.parametrize("name", RIVALS)
def test_a_node_in_trouble_is_told_of_though_all_wait_for_it(name: str) -> None:
    net = started(name, nodes=4)
    lockstep(net, 3)
    nan = tuple(torch.full((size,), float("nan"), dtype=torch.float64) for size in net.layout.sizes)
    for _ in range(40):
        net.now += 0.01
        for rank in range(4):
            net.compute(rank)
            if rank != 3:
                net.finish(rank)
        if net.nodes[3].computing:
            run = net.nodes[3].computing.pop()
            net.tell(3, GradientReady(net.now, nan, 1, 1.0, run.rounds, 0.1))
        for edge, bucket in list(net.dirty):
            net.speak(edge, bucket)
        while net.flying:
            net.deliver(0)
    assert net.nodes[0].algorithm.status().trouble == 3
    assert np.isfinite(net.model()).all()


@pytest.mark.parametrize("name", RIVALS)
def test_a_run_that_is_stopped_before_the_model_is_everywhere_ends(name: str) -> None:
    net = started(name, "line")
    net.close(0.0)
    assert sorted(net.leaving) == list(range(5))


@pytest.mark.parametrize("name", RIVALS)
def test_who_stands_still_for_a_while_loses_nothing(name: str) -> None:
    settings = Settings(
        nodes=6, algorithm=name, topology="ring", optimizer="sgd", lr=0.02, compute="constant:0.1", samples=3200
    )
    out = Simulator(Plan.make(Line, settings), halts=[Halt(1, 1.0, 6.0)]).run()
    assert out.result.missing == []
    assert out.result.samples >= 3200


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_gossip_keeps_the_mean_of_running_averages_and_long_runs_lose_no_digits(overlap: float) -> None:
    """The mean over nodes of what the gossip holds is that of the nodes' own, on a star too; and models that are held
    where they are, by mixing against a steady gradient, are there after a thousand steps to the digit."""
    entries = [Entry("w", (2,), "parameter", 0, 0), Entry("mean", (2,), "mean", -1, 2)]
    layout = Layout.build(entries, [Group(decay=False)], torch.float32, 2)
    topology = build("star", 4)
    initial, options = layout.split(torch.zeros(4)), {"overlap": overlap}
    nodes = [
        DPsgd(NodeConfig(rank=r, topology=topology, layout=layout, initial=initial, lr=0.1, options=options))
        for r in range(4)
    ]
    seen = []
    for round_ in range(1000):
        own = [torch.tensor([float(r + round_ % 7), 1.0]) for r in range(4)]
        slopes = [torch.full((2,), 0.7 * (1 if r % 2 else -1)) for r in range(4)]
        queue: list[Any] = []
        for r, node in enumerate(nodes):
            if not round_:
                node.handle(Started(0.0))
            told = node.handle(ModelWanted(0.0))
            told += node.handle(GradientReady(0.0, (slopes[r], own[r]), 1, 0.0, (0.0, 0.0), 0.1))
            queue += [a for a in told if isinstance(a, Send)]
        for send in queue:
            for action in nodes[send.edge.src].handle(LinkReady(0.0, send.edge, send.bucket)):
                if isinstance(action, Transmit):
                    nodes[send.edge.dst].handle(Received(0.0, action.message))
        held = torch.stack([node._x[1] for node in nodes])  # type: ignore[misc]
        torch.testing.assert_close(held.mean(0), torch.stack(own).mean(0), rtol=1e-4, atol=1e-4)
        if round_ in (200, 998):
            spread = torch.stack([node._x[0] for node in nodes])  # type: ignore[misc]
            seen.append(spread)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)
