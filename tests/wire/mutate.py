"""Real frames made wrong: what a broken, foreign or hostile peer might send.

``hostile(rng, corpus)`` gives one list of frames after another, forever different, repeatable from the generator's
seed. The codec's own test and the node's, over real sockets, use it alike.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

Frames = list[bytes]

DEEP = 100_000

BOMBS: tuple[bytes, ...] = (
    b"\xdd\xff\xff\xff\xff",  # an array of 4 G elements
    b"\xdf\xff\xff\xff\xff",  # a map of 4 G pairs
    b"\xdb\xff\xff\xff\xff",  # a string of 4 GB
    b"\xc6\xff\xff\xff\xff",  # 4 GB of bytes
    b"\xc9\xff\xff\xff\xff\x01",  # an extension of 4 GB
    b"\xd9\xff" + b"a" * 255,
    b"\x91" * 1000,  # nested deeper than most readers can follow
    b"\x81\xa1v" * 1000,
    b"\x91" * 3000 + b"\xc0" * 3000,
    b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
    b"\xd7\xff" + b"\xff" * 8,  # a timestamp in a year that no calendar has
    b"\xc7\x00\x05",  # an extension of nothing
    b"\xc1",  # never used in msgpack
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",  # 2**64 − 1
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",  # −2**63
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # NaN
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",  # infinity
    b"\xa2\xed\xa0",  # a surrogate without its partner
    b"\xa1\xff",  # no UTF-8
    b"\x90",
    b"\x80",
    b"\xc0",
    b"\xc2",
    b"\xc3",
    b"\xff",
    b"\xc4\x01v",  # bytes where a string is due
)

GIANTS: tuple[bytes, ...] = (b"\x91" * DEEP, b"\x81\xa1v" * DEEP, b"\x92\x8a" * DEEP, b"\x00" * DEEP, b"\xff" * DEEP)


def hostile(rng: random.Random, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """One wrong message; now and then, by luck, one that is right after all.

    Args:
        rng: decides everything.
        corpus: real messages, each a list of frames, to start from.
    """
    frames = [bytes(frame) for frame in rng.choice(corpus)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        frames = rng.choice(MUTATIONS)(rng, frames, corpus)
    return frames


VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 127, 128, 2**31 - 1, 2**31, 2**62, 2**62 + 1, 2**64 - 1, -(2**63)),
    *(0.0, -0.0, 1.0, 1e308, 5e-324, math.nan, math.inf, -math.inf),
    *("", "W", "A", "B", "f4", "f8", "bf16", "0" * 16, "x" * 128, "x" * 129, "\u0000", "é", b"", b"A"),
    *([], [0], [1, 2], [-1, 0], [0, -1], [1.0, 2], [True, 0], [0, 0, 0], [[]], [None], [2**31], [0] * 1025),
    *({}, {"": 0}, {"v": 1}, {1: 1}, {"a": {"a": {}}}, msgpack.ExtType(5, b""), msgpack.Timestamp(0)),
)


# ------------------------------------------------------------------------------------------- of one frame


def flip_bits(rng: random.Random, frame: bytes) -> bytes:
    """One to eight bits the other way."""
    made = bytearray(frame)
    for _ in range(rng.randint(1, 8) if made else 0):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def set_byte(rng: random.Random, frame: bytes) -> bytes:
    """One byte another: often one that means something in msgpack."""
    if not frame:
        return frame
    at = rng.randrange(len(frame))
    value = rng.choice((rng.randrange(256), rng.choice(BOMBS)[0]))
    return frame[:at] + bytes([value]) + frame[at + 1 :]


def truncate(rng: random.Random, frame: bytes) -> bytes:
    """Cut off at either end."""
    at = rng.randint(0, len(frame))
    return frame[:at] if rng.random() < 0.5 else frame[at:]


def delete(rng: random.Random, frame: bytes) -> bytes:
    """Some bytes out of the middle."""
    at = rng.randint(0, len(frame))
    return frame[:at] + frame[at + rng.randint(1, 8) :]


def insert(rng: random.Random, frame: bytes) -> bytes:
    """Some bytes more."""
    at = rng.randint(0, len(frame))
    return frame[:at] + rng.randbytes(rng.randint(1, 8)) + frame[at:]


def repeat(rng: random.Random, frame: bytes) -> bytes:
    """A piece of it twice: a key again, say."""
    begin = rng.randint(0, len(frame))
    end = rng.randint(begin, len(frame))
    return frame[:end] + frame[begin:end] + frame[end:]


def bomb(rng: random.Random, frame: bytes) -> bytes:
    """A piece of hostile msgpack, put in or written over what stands there."""
    at = rng.randint(0, len(frame))
    piece = rng.choice(BOMBS)
    return frame[:at] + piece + frame[at + rng.choice((0, 1, len(piece))) :]


def bomb_for_value(rng: random.Random, frame: bytes) -> bytes:
    """Hostile msgpack where a value is due: after the name of a field."""
    names = (b"\xa1v", b"\xa3run", b"\xa3src", b"\xa5graph", b"\xa6bucket", b"\xa5stamp", b"\xa1n", b"\xa4loss")
    name = rng.choice(names)
    at = frame.find(name)
    if at < 0:
        return frame
    at += len(name)
    return frame[:at] + rng.choice(BOMBS) + frame[at + rng.choice((0, 1, 2, 9)) :]


def tail_after_bomb(rng: random.Random, frame: bytes) -> bytes:
    """The start and the end of a header frame, and a bomb between: past every check of the frame's outline."""
    return frame[:1] + rng.choice(BOMBS) + frame[-5:]


def other_field(rng: random.Random, frame: bytes) -> bytes:
    """A header that is whole, with one field another, gone, or too many: past the unpacker, to the checks behind."""
    try:
        fields = msgpack.unpackb(frame[1:-5])
        inner = fields["n"] if rng.random() < 0.5 and fields["n"] else fields
        name = rng.choice([*inner, "more"])
        if rng.random() < 0.1:
            inner.pop(name, None)
        else:
            inner[name] = rng.choice(VALUES)
        packed: bytes = msgpack.packb(fields)
    except Exception:  # not a header, or not any more
        return frame
    return frame[:1] + packed + frame[-5:]


def odd_float(rng: random.Random, frame: bytes) -> bytes:
    """A payload with a value in it that is no number, or hardly one."""
    if len(frame) < 4:
        return frame
    at = 4 * rng.randrange(len(frame) // 4)
    value = rng.choice((math.nan, math.inf, -math.inf, -0.0, 3.4e38, 1e-45))
    return frame[:at] + struct.pack("<f", value) + frame[at + 4 :]


# ------------------------------------------------------------------------------------- of a list of frames


def one_frame(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """One of the frames changed; mostly the header."""
    if not frames:
        return frames
    at = 0 if rng.random() < 0.8 else rng.randrange(len(frames))
    change = rng.choice(CHANGES)
    return [change(rng, frame) if i == at else frame for i, frame in enumerate(frames)]


def other_payload(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """The last frame with an odd float in it."""
    return [*frames[:-1], *(odd_float(rng, frame) for frame in frames[-1:])]


def splice(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """The start of one message's frame, the end of another's."""
    other = [bytes(frame) for frame in rng.choice(corpus)]
    if not frames:
        return other
    at = rng.randrange(min(len(frames), len(other)))
    first, second = frames[at], other[at]
    frames[at] = first[: rng.randint(0, len(first))] + second[rng.randint(0, len(second)) :]
    return frames


def exchange(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """The header of one message with the payload of another."""
    return [*frames[:1], *(bytes(frame) for frame in rng.choice(corpus)[1:])]


def shuffle(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """The frames in another order."""
    return rng.sample(frames, len(frames))


def lose(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """A frame less."""
    at = rng.randint(0, len(frames))
    return frames[:at] + frames[at + 1 :]


def add(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """A frame more: empty, random, or one that is there already."""
    frames.insert(rng.randint(0, len(frames)), rng.choice((b"", rng.randbytes(20), *frames)))
    return frames


def join(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """All in one frame."""
    return [b"".join(frames)]


def giant(rng: random.Random, frames: Frames, corpus: Sequence[Sequence[bytes]]) -> Frames:
    """A frame far too long."""
    if frames and rng.random() < 0.1:  # long to make and to look at
        frames[rng.randrange(len(frames))] = rng.choice(GIANTS)
    return frames


CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip_bits,
    flip_bits,
    set_byte,
    set_byte,
    truncate,
    delete,
    insert,
    repeat,
    bomb,
    bomb_for_value,
    bomb_for_value,
    tail_after_bomb,
    *(other_field,) * 5,
)
MUTATIONS: tuple[Callable[[random.Random, Frames, Sequence[Sequence[bytes]]], Frames], ...] = (
    *(one_frame,) * 12,
    *(other_payload,) * 2,
    splice,
    exchange,
    shuffle,
    lose,
    add,
    join,
    giant,
)
