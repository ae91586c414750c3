"""The methods whose root owns the model do what their papers say: which gradients count, how much, where it ends."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rfast_zmq import Plan, Settings
from rfast_zmq.errors import UsageError
from tests.loopback.tasks import Line

from .network import Network, Quadratic, topology_of

LR, X0 = 0.2, np.linspace(-1, 1, 7)
ANSWERED, GATHERED = ["async-sgd", "ringmaster", "ringleader"], ["rennala", "amelie"]
FAMILY = ANSWERED + GATHERED


def started(name: str, shape: str = "binary-tree", nodes: int = 5, lr: float = LR, **more: object) -> Network:
    """Everybody has the first model. B is twice the nodes, a gradient is of one sample."""
    problem = Quadratic(nodes, 7, weights=np.linspace(0.5, 1.5, nodes).tolist())
    net = Network(name, topology_of(shape, nodes), problem, bucket=2, every_initial=False, lr=lr, **more)
    flush(net)
    return net


def flush(net: Network) -> None:
    while net.dirty or net.flying:
        for edge, bucket in list(net.dirty):
            net.speak(edge, bucket)
        while net.flying:
            net.deliver(0)


def give(net: Network, *ranks: int) -> None:
    """Each in turn computes a gradient at its newest model, and it reaches the root; so does the news reach all."""
    for rank in ranks:
        net.compute(rank)
        net.finish(rank)
        flush(net)


def gradient(net: Network, rank: int, x: np.ndarray) -> np.ndarray:
    return net.problem.weights[rank] * net.problem.H[rank] * (x - net.problem.b[rank])


def version(net: Network) -> int:
    return net.nodes[net.topology.root].algorithm.version


def delays_of(net: Network) -> list[int]:
    """Of each gradient that reaches the root from now on, the updates since the model that it is of."""
    root, delays = net.nodes[net.topology.root].algorithm, []
    arrived = root._arrived

    def told(rank, version, samples, gradient):  # type: ignore[no-untyped-def]
        delays.append(root.version - version)
        arrived(rank, version, samples, gradient)

    root._arrived = told
    return delays


def wander(net: Network, steps: int, seed: int, slow: int | None = None) -> np.ndarray:
    """Anything happens in any order, but for messages of one edge; gives the gradients of each node."""
    draw, done = random.Random(seed), np.zeros(len(net.nodes))
    for _ in range(steps):
        net.now += 0.01
        rank = draw.randrange(len(net.nodes))
        if rank == slow and draw.random() < 0.75:
            continue
        done[rank] += bool(net.nodes[rank].computing)
        net.finish(rank)
        net.compute(rank)
        for edge, bucket in list(net.dirty)[: draw.randrange(16)]:
            net.speak(edge, bucket)
        while net.flying and draw.random() < 0.9:
            first = draw.choice([edge for edge, _ in net.flying])
            net.deliver(next(k for k, (edge, _) in enumerate(net.flying) if edge == first))
    return done


def at_once(net: Network, steps: int, seed: int, slow: int) -> np.ndarray:
    """Who is ready when is drawn, and messages take no time, as in the papers; gives the gradients of each node."""
    draw, done = random.Random(seed), np.zeros(len(net.nodes))
    for _ in range(steps):
        rank = draw.randrange(len(net.nodes))
        if rank != slow or draw.random() < 0.25:
            done[rank] += bool(net.nodes[rank].computing)
            net.finish(rank)
            flush(net)
            net.compute(rank)
    return done


def model_of(net: Network, rank: int) -> np.ndarray:
    return np.concatenate([x.numpy() for x in net.nodes[rank].algorithm.export()])


@pytest.mark.parametrize("name", GATHERED)
def test_models_go_down_and_everybody_has_the_newest(name: str) -> None:
    net = started(name)
    give(net, *[0, 1, 2, 3, 4] * 5)
    assert version(net) > 1
    for node in net.nodes:
        assert node.algorithm.version == version(net)
        np.testing.assert_array_equal(model_of(net, node.algorithm.rank), net.model())


@pytest.mark.parametrize("name", ANSWERED)
def test_the_answer_to_a_gradient_is_the_model_after_it_and_goes_to_nobody_beside_the_way(name: str) -> None:
    """On a binary tree of five: 0 above 1 and 2, 1 above 3 and 4."""
    net, models = started(name), {}
    give(net, *range(5))  # which is what ringleader's first update takes
    for rank in (2, 3, 0, 1):
        give(net, rank)
        models[rank] = version(net), net.model()
        assert net.nodes[rank].algorithm.version == version(net)
        np.testing.assert_array_equal(model_of(net, rank), net.model())
    assert models[2][0] < models[3][0] < models[0][0] < models[1][0]
    for rank in (2, 3):
        assert net.nodes[rank].algorithm.version == models[rank][0]
        np.testing.assert_array_equal(model_of(net, rank), models[rank][1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", ["binary-tree", "line", "star", "exponential"])
def test_async_sgd_steps_along_every_gradient_once(shape: str, seed: int) -> None:
    net, seen = started("async-sgd", shape), []
    plain = net.problem.gradient

    def told(rank, x):  # type: ignore[no-untyped-def]
        g = plain(rank, x)
        seen.append(net.problem.weights[rank] * g.numpy())
        return g

    net.problem.gradient = told  # type: ignore[method-assign]
    wander(net, 200, seed)
    flush(net)
    assert version(net) == len(seen) > 40
    np.testing.assert_allclose(net.model(), X0 - LR / 10 * np.sum(seen, 0), atol=1e-12)


@pytest.mark.parametrize(("between", "counts"), [(2, True), (3, False), (5, False)])
def test_ringmaster_ignores_what_is_as_old_as_the_threshold(between: int, counts: bool) -> None:
    net = started("ringmaster", options={"delay_threshold": 3.0})
    net.compute(3)  # at the first model
    give(net, *[1, 2, 4, 1, 2][:between])
    before = net.model()
    net.finish(3)
    flush(net)
    after = before - LR / 10 * gradient(net, 3, X0) if counts else before
    np.testing.assert_allclose(net.model(), after, atol=1e-12)
    assert version(net) == between + counts


def test_rennala_steps_along_the_mean_of_a_batch_of_the_present_model_whoever_gave_it() -> None:
    net = started("rennala", options={"batch_gradients": 3.0})
    net.compute(3)  # at the first model
    give(net, 1, 1)
    assert version(net) == 0
    give(net, 2)
    x1 = X0 - LR * 3 / 10 * (2 * gradient(net, 1, X0) + gradient(net, 2, X0)) / 3
    np.testing.assert_allclose(net.model(), x1, atol=1e-12)
    net.finish(3)  # of an older model: ignored
    flush(net)
    give(net, 4, 0)
    assert version(net) == 1
    give(net, 0)
    x2 = x1 - LR * 3 / 10 * (gradient(net, 4, x1) + 2 * gradient(net, 0, x1)) / 3
    np.testing.assert_allclose(net.model(), x2, atol=1e-12)


def test_amelie_waits_for_everybody_and_each_mean_counts_the_same() -> None:
    net = started("amelie", options={"batch_gradients": 5.0})
    give(net, 0, 1, 1, 1, 2, 3, 0)
    assert version(net) == 0
    give(net, 4)
    mean = np.mean([gradient(net, rank, X0) for rank in range(5)], 0)
    np.testing.assert_allclose(net.model(), X0 - LR * mean, atol=1e-12)


def test_amelie_goes_by_the_harmonic_mean_of_how_many_each_gave() -> None:
    """S = 10 of 5 nodes: two of each, or one of one and more of the others, 5/(1 + 3/3 + 1/2) = 2."""
    net = started("amelie", options={"batch_gradients": 10.0})
    give(net, 0, *[1, 2, 3, 4] * 2, *[1, 2])
    assert version(net) == 0
    give(net, 3)
    assert version(net) == 1


def test_ringleader_updates_once_for_each_node_and_round_from_a_table_of_all() -> None:
    net = started("ringleader")
    give(net, 0, 1, 1, 2, 3)
    assert version(net) == 0, "phase 1 ends when everybody has given one"
    table = {rank: [gradient(net, rank, X0)] for rank in range(5)}
    table[1] *= 2
    x = X0

    def step(x: np.ndarray) -> np.ndarray:
        return x - LR / 5 * np.mean([np.mean(of_node, 0) for of_node in table.values()], 0)

    give(net, 4)
    x = step(x)
    np.testing.assert_allclose(net.model(), x, atol=1e-12)
    give(net, 4)  # it had its turn: this is for the next round
    assert version(net) == 1
    later = gradient(net, 4, x)
    for rank in (2, 0, 1, 3):
        table[rank].append(gradient(net, rank, model_of(net, rank)))  # which may be that of its last answer
        give(net, rank)
        x = step(x)
        np.testing.assert_allclose(net.model(), x, atol=1e-12)
    assert version(net) == 5
    table = {4: [later]}
    for rank in (0, 1, 2, 3):
        assert version(net) == 5
        table[rank] = [gradient(net, rank, model_of(net, rank))]
        give(net, rank)
    np.testing.assert_allclose(net.model(), step(x), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_ringleader_uses_no_gradient_older_than_two_rounds(seed: int) -> None:
    net = started("ringleader", "star")
    delays = delays_of(net)
    at_once(net, 600, seed, slow=2)
    assert max(delays) <= 2 * 5 - 2
    assert max(delays) > 2, "some are old"


@pytest.mark.parametrize("name", FAMILY)
def test_a_straggler_counts_for_less_where_gradients_do_and_for_as_much_where_nodes_do(name: str) -> None:
    more = {"options": {"delay_threshold": 1000.0}} if name == "ringmaster" else {}
    net = started(name, lr=0.05 if name in ("async-sgd", "ringmaster") else 0.5, **more)
    done, later = at_once(net, 800, 1, slow=2), []
    for seed in range(9):
        done += at_once(net, 60, seed + 7, slow=2)
        later.append(net.model())
    problem = net.problem
    counts = problem.weights * done / done.mean()
    by_gradients = counts @ (problem.H * problem.b) / (counts @ problem.H)
    near, far = problem.optimum(), by_gradients
    if name in ("async-sgd", "ringmaster", "rennala"):
        near, far = far, near
    found = np.mean(later, 0)
    assert done[2] < 0.4 * done.mean()
    assert np.linalg.norm(found - near) < 0.6 * np.linalg.norm(found - far)


def test_amelie_takes_the_means_as_they_are_when_there_is_enough() -> None:
    """A node that gave more has a better mean, which replaces the one before, on its way through a relay too."""
    net = started("amelie", "line", options={"batch_gradients": 5.0})
    seen = noise(net)
    give(net, 4, 3, 4, 2, 3, 1, 4, 4, 1)
    assert version(net) == 0
    give(net, 0)
    mean = np.mean([np.mean(of_node, 0) for of_node in seen.values()], 0)
    np.testing.assert_allclose(net.model(), X0 - LR * mean, atol=1e-12)


def noise(net: Network) -> dict[int, list[np.ndarray]]:
    """From now on gradients of one model differ; gives what each node's were."""
    seen: dict[int, list[np.ndarray]] = {rank: [] for rank in range(len(net.nodes))}
    plain, draw = net.problem.gradient, random.Random(1)

    def noisy(rank, x):  # type: ignore[no-untyped-def]
        g = plain(rank, x) + draw.random()
        seen[rank].append(net.problem.weights[rank] * g.numpy())
        return g

    net.problem.gradient = noisy  # type: ignore[method-assign]
    return seen


def test_a_step_of_rennala_is_of_b_samples_and_its_mean_is_weighted_by_them() -> None:
    """B is ten samples."""
    net = started("rennala", "line")
    seen, samples = noise(net), {0: 1, 1: 2, 2: 3, 3: 3, 4: 1}
    for rank in range(5):
        assert version(net) == 0
        net.samples = samples[rank]
        give(net, rank)
    assert version(net) == 1
    mean = np.sum([samples[rank] / 10 * seen[rank][0] for rank in range(5)], 0)
    np.testing.assert_allclose(net.model(), X0 - LR * mean, atol=1e-12)


def test_a_step_of_amelie_is_of_b_samples_by_their_harmonic_mean_and_weighs_those_of_a_node_by_them() -> None:
    """B is ten samples: the harmonic mean of what each gave is to be two."""
    net = started("amelie", "line")
    seen, given = noise(net), [(0, 2), (1, 1), (2, 2), (3, 2), (4, 2), (1, 1)]
    for rank, samples in [(4, 4), *given]:
        assert version(net) == 0
        net.samples = samples
        give(net, rank)
    assert version(net) == 1
    of_4 = (4 * seen[4][0] + 2 * seen[4][1]) / 6
    mean = (seen[0][0] + (seen[1][0] + seen[1][1]) / 2 + seen[2][0] + seen[3][0] + of_4) / 5
    np.testing.assert_allclose(net.model(), X0 - LR * mean, atol=1e-12)


@pytest.mark.parametrize("name", GATHERED)
@pytest.mark.parametrize("shape", ["line", "split-roots", "exponential"])
@pytest.mark.parametrize("seed", range(3))
def test_relays_add_up_and_a_step_is_of_gradients_of_the_present_model_alone(name: str, shape: str, seed: int) -> None:
    """In any order: each step is along what its paper says, of gradients that were computed at that very model."""
    net, at = started(name, shape, options={"batch_gradients": 10.0}), {}
    root, plain = net.nodes[net.topology.root].algorithm, net.problem.gradient
    update = root._update

    def told(rank, x):  # type: ignore[no-untyped-def]
        at.setdefault(x.numpy().tobytes(), []).append(rank)
        return plain(rank, x)

    def stepping(direction, samples):  # type: ignore[no-untyped-def]
        x = net.model()
        by_node = np.array([gradient(net, rank, x) for rank in range(5)])
        d = np.concatenate([part.numpy() for part in direction])
        counts = np.linalg.lstsq(by_node.T, d, rcond=None)[0]
        if name == "amelie":
            np.testing.assert_allclose(counts, 1 / 5, atol=1e-9)
        else:
            most = np.bincount(at[x.tobytes()], minlength=5)
            assert samples >= 10
            np.testing.assert_allclose(counts * samples, np.round(counts * samples), atol=1e-6)
            assert (np.round(counts * samples) <= most).all()
            assert counts.sum() == pytest.approx(1)
        update(direction, samples)

    net.problem.gradient, root._update = told, stepping  # type: ignore[method-assign]
    wander(net, 1500, seed)
    assert version(net) > 5


@pytest.mark.parametrize("name", GATHERED)
def test_nobody_waits_where_gradients_are_gathered_and_a_report_is_of_all_there_is_as_it_leaves(name: str) -> None:
    """Twelve gradients, and room for one bucket after each: each report of four buckets is of those until it began."""
    net = started(name, "line", nodes=3, options={"batch_gradients": 100.0})
    node, edge = net.nodes[2], next(e for e in net.nodes[2].algorithm.out_edges if e.graph == "A")
    seen, came = noise(net)[2], []
    whole = net.nodes[1].algorithm._whole
    net.nodes[1].algorithm._whole = lambda *told: came.append(told) or whole(*told)
    for _ in range(12):
        net.compute(2)
        assert node.computing
        net.now += 1.0
        net.finish(2)
        net.speak(edge, next(b for e, b in net.dirty if e == edge))
        net.deliver(0)
    assert node.algorithm.status().waited_s == 0.0
    ends = [(0, 1), (1, 5), (5, 9)] if name == "rennala" else [(0, 1), (0, 5), (0, 9)]
    for (_, parts, numbers), (first, end) in zip(came, ends, strict=True):
        found = np.concatenate([part.numpy() for part in parts])
        np.testing.assert_allclose(found, np.mean(seen[first:end], 0), atol=1e-12)
        if name == "rennala":
            assert (numbers["gradients"], numbers["batch"]) == (end - first, end - first)
        else:
            assert numbers["inverse"] == pytest.approx(1 / end)


@pytest.mark.parametrize("name", GATHERED)
def test_numbers_that_no_child_could_mean_are_no_report(name: str) -> None:
    net = started(name, "line", nodes=2, optimizer="nadam", options={"batch_gradients": 2.0})
    root, parts = net.nodes[0].algorithm, net.layout.split(torch.ones(7, dtype=torch.float64))
    give(net, 0)
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        for more in ({"batch": 1, "gradients": bad}, {"batch": int(bad == 0) - 1, "gradients": 5.0}, {"inverse": bad}):
            if more.keys() <= root.data_numbers.keys():
                root._whole(1, parts, {"version": 0, **more})
    root._whole(1, parts, {"version": 5, "batch": 5, "gradients": 5.0, "inverse": 0.1})  # of no model there is
    assert version(net) == 0
    np.testing.assert_allclose(net.model(), X0, atol=1e-12)
    give(net, 1)
    assert version(net) == 1


@pytest.mark.parametrize("name", FAMILY)
def test_an_edge_that_is_asked_without_news_says_again_what_it_said_last(name: str) -> None:
    """As idle edges are with --resend: what follows must not lack what only a part of was said."""
    net = started(name, "line", nodes=3, **({"options": {"delay_threshold": 1.0}} if name == "ringmaster" else {}))
    edge = next(e for e in net.nodes[1].algorithm.out_edges if e.graph == "W")
    for _ in range(6):
        give(net, 0, 1)
        for bucket in (0, 2):
            net.speak(edge, bucket)  # without being marked
        flush(net)
        net.compute(2)
        assert net.nodes[2].computing, "it was answered"
        net.finish(2)
        flush(net)
    assert net.nodes[2].algorithm.status().gradients == 6


@pytest.mark.parametrize("name", ANSWERED)
def test_a_node_begins_no_gradient_before_its_last_was_dealt_with(name: str) -> None:
    """Whether the root took a step along it or not; and its waiting is counted."""
    net = started(name, "line", nodes=3)
    node, relay = net.nodes[2], net.nodes[1]
    for _ in range(3):
        net.compute(2)
        net.finish(2)
        net.now += 1.0
        net.compute(2)
        assert not node.computing
        node.said.clear()
        flush(net)
        assert any(type(action).__name__ == "Ready" for action in node.said)
        net.compute(2)
        assert node.computing
        net.finish(2)
        flush(net)
    assert node.algorithm.status().gradients == 6
    assert node.algorithm.status().waited_s == pytest.approx(3.0)
    assert relay.algorithm.status().waited_s == 0.0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", ["binary-tree", "line"])
def test_async_sgds_mean_delay_is_that_of_its_paper(shape: str, seed: int) -> None:
    """With n nodes at most n - 1 updates come between a model and the gradient of it, on the mean; messages may take
    as long as they like."""
    net = started("async-sgd", shape)
    delays = delays_of(net)
    wander(net, 800, seed, slow=3)
    assert len(delays) > 100
    assert 1 < np.mean(delays) <= 5 - 1


@pytest.mark.parametrize("seed", range(6))
def test_a_gradient_stays_whole_on_its_way_through_relays(seed: int) -> None:
    """Four buckets; those of a relay's own gradient and of what it passes on leave in whatever order there is."""
    net, came = started("async-sgd", "line"), []
    root, plain = net.nodes[0].algorithm, net.problem.gradient
    given: dict[tuple[int, bytes], int] = {}

    def told(rank, x):  # type: ignore[no-untyped-def]
        g = plain(rank, x)
        given[rank, (net.problem.weights[rank] * g).numpy().tobytes()] = 1
        return g

    def arriving(rank, version, samples, gradient):  # type: ignore[no-untyped-def]
        came.append((rank, np.concatenate([g.numpy() for g in gradient]).tobytes()))
        arrived(rank, version, samples, gradient)

    arrived = root._arrived
    net.problem.gradient, root._arrived = told, arriving  # type: ignore[method-assign]
    wander(net, 400, seed)
    assert len(came) > 60
    assert {rank for rank, _ in came} == set(range(5))
    assert all(of in given for of in came)


def test_a_busy_edge_says_the_whole_of_one_version_before_the_next() -> None:
    """Otherwise a child that hears one bucket for each update would never have a whole model."""
    net = started("rennala", "line", nodes=2, options={"batch_gradients": 1.0})
    child, edge = net.nodes[1].algorithm, next(e for e in net.nodes[0].algorithm.out_edges if e.graph == "W")
    whole = []
    for _ in range(12):  # an update, and room for one message
        net.compute(0)
        net.finish(0)
        bucket = next(b for e, b in net.dirty if e == edge)
        net.speak(edge, bucket)
        net.deliver(0)
        whole.append(child.version)
    assert whole == [0] * 3 + [1] * 4 + [5] * 4 + [9]


@pytest.mark.parametrize(
    ("name", "option"),
    [("ringmaster", "delay_threshold=-1"), ("rennala", "batch_gradients=1.5"), ("amelie", "batch_gradients=-2")],
)
def test_numbers_that_will_not_do_are_refused(name: str, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option}: must be a whole number"):
        Plan.make(Line, Settings(algorithm=name, optimizer="sgd", algorithm_option=(option,)))


def test_two_trees_are_refused() -> None:
    with pytest.raises(UsageError, match="double-tree: --algorithm async-sgd has one tree up"):
        Plan.make(Line, Settings(algorithm="async-sgd", optimizer="sgd", topology="double-tree"))
