"""Nodes that stand still for a while, or for ever: a crash, as seen by the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from rfast_zmq.errors import UsageError


@dataclass(frozen=True)
class Halt:
    """A node that neither computes nor sends nor takes anything in (as under SIGSTOP) for a while.

    Attributes:
        rank: which node.
        at_s: from when, in seconds since the start.
        until_s: until when; inf: for ever.
    """

    rank: int
    at_s: float
    until_s: float = inf

    @classmethod
    def parse(cls, texts: Sequence[str], nodes: int) -> tuple[Halt, ...]:
        """Halts from ``RANK:FROM`` or ``RANK:FROM:UNTIL`` each.

        Raises:
            UsageError: another form, a rank out of range, or times that are not in order.
        """
        return tuple(cls._one(text, nodes) for text in texts)

    @classmethod
    def _one(cls, text: str, nodes: int) -> Halt:
        parts = text.split(":")
        try:
            rank, times = int(parts[0]), [float(part) for part in parts[1:]]
            halt = cls(rank, *times) if times else None
        except (ValueError, TypeError):
            halt = None
        if halt is None:
            raise UsageError(f"--halt {text}: must be RANK:FROM or RANK:FROM:UNTIL, in seconds, e.g. 2:1.5:4")
        if not 0 <= halt.rank < nodes:
            raise UsageError(f"--halt {text}: there is no rank {halt.rank}; valid ranks are 0..{nodes - 1}")
        if not 0 <= halt.at_s < halt.until_s:
            raise UsageError(f"--halt {text}: the node must halt at 0 s or later, and go on after that")
        return halt
