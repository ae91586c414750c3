"""What a message costs the codec: ``python benchmarks/codec.py`` prints µs per encode, per decode and per check."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import partial

import torch

from rfast_zmq.core.events import Edge, Message, Number, Stamp
from rfast_zmq.wire import Codec

EDGE = Edge("A", 1, 0)
NUMBERS: dict[str, Number] = {
    "weight": 7.0,
    "samples": 123456,
    "version": 12.5,
    "loss": 0.31,
    "pace": 40.0,
    "slowest": 3,
    "aside": [5, 6],
}


def codec_and_message(coordinates: int) -> tuple[Codec, Message]:
    """One edge, one bucket of so many float32, and a message for it."""
    codec = Codec(
        run="20240229-120000-1a2b",
        layout="0123456789abcdef",
        sizes=(coordinates,),
        dtype=torch.float32,
        in_edges=[EDGE],
        numbers={"A": {name: type(value) for name, value in NUMBERS.items()}},
    )
    return codec, Message(EDGE, 0, Stamp(1, 42), torch.randn(coordinates), NUMBERS)


def microseconds(call: Callable[[], object], calls: int) -> float:
    """The best of five runs: what the call costs when nothing else has the core."""
    return min(timeit.repeat(call, number=calls, repeat=5)) / calls * 1e6


def isfinite(tensor: torch.Tensor) -> bool:
    """The plain way to look for NaN and infinity, which the codec does not take."""
    return bool(torch.isfinite(tensor).all())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for coordinates in (1, 100_000, 250_000):
        codec, message = codec_and_message(coordinates)
        frames = [bytes(frame) for frame in codec.encode(message)]
        encode_us = microseconds(partial(codec.encode, message), 2000)
        decode_us = microseconds(partial(codec.decode, frames), 2000)
        isfinite_us = microseconds(partial(isfinite, message.payload), 200)
        print(f"{4 * coordinates:8d} bytes:  encode {encode_us:5.1f} µs  decode {decode_us:5.1f} µs", end="")
        print(f"  (torch.isfinite alone: {isfinite_us:5.1f} µs)")


if __name__ == "__main__":
    main()
