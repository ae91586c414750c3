"""``rfast plot``: the pictures of a run."""

from __future__ import annotations

from pathlib import Path

from rfast_zmq import plotting


def plot(folder: Path, /) -> int:
    """Draw curve.png and topology.png from what a run left in its folder.

    Parameters
    ----------
    folder
        What was given to --out.
    """
    for path in plotting.pictures(folder):
        print(f"drawn: {path}")
    return 0
