"""What is noted of a simulated run: what its model is worth, how fast its nodes are, what a user is told, and the
result when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from rfast_zmq.assembly import Plan
from rfast_zmq.results import NodePoint, Point, Result
from rfast_zmq.simulate.node import SimulatedNode

PACE_POINTS_S = 0.5
"""Virtual seconds between two points of a node's pace."""


@dataclass
class Simulation:
    """What a simulated run gave.

    Attributes:
        result: as of a real run, times virtual.
        points: the evaluations, oldest first.
        node_points: each node's pace over time.
        model: the plain iterate at the end, per bucket 1-D float32; None if there is none.
        said: (time, line) of what a user would have been told.
        broken_off: it had not ended when it was.
    """

    result: Result
    points: list[Point] = field(default_factory=list)
    node_points: list[NodePoint] = field(default_factory=list)
    model: tuple[Tensor, ...] | None = None
    said: list[tuple[float, str]] = field(default_factory=list)
    broken_off: bool = False


class Notes:
    """What is noted of one run.

    Args:
        plan: the run.
        nodes: all of its nodes, by rank.
        progress: called after each evaluation.

    Attributes:
        out: what the run gave, as far as it has come; whole after :meth:`finish`.
    """

    def __init__(
        self, plan: Plan, nodes: Sequence[SimulatedNode], progress: Callable[[Point], None] | None = None
    ) -> None:
        self._plan, self._nodes, self._progress = plan, nodes, progress
        self._root = nodes[plan.topology.root]
        self.out = Simulation(plan.result(simulated=True))
        self._next_evaluation = 0.0
        self._samples = 0
        """That all nodes have computed."""
        self._troubled = False

    def computed(self, node: SimulatedNode, samples: int, now: float) -> None:
        """A node has just had a gradient of so many samples."""
        self._samples += samples
        since_s, before = node.pace_mark
        if now - since_s >= PACE_POINTS_S:
            pace = (node.samples - before) / (now - since_s)
            self.out.node_points.append(NodePoint(time_s=now, rank=node.rank, samples=node.samples, pace=pace))
            node.pace_mark = (now, node.samples)
            node.worker.hook("on_report", node.algorithm.status())

    def notice_trouble(self, now: float) -> bool:
        """Whether it has just become known that a loss somewhere is not finite: a user is told, the run is to end."""
        trouble = self._root.algorithm.status().trouble
        if trouble < 0 or self._troubled:
            return False
        self._troubled = True
        self.say(now, f"{self._plan.topology.called(trouble)}: its loss or model is not a finite number")
        return True

    def evaluate(self, now: float) -> bool:
        """Score the model if that is due; whether it is then as good as was wanted: the run is to end."""
        if self._root.stopping or (rounds := self._rounds()) < self._next_evaluation:
            return False
        self._next_evaluation = rounds + self._plan.settings.evaluate_every
        point, target = self._score(now), self._plan.settings.target
        return target is not None and point is not None and (point.accuracy or 0.0) >= target

    def say(self, now: float, line: str) -> None:
        """What a user would be told."""
        self.out.said.append((now, line))

    def _counted(self) -> int | None:
        """Where the mean of all nodes' models is judged, the samples of all of them as of now. None: what is judged is
        the root's model, and the root knows of how many samples that is."""
        if not self._root.algorithm.judged_by_mean or self._root.stopping:
            return None
        return self._samples

    def _rounds(self) -> float:
        """Progress of the model that is judged."""
        algorithm, counted = self._root.algorithm, self._counted()
        if not algorithm.judged_by_mean:
            return algorithm.rounds
        return (algorithm.status().samples if counted is None else counted) / algorithm.config.global_batch

    def _judged(self) -> tuple[Tensor, ...] | None:
        """The root's model, or the mean of all nodes' where that is what the algorithm is judged by. (Once the run
        closes the root has that mean itself.)"""
        model = self._root.algorithm.export()
        if model is None or not self._root.algorithm.judged_by_mean or self._root.stopping:
            return model
        models = [node.algorithm.export() or model for node in self._nodes]
        return tuple(torch.stack(of_bucket).mean(0) for of_bucket in zip(*models, strict=True))

    def _score(self, now: float) -> Point | None:
        model = self._judged()
        if model is None:
            return None
        status, counted = self._root.algorithm.status(), self._counted()
        scores = self._root.worker.evaluate(model)
        self._root.worker.hook("on_evaluate", {"accuracy": nan, "loss": nan, **scores})
        point = Point(
            time_s=now,
            samples=status.samples if counted is None else counted,
            rounds=self._rounds(),
            accuracy=scores.pop("accuracy", None),
            loss=scores.pop("loss", None),
            train_loss=status.loss,
            staleness_rounds=status.staleness_rounds,
            bytes_sent=sum(node.bytes for node in self._nodes),
            extra=scores,
        )
        self.out.points.append(point)
        if self._progress is not None:
            self._progress(point)
        return point

    def finish(self, now: float, broken_off: bool) -> None:
        """The run has ended, or was broken off: the last evaluation, and what all nodes have counted."""
        self.out.broken_off = broken_off
        self.out.model = self._root.algorithm.export()
        if self.out.model is not None:
            self._score(now)
        result, status = self.out.result, self._root.algorithm.status()
        result.settle(self.out.points, self._plan.settings.target)
        if broken_off and result.target_s == now:
            result.target_s = result.target_samples = None
        result.samples, result.rounds, result.wall_s = status.samples, self._rounds(), now
        result.set_aside = list(status.set_aside)
        result.missing = [node.rank for node in self._nodes if not node.gone]
        result.trouble = status.trouble if status.trouble >= 0 else None
        if status.slowest_rank >= 0:
            result.slowest_node = {"rank": status.slowest_rank, "pace": status.slowest_pace}
        for node in self._nodes:
            own = node.algorithm.status()
            result.bytes_sent += node.bytes
            result.messages_sent += node.messages
            result.messages_received += own.accepted + own.stale
            result.messages_stale += own.stale
            for reason, times in node.refused.items():
                result.messages_refused[reason] = result.messages_refused.get(reason, 0) + times
            for link in node.faults.values():
                for name in ("dropped", "duplicated", "reordered"):
                    result.faults[name] = result.faults.get(name, 0) + getattr(link, name)
            result.per_node.append(
                {
                    "rank": node.rank,
                    "gradients": own.gradients,
                    "samples": own.own_samples,
                    "pace": own.pace,
                    "waited_s": own.waited_s,
                }
            )
        if not result.missing and not result.set_aside:
            records = {node.rank: node.algorithm.last_record() for node in self._nodes}
            result.identity_error = self._root.algorithm.identity_error(records, self._root.rank)
