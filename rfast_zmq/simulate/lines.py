"""The lines of the nodes in virtual time: each has one out and one in, which its edges share."""

from __future__ import annotations

from math import inf

from rfast_zmq.core.events import Edge


class Lines:
    """When each node's lines are free, and when what they carry arrives.

    A message occupies the sender's outgoing line for its size. Its end reaches the receiver when the receiver's
    incoming line, which takes one message after the other, has carried it too; both begin together where both are free.
    Until then the edge takes no other, as a socket whose buffer is full.

    Args:
        nodes: how many there are.
        bytes_per_s: of every line; inf: messages take no time.
    """

    def __init__(self, nodes: int, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self.slow = bytes_per_s < inf
        """Whether a message takes time at all."""
        self._out_s, self._in_s = [-inf] * nodes, [-inf] * nodes
        self._arrived_s: dict[Edge, float] = {}

    def free_s(self, edge: Edge) -> float:
        """From when on the edge can take a message."""
        return max(self._out_s[edge.src], self._arrived_s.get(edge, -inf))

    def busy(self, rank: int, now: float) -> bool:
        """Whether no edge of a node can take a message, for its outgoing line carries one."""
        return self._out_s[rank] > now

    def carry(self, edge: Edge, size: int, now: float) -> float:
        """The edge is given a message; it must be free.

        Args:
            edge: which.
            size: of the message, in bytes.
            now: the time.

        Returns:
            When it arrives.
        """
        took_s = size / self._bytes_per_s
        self._out_s[edge.src] = now + took_s
        self._in_s[edge.dst] = self._arrived_s[edge] = max(now, self._in_s[edge.dst]) + took_s
        return self._arrived_s[edge]
