"""Messages whose payload travels as bf16 or int8."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import torch

from rfast_zmq.core.events import Edge, Message, Stamp
from rfast_zmq.core.packing import PACKINGS, pack, packed_bytes, unpack
from rfast_zmq.errors import Refused
from rfast_zmq.wire import Codec

EDGE, SIZES = Edge("W", 0, 1), (300, 7)
PACKED = [p for p in PACKINGS if p != "float32"]


def codec(*packings: str, **changes: Any) -> Codec:
    given: dict[str, Any] = {"run": "r", "layout": "0" * 16, "sizes": SIZES, "dtype": torch.float32}
    return Codec(**{**given, **changes}, in_edges=[EDGE], numbers={"W": {}}, packings=packings)


def message(bucket: int, packing: str) -> Message:
    packed = pack(torch.randn(SIZES[bucket]), packing)
    return Message(EDGE, bucket, Stamp(1, 1), unpack(packed, SIZES[bucket], packing), {}, packed)


@pytest.mark.parametrize("packing", PACKED)
def test_what_goes_in_comes_out_byte_for_byte(packing: str) -> None:
    both = codec(packing, "float32")
    sent = message(0, packing)
    frames = both.encode(sent)
    assert len(frames[1]) == packed_bytes(300, packing) < 4 * 300
    found = both.decode(frames)
    assert found.packed is not None
    assert sent.packed is not None
    assert torch.equal(found.packed, sent.packed)
    assert torch.equal(found.payload, sent.payload)
    fields, payload = msgspec.msgpack.decode(b"".join(frames))
    assert fields["dtype"] == packing
    assert payload == sent.packed.numpy().tobytes()
    plain = Message(EDGE, 1, Stamp(1, 1), torch.ones(7))
    assert torch.equal(both.decode(both.encode(plain)).payload, plain.payload)


@pytest.mark.parametrize("packing", PACKED)
def test_frames_at_odd_addresses_are_read(packing: str) -> None:
    both, sent = codec(packing, packing), message(0, packing)
    header, payload = both.encode(sent)
    for shift in range(1, 4):
        moved = memoryview(bytearray(b"\0" * shift + bytes(payload)))[shift:]
        assert torch.equal(both.decode([header, moved]).payload, sent.payload)


@pytest.mark.parametrize("other", [p for p in PACKINGS if p != "int8"])
def test_a_node_that_packs_otherwise_is_refused(other: str) -> None:
    theirs = codec(other, other)
    said = Message(EDGE, 0, Stamp(1, 1), torch.ones(300)) if other == "float32" else message(0, other)
    with pytest.raises(Refused) as refused:
        codec("int8", "int8").decode(theirs.encode(said))
    assert refused.value.reason == "dtype"


@pytest.mark.parametrize("packing", PACKED)
def test_bytes_that_stand_for_no_number_are_refused(packing: str) -> None:
    both = codec(packing, packing)
    header, payload = both.encode(message(0, packing))
    broken = bytearray(payload)
    broken[0:4] = b"\xc0\xff\xc0\xff"  # NaN as a bf16, and as a scale
    with pytest.raises(Refused) as refused:
        both.decode([header, broken])
    assert refused.value.reason == "payload"


@pytest.mark.parametrize("packing", PACKED)
def test_mutated_frames_are_refused_or_a_message(packing: str) -> None:
    both, draw = codec(packing, packing), random.Random(20)
    for _ in range(3000):
        frames = [bytearray(frame) for frame in both.encode(message(draw.randrange(2), packing))]
        for _ in range(draw.randint(1, 3)):
            frame = draw.choice(frames)
            what = draw.random()
            if what < 0.6:
                frame[draw.randrange(len(frame))] = draw.randrange(256)
            elif what < 0.8:
                del frame[draw.randrange(len(frame)) :]
                if not frame:
                    frame.append(0)
            else:
                frame.insert(draw.randrange(len(frame)), draw.randrange(256))
        try:
            found = both.decode(frames)
        except Refused:
            continue
        assert bool(torch.isfinite(found.payload).all())
        assert len(found.payload) == SIZES[found.bucket]


def test_no_such_codec_or_message() -> None:
    for packings, changes in ((("int8",), {}), (("int8", "int8"), {"dtype": torch.float64})):
        with pytest.raises(ValueError, match="packings"):
            codec(*packings, **changes)
    both = codec("int8", "float32")
    with pytest.raises(ValueError, match="travels as int8"):
        both.encode(Message(EDGE, 0, Stamp(1, 1), torch.ones(300)))
    with pytest.raises(ValueError, match="travels as float32"):
        both.encode(message(1, "int8"))
