"""The pair of graphs on which a run lives, and what follows from it.

==================  =======================================  ===================================================
symbol              here                                     rule
==================  =======================================  ===================================================
W, the pull graph   ``pull[(j, i)]`` = w_ij                  models travel j → i; the weights of what a node takes
                                                             in, its own (w_ii) included, sum to 1 (rows of W)
A, the push graph   ``push[(i, j)]`` = a_ji                  gradient mass travels i → j; the weights of what a
                                                             node gives away, its own part (a_ii) included, sum
                                                             to 1 (columns of A)
roots of W          ``pull_roots``                           nodes from which models reach everybody
roots of A          ``push_roots``                           nodes to which everybody's gradient mass drains
==================  =======================================  ===================================================

The two graphs share a root, or the pair is refused (R-FAST, arXiv 2307.11617; ``docs/algorithm.md``, invariant I2).
Edges are keyed the way they travel, (source, destination), in both graphs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rfast_zmq.errors import UsageError
from rfast_zmq.topology.endpoints import Endpoints
from rfast_zmq.topology.tree import Tree, breadth_first, of_parents, sources

NODES_MAX = 1024
"""Bound on the nodes of a topology: a complete graph of so many still has its edges in memory."""
NAME_LENGTH_MAX = 64
WEIGHT_SLACK = 1e-9
"""How far over 1 a sum of decimal weights may come by rounding; the own weight is then 0."""

EdgeSpec = tuple[int, int] | tuple[int, int, float]
"""(source, destination) or (source, destination, weight)."""


@dataclass(frozen=True)
class Topology:
    """The pull graph W and the push graph A over one set of nodes. Checked when made, immutable, picklable.

    Attributes:
        name: what to call it: the family, or the name in the file.
        names: per node its name, unique; its place is the node's rank.
        pull: (src, dst) → w_{dst,src} > 0; models travel src → dst.
        push: (src, dst) → a_{dst,src} > 0; gradient mass travels src → dst.
        endpoints: per node the addresses it binds, or None where a launcher chooses them; () for None everywhere.
        trees: spanning trees with one root, between which the buckets of a model take turns: models go down a tree,
            gradient mass up the same. (): one pair, breadth-first (:attr:`pull_trees`, :attr:`push_trees`).

    Raises:
        UsageError: an edge to an unknown node or to itself, a weight that is not positive and finite, weights of one
            node that sum to more than 1, names that are empty or equal, an address bound twice, two graphs that
            share no root, or a tree that does not span them.
    """

    name: str
    names: tuple[str, ...]
    pull: Mapping[tuple[int, int], float] = field(hash=False)
    push: Mapping[tuple[int, int], float] = field(hash=False)
    endpoints: tuple[Endpoints | None, ...] = ()
    trees: tuple[Tree, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(self.names)
        _check_names(self.name, names)
        endpoints = tuple(self.endpoints) or (None,) * len(names)
        _check_endpoints(names, endpoints)
        for attribute, value in (
            ("names", names),
            ("endpoints", endpoints),
            ("pull", _checked_edges("pull", names, self.pull)),
            ("push", _checked_edges("push", names, self.push)),
        ):
            object.__setattr__(self, attribute, value)
        _check_sums("pull", names, self._pull_weights)
        _check_sums("push", names, self._push_weights)
        self._check_trees()
        self._check_roots()

    # -- nodes and neighbours ------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> int:
        """Number of nodes n; ranks are 0 … n − 1."""
        return len(self.names)

    def called(self, rank: int) -> str:
        """A node as people are told of it: by its name, and its rank where the name does not say it."""
        name = self.names[rank]
        return f"node {name}" if name == str(rank) else f"node {name} (rank {rank})"

    def pull_in(self, node: int) -> tuple[int, ...]:
        """In_W(node): the nodes whose models it takes, ascending."""
        return self._neighbours[0][node]

    def pull_out(self, node: int) -> tuple[int, ...]:
        """Out_W(node): the nodes that take its model, ascending."""
        return self._neighbours[1][node]

    def push_in(self, node: int) -> tuple[int, ...]:
        """In_A(node): the nodes whose gradient mass it receives, ascending."""
        return self._neighbours[2][node]

    def push_out(self, node: int) -> tuple[int, ...]:
        """Out_A(node): the nodes to which it gives gradient mass, ascending."""
        return self._neighbours[3][node]

    @cached_property
    def _neighbours(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        return (
            *_in_and_out(self.nodes, self.pull),
            *_in_and_out(self.nodes, self.push),
        )

    # -- weights -------------------------------------------------------------------------------------------------------

    @cached_property
    def pull_self(self) -> tuple[float, ...]:
        """Per node w_ii ≥ 0, what its row of W leaves."""
        return tuple(max(0.0, 1.0 - math.fsum(weights)) for weights in self._pull_weights)

    @cached_property
    def push_self(self) -> tuple[float, ...]:
        """Per node a_ii ≥ 0, what its column of A leaves."""
        return tuple(max(0.0, 1.0 - math.fsum(weights)) for weights in self._push_weights)

    def matrices(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """W and A, n×n float64: W[i, j] = w_ij (i pulls from j), A[i, j] = a_ij (j pushes to i), diagonals included."""
        w, a = np.diag(np.array(self.pull_self)), np.diag(np.array(self.push_self))
        for (src, dst), weight in self.pull.items():
            w[dst, src] = weight
        for (src, dst), weight in self.push.items():
            a[dst, src] = weight
        return w, a

    @cached_property
    def _pull_weights(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(self.pull[j, i] for j in self.pull_in(i)) for i in range(self.nodes))

    @cached_property
    def _push_weights(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(self.push[i, j] for j in self.push_out(i)) for i in range(self.nodes))

    # -- roots and trees -----------------------------------------------------------------------------------------------

    @cached_property
    def pull_roots(self) -> tuple[int, ...]:
        """The nodes from which every node can be reached in W, ascending."""
        return self._pull_sources[0] if len(self._pull_sources) == 1 else ()

    @cached_property
    def push_roots(self) -> tuple[int, ...]:
        """The nodes which every node can reach in A, ascending."""
        return self._push_sinks[0] if len(self._push_sinks) == 1 else ()

    @cached_property
    def root(self) -> int:
        """The lowest rank that is a root of both graphs; where trees are given, theirs."""
        if self.trees:
            return self.trees[0].root
        return min(set(self.pull_roots) & set(self.push_roots))

    @cached_property
    def pull_trees(self) -> tuple[Tree, ...]:
        """The trees down W from :attr:`root`, along which models go parent → child; of bucket b the (b mod their
        number)-th. Breadth-first, unless they are given.
        """
        return self.trees or (breadth_first(self.root, self._neighbours[1]),)

    @cached_property
    def push_trees(self) -> tuple[Tree, ...]:
        """The trees up A to :attr:`root`, along which gradient mass goes child → parent; as many as of the others."""
        return self.trees or (breadth_first(self.root, self._neighbours[2]),)

    @property
    def pull_tree(self) -> Tree:
        """The first of :attr:`pull_trees`, the only one in most topologies; the end of a run comes down it."""
        return self.pull_trees[0]

    @property
    def push_tree(self) -> Tree:
        """The first of :attr:`push_trees`; what is known of the run as a whole goes up it."""
        return self.push_trees[0]

    @property
    def depth(self) -> int:
        """Edges from the root to the farthest node, in the deepest of the trees."""
        return max(tree.depth for tree in (*self.pull_trees, *self.push_trees))

    @property
    def widest(self) -> int:
        """The largest number of children that one node has in one of the trees."""
        return max(len(children) for tree in (*self.pull_trees, *self.push_trees) for children in tree.children)

    def messages_per_round(self, algorithm: str) -> int:
        """Messages, each of one model's size, when every edge that ``algorithm`` uses speaks once.

        Args:
            algorithm: ``rfast-tree`` (the edges of the two trees) or ``rfast`` (all edges of W and A).

        Raises:
            UsageError: another algorithm.
        """
        counts = {"rfast-tree": 2 * (self.nodes - 1), "rfast": len(self.pull) + len(self.push)}
        if algorithm not in counts:
            raise UsageError(
                f"messages of algorithm {algorithm!r} are not known: want {' or '.join(counts)}"
                f"{suggestion(algorithm, counts)}"
            )
        return counts[algorithm]

    @cached_property
    def _pull_sources(self) -> tuple[tuple[int, ...], ...]:
        return sources(self.nodes, self.pull)

    @cached_property
    def _push_sinks(self) -> tuple[tuple[int, ...], ...]:
        return sources(self.nodes, ((dst, src) for src, dst in self.push))

    def _check_roots(self) -> None:
        pull, push = self.pull_roots, self.push_roots
        if set(pull) & set(push):
            return
        text = (
            f"the pull graph can be reached from {f'nodes {self._set(pull)}' if pull else 'no single node'}, "
            f"the push graph drains to {self._set(push) if push else 'no single node'}: they share no root"
        )
        if not pull:
            first, second = self._pull_sources[:2]
            text += f"; no model reaches both {self._set(first)} and {self._set(second)}, add a pull edge between them"
        if not push:
            first, second = self._push_sinks[:2]
            text += f"; no mass leaves {self._set(first)} or {self._set(second)}, add a push edge between them"
        if pull and push:
            text += (
                f"; add a pull path from {self.names[push[0]]} to {self.names[pull[0]]}, "
                f"or a push path from {self.names[push[0]]} to {self.names[pull[0]]}"
            )
        raise UsageError(text)

    def _check_trees(self) -> None:
        for index, tree in enumerate(self.trees):
            if len(tree.parent) != self.nodes or tree.root != self.trees[0].root:
                raise UsageError(
                    f"tree {index} has {len(tree.parent)} nodes and root {tree.root}: all trees must span the"
                    f" {self.nodes} nodes from one root, {self.trees[0].root}"
                )
            if lost := [node for node in range(self.nodes) if not _hangs(tree, node)]:
                raise UsageError(f"tree {index} does not reach nodes {self._set(lost)}: give each a parent")
            for above, child in tree.edges:
                for graph, edges, edge in (("pull", self.pull, (above, child)), ("push", self.push, (child, above))):
                    if edge not in edges:
                        raise UsageError(
                            f"tree {index} needs the {graph} edge {_edge(self.names, *edge)}, which is not there"
                        )

    def _set(self, ranks: Sequence[int]) -> str:
        shown = ", ".join(self.names[rank] for rank in ranks[:12])
        return f"{{{shown}{f', … {len(ranks)} in all' if len(ranks) > 12 else ''}}}"


def from_edges(
    name: str,
    names: int | Sequence[str],
    pull: Iterable[EdgeSpec],
    push: Iterable[EdgeSpec],
    endpoints: Sequence[Endpoints | None] = (),
) -> Topology:
    """A topology from lists of edges; weights that are not given are even.

    What a node's given weights leave of 1 is divided evenly among its edges without a weight and itself. With none
    given that is w_ij = 1/(\\|In_W(i)\\| + 1) and a_ji = 1/(\\|Out_A(j)\\| + 1).

    Args:
        name: what to call it.
        names: the nodes' names, or their number (then their names are "0", "1", …).
        pull: the edges of W, as models travel.
        push: the edges of A, as gradient mass travels.
        endpoints: per node the addresses it binds or None; () for none at all.

    Raises:
        UsageError: as :class:`Topology`; also an edge listed twice, and weights that leave nothing to an edge without.
    """
    known = default_names(names) if isinstance(names, int) else tuple(names)
    return Topology(name, known, _weighted("pull", known, pull), _weighted("push", known, push), tuple(endpoints))


def from_trees(
    name: str,
    names: int | Sequence[str],
    parents: Sequence[Sequence[int | None]],
    endpoints: Sequence[Endpoints | None] = (),
) -> Topology:
    """A topology of some spanning trees, between which the buckets of a model take turns; weights are even.

    Args:
        name: what to call it.
        names: the nodes' names, or their number.
        parents: per tree each node's parent; None at the root, which all trees share.
        endpoints: per node the addresses it binds or None; () for none at all.

    Raises:
        UsageError: as :class:`Topology`.
    """
    trees = []
    for index, parent in enumerate(parents):
        roots = [node for node, above in enumerate(parent) if above is None]
        if len(roots) != 1:
            raise UsageError(f"tree {index} has {len(roots)} nodes without a parent: want one, the root")
        if unknown := [above for above in parent if above is not None and not 0 <= above < len(parent)]:
            raise UsageError(f"tree {index} has a parent {unknown[0]}: want ranks in 0 … {len(parent) - 1}")
        trees.append(of_parents(roots[0], parent))
    down = sorted({edge for tree in trees for edge in tree.edges})
    up = [(child, above) for above, child in down]
    known = default_names(names) if isinstance(names, int) else tuple(names)
    pull, push = _weighted("pull", known, down), _weighted("push", known, up)
    return Topology(name, known, pull, push, tuple(endpoints), tuple(trees))


def default_names(nodes: int) -> tuple[str, ...]:
    """The names "0", "1", … of so many nodes. Raises UsageError outside 1 … :data:`NODES_MAX`."""
    if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= NODES_MAX:
        raise UsageError(f"nodes is {nodes!r}: a topology has 1 … {NODES_MAX} nodes")
    return tuple(str(rank) for rank in range(nodes))


def suggestion(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown word: ``"; did you mean 'x'?"``, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _weighted(graph: str, names: Sequence[str], edges: Iterable[EdgeSpec]) -> dict[tuple[int, int], float]:
    given: dict[tuple[int, int], float | None] = {}
    for edge in edges:
        src, dst, weight = edge if len(edge) == 3 else (*edge, None)
        if weight is not None:
            _check_weight(graph, names, (src, dst), weight)
        if (src, dst) in given:
            raise UsageError(f"the {graph} graph lists the edge {_edge(names, src, dst)} twice: once is enough")
        given[src, dst] = weight
    owner = 1 if graph == "pull" else 0  # W's rows belong to the receiver, A's columns to the sender
    per_node: dict[int, list[float | None]] = {}
    for pair, weight in given.items():
        per_node.setdefault(pair[owner], []).append(weight)
    even = {node: _even_share(weights) for node, weights in per_node.items()}
    for pair, weight in given.items():
        if weight is None and even[pair[owner]] <= 0:
            raise UsageError(
                f"the {graph} graph leaves no weight for the edge {_edge(names, *pair)}: give it one, "
                f"or lower the others of node {_name(names, pair[owner])}, whose sum is at most 1"
            )
    return {pair: even[pair[owner]] if weight is None else weight for pair, weight in given.items()}


def _even_share(weights: Sequence[float | None]) -> float:
    fixed = [weight for weight in weights if weight is not None]
    left = 1.0 - math.fsum(fixed)
    return (left if left > WEIGHT_SLACK else 0.0) / (len(weights) - len(fixed) + 1)


def _hangs(tree: Tree, node: int) -> bool:
    """Whether the way up from a node ends at the root."""
    above: int | None = node
    for _ in tree.parent:
        if above == tree.root:
            return True
        above = None if above is None else tree.parent[above]
    return False


def _in_and_out(
    nodes: int, edges: Iterable[tuple[int, int]]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    into: list[list[int]] = [[] for _ in range(nodes)]
    out: list[list[int]] = [[] for _ in range(nodes)]
    for src, dst in edges:
        into[dst].append(src)
        out[src].append(dst)
    return tuple(tuple(sorted(some)) for some in into), tuple(tuple(sorted(some)) for some in out)


def _check_names(name: str, names: tuple[str, ...]) -> None:
    if not 1 <= len(names) <= NODES_MAX:
        raise UsageError(f"topology {name!r} has {len(names)} nodes: it can have 1 … {NODES_MAX}")
    for what, text in (("topology", name), *((f"node {rank}", text) for rank, text in enumerate(names))):
        if not isinstance(text, str) or not text.strip() or not text.isprintable() or len(text) > NAME_LENGTH_MAX:
            raise UsageError(f"{what} is named {text!r}: a name is 1 … {NAME_LENGTH_MAX} printable characters")
    first: dict[str, int] = {}
    for rank, text in enumerate(names):
        if first.setdefault(text, rank) != rank:
            raise UsageError(f"nodes {first[text]} and {rank} are both named {text!r}: names must differ")


def _check_endpoints(names: tuple[str, ...], endpoints: tuple[Endpoints | None, ...]) -> None:
    if len(endpoints) != len(names):
        raise UsageError(f"there are endpoints for {len(endpoints)} nodes: want them or None for all {len(names)}")
    bound: dict[str, str] = {}
    for name, both in zip(names, endpoints, strict=True):
        for address in (both.pull, both.push) if both is not None else ():
            if address in bound:
                raise UsageError(f"nodes {bound[address]} and {name} both bind {address!r}: give each its own address")
            bound[address] = name


def _checked_edges(
    graph: str, names: tuple[str, ...], edges: Mapping[tuple[int, int], float]
) -> dict[tuple[int, int], float]:
    for (src, dst), weight in edges.items():
        for end in (src, dst):
            if isinstance(end, bool) or not isinstance(end, int) or not 0 <= end < len(names):
                raise UsageError(
                    f"the {graph} graph has an edge {_edge(names, src, dst)}, but no node {end!r}: "
                    f"want 0 … {len(names) - 1}"
                )
        if src == dst:
            raise UsageError(
                f"the {graph} graph has an edge from node {names[src]} to itself: leave it out, "
                "a node's own weight is what its edges leave of 1"
            )
        _check_weight(graph, names, (src, dst), weight)
    return {pair: float(edges[pair]) for pair in sorted(edges)}


def _check_weight(graph: str, names: Sequence[str], edge: tuple[int, int], weight: float) -> None:
    number = not isinstance(weight, bool) and isinstance(weight, int | float)
    if not number or not 0 < weight <= 1 + WEIGHT_SLACK:
        raise UsageError(f"the {graph} graph's edge {_edge(names, *edge)} has weight {weight!r}: want one in (0, 1]")


def _check_sums(graph: str, names: tuple[str, ...], weights: Sequence[Sequence[float]]) -> None:
    for name, some in zip(names, weights, strict=True):
        total = math.fsum(some)
        if total > 1 + WEIGHT_SLACK:
            what = "into" if graph == "pull" else "out of"
            raise UsageError(
                f"the {graph} weights {what} node {name} sum to {total:.12g}: want at most 1, "
                "the rest is the node's own weight"
            )


def _name(names: Sequence[str], rank: object) -> str:
    return names[rank] if isinstance(rank, int) and 0 <= rank < len(names) else repr(rank)


def _edge(names: Sequence[str], src: object, dst: object) -> str:
    return f"{_name(names, src)} → {_name(names, dst)}"
