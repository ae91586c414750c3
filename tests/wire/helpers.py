"""A codec, its messages, and a second opinion on what it accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from rfast_zmq.core.events import Edge, Graph, Message, Number, Stamp
from rfast_zmq.wire import Codec

RUN = "20240229-120000-1a2b"
LAYOUT = "0123456789abcdef"
SIZES = (8, 8, 5)
IN_EDGES = (Edge("W", 0, 1), Edge("A", 3, 1), Edge("A", 4, 1))
DECLARED: dict[Graph, dict[str, type]] = {
    "W": {"rounds": float, "stopping": bool},
    "A": {"weight": float, "loss": float, "samples": int, "aside": list, "stopping": bool},
}
NUMBERS: dict[Graph, dict[str, Number]] = {
    "W": {"rounds": 12.5, "stopping": False},
    "A": {"weight": 3.0, "loss": 0.25, "samples": 4711, "aside": [5, 200], "stopping": False},
}
STAMP = Stamp(2, 17)
TYPES = {"float32": ("f4", "<f4", torch.float32), "float64": ("f8", "<f8", torch.float64)}


def codec_of(dtype: torch.dtype = torch.float32, **changes: Any) -> Codec:
    arguments: dict[str, Any] = {
        "run": RUN,
        "layout": LAYOUT,
        "sizes": SIZES,
        "dtype": dtype,
        "in_edges": IN_EDGES,
        "numbers": DECLARED,
    }
    return Codec(**{**arguments, **changes})


def message_of(
    edge: Edge = IN_EDGES[1],
    bucket: int = 0,
    stamp: Stamp = STAMP,
    dtype: torch.dtype = torch.float32,
    numbers: Mapping[str, Number] | None = None,
) -> Message:
    payload = torch.arange(SIZES[bucket], dtype=dtype) - 2.5
    return Message(edge, bucket, stamp, payload, NUMBERS[edge.graph] if numbers is None else numbers)


def frames_of(message: Message, codec: Codec | None = None) -> list[bytes]:
    return [bytes(frame) for frame in (codec or codec_of(message.payload.dtype)).encode(message)]


def same(a: Message, b: Message) -> bool:
    """Equal in every field, bit by bit."""
    return (
        (a.edge, a.bucket, a.stamp, a.numbers) == (b.edge, b.bucket, b.stamp, b.numbers)
        and a.payload.dtype == b.payload.dtype
        and a.payload.numpy().tobytes() == b.payload.numpy().tobytes()
    )


def vouch(message: Message, frames: Sequence[bytes]) -> None:
    """Assert that an accepted message is one the format allows, as another msgpack library reads it."""
    fields, payload = msgspec.msgpack.decode(b"".join(frames))
    assert len(frames) == 2
    assert message.edge in IN_EDGES
    assert type(message.stamp) is Stamp
    assert all(type(part) is int and part >= 0 for part in message.stamp)
    assert message.payload.shape == (SIZES[message.bucket],)
    assert message.payload.dtype == torch.float32
    assert all(math.isfinite(value) for value in message.payload.tolist())
    assert message.payload.numpy().tobytes() == payload == bytes(frames[1])
    assert fields == {
        "v": 1,
        "run": RUN,
        "src": message.edge.src,
        "dst": message.edge.dst,
        "graph": message.edge.graph,
        "layout": LAYOUT,
        "bucket": message.bucket,
        "dtype": "f4",
        "stamp": list(message.stamp),
        "n": message.numbers,
    }
    assert {name: type(value) for name, value in message.numbers.items()} == DECLARED[message.edge.graph]
    for value in message.numbers.values():
        if isinstance(value, list):
            assert all(type(item) is int and 0 <= item < 2**31 for item in value)
        else:
            assert math.isfinite(value)
