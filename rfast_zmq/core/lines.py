"""How long a line takes to carry a model, as an edge sees it that is kept waiting. Pure: the time is an argument.

Nobody says how fast a line is. But an edge that wanted to speak all the while since its last message, and was let only
now, tells: what it said last took the line so long. (Messages of other edges on the same line are in that time, as they
are in every cycle in which all edges speak once: so it is the time of a cycle that is measured, not the rate.)

A message that goes into an empty socket buffer passes faster than the line; so a slower one counts at once, a faster
one little. Where nothing had to wait for a while the line may have become faster, and less is believed by and by.
"""

from __future__ import annotations

from math import exp

WAITED = 0.9
"""An edge that wanted to speak for so much of the time since its last message was kept by the line."""
SLOWER, FASTER = 2.0, 0.2
"""How soon the estimate follows, for each cycle's worth of bytes."""
UNSEEN_CYCLES, BELIEVED = 8.0, 15 / 16
"""After so many cycles without a wait only this part is still believed."""


class LineMeter:
    """One edge's.

    Args:
        cycle_bytes: bytes of all the buckets that travel along the edge, once.
    """

    __slots__ = ("_cycle_bytes", "_seen_s", "_size", "_spoke_s", "cycle_s")

    def __init__(self, cycle_bytes: int) -> None:
        self._cycle_bytes = cycle_bytes
        self._spoke_s = self._seen_s = 0.0
        self._size = 0
        self.cycle_s = 0.0
        """Seconds in which the line carries every bucket once (0.0: it was never seen to be busy)."""

    def spoke(self, size: int, waited_s: float, now: float) -> None:
        """The line took a message.

        Args:
            size: of its payload, in bytes.
            waited_s: how long the edge had been wanting to speak.
            now: the time.
        """
        took_s, part = now - self._spoke_s, self._size / self._cycle_bytes
        if self._size and took_s > 0.0 and waited_s >= WAITED * took_s:
            found_s = took_s / part
            self.cycle_s += (found_s - self.cycle_s) * (
                1.0 - exp(-part * (SLOWER if found_s > self.cycle_s else FASTER))
            )
            self._seen_s = now
        elif now - self._seen_s > UNSEEN_CYCLES * self.cycle_s:
            self.cycle_s *= BELIEVED
            self._seen_s = now
        self._spoke_s, self._size = now, size
