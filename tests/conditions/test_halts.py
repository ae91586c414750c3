"""Halts are read from text, and bad ones are refused by name."""

from __future__ import annotations

from math import inf

import pytest

from rfast_zmq.conditions import Halt
from rfast_zmq.errors import UsageError


def test_a_halt_for_ever_and_one_for_a_while() -> None:
    assert Halt.parse(["2:1.5", "0:1:4"], nodes=3) == (Halt(2, 1.5, inf), Halt(0, 1.0, 4.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2", "RANK:FROM"),
        ("two:1", "RANK:FROM"),
        ("1:2:3:4", "RANK:FROM"),
        ("3:1", "valid ranks are 0..2"),
        ("-1:1", "valid ranks are 0..2"),
        ("1:4:2", "go on after that"),
        ("1:-1", "0 s or later"),
        ("1:nan", "0 s or later"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Halt.parse([text], nodes=3)
    assert text in str(caught.value)
