"""The trace of a simulated run: every event in the order in which it happened, one JSON object a line."""

from __future__ import annotations

import json
from zlib import crc32

from torch import Tensor

from rfast_zmq.core.events import Event, GradientReady, LinkReady, PeerLeft, Received


def traced(time_s: float, rank: int, event: Event) -> str:
    """That ``event`` came to that node at that virtual second, as a line of JSON; tensors as the CRC-32 of their
    bytes."""
    line: dict[str, object] = {"t": time_s, "node": rank, "event": type(event).__name__}
    match event:
        case Received(_, message):
            line |= {
                "edge": list(message.edge),
                "bucket": message.bucket,
                "stamp": list(message.stamp),
                "numbers": dict(message.numbers),
                "payload": _digest((message.payload,)),
            }
        case LinkReady(_, edge, bucket):
            line |= {"edge": list(edge), "bucket": bucket}
        case GradientReady():
            line |= {"samples": event.samples, "loss": event.loss, "gradient": _digest(event.gradient)}
        case PeerLeft(_, peer):
            line["peer"] = peer
    return json.dumps(line) + "\n"


def _digest(tensors: tuple[Tensor, ...]) -> int:
    value = 0
    for t in tensors:
        value = crc32(t.numpy().tobytes(), value)
    return value
