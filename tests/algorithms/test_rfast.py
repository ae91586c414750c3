"""``rfast``: a test for each statement of DESIGN sections 1 and 2."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate.reference import random_graphs

from rfast_zmq.algorithms import NodeConfig, RFast, algorithm
from rfast_zmq.core.events import Edge, GradientReady, LinkReady, ModelWanted, RunGradient, Send, Transmit
from rfast_zmq.errors import UsageError
from rfast_zmq.task.layout import Entry, Group, Layout
from rfast_zmq.topology import FAMILIES, Topology, build, from_edges

from .network import KINDS, Network, Operation, Quadratic, Solo, fingerprint, topology_of

OPERATIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 63)), max_size=150)
PAPER = ["binary-tree", "line", "ring", "exponential", "mesh"]
LR = {"binary-tree": 0.1, "line": 0.4, "ring": 0.2, "exponential": 0.6, "mesh": 0.6, "split-roots": 0.3}
# Node 1 pulls from 0 (w .25) and 2 (w .25), and pushes to 0 (a .5) and 2 (a .25).
HUB = from_edges(
    "hub", 3, [(0, 1, 0.25), (2, 1, 0.25), (1, 2), (1, 0)], [(1, 0, 0.5), (1, 2, 0.25), (2, 1, 0.5), (0, 1)]
)


def hub(lr: float = 0.5) -> Solo:
    """Node 1 of HUB, started at x⁰ = 4 (it takes it from node 0) with gradient 2."""
    solo = Solo(HUB, 1, name="rfast", lr=lr)
    solo.hear("W", 0, [4.0])
    assert solo.x == [4.0]
    solo.gradient([2.0])
    return solo


def state(solo: Solo) -> Any:
    return solo.node._state[0]


def random_topology(seed: int, nodes: int) -> Topology:
    W, A, _ = random_graphs(np.random.default_rng(seed), nodes)
    edges = [[(int(j), int(i), float(m[i, j])) for i, j in np.argwhere(m) if i != j] for m in (W, A)]
    return from_edges("random", nodes, edges[0], edges[1])


# ------------------------------------------------------------------------------------------------ section 1


def test_start_x_is_x0_and_z_is_g_and_all_sums_are_zero() -> None:
    s = state(hub())
    assert (s.x.item(), s.g.item(), s.z.item()) == (4.0, 2.0, 2.0)
    assert {j: v.item() for j, v in s.rho.items()} == {0: 0.0, 2: 0.0}
    assert {j: v.item() for j, v in s.used_rho.items()} == {0: 0.0, 2: 0.0}
    assert {j: v.item() for j, v in s.heard_v.items()} == {0: 4.0, 2: 4.0}


def test_what_was_heard_before_the_start_is_kept() -> None:
    """Nodes may start in any order: what a neighbour said before the first model is not thrown away."""
    solo = Solo(HUB, 1, name="rfast", lr=0.5)
    solo.hear("A", 2, [8.0])
    solo.hear("W", 2, [5.0])
    solo.hear("W", 0, [4.0])
    assert solo.x == [4.0]
    assert {j: v.item() for j, v in state(solo).heard_v.items()} == {0: 4.0, 2: 5.0}
    solo.gradient([2.0])
    solo.model()
    solo.gradient([2.0])
    assert state(solo).used_rho[2].item() == 8.0


def test_S1_v_is_x_minus_gamma_z() -> None:
    solo = hub()
    solo.model()
    assert solo.say("W", 0).payload.item() == 4 - 0.5 * 2


def test_S2_x_is_the_weighted_mean_of_v_and_the_newest_models_heard() -> None:
    solo = hub()
    solo.hear("W", 2, [8.0])
    solo.hear("W", 2, [16.0])
    assert solo.x == [0.5 * 3 + 0.25 * 4 + 0.25 * 16]


def test_S3_the_tracker_takes_what_is_new_and_gives_it_away_by_the_columns_of_A() -> None:
    solo = hub()
    solo.model()
    solo.hear("A", 0, [1.0])
    solo.hear("A", 2, [8.0])
    solo.gradient([3.0])
    h = 2 + (1 - 0) + (8 - 0) + 3 - 2
    s = state(solo)
    assert s.z.item() == 0.25 * h
    assert {j: v.item() for j, v in s.rho.items()} == {0: 0.5 * h, 2: 0.25 * h}
    assert s.g.item() == 3.0


def test_S4_the_running_sums_are_sent_and_stamped_with_a_counter_an_edge() -> None:
    solo = hub()
    solo.model()
    solo.gradient([3.0])
    first, other, again = solo.say("A", 0), solo.say("A", 2), solo.say("A", 0)
    assert [m.stamp.counter for m in (first, other, again)] == [1, 1, 2]
    assert [m.payload.item() for m in (first, other, again)] == [1.5, 0.75, 1.5]


def test_S4_the_local_model_leaves_before_the_gradient_is_there() -> None:
    solo = hub()
    marks = solo.tell(ModelWanted)
    assert {a.edge for a in marks if isinstance(a, Send)} == {Edge("W", 1, 0), Edge("W", 1, 2)}


def test_S5_the_buffers_become_what_S3_used_and_not_what_came_since() -> None:
    solo = hub()
    solo.model()
    solo.hear("A", 2, [8.0])
    solo.gradient([3.0])
    solo.hear("A", 2, [9.0])
    assert state(solo).used_rho[2].item() == 8.0
    solo.model()
    z = state(solo).z.item()
    solo.gradient([3.0])
    assert state(solo).z.item() == 0.25 * (z + 1.0)


@given(lost=st.lists(st.booleans(), max_size=12))
def test_a_later_packet_makes_good_every_earlier_one_that_was_lost(lost: list[bool]) -> None:
    """ρ is cumulative: with the last packet heard, the state is the same whatever became of those before it."""
    lossy, lossless = hub(), hub()
    for solo in (lossy, lossless):
        solo.model()
    for k, gone in enumerate([*lost, False], start=1):
        lossless.hear("A", 2, [float(k * k)], stamp=(1, k))
        if not gone:
            lossy.hear("A", 2, [float(k * k)], stamp=(1, k))
    for solo in (lossy, lossless):
        solo.gradient([3.0])
        solo.node._accepted = 0
    assert fingerprint(lossy.node) == fingerprint(lossless.node)


def test_the_two_graphs_share_a_root_or_are_refused_with_both_root_sets() -> None:
    with pytest.raises(UsageError, match=r"reached from nodes \{0\}.*drains to \{1\}.*share no root"):
        from_edges("apart", 2, [(0, 1)], [(0, 1)])


def test_it_speaks_on_every_edge_of_both_graphs() -> None:
    net = Network("rfast", topology_of("split-roots", 5), Quadratic(5, 1))
    out = {edge for node in net.nodes for edge in node.algorithm.out_edges}
    assert out == {Edge("W", *e) for e in net.topology.pull} | {Edge("A", *e) for e in net.topology.push}


@pytest.mark.parametrize("seed", range(8))
def test_the_graphs_need_be_neither_the_same_nor_strongly_connected(seed: int) -> None:
    """Random spanning trees with a common root and random further edges, random weights."""
    nodes = 2 + seed % 4
    net = Network("rfast", random_topology(seed, nodes), Quadratic(nodes, 2), lr=0.15)
    start = max(abs(net.model(rank) - net.problem.optimum()).max() for rank in range(nodes))
    draw = random.Random(seed)
    for _ in range(12):
        for turn in range(250):
            net.turn(turn % nodes if turn % 3 else draw.randrange(nodes), draw, 0.2)
        net.handed.clear()
        if net.error() < 0.01 * start:
            return
    raise AssertionError(net.error())


def test_it_takes_plain_descent_only_and_says_so() -> None:
    with pytest.raises(UsageError, match="--algorithm rfast takes sgd"):
        algorithm("rfast", "nadam")
    with pytest.raises(UsageError, match=r"--algorithm rfest: one of .* \(did you mean rfast\?\)"):
        algorithm("rfest", "sgd")


# ------------------------------------------------------------------------------------------------ section 2


def identities(net: Network) -> float:
    """Largest |z − (g + Σ ρ̃ − Σ ρ)| over nodes and coordinates."""
    states = [s for node in net.nodes for s in node.algorithm._state if s.g is not None]
    return max((float(s.identity()[0].abs().max()) for s in states), default=0.0)


def mass(net: Network, b: int = 0) -> float:
    """Largest |Σ z + Σ_edges (ρ − ρ̃) − Σ g|, the edges paired by their two ends."""
    s = [node.algorithm._state[b] for node in net.nodes]
    if any(one.g is None for one in s):
        return 0.0
    total = sum(one.z - one.g for one in s)
    for src, dst in net.topology.push:
        total = total + s[src].rho[dst] - s[dst].used_rho[src]
    return float(total.abs().max())


@settings(max_examples=60)
@given(shape=st.sampled_from([*FAMILIES, "split-roots"]), operations=OPERATIONS)
def test_I1_the_local_identity_is_exact_at_every_instant(shape: str, operations: list[Operation]) -> None:
    """Under any loss, delay, reordering and duplication; and so is its sum over the network."""
    net = Network("rfast", topology_of(shape, 4), Quadratic(4, 3), lr=0.1)
    for rank in range(4):
        net.compute(rank)
        net.finish(rank)
    for operation in operations:
        net.operate(operation)
        assert identities(net) < 1e-12
        assert mass(net) < 1e-12


@pytest.mark.parametrize("shape", PAPER)
def test_I1_holds_over_thousands_of_steps_and_after_a_restart(shape: str) -> None:
    net = Network("rfast", topology_of(shape, 5), Quadratic(5, 3), lr=LR[shape], every_initial=False)
    net.train(500, drop=0.3)
    net.restart(3, incarnation=2)
    net.train(500, drop=0.3, seed=1)
    scale = max(float(r["scale"]) for r in (n.algorithm.last_record() for n in net.nodes))
    assert identities(net) < 1e-12 * max(1.0, scale)


def test_I1_holds_while_a_run_diverges_too_so_it_never_stands_in_for_a_convergence_test() -> None:
    net = Network("rfast", topology_of("ring", 4), Quadratic(4, 3), lr=20.0)
    net.train(600, drop=0.1)
    assert net.error() > 100
    records = {rank: node.algorithm.last_record() for rank, node in enumerate(net.nodes)}
    assert net.nodes[0].algorithm.identity_error(records, 0) < 1e-12


def test_identity_error_sees_a_packet_that_was_counted_twice() -> None:
    net = Network("rfast", topology_of("ring", 4), Quadratic(4, 3), lr=0.1)
    net.train(100)
    broken = net.nodes[2].algorithm._state[0]
    broken.z = broken.z + 0.01
    records = {rank: node.algorithm.last_record() for rank, node in enumerate(net.nodes)}
    assert net.nodes[0].algorithm.identity_error(records, 0) > 1e-4


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), nodes=st.integers(1, 6))
def test_I2_rows_of_W_and_columns_of_A_sum_to_1(seed: int, nodes: int) -> None:
    for topology in (random_topology(seed, nodes), topology_of("exponential", nodes)):
        W, A = topology.matrices()
        np.testing.assert_allclose(W.sum(1), 1, atol=1e-12)
        np.testing.assert_allclose(A.sum(0), 1, atol=1e-12)
        net = Network("rfast", topology, Quadratic(nodes, 1))
        for rank, node in enumerate(net.nodes):
            s = node.algorithm._state[0]
            assert s.w_self + sum(s.w.values()) == pytest.approx(1, abs=1e-15)
            assert s.a_self + sum(s.a.values()) == pytest.approx(1, abs=1e-15)
            assert s.w_self == pytest.approx(W[rank, rank], abs=1e-12)


# ------------------------------------------------------------------------------------------------ what it reaches


@pytest.mark.parametrize("shape", [*PAPER, "split-roots"])
def test_it_converges_at_60_percent_loss_with_a_straggler(shape: str) -> None:
    net = Network("rfast", topology_of(shape, 5), Quadratic(5, 3), lr=LR[shape] / 2)
    start = net.error()
    for stretch in range(8):
        net.train(1000, seed=stretch, drop=0.6, straggler=4)
        if net.error() < 1e-3 * start:
            break
    assert net.error() < 1e-3 * start
    assert identities(net) < 1e-11


@pytest.mark.parametrize("shape", ["binary-tree", "ring", "mesh"])
def test_the_error_falls_geometrically_on_a_strongly_convex_objective(shape: str) -> None:
    """Equal stretches multiply it by about the same factor, down to rounding: no floor, hence no bias."""
    net = Network("rfast", topology_of(shape, 4), Quadratic(4, 2), lr=LR[shape])
    errors = []
    for stretch in range(6):
        net.train(400, seed=stretch, drop=0.2)
        errors.append(max(abs(net.model(rank) - net.problem.optimum()).max() for rank in range(4)))
    falls = np.diff(np.log(np.maximum(errors, 1e-15)))
    while errors and errors[-1] < 1e-13:  # at rounding it has nowhere to go
        errors, falls = errors[:-1], falls[:-1]
    assert len(falls) >= 2
    assert falls.max() < -0.5, errors
    assert falls.mean() < -1.0, errors


def test_there_is_no_bias_on_uneven_data_however_uneven_the_speeds() -> None:
    """Node 3 of a ring computes a third as often and wants something else: the optimum is still that of the mean."""
    problem = Quadratic(4, 3)
    problem.b[3] += 20
    net = Network("rfast", topology_of("ring", 4), problem, lr=0.2)
    net.train(3500, drop=0.2, straggler=3)
    assert net.error() < 1e-3
    by_speed = Quadratic(4, 3, weights=[1, 1, 1, 1 / 3])
    by_speed.b = problem.b
    assert abs(net.model() - by_speed.optimum()).max() > 1


def test_weight_decay_enters_the_gradient() -> None:
    net = Network("rfast", topology_of("binary-tree", 3), Quadratic(3, 2), lr=0.2, weight_decay=0.5)
    net.train(1000, drop=0.1)
    H, b = net.problem.H, net.problem.b
    np.testing.assert_allclose(net.model(), (H * b).mean(0) / (H.mean(0) + 0.5), atol=1e-6)


def test_running_averages_are_not_mixed() -> None:
    entries = [Entry("p", (1,), "parameter", 0, 0), Entry("m", (1,), "mean", -1, 1), Entry("v", (1,), "var", -1, 2)]
    layout = Layout.build(entries, [Group(True)], torch.float64, 8)
    solo = Solo(topology_of("line", 2), 0, (1.0, 0.0, 1.0), name="rfast", layout=layout, lr=0.5)
    solo.model()
    solo.gradient([2.0, 7.0, 9.0])
    assert solo.x == [0.0, 7.0, 9.0]
    solo.gradient([2.0, 8.0, 9.5])
    assert solo.theta[1:] == [8.0, 9.5]


def test_a_rate_that_falls_with_progress() -> None:
    """The schedule is a function of rounds: samples of all nodes over B."""
    solo = Solo(
        topology_of("line", 1), 0, (8.0,), name="rfast", lr=1.0, global_batch=4, lr_schedule=lambda r: 1 / (1 + r)
    )
    solo.model()
    solo.gradient([1.0], samples=4)
    assert solo.rounds == 1.0
    assert solo.x == [7.5]
    solo.gradient([1.0], samples=8)
    assert solo.rounds == 3.0
    assert solo.x == [7.25]


def test_before_its_first_gradient_an_edge_says_zero() -> None:
    solo = Solo(HUB, 0, (1.0,), name="rfast")
    (action,) = solo.node.handle(LinkReady(0.0, Edge("A", 0, 1), 0))
    assert isinstance(action, Transmit)
    assert action.message.payload.item() == 0.0


def test_a_parameter_groups_factor_scales_its_step() -> None:
    """Two groups, the second with a tenth of γ: after one step each has moved by its own γ times the gradient."""
    entries = [Entry("a", (2,), "parameter", 0, 0), Entry("b", (3,), "parameter", 1, 2)]
    layout = Layout.build(entries, [Group(True), Group(True, 0.1)], torch.float64, 100)
    start = torch.zeros(5, dtype=torch.float64)
    node = RFast(
        NodeConfig(rank=0, topology=build("line", 1), layout=layout, initial=(start,), optimizer="sgd", lr=0.5)
    )
    for _ in range(2):
        (run,) = (a for a in node.handle(ModelWanted(0.0)) if isinstance(a, RunGradient))
        node.handle(GradientReady(0.0, (torch.ones(5, dtype=torch.float64),), 1, 0.0, run.rounds, 1.0))
    exported = node.export()
    assert exported is not None
    assert exported[0].tolist() == pytest.approx([-0.5, -0.5, -0.05, -0.05, -0.05])
