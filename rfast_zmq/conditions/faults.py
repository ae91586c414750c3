"""What a link does to the messages it carries: loses, repeats and reorders them, as told."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from rfast_zmq.conditions.draws import uniform
from rfast_zmq.errors import UsageError

T = TypeVar("T")


class Faults:
    """The faults of every link of a run.

    Args:
        drop: probability that an item is lost.
        duplicate: probability that one which is not lost is delivered twice.
        reorder: probability that one which is not lost is held back until the next has been delivered.
        seed: of the draws, ≥ 0.

    Raises:
        UsageError: a probability outside 0 ≤ p < 1, or a negative seed.
    """

    def __init__(self, *, drop: float = 0.0, duplicate: float = 0.0, reorder: float = 0.0, seed: int = 0) -> None:
        for flag, value in (("drop", drop), ("duplicate", duplicate), ("reorder", reorder)):
            if not 0 <= value < 1:
                raise UsageError(f"--{flag} {value}: a probability: at least 0 and below 1")
        if seed < 0:
            raise UsageError(f"--seed {seed}: must be 0 or more")
        self.drop, self.duplicate, self.reorder, self.seed = drop, duplicate, reorder, seed

    def link(self, graph: str, src: int, dst: int) -> LinkFaults[Any]:
        """The faults of one directed edge, from its first item on. The same for the same arguments, in any process."""
        return LinkFaults(self, graph, src, dst)


class LinkFaults(Generic[T]):
    """The faults of one link: each arriving item goes in, what is delivered now comes out.

    What befalls the i-th item is drawn from (seed, link, i) alone. An item held back is delivered after the next one
    that is not lost; while one is held no other is, so at most one waits, and of the items that are not lost a
    fraction p/(1+p) is held for a ``reorder`` of p. What is held when the link falls silent is delivered never.

    Args:
        faults: the probabilities and the seed.
        graph: ``W`` or ``A``.
        src: rank of the sender.
        dst: rank of the receiver.

    Attributes:
        dropped: items lost.
        duplicated: items delivered twice.
        reordered: items held back.
    """

    __slots__ = ("_active", "_arrived", "_faults", "_held", "_name", "dropped", "duplicated", "reordered")

    def __init__(self, faults: Faults, graph: str, src: int, dst: int) -> None:
        self._faults = faults
        self._name = (graph, src, dst)
        self._active = faults.drop > 0 or faults.duplicate > 0 or faults.reorder > 0
        self._arrived = 0
        self._held: list[T] = []
        self.dropped = self.duplicated = self.reordered = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many items were dropped, duplicated and reordered so far."""
        return {"dropped": self.dropped, "duplicated": self.duplicated, "reordered": self.reordered}

    def apply(self, item: T) -> list[T]:
        """An item arrives.

        Args:
            item: anything; it is passed on as it is.

        Returns:
            What is delivered now, in order: nothing, the item, the item twice, or either followed by what was held.
        """
        if not self._active:
            return [item]
        self._arrived += 1
        if self._befalls("drop", self._faults.drop):
            self.dropped += 1
            return []
        copies = [item]
        if self._befalls("duplicate", self._faults.duplicate):
            self.duplicated += 1
            copies = [item, item]
        if self._held:
            delivered, self._held = copies + self._held, []
            return delivered
        if self._befalls("reorder", self._faults.reorder):
            self.reordered += 1
            self._held = copies
            return []
        return copies

    def _befalls(self, fault: str, probability: float) -> bool:
        return probability > 0 and uniform(self._faults.seed, fault, *self._name, self._arrived) < probability
