"""The trace is read by other programs: a line of each kind, written out."""

from zlib import crc32

import pytest
import torch

from rfast_zmq.core.events import Edge, Event, GradientReady, LinkReady, Message, PeerLeft, Received, Stamp, Started
from rfast_zmq.simulate.trace import traced

EDGE = Edge("pull", 0, 2)
PAYLOAD = torch.tensor([1.0, -2.5])
CRC = crc32(b"\x00\x00\x80\x3f\x00\x00\x20\xc0")  # float32, the least byte first


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Started(0.5), '{"t": 0.5, "node": 2, "event": "Started"}\n'),
        (PeerLeft(0.5, 7), '{"t": 0.5, "node": 2, "event": "PeerLeft", "peer": 7}\n'),
        (
            LinkReady(0.5, EDGE, 3),
            '{"t": 0.5, "node": 2, "event": "LinkReady", "edge": ["pull", 0, 2], "bucket": 3}\n',
        ),
        (
            Received(0.5, Message(EDGE, 3, Stamp(1, 9), PAYLOAD, {"mass": 0.25})),
            '{"t": 0.5, "node": 2, "event": "Received", "edge": ["pull", 0, 2], "bucket": 3, "stamp": [1, 9], '
            f'"numbers": {{"mass": 0.25}}, "payload": {CRC}}}\n',
        ),
        (
            GradientReady(0.5, (PAYLOAD[:1], PAYLOAD[1:]), 8, 1.5, (0.0, 0.0), 0.1),
            f'{{"t": 0.5, "node": 2, "event": "GradientReady", "samples": 8, "loss": 1.5, "gradient": {CRC}}}\n',
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_an_event_is_a_line_of_json(event: Event, line: str) -> None:
    assert traced(0.5, 2, event) == line
