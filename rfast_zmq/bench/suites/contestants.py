"""Contestants by their kind, and the cells: what the suites are written with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rfast_zmq.bench.suites.ground import ALONE, Cell, Contestant

TOPOLOGIES = ("binary-tree", "line", "ring", "exponential", "mesh")


def with_all(contestants: Sequence[Contestant], **changes: object) -> tuple[Contestant, ...]:
    return tuple(replace(c, **changes) for c in contestants)  # type: ignore[arg-type]


def alone(optimizer: str, lr: float) -> Contestant:
    return Contestant(label=ALONE, algorithm="rfast-tree", topology="line", optimizer=optimizer, lr=lr)


def one(label: str, topology: str, optimizer: str, lr: float, **more: object) -> Contestant:
    algorithm = label.split(",")[0]
    return Contestant(label=label, algorithm=algorithm, topology=topology, optimizer=optimizer, lr=lr, **more)  # type: ignore[arg-type]


def gossip(label: str, topology: str, nadam: float, **more: object) -> Contestant:
    """Methods whose nodes each have momentum of their own: their authors took plain SGD and momentum."""
    return one(label, topology, "nadam", nadam, others=(("momentum", 0.05), ("sgd", 0.4)), **more)


def deep(label: str, topology: str, momentum: float, nadam: float, **more: object) -> Contestant:
    """The same on a deeper model, which nobody trains by plain SGD."""
    return one(label, topology, "nadam", nadam, others=(("momentum", momentum),), **more)


def by_topology(algorithm: str, lr: Iterable[float], report: float) -> tuple[Contestant, ...]:
    pairs = zip(TOPOLOGIES, lr, strict=True)
    return tuple(one(f"{algorithm}, {t}", t, "sgd", start, report=report) for t, start in pairs)


ONE_PEER = ("one_peer=1",)
"""As the authors of SGP ran it: to one neighbour a round, another each time."""

LABEL, IID = Cell(split="label"), Cell(split="iid")
EVEN, UNEVEN = Cell(speeds="even"), Cell(speeds="lognormal")
IID_EVEN, IID_UNEVEN = Cell(split="iid", speeds="even"), Cell(split="iid", speeds="lognormal")
