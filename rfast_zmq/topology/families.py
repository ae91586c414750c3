"""Topologies by name: the paper's five shapes and a few more, all with even weights.

================  ====================================================================================================
name              edges (W as models travel; A as gradient mass travels)
================  ====================================================================================================
``binary-tree``   W parent → child, A child → parent; node i's children are 2i + 1 and 2i + 2
``double-tree``   two binary trees with root 0, the second with inner nodes and leaves exchanged; W down, A up both
``line``          W 0 → 1 → 2 …, A the reverse
``star``          W 0 → everybody, A everybody → 0
``ring``          both i → i + 1 (mod n)
``exponential``   both i → i + 2^k (mod n), for every 2^k < n
``mesh``          both: the neighbours on a grid, about square, filled row by row, both ways
``complete``      both: everybody to everybody
``random:K``      both: a random cycle through all nodes and K − 1 more random edges out of each node
================  ====================================================================================================
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

from rfast_zmq.errors import UsageError
from rfast_zmq.topology.graphs import NODES_MAX, Topology, from_edges, from_trees, suggestion
from rfast_zmq.topology.tomlfile import load

Edges = list[tuple[int, int]]


def binary_tree(nodes: int) -> Topology:
    """A complete binary tree with root 0, filled level by level."""
    down = [((child - 1) // 2, child) for child in range(1, nodes)]
    return from_edges("binary-tree", nodes, down, _reversed(down))


def double_tree(nodes: int) -> Topology:
    """Two binary trees over the same nodes, one of them counted from the other end: whoever has children in the one is
    a leaf of the other. The buckets of a model take turns between them, so that none but the root carries twice what
    another does, and no line more than two models out and in for each that comes.
    """
    first = [None if node == 0 else (node - 1) // 2 for node in range(nodes)]
    second: list[int | None] = [None] * nodes
    for node, above in enumerate(first):
        if above is not None:
            second[(nodes - node) % nodes] = (nodes - above) % nodes
    return from_trees("double-tree", nodes, [first, second])


def line(nodes: int) -> Topology:
    """A chain with root 0 at one end."""
    down = [(node, node + 1) for node in range(nodes - 1)]
    return from_edges("line", nodes, down, _reversed(down))


def star(nodes: int) -> Topology:
    """A tree of depth 1 with root 0: a parameter server, if you like."""
    down = [(0, leaf) for leaf in range(1, nodes)]
    return from_edges("star", nodes, down, _reversed(down))


def ring(nodes: int) -> Topology:
    """A directed ring; both graphs the same way round, every node a root."""
    around = [(node, (node + 1) % nodes) for node in range(nodes) if nodes > 1]
    return from_edges("ring", nodes, around, around)


def exponential(nodes: int) -> Topology:
    """Directed hops of 1, 2, 4, … on a ring: any node within log₂ n hops of any other, every node a root."""
    hops = [2**k for k in range(nodes.bit_length()) if 2**k < nodes]
    edges = [(node, (node + hop) % nodes) for node in range(nodes) for hop in hops]
    return from_edges("exponential", nodes, edges, edges)


def mesh(nodes: int) -> Topology:
    """A grid of ⌈√n⌉ columns, the last row perhaps short; neighbours exchange both ways, every node a root."""
    columns = math.isqrt(nodes - 1) + 1
    right = [(node, node + 1) for node in range(nodes - 1) if (node + 1) % columns]
    below = [(node, node + columns) for node in range(nodes - columns)]
    edges = right + below + _reversed(right + below)
    return from_edges("mesh", nodes, edges, edges)


def complete(nodes: int) -> Topology:
    """Everybody to everybody, every node a root."""
    edges = [(src, dst) for src in range(nodes) for dst in range(nodes) if src != dst]
    return from_edges("complete", nodes, edges, edges)


def random_out(nodes: int, out: int, seed: int = 0) -> Topology:
    """A random strongly connected graph in which every node has ``out`` edges out; both graphs the same.

    It is a random cycle through all nodes, and ``out`` − 1 further random edges from each. (Drawing all edges freely
    until the graph is strongly connected would not end in time: for K = 2 and 100 nodes about one draw in 10⁷ is.)
    The same arguments give the same graph on every machine and Python: only ``Random.random`` is drawn from, whose
    sequence Python guarantees.

    Args:
        nodes: number of nodes.
        out: K, edges out of each node, 1 … nodes − 1.
        seed: of the draw.

    Raises:
        UsageError: K out of range.
    """
    if not 1 <= out < nodes:
        want = f"K in 1 … {nodes - 1}" if nodes > 1 else "at least 2 nodes"
        raise UsageError(f"random:{out} with {nodes} node{'s' * (nodes != 1)}: want {want}")
    draw = random.Random(seed)
    order = sorted(range(nodes), key=lambda _: draw.random())
    edges: Edges = []
    for node, following in zip(order, [*order[1:], order[0]], strict=True):
        others = [other for other in range(nodes) if other not in (node, following)]
        others.sort(key=lambda _: draw.random())
        edges += [(node, other) for other in (following, *others[: out - 1])]
    return from_edges(f"random:{out}", nodes, edges, edges)


FAMILIES: dict[str, Callable[[int], Topology]] = {
    "binary-tree": binary_tree,
    "double-tree": double_tree,
    "line": line,
    "star": star,
    "ring": ring,
    "exponential": exponential,
    "mesh": mesh,
    "complete": complete,
}
"""The families that need only a number of nodes; ``random:K`` comes beside them."""


def is_file(name: str) -> bool:
    """Whether :func:`build` takes ``name`` for a TOML file: it ends in ``.toml``, or names a file and no family."""
    return name.endswith(".toml") or (name not in FAMILIES and not name.startswith("random:") and Path(name).is_file())


def build(name: str, nodes: int | None = None, seed: int = 0) -> Topology:
    """The topology that a user's word stands for.

    Args:
        name: a family, as in :data:`FAMILIES`, or ``random:K``; or the path of a TOML file (``docs/topologies.md``).
        nodes: number of nodes; for a file None, or the number that the file must have.
        seed: of ``random:K``; the others draw nothing.

    Raises:
        UsageError: an unknown family, no or an impossible number of nodes, a bad file, or a file with another number
            of nodes.
    """
    if is_file(name):
        topology = load(Path(name))
        if nodes is not None and nodes != topology.nodes:
            raise UsageError(
                f"{name} describes {topology.nodes} nodes, not {nodes}: "
                f"leave the number out or set it to {topology.nodes}"
            )
        return topology
    family, _, parameter = name.partition(":")
    if family not in (*FAMILIES, "random") or (family != "random" and ":" in name):
        near = suggestion(family, (*FAMILIES, "random:2"))
        raise UsageError(f"unknown topology {name!r}: want {', '.join(FAMILIES)}, random:K or a TOML file{near}")
    if nodes is None:
        raise UsageError(f"topology {name!r} needs a number of nodes: want 1 … {NODES_MAX}")
    if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= NODES_MAX:
        raise UsageError(f"topology {name!r} with {nodes!r} nodes: want 1 … {NODES_MAX}")
    if family != "random":
        return FAMILIES[family](nodes)
    if not (parameter.isascii() and parameter.isdigit()):
        raise UsageError(f"topology {name!r}: K in random:K is the number of edges out of each node, such as random:2")
    return random_out(nodes, int(parameter), seed)


def _reversed(edges: Edges) -> Edges:
    return [(dst, src) for src, dst in edges]
