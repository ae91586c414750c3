"""TOML files: round trip, samples, and every way to get one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfast_zmq.errors import UsageError
from rfast_zmq.topology import Endpoints, Topology, build, from_edges, from_toml, is_file, load, to_toml
from rfast_zmq.topology.graphs import from_trees

SAMPLES = Path(__file__).parents[2] / "topologies"
GRAPHS = '[pull]\nedges = [["a", "b"]]\n[push]\nedges = [["b", "a"]]\n'
NODES = '[[node]]\nname = "a"\n[[node]]\nname = "b"\n'


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any topology with root 0: node 0 reaches and drains all, further edges and weights as they come."""
    printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
    names = draw(st.lists(printable, min_size=1, max_size=6, unique=True))
    if draw(st.booleans()):
        names = [str(rank) for rank in range(len(names))]
    nodes = len(names)
    pairs = [(src, dst) for src in range(nodes) for dst in range(1, nodes) if src != dst]
    weight = st.none() | st.floats(1e-6, 1 / 8)
    graphs = []
    for _ in range(2):
        chosen = {(0, node) for node in range(1, nodes)}
        chosen |= set(draw(st.lists(st.sampled_from(pairs)))) if pairs else set()
        weights = [(*pair, draw(weight)) for pair in sorted(chosen)]
        graphs.append([(src, dst) if w is None else (src, dst, w) for src, dst, w in weights])
    push = [(edge[1], edge[0], *edge[2:]) for edge in graphs[1]]
    ports = iter(range(7001, 7100))
    endpoints = [
        Endpoints(f"tcp://10.0.0.1:{next(ports)}", f"ipc:///tmp/{next(ports)}.sock") if draw(st.booleans()) else None
        for _ in names
    ]
    return from_edges(draw(printable), names, graphs[0], push, endpoints)


@st.composite
def trees(draw: st.DrawFn) -> Topology:
    """Some spanning trees with one root, any rank, over named nodes some of which have addresses."""
    nodes = draw(st.integers(1, 6))
    root = draw(st.integers(0, nodes - 1))
    parents = []
    for _ in range(draw(st.integers(1, 3))):
        order = [root, *draw(st.permutations([node for node in range(nodes) if node != root]))]
        parent: list[int | None] = [None] * nodes
        for place, node in enumerate(order[1:]):
            parent[node] = order[draw(st.integers(0, place))]
        parents.append(parent)
    names = [f"host {rank}" if draw(st.booleans()) else str(rank) for rank in range(nodes)]
    endpoints = [
        Endpoints(f"tcp://10.0.0.{rank}:7001", f"tcp://10.0.0.{rank}:7002") if draw(st.booleans()) else None
        for rank in range(nodes)
    ]
    return from_trees("mine", names, parents, endpoints)


@given(trees())
@settings(deadline=None, max_examples=50)
def test_trees_read_back_to_the_very_same_topology(topology: Topology) -> None:
    """I2 with it: the root is the trees', and the graphs are all their edges and no others."""
    again = from_toml(to_toml(topology))
    assert again == topology
    assert (again.trees, again.root, again.endpoints) == (topology.trees, topology.root, topology.endpoints)
    assert set(again.pull) == {edge for tree in again.trees for edge in tree.edges}
    assert set(again.push) == {(child, above) for above, child in again.pull}


@pytest.mark.parametrize("nodes", [1, 2, 7, 8])
def test_a_double_tree_reads_back(nodes: int) -> None:
    assert from_toml(to_toml(build("double-tree", nodes))) == build("double-tree", nodes)


def test_trees_beside_further_edges_or_weights_cannot_be_written_and_are_not_written_wrongly() -> None:
    tree = from_trees("mine", 3, [[None, 0, 1]])
    more = Topology("mine", tree.names, {**tree.pull, (0, 2): 0.25}, tree.push, trees=tree.trees)
    odd = Topology("mine", tree.names, {**tree.pull, (0, 1): 0.25}, tree.push, trees=tree.trees)
    for topology in (more, odd):
        with pytest.raises(UsageError, match="'mine' has edges beside its trees, or weights: no file can say both"):
            to_toml(topology)


@given(topologies())
@settings(deadline=None, max_examples=100)
def test_a_file_reads_back_to_the_very_same_topology(topology: Topology) -> None:
    assert from_toml(to_toml(topology)) == topology


@pytest.mark.parametrize("family", ["binary-tree", "line", "ring", "exponential", "mesh"])
def test_samples_equal_their_family(family: str) -> None:
    assert load(SAMPLES / f"{family}-7.toml") == build(family, 7)


def test_every_sample_loads() -> None:
    samples = sorted(SAMPLES.glob("*.toml"))
    assert len(samples) >= 7
    for sample in samples:
        assert build(str(sample), None) == load(sample)


@pytest.mark.parametrize(("file", "nodes"), [("two-hosts", 2), ("three-uneven-hosts", 3)])
def test_host_samples_have_names_and_endpoints(file: str, nodes: int) -> None:
    topology = build(str(SAMPLES / f"{file}.toml"), nodes)
    assert topology.name == file
    assert topology.nodes == nodes
    assert topology.root == 0
    for both in topology.endpoints:
        assert both is not None
        assert both.pull.startswith("tcp://127.0.0.1:")
        assert both.push.startswith("tcp://127.0.0.1:")


def test_nodes_go_by_name_or_rank_and_the_name_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pair.toml"
    path.write_text(NODES + '[pull]\nedges = [[0, "b", 1]]\n[push]\nedges = [["b", 0]]\n')
    topology = build(str(path), None)
    assert topology == from_edges("pair", ["a", "b"], [(0, 1, 1.0)], [(1, 0)])


def test_a_file_without_the_ending_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pair", "ring"):
        Path(name).write_text(NODES + GRAPHS)
    assert build("pair", 2).names == ("a", "b")
    assert not is_file("ring")  # a family goes before a file of its name
    assert build("ring", 3).nodes == 3


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nodes = ", "not valid TOML: Invalid value"),
        ("a = " + "[" * 5000, "not valid TOML: nested too deeply"),
        ("nodes = " + "9" * 5000, "not valid TOML: "),
        ("nodes = 0x" + "f" * 5000, "nodes is an integer: want a number in 1 … 1024"),
        ("", "there is neither of nodes and [[node]]"),
        ("nodes = 2\n" + NODES + GRAPHS, "there is both of nodes and [[node]]"),
        ("nodes = 0\n", "nodes is 0: want a number in 1 … 1024"),
        ("nodes = true\n", "nodes is True: want a number"),
        ('nodes = "two"\n', "nodes is 'two': want a number"),
        ("nodes = 2000\n", "nodes is 2000: want a number in 1 … 1024"),
        ("name = 3\n" + NODES + GRAPHS, "name is an integer: want a string"),
        ("colour = 3\n" + NODES + GRAPHS, "the file has an unknown key 'colour': want name, nodes, node, pull, push"),
        (NODES + GRAPHS + "[pushh]\n", "unknown key 'pushh': want name, nodes, node, pull, push, tree; did you mean"),
        ('node = ["a"]\n' + GRAPHS, "node is not a list of tables: write [[node]]"),
        ('[node]\nname = "a"\n' + GRAPHS, "node is not a list of tables: write [[node]]"),
        ("[[node]]\nname = 1\n" + GRAPHS, "[[node]] 0 name is an integer: want a string"),
        ("[[node]]\nnane = 'a'\n" + GRAPHS, "[[node]] 0 has an unknown key 'nane': want name, pull, push; did"),
        ('[[node]]\nname = "a"\npull = "tcp://h:1"\n' + GRAPHS, "[[node]] 0 (a) lacks push"),
        ('[[node]]\npush = "tcp://h:1"\n' + GRAPHS, "[[node]] 0 (0) lacks pull"),
        ('[[node]]\npull = "h:1"\npush = "tcp://h:2"\n', "[[node]] 0 (0): endpoint pull is 'h:1': want tcp://HOST:PORT"),
        ("[[node]]\npull = 1\npush = 2\n", "[[node]] 0 (0): endpoint pull is 1: want tcp://HOST:PORT"),
        (NODES, '[pull] is missing: want [pull] with edges = [["from", "to"], …]'),
        (NODES + "[pull]\nedges = []\n", "[push] is missing"),
        ("pull = 3\n" + NODES, "[pull] is an integer: want [pull]"),
        (NODES + "[pull]\n[push]\n", "[pull] has no edges"),
        (NODES + "[pull]\nedge = []\n[push]\n", "[pull] has an unknown key 'edge': want edges; did you mean 'edges'?"),
        (NODES + "[pull]\nedges = 3\n[push]\n", "[pull] edges is an integer"),
        (NODES + "[pull]\nedges = [3]\n[push]\n", '[pull] edges[0] is 3: want ["from", "to"]'),
        (NODES + "[pull]\nedges = [['a']]\n[push]\n", "[pull] edges[0] is ['a']"),
        (NODES + "[pull]\nedges = [['a', 'b'], ['a', 'x']]\n[push]\n", "[pull] edges[1] has an unknown node 'x': "),
        (NODES + "[pull]\nedges = [[0, 2]]\n[push]\n", "[pull] edges[0] has an unknown node 2: want a rank in 0 … 1"),
        (NODES + "[pull]\nedges = [[0, -1]]\n[push]\n", "[pull] edges[0] has an unknown node -1"),
        (NODES + "[pull]\nedges = [[0, 1.0]]\n[push]\n", "[pull] edges[0] has 1.0 for a node: want its name"),
        (NODES + "[pull]\nedges = [[0, true]]\n[push]\n", "[pull] edges[0] has True for a node"),
        (NODES + "[pull]\nedges = [[0, 1, 'half']]\n[push]\n", "[pull] edges[0] has weight 'half': want a number"),
        (NODES + "[pull]\nedges = [[0, 1, nan]]\n[push]\n", "[pull] edges[0] has weight nan"),
        (NODES + f"[pull]\nedges = [[0, 1, 0x{'f' * 5000}]]\n[push]\n", "[pull] edges[0] has weight an integer"),
        (NODES + "[pull]\nedges = [[0, 1, 0]]\n[push]\nedges = [[1, 0]]\n", "pull graph's edge a → b has weight 0.0"),
        (NODES + "[pull]\nedges = [[0, 1, 1.5]]\n[push]\nedges = [[1, 0]]\n", "edge a → b has weight 1.5"),
        (NODES + "[pull]\nedges = [[0, 1], ['a', 'b']]\n[push]\nedges = [[1, 0]]\n", "pull graph lists the edge a → b"),
        (NODES + "[pull]\nedges = [[0, 0]]\n[push]\nedges = [[1, 0]]\n", "an edge from node a to itself"),
        (NODES + "[pull]\nedges = [[0, 1]]\n[push]\nedges = [[0, 1]]\n", "nodes {a}, the push graph drains to {b}"),
        (NODES + "[[node]]\nname = 'a'\n" + GRAPHS, "nodes 0 and 2 are both named 'a'"),
        (NODES + "[[tree]]\nedges = [['a', 'b']]\n" + GRAPHS, "there is both of [[tree]] and [pull]: trees say where"),
        (NODES + "[[tree]]\nedges = [['a', 'b']]\n[push]\n", "there is both of [[tree]] and [push]: trees say where"),
        (NODES + "[tree]\nedges = [['a', 'b']]\n", "tree is not a list of tables: write [[tree]], with two brackets"),
        ("tree = []\n" + NODES, "tree is not a list of tables: write [[tree]], with two brackets"),
        ("tree = 'binary'\n" + NODES, "tree is not a list of tables: write [[tree]], with two brackets"),
        ("tree = [3]\n" + NODES, '[[tree]] 0 is an integer: want edges = [["parent", "child"], …]'),
        (NODES + "[[tree]]\n", '[[tree]] 0 has no edges: want edges = [["parent", "child"], …]'),
        (NODES + "[[tree]]\nedges = 1\n", "[[tree]] 0 edges is an integer: want edges = "),
        (NODES + "[[tree]]\nedge = []\n", "[[tree]] 0 has an unknown key 'edge': want edges; did you mean 'edges'?"),
        (NODES + "[[tree]]\nedges = [['a', 'b'], ['a']]\n",
         """[[tree]] 0 edges[1] is ['a']: want ["parent", "child"]"""),
        (NODES + "[[tree]]\nedges = [['a', 'b']]\n[[tree]]\nedges = [['a', 'x']]\n",
         "[[tree]] 1 edges[0] has an unknown node 'x': want a, b"),
        (NODES + "[[tree]]\nedges = [['a', 'b', 0.5]]\n", "[[tree]] 0 gives a → b a weight: the edges of a tree have"),
        (NODES + "[[tree]]\nedges = [['a', 'b'], ['a', 'b']]\n", "[[tree]] 0 gives node b two parents: one is enough"),
        (NODES + "[[tree]]\nedges = []\n", "tree 0 has 2 nodes without a parent: want one, the root"),
        (NODES + "[[tree]]\nedges = [['a', 'b'], ['b', 'a']]\n", "tree 0 has 0 nodes without a parent: want one"),
        (NODES + "[[tree]]\nedges = [['b', 'b'], ['a', 'a']]\n", "tree 0 has 0 nodes without a parent: want one"),
        ("nodes = 3\n[[tree]]\nedges = [[1, 2], [2, 1]]\n", "tree 0 does not reach nodes {1, 2}: give each a parent"),
        (NODES + "[[tree]]\nedges = [['a', 'b']]\n[[tree]]\nedges = [['b', 'a']]\n",
         "tree 1 has 2 nodes and root 1: all trees must span the 2 nodes from one root, 0"),
    ],
)  # fmt: skip
def test_a_bad_file_gets_one_line_with_its_name_and_the_place(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        build(str(path), None)
    assert str(caught.value).startswith(f"{path}: ")
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: no such file: want a topology as TOML, or the name of a family"):
        build(str(tmp_path / "none.toml"), None)
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory"):
        load(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match=r"binary\.toml: not UTF-8 text at byte 8"):
        load(binary)


def test_another_number_of_nodes_than_the_file_has() -> None:
    path = SAMPLES / "two-hosts.toml"
    with pytest.raises(
        UsageError, match=r"two-hosts\.toml describes 2 nodes, not 7: leave the number out or set it to 2"
    ):
        build(str(path), 7)


@pytest.mark.parametrize(
    "address",
    ["tcp://10.0.0.1:1", "tcp://gpu-1.example.org:65535", "tcp://[::1]:7001", "ipc:///tmp/x.sock", "ipc://@abstract"],
)
def test_endpoints_of_both_kinds_are_taken(address: str) -> None:
    assert Endpoints(address, "tcp://h:9").pull == address


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("10.0.0.1:7001", "want tcp://HOST:PORT or ipc://PATH"),
        ("udp://10.0.0.1:7001", "want tcp://HOST:PORT or ipc://PATH"),
        ("tcp://10.0.0.1", "want tcp://HOST:PORT"),
        ("tcp://:7001", "want tcp://HOST:PORT"),
        ("tcp://a b:7001", "want tcp://HOST:PORT"),
        ("tcp://::1:7001", "want tcp://HOST:PORT"),
        ("tcp://h:7001/", "want tcp://HOST:PORT"),
        ("tcp://h:0", "the port must lie in 1 … 65535"),
        ("tcp://h:65536", "the port must lie in 1 … 65535"),
        ("tcp://h:x", "want tcp://HOST:PORT"),
        ("tcp://*:7001", "the neighbours dial this very address"),
        ("tcp://0.0.0.0:7001", "the neighbours dial this very address"),
        ("tcp://[::]:7001", "the neighbours dial this very address"),
        ("ipc://", "with the path of a file"),
        ("ipc://*", "with the path of a file"),
        ("ipc:///" + "x" * 107, "its path has 108 bytes, a Unix socket takes at most 107"),
        ("tcp://h:9", "endpoints pull and push are both 'tcp://h:9'"),
    ],
)
def test_bad_endpoints_are_refused(address: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoints(address, "tcp://h:9")
    assert text in str(caught.value)
