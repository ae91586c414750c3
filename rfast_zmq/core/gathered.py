"""Where gradients of the root's present model are added up on their way through the tree, and nobody waits.

A node computes at its newest model again and again, and gradients of older ones are ignored. What it has of the present
model, its own and its children's, leaves for the parent as soon as the line is free of the report before; until then it
is added up. So a line carries at most one report at a time, whatever is below it, and a report of an older model that
has not begun to leave is taken back. Progress is all samples that were computed, as the census has them: what is
ignored has cost its time, too.

What a report holds, and when the root has enough for a step, is the subclass's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from rfast_zmq.core.events import Action, Edge, Message, Number
from rfast_zmq.core.interface import NodeConfig
from rfast_zmq.core.served import Gradient, Served, _Downward
from rfast_zmq.errors import UsageError


def check_batch_gradients(options: Mapping[str, float]) -> None:
    """
    Raises:
        UsageError: S is no whole number, 0 or more.
    """
    wanted = options["batch_gradients"]
    if wanted < 0 or wanted != int(wanted):
        raise UsageError(
            f"--algorithm-option batch_gradients={wanted:g}: must be a whole number of gradients, 1 or more, or 0 for"
            " as many as B samples are"
        )


class Gathered(Served):
    """Common state of a node that gathers what is of the present model. See the module."""

    options: ClassVar[Mapping[str, float]] = {"batch_gradients": 0.0}
    data_numbers: ClassVar[Mapping[str, type]] = {"version": int}

    @classmethod
    def check_options(cls, options: Mapping[str, float]) -> None:
        check_batch_gradients(options)

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._gathers = self.version
        """Version of the model whose gradients are gathered."""
        self._free = [(e, b) for e, b in self._queues if e.dst == self._up]
        """The queues of the reports to the parent."""

    # ------------------------------------------------------------------------------------ for the subclass

    @abstractmethod
    def _renew(self) -> None:
        """Forget what is of an older model."""

    @abstractmethod
    def _mine(self, gradient: Gradient, samples: int) -> None:
        """A gradient of this node at the present model."""

    @abstractmethod
    def _theirs(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> None:
        """A child's report of the present model."""

    @abstractmethod
    def _step(self) -> bool:
        """At the root: a step, if there is enough for one."""

    @abstractmethod
    def _sum(self) -> tuple[Gradient, dict[str, Number]] | None:
        """What there is to report since the last time, with its numbers; None: nothing."""

    # ------------------------------------------------------------------------------------ of a node

    def _amount(self, samples: int) -> float:
        """What a gradient counts as: a gradient, where the user says how many are wanted, else its samples."""
        return 1.0 if self.config.options["batch_gradients"] else float(samples)

    @property
    def _wanted(self) -> float:
        """S, or B."""
        return self.config.options["batch_gradients"] or float(self.config.global_batch)

    def _given(self, gradient: Gradient, samples: int) -> list[Action]:
        if self._began_at == self._newest():
            self._mine(gradient, samples)
        return self._gathered()

    def _whole(self, src: int, parts: Gradient, numbers: Mapping[str, Number]) -> list[Action]:
        if (version := int(numbers["version"])) > self._newest():  # type: ignore[arg-type]
            self._gathers = version  # down the other tree it was sooner below than here
            self._renew()
        if version == self._gathers:
            self._theirs(src, parts, numbers)
        return self._gathered()

    def _newest(self) -> int:
        """The version that is gathered; with a newer model gathering begins anew."""
        if self.version > self._gathers:
            self._gathers = self.version
            self._renew()
            if self._free and all(len(self._queues[slot]) == 1 for slot in self._free):
                for slot in self._free:
                    self._queues[slot].clear()
        return self._gathers

    def _gathered(self) -> list[Action]:
        if not self._closing.running:
            return []
        if self._up is None:
            if not self._step():
                return []
            self._newest()
            self._progress(self._last_s)
            return self._tell_below()
        if any(self._queues[slot] for slot in self._free) or (found := self._sum()) is None:
            return []
        return self._report(found[0], version=self._gathers, **found[1])

    def _link(self, edge: Edge, bucket: int, now: float) -> list[Action]:
        actions = super()._link(edge, bucket, now)
        return actions + self._gathered() if edge.dst == self._up and edge.graph == "A" else actions

    def _received(self, message: Message, now: float) -> list[Action]:
        actions = super()._received(message, now)
        self._newest()
        return actions

    def _news(self, down: _Downward) -> set[int]:
        return set(range(self.buckets)) if self.version > down.version else set()
