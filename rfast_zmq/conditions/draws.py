"""Random numbers that are a function of what they are for.

A generator that is stepped gives each caller whatever comes next, so a draw depends on all draws before it. Here a draw
is the hash of its own name: the duration of node 3's share 17 is the same whoever asks, when, in which process, and
with which version of any library.
"""

from __future__ import annotations

from hashlib import blake2b


def uniform(*name: int | str) -> float:
    """The draw of this name.

    Args:
        name: the seed, then what the draw is for. Two draws are independent when their names differ.

    Returns:
        Uniform on the open interval (0, 1), in steps of 2⁻⁵².
    """
    digest = blake2b(repr(name).encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 12) + 0.5) * 2.0**-52
