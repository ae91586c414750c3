"""How long a node's line takes to carry a model along all its edges. Pure: the time is an argument.

Nobody says how fast a line is. But an edge that wanted to speak all the while since the node's last message, and was
let only now, tells: what was said last took the line so long.

A message that goes into an empty socket buffer passes faster than the line; so a slower one counts sooner than a faster
one. An edge that is kept while others speak again and again ends at a slow node: that says nothing of this one's line.
A node that was stopped, or whose only receiver was, finds its line slow once: one finding alone is not believed.
Where nothing had to wait for a while the line may have become faster, and less is believed by and by.
"""

from __future__ import annotations

from collections import deque
from math import exp

from rfast_zmq.core.events import Edge

WAITED = 0.9
"""An edge that wanted to speak for so much of the time since the last message was kept by the line."""
OTHERS_LEAST, OTHERS_TURNS = 4, 2
"""If others have spoken so often meanwhile, and each so many times, it was kept by its own receiver."""
SLOWER, FASTER = 1.0, 0.33
"""How soon the estimate follows, for each cycle's worth of bytes."""
FOUND_BEFORE = 4
"""No finding counts for more than the slowest of so many before it."""
UNSEEN_CYCLES, BELIEVED = 8.0, 15 / 16
"""After so many cycles without a wait only this part is still believed."""


class LineMeter:
    """One node's.

    Args:
        cycle_bytes: bytes of every bucket along every out-edge that carries it, once.
        edges: how many out-edges there are.
    """

    def __init__(self, cycle_bytes: int, edges: int) -> None:
        self._cycle_bytes = cycle_bytes
        self._others_most = max(OTHERS_LEAST, OTHERS_TURNS * (edges - 1))
        self._since_s = self._spoke_s = self._seen_s = self._busy_s = 0.0
        self._bytes = 0
        """Said since ``_since_s``, when an edge spoke that was kept; for ``_busy_s`` of that time others were."""
        self._recent: deque[tuple[float, Edge]] = deque(maxlen=2 * self._others_most)
        self._found_s: deque[float] = deque(maxlen=FOUND_BEFORE)
        self.cycle_s = 0.0
        """Seconds in which the line carries a model along all edges (0.0: it was never seen to be busy)."""

    def spoke(self, edge: Edge, size: int, waited_s: float, now: float) -> None:
        """The line took a message.

        Args:
            edge: along which.
            size: of its payload, in bytes.
            waited_s: how long the edge had been wanting to speak.
            now: the time.
        """
        others = 0
        for at_s, other in reversed(self._recent):  # mostly few are that new
            if at_s <= now - waited_s:
                break
            others += other != edge
        gap_s, kept_s = now - self._spoke_s, waited_s if others < self._others_most else 0.0
        self._busy_s += min(kept_s, gap_s)
        if gap_s > 0.0 and kept_s >= WAITED * gap_s:  # a socket may take several at once, and then none
            if self._bytes and self._busy_s >= WAITED * (now - self._since_s):
                self._find(now - self._since_s, self._bytes / self._cycle_bytes)
                self._seen_s = now
            self._since_s, self._busy_s, self._bytes = now, 0.0, 0
        elif gap_s > (1.0 - WAITED) * self.cycle_s * size / max(self._cycle_bytes, 1):  # it may have been idle
            self._since_s, self._busy_s, self._bytes = now, 0.0, 0
        if now - self._seen_s > UNSEEN_CYCLES * self.cycle_s:
            self.cycle_s *= BELIEVED
            self._seen_s = now
        self._spoke_s = now
        self._bytes += size
        self._recent.append((now, edge))

    def _find(self, took_s: float, part: float) -> None:
        """The line took so long for this part of a cycle."""
        found_s = min(took_s / part, max(self._found_s, default=0.0))
        self._found_s.append(took_s / part)
        follows = SLOWER if found_s > self.cycle_s else FASTER
        self.cycle_s += (found_s - self.cycle_s) * (1.0 - exp(-part * follows))
