"""What rides beside the mathematics, for every algorithm alike: the census, and how a run closes.

Both use the pair of spanning trees that every topology has. Numbers climb the push tree in the headers of A-messages
(samples done, loss, the slowest node, who is set aside); the phase of the run comes down the pull tree in the headers
of W-messages. Nothing here waits: a node says what it knows whenever it speaks.

Closing, in three phases, proof against any loss because idle edges repeat themselves:

1. *run*. The root decides to stop.
2. *stop* (the phase comes down with the models): a node that hears it computes no more. A node says ``final`` for a
   bucket once each of its children in the push tree has said so; what it says then is its last word.
3. *leave*: when the root has every final word it says so, and the word goes down the pull tree. A node leaves when each
   of its children in the pull tree has left (its connection is closed), so the root goes last.

A child whose connection is gone is not waited for, one that was set aside only for a moment; nor one silent for
``patience_s`` while the run closes (ten rounds of the run as it was measured, and at least ten seconds, for a lossy
line may need some to get a word through); nor, after three times that, one that speaks but has not heard of the end:
where the trees differ, its parent in the pull tree may have died. A node that hears no more of its parent meanwhile
goes as well. None of this plays a part before the stop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf, isfinite, nan

from rfast_zmq.core.events import Number

PATIENCE_ROUNDS = 10.0
PATIENCE_LEAST_S = 10.0
ORPHANED = 3.0
"""A child that speaks, but after so many times the patience has still not heard of the end, never will."""
ASIDE_S = 2.0
"""A child that was set aside is told of the end for so long."""
COUNT_MOST = 2**62
"""The largest int that travels: what a peer claims may be anything, and a sum of such must still fit a header."""


NUMBER_MOST = 1e15
"""What a peer says is cut at this, so that no sum of such numbers leaves the range that a header can hold."""


def bounded(value: Number, least: float = 0.0) -> float:
    """A peer's number as a float in [least, :data:`NUMBER_MOST`]."""
    return min(max(float(value), least), NUMBER_MOST)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Count:
    """What is known of a node or of a subtree.

    Attributes:
        samples: samples computed.
        weight: sum of the weights of the nodes that have a loss.
        weighted_loss: sum over those of weight times newest training loss.
        slowest_pace: least samples a second of computing, over the nodes (inf: unknown).
        slowest_rank: the node whose pace that is (-1: unknown).
        set_aside: ranks whose subtree is set aside.
        trouble: the lowest rank whose loss is not a finite number (-1: none).
        cycle_s: seconds in which the busiest line carries a model once along all its edges (0.0: none is busy).
    """

    samples: int = 0
    weight: float = 0.0
    weighted_loss: float = 0.0
    slowest_pace: float = inf
    slowest_rank: int = -1
    set_aside: tuple[int, ...] = ()
    trouble: int = -1
    cycle_s: float = 0.0

    @property
    def loss(self) -> float:
        """Mean training loss over the nodes (nan before the first)."""
        return self.weighted_loss / self.weight if self.weight else nan

    def numbers(self) -> dict[str, Number]:
        """As it rides in a header (a pace that is unknown travels as 0.0)."""
        return {
            "samples": min(self.samples, COUNT_MOST),
            "weight": self.weight,
            "loss": self.weighted_loss,
            "slowest": self.slowest_pace if isfinite(self.slowest_pace) else 0.0,
            "slowest_rank": self.slowest_rank,
            "aside": list(self.set_aside),
            "trouble": self.trouble,
            "cycle_s": self.cycle_s,
        }

    @classmethod
    def read(cls, numbers: Mapping[str, Number], nodes: int) -> Count:
        """The inverse of :meth:`numbers`, of a header whose names and types the codec has checked.

        Args:
            numbers: as they arrived.
            nodes: how many there are; a rank that none of them has is taken for unknown.
        """
        aside = numbers["aside"]
        slowest = bounded(numbers["slowest"])
        rank, trouble = int(numbers["slowest_rank"]), int(numbers["trouble"])  # type: ignore[arg-type]
        return cls(
            samples=int(numbers["samples"]),  # type: ignore[arg-type]
            weight=bounded(numbers["weight"]),
            weighted_loss=bounded(numbers["loss"], -NUMBER_MOST),
            slowest_pace=slowest if slowest > 0 and rank < nodes else inf,
            slowest_rank=rank if rank < nodes else -1,
            set_aside=tuple(r for r in aside if 0 <= r < nodes) if isinstance(aside, list) else (),
            trouble=trouble if trouble < nodes else -1,
            cycle_s=bounded(numbers["cycle_s"]),
        )


COUNT_NUMBERS: dict[str, type] = {
    "samples": int,
    "weight": float,
    "loss": float,
    "slowest": float,
    "slowest_rank": int,
    "aside": list,
    "trouble": int,
    "cycle_s": float,
}


def merge(counts: Iterable[Count], set_aside: Collection[int]) -> Count:
    """The census of a subtree: sums, the least pace, the longest cycle, the union of those set aside.

    Args:
        counts: the node's own count and its children's newest.
        set_aside: children this node has set aside itself.
    """
    samples, weight, weighted_loss = 0, 0.0, 0.0
    slowest, rank, trouble, cycle_s = inf, -1, -1, 0.0
    aside = set(set_aside)
    for count in counts:
        samples += count.samples
        weight += count.weight
        weighted_loss += count.weighted_loss
        if count.slowest_pace < slowest:
            slowest, rank = count.slowest_pace, count.slowest_rank
        cycle_s = max(cycle_s, count.cycle_s)
        aside.update(count.set_aside)
        if count.trouble >= 0 and (trouble < 0 or count.trouble < trouble):
            trouble = count.trouble
    return Count(samples, weight, weighted_loss, slowest, rank, tuple(sorted(aside)), trouble, cycle_s)


class Phase(IntEnum):
    """The phase of a run; it only grows."""

    RUN = 0
    STOP = 1
    LEAVE = 2


class Closing:
    """One node's part in ending a run (see the top of this file).

    Args:
        push_children: per bucket, whose final word this node collects.
        pull_children: whose leaving it awaits.
        root: this is the root: it has no parent to miss.
    """

    def __init__(
        self, push_children: Sequence[Collection[int]], pull_children: Iterable[int], *, root: bool = False
    ) -> None:
        self.phase = Phase.RUN
        self.running = True
        """Whether the phase is that of the run, and not of its end."""
        self._missing = [set(children) for children in push_children]
        """Per bucket, whose final word is not there yet."""
        self._heard_s = dict.fromkeys((child for children in push_children for child in children), -inf)
        self._present = set(pull_children)
        self._gone: set[int] = set()
        self._since_s = inf
        self._parent_s = inf if root else -inf

    def enter(self, phase: Phase, now: float) -> bool:
        """Move to ``phase`` if that is further on; True if it was."""
        if phase <= self.phase:
            return False
        self.phase, self.running, self._since_s = phase, False, now
        return True

    def heard_parent(self, now: float) -> None:
        """The parent in the pull tree spoke."""
        self._parent_s = now

    def heard(self, child: int, bucket: int, final: bool, now: float) -> None:
        """A child of the push tree spoke."""
        self._heard_s[child] = now
        if final:
            self._missing[bucket].discard(child)

    def left(self, rank: int) -> None:
        """A peer closed its connection."""
        self._present.discard(rank)
        self._gone.add(rank)

    def final(self, bucket: int, set_aside: Collection[int], patience_s: float, now: float) -> bool:
        """Has this node's word on ``bucket`` become its last?"""
        return self.phase is not Phase.RUN and all(
            child in self._gone or child in set_aside or self._silent(child, patience_s, now)
            for child in self._missing[bucket]
        )

    def all_final(self, set_aside: Collection[int], patience_s: float, now: float) -> bool:
        """Has every awaited child said its last word on every bucket?"""
        return all(self.final(bucket, set_aside, patience_s, now) for bucket in range(len(self._missing)))

    def may_leave(self, patience_s: float, now: float, set_aside: Collection[int] = ()) -> bool:
        """Has each awaited child of the pull tree left (or had its time to), or is the parent gone?"""
        if self.phase is Phase.STOP:
            return now - max(self._parent_s, self._since_s) > 2 * patience_s
        waited_s, awaited = now - self._since_s, self._present.difference(set_aside)
        if self._present and not awaited:  # only such as were set aside: alive, they need a moment to hear of the end
            return self.phase is Phase.LEAVE and waited_s > ASIDE_S
        return self.phase is Phase.LEAVE and (not awaited or waited_s > patience_s)

    def _silent(self, child: int, patience_s: float, now: float) -> bool:
        return (
            now - max(self._heard_s[child], self._since_s) > patience_s or now - self._since_s > ORPHANED * patience_s
        )


def patience_s(round_s: float, pace_s: float = 0.0, depth: int = 1) -> float:
    """How long a closing node goes on hearing nothing before it stops waiting.

    Args:
        round_s: seconds of a round, as the root measured it (0.0: unknown).
        pace_s: seconds between two messages of an edge, as the run or a line has it; three of them must fit.
        depth: of the trees; a word may take so long at each hop.
    """
    return max(PATIENCE_LEAST_S, PATIENCE_ROUNDS * round_s, 3 * pace_s * max(depth, 1))
