"""Invariant I2 and what hangs on it: weights, roots, spanning trees."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfast_zmq.errors import UsageError
from rfast_zmq.topology import FAMILIES, Endpoints, Topology, Tree, build, from_edges
from rfast_zmq.topology.graphs import from_trees

FAMILY_AND_SIZE = [(family, nodes) for family in FAMILIES for nodes in range(1, 21)]
FAMILY_AND_SIZE += [(f"random:{out}", nodes) for nodes in (2, 3, 8, 20) for out in {1, 2, nodes - 1} if out < nodes]
HERE = Endpoints("tcp://127.0.0.1:7001", "tcp://127.0.0.1:7002")


@pytest.mark.parametrize(("family", "nodes"), FAMILY_AND_SIZE)
def test_every_family_holds_invariant_i2(family: str, nodes: int) -> None:
    topology = build(family, nodes)
    w, a = topology.matrices()
    assert w.shape == a.shape == (nodes, nodes)
    assert w.dtype == a.dtype == np.float64
    np.testing.assert_allclose(w.sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.sum(axis=0), 1, rtol=0, atol=1e-12)
    assert (np.diag(w) > 0).all()
    assert (np.diag(a) > 0).all()
    assert topology.root == min(set(topology.pull_roots) & set(topology.push_roots)) == 0


@pytest.mark.parametrize(("family", "nodes"), FAMILY_AND_SIZE)
def test_trees_span_along_edges_of_their_graph(family: str, nodes: int) -> None:
    topology = build(family, nodes)
    if topology.trees:
        return  # given, not found: the next test
    check_tree(topology.pull_tree, topology.root, {(src, dst) for src, dst in topology.pull})
    check_tree(topology.push_tree, topology.root, {(dst, src) for src, dst in topology.push})
    assert topology.depth == max(topology.pull_tree.depth, topology.push_tree.depth)


@pytest.mark.parametrize("nodes", range(1, 34))
def test_a_double_trees_nodes_have_children_in_one_tree_at_most(nodes: int) -> None:
    topology = build("double-tree", nodes)
    assert topology.pull_trees == topology.push_trees == topology.trees
    inner = [{above for above, _ in tree.edges} - {topology.root} for tree in topology.trees]
    assert not inner[0] & inner[1]
    for tree in topology.trees:
        assert sorted(child for _, child in tree.edges) == [node for node in range(nodes) if node != topology.root]
        assert max(tree.levels) == int(math.log2(nodes))
        assert all((above, child) in topology.pull and (child, above) in topology.push for above, child in tree.edges)


@pytest.mark.parametrize(
    ("parents", "text"),
    [
        ([[None, 0, 0], [None, 0]], "tree 1 has 2 nodes and root 0: all trees must span the 3 nodes from one root, 0"),
        (
            [[None, 0, 0], [1, None, 1]],
            "tree 1 has 3 nodes and root 1: all trees must span the 3 nodes from one root, 0",
        ),
        ([[None, 2, 1]], "tree 0 does not reach nodes {1, 2}"),
        ([[None, 3, 0]], "tree 0 has a parent 3: want ranks in 0 … 2"),
        ([[None, None, 1]], "tree 0 has 2 nodes without a parent: want one, the root"),
    ],
)
def test_trees_that_do_not_span_are_refused(parents: list[list[int | None]], text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        from_trees("mine", 3, parents)


def test_a_tree_needs_its_edges_in_both_graphs() -> None:
    tree = build("double-tree", 3).trees[0]
    with pytest.raises(UsageError, match=re.escape("tree 0 needs the push edge 1 → 0, which is not there")):
        Topology("mine", ("0", "1", "2"), {(0, 1): 0.5, (0, 2): 0.5}, {(2, 0): 0.5}, trees=(tree,))


def check_tree(tree: Tree, root: int, outward: set[tuple[int, int]]) -> None:
    """The tree spans, is breadth-first, and takes the lowest rank wherever it has a choice."""
    nodes = len(tree.parent)
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(outward)
    distance = nx.single_source_shortest_path_length(graph, root)
    assert tree.root == root
    assert tree.parent[root] is None
    for node in range(nodes):
        assert tree.level(node) == distance[node]
        for child in tree.children[node]:
            assert tree.parent[child] == node
        if node != root:
            nearer = [other for other in graph.predecessors(node) if distance[other] == distance[node] - 1]
            assert tree.parent[node] == min(nearer)
    assert sum(map(len, tree.children)) == nodes - 1
    assert all(list(children) == sorted(children) for children in tree.children)
    assert tree.depth == max(distance.values())


@st.composite
def edge_sets(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
    nodes = draw(st.integers(1, 7))
    pairs = [(src, dst) for src in range(nodes) for dst in range(nodes) if src != dst]
    some = st.lists(st.sampled_from(pairs), unique=True) if pairs else st.just([])
    return nodes, draw(some), draw(some)


@given(edge_sets())
@settings(deadline=None)
def test_any_pair_of_graphs_is_taken_exactly_if_it_shares_a_root(
    case: tuple[int, list[tuple[int, int]], list[tuple[int, int]]],
) -> None:
    nodes, pull, push = case
    roots = [reaching_all(nodes, pull), reaching_all(nodes, [(dst, src) for src, dst in push])]
    if not roots[0] & roots[1]:
        with pytest.raises(UsageError) as caught:
            from_edges("drawn", nodes, pull, push)
        for shown in roots:
            assert (f"{{{', '.join(map(str, sorted(shown)))}}}" if shown else "no single node") in str(caught.value)
        return
    topology = from_edges("drawn", nodes, pull, push)
    assert (set(topology.pull_roots), set(topology.push_roots)) == (roots[0], roots[1])
    assert topology.root == min(roots[0] & roots[1])
    check_tree(topology.pull_tree, topology.root, set(pull))
    check_tree(topology.push_tree, topology.root, {(dst, src) for src, dst in push})


def reaching_all(nodes: int, edges: list[tuple[int, int]]) -> set[int]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(edges)
    return {node for node in range(nodes) if len(nx.descendants(graph, node)) == nodes - 1}


def test_ties_take_the_lowest_rank_not_the_first_found() -> None:
    # 7 hangs on 3 and on 6; a queue would meet 6 first, for its parent 1 is lower than 3's parent 2.
    down = [(0, 1), (0, 2), (1, 6), (2, 3), (6, 7), (3, 7), (0, 4), (0, 5)]
    topology = from_edges("tie", 8, down, [(dst, src) for src, dst in down])
    assert topology.pull_tree.parent[7] == topology.push_tree.parent[7] == 3


def test_the_two_graphs_may_differ() -> None:
    """W a chain 1 → 0 → 2, A everything straight to 1: the root is 1, the trees are not alike."""
    topology = from_edges("differ", 3, [(1, 0), (0, 2)], [(0, 1), (2, 1)])
    assert topology.root == 1
    assert topology.pull_tree.parent == (1, None, 0)
    assert topology.push_tree.parent == (1, None, 1)
    assert (topology.depth, topology.widest) == (2, 2)
    assert [topology.pull_in(node) for node in range(3)] == [(1,), (), (0,)]
    assert [topology.pull_out(node) for node in range(3)] == [(2,), (0,), ()]
    assert [topology.push_in(node) for node in range(3)] == [(), (0, 2), ()]
    assert [topology.push_out(node) for node in range(3)] == [(1,), (), (1,)]


def test_even_weights_are_those_of_the_design() -> None:
    topology = build("binary-tree", 7)
    assert topology.pull[0, 1] == topology.push[1, 0] == 0.5
    assert topology.pull_self == (1.0, *[0.5] * 6)
    assert topology.push_self == (1.0, *[0.5] * 6)
    assert build("exponential", 7).pull[0, 1] == build("exponential", 7).push[0, 4] == 1 / 4


def test_given_weights_leave_the_rest_to_the_others_and_to_the_node_itself() -> None:
    topology = from_edges("mixed", 3, [(0, 2, 0.5), (1, 2), (0, 1, 1)], [(2, 0, 0.25), (2, 1), (1, 0, 1)])
    assert topology.pull[1, 2] == topology.pull_self[2] == 0.25
    assert topology.push[2, 1] == topology.push_self[2] == 0.375
    assert topology.pull_self[1] == topology.push_self[1] == 0.0  # an own weight of 0 is allowed
    w, a = topology.matrices()
    np.testing.assert_array_equal(w, [[1, 0, 0], [1, 0, 0], [0.5, 0.25, 0.25]])
    np.testing.assert_array_equal(a, [[1, 1, 0.25], [0, 0, 0.375], [0, 0, 0.375]])


def test_ten_tenths_are_one() -> None:
    topology = from_edges("tenths", 11, [(0, i) for i in range(1, 11)], [(i, 0) for i in range(1, 11)])
    tenths = {**topology.pull, **{(i, 10): 0.1 for i in range(10)}}
    assert Topology("tenths", topology.names, tenths, topology.push).pull_self[10] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("family", "nodes", "tree", "all_edges"),
    [
        ("binary-tree", 7, 12, 12),
        ("ring", 7, 12, 14),
        ("exponential", 7, 12, 42),
        ("complete", 4, 6, 24),
        ("line", 1, 0, 0),
    ],
)
def test_messages_per_round(family: str, nodes: int, tree: int, all_edges: int) -> None:
    topology = build(family, nodes)
    assert topology.messages_per_round("rfast-tree") == tree
    assert topology.messages_per_round("rfast") == all_edges


def test_a_topology_is_a_value() -> None:
    one, other = build("mesh", 7), build("mesh", 7)
    _ = one.pull_tree, one.root
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != build("mesh", 8)
    assert one.endpoints == (None,) * 7


@pytest.mark.parametrize(
    ("family", "nodes", "edges"),
    [
        ("binary-tree", 4, {(0, 1), (0, 2), (1, 3)}),
        ("line", 3, {(0, 1), (1, 2)}),
        ("star", 3, {(0, 1), (0, 2)}),
        ("ring", 3, {(0, 1), (1, 2), (2, 0)}),
        ("exponential", 4, {(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3), (2, 0), (3, 1)}),
        ("mesh", 3, {(0, 1), (1, 0), (0, 2), (2, 0)}),
        ("complete", 2, {(0, 1), (1, 0)}),
    ],
)
def test_families_have_the_edges_they_say(family: str, nodes: int, edges: set[tuple[int, int]]) -> None:
    assert set(build(family, nodes).pull) == edges


@given(nodes=st.integers(2, 15), out=st.integers(1, 14), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_random_graphs_are_strongly_connected_and_repeat(nodes: int, out: int, seed: int) -> None:
    out = min(out, nodes - 1)
    topology = build(f"random:{out}", nodes, seed)
    assert topology == build(f"random:{out}", nodes, seed)
    assert all(len(topology.pull_out(node)) == out for node in range(nodes))
    assert topology.pull_roots == topology.push_roots == tuple(range(nodes))


def test_a_seed_gives_the_same_random_graph_everywhere() -> None:
    """Every host builds it for itself, so the draw must not depend on the Python at hand."""
    assert sorted(build("random:2", 4, seed=1).pull) == [(0, 2), (0, 3), (1, 0), (1, 3), (2, 1), (2, 3), (3, 0), (3, 2)]
    assert build("random:2", 9, seed=1) != build("random:2", 9, seed=2)


W = {(0, 1): 0.5, (1, 2): 0.5}
A = {(1, 0): 0.5, (2, 1): 0.5}


@pytest.mark.parametrize(
    ("pull", "push", "text"),
    [
        ({**W, (0, 3): 0.5}, A, "the pull graph has an edge 0 → 3, but no node 3: want 0 … 2"),
        (W, {**A, (-1, 0): 0.5}, "the push graph has an edge -1 → 0, but no node -1: want 0 … 2"),
        ({**W, (1, 1): 0.5}, A, "the pull graph has an edge from node 1 to itself"),
        ({**W, (0, 2): 0.0}, A, "the pull graph's edge 0 → 2 has weight 0.0: want one in (0, 1]"),
        ({**W, (0, 2): float("nan")}, A, "has weight nan"),
        (W, {**A, (2, 0): -0.1}, "the push graph's edge 2 → 0 has weight -0.1"),
        (W, {**A, (2, 0): float("inf")}, "has weight inf"),
        ({**W, (0, 2): 0.75}, A, "the pull weights into node 2 sum to 1.25: want at most 1"),
        (W, {**A, (2, 0): 0.75}, "the push weights out of node 2 sum to 1.25: want at most 1"),
    ],
)
def test_bad_edges_are_refused(
    pull: Mapping[tuple[int, int], float], push: Mapping[tuple[int, int], float], text: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Topology("bad", ("0", "1", "2"), pull, push)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "names", "endpoints", "text"),
    [
        ("x", (), (), "has 0 nodes: it can have 1 … 1024"),
        ("x", ("a", "b", "a"), (), "nodes 0 and 2 are both named 'a'"),
        ("x", ("a", " ", "c"), (), "node 1 is named ' '"),
        ("two\nlines", ("a", "b", "c"), (), "topology is named 'two\\nlines'"),
        ("x", ("a", "b", "c"), (HERE,), "endpoints for 1 nodes: want them or None for all 3"),
        ("x", ("a", "b", "c"), (HERE, None, HERE), "nodes a and c both bind 'tcp://127.0.0.1:7001'"),
    ],
)
def test_bad_nodes_are_refused(
    name: str, names: tuple[str, ...], endpoints: tuple[Endpoints | None, ...], text: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Topology(name, names, W, A, endpoints)
    assert text in str(caught.value)


def test_an_edge_twice_or_without_a_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the pull graph lists the edge 0 → 1 twice"):
        from_edges("x", 2, [(0, 1), (0, 1, 0.5)], [(1, 0)])
    with pytest.raises(UsageError, match=r"the push graph leaves no weight for the edge 2 → 1"):
        from_edges("x", 3, [(0, 1), (0, 2)], [(1, 0), (2, 0, 1.0), (2, 1)])
    with pytest.raises(UsageError, match=r"nodes is 0: a topology has 1 … 1024 nodes"):
        from_edges("x", 0, [], [])


def test_graphs_without_a_common_root_are_refused_naming_both_root_sets() -> None:
    with pytest.raises(UsageError) as caught:
        from_edges("x", 3, [(1, 0), (1, 2)], [(1, 0), (0, 2), (2, 0)])
    assert str(caught.value) == (
        "the pull graph can be reached from nodes {1}, the push graph drains to {0, 2}: they share no root; "
        "add a pull path from 0 to 1, or a push path from 0 to 1"
    )


def test_graphs_without_any_root_are_refused_naming_what_is_apart() -> None:
    with pytest.raises(UsageError) as caught:
        from_edges("x", ["a", "b", "c"], [(0, 1)], [(0, 1)])
    assert str(caught.value) == (
        "the pull graph can be reached from no single node, the push graph drains to no single node: they share no "
        "root; no model reaches both {a} and {c}, add a pull edge between them; "
        "no mass leaves {b} or {c}, add a push edge between them"
    )
    with pytest.raises(UsageError, match=r"from no single node, the push graph drains to \{0, 1, .* … 20 in all\}"):
        from_edges("x", 20, [], build("ring", 20).push)


@pytest.mark.parametrize(
    ("family", "nodes", "text"),
    [
        ("rnig", 7, "unknown topology 'rnig': want binary-tree, double-tree, line, star, ring, exponential, mesh, "
         "complete, random:K or a TOML file; did you mean 'ring'?"),
        ("zzz", 7, "unknown topology 'zzz': want binary-tree"),
        ("ring:3", 7, "unknown topology 'ring:3'"),
        ("ring", None, "topology 'ring' needs a number of nodes: want 1 … 1024"),
        ("ring", 0, "topology 'ring' with 0 nodes: want 1 … 1024"),
        ("ring", 1025, "topology 'ring' with 1025 nodes"),
        ("random", 7, "K in random:K is the number of edges out of each node, such as random:2"),
        ("random:two", 7, "topology 'random:two': K in random:K"),
        ("random:0", 7, "random:0 with 7 nodes: want K in 1 … 6"),
        ("random:7", 7, "random:7 with 7 nodes: want K in 1 … 6"),
        ("random:1", 1, "random:1 with 1 node: want at least 2 nodes"),
    ],
)  # fmt: skip
def test_bad_families_are_refused(family: str, nodes: int | None, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(family, nodes)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_algorithm_has_no_messages() -> None:
    with pytest.raises(
        UsageError, match=r"'rfast-tre' are not known: want rfast-tree or rfast; did you mean 'rfast-tree'"
    ):
        build("ring", 3).messages_per_round("rfast-tre")
