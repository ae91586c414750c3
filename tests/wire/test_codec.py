"""One message to frames and back: nothing lost, nothing copied, every refusal reached."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import torch
import zmq
from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.core.events import Edge, Message, Stamp
from rfast_zmq.errors import Refused, UsageError
from rfast_zmq.settings import BUCKET_BYTES
from rfast_zmq.wire import MAX_HEADER_BYTES, REASONS, Codec
from rfast_zmq.wire.memory import tensor_of

from .helpers import (
    DECLARED,
    IN_EDGES,
    LAYOUT,
    NUMBERS,
    RUN,
    SIZES,
    TYPES,
    codec_of,
    frames_of,
    message_of,
    same,
    vouch,
)

RANKS = st.integers(0, 2**31 - 1)
COUNTS = st.integers(0, 2**62)
VALUES: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-1, 2**62),
    float: st.floats(allow_nan=False, allow_infinity=False),
    list: st.lists(st.integers(0, 2**31 - 1), max_size=100),
}


@st.composite
def codecs_and_messages(draw: st.DrawFn) -> tuple[Codec, Message]:
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    names = st.text(st.characters(codec="utf-8"), max_size=30)
    declared = draw(st.dictionaries(names, st.sampled_from([bool, int, float, list]), max_size=12))
    edge = Edge(draw(st.sampled_from(["W", "A"])), draw(RANKS), draw(RANKS))
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    codec = Codec(
        run=draw(st.text(st.characters(codec="utf-8"), max_size=32)),
        layout=f"{draw(st.integers(0, 2**64 - 1)):016x}",
        sizes=sizes,
        dtype=dtype,
        in_edges=[edge],
        numbers={edge.graph: declared},
    )
    bucket = draw(st.integers(0, len(sizes) - 1))
    floats = st.floats(allow_nan=False, allow_infinity=False, width=32 if dtype == torch.float32 else 64)
    payload = draw(st.lists(floats, min_size=sizes[bucket], max_size=sizes[bucket]))
    numbers = {name: draw(VALUES[kind]) for name, kind in declared.items()}
    stamp = Stamp(draw(COUNTS), draw(COUNTS))
    return codec, Message(edge, bucket, stamp, torch.tensor(payload, dtype=dtype), numbers)


@given(codecs_and_messages())
def test_what_goes_in_comes_out(case: tuple[Codec, Message]) -> None:
    codec, message = case
    frames = codec.encode(message)
    read = codec.decode(frames)
    assert same(read, message)
    assert type(read.stamp) is Stamp
    assert type(read.edge) is Edge
    assert max(memoryview(frame).nbytes for frame in frames) <= codec.max_frame_bytes


@given(codecs_and_messages())
def test_another_library_reads_the_joined_frames(case: tuple[Codec, Message]) -> None:
    codec, message = case
    fields, payload = msgspec.msgpack.decode(b"".join(codec.encode(message)))
    assert payload == message.payload.numpy().tobytes()
    assert fields["stamp"] == list(message.stamp)
    assert fields["n"] == message.numbers
    assert (fields["graph"], fields["src"], fields["dst"], fields["bucket"]) == (*message.edge, message.bucket)


@pytest.mark.parametrize("name", TYPES)
def test_the_bytes_are_those_of_the_page(name: str) -> None:
    short, numpy_name, dtype = TYPES[name]
    message = message_of(dtype=dtype)
    header, payload = frames_of(message)
    assert payload == message.payload.numpy().astype(numpy_name).tobytes()
    assert header[:1] == b"\x92"
    assert header[-5:] == b"\xc6" + struct.pack(">I", len(payload))
    assert msgpack.unpackb(header[1:-5]) == {
        "v": 1,
        "run": RUN,
        "src": 3,
        "dst": 1,
        "graph": "A",
        "layout": LAYOUT,
        "bucket": 0,
        "dtype": short,
        "stamp": [2, 17],
        "n": NUMBERS["A"],
    }


# ------------------------------------------------------------------------------------------- no copies


def address(buffer: Any) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def test_encoding_copies_nothing() -> None:
    message = message_of()
    _, payload = codec_of().encode(message)
    assert address(payload) == message.payload.data_ptr()


def test_a_slice_of_the_flat_vector_is_not_copied() -> None:
    flat = torch.arange(21, dtype=torch.float32)
    message = Message(IN_EDGES[1], 1, Stamp(0, 0), flat[8:16], NUMBERS["A"])
    _, payload = codec_of().encode(message)
    assert address(payload) == flat.data_ptr() + 8 * 4


def test_what_cannot_be_sent_as_it_lies_is_copied() -> None:
    strided = Message(IN_EDGES[1], 0, Stamp(0, 0), torch.arange(16.0)[::2], NUMBERS["A"])
    tracked = Message(IN_EDGES[1], 0, Stamp(0, 0), torch.arange(8.0, requires_grad=True), NUMBERS["A"])
    for message in (strided, tracked):
        assert codec_of().decode(codec_of().encode(message)).payload.tolist() == message.payload.tolist()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: zmq.Frame(b).buffer])
def test_decoding_copies_nothing(kind: Any) -> None:
    header, payload = (kind(frame) for frame in frames_of(message_of()))
    read = codec_of().decode([header, payload])
    assert read.payload.data_ptr() == address(payload)
    assert same(read, message_of())


def test_the_payload_keeps_its_frame_alive() -> None:
    header, payload = frames_of(message_of())
    read = codec_of().decode([header, zmq.Frame(payload).buffer])
    _ = [bytes(32) for _ in range(1000)]
    assert same(read, message_of())


def test_the_frames_keep_the_payload_alive() -> None:
    _, payload = codec_of().encode(message_of())
    _ = [torch.zeros(8) for _ in range(1000)]
    assert bytes(payload) == frames_of(message_of())[1]


def test_bytes_at_an_odd_address_are_copied_to_an_even_one() -> None:
    header, payload = frames_of(message_of())
    shifted = memoryview(b"\x00" + payload)[1:]
    read = codec_of().decode([header, shifted])
    assert address(shifted) % 4
    assert read.payload.data_ptr() % 4 == 0
    assert same(read, message_of())


@pytest.mark.parametrize("buffer", [bytes(16), bytearray(16)])
def test_no_warning_and_the_right_dtype(buffer: Any) -> None:
    assert tensor_of(memoryview(buffer), np.dtype("<f8")).dtype == torch.float64


# -------------------------------------------------------------------------------------------- refusals


def header_with(fields: Any, length: int = 32) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return b"\x92" + packed + b"\xc6" + struct.pack(">I", length)


def changed(**changes: Any) -> list[bytes]:
    """A good message, with some fields of its header others, or (``...``) missing."""
    header, payload = frames_of(message_of())
    fields = {**msgpack.unpackb(header[1:-5]), **changes}
    return [header_with({key: value for key, value in fields.items() if value is not ...}), payload]


def numbers(**changes: Any) -> list[bytes]:
    return changed(n={key: value for key, value in {**NUMBERS["A"], **changes}.items() if value is not ...})


def payload_of(*values: float) -> list[bytes]:
    return [frames_of(message_of())[0], struct.pack("<8f", *values)]


GOOD = frames_of(message_of())
REFUSALS: list[tuple[str, list[Any]]] = [
    ("frames", []),
    ("frames", [b"".join(GOOD)]),
    ("frames", [*GOOD, b""]),
    ("frames", [GOOD[0], None]),
    ("frames", ["text", GOOD[1]]),
    ("size", [b"", GOOD[1]]),
    ("size", [GOOD[0][-5:], GOOD[1]]),
    ("size", [b"\x92" + b"\x00" * MAX_HEADER_BYTES + GOOD[0][-5:], GOOD[1]]),
    ("size", [GOOD[0], b""]),
    ("size", [GOOD[0], GOOD[1][:-1]]),
    ("size", [GOOD[0], GOOD[1] + b"\x00"]),
    ("size", [GOOD[0][:-4] + struct.pack(">I", 20), GOOD[1]]),
    ("size", [header_with(msgpack.unpackb(GOOD[0][1:-5]), 20), GOOD[1][:20]]),
    ("malformed", [GOOD[1], GOOD[1]]),
    ("malformed", [b"\x93" + GOOD[0][1:], GOOD[1]]),
    ("malformed", [GOOD[0][:-5] + b"\xc9" + GOOD[0][-4:], GOOD[1]]),
    ("malformed", [GOOD[0][:-6] + GOOD[0][-5:], GOOD[1]]),
    ("malformed", [GOOD[0][:-5] + b"\xc0" + GOOD[0][-5:], GOOD[1]]),
    ("malformed", [header_with([]), GOOD[1]]),
    ("malformed", [header_with(None), GOOD[1]]),
    ("malformed", [header_with({}), GOOD[1]]),
    ("malformed", [header_with({"v": 1}), GOOD[1]]),
    ("malformed", changed(v=...)),
    ("malformed", changed(v=True)),
    ("malformed", changed(v="1")),
    ("malformed", changed(v=1.0)),
    ("malformed", changed(run=7)),
    ("malformed", changed(run=...)),
    ("malformed", changed(run=b"")),
    ("malformed", changed(run="x" * 129)),
    ("malformed", changed(src=True)),
    ("malformed", changed(src=3.0)),
    ("malformed", changed(dst=None)),
    ("malformed", changed(graph=["A"])),
    ("malformed", changed(layout=0)),
    ("malformed", changed(bucket=False)),
    ("malformed", changed(dtype=4)),
    ("malformed", changed(stamp="now")),
    ("malformed", changed(n=[])),
    ("malformed", changed(n=...)),
    ("malformed", changed(extra=0)),
    ("malformed", changed(n={1: 2})),
    ("malformed", changed(n={b"": 2})),
    ("malformed", changed(n={str(i): 0 for i in range(65)})),
    ("malformed", changed(n=[0] * 1025)),
    ("malformed", changed(n=msgpack.ExtType(5, b""))),
    ("malformed", changed(n=msgpack.Timestamp(0))),
    ("malformed", [GOOD[0].replace(b"\x8a\xa1v\x01", b"\x8b\xa1v\x01\xa1v\x01"), GOOD[1]]),
    ("malformed", [GOOD[0].replace(b"\xa4loss", b"\xa4lo\xffs"), GOOD[1]]),
    ("version", changed(v=2)),
    ("version", changed(v=0, n=..., flags=7)),
    ("run", changed(run="")),
    ("run", changed(run="another")),
    ("edge", changed(src=9)),
    ("edge", changed(src=-1)),
    ("edge", changed(dst=2)),
    ("edge", changed(graph="W")),
    ("edge", changed(graph="B")),
    ("edge", changed(src=1, dst=3)),
    ("layout", changed(layout="f" * 16)),
    ("layout", changed(layout="")),
    ("bucket", changed(bucket=3)),
    ("bucket", changed(bucket=-1)),
    ("bucket", changed(bucket=2**63)),
    ("size", changed(bucket=2)),
    ("dtype", changed(dtype="f8")),
    ("dtype", changed(dtype="bf16")),
    ("stamp", changed(stamp=[])),
    ("stamp", changed(stamp=[1])),
    ("stamp", changed(stamp=[1, 2, 3])),
    ("stamp", changed(stamp=[-1, 2])),
    ("stamp", changed(stamp=[1, -2])),
    ("stamp", changed(stamp=[1, 2.0])),
    ("stamp", changed(stamp=[True, 2])),
    ("stamp", changed(stamp=[1, 2**62 + 1])),
    ("numbers", changed(n={})),
    ("numbers", changed(n=NUMBERS["W"])),
    ("numbers", numbers(loss=...)),
    ("numbers", numbers(more=1)),
    ("numbers", numbers(loss=1)),
    ("numbers", numbers(loss=None)),
    ("numbers", numbers(loss="low")),
    ("numbers", numbers(loss=math.nan)),
    ("numbers", numbers(loss=math.inf)),
    ("numbers", numbers(loss=-math.inf)),
    ("numbers", numbers(samples=1.0)),
    ("numbers", numbers(samples=True)),
    ("numbers", numbers(samples=-2)),
    ("numbers", numbers(samples=2**62 + 1)),
    ("numbers", numbers(stopping=0)),
    ("numbers", numbers(aside=7)),
    ("numbers", numbers(aside={})),
    ("numbers", numbers(aside=[-1])),
    ("numbers", numbers(aside=[2**31])),
    ("numbers", numbers(aside=[1.0])),
    ("numbers", numbers(aside=[True])),
    ("numbers", numbers(aside=[[1]])),
    ("payload", payload_of(0, 0, 0, math.nan, 0, 0, 0, 0)),
    ("payload", payload_of(math.inf, 0, 0, 0, 0, 0, 0, 0)),
    ("payload", payload_of(0, 0, 0, 0, 0, 0, 0, -math.inf)),
    ("payload", payload_of(math.inf, 0, 0, 0, 0, 0, 0, -math.inf)),
]


@pytest.mark.parametrize(
    ("reason", "frames"), REFUSALS, ids=[f"{reason}-{i}" for i, (reason, _) in enumerate(REFUSALS)]
)
def test_refused(reason: str, frames: list[Any]) -> None:
    with pytest.raises(Refused) as refused:
        codec_of().decode(frames)
    assert refused.value.reason == reason
    assert str(refused.value).startswith(f"{reason}: ")
    assert len(str(refused.value)) < 300


def test_every_reason_is_reached() -> None:
    assert {reason for reason, _ in REFUSALS} == set(REASONS)


@pytest.mark.parametrize(
    "frames",
    [
        changed(),
        changed(stamp=[0, 0]),
        changed(stamp=[2**62, 2**62]),
        numbers(samples=-1),
        numbers(samples=2**62),
        numbers(aside=[0, 2**31 - 1]),
        numbers(loss=-0.0),
        payload_of(3e38, 3e38, 3e38, 0, 0, 0, 0, 0),  # finite, though their sum is not
        payload_of(1e-45, -0.0, 0, 0, 0, 0, 0, 0),
    ],
)
def test_taken_at_the_limits(frames: list[bytes]) -> None:
    vouch(codec_of().decode(frames), frames)


def test_the_order_of_the_keys_is_free() -> None:
    fields = msgpack.unpackb(GOOD[0][1:-5])
    assert same(codec_of().decode([header_with(dict(reversed(fields.items()))), GOOD[1]]), message_of())


def test_a_thousand_ranks_set_aside_fit() -> None:
    message = message_of(numbers={**NUMBERS["A"], "aside": list(range(64_000, 65_024))})
    assert same(codec_of().decode(codec_of().encode(message)), message)


# ------------------------------------------------------------------------------------ the caller's own faults


def test_the_longest_frame() -> None:
    assert codec_of().max_frame_bytes == BUCKET_BYTES  # another model's bucket must get through to be told apart
    assert codec_of(sizes=(10, 250_000)).max_frame_bytes == BUCKET_BYTES
    assert codec_of(torch.float64, sizes=(250_000,)).max_frame_bytes == 2_000_000


def test_an_int_becomes_the_float_that_is_declared() -> None:
    message = message_of(numbers={**NUMBERS["A"], "weight": 3})
    read = codec_of().decode(codec_of().encode(message))
    assert type(read.numbers["weight"]) is float
    assert same(read, message_of())


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (message_of(numbers={}), "declared"),
        (message_of(numbers={**NUMBERS["A"], "samples": 1.0}), "declared"),
        (message_of(numbers={**NUMBERS["A"], "more": 1}), "declared"),
        (message_of(numbers={**NUMBERS["A"], "aside": [2**31 - 1] * 1000}), "a header of 51.. bytes"),
        (message_of(dtype=torch.float64), "the payload is torch.float64"),
        (Message(IN_EDGES[1], 0, Stamp(0, 0), torch.zeros(7), NUMBERS["A"]), "shape"),
        (Message(IN_EDGES[1], 0, Stamp(0, 0), torch.zeros(2, 4), NUMBERS["A"]), "shape"),
        (Message(IN_EDGES[1], 3, Stamp(0, 0), torch.zeros(8), NUMBERS["A"]), "bucket 3 of 3"),
        (Message(IN_EDGES[1], -1, Stamp(0, 0), torch.zeros(5), NUMBERS["A"]), "bucket -1 of 3"),
    ],
)
def test_no_message_of_this_run(message: Message, text: str) -> None:
    codec = codec_of()
    with pytest.raises(ValueError, match=text):
        codec.encode(message)
    assert frames_of(message_of(), codec) == GOOD


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"layout": "short"}, "16 hex digits"),
        ({"sizes": ()}, "need a bucket"),
        ({"sizes": (3, 0)}, "a coordinate in each"),
        ({"numbers": {"W": {}}}, "no numbers are declared for graph {'A'}"),
        ({"numbers": {**DECLARED, "A": {"name": str}}}, "declares a number 'name'"),
        ({"numbers": {**DECLARED, "A": {"x" * 129: int}}}, "declares a number"),
        ({"numbers": {**DECLARED, "A": {str(i): int for i in range(65)}}}, "declares 65 numbers"),
    ],
)
def test_no_such_codec(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        codec_of(**changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dtype": torch.int64}, "dtype torch.int64 does not travel; .* torch.float32, torch.float64"),
        ({"run": "x" * 129}, "must have at most 128 bytes"),
    ],
)
def test_no_such_run(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        codec_of(**changes)


def test_the_sizes_in_the_tests_hold_two_lengths() -> None:
    assert len(set(SIZES)) == 2
