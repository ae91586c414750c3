"""A hostile network around the pure core, and what tests need to look into a node.

:class:`Network` holds n nodes and every message that is under way; nothing happens by itself. A schedule (hypothesis'
operations, or a seeded stream of them) says who computes, who speaks, and what is delivered, lost or repeated, in any
order. Every message is encoded to bytes and decoded again, so that aliasing shows; and every tensor that ever was
handed over is remembered, so that :meth:`Network.check_nothing_was_written_to` can tell.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from rfast_zmq.algorithms import ALGORITHMS, NodeConfig
from rfast_zmq.core.events import (
    Action,
    Edge,
    Event,
    GradientReady,
    Leave,
    LinkReady,
    Message,
    ModelWanted,
    Number,
    PeerLeft,
    Ready,
    Received,
    RunGradient,
    Send,
    Stamp,
    Started,
    Stopping,
    StopWanted,
    Tick,
    Transmit,
)
from rfast_zmq.core.interface import Algorithm
from rfast_zmq.core.ring import Ring
from rfast_zmq.core.served import Served
from rfast_zmq.task.layout import Layout
from rfast_zmq.topology import Topology, build, from_edges
from rfast_zmq.wire import Codec

KINDS = ("compute", "finish", "speak", "deliver", "repeat", "lose", "tick")
Operation = tuple[str, int]
"""What is to happen, and a number that picks to whom (modulo those there are)."""


def topology_of(family: str, nodes: int) -> Topology:
    """A family; or, for any number of nodes from 3: ``split-roots``, where W and A differ and share only node 1."""
    if family != "split-roots":
        return build(family, nodes, seed=1)
    others = [rank for rank in range(nodes) if rank != 1]
    pull = [(1, others[0]), *pairwise(others), (others[-1], others[0])]
    push = [(rank, 1) for rank in others] + [(others[0], others[-1])]
    return from_edges("split-roots", nodes, pull, push)


SHORT = {"local_steps": 2.0, "outer_momentum": 0.5}


def shape_for(name: str, shape: str) -> str:
    """A ring for an algorithm that runs on nothing else; a single tree for one that has use for no more."""
    if shape == "double-tree" and issubclass(ALGORITHMS[name], Served):
        return "binary-tree"
    return "ring" if issubclass(ALGORITHMS[name], Ring) else shape


def options_for(name: str) -> dict[str, float]:
    """An algorithm's defaults, but for few local steps and little outer momentum: the schedules here are short."""
    options = ALGORITHMS[name].options
    return {**options, **{option: value for option, value in SHORT.items() if option in options}}


def given_options(name: str) -> tuple[str, ...]:
    """The same as a user gives them."""
    return tuple(f"{option}={value}" for option, value in options_for(name).items())


class Quadratic:
    """f_i(x) = ½ Σ H_i (x − b_i)², with the optimum of the weighted mean over nodes."""

    def __init__(self, nodes: int, dim: int, seed: int = 0, weights: Sequence[float] | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.H, self.b = rng.uniform(0.5, 1, (nodes, dim)), rng.normal(0, 1, (nodes, dim))
        self.weights = np.ones(nodes) if weights is None else np.array(weights)

    def gradient(self, rank: int, x: Tensor) -> Tensor:
        return torch.from_numpy(self.H[rank]) * (x - torch.from_numpy(self.b[rank]))

    def optimum(self, ranks: Sequence[int] | None = None) -> np.ndarray:
        alive = np.arange(len(self.H)) if ranks is None else np.array(ranks)
        w = self.weights[alive]
        return (w @ (self.H[alive] * self.b[alive])) / (w @ self.H[alive])


@dataclass
class Node:
    algorithm: Any
    codec: Codec
    computing: list[RunGradient] = field(default_factory=list)
    stopping: bool = False
    left: bool = False
    said: list[Action] = field(default_factory=list)


class Network:
    """n nodes of one algorithm and the messages between them.

    Args:
        name: of the algorithm.
        topology: of the nodes.
        problem: their gradients.
        bucket: coordinates in a bucket; None: one bucket.
        samples: of every gradient.
        settings: of each node's :class:`NodeConfig`.
    """

    def __init__(
        self,
        name: str,
        topology: Topology,
        problem: Quadratic,
        *,
        bucket: int | None = None,
        samples: int = 1,
        every_initial: bool = True,
        **settings: Any,
    ) -> None:
        self.name, self.topology, self.problem, self.samples = name, topology, problem, samples
        self.layout = Layout.vector(problem.H.shape[1], dtype=torch.float64, bucket=bucket)
        self.settings = {"global_batch": 2 * topology.nodes, **settings}
        self.x0 = self.layout.split(torch.linspace(-1, 1, self.layout.total, dtype=torch.float64))
        self.every_initial = every_initial
        self.now = 0.0
        self.flying: list[tuple[Edge, list[bytes]]] = []
        self.dirty: dict[tuple[Edge, int], None] = {}
        self.leaving: list[int] = []
        self.handed: list[tuple[Tensor, int]] = []
        self.nodes = [self.make(rank, 1) for rank in range(topology.nodes)]
        for rank in range(topology.nodes):
            self.tell(rank, Started(0.0))

    def make(self, rank: int, incarnation: int) -> Node:
        initial = self.x0 if self.every_initial or rank == self.topology.root else None
        config = NodeConfig(
            rank=rank,
            topology=self.topology,
            layout=self.layout,
            initial=initial,
            incarnation=incarnation,
            weight=float(self.problem.weights[rank]),
            **{"options": options_for(self.name), **self.settings},
        )
        algorithm: Algorithm = ALGORITHMS[self.name](config)
        return Node(algorithm, codec_of(algorithm))

    def restart(self, rank: int, incarnation: int) -> None:
        """The node loses all it knew."""
        self.nodes[rank] = self.make(rank, incarnation)
        self.tell(rank, Started(self.now))

    # ---------------------------------------------------------------------------------------------- what happens

    def tell(self, rank: int, event: Event) -> list[Action]:
        node = self.nodes[rank]
        match event:
            case Received(_, message):
                self.remember(message.payload)
            case GradientReady(_, gradient):
                self.remember(*gradient)
        actions = node.algorithm.handle(event)
        node.said += actions
        for action in actions:
            match action:
                case Send(edge, bucket):
                    assert edge in node.algorithm.out_edges
                    self.dirty[edge, bucket] = None
                case Transmit(message):
                    self.remember(message.payload)
                    self.flying.append((message.edge, [bytes(frame) for frame in node.codec.encode(message)]))
                case RunGradient(model):
                    assert not node.stopping, "a stopping node computes no more"
                    self.remember(*model)
                    node.computing.append(action)
                case Stopping():
                    node.stopping = True
                case Leave():
                    node.left = True
                    self.leaving.append(rank)
                    for peer, other in enumerate(self.nodes):
                        if any(edge.dst == rank for edge in other.algorithm.out_edges) and not other.left:
                            self.tell(peer, PeerLeft(self.now, rank))
                case Ready():
                    pass
        return actions

    def remember(self, *tensors: Tensor) -> None:
        self.handed += [(t, digest(t)) for t in tensors]

    def check_nothing_was_written_to(self) -> None:
        assert all(digest(t) == then for t, then in self.handed)

    def compute(self, rank: int) -> None:
        """The compute coroutine asks for a model, if it is free."""
        if not self.nodes[rank].computing and not self.nodes[rank].left:
            self.tell(rank, ModelWanted(self.now))

    def finish(self, rank: int) -> None:
        """The gradient that is being computed is ready."""
        node = self.nodes[rank]
        if node.computing and not node.left:
            run = node.computing.pop()
            g = self.problem.gradient(rank, torch.cat(run.model))
            loss = float(g.square().sum())
            self.tell(rank, GradientReady(self.now, self.layout.split(g), self.samples, loss, run.rounds, 0.1))

    def speak(self, edge: Edge, bucket: int = 0) -> None:
        self.dirty.pop((edge, bucket), None)
        if not self.nodes[edge.src].left:
            self.tell(edge.src, LinkReady(self.now, edge, bucket))

    def deliver(self, index: int, keep: bool = False) -> None:
        edge, frames = self.flying[index]
        if not keep:
            self.flying.pop(index)
        if not self.nodes[edge.dst].left:
            self.tell(edge.dst, Received(self.now, self.nodes[edge.dst].codec.decode(frames)))

    def operate(self, operation: Operation) -> None:
        """One thing happens."""
        kind, pick = operation
        self.now += 0.001
        flying = len(self.flying)
        match kind:
            case "compute":
                self.compute(pick % len(self.nodes))
            case "finish":
                self.finish(pick % len(self.nodes))
            case "speak" if self.dirty:
                self.speak(*list(self.dirty)[pick % len(self.dirty)])
            case "deliver" if flying:
                self.deliver(pick % flying)
            case "repeat" if flying:
                self.deliver(pick % flying, keep=True)
            case "lose" if flying:
                self.flying.pop(pick % flying)
            case "tick":
                self.tell(pick % len(self.nodes), Tick(self.now))

    # ---------------------------------------------------------------------------------------------- a seeded stream

    def turn(self, rank: int, draw: random.Random, drop: float, duplicate: float = 0.1, reorder: float = 0.1) -> None:
        """One node computes (slower or faster than others, as the caller picks); whoever has news says it, over
        lossy links; what arrives is relayed at once. Some messages stay under way until a later turn."""
        self.now += 0.01
        self.finish(rank)
        self.compute(rank)
        for _ in range(4 * len(self.nodes)):
            if not self.dirty and not self.flying:
                break
            for edge, bucket in list(self.dirty):
                self.speak(edge, bucket)
            self.arrive(draw, drop, duplicate, reorder)

    def arrive(self, draw: random.Random, drop: float, duplicate: float, reorder: float) -> None:
        """What is under way arrives, or not."""
        late = []
        for edge, frames in self.flying:
            if draw.random() < drop:
                continue
            if draw.random() < reorder:
                late.append((edge, frames))
                continue
            for _ in range(2 if draw.random() < duplicate else 1):
                if not self.nodes[edge.dst].left:
                    self.flying_arrives(edge, frames)
        self.flying = [*self.flying[len(self.flying) :], *late]

    def flying_arrives(self, edge: Edge, frames: list[bytes]) -> None:
        self.tell(edge.dst, Received(self.now, self.nodes[edge.dst].codec.decode(frames)))

    def train(self, turns: int, seed: int = 0, drop: float = 0.3, straggler: int | None = None) -> None:
        """Turns of random nodes; a straggler takes every third of those it is drawn for."""
        draw, idle = random.Random(seed), 0
        for _ in range(turns):
            rank = draw.randrange(len(self.nodes))
            idle += rank == straggler
            if rank != straggler or idle % 3 == 0:
                self.turn(rank, draw, drop)
            if len(self.handed) > 2000:
                self.check_nothing_was_written_to()
                self.handed.clear()

    def close(self, drop: float, seed: int = 0, steps: int = 4000) -> int:
        """The root is told to stop; everybody ticks, idle edges repeat themselves. Gives the steps until all left."""
        draw = random.Random(seed)
        self.tell(self.topology.root, StopWanted(self.now))
        for step in range(steps):
            if all(node.left for node in self.nodes):
                return step
            self.now += 0.02
            for rank, node in enumerate(self.nodes):
                if node.left:
                    continue
                self.tell(rank, Tick(self.now))
                self.compute(rank)
                self.finish(rank)
                for edge in node.algorithm.out_edges:
                    for bucket in self.nodes[edge.src].algorithm.buckets_along(edge):
                        self.speak(edge, bucket)
            self.arrive(draw, drop, 0.1, 0.1)
        raise AssertionError(f"not left: {[rank for rank, node in enumerate(self.nodes) if not node.left]}")

    # ---------------------------------------------------------------------------------------------- what is asked

    def model(self, rank: int | None = None) -> np.ndarray:
        model = self.nodes[self.topology.root if rank is None else rank].algorithm.export()
        return torch.cat(list(model)).numpy()

    def error(self, ranks: Sequence[int] | None = None) -> float:
        """Largest distance of the root's plain iterate from the optimum."""
        return float(abs(self.model() - self.problem.optimum(ranks)).max())

    def prints(self) -> list[str]:
        return [fingerprint(node.algorithm) for node in self.nodes]


# -------------------------------------------------------------------------------------------------- looking inside


def codec_of(algorithm: Algorithm) -> Codec:
    layout = algorithm.config.layout
    return Codec(
        run="test",
        layout=layout.hash,
        sizes=layout.sizes,
        dtype=layout.dtype,
        in_edges=algorithm.in_edges,
        numbers={"W": algorithm.numbers("W"), "A": algorithm.numbers("A")},
        packings=algorithm.config.packings,
    )


def digest(t: Tensor) -> int:
    return crc32(t.detach().contiguous().numpy().tobytes())


NOT_STATE = ("config", "_stale", "_last_s")
"""What is no part of a node's state: what it was told at the start, the count of what it dropped, what time it is."""


def leaves(value: object, path: str = "") -> list[tuple[str, object]]:
    """Every number and tensor that an object holds, down to the bits, with the way to it."""
    if isinstance(value, Tensor):
        return [(path, (tuple(value.shape), value.detach().contiguous().numpy().tobytes()))]
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{path}[{key!r}]")]
    if isinstance(value, (set, frozenset)):
        return [(path, sorted(value))]
    if isinstance(value, (list, tuple)):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, f"{path}[{i}]")]
    names = [*getattr(value, "__dict__", {}), *(n for c in type(value).__mro__ for n in getattr(c, "__slots__", ()))]
    if type(value).__module__.startswith("rfast_zmq") and names and not isinstance(value, int):
        return [leaf for n in names if n not in NOT_STATE for leaf in leaves(getattr(value, n), f"{path}.{n}")]
    return [(path, repr(value))]


def fingerprint(algorithm: object) -> str:
    """The same for two nodes exactly when their states are the same, bit by bit."""
    return repr(leaves(algorithm))


def message_on(
    algorithm: Algorithm,
    edge: Edge,
    payload: Tensor,
    stamp: Stamp | tuple[int, int],
    bucket: int = 0,
    **numbers: Number,
) -> Message:
    """A message with the numbers that are not given at their zeros."""
    zeros: dict[str, Number] = {name: kind() for name, kind in algorithm.numbers(edge.graph).items()}
    if edge.graph == "A":
        zeros |= {"slowest_rank": -1, "trouble": -1}
    if "seq" in zeros:
        zeros["seq"] = 1
    assert numbers.keys() <= zeros.keys()
    return Message(edge, bucket, Stamp(*stamp), payload, {**zeros, **numbers})


class Solo:
    """One node alone, told by hand what its neighbours say. Vectors are lists of numbers; stamps count up."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        x0: Sequence[float] = (0.0,),
        *,
        name: str = "rfast-tree",
        layout: Layout | None = None,
        **settings: Any,
    ) -> None:
        self.layout = layout or Layout.vector(len(x0), dtype=torch.float64)
        self.x0 = torch.tensor(list(x0), dtype=self.layout.dtype)
        root = rank == topology.root
        self.config = NodeConfig(
            rank=rank,
            topology=topology,
            layout=self.layout,
            initial=self.layout.split(self.x0) if root else None,
            **{"options": ALGORITHMS[name].options, **settings},
        )
        self.node: Any = ALGORITHMS[name](self.config)
        self.rank, self.now, self._counter = rank, 0.0, 0
        self.between_s = 0.0
        """Passes before each message that is heard."""
        self.tell(Started)

    def tell(self, kind: Callable[..., Event], *rest: Any) -> list[Action]:
        actions: list[Action] = self.node.handle(kind(self.now, *rest))
        return actions

    def vector(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(list(values), dtype=self.layout.dtype)

    def gradient(
        self, values: Sequence[float], samples: int = 1, rounds: float = 0.0, loss: float = 0.0, seconds: float = 1.0
    ) -> list[Action]:
        """The node's own gradient is ready."""
        pieces = self.layout.split(self.vector(values))
        return self.tell(GradientReady, pieces, samples, loss, (rounds,) * len(pieces), seconds)

    def hear(
        self,
        graph: str,
        src: int,
        values: Sequence[float],
        stamp: tuple[int, int] | None = None,
        bucket: int = 0,
        **numbers: Number,
    ) -> list[Action]:
        """A neighbour's message arrives."""
        self._counter += 1
        self.now += self.between_s
        edge = next(e for e in self.node.in_edges if (e.graph, e.src) == (graph, src))
        stamp = stamp or (1, self._counter)
        return self.tell(Received, message_on(self.node, edge, self.vector(values), stamp, bucket, **numbers))

    def say(self, graph: str, dst: int, bucket: int = 0) -> Message:
        """What it says to a neighbour now."""
        edge = Edge(graph, self.rank, dst)  # type: ignore[arg-type]
        assert edge in self.node.out_edges
        (action,) = self.tell(LinkReady, edge, bucket)
        assert isinstance(action, Transmit)
        return action.message

    def model(self) -> RunGradient:
        return next(action for action in self.tell(ModelWanted) if isinstance(action, RunGradient))

    @property
    def x(self) -> list[float]:
        """The model that it computes at."""
        return [float(v) for v in torch.cat(self.model().model)]

    @property
    def theta(self) -> list[float]:
        """The plain iterate."""
        return [float(v) for v in torch.cat(list(self.node.export()))]

    @property
    def rounds(self) -> float:
        return float(self.node.status().rounds)
