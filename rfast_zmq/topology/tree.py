"""Roots of a directed graph, and the breadth-first spanning tree below one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Tree:
    """A spanning tree, seen from every node.

    Attributes:
        root: rank of the root.
        parent: per node its neighbour one level nearer to the root, None at the root. In the pull tree a node takes
            models from its parent; in the push tree it pushes gradient mass to it.
        children: per node the nodes whose parent it is, ascending.
    """

    root: int
    parent: tuple[int | None, ...]
    children: tuple[tuple[int, ...], ...]

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Per node its distance from the root in edges."""
        levels = [0] * len(self.parent)
        line = [self.root]
        for node in line:
            for child in self.children[node]:
                levels[child] = levels[node] + 1
                line.append(child)
        return tuple(levels)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(parent, child), by child."""
        return tuple((above, child) for child, above in enumerate(self.parent) if above is not None)

    @cached_property
    def depth(self) -> int:
        """Edges between the root and the node farthest from it; 0 for a single node."""
        return max(self.levels)

    def level(self, node: int) -> int:
        """Edges between the root and ``node``."""
        return self.levels[node]


def breadth_first(root: int, neighbours: Sequence[Iterable[int]]) -> Tree:
    """The breadth-first tree from ``root``, in which each node's parent is the lowest rank one level above it.

    Args:
        root: where the tree starts; every node must be reachable from it.
        neighbours: per node the nodes one step farther out: the out-neighbours in W for the pull tree, the
            in-neighbours in A for the push tree.

    Source: ``docs/algorithm.md``: breadth-first, ties to the lowest rank.
    """
    parent: list[int | None] = [None] * len(neighbours)
    seen = {root}
    level = [root]
    while level:
        below: list[int] = []
        for node in level:  # ascending, so that the lowest rank of a level is the first to adopt
            for neighbour in neighbours[node]:
                if neighbour not in seen:
                    seen.add(neighbour)
                    parent[neighbour] = node
                    below.append(neighbour)
        level = sorted(below)
    assert len(seen) == len(neighbours), "a topology is only built when every node hangs on its root"
    return of_parents(root, parent)


def of_parents(root: int, parent: Sequence[int | None]) -> Tree:
    """The tree in which each node has this parent (None: the root's, or a node that hangs nowhere)."""
    children: list[list[int]] = [[] for _ in parent]
    for node, above in enumerate(parent):
        if above is not None:
            children[above].append(node)
    return Tree(root, tuple(parent), tuple(tuple(below) for below in children))


def sources(nodes: int, edges: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """The strongly connected groups of nodes that no other node reaches, each ascending, by lowest rank.

    If there is exactly one, its members are the roots: from each of them every node can be reached. If there are
    more, the graph has no root.
    """
    import networkx as nx  # not above: it takes longer to import than all the rest of the package

    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(edges)
    condensed = nx.condensation(graph)
    return tuple(sorted(tuple(sorted(condensed.nodes[c]["members"])) for c in condensed if condensed.in_degree(c) == 0))
