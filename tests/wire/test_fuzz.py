"""Whatever arrives, ``decode`` answers with a message of the run or with ``Refused``: nothing else, ever.

``RFAST_FUZZ_CASES`` says how many mutated messages, ``RFAST_FUZZ_SEED`` which; a failure prints the line that repeats
it.
"""

from __future__ import annotations

import os
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rfast_zmq.core.events import Stamp
from rfast_zmq.errors import Refused
from rfast_zmq.wire import REASONS, Codec

from .helpers import IN_EDGES, NUMBERS, codec_of, frames_of, message_of, vouch
from .mutate import BOMBS, GIANTS, hostile

CASES = int(os.environ.get("RFAST_FUZZ_CASES", "20000"))
SEED = int(os.environ.get("RFAST_FUZZ_SEED", "20240229"))


def corpus() -> list[list[bytes]]:
    """Real messages: of every edge and bucket, and of nodes that belong to another run in one way each."""
    own = [
        message_of(edge, bucket, Stamp(1, 1000 * bucket), numbers={**NUMBERS[edge.graph], "stopping": bucket == 1})
        for edge in IN_EDGES
        for bucket in range(3)
    ]
    strangers = [
        codec_of(run="another-run").encode(message_of()),
        codec_of(layout="f" * 16).encode(message_of()),
        codec_of().encode(message_of(IN_EDGES[1]._replace(src=9))),
    ]
    return [*(frames_of(message) for message in own), *([bytes(f) for f in frames] for frames in strangers)]


def judge(codec: Codec, frames: list[bytes]) -> str:
    """What became of the frames: ``accepted`` or the reason; anything else is an error of the codec."""
    try:
        message = codec.decode(frames)
    except Refused as error:
        refused = error
    else:
        vouch(message, frames)
        return "accepted"
    assert refused.reason in REASONS
    assert len(str(refused)) < 1000  # a log line stays one, whatever a peer sends
    return refused.reason


def test_mutated_messages() -> None:
    codec, real, tally = codec_of(), corpus(), Counter[str]()
    rng = random.Random(SEED)
    for case in range(CASES):
        frames = hostile(rng, real)
        try:
            tally[judge(codec, frames)] += 1
        except BaseException:
            print(f"case {case} of RFAST_FUZZ_SEED={SEED}: frames {[frame[:400] for frame in frames]!r}")
            print(f"again: RFAST_FUZZ_SEED={SEED} RFAST_FUZZ_CASES={case + 1} python -m pytest {__file__} -k mutated")
            raise
    print(f"RFAST_FUZZ_SEED={SEED} RFAST_FUZZ_CASES={CASES}: {dict(tally.most_common())}")
    assert all(tally[outcome] for outcome in (*REASONS, "accepted")) or CASES < 20_000


def test_every_bomb_in_every_place() -> None:
    codec = codec_of()
    header, payload = frames_of(message_of())
    for piece in (*BOMBS, *GIANTS):
        for at in range(len(header)):
            for end in (at, at + 1):
                judge(codec, [header[:at] + piece + header[end:], payload])
        for frames in ([piece, payload], [header, piece], [piece], [piece, piece], [header, payload, piece]):
            assert judge(codec, frames) != "accepted"


def test_every_truncation_and_every_bit() -> None:
    codec = codec_of()
    header, payload = frames_of(message_of())
    for at in range(len(header)):
        assert judge(codec, [header[:at], payload]) != "accepted"
        assert judge(codec, [header[:at], header[at:] + payload]) != "accepted"
        for bit in range(8):
            judge(codec, [header[:at] + bytes([header[at] ^ 1 << bit]) + header[at + 1 :], payload])
    for at in range(len(payload)):
        assert judge(codec, [header, payload[:at]]) == "size"
        for bit in range(8):
            changed = payload[:at] + bytes([payload[at] ^ 1 << bit]) + payload[at + 1 :]
            assert judge(codec, [header, changed]) in ("accepted", "payload")


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_arbitrary_bytes(frames: list[bytes]) -> None:
    judge(codec_of(), frames)


@given(st.binary(max_size=300))
def test_arbitrary_header_of_the_right_outline(middle: bytes) -> None:
    _, payload = frames_of(message_of())
    judge(codec_of(), [b"\x92" + middle + b"\xc6" + len(payload).to_bytes(4, "big"), payload])
