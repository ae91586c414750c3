"""What every algorithm must keep, whatever it computes."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rfast_zmq.algorithms import ALGORITHMS, OURS, RIVALS
from rfast_zmq.core.events import (
    Edge,
    GradientReady,
    LinkReady,
    Message,
    ModelWanted,
    PeerLeft,
    Ready,
    Received,
    RunGradient,
    Send,
    Stamp,
    Started,
    StopWanted,
    Tick,
    Transmit,
)
from rfast_zmq.core.served import Served
from rfast_zmq.task.layout import Layout
from rfast_zmq.topology import FAMILIES, build

from .network import (
    KINDS,
    Network,
    Operation,
    Quadratic,
    Solo,
    digest,
    fingerprint,
    leaves,
    message_on,
    options_for,
    shape_for,
    topology_of,
)

SHAPES = [*FAMILIES, "random:2", "split-roots"]
OPERATIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 63)), max_size=120)

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
ours = pytest.mark.parametrize("name", OURS)
"""What holds where messages are lost, late or repeated; for the rivals' own promises see ``test_rivals.py``."""
WITHOUT_IDENTITY = {"d-psgd", "ad-psgd", "sgp", "osgp", "s-ab", *(n for n in RIVALS if issubclass(RIVALS[n], Served))}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def network(name: str, shape: str = "binary-tree", nodes: int = 5, dim: int = 3, **settings: Any) -> Network:
    topology = topology_of(shape_for(name, shape), nodes)
    return Network(name, topology, Quadratic(nodes, dim), **{"lr": 0.05, **settings})


def after(name: str, shape: str, operations: list[Operation], **settings: Any) -> Network:
    net = network(name, shape, **settings)
    for operation in operations:
        net.operate(operation)
    return net


# ------------------------------------------------------------------------------------------------ the state machine


@every_algorithm
@settings(max_examples=25)
@given(shape=st.sampled_from(SHAPES), operations=OPERATIONS)
def test_the_same_events_give_the_same_bits(name: str, shape: str, operations: list[Operation]) -> None:
    one, other = after(name, shape, operations), after(name, shape, operations)
    assert one.prints() == other.prints()
    assert one.flying == other.flying
    assert [repr(node.algorithm.status()) for node in one.nodes] == [repr(n.algorithm.status()) for n in other.nodes]


@every_algorithm
@settings(max_examples=25)
@given(shape=st.sampled_from(SHAPES), operations=OPERATIONS, first=st.booleans())
def test_no_tensor_is_written_to_once_handed_over(
    name: str, shape: str, operations: list[Operation], first: bool
) -> None:
    net = after(name, shape, operations, every_initial=first)
    for node in net.nodes:
        if (model := node.algorithm.export()) is not None:
            net.remember(*model)
    for operation in operations:
        net.operate(operation)
    net.check_nothing_was_written_to()


@every_algorithm
@settings(max_examples=40)
@given(shape=st.sampled_from(SHAPES), operations=OPERATIONS, again=st.integers(0, 63), older=st.integers(0, 3))
def test_I4_a_duplicate_or_older_packet_leaves_the_state_bit_identical(
    name: str, shape: str, operations: list[Operation], again: int, older: int
) -> None:
    net = after(name, shape, operations)
    if not net.flying:
        return
    edge, frames = net.flying[again % len(net.flying)]
    node = net.nodes[edge.dst]
    message = node.codec.decode(frames)
    node.algorithm.handle(Received(net.now, message))
    before, stale = fingerprint(node.algorithm), node.algorithm.status().stale
    late = Message(
        edge,
        message.bucket,
        message.stamp._replace(counter=message.stamp.counter - older),
        message.payload + 1,
        message.numbers,
    )
    assert node.algorithm.handle(Received(net.now, late)) == [], "nothing is relayed on a dropped packet"
    assert fingerprint(node.algorithm) == before
    assert node.algorithm.status().stale == stale + 1


@every_algorithm
@given(stamps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_I3_accepted_stamps_strictly_increase(name: str, stamps: list[tuple[int, int]]) -> None:
    """A stamp is (incarnation, counter): a restarted node's first packets are newer than all it sent before."""
    solo = Solo(topology_of("line", 2), 0, name=name)
    newest, accepted = (-1, -1), 0
    for stamp in stamps:
        solo.hear("A", 1, [1.0], stamp=stamp)
        if stamp > newest:
            newest, accepted = stamp, accepted + 1
        assert solo.node.status().accepted == accepted
    assert solo.node.status().accepted + solo.node.status().stale == len(stamps)


@every_algorithm
def test_I3_each_bucket_has_stamps_of_its_own(name: str) -> None:
    """A message of one bucket that comes late is no older for what was heard of another."""
    layout = Layout.vector(2, dtype=torch.float64, bucket=1)
    solo = Solo(topology_of("line", 2), 0, (0.0, 0.0), name=name, layout=layout)
    solo.hear("A", 1, [1.0], stamp=(1, 5), bucket=0)
    solo.hear("A", 1, [1.0], stamp=(1, 4), bucket=1)
    assert (solo.node.status().accepted, solo.node.status().stale) == (2, 0)
    solo.hear("A", 1, [1.0], stamp=(1, 4), bucket=0)
    assert (solo.node.status().accepted, solo.node.status().stale) == (2, 1)


@ours
def test_I3_a_restarted_node_is_heard_at_once(name: str) -> None:
    net = network(name)
    net.train(60, drop=0.0)
    net.restart(4, incarnation=2)
    old = net.nodes[1].algorithm.status()
    while net.nodes[4].algorithm.export() is None:
        net.turn(1, random.Random(0), 0.0)
    net.flying.clear()
    net.compute(4)
    net.finish(4)
    net.speak(Edge("A", 4, 1))
    assert net.nodes[1].codec.decode(net.flying[-1][1]).stamp == Stamp(2, 1)
    net.deliver(len(net.flying) - 1)
    assert net.nodes[1].algorithm.status().accepted > old.accepted


@every_algorithm
@every_shape
def test_stamps_that_a_node_makes_strictly_increase_on_each_edge(name: str, shape: str) -> None:
    net = network(name, shape, bucket=2)
    newest: dict[Edge, Stamp] = {}
    for rank in [0, 1, 2, 3, 4] * (40 if name == "ad-psgd" else 4):
        net.compute(rank)
        net.finish(rank)
        for edge, bucket in list(net.dirty):
            net.speak(edge, bucket)
        while net.flying:
            edge, frames = net.flying[0]
            stamp = net.nodes[edge.dst].codec.decode(frames).stamp
            assert stamp > newest.get(edge, Stamp(-1, -1))
            newest[edge] = stamp
            net.deliver(0)
    assert set(newest) == {edge for node in net.nodes for edge in node.algorithm.out_edges}


@ours
@every_shape
def test_I5_memory_does_not_grow(name: str, shape: str) -> None:
    """One slot per edge and direction: after 60 turns a node holds as many numbers and tensors as after 360."""
    net = network(name, shape, nodes=4)
    net.train(60, drop=0.3)

    def held() -> list[list[str]]:
        return [[path for path, _ in leaves(node.algorithm)] for node in net.nodes]

    early = held()
    net.train(300, drop=0.3, seed=1)
    assert held() == early


# ------------------------------------------------------------------------------------------------ what arrives

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=64)
INTS = st.integers(-1, 2**62)
DRAWN = {bool: st.booleans(), int: INTS, float: FLOATS, list: st.lists(st.integers(0, 2**31 - 1), max_size=8)}


@st.composite
def any_event(draw: st.DrawFn, node: Any) -> Any:
    """Anything a driver may tell, with messages of any values that the codec lets through."""
    edges, buckets = node.in_edges, len(node.config.layout.buckets)
    kinds = ["wanted", "link", "left", "stop", "tick"] + ["received"] * 6 * bool(edges)
    kinds += ["gradient"] * (node.export() is not None)
    now, bucket = draw(st.floats(0, 100)), draw(st.integers(0, buckets - 1))
    match draw(st.sampled_from(kinds)):
        case "received":
            edge = draw(st.sampled_from(edges))
            numbers = {n: draw(DRAWN[kind]) for n, kind in node.numbers(edge.graph).items()}
            size = node.config.layout.sizes[bucket]
            payload = torch.tensor(draw(st.lists(FLOATS, min_size=size, max_size=size)), dtype=torch.float64)
            return Received(now, Message(edge, bucket, Stamp(draw(INTS) + 1, draw(INTS) + 1), payload, numbers))
        case "gradient":
            pieces = tuple(
                torch.full((size,), draw(st.floats()), dtype=torch.float64) for size in node.config.layout.sizes
            )
            return GradientReady(now, pieces, draw(st.integers(1, 9)), draw(st.floats()), (0.0,) * buckets, 0.1)
        case "wanted":
            return ModelWanted(now)
        case "link":
            return LinkReady(now, draw(st.sampled_from(node.out_edges)), bucket)
        case "left":
            return PeerLeft(now, draw(st.integers(0, 4)))
        case "stop":
            return StopWanted(now)
        case _:
            return Tick(now)


@every_algorithm
@settings(max_examples=60)
@given(data=st.data(), shape=st.sampled_from(["binary-tree", "ring", "star"]), rank=st.integers(0, 4))
def test_nothing_well_formed_makes_it_raise(name: str, data: st.DataObject, shape: str, rank: int) -> None:
    """Whatever the values, in any order, before a model or after; and what it says then can be encoded, and names no
    node that there is not."""
    net = Network(name, topology_of(shape, 5), Quadratic(5, 3), bucket=2, every_initial=False)
    node, codec = net.nodes[rank].algorithm, net.nodes[rank].codec
    for _ in range(data.draw(st.integers(0, 25))):
        for action in node.handle(data.draw(any_event(node))):
            if isinstance(action, Transmit):
                codec.encode(action.message)
    for edge in node.out_edges:
        for action in node.handle(LinkReady(1.0, edge, 0)):
            if isinstance(action, Transmit):
                codec.encode(action.message)
    status = node.status()
    assert {status.slowest_rank, status.trouble, *status.set_aside} <= {-1, *range(5)}
    node.export()
    node.last_record()


@ours
def test_sums_that_no_header_could_carry_are_still_said(name: str) -> None:
    """Five children, each with the largest count that travels, and with sets of ranks that nobody has."""
    solo = Solo(topology_of("split-roots", 7), 1, name=name)
    star = Solo(topology_of("star", 7), 0, name=name)
    for node in (solo, star):
        for edge in node.node.in_edges:
            if edge.graph == "A":
                numbers: dict[str, Any] = {
                    "samples": 2**62,
                    "aside": list(range(2**31 - 400, 2**31 - 1)),
                    "trouble": 99,
                }
                if name == "rfast-tree":
                    numbers |= {"c": 2**62, "w": 1.0}
                node.hear("A", edge.src, [1.0], **numbers)
        assert node.node.status().trouble == -1
    parent = Solo(topology_of("line", 3), 1, name=name)
    if name == "rfast":
        parent.hear("W", 0, [0.0])
    for counter in range(5):
        parent.hear("A", 2, [1.0], stamp=(1, counter), samples=2**62, aside=[2**31 - 1] * 1000)
    parent.gradient([1.0], samples=5)
    message = parent.say("A", 0)
    net = Network(name, topology_of("line", 3), Quadratic(3, 1))
    decoded = net.nodes[0].codec.decode([bytes(frame) for frame in net.nodes[1].codec.encode(message)])
    assert decoded.numbers["aside"] == []


@every_algorithm
@every_shape
def test_the_edges_of_two_ends_are_the_same(name: str, shape: str) -> None:
    for nodes in (3, 5, 6):
        net = network(name, shape, nodes=nodes)
        out = [edge for node in net.nodes for edge in node.algorithm.out_edges]
        into = [edge for node in net.nodes for edge in node.algorithm.in_edges]
        assert len(set(out)) == len(out)
        assert sorted(out) == sorted(into)
        assert all(edge.src == rank for rank, node in enumerate(net.nodes) for edge in node.algorithm.out_edges)
        graphs = {"W": net.topology.pull, "A": net.topology.push}
        assert name in RIVALS or all((edge.src, edge.dst) in graphs[edge.graph] for edge in out)


@every_algorithm
def test_before_any_model_there_is_nothing_to_say_and_nothing_to_compute(name: str) -> None:
    node = Solo(topology_of("binary-tree", 7), 1, name=name)
    assert node.tell(ModelWanted) == []
    assert node.node.export() is None
    for dst in (3, 4):
        assert node.tell(LinkReady, Edge("W", 1, dst), 0) == []
    assert node.hear("W", 0, [2.0]) != []
    assert node.x == [2.0]


@every_algorithm
def test_with_several_buckets_it_waits_for_each_of_them(name: str) -> None:
    topology = topology_of("line", 3)
    net = Network(name, topology, Quadratic(3, 3), bucket=1, every_initial=False)
    node = net.nodes[1].algorithm
    edge = Edge("W", 0, 1)
    for bucket in range(3):
        assert node.handle(ModelWanted(0.0)) == []
        node.handle(Received(0.0, message_on(node, edge, torch.ones(1, dtype=torch.float64), (1, bucket), bucket)))
    assert sum(isinstance(action, RunGradient) for action in node.handle(ModelWanted(0.0))) == 1


@ours
def test_a_loss_or_gradient_that_is_not_finite_stays_out_and_is_told(name: str) -> None:
    net = network(name, "line", nodes=3)
    net.train(30, drop=0.0)
    net.nodes[2].computing.clear()
    net.compute(2)
    run = net.nodes[2].computing.pop()
    net.tell(2, GradientReady(net.now, (torch.full((3,), float("nan"), dtype=torch.float64),), 1, 1.0, run.rounds, 0.1))
    for _ in range(2):
        net.turn(1, random.Random(0), 0.0, 0.0, 0.0)
    assert net.nodes[0].algorithm.status().trouble == 2
    assert np.isfinite(net.model()).all()


# ------------------------------------------------------------------------------------------------ what it computes

LR = {"star": 0.06, "binary-tree": 0.12, "ring": 0.25}


def lr_of(name: str, shape: str) -> float:
    """For ``rfast`` the trackers of a tree's root hold the sum over nodes, those of a mesh about their mean."""
    return LR.get(shape, 0.8) if name == "rfast" else 0.4


@ours
@every_shape
def test_it_reaches_the_optimum_of_a_strongly_convex_quadratic_over_lossy_links(name: str, shape: str) -> None:
    """30 % lost, 10 % twice, 10 % out of order, a straggler, uneven objectives."""
    net = network(name, shape, nodes=5, lr=lr_of(name, shape), every_initial=name == "rfast")
    net.train(1600 if name == "rfast" else 800, straggler=3)
    assert net.error() < 1e-3
    for rank in range(5):
        assert abs(net.model(rank) - net.problem.optimum()).max() < 2e-3
    net.check_nothing_was_written_to()


@ours
@pytest.mark.parametrize("shape", ["binary-tree", "ring"])
def test_a_node_of_more_weight_counts_more(name: str, shape: str) -> None:
    problem = Quadratic(4, 3, weights=[0.4, 1.6, 0.8, 1.2])
    net = Network(name, topology_of(shape, 4), problem, lr=lr_of(name, shape))
    even = Quadratic(4, 3).optimum()
    net.train(1000, drop=0.2)
    assert net.error() < 1e-3
    assert abs(net.problem.optimum() - even).max() > 0.05


@ours
@settings(max_examples=15)
@given(shape=st.sampled_from([shape for shape in SHAPES if shape != "double-tree"]), seed=st.integers(0, 999))
def test_several_buckets_are_the_same_as_one(name: str, shape: str, seed: int) -> None:
    """R-FAST is elementwise. Here all buckets of a message share its fate (that they need not is the network's), and
    travel along one tree."""
    nets = [network(name, shape, dim=4, bucket=bucket, lr=lr_of(name, shape)) for bucket in (None, 1, 3)]
    draw = np.random.default_rng(seed)
    for rank, fate in zip(draw.integers(0, 5, 60), draw.random((60, 64)), strict=True):
        for net in nets:
            net.now += 0.01
            net.finish(int(rank))
            net.compute(int(rank))
            lost: dict[Edge, bool] = {}
            for _ in range(3):
                spoken = list(net.dirty)
                for edge, bucket in spoken:
                    net.speak(edge, bucket)
                for edge, frames in net.flying:
                    if not lost.setdefault(edge, bool(fate[len(lost)] < 0.3)):
                        net.flying_arrives(edge, frames)
                net.flying.clear()
    for rank in range(5):
        for other in nets[1:]:
            np.testing.assert_allclose(other.model(rank), nets[0].model(rank), rtol=1e-12, atol=1e-12)


@every_algorithm
def test_a_single_node_is_plain_gradient_descent(name: str) -> None:
    """(``diloco`` without its outer momentum, which fifty steps do not wear off.)"""
    options = {**options_for(name), **({"outer_lr": 1.0, "outer_momentum": 0.0} if name == "diloco" else {})}
    net = network(name, "binary-tree", nodes=1, lr=0.5, global_batch=1, options=options)
    assert net.nodes[0].algorithm.out_edges == ()
    x = net.model()
    for _ in range(50):
        net.compute(0)
        net.finish(0)
    net.compute(0)
    if name == "rfast-tree":
        for _ in range(50):
            x = x - 0.5 * net.problem.H[0] * (x - net.problem.b[0])
        np.testing.assert_allclose(net.model(), x, rtol=1e-12)
    assert net.error() < 1e-6
    assert net.close(0.0) <= 1


# ------------------------------------------------------------------------------------------------ how it ends


@ours
@settings(max_examples=15)
@given(operations=OPERATIONS)
def test_with_two_trees_each_bucket_keeps_to_its_own(name: str, operations: list[Operation]) -> None:
    """What is under way of bucket b is on an edge of tree b mod 2 (``rfast`` has no trees: on any edge of the graphs);
    and both trees are used."""
    net = network(name, "double-tree", nodes=6, bucket=2, dim=7)
    assert len(net.layout.buckets) == 4
    for node in net.nodes:
        for edge in node.algorithm.out_edges:
            for bucket in node.algorithm.buckets_along(edge):
                tree = net.topology.trees[bucket % 2]
                above = (edge.src, edge.dst) if edge.graph == "W" else (edge.dst, edge.src)
                assert name == "rfast" or above in tree.edges
    used = {
        (edge, b % 2)
        for node in net.nodes
        for edge in node.algorithm.out_edges
        for b in node.algorithm.buckets_along(edge)
    }
    assert len(used) >= 2 * 2 * 5, "each tree has five edges down and five up"
    for operation in operations:
        net.operate(operation)
        for edge, frames in net.flying:
            bucket = net.nodes[edge.dst].codec.decode(frames).bucket
            assert bucket in net.nodes[edge.src].algorithm.buckets_along(edge)


@every_algorithm
@every_shape
@pytest.mark.parametrize("drop", [0.0, 0.6])
def test_a_run_closes_under_loss_and_the_identity_holds_then(name: str, shape: str, drop: float) -> None:
    """Everybody leaves, the root last; and nobody computes after it heard of the stop."""
    net = network(name, shape, nodes=5, bucket=2, lr=0.02)
    net.train(40, drop=drop)
    net.close(drop)
    assert sorted(net.leaving) == list(range(5))
    assert net.leaving[-1] == net.topology.root
    for rank, parent in enumerate(net.topology.pull_tree.parent):
        assert parent is None or net.leaving.index(rank) < net.leaving.index(parent), "a child leaves first"
    records = {rank: node.algorithm.last_record() for rank, node in enumerate(net.nodes)}
    error = net.nodes[0].algorithm.identity_error(records, net.topology.root)
    assert error is None if name in WITHOUT_IDENTITY else error < 1e-12
    for rank in range(5):
        assert net.nodes[rank].algorithm.status().stopping
        assert net.nodes[rank].algorithm.handle(ModelWanted(net.now)) == []


@ours
def test_a_node_that_never_answers_is_waited_for_ten_rounds_and_no_longer(name: str) -> None:
    net = network(name, "binary-tree", nodes=3, lr=0.02)
    net.train(60, drop=0.0)
    dead = net.nodes[2]
    dead.left = True  # deaf and dumb from here on
    assert net.nodes[0].algorithm.handle(Tick(net.now)) == []
    net.close(0.2)
    assert net.nodes[0].left
    assert net.nodes[1].left


@ours
def test_the_root_stops_the_run_when_the_samples_are_done(name: str) -> None:
    net = network(name, "line", nodes=2, stop_samples=20, samples=3)
    net.train(100, drop=0.0)
    assert net.nodes[0].stopping
    assert net.nodes[1].stopping
    assert 20 <= net.nodes[0].algorithm.status().samples <= 26


@every_algorithm
def test_status_before_anything_and_started_alone(name: str) -> None:
    node = Solo(topology_of("line", 2), 1, name=name)
    status = node.node.status()
    assert (status.samples, status.gradients, status.accepted, status.stale) == (0, 0, 0, 0)
    assert node.node.handle(Started(0.0)) == []
    assert digest(torch.zeros(1)) == digest(torch.zeros(1))


@ours
def test_the_identitys_error_means_something_where_gradients_have_vanished(name: str) -> None:
    """At an exact optimum float32 leaves only denormals: an error among those is none."""
    tiny = torch.tensor([1.4e-45, 0.0])
    records = {
        rank: {"own": tiny, "sum": tiny * 3, "samples": 1.0, "identity": 7e-46, "scale": 1.4e-45} for rank in range(2)
    }
    assert ALGORITHMS[name].identity_error(records, 0) < 1e-20


@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 4), (0, 3, 4), (0, 1, 4)])
@ours
def test_a_gradient_told_in_parts_is_the_same_and_is_news_of_each_bucket_once(name: str, cuts: tuple[int, ...]) -> None:
    layout = Layout.vector(8, dtype=torch.float64, bucket=2)
    whole, parts = (Solo(build("binary-tree", 3), 1, [0.0] * 8, name=name, layout=layout) for _ in range(2))
    gradient = tuple(torch.full((2,), float(b), dtype=torch.float64) for b in range(4))
    news = []
    for solo in (whole, parts):
        for b in range(4):
            solo.hear("W", 0, [0.0, 0.0], bucket=b)
        rounds = solo.model().rounds
        told = [(0, gradient)] if solo is whole else [(a, gradient[a:b]) for a, b in pairwise(cuts)]
        actions = [
            action
            for first, part in told
            for action in solo.tell(GradientReady, part, 1, 0.5, rounds, 1.0, True, first)
        ]
        news.append(sorted(action.bucket for action in actions if isinstance(action, Send)))
        assert sum(isinstance(action, Ready) for action in actions) == 1
        assert solo.node.status().own_samples == 1
    assert news[0] == news[1]
    for b in range(4):
        ours, theirs = (solo.say("A", 0, b) for solo in (whole, parts))
        assert torch.equal(ours.payload, theirs.payload)
        assert ours.numbers == theirs.numbers
