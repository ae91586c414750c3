"""How fast a line is, as a user writes it."""

from __future__ import annotations

from math import isfinite

from rfast_zmq.errors import UsageError

_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def bytes_per_s(text: str) -> float:
    """The rate that ``--bandwidth`` names.

    Args:
        text: a number of bytes a second, or of ``kbit``, ``mbit`` or ``gbit`` a second, as ``10mbit``.

    Returns:
        Bytes a second, above 0 and finite.

    Raises:
        UsageError: neither.
    """
    plain = text.strip().lower()
    unit = next((unit for unit in _BITS if plain.endswith(unit)), "")
    try:
        number = float(plain.removesuffix(unit)) * (_BITS[unit] / 8 if unit else 1.0)
    except ValueError:
        number = 0.0
    if not (isfinite(number) and number > 0):
        raise UsageError(f"--bandwidth {text}: must be bytes a second above 0, or as 10mbit (kbit, mbit, gbit)")
    return number
