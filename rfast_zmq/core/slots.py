"""The latest-wins slot of one edge: which bucket may be said, and when. Pure: the time is an argument.

A slot holds no messages, only marks: ``mark(bucket)`` says that there is news. When the link is free and the pace
allows, the driver asks :meth:`Slot.due`, has the message built from the state of that moment, and says
:meth:`Slot.spoke`. Whatever a peer does, or fails to do, the memory is one mark a bucket (invariant I5).
"""

from __future__ import annotations

from math import inf


class Slot:
    """Dirty buckets of one edge, the longest-unsent first.

    Args:
        buckets: number of buckets.
    """

    __slots__ = ("_dirty", "_last_s", "_spoken")

    def __init__(self, buckets: int) -> None:
        self._dirty = [False] * buckets
        self._spoken = [False] * buckets
        self._last_s = [-inf] * buckets

    def mark(self, bucket: int) -> None:
        """There is news in ``bucket``."""
        self._dirty[bucket] = True

    def due(self, pace_s: float, resend_s: float) -> tuple[float, int]:
        """When the edge may next speak, and of which bucket.

        Args:
            pace_s: least seconds between two messages of one bucket.
            resend_s: seconds after which a bucket that has spoken and has no news says its newest again (inf: never).

        Returns:
            (time, bucket); (inf, -1) when there is nothing to say. A time in the past means: now.
        """
        best_s, best = inf, -1
        idle_s = max(pace_s, resend_s)
        for bucket, last_s in enumerate(self._last_s):
            if self._dirty[bucket]:
                at_s = last_s + pace_s
            elif self._spoken[bucket]:
                at_s = last_s + idle_s
            else:
                continue
            if at_s < best_s or best < 0:
                best_s, best = at_s, bucket
        return (best_s, best) if best_s < inf else (inf, -1)

    def spoke(self, bucket: int, now: float) -> None:
        """``bucket`` was said at ``now`` (or there turned out to be nothing to say)."""
        self._dirty[bucket] = False
        self._spoken[bucket] = True
        self._last_s[bucket] = now
