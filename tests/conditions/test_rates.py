"""Rates are read from text, and bad ones are refused in one line."""

from __future__ import annotations

import pytest

from rfast_zmq.conditions import bytes_per_s
from rfast_zmq.errors import UsageError


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("125000", 125_000.0),
        ("1.5e6", 1.5e6),
        ("10mbit", 1.25e6),
        (" 10 Mbit ", 1.25e6),
        ("800kbit", 1e5),
        ("2.5GBIT", 312.5e6),
    ],
)
def test_bytes_or_bits_a_second(text: str, rate: float) -> None:
    assert bytes_per_s(text) == rate


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0mbit",
        "-1",
        "-10mbit",
        "nan",
        "inf",
        "1e400",
        "1e305gbit",
        "",
        "mbit",
        "10mb",
        "ten",
        "10 20",
        "10mbitmbit",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        bytes_per_s(text)
    said = f"--bandwidth {text}: must be bytes a second above 0, or as 10mbit (kbit, mbit, gbit)"
    assert str(caught.value) == said
