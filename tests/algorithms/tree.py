"""Nodes of ``rfast-tree`` that are told by hand what their neighbours say (:class:`~.network.Solo`): the root is node 0
of a star; an inner node, node 1 of a binary tree of 7, below 0, with children 3 and 4; a leaf, node 3 of it.
"""

from __future__ import annotations

from typing import Any

from rfast_zmq.core.events import (
    Action,
    Edge,
    LinkReady,
    Send,
)
from rfast_zmq.topology import build

from .network import Solo

BATCH = 8


def root(nodes: int = 3, x0: tuple[float, ...] = (0.0,), **settings: Any) -> Solo:
    return Solo(build("star", nodes), 0, x0, **{"lr": 1.0, "global_batch": BATCH, **settings})


def inner(**settings: Any) -> Solo:
    solo = Solo(build("binary-tree", 7), 1, **settings)
    solo.hear("W", 0, [0.0])
    return solo


def leaf(**settings: Any) -> Solo:
    solo = Solo(build("binary-tree", 7), 3, **settings)
    solo.hear("W", 1, [0.0])
    return solo


def sent(actions: list[Action]) -> set[Edge]:
    return {action.edge for action in actions if isinstance(action, Send)}


def record(solo: Solo, dst: int) -> tuple[float, float, float, int]:
    """(w·g, w, w·V, c) of what it says to its parent now."""
    m = solo.say("A", dst)
    return m.payload.item(), m.numbers["w"], m.numbers["wV"], m.numbers["c"]  # type: ignore[return-value]


def paced_root(nodes: int = 3, **settings: Any) -> Solo:
    """A root that has just stepped for a link, with a pace of 1 s."""
    solo = root(nodes, pace_s=1.0, optimizer="sgd", **settings)
    solo.gradient([0.0])
    for child in range(1, nodes):
        solo.hear("A", child, [0.0], w=1.0, c=1)
    solo.tell(LinkReady, Edge("W", 0, 1), 0)
    return solo
