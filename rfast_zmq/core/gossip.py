"""Who talks to whom, and with which weights, where neighbours average: for the rivals that need an undirected graph, or
one in which everybody reaches everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rfast_zmq.topology import Topology


def neighbours(topology: Topology) -> tuple[tuple[int, ...], ...]:
    """Per node those that an edge of W or of A joins it with, whichever way; ascending."""
    found: list[set[int]] = [set() for _ in range(topology.nodes)]
    for src, dst in (*topology.pull, *topology.push):
        found[src].add(dst)
        found[dst].add(src)
    return tuple(tuple(sorted(of_node)) for of_node in found)


def metropolis(around: Sequence[Sequence[int]], rank: int) -> Mapping[int, float]:
    """Weights of a node for its neighbours and itself, such that those of all nodes are symmetric and doubly
    stochastic: 1/(1 + max(d_i, d_j)), and for itself what is left.

    Args:
        around: per node its neighbours, who have it among theirs.
        rank: the node.

    Source: Xiao and Boyd, "Fast linear iterations for distributed averaging" (2004), section 4.2.
    """
    weights = {j: 1.0 / (1 + max(len(around[rank]), len(around[j]))) for j in around[rank]}
    return {**weights, rank: 1.0 - sum(weights.values())}


def strongly_connected(topology: Topology) -> bool:
    """Does everybody's mass reach everybody along A?"""
    return len(topology.push_roots) == topology.nodes


def receivers(topology: Topology) -> tuple[tuple[int, ...], ...]:
    """Per node those that it hands mass to: along A where that reaches everybody, else all its neighbours."""
    if strongly_connected(topology):
        return tuple(topology.push_out(rank) for rank in range(topology.nodes))
    return neighbours(topology)
