"""Where gradients of the root's present model are added up on their way through the tree, and nobody waits.

A node computes at its newest model again and again, and gradients of older ones are ignored. What it has of the present
model, its own and its children's, it reports to its parent when the line takes the next message; until then it is added
up. So a line carries at most one report at a time, whatever is below it. Progress is all samples that were computed, as
the census has them: what is ignored has cost its time, too.

What a report holds, and when the root has enough for a step, is the subclass's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rfast_zmq.core.events import Action, Edge, Message, Number, Send
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.served import Downward, Gradient, Served
from rfast_zmq.errors import UsageError


class Gathered(Served):
    """Common state of a node that gathers what is of the present model. See the module."""

    options: ClassVar[Mapping[str, float]] = {"batch_gradients": 0.0}
    data_numbers: ClassVar[Mapping[str, type]] = {"version": int}

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        wanted = options["batch_gradients"]
        if wanted < 0 or wanted != int(wanted):
            raise UsageError(
                f"--algorithm-option batch_gradients={wanted:g}: must be a whole number of gradients, 1 or more, or 0"
                " for as many as B samples are"
            )

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._gathers = self.version
        """Version of the model whose gradients are gathered."""
        self._up_slots = [(edge, b) for edge, b in self._queues if edge.dst == self._up]
        """Where reports go."""

    # ------------------------------------------------------------------------------------ for the subclass

    @abstractmethod
    def _renew(self) -> None:
        """Forget what is of an older model."""

    @abstractmethod
    def _mine(self, gradient: Gradient, samples: int) -> None:
        """A gradient of this node at the present model."""

    @abstractmethod
    def _theirs(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> None:
        """A child's report of the present model, whose numbers may be any."""

    @abstractmethod
    def _step(self) -> bool:
        """At the root: a step, if there is enough for one."""

    @abstractmethod
    def _anew(self) -> bool:
        """Is there something to report since the last time?"""

    @abstractmethod
    def _sum(self) -> tuple[Gradient, dict[str, Number]]:
        """It, as of now, with its numbers; then there is nothing until something comes."""

    # ------------------------------------------------------------------------------------ of a node

    def _amount(self, samples: int) -> float:
        """What a gradient counts as: a gradient, where the user says how many are wanted, else its samples."""
        return 1.0 if self.config.options["batch_gradients"] else float(samples)

    @property
    def _wanted(self) -> float:
        """S, or B."""
        return self.config.options["batch_gradients"] or float(self.config.global_batch)

    def _given(self, gradient: Gradient, samples: int) -> list[Action]:
        if self._began_at == self._gathers:
            self._mine(gradient, samples)
        return self._gathered()

    def _whole(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> list[Action]:
        version = int(numbers["version"])  # type: ignore[arg-type]
        if not self.is_root:
            self._gather(version)  # down another way a model may be sooner below than here
        if version == self._gathers:
            self._theirs(src, parts, numbers)
        return self._gathered()

    def _gather(self, version: int) -> None:
        """What is of an older model than this is no longer wanted."""
        if version > self._gathers:
            self._gathers = version
            self._renew()

    def _gathered(self) -> list[Action]:
        """Something came: a step, or a report, unless one is on its way out."""
        if not self._closing.running:
            return []
        if self.is_root:
            if not self._step():
                return []
            self._gather(self.version)
            self._progress(self._last_s)
            return self._tell_below()
        return [] if self._leaving or not self._anew() else [Send(edge, b) for edge, b in self._up_slots]

    @property
    def _leaving(self) -> bool:
        """Has a part of a report left, but not all of it?"""
        return any(self._queues[slot] for slot in self._up_slots)

    def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
        actions = super()._link(edge, bucket, now)
        if (edge, bucket) not in self._up_slots:
            return actions
        return actions + [Send(*slot) for slot in self._up_slots if self._queues[slot]] + self._gathered()

    def _payload(self, edge: Edge, bucket: int, now: float) -> tuple[Tensor, dict[str, Number]] | None:
        if (edge, bucket) in self._up_slots and self._closing.running and not self._leaving and self._anew():
            parts, numbers = self._sum()
            assert self._up is not None
            for b, part in enumerate(parts):
                self._post(self._up, b, part, version=self._gathers, **numbers)
        return super()._payload(edge, bucket, now)

    def _received(self, message: Message, now: float) -> list[Action]:
        actions = super()._received(message, now)
        self._gather(self.version)
        return actions

    def _news(self, down: Downward) -> set[int]:
        return set(range(self.buckets)) if self.version > down.version else set()
