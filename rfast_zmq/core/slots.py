"""The latest-wins slot of one edge: which bucket may be said, and when. Pure: the time is an argument.

A slot holds no messages, only marks: ``mark(bucket)`` says that there is news. When the link is free and the pace
allows, the driver asks :meth:`Slot.turn`, has the message built from the state of that moment, and says
:meth:`Slot.spoke`. Whatever a peer does, or fails to do, the memory is one mark a bucket (invariant I5).
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

EARLY = 0.5
"""An edge may speak by so much of its pace early where the node is awake anyway: news is passed on in the turn in which
it came, and one waking serves all edges. What is said early counts as said when it was due: so on average an edge
speaks no oftener than its pace."""
PATIENT = 2.0
"""So many paces after its last report a node reports again although not everybody has been heard since. Sooner it need
not even listen: what came is read when it is awake anyway."""


class Timing(NamedTuple):
    """When the edges of a node may speak.

    Attributes:
        pace_s: least seconds between two messages of one bucket.
        resend_s: seconds after which a bucket that has spoken and has no news says its newest again (inf: never).
        early: the part of ``pace_s`` by which news may be said early where the node is awake.
    """

    pace_s: float
    resend_s: float
    early: float


class Slot:
    """Dirty buckets of one edge, the longest-unsent first.

    What is asked of it at every message does not look at every bucket: they lie in heaps, those that are to be said
    equally many paces after they last were in one (mostly there are two or three; in phase there may be many).

    Args:
        buckets: those that travel along the edge.
    """

    __slots__ = ("_heaps", "_last_s", "_paces", "_silent")

    def __init__(self, buckets: Iterable[int]) -> None:
        self._last_s = dict.fromkeys(buckets, -inf)
        self._paces = dict.fromkeys(self._last_s, 0.0)  # 0: no news; else so many paces after it last spoke
        self._heaps: dict[float, list[tuple[float, int]]] = {}
        """Per number of paces (last said, bucket); of which those count that are still so."""
        self._silent = [(-inf, bucket) for bucket in sorted(self._last_s)]
        """All of them, likewise."""

    def mark(self, bucket: int, paces: float = 1.0) -> None:
        """There is news in ``bucket``, to be said ``paces`` paces after it was last said (or sooner, if marked so)."""
        before = self._paces[bucket]
        if not before or paces < before:
            self._paces[bucket] = paces
            self._push(bucket)

    def due(self, pace_s: float, resend_s: float, not_before: float = -inf) -> tuple[float, int]:
        """When the edge may next speak, and of which bucket.

        Args:
            pace_s: least seconds between two messages of one bucket.
            resend_s: seconds after which a bucket that has spoken and has no news says its newest again (inf: never).
            not_before: the time before which the edge says nothing.

        Returns:
            (time, bucket); (inf, -1) when there is nothing to say. A time in the past means: now.
        """
        best_s, best = inf, -1
        for paces, heap in tuple(self._heaps.items()):
            while heap:
                last_s, bucket = heap[0]
                if self._paces[bucket] == paces and self._last_s[bucket] == last_s:
                    break
                heappop(heap)
            else:
                del self._heaps[paces]
                continue
            at_s = last_s + (pace_s * paces if paces else max(pace_s, resend_s))
            if best < 0 or (at_s, bucket) < (best_s, best):
                best_s, best = at_s, bucket
        return (max(best_s, not_before), best) if best_s < inf else (inf, -1)

    def turn(self, timing: Timing, not_before: float = -inf) -> tuple[float, float, int]:
        """When the edge may next speak, by how much it may be early, and of which bucket; see :meth:`due`."""
        due_s, bucket = self.due(timing.pace_s, timing.resend_s, not_before)
        return due_s, self.early_s(bucket, timing.pace_s, timing.early), bucket

    def free(self, pace_s: float, paces: float = 1.0) -> float:
        """When ``paces`` paces have passed since the bucket that has been silent longest was said."""
        silent, last_s = self._silent, self._last_s
        while last_s[silent[0][1]] != silent[0][0]:
            heappop(silent)
        return silent[0][0] + paces * pace_s

    def early_s(self, bucket: int, pace_s: float, early: float = EARLY) -> float:
        """By how much ``bucket`` may be said before it is due, of a pace ``early``: news only, never a repetition."""
        return early * pace_s if bucket >= 0 and self._paces[bucket] else 0.0

    def spoke(self, bucket: int, at_s: float) -> None:
        """``bucket`` was said (or there turned out to be nothing to say).

        Args:
            bucket: which.
            at_s: the later of now and when it was due.
        """
        self._paces[bucket] = 0.0
        self._last_s[bucket] = at_s
        self._push(bucket)
        heappush(self._silent, (at_s, bucket))
        if len(self._silent) > self._most():
            self._silent = sorted((last_s, b) for b, last_s in self._last_s.items())

    def _push(self, bucket: int) -> None:
        paces = self._paces[bucket]
        heap = self._heaps.setdefault(paces, [])
        heappush(heap, (self._last_s[bucket], bucket))
        if len(heap) > self._most():
            self._heaps[paces] = sorted({entry for entry in heap if self._is_so(paces, *entry)})

    def _is_so(self, paces: float, last_s: float, bucket: int) -> bool:
        return self._paces[bucket] == paces and self._last_s[bucket] == last_s

    def _most(self) -> int:
        """So long a heap may be before what is no longer so is cleared out of it."""
        return 4 * len(self._last_s) + 16
