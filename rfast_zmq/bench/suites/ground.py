"""What is compared with what, as plain data: a ground, the cells on it, the contestants; and the one run that each
choice of lr, batch and seed makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

from rfast_zmq.assembly import Plan
from rfast_zmq.conditions import Speeds
from rfast_zmq.errors import UsageError
from rfast_zmq.settings import WIRES, Settings

SPEEDS = {"even": "even speeds", "lognormal": "lognormal(.5) speeds", "straggler": "one 5× straggler"}
SIGMA, STRAGGLER_RANK, STRAGGLER_FACTOR = 0.5, 5, 5
REPORT_LEAST_S = 0.0125
"""Emulated seconds of the shortest gradient: eight real processes on two cores have no room for shorter ones."""
ALONE = "one machine"
"""The contestant that has all data and the speed of one node that is no straggler."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A task with its numbers.

    Attributes:
        name: in keys and file names.
        title: as a heading.
        task: file in ``nodes/``.
        data: which of the data files it needs (:data:`DATA`); None: none.
        options: the task's own.
        nodes: number of nodes.
        batch: B of the first table, in samples.
        target: accuracy that ends a run.
        samples: that end a run which does not get there.
        share_s: emulated seconds that a node needs for its share of ``batch``.
        evaluate_every: rounds of ``batch`` samples between two evaluations.
        simulated: in virtual time; if not, one process a node, and the wall clock.
        hosts: with one process a node, each in a network namespace of its own.
        bytes_per_s: of each node's outgoing and of its incoming line, in virtual time and of hosts.
        latency_s: of a message, in virtual time.
    """

    name: str
    title: str
    task: str
    data: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 8
    batch: int = 256
    target: float
    samples: int
    share_s: float = 0.1
    evaluate_every: float = 1.0
    simulated: bool = True
    hosts: bool = False
    bytes_per_s: float = 125e6
    latency_s: float = 0.0005


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The conditions under which the contestants run.

    Attributes:
        split: of the data.
        speeds: one of :data:`SPEEDS`.
        loss: probability that a message is lost.
        to_the_end: run all of the ground's samples, and compare the accuracy there instead of the time to the target.
    """

    split: str = "label"
    speeds: str = "straggler"
    loss: float = 0.0
    to_the_end: bool = False

    @property
    def key(self) -> str:
        loss = f"/loss{self.loss * 100:g}" if self.loss else ""
        return f"{self.split}/{self.speeds}{loss}{'/end' if self.to_the_end else ''}"

    @property
    def title(self) -> str:
        loss = f", {self.loss:.0%} loss" if self.loss else ""
        return f"{self.split} split, {SPEEDS[self.speeds]}{loss}{', all samples' if self.to_the_end else ''}"

    @property
    def tuned_as(self) -> Cell:
        """The cell whose lr it takes: tuned once per split, speeds, and what is compared."""
        return Cell(split=self.split, speeds=self.speeds, to_the_end=self.to_the_end)


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An algorithm with its graph.

    Attributes:
        label: its name in the tables.
        algorithm, topology, optimizer, wire: as of ``rfast run``.
        lr: where the search for the best begins.
        others: further optimisers, each with an lr to begin with; the best of them is taken.
        report: part of a node's share that one gradient is over.
        pace: C as of ``--pace``, in seconds; None: as the algorithm has it.
        options: the algorithm's own, ``NAME=VALUE`` each.
        bucket_bytes: of a message, at most.
        tuned_as: algorithm and topology that stand for it in virtual time; None: its own.
        nodes_most: it does not run on grounds with more nodes.
    """

    label: str
    algorithm: str
    topology: str
    optimizer: str
    lr: float
    report: float = 1.0
    pace: float | None = None
    wire: str = "float32"
    options: tuple[str, ...] = ()
    bucket_bytes: int | None = None
    tuned_as: tuple[str, str] | None = None
    nodes_most: float = inf
    others: tuple[tuple[str, float], ...] = ()

    @property
    def optimizers(self) -> tuple[tuple[str, float], ...]:
        """All that it may have, each with an lr to begin with."""
        return ((self.optimizer, self.lr), *self.others)

    def with_optimizer(self, optimizer: str) -> Contestant:
        """The same with one of its optimisers, and no other."""
        return replace(self, optimizer=optimizer, lr=dict(self.optimizers)[optimizer], others=())

    @property
    def searched_as(self) -> tuple[str, str]:
        """Algorithm and topology that its lr is searched with."""
        return self.tuned_as or (self.algorithm, self.topology)

    @property
    def alone(self) -> bool:
        return self.label == ALONE


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        ground, cell, contestant: of what.
        lr: as of ``rfast run``.
        batch: B.
        seed: of everything drawn.
        simulated: in virtual time.
        data: path of the data file; None: the task needs none.
        until_s: in virtual time, break it off there if it has not reached its target.
    """

    ground: Ground
    cell: Cell
    contestant: Contestant
    lr: float
    batch: int
    seed: int
    simulated: bool
    data: str | None
    until_s: float = inf

    @property
    def key(self) -> str:
        """The same for two runs that would give the same: of the data file it knows what is in it, not the path."""
        return self._hash(self.seed)

    @property
    def series(self) -> str:
        """The same for runs that differ in the seed alone."""
        return self._hash(None)

    def _hash(self, seed: int | None) -> str:
        unseen = ("name", "title", "simulated", "hosts", "label", "lr", "others", "nodes_most")
        ground = {name: value for name, value in asdict(self.ground).items() if name not in unseen}
        contestant = {name: value for name, value in asdict(self._stands_for).items() if name not in unseen}
        what = [ground, asdict(self.cell), contestant, self.lr, self.batch, seed, self.simulated]
        what += ["hosts"] if self.ground.hosts and not self.simulated else []
        what += [self.contestant.alone, SIGMA, STRAGGLER_RANK, STRAGGLER_FACTOR, REPORT_LEAST_S]
        what += [None if self.data is None else digest(self.data)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def _stands_for(self) -> Contestant:
        """What runs: in virtual time, for some, another."""
        if not self.simulated or self.contestant.tuned_as is None:
            return self.contestant
        algorithm, topology = self.contestant.tuned_as
        return replace(
            self.contestant, algorithm=algorithm, topology=topology, options=(), wire=WIRES[0], tuned_as=None
        )

    @property
    def title(self) -> str:
        cell = "" if self.contestant.alone else f", {self.cell.title}"
        return (
            f"{self.ground.name}{cell}: {self.contestant.label}, lr {self.lr:.3g}, B {self.batch:g}, seed {self.seed}"
        )

    def plan(self) -> Plan:
        """The run, checked.

        Raises:
            UsageError: what the algorithm or the task refuses.
        """
        return Plan.make(str(task_file(self.ground.task)), self.settings())

    def settings(self) -> Settings:
        ground, cell, contestant = self.ground, self.cell, self._stands_for
        nodes = 1 if contestant.alone else ground.nodes
        more: dict[str, Any] = {} if contestant.bucket_bytes is None else {"bucket_bytes": contestant.bucket_bytes}
        return Settings(
            nodes=nodes,
            topology=contestant.topology,
            algorithm=contestant.algorithm,
            algorithm_option=contestant.options,
            split=cell.split,
            samples=ground.samples,
            target=None if cell.to_the_end else ground.target,
            optimizer=contestant.optimizer,
            lr=self.lr,
            global_batch=self.batch,
            report_batch=self._report(nodes),
            pace=contestant.pace,
            wire=contestant.wire,
            drop=cell.loss,
            seed=self.seed,
            data=self.data,
            evaluate_every=ground.evaluate_every * ground.batch / self.batch,
            device="cpu",
            task_options=dict(ground.options),
            **_speeds(ground, cell, self.batch, nodes),
            **more,
        )

    def _report(self, nodes: int) -> int:
        """Samples of a gradient: the contestant's part of a share, if that takes long enough, else of what does."""
        share, sample_s = self.batch / nodes, self.ground.share_s * self.ground.nodes / self.ground.batch
        least = min(share, REPORT_LEAST_S / sample_s)
        return max(1, round(max(self.contestant.report * share, least)))


@cache
def digest(path: str) -> str:
    """Of what is in a file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a file that can be read") from None


def no_wait_rate(ground: Ground, cell: Cell) -> float:
    """Samples a second of all nodes together if none of them ever waits."""
    told = _speeds(ground, cell, ground.batch, ground.nodes)
    speeds = Speeds.parse(told["compute"], told.get("straggler", ()), ground.nodes, 0)
    return sum(speeds.mean_rate(rank, ground.batch / ground.nodes) for rank in range(ground.nodes))


def task_file(name: str) -> Path:
    """A task of the repository.

    Raises:
        UsageError: it is neither beside the package nor in the working folder.
    """
    for folder in (Path(__file__).parents[3], Path.cwd()):
        if (folder / "nodes" / name).is_file():
            return folder / "nodes" / name
    raise UsageError(f"nodes/{name}: not found; the suites run the tasks of the repository: work in a clone of it")


def _speeds(ground: Ground, cell: Cell, batch: float, nodes: int) -> dict[str, Any]:
    """A sample takes a node the same time whatever B is, and one machine alone as long as one of the nodes."""
    share_s = ground.share_s * (batch / nodes) / (ground.batch / ground.nodes)
    told: dict[str, Any] = {"compute": f"constant:{share_s}"}
    if nodes == 1:
        return told
    if cell.speeds == "lognormal":
        told["compute"] = f"lognormal:{share_s}:{SIGMA}"
    if cell.speeds == "straggler":
        told["straggler"] = (f"{min(STRAGGLER_RANK, nodes - 1)}:{STRAGGLER_FACTOR}",)
    return told
